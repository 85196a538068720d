"""Dropout as a pure function: on where a random key is given, the identity where none is."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest to keep the mean.

    The rate is rounded to 1/65536: sixteen random bits an element are enough, and
    drawing them is what dropout costs. The scale uses the rounded rate, so the mean is
    exact. `key=None` (or a rate that rounds to 0) returns `x` unchanged.

    Source: Srivastava et al., "Dropout", JMLR 2014; placed as in section 5.4 of
    "Attention Is All You Need".
    """
    dropped = round(rate * 2**16)
    if key is None or dropped == 0:
        return x
    keep = jax.random.bits(key, x.shape, jnp.uint16) >= dropped
    return jnp.where(keep, x * (2**16 / (2**16 - dropped)), 0).astype(x.dtype)


def split_or_none(key: jax.Array | None, count: int) -> list[jax.Array] | list[None]:
    """`count` independent keys, or as many times None where dropout is off."""
    return [None] * count if key is None else list(jax.random.split(key, count))
