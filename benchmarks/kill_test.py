"""Kills a small run at random moments, starts it again, and compares it with one left alone.

    python benchmarks/kill_test.py --kills=100 --processes=1

Each run is killed several times, in any phase, by SIGKILL, SIGTERM, SIGINT, SIGHUP, SIGUSR1 or two
signals, and the same command is given again until it has finished. Then all that it logged and
its checkpoints must equal those of a run that was left alone, to the bit, dropout on: a row lost or
seen twice would be another loss. One JSON line a kill, one a run, and one in the end.
"""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from absl import app, flags, logging

_KILLS = flags.DEFINE_integer("kills", 100, "Number of kills.", lower_bound=1)
_PER_RUN = flags.DEFINE_integer("kills_per_run", 8, "Of them, how many a run has.", 1)
_PROCESSES = flags.DEFINE_integer("processes", 1, "Processes of the run, of two devices each.", 1)
_STEPS = flags.DEFINE_integer("steps", 60, "Updates of the run.", lower_bound=20)
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")

CONFIG = """
from transformer_jax.config import Config

def get_config():
    config = Config()
    config.model.num_layers, config.model.model_dim, config.model.num_heads = 1, 32, 2
    config.model.feed_forward_dim = 64
    config.data.train, config.data.valid = "numbers:train", "numbers:valid"
    config.data.test, config.data.max_pairs = "numbers:test", 20000
    config.data.vocab_size, config.data.vocabulary_kind = 300, "bpe"
    config.data.tokens_per_batch = 4096
    config.training.num_steps, config.training.log_every = {steps}, 1
    config.training.save_every, config.training.eval_every = 5, 20
    config.training.eval_sentences = 100
    config.training.keep_checkpoints = 2
    config.decoding.max_length, config.decoding.rows, config.decoding.beam_size = 48, 8, 2
    return config
"""
# The line of the log that a phase begins with.
PHASES = {
    "start": None,
    "vocabulary": "training a vocabulary",
    "store": "tokenising|training corpus",
    "compile": "compiling for",
    "steps": r"step \d+:",
    "evaluation": r"step \d+: smoothed validation loss",
    "test": "trained to step",
}
SIGNALS = [
    *([(signal.SIGKILL,)] * 3),
    (signal.SIGTERM,),
    (signal.SIGINT,),
    (signal.SIGUSR1,),
    (signal.SIGHUP,),
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGTERM, signal.SIGKILL),
]
# 75: stopped by a signal; negative: by SIGKILL; 128 + signal: by a second one. In several processes
# those that are left end as they may. The interpreter's first moments are not ours: -SIGTERM.
EXPECTED = {0, os.EX_TEMPFAIL, -signal.SIGKILL, 128 + signal.SIGTERM}
_SPEEDS = re.compile(r"_s$|_s_|seconds|_per_s|mfu|peak_memory")


class Run:
    """One start of the command, and the phase that its log says it is in."""

    def __init__(self, folder: pathlib.Path, workdir: pathlib.Path, cache: pathlib.Path):
        environment = os.environ | {
            "XDG_CACHE_HOME": str(cache),
            "JAX_COMPILATION_CACHE_DIR": str(folder / "jax"),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
        command = [sys.executable, "-m", "transformer_jax", "train"]
        command += [f"--config={folder / 'config.py'}", f"--workdir={workdir}"]
        count = _PROCESSES.value
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        of_all = [f"--coordinator={address}", f"--num_processes={count}"] if count > 1 else []
        self.phase, self.errors = "start", [""] * count
        self.processes = []
        for index in range(count):
            own = [f"--process_id={index}"] if count > 1 else []
            process = subprocess.Popen(
                [*command, *of_all, *own],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
            self.processes.append(process)
            threading.Thread(target=self._read, args=(index,), daemon=True).start()

    def _read(self, index: int) -> None:
        for line in self.processes[index].stderr:
            self.errors[index] += line
            if index == 0:
                for phase, pattern in PHASES.items():
                    if pattern and re.search(pattern, line):
                        self.phase = phase

    def wait_for(self, phase: str, seconds: float = 120) -> bool:
        """Whether it has come to a phase, or a later one."""
        names = list(PHASES)
        deadline = time.monotonic() + seconds
        while names.index(self.phase) < names.index(phase) and time.monotonic() < deadline:
            if self.processes[0].poll() is not None:
                return False
            time.sleep(0.005)
        return True

    def wait(self) -> list[int]:
        """The exit codes, once all have ended; what outlives a dead one for long is killed."""
        deadline = time.monotonic() + 150
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        for process in self.processes:
            process.kill()
        return [process.wait() for process in self.processes]


def _outcome(workdir: pathlib.Path) -> dict:
    """All that a finished run leaves which may not depend on when it was stopped."""
    from transformer_jax.checkpoint import Checkpoints
    from transformer_jax.saved_run import load_run

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [{k: v for k, v in line.items() if not _SPEEDS.search(k)} for line in lines]
    checkpoints = Checkpoints(workdir)
    steps = checkpoints.steps()
    checkpoints.close()
    import jax

    params = {
        which: [np.asarray(x).tobytes() for x in jax.tree.leaves(load_run(workdir, which)[3])]
        for which in ("best", "last")
    }
    test = json.loads((workdir / "test.json").read_text())
    return {
        "logged": logged,
        "last": steps[0],
        "params": params,
        "test": {k: v for k, v in test.items() if k != "seconds"},
    }


def main(_) -> None:
    logging.set_verbosity(logging.ERROR)  # of Orbax
    rng = random.Random(_SEED.value)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "config.py").write_text(CONFIG.format(steps=_STEPS.value))
        alone = Run(folder, folder / "alone", folder / "cache-alone")
        codes = alone.wait()
        if any(codes):
            raise SystemExit(f"the run that is left alone ended with {codes}: {alone.errors}")
        expected = _outcome(folder / "alone")
        kills, runs, wrong = 0, 0, 0
        by_phase: collections.Counter = collections.Counter()
        while kills < _KILLS.value:
            workdir, cache = folder / f"run{runs}", folder / f"cache{runs}"
            left = min(_PER_RUN.value, _KILLS.value - kills)
            phases = rng.choices(list(PHASES), [3, 1, 1, 2, 6, 3, 2], k=left)
            for phase in phases:
                run = Run(folder, workdir, cache)
                if not run.wait_for(phase):
                    phase = "ended"
                time.sleep(rng.uniform(0, {"start": 3.0, "steps": 1.5}.get(phase, 0.6)))
                phase, numbers = run.phase, rng.choice(SIGNALS)
                victim = rng.choice(run.processes)
                for number in numbers:
                    victim.send_signal(number)
                    time.sleep(0.2)
                started = time.monotonic()
                codes = run.wait()
                expected_codes = EXPECTED | ({-n for n in numbers} if not run.errors[0] else set())
                strange = _PROCESSES.value == 1 and codes[0] not in expected_codes
                traceback = _PROCESSES.value == 1 and "Traceback" in run.errors[0]
                kills, wrong = kills + 1, wrong + (strange or traceback)
                by_phase[phase] += 1
                record = {"kill": kills, "run": runs, "phase": phase, "codes": codes}
                record |= {"signals": [signal.Signals(n).name for n in numbers]}
                record |= {"seconds_to_end": round(time.monotonic() - started, 2)}
                if strange or traceback:
                    record["stderr"] = run.errors[0][-2000:]
                print(json.dumps(record), flush=True)
            run = Run(folder, workdir, cache)
            codes = run.wait()
            outcome = _outcome(workdir) if not any(codes) else {}
            equal = {key: outcome.get(key) == value for key, value in expected.items()}
            left = [x.name for x in workdir.rglob("*tmp*")] + [x.name for x in cache.rglob("*tmp*")]
            wrong += not all(equal.values())
            record = {"run": runs, "codes": codes, "equal": equal, "left": left}
            if not equal["logged"]:
                pairs = itertools.zip_longest(expected["logged"], outcome.get("logged", []))
                record["first_difference"] = next((a, b) for a, b in pairs if a != b)
            if any(codes):
                record["stderr"] = [error[-1500:] for error in run.errors]
            print(json.dumps(record), flush=True)
            runs += 1
        print(json.dumps({"kills": kills, "runs": runs, "wrong": wrong, "by_phase": by_phase}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    app.run(main)
