"""Notebooks import and never define, stay short, and are kept without outputs; `make test` executes them."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_asks_one_question(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    lines = [line for cell in code for line in "".join(cell["source"]).splitlines() if line.strip()]
    assert 0 < len(lines) <= 40
    tree = ast.parse("\n".join(lines))
    assert not any(isinstance(n, ast.FunctionDef | ast.ClassDef | ast.Lambda) for n in ast.walk(tree))
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    assert cells[0]["source"][0].startswith("# ")


def test_there_are_notebooks():
    assert NOTEBOOKS
