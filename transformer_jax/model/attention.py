"""Scaled dot-product attention, multi-head attention, and its key-value cache.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.model.products import einsum_float32


def attention_weights(
    query_BTHK: jax.Array, key_BMHK: jax.Array, mask_BTM: jax.Array | None = None
) -> jax.Array:
    """softmax(Q K^T / sqrt(K)) over M, as float32 [B, H, T, M] (section 3.2.1, equation 1).

    Args:
      query_BTHK: [B, T, H, K] queries, any float dtype.
      key_BMHK: [B, M, H, K] keys, the same dtype.
      mask_BTM: bool, broadcastable to [B, T, M], True = may attend; None = all may.

    A row of the mask without any True gives uniform weights, never NaN.
    """
    # Scaling the queries is scaling the logits, on the smaller of the two arrays.
    scaled_BTHK = query_BTHK * query_BTHK.shape[-1] ** -0.5
    logits_BHTM = einsum_float32("BTHK,BMHK->BHTM", scaled_BTHK, key_BMHK)
    if mask_BTM is not None:
        logits_BHTM = jnp.where(mask_BTM[:, None], logits_BHTM, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(logits_BHTM, axis=-1)


def dot_product_attention(
    query_BTHK: jax.Array,
    key_BMHK: jax.Array,
    value_BMHK: jax.Array,
    mask_BTM: jax.Array | None = None,
) -> jax.Array:
    """Attention(Q, K, V) of section 3.2.1 for H heads at once: [B, T, H, K], dtype of the values.

    Arguments as for `attention_weights`; the softmax is computed in float32.
    """
    weights_BHTM = attention_weights(query_BTHK, key_BMHK, mask_BTM).astype(value_BMHK.dtype)
    return jnp.einsum("BHTM,BMHK->BTHK", weights_BHTM, value_BMHK)


class KeyValue(NamedTuple):
    """Projected keys and values, each [B, M, H, K]."""

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

    def _heads(self, projected_BTD: jax.Array) -> jax.Array:
        return projected_BTD.reshape(*projected_BTD.shape[:-1], self.num_heads, -1)

    def project_query(self, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, H, K] queries of the hidden states."""
        return self._heads(self.query(hidden_BTD))

    def project_memory(self, memory_BMD: jax.Array) -> KeyValue:
        """Keys and values, [B, M, H, K] each, of the states attended to."""
        return KeyValue(self._heads(self.key(memory_BMD)), self._heads(self.value(memory_BMD)))

    def merge_heads(self, attended_BTHK: jax.Array) -> jax.Array:
        """[B, T, D]: the heads side by side through the output projection."""
        return self.output(attended_BTHK.reshape(*attended_BTHK.shape[:-2], -1))

    def __call__(
        self, hidden_BTD: jax.Array, memory_BMD: jax.Array, mask_BTM: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the attended states [B, T, D] and the weights [B, H, T, M], float32."""
        memory = self.project_memory(memory_BMD)
        weights_BHTM = attention_weights(self.project_query(hidden_BTD), memory.key, mask_BTM)
        attended_BTHK = jnp.einsum(
            "BHTM,BMHK->BTHK", weights_BHTM.astype(memory.value.dtype), memory.value
        )
        return self.merge_heads(attended_BTHK), weights_BHTM
