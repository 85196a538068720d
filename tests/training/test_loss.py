"""Label-smoothed cross entropy against its definition, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.training.loss import smoothed_cross_entropy

VOCAB = 7


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    logits_BTV = jnp.asarray(3 * random.normal(size=(2, 4, VOCAB)), jnp.float32)
    labels_BT = jnp.asarray(random.integers(0, VOCAB, (2, 4)), jnp.int32)
    weights_BT = jnp.asarray([[1, 1, 1, 0], [1, 0, 0, 0]], jnp.float32)
    return logits_BTV, labels_BT, weights_BT


def dense(logits_BTV, labels_BT, weights_BT, smoothing):
    """The definition, with the target distribution written out."""
    target_BTV = (1 - smoothing) * jax.nn.one_hot(labels_BT, VOCAB) + smoothing / VOCAB
    loss_BT = -(target_BTV * jax.nn.log_softmax(logits_BTV)).sum(axis=-1)
    return (loss_BT * weights_BT).sum()


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_value_and_gradient_equal_the_dense_definition(arrays, smoothing):
    def ours(logits):
        return smoothed_cross_entropy(logits, *arrays[1:], smoothing)[0] * 0.3

    def definition(logits):
        return dense(logits, *arrays[1:], smoothing) * 0.3

    for got, wanted in zip(
        jax.value_and_grad(ours)(arrays[0]), jax.value_and_grad(definition)(arrays[0]), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_sums_beside_the_loss(arrays):
    logits_BTV, labels_BT, weights_BT = arrays
    _, cross_entropy, correct, probability = smoothed_cross_entropy(*arrays, 0.1)
    np.testing.assert_allclose(cross_entropy, dense(*arrays, 0.0), rtol=1e-5)
    np.testing.assert_array_equal(
        correct, ((logits_BTV.argmax(-1) == labels_BT) * weights_BT).sum()
    )
    right_BT = jnp.take_along_axis(jax.nn.softmax(logits_BTV), labels_BT[..., None], -1)[..., 0]
    np.testing.assert_allclose(probability, (right_BT * weights_BT).sum(), rtol=1e-5)


def test_large_logits_stay_finite():
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    value, gradient = jax.value_and_grad(
        lambda x: smoothed_cross_entropy(x, jnp.array([[1]]), jnp.ones((1, 1)), 0.1)[0]
    )(logits)
    assert np.isfinite(value) and np.isfinite(gradient).all()
