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
from transformer_jax.interop import package
from transformer_jax.interop.parameters import from_plain, halves, reordered, to_plain
from transformer_jax.interop.transformers import from_theirs, their_name
from transformer_jax.model.build import abstract_model
from transformer_jax.saved_run import SavedRun
from transformer_jax.storage import regular

_FILES = ("source.spm", "target.spm", "vocab.json")
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
    hub = package("transformers")
    own, search = (x.from_pretrained(folder) for x in (hub.MarianConfig, hub.GenerationConfig))
    files = [regular(folder / name).read_bytes() for name in _FILES]
    ids = json.loads(files[2])
    _check(own, ids, folder)
    vocabulary = Vocabulary(joined_model(*files), str(folder))
    config = _config(own, search, len(vocabulary))
    state = hub.MarianMTModel.from_pretrained(folder, dtype="float32").state_dict()
    graphdef, shapes = abstract_model(config.model, len(vocabulary))
    names = to_plain(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes))
    plain = {name: from_theirs(name, state[their_name(name)].numpy()) for name in names}
    plain = reordered(plain, np.argsort(halves(config.model.model_dim)))
    rows = [ids[piece] for piece in vocabulary.pieces(range(1, len(vocabulary)))]
    table_VD, bias_V = plain["embedding.table"][rows], plain["embedding.bias"][rows]
    plain["embedding.table"] = np.pad(table_VD, ((1, 0), (0, 0)))
    plain["embedding.bias"] = np.pad(bias_V, (1, 0), constant_values=_NO_LOGIT)
    return SavedRun(config, vocabulary, graphdef, from_plain(plain, shapes))


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


def _config(config: Any, search: Any, vocab_size: int) -> Config:
    """The config of a run of the model; `search` is a GenerationConfig."""
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
            beam_size=search.num_beams or 1,
            length_penalty=1.0 if search.length_penalty is None else search.length_penalty,
            max_length=min(config.max_position_embeddings, 512),
        ),
    ).validate()
