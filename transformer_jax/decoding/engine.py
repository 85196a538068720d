"""Runs any number of sentences through searches of a few fixed shapes, on all devices.

A sentence's own length decides the shape that it is computed in, and the rows of a shape are
constant, so that its translation depends neither on its companions nor on when and where it got
its row. The row of a finished sentence is given to the next one, so that the longest sentence does
not hold up the rest.
"""

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from transformer_jax.config import DecodingConfig
from transformer_jax.data.batches import pad_rows
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK
from transformer_jax.decoding import search
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import Constraints, Hypotheses, Search, SpecialIds, State
from transformer_jax.devices import AXIS, usable_memory
from transformer_jax.model.ensemble import Ensemble
from transformer_jax.model.layers import round_parameters
from transformer_jax.model.masks import Tokens

_SHORTEST_BUCKET = 16
_MAX_ROWS = 1024  # by memory: more wait longer for the last of them than a step gains
IDS = SpecialIds(bos=BOS, eos=EOS, pad=PAD, unk=UNK)
ALL, ROWS = PartitionSpec(), PartitionSpec(AXIS)  # each device gets the whole argument; its rows

Result = TypeVar("Result")


class Sentence(NamedTuple):
    """A source to translate; lengths count EOS."""

    id: int  # the caller's, returned with the translation
    source: Sequence[int]  # token ids, closed by EOS
    max_length: int  # of a hypothesis
    min_length: int = 1
    prefix: Sequence[int] = ()  # tokens that every hypothesis begins with
    seed: int = 0  # of sampling, 32 bits


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["graphdefs"]
)
@dataclasses.dataclass(frozen=True)
class Models:
    """One model or an ensemble, as `nnx.split` gives them; `params` replicated on all devices."""

    graphdefs: tuple[nnx.GraphDef, ...]
    params: tuple[Any, ...]

    def prepared(self) -> "Models":
        """The same with all layers apart and parameters rounded, as decoding wants them."""
        graphdefs, params = [], []
        for both in zip(self.graphdefs, self.params, strict=True):
            model = nnx.merge(*both)
            model.unstack()
            round_parameters(model)
            for found, part in zip((graphdefs, params), nnx.split(model)):
                found.append(part)
        return Models(tuple(graphdefs), tuple(params))

    def merged(self) -> Any:
        """The model, or the ensemble of models, behind the one protocol."""
        models = [nnx.merge(*both) for both in zip(self.graphdefs, self.params, strict=True)]
        return models[0] if len(models) == 1 else Ensemble(models)


def bucket_lengths(longest: int) -> Iterator[int]:
    """Source lengths of the compiled shapes, each twice the one before, up to `longest`."""
    length = _SHORTEST_BUCKET
    while length < longest:
        yield length
        length *= 2
    yield longest


def in_order(results: Iterable[tuple[int, Result]], start: int = 0) -> Iterator[Result]:
    """Results of consecutive ids from `start` in their order, each as soon as it is due."""
    early: dict[int, Result] = {}
    for id, result in results:
        early[id] = result
        while start in early:
            yield early.pop(start)
            start += 1


def translate(
    models: Models, sentences: Iterable[Sentence], options: SearchOptions
) -> Iterator[tuple[int, Hypotheses]]:
    """Yields (id, hypotheses [N, ...]) as sentences are finished; the options are resolved.

    No source and no hypothesis is longer than their `max_length`.
    """
    if not options.rows:
        rows = DecodingConfig.rows
        if jax.default_backend() != "cpu":  # the other half is for parameters, and a run's state
            rows = rows_that_fit(models, options, usable_memory() // 2)
        options = dataclasses.replace(options, rows=rows)
    longest = options.max_length
    shapes = [(length, options.max_tokens(length)) for length in bucket_lengths(longest)]
    shapes.append((longest, longest))  # where a prefix makes a translation longer
    buckets = collections.defaultdict(list)
    for sentence in sentences:
        lengths = len(sentence.source), sentence.max_length
        buckets[next(s for s in shapes if s[0] >= lengths[0] and s[1] >= lengths[1])] += [sentence]
    for shape, members in sorted(buckets.items()):
        yield from _Bucket(models, options, shape, members).translations()


def rows_that_fit(models: Models, options: SearchOptions, memory: int) -> int:
    """The most sentences, a power of two, whose longest search fits in bytes of a device."""
    count, length = 8 * jax.local_device_count(), options.max_length
    source, constraints = pad_rows([], count, length), _constraints([], count, length)
    state = jax.eval_shape(encode, models, source, constraints, options)

    def step(models: Models, state: State) -> jax.Array:
        rest = state.context, state.cache, state.token_BW, state.position_B
        return models.merged().step(*rest)[0]

    logits = jax.eval_shape(step, models, state)
    sizes = [sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(y)) for y in (state, logits)]
    # The searches that run and those encoded; logits, log-probabilities and what is sorted.
    need = (2 * sizes[0] + 4 * sizes[1]) / count
    return min(max(2 ** int(math.log2(max(memory / need, 1))), 8), _MAX_ROWS)


class _Bucket:
    """The sentences of one shape: waiting, encoded, or in a row of the search."""

    def __init__(self, models: Models, options: SearchOptions, shape, sentences: list[Sentence]):
        self.models, self.options, self.shape = models, options, shape
        # The longest first: what comes last should be over soon.
        self.waiting = collections.deque(sorted(sentences, key=lambda s: -len(s.source)))
        self.quantum = max(options.rows // 4, 1)  # free rows that are worth a refill
        devices = jax.local_device_count()
        self.running: list[int | None] = [None] * (options.rows * devices)  # ids by row
        self.state: State | None = None
        self.fresh: State | None = None  # of encoded sentences
        # By device: rows of `fresh` that have not been taken yet, with the ids in them.
        self.encoded = [collections.deque[tuple[int, int]]() for _ in range(devices)]

    @property
    def pending(self) -> bool:
        return bool(self.waiting) or any(self.encoded)

    def translations(self) -> Iterator[tuple[int, Hypotheses]]:
        finished: list[tuple[int, Hypotheses]] = []
        while self.pending or any(id is not None for id in self.running):
            self._fill()
            num_rows = np.int32(self.quantum if self.pending else self.options.rows)
            self.state, done, hypotheses = run(self.models, self.state, self.options, num_rows)
            yield from finished  # while the devices compute
            done, hypotheses = jax.device_get((done, hypotheses))
            finished = []
            for row in np.flatnonzero(done):
                if (id := self.running[row]) is not None:
                    finished.append((id, Hypotheses(*(x[row] for x in hypotheses))))
                    self.running[row] = None
        yield from finished

    def _fill(self) -> None:
        """Gives free rows to sentences, as long as one device has both."""
        rows_each = self.options.rows
        while None in self.running and self.pending:
            if not any(self.encoded):
                self._encode()
            # The first search takes all of `fresh` as it is; later ones some rows at a time.
            count_max = self.quantum if self.state else rows_each
            rows, fresh_rows = [], []  # of each device; a row out of range is not replaced
            for device, encoded in enumerate(self.encoded):
                first = device * rows_each
                free = [r for r in range(rows_each) if self.running[first + r] is None]
                count = min(len(free), len(encoded), count_max)
                taken = [encoded.popleft() for _ in range(count)]
                for row, (_, id) in zip(free, taken):
                    self.running[first + row] = id
                rows += free[:count] + [rows_each] * (self.quantum - count)
                fresh_rows += [row for row, _ in taken] + [0] * (self.quantum - count)
            if self.state is None:
                self.state = self.fresh
            elif min(rows) < rows_each:
                self.state = refill(self.state, self.fresh, np.int32(rows), np.int32(fresh_rows))
            else:
                return

    def _encode(self) -> None:
        """Encodes the next sentences, one for each row."""
        length, max_length = self.shape
        batch_size, rows_each = len(self.running), self.options.rows
        batch = [self.waiting.popleft() for _ in range(min(len(self.waiting), batch_size))]
        for row, sentence in enumerate(batch):
            self.encoded[row // rows_each].append((row % rows_each, sentence.id))
        self.fresh = encode(
            self.models,
            pad_rows([sentence.source for sentence in batch], batch_size, length),
            _constraints(batch, batch_size, max_length),
            self.options,
        )


def _constraints(sentences: Sequence[Sentence], batch_size: int, max_length: int) -> Constraints:
    def column(name: str, dtype) -> np.ndarray:
        values = np.array([getattr(sentence, name) for sentence in sentences], dtype)
        return np.pad(values, (0, batch_size - len(sentences)))

    prefix_BT = pad_rows([sentence.prefix for sentence in sentences], batch_size, max_length).ids
    lengths = column("max_length", np.int32), column("min_length", np.int32)
    return Constraints(*lengths, prefix_BT, column("seed", np.uint32))


def each_device(*specs: PartitionSpec) -> Callable[[Callable], Callable]:
    """Runs a function by each device on its rows; `specs` are of its arguments, ALL or ROWS."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def on_devices(*arguments, **static):
            mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
            options = {"mesh": mesh, "in_specs": specs, "out_specs": ROWS, "check_vma": False}
            return jax.shard_map(functools.partial(function, **static), **options)(*arguments)

        return on_devices

    return decorate


@jax.jit
@each_device(ALL, ROWS, ROWS, ALL)
def encode(
    models: Models, source: Tokens, constraints: Constraints, options: SearchOptions
) -> State:
    """The searches of new sentences, before their first step."""
    own = Search(models.merged(), options, IDS)
    memory = own.model.encode(source)
    return search.first_state(own, memory, constraints, source.segments != 0)


refill = jax.jit(each_device(ROWS, ROWS, ROWS, ROWS)(search.refill), donate_argnames="state")


@functools.partial(jax.jit, donate_argnames="state")
@each_device(ALL, ROWS, ALL, ALL)
def run(models: Models, state: State, options: SearchOptions, num_rows: jax.Array):
    """The search until each device has `num_rows` more rows done: state, done_B, hypotheses."""
    state = search.run(Search(models.merged(), options, IDS), state, num_rows)
    return state, state.done_B, search.best(state.finished, options.n_best)
