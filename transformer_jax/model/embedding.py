"""The one tied table for source, target and output, and sinusoidal positions.

Source: Vaswani et al. 2017, sections 3.4 and 3.5; tying after Press and Wolf 2017.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.model.products import einsum_float32


def sinusoidal_positions(positions_BT: jax.Array, model_dim: int) -> jax.Array:
    """Sinusoidal encoding of positions, float32 [..., model_dim] (section 3.5).

    PE(pos, 2i) = sin(pos / 10000^(2i / D)) and PE(pos, 2i + 1) = cos of the same angle.

    Args:
      positions_BT: integers of any shape, counted from 0.
      model_dim: even number of dimensions, D.
    """
    frequencies = 10000.0 ** (-jnp.arange(0, model_dim, 2, dtype=jnp.float32) / model_dim)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies.reshape(
        (1,) * positions_BT.ndim + (-1,)
    )
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(
        *positions_BT.shape, model_dim
    )


class TiedEmbedding(nnx.Module):
    """The table that embeds source and target tokens and, transposed, gives the logits."""

    def __init__(
        self, vocab_size, model_dim, *, init=None, output_bias=False, dtype=jnp.float32, rngs
    ):
        # Standard deviation D^-0.5: the scale of sqrt(D) then gives embeddings of unit variance.
        init = init or nnx.initializers.normal(model_dim**-0.5)
        self.table = nnx.Param(init(rngs.params(), (vocab_size, model_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(vocab_size, jnp.float32)) if output_bias else None
        self.dtype = dtype

    def look_up(self, ids_BT: jax.Array) -> jax.Array:
        """[B, T, D]: the token's row of the table."""
        return self.table[...][ids_BT].astype(self.dtype)

    def embed(self, ids_BT: jax.Array, positions_BT: jax.Array | None) -> jax.Array:
        """[B, T, D]: sqrt(D) times the token's row of the table, plus its position if given."""
        table_VD = self.table[...]
        model_dim = table_VD.shape[1]
        embedded_BTD = table_VD[ids_BT] * model_dim**0.5
        if positions_BT is not None:
            embedded_BTD += sinusoidal_positions(positions_BT, model_dim)
        return embedded_BTD.astype(self.dtype)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, V] float32 logits of hidden states."""
        table_VD = self.table[...].astype(self.dtype)
        logits_BTV = einsum_float32("BTD,VD->BTV", hidden_BTD.astype(self.dtype), table_VD)
        if self.bias is None:
            return logits_BTV
        return logits_BTV + self.bias[...].reshape((1,) * (logits_BTV.ndim - 1) + (-1,))
