"""Devices: those that are there, what is told where none is, and their memory."""

import pathlib

import jax
import pytest
from commands import run

from transformer_jax import Config, Translator, train
from transformer_jax.compare.comparison import Budget, compare
from transformer_jax.devices import usable_memory
from transformer_jax.training.dry_run import dry_run

STARTS = {
    "train": lambda workdir: train(config(), workdir),
    "dry run": lambda workdir: dry_run(config(), workdir),
    "decode": lambda workdir: Translator.from_workdir(workdir),
}
CONFIG = """
from transformer_jax.config import Config

def get_config():
    config = Config()
    config.data.train = config.data.test = "text:nowhere"
    return config
"""


def config() -> Config:
    """With a corpus that does not exist, which is told later."""
    config = Config()
    config.data.train = "text:nowhere"
    return config


@pytest.mark.parametrize("error", [RuntimeError("no backend (set JAX_X)"), AssertionError()])
@pytest.mark.parametrize("start", STARTS)
def test_a_device_that_is_not_there_is_told_first(start, error, tmp_path, monkeypatch):
    def none():
        raise error

    monkeypatch.setattr(jax, "local_devices", none)
    told = r"JAX_PLATFORMS=\w+ finds no device here: no (such )?backend( is installed)? \(JAX_PL"
    with pytest.raises(ValueError, match=told):
        STARTS[start](tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train.py --config={}/tiny.py", "decode.py"])
def test_a_command_without_a_device_is_told_in_one_line(home, tmp_path, command):
    words = f"{command.format(home)} --workdir={tmp_path / 'run'}".split()
    process = run(home, *words, variables={"JAX_PLATFORMS": "cuda"})
    assert process.stderr.startswith("error: JAX_PLATFORMS=cuda finds no device here: ")
    assert process.stderr.count("\n") == 1 and process.returncode == 1


def test_a_comparison_without_a_device_is_told_first(tmp_path, monkeypatch):
    """By a process that looks for one as its runs do."""
    (tmp_path / "a.py").write_text(CONFIG)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(ValueError, match="JAX_PLATFORMS=cuda finds no device here: "):
        compare([str(tmp_path / "a.py")], tmp_path / "work", Budget(1000))


@pytest.mark.parametrize(("cgroup", "expected"), [("max", 8 << 30), (str(1 << 30), 1 << 30)])
def test_usable_memory_is_nine_tenths_of_what_is_free_or_allowed(cgroup, expected, monkeypatch):
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 8388608 kB\n"}
    files["/sys/fs/cgroup/memory.max"] = cgroup + "\n"
    read = pathlib.Path.read_text

    def read_text(path, *args, **options):
        return files[str(path)] if str(path) in files else read(path, *args, **options)

    monkeypatch.setattr(pathlib.Path, "exists", lambda path: str(path) in files)
    monkeypatch.setattr(pathlib.Path, "read_text", read_text)
    assert usable_memory() == int(0.9 * expected / jax.local_device_count())


def test_usable_memory_of_an_accelerator_is_what_its_allocator_has(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert usable_memory() == 900
