"""Validation: the loss under teacher forcing, and BLEU and chrF of translations."""

import functools
import logging
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from transformer_jax import hosts
from transformer_jax.data.batches import Batches
from transformer_jax.data.packing import Growth, bucketed_rows
from transformer_jax.data.token_store import TokenStore
from transformer_jax.evaluation import score_translator, summary
from transformer_jax.heartbeat import heartbeat
from transformer_jax.interruption import Interrupted, Stop
from transformer_jax.sharding import DataParallel, Sharded
from transformer_jax.training.compile import CompiledSteps
from transformer_jax.training.divergence import DivergedError
from transformer_jax.training.loss import max_logits
from transformer_jax.training.metrics import means
from transformer_jax.training.step import make_eval_step
from transformer_jax.training.trainer import Trainer

logger = logging.getLogger(__name__)

_NUM_BUCKETS = 3  # a validation corpus is small: compiling costs more than padding
_EXTRA_TOKENS = 10  # that a validation translation may have beyond twice its reference


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
        layout: DataParallel | Sharded,
        max_logits: float = math.inf,
    ):
        """Compiles for parameters such as `params`, replicated as in training."""
        self._place = layout.place
        options = {"smoothing": smoothing, "max_logits": max_logits}
        step = layout.parallel(make_eval_step(graphdef, **options, **layout.hooks))
        rows = bucketed_rows(stores, _NUM_BUCKETS, Growth(), cache)
        batches_of = functools.partial(Batches, tokens_per_batch=tokens_per_batch, seed=None)
        self._compiled = CompiledSteps(step, params, batches_of(stores, rows), place=layout.place)
        self._corpora = [batches_of([store], [row]) for store, row in zip(stores, rows)]

    def __call__(self, params: Any, stop: Stop) -> dict[str, float]:
        """`metrics.means` over all pairs; Interrupted where a process has a signal to stop."""
        total: dict[str, float] = {}
        for batches in self._corpora:
            for number in range(int(batches.epoch_sizes[0])):
                if hosts.largest(stop.signal or 0):
                    raise Interrupted
                batch = batches.batch_at(number, jax.process_index(), jax.process_count())
                sums = jax.device_get(self._compiled(params, self._place(batch)))
                for name, value in sums._asdict().items():
                    total[name] = total.get(name, 0.0) + float(value)
        return means(total)


class Validation:
    """Evaluates a trainer's current parameters on the validation corpora."""

    def __init__(self, trainer: Trainer):
        """Compiles the step that computes the loss."""
        self._trainer, training = trainer, trainer.config.training
        self.loss = LossEvaluator(
            trainer.graphdef,
            trainer.params,
            trainer.data.valid,
            smoothing=training.label_smoothing,
            tokens_per_batch=trainer.progress.tokens_per_batch,
            cache=trainer.data.cache,
            layout=trainer.layout,
            max_logits=max_logits(training.logits_mib, jax.default_backend()),
        )

    def __call__(self, stop: Stop) -> list[float]:
        """Computes and logs loss, BLEU and chrF; updates `progress`; returns the `rank`.

        Raises:
          Interrupted: a signal has come, to this process or another.
        """
        start, trainer = time.monotonic(), self._trainer
        values = self._losses(stop)
        scores = self._scores(stop)
        values |= {f"valid_{name}": value for name, value in scores.items()}
        values["valid_seconds"] = seconds = time.monotonic() - start
        trainer.log.write(trainer.step, values)
        for part in scores.get("corpora", []):
            languages = f"{part['source_language']}-{part['target_language']}"
            logger.info("step %d: validation %s %s", trainer.step, languages, summary(part))
        logger.info("step %d: validation %s (%.0f s)", trainer.step, summary(scores), seconds)
        score, progress = rank(values, trainer.config.training.best_metric), trainer.progress
        improved = score > progress.best
        progress.evals_without_improvement = (
            0 if improved else progress.evals_without_improvement + 1
        )
        progress.best, progress.evaluated = max(score, progress.best), trainer.step
        return score

    def _losses(self, stop: Stop) -> dict[str, Any]:
        trainer = self._trainer
        with heartbeat("computing the validation loss"):
            losses = self.loss(trainer.params, stop)
        if not math.isfinite(losses["loss"]):
            step = trainer.step
            raise DivergedError(f"the validation loss after step {step} is not finite", step)
        logger.info(
            "step %d: %svalidation loss %.4f, perplexity %.4g",
            trainer.step,
            "smoothed " * bool(trainer.config.training.label_smoothing),
            losses["loss"],
            losses["perplexity"],
        )
        return {f"valid_{name}": value for name, value in losses.items() if name != "fill"}

    def _scores(self, stop: Stop) -> dict[str, Any]:
        """Scores of translations of the first pairs of each corpus."""
        data = self._trainer.data
        count = -(-self._trainer.config.training.eval_sentences // len(data.valid_corpora)) or None
        corpora = [(x, pairs[:count]) for x, pairs in zip(data.valid_corpora, data.valid_pairs)]
        # A young model runs on to the limit: far beyond its reference a translation is wrong.
        references = data.vocabulary.encode([y for _, pairs in corpora for _, y in pairs])
        limits = [2 * len(reference) + _EXTRA_TOKENS for reference in references]
        translator = self._trainer.translator()
        scores, _ = score_translator(translator, corpora, limits=limits, on_progress=stop.check)
        return scores


def rank(values: dict[str, Any], best_metric: str) -> list[float]:
    """Numbers by which evaluations compare, the first that differs deciding; higher is better.

    BLEU is undefined in all evaluations of a run or in none: its references do not change.
    """
    first = [values["valid_bleu"] or 0.0, values["valid_chrf"]] if best_metric == "bleu" else []
    return [*first, -values["valid_loss"]]
