"""Writes a trained model in the format of another program.

transformers: a folder for Hugging Face transformers. ctranslate2: one for CTranslate2. safetensors:
plain parameters by documented names. stablehlo: whole searches, which JAX alone can run. What a
format cannot express is refused.
"""

import dataclasses
import importlib
import os
import pathlib

from absl.flags import FlagValues

from transformer_jax import cli
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.storage import local_folder, removed

USAGE = "--format=NAME --workdir=FOLDER --output=FOLDER [--checkpoint=best|last|STEP] [--average=N]"

FORMATS = ("transformers", "ctranslate2", "safetensors", "stablehlo")  # modules of interop


def add_flags(parser: cli.Parser) -> None:
    """The command's flags."""
    help = f"One of {', '.join(FORMATS)}."
    parser.flag("format", None, help, parse=_format, required=True, metavar="|".join(FORMATS))
    options = {"parse": cli.path, "required": True, "metavar": "FOLDER"}
    parser.flag("workdir", None, "Folder that train left.", repeated=True, **options)
    parser.flag("output", None, "Folder to make.", **options)
    parser.flag("checkpoint", "best", "best, last, or the number of a step.")
    parser.flag("average", 1, "Latest checkpoints to average.")
    parser.section("search that stablehlo writes")
    parser.option_flags(SearchOptions)


def run(flags: FlagValues) -> None:
    """Writes the folder, whole or not at all."""
    if len(flags.workdir) > 1:
        raise ValueError("several --workdir are an ensemble, which no format can express")
    if flags.average < 1:
        raise ValueError(f"--average={flags.average} must be at least 1")
    if flags.average > 1 and flags.checkpoint != "best":
        raise ValueError("--checkpoint and --average do not go together: the latest are averaged")
    if os.path.lexists(output := local_folder(flags.output)):
        raise ValueError(f"--output={output} is there already; expected the name of a new folder")
    names = [field.name for field in dataclasses.fields(SearchOptions)]
    settings = {}
    if flags.format == "stablehlo":
        settings["options"] = SearchOptions(**{name: getattr(flags, name) for name in names})
    elif searched := sorted(cli.given(flags) & set(names)):
        raise ValueError(f"--{searched[0]} is of a search, which --format=stablehlo alone writes")
    from transformer_jax.checksums import flatten
    from transformer_jax.interop import check_finite
    from transformer_jax.saved_run import load_run

    module = importlib.import_module(f"transformer_jax.interop.{flags.format}")
    saved = load_run(flags.workdir[0], flags.checkpoint, flags.average)
    for name, array in flatten(saved.params).items():
        check_finite(flags.workdir[0], name, array)
    temporary = pathlib.Path(f"{output}.{os.getpid()}.tmp")
    with removed(temporary):
        temporary.mkdir(parents=True)
        module.export(saved, temporary, **settings)
        temporary.rename(output)


def _format(text: str) -> str:
    if text not in FORMATS:
        raise ValueError(f"--format={text} must be one of {', '.join(FORMATS)}")
    return text
