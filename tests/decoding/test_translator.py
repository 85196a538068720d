"""Text in, text out, with a small model of random weights: its translations differ in all."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from transformer_jax.config import Config
from transformer_jax.data.batching import pad_rows
from transformer_jax.data.corpus import read_corpus
from transformer_jax.data.vocabulary import BOS, EOS, PAD, Vocabulary
from transformer_jax.decoding.search import greedy_search
from transformer_jax.decoding.translator import EXTRA_LENGTH, Translator
from transformer_jax.model.transformer import Transformer

PAIRS = list(itertools.islice(read_corpus("numbers:valid", "en", "de"), 300))
# Of lengths in three buckets, in no order, with empty and blank ones between.
LINES = [
    "seven",
    " and ".join(pair.source for pair in PAIRS[:3]),
    "",
    PAIRS[3].source,
    " \t",
    "eleven twelve",
    PAIRS[4].source + ", " + PAIRS[5].source,
    "xyz ü",
    "two",
]


@pytest.fixture(scope="module")
def translator():
    config = Config()
    config.model.num_layers, config.model.model_dim, config.model.num_heads = 1, 16, 2
    config.model.feed_forward_dim = 32
    config.decoding.max_length, config.decoding.beam_size, config.decoding.rows = 64, 3, 8
    vocabulary = Vocabulary.train([PAIRS], 100, "bpe")
    graphdef, params = nnx.split(Transformer(config.model, 100, rngs=nnx.Rngs(0)))
    # Sharper than a fresh model, or all sentences would be translated alike.
    params = jax.tree.map(lambda x: 1.5 * x, params)
    return Translator(graphdef, params, vocabulary, config.validate())


@pytest.fixture(scope="module")
def translations(translator):
    return translator.translate(LINES)


@pytest.fixture(scope="module")
def lengths(translator):
    return [len(ids) for ids in translator.vocabulary.encode(LINES)]


def test_the_lines_fill_several_buckets(lengths, translations):
    assert min(lengths) == 1 and max(lengths) > 32 and any(16 < n <= 32 for n in lengths)
    assert len({translation.hypotheses[0] for translation in translations}) == 8


def test_a_line_does_not_depend_on_its_companions(translator, translations):
    """Equal to the bit, which also shows that the order is kept."""
    for line, together in zip(LINES, translations):
        assert translator.translate([line]) == [together]
    assert translator.translate(LINES[::-1]) == translations[::-1]
    assert translator.translate([line for line in LINES for _ in range(9)]) == [
        translation for translation in translations for _ in range(9)
    ]


def test_empty_and_blank_lines_give_empty_texts(translator):
    for found in (translator.translate(["", " \t"]), translator.translate(["", "a"], n_best=3)[:1]):
        assert {hypothesis.text for each in found for hypothesis in each.hypotheses} == {""}
        assert not any(each.truncated for each in found)
    assert translator.translate([]) == []
    assert len(translator.translate([""], n_best=3)[0].hypotheses) == 3


def test_only_the_number_of_rows_is_shown_in_the_last_digits(translator, translations):
    for one, other in zip(translations[2:6], translator.translate(LINES[2:6], rows=16)):
        assert one.text == other.text
        assert one.hypotheses[0].score == pytest.approx(other.hypotheses[0].score, abs=1e-4)


def test_n_best_lists_are_sorted_and_begin_with_the_best(translator, translations):
    for best, each in zip(translations, translator.translate(LINES, n_best=3)):
        scores = [hypothesis.score for hypothesis in each.hypotheses]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        assert len(best.hypotheses) == 1 and each.text == best.text
        if best.text:
            assert len({hypothesis.log_prob for hypothesis in each.hypotheses}) == 3


def test_a_beam_of_one_is_greedy(translator, lengths):
    lines = [line for line, length in zip(LINES, lengths) if 1 < length <= 16]
    ids = translator.vocabulary.encode(lines)
    model = nnx.merge(translator.graphdef, translator.params)
    tokens, _, log_probs = greedy_search(
        model,
        model.encode(pad_rows(ids, len(ids), 20)),
        np.array([min(len(sentence) + EXTRA_LENGTH, 64) for sentence in ids]),
        max_length=64,
        alpha=0.0,
        bos=BOS,
        eos=EOS,
        pad=PAD,
    )
    for row, found in enumerate(translator.translate(lines, beam_size=1)):
        words = [token for token in tokens[row, 0] if token not in (EOS, PAD)]
        assert found.text == translator.vocabulary.decode(words)
        assert found.hypotheses[0].log_prob == pytest.approx(float(log_probs[row, 0]), abs=1e-3)


def test_the_score_is_the_log_probability_over_the_length_penalty(translator, translations):
    for alpha in (0.0, 1.0):
        for each in translator.translate(["seven", "two"], beam_size=1, length_penalty=alpha):
            best = each.hypotheses[0]
            assert best.score == best.log_prob if alpha == 0 else best.score > best.log_prob
    for each in translations:
        assert not each.text or each.hypotheses[0].log_prob < each.hypotheses[0].score < 0


def test_long_lines_are_cut_and_say_so(translator, lengths, monkeypatch):
    read, cut = [], sorted(lengths)[4]

    def noted(sentences, rows, length):
        read.extend(sentences)
        return pad_rows(sentences, rows, length)

    monkeypatch.setattr("transformer_jax.decoding.translator.pad_rows", noted)
    found = translator.translate(LINES, max_length=cut)
    assert [each.truncated for each in found] == [length > cut for length in lengths]
    assert sorted(map(len, read))[-2:] == [cut, cut]
    assert all(sentence[-1] == EOS for sentence in read)


def test_translations_are_no_longer_than_allowed(translator, lengths, monkeypatch):
    decoded = []
    monkeypatch.setattr(translator.vocabulary, "decode", lambda ids: decoded.append(len(ids)) or "")
    translator.translate(LINES, max_length=20)
    assert max(decoded) == 19  # and the end symbol
    decoded.clear()
    translator.translate(["seven"], beam_size=1)
    assert decoded == [lengths[0] + EXTRA_LENGTH - 1]


def test_what_was_cut_off_does_not_matter(translator):
    line = LINES[1]
    one, other = translator.translate([line, line + " seven" * 30], max_length=16)
    assert one == other and one.truncated


def test_progress_counts_every_line_once(translator):
    finished = []
    translator.translate([*LINES, *LINES], on_progress=finished.append)
    assert sum(finished) == 2 * len(LINES)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_best": 4}, "n_best=4 is more than the beam of 3"),
        ({"n_best": 2, "beam_size": 1}, "n_best=2 is more than the beam of 1"),
        ({"rows": 12}, "rows=12 must be a multiple of 8"),
        ({"max_length": 1}, "max_length=1 at least 2"),
    ],
)
def test_options_that_cannot_be_are_told(translator, options, told):
    with pytest.raises(ValueError, match=told):
        translator.translate(["a"], **options)
