"""Trains a model: python train.py --config=configs/quickstart.py --workdir=runs/quickstart.

The same command again resumes. Any field of the config can be set beside it, as in
--config.model.num_layers=3.
"""

import os
import pathlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from transformer_jax import cli
from transformer_jax.config import whole_number

_CONFIG = config_flags.DEFINE_config_file("config", None, "File whose get_config() is the run.")
_WORKDIR = cli.define_path("workdir", None, "Folder of the run: made, or resumed from.")
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps", "", "FIRST:LAST steps to trace with jax.profiler into WORKDIR/profile."
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Describe data, batches and memory, run one step, and leave no run behind."
)
flags.mark_flags_as_required(["config", "workdir"])
flags.register_validator("workdir", bool, "the name of a folder was wanted")


def main(_) -> int:
    if _DRY_RUN.value:
        if _PROFILE_STEPS.value:
            raise ValueError("--profile_steps and --dry_run do not go together")
        from transformer_jax.training.dry_run import dry_run

        return dry_run(_CONFIG.value, _WORKDIR.value)
    from transformer_jax.training.loop import train

    steps = None
    if _PROFILE_STEPS.value:
        first, _, last = _PROFILE_STEPS.value.partition(":")
        try:
            steps = whole_number(first), whole_number(last)
        except ValueError:
            steps = 0, 0
        if not 1 <= steps[0] <= steps[1]:
            raise ValueError(
                f"--profile_steps={_PROFILE_STEPS.value} is not FIRST:LAST, such as 10:20"
            )
    result = train(_CONFIG.value, _WORKDIR.value, steps)
    if not result.status:
        command = [_near(sys.executable), _near(pathlib.Path(__file__).with_name("decode.py"))]
        command = shlex.join([*command, f"--workdir={_WORKDIR.value}"])
        print(f"To translate: {command} < FILE   (a sentence a line)", flush=True)
    return result.status


def _near(path: str | os.PathLike) -> str:
    """A path as it is typed in the current folder, if it is below it."""
    below = pathlib.Path(path).is_relative_to(os.getcwd())
    return os.path.relpath(path) if below else str(path)


if __name__ == "__main__":
    cli.run(main)
