"""bfloat16 beside float32: one JSON line.

    python benchmarks/precision.py --config=quickstart
    python benchmarks/precision.py --config=multi30k_en_de --train=text:D/train --valid=text:D/valid

Trains the config twice, alike but for the dtype of the computation: `losses` has [step, float32,
bfloat16]. The parameters of the first then give references and translations in both: differences
of log-probabilities are in nats, of a token and of a sentence.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np
from absl import app, flags

from transformer_jax import Translator, allocator, train
from transformer_jax.config import Config, load_config
from transformer_jax.data.corpora import read_corpus
from transformer_jax.decoding.engine import Models
from transformer_jax.devices import replicate
from transformer_jax.model.build import abstract_model
from transformer_jax.saved_run import load_run

_CONFIG = flags.DEFINE_string("config", "quickstart", "A ready config's name, or a file.")
_TRAIN = flags.DEFINE_string("train", "", "Corpora to train on in place of the config's.")
_VALID = flags.DEFINE_string("valid", "", "Corpora to score in place of the config's.")
_STEPS = flags.DEFINE_integer("steps", 500, "Updates.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 50, "Updates of a reported loss.", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 500, "Pairs of the validation corpus.", lower_bound=1)

DTYPES = "float32", "bfloat16"


def config_in(dtype: str) -> Config:
    """The config of a run without evaluations."""
    config = load_config(_CONFIG.value)
    config.model.dtype, config.training.num_steps = dtype, _STEPS.value
    config.training.log_every, config.training.save_every = _EVERY.value, _STEPS.value
    config.data.train = _TRAIN.value or config.data.train
    config.data.valid = _VALID.value or config.data.valid
    config.training.eval_every, config.training.best_metric = 0, "loss"
    config.training.eval_sentences, config.data.test = 8, ""
    return config


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """Training losses of a run by step."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text("utf-8").splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def translator(workdir: pathlib.Path, dtype: str) -> Translator:
    """Of a run's parameters, computing in `dtype`."""
    config, vocabulary, _, params = load_run(workdir, "last")
    config.model.dtype = dtype
    graphdef, _ = abstract_model(config.model, len(vocabulary))
    return Translator(Models((graphdef,), (replicate(params),)), vocabulary, config)


def differences(workdir: pathlib.Path) -> dict[str, float]:
    """Of both dtypes on the same parameters: log-probabilities of references, translations."""
    config = config_in("float32")
    languages = config.data.source_language, config.data.target_language
    pairs = [(x.source, x.target) for x in read_corpus(config.data.valid, *languages)]
    pairs = pairs[: _PAIRS.value]
    exact, rounded = (translator(workdir, dtype) for dtype in DTYPES)
    scores = list(zip(exact.score(pairs), rounded.score(pairs), strict=True))
    tokens = np.concatenate([np.subtract(x.log_probs, y.log_probs) for x, y in scores])
    sentences = np.array([x.log_prob - y.log_prob for x, y in scores])
    texts = [[t.text for t in x.translate([s for s, _ in pairs])] for x in (exact, rounded)]
    return {
        "tokens": len(tokens),
        "nats_a_token": float(-np.concatenate([x.log_probs for x, _ in scores]).mean()),
        "token_difference_largest": float(abs(tokens).max()),
        "token_difference_mean": float(abs(tokens).mean()),
        "token_bias": float(tokens.mean()),
        "sentence_difference_largest": float(abs(sentences).max()),
        "sentence_difference_mean": float(abs(sentences).mean()),
        "same_translations": float(np.mean([x == y for x, y in zip(*texts)])),
    }


def main(_) -> None:
    with tempfile.TemporaryDirectory() as folder:
        workdirs = [pathlib.Path(folder) / dtype for dtype in DTYPES]
        for workdir, dtype in zip(workdirs, DTYPES):
            train(config_in(dtype), workdir)
        by_step = list(map(losses, workdirs))
        result = {
            "benchmark": "precision",
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "config": _CONFIG.value,
            "losses": [[step, *(x[step] for x in by_step)] for step in by_step[0]],
        }
        print(json.dumps(result | differences(workdirs[0])), flush=True)


if __name__ == "__main__":
    allocator.share_arena()
    allocator.keep_freed_memory()
    app.run(main)
