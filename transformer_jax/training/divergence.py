"""When a run has diverged: updates without a finite gradient, or a loss that has risen too far."""

from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.config import TrainingConfig
from transformer_jax.devices import must_block
from transformer_jax.training.run import Progress

_SMOOTHING = 0.98  # weight of the smoothed loss beside that of one update


class DivergedError(ValueError):
    """Loss, gradient or a parameter is not finite any more, or the loss has risen too far.

    Attributes:
      step: the last that led there.
    """

    def __init__(self, what: str, step: int):
        super().__init__(what)
        self.step = step


def all_finite(tree: Any) -> bool:
    """Whether all elements of all arrays are finite, computed where they lie."""
    found = []
    for leaf in jax.tree.leaves(tree):
        found.append(_is_finite(leaf))
        if must_block():
            jax.block_until_ready(found[-1])
    return all(jax.device_get(found))


@jax.jit
def _is_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()


def was_updated(
    progress: Progress, step: int, metrics: dict[str, Any], training: TrainingConfig
) -> bool:
    """Whether a step had a finite gradient, and so made its update; notes it in `progress`.

    Raises:
      DivergedError: too many in a row had none, or the smoothed loss is too high.
    """
    if metrics["skipped"]:
        progress.skipped += 1
        if progress.skipped > training.max_skipped:
            raise DivergedError(
                f"the loss or its gradient at step {step} is not finite, the last of "
                f"{progress.skipped} in a row",
                step,
            )
        return False
    progress.skipped = 0
    loss = float(metrics["loss"]) / max(float(metrics["tokens"]), 1.0)
    progress.weighted_loss = _SMOOTHING * progress.weighted_loss + (1 - _SMOOTHING) * loss
    progress.weight = _SMOOTHING * progress.weight + 1 - _SMOOTHING
    smoothed = progress.weighted_loss / progress.weight
    progress.lowest_loss = min(smoothed, progress.lowest_loss or smoothed)
    ratio = smoothed / max(progress.lowest_loss, 1e-9)
    if 0 < training.max_loss_ratio < ratio:
        raise DivergedError(
            f"the smoothed loss at step {step} is {ratio:.1f} times its lowest; "
            f"config.training.max_loss_ratio is {training.max_loss_ratio:g}",
            step,
        )
    return True
