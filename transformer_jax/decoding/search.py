"""Greedy and beam search as one jitted loop each, over the model protocol and nothing else.

A search knows a model only by its `start` and `step`. The context that `start` returns
holds one row a sentence and is never reordered; every leaf of the cache leads with
hypotheses (B * W) and follows them when they are.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_LOWEST = -1e30  # below any log-probability; finite, so that differences stay numbers


class Hypotheses(NamedTuple):
    """The best N hypotheses of each sentence, best first.

    Attributes:
      tokens: [B, N, T] int32, ended by the end symbol and filled with `pad`.
      scores: [B, N] float32, log-probability over the length penalty.
      log_probs: [B, N] float32, natural logarithm of the hypothesis' probability.
    """

    tokens: jax.Array
    scores: jax.Array
    log_probs: jax.Array


def length_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """((5 + length) / 6)^alpha, which divides the log-probability (Wu et al. 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def _allowed(log_probs_BWV, position, limit_B, bos, eos, pad):
    """Never padding or a second start; at a sentence's last place, only the end symbol."""
    word_11V = jnp.arange(log_probs_BWV.shape[-1])[None, None]
    last_B11 = (position >= limit_B - 1)[:, None, None]
    never_BWV = (word_11V == pad) | (word_11V == bos) | (last_B11 & (word_11V != eos))
    return jnp.where(never_BWV, _LOWEST, log_probs_BWV)


class _GreedyState(NamedTuple):
    position: jax.Array  # of the token to be read next
    cache: Any
    token_B: jax.Array  # read next
    tokens_BT: jax.Array  # chosen so far
    log_prob_B: jax.Array
    done_B: jax.Array  # sentences that have ended


def greedy_search(
    model,
    memory,
    limit_B: jax.Array,
    *,
    max_length: int,
    alpha: float,
    bos: int,
    eos: int,
    pad: int,
) -> Hypotheses:
    """The most probable token at every step.

    Args:
      model: anything with the protocol's `start` and `step`.
      memory: of B sentences, from the model's `encode`.
      limit_B: [B] most tokens of each sentence's hypothesis, the end symbol included; 0 for
        a row that holds no sentence.
      max_length: static upper bound of `limit_B`, T.
      alpha: length penalty, which greedy search only reports in the score.
      bos, eos, pad: ids of the special symbols.
    """
    batch = limit_B.shape[0]
    context, cache = model.start(memory, 1, max_length)

    def unfinished(state: _GreedyState):
        return (state.position < max_length) & ~state.done_B.all()

    def advance(state: _GreedyState):
        position_B = jnp.full((batch,), state.position, jnp.int32)
        logits_BWV, cache = model.step(context, state.cache, state.token_B[:, None], position_B)
        log_probs_BWV = jax.nn.log_softmax(logits_BWV)
        log_probs_BV = _allowed(log_probs_BWV, state.position, limit_B, bos, eos, pad)[:, 0]
        token_B = jnp.where(state.done_B, pad, log_probs_BV.argmax(axis=-1)).astype(jnp.int32)
        gain_B = jnp.where(state.done_B, 0.0, log_probs_BV.max(axis=-1))
        return _GreedyState(
            state.position + 1,
            cache,
            token_B,
            state.tokens_BT.at[:, state.position].set(token_B),
            state.log_prob_B + gain_B,
            state.done_B | (token_B == eos),
        )

    start = _GreedyState(
        jnp.int32(0),
        cache,
        jnp.full((batch,), bos, jnp.int32),
        jnp.full((batch, max_length), pad, jnp.int32),
        jnp.zeros(batch),
        limit_B <= 0,
    )
    end = jax.lax.while_loop(unfinished, advance, start)
    length_B = (end.tokens_BT != pad).sum(axis=-1)
    scores_B = end.log_prob_B / length_penalty(length_B, alpha)
    return Hypotheses(end.tokens_BT[:, None], scores_B[:, None], end.log_prob_B[:, None])


class _BeamState(NamedTuple):
    position: jax.Array  # of the tokens to be read next
    cache: Any  # of the live hypotheses
    token_BW: jax.Array  # read next, the last token of each live hypothesis
    live_BWT: jax.Array  # tokens of hypotheses that have not ended
    live_log_probs_BW: jax.Array
    ended: Hypotheses  # the best W that have ended, best first


def beam_search(
    model,
    memory,
    limit_B: jax.Array,
    *,
    beam_size: int,
    n_best: int,
    max_length: int,
    alpha: float,
    bos: int,
    eos: int,
    pad: int,
) -> Hypotheses:
    """Beam search with the GNMT length penalty (section 6.1).

    Each step looks at the 2W best continuations of a sentence's W live hypotheses. Those
    among the first W that end are kept; the best W that do not go on. A sentence is done
    when no live hypothesis can overtake its n-th best ended one, however long it grows;
    from then on nothing changes for it, whatever its companions still need. To stop once
    W have ended would be quicker and wrong: a model trained with label smoothing gives
    every early end some probability, and W of those fill up before the best one ends.
    With W = 1, where the one hypothesis is over when it ends, this is greedy search.

    Args as `greedy_search`, and:
      beam_size: live hypotheses a sentence, W.
      n_best: hypotheses returned, N, at most W.
    """
    batch = limit_B.shape[0]
    context, cache = model.start(memory, beam_size, max_length)
    rows_B1 = jnp.arange(batch)[:, None]
    first_1C = (jnp.arange(2 * beam_size) < beam_size)[None]

    def done_B(state: _BeamState):
        best_live_B = state.live_log_probs_BW.max(axis=1)
        # Log-probabilities only fall, and the penalty forgives most at the limit.
        bound_B = best_live_B / length_penalty(limit_B.astype(jnp.float32), alpha)
        settled_B = state.ended.scores[:, n_best - 1] >= bound_B
        over_B = (state.ended.scores[:, -1] > _LOWEST) & (beam_size == 1)
        return settled_B | over_B | (limit_B <= state.position)

    def unfinished(state: _BeamState):
        return (state.position < max_length) & ~done_B(state).all()

    def advance(state: _BeamState):
        position_B = jnp.full((batch,), state.position, jnp.int32)
        logits_BWV, cache = model.step(context, state.cache, state.token_BW, position_B)
        log_probs_BWV = _allowed(
            jax.nn.log_softmax(logits_BWV), state.position, limit_B, bos, eos, pad
        )
        log_probs_BC, parents_BC, tokens_BC = _continuations(
            log_probs_BWV + state.live_log_probs_BW[:, :, None], 2 * beam_size
        )
        candidates_BCT = state.live_BWT[rows_B1, parents_BC].at[:, :, state.position].set(tokens_BC)
        ends_BC = tokens_BC == eos
        kept_BC = ends_BC & first_1C & ~done_B(state)[:, None]

        scores_BC = log_probs_BC / length_penalty(state.position + 1.0, alpha)
        ended = _best(
            state.ended,
            Hypotheses(candidates_BCT, jnp.where(kept_BC, scores_BC, _LOWEST), log_probs_BC),
        )
        live_log_probs_BW, chosen_BW = jax.lax.top_k(
            jnp.where(ends_BC, _LOWEST, log_probs_BC), beam_size
        )
        parents_BW = parents_BC[rows_B1, chosen_BW]
        flat_parents = (rows_B1 * beam_size + parents_BW).reshape(-1)
        return _BeamState(
            state.position + 1,
            jax.tree.map(lambda x: x[flat_parents], cache),
            tokens_BC[rows_B1, chosen_BW],
            candidates_BCT[rows_B1, chosen_BW],
            live_log_probs_BW,
            ended,
        )

    start = _first_beam(cache, (batch, beam_size, max_length), bos, pad)
    end = jax.lax.while_loop(unfinished, advance, start)
    return jax.tree.map(lambda x: x[:, :n_best], end.ended)


def _first_beam(cache: Any, shape: tuple[int, int, int], bos: int, pad: int) -> _BeamState:
    """The state before the first step, of `shape` [B, W, T]."""
    tokens_BWT = jnp.full(shape, pad, jnp.int32)
    lowest_BW = jnp.full(shape[:2], _LOWEST)
    return _BeamState(
        jnp.int32(0),
        cache,
        jnp.full(shape[:2], bos, jnp.int32),
        tokens_BWT,
        # All hypotheses are equal at first: only one may live, or the beam stays W equals.
        lowest_BW.at[:, 0].set(0.0),
        Hypotheses(tokens_BWT, lowest_BW, lowest_BW),
    )


def _continuations(log_probs_BWV: jax.Array, count: int):
    """The `count` best (hypothesis, token) of each sentence: log-probs, hypotheses, tokens [B, C].

    Two rounds of `top_k`, over the vocabulary and then over the beam, read the large array
    once.
    """
    count_each = min(count, log_probs_BWV.shape[-1])
    best_BWC, tokens_BWC = jax.lax.top_k(log_probs_BWV, count_each)
    batch = best_BWC.shape[0]
    flat = best_BWC.reshape(batch, -1)
    # A tiny vocabulary has fewer continuations than asked for: the rest are impossible.
    missing = max(count - flat.shape[1], 0)
    flat = jnp.pad(flat, ((0, 0), (0, missing)), constant_values=_LOWEST)
    tokens = jnp.pad(tokens_BWC.reshape(batch, -1), ((0, 0), (0, missing)))
    log_probs_BC, index_BC = jax.lax.top_k(flat, count)
    parents_BC = jnp.minimum(index_BC // count_each, log_probs_BWV.shape[1] - 1)
    return log_probs_BC, parents_BC, jnp.take_along_axis(tokens, index_BC, axis=1)


def _best(old: Hypotheses, new: Hypotheses) -> Hypotheses:
    """As many of both as `old` has, by score; of equals, the earlier."""
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), old, new)
    _, index_BN = jax.lax.top_k(both.scores, old.scores.shape[1])
    rows_B1 = jnp.arange(index_BN.shape[0])[:, None]
    return jax.tree.map(lambda x: x[rows_B1, index_BN], both)
