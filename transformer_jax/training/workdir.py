"""The workdir of a run: whose it is, its vocabulary, and the tokens of its corpora."""

import contextlib
import copy
import fcntl
import functools
import hashlib
import json
import logging
import math
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.checkpoint import CONFIG_FILE, FOLDER, VOCABULARY_FILE, read_config
from transformer_jax.config import Config, DataConfig, differences
from transformer_jax.data.array_files import Writer, open_or_build
from transformer_jax.data.batching import Batches
from transformer_jax.data.corpus import Corpus, Pair, parse_corpora
from transformer_jax.data.resampling import Resampler
from transformer_jax.data.rows import Growth, Shape, bucketed_rows, packed_rows
from transformer_jax.data.token_store import Filters, TokenStore, open_store
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.heartbeat import heartbeat
from transformer_jax.paths import cache_folder, local_folder, local_path

logger = logging.getLogger(__name__)


class RunData(NamedTuple):
    """What a run reads: vocabulary, training corpora and their tokens, and the same to validate."""

    vocabulary: Vocabulary
    corpora: list[Corpus]
    train: list[TokenStore]
    valid_corpora: list[Corpus]
    valid: list[TokenStore]
    valid_pairs: list[list[Pair]]  # of each corpus
    cache: pathlib.Path

    @property
    def fingerprint(self) -> int:
        """Of all training tokens and their weights, as one number."""
        parts = [(x.fingerprint, y.weight) for x, y in zip(self.train, self.corpora)]
        return zlib.crc32(repr(parts).encode())


def check_owner(workdir: pathlib.Path, config: Config) -> Config:
    """The config as its workdir keeps it; ValueError where that is a run of another config."""
    config = with_named_vocabulary(workdir, config)
    if (workdir / CONFIG_FILE).exists():
        before = kept_config(workdir)
        _check_names(workdir, before, config)
        changed = differences(before, config)
        if changed:
            raise ValueError(
                f"{workdir} belongs to a run of another config: {'; '.join(changed)} (it goes on "
                "with the config that it was made with; another --workdir with "
                f"--config.training.init_from={workdir} starts from its parameters)"
            )
    elif any((workdir / FOLDER).glob("[0-9]*")):
        raise ValueError(f"{workdir} has checkpoints but no {CONFIG_FILE} that says of what")
    return config


def with_named_vocabulary(workdir: pathlib.Path, config: Config) -> Config:
    """The config with the kind and size of the vocabulary that it names in place of defaults.

    ValueError where it says others: no vocabulary is trained by them.
    """
    path = _vocabulary_file(workdir, config)
    kept = [read_config(workdir)] if (workdir / CONFIG_FILE).exists() else []
    if path is None or not any(x.data.vocabulary or x.training.init_from for x in [config, *kept]):
        return config
    config = copy.deepcopy(config)
    for name, own in _settings(Vocabulary.load(path), config).items():
        value = getattr(config.data, name)
        if value not in (own, getattr(DataConfig, name)):
            raise ValueError(
                f"config.data.{name}={value} has no effect beside the vocabulary {path}, whose "
                f"{name} is {own}: leave it out, or config.data.vocabulary and "
                "config.training.init_from"
            )
        setattr(config.data, name, own)
    return config.validate()


def kept_config(workdir: pathlib.Path) -> Config:
    """The config of a run; it says what the vocabulary is, which older versions did not."""
    config, path = read_config(workdir), workdir / VOCABULARY_FILE
    for name, own in _settings(Vocabulary.load(path), config).items() if path.exists() else ():
        setattr(config.data, name, own)
    return config


def _settings(vocabulary: Vocabulary, config: Config) -> dict[str, Any]:
    """What a vocabulary is, as a config says it that it fits."""
    settings = vocabulary.settings()
    if settings.get("vocabulary_kind") == "symbols":  # of which there may be fewer
        settings["vocab_size"] = max(settings["vocab_size"], config.data.vocab_size)
    return settings


def _check_names(workdir: pathlib.Path, before: Config, config: Config) -> None:
    """ValueError where a run is to go on with a vocabulary or parameters that are not its own."""
    path = config.data.vocabulary
    other = path if path != before.data.vocabulary else ""
    if other and Vocabulary.load(local_path(other)).fingerprint() == (
        Vocabulary.load(workdir / VOCABULARY_FILE).fingerprint()
    ):
        other = ""  # has been moved
    field = "data.vocabulary" if other else "training.init_from"
    if other or (config.training.init_from and not before.training.init_from):
        raise ValueError(
            f"config.{field} has no effect on the run that {workdir} has already: leave it out, or "
            "choose another --workdir"
        )


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the workdir and holds it for one process; ValueError where another has it.

    What was made here is removed again where an error ends it before anything else is in there.
    """
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {workdir}") from None
        except OSError:
            logger.warning("%s cannot be locked: see that no other process trains in it", workdir)
        try:
            yield
        except BaseException:
            if made and {path.name for path in workdir.rglob("*")} <= {".lock", FOLDER}:
                (workdir / ".lock").unlink()
                for folder in (workdir / FOLDER, *made):
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            raise


def keep(workdir: pathlib.Path, config: Config, vocabulary: Vocabulary) -> None:
    """Writes vocabulary and config, each whole or not at all: decoding needs nothing else.

    The config comes last, so that a workdir that has one has both.
    """
    vocabulary.save(workdir / VOCABULARY_FILE)
    aside = workdir / f"{CONFIG_FILE}.tmp"
    aside.write_text(config.to_json())
    aside.rename(workdir / CONFIG_FILE)


def load_data(workdir: pathlib.Path, config: Config) -> RunData:
    """Reads and tokenises the corpora; trains the vocabulary where there is none.

    A vocabulary in a workdir without a config is what an earlier attempt left, and unused.
    """
    data = config.data
    if not data.train:
        raise ValueError("config.data.train names no corpus")
    cache = local_folder(data.cache_dir) if data.cache_dir else cache_folder("data")
    parse = functools.partial(
        parse_corpora,
        source_language=data.source_language,
        target_language=data.target_language,
        language_tags=data.language_tags,
    )
    corpora = parse(data.train, max_pairs=data.max_pairs)
    begins = not (workdir / CONFIG_FILE).exists()  # older versions took it without effect
    if begins and data.temperature != 1 and (len(corpora) == 1 or corpora[0].weight):
        raise ValueError(
            f"config.data.temperature={data.temperature} needs a mixture without weights, which "
            f"config.data.train={data.train} is not (or leave it at its default, 1.0)"
        )
    valid_corpora = parse(data.valid) if data.valid else []
    test_corpora = parse(data.test) if data.test else []
    vocabulary = _vocabulary(workdir, config, corpora, cache)
    for corpus in corpora + valid_corpora + test_corpora:
        if corpus.tag and not vocabulary.has_piece(corpus.tag):
            raise ValueError(
                f"the vocabulary has no symbol {corpus.tag}, which config.data.language_tags puts "
                f"before each source of {corpus.name} (normalization: {vocabulary.normalization})"
            )
        if corpus.weight and corpus not in corpora:
            raise ValueError(f"corpus {corpus.name} is not trained on: its weight has no meaning")
    filters = Filters(data.max_length, data.max_length_ratio, data.drop_identical)
    train = [_open("training", corpus, vocabulary, filters, cache) for corpus in corpora]
    filters = Filters(data.max_length)
    valid = [_open("validation", corpus, vocabulary, filters, cache) for corpus in valid_corpora]
    valid_pairs = [list(corpus) for corpus in valid_corpora]
    for corpus in test_corpora:
        if next(iter(corpus), None) is None:
            raise ValueError(f"the test corpus {corpus.name} is empty")
    return RunData(vocabulary, corpora, train, valid_corpora, valid, valid_pairs, cache)


def training_batches(config: Config, data: RunData) -> Callable[[int], Batches]:
    """The batches of a run, given their tokens_per_batch."""
    resampler, growth = None, Growth()
    if config.data.sampling_alpha:
        resampler = Resampler(data.vocabulary, config.data.sampling_alpha, config.seed)
        growth = resampler.growth(data.train)
    if config.data.batching == "packed":
        given = Shape(config.data.source_row_length, config.data.target_row_length)
        most = config.data.tokens_per_batch or math.inf
        rows = packed_rows(data.train, given, growth, data.cache, most)
    else:
        rows = bucketed_rows(data.train, config.data.num_buckets, growth, data.cache)
    return lambda tokens: Batches(
        data.train,
        rows,
        tokens_per_batch=tokens,
        seed=config.seed,
        weights=[corpus.weight for corpus in data.corpora if corpus.weight],
        temperature=config.data.temperature,
        resampler=resampler,
    )


def _vocabulary_file(workdir: pathlib.Path, config: Config) -> pathlib.Path | None:
    """The workdir's own vocabulary, or the one that the config names, or None."""
    if (workdir / CONFIG_FILE).exists():
        return workdir / VOCABULARY_FILE
    if config.data.vocabulary:
        return pathlib.Path(local_path(config.data.vocabulary))
    if config.training.init_from:
        return pathlib.Path(local_path(config.training.init_from)) / VOCABULARY_FILE
    return None


def _vocabulary(
    workdir: pathlib.Path, config: Config, corpora: list[Corpus], cache: pathlib.Path
) -> Vocabulary:
    """The workdir's own, or the one that the config names, or one trained on the corpora."""
    data = config.data
    if path := _vocabulary_file(workdir, config):
        return Vocabulary.load(path)
    options = {"byte_fallback": data.byte_fallback, "normalization": data.normalization}
    options["tags"] = sorted({corpus.tag for corpus in corpora} - {""})
    contents = [corpus.fingerprint() for corpus in corpora]
    key = [data.vocabulary_kind, data.vocab_size, options, contents]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:20]

    def train(writer: Writer) -> dict:
        logger.info("training a vocabulary, %s, of %d", data.vocabulary_kind, data.vocab_size)
        for corpus in corpora:
            if next(iter(corpus), None) is None:
                raise ValueError(f"the training corpus {corpus.name} is empty")
        with heartbeat("training the vocabulary"):
            vocabulary = Vocabulary.train(corpora, data.vocab_size, data.vocabulary_kind, **options)
        for corpus, content in zip(corpora, contents):
            corpus.check_unchanged(content)
        writer.append("model", np.frombuffer(vocabulary.model, np.uint8))
        return {}

    kept = open_or_build(cache / f"vocabulary-{digest}", "the vocabulary", train)
    return Vocabulary(kept.arrays["model"].tobytes())


def _open(
    role: str, corpus: Corpus, vocabulary: Vocabulary, filters: Filters, cache: pathlib.Path
) -> TokenStore:
    store = open_store(corpus, vocabulary, filters, cache)
    logger.info(
        "%s corpus %s, %s-%s: %s pairs, %s source and %s target tokens; left out: %s%s",
        role,
        corpus.name,
        corpus.source_language,
        corpus.target_language,
        *(f"{n:,}" for n in (len(store), store.source.ids.size, store.target.ids.size)),
        store.left_out,
        f"; altered by encoding and decoding: {store.altered}" if store.counts["altered"] else "",
    )
    if not len(store):
        raise ValueError(
            f"the {role} corpus {corpus.name} has no pair left to use (left out: {store.left_out})"
            if store.counts["pairs"]
            else f"the {role} corpus {corpus.name} is empty"
        )
    return store
