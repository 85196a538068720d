"""Products, dropout, sinusoidal positions and the tied table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import VOCAB_SIZE, model_parts
from flax import nnx

from transformer_jax.model.layers import (
    TiedEmbedding,
    dropout,
    product,
    round_parameters,
    sinusoidal_positions,
)
from transformer_jax.model.masks import sentence_tokens


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kernel_shape", [(4, 9), (9, 4), (4, 6, 5)], ids=str)
def test_gradients_of_products_are_those_of_autodiff(kernel_shape, axis):
    """Whichever of the two factors is the narrower."""
    random = np.random.default_rng(0)
    x = jnp.float32(random.normal(size=(2, 3, kernel_shape[axis])))
    kernel = jnp.float32(random.normal(size=kernel_shape))
    others = [size for i, size in enumerate(kernel_shape) if i != axis]
    weights = jnp.float32(random.normal(size=(2, 3, *others)))

    def gradients(multiply):
        return jax.grad(lambda x, kernel: (multiply(x, kernel) * weights).sum(), (0, 1))(x, kernel)

    found = gradients(lambda x, kernel: product(x, kernel, axis=axis))
    expected = gradients(lambda x, kernel: jnp.tensordot(x, kernel, axes=(2, axis)))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), found, expected
    )


def test_products_of_bfloat16_have_gradients_of_their_dtype():
    x, kernel = jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 5), jnp.bfloat16)
    assert product(x, kernel, jnp.float32).dtype == jnp.float32
    of_x, of_kernel = jax.grad(lambda *args: product(*args, jnp.float32).sum(), (0, 1))(x, kernel)
    assert of_x.dtype == of_kernel.dtype == jnp.bfloat16


@pytest.mark.parametrize("impl", ["rbg", "threefry2x32"])
def test_dropout_keeps_each_element_with_its_probability(impl):
    """Of an odd number of elements; with each key others, and neighbours independently."""
    ones = jnp.ones((257, 101))
    kept = [np.asarray(dropout(ones, 0.3, jax.random.key(seed, impl=impl))) > 0 for seed in (0, 1)]
    expected = {"first": kept[0], "even": kept[0].ravel()[::2], "odd": kept[0].ravel()[1::2]}
    for name, part in expected.items():
        assert part.mean() == pytest.approx(0.7, abs=0.015), name
    flat = kept[0].ravel()
    for other in (kept[1].ravel()[:-1], flat[1:]):
        assert (flat[:-1] & other).mean() == pytest.approx(0.49, abs=0.015)
    whole = np.asarray(dropout(ones, 0.3, jax.random.key(0, impl=impl)))
    np.testing.assert_allclose(whole[kept[0]], 1 / 0.7, rtol=1e-4)


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
