"""Corpora as token ids: complete, counted, cached."""

import json
import pathlib
import unicodedata
import zlib

import numpy as np
import pytest

from transformer_jax.data import token_store
from transformer_jax.data.corpora import Corpus, Pair, parse_corpora
from transformer_jax.data.token_store import Filters, open_store
from transformer_jax.data.vocabulary import EOS, UNK, Vocabulary

ANY = Filters(max_length=1000)
WORDS = "ein kleiner Hund sieht eine große Katze im Garten und läuft weg".split()
PAIRS = [
    Pair(" ".join(WORDS[i % 5 :][: 2 + i % 6]), " ".join(WORDS[i % 3 :][: 3 + i % 7]))
    for i in range(300)
]


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([PAIRS], 60, "bpe")


@pytest.fixture
def corpus_of(tmp_path):
    """A corpus of these pairs, in a file."""

    def make(pairs, name="c.tsv", **options) -> Corpus:
        lines = (f"{source}\t{target}\n" for source, target in pairs)
        (tmp_path / name).write_text("".join(lines), "utf-8")
        return parse_corpora(f"tsv:{tmp_path / name}", "en", "de", **options)[0]

    return make


@pytest.fixture
def open_pairs(corpus_of, vocabulary, tmp_path):
    def open_(pairs, filters=ANY, **options):
        return open_store(corpus_of(pairs, **options), vocabulary, filters, tmp_path / "cache")

    return open_


def stores_in(cache: pathlib.Path) -> list[str]:
    """What a cache holds beside locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def sentences(store) -> list[tuple[list[int], list[int]]]:
    return [(store.source[i].tolist(), store.target[i].tolist()) for i in range(len(store))]


def test_tokens_are_those_of_the_vocabulary_in_order(open_pairs, vocabulary):
    store = open_pairs(PAIRS)
    assert sentences(store) == list(zip(*map(vocabulary.encode, zip(*PAIRS))))
    assert all(source[-1] == target[-1] == EOS for source, target in sentences(store))
    assert store.source.lengths().tolist() == [len(source) for source, _ in sentences(store)]
    assert store.target.lengths(3, 7).tolist() == [len(x) for _, x in sentences(store)[3:7]]
    assert store.target.lengths(298, 999).tolist() == [len(x) for _, x in sentences(store)[298:]]
    assert store.source.ids.dtype == np.uint16


def test_a_vocabulary_beyond_16_bits_is_kept_whole(corpus_of, tmp_path):
    words = [f"w{i}" for i in range(2**16)]
    pairs = [Pair(" ".join(words[i : i + 64]), words[i]) for i in range(0, 2**16, 64)]
    vocabulary = Vocabulary.train([pairs], 2**16 + 4, "symbols")
    store = open_store(corpus_of(pairs), vocabulary, ANY, tmp_path / "cache")
    assert store.source.ids.max() == 2**16 + 3
    assert vocabulary.decode(store.source[1023]) == pairs[1023].source


def test_what_is_left_out_is_counted_by_reason(open_pairs, vocabulary):
    empty = [Pair("", "eine"), Pair("Hund", " "), Pair(" \u3000", "Hund"), Pair("", "")]
    long = [Pair("Hund " * 50, "Hund " * 45), Pair("Hund " * 45, "Hund " * 50)]
    ratio = [Pair("Hund", "Hund " * 7), Pair("Hund " * 7, "Hund")]
    identical = [Pair("ein Hund", "ein Hund")] * 3
    good = [Pair("ein Hund", "eine Katze"), Pair("Hund Hund", "Hund")]
    longest = len(vocabulary.encode(["Hund " * 45])[0])
    filters = Filters(max_length=longest, max_ratio=2.5, drop_identical=True)
    store = open_pairs([*empty, good[0], *long, *ratio, *identical, good[1]], filters)
    assert [tuple(map(vocabulary.decode, x)) for x in sentences(store)] == good
    wanted = {"pairs": 13, "empty": 4, "too long": 2, "length ratio": 2, "identical": 3, "same": 4}
    assert {name: store.counts[name] for name in wanted} == wanted
    assert store.left_out == "4 empty, 2 too long, 2 length ratio, 3 identical"
    assert store.counts["source characters"] == len("ein Hund" + "Hund Hund")
    assert store.counts["target characters"] == len("eine Katze" + "Hund")


def test_pairs_that_are_the_same_are_kept_and_counted_unless_unwanted(open_pairs):
    store = open_pairs([Pair("Hund", "Hund"), Pair("Hund", "hund")])
    assert len(store) == 2 and store.counts["same"] == 1 and store.counts["identical"] == 0


def test_what_is_left_out_is_told_in_words(open_pairs):
    """The reasons that there are, and numbers that can be read."""
    good, same = Pair("Hund", "Katze"), Pair("Hund", "Hund")
    assert open_pairs([good, same]).left_out == "none"
    store = open_pairs([good, *[same] * 1234], Filters(1000, 0.0, drop_identical=True))
    assert store.left_out == "1,234 identical" and len(store) == 1


@pytest.mark.parametrize("drop", [False, True])
def test_a_tag_makes_no_difference_to_what_is_the_same(open_pairs, drop):
    """A source begins with the tag of its language; its text is what is compared."""
    same, others = Pair("Hund", "Hund"), [Pair("<2de> Hund", "Hund"), Pair("Hund", "<2de> Hund")]
    for tags in (False, True):
        filters = Filters(1000, 0.0, drop)
        store = open_pairs([same, *others, same], filters, language_tags=tags)
        assert len(store) == 4 - 2 * drop and store.counts["same"] == 2
        assert store.counts["identical"] == 2 * drop


def test_sources_without_text_are_empty_even_with_a_tag(open_pairs):
    store = open_pairs([Pair("", "Hund"), Pair(" ", "Hund"), Pair("Hund", "")], language_tags=True)
    assert len(store) == 0 and store.counts["empty"] == 3


def test_blanks_are_empty_even_where_they_have_tokens(corpus_of, tmp_path):
    pairs = [Pair(" ", "Hund"), Pair("Hund", "\u3000 "), Pair(" Hund", "Hund ")]
    vocabulary = Vocabulary.train([], 0, "bytes")
    assert len(vocabulary.encode([" "])[0]) == 2
    store = open_store(corpus_of(pairs), vocabulary, ANY, tmp_path / "cache")
    assert len(store) == 1 and store.counts["empty"] == 2


def test_limits_are_the_most_that_is_allowed(open_pairs, vocabulary):
    """Lengths count the end symbol."""
    long, short = (len(x) for x in vocabulary.encode_sources(["Hund " * 5, "Hund"]))
    pairs = [Pair("Hund " * 5, "Hund")]
    ratio = long / short
    assert len(open_pairs(pairs, Filters(long))) == 1
    assert open_pairs(pairs, Filters(long - 1)).counts["too long"] == 1
    assert len(open_pairs(pairs, Filters(long, ratio + 1e-9))) == 1
    assert open_pairs(pairs, Filters(long, ratio - 1e-9)).counts["length ratio"] == 1


def test_unknown_symbols_and_characters_are_counted_of_what_is_kept(open_pairs):
    store = open_pairs([Pair("Hund 한 국", "eine 한"), Pair("한", ""), Pair("Hund", "Katze")])
    assert store.counts["source unknown"] == (store.source.ids == UNK).sum() == 2
    assert store.counts["target unknown"] == 1
    assert store.counts["source characters"] == 8 + 4
    assert store.counts["target characters"] == 6 + 5


def test_targets_that_do_not_come_back_are_counted_with_what_they_lose(open_pairs):
    """Of what is kept; the vocabulary has neither bytes nor these characters."""
    lost = [Pair("Hund", "Hund 한한"), Pair("Hund", "국 Hund"), Pair("", "한")]
    store = open_pairs([*lost, Pair("  한\u00a0Hund ", "Hund  Katze ")])
    assert store.counts["altered"] == 2 and store.lost == {"한": 2, "국": 1}
    assert store.altered == "66.67% (lost: '한' 2, '국' 1)"
    assert open_pairs([Pair("Hund", "Katze")]).altered == "0.00%"


def test_composing_is_no_alteration(open_pairs):
    pairs = [Pair("Hund", "eine große Tür läuft")] * 2
    decomposed = [Pair(x, unicodedata.normalize("NFD", y)) for x, y in pairs]
    store = open_pairs(pairs), open_pairs(decomposed, name="decomposed.tsv")
    assert sentences(store[0]) == sentences(store[1]) and store[0].counts["altered"]
    pairs = [Pair("Hund", unicodedata.normalize("NFD", "läuft"))]
    assert open_pairs(pairs).counts["altered"] == 0


def test_a_store_is_the_same_whatever_is_noted_of_it(open_pairs, tmp_path):
    """A run goes on with the tokens that it began with."""
    store = open_pairs([Pair("Hund", "Hund 한")])
    (meta,) = (tmp_path / "cache").glob("tokens-*/meta.json")
    content = json.loads(meta.read_text())
    del content["crc32"]
    content["notes"] = {"altered": 0, "lost": {}}
    content["crc32"] = zlib.crc32(json.dumps(content).encode())
    meta.write_text(json.dumps(content))
    other = open_pairs([Pair("Hund", "Hund 한")])
    assert other.lost == {} != store.lost and other.fingerprint == store.fingerprint


def test_an_empty_corpus_is_an_empty_store(open_pairs):
    for store in (open_pairs([]), open_pairs([])):
        assert len(store) == 0 and store.source.lengths().tolist() == []
        assert set(store.counts.values()) == {0} and store.left_out == "none"


def test_chunks_make_no_difference(open_pairs, monkeypatch):
    """The end of one is the beginning of the next."""
    pairs = [*PAIRS, Pair("", "eine"), Pair("Hund " * 50, "Hund 한"), Pair("Hund", "Katze 한")]
    filters = Filters(max_length=50, drop_identical=True)
    whole = open_pairs(pairs, filters)
    for size in (1, 11, 303):
        monkeypatch.setattr(token_store, "CHUNK", size)
        chunked = open_pairs(pairs, filters, name=f"{size}.tsv", max_pairs=303)
        assert sentences(chunked) == sentences(whole)
        assert chunked.counts == whole.counts and chunked.lost == whole.lost


def test_a_second_open_reads_nothing_of_the_corpus(open_pairs, monkeypatch, caplog):
    first = open_pairs(PAIRS)
    monkeypatch.setattr(Corpus, "__iter__", None)
    second = open_pairs(PAIRS)
    assert sentences(second) == sentences(first)
    assert second.counts == first.counts and second.fingerprint == first.fingerprint
    assert isinstance(second.source.ids, np.memmap) and not caplog.records


def test_anything_else_that_tokens_depend_on_is_another_store(
    open_pairs, corpus_of, vocabulary, tmp_path
):
    cache = tmp_path / "cache"
    first = open_pairs(PAIRS)
    other = Vocabulary.train([PAIRS], 61, "bpe")
    for number, (changed, equal) in enumerate(
        [
            (lambda: open_pairs(PAIRS, Filters(1000, 3.0)), False),
            (lambda: open_pairs(PAIRS, Filters(999)), True),
            (lambda: open_pairs(PAIRS, Filters(1000, 0.0, True)), False),
            (lambda: open_pairs(PAIRS, max_pairs=299), False),
            (lambda: open_pairs([*PAIRS[:-1], Pair("ein", "eine")]), False),
            (lambda: open_pairs(PAIRS[::-1]), False),
            (lambda: open_pairs(PAIRS, language_tags=True), False),
            (lambda: open_store(corpus_of(PAIRS), other, ANY, cache), False),
        ],
        2,
    ):
        store = changed()
        assert len(stores_in(cache)) == number
        assert (store.fingerprint == first.fingerprint) == equal
    assert sentences(open_pairs(PAIRS, name="moved.tsv")) == sentences(first)
    assert len(stores_in(cache)) == number


def test_a_corpus_that_fails_midway_leaves_no_store(corpus_of, vocabulary, tmp_path):
    corpus, cache = corpus_of(PAIRS), tmp_path / "cache"
    with (tmp_path / "c.tsv").open("ab") as file:
        file.write(b"Hund\tK\xfftze\n")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"c\.tsv, line 301: not valid UTF-8"):
            open_store(corpus, vocabulary, ANY, cache)
        assert stores_in(cache) == []
    assert len(open_store(corpus_of(PAIRS), vocabulary, ANY, cache)) == 300


def test_a_corpus_that_changes_while_it_is_read_is_refused(
    corpus_of, vocabulary, tmp_path, monkeypatch
):
    """Else its tokens would be stored as those of what it was."""
    corpus, read = corpus_of(PAIRS), Corpus.__iter__

    def changed_midway(self):
        for number, pair in enumerate(read(self)):
            if number == 150:
                with (tmp_path / "c.tsv").open("a") as file:
                    file.write("Hund\tKatze\n")
            yield pair

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "__iter__", changed_midway)
        with pytest.raises(ValueError) as error:
            open_store(corpus, vocabulary, ANY, tmp_path / "cache")
    told = f"corpus tsv:{tmp_path / 'c.tsv'} has changed while it was read; start again"
    assert str(error.value) == told and stores_in(tmp_path / "cache") == []
    assert len(open_store(corpus, vocabulary, ANY, tmp_path / "cache")) == 301
