"""The model that a config describes: built, as shapes alone, or its first parameters."""

import dataclasses
import functools
from typing import Any

import jax
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.model.kernels import choose_kernel
from transformer_jax.model.recurrent import RecurrentModel
from transformer_jax.model.transformer import Transformer


def for_platform(config: ModelConfig, platform: str) -> ModelConfig:
    """The config with each "auto" chosen for "cpu", "gpu" or "tpu".

    Raises:
      ValueError: the kernel of attention cannot run there.
    """
    if config.kind != "transformer":
        return config
    scan, kernel = config.scan_layers, choose_kernel(config, platform)
    scan = ("off" if platform == "cpu" else "on") if scan == "auto" else scan
    return dataclasses.replace(config, scan_layers=scan, attention_kernel=kernel)


def build(
    config: ModelConfig, vocab_size: int, *, rngs: nnx.Rngs, platform: str = ""
) -> Transformer | RecurrentModel:
    """The model of `config.kind`, initialised, for the platform of this process by default."""
    config = for_platform(config, platform or jax.default_backend())
    model = Transformer if config.kind == "transformer" else RecurrentModel
    return model(config, vocab_size, rngs=rngs)


def abstract_model(
    config: ModelConfig, vocab_size: int, platform: str = ""
) -> tuple[nnx.GraphDef, Any]:
    """Graph definition and parameter shapes, without any memory."""
    make = functools.partial(build, config, vocab_size, platform=platform)
    return nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))


def first_params(config: ModelConfig, vocab_size: int, seed: int) -> Any:
    """Parameters, initialised in one program: array by array, hundreds would compile."""
    return jax.jit(lambda: nnx.split(build(config, vocab_size, rngs=nnx.Rngs(seed)))[1])()
