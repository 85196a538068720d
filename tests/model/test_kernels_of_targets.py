"""Fused attention in the steps of machines that are not there, compiled by their own compilers."""

import re

import jax
import pytest
from builders import tiny_model_config
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from transformer_jax.config import Config, ParallelConfig
from transformer_jax.data.batches import empty_batch
from transformer_jax.data.packing import Shape
from transformer_jax.model.build import abstract_model
from transformer_jax.sharding import ROWS, Sharded
from transformer_jax.training.step import batch_sums
from transformer_jax.training.targets import find_target

pytestmark = pytest.mark.targets
SIZES = {"num_layers": 2, "model_dim": 128, "num_heads": 2, "dtype": "bfloat16"}
TARGETS = [
    ("libtpu", "tpu:v5e:2x2", "tpu_custom_call", r"s32\[2,256,1\].* s32\[2,1,256\]"),
    ("jax_cuda12_plugin", "gpu:h100:4", r"__cudnn\$fmha\w+", r"bf16\[2,1,256,256\]"),
]


@pytest.mark.parametrize("axes", [(4, 1, 1), (1, 2, 2)], ids=["rows", "mesh"])
@pytest.mark.parametrize(("package", "name", "call", "segments"), TARGETS, ids=["tpu", "gpu"])
def test_attention_is_a_kernel_that_reads_segments(package, name, call, segments, axes):
    """Forward and backward of three kinds of attention, and no weights beside them."""
    pytest.importorskip(package)
    chips = find_target(name).devices
    config = Config(model=tiny_model_config(**SIZES), parallel=ParallelConfig(*axes))
    layout = Sharded(config, chips)
    graphdef, params = abstract_model(config.model, 512, chips[0].platform)

    def gradients(params, batch):
        return jax.grad(lambda x: batch_sums(nnx.merge(graphdef, x), batch, 0.1)[0])(params)

    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    of_rows = NamedSharding(layout.mesh, PartitionSpec(ROWS))
    rows = 2 * axes[0] * axes[1]
    batch = jax.tree.map(lambda x: shape(x, of_rows), empty_batch(rows, Shape(256, 256)))
    params = jax.tree.map(shape, params, layout.shardings(params))
    text = layout.parallel(gradients).lower(params, batch).compile().as_text()
    calls = re.findall(rf'custom_call_target="{call}", operand_layout_constraints=(.*)', text)
    assert len(calls) == 6
    assert all(re.search(segments, operands) for operands in calls)
    assert not re.search(rf"f32\[2,{2 // axes[2]},256,256\]", text)
