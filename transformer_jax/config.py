"""The configuration of a run: typed dataclasses, their validation, JSON, files and command lines.

The dataclasses are the only source: a field's metadata says what it means, which values it takes
and when it has an effect; validation, errors, flags, `--help` and `reference` follow from it.
Values are scalars, 0 or "" meaning off, so that each can be set as `--config.section.field=value`.
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
from typing import Any, NamedTuple

from transformer_jax.storage import from_json, local_path

# When a field has an effect: PATH=VALUE,VALUE for one of the values, PATH alone for any value but
# "" and 0, several of them with spaces.
_TRANSFORMER, _RNN = "model.kind=transformer", "model.kind=rnn,lstm,gru"
_PACKED, _BUCKETED = "data.batching=packed", "data.batching=bucketed"
_LUONG, _NO_ATTENTION = f"{_RNN} model.attention=dot,general,concat", f"{_RNN} model.attention=none"
_SUBWORDS, _SIZED = "data.vocabulary_kind=unigram,bpe", "data.vocabulary_kind=unigram,bpe,symbols"
_VALID, _EVALUATIONS = "data.valid", "data.valid training.eval_every"
_ANY = math.inf
_WIDEST = 2**20  # a stranger's config must not make a model without end


def _field(default: Any, help: str, needs: str = "", **metadata: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "needs": needs, **metadata})


def _choice(choices: str, help: str, needs: str = "") -> Any:
    """One of several words, the first by default."""
    return _field(choices.split()[0], help, needs, choices=tuple(choices.split()))


def _number(default: float, least: float, most: float, help: str, needs: str = "") -> Any:
    return _field(default, help, needs, range=(least, most))


class _Fields:
    """Refuses names that are not fields of the dataclass, as the command line does."""

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
        groups = (group.name for group in dataclasses.fields(Config) if group.type is cls)
        return ".".join(("config", *groups, name))


@dataclasses.dataclass
class ModelConfig(_Fields):
    """The model; the defaults are the paper's base model (its Table 3)."""

    kind: str = _choice("transformer rnn lstm gru", "Architecture.")
    num_layers: int = _number(6, 1, 256, "Layers of the encoder, and as many of the decoder.")
    model_dim: int = _number(512, 2, _WIDEST, "Width of the model, an even number.")
    dropout_rate: float = _number(0.1, 0.0, 0.999, "Dropout rate.")
    dtype: str = _choice("float32 bfloat16", "Type of the computation; parameters are float32.")
    num_heads: int = _number(8, 1, _ANY, "Heads of each attention layer.", _TRANSFORMER)
    feed_forward_dim: int = _number(2048, 1, _WIDEST, "Width of feed-forward layers.", _TRANSFORMER)
    norm: str = _choice("post pre", "Layer norm after or before each sub-layer.", _TRANSFORMER)
    activation: str = _choice("relu gelu silu", "Of feed-forward layers.", _TRANSFORMER)
    remat: str = _choice(
        "none dots full", "Computed twice: all but sub-layers' outputs, or layers.", _TRANSFORMER
    )
    scan_layers: str = _choice(
        "auto on off", "Compile one layer for all; auto: on accelerators.", _TRANSFORMER
    )
    attention_kernel: str = _choice(
        "auto xla cudnn pallas",
        "Of attention; xla: plain; auto: the fused one of the platform, where it can run.",
        _TRANSFORMER,
    )
    positions: str = _choice("sinusoidal none", "Position encoding.", _TRANSFORMER)
    attention_bias: bool = _field(False, "Add biases to attention's projections.", _TRANSFORMER)
    output_bias: bool = _field(False, "Add a bias to the logits.", _TRANSFORMER)
    attention: str = _choice("dot general concat additive none", "Score of attention.", _RNN)
    input_feeding: bool = _field(False, "Feed the attentional state into the next step.", _LUONG)
    bidirectional: bool = _field(False, "Encode in both directions, each half as wide.", _RNN)
    context: str = _choice(
        "first_state every_step", "Where the encoder's last state is read.", _NO_ATTENTION
    )


@dataclasses.dataclass
class DataConfig(_Fields):
    """Corpora, each one string, their vocabulary, and how they become batches."""

    train: str = _field("", "Corpus, or several joined by commas; a run cannot change its text.")
    valid: str = _field("", "Validation corpus or mixture.")
    test: str = _field("", "Test corpus or mixture.")
    source_language: str = _field("en", "Source language of corpora that name none.")
    target_language: str = _field("de", "Target language of corpora that name none.")
    temperature: float = _number(
        1.0, 0.01, _ANY, "Of a mixture without weights: a corpus' share is its size ** (1 / this)."
    )
    language_tags: bool = _field(False, "Begin each source with its target language: <2de>.")
    vocab_size: int = _number(8000, 8, _ANY, "Pieces of the vocabulary.", _SIZED)
    vocabulary: str = _field("", "A SentencePiece model to use instead of training one.")
    vocabulary_kind: str = _choice(
        "unigram bpe bytes symbols", "Subwords, bytes, or symbols with spaces between them."
    )
    byte_fallback: bool = _field(True, "Spell unknown characters in bytes.", _SUBWORDS)
    normalization: str = _choice(
        "nfc_source identity nfkc nmt_nfkc nfkc_cf nmt_nfkc_cf",
        "NFC, and single spaces of sources; or a rule of SentencePiece for both sides.",
        _SUBWORDS,
    )
    sampling_alpha: float = _number(0.0, 0.0, 1.0, "Of subword sampling; 0 = off.", _SUBWORDS)
    max_length: int = _number(128, 2, _ANY, "Most tokens of a side, EOS included, of pairs used.")
    max_length_ratio: float = _number(0.0, 0.0, _ANY, "Most that one side is longer; 0 = any.")
    drop_identical: bool = _field(False, "Leave out pairs with equal sides.")
    max_pairs: int = _number(0, 0, _ANY, "Pairs read of each training corpus; 0 = all.")
    batching: str = _choice(
        "packed bucketed", "Pairs share rows, or each has one that is padded to a few lengths."
    )
    source_row_length: int = _number(0, 0, _ANY, "Tokens of a row; 0 = by the corpus.", _PACKED)
    target_row_length: int = _number(0, 0, _ANY, "Tokens of a row; 0 = by the corpus.", _PACKED)
    num_buckets: int = _number(6, 1, 64, "Lengths that batches are padded to.", _BUCKETED)
    tokens_per_batch: int = _number(
        4096, 0, _ANY, "Tokens of a batch on each side, padding included; 0 = what memory holds."
    )
    cache_dir: str = _field("", "Folder of tokenised corpora; default: the user's cache folder.")


@dataclasses.dataclass
class OptimizerConfig(_Fields):
    """Adam and its schedule; the defaults are the paper's (section 5.3)."""

    schedule: str = _choice("rsqrt cosine", "Decay of the learning rate after the warm-up.")
    learning_rate: float = _number(0.0, 0.0, _ANY, "At the end of the warm-up; 0 = the paper's.")
    warmup_steps: int = _number(4000, 1, _ANY, "Updates of the warm-up.")
    beta1: float = _number(0.9, 0.0, 0.999999, "Decay of the mean of gradients.")
    beta2: float = _number(0.98, 0.0, 0.999999, "Decay of the mean of squared gradients.")
    epsilon: float = _number(1e-9, 0.0, _ANY, "Added to the denominator.")
    ema_decay: float = _number(0.0, 0.0, 0.99999, "Of a mean of parameters to use; 0 = none.")
    clip_norm: float = _number(0.0, 0.0, _ANY, "Max global norm of the gradient; 0 = off.")


@dataclasses.dataclass
class TrainingConfig(_Fields):
    """Length of the run and what happens on the way; intervals in updates."""

    num_steps: int = _number(100_000, 1, _ANY, "Updates of the run.")
    log_every: int = _number(100, 1, _ANY, "Updates between reports.")
    eval_every: int = _number(5000, 0, _ANY, "Between validations; 0 = only at the end.", _VALID)
    eval_sentences: int = _number(500, 0, _ANY, "Translated for valid BLEU; 0 = all.", _VALID)
    save_every: int = _number(1000, 1, _ANY, "Updates between checkpoints.")
    keep_checkpoints: int = _number(5, 1, _ANY, "Latest checkpoints kept, beside the best.")
    best_metric: str = _choice("bleu loss", "Of the best checkpoint; ties: chrF, loss.", _VALID)
    patience: int = _number(0, 0, _ANY, "Validations without a better; 0 = off.", _EVALUATIONS)
    label_smoothing: float = _number(0.1, 0.0, 0.999, "Probability spread over all tokens.")
    accumulate_steps: int = _number(1, 1, _ANY, "Micro-batches that a batch is computed in.")
    logits_mib: float = _number(
        0.0, 0.0, _ANY, "Most float32 logits at once on a device, MiB; 0 = 256, on a CPU all."
    )
    max_skipped: int = _number(5, 0, _ANY, "Updates in a row without a finite gradient.")
    max_loss_ratio: float = _number(0.0, 0.0, _ANY, "Of smoothed loss to its lowest; 0 = any.")
    max_rollbacks: int = _number(3, 0, _ANY, "To the last checkpoint, where either is exceeded.")
    init_from: str = _field("", "Workdir of another run, whose parameters this one starts from.")


@dataclasses.dataclass
class ParallelConfig(_Fields):
    """The mesh of devices; by default the state is copied to each, and rows are split over them."""

    data: int = _number(0, 0, _ANY, "Devices that rows alone are split over; 0 = all left.")
    fsdp: int = _number(1, 1, _ANY, "That rows, parameters and optimizer state are split over.")
    tensor: int = _number(1, 1, _ANY, "That heads and widths are split over.", _TRANSFORMER)


@dataclasses.dataclass
class DecodingConfig(_Fields):
    """Beam search (section 6.1), for validation and as the defaults of decode."""

    beam_size: int = _number(4, 1, 64, "Hypotheses of the beam; 1 = greedy.")
    length_penalty: float = _number(0.6, 0.0, _ANY, "GNMT's alpha.")
    max_length: int = _number(256, 2, _ANY, "Most tokens read of a line, and of its translation.")
    rows: int = _number(
        32, 0, _ANY, "Sentences at once, in eights; 0 = what memory holds, up to 1024; CPU: 32."
    )


@dataclasses.dataclass
class Config(_Fields):
    """All that a run is made of; saved as config.json in its workdir."""

    seed: int = _number(0, 0, 2**31 - 1, "Seed of initialisation, dropout and order.")
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)

    def validate(self) -> "Config":
        """Returns itself, or raises ValueError naming the field, its value and what it takes."""
        for name, leaf, value in _leaves(self):
            check_value(name, leaf, value)
        for problem in _problems(self):
            raise ValueError(problem)
        return self

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The configuration that `to_json` wrote; ValueError on anything else."""
        try:
            config = _build(cls, from_json(text), "config")
            reset_idle_fields(config)  # which runs of older versions have
            return config.validate()
        except RecursionError:  # in quoting a value that is nested
            raise ValueError("JSON that is nested too deeply") from None


def _problems(config: Config) -> Iterator[str]:
    """Sentences about fields that do not go together."""
    model, data = config.model, config.data
    if model.kind != "transformer" and data.batching == "packed":
        yield (
            f"config.model.kind={model.kind} cannot read several pairs in a row, as config.data."
            "batching=packed makes them; config.data.batching=bucketed gives each pair a row"
        )
    if idle := [sentence for _, _, sentence in idle_fields(config)]:
        yield "; ".join(idle)
    if model.kind == "transformer" and model.model_dim % model.num_heads:
        yield (
            f"config.model.num_heads={model.num_heads} does not divide config.model.model_dim="
            f"{model.model_dim}; heads share the width equally"
        )
    if model.num_heads % config.parallel.tensor:
        yield (
            f"config.parallel.tensor={config.parallel.tensor} does not divide config.model."
            f"num_heads={model.num_heads}; devices share the heads equally"
        )
    if model.model_dim % 2:
        yield (
            f"config.model.model_dim={model.model_dim} is odd; sinusoidal positions come in pairs "
            "of dimensions, and two directions share a width"
        )
    for name in ("max_length", "source_row_length", "target_row_length"):
        if 0 < data.tokens_per_batch < getattr(data, name):
            yield (
                f"config.data.tokens_per_batch={data.tokens_per_batch} is less than config.data."
                f"{name}={getattr(data, name)}: no batch could hold such a row"
            )
    if config.decoding.rows % 8:
        yield (
            f"config.decoding.rows={config.decoding.rows} is not a multiple of 8, which exact "
            "decoding needs"
        )


# What may change when a run goes on: lengths and intervals, decoding, devices, and paths (the
# vocabulary is kept in the workdir, and a training corpus of other content is refused). The
# cosine schedule ends at num_steps, so that there another number means another schedule.
RESUMABLE = frozenset(
    f"config.training.{name}"
    for name in (
        "num_steps log_every eval_every eval_sentences save_every keep_checkpoints patience "
        "max_skipped max_loss_ratio max_rollbacks init_from"
    ).split()
) | frozenset(f"config.data.{name}" for name in "train valid test vocabulary cache_dir".split())
_FREE = (
    *("config.decoding.", "config.parallel.", "config.training.logits_mib"),
    *("config.model.remat", "config.model.scan_layers", "config.model.attention_kernel"),
)


def differences(old: Config, new: Config) -> list[str]:
    """The fields, as "name: old -> new", that keep `new` from going on with a run of `old`."""
    return [
        f"{name}: {before!r} -> {after!r}"
        for (name, _, before), (_, _, after) in zip(_leaves(old), _leaves(new))
        if before != after and name not in RESUMABLE and not name.startswith(_FREE)
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


class Row(NamedTuple):
    """A field as the reference has it; what it takes and needs are "" where there is nothing."""

    section: str
    name: str
    type: str
    default: Any
    takes: str
    help: str
    needs: str


def reference() -> Iterator[Row]:
    """All fields, with all that their dataclasses say of them."""
    for name, leaf, _ in _leaves(Config()):
        section = name.removeprefix("config.").rpartition(".")[0]
        needs = " and ".join(
            f"config.{need.replace(',', ' or ')}" for need in leaf.metadata["needs"].split()
        )
        metadata = takes(leaf), leaf.metadata["help"], needs
        yield Row(section, name, leaf.type.__name__, leaf.default, *metadata)


def with_field(config: Config, name: str, text: str) -> Config:
    """Sets a field, named as in "model.num_layers", to a value written as text; see `validate`.

    ValueError where there is no such field, or the text is no value of its type.
    """
    name = f"config.{name.removeprefix('config.')}"
    *groups, last = name.split(".")[1:]
    leaf = next((leaf for path, leaf, _ in _leaves(config) if path == name), None)
    if leaf is None:
        raise ValueError(unknown_field(name))
    group = operator.attrgetter(".".join(groups))(config) if groups else config
    setattr(group, last, parse_value(name, leaf.type, text))
    return config


_BOOLS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def parse_value(name: str, type: type, text: str) -> Any:
    """The value of a type that a text says; ValueError, with the name, where it says none."""
    parsers = {bool: lambda text: _BOOLS[text.lower()], int: whole_number}
    try:
        return parsers.get(type, type)(text)
    except (KeyError, ValueError) as error:
        why = f" ({error})" if type is int else ""
        raise ValueError(f"{name}={text!r} is not of type {type.__name__}{why}") from None


def whole_number(text: str) -> int:
    """The number of text such as 1000, 1_000, 1e3, 10k or 2.5M; ValueError where it is none."""
    match = re.fullmatch(r"([-+]?\d*\.?\d[\d_]*(?:[eE]\+?\d\d?)?)([kKM]?)", text.strip())
    if match:
        number = decimal.Decimal(match[1]) * {"": 1, "M": 1_000_000}.get(match[2], 1000)
        if number == int(number):
            return int(number)
    raise ValueError(f"{text!r} is not a whole number, such as 1000, 1_000, 1e3, 10k or 2.5M")


def ready_configs() -> dict[str, pathlib.Path]:
    """The configs that come with the package, by name."""
    package = pathlib.Path(__file__).resolve().parent
    # Installed, they are in the package; in a checkout, beside it.
    folders = package / "configs", package.parent / "configs"
    files = next(filter(None, (sorted(folder.glob("[a-z]*.py")) for folder in folders)), [])
    return {path.stem: path for path in files}


def load_config(path: str) -> Config:
    """The config of FILE, FILE:ARGUMENT, or a ready one's name in place of FILE.

    The config.json of a run is one, too.

    ValueError, in one sentence, where there is none.
    """
    # A scheme, such as gs://, stays with the name, and is refused.
    name, argument = re.fullmatch(r"((?:[\w+-]+:/)?[^:]*):?(.*)", path, re.DOTALL).groups()
    ready = ready_configs()
    file = str(ready.get(name) or local_path(name))
    if not pathlib.Path(file).is_file():
        raise ValueError(
            f"there is no config file {file}, and no ready config of that name (there are "
            f"{', '.join(ready)})"
        )
    if file.endswith(".json"):
        try:
            return Config.from_json(pathlib.Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
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
        raise ValueError(f"{path} gives {config!r}; expected a transformer_jax.Config")
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


def takes(leaf: dataclasses.Field) -> str:
    """The values that a field takes, as in "in [0, 1]"; "" = any of its type."""
    if choices := leaf.metadata.get("choices"):
        return f"one of {', '.join(choices)}"
    least, most = leaf.metadata.get("range") or (-_ANY, _ANY)
    bounded = f"at least {least}" if most == _ANY else f"in [{least}, {most}]"
    return bounded if least > -_ANY else ""


def check_value(name: str, leaf: dataclasses.Field, value: Any) -> None:
    """ValueError where a value is not of the field's type, range or choices."""
    # A float field takes an int; bool is an int to Python, but not to a reader.
    expected = (int, float) if leaf.type is float else leaf.type
    if not isinstance(value, expected) or isinstance(value, bool) != (leaf.type is bool):
        raise ValueError(f"{name}={value!r} is not of type {leaf.type.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not a finite number")
    least, most = leaf.metadata.get("range") or (value, value)
    if value not in leaf.metadata.get("choices", (value,)) or not least <= value <= most:
        raise ValueError(f"{name}={value!r} must be {takes(leaf)}")


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
