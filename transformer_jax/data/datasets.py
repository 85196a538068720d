"""The data of a run: its vocabulary, and the tokens of its corpora."""

import functools
import logging
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from transformer_jax.config import Config, DataConfig
from transformer_jax.data.batches import Batches
from transformer_jax.data.corpora import Corpus, Pair, parse_corpora
from transformer_jax.data.file_hashes import FileHashes
from transformer_jax.data.packing import Growth, Shape, bucketed_rows, packed_rows
from transformer_jax.data.subword_sampling import Resampler
from transformer_jax.data.token_store import Filters, TokenStore, open_store
from transformer_jax.data.vocabulary import Sample, Vocabulary, draw_sample, sample_size
from transformer_jax.heartbeat import heartbeat
from transformer_jax.storage import Writer, cache_folder, cached, local_folder

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


def load_data(
    config: Config, vocabulary_file: pathlib.Path | None = None, *, resumed: bool = False
) -> RunData:
    """Reads and tokenises the corpora of a run, which an older version may have begun if `resumed`.

    Without a file, a vocabulary is trained on the training corpora.
    """
    data = config.data
    if not data.train:
        raise ValueError("config.data.train names no corpus")
    cache = local_folder(data.cache_dir) if data.cache_dir else cache_folder("data")
    parse = functools.partial(
        parse_corpora,
        hashes=FileHashes(cache),
        source_language=data.source_language,
        target_language=data.target_language,
        language_tags=data.language_tags,
    )
    corpora = parse(data.train, max_pairs=data.max_pairs)
    if not resumed and data.temperature != 1 and (len(corpora) == 1 or corpora[0].weight):
        raise ValueError(
            f"config.data.temperature={data.temperature} needs a mixture without weights, which "
            f"config.data.train={data.train} is not (or leave it at its default, 1.0)"
        )
    valid_corpora = parse(data.valid) if data.valid else []
    test_corpora = parse(data.test) if data.test else []
    if vocabulary_file:
        vocabulary = Vocabulary.load(vocabulary_file)
    else:
        vocabulary = _trained_vocabulary(config.data, corpora, cache)
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
    valid_pairs = [list(corpus) for corpus in valid_corpora]
    valid = [_open("validation", corpus, vocabulary, filters, cache) for corpus in valid_corpora]
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
        max_side = config.data.tokens_per_batch or math.inf
        rows = packed_rows(data.train, given, growth, data.cache, max_side)
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


def _trained_vocabulary(data: DataConfig, corpora: list[Corpus], cache: pathlib.Path) -> Vocabulary:
    """A vocabulary trained on the corpora, from the cache where it is there."""
    options = {"byte_fallback": data.byte_fallback, "normalization": data.normalization}
    options["tags"] = sorted({corpus.tag for corpus in corpora} - {""})
    kind, size = data.vocabulary_kind, data.vocab_size

    def draw() -> Sample:
        with heartbeat("reading the training corpora"):
            return draw_sample(
                corpora, kind, data.byte_fallback, data.normalization, sample_size(size)
            )

    # New files must be read for their hashes: this serves to draw the sample, too.
    first = None if all(corpus.is_hashed for corpus in corpora) else draw()
    contents = [corpus.fingerprint() for corpus in corpora]

    def train(writer: Writer) -> dict:
        logger.info("training a vocabulary, %s, of %d", kind, size)
        sample = first or draw()
        for corpus, pairs in zip(corpora, sample.sizes):
            if not pairs:
                raise ValueError(f"the training corpus {corpus.name} is empty")
        with heartbeat("training the vocabulary"):
            vocabulary = Vocabulary.train(corpora, size, kind, **options, sample=sample)
        for corpus, content in zip(corpora, contents):
            corpus.check_unchanged(content)
        writer.append("model", np.frombuffer(vocabulary.model, np.uint8))
        return {}

    key = ["nfc", kind, size, options, contents]
    entry = cached(cache, "vocabulary", key, "the vocabulary", train)
    return Vocabulary(entry.arrays["model"].tobytes())


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
