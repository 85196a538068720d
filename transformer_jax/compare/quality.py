"""BLEU and chrF with confidence intervals, their paired significance, and quality by length.

All statistics are sacrebleu's own (Post 2018), so that its signatures say how to repeat them.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import CHRF
from sacrebleu.metrics.base import Score
from sacrebleu.significance import PairedTest

from transformer_jax.evaluation import bleu_metric, has_bleu

_RESAMPLES = 1000
_SEED = "12345"  # sacrebleu's default


class _Chrf(CHRF):
    """sacrebleu's chrF, whose resamples without a single match are not of another type.

    They are 0.0 among numbers of NumPy's float32, which `statistics.mean` refuses to add.
    """

    def _compute_score_from_stats(self, stats):
        return super()._compute_score_from_stats([float(x) for x in stats])


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str
) -> dict[str, Any]:
    """Corpus scores with 95 % confidence intervals by bootstrap resampling (Koehn 2004).

    Returns:
      bleu and chrf, each {score, mean, half_width}, 0 to 100: the interval is mean -
      half_width to mean + half_width over 1,000 resamples of the sentences; bleu is None
      where it is undefined (see `has_bleu`); bleu_signature and chrf_signature;
      length_ratio, the tokens of the hypotheses over those of the references (None where the
      references have none).

    ValueError without sentences, or where the two differ in number.
    """
    _check(hypotheses, references)
    bleu, chrf = bleu_metric(target_language), _Chrf()
    with _reproducible():
        bleu_score, chrf_score = (
            metric.corpus_score(hypotheses, [references], n_bootstrap=_RESAMPLES)
            for metric in (bleu, chrf)
        )
    lengths = bleu_score.sys_len, bleu_score.ref_len
    return {
        "bleu": _interval(bleu_score) if has_bleu(bleu, references) else None,
        "chrf": _interval(chrf_score),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
        "length_ratio": lengths[0] / lengths[1] if lengths[1] else None,
    }


def significance(
    first: Sequence[str], second: Sequence[str], references: Sequence[str], target_language: str
) -> dict[str, Any]:
    """Paired bootstrap resampling of two systems' translations of the same sentences.

    Returns:
      bleu and chrf, each {difference, p_value}: the second's score less the first's, and how
      probable so large a difference, either way, is where there is none (Koehn 2004, as
      sacrebleu computes it), bleu None where it is undefined; signature, of the test of BLEU;
      sentences.

    ValueError without sentences, or where the three differ in number.
    """
    _check(first, references)
    _check(second, references)
    bleu_of_language = bleu_metric(target_language)
    metrics = {"BLEU": bleu_of_language, "chrF": _Chrf()}
    with _reproducible():
        systems = [("first", first), ("second", second)]
        test = PairedTest(systems, metrics, [references], "bs", _RESAMPLES, n_jobs=1)
        signatures, results = test()
    del results["System"]
    (bleu_name, bleu), (_, chrf) = results.items()
    return {
        "bleu": _difference(*bleu) if has_bleu(bleu_of_language, references) else None,
        "chrf": _difference(*chrf),
        "signature": str(signatures[bleu_name]),
        "sentences": len(references),
    }


def by_length(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_language: str,
    bins: int = 6,
) -> list[dict[str, Any]]:
    """Quality by the length of the source in words (what blanks separate), shortest first.

    The bins hold about equally many sentences. They depend on the sources alone, so that
    systems compare, and equal lengths share a bin: where few lengths occur, there are
    fewer bins than asked for.

    Returns:
      for each bin: from and to, the shortest and longest source in words; sentences; bleu,
      chrf and length_ratio as of `corpus_scores`.

    ValueError as of `corpus_scores`, and on less than one bin.
    """
    _check(hypotheses, references)
    _check(sources, references)
    if bins < 1:
        raise ValueError(f"bins={bins}: at least one bin was wanted")
    words = np.array([len(source.split()) for source in sources])
    edges = [-1, *_last_lengths(words, bins)]
    results = []
    for after, last in zip(edges, edges[1:]):
        (chosen,) = np.nonzero((words > after) & (words <= last))
        scores = corpus_scores(
            [hypotheses[i] for i in chosen], [references[i] for i in chosen], target_language
        )
        results.append(
            {
                "from": int(words[chosen].min()),
                "to": int(words[chosen].max()),
                "sentences": len(chosen),
                **{name: scores[name] for name in ("bleu", "chrf", "length_ratio")},
            }
        )
    return results


def _last_lengths(words: np.ndarray, bins: int) -> list[int]:
    """The longest length of each bin: those nearest to equal shares of the sentences."""
    lengths, counts = np.unique(words, return_counts=True)
    until = np.cumsum(counts)
    shares = np.arange(1, bins + 1) * (len(words) / bins)
    nearest = np.abs(until[None] - shares[:, None]).argmin(axis=1)
    return lengths[np.unique(nearest)].tolist()


def _interval(score: Score) -> dict[str, float]:
    # sacrebleu has no other way to the interval but to parse what it prints, rounded.
    mean, half_width = float(score._mean), float(score._ci)
    return {"score": float(score.score), "mean": mean, "half_width": half_width}


def _difference(first, second) -> dict[str, float]:
    difference = float(second.score - first.score)
    # sacrebleu calls the difference of a system from itself certain (p = 1 / 1001).
    return {"difference": difference, "p_value": float(second.p_value) if difference else 1.0}


def _check(texts: Sequence[str], references: Sequence[str]) -> None:
    if len(texts) != len(references):
        raise ValueError(f"{len(texts)} sentences do not fit {len(references)} references")
    if not references:
        raise ValueError("there is no sentence to score")


@contextlib.contextmanager
def _reproducible() -> Iterator[None]:
    """sacrebleu with its default seed, which only the environment sets, and without its logs.

    A seed of none, or of 0 in paired tests, would draw other samples each time.
    """
    logger, before = logging.getLogger("sacrebleu"), os.environ.get("SACREBLEU_SEED")
    level = logger.level
    os.environ["SACREBLEU_SEED"] = _SEED
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        del os.environ["SACREBLEU_SEED"]
        if before is not None:
            os.environ["SACREBLEU_SEED"] = before
