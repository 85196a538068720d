"""Small random models, and what translates with them."""

import jax
import numpy as np
import pytest
from builders import model_parts, tiny_config

from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.decoding.engine import Models
from transformer_jax.decoding.translator import Translator
from transformer_jax.saved_run import SavedRun

TEXTS = ["two hundred and one", "seven", "ninety-nine thousand three hundred"]


@pytest.fixture(scope="session")
def vocabulary():
    pairs = [(text, text.replace("and", "und")) for text in TEXTS * 4]
    return Vocabulary.train([pairs], 60, "bpe", byte_fallback=False)


@pytest.fixture(scope="session")
def random_run(vocabulary):
    """A function that makes a run whose parameters, the norms' too, are all random."""

    def make(**fields) -> SavedRun:
        config = tiny_config(model={"num_layers": 2, "dropout_rate": 0.0} | fields)
        graphdef, params = model_parts(len(vocabulary), **{"num_layers": 2} | fields)
        random = np.random.default_rng(0)

        def noisy(x):
            return np.asarray(x) + random.normal(scale=0.3, size=x.shape).astype(np.float32)

        return SavedRun(config, vocabulary, graphdef, jax.tree.map(noisy, params))

    return make


@pytest.fixture(scope="session")
def translator_of():
    """A function that makes the translator of a run."""

    def make(run: SavedRun) -> Translator:
        return Translator(Models((run.graphdef,), (run.params,)), run.vocabulary, run.config)

    return make
