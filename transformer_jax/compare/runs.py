"""One run of a comparison: its training, its translations of the test corpus, its speed.

Each function runs in a process of its own, so that a run that dies takes nothing with it and
gives back all memory, that of the accelerator too.
"""

import contextlib
import copy
import logging
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from transformer_jax.compare.plan import Budget, Run, settled
from transformer_jax.config import Config, reset_idle_fields
from transformer_jax.data.corpora import Corpus, Pair, parse_corpora
from transformer_jax.data.datasets import RunData, training_batches
from transformer_jax.decoding.translator import Translation, Translator
from transformer_jax.devices import check_devices
from transformer_jax.evaluation import bleu_tokenizer
from transformer_jax.saved_run import CONFIG_FILE, VOCABULARY_FILE, read_config
from transformer_jax.storage import from_json, removed
from transformer_jax.training.loop import train
from transformer_jax.training.metrics import FILE as METRICS_FILE
from transformer_jax.training.run import load_data
from transformer_jax.training.trainer import Trainer

logger = logging.getLogger(__name__)

_SPEED_SECONDS, _SPEED_STEPS = 15.0, 200  # of training that a speed is measured over, at most
_SPEED_SENTENCES = 256  # of the test corpus that decoding is timed on


def machine() -> dict[str, Any]:
    """What the runs run on; ValueError where that is nothing."""
    check_devices()
    return {
        "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def read_test(config: Config) -> tuple[Corpus, list[Pair]]:
    """The first test corpus, whose languages stand for those of all, and the pairs of all."""
    data = config.data
    languages = data.source_language, data.target_language
    corpora = parse_corpora(data.test, *languages, language_tags=data.language_tags)
    tokenizers = {bleu_tokenizer(x.target_language): x.target_language for x in corpora}
    if len(tokenizers) > 1:
        raise ValueError(
            f"config.data.test={data.test} has target languages with different tokenizers of BLEU, "
            f"such as {' and '.join(tokenizers.values())}: expected one, for one score of all"
        )
    pairs = [pair for corpus in corpora for pair in corpus]
    if not pairs:
        raise ValueError(f"the test corpus {data.test} is empty")
    return corpora[0], pairs


def train_and_evaluate(run: Run, budget: Budget, samples: Sequence[int]) -> dict[str, Any]:
    """Trains until the budget is spent, going on where an earlier call stopped; then `_evaluate`s.

    ValueError where a signal stopped it.
    """
    data = _load_data(run)
    if (run.workdir / CONFIG_FILE).is_file():
        num_steps = read_config(run.workdir).training.num_steps
    else:
        num_steps = _steps(settled(run, 1), budget, data)
    result = train(settled(run, num_steps), run.workdir)
    if result.signal:
        raise ValueError(f"{result.signal.name} stopped it at step {result.step}")
    return _evaluate(run, data, samples)


def _load_data(run: Run) -> RunData:
    """What the run reads; ValueError where its vocabulary lacks a tag of the test corpus."""
    config = settled(run, 1)
    config.data.test = run.config.data.test
    return load_data(run.workdir, config)


def _steps(config: Config, budget: Budget, data: RunData) -> int:
    """Updates that the budget allows: their mean number of tokens, or their time, is known."""
    if budget.train_seconds:
        return max(round(budget.train_seconds / training_speed(config)["seconds_per_step"]), 1)
    batches = training_batches(config, data)(config.data.tokens_per_batch)
    tokens = [store.target.ids.size for store in data.train]
    each = float(np.sum(tokens / np.asarray(batches.steps_per_epoch)))
    return max(round(budget.target_tokens / each), 1)


def _evaluate(run: Run, data: RunData, samples: Sequence[int]) -> dict[str, Any]:
    """What the report says of a trained run by itself, but for scores and speed.

    Args:
      run, data: whose best checkpoint is taken, and what it was trained on.
      samples: numbers of the test sentences that are shown with their attention.
    """
    translator = Translator.from_workdir(run.workdir)
    _, pairs = read_test(run.config)
    translations = translator.translate([pair.source for pair in pairs])
    truncated = sum(translation.truncated for translation in translations)
    if truncated:
        logger.warning(
            "%d test sentences are longer than max_length: their ends were cut", truncated
        )
    return _learning_curves(run.workdir) | {
        "hypotheses": [translation.text for translation in translations],
        "truncated": truncated,
        "pairs": sum(map(len, data.train)),
        "epoch_tokens": sum(store.target.ids.size for store in data.train),
        "parameters": sum(x.size for x in jax.tree.leaves(translator.models.params)),
        "samples": [_sample(translator, pairs[i], translations[i]) for i in samples],
    }


def _sample(translator: Translator, pair: Pair, translation: Translation) -> dict[str, Any]:
    """A translation, and its cross-attention, the mean of all layers and heads, if it has one."""
    sample = {"source": pair.source, "reference": pair.target, "translation": translation.text}
    if "cross" not in translator.attention_shape or not pair.source or translation.truncated:
        return sample | {"attention": None}
    attention = translator.attention(pair.source, translation.hypotheses[0])
    weights = attention.cross.mean(axis=(0, 1)).astype(float).round(4).tolist()
    tokens = {name: getattr(attention, name) for name in ("source_tokens", "target_tokens")}
    return sample | {"attention": tokens | {"weights": weights}}


def _learning_curves(workdir: pathlib.Path) -> dict[str, Any]:
    """The course of a run by updates and target tokens, from what it logged.

    Tokens are counted up to each report; what comes after one goes on as it did before.
    """
    step, tokens, loss_curve, valid_curve = 0, 0.0, [], []

    def tokens_at(later: int) -> int | None:
        return round(tokens * later / step) if step else None

    for line in (workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines():
        record = from_json(line)
        training = "loss" in record
        if training:
            seconds = record["seconds_per_step"] * (record["step"] - step)
            step, tokens = record["step"], tokens + seconds * record["target_tokens_per_s"]
        point = {"step": record["step"], "target_tokens": tokens_at(record["step"])}
        if training:
            names = ("loss", "perplexity", "gradient_norm")
            loss_curve.append(point | {name: record[name] for name in names})
        elif "valid_loss" in record:  # not an event
            names = ("loss", "perplexity", "bleu", "chrf")
            valid_curve.append(point | {name: record[f"valid_{name}"] for name in names})
    updates = read_config(workdir).training.num_steps
    return {
        "updates": updates,
        "target_tokens": tokens_at(updates),
        "loss_curve": loss_curve,
        "valid_curve": valid_curve,
    }


def training_speed(config: Config) -> dict[str, float]:
    """Target tokens a second and seconds a step, of a run that leaves nothing behind."""
    config = copy.deepcopy(config)
    # No report and no save in between.
    config.training.log_every = config.training.save_every = config.training.num_steps = 10**9
    config.data.valid = config.data.test = ""
    reset_idle_fields(config)
    with (
        tempfile.TemporaryDirectory() as folder,
        removed(folder),
        contextlib.closing(Trainer(config, folder)) as trainer,
    ):
        for _ in range(5):  # the first steps still map memory
            trainer.advance()
        trainer.settle()
        trainer.meter.report()
        end, last = time.monotonic() + _SPEED_SECONDS, trainer.step + _SPEED_STEPS
        while time.monotonic() < end and trainer.step < last:
            trainer.advance()
        trainer.settle()
        report = trainer.meter.report()
    return {name: report[name] for name in ("target_tokens_per_s", "seconds_per_step")}


def speed(run: Run) -> dict[str, float]:
    """How fast a trained run trains, and translates sentences of the test corpus."""
    config = read_config(run.workdir)
    config.data.vocabulary = str(run.workdir / VOCABULARY_FILE)
    trained = training_speed(config)
    sources = [pair.source for pair in read_test(run.config)[1][:_SPEED_SENTENCES]]
    translator = Translator.from_workdir(run.workdir)
    translator.translate(sources)  # compiles
    start = time.monotonic()
    translations = translator.translate(sources)
    seconds = time.monotonic() - start
    tokens = sum(len(translation.hypotheses[0].ids) + 1 for translation in translations)
    return {
        "train_tokens_per_s": trained["target_tokens_per_s"],
        "decode_tokens_per_s": tokens / seconds,
    }
