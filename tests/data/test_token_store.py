"""Corpora as token ids: complete, counted, kept, the same however many processes."""

import collections
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from transformer_jax.data import token_store
from transformer_jax.data.corpora import Corpus, Pair, parse_corpora
from transformer_jax.data.token_store import Filters, open_store, tokenize
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


def test_many_processes_tokenise_as_one_does(corpus_of, vocabulary, monkeypatch):
    pairs = [*PAIRS, Pair("", "eine"), Pair("Hund " * 50, "Hund")]
    corpus, filters = corpus_of(pairs), Filters(max_length=50, drop_identical=True)
    (whole,) = tokenize(corpus, vocabulary, filters, processes=2)
    monkeypatch.setattr(token_store, "_CHUNK", 11)
    pools = []
    executor = token_store.concurrent.futures.ProcessPoolExecutor
    monkeypatch.setattr(
        token_store.concurrent.futures,
        "ProcessPoolExecutor",
        lambda *args: pools.append(executor(*args)) or pools[-1],
    )
    alone = list(tokenize(corpus, vocabulary, filters, processes=1))
    assert not pools
    parallel = list(tokenize(corpus, vocabulary, filters, processes=2))
    assert len(pools) == 1
    assert len(alone) == len(parallel) == -(-len(pairs) // 11)
    for chunks in (alone, parallel):
        assert sum((chunk.counts for chunk in chunks), collections.Counter()) == +whole.counts
        for side in (0, 1):
            ids, lengths = (np.concatenate([chunk[i][side] for chunk in chunks]) for i in (0, 1))
            assert np.array_equal(ids, whole.ids[side])
            assert np.array_equal(lengths, whole.lengths[side])


class Bomb(str):
    """Ends the process that it is sent to."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_corpus_of_few_chunks_starts_no_process(corpus_of, vocabulary, monkeypatch):
    """Starting them takes longer than it does."""
    monkeypatch.setattr(token_store, "_CHUNK", 75)
    monkeypatch.setattr(token_store.concurrent.futures, "ProcessPoolExecutor", None)
    assert len(list(tokenize(corpus_of(PAIRS), vocabulary, ANY, processes=2))) == 4
    monkeypatch.setattr(token_store, "_CHUNK", 30)
    with pytest.raises(TypeError):
        list(tokenize(corpus_of(PAIRS), vocabulary, ANY, processes=2))


def test_a_worker_that_dies_is_told_and_leaves_no_store(
    corpus_of, vocabulary, monkeypatch, tmp_path
):
    monkeypatch.setattr(token_store, "_CHUNK", 5)
    monkeypatch.setattr(token_store, "_cores", lambda: 2)
    corpus = corpus_of(PAIRS)
    monkeypatch.setattr(Corpus, "__iter__", lambda _: iter([*PAIRS, Pair(Bomb("Hund"), "Hund")]))
    with pytest.raises(ValueError, match="a process that tokenised has died"):
        open_store(corpus, vocabulary, ANY, tmp_path / "cache")
    assert stores_in(tmp_path / "cache") == []


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


@pytest.mark.parametrize("chunk", [5000, 20], ids=["alone", "in processes"])
def test_a_corpus_that_changes_while_it_is_read_is_told_and_not_kept(
    corpus_of, vocabulary, tmp_path, monkeypatch, chunk
):
    """Else its tokens would be kept as those of what it was."""
    monkeypatch.setattr(token_store, "_CHUNK", chunk)
    monkeypatch.setattr(token_store, "_cores", lambda: 2)
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


def test_a_corpus_that_fails_while_processes_work_ends_them(corpus_of, vocabulary, monkeypatch):
    monkeypatch.setattr(token_store, "_CHUNK", 5)
    corpus = corpus_of(PAIRS)
    with pathlib.Path(corpus.name.partition(":")[2]).open("ab") as file:
        file.write(b"no tab\n")
    with pytest.raises(ValueError, match="line 301: no tab"):
        list(tokenize(corpus, vocabulary, ANY, processes=2))
    assert not token_store.multiprocessing.active_children()


PARENT = """
import itertools, os, sys
from transformer_jax.data import token_store
from transformer_jax.data.corpora import Corpus, Pair
from transformer_jax.data.vocabulary import Vocabulary

class Endless(Corpus):
    def __iter__(self):
        return itertools.repeat(Pair("ein Hund", "eine Katze"))

if __name__ == "__main__":
    token_store._CHUNK = 5
    vocabulary = Vocabulary.train([], 0, "bytes")
    chunks = token_store.tokenize(Endless("", "", ""), vocabulary, token_store.Filters(9), 2)
    for number, chunk in enumerate(chunks):
        if number == 10:
            children = token_store.multiprocessing.active_children()
            print(*(child.pid for child in children), flush=True)
"""


def running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def knows_no_interrupts(pid: int) -> bool:
    """Whether all threads of a process block the signal."""
    masks = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            masks.append(int(re.search(r"SigBlk:\s*(\w+)", path.read_text())[1], 16))
    return bool(masks) and all(mask & 1 << signal.SIGINT - 1 for mask in masks)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(path: pathlib.Path, code: str, *arguments) -> subprocess.Popen:
    """A program of its own, and a group of processes of its own."""
    path.write_text(code)
    root = str(pathlib.Path(token_store.__file__).parents[2])
    return subprocess.Popen(
        [sys.executable, path, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
        start_new_session=True,
    )


def errors_of(process: subprocess.Popen) -> str:
    """Of a process, which must end."""
    try:
        return process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_workers_end_with_their_parent(tmp_path, how):
    """Ctrl-C reaches all of them, from their very start, and is answered by one traceback."""
    with run(tmp_path / "parent.py", PARENT) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        alive, deaf = list(map(running, workers)), list(map(knows_no_interrupts, workers))
        if how == "killed":
            parent.send_signal(signal.SIGKILL)
        else:
            os.killpg(parent.pid, signal.SIGINT)
        told = errors_of(parent)
    assert alive == deaf == [True, True]
    assert told.count("KeyboardInterrupt") == told.count("Traceback") == (how == "interrupted")
    wait_until(lambda: not any(map(running, workers)))


WITHOUT_GUARD = """
import pathlib, sys
from transformer_jax.data import corpora, token_store
from transformer_jax.data.vocabulary import Vocabulary

token_store._cores = lambda: 2
file, cache = sys.argv[1:]
(pairs,) = corpora.parse_corpora(f"tsv:{file}", "en", "de")
filters = token_store.Filters(100)
try:
    token_store.open_store(pairs, Vocabulary.train([], 0, "bytes"), filters, pathlib.Path(cache))
except ValueError as error:
    sys.exit(f"error: {error}")
"""


def test_a_program_without_a_guard_is_told_and_does_not_hang(tmp_path):
    """Its workers import it, and would each begin what it does."""
    (tmp_path / "c.tsv").write_text("ein Hund\teine Katze\n" * 30_001)
    cache = tmp_path / "cache"
    with run(tmp_path / "program.py", WITHOUT_GUARD, tmp_path / "c.tsv", cache) as program:
        errors = errors_of(program)
    assert program.returncode == 1 and "Traceback" not in errors
    told = (
        "error: a process that tokenised has died: for want of memory, or because the program that "
        'trains does so outside of `if __name__ == "__main__":`\n'
    )
    assert errors.endswith(told)
    # Before it, what the workers say, perhaps at once.
    of_a_worker = 'error: what is run stands outside of `if __name__ == "__main__":`'
    assert not errors.removesuffix(told).replace(of_a_worker, "").strip()
    assert stores_in(cache) == []
