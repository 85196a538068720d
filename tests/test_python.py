"""The package as a program of the user's imports it."""

import json
import logging
import re

import pytest
from commands import run

import transformer_jax
from transformer_jax import Config, Translator
from transformer_jax.training import loop

PROGRAM = """
import json, logging, runpy, transformer_jax
config = runpy.run_path("{home}/tiny.py")["get_config"]()
config.data.test = "text:{home}/corpus"
result = transformer_jax.train(config, "{home}/from python")
translator = result.translator(checkpoint=6)
found = translator.translate("seven")
assert found == transformer_jax.Translator.from_workdir(result.workdir).translate(["seven"])[0]
logging.getLogger("transformer_jax").info("told no more")
print(json.dumps([result.step, result.signal, result.status, result.scores["sentences"]]))
"""


def test_training_reports_and_leaves_a_translator_without_a_word_of_the_libraries(home):
    process = run(home, "-c", PROGRAM.format(home=home))
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout.splitlines()[-1]) == [6, None, 0, 3]
    assert "To translate" not in process.stdout
    lines = re.split("[\r\n]+", process.stderr.strip())
    assert any("step 2: smoothed loss" in line for line in lines)
    assert any(re.fullmatch(r"trained to step 6 in \d+ s", line) for line in lines)
    assert "told no more" not in process.stderr
    assert not re.search("WARNING|INFO|ERROR|absl|[Oo]rbax|Warning", process.stderr)


@pytest.mark.parametrize(
    ("formats", "level", "shown"),
    [
        ([], logging.WARNING, True),
        ([logging.BASIC_FORMAT], logging.WARNING, True),  # what absl does unasked
        ([logging.BASIC_FORMAT], logging.INFO, False),
        (["%(message)s"], logging.WARNING, False),
    ],
)
def test_reports_are_shown_where_nobody_has_configured_logging(
    monkeypatch, tmp_path, capsys, formats, level, shown
):
    root, package = logging.getLogger(), logging.getLogger("transformer_jax")
    handlers = [logging.StreamHandler() for _ in formats]
    for handler, fmt in zip(handlers, formats):
        handler.setFormatter(logging.Formatter(fmt))
    monkeypatch.setattr(root, "handlers", handlers)
    monkeypatch.setattr(root, "level", level)
    package.manager._clear_cache()

    def trainer(*_):
        assert (root.handlers != handlers) == shown
        package.info("a report")
        raise ValueError("ends here")

    monkeypatch.setattr(loop, "Trainer", trainer)
    with pytest.raises(ValueError, match="ends here"):
        loop.train(Config(), tmp_path)
    assert root.handlers == handlers and package.level == logging.NOTSET
    assert not shown or capsys.readouterr().err == "a report\n"


def test_public_names_are_listed():
    assert {"Config", "Translator", "train", "__version__", *transformer_jax.__all__} <= set(
        dir(transformer_jax)
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+", transformer_jax.__version__)
    assert transformer_jax.Translator is Translator
