"""Comparisons from configs to report: a run that fails, going on, bad input, as a process."""

import json
import os
import re

import gradient_by_distance
import pytest
from commands import run, start

from transformer_jax.compare import comparison
from transformer_jax.compare.children import ChildError
from transformer_jax.compare.comparison import Budget, compare

CONFIG = """
from transformer_jax.config import Config

def get_config(name):
    config = Config()
    config.model.kind = name.partition("_")[0]
    if name != "transformer":
        config.model.attention = name.partition("_")[2] or "none"
    config.model.num_layers, config.model.model_dim = 1, 16
    if name == "transformer":
        config.model.num_heads, config.model.feed_forward_dim = 2, 16
    config.data.train, config.data.valid = "numbers:train", "text:{corpus}"
    config.data.test = "text:{corpus}"
    config.data.vocab_size, config.data.vocabulary_kind, config.data.max_pairs = 100, "bpe", 300
    config.data.byte_fallback = False
    config.data.tokens_per_batch, config.data.num_buckets = 256, 1
    config.data.batching = "bucketed"
    config.training.num_steps, config.training.log_every, config.training.eval_every = 6, 2, 4
    config.decoding.max_length, config.decoding.rows, config.decoding.beam_size = 32, 8, 2
    if name == "rnn_dot":  # the first update makes numbers that are none
        config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e38, 1
    return config
"""
COSTS = [
    {"layer": "lstm", "n": n, "d": 8, "seconds": n, "bytes": n, "operations": n, "steps": n}
    for n in (1, 2)
]
BUDGET = Budget(target_tokens=1000)
NAMES = ("lstm_dot", "rnn_dot", "transformer")


def in_this_process(function, *arguments):
    try:
        return function(*arguments)
    except ValueError as error:
        raise ChildError(str(error)) from None


@pytest.fixture(scope="module", autouse=True)
def without_children():
    """A new process for each run would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "in_child", in_this_process)
        yield


@pytest.fixture(scope="module")
def config(home):
    path = home / "compared.py"
    path.write_text(CONFIG.format(corpus=home / "corpus"))
    return path


@pytest.fixture(scope="module")
def compared(tmp_path_factory, config):
    """The workdir of a comparison of which one run fails, and what it returned."""
    workdir = tmp_path_factory.mktemp("comparison")
    return workdir, compare([f"{config}:{name}" for name in NAMES], workdir, BUDGET)


def test_the_others_go_on_where_a_run_fails_and_the_report_says_it(compared):
    workdir, made = compared
    assert json.loads((workdir / "comparison.json").read_text()) == made
    runs = made["runs"]
    assert [one["name"] for one in runs] == list(NAMES)
    assert [one["status"] for one in runs] == ["done", "failed", "done"]
    assert "is not finite" in runs[1]["error"]
    page = (workdir / "report.html").read_text()
    assert "is not finite" in page and all(name in page for name in NAMES)


def test_the_report_has_all_that_was_measured(compared):
    made = compared[1]
    first, _, last = made["runs"]
    assert first["target_tokens"] == pytest.approx(1000, rel=0.15)
    assert first["updates"] == last["updates"]
    for one in (first, last):
        assert one["train_tokens_per_s"] > 0 and one["decode_tokens_per_s"] > 0
        assert one["parameters"] > 1000 and one["seconds_per_epoch"] > 0 and one["pairs"] == 300
        assert one["loss_curve"][-1]["loss"] > 0 and one["valid_curve"][-1]["chrf"] >= 0
        # Its references are single words.
        assert one["valid_curve"][-1]["bleu"] is one["bleu"] is None and one["chrf"]["score"] >= 0
        assert sum(part["sentences"] for part in one["by_length"]) == 3
        for sample in one["samples"]:
            attention = sample["attention"]
            assert len(attention["weights"]) == len(attention["target_tokens"])
            for row in attention["weights"]:
                assert len(row) == len(attention["source_tokens"])
                assert sum(row) == pytest.approx(1, abs=0.01)
    (test,) = made["significance"]
    assert (test["first"], test["second"]) == ("lstm_dot", "transformer")
    assert made["layer_costs"] == [] and made["initial_gradients"] == {}


@pytest.fixture(scope="module")
def compared_again(home, config, compared):
    """The same with another run, also on fewer pairs, and with probes."""
    workdir, before = compared
    probes = home / "probes.jsonl"
    lines = {"initial_gradients": {"LSTM": [1.0, 0.5]}, "gradient_by_distance": {"lstm": [2, 1]}}
    probes.write_text(f"{json.dumps(lines)}\n{json.dumps({'layer_costs': COSTS})}\n")
    configs = [f"{config}:{name}" for name in ("lstm_dot", "lstm")]
    return workdir, before, compare(configs, workdir, BUDGET, pairs=[60], probes=probes)


def test_the_same_command_goes_on_and_measures_nothing_twice(compared_again):
    workdir, before, after = compared_again
    gradients = [one.pop("gradient_by_distance") for one in after["runs"]]
    assert gradients == [None, [2, 1], None, None]
    assert after["layer_costs"] == COSTS and after["initial_gradients"] == {"LSTM": [1.0, 0.5]}
    assert before["runs"][0] == after["runs"][0] | {"gradient_by_distance": None}
    assert [(one["name"], one["pairs"], one["limited"]) for one in after["runs"]] == [
        ("lstm_dot", 300, False),
        ("lstm", 300, False),
        ("lstm_dot", 60, True),
        ("lstm", 60, True),
    ]
    assert all(sample["attention"] is None for sample in after["runs"][1]["samples"])
    vocabularies = {
        (workdir / name / "vocabulary.model").read_bytes() for name in ("lstm_dot", "lstm_dot-60")
    }
    assert len(vocabularies) == 1


def test_gradients_of_a_trained_run_are_named_by_its_folder(compared, monkeypatch):
    monkeypatch.setattr(gradient_by_distance, "KINDS", {})
    probes = gradient_by_distance.measure([str(compared[0] / "lstm_dot")], length=4, model_dim=8)
    assert list(probes["gradient_by_distance"]) == ["lstm_dot"]
    assert len(probes["gradient_by_distance"]["lstm_dot"]) == 4


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--alignments", "--attention_html=page.html"])
def test_a_model_without_attention_is_asked_for_it_in_vain(home, compared_again, flag, tmp_path):
    """By a run of the comparison, which is one as train.py leaves it."""
    flags = [
        flag.replace("page", str(tmp_path / "page")),
        f"--workdir={compared_again[0] / 'lstm'}",
    ]
    done = run(home, "decode.py", *flags, text="seven\n")
    assert done.returncode == 1 and done.stdout == ""
    assert "error: the model has no attention" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_another_test_corpus_is_translated_anew(home, config, compared):
    """And not scored with the translations of the one before."""
    workdir, before = compared
    for language, lines in (("en", "two\nnine\n"), ("de", "zwei\nneun\n")):
        (home / f"other.{language}").write_text(lines)
    override = f"data.test=text:{home / 'other'}"
    after = compare([f"{config}:lstm_dot"], workdir, BUDGET, overrides=[override])
    assert after["test"]["sentences"] == 2
    shown = {sample["source"] for sample in after["runs"][0]["samples"]}
    assert shown == {"two", "nine"}
    losses = [[p["loss"] for p in x["runs"][0]["loss_curve"]] for x in (before, after)]
    assert losses[0] == losses[1]  # nothing was trained again


def test_a_tag_that_the_vocabulary_lacks_is_told_before_training(home, config, tmp_path):
    for language in ("en", "fr"):
        (home / f"french.{language}").write_text("un\n")
    overrides = ["data.language_tags=true", f"data.test=text:{home / 'french'}@en-fr"]
    made = compare([f"{config}:lstm_dot"], tmp_path, BUDGET, overrides=overrides)
    assert "the vocabulary has no symbol <2fr>" in made["runs"][0]["error"]
    assert not (tmp_path / "lstm_dot").exists()


@pytest.mark.parametrize(
    ("budget", "options", "told"),
    [
        (BUDGET, {"overrides": ["data.test=text:nowhere"]}, "nowhere.en"),
        (BUDGET, {"overrides": ["data.test=numbers:0-9,numbers:0-9@de-zh"]}, "de and zh: expected"),
        (BUDGET, {"overrides": ["seed=1"]}, "a run of another config: config.seed: 0 -> 1"),
        (BUDGET, {"probes": __file__}, "is not a line of JSON"),
        (Budget(999), {}, '"target_tokens": 1000, .*not .*"target_tokens": 999, .* choose another'),
        (Budget(0, 5.0), {}, "choose another --workdir"),
        (BUDGET, {"overrides": ["data.tokens_per_batch=0"]}, "tokens_per_batch"),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(config, compared, budget, options, told):
    workdir, _ = compared
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("[!.]*")}
    with pytest.raises((ValueError, OSError), match=told):
        compare([f"{config}:lstm_dot"], workdir, budget, **options)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("[!.]*")} == before


def test_probes_nested_too_deeply_are_told_as_other_lines(config, compared, tmp_path):
    (tmp_path / "probes").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not a line of JSON"):
        compare([f"{config}:lstm_dot"], compared[0], BUDGET, probes=tmp_path / "probes")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "one of --target_tokens and --train_seconds"),
        (["--target_tokens=9", "--train_seconds=5"], "one of --target_tokens and --train_seconds"),
        (["--target_tokens=9", "--pairs=many"], "'many' is not a whole number"),
    ],
)
def test_flags_are_checked_first(failing, config, tmp_path, flags, told):
    flags = [f"--workdir={tmp_path / 'new'}", f"--configs={config}:lstm", *flags]
    assert told in failing("compare", *flags)
    assert not (tmp_path / "new").exists()


def test_a_run_that_no_comparison_trained_is_not_taken_over(config, compared, tmp_path):
    """It may have had any budget."""
    (tmp_path / "lstm_dot").symlink_to(compared[0] / "lstm_dot")
    with pytest.raises(ValueError, match="says nothing of .*lstm_dot, which is there"):
        compare([f"{config}:lstm_dot"], tmp_path, BUDGET)
    assert not (tmp_path / "budget.json").exists()


def test_a_damaged_budget_is_told(config, tmp_path):
    (tmp_path / "budget.json").write_text("{")
    with pytest.raises(ValueError, match="budget.json says {, not "):
        compare([f"{config}:gru"], tmp_path, BUDGET)


def test_sigterm_saves_and_the_same_command_goes_on_to_the_end(home, config, tmp_path):
    command = (
        *("-m", "transformer_jax", "compare", f"--workdir={tmp_path}", "--target_tokens=60000"),
        *(f"--configs={config}:gru,{config}:rnn_dot", "--override=training.log_every=2"),
        "--override=training.eval_every=0",
    )
    with start(home, *command) as process:
        for line in process.stderr:
            if "step 4:" in line:
                process.terminate()
                break
        _, err = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL and "Traceback" not in err
    assert not (tmp_path / "report.html").exists()
    # The child has saved, and no longer holds the run.
    stopped = int(re.search(r"stopped by SIGTERM at step (\d+)", err)[1])
    done = run(home, *command)
    assert f"resuming after step {stopped}\n" in done.stderr and "Traceback" not in done.stderr
    assert done.returncode == 1
    assert "gru: BLEU undefined (no reference has 4 tokens), chrF " in done.stdout
    assert re.search("^rnn_dot: .* is not finite", done.stdout, re.MULTILINE)
    assert f"Report: {tmp_path / 'report.html'}" in done.stdout
    assert (tmp_path / "report.html").exists()
