"""Layers of one kind stored as one: each parameter has a leading axis L.

An optimiser then updates a few large arrays instead of hundreds, and layers may be applied by a
scan, whose program is that of one layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Names for `jax.checkpoint` of what they give.
SUB_LAYER, KERNEL, PRODUCT = "sub_layer", "kernel", "product"
_CUDNN = "dot_product_attention_fwd_wrapper"  # which also gives what its gradient reads


def _kept_of_kernels(primitive, *_, **options) -> bool:
    return primitive.name == _CUDNN or options.get("name") == KERNEL


def _kept_of_scan(primitive, *arguments, **options) -> bool:
    """All products: a scan would keep what lies between as well, which XLA else fuses with them."""
    is_product = primitive.name == "dot_general" or options.get("name") == PRODUCT
    return is_product or _kept_of_kernels(primitive, *arguments, **options)


def _kept_of_dots(primitive, *arguments, **options) -> bool:
    """What attention's kernels return, and the last product of each sub-layer: the narrow ones."""
    return options.get("name") == SUB_LAYER or _kept_of_kernels(primitive, *arguments, **options)


_KEPT = {"none": _kept_of_scan, "dots": _kept_of_dots, "full": None}


def stacked(layers: Sequence[nnx.Module]) -> nnx.Module:
    """The layers as one, whose parameters are theirs stacked."""
    graphdefs, params = zip(*map(nnx.split, layers))
    return nnx.merge(graphdefs[0], jax.tree.map(lambda *xs: jnp.stack(xs), *params))


def layers_of(stack: nnx.Module, count: int) -> nnx.List:
    """The `count` layers of a stack, or of what was a stack before."""
    if isinstance(stack, nnx.List):
        return stack
    graphdef, params = nnx.split(stack)

    def parts(x_L: Any) -> list:
        if isinstance(x_L, np.ndarray):
            return list(x_L)
        # Split, and not indexed: the gradient is one concatenation.
        return [x[0] for x in jax.lax.split(x_L, [1] * count)]

    apart = jax.tree.transpose(
        jax.tree.structure(params), jax.tree.structure([0] * count), jax.tree.map(parts, params)
    )
    return nnx.List([nnx.merge(graphdef, layer_params) for layer_params in apart])


def apply_layers(
    layer: Callable, stack: nnx.Module, hidden_BTD: jax.Array, keys: list, *, scan: bool, remat: str
) -> tuple[jax.Array, Any]:
    """The states after all layers, and what else each returned, stacked.

    Args:
      layer: a function of one layer, states and random key: new states, and arrays or None.
      stack: from `stacked`, or its layers.
      hidden_BTD: the states before the first.
      keys: of dropout, one for each layer, or as many times None.
      scan: whether one program is compiled for all layers; else one for each.
      remat: what a backward pass computes again (Chen et al. 2016): as little as can be ("none"),
        all but the outputs of sub-layers ("dots"), or all of a layer ("full").
    """

    def kept(function: Callable, **options) -> Callable:
        if remat == "none" and not scan:
            return function
        return jax.checkpoint(function, policy=_KEPT[remat], **options)

    if scan and not isinstance(stack, nnx.List):
        graphdef, params = nnx.split(stack)

        def step(hidden_BTD, of_layer):
            layer_params, key = of_layer
            return layer(nnx.merge(graphdef, layer_params), hidden_BTD, key)

        keys_L = None if keys[0] is None else jnp.stack(keys)
        return jax.lax.scan(kept(step, prevent_cse=False), hidden_BTD, (params, keys_L))
    extras = []
    for each, key in zip(layers_of(stack, len(keys)), keys):
        hidden_BTD, extra = kept(lambda *x, each=each: layer(each, *x))(hidden_BTD, key)
        extras.append(extra)
    return hidden_BTD, jax.tree.map(lambda *xs: jnp.stack(xs), *extras)
