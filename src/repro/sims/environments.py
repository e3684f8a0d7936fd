"""Where the real simulators live: an environment each, made by `repro sims setup calvin | libero`, and how one is started.

A simulator's pins never touch the trainer's. The environments lie in REPRO_SIMS (default: .sims/ in the repository). CALVIN's own code
and assets come from the user's checkout of calvin_env (CALVIN_ROOT), LIBERO's assets from a folder or the Hugging Face hub.
"""

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from repro import freshness, machine
from repro.machine import UserError
from repro.sims import base
from repro.sims.base import Launch

OPENCV, NUMPY = "opencv-python-headless==5.0.0.93", "numpy==2.4.6"
PACKAGES = {  # simulator -> what is installed with its dependencies, and what without; known to work together on Python 3.11
    "calvin": ([NUMPY, OPENCV, "pybullet==3.2.7", "gym==0.26.2", "hydra-core==1.3.8", "omegaconf==2.3.1", "scipy==1.17.1",
                "numpy-quaternion==2024.0.13", "GitPython==3.2.1"], []),
    "libero": ([NUMPY, OPENCV, "mujoco==3.3.2", "easydict==1.14", "cloudpickle==3.1.2", "gymnasium==1.4.0", "PyYAML==6.0.3",
                "matplotlib==3.11.2", "numba==0.68.1", "scipy==1.17.1", "pillow==13.0.0", "future==1.0.0", "termcolor==3.3.0",
                "networkx==3.6.1", "PyOpenGL==3.1.10"], ["hf-libero==0.1.4", "robosuite==1.4.0", "bddl==1.0.1"]),
}  # fmt: skip
PYTHONS = ("3.11", "3.12", "3.13")  # pybullet has wheels for 3.11 alone; on others pip compiles it for a quarter of an hour
LIBRARIES = {"libero": {"OSMesa": "libosmesa6", "EGL": "libegl1 libegl-mesa0 libgl1-mesa-dri"}, "calvin": {}}  # library -> Debian packages


def home() -> Path:
    """The folder of the environments."""
    return Path(os.environ.get("REPRO_SIMS") or machine.root() / ".sims").resolve()


def known(name: str) -> str:
    """`name` if it is a real simulator."""
    if name not in PACKAGES:
        raise UserError(f"no real simulator {name!r}", " | ".join(PACKAGES), name, "the play table (tabletop) needs no set-up")
    return name


def interpreter(name: str) -> str:
    """The Python that has the simulator's packages: REPRO_CALVIN_PYTHON / REPRO_LIBERO_PYTHON, or the one that set-up made."""
    variable = f"REPRO_{known(name).upper()}_PYTHON"
    python = os.environ.get(variable) or str(home() / name / "bin" / "python")
    if not os.access(python, os.X_OK) or not (os.environ.get(variable) or (home() / name / "installed.json").is_file()):
        raise UserError(f"the environment of {name} is not there", python, "nothing, or half of one", f"repro sims setup {name}")
    return python


def missing_libraries(name: str) -> dict[str, str]:
    """Shared libraries the simulator draws with that are not installed: library -> Debian packages that bring it."""
    return {library: packages for library, packages in LIBRARIES[name].items()
            if sys.platform.startswith("linux") and not ctypes.util.find_library(library)}


def setup(name: str, python: str | None = None, echo=print) -> Path:
    """Make the environment of `calvin` or `libero` (uv where it is, else venv and pip), whole or not at all; once for the same pins.

    Missing system libraries are installed where this process may (root, apt-get), else named with the command that does.
    """
    with_dependencies, alone = PACKAGES[known(name)]
    folder, wanted = home() / name, {"packages": with_dependencies, "without dependencies": alone}
    note = folder / "installed.json"
    if note.is_file() and json.loads(note.read_text()) == wanted and (folder / "bin" / "python").exists():
        echo(f"{name}: its environment is there, {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        uv, found = shutil.which("uv"), python or _python()
        if not found and not uv:
            raise UserError("no Python for the simulator", " | ".join(PYTHONS), "none", "install python3.11 or uv, or give --python")
        echo(f"{name}: making {folder} with {found or 'Python 3.11 from uv'} (a minute or two, once)")
        _run([uv, "venv", "--quiet", "--python", found or "3.11", str(folder)] if uv else [found, "-m", "venv", str(folder)])
        target = str(folder / "bin" / "python")
        install = [uv, "pip", "install", "--quiet", "--python", target] if uv else [target, "-m", "pip", "install", "--quiet", "--no-input"]
        _run(install + with_dependencies)
        if alone:
            _run([*install, "--no-deps", *alone])
        freshness.write(note, wanted)
    lacking = " ".join(missing_libraries(name).values())
    if lacking and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        echo(f"{name}: installing {lacking}")
        _run(["apt-get", "update", "-qq"])
        _run(["apt-get", "install", "-y", "-qq", *lacking.split()])
    elif lacking:
        echo(f"{name}: system libraries are missing, type: sudo apt-get install {lacking}")
    return folder


def _python() -> str | None:
    """A Python the simulators' packages are known to work with: 3.11 first."""
    candidates = [shutil.which(f"python{version}") for version in PYTHONS]
    here = sys.executable if f"{sys.version_info[0]}.{sys.version_info[1]}" in PYTHONS else None
    for candidate in ([here] if sys.version_info[:2] == (3, 11) else []) + candidates + [here]:
        if candidate and subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return candidate
    return None


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError("set-up of the simulator failed", "exit code 0 of " + " ".join(command[:6]) + " ...",
                        f"exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-1500:]}", "read it; then run this again")


def calvin_root() -> Path:
    """The user's checkout of calvin_env (or of calvin, which holds it): CALVIN_ROOT, or beside the data (REPRO_CALVIN) or here."""
    from repro.sims import calvin

    if os.environ.get("CALVIN_ROOT"):
        return calvin.checkout(os.environ["CALVIN_ROOT"])
    data = machine.calvin_data()
    around = [machine.root(), machine.root().parent, home()] + ([data.parent, data.parent.parent] if data else [])
    for folder in (place / name for place in around for name in ("calvin_env", "calvin")):
        if (folder / "calvin_env").is_dir():
            return calvin.checkout(folder)
    raise UserError("no checkout of CALVIN's simulator", "CALVIN_ROOT, or a folder calvin_env beside the data or this repository",
                    "none of them", calvin.CLONE)


def calvin_home() -> Path:
    """The checkout of mees/calvin around calvin_env: it holds the sentences of official evaluation."""
    return Path(os.environ["CALVIN_ROOT"]).expanduser() if os.environ.get("CALVIN_ROOT") else calvin_root().parent


def launch(name: str, **options) -> Launch:
    """How to start a simulator: tabletop (scene=), grocery (image_size=, ...), calvin (scene=, renderer=), libero (suite=, assets=,
    renderer=, image_size=, ...)."""
    if name == "tabletop":
        return base.tabletop(**options)
    if name == "grocery":
        return base.grocery(**options)
    python = interpreter(name)
    if name == "calvin":
        root = options.pop("root", None) or str(calvin_root())
        return Launch("repro.sims.calvin:Calvin", {"root": root, **options}, python, one_a_process=True)
    options.setdefault("assets", os.environ.get("REPRO_LIBERO_ASSETS"))
    return Launch("repro.sims.libero:Libero", options, python, {"PYTHONNOUSERSITE": "1"}, one_a_process=True)
