"""The local devices: their memory, and data parallelism over them (pmap, rows split by device)."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"  # the named axis that a step's sums are reduced over
_USABLE = 0.9  # of a device's memory: allocators leave gaps, and evaluation comes on top


def check_devices() -> None:
    """ValueError where JAX finds no device, or none that JAX_PLATFORMS names."""
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a message
        asked = f"JAX_PLATFORMS={jax.config.jax_platforms}" if jax.config.jax_platforms else "JAX"
        why = str(error).partition(" (set ")[0] or "no such backend is installed"
        raise ValueError(
            f"{asked} finds no device here: {why} (JAX_PLATFORMS=cpu computes on the CPU)"
        ) from None


def parallel(
    step: Callable, *, donate_state: bool = False, chips: list[jax.Device] | None = None
) -> Callable:
    """Compiles step(state, batch), a per-device function, for all devices there are, or others.

    The state goes in and all outputs come out as ordinary replicated arrays, without a
    device axis; the batch leads with one, as `place` gives it.
    """
    return jax.pmap(
        step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=chips,
        donate_argnums=0 if donate_state else (),
    )


def replicate(tree: Any, *, local: bool = False) -> Any:
    """Puts a copy of each array on every device, or on this process' alone, as one array.

    A step compiles a second time for a state that is placed in any other way.
    """
    devices = jax.local_devices() if local else jax.devices()
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    # Through the host, so that the result owns its buffers: a donated step frees them.
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.array(x), x.shape), tree
    )


def local_copies(tree: Any) -> Any:
    """Replicated arrays as arrays of this process' devices alone, sharing their memory."""
    if jax.process_count() == 1:
        return tree
    sharding = NamedSharding(Mesh(np.array(jax.local_devices()), (AXIS,)), PartitionSpec())

    def local(x: jax.Array) -> jax.Array:
        copies = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, sharding, copies)

    return jax.tree.map(local, tree)


def place(batch: Any, micro_batches: int = 1) -> Any:
    """Splits the rows of a host batch over the local devices: [devices, rows, ...] arrays.

    Rows are padded to a multiple of devices times micro-batches; zeros are padding in every
    field of a batch.
    """
    devices = jax.local_device_count()
    sharding = NamedSharding(_mesh(), PartitionSpec(AXIS))

    def split(x: np.ndarray) -> np.ndarray:
        return padded(x, devices * micro_batches).reshape(devices, -1, *x.shape[1:])

    return put_rows(jax.tree.map(split, batch), sharding)


def padded(x: np.ndarray, multiple: int) -> np.ndarray:
    """An array with rows of zeros at its end, for a multiple of rows."""
    return np.pad(x, [(0, -len(x) % multiple)] + [(0, 0)] * (x.ndim - 1))


def put_rows(tree: Any, sharding: NamedSharding) -> Any:
    """Puts this process' rows of host arrays where a sharding of all processes' rows says."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)  # a third of the time
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def must_block() -> bool:
    """Whether each step must end before the next is dispatched.

    JAX before 0.12 deadlocks where several CPU devices run collectives of two steps.
    """
    return jax.default_backend() == "cpu" and jax.local_device_count() > 1


def usable_memory() -> int:
    """Bytes of memory for each local device; CPU devices share what the machine has available."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(_USABLE * stats["bytes_limit"])
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo, cgroup = pathlib.Path("/proc/meminfo"), pathlib.Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        info = dict(line.split(":") for line in meminfo.read_text().splitlines())
        available = int(info["MemAvailable"].split()[0]) * 1024
    if cgroup.exists() and (limit := cgroup.read_text().strip()).isdecimal():
        available = min(available, int(limit))
    return int(_USABLE * available / jax.local_device_count())


def peak_memory() -> int | None:
    """The most bytes that any local device has had in use; None where it is not counted."""
    peaks = [(x.memory_stats() or {}).get("peak_bytes_in_use") for x in jax.local_devices()]
    return None if None in peaks else max(peaks)


def replicated() -> NamedSharding:
    """The sharding of a state that every device has a copy of, as a step gives it back."""
    return NamedSharding(_mesh(), PartitionSpec())


def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), (AXIS,))
