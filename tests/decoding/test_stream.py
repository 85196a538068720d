"""Lines in, lines out, with a translator that turns text into capitals."""

import io
import logging

import pytest

from transformer_jax.decoding import stream
from transformer_jax.decoding.stream import tagged, text_lines, translate_lines
from transformer_jax.decoding.translator import Hypothesis, Translation


class Capitals:
    """Notes what it is asked; texts longer than `max_length` are called truncated."""

    def __init__(self):
        self.calls = []

    def translate(self, lines, *, on_progress, n_best=1, max_length=100):
        self.calls.append(len(lines))
        on_progress(len(lines))
        return [
            Translation(
                [Hypothesis(line.upper(), 0.0 - n, 0.0 - 2 * n) for n in range(n_best)],
                len(line) > max_length,
            )
            for line in lines
        ]


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "transformer_jax")
    return lambda: [record.getMessage() for record in caplog.records]


def translated(lines, translator=None, **options) -> bytes:
    output = io.BytesIO()
    translate_lines(translator or Capitals(), lines, output, name="in.txt", **options)
    return output.getvalue()


def test_lines_lose_their_ends_and_nothing_else(warnings):
    content = b"one\n two \t\r\n\n\xc3\xbc\nlast"
    assert list(text_lines(io.BytesIO(content), "in")) == ["one", " two \t", "", "ü", "last"]
    assert warnings() == []


def test_invalid_utf8_is_replaced_and_told_with_its_line(warnings):
    assert list(text_lines([b"a\n", b"b\xffc\n", b"d\n"], "in.txt")) == ["a", "b�c", "d"]
    assert warnings() == ["in.txt, line 2: not valid UTF-8 (invalid start byte); replaced"]


def test_one_line_out_for_each_line_in_over_chunks(monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK", 3)
    translator = Capitals()
    lines = ["a", "", "c", "d", " ", "f", "ü"]
    assert translated(lines, translator) == "A\n\nC\nD\n \nF\nÜ\n".encode()
    assert translator.calls == [3, 3, 1]


def test_no_line_gives_nothing():
    assert translated([]) == b""


def test_a_translation_is_one_line_whatever_it_holds():
    assert translated(["a\nb\u2028c"]) == b"A B C\n"


def test_n_best_lists_follow_each_other_with_scores():
    assert translated(["a", "b"], n_best=2) == b"A\nA\nB\nB\n"
    scored = translated(["a", "b"], n_best=2, scores=True).splitlines()
    assert scored[:2] == [b"0.000000\t0.000000\tA", b"-1.000000\t-2.000000\tA"]
    assert len(scored) == 4


def test_a_cut_line_is_warned_of_by_its_number(monkeypatch, warnings):
    monkeypatch.setattr(stream, "_CHUNK", 2)
    translated(["a", "bbbb", "c", "dddd"], max_length=3)
    assert [told.partition(":")[0] for told in warnings()] == ["in.txt, line 2", "in.txt, line 4"]
    assert "longer than max_length" in warnings()[0]


def test_what_is_done_is_written_before_more_is_read(monkeypatch):
    monkeypatch.setattr(stream, "_CHUNK", 2)
    written = io.BytesIO()

    def lines():
        yield from ("a", "b")
        assert written.getvalue() == b"A\nB\n"
        yield "c"

    translate_lines(Capitals(), lines(), io.BufferedWriter(written), name="in.txt")


class Tags:
    """A vocabulary that knows two tags."""

    def has_piece(self, text: str) -> bool:
        return text in ("<2de>", "<2ko>")


def test_lines_with_text_get_the_tag_of_a_language(warnings):
    assert list(tagged(["one", " ", "", "two"], Tags(), "de", "in")) == [
        "<2de> one",
        " ",
        "",
        "<2de> two",
    ]
    assert warnings() == []


def test_lines_without_a_tag_are_warned_of_once(warnings):
    lines = ["<2ko> one", "", "two", "three"]
    assert list(tagged(lines, Tags(), "", "in.txt")) == lines
    assert warnings() == [
        "in.txt, line 3: no language tag, such as <2de>; --target_language adds it"
    ]


def test_a_language_that_was_not_trained_is_told():
    with pytest.raises(ValueError, match="not trained to translate into 'fr': no tag <2fr>"):
        tagged(["one"], Tags(), "fr", "in")
