"""Arrays kept on disk: appended aside, named when whole, checked and memory-mapped.

A folder holds a file of raw values for each array, and meta.json: their dtypes, lengths and
checksums, and what else the writer wants kept.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TextIO

import numpy as np

from transformer_jax.heartbeat import heartbeat

logger = logging.getLogger(__name__)

_META = "meta.json"
_BLOCK = 1 << 24  # bytes that a checksum is computed over at once


class Arrays(NamedTuple):
    """What a folder holds: one-dimensional arrays by name, and the writer's own record."""

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]
    checksum: int  # over all of that, 64 bits
    notes: dict[str, Any]  # of the writer, which the checksum does not depend on


class Writer:
    """Appends to the arrays of a folder."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._files: dict[str, Any] = {}
        self._arrays: dict[str, dict] = {}
        self.notes: dict[str, Any] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds values at the end of an array, whose dtype its first values decide."""
        with _writing(self._folder.parent):
            if name not in self._files:
                self._files[name] = (self._folder / name).open("wb")
                self._arrays[name] = {"dtype": values.dtype.str, "length": 0, "crc32": 0}
            entry = self._arrays[name]
            data = np.ascontiguousarray(values, entry["dtype"]).view(np.uint8)
            self._files[name].write(data)
        entry["length"] += len(values)
        entry["crc32"] = zlib.crc32(data, entry["crc32"])

    def finish(self, record: dict[str, Any]) -> None:
        """Writes what is still held, and the record."""
        meta = {"arrays": self._arrays, "record": record, "notes": self.notes}
        meta["crc32"] = zlib.crc32(json.dumps(meta).encode())
        with _writing(self._folder.parent):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())  # before the folder's name: a crash must not leave holes
            (self._folder / _META).write_text(json.dumps(meta, indent=2) + "\n")

    def close(self) -> None:
        """Closes the files, even one that can no longer be written."""
        for file in self._files.values():
            with contextlib.suppress(OSError):
                file.close()


def open_or_build(
    folder: pathlib.Path, what: str, build: Callable[[Writer], dict[str, Any]]
) -> Arrays:
    """Opens the arrays of a folder; builds them where they are missing or damaged.

    They are written aside and renamed, so that an interrupted build leaves nothing that
    could be taken for a whole one. Of several processes one builds and the others wait, where
    the file system has locks; where not, each builds, and the first one's is used.

    Args:
      folder: named by a key of all that its content depends on.
      what: the content in words, for messages.
      build: writes the arrays and returns the record.

    Raises:
      OSError: the folder cannot be written; the message says what to do.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A child that runs the program again, to import it, would wait for its parent's lock.
        raise ValueError('what is run stands outside of `if __name__ == "__main__":`')
    with contextlib.suppress(FileNotFoundError, ValueError), heartbeat(f"checking {what}"):
        return _open(folder)
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f"{folder.name}.lock").open("w")
    with lock:
        alone = _locked(lock, what)
        try:
            return _open(folder)  # another process was quicker
        except FileNotFoundError:
            pass
        except ValueError as error:
            logger.warning("%s is damaged (%s): it is built again", what, error)
            shutil.rmtree(folder, ignore_errors=True)
        if alone:  # what lies aside was left by a process that died
            for left in folder.parent.glob(f"{folder.name}.aside-*"):
                shutil.rmtree(left, ignore_errors=True)
        _build(folder, build)
    return _open(folder)


def _locked(lock: TextIO, what: str) -> bool:
    """Waits for a lock; False where the file system has none."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.info("waiting for another process, which makes %s", what)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _build(folder: pathlib.Path, build: Callable[[Writer], dict[str, Any]]) -> None:
    aside = folder.with_name(f"{folder.name}.aside-{uuid.uuid4().hex}")
    try:
        with _writing(folder.parent):
            aside.mkdir()
        with contextlib.closing(Writer(aside)) as writer:
            writer.finish(build(writer))
        with _writing(folder.parent):
            try:
                aside.rename(folder)
            except OSError:
                if not folder.is_dir():  # made by another process, without locks
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Says of an error in writing what was written, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror or error}, so nothing can be kept there (config.data.cache_dir "
            "names another folder)",
            str(folder),
        ) from None


def _open(folder: pathlib.Path) -> Arrays:
    """Maps the arrays; FileNotFoundError where there are none, ValueError where damaged."""
    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        meta = json.loads((folder / _META).read_text())
        if meta.pop("crc32") != zlib.crc32(json.dumps(meta).encode()):
            raise ValueError(f"{folder / _META} has another checksum")
        arrays, checksums = {}, [meta["record"]]
        for name, entry in sorted(meta["arrays"].items()):
            path, dtype = folder / name, np.dtype(entry["dtype"])
            size = path.stat().st_size
            if size != entry["length"] * dtype.itemsize:
                raise ValueError(f"{path} has {size} bytes")
            # An empty file cannot be mapped.
            arrays[name] = np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)
            if _crc32(arrays[name]) != entry["crc32"]:
                raise ValueError(f"{path} has another checksum")
            checksums.append((name, entry["length"], entry["crc32"]))
    except (AttributeError, KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{folder}: {error}") from None
    digest = hashlib.sha256(json.dumps(checksums).encode()).digest()
    return Arrays(arrays, meta["record"], int.from_bytes(digest[:8]), meta.get("notes", {}))


def _crc32(array: np.ndarray) -> int:
    data, result = array.view(np.uint8), 0
    for start in range(0, len(data), _BLOCK):
        result = zlib.crc32(data[start : start + _BLOCK], result)
    return result
