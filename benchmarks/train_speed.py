"""Training speed on dense synthetic batches: one JSON line a run.

The training objective as it is (dropout 0.1, smoothing 0.1, clipping, Adam), every step
waited for, so that the figure is the speed of the arithmetic alone:

    python benchmarks/train_speed.py --preset=tiny --rows=64 --length=32 --vocab=8000

With --peer=COMMAND the peer's benchmark runs before and after in the same session; it must
print a JSON line with target_tokens_per_s, and ratio_to_peer is ours over its mean.
"""

import json
import resource
import statistics
import time

import jax
import numpy as np
import optax
from absl import app, flags
from beside import PRESETS, beside_peer, model_config
from flax import nnx

from transformer_jax import allocator
from transformer_jax.config import OptimizerConfig
from transformer_jax.data.batches import Batch
from transformer_jax.devices import parallel, place, replicate
from transformer_jax.model.masks import Tokens
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.loss import max_logits
from transformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from transformer_jax.training.step import TrainState, make_train_step

_PRESET = flags.DEFINE_enum("preset", "base", PRESETS, "Size of the model.")
_ROWS = flags.DEFINE_integer("rows", 8, "Sentence pairs a step.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens a side of each pair.", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab", 32768, "Entries of the vocabulary.", lower_bound=8)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps that are timed.", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 3, "Steps before them.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_LOGITS_MIB = flags.DEFINE_float("logits_mib", 0.0, "As config.training.logits_mib.")
_PEER = flags.DEFINE_string("peer", "", "Command of a peer's benchmark to run beside this one.")


def synthetic_batch(random: np.random.Generator) -> Batch:
    """Full rows of random words."""

    def side(length: int) -> Tokens:
        shape = (_ROWS.value, length)
        positions = np.tile(np.arange(length, dtype=np.int32), (_ROWS.value, 1))
        ids = random.integers(4, _VOCAB.value, shape).astype(np.int32)
        return Tokens(ids, positions, np.ones(shape, np.int32))

    target = side(_LENGTH.value)
    return Batch(side(_LENGTH.value), target, np.roll(target.ids, -1, axis=1))


def measure() -> dict:
    """Times the steps; seconds and target tokens a second."""
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


def main(_) -> None:
    described = {
        "benchmark": "train_speed",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "preset": _PRESET.value,
        "rows": _ROWS.value,
        "length": _LENGTH.value,
        "vocab": _VOCAB.value,
        "dtype": _DTYPE.value,
    }
    print(json.dumps(described | beside_peer(measure, _PEER.value)), flush=True)


if __name__ == "__main__":
    allocator.share_arena()
    allocator.keep_freed_memory()  # as train.py does
    app.run(main)
