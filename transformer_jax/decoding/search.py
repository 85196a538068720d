"""Greedy search, beam search and sampling over the model protocol.

A `State` has a row for each sentence. Rows have their own positions and are independent of each
other, so that a new sentence can take the row of a finished one.

A search knows a model only by its `start` and `step`. The `context` of a sentence is never
reordered; the `cache`, whose every leaf leads with B * W, follows the hypotheses.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transformer_jax.decoding.options import SearchOptions

NEG_INF = -1e30  # below any log-probability; finite, so that differences stay numbers
_BLOCK = 64  # vocabulary entries, about, whose maximum is compared before they are sorted

# A jitted function takes the options as an argument: the traced fields are its leaves, the static
# ones part of the jit cache key.
_BY_KIND = {
    kind: [f.name for f in dataclasses.fields(SearchOptions) if f.metadata["static"] is static]
    for kind, static in (("data_fields", False), ("meta_fields", True), ("drop_fields", None))
}
jax.tree_util.register_dataclass(SearchOptions, **_BY_KIND)


class SpecialIds(NamedTuple):
    """Ids of the special tokens; -1 where there is none."""

    bos: int
    eos: int
    pad: int
    unk: int = -1


class Search(NamedTuple):
    """A model, anything with the protocol's `start` and `step`, and how to search with it."""

    model: Any
    options: SearchOptions  # resolved
    ids: SpecialIds


class Constraints(NamedTuple):
    """Per-sentence decoding constraints; lengths count EOS."""

    max_length_B: jax.Array  # int32; 0 for a row without a sentence
    min_length_B: jax.Array  # int32
    prefix_BT: jax.Array  # int32, tokens that every hypothesis begins with, padded
    seed_B: jax.Array  # uint32, of sampling


class Hypotheses(NamedTuple):
    """The N best hypotheses of each sentence, best first."""

    tokens: jax.Array  # [B, N, T] int32, closed by EOS and padded
    scores: jax.Array  # [B, N] float32, with both penalties; `NEG_INF`: there is no hypothesis
    log_probs: jax.Array  # [B, N] float32


class State(NamedTuple):
    """A search in progress; every leaf leads with B or with B * W."""

    constraints: Constraints
    position_B: jax.Array  # of the tokens read next
    context: Any  # of the sentences
    cache: Any  # of the live hypotheses
    token_BW: jax.Array  # last tokens of the live hypotheses, read next
    live_BWT: jax.Array  # tokens of the live hypotheses
    log_probs_BW: jax.Array  # of the live hypotheses
    coverage_BWS: jax.Array | None  # total attention to each source position
    finished: Hypotheses  # a beam's best W, best first; samples, each in its own position
    done_B: jax.Array


def length_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """((5 + length) / 6)^alpha, which divides the log-probability (Wu et al. 2016, equation 14)."""
    return ((5.0 + length) / 6.0) ** alpha


def first_state(
    search: Search, memory: Any, constraints: Constraints, source_BS: jax.Array
) -> State:
    """The state before the first step; T of the constraints' prefixes bounds all lengths.

    `memory` is from the model's `encode`, and `source_BS` says which of its positions are real.
    """
    options, ids = search.options, search.ids
    width, (batch, max_length) = options.beam_size, constraints.prefix_BT.shape
    context, cache = search.model.start(memory, width, max_length)
    tokens_BWT = jnp.full((batch, width, max_length), ids.pad, jnp.int32)
    unscored_BW = jnp.full((batch, width), NEG_INF, jnp.float32)
    coverage_BWS = None
    if options.coverage_penalty is not None:
        # Padding counts as covered.
        coverage_BWS = jnp.repeat(1 - source_BS.astype(jnp.float32)[:, None], width, axis=1)
    # All hypotheses are equal at first: a beam begins with one, or it would stay W equals.
    log_probs_BW = jnp.zeros_like(unscored_BW) if options.sample else unscored_BW.at[:, 0].set(0.0)
    return State(
        constraints,
        position_B=jnp.zeros(batch, jnp.int32),
        context=context,
        cache=cache,
        token_BW=jnp.full((batch, width), ids.bos, jnp.int32),
        live_BWT=tokens_BWT,
        log_probs_BW=log_probs_BW,
        coverage_BWS=coverage_BWS,
        finished=Hypotheses(tokens_BWT, unscored_BW, unscored_BW),
        done_B=constraints.max_length_B <= 0,
    )


def run(search: Search, state: State, num_rows: jax.Array) -> State:
    """Steps until `num_rows` more rows are done, or all."""
    advance = _advance_samples if search.options.sample else _advance_beam
    target = jnp.minimum(state.done_B.sum() + num_rows, state.done_B.size)
    return jax.lax.while_loop(
        lambda state: state.done_B.sum() < target, lambda state: advance(search, state), state
    )


def refill(state: State, fresh: State, rows_J: jax.Array, fresh_rows_J: jax.Array) -> State:
    """The state with row fresh_rows_J[j] of `fresh` as its row rows_J[j], if that is in range.

    Rows that are not replaced are not copied.
    """
    batch = state.done_B.size

    def replaced(old: jax.Array, new: jax.Array) -> jax.Array:
        taken = new.reshape(batch, -1).at[fresh_rows_J].get(mode="clip")
        return old.reshape(batch, -1).at[rows_J].set(taken, mode="drop").reshape(old.shape)

    return jax.tree.map(replaced, state, fresh)


def _advance_beam(search: Search, state: State) -> State:
    """One step of beam search with the GNMT length penalty (section 6.1).

    Of the 2W best continuations of a sentence's W live hypotheses, those among the first W that
    end with EOS are finished; the best W others stay live. A sentence is done when no live
    hypothesis can overtake its n-th best finished one, however long it grows. To stop at W
    finished ones would be quicker and wrong: a model trained with label smoothing gives every
    early end some probability, and W of those come before the best one finishes. With W = 1,
    where the first finished hypothesis is the last, this is greedy search.
    """
    options, ids = search.options, search.ids
    width, rows_B1 = options.beam_size, jnp.arange(state.done_B.size)[:, None]
    logits_BWV, context, cache, coverage_BWS = _step(search.model, state)
    log_probs_BC, parents_BC, tokens_BC = _continuations(
        logits_BWV, _forbidden(search, state, logits_BWV.shape[-1]), state.log_probs_BW
    )
    candidates_BCT = _with_token(state.live_BWT[rows_B1, parents_BC], state.position_B, tokens_BC)
    ends_BC = tokens_BC == ids.eos
    first_1C = (jnp.arange(2 * width) < width)[None]
    scores_BC = log_probs_BC / length_penalty(
        (state.position_B + 1.0)[:, None], options.length_penalty
    )
    if coverage_BWS is not None:
        penalty_BW = jnp.log(jnp.clip(coverage_BWS, 1e-9, 1.0)).sum(axis=-1)
        scores_BC += options.coverage_penalty * penalty_BW[rows_B1, parents_BC]
    # Forbidden tokens may be among the candidates where little else is left.
    kept_BC = ends_BC & first_1C & ~state.done_B[:, None] & (log_probs_BC > NEG_INF / 2)
    new = Hypotheses(candidates_BCT, jnp.where(kept_BC, scores_BC, NEG_INF), log_probs_BC)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), state.finished, new)
    log_probs_BW, chosen_BW = jax.lax.top_k(jnp.where(ends_BC, NEG_INF, log_probs_BC), width)
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
        finished=best(both, width),
    )
    return state._replace(done_B=state.done_B | _settled(state, options))


def _settled(state: State, options: SearchOptions) -> jax.Array:
    """[B] whether a sentence's n best finished hypotheses can no longer change."""
    max_length_B = state.constraints.max_length_B
    # Log-probabilities only fall, the length penalty is largest at the maximum length, and
    # the coverage penalty adds nothing.
    bound_B = state.log_probs_BW.max(axis=1) / length_penalty(
        max_length_B.astype(jnp.float32), options.length_penalty
    )
    settled_B = state.finished.scores[:, options.n_best - 1] >= bound_B
    if options.beam_size == 1:
        settled_B |= state.finished.scores[:, 0] > NEG_INF
    return settled_B | (max_length_B <= state.position_B)


def _advance_samples(search: Search, state: State) -> State:
    """One step of W independent hypotheses, each drawn from the model's distribution.

    The tokens drawn depend on the sentence's seed, the hypothesis and the position alone.
    """
    options, ids = search.options, search.ids
    logits_BWV, context, cache, _ = _step(search.model, state)
    forbidden_BWV = _forbidden(search, state, logits_BWV.shape[-1])
    tempered_BWV = jnp.where(forbidden_BWV, NEG_INF, logits_BWV / options.temperature)
    tempered_BWV = _truncated(tempered_BWV, options)

    def gumbel(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), position)
        return jax.random.gumbel(key, tempered_BWV.shape[1:], jnp.float32)

    # The maximum after Gumbel noise is a draw from the softmax.
    noise_BWV = jax.vmap(gumbel)(state.constraints.seed_B, state.position_B)
    _, tokens_BW1 = top_k(jnp.where(tempered_BWV > NEG_INF, tempered_BWV + noise_BWV, NEG_INF), 1)
    running_BW = state.finished.scores == NEG_INF
    tokens_BW = jnp.where(running_BW, tokens_BW1[..., 0], ids.pad)
    chosen_BW = jnp.take_along_axis(logits_BWV, tokens_BW1, axis=-1)[..., 0]
    gains_BW = chosen_BW - jax.nn.logsumexp(logits_BWV, axis=-1)
    log_probs_BW = jnp.where(running_BW, state.log_probs_BW + gains_BW, state.log_probs_BW)
    live_BWT = _with_token(state.live_BWT, state.position_B, tokens_BW)
    penalty_B1 = length_penalty((state.position_B + 1.0)[:, None], options.length_penalty)
    ends_BW = running_BW & (tokens_BW == ids.eos)
    scores_BW = jnp.where(ends_BW, log_probs_BW / penalty_B1, state.finished.scores)
    position_B, max_length_B = state.position_B + 1, state.constraints.max_length_B
    return state._replace(
        position_B=position_B,
        context=context,
        cache=cache,
        token_BW=tokens_BW,
        live_BWT=live_BWT,
        log_probs_BW=log_probs_BW,
        finished=Hypotheses(live_BWT, scores_BW, log_probs_BW),
        done_B=state.done_B | (scores_BW > NEG_INF).all(axis=1) | (max_length_B <= position_B),
    )


def _step(model, state: State):
    """The model's step: logits [B, W, V], context, cache, and the new coverage, if it counts."""
    arguments = state.context, state.cache, state.token_BW, state.position_B
    if state.coverage_BWS is None:
        return *model.step(*arguments), None
    logits_BWV, context, cache, weights_LBHWS = model.step(*arguments, return_attention=True)
    return logits_BWV, context, cache, state.coverage_BWS + weights_LBHWS.mean(axis=(0, 2))


def _forbidden(search: Search, state: State, vocab_size: int) -> jax.Array:
    """[B, W, V] whether a token may not come next.

    Padding, BOS and the unknown token never may; EOS not before the minimum length; at a
    sentence's last position only EOS may; no n-gram again; inside a prefix nothing but that.
    """
    token_11V = jnp.arange(vocab_size)[None, None]
    constraints, position_B, ids = state.constraints, state.position_B, search.ids
    last_B11 = (position_B >= constraints.max_length_B - 1)[:, None, None]
    early_B11 = (position_B < constraints.min_length_B - 1)[:, None, None]
    ends_11V = token_11V == ids.eos
    forbidden_BWV = jnp.isin(token_11V, jnp.array((ids.pad, ids.bos, ids.unk)))
    forbidden_BWV = forbidden_BWV | (early_B11 & ends_11V) | (last_B11 & ~ends_11V)
    if search.options.no_repeat_ngram:
        repeats_BWV = _repeats(state, search.options.no_repeat_ngram, vocab_size)
        forbidden_BWV |= ~ends_11V & repeats_BWV
        # Where nothing else is left, it ends, however short it is.
        forbidden_BWV &= ~(ends_11V & forbidden_BWV.all(axis=-1, keepdims=True))
    prefix_B = jnp.take_along_axis(constraints.prefix_BT, position_B[:, None], axis=1, mode="clip")
    prefix_B11 = prefix_B[:, :, None]
    return jnp.where(prefix_B11 != ids.pad, token_11V != prefix_B11, forbidden_BWV)


def _repeats(state: State, n: int, vocab_size: int) -> jax.Array:
    """[B, W, V] whether a token would repeat an n-gram of its hypothesis."""
    length, live_BWT = n - 1, state.live_BWT
    positions_T = jnp.arange(live_BWT.shape[-1])
    # A token repeats if the n - 1 before an earlier position of it are also the last n - 1.
    same_BT = (positions_T >= length)[None] & (positions_T[None] < state.position_B[:, None])
    same_BWT = jnp.broadcast_to(same_BT[:, None], live_BWT.shape)
    for back in range(1, length + 1):
        last_B11 = jnp.maximum(state.position_B - back, 0)[:, None, None]
        last_BW1 = jnp.take_along_axis(live_BWT, last_B11, axis=-1)
        same_BWT &= jnp.roll(live_BWT, back, axis=-1) == last_BW1
    rows_B11 = jnp.arange(live_BWT.shape[0])[:, None, None]
    beams_1W1 = jnp.arange(live_BWT.shape[1])[None, :, None]
    repeats_BWV = jnp.zeros((*live_BWT.shape[:2], vocab_size), bool)
    return repeats_BWV.at[rows_B11, beams_1W1, live_BWT].max(same_BWT)


def _truncated(logits_BWV: jax.Array, options: SearchOptions) -> jax.Array:
    """Logits, `NEG_INF` outside the top k and the nucleus (Holtzman et al. 2020)."""
    if not options.top_k and options.top_p is None:
        return logits_BWV
    vocab_size = logits_BWV.shape[-1]
    best_BWC, _ = top_k(logits_BWV, min(options.top_k or vocab_size, vocab_size))
    threshold_BW1 = best_BWC[..., -1:]
    if options.top_p is not None:
        probability_BWC = jax.nn.softmax(best_BWC, axis=-1)
        # Without the token itself, so that the most probable is always inside.
        before_BWC = jnp.cumsum(probability_BWC, axis=-1) - probability_BWC
        inside_BWC = (before_BWC < options.top_p).at[..., 0].set(True)
        threshold_BW1 = jnp.where(inside_BWC, best_BWC, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits_BWV >= threshold_BW1, logits_BWV, NEG_INF)


def _with_token(tokens_BWT: jax.Array, position_B: jax.Array, token_BW: jax.Array) -> jax.Array:
    here_B1T = (jnp.arange(tokens_BWT.shape[-1])[None] == position_B[:, None])[:, None]
    return jnp.where(here_B1T, token_BW[..., None], tokens_BWT)


def _continuations(logits_BWV: jax.Array, forbidden_BWV: jax.Array, log_probs_BW: jax.Array):
    """The 2W best (hypothesis, token) of each sentence: log-probs, hypotheses, tokens [B, C].

    First over the vocabulary, then over the beam, so that the second sort is small. The
    probabilities are the model's, whatever is forbidden.
    """
    batch, width, vocab_size = logits_BWV.shape
    count, count_each = 2 * width, min(2 * width, vocab_size)
    total_BW1 = jax.nn.logsumexp(logits_BWV, axis=-1, keepdims=True)
    best_BWC, tokens_BWC = top_k(jnp.where(forbidden_BWV, NEG_INF, logits_BWV), count_each)
    flat = (best_BWC - total_BW1 + log_probs_BW[:, :, None]).reshape(batch, -1)
    # A tiny vocabulary has fewer than 2W continuations: the rest are impossible.
    missing = max(count - flat.shape[1], 0)
    flat = jnp.pad(flat, ((0, 0), (0, missing)), constant_values=NEG_INF)
    tokens = jnp.pad(tokens_BWC.reshape(batch, -1), ((0, 0), (0, missing)))
    log_probs_BC, index_BC = jax.lax.top_k(flat, count)
    parents_BC = jnp.minimum(index_BC // count_each, width - 1)
    tokens_BC = jnp.take_along_axis(tokens, index_BC, axis=1)
    return jnp.maximum(log_probs_BC, NEG_INF), parents_BC, tokens_BC


def top_k(x_BWV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """As `jax.lax.top_k`, several times faster: sorts only the blocks with the largest maxima."""
    vocab_size = x_BWV.shape[-1]
    if vocab_size <= _BLOCK * count:
        return jax.lax.top_k(x_BWV, count)
    # A length that divides the vocabulary saves a padded copy.
    divisors = [n for n in range(_BLOCK // 2, 2 * _BLOCK) if vocab_size % n == 0]
    block = min(divisors or [_BLOCK], key=lambda n: abs(n - _BLOCK))
    padding = ((0, 0), (0, 0), (0, -vocab_size % block))
    padded = jnp.pad(x_BWV, padding, constant_values=NEG_INF) if not divisors else x_BWV
    blocks = padded.reshape(*x_BWV.shape[:-1], -1, block)
    _, block_BWC = jax.lax.top_k(blocks.max(axis=-1), count)
    # In the vocabulary's order, so that the first of equals is taken.
    block_BWC = jnp.sort(block_BWC, axis=-1)
    within = jnp.take_along_axis(blocks, block_BWC[..., None], axis=-2)
    best_BWC, index_BWC = jax.lax.top_k(within.reshape(*x_BWV.shape[:-1], -1), count)
    chosen_BWC = jnp.take_along_axis(block_BWC, index_BWC // block, axis=-1)
    return best_BWC, chosen_BWC * block + index_BWC % block


def best(hypotheses: Hypotheses, count: int) -> Hypotheses:
    """The best by score; the earlier of equals."""
    _, index_BN = jax.lax.top_k(hypotheses.scores, count)
    rows_B1 = jnp.arange(index_BN.shape[0])[:, None]
    return jax.tree.map(lambda x: x[rows_B1, index_BN], hypotheses)
