"""The page of a served model, in a browser."""

import pytest
from serving.served import Served

from transformer_jax.serving.limits import Limits

HEBREW = "\u05e1\u05e4\u05e8 \u05d8\u05d5\u05d1"
KOREAN = "\ud55c\uad6d\uc5b4 \ubb38\uc7a5"
HOSTILE = "<img src=x onerror=document.title='broken'>"


@pytest.fixture(scope="module")
def served():
    with pytest.MonkeyPatch.context() as patch:
        served = Served(patch, limits=Limits(max_chars=100))
        yield served
        assert served.end() == 0


class Page:
    """The page in the browser, by what somebody does and sees there."""

    def __init__(self, browser, port: int):
        self.browser = browser
        browser.get_log("browser")
        browser.get(f"http://127.0.0.1:{port}/")

    def all(self, css: str) -> list:
        return self.browser.find_elements("css selector", css)

    def texts(self, css: str) -> list[str]:
        return [element.text for element in self.all(css)]

    def until(self, condition) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20).until(lambda _: condition())

    def translate(self, text: str) -> None:
        from selenium.webdriver import Keys

        (box,) = self.all("#text")
        box.clear()
        box.send_keys(text, Keys.CONTROL, Keys.ENTER)

    def shown(self, texts: list[str]) -> None:
        self.until(lambda: self.texts("#translations bdi") == texts)

    def attention_of(self, label: str) -> None:
        """Until the page of attention is that of a source with this token."""

        def found() -> bool:
            self.browser.switch_to.frame("attention")
            try:
                return label in self.texts("#columns .text")
            finally:
                self.browser.switch_to.default_content()

        self.until(found)

    def point_at(self, css: str, number: int) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.browser).move_to_element(self.all(css)[number]).perform()


@pytest.fixture
def page(browser, served):
    return Page(browser, served.port)


def directions(page: Page, css: str) -> list[str]:
    script = "return arguments[0].map(element => getComputedStyle(element).direction)"
    return page.browser.execute_script(script, page.all(css))


def test_texts_are_translated_with_scores_alignment_and_attention(page):
    page.translate(f"two words\n{KOREAN}\n{HEBREW}\n{HOSTILE}")
    page.shown(["TWO WORDS", KOREAN, HEBREW, HOSTILE.upper()])
    assert directions(page, "#translations bdi") == ["ltr", "ltr", "rtl", "ltr"]
    assert page.texts("#hypotheses small") == ["0.000", "-1.000", "-2.000", "-3.000"]
    assert page.texts("#sources bdi") == ["two", "words"]
    assert page.texts("#targets bdi") == ["TWO", "WORDS"]
    first, second = (line.rect for line in page.all("#alignment line"))
    assert abs(first["x"] - second["x"]) < 20 < first["width"]  # they cross
    page.point_at("#targets bdi", 0)
    assert [x.get_attribute("title") for x in page.all("#sources bdi")] == ["0.000", "0.750"]
    page.attention_of("two")
    page.all("#translations button")[2].click()
    page.attention_of(HEBREW.split()[0])
    assert directions(page, ".words") == ["rtl", "rtl"]
    right, left = (word.rect["x"] for word in page.all("#sources bdi"))
    assert right > left
    page.all("#hypotheses button")[1].click()
    page.until(lambda: page.all("#hypotheses button")[1].get_attribute("aria-current") == "true")
    assert page.browser.title == "run <b>" == page.texts("h1")[0]
    assert page.browser.get_log("browser") == []
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    paths = {name.split("/", 3)[3] for name in page.browser.execute_script(script)}
    assert paths == {"translate", "attention"}


def test_layers_and_heads_can_be_chosen_within_the_page(page):
    from selenium.webdriver.support.ui import Select

    page.translate("one")
    page.attention_of("one")
    page.browser.switch_to.frame("attention")
    try:
        Select(page.all("#layer")[0]).select_by_visible_text("1")
        Select(page.all("#head")[0]).select_by_visible_text("2")
        page.until(lambda: page.texts("#matrix-name") == ["cross attention, layer 1, head 2"])
    finally:
        page.browser.switch_to.default_content()


def test_what_is_refused_is_told_and_forgotten(page):
    page.translate("a" * 101)
    page.until(
        lambda: page.texts("#problem") == ["texts[0] has 101 characters; at most 100 are read"]
    )
    page.translate("b")
    page.shown(["B"])
    assert page.texts("#problem") == [""]


def test_details_are_of_the_answer_that_is_shown_not_of_one_that_was_refused(page):
    page.translate("one\ntwo")
    page.shown(["ONE", "TWO"])
    language = "document.getElementById('language').value = arguments[0]"
    page.browser.execute_script(language, "ko")
    page.translate("b")
    page.until(lambda: "no tag <2ko>" in page.texts("#problem")[0])
    page.all("#translations button")[1].click()
    page.attention_of("two")
    assert page.texts("#attention-problem") == [""]
    page.browser.execute_script(language, "")
