"""SentencePiece's pieces as people read them: in pictures and on pages."""

import re
import unicodedata
from collections.abc import Sequence

_BLANK = "\u2581"  # how SentencePiece writes a blank, if not as a byte
_SHOWN_BLANK = "\u2423"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPECIAL = re.compile(r"<[^<>]*>")  # <sos>, <eos>, <unk>, or a language's tag


def label(piece: str) -> str:
    """A piece without the blank that begins a word; other blanks are shown as U+2423.

    Bytes are shown as the ASCII characters that they are, or else in hexadecimal.
    """
    if byte := _BYTE.fullmatch(piece):
        character = chr(int(byte[1], 16))
        piece = character if " " <= character <= "~" else byte[1]
    elif piece.strip(_BLANK):
        piece = piece.removeprefix(_BLANK)
    return re.sub(f"[{_BLANK} ]", _SHOWN_BLANK, piece)


def begins_word(piece: str) -> bool:
    """Whether a blank stands before, or it is a symbol of its own such as <eos>."""
    return piece.startswith(_BLANK) or bool(_special(piece))


def text_of(pieces: Sequence[str]) -> str:
    """The text that pieces spell, without the symbols of start and end."""
    spelt = [
        bytes([int(byte[1], 16)])
        if (byte := _BYTE.fullmatch(piece))
        else piece.replace(_BLANK, " ").encode(errors="replace")
        for piece in pieces
        if piece not in ("<sos>", "<eos>")
    ]
    return b"".join(spelt).decode(errors="replace").strip()


def right_to_left(pieces: Sequence[str]) -> bool:
    """Whether the first letter is of a script that is written from right to left."""
    text = text_of([piece for piece in pieces if not _special(piece.strip(_BLANK))])
    strong = (unicodedata.bidirectional(character) for character in text)
    return next((kind != "L" for kind in strong if kind in ("L", "R", "AL")), False)


def _special(piece: str) -> re.Match | None:
    return None if _BYTE.fullmatch(piece) else _SPECIAL.fullmatch(piece)
