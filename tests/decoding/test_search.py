"""Greedy and beam search on a toy model whose best translation can be found by trying all."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transformer_jax.decoding.search import beam_search, greedy_search, length_penalty

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

    def step(self, context, cache, token_BW, position_B):
        rows = jnp.arange(cache.shape[0])
        cache = cache.at[rows, jnp.repeat(position_B, token_BW.shape[1])].set(token_BW.reshape(-1))
        history_BW = cache.sum(axis=-1).reshape(token_BW.shape) % VOCAB
        place = jnp.asarray(self.logits_BTVV)[context[:, None], position_B[:, None], token_BW]
        return place + 0.3 * jnp.asarray(self.logits_BTVV)[0, 0][history_BW], cache


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


@functools.partial(jax.jit, static_argnames=("model", "width", "n_best", "alpha"))
def _beam(memory, limit_B, *, model, width, n_best, alpha):
    return beam_search(
        model.value, memory, limit_B, beam_size=width, n_best=n_best, max_length=LIMIT,
        alpha=alpha, bos=BOS, eos=EOS, pad=PAD,
    )  # fmt: skip


class Static(NamedTuple):
    """A model as a static argument: equal to itself only."""

    value: BigramModel

    def __hash__(self):
        return id(self.value)

    def __eq__(self, other):
        return self.value is other.value


def beam(model, width, n_best=1, alpha=0.6, limits=(LIMIT,) * 3):
    return _beam(
        jnp.arange(3),
        jnp.array(limits),
        model=Static(model),
        width=width,
        n_best=n_best,
        alpha=alpha,
    )


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
    limits = jnp.array((LIMIT,) * 3)
    greedy = greedy_search(
        model, jnp.arange(3), limits, max_length=LIMIT, alpha=0.6, bos=BOS, eos=EOS, pad=PAD
    )
    narrow = beam(model, width=1)
    np.testing.assert_array_equal(greedy.tokens, narrow.tokens)
    np.testing.assert_allclose(greedy.scores, narrow.scores, rtol=1e-6)
    np.testing.assert_allclose(greedy.log_probs, narrow.log_probs, rtol=1e-6)


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
