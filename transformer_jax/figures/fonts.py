"""Font families for the labels of figures, by the scripts of their characters."""

import contextlib
import functools
import re
import unicodedata
from collections.abc import Iterable

from matplotlib import font_manager, rcParams

# Fonts of many scripts: of Linux, macOS and Windows.
_WIDE_FONTS = (
    "Noto Sans Symbols 2, Droid Sans Fallback, WenQuanYi Zen Hei, NanumGothic, UnDotum, "
    "Arial Unicode MS, Apple SD Gothic Neo, Hiragino Sans, PingFang SC, "
    "Malgun Gothic, Yu Gothic, Microsoft YaHei, Nirmala UI, Segoe UI Symbol"
).split(", ")


def font_families(texts: Iterable[str]) -> list[str]:
    """The usual font families, then installed ones for scripts that those may lack.

    Matplotlib draws each character with the first that has it, and warns where none has.
    """
    scripts = {
        re.split("[ -]", unicodedata.name(character, "LATIN"))[0].capitalize()
        for character in set("".join(texts))
        if not character.isascii()
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
    return [*rcParams["font.family"], *(x for x in [*wanted, *_WIDE_FONTS] if x in installed)]


@functools.cache
def find_new_fonts() -> None:
    """Of fonts installed since, matplotlib knows nothing: it keeps its list in a file."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:
        with contextlib.suppress(OSError, RuntimeError, UnicodeError):  # a file it cannot read
            font_manager.fontManager.addfont(path)
