"""OPUS-MT's models, as Hugging Face has them: MarianMTModel with two SentencePiece models.

Converted exactly: positions in halves by a permutation of the states; the padding symbol that the
decoder starts with becomes BOS, and padding of our own never has any probability.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from transformer_jax.config import Config, DataConfig, DecodingConfig, ModelConfig
from transformer_jax.data.joined_vocabulary import joined_model
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.interop import check_finite, package
from transformer_jax.interop.parameters import from_plain, halves, reordered, to_plain
from transformer_jax.interop.transformers import from_theirs, their_name
from transformer_jax.model.build import abstract_model
from transformer_jax.saved_run import SavedRun
from transformer_jax.storage import from_json, regular

_FILES = ("source.spm", "target.spm", "vocab.json")
_TABLE = "model.shared.weight"
_TIED = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
_ACTIVATIONS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu_pytorch_tanh": "gelu"}
_NO_LOGIT = -200.0  # of padding: no probability in float32, and little in the loss of a smoothing
# What the models here do, by the fields of a MarianConfig; most are OPUS-MT's alone.
_EXPECTED = {
    "model_type": "marian",
    "scale_embedding": True,
    "tie_word_embeddings": True,
    "share_encoder_decoder_embeddings": True,
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
}


def load(folder: pathlib.Path) -> SavedRun:
    """The model of a folder, as a run.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: it is no model that can be expressed here.
    """
    for name in ("config.json", *_FILES):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no folder of an OPUS-MT model: it has no {name}")
    own, search = _their_configs(folder)
    files = [regular(folder / name).read_bytes() for name in _FILES]
    vocabulary = Vocabulary(joined_model(*files), str(folder))
    _check(own, ids := json.loads(files[2]), folder)
    config = _config(own, search, len(vocabulary))
    graphdef, shapes = abstract_model(config.model, len(vocabulary))
    plain = _plain(_weights(folder), shapes, len(ids), folder)
    plain = reordered(plain, np.argsort(halves(config.model.model_dim)))
    rows = [ids[piece] for piece in vocabulary.pieces(range(1, len(vocabulary)))]
    table_VD, bias_V = plain["embedding.table"][rows], plain["embedding.bias"][rows]
    plain["embedding.table"] = np.pad(table_VD, ((1, 0), (0, 0)))
    plain["embedding.bias"] = np.pad(bias_V, (1, 0), constant_values=_NO_LOGIT)
    return SavedRun(config, vocabulary, graphdef, from_plain(plain, shapes))


def _their_configs(folder: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    """A MarianConfig, and the fields of a GenerationConfig, which old models have in the former."""
    path, more = folder / "config.json", folder / "generation_config.json"
    hub, search = package("transformers"), {}
    try:
        own = hub.MarianConfig.from_dict(from_json(regular(path).read_bytes()))
        for each in filter(pathlib.Path.exists, (path, more)):
            search |= from_json(regular(each).read_bytes())
    except OSError:
        raise
    except Exception as error:  # of a wrong field, some of no common class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} has no config of a MarianMTModel: {reason}") from None
    return own, search


def _weights(folder: pathlib.Path) -> dict[str, Any]:
    """The tensors of a folder by name, read as data: neither its pickle nor its config runs code.

    from_pretrained would fetch what the config names, and make up the tensors that are missing.
    """
    torch, safe = package("torch"), folder / "model.safetensors"
    path = safe if safe.exists() else folder / "pytorch_model.bin"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has neither {safe.name} nor {path.name}")
    try:
        if path == safe:
            return package("safetensors.torch").load_file(regular(path))
        state = torch.load(regular(path), map_location="cpu", weights_only=True)
        return {str(name): x for name, x in state.items() if torch.is_tensor(x)}
    except OSError:
        raise
    except Exception as error:  # the libraries' own have no common class
        kind = type(error).__name__
        raise ValueError(f"{path} is damaged, or has more than tensors in it ({kind})") from None


def _plain(
    state: dict[str, Any], shapes: Any, vocab_size: int, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Parameters by plain names; ValueError where a tensor is missing, left over or misshapen."""
    plain, tables = {}, [name for name in (_TABLE, *_TIED) if name in state]
    if tables:  # which are one: files keep the first, another, or all
        state = state | {_TABLE: state[tables[0]]}
    for name, like in to_plain(jax.tree.map(lambda x: np.zeros(x.shape, bool), shapes)).items():
        if (theirs := their_name(name)) not in state:
            raise ValueError(f"{folder}: the weights have no {theirs}")
        plain[name] = from_theirs(name, state.pop(theirs).float().numpy())
        check_finite(folder, theirs, plain[name])
        expected = (vocab_size, *like.shape[1:]) if name.startswith("embedding.") else like.shape
        if plain[name].shape != expected:
            raise ValueError(
                f"{folder}: {theirs} has the shape {plain[name].shape}; config.json and "
                f"vocab.json make it {expected}"
            )
    if more := [name for name in state if ".layers." in name]:
        raise ValueError(f"{folder}: the weights have {more[0]}, which config.json does not")
    return plain


def _check(config: Any, ids: dict[str, int], folder: pathlib.Path) -> None:
    """ValueError, naming the field of config.json, where the model is none of those here."""
    pad, eos = ids.get("<pad>"), ids.get("</s>")
    symbols = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": eos}
    sides = {
        f"decoder_{name}": getattr(config, f"encoder_{name}")
        for name in ("layers", "attention_heads", "ffn_dim")
    }
    for name, expected in (_EXPECTED | symbols | sides | {"vocab_size": len(ids)}).items():
        if (value := getattr(config, name, expected)) != expected:
            raise ValueError(
                f"{folder / 'config.json'}: {name} is {value!r}; expected {expected!r}"
            )
    if (name := config.activation_function) not in _ACTIVATIONS:
        raise ValueError(
            f"{folder / 'config.json'}: activation_function is {name!r}; expected one of "
            f"{', '.join(_ACTIVATIONS)}"
        )


def _config(config: Any, search: dict[str, Any], vocab_size: int) -> Config:
    """The config of a run of the model; `search` has fields of a GenerationConfig."""
    return Config(
        model=ModelConfig(
            num_layers=config.encoder_layers,
            model_dim=config.d_model,
            num_heads=config.encoder_attention_heads,
            feed_forward_dim=config.encoder_ffn_dim,
            dropout_rate=config.dropout,
            activation=_ACTIVATIONS[config.activation_function],
            attention_bias=True,
            output_bias=True,
        ),
        data=DataConfig(vocabulary_kind="symbols", vocab_size=vocab_size),
        decoding=DecodingConfig(
            beam_size=search.get("num_beams") or 1,
            length_penalty=1.0 if (alpha := search.get("length_penalty")) is None else alpha,
            max_length=min(config.max_position_embeddings, 512),
        ),
    ).validate()
