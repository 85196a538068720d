"""Text in, text out, with a small model of random weights: its translations differ in all."""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import model_parts, read_pairs, tiny_model_config
from flax import nnx

from transformer_jax.config import Config, DecodingConfig
from transformer_jax.data.vocabulary import BOS, EOS, PAD, Vocabulary
from transformer_jax.decoding import alignment, engine, scoring
from transformer_jax.decoding.engine import Models
from transformer_jax.decoding.options import EXTRA_LENGTH, SearchOptions
from transformer_jax.decoding.scoring import TokenPair
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import replicate
from transformer_jax.model.masks import sentence_tokens

PAIRS = read_pairs("numbers:valid", "en", "de")[:300]
SIZES = {"model_dim": 16, "feed_forward_dim": 32}
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


@nnx.jit
def whole_pass(model, source, target):
    """Logits and attention weights by the model itself."""
    memory, encoder = model.encode(source, return_attention=True)
    logits_BTV, decoder = model.decode(memory, target, return_attention=True)
    return logits_BTV, encoder | decoder


@pytest.fixture(scope="module")
def translator():
    config = Config(model=tiny_model_config(**SIZES))
    config.decoding.max_length, config.decoding.beam_size, config.decoding.rows = 64, 3, 8
    vocabulary = Vocabulary.train([PAIRS], 100, "bpe")
    graphdef, params = model_parts(100, **SIZES)
    # Sharper than a fresh model, or all sentences would be translated alike.
    params = jax.tree.map(lambda x: 1.5 * x, params)
    return Translator(Models((graphdef,), (replicate(params),)), vocabulary, config.validate())


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
    for found in (
        translator.translate(["", " \t"]),
        translator.translate(["", "a"], SearchOptions(n_best=3))[:1],
    ):
        assert {hypothesis.text for each in found for hypothesis in each.hypotheses} == {""}
        assert not any(each.truncated for each in found)
    assert translator.translate([]) == []
    assert len(translator.translate([""], SearchOptions(n_best=3))[0].hypotheses) == 3


def test_one_text_gives_one_translation_and_an_iterable_a_list(translator, translations):
    assert translator.translate(LINES[0]) == translations[0]
    assert translator.translate("") == translations[2]
    for lines in (tuple(LINES[:3]), iter(LINES[:3]), np.array(LINES[:3])):
        assert translator.translate(lines) == translations[:3]
    one = translator.translate("seven", prefixes="two")
    assert one == translator.translate(["seven"], prefixes=["two"])[0]
    pair = "seven", "two"
    assert translator.score(pair) == translator.score([list(pair)])[0]
    assert translator.score((pair, pair)) == translator.score(iter([pair, pair]))
    best = translations[0].hypotheses[0]
    assert translator.score(("seven", best)).log_prob == pytest.approx(best.log_prob, abs=1e-3)
    for target in ("two", best):
        (listed,) = translator.align(iter(["seven"]), [target], head=1)
        found = translator.align("seven", target, head=1)
        assert found.links == listed.links and (found.weights == listed.weights).all()


@pytest.mark.parametrize(
    ("method", "arguments", "told"),
    [
        ("translate", (None,), "lines is None (NoneType); expected an iterable, such as a list"),
        ("translate", ({"a": 1},), "lines is {'a': 1} (dict); expected an iterable, such as a "),
        ("translate", (b"a",), "lines is b'a' (bytes); expected an iterable, such as a list, of t"),
        ("translate", ({"a"},), "lines is {'a'} (set); expected an iterable, such as a list, of "),
        ("translate", ([None],), "lines[0] is None (NoneType); expected text"),
        ("translate", (["a", 3],), "lines[1] is 3 (int); expected text"),
        ("score", (None,), "pairs is None (NoneType); expected an iterable, such as a list, of a"),
        ("score", ("ab",), "pairs is 'ab' (str); expected an iterable, such as a list, of a pair"),
        ("score", (["a", "b"],), "pairs[0] is 'a' (str); expected a pair (source, target)"),
        ("score", ([("a", "b"), ("a",)],), "pairs[1] has 1 items; expected source and target"),
        ("score", ([("a", None)],), "pairs[0][1] is None (NoneType); expected text or a Hypo"),
        ("score", (("a", 3),), "pairs[0][1] is 3 (int); expected text or a Hypothesis"),
        ("align", ("a", ["b"]), "sources is 'a' (str); expected an iterable, such as a list, of t"),
        ("align", (["a"], ["b", 3]), "targets[1] is 3 (int); expected text or a Hypothesis"),
        ("attention", (["a"],), "source is ['a'] (list); expected text"),
        ("attention", ("a", 3), "target is 3 (int); expected text or a Hypothesis"),
    ],
)
def test_what_is_no_text_is_told_by_argument_and_index(translator, method, arguments, told):
    with pytest.raises(TypeError, match="^" + re.escape(told)):
        getattr(translator, method)(*arguments)


def test_as_many_targets_as_sources_are_aligned(translator):
    with pytest.raises(ValueError, match="there are 2 targets for 1 sources"):
        translator.align(["a"], ["b", "c"])


@pytest.mark.parametrize(
    "options", [{"sample": "false"}, {"sample": 1}, {"beam_size": True}, {"length_penalty": True}]
)
def test_options_are_of_their_types(options):
    with pytest.raises(TypeError, match="expected (True or False|a (whole )?number)"):
        SearchOptions(**options).resolved(DecodingConfig())


def test_options_are_one_object_of_known_fields(translator):
    with pytest.raises(TypeError, match="unexpected keyword argument 'beam'"):
        SearchOptions(beam=4)
    with pytest.raises(TypeError, match=r"^options is 4 \(int\); expected SearchOptions$"):
        translator.translate("a", 4)
    with pytest.raises(TypeError, match=r"^options is {'n_best': 2} \(dict\); expected SearchO"):
        translator.score(("a", "b"), {"n_best": 2})


@pytest.mark.parametrize("kind", ["bytes", "symbols", "unigram"])
def test_white_space_is_no_text_to_any_vocabulary(translator, kind):
    vocabulary = Vocabulary.train([PAIRS], 300 if kind == "bytes" else 100, kind)
    config = translator.config
    graphdef, params = model_parts(len(vocabulary), **SIZES)
    own = Translator(Models((graphdef,), (replicate(params),)), vocabulary, config)
    spaces = ["", "   ", "\t", "\u3000 \u2003", "\xa0"]
    first, *others = own.translate(spaces)
    assert first.text == "" and others == [first] * 4
    assert own.translate(["seven"], prefixes="  ") == own.translate(["seven"])
    scores = own.score([(text, text) for text in spaces])
    assert len(scores[0].log_probs) == 1 and scores == [scores[0]] * 5


def test_unknown_tokens_are_counted(translator):
    found = translator.translate(["seven", "\u4e00 seven \u4e00", "", "\u4e00"])
    assert [each.unknown for each in found] == [0, 2, 0, 1]
    long = translator.translate("seven " * 30 + "\u4e00", SearchOptions(max_length=8))
    assert long.truncated and long.unknown == 0
    assert translator.score(("\u4e00 seven", "\u4e00 \u4e00")).unknown == 3


def test_a_bad_prefix_is_an_error_at_once_or_that_of_its_line(translator, monkeypatch):
    prefixes = ["two", "\u4e00", "two " * 6, ""]
    with monkeypatch.context() as patch:
        patch.setattr(engine, "translate", None)  # nothing is searched for
        with pytest.raises(ValueError, match=r"^prefixes\[1\]: the vocabulary cannot spell"):
            translator.translate(["seven"] * 4, prefixes=prefixes)
    assert translator.translate(["seven"], prefixes=[]) == [translator.translate("seven")]
    options = SearchOptions(max_length_ratio=2.0, n_best=3)
    found = dict(translator.stream(["seven"] * 4, options, prefixes=prefixes, start=7))
    assert sorted(found) == [7, 8, 9, 10]
    assert [bool(found[id].error) for id in sorted(found)] == [False, True, True, False]
    assert [h.text for id in (8, 9) for h in found[id].hypotheses] == [""] * 6
    assert "no room in the limit of " in found[9].error


def test_only_the_number_of_rows_is_shown_in_the_last_digits(translator, translations):
    lines, options = [LINES[i] for i in (0, 5, 8)], SearchOptions(rows=16)  # of one bucket
    for i, other in zip((0, 5, 8), translator.translate(lines, options)):
        one = translations[i]
        assert one.text == other.text
        assert one.hypotheses[0].score == pytest.approx(other.hypotheses[0].score, abs=1e-4)


def test_n_best_lists_are_sorted_and_begin_with_the_best(translator, translations):
    for best, each in zip(translations, translator.translate(LINES, SearchOptions(n_best=3))):
        scores = [hypothesis.score for hypothesis in each.hypotheses]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        assert len(best.hypotheses) == 1 and each.text == best.text
        if best.text:
            assert len({hypothesis.log_prob for hypothesis in each.hypotheses}) == 3


def test_a_beam_of_one_is_the_most_probable_word_each_time(translator):
    model = nnx.merge(translator.models.graphdefs[0], translator.models.params[0])
    found = translator.translate(["eleven twelve"], SearchOptions(beam_size=1))[0].hypotheses[0]
    source = np.array(translator.vocabulary.encode(["eleven twelve"]))
    source = sentence_tokens(source, np.array([source.shape[1]]))
    target = sentence_tokens(np.array([[BOS, *found.ids]]), np.array([len(found.ids) + 1]))
    log_probs_TV = jax.nn.log_softmax(whole_pass(model, source, target)[0][0])
    log_probs_TV = log_probs_TV.at[:, [PAD, BOS]].set(-np.inf)
    np.testing.assert_array_equal(log_probs_TV.argmax(axis=-1)[:-1], found.ids)
    chosen = log_probs_TV[np.arange(len(found.ids) + 1), [*found.ids, EOS]]
    assert found.log_prob == pytest.approx(float(chosen.sum()), abs=1e-3)


def test_the_score_is_the_log_probability_over_the_length_penalty(translator, translations):
    for alpha in (0.0, 1.0):
        for each in translator.translate(
            ["seven", "two"], SearchOptions(beam_size=1, length_penalty=alpha)
        ):
            best = each.hypotheses[0]
            assert best.score == best.log_prob if alpha == 0 else best.score > best.log_prob
    for each in translations:
        assert not each.text or each.hypotheses[0].log_prob < each.hypotheses[0].score < 0


@pytest.fixture
def asked(monkeypatch):
    """The sentences that the engine is asked to translate."""
    sentences = []
    translate = engine.translate

    def noted(models, wanted, options):
        wanted = list(wanted)
        sentences.extend(wanted)
        return translate(models, wanted, options)

    monkeypatch.setattr(engine, "translate", noted)
    return sentences


def test_long_lines_are_cut_and_say_so(translator, lengths, asked):
    cut = sorted(lengths)[4]
    found = translator.translate(LINES, SearchOptions(max_length=cut))
    assert [each.truncated for each in found] == [length > cut for length in lengths]
    assert sorted(len(sentence.source) for sentence in asked)[-2:] == [cut, cut]
    assert all(sentence.source[-1] == EOS for sentence in asked)


def test_translations_are_as_long_as_allowed(translator, lengths):
    found = translator.translate(LINES, SearchOptions(max_length=20))
    assert max(len(each.hypotheses[0].ids) for each in found) == 19  # and the end symbol
    (one,) = translator.translate(["seven"], SearchOptions(beam_size=1))
    assert len(one.hypotheses[0].ids) == lengths[0] + EXTRA_LENGTH - 1
    long, short = (
        translator.translate(["eleven twelve"], SearchOptions(**options))[0].hypotheses[0].ids
        for options in ({"min_length": 40}, {"max_length_ratio": 0.5})
    )
    assert len(long) >= 39 and len(short) < lengths[5] / 2


@pytest.mark.parametrize(
    ("options", "length", "least", "limit"),
    [
        ({}, 10, 1, 60),
        ({}, 90, 1, 100),
        ({"max_length_ratio": 1.5}, 10, 1, 15),
        ({"max_length_ratio": 0.01}, 10, 1, 1),
        ({"min_length_ratio": 0.55}, 10, 6, 60),
        ({"min_length": 80}, 10, 80, 80),
        ({"min_length": 80, "max_length_ratio": 1.0}, 10, 80, 80),
        ({"min_length_ratio": 20.0}, 10, 100, 100),
    ],
)
def test_lengths_may_be_absolute_or_ratios(translator, options, length, least, limit):
    search = translator.resolved(SearchOptions(max_length=100, **options))
    assert search.min_tokens(length) == least and search.max_tokens(length) == limit


def test_what_was_cut_off_does_not_matter(translator):
    line = LINES[1]
    one, other = translator.translate([line, line + " seven" * 30], SearchOptions(max_length=16))
    assert one == other and one.truncated


def test_progress_counts_every_line_once(translator):
    finished = []
    translator.translate([*LINES, *LINES], on_progress=finished.append)
    assert sum(finished) == 2 * len(LINES)
    stream = translator.stream(LINES, on_progress=finished.append)
    assert len(list(itertools.islice(stream, len(LINES)))) == len(LINES)
    assert sum(finished) == 3 * len(LINES)  # not only once somebody asks for more


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_best": 4}, "n_best=4 is more than the beam of 3"),
        ({"n_best": 2, "beam_size": 1}, "n_best=2 is more than the beam of 1"),
        ({"n_best": 0}, "n_best=0 must be in \\[1, 256\\]"),
        ({"beam_size": -1}, "beam_size=-1 must be in \\[1, 256\\]"),
        ({"rows": 12}, "rows=12 is neither 1 nor a multiple of 8"),
        ({"max_length": 1}, "max_length=1 must be in \\[2, "),
        ({"length_penalty": float("nan")}, "length_penalty=nan must be in \\[0.0, 10.0\\]"),
        ({"length_penalty": -1.0}, "length_penalty=-1.0 must be in \\[0.0"),
        ({"min_length": 30, "max_length": 20}, "min_length=30 is more than max_length=20"),
        (
            {"min_length_ratio": 2.0, "max_length_ratio": 1.0},
            "min_length_ratio=2.0 is more than max_length_ratio=1.0",
        ),
        ({"top_k": 5}, "top_k=5 needs sample"),
        ({"top_p": 0.5, "beam_size": 3}, "top_p=0.5 needs sample"),
        ({"seed": 1}, "seed=1 needs sample"),
        ({"temperature": 0.5}, "temperature=0.5 needs sample"),
        ({"sample": True, "beam_size": 4}, "sample and beam_size=4 are two kinds of search"),
        ({"sample": True, "temperature": 0.0}, "temperature=0.0 must be in \\[1e-06"),
        ({"sample": True, "top_p": 1.5}, "top_p=1.5 must be in \\[1e-06, 1.0\\]"),
        ({"sample": True, "coverage_penalty": 1.0}, "coverage_penalty ranks the hypotheses"),
        ({"length_penalty": float("inf")}, "length_penalty=inf must be in \\[0.0, 10.0\\]"),
        ({"max_length_ratio": float("inf")}, "max_length_ratio=inf must be in \\[0.0"),
        ({"no_repeat_ngram": 3000}, "no_repeat_ngram=3000 must be in \\[0, 64\\]"),
        ({"prefixes": ["a", "b"]}, "there are 2 prefixes for 1 lines"),
        ({"limits": [5, 6]}, "there are 2 limits for 1 lines"),
        (
            {"prefixes": ["seven two one"], "max_length_ratio": 1.0},
            r"^prefixes\[0\]: the prefix 'seven two one' has 5 tokens, .* the limit of 3",
        ),
        ({"prefixes": ["\u4e00"]}, "the vocabulary cannot spell the prefix '\u4e00'"),
        ({"prefixes": ["seven " * 99]}, "has .* tokens, which leaves no room in the limit of 64"),
    ],
)
def test_options_that_cannot_be_are_told(translator, options, told):
    lines = {name: options.pop(name) for name in ("prefixes", "limits") if name in options}
    with pytest.raises(ValueError, match=told):
        translator.translate(["a"], SearchOptions(**options), **lines)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"beam_size": "4"}, "^beam_size is '4'; expected a whole number$"),
        ({"beam_size": 2.5}, "^beam_size is 2.5; expected a whole number$"),
        ({"length_penalty": "1"}, "^length_penalty is '1'; expected a number$"),
    ],
)
def test_options_of_another_type_are_told(translator, options, told):
    with pytest.raises(TypeError, match=told):
        translator.translate(["a"], SearchOptions(**options))


def test_every_option_is_described():
    for field in dataclasses.fields(SearchOptions):
        assert field.metadata["help"].endswith(".") and field.metadata["static"] in (
            True,
            False,
            None,
        )
        assert (field.metadata["range"] is None) == (field.type is bool)


def test_prefixes_begin_the_translations(translator):
    prefixes = ["eleven", "", "two hundred", "", "", "seven", "one", "x", ""]
    found = translator.translate(LINES, SearchOptions(n_best=3), prefixes=prefixes)
    plain = translator.translate(LINES, SearchOptions(n_best=3))
    for line, prefix, each, without in zip(LINES, prefixes, found, plain):
        if prefix and line.strip():
            assert all(h.text.startswith(prefix) for h in each.hypotheses)
        else:
            assert each == without


def test_samples_are_reproducible_and_differ_by_line_and_seed(translator):
    options = {"sample": True, "n_best": 2, "top_k": 20}
    found = translator.translate(LINES, SearchOptions(**options, seed=3))
    assert translator.translate(LINES[::-1], SearchOptions(**options, seed=3)) == found[::-1]
    assert translator.translate(LINES[:1], SearchOptions(**options, seed=3)) == found[:1]
    other = translator.translate(LINES, SearchOptions(**options, seed=4))
    assert sum(one != two for one, two in zip(found, other)) == 7  # all but the empty ones
    assert len({h.text for each in found for h in each.hypotheses if h.text}) == 14


def test_scores_are_those_of_the_translations(translator, translations, lengths):
    pairs = [(line, each.text) for line, each in zip(LINES, translations)]
    for score, each, (_, target), length in zip(
        translator.score(pairs), translations, pairs, lengths
    ):
        ids = tuple(translator.vocabulary.encode([target])[0][:-1])
        assert len(score.tokens) == len(score.log_probs) == min(len(ids) + 1, 64)
        assert score.tokens[-1] == "<eos>" and score.truncated == (max(length, len(ids) + 1) > 64)
        assert score.log_prob == pytest.approx(sum(score.log_probs), abs=1e-4)
        # A text may be spelt in other pieces than those that were found.
        if each.text and ids == each.hypotheses[0].ids:
            assert score.log_prob == pytest.approx(each.hypotheses[0].log_prob, abs=1e-3)
    assert translator.score([]) == []
    alone = translator.score(pairs[3:4])
    assert alone == translator.score(pairs)[3:4] == translator.score(pairs[::-1])[5:6]


def test_scores_of_what_is_cut_say_so(translator):
    long = "eleven twelve " * 30
    scores = translator.score([("seven", long), (long, "seven"), ("seven", "two")])
    assert [score.truncated for score in scores] == [True, True, False]
    assert len(scores[0].log_probs) == 64


def test_attention_is_that_of_the_model(translator):
    found = translator.attention("eleven twelve", "seven")
    vocabulary = translator.vocabulary
    source, target = vocabulary.encode(["eleven twelve", "seven"])
    assert found.source_tokens == vocabulary.pieces(source)
    assert found.target_tokens == vocabulary.pieces(target)
    assert found.input_tokens == ["<sos>", *found.target_tokens[:-1]]
    model = nnx.merge(translator.models.graphdefs[0], translator.models.params[0])
    sources = sentence_tokens(np.array([source]), np.array([len(source)]))
    inputs = sentence_tokens(np.array([[BOS, *target[:-1]]]), np.array([len(target)]))
    _, attention = whole_pass(model, sources, inputs)
    for name in ("encoder", "decoder", "cross"):
        np.testing.assert_allclose(getattr(found, name), attention[name][:, 0], atol=1e-5)
    translated = translator.attention("eleven twelve")
    best = translator.translate(["eleven twelve"])[0].hypotheses[0]
    assert translated.target_tokens == [*vocabulary.pieces(best.ids), "<eos>"]


def test_alignments_are_of_words_by_the_heads_chosen(translator, translations):
    sources, targets = ["two hundred seven", "one"], ["seven one", "two"]
    found = translator.align(sources, targets)
    attention = translator.attention(sources[0], targets[0])
    words = ["two", "hundred", "seven"]
    assert found[0].source_words == words and found[0].target_words == ["seven", "one"]
    assert found[1].pharaoh == "0-0"

    def by_words(pieces):
        """[tokens, words] which word each token is of; the end symbol is of none."""
        number = np.cumsum([piece.startswith("\u2581") for piece in pieces[:-1]]) - 1
        return (
            np.eye(number[-1] + 1)[[*number, -1]]
            * (np.arange(len(pieces)) < len(pieces) - 1)[:, None]
        )

    source, target = by_words(attention.source_tokens), by_words(attention.target_tokens)
    for layer, head, weights_TS in (
        (None, None, attention.cross.mean(axis=(0, 1))),
        (0, 1, attention.cross[0, 1]),
        (0, None, attention.cross[0].mean(axis=0)),
    ):
        (aligned,) = translator.align(sources[:1], targets[:1], layer=layer, head=head)
        wanted = (target / target.sum(axis=0)).T @ weights_TS @ source
        np.testing.assert_allclose(aligned.weights, wanted, atol=1e-5)
        links = sorted((int(s), t) for t, s in enumerate(wanted.argmax(axis=1)))
        assert aligned.links == links
        assert aligned.pharaoh == " ".join(f"{s}-{t}" for s, t in links)
    for bad, told in (({"layer": 1}, "layer 1: they are 0 to 0"), ({"head": -1}, "0 to 1")):
        with pytest.raises(ValueError, match=told):
            translator.align(sources, targets, **bad)


def test_hypotheses_are_aligned_by_their_own_tokens(translator, translations):
    best = [each.hypotheses[0] for each in translations]
    for line, hypothesis, found in zip(LINES, best, translator.align(LINES, best)):
        # Of a line whose end was cut off, the last word may be half read.
        assert "ü" in line or line.split()[: len(found.source_words) - 1] == found.source_words[:-1]
        assert len(found.target_words) == found.weights.shape[0]
        assert "".join(found.target_words) == "".join(hypothesis.text.split())
        assert len(found.links) == (len(found.target_words) if found.source_words else 0)
    assert translator.align([], []) == []


def test_there_may_be_fewer_hypotheses_than_asked_for(translator):
    """Where there is room for the end symbol alone, there is one."""
    (found,) = translator.translate(["seven"], SearchOptions(n_best=3, max_length_ratio=0.01))
    assert [h.text for h in found.hypotheses] == [""] and found.hypotheses[0].score > -100
    prefix = "two hundred seven"
    room = len(translator.vocabulary.encode([prefix])[0])
    (found,) = translator.translate(
        ["seven"], SearchOptions(n_best=3, max_length=room), prefixes=[prefix]
    )
    assert [h.text for h in found.hypotheses] == [prefix]


def test_a_long_prefix_leaves_room_for_what_follows(translator):
    search = translator.resolved(SearchOptions(max_length=200))
    assert (
        search.max_tokens(3) == 53
        and search.max_tokens(3, 60) == 113
        and search.max_tokens(3, 190) == 200
    )
    prefix = " ".join(["two hundred seven"] * 4)
    (found,) = translator.translate(
        ["a"], SearchOptions(max_length=200, beam_size=1), prefixes=[prefix]
    )
    assert found.text.startswith(prefix)


def test_unknown_symbols_are_words_and_a_tag_is_none(translator):
    (plain,) = translator.align(["\u4e00 seven"], ["two"])
    assert len(plain.source_words) == 2
    (tagged,) = translator.align(["\u4e00 seven"], ["two"], skip=1)
    assert tagged.source_words == ["seven"] and tagged.pharaoh == "0-0"
    np.testing.assert_array_equal(tagged.weights, plain.weights[:, 1:])


def test_bytes_are_aligned_by_the_words_they_spell():
    vocabulary = Vocabulary.train([], 0, "bytes")
    source, target = vocabulary.encode(["ab  c\u00fc", "d\ne"])
    cross_TS = np.random.default_rng(0).random((len(target), len(source))).astype(np.float32)
    found = alignment.align(vocabulary, TokenPair(0, source, target), cross_TS)
    assert found.source_words == ["ab", "c\u00fc"] and found.target_words == ["d", "e"]
    wanted = [[cross_TS[t, :2].sum(), cross_TS[t, 4:7].sum()] for t in (0, 2)]
    np.testing.assert_allclose(found.weights, wanted, rtol=1e-6)


def test_spaces_that_end_a_text_or_are_doubled_are_no_words():
    vocabulary = Vocabulary.train([[("ab cd", "a b")] * 9], 11)
    source, target = vocabulary.encode(["ab  cd", "a b "])
    cross_TS = np.ones((len(target), len(source)), np.float32) / len(source)
    found = alignment.align(vocabulary, TokenPair(0, source, target), cross_TS)
    assert found.source_words == ["ab", "cd"] and found.target_words == ["a", "b"]
    assert len(found.links) == 2


def test_limits_are_of_their_lines(translator):
    limits = [5, 3, 4, 7, 9, 6, 8, 2, 10]
    found = translator.translate(LINES, SearchOptions(min_length=2), limits=limits)
    for line, limit, each in zip(LINES, limits, found):
        assert len(each.hypotheses[0].ids) < limit
        assert translator.translate([line], SearchOptions(min_length=2), limits=[limit]) == [each]
    assert any(len(f.hypotheses[0].ids) == n - 1 for f, n in zip(found, limits) if n > 5)


def test_what_decides_the_compiled_search_is_static():
    """The static options are in the jit cache key, the traced ones its arguments."""
    options = {"sample": True, "n_best": 2, "top_k": 7, "top_p": 0.5, "temperature": 2, "seed": 4}
    search = SearchOptions(**options).resolved(DecodingConfig())
    assert search == search.resolved(DecodingConfig()) and search.beam_size == 2
    leaves, key = jax.tree.flatten(search)
    assert leaves == [0.6, 2.0, 0.5] and all(type(leaf) is float for leaf in leaves)

    def key_of(**changed):
        own = SearchOptions(**options | changed).resolved(DecodingConfig())
        return jax.tree.structure(own)

    for same in ({"temperature": 1.0}, {"seed": 2**32 - 1}, {"top_p": 0.9}, {"max_length": 99}):
        assert key_of(**same) == key
    for other in ({"top_k": 8}, {"n_best": 3}, {"no_repeat_ngram": 2}, {"top_p": 1.0}):
        assert key_of(**other) != key
    beams = [SearchOptions(coverage_penalty=beta).resolved(DecodingConfig()) for beta in (0, 2)]
    assert [beam.coverage_penalty for beam in beams] == [None, 2.0]


def test_more_pairs_than_rows_are_scored_each(translator):
    pairs = [(a, b) for a in ("seven", "two", "one", "six") for b in ("ten", "x", "one")] * 4
    scores = translator.score(pairs)
    assert None not in scores and scores[36:] == scores[:12] == translator.score(pairs[:12])


def test_one_layer_or_head_of_several_is_chosen():
    weights = jnp.asarray(np.random.default_rng(0).random((3, 2, 4, 5, 6), np.float32))
    for layer, head in ((None, None), (2, None), (None, 3), (1, 2)):
        own = np.asarray(weights)[slice(None) if layer is None else [layer]]
        own = own[:, :, slice(None) if head is None else [head]]
        found = scoring.mean_attention(weights, layer, head)
        assert found.shape == (1, 2, 1, 5, 6)
        np.testing.assert_allclose(found[0, :, 0], own.mean(axis=(0, 2)), rtol=1e-6)
