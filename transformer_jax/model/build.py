"""The model that a config describes: built, as shapes alone, or its first parameters."""

from typing import Any

import jax
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.model.recurrent import RecurrentModel
from transformer_jax.model.transformer import Transformer


def build(config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs) -> Transformer | RecurrentModel:
    """The model of `config.kind`, initialised."""
    model = Transformer if config.kind == "transformer" else RecurrentModel
    return model(config, vocab_size, rngs=rngs)


def abstract_model(config: ModelConfig, vocab_size: int) -> tuple[nnx.GraphDef, Any]:
    """Graph definition and parameter shapes, without any memory."""
    return nnx.split(nnx.eval_shape(lambda: build(config, vocab_size, rngs=nnx.Rngs(0))))


def first_params(config: ModelConfig, vocab_size: int, seed: int) -> Any:
    """Parameters, initialised in one program: array by array, hundreds would compile."""
    return jax.jit(lambda: nnx.split(build(config, vocab_size, rngs=nnx.Rngs(seed)))[1])()
