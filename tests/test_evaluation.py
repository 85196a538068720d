"""BLEU, chrF, exact match."""

import types

import pytest

from transformer_jax.data.corpus import Pair
from transformer_jax.decoding.translator import Hypothesis, Translation
from transformer_jax.evaluation import score, score_translator


def test_bleu_is_the_textbook_value():
    scores = score(["the cat sat on the mat"], ["the cat sat on a mat"], "en")
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4))
    assert scores["exact_match"] == 0.0 and scores["sentences"] == 1
    assert 50 < scores["chrf"] < 90


def test_equal_texts_score_100_whatever_the_ends_blanks():
    texts = ["ein ganz kurzer Satz .", "und noch ein Satz ."]
    scores = score([text + " " for text in texts], texts, "de")
    assert scores["bleu"] == pytest.approx(100) and scores["chrf"] == pytest.approx(100)
    assert scores["exact_match"] == 1.0


def test_scores_are_cased():
    scores = score(["THE CAT SAT ON", "a b c d"], ["the cat sat on", "a b c d"], "en")
    assert scores["bleu"] < 100 and scores["chrf"] < 100 and scores["exact_match"] == 0.5


@pytest.mark.parametrize(
    ("language", "tokenizer"), [("de", "13a"), ("zh", "zh"), ("zh_CN", "zh"), ("ja", "char")]
)
def test_signatures_say_how_it_was_scored(language, tokenizer):
    scores = score(["a"], ["a"], language)
    assert f"tok:{tokenizer}|" in scores["bleu_signature"]
    assert "case:mixed" in scores["bleu_signature"] and "nrefs:1" in scores["bleu_signature"]
    assert "nc:6|nw:0" in scores["chrf_signature"] and "version:" in scores["chrf_signature"]


def test_nothing_to_score_and_missing_references_are_errors():
    with pytest.raises(ValueError, match="no sentence to score"):
        score([], [], "de")
    with pytest.raises(ValueError):
        score(["a", "b"], ["a"], "de")


def test_a_translator_is_scored_by_its_best_hypotheses():
    def translate(lines, *, beam_size, on_progress):
        on_progress(len(lines))
        best = [Hypothesis(line.upper(), 0.0, 0.0) for line in lines]
        return [Translation([h] + [Hypothesis("no", -1.0, -1.0)] * beam_size, True) for h in best]

    data = types.SimpleNamespace(target_language="en")
    translator = types.SimpleNamespace(translate=translate, config=types.SimpleNamespace(data=data))
    scores, translations = score_translator(
        translator, [Pair("a b c d", "A B C D"), Pair("x", "Y")], beam_size=2
    )
    assert scores["exact_match"] == 0.5 and scores["seconds"] >= 0
    assert scores["truncated"] == 2
    assert [translation.text for translation in translations] == ["A B C D", "X"]
