"""Arrays on disk: whole or not at all, built once, built again when damaged."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zlib
from collections.abc import Iterator

import numpy as np
import pytest

from transformer_jax.data import array_files
from transformer_jax.data.array_files import Writer, open_or_build

RECORD = {"pairs": 300, "by": "tests"}


def build(writer: Writer) -> dict:
    writer.append("ids", np.arange(1000, dtype=np.uint16))
    writer.append("offsets", np.zeros(1, np.int64))
    writer.append("ids", np.arange(500))
    writer.append("none", np.zeros(0, np.float32))
    writer.append("offsets", np.arange(4) * 2**33)
    return RECORD


def no_build(writer: Writer) -> dict:
    raise AssertionError("it was built again")


def check(arrays) -> None:
    assert sorted(arrays.arrays) == ["ids", "none", "offsets"]
    ids, none, offsets = (arrays.arrays[name] for name in ("ids", "none", "offsets"))
    assert ids.dtype == np.uint16 and ids.tolist() == [*range(1000), *range(500)]
    assert offsets.dtype == np.int64 and offsets.tolist() == [0, 0, 2**33, 2**34, 3 * 2**33]
    assert none.dtype == np.float32 and none.shape == (0,)
    assert arrays.record == RECORD


def left_in(folder: pathlib.Path) -> list[str]:
    """What lies beside the locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "deep" / "cache" / "kept"


def test_what_is_built_is_opened_and_not_built_again(folder, caplog):
    first = open_or_build(folder, "it", build)
    second = open_or_build(folder, "it", no_build)
    check(first)
    check(second)
    assert first.checksum == second.checksum and not caplog.records
    assert left_in(folder.parent) == ["kept"]
    assert isinstance(first.arrays["ids"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        first.arrays["ids"][0] = 1


def test_checksums_tell_content_record_names_and_boundaries(tmp_path):
    def checksum(record, **arrays):
        def write(writer):
            for name, values in arrays.items():
                writer.append(name, np.array(values, np.int32))
            return record

        folder = tmp_path / f"{len(left_in(tmp_path))}"
        return open_or_build(folder, "it", write).checksum

    first = checksum({"n": 1}, a=[1, 2], b=[3])
    assert first == checksum({"n": 1}, a=[1, 2], b=[3])
    others = [
        checksum({"n": 2}, a=[1, 2], b=[3]),
        checksum({"n": 1}, a=[2, 1], b=[3]),
        checksum({"n": 1}, a=[1], b=[2, 3]),
        checksum({"n": 1}, a=[3], b=[1, 2]),
        checksum({"n": 1}, a=[1, 2], c=[3]),
        checksum({"n": 1}, a=[1, 2], b=[3], c=[]),
        checksum({"n": 1}, a=[1, 2]),
    ]
    assert len({first, *others}) == 1 + len(others)
    assert 60 < max([first, *others]).bit_length() <= 64 and min(others) >= 0


@pytest.mark.parametrize("position", [0, 1500, -1])
def test_checksums_are_of_all_blocks(folder, monkeypatch, caplog, position):
    """Also of the last, which is shorter."""
    monkeypatch.setattr(array_files, "_BLOCK", 7)
    check(open_or_build(folder, "it", build))
    check(open_or_build(folder, "it", no_build))
    size = (folder / "ids").stat().st_size
    assert size % 7
    flip(folder / "ids", position % size, 1)
    check(open_or_build(folder, "it", build))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("error", [ValueError("line 7"), FileNotFoundError(2, "no", "c.en")])
def test_a_build_that_fails_leaves_nothing_and_its_error_is_its_own(folder, error):
    def fails(writer):
        build(writer)
        raise error

    with pytest.raises(type(error)) as raised:
        open_or_build(folder, "it", fails)
    assert raised.value is error and "cache_dir" not in str(error)
    assert left_in(folder.parent) == []
    check(open_or_build(folder, "it", build))


def test_an_interrupt_leaves_nothing(folder):
    def interrupted(writer):
        build(writer)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_or_build(folder, "it", interrupted)
    assert left_in(folder.parent) == []


def test_what_a_dead_process_left_aside_is_removed_and_others_is_not(folder):
    for name in ("kept.aside-0", "other.aside-0", "kept2"):
        (folder.parent / name).mkdir(parents=True)
        (folder.parent / name / "ids").write_bytes(b"half")
    check(open_or_build(folder, "it", build))
    assert left_in(folder.parent) == ["kept", "kept2", "other.aside-0"]


def flip(path: pathlib.Path, position: int, mask: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def rewrite_meta(folder: pathlib.Path, change) -> None:
    """Another record, whose checksum is right: as another version might have left it."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["crc32"]
    if isinstance(meta := change(meta), dict):
        meta["crc32"] = zlib.crc32(json.dumps(meta).encode())
    (folder / "meta.json").write_text(json.dumps(meta))


def drop_checksum(folder: pathlib.Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    del meta["crc32"]
    (folder / "meta.json").write_text(json.dumps(meta))


DAMAGES = {
    "flipped byte": (lambda f: flip(f / "ids", 777), "another checksum"),
    "flipped last byte": (lambda f: flip(f / "offsets", -1), "another checksum"),
    "truncated": (lambda f: os.truncate(f / "ids", 2998), "2998 bytes"),
    "emptied": (lambda f: os.truncate(f / "ids", 0), "0 bytes"),
    "longer": (lambda f: os.truncate(f / "none", 4), "4 bytes"),
    "missing": (lambda f: (f / "offsets").unlink(), "offsets"),
    "empty one missing": (lambda f: (f / "none").unlink(), "none"),
    "no meta": (lambda f: (f / "meta.json").unlink(), "meta.json"),
    "empty meta": (lambda f: os.truncate(f / "meta.json", 0), "Expecting value"),
    "cut meta": (lambda f: os.truncate(f / "meta.json", 50), "line"),
    "binary meta": (lambda f: (f / "meta.json").write_bytes(b"\xff\xfe\x00"), "utf-8"),
    "other meta": (lambda f: rewrite_meta(f, lambda meta: [meta]), ""),
    "meta without record": (lambda f: rewrite_meta(f, lambda m: {"arrays": m["arrays"]}), "record"),
    "meta without checksum": (drop_checksum, "crc32"),
    "meta of another checksum": (lambda f: flip(f / "meta.json", -4, 1), "meta.json has another"),
    "meta of no arrays": (lambda f: rewrite_meta(f, lambda m: m | {"arrays": [1]}), ""),
    "meta of other arrays": (lambda f: rewrite_meta(f, lambda m: m | {"arrays": {"ids": 1}}), ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_built_again_with_a_warning(folder, caplog, damage):
    open_or_build(folder, "the thing", build)
    damage, told = DAMAGES[damage]
    damage(folder)
    check(open_or_build(folder, "the thing", build))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "the thing is damaged (" in record.message
    assert told in record.message and record.message.endswith("it is built again")
    check(open_or_build(folder, "the thing", no_build))
    assert left_in(folder.parent) == ["kept"]


@pytest.mark.parametrize("mask", [1, 4], ids=bin)
def test_no_flipped_bit_of_the_record_goes_unseen(folder, monkeypatch, mask):
    """What is opened is what was built, or it is built again."""
    monkeypatch.setattr(array_files.os, "fsync", lambda _: None)  # it is slow
    open_or_build(folder, "it", build)
    path = folder / "meta.json"
    whole, unseen = path.read_bytes(), []
    for position in range(len(whole)):
        flip(path, position, mask)
        try:
            check(open_or_build(folder, "it", build))
        except Exception as error:
            line = path.read_bytes()[:position].count(b"\n")
            unseen.append(f"{path.read_bytes().splitlines()[line]}: {error!r:.60}")
        path.write_bytes(whole)
    assert unseen == []


def test_a_missing_folder_is_built_without_a_warning(folder, caplog):
    check(open_or_build(folder, "it", build))
    assert not caplog.records


@pytest.mark.parametrize("depth", [1, 2])
def test_a_cache_that_is_a_file_is_told_with_what_to_do(folder, depth):
    file = folder.parents[depth - 1]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("not a folder")
    with pytest.raises(OSError, match=r"config\.data\.cache_dir names another folder") as error:
        open_or_build(folder, "it", build)
    assert str(folder.parent) in str(error.value) and "\n" not in str(error.value)
    assert file.read_text() == "not a folder"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (array_files.os, "fsync"),
        (array_files.pathlib.Path, "mkdir"),
        (array_files.pathlib.Path, "rename"),
        (array_files.pathlib.Path, "write_text"),
        (array_files.pathlib.Path, "open"),
    ],
)
def test_a_full_disk_is_told_with_what_to_do_and_nothing_is_left(folder, monkeypatch, where, name):
    with monkeypatch.context() as patch:
        patch.setattr(where, name, full)
        with pytest.raises(OSError) as error:
            open_or_build(folder, "it", build)
    assert error.value.errno == errno.ENOSPC
    assert "config.data.cache_dir" in str(error.value) and "No space left" in str(error.value)
    assert str(folder.parent) in str(error.value)
    assert not folder.parent.is_dir() or left_in(folder.parent) == []
    check(open_or_build(folder, "it", build))


@contextlib.contextmanager
def script(tmp_path: pathlib.Path, code: str, *arguments) -> Iterator[subprocess.Popen]:
    """A process that has this module's imports, and ends with the test."""
    path = tmp_path / f"script_{len(list(tmp_path.glob('script_*')))}.py"
    path.write_text(
        "import pathlib, sys, time\nimport numpy as np\n"
        "from transformer_jax.data.array_files import open_or_build\n"
        "folder, here = map(pathlib.Path, sys.argv[1:3])\n" + textwrap.dedent(code)
    )
    root = str(pathlib.Path(array_files.__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, path, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_disk_that_fills_midway_is_told_and_nothing_is_left(tmp_path, folder):
    """Whether in writing, or in what was still held when the build was done."""
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        def build(writer):
            for _ in range(int(sys.argv[3])):
                writer.append("ids", np.zeros(1000, np.uint8))
            return {}
        try:
            open_or_build(folder, "it", build)
        except OSError as error:
            print(error)
    """
    for count in (100, 101, 1000):
        with script(tmp_path, code, folder, tmp_path, count) as process:
            told, errors = process.communicate(timeout=60)
        assert not errors and process.returncode == 0
        if count == 100:
            assert not told and left_in(folder.parent) == ["kept"]
            array_files.shutil.rmtree(folder)
            continue
        assert "config.data.cache_dir names another folder" in told and str(folder.parent) in told
        assert left_in(folder.parent) == []


SLOW = """
    def build(writer):
        with open(here / "builds", "a") as file:
            file.write("build\\n")
        writer.append("ids", np.arange(1000, dtype=np.uint16))
        print("begun", flush=True)
        sys.stdin.readline()
        writer.append("ids", np.arange(500, dtype=np.uint16))
        return {"n": 1}
    print("ready", flush=True)
    kept = open_or_build(folder, "it", build)
    print(kept.arrays["ids"].sum(), kept.record, kept.checksum)
"""


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path, folder):
    with (
        script(tmp_path, SLOW, folder, tmp_path) as first,
        script(tmp_path, SLOW, folder, tmp_path) as second,
        script(tmp_path, SLOW, folder, tmp_path) as third,
    ):
        processes = [first, second, third]
        assert {process.stdout.readline() for process in processes} == {"ready\n"}
        # Whichever builds is told to go on only after all have come as far.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            told = list(pool.map(lambda x: x.communicate("go on\n", timeout=60), processes))
    results = {out.removeprefix("begun\n") for out, _ in told}
    assert len(results) == 1 and results.pop().startswith(f"{999 * 500 + 499 * 250} {{'n': 1}}")
    assert [errors for _, errors in told] == ["", "", ""]
    assert (tmp_path / "builds").read_text() == "build\n"
    assert left_in(folder.parent) == ["kept"]


def test_a_process_killed_in_a_build_leaves_nothing_that_is_taken_for_whole(tmp_path, folder):
    with script(tmp_path, SLOW, folder, tmp_path) as process:
        assert process.stdout.readline() + process.stdout.readline() == "ready\nbegun\n"
        (aside,) = left_in(folder.parent)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert left_in(folder.parent) == [aside] and aside.startswith("kept.aside-")
    check(open_or_build(folder, "it", build))
    assert left_in(folder.parent) == ["kept"]


def test_whoever_waits_says_for_what(folder, caplog):
    caplog.set_level("INFO")
    begun, go_on = threading.Event(), threading.Event()

    def slow(writer):
        begun.set()
        assert go_on.wait(20)
        return build(writer)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(open_or_build, folder, "the thing", slow)
        assert begun.wait(20) and not caplog.records
        second = pool.submit(open_or_build, folder, "the thing", no_build)
        deadline = time.monotonic() + 20
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        go_on.set()
        check(first.result())
        check(second.result())
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.message == "waiting for another process, which makes the thing"


@pytest.fixture(params=[errno.ENOSYS, errno.ENOLCK], ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    def unsupported(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(array_files.fcntl, "flock", unsupported)


def test_without_locks_what_lies_aside_may_be_anothers_and_stays(folder, no_locks):
    (folder.parent / "kept.aside-0").mkdir(parents=True)
    check(open_or_build(folder, "it", build))
    assert left_in(folder.parent) == ["kept", "kept.aside-0"]


def test_without_locks_all_build_and_the_first_one_s_is_used(folder, no_locks, caplog):
    together, builders = threading.Barrier(3, timeout=20), []

    def slow(writer):
        together.wait()  # until the others are as far
        record = build(writer)
        together.wait()
        builders.append(threading.get_ident())
        return record

    with concurrent.futures.ThreadPoolExecutor() as pool:
        opened = [pool.submit(open_or_build, folder, "it", slow) for _ in range(3)]
        for future in opened:
            check(future.result())
    assert len(set(builders)) == 3 and not caplog.records
    assert left_in(folder.parent) == ["kept"]


def test_without_locks_a_build_that_ends_second_changes_nothing(folder, no_locks):
    """What others have mapped, and know by its checksum."""

    def overtaken(writer):
        first.append(open_or_build(folder, "it", build))
        writer.append("ids", np.zeros(7, np.int32))
        return {"other": True}

    first = []
    second = open_or_build(folder, "it", overtaken)
    check(second)
    assert second.checksum == first[0].checksum
    assert left_in(folder.parent) == ["kept"]


def test_without_locks_a_file_in_the_way_is_told(folder, no_locks):
    def blocked(writer):
        folder.write_text("not a folder")
        return build(writer)

    with pytest.raises(OSError, match=r"config\.data\.cache_dir names another folder"):
        open_or_build(folder, "it", blocked)
    assert left_in(folder.parent) == ["kept"] and folder.is_file()


def test_a_child_that_imports_the_program_again_is_told_and_does_not_wait(tmp_path, folder):
    """Its parent holds the lock, and waits for it."""
    code = """
        import multiprocessing
        def build(writer):
            child = multiprocessing.get_context("spawn").Process(target=print)
            child.start()
            child.join()
            return {"status": child.exitcode}
        print(open_or_build(folder, "it", build).record)
    """
    with script(tmp_path, code, folder, tmp_path) as process:
        told, errors = process.communicate(timeout=60)
    assert told == "{'status': 1}\n" and process.returncode == 0
    last = 'ValueError: what is run stands outside of `if __name__ == "__main__":`'
    assert errors.splitlines()[-1] == last
