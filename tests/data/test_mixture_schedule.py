"""MixtureSchedule: each corpus as often as its weight says, at any scale, at equal distances."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data.batches import MixtureSchedule


@settings(max_examples=40, deadline=None)
@given(
    weights=st.lists(st.floats(1e-2, 1e2), min_size=1, max_size=6),
    start=st.integers(0, 10**6),
)
def test_a_block_holds_each_corpus_as_often_as_its_weight_says(weights, start):
    turns, shares = MixtureSchedule(weights), np.array(weights) / sum(weights)
    counts = np.rint(turns.shares * turns.period).astype(int)
    if len(weights) > 1:
        # Rounded to whole turns, of which the least has as many as its weight says.
        turns_wanted = counts.min() / shares.min()
        assert turns_wanted * (1 + 1e-9) >= 1024 and turns_wanted < 1024 + 1 / shares.min()
        assert (abs(counts - shares * turns_wanted) <= 0.5 + 1e-6).all()
    corpus, before = turns.locate(np.arange(start * turns.period, (start + 2) * turns.period))
    for number, count in enumerate(counts):
        assert count >= 1
        # Without a gap, from block to block.
        own = before[corpus == number]
        assert np.array_equal(own, np.arange(start * count, (start + 2) * count))


@pytest.mark.parametrize("weights", [[3, 2], [1, 1], [3]])
@pytest.mark.parametrize("scale", [1e-307, 1e-9, 1.0, 1e9, 5e307])
def test_only_the_proportion_of_weights_matters(weights, scale):
    scaled, plain = (
        MixtureSchedule([weight * scale for weight in weights]),
        MixtureSchedule(weights),
    )
    np.testing.assert_array_equal(scaled.shares, plain.shares)
    np.testing.assert_allclose(plain.shares, np.array(weights) / sum(weights), atol=1 / 1024)


@pytest.mark.parametrize(
    "weights", [[1, 700], [1, 2000], [70, 1, 5000], [3e5, 1], [1e300, 1e300, 1e295]]
)
def test_a_small_share_is_what_its_weight_says(weights):
    """A corpus of a few sentences in one of millions would else be seen too often."""
    relative = np.array(weights) / max(weights)
    np.testing.assert_allclose(
        MixtureSchedule(weights).shares, relative / relative.sum(), rtol=2e-3
    )


@pytest.mark.parametrize("least", [1e-9, 1e-320, 1e-6])
def test_a_share_next_to_nothing_is_a_turn_of_a_million(least):
    turns = MixtureSchedule([1, least, 0.5])
    assert 2**19 < turns.period <= 2**20 + 2
    assert np.rint(turns.shares[1] * turns.period) == 1
    assert len(turns.locate(np.array([0, 2**40]))[0]) == 2


def test_turns_are_at_equal_distances():
    corpus, _ = MixtureSchedule([3, 1]).locate(np.arange(1024))
    gaps = np.diff(np.flatnonzero(corpus == 1))
    assert gaps.min() >= 3 and gaps.max() <= 5
