"""Batches: every pair once an epoch, static shapes, pure in the step."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transformer_jax.data.batching import Batches, bucket_lengths, pad_rows
from transformer_jax.data.token_store import Side, TokenStore
from transformer_jax.data.vocabulary import BOS, EOS, PAD

property_test = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
LENGTHS = st.lists(st.tuples(st.integers(2, 12), st.integers(2, 12)), min_size=1, max_size=40)
SETTINGS = {
    "lengths": LENGTHS,
    "tokens": st.integers(1, 60),
    "buckets": st.integers(1, 5),
    "seed": st.none() | st.integers(0, 5),
}


def make_store(lengths) -> TokenStore:
    """Pair number i says 10 + i in all its tokens, so that it can be told in a batch."""

    def side(column: int) -> Side:
        sizes = [pair[column] for pair in lengths]
        ids = [[10 + i] * (n - 1) + [EOS] for i, n in enumerate(sizes)]
        return Side(np.array(sum(ids, []), np.uint16), np.concatenate([[0], np.cumsum(sizes)]))

    return TokenStore(side(0), side(1), {})


def make_batches(lengths, tokens, buckets, seed) -> Batches:
    return Batches(make_store(lengths), tokens_per_batch=tokens, num_buckets=buckets, seed=seed)


def pairs_in(batch) -> list[int]:
    return [int(row[0]) - 10 for row in batch.source.ids if row[0] != PAD]


def epoch_of(batches: Batches, number: int) -> list[list[int]]:
    steps = batches.batches_per_epoch
    return [pairs_in(batches.batch_at(number * steps + i)) for i in range(steps)]


def same(one, other) -> bool:
    return all(np.array_equal(x, y) for side, twin in zip(one, other) for x, y in zip(side, twin))


@property_test
@given(**SETTINGS)
def test_every_pair_is_in_each_epoch_exactly_once(lengths, tokens, buckets, seed):
    batches = make_batches(lengths, tokens, buckets, seed)
    for epoch in range(3):
        assert sorted(sum(epoch_of(batches, epoch), [])) == list(range(len(lengths)))


@property_test
@given(**SETTINGS)
def test_rows_hold_their_pair_whole_and_nothing_else(lengths, tokens, buckets, seed):
    batches = make_batches(lengths, tokens, buckets, seed)
    for step in range(batches.batches_per_epoch):
        source, target = batch = batches.batch_at(step)
        for row, pair in enumerate(pairs_in(batch)):
            for side, length in zip(batch, lengths[pair]):
                start = [BOS] if side is target else []
                sentence = [*start, *[10 + pair] * (length - 1), EOS]
                rest = side.ids.shape[1] - len(sentence)
                assert list(side.ids[row]) == sentence + [PAD] * rest
                assert list(side.segments[row]) == [1] * len(sentence) + [0] * rest
                assert list(side.positions[row]) == list(range(side.ids.shape[1]))
        for empty in range(len(pairs_in(batch)), len(source.ids)):
            assert not source.segments[empty].any() and not target.segments[empty].any()
        assert {x.dtype for side in batch for x in side} == {np.dtype(np.int32)}


@property_test
@given(**SETTINGS)
def test_shapes_are_few_and_hold_the_budget(lengths, tokens, buckets, seed):
    batches = make_batches(lengths, tokens, buckets, seed)
    shapes = set()
    for step in range(2 * batches.batches_per_epoch):
        source, target = batches.batch_at(step)
        rows = len(source.ids)
        length = max(source.ids.shape[1], target.ids.shape[1] - 1)
        assert len(target.ids) == rows
        assert rows == 1 or rows * length <= tokens
        assert rows < 8 or rows % 8 == 0
        assert (rows + (8 if rows >= 8 else 1)) * length > tokens
        shapes.add((source.ids.shape, target.ids.shape))
    assert len(shapes) <= buckets


def test_each_side_is_padded_to_its_own_longest():
    """Five words to two: a decoder as long as the encoder would compute padding."""
    source, target = make_batches([(6, 3), (4, 2)], 64, 1, 0).batch_at(0)
    assert source.ids.shape[1] == 6 and target.ids.shape[1] == 3 + 1


@property_test
@given(**SETTINGS, steps=st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_any_step_is_what_it_is_in_sequence(lengths, tokens, buckets, seed, steps):
    random_access = make_batches(lengths, tokens, buckets, seed)
    in_sequence = make_batches(lengths, tokens, buckets, seed)
    wanted = {}
    for step in range(max(steps) + 1):
        wanted[step] = in_sequence.batch_at(step)
    assert all(same(random_access.batch_at(step), wanted[step]) for step in steps)


def test_epochs_and_seeds_differ_and_each_is_shuffled():
    lengths = [(2 + i % 7, 2 + i % 5) for i in range(60)]
    first, second = (make_batches(lengths, 16, 3, seed) for seed in (0, 1))
    orders = [epoch_of(first, 0), epoch_of(first, 1), epoch_of(second, 0)]
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    # Other batches of other companions, not the same ones in another order.
    companions = [{frozenset(batch) for batch in order} for order in orders]
    assert companions[0] != companions[1]
    widths = [first.batch_at(i).source.ids.shape[1] for i in range(first.batches_per_epoch)]
    assert widths != sorted(widths)


def test_without_a_seed_the_order_is_fixed_and_shortest_first():
    lengths = [(2 + i % 7, 2 + i % 5) for i in range(60)]
    batches = make_batches(lengths, 16, 3, None)
    assert epoch_of(batches, 0) == epoch_of(batches, 1)
    widths = [batches.batch_at(i).source.ids.shape[1] for i in range(batches.batches_per_epoch)]
    assert widths == sorted(widths)


def test_an_empty_store_is_an_error():
    with pytest.raises(ValueError, match="no pair is left"):
        make_batches([], 10, 1, 0)


@property_test
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30), num_buckets=st.integers(1, 4))
def test_bucket_lengths_pad_least(lengths, num_buckets):
    def places(ends) -> int:
        return sum(min(end for end in ends if end >= length) for length in lengths)

    chosen = bucket_lengths(np.array(lengths), num_buckets)
    longest = max(lengths)
    best = min(
        places([*shorter, longest])
        for count in range(num_buckets)
        for shorter in itertools.combinations(range(1, longest), count)
    )
    assert chosen == sorted(set(chosen)) and chosen[-1] == longest and len(chosen) <= num_buckets
    assert places(chosen) == best


def test_pad_rows_takes_fewer_sentences_than_rows():
    tokens = pad_rows([[5, EOS], [6, 7, EOS]], 3, 4)
    assert tokens.ids.tolist() == [[5, EOS, 0, 0], [6, 7, EOS, 0], [0, 0, 0, 0]]
    assert tokens.segments.tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
