"""The runner of the numbered notebooks, on two small real ones. Run: pytest tests/test_notebooks.py

Each executed notebook starts a kernel (about a second), so one test tells a whole story.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from repro import freshness, machine, notebooks
from repro.machine import UserError
from repro.notebooks import NotebookFailed

FIRST = '''# %% [markdown]
# # First

# %% tags=["parameters"]
profile = "smoke"  # size of the run
steps: int = 3  # how many
rate: float = 1
flag = False

# %%
from repro import machine

work = machine.work(profile)
(work / "numbers").mkdir(parents=True, exist_ok=True)
(work / "numbers" / "a.txt").write_text(str(steps * 2))

# %% tags=["nbval-check-output"]
for i in range(steps):
    print(f"{i} {i * i / 7:.3f}")
'''
SECOND = '''# %% [markdown]
# # Second

# %% tags=["parameters"]
profile = "smoke"

# %% tags=["nbval-check-output"]
from repro import machine

print("number", (machine.work(profile) / "numbers" / "a.txt").read_text())
'''


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder like the repository, with notebooks 00_first and 01_second."""
    for name in ("REPRO_ROOT", "REPRO_WORK"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks" / "00_first.py").write_text(FIRST)
    (tmp_path / "notebooks" / "01_second.py").write_text(SECOND)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Screen:
    """What a run printed."""

    def __init__(self):
        self.text = ""

    def __call__(self, text, end="\n", flush=True):
        self.text += text + end


def test_conversion_gives_the_same_bytes_each_time(project):
    source = project / "notebooks" / "00_first.py"
    once, twice = (nbformat.writes(notebooks.convert(source)) for _ in range(2))
    assert once == twice
    nbformat.validate(nbformat.reads(once, as_version=4))


def test_selection_and_its_errors(project):
    first, second = notebooks.sources(project)
    assert notebooks.select([first, second], ("1",)) == notebooks.select([first, second], ("01_second",)) == [second]
    assert notebooks.select([first, second], start="01") == [second]
    assert notebooks.select([first, second], ("01", "00")) == [first, second]
    with pytest.raises(UserError, match=r"no notebook '07'(.|\n)*00_first, 01_second"):
        notebooks.select([first, second], ("07",))
    with pytest.raises(UserError, match="--only and --from"):
        notebooks.select([first, second], ("00",), "01")
    with pytest.raises(UserError, match="REPRO_ROOT"):
        notebooks.sources(project / "notebooks")


def test_parameters_are_checked_and_read_by_their_type(project):
    paths = notebooks.sources(project)
    found = notebooks.inspect(paths[0])
    assert {name: (p.type, p.default, p.help) for name, p in found.items()} == {
        "profile": (str, "smoke", "size of the run"), "steps": (int, 3, "how many"), "rate": (float, 1.0, ""), "flag": (bool, False, ""),
    }  # fmt: skip
    given = notebooks.check_parameters(paths, {"profile": "007", "steps": "12", "rate": "1e-4", "flag": "false"})
    assert given == {"00_first": {"profile": "007", "steps": 12, "rate": 1e-4, "flag": False}, "01_second": {"profile": "007"}}
    with pytest.raises(UserError, match=r"unknown parameter 'stepps'(.|\n)*did you mean 'steps'\?"):
        notebooks.check_parameters(paths, {"stepps": 3})
    with pytest.raises(UserError, match=r"unknown parameter 'steps'(.|\n)*run a notebook that takes it: 00_first$"):
        notebooks.check_parameters(paths[1:], {"steps": 3}, paths)
    for name, wrong in (("steps", "many"), ("steps", 1.5), ("steps", True), ("flag", "yes"), ("rate", "fast"), ("profile", 7)):
        with pytest.raises(UserError, match=f"'{name}' of 00_first has the wrong type"):
            notebooks.check_parameters(paths[:1], {name: wrong})


@pytest.mark.parametrize(
    "cell, what",
    [
        ('# %% tags=["parameters"]\nsteps = 3\n', "no parameter `profile`"),
        ('# %%\nprofile = "smoke"\n', "has no parameters"),
        ('# %% tags=["parameters"]\nprofile = "smoke"\nsteps: int | None = 3\n', "not understood"),  # papermill drops such a line silently
        ('# %% tags=["parameters"]\nprofile = "smoke"\nsizes = [1, 2]\n', "not understood"),
        ('# %% tags=["parameters"]\nprofile = "smoke"\nsteps: int = 0.5\n', "wrong type"),
    ],
)
def test_a_parameters_cell_that_cannot_be_checked_is_refused(project, cell, what):
    (project / "notebooks" / "00_first.py").write_text(cell)
    with pytest.raises(UserError, match=what):
        notebooks.inspect(project / "notebooks" / "00_first.py")


def test_runs_in_order_skips_the_unchanged_and_says_why_it_repeats(project):
    screen = Screen()

    def run(**options):
        screen.text = ""
        return list(notebooks.run("smoke", echo=screen, **options).values())

    assert run() == ["ran", "ran"] and "time unknown" in screen.text
    executed = nbformat.read(project / "work" / "smoke" / "notebooks" / "01_second.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0]["text"] == "number 6\n"
    assert run() == ["unchanged", "unchanged"] and screen.text.count("unchanged, skipped") == 2
    assert run(parameters={"steps": "5"}) == ["ran", "ran"]  # the second one reads what the first one wrote
    assert re.search(r"parameters changed; about \d+ s, all that is left", screen.text) and "earlier notebooks changed" in screen.text
    (project / "notebooks" / "01_second.py").write_text(SECOND.replace("# # Second", "# # The second"))
    assert run(parameters={"steps": 5}) == ["unchanged", "ran"] and "notebook changed" in screen.text
    with pytest.raises(UserError, match="unknown parameter 'stepps'"):
        run(parameters={"stepps": 5})
    (project / "work" / "smoke" / "numbers" / "a.txt").unlink()
    assert run(parameters={"steps": 5}, only=("00",)) == ["ran"] and "files are missing in numbers" in screen.text
    assert run(start="01", fresh=True) == ["ran"] and "--fresh" in screen.text


def test_what_a_result_rests_on(project, monkeypatch):
    """Library, environment variables and the user's data each change their part of the fingerprint, and nothing else does."""
    monkeypatch.delenv("REPRO_TEST_DATA", raising=False)
    data = project / "calvin"
    (data / "training").mkdir(parents=True)
    parts = [freshness.surroundings(project, {"root": "calvin"})]
    parts.append(freshness.surroundings(project, {"root": "calvin"}))
    for name in ("REPRO_TRACEBACK", "REPRO_SESSION_END", "REPRO_PROCESSES", "REPRO_WORK"):
        monkeypatch.setenv(name, "1")  # none of them changes a number
    assert parts[0] == parts[1] == freshness.surroundings(project, {"root": "calvin"})
    (data / "training" / "episode_0000000.npz").touch()
    parts.append(freshness.surroundings(project, {"root": "calvin"}))
    monkeypatch.setenv("REPRO_TEST_DATA", "elsewhere")
    parts.append(freshness.surroundings(project, {"root": "calvin"}))
    (project / "papers" / "reconvla").mkdir(parents=True)
    (project / "papers" / "reconvla" / "claims.toml").write_text("x = 1")
    parts.append(freshness.surroundings(project, {"root": "calvin"}))
    changed = [{key for key in new if new[key] != old[key]} for old, new in zip(parts[1:], parts[2:], strict=False)]
    assert changed == [{"data"}, {"environment"}, {"code"}]


def test_a_failure_names_notebook_cell_line_partial_notebook_and_next_step(project):
    source = project / "notebooks" / "01_second.py"
    source.write_text(SECOND + "\n# %%\nx = 1\nraise KeyError(f'no {x}')\n\n# %%\nprint('never')\n")
    screen = Screen()
    with pytest.raises(NotebookFailed) as failure:
        notebooks.run("smoke", echo=screen)
    first, second, third = str(failure.value).splitlines()
    line = source.read_text().splitlines().index("raise KeyError(f'no {x}')") + 1
    assert first == f"01_second failed in cell 4 of 5 (notebooks/01_second.py, line {line}): KeyError: 'no 1'"
    partial = project / "work" / "smoke" / "notebooks" / "01_second.partial.ipynb"
    assert str(partial) in second and "number 6" in partial.read_text()
    assert "repro run --profile smoke --from 01" in third
    with pytest.raises(NotebookFailed, match="`repro run --profile smoke --only 01`"):
        notebooks.run("smoke", only=("01",), echo=screen)
    paths, given = [Path("03_levir.py"), Path("07_train.py")], {"profile": "cpu", "levir_root": "/my data"}
    assert notebooks._again("cpu", paths[1], paths, ("03", "07"), given) == "repro run --profile cpu --only 07 -p levir_root '/my data'"
    assert notebooks._again("cpu", paths[0], paths, (), given) == "repro run --profile cpu --from 03 -p levir_root '/my data'"
    assert not partial.with_name("01_second.json").exists()  # nothing vouches for it
    user_error = "from repro.machine import UserError\nraise UserError('bad', expected='good', next_step='mend')"
    source.write_text(SECOND + f"\n# %%\n{user_error}\n")
    with pytest.raises(NotebookFailed, match=r"bad\n  expected: good\n  next step: mend\n  partial notebook"):
        notebooks.run("smoke", echo=screen)
    assert "00_first               unchanged, skipped" in screen.text


def test_a_dead_kernel_is_a_failure_although_papermill_says_completed(project):
    (project / "notebooks" / "00_first.py").write_text(FIRST + "\n# %%\nimport os, time\ntime.sleep(0.1)\nos.kill(os.getpid(), 9)\n")
    with pytest.raises(NotebookFailed, match=r"failed in cell 5 of 5 (.*): the kernel died"):
        notebooks.run("smoke", only=("00",), echo=Screen())
    partial = nbformat.read(project / "work" / "smoke" / "notebooks" / "00_first.partial.ipynb", as_version=4)
    assert partial.cells[-1].metadata.papermill.status == "completed"  # the trap: were this ever mended, explain() needs no care
    for cell in partial.cells[-3:]:  # the same, had it died in the injected parameters, after they were counted
        cell.execution_count = None
        cell.metadata.papermill.start_time = None
    told = notebooks.explain(partial, project / "notebooks" / "00_first.py", "Kernel died")
    assert told.startswith("00_first failed in cell 2 of 5 (notebooks/00_first.py, line 5)")
    (project / "notebooks" / "00_first.py").write_text(FIRST + "\n# %%\nraise SystemExit\n\n# %%\nprint(1)\n")
    with pytest.raises(NotebookFailed, match="failed in cell 5 of 6"):  # papermill takes it for a good end
        notebooks.run("smoke", only=("00",), echo=Screen())


def test_the_kernel_is_this_interpreter_whatever_is_installed_as_python3(project, monkeypatch):
    spec = project / "kernels" / "kernels" / "python3"
    spec.mkdir(parents=True)
    other = {"argv": ["/bin/false", "{connection_file}"], "display_name": "another", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(other))
    monkeypatch.setenv("JUPYTER_PATH", str(project / "kernels"))
    check = f"\n# %%\nimport sys\nassert sys.executable == {sys.executable!r}\n"
    (project / "notebooks" / "00_first.py").write_text(FIRST + check)
    assert notebooks.run("smoke", only=("00",), echo=Screen()) == {"00_first": "ran"}


def test_a_second_run_on_a_work_folder_is_refused_and_changes_nothing(project):
    assert notebooks.run("smoke", only=("00",), echo=Screen()) == {"00_first": "ran"}
    folder = project / "work" / "smoke" / "notebooks"
    with machine.alone(folder / ".lock") as free, pytest.raises(UserError, match=r"another repro run is at work in .*work/smoke\n"):
        assert free
        notebooks.run("smoke", fresh=True, echo=Screen())
    assert (folder / "00_first.json").is_file()
    assert notebooks.run("smoke", only=("00",), echo=Screen()) == {"00_first": "unchanged"}


def test_ctrl_c_keeps_the_partial_notebook_and_says_how_to_go_on(project):
    (project / "notebooks" / "00_first.py").write_text(FIRST + "\n# %%\nimport time\n(work / 'here').touch()\ntime.sleep(60)\n")
    as_in_a_terminal = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background has it ignored
    process = subprocess.Popen([sys.executable, "-m", "repro", "run"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               preexec_fn=as_in_a_terminal)  # noqa: PLW1509
    here = project / "work" / "smoke" / "here"
    end = time.monotonic() + 180
    while not here.exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    partial = project / "work" / "smoke" / "notebooks" / "00_first.partial.ipynb"
    assert process.returncode == 130, output
    assert str(partial) in output and "repro run --profile smoke --from 00" in output and "Traceback" not in output
    assert partial.is_file() and not partial.with_name("00_first.json").exists()
