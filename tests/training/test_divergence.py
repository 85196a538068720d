"""What diverges is skipped, then rolled back, then ends the run; nothing of it is kept."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import tiny_config

from transformer_jax.training import loop, loss
from transformer_jax.training.divergence import DivergedError
from transformer_jax.training.optimizer import learning_rate_schedule
from transformer_jax.training.trainer import Trainer


@pytest.fixture
def spoil(monkeypatch, tmp_path):
    """A function that multiplies the loss of some batches of the run by a factor."""
    trainer = Trainer(tiny_config(), tmp_path / "look")
    batches = trainer.batches
    trainer.close()

    def spoiled(indices, factor: float) -> None:
        rows = [batches.batch_at(index).labels[0] for index in indices]
        whole = loss.smoothed_cross_entropy

        def patched(logits_BTV, labels_BT, *arguments):
            first, *others = whole(logits_BTV, labels_BT, *arguments)
            length = labels_BT.shape[1]
            bad = [(labels_BT == row[None, :length]).all(-1).any() for row in rows]
            return first * jnp.where(jnp.array(bad).any(), factor, 1.0), *others

        monkeypatch.setattr(loss, "smoothed_cross_entropy", patched)

    return spoiled


def events(workdir) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line.get("loss", 0.0)) for line in lines)
    return [(line["step"], line["event"]) for line in lines if "event" in line]


def test_an_update_that_is_not_finite_changes_nothing_and_is_told(spoil, tmp_path):
    spoil([3], np.nan)
    trainer = Trainer(tiny_config(), tmp_path / "run")
    states = []
    for _ in range(6):
        trainer.advance()
        states.append(jax.device_get(trainer.state))
    trainer.settle()
    trainer.close()
    for before, after in zip(jax.tree.leaves(states[2][1:]), jax.tree.leaves(states[3][1:])):
        np.testing.assert_array_equal(before, after)
    assert int(states[5].step) == 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states[5]))
    changed = [jax.tree.leaves(states[i].params)[0] for i in (3, 4)]
    assert not np.array_equal(*changed)
    (event,) = events(tmp_path / "run")
    assert event == (4, "no update, as the loss or its gradient is not finite")
    *_, report = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    optimizer = trainer.config.optimizer
    used = learning_rate_schedule(optimizer, model_dim=8, num_steps=6)(4)  # the fifth update
    assert report["step"] == 6 and report["learning_rate"] == pytest.approx(float(used))


@pytest.mark.parametrize(("factor", "setting"), [(np.nan, "max_skipped"), (99, "max_loss_ratio")])
def test_too_many_are_rolled_back_and_left_out_also_over_a_restart(
    spoil, tmp_path, factor, setting
):
    spoil([4, 5], factor)
    policy = {"max_skipped": 1} if factor != 99 else {"max_loss_ratio": 3.0}
    config = tiny_config(8, training={"save_every": 3} | policy)
    assert loop.train(config, tmp_path / "whole").status == 0
    step, event = events(tmp_path / "whole")[-1]
    assert step == 4
    last = 4 if factor == 99 else 6  # the fifth alone, then the sixth; or both
    assert event.startswith(f"rolled back from step {last}, whose batches since are left out: ")
    stopped = Trainer(config, tmp_path / "parts")  # as by a signal, after a step or two of them
    for _ in range(3):
        stopped.advance()
    stopped.save()
    for _ in range(1 if factor == 99 else 2):
        stopped.advance()
    stopped.save(regular=False)
    stopped.close()
    assert loop.train(config, tmp_path / "parts").status == 0
    parts, whole = (Trainer(config, tmp_path / name) for name in ("parts", "whole"))
    assert whole.progress == parts.progress and whole.progress.offset == 3
    assert whole.progress.rollbacks == (2 if factor == 99 else 1)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(parts.state), strict=True):
        np.testing.assert_array_equal(a, b)
    whole.close()
    parts.close()


def test_a_finished_checkpoint_is_never_deleted(spoil, tmp_path):
    """Also where intervals have changed since, so that no checkpoint is of the new ones."""
    spoil([8, 9], np.nan)
    config = tiny_config(7, training={"save_every": 3, "keep_checkpoints": 1, "max_skipped": 1})
    assert loop.train(config, tmp_path).status == 0
    config.training.num_steps, config.training.save_every = 12, 5
    assert loop.train(config, tmp_path).status == 0
    assert events(tmp_path)[-1][0] == 8  # after the seventh


def test_a_run_that_always_diverges_ends_and_says_what_may_help(tmp_path, monkeypatch):
    config = tiny_config(99, optimizer={"learning_rate": 1e30, "clip_norm": 0.0, "warmup_steps": 1})
    with pytest.raises(DivergedError, match="not finite.* after 3 roll-backs: nothing was.* lower"):
        loop.train(config, tmp_path)
    assert not list((tmp_path / "checkpoints").iterdir())
