"""Adam with the paper's schedule, or with linear warm-up and cosine decay, from optax."""

import jax
import jax.numpy as jnp
import optax

from transformer_jax.config import OptimizerConfig


def rsqrt_schedule(peak: float, warmup_steps: int) -> optax.Schedule:
    """peak * min((step + 1) / warmup, sqrt(warmup / (step + 1))): section 5.3, equation 3.

    With peak = (model_dim * warmup_steps)^-0.5 this is the paper's
    model_dim^-0.5 * min(n^-0.5, n * warmup_steps^-1.5) for update n = step + 1.
    """

    def schedule(step):
        update = jnp.asarray(step, jnp.float32) + 1
        return peak * jnp.minimum(update / warmup_steps, jnp.sqrt(warmup_steps / update))

    return schedule


def learning_rate_schedule(
    config: OptimizerConfig, model_dim: int, num_steps: int
) -> optax.Schedule:
    """Learning rate by the number of updates already made."""
    peak = config.learning_rate or (model_dim * config.warmup_steps) ** -0.5
    if config.schedule == "rsqrt":
        return rsqrt_schedule(peak, config.warmup_steps)
    return optax.warmup_cosine_decay_schedule(
        init_value=peak / config.warmup_steps,
        peak_value=peak,
        warmup_steps=config.warmup_steps,
        decay_steps=max(num_steps, config.warmup_steps + 1),
    )


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Clipping by global norm where it is on, then Adam (Kingma and Ba 2015)."""
    adam = optax.adam(schedule, b1=config.beta1, b2=config.beta2, eps=config.epsilon)
    if not config.clip_norm:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)


def updates_made(opt_state: optax.OptState) -> jax.Array:
    """The updates in an optimiser's state, which those that were skipped are not among."""
    return optax.tree_utils.tree_get_all_with_path(opt_state, "count")[0][1]
