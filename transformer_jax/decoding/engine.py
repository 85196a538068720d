"""The engine: any number of sentences through searches of a few fixed shapes, on all devices.

A sentence's own length decides the shape that it is computed in, and the rows of a shape are
a constant, so that its translation does not depend on its companions, on its row, or on
when it got that row. Rows whose sentence is done are given to the next, so that the longest
sentence does not hold up the rest.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from transformer_jax.data.batches import pad_rows
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK
from transformer_jax.decoding import search
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import Constraints, Hypotheses, Search, SpecialIds, State
from transformer_jax.model.ensemble import Ensemble
from transformer_jax.model.masks import Tokens

_SHORTEST_BUCKET = 16
_AXIS = "data"
_IDS = SpecialIds(bos=BOS, eos=EOS, pad=PAD, unk=UNK)
ALL, ROWS = PartitionSpec(), PartitionSpec(_AXIS)  # of an argument: whole, or a device its rows


class Sentence(NamedTuple):
    """What is asked for; lengths count the end symbol.

    Attributes:
      source: token ids, closed by the end symbol.
      max_length, min_length: of a hypothesis.
      prefix: tokens that every hypothesis begins with, without an end symbol.
      seed: of the tokens drawn in sampling, 32 bits.
    """

    source: Sequence[int]
    max_length: int
    min_length: int = 1
    prefix: Sequence[int] = ()
    seed: int = 0


class Models(NamedTuple):
    """One model, or several that translate together, as `nnx.split` gives them.

    `params` are replicated over the local devices.
    """

    graphdefs: tuple[nnx.GraphDef, ...]
    params: tuple[Any, ...]


def bucket_lengths(longest: int) -> Iterator[int]:
    """Source lengths of the compiled shapes, each twice the one before, up to `longest`."""
    length = _SHORTEST_BUCKET
    while length < longest:
        yield length
        length *= 2
    yield longest


def translate(
    models: Models,
    sentences: Sequence[Sentence],
    options: SearchOptions,
) -> Iterator[tuple[int, Hypotheses]]:
    """The hypotheses of each sentence, with its number, in the order in which they are found.

    Args:
      models, sentences: see there.
      options: resolved; no source and no hypothesis is longer than their `max_length`.
    """
    buckets: dict[tuple[int, int], list[int]] = {}
    longest = options.max_length
    shapes = [(length, options.max_tokens(length)) for length in bucket_lengths(longest)]
    shapes.append((longest, longest))
    for index, sentence in enumerate(sentences):
        fitting = (
            s for s in shapes if s[0] >= len(sentence.source) and s[1] >= sentence.max_length
        )
        buckets.setdefault(next(fitting), []).append(index)
    for shape, indices in sorted(buckets.items()):
        # The longest first: what comes last should be over soon.
        indices.sort(key=lambda i: -len(sentences[i].source))
        waiting = collections.deque((i, sentences[i]) for i in indices)
        yield from _Bucket(models, options, shape, waiting).translations()


class _Bucket:
    """The sentences of one shape: those that wait, those that are encoded, those in a row."""

    def __init__(self, models, options: SearchOptions, shape, waiting):
        self.models, self.options, self.shape, self.waiting = models, options, shape, waiting
        self.rows = rows = options.rows
        # So many rows free are enough to go and fetch new sentences for them.
        self.quantum = max(rows // 4, 1)
        devices = jax.local_device_count()
        self.state: State | None = None
        self.holds: list[int | None] = [None] * (rows * devices)  # sentences, by row
        self.fresh: State | None = None
        # Rows of `fresh` that have not been taken yet, by device: row there, and sentence.
        self.encoded = [collections.deque[tuple[int, int]]() for _ in range(devices)]

    def translations(self) -> Iterator[tuple[int, Hypotheses]]:
        found: list[tuple[int, Hypotheses]] = []
        while self.waiting or any(self.encoded) or any(i is not None for i in self.holds):
            self._fill()
            more = bool(self.waiting) or any(self.encoded)
            wanted = np.int32(self.quantum if more else self.rows)
            self.state, done, hypotheses = _run(
                self.models.params,
                self.state,
                self.options,
                wanted,
                graphdefs=self.models.graphdefs,
            )
            # While the devices are at work:
            yield from found
            done, hypotheses = jax.device_get((done, hypotheses))
            found = []
            for row in np.flatnonzero(done):
                if (index := self.holds[row]) is not None:
                    found.append((index, Hypotheses(*(x[row] for x in hypotheses))))
                    self.holds[row] = None
        yield from found

    def _fill(self) -> None:
        """Gives free rows to sentences, as long as there are both on one device."""
        while None in self.holds and (self.waiting or any(self.encoded)):
            if not any(self.encoded):
                self._encode()
            rows, take = [], []  # by device
            for device, encoded in enumerate(self.encoded):
                free = [r for r in range(self.rows) if self.holds[device * self.rows + r] is None]
                # Before the first search all rows are free, and all of `fresh` is taken as it is.
                count = min(len(free), len(encoded), self.quantum if self.state else self.rows)
                taken = [encoded.popleft() for _ in range(count)]
                for row, (_, index) in zip(free, taken):
                    self.holds[device * self.rows + row] = index
                nothing = self.quantum - count
                rows += free[:count] + [self.rows] * nothing
                take += [row for row, _ in taken] + [0] * nothing
            if self.state is None:
                self.state = self.fresh
            elif min(rows) < self.rows:
                self.state = _refill(self.state, self.fresh, np.int32(rows), np.int32(take))
            else:
                return

    def _encode(self) -> None:
        """Encodes the next sentences, as many as there are rows."""
        length, max_length = self.shape
        count = min(len(self.waiting), len(self.holds))
        batch = [self.waiting.popleft() for _ in range(count)]
        for row, (index, _) in enumerate(batch):
            self.encoded[row // self.rows].append((row % self.rows, index))
        source = pad_rows([sentence.source for _, sentence in batch], len(self.holds), length)
        self.fresh = _first_state(
            self.models.params,
            source,
            _constraints([sentence for _, sentence in batch], len(self.holds), max_length),
            self.options,
            graphdefs=self.models.graphdefs,
        )


def _constraints(sentences: Sequence[Sentence], rows: int, max_length: int) -> Constraints:
    max_length_B, min_length_B, seed_B = (
        np.zeros(rows, t) for t in (np.int32, np.int32, np.uint32)
    )
    prefix_BT = np.full((rows, max_length), PAD, np.int32)
    for row, sentence in enumerate(sentences):
        max_length_B[row], min_length_B[row] = sentence.max_length, sentence.min_length
        seed_B[row] = sentence.seed
        prefix_BT[row, : len(sentence.prefix)] = sentence.prefix
    return Constraints(max_length_B, min_length_B, prefix_BT, seed_B)


def merged(graphdefs: tuple[nnx.GraphDef, ...], params: tuple[Any, ...]):
    """The model, or the ensemble of models, behind the one protocol."""
    models = [nnx.merge(*both) for both in zip(graphdefs, params, strict=True)]
    return models[0] if len(models) == 1 else Ensemble(models)


def each_device(function: Callable, *specs: PartitionSpec) -> Callable:
    """`function` run by each device on its rows; `specs` are of its arguments, ALL or ROWS."""
    mesh = Mesh(np.array(jax.local_devices()), (_AXIS,))
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=ROWS, check_vma=False)


@functools.partial(jax.jit, static_argnames="graphdefs")
def _first_state(params, source: Tokens, constraints: Constraints, options, *, graphdefs) -> State:
    def first_state(params, source: Tokens, constraints: Constraints, options) -> State:
        own = Search(merged(graphdefs, params), options, _IDS)
        memory = own.model.encode(source)
        return search.first_state(own, memory, constraints, source.segments != 0)

    return each_device(first_state, ALL, ROWS, ROWS, ALL)(params, source, constraints, options)


@functools.partial(jax.jit, donate_argnames="state")
def _refill(state: State, fresh: State, rows, take) -> State:
    return each_device(search.refill, ROWS, ROWS, ROWS, ROWS)(state, fresh, rows, take)


@functools.partial(jax.jit, static_argnames="graphdefs", donate_argnames="state")
def _run(params, state: State, options: SearchOptions, wanted, *, graphdefs):
    """The search until `wanted` more rows of each device are done: state, done, hypotheses."""

    def run(params, state: State, options: SearchOptions, wanted):
        state = search.run(Search(merged(graphdefs, params), options, _IDS), state, wanted)
        return state, state.done_B, search.results(state, options)

    return each_device(run, ALL, ROWS, ALL, ALL)(params, state, options, wanted)
