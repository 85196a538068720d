"""The training loop: step, evaluate, save, stop; then score the test corpus."""

import contextlib
import functools
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

from transformer_jax.checkpoint import quiet_orbax
from transformer_jax.config import Config
from transformer_jax.data.corpora import parse_corpora
from transformer_jax.decoding.translator import Translator
from transformer_jax.evaluation import score_translator, summary
from transformer_jax.storage import local_folder
from transformer_jax.training.interrupt import Interrupt, Interrupted
from transformer_jax.training.metrics import report_line
from transformer_jax.training.trainer import Trainer

logger = logging.getLogger(__name__)

TEST_FILE = "test.json"
_SAMPLES = 5  # translations shown beside their references at the end


class TrainingResult(NamedTuple):
    """What a training has come to.

    Attributes:
      workdir: of the run.
      step: the last.
      signal: that stopped it, or None at the end.
      scores: of the test corpus, or None where none was scored.
    """

    workdir: pathlib.Path
    step: int
    signal: Signals | None = None
    scores: dict[str, Any] | None = None

    @property
    def status(self) -> int:
        """The exit status of a command: 0 at the end, 128 + its number after a signal."""
        return 128 + self.signal if self.signal else 0

    def translator(self, **options: Any) -> Translator:
        """The model, as `Translator.from_workdir` loads it."""
        return Translator.from_workdir(self.workdir, **options)


def train(
    config: Config, workdir: str | os.PathLike, profile_steps: tuple[int, int] | None = None
) -> TrainingResult:
    """Trains until the config's last step, going on where an earlier call stopped.

    Where nobody has configured logging, reports go to stderr meanwhile.

    Args:
      config: of the run.
      workdir: all that the run leaves: config, vocabulary, checkpoints, metrics.
      profile_steps: first and last step, from 1, of a `jax.profiler` trace in
        workdir/profile; in between nothing is evaluated or saved.

    Raises:
      ValueError, OSError: what the user can mend, in one sentence.
    """
    with _reports():
        return _train(config, local_folder(workdir), profile_steps)


def _train(
    config: Config, workdir: pathlib.Path, profile_steps: tuple[int, int] | None
) -> TrainingResult:
    start = time.monotonic()
    _check_profile(profile_steps, 0, config)
    trainer = Trainer(config, workdir)
    with Interrupt() as interrupt:
        with contextlib.closing(trainer), _progress_bar(trainer) as bar:
            _check_profile(profile_steps, trainer.step, config)
            trainer.on_report = functools.partial(_show, bar, config.training.label_smoothing > 0)
            run_to_end(trainer, interrupt, bar, profile_steps)
            step = trainer.step
        if interrupt.signal:
            logger.warning(
                "stopped by %s at step %d; the same command goes on from there",
                interrupt.signal.name,
                step,
            )
            return TrainingResult(workdir, step, interrupt.signal)
    logger.info("trained to step %d in %.0f s", step, time.monotonic() - start)
    scores = _test(config, workdir) if config.data.test else None
    return TrainingResult(workdir, step, None, scores)


@contextlib.contextmanager
def _reports() -> Iterator[None]:
    """Shows what we log where nobody has configured logging, as in a notebook."""
    root, package = logging.getLogger(), logging.getLogger("transformer_jax")
    formats = [getattr(handler.formatter, "_fmt", None) for handler in root.handlers]
    # absl, which Orbax logs with, calls basicConfig() for whoever has not: that is nobody's wish.
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


def run_to_end(
    trainer: Trainer, interrupt: Interrupt, bar: tqdm, profile_steps: tuple[int, int] | None
) -> None:
    """Runs until the last step, the end of patience, or the user's wish; saves on the way."""
    training, saved = trainer.config.training, trainer.step
    while True:
        step, score = trainer.step, None
        at_end = step >= training.num_steps
        due = at_end or (step > 0 and training.eval_every and step % training.eval_every == 0)
        if due and trainer.progress.evaluated < step:
            trainer.settle()
            trainer.meter.stop_clock()
            with contextlib.suppress(Interrupted):
                score = trainer.evaluate(interrupt.check)
        progress = trainer.progress
        out_of_patience = training.patience and progress.worse >= training.patience
        if out_of_patience:
            trainer.report()
        ends = bool(at_end or out_of_patience or interrupt.signal)
        is_best = score is not None and progress.worse == 0
        unsaved = step != saved or score is not None
        if unsaved and (ends or is_best or step % training.save_every == 0):
            trainer.meter.stop_clock()
            trainer.save(score)
            saved = step
        if ends:
            if out_of_patience and not at_end:
                logger.info("no better validation in %d evaluations: stopping", progress.worse)
            return
        trainer.meter.start_clock()
        if profile_steps and trainer.step + 1 == profile_steps[0]:
            _profile(trainer, bar, min(profile_steps[1], training.num_steps))
        else:
            trainer.advance()
            bar.update()


def _check_profile(steps: tuple[int, int] | None, done: int, config: Config) -> None:
    last = config.training.num_steps
    if steps and not done < steps[0] <= last:
        raise ValueError(
            f"--profile_steps={steps[0]}:{steps[1]} has no effect: the run goes on after step "
            f"{done} and ends with step {last}"
        )


def _profile(trainer: Trainer, bar: tqdm, last: int) -> None:
    """Runs up to the last step of a trace, with nothing but updates in it."""
    folder = trainer.workdir / "profile"
    with jax.profiler.trace(str(folder)):
        while trainer.step < last:
            trainer.advance()
            bar.update()
        trainer.settle()
    logger.info("traced up to step %d: tensorboard --logdir=%s", last, folder)


@contextlib.contextmanager
def _progress_bar(trainer: Trainer) -> Iterator[tqdm]:
    """A bar on stderr, where log lines do not break it; redrawn seldom where nobody looks."""
    seconds = 0.5 if sys.stderr.isatty() else 30
    steps = {"initial": trainer.step, "total": trainer.config.training.num_steps}
    with (
        tqdm(**steps, unit="step", dynamic_ncols=True, mininterval=seconds) as bar,
        logging_redirect_tqdm([logging.getLogger()]),
    ):
        yield bar


def _show(bar: tqdm, smoothed: bool, step: int, report: dict[str, float]) -> None:
    """A report as a line, and its loss beside the bar, which has the time left."""
    logger.info(report_line(step, report, smoothed))
    bar.set_postfix_str(f"loss {report['loss']:.3f}", refresh=False)


def _test(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Scores the best checkpoint on the test corpus; keeps the scores and shows samples."""
    data = config.data
    languages = data.source_language, data.target_language
    test = parse_corpora(data.test, *languages, language_tags=data.language_tags)
    corpora = [(corpus, list(corpus)) for corpus in test]
    scores, translations = score_translator(Translator.from_workdir(workdir), corpora)
    (workdir / TEST_FILE).write_text(json.dumps(scores) + "\n")
    pairs = itertools.chain.from_iterable(pairs for _, pairs in corpora)
    for pair, translation in itertools.islice(zip(pairs, translations), _SAMPLES):
        print(f"source      {pair.source}")
        print(f"translation {translation.text}")
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
