"""BLEU and chrF through sacrebleu, and exact match."""

import time
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF

from transformer_jax.data.corpus import Pair
from transformer_jax.decoding.translator import Translation, Translator

# Where words are not written apart, 13a would see a sentence as one word.
_TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char"}


def score(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str
) -> dict[str, float | int | str]:
    """Corpus scores of translations, one reference a sentence.

    Returns:
      bleu and chrf (0 to 100, cased), bleu_signature and chrf_signature (sacrebleu's),
      exact_match (share of sentences equal to their reference, 0 to 1), sentences.
    """
    if not hypotheses:
        raise ValueError("there is no sentence to score")
    bleu = BLEU(tokenize=_TOKENIZERS.get(target_language.partition("_")[0], "13a"))
    chrf = CHRF()
    matches = sum(h.strip() == r.strip() for h, r in zip(hypotheses, references, strict=True))
    return {
        "bleu": bleu.corpus_score(hypotheses, [references]).score,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
        "exact_match": matches / len(hypotheses),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
        "sentences": len(hypotheses),
    }


def score_translator(
    translator: Translator, pairs: Sequence[Pair], **options: Any
) -> tuple[dict[str, float | int | str], list[Translation]]:
    """Translates the pairs' sources: their `score` with `seconds`, and the translations.

    `options` are those of `Translator.translate`.
    """
    start = time.monotonic()
    translations = translator.translate([pair.source for pair in pairs], **options)
    scores = score(
        [translation.text for translation in translations],
        [pair.target for pair in pairs],
        translator.config.data.target_language,
    )
    return scores | {"seconds": time.monotonic() - start}, translations
