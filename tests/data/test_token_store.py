"""Corpora as token ids."""

import numpy as np
import pytest

from transformer_jax.data import token_store
from transformer_jax.data.corpus import Pair, read_corpus
from transformer_jax.data.token_store import Side, TokenStore, tokenize
from transformer_jax.data.vocabulary import EOS, Vocabulary

PAIRS = list(read_corpus("numbers:valid", "en", "de", 300))


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train(PAIRS, 100, "bpe")


def test_the_store_holds_each_side_of_each_pair_in_order(vocabulary):
    store = tokenize(iter(PAIRS), vocabulary, 100)
    assert len(store) == 300 and store.left_out == {"empty": 0, "too long": 0}
    for i, pair in enumerate(PAIRS):
        assert vocabulary.decode(store.source[i]) == pair.source
        assert vocabulary.decode(store.target[i]) == pair.target
        assert store.source[i][-1] == store.target[i][-1] == EOS
    assert list(store.source.lengths) == [len(store.source[i]) for i in range(300)]


def test_what_is_left_out_is_counted_by_reason(vocabulary):
    empty = [Pair("", "eins"), Pair("one", " \t"), Pair("", "")]
    longest = max(len(ids) for ids in vocabulary.encode([side for p in PAIRS for side in p]))
    long = [Pair("one " * 50, "eins"), Pair("one", "eins " * 50)]
    store = tokenize([*empty, *PAIRS[:5], *long, *PAIRS[5:]], vocabulary, longest)
    assert len(store) == 300 and store.left_out == {"empty": 3, "too long": 2}
    assert store.fingerprint() == tokenize(PAIRS, vocabulary, longest).fingerprint()


def test_max_length_counts_the_end_symbol(vocabulary):
    pair = Pair("one", "one")
    length = len(vocabulary.encode(["one"])[0])
    assert len(tokenize([pair], vocabulary, length)) == 1
    assert tokenize([pair], vocabulary, length - 1).left_out["too long"] == 1


def test_an_empty_corpus_is_an_empty_store(vocabulary):
    store = tokenize([], vocabulary, 10)
    assert len(store) == 0 and list(store.source.lengths) == []


def test_chunks_do_not_show(vocabulary, monkeypatch):
    whole = tokenize(PAIRS[:20], vocabulary, 100)
    monkeypatch.setattr(token_store, "_CHUNK", 7)
    chunked = tokenize(PAIRS[:20], vocabulary, 100)
    assert chunked.fingerprint() == whole.fingerprint()
    assert chunked.source.ids.dtype == np.uint16


def test_the_fingerprint_tells_content_order_and_boundaries(vocabulary):
    first = tokenize(PAIRS, vocabulary, 100).fingerprint()
    assert first == tokenize(PAIRS, vocabulary, 100).fingerprint()
    others = [PAIRS[1:], PAIRS[::-1], [Pair(t, s) for s, t in PAIRS]]
    assert first not in {tokenize(pairs, vocabulary, 100).fingerprint() for pairs in others}
    sides = [Side(np.array([5, 6, EOS]), np.array([0, cut, 3])) for cut in (1, 2)]
    same = Side(np.array([5, EOS]), np.array([0, 1, 2]))
    stores = [TokenStore(side, same, {}) for side in sides]
    assert stores[0].fingerprint() != stores[1].fingerprint()
