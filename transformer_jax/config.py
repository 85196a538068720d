"""The configuration of a run: typed dataclasses, their validation, and JSON both ways.

The dataclasses are the schema. Values are scalars only, 0 or "" meaning off, so that
every field can be set from a command line as `--config.section.field=value`.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterator
from typing import Any


def _choice(default: str, *choices: str):
    return dataclasses.field(default=default, metadata={"choices": choices})


def _number(default, least, most=float("inf")):
    """A number in [least, most]."""
    return dataclasses.field(default=default, metadata={"range": (least, most)})


@dataclasses.dataclass
class ModelConfig:
    """The model; the defaults are the paper's base model (its Table 3).

    Each kind of model reads the fields that it shares with others and its own.
    """

    kind: str = _choice("transformer", "transformer", "rnn", "lstm", "gru")
    num_layers: int = _number(6, 1)  # of the encoder, and as many of the decoder
    model_dim: int = _number(512, 2)
    dropout_rate: float = _number(0.1, 0.0, 0.999)
    dtype: str = _choice("float32", "float32", "bfloat16")  # of the computation
    # Of the Transformer.
    num_heads: int = _number(8, 1)
    feed_forward_dim: int = _number(2048, 1)
    norm: str = _choice("post", "post", "pre")  # layer norm after or before each sub-layer
    activation: str = _choice("relu", "relu", "gelu", "silu")
    positions: str = _choice("sinusoidal", "sinusoidal", "none")
    attention_bias: bool = False
    output_bias: bool = False
    # Of the RNNs: rnn, lstm and gru.
    attention: str = _choice("dot", "dot", "general", "concat", "additive", "none")
    input_feeding: bool = False  # the attentional state into the next step; dot, general, concat
    bidirectional: bool = False  # encoder: half the width in each direction
    context: str = _choice("first_state", "first_state", "every_step")  # without attention


@dataclasses.dataclass
class DataConfig:
    """Corpora, each one string, and how they become batches; see data/corpus.py."""

    train: str = ""  # a corpus, or a mixture: corpora joined by commas
    valid: str = ""
    test: str = ""
    source_language: str = "en"
    target_language: str = "de"
    temperature: float = _number(1.0, 0.01)  # of a mixture without weights: sizes ** (1 / this)
    language_tags: bool = False  # begin each source with its target language, as in <2de>
    vocab_size: int = _number(8000, 8)
    vocabulary: str = ""  # a SentencePiece model to use instead of training one
    vocabulary_kind: str = _choice("unigram", "unigram", "bpe", "bytes", "symbols")
    byte_fallback: bool = True  # spell characters that the vocabulary lacks in bytes
    # Of sources alone (composed characters, single spaces), so that the target's own text
    # survives; or a rule of SentencePiece for both sides.
    normalization: str = _choice(
        "nfc_source", "nfc_source", "identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"
    )
    sampling_alpha: float = _number(0.0, 0.0, 1.0)  # segment anew at each epoch; 0 = off
    max_length: int = _number(128, 2)  # tokens a side, with the end symbol; longer: left out
    max_length_ratio: float = _number(0.0, 0.0)  # of the sides; beyond: left out; 0 = any
    drop_identical: bool = False  # leave out pairs with equal sides
    max_pairs: int = _number(0, 0)  # of each training corpus; 0 = all
    batching: str = _choice("packed", "packed", "bucketed")  # pairs share rows, or have their own
    source_row_length: int = _number(0, 0)  # of packed rows; 0 = chosen by the corpus' lengths
    target_row_length: int = _number(0, 0)
    num_buckets: int = _number(6, 1, 64)  # lengths that bucketed batches are padded to
    tokens_per_batch: int = _number(4096, 0)  # a side, padding included; 0 = what memory holds
    cache_dir: str = ""  # where tokens are kept; "" = transformer_jax/data in the user's cache


@dataclasses.dataclass
class OptimizerConfig:
    """Adam and its schedule; the defaults are the paper's (section 5.3)."""

    schedule: str = _choice("rsqrt", "rsqrt", "cosine")
    learning_rate: float = _number(0.0, 0.0)  # at the end of warm-up; 0 = the paper's
    warmup_steps: int = _number(4000, 1)
    beta1: float = _number(0.9, 0.0, 0.999999)
    beta2: float = _number(0.98, 0.0, 0.999999)
    epsilon: float = _number(1e-9, 0.0)
    clip_norm: float = _number(0.0, 0.0)  # largest global norm of the gradient; 0 = off


@dataclasses.dataclass
class TrainingConfig:
    """Length of the run and what happens on the way; intervals in optimiser updates."""

    num_steps: int = _number(100_000, 1)
    log_every: int = _number(100, 1)
    eval_every: int = _number(5000, 0)  # 0 = only at the end
    eval_sentences: int = _number(500, 0)  # translated at each evaluation, of all corpora; 0 = all
    save_every: int = _number(1000, 1)
    keep_checkpoints: int = _number(5, 1)  # the latest, beside the best
    best_metric: str = _choice("bleu", "bleu", "loss")  # bleu: where equal, chrF, then the loss
    patience: int = _number(0, 0)  # evaluations without a better one before stopping; 0 = off
    label_smoothing: float = _number(0.1, 0.0, 0.999)
    accumulate_steps: int = _number(1, 1)  # pieces that an update's batch is computed in
    init_from: str = ""  # another run's workdir, whose parameters this one starts from


@dataclasses.dataclass
class DecodingConfig:
    """Search (section 6.1)."""

    beam_size: int = _number(4, 1, 64)  # 1 = greedy
    length_penalty: float = _number(0.6, 0.0)  # GNMT's alpha
    max_length: int = _number(256, 2)  # tokens read of a line, and of its translation
    rows: int = _number(32, 8)  # sentences translated at once; a multiple of 8


@dataclasses.dataclass
class Config:
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
        if model.kind != "transformer":
            self._check_recurrent()
        elif model.model_dim % model.num_heads:
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
        if self.data.sampling_alpha and self.data.vocabulary_kind not in ("unigram", "bpe"):
            raise ValueError(
                f"config.data.sampling_alpha={self.data.sampling_alpha} needs a vocabulary_kind "
                f"that segments, unigram or bpe, not {self.data.vocabulary_kind}"
            )
        if self.decoding.rows % 8:
            raise ValueError(
                f"config.decoding.rows={self.decoding.rows} is not a multiple of 8, which exact "
                "decoding needs"
            )
        return self

    def _check_recurrent(self) -> None:
        model = self.model
        if self.data.batching == "packed":
            raise ValueError(
                f"config.model.kind={model.kind} cannot read several pairs in a row, as "
                "config.data.batching=packed makes them; config.data.batching=bucketed gives each "
                "pair a row"
            )
        if model.input_feeding and model.attention in ("additive", "none"):
            raise ValueError(
                "config.model.input_feeding=True feeds the attentional state of dot, general or "
                f"concat, which config.model.attention={model.attention} does not have"
            )
        if model.context == "every_step" and model.attention != "none":
            raise ValueError(
                "config.model.context=every_step feeds the one vector that a decoder without "
                f"attention gets; config.model.attention={model.attention} looks at all states"
            )

    def to_json(self) -> str:
        """The configuration as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """The configuration that `to_json` wrote; ValueError on anything else."""
        return _build(cls, json.loads(text), "config").validate()


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
    try:
        value = {"true": True, "false": False}[text.lower()] if wanted is bool else wanted(text)
    except (KeyError, ValueError):
        name = f"config.{name.removeprefix('config.')}"
        raise ValueError(f"{name}={text!r} is not of type {wanted.__name__}") from None
    setattr(node, last, value)
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
