"""A corpus tokenised once, in parallel, into arrays on disk that are mapped into memory."""

import collections
import concurrent.futures
import contextlib
import gc
import itertools
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from transformer_jax.data.corpora import Corpus
from transformer_jax.data.vocabulary import UNK, Vocabulary
from transformer_jax.storage import Arrays, Writer, cached

_FORMAT = 2  # of what is kept: with another number, older stores are not found
_CHUNK = 5_000  # pairs tokenised in one call
_LOST = 10  # characters that are named
_CHUNKS_ALONE = 6  # fewer are done before other processes have started


class Side(NamedTuple):
    """Sentences end to end: ids [tokens] and offsets [sentences + 1] into them."""

    ids: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Tokens of each sentence from `start` to before `stop`, with the end symbol."""
        return np.diff(self.offsets[start : None if stop is None else stop + 1])


# Why a pair is left out.
REASONS = ("empty", "too long", "length ratio", "identical")
_COUNTED = ("pairs", *REASONS, "same") + tuple(
    f"{side} {what}" for side in ("source", "target") for what in ("unknown", "characters")
)


class TokenStore(NamedTuple):
    """The pairs of a corpus that can be trained on, each side closed by the end symbol.

    Attributes:
      source, target: the two sides.
      counts: "pairs" that were read, those left out for each of `REASONS`, those with the
        "same" text on both sides; and of the pairs that are here "source unknown" and
        "target unknown" symbols, "source characters" and "target characters", and the number
        of targets that are "altered": encoding and decoding does not give them back.
      lost: the characters that altered targets lose most often, with their number.
      fingerprint: equal for equal content.
    """

    source: Side
    target: Side
    counts: dict[str, int]
    fingerprint: int
    lost: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.source.offsets) - 1

    @property
    def left_out(self) -> str:
        """How many pairs are not here, by reason, in words."""
        return ", ".join(f"{self.counts[r]:,} {r}" for r in REASONS if self.counts[r]) or "none"

    @property
    def altered(self) -> str:
        """The share of targets that are altered, and the characters that they lose, in words."""
        share = f"{self.counts['altered'] / max(len(self), 1):.2%}"
        lost = (f"{character!r} {count:,}" for character, count in self.lost.items())
        return " ".join([share, *([f"(lost: {', '.join(lost)})"] if self.lost else [])])


class Filters(NamedTuple):
    """Which pairs are left out, beside those with an empty side.

    Attributes:
      max_length: most tokens of a side, the end symbol included.
      max_ratio: most tokens of one side for one of the other; 0 = any.
      drop_identical: leave out pairs with the same text on both sides.
    """

    max_length: int
    max_ratio: float = 0.0
    drop_identical: bool = False


def open_store(
    corpus: Corpus, vocabulary: Vocabulary, filters: Filters, cache: pathlib.Path
) -> TokenStore:
    """The tokens of a corpus, from the cache folder, or tokenised into it.

    Raises:
      ValueError, OSError: of the corpus, or of a cache folder that cannot be written.
    """
    content = corpus.fingerprint()
    key = [_FORMAT, content, vocabulary.fingerprint(), *filters]

    def build(writer: Writer) -> dict[str, int]:
        counts = _write(tokenize(corpus, vocabulary, filters), writer, _dtype(vocabulary))
        corpus.check_unchanged(content)
        return counts

    if getattr(multiprocessing.current_process(), "_inheriting", False):
        # A child that runs the program again, to import it, would wait for its parent's lock.
        raise ValueError('what is run stands outside of `if __name__ == "__main__":`')
    return _store(cached(cache, "tokens", key, f"the tokens of {corpus.name}", build))


def _store(kept: Arrays) -> TokenStore:
    source, target = (
        Side(kept.arrays[f"{side}_ids"], kept.arrays[f"{side}_offsets"])
        for side in ("source", "target")
    )
    counts = kept.record | {"altered": kept.notes["altered"]}
    return TokenStore(source, target, counts, kept.checksum, kept.notes["lost"])


class Chunk(NamedTuple):
    """Tokenised pairs: ids end to end and lengths of each side, and what `TokenStore` counts."""

    ids: tuple[np.ndarray, np.ndarray]
    lengths: tuple[np.ndarray, np.ndarray]
    counts: collections.Counter
    lost: collections.Counter


def _dtype(vocabulary: Vocabulary) -> np.dtype:
    return np.dtype(np.uint16 if len(vocabulary) <= 2**16 else np.int32)


def _write(chunks: Iterable[Chunk], writer: Writer, dtype: np.dtype) -> dict[str, int]:
    """Appends all chunks, and notes what is lost; returns their counts.

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


def tokenize(
    corpus: Corpus, vocabulary: Vocabulary, filters: Filters, processes: int | None = None
) -> Iterator[Chunk]:
    """Tokenises a corpus chunk by chunk, in order; a bar on stderr shows what takes long.

    Memory does not grow with the corpus: only so many chunks are on their way as keep the
    processes (None = one a core) busy.
    """
    pairs = iter(corpus)
    # As sources and targets: a quarter of the time of pairs to send to another process.
    chunks = iter(lambda: tuple(zip(*itertools.islice(pairs, _CHUNK))), ())
    bar = tqdm(
        total=corpus.size,
        unit=" pairs",
        desc=f"tokenising {corpus.name}",
        mininterval=0.5 if sys.stderr.isatty() else 10,
        delay=3,
    )
    make = vocabulary.model, filters, corpus.tag
    with (
        bar,
        contextlib.closing(_in_order(chunks, processes, make)) as tokenized,
    ):
        for chunk in tokenized:
            yield chunk
            bar.update(chunk.counts["pairs"])


def _in_order(
    chunks: Iterator[tuple[Sequence[str], ...]],
    processes: int | None,
    make: tuple[bytes, Filters, str],
) -> Iterator[Chunk]:
    """Each chunk tokenised by a `Tokenizer` that is made of `make`."""
    processes = processes or _cores()
    first = list(itertools.islice(chunks, _CHUNKS_ALONE))
    if len(first) < _CHUNKS_ALONE or processes == 1:
        yield from itertools.starmap(Tokenizer(*make), itertools.chain(first, chunks))
        return
    # Not forked: JAX has threads, whose locks a forked process would wait for in vain.
    with concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start_worker, make
    ) as pool:
        running: collections.deque = collections.deque()
        try:
            for chunk in itertools.chain(first, chunks):
                with _without_interrupts():
                    running.append(pool.submit(_tokenize_in_worker, *chunk))
                if len(running) > 2 * processes:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        except concurrent.futures.process.BrokenProcessPool:
            raise ValueError(
                "a process that tokenised has died: for want of memory, or because the program "
                'that trains does so outside of `if __name__ == "__main__":`'
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes started here know no Ctrl-C: it is this one's to answer, and to end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Tokenizer:
    """Tokenises chunks of pairs."""

    def __init__(self, model: bytes, filters: Filters, tag: str = ""):
        """`tag` is what each source begins with, beside its text."""
        self._vocabulary, self._filters = Vocabulary(model), filters
        self._tag = f"{tag} " if tag else ""

    def __call__(self, sources: Sequence[str], targets: Sequence[str]) -> Chunk:
        texts = {"source": sources, "target": targets}
        encoded = self._vocabulary.encode_sources(sources), self._vocabulary.encode(targets)
        ids, lengths = zip(*map(self._flat, encoded))
        blank = np.array([not (s.strip() and t.strip()) for s, t in zip(sources, targets)])
        same = np.array([s == self._tag + t for s, t in zip(sources, targets)])
        counts = collections.Counter(pairs=len(blank), same=int(same.sum()))
        kept = np.ones(len(blank), bool)
        for reason, applies in zip(REASONS, self._reasons(lengths, blank, same)):
            counts[reason] = int((kept & applies).sum())
            kept &= ~applies
        ids = tuple(x[np.repeat(kept, n)] for x, n in zip(ids, lengths))
        for name, side in zip(texts, ids):
            characters = np.fromiter(map(len, texts[name]), np.int64, len(kept))
            counts[f"{name} characters"] = int(characters[kept].sum())
            counts[f"{name} unknown"] = int(np.count_nonzero(side == UNK))
        lost: collections.Counter = collections.Counter()
        for index, decoded in enumerate(self._vocabulary.decode_all(encoded[1])):
            if kept[index] and decoded != targets[index]:
                counts["altered"] += 1
                lost += collections.Counter(targets[index]) - collections.Counter(decoded)
        return Chunk(ids, tuple(x[kept] for x in lengths), counts, lost)

    def _flat(self, encoded: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all sentences end to end, and their lengths."""
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        flat = itertools.chain.from_iterable(encoded)
        return np.fromiter(flat, _dtype(self._vocabulary), int(lengths.sum())), lengths

    def _reasons(self, lengths: Sequence[np.ndarray], blank: np.ndarray, same: np.ndarray):
        """To which pairs each of `REASONS` applies."""
        shorter, longer = np.minimum(*lengths), np.maximum(*lengths)
        # A side of blanks only is as empty as one without any.
        yield (shorter == 1) | blank
        yield longer > self._filters.max_length
        yield (self._filters.max_ratio > 0) & (longer > self._filters.max_ratio * shorter)
        yield self._filters.drop_identical & same


_worker: Tokenizer


def _start_worker(*make) -> None:
    global _worker
    _worker = Tokenizer(*make)
    gc.disable()  # nothing here is cyclic, and the many lists of ids are looked through in vain

    def end_with_parent() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _tokenize_in_worker(sources: Sequence[str], targets: Sequence[str]) -> Chunk:
    return _worker(sources, targets)
