"""Tiny models, stores, batches and configs that the tests share."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
from flax import nnx

from transformer_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from transformer_jax.data.batches import Batch
from transformer_jax.data.corpora import Pair, read_corpus
from transformer_jax.data.token_store import Side, TokenStore
from transformer_jax.data.vocabulary import EOS, Vocabulary
from transformer_jax.model.build import build
from transformer_jax.model.masks import Tokens

VOCAB_SIZE = 13
TINY = {"num_layers": 1, "model_dim": 8}
TINY_TRANSFORMER = {"num_heads": 2, "feed_forward_dim": 16}


def tiny_model_config(**fields) -> ModelConfig:
    """One layer of eight dimensions, without dropout, unless `fields` say otherwise."""
    transformer = TINY_TRANSFORMER if fields.get("kind", "transformer") == "transformer" else {}
    return ModelConfig(**TINY | transformer | {"dropout_rate": 0.0} | fields)


@functools.cache
def model_parts(vocab_size: int = VOCAB_SIZE, seed: int = 0, **fields):
    """Graph definition and parameters of `tiny_model_config(**fields)`."""
    config = tiny_model_config(**fields)
    abstract = nnx.eval_shape(lambda: build(config, vocab_size, rngs=nnx.Rngs(seed)))
    # No parameter depends on these two.
    config = dataclasses.replace(config, dropout_rate=0.0, dtype="float32")
    return nnx.split(abstract)[0], _parameters(vocab_size, seed, *vars(config).items())


@functools.cache
def _parameters(vocab_size: int, seed: int, *fields: tuple):
    """Parameters made in one program."""
    config = ModelConfig(**dict(fields))
    return jax.jit(lambda: nnx.split(build(config, vocab_size, rngs=nnx.Rngs(seed)))[1])()


def make_model(vocab_size: int = VOCAB_SIZE, seed: int = 0, **fields):
    """The model of `model_parts`."""
    return nnx.merge(*model_parts(vocab_size, seed, **fields))


def read_pairs(names: str, source: str, target: str, **options) -> list[Pair]:
    """All that `read_corpus` reads."""
    return list(read_corpus(names, source, target, **options))


def printed_by_two(script: str, *arguments: tuple[str, ...]) -> list[str]:
    """What two processes of a script print, whose hashes differ; each has its own arguments."""
    root = pathlib.Path(__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *own],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": str(seed)},
        )
        for seed, own in enumerate(arguments or ((), ()), 1)
    ]
    return [process.communicate(timeout=60)[0] for process in processes]


def random_store(
    pairs: int, longest: int = 29, seed: int = 0, vocab_size: int = VOCAB_SIZE
) -> TokenStore:
    """Pairs of random tokens, each side of 2 to `longest` and an EOS at its end."""
    random = np.random.default_rng(seed)

    def side() -> Side:
        ends = np.cumsum(random.integers(2, longest + 1, pairs))
        ids = random.integers(4, vocab_size, ends[-1])
        ids[ends - 1] = EOS
        return Side(ids.astype(np.uint16), np.append(0, ends))

    return TokenStore(side(), side(), {}, seed)


def random_batch(seed: int, rows: int = 8, length: int = 6) -> Batch:
    """Sentences of unequal lengths, so that a mean of means would be wrong."""
    random = np.random.default_rng(seed)

    def side(length: int) -> Tokens:
        ids = random.integers(4, VOCAB_SIZE, (rows, length)).astype(np.int32)
        positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        lengths = random.integers(2, length + 1, (rows, 1))
        return Tokens(ids, positions, (positions < lengths).astype(np.int32))

    target = side(length + 1)
    labels_BT = random.integers(4, VOCAB_SIZE, target.ids.shape).astype(np.int32)
    return Batch(side(length), target, labels_BT * target.segments)


def tiny_config(num_steps: int = 6, **sections: dict) -> Config:
    """A Transformer of 500 weights or so on 200 numbers, with dropout."""
    data = {"train": "numbers:train", "max_pairs": 200, "max_length": 40, "tokens_per_batch": 320}
    data |= {"vocab_size": 90, "vocabulary_kind": "bpe", "byte_fallback": False}
    training = {"log_every": 2, "save_every": 100, "num_steps": num_steps}
    if sections.get("data", {}).get("valid"):
        training |= {"eval_every": 0, "eval_sentences": 8}
    fields = {
        "data": data,
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 4, "clip_norm": 1.0},
        "training": training,
        "decoding": {"beam_size": 2, "max_length": 24, "rows": 8},
    }
    fields = {name: values | sections.get(name, {}) for name, values in fields.items()}
    return Config(
        model=tiny_model_config(**{"dropout_rate": 0.3} | sections.get("model", {})),
        data=DataConfig(**fields["data"]),
        optimizer=OptimizerConfig(**fields["optimizer"]),
        training=TrainingConfig(**fields["training"]),
        decoding=DecodingConfig(**fields["decoding"]),
    )


OPUS_SOURCES = ["two hundred and one", "seven hundred"]
OPUS_TARGETS = ["zweihunderteins", "siebenhundert"]


@functools.cache
def opus_files() -> tuple[bytes, bytes, bytes]:
    """source.spm, target.spm and vocab.json: two models, and one list of the pieces of both."""
    sides = [
        Vocabulary.train([[(x, x) for x in texts * 4]], 30, "bpe", byte_fallback=False)
        for texts in (OPUS_SOURCES, OPUS_TARGETS)
    ]
    pieces = [piece for side in sides for piece in side.pieces(range(4, len(side)))]
    pieces = ["</s>", "<unk>", *dict.fromkeys([*pieces, ">>deu<<"]), "<pad>"]
    numbers = json.dumps({piece: id for id, piece in enumerate(pieces)})
    return sides[0].model, sides[1].model, numbers.encode()
