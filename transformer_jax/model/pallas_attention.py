"""Attention of packed rows as one kernel of a TPU, in Pallas.

It reads projections as they lie, [B, T, H * K], and takes whole rows of keys; the backward pass
computes the weights again (Dao et al. 2022). JAX's flash attention, which tiles the keys, keeps
copies with heads before positions and K padded to 128, and needs more memory than plain attention
at rows of some hundred tokens.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transformer_jax.model.masks import SegmentMask

_LANES = 128  # of a TPU's registers: lengths are padded to a multiple
_LARGEST_BLOCK = 512 * 512  # weights of a block of queries, of which a core's memory holds several
_MOST_KEYS = 2**20  # bytes of a block's keys; 2**20 + 2**18 have been refused by a compiler


def takes_rows(query_BHTK: jax.Array, key_BHMK: jax.Array) -> bool:
    """Whether rows are neither mostly padding nor too long, nor their keys too much for a core."""
    (_, num_heads, length, head_dim), memory = query_BHTK.shape, key_BHMK.shape[2]
    row_bytes = _lanes(num_heads * head_dim, head_dim) * key_BHMK.dtype.itemsize
    return (
        min(length, memory) > _LANES // 2
        and max(length, memory) <= 8 * _LANES
        and -(-memory // _LANES) * _LANES * row_bytes <= _MOST_KEYS
    )


def _lanes(width: int, head_dim: int) -> int:
    """Of the heads that are computed side by side: whole registers, or all heads."""
    lanes = math.lcm(head_dim, _LANES)
    return width if width % lanes else lanes


def pallas_attention(
    query_BTHK: jax.Array, key_BMHK: jax.Array, value_BMHK: jax.Array, mask: SegmentMask
) -> jax.Array:
    """Attention [B, T, H, K]; its softmax is in float32."""
    flat = (x.reshape(*x.shape[:2], -1) for x in (query_BTHK, key_BMHK, value_BMHK))
    attended_BTE = _attend(*flat, mask, query_BTHK.shape[3])
    return attended_BTE.reshape(query_BTHK.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(query_BTE, key_BME, value_BME, mask, head_dim):
    return _call(_forward_kernel, 1, (query_BTE, key_BME, value_BME), mask, head_dim)[0]


def _forward(query_BTE, key_BME, value_BME, mask, head_dim):
    arrays = query_BTE, key_BME, value_BME
    return _attend(*arrays, mask, head_dim), (arrays, mask)


def _backward(head_dim, residuals, gradient_BTE):
    arrays, mask = residuals
    return *_call(_backward_kernel, 3, (*arrays, gradient_BTE), mask, head_dim), None


_attend.defvjp(_forward, _backward)


def padded(x: jax.Array, multiple: int) -> jax.Array:
    """An array [B, T, ...] with zeros up to a multiple of T; zero is padding's segment."""
    return jnp.pad(x, [(0, 0), (0, -x.shape[1] % multiple)] + [(0, 0)] * (x.ndim - 2))


def _call(
    kernel: Callable,
    results: int,
    arrays: Sequence[jax.Array],
    mask: SegmentMask,
    head_dim: int,
) -> list[jax.Array]:
    """Runs a kernel for each row, some heads side by side, and each block of queries.

    Args:
      kernel: of references to blocks of segments and arrays, and of its results.
      results: how many there are, of the shapes and types of the first arrays.
      arrays: queries [B, T, E], keys and values [B, M, E], and the result's gradient if any.
    """
    query_BT, key_BM = (padded(x, _LANES) for x in (mask.query_BT, mask.key_BM))
    operands = [padded(x, _LANES) for x in arrays]
    (batch, length, width), memory = operands[0].shape, operands[1].shape[1]
    lanes = _lanes(width, head_dim)
    block = length if length * memory <= _LARGEST_BLOCK else _LANES
    of_query = pl.BlockSpec((1, block, lanes), lambda b, h, t: (b, t, h))
    of_memory = pl.BlockSpec((1, memory, lanes), lambda b, h, t: (b, 0, h))
    query_segments = pl.BlockSpec((1, block, 1), lambda b, h, t: (b, t, 0))
    key_segments = pl.BlockSpec((1, 1, memory), lambda b, h, t: (b, 0, 0))
    specs = [of_query, of_memory, of_memory, of_query]
    out = pl.pallas_call(
        functools.partial(kernel, head_dim=head_dim, causal=mask.causal),
        grid=(batch, width // lanes, length // block),
        in_specs=[query_segments, key_segments, *specs[: len(arrays)]],
        out_specs=specs[:results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands[:results]],
        scratch_shapes=[pltpu.VMEM((memory, lanes), jnp.float32)] * (results - 1),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
    )(query_BT[:, :, None], key_BM[:, None], *operands)
    return [x[:, : y.shape[1]] for x, y in zip(out, arrays)]


def _dot(x, y, x_axis: int, y_axis: int) -> jax.Array:
    """The product of two matrices over an axis of each, summed in float32."""
    dimensions = (((x_axis,), (y_axis,)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


def _visible(query_ref, key_ref, causal: bool) -> jax.Array:
    """[T, M] which keys a block of queries attends to, from their segments."""
    visible_TM = (query_ref[0] == key_ref[0]) & (key_ref[0] != 0)
    if causal:
        column_TM, row_TM = (
            jax.lax.broadcasted_iota(jnp.int32, visible_TM.shape, axis) for axis in (1, 0)
        )
        visible_TM &= column_TM <= row_TM + pl.program_id(2) * visible_TM.shape[0]
    return visible_TM


def _weights(query_TK, key_MK, visible_TM) -> jax.Array:
    logits_TM = _dot(query_TK, key_MK, 1, 1) * query_TK.shape[1] ** -0.5
    logits_TM = jnp.where(visible_TM, logits_TM, float(jnp.finfo(jnp.float32).min))
    exp_TM = jnp.exp(logits_TM - logits_TM.max(axis=1, keepdims=True))
    return exp_TM / exp_TM.sum(axis=1, keepdims=True)


def _heads(ref, head_dim: int) -> list[tuple]:
    """The index of each head of a block."""
    return [(0, slice(None), pl.ds(i, head_dim)) for i in range(0, ref.shape[2], head_dim)]


def _forward_kernel(query_segments, key_segments, query, key, value, out, *, head_dim, causal):
    visible_TM = _visible(query_segments, key_segments, causal)
    for head in _heads(query, head_dim):
        weights_TM = _weights(query[head], key[head], visible_TM).astype(value.dtype)
        out[head] = _dot(weights_TM, value[head], 1, 0).astype(out.dtype)


def _backward_kernel(
    query_segments, key_segments, query, key, value, gradient, *results, head_dim, causal
):
    """Gradients; those of keys and values are summed over the blocks of queries."""
    of_query, of_key, of_value, key_sum, value_sum = results

    @pl.when(pl.program_id(2) == 0)
    def _():
        key_sum[...] = jnp.zeros_like(key_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    visible_TM = _visible(query_segments, key_segments, causal)
    for head in _heads(query, head_dim):
        weights_TM = _weights(query[head], key[head], visible_TM)
        value_sum[head[1:]] += _dot(weights_TM.astype(gradient.dtype), gradient[head], 0, 0)
        slope_TM = weights_TM * _dot(gradient[head], value[head], 1, 1)
        logits_TM = slope_TM - weights_TM * slope_TM.sum(axis=1, keepdims=True)
        logits_TM = jnp.where(visible_TM, logits_TM * head_dim**-0.5, 0).astype(query.dtype)
        of_query[head] = _dot(logits_TM, key[head], 1, 0).astype(of_query.dtype)
        key_sum[head[1:]] += _dot(logits_TM, query[head], 0, 0)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        of_key[0] = key_sum[...].astype(of_key.dtype)
        of_value[0] = value_sum[...].astype(of_value.dtype)
