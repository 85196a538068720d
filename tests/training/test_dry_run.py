"""A dry run says what is there, warns of what looks wrong, and leaves no run behind."""

import dataclasses
import re

import pytest
from builders import read_pairs

from transformer_jax.config import Config, DataConfig, DecodingConfig, ModelConfig, TrainingConfig
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.training.dry_run import dry_run
from transformer_jax.training.loop import train

PAIRS = read_pairs("numbers:valid", "en", "de")


@pytest.fixture
def config(tmp_path):
    write(tmp_path / "train", PAIRS[:600])
    write(tmp_path / "valid", PAIRS[600:700])
    return Config(
        model=ModelConfig(num_layers=1, model_dim=16, num_heads=2, feed_forward_dim=32),
        data=DataConfig(
            train=f"text:{tmp_path / 'train'}",
            valid=f"text:{tmp_path / 'valid'}",
            vocab_size=150,
            byte_fallback=False,
            vocabulary_kind="bpe",
            tokens_per_batch=512,
            cache_dir=str(tmp_path / "cache"),
        ),
        training=TrainingConfig(num_steps=4, eval_every=0),
        decoding=DecodingConfig(max_length=32),
    )


def write(prefix, pairs):
    for side, language in enumerate(("en", "de")):
        text = "".join(f"{pair[side]}\n" for pair in pairs)
        prefix.with_suffix(f".{language}").write_text(text, "utf-8")


def warnings_of(config, tmp_path, capsys, **data) -> str:
    dry_run(dataclasses.replace(config, data=dataclasses.replace(config.data, **data)), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    return "\n".join(line for line in lines if line.startswith("warning: "))


def test_it_describes_the_run_and_leaves_nothing_behind(config, tmp_path, capsys):
    config.training.log_every = 1  # the first step ends a report
    dry_run(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert re.search(r"run in [\d.]+ s, loss [1-9]", out)
    for said in (
        "train, en-de: 600 pairs, 600 kept, left out: none",
        "longest",
        "unknown 0.000%",
        "targets altered by encoding and decoding: 0.00%",
        "vocabulary: 150 pieces",
        "real tokens: ",
        "steps, 100.0% of training; the run has ",
        "model: transformer, ",
        " GiB on each of 4 devices (cpu), of ",
        "first step: ready in ",
    ):
        assert said in out
    assert "warning" not in out
    assert not (tmp_path / "run").exists()


def test_what_the_filters_drop_is_said(config, tmp_path, capsys):
    write(tmp_path / "train", [("", "leer"), *PAIRS[:600], ("one", "one")])
    config.data.drop_identical = True
    dry_run(config, tmp_path / "run")
    assert "602 pairs, 600 kept, left out: 1 empty, 1 identical" in capsys.readouterr().out


def test_swapped_sides_are_warned_of(config, tmp_path, capsys):
    write(tmp_path / "valid", [(target, source) for source, target in PAIRS[600:700]])
    assert "are the sides swapped?" in warnings_of(config, tmp_path, capsys)


def test_equal_sides_are_warned_of(config, tmp_path, capsys):
    write(tmp_path / "train", [*PAIRS[:540], *((s, s) for s, _ in PAIRS[540:600])])
    assert "10% of the pairs have equal sides" in warnings_of(config, tmp_path, capsys)


def test_many_left_out_are_warned_of(config, tmp_path, capsys):
    write(tmp_path / "train", [*PAIRS[:500], *[("", "leer")] * 300])
    assert "38% of the pairs are empty" in warnings_of(config, tmp_path, capsys)


def test_a_vocabulary_of_other_text_is_warned_of(config, tmp_path, capsys):
    other = [read_pairs("numbers:valid", "ko", "ko")]
    config.data.vocab_size, config.data.byte_fallback = DataConfig.vocab_size, True
    Vocabulary.train(other, 40, "bpe").save(tmp_path / "ko.model")
    said = warnings_of(config, tmp_path, capsys, vocabulary=str(tmp_path / "ko.model"))
    assert "of the training corpus' source side are symbols that the vocabulary does not" in said
    Vocabulary.train(other, 320, "bpe", byte_fallback=True).save(tmp_path / "bytes.model")
    said = warnings_of(config, tmp_path, capsys, vocabulary=str(tmp_path / "bytes.model"))
    assert "of the vocabulary occurs in the training corpus" in said
    for part in ("training corpus' source", "validation corpus' target"):
        assert f"the {part} side has 0.9" in said or f"the {part} side has 1.0" in said


def test_another_config_than_the_workdirs_is_refused(config, tmp_path):
    train(config, tmp_path / "run")
    config.model.num_heads = 1
    with pytest.raises(ValueError, match="config.model.num_heads: 2 -> 1"):
        dry_run(config, tmp_path / "run")
