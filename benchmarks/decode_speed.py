"""Decoding speed with random weights and forced length: one JSON line a run.

Every sentence has the same source length and runs for exactly --target_length tokens, so
that the figure is the speed of the search itself, from token ids to token ids:

    python benchmarks/decode_speed.py --preset=base --rows=32 --beam=4

With --peer=COMMAND the peer's benchmark runs before and after in the same session; it must
print a JSON line with target_tokens_per_s, and ratio_to_peer is ours over its mean.
"""

import functools
import json
import resource
import statistics
import time

import jax
import numpy as np
from absl import app, flags
from beside import PRESETS, beside_peer, model_config
from flax import nnx

from transformer_jax import allocator
from transformer_jax.config import DecodingConfig
from transformer_jax.data.vocabulary import EOS
from transformer_jax.decoding.engine import Models, Sentence, translate
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.devices import replicate
from transformer_jax.model.transformer import Transformer

_PRESET = flags.DEFINE_enum("preset", "base", PRESETS, "Size of the model.")
_ROWS = flags.DEFINE_integer("rows", 32, "Sentences; above 1, filled up to eights.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("source_length", 30, "Tokens of each source.", lower_bound=2)
_TARGET = flags.DEFINE_integer("target_length", 30, "Tokens of each translation.", lower_bound=2)
_BEAM = flags.DEFINE_integer("beam", 4, "Hypotheses of the beam; 1 = greedy.", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab", 32768, "Entries of the vocabulary.", lower_bound=8)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Times that are timed.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_PEER = flags.DEFINE_string("peer", "", "Command of a peer's benchmark to run beside this one.")


def measure() -> dict:
    """Times the search; seconds and target tokens a second."""
    config = model_config(_PRESET.value, _DTYPE.value)
    graphdef, params = nnx.split(
        nnx.jit(lambda: Transformer(config, _VOCAB.value, rngs=nnx.Rngs(0)))()
    )
    random = np.random.default_rng(0)
    shape = (_ROWS.value, _SOURCE.value - 1)
    sentences = [
        Sentence(id, [*source, EOS], max_length=_TARGET.value, min_length=_TARGET.value)
        for id, source in enumerate(random.integers(4, _VOCAB.value, shape).tolist())
    ]
    devices = jax.local_device_count()
    decode = functools.partial(
        translate,
        Models((graphdef,), (replicate(params),)).prepared(),
        sentences,
        SearchOptions(
            beam_size=_BEAM.value,
            rows=1 if _ROWS.value == 1 else -(-_ROWS.value // (8 * devices)) * 8,
            max_length=max(_SOURCE.value, _TARGET.value),
            max_length_ratio=(_TARGET.value + 0.5) / _SOURCE.value,
        ).resolved(DecodingConfig()),
    )
    seconds = []
    for _ in range(1 + _REPEATS.value):
        start = time.perf_counter()
        tokens = sum(int((found.tokens[0] != 0).sum()) for _, found in decode())
        seconds.append(time.perf_counter() - start)
    assert tokens == _ROWS.value * _TARGET.value
    median = statistics.median(seconds[1:])
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "first_s": seconds[0],
        "seconds_min": min(seconds[1:]),
        "seconds_median": median,
        "tokens": tokens,
        "target_tokens_per_s": tokens / median,
        "peak_device_bytes": memory.get("peak_bytes_in_use"),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main(_) -> None:
    described = {
        "benchmark": "decode_speed",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "preset": _PRESET.value,
        "rows": _ROWS.value,
        "beam": _BEAM.value,
        "source_length": _SOURCE.value,
        "target_length": _TARGET.value,
        "vocab": _VOCAB.value,
        "dtype": _DTYPE.value,
    }
    print(json.dumps(described | beside_peer(measure, _PEER.value)), flush=True)


if __name__ == "__main__":
    allocator.share_arena()
    allocator.keep_freed_memory()  # as decode.py does
    app.run(main)
