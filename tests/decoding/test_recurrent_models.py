"""RNNs behind the same engine, translator and ensemble as the Transformer."""

import jax
import numpy as np
import pytest
from builders import read_pairs

from transformer_jax.config import Config
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.decoding.engine import Models
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import replicate
from transformer_jax.model.build import abstract_model

PAIRS = read_pairs("numbers:valid", "en", "de")[:300]
LINES = ["seven", " and ".join(p.source for p in PAIRS[:3]), "", PAIRS[3].source, "eleven twelve"]
VOCAB = 100
FIELDS = {
    "transformer": {"kind": "transformer", "num_heads": 2, "feed_forward_dim": 16},
    "additive": {"kind": "lstm", "attention": "additive", "bidirectional": True},
    "fed": {"kind": "gru", "attention": "dot", "input_feeding": True},
    "none": {"kind": "lstm", "attention": "none", "context": "every_step"},
}


@pytest.fixture(scope="module")
def vocabulary():
    return Vocabulary.train([PAIRS], VOCAB, "bpe")


@pytest.fixture(scope="module")
def make(vocabulary):
    """A translator of models by name, with random parameters that make sentences differ."""
    made = {}

    def one(name):
        config = Config()
        config.data.batching = "bucketed"
        config.model.num_layers, config.model.model_dim = 2, 16
        config.decoding.max_length, config.decoding.beam_size, config.decoding.rows = 48, 3, 8
        for field, value in FIELDS[name].items():
            setattr(config.model, field, value)
        graphdef, params = abstract_model(config.model, VOCAB)
        leaves, structure = jax.tree.flatten(params)
        random = np.random.default_rng(0)
        large = [(random.normal(size=x.shape) * 0.5).astype(np.float32) for x in leaves]
        return config.validate(), graphdef, replicate(jax.tree.unflatten(structure, large))

    def translator(*names):
        for name in names:
            made[name] = made.get(name) or one(name)
        configs, graphdefs, params = zip(*(made[name] for name in names))
        return Translator(Models(graphdefs, params), vocabulary, configs[0])

    return translator


@pytest.mark.parametrize("name", ["additive", "fed", "none"])
def test_a_line_does_not_depend_on_its_companions(make, name):
    """Equal to the bit, though rows are refilled and hypotheses reordered."""
    translator = make(name)
    together = translator.translate(LINES * 9)
    assert len({t.text for t in together}) >= 4
    assert together == translator.translate(LINES) * 9
    assert translator.translate(LINES[::-1]) == together[: len(LINES)][::-1]


@pytest.mark.parametrize("name", ["additive", "fed", "none"])
def test_the_score_of_a_search_is_that_of_a_teacher_forced_pass(make, name):
    translator = make(name)
    for line, translation in zip(LINES, translator.translate(LINES, SearchOptions(n_best=3))):
        for hypothesis in translation.hypotheses if line else []:
            # Of the same tokens, which text may be segmented into otherwise.
            attended = translator.score([(line, hypothesis.text)])[0]
            if tuple(translator.vocabulary.encode([hypothesis.text])[0][:-1]) == hypothesis.ids:
                assert attended.log_prob == pytest.approx(hypothesis.log_prob, abs=1e-3)


def test_an_rnn_has_cross_attention_alone(make):
    translator = make("additive")
    assert translator.attention_shape == {"cross": (1, 1)}
    attention = translator.attention(LINES[3])
    shape = len(attention.target_tokens), len(attention.source_tokens)
    assert attention.encoder is None and attention.decoder is None
    assert attention.cross.shape == (1, 1, *shape)
    np.testing.assert_allclose(attention.cross.sum(axis=-1), 1, atol=1e-5)
    (alignment,) = translator.align([LINES[3]], ["eins zwei"], layer=0, head=0)
    assert alignment.weights.shape == (2, len(LINES[3].split()))
    with pytest.raises(ValueError, match="no attention head 1: they are 0 to 0"):
        translator.align([LINES[3]], ["eins"], head=1)


@pytest.mark.parametrize("names", [("none",), ("transformer", "none")])
def test_where_there_is_no_attention_all_questions_for_it_are_refused(make, names):
    translator = make(*names)
    assert "cross" not in translator.attention_shape
    for question in (
        lambda: translator.attention("seven"),
        lambda: translator.align(["seven"], ["sieben"]),
        lambda: translator.check(align={}),
        lambda: translator.check(SearchOptions(coverage_penalty=0.2)),
        lambda: translator.translate(["seven"], SearchOptions(coverage_penalty=0.2)),
    ):
        with pytest.raises(ValueError, match="no attention"):
            question()
    assert translator.translate(["seven"])[0].hypotheses


def test_a_transformer_and_an_rnn_vote_together(make):
    translator = make("transformer", "additive")
    assert translator.attention_shape == {"cross": (2, 1)}
    attention = translator.attention(LINES[3], "eins zwei")
    assert attention.encoder is None and attention.cross.shape[:2] == (2, 1)
    names = ("transformer", "additive")
    alone = [make(name).attention(LINES[3], "eins zwei").cross for name in names]
    for layer, weights in enumerate(alone):
        expected = weights.mean(axis=(0, 1))
        np.testing.assert_allclose(attention.cross[layer, 0], expected, atol=1e-5)


def test_a_sentence_longer_than_the_model_takes_has_no_picture(make):
    with pytest.raises(ValueError, match="more than max_length=48 tokens"):
        make("additive").attention("seven " * 60)
