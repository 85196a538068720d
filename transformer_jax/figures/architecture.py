"""The architecture of a Transformer as a figure, read from its modules."""

from typing import NamedTuple

from flax import nnx
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from transformer_jax.figures.figures import Figure
from transformer_jax.model.attention import CrossAttention, MultiHeadAttention
from transformer_jax.model.transformer import Transformer

_SUB_LAYERS = "self_attention", "cross_attention", "feed_forward"
_COLOURS = {"attention": "#ffd8a8", "network": "#a5d8ff", "norm": "#fff3bf", "table": "#ffdeeb"}
_WIDTH, _HEIGHT, _STEP = 3.0, 0.44, 0.7  # of a box, and from one to the next, in inches
_APART = 4.6  # the middles of encoder and decoder


class _Box(NamedTuple):
    label: str
    colour: str
    residual: int = 0  # boxes back, where the residual connection that ends here begins
    attends: bool = False  # to the encoder's states


class _Column(NamedTuple):
    """The encoder or the decoder, from its tokens up; `layer` is repeated."""

    name: str
    below: list[_Box]
    layer: list[_Box]
    count: int
    above: list[_Box]


def architecture_figure(model: Transformer) -> Figure:
    """The modules of a model, from tokens at the bottom to probabilities at the top.

    Args:
      model: from `build`; one without parameters, from `nnx.eval_shape`, will do.
    """
    columns = _columns(model)
    rows = max(len(x.below + x.layer + x.above) for x in columns)
    size = _APART + _WIDTH + 1.6, _STEP * (rows + 1.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    axes.set(
        xlim=(-_WIDTH / 2 - 0.9, size[0] - _WIDTH / 2 - 0.9), ylim=(-1.1 * _STEP, rows * _STEP)
    )
    axes.set_axis_off()
    (encoded, _), (_, attending) = (_draw(axes, x, i * _APART) for i, x in enumerate(columns))
    middle, side = _APART / 2, _APART - _WIDTH / 2
    for y in attending:
        path = [encoded, encoded + 0.6 * _STEP, encoded + 0.6 * _STEP, y]
        axes.plot([0, 0, middle, middle], path, color="#e8590c")
        _arrow(axes, (middle, y), (side, y), color="#e8590c")
    return figure


def _columns(model: Transformer) -> tuple[_Column, _Column]:
    vocab_size, dim = model.embedding.table.shape
    position = ["+ sinusoidal positions"] if model.positions == "sinusoidal" else []
    embedding = "\n".join([f"embedding, {vocab_size:,} x {dim}", *position])
    columns = []
    for name, stack, last in (
        ("encoder", model.encoder, model.encoder_norm),
        ("decoder", model.decoder, model.decoder_norm),
    ):
        boxes = _sub_layers(stack[0] if isinstance(stack, nnx.List) else stack)
        above = [_Box("layer norm", "norm")] if last is not None else []
        columns.append(_Column(name, [_Box(embedding, "table")], boxes, model.num_layers, above))
    logits = f"embedding, transposed\nsoftmax over {vocab_size:,} tokens"
    columns[1].above.append(_Box(logits, "table"))
    return tuple(columns)


def _sub_layers(block: nnx.Module) -> list[_Box]:
    """The sub-layers of a block, or of a stack of blocks, each with its residual and norm."""
    parts = [x for name in _SUB_LAYERS if (x := getattr(block, name, None)) is not None]
    masked, boxes = hasattr(block, "cross_attention"), []
    for part, residual in zip(parts, block.residuals, strict=True):
        attends = isinstance(part, CrossAttention)
        if isinstance(part, MultiHeadAttention):
            kind = "encoder-decoder" if attends else "masked self-" if masked else "self-"
            kind = f"{kind}{' ' if attends else ''}attention"
            *_, heads, size = part.projections[0].kernel.shape
            box = _Box(f"{kind}\n{heads} heads of {size}", "attention", attends=attends)
        else:
            *_, dim, inner = part.expand.kernel.shape
            box = _Box(f"feed-forward, {part.activation}\n{dim} → {inner:,} → {dim}", "network")
        if residual.norm == "pre":
            boxes += [_Box("layer norm", "norm"), box, _Box("add", "norm", residual=2)]
        else:
            boxes += [box, _Box("add, layer norm", "norm", residual=1)]
    return boxes


def _draw(axes: Axes, column: _Column, x: float) -> tuple[float, list[float]]:
    """Draws a column; the heights of its top and of the boxes that attend to the encoder."""
    boxes = column.below + column.layer + column.above
    what = "source" if column.name == "encoder" else "target, from <sos>"
    axes.text(x, -0.95 * _STEP, f"{column.name}: {what}", ha="center")
    attending = []
    for row, box in enumerate(boxes):
        y = row * _STEP
        _arrow(axes, (x, y - _STEP + _HEIGHT / 2), (x, y - _HEIGHT / 2))
        corner = x - _WIDTH / 2, y - _HEIGHT / 2
        style = {"boxstyle": "round,pad=0.02", "facecolor": _COLOURS[box.colour]}
        axes.add_patch(FancyBboxPatch(corner, _WIDTH, _HEIGHT, edgecolor="#495057", **style))
        axes.text(x, y, box.label, ha="center", va="center", fontsize=9)
        if box.residual:
            _residual(axes, x, y, y - (box.residual + 0.5) * _STEP)
        if box.attends:
            attending.append(y)
    _frame(axes, x, len(column.below) * _STEP, len(column.layer) * _STEP, column.count)
    return (len(boxes) - 1) * _STEP + _HEIGHT / 2, attending


def _residual(axes: Axes, x: float, y: float, start: float) -> None:
    """From below the sub-layer, around it, to where its output is added."""
    right = x + _WIDTH / 2
    axes.plot([x, right + 0.25, right + 0.25], [start, start, y], color="#2b8a3e", linewidth=1.2)
    _arrow(axes, (right + 0.25, y), (right, y), color="#2b8a3e")


def _frame(axes: Axes, x: float, bottom: float, height: float, count: int) -> None:
    """Around the layer that is repeated."""
    corner = x - _WIDTH / 2 - 0.15, bottom - 0.6 * _STEP
    style = {"boxstyle": "round,pad=0.05", "facecolor": "none", "linestyle": "--"}
    width = _WIDTH + 0.55
    axes.add_patch(
        FancyBboxPatch(corner, width, height + 0.1 * _STEP, edgecolor="#868e96", **style)
    )
    middle = bottom + (height - _STEP) / 2
    axes.text(corner[0] - 0.12, middle, f"{count} x", ha="right", va="center", fontsize=12)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style) -> None:
    options = {"arrowstyle": "-|>", "color": "#495057", "shrinkA": 0, "shrinkB": 0} | style
    axes.annotate("", end, start, arrowprops=options)
