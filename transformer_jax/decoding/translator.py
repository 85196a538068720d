"""Text in, text out: translations, scores and attention of a trained model."""

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.config import Config
from transformer_jax.data.vocabulary import BOS, EOS, UNK, Vocabulary
from transformer_jax.decoding import alignment, engine
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.decoding.engine import Models, Sentence
from transformer_jax.decoding.forced import forced
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import NONE, Hypotheses
from transformer_jax.training.checkpoint import load_run
from transformer_jax.training.parallel import replicate


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
    """The hypotheses of a line, best first, and whether its end was cut off unread."""

    hypotheses: list[Hypothesis]
    truncated: bool

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
    """

    tokens: list[str]
    log_probs: list[float]
    log_prob: float
    truncated: bool


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
    """Translates lines of text with a model, or several, by the settings of the first's config.

    Options, in all its methods, are those of `SearchOptions`.
    """

    def __init__(self, models: Models, vocabulary: Vocabulary, config: Config):
        """From models whose parameters are replicated, their vocabulary, and a run's config."""
        self.models, self.vocabulary, self.config = models, vocabulary, config

    @classmethod
    def from_workdir(
        cls,
        workdir: str | os.PathLike,
        *ensemble: str | os.PathLike,
        checkpoint: str = "best",
        average: int = 1,
    ) -> "Translator":
        """Loads what `train.py` left in a workdir.

        Args:
          workdir: of the run.
          ensemble: workdirs of other runs with the same vocabulary: the mean of the models'
            probabilities decides.
          checkpoint: "best", "last", or the number of a step.
          average: 1, or the number of last checkpoints whose parameters are averaged
            (section 6.1), whatever `checkpoint` says.

        Raises:
          FileNotFoundError, ValueError: no run there, no checkpoint in it, or no sound one.
        """
        runs = [load_run(folder, checkpoint, average) for folder in (workdir, *ensemble)]
        config, vocabulary, _, _ = runs[0]
        for folder, (_, other, _, _) in zip(ensemble, runs[1:]):
            if other.fingerprint() != vocabulary.fingerprint():
                raise ValueError(
                    f"{folder} has another vocabulary than {workdir}: models of an ensemble must "
                    "share one"
                )
        graphdefs, params = zip(*(run[2:] for run in runs))
        return cls(Models(graphdefs, tuple(map(replicate, params))), vocabulary, config)

    def translate(
        self,
        lines: Sequence[str],
        *,
        prefixes: Sequence[str] = (),
        limits: Sequence[int] = (),
        on_progress: Callable[[int], None] = lambda sentences: None,
        **options: Any,
    ) -> list[Translation]:
        """The translation of each line, in order; an empty line gives an empty text.

        Args:
          lines: text without line ends.
          prefixes: beginnings that the translations must have, one a line, or none.
          limits: further limits of the translations' tokens, one a line, or none.
          on_progress: called with the number of lines finished since its last call.
          **options: of `SearchOptions`.
        """
        translations: list[Any] = [None] * len(lines)
        for index, translation in self.stream(lines, prefixes=prefixes, limits=limits, **options):
            translations[index] = translation
            on_progress(1)
        return translations

    def stream(
        self,
        lines: Sequence[str],
        *,
        prefixes: Sequence[str] = (),
        limits: Sequence[int] = (),
        **options: Any,
    ) -> Iterator[tuple[int, Translation]]:
        """As `translate`, but each translation with its line's number as soon as it is found.

        Args:
          lines, prefixes, limits, options: as `translate` takes them.
        """
        search = self.options(**options)
        for name, each in (("prefixes", prefixes), ("limits", limits)):
            if each and len(each) != len(lines):
                raise ValueError(f"there are {len(each)} {name} for {len(lines)} lines")
        ids = self.vocabulary.encode_sources(lines)
        forced_ids = [self.prefix_ids(text, search.max_length) for text in prefixes]
        numbers, sentences = [], []
        for index, (source, prefix) in enumerate(
            zip(ids, forced_ids or [[]] * len(ids), strict=True)
        ):
            if len(source) == 1:  # no text
                empty = [Hypothesis("", 0.0, 0.0)] * search.n_best
                yield index, Translation(empty, truncated=False)
                continue
            cut = _cut(source, search.max_length)
            limit, least = search.limit(len(cut), len(prefix)), search.least(len(cut))
            if limits:
                limit = max(min(limit, limits[index]), least)
            if len(prefix) >= limit:
                raise ValueError(
                    f"the prefix {_shown(prefixes[index])} has {len(prefix)} tokens, which leaves "
                    f"no room in the limit of {limit} for {_shown(lines[index])}"
                )
            seed = zlib.crc32(np.array(source, np.int32).tobytes(), search.seed)
            numbers.append(index)
            sentences.append(Sentence(cut, limit, least, prefix, seed))
        found = engine.translate(
            self.models,
            sentences,
            search.strategy,
            search.weights,
            rows=search.rows,
            longest=search.max_length,
            limit_of=search.limit,
        )
        for number, hypotheses in found:
            index = numbers[number]
            truncated = len(ids[index]) > search.max_length
            yield index, Translation(self._texts(hypotheses), truncated)

    def options(self, **options: Any) -> SearchOptions:
        """The options, with the run's config filled in; ValueError on what cannot be."""
        search = SearchOptions(**options).resolved(self.config.decoding)
        if search.coverage_penalty:
            self.check_attention()
        return search

    def check(
        self, *, prefix: str = "", align: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """ValueError, in one sentence, on options (also those of `align`) that cannot be."""
        self.prefix_ids(prefix, self.options(**options).max_length)
        if align is not None:
            self.check_attention(align.get("layer"), align.get("head"))

    def score(self, pairs: Sequence[tuple[str, str]], **options: Any) -> list[Score]:
        """Log-probabilities of given translations: of each (source, target) pair.

        Sides of more than `max_length` tokens are cut.
        """
        search = self.options(**options)
        ids, truncated = self._encoded_pairs(pairs, search.max_length)
        scores: list[Any] = [None] * len(pairs)
        for index, result in forced(self.models, ids, rows=search.rows, longest=search.max_length):
            scores[index] = Score(
                self.vocabulary.pieces(ids[index][1]),
                result.log_probs.tolist(),
                float(result.log_probs.sum(dtype=np.float64)),
                truncated[index],
            )
        return scores

    def align(
        self,
        sources: Sequence[str],
        targets: Sequence[str | Hypothesis],
        *,
        layer: int | None = None,
        head: int | None = None,
        skip: int = 0,
        **options: Any,
    ) -> list[Alignment]:
        """The word alignment of each source with its target, by cross attention.

        Args:
          sources: text.
          targets: text, or hypotheses of the sources.
          layer, head: of the cross attention, from 0; None = the mean of all.
          skip: words in front of each source that are left out, such as a language's tag.
        """
        search = self.options(**options)
        self.check_attention(layer, head)
        ids, _ = self._encoded_pairs(list(zip(sources, targets, strict=True)), search.max_length)
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
        self, source: str, target: str | Hypothesis | None = None, **options: Any
    ) -> Attention:
        """All attention of one sentence with a target, or with its translation.

        Raises:
          ValueError: the model has no attention, or a side has more tokens than `max_length`.
        """
        search = self.options(**options)
        self.check_attention()
        if target is None:
            target = self.translate([source], **options)[0].hypotheses[0]
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
            if score > NONE / 2
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
        sources = self.vocabulary.encode_sources([source for source, _ in pairs])
        targets = self.vocabulary.encode([t if isinstance(t, str) else "" for _, t in pairs])
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


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _cut(sentence: list[int], max_length: int) -> list[int]:
    """A sentence of at most `max_length` tokens that still closes with the end symbol."""
    return sentence if len(sentence) <= max_length else [*sentence[: max_length - 1], EOS]
