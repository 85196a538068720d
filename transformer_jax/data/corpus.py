"""Where sentence pairs come from: text files, TensorFlow Datasets, the built-in numbers.

A corpus is one string:

  text:PREFIX       PREFIX.en and PREFIX.de (the config's languages), a sentence a line,
                    UTF-8, plain or .gz or .xz
  tfds:NAME:SPLIT   a translation data set of TensorFlow Datasets, such as
                    tfds:wmt14_translate/de-en:train; read without TensorFlow
  numbers:SPLIT     English number words and their translation, train, valid or test
"""

import contextlib
import difflib
import gzip
import itertools
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


def read_corpus(
    name: str, source_language: str, target_language: str, max_pairs: int = 0
) -> Iterator[Pair]:
    """The pairs of a corpus in their order, at most `max_pairs` (0 = all).

    Raises:
      ValueError: the string names no corpus, or its content is not what it should be;
        the message says where (file and line).
      FileNotFoundError: a file is missing.
    """
    kind, _, rest = name.partition(":")
    if kind not in _READERS or not rest:
        raise ValueError(f"corpus {name!r} is none of text:PREFIX, tfds:NAME:SPLIT, numbers:SPLIT")
    pairs = _READERS[kind](rest, source_language, target_language)
    return itertools.islice(pairs, max_pairs or None)


_OPENERS: dict[str, Callable] = {"": open, ".gz": gzip.open, ".xz": lzma.open}


def _find(prefix: str, language: str) -> tuple[str, Callable]:
    """The file of one side, and what opens it."""
    for suffix, opener in _OPENERS.items():
        path = f"{prefix}.{language}{suffix}"
        if os.path.isfile(path):
            return path, opener
    raise FileNotFoundError(f"there is no file {prefix}.{language} (nor with .gz or .xz)")


def decode_line(line: bytes, path: str, number: int) -> str:
    """The text of a line; ValueError with file and line number where it is not UTF-8."""
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: not valid UTF-8 ({error.reason})") from None


def _read_text(prefix: str, source_language: str, target_language: str) -> Iterator[Pair]:
    source_path, open_source = _find(prefix, source_language)
    target_path, open_target = _find(prefix, target_language)
    number = 0
    with open_source(source_path, "rb") as source, open_target(target_path, "rb") as target:
        try:
            lines = itertools.zip_longest(source, target)
            for number, (source_line, target_line) in enumerate(lines, 1):
                if source_line is None or target_line is None:
                    count = number + sum(1 for _ in lines)
                    counts = (number - 1, count) if source_line is None else (count, number - 1)
                    raise ValueError(
                        f"sides of unequal length: {source_path} has {counts[0]} lines, "
                        f"{target_path} has {counts[1]}"
                    )
                yield Pair(
                    decode_line(source_line, source_path, number),
                    decode_line(target_line, target_path, number),
                )
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
            raise ValueError(
                f"{source_path} or {target_path} is damaged after line {number}: {error}"
            ) from None


def _read_tfds(rest: str, source_language: str, target_language: str) -> Iterator[Pair]:
    import tensorflow_datasets as tfds
    import tensorflow_datasets.translate  # noqa: F401  registers the wmt* data sets

    # A name may end in a version, name:1.0.0, and a split may hold colons, train[:10%].
    match = re.fullmatch(r"([^:]+(?::\d+\.\d+\.\d+)?):(.+)", rest)
    if not match:
        raise ValueError(f"corpus 'tfds:{rest}' names no split: tfds:NAME:SPLIT was wanted")
    name, split = match.groups()
    try:
        builder = tfds.builder(name, file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.partition("/")[0], known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(
            f"TensorFlow Datasets has no {name!r}{hint} ({str(error).strip().splitlines()[0]})"
        ) from None
    with contextlib.redirect_stdout(sys.stderr):  # where it tells what it does
        builder.download_and_prepare()
    features = builder.info.features
    missing = [x for x in (source_language, target_language) if x not in features]
    if missing:
        raise ValueError(f"tfds:{name} has no language {missing[0]!r}, only {', '.join(features)}")
    try:
        records = builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        known = ", ".join(builder.info.splits)
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"tfds:{name} has no split {split!r}, only {known} ({reason})") from None
    for start in range(0, len(records), 1024):
        for record in records.__getitems__(range(start, min(start + 1024, len(records)))):
            yield Pair(record[source_language].decode(), record[target_language].decode())


_NUMBERS = 1_000_000
_HELD_OUT = 1000  # numbers of the validation split, and of the test split


def _read_numbers(split: str, source_language: str, target_language: str) -> Iterator[Pair]:
    """0 to 999,999 in one fixed random order, whose first numbers are the held-out splits."""
    from num2words import CONVERTER_CLASSES, num2words

    bounds = {
        "test": (0, _HELD_OUT),
        "valid": (_HELD_OUT, 2 * _HELD_OUT),
        "train": (2 * _HELD_OUT, _NUMBERS),
    }
    if split not in bounds:
        raise ValueError(f"corpus 'numbers:{split}' is none of numbers:{', numbers:'.join(bounds)}")
    languages = (source_language, target_language)
    for language in languages:
        if language not in CONVERTER_CLASSES:
            raise ValueError(
                f"num2words has no language {language!r}, only "
                f"{', '.join(sorted(CONVERTER_CLASSES))}"
            )
    for number in np.random.default_rng(0).permutation(_NUMBERS)[slice(*bounds[split])]:
        try:
            yield Pair(*(num2words(int(number), lang=language) for language in languages))
        except (TypeError, NotImplementedError, OverflowError) as error:
            raise ValueError(f"num2words cannot say {number} in {languages}: {error}") from None


_READERS = {"text": _read_text, "tfds": _read_tfds, "numbers": _read_numbers}
