"""Checksums of arrays, equal for equal bits on any devices, and the names of a tree's arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transformer_jax.checksums import checksums, flatten, unflatten
from transformer_jax.config import Config
from transformer_jax.model.build import abstract_model

DTYPES = (jnp.bfloat16, np.float32, np.int32, np.uint32)


def test_flatten_names_arrays_by_path_and_unflatten_is_its_inverse():
    tree = {"layers": [{"kernel": 1}, {"kernel": 2}], "count": 3}
    arrays = flatten(tree)
    assert arrays == {"count": 3, "layers.0.kernel": 1, "layers.1.kernel": 2}
    assert unflatten(tree, {name: -value for name, value in arrays.items()}) == jax.tree.map(
        lambda x: -x, tree
    )


def test_parameters_of_a_model_have_readable_names():
    config = Config()
    config.model.num_layers = 1
    _, shapes = abstract_model(config.model, 100)
    names = [name for name, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    flat = flatten(shapes)
    assert len(flat) == len(names)
    assert "encoder.self_attention.projections.0.kernel" in flat
    assert not any(name.endswith(".value") or "[" in name for name in flat)


def checksum(array) -> int:
    return checksums({"a": jnp.asarray(array)})["a"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_that_is_not_what_it_was_has_another_checksum(dtype):
    array = np.random.default_rng(0).integers(0, 2**16, (6, 8)).astype(np.uint16)
    array = array.view(dtype) if dtype == jnp.bfloat16 else array.astype(dtype)
    bits = array.view(np.uint16 if dtype == jnp.bfloat16 else np.uint32)
    variants = [bits, np.roll(bits, 1), np.roll(bits, 1, 0), bits[::-1], np.zeros_like(bits)]
    for bit in range(8 * bits.itemsize):
        for position in ((0, 0), (5, 7), (2, 3)):
            variants.append(bits.copy())
            variants[-1][position] ^= bits.dtype.type(1 << bit)
    for one, other in itertools.combinations([(0, 0), (0, 1), (1, 0), (5, 7)], 2):
        variants.append(bits.copy())
        variants[-1][one], variants[-1][other] = bits[other], bits[one]
    found = [checksum(variant.view(dtype)) for variant in variants]
    assert len(set(found)) == len(found)


def test_a_swap_of_opposite_numbers_is_found():
    """Their bits differ by 2^31, which an even weight would multiply to nothing."""
    array = np.array([1.0, -1.0, 0.0, -0.0], np.float32)
    orders = [0, 1, 2, 3], [1, 0, 2, 3], [0, 1, 3, 2]
    assert len({checksum(array[order]) for order in orders}) == 3


def test_name_shape_and_dtype_count():
    array = jnp.arange(4)
    others = array.reshape(2, 2), array.view(np.float32), array[None]
    found = [checksum(array), *map(checksum, others), checksums({"b": array})["b"]]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_does_not_depend_on_the_layout(dtype):
    array = jnp.asarray(np.random.default_rng(1).normal(0, 1e4, (8, 12)).astype(dtype))
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
    specs = (), ("x",), (None, "y"), ("y", "x"), (("x", "y"),)
    placed = [jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec))) for spec in specs]
    assert {checksum(x) for x in placed} == {checksum(array)}
    assert checksum(np.float32(3)) == checksum(jax.device_put(np.float32(3), placed[0].sharding))
