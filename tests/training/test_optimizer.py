"""Schedules and the optimiser."""

import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.config import OptimizerConfig
from transformer_jax.training.optimizer import learning_rate_schedule, make_optimizer


@pytest.mark.parametrize("update", [1, 100, 4000, 4001, 100_000])
def test_rsqrt_is_the_papers_equation_3(update):
    schedule = learning_rate_schedule(OptimizerConfig(warmup_steps=4000), 512, 100_000)
    expected = 512**-0.5 * min(update**-0.5, update * 4000**-1.5)
    np.testing.assert_allclose(schedule(update - 1), expected, rtol=1e-6)


def test_learning_rate_is_the_peak_of_either_schedule():
    for name in ("rsqrt", "cosine"):
        config = OptimizerConfig(schedule=name, learning_rate=0.01, warmup_steps=50)
        rates = np.array([learning_rate_schedule(config, 512, 1000)(i) for i in range(1000)])
        assert rates.max() == pytest.approx(0.01, rel=1e-5)
        assert rates[0] > 0 and abs(int(rates.argmax()) - 50) <= 1
        np.testing.assert_allclose(np.diff(rates[:49]), 0.01 / 50, rtol=0.05)


def test_cosine_ends_at_zero():
    config = OptimizerConfig(schedule="cosine", learning_rate=0.01, warmup_steps=50)
    assert learning_rate_schedule(config, 512, 1000)(1000) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_adam_takes_the_configs_constants_and_clips_the_global_norm(clip_norm):
    """Two steps: by its correction of bias, the first does not depend on beta1 and beta2."""
    gradients = [np.array([30.0, 40.0]), np.array([-1.0, 2.0])]
    config = OptimizerConfig(beta1=0.8, beta2=0.95, epsilon=0.5, clip_norm=clip_norm)
    optimizer = make_optimizer(config, lambda _: 0.1)
    state, mean, square = optimizer.init(jnp.zeros(2)), np.zeros(2), np.zeros(2)
    for step, gradient in enumerate(gradients, 1):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state)
        if clip_norm:
            gradient = gradient * min(1.0, clip_norm / np.linalg.norm(gradient))
        mean, square = 0.8 * mean + 0.2 * gradient, 0.95 * square + 0.05 * gradient**2
        root = np.sqrt(square / (1 - 0.95**step))
        expected = -0.1 * mean / (1 - 0.8**step) / (root + 0.5)
        np.testing.assert_allclose(updates, expected, rtol=1e-5)
