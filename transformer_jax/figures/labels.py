"""SentencePiece's pieces as people read them, in figures and on pages."""

import re
import unicodedata
from collections.abc import Sequence

_SPACE = "\u2581"  # SentencePiece's mark of a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SYMBOL = re.compile(rf"{_SPACE}?<(?!0x[0-9A-F]{{2}}>)[^<>]*>")  # <eos>, or a language's tag


def label(piece: str) -> str:
    """A piece without the space that begins a word; other spaces are shown as U+2423.

    A byte is shown as the ASCII character that it is, or else in hexadecimal.
    """
    if byte := _BYTE.fullmatch(piece):
        character = chr(int(byte[1], 16))
        piece = character if " " <= character <= "~" else byte[1]
    elif piece.strip(_SPACE):
        piece = piece.removeprefix(_SPACE)
    return re.sub(f"[{_SPACE} ]", "\u2423", piece)


def shortened(text: str, length: int = 24) -> str:
    """A long text without its middle: words of one beginning often differ at the end."""
    tail = length // 3
    return text if len(text) <= length else f"{text[: length - tail - 1]}\u2026{text[-tail:]}"


def begins_word(piece: str) -> bool:
    """Whether a space stands before, or it is a symbol such as <eos>."""
    return piece.startswith(_SPACE) or bool(_SYMBOL.fullmatch(piece))


def text_of(pieces: Sequence[str]) -> str:
    """The text that pieces spell, without BOS and EOS."""
    spelt = [
        bytes.fromhex(byte[1])
        if (byte := _BYTE.fullmatch(piece))
        else piece.replace(_SPACE, " ").encode(errors="replace")
        for piece in pieces
        if piece not in ("<sos>", "<eos>")
    ]
    return b"".join(spelt).decode(errors="replace").strip()


def right_to_left(pieces: Sequence[str]) -> bool:
    """Whether the first letter is of a script that is written from right to left."""
    text = text_of([piece for piece in pieces if not _SYMBOL.fullmatch(piece)])
    kinds = (unicodedata.bidirectional(character) for character in text)
    return next((kind != "L" for kind in kinds if kind in ("L", "R", "AL")), False)
