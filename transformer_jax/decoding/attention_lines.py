"""A page of attention for the first lines that a stream translates."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping

from transformer_jax.attention_page import attention_page
from transformer_jax.decoding.translator import Attention, Hypothesis, Translator

logger = logging.getLogger(__name__)

MOST_LINES = 100  # a page of more would be slow to open


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
        with _aside(path):
            pass
    except OSError as error:
        raise ValueError(f"--attention_html={path} cannot be written: {error.strerror}") from None


class AttentionLines:
    """Collects lines with their translations, and writes the page of their attention."""

    def __init__(self, translator: Translator, *, name: str, max_length: int | None = None):
        """
        Args:
          translator: of the lines.
          name: where the lines are from, for warnings.
          max_length: as of `SearchOptions`.

        Raises:
          ValueError: the model has no attention.
        """
        translator.check_attention()
        self._translator, self._name, self._max_length = translator, name, max_length
        self._pairs: dict[int, tuple[str, Hypothesis]] = {}
        self._warned = False

    def add(self, number: int, source: str, hypothesis: Hypothesis) -> None:
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
        with _aside(path) as aside:
            with open(aside, "w", encoding="utf-8", errors="xmlcharrefreplace") as file:
                file.write(page)
            os.replace(aside, os.path.realpath(path))

    def _attentions(self) -> Iterator[Attention]:
        """Line by line: that of all lines together may not fit in memory."""
        for number, (source, hypothesis) in sorted(self._pairs.items()):
            try:
                yield self._translator.attention(source, hypothesis, max_length=self._max_length)
            except ValueError as error:
                message = "%s, line %d: %s; left out of the page of attention"
                logger.warning(message, self._name, number, error)


@contextlib.contextmanager
def _aside(path: str) -> Iterator[str]:
    """A new file beside another, removed at the end if it is still there."""
    aside = f"{os.path.realpath(path)}.tmp"
    try:
        with open(aside, "wb"):
            pass
        yield aside
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.remove(aside)


def _same(path: str, file: str | int) -> bool:
    if isinstance(file, str) and os.path.realpath(path) == os.path.realpath(file):
        return True
    return os.path.exists(path) and os.path.exists(file) and os.path.samefile(path, file)
