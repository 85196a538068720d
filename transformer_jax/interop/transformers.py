"""Hugging Face transformers: MarianMTModel for post-norm, PegasusForConditionalGeneration for pre.

Both are this package's model with positions in halves, [sines | cosines], and an epsilon of layer
norm of 1e-5, which their configs cannot say.
"""

import json
import pathlib
from typing import Any

import numpy as np

from transformer_jax.config import Config
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from transformer_jax.interop import check_transformer, package
from transformer_jax.interop.normalizers import as_sentencepiece
from transformer_jax.interop.parameters import halves, reordered, to_plain
from transformer_jax.saved_run import SavedRun

CLASSES = {"post": "Marian MarianMTModel", "pre": "Pegasus PegasusForConditionalGeneration"}
ACTIVATIONS = {"relu": "relu", "gelu": "gelu_pytorch_tanh", "silu": "swish"}
_ATTENTION = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
_ATTENTIONS = {"self_attention": "self_attn", "cross_attention": "encoder_attn"}
_MODULES = {
    f"{a}.{b}": f"{_ATTENTIONS[a]}.{_ATTENTION[b]}" for a in _ATTENTIONS for b in _ATTENTION
}
_MODULES |= {f"{a}.norm": f"{_ATTENTIONS[a]}_layer_norm" for a in _ATTENTIONS}
_MODULES |= {"feed_forward.expand": "fc1", "feed_forward.contract": "fc2"}
_MODULES |= {"feed_forward.norm": "final_layer_norm"}


def export(run: SavedRun, folder: pathlib.Path) -> None:
    """Writes model, config, generation config, and the files of MarianTokenizer."""
    check_transformer(run.config, "transformers")
    if run.config.model.positions != "sinusoidal":
        raise ValueError(
            f"config.model.positions={run.config.model.positions} cannot be exported to "
            "transformers: its models add sinusoids"
        )
    hub, torch = package("transformers"), package("torch")
    name, kind = CLASSES[run.config.model.norm].split()
    order, symbols = _numbering(run.vocabulary)
    config = getattr(hub, f"{name}Config")(**_config(run.config, len(order)), **symbols)
    model = getattr(hub, kind)(config)
    plain = reordered(to_plain(run.params), halves(run.config.model.model_dim))
    plain |= {k: x[order] for k, x in plain.items() if k.startswith("embedding.")}
    arrays = {their_name(name): theirs(name, x) for name, x in plain.items()}
    state = model.state_dict()
    for name, tensor in state.items():
        if name in arrays:
            tensor.copy_(torch.tensor(arrays.pop(name)))
        elif name.endswith("bias"):
            tensor.zero_()
    assert not arrays, f"transformers has no {sorted(arrays)}"
    never = {symbols["pad_token_id"], symbols["decoder_start_token_id"]}
    symbols["bad_words_ids"] = [[number] for number in sorted(never)]
    model.generation_config = hub.GenerationConfig(**_generation(run.config), **symbols)
    model.save_pretrained(folder)
    write_tokenizer(run, folder)


def their_name(name: str) -> str:
    """The name in a state dict of a parameter of a plain name."""
    if name.startswith("embedding."):
        return "final_logits_bias" if name.endswith("bias") else "model.shared.weight"
    stack, layer, *module, kind = name.split(".")
    kind = "bias" if kind == "bias" else "weight"
    if not module:  # encoder.norm.scale
        return f"model.{stack}.layer_norm.{kind}"
    return f"model.{stack}.layers.{layer}.{_MODULES['.'.join(module)]}.{kind}"


def theirs(name: str, array: np.ndarray) -> np.ndarray:
    """An array as transformers has it: a kernel as [out, in], the bias of logits as [1, V]."""
    if name == "embedding.bias":
        return array.reshape(1, -1)
    return array.T if name.endswith(".kernel") else array


def from_theirs(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of `theirs`."""
    return array.reshape(-1) if name == "embedding.bias" else theirs(name, array)


def _numbering(vocabulary: Vocabulary) -> tuple[np.ndarray, dict[str, int]]:
    """Our ids in the order of theirs, and their fields of special symbols.

    OPUS-MT's models number pieces by vocab.json, and have one symbol for padding and BOS.
    """
    order = np.arange(len(vocabulary))
    if vocabulary.files:
        ids = json.loads(vocabulary.files["vocab.json"])
        order = 1 + np.argsort([ids[piece] for piece in vocabulary.pieces(order[1:])])
    number = {int(our): their for their, our in enumerate(order)}
    symbols = {
        "pad_token_id": number[PAD if PAD in number else BOS],
        "decoder_start_token_id": number[BOS],
        "eos_token_id": number[EOS],
        "forced_eos_token_id": number[EOS],
    }
    return order, symbols


def _config(config: Config, vocab_size: int) -> dict[str, Any]:
    model = config.model
    sizes = {
        "layers": model.num_layers,
        "attention_heads": model.num_heads,
        "ffn_dim": model.feed_forward_dim,
    }
    return {f"{stack}_{k}": n for stack in ("encoder", "decoder") for k, n in sizes.items()} | {
        "vocab_size": vocab_size,
        "d_model": model.model_dim,
        "activation_function": ACTIVATIONS[model.activation],
        "dropout": model.dropout_rate,
        "scale_embedding": True,
        "max_position_embeddings": max(512, config.decoding.max_length),
    }


def _generation(config: Config) -> dict[str, Any]:
    decoding = config.decoding
    # Theirs counts what the decoder starts with.
    search = {"num_beams": decoding.beam_size, "max_length": decoding.max_length + 1}
    if decoding.beam_size > 1:  # ends when nothing can overtake
        search |= {"length_penalty": decoding.length_penalty, "early_stopping": "never"}
    return search


def write_tokenizer(run: SavedRun, folder: pathlib.Path) -> None:
    """Writes the files of MarianTokenizer: it gives the ids that the vocabulary gives."""
    vocabulary, config = run.vocabulary, run.config
    pieces = vocabulary.pieces(range(len(vocabulary)))
    ids = json.dumps({piece: id for id, piece in enumerate(pieces)}, ensure_ascii=False)
    files = vocabulary.files or {
        "source.spm": as_sentencepiece(vocabulary, "source"),
        "target.spm": as_sentencepiece(vocabulary, "target"),
        "vocab.json": ids.encode(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    settings = {
        "tokenizer_class": "MarianTokenizer",
        "source_lang": config.data.source_language,
        "target_lang": config.data.target_language,
        "pad_token": pieces[BOS if vocabulary.files else PAD],
        "eos_token": pieces[EOS],
        "unk_token": pieces[UNK],
        "model_max_length": config.decoding.max_length,
        "split_special_tokens": True,  # "<pad>" in a text is text
    }
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
