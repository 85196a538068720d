"""What a backward pass computes again changes memory, and nothing else."""

import functools

import jax
import numpy as np
import pytest
from builders import model_parts, random_batch
from flax import nnx

from transformer_jax.training.step import batch_sums


@functools.cache
def compiled_gradient(remat: str):
    """The gradient of the loss on a batch, compiled, and the parameters."""
    fields = {"num_layers": 1, "feed_forward_dim": 64, "dropout_rate": 0.2}
    graphdef, params = model_parts(remat=remat, **fields)
    batch, key = random_batch(0, rows=32, length=60), jax.random.key(0, impl="rbg")

    def loss(params):
        return batch_sums(nnx.merge(graphdef, params), batch, 0.1, key)[0]

    return jax.jit(jax.grad(loss)).lower(params).compile(), params


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_gradients_are_the_same_with_dropout_too(remat):
    gradients = []
    for each in (remat, "none"):
        compiled, params = compiled_gradient(each)
        gradients.append(jax.tree.leaves(compiled(params)))
    for got, wanted in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)
        assert np.abs(got).max() > 0


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="this XLA undoes it on a CPU")
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_twice_is_not_kept(remat):
    """Of attention weights and wide hidden states, which fill the memory."""
    less, more = (
        compiled_gradient(each)[0].memory_analysis().temp_size_in_bytes for each in (remat, "none")
    )
    assert less < 0.9 * more
