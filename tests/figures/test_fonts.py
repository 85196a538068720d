"""Fonts by script, with fonts made for the test."""

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from transformer_jax.figures.fonts import find_new_fonts, font_families
from transformer_jax.figures.maps import Figure

HANGUL = "\uac00\ub098"
USUAL = font_families([])


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs fonts, by family and characters, beside those that matplotlib brings with it."""
    entries = [e for e in font_manager.fontManager.ttflist if e.name.startswith("DejaVu Sans")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
    paths = [str(tmp_path / "broken.ttf")]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    find_new_fonts.cache_clear()

    def install(family: str, characters: str) -> None:
        paths.append(_font(tmp_path / f"{family}.ttf", family, characters))

    return install


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
    figure.text(0.1, 0.1, text, fontfamily=font_families([text]))
    return figure._repr_png_()


def test_fonts_that_are_not_installed_are_not_asked_for(install):
    assert font_families(["two", "zw\u00f6lf", "\u0438", HANGUL, "\n \u200f"]) == USUAL


def test_fonts_supplement_each_other(install):
    install("Noto Sans CJK KR", HANGUL[:1])
    install("NanumGothic", HANGUL)
    assert font_families(["two"]) == USUAL
    assert font_families([f"two {HANGUL}"]) == [*USUAL, "Noto Sans CJK KR", "NanumGothic"]
    assert _drawn(f"two {HANGUL}") != _drawn(f"two {HANGUL[0]}")


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("\u76f4", "Noto Sans CJK SC"),
        ("\u76f4\u3059", "Noto Sans CJK JP"),
        ("\u76f4\uac00", "Noto Sans CJK KR"),
        ("\u0905", "Noto Sans Devanagari"),
        ("\u0f40", "Noto Serif Tibetan"),
    ],
)
def test_a_script_has_its_font(install, text, family):
    for country in ("SC", "JP", "KR"):
        install(f"Noto Sans CJK {country}", "\u76f4\u3059\uac00")
    install("Noto Sans Devanagari", "\u0905")
    install("Noto Serif Tibetan", "\u0f40")
    assert font_families([text]) == [*USUAL, family]


def test_any_font_that_has_the_character_will_do(install):
    install("Other Handwriting", HANGUL)
    install("Rare Handwriting", HANGUL + "\U00013000")
    assert font_families([HANGUL]) == [*USUAL, "Other Handwriting"]
    assert font_families([f"{HANGUL} \U00013000"]) == [
        *USUAL,
        "Other Handwriting",
        "Rare Handwriting",
    ]


def test_a_character_that_no_font_has_is_told(install):
    with pytest.warns(UserWarning, match="Glyph 44032 .*missing from font"):
        assert _drawn(f"two {HANGUL[0]}").startswith(b"\x89PNG")


def test_right_to_left_text_is_written_from_the_right():
    """As the same letters the other way about, where that is forced upon them."""
    assert _drawn("\u05d0\u05d1") == _drawn("\u202d\u05d1\u05d0\u202c")
    assert _drawn("\u05d0\u05d1") != _drawn("\u05d1\u05d0")
