"""The floor plan: packages import one way, and only the command line knows Hydra."""

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "genstab"
# A package may import those before it, and itself.
ORDER = (
    "errors", "layers", "runtime", "data", "distributed", "networks", "inference", "metrics", "loggers", "report",
    "evaluation", "training", "bench", "cli",
)  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Yield every module that a file imports: at its top, in functions and for type checkers alike."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def package_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_packages_import_one_way(path):
    if path == PACKAGE / "__init__.py":  # re-exports them all
        return
    for name in imports(path):
        top, _, rest = name.partition(".")
        if top == "genstab":
            other = rest.partition(".")[0]
            assert other, f"{path} imports the whole package"
            assert ORDER.index(other) <= ORDER.index(package_of(path)), f"{path} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_knows_hydra(path):
    if package_of(path) != "cli":
        assert not {name.partition(".")[0] for name in imports(path)} & {"hydra", "omegaconf"}


def test_every_package_is_in_the_order():
    assert {package_of(path) for path in MODULES} == {*ORDER, "__init__"}


@pytest.mark.parametrize("package", ["genstab", "genstab.data"])
def test_what_type_checkers_see_is_what_is_loaded(package):
    """The names of the TYPE_CHECKING block are those of `__all__`, each from the module that it is imported from."""
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen.keys() == set(module.__all__) - {"__version__"}
    for name, place in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(place), name)
