"""Model FLOPs beside what XLA counts, and beside a count by hand."""

import jax
import pytest
from builders import tiny_model_config
from flax import nnx

from transformer_jax.data.batches import empty_batch
from transformer_jax.data.packing import Shape
from transformer_jax.model.build import abstract_model
from transformer_jax.training import chips
from transformer_jax.training.chips import CHIPS, peak_flops
from transformer_jax.training.flops import step_flops
from transformer_jax.training.step import batch_sums


@pytest.mark.parametrize("row", [Shape(48, 24), Shape(16, 80)])
def test_they_are_what_xla_counts_but_for_what_is_no_product(row):
    """Of loss and gradient: softmax, norms and the like add from nothing to 5 % at this width."""
    config = tiny_model_config(num_heads=4, model_dim=64, feed_forward_dim=256)
    graphdef, params = abstract_model(config, 500)

    def loss(params, batch):
        return batch_sums(nnx.merge(graphdef, params), batch, 0.1)

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    cost = step.lower(params, empty_batch(4, row)).compile().cost_analysis()
    ours = step_flops(config, params)(4 * row.source, 4 * row.target, row)
    assert 1.0 < cost["flops"] / ours < 1.05


@pytest.mark.parametrize(("attention", "output", "pairs"), [("dot", 128, 10), ("none", 0, 0)])
def test_they_are_counted_for_an_rnn_too(attention, output, pairs):
    config = tiny_model_config(kind="gru", attention=attention)
    flops = step_flops(config, abstract_model(config, 13)[1])
    cell = 2 * 8 * 24  # of the input and of the state, three gates each
    ours = 6 * (3 * cell + 2 * (cell + output + 13 * 8)) + 12 * 8 * pairs
    assert flops(3.0, 2.0, Shape(5, 7)) == ours


@pytest.mark.parametrize(
    ("kind", "flops"), [("TPU v5 lite", 197e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", 0.0)]
)
def test_the_peak_is_that_of_all_devices_where_it_is_known(monkeypatch, kind, flops):
    device = type("Device", (), {"device_kind": kind})
    monkeypatch.setattr(chips.jax, "devices", lambda: [device] * 4)
    assert peak_flops() == 4 * flops
    assert len({chip.kind for chip in CHIPS.values()}) == len(CHIPS)
