"""The report of a comparison: one HTML page that needs nothing but itself.

Whatever comes from corpora, configs and errors is escaped. What was not measured is a dash.
"""

import importlib.resources
import json
import string
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformer_jax.compare import charts, elements

Run = Mapping[str, Any]
_NOTHING = '<p class="quiet">Nothing was measured.</p>'
_PROBE = '<p class="quiet">Nothing was measured: benchmarks/{0}.py does, for --probes.</p>'


def report(comparison: Mapping[str, Any]) -> str:
    """The page of what comparison.json holds, as HTML text."""
    body, contents = [], []
    for name, (title, section) in _SECTIONS.items():
        contents.append(f'<li><a href="#{name}">{title}</a></li>')
        content = section(comparison) or _NOTHING
        body.append(f'<section>\n<h2 id="{name}">{title}</h2>\n{content}\n</section>')
    test = comparison["test"]
    languages = f"{test['source_language']} to {test['target_language']}"
    template = importlib.resources.files(__package__).joinpath("report.html")
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        title=elements.text(f"Comparison of {len(_whole(comparison))} models, {languages}"),
        subtitle=elements.text(
            f"{_budget(comparison)}; scored on {elements.count(test['sentences'])} sentences of "
            f"{test['corpus']}; {comparison['date']}."
        ),
        contents="\n".join(contents),
        body="\n".join(body),
    )


def _summary(comparison: Mapping[str, Any]) -> str:
    runs = _whole(comparison)
    best = max((run["bleu"]["score"] for run in runs if run.get("bleu")), default=None)
    columns: dict[str, Callable[[Run], str]] = {
        "Model": lambda run: elements.text(run["name"]),
        "Parameters": lambda run: elements.count(run.get("parameters")),
        "Updates": lambda run: elements.count(run.get("updates")),
        "Target tokens trained": lambda run: elements.count(run.get("target_tokens")),
        "Seconds trained": lambda run: elements.count(run.get("train_seconds")),
        "BLEU (95\u00a0%)": lambda run: elements.score(
            run.get("bleu"), best=bool(run.get("bleu")) and run["bleu"]["score"] == best
        ),
        "chrF (95\u00a0%)": lambda run: elements.score(run.get("chrf")),
        "Validation loss": lambda run: elements.decimal(_last_loss(run), 3),
        "Train tokens/s": lambda run: elements.count(run.get("train_tokens_per_s")),
        "Decode tokens/s": lambda run: elements.count(run.get("decode_tokens_per_s")),
        "Seconds an epoch": lambda run: elements.count(run.get("seconds_per_epoch")),
    }
    rows = [[column(run) for column in columns.values()] for run in runs]
    return (
        "<p>Each score stands above its 95\u00a0% interval, from 1,000 resamples of the test "
        "sentences: it says how much another test set of the same kind might change it, not how "
        "much another training run would. Speeds were measured after all training, one model after "
        "the other, and times are tokens at that speed. Loss is that of the last validation, in "
        "nats a token, label smoothing included. Tokens are those of the target, without "
        "padding. BLEU is undefined, a dash, where no reference has 4 tokens.</p>"
        + elements.table(list(columns), rows)
        + elements.figure(charts.scores_chart(runs), "BLEU and chrF with their intervals.")
    )


def _configs(comparison: Mapping[str, Any]) -> str:
    """Which fields of the configs differ, and how."""
    runs = _whole(comparison)
    flat = [dict(_flat(run.get("config") or {})) for run in runs]
    fields = [
        field
        for field in dict.fromkeys(field for of_run in flat for field in of_run)
        if len({json.dumps(of_run.get(field)) for of_run in flat}) > 1
    ]
    if not fields:
        return "<p>The configs are equal.</p>"
    rows = [
        [elements.text(run["name"]), *(elements.text(of_run.get(field)) for field in fields)]
        for run, of_run in zip(runs, flat)
    ]
    intro = "<p>All other fields of the configs are equal.</p>"
    return intro + elements.table(["Model", *fields], rows, texts=range(len(fields) + 1))


def _failures(comparison: Mapping[str, Any]) -> str:
    runs = [run for run in comparison["runs"] if run["status"] != "done"]
    if not runs:
        return "<p>All runs were done.</p>"
    rows = [
        [
            elements.text(run["name"]),
            elements.count(run.get("pairs")),
            elements.text(run["status"]),
            f'<pre class="error">{elements.text(run["error"])}</pre>'
            if run.get("error")
            else elements.DASH,
        ]
        for run in runs
    ]
    return elements.table(["Model", "Training pairs", "Status", "Why"], rows, texts=(0, 2, 3))


def _significance(comparison: Mapping[str, Any]) -> str:
    tests = comparison.get("significance") or []
    if not tests:
        return ""
    rows = []
    for test in tests:
        row = [elements.text(test["first"]), elements.text(test["second"])]
        for metric in ("bleu", "chrf"):
            result = test.get(metric) or {}
            difference, p = result.get("difference"), result.get("p_value")
            row += [elements.decimal(difference, 1, sign=True), elements.p_value(p)]
        rows.append(row)
    head = ["First", "Second", "BLEU, second less first", "p", "chrF, second less first", "p"]
    return (
        "<p>Paired bootstrap resampling: both systems translate the same resampled sentences. "
        "p is how probable a difference as large, either way, would be if the two were equally "
        "good; below 0.05 it is bold. With many pairs of systems some are below it by chance."
        "</p>" + elements.table(head, rows, texts=(0, 1))
    )


def _lengths(comparison: Mapping[str, Any]) -> str:
    runs = _whole(comparison)
    chart = charts.length_chart(runs)
    if not chart:
        return ""
    intro = (
        "<p>Bahdanau et al. 2015 (figure 2) found that a model which keeps the whole source in "
        "one vector loses long sentences, and that attention does not. The sentences of a bin "
        "are the same for all; bars are 95\u00a0% intervals.</p>"
    )
    runs = [run for run in runs if run.get("by_length")]
    bins = max((run["by_length"] for run in runs), key=len)
    rows = [
        [
            elements.text(run["name"]),
            *(elements.decimal(b.get("length_ratio"), 2) for b in run["by_length"]),
        ]
        for run in runs
    ]
    unit = comparison["test"].get("length_unit", "words")
    head = ["Model", *(f"{b['from']}–{b['to']} {unit}" for b in bins)]
    ratios = "<h3>Length of the translation over that of the reference</h3>"
    figure = elements.figure(chart, "BLEU and chrF by the length of the source.")
    return intro + figure + ratios + elements.table(head, rows)


def _pairs(comparison: Mapping[str, Any]) -> str:
    groups: dict[str, list[Run]] = {}
    for run in sorted(comparison["runs"], key=lambda run: run.get("pairs") or 0):
        if run.get("pairs") and run.get("chrf"):
            groups.setdefault(run["name"], []).append(run)
    groups = {name: runs for name, runs in groups.items() if len(runs) > 1}
    if not groups:
        return "<p>No model was trained on several numbers of pairs.</p>"
    chart = charts.pairs_chart(groups, [*_whole(comparison), *comparison["runs"]])
    rows = [
        [
            elements.text(run["name"]),
            elements.count(run["pairs"]),
            elements.score(run.get("bleu")),
            elements.score(run.get("chrf")),
        ]
        for runs in groups.values()
        for run in runs
    ]
    head = ["Model", "Training pairs", "BLEU (95\u00a0%)", "chrF (95\u00a0%)"]
    figure = elements.figure(
        chart, "BLEU and chrF by the number of training pairs; bars: 95\u00a0%."
    )
    return figure + elements.table(head, rows)


def _curves(comparison: Mapping[str, Any]) -> str:
    runs, parts = _whole(comparison), []
    for curve, value, title, axis, logarithmic in (
        ("loss_curve", "loss", "Training loss", "loss, nats a token", False),
        ("valid_curve", "loss", "Validation loss", "loss, nats a token", False),
        ("valid_curve", "bleu", "Validation BLEU", "BLEU", False),
        ("loss_curve", "gradient_norm", "Gradient norm in training", "norm", True),
    ):
        if chart := charts.curve_chart(runs, curve, value, axis, logarithmic=logarithmic):
            caption = f"{title} at equal numbers of tokens, left, and at equal time, right."
            parts.append(f"<h3>{title}</h3>" + elements.figure(chart, caption))
    return "".join(parts)


def _gradients(comparison: Mapping[str, Any]) -> str:
    chart = charts.gradient_chart(comparison.get("initial_gradients") or {}, _whole(comparison))
    if not chart:
        return _PROBE.format("gradient_by_distance")
    caption = "Norm of the gradient by distance, relative to distance 0; logarithmic."
    return (
        "<p>The encoder's last state, projected on random directions, differentiated by the "
        "embedding of each token before it, in sources of random tokens. A straight fall is "
        "the vanishing gradient and a straight rise the exploding one (Bengio et al. 1994; "
        "Pascanu et al. 2013): both are a constant factor a position. Self-attention has one step "
        "between any two positions, so that its norm has no such trend; distance 0 stands above "
        "the others by the residual connection. Untrained LSTM and GRU begin with gates half "
        "open, and vanish too; what they learn is to keep some open. Of a bidirectional "
        "encoder, the backward half has read only the last token there and counts at "
        "distance 0 alone.</p>" + elements.figure(chart, caption)
    )


def _layer_costs(comparison: Mapping[str, Any]) -> str:
    costs = comparison.get("layer_costs") or []
    if not costs:
        return _PROBE.format("layer_cost")
    intro = (
        "<p>One layer, one sentence, forward and backward. Dotted: the operations of Table 1 of "
        "Vaswani et al. 2017, n² d for self-attention and n d² for a recurrent layer, drawn "
        "through the largest measured point. Self-attention's projections, 4 n d², are not in "
        "them and weigh more while n is small. All places of self-attention are computed at "
        "once, and those of the LSTM one after the other: n sequential steps.</p>"
    )
    rows = [
        [
            elements.text(cost["layer"]),
            elements.count(cost["n"]),
            elements.count(cost["d"]),
            elements.decimal(cost["seconds"] * 1000 if cost.get("seconds") else None, 2),
            elements.decimal(cost["bytes"] / 1e6 if cost.get("bytes") is not None else None, 2),
            elements.count(cost.get("operations")),
            elements.count(cost.get("steps")),
        ]
        for cost in costs
    ]
    head = ["Layer", "n", "d", "Milliseconds", "Megabytes", "Operations", "Sequential steps"]
    caption = "Measured time and temporary memory against length n and width d; both logarithmic."
    table = elements.details("All measurements", elements.table(head, rows))
    return intro + elements.figure(charts.cost_chart(costs), caption) + table


def _sentences(comparison: Mapping[str, Any]) -> str:
    by_source: dict[str, list[tuple[Run, Mapping[str, Any]]]] = {}
    for run in _whole(comparison):
        for sample in run.get("samples") or []:
            by_source.setdefault(sample["source"], []).append((run, sample))
    parts = []
    for source, samples in by_source.items():
        rows = [
            ["<b>Source</b>", elements.foreign(source)],
            ["<b>Reference</b>", elements.foreign(samples[0][1].get("reference"))],
            *(
                [elements.text(run["name"]), elements.foreign(sample.get("translation"))]
                for run, sample in samples
            ),
        ]
        lines = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in rows)
        maps = "".join(
            elements.heat_map(run["name"], sample["attention"])
            for run, sample in samples
            if sample.get("attention")
        )
        parts.append(
            f'<div class="sentence"><div class="scroll"><table>{lines}</table></div>'
            f'<div class="maps">{maps}</div></div>'
        )
    if not parts:
        return ""
    return (
        "<p>Below the translations: the cross-attention of the models that have it, the mean of "
        "their layers and heads. A row is a token of the translation, a column one of the source; "
        "strong colour is much.</p>" + "".join(parts)
    )


def _method(comparison: Mapping[str, Any]) -> str:
    machine, test, runs = comparison["machine"], comparison["test"], _whole(comparison)
    signatures = {
        run.get(name) for run in runs for name in ("bleu_signature", "chrf_signature")
    } | {test.get("signature") for test in comparison.get("significance") or []}
    facts = {
        "Date": elements.text(comparison["date"]),
        "Device": elements.text(machine["device"]),
        "Processor cores": elements.count(machine["cores"]),
        "Versions": elements.text(f"Python {machine['python']}, JAX {machine['jax']}"),
        "Budget of each run": elements.text(_budget(comparison)),
        "Test corpus": elements.text(
            f"{test['corpus']}, {elements.count(test['sentences'])} sentences"
        ),
        "Command": f"<code>{elements.text(comparison['command'])}</code>",
        "Signatures": "<br>".join(
            f"<code>{elements.text(s)}</code>" for s in sorted(filter(None, signatures))
        )
        or elements.DASH,
    }
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    configs = "".join(
        f"<h3>{elements.text(run['name'])}</h3>"
        f"<pre>{elements.text(json.dumps(run.get('config'), indent=2))}</pre>"
        for run in runs
    )
    return f"<dl>{listed}</dl>" + elements.details("The configs in full", configs)


_SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "summary": ("Summary", _summary),
    "configs": ("Where the configs differ", _configs),
    "failures": ("Runs that failed", _failures),
    "significance": ("Significance of the differences", _significance),
    "lengths": ("Quality by length of the source", _lengths),
    "pairs": ("Quality by number of training pairs", _pairs),
    "curves": ("Training", _curves),
    "gradients": ("Gradient by distance", _gradients),
    "costs": ("Cost of a layer", _layer_costs),
    "sentences": ("The same sentences by each model", _sentences),
    "method": ("How it was measured", _method),
}


def _whole(comparison: Mapping[str, Any]) -> list[Run]:
    """The runs on all pairs of the corpus."""
    return [run for run in comparison["runs"] if not run.get("limited")]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _budget(comparison: Mapping[str, Any]) -> str:
    tokens, seconds = (comparison["budget"].get(k) for k in ("target_tokens", "train_seconds"))
    limits = [f"{elements.count(tokens)} target tokens"] * bool(tokens)
    limits += [f"{elements.count(seconds)} seconds of training"] * bool(seconds)
    return f"each run up to {' or '.join(limits)}" if limits else "each run as its config says"


def _last_loss(run: Run) -> float | None:
    losses = [point.get("loss") for point in run.get("valid_curve") or []]
    return next((loss for loss in reversed(losses) if loss is not None), None)
