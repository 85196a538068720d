"""Whether exported models say the same: one JSON line for each format.

    python benchmarks/interop_equality.py --workdir=runs/multi30k --corpus=multi30k:test

Given translations are scored, and all sources translated greedily and by a beam of 4 without length
penalty, within the same limits, by this package and by the program that the model was exported for.
Of translations that differ, `near_ties` have a log-probability, by this package, within --tie.
"""

import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from transformer_jax.data.corpora import parse_corpora
from transformer_jax.data.vocabulary import BOS, EOS, PAD
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Translator
from transformer_jax.interop import ctranslate2, transformers
from transformer_jax.saved_run import load_run

_WORKDIR = flags.DEFINE_string("workdir", None, "Run to export.", required=True)
_CORPUS = flags.DEFINE_string("corpus", None, "Corpus to score and to translate.", required=True)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 80, "Tokens of a side.", lower_bound=2)
_TIE = flags.DEFINE_float("tie", 1e-3, "Difference of log-probabilities of a near tie.")

Ids = list[list[int]]


class Peer(NamedTuple):
    """Another program with the exported model; tokens have EOS where they ended with it."""

    score: Callable[[list[int], list[int]], np.ndarray]  # log-probability of each target token
    translate: Callable[[Ids, int, int], Ids]  # sources of one length, beam, most tokens


def transformers_peer(folder: pathlib.Path) -> Peer:
    """The model in Hugging Face transformers."""
    import torch
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    @torch.no_grad()
    def score(source: list[int], target: list[int]) -> np.ndarray:
        ids = {"input_ids": [source], "decoder_input_ids": [[BOS, *target[:-1]]]}
        logits_TV = model(**{name: torch.tensor(x) for name, x in ids.items()}).logits[0]
        return logits_TV.log_softmax(-1)[range(len(target)), target].numpy()

    def translate(sources: Ids, beam: int, limit: int) -> Ids:
        options = {"num_beams": beam, "length_penalty": 0.0, "max_new_tokens": limit}
        options |= {"early_stopping": "never"} if beam > 1 else {}
        found = model.generate(torch.tensor(sources), max_length=None, **options).tolist()
        return [ids[1 : ids.index(EOS) + 1] for ids in found]

    return Peer(score, translate)


def ctranslate2_peer(folder: pathlib.Path, pieces: list[str]) -> Peer:
    """The model in CTranslate2, which adds EOS to sources, and gives translations without it."""
    import ctranslate2

    model = ctranslate2.Translator(str(folder), compute_type="float32")
    ids_of = {piece: id for id, piece in enumerate(pieces)}

    def tokens(ids: list[int]) -> list[str]:
        return [pieces[i] for i in ids[:-1]]

    def score(source: list[int], target: list[int]) -> np.ndarray:
        (result,) = model.score_batch([tokens(source)], [tokens(target)])
        return np.array(result.log_probs)

    def translate(sources: Ids, beam: int, limit: int) -> Ids:
        results = model.translate_batch(
            [tokens(source) for source in sources],
            beam_size=beam,
            length_penalty=0.0,
            patience=8.0,
            max_decoding_length=limit - 1,
            suppress_sequences=[[pieces[PAD]], [pieces[BOS]]],
        )
        return [[*(ids_of[piece] for piece in x.hypotheses[0]), EOS] for x in results]

    return Peer(score, translate)


def in_groups(sources: Ids, translate: Callable[[Ids, int], Ids], limit: Callable) -> Ids:
    """Translations in the order of the sources, which are translated by length."""
    found: dict[int, list[int]] = {}
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    for length, members in itertools.groupby(order, key=lambda i: len(sources[i])):
        members = list(members)
        results = translate([sources[i] for i in members], limit(length))
        found |= dict(zip(members, results))
    return [found[i] for i in range(len(sources))]


def compared(translator: Translator, pairs: list[tuple[str, str]], peer: Peer) -> dict[str, Any]:
    """How far scores differ, and how many translations."""
    vocabulary, texts = translator.vocabulary, [source for source, _ in pairs]
    sources, targets = vocabulary.encode_sources(texts), vocabulary.encode([y for _, y in pairs])
    options = SearchOptions(max_length=_MAX_LENGTH.value)
    differences = [
        np.abs(peer.score(source, target) - ours.log_probs).max()
        for source, target, ours in zip(sources, targets, translator.score(pairs, options))
    ]
    result = {"sentences": len(pairs), "max_log_prob_difference": float(max(differences))}
    for name, beam in (("greedy", 1), ("beam4", 4)):
        options = SearchOptions(beam_size=beam, length_penalty=0.0, max_length=_MAX_LENGTH.value)
        ours = [[*x.hypotheses[0].ids, EOS] for x in translator.translate(texts, options)]
        theirs = in_groups(
            sources, lambda x, limit, beam=beam: peer.translate(x, beam, limit), options.max_tokens
        )
        different = [i for i in range(len(pairs)) if ours[i] != theirs[i]]
        sums = [
            [float(peer.score(sources[i], x[i]).sum()) for i in different] for x in (ours, theirs)
        ]
        result[f"{name}_equal"] = len(pairs) - len(different)
        result[f"{name}_near_ties"] = sum(abs(x - y) <= _TIE.value for x, y in zip(*sums))
        result[f"{name}_at_limit"] = sum(
            max(len(ours[i]), len(theirs[i])) == options.max_tokens(len(sources[i]))
            for i in different
        )
    return result


def peers(folder: pathlib.Path) -> Iterator[tuple[str, Peer]]:
    """The run, exported to each format, in the program that the format is for."""
    run = load_run(_WORKDIR.value)
    for name, module in (("transformers", transformers), ("ctranslate2", ctranslate2)):
        (folder / name).mkdir()
        module.export(run, folder / name)
    yield "transformers", transformers_peer(folder / "transformers")
    pieces = run.vocabulary.pieces(range(len(run.vocabulary)))
    yield "ctranslate2", ctranslate2_peer(folder / "ctranslate2", pieces)


def main(_) -> None:
    translator = Translator.from_workdir(_WORKDIR.value)
    data, model = translator.config.data, translator.config.model
    corpora = parse_corpora(_CORPUS.value, data.source_language, data.target_language)
    pairs = [pair for corpus in corpora for pair in corpus]
    pairs = [
        (source, target)
        for source, target in pairs
        if max(map(len, translator.vocabulary.encode([source, target]))) <= _MAX_LENGTH.value
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name, peer in peers(pathlib.Path(folder)):
            line = {"benchmark": "interop_equality", "format": name, "norm": model.norm}
            print(json.dumps(line | compared(translator, pairs, peer)), flush=True)


if __name__ == "__main__":
    app.run(main)
