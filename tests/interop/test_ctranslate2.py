"""CTranslate2 computes and finds what the exported model does."""

import numpy as np
import pytest

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.interop import ctranslate2 as interop

TEXTS = ["two hundred and one", "seven", "ninety-nine thousand three hundred"]
MODELS = {
    "post": {"activation": "gelu", "positions": "none"},
    "pre": {"norm": "pre", "attention_bias": True, "output_bias": True, "activation": "silu"},
}


def test_an_rnn_is_refused(random_run, tmp_path):
    with pytest.raises(ValueError, match="config.model.kind=gru cannot be exported to ctranslate2"):
        interop.export(random_run(kind="gru"), tmp_path)


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_translations_are_equal(random_run, translator_of, tmp_path, name):
    library = pytest.importorskip("ctranslate2")
    run = random_run(**MODELS[name])
    interop.export(run, tmp_path)
    model = library.Translator(str(tmp_path), compute_type="float32")
    translator = translator_of(run)
    tokens = [run.vocabulary.pieces(ids[:-1]) for ids in run.vocabulary.encode(TEXTS)]
    for found, score in zip(
        model.score_batch(tokens, tokens), translator.score(list(zip(TEXTS, TEXTS)))
    ):
        np.testing.assert_allclose(found.log_probs, score.log_probs, atol=1e-4)
    options = SearchOptions(beam_size=1, length_penalty=0.0, max_length=20)
    results = model.translate_batch(
        tokens,
        beam_size=1,
        max_decoding_length=19,  # without EOS, which ours counts
        suppress_sequences=[["<pad>"], ["<sos>"]],
    )
    for result, translation in zip(results, translator.translate(TEXTS, options)):
        expected = run.vocabulary.pieces(translation.hypotheses[0].ids)
        assert result.hypotheses[0] == expected
