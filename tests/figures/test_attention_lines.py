"""The page of a stream's first lines, with a translator that attends to whatever it is given."""

import logging
import os

import pytest
from attentions import attention_of

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Hypothesis
from transformer_jax.figures.attention_page import MAX_LINES, AttentionLines, check_page


class Attentive:
    """Of a model whose lines have 8 characters at most; a question mark breaks it."""

    def __init__(self):
        self.asked = []

    def check_attention(self):
        pass

    def attention(self, source, target, options):
        self.asked.append((source, target.text, options.max_length))
        if len(source) > 8:
            raise ValueError(f"{source!r} has more than max_length tokens")
        if "?" in source:
            raise RuntimeError("broken")
        return attention_of([f"\u2581{source}"], [f"\u2581{target.text}"])


@pytest.fixture
def translator():
    return Attentive()


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "transformer_jax")
    return lambda: [record.getMessage() for record in caplog.records]


def written(translator, lines: dict[int, str], path) -> str:
    page = AttentionLines(translator, name="in.txt", options=SearchOptions(max_length=7))
    for number, line in lines.items():
        page.add(number, line, Hypothesis(line.upper(), 0.0, 0.0))
    page.write(str(path), "Title")
    return path.read_text(encoding="utf-8")


def test_lines_are_shown_in_their_order(translator, tmp_path, warnings):
    page = written(translator, {3: "c", 1: "a", 2: " ", 4: ""}, tmp_path / "page.html")
    assert translator.asked == [("a", "A", 7), ("c", "C", 7)]
    assert page.index('"text": "a"') < page.index('"text": "c"')
    assert os.listdir(tmp_path) == ["page.html"] and warnings() == []


def test_lines_that_cannot_be_shown_are_told(translator, tmp_path, warnings):
    lines = {number: f"n{number}" for number in range(1, MAX_LINES + 3)} | {5: "x" * 9}
    page = written(translator, lines, tmp_path / "page.html")
    assert page.count('"text": ') == MAX_LINES - 1
    assert f'"n{MAX_LINES}"' in page and "n101" not in page and "xxx" not in page
    assert warnings() == [
        "in.txt: attention is shown of the first 100 lines",
        "in.txt, line 5: 'xxxxxxxxx' has more than max_length tokens; left out of the page of "
        "attention",
    ]


@pytest.mark.parametrize(("line", "error"), [("?", RuntimeError), ("x" * 9, ValueError)])
def test_a_page_that_cannot_be_made_leaves_the_old_one(translator, tmp_path, line, error):
    (tmp_path / "page.html").write_text("precious")
    with pytest.raises(error):
        written(translator, {1: line}, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "precious"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_link_stays_a_link(translator, tmp_path):
    (tmp_path / "link.html").symlink_to("page.html")
    assert written(translator, {1: "a"}, tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "page.html").is_file()


def test_where_no_page_can_be_is_told_at_once(tmp_path):
    (tmp_path / "in.txt").write_text("seven")
    (tmp_path / "other").hardlink_to(tmp_path / "in.txt")
    taken = {"input": str(tmp_path / "in.txt"), "output": str(tmp_path / "out.txt")}
    check_page(str(tmp_path / "page.html"), taken)
    check_page(str(tmp_path / "page.html"), {})
    for name, told in (
        ("in.txt", "in.txt is the input, and would be lost"),
        ("../" + tmp_path.name + "/out.txt", "out.txt is the output, and would be lost"),
        ("other", "other is the input, and would be lost"),
        ("", "is not a file"),
        ("nowhere/page.html", "page.html cannot be written: No such file or directory"),
        ("in.txt/page.html", "page.html cannot be written: Not a directory"),
    ):
        with pytest.raises(ValueError, match=f"--attention_html=.*{told}"):
            check_page(os.path.join(tmp_path, name), taken)
    with (
        open(tmp_path / "in.txt", "rb") as file,
        pytest.raises(ValueError, match="is the input, and would be lost"),
    ):
        check_page(str(tmp_path / "other"), {"input": file.fileno()})
    with pytest.raises(ValueError, match="is not a file"):
        check_page(os.devnull, taken)
    assert sorted(os.listdir(tmp_path)) == ["in.txt", "other"]
