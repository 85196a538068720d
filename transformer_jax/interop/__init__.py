"""Models to and from other programs: a module a format, each with `export(run, folder)`."""

import importlib
import types


def package(name: str) -> types.ModuleType:
    """A package of the extra `interop`; ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"this format needs the package {name.partition('.')[0]}, which pip install "
            f"'transformer_jax[interop]' brings ({error})"
        ) from None
