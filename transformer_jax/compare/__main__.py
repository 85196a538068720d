"""Compares models: python -m transformer_jax.compare --workdir=runs/story --target_tokens=2500000 \
--configs=configs/story.py:lstm,configs/story.py:transformer.

Each config is trained for the same number of target tokens, or for the same time, and the report
is WORKDIR/report.html, its data WORKDIR/comparison.json. The same command again resumes.
"""

import pathlib
import shlex
import sys
from typing import Any

from absl import flags

from transformer_jax import cli
from transformer_jax.config import whole_number

_CONFIGS = flags.DEFINE_list(
    "configs", None, "Config files, each FILE or FILE:ARGUMENT of its get_config(), with commas."
)
_WORKDIR = cli.define_path("workdir", None, "Folder of the comparison: made, or resumed from.")
_TARGET_TOKENS = flags.DEFINE_integer(
    "target_tokens", 0, "Target tokens that each model is trained on.", lower_bound=0
)
_TRAIN_SECONDS = flags.DEFINE_float(
    "train_seconds", 0.0, "Or seconds that each is trained for, by its speed.", lower_bound=0.0
)
_PAIRS = flags.DEFINE_list(
    "pairs", [], "Further sizes of the training corpus, in pairs, to train each model on."
)
_OVERRIDES = flags.DEFINE_multi_string(
    "override", [], "A field that all configs get, such as data.train=text:corpus/train."
)
_PROBES = cli.define_path(
    "probes", "", "File of what benchmarks/{gradient_by_distance,layer_cost}.py printed."
)
flags.mark_flags_as_required(["configs", "workdir"])
flags.register_validator("workdir", bool, "the name of a folder was wanted")


def main(_) -> int:
    if bool(_TARGET_TOKENS.value) == bool(_TRAIN_SECONDS.value):
        raise ValueError(
            "one of --target_tokens and --train_seconds was wanted: what each run gets"
        )
    try:
        pairs = [whole_number(size) for size in _PAIRS.value]
    except ValueError as error:
        raise ValueError(f"--pairs={','.join(_PAIRS.value)}: {error}") from None
    from transformer_jax.compare import comparison

    workdir = pathlib.Path(_WORKDIR.value)
    made = comparison.compare(
        _CONFIGS.value,
        workdir,
        comparison.Budget(_TARGET_TOKENS.value, _TRAIN_SECONDS.value),
        overrides=_OVERRIDES.value,
        pairs=pairs,
        probes=_PROBES.value,
        command=shlex.join(["python", "-m", "transformer_jax.compare", *sys.argv[1:]]),
    )
    for run in made["runs"]:
        size = f" on {run['pairs']:,} pairs" if run["limited"] else ""
        print(f"{run['name']}{size}: {_outcome(run)}")
    print(f"Report: {workdir / comparison.REPORT_FILE}")
    return 0 if all(run["status"] == "done" for run in made["runs"]) else 1


def _outcome(run: dict[str, Any]) -> str:
    """Scores with their intervals, or why there are none."""
    if run["status"] != "done":
        return run["error"]
    return ", ".join(
        f"{name} {run[key]['score']:.1f} ± {run[key]['half_width']:.1f}"
        if run[key]
        else f"{name} undefined (no reference has 4 tokens)"
        for name, key in (("BLEU", "bleu"), ("chrF", "chrf"))
    )


if __name__ == "__main__":
    cli.run(main)
