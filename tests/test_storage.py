"""Local paths, cache folder, atomic writes, locks; cached arrays: whole, built once, checked."""

import concurrent.futures
import contextlib
import errno
import json
import os
import pathlib
import pwd
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.figure import Figure

from transformer_jax import Config, Translator, figures, storage, train
from transformer_jax.__main__ import parser_of
from transformer_jax.compare.comparison import Budget, compare
from transformer_jax.compare.plan import plan
from transformer_jax.config import load_config
from transformer_jax.data.corpora import parse_corpora
from transformer_jax.storage import (
    Writer,
    atomic_write,
    cache_folder,
    cached,
    local_folder,
    local_path,
    lock,
)
from transformer_jax.training.dry_run import dry_run
from transformer_jax.training.run import check_owner, load_data


def of_config(tmp_path, group: str, field: str, path: str):
    """Opens the data of a run one of whose fields is a path."""
    config = Config()
    config.data.train = "numbers:train"
    setattr(getattr(config, group), field, path)
    return load_data(tmp_path, check_owner(tmp_path, config))


USES = {
    "train": lambda tmp_path, path: train(Config(), path),
    "dry run": lambda tmp_path, path: dry_run(Config(), path),
    "from_workdir": lambda tmp_path, path: Translator.from_workdir(path),
    "save": lambda tmp_path, path: figures.save(Figure(), f"{path}/a.png"),
    "config": lambda tmp_path, path: load_config(f"{path}/config.py"),
    "configs": lambda tmp_path, path: plan([f"{path}/config.py:x"], tmp_path),
    "compare": lambda tmp_path, path: compare([], path, Budget(1)),
    "text": lambda tmp_path, path: parse_corpora(f"text:{path}@en-de@2", "en", "de"),
    "tsv": lambda tmp_path, path: parse_corpora(f"text:here,tsv:{path}", "en", "de"),
    "valid": lambda tmp_path, path: of_config(tmp_path, "data", "valid", f"text:{path}"),
    "test": lambda tmp_path, path: of_config(tmp_path, "data", "test", f"text:{path}"),
    "vocabulary": lambda tmp_path, path: of_config(tmp_path, "data", "vocabulary", path),
    "cache_dir": lambda tmp_path, path: of_config(tmp_path, "data", "cache_dir", path),
    "init_from": lambda tmp_path, path: of_config(tmp_path, "training", "init_from", path),
}


@pytest.mark.parametrize("use", USES)
def test_a_path_of_another_storage_is_refused_wherever_it_is_given(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^gs://bucket/x[\w./]* is not a local path: mount "):
        USES[use](tmp_path, "gs://bucket/x")
    assert not list(tmp_path.glob("gs*"))


PATH_FLAGS = {
    "train": ["workdir"],
    "decode": ["workdir", "input", "output", "prefix_file", "attention_html"],
    "compare": ["workdir", "probes"],
    "export": ["workdir", "output"],
    "import": ["workdir", "source"],
}


@pytest.mark.parametrize("command", PATH_FLAGS)
def test_a_flag_that_is_a_path_is_a_local_one(command, monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    needed = ["--workdir=a", *(["--config=b"] if command == "train" else [])]
    needed += ["--configs=b"] if command == "compare" else []
    needed += ["--format=safetensors", "--output=b"] if command == "export" else []
    needed += ["--format=marian", "--source=b"] if command == "import" else []
    for name in PATH_FLAGS[command]:
        found = getattr(parser_of(command).parse([*needed, f"--{name}=~/runs/x"]), name)
        assert (found[-1] if isinstance(found, list) else found) == "/home/me/runs/x"
        with pytest.raises(SystemExit):
            parser_of(command).parse([*needed, f"--{name}=s3://bucket/x"])
        assert capsys.readouterr().err.startswith(
            f"error: --{name}: s3://bucket/x is not a local path"
        )


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("~/a", "/home/me/a"),
        ("~", "/home/me"),
        ("~root/a", f"{pwd.getpwnam('root').pw_dir}/a"),
        ("./~/a", "./~/a"),
        ("a:b/c", "a:b/c"),
        ("2024-01-01T10:/a", "2024-01-01T10:/a"),
        (pathlib.Path("a/b"), "a/b"),
    ],
)
def test_a_home_folder_is_expanded_and_other_names_are_as_they_are(given, path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert local_path(given) == path


@pytest.mark.parametrize(
    "path",
    [
        "gs:/b/x",
        "http://x.org/a",
        "hdfs://a",
        "file:///a",
        pathlib.Path("gs://b"),
        "~nobody-at-all/a",
    ],
)
def test_what_is_no_local_path_is_refused(path):
    with pytest.raises(ValueError, match="is not a local path|no home folder ~nobody-at-all"):
        local_path(path)


def test_a_file_is_no_folder(tmp_path):
    assert local_folder(tmp_path / "new") == tmp_path / "new"
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; the name of a folder was expected"):
        local_folder(tmp_path / "file")


def test_a_corpus_at_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.tsv").write_text("one\teins\n")
    assert [tuple(pair) for pair in parse_corpora("tsv:~/c.tsv", "en", "de")[0]] == [
        ("one", "eins")
    ]


def test_the_cache_is_where_the_user_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("data") == tmp_path / "transformer_jax" / "data"
    home = pathlib.Path.home() / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder("jax") == home / "transformer_jax" / "jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("jax") == home / "transformer_jax" / "jax"


def test_without_a_home_the_cache_is_a_folder_of_the_temporary_directory(monkeypatch):
    """As of a container's user who is in no list of users."""

    def unknown(number):
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert pathlib.Path(tempfile.gettempdir()) in cache_folder("jax").parents


def names_in(folder: pathlib.Path) -> list[str]:
    """What a folder holds, but for locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write("größer\n")
        assert not path.exists()
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write("half")
        raise KeyError
    assert path.read_text("utf-8") == "größer\n" and names_in(tmp_path) == ["a.txt"]
    with atomic_write(path, "wb") as file, atomic_write(path, "wb") as second:
        file.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first" and names_in(tmp_path) == ["a.txt"]
    with atomic_write(path, errors="xmlcharrefreplace") as file:
        file.write("\ud800")
    assert path.read_text() == "&#55296;"
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "none" / "a.txt"):
        pass


def unlocked(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_lock_is_held_by_one_at_a_time_and_not_needed(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    with lock(path) as held:
        assert held is True
        with pytest.raises(BlockingIOError), lock(path):
            pass
    monkeypatch.setattr(storage.fcntl, "flock", unlocked)
    with lock(path) as held, lock(path) as second:
        assert held is second is False


RECORD = {"pairs": 300, "by": "tests"}


def build(writer: Writer) -> dict:
    writer.append("ids", np.arange(1000, dtype=np.uint16))
    writer.append("offsets", np.zeros(1, np.int64))
    writer.append("ids", np.arange(500))
    writer.append("none", np.zeros(0, np.float32))
    writer.append("offsets", np.arange(4) * 2**33)
    writer.notes = {"seen": 1}
    return RECORD


def no_build(writer: Writer) -> dict:
    raise AssertionError("it was built again")


def check(entry) -> None:
    assert sorted(entry.arrays) == ["ids", "none", "offsets"]
    ids, none, offsets = (entry.arrays[name] for name in ("ids", "none", "offsets"))
    assert ids.dtype == np.uint16 and ids.tolist() == [*range(1000), *range(500)]
    assert offsets.dtype == np.int64 and offsets.tolist() == [0, 0, 2**33, 2**34, 3 * 2**33]
    assert none.dtype == np.float32 and none.shape == (0,)
    assert entry.record == RECORD and entry.notes == {"seen": 1}


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "deep" / "cache"


def entry(cache, build, key=1):
    return cached(cache, "kind", key, "the thing", build)


def folder_of(cache) -> pathlib.Path:
    (name,) = names_in(cache)
    return cache / name


def test_what_is_built_is_opened_and_not_built_again(cache, caplog):
    first, second = entry(cache, build), entry(cache, no_build)
    check(first)
    check(second)
    assert first.checksum == second.checksum and not caplog.records
    assert len(names_in(cache)) == 1
    assert isinstance(first.arrays["ids"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        first.arrays["ids"][0] = 1
    for key in (2, [1], {"a": 1}):
        with pytest.raises(AssertionError):
            entry(cache, no_build, key)
    with pytest.raises(AssertionError):
        cached(cache, "other", 1, "the thing", no_build)


def test_checksums_tell_content_record_names_and_boundaries_but_not_notes(cache):
    def checksum(record, **arrays):
        def write(writer):
            for name, values in arrays.items():
                writer.append(name, np.array(values, np.int32))
            writer.notes = {"number": len(checksums)}
            return record

        checksums.append(entry(cache, write, len(checksums)).checksum)
        return checksums[-1]

    checksums = []
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


@pytest.mark.parametrize(
    "error", [ValueError("line 7"), FileNotFoundError(2, "no", "c.en"), KeyboardInterrupt()]
)
def test_a_build_that_fails_leaves_nothing_and_its_error_is_its_own(cache, error):
    def fails(writer):
        build(writer)
        raise error

    with pytest.raises(type(error)) as raised:
        entry(cache, fails)
    assert raised.value is error and "cache_dir" not in str(error)
    assert names_in(cache) == []
    check(entry(cache, build))


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_dead_process_left_is_removed_where_locks_say_that_it_is_dead(
    cache, monkeypatch, locks
):
    entry(cache, build)
    folder = folder_of(cache)
    storage.shutil.rmtree(folder)
    left = {f"{folder.name}.aside-0", "other.aside-0", f"{folder.name}2"}
    for name in left:
        (cache / name).mkdir()
        (cache / name / "ids").write_bytes(b"half")
    if not locks:
        monkeypatch.setattr(storage.fcntl, "flock", unlocked)
    check(entry(cache, build))
    removed = {f"{folder.name}.aside-0"} if locks else set()
    assert set(names_in(cache)) == left - removed | {folder.name}


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


def folder_in_place_of(path: pathlib.Path) -> None:
    path.unlink()
    path.mkdir()


def rename_array(folder: pathlib.Path, name: str, **values) -> None:
    def change(meta):
        entry = meta["arrays"].pop("ids") | values
        return meta | {"arrays": meta["arrays"] | {name: entry}}

    rewrite_meta(folder, change)


DAMAGES = {
    "flipped byte": (lambda f: flip(f / "ids", 777), "another checksum"),
    "flipped last byte": (lambda f: flip(f / "offsets", -1), "another checksum"),
    "truncated": (lambda f: os.truncate(f / "ids", 2998), "2998 bytes"),
    "longer": (lambda f: os.truncate(f / "none", 4), "4 bytes"),
    "missing": (lambda f: (f / "offsets").unlink(), "offsets"),
    "empty one missing": (lambda f: (f / "none").unlink(), "none"),
    "no meta": (lambda f: (f / "meta.json").unlink(), "meta.json"),
    "meta is a folder": (lambda f: folder_in_place_of(f / "meta.json"), "Is a directory"),
    "deep meta": (lambda f: (f / "meta.json").write_text("[" * 100_000), "nested too deeply"),
    "meta of a file above": (lambda f: rename_array(f, "../secret"), "names '../secret'"),
    "meta of a file elsewhere": (lambda f: rename_array(f, "/secret"), "names '/secret'"),
    "meta of objects": (lambda f: rename_array(f, "ids", dtype="|O"), "of type object"),
    "empty meta": (lambda f: os.truncate(f / "meta.json", 0), "Expecting value"),
    "binary meta": (lambda f: (f / "meta.json").write_bytes(b"\xff\xfe\x00"), "utf-8"),
    "other meta": (lambda f: rewrite_meta(f, lambda meta: [meta]), ""),
    "meta without record": (lambda f: rewrite_meta(f, lambda m: {"arrays": m["arrays"]}), "record"),
    "meta of another checksum": (lambda f: flip(f / "meta.json", -4, 1), "meta.json has another"),
    "meta of other arrays": (lambda f: rewrite_meta(f, lambda m: m | {"arrays": {"ids": 1}}), ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_built_again_with_a_warning(cache, caplog, damage):
    entry(cache, build)
    damage, reason = DAMAGES[damage]
    damage(folder_of(cache))
    check(entry(cache, build))
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "the thing is damaged (" in record.message
    assert reason in record.message and record.message.endswith("it is built again")
    check(entry(cache, no_build))
    assert len(names_in(cache)) == 1


@pytest.mark.parametrize("mask", [1, 4], ids=bin)
def test_no_flipped_bit_of_the_record_goes_unseen(cache, monkeypatch, mask):
    """What is opened is what was built, or it is built again."""
    monkeypatch.setattr(storage.os, "fsync", lambda _: None)  # it is slow
    entry(cache, build)
    path = folder_of(cache) / "meta.json"
    whole, unseen = path.read_bytes(), []
    for position in range(len(whole)):
        flip(path, position, mask)
        try:
            check(entry(cache, build))
        except Exception as error:
            line = path.read_bytes()[:position].count(b"\n")
            unseen.append(f"{path.read_bytes().splitlines()[line]}: {error!r:.60}")
        path.write_bytes(whole)
    assert unseen == []


@pytest.mark.parametrize("depth", [0, 1])
def test_a_cache_that_is_a_file_is_refused_with_what_to_do(cache, depth):
    file = [cache, *cache.parents][depth]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("not a folder")
    with pytest.raises(OSError, match=r"config\.data\.cache_dir names another folder") as error:
        entry(cache, build)
    assert str(cache) in str(error.value) and "\n" not in str(error.value)
    assert file.read_text() == "not a folder"


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (storage.os, "fsync"),
        (storage.os, "replace"),
        (storage.pathlib.Path, "mkdir"),
        (storage.pathlib.Path, "rename"),
        (storage.pathlib.Path, "open"),
    ],
)
def test_a_full_disk_is_an_error_that_says_what_to_do_and_leaves_nothing(
    cache, monkeypatch, where, name
):
    with monkeypatch.context() as patch:
        patch.setattr(where, name, full)
        with pytest.raises(OSError) as error:
            entry(cache, build)
    assert error.value.errno == errno.ENOSPC
    assert "config.data.cache_dir" in str(error.value) and "No space left" in str(error.value)
    assert str(cache) in str(error.value)
    assert not cache.is_dir() or names_in(cache) == []
    check(entry(cache, build))


@contextlib.contextmanager
def script(tmp_path: pathlib.Path, code: str, *arguments) -> Iterator[subprocess.Popen]:
    """A process that has this module's imports, and ends with the test."""
    path = tmp_path / f"script_{len(list(tmp_path.glob('script_*')))}.py"
    path.write_text(
        "import pathlib, sys, time\nimport numpy as np\n"
        "from transformer_jax.storage import cached\n"
        "cache, here = map(pathlib.Path, sys.argv[1:3])\n" + textwrap.dedent(code)
    )
    root = str(pathlib.Path(storage.__file__).parents[1])
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


def test_a_disk_that_fills_midway_leaves_nothing(tmp_path, cache):
    """Whether in writing, or in what was still buffered when the build was done."""
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for count in 100, 101, 1000:
            def build(writer):
                for _ in range(count):
                    writer.append("ids", np.zeros(1000, np.uint8))
                return {}
            try:
                cached(cache, "kind", count, "it", build)
            except OSError as error:
                print(error)
    """
    with script(tmp_path, code, cache, tmp_path) as process:
        out, errors = process.communicate(timeout=60)
    assert not errors and process.returncode == 0 and len(names_in(cache)) == 1
    assert len(out.splitlines()) == 2
    for line in out.splitlines():
        assert "config.data.cache_dir names another folder" in line and str(cache) in line


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
    entry = cached(cache, "kind", 1, "it", build)
    print(entry.arrays["ids"].sum(), entry.record, entry.checksum)
"""


def test_of_several_processes_one_builds_and_the_others_wait(tmp_path, cache):
    with (
        script(tmp_path, SLOW, cache, tmp_path) as first,
        script(tmp_path, SLOW, cache, tmp_path) as second,
    ):
        processes = [first, second]
        assert {process.stdout.readline() for process in processes} == {"ready\n"}
        # Whichever builds goes on only after both have come as far.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            ended = list(pool.map(lambda x: x.communicate("go on\n", timeout=60), processes))
    results = {out.removeprefix("begun\n") for out, _ in ended}
    assert len(results) == 1 and results.pop().startswith(f"{999 * 500 + 499 * 250} {{'n': 1}}")
    assert [errors for _, errors in ended] == ["", ""]
    assert (tmp_path / "builds").read_text() == "build\n"
    assert len(names_in(cache)) == 1


def test_a_process_killed_in_a_build_leaves_nothing_that_is_taken_for_whole(tmp_path, cache):
    with script(tmp_path, SLOW, cache, tmp_path) as process:
        assert process.stdout.readline() + process.stdout.readline() == "ready\nbegun\n"
        (left,) = names_in(cache)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    assert names_in(cache) == [left] and ".aside-" in left
    check(entry(cache, build))
    assert len(names_in(cache)) == 1


def test_whoever_waits_logs_for_what(cache, caplog, monkeypatch):
    caplog.set_level("INFO")
    begun, go_on = threading.Event(), threading.Event()

    def slow(writer):
        begun.set()
        assert go_on.wait(20)
        return build(writer)

    # Of this test alone: all tests of a process have one handler.
    records = caplog.handler.records
    monkeypatch.setattr(caplog.handler, "emit", lambda x: go_on.set() or records.append(x))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(entry, cache, slow)
        assert begun.wait(20)
        second = pool.submit(entry, cache, no_build)
        check(second.result(40))
        check(first.result())
    (record,) = caplog.records
    assert record.getMessage() == "waiting for another process, which makes the thing"


def test_without_locks_a_build_that_ends_second_changes_nothing(cache, monkeypatch):
    """What others have mapped, and know by its checksum."""
    monkeypatch.setattr(storage.fcntl, "flock", unlocked)

    def overtaken(writer):
        first.append(entry(cache, build))
        writer.append("ids", np.zeros(7, np.int32))
        return {"other": True}

    first = []
    second = entry(cache, overtaken)
    check(second)
    assert second.checksum == first[0].checksum and len(names_in(cache)) == 1


def test_without_locks_a_file_in_the_way_is_an_error(cache, monkeypatch):
    monkeypatch.setattr(storage.fcntl, "flock", unlocked)

    def blocked(writer):
        (aside,) = names_in(cache)
        (cache / aside.partition(".")[0]).write_text("not a folder")
        return build(writer)

    with pytest.raises(OSError, match=r"config\.data\.cache_dir names another folder"):
        entry(cache, blocked)
    assert folder_of(cache).is_file()
