"""Every notebook runs, in a fast mode: a cell's `fast` metadata takes the place of its source."""

import ast
import base64
import re
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

from tests.helpers.commands import HELPERS, program

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_that_a_notebook_imports_is_there(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for node in (node for source in cells for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("genstab"):
            for alias in node.names:
                assert hasattr(import_module(node.module), alias.name), f"{node.module}.{alias.name}"


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(path):
    assert "site-packages" not in path.read_text(encoding="utf-8")  # a warning among the outputs, of another machine
    assert any("fast" in cell.metadata for cell in nbformat.read(path, as_version=4).cells)
    printed = program(HELPERS / "run_notebook.py", path)
    assert int(re.search(r"^(\d+) pictures$", printed, re.MULTILINE)[1]) > 0


def test_the_picture_in_the_readme_is_one_of_a_notebook():
    picture = (NOTEBOOKS[0].parents[1] / ".github/pictures/aliasing.png").read_bytes()
    made = pictures(nbformat.read(NOTEBOOKS[1], as_version=4))
    assert picture in [base64.b64decode(output["data"]["image/png"]) for output in made]


def pictures(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output for output in outputs if "image/png" in output.get("data", {})]
