"""Word alignment from cross attention."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.data.vocabulary import EOS, UNK, Vocabulary

_BLANK = "\u2581"  # how SentencePiece writes a blank, if not as a byte
_BLANK_BYTES = {f"<0x{byte:02X}>" for byte in b" \t\n\r"}


class Alignment(NamedTuple):
    """Which source word each target word looked at.

    Attributes:
      source_words, target_words: as separated by blanks.
      weights: [target words, source words] float32, the attention of a target word (the mean
        over its tokens) to a source word (the sum over its tokens). What a row lacks to 1
        went to the end symbol.
      links: (source word, target word) from 0: each target word's best source word.
    """

    source_words: list[str]
    target_words: list[str]
    weights: np.ndarray
    links: list[tuple[int, int]]

    @property
    def pharaoh(self) -> str:
        """The links as in "0-0 1-2", source first."""
        return " ".join(f"{source}-{target}" for source, target in self.links)


def align(
    vocabulary: Vocabulary,
    source: Sequence[int],
    target: Sequence[int],
    cross_TS: np.ndarray,
    skip: int = 0,
) -> Alignment:
    """The alignment of the words of two sentences of tokens.

    Args:
      vocabulary: of the tokens.
      source, target: ids, closed by the end symbol.
      cross_TS: attention of each target token to each source token.
      skip: first words of the source that are left out.
    """
    (source_words, source_of), (target_words, target_of) = (
        _words(vocabulary, ids) for ids in (source, target)
    )
    source_words = source_words[skip:]
    to_source = _one_hot(np.asarray(source_of) - skip, len(source_words))
    to_target = _one_hot(target_of, len(target_words))
    tokens_each = np.maximum(to_target.sum(axis=0), 1)[:, None]
    weights = to_target.T @ cross_TS @ to_source / tokens_each
    best = weights.argmax(axis=1) if source_words else []
    links = sorted((int(s), t) for t, s in enumerate(best))
    return Alignment(source_words, target_words, weights.astype(np.float32), links)


def _words(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """The words, and the number of each token's word, -1 for what belongs to none."""
    number, of, before = -1, [], ""  # the piece before; "" where a word must begin
    for token, piece in zip(ids, vocabulary.pieces(ids)):
        if token == EOS or piece in _BLANK_BYTES:
            of.append(-1)
            before = ""
            continue
        # An unknown symbol is written with blanks around it.
        alone = token == UNK and before != _BLANK
        number += not before or alone or (piece.startswith(_BLANK) and before != _BLANK)
        of.append(number)
        before = "" if token == UNK else piece
    words = [
        vocabulary.decode([token for token, its in zip(ids, of) if its == word]).strip(" ")
        for word in range(number + 1)
    ]
    # Spaces that end a text, or follow one another, are no word.
    order = {word: place for place, word in enumerate(w for w, text in enumerate(words) if text)}
    return list(filter(None, words)), [order.get(word, -1) for word in of]


def _one_hot(numbers: Sequence[int], count: int) -> np.ndarray:
    return (np.asarray(numbers)[:, None] == np.arange(count)[None]).astype(np.float32)
