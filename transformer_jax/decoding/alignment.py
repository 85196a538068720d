"""Word alignment from cross attention."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.data.vocabulary import EOS, SPACE, UNK, Vocabulary
from transformer_jax.decoding.scoring import TokenPair

_SPACE_BYTES = {f"<0x{byte:02X}>" for byte in b" \t\n\r"}


class Alignment(NamedTuple):
    """Which source word each target word attended to; words are separated by spaces."""

    source_words: list[str]
    target_words: list[str]
    # [target words, source words] float32, the attention of a target word (the mean over its
    # tokens) to a source word (the sum over its tokens). What a row lacks to 1 went to EOS.
    weights: np.ndarray
    links: list[tuple[int, int]]  # (source word, target word) from 0: each target word's best

    @property
    def pharaoh(self) -> str:
        """The links as in "0-0 1-2", source first."""
        return " ".join(f"{source}-{target}" for source, target in self.links)


def align(
    vocabulary: Vocabulary, pair: TokenPair, cross_TS: np.ndarray, skip: int = 0
) -> Alignment:
    """The alignment of a pair's words, without the first `skip` of the source."""
    source_words, word_of_source = _words(vocabulary, pair.source)
    target_words, word_of_target = _words(vocabulary, pair.target)
    source_words = source_words[skip:]
    to_source = _one_hot(np.asarray(word_of_source) - skip, len(source_words))
    to_target = _one_hot(word_of_target, len(target_words))
    token_counts = np.maximum(to_target.sum(axis=0), 1)[:, None]
    weights = to_target.T @ cross_TS @ to_source / token_counts
    best = weights.argmax(axis=1) if source_words else []
    links = sorted((int(s), t) for t, s in enumerate(best))
    return Alignment(source_words, target_words, weights.astype(np.float32), links)


def _words(vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[list[str], list[int]]:
    """The words, and the number of each token's word, -1 for tokens of none."""
    groups: list[list[int]] = []  # positions of each word's tokens
    previous = ""  # piece; "" where a word must begin
    for position, (token, piece) in enumerate(zip(ids, vocabulary.pieces(ids))):
        if token == EOS or piece in _SPACE_BYTES:
            previous = ""
            continue
        # An unknown token is written with spaces around it.
        alone = token == UNK and previous != SPACE
        if not previous or alone or (piece.startswith(SPACE) and previous != SPACE):
            groups.append([])
        groups[-1].append(position)
        previous = "" if token == UNK else piece
    words, word_of = [], [-1] * len(ids)
    for group in groups:
        # Spaces that end a text, or follow one another, are no word.
        if text := vocabulary.decode([ids[position] for position in group]).strip(" "):
            for position in group:
                word_of[position] = len(words)
            words.append(text)
    return words, word_of


def _one_hot(numbers: Sequence[int], count: int) -> np.ndarray:
    return (np.asarray(numbers)[:, None] == np.arange(count)[None]).astype(np.float32)
