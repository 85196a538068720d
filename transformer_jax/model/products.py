"""Matrix products that give float32 for low-precision arguments, forwards and backwards fast."""

import functools

import jax
import jax.numpy as jnp


def einsum_float32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.einsum` of two arrays of one dtype, summed in and returned as float32.

    For logits, which a softmax in float32 reads. The gradient is rounded to the dtype of
    the arguments before it is multiplied on: left in float32, it would make both products
    of the backward pass, of the largest arrays of a step, products of float32.
    """
    if x.dtype == jnp.float32:
        return jnp.einsum(equation, x, y)
    return _einsum_float32(equation, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_float32(equation, x, y):
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _forward(equation, x, y):
    return _einsum_float32(equation, x, y), (x, y)


def _backward(equation, arguments, gradient):
    _, transpose = jax.vjp(functools.partial(jnp.einsum, equation), *arguments)
    return transpose(gradient.astype(arguments[0].dtype))


_einsum_float32.defvjp(_forward, _backward)
