"""The executed notebooks under results/: whole, of their sources, with compared numbers; and nbval notices what it is there for.

nbval itself re-runs results/smoke/notebooks in `make test`. Run: pytest tests/test_committed_notebooks.py
"""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from test_notebooks import FIRST, SECOND, Screen, project  # noqa: F401  (project is a fixture)

from repro import ablation_statistics, ablation_tables, notebooks, publish
from repro.machine import UserError

ROOT = Path(__file__).resolve().parents[1]
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"
COMMITTED = sorted(ROOT.glob("results/*/notebooks/*.ipynb"))


# ------------------------------------------------------------------------------------------------ what is committed


def test_committed_notebooks_are_executed_whole_and_of_their_sources():
    for path in COMMITTED:
        notebook = nbformat.read(path, as_version=4)
        assert publish.problems(notebook, ROOT / "notebooks" / f"{path.stem}.py") == [], path
        assert notebook.metadata.papermill.exception is None, path
        assert notebook.metadata.papermill.parameters == {"profile": path.parts[-3]}, path
        text = re.sub(r"[\w+/=]{300,}", "", path.read_text())  # without pictures, whose letters may spell anything
        assert not re.search(rf"{re.escape(str(Path.home()))}/|/tmp/", text), f"{path} names a folder of one machine"


def test_the_sanitise_file_leaves_numbers_to_compare():
    patterns = re.findall(r"^regex: (.*)\n^replace: (.*)$", SANITIZE.read_text(), re.MULTILINE)
    assert sanitised("<Figure size 640x480> 0x7f12ab34cd, 12.5 s in work/smoke", patterns) == "<Figure size 640x480> ADDRESS, TIME in WORK"
    assert sanitised("drawer 0.571 | 12 of 40", patterns) == "drawer 0.571 | 12 of 40"
    for path in COMMITTED:
        checked = [cell for cell in nbformat.read(path, as_version=4).cells if "nbval-check-output" in cell.metadata.get("tags", ())]
        text = sanitised("\n".join(publish.shown(cell) for cell in checked), patterns)
        assert re.search(r"\d", text), f"{path}: no number left to compare"


def sanitised(text: str, patterns: list[tuple[str, str]]) -> str:
    """`text` as nbval compares it."""
    for regex, replacement in patterns:
        text = re.sub(regex, replacement, text)
    return text


def test_notebook_10_shows_the_ablation_that_is_committed_beside_it():
    """Its source does not change when records join those of profile `cpu`; what it prints of them must."""
    cells = nbformat.read(ROOT / "results" / "smoke" / "notebooks" / "10_ablation_tables.ipynb", as_version=4).cells
    printed = "\n".join(publish.shown(cell) for cell in cells if cell.cell_type == "code")
    found = ablation_statistics.load(ROOT / "results" / "cpu" / "runs" / "ablation")
    assert f"of profile cpu: {len(found)}" in printed and ablation_tables.markdown(found).strip() in printed


def test_each_notebook_is_committed_for_smoke():
    """Each notebook, and none that has lost its source; says nothing only as long as nothing was ever published."""
    if (ROOT / "results" / "smoke").exists():
        made = {path.stem for path in COMMITTED if path.parts[-3] == "smoke"}
        assert made == {path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.py")}


# ----------------------------------------------------------------------------------- do these checks notice anything


@pytest.fixture
def executed(project):  # noqa: F811
    """The two small notebooks of test_notebooks.py, run and published: results/smoke/notebooks."""
    notebooks.run("smoke", echo=Screen())
    (project / "work" / "smoke" / "runs").mkdir()
    (project / "work" / "smoke" / "runs" / "one.json").write_text("{}")
    return publish.publish("smoke", echo=Screen()) / "notebooks"


def nbval(folder: Path, work: Path) -> str:
    """Output of nbval as `make test` calls it."""
    options = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", "60", "--nbval-sanitize-with", str(SANITIZE)]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, *map(str, sorted(folder.glob("*.ipynb")))]
    environment = {**os.environ, "REPRO_WORK": str(work)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120).stdout


def test_nbval_passes_what_was_published_and_fails_an_altered_number(executed, tmp_path):
    stored = nbformat.read(executed / "00_first.ipynb", as_version=4)
    output = stored.cells[-1].outputs[0]
    assert "2 0.571" in output["text"]
    output["text"] = output["text"].replace("0.571", "0.572")
    nbformat.write(stored, executed / "02_altered.ipynb")
    report = nbval(executed, tmp_path / "fresh")
    assert "'0 0.000\\n1 0.143\\n2 0.572\\n' == '0 0.000\\n1 0.143\\n2 0.571\\n'" in report, report
    assert re.search(r"^1 failed, 10 passed", report, re.MULTILINE), report  # cells of the two published ones pass


def test_problems_of_an_executed_copy_are_found(executed, project):  # noqa: F811
    source = project / "notebooks" / "00_first.py"
    whole = nbformat.read(executed / "00_first.ipynb", as_version=4)
    assert publish.problems(whole, source) == []

    def spoilt(change) -> str:
        notebook = copy.deepcopy(whole)
        change(notebook)
        return "; ".join(publish.problems(notebook, source))

    def never_executed(notebook):
        notebook.cells = notebooks.convert(source).cells

    def out_of_order(notebook):
        notebook.cells[1].execution_count, notebook.cells[2].execution_count = 2, 1

    def with_error(notebook):
        notebook.cells[-1].outputs.append(nbformat.v4.new_output("error", ename="E", evalue="", traceback=[]))

    def edited(notebook):
        notebook.cells[-1].source += "\n"

    def without_comparison(notebook):
        notebook.cells[-1].metadata.tags = []

    def without_number(notebook):
        notebook.cells[-1].outputs[0]["text"] = "done\n"

    assert "never executed: 3 of 3" in spoilt(never_executed)
    assert "out of order" in spoilt(out_of_order)
    assert "error output" in spoilt(with_error)
    assert "stale" in spoilt(edited)
    assert "nbval-check-output" in spoilt(without_comparison)
    assert "nbval-check-output" in spoilt(without_number)
    assert "exception" in spoilt(lambda notebook: notebook.metadata.papermill.update(exception=True))


def test_publishing_strips_this_machine_and_refuses_what_is_stale(executed, project):  # noqa: F811
    text = (executed / "00_first.ipynb").read_text()
    assert str(project) not in text and "start_time" not in text and "duration" not in text
    assert (executed.parent / "runs" / "one.json").is_file()
    (executed.parent / "figures").mkdir()
    for name in ("figures/old.png", "report.md", "notes.md"):
        (executed.parent / name).write_text("of an older publication")
    publish.publish("smoke", echo=Screen())
    assert {path.name for path in executed.parent.iterdir()} == {"notebooks", "runs", "notes.md"}, "what the run did not make is gone"
    before = {path.name: path.read_bytes() for path in executed.iterdir()}
    (project / "work" / "smoke" / "runs" / "one.json").write_text(f'{{"at": "{project}/work"}}')
    with pytest.raises(UserError, match="runs/one.json names a folder of this machine"):
        publish.publish("smoke", echo=Screen())
    (project / "notebooks" / "00_first.py").write_text(FIRST.replace("steps: int = 3", "steps: int = 4"))
    with pytest.raises(UserError, match="00_first: notebook changed"):
        publish.publish("smoke", echo=Screen())
    (project / "notebooks" / "00_first.py").write_text(FIRST)
    (project / "notebooks" / "02_third.py").write_text(SECOND)
    with pytest.raises(UserError, match="02_third: not run yet"):
        publish.publish("smoke", echo=Screen())
    assert {path.name: path.read_bytes() for path in executed.iterdir()} == before
    assert not list(executed.parent.parent.glob("*.old"))
