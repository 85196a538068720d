"""The workdir of a run: whose it is, its lock, config and vocabulary."""

import contextlib
import copy
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from transformer_jax.checkpoint import CONFIG_FILE, FOLDER, VOCABULARY_FILE, read_config
from transformer_jax.config import Config, DataConfig, differences
from transformer_jax.data import datasets
from transformer_jax.data.datasets import RunData
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.storage import atomic_write, local_path, lock

logger = logging.getLogger(__name__)


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
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(lock(workdir / ".lock"))
        except BlockingIOError:
            raise ValueError(f"another process is training in {workdir}") from None
        if not held:
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
    with atomic_write(workdir / CONFIG_FILE) as file:
        file.write(config.to_json())


def load_data(workdir: pathlib.Path, config: Config) -> RunData:
    """The data of a run, whose vocabulary is the workdir's own where it has a config.

    A vocabulary in a workdir without a config is what an earlier attempt left, and unused.
    """
    resumed = (workdir / CONFIG_FILE).exists()
    return datasets.load_data(config, _vocabulary_file(workdir, config), resumed=resumed)


def _vocabulary_file(workdir: pathlib.Path, config: Config) -> pathlib.Path | None:
    """The workdir's own vocabulary, or the one that the config names, or None."""
    if (workdir / CONFIG_FILE).exists():
        return workdir / VOCABULARY_FILE
    if config.data.vocabulary:
        return pathlib.Path(local_path(config.data.vocabulary))
    if config.training.init_from:
        return pathlib.Path(local_path(config.training.init_from)) / VOCABULARY_FILE
    return None
