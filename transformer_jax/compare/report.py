"""The report of a comparison: one HTML page that needs nothing but itself.

The template escapes whatever comes from corpora, configs and errors. What was not measured is a
dash.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from transformer_jax.compare import charts
from transformer_jax.figures.labels import label

Run = Mapping[str, Any]
_CURVES = (  # name of the chart, title, curve, value, label of the axis, its scale
    ("loss", "Training loss", "loss_curve", "loss", "loss, nats a token", "linear"),
    ("valid-loss", "Validation loss", "valid_curve", "loss", "loss, nats a token", "linear"),
    ("valid-bleu", "Validation BLEU", "valid_curve", "bleu", "BLEU", "linear"),
    ("norm", "Gradient norm in training", "loss_curve", "gradient_norm", "norm", "log"),
)


def report(comparison: Mapping[str, Any]) -> str:
    """The page of what comparison.json holds, as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("transformer_jax.compare", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"decimal": _decimal, "number": _number, "label": label}
    whole = [run for run in comparison["runs"] if not run.get("limited")]
    groups = _sizes_by_name(comparison["runs"])
    return environment.get_template("report.html").render(
        comparison,
        whole=whole,
        groups=groups,
        charts=_charts(comparison, whole, groups),
        curves={name: title for name, title, *_ in _CURVES},
        differences=_differences(whole),
        bins=_bins(whole, comparison["test"]["length_unit"]),
        sentences=_samples_by_source(whole),
    )


def _charts(
    comparison: Mapping[str, Any], whole: list[Run], groups: dict[str, list[Run]]
) -> dict[str, Markup]:
    """SVG of the charts for which something was measured, by name."""
    styles = charts.styles(run["name"] for run in [*whole, *comparison["runs"]])
    unit, initial = comparison["test"]["length_unit"], comparison["initial_gradients"]
    figures = {
        "scores": charts.scores_chart(whole, styles),
        "length": charts.length_chart(whole, styles, unit),
        "pairs": charts.pairs_chart(groups, styles),
        "gradients": charts.gradient_chart(initial, whole, styles),
        "costs": charts.cost_chart(comparison["layer_costs"]),
    }
    for name, _, *of_curve in _CURVES:
        figures[name] = charts.curve_chart(whole, styles, *of_curve)
    return {name: Markup(charts.svg(figure, name)) for name, figure in figures.items() if figure}


def _sizes_by_name(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each model that was trained on several numbers of pairs, fewest first."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.get("pairs") or 0):
        if run.get("pairs") and run.get("chrf"):
            groups.setdefault(run["name"], []).append(run)
    return {name: group for name, group in groups.items() if len(group) > 1}


def _samples_by_source(runs: list[Run]) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
    """The names and samples of the runs that translated each source."""
    samples: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for run in runs:
        for sample in run.get("samples") or []:
            samples.setdefault(sample["source"], []).append((run["name"], sample))
    return samples


def _bins(runs: list[Run], unit: str) -> list[str]:
    parts = next((run["by_length"] for run in runs if run.get("by_length")), [])
    return [f"{charts.span(part)} {unit}" for part in parts]


def _differences(runs: list[Run]) -> dict[str, list[Any]]:
    """The fields of the configs that differ, each with its value in every run."""
    flat = [dict(_flat(run.get("config") or {})) for run in runs]
    fields = dict.fromkeys(field for of_run in flat for field in of_run)
    values = {field: [of_run.get(field, "–") for of_run in flat] for field in fields}
    return {field: each for field, each in values.items() if len(set(map(str, each))) > 1}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _decimal(value: float | None, digits: int = 0, sign: str = "") -> str:
    if value is None or isinstance(value, jinja2.Undefined):
        return "–"
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{sign},.{digits}f}".replace("-", "−")


def _number(value: float | None) -> str:
    """A number without a fraction, unless it is small."""
    small = isinstance(value, float) and 0 < abs(value) < 10 and value != int(value)
    return _decimal(value, 1 if small else 0)
