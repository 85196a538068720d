"""Tokens with their positions and segments, and the attention masks that follow from them.

A mask is bool and True means "may attend". All masks derive from segments, so that
padding, causality and several pairs in one row are one mechanism.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tokens(NamedTuple):
    """Rows of tokens; a row may hold several sentences, told apart by their segment.

    Attributes:
      ids: [B, S] int32, entries of the vocabulary.
      positions: [B, S] int32, position of a token in its sentence, from 0.
      segments: [B, S] int32, number of the sentence in the row from 1; 0 is padding.
    """

    ids: jax.Array
    positions: jax.Array
    segments: jax.Array


def sentence_tokens(ids_BS: jax.Array, lengths_B: jax.Array) -> Tokens:
    """Rows of one sentence each, whose first `lengths_B` ids are real."""
    positions_BS = jnp.broadcast_to(jnp.arange(ids_BS.shape[1], dtype=jnp.int32), ids_BS.shape)
    return Tokens(ids_BS, positions_BS, (positions_BS < lengths_B[:, None]).astype(jnp.int32))


def segment_mask(query_segments_BT: jax.Array, memory_segments_BM: jax.Array) -> jax.Array:
    """[B, T, M] bool: a query sees the memory of its own segment, and never padding."""
    query_BT1, memory_B1M = query_segments_BT[:, :, None], memory_segments_BM[:, None, :]
    return (query_BT1 == memory_B1M) & (memory_B1M != 0)


def causal_mask(length: int) -> jax.Array:
    """[1, T, T] bool: a position sees itself and those before it (section 3.2.3)."""
    return jnp.tril(jnp.ones((1, length, length), bool))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentMask:
    """The mask of rows as segments, for a fused kernel of attention to apply.

    Attributes:
      query_BT, key_BM: segments of queries and keys.
      causal: whether a position sees none after itself.
      kernel: "cudnn" or "pallas".
    """

    query_BT: jax.Array
    key_BM: jax.Array
    causal: bool = dataclasses.field(metadata={"static": True})
    kernel: str = dataclasses.field(metadata={"static": True})

    def dense(self) -> jax.Array:
        """[B, T, M] bool."""
        mask_BTM = segment_mask(self.query_BT, self.key_BM)
        return mask_BTM & causal_mask(self.query_BT.shape[1]) if self.causal else mask_BTM


def attention_mask(
    query_BT: jax.Array, key_BM: jax.Array, kernel: str, *, causal: bool = False
) -> jax.Array | SegmentMask:
    """The mask between segments in the form that a kernel takes: [B, T, M] bool for "xla"."""
    mask = SegmentMask(query_BT, key_BM, causal, kernel)
    return mask if kernel in ("cudnn", "pallas") else mask.dense()
