"""Exported programs give the tokens of the package's own search, without the package."""

import functools
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from builders import model_parts, read_pairs, tiny_model_config

pytest.importorskip("flatbuffers")

import jax

from transformer_jax.config import Config
from transformer_jax.data.vocabulary import EOS, Vocabulary
from transformer_jax.decoding.engine import Models
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Translator
from transformer_jax.devices import replicate
from transformer_jax.interop import stablehlo, translate
from transformer_jax.saved_run import SavedRun

PAIRS = read_pairs("numbers:valid", "en", "de")[:100]
# Of both lengths of source, longer than the longest, and without text; more than eight.
LINES = [pair.source for pair in PAIRS[:6]]
LINES += ["one", " and ".join(LINES[:2]), " and ".join(LINES), "", "  seven  ", "u\u0308"]
FIELDS = {
    "post": {"norm": "post", "model_dim": 16},
    "pre": {"norm": "pre", "model_dim": 16, "dtype": "bfloat16", "output_bias": True},
    "lstm": {"kind": "lstm", "attention": "dot", "input_feeding": True, "model_dim": 16},
}
OPTIONS = {
    "post": SearchOptions(beam_size=3, n_best=2, max_length=32),
    "pre": SearchOptions(beam_size=1, min_length=4),  # and ends as soon as it may
    "lstm": SearchOptions(beam_size=2, max_length_ratio=1.5, no_repeat_ngram=2),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A translator by name, and the folder that it is exported to."""

    @functools.cache
    def get(name: str) -> tuple[Translator, pathlib.Path]:
        config = Config(model=tiny_model_config(**FIELDS[name]))
        config.decoding.max_length, config.decoding.rows = 16, 8
        vocabulary = Vocabulary.train([PAIRS], 100, "bpe")
        graphdef, params = model_parts(100, **FIELDS[name])
        params = jax.tree.map(lambda x: 2 * x, params)  # or all sentences are translated alike
        if name == "pre":
            params["embedding"]["bias"][...] = 99.0 * (np.arange(100) == EOS)
        run = SavedRun(config, vocabulary, graphdef, jax.device_get(params))
        folder = tmp_path_factory.mktemp(name)
        stablehlo.export(run, folder, OPTIONS[name])
        models = Models((graphdef,), (replicate(params),))
        translator = Translator(models, vocabulary, config)
        return translator, folder

    return get


@pytest.mark.parametrize("name", FIELDS)
def test_tokens_are_those_of_the_search(exported, name):
    translator, folder = exported(name)
    sources = [translate.source_ids(line, folder) for line in LINES]
    assert max(map(len, sources)) == (OPTIONS[name].max_length or 16)
    assert {source[-1] for source in sources} == {EOS}
    expected = [
        [list(hypothesis.ids) for hypothesis in translation.hypotheses]
        for translation in translator.translate(LINES, OPTIONS[name])
    ]
    assert len({str(x) for x in expected}) > len(LINES) // 2
    assert translate.search(sources, folder) == expected


def test_the_script_needs_no_package(exported):
    """From elsewhere, where the package cannot be imported: one line, and several."""
    translator, folder = exported("post")
    for lines in (LINES[:1], LINES):
        block = "import runpy, sys; sys.modules['transformer_jax'] = None; sys.argv = ['translate']"
        run = f"{block}; runpy.run_path({str(folder / 'translate.py')!r}, run_name='__main__')"
        done = subprocess.run(
            [sys.executable, "-c", run],
            input="".join(f"{line}\n" for line in lines).encode(),
            stdout=subprocess.PIPE,
            cwd=folder.parent,
        )
        expected = translator.translate(lines, OPTIONS["post"])
        texts = [x.text for translation in expected for x in translation.hypotheses]
        assert done.stdout.decode().splitlines() == texts and done.returncode == 0


def test_samples_are_refused(trained, failing, tmp_path):
    flags = "--format=stablehlo", f"--workdir={trained[0]}", f"--output={tmp_path}/new"
    assert "no sampling" in failing("export", *flags, "--sample")
    assert not list(tmp_path.iterdir())
