"""Row plans: which pairs stand in each row, decided once for a corpus and cached.

Packed rows, all of one shape, hold several pairs; bucketed rows hold one, padded to the
longest of its bucket.

Packing is two-dimensional bin packing over a table of lengths. Pairs of equal lengths are
interchangeable, and so are rows with equal room left. Packing counts of them (after Krell et al.
2021, "Efficient sequence packing without cross-contamination", who do so for one side) takes a
second for a million pairs.
"""

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.data.permutation import permuted
from transformer_jax.data.token_store import TokenStore
from transformer_jax.heartbeat import heartbeat
from transformer_jax.storage import Writer, cached

_FORMAT = 1
WINDOW = 1 << 20  # pairs planned at once: bounds the memory, and so does packing's time
_PAIRS_A_ROW = 4  # packed rows hold at least so many of mean length, to be well filled
_MAX_LENGTHS = 512  # distinguished when buckets are chosen, which takes their square in memory


class Shape(NamedTuple):
    """Tokens of a row's source and target side."""

    source: int
    target: int


class Rows(NamedTuple):
    """The rows of one corpus that have one shape."""

    shape: Shape
    pairs: np.ndarray  # [pairs] numbers of pairs in the store, row by row
    starts: np.ndarray | None  # [rows + 1] where each begins in `pairs`; None = each holds one pair

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
    max_side: float = float("inf"),
) -> list[list[Rows]]:
    """The packed rows of each corpus, as a list of one.

    Args:
      stores: the corpora of a mixture, whose rows share their shape.
      given: the shape; a side of 0 is chosen from the lengths of the pairs.
      growth: room to leave for each pair.
      cache: folder to keep them in.
      max_side: maximum of tokens of a chosen side, if the longest pair fits.

    Raises:
      ValueError: a given side is shorter than the longest pair.
    """
    shape = _row_shape(stores, given, growth, max_side)

    def write(store: TokenStore, writer: Writer) -> None:
        written = 0
        for first, lengths_P2 in _windows([store], growth):
            order_P, starts = pack(np.minimum(lengths_P2, shape), shape, seed=first)
            writer.append("pairs", _indices(order_P + first, len(store)))
            writer.append("starts", starts[int(first > 0) :] + written)
            written += len(order_P)

    plan = ["packed", *shape, *growth]
    arrays = [_cached_rows(store, plan, cache, write) for store in stores]
    return [[Rows(shape, x["pairs"], x["starts"])] for x in arrays]


def bucketed_rows(
    stores: Sequence[TokenStore], num_buckets: int, growth: Growth, cache: pathlib.Path
) -> list[list[Rows]]:
    """Rows of a pair each, [corpus][bucket], shortest first; a bucket has one shape for all.

    `stores`, `growth` and `cache` are as for `packed_rows`.
    """
    longer = np.zeros(0, np.int64)  # number of pairs by the length of their longer side
    for _, lengths_P2 in _windows(stores, growth):
        counts = np.bincount(lengths_P2.max(axis=1))
        longer, counts = sorted((longer, counts), key=len)
        longer = np.pad(longer, (0, len(counts) - len(longer))) + counts
    ends = bucket_lengths(longer, num_buckets)
    longest = np.zeros((len(ends), 2), np.int64)
    for _, lengths_P2 in _windows(stores, growth):
        np.maximum.at(longest, np.searchsorted(ends, lengths_P2.max(axis=1)), lengths_P2)

    def write(store: TokenStore, writer: Writer) -> None:
        for first, lengths_P2 in _windows([store], growth):
            bucket_P = np.searchsorted(ends, lengths_P2.max(axis=1))
            for bucket in range(len(ends)):
                pairs = np.flatnonzero(bucket_P == bucket) + first
                writer.append(f"pairs_{bucket}", _indices(pairs, len(store)))

    plan, shapes = ["bucketed", *ends, *growth], [Shape(*x) for x in longest.tolist()]
    arrays = [_cached_rows(store, plan, cache, write) for store in stores]
    return [[Rows(y, x[f"pairs_{i}"], None) for i, y in enumerate(shapes)] for x in arrays]


def _cached_rows(
    store: TokenStore,
    plan: list,
    cache: pathlib.Path,
    write: Callable[[TokenStore, Writer], None],
) -> dict[str, np.ndarray]:
    """The arrays that `write` makes of a store for a plan, from the cache if they are there."""

    def build(writer: Writer) -> dict:
        with heartbeat("ordering the rows"):
            write(store, writer)
        return {}

    key = [_FORMAT, store.fingerprint, *plan]
    return cached(cache, "rows", key, "the order of the rows", build).arrays


def _indices(pairs: np.ndarray, count: int) -> np.ndarray:
    return pairs.astype(np.uint32 if count <= 2**32 else np.int64)


def _windows(stores: Sequence[TokenStore], growth: Growth) -> Iterator[tuple[int, np.ndarray]]:
    """First pair of each store's windows and [pairs, 2] room that each pair needs on its sides."""
    for store in stores:
        for first in range(0, len(store), WINDOW):
            sides = (side.lengths(first, first + WINDOW) for side in (store.source, store.target))
            yield first, np.ceil(np.stack(list(sides), axis=1) * growth).astype(np.int64)


def _row_shape(
    stores: Sequence[TokenStore], given: Shape, growth: Growth, max_side: float
) -> Shape:
    """The shape of packed rows: what is given, else of the corpora's own proportions."""
    total, longest, count = np.zeros(2), np.zeros(2, np.int64), 0
    for _, lengths_P2 in _windows(stores, growth):
        total += lengths_P2.sum(axis=0)
        longest = np.maximum(longest, lengths_P2.max(axis=0))
        count += len(lengths_P2)
    mean = total / count
    # The scale at which the longest pair fits, and enough of mean length do.
    scale = max(_PAIRS_A_ROW, *(longest / mean))
    chosen = []
    for name, length, one, planned, factor in zip(Shape._fields, given, mean, longest, growth):
        stored = int(planned / factor + 1e-6)
        if 0 < length < stored:
            raise ValueError(
                f"config.data.{name}_row_length={length} is less than the longest {name} kept, of "
                f"{stored} tokens; raise it or lower config.data.max_length"
            )
        rounded = -(-int(np.ceil(scale * one)) // 8) * 8
        chosen.append(length or max(int(min(rounded, max_side)), stored))
    return Shape(*chosen)


def bucket_lengths(counts: np.ndarray, num_buckets: int) -> list[int]:
    """The `num_buckets` (or fewer) lengths that pad least, by dynamic programming.

    Args:
      counts: [longest + 1] number of pairs whose longer side has so many tokens.
      num_buckets: maximum of lengths returned; the last one holds the longest.
    """
    longest = len(counts) - 1
    step = -(-longest // _MAX_LENGTHS)
    ends = np.arange(0, longest + step, step)
    grouped = np.add.reduceat(counts, np.append(0, ends[:-1] + 1))
    ends = np.concatenate([[0], ends[grouped > 0]])
    pairs = np.concatenate([[0], np.cumsum(grouped[grouped > 0])])  # of the first n lengths
    # cost[n]: fewest positions that hold the first n lengths in the buckets used so far.
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


# The share of all tokens that is spread evenly, longest pairs first, before what is left
# fills the rows up: fuller rows than best fit alone (0.99 instead of 0.96 of Europarl).
_SPREAD = 0.8


def pack(
    lengths_P2: np.ndarray, capacity: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Packs pairs into rows.

    Args:
      lengths_P2: tokens of each pair's source and target, none above the capacity.
      capacity: tokens of a row's source side and target side.
      seed: of the choice among pairs of equal lengths.

    Returns:
      order_P, all pairs row by row, and starts [rows + 1], where each row begins in it.
    """
    cell_P = lengths_P2[:, 0] * (capacity[1] + 1) + lengths_P2[:, 1]
    cells, firsts, counts = np.unique(cell_P, return_index=True, return_counts=True)
    table = _Table(lengths_P2, capacity)
    filled = lengths_P2[firsts] / capacity
    done, total = 0.0, (filled * counts[:, None]).sum()
    placements = []  # (rows, cell)
    for cell in np.argsort(-filled.sum(axis=1), kind="stable"):
        tight = done >= _SPREAD * total
        source, target = map(int, lengths_P2[firsts[cell]])
        for rows in table.add_pairs(source, target, int(counts[cell]), tight):
            placements.append((rows, np.full(len(rows), cell)))
        done += filled[cell].sum() * counts[cell]
    row_P, row_cell_P = (np.concatenate(column) for column in zip(*placements))
    # The pairs of a cell, in a random order, go to the rows of their cell.
    shuffled_P = permuted(np.arange(len(cell_P)), len(cell_P), seed)
    pair_P = shuffled_P[np.argsort(cell_P[shuffled_P], kind="stable")]
    row_P = row_P[np.argsort(row_cell_P, kind="stable")]
    by_row_P = np.argsort(row_P, kind="stable")
    starts = np.flatnonzero(np.diff(row_P[by_row_P], prepend=-1))
    return pair_P[by_row_P], np.append(starts, len(pair_P))


class _Table:
    """Open rows, by the room that is left on their two sides."""

    def __init__(self, lengths_P2: np.ndarray, capacity: tuple[int, int]):
        self._capacity = capacity
        self._rows = 0
        self._room = np.zeros((2, 64), np.int64)  # of each slot; -1 = the slot is not in use
        self._open: list[list[np.ndarray]] = []  # rows of each slot, in pieces
        self._slots: dict[tuple[int, int], int] = {}
        self._free: list[int] = []
        # As many rows as there must be at least.
        self._add(*capacity, self._new(int(np.ceil((lengths_P2.sum(axis=0) / capacity).max()))))

    def _new(self, count: int) -> np.ndarray:
        self._rows += count
        return np.arange(self._rows - count, self._rows)

    def _add(self, source_room: int, target_room: int, rows: np.ndarray) -> None:
        room = source_room, target_room
        if room not in self._slots:
            slot = self._slots[room] = self._free.pop() if self._free else len(self._open)
            if slot == len(self._open):
                self._open.append([])
            if slot == self._room.shape[1]:
                self._room = np.concatenate([self._room, np.zeros_like(self._room)], axis=1)
            self._room[:, slot] = room
        self._open[self._slots[room]].append(rows)

    def _take(self, slot: int, count: int) -> np.ndarray:
        """At most `count` rows of a slot."""
        pieces, taken = self._open[slot], []
        while pieces and count:
            piece = pieces.pop()
            if len(piece) > count:
                pieces.append(piece[count:])
                piece = piece[:count]
            taken.append(piece)
            count -= len(piece)
        if not pieces:
            del self._slots[tuple(self._room[:, slot].tolist())]
            self._room[:, slot] = -1
            self._free.append(slot)
        return np.concatenate(taken)

    def add_pairs(self, source: int, target: int, count: int, tight: bool):
        """Adds `count` pairs of the same lengths; yields the rows, some at a time."""
        while count:
            source_left, target_left = self._room[:, : len(self._open)]
            fits = np.flatnonzero((source_left >= source) & (target_left >= target))
            if len(fits):
                source_share = (source_left[fits] - source) / self._capacity[0]
                target_share = (target_left[fits] - target) / self._capacity[1]
                # Balanced sides keep both of use; beside that the fullest row, or the emptiest.
                rest = np.abs(source_share - target_share)
                if tight:
                    rest += source_share + target_share
                else:
                    rest -= np.minimum(source_share, target_share)
                slot = int(fits[rest.argmin()])
                room = int(source_left[slot]), int(target_left[slot])
                rows = self._take(slot, count)
            else:
                room, rows = self._capacity, self._new(1)
            self._add(room[0] - source, room[1] - target, rows)
            yield rows
            count -= len(rows)
