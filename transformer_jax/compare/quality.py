"""BLEU and chrF with confidence intervals, their paired significance, and quality by length.

All statistics are those of sacrebleu's paired bootstrap resampling (Koehn 2004; Post 2018): 1,000
resamples, drawn with its default seed or $SACREBLEU_SEED.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sacrebleu.metrics import CHRF
from sacrebleu.significance import PairedTest, Result

from transformer_jax.data.vocabulary import composed
from transformer_jax.evaluation import bleu_metric, bleu_tokenizer, has_bleu

_RESAMPLES = 1000


def corpus_scores(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str
) -> dict[str, Any]:
    """Corpus scores, 0 to 100, with 95 % confidence intervals.

    Returns:
      bleu (None where it is undefined, see `has_bleu`) and chrf, each {score, mean, half_width}:
      the interval is mean - half_width to mean + half_width; bleu_signature and chrf_signature;
      length_ratio, tokens of the hypotheses over those of the references, or None without any.
    """
    hypotheses, references = (list(map(composed, texts)) for texts in (hypotheses, references))
    signatures, (bleu,), (chrf,) = _resample([hypotheses], references, target_language)
    lengths = bleu_metric(target_language).corpus_score(hypotheses, [references])
    return {
        "bleu": bleu and _interval(bleu),
        "chrf": _interval(chrf),
        "bleu_signature": signatures[0],
        "chrf_signature": signatures[1],
        "length_ratio": lengths.sys_len / lengths.ref_len if lengths.ref_len else None,
    }


def significance(
    first: Sequence[str], second: Sequence[str], references: Sequence[str], target_language: str
) -> dict[str, Any]:
    """How much better a second system translates the same sentences.

    Returns:
      bleu (None where it is undefined) and chrf, each {difference, p_value}: the second's score
      less the first's, and the probability of as large a difference, either way, between equally
      good systems; signature, of the test of BLEU; sentences.
    """
    first, second, references = (list(map(composed, x)) for x in (first, second, references))
    signatures, bleu, chrf = _resample([first, second], references, target_language)
    return {
        "bleu": _difference(*bleu) if all(bleu) else None,
        "chrf": _difference(*chrf),
        "signature": signatures[0],
        "sentences": len(references),
    }


def by_length(
    lengths: Sequence[int],
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_language: str,
    bins: int = 6,
) -> list[dict[str, Any]]:
    """Quality in bins of about equally many sentences by the sources' `text_lengths`.

    The bins depend on the lengths alone, so that systems compare, and equal lengths share one:
    of few lengths there are fewer bins.

    Returns:
      for each bin, shortest first: from and to, the first and last length; sentences; bleu, chrf
      and length_ratio as of `corpus_scores`.
    """
    counted, results = np.asarray(lengths), []
    edges = [-1, *last_lengths(counted, bins)]
    for after, last in zip(edges, edges[1:]):
        (chosen,) = np.nonzero((counted > after) & (counted <= last))
        texts = [[side[i] for i in chosen] for side in (hypotheses, references)]
        scores = corpus_scores(*texts, target_language)
        ends = {"from": int(counted[chosen].min()), "to": last, "sentences": len(chosen)}
        results.append(ends | {name: scores[name] for name in ("bleu", "chrf", "length_ratio")})
    return results


def last_lengths(lengths: np.ndarray, bins: int) -> list[int]:
    """The last length of each bin: those nearest to equal shares of the sentences."""
    distinct, counts = np.unique(lengths, return_counts=True)
    until = np.cumsum(counts)
    shares = np.arange(1, bins + 1) * (len(lengths) / bins)
    nearest = np.abs(until[None] - shares[:, None]).argmin(axis=1)
    return distinct[np.unique(nearest)].tolist()


def length_unit(language: str) -> str:
    """What `text_lengths` counts: words, or characters where BLEU has no words to count."""
    return "words" if bleu_tokenizer(language) == "13a" else "characters"


def text_lengths(texts: Sequence[str], language: str) -> list[int]:
    """Words between spaces, or characters that are no spaces, as `length_unit` has it."""
    count = len if length_unit(language) == "words" else lambda words: sum(map(len, words))
    return [count(text.split()) for text in texts]


def _resample(
    systems: Sequence[Sequence[str]], references: Sequence[str], target_language: str
) -> tuple[list[str], list[Result | None], list[Result]]:
    """The signatures of BLEU and chrF, and the results of each system; None for undefined BLEU."""
    for texts in systems:
        if len(texts) != len(references):
            raise ValueError(f"{len(texts)} translations do not fit {len(references)} references")
    if not references:
        raise ValueError("there is no sentence to score")
    bleu, named = bleu_metric(target_language), [(str(i), x) for i, x in enumerate(systems)]
    test = PairedTest(named, {"BLEU": bleu, "chrF": CHRF()}, [references], "bs", _RESAMPLES)
    signatures, results = test()
    bleu_results, chrf_results = (results[name] for name in signatures)
    if not has_bleu(bleu, references):
        bleu_results = [None] * len(systems)
    return [str(signature) for signature in signatures.values()], bleu_results, chrf_results


def _interval(result: Result) -> dict[str, float]:
    values = {"score": result.score, "mean": result.mean, "half_width": result.ci}
    return {name: float(value) for name, value in values.items()}


def _difference(first: Result, second: Result) -> dict[str, float]:
    difference = float(second.score - first.score)
    # sacrebleu calls the difference of a system from itself certain (p = 1 / 1001).
    return {"difference": difference, "p_value": float(second.p_value) if difference else 1.0}
