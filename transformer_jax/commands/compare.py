r"""Trains several models alike and reports how they differ.

    transformer-jax compare --workdir=runs/story --target_tokens=2.5M \
        --configs=story:lstm,story:lstm_dot,story:transformer

Each config is trained for the same number of target tokens, or for the same time, and the report
is WORKDIR/report.html, its data WORKDIR/comparison.json. The same command again resumes.
"""

import pathlib
import shlex
import sys
from typing import Any

from absl.flags import FlagValues

from transformer_jax import cli
from transformer_jax.config import whole_number

USAGE = "--configs=CONFIG,... --workdir=FOLDER --target_tokens=N|--train_seconds=S"


def add_flags(parser: cli.Parser) -> None:
    """The command's flags."""
    parser.flag(
        "configs",
        None,
        "Configs with commas between them, each a ready one's name or a file, with :ARGUMENT of "
        "its get_config().",
        parse=lambda text: text.split(","),
        required=True,
    )
    parser.flag(
        "workdir",
        None,
        "Folder of the comparison: made, or resumed from.",
        parse=cli.path,
        required=True,
        metavar="FOLDER",
    )
    parser.flag("target_tokens", 0, "Target tokens that each model is trained on.", metavar="N")
    parser.flag("train_seconds", 0.0, "Or seconds that each is trained for.", metavar="S")
    parser.flag(
        "pairs",
        [],
        "Further sizes of the training corpus, in pairs, to train each model on.",
        parse=lambda text: [whole_number(size) for size in text.split(",")],
        metavar="N,...",
    )
    parser.flag(
        "override",
        [],
        "A field that all configs get, such as data.train=text:corpus/train; may be repeated.",
        parse=str,
        repeated=True,
        metavar="FIELD=VALUE",
    )
    parser.flag(
        "probes",
        "",
        "File of what benchmarks/gradient_by_distance.py and layer_cost.py printed.",
        parse=cli.path,
        metavar="FILE",
    )


def run(flags: FlagValues) -> int:
    """Trains the models and writes the report."""
    if (flags.target_tokens > 0) == (flags.train_seconds > 0):
        raise ValueError("expected one of --target_tokens and --train_seconds: what each run gets")
    from transformer_jax.compare import comparison

    workdir = pathlib.Path(flags.workdir)
    made = comparison.compare(
        flags.configs,
        workdir,
        comparison.Budget(flags.target_tokens, flags.train_seconds),
        overrides=flags.override,
        pairs=flags.pairs,
        probes=flags.probes,
        command=shlex.join(["transformer-jax", "compare", *sys.argv[2:]]),
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
