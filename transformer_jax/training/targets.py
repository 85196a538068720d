"""The train step for accelerators that are not there, by their real compilers: what it needs.

XLA's compilers for TPUs and NVIDIA's GPUs run on any CPU. What they say of memory, kernels and
collectives is what the machine would do; speeds are estimates by roofline (Williams et al. 2009).
"""

import collections
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax import devices
from transformer_jax.config import Config
from transformer_jax.data.batches import empty_batch
from transformer_jax.data.datasets import RunData, training_batches
from transformer_jax.data.packing import Shape
from transformer_jax.heartbeat import heartbeat
from transformer_jax.model.build import abstract_model
from transformer_jax.sharding import ROWS, Sharded, is_copied
from transformer_jax.training.chips import CHIPS, Chip
from transformer_jax.training.compile import bytes_of
from transformer_jax.training.flops import step_flops
from transformer_jax.training.loss import max_logits
from transformer_jax.training.optimizer import learning_rate_schedule, make_optimizer
from transformer_jax.training.step import TrainState, make_train_step

_USABLE = 0.92  # of the memory, beside what runtime and fragmentation take
_COLLECTIVES = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"
_ROUNDS = r'known_trip_count":\{"n":"(\d+)"| s32\[\]\S* constant\((\d+)\)'
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}

# Variables without which libtpu looks for a machine of Google's, and says that it finds none; and
# loads for one process alone.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

_GPU = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
shared_memory_per_block: 49152 shared_memory_per_core: {shared} threads_per_core_limit: 2048
core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
device_memory_size: {memory} shared_memory_per_block_optin: {optin}
cuda_compute_capability {{ major: {major} minor: {minor} {feature} }}
registers_per_core_limit: 65536 registers_per_block_limit: 65536 thread_dim_limit_x: 1024
thread_dim_limit_y: 1024 thread_dim_limit_z: 64 device_address_bits: 64
driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
dnn_version: "9.10.0" }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}"""


class Target(NamedTuple):
    """Machines to compile for."""

    name: str
    chip: Chip
    num_chips: int
    devices: list[jax.Device]  # of a TPU v4's chip there are two


def find_target(name: str) -> Target:
    """The machines that are named as in "tpu:v5e:4x4" or "gpu:h100:8".

    Raises:
      ValueError: there are no such, or their compiler is not installed.
    """
    kind, _, size = name.rpartition(":")
    chip = CHIPS.get(kind)
    pattern = r"[1-9]\d*(x[1-9]\d*)+" if kind.startswith("tpu") else r"[1-9]\d*"
    if not chip or not re.fullmatch(pattern, size):
        raise ValueError(
            f"--target={name}: expected one of {', '.join(CHIPS)}, and the topology of a TPU or "
            "the number of GPUs, as in tpu:v5e:4x4 or gpu:h100:8"
        )
    platform = "tpu" if kind.startswith("tpu") else "cuda"
    options: dict[str, str] = {"topology_name": f"{chip.compiler}:{size}"}
    if platform == "cuda":
        options = {"topology_name": "", "topology": f"1x1x{size}", "target_config": _config(chip)}
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_enable_compilation_cache", False)  # it needs the devices themselves
    try:
        found = topologies.get_topology_desc(platform=platform, **options).devices
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())[:150]
        raise ValueError(
            f"--target={name} cannot be compiled for here: {reason} (its compiler comes with "
            f"pip install 'transformer_jax[{platform}]')"
        ) from None
    return Target(name, chip, math.prod(map(int, size.split("x"))), list(found))


def _config(chip: Chip) -> str:
    """XLA's description of a GPU."""
    capability, cores = chip.compiler.split()
    major, minor = capability.split(".")
    small = major == "8"
    return _GPU.format(
        cores=cores,
        major=major,
        minor=minor,
        feature="" if small else "feature_extension: ACCELERATED_FEATURES",
        fpus=64 if small else 128,
        shared=167936 if small else 233472,
        optin=166912 if small else 232448,
        bandwidth=int(chip.bandwidth),
        memory=int(chip.memory),
    )


def describe(config: Config, data: RunData, target: Target) -> Iterator[str]:
    """What the run's step needs on the target, in sentences.

    Where config.data.tokens_per_batch is 0, of a batch of 16,384 tokens a device.
    """
    count, chip = len(target.devices), target.chip
    tokens = config.data.tokens_per_batch or 16384 * count
    batches_of = training_batches(config, data)

    def compiled_for(tokens: int) -> jax.stages.Compiled:
        rows, row_shape = max(batches_of(tokens).shapes, key=lambda shape: max(shape[1]))
        return compile_step(config, len(data.vocabulary), rows, row_shape, target.devices)

    start = time.monotonic()
    with heartbeat(f"compiling for {target.name}"):
        compiled = compiled_for(tokens)
    seconds = time.monotonic() - start
    memory, need = compiled.memory_analysis(), bytes_of(compiled)
    limit = _USABLE * chip.memory * target.num_chips / count
    copied = "copied to each" if is_copied(config) else "split over the mesh"
    yield f"target: {target.num_chips} x {target.name.rpartition(':')[0]}, the state {copied}"
    yield f"compiled in {seconds:.0f} s by its own compiler, a batch of {tokens:,} tokens a side"
    yield (
        f"memory of a device: {need / 1e9:.2f} GB of {limit / 1e9:.2f} that may be used: the state "
        f"{memory.alias_size_in_bytes / 1e9:.2f}, activations and scratch "
        f"{memory.temp_size_in_bytes / 1e9:.2f}, program "
        f"{memory.generated_code_size_in_bytes / 1e9:.2f}"
    )
    with heartbeat(f"compiling for {target.name}, half the batch"):
        half = bytes_of(compiled_for(max(tokens // 2, 1)))
    most = int(tokens + (limit - need) * (tokens - tokens // 2) / max(need - half, 1))
    about = f"; about {max(most, 0):,} tokens would (from this batch and one of half its size)"
    yield ("it fits" if need <= limit else "it does NOT fit") + (about if need > half else "")
    yield from _speeds(compiled, config, data, tokens, target)


def _speeds(compiled, config: Config, data: RunData, tokens: int, target: Target) -> Iterator[str]:
    """FLOPs, bytes, collectives, and the time that they take at least."""
    chip, count = target.chip, len(target.devices)
    share = target.num_chips / count
    cost = compiled.cost_analysis() or {}
    cost = cost[0] if isinstance(cost, list) else cost
    # XLA counts a scanned layer once, and nothing of a kernel.
    flops = max(cost.get("flops", 0.0), _model_flops(config, data, tokens, target) / count)
    times = {"computing": flops / (chip.flops * share)}
    line = f"a step of a device: {flops / 1e12:.2f} TFLOP"
    text = compiled.as_text()
    if (moved := cost.get("bytes accessed")) and " while(" not in text:  # counted once a loop
        times["memory"] = moved / (chip.bandwidth * share)
        line += f", {moved / 1e9:.1f} GB of memory read and written"
    yield line
    found = collectives(text)
    for name, (number, size) in found.items():
        yield f"  {number} {name}, {size / 1e6:,.1f} MB"
    # A ring sends what is reduced twice, and what is gathered once.
    sent = sum(size * (2 if name == "all-reduce" else 1) for name, (_, size) in found.items())
    times["communicating"] = sent * (count - 1) / count / (chip.links * share)
    slowest = max(times, key=times.get)
    parts = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in times.items())
    yield (
        f"ESTIMATE by roofline, not measured: at least {parts}; so at most "
        f"{tokens / times[slowest]:,.0f} tokens a side a second, bound by {slowest}"
    )


def _model_flops(config: Config, data: RunData, tokens: int, target: Target) -> float:
    """`step_flops` of the longest rows, without padding."""
    _, shapes = abstract_model(config.model, len(data.vocabulary), target.devices[0].platform)
    batch_shapes = training_batches(config, data)(tokens).shapes
    rows, row = max(batch_shapes, key=lambda shape: max(shape[1]))
    return step_flops(config.model, shapes)(rows * row.source, rows * row.target, row)


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Number and result's bytes of each kind of collective that a compiled program runs.

    Args:
      text: of the program. What stands in a loop counts as often as the loop goes round.
    """
    bodies = _computations(text)
    found: dict[str, tuple[str, int, int]] = {}

    def walk(name: str, times: int, fused: bool) -> None:
        for line in bodies.get(name, ()):
            if match := re.search(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(-start)?\(", line):
                # Fused with computations, one may be in several parts, which share its channel.
                channel = re.search(r"channel_id=\d+", line) if fused else None
                found[channel[0] if channel else line] = match[2], _bytes(*match.groups()), times
            # A GPU's compiler notes a loop's rounds; a TPU's compares with them.
            loop = re.search(r"\bcondition=%?([\w.-]+), body=", line)
            condition = "\n".join([line, *bodies[loop[1]]]) if loop else ""
            rounds = [int(a or b) for a, b in re.findall(_ROUNDS, condition)]
            for how, called in re.findall(r"\b(body|calls|to_apply)=%?([\w.-]+)", line):
                walk(called, times * max(rounds, default=1), fused or how == "calls")

    walk("", 1, False)
    kinds = {kind: [x[1:] for x in found.values() if x[0] == kind] for kind in _COLLECTIVES}
    return {
        kind: (sum(times for _, times in each), sum(size * times for size, times in each))
        for kind, each in sorted(kinds.items())
        if each
    }


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of a program's computations by their names; that of the entry is empty."""
    bodies: dict[str, list[str]] = collections.defaultdict(list)
    name = ""
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = "" if match[1] else match[2]
        bodies[name].append(line)
    return bodies


def _bytes(result: str, kind: str, start: str | None) -> int:
    """Of the result of a collective, or of its start, which has its operands before."""
    arrays = re.findall(r"\b([a-z]+\d+|pred)\[([\d,]*)\]", result)
    if start:  # and a TPU's has counters after
        arrays = [x for x in arrays if x != ("u32", "")]
    sizes = [
        _ITEM_BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(","))))
        for dtype, dims in arrays
    ]
    is_pair = start and (kind != "all-reduce" or result.startswith("((")) and len(sizes) > 1
    return sum(sizes[len(sizes) // 2 :] if is_pair else sizes)


def compile_step(
    config: Config, vocab_size: int, rows: int, row_shape: Shape, chips: list[jax.Device]
) -> jax.stages.Compiled:
    """The train step for so many rows on all devices, or the next number that divides."""
    graphdef, shapes = abstract_model(config.model, vocab_size, chips[0].platform)
    schedule = learning_rate_schedule(
        config.optimizer, config.model.model_dim, config.training.num_steps
    )
    optimizer = make_optimizer(config.optimizer, schedule)

    def initial(params):
        ema = params if config.optimizer.ema_decay else None
        return TrainState(jnp.int32(0), params, optimizer.init(params), ema)

    state = jax.eval_shape(initial, shapes)
    micro_batches = config.training.accumulate_steps
    layout = None if is_copied(config) else Sharded(config, chips)
    body = make_train_step(
        graphdef,
        optimizer,
        schedule,
        seed=config.seed,
        smoothing=config.training.label_smoothing,
        accumulate_steps=micro_batches,
        ema_decay=config.optimizer.ema_decay,
        max_logits=max_logits(config.training.logits_mib, chips[0].platform),
        **(layout.hooks if layout else {}),
    )
    split = (layout.num_rows if layout else len(chips)) * micro_batches
    rows = -(-rows // split) * split
    batch = empty_batch(rows, row_shape)
    if layout is None:
        step = devices.parallel(body, donate_state=True, chips=chips)
        batch = jax.tree.map(lambda x: np.reshape(x, (len(chips), -1, *x.shape[1:])), batch)
    else:
        step, rows_of = layout.parallel(body, donate_state=True), PartitionSpec(ROWS)
        sharding = NamedSharding(layout.mesh, rows_of)
        batch = jax.tree.map(lambda x: _shape(x, sharding), batch)
        state = jax.tree.map(_shape, state, layout.shardings(state))
    return step.lower(state, batch).compile()


def _shape(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
