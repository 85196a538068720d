"""Packing: every pair once, no row over its capacity, rows nearly full."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data.packing import pack

property_test = settings(max_examples=150, deadline=None)


@st.composite
def instances(draw, max_pairs=60):
    capacity = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    pair = st.tuples(*(st.integers(1, side) for side in capacity))
    lengths = draw(st.lists(pair, min_size=1, max_size=max_pairs))
    return np.array(lengths), capacity


def rows_of(order_P, starts) -> list[list[int]]:
    return [order_P[start:end].tolist() for start, end in itertools.pairwise(starts)]


def first_fit(lengths_P2, capacity) -> int:
    """Rows of the plainest packing: each pair into the first row with room for it."""
    left: list[np.ndarray] = []
    for pair in lengths_P2:
        row = next((row for row in left if (row >= pair).all()), None)
        if row is None:
            left.append(row := np.array(capacity))
        row -= pair
    return len(left)


def corpus(size: int, seed: int) -> np.ndarray:
    """Lengths as those of translations: lognormal, the sides alike but not equal."""
    random = np.random.default_rng(seed)
    source = np.exp(random.normal(3.1, 0.6, size))
    target = source * np.exp(random.normal(0.1, 0.25, size))
    return np.clip(np.stack([source, target], axis=1), 2, 128).astype(np.int64)


@property_test
@given(instances(), st.integers(0, 2**31))
def test_each_pair_is_in_one_row_and_no_row_is_overfull_or_empty(instance, seed):
    lengths_P2, capacity = instance
    order_P, starts = pack(lengths_P2, capacity, seed)
    assert sorted(order_P) == list(range(len(lengths_P2)))
    assert starts[0] == 0 and starts[-1] == len(order_P)
    for row in rows_of(order_P, starts):
        assert row and (lengths_P2[row].sum(axis=0) <= capacity).all()


@property_test
@given(instances())
def test_no_more_rows_than_first_fit_and_a_tenth(instance):
    lengths_P2, capacity = instance
    _, starts = pack(lengths_P2, capacity, 0)
    assert len(starts) - 1 <= np.ceil(1.1 * first_fit(lengths_P2, capacity))


@pytest.mark.parametrize("capacity", [(256, 288), (192, 216)])
@pytest.mark.parametrize("seed", [0, 1])
def test_rows_of_a_corpus_are_full(capacity, seed):
    lengths_P2 = corpus(20_000, seed)
    _, starts = pack(lengths_P2, capacity, 0)
    assert (lengths_P2.sum(axis=0) / capacity / (len(starts) - 1)).max() >= 0.985


def test_pairs_that_fill_rows_exactly_leave_hardly_any_room():
    lengths_P2 = np.array([(3, 1), (1, 3), (2, 2), (2, 2)] * 50)
    _, starts = pack(lengths_P2, (4, 4), 0)
    assert 100 <= len(starts) - 1 <= 102


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_pairs_that_fill_rows_exactly_take_no_row_more(rows):
    """They are spread over as many rows as there must be, which is a whole number here."""
    _, starts = pack(np.ones((8 * rows, 2), np.int64), (8, 8), 0)
    assert len(starts) - 1 == rows


def test_the_same_seed_packs_the_same_and_another_one_other_companions():
    lengths_P2 = corpus(1000, 0)
    packed = [rows_of(*pack(lengths_P2, (192, 216), seed)) for seed in (0, 0, 1)]
    assert packed[0] == packed[1]
    companions = [set(map(frozenset, rows)) for rows in packed]
    assert len(companions[0] & companions[2]) < 0.2 * len(companions[0])


def test_companions_of_equal_lengths_are_no_neighbours_in_the_corpus():
    """Neighbours are often of one text: a row of them alone would be a batch of one topic."""
    order_P, starts = pack(np.full((1000, 2), 8), (64, 64), 0)
    gaps = [abs(a - b) for row in rows_of(order_P, starts) for a, b in itertools.pairwise(row)]
    assert 250 < np.mean(gaps) < 420  # 333 at random


def test_one_pair_and_only_pairs_that_fill_a_row():
    assert [x.tolist() for x in pack(np.array([[5, 7]]), (5, 7), 0)] == [[0], [0, 1]]
    order_P, starts = pack(np.full((20, 2), 9), (9, 9), 0)
    assert sorted(order_P) == list(range(20)) and starts.tolist() == list(range(21))
