"""Recurrent cells against NumPy, and a layer of one over time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import cell_step

from transformer_jax.model.cells import (
    CELLS,
    advance,
    first_state,
    hidden_of,
    initializers,
    make_cell,
    scan_cell,
)

INPUT, HIDDEN = 3, 5


def cell_of(kind: str):
    """A cell whose biases are not zero."""
    return make_cell(
        kind, INPUT, HIDDEN, initializers("dot"), dtype=jnp.float32, rngs=nnx.Rngs(params=3)
    )


@pytest.mark.parametrize("kind", CELLS)
def test_a_step_equals_the_written_out_reference(kind):
    cell, random = cell_of(kind), np.random.default_rng(1)
    biases = [x.bias[...] for x in (cell.dense_i, cell.dense_h) if x.bias is not None]
    assert np.abs(biases).min() > 0
    x_BD = random.normal(size=(4, INPUT)).astype(np.float32)
    state = [*random.normal(size=(1 + (kind == "lstm"), 4, HIDDEN)).astype(np.float32)]
    new = advance(cell, tuple(state) if kind == "lstm" else state[0], jnp.asarray(x_BD))
    for x, y in zip(jax.tree.leaves(new), cell_step(kind, cell, state, x_BD), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_a_layer_is_its_steps_and_padding_carries_the_state(kind, reverse):
    cell = cell_of(kind)
    input_BTD = np.random.default_rng(2).normal(size=(2, 6, INPUT)).astype(np.float32)
    lengths = [6, 4]
    real_BT = np.arange(6)[None] < np.array(lengths)[:, None]
    hidden_BTD, last = scan_cell(
        cell, jnp.asarray(input_BTD), jnp.asarray(real_BT), reverse=reverse
    )
    for row, length in enumerate(lengths):
        state = [np.asarray(x_BD[0], np.float64) for x_BD in jax.tree.leaves(first_state(cell, 1))]
        for place in reversed(range(length)) if reverse else range(length):
            state = cell_step(kind, cell, state, input_BTD[row, place])
            np.testing.assert_allclose(hidden_BTD[row, place], hidden_of(state), atol=1e-5)
        for x_BD, y in zip(jax.tree.leaves(last), state, strict=True):
            np.testing.assert_allclose(x_BD[row], y, atol=1e-5)


@pytest.mark.parametrize("kind", CELLS)
def test_states_are_float32_whatever_the_cell_computes_in(kind):
    cell = make_cell(kind, INPUT, HIDDEN, initializers("dot"), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    state = advance(cell, first_state(cell, 2), jnp.ones((2, INPUT)))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


@pytest.mark.parametrize(("attention", "scale"), [("none", 0.08), ("dot", 0.1), ("concat", 0.1)])
def test_uniform_initialisation_fills_the_papers_range(attention, scale):
    for init in initializers(attention):
        values = init(jax.random.key(0), (300, 300))
        assert -scale <= values.min() < -0.99 * scale
        assert 0.99 * scale < values.max() <= scale


def test_bahdanaus_initialisation():
    init = initializers("additive")
    key = jax.random.key(0)
    assert float(init.kernel(key, (300, 300)).std()) == pytest.approx(0.01, rel=0.02)
    assert float(init.attention(key, (300, 300)).std()) == pytest.approx(0.001, rel=0.02)
    assert not init.vector(key, (300,)).any() and not init.bias(key, (300,)).any()
    for gate in jnp.split(init.recurrent(key, (8, 24)), 3, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
