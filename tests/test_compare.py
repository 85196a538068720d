"""python -m transformer_jax.compare as a process: a run that fails, going on, bad input."""

import json
import re

import pytest
from commands import run, start

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
TOKENS = "--target_tokens=1000"


@pytest.fixture(scope="module")
def config(home):
    path = home / "compared.py"
    path.write_text(CONFIG.format(corpus=home / "corpus"))
    return path


def compare(home, workdir, config, names, *flags):
    configs = ",".join(f"{config}:{name}" for name in names)
    return run(
        home,
        "-m",
        "transformer_jax.compare",
        f"--workdir={workdir}",
        f"--configs={configs}",
        *flags,
    )


@pytest.fixture(scope="module")
def compared(home, config):
    """A comparison of which one run fails, and what its process left."""
    workdir = home / "comparison"
    names = ("lstm_dot", "rnn_dot", "transformer")
    return workdir, names, compare(home, workdir, config, names, TOKENS)


def test_the_others_go_on_where_a_run_fails_and_the_report_says_it(compared):
    workdir, names, done = compared
    assert done.returncode == 1, done.stderr
    runs = json.loads((workdir / "comparison.json").read_text())["runs"]
    assert [one["name"] for one in runs] == list(names)
    assert [one["status"] for one in runs] == ["done", "failed", "done"]
    assert "is not finite" in runs[1]["error"] and "is not finite" in done.stdout
    assert "lstm_dot: BLEU undefined (no reference has 4 tokens), chrF " in done.stdout
    page = (workdir / "report.html").read_text()
    assert "is not finite" in page and all(name in page for name in names)
    assert "Traceback" not in done.stderr


def test_the_report_has_all_that_was_measured(compared):
    comparison = json.loads((compared[0] / "comparison.json").read_text())
    first, _, last = comparison["runs"]
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
    (test,) = comparison["significance"]
    assert (test["first"], test["second"]) == ("lstm_dot", "transformer")
    assert comparison["layer_costs"] == [] and comparison["initial_gradients"] == {}


@pytest.fixture(scope="module")
def compared_again(home, config, compared):
    """The same with other runs, one of them on fewer pairs, and the failed one left out."""
    workdir, _, _ = compared
    before = json.loads((workdir / "comparison.json").read_text())
    probes = home / "probes.jsonl"
    lines = {"initial_gradients": {"LSTM": [1.0, 0.5]}, "gradient_by_distance": {"lstm": [2, 1]}}
    probes.write_text(f"{json.dumps(lines)}\n{json.dumps({'layer_costs': COSTS})}\n")
    flags = TOKENS, "--pairs=60", f"--probes={probes}"
    done = compare(home, workdir, config, ("lstm_dot", "lstm"), *flags)
    assert done.returncode == 0, done.stderr
    return workdir, before, json.loads((workdir / "comparison.json").read_text())


@pytest.mark.slow
def test_the_same_command_goes_on_and_measures_nothing_twice(compared_again):
    workdir, before, after = compared_again
    assert after["runs"][0] == before["runs"][0]
    assert after["layer_costs"] == COSTS and after["initial_gradients"] == {"LSTM": [1.0, 0.5]}
    gradients = [one.get("gradient_by_distance") for one in after["runs"]]
    assert gradients == [None, [2, 1], None, None]
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


@pytest.mark.parametrize(
    ("names", "flags", "told"),
    [
        (["lstm"], [], "one of --target_tokens and --train_seconds"),
        (["lstm"], [TOKENS, "--train_seconds=5"], "one of --target_tokens and --train_seconds"),
        (["lstm"], [TOKENS, "--pairs=many"], "'many' is not a whole number"),
        (["lstm"], [TOKENS, "--override=data.batching=packed"], "cannot read several pairs"),
        (["lstm"], [TOKENS, "--override=data.test=text:nowhere"], "nowhere.en"),
        (["lstm"], [TOKENS, f"--probes={__file__}"], "is not a line of JSON"),
        (["lstm_dot"], ["--target_tokens=999"], "with --target_tokens=1000, not"),
        (["lstm_dot"], [TOKENS, "--override=seed=1"], "trained with another config"),
    ],
)
def test_bad_input_gets_one_sentence_and_changes_nothing(
    home, config, compared, names, flags, told
):
    workdir, _, _ = compared
    before = (workdir / "comparison.json").read_bytes()
    done = compare(home, workdir, config, names, *flags)
    assert done.returncode in (1, 2) and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and told in line
    assert (workdir / "comparison.json").read_bytes() == before


def test_sigterm_saves_and_the_same_command_goes_on(home, config, tmp_path):
    command = (
        "-m", "transformer_jax.compare", f"--workdir={tmp_path}", f"--configs={config}:gru",
        "--target_tokens=200000", "--override=training.log_every=2",
    )  # fmt: skip
    with start(home, *command) as process:
        for line in process.stderr:
            if "step 4:" in line:
                process.terminate()
                break
        _, err = process.communicate(timeout=120)
    assert process.returncode == 143 and "Traceback" not in err
    assert not (tmp_path / "report.html").exists()
    # The child has saved, and no longer holds the run.
    stopped = int(re.search(r"stopped by SIGTERM at step (\d+)", err)[1])
    with start(home, *command) as process:
        for line in process.stderr:
            if "resuming after step" in line:
                assert f"resuming after step {stopped}" in line
                process.terminate()
                break
        _, err = process.communicate(timeout=120)
    assert process.returncode == 143


@pytest.mark.slow
def test_another_test_corpus_is_translated_anew(home, config, compared_again):
    """And not scored with the translations of the one before."""
    workdir, _, before = compared_again
    for language, lines in (("en", "two\nnine\n"), ("de", "zwei\nneun\n")):
        (home / f"other.{language}").write_text(lines)
    override = f"--override=data.test=text:{home / 'other'}"
    done = compare(home, workdir, config, ("lstm_dot", "lstm"), TOKENS, override)
    assert done.returncode == 0, done.stderr
    after = json.loads((workdir / "comparison.json").read_text())
    assert after["test"]["sentences"] == 2
    shown = {sample["source"] for sample in after["runs"][0]["samples"]}
    assert shown == {"two", "nine"}
    losses = [[p["loss"] for p in x["runs"][0]["loss_curve"]] for x in (before, after)]
    assert losses[0] == losses[1]  # nothing was trained again


def test_a_run_of_another_kind_is_not_taken_over(home, config, trained, tmp_path):
    """One that train.py made may have had any budget."""
    (tmp_path / "gru").symlink_to(trained[0])
    done = compare(home, tmp_path, config, ["gru"], TOKENS)
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    assert not (tmp_path / "budget.json").exists()


@pytest.mark.parametrize("text", ["{", "[1]", '{"tokens": 1}'])
def test_a_damaged_budget_is_told(home, config, tmp_path, text):
    (tmp_path / "budget.json").write_text(text)
    done = compare(home, tmp_path, config, ["gru"], TOKENS)
    assert done.returncode == 1 and "budget.json is damaged" in done.stderr
    assert done.stderr.count("\n") == 1
