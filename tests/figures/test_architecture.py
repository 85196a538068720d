"""The figure of a Transformer's architecture says what its modules are."""

import pytest
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.figures import architecture_figure
from transformer_jax.model.build import build


def labels(**fields):
    """All texts of the figure of a model without parameters."""
    config = ModelConfig(model_dim=32, num_heads=4, feed_forward_dim=64, num_layers=3, **fields)
    model = nnx.eval_shape(lambda: build(config, 50, rngs=nnx.Rngs(0)))
    figure = architecture_figure(model)
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    return [
        x.get_text()
        for x in sorted(texts, key=lambda x: (x.xy if hasattr(x, "xy") else x.get_position())[1])
    ]


def test_sub_layers_stand_in_order_with_their_sizes():
    decoder = [x for x in labels() if "attention" in x or "feed" in x]
    assert decoder == [
        "self-attention\n4 heads of 8",
        "masked self-attention\n4 heads of 8",
        "feed-forward, relu\n32 → 64 → 32",
        "encoder-decoder attention\n4 heads of 8",
        "feed-forward, relu\n32 → 64 → 32",
    ]


@pytest.mark.parametrize(("norm", "stacks", "inside"), [("post", 0, 0), ("pre", 2, 5)])
def test_layer_norm_stands_where_the_model_has_it(norm, stacks, inside):
    shown = labels(norm=norm)
    assert shown.count("3 x") == 2
    assert shown.count("layer norm") == stacks + inside
    assert shown.count("add, layer norm" if norm == "post" else "add") == 5


def test_the_activation_and_the_positions_are_the_models():
    shown = labels(activation="gelu", positions="none")
    assert sum("gelu" in x for x in shown) == 2
    assert shown.count("embedding, 50 x 32") == 2
