"""Runs the notebook from top to bottom and keeps its outputs: python tests/rerun_notebook.py

test_notebook.py checks that they belong to the notebook's code.
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
    sources = "\0".join(cell.source for cell in code_cells(book))
    return hashlib.sha256(sources.encode()).hexdigest()


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
        image.convert("RGB").quantize(128).save(kept, "PNG", optimize=True)
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


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as elsewhere:
        run(notebook, elsewhere)
    strip(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)
