"""Text in, text out: buckets by length, order, n-best lists and scores.

A sentence's own length decides the shape that it is computed in, and the number of rows
is a constant, so that its translation does not depend on its companions.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from transformer_jax.config import Config
from transformer_jax.data.batching import pad_rows
from transformer_jax.data.vocabulary import BOS, EOS, PAD, Vocabulary
from transformer_jax.decoding.search import beam_search, greedy_search
from transformer_jax.training.checkpoint import load_run

EXTRA_LENGTH = 50  # a translation may be this much longer than its source (section 6.1)
_SHORTEST_BUCKET = 16


class Hypothesis(NamedTuple):
    """One translation: its text, length-penalised score, and natural log-probability."""

    text: str
    score: float
    log_prob: float


class Translation(NamedTuple):
    """The hypotheses of a line, best first, and whether its end was cut off unread."""

    hypotheses: list[Hypothesis]
    truncated: bool

    @property
    def text(self) -> str:
        """The best hypothesis."""
        return self.hypotheses[0].text


@functools.partial(
    jax.jit, static_argnames=("graphdef", "beam_size", "n_best", "max_length", "alpha")
)
def _search(params, source, limit_B, *, graphdef, beam_size, n_best, max_length, alpha):
    model = nnx.merge(graphdef, params)
    memory = model.encode(source)
    options = {"max_length": max_length, "alpha": alpha, "bos": BOS, "eos": EOS, "pad": PAD}
    if beam_size == 1:
        return greedy_search(model, memory, limit_B, **options)
    return beam_search(model, memory, limit_B, beam_size=beam_size, n_best=n_best, **options)


class Translator:
    """Translates lines of text with a model, by the settings of its config."""

    def __init__(self, graphdef: Any, params: Any, vocabulary: Vocabulary, config: Config):
        """From a model as `nnx.split` gives it, its vocabulary, and its run's config."""
        self.graphdef, self.vocabulary, self.config = graphdef, vocabulary, config
        # One device decodes, also where the parameters are replicated over several.
        self.params = jax.device_put(params, jax.local_devices()[0])

    @classmethod
    def from_workdir(
        cls, workdir: str | os.PathLike, *, checkpoint: str = "best", average: int = 1
    ) -> "Translator":
        """Loads what `train.py` left in a workdir.

        Args:
          workdir: of the run.
          checkpoint: "best", "last", or the number of a step.
          average: 1, or the number of last checkpoints whose parameters are averaged
            (section 6.1), whatever `checkpoint` says.

        Raises:
          FileNotFoundError, ValueError: no run there, no checkpoint in it, or no sound one.
        """
        config, vocabulary, graphdef, params = load_run(workdir, checkpoint, average)
        return cls(graphdef, params, vocabulary, config)

    def translate(
        self,
        lines: Sequence[str],
        *,
        beam_size: int = 0,
        n_best: int = 1,
        length_penalty: float | None = None,
        max_length: int = 0,
        rows: int = 0,
        on_progress: Callable[[int], None] = lambda sentences: None,
    ) -> list[Translation]:
        """The translation of each line, in order; an empty line gives an empty text.

        Args:
          lines: text without line ends.
          beam_size, length_penalty, max_length, rows: 0 (None for the penalty) = as the
            run's config has them. Lines longer than `max_length` tokens are cut.
          n_best: hypotheses returned for each line, at most the beam size.
          on_progress: called with the number of lines finished since its last call.
        """
        defaults = self.config.decoding
        beam_size, rows = beam_size or defaults.beam_size, rows or defaults.rows
        max_length = max_length or defaults.max_length
        alpha = defaults.length_penalty if length_penalty is None else length_penalty
        if n_best > beam_size:
            raise ValueError(f"n_best={n_best} is more than the beam of {beam_size} can give")
        if rows % 8 or max_length < 2 or not math.isfinite(alpha):
            raise ValueError(
                f"rows={rows} must be a multiple of 8, max_length={max_length} at least 2, and "
                f"length_penalty={alpha} a finite number"
            )
        ids = self.vocabulary.encode(lines)
        translations = [
            Translation([Hypothesis("", 0.0, 0.0)] * n_best, truncated=False) for _ in lines
        ]
        on_progress(sum(len(sentence) == 1 for sentence in ids))
        for indices, length in _groups([len(sentence) for sentence in ids], rows, max_length):
            source = [_cut(ids[i], max_length) for i in indices]
            limits = np.zeros(rows, np.int32)
            limits[: len(source)] = [min(len(s) + EXTRA_LENGTH, max_length) for s in source]
            found = _search(
                self.params,
                pad_rows(source, rows, length),
                limits,
                graphdef=self.graphdef,
                beam_size=beam_size,
                n_best=n_best,
                max_length=min(length + EXTRA_LENGTH, max_length),
                alpha=float(alpha),
            )
            found = jax.tree.map(np.asarray, found)
            for row, index in enumerate(indices):
                hypotheses = [
                    Hypothesis(
                        self.vocabulary.decode(_words(tokens)), float(score), float(log_prob)
                    )
                    for tokens, score, log_prob in zip(*(x[row] for x in found))
                ]
                translations[index] = Translation(hypotheses, len(ids[index]) > max_length)
            on_progress(len(indices))
        return translations


def _cut(sentence: list[int], max_length: int) -> list[int]:
    """A sentence of at most `max_length` tokens that still closes with the end symbol."""
    return sentence if len(sentence) <= max_length else [*sentence[: max_length - 1], EOS]


def _words(tokens: np.ndarray) -> np.ndarray:
    """The tokens before the end symbol."""
    return tokens[: np.argmax(tokens == EOS)] if EOS in tokens else tokens[tokens != PAD]


def _groups(lengths: Sequence[int], rows: int, max_length: int) -> Iterator[tuple[list[int], int]]:
    """Lines as groups of at most `rows` of one bucket, with its length; empty lines left out.

    Buckets double in length. Inside one, lines go shortest first, so that a group's
    lines end at about the same time.
    """
    order = sorted((i for i, n in enumerate(lengths) if n > 1), key=lambda i: lengths[i])
    buckets: dict[int, list[int]] = {}
    for index in order:
        bucket = _SHORTEST_BUCKET
        while bucket < min(lengths[index], max_length):
            bucket *= 2
        buckets.setdefault(min(bucket, max(max_length, 2)), []).append(index)
    for length, indices in buckets.items():
        for start in range(0, len(indices), rows):
            yield indices[start : start + rows], length
