"""Where what can be made again is kept: the user's cache folder."""

import os
import pathlib


def cache_folder(name: str) -> pathlib.Path:
    """transformer_jax/NAME in $XDG_CACHE_HOME, or in ~/.cache; it may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "transformer_jax" / name
