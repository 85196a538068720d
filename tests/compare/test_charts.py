"""Charts: what they draw, and that they stand on one page."""

import math
import warnings
import xml.etree.ElementTree as ElementTree

import pytest
from compare.made_up import comparison

from transformer_jax.compare import charts


@pytest.fixture
def runs() -> list[dict]:
    return [run for run in comparison()["runs"] if not run["limited"]]


@pytest.fixture
def styles(runs):
    return charts.styles(run["name"] for run in runs)


def lines(figure, panel: int = 0) -> dict[str, tuple[list, list]]:
    """The points of each named line of a panel."""
    handles, names = figure.axes[panel].get_legend_handles_labels()
    drawn = [getattr(handle, "lines", [handle])[0] for handle in handles]  # of an interval's
    return {name: tuple(map(list, line.get_data())) for name, line in zip(names, drawn)}


def test_the_legend_names_each_line_once_beside_both_panels(runs, styles):
    figure = charts.length_chart(runs, styles, "words")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [run["name"] for run in runs[:7]]


def test_a_run_that_failed_changes_no_colour_of_the_others(runs):
    of_all, of_some = charts.styles("abc"), charts.styles("abca")
    assert of_all == of_some and len({style["color"] for style in of_all.values()}) == 3
    many = charts.styles(map(str, range(28)))
    assert len({str(style) for style in many.values()}) == 28


def test_each_bin_has_its_range_and_its_sentences(runs, styles):
    runs[0]["by_length"][1]["from"] = 8
    for axes in charts.length_chart(runs, styles, "characters").axes:
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert labels[:2] == ["1–4\n(160)", "8\n(161)"]
        assert axes.get_xlabel() == "characters of the source (sentences)"


def test_intervals_are_about_the_mean_of_the_resamples_and_hold_the_score(runs, styles):
    runs[0]["chrf"] = {"score": 10.0, "mean": 8.0, "half_width": 1.0}
    runs[1]["chrf"] = {"score": 8.0, "mean": 8.5, "half_width": 1.0}
    _, axes = charts.scores_chart(runs[:2], styles).axes
    spans = [container.lines[2][0].get_segments()[0][:, 0] for container in axes.containers]
    assert [span.tolist() for span in spans] == [[7.0, 10.0], [7.5, 9.5]]


def test_curves_have_gaps_where_nothing_can_be_drawn():
    def draw(losses, **options):
        points = [{"target_tokens": i, "seconds": i, "loss": loss} for i, loss in enumerate(losses)]
        run = {"name": "a", "curve": points}
        return charts.curve_chart([run], charts.styles("a"), "curve", "loss", "l", **options)

    (xs, ys) = lines(draw([4.0, math.nan, None, 2.0]))["a"]
    assert xs == [0, 1, 2, 3] and ys[0] == 4 and ys[3] == 2
    assert math.isnan(ys[1]) and math.isnan(ys[2])
    assert draw([None]) is None and draw([]) is None
    assert draw([1.0, 2.0], yscale="log").axes[0].get_yscale() == "log"


def test_gradients_are_relative_to_the_last_token():
    """So that two models that differ by a factor are drawn alike."""
    runs = [
        {"name": name, "gradient_by_distance": [f, f / 8, 0.0, f / 64]}
        for name, f in (("a", 1.0), ("b", 8.0))
    ]
    trained = lines(charts.gradient_chart({}, runs, charts.styles("ab")), 1)
    assert trained["a"] == trained["b"] == ([0, 1, 2, 3], [1, 1 / 8, 0, 1 / 64])
    dead = {"name": "a", "gradient_by_distance": [0.0, 0.0]}
    none = {"name": "b", "gradient_by_distance": None}
    assert charts.gradient_chart({"c": []}, [dead, none], charts.styles("ab")) is None


def test_costs_are_swept_along_one_size_and_the_theory_ends_in_the_largest():
    costs = comparison()["layer_costs"]
    figure = charts.cost_chart(costs)
    by_length, by_width = lines(figure, 0)["lstm"], lines(figure, 1)["lstm"]
    assert by_length[0] == [2**k for k in range(5, 12)]
    assert by_width[0] == [32, 64, 128, 256, 512]
    theory = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    of_attention = theory[0].get_xydata()
    assert of_attention[-1].tolist() == [2048, lines(figure, 0)["self-attention"][1][-1]]
    assert of_attention[1][1] / of_attention[0][1] == pytest.approx(4)  # n^2, at twice the length


def test_what_bleu_is_undefined_for_is_drawn_by_its_chrf(runs, styles):
    runs = runs[:2]
    runs[0]["bleu"] = runs[0]["by_length"][0]["bleu"] = None
    figure = charts.length_chart(runs, styles, "words")
    name = runs[0]["name"]
    assert len(lines(figure, 0)[name][0]) == 5 and len(lines(figure, 1)[name][0]) == 6
    groups = {run["name"]: [run] for run in runs}
    assert name not in lines(charts.pairs_chart(groups, styles), 0)
    assert name in lines(charts.pairs_chart(groups, styles), 1)
    bleu, chrf = charts.scores_chart(runs, styles).axes
    assert len(bleu.containers) == 1 and len(chrf.containers) == 2


def test_nothing_to_draw_is_no_chart():
    styles = charts.styles("a")
    assert charts.scores_chart([{"name": "a"}], styles) is None
    assert charts.length_chart([{"name": "a"}], styles, "words") is None
    assert charts.pairs_chart({}, styles) is charts.cost_chart([]) is None


def test_svg_is_the_same_each_time_without_ids_of_another_chart(runs, styles):
    def draw(name):
        return charts.svg(charts.length_chart(runs, styles, "words"), name)

    assert draw("a") == draw("a")
    ids = [{x.get("id") for x in ElementTree.fromstring(draw(name)).iter()} - {None}
           for name in "ab"]  # fmt: skip
    assert ids[0] and not ids[0] & ids[1]


def test_names_that_matplotlib_has_no_letters_for_are_left_to_the_browser(runs):
    runs[0]["name"] = "한국어"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = charts.length_chart(runs[:1], charts.styles(["한국어"]), "words")
        assert "한국어" in charts.svg(figure, "length")
