"""Fonts for the labels of pictures: for each script one that has its characters."""

import contextlib
import functools
import io
import logging
import unicodedata
import warnings
from collections.abc import Iterable, Sequence

from matplotlib import figure, font_manager, rcParams
from matplotlib.ft2font import FT2Font

logger = logging.getLogger(__name__)

_BOXES = ("Last Resort", "LastResort", "Adobe Blank")  # a box for each character
_NAMED = 6  # missing characters that a warning names
# Fonts of all Chinese characters come in the shapes of each country.
_COUNTRIES = {"HIRAGANA": "JP", "KATAKANA": "JP", "HANGUL": "KR", "BOPOMOFO": "TC"}


class Figure(figure.Figure):
    """A figure that a notebook shows, and that does not warn of each character without a font.

    Attributes:
      label_families: the font families of its labels.
    """

    label_families: Sequence[str] = ()

    def _repr_png_(self) -> bytes:
        """How IPython shows it, also where nobody has imported pyplot."""
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()

    def draw(self, renderer):
        """As of any figure."""
        with _quiet():
            super().draw(renderer)

    def get_tightbbox(self, renderer=None, *, bbox_extra_artists=None):
        """As of any figure."""
        with _quiet():
            return super().get_tightbbox(renderer, bbox_extra_artists=bbox_extra_artists)


def families(texts: Iterable[str]) -> list[str]:
    """The usual font families, and after them installed ones that have what those lack.

    Characters that no font has are told in one warning.
    """
    usual = list(rcParams["font.family"])
    shown = {c for text in texts for c in text if unicodedata.category(c)[0] not in "CZ"}
    path = font_manager.findfont(font_manager.FontProperties(family=usual))
    missing = shown - _held(path, path.face_index, frozenset(shown))
    if not missing:
        return usual
    _add_new_fonts()
    others, missing = _covering(missing)
    if missing:
        _warn(missing)
    return usual + others


def _covering(missing: set[str]) -> tuple[list[str], set[str]]:
    """Few families that have these characters, and the characters that none has."""
    chosen, wanted = [], frozenset(missing)
    countries = {_COUNTRIES.get(_script(c)) for c in missing} - {None} or {"SC"}
    held = {
        entry.name: _held(entry.fname, entry.index, wanted)
        for entry in sorted(font_manager.fontManager.ttflist, key=lambda e: -abs(e.weight - 400))
        if entry.style == "normal" and not entry.name.startswith(_BOXES)
    }

    def worth(name: str) -> tuple:
        return len(held[name] & missing), name[-2:] in countries, "Sans" in name, -len(name), name

    while missing and held and held[best := max(held, key=worth)] & missing:
        chosen.append(best)
        missing = missing - held[best]
    return chosen, missing


@functools.lru_cache(4096)
def _held(path: str, face_index: int, characters: frozenset[str]) -> set[str]:
    font = FT2Font(path, face_index=face_index)
    return {character for character in characters if font.get_char_index(ord(character))}


def _add_new_fonts() -> None:
    """Those installed since matplotlib listed the fonts, which it keeps in a file."""
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in font_manager.findSystemFonts():
        if path not in known:
            try:
                font_manager.fontManager.addfont(path)
            except (OSError, RuntimeError, UnicodeError):
                logger.info("%s is not a font that matplotlib reads", path)


def _warn(missing: set[str]) -> None:
    some = sorted(missing)
    scripts = sorted({_script(character) for character in some})
    logger.warning(
        "no installed font has %d of the characters (%s: %s%s): a PNG shows boxes in their place; "
        "Noto fonts have them (Debian: apt install fonts-noto-core fonts-noto-cjk)",
        len(some),
        ", ".join(script.capitalize() for script in scripts),
        " ".join(some[:_NAMED]),
        " ..." if len(some) > _NAMED else "",
    )


def _script(character: str) -> str:
    """As Unicode's names begin: HANGUL, CJK, ARABIC."""
    return unicodedata.name(character, "UNNAMED").split()[0].partition("-")[0]


@contextlib.contextmanager
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        yield
