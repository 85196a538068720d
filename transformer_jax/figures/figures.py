"""Figures of attention, word alignments, positions and learning rates, made with matplotlib.

A notebook shows the figure that a cell ends with; `save` writes it. pyplot is not used: no window
opens, and a figure is freed like any object. Labels are in reading order from the left and the
top, for right-to-left scripts too; each label by itself is written as its script is.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib.figure
import numpy as np
from matplotlib import rc_context
from matplotlib.patches import Rectangle

from transformer_jax.config import Config
from transformer_jax.figures.labels import label
from transformer_jax.figures.maps import Figure, Side, heat_maps
from transformer_jax.storage import local_path

if TYPE_CHECKING:
    from transformer_jax.decoding.alignment import Alignment
    from transformer_jax.decoding.translator import Attention

KINDS = ("encoder", "decoder", "cross")


def attention_figure(
    attention: "Attention", kind: str = "cross", layer: int = 0, head: int | None = 0
) -> Figure:
    """The attention of one head: from each row's token to each column's; dark is much.

    A row of the decoder has the token that it reads on the left and the one that it predicts
    on the right; tokens of more than 24 characters are shortened.

    Args:
      attention: of a sentence pair, from `Translator.attention`.
      kind: "encoder", "decoder" or "cross".
      layer: from 0.
      head: from 0; None = the mean of all heads.

    Raises:
      ValueError: the model has no such kind, layer or head.
    """
    weights_HTM = _weights(attention, kind, layer)
    if head is None:
        weights_HTM, name = weights_HTM.mean(axis=0, keepdims=True), "mean of all heads"
    else:
        _check_number("head", head, len(weights_HTM), f" in layer {layer}")
        weights_HTM, name = weights_HTM[head : head + 1], f"head {head}"
    title = f"{kind} attention, layer {layer}, {name}"
    return _attention_maps(attention, kind, weights_HTM, [""], title)


def attention_grid(attention: "Attention", kind: str = "cross", layer: int = 0) -> Figure:
    """The attention of all heads of a layer, on one colour scale.

    Args:
      attention, kind, layer: as in `attention_figure`.
    """
    weights_HTM = _weights(attention, kind, layer)
    names = [f"head {head}" for head in range(len(weights_HTM))]
    title = f"{kind} attention, layer {layer}"
    return _attention_maps(attention, kind, weights_HTM, names, title)


def alignment_figure(alignment: "Alignment") -> Figure:
    """The attention of target words (rows) to source words (columns), the links framed.

    Raises:
      ValueError: a side has no words.
    """
    rows, columns = alignment.target_words, alignment.source_words
    if not rows or not columns:
        raise ValueError(
            f"an alignment of {len(columns)} source and {len(rows)} target words has no figure"
        )
    sides = {"rows": Side("target words", rows), "columns": Side("source words", columns)}
    figure = heat_maps(alignment.weights[None], [""], "word alignment, links framed", **sides)
    for source, target in alignment.links:
        frame = Rectangle((source - 0.5, target - 0.5), 1, 1, fill=False, edgecolor="#d9480f")
        figure.axes[0].add_patch(frame).set_linewidth(2)
    return figure


def positions_figure(model_dim: int, length: int) -> Figure:
    """The sinusoidal encoding (section 3.5) of positions (rows) in all dimensions (columns)."""
    figure = _figure(8, 5)
    axes = figure.add_subplot()
    encoding_TD = _positions(model_dim, length)
    image = axes.imshow(encoding_TD, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    axes.set(xlabel="dimension", ylabel="position", title="Sinusoidal positions")
    figure.colorbar(image, ax=axes)
    return figure


def position_curves_figure(
    model_dim: int, length: int, dimensions: Sequence[int] = (4, 5, 6, 7)
) -> Figure:
    """The sinusoidal encoding of some dimensions over positions."""
    figure = _figure(8, 4)
    axes = figure.add_subplot()
    encoding_TD = _positions(model_dim, length)
    for dimension in dimensions:
        _check_number("dimension", dimension, model_dim)
        axes.plot(encoding_TD[:, dimension], label=f"dimension {dimension}")
    axes.set(xlabel="position", ylabel="encoding", title="Sinusoidal positions")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def schedule_figure(config: Config) -> Figure:
    """The learning rate over the updates of a run (section 5.3)."""
    import jax

    from transformer_jax.training.optimizer import learning_rate_schedule

    num_steps, warmup_steps = config.training.num_steps, config.optimizer.warmup_steps
    schedule = learning_rate_schedule(config.optimizer, config.model.model_dim, num_steps)
    # Evenly, and around the peak: one schedule has it an update later than the other.
    steps = np.r_[np.linspace(0, num_steps - 1, 1000, dtype=int), warmup_steps - 1, warmup_steps]
    steps = np.unique(steps.clip(0, num_steps - 1))
    figure = _figure(8, 4)
    axes = figure.add_subplot()
    axes.plot(steps + 1, jax.vmap(schedule)(steps))
    axes.set(xlabel="update", ylabel="learning rate", ylim=(0, None))
    axes.set_title(f"{config.optimizer.schedule}, warm-up of {warmup_steps:,} updates")
    axes.grid(alpha=0.3)
    return figure


def save(figure: matplotlib.figure.Figure, path: str | os.PathLike) -> None:
    """Writes a figure in the format of its suffix: .png, .svg, .pdf and others of matplotlib's.

    An SVG keeps text as text, drawn with the fonts of whoever looks at it.

    Raises:
      ValueError: a format that matplotlib does not write.
      OSError: the file cannot be written.
    """
    with rc_context({"svg.fonttype": "none"}):
        figure.savefig(local_path(path), dpi=150, bbox_inches="tight")


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


def _positions(model_dim: int, length: int) -> np.ndarray:
    import jax.numpy as jnp

    from transformer_jax.model.layers import sinusoidal_positions

    if model_dim < 2 or model_dim % 2 or length < 1:
        raise ValueError(
            f"model_dim={model_dim} and length={length} have no encoding: expected an even "
            "model_dim and a length of at least 1"
        )
    return np.asarray(sinusoidal_positions(jnp.arange(length), model_dim))


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _attention_maps(
    attention: "Attention", kind: str, weights_HTM: np.ndarray, names: Sequence[str], title: str
) -> Figure:
    source, reads, predictions = (
        [label(piece) for piece in pieces]
        for pieces in (attention.source_tokens, attention.input_tokens, attention.target_tokens)
    )
    queries = ("source", source) if kind == "encoder" else ("decoder input", reads)
    keys = ("decoder input", reads) if kind == "decoder" else ("source", source)
    return heat_maps(
        weights_HTM,
        names,
        title,
        rows=Side(f"query: {queries[0]}", queries[1]),
        columns=Side(f"key: {keys[0]}", keys[1]),
        right=None if kind == "encoder" else Side("prediction", predictions),
    )
