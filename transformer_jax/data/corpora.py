"""Where sentence pairs come from: text files, TensorFlow Datasets, the built-in numbers.

A corpus is one string:

  text:PREFIX       PREFIX.en and PREFIX.de (the config's languages), a sentence a line
  tsv:FILE          source, tab, target on each line; further columns are ignored
  tfds:NAME:SPLIT   a translation data set of TensorFlow Datasets, such as
                    tfds:wmt14_translate/de-en:train; read without TensorFlow
  numbers:SPLIT     English number words and their translation: train, valid or test; spoken, to
                    train on short ones and on some without commas; or a range as in numbers:0-99

Files are UTF-8, plain or .gz or .xz; a line of white space is empty. A mixture is corpora
joined by commas, each of which may end in @SOURCE-TARGET, its own languages, and @WEIGHT, its
share of training:

  text:europarl/train@it-en@3,text:multi30k/train@en-de@1
"""

import codecs
import dataclasses
import functools
import glob
import gzip
import hashlib
import itertools
import lzma
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import BinaryIO, NamedTuple

import numpy as np

from transformer_jax.heartbeat import heartbeat
from transformer_jax.storage import local_path


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


@dataclasses.dataclass
class Corpus:
    """One corpus of a mixture, or the only one.

    Attributes:
      name: KIND:REST, without languages and weight.
      source_language, target_language: of this corpus.
      weight: share of training, relative to the other corpora's; 0 = none was given.
      tag: what each source begins with, such as "<2de>"; "" = nothing.
      max_pairs: most pairs read; 0 = all.
      size: number of pairs, once they were read to the end.
    """

    name: str
    source_language: str
    target_language: str
    weight: float = 0.0
    tag: str = ""
    max_pairs: int = 0
    size: int | None = None

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in their order.

        Raises:
          ValueError: the content is not what it should be; the message says where.
          FileNotFoundError: a file is missing.
        """
        kind, _, rest = self.name.partition(":")
        sides = _KINDS[kind][0](rest, self.source_language, self.target_language)
        size = 0
        for source, target in itertools.islice(sides, self.max_pairs or None):
            # What is white space to Unicode is tokens to some vocabularies: left out as empty.
            source, target = (side if side.strip() else "" for side in (source, target))
            yield Pair(f"{self.tag} {source}" if self.tag and source else source, target)
            size += 1
        self.size = size

    def fingerprint(self) -> str:
        """A hash of all that the pairs depend on: equal for equal content."""
        kind, _, rest = self.name.partition(":")
        languages = self.source_language, self.target_language
        files, what = _KINDS[kind][1](rest, *languages)
        known_by = kind, what, languages, self.tag, self.max_pairs
        if not files:
            known_by += (rest,)
        result = hashlib.sha256(repr(known_by).encode())
        with heartbeat(f"reading {self.name}"):
            for path in files:
                with open(path, "rb") as file:
                    result.update(hashlib.file_digest(file, "sha256").digest())
        return result.hexdigest()

    def check_unchanged(self, fingerprint: str) -> None:
        """ValueError if the content is no longer that of an earlier fingerprint."""
        if self.fingerprint() != fingerprint:
            raise ValueError(f"corpus {self.name} has changed while it was read; start again")


def parse_corpora(
    names: str,
    source_language: str,
    target_language: str,
    *,
    max_pairs: int = 0,
    language_tags: bool = False,
) -> list[Corpus]:
    """The corpora of a string, which are one or a mixture of several.

    Args:
      names: as this module's docstring has it.
      source_language, target_language: of corpora that name none.
      max_pairs: most pairs of each; 0 = all.
      language_tags: begin each source with a tag of its target language.
    """
    corpora = []
    for item in re.split(rf"\s*,\s*(?=(?:{'|'.join(_KINDS)}):)", names.strip()):
        corpus = Corpus(item, source_language, target_language, max_pairs=max_pairs)
        while option := _OPTION.fullmatch(corpus.name):
            if option["weight"]:
                corpus.weight = _weight(option["weight"], item)
            else:
                corpus.source_language, corpus.target_language = option["source"], option["target"]
            corpus.name = option["name"]
        kind, _, rest = corpus.name.partition(":")
        if kind not in _KINDS or not rest:
            raise ValueError(
                f"corpus {item!r} is none of text:PREFIX, tsv:FILE, tfds:NAME:SPLIT, numbers:SPLIT"
            )
        if kind in ("text", "tsv"):
            corpus.name = f"{kind}:{local_path(rest)}"
        corpus.tag = language_tag(corpus.target_language) if language_tags else ""
        corpora.append(corpus)
    if len({corpus.weight > 0 for corpus in corpora}) > 1:
        without = next(corpus.name for corpus in corpora if not corpus.weight)
        raise ValueError(f"corpus {without} has no weight, and others of {names!r} have one")
    return corpora


def language_tag(language: str) -> str:
    """What a source begins with that is to be translated into a language (Johnson et al. 2017)."""
    return f"<2{language}>"


_OPTION = re.compile(
    r"(?P<name>.+)@(?:(?P<source>[A-Za-z]\w*)-(?P<target>[A-Za-z][\w-]*)"
    r"|(?P<weight>[-+]?(?:[.\d][-+.\deE]*|nan|inf)))"
)


def _weight(text: str, item: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise ValueError(f"the weight {text} of corpus {item!r} is not a number") from None
    if not 0 < weight < math.inf:
        raise ValueError(f"the weight {text} of corpus {item!r} must be above zero, and finite")
    return weight


def read_corpus(
    names: str, source_language: str, target_language: str, *, language_tags: bool = False
) -> Iterator[Pair]:
    """All pairs of a corpus or mixture, one corpus after the other; errors as `Corpus` has."""
    corpora = parse_corpora(names, source_language, target_language, language_tags=language_tags)
    return itertools.chain.from_iterable(corpora)


_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".xz": lzma.open}


def open_text(path: str) -> BinaryIO:
    """Opens a file to be read, by its suffix a compressed one."""
    return _OPENERS.get(pathlib.Path(path).suffix, open)(path, "rb")


def raw_lines(file: BinaryIO, path: str) -> Iterator[bytes]:
    """The lines of a file of `open_text`; ValueError with the line where it is damaged."""
    count = 0
    try:
        for line in file:
            count += 1
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


def _lines(path: str) -> Iterator[str]:
    """The lines of a text file, without their ends."""
    with open_text(path) as file:
        for number, line in enumerate(raw_lines(file, path), 1):
            text, wrong = text_of_line(line, number)
            if wrong:
                raise ValueError(f"{path}, line {number}: {wrong}")
            yield text


def _text_files(prefix: str, *languages: str) -> list[str]:
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
    return sentence + (f", only {', '.join(there)}" if there else "") + _hint(language)


# Countries whose code is taken for that of their language.
_LANGUAGES = dict(
    x.split(":")
    for x in (
        "kr:ko jp:ja cn:zh tw:zh gr:el ua:uk cz:cs dk:da se:sv vn:vi br:pt rs:sr il:he ir:fa in:hi "
        "ee:et si:sl al:sq by:be ge:ka kz:kk mx:es at:de gb:en us:en"
    ).split()
)


def _hint(language: str) -> str:
    """The code of the language that a country's code was taken for, as a question, or ""."""
    known = _LANGUAGES.get(language.lower())
    return f"; did you mean {known}?" if known else ""


def _read_text(prefix: str, *languages: str) -> Iterator[tuple[str, str]]:
    paths = _text_files(prefix, *languages)
    sides = [_lines(path) for path in paths]
    for number, pair in enumerate(itertools.zip_longest(*sides), 1):
        if None in pair:
            counts = [number - 1 if x is None else number + sum(1 for _ in side)
                      for x, side in zip(pair, sides)]  # fmt: skip
            raise ValueError(
                f"sides of unequal length: {paths[0]} has {counts[0]} lines, "
                f"{paths[1]} has {counts[1]}"
            )
        yield pair


def _read_tsv(path: str, *_: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(path), 1):
        columns = line.split("\t")
        if len(columns) < 2:
            raise ValueError(f"{path}, line {number}: no tab between source and target")
        yield columns[0], columns[1]


_NUMBERS = 1_000_000
_HELD_OUT = 1000  # numbers of the validation split, and of the test split


def _numbers(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a split, and which of them are said without their commas.

    All are below a million, in one fixed random order whose first ones are the held-out splits.
    Of "spoken" ones, which are those of "train" as people say them, every fourth is short, of one
    to five digits as often as of any other length, and half have no comma.
    """
    random = np.random.default_rng(0)
    held_out, numbers = np.split(random.permutation(_NUMBERS), [2 * _HELD_OUT])
    splits = {"test": held_out[:_HELD_OUT], "valid": held_out[_HELD_OUT:], "train": numbers}
    if first_last := re.fullmatch(r"(\d+)-(\d+)", split):
        first, last = map(int, first_last.groups())
        splits[split] = np.arange(first, last + 1)
        if not first <= last < _NUMBERS:
            raise ValueError(f"corpus 'numbers:{split}' is no range of numbers below {_NUMBERS}")
    if split == "spoken":
        short = random.random(_NUMBERS // 4) * 10.0 ** random.integers(1, 6, _NUMBERS // 4)
        short = short.astype(int)[~np.isin(short.astype(int), held_out)]
        spoken = np.insert(numbers, np.arange(3, len(numbers), 3)[: len(short)], short)
        return spoken, random.random(len(spoken)) < 0.5
    if split not in splits:
        raise ValueError(
            f"corpus 'numbers:{split}' is none of numbers:train, numbers:spoken, numbers:valid, "
            "numbers:test and a range such as numbers:0-99"
        )
    return splits[split], np.zeros(len(splits[split]), bool)


# A corpus is read for its vocabulary and again for its tokens, and a number takes 0.1 ms.
@functools.lru_cache(1 << 18)
def _words_of(number: int, language: str) -> str:
    from num2words import num2words

    return num2words(number, lang=language)


def _read_numbers(split: str, *languages: str) -> Iterator[tuple[str, str]]:
    from num2words import CONVERTER_CLASSES

    numbers, without_commas = _numbers(split)
    for language in languages:
        if language not in CONVERTER_CLASSES:
            raise ValueError(
                f"num2words has no language {language!r}, only "
                f"{', '.join(sorted(CONVERTER_CLASSES))}{_hint(language)}"
            )
    for number, without in zip(numbers.tolist(), without_commas):
        try:
            source, target = (_words_of(number, language) for language in languages)
        except (TypeError, NotImplementedError, OverflowError) as error:
            raise ValueError(f"num2words cannot say {number} in {languages}: {error}") from None
        yield source.replace(",", "") if without else source, target


def _tfds(function: str) -> Callable:
    def call(*arguments: str):
        # TensorFlow Datasets takes a third of a second to import, in each process.
        from transformer_jax.data import tfds

        return getattr(tfds, function)(*arguments)

    return call


# Of each kind, what reads its pairs, and what tells its content: files to be hashed, and
# whatever else there is to say.
_KINDS: dict[str, tuple[Callable, Callable]] = {
    "text": (_read_text, lambda prefix, *languages: (_text_files(prefix, *languages), "")),
    "tsv": (_read_tsv, lambda path, *_: ([path], "")),
    "tfds": (_tfds("read_tfds"), _tfds("tfds_content")),
    "numbers": (_read_numbers, lambda *_: ([], (metadata.version("num2words"), np.__version__))),
}
