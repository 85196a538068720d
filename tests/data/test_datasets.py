"""The data of a run: how often a start reads its corpora."""

import builtins
import collections
import gzip
import os
import pathlib

import pytest

from transformer_jax.config import Config
from transformer_jax.data.datasets import load_data
from transformer_jax.data.file_hashes import FileHashes


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Of a run whose files are older than a moment."""
    for split, number in (("train", 4000), ("valid", 50), ("test", 50)):
        for side in ("en", "de"):
            lines = "".join(f"{side} {i} {i * i} {i % 17}\n" for i in range(number))
            name = tmp_path / f"{split}.{side}"
            if (split, side) == ("train", "de"):
                name.with_suffix(".de.gz").write_bytes(gzip.compress(lines.encode()))
            else:
                name.write_text(lines)
    times = [path.stat().st_ctime_ns for path in tmp_path.iterdir()]
    monkeypatch.setattr("time.time_ns", lambda: max(times) + 3_000_000_000)
    config = Config()
    config.data.train, config.data.valid = (f"text:{tmp_path / x}" for x in ("train", "valid"))
    config.data.test = f"text:{tmp_path / 'test'}"
    config.data.cache_dir = str(tmp_path / "cache")
    config.data.vocab_size, config.data.byte_fallback = 60, False
    return config


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """How often each file is opened, by whatever way."""
    counts, plain, hashed = collections.Counter(), builtins.open, FileHashes.open

    def count(path):
        if os.path.dirname(str(path)) == str(tmp_path):
            counts[os.path.basename(path).partition(".")[0]] += 1

    def open_(path, *args, **kwargs):
        count(path)
        return plain(path, *args, **kwargs)

    def open_hashed(self, path):
        count(path)
        return hashed(self, path)

    monkeypatch.setattr(builtins, "open", open_)
    monkeypatch.setattr(FileHashes, "open", open_hashed)
    return counts


SIDES = 2


@pytest.mark.parametrize("kind", ["unigram", "symbols", "bytes"])
@pytest.mark.parametrize("max_pairs", [0, 3000])
def test_a_cold_start_reads_a_corpus_twice_and_a_warm_one_never(config, opened, kind, max_pairs):
    config.data.vocabulary_kind, config.data.max_pairs = kind, max_pairs
    cold = load_data(config)
    # Validation compares with its text, and a test corpus is seen to be there.
    assert opened == {"train": 2 * SIDES, "valid": 2 * SIDES, "test": SIDES}
    opened.clear()
    warm = load_data(config)
    assert opened == {"valid": SIDES, "test": SIDES}
    assert warm.fingerprint == cold.fingerprint
    assert warm.vocabulary.model == cold.vocabulary.model
    opened.clear()
    config.data.vocab_size = 70
    load_data(config)
    assert opened["train"] == (0 if kind == "bytes" else 2 * SIDES)


def test_a_corpus_that_changes_between_its_readings_is_refused(config, monkeypatch, tmp_path):
    """Its vocabulary is of what it was, and its tokens would be of what it is."""
    path = tmp_path / "train.en"
    text = path.read_text()
    train = load_data.__globals__["Vocabulary"].train

    def changes(*args, **kwargs):
        path.write_text(text.replace("7", "8"))
        return train(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("transformer_jax.data.vocabulary.Vocabulary.train", changes)
        with pytest.raises(ValueError, match=r"train has changed while it was read; start again"):
            load_data(config)
    assert not [x for x in pathlib.Path(config.data.cache_dir).iterdir() if x.is_dir()]
    assert len(load_data(config).train[0]) == 4000


def test_an_empty_corpus_of_a_mixture_is_named(config, tmp_path):
    (tmp_path / "none.tsv").write_text("")
    config.data.train += f",tsv:{tmp_path / 'none.tsv'}"
    with pytest.raises(ValueError, match=r"the training corpus tsv:.*/none\.tsv is empty"):
        load_data(config)
