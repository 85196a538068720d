"""Options of a search: one dataclass, whose metadata describes each field."""

import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np

from transformer_jax.config import DecodingConfig

EXTRA_LENGTH = 50  # a translation may be this much longer than its source (section 6.1)


def _option(default: Any, help: str, low: float = 0, high: float = 0, *, static=None, needs=""):
    """A field; see `SearchOptions` for its metadata."""
    limits = None if isinstance(default, bool) else (low, high)
    metadata = {"help": help, "range": limits, "static": static, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Options of a search; lengths are in tokens and count EOS.

    Each field's metadata holds its `help`; the `range` that it must be in, whose type is the
    field's (None of a bool); `static`: True where the value decides what is compiled, False where
    the compiled search takes it as an argument (None: compiled without it), None where the search
    does not see it; and the option that it `needs`, if any.
    """

    max_length: int | None = _option(
        None, "Tokens read of a line and of its translation; default: the config's.", 2, 2**20
    )
    rows: int | None = _option(
        None,
        "Sentences at once: 1, eights, 0 = what memory holds; default: the config's.",
        0,
        2**20,
    )
    beam_size: int | None = _option(
        None, "Hypotheses of the beam; 1 = greedy; default: the config's.", 1, 256, static=True
    )
    n_best: int = _option(
        1, "Translations of a line, best first; of samples, those drawn.", 1, 256, static=True
    )
    length_penalty: float | None = _option(
        None, "GNMT's alpha (Wu et al. 2016); default: the config's.", 0.0, 10.0, static=False
    )
    coverage_penalty: float | None = _option(
        None, "GNMT's beta, of source tokens with little attention.", 0.0, 1000.0, static=False
    )
    min_length: int = _option(0, "Minimum tokens of a translation.", 0, 2**20)
    max_length_ratio: float = _option(
        0.0, "Maximum tokens, times those of the source; 0 = 50 more.", 0.0, 1000.0
    )
    min_length_ratio: float = _option(
        0.0, "Minimum tokens, times those of the source.", 0.0, 1000.0
    )
    no_repeat_ngram: int = _option(
        0, "n-grams of this length occur once; 0 = may repeat.", 0, 64, static=True
    )
    sample: bool = _option(
        False, "Draw translations instead of searching for the best.", static=True
    )
    temperature: float = _option(
        1.0, "Of sampling; below 1 sharpens.", 1e-6, 1000.0, static=False, needs="sample"
    )
    top_k: int = _option(
        0, "Most probable tokens to draw from; 0 = all.", 0, 2**31 - 1, static=True, needs="sample"
    )
    top_p: float | None = _option(
        None, "Probability of the tokens to draw from.", 1e-6, 1.0, static=False, needs="sample"
    )
    seed: int = _option(0, "Of sampling.", 0, 2**32 - 1, needs="sample")

    def resolved(self, defaults: DecodingConfig) -> "SearchOptions":
        """With the run's defaults filled in.

        TypeError or ValueError: an option is of another type, out of range or excludes another.
        """
        alpha, beam_size = self.length_penalty, self.beam_size
        if beam_size is None:
            beam_size = 1 if self.sample else defaults.beam_size
        options = dataclasses.replace(
            self,
            beam_size=beam_size,
            length_penalty=defaults.length_penalty if alpha is None else alpha,
            max_length=self.max_length or defaults.max_length,
            rows=defaults.rows if self.rows is None else self.rows,
        )
        options = SearchOptions(**{f.name: _checked(f, getattr(options, f.name)) for f in _FIELDS})
        greedy = options.beam_size == 1
        options = dataclasses.replace(
            options,
            beam_size=options.n_best if self.sample and greedy else options.beam_size,
            # What would have no effect is not compiled.
            coverage_penalty=options.coverage_penalty or None,
            top_p=None if options.top_p == 1.0 else options.top_p,
        )
        for conflict in options._conflicts():
            raise ValueError(conflict)
        return options

    def _conflicts(self) -> Iterator[str]:
        if self.rows % 8 and self.rows != 1:  # a single row cannot depend on its position
            yield f"rows={self.rows} is neither 1 nor a multiple of 8, which exact decoding needs"
        if self.sample and self.beam_size != self.n_best:
            yield (
                f"sample and beam_size={self.beam_size} are two kinds of search; n_best says how "
                "many samples are drawn"
            )
        if self.sample and self.coverage_penalty is not None:
            yield "coverage_penalty ranks the hypotheses of a beam, and sample has none"
        for name in (f.name for f in _FIELDS if f.metadata["needs"] == "sample"):
            if not self.sample and (value := getattr(self, name)) != getattr(SearchOptions, name):
                yield f"{name}={value} needs sample: a beam draws nothing"
        if self.n_best > self.beam_size:
            yield f"n_best={self.n_best} is more than the beam of {self.beam_size} can give"
        if self.min_length > self.max_length:
            yield f"min_length={self.min_length} is more than max_length={self.max_length}"
        if 0 < self.max_length_ratio < (ratio := self.min_length_ratio):
            yield f"min_length_ratio={ratio} is more than max_length_ratio={self.max_length_ratio}"

    def max_tokens(self, length: int, prefix_length: int = 0) -> int:
        """Maximum length of a translation, from the lengths of its source and its prefix."""
        longest = length + prefix_length + EXTRA_LENGTH
        if self.max_length_ratio:
            longest = max(math.floor(length * self.max_length_ratio), 1)
        return min(max(longest, self.min_tokens(length)), self.max_length)

    def min_tokens(self, length: int) -> int:
        """Minimum length of a translation, from the length of its source."""
        minimum = max(self.min_length, math.ceil(length * self.min_length_ratio), 1)
        return min(minimum, self.max_length)


_FIELDS = dataclasses.fields(SearchOptions)


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """The value as a plain bool or number of the field's type, in its range."""
    if value is None and field.default is None:
        return value
    truth = isinstance(value, bool | np.bool_)
    if field.metadata["range"] is None:
        if not truth:
            raise TypeError(f"{field.name} is {value!r}; expected True or False")
        return bool(value)
    low, high = field.metadata["range"]
    kind = numbers.Real if isinstance(low, float) else numbers.Integral
    if truth or not isinstance(value, kind):
        expected = "number" if isinstance(low, float) else "whole number"
        raise TypeError(f"{field.name} is {value!r}; expected a {expected}")
    if not low <= value <= high:
        raise ValueError(f"{field.name}={value} must be in [{low}, {high}]")
    return type(low)(value)
