"""Batches of static shape, by number: `batch_at(step)`.

It is a pure function of stores, rows, settings, seed and step: the data state of a run is the
number of its step, and any number of processes sees the same sequence of global batches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.data.packing import Rows, Shape
from transformer_jax.data.permutation import permuted
from transformer_jax.data.subword_sampling import Resampler
from transformer_jax.data.token_store import Side, TokenStore, flat
from transformer_jax.data.vocabulary import BOS, PAD
from transformer_jax.model.masks import Tokens


class Batch(NamedTuple):
    """Rows of sentence pairs for teacher forcing, int32; a pair has one segment number."""

    source: Tokens  # [B, S] each; sentences close with EOS
    target: Tokens  # [B, T] each, the decoder's input: sentences begin with BOS
    labels: np.ndarray  # [B, T] the next token at each position of the target, up to EOS


class BatchRows(NamedTuple):
    """Rows of one corpus that stand in a batch, [rows] each."""

    corpus: int
    bucket: int
    epoch: np.ndarray  # of the corpus
    row: np.ndarray  # index in the corpus' bucket
    index: np.ndarray  # in the batch


class Batches:
    """Every pair of each corpus once in each of that corpus' epochs.

    Packed rows are drawn one by one, and batches cross the end of an epoch. Bucketed rows
    are drawn by whole batches of one bucket, the last of which may hold empty rows, with
    about `tokens_per_batch` positions a side, so that steps cost about the same.
    """

    def __init__(
        self,
        stores: Sequence[TokenStore],
        rows: Sequence[Sequence[Rows]],
        *,
        tokens_per_batch: int,
        seed: int | None,
        weights: Sequence[float] = (),
        temperature: float = 1.0,
        resampler: Resampler | None = None,
    ):
        """
        Args:
          stores: the corpora.
          rows: [corpus][bucket], from `packed_rows` or `bucketed_rows`.
          tokens_per_batch: positions a side, padding included.
          seed: of the order; None keeps one fixed order, shortest first, for evaluation.
          weights: shares of the corpora in what is drawn, rows or bucketed batches; () = as
            their sizes have it, each to the power of 1 / temperature.
          resampler: segments each pair anew when it is read; None = as it is stored.
        """
        if not all(map(len, stores)):
            raise ValueError("no pair is left to make a batch of")
        self.stores, self.rows, self.seed = stores, rows, seed
        self._resampler = resampler
        self.packed = rows[0][0].starts is not None
        # Rows of a batch of each bucket; whole tiles where a batch has one shape of several.
        self.batch_rows = [max(tokens_per_batch // max(x.shape), 1) for x in rows[0]]
        if not self.packed:
            self.batch_rows = [n - n % 8 if n > 8 else n for n in self.batch_rows]
        # Batches of each corpus' buckets.
        self._batches = [
            [-(-len(x) // n) for x, n in zip(buckets, self.batch_rows)] for buckets in rows
        ]
        sizes = [len(x[0]) if self.packed else sum(n) for x, n in zip(rows, self._batches)]
        self.epoch_sizes = np.array(sizes)  # rows, or bucketed batches, of each corpus
        relative = self.epoch_sizes / self.epoch_sizes.max()
        self.schedule = MixtureSchedule(weights or relative ** (1 / temperature))

    @property
    def shapes(self) -> list[tuple[int, Shape]]:
        """Rows and shape of every batch that there can be."""
        used = np.sum(self._batches, axis=0) > 0
        return [(n, x.shape) for n, x, some in zip(self.batch_rows, self.rows[0], used) if some]

    @property
    def steps_per_epoch(self) -> np.ndarray:
        """[corpora] batches in which each corpus is seen once."""
        drawn = self.batch_rows[0] if self.packed else 1
        return self.epoch_sizes / (self.schedule.shares * drawn)

    @property
    def positions_per_epoch(self) -> int:
        """Positions of the longer side of all rows."""
        return sum(len(x) * max(x.shape) for buckets in self.rows for x in buckets)

    def packing_efficiency(self) -> np.ndarray:
        """Share of real tokens on source and target side, as they are stored, of all rows."""
        tokens = np.zeros(2)
        positions = np.zeros(2)
        for store, buckets, counts, share in zip(
            self.stores, self.rows, self._batches, self.schedule.shares / self.epoch_sizes
        ):
            # Of each corpus as much as is drawn of it.
            tokens += share * np.array([store.source.ids.size, store.target.ids.size])
            for rows, batches, batch_rows in zip(buckets, counts, self.batch_rows):
                drawn = len(rows) if self.packed else batches * batch_rows
                positions += share * drawn * np.array(rows.shape)
        return tokens / positions

    def batch_at(self, step: int, process_index: int = 0, process_count: int = 1) -> Batch:
        """The batch of a step, or one process' rows of it.

        Of R rows, a process has the next ceil(R / process_count); the last ones may be empty.
        """
        bucket, members = self.rows_at(step)
        rows = -(-self.batch_rows[bucket] // process_count)
        batch = empty_batch(rows, self.rows[0][bucket].shape)
        for member in members:
            self._fill(batch, member, process_index * rows)
        return batch

    def rows_at(self, step: int) -> tuple[int, list[BatchRows]]:
        """The bucket of a step, and which rows of which corpora stand in its batch."""
        return self._packed_rows_at(step) if self.packed else self._bucketed_rows_at(step)

    def _order(self, index: np.ndarray, size: int, *key: int | np.ndarray) -> np.ndarray:
        return index if self.seed is None else permuted(index, size, self.seed, *key)

    def _packed_rows_at(self, step: int) -> tuple[int, list[BatchRows]]:
        turns = step * self.batch_rows[0] + np.arange(self.batch_rows[0])
        corpus_B, number_B = self.schedule.locate(turns)
        members = []
        for corpus in np.unique(corpus_B).tolist():
            in_batch = np.flatnonzero(corpus_B == corpus)
            size = len(self.rows[corpus][0])
            epoch, index = np.divmod(number_B[in_batch], size)
            row = self._order(index, size, corpus, 0, epoch)
            members.append(BatchRows(corpus, 0, epoch, row, in_batch))
        return 0, members

    def _bucketed_rows_at(self, step: int) -> tuple[int, list[BatchRows]]:
        (corpus,), (number,) = (x.tolist() for x in self.schedule.locate(np.array([step])))
        ends = np.cumsum(self._batches[corpus])
        epoch, index = divmod(number, int(ends[-1]))
        batch = self._order(np.array([index]), int(ends[-1]), corpus, 0, epoch)[0]
        bucket = int(np.searchsorted(ends, batch, "right"))
        size, rows = len(self.rows[corpus][bucket]), self.batch_rows[bucket]
        first = (batch - ends[bucket] + self._batches[corpus][bucket]) * rows
        index = np.arange(first, min(first + rows, size))
        row = self._order(index, size, corpus, 1 + bucket, epoch)
        epochs, in_batch = np.full(len(index), epoch), np.arange(len(index))
        return bucket, [BatchRows(corpus, bucket, epochs, row, in_batch)]

    def _fill(self, batch: Batch, member: BatchRows, first: int) -> None:
        """Writes the rows of a member that are in the batch, which begins at the `first`."""
        own = (member.index >= first) & (member.index < first + len(batch.labels))
        row, index = member.row[own], member.index[own] - first
        rows, store = self.rows[member.corpus][member.bucket], self.stores[member.corpus]
        if rows.starts is None:
            counts, pairs = np.ones(len(row), np.int64), rows.pairs[row]
        else:
            starts = rows.starts[row]
            counts = rows.starts[row + 1] - starts
            pairs = rows.pairs[_ranges(starts, counts)]
        pairs = pairs.astype(np.int64)
        if self._resampler:
            epochs = np.repeat(member.epoch[own], counts)
            sides = self._resampler(store, member.corpus, epochs, pairs, counts, rows.shape)
        else:
            sides = [_sentences(side, pairs) for side in (store.source, store.target)]
        (source_ids, source_lengths), (labels, target_lengths) = sides
        inputs = np.roll(labels, 1)
        inputs[np.cumsum(target_lengths) - target_lengths] = BOS
        _write(batch.source, source_ids, source_lengths, index, counts)
        positions = _write(batch.target, inputs, target_lengths, index, counts)
        batch.labels.reshape(-1)[positions] = labels


class MixtureSchedule:
    """Deterministic interleaving of corpora in proportion to their weights.

    A period of turns holds each corpus as often as its weight says, at equal distances; `shares`
    are those of the corpora in the turns.
    """

    # Weights are rounded to whole turns, never to none, of so many that the smallest is whole.
    MIN_TURNS, MAX_TURNS = 1 << 10, 1 << 20

    def __init__(self, weights: Sequence[float]):
        relative = np.asarray(weights, np.float64) / max(weights)
        shares = relative / relative.sum()
        smallest = max(shares.min(), 1e-9)
        turns = min(np.ceil(self.MIN_TURNS * smallest) / smallest, self.MAX_TURNS)
        self._counts = np.maximum(np.rint(shares * turns), 1).astype(np.int64)
        if len(shares) == 1:
            self._counts[:] = 1
        corpus = np.repeat(np.arange(len(shares)), self._counts)
        rank = _ranges(np.zeros_like(self._counts), self._counts)
        order = np.argsort((rank + 0.5) / self._counts[corpus], kind="stable")
        self._corpus, self._rank = corpus[order], rank[order]
        self.period = len(order)
        self.shares = self._counts / self.period

    def locate(self, turn_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corpus of each turn, and how many turns that corpus had before."""
        period, index = np.divmod(turn_B, self.period)
        corpus = self._corpus[index]
        return corpus, period * self._counts[corpus] + self._rank[index]


def empty_batch(rows: int, shape: Shape) -> Batch:
    """Rows of padding."""
    source, target = (
        Tokens(*(np.zeros((rows, length), np.int32) for _ in Tokens._fields)) for length in shape
    )
    return Batch(source, target, np.full((rows, shape.target), PAD, np.int32))


def pad_rows(sentences: Sequence[Sequence[int]], rows: int, length: int) -> Tokens:
    """Sentences as Tokens [rows, length], one a row; rows without a sentence are padding."""
    tokens = empty_batch(rows, Shape(length, 0)).source
    ids, lengths = flat(sentences, np.int32)
    _write(tokens, ids, lengths, np.arange(len(sentences)), np.ones(len(sentences), np.int64))
    return tokens


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each start, `length` many, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def _sentences(side: Side, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of sentences end to end, and their lengths."""
    starts = side.offsets[pairs]
    lengths = side.offsets[pairs + 1] - starts
    return side.ids[_ranges(starts, lengths)].astype(np.int32), lengths


def _write(
    tokens: Tokens, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Writes sentences side by side into `rows` of padding, `counts` of them into each.

    Returns their indices into the flattened arrays.
    """
    before = np.cumsum(lengths) - lengths
    first = np.cumsum(counts) - counts  # sentence of each row
    in_row = before - np.repeat(before[first], counts)
    positions = _ranges(np.zeros_like(lengths), lengths)
    index = np.repeat(np.repeat(rows, counts) * tokens.ids.shape[1] + in_row, lengths) + positions
    tokens.ids.reshape(-1)[index] = ids
    tokens.positions.reshape(-1)[index] = positions
    segments = _ranges(np.ones_like(counts), counts)
    tokens.segments.reshape(-1)[index] = np.repeat(segments, lengths)
    return index
