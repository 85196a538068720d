"""What a stranger gives runs no code, writes nowhere else, and ends in a sentence or is rebuilt."""

import contextlib
import json
import logging
import os
import pathlib
import pickle
import random
import shutil
import zlib

import numpy as np
import pytest
from builders import tiny_config

from transformer_jax import train
from transformer_jax.config import Config
from transformer_jax.data import text_files
from transformer_jax.data.corpora import parse_corpora
from transformer_jax.data.file_hashes import FileHashes
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.saved_run import load_run, read_config
from transformer_jax.storage import Writer, cached, lock
from transformer_jax.training.metrics import MetricLog

# Reads that tensorstore still has under way when one fails end in a closed event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Planted:
    """Once unpickled, leaves a file behind."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def planted(tmp_path):
    """A pickle, which must not be read."""
    ran = tmp_path / "ran"
    yield pickle.dumps(Planted(ran), protocol=0)  # ASCII, so that what reads text could read it
    assert not ran.exists()


def test_the_planted_pickle_would_run(tmp_path):
    pickle.loads(pickle.dumps(Planted(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def short_config() -> Config:
    return tiny_config(num_steps=2, training={"save_every": 1})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    train(short_config(), workdir)
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@contextlib.contextmanager
def told(place: str):
    """The body succeeds, or fails with a sentence that names the place."""
    try:
        yield
    except (ValueError, OSError) as error:
        assert place in str(error), error


@pytest.mark.parametrize("name", ["config.json", "vocabulary.model"])
def test_a_pickle_in_place_of_config_or_vocabulary_is_told_by_its_name(run, planted, name):
    (run / name).write_bytes(planted)
    with pytest.raises(ValueError, match=name):
        load_run(run)


def test_a_vocabulary_of_other_bytes_than_utf8_is_told_by_its_name(run):
    path = run / "vocabulary.model"
    whole, vocabulary = path.read_bytes(), Vocabulary.load(path)
    for text in (vocabulary.pieces([len(vocabulary) - 1])[0], vocabulary.normalization):
        assert text.encode() in whole
        path.write_bytes(whole.replace(text.encode(), b"\xff" * len(text.encode())))
        with pytest.raises(ValueError, match=r"vocabulary\.model is not a SentencePiece model"):
            Vocabulary.load(path)


def test_a_pickle_among_the_metrics_is_no_line_of_them(run, planted):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    damaged = b'\xff\n{"step": "5"}\n{"step": ' + b"[" * 100_000 + b"\n[]\n"
    path.write_bytes(planted + b"\n" + damaged + whole)
    MetricLog(run, step=2, evaluated=2).close()
    assert path.read_bytes() == whole


def test_pickles_in_place_of_the_files_of_a_checkpoint_are_damage(finished, tmp_path, planted):
    """In those of each folder; the checkpoint before is used, or they are not read."""
    last = pathlib.Path("checkpoints", "2")
    folders = {path.parent for path in (finished / last).rglob("*") if path.is_file()}
    for folder in folders:
        run = shutil.copytree(finished, tmp_path / folder.name, dirs_exist_ok=True)
        for path in (run / folder.relative_to(finished)).iterdir():
            if path.is_file():
                path.write_bytes(planted)
        load_run(run, "last")
    run = shutil.copytree(finished, tmp_path / "resumed")
    for path in filter(pathlib.Path.is_file, (run / last / "optimizer").rglob("*")):
        path.write_bytes(planted)
    assert train(short_config(), run).status == 0


def write_entry(writer: Writer) -> dict[str, int]:
    writer.append("ids", np.arange(99, dtype=np.uint16))
    return {"pairs": 9}


@pytest.mark.parametrize("object_dtype", [False, True])
def test_a_pickle_in_the_cache_is_rebuilt(tmp_path, planted, object_dtype):
    cached(tmp_path / "cache", "tokens", 1, "tokens", write_entry)
    (folder,) = (tmp_path / "cache").glob("tokens-*[!k]")
    for name in ("ids", "meta.json"):
        content = np.array([Planted(tmp_path / "ran")], object).dumps() if object_dtype else planted
        (folder / name).write_bytes(content)
        if name == "ids" and object_dtype:  # with a checksum that is right
            arrays = {"ids": {"dtype": "|O", "length": 1, "crc32": zlib.crc32(content[:8])}}
            os.truncate(folder / name, 8)
            meta = {"arrays": arrays, "record": {}, "notes": {}}
            meta["crc32"] = zlib.crc32(json.dumps(meta).encode())
            (folder / "meta.json").write_text(json.dumps(meta))
        entry = cached(tmp_path / "cache", "tokens", 1, "tokens", write_entry)
        assert entry.arrays["ids"].tolist() == list(range(99))


def test_a_pickle_in_place_of_a_remembered_hash_is_read_over(tmp_path, planted):
    path, cache = tmp_path / "text", tmp_path / "cache"
    path.write_text("text\n")
    os.utime(path, (0, 0))
    expected = FileHashes(cache)[str(path)]
    for entry in cache.glob("hash-*"):
        entry.write_bytes(planted)
    assert FileHashes(cache)[str(path)] == expected


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_pickle_in_place_of_a_corpus_is_told_by_its_name(tmp_path, planted, suffix):
    path = tmp_path / f"corpus.tsv{suffix}"
    path.write_bytes(planted)
    with pytest.raises((ValueError, OSError), match=r"corpus\.tsv"):
        list(*parse_corpora(f"tsv:{path}", "en", "de"))


def test_a_config_that_is_nested_deeply_or_too_large_is_told(run):
    path = run / "config.json"
    deep = "[" * 3000 + "]" * 3000
    for text in (deep, f'{{"seed": {deep}}}', '{"model":' * 100_000):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json"):
            load_run(run)
    for field in ("num_layers", "model_dim", "feed_forward_dim"):
        config = json.loads(Config().to_json())
        config["model"][field] = 2_000_000
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=rf"model\.{field}=2000000 must be in "):
            load_run(run)
    path.write_bytes(b'{"seed": "\xff"}')
    with pytest.raises(ValueError, match=r"config\.json: 'utf-8' codec can't decode"):
        load_run(run)


NAMES = [".lock", "config.json", "vocabulary.model", "metrics.jsonl", "test.json"]


def test_nothing_is_written_through_a_link_in_a_workdir(tmp_path, finished):
    """Of a run that begins, whose files are all written."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    outside = {name: tmp_path / f"outside-{name}" for name in NAMES}
    for name, path in outside.items():
        path.write_text("precious")
        (workdir / name).symlink_to(path)
    config = tiny_config()
    config.training.num_steps, config.data.test = 1, "numbers:0-9"
    with pytest.raises(ValueError, match=r"\.lock is a symbolic link"):
        train(config, workdir)
    (workdir / ".lock").unlink()
    (workdir / "config.json").unlink()  # else the run has begun
    train(config, workdir)
    assert all(path.read_text() == "precious" for path in outside.values())
    assert not any((workdir / name).is_symlink() for name in NAMES)


def test_a_link_is_not_followed_by_a_lock_nor_is_what_it_names_emptied(tmp_path):
    (tmp_path / "outside").write_text("precious")
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(ValueError, match="is a symbolic link"), lock(tmp_path / "link"):
        pass
    os.link(tmp_path / "outside", tmp_path / "hard")
    with lock(tmp_path / "hard"):
        pass
    assert (tmp_path / "outside").read_text() == "precious"


@pytest.mark.parametrize("name", [".lock", "config.json", "vocabulary.model", "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_of_a_workdir_is_told_and_not_waited_for(run, name):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    with pytest.raises(ValueError, match=rf"{name} is neither a file nor a folder"):
        train(short_config(), run)


def test_checkpoints_are_not_written_to_a_folder_elsewhere(run, tmp_path):
    (run / "checkpoints").rename(tmp_path / "elsewhere")
    (run / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="checkpoints is a symbolic link"):
        train(short_config(), run)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_a_line_of_a_corpus_that_has_no_end_is_told(tmp_path, suffix):
    path = tmp_path / f"lines{suffix}"
    with {"": open, ".gz": text_files.gzip.open, ".xz": text_files.lzma.open}[suffix](
        path, "wb"
    ) as file:
        file.write(b"a" * 99 + b"\n" + b"b\r" * 5000)
    with text_files.open_text(str(path)) as file:
        lines = text_files.raw_lines(file, "in", max_line=99)
        assert next(lines) == b"a" * 99 + b"\n"
        with pytest.raises(ValueError, match="^in, line 2: longer than 99 bytes$"):
            next(lines)


def mutated(content: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, left out, doubled, or in another order."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        start, stop = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        stop = min(stop, start + 40)
        data[start:stop] = chance.choice(
            (b"", data[start:stop] * 2, data[start:stop][::-1], chance.randbytes(3), b"[" * 2000)
        )
    return bytes(data)


@pytest.mark.parametrize("seed", range(30))
def test_mutated_files_of_a_workdir_end_in_a_sentence(run, seed, caplog):
    chance = random.Random(seed)
    caplog.set_level(logging.CRITICAL)
    for name in ("config.json", "vocabulary.model"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(mutated(whole, chance))
        with told(name):
            if name == "config.json":
                read_config(run)
            else:
                vocabulary = Vocabulary.load(run / name)
                vocabulary.decode(vocabulary.encode(["seven \x00\u4e00"])[0])
                vocabulary.settings()
        (run / name).write_bytes(whole)
    path = run / "metrics.jsonl"
    path.write_bytes(mutated(path.read_bytes(), chance))
    MetricLog(run, step=2, evaluated=2).close()
    cache = run / "cache"
    cached(cache, "tokens", 1, "tokens", write_entry)
    (folder,) = cache.glob("tokens-*[!k]")
    for name in ("ids", "meta.json"):
        (folder / name).write_bytes(mutated((folder / name).read_bytes(), chance))
        entry = cached(cache, "tokens", 1, "tokens", write_entry)
        assert entry.arrays["ids"].tolist() == list(range(99))
