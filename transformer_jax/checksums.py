"""Checksums of arrays, computed where they lie, and the names of a tree's arrays."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from transformer_jax.devices import must_block

_UINTS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def flatten(tree: Any) -> dict[str, Any]:
    """A tree's arrays by path, as in "encoder.self_attention.output.kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # The path of an NNX variable ends in ".value", which names nothing.
    return {
        jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): leaf
        for path, leaf in leaves
    }


def unflatten(like: Any, arrays: dict[str, Any]) -> Any:
    """The tree of the structure of `like` whose leaves are `arrays`, by path."""
    leaves = [arrays[name] for name in flatten(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def checksums(arrays: dict[str, Any]) -> dict[str, int]:
    """A checksum of each array's name, shape, dtype and bits: the same however it is sharded."""
    sums = {}
    for name, array in arrays.items():
        sums[name] = _sum(array)
        if must_block():
            jax.block_until_ready(sums[name])
    label = "{0} {1.shape} {1.dtype}".format
    return {
        name: int(value) ^ zlib.crc32(label(name, arrays[name]).encode())
        for name, value in jax.device_get(sums).items()
    }


# A program for each shape: one for a whole tree, of hundreds of arrays, compiles far longer.
@jax.jit
def _sum(array: jax.Array) -> jax.Array:
    """The sum, modulo 2^32, of all elements' bits, each hashed together with its position."""
    bits = jax.lax.bitcast_convert_type(array, _UINTS[array.dtype.itemsize])
    position = jnp.uint32(1)
    for axis, size in enumerate(array.shape):
        index = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        position = position * jnp.uint32(size) + index
    return _hash(bits.astype(jnp.uint32) ^ _hash(position)).sum(dtype=jnp.uint32)


def _hash(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3, a permutation of the 32-bit integers."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
