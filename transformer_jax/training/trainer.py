"""The updates of a run: its state advanced by compiled steps over prefetched batches, saved."""

import contextlib
import dataclasses
import logging
import os
import time
from signal import Signals
from typing import Any

import jax

from transformer_jax import allocator, hosts
from transformer_jax.checkpoint import Checkpoints
from transformer_jax.config import Config
from transformer_jax.data.batches import Batch, Batches
from transformer_jax.data.datasets import training_batches
from transformer_jax.data.packing import Shape
from transformer_jax.decoding.engine import Models
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import check_devices, peak_memory, usable_memory
from transformer_jax.model.build import abstract_model, for_platform
from transformer_jax.sharding import layout_of
from transformer_jax.storage import local_folder
from transformer_jax.training.chips import peak_flops
from transformer_jax.training.compile import CompiledSteps, largest_batch
from transformer_jax.training.divergence import DivergedError, all_finite, was_updated
from transformer_jax.training.flops import step_flops
from transformer_jax.training.loss import max_logits
from transformer_jax.training.metrics import Meter, MetricLog
from transformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from transformer_jax.training.prefetch import Prefetcher
from transformer_jax.training.run import (
    check_owner,
    load_data,
    locked,
    log_schedule_change,
    save_run_metadata,
    start_state,
)
from transformer_jax.training.step import items, make_train_step

logger = logging.getLogger(__name__)


class Trainer:
    """A run that is open for training; `loop.train` drives one from start to end.

    Attributes:
      step: updates made; their metrics are read while the next update runs.
      state, progress: what a checkpoint saves.
    """

    def __init__(self, config: Config, workdir: str | os.PathLike):
        """Opens or resumes the run of a workdir, and locks it until `close`.

        Raises:
          ValueError, OSError: the config, a corpus or the workdir is not as it should be.
        """
        if not isinstance(config, Config):
            raise ValueError(f"the config is {config!r}; expected a transformer_jax.Config")
        config.validate()
        check_devices()
        self.workdir = local_folder(workdir)
        self._signal: Signals | None = None  # that the processes have agreed on
        with contextlib.ExitStack() as stack:
            with hosts.together():
                if hosts.is_first():
                    stack.enter_context(locked(self.workdir))
            hosts.check_shared(self.workdir / ".shared")
            with hosts.together():
                self.config = config = check_owner(self.workdir, config)
                for_platform(config.model, jax.default_backend())  # before the corpora are read
                self.data = load_data(self.workdir, config)
            self.layout = layout_of(config)
            hosts.check_equal("the tokens of the training corpus", self.data.fingerprint)
            keep = config.training.keep_checkpoints
            self.checkpoints = Checkpoints(self.workdir, keep, create=True)
            stack.callback(self.checkpoints.close)
            self._build()
            stack.callback(lambda: self._prefetcher.close())
            with hosts.together():
                if hosts.is_first():
                    save_run_metadata(self.workdir, config, self.data.vocabulary)
                self.log = MetricLog(self.workdir, self.step, self.progress.evaluated)
            stack.callback(lambda: self.log.close())
            self._stack = stack.pop_all()

    def _build(self) -> None:
        """Model, optimiser, state, and steps compiled for all shapes of batches."""
        config, data, training = self.config, self.data, self.config.training
        self.graphdef, _ = abstract_model(config.model, len(data.vocabulary))
        schedule = learning_rate_schedule(
            config.optimizer, config.model.model_dim, training.num_steps
        )
        self._optimizer = optimizer = make_optimizer(config.optimizer, schedule)
        self._restore()
        self._flops = step_flops(config.model, self.state.params)
        if self.step:
            log_schedule_change(self.workdir, config, schedule, self.step)
        train_step = make_train_step(
            self.graphdef,
            optimizer,
            schedule,
            seed=config.seed,
            smoothing=training.label_smoothing,
            accumulate_steps=training.accumulate_steps,
            ema_decay=config.optimizer.ema_decay,
            max_logits=max_logits(training.logits_mib, jax.default_backend()),
            **self.layout.hooks,
        )
        start = time.monotonic()
        self.batches, self.compiled = self._compile(
            self.layout.parallel(train_step, donate_state=True)
        )
        self._compile_seconds = time.monotonic() - start
        need = self.compiled.bytes / 2**30
        logger.info("compiled in %.1f s: a step needs %.2f GiB", self._compile_seconds, need)
        allocator.keep_freed_memory(logging.INFO)
        self._prefetcher = Prefetcher(self._placed_batch, self.step)

    def _restore(self) -> None:
        """The state of the last checkpoint, or the initial one."""
        self.state, self.progress = start_state(
            self.workdir, self.config, self.data, self.checkpoints, self._optimizer, self.layout
        )
        self.step = int(self.state.step)
        self.meter = Meter(self.progress.sums)
        self._unread: tuple[int, Shape, dict] | None = None  # of the update under way
        self._unreported: tuple[int, dict] | None = None

    def _compile(self, step: Any) -> tuple[Batches, CompiledSteps]:
        """Batches and the step compiled for them, of the size configured or of the largest."""
        batches_of = training_batches(self.config, self.data)
        tried: dict[int, CompiledSteps] = {}

        def compile_for(tokens: int) -> CompiledSteps:
            micro_batches = self.config.training.accumulate_steps
            tried[tokens] = CompiledSteps(
                step, self.state, batches_of(tokens), micro_batches, self.layout.place
            )
            return tried[tokens]

        tokens = self.config.data.tokens_per_batch or self.progress.tokens_per_batch
        if not tokens:
            row = batches_of(1)
            limit = min(hosts.gather(usable_memory()))
            min_tokens = 8 * max(max(shape) for _, shape in row.shapes)
            tokens = largest_batch(
                lambda n: compile_for(n).bytes, min_tokens, row.positions_per_epoch, limit
            )
            logger.info("tokens_per_batch=%d, the most that fits the device", tokens)
        self.progress.tokens_per_batch = tokens
        batches = batches_of(tokens)
        if tokens not in tried:
            logger.info("compiling for %d shapes of batches", len(batches.shapes))
            compile_for(tokens)
        return batches, tried[tokens]

    def _placed_batch(self, step: int) -> Batch:
        index = step + self.progress.offset
        batch = self.batches.batch_at(index, jax.process_index(), jax.process_count())
        return self.layout.place(batch, self.config.training.accumulate_steps)

    def advance(self, signal: Signals | None = None) -> dict[str, float] | None:
        """Makes one update, then reads the metrics of the one before; its report, if due.

        Args:
          signal: one that has come to this process, of which all know one update later.
        """
        batch, seconds = self._prefetcher.next()
        self.meter.add_wait(seconds)
        with jax.profiler.StepTraceAnnotation("train", step_num=self.step + 1):
            self.state, metrics = self.compiled(self.state, batch)
        metrics["signal"] = hosts.largest(signal or 0)
        row = Shape(batch.source.ids.shape[-1], batch.labels.shape[-1])
        before, self._unread = self._unread, (self.step + 1, row, metrics)
        self.step += 1
        return self._read(before)

    def agree(self, signal: Signals | None) -> None:
        """Lets all processes know of one's signal at once, where all call this."""
        if number := int(hosts.largest(signal or 0)):
            self._signal = Signals(number)

    def agreed(self, signal: Signals | None) -> Signals | None:
        """The signal that has come: to this process, or of several one that all know of."""
        return signal if jax.process_count() == 1 else self._signal

    def settle(self) -> dict[str, float] | None:
        """Waits for the last update and reads its metrics; its report, if due."""
        before, self._unread = self._unread, None
        return self._read(before)

    def _read(self, unread: tuple[int, Shape, dict] | None) -> dict[str, float] | None:
        if unread is None:
            return None
        step, row, metrics = *unread[:2], jax.device_get(unread[2])
        if number := int(metrics.pop("signal")):
            self._signal = Signals(number)
        if not was_updated(self.progress, step, metrics, self.config.training):
            self._event(step, "no update, as the loss or its gradient is not finite")
        target = float(metrics["tokens"])
        self.meter.add(metrics, self._flops(float(metrics["filled"]) - target, target, row))
        self._unreported = step, metrics
        training = self.config.training
        due = step % training.log_every == 0 or step == training.num_steps
        return self.report() if due else None

    def report(self) -> dict[str, float] | None:
        """Logs and returns the metrics since the last report; None if this process has none."""
        if self._unreported is None:
            return None
        (step, metrics), self._unreported = self._unreported, None
        report = self.meter.report()
        for name in ("learning_rate", "gradient_norm"):
            report[name] = float(metrics[name])
        left = self.config.training.num_steps - step
        report["epochs"] = (step / self.batches.steps_per_epoch).tolist()
        report["seconds_left"] = left * report["seconds_per_step"]
        report["compile_seconds"] = self._compile_seconds
        if peak := peak_flops():
            report["mfu"] = report["model_flops_per_s"] / peak
        if memory := peak_memory():
            report["peak_memory_bytes"] = memory
        self.log.write(step, report)
        return {"step": step} | report

    def _event(self, step: int, what: str) -> None:
        logger.warning("step %d: %s", step, what)
        self.log.write(step, {"event": what})

    def roll_back(self, error: DivergedError) -> None:
        """Goes back to the last checkpoint, or to the start, and leaves out the batches since.

        Not to one that only a signal has caused, so that an earlier stop makes no difference.

        Raises:
          DivergedError: it has done so as often as the config allows.
        """
        training, before = self.config.training, self.progress
        self.checkpoints.wait()
        if before.rollbacks >= training.max_rollbacks:
            last = next(iter(self.checkpoints.steps()), None)
            kept = "nothing was saved" if last is None else f"the checkpoint of step {last} is kept"
            raise DivergedError(
                f"{error}, after {before.rollbacks} roll-backs: {kept}; a lower "
                "config.optimizer.learning_rate, a longer warm-up or config.optimizer.clip_norm=1 "
                "may help",
                error.step,
            ) from error
        self._prefetcher.close()
        self.log.close()
        self.checkpoints.delete_irregular()
        self._restore()
        self.progress.offset = before.offset + error.step - self.step
        self.progress.rollbacks = before.rollbacks + 1
        self.progress.tokens_per_batch = before.tokens_per_batch
        self._prefetcher = Prefetcher(self._placed_batch, self.step)
        self.log = MetricLog(self.workdir, self.step, self.progress.evaluated)
        what = f"rolled back from step {error.step}, whose batches since are left out: {error}"
        self._event(self.step + 1, what)  # what follows, and is dropped with it

    @property
    def params(self) -> Any:
        """The parameters to evaluate and decode with: their mean where there is one."""
        return self.state.params if self.state.ema is None else self.state.ema

    def translator(self) -> Translator:
        """A Translator over the current parameters; invalid once the next step donates them."""
        models = Models((self.graphdef,), (self.layout.local_copies(self.params),))
        return Translator(models, self.data.vocabulary, self.config)

    def save(self, score: list[float] | None = None, *, regular: bool = True) -> None:
        """Starts to save the state, once all of it is known to be finite.

        Args:
          score: rank of the evaluation at this step, as from `validation.Validation`.
          regular: whether a run without signals would save here too.
        """
        self.settle()
        self.progress.sums = self.meter.sums
        if not all_finite(self.state):
            raise DivergedError(
                f"a parameter or moment after step {self.step} is not finite", self.step
            )
        run = {
            "progress": self.progress.to_json(),
            "config": dataclasses.asdict(self.config),
            "vocabulary": self.data.vocabulary.fingerprint(),
        }
        self.checkpoints.save(self.step, items(self.state), run, score, regular=regular)

    def close(self) -> None:
        """Waits for checkpoints being written, and ends the background threads."""
        self._stack.close()
