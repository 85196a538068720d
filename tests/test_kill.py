"""A short form of benchmarks/kill_test.py."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
# In two processes by signals alone: what outlives a killed one waits for its heartbeat.
@pytest.mark.parametrize(("processes", "kills", "seed"), [(1, 5, 11303), (2, 2, 0)])
def test_killed_runs_end_as_one_that_was_left_alone(processes, kills, seed):
    command = [sys.executable, ROOT / "benchmarks/kill_test.py", f"--kills={kills}"]
    command += [f"--processes={processes}", f"--seed={seed}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] == kills
