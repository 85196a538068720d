"""train.py and decode.py as a user runs them."""

import io
import json
import operator
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from builders import tiny_model_config
from commands import metrics, run, run_training, start

from transformer_jax import cli
from transformer_jax.__main__ import main, parser_of
from transformer_jax.config import Config, reference
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.training.loop import train


def test_training_ends_well_and_leaves_a_whole_run(trained, home):
    workdir, process = trained
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr and "Warning" not in process.stderr
    assert any(line.startswith("trained to step 6 in") for line in process.stderr.splitlines())
    assert "corpus: BLEU undefined (no reference has 4 tokens), chrF " in process.stdout
    assert "exact match " in process.stdout and f"decode.py --workdir={workdir}" in process.stdout
    names = {path.name for path in workdir.iterdir()}
    assert {"config.json", "vocabulary.model", "checkpoints", "metrics.jsonl"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    assert json.loads((workdir / "test.json").read_text())["sentences"] == 3
    assert Config.from_json((workdir / "config.json").read_text()).model.model_dim == 16
    assert any((home / "cache" / "transformer_jax" / "jax").iterdir())


def test_metrics_are_logged_in_order_and_validation_last(trained):
    lines = metrics(trained[0])
    assert [line["step"] for line in lines] == [2, 4, 6, 6]
    for name in ("loss", "perplexity", "accuracy", "learning_rate", "gradient_norm"):
        assert all(line[name] > 0 or name == "accuracy" for line in lines[:3])
    assert {"valid_loss", "valid_bleu", "valid_chrf", "valid_bleu_signature"} <= lines[3].keys()
    assert lines[3]["valid_bleu"] is None  # no reference has four tokens


def test_a_report_says_how_the_batches_were(trained):
    """Two batches of 256 places a side make no whole epoch of 300 pairs."""
    workdir, process = trained
    told = re.search(
        r"^step 2: smoothed loss ([\d.]+), perplexity .*$", process.stderr, re.MULTILINE
    )
    line = metrics(workdir)[0]
    assert float(told[1]) == pytest.approx(line["loss"], abs=0.001) and len(told[0]) <= 100
    assert line["data_wait_s_per_step"] >= 0 and line["seconds_left"] > 0
    assert line["model_flops_per_s"] > 0 and line["compile_seconds"] > 0
    assert not {"mfu", "peak_memory_bytes"} & line.keys()  # which nobody knows of a CPU
    assert re.search(
        r"^compiled in [\d.]+ s: a step needs [\d.]+ GiB", process.stderr, re.MULTILINE
    )
    assert 0.7 < line["fill"] <= 1 and 0 < line["epochs"][0] < 1
    counts = (
        r"training corpus numbers:train, en-de: 300 pairs, [\d,]+ source and [\d,]+ target tokens"
    )
    assert re.search(counts + "; left out: none", process.stderr)


def test_the_same_command_again_has_nothing_left_to_do(trained, home):
    before = (trained[0] / "metrics.jsonl").read_text()
    process = run_training(home, trained[0])
    assert process.returncode == 0 and "resuming after step 6" in process.stderr
    assert (trained[0] / "metrics.jsonl").read_text() == before


def test_sigterm_saves_and_the_next_start_goes_on(home):
    workdir = home / "stopped"
    flags = ["--config.training.num_steps=1000000", "--config.training.save_every=1000000"]
    command = ["train.py", f"--config={home / 'tiny.py'}", f"--workdir={workdir}", *flags]
    log = home / "stderr"
    with log.open("w") as stderr, start(home, *command, stderr=stderr) as process:
        deadline = time.monotonic() + 240
        while "step 2:" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == os.EX_TEMPFAIL
    last = log.read_text().strip().splitlines()[-1]
    stopped = re.match(r"stopped by SIGTERM\b.* step (\d+);", last)
    assert stopped, last
    assert "Traceback" not in log.read_text()
    step = int(stopped[1])
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(step)]
    again = run_training(home, workdir, f"--config.training.num_steps={step + 4}")
    assert again.returncode == 0 and f"resuming after step {step}" in again.stderr
    steps = [line["step"] for line in metrics(workdir) if "loss" in line]
    assert steps == sorted({*range(2, step + 5, 2), step + 4})  # the last, even or odd


def test_training_goes_on_where_nobody_reads_what_it_prints(home):
    """As with 2>&1 | head; the bar, the log and the scores of the test have nowhere to go."""
    command = ["train.py", f"--config={home / 'tiny.py'}", f"--workdir={home / 'unread'}"]
    command.append(f"--config.data.test=text:{home / 'corpus'}")
    with start(home, *command, stderr=subprocess.STDOUT) as process:
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == 0
    assert (home / "unread" / "checkpoints" / "6").is_dir()
    assert (home / "unread" / "test.json").exists()


TRAIN = ("train", "--config={home}/tiny.py", "--workdir={home}/new")
MISTAKES = {
    "unknown field": ((*TRAIN, "--config.model.num_layer=2"), "config.model.num_layers"),
    "ill-typed value": ((*TRAIN, "--config.model.num_layers=two"), "num_layers"),
    "a fraction for an int": ((*TRAIN, "--config.model.num_layers=2.5"), "num_layers"),
    "heads": ((*TRAIN, "--config.model.num_heads=3"), "config.model.num_heads=3 does not divide"),
    "packed rows for an RNN": ((*TRAIN, "--config.model.kind=gru"), "batching=bucketed gives"),
    "misspelt flag": ((*TRAIN, "--workdirr=x"), "workdirr"),
    "a value of a negation": ((*TRAIN, "--nodry_run=1"), "--nodry_run=1 does not take an argument"),
    "a flag without its value": (("decode", "--workdir"), "Missing value for flag --workdir"),
    "stray argument": ((*TRAIN, "now"), "unexpected argument 'now'; flags are --name=value"),
    "a config without its flag": (
        ("train", "{home}/tiny.py"), "did you mean --config={home}/tiny.py?"
    ),
    "an input without its flag": (
        ("decode", "--workdir={home}", "{home}/output"), "did you mean --input={home}/output?"
    ),
    "configs without their flag": (
        ("compare", "{home}/tiny.py"), "mean --configs={home}/tiny.py?"
    ),
    "an argument for a config that takes none": (
        ("train", "--config={home}/tiny.py:x", "--workdir={home}/new"),
        "{home}/tiny.py:x: its get_config() takes no argument: {home}/tiny.py",
    ),
    "no argument for a config that needs one": (
        ("train", "--config={home}/named.py", "--workdir={home}/new"),
        "{home}/named.py: its get_config() needs one: {home}/named.py:ARGUMENT",
    ),
    "a fraction for a flag": (
        ("decode", "--workdir={home}", "--average=1.5"), "'1.5' is not a whole number, such as"
    ),
    "a workdir that is a file": ((*TRAIN[:2], "--workdir={home}/tiny.py"), "tiny.py is a file;"),
    "a trace of a dry run": (
        (*TRAIN, "--dry_run", "--profile_steps=1:2"), "--profile_steps and --dry_run do not go"
    ),
    "a trace beyond the end": (
        (*TRAIN, "--profile_steps=7:8"), "--profile_steps=7:8 has no effect: the run goes on after"
    ),
    "no config file": (("train", "--config={home}/no.py", "--workdir={home}/new"), "no.py"),
    "misspelt in the config file": (
        ("train", "--config={home}/misspelt.py", "--workdir={home}/new"),
        "{home}/misspelt.py, line 3: TypeError: there is no field config.model.num_layer; did you",
    ),
    "no Config": (("train", "--config={home}/three.py", "--workdir={home}/new"), "Config"),
    "no flags": (("train",), "config"),
    "missing corpus": ((*TRAIN, "--config.data.train=text:{home}/no"), "{home}/no.en"),
    "no cache": (
        (*TRAIN, "--config.data.cache_dir={home}/output/cache"),
        "nothing can be kept there (config.data.cache_dir names another folder)",
    ),
    "below a file": ((*TRAIN[:2], "--workdir={home}/tiny.py/run"), "{home}/tiny.py/run"),
    "no run": (
        ("decode", "--workdir={home}/nowhere", "--output={home}/output"),
        "{home}/nowhere is not the workdir",
    ),
    "no corpus to score": (("decode", "--workdir={home}", "--score"), "--corpus"),
    "no such input": (("decode", "--workdir={home}", "--input={home}/no"), "{home}/no"),
    "two kinds of input": (
        ("decode", "--workdir={home}", "--interactive", "--input={home}/output"), "--interactive"
    ),
    "a beam of nothing": (("decode", "--workdir={home}", "--beam_size=0"), "beam_size"),
    "a port that is none": (("serve", "--workdir={home}", "--port=70000"), "--port=70000 must be"),
    "a queue that holds no request": (
        ("serve", "--workdir={home}", "--max_queue=100"), "is less than the --max_texts=128 that"
    ),
    "serving no run": (
        ("serve", "--workdir={home}/no", "--port=0"), "{home}/no is not the workdir"
    ),
    "a head without alignments": (
        ("decode", "--workdir={home}", "--alignment_head=0"), "--alignment_head needs"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(failing, home, name):
    words, told = MISTAKES[name]
    before = {path: path.read_bytes() for path in home.iterdir() if path.is_file()}
    assert told.format(home=home) in failing(*(word.format(home=home) for word in words))
    assert not (home / "new" / "config.json").exists()
    assert {path: path.read_bytes() for path in home.iterdir() if path.is_file()} == before


def test_what_is_for_a_closed_stderr_is_not_among_the_answers(monkeypatch, capfd, own_process):
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda: cli.end("a sentence", 2))
    sys.stderr.close()
    assert capfd.readouterr() == ("", "")


def test_a_mistake_of_several_lines_is_told_in_one(capsys, own_process):
    def main():
        raise ValueError("one\ntwo")

    with pytest.raises(SystemExit, match="1"):
        cli.run(main)
    assert capsys.readouterr().err == "error: one two\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["usage: transformer-jax COMMAND", "train", "decode", "compare", "quickstart, story"]),
        (["--version"], ["transformer_jax 0.1.0"]),
        (["train", "-h"], ["--config.model.num_layers INT", "Layers of the encoder"]),
        (["compare", "--help"], ["--override FIELD=VALUE"]),
        (["serve", "--help"], ["--port INT", "--max_chars INT", "Seconds until a request"]),
        (["decode", "--help"], ["--beam_size INT", "--input FILE", "GNMT's alpha", "--score"]),
    ],
)
def test_help_names_our_flags_and_is_no_error(monkeypatch, capsys, own_process, words, told):
    monkeypatch.setattr(sys, "argv", ["transformer-jax", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert err == "" and all(text in out for text in told)


def test_the_help_of_training_has_every_field_with_its_help(capsys):
    with pytest.raises(SystemExit):
        parser_of("train").parse(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for row in reference():
        assert f"--{row.name} " in out and row.help in out


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--config.model.num_layers=3"], 3),
        (["--config.model.num_layers", "1_0"], 10),
        (["--config.training.num_steps=2.5M"], 2_500_000),
        (["--config.model.attention_bias"], True),
        (["--config.model.attention_bias=false"], False),
        (["--config.data.byte_fallback", "--noconfig.data.byte_fallback"], False),
        (["--config.data.train=text:a=b"], "text:a=b"),
        (["--config.optimizer.clip_norm", "1e-1"], 0.1),
        (["--config.seed=1", "--config.seed=2"], 2),
    ],
)
def test_a_field_has_a_flag(home, words, value):
    flags = parser_of("train").parse([f"--config={home}/tiny.py", "--workdir=x", *words])
    name = words[0].removeprefix("--config.").partition("=")[0]
    assert operator.attrgetter(name)(cli.config_of(flags)) == value


def test_flags_are_read_from_a_file_as_in_all_absl_programs(tmp_path):
    (tmp_path / "flags").write_text("# of all runs\n--workdir=x\n--config.model.num_layers=3\n")
    flags = parser_of("train").parse([f"--flagfile={tmp_path / 'flags'}", "--config=quickstart"])
    assert flags.workdir == "x" and cli.config_of(flags).model.num_layers == 3


def test_help_is_no_error_and_may_be_read_in_part(home):
    with start(home, "train.py", "--help") as process:
        assert process.stdout.readline().startswith("usage: train.py")
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(60) == 0


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "c.en").write_text("one\ntwo\n")
    (tmp_path / "c.de").write_text("eins\nzwei\n")
    return tmp_path / "c"


def error_of(tmp_path, **data) -> str:
    config = Config(model=tiny_model_config())
    for name, value in data.items():
        setattr(config.data, name, value)
    with pytest.raises((ValueError, OSError)) as error:
        train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_bad_corpus_or_vocabulary_ends_the_training_before_it_begins(corpus, tmp_path):
    text = f"text:{corpus}"
    assert "config.data.train names no corpus" in error_of(tmp_path)
    assert "at most" in error_of(tmp_path, train=text, vocab_size=5000)
    assert "has no pair left" in error_of(
        tmp_path, train=text, vocab_size=14, byte_fallback=False, max_length=2
    )
    short = error_of(tmp_path, train=text, vocab_size=14, byte_fallback=False, source_row_length=2)
    assert "config.data.source_row_length=2 is less than the longest source kept" in short
    unknown = "tfds:wmt14_translat/de-en:train"
    assert "did you mean wmt14_translate" in error_of(tmp_path, train=unknown)
    assert "no.model" in error_of(tmp_path, train=text, vocabulary=str(tmp_path / "no.model"))
    corpus.with_suffix(".de").write_text("eins\n")
    assert "c.en has 2 lines" in error_of(tmp_path, train=text)
    corpus.with_suffix(".de").write_bytes(b"eins\n\xff\n")
    assert "c.de, line 2: not valid UTF-8" in error_of(tmp_path, train=text)
    for side in (".en", ".de"):
        corpus.with_suffix(side).write_text("")
    assert f"{text} is empty" in error_of(tmp_path, train=text)
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_workdir_of_another_config_says_what_differs(trained):
    config = Config.from_json((trained[0] / "config.json").read_text())
    config.model.num_layers = 2
    with pytest.raises(ValueError, match=r"of another config: config\.model\.num_layers: 1 -> 2"):
        train(config, trained[0])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stop_while_the_corpus_is_read_leaves_nothing_half_done(home, tmp_path, name):
    many = [f"--config.data.{x}" for x in ("max_pairs=0", "valid=", f"cache_dir={tmp_path}")]
    # Bytes have neither size nor fallback: those of the config file would be refused.
    many += [f"--config.data.{x}" for x in ("vocabulary_kind=bytes", "vocab_size=8000")]
    many.append("--config.data.byte_fallback")
    command = ["train.py", f"--config={home / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", *many]
    with start(home, *command) as process:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("tokens-*.aside-*/source_ids")):
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.Signals[name])
        _, err = process.communicate(timeout=120)
    assert process.returncode == os.EX_TEMPFAIL
    assert err.splitlines()[-1] == f"stopped by {name}; the same command goes on"
    assert "Traceback" not in err
    assert not list(tmp_path.glob("tokens-*.aside-*")) and not list(
        tmp_path.glob("tokens-*/meta.json")
    )


IN_A_THREAD = """
import sys, threading, jax
from transformer_jax import SearchOptions, Translator, train
from transformer_jax.config import load_config

def work():
    train(load_config(sys.argv[1]), sys.argv[2])
    translator = Translator.from_workdir(sys.argv[2])
    assert all(x.dtype == "float32" for x in jax.tree.leaves(translator.models.params))
    for options in ({"coverage_penalty": 0.2, "no_repeat_ngram": 2}, {"sample": True, "n_best": 2}):
        (translation,) = translator.translate(["two hundred"], SearchOptions(**options))
        assert all(-1e6 < x.log_prob < 0 for x in translation.hypotheses)
    score, alignment = translator.score([("one", "eins")]), translator.align(["one"], ["eins"])
    print("done", score, alignment)

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


def test_a_thread_of_a_program_with_wide_numbers_trains_and_decodes_as_the_command(home, trained):
    """Python takes no signal handlers there, and jax_enable_x64 makes no array of ours wider."""
    command = ["-c", IN_A_THREAD, home / "tiny.py", home / "in-a-thread"]
    done = run(home, *command, variables={"JAX_ENABLE_X64": "1"})
    assert done.stdout.splitlines()[-1].startswith("done"), done.stderr
    assert "Traceback" not in done.stderr
    losses = [
        [x["loss"] for x in metrics(run) if "loss" in x]
        for run in (trained[0], home / "in-a-thread")
    ]
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_characters_that_standard_output_lacks_are_escaped(home):
    main = "from transformer_jax.cli import run\nrun(lambda: print('\u00e9 \ud55c'))"
    done = run(home, "-c", main, variables={"PYTHONIOENCODING": "ascii:strict"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xe9 \\ud55c\n", "")


def test_a_mixture_of_languages_with_tags(home):
    process = run_training(
        home, home / "a mixture", "--config.data.train=numbers:train@en-de,numbers:train@en-fr",
        "--config.data.valid=", "--config.data.language_tags", "--config.data.vocab_size=120",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    for languages in ("en-de", "en-fr"):
        assert f"training corpus numbers:train, {languages}: 300 pairs, " in process.stderr
    assert len(metrics(home / "a mixture")[0]["epochs"]) == 2
    vocabulary = Vocabulary.load(home / "a mixture" / "vocabulary.model")
    pieces = vocabulary.pieces(vocabulary.encode(["<2de> seven", "<2fr> seven"])[0])
    assert pieces[0] == "\u2581<2de>"
    # What training ends with can be pasted, and the tag that a corpus gets is no word of its.
    told = re.search(r"To translate: \S+ (.+) < FILE", process.stdout)
    command = ["decode.py", f"--workdir={home / 'a mixture'}"]
    assert shlex.split(told[1]) == command
    assert run(home, *command, text="<2fr> one\n").returncode == 0
    corpus = f"--corpus=text:{home / 'corpus'}"
    decoded = run(home, *command, corpus, "--alignments", "--format=json", "--prefix=zwei")
    assert decoded.returncode == 0, decoded.stderr
    found = [json.loads(line) for line in decoded.stdout.splitlines()]
    assert [each["source"] for each in found] == ["<2de> seven", "<2de> two hundred", "<2de> one"]
    alignments = [each["hypotheses"][0]["alignment"] for each in found]
    assert [a["source_words"] for a in alignments] == [["seven"], ["two", "hundred"], ["one"]]
    assert {source for source, _ in alignments[0]["links"]} == {0}


TYPHOONS = """
from transformer_jax import cli
from transformer_jax.__main__ import main, parser_of
from transformer_jax.config import Config, reference

def get_config():
    config = Config()
    config.model.num_layers, config.model.model_dim, config.model.num_heads = 1, 64, 4
    config.model.feed_forward_dim, config.model.dropout_rate = 128, 0.0
    config.data.train, config.data.test = "tsv:{folder}/train.tsv", "tsv:{folder}/test.tsv"
    config.data.vocabulary_kind, config.data.max_length = "symbols", 32
    config.data.tokens_per_batch = 2048
    config.optimizer.schedule, config.optimizer.learning_rate = "cosine", 5e-3
    config.optimizer.warmup_steps, config.optimizer.clip_norm = 50, 1.0
    config.training.num_steps, config.training.label_smoothing = 300, 0.0
    config.decoding.beam_size, config.decoding.rows, config.decoding.max_length = 1, 200, 32
    return config
"""


def test_a_month_of_temperatures_tells_a_week_of_typhoons(home):
    """Sequences of symbols that are no language: a day is "yes" where, a week before, t >= 26."""
    draw = random.Random(0)
    lines = []
    for _ in range(3200):
        days = [draw.randrange(15, 35) for _ in range(30)]
        week = ["yes" if day >= 26 else "no" for day in days[-7:]]
        lines.append(" ".join(f"t{day}" for day in days) + "\t" + " ".join(week))
    assert len(set(lines)) == 3200
    (home / "test.tsv").write_text("\n".join(lines[:200]) + "\n")
    (home / "train.tsv").write_text("\n".join(lines[200:]) + "\n")
    (home / "typhoons.py").write_text(TYPHOONS.format(folder=home))
    workdir = home / "typhoons"
    command = ["train.py", f"--config={home / 'typhoons.py'}", f"--workdir={workdir}"]
    process = run(home, *command, variables={"XLA_FLAGS": ""})
    assert process.returncode == 0, process.stderr
    scores = json.loads((workdir / "test.json").read_text())
    assert scores["sentences"] == 200 and scores["exact_match"] >= 0.95
    # Each symbol is one piece: 20 temperatures, yes and no, beside the four special ones.
    assert len(Vocabulary.load(workdir / "vocabulary.model")) == 26
    pairs = [line.split("\t") for line in lines[:50]]
    sources = "".join(f"{source}\n" for source, _ in pairs)
    decoded = run(home, "decode.py", f"--workdir={workdir}", text=sources)
    weeks = decoded.stdout.splitlines()
    assert decoded.returncode == 0 and len(weeks) == 50
    assert sum(week == target for week, (_, target) in zip(weeks, pairs)) >= 47


def test_a_notebooks_output_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    cli.escape_unprintable()
    print("옛")
    assert sys.stdout.getvalue() == "옛\n"
