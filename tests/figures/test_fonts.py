"""Fonts by characters, with a font made for the test."""

import logging

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from transformer_jax.figures.fonts import Figure, families

HANGUL = "\uac00\ub098"


@pytest.fixture
def only_dejavu(monkeypatch):
    """Of all fonts, those that matplotlib brings with it and that have no Hangul."""
    entries = [e for e in font_manager.fontManager.ttflist if e.name.startswith("DejaVu Sans")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])


def _font(path, family: str, characters: str) -> str:
    """A font file in which each of these characters is a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 500), (500, 500), (500, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(c):X}" for c in characters)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return str(path)


def _drawn(text: str) -> bytes:
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.1, text, fontfamily=families([text]))
    return figure._repr_png_()


def test_what_the_usual_fonts_have_needs_no_other(only_dejavu, caplog):
    assert families(["two", "zw\u00f6lf", "\u0438", "\u05d4", "\n \u200f"]) == families([])
    assert not caplog.records


def test_a_font_installed_since_is_found_and_drawn_with(only_dejavu, tmp_path, monkeypatch, caplog):
    without = _drawn(HANGUL)
    caplog.clear()
    paths = [_font(tmp_path / "one.ttf", "One Letter", HANGUL[0])]
    paths += [_font(tmp_path / "hangul.ttf", "All Letters", HANGUL)]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    paths += [str(tmp_path / "broken.ttf")]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    assert families([f"two {HANGUL}"])[-1:] == ["All Letters"]
    assert _drawn(HANGUL) != without
    assert not caplog.records


def test_fonts_supplement_each_other(only_dejavu, tmp_path, monkeypatch):
    paths = [_font(tmp_path / f"{n}.ttf", f"Letter {n}", c) for n, c in enumerate(HANGUL)]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    assert set(families([HANGUL])) - set(families([])) == {"Letter 0", "Letter 1"}


def test_what_no_font_has_is_told_once_and_drawn_in_silence(only_dejavu, caplog):
    caplog.set_level(logging.WARNING)
    assert _drawn(f"two {HANGUL} \u3042").startswith(b"\x89PNG")
    (record,) = caplog.records
    assert record.name == "transformer_jax.figures.fonts"
    for part in ("3 of the characters", "Hangul, Hiragana", HANGUL[0], "fonts-noto-cjk"):
        assert part in record.getMessage()


def test_right_to_left_text_is_written_from_the_right():
    """As the same letters the other way about, where that is forced upon them."""
    assert _drawn("\u05d0\u05d1") == _drawn("\u202d\u05d1\u05d0\u202c")
    assert _drawn("\u05d0\u05d1") != _drawn("\u05d1\u05d0")
