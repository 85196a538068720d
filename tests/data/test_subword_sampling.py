"""Sentences read anew: of seed, epoch, corpus, pair and side alone, within the room of rows."""

import collections
import math

import numpy as np
import pytest

from transformer_jax.data.batches import Batches
from transformer_jax.data.corpora import Pair, parse_corpora
from transformer_jax.data.packing import Growth, Shape, bucketed_rows, packed_rows
from transformer_jax.data.subword_sampling import Resampler
from transformer_jax.data.token_store import Filters, Side, TokenStore, open_store
from transformer_jax.data.vocabulary import BOS, UNK, Vocabulary

PAIRS = list(parse_corpora("numbers:valid", "en", "fr", max_pairs=120)[0])
ALPHAS = {"unigram": 0.05, "bpe": 0.3}
HOW = {"packed": Shape(0, 0), "tight": None, "bucketed": 3}


@pytest.fixture(scope="module", params=list(ALPHAS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def vocabulary(kind):
    return Vocabulary.train([PAIRS], 100, kind)


@pytest.fixture(scope="module")
def stores(kind, vocabulary, tmp_path_factory):
    """Two corpora, with unknown symbols in the second."""
    folder = tmp_path_factory.mktemp(kind)
    strange = [Pair(f"{source} 한", f"국 {target}") for source, target in PAIRS[80:]]
    result = []
    for name, pairs in {"a.tsv": PAIRS[:80], "b.tsv": [*strange[:10], *PAIRS[90:]]}.items():
        (folder / name).write_text("".join(f"{s}\t{t}\n" for s, t in pairs), "utf-8")
        (corpus,) = parse_corpora(f"tsv:{folder / name}", "en", "fr")
        result.append(open_store(corpus, vocabulary, Filters(500), folder / "cache"))
    return result


@pytest.fixture(scope="module")
def make(kind, vocabulary, stores, tmp_path_factory):
    cache = tmp_path_factory.mktemp(f"rows-{kind}")

    def make_batches(how, tokens=2000, seed=0, resampled=True) -> Batches:
        resampler = Resampler(vocabulary, ALPHAS[kind], seed)
        if how == "tight":  # rows that many samples have no room in
            longest = [max(int(x[i].lengths().max()) for x in stores) for i in (0, 1)]
            rows = packed_rows(stores, Shape(*longest), Growth(), cache)
        else:
            choose = bucketed_rows if how == "bucketed" else packed_rows
            rows = choose(stores, HOW[how], resampler.growth(stores), cache)
        return Batches(
            stores,
            rows,
            tokens_per_batch=tokens,
            seed=seed,
            resampler=resampler if resampled else None,
        )

    return make_batches


Seen = dict[tuple[str, str], list[tuple[tuple[int, ...], tuple[int, ...]]]]


def sentences_in(batch):
    """Source and target ids of each pair, with their end symbols."""
    for row in range(len(batch.labels)):
        for segment in range(1, batch.target.segments[row].max() + 1):
            own = [side.segments[row] == segment for side in batch[:2]]
            inputs = batch.target.ids[row][own[1]]
            labels = batch.labels[row][own[1]]
            assert inputs[0] == BOS and (inputs[1:] == labels[:-1]).all()
            for side, places in zip(batch[:2], own):
                assert side.positions[row][places].tolist() == list(range(places.sum()))
            yield tuple(batch.source.ids[row][own[0]].tolist()), tuple(labels.tolist())


def texts(vocabulary, pair) -> tuple[str, str]:
    return tuple(vocabulary.decode(ids) for ids in pair)


def read(batches, vocabulary, epochs=1, process_count=1) -> Seen:
    """By text, what was drawn for each epoch of a pair."""
    seen = collections.defaultdict(list)
    for step in range(math.ceil(epochs * max(batches.steps_per_epoch))):
        for index in range(process_count):
            for pair in sentences_in(batches.batch_at(step, index, process_count)):
                seen[texts(vocabulary, pair)].append(pair)
    return seen


@pytest.mark.parametrize("how", HOW)
def test_texts_stay_and_segmentations_do_not(make, vocabulary, stores, how):
    seen = read(make(how), vocabulary, epochs=2)
    stored = {
        texts(vocabulary, pair): pair
        for store in stores
        for pair in zip(
            *([tuple(side[i].tolist()) for i in range(len(store))] for side in store[:2])
        )
    }
    assert set(seen) == set(stored)
    drawn = [(pair, stored[text]) for text, pairs in seen.items() for pair in pairs]
    changed = [pair != kept for pair, kept in drawn]
    assert np.mean(changed) > (0 if how == "tight" else 0.5)
    for pair, kept in drawn:
        for ids, before in zip(pair, kept):
            assert ids.count(UNK) == before.count(UNK)


@pytest.mark.parametrize("how", ["packed", "bucketed"])
def test_what_is_drawn_depends_on_seed_epoch_and_pair_alone(make, vocabulary, how):
    """Not on the size of batches, who reads them, or what was read before."""
    wanted = read(make(how), vocabulary, epochs=2)
    other_size = read(make(how, tokens=700), vocabulary, epochs=2)
    many = read(make(how), vocabulary, epochs=2, process_count=3)
    for text, pairs in wanted.items():
        assert many[text] == pairs
        shared = min(len(pairs), len(other_size[text]))
        assert shared >= 1 and other_size[text][:shared] == pairs[:shared]
    batches, backwards = make(how), make(how)
    steps = range(6)
    in_order = [list(sentences_in(batches.batch_at(step))) for step in steps]
    assert [list(sentences_in(backwards.batch_at(step))) for step in reversed(steps)] == (
        in_order[::-1]
    )


def test_epochs_and_seeds_and_sides_draw_anew(make, vocabulary):
    first, other = (read(make("packed", seed=seed), vocabulary, epochs=3) for seed in (0, 1))
    again = [pairs[0] != pairs[1] for pairs in first.values()]
    assert np.mean(again) > 0.5
    differs = [first[text][0] != other[text][0] for text in first]
    assert np.mean(differs) > 0.5


def test_the_two_sides_of_a_pair_are_drawn_apart(vocabulary, kind):
    """A pair of equal sides, as names often are, must not look copied at each epoch."""
    ids = vocabulary.encode([PAIRS[0].source])[0]
    side = Side(np.array(ids, np.uint16), np.array([0, len(ids)]))
    store, resampler = TokenStore(side, side, {}, 1), Resampler(vocabulary, ALPHAS[kind], 0)
    one = np.ones(1, np.int64)
    drawn = [resampler(store, 0, one * epoch, one * 0, one, Shape(500, 500)) for epoch in range(20)]
    differ = [source.tolist() != target.tolist() for (source, _), (target, _) in drawn]
    assert np.mean(differ) > 0.5


def test_each_part_of_the_key_draws_anew(vocabulary, kind):
    """Of one text, which stands twice in a corpus of ten thousands."""
    texts = [" ".join([PAIRS[0].source] * 3)] * 2
    ids = np.array(vocabulary.encode(texts), np.uint16)
    side = Side(ids.reshape(-1), np.arange(3) * ids.shape[1])
    store = TokenStore(side, side, {}, 1)

    def drawn(seed, corpus, epoch, pair) -> list[int]:
        resampler = Resampler(vocabulary, ALPHAS[kind], seed)
        key = (np.array([x]) for x in (epoch, pair))
        return resampler(store, corpus, *key, np.ones(1, int), Shape(500, 500))[0][0].tolist()

    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    first, *others = [drawn(*key) for key in keys]
    assert first == drawn(*keys[0]) and first not in others
    assert len(set(map(tuple, others))) == len(others)


def row_of(stores, pairs) -> tuple[list[list[int]], list[list[int]]]:
    return tuple([side[pair].tolist() for pair in pairs] for side in stores[0][:2])


def split(ids, lengths) -> list[list[int]]:
    return [x.tolist() for x in np.split(ids, np.cumsum(lengths)[:-1])]


def test_what_a_row_has_no_room_for_stays_as_it_is_stored(vocabulary, stores, kind):
    resampler = Resampler(vocabulary, ALPHAS[kind], 0)
    pairs = np.arange(6)
    kept = row_of(stores, pairs)
    longest = tuple(int(1.2 * sum(map(len, side))) for side in kept)
    changed, stayed = 0, 0
    for epoch in range(20):
        epochs = np.full(6, epoch)

        def drawn(*room, epochs=epochs):
            sides = resampler(stores[0], 0, epochs, pairs, np.array([6]), Shape(*room))
            return [split(*side) for side in sides]

        free, tight = drawn(9999, 9999), drawn(*longest)
        for stored, wanted, got, room in zip(kept, free, tight, longest):
            assert sum(map(len, got)) <= room
            for before, drew, ids in zip(stored, wanted, got):
                assert ids in (before, drew)
                assert len(drew) > len(before) or ids == drew  # what is not longer has room
                changed += ids == drew != before
                stayed += ids == before != drew
    assert changed and stayed


@pytest.mark.parametrize("sizes", [[6], [1] * 6, [2, 4], [1, 3, 2]])
def test_each_row_has_its_own_room(vocabulary, stores, kind, sizes):
    resampler = Resampler(vocabulary, ALPHAS[kind], 0)
    pairs, epochs, counts = np.arange(6), np.array([0, 0, 1, 1, 0, 1]), np.array(sizes)
    room = Shape(*(max(map(len, side)) * max(sizes) for side in row_of(stores, pairs)))
    together = [split(*side) for side in resampler(stores[0], 0, epochs, pairs, counts, room)]
    ends = np.cumsum(counts)
    for end, count in zip(ends, counts):
        own = slice(end - count, end)
        alone = resampler(stores[0], 0, epochs[own], pairs[own], np.array([count]), room)
        for side, sentences in zip(alone, together):
            assert split(*side) == sentences[own]
            assert sum(map(len, sentences[own])) <= max(room)


def test_no_rows_are_nothing(vocabulary, stores):
    none = np.zeros(0, np.int64)
    for ids, lengths in Resampler(vocabulary, 0.1, 0)(stores[0], 0, none, none, none, Shape(9, 9)):
        assert ids.shape == lengths.shape == (0,) and ids.dtype == np.int32


def test_growth_is_what_samples_need_and_never_less_than_none(vocabulary, stores, kind):
    resampler = Resampler(vocabulary, ALPHAS[kind], 0)
    growth = resampler.growth(stores)
    assert growth == resampler.growth(stores)
    stored, drawn = np.zeros(2), np.zeros(2)
    for corpus, store in enumerate(stores):
        pairs = np.arange(len(store))
        sides = resampler(store, corpus, pairs * 0 + 5, pairs, np.ones_like(pairs), Shape(999, 999))
        drawn += [len(ids) for ids, _ in sides]
        stored += [side.ids.size for side in store[:2]]
    assert (drawn > 1.02 * stored).all()
    np.testing.assert_allclose(growth, 1.05 * drawn / stored, rtol=0.1)


def test_growth_of_what_cannot_grow_is_at_least_one(vocabulary):
    ids = np.array(vocabulary.encode(["한"])[0], np.uint16)
    side = Side(ids, np.array([0, len(ids)]))
    growth = Resampler(vocabulary, 0.1, 0).growth([TokenStore(side, side, {}, 1)])
    assert all(1 <= x < 1.1 for x in growth)


@pytest.mark.parametrize("how", ["packed", "bucketed"])
def test_the_room_for_growth_is_enough_for_nearly_all(make, vocabulary, stores, kind, how):
    """Else the sentences that grow most would never be seen but as they are stored."""
    batches, resampler = make(how), Resampler(vocabulary, ALPHAS[kind], 0)
    as_drawn = []
    for corpus, buckets in enumerate(batches.rows):
        for rows in filter(len, buckets):
            pairs = rows.pairs.astype(np.int64)
            counts = np.ones(len(pairs), int) if rows.starts is None else np.diff(rows.starts)
            asked = stores[corpus], corpus, np.full(len(pairs), 3), pairs, counts
            for got, free in zip(resampler(*asked, rows.shape), resampler(*asked, Shape(999, 999))):
                as_drawn += map(list.__eq__, split(*got), split(*free))
    assert np.mean(as_drawn) > (0.85 if how == "packed" else 0.6)
