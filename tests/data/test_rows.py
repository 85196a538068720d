"""Rows: their shapes, buckets and windows; what is kept is not chosen again."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer_jax.data import packing
from transformer_jax.data.packing import (
    Growth,
    Shape,
    bucket_lengths,
    bucketed_rows,
    packed_rows,
)

property_test = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
PAIR = st.tuples(st.integers(2, 40), st.integers(2, 40))
CORPORA = st.lists(st.lists(PAIR, min_size=1, max_size=40), min_size=1, max_size=3)
FACTOR = st.integers(100, 250).map(lambda hundredths: hundredths / 100)
GROWTHS = st.builds(Growth, FACTOR, FACTOR)
CHOSEN = Shape(0, 0)


@pytest.fixture
def cache(tmp_path):
    """A new folder at each call: examples of one test must not find each other's rows."""
    numbers = itertools.count()
    return lambda: tmp_path / str(next(numbers))


def pairs_of(rows) -> list[list[int]]:
    """The pairs of each row."""
    starts = range(len(rows.pairs) + 1) if rows.starts is None else rows.starts
    assert len(rows) == len(starts) - 1
    return [rows.pairs[start:end].tolist() for start, end in itertools.pairwise(starts)]


def needed(lengths, pairs, growth) -> np.ndarray:
    """Room for pairs that may grow, each side rounded up to whole tokens."""
    return np.ceil(np.array(lengths)[pairs] * np.array(growth)).sum(axis=0)


@property_test
@given(CORPORA, GROWTHS, st.sampled_from([CHOSEN, Shape(100, 0), Shape(0, 104), Shape(100, 200)]))
def test_packed_rows_have_one_shape_room_to_grow_and_every_pair_once(
    make_store, cache, corpora, growth, given_shape
):
    stores = [make_store(lengths) for lengths in corpora]
    packed = packed_rows(stores, given_shape, growth, cache())
    assert len({rows.shape for (rows,) in packed}) == 1
    shape = packed[0][0].shape
    assert all(wanted in (0, length) for wanted, length in zip(given_shape, shape))
    for lengths, (rows,) in zip(corpora, packed):
        assert sorted(sum(pairs_of(rows), [])) == list(range(len(lengths)))
        for pairs in pairs_of(rows):
            assert pairs and (needed(lengths, pairs, growth) <= shape).all()


@property_test
@given(CORPORA)
def test_chosen_shapes_hold_the_longest_pair_in_the_proportion_of_the_sides(
    make_store, cache, corpora
):
    stores = [make_store(lengths) for lengths in corpora]
    shape = packed_rows(stores, CHOSEN, Growth(), cache())[0][0].shape
    lengths_P2 = np.array(sum(corpora, []))
    mean, longest = lengths_P2.mean(axis=0), lengths_P2.max(axis=0)
    assert all(length % 8 == 0 for length in shape)
    assert (longest <= shape).all()
    # No more than that takes, and than it takes to hold a few pairs.
    scale = max(4, *(longest / mean))
    assert (np.array(shape) >= scale * mean - 1e-9).all()
    assert (np.array(shape) < scale * mean + 9).all()


@property_test
@given(CORPORA, GROWTHS, st.sampled_from([CHOSEN, Shape(100, 0)]), st.integers(0, 400))
def test_a_chosen_side_is_at_most_so_long_unless_a_stored_pair_is_longer(
    make_store, cache, corpora, growth, given_shape, most
):
    """A batch of one row must not hold more than it may; a given side is as it is given."""
    stores = [make_store(lengths) for lengths in corpora]
    whole = packed_rows(stores, given_shape, growth, cache())[0][0].shape
    packed = packed_rows(stores, given_shape, growth, cache(), most)
    longest = np.array(sum(corpora, [])).max(axis=0).tolist()
    wanted = [max(min(one, most), least) for one, least in zip(whole, longest)]
    assert packed[0][0].shape == tuple(one or x for one, x in zip(given_shape, wanted))
    for lengths, (rows,) in zip(corpora, packed):
        assert sorted(sum(pairs_of(rows), [])) == list(range(len(lengths)))
        for pairs in pairs_of(rows):
            assert (needed(lengths, pairs, Growth()) <= rows.shape).all()


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_given_side_shorter_than_a_pair_is_told_with_what_would_do(make_store, cache, side):
    store = make_store([(4, 5), (9, 7)])
    least = {"source": 9, "target": 7}[side]
    given_shape = CHOSEN._replace(**{side: least - 1})
    with pytest.raises(ValueError) as error:
        packed_rows([store], given_shape, Growth(), cache())
    assert str(error.value) == (
        f"config.data.{side}_row_length={least - 1} is less than the longest {side} kept, of "
        f"{least} tokens; raise it or lower config.data.max_length"
    )
    given_shape = CHOSEN._replace(**{side: least})
    assert packed_rows([store], given_shape, Growth(), cache())


@property_test
@given(st.lists(PAIR, min_size=1, max_size=10), GROWTHS, st.data())
def test_a_given_side_need_only_hold_what_is_stored(make_store, cache, lengths, growth, data):
    """A pair may grow beyond it: then it is read as it is stored. One that is too long may not."""
    longest = Shape(*map(max, zip(*lengths)))
    store = make_store(lengths)
    ((rows,),) = packed_rows([store], longest, growth, cache())
    assert rows.shape == longest
    for pairs in pairs_of(rows):
        assert (needed(lengths, pairs, Growth()) <= longest).all()
    side = data.draw(st.sampled_from(Shape._fields))
    shorter = longest._replace(**{side: getattr(longest, side) - 1})
    with pytest.raises(ValueError, match=f"config.data.{side}_row_length="):
        packed_rows([store], shorter, growth, cache())


@property_test
@given(CORPORA, GROWTHS, st.integers(1, 5))
def test_each_pair_is_in_one_bucket_whose_shape_holds_it(
    make_store, cache, corpora, growth, num_buckets
):
    stores = [make_store(lengths) for lengths in corpora]
    bucketed = bucketed_rows(stores, num_buckets, growth, cache())
    shapes = [[rows.shape for rows in buckets] for buckets in bucketed]
    assert all(x == shapes[0] for x in shapes) and 1 <= len(shapes[0]) <= num_buckets
    assert [max(shape) for shape in shapes[0]] == sorted({max(shape) for shape in shapes[0]})
    longest = collections.defaultdict(list)
    for lengths, buckets in zip(corpora, bucketed):
        assert sorted(sum((sum(pairs_of(x), []) for x in buckets), [])) == list(range(len(lengths)))
        for rows in buckets:
            assert all(len(pairs) == 1 for pairs in pairs_of(rows))
            longest[rows.shape] += [needed(lengths, pairs, growth) for pairs in pairs_of(rows)]
    # No longer than the longest, and none that would fit a shorter bucket.
    shorter = 0
    for shape in shapes[0]:
        assert tuple(np.max(longest[shape], axis=0)) == shape
        assert all(max(pair) > shorter for pair in longest[shape])
        shorter = max(shape)


@pytest.mark.parametrize("window", [1, 7, 25, 26])
def test_windows_neither_lose_nor_repeat_a_pair(make_store, cache, monkeypatch, window):
    random = np.random.default_rng(0)
    stores = [make_store(random.integers(2, 30, (size, 2)).tolist()) for size in (25, 3, 50)]
    whole = bucketed_rows(stores, 3, Growth(), cache())
    monkeypatch.setattr(packing, "WINDOW", window)
    for store, (rows,) in zip(stores, packed_rows(stores, CHOSEN, Growth(), cache())):
        assert sorted(sum(pairs_of(rows), [])) == list(range(len(store)))
        for pairs in pairs_of(rows):
            assert len({pair // window for pair in pairs}) == 1
            for side, room in zip((store.source, store.target), rows.shape):
                assert sum(len(side[pair]) for pair in pairs) <= room
    for buckets, wanted in zip(bucketed_rows(stores, 3, Growth(), cache()), whole):
        assert [rows.shape for rows in buckets] == [rows.shape for rows in wanted]
        assert [pairs_of(rows) for rows in buckets] == [pairs_of(rows) for rows in wanted]


@pytest.mark.parametrize("choose", [packed_rows, bucketed_rows])
def test_what_was_chosen_once_is_read_from_the_cache(make_store, cache, monkeypatch, choose):
    stores = [make_store([(3, 4), (9, 5)] * 20), make_store([(3, 4)])]
    how, folder = (Shape(48, 48) if choose is packed_rows else 2), cache()
    first = choose(stores, how, Growth(), folder)
    monkeypatch.setattr("transformer_jax.storage.Writer.append", None)
    second = choose(stores, how, Growth(), folder)
    assert [[pairs_of(x) for x in y] for y in first] == [[pairs_of(x) for x in y] for y in second]
    for changed in (
        lambda: choose(stores, Shape(48, 56) if choose is packed_rows else 1, Growth(), folder),
        lambda: choose(stores, how, Growth(1.5, 1.0), folder),
        lambda: choose([make_store([(3, 4), (9, 5)] * 21), stores[1]], how, Growth(), folder),
    ):
        with pytest.raises(TypeError):  # it is planned anew, which the patches forbid
            changed()


def test_a_mixture_does_not_change_the_rows_that_a_corpus_has_by_itself(make_store, cache):
    """Its cache is its own, as long as the shapes are."""
    store, other = make_store([(3, 4), (9, 5)] * 20), make_store([(3, 4), (9, 5)] * 5)
    ((alone,),) = packed_rows([store], Shape(32, 32), Growth(), cache())
    _, (mixed,) = packed_rows([other, store], Shape(32, 32), Growth(), cache())
    assert pairs_of(alone) == pairs_of(mixed)


def test_a_bucket_that_a_corpus_of_a_mixture_has_not_is_empty_there(make_store, cache):
    short, long = bucketed_rows(
        [make_store([(2, 2)] * 5), make_store([(30, 30)] * 4)], 2, Growth(), cache()
    )
    assert [len(rows) for rows in short] == [5, 0] and [len(rows) for rows in long] == [0, 4]


def places(lengths, ends) -> int:
    return sum(min(end for end in ends if end >= length) for length in lengths)


@property_test
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 4))
def test_bucket_lengths_pad_least(lengths, num_buckets):
    chosen = bucket_lengths(np.bincount(lengths), num_buckets)
    longest = max(lengths)
    best = min(
        places(lengths, [*shorter, longest])
        for count in range(num_buckets)
        for shorter in itertools.combinations(range(1, longest), count)
    )
    assert chosen == sorted(set(chosen)) and chosen[-1] == longest and len(chosen) <= num_buckets
    assert places(lengths, chosen) == best


@property_test
@given(st.lists(st.integers(500, 5000), min_size=1, max_size=30), st.integers(1, 4))
def test_bucket_lengths_of_long_sentences_are_told_apart_coarsely(lengths, num_buckets):
    """By a five-hundredth of the longest: choosing takes their square in memory."""
    chosen = bucket_lengths(np.bincount(lengths), num_buckets)
    step = -(-max(lengths) // 512)
    assert chosen == sorted(set(chosen)) and len(chosen) <= num_buckets
    assert max(lengths) <= chosen[-1] < max(lengths) + step
    finest = [-(-length // step) for length in lengths]
    exactly = bucket_lengths(np.bincount(finest), num_buckets)
    assert places(lengths, chosen) == step * places(finest, exactly)
