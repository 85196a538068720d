"""Time and memory of a self-attention and of a recurrent layer, beside the theory of Table 1.

Vaswani et al. 2017, section 4, Table 1: of n places and width d, self-attention takes n^2 d
operations in one step that waits for no other, a recurrent layer n d^2 in n steps. Both counts
leave out constants, and the first leaves out the projections of queries, keys, values and
outputs, 4 n d^2: measured time follows n^2 only where n is some times d.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.model.attention import MultiHeadAttention
from transformer_jax.model.cells import initializers, make_cell, scan_cell

LENGTHS, WIDTHS = (32, 64, 128, 256, 512, 1024, 2048), (32, 64, 128, 256, 512)
_NUM_HEADS = 8  # the paper's


def layer_costs(
    lengths: Sequence[int] = LENGTHS,
    widths: Sequence[int] = WIDTHS,
    *,
    fixed_length: int = 128,
    fixed_width: int = 128,
    repeats: int = 7,
) -> list[dict[str, Any]]:
    """Measures both layers at each length (of one width) and at each width (of one length).

    A layer reads one sentence, float32, and computes its outputs and, by their sum of squares,
    the gradients of its parameters and inputs, as one compiled program on the default device.

    Args:
      lengths: places n, at width `fixed_width`.
      widths: d, multiples of 8 (the heads), at length `fixed_length`.
      repeats: timed calls, after one that is not.

    Returns:
      for each layer and size: layer ("self-attention" or "lstm"), n, d, seconds (median of the
      calls), bytes (temporary memory of the program, without arguments and results; None where
      the backend does not tell), operations and steps (Table 1's, without constants).

    ValueError on a size that is no width of 8 heads, or below 1.
    """
    sizes = [(n, fixed_width) for n in lengths] + [(fixed_length, d) for d in widths]
    for n, d in sizes:
        if n < 1 or d < 1 or d % _NUM_HEADS:
            raise ValueError(f"n={n}, d={d}: n of at least 1 and d of {_NUM_HEADS}, 16, ... wanted")
    sizes = list(dict.fromkeys(sizes))  # where the two rows of sizes cross, once
    return [
        {"layer": "self-attention", "n": n, "d": d}
        | _cost(*_self_attention(d), n, d, repeats)
        | {"operations": n * n * d, "steps": 1}
        for n, d in sizes
    ] + [
        {"layer": "lstm", "n": n, "d": d}
        | _cost(*_lstm(d), n, d, repeats)
        | {"operations": n * d * d, "steps": n}
        for n, d in sizes
    ]


def _self_attention(d: int) -> tuple[nnx.Module, Callable]:
    layer = MultiHeadAttention(d, _NUM_HEADS, rngs=nnx.Rngs(0))

    def apply(layer, hidden_BTD):
        mask_BTT = jnp.ones((1, hidden_BTD.shape[1], hidden_BTD.shape[1]), bool)
        return layer.self_attend(hidden_BTD, mask_BTT)[0]

    return layer, apply


def _lstm(d: int) -> tuple[nnx.Module, Callable]:
    cell = make_cell("lstm", d, d, initializers("none"), dtype=jnp.float32, rngs=nnx.Rngs(0))
    return cell, lambda cell, x_BTD: scan_cell(cell, x_BTD, jnp.ones(x_BTD.shape[:2], bool))[0]


def _cost(layer: nnx.Module, apply: Callable, n: int, d: int, repeats: int) -> dict[str, Any]:
    graphdef, params = nnx.split(layer)

    def loss(params, hidden_BTD):
        return jnp.sum(jnp.square(apply(nnx.merge(graphdef, params), hidden_BTD)))

    hidden_BTD = jax.random.normal(jax.random.key(0), (1, n, d))
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, hidden_BTD).compile()
    jax.block_until_ready(program(params, hidden_BTD))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(params, hidden_BTD))
        seconds.append(time.perf_counter() - start)
    memory = getattr(program.memory_analysis(), "temp_size_in_bytes", None)
    return {"seconds": statistics.median(seconds), "bytes": memory}
