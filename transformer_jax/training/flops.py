"""Model FLOPs of a train step: those of its matrix products, without what is computed twice."""

from collections.abc import Callable
from typing import Any

import jax

from transformer_jax.config import ModelConfig
from transformer_jax.data.packing import Shape


def step_flops(config: ModelConfig, params: Any) -> Callable[[float, float, Shape], float]:
    """A function of a batch: the FLOPs of its step's products, forward and backward.

    6 for each weight and real token that it multiplies (Kaplan et al. 2020); in each attention 12 D
    for each real query and position of its row, masked or not (Chowdhery et al. 2022, appendix B).

    Args:
      config, params: of the model; of the parameters, shapes are enough.

    Returns:
      a function of the real tokens of the source and of the target, and the shape of the rows.
    """
    of_source, of_target = _weights(params)
    dim, layers = config.model_dim, config.num_layers
    if config.kind == "transformer":
        moved = 2 * layers * dim**2  # cross-attention's keys and values are of the source
        of_source, of_target = of_source + moved, of_target - moved

    def flops(source: float, target: float, row: Shape) -> float:
        pairs = 0 if config.attention == "none" else target * row.source
        if config.kind == "transformer":
            pairs = layers * (source * row.source + target * (row.target + row.source))
        return 6 * (of_source * source + of_target * target) + 12 * dim * pairs

    return flops


def _weights(params: Any) -> tuple[int, int]:
    """Weights of matrices of the encoder, and of the others, with the table that gives logits."""
    sizes = [0, 0]
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "kernel" in name or "table" in name:
            sizes["encoder" not in name] += leaf.size
    return sizes[0], sizes[1]
