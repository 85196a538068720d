"""BLEU and chrF through sacrebleu, and exact match."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from tqdm import tqdm

from transformer_jax.data.corpus import Pair
from transformer_jax.decoding.translator import Translation, Translator

logger = logging.getLogger(__name__)

# Where words are not written apart, 13a would see a sentence as one word.
_TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char"}


def bleu_metric(target_language: str) -> BLEU:
    """sacrebleu's BLEU with the tokenizer that fits the language, such as zh or zh_CN."""
    return BLEU(tokenize=_TOKENIZERS.get(target_language.partition("_")[0], "13a"))


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
    bleu, chrf = bleu_metric(target_language), CHRF()
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
    """Translates the pairs' sources: their `score`, and the translations.

    The scores have `seconds` too, and `truncated`, the number of sources whose end was cut
    off. `options` are those of `Translator.translate`; without an `on_progress` among
    them, a bar on stderr shows what takes long.
    """
    start = time.monotonic()
    with tqdm(total=len(pairs), unit="line", desc="translating", delay=5) as bar:
        options = {"on_progress": bar.update} | options
        translations = translator.translate([pair.source for pair in pairs], **options)
    truncated = sum(translation.truncated for translation in translations)
    if truncated:
        logger.warning("%d sources are longer than max_length: their ends were cut", truncated)
    scores = score(
        [translation.text for translation in translations],
        [pair.target for pair in pairs],
        translator.config.data.target_language,
    )
    return scores | {"truncated": truncated, "seconds": time.monotonic() - start}, translations
