"""Makes a workdir of a model of another program: decode runs it, and train fine-tunes it.

marian: the folder of an OPUS-MT model as Hugging Face has it, with source.spm, target.spm and
vocab.json. To fine-tune: train --config=WORKDIR/config.json --config.training.init_from=WORKDIR,
with a corpus and another --workdir.
"""

import dataclasses
import pathlib

from absl.flags import FlagValues

from transformer_jax import cli
from transformer_jax.storage import local_folder

USAGE = "--format=marian --source=FOLDER --workdir=FOLDER"


def add_flags(parser: cli.Parser) -> None:
    """The command's flags."""
    options = {"required": True, "parse": cli.path, "metavar": "FOLDER"}
    parser.flag("format", None, "marian.", required=True, parse=_format, metavar="marian")
    parser.flag("source", None, "Folder of the model.", **options)
    parser.flag("workdir", None, "Folder to make.", **options)


def run(flags: FlagValues) -> None:
    """Writes config, vocabulary and a checkpoint of step 0."""
    workdir = local_folder(flags.workdir)
    if (workdir / "config.json").exists() or (workdir / "checkpoints").exists():
        raise ValueError(f"--workdir={workdir} has a run already; expected a new folder")
    from transformer_jax.checkpoint import Checkpoints, quiet_orbax
    from transformer_jax.interop import marian
    from transformer_jax.training.run import locked, save_run_metadata

    imported = marian.load(pathlib.Path(flags.source))
    config = dataclasses.asdict(imported.config)
    record = {"config": config, "vocabulary": imported.vocabulary.fingerprint()}
    with quiet_orbax(), locked(workdir):
        save_run_metadata(workdir, imported.config, imported.vocabulary)
        checkpoints = Checkpoints(workdir, create=True)
        checkpoints.save(0, {"params": imported.params}, record, None)
        checkpoints.check_saved()
        checkpoints.close()


def _format(text: str) -> str:
    if text != "marian":
        raise ValueError(f"--format={text} must be marian")
    return text
