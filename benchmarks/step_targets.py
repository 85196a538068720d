"""A train step of 64 rows of 256 tokens a device, for machines that are not there: one JSON line.

    JAX_PLATFORMS=cpu python benchmarks/step_targets.py --target=tpu:v5e:2x2 --preset=big
    JAX_PLATFORMS=cpu python benchmarks/step_targets.py --target=gpu:h100:8 --devices=8

By the machine's own compiler: what a step takes of memory, launches (a loop's as often as it goes
round) and communicates. compile_cpu_s is the processor's time, which other work does not change.
"""

import json
import time

import jax
from absl import app, flags
from beside import model_config
from search_targets import step_of

from transformer_jax.config import Config, ParallelConfig
from transformer_jax.data.packing import Shape
from transformer_jax.training.targets import collectives, compile_step, find_target

_DEVICES = flags.DEFINE_integer("devices", 1, "Devices of them to use.", lower_bound=1)
_REMAT = flags.DEFINE_enum("remat", "none", ["none", "dots", "full"], "As config.model.remat.")
_FSDP = flags.DEFINE_bool("fsdp", False, "Split the state over the devices.")


def main(_) -> None:
    flag = flags.FLAGS
    model = model_config(flag.preset, flag.dtype)
    model.remat = _REMAT.value
    config = Config(model=model)
    if _FSDP.value:
        config.parallel = ParallelConfig(fsdp=_DEVICES.value)
    chips = find_target(flag.target).devices[: _DEVICES.value]
    start, cpu = time.monotonic(), time.process_time()
    rows = 64 * len(chips)
    compiled = compile_step(config, flag.vocab, rows, Shape(256, 256), chips)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu
    memory, text = compiled.memory_analysis(), compiled.as_text()
    described = {
        "benchmark": "step_targets",
        "jax": jax.__version__,
        "target": flag.target,
        "devices": len(chips),
        "fsdp": _FSDP.value,
        "preset": flag.preset,
        "remat": _REMAT.value,
        "dtype": flag.dtype,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "argument_gib": memory.argument_size_in_bytes / 2**30,
        "compile_s": seconds,
        "compile_cpu_s": cpu_seconds,
        "collectives": {kind: [n, size / 1e6] for kind, (n, size) in collectives(text).items()},
    }
    print(json.dumps(described | step_of(text, searched=False)), flush=True)


if __name__ == "__main__":
    app.run(main)
