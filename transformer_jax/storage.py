"""Storage: local paths, the cache folder, atomic writes, locks, cached memory-mapped arrays."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from transformer_jax import interruption
from transformer_jax.heartbeat import heartbeat

logger = logging.getLogger(__name__)


def local_path(path: str | os.PathLike) -> str:
    """The path with ~ and ~user expanded; ValueError where it is not one of this machine."""
    text = os.path.expanduser(os.fspath(path))
    if re.match(r"[A-Za-z][\w+-]+:/", text):
        raise ValueError(f"{text} is not a local path: mount that storage, or copy its files here")
    if text.startswith("~"):
        raise ValueError(f"{text}: there is no home folder {text.partition('/')[0]}")
    return text


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """`local_path` of a folder that may not exist yet; ValueError where a file has its name."""
    folder = pathlib.Path(local_path(path))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the name of a folder was expected")
    return folder


def cache_folder(name: str) -> pathlib.Path:
    """transformer_jax/NAME in $XDG_CACHE_HOME, or in ~/.cache; it may be deleted at any time.

    Without a home folder, as of a container's user, it is in the temporary directory.
    """
    if not (home := os.environ.get("XDG_CACHE_HOME")):
        try:
            home = pathlib.Path.home() / ".cache"
        except RuntimeError:
            home = pathlib.Path(tempfile.gettempdir()) / f"cache-of-user-{os.getuid()}"
    return pathlib.Path(home) / "transformer_jax" / name


def from_json(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def regular(path: str | os.PathLike) -> pathlib.Path:
    """A path that is to be read; ValueError where a pipe has its name, which would never end."""
    path = pathlib.Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is neither a file nor a folder")
    return path


def unlinked(path: pathlib.Path) -> pathlib.Path:
    """A path of a workdir that is to be written; ValueError where a link or a pipe has its name."""
    if path.is_symlink():
        raise ValueError(f"{path} is a symbolic link; what it names would be written")
    return regular(path)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w", **options) -> Iterator[IO]:
    """Opens a new file that replaces `path` if the body succeeds, else is removed.

    Args:
      path: of a file; a symbolic link is replaced, so that nothing outside a workdir changes.
      mode, options: as of `open`; text is UTF-8.
    """
    temporary = f"{os.fspath(path)}.{uuid.uuid4().hex[:8]}.tmp"
    encoding = {} if "b" in mode else {"encoding": "utf-8"}
    with removed(temporary):
        with open(temporary, mode.replace("w", "x"), **encoding | options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the name: a crash must not leave an empty file
        os.replace(temporary, path)


@contextlib.contextmanager
def removed(path: str | os.PathLike) -> Iterator[None]:
    """Removes a file or folder, if it is there, at the body's end; also where a signal ends it."""

    def remove() -> None:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)

    with interruption.undone(remove):
        try:
            yield
        finally:
            remove()


@contextlib.contextmanager
def lock(path: pathlib.Path, waiting_for: str = "") -> Iterator[bool]:
    """Holds the exclusive lock of a file; yields False where the file system has no locks.

    Raises:
      BlockingIOError: another process holds it, and `waiting_for`, a note for the log, is empty.
      ValueError: the file is a symbolic link or a pipe.
    """
    unlinked(path)
    # As the link may be planted after that check; what is there is not emptied.
    with open(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting_for:
                raise
            logger.info("waiting for another process, which makes %s", waiting_for)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            held = False
        yield held


_META = "meta.json"


class Arrays(NamedTuple):
    """One-dimensional arrays by name, and what their builder recorded of them."""

    arrays: dict[str, np.ndarray]
    record: dict[str, Any]
    checksum: int  # of arrays and record, 64 bits
    notes: dict[str, Any]  # not part of the checksum


class Writer:
    """Appends to the arrays of a new cache entry."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder
        self._entries: dict[str, dict] = {}
        self.notes: dict[str, Any] = {}

    def append(self, name: str, values: np.ndarray) -> None:
        """Adds values at the end of an array; the first ones decide its dtype."""
        new = {"dtype": values.dtype.str, "length": 0, "crc32": 0}
        entry = self._entries.setdefault(name, new)
        data = np.ascontiguousarray(values, entry["dtype"]).view(np.uint8)
        with _writing(self._folder.parent), (self._folder / name).open("ab") as file:
            file.write(data)
        entry["length"] += len(values)
        entry["crc32"] = zlib.crc32(data, entry["crc32"])

    def finish(self, record: dict[str, Any]) -> None:
        """Writes the record; a crash from now on leaves no holes."""
        meta = {"arrays": self._entries, "record": record, "notes": self.notes}
        meta["crc32"] = zlib.crc32(json.dumps(meta).encode())
        for name in self._entries:
            with (self._folder / name).open("rb") as file:
                os.fsync(file.fileno())
        with atomic_write(self._folder / _META) as file:
            file.write(json.dumps(meta, indent=2) + "\n")


def cached(
    cache: pathlib.Path, kind: str, key: Any, what: str, build: Callable[[Writer], dict[str, Any]]
) -> Arrays:
    """The arrays of an entry of the cache, which is built where it is missing or damaged.

    An entry is built in a temporary folder and renamed: half of one is never used. Of several
    processes one builds and the others wait; where the file system has no locks, each builds, and
    the entry of the first is used.

    Args:
      cache: folder of all entries.
      kind, key: identify the entry; `key` is JSON of all that its content depends on.
      what: the content in words, for messages.
      build: appends the arrays and returns their record.

    Raises:
      OSError: the cache cannot be written; the message says what to do.
    """
    folder = cache / f"{kind}-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]}"
    with contextlib.suppress(FileNotFoundError, ValueError), heartbeat(f"checking {what}"):
        return _open(folder)
    with contextlib.ExitStack() as stack:
        with _writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(lock(cache / f"{folder.name}.lock", what))
        try:
            return _open(folder)  # another process was quicker
        except FileNotFoundError:
            pass
        except ValueError as error:
            logger.warning("%s is damaged (%s): it is built again", what, error)
            shutil.rmtree(folder, ignore_errors=True)
        if alone:  # what is left was of a process that died
            for left in cache.glob(f"{folder.name}.aside-*"):
                shutil.rmtree(left, ignore_errors=True)
        _build(folder, build)
    return _open(folder)


def _build(folder: pathlib.Path, build: Callable[[Writer], dict[str, Any]]) -> None:
    temporary = folder.with_name(f"{folder.name}.aside-{uuid.uuid4().hex}")
    with removed(temporary):
        with _writing(folder.parent):
            temporary.mkdir()
        writer = Writer(temporary)
        record = build(writer)
        with _writing(folder.parent):
            writer.finish(record)
            try:
                temporary.rename(folder)
            except OSError:
                if not folder.is_dir():  # made by another process, without locks
                    raise


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Adds to an error in writing what was written, and what to do."""
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
        meta = from_json((folder / _META).read_text("utf-8"))
        if meta.pop("crc32") != zlib.crc32(json.dumps(meta).encode()):
            raise ValueError(f"{folder / _META} has another checksum")
        arrays, checksums = {}, [meta["record"]]
        for name, entry in sorted(meta["arrays"].items()):
            path, dtype = folder / name, np.dtype(entry["dtype"])
            if path.name != name or dtype.kind not in "iuf":
                raise ValueError(f"{folder / _META} names {name!r} of type {dtype}")
            size = path.stat().st_size
            if size != entry["length"] * dtype.itemsize:
                raise ValueError(f"{path} has {size} bytes")
            # An empty file cannot be mapped.
            arrays[name] = np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)
            if zlib.crc32(arrays[name]) != entry["crc32"]:
                raise ValueError(f"{path} has another checksum")
            checksums.append((name, entry["length"], entry["crc32"]))
    except (AttributeError, KeyError, TypeError, FileNotFoundError, IsADirectoryError) as error:
        raise ValueError(f"{folder}: {error}") from None
    digest = hashlib.sha256(json.dumps(checksums).encode()).digest()
    return Arrays(arrays, meta["record"], int.from_bytes(digest[:8]), meta.get("notes", {}))
