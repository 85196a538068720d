"""What is installed: every package, the ready configs among them, and one command."""

import importlib
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_installed():
    setuptools = PROJECT["tool"]["setuptools"]
    folders = {path.parent for path in (ROOT / "transformer_jax").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(setuptools["packages"]) == names | {"transformer_jax.configs"}
    assert setuptools["package-dir"] == {"transformer_jax.configs": "configs"}


def test_the_command_exists():
    module, _, name = PROJECT["project"]["scripts"]["transformer-jax"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_ready_configs_are_found_in_the_package_first(tmp_path, monkeypatch):
    """As in a wheel, where the folder above is that of all packages."""
    package = tmp_path / "transformer_jax"
    for folder in (tmp_path / "configs", package / "configs"):
        folder.mkdir(parents=True)
        (folder / f"{folder.parent.name[:5]}.py").touch()
    config = importlib.import_module("transformer_jax.config")
    monkeypatch.setattr(config, "__file__", str(package / "config.py"))
    assert list(config.ready_configs()) == ["trans"]
