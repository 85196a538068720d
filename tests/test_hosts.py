"""Processes of one run, as on several hosts, over gloo; each has two devices."""

import contextlib
import json
import os
import re
import signal
import socket

import pytest
from commands import COMPILE_FAST, metrics, run, start

from transformer_jax import hosts

TWO_DEVICES = {"XLA_FLAGS": f"{COMPILE_FAST} --xla_force_host_platform_device_count=2"}
MORE = {
    "model.dropout_rate": 0,
    "training.num_steps": 8,
    "training.log_every": 1,
    "training.save_every": 4,
    "training.eval_every": 4,
    "training.eval_sentences": 3,
}


@contextlib.contextmanager
def started(home, *commands: list):
    """Processes of one job, each with its command."""
    with socket.socket() as free, contextlib.ExitStack() as stack:
        free.bind(("127.0.0.1", 0))
        job = [f"--coordinator=127.0.0.1:{free.getsockname()[1]}"]
        job += [f"--num_processes={len(commands)}"]
        processes = []
        for index, command in enumerate(commands):
            if len(commands) > 1:
                command = [*command, *job, f"--process_id={index}"]
            process = start(home, *command, variables=TWO_DEVICES)
            processes.append(stack.enter_context(process))
        free.close()
        yield processes


def training(home, workdir, *flags: str, count: int = 2):
    """Processes of one run."""
    common = [f"--config.{name}={value}" for name, value in MORE.items()]
    common += [f"--config={home / 'tiny.py'}", f"--workdir={workdir}", *flags]
    return started(home, *[["train.py", *common]] * count)


def ended(processes) -> list[str]:
    """What each wrote to stderr; all have the same exit status, given first."""
    errors = [process.communicate(timeout=240)[1] for process in processes]
    (status,) = {process.returncode for process in processes}
    return [status, *errors]


def losses(workdir) -> list[float]:
    return [line["loss"] for line in metrics(workdir) if "loss" in line]


def test_two_processes_train_as_one_stop_together_and_go_on_as_a_mesh_and_as_one(home, tmp_path):
    test = f"--config.data.test=text:{home / 'corpus'}"
    with training(home, tmp_path / "one", test, count=1) as processes:
        assert ended(processes)[0] == 0
    with training(home, tmp_path / "two", "--config.training.num_steps=1000000") as processes:
        for line in processes[0].stderr:
            if "step 2:" in line:
                processes[1].send_signal(signal.SIGUSR1)  # to the one that logs nothing
                break
        status, log, quiet = ended(processes)
    assert status == os.EX_TEMPFAIL and "loss" not in quiet
    step = int(re.search(r"stopped by SIGUSR1 at step (\d+)", log)[1])
    assert str(step) in os.listdir(tmp_path / "two/checkpoints")
    last, mesh = max(step, 8), ("--config.parallel.fsdp=2", "--config.parallel.tensor=2")
    steps = f"--config.training.num_steps={last}"
    with training(home, tmp_path / "two", test, steps, *mesh) as processes:
        status, log, _ = ended(processes)
    assert status == 0 and f"resuming after step {step}" in log
    assert losses(tmp_path / "two")[:8] == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    scores = [json.loads((tmp_path / x / "test.json").read_text()) for x in ("one", "two")]
    assert scores[0]["sentences"] == scores[1]["sentences"] == 3
    if step <= 8:
        assert scores[0]["chrf"] == pytest.approx(scores[1]["chrf"])
    steps = f"--config.training.num_steps={last + 2}"
    with training(home, tmp_path / "two", steps, count=1) as processes:
        assert ended(processes)[0] == 0
    assert len(losses(tmp_path / "two")) == last + 2


def test_what_fails_in_one_process_ends_all_with_one_sentence(home, tmp_path):
    (tmp_path / "taken").mkdir()
    with training(home, tmp_path / "taken", "--config.data.train=text:/nowhere") as processes:
        status, *errors = ended(processes)
    assert status == 1
    for error in errors:
        assert "\nerror: process 0: there is no file /nowhere" in f"\n{error}"


def test_two_processes_decode_as_one_or_end_together_and_go_on(trained, home, tmp_path):
    workdir, (source, whole, output) = trained[0], (tmp_path / x for x in ("in", "whole", "out"))
    source.write_text("seven\n\ntwo hundred\none hundred and one\nsix\n")
    command = ["decode.py", f"--workdir={workdir}", "--n_best=2"]
    assert run(home, *command, f"--input={source}", f"--output={whole}").returncode == 0
    command.append(f"--output={output}")
    with started(home, *([*command, f"--input={x}"] for x in (source, "none"))) as processes:
        status, *errors = ended(processes)
    reason = "a job of several processes needs --corpus, or an --input that is a file; --input=none"
    assert status == 1 and all(f"\nerror: process 1: {reason}" in f"\n{x}" for x in errors)
    command.append(f"--input={source}")
    with started(home, command, command) as processes:
        assert ended(processes)[0] == 0
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["in", "out", "whole"]


@pytest.mark.parametrize(
    "arguments", [("host:1",), ("", 2, 0), ("host:1", 2, 2), ("host:1", 0, 0), ("", 0, 1)]
)
def test_half_an_address_is_refused(arguments):
    with pytest.raises(ValueError, match="expected HOST:PORT of process 0"):
        hosts.initialize(*arguments)


@pytest.mark.parametrize(
    ("environment", "arguments", "joined"),
    [
        ({}, (), None),
        ({"SLURM_STEP_NUM_TASKS": "1"}, (), None),
        ({"SLURM_STEP_NUM_TASKS": "2"}, (), ()),
        ({"OMPI_COMM_WORLD_SIZE": "16"}, (), ()),
        ({}, ("auto",), ()),
        ({}, ("host:1", 2, 1), ("host:1", 2, 1)),
    ],
)
def test_processes_are_joined_where_there_are_some(monkeypatch, environment, arguments, joined):
    calls = []

    def initialize(*arguments):
        calls.append(arguments)
        raise RuntimeError("DEADLINE_EXCEEDED:\n nobody there")

    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("jax.distributed.initialize", initialize)
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    if joined is None:
        hosts.initialize(*arguments)
        assert not calls
        return
    with pytest.raises(ValueError, match="cannot be joined: DEADLINE_EXCEEDED: nobody there"):
        hosts.initialize(*arguments)
    assert calls == [joined]


def test_one_process_agrees_with_itself():
    assert hosts.gather({"a": [1, None]}) == [{"a": [1, None]}]
    assert hosts.share(7) == slice(0, 7) and hosts.is_first() and hosts.largest(15) == 15
    with pytest.raises(FileNotFoundError), hosts.together():
        raise FileNotFoundError


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [
        (RuntimeError("Gloo AllGather failed: Connection closed by peer"), SystemExit, 134),
        (RuntimeError("a defect"), RuntimeError, 1),
    ],
)
def test_a_process_that_others_wait_for_does_not_wait(monkeypatch, error, raised, status):
    at_exit = []
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("atexit.register", lambda *call: at_exit.append(call))
    with pytest.raises(raised), hosts.leaving_on_errors():
        raise error
    assert at_exit == [(os._exit, status)]
