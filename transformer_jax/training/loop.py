"""The training loop: evaluate, stop, save, update; then score the test corpus."""

import contextlib
import itertools
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from signal import Signals
from typing import Any, NamedTuple

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from transformer_jax import hosts
from transformer_jax.checkpoint import quiet_orbax
from transformer_jax.config import Config
from transformer_jax.data.corpora import parse_corpora
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import peak_memory
from transformer_jax.evaluation import score_translator, summary
from transformer_jax.interruption import Interrupted, Stop, noted
from transformer_jax.storage import atomic_write, local_folder, unlinked
from transformer_jax.training.divergence import DivergedError
from transformer_jax.training.metrics import report_line
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.validation import Validation

logger = logging.getLogger(__name__)

TEST_FILE = "test.json"
_SAMPLES = 5  # translations shown beside their references at the end


class TrainingResult(NamedTuple):
    """The outcome of `train`.

    Attributes:
      workdir: of the run.
      step: the last one made.
      signal: the signal that stopped the run, or None.
      scores: of the test corpus, or None without one.
    """

    workdir: pathlib.Path
    step: int
    signal: Signals | None = None
    scores: dict[str, Any] | None = None

    @property
    def status(self) -> int:
        """The exit status of a command: 0 at the end, 75 (try again) after a signal."""
        return os.EX_TEMPFAIL if self.signal else 0

    def translator(self, **options: Any) -> Translator:
        """The model, as `Translator.from_workdir` loads it."""
        return Translator.from_workdir(self.workdir, **options)


def train(
    config: Config, workdir: str | os.PathLike, profile_steps: tuple[int, int] | None = None
) -> TrainingResult:
    """Trains until the config's last step, resuming where an earlier call stopped.

    Unless logging is configured, reports go to stderr meanwhile.

    Args:
      config: of the run.
      workdir: folder of the run's config, vocabulary, checkpoints and metrics.
      profile_steps: first and last step, from 1, of a `jax.profiler` trace in
        workdir/profile; in between nothing is evaluated or saved.

    Raises:
      ValueError, OSError: what the user can correct, in one sentence.
    """
    with _reports():
        return _train(config, local_folder(workdir), profile_steps)


def _train(
    config: Config, workdir: pathlib.Path, profile_steps: tuple[int, int] | None
) -> TrainingResult:
    start = time.monotonic()
    _check_profile(profile_steps, 0, config)
    with contextlib.closing(Trainer(config, workdir)) as trainer:
        _check_profile(profile_steps, trainer.step, config)
        # Compiled before signals are noted: until then they end the process at once.
        validate = Validation(trainer) if trainer.data.valid else None
        with noted() as stop, _progress_bar(trainer) as bar:
            while True:
                try:
                    run_to_end(trainer, validate, stop, bar, profile_steps)
                    break
                except DivergedError as error:
                    trainer.roll_back(error)
                    bar.n = trainer.step
        step, signal = trainer.step, trainer.agreed(stop.signal)
    if signal:
        logger.warning(
            "stopped by %s at step %d; the same command goes on from there", signal.name, step
        )
        return TrainingResult(workdir, step, signal)
    memory = f", at most {peak / 2**30:.2f} GiB of a device" if (peak := peak_memory()) else ""
    logger.info("trained to step %d in %.0f s%s", step, time.monotonic() - start, memory)
    scores = score_test(config, workdir) if config.data.test else None
    return TrainingResult(workdir, step, scores=scores)


def run_to_end(
    trainer: Trainer,
    validate: Validation | None,
    stop: Stop,
    bar: tqdm,
    profile_steps: tuple[int, int] | None = None,
) -> None:
    """Trains until the last step, the end of patience, or a signal; saves before it returns.

    Of several processes, all end at the same step when one of them has a signal.

    The order within a step matters: a restart from any checkpoint must continue to the bit.
    """
    training, progress, saved = trainer.config.training, trainer.progress, trainer.step
    while True:
        step, score = trainer.step, None
        at_end = step >= training.num_steps
        # 1. Evaluate, unless the checkpoint that was resumed from has this evaluation already.
        due = at_end or (step > 0 and training.eval_every and step % training.eval_every == 0)
        if due and progress.evaluated < step:
            _show(bar, trainer, trainer.settle())
            trainer.meter.stop_clock()
            if validate:
                try:
                    score = validate(stop)
                except Interrupted:  # all have been; the same evaluation is due on resuming
                    trainer.agree(stop.signal)
        # 2. Decide whether to stop; out of patience, the metrics so far are the last report.
        waited = progress.evals_without_improvement
        out_of_patience = training.patience and waited >= training.patience
        if out_of_patience:
            _show(bar, trainer, trainer.report())
        stops = bool(at_end or out_of_patience or trainer.agreed(stop.signal))
        # 3. Save: before stopping, a new best, and every so often.
        is_best = score is not None and waited == 0
        unsaved = step != saved or score is not None
        regular = bool(at_end or out_of_patience or is_best or step % training.save_every == 0)
        if unsaved and (stops or regular):
            _show(bar, trainer, trainer.settle())
            trainer.meter.stop_clock()
            trainer.save(score, regular=regular)
            saved = step
        if stops:
            trainer.checkpoints.check_saved()
            trainer.agree(stop.signal)  # on one that came meanwhile
            if out_of_patience and not at_end:
                logger.info("no better validation in %d evaluations: stopping", waited)
            return
        # 4. Update; the metrics of the update before are read while this one runs.
        trainer.meter.start_clock()
        if profile_steps and step + 1 == profile_steps[0]:
            _profile(trainer, bar, min(profile_steps[1], training.num_steps))
        else:
            _update(trainer, bar, stop.signal)


def _update(trainer: Trainer, bar: tqdm, signal: Signals | None = None) -> None:
    _show(bar, trainer, trainer.advance(signal))
    bar.update()


@contextlib.contextmanager
def _reports() -> Iterator[None]:
    """Shows the package's log where logging is not configured, as in a notebook."""
    root, package = logging.getLogger(), logging.getLogger("transformer_jax")
    formats = [getattr(handler.formatter, "_fmt", None) for handler in root.handlers]
    # absl, which Orbax logs with, calls basicConfig() itself: then nobody has configured it.
    chosen = root.level != logging.WARNING or any(fmt != logging.BASIC_FORMAT for fmt in formats)
    with quiet_orbax():
        if chosen or package.handlers or package.level:
            yield
            return
        # The root's, which the progress bar redirects.
        before, root.handlers = root.handlers, [logging.StreamHandler()]
        package.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.handlers = before
            package.setLevel(logging.NOTSET)


def _check_profile(steps: tuple[int, int] | None, done: int, config: Config) -> None:
    last = config.training.num_steps
    if steps and not done < steps[0] <= last:
        raise ValueError(
            f"--profile_steps={steps[0]}:{steps[1]} has no effect: the run goes on after step "
            f"{done} and ends with step {last}"
        )


def _profile(trainer: Trainer, bar: tqdm, last: int) -> None:
    """Traces the steps up to `last`, with nothing but updates among them."""
    folder = unlinked(trainer.workdir / "profile")
    with jax.profiler.trace(str(folder)):
        while trainer.step < last:
            _update(trainer, bar)
        _show(bar, trainer, trainer.settle())
    logger.info("traced up to step %d: ui.perfetto.dev opens %s/**/*.trace.json.gz", last, folder)


@contextlib.contextmanager
def _progress_bar(trainer: Trainer) -> Iterator[tqdm]:
    """A bar on stderr that log lines do not break; redrawn seldom unless stderr is a terminal."""
    seconds = 0.5 if sys.stderr.isatty() else 30
    steps = {"initial": trainer.step, "total": trainer.config.training.num_steps}
    steps["disable"] = not hosts.is_first()
    with (
        tqdm(**steps, unit="step", dynamic_ncols=True, mininterval=seconds) as bar,
        logging_redirect_tqdm([logging.getLogger()]),
    ):
        yield bar


def _show(bar: tqdm, trainer: Trainer, report: dict[str, float] | None) -> None:
    """Logs a report, if there is one, and shows its loss beside the bar."""
    if report:
        smoothed = trainer.config.training.label_smoothing > 0
        logger.info(report_line(report["step"], report, smoothed))
        bar.set_postfix_str(f"loss {report['loss']:.3f}", refresh=False)


def score_test(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Scores the best checkpoint on the test corpus; writes the scores and prints samples."""
    data = config.data
    languages = data.source_language, data.target_language
    with hosts.together():
        test = parse_corpora(data.test, *languages, language_tags=data.language_tags)
        corpora = [(corpus, list(corpus)) for corpus in test]
        translator = Translator.from_workdir(workdir)
    scores, translations = score_translator(translator, corpora)
    with hosts.together():
        if hosts.is_first():
            with atomic_write(workdir / TEST_FILE) as file:
                file.write(json.dumps(scores) + "\n")
    if not hosts.is_first():
        return scores
    pairs = itertools.chain.from_iterable(pairs for _, pairs in corpora)
    for pair, translation in itertools.islice(zip(pairs, translations), _SAMPLES):
        print(f"source      {pair.source}")
        print(f"translation {translation}")
        print(f"reference   {pair.target}\n")
    name = data.test
    for part in scores.get("corpora", []):
        languages = f"{part['source_language']}-{part['target_language']}"
        print(f"{part['name']}, {languages}: {_quality(part)}")
        name = f"mean of {len(corpora)} corpora"
    print(f"{name}: {_quality(scores)} ({scores['seconds']:.0f} s)", flush=True)
    return scores


def _quality(scores: dict[str, Any]) -> str:
    return f"{summary(scores)}, exact match {scores['exact_match']:.1%} of {scores['sentences']}"
