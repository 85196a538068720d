"""Layers that models share: products, dropout, positions and tied embeddings."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from transformer_jax.model.stack import PRODUCT


def einsum_float32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`jnp.einsum` of two arrays of one dtype, accumulated and returned in float32.

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


def product(
    x: jax.Array, kernel: jax.Array, dtype: jnp.dtype | None = None, axis: int = 0
) -> jax.Array:
    """x [..., D] times a kernel of its dtype, accumulated and returned in `dtype`.

    The kernel is [D, ...], or has D on another axis: one turned before would be copied, by a CPU,
    for each token that is decoded. For the kernel's gradient a CPU turns, by a copy, the first
    factor: here that is the narrower of x and the gradient, and by autodiff always the gradient,
    even that of the logits.
    """
    return checkpoint_name(_product(x, kernel, dtype, axis), PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, kernel, dtype, axis):
    over_model = ((x.ndim - 1,), (axis,)), ((), ())
    return jax.lax.dot_general(x, kernel, over_model, preferred_element_type=dtype)


def _product_forward(x, kernel, dtype, axis):
    return _product(x, kernel, dtype, axis), (x, kernel)


def _product_backward(_, axis, arguments, gradient):
    x, kernel = arguments
    gradient = gradient.astype(x.dtype)  # as in `einsum_float32`
    rows, features = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, gradient.ndim))
    over_rows = (rows, rows), ((), ())

    def gradient_first(x, gradient):
        return jnp.moveaxis(jax.lax.dot_general(gradient, x, over_rows), -1, axis)

    def states_first(x, gradient):
        return jnp.moveaxis(jax.lax.dot_general(x, gradient, over_rows), 0, axis)

    is_narrower = x.shape[-1] <= kernel.size // x.shape[-1]
    on_cpu = states_first if is_narrower else gradient_first
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=on_cpu, default=gradient_first)
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    return jax.lax.dot_general(gradient, kernel, ((features, others), ((), ()))), of_kernel


_product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Linear):
    """A layer by `product`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., E]."""
        output = product(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.bias is None:
            return output
        return output + self.bias[...].reshape((1,) * (x.ndim - 1) + (-1,)).astype(self.dtype)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each element with probability `rate` and scales the rest to keep the mean.

    Without a key (or with a rate that rounds to 0) it is the identity. The rate is rounded to
    1/65536: sixteen random bits an element are enough, and drawing them is what dropout
    costs. The scale uses the rounded rate, so the mean is exact.

    Source: Srivastava et al. 2014, "Dropout".
    """
    dropped = round(rate * 2**16)
    if key is None or dropped == 0:
        return x
    draw = functools.partial(jax.random.bits, shape=x.shape, dtype=jnp.uint16)
    on_cpu = functools.partial(_bits_on_cpu, shape=x.shape)
    keep = jax.lax.platform_dependent(key, cpu=on_cpu, default=draw) >= dropped
    return jnp.where(keep, x * (2**16 / (2**16 - dropped)), 0).astype(x.dtype)


def _bits_on_cpu(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Random uint16, two of each word, of which XLA makes no smaller ones.

    By Threefry (Salmon et al. 2011): XLA's Philox, the generator of "rbg" keys, takes three times
    as long on a CPU.
    """
    count, data = -(-math.prod(shape) // 2), jax.random.key_data(key)
    if data.shape == (4,):  # of an "rbg" key
        algorithm = jax.lax.RandomAlgorithm.RNG_THREE_FRY
        words = jax.lax.rng_bit_generator(data, (count,), algorithm=algorithm)[1]
    else:
        words = jax.random.bits(key, (count,), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)
    return halves[: math.prod(shape)].reshape(shape)


def split_or_none(key: jax.Array | None, count: int) -> list[jax.Array] | list[None]:
    """`count` independent keys, or as many times None where dropout is off."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def sinusoidal_positions(positions_BT: jax.Array, model_dim: int) -> jax.Array:
    """Sinusoidal encoding of positions, float32 [..., model_dim] (section 3.5).

    PE(pos, 2i) = sin(pos / 10000^(2i / D)) and PE(pos, 2i + 1) = cos of the same angle.

    Args:
      positions_BT: integers of any shape, counted from 0.
      model_dim: even number of dimensions, D.
    """
    frequencies = 10000.0 ** (-jnp.arange(0, model_dim, 2, dtype=jnp.float32) / model_dim)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies.reshape(
        (1,) * positions_BT.ndim + (-1,)
    )
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(
        *positions_BT.shape, model_dim
    )


class TiedEmbedding(nnx.Module):
    """One table that embeds source and target tokens and, transposed, gives the logits.

    Source: section 3.4 of the paper; tying after Press and Wolf 2017.
    """

    def __init__(
        self, vocab_size, model_dim, *, init=None, output_bias=False, dtype=jnp.float32, rngs
    ):
        # Standard deviation D^-0.5: the scale of sqrt(D) then gives embeddings of unit variance.
        init = init or nnx.initializers.normal(model_dim**-0.5)
        self.table = nnx.Param(init(rngs.params(), (vocab_size, model_dim), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(vocab_size, jnp.float32)) if output_bias else None
        self.rounded: nnx.Param | None = None  # the table in `dtype`, as logits read it
        self.dtype = dtype

    def look_up(self, ids_BT: jax.Array) -> jax.Array:
        """[B, T, D]: each token's row of the table."""
        return self.table[...][ids_BT].astype(self.dtype)

    def embed(self, ids_BT: jax.Array, positions_BT: jax.Array | None) -> jax.Array:
        """[B, T, D]: sqrt(D) times the token's row of the table, plus its position if given."""
        table_VD = self.table[...]
        model_dim = table_VD.shape[1]
        embedded_BTD = table_VD[ids_BT] * model_dim**0.5
        if positions_BT is not None:
            embedded_BTD += sinusoidal_positions(positions_BT, model_dim)
        return embedded_BTD.astype(self.dtype)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """[B, T, V] float32 logits of hidden states."""
        table_VD = (self.table if self.rounded is None else self.rounded)[...].astype(self.dtype)
        logits_BTV = product(hidden_BTD.astype(self.dtype), table_VD, jnp.float32, axis=1)
        if self.bias is None:
            return logits_BTV
        return logits_BTV + self.bias[...].reshape((1,) * (logits_BTV.ndim - 1) + (-1,))


def round_parameters(model: nnx.Module) -> None:
    """Rounds to the dtype of the computation, once, what each use of a parameter would round.

    All but the embedding, whose rows are scaled before they are rounded: it gets a second table.
    """
    embedding = model.embedding
    if embedding.dtype == jnp.float32:
        return
    others = nnx.state(model, lambda path, _: path[0] != "embedding")
    nnx.update(model, jax.tree.map(lambda x: x.astype(embedding.dtype), others))
    embedding.rounded = nnx.data(nnx.Param(embedding.table[...].astype(embedding.dtype)))
