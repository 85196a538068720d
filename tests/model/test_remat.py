"""What a backward pass computes again changes memory, and nothing else."""

import functools

import jax
import numpy as np
import pytest
from builders import model_parts, random_batch
from flax import nnx

from transformer_jax.training.step import batch_sums


@pytest.fixture(scope="module")
def gradients():
    """By policy: the gradient's leaves, and bytes of memory beside arguments and results."""
    batch = random_batch(0, rows=16, length=40)

    def of(remat: str):
        graphdef, params = model_parts(num_layers=2, dropout_rate=0.2, remat=remat)

        def loss(params):
            return batch_sums(
                nnx.merge(graphdef, params), batch, 0.1, jax.random.key(0, impl="rbg")
            )[0]

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        memory = compiled.memory_analysis().temp_size_in_bytes
        return [np.asarray(x) for x in jax.tree.leaves(compiled(params))], memory

    return functools.cache(of)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_gradients_are_the_same_with_dropout_too(gradients, remat):
    for got, wanted in zip(gradients(remat)[0], gradients("none")[0], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)
        assert np.abs(got).max() > 0


def test_the_less_is_kept_the_less_memory_is_needed(gradients):
    none, dots, full = (gradients(remat)[1] for remat in ("none", "dots", "full"))
    assert full < dots < none
