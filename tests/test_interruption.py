"""Signals end a command at once, whatever it does, or are noted by a run that saves first."""

import os
import signal
import subprocess
import sys

import pytest

from transformer_jax.interruption import Interrupted, noted

COMMAND = """
import gc, hashlib, pathlib, signal, sys, time
from transformer_jax import interruption
signal.signal(signal.SIGHUP, int(sys.argv[3]))
interruption.end_on_signals(75)
left = pathlib.Path(sys.argv[1])

def steps():
    print("ready", flush=True)
    time.sleep(60)

def compiling():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)  # as XLA: one long call, without Python's lock

def collecting():
    gc.callbacks.append(lambda *_: [i for i in range(100)])
    print("ready", flush=True)
    while True:
        gc.collect(0)

def saving():
    with interruption.noted() as stop:
        print("ready", flush=True)
        while not stop.signal:
            time.sleep(0.01)
        print("saving", flush=True)
        time.sleep(60)

left.touch()
with interruption.undone(left.unlink):
    globals()[sys.argv[2]]()
"""


def start(tmp_path, activity: str, hangup=signal.SIG_DFL) -> subprocess.Popen:
    """A command that does something, and is doing it; `hangup` is what it finds of SIGHUP."""
    command = [sys.executable, "-c", COMMAND, tmp_path / "left", activity, str(int(hangup))]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **pipes)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
@pytest.mark.parametrize("activity", ["steps", "compiling", "collecting"])
def test_a_signal_ends_a_command_at_once_and_nothing_is_left(tmp_path, activity, name):
    with start(tmp_path, activity) as process:
        process.send_signal(signal.Signals[name])
        _, err = process.communicate(timeout=20)
    assert process.returncode == os.EX_TEMPFAIL
    assert err == f"\nstopped by {name}; the same command goes on\n"
    assert not (tmp_path / "left").exists()


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_what_saves(tmp_path, second):
    with start(tmp_path, "saving") as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "saving\n"
        process.send_signal(second)
        assert process.wait(20) == 128 + second
    assert not (tmp_path / "left").exists()


def test_what_is_ignored_stays_ignored(tmp_path):
    """As nohup has it."""
    with start(tmp_path, "steps", signal.SIG_IGN) as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[1].startswith("\nstopped by SIGTERM")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_program_notes_one_and_has_its_handlers_back(number):
    before = signal.getsignal(number)
    if before == signal.SIG_IGN:
        pytest.skip("ignored here, as nohup does with SIGHUP, and so by us")
    with noted() as stop:
        stop.check()
        signal.raise_signal(number)
        assert stop.signal == number
        with pytest.raises(Interrupted):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == before


def test_a_second_signal_is_the_programs():
    """As a notebook's, which must be able to be ended."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with noted() as stop:
            signal.raise_signal(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM and not seen
            signal.raise_signal(signal.SIGTERM)
            assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
