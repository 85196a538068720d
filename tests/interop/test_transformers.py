"""transformers computes what the exported model computes."""

import jax
import numpy as np
import pytest

from transformer_jax.data.vocabulary import BOS, Vocabulary
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.interop import transformers as interop
from transformer_jax.interop.parameters import halves, reordered, to_plain

TEXTS = ["two hundred and one", "seven", "ninety-nine thousand three hundred"]
MODELS = {
    "post": {"activation": "gelu"},
    "pre": {"norm": "pre", "attention_bias": True, "output_bias": True, "activation": "silu"},
}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"kind": "lstm"}, "config.model.kind=lstm cannot be exported to transformers"),
        ({"positions": "none"}, "config.model.positions=none cannot be exported to transformers"),
    ],
)
def test_what_it_cannot_express_is_refused(random_run, tmp_path, fields, told):
    with pytest.raises(ValueError, match=told):
        interop.export(random_run(**fields), tmp_path)


def test_a_permutation_of_the_states_is_an_equal_model(random_run):
    """Without positions, which are not permuted."""
    run = random_run(positions="none", **MODELS["pre"])
    plain = to_plain(run.params)
    random = np.random.default_rng(1).permutation(8)
    for order in (random, np.argsort(random)):
        before, plain = plain, reordered(plain, order)
        assert any((before[name] != plain[name]).any() for name in plain)
    jax.tree.map(np.testing.assert_array_equal, plain, to_plain(run.params))
    assert halves(6).tolist() == [0, 2, 4, 1, 3, 5]


@pytest.fixture(scope="module")
def hub():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module", params=MODELS)
def exported(request, hub, random_run, tmp_path_factory):
    """A run, and the folder that it was exported to."""
    run, folder = random_run(**MODELS[request.param]), tmp_path_factory.mktemp(request.param)
    interop.export(run, folder)
    return run, folder


pytestmark = pytest.mark.filterwarnings("ignore")  # of the library itself


def test_log_probabilities_are_equal(exported, translator_of, hub):
    import torch

    run, folder = exported
    model = hub.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    scores = translator_of(run).score([(text, text) for text in TEXTS])
    for text, score in zip(TEXTS, scores):
        (source,) = (target,) = run.vocabulary.encode([text])
        ids = [torch.tensor([x]) for x in (source, [BOS, *target[:-1]])]
        with torch.no_grad():
            logits = model(input_ids=ids[0], decoder_input_ids=ids[1]).logits[0]
        log_probs = logits.log_softmax(-1)[range(len(target)), target]
        np.testing.assert_allclose(log_probs, score.log_probs, atol=1e-4)


def test_search_finds_the_same(exported, translator_of, hub):
    run, folder = exported
    beam = 1 if run.config.model.norm == "post" else 4
    model = hub.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    tokenizer = hub.AutoTokenizer.from_pretrained(folder)
    options = SearchOptions(beam_size=beam, length_penalty=0.0, max_length=20)
    ours = translator_of(run).translate(TEXTS, options)
    for text, translation in zip(TEXTS, ours):
        inputs = tokenizer([text], return_tensors="pt")
        search = {"num_beams": beam, "max_length": 21, "length_penalty": 0.0}
        found = model.generate(**inputs, **search)[0].tolist()
        assert found[1:-1] == list(translation.hypotheses[0].ids)
        assert tokenizer.decode(found, skip_special_tokens=True) == translation.text.strip()


def test_the_generation_config_is_the_runs(exported, hub):
    run, folder = exported
    found = hub.GenerationConfig.from_pretrained(folder)
    assert (found.num_beams, found.max_length) == (2, 24 + 1)  # and BOS
    assert (found.length_penalty, found.early_stopping) == (0.6, "never")


@pytest.mark.parametrize("kind", ["unigram", "bpe", "bytes", "symbols"])
def test_the_tokenizer_gives_the_same_ids(hub, random_run, tmp_path, kind):
    size = {"unigram": 25}.get(kind, 50)
    pairs = [[(text, text) for text in TEXTS * 4]]
    vocabulary = Vocabulary.train(pairs, size, kind, byte_fallback=False)
    run = random_run()._replace(vocabulary=vocabulary)
    interop.write_tokenizer(run, tmp_path)
    tokenizer = hub.AutoTokenizer.from_pretrained(tmp_path)
    texts = [
        *TEXTS,
        " >>de<< two",
        " two  seven\u00a0one ",
        "Zwei\tna\u0308chste",
        "<pad> 서울 \u1100\u1161",
        "",
    ]
    assert tokenizer(texts).input_ids == vocabulary.encode_sources(texts)
    assert tokenizer(text_target=texts).input_ids == vocabulary.encode(texts)
    for ids in vocabulary.encode(TEXTS):
        assert tokenizer.decode(ids, skip_special_tokens=True) == vocabulary.decode(ids)
