"""Luong's and Bahdanau's scores against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.model.cells import initializers
from transformer_jax.model.global_attention import GlobalAttention

DIM = 4
SCORES = ("dot", "general", "concat", "additive")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(params=SCORES)
def scored(request):
    """A kind of score, and attention with parameters that are large enough to tell."""
    attention = GlobalAttention(DIM, request.param, initializers("dot"), rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(attention)
    return request.param, nnx.merge(graphdef, jax.tree.map(lambda x: 10 * x, params))


def reference_scores(score: str, attention, query_TD, key_MD):
    """One at a time, as the papers write them."""

    def weight(layer):
        return np.asarray(layer.kernel[...], np.float64)

    scores = np.zeros((len(query_TD), len(key_MD)))
    for t, s in np.ndindex(scores.shape):
        query, key = query_TD[t].astype(np.float64), key_MD[s].astype(np.float64)
        if score == "dot":
            scores[t, s] = query @ key
        elif score == "general":
            scores[t, s] = query @ weight(attention.query) @ key
        else:  # v . tanh(W [query; key]), the matrix of the concatenation in two halves
            both = np.concatenate([weight(attention.query), weight(attention.key)])
            hidden = np.tanh(np.concatenate([query, key]) @ both)
            scores[t, s] = np.asarray(attention.vector[...]) @ hidden
    return scores


def test_weights_and_context_equal_the_written_out_reference(scored):
    score, attention = scored
    query_BTD, value_BMD = random(2, 3, DIM), random(2, 5, DIM, seed=1)
    real_BM = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    memory = attention.project(jnp.asarray(value_BMD), jnp.asarray(real_BM))
    context_BTD, weights_BTM = attention(jnp.asarray(query_BTD), memory)
    for row, length in enumerate(real_BM.sum(axis=1)):
        value_MD = value_BMD[row, :length]
        scores = reference_scores(score, attention, query_BTD[row], value_MD)
        exp = np.exp(scores - scores.max(axis=1, keepdims=True))
        expected = exp / exp.sum(axis=1, keepdims=True)
        assert expected.std() > 0.05
        np.testing.assert_allclose(weights_BTM[row, :, :length], expected, atol=1e-5)
        assert not weights_BTM[row, :, length:].any()
        np.testing.assert_allclose(context_BTD[row], expected @ value_MD, atol=1e-5)


def test_nothing_to_attend_to_is_finite(scored):
    _, attention = scored
    memory = attention.project(jnp.ones((1, 3, DIM)), jnp.zeros((1, 3), bool))
    assert np.isfinite(attention(jnp.ones((1, 2, DIM)), memory)[0]).all()


def test_each_score_has_its_own_parameters():
    sizes = {
        score: sum(
            x.size
            for x in jax.tree.leaves(
                nnx.split(GlobalAttention(DIM, score, initializers("dot"), rngs=nnx.Rngs(0)))[1]
            )
        )
        for score in SCORES
    }
    both = 2 * DIM**2 + DIM
    assert sizes == {"dot": 0, "general": DIM**2, "concat": both, "additive": both}
