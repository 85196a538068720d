"""The workdir of a run: whose it is, its vocabulary, and the tokens of its corpora."""

import contextlib
import fcntl
import logging
import pathlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from transformer_jax.config import Config, differences
from transformer_jax.data.corpus import Pair, read_corpus
from transformer_jax.data.token_store import TokenStore, tokenize
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.training.checkpoint import CONFIG_FILE, FOLDER, VOCABULARY_FILE, read_config

logger = logging.getLogger(__name__)


class RunData(NamedTuple):
    """What a run reads: vocabulary, training and validation tokens, validation pairs."""

    vocabulary: Vocabulary
    train: TokenStore
    valid: TokenStore | None
    valid_pairs: list[Pair]


def check_owner(workdir: pathlib.Path, config: Config) -> None:
    """Checks that a workdir is new or this config's; ValueError says what differs."""
    if (workdir / CONFIG_FILE).exists():
        changed = differences(read_config(workdir), config)
        if changed:
            raise ValueError(
                f"{workdir} belongs to a run of another config: {'; '.join(changed)} "
                "(choose another --workdir, or the config that it was made with)"
            )
    elif any((workdir / FOLDER).glob("[0-9]*")):
        raise ValueError(f"{workdir} has checkpoints but no {CONFIG_FILE} that says of what")


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the workdir and holds it for one process; ValueError where another has it."""
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is training in {workdir}") from None
        except OSError:
            logger.warning("%s cannot be locked: see that no other process trains in it", workdir)
        yield


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
    languages = (data.source_language, data.target_language)

    def training_pairs() -> Iterator[Pair]:
        return read_corpus(data.train, *languages, data.max_pairs)

    if next(training_pairs(), None) is None:
        raise ValueError(f"the training corpus {data.train} is empty")
    # Read twice, for vocabulary and tokens: the text of a large corpus does not fit memory.
    vocabulary = _vocabulary(workdir, config, training_pairs())
    train = _tokenize("training", data.train, training_pairs(), vocabulary, data.max_length)
    valid, valid_pairs = None, []
    if data.valid:
        valid_pairs = list(read_corpus(data.valid, *languages))
        valid = _tokenize("validation", data.valid, valid_pairs, vocabulary, data.max_length)
    if data.test and next(read_corpus(data.test, *languages), None) is None:
        raise ValueError(f"the test corpus {data.test} is empty")
    return RunData(vocabulary, train, valid, valid_pairs)


def _vocabulary(workdir: pathlib.Path, config: Config, pairs: Iterable[Pair]) -> Vocabulary:
    data = config.data
    if (workdir / CONFIG_FILE).exists():
        return Vocabulary.load(workdir / VOCABULARY_FILE)
    if data.vocabulary:
        return Vocabulary.load(data.vocabulary)
    if config.training.init_from:
        return Vocabulary.load(pathlib.Path(config.training.init_from) / VOCABULARY_FILE)
    logger.info("training a %s vocabulary of %d pieces", data.vocabulary_kind, data.vocab_size)
    return Vocabulary.train(pairs, data.vocab_size, data.vocabulary_kind)


def _tokenize(
    role: str, name: str, pairs: Iterable[Pair], vocabulary: Vocabulary, max_length: int
) -> TokenStore:
    store = tokenize(pairs, vocabulary, max_length)
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in store.left_out.items() if count)
    logger.info(
        "%s corpus %s: %s pairs, %s source and %s target tokens; left out: %s",
        role,
        name,
        f"{len(store):,}",
        f"{store.source.ids.size:,}",
        f"{store.target.ids.size:,}",
        left_out or "none",
    )
    if not len(store):
        raise ValueError(
            f"the {role} corpus {name} has no pair left to use (left out: {left_out or 'none'})"
        )
    return store
