"""Charts: what they draw, in the page's colour, with names that do not overlap."""

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest
from compare.made_up import comparison

from transformer_jax.compare import charts

SVG = "{http://www.w3.org/2000/svg}"


def whole_runs():
    return [run for run in comparison()["runs"] if not run["limited"]]


def texts(chart: str) -> list[tuple[str, float]]:
    """Each text with its height on the page."""
    found = []
    for element in ElementTree.fromstring(chart).iter(f"{SVG}text"):
        place = re.search(r"translate\(\S+ (\S+)\)", element.get("transform", ""))
        height = float(place[1]) if place else float(element.get("y"))
        found.append(("".join(element.itertext()), height))
    return found


def test_names_stand_apart_where_lines_end_together():
    runs = whole_runs()[:7]
    for run in runs:
        run["by_length"] = runs[0]["by_length"]
    names = {run["name"] for run in runs}
    heights = sorted(y for text, y in texts(charts.length_chart(runs)) if text in names)
    assert len(heights) == 7
    assert all(later - earlier > 12 for earlier, later in zip(heights, heights[1:]))


def test_names_are_in_the_order_of_the_ends():
    runs = whole_runs()[:7]
    heights = dict(texts(charts.length_chart(runs)))
    ordered = sorted((run["name"] for run in runs), key=lambda name: -heights[name])
    assert ordered == [run["name"] for run in runs]  # the scores rise with the place


def test_text_and_axes_have_the_colour_of_the_page():
    chart = charts.scores_chart(whole_runs())
    assert "currentColor" in chart and charts._PAGE not in chart
    assert "fill: #000" not in chart and "stroke: #000" not in chart
    assert "<metadata" not in chart and "<text" in chart


def test_a_run_that_failed_changes_no_colour_of_the_others():
    runs = whole_runs()[:3]
    colours = [charts._styles(runs)[run["name"]]["color"] for run in runs]
    runs[0] = {"name": runs[0]["name"]}
    for chart in (charts.scores_chart(runs), charts.length_chart(runs),
                  charts.pairs_chart({runs[2]["name"]: runs[2:]}, runs)):  # fmt: skip
        assert colours[0].lower() not in chart and colours[2].lower() in chart


def test_each_bin_has_its_range_and_its_sentences():
    labels = [text for text, _ in texts(charts.length_chart(whole_runs()))]
    assert "".join(labels).count("1–4") == 2 and "(160)" in "".join(labels)


def test_curves_leave_out_what_cannot_be_drawn():
    def run(losses):
        points = [{"target_tokens": i, "seconds": i, "loss": loss} for i, loss in enumerate(losses)]
        return {"name": "a", "curve": points}

    curve = charts.curve_chart([run([4.0, math.nan, None, math.inf, 2.0])], "curve", "loss", "l")
    assert curve == charts.curve_chart(
        [{"name": "a", "curve": [{"target_tokens": i, "seconds": i, "loss": x}
                                for i, x in ((0, 4.0), (4, 2.0))]}],
        "curve", "loss", "l",
    )  # fmt: skip
    assert charts.curve_chart([run([None])], "curve", "loss", "l") == ""
    assert charts.curve_chart([run([0.0])], "curve", "loss", "l", logarithmic=True) == ""
    assert charts.curve_chart([{"name": "a"}], "curve", "loss", "l") == ""


def test_gradients_are_relative_to_the_last_token():
    """So that two models that differ by a factor are drawn alike."""
    one, two = ({"name": "a", "gradient_by_distance": [f, f / 8, 0.0, f / 64]} for f in (1.0, 8.0))
    assert charts.gradient_chart({}, [one]) == charts.gradient_chart({}, [two]) != ""
    dead = {"name": "a", "gradient_by_distance": [0.0, 0.0]}
    broken = {"name": "b", "gradient_by_distance": [math.nan, 1.0]}
    assert charts.gradient_chart({"c": []}, [dead, broken, {"name": "d"}]) == ""


def test_the_theory_goes_through_the_largest_measured_point():
    figure = charts.Figure()
    axes = figure.subplots()
    rows = [{"n": n, "seconds": s, "operations": n * n} for n, s in ((2, 9), (4, 10), (8, 16))]
    charts._theory(axes, rows, "n", "red")
    assert axes.lines[0].get_xydata().tolist() == [[2, 1], [4, 4], [8, 16]]


def test_the_sizes_of_a_sweep_are_those_of_one_other_size():
    costs = comparison()["layer_costs"]
    value, sweep = charts._sweep(costs, "n", "d")
    assert value == 128 and {cost["n"] for cost in sweep} == {2**k for k in range(5, 12)}
    value, sweep = charts._sweep(costs, "d", "n")
    widths = [cost["d"] for cost in sweep if cost["layer"] == "lstm"]
    assert value == 128 and widths == [32, 64, 128, 256, 512]


def test_a_score_outside_the_resamples_is_inside_its_bar():
    low, score, high = charts._interval({"score": 10.0, "mean": 8.0, "half_width": 1.0})
    assert (low, score, high) == (7.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "10⁻⁵"), (0.01, "0.01"), (100, "100"), (2e-5, "2e-05")]
)
def test_powers_are_written_without_markup(value, text):
    assert charts._power(value, 0) == text


def test_what_bleu_is_undefined_for_is_drawn_by_its_chrf():
    runs = whole_runs()[:2]
    groups = {run["name"]: [run] for run in runs}
    draw = (charts.scores_chart, charts.length_chart, lambda runs: charts.pairs_chart(groups, runs))
    before = [make(runs).count("<use") for make in draw]
    runs[0]["bleu"] = runs[0]["by_length"][0]["bleu"] = None
    for make, marks in zip(draw, before):
        assert 0 < make(runs).count("<use") < marks


def test_nothing_to_draw_is_no_chart():
    assert charts.scores_chart([{"name": "a"}]) == charts.length_chart([{"name": "a"}]) == ""
    assert charts.pairs_chart({"a": []}, []) == charts.cost_chart([]) == ""
