"""Parameters by plain names, a layer and a matrix each: what all formats are made from.

A kernel [in, out] is multiplied from the right; docs/interop.md lists the names.
"""

from typing import Any

import numpy as np

from transformer_jax.checksums import flatten, unflatten

_SUB_LAYERS = {
    "encoder": ("self_attention", "feed_forward"),
    "decoder": ("self_attention", "cross_attention", "feed_forward"),
}
_PROJECTIONS = {
    "self_attention.projections.0": ("query", "key", "value"),
    "cross_attention.projections.0": ("query",),
    "cross_attention.projections.1": ("key", "value"),
}


def _plain_names(path: str) -> list[str]:
    """The names of one layer's parts of a stack's parameter, without stack and layer."""
    stack, _, rest = path.partition(".")
    module, _, kind = rest.rpartition(".")
    if module in _PROJECTIONS:
        attention = module.partition(".")[0]
        return [f"{attention}.{name}.{kind}" for name in _PROJECTIONS[module]]
    if module.startswith("residuals."):
        return [f"{_SUB_LAYERS[stack][int(module.split('.')[1])]}.norm.{kind}"]
    return [rest]


def to_plain(params: Any) -> dict[str, np.ndarray]:
    """A Transformer's parameters by plain names, such as encoder.0.self_attention.query.kernel."""
    plain = {}
    for path, array in flatten(params).items():
        stack, array = path.partition(".")[0], np.asarray(array)
        if stack not in _SUB_LAYERS:
            plain[path.replace("_norm.", ".norm.")] = array
            continue
        names = _plain_names(path)
        for layer, x in enumerate(array):
            if ".projections." in path:  # [D, C, H, K] or [C, H, K]
                x = np.moveaxis(x, -3, 0).reshape(len(names), *x.shape[:-3], -1)
            else:
                x = x[None]
            plain |= {f"{stack}.{layer}.{name}": part for name, part in zip(names, x)}
    return plain


def from_plain(plain: dict[str, np.ndarray], like: Any) -> Any:
    """The inverse of `to_plain`.

    Args:
      plain: by name.
      like: a tree of the shapes of the parameters.
    """
    arrays = {}
    for path, shape in flatten(like).items():
        stack = path.partition(".")[0]
        if stack not in _SUB_LAYERS:
            arrays[path] = plain[path.replace("_norm.", ".norm.")]
            continue
        layers = [
            np.stack([plain[f"{stack}.{layer}.{name}"] for name in _plain_names(path)], axis=-2)
            for layer in range(shape.shape[0])
        ]
        arrays[path] = np.stack(layers).reshape(shape.shape)
    return unflatten(like, arrays)


def reordered(plain: dict[str, np.ndarray], order_D: np.ndarray) -> dict[str, np.ndarray]:
    """An equal model whose states [D] are permuted: new dimension i is the old order_D[i]."""

    def axis(name: str) -> int | None:
        module, kind = name.split(".")[-2:]
        if module in ("query", "key", "value", "expand"):
            return 0 if kind == "kernel" else None
        return None if name == "embedding.bias" else -1

    axes = {name: axis(name) for name in plain}
    return {k: x if axes[k] is None else np.take(x, order_D, axes[k]) for k, x in plain.items()}


def halves(model_dim: int) -> np.ndarray:
    """The order [sines | cosines] of the dimensions of positions, which are in turns here."""
    return np.arange(model_dim).reshape(-1, 2).T.ravel()
