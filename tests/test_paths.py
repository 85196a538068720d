"""The folder of what can be made again."""

import pathlib

from transformer_jax.paths import cache_folder


def test_the_cache_is_where_the_user_has_it(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("data") == tmp_path / "transformer_jax" / "data"
    home = pathlib.Path.home() / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder("jax") == home / "transformer_jax" / "jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("jax") == home / "transformer_jax" / "jax"
