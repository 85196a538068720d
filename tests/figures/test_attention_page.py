"""The page of attention: what it holds, and what a browser shows of it."""

import base64
import json
import re
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from attentions import HEADS, LAYERS, attention_of
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from transformer_jax.figures.attention_page import attention_page

HEBREW = ["\u2581\u05e1\u05e4\u05e8", "\u2581\u05d8\u05d5\u05d1"]
HOSTILE = ["\u2581</script><script>document.title='broken'</script>", "<b>", "&lt;", "{{title}}"]


class _Page(HTMLParser):
    """The texts of the title and of scripts, and the addresses that a page names."""

    def __init__(self, page: str):
        super().__init__()
        self.found: dict[str, str] = {}
        self.addresses: list[str] = []
        self._within = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self._within = attributes.get("id", tag) if tag in ("script", "title") else ""
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]

    def handle_data(self, data):
        if self._within:
            self.found[self._within] = self.found.get(self._within, "") + data

    def handle_endtag(self, tag):
        self._within = ""


def _sentences(page: str) -> list[dict]:
    return json.loads(_Page(page).found["data"])


def _unpacked(sentence: dict) -> dict[str, np.ndarray]:
    return {
        kind["name"]: np.frombuffer(
            zlib.decompress(base64.b64decode(kind["weights"])), "<u2"
        ).reshape(kind["shape"])
        / 1000
        for kind in sentence["kinds"]
    }


def test_all_weights_are_kept_to_three_decimals():
    attention = attention_of()
    (sentence,) = _sentences(attention_page([attention], title="One"))
    weights = _unpacked(sentence)
    assert list(weights) == ["encoder", "decoder", "cross"]
    for name, kept in weights.items():
        np.testing.assert_allclose(kept, getattr(attention, name), atol=0.00051)
    assert sentence["text"] == "two hundred"
    assert sentence["target"] == {
        "labels": ["zwei", "hundert", "<eos>"],
        "begins": [True, False, True],
        "rtl": False,
    }


def test_a_model_without_a_kind_has_a_page_without_it():
    attention = attention_of()._replace(encoder=None, decoder=None)
    (sentence,) = _sentences(attention_page([attention], title="One"))
    assert list(_unpacked(sentence)) == ["cross"]


def test_a_page_is_one_file():
    page = _Page(attention_page([attention_of()], title="One"))
    assert page.addresses == ["data:,"]
    assert "http" not in attention_page([attention_of()], title="").replace("http-equiv", "")


@given(st.lists(st.text(), min_size=1, max_size=4), st.text())
def test_no_text_ends_what_it_is_in(pieces, title):
    pieces = [f"<{piece}</script><!--{{data}}" for piece in pieces]
    page = attention_page([attention_of(pieces)], title=f"</title>{title}")
    (sentence,) = _sentences(page)
    shown = [piece.replace("\u2581", "\u2423").replace(" ", "\u2423") for piece in pieces]
    assert sentence["source"]["labels"] == [*shown, "<eos>"]
    unchanged = title.replace("\r\n", "\n").replace("\r", "\n")
    assert _Page(page).found["title"].replace("\r", "\n") == f"</title>{unchanged}" or "\0" in title


def test_a_weight_takes_one_byte_to_one_and_a_half():
    one = attention_of([f"\u2581{n}" for n in range(40)], [f"\u2581{n}" for n in range(40)])
    pages = [attention_page([one] * count, title="One") for count in (1, 2)]
    weights = LAYERS * HEADS * 3 * 41**2
    assert 0.5 < (len(pages[1]) - len(pages[0])) / weights < 1.5


def test_the_title_names_languages():
    for languages, title in (
        ([], "Run"),
        ([("en", "de")], "Run, en to de"),
        ([("en", "de"), ("en", "ko")], "Run, en to de, en to ko"),
    ):
        page = _Page(attention_page([attention_of()], title="Run", languages=languages))
        assert page.found["title"] == title
        assert json.loads(page.found["languages"]) == (
            ["en", "de"] if len(languages) == 1 else ["", ""]
        )


def test_a_page_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs at least one sentence pair, and got none"):
        attention_page([], title="None")


class _Shown:
    """A page in the browser, by what somebody does and sees there."""

    def __init__(self, browser, page: str, path):
        path.write_text(page, encoding="utf-8")
        self.browser = browser
        browser.get(path.as_uri())
        self.wait("cross attention, layer ")

    def until(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda _: condition())

    def wait(self, name: str) -> None:
        """Until the matrix of this name is shown."""
        self.until(lambda: self.text("matrix-name").startswith(name))

    def text(self, identity: str) -> str:
        return self.browser.find_element("id", identity).text

    def options(self, identity: str) -> list[str]:
        select = self.browser.find_element("id", identity)
        return [option.text for option in select.find_elements("tag name", "option")]

    def choose(self, identity: str, text: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.browser.find_element("id", identity)).select_by_visible_text(text)

    def tokens(self, line: str) -> list:
        return self.browser.find_elements("css selector", f"#{line} .token")

    def labels(self, line: str) -> list[str]:
        return [token.find_element("class name", "text").text for token in self.tokens(line)]

    def weights(self, line: str) -> list[str]:
        return [token.find_element("tag name", "small").text for token in self.tokens(line)]

    def point_at(self, element, right: float = 0, down: float = 0) -> None:
        """At the middle of an element, or so far from it."""
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).move_to_element_with_offset(element, right, down).perform()

    def point_at_cell(self, row: int, column: int) -> None:
        cells = self.browser.find_element("id", "cells")
        right, down = (
            (number + 0.5) * cells.size[side] / len(self.tokens(line)) - cells.size[side] / 2
            for number, side, line in ((column, "width", "columns"), (row, "height", "rows"))
        )
        self.point_at(cells, right, down)

    def opacities(self, cells: list[tuple[int, int]], css: str = "#cells canvas") -> list[float]:
        """Of the colours of a map's cells."""
        script = """
            const canvas = document.querySelector(arguments[1]), { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            return arguments[0].map(([row, column]) => data[4 * (row * width + column) + 3] / 255);
        """
        return self.browser.execute_script(script, cells, css)

    def box(self, css: str) -> tuple[int, ...]:
        """Left, top, width and height of an element."""
        rect = self.browser.find_element("css selector", css).rect
        return tuple(round(rect[side]) for side in ("x", "y", "width", "height"))

    def press(self, *keys) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).send_keys(*keys).perform()


@pytest.fixture
def shown(browser, tmp_path):
    attentions = [attention_of(), attention_of(HEBREW, HOSTILE), attention_of(HOSTILE, HEBREW)]
    attentions[2] = attentions[2]._replace(encoder=None, decoder=None)
    languages = [("en", "de")]
    page = attention_page(attentions, title="A <b>title</b>", languages=languages)
    yield _Shown(browser, page, tmp_path / "page.html")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    assert browser.title == "A <b>title</b>, en to de"


def _kept(weight) -> float:
    return round(float(weight), 3)


def _written(weights) -> list[str]:
    return [f"{_kept(weight):.3f}" for weight in weights]


def _entropies(weights_LHTM) -> np.ndarray:
    """[L, H], in bits."""
    weights_LHTM = np.maximum(weights_LHTM, 1e-9)
    return -(weights_LHTM * np.log2(weights_LHTM)).sum(-1).mean(-1)


def test_pointing_shows_the_weights(shown):
    cross_TS = attention_of().cross[1, 2]
    shown.choose("layer", "1")
    shown.choose("head", "2")
    shown.wait("cross attention, layer 1, head 2")
    assert shown.labels("rows") == ["zwei", "hundert", "<eos>"]
    assert shown.labels("columns") == ["two", "hun", "dred", "<eos>"]
    shown.point_at(shown.tokens("rows")[1])
    assert shown.weights("columns") == _written(cross_TS[1])
    assert shown.text("readout").startswith("Predicting hundert (after zwei): attends most to ")
    shown.point_at(shown.tokens("columns")[2])
    assert shown.weights("rows") == _written(cross_TS[:, 2])
    assert shown.text("readout").startswith("dred: attended to most when predicting ")
    shown.point_at_cell(2, 1)
    heading = f"Predicting <eos> (after hundert): attends to hun, {_kept(cross_TS[2, 1]):.2f}"
    assert shown.text("readout") == heading
    cells = [(0, 0), (1, 3), (2, 1)]
    wanted = [cross_TS[cell] / cross_TS.max() for cell in cells]
    np.testing.assert_allclose(shown.opacities(cells), wanted, atol=0.01)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_other_kinds_and_the_mean_of_heads(shown, kind):
    attention = attention_of()
    assert shown.options("kind") == ["cross", "decoder", "encoder"]
    assert shown.options("layer") == ["0", "1"]
    assert shown.options("head") == ["mean of all", "0", "1", "2"]
    shown.choose("kind", kind)
    shown.wait(f"{kind} attention, layer ")
    shown.choose("layer", "0")
    shown.choose("head", "mean of all")
    shown.wait(f"{kind} attention, layer 0, mean of all heads")
    columns = attention.source_tokens if kind == "encoder" else attention.input_tokens
    assert shown.labels("columns") == [piece.removeprefix("\u2581") for piece in columns]
    shown.point_at(shown.tokens("rows")[1])
    wanted = getattr(attention, kind)[0].mean(axis=0)[1]
    np.testing.assert_allclose([float(x) for x in shown.weights("columns")], wanted, atol=0.0015)


def test_right_to_left_sentences_flow_so(shown):
    shown.choose("sentence", "2. \u2068\u05e1\u05e4\u05e8 \u05d8\u05d5\u05d1\u2069")
    shown.until(lambda: shown.labels("columns")[0] == "\u05e1\u05e4\u05e8")
    for line, sign in (("columns", -1), ("rows", 1)):
        places = [sign * token.location["x"] for token in shown.tokens(line)]
        assert places == sorted(places)


def test_markup_in_a_token_is_text(shown):
    shown.choose("sentence", shown.options("sentence")[2])
    shown.until(lambda: shown.labels("columns") == [HOSTILE[0][1:], *HOSTILE[1:], "<eos>"])
    assert shown.options("kind") == ["cross"]


def test_all_can_be_done_with_keys(shown):
    from selenium.webdriver.common.keys import Keys

    shown.press(*[Keys.TAB] * 3, Keys.HOME, Keys.ARROW_DOWN)
    shown.wait("cross attention, layer 1")
    shown.press(*[Keys.TAB] * 4, Keys.ENTER)
    shown.wait("cross attention, layer 1, head 1")
    shown.press(*[Keys.TAB] * 3)
    if shown.browser.switch_to.active_element.text == "Show it":
        shown.press(Keys.TAB)
    assert not shown.browser.find_elements("css selector", "#lines line")
    shown.press(Keys.SPACE)
    assert shown.browser.find_elements("css selector", "#lines line")
    shown.press(Keys.SPACE, *[Keys.TAB] * 2)
    assert shown.weights("columns") == _written(attention_of().cross[1, 1, 1])
    shown.press(*[Keys.TAB] * 8, Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert "zwei (after <sos>): attends to dred, " in shown.text("readout")


def test_it_opens_at_the_head_of_the_lowest_entropy_and_says_why(shown):
    for kind in ("cross", "encoder"):
        shown.choose("kind", kind)
        bits_LH = _entropies(getattr(attention_of(), kind))
        layer, head = np.unravel_index(bits_LH.argmin(), bits_LH.shape)
        shown.wait(f"{kind} attention, layer {layer}, head {head}")
        lowest, second, *_, highest = np.sort(bits_LH.ravel())
        assert f"layer {layer}, head {head}. A row's weights have an entropy of " in shown.text(
            "why"
        )
        told = [float(x) for x in re.findall(r"\d\.\d\d", shown.text("why"))]
        np.testing.assert_allclose(told, [lowest, second, highest], atol=0.011)
    shown.choose("layer", str(1 - layer))
    shown.wait(f"encoder attention, layer {1 - layer}")
    shown.browser.find_element("css selector", "#why button").click()
    shown.wait(f"encoder attention, layer {layer}, head {head}")
    assert not shown.browser.find_elements("css selector", "#why button")


def test_a_head_that_always_attends_to_one_token_tells_nothing(browser, tmp_path):
    attention = attention_of()
    attention.cross[0, 1] = np.eye(4)[3]
    shown = _Shown(browser, attention_page([attention], title="One"), tmp_path / "page.html")
    bits_LH = _entropies(attention.cross)
    bits_LH[0, 1] = np.inf
    layer, head = np.unravel_index(bits_LH.argmin(), bits_LH.shape)
    assert shown.text("matrix-name") == f"cross attention, layer {layer}, head {head}"
    assert "Heads whose rows all attend most to one token come last." in shown.text("why")


def test_small_maps_of_all_heads_choose_one(shown):
    shown.choose("layer", "1")
    shown.wait("cross attention, layer 1")
    maps = shown.browser.find_elements("css selector", "#heads button")
    assert [each.text.split(":")[0] for each in maps] == [
        "mean of all",
        "head 0",
        "head 1",
        "head 2",
    ]
    maps[3].click()
    shown.wait("cross attention, layer 1, head 2")
    pressed = shown.browser.find_elements("css selector", "#heads [aria-pressed=true]")
    assert [each.text.split(":")[0] for each in pressed] == ["head 2"]
    cross_HTS = attention_of().cross[1]
    opacities = shown.opacities([(0, 0), (2, 1)], "#heads button:nth-child(2) canvas")
    wanted = [cross_HTS[0][cell] / cross_HTS.max() for cell in ((0, 0), (2, 1))]
    np.testing.assert_allclose(opacities, wanted, atol=0.01)


def test_lines_join_queries_and_keys(shown):
    """Of every language: from the right side of one column to the left of the other."""
    cross_TS = attention_of().cross[1, 2]
    for sentence, count in ((0, (cross_TS / cross_TS.max() >= 0.05).sum()), (2, None)):
        shown.choose("sentence", shown.options("sentence")[sentence])
        if sentence == 0:
            shown.choose("layer", "1")
            shown.choose("head", "2")
            shown.wait("cross attention, layer 1, head 2")
        shown.browser.execute_script("document.getElementById('joined').checked || joined.click()")
        lines = shown.browser.find_elements("css selector", "#lines line")
        assert count in (None, len(lines))
        origin = shown.browser.find_element("id", "tokens").rect["x"]
        rights = [token.rect["x"] + token.rect["width"] for token in shown.tokens("rows")]
        lefts = [token.rect["x"] for token in shown.tokens("columns")]
        assert max(rights) - min(rights) < 2 and max(lefts) - min(lefts) < 2
        for line in lines:
            x1, x2 = (float(line.get_attribute(name)) + origin for name in ("x1", "x2"))
            assert abs(x1 - rights[0]) < 2 and abs(x2 - lefts[0]) < 2 and x2 - x1 > 50


@pytest.mark.parametrize("what", ["matrix", "lines"])
def test_figures_are_saved(shown, tmp_path, what):
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    shown.browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    shown.browser.find_element("id", "joined").click()
    name = shown.text("matrix-name").replace(", ", "-").replace(" ", "-")
    for button in shown.browser.find_elements("css selector", f"#save-{what} button"):
        button.click()
    svg, png = (tmp_path / f"{name}.{suffix}" for suffix in ("svg", "png"))
    shown.until(lambda: svg.exists() and png.exists())
    root = ET.parse(svg).getroot()
    texts = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"zwei", "hundert", "<eos>", "two", "hun", "dred"} <= texts
    shapes = {"matrix": "rect", "lines": "line"}[what]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}" + shapes))) > 5
    image = imread(png)
    assert image.shape[1] == round(2 * float(root.get("width"))) and image[..., :3].std() > 0.05


def test_one_layer_and_head_of_an_rnn_need_no_choice(browser, tmp_path):
    attention = attention_of()
    attention = attention._replace(encoder=None, decoder=None, cross=attention.cross[:1, :1])
    shown = _Shown(browser, attention_page([attention], title="RNN"), tmp_path / "page.html")
    assert shown.text("matrix-name") == "cross attention, layer 0, head 0"
    for identity in ("all", "layer", "head"):
        assert not browser.find_element("id", identity).is_displayed()
    assert shown.text("readout").startswith("Predicting zwei (after <sos>): attends most to ")


def test_the_matrix_is_labelled_and_framed(shown):
    shown.point_at_cell(1, 2)
    left, top, width, height = shown.box("#frame")
    for css, expected in (
        ("#beside .chosen", (None, top, None, height)),
        ("#above .chosen", (left, None, width, None)),
        ("#cells", (left - 2 * width, top - height, 4 * width, 3 * height)),
    ):
        found = shown.box(css)
        assert all(abs(a - b) <= 1 for a, b in zip(found, expected) if b is not None), css
    chosen = shown.browser.find_elements("css selector", "#matrix .chosen")
    assert [label.text for label in chosen] == ["dred", "hundert"]


def test_colours_follow_the_system(shown):
    colours = set()
    for scheme in ("light", "dark"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        shown.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        body = shown.browser.find_element("tag name", "body")
        colours.add(body.value_of_css_property("background-color"))
    assert len(colours) == 2
