"""A run: opened or resumed, advanced by updates, evaluated, saved."""

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from transformer_jax.checkpoint import (
    Checkpoints,
    abstract_model,
    flatten,
    load_run,
    read_config,
)
from transformer_jax.config import Config
from transformer_jax.data.datasets import RunData, training_batches
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.decoding.engine import Models
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import check_devices, parallel, place, replicate, usable_memory
from transformer_jax.evaluation import score_translator, summary
from transformer_jax.heartbeat import heartbeat
from transformer_jax.model.build import build
from transformer_jax.storage import local_folder
from transformer_jax.training.metrics import Meter, MetricLog
from transformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from transformer_jax.training.prefetch import Prefetcher
from transformer_jax.training.programs import Programs, largest_batch
from transformer_jax.training.step import TrainState, make_train_step
from transformer_jax.training.validation import LossEvaluator
from transformer_jax.training.workdir import (
    check_owner,
    keep,
    load_data,
    locked,
)

logger = logging.getLogger(__name__)

_EXTRA_LENGTH = (
    10  # tokens that a validation sentence's translation may have beyond twice its reference
)


class NotFiniteError(ValueError):
    """The loss, its gradient or a parameter is no longer a finite number."""


@dataclasses.dataclass
class Progress:
    """What a run remembers beside its arrays; kept in each checkpoint."""

    fingerprint: int  # of the training tokens
    tokens_per_batch: int = 0  # as configured, or as chosen for the device
    evaluated: int = -1  # step of the last evaluation
    best: list[float] = dataclasses.field(default_factory=list)  # the highest `_rank` so far
    worse: int = 0  # evaluations since the best
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # of the open report

    def __post_init__(self):
        self.best = np.atleast_1d(self.best).tolist()  # one number in older checkpoints


class Trainer:
    """A run: its model, state, data and records. `loop.train` drives one from start to end."""

    def __init__(self, config: Config, workdir: str | os.PathLike):
        """Opens or resumes the run of a workdir, which no other process may train in till `close`.

        Raises:
          ValueError, OSError: the config, a corpus or the workdir is not as it should be.
        """
        if not isinstance(config, Config):
            raise ValueError(f"the config is {config!r}; a transformer_jax.Config was wanted")
        config.validate()
        check_devices()
        self.workdir = local_folder(workdir)
        self.on_report: Callable[[int, dict[str, float]], None] = lambda step, report: None
        self._pending: tuple[int, dict] | None = None
        self._unreported: tuple[int, dict] | None = None
        with contextlib.ExitStack() as opened:
            opened.enter_context(locked(self.workdir))
            self.config = config = check_owner(self.workdir, config)
            self.data: RunData = load_data(self.workdir, config)
            self.checkpoints = Checkpoints(
                self.workdir, config.training.keep_checkpoints, create=True
            )
            opened.callback(self.checkpoints.close)
            self._build()
            opened.callback(self._prefetcher.close)
            keep(self.workdir, config, self.data.vocabulary)
            self.log = MetricLog(self.workdir, self.step)
            opened.callback(self.log.close)
            self._opened = opened.pop_all()

    def _build(self) -> None:
        """Model, step and state; then batches, and programs for all their shapes."""
        config, data = self.config, self.data
        self.graphdef, params = _initial(config, len(data.vocabulary))
        schedule = learning_rate_schedule(
            config.optimizer, config.model.model_dim, config.training.num_steps
        )
        optimizer = make_optimizer(config.optimizer, schedule)
        step_fn = parallel(
            make_train_step(
                self.graphdef,
                optimizer,
                schedule,
                seed=config.seed,
                smoothing=config.training.label_smoothing,
                accumulate_steps=config.training.accumulate_steps,
            ),
            donate_state=True,
        )
        self.state, self.progress = self._resume(params, optimizer)
        self.step = int(self.state.step)
        if self.step:
            self._log_schedule(schedule)
        self.meter = Meter(self.progress.sums)
        batches_of = training_batches(config, data)

        def programs(tokens: int) -> Programs:
            pieces = config.training.accumulate_steps
            return Programs(step_fn, self.state, batches_of(tokens), pieces)

        tokens = config.data.tokens_per_batch or self.progress.tokens_per_batch
        if not tokens:
            least = 8 * max(max(shape) for _, shape in batches_of(1).shapes)
            epoch = batches_of(1).places_per_epoch
            tokens = largest_batch(lambda n: programs(n).bytes, least, epoch, usable_memory())
            logger.info("tokens_per_batch=%d, the most that fits the device", tokens)
        self.progress.tokens_per_batch = tokens
        self.batches = batches_of(tokens)
        logger.info("compiling for %d shapes of batches", len(self.batches.shapes))
        self.programs = programs(tokens)
        self.valid_loss = None
        if data.valid:
            self.valid_loss = LossEvaluator(
                self.graphdef,
                self.state.params,
                data.valid,
                smoothing=config.training.label_smoothing,
                tokens_per_batch=tokens,
                cache=data.cache,
            )
        self._prefetcher = Prefetcher(self._placed_batch, self.step)

    def _placed_batch(self, step: int) -> Any:
        batch = self.batches.batch_at(step, jax.process_index(), jax.process_count())
        return place(batch, self.config.training.accumulate_steps)

    def _resume(self, params: Any, optimizer: Any) -> tuple[TrainState, Progress]:
        """The state of the latest sound checkpoint, or the first state."""
        progress = Progress(self.data.fingerprint)
        opened = jax.eval_shape(optimizer.init, params)
        damaged = []
        for step in self.checkpoints.steps():
            try:
                trees = self.checkpoints.restore(step, params=params, optimizer=opened)
                saved = Progress(**self.checkpoints.run_state(step)["progress"])
            except ValueError as error:
                logger.warning("%s", error)
                damaged.append(step)
                continue
            if not saved.tokens_per_batch:
                raise ValueError(
                    f"the run in {self.workdir} was made by an older version, with other batches: "
                    "it can be translated with, or be the config.training.init_from of a new run"
                )
            if saved.fingerprint != progress.fingerprint:
                raise ValueError(
                    f"the training corpus {self.config.data.train} is not the one that the run in "
                    f"{self.workdir} was trained on: its content or weights have changed"
                )
            for later in damaged:
                self.checkpoints.set_aside(later)
            logger.info("resuming after step %d", step)
            return replicate(TrainState(np.int32(step), **trees)), saved
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.checkpoints.folder} is sound; move it away to start anew"
            )
        if self.config.training.init_from:
            params = _initial_from(self.config.training.init_from, params, self.data.vocabulary)
        return replicate(TrainState(np.int32(0), params, jax.jit(optimizer.init)(params))), progress

    def _log_schedule(self, schedule: Callable[[int], Any]) -> None:
        """Logs how the cosine schedule of a resumed run goes on, where its end has moved."""
        old, new = read_config(self.workdir).training.num_steps, self.config.training.num_steps
        if self.config.optimizer.schedule == "cosine" and old != new > self.step:
            logger.info(
                "cosine schedule of %d steps instead of %d: learning rate %.2e at step %d, falling "
                "to %.2e at step %d",
                *(new, old, schedule(self.step), self.step + 1, schedule(new - 1), new),
            )

    def advance(self) -> None:
        """One update; then the metrics of the update before it are read."""
        batch, waited = self._prefetcher.next()
        self.meter.add_wait(waited)
        self.state, metrics = self.programs(self.state, batch)
        before, self._pending = self._pending, (self.step + 1, metrics)
        self.step += 1
        self._read(before)

    def settle(self) -> None:
        """Reads the metrics of the last update, which waits for it to end."""
        before, self._pending = self._pending, None
        self._read(before)

    def _read(self, pending: tuple[int, dict] | None) -> None:
        if pending is None:
            return
        step, metrics = pending[0], jax.device_get(pending[1])
        if not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])):
            raise NotFiniteError(self._diverged(f"the loss or its gradient at step {step}"))
        self.meter.add(metrics)
        self._unreported = step, metrics
        if step % self.config.training.log_every == 0 or step == self.config.training.num_steps:
            self.report()

    def report(self) -> None:
        """Reports the updates since the last report, if this process made any."""
        if self._unreported is None:
            return
        (step, metrics), self._unreported = self._unreported, None
        report = self.meter.report()
        for name in ("learning_rate", "gradient_norm"):
            report[name] = float(metrics[name])
        left = self.config.training.num_steps - step
        report["epochs"] = (step / self.batches.steps_per_epoch).tolist()
        report["seconds_left"] = left * report["seconds_per_step"]
        self.log.write(step, report)
        self.on_report(step, report)

    def _diverged(self, what: str) -> str:
        last = next(iter(self.checkpoints.steps()), None)
        kept = f"the checkpoint of step {last} is kept" if last is not None else "nothing was saved"
        return (
            f"{what} is not finite: {kept}; a lower config.optimizer.learning_rate, a longer "
            "warm-up or config.optimizer.clip_norm=1 may help"
        )

    def translator(self) -> Translator:
        """Translates with the parameters of this moment; the next update ends its life."""
        models = Models((self.graphdef,), (self.state.params,))
        return Translator(models, self.data.vocabulary, self.config)

    def evaluate(self, on_progress: Callable[[int], None] = lambda _: None) -> list[float] | None:
        """Loss, BLEU and chrF on the validation corpora, logged; its `_rank`, or None without one.

        The best step and the evaluations since are kept in `progress`.
        """
        if self.valid_loss is None:
            return None
        start, training, data = time.monotonic(), self.config.training, self.data
        with heartbeat("computing the validation loss"):
            losses = self.valid_loss(self.state.params, on_progress)
        if not math.isfinite(losses["loss"]):
            raise NotFiniteError(self._diverged(f"the validation loss after step {self.step}"))
        values = {f"valid_{name}": value for name, value in losses.items() if name != "fill"}
        logger.info(
            "step %d: %svalidation loss %.4f, perplexity %.4g",
            *(self.step, "smoothed " * bool(training.label_smoothing)),
            *(values["valid_loss"], values["valid_perplexity"]),
        )
        each = -(-training.eval_sentences // len(data.valid_corpora)) or None
        corpora = [(x, pairs[:each]) for x, pairs in zip(data.valid_corpora, data.valid_pairs)]
        translator = self.translator()
        # A young model goes on to the limit; what is twice as long as it should be is wrong.
        references = data.vocabulary.encode([y for _, pairs in corpora for _, y in pairs])
        limits = [2 * len(reference) + _EXTRA_LENGTH for reference in references]
        scores, _ = score_translator(translator, corpora, limits=limits, on_progress=on_progress)
        values |= {f"valid_{name}": value for name, value in scores.items()}
        values["valid_seconds"] = time.monotonic() - start
        self.log.write(self.step, values)
        for part in scores.get("corpora", []):
            languages = f"{part['source_language']}-{part['target_language']}"
            logger.info("step %d: validation %s %s", self.step, languages, summary(part))
        seconds = values["valid_seconds"]
        logger.info("step %d: validation %s (%.0f s)", self.step, summary(scores), seconds)
        score = _rank(values, training.best_metric)
        progress = self.progress
        progress.worse = 0 if score > progress.best else progress.worse + 1
        progress.best, progress.evaluated = max(score, progress.best), self.step
        return score

    def save(self, score: list[float] | None = None) -> None:
        """Starts to save the state, once all of it is known to be finite."""
        self.settle()
        self.progress.sums = self.meter.sums
        run = {"step": self.step, "progress": dataclasses.asdict(self.progress)}
        state = jax.device_get(self.state)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(state)):
            raise NotFiniteError(self._diverged(f"a parameter or moment after step {self.step}"))
        self.checkpoints.save(self.step, state.params, state.optimizer, run, score)

    def close(self) -> None:
        """Waits for checkpoints being written, and ends what runs in the background."""
        self._opened.close()


def _rank(values: dict[str, Any], best_metric: str) -> list[float]:
    """What the better of two evaluations has more of, in the order in which it counts.

    BLEU is undefined in all evaluations of a run or in none: its references do not change.
    """
    first = [values["valid_bleu"] or 0.0, values["valid_chrf"]] if best_metric == "bleu" else []
    return [*first, -values["valid_loss"]]


def _initial(config: Config, vocab_size: int) -> tuple[nnx.GraphDef, Any]:
    """Graph definition and first parameters of a config's model."""

    def parameters():
        return nnx.split(build(config.model, vocab_size, rngs=nnx.Rngs(config.seed)))[1]

    # In one program: each layer's arrays made one by one would compile by the hundred.
    return abstract_model(config, vocab_size)[0], jax.jit(parameters)()


def _initial_from(workdir: str, like: Any, vocabulary: Vocabulary) -> Any:
    """Parameters of another run, which must be of the same shapes and vocabulary."""
    _, other, _, params = load_run(workdir)
    if other.fingerprint() != vocabulary.fingerprint():
        raise ValueError(
            f"config.training.init_from={workdir!r} has another vocabulary than this run, so "
            "that its parameters belong to other pieces: leave config.data.vocabulary out, in a "
            "new workdir, and the vocabulary is that run's as well"
        )
    shapes, wanted = (
        {name: x.shape for name, x in flatten(tree).items()} for tree in (params, like)
    )
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise ValueError(
                f"config.training.init_from={workdir!r} has another model: parameter {name} has "
                f"shape {shapes.get(name)}, {wanted.get(name)} was wanted"
            )
    return params
