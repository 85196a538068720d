"""Lines of a file or pipe through a translator: one line out for each line in, in order."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from tqdm import tqdm

from transformer_jax.data.corpus import language_tag
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.decoding.translator import Translation, Translator

logger = logging.getLogger(__name__)

_CHUNK = 4096  # lines that are sorted and translated together


def text_lines(lines: Iterable[bytes], name: str) -> Iterator[str]:
    """Lines as text, without their ends; what is not UTF-8 is replaced and warned of."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip(b"\r\n")
        try:
            yield text.decode("utf-8")
        except UnicodeDecodeError as error:
            logger.warning(
                "%s, line %d: not valid UTF-8 (%s); replaced", name, number, error.reason
            )
            yield text.decode("utf-8", errors="replace")


def tagged(lines: Iterable[str], vocabulary: Vocabulary, language: str, name: str) -> Iterator[str]:
    """Lines that begin with the tag of a language, those without text as they are.

    Without a language they should begin with tags of their own; the first that does not is
    warned of. ValueError where the vocabulary has no such tag.
    """
    tag = language_tag(language)
    if language and not vocabulary.has_piece(tag):
        raise ValueError(f"the model was not trained to translate into {language!r}: no tag {tag}")

    def lines_with_tags() -> Iterator[str]:
        warned = False
        for number, line in enumerate(lines, 1):
            has_tag = language or vocabulary.has_piece(line.partition(" ")[0])
            if line.strip() and not has_tag and not warned:
                logger.warning(
                    "%s, line %d: no language tag, such as <2de>; --target_language adds it",
                    name,
                    number,
                )
                warned = True
            yield f"{tag} {line}" if language and line.strip() else line

    return lines_with_tags()


def translate_lines(
    translator: Translator,
    lines: Iterable[str],
    output: BinaryIO,
    *,
    name: str,
    scores: bool = False,
    **options: Any,
) -> None:
    """Writes the translation of each line, or its n-best list, a hypothesis a line.

    Args:
      translator, options: as `Translator.translate` takes them.
      lines: text without line ends; `name` says in warnings where they are from.
      output: written in UTF-8.
      scores: put score and log-probability before each hypothesis, tab-separated.
    """
    lines = iter(lines)
    done = 0
    # No bar is drawn for what is finished within its delay.
    with tqdm(unit="line", desc="translating", delay=5, dynamic_ncols=True) as bar:
        while chunk := list(itertools.islice(lines, _CHUNK)):
            translations = translator.translate(chunk, on_progress=bar.update, **options)
            for number, translation in enumerate(translations, done + 1):
                if translation.truncated:
                    logger.warning(
                        "%s, line %d: longer than max_length; its end was not translated",
                        name,
                        number,
                    )
                output.writelines(_formatted(translation, scores))
            output.flush()
            done += len(chunk)


def _formatted(translation: Translation, scores: bool) -> Iterator[bytes]:
    for hypothesis in translation.hypotheses:
        # A line stays one line, whatever the vocabulary can spell.
        text = " ".join(hypothesis.text.splitlines())
        prefix = f"{hypothesis.score:.6f}\t{hypothesis.log_prob:.6f}\t" if scores else ""
        yield f"{prefix}{text}\n".encode()
