"""Validation, JSON both ways, differences, and the shipped configs."""

import ast
import dataclasses
import importlib.util
import json
import pathlib

import pytest

from transformer_jax.config import RESUMABLE, Config, differences, unknown_field, with_field

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def changed(name: str, value) -> Config:
    """The default config with the field config.`name` set."""
    config = Config()
    *groups, field = name.split(".")
    node = config
    for group in groups:
        node = getattr(node, group)
    setattr(node, field, value)
    return config


def message(config: Config) -> str:
    with pytest.raises(ValueError) as error:
        config.validate()
    return str(error.value)


def test_defaults_are_the_papers_base_model_and_valid():
    config = Config()
    assert config.validate() is config
    model = config.model
    assert (model.num_layers, model.model_dim, model.num_heads) == (6, 512, 8)
    assert (model.feed_forward_dim, model.dropout_rate, model.norm) == (2048, 0.1, "post")
    assert (config.optimizer.beta2, config.optimizer.warmup_steps) == (0.98, 4000)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("model.num_layers", 0, "must be at least 1"),
        ("model.dropout_rate", 1.0, "must be from 0.0 to 0.999"),
        ("model.dropout_rate", -0.1, "must be from 0.0 to 0.999"),
        ("optimizer.learning_rate", float("nan"), "is not a finite number"),
        ("decoding.length_penalty", float("inf"), "is not a finite number"),
        ("data.vocab_size", 7, "must be at least 8"),
        ("data.sampling_alpha", 1.5, "must be from 0.0 to 1.0"),
        ("data.temperature", 0.0, "must be at least 0.01"),
        ("data.batching", "sorted", "is not one of packed, bucketed"),
        ("decoding.beam_size", 65, "must be from 1 to 64"),
        ("seed", 2**31, "must be from 0 to"),
        ("model.norm", "middle", "is not one of post, pre"),
        ("training.best_metric", "chrf", "is not one of bleu, loss"),
        ("model.num_layers", 2.0, "is not of type int"),
        ("model.num_layers", "2", "is not of type int"),
        ("model.num_layers", True, "is not of type int"),
        ("model.dropout_rate", False, "is not of type float"),
        ("model.attention_bias", 1, "is not of type bool"),
        ("data.train", None, "is not of type str"),
    ],
)
def test_a_bad_value_is_told_with_its_field_and_what_it_takes(name, value, wanted):
    assert message(changed(name, value)).startswith(f"config.{name}={value!r} {wanted}")


def test_a_float_field_takes_an_int():
    assert changed("model.dropout_rate", 0).validate().model.dropout_rate == 0


def test_heads_must_divide_the_width():
    told = message(changed("model.num_heads", 7))
    assert "config.model.num_heads=7" in told and "config.model.model_dim=512" in told


def test_width_must_be_even():
    config = changed("model.model_dim", 9)
    config.model.num_heads = 3
    assert "config.model.model_dim=9 is odd" in message(config)


def test_the_longest_pair_must_fit_a_batch():
    changed("data.tokens_per_batch", 128).validate()
    assert "config.data.max_length=128" in message(changed("data.tokens_per_batch", 127))
    changed("data.tokens_per_batch", 0).validate()  # as many as the device holds


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_a_recurrent_model_cannot_read_packed_rows(kind):
    with pytest.raises(ValueError, match=f"{kind} cannot read .*config.data.batching=bucketed"):
        changed("model.kind", kind).validate()
    config = changed("data.batching", "bucketed")
    config.model.kind = kind
    config.model.num_heads = 7  # which an RNN has none of
    config.validate()
    config.model.attention, config.model.input_feeding = "additive", True
    with pytest.raises(ValueError, match="input_feeding=True feeds .*attention=additive"):
        config.validate()
    config.model.input_feeding, config.model.context = False, "every_step"
    with pytest.raises(ValueError, match="context=every_step .*attention=additive"):
        config.validate()
    config.model.attention = "none"
    config.validate()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.num_layers", "3", 3),
        ("config.data.train", "text:a=b", "text:a=b"),
        ("optimizer.clip_norm", "1e-1", 0.1),
        ("model.bidirectional", "True", True),
        ("seed", "5", 5),
    ],
)
def test_a_field_is_set_from_text(name, text, value):
    config = with_field(Config(), name, text)
    *groups, last = name.removeprefix("config.").split(".")
    assert getattr(getattr(config, groups[0]) if groups else config, last) == value


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("model.num_layers", "two", "model.num_layers='two' is not of type int"),
        ("model.bidirectional", "1", "is not of type bool"),
        ("model.layers", "2", "no field config.model.layers; did you mean config.model.num_layers"),
        ("model", "2", "no field config.model"),
        ("data.x.y", "2", "no field config.data.x.y"),
        ("", "", "no field"),
    ],
)
def test_text_that_sets_no_field_is_told(name, text, told):
    with pytest.raises(ValueError, match=told):
        with_field(Config(), name, text)


@pytest.mark.parametrize("kind", ["bytes", "symbols"])
def test_only_a_vocabulary_that_segments_can_be_sampled(kind):
    config = changed("data.sampling_alpha", 0.1).validate()
    config.data.vocabulary_kind = kind
    told = message(config)
    assert "config.data.sampling_alpha=0.1" in told and kind in told


def test_rows_must_be_a_multiple_of_8():
    assert "multiple of 8" in message(changed("decoding.rows", 12))


def test_json_round_trip_keeps_every_field():
    config = Config()
    for group in dataclasses.fields(config):
        node = getattr(config, group.name)
        for field in dataclasses.fields(node) if dataclasses.is_dataclass(node) else []:
            value, choices = getattr(node, field.name), field.metadata.get("choices")
            if isinstance(value, str):
                setattr(node, field.name, choices[-1] if choices else "é\n" + field.name)
            else:
                setattr(node, field.name, not value if isinstance(value, bool) else value or 1)
    config.seed, config.optimizer.epsilon = 7, 1.2345678901234567e-9
    config.model.kind = "transformer"  # of an RNN the last choices do not go together
    config.data.vocabulary_kind = "bpe"  # the last choice has no other segmentations to draw
    assert Config.from_json(config.to_json()) == config != Config()


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            {"model": {"num_layer": 3}},
            "no field config.model.num_layer; did you mean config.model.num_l",
        ),
        ({"modell": {}}, "there is no field config.modell"),
        ({"model": 3}, "config.model is 3, not a group of fields"),
        ({"model": {"num_layers": 0}}, "config.model.num_layers=0 must be at least 1"),
        ([], "config is [], not a group of fields"),
    ],
)
def test_json_of_another_shape_is_refused(values, told):
    with pytest.raises(ValueError) as error:
        Config.from_json(json.dumps(values))
    assert told in str(error.value)


def test_an_unknown_field_names_the_nearest():
    assert "did you mean config.model.num_heads" in unknown_field("config.model.num_head")
    # The right name in the wrong group.
    assert "config.training.label_smoothing" in unknown_field("config.model.label_smoothing")
    # A part of the right name.
    assert "did you mean config.model.model_dim" in unknown_field("config.model.dim")
    assert "did you mean" not in unknown_field("config." + "xyz" * 9)


def test_differences_name_what_keeps_a_run_from_going_on():
    new = changed("model.num_layers", 2)
    new.data.vocab_size = 99
    assert differences(Config(), new) == [
        "config.model.num_layers: 6 -> 2",
        "config.data.vocab_size: 8000 -> 99",
    ]


def test_lengths_intervals_paths_and_decoding_may_change():
    new = changed("decoding.beam_size", 1)
    for name in RESUMABLE:
        _, group, field = name.split(".")
        setattr(getattr(new, group), field, "x" if group == "data" else 12345)
    assert differences(Config(), new) == []
    for name in ("seed", "data.max_pairs", "optimizer.warmup_steps", "training.label_smoothing"):
        assert len(differences(Config(), changed(name, 0.5))) == 1


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_imports_only_the_schema(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    assert imported <= {"transformer_jax.config"}
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module.get_config().validate(), Config)
