"""What the training loop costs beside its steps, and what its data can feed: one JSON line.

    python benchmarks/loop.py --config=quickstart --steps=2000

overhead_us is a step of the loop with a step of the device, and a batch, that take no time: metrics
read, summed, reported and logged, the next batch taken. fed_target_tokens_per_s is with the run's
own batches, read, packed and placed by the thread that does so while steps run. loop_step_s and
step_alone_s are medians of real steps in the loop and waited for one by one, in turn, on the same
batches. The pauses are what a checkpoint and an evaluation stop training for.
"""

import contextlib
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
from absl import app, flags
from tqdm import tqdm

from transformer_jax import allocator, cli
from transformer_jax.config import load_config
from transformer_jax.interruption import Stop
from transformer_jax.training.loop import run_to_end
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.validation import Validation

_CONFIG = flags.DEFINE_string("config", "quickstart", "A ready config's name, or a file.")
_STEPS = flags.DEFINE_integer("steps", 2000, "Steps that take no time.", lower_bound=1)
_REAL = flags.DEFINE_integer("real_steps", 20, "Real ones, each way, in turn.", lower_bound=1)


@contextlib.contextmanager
def opened(num_steps: int) -> Iterator[Trainer]:
    """A run of the config that never saves nor evaluates by itself."""
    config = load_config(_CONFIG.value)
    config.training.num_steps = num_steps
    config.training.save_every = config.training.eval_every = 10**9
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(Trainer(config, pathlib.Path(folder) / "run")) as trainer,
    ):
        yield trainer


def seconds_of(call: Callable) -> float:
    """Of a call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def instant(same_batch: bool) -> dict[str, float]:
    """Microseconds a step and target tokens a second of steps that take no time."""
    with opened(_STEPS.value) as trainer:
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
    with opened(10**9) as trainer:
        in_loop, alone = [], []
        for number in range(_REAL.value):
            batch = trainer.layout.place(trainer.batches.batch_at(number))
            trainer.settle()
            trainer.advance()  # dispatched; the next waits for it
            in_loop.append(seconds_of(trainer.advance))
            trainer.settle()
            jax.block_until_ready(trainer.state)

            def step(batch=batch):
                trainer.state, metrics = trainer.compiled(trainer.state, batch)
                return trainer.state, metrics

            alone.append(seconds_of(step))
        start = time.perf_counter()
        trainer.save()
        saved = time.perf_counter() - start
        trainer.checkpoints.wait()
        result = {
            "loop_step_s": statistics.median(in_loop),
            "step_alone_s": statistics.median(alone),
            "checkpoint_pause_s": saved,
            "checkpoint_written_s": time.perf_counter() - start,
        }
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
