"""Rows: which pairs stand in each, decided once for a corpus and kept on disk.

Packed rows, all of one shape, hold several pairs; bucketed rows hold one, padded to the
longest of its bucket.
"""

import itertools
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.data.packing import pack
from transformer_jax.data.token_store import TokenStore
from transformer_jax.heartbeat import heartbeat
from transformer_jax.storage import Writer, cached

_FORMAT = 1
_WINDOW = 1 << 20  # pairs planned at once: bounds the memory, and so does packing's time
_PAIRS_A_ROW = 6  # packed rows hold at least so many of mean length, to be well filled
_MOST_LENGTHS = 512  # told apart when buckets are chosen, which takes their square in memory


class Shape(NamedTuple):
    """Tokens of a row's source and target side."""

    source: int
    target: int


class Rows(NamedTuple):
    """The rows of one corpus that have one shape.

    Attributes:
      shape: of each row.
      pairs: [pairs] numbers of pairs in the store, row by row.
      starts: [rows + 1] where each row begins in `pairs`; None = each holds one pair.
    """

    shape: Shape
    pairs: np.ndarray
    starts: np.ndarray | None

    def __len__(self) -> int:
        return len(self.pairs) if self.starts is None else len(self.starts) - 1


class Growth(NamedTuple):
    """How much longer than in the store the sides may become when they are read."""

    source: float = 1.0
    target: float = 1.0


def packed_rows(
    stores: Sequence[TokenStore],
    given: Shape,
    growth: Growth,
    cache: pathlib.Path,
    most: float = float("inf"),
) -> list[list[Rows]]:
    """The packed rows of each corpus, as a list of one.

    Args:
      stores: the corpora of a mixture, whose rows share their shape.
      given: the shape; a side of 0 is chosen from the lengths of the pairs.
      growth: room to leave for each pair.
      cache: folder to keep them in.
      most: tokens of a chosen side, if the longest pair fits.

    Raises:
      ValueError: a given side is shorter than the longest pair.
    """
    shape = _row_shape(stores, given, growth, most)

    def write(store: TokenStore, writer: Writer) -> None:
        written = 0
        for first, lengths_N2 in _windows(store, growth):
            order_N, starts = pack(np.minimum(lengths_N2, shape), shape, seed=first)
            writer.append("pairs", _numbers(order_N + first, len(store)))
            writer.append("starts", starts[int(first > 0) :] + written)
            written += len(order_N)

    def rows(store: TokenStore) -> list[Rows]:
        kept = _kept(store, ["packed", *shape, *growth], cache, write)
        return [Rows(shape, kept["pairs"], kept["starts"])]

    return [rows(store) for store in stores]


def bucketed_rows(
    stores: Sequence[TokenStore], num_buckets: int, growth: Growth, cache: pathlib.Path
) -> list[list[Rows]]:
    """Rows of a pair each, [corpus][bucket], shortest first; a bucket has one shape for all.

    `stores`, `growth` and `cache` are as for `packed_rows`.
    """
    longer = np.zeros(0, np.int64)
    for _, lengths_N2 in _all_windows(stores, growth):
        counts = np.bincount(lengths_N2.max(axis=1))
        longer, counts = sorted((longer, counts), key=len)
        longer = np.pad(longer, (0, len(counts) - len(longer))) + counts
    ends = bucket_lengths(longer, num_buckets)
    longest = np.zeros((len(ends), 2), np.int64)
    for _, lengths_N2 in _all_windows(stores, growth):
        np.maximum.at(longest, np.searchsorted(ends, lengths_N2.max(axis=1)), lengths_N2)

    def write(store: TokenStore, writer: Writer) -> None:
        for first, lengths_N2 in _windows(store, growth):
            bucket_N = np.searchsorted(ends, lengths_N2.max(axis=1))
            for bucket in range(len(ends)):
                pairs = np.flatnonzero(bucket_N == bucket) + first
                writer.append(f"pairs_{bucket}", _numbers(pairs, len(store)))

    def rows(store: TokenStore) -> list[Rows]:
        kept = _kept(store, ["bucketed", *ends, *growth], cache, write)
        return [Rows(Shape(*map(int, x)), kept[f"pairs_{i}"], None) for i, x in enumerate(longest)]

    return [rows(store) for store in stores]


def _kept(store: TokenStore, settings: list, cache: pathlib.Path, write) -> dict[str, np.ndarray]:
    """The arrays that `write` makes of a store, from the cache if they are there."""

    def build(writer: Writer) -> dict:
        with heartbeat("ordering the rows"):
            write(store, writer)
        return {}

    key = [_FORMAT, store.fingerprint, *settings]
    return cached(cache, "rows", key, "the order of the rows", build).arrays


def _numbers(pairs: np.ndarray, count: int) -> np.ndarray:
    return pairs.astype(np.uint32 if count <= 2**32 else np.int64)


def _windows(store: TokenStore, growth: Growth) -> Iterator[tuple[int, np.ndarray]]:
    """First pair of each window and [pairs, 2] room that each pair needs on either side."""
    for first in range(0, len(store), _WINDOW):
        sides = (side.lengths(first, first + _WINDOW) for side in (store.source, store.target))
        yield first, np.ceil(np.stack(list(sides), axis=1) * growth).astype(np.int64)


def _all_windows(stores: Sequence[TokenStore], growth: Growth):
    return itertools.chain.from_iterable(_windows(store, growth) for store in stores)


def _row_shape(stores: Sequence[TokenStore], given: Shape, growth: Growth, most: float) -> Shape:
    """The shape of packed rows: what is given, else of the corpora's own proportions."""
    total, longest, count = np.zeros(2), np.zeros(2, np.int64), 0
    for _, lengths_N2 in _all_windows(stores, growth):
        total += lengths_N2.sum(axis=0)
        longest = np.maximum(longest, lengths_N2.max(axis=0))
        count += len(lengths_N2)
    mean = total / count
    # The scale at which the longest pair fits, and enough of mean length do.
    scale = max(_PAIRS_A_ROW, *(longest / mean))
    chosen = []
    for side, length, one, planned, factor in zip(Shape._fields, given, mean, longest, growth):
        least = int(planned / factor + 1e-6)  # as it is stored
        if 0 < length < least:
            raise ValueError(
                f"config.data.{side}_row_length={length} is less than the longest {side} kept, of "
                f"{least} tokens; raise it or lower config.data.max_length"
            )
        wanted = -(-int(np.ceil(scale * one)) // 8) * 8
        chosen.append(length or max(int(min(wanted, most)), least))
    return Shape(*chosen)


def bucket_lengths(counts: np.ndarray, num_buckets: int) -> list[int]:
    """The `num_buckets` (or fewer) lengths that pad least, by dynamic programming.

    Args:
      counts: [longest + 1] number of pairs whose longer side has so many tokens.
      num_buckets: most lengths returned; the last one holds the longest.
    """
    longest = len(counts) - 1
    step = -(-longest // _MOST_LENGTHS)
    ends = np.arange(0, longest + step, step)
    grouped = np.add.reduceat(counts, np.append(0, ends[:-1] + 1))
    ends = np.concatenate([[0], ends[grouped > 0]])
    pairs = np.concatenate([[0], np.cumsum(grouped[grouped > 0])])  # of the first n lengths
    # cost[n]: least places that hold the first n lengths in the buckets used so far.
    cost = np.where(ends == 0, 0.0, np.inf)
    choices = []
    for _ in range(num_buckets):
        # [n, m]: the first m as before, and those up to the n-th padded to it.
        padded = cost[None, :] + ends[:, None] * (pairs[:, None] - pairs[None, :])
        padded = np.where(np.tri(len(ends), dtype=bool), padded, np.inf)
        choices.append(padded.argmin(axis=1))
        cost = padded.min(axis=1)
    result, n = [], len(ends) - 1
    for choice in reversed(choices):
        if choice[n] != n:
            result.append(int(ends[n]))
        n = choice[n]
    return sorted(result)
