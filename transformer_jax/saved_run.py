"""The run of a workdir, loaded: its config, vocabulary, and the parameters of its checkpoints."""

import contextlib
import dataclasses
import gc
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from transformer_jax.checkpoint import FOLDER, RECORD, Checkpoints, DamagedError, quiet_orbax
from transformer_jax.config import Config, differences
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.devices import check_devices
from transformer_jax.model.build import abstract_model
from transformer_jax.storage import local_folder, regular

CONFIG_FILE, VOCABULARY_FILE = "config.json", "vocabulary.model"

logger = logging.getLogger(__name__)

_DELETION_SECONDS = 0.3  # a checkpoint that is being deleted looks damaged until it is gone


class SavedRun(NamedTuple):
    """A run as it was saved; the parameters are float32 arrays of the host."""

    config: Config
    vocabulary: Vocabulary
    graphdef: nnx.GraphDef
    params: Any


def read_config(workdir: pathlib.Path) -> Config:
    """The config of a run; ValueError, naming the file, where it is none."""
    path = workdir / CONFIG_FILE
    try:
        return Config.from_json(regular(path).read_text(encoding="utf-8"))
    except ValueError as error:
        hint = f"; each {FOLDER}/*/{RECORD} has a copy of it, under 'config'"
        has_copy = any((workdir / FOLDER).glob(f"[0-9]*/{RECORD}"))
        raise ValueError(f"{path}: {error}{hint if has_copy else ''}") from None


def check_origin(workdir: pathlib.Path, config: Config) -> None:
    """ValueError where config or vocabulary are not those that the checkpoints were saved with.

    Args:
      workdir: of the run.
      config: as its config.json has it.
    """
    checkpoints = Checkpoints(workdir)
    for step in checkpoints.steps():
        try:
            record = checkpoints.record(step)
        except (DamagedError, FileNotFoundError):
            continue
        name = workdir / VOCABULARY_FILE
        if hashlib.sha256(regular(name).read_bytes()).hexdigest() != record["vocabulary"]:
            raise ValueError(
                f"{name} is not the vocabulary that checkpoint {step} was saved with: it was "
                "damaged or replaced; put back the one of that run"
            )
        saved = Config.from_json(json.dumps(record["config"]))
        if changed := differences(saved, config):
            raise ValueError(
                f"{workdir / CONFIG_FILE} is not the config that checkpoint {step} was saved with: "
                f"{'; '.join(changed)}; {checkpoints.folder / str(step) / RECORD} has a copy of "
                "that, under 'config'"
            )
        return


@quiet_orbax()
def load_run(workdir: str | os.PathLike, checkpoint: str = "best", average: int = 1) -> SavedRun:
    """A run, with its parameters or their mean if it keeps one.

    Args:
      workdir: of the run.
      checkpoint: "best" (the latest, where none was evaluated), "last", or a step. Where
        the best or last is damaged, the latest sound one is used, with a warning.
      average: number of last checkpoints to average; above 1, `checkpoint` has no effect.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      ValueError: no such or no sound checkpoint.
    """
    check_devices()
    workdir = local_folder(workdir)
    if not (workdir / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{workdir} is not the workdir of a run: it has no {CONFIG_FILE}")
    config = read_config(workdir)
    check_origin(workdir, config)
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE)
    model = config.model
    if model.attention_kernel != "xla":  # of the machine that trained; this may be another
        model = dataclasses.replace(model, attention_kernel="auto")
    graphdef, shapes = abstract_model(model, len(vocabulary))
    with contextlib.closing(Checkpoints(workdir)) as checkpoints:
        wanted = checkpoint if average == 1 else "last"
        like = {"ema" if config.optimizer.ema_decay else "params": shapes}
        sound = _load_sound(checkpoints, lambda: _candidates(checkpoints, wanted), like, average)
    if average == 1:
        return SavedRun(config, vocabulary, graphdef, sound[0])
    mean = jax.tree.map(lambda *xs: np.mean(xs, axis=0, dtype=np.float32), *sound)
    return SavedRun(config, vocabulary, graphdef, mean)


def _load_sound(
    checkpoints: Checkpoints, candidates: Callable[[], list[int]], item: dict, count: int
) -> list[Any]:
    """Parameters, on the host, of the first `count` candidates that are sound.

    Looks for candidates after each: a run that trains meanwhile deletes and adds some.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), item)
    (name,) = item
    sound: dict[int, Any] = {}
    damaged: set[int] = set()
    tried: set[int] = set()
    while len(sound) < count and (left := [step for step in candidates() if step not in tried]):
        tried.add(step := left[0])
        try:
            sound[step] = jax.device_get(checkpoints.restore(step, **like)[name])
        except FileNotFoundError:
            continue
        except DamagedError as error:
            time.sleep(_DELETION_SECONDS)
            if step in checkpoints.steps():
                logger.warning("%s", error)
                damaged.add(step)
    if len(sound) < count:
        raise ValueError(
            f"{checkpoints.folder.parent} has {len(sound)} sound checkpoints of "
            f"{len(sound) + len(damaged)} tried; expected {count}"
        )
    if damaged:
        gc.collect()  # as after a failed save
        logger.warning("using step %s instead", ", ".join(map(str, sound)))
    return list(sound.values())


def _candidates(checkpoints: Checkpoints, checkpoint: str) -> list[int]:
    """The steps to try, in order: the one asked for, and those before it."""
    steps = checkpoints.steps()
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {checkpoints.folder.parent}")
    if checkpoint == "last":
        return steps
    if checkpoint == "best":
        best = checkpoints.best_step()
        return steps if best is None else [best, *(s for s in steps if s != best)]
    if not checkpoint.isdecimal() or int(checkpoint) not in steps:
        raise ValueError(
            f"there is no checkpoint {checkpoint!r} in {checkpoints.folder.parent}, only best, "
            f"last, {', '.join(map(str, steps))}"
        )
    return [int(checkpoint)]
