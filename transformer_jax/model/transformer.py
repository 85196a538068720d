"""The Transformer: encoder block, decoder block, and the model behind the shared protocol.

Source: Vaswani et al. 2017, "Attention Is All You Need", section 3 and figure 1. Dropout
stands where section 5.4 puts it (embeddings and each sub-layer's output) and is on if and
only if a random key is passed.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from transformer_jax.config import ModelConfig
from transformer_jax.model.attention import (
    CrossAttention,
    KeyValue,
    Projection,
    SelfAttention,
    own_history,
)
from transformer_jax.model.layers import Linear, TiedEmbedding, dropout, split_or_none
from transformer_jax.model.masks import Tokens, attention_mask
from transformer_jax.model.stack import SUB_LAYER, apply_layers, layers_of, stacked

ACTIVATIONS = {"relu": jax.nn.relu, "gelu": jax.nn.gelu, "silu": jax.nn.silu}
LAYER_NORM_EPSILON = 1e-6


class Memory(NamedTuple):
    """The encoder's states [B, S, D], and the segments [B, S] of the source."""

    hidden: jax.Array
    segments: jax.Array


class Context(NamedTuple):
    """A sentence's share of decoding. Search never copies or reorders it.

    The history holds what all hypotheses of a sentence have read, W entries a position, and
    the cache says which of them belong to which: to follow its parent, a hypothesis takes over
    M numbers instead of M keys and values a layer and head.

    Attributes:
      cross: keys and values [B, H, S, K] of the source in each layer.
      history: keys and values [B, H, I, K] of the positions decoded, I = M * W, in each layer.
      segments: [B, S] of the source; 0 is padding.
    """

    cross: tuple[KeyValue, ...]
    history: tuple[KeyValue, ...]
    segments: jax.Array


class FeedForward(nnx.Module):
    """Position-wise feed-forward network, activation(x W1 + b1) W2 + b2 (section 3.3)."""

    def __init__(self, config: ModelConfig, *, rngs):
        init, dtype = nnx.initializers.xavier_uniform(), jnp.dtype(config.dtype)
        linear = functools.partial(Linear, dtype=dtype, kernel_init=init, rngs=rngs)
        self.expand = linear(config.model_dim, config.feed_forward_dim)
        self.contract = linear(config.feed_forward_dim, config.model_dim)
        self.activation = config.activation

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

    def before(self, hidden_BTD: jax.Array) -> jax.Array:
        """The sub-layer's input."""
        return self.layer_norm(hidden_BTD) if self.norm == "pre" else hidden_BTD

    def after(self, hidden_BTD: jax.Array, output_BTD: jax.Array, key=None) -> jax.Array:
        """The states `hidden_BTD` with the sub-layer's output added."""
        output_BTD = checkpoint_name(output_BTD, SUB_LAYER)
        sum_BTD = hidden_BTD + dropout(output_BTD, self.dropout_rate, key)
        return self.layer_norm(sum_BTD) if self.norm == "post" else sum_BTD


def layer_norm(config: ModelConfig, *, rngs) -> nnx.LayerNorm:
    """Layer norm over D (Ba et al. 2016); statistics in float32 whatever the dtype."""
    options = {"epsilon": LAYER_NORM_EPSILON, "dtype": jnp.dtype(config.dtype), "rngs": rngs}
    return nnx.LayerNorm(config.model_dim, **options)


def _attention(kind: type, config: ModelConfig, rngs):
    options = {"use_bias": config.attention_bias, "dtype": jnp.dtype(config.dtype)}
    return kind(config.model_dim, config.num_heads, **options, rngs=rngs)


class EncoderBlock(nnx.Module):
    """Self-attention and feed-forward, each inside its residual (section 3.1)."""

    def __init__(self, config: ModelConfig, *, rngs):
        self.self_attention = _attention(SelfAttention, config, rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.residuals = nnx.List([Residual(config, rngs=rngs) for _ in range(2)])

    def __call__(self, hidden_BSD, mask, key=None):
        """Returns hidden states [B, S, D] and what else attention returned."""
        (of_self, of_forward), keys = self.residuals, split_or_none(key, 2)
        output_BSD, weights_BHSS = self.self_attention(of_self.before(hidden_BSD), mask)
        hidden_BSD = of_self.after(hidden_BSD, output_BSD, keys[0])
        output_BSD = self.feed_forward(of_forward.before(hidden_BSD))
        return of_forward.after(hidden_BSD, output_BSD, keys[1]), weights_BHSS


class DecoderBlock(nnx.Module):
    """Masked self-attention, cross-attention and feed-forward, each inside its residual."""

    def __init__(self, config: ModelConfig, *, rngs):
        self.self_attention = _attention(SelfAttention, config, rngs)
        self.cross_attention = _attention(CrossAttention, config, rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.residuals = nnx.List([Residual(config, rngs=rngs) for _ in range(3)])

    def __call__(self, hidden_BTD, attend_self, cross: KeyValue, cross_mask, key=None):
        """The block in teacher forcing, or for one position of T hypotheses.

        Args:
          hidden_BTD: states [B, T, D].
          attend_self: self-attention of [B, T, D]: to [B, T, D], and weights or a new history.
          cross: keys and values [B, H, S, K] of the source.
          cross_mask: which source positions may be attended to.
          key: random key of dropout.

        Returns:
          new states [B, T, D], what else `attend_self` returned, cross weights [B, H, T, S].
        """
        (of_self, of_cross, of_forward), keys = self.residuals, split_or_none(key, 3)
        output_BTD, extra = attend_self(of_self.before(hidden_BTD))
        hidden_BTD = of_self.after(hidden_BTD, output_BTD, keys[0])
        output_BTD, weights_BHTS = self.cross_attention(
            of_cross.before(hidden_BTD), cross, cross_mask
        )
        hidden_BTD = of_cross.after(hidden_BTD, output_BTD, keys[1])
        output_BTD = self.feed_forward(of_forward.before(hidden_BTD))
        return of_forward.after(hidden_BTD, output_BTD, keys[2]), extra, weights_BHTS


class Transformer(nnx.Module):
    """The encoder-decoder Transformer of figure 1, by default exactly the paper's.

    Parameters are float32; computation is in `config.dtype`, with the softmax, layer norm
    statistics and logits in float32. With `norm="pre"` a last layer norm closes each stack.
    The methods are those of the protocol in `transformer_jax.model`.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        self.embedding = TiedEmbedding(
            vocab_size,
            config.model_dim,
            output_bias=config.output_bias,
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        self.encoder, self.decoder = (
            stacked([make(config, rngs=rngs) for _ in range(config.num_layers)])
            for make in (EncoderBlock, DecoderBlock)
        )
        pre = config.norm == "pre"
        self.encoder_norm = layer_norm(config, rngs=rngs) if pre else None
        self.decoder_norm = layer_norm(config, rngs=rngs) if pre else None
        self.dropout_rate, self.positions = config.dropout_rate, config.positions
        self.num_layers, self.num_heads = config.num_layers, config.num_heads
        self.kernel = config.attention_kernel
        self.scan, self.remat = config.scan_layers == "on", config.remat

    @property
    def attention_shape(self) -> dict[str, tuple[int, int]]:
        """Layers and heads of the attention there is, by name."""
        shape = self.num_layers, self.num_heads
        return {"encoder": shape, "decoder": shape, "cross": shape}

    def unstack(self) -> None:
        """Lays out parameters for decoding, whose loop would copy a layer's slice each step."""
        self.encoder = layers_of(self.encoder, self.num_layers)
        self.decoder = layers_of(self.decoder, self.num_layers)
        for _, part in nnx.iter_graph(self):
            if isinstance(part, Projection):
                part.turn()

    def _embed(self, ids_BT: jax.Array, positions_BT: jax.Array, key=None) -> jax.Array:
        embedded_BTD = self.embedding.embed(
            ids_BT, positions_BT if self.positions == "sinusoidal" else None
        )
        return dropout(embedded_BTD, self.dropout_rate, key)

    def _apply(self, layer: Callable, stack, hidden_BTD: jax.Array, keys: list):
        return apply_layers(layer, stack, hidden_BTD, keys, scan=self.scan, remat=self.remat)

    def encode(self, source: Tokens, key=None, return_attention=False):
        """Encodes the source (section 3.1): Memory, or (Memory, attention)."""
        own_key, *keys = split_or_none(key, 1 + self.num_layers)
        kernel = "xla" if return_attention else self.kernel
        mask = attention_mask(source.segments, source.segments, kernel)

        def layer(block: EncoderBlock, hidden_BSD, key):
            hidden_BSD, weights_BHSS = block(hidden_BSD, mask, key)
            return hidden_BSD, {"encoder": weights_BHSS} if return_attention else {}

        hidden_BSD = self._embed(source.ids, source.positions, own_key)
        hidden_BSD, attention = self._apply(layer, self.encoder, hidden_BSD, keys)
        if self.encoder_norm is not None:
            hidden_BSD = self.encoder_norm(hidden_BSD)
        memory = Memory(hidden_BSD, source.segments)
        return (memory, attention) if return_attention else memory

    def decode(self, memory: Memory, target: Tokens, key=None, return_attention=False):
        """Teacher forcing: logits [B, T, V], or (logits, attention)."""
        states_BTD, attention = self.states(memory, target, key, return_attention)
        logits_BTV = self.embedding.logits(states_BTD)
        return (logits_BTV, attention) if return_attention else logits_BTV

    def states(self, memory: Memory, target: Tokens, key=None, return_attention=False):
        """Teacher forcing up to the logits: states [B, T, D], and the attention asked for."""
        own_key, *keys = split_or_none(key, 1 + self.num_layers)
        kernel = "xla" if return_attention else self.kernel
        mask = attention_mask(target.segments, target.segments, kernel, causal=True)
        cross_mask = attention_mask(target.segments, memory.segments, kernel)

        def layer(block: DecoderBlock, hidden_BTD, key):
            attend = functools.partial(block.self_attention, mask=mask)
            cross = block.cross_attention.project_memory(memory.hidden)
            hidden_BTD, weights_BHTT, weights_BHTS = block(
                hidden_BTD, attend, cross, cross_mask, key
            )
            attention = {"decoder": weights_BHTT, "cross": weights_BHTS}
            return hidden_BTD, attention if return_attention else {}

        hidden_BTD = self._embed(target.ids, target.positions, own_key)
        hidden_BTD, attention = self._apply(layer, self.decoder, hidden_BTD, keys)
        return self._last(hidden_BTD), attention

    def _last(self, hidden_BTD: jax.Array) -> jax.Array:
        return hidden_BTD if self.decoder_norm is None else self.decoder_norm(hidden_BTD)

    def start(self, memory: Memory, beam_width: int, max_length: int):
        """Context and cache before the first step; the cache is each hypothesis' history slots."""
        layers = tuple(
            block.cross_attention.project_memory(memory.hidden)
            for block in layers_of(self.decoder, self.num_layers)
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
        """Logits [B, W, V], context, cache, and cross weights [L, B, H, W, S] if asked for."""
        batch, width = token_BW.shape
        slot_R = jnp.tile(jnp.arange(width, dtype=jnp.int32), batch)
        slots_RM = cache.at[jnp.arange(slot_R.size), jnp.repeat(position_B, width)].set(slot_R)
        mask_BWI = own_history(slots_RM, position_B, width)
        positions_BW = jnp.broadcast_to(position_B[:, None], token_BW.shape)
        hidden_BWD = self._embed(token_BW, positions_BW)
        cross_mask_B1S = (context.segments != 0)[:, None, :]
        histories, weights = [], []
        blocks = layers_of(self.decoder, self.num_layers)
        for block, history, cross in zip(blocks, context.history, context.cross):
            attend = functools.partial(
                block.self_attention.attend_history,
                history=history,
                mask_BWI=mask_BWI,
                position_B=position_B,
            )
            hidden_BWD, history, weights_BHWS = block(hidden_BWD, attend, cross, cross_mask_B1S)
            histories.append(history)
            weights.append(weights_BHWS)
        logits_BWV = self.embedding.logits(self._last(hidden_BWD))
        result = logits_BWV, context._replace(history=tuple(histories)), slots_RM
        return (*result, jnp.stack(weights)) if return_attention else result
