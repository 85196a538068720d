"""Dry run: describes data, batches and memory, and makes one step, before a long run."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator

import jax
import numpy as np

from transformer_jax.config import Config
from transformer_jax.data.token_store import REASONS, Side, TokenStore
from transformer_jax.devices import usable_memory
from transformer_jax.storage import local_folder, removed
from transformer_jax.training import targets
from transformer_jax.training.run import check_owner, load_data
from transformer_jax.training.trainer import Trainer

# Shares beyond which something is likely to be wrong.
_MANY_UNKNOWN, _MANY_EQUAL, _MANY_LEFT_OUT = 0.01, 0.05, 0.2
_FEW_USED, _FEW_REAL = 0.5, 0.7
_FEW_CHARACTERS = 1.2  # a token
_BLOCK = 1 << 24  # tokens counted at once


def dry_run(config: Config, workdir: str | os.PathLike, target: str = "") -> int:
    """Prints what a run would be; leaves no run, only what the cache keeps. Returns 0.

    Args:
      config, workdir: of the run.
      target: machines that its step is compiled for instead of made here, as in "tpu:v5e:4x4".

    Raises:
      ValueError, OSError: as training would.
    """
    config = check_owner(local_folder(workdir), config)
    if target:
        config.validate()
        machines = targets.find_target(target)
        for line in targets.describe(config, load_data(local_folder(workdir), config), machines):
            print(line, flush=True)
        return 0
    start = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        removed(folder),
        contextlib.closing(Trainer(config, folder)) as trainer,
    ):
        ready = time.monotonic() - start
        words = _word_counts(trainer.data.train, len(trainer.data.vocabulary))
        for line in _describe(trainer, np.count_nonzero(words.sum(axis=0))):
            print(line)
        start = time.monotonic()
        trainer.advance()
        report = trainer.settle() or trainer.report()
        seconds, loss = time.monotonic() - start, report["loss"]
        print(f"first step: ready in {ready:.1f} s, run in {seconds:.2f} s, loss {loss:.3f}")
        for warning in _warnings(trainer, words):
            print(f"warning: {warning}")
    return 0


def _describe(trainer: Trainer, used: int) -> Iterator[str]:
    data, batches = trainer.data, trainer.batches
    parts = [("training", *x) for x in zip(data.corpora, data.train)]
    parts += [("validation", *x) for x in zip(data.valid_corpora, data.valid)]
    for role, corpus, store in parts:
        counts = store.counts
        yield (
            f"{role} {corpus.name}, {corpus.source_language}-{corpus.target_language}: "
            f"{counts['pairs']:,} pairs, {len(store):,} kept, left out: {store.left_out}"
        )
        for side in ("source", "target"):
            yield f"  {side}: {_describe_side(getattr(store, side), side, store)}"
        yield f"  targets altered by encoding and decoding: {store.altered}"
    yield f"vocabulary: {len(data.vocabulary):,} pieces, of which {used:,} occur"
    source, target = batches.packing_efficiency()
    shapes = ", ".join(f"{rows} rows of {s.source} + {s.target}" for rows, s in batches.shapes)
    yield f"batches: {trainer.config.data.batching}, {shapes} tokens"
    yield f"real tokens: {source:.1%} of the source side, {target:.1%} of the target side"
    for corpus, share, steps in zip(data.corpora, batches.schedule.shares, batches.steps_per_epoch):
        epochs = trainer.config.training.num_steps / steps
        yield (
            f"epoch of {corpus.name}: {steps:,.1f} steps, {share:.1%} of training; the run has "
            f"{epochs:.2f}"
        )
    parameters = sum(x.size for x in jax.tree.leaves(trainer.state.params))
    yield f"model: {trainer.config.model.kind}, {parameters:,} parameters"
    yield (
        f"memory: a step needs {trainer.compiled.bytes / 2**30:.2f} GiB on each of "
        f"{jax.local_device_count()} devices ({jax.local_devices()[0].device_kind}), of "
        f"{usable_memory() / 2**30:.2f} that may be used"
    )


def _describe_side(side: Side, name: str, store: TokenStore) -> str:
    tokens, counts = side.ids.size, np.bincount(side.lengths(0, len(store)))
    seen = np.cumsum(counts) / len(store)
    middle, most, nearly_all = (int(np.searchsorted(seen, x)) for x in (0.5, 0.9, 0.99))
    return (
        f"{tokens:,} tokens, a sentence {tokens / len(store):.1f} (50 % {middle}, 90 % {most}, "
        f"99 % {nearly_all}, longest {len(counts) - 1}), unknown "
        f"{store.counts[f'{name} unknown'] / tokens:.3%}, "
        f"{store.counts[f'{name} characters'] / tokens:.2f} characters a token"
    )


def _warnings(trainer: Trainer, words: np.ndarray) -> Iterator[str]:
    data, vocab_size = trainer.data, len(trainer.data.vocabulary)
    for corpus, store in zip(data.corpora, data.train):
        pairs = store.counts["pairs"]
        causes = {"same": (_MANY_EQUAL, "have equal sides")}
        causes |= {reason: (_MANY_LEFT_OUT, f"are {reason}") for reason in REASONS}
        for name, (limit, text) in causes.items():
            if store.counts[name] > limit * pairs:
                yield f"{corpus.name}: {store.counts[name] / pairs:.0%} of the pairs {text}"
    for role, stores in (("training", data.train), ("validation", data.valid)):
        for side in ("source", "target"):
            yield from _unfit(f"the {role} corpus' {side} side", side, stores)
    used = np.count_nonzero(words.sum(axis=0)) / vocab_size
    if used < _FEW_USED:
        yield (
            f"only {used:.0%} of the vocabulary occurs in the training corpus: was it made for "
            "other text?"
        )
    if data.valid and _swapped(words, _word_counts(data.valid, vocab_size)):
        yield (
            "the training corpus' source side looks like the validation corpus' target side, "
            "and the other way round: are the sides swapped?"
        )
    if trainer.batches.packing_efficiency().max() < _FEW_REAL:
        yield f"more than {1 - _FEW_REAL:.0%} of each batch is padding"


def _unfit(what: str, side: str, stores: list[TokenStore]) -> Iterator[str]:
    """Warns where the vocabulary does not fit a side's text."""
    tokens = sum(getattr(store, side).ids.size for store in stores)
    unknown = sum(store.counts[f"{side} unknown"] for store in stores)
    characters = sum(store.counts[f"{side} characters"] for store in stores)
    if unknown > _MANY_UNKNOWN * tokens:
        yield f"{unknown / tokens:.1%} of {what} are symbols that the vocabulary does not know"
    elif tokens and characters < _FEW_CHARACTERS * tokens:
        yield (
            f"{what} has {characters / tokens:.2f} characters a token: the vocabulary spells it "
            "rather than knowing its words"
        )


def _word_counts(stores: list[TokenStore], vocab_size: int) -> np.ndarray:
    """[2, V] how often each entry of the vocabulary occurs on either side."""
    result = np.zeros((2, vocab_size), np.int64)
    for store in stores:
        for row, side in zip(result, (store.source, store.target)):
            for start in range(0, len(side.ids), _BLOCK):
                row += np.bincount(side.ids[start : start + _BLOCK], minlength=vocab_size)
    return result


def _swapped(train: np.ndarray, valid: np.ndarray) -> bool:
    """Whether each side's word counts, [2, V], resemble those of validation's other side more."""
    roots = [np.sqrt(counts) for counts in (train, valid)]
    train, valid = (x / np.linalg.norm(x, axis=1)[:, None] for x in roots)
    similarity = train @ valid.T
    return bool((similarity.diagonal() < similarity[:, ::-1].diagonal()).all())
