"""Attention as one HTML page to explore, which needs nothing but a browser."""

import base64
import html
import json
import logging
import os
import pathlib
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer_jax.figures.labels import begins_word, label, right_to_left, text_of
from transformer_jax.storage import atomic_write

if TYPE_CHECKING:
    from transformer_jax.decoding.options import SearchOptions
    from transformer_jax.decoding.translator import Attention, Hypothesis, Translator

logger = logging.getLogger(__name__)

_TEMPLATE = pathlib.Path(__file__).with_suffix(".html")
MOST_LINES = 100  # a page of more would be slow to open
_LEVELS = 1000  # a weight is kept in thousandths


def attention_page(attentions: Iterable["Attention"], *, title: str) -> str:
    """A page that shows the attention of sentence pairs, each kind, layer and head that it has.

    It downloads nothing. A sentence takes about a byte a weight, L H (S^2 + T^2 + T S) of them:
    with the paper's base model (L = 6, H = 8) and 30 tokens a side, some 110 kB.

    Args:
      attentions: of one sentence pair or more, from `Translator.attention`; each is read once
        and let go.
      title: of the page.

    Raises:
      ValueError: there are none.
    """
    sentences = [_sentence(attention) for attention in attentions]
    if not sentences:
        raise ValueError("a page of attention needs one sentence pair or more, and got none")
    data = json.dumps({"levels": _LEVELS, "sentences": sentences}, separators=(",", ":"))
    # JSON writes < nowhere but in strings, where it may be escaped: no tag can begin in it.
    parts = {"title": html.escape(title), "data": data.replace("<", r"\u003c")}
    template = _TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], template)


def _sentence(attention: "Attention") -> dict[str, Any]:
    """What the page keeps of a sentence pair."""
    kinds = {
        name: weights_LHTM
        for name in ("encoder", "decoder", "cross")
        if (weights_LHTM := getattr(attention, name)) is not None
    }
    return {
        "text": text_of(attention.source_tokens),
        "source": _line(attention.source_tokens),
        "input": _line(attention.input_tokens),
        "target": _line(attention.target_tokens),
        "kinds": [{"name": name, "shape": weights.shape} for name, weights in kinds.items()],
        "weights": _packed([weights.ravel() for weights in kinds.values()]),
    }


def _line(pieces: list[str]) -> dict[str, Any]:
    return {
        "labels": [label(piece) for piece in pieces],
        "begins": [int(begins_word(piece)) for piece in pieces],
        "rtl": right_to_left(pieces),
    }


def _packed(weights: list[np.ndarray]) -> str:
    """Thousandths as 16-bit integers, low bytes first and high bytes after, zlib, base64."""
    levels = np.rint(np.concatenate(weights) * _LEVELS).astype("<u2")
    planes = levels.view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")


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
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(path))):
            pass
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
        """Takes a line's translation, in any order; of empty lines there is nothing to see."""
        if number <= MOST_LINES:
            if source.strip():
                self._pairs[number] = source, hypothesis
        elif not self._warned:
            self._warned = True
            logger.warning("%s: attention is shown of the first %d lines", self._name, MOST_LINES)

    def write(self, path: str, title: str) -> None:
        """Writes the page, whole or not at all.

        Raises:
          ValueError: no line had attention to show.
        """
        page = attention_page(self._attentions(), title=title)
        with atomic_write(path, errors="xmlcharrefreplace") as file:
            file.write(page)

    def _attentions(self) -> Iterator["Attention"]:
        """Line by line: that of all lines together may not fit in memory."""
        for number, (source, hypothesis) in sorted(self._pairs.items()):
            try:
                yield self._translator.attention(source, hypothesis, self._options)
            except ValueError as error:
                message = "%s, line %d: %s; left out of the page of attention"
                logger.warning(message, self._name, number, error)


def _same(path: str, file: str | int) -> bool:
    if isinstance(file, str) and os.path.realpath(path) == os.path.realpath(file):
        return True
    return os.path.exists(path) and os.path.exists(file) and os.path.samefile(path, file)
