"""The processes of a run over several hosts: their start, and what they agree on.

A run of one process is the case in which nothing has to be agreed.
"""

import atexit
import contextlib
import functools
import glob
import importlib.util
import json
import logging
import os
import pathlib
import signal
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from transformer_jax.interruption import Interrupted
from transformer_jax.storage import removed

logger = logging.getLogger(__name__)

# Variables of launchers that JAX knows, which say how many processes they have started.
_PROCESS_COUNTS = "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"


def initialize(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
    """Joins the other processes, where arguments or the launcher's environment tell of some.

    Slurm's srun, Open MPI's mpirun and GKE's TPU slices tell by themselves. On TPU VMs the
    coordinator "auto" asks JAX; elsewhere, as in a JobSet of GPU hosts, all three are needed.

    Raises:
      ValueError: only some of the arguments are given, or the others cannot be reached.
    """
    given = bool(coordinator), num_processes > 0, process_id >= 0
    automatic = given == (True, False, False) and coordinator == "auto"
    if any(given) and not all(given) and not automatic or process_id >= num_processes > 0:
        raise ValueError(
            f"--coordinator={coordinator} --num_processes={num_processes} "
            f"--process_id={process_id}: expected HOST:PORT of process 0, the number of processes "
            "and this one's, from 0; or --coordinator=auto alone"
        )
    if not (any(given) or _launched()):
        return
    # Several processes on CPUs need the one; the other is a handler of SIGTERM in place of ours.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)
    arguments = (coordinator, num_processes, process_id) if all(given) else ()
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the processes of the job cannot be joined: {reason}") from error
    if not is_first():
        logging.getLogger("transformer_jax").setLevel(logging.WARNING)
    logger.info("%d processes, %d devices", jax.process_count(), jax.device_count())


@contextlib.contextmanager
def leaving_on_errors() -> Iterator[None]:
    """Where the body fails, has the process end without waiting for the others, which may wait.

    Where another has ended, in a sentence, with the status of JAX's own abort.
    """
    try:
        yield
    except BaseException as error:
        lost = "Gloo" in str(error)  # other collectives wait, until JAX aborts the process
        if jax.distributed.is_initialized():  # which asks for no devices
            # Before JAX's own function, which waits.
            atexit.register(os._exit, 128 + signal.SIGABRT if lost else 1)
        if lost:
            sys.exit("error: another process of the job has ended; the same command goes on")
        raise


def _launched() -> bool:
    """Whether the environment is that of a launcher that JAX can ask for the other processes."""
    if any(int(os.environ.get(name) or 1) > 1 for name in _PROCESS_COUNTS):
        return True
    several = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return several and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Whether this process is the one that logs, and writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(value: Any) -> list[Any]:
    """The value of each process, in their order; it must be JSON."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(text.size))
    padded = np.pad(text, (0, sizes.max() - text.size))
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes)]


def largest(number: int) -> Any:
    """The largest number of any process; known when it is read, as a metric is."""
    if jax.process_count() == 1:
        return np.int32(number)
    return _largest(np.full(jax.local_device_count(), number, np.int32))


@functools.partial(jax.pmap, axis_name="device", out_axes=None)
def _largest(number: jax.Array) -> jax.Array:
    return jax.lax.pmax(number, "device")


def share(count: int) -> slice:
    """Which of a number of items are this process' to work on, about equally many for each."""
    bounds = [index * count // jax.process_count() for index in range(jax.process_count() + 1)]
    return slice(*bounds[jax.process_index() :][:2])


def check_equal(what: str, value: Any) -> None:
    """ValueError where the processes do not all have the same value, which must be JSON."""
    values = gather(value)
    if any(other != values[0] for other in values):
        raise ValueError(f"the processes differ in {what}: {values}")


def check_shared(name: pathlib.Path) -> None:
    """ValueError where the processes do not see the same files, of names that begin with this."""
    if jax.process_count() == 1:
        return
    probe = name.with_name(f"{name.name}-{gather(uuid.uuid4().hex)[0]}")
    with contextlib.ExitStack() as stack:
        with together():
            if is_first():
                for left in probe.parent.glob(f"{glob.escape(name.name)}-*"):  # by a kill
                    left.unlink()
                stack.enter_context(removed(probe))
                probe.touch()
        found = gather(probe.exists())
    if not all(found):
        raise ValueError(f"{probe.parent} is not on a file system that all processes share")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Where the body fails in one process, or is interrupted, fails in all of them.

    The body must not wait for another process.
    """
    mine = cause = None
    try:
        yield
    except (ValueError, OSError, Interrupted) as error:
        if jax.process_count() == 1:
            raise
        mine, cause = [type(error) is Interrupted, f"process {jax.process_index()}: {error}"], error
    failures = [failure for failure in gather(mine) if failure]
    if any(interrupted for interrupted, _ in failures):
        raise Interrupted from cause
    if failures:
        raise ValueError(failures[0][1]) from cause
