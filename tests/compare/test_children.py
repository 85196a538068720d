"""Functions in processes of their own: what they return, and how they may end."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from transformer_jax import allocator
from transformer_jax.compare.children import ChildError, in_child


def test_a_result_comes_back_from_another_process():
    assert in_child(os.getppid) == os.getpid()


@pytest.mark.parametrize(
    ("function", "argument", "told"),
    [
        (os._exit, 7, "its process died, with exit code 7"),
        (os.listdir, "/nowhere/at all", "No such file"),
        (int, "seven", "invalid literal"),
        (len, 3, "TypeError: object of type 'int' has no len"),
    ],
)
def test_whatever_ends_a_child_is_told_in_a_sentence(function, argument, told):
    with pytest.raises(ChildError, match=told) as raised:
        in_child(function, argument)
    assert "\n" not in str(raised.value)


HERE = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
PARENT = """
import os, pathlib, sys, time
from transformer_jax.compare.children import in_child

def child(path):
    if path == "nothing to say":
        raise TimeoutError
    pathlib.Path(path + ".tmp").write_text(str(os.getpid()))
    os.rename(path + ".tmp", path)
    time.sleep(60)

if __name__ == "__main__":
    try:
        print(in_child(child, sys.argv[1]))
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_child_escapes_what_its_output_cannot_show(monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    assert in_child(print, "\u00e9") is None


@pytest.mark.skipif(sys.platform != "linux", reason="it is glibc's allocator")
def test_a_child_may_keep_freed_memory_as_a_training_does(monkeypatch):
    for name in os.environ:
        if name.startswith(("GLIBC_TUNABLES", "MALLOC_", "TRANSFORMER_JAX_MALLOC")):
            monkeypatch.delenv(name)
    assert in_child(allocator.keep_freed_memory)


def test_an_error_without_words_is_an_error(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", "nothing to say"]
    done = subprocess.run(command, capture_output=True, text=True, env=HERE)
    assert done.stdout == "ChildError TimeoutError\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_child_does_not_outlive_its_parent(tmp_path, number):
    """Or it would go on to hold what the next start needs."""
    (tmp_path / "parent.py").write_text(PARENT)
    file = tmp_path / "pid"
    command = [sys.executable, tmp_path / "parent.py", file]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=HERE) as parent:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        parent.send_signal(number)
        parent.wait(30)
    child = int(file.read_text())
    while _runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{process}/stat")
    # One that has ended and that nobody has waited for yet still has a number.
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
