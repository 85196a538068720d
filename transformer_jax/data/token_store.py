"""A corpus as token ids: what was read, what was left out and why."""

import itertools
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from transformer_jax.data.corpus import Pair
from transformer_jax.data.vocabulary import Vocabulary

_CHUNK = 10_000  # pairs tokenised in one call


class Side(NamedTuple):
    """Sentences end to end: ids [tokens] and offsets [sentences + 1] into them."""

    ids: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, with the end symbol."""
        return np.diff(self.offsets)


class TokenStore(NamedTuple):
    """The pairs of a corpus that can be trained on, each side closed by the end symbol.

    Attributes:
      source, target: the two sides.
      left_out: number of pairs that are not here, by reason.
    """

    source: Side
    target: Side
    left_out: dict[str, int]

    def __len__(self) -> int:
        return len(self.source.offsets) - 1

    def fingerprint(self) -> int:
        """A checksum of all tokens: equal for equal content."""
        checksum = 0
        for side in (self.source, self.target):
            checksum = zlib.crc32(side.offsets.tobytes(), zlib.crc32(side.ids.tobytes(), checksum))
        return checksum


def tokenize(pairs: Iterable[Pair], vocabulary: Vocabulary, max_length: int) -> TokenStore:
    """Tokenises a corpus.

    Pairs with an empty side, or with a side of more than `max_length` tokens (end symbol
    included), are left out and counted.
    """
    dtype = np.uint16 if len(vocabulary) <= 2**16 else np.int32
    ids: tuple[list, list] = ([], [])
    lengths: tuple[list, list] = ([], [])
    left_out = {"empty": 0, "too long": 0}
    pairs = iter(pairs)
    while chunk := list(itertools.islice(pairs, _CHUNK)):
        sides = [vocabulary.encode(texts) for texts in zip(*chunk)]
        kept = []
        for pair in zip(*sides):
            # A side of blanks only is as empty as one without any: just the end symbol.
            reason = (
                "empty"
                if min(map(len, pair)) == 1
                else "too long"
                if max(map(len, pair)) > max_length
                else ""
            )
            if reason:
                left_out[reason] += 1
            else:
                kept.append(pair)
        for side in range(2):
            sentences = [pair[side] for pair in kept]
            ids[side].append(np.fromiter(itertools.chain.from_iterable(sentences), dtype))
            lengths[side].append(np.fromiter(map(len, sentences), np.int64, len(sentences)))
    sides = [
        Side(
            np.concatenate([np.zeros(0, dtype), *ids[side]]),
            np.cumsum(np.concatenate([np.zeros(1, np.int64), *lengths[side]])),
        )
        for side in range(2)
    ]
    return TokenStore(*sides, left_out)
