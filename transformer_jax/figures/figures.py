"""Pictures: attention, word alignments, positions and learning rates, as matplotlib figures.

A notebook shows the `Figure` that a cell ends with; `save` writes it as PNG or SVG. Nothing
of pyplot is touched: no window opens, and a figure is freed like any object.

Labels are in the order in which the model reads, from the left and from the top, in
right-to-left scripts too; each label by itself is written as its script is. Fonts are chosen
by the labels' characters (fonts.py).
"""

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transformer_jax.config import Config
from transformer_jax.figures.labels import label
from transformer_jax.storage import local_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from transformer_jax.decoding.alignment import Alignment
    from transformer_jax.decoding.translator import Attention

KINDS = ("encoder", "decoder", "cross")

_MOST_INCHES = 100.0  # of a side: 15,000 dots
_MARGIN = 1.5  # inches for labels; the layout takes what they need
_LINK_COLOUR = "#d9480f"


def attention_figure(
    attention: "Attention", kind: str = "cross", layer: int = 0, head: int | None = 0
) -> "Figure":
    """The attention of one head: each row's token to each column's; dark is much.

    A row of the decoder has the token that it reads on the left and the one that it predicts
    on the right.

    Args:
      attention: of a sentence pair, from `Translator.attention`.
      kind: "encoder", "decoder" or "cross".
      layer: from 0.
      head: from 0; None = the mean of all heads.

    Raises:
      ValueError: the model has no such kind, layer or head.
    """
    weights_HTM = _weights(attention, kind, layer)
    if head is not None:
        _check_number("head", head, len(weights_HTM), f" in layer {layer}")
    weights_TM = weights_HTM.mean(axis=0) if head is None else weights_HTM[head]
    rows, predictions, columns = _labels(attention, kind)
    figure = _figure(*_inches(weights_TM, 0.25, margin=2), rows + predictions + columns)
    axes = figure.add_subplot()
    image = _heat_map(axes, weights_TM, rows, columns)
    axes.set_ylabel("reads" if predictions else "")
    _label_predictions(axes, predictions)
    which = "mean of all heads" if head is None else f"head {head}"
    figure.suptitle(f"{kind} attention, layer {layer}, {which}")
    figure.colorbar(image, ax=axes, label="weight", shrink=0.7)
    return figure


def attention_grid(attention: "Attention", kind: str = "cross", layer: int = 0) -> "Figure":
    """The attention of all heads of a layer, in one scale of colours.

    Args:
      attention, kind, layer: as `attention_figure` takes them.
    """
    weights_HTM = _weights(attention, kind, layer)
    heads = len(weights_HTM)
    across = min(heads, 4)
    down = -(-heads // across)
    rows, predictions, columns = _labels(attention, kind)
    width, height = _inches(weights_HTM[0], 0.16, margin=0.3)
    figure = _figure(
        across * width + _MARGIN, down * height + _MARGIN, rows + predictions + columns
    )
    for head, weights_TM in enumerate(weights_HTM):
        row, column = divmod(head, across)
        axes = figure.add_subplot(down, across, head + 1)
        image = _heat_map(
            axes,
            weights_TM,
            rows if column == 0 else [],
            columns if row == 0 else [],
            highest=weights_HTM.max(),
            size=7,
        )
        if column == 0 and predictions:
            axes.set_ylabel("reads")
        if column == across - 1:
            _label_predictions(axes, predictions, size=7)
        axes.set_xlabel(f"head {head}")
    figure.suptitle(f"{kind} attention, layer {layer}")
    figure.colorbar(image, ax=figure.axes, label="weight", shrink=0.7)
    return figure


def alignment_figure(alignment: "Alignment") -> "Figure":
    """The attention of target words (rows) to source words (columns), the links framed.

    Raises:
      ValueError: a side has no words.
    """
    from matplotlib.patches import Rectangle

    rows, columns = alignment.target_words, alignment.source_words
    if not rows or not columns:
        raise ValueError(
            f"an alignment of {len(columns)} source and {len(rows)} target words has no picture"
        )
    figure = _figure(*_inches(alignment.weights, 0.35), rows + columns)
    axes = figure.add_subplot()
    image = _heat_map(axes, alignment.weights, rows, columns)
    for source, target in alignment.links:
        frame = Rectangle((source - 0.5, target - 0.5), 1, 1, fill=False)
        frame.set(edgecolor=_LINK_COLOUR, linewidth=2)
        axes.add_patch(frame)
    axes.set_ylabel("target")
    axes.set_xlabel("source, links framed")
    figure.colorbar(image, ax=axes, label="weight", shrink=0.7)
    return figure


def positions_figure(model_dim: int, length: int) -> "Figure":
    """The sinusoidal encoding (section 3.5) of positions (rows) in all dimensions (columns)."""
    encoding_TD = _positions(model_dim, length)
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    image = axes.imshow(encoding_TD, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set(xlabel="dimension", ylabel="position", title="Sinusoidal positions")
    figure.colorbar(image, ax=axes)
    return figure


def position_curves_figure(
    model_dim: int, length: int, dimensions: Sequence[int] = (4, 5, 6, 7)
) -> "Figure":
    """The sinusoidal encoding of some dimensions over positions.

    Raises:
      ValueError: there is no such dimension.
    """
    encoding_TD = _positions(model_dim, length)
    figure = _figure(8, 4)
    axes = figure.add_subplot()
    for dimension in dimensions:
        _check_number("dimension", dimension, model_dim)
        axes.plot(encoding_TD[:, dimension], label=f"dimension {dimension}")
    axes.set(xlabel="position", ylabel="encoding", title="Sinusoidal positions")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.grid(alpha=0.3)
    return figure


def schedule_figure(config: Config) -> "Figure":
    """The learning rate of a run's updates, by its config (section 5.3)."""
    import jax

    from transformer_jax.training.optimizer import learning_rate_schedule

    num_steps, warmup_steps = config.training.num_steps, config.optimizer.warmup_steps
    schedule = learning_rate_schedule(config.optimizer, config.model.model_dim, num_steps)
    # Evenly, and around the peak: one schedule has it an update later than the other.
    steps = np.append(np.linspace(0, num_steps - 1, 1000), [warmup_steps - 1, warmup_steps])
    steps = np.unique(np.minimum(steps, num_steps - 1).astype(np.int32))
    figure = _figure(8, 4)
    axes = figure.add_subplot()
    axes.plot(steps + 1, jax.vmap(schedule)(steps))
    if warmup_steps < num_steps:
        axes.axvline(warmup_steps, color="grey", linewidth=1, linestyle=":")
    axes.set(xlabel="update", ylabel="learning rate", ylim=(0, None))
    axes.set_title(f"{config.optimizer.schedule}, warm-up of {warmup_steps:,} updates")
    axes.grid(alpha=0.3)
    return figure


def save(figure: "Figure", path: str | os.PathLike) -> None:
    """Writes a figure as PNG or SVG, by the suffix; figures made alike give the same bytes.

    An SVG keeps text as text, drawn with the fonts of whoever looks at it.

    Raises:
      ValueError: another suffix.
      OSError: the file cannot be written.
    """
    from matplotlib import rc_context

    path = local_path(path)
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f"{path} ends in neither .png nor .svg, the formats of pictures")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "transformer_jax"}):
        metadata = {"Date": None} if suffix == ".svg" else None
        figure.savefig(path, format=suffix[1:], dpi=150, metadata=metadata)


def _weights(attention: "Attention", kind: str, layer: int) -> np.ndarray:
    """[H, T, M] of a layer; ValueError where there is none."""
    if kind not in KINDS:
        raise ValueError(f"there is no attention {kind!r}: kinds are {', '.join(KINDS)}")
    weights_LHTM = getattr(attention, kind)
    if weights_LHTM is None:
        there = [name for name in KINDS if getattr(attention, name) is not None]
        raise ValueError(f"the model has no {kind} attention: it has {', '.join(there) or 'none'}")
    _check_number("layer", layer, len(weights_LHTM))
    return weights_LHTM[layer]


def _check_number(name: str, number: int, count: int, where: str = "") -> None:
    if number not in range(count):
        there = f"{name}s are 0 to {count - 1}" if count > 1 else f"the only {name} is 0"
        raise ValueError(f"there is no {name} {number}{where}: {there}")


def _labels(attention: "Attention", kind: str) -> tuple[list[str], list[str], list[str]]:
    """Of the rows, of what they predict if they do, and of the columns."""
    source, reads, predicts = (
        [label(piece) for piece in pieces]
        for pieces in (attention.source_tokens, attention.input_tokens, attention.target_tokens)
    )
    if kind == "encoder":
        return source, [], source
    return reads, predicts, source if kind == "cross" else reads


def _positions(model_dim: int, length: int) -> np.ndarray:
    import jax.numpy as jnp

    from transformer_jax.model.embedding import sinusoidal_positions

    if model_dim < 2 or model_dim % 2 or length < 1:
        raise ValueError(
            f"model_dim={model_dim} and length={length} have no encoding: an even model_dim and a "
            "length of at least 1 were wanted"
        )
    return np.asarray(sinusoidal_positions(jnp.arange(length), model_dim))


def _inches(weights_TM: np.ndarray, cell: float, margin: float = _MARGIN) -> tuple[float, float]:
    """Width and height of a heat map with its labels."""
    rows, columns = weights_TM.shape
    return columns * cell + margin + 0.5, rows * cell + margin


def _figure(width: float, height: float, texts: Sequence[str] = ()) -> "Figure":
    """An empty figure whose labels may have these texts."""
    from transformer_jax.figures.fonts import Figure, families

    size = (min(max(width, 3.0), _MOST_INCHES), min(max(height, 2.5), _MOST_INCHES))
    figure = Figure(figsize=size, layout="constrained")
    figure.label_families = families(texts)
    return figure


def _heat_map(
    axes: "Axes",
    weights_TM: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    highest: float | None = None,
    size: float = 9,
):
    """Draws weights with labels on the left and on top; no labels where none are given."""
    highest = weights_TM.max() if highest is None else highest
    image = axes.imshow(weights_TM, cmap="Blues", vmin=0, vmax=highest, interpolation="nearest")
    style = {
        "fontfamily": axes.figure.label_families,
        "fontsize": size,
        "parse_math": False,  # a dollar is a dollar
    }
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_yticks(range(len(rows)), rows, **style)
    axes.set_xticks(
        range(len(columns)), columns, rotation=60, ha="left", rotation_mode="anchor", **style
    )
    axes.spines[:].set_color("#bbbbbb")
    return image


def _label_predictions(axes: "Axes", predictions: Sequence[str], size: float = 9) -> None:
    """Names what the rows predict, on the right of a heat map."""
    if not predictions:
        return
    right = axes.secondary_yaxis("right")
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    right.set_yticks(
        range(len(predictions)),
        predictions,
        fontfamily=axes.figure.label_families,
        fontsize=size,
        parse_math=False,
    )
    right.set_ylabel("predicts")
