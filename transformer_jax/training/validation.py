"""The loss of a model on a corpus, under teacher forcing."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from transformer_jax.config import Config
from transformer_jax.data.batching import Batches
from transformer_jax.data.token_store import TokenStore
from transformer_jax.training.metrics import means
from transformer_jax.training.parallel import must_block, parallel, place
from transformer_jax.training.step import make_eval_step

_NUM_BUCKETS = 3  # a validation corpus is small: compiling costs more than padding


class LossEvaluator:
    """The loss of a corpus, over all devices."""

    def __init__(self, graphdef: nnx.GraphDef, config: Config, store: TokenStore):
        self._step = parallel(make_eval_step(graphdef, smoothing=config.training.label_smoothing))
        self._batches = Batches(
            store,
            tokens_per_batch=config.data.tokens_per_batch,
            num_buckets=_NUM_BUCKETS,
            seed=None,
        )

    def __call__(self, params: Any, on_progress: Callable[[int], None]) -> dict[str, float]:
        """`means` of all pairs; `params` replicated as in training."""
        total: dict[str, float] = {}
        for number in range(self._batches.batches_per_epoch):
            on_progress(number)
            sums = self._step(params, place(self._batches.batch_at(number)))
            if must_block():
                jax.block_until_ready(sums)
            for name, value in jax.device_get(sums)._asdict().items():
                total[name] = total.get(name, 0.0) + float(value)
        return means(total)
