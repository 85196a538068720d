"""Attention of an RNN decoder to all states of the encoder: Luong's and Bahdanau's scores.

Sources: Bahdanau, Cho and Bengio 2015, "Neural Machine Translation by Jointly Learning to Align
and Translate", section 3.1 and appendix A.1.2; Luong, Pham and Manning 2015, "Effective
Approaches to Attention-based Neural Machine Translation", section 3.1 (global attention).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.model.cells import Initializers
from transformer_jax.model.layers import einsum_float32


class Attended(NamedTuple):
    """Keys and values [B, M, D] of the states attended to; bool [B, M], False for padding."""

    key: jax.Array
    value: jax.Array
    real: jax.Array


# Computed anew in the backward pass: kept, [B, T, M, D] would be the largest array of a step.
@jax.checkpoint
def additive_scores(query_BTD: jax.Array, key_BMD: jax.Array, vector_D: jax.Array) -> jax.Array:
    """vector . tanh(query + key), as float32 [B, T, M].

    With projected queries W s and keys U h this is Bahdanau's v . tanh(W s + U h) and, since
    a matrix times a concatenation is a sum of two products, Luong's v . tanh(W [s; h]), concat.
    """
    hidden_BTMD = jnp.tanh(query_BTD[:, :, None] + key_BMD[:, None])
    return einsum_float32("BTMD,D->BTM", hidden_BTMD, vector_D.astype(hidden_BTMD.dtype))


class GlobalAttention(nnx.Module):
    """Softmax over the scores of all source states, and the mean of these states by it.

    `score` is "dot", query . key (Luong et al. 2015, equation 8); "general", query W . key; or
    "concat" or "additive", `additive_scores` of two projections. No projection has a bias, as in
    the papers.
    """

    def __init__(self, dim, score, init: Initializers, *, dtype=jnp.float32, rngs):
        def projection():
            options = {"use_bias": False, "dtype": dtype, "kernel_init": init.attention}
            return nnx.Linear(dim, dim, **options, rngs=rngs)

        self.query = None if score == "dot" else projection()
        adds = score in ("concat", "additive")
        self.key = projection() if adds else None
        self.vector = nnx.Param(init.vector(rngs.params(), (dim,), jnp.float32)) if adds else None
        self.dtype = dtype

    def project(self, value_BMD: jax.Array, real_BM: jax.Array) -> Attended:
        """Keys and values, computed once a sentence."""
        value_BMD = value_BMD.astype(self.dtype)
        key_BMD = value_BMD if self.key is None else self.key(value_BMD)
        return Attended(key_BMD, value_BMD, real_BM)

    def __call__(self, query_BTD: jax.Array, memory: Attended) -> tuple[jax.Array, jax.Array]:
        """The context [B, T, D] of each query, and its weights [B, T, M], float32."""
        query_BTD = query_BTD.astype(self.dtype)
        if self.query is not None:
            query_BTD = self.query(query_BTD)
        if self.vector is None:
            # Not divided by sqrt(D), which only came with the Transformer.
            scores_BTM = einsum_float32("BTD,BMD->BTM", query_BTD, memory.key)
        else:
            scores_BTM = additive_scores(query_BTD, memory.key, self.vector[...])
        lowest = jnp.finfo(jnp.float32).min
        weights_BTM = jax.nn.softmax(jnp.where(memory.real[:, None], scores_BTM, lowest), axis=-1)
        context_BTD = jnp.einsum("BTM,BMD->BTD", weights_BTM.astype(self.dtype), memory.value)
        return context_BTD, weights_BTM
