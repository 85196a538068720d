"""Figures: what is drawn and named in them."""

import io
import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest
from attentions import ENGLISH, HEADS, attention_of
from matplotlib import rc_context
from matplotlib.image import imread
from matplotlib.transforms import Bbox

from transformer_jax.config import Config
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.figures import (
    alignment_figure,
    attention_figure,
    attention_grid,
    position_curves_figure,
    positions_figure,
    save,
    schedule_figure,
)
from transformer_jax.model.layers import sinusoidal_positions
from transformer_jax.training.optimizer import learning_rate_schedule

ATTENTION = attention_of()
RECURRENT = ATTENTION._replace(encoder=None, decoder=None, cross=ATTENTION.cross[:1, :1])


def _image(axes) -> np.ndarray:
    return axes.images[0].get_array().data


def _texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


def _predictions(axes) -> list[str]:
    (right,) = axes.child_axes
    return _texts(right.get_yticklabels())


@pytest.mark.parametrize(
    ("kind", "rows", "predicted", "columns"),
    [
        ("encoder", "two hun dred <eos>", "", "two hun dred <eos>"),
        ("decoder", "<sos> zwei hundert", "zwei hundert <eos>", "<sos> zwei hundert"),
        ("cross", "<sos> zwei hundert", "zwei hundert <eos>", "two hun dred <eos>"),
    ],
)
def test_a_head_is_drawn_with_its_tokens(kind, rows, predicted, columns):
    figure = attention_figure(ATTENTION, kind, 1, 2)
    axes = figure.axes[0]
    np.testing.assert_array_equal(_image(axes), getattr(ATTENTION, kind)[1, 2])
    assert _texts(axes.get_yticklabels()) == rows.split()
    assert _texts(axes.get_xticklabels()) == columns.split()
    assert (_predictions(axes) if axes.child_axes else []) == predicted.split()
    assert figure.get_suptitle() == f"{kind} attention, layer 1, head 2"


def test_no_head_is_the_mean_of_all():
    figure = attention_figure(ATTENTION, head=None)
    np.testing.assert_allclose(_image(figure.axes[0]), ATTENTION.cross[0].mean(0), rtol=1e-6)
    assert "mean of all heads" in figure.get_suptitle()


@pytest.mark.parametrize(
    ("attention", "chosen", "told"),
    [
        (ATTENTION, ("cross", 0, 3), "there is no head 3 in layer 0: heads are 0 to 2"),
        (ATTENTION, ("cross", 0, -1), "there is no head -1 in layer 0"),
        (ATTENTION, ("encoder", 2, 0), "there is no layer 2: layers are 0 to 1"),
        (ATTENTION, ("self", 0, 0), "no attention 'self': kinds are encoder, decoder, cross"),
        (RECURRENT, ("encoder", 0, 0), "the model has no encoder attention: it has cross"),
        (RECURRENT, ("cross", 1, 0), "there is no layer 1: the only layer is 0"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(attention, chosen, told):
    with pytest.raises(ValueError, match=told):
        attention_figure(attention, *chosen)


def test_a_grid_has_all_heads_in_one_scale():
    figure = attention_grid(ATTENTION, "cross", 1)
    maps = [axes for axes in figure.axes if axes.images]
    for head, axes in enumerate(maps):
        np.testing.assert_array_equal(_image(axes), ATTENTION.cross[1, head])
        assert axes.get_xlabel() == f"head {head}"
        assert axes.images[0].get_clim() == (0, ATTENTION.cross[1].max())
    assert len(maps) == HEADS
    assert _texts(maps[0].get_yticklabels()) == ["<sos>", "zwei", "hundert"]
    assert _predictions(maps[-1]) == ["zwei", "hundert", "<eos>"]
    with pytest.raises(ValueError, match="there is no layer 2"):
        attention_grid(ATTENTION, "cross", 2)


def test_the_links_of_an_alignment_are_framed():
    weights = np.float32([[0.1, 0.8, 0.1], [0.7, 0.2, 0.0]])
    alignment = Alignment(["a", "b", "c"], ["x", "y"], weights, [(0, 1), (1, 0)])
    axes = alignment_figure(alignment).axes[0]
    np.testing.assert_array_equal(_image(axes), weights)
    assert _texts(axes.get_yticklabels()) == ["x", "y"]
    assert _texts(axes.get_xticklabels()) == ["a", "b", "c"]
    assert [patch.get_xy() for patch in axes.patches] == [(-0.5, 0.5), (0.5, -0.5)]
    with pytest.raises(ValueError, match="0 source and 1 target words has no figure"):
        alignment_figure(Alignment([], ["x"], np.zeros((1, 0), np.float32), []))


def test_positions_are_those_of_the_model():
    encoding_TD = sinusoidal_positions(np.arange(20), 8)
    np.testing.assert_array_equal(_image(positions_figure(8, 20).axes[0]), encoding_TD)
    lines = position_curves_figure(8, 20, dimensions=[0, 5]).axes[0].lines
    for dimension, line in zip((0, 5), lines, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), encoding_TD[:, dimension])
        assert line.get_label() == f"dimension {dimension}"
    with pytest.raises(ValueError, match="there is no dimension 8: dimensions are 0 to 7"):
        position_curves_figure(8, 20, dimensions=[8])
    for model_dim, length in ((7, 20), (0, 20), (8, 0)):
        with pytest.raises(ValueError, match=f"model_dim={model_dim} and length={length}"):
            positions_figure(model_dim, length)


@pytest.mark.parametrize("schedule", ["rsqrt", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 50, 5000])
def test_learning_rates_are_those_of_the_run(schedule, num_steps):
    config = Config()
    config.optimizer.schedule, config.optimizer.warmup_steps = schedule, 123
    config.training.num_steps = num_steps
    (line, *_) = schedule_figure(config).axes[0].lines
    updates, rates = line.get_xdata(), line.get_ydata()
    wanted = learning_rate_schedule(config.optimizer, config.model.model_dim, num_steps)
    np.testing.assert_allclose(rates, jax.vmap(wanted)(np.array(updates) - 1), rtol=1e-4)
    assert (updates[0], updates[-1]) == (1, num_steps)
    assert num_steps < 123 or updates[np.argmax(rates)] in (123, 124)


def test_files_have_the_format_of_their_suffix(tmp_path):
    figure = attention_figure(attention_of([*ENGLISH, "$x^2$"]))
    for name in ("a.svg", "a.PNG", "a.pdf"):
        save(figure, tmp_path / name)
    texts = [x.text for x in ET.parse(tmp_path / "a.svg").iter("{http://www.w3.org/2000/svg}text")]
    assert {"two", "hundert", "$x^2$", "prediction"} <= set(texts)
    assert imread(tmp_path / "a.PNG").std() > 0
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="'txt' is not supported"):
        save(figure, tmp_path / "a.txt")


@pytest.mark.parametrize(("source", "target"), [(1, 1), (3, 24), (24, 3), (24, 24)])
def test_a_figure_is_as_large_as_what_is_drawn(source, target):
    """All is within, none is over another, and no side is left empty."""
    tokens = [[f"\u2581{'word' * 3}{n}" for n in range(count)] for count in (source, target)]
    figure = attention_grid(attention_of(*tokens))
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes.append(figure.texts[0].get_window_extent())
    for index, box in enumerate(boxes):
        assert figure.bbox.padded(1).contains(*box.min) and figure.bbox.padded(1).contains(*box.max)
        assert not box.padded(-1).count_overlaps(boxes[:index])
    empty = figure.bbox.size - Bbox.union(boxes).size
    assert max(empty) < figure.dpi / 2
    *maps, bar = (axes.get_window_extent() for axes in figure.axes)
    assert bar.y1 - bar.y0 == pytest.approx(maps[0].y1 - maps[-1].y0)
    assert maps[0].width / maps[0].height == pytest.approx((source + 1) / (target + 1))


def test_labels_say_which_side_they_are_of():
    names = {
        kind: (axes.get_ylabel(), axes.get_title())
        for kind in ("encoder", "decoder", "cross")
        for axes in attention_figure(ATTENTION, kind).axes[:1]
    }
    assert names == {
        "encoder": ("query: source", "key: source"),
        "decoder": ("query: decoder input", "key: decoder input"),
        "cross": ("query: decoder input", "key: source"),
    }
    words = [f"\u2581Donaudampfschifffahrts{end}" for end in ("gesellschaft", "kapit\u00e4n")]
    axes = attention_figure(attention_of(words)).axes[0]
    assert _texts(axes.get_xticklabels())[:2] == [
        "Donaudampfschif\u2026llschaft",
        "Donaudampfschif\u2026skapit\u00e4n",
    ]


def test_a_notebook_shows_the_figure():
    """With 100 dots per inch, also where a notebook's settings say fewer."""
    with rc_context({"figure.dpi": 72}):
        figure = attention_figure(ATTENTION)
    image = imread(io.BytesIO(figure._repr_png_()))
    assert image.std() > 0 and image.shape[1] > 90 * figure.get_size_inches()[0]


def test_a_layout_that_a_notebook_sets_for_all_figures_is_not_used():
    with rc_context({"figure.constrained_layout.use": True}):
        assert attention_figure(ATTENTION).get_layout_engine() is None
