"""Random orders without memory: each a bijection, others for other keys, and as if shuffled."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data.permutation import keys, permuted

property_test = settings(max_examples=100, deadline=None)
PARTS = st.lists(st.integers(0, 2**62), min_size=1, max_size=4)


def order(size: int, *parts: int) -> list[int]:
    return permuted(np.arange(size), size, *parts).tolist()


@property_test
@given(st.integers(1, 2000), PARTS)
def test_each_thing_has_one_place(size, parts):
    assert sorted(order(size, *parts)) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 64, 65, 255, 256, 257])
def test_sizes_around_powers_of_two_are_permuted(size):
    for key in range(20):
        assert sorted(order(size, key)) == list(range(size))


@property_test
@given(st.integers(2000, 2**40), PARTS, st.integers(0, 2**32))
def test_places_of_many_things_are_distinct_and_in_range(size, parts, seed):
    index_P = np.unique(np.random.default_rng(seed).integers(0, size, 5000))
    place_P = permuted(index_P, size, *parts)
    assert place_P.dtype == np.int64
    assert place_P.min() >= 0 and place_P.max() < size
    assert len(np.unique(place_P)) == len(index_P)


def test_the_largest_size_is_permuted():
    index_P = np.array([0, 1, 2**61, 2**62 - 1])
    place_P = permuted(index_P, 2**62, 1)
    assert len(set(place_P)) == 4 and place_P.min() >= 0 and place_P.max() < 2**62


@property_test
@given(st.integers(1, 3000), st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 9))))
def test_keys_of_each_element_are_as_one_key_at_a_time(size, asked):
    index_P, epoch_P = np.array([(i % size, epoch) for i, epoch in asked], int).reshape(-1, 2).T
    together = permuted(index_P, size, 7, 1, epoch_P)
    orders = {epoch: order(size, 7, 1, epoch) for epoch in set(epoch_P.tolist())}
    assert together.tolist() == [orders[epoch][i] for i, epoch in zip(index_P, epoch_P.tolist())]


def test_what_goes_in_is_left_as_it_is():
    index_P, key_P = np.arange(10, dtype=np.uint64), np.full(10, 3, np.uint64)
    permuted(index_P, 10, key_P)
    assert index_P.tolist() == list(range(10)) and key_P.tolist() == [3] * 10


def test_keys_tell_parts_their_order_and_their_number_apart():
    parts = [*itertools.product(range(4), repeat=3), *itertools.product(range(4), repeat=2), (0,)]
    parts += [(2**31 - 1, 0), (2**32, 0), (2**63,), (2**64 - 1,)]
    values = {int(keys(*part)[0]) for part in parts}
    assert len(values) == len(parts)
    many = keys(5, np.arange(1000), 6)
    assert many.shape == (1000,) and many.dtype == np.uint64 and len(set(many.tolist())) == 1000
    assert many[17] == keys(5, 17, 6)[0]


@pytest.mark.parametrize("parts", [(0, range(1)), (0, range(300)), (range(300), 0)])
def test_other_keys_are_other_orders(parts):
    """Neighbouring seeds and epochs too."""
    values = [order(50, *key) for key in itertools.product(
        *(part if isinstance(part, range) else [part] for part in parts))]  # fmt: skip
    assert len(set(map(tuple, values))) == len(values)


def pearson(counts: np.ndarray) -> float:
    """How far counts are from all equal."""
    return ((counts - counts.mean()) ** 2).sum() / counts.mean()


def is_chance(chi_square: float, free: int) -> bool:
    """Whether it is that of so many degrees of freedom, within six standard deviations."""
    return abs(chi_square - free) < 6 * np.sqrt(2 * free)


@pytest.mark.parametrize("size", [2, 5, 8, 13, 30])
def test_each_place_gets_each_index_about_equally_often(size):
    number = 6000
    index_P, epoch_P = np.tile(np.arange(size), number), np.repeat(np.arange(number), size)
    place_P = permuted(index_P, size, 11, 0, epoch_P)
    counts = np.zeros((size, size))
    np.add.at(counts, (index_P, place_P), 1)
    assert (counts.sum(axis=0) == number).all()
    assert is_chance(pearson(counts) * (size - 1) / size, (size - 1) ** 2)


@pytest.mark.parametrize("size", [3, 4])
def test_all_orders_of_few_things_come_up_equally_often(size):
    number = 12_000
    index_P, epoch_P = np.tile(np.arange(size), number), np.repeat(np.arange(number), size)
    orders = permuted(index_P, size, 11, 0, epoch_P).reshape(number, size)
    counts = collections.Counter(map(tuple, orders.tolist()))
    assert len(counts) == math.factorial(size)
    assert is_chance(pearson(np.array(list(counts.values()))), len(counts) - 1)


@pytest.mark.parametrize("size", [1000, 4096, 100_003])
def test_neighbours_do_not_stay_together(size):
    place_P = np.array(order(size, 3))
    random = np.random.default_rng(0).permutation(size)
    for distance in (1, 2, 64):
        near, wanted = (
            np.abs(x[distance:] - x[:-distance]).mean() / size for x in (place_P, random)
        )
        assert abs(near - wanted) < 0.05
    assert abs(np.corrcoef(np.arange(size), place_P)[0, 1]) < 0.15
    assert (place_P == np.arange(size)).sum() < 10
