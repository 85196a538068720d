"""The loss of a model on a corpus, under teacher forcing."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from transformer_jax.data.batches import Batches
from transformer_jax.data.packing import Growth, bucketed_rows
from transformer_jax.data.token_store import TokenStore
from transformer_jax.devices import parallel, place
from transformer_jax.training.metrics import means
from transformer_jax.training.programs import Programs
from transformer_jax.training.step import make_eval_step

_NUM_BUCKETS = 3  # a validation corpus is small: compiling costs more than padding


class LossEvaluator:
    """The loss on corpora, over all devices."""

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        params: Any,
        stores: Sequence[TokenStore],
        *,
        smoothing: float,
        tokens_per_batch: int,
        cache: pathlib.Path,
    ):
        """Compiles for parameters such as `params`, replicated as in training."""
        step = parallel(make_eval_step(graphdef, smoothing=smoothing))
        rows = bucketed_rows(stores, _NUM_BUCKETS, Growth(), cache)
        of = functools.partial(Batches, tokens_per_batch=tokens_per_batch, seed=None)
        self._programs = Programs(step, params, of(stores, rows))
        self._parts = [of([store], [its_rows]) for store, its_rows in zip(stores, rows)]

    def __call__(self, params: Any, on_progress: Callable[[int], None]) -> dict[str, float]:
        """`means` of all pairs."""
        total: dict[str, float] = {}
        for batches in self._parts:
            for number in range(int(batches.epoch_sizes[0])):
                on_progress(number)
                batch = batches.batch_at(number, jax.process_index(), jax.process_count())
                sums = jax.device_get(self._programs(params, place(batch)))
                for name, value in sums._asdict().items():
                    total[name] = total.get(name, 0.0) + float(value)
        return means(total)
