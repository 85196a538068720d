"""Text files of sentence pairs: UTF-8, plain or compressed, two of them or tab-separated."""

import codecs
import glob
import gzip
import itertools
import lzma
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

# Bytes of a line: several hundred times a long sentence. SentencePiece needs about 80 for each.
MAX_LINE = 1 << 20

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}


def open_text(path: str) -> BinaryIO:
    """Opens a file to be read, by its suffix a compressed one."""
    return _OPENERS.get(pathlib.Path(path).suffix, open)(path, "rb")


def _unpacked(file: BinaryIO, path: str) -> BinaryIO:
    """The content of an open file, by its suffix a compressed one."""
    opener = _OPENERS.get(pathlib.Path(path).suffix)
    return opener(file, "rb") if opener else file


def raw_lines(
    file: BinaryIO, path: str, max_line: int = MAX_LINE, *, cut: bool = False
) -> Iterator[bytes]:
    """The lines of a file of `open_text`; ValueError with the line where it is damaged.

    So has one of more than `max_line` bytes without its end, unless it shall be `cut`: then it
    has a byte more than that. No more of it is held.
    """
    count = 0
    try:
        while line := file.readline(max_line + 1):
            count += 1
            if len(line) > max_line and not line.endswith(b"\n"):
                if not cut:
                    raise ValueError(f"{path}, line {count}: longer than {max_line:,} bytes")
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = file.readline(max_line)
            yield line
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} is damaged after line {count}: {error}") from None


_MARKS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE  # UTF-32 LE begins as 16


def text_of_line(line: bytes, number: int) -> tuple[str, str]:
    """The text of a file's line, from 1, without its end; and why it is not valid, or "".

    What is not UTF-8 is replaced, and NUL characters are, which only other encodings have.
    """
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
    reason = "NUL character" if b"\0" in line else ""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        text, reason = line.decode(errors="replace"), error.reason
    if not reason:
        return text, ""
    if (number == 1 and line.startswith(_MARKS)) or 3 * line.count(b"\0") >= len(line):
        reason += "; UTF-16?"
    return text.replace("\0", "\ufffd"), f"not valid UTF-8 ({reason})"


def _lines(file: BinaryIO, path: str) -> Iterator[str]:
    """The lines of an open text file, without their ends."""
    for number, line in enumerate(raw_lines(_unpacked(file, path), path), 1):
        text, wrong = text_of_line(line, number)
        if wrong:
            raise ValueError(f"{path}, line {number}: {wrong}")
        yield text


def text_files(prefix: str, *languages: str) -> list[str]:
    """The file of each side."""
    files = []
    for language in languages:
        paths = [f"{prefix}.{language}{suffix}" for suffix in ("", *_OPENERS)]
        found = next(filter(os.path.isfile, paths), None)
        if found is None:
            raise FileNotFoundError(_missing(prefix, language, languages))
        files.append(found)
    return files


def _missing(prefix: str, language: str, languages: tuple[str, ...]) -> str:
    """A sentence about a side's file that is not there, with those that are."""
    sentence = f"there is no file {prefix}.{language} (nor with .gz or .xz)"
    path = pathlib.Path(prefix)
    for suffix in (f".{name}{packed}" for name in languages for packed in ("", *_OPENERS)):
        if prefix.endswith(suffix):
            return f"{sentence}: PREFIX is without the suffix, text:{prefix.removesuffix(suffix)}"
    there = sorted(map(str, path.parent.glob(f"{glob.escape(path.name)}.*")))
    return sentence + (f", only {', '.join(there)}" if there else "") + language_hint(language)


# Countries whose code is taken for that of their language.
_LANGUAGES = dict(
    x.split(":")
    for x in (
        "kr:ko jp:ja cn:zh tw:zh gr:el ua:uk cz:cs dk:da se:sv vn:vi br:pt rs:sr il:he ir:fa in:hi "
        "ee:et si:sl al:sq by:be ge:ka kz:kk mx:es at:de gb:en us:en"
    ).split()
)


def language_hint(language: str) -> str:
    """The code of the language that a country's code was taken for, as a question, or ""."""
    known = _LANGUAGES.get(language.lower())
    return f"; did you mean {known}?" if known else ""


def read_sides(files: list[BinaryIO], paths: list[str]) -> Iterator[tuple[str, ...]]:
    """Pairs of two open files, a sentence a line; ValueError where one has more lines."""
    sides = list(map(_lines, files, paths))
    for number, pair in enumerate(itertools.zip_longest(*sides), 1):
        if None in pair:
            counts = [
                number - 1 if text is None else number + sum(1 for _ in side)
                for text, side in zip(pair, sides)
            ]
            raise ValueError(
                f"sides of unequal length: {paths[0]} has {counts[0]} lines, "
                f"{paths[1]} has {counts[1]}"
            )
        yield pair


def read_tsv(files: list[BinaryIO], paths: list[str]) -> Iterator[tuple[str, ...]]:
    """Pairs of an open file, a pair a line; ValueError where one has no tab."""
    for number, line in enumerate(_lines(files[0], paths[0]), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise ValueError(f"{paths[0]}, line {number}: no tab between source and target")
        yield columns[0], columns[1]
