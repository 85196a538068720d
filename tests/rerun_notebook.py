"""Runs the notebook from top to bottom and keeps its outputs: python tests/rerun_notebook.py

The translations get the same code and outputs, and keep their prose; `--copy` does that alone.
test_notebook.py checks that outputs belong to the code, and translations to the English prose.
"""

import base64
import hashlib
import io
import os
import pathlib
import sys
import tempfile

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "attention.ipynb"
TRANSLATIONS = [NOTEBOOK.with_suffix(".ko.ipynb")]


class ThisPython(AsyncKernelManager):
    """A kernel of the running interpreter, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def run(book: nbformat.NotebookNode, folder: str | os.PathLike) -> None:
    """Runs a notebook in a fresh kernel, in a folder of its own; an error in a cell is raised."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "MPLBACKEND")}
    # Frozen modules make a debugger, which is never used here, say so on stderr.
    environment["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        book, km=ThisPython(), timeout=1200, resources=resources, record_timing=False
    )
    client.execute(env=environment)


def digest(book: nbformat.NotebookNode) -> str:
    """Of the code that the outputs come from."""
    return _sha256("\0".join(cell.source for cell in code_cells(book)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def strip(book: nbformat.NotebookNode) -> None:
    """Leaves of a notebook that has just run what does not depend on where and when it ran."""
    for cell in code_cells(book):
        cell.metadata = {}
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            if "metadata" in output:
                output.metadata = {}
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "sources_sha256": digest(book),
    }


def smaller(png: str) -> str:
    """A PNG in 128 colours, about half as large."""
    kept = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        small = image.convert("RGB").quantize(128)
        small.save(kept, "PNG", optimize=True, dpi=image.info["dpi"])
    return base64.b64encode(kept.getvalue()).decode()


def joined(outputs: list) -> list:
    """The outputs, with pieces of one stream put together."""
    kept: list = []
    for output in outputs:
        if kept and output.output_type == "stream" and output.name == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def code_cells(book: nbformat.NotebookNode) -> list:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def translated(book: nbformat.NotebookNode, path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with the prose of its translation at `path`, by the ids of cells.

    The metadata of a translated cell holds the digest of the English prose that it was made from;
    a cell without a translation is in English.
    """
    own = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    cells = [
        own.get(cell.id, cell) if cell.cell_type == "markdown" else cell for cell in book.cells
    ]
    return nbformat.from_dict(book | {"cells": cells})


def stale(book: nbformat.NotebookNode, translation: nbformat.NotebookNode) -> list[str]:
    """Ids of the cells whose prose is not translated from the notebook's."""
    return [
        cell.id
        for cell, own in zip(book.cells, translation.cells, strict=True)
        if cell.cell_type == "markdown"
        and own.metadata.get("translated_from") != _sha256(cell.source)
    ]


def main() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if "--copy" not in sys.argv:
        with tempfile.TemporaryDirectory() as elsewhere:
            run(notebook, elsewhere)
        strip(notebook)
        nbformat.validate(notebook)
        nbformat.write(notebook, NOTEBOOK)
    for path in TRANSLATIONS:
        translation = translated(notebook, path)
        nbformat.write(translation, path)
        print(path.name, "is stale in:", *stale(notebook, translation))


if __name__ == "__main__":
    main()
