"""glibc's malloc, told to keep what a training step frees for the next one.

XLA on a CPU allocates its scratch memory afresh at each step: hundreds of megabytes that the kernel
maps and clears page by page, a quarter of a small model's step. Kept, blocks of several steps lie
beside each other: 1.2 to 2 times the memory was measured. Programs that import the package, other
systems, and whoever sets GLIBC_TUNABLES, MALLOC_... or TRANSFORMER_JAX_MALLOC=default keep their
allocator as it is.
"""

import ctypes
import logging
import os
import sys

logger = logging.getLogger(__name__)

_VARIABLES = "GLIBC_TUNABLES", "MALLOC_", "TRANSFORMER_JAX_MALLOC"
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h

_shared = False  # whether all threads share the arena that grows and keeps


def share_arena() -> None:
    """Gives all threads one arena, as `keep_freed_memory` needs; before there is a second thread.

    Other arenas map large blocks anew each time, whatever they are told.
    """
    global _shared
    chosen = any(name.startswith(_VARIABLES) for name in os.environ)
    if sys.platform == "linux" and not chosen and hasattr(ctypes.CDLL(None), "malloc_trim"):
        _shared = bool(ctypes.CDLL(None).mallopt(_ARENA_MAX, 1))


def keep_freed_memory(level: int = logging.DEBUG) -> bool:
    """From now on, gives no memory back to the kernel; returns whether it is so, and logs it.

    Called when all is compiled: what compilation leaves would lie between the blocks of a step.
    """
    libc = ctypes.CDLL(None) if _shared else None
    if not libc or not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)):
        return False
    libc.malloc_trim(0)
    logger.log(
        level, "memory freed is kept for the next step (not with %s=default)", _VARIABLES[-1]
    )
    return True
