"""The load test, in small: a real server and its clients, and SIGTERM under load."""

import json

from commands import run


def test_no_answer_is_wrong_cut_or_lost(trained, home):
    flags = ["--requests=24", "--at_once=8", "--kill_after=0.5"]
    process = run(home, "benchmarks/serve_load.py", f"--workdir={trained[0]}", *flags)
    assert process.returncode == 0, process.stderr
    loaded, killed = map(json.loads, process.stdout.splitlines())
    assert loaded["answered"] == 24 and loaded["p50_s"] <= loaded["p99_s"]
    assert killed["answered"] > 0 and killed["exit_status"] == killed["lost"] == 0
