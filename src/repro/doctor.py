"""`repro doctor`: is this machine ready? Each check says [OK], [WARN] or [FAIL], what it found and the next step."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from repro import machine
from repro.machine import UserError

OK, WARN, FAIL = "OK", "WARN", "FAIL"
PIP = "make setup, or python -m pip install -r requirements.txt"


@dataclass(frozen=True)
class Check:
    """One line of the report; `next_step` is empty where there is nothing to do."""

    name: str
    status: str
    found: str
    next_step: str = ""


def checks(profile: str = "smoke") -> list[Check]:
    """All checks, cheap first; the kernel start takes about a second."""
    return [
        python(), packages(), torch(), torchvision(), memory(), disk(profile), work_folder(profile), data(), jupyter(), kernel(),
    ]  # fmt: skip


def show(found: list[Check], echo=print) -> None:
    """One line a check, and its next step where there is one."""
    for check in found:
        echo(f"{f'[{check.status}]':<7}{check.name:<12} {check.found}")
        if check.next_step:
            echo(f"{'':<20}next step: {check.next_step}")


def as_json(found: list[Check]) -> dict:
    """Checks with the machine's description, for a bug report."""
    return {"checks": [asdict(check) for check in found], "machine": machine.describe()}


def python() -> Check:
    version = sys.version_info
    found = f"Python {version.major}.{version.minor}.{version.micro} at {sys.executable}"
    if version < (3, 11):
        return Check("python", FAIL, found, "install Python 3.11, 3.12 or 3.13, remove .venv, then make setup")
    if version >= (3, 14):
        return Check("python", WARN, found, "tested on 3.11 to 3.13 only: where something breaks, make setup PYTHON=python3.11")
    return Check("python", OK, found)


def packages() -> Check:
    """Installed packages against the ranges the library declares (FAIL) and against the pins of requirements.txt (WARN)."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires("repro") or []
    except importlib.metadata.PackageNotFoundError:
        return Check("packages", WARN, "repro is imported from a folder, not installed: its ranges cannot be checked", PIP)
    wrong = [line for line in map(Requirement, declared) if not _applies(line, extra=True) and not _meets(line)]
    if wrong:
        return Check("packages", FAIL, "; ".join(f"{line} wanted, {_version(line.name)} found" for line in wrong), PIP)
    pins = machine.root() / "requirements.txt"
    if not pins.is_file():
        return Check("packages", OK, f"{len(declared)} packages within the library's ranges; no requirements.txt here to compare")
    lines = [line.split("#")[0].strip() for line in pins.read_text().splitlines()]
    pinned = [line for line in map(Requirement, filter(None, lines)) if _applies(line)]
    other = [f"{line} pinned, {_version(line.name)} found" for line in pinned if not _meets(line)]
    if other:
        step = "results may differ a little from the committed ones" + ("" if machine.on_kaggle() else f"; for the same versions: {PIP}")
        return Check("packages", WARN, "; ".join(other), step)
    return Check("packages", OK, f"all {len(pinned)} pins of requirements.txt")


def _applies(line, extra: bool = False) -> bool:
    """Does this requirement's marker select this Python and platform? With `extra`: is it only for an optional extra?"""
    if extra:
        return line.marker is not None and "extra" in str(line.marker)
    return line.marker is None or line.marker.evaluate()


def _version(name: str) -> str | None:
    """Installed version; None where it is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _meets(line) -> bool:
    version = _version(line.name)
    return version is not None and line.specifier.contains(version, prereleases=True)


def torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", FAIL, f"torch does not import: {str(error).splitlines()[0]}", PIP)
    dtype, reason = machine.compute_dtype()
    gpus = machine.describe()["gpus"]
    names = ", ".join(f"{gpu['name']} {gpu['memory_gib']} GiB" for gpu in gpus) or f"CPU, {machine.cores()} cores"
    found = f"torch {torch.__version__} on {names}; {str(dtype).removeprefix('torch.')} ({reason})"
    if any(capability < (7, 5) for capability in machine.capabilities()):
        return Check("torch", FAIL, found, "this GPU is older than current torch builds serve: on Kaggle choose the accelerator T4 x2")
    if not gpus and shutil.which("nvidia-smi"):
        return Check("torch", WARN, found, "an NVIDIA driver is here, but this torch sees no GPU: python -m pip install torch==2.13.0")
    return Check("torch", OK, found)


def torchvision() -> Check:
    """Absent or working: a CUDA build beside a CPU torch does not load, and breaks the imports of transformers, peft and diffusers."""
    if importlib.util.find_spec("torchvision") is None:
        return Check("torchvision", OK, "absent, as intended: nothing here needs it")
    trial = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    if trial.returncode:
        last = (trial.stderr.strip().splitlines() or ["killed"])[-1]
        return Check("torchvision", FAIL, f"installed, does not import: {last}", "python -m pip uninstall torchvision")
    return Check("torchvision", OK, f"{_version('torchvision')}, imports")


def memory() -> Check:
    import psutil

    free, whole = (getattr(psutil.virtual_memory(), name) / 2**30 for name in ("available", "total"))
    found = f"{free:.1f} GiB free of {whole:.1f}"
    if free < 1.5:
        return Check("memory", FAIL, found, "close other programs: the smoke profile needs about 1.5 GiB")
    return Check("memory", WARN if free < 3 else OK, found, "enough for smoke; more for the other profiles" if free < 3 else "")


def disk(profile: str) -> Check:
    folder = machine.work(profile)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 2**30
    found = f"{free:.1f} GiB free at {folder}"
    if free < 1:
        return Check("disk", FAIL, found, "free 1 GiB, or set REPRO_WORK to a folder on another disk")
    return Check("disk", WARN if free < 10 else OK, found, "enough for smoke; real CALVIN data need far more" if free < 10 else "")


def work_folder(profile: str) -> Check:
    folder = machine.work(profile)
    trial = folder / f".doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_text("x")
        trial.unlink()
    except OSError as error:
        return Check("work folder", FAIL, f"{folder}: {error.strerror}", "set REPRO_WORK to a folder you may write to")
    return Check("work folder", OK, f"{folder} is writable")


def data() -> Check:
    """The embedded scenes need no data; downloads are read by a run that is given them. REPRO_CALVIN, where it is set, must name one."""
    try:
        folder = machine.calvin_data()
    except UserError as error:
        return Check("data", FAIL, str(error).splitlines()[0], "correct or unset REPRO_CALVIN")
    if folder is None:
        return Check("data", OK, "embedded scenes, made on the spot; a download is given to the run: "
                     "repro run -p calvin_root FOLDER -p libero_root FOLDER -p levir_root FOLDER")
    missing = [name for name in ("training", "validation") if not (folder / name).is_dir()]
    if missing:
        step = "set REPRO_CALVIN to the folder that holds both, e.g. task_D_D"
        return Check("data", FAIL, f"{folder} has no {' and no '.join(missing)}", step)
    return Check("data", OK, f"CALVIN at {folder}: its simulator is looked for beside it; to read it: repro run -p calvin_root {folder}")


def jupyter() -> Check:
    pieces = ("jupytext", "papermill", "nbclient", "nbformat", "ipykernel")
    missing = [name for name in pieces if importlib.util.find_spec(name) is None]
    if missing:
        return Check("jupyter", FAIL, f"missing: {', '.join(missing)}", PIP)
    return Check("jupyter", OK, ", ".join(f"{name} {_version(name)}" for name in pieces))


def kernel() -> Check:
    """Start a kernel as `repro run` does and ask it who it is."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    from repro.notebooks import kernel_manager

    code = nbformat.v4.new_code_cell("import sys, repro\nprint(sys.executable)")
    began = time.monotonic()
    try:
        NotebookClient(nbformat.v4.new_notebook(cells=[code]), kernel_manager_class=kernel_manager(), timeout=60).execute()
    except (CellExecutionError, RuntimeError, TimeoutError, ImportError) as error:
        return Check("kernel", FAIL, f"no kernel starts: {str(error).strip().splitlines()[-1]}", PIP)
    answer = "".join(output.get("text", "") for output in code.outputs).strip()
    if not answer or not Path(answer).samefile(sys.executable):
        return Check("kernel", FAIL, f"the kernel is {answer or 'silent'}, not {sys.executable}", PIP)
    return Check("kernel", OK, f"this interpreter answers in {time.monotonic() - began:.1f} s")
