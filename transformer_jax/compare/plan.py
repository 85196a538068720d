"""What a comparison is made of, and whether it compares like with like."""

import copy
import hashlib
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from transformer_jax.checkpoint import CONFIG_FILE, VOCABULARY_FILE
from transformer_jax.config import Config, differences, load_config, with_field
from transformer_jax.storage import local_path
from transformer_jax.training.workdir import kept_config, with_named_vocabulary


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
    vocabulary_of: pathlib.Path | None


class Budget(NamedTuple):
    """What each run gets: target tokens, or seconds of training; the other one is 0."""

    target_tokens: int = 0
    train_seconds: float = 0.0


# What makes runs comparable: the same text, in the same pieces.
_SAME = (
    "train valid test source_language target_language language_tags temperature max_length "
    "max_length_ratio drop_identical max_pairs sampling_alpha vocab_size vocabulary_kind "
    "byte_fallback normalization"
).split()


def plan(
    configs: Sequence[str],
    workdir: pathlib.Path,
    *,
    overrides: Sequence[str] = (),
    pairs: Sequence[int] = (),
) -> list[Run]:
    """The runs of a comparison, those on all pairs first.

    Args:
      configs: each a file with `get_config()`, or FILE:ARGUMENT for `get_config(ARGUMENT)`.
      workdir: of the comparison; each run has a folder in it.
      overrides: fields that all configs get, such as "data.max_length=50".
      pairs: further sizes of the training corpus, of which each model has a run too.

    Raises:
      ValueError: a config is none or has no test corpus, two have one name, their data or
        vocabularies differ, or a run in the workdir was made with another config.
    """
    if not configs:
        raise ValueError("there is nothing to compare: no config was named")
    loaded: dict[str, Config] = {}
    for path in configs:
        name = re.sub(r"[^\w.-]+", "-", path.partition(":")[2] or pathlib.Path(path).stem)
        if name in loaded:
            raise ValueError(f"two configs are called {name}: {', '.join(configs)}")
        config = load_config(path)
        for override in overrides:
            field, equals, text = override.partition("=")
            if not equals:
                raise ValueError(f"--override={override} is not FIELD=VALUE")
            with_field(config, field, text)
        try:
            loaded[name] = config.validate()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    _check_alike(loaded)
    runs = [Run(name, config, workdir / name, None) for name, config in loaded.items()]
    for count in pairs:
        if count < 1:
            raise ValueError(f"{count} training pairs: at least 1 was wanted")
        for name, config in loaded.items():
            fewer = copy.deepcopy(config)
            fewer.data.max_pairs = count
            # A vocabulary of the few pairs alone would make other tokens of the same text.
            runs.append(Run(name, fewer, workdir / f"{name}-{count}", workdir / name))
    folders = [run.workdir for run in runs]
    for run in runs:
        if folders.count(run.workdir) > 1 or run.workdir.parent != workdir or ".." in run.name:
            raise ValueError(f"{run.workdir} is no folder for one run: rename a config")
        _check_owner(run)
    return runs


def _check_alike(configs: dict[str, Config]) -> None:
    first, *others = configs
    if not configs[first].data.test:
        raise ValueError(f"{first}: config.data.test names no corpus to compare the models on")
    for other in others:
        one, its = configs[first].data, configs[other].data
        for field in _SAME:
            if getattr(one, field) != getattr(its, field):
                what = "vocabularies" if field.startswith(("vocab", "byte", "norm")) else "data"
                raise ValueError(
                    f"{first} and {other} have different {what}: config.data.{field} is "
                    f"{getattr(one, field)!r} and {getattr(its, field)!r}; a comparison wants one"
                )
        starts = [configs[name].training.init_from for name in (first, other)]
        if starts[0] != starts[1]:
            raise ValueError(
                f"{first} and {other} have different vocabularies: config.training.init_from is "
                f"{starts[0]!r} and {starts[1]!r}, and brings its own"
            )
        if _content(one.vocabulary) != _content(its.vocabulary):
            raise ValueError(
                f"{first} and {other} have different vocabularies: config.data.vocabulary is "
                f"{one.vocabulary!r} and {its.vocabulary!r}, which are not the same file"
            )


def _content(vocabulary: str) -> str:
    if not vocabulary:
        return ""
    try:
        return hashlib.sha256(pathlib.Path(local_path(vocabulary)).read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(f"{vocabulary}: {error.strerror}, a vocabulary was wanted") from None


def _check_owner(run: Run) -> None:
    if not (run.workdir / CONFIG_FILE).is_file():
        return
    before = kept_config(run.workdir)
    config = settled(run, before.training.num_steps)
    changed = differences(before, with_named_vocabulary(run.workdir, config))
    if changed:
        raise ValueError(
            f"{run.workdir} was trained with another config: {'; '.join(changed)} (choose another "
            "--workdir, or delete that folder)"
        )


def settled(run: Run, num_steps: int) -> Config:
    """The config that a run is trained with: its budget and the test are the comparison's own."""
    config = copy.deepcopy(run.config)
    config.training.num_steps, config.training.patience = num_steps, 0
    config.data.test = ""
    if run.vocabulary_of is not None:
        config.data.vocabulary = str(run.vocabulary_of / VOCABULARY_FILE)
    return config
