"""Translates lines by the programs beside this file: python translate.py < source > target.

Needs jax, flatbuffers, numpy and sentencepiece; nothing of the package that wrote it.
"""

import functools
import json
import pathlib
import unicodedata

import jax
import jax.export
import numpy as np
import sentencepiece

FOLDER = pathlib.Path(__file__).parent


@functools.cache
def loaded(folder):
    """The manifest, the vocabulary, and the parameters on the device."""
    manifest = json.loads((folder / "manifest.json").read_text())
    vocabulary = sentencepiece.SentencePieceProcessor(str(folder / "vocabulary.model"))
    arrays, dtypes = np.load(folder / "parameters.npz"), manifest["parameters"]
    params = {name: jax.numpy.asarray(arrays[name], dtypes[name][0]) for name in arrays}
    return manifest, vocabulary, params


@functools.cache
def compiled(path):
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def source_ids(text, folder=FOLDER):
    """Token ids of a text, closed by EOS."""
    manifest, vocabulary, _ = loaded(folder)
    if manifest["normalization"] in ("nfc", "nfc_source"):
        text = unicodedata.normalize("NFC", text)
    if manifest["normalization"] == "nfc_source":
        text = " ".join(text.split())
    ids = vocabulary.encode(text if text.strip() else "", add_eos=True)
    longest = manifest["search"]["max_length"]
    return ids if len(ids) <= longest else [*ids[: longest - 1], manifest["ids"]["eos"]]


def search(sources, folder=FOLDER):
    """The hypotheses of each source, best first: lists of token ids without EOS."""
    manifest, _, params = loaded(folder)
    pad, eos = manifest["ids"]["pad"], manifest["ids"]["eos"]
    row_counts = sorted({program["rows"] for program in manifest["programs"]})
    rows = next((n for n in row_counts if n >= len(sources)), row_counts[-1])
    results, done = {}, 0
    for program in manifest["programs"]:  # the shorter first
        if program["rows"] != rows:
            continue
        members = [i for i, ids in enumerate(sources) if done < len(ids) <= program["length"]]
        done = program["length"]
        for first in range(0, len(members), rows):
            batch = members[first : first + rows]
            ids = np.full((rows, program["length"]), pad, np.int32)
            for row, i in enumerate(batch):
                ids[row, : len(sources[i])] = sources[i]
            found = compiled(folder / program["file"])(params, ids)
            for i, hypotheses in zip(batch, np.asarray(found["tokens"]).tolist()):
                results[i] = [x[: x.index(eos)] if eos in x else [] for x in hypotheses]
    return [results[i] for i in range(len(sources))]


def main():
    _, vocabulary, _ = loaded(FOLDER)
    with open(0, encoding="utf-8", errors="replace", newline="\n") as lines:
        sources = [source_ids(line.removesuffix("\n")) for line in lines]
    for hypotheses in search(sources):
        for ids in hypotheses:
            print(" ".join(vocabulary.decode(ids).splitlines()))


if __name__ == "__main__":
    main()
