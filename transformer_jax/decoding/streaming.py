"""Lines of a file or pipe through a translator: one answer a line, in order, as soon as it is due.

A line's number in its file is its id throughout.
"""

import gzip
import itertools
import json
import logging
import lzma
import math
import os
import select
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from transformer_jax.data.corpora import Pair, grouped, language_tag
from transformer_jax.data.text_files import MAX_LINE, raw_lines, text_of_line
from transformer_jax.data.vocabulary import UNK, Vocabulary
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.decoding.engine import in_order
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Hypothesis, Score, Translation, Translator

if TYPE_CHECKING:
    from transformer_jax.figures.attention_page import AttentionLines

logger = logging.getLogger(__name__)

MAX_GROUP = 4096  # lines that are sorted and translated together
_MAX_GROUP_BYTES = 1 << 22  # about, of long ones
_MAX_UNKNOWN = 10  # symbols that are named
_IDLE_S = 0.05  # without a new line: those that have arrived are translated
_PATIENCE_S = 0.5  # after which they are translated however many more arrive


class Line(NamedTuple):
    """A line to translate, or to score with its target; numbers begin at 1."""

    number: int
    source: str
    target: str | None = None
    prefix: str = ""


def arriving(
    file: BinaryIO, name: str, max_group: int = MAX_GROUP, max_line: int = MAX_LINE
) -> Iterator[list[bytes]]:
    """Lines in groups of about `max_group`: of a pipe, those that have arrived in the meantime.

    Nothing is waited for while there is a whole line to be answered. Of a line of more than
    `max_line` bytes a byte more is held, as `decoded` has it. `name` is for errors.
    """
    if isinstance(file, gzip.GzipFile | lzma.LZMAFile):
        yield from _until_damage(raw_lines(file, name, max_line, cut=True), max_group)
        return
    descriptor, start, at_end = file.fileno(), b"", False
    while not at_end:
        group: list[bytes] = []
        deadline, room = float("inf"), _MAX_GROUP_BYTES
        while len(group) < max_group and room > 0 and time.monotonic() < deadline:
            if not select.select([descriptor], [], [], _IDLE_S if group else None)[0]:
                break
            block = os.read(descriptor, 1 << 16)
            if at_end := not block:
                # The last line may lack its end.
                group += [start] if start else []
                break
            first, *rest = block.split(b"\n")
            start += first[: max_line + 1 - len(start)]
            if rest:
                room -= len(start) + len(block)
                group += [start, *rest[:-1]]
                start = rest[-1][: max_line + 1]
                deadline = min(deadline, time.monotonic() + _PATIENCE_S)
        if group:
            yield group


def _until_damage(lines: Iterator[bytes], max_group: int) -> Iterator[list[bytes]]:
    """Groups of lines; those before an error come out before it is raised."""
    error = None
    while error is None:
        group, room = [], _MAX_GROUP_BYTES
        try:
            while len(group) < max_group and room > 0 and (line := next(lines, None)) is not None:
                group.append(line)
                room -= len(line)
        except ValueError as damage:
            error = damage
        if group:
            yield group
        elif error is None:
            return
    raise error


def decoded(line: bytes, name: str, number: int, max_line: int = MAX_LINE) -> str:
    """A line as text; the end of too long a one and what is not UTF-8 are lost, with a warning."""
    if len(line := line.removesuffix(b"\n")) > max_line:
        logger.warning(
            "%s, line %d: longer than %s bytes; its end was not read", name, number, f"{max_line:,}"
        )
        end = max_line
        while end > max_line - 3 and line[end] & 0xC0 == 0x80:  # within a character
            end -= 1
        line = line[:end]
    text, reason = text_of_line(line, number)
    if reason:
        logger.warning("%s, line %d: %s; replaced", name, number, reason)
    return text


def numbered(
    groups: Iterable[Sequence[bytes]], name: str, first: int = 1, max_line: int = MAX_LINE
) -> Iterator[list[Line]]:
    """Lines as texts with their numbers, of which the first is given."""
    for group in groups:
        numbers = range(first, first + len(group))
        yield [Line(n, decoded(line, name, n, max_line)) for n, line in zip(numbers, group)]
        first += len(group)


def of_pairs(pairs: Iterable[Pair]) -> Iterator[list[Line]]:
    """The pairs of a corpus as lines."""
    number = itertools.count(1)
    for group in grouped(pairs, MAX_GROUP):
        yield [Line(next(number), pair.source, pair.target) for pair in group]


def with_targets(groups: Iterable[Sequence[Line]]) -> Iterator[list[Line]]:
    """Splits lines of source, tab and target; those without a tab stay without a target."""
    for group in groups:
        parts = [(line, *line.source.partition("\t")) for line in group]
        yield [
            line._replace(source=source, target=target if tab else None)
            for line, source, tab, target in parts
        ]


def with_prefixes(
    groups: Iterable[Sequence[Line]], prefixes: Iterator[str] | str, name: str
) -> Iterator[list[Line]]:
    """Gives each line the next prefix, or all the same.

    Raises:
      ValueError: there is none for a line, or it cannot be read, after those before it.
    """
    each, done, damage = not isinstance(prefixes, str), 0, None
    for group in groups:
        given = islice(prefixes, len(group)) if each else repeat(prefixes)
        lines: list[Line] = []
        try:
            lines.extend(line._replace(prefix=prefix) for line, prefix in zip(group, given))
        except ValueError as error:
            damage = error
        if lines:
            yield lines
        if damage:
            raise damage
        if len(lines) < len(group):
            raise ValueError(f"there is no prefix for {name}, line {group[len(lines)].number}")
        done += len(lines)
    if each and next(prefixes, None) is not None:
        logger.warning("there are more prefixes than lines: %d were used", done)


def with_tag(groups: Iterable[Sequence[Line]], language: str, vocabulary: Vocabulary):
    """Puts a language's tag in front of texts; ValueError, at once, if it is not known."""
    tag = language_tag(language)
    if not vocabulary.has_piece(tag):
        raise ValueError(f"the model was not trained to translate into {language!r}: no tag {tag}")
    return (
        [x._replace(source=f"{tag} {x.source}") if x.source.strip() else x for x in group]
        for group in groups
    )


class Writer:
    """Writes answers in UTF-8 and flushes after each.

    As text, a hypothesis a line, with `scores` behind its score and log-probability and a tab
    each; or `as_json`, an object a line with everything.
    """

    def __init__(self, output: BinaryIO, vocabulary: Vocabulary, *, as_json=False, scores=False):
        self.output, self.vocabulary = output, vocabulary
        self.as_json, self.scores = as_json, scores

    def translation(
        self, line: Line, translation: Translation, alignments: Sequence[Alignment], n_best: int
    ) -> None:
        """Writes a line's hypotheses: as text `n_best` lines, empty where there are fewer."""
        hypotheses, aligned = translation.hypotheses, alignments or repeat(None)
        if self.as_json:
            self._json(**described(self.vocabulary, line.source, translation, alignments))
            return
        for hypothesis, alignment in zip(hypotheses, aligned):
            self._hypothesis(hypothesis, alignment)
        for _ in range(n_best - len(hypotheses)):
            self._hypothesis(_NO_HYPOTHESIS, _NO_ALIGNMENT if alignments else None)

    def _hypothesis(self, hypothesis: Hypothesis, alignment: Alignment | None) -> None:
        # A line stays one line, whatever the vocabulary can spell.
        text = " ".join(hypothesis.text.splitlines())
        if self.scores:
            text = f"{hypothesis.score:.6f}\t{hypothesis.log_prob:.6f}\t{text}"
        self._text(text, alignment)

    def score(self, line: Line, score: Score, alignment: Alignment | None) -> None:
        """Writes the log-probability of a pair, and those of its tokens."""
        if self.as_json:
            more = {} if alignment is None else {"alignment": _fields(alignment)}
            self._json(source=line.source, target=line.target, **score._asdict(), **more)
            return
        tokens = " ".join(f"{log_prob:.6f}" for log_prob in score.log_probs)
        self._text(f"{score.log_prob:.6f}\t{tokens}", alignment)

    def error(self, line: Line, error: str) -> None:
        """Writes an empty answer, to a line that cannot be scored."""
        if self.as_json:
            self._json(source=line.source, error=error)
        else:
            self._text("", None)

    def _json(self, **values: Any) -> None:
        self._text(json.dumps(values, ensure_ascii=False), None)

    def _text(self, text: str, alignment: Alignment | None) -> None:
        pharaoh = "" if alignment is None else f" ||| {alignment.pharaoh}"
        self.output.write(f"{text}{pharaoh}\n".encode())
        self.output.flush()


def described(
    vocabulary: Vocabulary, source: str, translation: Translation, alignments: Sequence[Alignment]
) -> dict[str, Any]:
    """A translation as JSON has it, with an alignment of each hypothesis or none."""
    hypotheses = []
    for (text, score, log_prob, ids), alignment in zip(
        translation.hypotheses, alignments or repeat(None)
    ):
        hypothesis = {"text": text, "score": score, "log_prob": log_prob}
        hypothesis["tokens"] = vocabulary.pieces(ids)
        more = {} if alignment is None else {"alignment": _fields(alignment)}
        hypotheses.append(hypothesis | more)
    fields = {"source": source, "truncated": translation.truncated, "unknown": translation.unknown}
    error = {"error": translation.error} if translation.error else {}
    return fields | error | {"hypotheses": hypotheses}


_NO_HYPOTHESIS = Hypothesis("", -math.inf, -math.inf)
_NO_ALIGNMENT = Alignment([], [], np.zeros((0, 0), np.float32), [])


def _fields(alignment: Alignment) -> dict[str, Any]:
    return alignment._asdict() | {"weights": alignment.weights.astype(float).round(6).tolist()}


def translate_lines(
    translator: Translator,
    groups: Iterable[Sequence[Line]],
    writer: Writer,
    options: SearchOptions | None = None,
    *,
    name: str,
    align: dict[str, Any] | None = None,
    attention: "AttentionLines | None" = None,
    progress: bool = False,
) -> None:
    """Writes the translation of each line, in order; with alignments, a group at a time.

    Args:
      groups: lines that are translated together. One with a prefix that cannot be is warned of,
        and its translation is empty.
      name: where the lines are from, for warnings.
      align: options of `Translator.align`, if alignments are wanted.
      attention: takes the best translation of each line.
      progress: draw a bar.
    """
    options, warn = translator.resolved(options), _Warnings(name, translator)
    # No bar is drawn for what is finished within its delay.
    with tqdm(unit="line", desc="translating", delay=5, disable=not progress) as bar:
        for group in groups:
            start, sources = group[0].number, [line.source for line in group]
            more = {"prefixes": [line.prefix for line in group], "on_progress": bar.update}
            answers = in_order(translator.stream(sources, options, start=start, **more), start)
            alignments: Iterator[Alignment] = iter(())
            if align is not None:
                answers = list(answers)
                pairs = [
                    (x, hyp) for x, answer in zip(sources, answers) for hyp in answer.hypotheses
                ]
                alignments = _alignments(translator, pairs, options, align)
            for line, answer in zip(group, answers):
                aligned = list(islice(alignments, len(answer.hypotheses)))
                warn.about(line, answer)
                if answer.error:
                    warn.left_out(line, answer.error)
                elif attention is not None:
                    attention.add(line.number, line.source, answer.hypotheses[0])
                writer.translation(line, answer, aligned, options.n_best)


def _alignments(translator, pairs, options, align) -> Iterator[Alignment]:
    sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
    return iter(translator.align(sources, targets, options, **align))


def score_lines(
    translator: Translator,
    groups: Iterable[Sequence[Line]],
    writer: Writer,
    options: SearchOptions | None = None,
    *,
    name: str,
    align: dict[str, Any] | None = None,
) -> None:
    """Writes the scores of given translations, in order.

    Args:
      groups: lines that are scored together. One without a target is warned of, and its answer
        is empty.
      translator, writer, options, name, align: as for `translate_lines`.
    """
    warn = _Warnings(name, translator)
    for group in groups:
        pairs = [(line.source, line.target) for line in group if line.target is not None]
        scores = iter(translator.score(pairs, options))
        aligned = align is not None
        alignments = _alignments(translator, pairs, options, align) if aligned else repeat(None)
        for line in group:
            if line.target is None:
                error = "no tab between source and target"
                warn.left_out(line, error)
                writer.error(line, error)
                continue
            score = next(scores)
            warn.about(line, score, line.target)
            writer.score(line, score, next(alignments))


class _Warnings:
    """Warnings about lines; of some kinds, about the first line alone."""

    def __init__(self, name: str, translator: Translator):
        self.name, self.vocabulary = name, translator.vocabulary
        self.tag_expected, self.unknown_reported = translator.config.data.language_tags, False

    def about(self, line: Line, answer: Translation | Score, target: str = "") -> None:
        """Of an answer to a line and, if it was read too, its target."""
        first_word = line.source.partition(" ")[0]
        if self.tag_expected and line.source.strip() and not self.vocabulary.has_piece(first_word):
            self.tag_expected = False
            self._warn(line, "no language tag, such as <2de>; --target_language adds it")
        if answer.truncated:
            self._warn(line, "longer than max_length; its end was not read")
        if answer.unknown and not self.unknown_reported:
            self.unknown_reported = True
            unknown = self._unknown(f"{self.vocabulary.source_text(line.source)} {target}")
            self._warn(
                line,
                f"the vocabulary does not know {', '.join(map(repr, unknown))}, read as unknown; "
                "further lines are not reported",
            )

    def left_out(self, line: Line, error: str) -> None:
        self._warn(line, f"{error}; left out")

    def _warn(self, line: Line, text: str) -> None:
        logger.warning("%s, line %d: %s", self.name, line.number, text)

    def _unknown(self, text: str) -> list[str]:
        """What of a text the vocabulary does not know: words, or characters of its words."""
        found: list[str] = []
        for word in filter(None, text.split(" ")):
            *ids, _ = self.vocabulary.encode([word])[0]
            if UNK in ids:
                # Where words are symbols, an unknown one is one token, without a space's.
                letters = dict.fromkeys(word if ids != [UNK] else "")
                found += [c for c in letters if UNK in self.vocabulary.encode([c])[0]] or [word]
        return list(dict.fromkeys(found))[:_MAX_UNKNOWN]
