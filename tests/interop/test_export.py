"""The command export."""

import sys

import numpy as np
import pytest

from transformer_jax import saved_run
from transformer_jax.checksums import flatten, unflatten
from transformer_jax.interop.parameters import to_plain
from transformer_jax.saved_run import load_run


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--format=onnx"], "--format=onnx must be one of "),
        (["--workdir=b"], "several --workdir are an ensemble, which no format can express"),
        (["--beam_size=2"], "--beam_size is of a search, which --format=stablehlo alone writes"),
        (["--average=0"], "--average=0 must be at least 1"),
        (["--average=2", "--checkpoint=last"], "--checkpoint and --average do not go together"),
        (["--output={here}"], "is there already; expected the name of a new folder"),
        (["--workdir="], "--workdir is missing"),
    ],
)
def test_a_mistake_is_told(failing, tmp_path, flags, told):
    needed = ["--format=safetensors", "--workdir=a", f"--output={tmp_path}/new"]
    flags = [*needed, *(flag.format(here=tmp_path) for flag in flags)]
    assert told in failing("export", *flags)


def test_a_package_that_is_missing_is_named(failing, trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    flags = ["--format=safetensors", f"--workdir={trained[0]}", f"--output={tmp_path}/new"]
    told = failing("export", *flags)
    assert "needs the package safetensors, which pip install 'transformer_jax[interop]'" in told
    assert not list(tmp_path.iterdir())


def test_parameters_that_are_not_finite_are_named(failing, trained, tmp_path, monkeypatch):
    run = load_run(trained[0])
    infinite = {"embedding.table": np.full((3, 2), np.inf, np.float32)}
    saved = run._replace(params=unflatten(run.params, flatten(run.params) | infinite))
    monkeypatch.setattr(saved_run, "load_run", lambda *_: saved)
    flags = ["--format=safetensors", f"--workdir={trained[0]}", f"--output={tmp_path}/new"]
    told = failing("export", *flags)
    assert "the parameter embedding.table has 6 values that are infinite or not a number" in told
    assert not list(tmp_path.iterdir())


def test_safetensors_has_the_parameters_by_plain_names(trained, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    from transformer_jax.__main__ import parser_of
    from transformer_jax.commands.export import run

    flags = ["--format=safetensors", f"--workdir={trained[0]}", f"--output={tmp_path}/new"]
    run(parser_of("export").parse([*flags, "--average=2"]))
    loaded = safetensors.load_file(tmp_path / "new/model.safetensors")
    expected = to_plain(load_run(trained[0], average=2).params)
    assert loaded.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(loaded[name], array)
    for name in ("config.json", "vocabulary.model"):
        assert (tmp_path / "new" / name).read_bytes() == (trained[0] / name).read_bytes()
