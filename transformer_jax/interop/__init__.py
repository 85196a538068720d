"""Models to and from other programs: a module a format, each with `export(run, folder)`."""

import importlib
import types

import numpy as np

from transformer_jax.config import Config


def package(name: str) -> types.ModuleType:
    """A package of the extra `interop`; ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"this format needs the package {name.partition('.')[0]}, which pip install "
            f"'transformer_jax[interop]' brings ({error})"
        ) from None


def check_transformer(config: Config, format: str) -> None:
    """ValueError where the model is no Transformer, for which alone a format has classes."""
    if config.model.kind != "transformer":
        raise ValueError(
            f"config.model.kind={config.model.kind} cannot be exported to {format}, which has no "
            "such RNN: only Transformers can"
        )


def check_finite(where: object, name: str, array: np.ndarray) -> None:
    """ValueError where a parameter has a value that is infinite or no number."""
    if count := array.size - np.isfinite(array).sum():
        raise ValueError(
            f"{where}: the parameter {name} has {count} values that are infinite or not a number"
        )
