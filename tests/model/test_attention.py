"""Attention against a written-out reference, and its masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.model.attention import (
    CrossAttention,
    KeyValue,
    Projection,
    SelfAttention,
    attention_weights,
    dot_product_attention,
)


def reference_attention(query_BHTK, key_BHMK, value_BHMK, mask_BTM):
    """Equation 1 of the paper, one head of one sentence at a time."""
    output_BHTK = np.zeros((*query_BHTK.shape[:3], value_BHMK.shape[-1]))
    for b, h in np.ndindex(*query_BHTK.shape[:2]):
        logits_TM = query_BHTK[b, h] @ key_BHMK[b, h].T / np.sqrt(query_BHTK.shape[-1])
        logits_TM[~mask_BTM[b]] = -np.inf
        weights_TM = np.exp(logits_TM - logits_TM.max(axis=-1, keepdims=True))
        weights_TM /= weights_TM.sum(axis=-1, keepdims=True)
        output_BHTK[b, h] = weights_TM @ value_BHMK[b, h]
    return output_BHTK


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    query, key, value = (random.normal(size=(2, 3, n, 4)).astype(np.float32) for n in (5, 7, 7))
    mask_BTM = random.random((2, 5, 7)) < 0.6
    mask_BTM[:, :, 0] = True
    return query, key, value, mask_BTM


def test_equals_the_formula(arrays):
    np.testing.assert_allclose(
        dot_product_attention(*arrays)[0], reference_attention(*arrays), atol=1e-6
    )


def test_no_mask_attends_to_all(arrays):
    query, key, value, mask = arrays
    np.testing.assert_allclose(
        dot_product_attention(query, key, value)[0],
        reference_attention(query, key, value, np.ones_like(mask)),
        atol=1e-6,
    )


def test_masked_places_weigh_exactly_nothing(arrays):
    query, key, _, mask_BTM = arrays
    weights_BHTM = attention_weights(query, key, mask_BTM)
    hidden = np.broadcast_to(~mask_BTM[:, None], weights_BHTM.shape)
    assert np.all(np.asarray(weights_BHTM)[hidden] == 0.0)
    np.testing.assert_allclose(weights_BHTM.sum(axis=-1), 1.0, atol=1e-6)


def test_fully_masked_row_stays_finite_with_its_gradient(arrays):
    query, key, value, mask_BTM = arrays
    mask_BTM[1, 2] = False

    def total(query):
        return dot_product_attention(query, key, value, mask_BTM)[0].sum()

    assert np.isfinite(dot_product_attention(query, key, value, mask_BTM)[0]).all()
    assert np.isfinite(jax.grad(total)(query)).all()


def test_softmax_is_float32_for_bfloat16(arrays):
    query, key, value, mask = (jnp.asarray(x) for x in arrays)
    low = [x.astype(jnp.bfloat16) for x in (query, key, value)]
    assert attention_weights(low[0], low[1], mask).dtype == jnp.float32
    output, _ = dot_product_attention(*low, mask)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        output.astype(jnp.float32), dot_product_attention(query, key, value, mask)[0], atol=0.05
    )


def biased(layer):
    """The layer with biases that are not zero, and its parameters by projection."""
    random = np.random.default_rng(1)
    for projection in (*layer.projections, layer.output):
        if projection.bias is not None:
            projection.bias[...] = random.normal(size=projection.bias.shape)
    matrices = []
    for projection in layer.projections:
        kernel_DCE = np.asarray(projection.kernel[...]).reshape(12, -1, 12)
        bias_CE = np.zeros((kernel_DCE.shape[1], 12))
        if projection.bias is not None:
            bias_CE = np.asarray(projection.bias[...]).reshape(-1, 12)
        matrices += [(kernel_DCE[:, c], bias_CE[c]) for c in range(len(bias_CE))]
    bias = 0.0 if layer.output.bias is None else np.asarray(layer.output.bias[...])
    return layer, *matrices, (np.asarray(layer.output.kernel[...]), bias)


@pytest.mark.parametrize("use_bias", [False, True])
def test_multi_head_is_projections_around_attention(arrays, use_bias):
    mask_BTM = arrays[3]
    random = np.random.default_rng(1)
    hidden_BTD, memory_BMD = (random.normal(size=(2, n, 12)).astype(np.float32) for n in (5, 7))

    def expected(memory_BMD, mask_BTM, *projections):
        *of_heads, (kernel, bias) = projections
        query, key, value = (
            (x_BTD @ k + b).reshape(2, -1, 3, 4).swapaxes(1, 2)
            for x_BTD, (k, b) in zip((hidden_BTD, memory_BMD, memory_BMD), of_heads, strict=True)
        )
        attended = reference_attention(query, key, value, mask_BTM).swapaxes(1, 2)
        return attended.reshape(2, 5, 12) @ kernel + bias

    layer, *projections = biased(CrossAttention(12, 3, use_bias=use_bias, rngs=nnx.Rngs(0)))
    output, weights = layer(hidden_BTD, layer.project_memory(memory_BMD), mask_BTM)
    np.testing.assert_allclose(output, expected(memory_BMD, mask_BTM, *projections), atol=1e-5)
    assert weights.shape == (2, 3, 5, 7)
    layer, *projections = biased(SelfAttention(12, 3, use_bias=use_bias, rngs=nnx.Rngs(0)))
    mask_BTT = mask_BTM[:, :, :5]
    output, weights = layer(hidden_BTD, mask_BTT)
    np.testing.assert_allclose(output, expected(hidden_BTD, mask_BTT, *projections), atol=1e-5)
    assert weights.shape == (2, 3, 5, 5)


def test_a_projection_laid_out_for_decoding_is_the_same():
    projection = Projection(16, 4, 3, use_bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    hidden_BTD = jax.random.normal(jax.random.key(1), (2, 5, 16))
    before = projection(hidden_BTD)
    projection.turn()
    for expected, result in zip(before, projection(hidden_BTD), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kind", "projections"), [(SelfAttention, 2), (CrossAttention, 3)])
def test_biases_only_where_asked_for(kind, projections):
    paper, other = (kind(8, 2, use_bias=b, rngs=nnx.Rngs(0)) for b in (False, True))
    assert len(jax.tree.leaves(nnx.state(paper))) == projections
    assert len(jax.tree.leaves(nnx.state(other))) == 2 * projections


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_tpu_writes_the_history_to_the_bit_as_others_do(monkeypatch, dtype):
    random = np.random.default_rng(0)
    attention = SelfAttention(8, 2, dtype=dtype, rngs=nnx.Rngs(0))
    hidden_BWD = jnp.array(random.normal(size=(3, 2, 8)), dtype)
    history = KeyValue(*jnp.array(random.normal(size=(2, 3, 2, 10, 4)), dtype))
    mask_BWI = jnp.array(random.random((3, 2, 10)) < 0.5)

    def written():
        position_B = jnp.array([0, 4, 2])
        return attention.attend_history(hidden_BWD, history, mask_BWI, position_B)

    expected_BWD, expected = written()
    monkeypatch.setattr("jax.lax.platform_dependent", lambda *x, tpu, default: tpu(*x))
    found_BWD, found = written()
    np.testing.assert_array_equal(found_BWD, expected_BWD)
    np.testing.assert_array_equal(found, expected)
    changed_BI = (found.key != history.key).any(axis=(1, 3))
    assert [np.flatnonzero(x).tolist() for x in changed_BI] == [[0, 1], [8, 9], [4, 5]]
