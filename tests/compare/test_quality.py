"""Confidence intervals, paired significance and quality by length."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from transformer_jax.compare.quality import (
    by_length,
    corpus_scores,
    last_lengths,
    length_unit,
    significance,
    text_lengths,
)
from transformer_jax.evaluation import score

WORDS = "ein kleiner Hund läuft über das grüne Feld und sieht einen großen Ball".split()
RANDOM = np.random.default_rng(0)
REFERENCES = [" ".join(RANDOM.choice(WORDS, RANDOM.integers(4, 14))) for _ in range(60)]


def damaged(share: float) -> list[str]:
    """The references with this share of their words replaced."""
    random = np.random.default_rng(1)
    return [
        " ".join("falsch" if random.random() < share else word for word in line.split())
        for line in REFERENCES
    ]


def test_scores_are_those_of_evaluation_with_an_interval_about_them():
    hypotheses = damaged(0.2)
    scores, plain = corpus_scores(hypotheses, REFERENCES, "de"), score(hypotheses, REFERENCES, "de")
    for name in ("bleu", "chrf"):
        assert scores[name]["score"] == plain[name]
        assert 0 < scores[name]["half_width"] < 15
        assert abs(scores[name]["mean"] - plain[name]) < scores[name]["half_width"]
        assert "|bs:1000|seed:12345|" in scores[f"{name}_signature"]
    assert scores["length_ratio"] == 1.0
    assert json.loads(json.dumps(scores)) == scores


def test_more_sentences_make_a_narrower_interval():
    hypotheses = damaged(0.2)
    few, many = (corpus_scores(hypotheses * k, REFERENCES * k, "de") for k in (1, 9))
    for name in ("bleu", "chrf"):
        assert many[name]["half_width"] == pytest.approx(few[name]["half_width"] / 3, rel=0.2)


def test_the_tokenizer_is_that_of_the_language():
    assert "tok:zh" in corpus_scores(["你好"], ["你好"], "zh_CN")["bleu_signature"]


def test_bleu_is_undefined_where_no_reference_has_four_tokens():
    lines = ["zwei Hunde", "drei", "ein Hund"]
    scores = corpus_scores(lines, lines, "de")
    assert scores["bleu"] is None and scores["chrf"]["score"] > 99 and scores["length_ratio"] == 1
    result = significance(lines, ["zwei", "drei", "vier"], lines, "de")
    assert result["bleu"] is None and result["chrf"]["difference"] < 0
    bins = by_length([1, 2], ["x", "x x x x"], ["x", "x x x x"], "de", 2)
    assert [part["bleu"] is None for part in bins] == [True, False]


def test_the_seed_is_sacrebleus(monkeypatch):
    monkeypatch.setenv("SACREBLEU_SEED", "7")
    system = damaged(0.2)
    first, again = (corpus_scores(system, REFERENCES, "de") for _ in range(2))
    monkeypatch.delenv("SACREBLEU_SEED")
    default = corpus_scores(system, REFERENCES, "de")
    assert first == again and "|seed:7|" in first["bleu_signature"]
    assert first["bleu"]["mean"] != default["bleu"]["mean"]
    assert first["bleu"]["score"] == default["bleu"]["score"]


def test_clear_differences_are_significant_and_have_a_direction():
    good, bad = damaged(0.05), damaged(0.5)
    forwards, backwards = (
        significance(first, second, REFERENCES, "de")
        for first, second in ((bad, good), (good, bad))
    )
    for name in ("bleu", "chrf"):
        assert forwards[name]["p_value"] < 0.01 and backwards[name]["p_value"] < 0.01
        assert forwards[name]["difference"] == -backwards[name]["difference"] > 20
    bleu = BLEU()
    expected = [bleu.corpus_score(system, [REFERENCES]).score for system in (bad, good)]
    assert forwards["bleu"]["difference"] == expected[1] - expected[0]
    assert forwards["sentences"] == 60 and "bs:1000|seed:12345" in forwards["signature"]


def test_small_differences_are_not_significant_and_none_is_certain_to_be_chance():
    first, second = damaged(0.3), damaged(0.3)
    second[0] = REFERENCES[0]
    result = significance(first, second, REFERENCES, "de")
    assert result["bleu"]["difference"] > 0 and result["bleu"]["p_value"] > 0.1
    same = significance(first, first, REFERENCES, "de")
    assert same["bleu"] == same["chrf"] == {"difference": 0.0, "p_value": 1.0}


def test_quality_by_length_finds_where_it_falls():
    """Long sources are translated badly; each bin is scored by its own sentences."""
    good, bad = damaged(0.0), damaged(0.6)
    hypotheses = [b if len(b.split()) > 8 else g for g, b in zip(good, bad)]
    lengths = text_lengths(REFERENCES, "de")
    bins = by_length(lengths, hypotheses, REFERENCES, "de", bins=4)
    assert sum(b["sentences"] for b in bins) == 60 and 3 <= len(bins) <= 4
    assert bins[0]["from"] == min(len(line.split()) for line in REFERENCES)
    assert all(earlier["to"] < later["from"] for earlier, later in zip(bins, bins[1:]))
    assert bins[0]["bleu"]["score"] == pytest.approx(100) and bins[-1]["bleu"]["score"] < 50
    assert all(b["chrf"]["half_width"] >= 0 and b["length_ratio"] == 1.0 for b in bins)
    whole = by_length(lengths, hypotheses, REFERENCES, "de", bins=1)
    assert whole[0]["bleu"] == corpus_scores(hypotheses, REFERENCES, "de")["bleu"]
    assert by_length(lengths, good, REFERENCES, "de", 4)[1]["from"] == bins[1]["from"]


def test_length_ratio_tells_short_translations():
    lines = ["a b c d", "e f g h"]
    assert by_length([4, 4], ["a b", "e f"], lines, "en", 1)[0]["length_ratio"] == 0.5
    assert corpus_scores(["a"], [""], "en")["length_ratio"] is None


@given(st.lists(st.integers(0, 40), min_size=1, max_size=200), st.integers(1, 8))
def test_bins_are_about_equal_and_cover_every_length_once(words, bins):
    words = np.array(words)
    edges = last_lengths(words, bins)
    assert edges == sorted(set(edges)) and edges[-1] == words.max() and len(edges) <= bins
    # A boundary is off its equal share by no more than half of the lengths that tie there.
    until = [0, *((words <= edge).sum() for edge in edges)]
    most = max(np.unique(words, return_counts=True)[1])
    for k in range(1, bins):
        assert min(abs(u - k * len(words) / bins) for u in until) <= most / 2


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="no sentence to score"):
        corpus_scores([], [], "de")
    with pytest.raises(ValueError, match="2 translations do not fit 1 references"):
        significance(["a"], ["a", "b"], ["a"], "de")


def test_languages_without_spaces_are_measured_in_characters():
    assert (length_unit("en"), text_lengths(["two  red dogs", ""], "en")) == ("words", [3, 0])
    assert (length_unit("zh_CN"), text_lengths(["你好 吗", ""], "zh_CN")) == ("characters", [3, 0])


def test_resamples_without_any_match_have_an_interval_too():
    """Their chrF is 0."""
    scores = corpus_scores(["ein Mann", "", ""], ["ein Mann", "zwei", "drei"], "de")
    assert scores["chrf"]["half_width"] > 0
