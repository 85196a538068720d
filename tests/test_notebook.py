"""The notebook: what it names exists, its outputs are its own, and it runs from top to bottom."""

import base64
import importlib
import io
import re

import nbformat
import pytest
from PIL import Image
from rerun_notebook import NOTEBOOK, TRANSLATIONS, code_cells, digest, joined, run, stale

# What the study of attention needs; the table at the end says where each is shown.
TERMS = (
    "seq2seq,context vector,bottleneck,Luong,Bahdanau,query,key,value,scaling,softmax,mask,"
    "multi-head,position,residual connection,layer norm,batch norm,feed-forward,warm-up,"
    "teacher forcing,EOS,beam,alignment"
).split(",")
_MACHINE = re.compile(r"/(?:tmp|root|home|work|usr|var|Users)/|site-packages|\b[A-Z]:\\")


def texts(book: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in book.cells if cell.cell_type == "markdown"]


def kinds(book: nbformat.NotebookNode) -> dict[str, list[str]]:
    """By cell: the streams and the kinds of data that it shows, in order."""
    return {
        cell.id: [
            output.name if output.output_type == "stream" else " ".join(sorted(output.data))
            for output in joined(cell.outputs)
        ]
        for cell in code_cells(book)
    }


def resolved(name: str) -> object:
    """The module, class, function, method or field of a dotted name; raises if there is none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


@pytest.fixture(scope="module")
def book():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_is_a_valid_notebook_of_any_python3(book):
    nbformat.validate(book)
    assert book.metadata["kernelspec"]["name"] == "python3"


def test_each_section_names_its_papers_and_what_of_the_library_it_shows(book):
    sections = [text for text in texts(book) if re.match(r"## \d", text)]
    assert [int(re.match(r"## (\d+)\. ", text)[1]) for text in sections] == list(range(1, 24))
    for text in sections:
        assert re.search(r"transformer_jax\.\w", text), text
    for text in sections[:-1]:
        assert re.search(r"\*[A-Z]\w+.* \d{4}.*Library:", text, re.DOTALL), text


def sections_by_anchor(book: nbformat.NotebookNode) -> dict[str, str]:
    """The text of each section, by the anchor that Jupyter gives its heading."""
    parts = re.split(
        r"^## (.+)$", "\n".join(cell.source for cell in book.cells), flags=re.MULTILINE
    )
    return {title.replace(" ", "-"): text for title, text in zip(parts[1::2], parts[2::2])}


def check_terms(book: nbformat.NotebookNode) -> list[str]:
    """The terms of the table at the end, each of which stands in the section that it names."""
    sections = sections_by_anchor(book)
    rows = re.findall(r"^\| (.+) \| \[.+\]\(#(.+)\) \|$", texts(book)[-1], re.MULTILINE)
    for terms, anchor in rows:
        for term in re.split(r" \(|\)", terms):
            assert term.lower() in sections[anchor].lower(), f"{term}: {anchor}"
    return [terms for terms, _ in rows]


def test_the_terms_stand_in_the_sections_named(book):
    terms = check_terms(book)
    assert not set(TERMS) - set(terms)


def test_what_it_names_exists(book):
    names = {
        name for text in texts(book) for name in re.findall(r"transformer_jax(?:\.\w+)+", text)
    }
    assert len(names) > 20
    for name in sorted(names):
        resolved(name)
    for path in re.findall(r"(?:configs/)?\w+\.py\b", "\n".join(texts(book))):
        assert (NOTEBOOK.parents[1] / path).is_file(), path


def test_its_terms_are_given_in_korean_too(book):
    text = "\n".join(texts(book))
    for term in "어텐션 은닉 인코더 디코더 쿼리 소프트맥스 분산 마스크 패딩 학습률".split():
        assert term in text
    # Fonts of figures may lack the script.
    assert not re.search(r"[\uac00-\ud7a3]", "\n".join(cell.source for cell in code_cells(book)))


def test_what_it_shows_comes_from_one_run_of_its_sources(book):
    assert book.metadata["sources_sha256"] == digest(book)
    counts = [cell.execution_count for cell in code_cells(book)]
    assert counts == list(range(1, len(counts) + 1))


def test_what_it_shows_is_clean(book):
    for cell in code_cells(book):
        assert cell.metadata == {}
        for output in cell.outputs:
            assert output.output_type in ("stream", "execute_result", "display_data")
            assert output.get("name", "stdout") == "stdout", cell.id
            data = output.get("data", {"text/plain": output.get("text", "")})
            for kind, content in data.items():
                if kind.startswith("text/"):
                    assert not _MACHINE.search(content), cell.id
            # The page needs no network: it loads nothing.
            page = data.get("text/html", "")
            assert not re.search(r"(?:src|href)=(?:&quot;|\")(?:https?:)?//|@import|fetch\(", page)
    assert NOTEBOOK.stat().st_size < 900_000  # figures of 100 dots an inch are most of it


def test_it_shows_figures_and_a_page(book):
    shown = [kind for kinds_of_cell in kinds(book).values() for kind in kinds_of_cell]
    assert sum("image/png" in kind for kind in shown) >= 20
    assert sum("text/html" in kind for kind in shown) == 1


def test_figures_have_100_dots_an_inch(book):
    for cell in code_cells(book):
        for output in cell.outputs:
            if png := output.get("data", {}).get("image/png"):
                with Image.open(io.BytesIO(base64.b64decode(png))) as image:
                    assert round(image.info["dpi"][0]) >= 100, cell.id


@pytest.fixture(params=TRANSLATIONS, ids=lambda path: path.name)
def translation(request):
    return nbformat.read(request.param, as_version=4)


def test_a_translation_has_the_same_cells_code_and_outputs(book, translation):
    nbformat.validate(translation)
    assert [cell.id for cell in translation.cells] == [cell.id for cell in book.cells]
    assert code_cells(translation) == code_cells(book)
    assert translation.metadata == book.metadata


def test_a_translation_is_of_the_present_prose(book, translation):
    assert stale(book, translation) == []
    assert len(check_terms(translation)) == len(check_terms(book))


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_anywhere_and_leaves_nothing_behind(book, tmp_path):
    again = nbformat.from_dict(book)
    for cell in code_cells(again):
        cell.outputs, cell.execution_count = [], None
    run(again, tmp_path)
    assert kinds(again) == kinds(book)
    assert list(tmp_path.iterdir()) == []
