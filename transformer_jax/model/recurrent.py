"""RNN encoder-decoders, without attention and with Luong's or Bahdanau's, behind the protocol.

What each `config.attention` follows, and where it differs from its paper:

"none": Cho et al. 2014 ("Learning Phrase Representations using RNN Encoder-Decoder", section
  2.2) and Sutskever et al. 2014 ("Sequence to Sequence Learning with Neural Networks", section
  2). The encoder's last states are all that the decoder gets: as its first states
  (`context="first_state"`, Sutskever), or the last state of the top layer also as an input at
  every step (`"every_step"`, Cho; who feed it to the output too, and through a tanh layer).
  Initialised uniformly in [-0.08, 0.08] (Sutskever, section 3.4). Sources are read in their
  own order; Sutskever et al. reversed them.
"dot", "general", "concat": Luong et al. 2015, sections 3 and 3.1: attention after the cells
  (equation 5, tanh(W [context; state])), with `input_feeding` also an input of the next step
  (section 3.3). Uniform in [-0.1, 0.1] (section 4.1). The order as above.
"additive": Bahdanau et al. 2015, section 3.1 and appendix A: the state before the step asks,
  what it sees is an input of the step, and a maxout layer over state, input and context
  gives the output (A.2.2, which lets the state before the step speak there; here it is the
  new one, as in equation 4). Recurrent matrices orthogonal, those of the scores normal with
  0.001, all others with 0.01, the score's vector and biases zero (B.1).

In all of them: source, target and output share one table, as the Transformer's do (Press and
Wolf 2017), where the papers had two vocabularies and three tables; embeddings, states and
outputs have one width D; the output has no bias; dropout is on the inputs of cells and of the
output, never on their states (Zaremba et al. 2014, as Luong et al.; Cho, Sutskever and Bahdanau
had none). Cells are Flax's: its GRU resets after the product with the recurrent matrix, Cho's
before it. Clipping is `config.optimizer.clip_norm`: 5 in Sutskever and Luong, 1 in Bahdanau; all
trained with SGD or Adadelta rather than Adam.
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
from transformer_jax.model.dropout import dropout, split_or_none
from transformer_jax.model.embedding import TiedEmbedding
from transformer_jax.model.global_attention import Attended, GlobalAttention
from transformer_jax.model.masks import Tokens


class Memory(NamedTuple):
    """What the encoder leaves for the decoder.

    Attributes:
      hidden: [B, S, D] states of its top layer.
      segments: [B, S] of the source; 0 is padding.
      states: first states of the decoder, by layer: [B, D], or two of them for an LSTM.
    """

    hidden: jax.Array
    segments: jax.Array
    states: tuple[Any, ...]


class DecoderState(NamedTuple):
    """What a decoder carries through time; in search it leads with B * W, else with [B, 1].

    Attributes:
      layers: by layer, the cell's state: h, or (c, h) for an LSTM.
      attentional: the attentional state of the step before, where it is fed to the next.
    """

    layers: tuple[Any, ...]
    attentional: jax.Array | None


class Context(NamedTuple):
    """A sentence's share of decoding: its states if they are attended to, or their summary."""

    attended: Attended | None
    summary: jax.Array | None  # [B, D], where it is fed to every step


class EncoderLayer(nnx.Module):
    """A cell over time, or two of half the width, one in each direction, side by side."""

    def __init__(self, config: ModelConfig, init: Initializers, *, rngs):
        dim, dtype = config.model_dim, jnp.dtype(config.dtype)
        make = functools.partial(make_cell, config.kind, dim, init=init, dtype=dtype, rngs=rngs)
        self.forward = make(dim // 2 if config.bidirectional else dim)
        self.backward = make(dim // 2) if config.bidirectional else None
        # The decoder's first state from both directions' last ones: of an LSTM, c and h.
        options = {"kernel_init": init.kernel, "bias_init": init.bias, "dtype": dtype}
        parts = (2 if config.kind == "lstm" else 1) if config.bidirectional else 0
        self.bridge = nnx.List([nnx.Linear(dim, dim, **options, rngs=rngs) for _ in range(parts)])

    def __call__(self, input_BSD: jax.Array, real_BS: jax.Array) -> tuple[jax.Array, Any]:
        """States [B, S, D], and the state [B, D] that the decoder's layer begins with.

        Of one direction this is its last state. Of two it is tanh(W [forward; backward] + b),
        for c of an LSTM without the tanh; Bahdanau et al. took the backward one alone.
        """
        hidden_BSD, state = scan_cell(self.forward, input_BSD, real_BS)
        if self.backward is None:
            return hidden_BSD, state
        other_BSD, other = scan_cell(self.backward, input_BSD, real_BS, reverse=True)
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=-1), state, other)
        leaves, structure = jax.tree.flatten(both)
        bridged = [layer(x).astype(x.dtype) for layer, x in zip(self.bridge, leaves, strict=True)]
        bridged[-1] = jnp.tanh(bridged[-1])
        hidden_BSD = jnp.concatenate([hidden_BSD, other_BSD], axis=-1)
        return hidden_BSD, jax.tree.unflatten(structure, bridged)


class RecurrentModel(nnx.Module):
    """The RNN encoder-decoder; see the module for what it follows.

    Parameters and states are float32; products are computed in `config.dtype`, logits summed in
    float32. A row holds one sentence.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs):
        dim, dtype, init = config.model_dim, jnp.dtype(config.dtype), initializers(config.attention)
        self.embedding = TiedEmbedding(vocab_size, dim, init=init.kernel, dtype=dtype, rngs=rngs)
        layers = range(config.num_layers)
        self.encoder = nnx.List([EncoderLayer(config, init, rngs=rngs) for _ in layers])
        self.attends_before = config.attention == "additive"
        self.feeds_attentional = config.input_feeding
        self.feeds_summary = config.context == "every_step"
        wide = self.attends_before or self.feeds_attentional or self.feeds_summary
        self.decoder = nnx.List(
            [
                make_cell(
                    config.kind,
                    dim * 2 if wide and not layer else dim,
                    dim,
                    init,
                    dtype=dtype,
                    rngs=rngs,
                )
                for layer in layers
            ]
        )
        attends = config.attention != "none"
        self.attention = (
            GlobalAttention(dim, config.attention, init, dtype=dtype, rngs=rngs)
            if attends
            else None
        )
        # Luong's attentional layer; of Bahdanau the layer under the maxout, of pairs.
        sizes = (3 * dim, 2 * dim) if self.attends_before else (2 * dim, dim)
        options = {"kernel_init": init.kernel, "bias_init": init.bias, "dtype": dtype}
        self.output = (
            nnx.Linear(*sizes, use_bias=self.attends_before, **options, rngs=rngs)
            if attends
            else None
        )
        self.dropout_rate = config.dropout_rate

    @property
    def attention_shape(self) -> dict[str, tuple[int, int]]:
        """Layers and heads of the attention that there is, by name."""
        return {} if self.attention is None else {"cross": (1, 1)}

    def encode(self, source: Tokens, key=None, return_attention=False):
        """Reads the source.

        Args:
          source: Tokens, [B, S] each, one sentence a row.
          key: random key of dropout; None turns dropout off.
          return_attention: also return the encoder's attention, of which there is none: {}.

        Returns:
          Memory, or (Memory, {}).
        """
        real_BS = source.segments != 0
        hidden_BSD = self.embedding.look_up(source.ids)
        states = []
        for layer, layer_key in zip(self.encoder, split_or_none(key, len(self.encoder))):
            hidden_BSD = dropout(hidden_BSD, self.dropout_rate, layer_key)
            hidden_BSD, state = layer(hidden_BSD, real_BS)
            states.append(state)
        memory = Memory(hidden_BSD, source.segments, tuple(states))
        return (memory, {}) if return_attention else memory

    def _context(self, memory: Memory) -> Context:
        attended = summary_BD = None
        if self.attention is not None:
            attended = self.attention.project(memory.hidden, memory.segments != 0)
        elif self.feeds_summary:
            summary_BD = hidden_of(memory.states[-1])
        return Context(attended, summary_BD)

    def _first_state(self, memory: Memory) -> DecoderState:
        attentional_BD = jnp.zeros_like(hidden_of(memory.states[-1]))
        return DecoderState(memory.states, attentional_BD if self.feeds_attentional else None)

    def _advance(self, state: DecoderState, embedded_BQD, context: Context, real_B1=None, key=None):
        """One step in time of Q hypotheses a sentence; Q is 1 in teacher forcing.

        Returns:
          The new state, [B, Q, D] each; and what `_outputs` makes the outputs of: the inputs,
          the top layer's states and, where it was looked at for this step, the context [B, Q, D]
          with its weights [B, Q, S].
        """
        keys = split_or_none(key, len(self.decoder))
        inputs, seen = [embedded_BQD], None
        if self.attends_before:
            seen = self.attention(hidden_of(state.layers[-1]), context.attended)
            inputs.append(seen[0])
        elif self.feeds_attentional:
            inputs.append(state.attentional)
        elif self.feeds_summary:
            summary_B1D = context.summary[:, None]
            inputs.append(jnp.broadcast_to(summary_B1D, embedded_BQD.shape))
        hidden_BQD, layers = jnp.concatenate(inputs, axis=-1), []
        for cell, its, layer_key in zip(self.decoder, state.layers, keys):
            hidden_BQD = dropout(hidden_BQD, self.dropout_rate, layer_key)
            layers.append(advance(cell, its, hidden_BQD, real_B1))
            hidden_BQD = hidden_of(layers[-1])
        attentional_BQD = None
        if self.feeds_attentional:
            seen = self.attention(hidden_BQD, context.attended)
            attentional_BQD = self._attentional(hidden_BQD, seen[0])
        return DecoderState(tuple(layers), attentional_BQD), (embedded_BQD, hidden_BQD, seen)

    def _attentional(self, hidden_BTD: jax.Array, context_BTD: jax.Array) -> jax.Array:
        """Luong's equation 5."""
        both_BTF = jnp.concatenate([context_BTD.astype(hidden_BTD.dtype), hidden_BTD], axis=-1)
        return jnp.tanh(self.output(both_BTF)).astype(hidden_BTD.dtype)

    def _outputs(self, embedded_BTD, hidden_BTD, seen, context: Context, key=None):
        """Logits [B, T, V] and weights [B, T, S], or None, of steps."""
        weights_BTS = None
        output_BTD = hidden_BTD
        if self.attention is not None:
            context_BTD, weights_BTS = seen or self.attention(hidden_BTD, context.attended)
            if self.attends_before:
                parts = (hidden_BTD, embedded_BTD, context_BTD)
                pairs_BTF = self.output(jnp.concatenate(parts, axis=-1))
                output_BTD = pairs_BTF.reshape(*pairs_BTF.shape[:-1], -1, 2).max(axis=-1)
            else:
                output_BTD = self._attentional(hidden_BTD, context_BTD)
        output_BTD = dropout(output_BTD, self.dropout_rate, key)
        return self.embedding.logits(output_BTD), weights_BTS

    def decode(self, memory: Memory, target: Tokens, key=None, return_attention=False):
        """Teacher forcing: logits of the next token at every position of the target.

        Args:
          memory: what `encode` returned, for the same B.
          target: Tokens, [B, T] each, beginning with the start symbol.
          key: random key of dropout; None turns dropout off.
          return_attention: also return {"cross": [1, B, 1, T, S]}, or {} without attention.

        Returns:
          Logits [B, T, V], float32, or (logits, attention).
        """
        step_key, output_key = split_or_none(key, 2)
        context = self._context(memory)
        embedded_TB1D = self.embedding.look_up(target.ids).swapaxes(0, 1)[:, :, None]
        real_TB1 = (target.segments != 0).T[:, :, None]
        keys_T = None if key is None else jax.random.split(step_key, len(embedded_TB1D))

        def step(state, now):
            embedded_B1D, real_B1, its_key = now
            return self._advance(state, embedded_B1D, context, real_B1, its_key)

        first = jax.tree.map(lambda x_BD: x_BD[:, None], self._first_state(memory))
        _, steps = jax.lax.scan(step, first, (embedded_TB1D, real_TB1, keys_T))
        # [T, B, 1, ...] -> [B, T, ...]: the outputs of all steps at once.
        steps = jax.tree.map(lambda x: x[:, :, 0].swapaxes(0, 1), steps)
        logits_BTV, weights_BTS = self._outputs(*steps, context, output_key)
        if not return_attention:
            return logits_BTV
        return logits_BTV, {} if weights_BTS is None else {"cross": weights_BTS[None, :, None]}

    def start(self, memory: Memory, beam_width: int, max_length: int):
        """What decoding needs before its first step.

        Args:
          memory: what `encode` returned, B sentences.
          beam_width: hypotheses a sentence, W.
          max_length: most positions of a hypothesis, which a state does not depend on.

        Returns:
          context, a row a sentence, and cache, a pytree whose every leaf leads with B * W, the
          hypotheses of a sentence side by side, and may be reordered with them.
        """
        cache = jax.tree.map(
            lambda x_BD: jnp.repeat(x_BD, beam_width, axis=0), self._first_state(memory)
        )
        return self._context(memory), cache

    def step(
        self, context: Context, cache: DecoderState, token_BW, position_B, return_attention=False
    ):
        """Reads one token a hypothesis: logits [B, W, V] of the next one, context and new cache.

        Args:
          context, cache: from `start` or an earlier step.
          token_BW: [B, W] the tokens; the start symbol first.
          position_B: [B] their position, which the states know by themselves.
          return_attention: also return the cross weights [1, B, 1, W, S]; ValueError where
            there are none.
        """
        if return_attention and self.attention is None:
            raise ValueError("the model has no attention")
        state = jax.tree.map(lambda x_RD: x_RD.reshape(*token_BW.shape, -1), cache)
        state, outputs = self._advance(state, self.embedding.look_up(token_BW), context)
        logits_BWV, weights_BWS = self._outputs(*outputs, context)
        cache = jax.tree.map(lambda x_BWD: x_BWD.reshape(token_BW.size, -1), state)
        result = logits_BWV, context, cache
        return (*result, weights_BWS[None, :, None]) if return_attention else result
