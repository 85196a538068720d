"""Checkpoints of a run: written by Orbax in the background, checked when restored.

A checkpoint has the items `params`, `optimizer`, and `ema` where a mean of parameters is kept, each
a flat dictionary from a parameter's path to its array, and `run`, a JSON record: the step, its
score, the state of the run, its config and vocabulary, and a checksum of each array, because Orbax
restores flipped bytes without a word. The record has a checksum of its own.
"""

import contextlib
import errno
import gc
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import traceback
import types
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from transformer_jax import hosts
from transformer_jax.checksums import checksums, flatten, unflatten
from transformer_jax.storage import atomic_write, from_json, regular, removed, unlinked

FOLDER = "checkpoints"  # of a workdir
RECORD = pathlib.Path("run", "metadata")  # of a checkpoint

logger = logging.getLogger(__name__)

_ITEMS = ("params", "optimizer", "ema", "run")
_VERSION = 3  # of this layout, and of the names and shapes of parameters
_ELSEWHERE = "another process could not write it"
# What its threads print names one of its files, or is of TensorStore or its event loop.
_ORBAX = re.compile(r"[/\\]orbax[/\\]|tensorstore|Event loop is closed")


class DamagedError(ValueError):
    """A checkpoint cannot be read, or is not what was saved."""


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Suppresses what Orbax's threads print: each failure is told in one sentence instead."""

    def is_other(record: logging.LogRecord) -> bool:
        trace = traceback.format_exception(*record.exc_info) if record.exc_info else ()
        return not _ORBAX.search(" ".join((record.pathname, record.getMessage(), *trace)))

    def unraisable(error: Any) -> None:
        # Of reads and writes under way when another has failed, which has ended their event loop.
        if not _ORBAX.search("".join(traceback.format_exception(error.exc_value))):
            hook(error)

    # Orbax logs by absl; asyncio logs what Orbax's tasks raise and nobody asks for.
    loggers = logging.getLogger("absl"), logging.getLogger("asyncio")
    hook, sys.unraisablehook = sys.unraisablehook, unraisable
    for each in loggers:
        each.addFilter(is_other)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for each in loggers:
            each.removeFilter(is_other)


def check_shapes(what: str, arrays: Any, expected: Any) -> None:
    """ValueError, naming the first that differs, where the shapes are not the expected ones.

    Args:
      what: named in the error.
      arrays, expected: trees, or flat dictionaries by path.
    """
    shapes, expected = (
        {k: tuple(x.shape) for k, x in flatten(t).items()} for t in (arrays, expected)
    )
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            raise ValueError(
                f"{what} is of another model: {name} has shape {shapes.get(name)}, expected "
                f"{expected.get(name)}"
            )


class Checkpoints:
    """The checkpoints of a workdir."""

    def __init__(self, workdir: str | os.PathLike, keep: int = 1, *, create: bool = False):
        """Keeps the latest `keep` and the best one; only reads unless `create`.

        With `create` all processes of a run call its methods together; else each for itself.
        """
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        self._keep, self._create = keep, create
        self._records: dict[int, dict] = {}
        self._saving: int | None = None  # step of the save under way
        self._failure = ""  # of the last save
        self._opened: ocp.CheckpointManager | None = None
        if create:
            with hosts.together():
                if hosts.is_first():
                    unlinked(self.folder).mkdir(parents=True, exist_ok=True)
            self._remove_cut_saves()
            self._manager()

    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager, opened anew after a save that failed."""
        if not self._create:
            self._opened = self._opened or self._reader()
        elif not self._opened:
            options = ocp.CheckpointManagerOptions(
                preservation_policy=types.SimpleNamespace(should_preserve=self._preserved),
                save_decision_policy=checkpoint_managers.FixedIntervalPolicy(1),
                async_options=ocp.AsyncOptions(barrier_sync_fn=Barriers()),
            )
            self._opened = ocp.CheckpointManager(self.folder, item_names=_ITEMS, options=options)
        return self._opened

    def _remove_cut_saves(self) -> None:
        """Removes the temporary folders of saves that did not end."""
        if hosts.is_first():
            for left in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(left, ignore_errors=True)
        hosts.barrier("cut saves removed")

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, the latest first."""
        names = {path.name for path in self.folder.glob("[0-9]*") if path.is_dir()}
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def record(self, step: int) -> dict[str, Any]:
        """The `run` item of a checkpoint, as it was saved.

        Raises:
          DamagedError, OSError: as `restore`.
          ValueError: another version of this package has written it.
        """
        with self._damage_told(step):
            record = from_json(regular(self.folder / str(step) / RECORD).read_bytes())
            old = "checksum" not in record and isinstance(record["checksums"]["params"], int)
            if not old and (record.pop("checksum") != _checksum(record) or record["step"] != step):
                raise ValueError("the run record is not what was saved (checksum)")
        if old or record["version"] != _VERSION:
            raise ValueError(
                f"{self.folder / str(step)} was written by another version of transformer_jax, "
                "which alone can read it"
            )
        return record

    def best_step(self) -> int | None:
        """The step with the highest score, the latest of equals; None without an evaluation."""
        return self._best(self.steps())

    def _best(self, steps: Iterable[int]) -> int | None:
        scores = {step: score for step in steps if (score := self._known(step).get("score"))}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def _known(self, step: int) -> dict[str, Any]:
        """The record of a checkpoint, read once; empty where it is damaged or gone."""
        if step not in self._records:
            try:
                self._records[step] = self.record(step)
            except (DamagedError, FileNotFoundError) as error:
                if isinstance(error, DamagedError):
                    logger.warning("%s", error)
                self._records[step] = {}
        return self._records[step]

    def _preserved(self, checkpoints: Iterable[Any], *, context: Any) -> list[bool]:
        """Orbax's question which checkpoints, the latest last, are not to be deleted."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        regular = [step for step in steps if self._known(step).get("regular", True)]
        kept = {steps[-1], self._best(steps), *regular[-self._keep :]}
        return [step in kept for step in steps]

    def save(
        self,
        step: int,
        trees: dict[str, Any],
        run: dict[str, Any],
        score: list[float] | None,
        *,
        regular: bool = True,
    ) -> None:
        """Starts to write a checkpoint; where that fails, warns, and keeps the ones before.

        Args:
          step: updates made; a checkpoint of it that is there already gets the new record.
          trees: "params", "optimizer", perhaps "ema", whose arrays may be donated at once: JAX
            writes to no buffer that is still being read.
          run: JSON that `record` returns, beside the following.
          score: of its evaluation; the best is the one with the highest.
          regular: whether it would have been saved without a signal; else the next replaces it.
        """
        self.wait()
        items = {name: flatten(tree) for name, tree in trees.items()}
        record = run | {"version": _VERSION, "step": step, "score": score, "regular": regular}
        record["checksums"] = {name: checksums(item) for name, item in items.items()}
        record = json.loads(json.dumps(record))
        sealed = record | {"checksum": _checksum(record)}
        exists = step in hosts.gather(self.steps())[0]
        self._records[step], self._saving = record, step
        with self._failure_told():
            self._try_folder()
        if self._saving is None:
            return
        with self._failure_told():
            if exists:
                self._replace_record(step, sealed)
                return
            arguments = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            arguments["run"] = ocp.args.JsonSave(sealed)
            self._manager().save(step, args=ocp.args.Composite(**arguments))

    def _replace_record(self, step: int, sealed: dict[str, Any]) -> None:
        """Of a step that was saved when its evaluation was interrupted: the arrays are the same."""
        if self.record(step)["checksums"] != sealed["checksums"]:
            raise ValueError(f"{self.folder / str(step)} has other arrays than are to be saved")
        with hosts.together():
            if hosts.is_first():
                with atomic_write(self.folder / str(step) / RECORD) as file:
                    json.dump(sealed, file)

    def wait(self) -> None:
        """Returns when what was saved is on disk; warns where it could not be."""
        if self._saving is None:
            return
        with self._failure_told():
            if self._opened:
                self._opened.wait_until_finished()
            self._saving, self._failure = None, ""

    def check_saved(self) -> None:
        """Waits; OSError where the last checkpoint could not be saved."""
        self.wait()
        if self._failure:
            raise OSError(self._failure)

    def _try_folder(self) -> None:
        """OSError where the first process cannot write, for which the others would wait minutes."""
        if hosts.is_first():
            trial = self.folder / "trial.orbax-checkpoint-tmp"
            with removed(trial):
                trial.mkdir(exist_ok=True)
                (trial / "file").write_bytes(bytes(4096))

    @contextlib.contextmanager
    def _failure_told(self) -> Iterator[None]:
        """Turns an error of the disk into a warning, and forgets the checkpoint being saved."""
        reason = ""
        try:
            yield
        except Exception as error:
            cause = _machine_error(error)
            if not isinstance(cause, OSError):
                raise
            reason = cause.strerror or str(cause)
        reasons = sorted(filter(None, hosts.gather(reason)), key=_ELSEWHERE.__eq__)
        if not reasons:
            return
        reason = reasons[0]
        self._failure = f"checkpoint {self._saving} cannot be written to {self.folder}: {reason}"
        logger.warning("%s; training goes on, and the next save is tried", self._failure)
        self._records.pop(self._saving, None)
        self._saving = None
        self.close()
        self._remove_cut_saves()
        gc.collect()  # what its tasks have raised is logged when they go: now, under `quiet_orbax`

    def restore(self, step: int, **like: Any) -> dict[str, Any]:
        """A checkpoint's record as "run", and its arrays as trees, placed as they are described.

        Args:
          step: of the checkpoint.
          like: by item, a tree of `jax.ShapeDtypeStruct`, each with its sharding.

        Raises:
          DamagedError: the checkpoint cannot be read, or fails its checksum.
          ValueError: it is of another model, or of another version of this package.
          FileNotFoundError: there is no such checkpoint, or no longer.
          OSError, MemoryError: reading failed, which says nothing of the checkpoint.
        """
        arguments = {item: ocp.args.StandardRestore(flatten(tree)) for item, tree in like.items()}
        try:
            with _agreed() if self._create else contextlib.nullcontext():
                trees = {"run": self.record(step)}
                with self._damage_told(step):
                    self._check_files(step, like)
                    alone = self._create and jax.process_count() > 1
                    reader = self._reader() if alone else self._manager()
                    restored = reader.restore(step, args=ocp.args.Composite(**arguments))
            with self._damage_told(step):  # of checksums, which all processes compute together
                for item, tree in like.items():
                    arrays = restored[item]
                    saved, found = trees["run"]["checksums"][item], checksums(arrays)
                    if wrong := sorted(name for name in found if found[name] != saved.get(name)):
                        raise ValueError(f"{wrong[0]} of {item} is not what was saved (checksum)")
                    trees[item] = unflatten(tree, arrays)
        except DamagedError:
            self._check_model(step, like)
            raise
        return trees

    def _reader(self) -> ocp.CheckpointManager:
        """A manager of this process alone: where reading fails in one, none waits for it."""
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"reader{own}"
        )
        options = ocp.CheckpointManagerOptions(
            create=False,
            read_only=True,
            save_interval_steps=0,
            lightweight_initialize=True,
            multiprocessing_options=alone,
        )
        return ocp.CheckpointManager(self.folder, item_names=_ITEMS, options=options)

    def _check_model(self, step: int, like: dict[str, Any]) -> None:
        """ValueError where arrays have other names or shapes, which to Orbax is an error too."""
        for item, tree in like.items():
            try:  # not of the manager, which knows only what it has restored itself
                with ocp.StandardCheckpointer() as reader:
                    found = reader.metadata(self.folder / str(step) / item)
                    stored = dict(found.item_metadata.items())
            except Exception:  # damaged indeed
                return
            check_shapes(f"checkpoint {self.folder / str(step)}", stored, tree)

    def _check_files(self, step: int, items: Iterable[str]) -> None:
        """Finds files that are missing or empty, at which Orbax's threads print tracebacks."""
        for item in items:
            folder = self.folder / str(step) / item
            files = [path for path in folder.rglob("*") if path.is_file()]
            empty = [path for path in files if not path.stat().st_size]
            if not files or empty:
                raise ValueError(f"{empty[0]} is empty" if empty else f"{folder} has no file")

    @contextlib.contextmanager
    def _damage_told(self, step: int) -> Iterator[None]:
        """Raises DamagedError for all errors but those of the machine: of I/O and of memory."""
        folder = self.folder / str(step)
        try:
            yield
        # Orbax and TensorStore raise errors of many kinds for a damaged file.
        except Exception as error:
            if not folder.is_dir():
                gone = errno.ENOENT, "there is no such checkpoint", str(folder)
                raise FileNotFoundError(*gone) from None
            cause = _machine_error(error)
            if cause and getattr(cause, "errno", None) != errno.ENOENT:
                raise cause from (None if cause is error else error)
            reason = " ".join(str(error).split())[:200]
            message = f"checkpoint {folder} is damaged: {type(error).__name__}: {reason}"
            raise DamagedError(message) from error

    def quarantine(self, step: int) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again."""
        names = (f"damaged-{step}{suffix}" for suffix in ("", *map("-{}".format, range(2, 100))))
        free = next(self.folder / name for name in names if not (self.folder / name).exists())
        hosts.barrier("quarantine")  # all have looked for a free name
        with hosts.together():
            if hosts.is_first():
                (self.folder / str(step)).rename(free)
        gc.collect()  # as after a failed save
        logger.warning("checkpoint %d is set aside, as %s", step, free.name)
        self._manager().reload()

    def delete_irregular(self) -> None:
        """Removes what only signals have saved since the last regular one, if there is such."""
        steps = hosts.gather(self.steps())[0]
        regular = [step for step in steps if self._known(step).get("regular", True)]
        for step in steps[: steps.index(regular[0])] if regular else []:
            self._manager().delete(step)

    def close(self) -> None:
        """Waits, and ends the background threads; raises nothing: `check_saved` does."""
        manager, self._opened = self._opened, None
        try:
            if manager:
                manager.close()
        except Exception as error:
            if self._saving is not None:
                reason = _machine_error(error) or error
                logger.warning("checkpoint %d: %s: %s", self._saving, self.folder, reason)


class Barriers:
    """Barriers at which the processes of a save wait; where one is at another, none waits longer.

    Orbax' own would be waited at for 20 minutes for a process that has failed, which waits at the
    save's last.
    """

    managers = itertools.count()
    SECONDS = 20  # from which on a process that is not at the same barrier is at another

    def __init__(self):
        self._name, self._count, self._broken = f"save {next(self.managers)}", 0, False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Raises OSError unless all are at the barrier of this key."""
        wait = ocp.multihost.get_barrier_sync_fn()
        self._count += 1
        try:
            if self._broken:
                raise TimeoutError
            wait(key=f"{self._name}.{self._count}", timeout_ms=timeout_ms)
            wait(key=f"{self._name}.{self._count}.{key}", timeout_ms=1000 * self.SECONDS)
        except (RuntimeError, TimeoutError) as error:
            self._broken = True
            raise OSError(errno.ECANCELED, _ELSEWHERE) from error


@contextlib.contextmanager
def _agreed() -> Iterator[None]:
    """Raises in all processes what one of them has met in the body, damage before all else."""
    mine: Exception | None = None
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        mine = error
    met = dict(hosts.gather([type(mine).__name__, str(mine)]))
    damage = met.get(DamagedError.__name__)
    if mine and (not damage or isinstance(mine, DamagedError)):
        raise mine
    if damage:
        raise DamagedError(damage)
    if others := [what for name, what in met.items() if name != "NoneType"]:
        raise OSError(f"in another process: {others[0]}")


def _checksum(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _machine_error(error: BaseException) -> OSError | MemoryError | None:
    """The error of the operating system or of memory that caused an error of Orbax, if one did."""
    cause: BaseException | None = error
    elsewhere = None
    while cause:
        # TensorStore raises ValueError, with the number of the system's error in its text.
        if found := re.search(r"os_error_code='(\d+)'", str(cause)):
            return OSError(int(found[1]), os.strerror(int(found[1])))
        if isinstance(cause, OSError) and cause.errno == errno.ECANCELED:
            elsewhere = cause  # after an error of this process, perhaps
        elif isinstance(cause, OSError) and cause.errno is not None:
            return cause
        if isinstance(cause, MemoryError) or "RESOURCE_EXHAUSTED" in str(cause):
            return MemoryError(str(cause))
        cause = cause.__cause__ or cause.__context__
    return elsewhere
