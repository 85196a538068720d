"""Schedules and the optimiser."""

import jax.numpy as jnp
import numpy as np
import optax
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


def test_adam_takes_the_configs_constants():
    """The first step of Adam is the learning rate times g / (|g| + epsilon)."""
    config = OptimizerConfig(epsilon=0.5)
    optimizer = make_optimizer(config, lambda _: 0.1)
    params = jnp.array([1.0, -2.0])
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(updates, [-0.1 * 1 / 1.5, 0.1 * 2 / 2.5], rtol=1e-6)


def test_clipping_bounds_the_global_norm():
    gradients = {"a": jnp.array([30.0]), "b": jnp.array([40.0])}
    reference = optax.adam(0.1, b1=0.9, b2=0.98, eps=1.0)
    ours = make_optimizer(OptimizerConfig(epsilon=1.0, clip_norm=5.0), lambda _: 0.1)
    scaled = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    expected, _ = reference.update(scaled, reference.init(scaled), scaled)
    updates, _ = ours.update(gradients, ours.init(gradients), gradients)
    np.testing.assert_allclose(updates["a"], expected["a"], rtol=1e-6)
    np.testing.assert_allclose(updates["b"], expected["b"], rtol=1e-6)
