"""Label-smoothed cross entropy, and the sums that a step reports."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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
