"""train.py and decode.py as processes of their own, and a config for them."""

import json
import os
import pathlib
import subprocess
import sys

import jaxlib

ROOT = pathlib.Path(__file__).parents[1]
# What is compiled in tests runs a few times: to optimise it takes four fifths of compiling.
COMPILE_FAST = "--xla_backend_optimization_level=0"
if jaxlib.__version__.startswith("0.10."):  # newer versions have no other way, and no such flag
    COMPILE_FAST += " --xla_cpu_use_fusion_emitters=false"
CONFIG = """
from transformer_jax.config import Config

def get_config():
    config = Config()
    config.model.num_layers, config.model.model_dim, config.model.num_heads = 1, 16, 2
    config.model.feed_forward_dim = 16
    config.data.train, config.data.valid = "numbers:train", "text:{corpus}"
    config.data.vocab_size, config.data.vocabulary_kind, config.data.max_pairs = 100, "bpe", 300
    config.data.byte_fallback = False
    config.data.tokens_per_batch = 256
    config.training.num_steps, config.training.log_every, config.training.save_every = 6, 2, 3
    config.decoding.max_length, config.decoding.rows, config.decoding.beam_size = 32, 8, 2
    return config
"""


_OWN = "XLA_", "JAX_", "TRANSFORMER_JAX_"  # variables of the tests' own process


def start(home, *command, variables=(), **options) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_OWN)}
    environment |= {"XDG_CACHE_HOME": str(home / "cache"), "JAX_PLATFORMS": "cpu"}
    environment |= {"XLA_FLAGS": COMPILE_FAST} | dict(variables)
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes | options)


def run(home, *command, text: str = "", variables=()) -> subprocess.CompletedProcess:
    with start(home, *command, variables=variables) as process:
        out, err = process.communicate(text, timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_training(home, workdir, *flags) -> subprocess.CompletedProcess:
    return run(home, "train.py", f"--config={home / 'tiny.py'}", f"--workdir={workdir}", *flags)


def metrics(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
