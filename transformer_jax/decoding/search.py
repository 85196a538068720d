"""Greedy search, beam search and sampling over the model protocol and nothing else.

A search is a `State` with a row for each sentence, made by `first_state` and carried on by
`run` until enough rows are done. Rows have their own positions and depend on nothing outside
themselves, so that a new sentence can take the row of one that is done.

A search knows a model only by its `start` and `step`. What belongs to a sentence (`context`)
is never reordered here; what belongs to a hypothesis (`cache`, whose every leaf leads with
B * W) follows the hypotheses.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_LOWEST = -1e30  # below any log-probability; finite, so that differences stay numbers
NONE = _LOWEST  # score where a sentence has fewer hypotheses than were asked for
_BLOCK = 64  # about so many entries of the vocabulary have their maximum looked at first


@dataclasses.dataclass(frozen=True)
class Strategy:
    """What a search does, as far as it decides what is compiled.

    Attributes:
      beam_size: hypotheses that a sentence has at a time, W; 1 is greedy search.
      n_best: hypotheses returned, N, at most W.
      sample: draw W independent hypotheses instead of searching for the best.
      top_k: draw among the k most probable tokens; 0 = all.
      nucleus: draw among the most probable tokens that make up `Weights.top_p`.
      no_repeat_ngram: n-grams of this length occur once in a hypothesis; 0 = may repeat.
      coverage: use `Weights.coverage_penalty`.
      bos, eos, pad, unk: ids of the special symbols; -1 = there is none.
    """

    beam_size: int
    n_best: int = 1
    sample: bool = False
    top_k: int = 0
    nucleus: bool = False
    no_repeat_ngram: int = 0
    coverage: bool = False
    bos: int = 1
    eos: int = 2
    pad: int = 0
    unk: int = -1


class Weights(NamedTuple):
    """Numbers of a search that may change without compiling again.

    Attributes:
      length_penalty: alpha of `length_penalty`.
      coverage_penalty: beta of the coverage penalty (Wu et al. 2016, equation 14).
      temperature: divides the logits before a token is drawn.
      top_p: share of the probability that the tokens drawn among have at least
        (Holtzman et al. 2020).
    """

    length_penalty: Any = 0.6
    coverage_penalty: Any = 0.0
    temperature: Any = 1.0
    top_p: Any = 1.0


class Demands(NamedTuple):
    """What each sentence asks for.

    Attributes:
      limit_B: [B] most tokens of a hypothesis, the end symbol included; 0 for a row
        that holds no sentence.
      least_B: [B] fewest tokens, the end symbol included.
      prefix_BT: [B, T] tokens that every hypothesis begins with, filled with `pad`.
      seed_B: [B] uint32, of the tokens drawn.
    """

    limit_B: jax.Array
    least_B: jax.Array
    prefix_BT: jax.Array
    seed_B: jax.Array


class Hypotheses(NamedTuple):
    """The best N hypotheses of each sentence, best first.

    Attributes:
      tokens: [B, N, T] int32, ended by the end symbol and filled with `pad`.
      scores: [B, N] float32, log-probability over the length penalty, plus coverage penalty.
      log_probs: [B, N] float32, natural logarithm of the hypothesis' probability.
    """

    tokens: jax.Array
    scores: jax.Array
    log_probs: jax.Array


class State(NamedTuple):
    """A search under way; every leaf leads with B or with B * W."""

    demands: Demands
    position_B: jax.Array  # of the tokens to be read next
    context: Any  # of the sentences
    cache: Any  # of the live hypotheses
    token_BW: jax.Array  # read next, the last token of each live hypothesis
    live_BWT: jax.Array  # tokens of the live hypotheses
    log_probs_BW: jax.Array  # of the live hypotheses
    coverage_BWS: jax.Array | None  # attention that each source position has got
    ended: Hypotheses  # those that have ended: the best W first; of samples, each in its place
    done_B: jax.Array


def length_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """((5 + length) / 6)^alpha, which divides the log-probability (Wu et al. 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def first_state(
    model, memory: Any, demands: Demands, strategy: Strategy, source_BS: jax.Array
) -> State:
    """The search before its first step.

    Args:
      model: anything with the protocol's `start` and `step`.
      memory: of B sentences, from the model's `encode`.
      demands: arrays, [B] or [B, T] each; T bounds the length of all hypotheses.
      strategy: see there.
      source_BS: bool, which source positions are real.
    """
    width, (batch, max_length) = strategy.beam_size, demands.prefix_BT.shape
    context, cache = model.start(memory, width, max_length)
    tokens_BWT = jnp.full((batch, width, max_length), strategy.pad, jnp.int32)
    lowest_BW = jnp.full((batch, width), _LOWEST, jnp.float32)
    coverage_BWS = None
    if strategy.coverage:
        # What stands for padding is covered from the start.
        coverage_BWS = jnp.repeat(1 - source_BS.astype(jnp.float32)[:, None], width, axis=1)
    # All hypotheses are equal at first: in a beam only one may live, or it stays W equals.
    log_probs_BW = jnp.zeros_like(lowest_BW) if strategy.sample else lowest_BW.at[:, 0].set(0.0)
    return State(
        demands,
        jnp.zeros(batch, jnp.int32),
        context,
        cache,
        jnp.full((batch, width), strategy.bos, jnp.int32),
        tokens_BWT,
        log_probs_BW,
        coverage_BWS,
        Hypotheses(tokens_BWT, lowest_BW, lowest_BW),
        demands.limit_B <= 0,
    )


def run(model, state: State, weights: Weights, strategy: Strategy, more: jax.Array) -> State:
    """Carries the search on until so many more rows are done, or all."""
    advance = _advance_samples if strategy.sample else _advance_beam
    wanted = jnp.minimum(state.done_B.sum() + more, state.done_B.size)

    def unfinished(state: State):
        return state.done_B.sum() < wanted

    return jax.lax.while_loop(
        unfinished, lambda state: advance(model, state, weights, strategy), state
    )


def refill(state: State, fresh: State, rows_I: jax.Array, take_I: jax.Array) -> State:
    """The state with row take_I[i] of `fresh` as its row rows_I[i].

    Rows out of range are left out. What is not replaced is not copied.
    """
    batch = state.done_B.size

    def replaced(old: jax.Array, new: jax.Array) -> jax.Array:
        taken = new.reshape(batch, -1).at[take_I].get(mode="clip")
        return old.reshape(batch, -1).at[rows_I].set(taken, mode="drop").reshape(old.shape)

    return jax.tree.map(replaced, state, fresh)


def results(state: State, strategy: Strategy) -> Hypotheses:
    """The best N hypotheses of each row that is done; the score of what is none is `NONE`."""
    return _best(state.ended, strategy.n_best)


def _advance_beam(model, state: State, weights: Weights, strategy: Strategy) -> State:
    """One step of beam search with the GNMT length penalty (section 6.1).

    It looks at the 2W best continuations of a sentence's W live hypotheses. Those among the
    first W that end are kept; the best W that do not go on. A sentence is done when no live
    hypothesis can overtake its n-th best ended one, however long it grows. To stop once W
    have ended would be quicker and wrong: a model trained with label smoothing gives every
    early end some probability, and W of those fill up before the best one ends. With W = 1,
    where the one hypothesis is over when it ends, this is greedy search.
    """
    width, rows_B1 = strategy.beam_size, jnp.arange(state.done_B.size)[:, None]
    logits_BWV, context, cache, coverage_BWS = _step(model, state)
    log_probs_BC, parents_BC, tokens_BC = _continuations(
        logits_BWV, _forbidden(state, strategy, logits_BWV.shape[-1]), state.log_probs_BW
    )
    candidates_BCT = _with_token(state.live_BWT[rows_B1, parents_BC], state.position_B, tokens_BC)
    ends_BC = tokens_BC == strategy.eos
    first_1C = (jnp.arange(2 * width) < width)[None]
    scores_BC = log_probs_BC / length_penalty(
        (state.position_B + 1.0)[:, None], weights.length_penalty
    )
    if coverage_BWS is not None:
        penalty_BW = jnp.log(jnp.clip(coverage_BWS, 1e-9, 1.0)).sum(axis=-1)
        scores_BC += weights.coverage_penalty * penalty_BW[rows_B1, parents_BC]
    # What is forbidden may be among the candidates where little else is left.
    kept_BC = ends_BC & first_1C & ~state.done_B[:, None] & (log_probs_BC > _LOWEST / 2)
    new = Hypotheses(candidates_BCT, jnp.where(kept_BC, scores_BC, _LOWEST), log_probs_BC)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), state.ended, new)
    log_probs_BW, chosen_BW = jax.lax.top_k(jnp.where(ends_BC, _LOWEST, log_probs_BC), width)
    parents_BW = parents_BC[rows_B1, chosen_BW]
    if width > 1:
        flat_parents = (rows_B1 * width + parents_BW).reshape(-1)
        cache = jax.tree.map(lambda x: x[flat_parents], cache)
    state = state._replace(
        position_B=state.position_B + 1,
        context=context,
        cache=cache,
        token_BW=tokens_BC[rows_B1, chosen_BW],
        live_BWT=candidates_BCT[rows_B1, chosen_BW],
        log_probs_BW=log_probs_BW,
        coverage_BWS=None if coverage_BWS is None else coverage_BWS[rows_B1, parents_BW],
        ended=_best(both, width),
    )
    return state._replace(done_B=state.done_B | _settled(state, weights, strategy))


def _settled(state: State, weights: Weights, strategy: Strategy) -> jax.Array:
    """[B] whether a sentence's n best ended hypotheses can no longer change."""
    limit_B = state.demands.limit_B
    # Log-probabilities only fall, the length penalty forgives most at the limit, and the
    # coverage penalty forgives nothing.
    bound_B = state.log_probs_BW.max(axis=1) / length_penalty(
        limit_B.astype(jnp.float32), weights.length_penalty
    )
    settled_B = state.ended.scores[:, strategy.n_best - 1] >= bound_B
    if strategy.beam_size == 1:
        settled_B |= state.ended.scores[:, 0] > _LOWEST
    return settled_B | (limit_B <= state.position_B)


def _advance_samples(model, state: State, weights: Weights, strategy: Strategy) -> State:
    """One step of W independent hypotheses, each drawn from the model's distribution.

    The tokens drawn depend on the sentence's seed, the hypothesis and the position alone.
    """
    logits_BWV, context, cache, _ = _step(model, state)
    forbidden_BWV = _forbidden(state, strategy, logits_BWV.shape[-1])
    tempered_BWV = jnp.where(forbidden_BWV, _LOWEST, logits_BWV / weights.temperature)
    tempered_BWV = _truncated(tempered_BWV, weights, strategy)
    # The maximum after Gumbel noise is a draw from the softmax.
    noise_BWV = jax.vmap(_gumbel, (0, 0, None))(
        state.demands.seed_B, state.position_B, tempered_BWV.shape[1:]
    )
    _, tokens_BW1 = _top(jnp.where(tempered_BWV > _LOWEST, tempered_BWV + noise_BWV, _LOWEST), 1)
    running_BW = state.ended.scores == _LOWEST
    tokens_BW = jnp.where(running_BW, tokens_BW1[..., 0], strategy.pad)
    chosen_BW = jnp.take_along_axis(logits_BWV, tokens_BW1, axis=-1)[..., 0]
    gains_BW = chosen_BW - jax.nn.logsumexp(logits_BWV, axis=-1)
    log_probs_BW = jnp.where(running_BW, state.log_probs_BW + gains_BW, state.log_probs_BW)
    live_BWT = _with_token(state.live_BWT, state.position_B, tokens_BW)
    penalty_B1 = length_penalty((state.position_B + 1.0)[:, None], weights.length_penalty)
    ends_BW = running_BW & (tokens_BW == strategy.eos)
    scores_BW = jnp.where(ends_BW, log_probs_BW / penalty_B1, state.ended.scores)
    position_B = state.position_B + 1
    return state._replace(
        position_B=position_B,
        context=context,
        cache=cache,
        token_BW=tokens_BW,
        live_BWT=live_BWT,
        log_probs_BW=log_probs_BW,
        ended=Hypotheses(live_BWT, scores_BW, log_probs_BW),
        done_B=(
            state.done_B | (scores_BW > _LOWEST).all(axis=1) | (state.demands.limit_B <= position_B)
        ),
    )


def _gumbel(seed: jax.Array, position: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    key = jax.random.fold_in(jax.random.key(seed), position)
    return jax.random.gumbel(key, shape, jnp.float32)


def _step(model, state: State):
    """The model's step: logits [B, W, V], context, cache, and the new coverage if it is kept."""
    arguments = state.context, state.cache, state.token_BW, state.position_B
    if state.coverage_BWS is None:
        return *model.step(*arguments), None
    logits_BWV, context, cache, weights_LBHWS = model.step(*arguments, return_attention=True)
    return logits_BWV, context, cache, state.coverage_BWS + weights_LBHWS.mean(axis=(0, 2))


def _forbidden(state: State, strategy: Strategy, vocab_size: int) -> jax.Array:
    """[B, W, V] which tokens may not come next.

    Never padding, a second start or the unknown symbol, which says nothing; no end before the
    shortest length; at a sentence's last place only the end; no n-gram again; and where a
    prefix is given, nothing but that.
    """
    word_11V = jnp.arange(vocab_size)[None, None]
    demands, position_B = state.demands, state.position_B
    last_B11, early_B11 = (
        x_B[:, None, None]
        for x_B in (position_B >= demands.limit_B - 1, position_B < demands.least_B - 1)
    )
    ends_11V = word_11V == strategy.eos
    never = (strategy.pad, strategy.bos, strategy.unk)
    forbidden_BWV = jnp.isin(word_11V, jnp.array(never))
    forbidden_BWV = forbidden_BWV | (early_B11 & ends_11V) | (last_B11 & ~ends_11V)
    if strategy.no_repeat_ngram:
        forbidden_BWV |= ~ends_11V & _repeats(state, strategy, vocab_size)
        # Where nothing else is left, it ends, however short it is.
        forbidden_BWV &= ~(ends_11V & forbidden_BWV.all(axis=-1, keepdims=True))
    forced_B = jnp.take_along_axis(demands.prefix_BT, position_B[:, None], axis=1, mode="clip")
    forced_B11 = forced_B[:, :, None]
    return jnp.where(forced_B11 != strategy.pad, word_11V != forced_B11, forbidden_BWV)


def _repeats(state: State, strategy: Strategy, vocab_size: int) -> jax.Array:
    """[B, W, V] which tokens would end an n-gram that the hypothesis has already."""
    length, live_BWT = strategy.no_repeat_ngram - 1, state.live_BWT
    max_length = live_BWT.shape[-1]
    places_T = jnp.arange(max_length)
    # Token t ends an n-gram like the one to come if the n - 1 before it are the last n - 1.
    same_BT = (places_T >= length)[None] & (places_T[None] < state.position_B[:, None])
    same_BWT = jnp.broadcast_to(same_BT[:, None], live_BWT.shape)
    for back in range(1, length + 1):
        last_B11 = jnp.maximum(state.position_B - back, 0)[:, None, None]
        last_BW1 = jnp.take_along_axis(live_BWT, last_B11, axis=-1)
        same_BWT &= jnp.roll(live_BWT, back, axis=-1) == last_BW1
    rows_B11 = jnp.arange(live_BWT.shape[0])[:, None, None]
    beams_1W1 = jnp.arange(live_BWT.shape[1])[None, :, None]
    repeats_BWV = jnp.zeros((*live_BWT.shape[:2], vocab_size), bool)
    return repeats_BWV.at[rows_B11, beams_1W1, live_BWT].max(same_BWT)


def _truncated(logits_BWV: jax.Array, weights: Weights, strategy: Strategy) -> jax.Array:
    """Logits with all but the top k and the nucleus at the lowest value."""
    if not strategy.top_k and not strategy.nucleus:
        return logits_BWV
    vocab_size = logits_BWV.shape[-1]
    best_BWC, _ = _top(logits_BWV, min(strategy.top_k or vocab_size, vocab_size))
    least_BW1 = best_BWC[..., -1:]
    if strategy.nucleus:
        probability_BWC = jax.nn.softmax(best_BWC, axis=-1)
        # What comes before the token, so that the most probable is always in.
        before_BWC = jnp.cumsum(probability_BWC, axis=-1) - probability_BWC
        inside_BWC = (before_BWC < weights.top_p).at[..., 0].set(True)
        least_BW1 = jnp.where(inside_BWC, best_BWC, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_BWV >= least_BW1, logits_BWV, _LOWEST)


def _with_token(tokens_BWT: jax.Array, position_B: jax.Array, token_BW: jax.Array) -> jax.Array:
    here_B1T = (jnp.arange(tokens_BWT.shape[-1])[None] == position_B[:, None])[:, None]
    return jnp.where(here_B1T, token_BW[..., None], tokens_BWT)


def _continuations(logits_BWV: jax.Array, forbidden_BWV: jax.Array, log_probs_BW: jax.Array):
    """The 2W best (hypothesis, token) of each sentence: log-probs, hypotheses, tokens [B, C].

    Two rounds, over the vocabulary and then over the beam, so that what the second sorts is
    small. The probabilities are the model's, whatever is forbidden.
    """
    batch, width, vocab_size = logits_BWV.shape
    count, count_each = 2 * width, min(2 * width, vocab_size)
    total_BW1 = jax.nn.logsumexp(logits_BWV, axis=-1, keepdims=True)
    best_BWC, tokens_BWC = _top(jnp.where(forbidden_BWV, _LOWEST, logits_BWV), count_each)
    flat = (best_BWC - total_BW1 + log_probs_BW[:, :, None]).reshape(batch, -1)
    # A tiny vocabulary has fewer continuations than asked for: the rest are impossible.
    missing = max(count - flat.shape[1], 0)
    flat = jnp.pad(flat, ((0, 0), (0, missing)), constant_values=_LOWEST)
    tokens = jnp.pad(tokens_BWC.reshape(batch, -1), ((0, 0), (0, missing)))
    log_probs_BC, index_BC = jax.lax.top_k(flat, count)
    parents_BC = jnp.minimum(index_BC // count_each, width - 1)
    tokens_BC = jnp.take_along_axis(tokens, index_BC, axis=1)
    return jnp.maximum(log_probs_BC, _LOWEST), parents_BC, tokens_BC


def _top(x_BWV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` largest of the last axis, as `jax.lax.top_k`, several times faster.

    The largest are in those blocks whose maxima are largest: only these are sorted.
    """
    vocab_size = x_BWV.shape[-1]
    if vocab_size <= _BLOCK * count:
        return jax.lax.top_k(x_BWV, count)
    # A length that divides the vocabulary, where there is one, saves a padded copy.
    divisors = [n for n in range(_BLOCK // 2, 2 * _BLOCK) if vocab_size % n == 0]
    block = min(divisors or [_BLOCK], key=lambda n: abs(n - _BLOCK))
    padding = ((0, 0), (0, 0), (0, -vocab_size % block))
    padded = jnp.pad(x_BWV, padding, constant_values=_LOWEST) if not divisors else x_BWV
    blocks = padded.reshape(*x_BWV.shape[:-1], -1, block)
    _, block_BWC = jax.lax.top_k(blocks.max(axis=-1), count)
    # In the order of the vocabulary, so that of equals the first is taken.
    block_BWC = jnp.sort(block_BWC, axis=-1)
    within = jnp.take_along_axis(blocks, block_BWC[..., None], axis=-2)
    best_BWC, index_BWC = jax.lax.top_k(within.reshape(*x_BWV.shape[:-1], -1), count)
    chosen_BWC = jnp.take_along_axis(block_BWC, index_BWC // block, axis=-1)
    return best_BWC, chosen_BWC * block + index_BWC % block


def _best(hypotheses: Hypotheses, count: int) -> Hypotheses:
    """The best by score; of equals, the earlier."""
    _, index_BN = jax.lax.top_k(hypotheses.scores, count)
    rows_B1 = jnp.arange(index_BN.shape[0])[:, None]
    return jax.tree.map(lambda x: x[rows_B1, index_BN], hypotheses)
