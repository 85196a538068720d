"""Hashes of files: of what is read, remembered as long as files are as they were."""

import gzip
import hashlib
import os
import pathlib

import pytest

from transformer_jax.data.file_hashes import FileHashes

CONTENT = b"one line\n" * 300_000


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A file that was changed long ago, as far as hashes are concerned."""
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    monkeypatch.setattr("time.time_ns", lambda: os.stat(path).st_ctime_ns + 3_000_000_000)
    return str(path)


@pytest.fixture
def reads(monkeypatch):
    """Files that are opened to be hashed, in their order."""
    reads, opened = [], FileHashes.open
    monkeypatch.setattr(FileHashes, "open", lambda self, x: reads.append(x) or opened(self, x))
    return reads


def sha256(path) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def test_a_file_is_read_once_and_by_the_next_process_not_at_all(path, cache, reads):
    hashes = FileHashes(cache)
    assert hashes.get(path) is None
    assert hashes[path] == hashes[path] == hashes.get(path) == sha256(path)
    assert reads == [path]
    assert FileHashes(cache)[path] == FileHashes(cache).get(path) == sha256(path)
    assert reads == [path]
    assert FileHashes()[path] == sha256(path) and reads == [path, path]


@pytest.mark.parametrize("how", ["lines", "part", "nothing", "compressed"])
def test_what_is_read_is_hashed_to_the_end(path, cache, how):
    hashes = FileHashes(cache)
    if how == "compressed":
        pathlib.Path(path).write_bytes(gzip.compress(CONTENT) + gzip.compress(b"second member"))
    with hashes.open(path) as file:
        if how == "lines":
            assert b"".join(file) == CONTENT
        elif how == "part":
            assert file.readline() == b"one line\n"
        elif how == "compressed":
            with gzip.open(file) as unpacked:
                assert unpacked.read() == CONTENT + b"second member"
    assert hashes.get(path) == sha256(path)


def test_reading_that_fails_or_ends_early_is_not_remembered(path, cache):
    hashes = FileHashes(cache)
    with pytest.raises(KeyError), hashes.open(path) as file:
        file.read()
        raise KeyError
    assert hashes.get(path) is None


@pytest.mark.parametrize("change", ["content", "times", "replaced", "moved in time"])
def test_a_file_that_is_not_as_it_was_is_read_again(path, cache, reads, change):
    before = os.stat(path)
    FileHashes(cache)[path]
    if change == "replaced":
        os.rename(path, f"{path}.old")
    if change == "times":
        os.utime(path, ns=(0, 0))
    else:
        pathlib.Path(path).write_bytes(CONTENT[::-1])
    if change == "moved in time":  # as by an archive that restores it
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert FileHashes(cache)[path] == sha256(path) and reads == [path, path]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(path, cache):
    hashes = FileHashes(cache)
    with hashes.open(path) as file:
        file.readline()
        with open(path, "ab") as other:
            other.write(b"more\n")
    assert hashes.get(path) is None and hashes[path] == sha256(path)


def test_a_file_of_this_moment_is_not_remembered_on_disk(path, cache, monkeypatch):
    """Within the granularity of its times, another change would not be seen."""
    monkeypatch.setattr("time.time_ns", lambda: os.stat(path).st_mtime_ns + 1_000_000_000)
    assert FileHashes(cache)[path] == sha256(path)
    assert FileHashes(cache).get(path) is None


@pytest.mark.parametrize("damage", [b"", b"[]\n0\n", b"\xff", b"cut"])
def test_a_damaged_memory_is_not_trusted(path, cache, damage):
    FileHashes(cache)[path]
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    for position in range(0, len(whole), 7):
        entry.write_bytes(bytes(x ^ (i == position) for i, x in enumerate(whole)))
        assert FileHashes(cache).get(path) in (None, sha256(path))
    entry.write_bytes(damage)
    assert FileHashes(cache).get(path) is None
    assert FileHashes(cache)[path] == sha256(path)


def test_where_nothing_can_be_written_files_are_read(path, tmp_path):
    cache = tmp_path / "cache"
    cache.write_text("not a folder")
    assert FileHashes(cache)[path] == sha256(path)
