"""Recurrent cells (Flax's), their initialisation, and a layer of cells over time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

CELLS = {"rnn": nnx.SimpleCell, "lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell}


class Initializers(NamedTuple):
    """Initialisers, by what they initialise."""

    kernel: Callable  # matrices of inputs
    recurrent: Callable  # matrices of states
    attention: Callable  # matrices of attention scores
    vector: Callable  # the vector of additive scores
    bias: Callable


def initializers(attention: str) -> Initializers:
    """As in the paper of each kind of attention; docs/models.md names them."""
    if attention == "additive":
        normal, zeros = nnx.initializers.normal, nnx.initializers.zeros
        return Initializers(normal(0.01), _orthogonal_gates, normal(0.001), zeros, zeros)
    scale = 0.08 if attention == "none" else 0.1

    def uniform(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -scale, scale)

    return Initializers(*[uniform] * 5)


def _orthogonal_gates(key, shape, dtype=jnp.float32, out_sharding=None):
    """[D, G * D]: an orthogonal matrix for each gate."""
    keys = jax.random.split(key, shape[1] // shape[0])
    square = nnx.initializers.orthogonal()
    return jnp.concatenate([square(k, (shape[0], shape[0]), dtype) for k in keys], axis=1)


def make_cell(kind: str, input_dim: int, hidden_dim: int, init: Initializers, *, dtype, rngs):
    """A cell of Flax: "rnn" (tanh), "lstm" or "gru"."""
    return CELLS[kind](
        input_dim,
        hidden_dim,
        kernel_init=init.kernel,
        recurrent_kernel_init=init.recurrent,
        bias_init=init.bias,
        dtype=dtype,
        rngs=rngs,
    )


def hidden_of(state: Any) -> jax.Array:
    """h of a cell's state, which is h, or (c, h) for an LSTM."""
    return jax.tree.leaves(state)[-1]


def first_state(cell, batch: int) -> Any:
    """Zeros, [B, D] each; float32 whatever the cell computes in."""
    zeros_BD = jnp.zeros((batch, cell.hidden_features), jnp.float32)
    return (zeros_BD, zeros_BD) if isinstance(cell, nnx.OptimizedLSTMCell) else zeros_BD


def advance(cell, state: Any, input_BD: jax.Array, real_B: jax.Array | None = None) -> Any:
    """The state after an input; after padding (`real_B` False), the state before.

    The state, float32, and the input have any leading axes; `real_B` too, or 1 in place of some.
    """
    new, _ = cell(state, input_BD)
    new = jax.tree.map(lambda x, old: x.astype(old.dtype), new, state)
    if real_B is None:
        return new
    return jax.tree.map(lambda x, old: jnp.where(real_B[..., None], x, old), new, state)


def scan_cell(
    cell, input_BTD: jax.Array, real_BT: jax.Array, *, reverse: bool = False
) -> tuple[jax.Array, Any]:
    """A layer over time, from zero states: h at each position [B, T, D], and the last state.

    The state is carried past padding (`real_BT` False) unchanged.
    """

    def step(state, now):
        state = advance(cell, state, *now)
        return state, hidden_of(state)

    inputs = input_BTD.swapaxes(0, 1), real_BT.T
    state, hidden_TBD = jax.lax.scan(
        step, first_state(cell, len(input_BTD)), inputs, reverse=reverse
    )
    return hidden_TBD.swapaxes(0, 1), state
