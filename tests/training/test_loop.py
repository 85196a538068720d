"""The loop: neither host nor device waits for the other, and nothing is moved unasked."""

import functools

import jax
import numpy as np
import pytest
from builders import tiny_config
from tqdm import tqdm

from transformer_jax.interruption import Stop
from transformer_jax.training.loop import run_to_end
from transformer_jax.training.trainer import Trainer


@pytest.fixture
def trainer(tmp_path):
    trainer = Trainer(tiny_config(5, training={"save_every": 3}), tmp_path)
    yield trainer
    trainer.close()


class Metric:
    """A sum of a step, which notes when it is read."""

    def __init__(self, note):
        self._note = note

    def __array__(self, *_, **__):
        self._note()
        return np.float32(0.5)


def test_a_step_is_dispatched_before_the_metrics_of_the_one_before_are_read(trainer):
    events = []

    def compiled(state, _):
        number = trainer.step + 1
        events.append(("dispatched", number))
        read = functools.partial(events.append, ("read", number))
        names = "loss", "gradient_norm", "learning_rate", "skipped"
        return state, trainer.meter.sums | dict.fromkeys(names, 0.0) | {"loss": Metric(read)}

    trainer.compiled = compiled
    trainer.save = lambda *_, **__: None
    trainer.config.training.save_every = 100
    run_to_end(trainer, None, Stop(), tqdm(disable=True))
    steps = [[("dispatched", n + 1), ("read", n)] for n in range(1, 5)]
    assert events == [("dispatched", 1), *sum(steps, []), ("read", 5)]


def test_nothing_is_moved_between_host_and_device_unasked(trainer):
    with jax.transfer_guard("disallow"):
        run_to_end(trainer, None, Stop(), tqdm(disable=True))
    trainer.checkpoints.wait()
    assert list(trainer.checkpoints.steps()) == [5, 3]
