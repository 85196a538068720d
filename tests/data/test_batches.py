"""Batches: each pair once an epoch, static shapes, pure in the step, the same for any processes."""

import collections
import itertools
import math
import pathlib
import tempfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer_jax.data.batches import Batches, MixtureSchedule, empty_batch, pad_rows
from transformer_jax.data.packing import Growth, Rows, Shape, bucketed_rows, packed_rows
from transformer_jax.data.vocabulary import BOS, EOS

property_test = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
PAIR = st.tuples(st.integers(2, 12), st.integers(2, 12))
CORPORA = st.lists(st.lists(PAIR, min_size=1, max_size=25), min_size=1, max_size=3)
# Shapes of packed rows (0 = chosen), or the most buckets.
PACKED = st.sampled_from([Shape(0, 0), Shape(12, 12), Shape(12, 30), Shape(40, 0)])
ROWS = PACKED | st.integers(1, 4)
SETTINGS = {
    "corpora": CORPORA,
    "how": ROWS,
    "tokens": st.integers(1, 200),
    "seed": st.none() | st.integers(0, 5),
    "weights": st.just(()) | st.lists(st.integers(1, 4), min_size=3, max_size=3),
}
A_CORPUS = 100  # the numbers of a corpus' pairs begin at this times the corpus


@pytest.fixture(scope="session")
def make_batches(make_store):
    def make(corpora, how, tokens, seed, weights=(), **options) -> Batches:
        stores = [make_store(x, 10 + A_CORPUS * i) for i, x in enumerate(corpora)]
        with tempfile.TemporaryDirectory() as cache:  # what is mapped outlives its name
            choose = packed_rows if isinstance(how, Shape) else bucketed_rows
            rows = choose(stores, how, Growth(), pathlib.Path(cache))
        weights = tuple(weights[: len(corpora)])
        return Batches(stores, rows, tokens_per_batch=tokens, seed=seed, weights=weights, **options)

    return make


def pairs_in(batch) -> list[list[int]]:
    """The numbers of the pairs of each row."""
    return [
        [int(ids[segments == k][0]) - 10 for k in range(1, segments.max() + 1)]
        for ids, segments in zip(batch.labels, batch.target.segments)
    ]


def draws(batches: Batches, steps: int) -> dict[int, list[list[int]]]:
    """Of each corpus, the pairs of each of its packed rows, or of its bucketed batches."""
    result = collections.defaultdict(list)
    for step in range(steps):
        rows = [row for row in pairs_in(batches.batch_at(step)) if row]
        for drawn in rows if batches.packed else [sum(rows, [])]:
            result[drawn[0] // A_CORPUS].append(drawn)
    return result


def steps_of(batches: Batches, epochs: int = 1) -> int:
    """Steps in which each corpus has had so many epochs."""
    return math.ceil(epochs * max(batches.steps_per_epoch)) + 1


def leaves(batch) -> list[np.ndarray]:
    return [*batch.source, *batch.target, batch.labels]


def same(one, other) -> bool:
    return all(map(np.array_equal, leaves(one), leaves(other)))


@property_test
@given(**SETTINGS)
def test_every_pair_is_in_each_epoch_of_its_corpus_exactly_once(make_batches, **options):
    batches = make_batches(**options)
    drawn = draws(batches, steps_of(batches, 3))
    for corpus, lengths in enumerate(options["corpora"]):
        size = int(batches.epoch_sizes[corpus])
        wanted = list(range(A_CORPUS * corpus, A_CORPUS * corpus + len(lengths)))
        assert len(drawn[corpus]) >= 2 * size
        for start in range(0, len(drawn[corpus]) - size + 1, size):
            assert sorted(sum(drawn[corpus][start : start + size], [])) == wanted


@property_test
@given(**SETTINGS)
def test_rows_hold_their_pairs_whole_and_nothing_else(make_batches, **options):
    """A segment of a row is one pair, on both sides; what is no pair's is zero."""
    batches = make_batches(**options)
    for step in range(steps_of(batches)):
        batch = batches.batch_at(step)
        assert {x.dtype for x in leaves(batch)} == {np.dtype(np.int32)}
        wanted = empty_batch(len(batch.labels), Shape(*(x.ids.shape[1] for x in batch[:2])))
        for row, pairs in enumerate(pairs_in(batch)):
            ends = [0, 0]
            for segment, pair in enumerate(pairs, 1):
                lengths = options["corpora"][pair // A_CORPUS][pair % A_CORPUS]
                for side, length in enumerate(lengths):
                    place = np.s_[row, ends[side] : ends[side] + length]
                    sentence = [10 + pair] * (length - 1)
                    wanted[side].ids[place] = [BOS, *sentence] if side else [*sentence, EOS]
                    wanted[side].positions[place] = range(length)
                    wanted[side].segments[place] = segment
                    if side:
                        wanted.labels[place] = [*sentence, EOS]
                    ends[side] += length
        assert same(batch, wanted)


@property_test
@given(**SETTINGS)
def test_any_number_of_processes_sees_the_same_global_batches(make_batches, **options):
    batches = make_batches(**options)
    for step in range(0, steps_of(batches), 3):
        whole = leaves(batches.batch_at(step))
        for count in (2, 3, 8):
            parts = [leaves(batches.batch_at(step, index, count)) for index in range(count)]
            assert {len(x) for part in parts for x in part} == {-(-len(whole[0]) // count)}
            for wanted, *got in zip(whole, *parts):
                together = np.concatenate(got)
                assert np.array_equal(together[: len(wanted)], wanted)
                assert not together[len(wanted) :].any()


@property_test
@given(**SETTINGS, steps=st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_any_step_is_what_it_is_in_sequence(make_batches, steps, **options):
    """So that a run that resumes at a step goes on as if it had not stopped."""
    in_sequence, resumed = make_batches(**options), make_batches(**options)
    wanted = [in_sequence.batch_at(step) for step in range(max(steps) + 1)]
    assert all(same(resumed.batch_at(step), wanted[step]) for step in steps)


@property_test
@given(**SETTINGS)
def test_shapes_are_the_ones_foretold_and_hold_the_budget(make_batches, **options):
    batches, tokens = make_batches(**options), options["tokens"]
    seen = {
        (len(batch.labels), Shape(batch.source.ids.shape[1], batch.target.ids.shape[1]))
        for batch in map(batches.batch_at, range(steps_of(batches)))
    }
    assert seen == set(batches.shapes) and len(batches.shapes) == len(seen)
    assert len(seen) <= (1 if batches.packed else options["how"])
    for rows, shape in seen:
        assert rows == 1 or rows * max(shape) <= tokens
        if batches.packed:
            assert (rows + 1) * max(shape) > tokens
        else:
            assert rows < 8 or rows % 8 == 0
            assert (rows + (8 if rows >= 8 else 1)) * max(shape) > tokens


@property_test
@given(**SETTINGS)
def test_only_the_end_of_a_bucket_leaves_rows_empty_and_they_are_the_last(make_batches, **options):
    batches = make_batches(**options)
    short = collections.Counter()
    steps = steps_of(batches)
    for step in range(steps):
        rows = [bool(row) for row in pairs_in(batches.batch_at(step))]
        assert rows[0] and rows == sorted(rows, reverse=True)
        short[len(rows)] += not all(rows)
    epochs = sum(math.ceil(steps / x) for x in batches.steps_per_epoch)
    assert sum(short.values()) <= (0 if batches.packed else options["how"] * epochs)


@property_test
@given(
    corpora=st.lists(st.lists(PAIR, min_size=1, max_size=5), min_size=1, max_size=3),
    how=ROWS,
    tokens=st.integers(1, 60),
    weights=st.lists(st.integers(1, 2), min_size=3, max_size=3),
)
def test_steps_per_epoch_and_packing_efficiency_are_what_counting_gives(make_batches, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            MixtureSchedule, "MIN_TURNS", sum(options["weights"][: len(options["corpora"])])
        )
        batches = make_batches(seed=1, **options)
    # Until all corpora end an epoch together, and a batch as well.
    steps = math.lcm(*map(int, batches.epoch_sizes)) * batches.schedule.period
    real, places, pairs = np.zeros(2), np.zeros(2), collections.Counter()
    for step in range(steps):
        batch = batches.batch_at(step)
        real += [np.count_nonzero(side.segments) for side in batch[:2]]
        places += [side.segments.size for side in batch[:2]]
        pairs.update(pair // A_CORPUS for row in pairs_in(batch) for pair in row)
    np.testing.assert_allclose(batches.packing_efficiency(), real / places)
    epochs = [pairs[corpus] / len(lengths) for corpus, lengths in enumerate(options["corpora"])]
    np.testing.assert_allclose(batches.steps_per_epoch, steps / np.array(epochs))


@property_test
@given(corpora=CORPORA, how=ROWS, tokens=st.integers(1, 200))
def test_positions_per_epoch_are_those_of_the_longer_side_of_all_rows(
    make_batches, corpora, how, tokens
):
    batches = make_batches(corpora, how, 1, 0)  # a row is a batch
    places, left = 0, batches.epoch_sizes.copy()
    for batch in map(batches.batch_at, range(steps_of(batches))):
        corpus = pairs_in(batch)[0][0] // A_CORPUS
        if left[corpus]:
            left[corpus] -= 1
            places += max(batch.source.ids.size, batch.labels.size)
    assert not left.any() and batches.positions_per_epoch == places
    assert make_batches(corpora, how, tokens, 0).positions_per_epoch == places


LENGTHS = [(2 + i % 7, 2 + i % 5) for i in range(60)]


@pytest.mark.parametrize("how", [Shape(16, 0), 3], ids=["packed", "bucketed"])
def test_epochs_seeds_and_corpora_differ_and_each_is_shuffled(make_batches, how):
    def epochs(seed, corpora=1):
        batches = make_batches([LENGTHS] * corpora, how, 40, seed)
        drawn = draws(batches, steps_of(batches, 2))
        size = int(batches.epoch_sizes[0])
        return [
            [[pair % A_CORPUS for pair in draw] for draw in drawn[corpus][start : start + size]]
            for corpus in range(corpora)
            for start in (0, size)
        ]

    orders = [*epochs(0), *epochs(1), *epochs(0, corpora=2)[2:], epochs(None)[0]]
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    if how == 3:
        # Other companions, not the same batches in another order.
        companions = [{frozenset(batch) for batch in order} for order in orders]
        assert all(one != other for one, other in itertools.combinations(companions, 2))


def test_bucketed_batches_do_not_come_by_length(make_batches):
    batches = make_batches([LENGTHS], 3, 16, 0)
    widths = [batches.batch_at(i).source.ids.shape[1] for i in range(steps_of(batches) - 1)]
    assert widths != sorted(widths) and len(set(widths)) > 1


@pytest.mark.parametrize("how", [Shape(16, 0), 3], ids=["packed", "bucketed"])
def test_without_a_seed_the_order_is_fixed(make_batches, how):
    batches = make_batches([LENGTHS], how, 16, None)
    size = int(batches.epoch_sizes[0])
    drawn = draws(batches, steps_of(batches, 2))[0]
    assert drawn[:size] == drawn[size : 2 * size]


def test_without_a_seed_bucketed_batches_come_shortest_first(make_batches):
    batches = make_batches([LENGTHS], 3, 16, None)
    steps = int(batches.steps_per_epoch[0])
    widths = [batches.batch_at(i).source.ids.shape[1] for i in range(steps)]
    assert widths == sorted(widths) and len(set(widths)) > 1


def test_each_side_is_padded_to_its_own_longest(make_batches):
    """Five words to two: a decoder as long as the encoder would compute padding."""
    source, target, labels = make_batches([[(6, 3), (4, 2)]], 1, 64, 0).batch_at(0)
    assert source.ids.shape[1] == 6 and target.ids.shape[1] == labels.shape[1] == 3


@pytest.mark.parametrize("seed", range(5))
def test_packed_batches_cross_the_end_of_an_epoch(make_batches, seed):
    """Five rows in batches of three: the second batch begins the second epoch."""
    batches = make_batches([[(8, 8)] * 5], Shape(8, 8), 24, seed)
    rows = sum((pairs_in(batches.batch_at(step)) for step in range(5)), [])
    assert [len(row) for row in rows] == [1] * 15
    epochs = [sum(rows[start : start + 5], []) for start in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(5))] * 3


@pytest.mark.parametrize("how", [Shape(8, 8), 1], ids=["packed", "bucketed"])
@pytest.mark.parametrize("weights", [(1, 3), (10.0, 0.5), (2, 1, 5)])
def test_corpora_are_drawn_as_their_weights_say(make_batches, how, weights):
    """Whatever their sizes: in a whole block to a turn, and in each part of one nearly."""
    corpora = [[(8, 8)] * (1 + 20 * i) for i in range(len(weights))]
    batches = make_batches(corpora, how, 8, 0, weights)
    shares = np.array(weights) / sum(weights)
    np.testing.assert_allclose(batches.schedule.shares, shares, atol=1 / 1024)
    for steps in (100, 1024):
        drawn = draws(batches, steps)
        counts = np.array([len(drawn[corpus]) for corpus in range(len(weights))])
        np.testing.assert_allclose(counts, shares * steps, atol=2)


@pytest.mark.parametrize("how", [Shape(8, 8), 1], ids=["packed", "bucketed"])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0, 0.01, 0.001])
def test_without_weights_sizes_and_temperature_decide(make_batches, how, temperature):
    corpora = [[(8, 8)] * size for size in (90, 10, 1)]
    batches = make_batches(corpora, how, 8, 0, temperature=temperature)
    wanted = (np.array([90, 10, 1]) / 90) ** (1 / temperature)
    np.testing.assert_allclose(batches.schedule.shares, wanted / wanted.sum(), atol=1.5 / 1024)
    drawn = draws(batches, 1024)
    counts = np.array([len(drawn[corpus]) for corpus in range(3)])
    np.testing.assert_allclose(counts / 1024, batches.schedule.shares, atol=2 / 1024)


@pytest.mark.parametrize("how", [Shape(0, 0), 2], ids=["packed", "bucketed"])
def test_a_corpus_without_a_pair_is_an_error(make_batches, make_store, how):
    batches = make_batches([LENGTHS], how, 40, 0)
    with pytest.raises(ValueError, match="no pair is left"):
        Batches([*batches.stores, make_store([])], batches.rows * 2, tokens_per_batch=9, seed=0)


def test_millions_of_steps_are_read_as_quickly_as_the_first(make_batches):
    """Epochs are permuted without memory of their own, and numbers do not overflow."""
    batches = make_batches([LENGTHS, LENGTHS[:7]], Shape(16, 16), 64, 3)
    for step in (10**7, 2**40):
        assert all(pairs_in(batches.batch_at(step)))


def test_rows_of_a_large_store_are_read_one_by_one(make_store):
    """A batch touches its own pairs alone: the rest may be anything."""
    store = make_store([(3, 4)] * 50)
    pairs = np.full(50, 2**31, np.uint32)
    pairs[7] = 5
    row = Rows(Shape(3, 4), pairs, np.arange(51))
    batches = Batches([store], [[row]], tokens_per_batch=4, seed=None)
    assert pairs_in(batches.batch_at(7)) == [[5]]
    with pytest.raises(IndexError):
        batches.batch_at(8)


def test_pad_rows_takes_fewer_sentences_than_rows():
    tokens = pad_rows([[5, EOS], [6, 7, EOS]], 3, 4)
    assert tokens.ids.tolist() == [[5, EOS, 0, 0], [6, 7, EOS, 0], [0, 0, 0, 0]]
    assert tokens.segments.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert tokens.positions.tolist() == [[0, 1, 0, 0], [0, 1, 2, 0], [0, 0, 0, 0]]
    assert not any(x.any() for x in pad_rows([], 2, 3))
