"""Batches of static shape, by number: `batch_at(step)`.

It is a pure function of stores, rows, settings, seed and step: the data state of a run is the
number of its step, and any number of processes sees the same sequence of global batches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from transformer_jax.data.packing import Rows, Shape
from transformer_jax.data.permutation import keys, permuted
from transformer_jax.data.subword_sampling import Resampler
from transformer_jax.data.token_store import Side, TokenStore
from transformer_jax.data.vocabulary import BOS, PAD
from transformer_jax.model.masks import Tokens


class Batch(NamedTuple):
    """Rows of sentence pairs for teacher forcing, int32; a pair has one segment number.

    Attributes:
      source: Tokens, [B, S] each; sentences close with the end symbol.
      target: Tokens, [B, T] each, the decoder's input: sentences begin with the start symbol.
      labels: [B, T] the next token of each place of the target, to the end symbol.
    """

    source: Tokens
    target: Tokens
    labels: np.ndarray


class Placed(NamedTuple):
    """Rows of one corpus that stand in a batch."""

    corpus: int
    bucket: int
    epoch: np.ndarray  # [rows] of the corpus
    row: np.ndarray  # [rows] number in the corpus' bucket
    place: np.ndarray  # [rows] in the batch


class Batches:
    """Every pair of each corpus once in each of that corpus' epochs.

    Packed rows are drawn one by one, and batches cross the end of an epoch. Bucketed rows
    are drawn by whole batches of one bucket, the last of which may hold empty rows, with
    about `tokens_per_batch` places a side, so that steps cost about the same.
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
          tokens_per_batch: places a side, padding included.
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
        self._turns = MixtureSchedule(weights or relative ** (1 / temperature))

    @property
    def shapes(self) -> list[tuple[int, Shape]]:
        """Rows and shape of every batch that there can be."""
        used = np.sum(self._batches, axis=0) > 0
        return [(n, x.shape) for n, x, some in zip(self.batch_rows, self.rows[0], used) if some]

    @property
    def shares(self) -> np.ndarray:
        """Of the corpora in what is drawn."""
        return self._turns.shares

    @property
    def steps_per_epoch(self) -> np.ndarray:
        """Batches until each corpus was seen once."""
        drawn = self.batch_rows[0] if self.packed else 1
        return self.epoch_sizes / (self._turns.shares * drawn)

    @property
    def places_per_epoch(self) -> int:
        """Tokens of the longer side of all rows."""
        return sum(len(x) * max(x.shape) for buckets in self.rows for x in buckets)

    def fill(self) -> np.ndarray:
        """Share of real tokens on source and target side, as they are stored, of all rows."""
        tokens = np.zeros(2)
        places = np.zeros(2)
        for store, buckets, counts, share in zip(
            self.stores, self.rows, self._batches, self.shares / self.epoch_sizes
        ):
            # Of each corpus as much as is drawn of it.
            tokens += share * np.array([store.source.ids.size, store.target.ids.size])
            for rows, batches, batch_rows in zip(buckets, counts, self.batch_rows):
                drawn = len(rows) if self.packed else batches * batch_rows
                places += share * drawn * np.array(rows.shape)
        return tokens / places

    def batch_at(self, step: int, process_index: int = 0, process_count: int = 1) -> Batch:
        """The batch of a step, or one process' rows of it.

        Of R rows, a process has the next ceil(R / process_count); the last ones may be empty.
        """
        bucket, members = self.rows_at(step)
        rows = -(-self.batch_rows[bucket] // process_count)
        mine = range(process_index * rows, (process_index + 1) * rows)
        batch = empty_batch(rows, self.rows[0][bucket].shape)
        for member in members:
            self._fill(batch, member, mine)
        return batch

    def rows_at(self, step: int) -> tuple[int, list[Placed]]:
        """The bucket of a step, and which rows of which corpora stand in its batch."""
        return self._packed(step) if self.packed else self._bucketed(step)

    def _order(self, index: np.ndarray, size: int, *key: int | np.ndarray) -> np.ndarray:
        if self.seed is None:
            return index
        return permuted(index, size, np.broadcast_to(keys(self.seed, *key), index.shape))

    def _packed(self, step: int) -> tuple[int, list[Placed]]:
        number = step * self.batch_rows[0] + np.arange(self.batch_rows[0])
        corpus_N, number_N = self._turns.locate(number)
        members = []
        for corpus in np.unique(corpus_N).tolist():
            place = np.flatnonzero(corpus_N == corpus)
            size = len(self.rows[corpus][0])
            epoch, index = np.divmod(number_N[place], size)
            members.append(
                Placed(corpus, 0, epoch, self._order(index, size, corpus, 0, epoch), place)
            )
        return 0, members

    def _bucketed(self, step: int) -> tuple[int, list[Placed]]:
        (corpus,), (number,) = (x.tolist() for x in self._turns.locate(np.array([step])))
        ends = np.cumsum(self._batches[corpus])
        epoch, index = divmod(number, int(ends[-1]))
        batch = self._order(np.array([index]), int(ends[-1]), corpus, 0, epoch)[0]
        bucket = int(np.searchsorted(ends, batch, "right"))
        size, rows = len(self.rows[corpus][bucket]), self.batch_rows[bucket]
        first = (batch - ends[bucket] + self._batches[corpus][bucket]) * rows
        index = np.arange(first, min(first + rows, size))
        row = self._order(index, size, corpus, 1 + bucket, epoch)
        epochs = np.full(len(index), epoch)
        return bucket, [Placed(corpus, bucket, epochs, row, np.arange(len(index)))]

    def _fill(self, batch: Batch, member: Placed, mine: range) -> None:
        """Writes those rows of a member that are this process' own."""
        own = (member.place >= mine.start) & (member.place < mine.stop)
        row, place = member.row[own], member.place[own] - mine.start
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
        segments = _ranges(np.ones_like(counts), counts)
        place = np.repeat(place, counts)
        (source_ids, source_lengths), (labels, target_lengths) = sides
        inputs = np.roll(labels, 1)
        inputs[np.cumsum(target_lengths) - target_lengths] = BOS
        _write(batch.source, source_ids, source_lengths, place, counts, segments)
        where = _write(batch.target, inputs, target_lengths, place, counts, segments)
        batch.labels.reshape(-1)[where] = labels


class MixtureSchedule:
    """Whose turn it is: a block of turns that holds each corpus as often as its weight says."""

    # Weights are rounded to whole turns, but never to none: so many that the least's is whole.
    _LEAST, _MOST = 1 << 10, 1 << 20

    def __init__(self, weights: Sequence[float]):
        relative = np.asarray(weights, np.float64) / max(weights)
        shares = relative / relative.sum()
        least = max(shares.min(), 1e-9)
        turns = min(np.ceil(self._LEAST * least) / least, self._MOST)
        self._counts = np.maximum(np.rint(shares * turns), 1).astype(np.int64)
        if len(shares) == 1:
            self._counts[:] = 1
        corpus = np.repeat(np.arange(len(shares)), self._counts)
        rank = _ranges(np.zeros_like(self._counts), self._counts)
        # Each corpus' turns at equal distances.
        order = np.argsort((rank + 0.5) / self._counts[corpus], kind="stable")
        self._corpus, self._rank = corpus[order], rank[order]

    @property
    def shares(self) -> np.ndarray:
        """Of each corpus in the turns."""
        return self._counts / self._counts.sum()

    def locate(self, turn_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Corpus of each turn, and how many turns that corpus had before."""
        block, place = np.divmod(turn_N, len(self._corpus))
        corpus = self._corpus[place]
        return corpus, block * self._counts[corpus] + self._rank[place]


def empty_batch(rows: int, shape: Shape) -> Batch:
    """Rows of padding."""
    source, target = (
        Tokens(*(np.zeros((rows, length), np.int32) for _ in Tokens._fields)) for length in shape
    )
    return Batch(source, target, np.full((rows, shape.target), PAD, np.int32))


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
    tokens: Tokens,
    ids: np.ndarray,
    lengths: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
    segments: np.ndarray,
) -> np.ndarray:
    """Writes sentences side by side into their rows; returns the places, as of flat arrays.

    Args:
      tokens: arrays of a batch, empty so far.
      ids, lengths: of the sentences, end to end.
      rows, segments: of each sentence.
      counts: sentences of each row that has any, in the order of `rows`.
    """
    before = np.cumsum(lengths) - lengths
    first = np.cumsum(counts) - counts  # sentence of each row
    in_row = before - np.repeat(before[first], counts)
    positions = _ranges(np.zeros_like(lengths), lengths)
    where = np.repeat(rows * tokens.ids.shape[1] + in_row, lengths) + positions
    tokens.ids.reshape(-1)[where] = ids
    tokens.positions.reshape(-1)[where] = positions
    tokens.segments.reshape(-1)[where] = np.repeat(segments, lengths)
    return where


def pad_rows(sentences: Sequence[Sequence[int]], rows: int, length: int) -> Tokens:
    """Sentences as Tokens [rows, length], one a row; rows without a sentence are padding."""
    tokens = empty_batch(rows, Shape(length, 0)).source
    one_each = np.ones(len(sentences), np.int64)
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    _write(
        tokens,
        np.fromiter((i for sentence in sentences for i in sentence), np.int32, lengths.sum()),
        lengths,
        np.arange(len(sentences)),
        one_each,
        one_each,
    )
    return tokens
