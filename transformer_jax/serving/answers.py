"""What a request is answered: translations as JSON, or the page of attention of one."""

import dataclasses
import json

import numpy as np

from transformer_jax.decoding import streaming
from transformer_jax.decoding.translator import Attention, Translation, Translator
from transformer_jax.figures.attention_page import attention_page
from transformer_jax.serving.requests import TranslationRequest

_MAX_WEIGHTS = 2_000_000  # of attention in one answer


def as_json(
    translator: Translator, request: TranslationRequest, translations: list[Translation]
) -> bytes:
    answers, weights = [], 0
    for text, translation in zip(request.texts, translations):
        hypotheses, aligned = translation.hypotheses[: request.n_best], []
        translation = translation._replace(hypotheses=hypotheses)
        if request.alignments:
            sources, skip = [text] * len(hypotheses), int(bool(request.target_language))
            aligned = translator.align(sources, hypotheses, request.options, skip=skip)
            weights += sum(x.weights.size for x in aligned)
            if weights > _MAX_WEIGHTS:
                raise ValueError(
                    f"alignments have more than {_MAX_WEIGHTS} weights; ask for fewer or shorter "
                    "texts, or fewer of their translations"
                )
        answers.append(streaming.described(translator.vocabulary, text, translation, aligned))
        if request.attention:
            attention = _attention_of(translator, request, translation)
            answers[-1]["attention"] = {
                name: x.astype(float).round(6).tolist() if isinstance(x, np.ndarray) else x
                for name, x in attention._asdict().items()
            }
    return json.dumps({"translations": answers}, ensure_ascii=False).encode()


def as_page(
    translator: Translator, request: TranslationRequest, translations: list[Translation]
) -> bytes:
    attention = _attention_of(translator, request, *translations)
    return attention_page([attention], title="Attention").encode()


def _attention_of(
    translator: Translator, request: TranslationRequest, translation: Translation
) -> Attention:
    """That of one hypothesis, computed in a batch of its own."""
    if request.hypothesis >= len(translation.hypotheses):
        raise ValueError(f"there are {len(translation.hypotheses)} hypotheses")
    if translation.error:
        raise ValueError(translation.error)
    options = dataclasses.replace(request.options, rows=1)
    hypothesis = translation.hypotheses[request.hypothesis]
    attention = translator.attention(request.texts[0], hypothesis, options)
    weights = sum(x.size for x in attention if isinstance(x, np.ndarray))
    if weights > _MAX_WEIGHTS:
        raise ValueError(f"attention has {weights} weights; at most {_MAX_WEIGHTS} are shown")
    return attention
