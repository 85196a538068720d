"""Validation, JSON both ways, differences, and the shipped configs."""

import ast
import copy
import dataclasses
import functools
import json
import operator
import pathlib
import pickle
import re

import pytest

from transformer_jax.config import (
    RESUMABLE,
    Config,
    ModelConfig,
    differences,
    idle_fields,
    load_config,
    ready_configs,
    reference,
    unknown_field,
    whole_number,
    with_field,
)

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def changed(name: str = "", value=None, **more) -> Config:
    """The default config with the field config.`name` set, or several."""
    config = Config()
    for path, setting in ({name: value} if name else more).items():
        *groups, field = path.split(".")
        setattr(operator.attrgetter(*groups)(config) if groups else config, field, setting)
    return config


def pickled(config):
    return pickle.loads(pickle.dumps(config))


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
        ("model.num_layers", 0, "must be in [1, 256]"),
        ("model.dropout_rate", 1.0, "must be in [0.0, 0.999]"),
        ("model.dropout_rate", -0.1, "must be in [0.0, 0.999]"),
        ("optimizer.learning_rate", float("nan"), "is not a finite number"),
        ("decoding.length_penalty", float("inf"), "is not a finite number"),
        ("data.vocab_size", 7, "must be at least 8"),
        ("data.sampling_alpha", 1.5, "must be in [0.0, 1.0]"),
        ("data.temperature", 0.0, "must be at least 0.01"),
        ("data.batching", "sorted", "must be one of packed, bucketed"),
        ("decoding.beam_size", 65, "must be in [1, 64]"),
        ("seed", 2**31, "must be in [0, "),
        ("model.norm", "middle", "must be one of post, pre"),
        ("training.best_metric", "chrf", "must be one of bleu, loss"),
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


KINDS = ("transformer", "rnn", "lstm", "gru")
TRANSFORMER = "num_heads feed_forward_dim norm activation positions attention_bias output_bias"
# Where a field has an effect, of those that have one not everywhere.
EFFECTIVE = {
    f"model.{name}": lambda c: c.model.kind == "transformer" for name in TRANSFORMER.split()
}
EFFECTIVE |= {
    f"model.{name}": lambda c: c.model.kind != "transformer"
    for name in ("attention", "bidirectional")
}
EFFECTIVE |= {
    "model.remat": lambda c: c.model.kind == "transformer",
    "model.attention_kernel": lambda c: c.model.kind == "transformer",
    "model.scan_layers": lambda c: c.model.kind == "transformer",
    "parallel.tensor": lambda c: c.model.kind == "transformer",
    "model.input_feeding": lambda c: (
        c.model.kind != "transformer" and c.model.attention in ("dot", "general", "concat")
    ),
    "model.context": lambda c: c.model.kind != "transformer" and c.model.attention == "none",
    "data.vocab_size": lambda c: c.data.vocabulary_kind != "bytes",
    "data.byte_fallback": lambda c: c.data.vocabulary_kind in ("unigram", "bpe"),
    "data.normalization": lambda c: c.data.vocabulary_kind in ("unigram", "bpe"),
    "data.sampling_alpha": lambda c: c.data.vocabulary_kind in ("unigram", "bpe"),
    "data.source_row_length": lambda c: c.data.batching == "packed",
    "data.target_row_length": lambda c: c.data.batching == "packed",
    "data.num_buckets": lambda c: c.data.batching == "bucketed",
    "training.eval_every": lambda c: c.data.valid,
    "training.eval_sentences": lambda c: c.data.valid,
    "training.best_metric": lambda c: c.data.valid,
    "training.patience": lambda c: c.data.valid and c.training.eval_every,
}
SETTINGS = [
    {"model.kind": kind, "data.batching": batching, "data.vocabulary_kind": vocabulary} | more
    for kind in KINDS
    for batching in ("packed", "bucketed")
    for vocabulary in ("unigram", "bpe", "bytes", "symbols")
    for more in (
        {},
        {"data.valid": "numbers:valid"},
        {"data.valid": "numbers:valid", "training.eval_every": 0},
        {"model.attention": "none"},
        {"model.attention": "additive"},
    )
    if kind == "transformer" or batching == "bucketed"
    if kind != "transformer" or "model.attention" not in more
]


def other_value(field: dataclasses.Field):
    """A value that the field may have, and is not its default."""
    if choices := field.metadata.get("choices"):
        return choices[1]
    if isinstance(field.default, bool | str):
        return not field.default if isinstance(field.default, bool) else "x"
    return field.default / 2 or 0.5 if field.type is float else field.default * 2 or 1


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda x: "-".join(map(str, x.values())))
def test_a_field_without_effect_is_refused_and_no_other(settings):
    """Each field by itself at another value than its default, for each kind and batching."""
    fields = {
        f"{group.name}.{field.name}": field
        for group in dataclasses.fields(Config)
        if dataclasses.is_dataclass(group.type)
        for field in dataclasses.fields(group.type)
    }
    assert fields.keys() > EFFECTIVE.keys()
    for name in fields.keys() - settings.keys():
        value = other_value(fields[name])
        config = changed(**settings | {name: value})
        if EFFECTIVE.get(name, lambda c: True)(config):
            config.validate()
        else:
            told = message(config)
            assert told.startswith(f"config.{name}={value} needs config.")
            assert f"its default, {fields[name].default})" in told


def test_the_reference_says_what_each_field_means_takes_and_needs():
    rows = {f"{row.section}.{row.name.rpartition('.')[2]}": row for row in reference()}
    assert rows.keys() > EFFECTIVE.keys() and rows[".seed"].name == "config.seed"
    assert all(re.fullmatch(r"[A-Z].{5,}\.", row.help) for row in rows.values())
    assert {name for name, row in rows.items() if row.needs} == EFFECTIVE.keys()
    feeding, norm = rows["model.input_feeding"], rows["model.norm"]
    assert (feeding.type, feeding.default, feeding.takes) == ("bool", False, "")
    assert feeding.needs == (
        "config.model.kind=rnn or lstm or gru and config.model.attention=dot or general or concat"
    )
    assert (norm.type, norm.default, norm.takes) == ("str", "post", "one of post, pre")
    assert rows["data.num_buckets"].takes == "in [1, 64]"
    assert rows["model.num_heads"].takes == "at least 1"


def test_a_kept_config_with_a_field_without_effect_is_read():
    config = changed("data.num_buckets", 8)
    assert "needs config.data.batching=bucketed, not packed" in message(config)
    assert Config.from_json(config.to_json()) == Config()


@pytest.mark.parametrize("make", [copy.deepcopy, dataclasses.replace, pickled])
def test_a_config_can_be_copied_and_sent_to_a_process(make):
    config = changed("model.num_heads", 4)
    assert make(config) == config and make(config.model) == config.model


@pytest.mark.parametrize(
    "make", [ModelConfig, functools.partial(dataclasses.replace, ModelConfig())]
)
def test_a_misspelt_field_is_told_in_python_as_on_the_command_line(make):
    told = "^there is no field config.model.num_head; did you mean config.model.num_heads"
    with pytest.raises(AttributeError, match=told):
        Config().model.num_head = 8
    with pytest.raises(TypeError, match=told):
        make(num_head=8)
    with pytest.raises(AttributeError, match="no field config.num_heads; did .*config.model.num_h"):
        Config().num_heads = 8


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1000", 1000),
        ("1_000", 1000),
        ("1e3", 1000),
        ("10k", 10_000),
        ("2.5M", 2_500_000),
        ("-3", -3),
    ],
)
def test_a_whole_number_may_be_written_shortly(text, number):
    assert whole_number(text) == number
    assert with_field(Config(), "seed", text).seed == number


@pytest.mark.parametrize("text", ["2.5", "1e-3", "k", "two", "nan", "inf", "1e999", "1,000", ""])
def test_what_is_no_whole_number_is_told_with_examples(text):
    with pytest.raises(ValueError, match="is not a whole number, such as 1000, 1_000, 1e3, 10k"):
        whole_number(text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.num_layers", "3", 3),
        ("config.data.train", "text:a=b", "text:a=b"),
        ("optimizer.clip_norm", "1e-1", 0.1),
        ("model.bidirectional", "True", True),
        ("model.bidirectional", "1", True),
        ("data.byte_fallback", "f", False),
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
        ("model.bidirectional", "yes", "is not of type bool"),
        ("model.layers", "2", "no field config.model.layers; did you mean config.model.num_layers"),
        ("model", "2", "no field config.model"),
        ("data.x.y", "2", "no field config.data.x.y"),
        ("", "", "no field"),
    ],
)
def test_text_that_sets_no_field_is_told(name, text, told):
    with pytest.raises(ValueError, match=told):
        with_field(Config(), name, text)


def test_rows_must_be_a_multiple_of_8():
    assert "multiple of 8" in message(changed("decoding.rows", 12))


@pytest.mark.parametrize("kind", ["transformer", "gru"])
def test_json_round_trip_keeps_every_field(kind):
    config = changed(**{"model.kind": kind, "data.batching": "bucketed", "data.valid": "é\n"})
    for group in (config.model, config.data, config.optimizer, config.training, config.decoding):
        for field in dataclasses.fields(group):
            before = getattr(group, field.name)
            if before == field.default:
                setattr(group, field.name, other_value(field))
                if any(idle_fields(config)):
                    setattr(group, field.name, before)
    config.seed, config.optimizer.epsilon = 7, 1.2345678901234567e-9
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
        ({"model": {"num_layers": 0}}, "config.model.num_layers=0 must be in [1, 256]"),
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
    assert ready_configs()[path.stem] == path
    config = load_config(path.stem)
    assert config.validate() == load_config(str(path)) == load_config(f"{path}:").validate()


def test_a_ready_config_takes_an_argument_and_a_name_that_is_none_is_told():
    assert load_config("story:lstm_dot").model.kind == "lstm"
    with pytest.raises(ValueError, match="no config file quickstar, and no ready .*quickstart"):
        load_config("quickstar")


def test_the_config_of_a_run_is_a_config_file(tmp_path):
    config = Config(seed=3)
    (tmp_path / "config.json").write_text(config.to_json())
    assert load_config(f"{tmp_path}/config.json") == config
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: "):
        load_config(f"{tmp_path}/config.json")
