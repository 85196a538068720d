"""Shards of an input: contiguous lines, whose answers are a file that the same command completes.

An output that is unfinished has a name of its own: one that is there is whole.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from transformer_jax.storage import lock


def share(total: int, index: int, count: int) -> range:
    """The lines, from 0, of one of `count` about equal shards of so many."""
    return range(index * total // count, (index + 1) * total // count)


def within(groups: Iterable[Sequence[Any]], lines: range) -> Iterator[Sequence[Any]]:
    """Of lines in groups those of a range, from 0."""
    done = 0
    for group in groups:
        if part := group[max(lines.start - done, 0) : max(lines.stop - done, 0)]:
            yield part
        done += len(group)
        if done >= lines.stop:
            return


def fingerprint(params: Any, *others: Any) -> str:
    """A hash of what answers depend on: parameters on devices, and JSON."""
    result = hashlib.sha256(json.dumps(others, default=str).encode())
    for leaf in jax.tree.leaves(params):
        result.update(np.asarray(leaf.addressable_shards[0].data).tobytes())
    return result.hexdigest()[:12]


@contextlib.contextmanager
def unfinished(output: str, key: str, lines_each: int) -> Iterator[tuple[BinaryIO, int]]:
    """A file to append answers to, and how many it has; it becomes `output` if the body succeeds.

    Args:
      output: path, beside which the file lies until then.
      key: of what answers depend on: only those of the same are gone on with.
      lines_each: lines of an answer; of one that was cut off nothing is left.

    Raises:
      ValueError: another process writes the file.
    """
    path = pathlib.Path(f"{os.path.realpath(output)}.{key}.part")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock(path))
        except BlockingIOError:
            raise ValueError(f"another process is writing {output}") from None
        file = stack.enter_context(path.open("r+b"))
        answers = size = read = 0
        for number, line in enumerate(file, 1):
            read += len(line)
            if line.endswith(b"\n") and number % lines_each == 0:
                answers, size = number // lines_each, read
        file.truncate(size)
        file.seek(size)
        yield file, answers
        os.fsync(file.fileno())
        path.rename(os.path.realpath(output))
