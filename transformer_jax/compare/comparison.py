"""A comparison from its configs to its report, going on where it stopped."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from transformer_jax.checkpoint import CONFIG_FILE
from transformer_jax.compare import quality, report, runs
from transformer_jax.compare.children import ChildError, in_child
from transformer_jax.compare.plan import Budget, Run, plan
from transformer_jax.data.corpora import Corpus, Pair
from transformer_jax.storage import atomic_write, local_folder
from transformer_jax.training.metrics import finite
from transformer_jax.training.workdir import locked

logger = logging.getLogger(__name__)

PLAN_FILE, DATA_FILE, REPORT_FILE = "budget.json", "comparison.json", "report.html"
_RESULT_FILE, _SPEED_FILE = "result.json", "speed.json"
_SAMPLES = 5  # sentences that are shown as each model translates them


class Stopped(Exception):
    """The user stopped it; its argument is the exit status."""


def compare(
    configs: Sequence[str],
    workdir: pathlib.Path,
    budget: Budget,
    *,
    overrides: Sequence[str] = (),
    pairs: Sequence[int] = (),
    probes: str | os.PathLike = "",
    command: str = "",
) -> dict[str, Any]:
    """Trains what has not been trained, measures what has not been measured, and reports.

    All that is done is kept in the workdir, a folder a run: the same call goes on. Speeds are
    measured when all runs are trained, one after the other; where WORKDIR/*/speed.json is
    deleted, they are measured again.

    Args:
      configs, workdir, overrides, pairs: as `plan` takes them.
      budget: of each run, the same for all.
      probes: file with what benchmarks/gradient_by_distance.py and benchmarks/layer_cost.py
        printed, for the report.
      command: by which it can be made again, for the report.

    Returns:
      What is in comparison.json; see `report.report`.

    Raises:
      ValueError, OSError: what the user can mend, before anything is trained.
      Stopped: a signal ended a run; what it has done is kept.
    """
    workdir = local_folder(workdir)
    planned = plan(configs, workdir, overrides=overrides, pairs=pairs)
    try:  # in a child: a process that looked for devices would hold the accelerator's memory
        machine = in_child(runs.machine)
    except ChildError as error:
        raise ValueError(str(error)) from None
    test = runs.read_pairs(planned[0].config, planned[0].config.data.test)
    if not test:
        raise ValueError(f"the test corpus {planned[0].config.data.test} is empty")
    measured = _probes(probes)
    with locked(workdir):
        _keep_budget(workdir / PLAN_FILE, budget, planned)
        return _compare(planned, workdir, budget, test, machine, measured, command)


def _compare(
    planned: list[Run],
    workdir: pathlib.Path,
    budget: Budget,
    test: list[Pair],
    machine: dict[str, Any],
    probes: dict[str, Any],
    command: str,
) -> dict[str, Any]:
    first = runs.first_corpus(planned[0].config)
    results = []
    for number, run in enumerate(planned, 1):
        logger.info("run %d of %d: %s", number, len(planned), run.workdir.name)
        results.append(_trained(run, budget, test))
    for run, result in zip(planned, results):
        if result["status"] == "done":
            result |= _measured_speed(run)
    trained = probes.pop("gradient_by_distance")
    for result in results:
        if result["status"] == "done" and not result["limited"]:
            result["gradient_by_distance"] = trained.get(result["name"])
    comparison = {
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "command": command,
        "budget": {name: value or None for name, value in budget._asdict().items()},
        "test": {
            "corpus": planned[0].config.data.test,
            "sentences": len(test),
            "source_language": first.source_language,
            "target_language": first.target_language,
            "length_unit": quality.length_unit(first.source_language),
        },
        "runs": [_scored(result, test, first) for result in results],
        "significance": _neighbours(results, test, first.target_language),
        **probes,
    }
    comparison = finite(comparison)
    with atomic_write(workdir / DATA_FILE) as file:
        file.write(json.dumps(comparison, ensure_ascii=False, indent=1) + "\n")
    with atomic_write(workdir / REPORT_FILE) as file:
        file.write(report.report(comparison))
    return comparison


def _keep_budget(path: pathlib.Path, budget: Budget, planned: list[Run]) -> None:
    """Keeps the budget of a new comparison; ValueError where what is there had another."""
    trained = [run.workdir for run in planned if (run.workdir / CONFIG_FILE).exists()]
    if path.exists():
        try:
            before = Budget(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError):
            raise ValueError(f"{path} is damaged: choose another --workdir") from None
        if before != budget:
            raise ValueError(
                f"{path.parent} is a comparison of runs with {_stated(before)}, not "
                f"{_stated(budget)}: choose another --workdir"
            )
    elif trained:
        raise ValueError(
            f"{trained[0]} was not trained by a comparison, and may have had more or less than "
            f"{_stated(budget)}: choose another --workdir"
        )
    if budget.target_tokens and not all(run.config.data.tokens_per_batch for run in planned):
        raise ValueError(
            "config.data.tokens_per_batch=0 leaves the size of a batch to the device's memory, so "
            "that --target_tokens are no number of updates; --train_seconds are"
        )
    with atomic_write(path) as file:
        file.write(json.dumps(budget._asdict()) + "\n")


def _stated(budget: Budget) -> str:
    if budget.train_seconds:
        return f"--train_seconds={budget.train_seconds:g}"
    return f"--target_tokens={budget.target_tokens}"


def _spread(lengths: Sequence[int]) -> list[int]:
    """Numbers of sentences from short to long, as a fixed choice."""
    order = np.argsort(lengths, kind="stable")
    places = np.linspace(0.1, 0.98, min(_SAMPLES, len(order))) * (len(order) - 1)
    return [int(order[round(place)]) for place in places]


def _trained(run: Run, budget: Budget, test: list[Pair]) -> dict[str, Any]:
    """Trains and evaluates a run, unless it is done; a failure is part of the result."""
    config = dataclasses.asdict(run.config)
    samples = _spread([len(pair.source.split()) for pair in test])
    result = {
        "name": run.name,
        "config": config,
        "limited": run.vocabulary_of is not None,
        "pairs": run.config.data.max_pairs or None,
        "status": "failed",
        "error": "",
    }

    def train_and_evaluate() -> dict[str, Any]:
        status = in_child(runs.run_training, run, budget)
        if status:
            raise Stopped(status)
        return in_child(runs.evaluate, run, samples)

    try:
        made = _kept(run.workdir / _RESULT_FILE, [config, samples, test], train_and_evaluate)
        config["training"]["num_steps"] = made["updates"]
        return result | made | {"status": "done"}
    except ChildError as error:
        logger.error("%s failed: %s", run.workdir.name, error)
        return result | {"error": str(error)}


def _measured_speed(run: Run) -> dict[str, Any]:
    logger.info("measuring the speed of %s", run.workdir.name)
    try:
        key = dataclasses.asdict(run.config)
        return _kept(run.workdir / _SPEED_FILE, key, lambda: in_child(runs.speed, run))
    except ChildError as error:
        logger.error("the speed of %s was not measured: %s", run.workdir.name, error)
        return {"train_tokens_per_s": None, "decode_tokens_per_s": None}


def _probes(path: str | os.PathLike) -> dict[str, Any]:
    """What the benchmarks of gradients and layers printed, each on a line of a file, if any."""
    names = {"initial_gradients": {}, "layer_costs": [], "gradient_by_distance": {}}
    probes = dict(names)
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if path else ():
        try:
            probes |= dict(json.loads(line))
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: {line[:40]!r} is not a line of JSON as benchmarks/layer_cost.py and "
                "benchmarks/gradient_by_distance.py print them"
            ) from None
    return {
        name: probes[name] for name in ("initial_gradients", "layer_costs", "gradient_by_distance")
    }


def _scored(result: dict[str, Any], test: list[Pair], corpus: Corpus) -> dict[str, Any]:
    """A result as in the report: scores in place of translations into the corpus' language."""
    result = dict(result)
    hypotheses = result.pop("hypotheses", None)
    if hypotheses is None:
        return result
    sources, references = ([pair[side] for pair in test] for side in (0, 1))
    lengths = quality.text_lengths(sources, corpus.source_language)
    scored = hypotheses, references, corpus.target_language
    by_length = {"by_length": quality.by_length(lengths, *scored)}
    return _timed(result) | quality.corpus_scores(*scored) | by_length


def _timed(result: dict[str, Any]) -> dict[str, Any]:
    """With times, which are target tokens at the speed that was measured after all training.

    The time that a run took also depends on what else the machine did meanwhile.
    """
    per_s = result["train_tokens_per_s"]

    def seconds(tokens: int | None) -> float | None:
        return tokens / per_s if per_s and tokens is not None else None

    curves = {
        name: [point | {"seconds": seconds(point["target_tokens"])} for point in result[name]]
        for name in ("loss_curve", "valid_curve")
    }
    times = {
        "train_seconds": seconds(result["target_tokens"]),
        "seconds_per_epoch": seconds(result.pop("epoch_tokens")),
    }
    return result | curves | times


def _neighbours(results: list[dict[str, Any]], test: list[Pair], language: str) -> list[dict]:
    """The significance of the difference between each run and the next that is done."""
    done = [r for r in results if r["status"] == "done" and not r["limited"]]
    references = [pair.target for pair in test]
    return [
        {"first": one["name"], "second": other["name"]}
        | quality.significance(one["hypotheses"], other["hypotheses"], references, language)
        for one, other in zip(done, done[1:])
    ]


def _kept(path: pathlib.Path, key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, if that was made of the same key; else it gets what `make` returns."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] == digest:
            return dict(kept["made"])
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps({"of": digest, "made": made}, ensure_ascii=False) + "\n")
    return made
