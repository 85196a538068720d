"""What the training loop costs beside its steps, and what its data can feed: one JSON line.

    python benchmarks/loop.py --config=quickstart --steps=2000

overhead_us is a step of the loop with a step of the device, and a batch, that take no time: metrics
read, summed, reported and logged, the next batch taken. fed_target_tokens_per_s is with the run's
own batches, read, packed and placed by the thread that does so while steps run. loop_step_s and
step_alone_s are of real steps, in the loop and waited for one by one: medians of stretches in
turn. The others are what a checkpoint (until training goes on, and until it is written) and an
evaluation take; the first of each compiles.
"""

import json
import statistics
import time
from collections.abc import Callable

import jax
from absl import app, flags
from beside import timed_run
from tqdm import tqdm

from transformer_jax import allocator, cli
from transformer_jax.config import Config, load_config
from transformer_jax.interruption import Stop
from transformer_jax.training.loop import run_to_end
from transformer_jax.training.validation import Validation

_CONFIG = flags.DEFINE_string("config", "quickstart", "A ready config's name, or a file.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Steps that take no time.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 5, "Stretches of real ones, each way.", lower_bound=1)
_STRETCH = 10  # steps


def config_of(num_steps: int) -> Config:
    """The config that is asked for, with other steps."""
    config = load_config(_CONFIG.value)
    config.training.num_steps = num_steps
    return config


def seconds_of(call: Callable) -> float:
    """Of a call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def instant(same_batch: bool) -> dict[str, float]:
    """Microseconds a step and target tokens a second of steps that take no time."""
    with timed_run(config_of(_STEPS.value)) as trainer:
        batch = trainer.layout.place(trainer.batches.batch_at(0))
        _, metrics = trainer.compiled(jax.tree.map(lambda x: x.copy(), trainer.state), batch)
        trainer.compiled = lambda state, _: (state, dict(metrics))
        trainer.save = lambda *_, **__: None
        if same_batch:
            trainer.batches.batch_at = lambda *_: batch
            trainer.layout.place = lambda batch, _: batch
            time.sleep(1)  # until none of the others is left
        bar = tqdm(disable=True)
        seconds = seconds_of(lambda: run_to_end(trainer, None, Stop(), bar))
        tokens = float(metrics["tokens"]) * _STEPS.value
        return {"us": 1e6 * seconds / _STEPS.value, "tokens_per_s": tokens / seconds}


def real() -> dict[str, float]:
    """Medians of real steps, and the pauses of a checkpoint and an evaluation."""
    with timed_run(config_of(10**9)) as trainer:
        batch = trainer.layout.place(trainer.batches.batch_at(0))

        def in_loop() -> None:
            for _ in range(_STRETCH):
                trainer.advance()
            trainer.settle()

        def alone() -> None:
            for _ in range(_STRETCH):
                trainer.state, metrics = trainer.compiled(trainer.state, batch)
                jax.block_until_ready((trainer.state, metrics))

        turns = [
            [seconds_of(way) / _STRETCH for way in (in_loop, alone)] for _ in range(_TURNS.value)
        ]
        medians = map(statistics.median, zip(*turns))
        result = dict(zip(("loop_step_s", "step_alone_s"), medians))
        for name in ("checkpoint_first", "checkpoint_again"):
            start = time.perf_counter()
            trainer.save()
            result[f"{name}_s"] = time.perf_counter() - start
            trainer.checkpoints.wait()
            result[f"{name}_written_s"] = time.perf_counter() - start
            trainer.advance()
        if trainer.data.valid:
            validate = Validation(trainer)
            names = "evaluation_first_s", "evaluation_again_s"
            result |= {name: seconds_of(lambda: validate(Stop())) for name in names}
        return result


def main(_) -> None:
    cli.log_to_stderr()
    constant, fed = instant(same_batch=True), instant(same_batch=False)
    described = {
        "benchmark": "loop",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "config": _CONFIG.value,
        "overhead_us": constant["us"],
        "fed_us": fed["us"],
        "fed_target_tokens_per_s": fed["tokens_per_s"],
    }
    print(json.dumps(described | real()), flush=True)


if __name__ == "__main__":
    allocator.share_arena()
    app.run(main)
