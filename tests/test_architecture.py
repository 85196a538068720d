"""Imports without circles, along the arrows of the design; and how long each file may be."""

import ast
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "transformer_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
BUDGETS = ROOT / "tests/line_budgets.txt"

# A package or top-level module imports only what stands before it. Types alone are free.
ORDER = (
    "allocator heartbeat interruption storage config hosts devices sharding model data checksums "
    "checkpoint saved_run decoding evaluation training interop figures cli compare serving "
    "commands __main__"
).split()
# What these files may import nothing of, beyond the order.
FORBIDDEN = {"decoding.search": {"data", "training"}, "model": {"data", "training"}}


def name_of(path: pathlib.Path) -> str:
    """Of a module within the package, as in "model.attention"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


NAMES = {name_of(path) for path in FILES}


def imports(tree: ast.AST) -> set[str]:
    """Modules of the package that a syntax tree imports anywhere, but not for types alone."""
    found, skipped = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(x) for statement in node.body for x in ast.walk(statement)}
    for node in ast.walk(tree):
        names = []
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            root, _, module = name.partition(".")
            while root == "transformer_jax" and module and module not in NAMES:
                module = module.rpartition(".")[0]
            if root == "transformer_jax" and module:
                found.add(module)
    return found


GRAPH = {name_of(path): imports(ast.parse(path.read_text("utf-8"))) for path in FILES}


def unit(module: str) -> str:
    return module.partition(".")[0]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, if there are any."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_a_circle_is_found():
    assert sorted(set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}))) == ["a", "b", "c"]


def test_imports_are_found():
    """By a sample of each form: without this, an empty graph would have no circle either."""
    text = """
import transformer_jax.config
from transformer_jax.model import attention
def function():
    from transformer_jax.checkpoint import load_run
if TYPE_CHECKING:
    from transformer_jax.devices import AXIS
"""
    assert imports(ast.parse(text)) == {"config", "model.attention", "checkpoint"}


def test_no_file_imports_itself_in_a_circle():
    assert circle(GRAPH) == []


def test_no_package_imports_another_in_a_circle():
    units: dict[str, set[str]] = {}
    for module, imported in GRAPH.items():
        units.setdefault(unit(module), set()).update(map(unit, imported - {module}))
    assert circle({x: needs - {x} for x, needs in units.items()}) == []


@pytest.mark.parametrize("module", sorted(NAMES - {"__init__"}))
def test_imports_follow_the_order(module):
    assert unit(module) in ORDER, f"{module} has no place in the order"
    for imported in GRAPH[module]:
        assert ORDER.index(unit(imported)) <= ORDER.index(unit(module)), (
            f"{module} imports {imported}, which stands above it"
        )
    for name, forbidden in FORBIDDEN.items():
        if module == name or module.startswith(f"{name}."):
            assert not forbidden & set(map(unit, GRAPH[module]))


def test_every_file_keeps_to_its_budget_of_lines():
    """Budgets are in line_budgets.txt: a file and its lines, a row each."""
    rows = [line.split() for line in BUDGETS.read_text().splitlines()]
    budgets = {name: int(lines) for name, lines in rows}
    paths = [*FILES, *sorted(PACKAGE.rglob("*.html"))]
    lines = {str(x.relative_to(ROOT)): len(x.read_text("utf-8").splitlines()) for x in paths}
    over = {name: count for name, count in lines.items() if count > budgets.get(name, 0)}
    assert not over, f"raise the budget with a reason, or shrink: {over}"
    gone = budgets.keys() - lines.keys()
    assert not gone, f"budgets of files that are no more: {gone}"
