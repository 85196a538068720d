"""The page of attention: what it holds, and what a browser shows of it."""

import base64
import json
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from attentions import HEADS, LAYERS, attention_of
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_page_of_nothing_is_refused():
    with pytest.raises(ValueError, match="needs at least one sentence pair, and got none"):
        attention_page([], title="None")


class _Shown:
    """A page in the browser, by what somebody does and sees there."""

    def __init__(self, browser, page: str, path):
        path.write_text(page, encoding="utf-8")
        self.browser = browser
        browser.get(path.as_uri())
        self.wait("cross attention, layer 0, ")

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

    def opacities(self, cells: list[tuple[int, int]]) -> list[float]:
        """Of the colours of matrix cells."""
        script = """
            const canvas = document.querySelector("canvas"), { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            return arguments[0].map(([row, column]) => data[4 * (row * width + column) + 3] / 255);
        """
        return self.browser.execute_script(script, cells)

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
    page = attention_page(attentions, title="A <b>title</b>")
    yield _Shown(browser, page, tmp_path / "page.html")
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource')") == []
    assert browser.title == "A <b>title</b>"


def _written(weights) -> list[str]:
    return [f"{round(float(weight), 3):.3f}" for weight in weights]


def test_pointing_shows_the_weights(shown):
    cross_TS = attention_of().cross[1, 2]
    shown.choose("layer", "1")
    shown.choose("head", "2")
    shown.wait("cross attention, layer 1, head 2")
    assert shown.labels("rows") == ["zwei", "hundert", "<eos>"]
    assert shown.labels("columns") == ["two", "hun", "dred", "<eos>"]
    shown.point_at(shown.tokens("rows")[1])
    assert shown.weights("columns") == _written(cross_TS[1])
    assert shown.text("readout").startswith("predicting hundert after zwei: most, ")
    shown.point_at(shown.tokens("columns")[2])
    assert shown.weights("rows") == _written(cross_TS[:, 2])
    shown.point_at_cell(2, 1)
    (weight,) = _written([cross_TS[2, 1]])
    assert shown.text("readout") == f"predicting <eos> after hundert, to hun: {weight}"
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

    shown.press(*[Keys.TAB] * 3, Keys.ARROW_DOWN)
    shown.wait("cross attention, layer 1")
    cross_TS = attention_of().cross[1].mean(axis=0)
    shown.press(*[Keys.TAB] * 3)
    written = [float(x) for x in shown.weights("columns")]
    np.testing.assert_allclose(written, cross_TS[1], atol=0.0015)
    shown.press(*[Keys.TAB] * 6, Keys.ARROW_UP, Keys.ARROW_LEFT)
    assert "zwei after <sos>, to dred: " in shown.text("readout")


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
