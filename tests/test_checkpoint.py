"""Checkpoints: bit-exact, checked, kept, averaged, and told of when they are missing."""

import collections
import concurrent.futures
import contextlib
import errno
import itertools
import json
import logging
import pathlib
import random
import re
import shutil
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from builders import tiny_config
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.checkpoint import Barriers, Checkpoints, DamagedError, quiet_orbax
from transformer_jax.checksums import checksums, flatten
from transformer_jax.config import Config
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import replicated
from transformer_jax.saved_run import load_run
from transformer_jax.training.loop import train
from transformer_jax.training.run import check_owner

# Reads that tensorstore still has under way when one fails end in a closed event loop.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tree(seed: int = 0):
    random = np.random.default_rng(seed)
    kernel = random.integers(0, 2**32, (64, 65), np.uint32).view(np.float32)
    arrays = {
        "layers": [
            {"kernel": kernel},
            {"kernel": random.normal(size=3).astype(ml_dtypes.bfloat16)},
        ],
        "count": np.int32(7 + seed),
    }
    return jax.device_put(arrays, replicated())


def count(number: int):
    return jax.device_put({"count": np.int32(number)}, replicated())


def state(step: int) -> dict:
    return {"params": tree(step), "optimizer": count(step)}


def like(tree):
    """As `restore` is told what it is to read, and where to put it."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated()), tree
    )


TREE, COUNT = like(tree()), like(count(0))


def write(workdir, steps: dict[int, list[float] | None], keep: int = 10, **options) -> None:
    checkpoints = Checkpoints(workdir, keep, create=True)
    for step, score in steps.items():
        checkpoints.save(step, state(step), {"note": step}, score, **options)
        checkpoints.wait()
    checkpoints.close()


@pytest.fixture
def saved(tmp_path):
    """Checkpoints of steps 1 and 2, opened for reading."""
    write(tmp_path, {1: None, 2: None})
    checkpoints = Checkpoints(tmp_path)
    yield checkpoints
    checkpoints.close()


def told(caplog) -> list[str]:
    """What we log: tasks that an earlier test left may be logged at any time."""
    return [x.message for x in caplog.records if x.name.startswith("transformer_jax")]


def data_file(folder: pathlib.Path, content: bytes) -> pathlib.Path:
    return next(p for p in folder.rglob("*") if p.is_file() and content in p.read_bytes())


def test_what_is_restored_is_equal_to_the_bit(saved):
    trees = saved.restore(2, params=TREE, optimizer=COUNT)
    assert jax.tree.structure(trees["params"]) == jax.tree.structure(tree(2))
    for got, wanted in zip(jax.tree.leaves(trees["params"]), jax.tree.leaves(tree(2))):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        assert np.asarray(got).tobytes() == np.asarray(wanted).tobytes()
        assert got.sharding == replicated()
    assert trees["optimizer"]["count"] == 2
    assert trees["run"]["step"] == trees["run"]["note"] == 2 and saved.steps() == [2, 1]


def test_what_is_saved_may_be_donated_and_overwritten_at_once(tmp_path):
    checkpoints = Checkpoints(tmp_path, create=True)
    ones = jax.jit(lambda: {"a": jnp.ones(1 << 20)}, out_shardings=replicated())
    overwrite = jax.jit(lambda x: jax.tree.map(lambda y: y * 2, x), donate_argnums=0)
    params = ones()
    expected = like(params)
    checkpoints.save(1, {"params": params, "optimizer": count(1)}, {}, None)
    for _ in range(20):
        params = overwrite(params)
    checkpoints.wait()
    restored = checkpoints.restore(1, params=expected)["params"]
    assert (np.asarray(restored["a"]) == 1).all()
    # What is restored may be donated as well, on every device a buffer of its own.
    assert (np.asarray(overwrite(restored)["a"]) == 2).all()
    checkpoints.close()


def test_what_is_saved_in_one_layout_is_restored_in_another(tmp_path):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
    kernel = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    specs = (), ("x",), ("y", "x")
    checkpoints = Checkpoints(tmp_path, len(specs), create=True)
    layouts = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
    for step, layout in enumerate(layouts):
        checkpoints.save(step, {"params": {"a": jax.device_put(kernel, layout)}}, {}, None)
    checkpoints.wait()
    for step, layout in itertools.product(range(len(layouts)), [*layouts, replicated()]):
        params = {"a": jax.ShapeDtypeStruct(kernel.shape, kernel.dtype, sharding=layout)}
        restored = checkpoints.restore(step, params=params)["params"]["a"]
        assert restored.sharding == layout and (np.asarray(restored) == kernel).all()
    checkpoints.close()


def test_the_latest_and_the_best_are_kept(tmp_path):
    """Of scores the first number that differs counts."""
    scores = [0.0, 9.0], [5.0, 2.0], [5.0, 1.0], None, [0.0, 10.0]
    write(tmp_path, dict(enumerate(scores, 1)), keep=2)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [5, 4, 2] and checkpoints.best_step() == 2
    assert int(checkpoints.restore(2, params=TREE)["params"]["count"]) == 9
    checkpoints.close()


def test_what_a_signal_had_saved_gives_way_to_the_next(tmp_path):
    """So that an interrupted run keeps, and averages, what an uninterrupted one does."""
    write(tmp_path, {1: None, 2: None}, keep=2)
    write(tmp_path, {3: None}, keep=2, regular=False)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [3, 2, 1]
    checkpoints.close()
    write(tmp_path, {4: None}, keep=2)
    assert checkpoints.steps() == [4, 2]


def test_without_an_evaluation_none_is_best(saved):
    assert saved.best_step() is None


def test_a_step_saved_again_has_its_score(tmp_path):
    write(tmp_path, {1: [2.0], 2: None})
    write(tmp_path, {2: [3.0]})
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 1] and checkpoints.best_step() == 2
    checkpoints.close()


def flip_a_bit(folder):
    kernel = np.asarray(tree(2)["layers"][0]["kernel"]).tobytes()
    path = data_file(folder / "params", kernel[:64])
    content = bytearray(path.read_bytes())
    content[content.index(kernel[:64]) + 5] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = data_file(folder / "params", np.asarray(tree(2)["layers"][0]["kernel"]).tobytes()[:64])
    path.write_bytes(path.read_bytes()[:100])


def spoil_metadata(folder):
    (folder / "params/_METADATA").write_text('{"tree_met')


def spoil_run(folder):
    (folder / "run/metadata").write_text('{"step": ')


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, spoil_metadata, spoil_run])
def test_damage_is_found(saved, damage):
    damage(saved.folder / "2")
    with pytest.raises(DamagedError, match=r"checkpoints/2 is damaged") as error:
        saved.restore(2, params=TREE)
    assert "\n" not in str(error.value)
    if damage is flip_a_bit:
        saved.restore(2, optimizer=COUNT)
    saved.restore(1, params=TREE)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "a hiccup of the network"), OSError),
        (MemoryError(), MemoryError),
        (Exception("an array"), OSError),
        (FileNotFoundError(errno.ENOENT, "no file"), DamagedError),
    ],
    ids=repr,
)
def test_only_damage_is_called_damage(saved, error, expected, monkeypatch):
    def fail(*_, **__):
        if type(error) is Exception:  # as TensorStore and Orbax tell of EIO
            raise error from ValueError("Failed to read [os_error_code='5']")
        raise error

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    with pytest.raises(expected) as found:
        saved.restore(2, params=TREE)
    assert isinstance(found.value, DamagedError) == (expected is DamagedError)


@pytest.mark.parametrize("change", ["name", "shape"])
def test_a_checkpoint_of_another_model_is_not_damaged(saved, change):
    """To a reader, and to a run that would go on."""
    other = tree()
    if change == "name":
        other["number"] = other.pop("count")
    else:
        other["layers"][0]["kernel"] = np.zeros((64, 66), np.float32)
    other = like(other)
    with contextlib.closing(Checkpoints(saved.folder.parent, create=True)) as of_run:
        for each in (saved, of_run):
            with pytest.raises(ValueError, match="another model: .* has shape .*, exp") as error:
                each.restore(2, params=other)
            assert not isinstance(error.value, DamagedError)


def test_a_damaged_checkpoint_in_quarantine_leaves_its_step_free(tmp_path):
    write(tmp_path, {1: None, 2: None})
    checkpoints = Checkpoints(tmp_path, create=True)
    checkpoints.quarantine(2)
    assert checkpoints.steps() == [1]
    assert (checkpoints.folder / "damaged-2").is_dir()
    checkpoints.close()
    write(tmp_path, {2: None})
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 1]
    checkpoints.close()


def test_a_checkpoint_with_a_damaged_record_is_not_best(tmp_path, caplog):
    write(tmp_path, {1: [1.0], 2: [2.0]})
    record = tmp_path / "checkpoints/2/run/metadata"
    record.write_text(record.read_text().replace("2.0", "3.0"))
    before = files(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.steps() == [2, 1] and checkpoints.best_step() == 1
    with pytest.raises(DamagedError, match="the run record is not what was saved"):
        checkpoints.restore(2, params=TREE)
    checkpoints.close()
    assert files(tmp_path) == before
    assert "checkpoints/2 is damaged" in caplog.text


def test_what_a_cut_save_left_is_removed_by_the_next_training_alone(tmp_path):
    """Whatever is in it: Orbax reads the scores of temporary folders too, if it is let."""
    write(tmp_path, {1: [1.0]})
    left = tmp_path / "checkpoints/7.orbax-checkpoint-tmp"
    (left / "metrics").mkdir(parents=True)
    (left / "metrics/metrics").write_bytes(b"")
    shutil.copytree(left, tmp_path / "checkpoints/7-copy")
    for create in (False, True):
        checkpoints = Checkpoints(tmp_path, create=create)
        assert checkpoints.steps() == [1] and checkpoints.best_step() == 1
        checkpoints.close()
        assert left.exists() != create
    assert (tmp_path / "checkpoints/7-copy").is_dir()


def test_a_checkpoint_of_another_version_is_refused_and_not_damaged(saved):
    """As before there was a checksum of the record."""
    record = saved.folder / "2/run/metadata"
    record.write_text(json.dumps({"step": 2, "checksums": {"params": 1, "optimizer": 2}}))
    with pytest.raises(ValueError, match="was written by another version of transformer_jax") as e:
        saved.restore(2, params=TREE)
    assert not isinstance(e.value, DamagedError)


DAMAGES = {
    "flip": lambda content, place: (
        content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
    ),
    "truncate": lambda content, place: content[:place],
    "empty": lambda content, place: b"",
    "noise": lambda content, place: random.Random(place).randbytes(len(content)),
    "remove": None,
}


def test_whatever_happens_to_a_file_the_arrays_are_exact_or_the_checkpoint_is_damaged(
    saved, tmp_path
):
    expected = checksums(flatten(tree(2)))
    folder = saved.folder / "2"
    content = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cases = list(itertools.product(content, DAMAGES))
    damaged = 0
    for path, damage in random.Random(0).sample(cases, 40):
        if damage == "remove":
            path.unlink()
        else:
            place = random.Random(str((path.name, damage))).randrange(max(len(content[path]), 1))
            path.write_bytes(DAMAGES[damage](content[path] or b" ", place))
        try:
            trees = saved.restore(2, params=TREE, optimizer=COUNT)
            assert checksums(flatten(trees["params"])) == expected, (path, damage)
            assert trees["optimizer"]["count"] == trees["run"]["note"] == 2, (path, damage)
        except DamagedError:
            damaged += 1
        path.write_bytes(content[path])
    assert damaged > 10


@pytest.mark.parametrize("when", ["save", "wait_until_finished"])
def test_a_save_that_fails_is_a_warning_and_the_next_is_tried(tmp_path, monkeypatch, caplog, when):
    """At once, as where a folder cannot be made, or in the background."""
    write(tmp_path, {1: None})
    checkpoints = Checkpoints(tmp_path, 2, create=True)
    original = getattr(ocp.CheckpointManager, when)

    def fail(self, *arguments, **options):
        if not broken:
            return original(self, *arguments, **options)
        broken.pop()
        raise ValueError("Failed writing [os_error_code='28']")

    monkeypatch.setattr(ocp.CheckpointManager, when, fail)
    broken = []
    checkpoints.save(2, state(2), {}, None)
    broken = [True]
    if when == "save":
        checkpoints.save(3, state(3), {}, None)
    what = rf"{checkpoints.folder}: No space left on device"
    with pytest.raises(OSError, match=what):
        checkpoints.check_saved()
    (warning,) = told(caplog)
    assert "training goes on" in warning
    assert checkpoints.steps() == [2, 1]
    checkpoints.save(4, state(4), {}, None)
    checkpoints.check_saved()
    assert checkpoints.steps() == [4, 2]
    assert checkpoints.restore(4, params=TREE)["run"]["step"] == 4
    checkpoints.close()


def test_processes_at_different_barriers_of_a_save_do_not_wait(monkeypatch):
    """As where writing has failed in one, which goes on to the last barrier."""
    met = collections.defaultdict(lambda: threading.Barrier(2))

    def wait(*, key, timeout_ms):
        met[key].wait(timeout_ms / 1000)

    monkeypatch.setattr(ocp.multihost, "get_barrier_sync_fn", lambda: wait)
    monkeypatch.setattr(Barriers, "SECONDS", 0.5)
    monkeypatch.setattr(Barriers, "managers", itertools.repeat(0))
    processes = Barriers(), Barriers()

    def errors(*keys: str) -> list[str]:
        def failure(process, key):
            with pytest.raises(OSError, match="another process") as error:
                process(key=key, timeout_ms=5000)
            return str(error.value)

        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            return list(threads.map(failure, processes, keys))

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda x: x(key="written", timeout_ms=5000), processes))
    errors("written", "end")
    start = time.monotonic()
    errors("end", "end")
    assert time.monotonic() - start < 1


def test_what_orbax_and_its_tasks_print_is_quiet_and_nothing_else(caplog, monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    errors = [RuntimeError("Event loop is closed"), ValueError("of somebody else")]
    with quiet_orbax():
        for error in errors:
            sys.unraisablehook(types.SimpleNamespace(exc_value=error))
        for name in ("asyncio", "absl"):
            logging.getLogger(name).error("Task exception: /orbax/checkpoint.py or tensorstore")
            logging.getLogger(name).error("of somebody else")
    assert [error.exc_value for error in printed] == errors[1:]
    assert [record.message for record in caplog.records] == 2 * ["of somebody else"]
    logging.getLogger("asyncio").error("/orbax/")
    assert len(caplog.records) == 3 and sys.unraisablehook == printed.append


def files(folder: pathlib.Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of six updates with checkpoints of steps 2, 4 and 6, none evaluated."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_config(training={"save_every": 2, "log_every": 3})
    assert train(config, workdir).status == 0
    return workdir


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, to be damaged."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "run"))


def params_of(workdir, checkpoint: str, average: int = 1) -> dict[str, np.ndarray]:
    return flatten(load_run(workdir, checkpoint, average)[3])


def same(one, other) -> bool:
    return checksums(one) == checksums(other)


def test_best_is_the_last_where_none_was_evaluated(trained):
    steps = {step: params_of(trained, step) for step in ("2", "4", "6")}
    assert same(params_of(trained, "best"), steps["6"])
    assert same(params_of(trained, "last"), steps["6"])
    assert not same(steps["4"], steps["6"])


def test_an_average_is_the_mean_of_the_last(trained):
    steps = [params_of(trained, step) for step in ("4", "6")]
    average = params_of(trained, "best", 2)
    for name, leaf in average.items():
        mean = np.mean([step[name] for step in steps], axis=0, dtype=np.float64)
        np.testing.assert_allclose(leaf, mean, rtol=1e-6, atol=1e-9)
        assert leaf.dtype == np.float32
    with pytest.raises(ValueError, match="3 sound checkpoints of 3 tried; expected 4"):
        load_run(trained, average=4)


def test_a_loaded_run_translates(trained):
    translator = Translator.from_workdir(trained, checkpoint=4)
    loaded = flatten(translator.models.params[0])
    for name, leaf in params_of(trained, "4").items():  # of the one layer of each stack
        name = re.sub(r"^(encoder|decoder)(?=\.)", r"\1.0", name)
        layer = loaded.pop(name)
        if ".projections." in name:  # turned for decoding: model_dim is last
            leaf = np.moveaxis(leaf, 1, -1)
        np.testing.assert_array_equal(layer, np.reshape(leaf, layer.shape))
    assert not loaded
    assert len(translator.translate(["seven", ""], SearchOptions(max_length=8))) == 2
    both = Translator.from_workdir([str(trained), trained])
    assert len(both.models.params) == 2
    assert len(Translator.from_workdir((trained,), trained, average=2).models.params) == 2


@pytest.mark.parametrize(
    ("error", "workdir", "options", "told"),
    [
        (ValueError, "run", {"checkpoint": 600}, "there is no checkpoint '600' in "),
        (ValueError, "run", {"checkpoint": 4, "average": 2}, "checkpoint=4 and average=2 do not"),
        (TypeError, None, {}, r"workdir\[0\] is None \(NoneType\); expected the name of a folder"),
        (TypeError, ["run", 3], {}, r"workdir\[1\] is 3 \(int\); expected the name of a folder"),
        (ValueError, [], {}, "workdir names no folder"),
    ],
)
def test_a_run_that_cannot_be_loaded_is_told(trained, error, workdir, options, told):
    workdir = str(trained) if workdir == "run" else workdir
    with pytest.raises(error, match=f"^{told}"):
        Translator.from_workdir(workdir, **options)


@pytest.mark.parametrize("damage", ["truncated", "empty folder", "no run item"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_warning(run, damage, caplog):
    folder = run / "checkpoints" / "6"
    if damage == "truncated":
        for file in (folder / "params").rglob("d/*"):  # some are left over, and not read
            file.write_bytes(file.read_bytes()[:50])
    else:
        shutil.rmtree(folder / "run" if damage == "no run item" else folder)
        folder.mkdir(exist_ok=True)
    with caplog.at_level(logging.WARNING, "transformer_jax"):
        before = [params_of(run, step) for step in ("2", "4")]
        assert same(params_of(run, "best"), before[1])
        wanted = {name: (leaf + before[0][name]) / 2 for name, leaf in before[1].items()}
        average = params_of(run, "best", 2)
    assert all(np.allclose(average[name], wanted[name], atol=1e-6) for name in wanted)
    if damage != "empty folder":  # which Orbax may well not count as a step
        assert "checkpoints/6 is damaged" in caplog.text and "using step" in caplog.text


@pytest.mark.parametrize("reading", ["arrays", "record"])
def test_a_checkpoint_that_is_removed_while_it_is_read_is_passed_over(
    run, monkeypatch, caplog, reading
):
    """As by a run that trains meanwhile: the next is read, and none is called damaged."""
    expected = params_of(run, "4")
    owner, name = {
        "arrays": (ocp.CheckpointManager, "restore"),
        "record": (Checkpoints, "record"),
    }[reading]
    original, reads = getattr(owner, name), []

    def remove(self, step, *arguments, **options):
        reads.append(step)
        if reads.count(6) == (1 if reading == "arrays" else 2):  # after the look at the vocabulary
            shutil.rmtree(run / "checkpoints/6", ignore_errors=True)
        return original(self, step, *arguments, **options)

    monkeypatch.setattr(owner, name, remove)
    assert same(params_of(run, "best"), expected)
    assert not told(caplog)


def edit(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_run_record_that_was_changed_is_damage(run, caplog):
    expected = params_of(run, "4")
    for old, new in [
        ('"tokens_per_batch"', '"tokens_pur_batch"'),
        ('"evaluated": -1', '"evaluated": 1'),
    ]:
        edit(run / "checkpoints/6/run/metadata", old, new)
        assert same(params_of(run, "last"), expected)
        edit(run / "checkpoints/6/run/metadata", new, old)
    assert "run record is not what was saved" in caplog.text


def test_another_vocabulary_or_config_than_was_trained_is_refused(run):
    """Whatever is wrong with it: also a flipped bit, with which it can still be read."""
    vocabulary, config = run / "vocabulary.model", run / "config.json"
    content, text = vocabulary.read_bytes(), config.read_text()
    for changed in (content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], b""):
        vocabulary.write_bytes(changed)
        for use in (lambda: load_run(run), lambda: check_owner(run, Config.from_json(text))):
            with pytest.raises(ValueError, match="model is not the vocabulary that checkpoint 6"):
                use()
    vocabulary.write_bytes(content)
    edit(config, '"feed_forward_dim": 16', '"feed_forward_dim": 17')
    with pytest.raises(ValueError, match=r"config\.json is not the config that checkpoint 6 was"):
        load_run(run)
    config.write_text("")
    with pytest.raises(ValueError, match=r"config\.json: .*/run/metadata has a copy of it, under"):
        load_run(run)
    record = json.loads((run / "checkpoints/6/run/metadata").read_text())
    config.write_text(json.dumps(record["config"]))
    load_run(run)


def test_a_damaged_checkpoint_that_was_asked_for_is_an_error(run):
    shutil.rmtree(run / "checkpoints" / "4" / "params")
    with pytest.raises(ValueError):
        load_run(run, "4")


def test_what_is_missing_is_told(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not the workdir of a run"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no checkpoint '5' in .*, only best, last, 6, 4, 2"):
        load_run(run, "5")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        load_run(run)
    assert not (run / "checkpoints").exists()
    (run / "config.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"config\.json"):
        load_run(run)


def test_loading_changes_nothing_in_the_run(run):
    before = files(run)
    load_run(run, "best", 2)
    assert files(run) == before
