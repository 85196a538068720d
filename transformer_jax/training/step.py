"""The train step and the evaluation step: per-device functions, data parallel by pmap.

A step sums losses, gradients and counts over its tokens, reduces the sums over devices
and divides once, so that batches of unequal length weigh as their tokens do.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from transformer_jax.data.batches import Batch
from transformer_jax.devices import AXIS
from transformer_jax.training.loss import Sums, cross_entropy_of_states
from transformer_jax.training.optimizer import updates_made


class TrainState(NamedTuple):
    """Number of updates made, parameters, optimiser state, and the mean of parameters if any."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None


def items(state: TrainState) -> dict[str, Any]:
    """The trees of a state by the names that a checkpoint has for them."""
    named = {"params": state.params, "optimizer": state.opt_state, "ema": state.ema}
    return {name: tree for name, tree in named.items() if tree is not None}


def _identity(x: Any) -> Any:
    return x


def batch_sums(
    model, batch: Batch, smoothing: float, key=None, max_logits=math.inf, over_rows=_identity
) -> tuple[jax.Array, Sums]:
    """The summed loss of a batch, to be differentiated, and all its sums.

    `max_logits` and `over_rows` are those of `cross_entropy_of_states`.
    """
    weights_BT = (batch.target.segments != 0).astype(jnp.float32)
    keys = (None, None) if key is None else jax.random.split(key)
    states_BTD, _ = model.states(model.encode(batch.source, keys[0]), batch.target, keys[1])
    rows = states_BTD, batch.labels, weights_BT
    sums = cross_entropy_of_states(model.embedding, rows, smoothing, max_logits, over_rows)
    positions = batch.source.ids.size + batch.labels.size
    real = (batch.source.segments != 0).sum() + weights_BT.sum()
    sums = Sums(*sums, weights_BT.sum(), jnp.float32(positions), real.astype(jnp.float32))
    return sums.loss, sums


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    *,
    seed: int,
    smoothing: float,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    reduce: Callable = lambda tree: jax.lax.psum(tree, AXIS),
    device_index: Callable = lambda: jax.lax.axis_index(AXIS),
    micro_batches: Callable = lambda x, n: x.reshape(n, -1, *x.shape[1:]),
    max_logits: float = math.inf,
    over_rows: Callable = _identity,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The body of a train step, a function of the state and one device's rows.

    Where loss or gradient is not finite, parameters and optimiser state stay as they are, the sums
    are zero, and the metric "skipped" is 1.

    Args:
      graphdef: of the model, from `nnx.split`.
      optimizer, schedule: from `training.optimizer`.
      seed: of dropout; its key is folded with step, device and micro-batch.
      smoothing: label smoothing.
      accumulate_steps: micro-batches, computed one after the other; must divide the rows.
      ema_decay: of the mean of parameters, where the state has one (Polyak and Juditsky 1992).
      reduce, device_index: sum over devices and number of this one; the identity and 0
        where one program sees all rows.
      micro_batches: splits the rows of an array, to [n, rows, ...].
      max_logits, over_rows: of the loss, as for `batch_sums`.
    """

    def sums_and_gradients(params, batch, key):
        def loss(params):
            model = nnx.merge(graphdef, params)
            return batch_sums(model, batch, smoothing, key, max_logits, over_rows)

        (_, sums), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return sums, gradients

    accumulated = _added_up(sums_and_gradients, accumulate_steps, micro_batches)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(jax.random.key(seed, impl="rbg"), state.step)
        key = jax.random.fold_in(key, device_index())
        sums, gradients = reduce(accumulated(state.params, batch, key))
        tokens = jnp.maximum(sums.tokens, 1)
        gradients = jax.tree.map(lambda g: g / tokens, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.tree.norm(gradients)
        is_finite = jnp.isfinite(sums.loss) & jnp.isfinite(norm)

        def if_finite(new, old):
            return jax.tree.map(lambda x, y: jnp.where(is_finite, x, y), new, old)

        metrics = if_finite(sums, jax.tree.map(jnp.zeros_like, sums))._asdict() | {
            "skipped": 1 - is_finite.astype(jnp.int32),
            "gradient_norm": norm,
            "learning_rate": schedule(updates_made(state.opt_state)),
        }
        ema = state.ema and optax.incremental_update(params, state.ema, 1 - ema_decay)
        kept = if_finite((params, opt_state, ema), state[1:])
        return TrainState(state.step + 1, *kept), metrics

    return train_step


def _added_up(compute: Callable, count: int, micro_batches: Callable) -> Callable:
    """compute(params, batch, key), added up over `count` micro-batches, one after the other."""

    def added_up(params, batch, key):
        parts = jax.tree.map(lambda x: micro_batches(x, count), batch), jax.random.split(key, count)

        def add(total, part):
            return jax.tree.map(jnp.add, total, compute(params, *part)), None

        shapes = jax.eval_shape(compute, params, *jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    return compute if count == 1 else added_up


def make_eval_step(
    graphdef: nnx.GraphDef,
    *,
    smoothing: float,
    reduce: Callable = lambda tree: jax.lax.psum(tree, AXIS),
    max_logits: float = math.inf,
    over_rows: Callable = _identity,
    **_: Callable,
) -> Callable[[Any, Batch], Sums]:
    """The body of an evaluation step: the sums of one device's rows, without dropout, reduced."""

    def eval_step(params, batch: Batch) -> Sums:
        model = nnx.merge(graphdef, params)
        _, sums = batch_sums(model, batch, smoothing, None, max_logits, over_rows)
        return reduce(sums)

    return eval_step
