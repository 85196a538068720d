"""decode.py as a user runs it."""

import gzip
import json
import lzma
import os
import re
import shlex
import shutil
import signal
import sys

import pytest
from builders import tiny_config
from commands import ROOT, run, start

from transformer_jax import train
from transformer_jax.__main__ import parser_of
from transformer_jax.commands import decode as decode_command
from transformer_jax.decoding import streaming
from transformer_jax.saved_run import load_run, read_config


def test_decoding_gives_a_line_for_each_line(trained, home):
    """By the command that training ends with."""
    (command,) = re.findall(r"^To translate: (.+) < FILE   \(a s", trained[1].stdout, re.MULTILINE)
    python, *command = shlex.split(command)
    assert str(ROOT / python) == sys.executable
    assert command == ["decode.py", f"--workdir={trained[0]}"]
    process = run(home, *command, text="seven\n\ntwo hundred one\n")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.split("\n")
    assert len(lines) == 4 and lines[1] == lines[3] == ""


def test_a_run_of_a_machine_with_other_kernels_is_read(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    config = read_config(workdir)
    config.model.attention_kernel = "cudnn"
    (workdir / "config.json").write_text(config.to_json())
    assert load_run(workdir)[0].model.attention_kernel == "cudnn"


def decode(trained, home, *flags, text="seven\n\ntwo hundred one\n", told=None):
    process = run(home, "decode.py", f"--workdir={trained[0]}", *flags, text=text)
    assert process.returncode == 0, process.stderr
    assert told is None or process.stderr == told
    return process.stdout.split("\n")[:-1]


def test_compressed_lines_and_prefixes_are_read_like_a_corpus(trained, home, tmp_path):
    """Too long a prefix leaves its own line alone empty."""
    lines, prefixes = tmp_path / "in.gz", tmp_path / "prefixes.xz"
    lines.write_bytes(gzip.compress("\ufeffseven\n\u3000\ntwo hundred one\nseven".encode()))
    prefixes.write_bytes(lzma.compress(f"\ufeffein\n\n\n{'zwei' * 8}\n".encode()))
    flags = [f"--input={lines}", f"--prefix_file={prefixes}", "--max_length_ratio=4", "--n_best=2"]
    process = run(home, "decode.py", f"--workdir={trained[0]}", *flags)
    assert process.returncode == 0, process.stderr
    out = process.stdout.split("\n")
    assert len(out) == 9 and all(text.startswith("ein") for text in out[:2])
    assert out[2:4] == out[6:8] == ["", ""] and out[4]
    (told,) = process.stderr.splitlines()
    assert told.startswith(f"{lines}, line 4: the prefix 'zweizwei") and told.endswith("; left out")


def test_json_lines_say_all_there_is(trained, home):
    flags = ["--format=json", "--n_best=2", "--alignments", "--prefix=ein"]
    text = "\ufeffseven\n\ntwo hundred one\n"
    first, empty, third = map(json.loads, decode(trained, home, *flags, text=text, told=""))
    assert first["source"] == "seven" and len(first["hypotheses"]) == 2
    assert [line["unknown"] for line in (first, empty, third)] == [0, 0, 0]
    best = third["hypotheses"][0]
    assert best["text"].startswith("ein") and best["score"] < 0 and best["tokens"]
    assert best["alignment"]["source_words"] == ["two", "hundred", "one"]
    assert [hypothesis["text"] for hypothesis in empty["hypotheses"]] == ["", ""]


def test_a_page_of_attention_is_written_beside_the_translations(trained, home, tmp_path):
    page = tmp_path / "page.html"
    text = f"seven\n\n{'seven ' * 40}\ntwo hundred one\n"
    flags = [f"--workdir={trained[0]}", f"--attention_html={page}"]
    process = run(home, "decode.py", *flags, text=text)
    assert process.returncode == 0
    assert process.stdout.split("\n")[:-1] == decode(trained, home, text=text)
    cut, left_out = process.stderr.splitlines()
    assert cut == "standard input, line 3: longer than max_length; its end was not read"
    assert left_out.startswith("standard input, line 3: 'seven seven")
    assert left_out.endswith("more than max_length=32 tokens; left out of the page of attention")
    written = page.read_text(encoding="utf-8")
    assert re.findall('"text": "([^"]*)"', written) == ["seven", "two hundred one"]
    assert '"shape": [1, 2, ' in written and "<title>Attention of run, en to de</title>" in written
    assert os.listdir(tmp_path) == ["page.html"]
    corpora = f"--corpus=text:{home / 'corpus'},text:{home / 'corpus'}@de-en"
    both = decode(trained, home, *flags, corpora)
    assert both == decode(trained, home, corpora)
    written = page.read_text(encoding="utf-8")
    assert '"shape": [2, 1, ' in written and ", en to de, de to en</title>" in written


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_a_terminal_writes_the_page_of_what_is_translated(trained, home, tmp_path, end):
    page = tmp_path / "page.html"
    command = ["decode.py", f"--workdir={trained[0]}", f"--attention_html={page}"]
    terminal, stdin = os.openpty()
    with start(home, *command, stdin=stdin) as process, open(terminal, "wb", buffering=0) as typed:
        os.close(stdin)
        typed.write(b"seven\n")
        assert process.stdout.readline()
        process.send_signal(end)
        assert process.wait(60) == 128 + end
        told = process.stderr.read().splitlines()
        waiting = "Waiting for lines to translate; Ctrl-D ends."
        assert told == [waiting, "", f"stopped by {end.name}"]
    assert os.listdir(tmp_path) == ["page.html"]
    assert re.findall('"text": "([^"]*)"', page.read_text("utf-8")) == ["seven"]


def test_an_ensemble_of_a_model_with_itself_is_that_model(trained, home):
    assert decode(trained, home, f"--workdir={trained[0]}") == decode(trained, home)


def test_given_translations_are_scored_and_aligned(trained, home):
    flags = ["--score_pairs", "--alignments", "--alignment_layer=0"]
    lines = decode(trained, home, *flags, text="seven\tsieben\ntwo hundred\tzwei\n")
    for line, words in zip(lines, ("0-0", "-0"), strict=True):
        scores, _, alignment = line.partition(" ||| ")
        total, tokens = scores.split("\t")
        assert float(total) == pytest.approx(sum(map(float, tokens.split())), abs=1e-4)
        assert alignment.endswith(words)


def test_odd_lines_leave_the_others_as_they_were(trained, home):
    """A million characters, a NUL, blanks, right-to-left and combining text, no last end."""
    odd = ["x" * 1_000_000, "se\0ven", "   ", "שבע", "se\u0301ven", "\u202eneves"]
    text = "\n".join(["seven", *odd, "two hundred one"])
    process = run(home, "decode.py", f"--workdir={trained[0]}", text=text)
    assert process.returncode == 0
    nul, cut, unknown = process.stderr.splitlines()
    assert nul == "standard input, line 3: not valid UTF-8 (NUL character); replaced"
    assert cut == "standard input, line 2: longer than max_length; its end was not read"
    assert re.match(r"standard input, line [35]: the vocabulary does not know '.'", unknown)
    lines = process.stdout.split("\n")
    assert len(lines) == 9 and lines[3] == ""
    plain = decode(trained, home)
    assert [lines[0], lines[7]] == [plain[0], plain[2]]


def test_each_line_is_answered_as_it_is_typed(trained, home):
    command = ["decode.py", f"--workdir={trained[0]}", "--interactive"]
    with start(home, *command) as process:
        for text in ("seven", "", "two hundred one"):
            process.stdin.write(text + "\n")
            process.stdin.flush()
            assert process.stdout.readline().endswith("\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == -signal.SIGINT
        assert process.stderr.read() == ""


def test_a_reader_that_leaves_ends_it_quietly(trained, home):
    command = ["decode.py", f"--workdir={trained[0]}", "--rows=8"]
    with start(home, *command) as process:
        process.stdin.write("seven\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        try:
            process.stdin.write("two\n")
            process.stdin.close()
        except BrokenPipeError:
            pass
        assert process.wait(60) != 0
        assert process.stderr.read() == ""


def test_scores_are_one_json_line(trained, home):
    mixture = f"text:{home / 'corpus'},text:{home / 'corpus'}@de-en"
    process = run(
        home, "decode.py", f"--workdir={trained[0]}", f"--corpus={mixture}",
        "--score", "--average=2",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("\n") == 1
    scores = json.loads(process.stdout)
    assert scores["sentences"] == 6 and 0 <= scores["chrf"] <= 100
    assert [part["target_language"] for part in scores["corpora"]] == ["de", "en"]
    assert [part["sentences"] for part in scores["corpora"]] == [3, 3]
    assert scores["bleu"] is None and process.stderr == ""  # single words; no bar in a log
    assert {"chrf", "exact_match", "seconds"} <= scores.keys()
    assert "bleu_signature" in scores["corpora"][0]


@pytest.mark.parametrize("flag", ["output", "attention_html"])
def test_the_input_is_not_overwritten(trained, home, flag):
    both = home / "both"
    both.write_text("seven\n")
    command = ["decode.py", f"--workdir={trained[0]}", f"--{flag}={both}"]
    with both.open() as file, start(home, *command, stdin=file) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "is the input, and would be lost" in err
    assert both.read_text() == "seven\n"


def test_models_of_other_vocabularies_cannot_vote_together(trained, failing, tmp_path, capfd):
    train(tiny_config(num_steps=1), tmp_path / "other")
    capfd.readouterr()
    told = failing("decode", f"--workdir={trained[0]}", f"--workdir={tmp_path / 'other'}")
    assert f"{tmp_path / 'other'} has another vocabulary than {trained[0]}" in told


def test_a_run_without_a_checkpoint_cannot_decode(trained, home, tmp_path):
    for name in ("config.json", "vocabulary.model"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    process = run(home, "decode.py", f"--workdir={tmp_path}", text="seven\n")
    assert process.returncode == 1
    assert process.stderr == f"error: there is no checkpoint in {tmp_path}\n"


def answer(trained, *flags, name="out") -> bytes:
    """What decode writes, run in this process."""
    output = trained[0].parent / name
    command = [f"--workdir={trained[0]}", f"--output={output}", *map(str, flags)]
    decode_command.run(parser_of("decode").parse(command))
    return output.read_bytes()


TEXTS = ["seven", "", "two hundred one", "one", "two", "nine hundred", "six", "x", "ten", "one"]
INPUTS = {
    "plain": ["--n_best=2", "--scores", "--sample", "--seed=3"],
    "gz": ["--format=json", "--alignments"],
    "prefixes": ["--alignments"],
    "pairs": ["--score_pairs"],
    "corpus": [],
}


@pytest.fixture(params=INPUTS)
def whole(request, trained, tmp_path):
    """Flags of an input of ten lines, and the answers to all of them."""
    flags, path = INPUTS[request.param], tmp_path / "in"
    path.write_text("\n".join(f"{x}\teins" if request.param == "pairs" else x for x in TEXTS))
    if request.param == "gz":
        path = tmp_path / "in.gz"
        path.write_bytes(gzip.compress((tmp_path / "in").read_bytes()))
    if request.param == "prefixes":
        (tmp_path / "prefixes").write_text("ein\nzwei\n" * 5)
        flags = [*flags, f"--prefix_file={tmp_path / 'prefixes'}"]
    if request.param == "corpus":
        path.rename(tmp_path / "in.en")
        (tmp_path / "in.de").write_text("\n".join(TEXTS))
    flags = [*flags, f"--corpus=text:{path}" if request.param == "corpus" else f"--input={path}"]
    return flags, answer(trained, *flags, name=tmp_path / "whole")


def test_the_shards_of_an_input_are_the_whole(trained, tmp_path, whole):
    flags, expected = whole
    shards = [
        answer(trained, *flags, f"--shard={i}/3", name=tmp_path / f"out.{i}") for i in range(3)
    ]
    assert b"".join(shards) == expected and all(shards)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("whole", ["plain", "prefixes"], indirect=True)
def test_a_shard_that_was_interrupted_goes_on_where_it_ended(trained, tmp_path, whole, monkeypatch):
    flags, expected = [*whole[0], "--shard=0/1"], whole[1]
    write, answered = streaming.Writer.translation, []

    def interrupted(self, line, *others):
        if len(answered) == 4:
            raise KeyboardInterrupt
        answered.append(line.number)
        write(self, line, *others)

    monkeypatch.setattr(streaming.Writer, "translation", interrupted)
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        answer(trained, *flags, name=output)
    (part,) = tmp_path.glob("out.*.part")
    assert not output.exists() and expected.startswith(part.read_bytes())
    with part.open("ab") as file:  # by a kill in the middle of an answer
        file.write(b"half an ans")
    answered.append(0)  # so that no further line is interrupted
    assert answer(trained, *flags, name=output) == expected
    assert answered == [1, 2, 3, 4, 0, 5, 6, 7, 8, 9, 10] and not part.exists()
    # What is whole is not done again.
    assert answer(trained, *flags, name=output) == expected and len(answered) == 11


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--sample", "--beam_size=4"], "sample and beam_size=4 are two kinds of search"),
        (["--top_k=3"], "top_k=3 needs sample"),
        (["--n_best=0"], "n_best=0 must be in [1, 256]"),
        (["--score_pairs", "--n_best=2"], "--score_pairs and --n_best do not go together"),
        (["--alignments", "--alignment_head=2"], "no attention head 2: they are 0 to 1"),
        (["--prefix=\u4e00"], "the vocabulary cannot spell the prefix"),
        (["--attention_html=."], "--attention_html=. is not a file"),
        (["--attention_html=no/page"], "--attention_html=no/page cannot be written: No such file"),
        (["--attention_html=a", "--score_pairs"], "--attention_html do not go together"),
        (["--attention_html=a", "--score", "--corpus=text:a"], "--attention_html do not go tog"),
        (["--checkpoint=best", "--average=2"], "--checkpoint and --average do not go together"),
        (
            ["--scores", "--format=json"],
            "--scores and --format do not go together: JSON has",
        ),
        (["--n_best=2", "--score", "--corpus=text:a"], "--score and --n_best do not go together"),
        ([f"--prefix={'sieben ' * 40}"], "leaves no room in the limit of 32"),
        (["--shard=3/3"], "--shard=3/3 must be INDEX/COUNT, such as 0/8 to 7/8"),
        (["--shard=1"], "--shard=1 must be INDEX/COUNT"),
        (["--shard=0/2"], "--shard needs --corpus, or an --input that is a file"),
        (["--shard=0/2", "--corpus=text:a", "--score"], "--shard and --score do not go together"),
    ],
)
def test_a_search_that_cannot_be_is_told_in_one_line(trained, failing, tmp_path, flags, told):
    output, lines = tmp_path / "output", tmp_path / "lines"
    output.write_text("precious\n")
    lines.write_text("seven\n")
    flags = flags if "--prefix" in flags[0] else [*flags, f"--output={output}"]
    assert told in failing("decode", f"--workdir={trained[0]}", *flags, stdin=lines)
    assert output.read_text() == "precious\n"


def test_a_shard_for_a_folder_that_is_not_there_names_the_output(trained, failing, tmp_path):
    (tmp_path / "lines").write_text("seven\n")
    flags = f"--input={tmp_path / 'lines'}", "--shard=0/2", "--output=nowhere/x"
    line = failing("decode", f"--workdir={trained[0]}", *flags)
    assert line.startswith("error: --output=nowhere/x: there is no folder /")
