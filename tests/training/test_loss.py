"""Label-smoothed cross entropy against its definition, value and gradient."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.model.layers import TiedEmbedding
from transformer_jax.training.loss import (
    cross_entropy_of_states,
    max_logits,
    smoothed_cross_entropy,
)

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


B, T, DIM = 4, 7, 6
ALL = B * T * VOCAB * 4  # bytes of the logits


@functools.cache
def of_states(most: float, smoothing: float = 0.1, dtype: str = "float32"):
    """The sums of a loss of states, gradients of states, table and bias, and the program's text."""
    random = np.random.default_rng(0)
    states_BTD = jnp.asarray(random.normal(size=(B, T, DIM)), dtype)
    labels_BT = random.integers(0, VOCAB, (B, T)).astype(np.int32)
    weights_BT = (np.arange(T) < np.array([[7], [4], [1], [0]])).astype(np.float32)
    embedding = TiedEmbedding(VOCAB, DIM, output_bias=True, dtype=dtype, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(embedding)

    def loss(params, states_BTD):
        rows, embedding = (states_BTD, labels_BT, weights_BT), nnx.merge(graphdef, params)
        sums = cross_entropy_of_states(embedding, rows, smoothing, most, lambda sums: sums)
        return sums[0] * 0.3, sums

    gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    compiled = gradients.lower(params, states_BTD).compile()
    (_, sums), gradients = compiled(params, states_BTD)
    return jax.tree.leaves((sums, gradients)), compiled.as_text()


@pytest.mark.parametrize(
    ("positions", "options", "tolerance"),
    [(3, (), 1e-5), (0.5, (), 1e-5), (3, (0.0,), 1e-5), (3, (0.1, "bfloat16"), 1e-2)],
    ids=["float32", "less than a position", "without smoothing", "bfloat16"],
)
def test_chunks_of_positions_have_sums_and_gradients_of_all(positions, options, tolerance):
    chunks, _ = of_states(ALL * positions / T, *options)
    for got, wanted in zip(chunks, of_states(math.inf, *options)[0], strict=True):
        got, wanted = np.float32(got), np.float32(wanted)
        np.testing.assert_allclose(got, wanted, atol=tolerance * abs(wanted).max())
        assert got.any()


def test_no_array_has_the_logits_of_all_positions():
    of_all = re.compile(rf"f32\[({B},{T}|{B * T}|{T},{B}),{VOCAB}\]")
    assert of_all.search(of_states(math.inf)[1])
    assert not of_all.search(of_states(ALL * 3 / T)[1])


def test_only_a_cpu_has_all_logits_at_once_by_default():
    assert max_logits(0, "cpu") == math.inf
    assert max_logits(0, "tpu") == max_logits(256, "gpu") == max_logits(256, "cpu") == 2**28
