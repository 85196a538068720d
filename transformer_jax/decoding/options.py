"""What can be asked of a search, and which of it goes together."""

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
from collections.abc import Callable
from typing import Any

from transformer_jax.config import DecodingConfig
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK
from transformer_jax.decoding.search import Strategy, Weights

EXTRA_LENGTH = 50  # a translation may be this much longer than its source (section 6.1)
MOST_HYPOTHESES = 256  # of one sentence at a time


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Options of a search; 0 (None for the length penalty) leaves what the run's config has.

    Lengths are tokens, the end symbol included.

    Attributes:
      beam_size: hypotheses of the beam; 1 is greedy search.
      n_best: hypotheses returned of each line, best first, or fewer where there are no more;
        when sampling, those drawn.
      length_penalty: GNMT's alpha (Wu et al. 2016, equation 14).
      coverage_penalty: GNMT's beta, for source tokens that got little attention.
      max_length: of a source, whose end is cut off, and of a translation.
      min_length: of a translation.
      max_length_ratio, min_length_ratio: of a translation, times the source's length; 0 = a
        translation may be 50 longer than its source, and as short as it likes.
      no_repeat_ngram: n-grams of this length occur once in a translation; 0 = may repeat.
      sample: draw translations instead of searching for the best.
      temperature: divides the logits; below 1 draws more probable tokens.
      top_k: draw among the k most probable tokens; 0 = all.
      top_p: draw among the most probable tokens that have this share of the probability.
      seed: of the drawing. A line's translation depends on the seed and the line alone.
      rows: sentences that each device translates at a time, a multiple of 8; or 1, which answers
        a single line soonest.
    """

    beam_size: int = 0
    n_best: int = 1
    length_penalty: float | None = None
    coverage_penalty: float = 0.0
    max_length: int = 0
    min_length: int = 0
    max_length_ratio: float = 0.0
    min_length_ratio: float = 0.0
    no_repeat_ngram: int = 0
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    rows: int = 0

    def resolved(self, defaults: DecodingConfig) -> "SearchOptions":
        """With the defaults filled in; ValueError, in one sentence, on what cannot be."""
        alpha = self.length_penalty
        options = dataclasses.replace(
            self,
            beam_size=self.beam_size or (1 if self.sample else defaults.beam_size),
            length_penalty=defaults.length_penalty if alpha is None else alpha,
            max_length=self.max_length or defaults.max_length,
            rows=self.rows or defaults.rows,
        )
        for name, least, most in _RANGES:
            number = numbers.Real if isinstance(least, float) else numbers.Integral
            if not isinstance(getattr(options, name), number):
                kind = "number" if isinstance(least, float) else "whole number"
                raise TypeError(f"{name} is {getattr(options, name)!r}; expected a {kind}")
            if not least <= (value := getattr(options, name)) <= most:
                raise ValueError(f"{name}={value} must be from {least} to {most}")
        options._check_together(self)
        return options

    def _check_together(self, given: "SearchOptions") -> None:
        # Where there is one row, none can depend on its place.
        if self.rows % 8 and self.rows != 1:
            raise ValueError(
                f"rows={self.rows} is neither 1 nor a multiple of 8, which exact decoding needs"
            )
        if self.sample and given.beam_size > 1:
            raise ValueError(
                f"sample and beam_size={self.beam_size} are two kinds of search; n_best says how "
                "many samples are drawn"
            )
        if self.sample and self.coverage_penalty:
            raise ValueError("coverage_penalty ranks the hypotheses of a beam, and sample has none")
        for name in ("temperature", "top_k", "top_p", "seed"):
            if not self.sample and getattr(self, name) != getattr(SearchOptions, name):
                raise ValueError(f"{name}={getattr(self, name)} needs sample: a beam draws nothing")
        if not self.sample and self.n_best > self.beam_size:
            raise ValueError(
                f"n_best={self.n_best} is more than the beam of {self.beam_size} can give"
            )
        if self.min_length > self.max_length:
            raise ValueError(
                f"min_length={self.min_length} is more than max_length={self.max_length}"
            )
        if 0 < self.max_length_ratio < self.min_length_ratio:
            raise ValueError(
                f"min_length_ratio={self.min_length_ratio} is more than "
                f"max_length_ratio={self.max_length_ratio}"
            )

    @property
    def strategy(self) -> Strategy:
        """What of a resolved search is compiled."""
        return Strategy(
            beam_size=self.n_best if self.sample else self.beam_size,
            n_best=self.n_best,
            sample=self.sample,
            top_k=self.top_k,
            nucleus=self.top_p < 1.0,
            no_repeat_ngram=self.no_repeat_ngram if self.no_repeat_ngram < self.max_length else 0,
            coverage=self.coverage_penalty > 0.0,
            bos=BOS,
            eos=EOS,
            pad=PAD,
            unk=UNK,
        )

    @property
    def weights(self) -> Weights:
        """The numbers of a resolved search."""
        return Weights(
            *map(float, (self.length_penalty, self.coverage_penalty, self.temperature, self.top_p))
        )

    def limit(self, length: int, prefix_length: int = 0) -> int:
        """Most tokens of a translation of a source of so many, after a prefix of so many."""
        longest = length + prefix_length + EXTRA_LENGTH
        if self.max_length_ratio:
            longest = max(math.floor(length * self.max_length_ratio), 1)
        return min(max(longest, self.least(length)), self.max_length)

    def least(self, length: int) -> int:
        """Fewest tokens of a translation of a source of so many."""
        least = max(self.min_length, math.ceil(length * self.min_length_ratio), 1)
        return min(least, self.max_length)


def takes_options(method: Callable) -> Callable:
    """Shows the fields of `SearchOptions` in the signature of a method, in place of **options.

    So an editor completes them; a name that is none is a TypeError with the nearest that is.
    """
    signature = inspect.signature(method)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = [
        inspect.Parameter(
            f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type
        )
        for f in dataclasses.fields(SearchOptions)
    ]
    signature = signature.replace(parameters=own + fields)

    @functools.wraps(method)
    def checked(*arguments: Any, **options: Any) -> Any:
        for name in options.keys() - signature.parameters.keys():
            near = difflib.get_close_matches(name, signature.parameters, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"there is no option {name}{hint}")
        return method(*arguments, **options)

    checked.__signature__ = signature
    return checked


# Option, least, most.
_RANGES = (
    ("beam_size", 1, MOST_HYPOTHESES),
    ("n_best", 1, MOST_HYPOTHESES),
    ("length_penalty", 0.0, 10.0),
    ("coverage_penalty", 0.0, 1000.0),
    ("max_length", 2, 2**20),
    ("min_length", 0, 2**20),
    ("max_length_ratio", 0.0, 1000.0),
    ("min_length_ratio", 0.0, 1000.0),
    ("no_repeat_ngram", 0, 64),
    ("temperature", 1e-6, 1000.0),
    ("top_k", 0, 2**31 - 1),
    ("top_p", 1e-6, 1.0),
    ("seed", 0, 2**32 - 1),
    ("rows", 1, 2**20),
)
