"""The model that a config describes."""

from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.model.recurrent import RecurrentModel
from transformer_jax.model.transformer import Transformer


def build(config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs) -> Transformer | RecurrentModel:
    """The model of `config.kind`, initialised."""
    model = Transformer if config.kind == "transformer" else RecurrentModel
    return model(config, vocab_size, rngs=rngs)
