"""The report's charts, as matplotlib figures, and their SVG.

Colours are those of Okabe and Ito, which differ for the colour-blind too; markers and dashes repeat
them. A chart without anything to draw is None.
"""

import io
import itertools
import math
import re
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

Run = Mapping[str, Any]
Styles = Mapping[str, Mapping[str, Any]]

_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555"]
_CYCLE = cycler(linestyle=["-", "--", ":", "-."], markersize=[4.5] * 4) * cycler(
    color=_COLOURS, marker=list("osD^vPX")
)
_STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.4,
    "grid.linewidth": 0.5,
    "svg.fonttype": "none",  # text stays text
}
_METRICS = ("bleu", "BLEU"), ("chrf", "chrF")


def styles(names: Iterable[str]) -> Styles:
    """Colour, marker and dashes of each name, by its position among all."""
    return dict(zip(dict.fromkeys(names), itertools.cycle(_CYCLE)))


def span(part: Mapping[str, Any]) -> str:
    """The lengths of a bin."""
    first, last = part["from"], part["to"]
    return str(first) if first == last else f"{first}–{last}"


def svg(figure: Figure, name: str) -> str:
    """The element for an HTML page; its ids begin with the chart's name, of which there is one."""
    with rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the browser has other fonts
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text[text.index("<svg") :])


def scores_chart(runs: Sequence[Run], styles: Styles) -> Figure | None:
    """BLEU, where it is defined, and chrF of each run, with their intervals."""
    runs = [run for run in runs if run.get("chrf")]
    if not runs:
        return None
    figure, grid = _panels(0.8 + 0.28 * len(runs), sharey=True)
    for axes, (metric, label) in zip(grid, _METRICS):
        for row, run in enumerate(runs):
            if run[metric]:
                score, below, above = _interval(run[metric])
                style = styles[run["name"]] | {"linestyle": ""}
                axes.errorbar(score, row, xerr=[[below], [above]], capsize=3, **style)
        axes.set(xlabel=f"{label}, 95 % interval", ylim=(len(runs) - 0.5, -0.5))
        axes.set_yticks(range(len(runs)), [run["name"] for run in runs])
    return figure


def length_chart(runs: Sequence[Run], styles: Styles, unit: str) -> Figure | None:
    """BLEU and chrF by the length of the source."""
    runs = [run for run in runs if run.get("by_length")]
    if not runs:
        return None
    bins = max((run["by_length"] for run in runs), key=len)
    labels = [f"{span(part)}\n({part['sentences']:,})" for part in bins]
    figure, grid = _panels(3.6)
    for axes, (metric, label) in zip(grid, _METRICS):
        for number, run in enumerate(runs):  # side by side: no interval hides another
            offset = (number - (len(runs) - 1) / 2) * 0.05
            points = [(i + offset, x[metric]) for i, x in enumerate(run["by_length"]) if x[metric]]
            _interval_line(axes, run["name"], points, styles)
        axes.set(xlabel=f"{unit} of the source (sentences)", ylabel=label)
        axes.set_xticks(range(len(labels)), labels)
    _legend(figure)
    return figure


def pairs_chart(groups: Mapping[str, Sequence[Run]], styles: Styles) -> Figure | None:
    """BLEU and chrF by the number of training pairs, of the runs of each model."""
    counts = sorted({run["pairs"] for runs in groups.values() for run in runs})
    if not counts:
        return None
    figure, grid = _panels(3.6)
    for axes, (metric, label) in zip(grid, _METRICS):
        for number, (name, runs) in enumerate(groups.items()):
            points = [(run["pairs"] * 1.02**number, run[metric]) for run in runs if run[metric]]
            _interval_line(axes, name, points, styles)
        axes.set(xscale="log", xlabel="training pairs", ylabel=label)
        axes.set_xticks(counts, [f"{count:,}" for count in counts])
        axes.set_xticks([], minor=True)
    _legend(figure)
    return figure


def curve_chart(
    runs: Sequence[Run], styles: Styles, curve: str, value: str, label: str, yscale: str = "linear"
) -> Figure | None:
    """A value of training by target tokens and by time."""
    figure, grid = _panels(3.4)
    for axes, x, unit in zip(grid, ("target_tokens", "seconds"), ("", "s")):
        for run in runs:
            points = [(point.get(x), point.get(value)) for point in run.get(curve) or []]
            _line(axes, run["name"], points, styles)
        name = "target tokens trained" if x == "target_tokens" else "time of training"
        axes.set(xlabel=name, ylabel=label, yscale=yscale)
        axes.xaxis.set_major_formatter(EngFormatter(unit))
        axes.xaxis.set_major_locator(MaxNLocator(5))
    _legend(figure)
    return figure if any(axes.lines for axes in figure.axes) else None


def gradient_chart(
    initial: Mapping[str, Sequence[float]], runs: Sequence[Run], trained_styles: Styles
) -> Figure | None:
    """Gradient norms by distance, relative to distance 0, of untrained encoders and of runs."""
    trained = {run["name"]: run.get("gradient_by_distance") for run in runs}
    figure, grid = _panels(4.2)
    panels = (initial, styles(initial), "untrained"), (trained, trained_styles, "trained")
    for axes, (curves, of_name, title) in zip(grid, panels):
        for name, norms in curves.items():
            first = norms[0] if norms else 0
            points = [(i, norm and norm / first) for i, norm in enumerate(norms or ()) if first]
            _line(axes, name, points, of_name)
        axes.set(title=title, xlabel="distance in tokens", yscale="log")
        axes.set_ylabel("gradient norm, relative")
        if axes.lines:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure if any(axes.lines for axes in figure.axes) else None


def cost_chart(costs: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Time and memory of layers by n and by d; dotted, Table 1's operations."""
    if not costs:
        return None
    of_name = styles(cost["layer"] for cost in costs)
    figure, grid = _panels(6.4, rows=2, sharex="col", sharey="row")
    for column, (along, fixed) in zip(grid.T, (("n", "d"), ("d", "n"))):
        at = statistics.mode(cost[fixed] for cost in costs)
        swept = sorted((x for x in costs if x[fixed] == at), key=lambda cost: cost[along])
        for axes, measure, unit in zip(column, ("seconds", "bytes"), "sB"):
            for layer, style in of_name.items():
                rows = [cost for cost in swept if cost["layer"] == layer]
                _line(axes, layer, [(row[along], row[measure]) for row in rows], of_name)
                if measure == "seconds" and rows and rows[-1]["seconds"]:
                    scale = rows[-1]["seconds"] / rows[-1]["operations"]
                    points = [(row[along], scale * row["operations"]) for row in rows]
                    axes.plot(*zip(*points), ":", color=style["color"], linewidth=1)
            axes.set(xscale="log", yscale="log")
            axes.yaxis.set_major_formatter(EngFormatter(unit))
        column[1].set_xlabel(f"{along}, at {fixed} = {at}")
        sizes = sorted({cost[along] for cost in swept})
        column[1].set_xticks(sizes, sizes)
        column[1].set_xticks([], minor=True)
    grid[0, 0].set_ylabel("time")
    grid[1, 0].set_ylabel("temporary memory")
    _legend(figure)
    return figure


def _panels(height: float, rows: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    with rc_context(_STYLE):
        figure = Figure((10, height), layout="constrained")
        return figure, figure.subplots(rows, 2, **options)


def _line(axes: Axes, name: str, points: Sequence[tuple], styles: Styles) -> None:
    """A line; None and what is not finite are gaps."""
    xs, ys = np.array(points, float).reshape(-1, 2).T
    if np.isfinite(xs + ys).any():
        axes.plot(xs, ys, label=name, markevery=math.ceil(len(xs) / 12), **styles[name])


def _interval_line(axes: Axes, name: str, points: Sequence[tuple], styles: Styles) -> None:
    if points:
        xs, scores = zip(*points)
        ys, below, above = zip(*map(_interval, scores))
        bars = {"capsize": 2, "elinewidth": 0.8}
        axes.errorbar(xs, ys, [below, above], label=name, **bars, **styles[name])


def _interval(of: Mapping[str, float]) -> tuple[float, float, float]:
    """The score, and how far the interval, which is about the mean, goes below and above it."""
    score, mean, half_width = of["score"], of["mean"], of["half_width"]
    return score, max(score - mean + half_width, 0), max(mean + half_width - score, 0)


def _legend(figure: Figure) -> None:
    """Of the names in any panel, each once, right of all."""
    named = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {label: handle for pair in named for handle, label in zip(*pair)}
    if handles:
        place = {"loc": "outside right upper", "frameon": False}
        figure.legend(handles.values(), handles.keys(), **place)
