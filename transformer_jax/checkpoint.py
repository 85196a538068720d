"""Checkpoints of a run: written by Orbax in the background, checked, restored or averaged.

A checkpoint has three items: `params` and `optimizer`, each a flat dictionary from a
parameter's path to its array, and `run`, JSON: the step, the state of evaluation, and a
checksum of each array item, because Orbax restores flipped bytes without a word.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from transformer_jax.config import Config
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.devices import check_devices
from transformer_jax.model.build import abstract_model
from transformer_jax.storage import local_folder

CONFIG_FILE, VOCABULARY_FILE, FOLDER = "config.json", "vocabulary.model", "checkpoints"

logger = logging.getLogger(__name__)

_ITEMS = ("params", "optimizer", "run")


class DamagedError(ValueError):
    """A checkpoint cannot be read, or is not what was saved."""


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Suppresses Orbax's warnings: it warns of a manager that only reads, and of missing scores."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Host copies of a tree's arrays by path, as in "encoder.0.self_attention.query.kernel"."""
    return {name: np.array(leaf) for name, leaf in _named(tree)}


def unflatten(like: Any, arrays: dict[str, Any]) -> Any:
    """The tree of the structure of `like` whose leaves are `arrays`, by path."""
    leaves = [arrays[name] for name, _ in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # The path of an NNX variable ends in ".value", which names nothing.
    return [
        (jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"), leaf)
        for path, leaf in leaves
    ]


def shapes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of a tree's arrays by path."""
    return {name: tuple(leaf.shape) for name, leaf in _named(tree)}


def check_shapes(what: str, shapes: dict, expected: dict) -> None:
    """ValueError, naming the first that differs, where the shapes are not the expected ones."""
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise ValueError(
                f"{what} is of another model: {name} has shape {shapes.get(name)}, expected "
                f"{expected.get(name)}"
            )


def checksum(arrays: dict[str, np.ndarray]) -> int:
    """CRC-32 over names, shapes, dtypes and bytes of all arrays."""
    result = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        result = zlib.crc32(f"{name} {array.shape} {array.dtype}".encode(), result)
        result = zlib.crc32(array.reshape(-1).view(np.uint8), result)
    return result


class Checkpoints:
    """The checkpoints of a workdir."""

    def __init__(self, workdir: str | os.PathLike, keep: int = 1, *, create: bool = False):
        """Keeps the latest `keep` and the best one; only reads unless `create`."""
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        self._manager = None
        # Lightweight: without the scores, of which a damaged one would stop Orbax.
        options = ocp.CheckpointManagerOptions(
            create=False, read_only=True, save_interval_steps=0, lightweight_initialize=True
        )
        if create:
            self._repair()
            latest = checkpoint_managers.LatestN(keep)
            best = checkpoint_managers.BestN(
                get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
            )
            options = ocp.CheckpointManagerOptions(
                best_fn=_score,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                create=True,
            )
        if create or self.folder.is_dir():
            self._manager = ocp.CheckpointManager(self.folder, item_names=_ITEMS, options=options)

    def _repair(self) -> None:
        """Completes an interrupted overwrite; quarantines steps whose score cannot be read."""
        for replaced in self.folder.glob("replaced-*"):
            step = self.folder / replaced.name.removeprefix("replaced-")
            shutil.rmtree(replaced) if step.exists() else replaced.rename(step)
        # Orbax reads all scores before anything else, and a damaged file stops it.
        for step, score in self._scores().items():
            if score is None:
                self.quarantine(step)

    def _scores(self) -> dict[int, list[float] | None]:
        """The score of each step that has been evaluated; None where it cannot be read."""
        scores = {}
        for path in self.folder.glob("*/metrics/metrics"):
            name = path.parent.parent.name
            if not name.isdecimal():  # Orbax's temporary folders, as of a save under way
                continue
            try:
                scores[int(name)] = _score(json.loads(path.read_bytes()))
            except FileNotFoundError:  # deleted meanwhile by the process that trains
                continue
            except (ValueError, KeyError, TypeError):
                logger.warning("%s is damaged", path)
                scores[int(name)] = None
        return scores

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, the latest first."""
        return sorted(self._manager.all_steps(), reverse=True) if self._manager else []

    def best_step(self) -> int | None:
        """The step with the highest score, the latest of equals; None without an evaluation."""
        steps = self.steps()
        scores = {step: x for step, x in self._scores().items() if x and step in steps}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def save(
        self, step: int, params: Any, opt_state: Any, run: dict, score: list[float] | None
    ) -> None:
        """Starts to write a checkpoint; the best is the one with the highest `score`."""
        # Host copies: the next step donates the arrays while Orbax still writes.
        items = {"params": flatten(params), "optimizer": flatten(opt_state)}
        run = run | {"checksums": {name: checksum(item) for name, item in items.items()}}
        replaced = self.folder / f"replaced-{step}"
        if step in self._manager.all_steps():  # saved when its evaluation was interrupted
            (self.folder / str(step)).rename(replaced)
            self._manager.reload()
        self._manager.save(
            step,
            args=ocp.args.Composite(
                run=ocp.args.JsonSave(run),
                **{name: ocp.args.StandardSave(item) for name, item in items.items()},
            ),
            metrics=None if score is None else {"score": score},
        )
        if replaced.exists():
            self.wait()
            shutil.rmtree(replaced)

    def restore(self, step: int, **like: Any) -> dict[str, Any]:
        """The `run` item, and others as trees of host arrays, structured as keyword arguments.

        Raises:
          DamagedError: the checkpoint cannot be read, or fails its checksum.
          ValueError: it is of another model.
          OSError, MemoryError: reading failed, which says nothing of the checkpoint.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        arguments = {
            item: ocp.args.StandardRestore(
                {
                    name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
                    for name, leaf in _named(tree)
                }
            )
            for item, tree in like.items()
        }
        arguments["run"] = ocp.args.JsonRestore()
        try:
            with _damage_told(self.folder / str(step)):
                self._check_files(step, arguments)
                restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
                trees = {"run": restored["run"]}
                for item, tree in like.items():
                    arrays = {name: np.asarray(x) for name, x in restored[item].items()}
                    if checksum(arrays) != trees["run"]["checksums"][item]:
                        raise ValueError(f"the {item} are not what was saved (checksum)")
                    trees[item] = unflatten(tree, arrays)
        except DamagedError:
            self._check_model(step, like)
            raise
        return trees

    def _check_model(self, step: int, like: dict[str, Any]) -> None:
        """ValueError where arrays have other names or shapes, which to Orbax is an error too."""
        for item, tree in like.items():
            try:
                stored = self._manager.item_metadata(step)[item].items()
            except Exception:  # damaged indeed
                return
            stored = {name: tuple(array.shape) for name, array in stored}
            check_shapes(f"checkpoint {self.folder / str(step)}", stored, shapes_of(tree))

    def _check_files(self, step: int, items: Iterable[str]) -> None:
        """Finds files that are missing or empty, at which Orbax's threads print tracebacks."""
        for item in items:
            folder = self.folder / str(step) / item
            files = [path for path in folder.rglob("*") if path.is_file()]
            empty = [path for path in files if not path.stat().st_size]
            if not files or empty:
                raise ValueError(f"{empty[0]} is empty" if empty else f"{folder} has no file")

    def quarantine(self, step: int) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again."""
        names = (f"damaged-{step}{suffix}" for suffix in ("", *map("-{}".format, range(2, 100))))
        free = next(self.folder / name for name in names if not (self.folder / name).exists())
        (self.folder / str(step)).rename(free)
        logger.warning("checkpoint %d is set aside, as %s", step, free.name)
        if self._manager:
            self._manager.reload()

    def delete(self, step: int) -> None:
        """Removes a checkpoint, as of a run that is rolled back beyond it."""
        self._manager.delete(step)

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        if self._manager:
            self._manager.close()


def _score(metrics: dict[str, list[float]]) -> list[float]:
    return metrics["score"]


@contextlib.contextmanager
def _damage_told(folder: pathlib.Path) -> Iterator[None]:
    """Raises DamagedError for all errors but those of the machine: of I/O and of memory."""
    try:
        yield
    # Orbax and TensorStore raise errors of many kinds for a damaged file.
    except Exception as error:
        cause: BaseException | None = error
        while cause:
            # TensorStore raises ValueError, with the number of the system's error in its text.
            if found := re.search(r"os_error_code='(\d+)'", str(cause)):
                cause = OSError(int(found[1]), os.strerror(int(found[1])), str(folder))
            if isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause):
                raise
            if isinstance(cause, OSError) and cause.errno not in (None, errno.ENOENT):
                raise cause from (None if cause is error else error)
            cause = cause.__cause__ or cause.__context__
        reason = " ".join(str(error).split())[:200]
        message = f"checkpoint {folder} is damaged: {type(error).__name__}: {reason}"
        raise DamagedError(message) from error


def read_config(workdir: pathlib.Path) -> Config:
    """The config of a run; ValueError, naming the file, where it is none."""
    path = workdir / CONFIG_FILE
    try:
        return Config.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


@quiet_orbax()
def load_run(
    workdir: str | os.PathLike, checkpoint: str = "best", average: int = 1
) -> tuple[Config, Vocabulary, nnx.GraphDef, Any]:
    """Config, vocabulary, graph definition and parameters of a run.

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
    vocabulary = Vocabulary.load(workdir / VOCABULARY_FILE)
    graphdef, shapes = abstract_model(config.model, len(vocabulary))
    checkpoints = Checkpoints(workdir)
    try:
        candidates = _candidates(checkpoints, workdir, checkpoint if average == 1 else "last")
        sound: dict[int, Any] = {}
        for step in candidates:
            try:
                sound[step] = checkpoints.restore(step, params=shapes)["params"]
            except DamagedError as error:
                logger.warning("%s", error)
            if len(sound) == average:
                break
    finally:
        checkpoints.close()
    if len(sound) < average:
        raise ValueError(
            f"{workdir} has {len(sound)} sound checkpoints of {len(candidates)} tried; expected "
            f"{average}"
        )
    if list(sound) != candidates[:average]:
        logger.warning("using step %s instead", ", ".join(map(str, sound)))
    if average == 1:
        return config, vocabulary, graphdef, next(iter(sound.values()))
    mean = jax.tree.map(lambda *xs: np.mean(xs, axis=0, dtype=np.float32), *sound.values())
    return config, vocabulary, graphdef, mean


def _candidates(checkpoints: Checkpoints, workdir: pathlib.Path, checkpoint: str) -> list[int]:
    """The steps to try, in order: the one asked for, and those before it."""
    steps = checkpoints.steps()
    if not steps:
        raise FileNotFoundError(f"there is no checkpoint in {workdir}")
    if checkpoint == "last":
        return steps
    if checkpoint == "best":
        best = checkpoints.best_step()
        return steps if best is None else [best, *(s for s in steps if s != best)]
    if not checkpoint.isdecimal() or int(checkpoint) not in steps:
        raise ValueError(
            f"there is no checkpoint {checkpoint!r} in {workdir}, only best, last, "
            f"{', '.join(map(str, steps))}"
        )
    return [int(checkpoint)]
