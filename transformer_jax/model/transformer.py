"""The Transformer: encoder block, decoder block, and the model behind the shared protocol.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3 and figure 1. Dropout
stands where section 5.4 puts it (embeddings and each sub-layer's output) and is on if and
only if a random key is passed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.model.attention import KeyValue, MultiHeadAttention
from transformer_jax.model.dropout import dropout, split_or_none
from transformer_jax.model.embedding import TiedEmbedding
from transformer_jax.model.masks import Tokens, causal_mask, segment_mask

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu}


class Memory(NamedTuple):
    """What the encoder leaves for the decoder: hidden [B, S, D] and segments [B, S]."""

    hidden: jax.Array
    segments: jax.Array


class Context(NamedTuple):
    """A sentence's share of decoding. Search never copies or reorders it.

    The history holds what all hypotheses of a sentence have read, W entries a position, and
    the cache says which of them are whose: to follow its parent, a hypothesis takes over M
    numbers instead of M keys and values a layer and head.

    Attributes:
      cross: keys and values [B, H, S, K] of the source in each layer.
      history: keys and values [B, H, M * W, K] of the positions decoded, in each layer.
      segments: [B, S] of the source; 0 is padding.
    """

    cross: tuple[KeyValue, ...]
    history: tuple[KeyValue, ...]
    segments: jax.Array


class FeedForward(nnx.Module):
    """Position-wise feed-forward network, activation(x W1 + b1) W2 + b2 (section 3.3)."""

    def __init__(self, model_dim, feed_forward_dim, *, activation="relu", dtype, rngs):
        init = nnx.initializers.xavier_uniform()
        options = {"dtype": dtype, "kernel_init": init, "rngs": rngs}
        self.expand = nnx.Linear(model_dim, feed_forward_dim, **options)
        self.contract = nnx.Linear(feed_forward_dim, model_dim, **options)
        self.activation = activation

    def __call__(self, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D], each position for itself."""
        return self.contract(ACTIVATIONS[self.activation](self.expand(hidden_BTD)))


class Residual(nnx.Module):
    """What surrounds each sub-layer: residual connection, dropout and layer norm.

    `norm="post"` is the paper's LayerNorm(x + Dropout(Sublayer(x))) (sections 3.1, 5.4);
    `norm="pre"` is x + Dropout(Sublayer(LayerNorm(x))) (Xiong et al. 2020).
    """

    def __init__(self, config: ModelConfig, *, rngs):
        self.layer_norm = layer_norm(config, rngs=rngs)
        self.norm, self.dropout_rate = config.norm, config.dropout_rate

    def __call__(self, hidden_BTD, sublayer, key=None):
        """Returns the new hidden states and whatever else `sublayer` returns."""
        attended_BTD = self.layer_norm(hidden_BTD) if self.norm == "pre" else hidden_BTD
        output_BTD, extra = sublayer(attended_BTD)
        sum_BTD = hidden_BTD + dropout(output_BTD, self.dropout_rate, key)
        return (self.layer_norm(sum_BTD) if self.norm == "post" else sum_BTD), extra


def layer_norm(config: ModelConfig, *, rngs) -> nnx.LayerNorm:
    """Layer norm over D (Ba et al. 2016); statistics in float32 whatever the dtype."""
    return nnx.LayerNorm(config.model_dim, epsilon=1e-6, dtype=jnp.dtype(config.dtype), rngs=rngs)


def attention(config: ModelConfig, *, rngs) -> MultiHeadAttention:
    """Multi-head attention as the config describes it."""
    return MultiHeadAttention(
        config.model_dim,
        config.num_heads,
        use_bias=config.attention_bias,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


def feed_forward(config: ModelConfig, *, rngs) -> FeedForward:
    """The feed-forward network as the config describes it."""
    return FeedForward(
        config.model_dim,
        config.feed_forward_dim,
        activation=config.activation,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each inside its residual (section 3.1)."""

    def __init__(self, config: ModelConfig, *, rngs):
        self.self_attention = attention(config, rngs=rngs)
        self.feed_forward = feed_forward(config, rngs=rngs)
        self.residuals = nnx.List([Residual(config, rngs=rngs) for _ in range(2)])

    def __call__(self, hidden_BSD, mask_BSS, key=None):
        """Returns hidden states [B, S, D] and self-attention weights [B, H, S, S]."""
        keys = split_or_none(key, 2)
        hidden_BSD, weights_BHSS = self.residuals[0](
            hidden_BSD, lambda x_BSD: self.self_attention.self_attend(x_BSD, mask_BSS), keys[0]
        )
        hidden_BSD, _ = self.residuals[1](
            hidden_BSD, lambda x_BSD: (self.feed_forward(x_BSD), None), keys[1]
        )
        return hidden_BSD, weights_BHSS


class DecoderBlock(nnx.Module):
    """Masked self-attention, cross-attention and feed-forward, each inside its residual."""

    def __init__(self, config: ModelConfig, *, rngs):
        self.self_attention = attention(config, rngs=rngs)
        self.cross_attention = attention(config, rngs=rngs)
        self.feed_forward = feed_forward(config, rngs=rngs)
        self.residuals = nnx.List([Residual(config, rngs=rngs) for _ in range(3)])

    def __call__(self, hidden_BTD, mask_BTT, memory_BSD, cross_mask_BTS, key=None):
        """Returns hidden [B, T, D], self [B, H, T, T] and cross weights [B, H, T, S]."""
        keys = split_or_none(key, 3)
        memory = self.cross_attention.project_memory(memory_BSD)
        hidden_BTD, weights_BHTT = self.residuals[0](
            hidden_BTD, lambda x_BTD: self.self_attention.self_attend(x_BTD, mask_BTT), keys[0]
        )
        hidden_BTD, weights_BHTS = self.residuals[1](
            hidden_BTD,
            lambda x_BTD: self.cross_attention.cross_attend(x_BTD, memory, cross_mask_BTS),
            keys[1],
        )
        hidden_BTD, _ = self.residuals[2](
            hidden_BTD, lambda x_BTD: (self.feed_forward(x_BTD), None), keys[2]
        )
        return hidden_BTD, weights_BHTT, weights_BHTS

    def step(self, hidden_BWD, history, write, history_mask_BWN, cross, cross_mask_B1S):
        """One position of W hypotheses a sentence, over what was decoded before.

        Args:
          hidden_BWD: [B, W, D] states of the new position.
          history: keys and values [B, H, N, K] of all that was decoded of each sentence.
          write: puts those [B, H, W, K] of the new position into the history.
          history_mask_BWN: which of it belongs to each hypothesis.
          cross: keys and values [B, H, S, K] of the source.
          cross_mask_B1S: which source positions are real.

        Returns:
          New states [B, W, D], the history with this position, cross weights [B, H, W, S].
        """

        def attend_before(x_BWD):
            query_BHWK, new = self.self_attention.project_self(x_BWD)
            updated = KeyValue(*map(write, history, new))
            attended_BWD, _ = self.self_attention.attend(query_BHWK, updated, history_mask_BWN)
            return attended_BWD, updated

        def attend_source(x_BWD):
            return self.cross_attention.cross_attend(x_BWD, cross, cross_mask_B1S)

        hidden_BWD, history = self.residuals[0](hidden_BWD, attend_before)
        hidden_BWD, weights_BHWS = self.residuals[1](hidden_BWD, attend_source)
        hidden_BWD, _ = self.residuals[2](
            hidden_BWD, lambda x_BWD: (self.feed_forward(x_BWD), None)
        )
        return hidden_BWD, history, weights_BHWS


class Transformer(nnx.Module):
    """The encoder-decoder Transformer of figure 1, by default exactly the paper's.

    Parameters are float32; computation is in `config.dtype`, with the softmax, layer norm
    statistics and logits in float32. With `norm="pre"` a last layer norm closes each stack.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.embedding = TiedEmbedding(
            vocab_size,
            config.model_dim,
            output_bias=config.output_bias,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        layers = range(config.num_layers)
        self.encoder = nnx.List([EncoderBlock(config, rngs=rngs) for _ in layers])
        self.decoder = nnx.List([DecoderBlock(config, rngs=rngs) for _ in layers])
        pre = config.norm == "pre"
        self.encoder_norm = layer_norm(config, rngs=rngs) if pre else None
        self.decoder_norm = layer_norm(config, rngs=rngs) if pre else None
        self.dropout_rate, self.positions = config.dropout_rate, config.positions
        self.num_heads = config.num_heads

    @property
    def attention_shape(self) -> dict[str, tuple[int, int]]:
        """Layers and heads of the attention that there is, by name."""
        shape = len(self.decoder), self.num_heads
        return {"encoder": shape, "decoder": shape, "cross": shape}

    def _embed(self, ids_BT: jax.Array, positions_BT: jax.Array, key=None) -> jax.Array:
        embedded_BTD = self.embedding.embed(
            ids_BT, positions_BT if self.positions == "sinusoidal" else None
        )
        return dropout(embedded_BTD, self.dropout_rate, key)

    def encode(self, source: Tokens, key=None, return_attention=False):
        """Encodes the source (section 3.1).

        Args:
          source: Tokens, [B, S] each.
          key: random key of dropout; None turns dropout off.
          return_attention: also return {"encoder": weights [L, B, H, S, S]}.

        Returns:
          Memory, or (Memory, attention).
        """
        keys = split_or_none(key, 1 + len(self.encoder))
        mask_BSS = segment_mask(source.segments, source.segments)
        hidden_BSD = self._embed(source.ids, source.positions, keys[0])
        weights = []
        for block, block_key in zip(self.encoder, keys[1:]):
            hidden_BSD, weights_BHSS = block(hidden_BSD, mask_BSS, block_key)
            weights.append(weights_BHSS)
        if self.encoder_norm is not None:
            hidden_BSD = self.encoder_norm(hidden_BSD)
        memory = Memory(hidden_BSD, source.segments)
        return (memory, {"encoder": jnp.stack(weights)}) if return_attention else memory

    def decode(self, memory: Memory, target: Tokens, key=None, return_attention=False):
        """Teacher forcing: logits of the next token at every position of the target at once.

        Args:
          memory: what `encode` returned, for the same B.
          target: Tokens, [B, T] each, beginning with the start symbol.
          key: random key of dropout; None turns dropout off.
          return_attention: also return {"decoder": [L, B, H, T, T], "cross": [L, B, H, T, S]}.

        Returns:
          Logits [B, T, V], float32, or (logits, attention).
        """
        keys = split_or_none(key, 1 + len(self.decoder))
        mask_BTT = segment_mask(target.segments, target.segments) & causal_mask(
            target.segments.shape[1]
        )
        cross_mask_BTS = segment_mask(target.segments, memory.segments)
        hidden_BTD = self._embed(target.ids, target.positions, keys[0])
        self_weights, cross_weights = [], []
        for block, block_key in zip(self.decoder, keys[1:]):
            hidden_BTD, weights_BHTT, weights_BHTS = block(
                hidden_BTD, mask_BTT, memory.hidden, cross_mask_BTS, block_key
            )
            self_weights.append(weights_BHTT)
            cross_weights.append(weights_BHTS)
        logits_BTV = self._logits(hidden_BTD)
        if not return_attention:
            return logits_BTV
        return logits_BTV, {"decoder": jnp.stack(self_weights), "cross": jnp.stack(cross_weights)}

    def _logits(self, hidden_BTD: jax.Array) -> jax.Array:
        if self.decoder_norm is not None:
            hidden_BTD = self.decoder_norm(hidden_BTD)
        return self.embedding.logits(hidden_BTD)

    def start(self, memory: Memory, beam_width: int, max_length: int):
        """What decoding needs before its first step.

        Args:
          memory: what `encode` returned, B sentences of one segment each.
          beam_width: hypotheses a sentence, W.
          max_length: most positions a hypothesis may have, M.

        Returns:
          context, a row a sentence, and cache, a pytree whose every leaf leads with B * W, the
          hypotheses of a sentence side by side, and may be reordered with them.
        """
        layers = tuple(
            block.cross_attention.project_memory(memory.hidden) for block in self.decoder
        )

        def empty(x_BHSK: jax.Array) -> jax.Array:
            shape = (*x_BHSK.shape[:2], max_length * beam_width, x_BHSK.shape[3])
            return jnp.zeros(shape, x_BHSK.dtype)

        rows = memory.hidden.shape[0] * beam_width
        context = Context(layers, jax.tree.map(empty, layers), memory.segments)
        return context, jnp.zeros((rows, max_length), jnp.int32)

    def step(
        self, context: Context, cache, token_BW, position_B: jax.Array, return_attention=False
    ):
        """Reads one token a hypothesis: logits [B, W, V] of the next one, new context and cache.

        Args:
          context, cache: from `start` or an earlier step.
          token_BW: [B, W] the tokens at `position_B`; the start symbol at position 0.
          position_B: [B] position of these tokens.
          return_attention: also return the cross weights [L, B, H, W, S].
        """
        batch, width = token_BW.shape
        slot_R = jnp.tile(jnp.arange(width, dtype=jnp.int32), batch)
        slots_RM = cache.at[jnp.arange(slot_R.size), jnp.repeat(position_B, width)].set(slot_R)
        history_mask_BWN = _own_history(slots_RM, position_B, width)
        write = functools.partial(_write, position_B=position_B)
        positions_BW = jnp.broadcast_to(position_B[:, None], token_BW.shape)
        hidden_BWD = self._embed(token_BW, positions_BW)
        cross_mask_B1S = (context.segments != 0)[:, None, :]
        histories, weights = [], []
        for block, history, cross in zip(self.decoder, context.history, context.cross):
            hidden_BWD, history, weights_BHWS = block.step(
                hidden_BWD, history, write, history_mask_BWN, cross, cross_mask_B1S
            )
            histories.append(history)
            weights.append(weights_BHWS)
        result = self._logits(hidden_BWD), context._replace(history=tuple(histories)), slots_RM
        return (*result, jnp.stack(weights)) if return_attention else result


def _own_history(slots_RM: jax.Array, position_B: jax.Array, width: int) -> jax.Array:
    """[B, W, N] which entries of a sentence's history a hypothesis has read, N = M * W.

    Args:
      slots_RM: among the W of position m, the entry that belongs to hypothesis r.
      position_B: the last position.
      width: W.
    """
    slots_BWM1 = slots_RM.reshape(-1, width, slots_RM.shape[1], 1)
    read_B1M1 = (jnp.arange(slots_RM.shape[1])[None] <= position_B[:, None])[:, None, :, None]
    own_BWMW = (slots_BWM1 == jnp.arange(width).reshape(1, 1, 1, -1)) & read_B1M1
    return own_BWMW.reshape(*slots_BWM1.shape[:2], -1)


def _write(history_BHNK: jax.Array, new_BHWK: jax.Array, position_B: jax.Array) -> jax.Array:
    """The history with the entries of each sentence's own position, which stand side by side."""

    def write(history_HNK, new_HWK, position):
        start = position * new_HWK.shape[1]
        return jax.lax.dynamic_update_slice_in_dim(history_HNK, new_HWK, start, axis=1)

    return jax.vmap(write)(history_BHNK, new_BHWK, position_B)
