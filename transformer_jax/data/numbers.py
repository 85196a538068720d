"""The built-in corpus: numbers below a million in words of two languages."""

import functools
import re
from collections.abc import Iterator
from importlib import metadata

import numpy as np

from transformer_jax.data.text_files import language_hint

_NUMBERS = 1_000_000
_HELD_OUT = 1000  # numbers of the validation split, and of the test split


def _numbers(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a split, and which of them are said without their commas.

    All are below a million, in one fixed random order whose first ones are the held-out splits.
    Of "spoken" ones, which are those of "train" as people say them, every fourth is short, of one
    to five digits as often as of any other length, and half have no comma.
    """
    random = np.random.default_rng(0)
    held_out, numbers = np.split(random.permutation(_NUMBERS), [2 * _HELD_OUT])
    splits = {"test": held_out[:_HELD_OUT], "valid": held_out[_HELD_OUT:], "train": numbers}
    if first_last := re.fullmatch(r"(\d+)-(\d+)", split):
        first, last = map(int, first_last.groups())
        splits[split] = np.arange(first, last + 1)
        if not first <= last < _NUMBERS:
            raise ValueError(f"corpus 'numbers:{split}' is no range of numbers below {_NUMBERS}")
    if split == "spoken":
        short = random.random(_NUMBERS // 4) * 10.0 ** random.integers(1, 6, _NUMBERS // 4)
        short = short.astype(int)[~np.isin(short.astype(int), held_out)]
        spoken = np.insert(numbers, np.arange(3, len(numbers), 3)[: len(short)], short)
        return spoken, random.random(len(spoken)) < 0.5
    if split not in splits:
        raise ValueError(
            f"corpus 'numbers:{split}' is none of numbers:train, numbers:spoken, numbers:valid, "
            "numbers:test and a range such as numbers:0-99"
        )
    return splits[split], np.zeros(len(splits[split]), bool)


# A corpus is read for its vocabulary and again for its tokens, and a number takes 0.1 ms.
@functools.lru_cache(1 << 18)
def number_words(number: int, language: str) -> str:
    """A number in words of a language."""
    from num2words import num2words

    return num2words(number, lang=language)


def read_numbers(split: str, *languages: str) -> Iterator[tuple[str, str]]:
    """Pairs of a split; ValueError where there is no such split or language."""
    from num2words import CONVERTER_CLASSES

    numbers, without_commas = _numbers(split)
    for language in languages:
        if language not in CONVERTER_CLASSES:
            raise ValueError(
                f"num2words has no language {language!r}, only "
                f"{', '.join(sorted(CONVERTER_CLASSES))}{language_hint(language)}"
            )
    for number, without in zip(numbers.tolist(), without_commas):
        try:
            source, target = (number_words(number, language) for language in languages)
        except (TypeError, NotImplementedError, OverflowError) as error:
            raise ValueError(f"num2words cannot say {number} in {languages}: {error}") from None
        yield source.replace(",", "") if without else source, target


def versions() -> tuple[str, str]:
    """All that the pairs of a split depend on."""
    return metadata.version("num2words"), np.__version__
