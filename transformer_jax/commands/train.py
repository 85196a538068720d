"""Trains a model.

The same command again resumes. Any field of the config can be set beside it, as in
--config.model.num_layers=3.
"""

import os
import pathlib
import shlex
import shutil
import sys

from absl.flags import FlagValues

from transformer_jax import cli
from transformer_jax.config import whole_number

USAGE = "--config=NAME|FILE[:ARGUMENT] --workdir=FOLDER [--config.SECTION.FIELD=VALUE ...]"


def add_flags(parser: cli.Parser) -> None:
    """The command's flags."""
    parser.flag(
        "config",
        None,
        "A ready config's name, or a Python file whose get_config() gives one.",
        required=True,
    )
    parser.flag(
        "workdir",
        None,
        "Folder of the run: made, or resumed from.",
        parse=cli.path,
        required=True,
        metavar="FOLDER",
    )
    parser.flag(
        "dry_run", False, "Describe data, batches and memory, run one step, leave no run behind."
    )
    parser.flag(
        "target",
        "",
        "Machines that --dry_run compiles the step for, such as tpu:v5e:4x4 or gpu:h100:8.",
        metavar="KIND:SIZE",
    )
    parser.flag(
        "profile_steps",
        None,
        "Steps to trace with jax.profiler into WORKDIR/profile.",
        parse=_steps,
        metavar="FIRST:LAST",
    )
    parser.process_flags()
    parser.config_flags()


def run(flags: FlagValues) -> int:
    """Trains, or describes what would be trained."""
    config = cli.config_of(flags)
    if flags.target and not flags.dry_run:
        raise ValueError(f"--target={flags.target} needs --dry_run")
    if flags.dry_run:
        if flags.profile_steps:
            raise ValueError("--profile_steps and --dry_run do not go together")
        from transformer_jax.training.dry_run import dry_run

        return dry_run(config, flags.workdir, flags.target)
    from transformer_jax import hosts
    from transformer_jax.training.loop import train

    cli.go_on_unread("stdout")
    hosts.initialize(flags.coordinator, flags.num_processes, flags.process_id)
    with hosts.leaving_on_errors():
        result = train(config, flags.workdir, flags.profile_steps)
    if not result.status and hosts.is_first():
        command = shlex.join([*_command("decode"), f"--workdir={flags.workdir}"])
        print(f"To translate: {command} < FILE   (a sentence a line)", flush=True)
    return result.status


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    try:
        steps = whole_number(first), whole_number(last)
    except ValueError:
        steps = 0, 0
    if not 1 <= steps[0] <= steps[1]:
        raise ValueError(f"--profile_steps={text} is not FIRST:LAST, such as 10:20")
    return steps


def _command(name: str) -> list[str]:
    """Another command, as it is typed where this one was."""
    script = pathlib.Path(sys.argv[0])
    if (target := script.resolve()).suffix == ".py":  # a link to train.py
        script = target
    if script.name == "__main__.py":
        return [_near(sys.executable), "-m", "transformer_jax", name]
    if script.suffix == ".py":
        return [_near(sys.executable), _near(script.with_name(f"{name}.py").absolute())]
    is_found = shutil.which(script.name) == str(script)
    return [script.name if is_found else _near(script), name]


def _near(path: str | os.PathLike) -> str:
    """A path as it is typed in the current folder, if it is below it."""
    below = pathlib.Path(path).is_relative_to(os.getcwd())
    return os.path.relpath(path) if below else str(path)
