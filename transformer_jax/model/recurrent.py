"""RNN encoder-decoders, without attention and with Luong's or Bahdanau's, behind the protocol.

docs/models.md says what each `config.attention` follows, and where it differs from its paper:
"none" Cho et al. 2014 and Sutskever et al. 2014; "dot", "general" and "concat" Luong et al. 2015;
"additive" Bahdanau et al. 2015.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.model.cells import (
    Initializers,
    advance,
    hidden_of,
    initializers,
    make_cell,
    scan_cell,
)
from transformer_jax.model.global_attention import Attended, GlobalAttention
from transformer_jax.model.layers import TiedEmbedding, dropout, split_or_none
from transformer_jax.model.masks import Tokens


class Memory(NamedTuple):
    """The encoder's output."""

    hidden: jax.Array  # [B, S, D] states of the top layer
    segments: jax.Array  # [B, S] of the source; 0 is padding
    states: tuple[Any, ...]  # the decoder's first, by layer: [B, D], or two of them for an LSTM


class DecoderState(NamedTuple):
    """What the decoder carries through time; leads with [B, W], where W is 1 in teacher forcing."""

    layers: tuple[Any, ...]  # by layer, the cell's state: h, or (c, h) for an LSTM
    attentional: jax.Array | None  # with input feeding, the attentional state of the step before


class Context(NamedTuple):
    """A sentence's share of decoding. Search never copies or reorders it."""

    attended: Attended | None  # the encoder's states, with attention
    summary: jax.Array | None  # [B, D] the encoder's last state, with context="every_step"


class EncoderLayer(nnx.Module):
    """A cell over time, or two of half the width, one in each direction, side by side."""

    def __init__(self, config: ModelConfig, init: Initializers, *, rngs):
        dim, dtype = config.model_dim, jnp.dtype(config.dtype)
        make = functools.partial(make_cell, config.kind, dim, init=init, dtype=dtype, rngs=rngs)
        self.forward = make(dim // 2 if config.bidirectional else dim)
        self.backward = make(dim // 2) if config.bidirectional else None
        # From both directions' last states to the decoder's first: for an LSTM, c and h.
        options = {"kernel_init": init.kernel, "bias_init": init.bias, "dtype": dtype}
        parts = (2 if config.kind == "lstm" else 1) if config.bidirectional else 0
        self.bridge = nnx.List([nnx.Linear(dim, dim, **options, rngs=rngs) for _ in range(parts)])

    def __call__(self, input_BSD: jax.Array, real_BS: jax.Array) -> tuple[jax.Array, Any]:
        """States [B, S, D], and the first state [B, D] of the decoder's layer.

        With one direction this is the last state. With two it is tanh(W [forward; backward] + b),
        for c of an LSTM without the tanh; Bahdanau et al. took the backward one alone.
        """
        hidden_BSD, state = scan_cell(self.forward, input_BSD, real_BS)
        if self.backward is None:
            return hidden_BSD, state
        reverse_BSD, reverse_state = scan_cell(self.backward, input_BSD, real_BS, reverse=True)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=-1), state, reverse_state)
        leaves, structure = jax.tree.flatten(both)
        bridged = [layer(x).astype(x.dtype) for layer, x in zip(self.bridge, leaves, strict=True)]
        bridged[-1] = jnp.tanh(bridged[-1])
        hidden_BSD = jnp.concatenate([hidden_BSD, reverse_BSD], axis=-1)
        return hidden_BSD, jax.tree.unflatten(structure, bridged)


class RecurrentModel(nnx.Module):
    """The RNN encoder-decoder; a row holds one sentence.

    Parameters and states are float32; products are computed in `config.dtype`, logits
    accumulated in float32. The methods are those of the protocol in `transformer_jax.model`.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        dim, dtype, init = config.model_dim, jnp.dtype(config.dtype), initializers(config.attention)
        self.attends_before = config.attention == "additive"
        self.feeds_attentional = config.input_feeding
        self.feeds_summary = config.context == "every_step"
        self.dropout_rate = config.dropout_rate
        self.embedding = TiedEmbedding(vocab_size, dim, init=init.kernel, dtype=dtype, rngs=rngs)
        layers = range(config.num_layers)
        self.encoder = nnx.List([EncoderLayer(config, init, rngs=rngs) for _ in layers])
        wide = self.attends_before or self.feeds_attentional or self.feeds_summary
        sizes = [dim * 2 if wide and not layer else dim for layer in layers]
        options = {"dtype": dtype, "rngs": rngs}
        self.decoder = nnx.List([make_cell(config.kind, x, dim, init, **options) for x in sizes])
        attention = output = None
        if config.attention != "none":
            attention = GlobalAttention(dim, config.attention, init, **options)
            # Luong's attentional layer, or Bahdanau's under the maxout over pairs.
            sizes = (3 * dim, 2 * dim) if self.attends_before else (2 * dim, dim)
            options |= {"kernel_init": init.kernel, "bias_init": init.bias}
            output = nnx.Linear(*sizes, use_bias=self.attends_before, **options)
        self.attention, self.output = attention, output

    @property
    def attention_shape(self) -> dict[str, tuple[int, int]]:
        """Layers and heads of the attention there is, by name."""
        return {} if self.attention is None else {"cross": (1, 1)}

    def unstack(self) -> None:
        """Its layers are apart already."""

    def encode(self, source: Tokens, key=None, return_attention=False):
        """Reads the source: Memory, or (Memory, {}), as the encoder has no attention."""
        real_BS = source.segments != 0
        hidden_BSD = self.embedding.look_up(source.ids)
        states = []
        for layer, layer_key in zip(self.encoder, split_or_none(key, len(self.encoder))):
            hidden_BSD = dropout(hidden_BSD, self.dropout_rate, layer_key)
            hidden_BSD, state = layer(hidden_BSD, real_BS)
            states.append(state)
        memory = Memory(hidden_BSD, source.segments, tuple(states))
        return (memory, {}) if return_attention else memory

    def _first(self, memory: Memory) -> tuple[Context, DecoderState]:
        """Context, and the state before the first step, [B, D] each."""
        attended = summary_BD = attentional_BD = None
        if self.attention is not None:
            attended = self.attention.project(memory.hidden, memory.segments != 0)
        elif self.feeds_summary:
            summary_BD = hidden_of(memory.states[-1])
        if self.feeds_attentional:
            attentional_BD = jnp.zeros_like(hidden_of(memory.states[-1]))
        return Context(attended, summary_BD), DecoderState(memory.states, attentional_BD)

    def _advance(self, state: DecoderState, embedded_BWD, context: Context, real_B1=None, key=None):
        """One step in time of W hypotheses a sentence; W is 1 in teacher forcing.

        Returns the new state, and the arguments of `_outputs`: the inputs, the top layer's states
        and, if the step attended, the context [B, W, D] with its weights [B, W, S].
        """
        keys = split_or_none(key, len(self.decoder))
        inputs, attended = [embedded_BWD], None
        if self.attends_before:
            attended = self.attention(hidden_of(state.layers[-1]), context.attended)
            inputs.append(attended[0])
        elif self.feeds_attentional:
            inputs.append(state.attentional)
        elif self.feeds_summary:
            summary_B1D = context.summary[:, None]
            inputs.append(jnp.broadcast_to(summary_B1D, embedded_BWD.shape))
        hidden_BWD, layers = jnp.concatenate(inputs, axis=-1), []
        for cell, cell_state, layer_key in zip(self.decoder, state.layers, keys):
            hidden_BWD = dropout(hidden_BWD, self.dropout_rate, layer_key)
            layers.append(advance(cell, cell_state, hidden_BWD, real_B1))
            hidden_BWD = hidden_of(layers[-1])
        attentional_BWD = None
        if self.feeds_attentional:
            attended = self.attention(hidden_BWD, context.attended)
            attentional_BWD = self._attentional(hidden_BWD, attended[0])
        return DecoderState(tuple(layers), attentional_BWD), (embedded_BWD, hidden_BWD, attended)

    def _attentional(self, hidden_BTD: jax.Array, context_BTD: jax.Array) -> jax.Array:
        """Luong's equation 5."""
        both_BTE = jnp.concatenate([context_BTD.astype(hidden_BTD.dtype), hidden_BTD], axis=-1)
        return jnp.tanh(self.output(both_BTE)).astype(hidden_BTD.dtype)

    def _outputs(self, embedded_BTD, hidden_BTD, attended, context: Context, key=None):
        """States [B, T, D] to make logits of, and weights [B, T, S] or None, of T steps."""
        weights_BTS = None
        output_BTD = hidden_BTD
        if self.attention is not None:
            context_BTD, weights_BTS = attended or self.attention(hidden_BTD, context.attended)
            if self.attends_before:
                parts = (hidden_BTD, embedded_BTD, context_BTD)
                pairs_BTE = self.output(jnp.concatenate(parts, axis=-1))
                output_BTD = pairs_BTE.reshape(*pairs_BTE.shape[:-1], -1, 2).max(axis=-1)
            else:
                output_BTD = self._attentional(hidden_BTD, context_BTD)
        return dropout(output_BTD, self.dropout_rate, key), weights_BTS

    def decode(self, memory: Memory, target: Tokens, key=None, return_attention=False):
        """Teacher forcing: logits [B, T, V], or (logits, attention)."""
        states_BTD, attention = self.states(memory, target, key)
        logits_BTV = self.embedding.logits(states_BTD)
        return (logits_BTV, attention) if return_attention else logits_BTV

    def states(self, memory: Memory, target: Tokens, key=None):
        """Teacher forcing up to the logits: states [B, T, D], and the attention there is."""
        steps_key, output_key = split_or_none(key, 2)
        context, state = self._first(memory)
        embedded_TB1D = self.embedding.look_up(target.ids).swapaxes(0, 1)[:, :, None]
        real_TB1 = (target.segments != 0).T[:, :, None]
        keys_T = None if key is None else jax.random.split(steps_key, len(embedded_TB1D))

        def step(state, now):
            embedded_B1D, real_B1, step_key = now
            return self._advance(state, embedded_B1D, context, real_B1, step_key)

        state = jax.tree.map(lambda x_BD: x_BD[:, None], state)
        _, steps = jax.lax.scan(step, state, (embedded_TB1D, real_TB1, keys_T))
        # [T, B, 1, ...] -> [B, T, ...]: the outputs of all steps at once.
        steps = jax.tree.map(lambda x: x[:, :, 0].swapaxes(0, 1), steps)
        states_BTD, weights_BTS = self._outputs(*steps, context, output_key)
        return states_BTD, {} if weights_BTS is None else {"cross": weights_BTS[None, :, None]}

    def start(self, memory: Memory, beam_width: int, max_length: int):
        """Context and cache before the first step; the cache is the first states."""
        context, state = self._first(memory)
        return context, jax.tree.map(lambda x_BD: jnp.repeat(x_BD, beam_width, axis=0), state)

    def step(
        self, context: Context, cache: DecoderState, token_BW, position_B, return_attention=False
    ):
        """Logits [B, W, V], context, cache, and cross weights [1, B, 1, W, S] if asked for.

        ValueError: attention weights of a model without attention.
        """
        if return_attention and self.attention is None:
            raise ValueError("the model has no attention")
        state = jax.tree.map(lambda x_RD: x_RD.reshape(*token_BW.shape, -1), cache)
        state, outputs = self._advance(state, self.embedding.look_up(token_BW), context)
        states_BWD, weights_BWS = self._outputs(*outputs, context)
        cache = jax.tree.map(lambda x_BWD: x_BWD.reshape(token_BW.size, -1), state)
        result = self.embedding.logits(states_BWD), context, cache
        return (*result, weights_BWS[None, :, None]) if return_attention else result
