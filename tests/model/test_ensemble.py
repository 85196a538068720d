"""The mean of several models, behind the protocol of one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import model_parts
from flax import nnx

from transformer_jax.model.ensemble import Ensemble
from transformer_jax.model.masks import sentence_tokens

VOCAB = 20
SOURCE = sentence_tokens(jnp.array([[4, 5, 6, 2], [7, 8, 2, 0]]), jnp.array([4, 3]))
TARGET = sentence_tokens(jnp.array([[1, 9, 10], [1, 11, 12]]), jnp.array([3, 3]))


@pytest.fixture(scope="module")
def parts():
    """Graph definitions and parameters of two that differ in depth, width and heads."""
    second = {"num_layers": 2, "model_dim": 12, "num_heads": 3}
    return [model_parts(VOCAB), model_parts(VOCAB, seed=1, **second)]


def computed(parts, compute, *arguments):
    """`compute(models, *arguments)` as one program."""
    graphdefs, params = zip(*parts)
    return jax.jit(lambda params, *rest: compute(list(map(nnx.merge, graphdefs, params)), *rest))(
        params, *arguments
    )


def test_probabilities_are_the_mean_of_the_models(parts):
    def logits(models):
        both = Ensemble(models)
        each = [m.decode(m.encode(SOURCE), TARGET) for m in models]
        return both.decode(both.encode(SOURCE), TARGET), each

    logits_BTV, each = computed(parts, logits)
    mean_BTV = np.mean([jax.nn.softmax(x) for x in each], axis=0)
    np.testing.assert_allclose(jax.nn.softmax(logits_BTV), mean_BTV, atol=1e-6)
    np.testing.assert_allclose(jnp.exp(logits_BTV), mean_BTV, atol=1e-6)


def test_steps_are_as_one_pass(parts):
    def whole(models):
        ensemble = Ensemble(models)
        memory, encoder = ensemble.encode(SOURCE, return_attention=True)
        decoded = ensemble.decode(memory, TARGET, return_attention=True)
        return encoder, *decoded, ensemble.start(memory, 1, 3)

    encoder, logits_BTV, decoder, (context, cache) = computed(parts, whole)
    assert encoder["encoder"].shape == (2, 2, 1, 4, 4)
    assert decoder["cross"].shape == (2, 2, 1, 3, 4)
    np.testing.assert_allclose(decoder["cross"].sum(axis=-1), 1.0, atol=1e-5)
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves((context, cache)))

    def steps(models, context, cache):
        ensemble, found = Ensemble(models), []
        for position in range(3):
            arguments = context, cache, TARGET.ids[:, position, None], jnp.full(2, position)
            plain = ensemble.step(*arguments)[0]
            logits_BWV, context, cache, *more = ensemble.step(*arguments, return_attention=True)
            found.append((plain, logits_BWV, *more))
        return found

    for position, found in enumerate(computed(parts, steps, context, cache)):
        plain_BWV, logits_BWV, weights_LBHWS = found
        np.testing.assert_array_equal(plain_BWV, logits_BWV)
        np.testing.assert_allclose(logits_BWV[:, 0], logits_BTV[:, position], atol=1e-5)
        np.testing.assert_allclose(
            weights_LBHWS[:, :, :, 0], decoder["cross"][:, :, :, position], atol=1e-5
        )


def test_one_model_twice_is_that_model(parts):
    def logits(models):
        one, twice = models[0], Ensemble([models[0], models[0]])
        return one.decode(one.encode(SOURCE), TARGET), twice.decode(twice.encode(SOURCE), TARGET)

    one, twice = computed(parts[:1], logits)
    np.testing.assert_allclose(twice, jax.nn.log_softmax(one), atol=1e-5)
