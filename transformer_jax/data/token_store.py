"""A corpus tokenised once into arrays on disk that are mapped into memory."""

import collections
import itertools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from transformer_jax.data.corpora import Corpus, grouped
from transformer_jax.data.vocabulary import UNK, Vocabulary
from transformer_jax.storage import Writer, cached

_FORMAT = 3  # of the stored arrays: stores of another format are not found
CHUNK = 20_000  # pairs tokenised in one call
_LOST = 10  # characters that are named


class Side(NamedTuple):
    """Sentences end to end: ids [tokens] and offsets [sentences + 1] into them."""

    ids: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens of each sentence from `start` to before `stop`, with EOS."""
        return np.diff(self.offsets[start : None if stop is None else stop + 1])


# Why a pair is left out.
REASONS = ("empty", "too long", "length ratio", "identical")
_COUNTED = ("pairs", *REASONS, "same") + tuple(
    f"{side} {what}" for side in ("source", "target") for what in ("unknown", "characters")
)


class TokenStore(NamedTuple):
    """The pairs of a corpus that can be trained on, each side closed by EOS.

    Counted are "pairs" that were read, those left out for each of `REASONS`, those with the "same"
    text on both sides; and of the pairs that are here "source unknown" and "target unknown"
    symbols, "source characters" and "target characters", and the number of targets that are
    "altered": encoding and decoding does not give them back.
    """

    source: Side
    target: Side
    counts: dict[str, int]
    fingerprint: int  # equal for equal content
    lost: dict[str, int] = {}  # characters that altered targets lose most often, and their number

    def __len__(self) -> int:
        return len(self.source.offsets) - 1

    @property
    def left_out(self) -> str:
        """Summary of the filtered pairs by reason."""
        return ", ".join(f"{self.counts[r]:,} {r}" for r in REASONS if self.counts[r]) or "none"

    @property
    def altered(self) -> str:
        """Summary of the altered targets: their share, and the characters that they lose."""
        share = f"{self.counts['altered'] / max(len(self), 1):.2%}"
        lost = (f"{character!r} {count:,}" for character, count in self.lost.items())
        return " ".join([share, *([f"(lost: {', '.join(lost)})"] if self.lost else [])])


class Filters(NamedTuple):
    """Which pairs are left out, beside those with an empty side."""

    max_length: int  # of a side, in tokens, EOS included
    max_ratio: float = 0.0  # maximum of tokens of one side for one of the other; 0 = any
    drop_identical: bool = False  # leave out pairs with the same text on both sides


def open_store(
    corpus: Corpus, vocabulary: Vocabulary, filters: Filters, cache: pathlib.Path
) -> TokenStore:
    """The tokens of a corpus, from the cache folder, or tokenised into it."""
    content = corpus.fingerprint()

    def build(writer: Writer) -> dict[str, int]:
        counts = _write(tokenize(corpus, vocabulary, filters), writer, _dtype(vocabulary))
        corpus.check_unchanged(content)
        return counts

    key = [_FORMAT, content, vocabulary.fingerprint(), *filters]
    entry = cached(cache, "tokens", key, f"the tokens of {corpus.name}", build)
    source, target = (
        Side(entry.arrays[f"{side}_ids"], entry.arrays[f"{side}_offsets"])
        for side in ("source", "target")
    )
    counts = entry.record | {"altered": entry.notes["altered"]}
    return TokenStore(source, target, counts, entry.checksum, entry.notes["lost"])


class Chunk(NamedTuple):
    """Tokenised pairs: ids end to end and lengths of each side, and what `TokenStore` counts."""

    ids: tuple[np.ndarray, np.ndarray]
    lengths: tuple[np.ndarray, np.ndarray]
    counts: collections.Counter
    lost: collections.Counter


def _dtype(vocabulary: Vocabulary) -> np.dtype:
    return np.dtype(np.uint16 if len(vocabulary) <= 2**16 else np.int32)


def _write(chunks: Iterable[Chunk], writer: Writer, dtype: np.dtype) -> dict[str, int]:
    """Appends all chunks and returns their counts; what is lost is a note.

    A run goes on with a store of the same tokens and counts, whatever is noted of it.
    """
    counts: collections.Counter = collections.Counter()
    lost: collections.Counter = collections.Counter()
    ends = {"source": 0, "target": 0}
    for side in ends:
        writer.append(f"{side}_ids", np.zeros(0, dtype))
        writer.append(f"{side}_offsets", np.zeros(1, np.int64))
    for chunk in chunks:
        for side, ids, lengths in zip(ends, chunk.ids, chunk.lengths):
            writer.append(f"{side}_ids", ids)
            writer.append(f"{side}_offsets", ends[side] + np.cumsum(lengths))
            ends[side] += len(ids)
        counts.update(chunk.counts)
        lost.update(chunk.lost)
    most_lost = sorted(lost.items(), key=lambda x: (-x[1], x[0]))[:_LOST]
    writer.notes = {"altered": counts["altered"], "lost": dict(most_lost)}
    return {name: counts[name] for name in _COUNTED}


def tokenize(corpus: Corpus, vocabulary: Vocabulary, filters: Filters) -> Iterator[Chunk]:
    """Tokenises a corpus chunk by chunk, in order; a bar on stderr shows what takes long."""
    tag = f"{corpus.tag} " if corpus.tag else ""
    with tqdm(
        unit=" pairs",
        desc=f"tokenising {corpus.name}",
        mininterval=0.5 if sys.stderr.isatty() else 10,
        delay=3,
    ) as bar:
        for chunk in grouped(corpus, CHUNK):
            yield _tokenize(*zip(*chunk), vocabulary, filters, tag)
            bar.update(len(chunk))


def _tokenize(
    sources: Sequence[str],
    targets: Sequence[str],
    vocabulary: Vocabulary,
    filters: Filters,
    tag: str,
) -> Chunk:
    encoded = vocabulary.encode_sources(sources), vocabulary.encode(targets)
    ids, lengths = zip(*(flat(sentences, _dtype(vocabulary)) for sentences in encoded))
    kept, counts = _filtered(sources, targets, lengths, filters, tag)
    ids = tuple(x[np.repeat(kept, n)] for x, n in zip(ids, lengths))
    for name, texts, side in zip(("source", "target"), (sources, targets), ids):
        characters = np.fromiter(map(len, texts), np.int64, len(kept))
        counts[f"{name} characters"] = int(characters[kept].sum())
        counts[f"{name} unknown"] = int(np.count_nonzero(side == UNK))
    lost: collections.Counter = collections.Counter()
    for keep, text, decoded in zip(kept, targets, vocabulary.decode_all(encoded[1])):
        if keep and decoded != (text := vocabulary.target_text(text)):
            counts["altered"] += 1
            lost += collections.Counter(text) - collections.Counter(decoded)
    return Chunk(ids, tuple(x[kept] for x in lengths), counts, lost)


def flat(sentences: Sequence[Sequence[int]], dtype) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all sentences end to end, and their lengths."""
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    ids = itertools.chain.from_iterable(sentences)
    return np.fromiter(ids, dtype, int(lengths.sum())), lengths


def _filtered(
    sources: Sequence[str],
    targets: Sequence[str],
    lengths: Sequence[np.ndarray],
    filters: Filters,
    tag: str,
) -> tuple[np.ndarray, collections.Counter]:
    """Which pairs are kept, and how many are not by the first of `REASONS` that applies."""
    shorter, longer = np.minimum(*lengths), np.maximum(*lengths)
    # A side of spaces only is as empty as one without any.
    empty = np.array([not (s.strip() and t.strip()) for s, t in zip(sources, targets)])
    same = np.array([s == tag + t for s, t in zip(sources, targets)])
    reasons = (
        (shorter == 1) | empty,
        longer > filters.max_length,
        (filters.max_ratio > 0) & (longer > filters.max_ratio * shorter),
        filters.drop_identical & same,
    )
    kept = np.ones(len(same), bool)
    counts = collections.Counter(pairs=len(same), same=int(same.sum()))
    for reason, applies in zip(REASONS, reasons):
        counts[reason] = int((kept & applies).sum())
        kept &= ~applies
    return kept, counts
