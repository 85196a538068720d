"""A run and its workdir: ownership, lock, config and vocabulary, and the state it begins with."""

import contextlib
import copy
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from transformer_jax import hosts
from transformer_jax.checkpoint import FOLDER, Checkpoints, DamagedError, check_shapes
from transformer_jax.config import Config, DataConfig, differences
from transformer_jax.data import datasets
from transformer_jax.data.datasets import RunData
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.interruption import undone
from transformer_jax.model.build import first_params
from transformer_jax.saved_run import (
    CONFIG_FILE,
    VOCABULARY_FILE,
    check_origin,
    load_run,
    read_config,
)
from transformer_jax.sharding import DataParallel, Sharded
from transformer_jax.storage import atomic_write, local_path, lock
from transformer_jax.training.step import TrainState, items

logger = logging.getLogger(__name__)


def check_owner(workdir: pathlib.Path, config: Config) -> Config:
    """The config as the workdir's run has it; ValueError where that run has another config."""
    config = with_named_vocabulary(workdir, config)
    if (workdir / CONFIG_FILE).exists():
        before = read_config(workdir)
        check_origin(workdir, before)
        _check_ignored_names(workdir, before, config)
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

    Raises:
      ValueError: a field says otherwise, which would have no effect: no vocabulary is trained.
    """
    path = _vocabulary_file(workdir, config)
    saved = [read_config(workdir)] if (workdir / CONFIG_FILE).exists() else []
    if path is None or not any(x.data.vocabulary or x.training.init_from for x in [config, *saved]):
        return config
    config = copy.deepcopy(config)
    settings = Vocabulary.load(path).settings()
    if settings.get("vocabulary_kind") == "symbols":  # vocab_size is an upper bound
        settings["vocab_size"] = max(settings["vocab_size"], config.data.vocab_size)
    for name, actual in settings.items():
        value = getattr(config.data, name)
        if value not in (actual, getattr(DataConfig, name)):
            raise ValueError(
                f"config.data.{name}={value} has no effect beside the vocabulary {path}, whose "
                f"{name} is {actual}: leave it out, or config.data.vocabulary and "
                "config.training.init_from"
            )
        setattr(config.data, name, actual)
    return config.validate()


def _check_ignored_names(workdir: pathlib.Path, before: Config, config: Config) -> None:
    """ValueError where the config names a vocabulary or parameters that a resumed run ignores."""
    path, field = config.data.vocabulary, ""
    if path and path != before.data.vocabulary:
        named, own = Vocabulary.load(local_path(path)), Vocabulary.load(workdir / VOCABULARY_FILE)
        if named.fingerprint() != own.fingerprint():  # else the same file was moved
            field = "data.vocabulary"
    if config.training.init_from and not before.training.init_from:
        field = field or "training.init_from"
    if field:
        raise ValueError(
            f"config.{field} has no effect on the run that {workdir} has already: leave it out, or "
            "choose another --workdir"
        )


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the workdir and locks it; ValueError where another process holds the lock.

    The folders made here are removed where an error ends the body and nothing else is in them.
    """
    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]

    def remove() -> None:
        if made and {path.name for path in workdir.rglob("*")} <= {".lock", FOLDER}:
            (workdir / ".lock").unlink()
            for folder in (workdir / FOLDER, *made):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(lock(workdir / ".lock"))
        except BlockingIOError:
            raise ValueError(f"another process is training in {workdir}") from None
        if not held:
            logger.warning("%s cannot be locked: see that no other process trains in it", workdir)
        stack.enter_context(undone(remove))
        try:
            yield
        except BaseException:
            remove()
            raise


def save_run_metadata(workdir: pathlib.Path, config: Config, vocabulary: Vocabulary) -> None:
    """Writes vocabulary and config atomically; with them, checkpoints can be decoded.

    The config comes last, so that a workdir that has one has both.
    """
    vocabulary.save(workdir / VOCABULARY_FILE)
    with atomic_write(workdir / CONFIG_FILE) as file:
        file.write(config.to_json())


def load_data(workdir: pathlib.Path, config: Config) -> RunData:
    """The data of a run, whose vocabulary is the workdir's own where it has a config.

    A vocabulary in a workdir without a config is left from an earlier attempt, and unused.
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


@dataclasses.dataclass
class Progress:
    """The state of a run beside its arrays, saved as JSON with each checkpoint."""

    fingerprint: int  # of the training tokens
    tokens_per_batch: int = 0  # as configured, or as chosen for the device
    evaluated: int = -1  # step of the last evaluation
    best: list[float] = dataclasses.field(default_factory=list)  # the highest rank so far
    evals_without_improvement: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # since the last report
    offset: int = 0  # batches that roll-backs have left out
    rollbacks: int = 0
    skipped: int = 0  # updates in a row without a finite gradient
    weighted_loss: float = 0.0  # mean of the losses so far, later ones weighing more
    weight: float = 0.0  # of all of them
    lowest_loss: float = 0.0  # that it has had

    def to_json(self) -> dict[str, Any]:
        """As a checkpoint has it."""
        values = dataclasses.asdict(self)
        return values | {"worse": values.pop("evals_without_improvement")}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """The inverse of `to_json`."""
        values = dict(values)
        return cls(evals_without_improvement=values.pop("worse"), **values)


def start_state(
    workdir: pathlib.Path,
    config: Config,
    data: RunData,
    checkpoints: Checkpoints,
    optimizer: optax.GradientTransformation,
    layout: DataParallel | Sharded,
) -> tuple[TrainState, Progress]:
    """State of the latest sound checkpoint, else of `init_from`, else initial, as it is laid out.

    Checkpoints found damaged on the way are quarantined.
    """

    def initial() -> TrainState:
        params = first_params(config.model, len(data.vocabulary), config.seed)
        ema = jax.tree.map(jnp.copy, params) if config.optimizer.ema_decay else None
        return TrainState(jnp.int32(0), params, optimizer.init(params), ema)

    _check_not_imported(workdir, checkpoints)
    shapes = jax.eval_shape(initial)
    shardings = layout.shardings(shapes)
    like = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    if saved := _latest_sound(checkpoints, like):
        progress = Progress.from_json(saved["run"]["progress"])
        if progress.fingerprint != data.fingerprint:
            raise ValueError(
                f"the training corpus {config.data.train} is not the one that the run in "
                f"{workdir} was trained on: its content or weights have changed"
            )
        step = saved["run"]["step"]
        logger.info("resuming after step %d", step)
        step = layout.put(np.int32(step))
        state = TrainState(step, saved["params"], saved["optimizer"], saved.get("ema"))
        return state, progress
    state = jax.jit(initial, out_shardings=shardings)()
    if config.training.init_from:
        with hosts.together():
            params = _params_of_run(config, like.params, data.vocabulary)
        state = state._replace(params=layout.put(params), ema=state.ema and layout.put(params))
    return state, Progress(data.fingerprint)


def _check_not_imported(workdir: pathlib.Path, checkpoints: Checkpoints) -> None:
    """ValueError where the workdir has an imported model, and so no state of an optimizer."""
    for step in checkpoints.steps():
        with contextlib.suppress(DamagedError, FileNotFoundError):
            if "progress" not in checkpoints.record(step):
                raise ValueError(
                    f"{workdir} has an imported model, which was not trained here: another "
                    f"--workdir with --config.training.init_from={workdir} starts from it"
                )


def _latest_sound(checkpoints: Checkpoints, like: TrainState) -> dict[str, Any] | None:
    """What the latest sound checkpoint has, those after it set aside; None without any.

    Raises:
      ValueError: all are damaged.
    """
    damaged = []
    for step in hosts.gather(checkpoints.steps())[0]:
        saved, problem = None, ""
        try:
            saved = checkpoints.restore(step, **items(like))
        except DamagedError as error:
            problem = str(error)
        if problem := next(filter(None, hosts.gather(problem)), ""):
            logger.warning("%s", problem)
            damaged.append(step)
            continue
        for later in damaged:
            checkpoints.quarantine(later)
        return saved
    if damaged:
        raise ValueError(
            f"no checkpoint in {checkpoints.folder} is sound; move it away to start anew"
        )
    return None


def _params_of_run(config: Config, like: Any, vocabulary: Vocabulary) -> Any:
    """Parameters of another run, which must have the same shapes and vocabulary."""
    workdir, model = config.training.init_from, config.model
    of_run, other, _, params = load_run(workdir)
    where = f"config.training.init_from={workdir!r}"
    for name in ("activation", "positions"):  # which no shape tells
        if (value := getattr(model, name)) != (theirs := getattr(of_run.model, name)):
            logger.warning("%s has config.model.%s=%s, this run %s", where, name, theirs, value)
    if other.fingerprint() != vocabulary.fingerprint():
        raise ValueError(
            f"{where} has another vocabulary than this run, so that its parameters belong to other "
            "pieces: leave config.data.vocabulary out, in a new workdir, and the vocabulary is "
            "that run's as well"
        )
    check_shapes(where, params, like)
    return params


def log_schedule_change(
    workdir: pathlib.Path, config: Config, schedule: Callable[[int], Any], step: int
) -> None:
    """Logs how the cosine schedule of a resumed run continues, where its end has moved."""
    old, new = read_config(workdir).training.num_steps, config.training.num_steps
    if config.optimizer.schedule == "cosine" and old != new > step:
        logger.info(
            "cosine schedule of %d steps instead of %d: learning rate %.2e at step %d, falling "
            "to %.2e at step %d",
            *(new, old, schedule(step), step + 1, schedule(new - 1), new),
        )
