"""Attention as one HTML page to explore, which needs nothing but a browser."""

import base64
import logging
import os
import pathlib
import tempfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from transformer_jax.figures.figures import KINDS
from transformer_jax.figures.labels import begins_word, label, right_to_left, text_of
from transformer_jax.storage import atomic_write

if TYPE_CHECKING:
    from transformer_jax.decoding.options import SearchOptions
    from transformer_jax.decoding.translator import Attention, Hypothesis, Translator

logger = logging.getLogger(__name__)

MAX_LINES = 100  # a page of more would be slow to open


def attention_page(
    attentions: Iterable["Attention"], *, title: str, languages: Collection[tuple[str, str]] = ()
) -> str:
    """A page that shows the attention of sentence pairs: each kind, layer and head.

    It opens at the head of the lowest entropy, and downloads nothing. A weight takes one byte to
    one and a half, and a sentence pair has L H (S^2 + T^2 + T S) of them: with the paper's base
    model and 30 tokens a side, some 170 kB.

    Args:
      attentions: of at least one sentence pair, from `Translator.attention`; each is read once
        and let go.
      title: of the page.
      languages: of sources and targets, which the title names too.

    Raises:
      ValueError: there are none.
    """
    sentences = [_sentence(attention) for attention in attentions]
    if not sentences:
        raise ValueError("a page of attention needs at least one sentence pair, and got none")
    page = pathlib.Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    title = ", ".join([title, *(f"{source} to {target}" for source, target in languages)])
    # The browser draws Chinese characters as the language has them, where there is only one.
    (pair,) = languages if len(languages) == 1 else [("", "")]
    template = jinja2.Template(page, autoescape=True)
    return template.render(title=title, languages=pair, sentences=sentences)


def check_page(path: str, taken: Mapping[str, str | int]) -> None:
    """ValueError, in one sentence, where no page can be written, or another file would be lost.

    Args:
      path: of the page.
      taken: files by what they are; by name, or by descriptor where they are open.
    """
    for name, file in taken.items():
        if _same(path, file):
            raise ValueError(f"--attention_html={path} is the {name}, and would be lost")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"--attention_html={path} is not a file")
    try:
        tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))).close()
    except OSError as error:
        raise ValueError(f"--attention_html={path} cannot be written: {error.strerror}") from None


class AttentionLines:
    """Collects lines with their translations, and writes the page of their attention."""

    def __init__(
        self, translator: "Translator", *, name: str, options: "SearchOptions | None" = None
    ):
        """
        Args:
          translator: of the lines.
          name: where the lines are from, for warnings.
          options: of their translation.

        Raises:
          ValueError: the model has no attention.
        """
        translator.check_attention()
        self._translator, self._name, self._options = translator, name, options
        self._pairs: dict[int, tuple[str, Hypothesis]] = {}
        self._warned = False

    def add(self, number: int, source: str, hypothesis: "Hypothesis") -> None:
        """Takes a line's translation, in any order; empty lines are left out."""
        if number <= MAX_LINES:
            if source.strip():
                self._pairs[number] = source, hypothesis
        elif not self._warned:
            self._warned = True
            logger.warning("%s: attention is shown of the first %d lines", self._name, MAX_LINES)

    def write(self, path: str, title: str, languages: Collection[tuple[str, str]] = ()) -> None:
        """Writes the page, whole or not at all.

        Raises:
          ValueError: no line had attention to show.
        """
        page = attention_page(self._attentions(), title=title, languages=languages)
        with atomic_write(os.path.realpath(path), errors="xmlcharrefreplace") as file:
            file.write(page)

    def _attentions(self) -> Iterator["Attention"]:
        """Line by line: that of all lines together may not fit in memory."""
        for number, (source, hypothesis) in sorted(self._pairs.items()):
            try:
                yield self._translator.attention(source, hypothesis, self._options)
            except ValueError as error:
                message = "%s, line %d: %s; left out of the page of attention"
                logger.warning(message, self._name, number, error)


def _sentence(attention: "Attention") -> dict[str, Any]:
    """What the page holds of a sentence pair."""
    kinds = {name: getattr(attention, name) for name in KINDS}
    return {
        "text": text_of(attention.source_tokens),
        "source": _line(attention.source_tokens),
        "input": _line(attention.input_tokens),
        "target": _line(attention.target_tokens),
        "kinds": [_kind(name, array) for name, array in kinds.items() if array is not None],
    }


def _line(pieces: list[str]) -> dict[str, Any]:
    return {
        "labels": [label(piece) for piece in pieces],
        "begins": [begins_word(piece) for piece in pieces],
        "rtl": right_to_left(pieces),
    }


def _kind(name: str, weights_LHTM: np.ndarray) -> dict[str, Any]:
    """Weights in thousandths, as 16-bit integers: compressed, in base64."""
    packed = zlib.compress(np.rint(1000 * weights_LHTM).astype("<u2").tobytes(), 9)
    weights = base64.b64encode(packed).decode("ascii")
    return {"name": name, "shape": weights_LHTM.shape, "weights": weights}


def _same(path: str, file: str | int) -> bool:
    if isinstance(file, str) and os.path.realpath(path) == os.path.realpath(file):
        return True
    return os.path.exists(path) and os.path.exists(file) and os.path.samefile(path, file)
