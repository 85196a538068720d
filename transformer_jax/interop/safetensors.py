"""Plain parameters by documented names, with the config and the vocabulary beside them."""

import pathlib

from transformer_jax.checksums import flatten
from transformer_jax.interop import package
from transformer_jax.interop.parameters import to_plain
from transformer_jax.saved_run import CONFIG_FILE, VOCABULARY_FILE, SavedRun


def export(run: SavedRun, folder: pathlib.Path) -> None:
    """Writes model.safetensors, and config and vocabulary as a workdir has them.

    A Transformer's parameters have plain names, an RNN's those of its modules.
    """
    write = package("safetensors.numpy").save_file
    is_transformer = run.config.model.kind == "transformer"
    named = to_plain(run.params) if is_transformer else flatten(run.params)
    write({name: x.copy() for name, x in named.items()}, folder / "model.safetensors")
    run.vocabulary.save(folder / VOCABULARY_FILE)
    (folder / CONFIG_FILE).write_text(run.config.to_json(), encoding="utf-8")
