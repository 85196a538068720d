"""A run: resumed to the bit, stopped by what is not finite, started from another."""

import errno
import functools
import json
import logging
import pathlib
import re
import shutil
import signal
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from builders import tiny_config
from tqdm import tqdm

from transformer_jax.checkpoint import Checkpoints
from transformer_jax.config import Config
from transformer_jax.data.batches import Batches
from transformer_jax.data.corpora import parse_corpora
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.decoding.translator import Hypothesis, Translation, Translator
from transformer_jax.heartbeat import heartbeat
from transformer_jax.interruption import Stop, noted
from transformer_jax.training import loop, validation
from transformer_jax.training import trainer as trainer_module
from transformer_jax.training.divergence import DivergedError
from transformer_jax.training.flops import step_flops
from transformer_jax.training.run import Progress, log_schedule_change
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.validation import LossEvaluator, Validation, rank


def run(config: Config, workdir: pathlib.Path, updates: int) -> Trainer:
    trainer = Trainer(config, workdir)
    for _ in range(updates):
        trainer.advance()
    trainer.save()
    trainer.close()
    return trainer


def reports(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    times = "_per_s", "seconds_left", "compile_seconds"
    return [{k: v for k, v in x.items() if not any(map(k.__contains__, times))} for x in lines]


def assert_equal_to_the_bit(one: Trainer, other: Trainer) -> None:
    leaves = jax.tree.leaves(one.state)
    for got, wanted in zip(leaves, jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(got, wanted)


MIXTURE = {"train": "numbers:train@en-de@3,numbers:train@en-fr@1", "vocab_size": 110}


@pytest.mark.parametrize(
    "sections",
    [
        {"data": MIXTURE | {"sampling_alpha": 0.3}},
        {
            "data": MIXTURE | {"batching": "bucketed", "num_buckets": 2},
            "training": {"accumulate_steps": 2},
        },
    ],
    ids=["packed mixture of sampled segmentations", "bucketed mixture in micro-batches"],
)
def test_six_updates_equal_three_and_a_restart_and_three_to_the_bit(tmp_path, sections):
    """With dropout on; the restart stands between two reports, and finds an empty cache."""
    config = tiny_config(**sections)
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
        trainer = Trainer(tiny_config(data={"sampling_alpha": alpha}), tmp_path / str(alpha))
        trainer.close()
        batches, size = trainer.batches, int(trainer.batches.epoch_sizes[0])
        steps = range(-(-2 * size // batches.batch_rows[0]))
        labels = np.concatenate([batches.batch_at(step).labels for step in steps])
        first, second = (
            {row.tobytes() for row in x} for x in (labels[:size], labels[size:][:size])
        )
        assert (first == second) == (alpha == 0)


def test_epochs_of_each_corpus_are_told_with_the_share_of_real_tokens(tmp_path, monkeypatch):
    config = tiny_config(data=MIXTURE | {"tokens_per_batch": 712})
    monkeypatch.setattr(trainer_module, "peak_flops", lambda: 1e9)
    monkeypatch.setattr(trainer_module, "peak_memory", lambda: 7)
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
    flops_of = step_flops(config.model, trainer.state.params)
    _, row = trainer.batches.shapes[0]
    flops = sum(flops_of(*[(x.segments > 0).sum() for x in b[:2]], row) for b in batches[4:])
    *_, line = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["mfu"] * 1e9 * line["seconds_per_step"] * 2 == pytest.approx(flops)
    assert line["peak_memory_bytes"] == 7


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    config = tiny_config()
    run(config, tmp_path, 2)
    whole = run(config, tmp_path, 2)
    for file in (tmp_path / "checkpoints/4").rglob("d/*"):  # some are left over, and not read
        file.write_bytes(file.read_bytes()[:10])
    with caplog.at_level(logging.WARNING):
        again = Trainer(config, tmp_path)
    assert again.step == 2
    assert "checkpoints/4 is damaged" in caplog.text
    again.advance()
    again.advance()
    again.save()
    again.close()
    assert_equal_to_the_bit(again, whole)


def test_a_mean_of_parameters_is_kept_resumed_evaluated_and_decoded_with(tmp_path):
    config = tiny_config(optimizer={"ema_decay": 0.75}, data={"valid": "numbers:valid"})
    whole = run(config, tmp_path / "whole", 2)
    half = run(config, tmp_path / "parts", 1)
    resumed = run(config, tmp_path / "parts", 1)
    assert_equal_to_the_bit(resumed, whole)
    params = jax.tree.leaves(whole.state.params)
    one = jax.tree.leaves(half.state.params)
    initial = jax.tree.leaves(run(config, tmp_path / "start", 0).state.params)
    for a, b, c, mean in zip(initial, one, params, jax.tree.leaves(whole.state.ema), strict=True):
        expected = 0.75 * (0.75 * np.asarray(a) + 0.25 * np.asarray(b)) + 0.25 * np.asarray(c)
        np.testing.assert_allclose(mean, expected, atol=1e-6)
    used = jax.tree.leaves(Translator.from_workdir(tmp_path / "whole").models.params)
    for x, mean in zip(used, jax.tree.leaves(whole.params), strict=True):
        # Laid out for decoding: its one layer by itself, some kernels turned.
        np.testing.assert_array_equal(np.sort(x, axis=None), np.sort(mean, axis=None))
    assert whole.params is whole.state.ema


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of two updates, and its workdir."""
    workdir = tmp_path_factory.mktemp("first")
    return run(tiny_config(), workdir, 2), workdir


def test_init_from_starts_with_the_other_runs_parameters_and_vocabulary(first, tmp_path, caplog):
    first, workdir = first
    config = tiny_config(data={"max_pairs": 150}, training={"init_from": str(workdir)})
    config.model.activation = "gelu"
    second = Trainer(config, tmp_path / "second")
    assert "has config.model.activation=relu, this run gelu" in caplog.text
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


def test_what_is_refused_changes_nothing_in_the_workdir(first, tmp_path):
    """The config is kept only once the run is open, so that a mended command is accepted."""
    wrong = tiny_config(model={"feed_forward_dim": 8}, training={"init_from": str(first[1])})
    with pytest.raises(ValueError, match=r"of another model: decoder\.feed_forward.*, expected"):
        Trainer(wrong, tmp_path / "second")
    Trainer(tiny_config(), tmp_path / "second").close()
    kept = (tmp_path / "second/config.json").read_text()
    with pytest.raises(FileNotFoundError, match="no file"):
        Trainer(tiny_config(9, data={"train": "text:/nowhere"}), tmp_path / "second")
    assert (tmp_path / "second/config.json").read_text() == kept


def test_one_process_a_workdir(tmp_path):
    trainer = Trainer(tiny_config(), tmp_path)
    with pytest.raises(ValueError, match="another process is training in"):
        Trainer(tiny_config(), tmp_path)
    trainer.close()
    Trainer(tiny_config(), tmp_path).close()


def test_checkpoints_without_their_config_are_not_trained_over(first, tmp_path):
    shutil.copytree(first[1], tmp_path, dirs_exist_ok=True)
    vocabulary = (tmp_path / "vocabulary.model").read_bytes()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        Trainer(tiny_config(data={"vocab_size": 80}), tmp_path)
    assert (tmp_path / "vocabulary.model").read_bytes() == vocabulary


def test_an_evaluation_cut_short_is_made_up_for_on_resuming(tmp_path, monkeypatch):
    config = tiny_config(
        4,
        data={"valid": "numbers:valid"},
        training={"eval_every": 2, "best_metric": "loss"},
    )

    with noted() as stop, monkeypatch.context() as patch:

        def stopped(*_):
            stop.signal = signal.SIGTERM
            stop.check()

        patch.setattr(LossEvaluator, "__call__", stopped)
        trainer = Trainer(config, tmp_path)
        loop.run_to_end(trainer, Validation(trainer), stop, tqdm(disable=True))
        trainer.checkpoints.wait()
        assert trainer.checkpoints.steps() == [2] and trainer.checkpoints.best_step() is None
        trainer.close()
    assert loop.train(config, tmp_path).status == 0
    steps = [line["step"] for line in reports(tmp_path) if "valid_loss" in line]
    assert steps == [2, 4]
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step() in (2, 4) and checkpoints.steps() == [4, 2]
    checkpoints.close()


def test_a_corpus_that_changed_is_not_resumed_on(tmp_path):
    for language in ("en", "de"):
        lines = [f"{a} {b} {c}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr"]
        (tmp_path / f"c.{language}").write_text("\n".join(lines))
    config = tiny_config(data={"train": f"text:{tmp_path}/c", "vocab_size": 40})
    run(config, tmp_path / "run", 1)
    (tmp_path / "c.de").write_text("\n".join(reversed(lines)))
    with pytest.raises(ValueError, match="its content or weights have changed"):
        Trainer(config, tmp_path / "run")


def test_a_mixture_that_changed_is_not_resumed_on(tmp_path):
    run(tiny_config(data=MIXTURE), tmp_path, 1)
    german, french = MIXTURE["train"].split(",")
    weights, order = f"{german[:-1]}1,{french}", f"{french},{german}"
    for other in (weights, order, german):
        with pytest.raises(ValueError, match=r"config\.data\.train|the training corpus"):
            Trainer(tiny_config(data=MIXTURE | {"train": other}), tmp_path).close()


def our_threads() -> list[str]:
    return [x.name for x in threading.enumerate() if x.name.startswith("prefetch")]


def test_a_closed_run_leaves_no_thread(tmp_path):
    trainer = Trainer(tiny_config(data={"valid": "numbers:valid"}), tmp_path)
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
            Trainer(tiny_config(), tmp_path)
    assert not our_threads()
    Trainer(tiny_config(), tmp_path).close()


def test_a_batch_that_cannot_be_made_ends_the_training_with_its_error(tmp_path, monkeypatch):
    make = Batches.batch_at

    def broken(self, step, *processes):
        if step == 2:
            raise OSError("the disk is gone")
        return make(self, step, *processes)

    monkeypatch.setattr(Batches, "batch_at", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        loop.train(tiny_config(training={"save_every": 2}), tmp_path)
    assert not our_threads()
    assert (tmp_path / "checkpoints/2").is_dir()


def test_a_run_whose_last_state_cannot_be_saved_ends_in_an_error(tmp_path, monkeypatch, caplog):
    save = ocp.CheckpointManager.save

    def full(self, step, **items):
        if step != 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, step, **items)

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(OSError, match=r"^checkpoint 6 cannot be written to .*: No space left on"):
        loop.train(tiny_config(6, training={"save_every": 2}), tmp_path)
    assert "checkpoint 2 cannot be written" in caplog.text
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_the_loop_evaluates_keeps_the_best_and_runs_out_of_patience(tmp_path, capsys):
    config = tiny_config(
        100,
        data={"valid": "numbers:valid"},
        # So small that no parameter moves: no evaluation is better than the first.
        optimizer={"learning_rate": 1e-30},
        training={"eval_every": 2, "patience": 2, "best_metric": "loss", "save_every": 3}
        | {"log_every": 4},
    )
    assert loop.train(config, tmp_path).status == 0
    lines = reports(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [4, 6]  # the last update too
    evaluated = [line for line in lines if "valid_loss" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 6]
    assert {"valid_bleu", "valid_chrf", "valid_bleu_signature"} <= evaluated[0].keys()
    assert (tmp_path / "checkpoints/2").is_dir() and (tmp_path / "checkpoints/6").is_dir()
    trainer = Trainer(config, tmp_path)
    assert trainer.checkpoints.best_step() in (2, 6)  # equal scores
    trainer.close()


def test_profile_steps_write_a_trace(tmp_path):
    config = tiny_config(4)
    assert loop.train(config, tmp_path, profile_steps=(1, 2)).status == 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    config.training.num_steps = 9
    with pytest.raises(ValueError, match="=4:5 has no effect: the run goes on after step 4 and en"):
        loop.train(config, tmp_path, profile_steps=(4, 5))
    with pytest.raises(ValueError, match="=10:11 has no effect: .* ends with step 9"):
        loop.train(config, tmp_path / "new", profile_steps=(10, 11))
    assert not (tmp_path / "new").exists() and not our_threads()


def test_the_last_update_is_reported_whether_or_not_a_signal_came_before(tmp_path, monkeypatch):
    config = tiny_config(5)
    assert loop.train(config, tmp_path / "whole").status == 0
    assert [line["step"] for line in reports(tmp_path / "whole")] == [2, 4, 5]
    with noted() as stop, monkeypatch.context() as patch:
        trainer, advance = Trainer(config, tmp_path / "parts"), Trainer.advance

        def stopped(trainer, signal_so_far):
            report = advance(trainer, signal_so_far)
            stop.signal = signal.SIGTERM if trainer.step == 3 else None
            return report

        patch.setattr(Trainer, "advance", stopped)
        loop.run_to_end(trainer, None, stop, tqdm(disable=True))
        trainer.close()
    assert [line["step"] for line in reports(tmp_path / "parts")] == [2]
    assert loop.train(config, tmp_path / "parts").status == 0
    assert reports(tmp_path / "parts") == reports(tmp_path / "whole")


def test_parameters_that_are_not_finite_are_told_at_an_evaluation(tmp_path):
    config = tiny_config(
        data={"valid": "numbers:valid"},
        optimizer={"learning_rate": 1e38, "warmup_steps": 1, "clip_norm": 0.0},
        training={"eval_every": 1},
    )
    with pytest.raises(
        DivergedError, match="validation loss after step 1 is not finite, .*: nothing"
    ):
        loop.train(config, tmp_path)


def test_chrf_and_then_the_loss_decide_where_bleu_is_undefined_or_equal(tmp_path, monkeypatch):
    """Also over a restart: what was best is in the checkpoint."""
    config = tiny_config(
        data={"valid": "numbers:valid"},
        training={"eval_every": 1, "patience": 2, "keep_checkpoints": 1},
    )
    worse = []
    for chrf, loss in [(0.0, 9.0), (40.0, 9.5), (40.0, 9.2), (39.0, 1.0)]:
        scores = {"bleu": None, "chrf": chrf, "exact_match": 0.0, "sentences": 8}, []
        patched = functools.partial(lambda scores, *_, **__: scores, scores)
        monkeypatch.setattr(validation, "score_translator", patched)
        trainer = Trainer(config, tmp_path)
        validate = Validation(trainer)
        validate.loss = lambda *_, loss=loss: {"loss": loss, "perplexity": 1.0}
        trainer.advance()
        trainer.save(validate(Stop()))
        worse.append(trainer.progress.evals_without_improvement)
        trainer.close()
    assert worse == [0, 0, 0, 1]
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step() == 3 and checkpoints.steps() == [4, 3]
    checkpoints.close()
    assert [line["valid_bleu"] for line in reports(tmp_path) if "valid_bleu" in line] == [None] * 4


@pytest.mark.parametrize("metric", ["bleu", "loss"])
def test_the_better_evaluation_ranks_higher(metric):
    rising = {
        "bleu": [(0.0, 0.0, 9.0), (0.0, 0.0, 8.0), (0.0, 5.0, 9.0), (2.0, 1.0, 9.0)],
        "loss": [(50.0, 50.0, 3.0), (0.0, 0.0, 2.0), (None, 0.0, 1.0)],
    }[metric]
    names = ("valid_bleu", "valid_chrf", "valid_loss")
    ranks = [rank(dict(zip(names, values)), metric) for values in rising]
    assert ranks == sorted(ranks) and len({tuple(rank) for rank in ranks}) == len(ranks)
    assert Progress(0).best < ranks[0] == json.loads(json.dumps(ranks[0]))


def test_validation_translates_every_corpus_and_shows_that_it_lives(tmp_path, monkeypatch, caplog):
    for module in ("data.datasets", "training.compile", "training.validation", "evaluation"):
        path = f"transformer_jax.{module}.heartbeat"
        monkeypatch.setattr(path, functools.partial(heartbeat, seconds=0.001))
    valid = "numbers:valid@en-de,numbers:valid@en-ko"
    config = tiny_config(data={"train": valid, "valid": valid, "vocab_size": 150})
    caplog.set_level(logging.INFO, "transformer_jax")
    trainer = Trainer(config, tmp_path)
    with monkeypatch.context() as patch:
        limits = []

        def score_translator(translator, corpora, **options):
            limits.extend(options["limits"])
            return score(translator, corpora, **options)

        score = validation.score_translator
        patch.setattr(validation, "score_translator", score_translator)
        Validation(trainer)(Stop())
    trainer.close()
    (line,) = reports(tmp_path)
    german, korean = line["valid_corpora"]
    assert german["sentences"] == korean["sentences"] == 4 and line["valid_sentences"] == 8
    assert "tok:13a" in german["bleu_signature"] and "tok:char" in korean["bleu_signature"]
    assert line["valid_chrf"] == pytest.approx((german["chrf"] + korean["chrf"]) / 2)
    pairs = [list(corpus)[:4] for corpus in trainer.data.valid_corpora]
    targets = trainer.data.vocabulary.encode([pair.target for of in pairs for pair in of])
    assert limits == [2 * len(target) + 10 for target in targets]
    told = [record.getMessage() for record in caplog.records]
    assert max(map(len, told[-4:])) <= 100
    assert told[-2].startswith("step 0: validation en-ko BLEU ")
    assert any(x.startswith("step 0: smoothed validation loss ") for x in told)
    alive = {x.rpartition(":")[0] for x in told if re.search(r": \d+ s$", x)}
    assert {"training the vocabulary", "computing the validation loss"} <= alive
    assert "translating 8 sentences" in alive
    assert any(x.startswith("compiling for ") for x in alive)


def test_a_longer_cosine_schedule_is_told_when_the_run_goes_on(tmp_path, caplog):
    cosine = {"schedule": "cosine"}
    run(tiny_config(6, optimizer=cosine), tmp_path, 6)
    caplog.set_level(logging.INFO, "transformer_jax")
    trainer = Trainer(tiny_config(12, optimizer=cosine), tmp_path)
    trainer.close()
    schedule = trainer_module.learning_rate_schedule(trainer.config.optimizer, 8, 12)
    # Once the new config is saved, there is nothing to say.
    log_schedule_change(tmp_path, trainer.config, schedule, 6)
    told = [record.getMessage() for record in caplog.records if "cosine" in record.getMessage()]
    rates = f"{schedule(6):.2e} at step 7, falling to {schedule(11):.2e} at step 12"
    assert told == [f"cosine schedule of 12 steps instead of 6: learning rate {rates}"]


def test_a_changed_field_is_refused_with_the_ways_on(first):
    workdir = first[1]
    with pytest.raises(ValueError, match="of another config") as error:
        Trainer(tiny_config(data={"tokens_per_batch": 640}), workdir)
    assert "config.data.tokens_per_batch: 320 -> 640" in str(error.value)
    assert f"--config.training.init_from={workdir} " in str(error.value)


@pytest.mark.parametrize(
    "data",
    [
        {"train": "text:/nowhere"},
        {"vocabulary": "/nowhere"},
        {"test": "text:/nowhere"},
        {"source_row_length": 2},  # found when checkpoints can already be written
    ],
    ids=lambda data: next(iter(data)),
)
def test_a_start_that_fails_leaves_no_folder(tmp_path, data):
    there = tmp_path / "there"
    there.mkdir()
    (there / "notes").write_text("mine")
    for workdir in (tmp_path / "new/run", there):
        with pytest.raises((ValueError, OSError)):
            Trainer(tiny_config(data=data), workdir)
    assert not (tmp_path / "new").exists() and (there / "notes").read_text() == "mine"


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="it can run there")
def test_a_kernel_that_cannot_run_is_told_before_the_corpora_are_read(tmp_path):
    config = tiny_config(model={"attention_kernel": "cudnn"}, data={"train": "text:nowhere"})
    with pytest.raises(ValueError, match="attention_kernel=cudnn needs an NVIDIA GPU"):
        Trainer(config, tmp_path / "run")


def test_a_folder_that_something_was_put_into_meanwhile_stays(tmp_path, monkeypatch):
    def load(workdir, _):
        (workdir / "notes").write_text("mine")
        raise ValueError("bad corpus")

    monkeypatch.setattr(trainer_module, "load_data", load)
    with pytest.raises(ValueError, match="bad corpus"):
        Trainer(tiny_config(), tmp_path / "run")
    assert (tmp_path / "run/notes").read_text() == "mine"


def test_the_test_of_a_mixture_is_a_line_a_corpus(tmp_path, monkeypatch, capsys):
    (tmp_path / "c.en").write_text("one\ntwo\n")
    (tmp_path / "c.de").write_text("ein Hund im Schnee\nzwei\n")
    (tmp_path / "c.ko").write_text("하나\n둘\n")
    names = f"text:{tmp_path}/c@en-de,text:{tmp_path}/c@en-ko"
    answers = ["ein Hund im Schnee", "drei", "하나", "둘"]

    class Stub:
        def translate(self, sources, options, *, limits, on_progress):
            assert sources == ["one", "two"] * 2
            return [Translation([Hypothesis(text, 0.0, 0.0)], False) for text in answers]

    monkeypatch.setattr(Translator, "from_workdir", lambda _: Stub())
    loop.score_test(tiny_config(data={"test": names}), tmp_path)
    german, korean, mean = capsys.readouterr().out.splitlines()[-3:]
    assert german.startswith(f"text:{tmp_path}/c, en-de: BLEU ") and german.endswith("50.0% of 2")
    assert korean == (
        f"text:{tmp_path}/c, en-ko: BLEU undefined (no reference has 4 tokens), chrF 100.00, "
        "exact match 100.0% of 2"
    )
    assert mean.startswith("mean of 2 corpora: BLEU undefined (of a corpus), chrF ")
    scores = json.loads((tmp_path / "test.json").read_text())
    assert scores["bleu"] is None and scores["sentences"] == 4 and scores["exact_match"] == 0.75
    assert scores["corpora"][0]["bleu"] > 0
