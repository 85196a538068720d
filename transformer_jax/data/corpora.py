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

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from transformer_jax.data import downloads, numbers, text_files
from transformer_jax.data.file_hashes import FileHashes
from transformer_jax.heartbeat import heartbeat
from transformer_jax.storage import local_path


class Pair(NamedTuple):
    """A sentence and its translation."""

    source: str
    target: str


_GROUP_CHARACTERS = 1 << 22  # SentencePiece needs about 80 bytes for each


def grouped(pairs: Iterable[Pair], max_pairs: int) -> Iterator[list[Pair]]:
    """Pairs in lists of at most `max_pairs`; of fewer where they are long."""
    group, room = [], _GROUP_CHARACTERS
    for pair in pairs:
        group.append(pair)
        room -= len(pair[0]) + len(pair[1])
        if len(group) == max_pairs or room <= 0:
            yield group
            group, room = [], _GROUP_CHARACTERS
    if group:
        yield group


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One corpus of a mixture, or the only one."""

    name: str  # KIND:REST, without languages and weight
    source_language: str
    target_language: str
    weight: float = 0.0  # share of training, relative to the other corpora's; 0 = none was given
    tag: str = ""  # what each source begins with, such as "<2de>"
    max_pairs: int = 0  # maximum of pairs read; 0 = all
    # Of its files, which are then hashed whenever they are read to the end; None = they are read
    # for `fingerprint` alone.
    hashes: FileHashes | None = dataclasses.field(default=None, compare=False)

    def __iter__(self) -> Iterator[Pair]:
        """The pairs in their order; ValueError says where the content is not what it should be."""
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
    """What the pairs of a corpus are read from."""

    kind: str
    files: list[str]  # that hold the pairs
    # Reads source and target texts, from the open files where `is_text`.
    pairs: Callable[[list[BinaryIO]], Iterator[tuple[str, str]]]
    is_text: bool = True
    content: Any = ""  # what else than the files they depend on
    key: tuple[str, ...] = ()  # of the fingerprint, beyond that


def parse_corpora(
    names: str,
    source_language: str,
    target_language: str,
    *,
    max_pairs: int = 0,
    language_tags: bool = False,
    hashes: FileHashes | None = None,
) -> list[Corpus]:
    """The corpora of a string as this module's docstring has it; `max_pairs` of each, 0 = all.

    The languages are those of corpora that name none; `language_tags` begins each source with a
    tag of its target language.
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


def _text(paths: list[str]) -> _Source:
    return _Source("text", paths, lambda files: text_files.read_sides(files, paths))


def _tsv(path: str, *_: str) -> _Source:
    return _Source("tsv", [path], lambda files: text_files.read_tsv(files, [path]))


def _numbers(split: str, *languages: str) -> _Source:
    def pairs(_: list[BinaryIO]) -> Iterator[tuple[str, str]]:
        return numbers.read_numbers(split, *languages)

    return _Source("numbers", [], pairs, False, numbers.versions(), (split,))


def _tfds(rest: str, *languages: str) -> _Source:
    # TensorFlow Datasets takes a third of a second to import.
    from transformer_jax.data import tfds

    files, name = tfds.tfds_content(rest, *languages)
    return _Source("tfds", files, lambda _: tfds.read_tfds(rest, *languages), False, name)


_KINDS: dict[str, Callable[..., _Source]] = {
    "text": lambda prefix, *languages: _text(text_files.text_files(prefix, *languages)),
    "tsv": _tsv,
    "tfds": _tfds,
    "multi30k": lambda split, *languages: _text(downloads.multi30k_files(split, *languages)),
    "sacrebleu": lambda name, *languages: _text(downloads.sacrebleu_files(name, *languages)),
    "numbers": _numbers,
}
