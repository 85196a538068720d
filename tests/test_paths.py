"""Paths that a user gives, wherever one is given, and the folder of what can be made again."""

import importlib
import pathlib
import pwd
import tempfile

import pytest
from absl import flags
from matplotlib.figure import Figure

from transformer_jax import Config, Translator, figures, train
from transformer_jax.compare.comparison import Budget, compare
from transformer_jax.compare.plan import plan
from transformer_jax.config import load_config
from transformer_jax.data.corpus import parse_corpora
from transformer_jax.paths import cache_folder, local_folder, local_path
from transformer_jax.training.dry_run import dry_run
from transformer_jax.training.workdir import check_owner, load_data


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
    "transformer_jax.compare.__main__": ["workdir"],
}


@pytest.mark.parametrize("program", PATH_FLAGS)
def test_a_flag_that_is_a_path_is_a_local_one(program, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    before = set(flags.FLAGS)
    try:
        importlib.import_module(program)
        for name in PATH_FLAGS[program]:
            parse = flags.FLAGS[name].parser.parse
            assert parse("~/runs/x") == "/home/me/runs/x"
            with pytest.raises(ValueError, match="^s3://bucket/x is not a local path"):
                parse("s3://bucket/x")
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


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
