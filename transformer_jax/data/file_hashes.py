"""SHA-256 of files, read for it as seldom as possible."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import time
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from transformer_jax.storage import atomic_write, from_json

_BLOCK = 1 << 20
_RACY = 2_000_000_000  # ns within which a second change may leave a file's times as they are


class _Hashing(io.FileIO):
    """A file whose bytes are hashed as they are read."""

    def __init__(self, path: str):
        super().__init__(path)
        self.sha256 = hashlib.sha256()

    def readinto(self, buffer) -> int:
        count = super().readinto(buffer)
        self.sha256.update(memoryview(buffer)[:count])
        return count


class FileHashes:
    """Hashes remembered by path, size and times: in memory, and in the cache folder.

    A file that was changed just now is not remembered on disk: another change within the
    granularity of its times would go unseen.
    """

    def __init__(self, cache: pathlib.Path | None = None):
        """Without a cache folder, hashes are remembered by this object alone."""
        self._cache = cache
        self._known: dict[str, tuple[list[int], str]] = {}

    def __getitem__(self, path: str) -> str:
        """The hash of a file, which is read if it is not remembered."""
        while (known := self.get(path)) is None:
            with self.open(path):
                pass
        return known

    def get(self, path: str) -> str | None:
        """The hash of a file if it is remembered."""
        if path not in self._known and self._cache:
            with contextlib.suppress(OSError, ValueError):
                content, checksum = self._entry(path).read_text().splitlines()
                if int(checksum) == zlib.crc32(content.encode()):
                    self._known[path] = tuple(from_json(content))
        identity, sha256 = self._known.get(path, (None, None))
        return sha256 if identity == _identity(os.stat(path)) else None

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """A file to be read in its order, whose hash is remembered if the body succeeds."""
        with _Hashing(path) as raw, io.BufferedReader(raw) as file:
            identity, opened = _identity(os.fstat(raw.fileno())), time.time_ns()
            yield file
            while file.read(_BLOCK):  # what the body left
                pass
            # As of a file that is as it was when it was opened.
            self._known[path] = known = identity, raw.sha256.hexdigest()
        if self._cache and opened - max(identity[1:3]) > _RACY:
            content = json.dumps(known)
            # Where it cannot be written, the file is read again.
            with contextlib.suppress(OSError):
                self._cache.mkdir(parents=True, exist_ok=True)
                with atomic_write(self._entry(path)) as entry:
                    entry.write(f"{content}\n{zlib.crc32(content.encode())}\n")

    def _entry(self, path: str) -> pathlib.Path:
        name = hashlib.sha256(os.path.abspath(path).encode()).hexdigest()[:20]
        return self._cache / f"hash-{name}.json"


def _identity(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
