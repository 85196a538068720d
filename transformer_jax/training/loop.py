"""The training loop: step, evaluate, save, stop; then score the test corpus."""

import contextlib
import functools
import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Iterator

import jax
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from transformer_jax.config import Config
from transformer_jax.data.corpus import read_corpus
from transformer_jax.decoding.translator import Translator
from transformer_jax.evaluation import score_translator
from transformer_jax.paths import local_folder
from transformer_jax.training.interrupt import Interrupt, Interrupted
from transformer_jax.training.trainer import Trainer

logger = logging.getLogger(__name__)

TEST_FILE = "test.json"
_SAMPLES = 5  # translations shown beside their references at the end


def train(
    config: Config, workdir: str | os.PathLike, profile_steps: tuple[int, int] | None = None
) -> int:
    """Trains until the config's last step, going on where an earlier call stopped.

    Args:
      config: of the run.
      workdir: all that the run leaves: config, vocabulary, checkpoints, metrics.
      profile_steps: first and last step, from 1, of a `jax.profiler` trace in
        workdir/profile; in between nothing is evaluated or saved.

    Returns:
      The exit status: 0 at the end, 128 + its number after a signal.

    Raises:
      ValueError, OSError: what the user can mend, in one sentence.
    """
    start, workdir = time.monotonic(), local_folder(workdir)
    _check_profile(profile_steps, 0, config)
    trainer = Trainer(config, workdir)
    with Interrupt() as interrupt:
        with contextlib.closing(trainer), _progress_bar(trainer) as bar:
            _check_profile(profile_steps, trainer.step, config)
            trainer.on_report = functools.partial(_show, bar)
            run_to_end(trainer, interrupt, bar, profile_steps)
            step = trainer.step
        if interrupt.signal:
            logger.warning(
                "stopped by %s at step %d; the same command goes on from there",
                interrupt.signal.name,
                step,
            )
            return 128 + interrupt.signal
    logger.info("trained to step %d in %.0f s", step, time.monotonic() - start)
    if config.data.test:
        _test(config, workdir)
    print(
        f"To translate: python decode.py --workdir={workdir} < FILE   (a sentence a line)",
        flush=True,
    )
    return 0


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


def _show(bar: tqdm, step: int, report: dict[str, float]) -> None:
    """A report as a line, and its main figures beside the bar."""
    logger.info(
        "step %d: loss %.4f, perplexity %.2f, accuracy %.3f, probability %.3f, learning rate "
        "%.2e, gradient norm %.2f, %.0f target tokens/s, %.1f %% real tokens, %.2f ms a step "
        "waiting for data, epochs %s, %.0f s left",
        step,
        *(report[n] for n in "loss perplexity accuracy probability learning_rate".split()),
        report["gradient_norm"],
        report["target_tokens_per_s"],
        100 * report["fill"],
        1000 * report["data_wait_s_per_step"],
        " ".join(f"{epochs:.2f}" for epochs in report["epochs"]),
        report["seconds_left"],
    )
    bar.set_postfix_str(f"loss {report['loss']:.3f}", refresh=False)


def _test(config: Config, workdir: pathlib.Path) -> None:
    """Scores the best checkpoint on the test corpus; keeps the scores and shows samples."""
    data = config.data
    languages = data.source_language, data.target_language
    pairs = list(read_corpus(data.test, *languages, language_tags=data.language_tags))
    scores, translations = score_translator(Translator.from_workdir(workdir), pairs)
    (workdir / TEST_FILE).write_text(json.dumps(scores) + "\n")
    for pair, translation in list(zip(pairs, translations))[:_SAMPLES]:
        print(f"source      {pair.source}")
        print(f"translation {translation.text}")
        print(f"reference   {pair.target}\n")
    print(
        f"{data.test}: BLEU {scores['bleu']:.2f}, chrF {scores['chrf']:.2f}, exact match "
        f"{scores['exact_match']:.1%} of {scores['sentences']} ({scores['seconds']:.0f} s)"
    )
