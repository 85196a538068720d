"""Paths that a user gives, and the cache folder: where what can be made again is kept."""

import os
import pathlib
import re
import tempfile


def local_path(path: str | os.PathLike) -> str:
    """The path with ~ and ~user expanded; ValueError where it is not one of this machine."""
    text = os.path.expanduser(os.fspath(path))
    if re.match(r"[A-Za-z][\w+-]+:/", text):
        raise ValueError(f"{text} is not a local path: mount that storage, or copy its files here")
    if text.startswith("~"):
        raise ValueError(f"{text}: there is no home folder {text.partition('/')[0]}")
    return text


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """`local_path` of a folder that may not exist yet; ValueError where a file has its name."""
    folder = pathlib.Path(local_path(path))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; the name of a folder was expected")
    return folder


def cache_folder(name: str) -> pathlib.Path:
    """transformer_jax/NAME in $XDG_CACHE_HOME, or in ~/.cache; it may be deleted at any time.

    Where there is no home folder, as of a container's user, it is in the temporary directory.
    """
    if not (home := os.environ.get("XDG_CACHE_HOME")):
        try:
            home = pathlib.Path.home() / ".cache"
        except RuntimeError:
            home = pathlib.Path(tempfile.gettempdir()) / f"cache-of-user-{os.getuid()}"
    return pathlib.Path(home) / "transformer_jax" / name
