import jax
import numpy as np
import pytest
from builders import model_parts

from transformer_jax.interop.parameters import from_plain, to_plain


@pytest.fixture(scope="module")
def parts():
    return model_parts(num_layers=2, norm="pre", attention_bias=True, output_bias=True)


def test_names_and_shapes_are_those_of_one_layer_and_matrix(parts):
    plain = to_plain(parts[1])
    assert plain["embedding.table"].shape == (13, 8)
    assert plain["encoder.1.self_attention.query.kernel"].shape == (8, 8)
    assert plain["decoder.0.cross_attention.value.bias"].shape == (8,)
    assert plain["decoder.1.feed_forward.expand.kernel"].shape == (8, 16)
    assert plain["decoder.1.feed_forward.norm.scale"].shape == (8,)
    assert plain["encoder.norm.bias"].shape == (8,)
    # Of an encoder's layer 16, of a decoder's 26, two norms, table and bias.
    assert len(plain) == 2 * (16 + 26) + 4 + 2


def test_a_kernel_is_the_matrix_that_projects(parts):
    plain, hidden_BTD = to_plain(parts[1]), np.random.default_rng(0).normal(size=(1, 3, 8))
    stacked = parts[1]["encoder"]["self_attention"]["projections"][0]["kernel"][...][1]
    for index, name in enumerate(("query", "key", "value")):
        expected = np.einsum("BTD,DHK->BTHK", hidden_BTD, stacked[:, index])
        projected = hidden_BTD @ plain[f"encoder.1.self_attention.{name}.kernel"]
        np.testing.assert_allclose(projected.reshape(1, 3, 2, 4), expected, rtol=1e-5)


def test_there_and_back_is_equal_to_the_bit(parts):
    back = from_plain(to_plain(parts[1]), jax.eval_shape(lambda: parts[1]))
    jax.tree.map(np.testing.assert_array_equal, back, parts[1])
