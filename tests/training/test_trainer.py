"""A run: resumed to the bit, stopped by what is not finite, started from another."""

import json
import logging
import pathlib
import shutil
import signal
import sys
import threading

import jax
import numpy as np
import pytest
from tqdm import tqdm

import transformer_jax
from transformer_jax.config import (
    Config,
    DataConfig,
    DecodingConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from transformer_jax.data.batching import Batches
from transformer_jax.data.corpus import parse_corpora
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.decoding.translator import Translator
from transformer_jax.training import loop
from transformer_jax.training import trainer as trainer_module
from transformer_jax.training.checkpoint import Checkpoints
from transformer_jax.training.interrupt import Interrupt
from transformer_jax.training.trainer import NotFiniteError, Trainer


def make_config(num_steps: int = 6, **sections: dict) -> Config:
    """A model of 500 weights or so on 200 numbers, with dropout."""
    fields = {
        "model": {
            "num_layers": 1,
            "model_dim": 8,
            "num_heads": 2,
            "feed_forward_dim": 16,
            "dropout_rate": 0.3,
        },
        "data": {
            "train": "numbers:train",
            "max_pairs": 200,
            "vocab_size": 90,
            "vocabulary_kind": "bpe",
            "max_length": 40,
            "tokens_per_batch": 320,
        },
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 4, "clip_norm": 1.0},
        "training": {"log_every": 2, "save_every": 100},
        "decoding": {"beam_size": 2, "max_length": 24, "rows": 8},
    }
    for name, values in sections.items():
        fields[name] |= values
    fields["training"]["num_steps"] = num_steps
    if fields["data"].get("valid"):
        fields["training"] = {"eval_every": 0, "eval_sentences": 8} | fields["training"]
    classes = (ModelConfig, DataConfig, OptimizerConfig, TrainingConfig, DecodingConfig)
    return Config(
        **{name: make(**fields[name]) for name, make in zip(fields, classes, strict=True)}
    )


def run(config: Config, workdir: pathlib.Path, updates: int) -> Trainer:
    trainer = Trainer(config, workdir)
    for _ in range(updates):
        trainer.advance()
    trainer.save()
    trainer.close()
    return trainer


def reports(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    speeds = ("target_tokens_per_s", "seconds_per_step", "data_wait_s_per_step", "seconds_left")
    return [{k: v for k, v in line.items() if k not in speeds} for line in lines]


def assert_equal_to_the_bit(one: Trainer, other: Trainer) -> None:
    leaves = jax.tree.leaves(one.state)
    for got, wanted in zip(leaves, jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(got, wanted)


MIXTURE = {"train": "numbers:train@en-de@3,numbers:train@en-fr@1", "vocab_size": 110}


@pytest.mark.parametrize(
    "sections",
    [
        {"data": MIXTURE},
        {"data": MIXTURE | {"batching": "bucketed"}, "training": {"accumulate_steps": 2}},
        {"data": {"sampling_alpha": 0.3}},
    ],
    ids=["packed mixture", "bucketed mixture in micro-batches", "other segmentations"],
)
def test_six_updates_equal_three_and_a_restart_and_three_to_the_bit(tmp_path, sections):
    """With dropout on; the restart stands between two reports, and finds an empty cache."""
    config = make_config(**sections)
    whole = run(config, tmp_path / "whole", 6)
    config.data.cache_dir = str(tmp_path / "cache")
    run(config, tmp_path / "parts", 3)
    shutil.rmtree(tmp_path / "cache")
    resumed = run(config, tmp_path / "parts", 3)
    assert resumed.step == whole.step == 6
    assert_equal_to_the_bit(resumed, whole)
    assert reports(tmp_path / "parts") == reports(tmp_path / "whole")
    assert len(reports(tmp_path / "whole")) == 3


def test_segmentations_are_drawn_anew_in_each_epoch(tmp_path):
    """Without drawing, an epoch has the rows of the one before."""
    for alpha in (0.0, 0.3):
        trainer = Trainer(make_config(data={"sampling_alpha": alpha}), tmp_path / str(alpha))
        trainer.close()
        batches, size = trainer.batches, int(trainer.batches.epoch_sizes[0])
        steps = range(-(-2 * size // batches.batch_rows[0]))
        labels = np.concatenate([batches.batch_at(step).labels for step in steps])
        first, second = (
            {row.tobytes() for row in x} for x in (labels[:size], labels[size:][:size])
        )
        assert (first == second) == (alpha == 0)


def test_epochs_of_each_corpus_are_told_with_the_share_of_real_tokens(tmp_path):
    config = make_config(data=MIXTURE | {"tokens_per_batch": 544})
    trainer = run(config, tmp_path, 6)
    batches = [trainer.batches.batch_at(step) for step in range(6)]
    pairs = sum(int(batch.target.segments.max(axis=1).sum()) for batch in batches)
    report = reports(tmp_path)[-1]
    # Of 200 pairs each, three of one corpus for one of the other.
    german, french = report["epochs"]
    assert german == pytest.approx(3 * french, rel=0.3)
    assert 200 * (german + french) == pytest.approx(pairs, rel=0.1)
    real = sum((x.segments > 0).sum() for batch in batches[4:] for x in batch[:2])
    places = sum(x.segments.size for batch in batches[4:] for x in batch[:2])
    assert len(batches[0].labels) % jax.local_device_count() == 0  # or empty rows are added
    assert report["fill"] == pytest.approx(real / places)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    config = make_config()
    run(config, tmp_path, 2)
    whole = run(config, tmp_path, 2)
    largest = max((tmp_path / "checkpoints/4").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:10])
    with caplog.at_level(logging.WARNING):
        again = Trainer(config, tmp_path)
    assert again.step == 2
    assert "checkpoints/4 is damaged" in caplog.text
    again.advance()
    again.advance()
    again.save()
    again.close()
    assert_equal_to_the_bit(again, whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path):
    config = make_config(optimizer={"learning_rate": 1e30, "clip_norm": 0.0, "warmup_steps": 1})
    trainer = Trainer(config, tmp_path)
    with pytest.raises(NotFiniteError, match="not finite: .*; a lower"):
        for _ in range(6):
            trainer.advance()
            trainer.save()
    saved = trainer.checkpoints.steps()
    trainer.close()
    for step in saved:
        translator = Translator.from_workdir(tmp_path, checkpoint=str(step))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(translator.models.params))


def test_init_from_starts_with_the_other_runs_parameters_and_vocabulary(tmp_path):
    first = run(make_config(), tmp_path / "first", 2)
    config = make_config(data={"max_pairs": 150}, training={"init_from": str(tmp_path / "first")})
    second = Trainer(config, tmp_path / "second")
    second.close()
    assert second.step == 0
    assert second.data.vocabulary.model == first.data.vocabulary.model
    leaves = jax.tree.leaves(second.state.params)
    for got, wanted in zip(leaves, jax.tree.leaves(first.state.params), strict=True):
        np.testing.assert_array_equal(got, wanted)
    # As large, of other pieces: what each row of the table means would be another.
    other = Vocabulary.train([parse_corpora("numbers:valid", "en", "fr")[0]], 90, "bpe")
    other.save(tmp_path / "other.model")
    config.data.vocabulary = str(tmp_path / "other.model")
    with pytest.raises(ValueError, match="has another vocabulary than this run.*: leave config.d"):
        Trainer(config, tmp_path / "third")


def test_init_from_another_shape_says_which_parameter(tmp_path):
    run(make_config(), tmp_path / "first", 1)
    config = make_config(
        model={"feed_forward_dim": 8}, training={"init_from": str(tmp_path / "first")}
    )
    with pytest.raises(ValueError, match=r"parameter decoder\.0\.feed_forward.* was wanted"):
        Trainer(config, tmp_path / "second")


def test_what_is_refused_changes_nothing_in_the_workdir(tmp_path):
    """The config is kept only once the run is open, so that a mended command is accepted."""
    run(make_config(), tmp_path / "first", 1)
    wrong = make_config(
        model={"feed_forward_dim": 8}, training={"init_from": str(tmp_path / "first")}
    )
    with pytest.raises(ValueError, match="was wanted"):
        Trainer(wrong, tmp_path / "second")
    Trainer(make_config(), tmp_path / "second").close()
    kept = (tmp_path / "second/config.json").read_text()
    with pytest.raises(FileNotFoundError, match="no file"):
        Trainer(make_config(9, data={"train": "text:/nowhere"}), tmp_path / "second")
    assert (tmp_path / "second/config.json").read_text() == kept


def test_one_process_a_workdir(tmp_path):
    trainer = Trainer(make_config(), tmp_path)
    with pytest.raises(ValueError, match="another process is training in"):
        Trainer(make_config(), tmp_path)
    trainer.close()
    Trainer(make_config(), tmp_path).close()


def test_checkpoints_without_their_config_are_not_trained_over(tmp_path):
    run(make_config(), tmp_path, 1)
    vocabulary = (tmp_path / "vocabulary.model").read_bytes()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        Trainer(make_config(data={"vocab_size": 80}), tmp_path)
    assert (tmp_path / "vocabulary.model").read_bytes() == vocabulary


def test_an_evaluation_cut_short_is_made_up_for_on_resuming(tmp_path, monkeypatch):
    config = make_config(
        4,
        data={"valid": "numbers:valid"},
        training={"eval_every": 2, "best_metric": "loss"},
    )

    with Interrupt() as interrupt, monkeypatch.context() as patch:

        def stopped(*_):
            interrupt.signal = signal.SIGTERM
            interrupt.check()

        patch.setattr(Trainer, "evaluate", stopped)
        trainer = Trainer(config, tmp_path)
        loop.run_to_end(trainer, interrupt, tqdm(disable=True), None)
        trainer.checkpoints.wait()
        assert trainer.checkpoints.steps() == [2] and trainer.checkpoints.best_step() is None
        trainer.close()
    assert loop.train(config, tmp_path) == 0
    steps = [line["step"] for line in reports(tmp_path) if "valid_loss" in line]
    assert steps == [2, 4]
    assert not list((tmp_path / "checkpoints").glob("replaced-*"))
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step() in (2, 4) and checkpoints.steps() == [4, 2]
    checkpoints.close()


def test_a_corpus_that_changed_is_not_resumed_on(tmp_path):
    for language in ("en", "de"):
        lines = [f"{a} {b} {c}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr"]
        (tmp_path / f"c.{language}").write_text("\n".join(lines))
    config = make_config(data={"train": f"text:{tmp_path}/c", "vocab_size": 40})
    run(config, tmp_path / "run", 1)
    (tmp_path / "c.de").write_text("\n".join(reversed(lines)))
    with pytest.raises(ValueError, match="its content or weights have changed"):
        Trainer(config, tmp_path / "run")


@pytest.mark.parametrize("changed", ["weights", "order", "number"])
def test_a_mixture_that_changed_is_not_resumed_on(tmp_path, changed):
    run(make_config(data=MIXTURE), tmp_path, 1)
    german, french = MIXTURE["train"].split(",")
    other = {
        "weights": f"{german[:-1]}1,{french}",
        "order": f"{french},{german}",
        "number": german,
    }[changed]
    with pytest.raises(ValueError, match=r"config\.data\.train|the training corpus"):
        Trainer(make_config(data=MIXTURE | {"train": other}), tmp_path).close()


def test_a_run_of_an_older_version_is_not_resumed(tmp_path):
    """Its checkpoints do not say how many tokens a batch has: it had other batches."""
    run(make_config(), tmp_path, 1)
    (kept,) = (tmp_path / "checkpoints").rglob("run/metadata")
    saved = json.loads(kept.read_text())
    del saved["progress"]["tokens_per_batch"]
    kept.write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=r"older version.*config\.training\.init_from"):
        Trainer(make_config(), tmp_path)


def our_threads() -> list[threading.Thread]:
    """Threads that are inside a function of the package."""

    def files(frame):
        while frame:
            yield frame.f_code.co_filename
            frame = frame.f_back

    package, frames = str(pathlib.Path(transformer_jax.__file__).parent), sys._current_frames()
    return [
        thread
        for thread in threading.enumerate()
        if thread is not threading.current_thread()
        and any(file.startswith(package) for file in files(frames.get(thread.ident)))
    ]


def test_a_closed_run_leaves_no_thread(tmp_path):
    trainer = Trainer(make_config(data={"valid": "numbers:valid"}), tmp_path)
    trainer.advance()
    assert our_threads()
    trainer.close()
    assert not our_threads()


def test_a_run_that_cannot_be_opened_leaves_no_thread_and_no_lock(tmp_path, monkeypatch):
    def refused(*_):
        assert our_threads()
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "MetricLog", refused)
        with pytest.raises(OSError, match="no space left"):
            Trainer(make_config(), tmp_path)
    assert not our_threads()
    Trainer(make_config(), tmp_path).close()


def test_a_batch_that_cannot_be_made_ends_the_training_with_its_error(tmp_path, monkeypatch):
    make = Batches.batch_at

    def broken(self, step, *processes):
        if step == 2:
            raise OSError("the disk is gone")
        return make(self, step, *processes)

    monkeypatch.setattr(Batches, "batch_at", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        loop.train(make_config(training={"save_every": 2}), tmp_path)
    assert not our_threads()
    assert (tmp_path / "checkpoints/2").is_dir()


def test_the_loop_evaluates_keeps_the_best_and_runs_out_of_patience(tmp_path, capsys):
    config = make_config(
        100,
        data={"valid": "numbers:valid"},
        # So small that no parameter moves: no evaluation is better than the first.
        optimizer={"learning_rate": 1e-30},
        training={"eval_every": 2, "patience": 2, "best_metric": "loss", "save_every": 3},
    )
    assert loop.train(config, tmp_path) == 0
    lines = reports(tmp_path)
    evaluated = [line for line in lines if "valid_loss" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 6]
    assert {"valid_bleu", "valid_chrf", "valid_bleu_signature"} <= evaluated[0].keys()
    assert (tmp_path / "checkpoints/2").is_dir() and (tmp_path / "checkpoints/6").is_dir()
    assert f"--workdir={tmp_path}" in capsys.readouterr().out
    trainer = Trainer(config, tmp_path)
    assert trainer.checkpoints.best_step() in (2, 6)  # equal scores
    trainer.close()


def test_profile_steps_write_a_trace(tmp_path):
    config = make_config(4)
    assert loop.train(config, tmp_path, profile_steps=(1, 2)) == 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    config.training.num_steps = 9
    with pytest.raises(ValueError, match="=4:5 has no effect: the run goes on after step 4 and en"):
        loop.train(config, tmp_path, profile_steps=(4, 5))
    with pytest.raises(ValueError, match="=10:11 has no effect: .* ends with step 9"):
        loop.train(config, tmp_path / "new", profile_steps=(10, 11))
    assert not (tmp_path / "new").exists() and not our_threads()
