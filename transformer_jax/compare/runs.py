"""One run of a comparison: its training, its translations of the test corpus, its speed.

Each function runs in a process of its own, so that a run that dies takes nothing with it and
gives back all memory, that of the accelerator too.
"""

import contextlib
import copy
import json
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

from transformer_jax.checkpoint import CONFIG_FILE, VOCABULARY_FILE, read_config
from transformer_jax.compare.plan import Budget, Run, settled
from transformer_jax.config import Config, reset_idle_fields
from transformer_jax.data.corpora import Corpus, Pair, parse_corpora, read_corpus
from transformer_jax.data.datasets import training_batches
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import check_devices
from transformer_jax.training.loop import train
from transformer_jax.training.metrics import FILE as METRICS_FILE
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.workdir import load_data

logger = logging.getLogger(__name__)

_SPEED_SECONDS, _SPEED_STEPS = 15.0, 200  # of training that a speed is measured over, at most
_SPEED_SENTENCES = 256  # of the test corpus that decoding is timed on


def run_training(run: Run, budget: Budget) -> int:
    """Trains until the budget is spent, going on where an earlier call stopped; exit status."""
    if (run.workdir / CONFIG_FILE).is_file():
        num_steps = read_config(run.workdir).training.num_steps
    else:
        num_steps = _steps(settled(run, 1), budget)
    return train(settled(run, num_steps), run.workdir).status


def _steps(config: Config, budget: Budget) -> int:
    """Updates that the budget allows: their mean number of tokens, or their time, is known."""
    if budget.train_seconds:
        return max(round(budget.train_seconds / training_speed(config)["seconds_per_step"]), 1)
    with tempfile.TemporaryDirectory() as aside:
        data = load_data(pathlib.Path(aside), config)
    batches = training_batches(config, data)(config.data.tokens_per_batch)
    tokens = [store.target.ids.size for store in data.train]
    each = float(np.sum(tokens / np.asarray(batches.steps_per_epoch)))
    return max(round(budget.target_tokens / each), 1)


def training_speed(config: Config) -> dict[str, float]:
    """Target tokens a second and seconds a step, of a run that leaves nothing behind."""
    config = copy.deepcopy(config)
    # No report and no save in between.
    config.training.log_every = config.training.save_every = config.training.num_steps = 10**9
    config.data.valid = config.data.test = ""
    reset_idle_fields(config)
    with (
        tempfile.TemporaryDirectory() as aside,
        contextlib.closing(Trainer(config, aside)) as trainer,
    ):
        for _ in range(5):  # the first steps still map memory
            trainer.advance()
        trainer.settle()
        trainer.meter.report()
        end = time.monotonic() + _SPEED_SECONDS, trainer.step + _SPEED_STEPS
        while time.monotonic() < end[0] and trainer.step < end[1]:
            trainer.advance()
        trainer.settle()
        report = trainer.meter.report()
    return {name: report[name] for name in ("target_tokens_per_s", "seconds_per_step")}


def speed(run: Run) -> dict[str, float]:
    """How fast a trained run trains, and translates sentences of the test corpus."""
    config = read_config(run.workdir)
    config.data.vocabulary = str(run.workdir / VOCABULARY_FILE)
    trained = training_speed(config)
    sources = [pair.source for pair in read_pairs(run.config, run.config.data.test)]
    sources = sources[:_SPEED_SENTENCES]
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


def evaluate(run: Run, samples: Sequence[int]) -> dict[str, Any]:
    """What the report says of a trained run by itself, but for scores and speed.

    Args:
      run: whose best checkpoint is taken.
      samples: numbers of the test sentences that are shown with their attention.
    """
    translator = Translator.from_workdir(run.workdir)
    pairs = read_pairs(run.config, run.config.data.test)
    translations = translator.translate([pair.source for pair in pairs])
    truncated = sum(translation.truncated for translation in translations)
    if truncated:
        logger.warning(
            "%d test sentences are longer than max_length: their ends were cut", truncated
        )
    config = read_config(run.workdir)
    with tempfile.TemporaryDirectory() as aside:
        config.data.vocabulary = str(run.workdir / VOCABULARY_FILE)
        stores = load_data(pathlib.Path(aside), config).train
    curves = learning_curves(run.workdir)
    (params,) = translator.models.params
    return curves | {
        "hypotheses": [translation.text for translation in translations],
        "truncated": truncated,
        "pairs": sum(map(len, stores)),
        "epoch_tokens": sum(store.target.ids.size for store in stores),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "samples": [_sample(translator, pairs[i], translations[i]) for i in samples],
    }


def _sample(translator: Translator, pair: Pair, translation) -> dict[str, Any]:
    sample = {"source": pair.source, "reference": pair.target, "translation": translation.text}
    sample["attention"] = None
    if "cross" in translator.attention_shape and pair.source and not translation.truncated:
        attention = translator.attention(pair.source, translation.hypotheses[0])
        sample["attention"] = {
            "source_tokens": attention.source_tokens,
            "target_tokens": attention.target_tokens,
            # The mean of all layers and heads.
            "weights": attention.cross.mean(axis=(0, 1)).astype(float).round(4).tolist(),
        }
    return sample


def read_pairs(config: Config, corpus: str) -> list[Pair]:
    """The sentence pairs of a corpus."""
    data = config.data
    languages = data.source_language, data.target_language
    return list(read_corpus(corpus, *languages, language_tags=data.language_tags))


def first_corpus(config: Config) -> Corpus:
    """The test corpus, or the first of several, in whose language all of them are scored."""
    data = config.data
    return parse_corpora(data.test, data.source_language, data.target_language)[0]


def learning_curves(workdir: pathlib.Path) -> dict[str, Any]:
    """The course of a run by updates and target tokens, from what it logged.

    Tokens are counted up to each report; what comes after one goes on as it did before.
    """
    text = (workdir / METRICS_FILE).read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    step, tokens = 0, 0.0

    def here(at: int) -> dict[str, Any]:
        return {"step": at, "target_tokens": round(tokens * at / step) if step else None}

    loss_curve, valid_curve = [], []
    for record in records:
        if "loss" in record:
            seconds = record["seconds_per_step"] * (record["step"] - step)
            step, tokens = record["step"], tokens + seconds * record["target_tokens_per_s"]
            values = {name: record[name] for name in ("loss", "perplexity", "gradient_norm")}
            loss_curve.append(here(step) | values)
        else:
            names = ("loss", "perplexity", "bleu", "chrf")
            valid_curve.append(here(record["step"]) | {n: record[f"valid_{n}"] for n in names})
    updates = read_config(workdir).training.num_steps
    return {
        "updates": updates,
        "target_tokens": here(updates)["target_tokens"],
        "loss_curve": loss_curve,
        "valid_curve": valid_curve,
    }


def machine() -> dict[str, Any]:
    """What the runs run on; ValueError where that is nothing."""
    check_devices()
    return {
        "device": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }
