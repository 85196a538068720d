"""Scaled dot-product attention and multi-head attention.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2. Heads come before
positions, [B, H, T, K], so that what one head reads lies together in memory: a step of
decoding is a third quicker for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.model.layers import einsum_float32


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


class KeyValue(NamedTuple):
    """Projected keys and values, each [B, H, M, K]."""

    key: jax.Array
    value: jax.Array


class MultiHeadAttention(nnx.Module):
    """Multi-head attention (section 3.2.2): H heads of size D / H, concatenated and projected.

    The four projections are [D, D] matrices, without bias as in the paper unless
    `use_bias`.
    """

    def __init__(self, model_dim, num_heads, *, use_bias=False, dtype=jnp.float32, rngs):
        def projection():
            return nnx.Linear(
                model_dim,
                model_dim,
                use_bias=use_bias,
                dtype=dtype,
                kernel_init=nnx.initializers.xavier_uniform(),
                rngs=rngs,
            )

        self.num_heads = num_heads
        self.query, self.key, self.value, self.output = (projection() for _ in range(4))

    def _project(self, hidden_BTD: jax.Array, *layers: nnx.Linear) -> list[jax.Array]:
        """[B, H, T, K] of each layer, in one product: fewer and larger ones are quicker."""
        dtype = layers[0].dtype
        kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=1)
        projected_BTE = hidden_BTD.astype(dtype) @ kernel.astype(dtype)
        if layers[0].bias is not None:
            bias_E = jnp.concatenate([layer.bias[...] for layer in layers]).astype(dtype)
            projected_BTE += bias_E.reshape(1, 1, -1)
        shape = (*hidden_BTD.shape[:2], len(layers) * self.num_heads, -1)
        heads_BHTK = projected_BTE.reshape(shape).swapaxes(1, 2)
        return jnp.split(heads_BHTK, len(layers), axis=1)

    def project_memory(self, memory_BMD: jax.Array) -> KeyValue:
        """Keys and values, [B, H, M, K] each, of the states attended to."""
        return KeyValue(*self._project(memory_BMD, self.key, self.value))

    def project_self(self, hidden_BTD: jax.Array) -> tuple[jax.Array, KeyValue]:
        """Queries, and keys and values, [B, H, T, K] each, of the same states."""
        query_BHTK, *memory = self._project(hidden_BTD, self.query, self.key, self.value)
        return query_BHTK, KeyValue(*memory)

    def attend(
        self, query_BHTK: jax.Array, memory: KeyValue, mask_BTM: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the attended states [B, T, D] and the weights [B, H, T, M], float32."""
        attended_BHTK, weights_BHTM = dot_product_attention(query_BHTK, *memory, mask_BTM)
        attended_BTHK = attended_BHTK.swapaxes(1, 2)
        return self.output(attended_BTHK.reshape(*attended_BTHK.shape[:2], -1)), weights_BHTM

    def self_attend(self, hidden_BTD: jax.Array, mask_BTT: jax.Array):
        """Attention of states to themselves; returns as `attend`."""
        return self.attend(*self.project_self(hidden_BTD), mask_BTT)

    def cross_attend(self, hidden_BTD: jax.Array, memory: KeyValue, mask_BTM: jax.Array):
        """Attention to what `project_memory` gave for other states; returns as `attend`."""
        (query_BHTK,) = self._project(hidden_BTD, self.query)
        return self.attend(query_BHTK, memory, mask_BTM)

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
        query_BHWK, new = self.project_self(hidden_BWD)

        def write(history_HIK, new_HWK, position):
            start = position * new_HWK.shape[1]
            return jax.lax.dynamic_update_slice_in_dim(history_HIK, new_HWK, start, axis=1)

        written = KeyValue(*(jax.vmap(write)(*x, position_B) for x in zip(history, new)))
        attended_BWD, _ = self.attend(query_BHWK, written, mask_BWI)
        return attended_BWD, written


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
