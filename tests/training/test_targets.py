"""The step for machines that are not there: by this machine's devices in their place."""

import re

import jax
import pytest
from builders import tiny_config

from transformer_jax.config import ParallelConfig
from transformer_jax.data.datasets import load_data
from transformer_jax.data.packing import Shape
from transformer_jax.training import targets
from transformer_jax.training.chips import CHIPS
from transformer_jax.training.dry_run import dry_run
from transformer_jax.training.targets import (
    Target,
    collectives,
    compile_step,
    describe,
    find_target,
)

TEXT = """
  %all-reduce.1 = (f32[2,3]{1,0}, bf16[4]{0}) all-reduce(%a, %b), channel_id=1
  %all-gather-start = (bf16[2,8]{1,0}, bf16[16,8]{1,0}) all-gather-start(%c), dimensions={0}
  %all-gather-done = bf16[16,8]{1,0} all-gather-done(%all-gather-start)
  ROOT %all-reduce.2 = f32[] all-reduce(%d)
  %fusion = f32[9] fusion(%all-reduce.2)
"""


def test_collectives_are_counted_with_their_bytes():
    assert collectives(TEXT) == {"all-gather": (1, 256), "all-reduce": (2, 24 + 8 + 4)}


LOOP = """
%fused (p: f32[8]) -> f32[8] {
  ROOT %all-gather.1 = f32[8]{0} all-gather(%p), channel_id=3
}

%fused.2 (p: f32[8]) -> f32[8] {
  ROOT %all-gather.2 = f32[8]{0} all-gather(%p), channel_id=3
}

%more.2_spmd (q: (s32[], f32[8])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  ROOT %less = pred[] compare(%i, %six), direction=LT
}

%layer.1_spmd (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %part = f32[8]{0} fusion(%x), calls=%fused
  %rest = f32[8]{0} fusion(%y), calls=%fused.2
  %sum = f32[4]{0} all-reduce(%z), channel_id=4, to_apply=%add
  %start = ((f32[4]{0}), f32[4]{0}) all-reduce-start(%z), channel_id=4, to_apply=%add
  ROOT %next = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%z), channel_id=5
}

ENTRY %main (a: f32[8]) -> f32[] {
  %loop = (s32[], f32[8]{0}) while(%t), condition=%more.2_spmd, body=%layer.1_spmd
  ROOT %all-reduce.2 = f32[] all-reduce(%d)
}
"""


def test_a_collective_in_a_loop_counts_as_often_as_the_loop_goes_round():
    """And one that is split in two, in parts of one channel, once."""
    assert collectives(LOOP) == {
        "all-gather": (6, 6 * 32),
        "all-reduce": (13, 2 * 6 * 16 + 4),
        "collective-permute": (6, 6 * 8),
    }


@pytest.mark.parametrize(
    "name", ["", "tpu", "tpu:v9:2x2", "tpu:v5e:4", "tpu:v5e:0x4", "gpu:h100", "gpu:h100:2x2", "4x4"]
)
def test_machines_that_nobody_knows_are_refused(name):
    with pytest.raises(ValueError, match=f"--target={name}: expected one of tpu:v4, .*gpu:h100:8"):
        find_target(name)


@pytest.mark.parametrize(("name", "extra"), [("tpu:v5e:4x4", "tpu"), ("gpu:h100:8", "cuda")])
def test_a_compiler_that_is_not_there_is_named(monkeypatch, name, extra):
    def missing(**options):
        raise NotImplementedError(f"topology not implemented for\n{options['platform']}")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", missing)
    for variable in targets.ENVIRONMENT:
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr("jax.config.update", lambda *_: None)
    with pytest.raises(ValueError, match=rf"implemented for {extra} .*transformer_jax\[{extra}\]'"):
        find_target(name)


@pytest.fixture(scope="module")
def here():
    """This machine's four devices, with the memory and speeds of a chip."""

    def target(memory: float) -> Target:
        return Target("cpu:here:4", CHIPS["tpu:v5e"]._replace(memory=memory), 4, jax.devices())

    return target


@pytest.mark.parametrize(
    ("axes", "gigabytes"), [((0, 1, 1), 16), ((1, 2, 2), 1e-3)], ids=["copies", "mesh"]
)
def test_the_step_is_described(here, axes, gigabytes):
    config = tiny_config(data={"tokens_per_batch": 6400})
    config.parallel = ParallelConfig(*axes)
    data = load_data(config)
    first, compiled, memory, fits, flops, *rest = describe(config, data, here(gigabytes * 1e9))
    assert first.startswith("target: 4 x cpu:here, the state ")
    assert "6,400 tokens a side" in compiled
    need = float(re.search(r"memory of a device: ([\d.]+) GB of ", memory)[1])
    most = int(re.search(r"; about ([\d,]+) tokens would", fits)[1].replace(",", ""))
    assert 0 < need < 0.1 and (most > 6400) == (gigabytes == 16)
    assert fits.startswith("it fits;" if gigabytes == 16 else "it does NOT fit;")
    assert "TFLOP" in flops and "all-reduce" in rest[0 if axes == (0, 1, 1) else 1]
    assert rest[-1].startswith("ESTIMATE by roofline, not measured: at least computing ")


def test_a_dry_run_of_a_target_leaves_no_run(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(targets, "find_target", lambda name: here(16e9))
    assert dry_run(tiny_config(), tmp_path / "run", "tpu:v5e:2x2") == 0
    assert "ESTIMATE by roofline" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_config_that_training_refuses_is_refused_for_a_target_too(here, tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "find_target", lambda name: here(16e9))
    config = tiny_config()
    config.parallel = ParallelConfig(tensor=4)
    with pytest.raises(ValueError, match="config.parallel.tensor=4 does not divide"):
        dry_run(config, tmp_path / "run", "tpu:v5e:2x2")


def test_a_target_needs_a_dry_run(failing, home):
    line = failing(
        "train", f"--config={home}/tiny.py", f"--workdir={home}/x", "--target=gpu:h100:8"
    )
    assert line == "error: --target=gpu:h100:8 needs --dry_run"


def test_a_tpu_s_own_compiler_where_it_is_installed(tmp_path, capsys):
    pytest.importorskip("libtpu")
    dry_run(tiny_config(), tmp_path / "run", "tpu:v5e:2x2")
    assert "4 x tpu:v5e" in capsys.readouterr().out


@pytest.mark.targets
@pytest.mark.parametrize(
    ("package", "name"), [("libtpu", "tpu:v5e:2x2"), ("jax_cuda12_plugin", "gpu:h100:1")]
)
def test_a_step_holds_the_logits_of_some_rows_at_once(package, name):
    """Those of all 64 rows of 256 tokens and 16,384 symbols take 1 GiB, and their gradient too."""
    pytest.importorskip(package)
    config = tiny_config(
        model={"num_layers": 6, "num_heads": 2, "model_dim": 128, "dtype": "bfloat16"}
    )
    config.training.logits_mib = 64
    chips = find_target(name).devices[:1]
    compiled = compile_step(config, 16384, 64, Shape(256, 256), chips)
    assert compiled.memory_analysis().temp_size_in_bytes < 900 * 2**20
