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

from transformer_jax.compare import quality, report, runs
from transformer_jax.compare.children import ChildError, in_child
from transformer_jax.compare.plan import Budget, Run, plan
from transformer_jax.data.corpora import Corpus, Pair
from transformer_jax.saved_run import CONFIG_FILE
from transformer_jax.storage import atomic_write, from_json, local_folder
from transformer_jax.training.metrics import finite
from transformer_jax.training.run import locked

logger = logging.getLogger(__name__)

BUDGET_FILE, DATA_FILE, REPORT_FILE = "budget.json", "comparison.json", "report.html"
_RESULT_FILE, _SPEED_FILE = "result.json", "speed.json"
_SAMPLES = 5  # sentences that are shown as each model translates them


def compare(
    configs: Sequence[str],
    workdir: str | os.PathLike,
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
    """
    workdir = local_folder(workdir)
    planned = plan(configs, workdir, overrides=overrides, pairs=pairs)
    measured = _probes(probes)
    # In a child: a process that looked for devices would hold the accelerator's memory.
    machine = in_child(runs.machine)
    corpus, test = runs.read_test(planned[0].config)
    with locked(workdir):
        _check_budget(workdir / BUDGET_FILE, budget, planned)
        results = [_trained(run, budget, corpus, test) for run in planned]
        for run, result in zip(planned, results):
            if result["status"] == "done":
                result |= _speed(run)
                gradients = measured["gradient_by_distance"].get(run.workdir.name)
                result["gradient_by_distance"] = gradients
        comparison = {
            "date": datetime.date.today().isoformat(),
            "machine": machine,
            "command": command,
            "budget": {name: value or None for name, value in budget._asdict().items()},
            "test": {
                "corpus": planned[0].config.data.test,
                "sentences": len(test),
                "source_language": corpus.source_language,
                "target_language": corpus.target_language,
                "length_unit": quality.length_unit(corpus.source_language),
            },
            "runs": [_scored(result, corpus, test) for result in results],
            "significance": _significance(results, corpus, test),
            "initial_gradients": measured["initial_gradients"],
            "layer_costs": measured["layer_costs"],
        }
        comparison = finite(comparison)
        with atomic_write(workdir / DATA_FILE) as file:
            json.dump(comparison, file, ensure_ascii=False, indent=1)
        with atomic_write(workdir / REPORT_FILE) as file:
            file.write(report.report(comparison))
    return comparison


def _probes(path: str | os.PathLike) -> dict[str, Any]:
    """What the benchmarks of gradients and layers printed, each on a line of a file, if any."""
    probes = {"initial_gradients": {}, "layer_costs": [], "gradient_by_distance": {}}
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines() if path else ():
        try:
            probes |= dict(from_json(line))
        except (TypeError, ValueError):
            raise ValueError(
                f"{path}: {line[:40]!r} is not a line of JSON as benchmarks/layer_cost.py and "
                "benchmarks/gradient_by_distance.py print them"
            ) from None
    return probes


def _check_budget(path: pathlib.Path, budget: Budget, planned: Sequence[Run]) -> None:
    """Keeps the budget of a new comparison; ValueError where what is there had another."""
    if budget.target_tokens and not all(run.config.data.tokens_per_batch for run in planned):
        raise ValueError(
            "config.data.tokens_per_batch=0 leaves the size of a batch to the device's memory, so "
            "that --target_tokens are no number of updates; --train_seconds are"
        )
    text = json.dumps(budget._asdict())
    if path.exists():
        before = path.read_text(encoding="utf-8").strip()
    else:
        trained = [run.workdir for run in planned if (run.workdir / CONFIG_FILE).exists()]
        before = f"nothing of {trained[0]}, which is there" if trained else text
    if before != text:
        raise ValueError(f"{path} says {before}, not {text}: choose another --workdir")
    with atomic_write(path) as file:
        file.write(text + "\n")


def _trained(run: Run, budget: Budget, corpus: Corpus, test: list[Pair]) -> dict[str, Any]:
    """Trains and evaluates a run, unless it is done; a failure is part of the result."""
    logger.info("run %s", run.workdir.name)
    config = dataclasses.asdict(run.config)
    result = {
        "name": run.name,
        "config": config,
        "limited": run.vocabulary_of is not None,
        "pairs": run.config.data.max_pairs or None,
        "status": "failed",
        "error": "",
    }
    samples = _spread(quality.text_lengths([pair.source for pair in test], corpus.source_language))
    try:
        made = _cached(
            run.workdir / _RESULT_FILE,
            [config, samples, test],
            lambda: in_child(runs.train_and_evaluate, run, budget, samples),
        )
    except ChildError as error:
        logger.error("%s failed: %s", run.workdir.name, error)
        return result | {"error": str(error)}
    config["training"]["num_steps"] = made["updates"]
    return result | made | {"status": "done"}


def _spread(lengths: Sequence[int]) -> list[int]:
    """Numbers of sentences from short to long, as a fixed choice."""
    order = np.argsort(lengths, kind="stable")
    positions = np.linspace(0.1, 0.98, min(_SAMPLES, len(order))) * (len(order) - 1)
    return [int(order[round(x)]) for x in positions]


def _speed(run: Run) -> dict[str, Any]:
    logger.info("measuring the speed of %s", run.workdir.name)
    try:
        key = dataclasses.asdict(run.config)
        return _cached(run.workdir / _SPEED_FILE, key, lambda: in_child(runs.speed, run))
    except ChildError as error:
        logger.error("the speed of %s was not measured: %s", run.workdir.name, error)
        return {"train_tokens_per_s": None, "decode_tokens_per_s": None}


def _cached(path: pathlib.Path, key: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds, if that was made of the same key; else it gets what `make` returns."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError, KeyError):
        cached = from_json(path.read_text(encoding="utf-8"))
        if cached["of"] == digest:
            return dict(cached["made"])
    made = make()
    with atomic_write(path) as file:
        json.dump({"of": digest, "made": made}, file, ensure_ascii=False)
    return made


def _scored(result: dict[str, Any], corpus: Corpus, test: list[Pair]) -> dict[str, Any]:
    """A result as in the report: scores in place of translations, and times.

    A time is target tokens at the speed that was measured after all training: the time that a
    run took also depends on what else the machine did meanwhile.
    """
    if result["status"] != "done":
        return result
    per_s = result["train_tokens_per_s"]

    def seconds(tokens: int | None) -> float | None:
        return tokens / per_s if per_s and tokens is not None else None

    scored = dict(result)
    for name in ("loss_curve", "valid_curve"):
        points = result[name]
        scored[name] = [point | {"seconds": seconds(point["target_tokens"])} for point in points]
    scored["train_seconds"] = seconds(result["target_tokens"])
    scored["seconds_per_epoch"] = seconds(scored.pop("epoch_tokens"))
    lengths = quality.text_lengths([pair.source for pair in test], corpus.source_language)
    texts = scored.pop("hypotheses"), [pair.target for pair in test]
    scored |= quality.corpus_scores(*texts, corpus.target_language)
    return scored | {"by_length": quality.by_length(lengths, *texts, corpus.target_language)}


def _significance(results: list[dict], corpus: Corpus, test: list[Pair]) -> list[dict]:
    """Of the difference between each run on all pairs and the next that is done."""
    done = [x for x in results if x["status"] == "done" and not x["limited"]]
    references = [pair.target for pair in test]
    return [
        {"first": first["name"], "second": second["name"]}
        | quality.significance(
            first["hypotheses"], second["hypotheses"], references, corpus.target_language
        )
        for first, second in zip(done, done[1:])
    ]
