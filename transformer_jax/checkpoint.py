"""Checkpoints of a run: written by Orbax in the background, checked, restored or averaged.

A checkpoint has three items: `params` and `optimizer`, each a flat dictionary from a
parameter's path to its array, and `run`, JSON: the step, the state of evaluation, and a
checksum of each array item, because Orbax restores flipped bytes without a word.
"""

import contextlib
import json
import logging
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from transformer_jax.config import Config
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.devices import check_devices
from transformer_jax.model.build import build
from transformer_jax.storage import local_folder

CONFIG_FILE, VOCABULARY_FILE, FOLDER = "config.json", "vocabulary.model", "checkpoints"

logger = logging.getLogger(__name__)

_ITEMS = ("params", "optimizer", "run")


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Only errors of Orbax are told: it warns of what is meant, reading only and no score."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(level)


def flatten(tree: Any) -> dict[str, np.ndarray]:
    """Arrays of a tree by path, such as "encoder.0.self_attention.query.kernel"; host copies."""
    return {name: np.array(leaf) for name, leaf in _named(tree)}


def unflatten(like: Any, arrays: dict[str, Any]) -> Any:
    """The tree of the shape of `like` whose leaves are `arrays`, by path."""
    leaves = [arrays[name] for name, _ in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # An NNX variable ends its path with ".value", which names nothing.
    return [
        (jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"), leaf)
        for path, leaf in leaves
    ]


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
        """Keeps the latest `keep` and the best one; writes nothing unless `create`."""
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        self._manager = None
        self._mend(create)
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep),
                checkpoint_managers.BestN(
                    get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=_score,
            preservation_policy=policy,
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
            create=create,
            read_only=not create,
        )
        if create or self.folder.is_dir():
            self._manager = ocp.CheckpointManager(self.folder, item_names=_ITEMS, options=options)

    def _mend(self, create: bool) -> None:
        """Ends a replacement that was cut short; sets aside what Orbax would stumble over."""
        if create:
            for aside in self.folder.glob("replaced-*"):
                step = self.folder / aside.name.removeprefix("replaced-")
                shutil.rmtree(aside) if step.exists() else aside.rename(step)
        # Orbax reads all scores before anything else, and one damaged file stops it.
        for path in self.folder.glob("[0-9]*/metrics/metrics"):
            try:
                json.loads(path.read_bytes())
            except ValueError:
                logger.warning("%s is damaged", path)
                self.set_aside(int(path.parent.parent.name))

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, the latest first."""
        return sorted(self._manager.all_steps(), reverse=True) if self._manager else []

    def best_step(self) -> int | None:
        """The step evaluated best, or None where none was evaluated."""
        return self._manager.best_step() if self._manager else None

    def save(
        self, step: int, params: Any, optimizer: Any, run: dict, score: list[float] | None
    ) -> None:
        """Starts to write a checkpoint; the best is that with the highest `score`, as a list."""
        # Host copies: the next step donates the arrays while Orbax still writes.
        items = {"params": flatten(params), "optimizer": flatten(optimizer)}
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

    def run_state(self, step: int) -> dict:
        """The `run` item of a checkpoint."""
        return self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))[
            "run"
        ]

    def restore(self, step: int, **like: Any) -> dict[str, Any]:
        """Items of a checkpoint as trees of host arrays, shaped as their keyword arguments.

        Raises:
          ValueError: the checkpoint is damaged, with the reason.
        """
        abstract = {
            item: {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_one_device())
                for name, leaf in _named(tree)
            }
            for item, tree in like.items()
        }
        try:
            self._check_files(step, ("run", *like))
            run = self.run_state(step)
            arguments = {
                item: ocp.args.StandardRestore(shapes) for item, shapes in abstract.items()
            }
            restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
            trees = {}
            for item, tree in like.items():
                arrays = {name: np.asarray(x) for name, x in restored[item].items()}
                if checksum(arrays) != run["checksums"][item]:
                    raise ValueError(f"the {item} are not what was saved (checksum)")
                trees[item] = unflatten(tree, arrays)
        # Orbax and tensorstore raise errors of many kinds for a damaged file.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"checkpoint {self.folder / str(step)} is damaged: {type(error).__name__}: {reason}"
            ) from error
        return trees

    def _check_files(self, step: int, items: tuple[str, ...]) -> None:
        """Finds files that are missing or empty, at which Orbax's threads print tracebacks."""
        for item in items:
            folder = self.folder / str(step) / item
            files = [path for path in folder.rglob("*") if path.is_file()]
            empty = [path for path in files if not path.stat().st_size]
            if not files or empty:
                what = f"{empty[0]} is empty" if empty else f"{folder} has no file"
                raise ValueError(what)

    def set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again."""
        names = (f"damaged-{step}{suffix}" for suffix in ("", *map("-{}".format, range(2, 100))))
        aside = next(self.folder / name for name in names if not (self.folder / name).exists())
        (self.folder / str(step)).rename(aside)
        logger.warning("checkpoint %d is set aside, as %s", step, aside.name)
        if self._manager:
            self._manager.reload()

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background threads."""
        if self._manager:
            self._manager.close()


def _score(metrics: dict[str, list[float] | float]) -> list[float]:
    return np.atleast_1d(metrics["score"]).tolist()  # one number in older checkpoints


def _one_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def read_config(workdir: pathlib.Path) -> Config:
    """The config of a run; ValueError, naming the file, where it is none."""
    path = workdir / CONFIG_FILE
    try:
        return Config.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def abstract_model(config: Config, vocab_size: int) -> tuple[nnx.GraphDef, Any]:
    """Graph definition and parameter shapes of a config's model, without any memory."""
    return nnx.split(nnx.eval_shape(lambda: build(config.model, vocab_size, rngs=nnx.Rngs(0))))


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
    graphdef, shapes = abstract_model(config, len(vocabulary))
    checkpoints = Checkpoints(workdir)
    try:
        candidates = _candidates(checkpoints, workdir, checkpoint if average == 1 else "last")
        sound: dict[int, Any] = {}
        for step in candidates:
            try:
                sound[step] = checkpoints.restore(step, params=shapes)["params"]
            except ValueError as error:
                logger.warning("%s", error)
            if len(sound) == average:
                break
    finally:
        checkpoints.close()
    if len(sound) < average:
        raise ValueError(
            f"{workdir} has {len(sound)} sound checkpoints of {len(candidates)} tried; "
            f"{average} was wanted"
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
