"""The numbered notebooks, headless: convert, check parameters, execute in order, skip what is unchanged, explain a failure.

`repro run --profile smoke` or `notebooks.run("smoke")`. Sources are notebooks/NN_name.py (jupytext py:percent); executed copies are
written to work/<profile>/notebooks/NN_name.ipynb, each with a manifest NN_name.json: what it was made from and what it made.
Unchanged ones are skipped (freshness.py). A run is judged by execution counts and outputs: papermill's own cell status says
"completed" even where the kernel died.
"""

import ast
import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from repro import freshness, machine, profiles
from repro.machine import UserError, nearest

TYPES = {"str": str, "int": int, "float": float, "bool": bool}
ADDED_TAGS = ("injected-parameters", "papermill-error-cell-tag")  # cells that papermill adds; the source has none of them


class NotebookFailed(RuntimeError):
    """A notebook stopped: which, in which cell, the line that matters, the partial notebook, the next step."""


@dataclass(frozen=True)
class Parameter:
    """One line `name = value  # help` or `name: type = value  # help` of the cell tagged `parameters`."""

    name: str
    type: type
    default: object
    help: str


# ------------------------------------------------------------------------------------------- sources and parameters


def sources(root: Path) -> list[Path]:
    """notebooks/NN_name.py in the order of their numbers."""
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))
    if not found:
        raise UserError(
            f"no notebooks in {root / 'notebooks'}",
            expected="NN_name.py files, e.g. 00_environment.py",
            found="none",
            next_step="run this inside the repository, or set REPRO_ROOT to it",
        )
    return found


def select(paths: list[Path], only: tuple[str, ...] = (), start: str | None = None) -> list[Path]:
    """The notebooks named by `only` ("05", "5" or "05_train_reconvla"), or those from `start` on, or all."""
    if only and start:
        raise UserError("--only and --from exclude each other", next_step="give one of them")

    def find(name: str) -> Path:
        for path in paths:
            if name == path.stem or (name.isdigit() and int(name) == int(path.stem[:2])):
                return path
        raise UserError(f"there is no notebook {name!r}", expected=", ".join(path.stem for path in paths), found=repr(name))

    if start:
        return paths[paths.index(find(start)) :]
    return sorted({find(name) for name in only}) if only else paths


def convert(path: Path):
    """The notebook of a percent source, with the same cell ids at each conversion (jupytext alone draws them at random)."""
    import jupytext

    notebook = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i:02d}"
        cell.metadata.setdefault("tags", [])  # papermill's inspection takes it for granted
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def inspect(path: Path) -> dict[str, Parameter]:
    """Parameters of a notebook by papermill's inspection; a line which papermill would drop in silence is an error."""
    from papermill.inspection import inspect_notebook
    from papermill.utils import find_first_tagged_cell_index

    notebook = convert(path)
    index = find_first_tagged_cell_index(notebook, "parameters")  # papermill's own, so that both read the same cell
    rule = 'a cell tagged "parameters" with lines like `profile = "smoke"  # help` or `rate: float = 1`; str, int, float or bool'
    if index < 0:
        raise UserError(f"{path} has no parameters", expected=rule, found="no cell with that tag")
    seen = inspect_notebook(notebook)
    parameters = {}
    for line in ast.parse(notebook.cells[index].source).body:
        name, kind, value = _assignment(line)
        if name not in seen or kind not in TYPES.values():
            raise UserError(f"{path}: parameters cell not understood", expected=rule, found=ast.unparse(line))
        parameters[name] = Parameter(name, kind, _typed(path.stem, name, kind, value), seen[name]["help"])
    if "profile" not in parameters:
        raise UserError(f"{path} has no parameter `profile`", expected=rule, found=", ".join(parameters) or "none")
    return parameters


def _assignment(line: ast.stmt) -> tuple[str, type | None, object]:
    """`(name, type, default)` of `name: type = value` or `name = value` with a plain value; the type is None for anything else."""
    if not isinstance(line, ast.Assign | ast.AnnAssign):
        return "", None, None
    name = ast.unparse(line.target if isinstance(line, ast.AnnAssign) else line.targets[0])
    if not isinstance(line.value, ast.Constant | ast.UnaryOp):
        return name, None, None
    value = ast.literal_eval(line.value)
    return name, TYPES.get(ast.unparse(line.annotation)) if isinstance(line, ast.AnnAssign) else type(value), value


def check_parameters(paths: list[Path], given: dict[str, object], every: Iterable[Path] = ()) -> dict[str, dict[str, object]]:
    """`{notebook: {name: typed value}}` of what is given; an unknown name or a wrong type is a UserError, before anything runs.

    Each notebook gets those names which it declares; a name that none declares is unknown. Text is read by the declared
    type ("true", "1e-4"), so that `-p flag false` is False and `-p name 007` stays "007". every: those that could run as well.
    """
    declared = {path.stem: inspect(path) for path in paths}
    known = {name for parameters in declared.values() for name in parameters}
    for name in given:
        if name not in known:
            step = nearest(name, known, "give a parameter of the notebooks that run")
            if others := [path.stem for path in every if name in inspect(path)]:
                step = f"leave it out, or run a notebook that takes it: {', '.join(others)}"
            raise UserError(f"unknown parameter {name!r}", ", ".join(sorted(known)), name, step)
    return {
        stem: {name: _typed(stem, name, parameters[name].type, value) for name, value in given.items() if name in parameters}
        for stem, parameters in declared.items()
    }


def _typed(notebook: str, name: str, kind: type, value: object) -> object:
    """`value` as `kind`; text is parsed, an int is a float, nothing else is converted."""
    if isinstance(value, str) and kind is not str:
        words = {"true": True, "false": False}
        try:
            return words[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            pass
    elif type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    found = f"{value!r} ({type(value).__name__})"
    raise UserError(f"parameter {name!r} of {notebook} has the wrong type", expected=kind.__name__, found=found)


# ---------------------------------------------------------------------------------------------------------- running


def run(
    profile: str, only: tuple[str, ...] = (), start: str | None = None, fresh: bool = False,
    parameters: dict[str, object] | None = None, root: Path | None = None, echo=print,
) -> dict[str, str]:  # fmt: skip
    """Execute the notebooks in order; `{notebook: "ran" | "unchanged"}`. One line each, with what is left by the last durations.

    `echo(text, end=..., flush=True)` prints as `print` does. Raises UserError before anything runs (selection, parameters)
    and NotebookFailed at the first notebook that does not end well; finished ones are not repeated by the next run.
    """
    profiles.get(profile)
    root = root or machine.root()
    every = sources(root)
    chosen = select(every, tuple(only), start)
    given = check_parameters(chosen, {**(parameters or {}), "profile": profile}, every)
    work = machine.work(profile)
    folder = work / "notebooks"
    with machine.alone(folder / ".lock") as free:
        if not free:
            raise UserError(f"another repro run is at work in {work}", "one at a time in a work folder", "its lock is held",
                            "wait for it, or end it (ps aux | grep 'repro run'), or give this one a folder of its own (REPRO_WORK); a lock "
                            "goes with its process")
        timing = folder / "durations.json"
        durations = json.loads(timing.read_text()) if timing.is_file() else {}
        done = {}
        for i, path in enumerate(chosen):
            values = given[path.stem]
            prints = freshness.fingerprint(path, values, every[: every.index(path)], folder, freshness.surroundings(root, values))
            reason = "--fresh" if fresh else freshness.stale(folder, path.stem, prints, work)
            head = f"[{i + 1}/{len(chosen)}] {path.stem:<22}"
            if reason is None:
                echo(f"{head} unchanged, skipped", flush=True)
                done[path.stem] = "unchanged"
                continue
            echo(f"{head} {reason}; {_eta(durations, [p.stem for p in chosen[i:]])}", end=" ... ", flush=True)
            began, before = time.monotonic(), freshness.contents(work)
            (folder / f"{path.stem}.json").unlink(missing_ok=True)  # until it ends well, nothing vouches for the old copy
            cells = _execute(path, values, folder, root, _again(profile, path, chosen, only, parameters or {}), echo)
            durations[path.stem] = round(time.monotonic() - began, 1)
            now = freshness.contents(work)
            about = {
                "fingerprint": prints,
                "parameters": values,
                "executed": freshness.digest((folder / f"{path.stem}.ipynb").read_bytes()),
                "seconds": durations[path.stem],
                "made": {name: state[0] for name, state in now.items() if before.get(name) != state},
            }
            freshness.write(folder / f"{path.stem}.json", about)
            freshness.write(timing, durations)
            echo(f"done, {cells} cells in {_clock(durations[path.stem])}", flush=True)
            done[path.stem] = "ran"
        return done


def _again(profile: str, path: Path, chosen: list[Path], only: tuple[str, ...], parameters: dict[str, object]) -> str:
    """The command that goes on with `path`: with the same parameters, and no notebook that was not asked for."""
    rest = [one.stem[:2] for one in chosen[chosen.index(path):]] if only else []
    words = ["repro", "run", "--profile", profile, *(word for number in rest for word in ("--only", number))]
    words += [] if only else ["--from", path.stem[:2]]
    return shlex.join([*words, *(word for name, value in parameters.items() if name != "profile" for word in ("-p", name, str(value)))])


def _execute(path: Path, values: dict, folder: Path, root: Path, again: str, echo) -> int:
    """Run one notebook through papermill into NN_name.partial.ipynb, then rename it; the number of code cells that ran."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillException

    partial = folder / f"{path.stem}.partial.ipynb"
    nbformat.write(convert(path), partial)
    cause = ""
    try:
        papermill.execute_notebook(
            partial, partial, parameters=values, progress_bar=False, cwd=root, kernel_manager_class=kernel_manager()
        )
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the abandoned cell would be reported with a long traceback at exit
        echo(f"\nstopped in {path.stem}; partial notebook: {partial}\n  next step: `{again}` goes on from here", flush=True)
        raise
    except PapermillException:
        pass  # the notebook holds the error; told from it below
    except (RuntimeError, TimeoutError) as error:  # a kernel that died or never started leaves no trace in the notebook
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    notebook = nbformat.read(partial, as_version=4)
    failure = explain(notebook, path, cause)
    if failure:
        echo("failed", flush=True)
        raise NotebookFailed(
            f"{failure}\n  partial notebook: {partial}\n  next step: mend it, then `{again}` (finished notebooks are not repeated)"
        )
    os.replace(partial, folder / f"{path.stem}.ipynb")
    return sum(cell.cell_type == "code" for cell in notebook.cells)


def kernel_manager() -> type:
    """A kernel of this very interpreter. The kernelspec called python3 may belong to another one (the user's folder wins over ours)."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self):
            argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=CRITICAL", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

        async def start_kernel(self, **options):
            environment = {"TQDM_DISABLE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONWARNINGS": "ignore:IProgress not found",
                           "OMP_WAIT_POLICY": "PASSIVE"}  # threads that wait do not spin
            await super().start_kernel(env={**environment, **os.environ}, **options)

    return ThisInterpreter


def explain(notebook, path: Path, cause: str = "") -> str | None:
    """Why an executed notebook counts as failed: notebook, cell, place in the source and the line that matters; None where it is whole.

    Counts every code cell: an error output or a missing execution count is a failure whatever the cell's status says.
    """
    tags = [set(cell.metadata.get("tags", ())) for cell in notebook.cells]
    own = [cell for cell, its in zip(notebook.cells, tags, strict=True) if not set(ADDED_TAGS) & its]
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    failed = next((cell for cell in code if _errors(cell) or cell.execution_count is None), None)
    if cause and not (failed and _errors(failed)):  # a cell that killed its kernel may have a count: it is the last that was started
        failed = ([cell for cell in code if cell.metadata.get("papermill", {}).get("start_time")] or code)[-1]
    if failed is None:
        return None
    message, line = cause or "the cell never ran: the notebook ended early", 0
    if _errors(failed):
        message, line = _error_text(_errors(failed)[0]), _error_line(_errors(failed)[0])
    elif "died" in message.lower():
        message = "the kernel died in this cell; when memory runs out, the system kills it without a word"
    if failed not in own:  # the injected parameters: told as the cell they replace
        failed = next(cell for cell in own if "parameters" in cell.metadata.tags)
    number = own.index(failed) + 1
    before = path.read_text(encoding="utf-8").partition(failed.source)[0].count("\n")
    return f"{path.stem} failed in cell {number} of {len(own)} ({path.parent.name}/{path.name}, line {before + 1 + line}): {message}"


def _errors(cell) -> list:
    return [output for output in cell.outputs if output.output_type == "error"]


def _error_text(output) -> str:
    """Type and first line of an exception; a UserError is shown whole, since each of its lines is for the reader."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.evalue).strip()
    return text if output.ename == "UserError" else f"{output.ename}: {text.splitlines()[0] if text else ''}".rstrip(": ")


def _error_line(output) -> int:
    """Line of the failing statement within its cell, from 0; 0 where the traceback doesn't tell."""
    match = re.search(r"Cell In\[\d+\], line (\d+)", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(output.traceback)))
    return int(match[1]) - 1 if match else 0


def _eta(durations: dict[str, float], stems: list[str]) -> str:
    known = [durations[stem] for stem in stems if stem in durations]
    if stems[0] not in durations:
        return "first run, time unknown"
    rest = f", all that is left {_clock(sum(known))}" if len(known) == len(stems) > 1 else ""
    return f"about {_clock(durations[stems[0]])}{rest}"


def _clock(seconds: float) -> str:
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds < 3600 else f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
