"""Batches of static shape from a token store, by length buckets and a budget of tokens.

`Batches.batch_at(step)` is a pure function of (store, settings, seed, step): the data
state of a run is the number of its step.
"""

from typing import NamedTuple

import numpy as np

from transformer_jax.data.token_store import TokenStore
from transformer_jax.data.vocabulary import BOS, PAD
from transformer_jax.model.masks import Tokens


class Batch(NamedTuple):
    """Sentence pairs, int32. source: [B, S] each; target: [B, T + 1] each, from start symbol
    to end symbol, so that inputs and labels of teacher forcing are T long."""

    source: Tokens
    target: Tokens


class Bucket(NamedTuple):
    """Pairs of about one length, in batches of one shape: `rows` of the longest of each side."""

    source_length: int
    target_length: int
    rows: int
    pairs: np.ndarray  # indices into the store
    num_batches: int


_MOST_LENGTHS = 512  # told apart when buckets are chosen, which takes their square in memory


def bucket_lengths(lengths: np.ndarray, num_buckets: int) -> list[int]:
    """The `num_buckets` (or fewer) lengths that pad least, by dynamic programming.

    Args:
      lengths: [pairs] tokens of each pair's longer side.
      num_buckets: most lengths returned; the last one holds the longest of `lengths`.
    """
    step = -(-int(lengths.max()) // _MOST_LENGTHS)
    ends, counts = np.unique(-(-lengths // step) * step, return_counts=True)
    ends = np.concatenate([[0], ends])
    pairs = np.concatenate([[0], np.cumsum(counts)])  # of the first n lengths
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


class Batches:
    """Every pair of a store once an epoch, in batches of one of few static shapes.

    Each batch has about `tokens_per_batch` places a side, so steps cost about the same
    whatever their bucket. The last batch of a bucket in an epoch may hold empty rows.
    """

    def __init__(
        self, store: TokenStore, *, tokens_per_batch: int, num_buckets: int, seed: int | None
    ):
        """`seed=None` keeps one fixed order, shortest first, for evaluation."""
        if not len(store):
            raise ValueError("no pair is left to make a batch of")
        self.store, self.seed = store, seed
        longer = np.maximum(store.source.lengths, store.target.lengths)
        self.buckets, shorter = [], 0
        for length in bucket_lengths(longer, num_buckets):
            pairs = np.flatnonzero((longer > shorter) & (longer <= length))
            rows = max(tokens_per_batch // length, 1)
            rows -= rows % 8 if rows > 8 else 0  # whole tiles, which devices divide
            longest = (int(side.lengths[pairs].max()) for side in (store.source, store.target))
            self.buckets.append(Bucket(*longest, rows, pairs, -(-len(pairs) // rows)))
            shorter = length
        # (bucket, number within it) of each batch of an epoch.
        self._schedule = np.array(
            [(b, i) for b, bucket in enumerate(self.buckets) for i in range(bucket.num_batches)]
        )
        # Number and order of the epoch read last: most steps are of the same one.
        self._last_epoch: tuple[int, tuple[np.ndarray, list[np.ndarray]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches that hold every pair once."""
        return len(self._schedule)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """The order of an epoch: its batches, and the pairs of each bucket."""
        if self.seed is None:
            return self._schedule, [bucket.pairs for bucket in self.buckets]
        if self._last_epoch is None or self._last_epoch[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            schedule = random.permutation(self._schedule)
            orders = [random.permutation(bucket.pairs) for bucket in self.buckets]
            self._last_epoch = epoch, (schedule, orders)
        return self._last_epoch[1]

    def batch_at(self, step: int) -> Batch:
        """The batch of a step; steps beyond an epoch go on with the next one."""
        epoch, index = divmod(step, self.batches_per_epoch)
        schedule, orders = self._epoch(epoch)
        number, start = schedule[index]
        bucket = self.buckets[number]
        pairs = orders[number][start * bucket.rows : (start + 1) * bucket.rows]
        source = [self.store.source[i] for i in pairs]
        target = [np.concatenate([[BOS], self.store.target[i]]) for i in pairs]
        return Batch(
            pad_rows(source, bucket.rows, bucket.source_length),
            pad_rows(target, bucket.rows, bucket.target_length + 1),
        )


def pad_rows(sentences: list, rows: int, length: int) -> Tokens:
    """Sentences as Tokens [rows, length], one a row; rows without a sentence are padding."""
    ids = np.full((rows, length), PAD, np.int32)
    segments = np.zeros((rows, length), np.int32)
    for row, sentence in enumerate(sentences):
        ids[row, : len(sentence)] = sentence
        segments[row, : len(sentence)] = 1
    return Tokens(ids, np.tile(np.arange(length, dtype=np.int32), (rows, 1)), segments)
