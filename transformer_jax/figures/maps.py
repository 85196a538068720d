"""Heat maps with labelled rows and columns, side by side on one colour scale.

A figure is as large as its maps and labels: long sentences get smaller cells, no map is squeezed
into a page, and nothing is left empty around a short one.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.text import Text

from transformer_jax.figures.fonts import font_families
from transformer_jax.figures.labels import shortened

_MAX_INCHES = 100.0  # of all maps: 15,000 pixels
_BAR_INCHES = 0.12
_GAP_INCHES = 0.08


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png", bbox_inches="tight")
            return file.getvalue()


class Side(NamedTuple):
    """What rows or columns are, and the text of each."""

    name: str
    labels: Sequence[str]


def heat_maps(
    weights_HTM: np.ndarray,
    names: Sequence[str],
    title: str,
    *,
    rows: Side,
    columns: Side,
    right: Side | None = None,
) -> Figure:
    """A map a head, labelled at the outer sides.

    Args:
      weights_HTM: at least 0.
      names: of the maps.
      rows, columns: labels on the left and on top.
      right: other labels of the rows.
    """
    rows, columns, right = (side and _shown(side) for side in (rows, columns, right))
    across = _maps_across(len(names), len(columns.labels), len(rows.labels))
    cell = _cell_inches(weights_HTM.shape, across)
    style = _label_style([*rows.labels, *columns.labels, *(right.labels if right else ())], cell)
    figure = Figure(figsize=(1, 1), dpi=100, layout="none")  # until its parts are measured
    for number, weights_TM in enumerate(weights_HTM):
        size = cell * len(columns.labels), cell * len(rows.labels)
        axes = figure.add_axes((0, 0, *size), label=f"map {number}")
        image = _draw(axes, weights_TM, weights_HTM.max())
        axes.set_xlabel(names[number])
        if number < across:
            _label_columns(axes, columns, style)
        if number % across == 0:
            _label_rows(axes, rows, style)
        if right and (number % across == across - 1 or number == len(names) - 1):
            _label_rows(axes.secondary_yaxis("right"), right, style)
    _arrange(figure, across, image, figure.suptitle(title, fontsize="large"))
    return figure


def _shown(side: Side) -> Side:
    return side._replace(labels=[shortened(text) for text in side.labels])


def _maps_across(count: int, columns: int, rows: int) -> int:
    """The number of maps in a row of a figure that is about twice as wide as high, and full."""

    def size(across: int) -> tuple[float, int]:
        down = -(-count // across)
        return max(across * columns / 2, down * rows) * across * down / count, -across

    return min(range(1, count + 1), key=size)


def _cell_inches(shape: Sequence[int], across: int) -> float:
    """The side of a cell: smaller for long sentences and many heads, but for a label to be read
    as long as the figure can be drawn."""
    count, rows, columns = shape
    largest = max(across * columns, -(-count // across) * rows)
    return min(max(0.1, min(0.25, 9 / max(rows, columns), 16 / largest)), _MAX_INCHES / largest)


def _label_style(texts: Sequence[str], cell: float) -> dict[str, Any]:
    # Without mathematics: a dollar is a dollar.
    return {"fontfamily": font_families(texts), "fontsize": min(9, 50 * cell), "parse_math": False}


def _draw(axes: Axes, weights_TM: np.ndarray, highest: float) -> AxesImage:
    image = axes.imshow(
        weights_TM, cmap="Blues", vmin=0, vmax=highest, interpolation="nearest", aspect="auto"
    )
    axes.set(xticks=[], yticks=[])
    # The edges of cells lead to labels that are far away.
    for axis, count in zip((axes.yaxis, axes.xaxis), weights_TM.shape, strict=True):
        axis.set_ticks(np.arange(0.5, count - 1), minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="#d8dce2", linewidth=0.4)
    axes.spines[:].set_color("#bbbbbb")
    return image


def _label_columns(axes: Axes, columns: Side, style: dict[str, Any]) -> None:
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    # Upright where they are close: Chinese and Korean ones would touch.
    turned = {"rotation": 60 if style["fontsize"] == 9 else 90, "rotation_mode": "anchor"}
    turned |= {"ha": "left", "va": "center"}
    axes.set_xticks(range(len(columns.labels)), columns.labels, **turned, **style)
    axes.set_title(columns.name, fontsize="medium")


def _label_rows(axes: Axes, rows: Side, style: dict[str, Any]) -> None:
    axes.tick_params(length=0)
    axes.set_yticks(range(len(rows.labels)), rows.labels, **style)
    axes.set_ylabel(rows.name)
    axes.spines[:].set_color("#bbbbbb")


def _arrange(figure: Figure, across: int, image: AxesImage, title: Text) -> None:
    """Sizes a figure of one inch, in which fractions are inches, to its maps and their labels.

    The colour bar is as high as the maps together.
    """
    maps = figure.axes
    map_width, map_height = maps[0].get_position().size
    bar = figure.add_axes((0, 0, _BAR_INCHES, map_height), label="colour bar")
    figure.colorbar(image, cax=bar, label="weight", format="%.2f")
    figure.draw_without_rendering()
    columns = [_margins(maps[column::across]) for column in range(across)]
    rows = [_margins(maps[first : first + across]) for first in range(0, len(maps), across)]
    lefts, bar_left = _in_line([(left, right) for left, _, right, _ in columns], map_width)
    tops, height = _in_line([(top, bottom) for _, bottom, _, top in rows], map_height)
    title_box = title.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    bar_left += _GAP_INCHES
    content = bar_left + _BAR_INCHES + _margins([bar])[2]
    width = max(content, title_box.width) + 2 * _GAP_INCHES
    height += title_box.height + 2 * _GAP_INCHES
    start = (width - content) / 2

    def place(axes: Axes, left: float, bottom: float, inches: tuple[float, float]) -> None:
        axes.set_position(
            ((start + left) / width, bottom / height, inches[0] / width, inches[1] / height)
        )

    bottoms = [height - title_box.height - 2 * _GAP_INCHES - top - map_height for top in tops]
    for number, axes in enumerate(maps):
        place(axes, lefts[number % across], bottoms[number // across], (map_width, map_height))
    place(bar, bar_left, bottoms[-1], (_BAR_INCHES, bottoms[0] - bottoms[-1] + map_height))
    title.set(x=0.5, y=1 - _GAP_INCHES / height, va="top")
    figure.set_size_inches(width, height)


def _margins(group: Sequence[Axes]) -> tuple[float, ...]:
    """Inches for labels on the left, below, on the right and above: the largest of a group."""
    inner, outer = (
        np.array([getattr(axes, box)().extents for axes in group])
        for box in ("get_window_extent", "get_tightbbox")
    )
    beyond = np.maximum((inner - outer) * (1, 1, -1, -1), 0).max(axis=0) / group[0].figure.dpi
    return tuple(beyond + _GAP_INCHES)


def _in_line(margins: Sequence[tuple[float, float]], size: float) -> tuple[list[float], float]:
    """Where things of one size start that have margins before and after, and where all end."""
    starts, end = [], 0.0
    for before, after in margins:
        starts.append(end + before)
        end += before + size + after
    return starts, end
