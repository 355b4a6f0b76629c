"""The floor plan: packages import one way, and only the command line knows Hydra."""

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "genstab"
# A package may import those before it, and itself.
ORDER = (
    "errors", "layers", "runtime", "data", "distributed", "networks", "inference", "metrics", "loggers", "report",
    "evaluation", "training", "bench", "cli",
)  # fmt: skip
MODULES = sorted(HOUSE.rglob("*.py"))


def imports(path):
    """Yield every module that a file imports: at its top, in functions and for type checkers alike."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def package_of(path):
    return path.relative_to(HOUSE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_packages_import_one_way(path):
    if path == HOUSE / "__init__.py":  # re-exports them all
        return
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "genstab":
            other = rest.partition(".")[0]
            assert other, f"{path} imports the whole package"
            assert ORDER.index(other) <= ORDER.index(package_of(path)), f"{path} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_only_the_command_line_knows_hydra(path):
    if package_of(path) != "cli":
        assert not {name.partition(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}


def test_every_package_is_in_the_order():
    assert {package_of(path) for path in MODULES} == {*ORDER, "__init__"}
