"""Checkpoints that are whole or absent, and explain themselves.

    runs/gaze/step_00001200/   model.safetensors, model.json   the model (its own save)
                               training.pt                     optimizer, scaler, seconds so far (loads with weights_only=True)
                               about.json                      config, statistics, data, versions, commit, step, digest of each file

A checkpoint is written as `step_XXXXXXXX.part`, flushed to disk, then renamed: a process killed at any moment leaves either
the whole folder or a `.part` that nobody reads. `latest` checks the digests and passes over what is damaged, saying so.
"""
import errno
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from repro.machine import UserError, alone  # noqa: F401 (for callers)

FULL = (errno.ENOSPC, errno.EDQUOT)


@functools.cache
def provenance() -> dict:
    """Versions of what decides the numbers, and the commit of this library ("" outside a checkout, "+" when it was modified)."""
    git = ["git", "-C", str(Path(__file__).parent)]
    ask = lambda *words: subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
    try:
        commit = ask("rev-parse", "--short=12", "HEAD").strip() + ("+" if ask("status", "--porcelain", ".").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        commit = ""
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate", "numpy")}
    return {"commit": commit, "versions": {"python": platform.python_version(), **packages}}


def flush(path: Path) -> None:
    """Force a file or folder onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(folder: Path | str, step: int, write: Callable[[Path], None], state: dict, about: dict, keep: int = 2) -> Path:
    """Write checkpoint `step` of a run into `folder`, delete all but the `keep` newest and whatever is of later steps; returns its path.

    `write(path)` puts the model's own files there; `state` is the training state; `about` goes into about.json. UserError where the disk
    is full: nothing half-written is left, and the checkpoints before stay.
    """
    folder = Path(folder)
    path, part = folder / f"step_{step:08d}", folder / f"step_{step:08d}.part"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("step_*.part"):
        shutil.rmtree(leftover)
    try:
        part.mkdir()
        write(part)
        torch.save(state, part / "training.pt")
        files = sorted(file for file in part.iterdir())
        about = {"step": step, **about, "files": {file.name: digest(file) for file in files}}
        (part / "about.json").write_text(json.dumps(about, indent=1))
        for file in [*files, part / "about.json", part]:
            flush(file)
    except Exception as error:  # torch and safetensors have errors of their own where the disk is full
        left = shutil.disk_usage(folder).free
        shutil.rmtree(part, ignore_errors=True)
        if getattr(error, "errno", 0) in FULL or "No space left" in str(error) or (isinstance(error, RuntimeError) and left < 2**20):
            raise UserError(f"disk full: checkpoint {path} could not be written", "room for one more", f"{left / 1e6:.0f} MB free",
                            f"delete what is not needed (!du -sh {folder.parent}/*) and start again: the run goes on from its last "
                            "checkpoint") from error
        raise
    if path.exists():  # only a damaged one, passed over by `latest`, can stand here
        shutil.rmtree(path)
    os.replace(part, path)
    flush(folder)
    found = steps(folder)
    here = found.index(path) + 1
    for old in found[: max(0, here - keep)] + found[here:]:  # later ones are damaged, passed over by `latest`, or come again
        shutil.rmtree(old)
    return path


def steps(folder: Path | str) -> list[Path]:
    """Finished checkpoints of a run, oldest first, unchecked."""
    return sorted(path for path in Path(folder).glob("step_*") if re.fullmatch(r"step_\d{8}", path.name))


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if every file is what was written."""
    try:
        files = json.loads((path / "about.json").read_text())["files"]
    except FileNotFoundError:
        return "about.json is missing"
    except (ValueError, KeyError, TypeError):
        return "about.json cannot be read"
    for name, saved in files.items():
        if not (path / name).exists():
            return f"{name} is missing"
        if digest(path / name) != saved:
            return f"{name} is not what was saved"
    return None


def latest(folder: Path | str, log: Callable[[str], None] = print) -> Path | None:
    """The newest undamaged checkpoint of a run, or None. Damaged ones are passed over and named."""
    for path in reversed(steps(folder)):
        problem = damage(path)
        if problem is None:
            return path
        log(f"[WARN] checkpoint {path} is damaged ({problem}) and passed over")
    return None


def need(folder: Path | str, notebook: str = "05") -> Path:
    """`latest`, or an error that says what to do. notebook: the one that trains such a model."""
    path, train = latest(folder), f"notebook {notebook}, or `repro train CONFIG.json`"
    if path is None and (damaged := {p.name: damage(p) for p in steps(folder)}):
        raise UserError(f"{folder} holds no whole checkpoint: those there are damaged", "every file as it was saved",
                        "; ".join(f"{name}: {why}" for name, why in damaged.items()),
                        f"copy them again from where they are whole, or train on, from the start ({train})")
    if path is None:
        raise UserError(f"{folder} holds no checkpoint", "a folder step_XXXXXXXX", "none", f"train first ({train})")
    return path


def load_state(path: Path | str) -> dict:
    """The training state of a checkpoint; executes no code."""
    return torch.load(Path(path) / "training.pt", map_location="cpu", weights_only=True)


def about(path: Path | str) -> dict:
    return json.loads((Path(path) / "about.json").read_text())
