"""CTranslate2, by its own description of a Transformer; it takes positions in turns as they are."""

import pathlib
from typing import Any

import numpy as np

from transformer_jax.data.vocabulary import BOS, EOS, UNK
from transformer_jax.interop import check_transformer, package
from transformer_jax.interop.normalizers import as_sentencepiece
from transformer_jax.interop.parameters import to_plain
from transformer_jax.model.layers import sinusoidal_positions
from transformer_jax.model.transformer import LAYER_NORM_EPSILON
from transformer_jax.saved_run import SavedRun

_ACTIVATIONS = {"relu": "RELU", "gelu": "GELUTanh", "silu": "SWISH"}


def export(run: SavedRun, folder: pathlib.Path) -> None:
    """Writes the model, and the SentencePiece models of both sides, source.spm and target.spm."""
    check_transformer(run.config, "ctranslate2")
    specs, config = package("ctranslate2.specs"), run.config.model
    activation = getattr(specs.common_spec.Activation, _ACTIVATIONS[config.activation])
    spec = specs.TransformerSpec.from_config(
        config.num_layers,
        config.num_heads,
        pre_norm=config.norm == "pre",
        activation=activation,
    )
    _fill(spec, run, to_plain(run.params))
    pieces = run.vocabulary.pieces(range(len(run.vocabulary)))
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.unk_token, spec.config.eos_token = pieces[UNK], pieces[EOS]
    spec.config.bos_token = spec.config.decoder_start_token = pieces[BOS]
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = LAYER_NORM_EPSILON
    spec.validate()
    spec.optimize()
    spec.save(str(folder))
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(as_sentencepiece(run.vocabulary, side))


def _fill(spec: Any, run: SavedRun, plain: dict[str, np.ndarray]) -> None:
    config = run.config.model
    length = max(512, run.config.decoding.max_length)
    positions = np.asarray(sinusoidal_positions(np.arange(length), config.model_dim))
    for name, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        embeddings = stack.embeddings[0] if name == "encoder" else stack.embeddings
        embeddings.weight, stack.scale_embeddings = plain["embedding.table"], True
        stack.position_encodings.encodings = positions * (config.positions == "sinusoidal")
        if config.norm == "pre":
            _fill_norm(stack.layer_norm, plain, f"{name}.norm")
        for index, layer in enumerate(stack.layer):
            own = f"{name}.{index}"
            _fill_attention(layer.self_attention, plain, f"{own}.self_attention", ["qkv"])
            if name == "decoder":
                _fill_attention(layer.attention, plain, f"{own}.cross_attention", ["q", "kv"])
            _fill_norm(layer.ffn.layer_norm, plain, f"{own}.feed_forward.norm")
            _fill_linear(layer.ffn.linear_0, plain, [f"{own}.feed_forward.expand"])
            _fill_linear(layer.ffn.linear_1, plain, [f"{own}.feed_forward.contract"])
    spec.decoder.projection.weight = plain["embedding.table"]
    if config.output_bias:
        spec.decoder.projection.bias = plain["embedding.bias"]


def _fill_attention(layer: Any, plain: dict[str, np.ndarray], name: str, groups: list[str]) -> None:
    """Projections of the same states are one matrix, by the first letters of their names."""
    words = {"q": "query", "k": "key", "v": "value"}
    for linear, letters in zip(layer.linear, groups):
        _fill_linear(linear, plain, [f"{name}.{words[letter]}" for letter in letters])
    _fill_linear(layer.linear[-1], plain, [f"{name}.output"])
    _fill_norm(layer.layer_norm, plain, f"{name}.norm")


def _fill_linear(linear: Any, plain: dict[str, np.ndarray], names: list[str]) -> None:
    linear.weight = np.concatenate([plain[f"{name}.kernel"].T for name in names])
    if f"{names[0]}.bias" in plain:
        linear.bias = np.concatenate([plain[f"{name}.bias"] for name in names])


def _fill_norm(norm: Any, plain: dict[str, np.ndarray], name: str) -> None:
    norm.gamma, norm.beta = plain[f"{name}.scale"], plain[f"{name}.bias"]
