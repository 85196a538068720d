"""Training speed: one JSON line a run.

On dense synthetic batches, every step waited for, the figure is the speed of the arithmetic alone,
of the training objective as it is (dropout 0.1, smoothing 0.1, clipping, Adam):

    python benchmarks/train_speed.py --preset=tiny --rows=64 --length=32 --vocab=8000

With --config it is the speed of a run, in target tokens that are no padding:

    python benchmarks/train_speed.py --config=multi30k_en_de --steps=100

--peer=transformers,transformers:bfloat16,joeynmt runs Hugging Face's MarianMTModel, or JoeyNMT's
Transformer, of the same sizes before and after in the same session, a line each: on such batches,
or on the run's own pairs in batches of the same budget of tokens, sorted by length. --peer_python
is the Python of another environment that has them. With --peer=COMMAND another benchmark runs,
whose last line must be JSON with target_tokens_per_s. ratio_to_peer is our speed over the mean of
the peer's.
"""

import contextlib
import functools
import json
import os
import pathlib
import resource
import statistics
import time

import jax
import numpy as np
import optax
from absl import app, flags
from beside import PEER_HELP, PEER_PYTHON, PRESETS, beside_peers, model_config, timed_run
from flax import nnx

from transformer_jax import allocator, cli
from transformer_jax.config import Config, ModelConfig, OptimizerConfig, load_config
from transformer_jax.data.batches import Batch
from transformer_jax.data.vocabulary import PAD
from transformer_jax.devices import parallel, place, replicate
from transformer_jax.model.masks import Tokens
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.loss import max_logits
from transformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from transformer_jax.training.step import TrainState, make_train_step
from transformer_jax.training.trainer import Trainer

_PRESET = flags.DEFINE_enum("preset", "base", PRESETS, "Size of the model.")
_ROWS = flags.DEFINE_integer("rows", 8, "Sentence pairs a step.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens a side of each pair.", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab", 32768, "Entries of the vocabulary.", lower_bound=8)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps that are timed.", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 3, "Steps before them.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_LOGITS_MIB = flags.DEFINE_float("logits_mib", 0.0, "As config.training.logits_mib.")
_PEER = flags.DEFINE_string("peer", "", PEER_HELP)
_CONFIG = flags.DEFINE_string("config", "", "A run's, in place of synthetic batches of a preset.")
_TRAIN = flags.DEFINE_string("train", "", "As config.data.train.")
_VALID = flags.DEFINE_string("valid", "", "As config.data.valid.")


def synthetic_batch(random: np.random.Generator) -> Batch:
    """Full rows of random words."""

    def side(length: int) -> Tokens:
        shape = (_ROWS.value, length)
        positions = np.tile(np.arange(length, dtype=np.int32), (_ROWS.value, 1))
        ids = random.integers(4, _VOCAB.value, shape).astype(np.int32)
        return Tokens(ids, positions, np.ones(shape, np.int32))

    target = side(_LENGTH.value)
    return Batch(side(_LENGTH.value), target, np.roll(target.ids, -1, axis=1))


def measure_arithmetic() -> dict:
    """Times steps on synthetic batches; seconds and target tokens a second."""
    model = model_config(_PRESET.value, _DTYPE.value)
    config = OptimizerConfig(clip_norm=1.0)
    schedule = learning_rate_schedule(config, model.model_dim, 100_000)
    optimizer: optax.GradientTransformation = make_optimizer(config, schedule)
    graphdef, params = nnx.split(
        nnx.jit(lambda: Transformer(model, _VOCAB.value, rngs=nnx.Rngs(0)))()
    )
    options = {"max_logits": max_logits(_LOGITS_MIB.value, jax.default_backend())}
    body = make_train_step(graphdef, optimizer, schedule, seed=0, smoothing=0.1, **options)
    step = parallel(body, donate_state=True)
    state = replicate(TrainState(np.int32(0), params, jax.jit(optimizer.init)(params)))
    random = np.random.default_rng(0)
    batches = [place(synthetic_batch(random)) for _ in range(4)]
    seconds = []
    for number in range(_WARMUP.value + _STEPS.value):
        start = time.perf_counter()
        state, metrics = step(state, batches[number % 4])
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    timed = seconds[_WARMUP.value :]
    median = statistics.median(timed)
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "first_step_s": seconds[0],
        "step_s_min": min(timed),
        "step_s_median": median,
        "step_s_max": max(timed),
        "target_tokens_per_s": _ROWS.value * _LENGTH.value / median,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "peak_device_bytes": memory.get("peak_bytes_in_use"),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loss": float(metrics["loss"] / metrics["tokens"]),
    }


def config_of_run() -> Config:
    """The config that the flags ask for."""
    config = load_config(_CONFIG.value)
    config.data.train = _TRAIN.value or config.data.train
    config.data.valid = _VALID.value or config.data.valid
    config.data.test = ""  # neither read nor fetched
    config.model.dtype = _DTYPE.value
    return config


def measure_run(trainer: Trainer) -> dict:
    """Times the next updates of a run; target tokens, padding left out, a second."""
    for _ in range(_WARMUP.value):
        trainer.advance()
    trainer.settle()
    steps = range(trainer.step, trainer.step + _STEPS.value)
    labels = [trainer.batches.batch_at(step).labels for step in steps]
    tokens = sum(int((x != PAD).sum()) for x in labels)
    start = time.perf_counter()
    for _ in steps:
        trainer.advance()
    trainer.settle()
    seconds = time.perf_counter() - start
    return {
        "step_s_mean": seconds / len(steps),
        "target_tokens_per_s": tokens / seconds,
        "target_tokens": tokens / len(steps),
        "target_packing_efficiency": tokens / sum(x.size for x in labels),
        "parameters": sum(x.size for x in jax.tree.leaves(trainer.params)),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def job(config: ModelConfig, vocab_size: int, peer: str, folder: pathlib.Path) -> dict:
    """The same on synthetic batches for a peer."""
    sizes = {f"{side}_layers": config.num_layers for side in ("encoder", "decoder")}
    sizes |= {f"{side}_attention_heads": config.num_heads for side in ("encoder", "decoder")}
    sizes |= {f"{side}_ffn_dim": config.feed_forward_dim for side in ("encoder", "decoder")}
    sizes |= {"vocab_size": vocab_size, "d_model": config.model_dim, "dropout": config.dropout_rate}
    return {
        "work": "training",
        "sizes": sizes,
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
        "dtype": _DTYPE.value,
        "smoothing": 0.1,
        "shape": [_ROWS.value, _LENGTH.value],
        "warmup": _WARMUP.value,
        "repeats": _STEPS.value,
        "threads": len(os.sched_getaffinity(0)),
    }


def job_of_run(trainer: Trainer, peer: str, folder: pathlib.Path) -> dict:
    """The same on a run's pairs for a peer."""
    config: Config = trainer.config
    described = job(config.model, len(trainer.data.vocabulary), peer, folder)
    del described["shape"]
    (store,) = trainer.batches.stores
    sides = {"source": store.source, "target": store.target}
    arrays = {f"{name}_ids": side.ids for name, side in sides.items()}
    arrays |= {f"{name}_ends": side.offsets[1:] for name, side in sides.items()}
    np.savez(folder / "pairs.npz", **arrays)
    return described | {
        "smoothing": config.training.label_smoothing,
        "pairs": str(folder / "pairs.npz"),
        "tokens_per_batch": config.data.tokens_per_batch,
    }


def main(_) -> None:
    described = {
        "benchmark": "train_speed",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "dtype": _DTYPE.value,
    }
    with contextlib.ExitStack() as stack:
        if _CONFIG.value:
            cli.log_to_stderr()
            trainer = stack.enter_context(timed_run(config_of_run()))
            described["config"] = _CONFIG.value
            both = functools.partial(measure_run, trainer), functools.partial(job_of_run, trainer)
        else:
            names = (_PRESET, _ROWS, _LENGTH, _VOCAB)
            described |= {name.name: name.value for name in names}
            model = model_config(_PRESET.value, _DTYPE.value)
            both = measure_arithmetic, functools.partial(job, model, _VOCAB.value)
        for result in beside_peers(both[0], _PEER.value, both[1], PEER_PYTHON.value):
            print(json.dumps(described | result), flush=True)


if __name__ == "__main__":
    allocator.share_arena()
    allocator.keep_freed_memory()  # as train.py does
    app.run(main)
