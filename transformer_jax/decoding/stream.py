"""Lines of a file or pipe through a translator: answers in order, each as soon as it is due."""

import gzip
import json
import logging
import lzma
import math
import os
import select
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from tqdm import tqdm

from transformer_jax.data.corpora import language_tag, raw_lines, text_of_line
from transformer_jax.data.vocabulary import UNK, Vocabulary
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Hypothesis, Score, Translation, Translator

if TYPE_CHECKING:
    from transformer_jax.figures.attention_page import AttentionLines

logger = logging.getLogger(__name__)

MOST = 4096  # lines that are sorted and translated together
_MOST_UNKNOWN = 10  # symbols that are named
_IDLE_S = 0.05  # without a new line: those that have arrived are translated
_PATIENCE_S = 0.5  # after which they are translated however many more arrive


def arriving(file: BinaryIO, name: str, most: int = MOST) -> Iterator[list[bytes]]:
    """Lines in groups: of a plain file or pipe, what has arrived when the group before is done.

    A group has about `most` lines at most. Nothing is waited for while there is a whole
    line to be answered. `name` is the file's, in errors.
    """
    if isinstance(file, gzip.GzipFile | lzma.LZMAFile):
        lines = raw_lines(file, name)
        while group := list(islice(lines, most)):
            yield group
        return
    descriptor, parts, ended = file.fileno(), [], False
    while not ended:
        group: list[bytes] = []
        deadline = float("inf")
        while len(group) < most and time.monotonic() < deadline:
            if not select.select([descriptor], [], [], _IDLE_S if group else None)[0]:
                break
            block = os.read(descriptor, 1 << 16)
            if ended := not block:
                # The last line may lack its end.
                group += [b"".join(parts)] if any(parts) else []
                break
            first, *rest = block.split(b"\n")
            parts.append(first)
            if rest:
                group += [b"".join(parts), *rest[:-1]]
                parts = [rest[-1]]
                deadline = min(deadline, time.monotonic() + _PATIENCE_S)
        if group:
            yield group


def decoded(line: bytes, name: str, number: int) -> str:
    """A line as text; what is not UTF-8 is replaced and warned of."""
    text, wrong = text_of_line(line, number)
    if wrong:
        logger.warning("%s, line %d: %s; replaced", name, number, wrong)
    return text


class Texts:
    """Lines as texts: what is not UTF-8 is replaced, a language's tag put in front."""

    def __init__(self, name: str, vocabulary: Vocabulary, *, tags: bool = False, language=""):
        """
        Args:
          name: where the lines are from, for warnings.
          vocabulary: of the model.
          tags: whether lines should begin with a tag; the first that does not is warned of.
          language: whose tag is put in front; "" = none.

        Raises:
          ValueError: the vocabulary has no such tag.
        """
        self.name, self.vocabulary = name, vocabulary
        self.tag = language_tag(language) if language else ""
        self._expect_tag = tags and not language
        if language and not vocabulary.has_piece(self.tag):
            raise ValueError(
                f"the model was not trained to translate into {language!r}: no tag {self.tag}"
            )

    def groups(self, groups: Iterable[Sequence[bytes]]) -> Iterator[list[str]]:
        """The texts of groups of lines."""
        done = 0
        for group in groups:
            yield [self._text(line, number) for number, line in enumerate(group, done + 1)]
            done += len(group)

    def _text(self, line: bytes, number: int) -> str:
        text = decoded(line, self.name, number)
        if not text.strip():
            return text
        if self._expect_tag and not self.vocabulary.has_piece(text.partition(" ")[0]):
            self._expect_tag = False
            logger.warning(
                "%s, line %d: no language tag, such as <2de>; --target_language adds it",
                self.name,
                number,
            )
        return f"{self.tag} {text}" if self.tag else text


class Writer:
    """What comes out for a line, as text or as JSON lines."""

    def __init__(self, output: BinaryIO, vocabulary: Vocabulary, *, as_json=False, scores=False):
        """
        Args:
          output: written in UTF-8.
          vocabulary: of the model.
          as_json: a JSON object a line, with everything, instead of a text a hypothesis.
          scores: put score and log-probability before each text, tab-separated.
        """
        self.output, self.vocabulary = output, vocabulary
        self.as_json, self.scores = as_json, scores

    def translation(
        self,
        source: str,
        translation: Translation,
        alignments: Sequence[Alignment] = (),
        *,
        n_best: int = 1,
    ) -> None:
        """Writes the hypotheses of a source, with their alignments if there are any.

        As text, these are always `n_best` lines, the last of them empty if need be.
        """
        hypotheses = translation.hypotheses
        if self.as_json:
            described = [
                {
                    "text": hypothesis.text,
                    "score": hypothesis.score,
                    "log_prob": hypothesis.log_prob,
                    "tokens": self.vocabulary.pieces(hypothesis.ids),
                }
                for hypothesis in hypotheses
            ]
            for description, alignment in zip(described, alignments):
                description["alignment"] = _described(alignment)
            read = {"truncated": translation.truncated, "unknown": translation.unknown}
            self._json(source=source, **read, hypotheses=described)
            return
        missing = n_best - len(hypotheses)
        if alignments:
            alignments = [*alignments, *[_NO_ALIGNMENT] * missing]
        for number, hypothesis in enumerate([*hypotheses, *[_NO_HYPOTHESIS] * missing]):
            # A line stays one line, whatever the vocabulary can spell.
            text = " ".join(hypothesis.text.splitlines())
            if self.scores:
                text = f"{hypothesis.score:.6f}\t{hypothesis.log_prob:.6f}\t{text}"
            self._text(text, alignments[number] if alignments else None)

    def score(self, source: str, target: str, score: Score, alignment: Alignment | None) -> None:
        """Writes the log-probability of a pair, and those of its tokens."""
        if self.as_json:
            more = {} if alignment is None else {"alignment": _described(alignment)}
            self._json(source=source, target=target, **score._asdict(), **more)
            return
        tokens = " ".join(f"{log_prob:.6f}" for log_prob in score.log_probs)
        self._text(f"{score.log_prob:.6f}\t{tokens}", alignment)

    def nothing(self, source: str, error: str) -> None:
        """Writes an empty line for one that cannot be answered."""
        if self.as_json:
            self._json(source=source, error=error)
        else:
            self.output.write(b"\n")

    def _json(self, **values: Any) -> None:
        self.output.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")

    def _text(self, text: str, alignment: Alignment | None) -> None:
        pharaoh = "" if alignment is None else f" ||| {alignment.pharaoh}"
        self.output.write(f"{text}{pharaoh}\n".encode())


_NO_HYPOTHESIS = Hypothesis("", -math.inf, -math.inf)
_NO_ALIGNMENT = Alignment([], [], np.zeros((0, 0), np.float32), [])


def _described(alignment: Alignment) -> dict[str, Any]:
    return alignment._asdict() | {"weights": alignment.weights.astype(float).round(6).tolist()}


def translate_lines(
    translator: Translator,
    groups: Iterable[Sequence[str]],
    writer: Writer,
    options: SearchOptions | None = None,
    *,
    name: str,
    prefixes: Iterator[str] | str = "",
    align: dict[str, Any] | None = None,
    attention: "AttentionLines | None" = None,
    progress: bool = False,
) -> None:
    """Writes the translation of each line, in order; with alignments, a group at a time.

    Args:
      translator, options: as `Translator.translate` takes them.
      groups: texts that are translated together.
      writer: of translations.
      name: where the lines are from, for warnings.
      prefixes: beginnings of the translations, one a line, or one for all. One that cannot be
        is warned of, and its line's translation is empty.
      align: options of `Translator.align`, if alignments are wanted.
      attention: takes the best translation of each line.
      progress: draw a bar.

    Raises:
      ValueError: a line has no prefix, after those before it are written.
    """
    done, told = 0, False
    n_best = translator.resolved(options).n_best
    each = not isinstance(prefixes, str)

    def left_out(index: int, error: ValueError) -> None:
        logger.warning("%s, line %d: %s; left out", name, done + index + 1, error)
        lines[index] = ""

    # No bar is drawn for what is finished within its delay.
    with tqdm(unit="line", desc="translating", delay=5, disable=not progress) as bar:
        for group in groups:
            beginnings = list(islice(prefixes, len(group))) if each else prefixes
            lines = list(group[: len(beginnings)] if each else group)
            found: dict[int, Translation] = {}
            written, unknown = 0, []
            for index, translation in translator.stream(
                lines, options, prefixes=beginnings, on_bad_prefix=left_out
            ):
                bar.update()
                found[index] = translation
                unknown += [index] if translation.unknown else []
                if translation.truncated:
                    _warn_truncated(name, done + index + 1)
                if attention is not None:
                    attention.add(done + index + 1, lines[index], translation.hypotheses[0])
                while align is None and written in found:
                    writer.translation(group[written], found.pop(written), n_best=n_best)
                    written += 1
                writer.output.flush()
            if align is not None:
                _write_aligned(translator, group, found, writer, n_best, options, align)
            if unknown and not told:
                first, told = min(unknown), True
                source = writer.vocabulary.source_text(lines[first])
                _warn_unknown(name, done + first + 1, writer.vocabulary, source)
            done += len(lines)
            if len(lines) < len(group):
                raise ValueError(f"there is no prefix for {name}, line {done + 1}")
    if each and next(prefixes, None) is not None:
        logger.warning("there are more prefixes than lines: %d were used", done)


def _write_aligned(translator, group, found, writer: Writer, n_best, options, align) -> None:
    """Writes the translations of a group with the alignment of each hypothesis."""
    hypotheses = [h for index in range(len(found)) for h in found[index].hypotheses]
    sources = [text for i, text in zip(range(len(found)), group) for _ in found[i].hypotheses]
    alignments = iter(translator.align(sources, hypotheses, options, **align))
    for index, text in zip(range(len(found)), group):
        its = list(islice(alignments, len(found[index].hypotheses)))
        writer.translation(text, found[index], its, n_best=n_best)
    writer.output.flush()


def pairs_of(groups: Iterable[Sequence[str]]) -> Iterator[list[tuple[str, str | None]]]:
    """Lines as pairs, from source, tab and target; None is the target of one without a tab."""
    for group in groups:
        parts = [line.partition("\t") for line in group]
        yield [(source, target if tab else None) for source, tab, target in parts]


def score_pairs(
    translator: Translator,
    groups: Iterable[Sequence[tuple[str, str | None]]],
    writer: Writer,
    options: SearchOptions | None = None,
    *,
    name: str,
    align: dict[str, Any] | None = None,
) -> None:
    """Writes the scores of given translations, in order.

    Args:
      groups: (source, target) pairs that are scored together. Where there is no target, an
        empty line is written and warned of.
      translator, writer, name, align, options: as for `translate_lines`.
    """
    done, told = 0, False
    for group in groups:
        pairs = [(source, target) for source, target in group if target is not None]
        scores = iter(translator.score(pairs, options))
        alignments = iter(())
        if align is not None:
            sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
            alignments = iter(translator.align(sources, targets, options, **align))
        for number, (source, target) in enumerate(group, done + 1):
            if target is None:
                error = "no tab between source and target"
                logger.warning("%s, line %d: %s; left out", name, number, error)
                writer.nothing(source, error)
                continue
            score = next(scores)
            if score.truncated:
                _warn_truncated(name, number)
            if score.unknown and not told:
                told = True
                text = f"{writer.vocabulary.source_text(source)} {target}"
                _warn_unknown(name, number, writer.vocabulary, text)
            writer.score(source, target, score, next(alignments, None))
        writer.output.flush()
        done += len(group)


def _warn_truncated(name: str, number: int) -> None:
    logger.warning("%s, line %d: longer than max_length; its end was not read", name, number)


def _warn_unknown(name: str, number: int, vocabulary: Vocabulary, text: str) -> None:
    """Tells what of a text the vocabulary does not know: symbols, or characters of its words."""
    found: list[str] = []
    for word in filter(None, text.split(" ")):
        *ids, _ = vocabulary.encode([word])[0]
        if UNK in ids:
            # Where words are symbols, one that is unknown is one token, without a space's.
            letters = word if ids != [UNK] else ""
            found += [c for c in letters if UNK in vocabulary.encode([c])[0]] or [word]
    logger.warning(
        "%s, line %d: the vocabulary does not know %s, read as unknown; further lines are not told",
        name,
        number,
        ", ".join(map(repr, list(dict.fromkeys(found))[:_MOST_UNKNOWN])),
    )
