"""Shards of an input: contiguous lines, whose answers are a file that the same command completes.

An output that is unfinished has a name of its own: one that is there is whole.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from transformer_jax import hosts
from transformer_jax.storage import atomic_write, lock


def share(lines: range, index: int, count: int) -> range:
    """One of `count` about equal shards of lines."""
    return lines[index * len(lines) // count : (index + 1) * len(lines) // count]


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

    Of several processes each has a file, and the output is all of them, in their order.

    Args:
      output: path, beside which the file lies until then.
      key: of what answers depend on: only those of the same are gone on with.
      lines_each: lines of an answer; of one that was cut off nothing is left.

    Raises:
      ValueError: another job writes the file; of several processes, the key, the folder or a
        failure of the body is not that of all.
    """
    hosts.check_equal("model, flags, or input", key)
    hosts.check_shared(pathlib.Path(f"{os.path.realpath(output)}.{key}"))
    count = jax.process_count()
    part = f".{jax.process_index()}-of-{count}" if count > 1 else ""
    path = pathlib.Path(f"{os.path.realpath(output)}.{key}{part}.part")
    with contextlib.ExitStack() as stack:
        with hosts.together():
            try:
                stack.enter_context(lock(path))
            except BlockingIOError:
                raise ValueError(f"another process is writing {output}") from None
            file = stack.enter_context(path.open("r+b"))
            answers = _cut_to_whole_answers(file, lines_each)
        with hosts.together():
            yield file, answers
            file.flush()
            os.fsync(file.fileno())
        parts = [pathlib.Path(part) for part in hosts.gather(str(path))]
        with hosts.together():
            if hosts.is_first():
                _join(parts, pathlib.Path(os.path.realpath(output)))


def _cut_to_whole_answers(file: BinaryIO, lines_each: int) -> int:
    """How many whole answers a file has; nothing is left after them."""
    answers = size = read = 0
    for number, line in enumerate(file, 1):
        read += len(line)
        if line.endswith(b"\n") and number % lines_each == 0:
            answers, size = number // lines_each, read
    file.truncate(size)
    file.seek(size)
    return answers


def _join(parts: list[pathlib.Path], output: pathlib.Path) -> None:
    """Replaces parts by one file."""
    if len(parts) == 1:
        parts[0].rename(output)
        return
    with atomic_write(output, "wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole)
    for part in parts:
        part.unlink()
