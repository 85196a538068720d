"""Lines in, lines out, with a translator that turns text into capitals."""

import gzip
import io
import json
import logging
import lzma
import os
import pathlib
import threading
import time
import tracemalloc
import types

import numpy as np
import pytest

from transformer_jax.data.corpora import Pair
from transformer_jax.data.text_files import open_text
from transformer_jax.data.vocabulary import EOS, UNK
from transformer_jax.decoding import streaming
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.streaming import (
    Line,
    Writer,
    arriving,
    numbered,
    score_lines,
    translate_lines,
    with_prefixes,
    with_tag,
    with_targets,
)
from transformer_jax.decoding.translator import Hypothesis, Score, Translation


class Tags:
    """A vocabulary that knows two tags, and characters but for x; or symbols."""

    def __init__(self, symbols=False):
        self.symbols = symbols

    def encode(self, texts):
        pieces = [[text] if self.symbols else text for text in texts]
        space = [] if self.symbols else [4]
        return [space + [UNK if "x" in p else 5 for p in each] + [EOS] for each in pieces]

    def source_text(self, text: str) -> str:
        return text

    def has_piece(self, text: str) -> bool:
        return text in ("<2de>", "<2ko>")

    def pieces(self, ids):
        return [chr(i) for i in ids]


class Capitals:
    """Answers the last line of a group first; texts longer than `max_length` are truncated.

    Prefixes with a 9 cannot be, lines with a 3 have 3 hypotheses at most, and an x is unknown.
    """

    def __init__(self, symbols=False, tags=False):
        self.asked, self.vocabulary = [], Tags(symbols)
        data = types.SimpleNamespace(language_tags=tags)
        self.config = types.SimpleNamespace(data=data)

    def resolved(self, options=None):
        return options or SearchOptions()

    def stream(self, lines, options, *, prefixes, on_progress, start):
        self.asked.append(lines)
        for id, line, prefix in reversed(list(zip(range(start, 99), lines, prefixes))):
            bad = "9" in prefix
            text = "" if bad else prefix + line.upper()
            hypotheses = [
                Hypothesis(text, 0.0 - n, 0.0 - 2 * n, tuple(map(ord, text)))
                for n in range(min(options.n_best, 3) if "3" in line else options.n_best)
            ]
            truncated = len(line) > (options.max_length or 100)
            error = f"no prefix {prefix!r}" if bad else ""
            on_progress(1)
            yield id, Translation(hypotheses, truncated, line.count("x"), error)

    def score(self, pairs, options=None):
        longest = self.resolved(options).max_length or 100
        return [
            Score(["a", "<eos>"], [-1.0, -0.5], -1.5, len(s) > longest, f"{s}{t}".count("x"))
            for s, t in pairs
        ]

    def align(self, sources, targets, options=None, *, layer=None):
        return [
            Alignment([s], [str(layer)], np.float32([[1.0]]), [(0, 0)])
            for s, _ in zip(sources, targets, strict=True)
        ]


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "transformer_jax")
    return lambda: [record.getMessage() for record in caplog.records]


def lines_of(*groups):
    """Groups of texts as numbered lines."""
    return numbered(([text.encode() for text in group] for group in groups), "in.txt")


def translated(
    *groups, translator=None, as_json=False, scores=False, n_best=1, prefixes="", max_length=100,
    **options,
) -> bytes:  # fmt: skip
    output, translator = io.BytesIO(), translator or Capitals()
    writer = Writer(output, translator.vocabulary, as_json=as_json, scores=scores)
    search = SearchOptions(n_best=n_best, max_length=max_length)
    lines = with_prefixes(lines_of(*groups), prefixes, "in.txt")
    translate_lines(translator, lines, writer, search, name="in.txt", **options)
    return output.getvalue()


def scored(*groups, translator=None, as_json=False, max_length=100, **options) -> list[str]:
    output, translator = io.BytesIO(), translator or Capitals()
    writer = Writer(output, translator.vocabulary, as_json=as_json)
    search, lines = SearchOptions(max_length=max_length), with_targets(lines_of(*groups))
    score_lines(translator, lines, writer, search, name="in.txt", **options)
    return output.getvalue().decode().splitlines()


def texts(*lines: bytes) -> list[str]:
    return [line.source for group in numbered([lines], "in.txt") for line in group]


@pytest.fixture
def pipe():
    """A pipe's end to read from, and one to write to."""
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "wb", buffering=0) as writer:
        yield reader, writer


def test_lines_of_a_file_lose_their_ends_and_nothing_else(tmp_path, warnings):
    (tmp_path / "in").write_bytes(b"one\n two \t\r\n\n\xc3\xbc\nlast")
    with open(tmp_path / "in", "rb") as file:
        (group,) = arriving(file, "in")
    assert texts(*group) == ["one", " two \t", "", "ü", "last"]
    assert warnings() == []


@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\n", b"a\n\n"])
def test_as_many_lines_as_there_are_ends_and_rests(tmp_path, content):
    (tmp_path / "in").write_bytes(content)
    with open(tmp_path / "in", "rb") as file:
        lines = [line for group in arriving(file, "in") for line in group]
    assert lines == content.splitlines()


def test_a_long_file_comes_in_groups(tmp_path):
    lines = [b"%d" % number for number in range(100_000)]
    (tmp_path / "in").write_bytes(b"\n".join(lines))
    with open(tmp_path / "in", "rb") as file:
        groups = list(arriving(file, "in", max_group=1000))
    assert [line for group in groups for line in group] == lines
    # As many more as one read brings.
    assert all(1000 <= len(group) < 1000 + 2**16 for group in groups[:-1])


def test_a_line_of_a_million_characters_is_one_line(tmp_path):
    (tmp_path / "in").write_bytes(b"a" * 1_000_000 + b"\nb\n")
    with open(tmp_path / "in", "rb") as file:
        assert [line for group in arriving(file, "in") for line in group] == [
            b"a" * 1_000_000,
            b"b",
        ]


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_no_more_of_a_long_line_is_held_than_is_read(tmp_path, warnings, suffix):
    path = str(tmp_path / f"in{suffix}")
    lines = ["a" * 99, "b" * 100, "", "\u00fc" * 200_000, "c" * 101, "d" * 50_000]
    with (lzma.open if suffix else open)(path, "wb") as file:
        file.write("\n".join(lines).encode())
    with open_text(path) as file:
        groups = list(arriving(file, path, max_group=2, max_line=99))
    # What one read brings is not cut yet, of what is not compressed.
    assert all(len(line) <= 100 + 2**16 for group in groups for line in group)
    sources = [line.source for group in numbered(groups, "in", max_line=99) for line in group]
    assert sources == ["a" * 99, "b" * 99, "", "\u00fc" * 49, "c" * 99, "d" * 99]
    assert warnings() == [
        f"in, line {number}: longer than 99 bytes; its end was not read" for number in (2, 4, 5, 6)
    ]


@pytest.mark.parametrize("suffix", ["", ".xz"])
def test_long_lines_come_in_groups_of_a_few(tmp_path, suffix):
    path = str(tmp_path / f"in{suffix}")
    with (lzma.open if suffix else open)(path, "wb") as file:
        file.write((b"a" * 999_999 + b"\n") * 10)
    with open_text(path) as file:
        sizes = [len(group) for group in arriving(file, path)]
    assert sum(sizes) == 10 and max(sizes) <= 5


def test_a_line_without_an_end_is_not_held(pipe):
    """As of cat /dev/zero."""
    reader, writer = pipe

    def write():
        for _ in range(300):
            writer.write(bytes(100_000))
        writer.write(b"\nb\n")
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    tracemalloc.start()
    lines = [line for group in arriving(reader, "in", max_line=1000) for line in group]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    thread.join()
    assert lines == [bytes(1001), b"b"] and peak < 2_000_000


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_a_compressed_file_comes_in_groups_and_damage_is_told(tmp_path, suffix, opener):
    lines = [b"%d" % (number * number) for number in range(20_000)]
    path = str(tmp_path / f"in{suffix}")
    with opener(path, "wb") as file:
        file.write(b"\xef\xbb\xbf" + b"\r\n".join(lines))
    with open_text(path) as file:
        groups = list(arriving(file, path, max_group=1000))
    assert {len(group) for group in groups} == {1000}
    assert texts(*[line for group in groups for line in group]) == [x.decode() for x in lines]
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[:-2000])
    groups = []
    with open_text(path) as file, pytest.raises(ValueError, match=r" is damaged after line \d{4}"):
        groups.extend(arriving(file, path, max_group=1000))
    # All lines before the damage are answered.
    whole = sum(map(len, groups))
    assert whole % 1000 and texts(*sum(groups, [])) == [x.decode() for x in lines[:whole]]


def test_a_pipe_is_not_waited_for_once_a_line_is_there(pipe):
    reader, writer = pipe
    groups = arriving(reader, "in")
    writer.write(b"one\ntwo\nhal")
    assert next(groups) == [b"one", b"two"]
    writer.write(b"f\n")
    assert next(groups) == [b"half"]
    writer.write(b"rest")
    writer.close()
    assert list(groups) == [[b"rest"]]


def test_a_pipe_that_never_rests_is_answered_all_the_same(pipe):
    reader, writer = pipe
    stopping = threading.Event()

    def write():
        while not stopping.is_set():
            writer.write(b"line\n")
            time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    group = next(arriving(reader, "in"))
    stopping.set()
    thread.join()
    assert 1 < len(group) < streaming.MAX_GROUP and set(group) == {b"line"}


def test_invalid_utf8_is_replaced_and_told_with_its_line(warnings):
    assert texts(b"a", b"b\xffc", b"d") == ["a", "b\ufffdc", "d"]
    assert warnings() == ["in.txt, line 2: not valid UTF-8 (invalid start byte); replaced"]


def test_other_encodings_and_nuls_are_told_as_invalid_utf8_is(warnings):
    assert texts(b"ab\0cd", b"\0b\0\r", b"c") == ["ab\ufffdcd", "\ufffdb\ufffd", "c"]
    assert texts(*"hé\nb".encode("utf-16").split(b"\n"))[1] == "\ufffdb\ufffd"
    assert warnings() == [
        "in.txt, line 1: not valid UTF-8 (NUL character); replaced",
        "in.txt, line 2: not valid UTF-8 (NUL character; UTF-16?); replaced",
        "in.txt, line 1: not valid UTF-8 (invalid start byte; UTF-16?); replaced",
        "in.txt, line 2: not valid UTF-8 (NUL character; UTF-16?); replaced",
    ]


def test_a_byte_order_mark_is_no_text_at_the_beginning_alone(warnings):
    assert texts(b"\xef\xbb\xbfa", b"\xef\xbb\xbfb") == ["a", "\ufeffb"]
    assert warnings() == []


def test_one_line_out_for_each_line_in_over_groups():
    translator = Capitals()
    groups = ["a", "", "c"], ["d", " ", "f"], ["ü"]
    assert translated(*groups, translator=translator) == "A\n\nC\nD\n \nF\nÜ\n".encode()
    assert translator.asked == list(map(list, groups))


def test_no_line_gives_nothing():
    assert translated() == b""


def test_a_translation_is_one_line_whatever_it_holds():
    assert translated(["a\nb\u2028c"]) == b"A B C\n"


def test_n_best_lists_follow_each_other_with_scores():
    assert translated(["a", "b"], n_best=2) == b"A\nA\nB\nB\n"
    scored = translated(["a", "b"], n_best=2, scores=True).splitlines()
    assert scored[:2] == [b"0.000000\t0.000000\tA", b"-1.000000\t-2.000000\tA"]
    assert len(scored) == 4


@pytest.mark.parametrize(
    ("options", "missing"),
    [({}, ""), ({"scores": True}, "-inf\t-inf\t"), ({"align": {}}, " ||| ")],
)
def test_n_best_lists_are_as_long_as_asked_for(options, missing):
    lines = translated(["a", "3"], ["b"], n_best=4, **options).decode().splitlines()
    assert len(lines) == 12 and lines[7] == missing
    assert [i for i, line in enumerate(lines) if line == missing] == [7]
    read = translated(["3"], n_best=4, as_json=True)
    assert len(json.loads(read)["hypotheses"]) == 3


def test_json_has_everything_of_a_line():
    lines = translated(["a", "ü"], n_best=2, as_json=True, align={"layer": 3}).splitlines()
    assert len(lines) == 2 and "Ü".encode() in lines[1]
    assert json.loads(lines[0]) == {
        "source": "a",
        "truncated": False,
        "unknown": 0,
        "hypotheses": [
            {
                "text": "A",
                "score": 0.0 - n,
                "log_prob": 0.0 - 2 * n,
                "tokens": ["A"],
                "alignment": {
                    "source_words": ["a"],
                    "target_words": ["3"],
                    "weights": [[1.0]],
                    "links": [[0, 0]],
                },
            }
            for n in range(2)
        ],
    }
    assert "alignment" not in json.loads(translated(["a"], as_json=True))["hypotheses"][0]


def test_alignments_follow_each_translation():
    lines = translated(["a", "b"], ["c"], n_best=2, align={}).decode().splitlines()
    assert lines == [f"{letter} ||| 0-0" for letter in "AABBCC"]


def test_prefixes_go_with_their_lines_over_groups(warnings):
    assert translated(["a", "b"], ["c"], prefixes=iter("xyz")) == b"xA\nyB\nzC\n"
    assert warnings() == []
    assert translated(["a"], prefixes=iter("xy")) == b"xA\n"
    assert warnings() == ["there are more prefixes than lines: 1 were used"]


def test_lines_before_a_damaged_prefix_are_answered():
    def prefixes():
        yield from "xy"
        raise ValueError("damaged after line 2")

    groups = with_prefixes(lines_of(["a", "b", "c"]), prefixes(), "in.txt")
    assert [line.prefix for line in next(groups)] == ["x", "y"]
    with pytest.raises(ValueError, match="damaged after line 2"):
        next(groups)


def test_a_bad_prefix_harms_its_own_line_alone(warnings):
    assert translated(["a", "b", "c"], prefixes=iter("x9z")) == b"xA\n\nzC\n"
    assert warnings() == ["in.txt, line 2: no prefix '9'; left out"]
    assert translated(["a", "b"], prefixes=iter("9x"), n_best=2) == b"\n\nxB\nxB\n"
    aligned = translated(["a", "b"], prefixes=iter("x9"), align={}, as_json=True).splitlines()
    errors = {json.loads(line)["source"]: json.loads(line).get("error") for line in aligned}
    assert errors == {"a": None, "b": "no prefix '9'"}


def test_one_prefix_is_of_all_lines_over_groups(warnings):
    assert translated(["a", "b"], ["c"], prefixes="x") == b"xA\nxB\nxC\n"
    assert warnings() == []


def test_lines_before_one_without_a_prefix_are_written():
    output, lines = io.BytesIO(), with_prefixes(lines_of(["a", "b", "c"]), iter("xy"), "in.txt")
    with pytest.raises(ValueError, match="there is no prefix for in.txt, line 3"):
        translate_lines(Capitals(), lines, Writer(output, Tags()), name="in.txt")
    assert output.getvalue() == b"xA\nyB\n"


def test_a_cut_line_is_warned_of_by_its_number(warnings):
    translated(["a", "bbbb"], ["c", "dddd"], max_length=3)
    assert [told.partition(":")[0] for told in warnings()] == ["in.txt, line 2", "in.txt, line 4"]
    assert "longer than max_length" in warnings()[0]


def test_what_is_done_is_written_before_more_is_read():
    written = io.BytesIO()

    def groups():
        yield [b"a", b"b"]
        assert written.getvalue() == b"A\nB\n"
        yield [b"c"]

    writer = Writer(io.BufferedWriter(written), Tags())
    translate_lines(Capitals(), numbered(groups(), "in.txt"), writer, name="in.txt")


def test_what_is_due_is_written_while_the_rest_is_translated():
    written = io.BytesIO()

    class InOrder(Capitals):
        def stream(self, lines, *args, **options):
            found = dict(super().stream(lines, *args, **options))
            for id in (2, 1, 3):
                yield id, found[id]
                seen.append(written.getvalue())

    seen: list[bytes] = []
    writer = Writer(io.BufferedWriter(written), Tags())
    translate_lines(InOrder(), [*lines_of(["a", "b", "c"])], writer, name="in.txt")
    assert seen[:2] == [b"", b"A\nB\n"] and written.getvalue() == b"A\nB\nC\n"


def test_pairs_are_scored_in_order(warnings):
    assert (
        scored(["a\tb", "aaaa\tb\tc"], ["d\t"], max_length=3)
        == ["-1.500000\t-1.000000 -0.500000"] * 3
    )
    assert [told.partition(":")[0] for told in warnings()] == ["in.txt, line 2"]
    (line,) = map(json.loads, scored(["a\tb"], as_json=True, align={}))
    assert line["source"] == "a" and line["target"] == "b" and line["log_prob"] == -1.5
    assert line["log_probs"] == [-1.0, -0.5] and line["alignment"]["links"] == [[0, 0]]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_without_a_tab_harms_no_other(warnings, as_json):
    lines = scored(["a\tb"], ["c\td", "e", "f\tg"], as_json=as_json, align={})
    assert len(lines) == 4 and len({lines[0], lines[1], lines[3]}) == (3 if as_json else 1)
    error = "no tab between source and target"
    assert (json.loads(lines[2]) if as_json else lines[2]) == (
        {"source": "e", "error": error} if as_json else ""
    )
    assert warnings() == [f"in.txt, line 3: {error}; left out"]


def test_a_corpus_is_lines_in_groups(monkeypatch):
    monkeypatch.setattr(streaming, "MAX_GROUP", 2)
    groups = list(streaming.of_pairs(Pair(letter, letter.upper()) for letter in "abc"))
    assert groups == [[Line(1, "a", "A"), Line(2, "b", "B")], [Line(3, "c", "C")]]


@pytest.mark.parametrize(("symbols", "told"), [(False, "'x'"), (True, "'bxx', 'yx'")])
def test_what_the_vocabulary_does_not_know_is_counted_and_told_once(warnings, symbols, told):
    groups = ["a"], ["c", "bxx 5 yx bxx", "x"], ["x"]
    lines = translated(*groups, as_json=True, translator=Capitals(symbols)).splitlines()
    assert [json.loads(line)["unknown"] for line in lines] == [0, 0, 5, 1, 1]
    pairs = ["a\tb"], ["bxx\tyx", "x\tx"]
    lines = scored(*pairs, as_json=True, translator=Capitals(symbols))
    assert [json.loads(line)["unknown"] for line in lines] == [0, 3, 2]
    assert warnings() == [
        f"in.txt, line {line}: the vocabulary does not know {told}, read as unknown; further lines "
        "are not reported"
        for line in (3, 2)
    ]


def test_lines_with_text_get_the_tag_of_a_language(warnings):
    ((*lines,),) = with_tag(lines_of(["one", " ", "", "two"]), "de", Tags())
    assert [line.source for line in lines] == ["<2de> one", " ", "", "<2de> two"]
    translator = Capitals(tags=True)
    translate_lines(translator, [lines], Writer(io.BytesIO(), Tags()), name="in.txt")
    assert warnings() == []
    with pytest.raises(ValueError, match="not trained to translate into 'fr': no tag <2fr>"):
        with_tag([], "fr", Tags())


def test_lines_without_a_tag_are_warned_of_once(warnings):
    lines = ["<2ko> one", "", "two", "three"]
    translated(lines)
    assert warnings() == []
    translated(lines, translator=Capitals(tags=True))
    assert warnings() == [
        "in.txt, line 3: no language tag, such as <2de>; --target_language adds it"
    ]


def test_alignments_are_those_of_their_own_hypotheses():
    class Told(Capitals):
        def stream(self, lines, *args, **options):
            for id, each in super().stream(lines, *args, **options):
                named = [h._replace(text=f"{h.text}{n}") for n, h in enumerate(each.hypotheses)]
                yield id, each._replace(hypotheses=named)

        def align(self, sources, targets, options):
            return [
                Alignment([s], [t.text], np.float32([[1.0]]), [(ord(t.text[0]), int(t.text[1]))])
                for s, t in zip(sources, targets, strict=True)
            ]

    lines = translated(["a", "b"], ["c"], translator=Told(), n_best=2, align={})
    assert lines.decode().splitlines() == [
        f"{c}{n} ||| {ord(c)}-{n}" for c in "ABC" for n in range(2)
    ]


def test_the_best_translations_are_given_to_a_page_of_attention():
    class Page:
        lines: dict[int, tuple[str, str, float]] = {}

        def add(self, number, source, hypothesis):
            self.lines[number] = source, hypothesis.text, hypothesis.score

    translated(["a", "b"], ["c", "d"], attention=Page(), n_best=2, prefixes=iter(["", "", "", "9"]))
    # Of what was left out there is nothing to see.
    assert Page.lines == {1: ("a", "A", 0.0), 2: ("b", "B", 0.0), 3: ("c", "C", 0.0)}
