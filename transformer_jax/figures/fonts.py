"""Font families for the labels of figures, by the characters in them."""

import contextlib
import functools
import re
import unicodedata
from collections.abc import Iterable

from matplotlib import font_manager, ft2font, rcParams

# Fonts of many scripts: of Linux, macOS and Windows.
_WIDE_FONTS = (
    "Noto Sans Symbols 2, Droid Sans Fallback, WenQuanYi Zen Hei, NanumGothic, UnDotum, "
    "Arial Unicode MS, Apple SD Gothic Neo, Hiragino Sans, PingFang SC, "
    "Malgun Gothic, Yu Gothic, Microsoft YaHei, Nirmala UI, Segoe UI Symbol"
).split(", ")


def font_families(texts: Iterable[str]) -> list[str]:
    """The usual font families, then installed ones for characters that those may lack.

    Matplotlib draws each character with the first that has it, and warns where none has.
    """
    characters = {character for character in set("".join(texts)) if not character.isascii()}
    scripts = {
        re.split("[ -]", unicodedata.name(character, "LATIN"))[0].capitalize()
        for character in characters
    } - {"Latin"}
    if not scripts:
        return list(rcParams["font.family"])
    wanted = [f"Noto {style} {script}" for script in sorted(scripts) for style in ("Sans", "Serif")]
    if scripts & {"Cjk", "Hangul", "Hiragana", "Katakana", "Fullwidth", "Ideographic"}:
        # The shapes of Chinese characters differ by country.
        kana = scripts & {"Hiragana", "Katakana"}
        wanted = [f"Noto Sans CJK {'KR' if 'Hangul' in scripts else 'JP' if kana else 'SC'}"]
    find_new_fonts()
    installed = set(font_manager.get_font_names())
    families = [*rcParams["font.family"], *(x for x in [*wanted, *_WIDE_FONTS] if x in installed)]
    return families + _others_with(characters, families)


def _others_with(characters: Iterable[str], families: Iterable[str]) -> list[str]:
    """Families of other fonts for characters that none of these has, by name."""
    missing = {ord(c) for c in characters if unicodedata.category(c)[0] != "C"}
    for family in families:
        missing -= _codes(font_manager.findfont(font_manager.FontProperties(family=[family])))
    others = {}
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.name):
        if not missing:
            break
        if "Last Resort" not in entry.name and missing & _codes(entry.fname):
            missing -= _codes(entry.fname)
            others[entry.name] = None
    return list(others)


@functools.cache
def _codes(path: str) -> frozenset[int]:
    """The characters that a font has."""
    return frozenset(ft2font.FT2Font(path).get_charmap())


@functools.cache
def find_new_fonts() -> None:
    """Of fonts installed since, matplotlib knows nothing: it keeps its list in a file."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:
        with contextlib.suppress(OSError, RuntimeError, UnicodeError):  # a file it cannot read
            font_manager.fontManager.addfont(path)
