"""Time and memory of a self-attention and of a recurrent layer by length and width: one JSON line.

    python benchmarks/layer_cost.py

One sentence of n positions and width d, float32, forward and backward, beside the operations and
sequential steps of Table 1 in section 4 of Vaswani et al. 2017: n^2 d in one step for
self-attention, n d^2 in n steps for a recurrent layer. Both leave out constants, and the first
leaves out the projections, 4 n d^2: measured time follows n^2 only where n is some times d.
"""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from flax import nnx

from transformer_jax.model.attention import SelfAttention
from transformer_jax.model.cells import initializers, make_cell, scan_cell

_LENGTHS = flags.DEFINE_list("lengths", "32,64,128,256,512,1024,2048".split(","), "n, at d=128.")
_WIDTHS = flags.DEFINE_list("widths", "32,64,128,256,512".split(","), "d, at n=128.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Times that are timed.", lower_bound=1)

FIXED = 128  # the width of all lengths, and the length of all widths
NUM_HEADS = 8


def layer_costs(lengths: Sequence[int], widths: Sequence[int], repeats: int) -> list[dict]:
    """layer, n, d, seconds, bytes, operations and steps of both layers at each size."""
    sizes = dict.fromkeys([(n, FIXED) for n in lengths] + [(FIXED, d) for d in widths])
    costs = []
    for name, make in (("self-attention", _self_attention), ("lstm", _lstm)):
        for n, d in sizes:
            operations, steps = (n * n * d, 1) if name == "self-attention" else (n * d * d, n)
            cost = _cost(*make(d), n, d, repeats)
            theory = {"operations": operations, "steps": steps}
            costs.append({"layer": name, "n": n, "d": d} | cost | theory)
    return costs


def _self_attention(d: int) -> tuple[nnx.Module, Callable]:
    def apply(layer, hidden_BTD):
        mask_BTT = jnp.ones((1, hidden_BTD.shape[1], hidden_BTD.shape[1]), bool)
        return layer(hidden_BTD, mask_BTT)[0]

    return SelfAttention(d, NUM_HEADS, rngs=nnx.Rngs(0)), apply


def _lstm(d: int) -> tuple[nnx.Module, Callable]:
    cell = make_cell("lstm", d, d, initializers("none"), dtype=jnp.float32, rngs=nnx.Rngs(0))
    return cell, lambda cell, x_BTD: scan_cell(cell, x_BTD, jnp.ones(x_BTD.shape[:2], bool))[0]


def _cost(layer: nnx.Module, apply: Callable, n: int, d: int, repeats: int) -> dict[str, Any]:
    """seconds, the median; bytes, the program's temporary memory, or None where unknown."""
    graphdef, params = nnx.split(layer)

    def loss(params, hidden_BTD):
        return jnp.sum(jnp.square(apply(nnx.merge(graphdef, params), hidden_BTD)))

    hidden_BTD = jax.random.normal(jax.random.key(0), (1, n, d))
    program = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(params, hidden_BTD).compile()
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(params, hidden_BTD))
        seconds.append(time.perf_counter() - start)
    memory = getattr(program.memory_analysis(), "temp_size_in_bytes", None)
    return {"seconds": statistics.median(seconds[1:]), "bytes": memory}


def main(_) -> None:
    sizes = [int(n) for n in _LENGTHS.value], [int(d) for d in _WIDTHS.value]
    costs = layer_costs(*sizes, _REPEATS.value)
    print(json.dumps({"benchmark": "layer_cost", "layer_costs": costs}), flush=True)


if __name__ == "__main__":
    app.run(main)
