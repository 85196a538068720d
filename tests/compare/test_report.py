"""The page: whole, escaped, self-contained, and the same each time."""

import collections
import html.parser
import math
import re

import pytest
from compare.made_up import comparison

from transformer_jax.compare.report import report

VOID = {"meta", "br", "link", "img", "hr"}


class Page(html.parser.HTMLParser):
    """What a browser reads: elements in order, and the text of each section by its id."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.open, self.section = [], [], ""
        self.texts, self.rows = collections.defaultdict(str), collections.defaultdict(list)
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h2":
            self.section = dict(attributes)["id"]
        elif tag == "tr":
            self.rows[self.section].append([])
        elif tag in ("td", "th"):
            self.rows[self.section][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts[self.section] += text
        if "td" in self.open or "th" in self.open:
            self.rows[self.section][-1][-1] += text


@pytest.fixture(scope="module")
def text() -> str:
    return report(comparison())


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def small(runs: list[dict]) -> dict:
    """A comparison of these runs without what takes time to draw."""
    runs = [run | {"loss_curve": [], "valid_curve": [], "by_length": []} for run in runs]
    less = {"runs": runs, "significance": [], "initial_gradients": {}, "layer_costs": []}
    return comparison() | less


def row(page: Page, section: str, name: str) -> list[str]:
    """The first row of a section that begins so."""
    return next(cells for cells in page.rows[section] if cells[0] == name)


def test_the_page_needs_nothing_but_itself(text, page):
    tags = collections.Counter(tag for tag, _ in page.elements)
    assert not {"script", "link", "img", "iframe", "b onload"} & set(tags)
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data"):
            assert attributes.get(name, "#").startswith("#")
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    # The names of SVG's own vocabularies are all the addresses that there are.
    assert set(re.findall(r"https?://[^\"'\s<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_each_id_is_one_element_and_each_link_leads_to_one(text, page):
    ids = collections.Counter(a["id"] for _, a in page.elements if "id" in a)
    assert set(ids.values()) == {1}
    links = [a.get("href") or a.get("xlink:href") for _, a in page.elements]
    links = [link[1:] for link in links if link] + re.findall(r"url\(#([^)]+)\)", text)
    assert set(links) <= set(ids) and len(page.texts) == 12


def test_whatever_comes_from_outside_is_escaped(text, page):
    assert "<script" not in text and "onload" not in text
    assert "alert('x')</script> & barks." in page.texts["sentences"]
    assert "개 한 마리가 <b>들판</b>을 달린다 ." in page.texts["sentences"]
    assert "<script>no memory</script>" in page.texts["failures"]
    assert "--outdir='runs/<x>'" in page.texts["method"]
    assert "text:data/<test>" in page.texts["method"]


def test_the_summary_has_the_numbers_of_whole_runs(page):
    names = [cells[0] for cells in page.rows["summary"]]
    assert names == ["Model", "RNN", "LSTM", "GRU", "LSTM dot", "LSTM general", "GRU additive",
                     "Transformer", "LSTM <big>"]  # fmt: skip
    assert row(page, "summary", "LSTM") == [
        "LSTM", "3,556,789", "4,000", "2,000,000", "800", "15.013.8 to 16.4", "45.043.8 to 46.4",
        "2.308", "2,500", "–", "42",
    ]  # fmt: skip
    assert row(page, "summary", "LSTM <big>")[1:] == ["–"] * 10
    assert "12.0" in row(page, "summary", "RNN")[5]


def test_only_the_best_score_is_bold(text):
    summary = text[text.index('id="summary"') : text.index('id="configs"')]
    assert re.findall(r"<b>(.*?)</b>", summary) == ["30.0"]


def test_failures_say_why(page):
    why = "ValueError: <script>no memory</script>"
    assert page.rows["failures"][1:] == [["LSTM <big>", "20,000", why]]


def test_significance_has_directions_and_bold_p_values(text, page):
    assert row(page, "significance", "LSTM") == ["LSTM", "GRU", "+3.0", "0.001", "–", "–"]
    assert row(page, "significance", "RNN") == ["RNN", "LSTM", "+3.0", "0.001", "−0.4", "0.310"]
    assert "<b>0.001</b>" in text and "<b>0.310</b>" not in text


def test_fewer_pairs_are_in_their_own_section_alone(page):
    rows = [cells[:2] for cells in page.rows["pairs"][1:]]
    counts = ["5,000", "10,000", "20,000"]
    assert rows == [[name, n] for name in ("LSTM dot", "Transformer") for n in counts]
    assert [cells[0] for cells in page.rows["summary"]].count("Transformer") == 1


def test_configs_show_where_they_differ(page):
    assert page.rows["configs"][0][:3] == ["Model", "seed", "model.kind"]
    runs = comparison()["runs"][3:5]  # both are LSTMs with the same attention
    assert Page(report(small(runs))).rows["configs"] == []
    runs[0]["config"]["seed"] = 1
    rows = Page(report(small(runs))).rows["configs"]
    assert rows == [["Model", "seed"], ["LSTM dot", "1"], ["LSTM general", "0"]]


def test_attention_is_drawn_by_its_weights(page):
    weights = [
        a["style"] for tag, a in page.elements if tag == "td" and "--w" in a.get("style", "")
    ]
    of_model = 7 * 7 + 7 * 16  # rows of tokens, of two sentences
    assert len(weights) == 4 * of_model
    assert weights[:3] == ["--w:0.50", "--w:0.18", "--w:0.07"]
    assert "dog" in page.rows["sentences"][9] and page.rows["sentences"][10][0] == "개"


def test_the_same_comparison_gives_the_same_page(text):
    assert report(comparison()) == text


def test_what_was_not_measured_is_said():
    whole = small([comparison()["runs"][-1] | {"name": "only $one"}])
    whole["budget"] = {"target_tokens": None, "train_seconds": 90.5}
    page = Page(report(whole))
    for section in ("significance", "lengths", "curves", "gradients", "costs", "sentences"):
        assert "Nothing was measured" in page.texts[section]
    assert row(page, "summary", "only $one")[5] == "–"
    assert "up to 90 seconds of training" in page.texts["method"]


def test_numbers_that_are_none_are_not_hidden():
    whole = comparison() | {"runs": comparison()["runs"][:2], "layer_costs": []}
    whole["runs"][0]["valid_curve"][-1]["loss"] = math.inf
    whole["runs"][1]["by_length"] = whole["runs"][1]["loss_curve"] = []
    page = Page(report(whole))
    assert row(page, "summary", "RNN")[7] == "not finite"
    assert "LSTM" not in [cells[0] for cells in page.rows["lengths"]]


def test_bleu_that_is_undefined_is_a_dash_beside_chrf():
    whole = comparison()
    for run in whole["runs"][:-1]:
        run["bleu"] = None
        run["by_length"] = [part | {"bleu": None} for part in run["by_length"]]
        run["valid_curve"] = [point | {"bleu": None} for point in run["valid_curve"]]
    whole["significance"] = [test | {"bleu": None} for test in whole["significance"]]
    page = Page(report(whole))
    assert row(page, "summary", "LSTM")[5:7] == ["–", "45.043.8 to 46.4"]
    assert "BLEU is undefined" in page.texts["summary"]
    assert row(page, "significance", "RNN")[2:] == ["–", "–", "−0.4", "0.310"]
    assert row(page, "pairs", "Transformer")[2] == "–"
    assert "0.0 to" not in "".join(page.texts.values())


def test_names_are_taken_literally():
    whole = small([comparison()["runs"][0] | {"name": "<i>&amp;"}])
    assert row(Page(report(whole)), "summary", "<i>&amp;")
