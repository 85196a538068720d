"""Scaled dot-product attention and multi-head attention.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2. Heads come before
positions, [B, H, T, K], so that what one head reads lies together in memory: a step of
decoding is a third quicker for it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.model.kernels import fused_attention
from transformer_jax.model.layers import Linear, einsum_float32, product
from transformer_jax.model.masks import SegmentMask


def attention_weights(
    query_BHTK: jax.Array, key_BHMK: jax.Array, mask_BTM: jax.Array | None = None
) -> jax.Array:
    """softmax(Q K^T / sqrt(K)) over M, as float32 [B, H, T, M] (section 3.2.1, equation 1).

    Args:
      query_BHTK: [B, H, T, K] queries, any float dtype.
      key_BHMK: [B, H, M, K] keys, the same dtype.
      mask_BTM: bool, broadcastable to [B, T, M], True = may attend; None = all may.

    A row of the mask without any True gives uniform weights, never NaN.
    """
    # Scaling the queries is scaling the logits, on the smaller of the two arrays.
    scaled_BHTK = query_BHTK * query_BHTK.shape[-1] ** -0.5
    logits_BHTM = einsum_float32("BHTK,BHMK->BHTM", scaled_BHTK, key_BHMK)
    if mask_BTM is not None:
        logits_BHTM = jnp.where(mask_BTM[:, None], logits_BHTM, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits_BHTM, axis=-1)


def dot_product_attention(
    query_BHTK: jax.Array,
    key_BHMK: jax.Array,
    value_BHMK: jax.Array,
    mask_BTM: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attention(Q, K, V) of section 3.2.1 for H heads at once, and its weights.

    Arguments as for `attention_weights`; the softmax is computed in float32.

    Returns:
      [B, H, T, K] of the dtype of the values, and the weights [B, H, T, M], float32.
    """
    weights_BHTM = attention_weights(query_BHTK, key_BHMK, mask_BTM)
    attended_BHTK = jnp.einsum("BHTM,BHMK->BHTK", weights_BHTM.astype(value_BHMK.dtype), value_BHMK)
    return attended_BHTK, weights_BHTM


def attend(
    query_BHTK: jax.Array, key_BHMK: jax.Array, value_BHMK: jax.Array, mask: jax.Array | SegmentMask
) -> tuple[jax.Array, jax.Array | None]:
    """Attention by the kernel that the mask is for: `dot_product_attention` for an array.

    Returns:
      [B, H, T, K], and the weights [B, H, T, M], float32, which fused kernels do not give.
    """
    if not isinstance(mask, SegmentMask):
        return dot_product_attention(query_BHTK, key_BHMK, value_BHMK, mask)
    attended_BHTK = fused_attention(query_BHTK, key_BHMK, value_BHMK, mask)
    if attended_BHTK is None:
        attended_BHTK, _ = dot_product_attention(query_BHTK, key_BHMK, value_BHMK, mask.dense())
    return attended_BHTK, None


class KeyValue(NamedTuple):
    """Projected keys and values, each [B, H, M, K]."""

    key: jax.Array
    value: jax.Array


class Projection(nnx.Module):
    """Projections of the same states for H heads, in one product: larger ones are quicker.

    The parameters are [D, C, H, K] and, with `use_bias`, [C, H, K], for C projections. For
    decoding the kernel is [C, H, K, D], as its product reads it: a CPU would turn it each step.
    """

    def __init__(self, model_dim, num_heads, count, *, use_bias=False, dtype, rngs):
        init, shape = nnx.initializers.xavier_uniform(), (count, num_heads, model_dim // num_heads)
        # Each initialised as the [D, D] matrix that it is.
        drawn = [init(rngs.params(), (model_dim, model_dim), jnp.float32) for _ in range(count)]
        self.kernel = nnx.Param(jnp.stack(drawn, axis=1).reshape(model_dim, *shape))
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32)) if use_bias else None
        self.dtype, self.turned = dtype, False

    def turn(self) -> None:
        """Lays out the kernel for decoding, if it is not so already."""
        if not self.turned:
            self.kernel, self.turned = nnx.Param(jnp.moveaxis(self.kernel[...], 0, -1)), True

    def __call__(self, hidden_BTD: jax.Array) -> list[jax.Array]:
        """[B, H, T, K] of each projection."""
        # Heads and K are one dimension until the product is made: a TPU pads a last one of 64.
        hidden_BTD, kernel = hidden_BTD.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if self.turned:
            count, num_heads, _, model_dim = kernel.shape
            kernel_CED = kernel.reshape(count, -1, model_dim)
            heads_CBTE = jnp.einsum("BTD,CED->CBTE", hidden_BTD, kernel_CED)
        else:
            model_dim, count, num_heads, _ = kernel.shape
            heads_BTCE = product(hidden_BTD, kernel.reshape(model_dim, count, -1))
            heads_CBTE = jnp.moveaxis(heads_BTCE, 2, 0)
        if self.bias is not None:
            heads_CBTE += self.bias[...].reshape(count, 1, 1, -1).astype(self.dtype)
        heads_CBTHK = heads_CBTE.reshape(*heads_CBTE.shape[:3], num_heads, -1)
        return list(heads_CBTHK.swapaxes(2, 3))


class MultiHeadAttention(nnx.Module):
    """Multi-head attention (section 3.2.2): H heads of size D / H, concatenated and projected.

    Each of `counts` is a number of projections of the same states; together they are those of
    queries, keys and values. All are without bias as in the paper, unless `use_bias`.
    """

    def __init__(self, counts, model_dim, num_heads, *, use_bias=False, dtype=jnp.float32, rngs):
        options = {"use_bias": use_bias, "dtype": dtype, "rngs": rngs}
        self.projections = nnx.List(
            [Projection(model_dim, num_heads, count, **options) for count in counts]
        )
        init = nnx.initializers.xavier_uniform()
        self.output = Linear(model_dim, model_dim, kernel_init=init, **options)

    def attend(
        self, query_BHTK: jax.Array, memory: KeyValue, mask: jax.Array | SegmentMask
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns the attended states [B, T, D], and the weights as `attend` does."""
        attended_BHTK, weights_BHTM = attend(query_BHTK, *memory, mask)
        attended_BTHK = attended_BHTK.swapaxes(1, 2)
        return self.output(attended_BTHK.reshape(*attended_BTHK.shape[:2], -1)), weights_BHTM


class SelfAttention(MultiHeadAttention):
    """Attention of states to themselves: queries, keys and values are one parameter."""

    def __init__(self, model_dim, num_heads, **options):
        super().__init__((3,), model_dim, num_heads, **options)

    def project(self, hidden_BTD: jax.Array) -> tuple[jax.Array, KeyValue]:
        """Queries, and keys and values, [B, H, T, K] each."""
        query_BHTK, *memory = self.projections[0](hidden_BTD)
        return query_BHTK, KeyValue(*memory)

    def __call__(self, hidden_BTD: jax.Array, mask: jax.Array | SegmentMask):
        """Returns as `attend`."""
        return self.attend(*self.project(hidden_BTD), mask)

    def attend_history(self, hidden_BWD, history: KeyValue, mask_BWI, position_B):
        """Self-attention of the W hypotheses of each sentence to all decoded before them.

        Args:
          hidden_BWD: states of the new position.
          history: keys and values [B, H, I, K] of the positions decoded, I = M * W.
          mask_BWI: the entries of the history that belong to each hypothesis, the new ones too.
          position_B: the new position of each sentence.

        Returns:
          the attended states [B, W, D], and the history with the new position.
        """
        query_BHWK, new = self.project(hidden_BWD)
        written = KeyValue(*(_write(*x, position_B) for x in zip(history, new)))
        attended_BWD, _ = self.attend(query_BHWK, written, mask_BWI)
        return attended_BWD, written


def _write(history_BHIK: jax.Array, new_BHWK: jax.Array, position_B: jax.Array) -> jax.Array:
    """The history with the W entries of each sentence's new position."""
    width = new_BHWK.shape[2]

    def in_place(history_BHIK, new_BHWK, position_B):
        update = jax.lax.dynamic_update_slice_in_dim
        if history_BHIK.shape[0] == 1:
            # Else XLA would write, and copy, the history once for each of its uses.
            return jax.lax.optimization_barrier(
                update(history_BHIK, new_BHWK, position_B[0] * width, axis=2)
            )
        update = jax.vmap(functools.partial(update, axis=1))
        return update(history_BHIK, new_BHWK, position_B * width)

    def as_a_whole(history_BHIK, new_BHWK, position_B):
        entries_BI = jnp.arange(history_BHIK.shape[2])[None] - position_B[:, None] * width
        is_new_BWI = entries_BI[:, None] == jnp.arange(width)[None, :, None]
        chosen_BWI = is_new_BWI.astype(new_BHWK.dtype)
        spread_BHIK = jnp.einsum("BHWK,BWI->BHIK", new_BHWK, chosen_BWI, precision="highest")
        return jnp.where(is_new_BWI.any(axis=1)[:, None, :, None], spread_BHIK, history_BHIK)

    # In place, a TPU writes one sentence after the other, for most of the time of a step.
    return jax.lax.platform_dependent(
        history_BHIK, new_BHWK, position_B, tpu=as_a_whole, default=in_place
    )


class CrossAttention(MultiHeadAttention):
    """Attention to other states, whose keys and values are one parameter."""

    def __init__(self, model_dim, num_heads, **options):
        super().__init__((1, 2), model_dim, num_heads, **options)

    def project_memory(self, memory_BMD: jax.Array) -> KeyValue:
        """Keys and values, [B, H, M, K] each, of the states attended to."""
        return KeyValue(*self.projections[1](memory_BMD))

    def __call__(self, hidden_BTD: jax.Array, memory: KeyValue, mask: jax.Array | SegmentMask):
        """Attention to what `project_memory` gave; returns as `attend`."""
        (query_BHTK,) = self.projections[0](hidden_BTD)
        return self.attend(query_BHTK, memory, mask)


def own_history(slots_RM: jax.Array, position_B: jax.Array, width: int) -> jax.Array:
    """[B, W, I] which entries of a sentence's history a hypothesis has read.

    Args:
      slots_RM: the entry, among the W of position m, that belongs to hypothesis r.
      position_B: the last position.
      width: W.
    """
    slots_BWM1 = slots_RM.reshape(-1, width, slots_RM.shape[1], 1)
    read_B1M1 = (jnp.arange(slots_RM.shape[1])[None] <= position_B[:, None])[:, None, :, None]
    own_BWMW = (slots_BWM1 == jnp.arange(width).reshape(1, 1, 1, -1)) & read_B1M1
    return own_BWMW.reshape(*slots_BWM1.shape[:2], -1)
