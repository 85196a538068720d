"""Text in, text out: translations, scores, alignments and attention of a trained model."""

import itertools
import os
import reprlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.config import Config
from transformer_jax.data.vocabulary import BOS, EOS, UNK, Vocabulary
from transformer_jax.decoding import alignment, engine, scoring
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.decoding.engine import Models, Sentence, in_order
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.scoring import Scored, TokenPair
from transformer_jax.decoding.search import NEG_INF, Hypotheses
from transformer_jax.devices import replicate
from transformer_jax.saved_run import load_run


class Hypothesis(NamedTuple):
    """One translation."""

    text: str  # detokenised
    score: float  # log-probability over the length penalty, plus coverage penalty
    log_prob: float
    ids: tuple[int, ...] = ()  # its tokens, without EOS


class Translation(NamedTuple):
    """The translations of a text."""

    hypotheses: list[Hypothesis]  # best first; without text, empty ones
    truncated: bool  # whether the end of the source was cut off
    unknown: int = 0  # source tokens that the vocabulary does not know
    error: str = ""  # why it was not translated

    @property
    def text(self) -> str:
        """The best hypothesis."""
        return self.hypotheses[0].text


class Score(NamedTuple):
    """The score of a given translation."""

    tokens: list[str]  # of the target, with EOS
    log_probs: list[float]  # of each token
    log_prob: float  # their sum
    truncated: bool  # whether the end of a side was cut off
    unknown: int = 0  # tokens of both sides that the vocabulary does not know


class Attention(NamedTuple):
    """All attention of a sentence pair, float32; RNNs have cross attention alone.

    Row t of `decoder` and `cross` belongs to the position that reads input_tokens[t] and
    predicts target_tokens[t].
    """

    source_tokens: list[str]  # S pieces, closed by EOS
    input_tokens: list[str]  # T pieces that the decoder reads, from BOS
    target_tokens: list[str]  # T pieces that it predicts, closed by EOS
    encoder: np.ndarray | None  # [L, H, S, S]
    decoder: np.ndarray | None  # [L, H, T, T]
    cross: np.ndarray  # [L, H, T, S]


class Translator:
    """Translates with a model or an ensemble; options default to the (first) run's config."""

    def __init__(self, models: Models, vocabulary: Vocabulary, config: Config):
        self.models, self.vocabulary, self.config = models.prepared(), vocabulary, config

    @classmethod
    def from_workdir(
        cls,
        workdir: str | os.PathLike | Sequence[str | os.PathLike],
        *ensemble: str | os.PathLike,
        checkpoint: str | int = "best",
        average: int = 1,
    ) -> "Translator":
        """Loads the model of a run, or an ensemble.

        Args:
          workdir: of the run, or of several.
          ensemble: further workdirs with the same vocabulary: the mean of the models'
            probabilities decides.
          checkpoint: "best", "last", or a step.
          average: 1, or the number of last checkpoints to average (section 6.1).

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
        folders = _list("workdir", folders, str | os.PathLike, "the name of a folder")
        if not folders:
            raise ValueError("workdir names no folder")
        runs = [load_run(folder, str(checkpoint), average) for folder in folders]
        configs, vocabularies, graphdefs, params = zip(*runs)
        for folder, vocabulary in zip(folders, vocabularies):
            if vocabulary.fingerprint() != vocabularies[0].fingerprint():
                raise ValueError(
                    f"{folder} has another vocabulary than {folders[0]}: models of an ensemble "
                    "must share one"
                )
        models = Models(graphdefs, tuple(replicate(x, local=True) for x in params))
        return cls(models, vocabularies[0], configs[0])

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
          lines: texts without line ends, or one text; an empty one has an empty translation.
          prefixes: beginnings that the translations must have, one a line, or one for all.
          limits: further limits of the translations' tokens, one a line, or none.
          on_progress: called with the number of lines finished since its last call.
        """
        single = isinstance(lines, str)
        more = {"prefixes": prefixes, "limits": limits, "on_progress": on_progress}
        results = self.stream([lines] if single else lines, options, **more)

        def sound() -> Iterator[tuple[int, Translation]]:
            for index, translation in results:
                if translation.error:  # comes before anything is searched for
                    raise ValueError(f"prefixes[{index}]: {translation.error}")
                yield index, translation

        translations = list(in_order(sound()))
        return translations[0] if single else translations

    def stream(
        self,
        lines: Iterable[str],
        options: SearchOptions | None = None,
        *,
        prefixes: str | Iterable[str] = "",
        limits: Iterable[int] = (),
        on_progress: Callable[[int], None] = lambda sentences: None,
        start: int = 0,
    ) -> Iterator[tuple[int, Translation]]:
        """As `translate`, but yields (id, translation) as lines are finished.

        An id is the line's index, counted from `start`. A prefix that cannot be is the
        `error` of its line's translation.
        """
        options = self.resolved(options)
        lines = _list("lines", lines)
        prefixes = [prefixes] * len(lines) if isinstance(prefixes, str) else prefixes
        prefixes = _list("prefixes", prefixes) or [""] * len(lines)
        limits = _list("limits", limits, int | np.integer, "a number") or [None] * len(lines)
        for name, each in (("prefixes", prefixes), ("limits", limits)):
            if len(each) != len(lines):
                raise ValueError(f"there are {len(each)} {name} for {len(lines)} lines")
        sources = self.vocabulary.encode_sources(map(_without_blank, lines))
        sentences: dict[int, Sentence] = {}
        for id, source, prefix, limit in zip(itertools.count(start), sources, prefixes, limits):
            sentence = self._sentence(id, source, prefix, limit, options)
            if isinstance(sentence, Sentence):
                sentences[id] = sentence
            else:
                on_progress(1)
                yield id, sentence
        for id, hypotheses in engine.translate(self.models, sentences.values(), options):
            truncated = len(sources[id - start]) > options.max_length
            unknown = sentences[id].source.count(UNK)
            on_progress(1)
            yield id, Translation(self._texts(hypotheses), truncated, unknown)

    def _sentence(
        self, id: int, source: list[int], prefix: str, limit: int | None, options: SearchOptions
    ) -> Sentence | Translation:
        """The engine's sentence, or the empty translation of one without text or room."""
        empty = Translation([Hypothesis("", 0.0, 0.0)] * options.n_best, truncated=False)
        if len(source) == 1:
            return empty
        cut = _cut(source, options.max_length)
        shortest = options.min_tokens(len(cut))

        def longest(prefix_length: int) -> int:
            tokens = options.max_tokens(len(cut), prefix_length)
            return tokens if limit is None else max(min(tokens, limit), shortest)

        try:
            prefix_ids = self._prefix_ids(prefix, longest)
        except ValueError as error:
            return empty._replace(error=str(error))
        seed = zlib.crc32(np.array(source, np.int32).tobytes(), options.seed)
        return Sentence(id, cut, longest(len(prefix_ids)), shortest, prefix_ids, seed)

    def _prefix_ids(self, prefix: str, longest: Callable[[int], int]) -> list[int]:
        """A prefix's tokens; ValueError unless it fits what is `longest` for its length."""
        ids = self.vocabulary.encode([prefix.rstrip()])[0][:-1] if prefix else []
        if UNK in ids:
            raise ValueError(f"the vocabulary cannot spell the prefix {_shown(prefix)}")
        if len(ids) >= (limit := longest(len(ids))):
            raise ValueError(
                f"the prefix {_shown(prefix)} has {len(ids)} tokens, which leaves no room in the "
                f"limit of {limit}"
            )
        return ids

    def _texts(self, hypotheses: Hypotheses) -> list[Hypothesis]:
        return [
            Hypothesis(self.vocabulary.decode(ids), float(score), float(log_prob), ids)
            for tokens, score, log_prob in zip(*hypotheses)
            if score > NEG_INF / 2
            for ids in [tuple(tokens[: int(np.argmax(tokens == EOS))].tolist())]
        ]

    def resolved(self, options: SearchOptions | None = None) -> SearchOptions:
        """The options with the run's defaults filled in; TypeError or ValueError on bad ones."""
        _check("options", options, SearchOptions | None, "SearchOptions")
        options = (options or SearchOptions()).resolved(self.config.decoding)
        if options.coverage_penalty is not None:
            self.check_attention()
        return options

    def check(
        self,
        options: SearchOptions | None = None,
        *,
        prefix: str = "",
        align: dict[str, Any] | None = None,
    ) -> None:
        """ValueError on options, a prefix or options of `align` that cannot be."""
        max_length = self.resolved(options).max_length
        self._prefix_ids(prefix, lambda length: max_length)
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
        pairs = _list("pairs", pairs, list | tuple, "a pair (source, target) of texts")
        for index, pair in enumerate(pairs):
            if len(pair) != 2:
                raise TypeError(f"pairs[{index}] has {len(pair)} items; expected source and target")
            _check(f"pairs[{index}][0]", pair[0], str, "text")
            _check(f"pairs[{index}][1]", pair[1], *_TARGET)
        scores = []
        for pair, truncated, scored in self._scored(pairs, self.resolved(options)):
            log_prob = float(scored.log_probs.sum(dtype=np.float64))
            unknown = pair.source.count(UNK) + pair.target.count(UNK)
            tokens = self.vocabulary.pieces(pair.target)
            scores.append(Score(tokens, scored.log_probs.tolist(), log_prob, truncated, unknown))
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
        self.check_attention(layer, head)
        sources, targets = _list("sources", sources), _list("targets", targets, *_TARGET)
        if len(sources) != len(targets):
            raise ValueError(f"there are {len(targets)} targets for {len(sources)} sources")
        pairs, options = list(zip(sources, targets)), self.resolved(options)
        return [
            alignment.align(self.vocabulary, pair, scored.attention["cross"][0, 0], skip)
            for pair, _, scored in self._scored(pairs, options, (layer, head))
        ]

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
        resolved = self.resolved(options)
        self.check_attention()
        _check("source", source, str, "text")
        if target is None:
            target = self.translate(source, options).hypotheses[0]
        _check("target", target, *_TARGET)
        ((pair, truncated, scored),) = self._scored([(source, target)], resolved, "all")
        if truncated:
            raise ValueError(
                f"{_shown(source)} or its translation has more than max_length="
                f"{resolved.max_length} tokens"
            )
        pieces = self.vocabulary.pieces
        tokens = pieces(pair.source), pieces([BOS, *pair.target[:-1]]), pieces(pair.target)
        return Attention(*tokens, *map(scored.attention.get, ("encoder", "decoder", "cross")))

    def _scored(
        self,
        texts: Sequence[tuple[str, str | Hypothesis]],
        options: SearchOptions,
        attention: scoring.Wanted = None,
    ) -> Iterator[tuple[TokenPair, bool, Scored]]:
        """Of each pair of texts, in order: its tokens, whether a side was cut, and its scores."""
        sources = self.vocabulary.encode_sources(_without_blank(source) for source, _ in texts)
        targets = self.vocabulary.encode(
            _without_blank(target) if isinstance(target, str) else "" for _, target in texts
        )
        pairs, truncated = [], []
        for id, (source, target, (_, given)) in enumerate(zip(sources, targets, texts)):
            target = [*given.ids, EOS] if isinstance(given, Hypothesis) else target
            truncated.append(max(len(source), len(target)) > options.max_length)
            cut = (_cut(side, options.max_length) for side in (source, target))
            pairs.append(TokenPair(id, *cut))
        scores = scoring.score(self.models, pairs, options, attention)
        return zip(pairs, truncated, in_order(scores))

    @property
    def attention_shape(self) -> dict[str, tuple[int, int]]:
        """Layers and heads of the models' attention: "encoder", "decoder", "cross", if any."""
        return self.models.merged().attention_shape

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
    """TypeError where an argument is not of a kind."""
    if not isinstance(value, kind):
        what = f"{reprlib.repr(value)} ({type(value).__name__})"
        raise TypeError(f"{name} is {what}; expected {expected}")


def _list(name: str, values: Any, kind: Any = str, expected: str = "text") -> list[Any]:
    """The items of an iterable, each of a kind; TypeError says which is not."""
    # Those of a text are letters, and those of a dict or set in no order of the user's.
    no_list = isinstance(values, str | bytes | dict | set)
    _check(name, values, () if no_list else Iterable, f"an iterable, such as a list, of {expected}")
    values = list(values)
    for index, value in enumerate(values):
        _check(f"{name}[{index}]", value, kind, expected)
    return values


def _without_blank(text: str) -> str:
    """The text, "" for white space alone, which is tokens to some vocabularies."""
    return text if text.strip() else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}...")


def _cut(ids: list[int], max_length: int) -> list[int]:
    """At most `max_length` tokens that still close with EOS."""
    return ids if len(ids) <= max_length else [*ids[: max_length - 1], EOS]
