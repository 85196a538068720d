"""The whole decoder, encoder and search, as StableHLO programs of `jax.export`."""

import dataclasses
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.checksums import flatten, unflatten
from transformer_jax.config import DecodingConfig
from transformer_jax.data.vocabulary import PAD
from transformer_jax.decoding import search
from transformer_jax.decoding.engine import IDS, Models, bucket_lengths
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.search import Constraints, Search
from transformer_jax.decoding.translator import Translator
from transformer_jax.interop import package
from transformer_jax.model.masks import sentence_tokens
from transformer_jax.saved_run import VOCABULARY_FILE, SavedRun

PLATFORMS = ("cpu", "cuda", "tpu")

Arrays = dict[str, jax.Array]


def export(run: SavedRun, folder: pathlib.Path, options: SearchOptions | None = None) -> None:
    """Writes programs for one sentence and for `rows`, parameters, vocabulary, and translate.py.

    A program decodes `rows` sources of at most `length` tokens: from parameters and ids
    [rows, length], closed by EOS and padded, to a dict as of `Hypotheses`. These are the shapes
    of `decoding.engine`, so that the translations are the same.

    Raises:
      ValueError: flatbuffers is not installed, the options ask for samples, or the vocabulary is an
        imported one.
    """
    package("flatbuffers")
    if run.vocabulary.files:
        raise ValueError("stablehlo's script knows one SentencePiece model; the run has two")
    translator = Translator(Models((run.graphdef,), (run.params,)), run.vocabulary, run.config)
    options = translator.resolved(options)
    if options.sample:
        raise ValueError("stablehlo has greedy and beam search, no sampling")
    model = nnx.merge(translator.models.graphdefs[0], translator.models.params[0])
    params, programs = flatten(translator.models.params[0]), []
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    row_counts = sorted({1, options.rows or DecodingConfig.rows})
    for rows, length in itertools.product(row_counts, bucket_lengths(options.max_length)):
        decode = jax.jit(decoder(model, options, length), keep_unused=True)
        source = jax.ShapeDtypeStruct((rows, length), jnp.int32)
        exported = jax.export.export(decode, platforms=PLATFORMS)(shapes, source)
        name = f"decoder-{rows}x{length}.stablehlo"
        (folder / name).write_bytes(exported.serialize())
        programs.append({"file": name, "rows": rows, "length": length})
    # NumPy's format has no bfloat16: such parameters are rounded again when they are read.
    np.savez(folder / "parameters.npz", **{k: np.float32(x) for k, x in params.items()})
    run.vocabulary.save(folder / VOCABULARY_FILE)
    shutil.copyfile(pathlib.Path(__file__).with_name("translate.py"), folder / "translate.py")
    manifest = {
        "jax": jax.__version__,
        "platforms": PLATFORMS,
        "ids": IDS._asdict(),
        "normalization": run.vocabulary.normalization,
        "search": dataclasses.asdict(options),
        "programs": programs,
        "parameters": {name: [str(x.dtype), x.shape] for name, x in params.items()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")


def decoder(
    model: Any, options: SearchOptions, length: int
) -> Callable[[Arrays, jax.Array], Arrays]:
    """A model's search, as a function of named parameters and source ids [B, length]."""
    graphdef, like = nnx.split(model)
    # By the source's length; of EOS alone and of a row without a source there is no translation.
    maxima = [0, 0, *map(options.max_tokens, range(2, length + 1))]
    minima = list(map(options.min_tokens, range(length + 1)))

    def decode(params: Arrays, source_BS: jax.Array) -> Arrays:
        model = nnx.merge(graphdef, unflatten(like, params))
        model.kernel = "xla"  # fused attention is for one platform each
        lengths_B, rows = (source_BS != PAD).sum(axis=1), source_BS.shape[0]
        constraints = Constraints(
            jnp.array(maxima, jnp.int32)[lengths_B],
            jnp.array(minima, jnp.int32)[lengths_B],
            jnp.full((rows, options.max_tokens(length)), PAD, jnp.int32),
            jnp.zeros(rows, jnp.uint32),
        )
        own = Search(model, options, IDS)
        memory = model.encode(sentence_tokens(source_BS, lengths_B))
        state = search.first_state(own, memory, constraints, source_BS != PAD)
        finished = search.run(own, state, jnp.int32(rows)).finished
        return search.best(finished, options.n_best)._asdict()

    return decode
