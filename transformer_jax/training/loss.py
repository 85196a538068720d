"""Label-smoothed cross entropy, and the sums that a step reports."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from transformer_jax.model.layers import TiedEmbedding

_MIB_ON_ACCELERATORS = 256  # a chunk still is 2,000 positions of 32,768 logits


class Sums(NamedTuple):
    """Sums over the real target tokens of a batch, float32 scalars, to be divided by `tokens`.

    They add up over devices and micro-batches, which means of means do not.
    """

    loss: jax.Array  # label-smoothed cross entropy, nats
    cross_entropy: jax.Array  # without smoothing, nats
    correct: jax.Array  # tokens whose logit is the largest
    probability: jax.Array  # of the reference token
    tokens: jax.Array  # real target tokens
    places: jax.Array  # positions in the batch, both sides, padding included
    filled: jax.Array  # positions that hold a real token


def smoothed_cross_entropy(
    logits_BTV: jax.Array, labels_BT: jax.Array, weights_BT: jax.Array, smoothing: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Weighted sums over positions of the cross entropy against a smoothed target distribution.

    The target distribution is (1 - smoothing) on the label plus smoothing / V everywhere
    (Szegedy et al. 2016, section 7; section 5.4 of the paper uses 0.1). It is never
    built: its cross entropy is logsumexp - (1 - smoothing) * logit[label] - smoothing *
    mean(logits).

    Args:
      logits_BTV: [B, T, V] float32.
      labels_BT: [B, T] int32.
      weights_BT: [B, T] float32, 1 for real tokens and 0 for padding.
      smoothing: in [0, 1).

    Returns:
      loss (differentiable), and without gradient: cross entropy without smoothing, number
      of tokens predicted correctly, sum of the probabilities of the reference tokens.
    """
    return _smoothed_cross_entropy(logits_BTV, labels_BT, weights_BT, smoothing)


@jax.custom_vjp
def _smoothed_cross_entropy(logits_BTV, labels_BT, weights_BT, smoothing):
    return _forward(logits_BTV, labels_BT, weights_BT, smoothing)[0]


def _forward(logits_BTV, labels_BT, weights_BT, smoothing):
    largest_BT = logits_BTV.max(axis=-1)
    sum_BT = jnp.exp(logits_BTV - largest_BT[..., None]).sum(axis=-1)
    normalizer_BT = largest_BT + jnp.log(sum_BT)
    label_BT = jnp.take_along_axis(logits_BTV, labels_BT[..., None], axis=-1)[..., 0]
    cross_entropy_BT = normalizer_BT - label_BT
    # The cross entropy against the uniform distribution.
    uniform_BT = normalizer_BT - logits_BTV.mean(axis=-1)
    loss_BT = (1 - smoothing) * cross_entropy_BT + smoothing * uniform_BT
    sums = tuple(
        (x_BT * weights_BT).sum()
        for x_BT in (
            loss_BT,
            cross_entropy_BT,
            (label_BT >= largest_BT).astype(jnp.float32),
            jnp.exp(-cross_entropy_BT),
        )
    )
    return sums, (logits_BTV, normalizer_BT, labels_BT, weights_BT, smoothing)


def _backward(residuals, gradients):
    # softmax - target, written as one elementwise pass over the logits: derived by
    # autodiff it becomes a scatter and several passes over the largest array of the step.
    logits_BTV, normalizer_BT, labels_BT, weights_BT, smoothing = residuals
    vocab_size = logits_BTV.shape[-1]
    ids_11V = jnp.arange(vocab_size, dtype=labels_BT.dtype)[None, None]
    gradient_BTV = jnp.exp(logits_BTV - normalizer_BT[..., None]) - jnp.where(
        ids_11V == labels_BT[..., None],
        1 - smoothing + smoothing / vocab_size,
        smoothing / vocab_size,
    )
    scale_BT = gradients[0] * weights_BT
    return gradient_BTV * scale_BT[..., None], None, None, None


_smoothed_cross_entropy.defvjp(_forward, _backward)


def max_logits(mib: float, platform: str) -> float:
    """Bytes of logits that there may be at once, of `config.training.logits_mib`."""
    return 2**20 * (mib or (math.inf if platform == "cpu" else _MIB_ON_ACCELERATORS))


def cross_entropy_of_states(
    embedding: TiedEmbedding,
    rows: tuple[jax.Array, jax.Array, jax.Array],
    smoothing: float,
    max_logits: float,
    over_rows: Callable[[Callable], Callable],
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`smoothed_cross_entropy` of the logits of states, of which a few positions' exist at once.

    Args:
      embedding: gives the logits.
      rows: states [B, T, D], labels [B, T], and weights [B, T].
      smoothing: see there.
      max_logits: bytes of float32 logits that a device has at once, at least those of one position.
      over_rows: maps sums(params, rows) over the devices that rows are split over, and adds up.
    """
    graphdef, params = nnx.split(embedding)
    vocab_size = embedding.table.shape[0]

    def sums(params, states_BTD, labels_BT, weights_BT):
        logits_BTV = nnx.merge(graphdef, params).logits(states_BTD)
        return smoothed_cross_entropy(logits_BTV, labels_BT, weights_BT, smoothing)

    def in_chunks(params, rows):
        batch, length = rows[1].shape
        size = max(int(max_logits / (batch * vocab_size * 4)), 1)
        number = -(-length // size)
        size = -(-length // number)

        def split(x):
            widths = [(0, 0)] * x.ndim
            widths[1] = (0, number * size - length)
            return jnp.pad(x, widths).reshape(batch, number, size, *x.shape[2:]).swapaxes(0, 1)

        return _added_up(sums, params, jax.tree.map(split, rows))

    return sums(params, *rows) if max_logits == math.inf else over_rows(in_chunks)(params, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _added_up(sums, params, chunks):
    """The sums of chunks, [chunks, B, T, ...] each, computed one after the other."""

    def add(total, chunk):
        return jax.tree.map(jnp.add, total, sums(params, *chunk)), None

    return jax.lax.scan(add, (jnp.float32(0),) * 4, chunks)[0]


def _added_with_gradients(sums, params, chunks):
    # Gradients are computed with the sums: checkpointed, a chunk's logits would be computed twice,
    # a tenth of the FLOPs of the base model's step.
    def loss(params, states_BTD, labels_BT, weights_BT):
        values = sums(params, states_BTD, labels_BT, weights_BT)
        return values[0], values

    def add(total, chunk):
        (_, values), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, *chunk)
        return jax.tree.map(jnp.add, total, (values, gradients[0])), gradients[1]

    zeros = jax.tree.map(jnp.zeros_like, ((jnp.float32(0),) * 4, params))
    (values, of_params), of_states = jax.lax.scan(add, zeros, chunks)
    return values, (of_params, of_states)


def _scaled(sums, gradients, cotangents):
    scaled = jax.tree.map(lambda x: (x * cotangents[0]).astype(x.dtype), gradients)
    return scaled[0], (scaled[1], None, None)


_added_up.defvjp(_added_with_gradients, _scaled)
