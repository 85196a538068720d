"""The report's charts: SVG elements for an HTML page, made by matplotlib.

Text stays text, drawn in the page's own colour, so that a chart is read on light and on dark
ground; ids are prefixed by the chart's name, so that several stand on one page. Colours are
those of Okabe and Ito, which differ for the colour-blind too; markers and dashes repeat them.
"""

import collections
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Run = Mapping[str, Any]

_MARKERS = "osD^vPX"
_DASHES = ("-", "--", ":", "-.")
_PAGE = "#7f8081"  # stands for the page's colour of text
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", _PAGE)
_LEFT, _BETWEEN, _BOTTOM, _TOP = 0.85, 0.8, 0.72, 0.12  # inches about the panels
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": _PAGE,
    "axes.grid": True,
    "axes.labelcolor": _PAGE,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.3,
    "grid.color": "#888888",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "svg.fonttype": "none",
    "text.color": _PAGE,
    "text.parse_math": False,
    "xtick.color": _PAGE,
    "ytick.color": _PAGE,
}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def scores_chart(runs: Sequence[Run]) -> str:
    """BLEU, where it is defined, and chrF of each run; "" where no run has one."""
    styles = _styles(runs)
    runs = [run for run in runs if run.get("chrf")]
    if not runs:
        return ""
    with rc_context(_STYLE):
        figure, panels = _panels(0.8 + 0.28 * len(runs), sharey=True)
        for axes, metric, label in zip(panels, ("bleu", "chrf"), ("BLEU", "chrF")):
            for place, run in enumerate(runs):
                if not run[metric]:
                    continue
                style = styles[run["name"]] | {"linestyle": ""}
                low, score, high = _interval(run[metric])
                errors = [[score - low], [high - score]]
                axes.errorbar([score], [place], xerr=errors, capsize=3, **style)
            axes.set(xlabel=f"{label}, 95 % interval", yticks=range(len(runs)))
            axes.set_yticklabels([run["name"] for run in runs])
            axes.set_ylim(len(runs) - 0.5, -0.5)
        figure.set_layout_engine("constrained")
        return _svg(figure, "scores")


def length_chart(runs: Sequence[Run]) -> str:
    """BLEU and chrF by the length of the source; "" where nothing was measured."""
    styles = _styles(runs)
    runs = [run for run in runs if run.get("by_length")]
    if not runs:
        return ""
    bins = max((run["by_length"] for run in runs), key=len)
    with rc_context(_STYLE):
        figure, panels = _panels(3.6)
        for axes, metric, label in zip(panels, ("bleu", "chrf"), ("BLEU", "chrF")):
            lines = {run["name"]: _intervals(run, metric) for run in runs}
            _interval_lines(axes, lines, styles)
            axes.set(xlabel="words of the source (sentences)", ylabel=label)
            axes.set_xticks(range(len(bins)), [_bin_label(b) for b in bins])
        return _finish(figure, panels[None], panels[1:], "length")


def pairs_chart(groups: Mapping[str, Sequence[Run]], styled: Sequence[Run]) -> str:
    """BLEU and chrF by the number of training pairs, a line a model; "" without any.

    Args:
      groups: by name, runs of one model on several numbers of pairs.
      styled: the runs of the other charts, which give these names their colours.
    """
    groups = {name: [run for run in runs if run.get("chrf")] for name, runs in groups.items()}
    if not any(groups.values()):
        return ""
    with rc_context(_STYLE):
        figure, panels = _panels(3.6)
        for axes, metric, label in zip(panels, ("bleu", "chrf"), ("BLEU", "chrF")):
            lines = {
                name: [(math.log10(x["pairs"]), _interval(x[metric])) for x in runs if x[metric]]
                for name, runs in groups.items()
            }
            _interval_lines(axes, lines, _styles(styled), spread=0.01)
            counts = sorted({run["pairs"] for runs in groups.values() for run in runs})
            axes.set(xlabel="training pairs (logarithmic)", ylabel=label)
            axes.set_xticks([math.log10(n) for n in counts], [f"{n:,}" for n in counts])
        return _finish(figure, panels[None], panels[1:], "pairs")


def curve_chart(
    runs: Sequence[Run], curve: str, value: str, label: str, *, logarithmic: bool = False
) -> str:
    """A value of training against target tokens and against seconds; "" without any."""
    with rc_context(_STYLE):
        figure, panels = _panels(3.4)
        for axes, x, unit in zip(panels, ("target_tokens", "seconds"), ("", "s")):
            for run in runs:
                points = _points(run.get(curve) or [], x, value, positive=logarithmic)
                _line(axes, points, run["name"], _styles(runs))
            name = {"target_tokens": "target tokens trained", "seconds": "time of training"}[x]
            axes.set(xlabel=name, ylabel=label)
            axes.xaxis.set_major_locator(ticker.MaxNLocator(5))
            axes.xaxis.set_major_formatter(ticker.EngFormatter(unit))
            if logarithmic:
                _logarithmic(axes.yaxis)
        if not any(axes.lines for axes in panels):
            return ""
        name = f"{curve}-{value}".replace("_", "-")
        return _finish(figure, panels[None], panels[1:], name)


def gradient_chart(initial: Mapping[str, Sequence[float]], runs: Sequence[Run]) -> str:
    """Gradient norms relative to distance 0, untrained and trained; "" without any."""
    trained = {run["name"]: run["gradient_by_distance"] for run in runs if _has_gradients(run)}
    untrained = {name: norms for name, norms in initial.items() if norms and norms[0]}
    if not trained and not untrained:
        return ""
    with rc_context(_STYLE):
        figure, panels = _panels(4.2)
        initial_styles = _styles([{"name": name} for name in untrained])
        both = (untrained, initial_styles), (trained, _styles(runs))
        for axes, (curves, styles), title in zip(panels, both, ("untrained", "trained")):
            for name, norms in curves.items():
                rows = [{"x": i, "y": norm and norm / norms[0]} for i, norm in enumerate(norms)]
                _line(axes, _points(rows, "x", "y", positive=True), name, styles)
            axes.set(title=title, xlabel="distance in tokens", ylabel="gradient norm, relative")
            _logarithmic(axes.yaxis)
        return _finish(figure, panels[None], panels, "gradients")


def cost_chart(costs: Sequence[Mapping[str, Any]]) -> str:
    """Seconds and bytes of both layers against n and against d; "" without any."""
    if not costs:
        return ""
    layers = [{"name": name} for name in dict.fromkeys(cost["layer"] for cost in costs)]
    styles = _styles(layers)
    with rc_context(_STYLE):
        figure = Figure(figsize=(10, 6.4))
        grid = figure.subplots(2, 2, sharex="col", sharey="row")
        for column, (along, fixed) in enumerate((("n", "d"), ("d", "n"))):
            value, sweep = _sweep(costs, along, fixed)
            for axes, measure in zip(grid[:, column], ("seconds", "bytes")):
                for layer in styles:
                    rows = [cost for cost in sweep if cost["layer"] == layer]
                    points = _points(rows, along, measure, positive=True)
                    _line(axes, points, layer, styles)
                    if measure == "seconds":
                        _theory(axes, rows, along, styles[layer]["color"])
                axes.set_xscale("log", base=2)
                _logarithmic(axes.yaxis, ticker.EngFormatter("s" if measure == "seconds" else "B"))
                axes.set_xticks(sorted({cost[along] for cost in sweep}))
                axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%d"))
                axes.xaxis.set_minor_locator(ticker.NullLocator())
            grid[1, column].set_xlabel(
                {"n": f"length n (d = {value})", "d": f"width d (n = {value})"}[along]
            )
        grid[0, 0].set_ylabel("time")
        grid[1, 0].set_ylabel("temporary memory")
        return _finish(figure, grid, grid[:, 1], "costs")


def _theory(axes: Axes, rows: Sequence[Mapping[str, Any]], along: str, colour: str) -> None:
    """The theory's operations as a dotted line, through the largest measured point."""
    rows = [row for row in rows if row["seconds"]]
    if rows:
        scale = rows[-1]["seconds"] / rows[-1]["operations"]
        xs, ys = [row[along] for row in rows], [scale * row["operations"] for row in rows]
        axes.plot(xs, ys, color=colour, linestyle=":", linewidth=1)


def _sweep(costs, along: str, fixed: str) -> tuple[int, list[Mapping[str, Any]]]:
    """The value of `fixed` that most values of `along` were measured at, and their costs."""
    seen = collections.Counter(value for value, _ in {(c[fixed], c[along]) for c in costs})
    ((value, _),) = seen.most_common(1)
    swept = [cost for cost in costs if cost[fixed] == value]
    return value, sorted(swept, key=lambda cost: cost[along])


def _styles(runs: Iterable[Run]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each name, by its place among all runs of the page."""
    names, number = dict.fromkeys(run["name"] for run in runs), len(_COLOURS)
    return {
        name: {
            "color": _COLOURS[i % number],
            "marker": _MARKERS[i % number],
            "linestyle": _DASHES[i // number % len(_DASHES)],
        }
        for i, name in enumerate(names)
    }


def _panels(height: float, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure of two panels side by side."""
    figure = Figure(figsize=(10, height))
    return figure, figure.subplots(1, 2, **options)


def _points(rows, x: str, y: str, *, positive: bool) -> list[tuple[float, float]]:
    """The pairs of values that can be drawn."""
    pairs = [(row.get(x), row.get(y)) for row in rows]
    return [
        pair
        for pair in pairs
        if None not in pair and all(map(math.isfinite, pair)) and (pair[1] > 0 or not positive)
    ]


def _line(axes: Axes, points, name: str, styles: Mapping[str, dict[str, Any]]) -> None:
    if points:
        style = styles[name] | ({} if len(points) <= 12 else {"marker": ""})
        axes.plot(*zip(*points), label=name, **style)


def _interval_lines(axes: Axes, lines, styles, spread: float = 0.05) -> None:
    """Lines of (x, interval), beside each other so that none hides another's interval."""
    for place, (name, points) in enumerate(lines.items()):
        if points:
            offset = (place - (len(lines) - 1) / 2) * spread
            lows, ys, highs = np.array([interval for _, interval in points]).T
            xs, errors = [x + offset for x, _ in points], [ys - lows, highs - ys]
            colour = styles[name]["color"]
            axes.errorbar(xs, ys, errors, fmt="none", ecolor=colour, capsize=2, elinewidth=0.8)
            axes.plot(xs, ys, label=name, **styles[name])


def _interval(of: Mapping[str, float]) -> tuple[float, float, float]:
    """Low end, score and high end; the interval stands about the mean of the resamples."""
    score, mean, half_width = of["score"], of["mean"], of["half_width"]
    return min(mean - half_width, score), score, max(mean + half_width, score)


def _intervals(run: Run, metric: str) -> list[tuple[int, tuple[float, float, float]]]:
    """Those bins, by number, in which the metric is defined."""
    return [(i, _interval(x[metric])) for i, x in enumerate(run["by_length"]) if x[metric]]


def _bin_label(of_bin: Mapping[str, Any]) -> str:
    first, last = of_bin["from"], of_bin["to"]
    return f"{first if first == last else f'{first}–{last}'}\n({of_bin['sentences']:,})"


def _has_gradients(run: Run) -> bool:
    norms = run.get("gradient_by_distance")
    return bool(norms) and math.isfinite(norms[0]) and norms[0] > 0


def _logarithmic(axis, formatter: ticker.Formatter | None = None) -> None:
    """A logarithmic axis whose minor ticks have labels where there are few major ones."""
    formatter = formatter or ticker.FuncFormatter(_power)

    def minor(value: float, place: int) -> str:
        low, high = axis.get_view_interval()
        return formatter(value, place) if high < 30 * low else ""

    axis.axes.set_yscale("log")
    axis.set_major_formatter(formatter)
    axis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axis.set_minor_formatter(ticker.FuncFormatter(minor))


def _power(value: float, _) -> str:
    exponent = math.log10(value) if value > 0 else 0
    if abs(exponent) <= 3 or abs(exponent - round(exponent)) > 1e-9:
        return f"{value:g}"
    return "10" + str(round(exponent)).translate(_SUPERSCRIPTS)


def _finish(figure: Figure, grid: np.ndarray, labelled: Sequence[Axes], name: str) -> str:
    """Lays the panels [rows, columns] out, with names at the ends of the lines of some."""
    width, height = figure.get_size_inches()
    # The layout is ours: names take no part in matplotlib's own.
    margins = [max(map(_margin, [ax for ax in column if ax in labelled]), default=0)
               for column in grid.T]  # fmt: skip
    rows, columns = grid.shape
    top = _TOP + 0.25 * any(axes.get_title() for axes in grid[0])
    wide = (width - _LEFT - sum(margins) - (columns - 1) * _BETWEEN) / columns
    tall = (height - top - _BOTTOM - (rows - 1) * _TOP * 2) / rows
    for (row, column), axes in np.ndenumerate(grid):
        left = _LEFT + column * (wide + _BETWEEN) + sum(margins[:column])
        bottom = _BOTTOM + (rows - 1 - row) * (tall + _TOP * 2)
        axes.set_position([left / width, bottom / height, wide / width, tall / height])
    for axes in labelled:
        _label_ends(axes)
    return _svg(figure, name)


def _margin(axes: Axes) -> float:
    """Inches that the names of the lines take."""
    return 0.25 + 0.078 * max((len(line.get_label()) for line in _named(axes)), default=0)


def _named(axes: Axes) -> list:
    return [line for line in axes.lines if not line.get_label().startswith("_")]


def _label_ends(axes: Axes) -> None:
    """The name of each line at its end, moved apart where they would overlap."""
    axes.get_ylim(), axes.get_xlim()  # which settles where data is drawn
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = sorted(
        ((*to_axes.transform(line.get_xydata()[-1]), line) for line in _named(axes)),
        key=lambda end: end[1],
    )
    points = axes.get_position().height * axes.figure.get_figheight() * 72
    apart, heights = min(13 / points, 1 / max(len(ends), 1)), []
    for _, y, _ in ends:
        heights.append(max(y, heights[-1] + apart) if heights else y)
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], 1 - (len(heights) - 1 - place) * apart)
    for (x, y, line), height in zip(ends, heights):
        axes.annotate(
            line.get_label(),
            (x, y),
            (1.03, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": line.get_color(),
                "linewidth": 1.2,
                "relpos": (0, 0.5),
                "shrinkA": 0,
                "shrinkB": 3,
            },
        )


def _svg(figure: Figure, name: str) -> str:
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.hashsalt": name}), io.StringIO() as file:
        figure.savefig(file, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
        text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace(_PAGE, "currentColor")
