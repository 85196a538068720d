"""Decoding speed, from token ids to token ids: one JSON line a run.

With random weights every sentence has the same source length and runs for exactly
--target_length tokens, so that the figure is the speed of the search itself:

    python benchmarks/decode_speed.py --preset=base --rows=32 --beam=4

With --workdir and --input it is the speed of a trained model on real text, whose sentences end
where the model ends them:

    python benchmarks/decode_speed.py --workdir=runs/multi30k_en_de --input=test.en --rows=64

--peer=transformers,ctranslate2,ctranslate2:int8 runs each of these before and after in the same
session, with the very parameters, exported, and the same sentences; a line each. With
--peer=COMMAND another benchmark does, whose last line must be JSON with target_tokens_per_s.
ratio_to_peer is our speed over the mean of the peer's. Peers search as they do by default: they
stop once a beam's hypotheses have ended, we once none can overtake.
"""

import functools
import importlib
import json
import os
import pathlib
import resource
import statistics
import time
from typing import NamedTuple

import jax
import numpy as np
from absl import app, flags
from beside import PEER_HELP, PEER_PYTHON, PRESETS, beside_peers, model_config
from flax import nnx

from transformer_jax import allocator
from transformer_jax.config import Config, DecodingConfig
from transformer_jax.data.corpora import Pair
from transformer_jax.data.vocabulary import BOS, EOS, PAD, Vocabulary
from transformer_jax.decoding.engine import Models, Sentence, translate
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.devices import replicate
from transformer_jax.model.transformer import Transformer
from transformer_jax.saved_run import SavedRun, load_run

_PRESET = flags.DEFINE_enum("preset", "base", PRESETS, "Size of the model.")
_ROWS = flags.DEFINE_integer("rows", 32, "Sentences; above 1, filled up to eights.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("source_length", 30, "Tokens of each source.", lower_bound=2)
_TARGET = flags.DEFINE_integer("target_length", 30, "Tokens of each translation.", lower_bound=2)
_BEAM = flags.DEFINE_integer("beam", 4, "Hypotheses of the beam; 1 = greedy.", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab", 32768, "Entries of the vocabulary.", lower_bound=8)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Times that are timed.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation.")
_PEER = flags.DEFINE_string("peer", "", PEER_HELP)
_WORKDIR = flags.DEFINE_string("workdir", "", "A run, in place of random weights of a preset.")
_INPUT = flags.DEFINE_string("input", "", "Text for it to translate, a sentence a line.")


class Work(NamedTuple):
    """A model, and what it translates."""

    run: SavedRun
    models: Models
    sentences: list[Sentence]
    options: SearchOptions


def prepared(run: SavedRun) -> Models:
    return Models((run.graphdef,), (replicate(run.params),)).prepared()


def options(**lengths) -> SearchOptions:
    devices = jax.local_device_count()
    rows = 1 if _ROWS.value == 1 else -(-_ROWS.value // (8 * devices)) * 8
    return SearchOptions(beam_size=_BEAM.value, rows=rows, **lengths)


def synthetic() -> Work:
    """Random weights, sentences and lengths as the flags say."""
    model = model_config(_PRESET.value, _DTYPE.value)
    graphdef, params = nnx.split(
        nnx.jit(lambda: Transformer(model, _VOCAB.value, rngs=nnx.Rngs(0)))()
    )
    random = np.random.default_rng(0)
    shape = (_ROWS.value, _SOURCE.value - 1)
    sentences = [
        Sentence(id, [*source, EOS], max_length=_TARGET.value, min_length=_TARGET.value)
        for id, source in enumerate(random.integers(4, _VOCAB.value, shape).tolist())
    ]
    symbols = " ".join(f"s{number}" for number in range(_VOCAB.value - 4))
    vocabulary = Vocabulary.train([[Pair(symbols, "")]], _VOCAB.value, "symbols")
    run = SavedRun(Config(model=model), vocabulary, graphdef, params)
    lengths = {
        "max_length": max(_SOURCE.value, _TARGET.value),
        "max_length_ratio": (_TARGET.value + 0.5) / _SOURCE.value,
    }
    return Work(run, prepared(run), sentences, options(**lengths).resolved(DecodingConfig()))


def of_text() -> Work:
    """A trained model, and the lines of a text that it reads whole."""
    run = load_run(_WORKDIR.value)
    resolved = options().resolved(run.config.decoding)
    lines = pathlib.Path(_INPUT.value).read_text("utf-8").splitlines()
    sources = run.vocabulary.encode_sources(lines)
    kept = [source for source in sources if 1 < len(source) <= resolved.max_length]
    limits = [resolved.max_tokens(len(source)) for source in kept]
    sentences = [Sentence(id, *both) for id, both in enumerate(zip(kept, limits))]
    return Work(run, prepared(run), sentences, resolved)


def measure(work: Work) -> dict:
    """Times the search; seconds and target tokens a second."""
    decode = functools.partial(translate, work.models, work.sentences, work.options)
    seconds = []
    for _ in range(1 + _REPEATS.value):
        start = time.perf_counter()
        tokens = sum(int((found.tokens[0] != PAD).sum()) for _, found in decode())
        seconds.append(time.perf_counter() - start)
    assert _WORKDIR.value or tokens == _ROWS.value * _TARGET.value
    median = statistics.median(seconds[1:])
    memory = jax.local_devices()[0].memory_stats() or {}
    return {
        "first_s": seconds[0],
        "seconds_min": min(seconds[1:]),
        "seconds_median": median,
        "tokens": tokens,
        "target_tokens_per_s": tokens / median,
        "sentences_per_s": len(work.sentences) / median,
        "peak_device_bytes": memory.get("peak_bytes_in_use"),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def job(work: Work, peer: str, folder: pathlib.Path) -> dict:
    """The same for a peer, whose model is exported to the folder."""
    module = importlib.import_module(f"transformer_jax.interop.{peer}")
    (folder / peer).mkdir()
    module.export(work.run, folder / peer)
    pieces = work.run.vocabulary.pieces
    return {
        "work": "decoding",
        "folder": str(folder / peer),
        "device": "cuda" if jax.default_backend() == "gpu" else "cpu",
        "dtype": work.run.config.model.dtype,
        "sources": [list(sentence.source) for sentence in work.sentences],
        "pieces": [pieces(sentence.source) for sentence in work.sentences],
        "never": [[piece] for piece in pieces([PAD, BOS])],
        "beam": _BEAM.value,
        "rows": _ROWS.value,
        "length_penalty": work.options.length_penalty,
        "min_length": max(sentence.min_length for sentence in work.sentences),
        "max_length": max(sentence.max_length for sentence in work.sentences),
        "warmup": 1,
        "repeats": _REPEATS.value,
        "threads": len(os.sched_getaffinity(0)),
    }


def main(_) -> None:
    if bool(_WORKDIR.value) != bool(_INPUT.value):
        raise SystemExit("--workdir and --input need each other")
    work = of_text() if _WORKDIR.value else synthetic()
    described = {
        "benchmark": "decode_speed",
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "rows": _ROWS.value,
        "beam": _BEAM.value,
        "dtype": work.run.config.model.dtype,
        "vocab": len(work.run.vocabulary),
        "sentences": len(work.sentences),
    }
    names = (_WORKDIR, _INPUT) if _WORKDIR.value else (_PRESET, _SOURCE, _TARGET)
    described |= {name.name: name.value for name in names}
    make_job = functools.partial(job, work)
    for result in beside_peers(
        functools.partial(measure, work), _PEER.value, make_job, PEER_PYTHON.value
    ):
        print(json.dumps(described | result), flush=True)


if __name__ == "__main__":
    allocator.share_arena()
    allocator.keep_freed_memory()  # as decode.py does
    app.run(main)
