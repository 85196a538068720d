"""The runs of a comparison, and whether they compare like with like."""

import copy
import dataclasses
import operator
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from transformer_jax.config import Config, DataConfig, load_config, with_field
from transformer_jax.saved_run import CONFIG_FILE, VOCABULARY_FILE
from transformer_jax.storage import local_path
from transformer_jax.training.run import check_owner

# How a run reads its data is its own; all else of config.data is the same for all.
_OWN = "vocabulary batching source_row_length target_row_length num_buckets tokens_per_batch "
_OWN += "cache_dir"
_SHARED = [f"data.{x.name}" for x in dataclasses.fields(DataConfig) if x.name not in _OWN.split()]


class Run(NamedTuple):
    """One training of a comparison.

    Attributes:
      name: of its model; runs on fewer pairs share it.
      config: of the run, but for its number of updates.
      workdir: of the run.
      vocabulary_of: the workdir whose vocabulary it takes, where it sees fewer pairs; or None.
    """

    name: str
    config: Config
    workdir: pathlib.Path
    vocabulary_of: pathlib.Path | None = None


class Budget(NamedTuple):
    """What each run gets: target tokens, or seconds of training; the other is 0."""

    target_tokens: int = 0
    train_seconds: float = 0.0


def plan(
    configs: Sequence[str],
    workdir: pathlib.Path,
    *,
    overrides: Sequence[str] = (),
    pairs: Sequence[int] = (),
) -> list[Run]:
    """The runs of a comparison, those on all pairs first, each in a folder of the workdir.

    ValueError where a config is none or lacks a test corpus, where two would share a folder or
    differ in data or vocabulary, or where a folder has a run of another config.
    """
    named = [(re.sub(r"^\.+|[^\w.-]+", "-", _name(x)), _configured(x, overrides)) for x in configs]
    _check_alike(named)
    runs = [Run(name, config, workdir / name) for name, config in named]
    for count in pairs:
        if count < 1:
            raise ValueError(f"{count} training pairs: expected at least 1")
        for name, config in named:
            fewer = copy.deepcopy(config)
            fewer.data.max_pairs = count
            # A vocabulary of the few pairs alone would make other tokens of the same text.
            runs.append(Run(name, fewer, workdir / f"{name}-{count}", workdir / name))
    folders = [run.workdir for run in runs]
    for run in runs:
        if folders.count(run.workdir) > 1:
            raise ValueError(f"two runs would be in {run.workdir}: rename a config")
        if (run.workdir / CONFIG_FILE).is_file():
            check_owner(run.workdir, settled(run, 1))
    return runs


def settled(run: Run, num_steps: int) -> Config:
    """The config that a run is trained with: its budget and the test are the comparison's own."""
    config = copy.deepcopy(run.config)
    config.training.num_steps, config.training.patience = num_steps, 0
    config.data.test = ""
    if run.vocabulary_of is not None:
        config.data.vocabulary = str(run.vocabulary_of / VOCABULARY_FILE)
    return config


def _name(path: str) -> str:
    return path.partition(":")[2] or pathlib.Path(path).stem


def _configured(path: str, overrides: Sequence[str]) -> Config:
    config = load_config(path)
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"--override={override} is not FIELD=VALUE")
        with_field(config, field, text)
    try:
        return config.validate()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_alike(named: Sequence[tuple[str, Config]]) -> None:
    if not named:
        raise ValueError("there is nothing to compare: --configs names no config")
    (first, config), *others = named
    if not config.data.test:
        raise ValueError(f"{first}: config.data.test names no corpus to compare the models on")
    for name, other in others:
        for field in (*_SHARED, "training.init_from"):
            one, two = map(operator.attrgetter(field), (config, other))
            if one != two:
                raise ValueError(
                    f"{first} and {name} do not compare: config.{field} is {one!r} and {two!r}, "
                    "expected one value"
                )
        if _vocabulary(config) != _vocabulary(other):
            raise ValueError(
                f"{first} and {name} do not compare: config.data.vocabulary is "
                f"{config.data.vocabulary!r} and {other.data.vocabulary!r}, which differ"
            )


def _vocabulary(config: Config) -> bytes:
    path = config.data.vocabulary
    return pathlib.Path(local_path(path)).read_bytes() if path else b""
