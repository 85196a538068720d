"""Searches on a toy model whose best translations can be found by trying all."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.decoding import search
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import (
    Constraints,
    Hypotheses,
    Search,
    SpecialIds,
    length_penalty,
)

PAD, BOS, EOS = 0, 1, 2
VOCAB, LIMIT = 5, 4


class BigramModel(NamedTuple):
    """The next token depends on the last one and on the number of its place, by sentence.

    The cache holds what the hypothesis has read so far, so that a search that reorders it
    wrongly gives other results.
    """

    logits_BTVV: np.ndarray

    def start(self, memory, beam_width, max_length):
        return memory, jnp.zeros((memory.shape[0] * beam_width, max_length), jnp.int32)

    def step(self, context, cache, token_BW, position_B, return_attention=False):
        rows = jnp.arange(cache.shape[0])
        cache = cache.at[rows, jnp.repeat(position_B, token_BW.shape[1])].set(token_BW.reshape(-1))
        history_BW = cache.sum(axis=-1).reshape(token_BW.shape) % VOCAB
        place = jnp.asarray(self.logits_BTVV)[context[:, None], position_B[:, None], token_BW]
        logits_BWV = place + 0.3 * jnp.asarray(self.logits_BTVV)[0, 0][history_BW]
        if not return_attention:
            return logits_BWV, context, cache
        # Each token that is read looks at the source position of its number.
        weights_BWS = jax.nn.one_hot(token_BW, VOCAB)
        return logits_BWV, context, cache, weights_BWS[None, :, None]


@pytest.fixture(scope="module")
def model():
    logits = np.random.default_rng(3).normal(size=(3, LIMIT, VOCAB, VOCAB)).astype(np.float32) * 2
    logits[..., (PAD, BOS)] = -1e9
    return BigramModel(logits)


def log_probability(model, sentence: int, tokens: tuple[int, ...]) -> float:
    total, history = 0.0, 0
    for place, (last, token) in enumerate(zip((BOS, *tokens), tokens, strict=False)):
        history += last
        logits = (
            model.logits_BTVV[sentence, place, last]
            + 0.3 * model.logits_BTVV[0, 0][history % VOCAB]
        )
        forced = place == LIMIT - 1
        assert not forced or token == EOS
        total += float(logits[token] - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
    return total


def exhaustive(model, sentence: int, alpha: float):
    """All hypotheses of at most LIMIT tokens by score, best first."""
    words = [t for t in range(VOCAB) if t not in (PAD, BOS, EOS)]
    found = []
    for length in range(LIMIT):
        for body in itertools.product(words, repeat=length):
            tokens = (*body, EOS)
            log_prob = log_probability(model, sentence, tokens)
            found.append((log_prob / float(length_penalty(len(tokens), alpha)), tokens, log_prob))
    return sorted(found, reverse=True)


class Static(NamedTuple):
    """A model as a static argument: equal to itself only."""

    value: BigramModel

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return self.value is other.value


@functools.partial(jax.jit, static_argnames=("model", "ids"))
def _search(constraints, options, *, model, ids):
    batch, kinds = constraints.max_length_B.size, len(model.value.logits_BTVV)
    memory, source_BS = jnp.arange(batch) % kinds, jnp.ones((batch, VOCAB), bool)
    toy = Search(model.value, options, ids)
    state = search.run(toy, search.first_state(toy, memory, constraints, source_BS), batch)
    return search.best(state.finished, options.n_best)


def find(
    model, width=1, n_best=1, limits=(LIMIT,) * 3, least=1, prefix=(), seeds=0,
    alpha=0.6, beta=None, unk=-1, **options,
) -> Hypotheses:  # fmt: skip
    batch = len(limits)
    prefix_BT = np.zeros((batch, max(limits)), np.int32)
    prefix_BT[:, : len(prefix)] = prefix
    seed_B = np.broadcast_to(np.uint32(seeds), batch)
    constraints = Constraints(np.int32(limits), np.full(batch, least, np.int32), prefix_BT, seed_B)
    options = SearchOptions(
        beam_size=width, n_best=n_best, length_penalty=alpha, coverage_penalty=beta, **options
    )
    return _search(constraints, options, model=Static(model), ids=SpecialIds(BOS, EOS, PAD, unk))


def beam(model, width, n_best=1, alpha=0.6, limits=(LIMIT,) * 3):
    return find(model, width, n_best, alpha=alpha, limits=limits)


def words(row) -> tuple[int, ...]:
    return tuple(int(t) for t in row if t != PAD)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_full_width_beam_is_exhaustive_search(model, alpha):
    found = beam(model, width=64, n_best=5, alpha=alpha)
    for sentence in range(3):
        for rank, (score, tokens, log_prob) in enumerate(exhaustive(model, sentence, alpha)[:5]):
            assert words(found.tokens[sentence, rank]) == tokens
            assert float(found.scores[sentence, rank]) == pytest.approx(score, abs=1e-5)
            assert float(found.log_probs[sentence, rank]) == pytest.approx(log_prob, abs=1e-5)


def test_beam_of_one_is_greedy(model):
    found = beam(model, width=1)
    for sentence in range(3):
        tokens, last, history = [], BOS, 0
        while last != EOS:
            history += last
            logits = (
                model.logits_BTVV[sentence, len(tokens), last]
                + 0.3 * (model.logits_BTVV[0, 0][history % VOCAB])
            )
            last = EOS if len(tokens) == LIMIT - 1 else int(logits.argmax())
            tokens.append(last)
        assert words(found.tokens[sentence, 0]) == tuple(tokens)
        log_prob = log_probability(model, sentence, tuple(tokens))
        assert float(found.log_probs[sentence, 0]) == pytest.approx(log_prob, abs=1e-5)


def test_scores_are_those_of_the_tokens_and_sorted(model):
    found = beam(model, width=3, n_best=3)
    for sentence in range(3):
        for rank in range(3):
            tokens = words(found.tokens[sentence, rank])
            assert tokens[-1] == EOS
            assert float(found.log_probs[sentence, rank]) == pytest.approx(
                log_probability(model, sentence, tokens), abs=1e-5
            )
        assert np.all(np.diff(found.scores[sentence]) <= 0)
        assert len({words(row) for row in found.tokens[sentence]}) == 3


def test_padding_and_start_are_never_words(model):
    """Not even where the model thinks them most probable."""
    tempted = BigramModel(model.logits_BTVV.copy())
    tempted.logits_BTVV[..., (PAD, BOS)] = 10.0
    found = beam(tempted, width=4, n_best=4)
    for row in np.asarray(found.tokens).reshape(-1, LIMIT):
        length = int(np.argmax(row == EOS)) + 1
        assert EOS in row and not np.isin(row[:length], (PAD, BOS)).any()


@pytest.mark.parametrize("options", [{}, {"sample": True}])
def test_the_unknown_symbol_is_never_a_word(model, options):
    unknown = 3
    tempted = BigramModel(model.logits_BTVV.copy())
    tempted.logits_BTVV[..., unknown] = 10.0
    for unk, comes in ((-1, True), (unknown, False)):
        found = find(tempted, width=4, n_best=4, unk=unk, **options)
        assert np.any(np.asarray(found.tokens) == unknown) == comes


def test_early_ends_do_not_crowd_out_the_best_hypothesis():
    """Label smoothing: at each place the right word is likely, and all others equally unlikely."""
    logits = np.zeros((3, LIMIT, VOCAB, VOCAB), np.float32)
    for place, token in enumerate((3, 4, 3, EOS)):
        logits[:, place, :, token] = 5.0
    logits[..., EOS] += 0.01  # the first of the unlikely
    for width in (1, 2, 3, 4):
        found = beam(BigramModel(logits), width=width)
        assert words(found.tokens[0, 0]) == (3, 4, 3, EOS)


def test_a_rows_limit_is_its_own(model):
    """A shorter limit ends a sentence sooner and leaves its companions as they were."""
    whole, cut = beam(model, width=4), beam(model, width=4, limits=(LIMIT, 2, 0))
    np.testing.assert_array_equal(whole.tokens[0], cut.tokens[0])
    assert len(words(cut.tokens[1, 0])) <= 2 and words(cut.tokens[1, 0])[-1] == EOS
    np.testing.assert_array_equal(cut.tokens[2], PAD)


def test_companions_change_nothing(model):
    together = beam(model, width=3, n_best=2)
    for sentence in range(3):
        limits = [0, 0, 0]
        limits[sentence] = LIMIT
        alone = beam(model, width=3, n_best=2, limits=tuple(limits))
        for x, y in zip(together, alone, strict=True):
            np.testing.assert_array_equal(x[sentence], y[sentence])


def test_length_penalty_is_gnmts():
    assert float(length_penalty(1.0, 0.6)) == 1.0
    assert float(length_penalty(7.0, 1.0)) == 2.0
    assert float(length_penalty(7.0, 0.0)) == 1.0


def test_a_wider_beam_finds_more_probable_translations():
    """By the model's own score; a beam may lose the greedy path, but seldom."""
    logits = np.random.default_rng(0).normal(size=(400, 8, 12, 12)).astype(np.float32) * 2
    scores = [
        np.asarray(find(BigramModel(logits), width, limits=(8,) * 400).scores[:, 0])
        for width in (1, 4)
    ]
    gains = scores[1] - scores[0]
    assert np.mean(gains >= -1e-5) >= 0.95 and np.mean(gains > 0.1) > 0.2


def ranked(model, sentence, wanted, score=lambda tokens, log_prob: log_prob):
    """The hypotheses for which `wanted` holds, best first."""
    found = [
        (score(tokens, log_prob), tokens)
        for _, tokens, log_prob in exhaustive(model, sentence, 0.0)
        if wanted(tokens)
    ]
    return [tokens for _, tokens in sorted(found, reverse=True)]


def test_a_least_length_is_kept_and_the_best_of_it_found(model):
    found = find(model, width=64, n_best=3, least=3, alpha=0.0)
    for sentence in range(3):
        wanted = ranked(model, sentence, lambda tokens: len(tokens) >= 3)
        assert [words(row) for row in found.tokens[sentence]] == wanted[:3]


@pytest.mark.parametrize("prefix", [(4,), (3, 3), (4, 3, 4)])
def test_a_prefix_is_kept_and_the_best_of_it_found(model, prefix):
    found = find(model, width=64, n_best=2, prefix=prefix, alpha=0.0)
    for sentence in range(3):
        wanted = ranked(model, sentence, lambda tokens: tokens[: len(prefix)] == prefix)
        rows = [words(row) for row in found.tokens[sentence]]
        assert rows[: len(wanted)] == wanted[:2]
        assert float(found.log_probs[sentence, 0]) == pytest.approx(
            log_probability(model, sentence, rows[0]), abs=1e-5
        )


def repeats(tokens, length) -> bool:
    grams = [tokens[i : i + length] for i in range(len(tokens) - length + 1)]
    return len(set(grams)) < len(grams)


@pytest.mark.parametrize("length", [1, 2])
def test_no_ngram_occurs_twice(model, length):
    # Without the rule, some of the best have one twice.
    plain = find(model, width=64, n_best=12, alpha=0.0)
    assert any(repeats(words(row), length) for row in np.asarray(plain.tokens).reshape(-1, LIMIT))
    found = find(model, width=64, n_best=5, alpha=0.0, no_repeat_ngram=length)
    for sentence in range(3):
        wanted = ranked(model, sentence, lambda tokens: not repeats(tokens, length))
        assert [words(row) for row in found.tokens[sentence]] == wanted[:5]


def test_coverage_penalty_is_gnmts(model):
    """All tokens are positions of the source, and what is read looks at its own."""

    def score(tokens, log_prob):
        seen = np.zeros(VOCAB)
        for token in (BOS, *tokens[:-1]):
            seen[token] += 1
        return log_prob + 0.5 * np.log(np.clip(seen, 1e-9, 1)).sum()

    found = find(model, width=64, n_best=4, alpha=0.0, beta=0.5)
    for sentence in range(3):
        wanted = ranked(model, sentence, lambda tokens: True, score)
        assert words(found.tokens[sentence, 0]) == wanted[0]
    assert wanted != ranked(model, 2, lambda tokens: True)


def shares(model, number=4000, **options) -> dict[tuple[int, ...], float]:
    """How often each translation of the first sentence is drawn."""
    found = find(
        model, width=8, n_best=8, sample=True, limits=(LIMIT, 0, 0) * (number // 8),
        seeds=range(number // 8 * 3), **options,
    )  # fmt: skip
    drawn = [words(row) for row in np.asarray(found.tokens[::3]).reshape(-1, LIMIT)]
    return {tokens: drawn.count(tokens) / len(drawn) for tokens in set(drawn)}


def conditional(model, tokens, temperature=1.0, keep=lambda probabilities: probabilities) -> float:
    """The probability that sampling draws these tokens as the first sentence's translation."""
    total, history = 1.0, 0
    for place, (last, token) in enumerate(zip((BOS, *tokens), tokens, strict=False)):
        history += last
        logits = model.logits_BTVV[0, place, last] + 0.3 * model.logits_BTVV[0, 0][history % VOCAB]
        probabilities = np.exp((logits - logits.max()) / temperature)
        if place == LIMIT - 1:
            probabilities = np.eye(VOCAB)[EOS]
        probabilities = keep(probabilities / probabilities.sum())
        total *= probabilities[token] / probabilities.sum()
    return total


def top(count):
    return lambda p: np.where(p >= np.sort(p)[-count], p, 0.0)


def nucleus(share):
    def keep(p):
        order = np.argsort(-p)
        inside = np.cumsum(p[order]) - p[order] < share
        return np.where(np.isin(np.arange(VOCAB), order[inside]), p, 0.0)

    return keep


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda p: p),
        ({"temperature": 0.5}, lambda p: p),
        ({"top_k": 2}, top(2)),
        ({"top_p": 0.7}, nucleus(0.7)),
        (
            {"top_k": 2, "top_p": 0.8},
            lambda p: nucleus(0.8)(top(2)(p) / top(2)(p).sum()),
        ),
    ],
)
def test_samples_come_as_often_as_they_are_probable(model, options, keep):
    found = shares(model, **options)
    temperature = options.get("temperature", 1.0)
    wanted = {
        tokens: conditional(model, tokens, temperature, keep)
        for _, tokens, _ in exhaustive(model, 0, 0.0)
    }
    assert sum(wanted.values()) == pytest.approx(1.0)
    for tokens, share in wanted.items():
        # Five standard deviations of 4000 draws.
        margin = 5 * float(share * (1 - share) / 4000) ** 0.5
        assert found.get(tokens, 0.0) == pytest.approx(float(share), abs=margin + 1e-9)


def test_samples_depend_on_their_seed_alone(model):
    first = find(model, width=4, n_best=4, sample=True, seeds=(5, 6, 7))
    second = find(model, width=4, n_best=4, sample=True, seeds=(9, 6, 8), limits=(0, LIMIT, 2))
    for x, y in zip(first, second, strict=True):
        np.testing.assert_array_equal(x[1], y[1])
    other = find(model, width=4, n_best=4, sample=True, seeds=(8, 9, 10))
    assert not np.array_equal(first.tokens, other.tokens)


def test_samples_are_sorted_and_their_probabilities_the_models(model):
    found = find(model, width=8, n_best=8, sample=True, temperature=2.0)
    for sentence in range(3):
        assert np.all(np.diff(found.scores[sentence]) <= 0)
        for row, log_prob in zip(found.tokens[sentence], found.log_probs[sentence], strict=True):
            wanted = log_probability(model, sentence, words(row))
            assert float(log_prob) == pytest.approx(wanted, abs=1e-5)


@given(
    vocab_size=st.sampled_from([1, 5, 127, 128, 600, 1009, 6000]),
    count=st.sampled_from([1, 4, 16]),  # each pair of sizes is a program
    kinds=st.integers(1, 1000),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_largest_by_blocks_are_the_largest(vocab_size, count, kinds, seed):
    """Also where many are equal."""
    count = min(count, vocab_size)
    x = np.random.default_rng(seed).integers(0, kinds, (2, 3, vocab_size)).astype(np.float32)
    values, indices = search.top_k(x, count)
    np.testing.assert_array_equal(values, jax.lax.top_k(x, count)[0])
    np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(indices), -1), values)
    assert all(len(set(row)) == count for row in np.asarray(indices).reshape(-1, count))


def test_where_nothing_else_is_left_it_ends(model):
    """Three words that may not come twice, and at least five tokens wanted of four."""
    for options in ({"width": 3, "n_best": 3}, {"width": 3, "n_best": 3, "sample": True}):
        found = find(model, least=LIMIT + 1, no_repeat_ngram=1, **options)
        for row, score in zip(
            np.asarray(found.tokens).reshape(-1, LIMIT), np.ravel(found.scores), strict=True
        ):
            if score > search.NEG_INF / 2:
                length = int(np.argmax(row == EOS)) + 1
                assert row[length - 1] == EOS and not np.isin(row[:length], (PAD, BOS)).any()
        assert np.all(np.asarray(found.scores)[:, 0] > search.NEG_INF / 2)


def test_a_search_goes_on_while_a_longer_hypothesis_may_overtake():
    logits = np.full((3, LIMIT, VOCAB, VOCAB), -20.0, np.float32)
    logits[:, 0, :, EOS], logits[:, 0, :, 3] = np.log(0.55), np.log(0.45)
    for place, word in enumerate((3, 3, EOS), 1):
        logits[:, place, :, word] = 0.0
    model = BigramModel(logits)
    best = exhaustive(model, 0, 2.0)[0][1]
    assert best == (3, 3, 3, EOS)
    assert words(beam(model, width=2, alpha=2.0).tokens[0, 0]) == best


def test_padding_of_the_source_is_not_penalised(model):
    constraints = Constraints(
        np.full(3, LIMIT, np.int32),
        np.ones(3, np.int32),
        np.zeros((3, LIMIT), np.int32),
        np.zeros(3, np.uint32),
    )
    real_BS = jnp.ones((3, VOCAB), bool).at[:, PAD].set(False)  # padding is never read
    options = SearchOptions(beam_size=64, length_penalty=0.0, coverage_penalty=0.5)
    toy = Search(model, options, SpecialIds(BOS, EOS, PAD))
    state = search.first_state(toy, jnp.arange(3), constraints, real_BS)
    found = search.best(search.run(toy, state, 3).finished, options.n_best)
    for sentence in range(3):
        missing = VOCAB - 1 - len({BOS, *words(found.tokens[sentence, 0])[:-1]})
        wanted = float(found.log_probs[sentence, 0]) + 0.5 * missing * np.log(1e-9)
        assert float(found.scores[sentence, 0]) == pytest.approx(wanted, abs=1e-3)


def test_scores_of_samples_have_the_length_penalty(model):
    found = find(model, width=8, n_best=8, sample=True, alpha=0.6)
    for row, score, log_prob in zip(*(np.asarray(x).reshape(24, -1) for x in found), strict=True):
        penalty = float(length_penalty(len(words(row)), 0.6))
        assert float(score[0]) == pytest.approx(float(log_prob[0]) / penalty, abs=1e-5)


def test_of_equals_the_first_is_the_largest():
    x = np.zeros((1, 1, 640), np.float32)
    x[..., 100], x[..., 500], x[..., 501], x[..., 600] = 1.0, 2.0, 1.0, 1.0
    np.testing.assert_array_equal(search.top_k(x, 3)[1], jax.lax.top_k(x, 3)[1])


def test_a_prefix_as_long_as_the_limit_is_kept_to_its_last_token(model):
    found = find(model, width=2, prefix=(3, 4, 3, 4), sample=True, n_best=2)
    assert [words(row) for row in np.asarray(found.tokens).reshape(-1, LIMIT)] == [(3, 4, 3, 4)] * 6
