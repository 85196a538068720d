"""Text in, text out: translations, scores and attention of a trained model."""

import os
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.checkpoint import load_run
from transformer_jax.config import Config
from transformer_jax.data.vocabulary import BOS, EOS, UNK, Vocabulary
from transformer_jax.decoding import alignment, engine
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.decoding.engine import Models, Sentence
from transformer_jax.decoding.forced import forced
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import NEG_INF, Hypotheses
from transformer_jax.devices import replicate


class Hypothesis(NamedTuple):
    """One translation.

    Attributes:
      text: detokenised.
      score: log-probability over the length penalty, plus coverage penalty.
      log_prob: natural logarithm of its probability.
      ids: its tokens, without the end symbol.
    """

    text: str
    score: float
    log_prob: float
    ids: tuple[int, ...] = ()


class Translation(NamedTuple):
    """Of a line.

    Attributes:
      hypotheses: best first.
      truncated: whether its end was cut off unread.
      unknown: tokens read that the vocabulary does not know.
    """

    hypotheses: list[Hypothesis]
    truncated: bool
    unknown: int = 0

    @property
    def text(self) -> str:
        """The best hypothesis."""
        return self.hypotheses[0].text


class Score(NamedTuple):
    """Of a given translation.

    Attributes:
      tokens: pieces of the target, with the end symbol.
      log_probs: natural logarithm of each token's probability.
      log_prob: their sum.
      truncated: whether the end of a side was cut off unread.
      unknown: tokens of both sides that the vocabulary does not know.
    """

    tokens: list[str]
    log_probs: list[float]
    log_prob: float
    truncated: bool
    unknown: int = 0


class Attention(NamedTuple):
    """All attention of a sentence pair, float32.

    Row t of `decoder` and `cross` belongs to the place that reads input_tokens[t] and
    predicts target_tokens[t].

    Attributes:
      source_tokens: S pieces, closed by the end symbol.
      input_tokens: T pieces that the decoder reads, from the start symbol.
      target_tokens: T pieces that it predicts, closed by the end symbol.
      encoder: [L, H, S, S], or None: RNNs have cross attention alone.
      decoder: [L, H, T, T], or None.
      cross: [L, H, T, S].
    """

    source_tokens: list[str]
    input_tokens: list[str]
    target_tokens: list[str]
    encoder: np.ndarray | None
    decoder: np.ndarray | None
    cross: np.ndarray


class Translator:
    """Translates lines of text with a model, or several, by the settings of the first's config."""

    def __init__(self, models: Models, vocabulary: Vocabulary, config: Config):
        """From models whose parameters are replicated, their vocabulary, and a run's config."""
        self.models, self.vocabulary, self.config = models, vocabulary, config

    @classmethod
    def from_workdir(
        cls,
        workdir: str | os.PathLike | Sequence[str | os.PathLike],
        *ensemble: str | os.PathLike,
        checkpoint: str | int = "best",
        average: int = 1,
    ) -> "Translator":
        """Loads what `train.py` left in a workdir.

        Args:
          workdir: of the run, or of several, as `ensemble` has it.
          ensemble: workdirs of other runs with the same vocabulary: the mean of the models'
            probabilities decides.
          checkpoint: "best", "last", or the number of a step.
          average: 1, or the number of last checkpoints whose parameters are averaged
            (section 6.1).

        Raises:
          FileNotFoundError, ValueError: no run there, no checkpoint in it, or no sound one.
        """
        if average > 1 and checkpoint != "best":
            raise ValueError(
                f"checkpoint={checkpoint} and average={average} do not go together: the last "
                f"{average} are averaged"
            )
        several = isinstance(workdir, list | tuple)
        folders = [*(workdir if several else [workdir]), *ensemble]
        folders = _checked("workdir", folders, str | os.PathLike, "the name of a folder")
        if not folders:
            raise ValueError("workdir names no folder")
        runs = [load_run(folder, str(checkpoint), average) for folder in folders]
        config, vocabulary, _, _ = runs[0]
        for folder, (_, other, _, _) in zip(folders[1:], runs[1:]):
            if other.fingerprint() != vocabulary.fingerprint():
                raise ValueError(
                    f"{folder} has another vocabulary than {folders[0]}: models of an ensemble "
                    "must share one"
                )
        graphdefs, params = zip(*(run[2:] for run in runs))
        return cls(Models(graphdefs, tuple(map(replicate, params))), vocabulary, config)

    def translate(
        self,
        lines: str | Iterable[str],
        options: SearchOptions | None = None,
        *,
        prefixes: str | Iterable[str] = "",
        limits: Iterable[int] = (),
        on_progress: Callable[[int], None] = lambda sentences: None,
    ) -> Translation | list[Translation]:
        """The translation of each line, in order, or of the only one.

        Args:
          lines: texts without line ends, or one text; of an empty one it is empty.
          prefixes: beginnings that the translations must have, one a line, or one for all.
          limits: further limits of the translations' tokens, one a line, or none.
          on_progress: called with the number of lines finished since its last call.
        """
        found = {}
        texts = [lines] if isinstance(lines, str) else lines
        stream = self.stream(texts, options, prefixes=prefixes, limits=limits)
        for index, translation in stream:
            found[index] = translation
            on_progress(1)
        return found[0] if isinstance(lines, str) else [found[i] for i in range(len(found))]

    def stream(
        self,
        lines: Iterable[str],
        options: SearchOptions | None = None,
        *,
        prefixes: str | Iterable[str] = "",
        limits: Iterable[int] = (),
        on_bad_prefix: Callable[[int, ValueError], None] | None = None,
    ) -> Iterator[tuple[int, Translation]]:
        """As `translate`, but each translation with its line's index as soon as it is found.

        Args:
          lines, options, prefixes, limits: as `translate` takes them.
          on_bad_prefix: called with a line's index and what is wrong with its prefix, where its
            translation is left empty; None = an error.
        """
        search = self.resolved(options)
        lines = _checked("lines", lines)
        if isinstance(prefixes, str):
            prefixes = [prefixes] * len(lines)
        prefixes = _checked("prefixes", prefixes)
        limits = _checked("limits", limits, int | np.integer, "a number")
        for name, each in (("prefixes", prefixes), ("limits", limits)):
            if each and len(each) != len(lines):
                raise ValueError(f"there are {len(each)} {name} for {len(lines)} lines")
        ids = self.vocabulary.encode_sources(map(_blank_as_empty, lines))
        numbers, sentences = [], []
        empty = Translation([Hypothesis("", 0.0, 0.0)] * search.n_best, truncated=False)
        for index, source in enumerate(ids):
            prefix, limit = prefixes[index] if prefixes else "", limits[index] if limits else None
            try:
                sentence = self._sentence(source, prefix, limit, search)
            except ValueError as error:
                if on_bad_prefix is None:
                    raise ValueError(f"prefixes[{index}]: {error}") from None
                on_bad_prefix(index, error)
                sentence = None
            if sentence is None:
                yield index, empty
                continue
            numbers.append(index)
            sentences.append(sentence)
        for number, hypotheses in engine.translate(self.models, sentences, search):
            index = numbers[number]
            truncated = len(ids[index]) > search.max_length
            unknown = sentences[number].source.count(UNK)
            yield index, Translation(self._texts(hypotheses), truncated, unknown)

    def _sentence(
        self, source: list[int], prefix: str, most: int | None, search: SearchOptions
    ) -> Sentence | None:
        """What the engine is asked, None without text; ValueError on a prefix that cannot be."""
        prefix_ids = self.prefix_ids(prefix, search.max_length) if prefix else []
        if len(source) == 1:
            return None
        cut = _cut(source, search.max_length)
        limit, least = search.max_tokens(len(cut), len(prefix_ids)), search.min_tokens(len(cut))
        if most is not None:
            limit = max(min(limit, most), least)
        if len(prefix_ids) >= limit:
            raise ValueError(
                f"the prefix {_shown(prefix)} has {len(prefix_ids)} tokens, which leaves no room "
                f"in the limit of {limit} for a line of {len(cut)} tokens"
            )
        seed = zlib.crc32(np.array(source, np.int32).tobytes(), search.seed)
        return Sentence(cut, limit, least, prefix_ids, seed)

    def resolved(self, options: SearchOptions | None = None) -> SearchOptions:
        """The options with the run's defaults filled in; TypeError or ValueError on bad ones."""
        _check("options", options, SearchOptions | None, "SearchOptions")
        search = (options or SearchOptions()).resolved(self.config.decoding)
        if search.coverage_penalty is not None:
            self.check_attention()
        return search

    def check(
        self,
        options: SearchOptions | None = None,
        *,
        prefix: str = "",
        align: dict[str, Any] | None = None,
    ) -> None:
        """ValueError, in one sentence, on options (also those of `align`) that cannot be."""
        self.prefix_ids(prefix, self.resolved(options).max_length)
        if align is not None:
            self.check_attention(align.get("layer"), align.get("head"))

    def score(
        self,
        pairs: tuple[str, str] | Iterable[tuple[str, str]],
        options: SearchOptions | None = None,
    ) -> Score | list[Score]:
        """Log-probabilities of given translations: of each (source, target) pair, or of one.

        Sides of more than `max_length` tokens are cut.
        """
        if isinstance(pairs, tuple) and len(pairs) == 2 and isinstance(pairs[0], str):
            return self.score([pairs], options)[0]
        search = self.resolved(options)
        pairs = _checked("pairs", pairs, list | tuple, "a pair (source, target) of texts")
        for index, pair in enumerate(pairs):
            if len(pair) != 2:
                raise TypeError(f"pairs[{index}] has {len(pair)} items; expected source and target")
            _check(f"pairs[{index}][0]", pair[0], str, "text")
            _check(f"pairs[{index}][1]", pair[1], *_TARGET)
        ids, truncated = self._encoded_pairs(pairs, search.max_length)
        scores: list[Any] = [None] * len(pairs)
        for index, result in forced(self.models, ids, rows=search.rows, longest=search.max_length):
            scores[index] = Score(
                self.vocabulary.pieces(ids[index][1]),
                result.log_probs.tolist(),
                float(result.log_probs.sum(dtype=np.float64)),
                truncated[index],
                sum(side.count(UNK) for side in ids[index]),
            )
        return scores

    def align(
        self,
        sources: str | Iterable[str],
        targets: str | Hypothesis | Iterable[str | Hypothesis],
        options: SearchOptions | None = None,
        *,
        layer: int | None = None,
        head: int | None = None,
        skip: int = 0,
    ) -> Alignment | list[Alignment]:
        """The word alignment of each source with its target, or of one, by cross attention.

        Args:
          sources: texts, or one text.
          targets: texts, or hypotheses of the sources; or one.
          layer, head: of the cross attention, from 0; None = the mean of all.
          skip: words in front of each source that are left out, such as a language's tag.
        """
        if isinstance(sources, str) and isinstance(targets, str | Hypothesis):
            return self.align([sources], [targets], options, layer=layer, head=head, skip=skip)[0]
        search = self.resolved(options)
        self.check_attention(layer, head)
        sources, targets = _checked("sources", sources), _checked("targets", targets, *_TARGET)
        if len(sources) != len(targets):
            raise ValueError(f"there are {len(targets)} targets for {len(sources)} sources")
        ids, _ = self._encoded_pairs(list(zip(sources, targets)), search.max_length)
        alignments: list[Any] = [None] * len(ids)
        for index, result in forced(
            self.models,
            ids,
            rows=search.rows,
            longest=search.max_length,
            mean_cross=(layer, head),
        ):
            cross_TS = result.attention["cross"][0, 0]
            alignments[index] = alignment.align(self.vocabulary, *ids[index], cross_TS, skip)
        return alignments

    def attention(
        self,
        source: str,
        target: str | Hypothesis | None = None,
        options: SearchOptions | None = None,
    ) -> Attention:
        """All attention of one sentence with a target, or with its translation.

        Raises:
          ValueError: the model has no attention, or a side has more tokens than `max_length`.
        """
        search = self.resolved(options)
        self.check_attention()
        _check("source", source, str, "text")
        if target is None:
            target = self.translate(source, options).hypotheses[0]
        _check("target", target, *_TARGET)
        ids, (truncated,) = self._encoded_pairs([(source, target)], search.max_length)
        if truncated:
            raise ValueError(
                f"{_shown(source)} or its translation has more than max_length="
                f"{search.max_length} tokens"
            )
        ((_, result),) = forced(
            self.models, ids, rows=8, longest=search.max_length, all_attention=True
        )
        source_ids, target_ids = ids[0]
        pieces = self.vocabulary.pieces
        tokens = pieces(source_ids), pieces([BOS, *target_ids[:-1]]), pieces(target_ids)
        return Attention(*tokens, *map(result.attention.get, ("encoder", "decoder", "cross")))

    def _texts(self, hypotheses: Hypotheses) -> list[Hypothesis]:
        return [
            Hypothesis(self.vocabulary.decode(ids), float(score), float(log_prob), ids)
            for tokens, score, log_prob in zip(*hypotheses)
            if score > NEG_INF / 2
            for ids in [tuple(tokens[: int(np.argmax(tokens == EOS))].tolist())]
        ]

    def prefix_ids(self, text: str, max_length: int) -> list[int]:
        """The tokens of a forced beginning; ValueError on one that cannot be."""
        ids = self.vocabulary.encode([text.rstrip()])[0][:-1]
        if UNK in ids:
            raise ValueError(f"the vocabulary cannot spell the prefix {_shown(text)}")
        if len(ids) >= max_length:
            raise ValueError(
                f"the prefix {_shown(text)} has {len(ids)} tokens, which leaves no room in "
                f"max_length={max_length}"
            )
        return ids

    def _encoded_pairs(self, pairs: Sequence[tuple[str, str | Hypothesis]], max_length: int):
        """Ids of both sides, cut; and whether they were."""
        sources = self.vocabulary.encode_sources(_blank_as_empty(source) for source, _ in pairs)
        texts = (target if isinstance(target, str) else "" for _, target in pairs)
        targets = self.vocabulary.encode(map(_blank_as_empty, texts))
        for index, (_, target) in enumerate(pairs):
            if isinstance(target, Hypothesis):
                targets[index] = [*target.ids, EOS]
        both = list(zip(sources, targets))
        truncated = [max(map(len, sides)) > max_length for sides in both]
        return [tuple(_cut(ids, max_length) for ids in sides) for sides in both], truncated

    @property
    def attention_shape(self) -> dict[str, tuple[int, int]]:
        """Layers and heads of the models' attention: "encoder", "decoder", "cross", if any."""
        return engine.merged(*self.models).attention_shape

    def check_attention(self, layer: int | None = None, head: int | None = None) -> None:
        """ValueError where there is no cross attention, or no such layer or head of it."""
        if "cross" not in self.attention_shape:
            raise ValueError(
                "the model has no attention: it was trained with config.model.attention=none"
            )
        counts = self.attention_shape["cross"]
        for name, number, count in zip(("layer", "head"), (layer, head), counts):
            if number is not None and not 0 <= number < count:
                raise ValueError(
                    f"there is no attention {name} {number}: they are 0 to {count - 1}"
                )


_TARGET = str | Hypothesis, "text or a Hypothesis"


def _check(name: str, value: Any, kind: Any, expected: str) -> None:
    """TypeError, in one sentence, where an argument is not of a kind."""
    if not isinstance(value, kind):
        what = f"{reprlib.repr(value)} ({type(value).__name__})"
        raise TypeError(f"{name} is {what}; expected {expected}")


def _checked(name: str, values: Any, kind: Any = str, expected: str = "text") -> list[Any]:
    """The items of an iterable, each of a kind; TypeError says which is not."""
    # Those of a text are letters, and those of a dict or set in no order of the user's.
    no_list = isinstance(values, str | bytes | dict | set)
    _check(name, values, () if no_list else Iterable, f"an iterable, such as a list, of {expected}")
    values = list(values)
    for index, value in enumerate(values):
        _check(f"{name}[{index}]", value, kind, expected)
    return values


def _blank_as_empty(text: str) -> str:
    """A text, but none of white space alone, which is tokens to some vocabularies."""
    return text if text.strip() else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _cut(sentence: list[int], max_length: int) -> list[int]:
    """A sentence of at most `max_length` tokens that still closes with the end symbol."""
    return sentence if len(sentence) <= max_length else [*sentence[: max_length - 1], EOS]
