"""A notebook cell says, calls, looks: ten lines at most, and something compared. Run: pytest tests/test_notebook_style.py"""

import ast
from pathlib import Path

import pytest

from repro.notebooks import convert, inspect

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("*.py"))


def test_the_numbered_notebooks_are_there():
    numbers = [path.stem[:2] for path in SOURCES]
    assert set(numbers) >= {"00", "01", "02", "04", "05", "06", "08", "09", "10"} and len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_cells_are_short_and_end_in_something_to_look_at(path):
    cells = [cell for cell in convert(path).cells if cell.cell_type == "code"]
    for cell in cells:
        lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
        assert len(lines) <= 10, cell.source
        assert "calvin_sim" not in cell.source and "shared" not in cell.source
    for cell in cells[1:]:
        last = ast.parse(cell.source).body[-1]
        shows = isinstance(last, ast.Expr | ast.For | ast.If | ast.With)
        steps = ("ensure_store", "maps =", "records =", "rolled_out =")  # long work has a cell of its own; the next shows what it gives
        assert shows or any(step in cell.source for step in steps), cell.source


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_notebook_has_parameters_and_a_compared_cell(path):
    parameters = inspect(path)
    assert parameters["profile"].default == "smoke"
    cells = convert(path).cells
    assert any("nbval-check-output" in cell.metadata.get("tags", []) for cell in cells)
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {path.stem[:2]} ")
