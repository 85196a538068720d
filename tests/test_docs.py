"""README and docs: links resolve; flags, fields and names exist; the reference is up to date."""

import importlib
import importlib.util
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from transformer_jax.__main__ import COMMANDS, parser_of
from transformer_jax.config import load_config, reference, with_field

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "README.ko.md",
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks/RESULTS.md",
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SECTIONS = "model|data|optimizer|training|decoding"
# Flags of every command (--help), ruff, pytest, TensorBoard, spm_train, Slurm and gcloud.
FOREIGN = set(
    "flagfile help version check dist logdir pad_id bos_id eos_id unk_id signal requeue "
    "nodes time array gpus zone worker command".split()
)
FIELDS = {row.name for row in reference()}


@pytest.fixture(params=PAGES, ids=lambda path: path.name)
def page(request):
    return request.param


def fences(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def anchors(path):
    """The anchors that GitHub gives a page's headings."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_resolve(page):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text())
    for link in links:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.fixture(scope="module")
def flags():
    """The flags of all commands and benchmarks."""
    names = {name for command in COMMANDS for name in parser_of(command).values}
    for path in (ROOT / "benchmarks").glob("*.py"):
        names |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', path.read_text()))
    return names


def test_flags_exist(page, flags):
    for flag in re.findall(r"(?<![\w-])--([a-z]\w*)(?![\w.-])", page.read_text()):
        assert flag in flags | FOREIGN, f"{page.name}: --{flag}"


def test_fields_exist(page):
    text = page.read_text()
    fields = re.findall(r"--config\.([a-z_.0-9]+)(?:=([^\s`]+))?", text)
    fields += re.findall(rf"`(?:config\.)?((?:{SECTIONS})\.\w+)(?:=([^\s`]+))?`", text)
    for name, value in fields:
        assert f"config.{name}" in FIELDS, f"{page.name}: {name}"
        if value:
            with_field(load_config("quickstart"), name, shlex.split(value)[0])


def test_ready_configs_exist(page):
    for name in re.findall(r"--configs?=([a-z][\w:,]*)(?![\w:,/.])", page.read_text()):
        for each in name.split(","):
            assert load_config(each).validate(), f"{page.name}: {each}"


def test_python_is_valid_and_its_imports_exist(page):
    for code in fences(page.read_text(), "python"):
        compile(code, page.name, "exec")
        for module, names in re.findall(r"^from (\S+) import (.+)$", code, re.MULTILINE):
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), f"{page.name}: {name}"


def test_scripts_and_job_files_can_be_parsed(page):
    for script in fences(page.read_text(), "bash"):
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
        assert not checked.returncode, f"{page.name}: {checked.stderr}"
    for file in fences(page.read_text(), "yaml"):
        assert isinstance(yaml.safe_load(file), dict), page.name


def test_messages_are_those_of_the_code():
    """What troubleshooting.md quotes in bold, but for what stands for a value: ... and STEP."""
    sources = [path.read_text() for path in sorted((ROOT / "transformer_jax").rglob("*.py"))]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(sources))
    quoted = re.findall(r"\*\*`([^`]+)`", (ROOT / "docs/troubleshooting.md").read_text())
    assert len(quoted) > 20
    for message in quoted:
        for part in re.split(r"\.\.\.|\b[A-Z]+\b", message):
            assert part.strip(" ,;:") in code, message


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_configuration_reference_is_up_to_date():
    path = ROOT / "docs/make_configuration.py"
    spec = importlib.util.spec_from_file_location("make_configuration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    expected = (ROOT / "docs/configuration.md").read_text()
    assert module.page() == expected, (
        "run python docs/make_configuration.py > docs/configuration.md"
    )
