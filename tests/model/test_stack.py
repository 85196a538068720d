"""Layers stored as one, applied one by one or by a scan, are the same layers."""

import jax
import numpy as np
import pytest
from builders import make_model, model_parts, random_batch
from flax import nnx

from transformer_jax.model.masks import sentence_tokens
from transformer_jax.training.step import batch_sums


def gradients(scan_layers: str, remat: str):
    """Loss and gradients with dropout, and how many products the program has."""
    fields = {"num_layers": 3, "dropout_rate": 0.2}
    graphdef, params = model_parts(scan_layers=scan_layers, remat=remat, **fields)
    batch, key = random_batch(0), jax.random.key(0, impl="rbg")

    def loss(params):
        return batch_sums(nnx.merge(graphdef, params), batch, 0.1, key)[0]

    lowered = jax.jit(jax.value_and_grad(loss)).lower(params)
    products = lowered.as_text().count("dot_general")
    return jax.tree.leaves(lowered.compile()(params)), products


@pytest.fixture(scope="module")
def unrolled():
    return gradients("off", "none")


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_scan_computes_what_layers_one_by_one_do(unrolled, remat):
    scanned, products = gradients("on", remat)
    for got, wanted in zip(scanned, unrolled[0], strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)
        assert np.abs(got).max() > 0
    assert products < (0.5 if remat == "none" else 0.7) * unrolled[1]  # of one layer, not three


def test_each_layer_has_parameters_of_its_own_and_all_are_used():
    _, params = model_parts(num_layers=2)
    kernel_LDCHK = params["encoder"]["self_attention"]["projections"][0]["kernel"][...]
    assert kernel_LDCHK.shape[0] == 2
    assert np.abs(kernel_LDCHK[0] - kernel_LDCHK[1]).mean() > 0.01


def test_taken_apart_or_scanned_a_model_is_what_it_was():
    tokens = sentence_tokens(np.arange(12).reshape(2, 6) + 4, np.array([6, 4]))

    def run(model):
        memory, of_encoder = model.encode(tokens, return_attention=True)
        return model.decode(memory, tokens, return_attention=True), of_encoder

    whole, apart, scanned = (
        make_model(20, num_layers=2, scan_layers=scan) for scan in ("off", "off", "on")
    )
    apart.unstack()
    apart.unstack()
    wanted = jax.tree.leaves(nnx.jit(run)(whole))
    for other in (apart, scanned):
        for got, expected in zip(jax.tree.leaves(nnx.jit(run)(other)), wanted, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5)
