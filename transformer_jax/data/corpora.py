"""Sentence pairs of text files, public data sets, TensorFlow Datasets, the built-in numbers.

A corpus is one string:

  text:PREFIX       PREFIX.en and PREFIX.de (the config's languages), a sentence a line
  tsv:FILE          source, tab, target on each line; further columns are ignored
  tfds:NAME:SPLIT   a translation data set of TensorFlow Datasets, such as
                    tfds:wmt14_translate/de-en:train; read without TensorFlow
  multi30k:SPLIT    train, valid or test (test_2016_flickr) of Multi30k, English and German image
                    captions; downloaded into the cache
  sacrebleu:NAME    a test set of sacrebleu, such as sacrebleu:wmt14; downloaded by it
  numbers:SPLIT     English number words and their translation: train, valid or test; spoken, to
                    train on short ones and on some without commas; or a range as in numbers:0-99

Files are UTF-8, plain or .gz or .xz; a line of white space is empty. A mixture is corpora
joined by commas, each of which may end in @SOURCE-TARGET, its own languages, and @WEIGHT, its
share of training:

  text:europarl/train@it-en@3,text:multi30k/train@en-de@1
"""

import codecs
import contextlib
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
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from transformer_jax.data import downloads
from transformer_jax.data.file_hashes import FileHashes
from transformer_jax.heartbeat import heartbeat
from transformer_jax.storage import local_path


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One corpus of a mixture, or the only one.

    Attributes:
      name: KIND:REST, without languages and weight.
      source_language, target_language: of this corpus.
      weight: share of training, relative to the other corpora's; 0 = none was given.
      tag: what each source begins with, such as "<2de>"; "" = nothing.
      max_pairs: most pairs read; 0 = all.
      hashes: of its files, which are then hashed whenever they are read to the end; None = they
        are read for `fingerprint` alone.
    """

    name: str
    source_language: str
    target_language: str
    weight: float = 0.0
    tag: str = ""
    max_pairs: int = 0
    hashes: FileHashes | None = dataclasses.field(default=None, compare=False)

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in their order.

        Raises:
          ValueError: the content is not what it should be; the message says where.
          FileNotFoundError: a file is missing.
        """
        source = self._source()
        opened = self.hashes.open if self.hashes else functools.partial(open, mode="rb")
        with contextlib.ExitStack() as stack:
            paths = source.files if source.is_text else ()
            files = [stack.enter_context(opened(path)) for path in paths]
            for pair in itertools.islice(source.pairs(files), self.max_pairs or None):
                # What is white space to Unicode is tokens to some vocabularies: left out as empty.
                text, target = (side if side.strip() else "" for side in pair)
                yield Pair(f"{self.tag} {text}" if self.tag and text else text, target)

    def fingerprint(self) -> str:
        """A hash of all that the pairs depend on: equal for equal content."""
        source, hashes = self._source(), self.hashes or FileHashes()
        languages = self.source_language, self.target_language
        known_by = source.kind, source.content, languages, self.tag, self.max_pairs
        result = hashlib.sha256(repr(known_by + source.key).encode())
        with heartbeat(f"reading {self.name}"):
            for path in source.files:
                result.update(bytes.fromhex(hashes[path]))
        return result.hexdigest()

    @property
    def is_hashed(self) -> bool:
        """Whether `fingerprint` reads nothing."""
        return bool(self.hashes) and None not in map(self.hashes.get, self._source().files)

    def check_unchanged(self, fingerprint: str) -> None:
        """ValueError if the content, as last read to the end, is not that of a fingerprint."""
        if self.fingerprint() != fingerprint:
            raise ValueError(f"corpus {self.name} has changed while it was read; start again")

    def _source(self) -> "_Source":
        kind, _, rest = self.name.partition(":")
        return _KINDS[kind](rest, self.source_language, self.target_language)


class _Source(NamedTuple):
    """What the pairs of a corpus are read from.

    Attributes:
      kind: of corpus.
      files: that hold the pairs.
      pairs: reads source and target texts, from the open files where `is_text`.
      content: what else than the files they depend on.
      key: of the fingerprint, beyond that.
    """

    kind: str
    files: list[str]
    pairs: Callable[[list[BinaryIO]], Iterator[tuple[str, str]]]
    is_text: bool = True
    content: Any = ""
    key: tuple[str, ...] = ()


def parse_corpora(
    names: str,
    source_language: str,
    target_language: str,
    *,
    max_pairs: int = 0,
    language_tags: bool = False,
    hashes: FileHashes | None = None,
) -> list[Corpus]:
    """The corpora of a string, which are one or a mixture of several.

    Args:
      names: as this module's docstring has it.
      source_language, target_language: of corpora that name none.
      max_pairs: most pairs of each; 0 = all.
      language_tags: begin each source with a tag of its target language.
      hashes: as of `Corpus`.
    """
    corpora = []
    for item in re.split(rf"\s*,\s*(?=(?:{'|'.join(_KINDS)}):)", names.strip()):
        name, source, target, weight = item, source_language, target_language, 0.0
        while option := _OPTION.fullmatch(name):
            name = option["name"]
            if option["weight"]:
                weight = _weight(option["weight"], item)
            else:
                source, target = option["source"], option["target"]
        kind, _, rest = name.partition(":")
        if kind not in _KINDS or not rest:
            raise ValueError(
                f"corpus {item!r} is none of text:PREFIX, tsv:FILE, tfds:NAME:SPLIT, "
                "multi30k:SPLIT, sacrebleu:NAME, numbers:SPLIT"
            )
        if kind in ("text", "tsv"):
            name = f"{kind}:{local_path(rest)}"
        tag = language_tag(target) if language_tags else ""
        corpora.append(Corpus(name, source, target, weight, tag, max_pairs, hashes))
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


def _unpacked(file: BinaryIO, path: str) -> BinaryIO:
    """The content of an open file, by its suffix a compressed one."""
    opener = _OPENERS.get(pathlib.Path(path).suffix)
    return opener(file, "rb") if opener else file


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


def _lines(file: BinaryIO, path: str) -> Iterator[str]:
    """The lines of an open text file, without their ends."""
    for number, line in enumerate(raw_lines(_unpacked(file, path), path), 1):
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


def _text(paths: list[str]) -> _Source:
    """Two files, a sentence a line."""

    def pairs(files: list[BinaryIO]) -> Iterator[tuple[str, str]]:
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

    return _Source("text", paths, pairs)


def _tsv(path: str, *_: str) -> _Source:
    def pairs(files: list[BinaryIO]) -> Iterator[tuple[str, str]]:
        for number, line in enumerate(_lines(files[0], path), 1):
            columns = line.split("\t")
            if len(columns) < 2:
                raise ValueError(f"{path}, line {number}: no tab between source and target")
            yield columns[0], columns[1]

    return _Source("tsv", [path], pairs)


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
def number_words(number: int, language: str) -> str:
    from num2words import num2words

    return num2words(number, lang=language)


def _numbers_source(split: str, *languages: str) -> _Source:
    def pairs(_: list[BinaryIO]) -> Iterator[tuple[str, str]]:
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
                source, target = (number_words(number, language) for language in languages)
            except (TypeError, NotImplementedError, OverflowError) as error:
                raise ValueError(f"num2words cannot say {number} in {languages}: {error}") from None
            yield source.replace(",", "") if without else source, target

    versions = metadata.version("num2words"), np.__version__
    return _Source("numbers", [], pairs, False, versions, (split,))


def _tfds_source(rest: str, *languages: str) -> _Source:
    # TensorFlow Datasets takes a third of a second to import.
    from transformer_jax.data import tfds

    files, name = tfds.tfds_content(rest, *languages)
    return _Source("tfds", files, lambda _: tfds.read_tfds(rest, *languages), False, name)


_KINDS: dict[str, Callable[..., _Source]] = {
    "text": lambda prefix, *languages: _text(_text_files(prefix, *languages)),
    "tsv": _tsv,
    "tfds": _tfds_source,
    "multi30k": lambda split, *languages: _text(downloads.multi30k_files(split, *languages)),
    "sacrebleu": lambda name, *languages: _text(downloads.sacrebleu_files(name, *languages)),
    "numbers": _numbers_source,
}
