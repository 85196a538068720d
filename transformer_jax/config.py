"""The configuration of a run: typed dataclasses, their validation, and JSON both ways.

The dataclasses are the schema. Values are scalars only, 0 or "" meaning off, so that
every field can be set from a command line as `--config.section.field=value`.
"""

import dataclasses
import decimal
import difflib
import importlib.util
import json
import math
import operator
import pathlib
import re
import traceback
from collections.abc import Iterator
from typing import Any

from transformer_jax.paths import local_path

# Where a field has an effect, for its `needs`: PATH=VALUE,VALUE for one of the values, PATH alone
# for any value but "" and 0, several of them with spaces.
_TRANSFORMER, _RNN = "model.kind=transformer", "model.kind=rnn,lstm,gru"
_PACKED, _BUCKETED = "data.batching=packed", "data.batching=bucketed"
_SEGMENTS, _VALID = "data.vocabulary_kind=unigram,bpe", "data.valid"


def _field(default, needs: str = "", **metadata):
    return dataclasses.field(default=default, metadata={"needs": needs, **metadata})


def _choice(default: str, *choices: str, needs: str = ""):
    return _field(default, needs, choices=choices)


def _number(default, least, most=float("inf"), needs: str = ""):
    """A number in [least, most]."""
    return _field(default, needs, range=(least, most))


class _Fields:
    """Of a dataclass: refuses what is not one of its fields, as the command line does."""

    def __new__(cls, *_, **values):
        for name in values.keys() - cls.__dataclass_fields__.keys():
            raise TypeError(unknown_field(cls._path(name)))
        return super().__new__(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dataclass_fields__:
            raise AttributeError(unknown_field(self._path(name)))
        super().__setattr__(name, value)

    @classmethod
    def _path(cls, name: str) -> str:
        groups = (field.name for field in dataclasses.fields(Config) if field.type is cls)
        return ".".join(("config", *groups, name))


@dataclasses.dataclass
class ModelConfig(_Fields):
    """The model; the defaults are the paper's base model (its Table 3).

    Each kind of model reads the fields that it shares with others and its own.
    """

    kind: str = _choice("transformer", "transformer", "rnn", "lstm", "gru")
    num_layers: int = _number(6, 1)  # of the encoder, and as many of the decoder
    model_dim: int = _number(512, 2)
    dropout_rate: float = _number(0.1, 0.0, 0.999)
    dtype: str = _choice("float32", "float32", "bfloat16")  # of the computation
    # Of the Transformer.
    num_heads: int = _number(8, 1, needs=_TRANSFORMER)
    feed_forward_dim: int = _number(2048, 1, needs=_TRANSFORMER)
    # Layer norm after or before each sub-layer.
    norm: str = _choice("post", "post", "pre", needs=_TRANSFORMER)
    activation: str = _choice("relu", "relu", "gelu", "silu", needs=_TRANSFORMER)
    positions: str = _choice("sinusoidal", "sinusoidal", "none", needs=_TRANSFORMER)
    attention_bias: bool = _field(False, _TRANSFORMER)
    output_bias: bool = _field(False, _TRANSFORMER)
    # Of the RNNs: rnn, lstm and gru.
    attention: str = _choice("dot", "dot", "general", "concat", "additive", "none", needs=_RNN)
    # The attentional state into the next step.
    input_feeding: bool = _field(False, f"{_RNN} model.attention=dot,general,concat")
    bidirectional: bool = _field(False, _RNN)  # encoder: half the width in each direction
    # Of a decoder without attention: where the one vector goes that it gets.
    context: str = _choice(
        "first_state", "first_state", "every_step", needs=f"{_RNN} model.attention=none"
    )


@dataclasses.dataclass
class DataConfig(_Fields):
    """Corpora, each one string, and how they become batches; see data/corpus.py."""

    train: str = ""  # a corpus, or a mixture: corpora joined by commas
    valid: str = ""
    test: str = ""
    source_language: str = "en"
    target_language: str = "de"
    temperature: float = _number(1.0, 0.01)  # of a mixture without weights: sizes ** (1 / this)
    language_tags: bool = False  # begin each source with its target language, as in <2de>
    vocab_size: int = _number(8000, 8, needs="data.vocabulary_kind=unigram,bpe,symbols")
    vocabulary: str = ""  # a SentencePiece model to use instead of training one
    vocabulary_kind: str = _choice("unigram", "unigram", "bpe", "bytes", "symbols")
    # Spell characters that the vocabulary lacks in bytes.
    byte_fallback: bool = _field(True, _SEGMENTS)
    # Of sources alone (composed characters, single spaces), so that the target's own text
    # survives; or a rule of SentencePiece for both sides.
    normalization: str = _choice(
        "nfc_source",
        *("nfc_source", "identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"),
        needs=_SEGMENTS,
    )
    # Segment anew at each epoch; 0 = off.
    sampling_alpha: float = _number(0.0, 0.0, 1.0, needs=_SEGMENTS)
    max_length: int = _number(128, 2)  # tokens a side, with the end symbol; longer: left out
    max_length_ratio: float = _number(0.0, 0.0)  # of the sides; beyond: left out; 0 = any
    drop_identical: bool = False  # leave out pairs with equal sides
    max_pairs: int = _number(0, 0)  # of each training corpus; 0 = all
    batching: str = _choice("packed", "packed", "bucketed")  # pairs share rows, or have their own
    # Of packed rows; 0 = chosen by the corpus' lengths.
    source_row_length: int = _number(0, 0, needs=_PACKED)
    target_row_length: int = _number(0, 0, needs=_PACKED)
    # Lengths that bucketed batches are padded to.
    num_buckets: int = _number(6, 1, 64, needs=_BUCKETED)
    tokens_per_batch: int = _number(4096, 0)  # a side, padding included; 0 = what memory holds
    cache_dir: str = ""  # where tokens are kept; "" = transformer_jax/data in the user's cache


@dataclasses.dataclass
class OptimizerConfig(_Fields):
    """Adam and its schedule; the defaults are the paper's (section 5.3)."""

    schedule: str = _choice("rsqrt", "rsqrt", "cosine")
    learning_rate: float = _number(0.0, 0.0)  # at the end of warm-up; 0 = the paper's
    warmup_steps: int = _number(4000, 1)
    beta1: float = _number(0.9, 0.0, 0.999999)
    beta2: float = _number(0.98, 0.0, 0.999999)
    epsilon: float = _number(1e-9, 0.0)
    clip_norm: float = _number(0.0, 0.0)  # largest global norm of the gradient; 0 = off


@dataclasses.dataclass
class TrainingConfig(_Fields):
    """Length of the run and what happens on the way; intervals in optimiser updates."""

    num_steps: int = _number(100_000, 1)
    log_every: int = _number(100, 1)
    eval_every: int = _number(5000, 0, needs=_VALID)  # 0 = only at the end
    # Translated for BLEU at each evaluation, of all corpora; 0 = all.
    eval_sentences: int = _number(500, 0, needs=_VALID)
    save_every: int = _number(1000, 1)
    keep_checkpoints: int = _number(5, 1)  # the latest, beside the best
    # bleu: where equal, chrF, then the loss.
    best_metric: str = _choice("bleu", "bleu", "loss", needs=_VALID)
    # Evaluations without a better one before stopping; 0 = off.
    patience: int = _number(0, 0, needs=f"{_VALID} training.eval_every")
    label_smoothing: float = _number(0.1, 0.0, 0.999)
    accumulate_steps: int = _number(1, 1)  # pieces that an update's batch is computed in
    init_from: str = ""  # another run's workdir, whose parameters this one starts from


@dataclasses.dataclass
class DecodingConfig(_Fields):
    """Search (section 6.1)."""

    beam_size: int = _number(4, 1, 64)  # 1 = greedy
    length_penalty: float = _number(0.6, 0.0)  # GNMT's alpha
    max_length: int = _number(256, 2)  # tokens read of a line, and of its translation
    rows: int = _number(32, 8)  # sentences translated at once; a multiple of 8


@dataclasses.dataclass
class Config(_Fields):
    """All that a run is made of; kept as config.json in its workdir."""

    seed: int = _number(0, 0, 2**31 - 1)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)

    def validate(self) -> "Config":
        """Returns itself, or raises ValueError naming the field, its value and what it takes."""
        for name, field, value in _leaves(self):
            _check(name, field, value)
        model = self.model
        if model.kind != "transformer" and self.data.batching == "packed":
            raise ValueError(
                f"config.model.kind={model.kind} cannot read several pairs in a row, as "
                "config.data.batching=packed makes them; config.data.batching=bucketed gives each "
                "pair a row"
            )
        if idle := [sentence for _, _, sentence in idle_fields(self)]:
            raise ValueError("; ".join(idle))
        if model.kind == "transformer" and model.model_dim % model.num_heads:
            raise ValueError(
                f"config.model.num_heads={model.num_heads} does not divide "
                f"config.model.model_dim={model.model_dim}; heads share the width equally"
            )
        if model.model_dim % 2:
            raise ValueError(
                f"config.model.model_dim={model.model_dim} is odd; sinusoidal positions come in "
                "pairs of dimensions, and two directions share a width"
            )
        if 0 < self.data.tokens_per_batch < self.data.max_length:
            raise ValueError(
                f"config.data.tokens_per_batch={self.data.tokens_per_batch} is less than "
                f"config.data.max_length={self.data.max_length}: the longest pair fits no batch"
            )
        row = max(self.data.source_row_length, self.data.target_row_length)
        if 0 < self.data.tokens_per_batch < row:
            raise ValueError(
                f"config.data.tokens_per_batch={self.data.tokens_per_batch} is less than a row of "
                f"{row} tokens (config.data.source_row_length and target_row_length)"
            )
        if self.decoding.rows % 8:
            raise ValueError(
                f"config.decoding.rows={self.decoding.rows} is not a multiple of 8, which exact "
                "decoding needs"
            )
        return self

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The configuration that `to_json` wrote; ValueError on anything else."""
        config = _build(cls, json.loads(text), "config")
        reset_idle_fields(config)  # which runs of older versions have
        return config.validate()


# What may change when a run goes on: lengths and intervals, decoding, and paths (the
# vocabulary is kept in the workdir, and a training corpus of other content is refused). The
# cosine schedule ends at num_steps, so that there another number means another schedule.
RESUMABLE = frozenset(
    f"config.training.{name}"
    for name in (
        "num_steps log_every eval_every eval_sentences save_every keep_checkpoints patience "
        "init_from"
    ).split()
) | frozenset(f"config.data.{name}" for name in "train valid test vocabulary cache_dir".split())


def differences(old: Config, new: Config) -> list[str]:
    """The fields, as "name: old -> new", that keep `new` from going on with a run of `old`."""
    return [
        f"{name}: {before!r} -> {after!r}"
        for (name, _, before), (_, _, after) in zip(_leaves(old), _leaves(new))
        if before != after and name not in RESUMABLE and not name.startswith("config.decoding.")
    ]


def idle_fields(config: Config) -> Iterator[tuple[Any, dataclasses.Field, str]]:
    """Fields off their default that have no effect: their group, themselves, a sentence why."""
    for name, field, value in _leaves(config):
        for need in field.metadata.get("needs", "").split() if value != field.default else ():
            path, _, choices = need.partition("=")
            found = operator.attrgetter(path)(config)
            if not (found in choices.split(",") if choices else found):
                group = operator.attrgetter(name.rpartition(".")[0].removeprefix("config."))
                yield (
                    group(config),
                    field,
                    f"{name}={value} needs config.{need.replace(',', ' or ')}, "
                    f"{f'not {found}' if choices else f'which is {found!r}'} (or leave it at its "
                    f"default, {field.default})",
                )
                break


def reset_idle_fields(config: Config) -> None:
    """Sets fields that have no effect to their defaults."""
    for group, field, _ in idle_fields(config):
        setattr(group, field.name, field.default)


def with_field(config: Config, name: str, text: str) -> Config:
    """Sets a field, named as in "model.num_layers", to a value written as text; see `validate`.

    ValueError where there is no such field, or the text is no value of its type.
    """
    *groups, last = name.removeprefix("config.").split(".")
    node, fields = config, {}
    for group in groups:
        node = getattr(node, group, None)
    if dataclasses.is_dataclass(node):
        fields = {field.name: field.type for field in dataclasses.fields(node)}
    if dataclasses.is_dataclass(fields.get(last, Config)):
        raise ValueError(unknown_field(f"config.{name.removeprefix('config.')}"))
    wanted = fields[last]
    parse = {bool: lambda text: {"true": True, "false": False}[text.lower()], int: whole_number}
    try:
        value = parse.get(wanted, wanted)(text)
    except (KeyError, ValueError) as error:
        why = f" ({error})" if wanted is int else ""
        name = f"config.{name.removeprefix('config.')}"
        raise ValueError(f"{name}={text!r} is not of type {wanted.__name__}{why}") from None
    setattr(node, last, value)
    return config


def whole_number(text: str) -> int:
    """The number of text such as 1000, 1_000, 1e3, 10k or 2.5M; ValueError where it is none."""
    match = re.fullmatch(r"([-+]?\d*\.?\d[\d_]*(?:[eE]\+?\d\d?)?)([kKM]?)", text.strip())
    if match:
        number = decimal.Decimal(match[1]) * {"": 1, "M": 1_000_000}.get(match[2], 1000)
        if number == int(number):
            return int(number)
    raise ValueError(f"{text!r} is not a whole number, such as 1000, 1_000, 1e3, 10k or 2.5M")


def load_config(path: str) -> Config:
    """The config of FILE, or of FILE:ARGUMENT; ValueError, in one sentence, where there is none."""
    # A scheme, such as gs://, stays with the name, and is refused.
    name, argument = re.fullmatch(r"((?:[\w+-]+:/)?[^:]*):?(.*)", path, re.DOTALL).groups()
    if not pathlib.Path(file := local_path(name)).is_file():
        raise ValueError(f"there is no config file {file}")
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None:
        raise ValueError(f"{file} is not a Python file with a get_config()")
    module = importlib.util.module_from_spec(spec)
    arguments = [argument] if argument else []
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*arguments)
    except Exception as error:  # whatever a config file's own code may raise
        lines = [
            x.lineno for x in traceback.extract_tb(error.__traceback__) if x.filename == spec.origin
        ]
        if isinstance(error, TypeError) and not lines:  # of the call itself
            use = f"takes no argument: {name}" if argument else f"needs one: {name}:ARGUMENT"
            raise ValueError(f"{path}: its get_config() {use}") from None
        where = f"{path}, line {lines[-1]}" if lines else path
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ValueError(f"{path} gives {config!r}; a transformer_jax.Config was wanted")
    return config


def unknown_field(name: str) -> str:
    """One sentence about a field that does not exist, with the nearest names that do."""
    names = {leaf.rpartition(".")[2]: leaf for leaf, _, _ in _leaves(Config())}
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(last, names, n=2)
    # What is left out or put in front, as in dim for model_dim, is not close by its letters.
    near += [n for n in names if len(last) > 2 and (last in n or n in last)]
    near = [names[n] for n in dict.fromkeys(near)][:3]
    hint = (
        f"; did you mean {' or '.join(near)}?" if near else " (transformer_jax/config.py has all)"
    )
    return f"there is no field {name}{hint}"


def _leaves(node: Any, prefix: str = "config") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    for field in dataclasses.fields(node):
        name, value = f"{prefix}.{field.name}", getattr(node, field.name)
        if dataclasses.is_dataclass(field.type):
            if not isinstance(value, field.type):
                raise ValueError(f"{name}={value!r} is not a {field.type.__name__}")
            yield from _leaves(value, name)
        else:
            yield name, field, value


def _check(name: str, field: dataclasses.Field, value: Any) -> None:
    # A float field takes an int; bool is an int to Python, but not to a reader.
    wanted = (int, float) if field.type is float else field.type
    if not isinstance(value, wanted) or isinstance(value, bool) != (field.type is bool):
        raise ValueError(f"{name}={value!r} is not of type {field.type.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not a finite number")
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(choices)}")
    least, most = field.metadata.get("range", (None, None))
    if least is not None and not least <= value <= most:
        bound = f"at least {least}" if most == float("inf") else f"from {least} to {most}"
        raise ValueError(f"{name}={value!r} must be {bound}")


def _build(cls: type, values: Any, name: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {values!r}, not a group of fields")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            raise ValueError(unknown_field(f"{name}.{key}"))
    return cls(
        **{
            key: _build(fields[key].type, value, f"{name}.{key}")
            if dataclasses.is_dataclass(fields[key].type)
            else value
            for key, value in values.items()
        }
    )
