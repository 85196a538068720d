"""The mean of several models, behind the protocol of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.model.ensemble import Ensemble
from transformer_jax.model.masks import sentence_tokens
from transformer_jax.model.transformer import Transformer

VOCAB = 20
SOURCE = sentence_tokens(jnp.array([[4, 5, 6, 2], [7, 8, 2, 0]]), jnp.array([4, 3]))
TARGET = sentence_tokens(jnp.array([[1, 9, 10], [1, 11, 12]]), jnp.array([3, 3]))


@pytest.fixture(scope="module")
def models():
    """Two that differ in depth, width and heads."""
    sizes = {"feed_forward_dim": 16}
    return [
        Transformer(ModelConfig(**sizes, **more), VOCAB, rngs=nnx.Rngs(seed))
        for seed, more in enumerate(
            (
                {"num_layers": 1, "model_dim": 8, "num_heads": 2},
                {"num_layers": 2, "model_dim": 12, "num_heads": 3},
            )
        )
    ]


def test_probabilities_are_the_mean_of_the_models(models):
    ensemble = Ensemble(models)
    logits_BTV = ensemble.decode(ensemble.encode(SOURCE), TARGET)
    each = [jax.nn.softmax(m.decode(m.encode(SOURCE), TARGET)) for m in models]
    np.testing.assert_allclose(jax.nn.softmax(logits_BTV), np.mean(each, axis=0), atol=1e-6)
    np.testing.assert_allclose(jnp.exp(logits_BTV), np.mean(each, axis=0), atol=1e-6)


def test_steps_are_as_one_pass(models):
    ensemble = Ensemble(models)
    memory, encoder = ensemble.encode(SOURCE, return_attention=True)
    logits_BTV, decoder = ensemble.decode(memory, TARGET, return_attention=True)
    assert encoder["encoder"].shape == (2, 2, 1, 4, 4)
    assert decoder["cross"].shape == (2, 2, 1, 3, 4)
    np.testing.assert_allclose(decoder["cross"].sum(axis=-1), 1.0, atol=1e-5)
    context, cache = ensemble.start(memory, 1, 3)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves((context, cache)))
    for position in range(3):
        arguments = context, cache, TARGET.ids[:, position, None], jnp.full(2, position)
        plain = ensemble.step(*arguments)
        logits_BWV, context, cache, weights_LBHWS = ensemble.step(*arguments, return_attention=True)
        np.testing.assert_array_equal(plain[0], logits_BWV)
        np.testing.assert_allclose(logits_BWV[:, 0], logits_BTV[:, position], atol=1e-5)
        np.testing.assert_allclose(
            weights_LBHWS[:, :, :, 0], decoder["cross"][:, :, :, position], atol=1e-5
        )


def test_one_model_twice_is_that_model(models):
    one, twice = models[0], Ensemble([models[0], models[0]])
    np.testing.assert_allclose(
        twice.decode(twice.encode(SOURCE), TARGET),
        jax.nn.log_softmax(one.decode(one.encode(SOURCE), TARGET)),
        atol=1e-5,
    )
