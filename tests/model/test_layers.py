"""Sinusoidal positions and the tied table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import VOCAB_SIZE, model_parts
from flax import nnx

from transformer_jax.model.layers import TiedEmbedding, round_parameters, sinusoidal_positions
from transformer_jax.model.masks import sentence_tokens


def test_positions_equal_the_formula():
    encoded = np.asarray(sinusoidal_positions(jnp.arange(50)[None], 16))[0]
    for position, i in [(0, 0), (1, 0), (7, 3), (49, 7)]:
        angle = position / 10000 ** (2 * i / 16)
        np.testing.assert_allclose(encoded[position, 2 * i], np.sin(angle), atol=1e-5)
        np.testing.assert_allclose(encoded[position, 2 * i + 1], np.cos(angle), atol=1e-5)


def test_a_shift_is_a_rotation():
    """Section 3.5: PE(pos + k) is a linear function of PE(pos), the same for every pos."""
    encoded = np.asarray(sinusoidal_positions(jnp.arange(40)[None], 8), np.float64)[0]
    rotation, *_ = np.linalg.lstsq(encoded[:20], encoded[5:25], rcond=None)
    np.testing.assert_allclose(encoded[15:35] @ rotation, encoded[20:40], atol=1e-4)


def test_embedding_is_scaled_and_positioned():
    embedding = TiedEmbedding(11, 6, rngs=nnx.Rngs(0))
    ids, positions = jnp.array([[3, 3, 7]]), jnp.array([[0, 1, 4]])
    expected = embedding.table[...][ids] * jnp.sqrt(6.0) + sinusoidal_positions(positions, 6)
    np.testing.assert_allclose(embedding.embed(ids, positions), expected, atol=1e-6)


def test_logits_use_the_same_table_and_stay_float32():
    embedding = TiedEmbedding(11, 6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    hidden_BTD = jax.random.normal(jax.random.key(1), (1, 2, 6))
    logits_BTV = embedding.logits(hidden_BTD)
    assert logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(logits_BTV, hidden_BTD @ embedding.table[...].T, atol=0.05)
    assert len(jax.tree.leaves(nnx.state(embedding))) == 1


def test_output_bias_is_added():
    embedding = TiedEmbedding(11, 6, output_bias=True, rngs=nnx.Rngs(0))
    embedding.bias[...] = jnp.arange(11.0)
    np.testing.assert_allclose(embedding.logits(jnp.zeros((1, 1, 6)))[0, 0], np.arange(11.0))


@pytest.mark.parametrize(
    "fields",
    [
        {"norm": "pre", "attention_bias": True, "output_bias": True},
        {"kind": "lstm", "attention": "concat", "bidirectional": True},
    ],
    ids=["transformer", "lstm"],
)
def test_parameters_rounded_once_give_the_same_to_the_bit(fields):
    graphdef, params = model_parts(dtype="bfloat16", **fields)
    noise = iter(jax.random.split(jax.random.key(0), 100))  # as all biases are 0 at first
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), params)
    model, random = nnx.merge(graphdef, params), np.random.default_rng(0)
    source, target = (
        sentence_tokens(jnp.array(random.integers(4, VOCAB_SIZE, (2, length))), jnp.full(2, length))
        for length in (5, 4)
    )
    logits = jax.jit(lambda model: model.decode(model.encode(source), target))
    expected_BTV = logits(model)
    round_parameters(model)
    scaled = [("embedding", "table"), ("embedding", "bias")]
    for path, param in nnx.to_flat_state(nnx.state(model)):
        assert param[...].dtype == (jnp.float32 if path in scaled else jnp.bfloat16), path
    np.testing.assert_array_equal(logits(model), expected_BTV)
