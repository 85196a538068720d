"""What peers are given, how they are named, and the tables of what comes out."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import peers
import pytest
from beside import beside_peers
from builders import random_store
from table import table


def test_batches_are_sorted_within_the_budget_and_hold_every_pair(tmp_path):
    store, path = random_store(50), tmp_path / "pairs.npz"
    sides = {"source": store.source, "target": store.target}
    arrays = {f"{name}_ids": side.ids for name, side in sides.items()}
    np.savez(path, **arrays, **{f"{name}_ends": x.offsets[1:] for name, x in sides.items()})
    batches, found = peers.sorted_batches({"pairs": path, "tokens_per_batch": 120}), []
    while len(found) < 50:
        source, target, labels = next(batches)
        assert len(labels) * max(source.shape[1], labels.shape[1]) <= 120
        np.testing.assert_array_equal(target[:, 1:], labels[:, :-1])
        assert (target[:, 0] == peers.BOS).all()
        found += [(tuple(x[x > 0]), tuple(y[y > 0])) for x, y in zip(source, labels)]
    assert sorted(found) == sorted(
        (tuple(store.source[i]), tuple(store.target[i])) for i in range(50)
    )


@pytest.mark.parametrize(("named", "dtype"), [("quick", "float32"), ("quick:int8", "int8")])
def test_a_peer_runs_before_and_after_with_its_dtype(monkeypatch, named, dtype):
    jobs = []

    def run(command, **options):
        jobs.append(json.loads(pathlib.Path(command[-1]).read_text()))
        printed = {"peer": "quick 1.0", "target_tokens_per_s": len(jobs)}
        return subprocess.CompletedProcess(command, 0, json.dumps(printed))

    monkeypatch.setattr(subprocess, "run", run)
    (result,) = beside_peers(
        lambda: {"target_tokens_per_s": 6.0}, named, lambda name, folder: {"dtype": "float32"}
    )
    assert jobs == 2 * [{"dtype": dtype, "peer": "quick"}]
    assert (result["peer"], result["ratio_to_peer"]) == ("quick 1.0", 6.0 / 1.5)


def test_a_command_is_a_peer():
    command = f'{sys.executable} -c "print(\'{{\\"target_tokens_per_s\\": 2}}\')"'
    (result,) = beside_peers(lambda: {"target_tokens_per_s": 3.0}, command, None)
    assert (result["peer_target_tokens_per_s"], result["ratio_to_peer"]) == ([2, 2], 1.5)


def test_a_table_has_what_differs_and_the_speeds():
    lines = [
        {"preset": "tiny", "rows": rows, "seconds": 0.5, "target_tokens_per_s": 1234.5 * rows}
        | {"peer_target_tokens_per_s": [1000, 2000], "ratio_to_peer": 0.823}
        for rows in (1, 32)
    ]
    assert table(lines).splitlines() == [
        "| rows | target_tokens_per_s | peer_target_tokens_per_s | ratio_to_peer |",
        "| --- | --- | --- | --- |",
        "| 1 | 1,234 | 1,500 | 0.82 |",
        "| 32 | 39,504 | 1,500 | 0.82 |",
    ]
    assert table(lines, ["preset"]) == "| preset |\n| --- |\n| tiny |\n| tiny |\n"
