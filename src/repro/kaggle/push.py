"""Notebooks and stores to Kaggle and back, through the official `kaggle` command. Credentials are its own: they are never read here."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from repro.kaggle.bundle import SYSTEMS
from repro.machine import UserError

THROTTLED = re.compile(r"\b(429|503)\b|Too Many Requests|Expecting value: line 1 column 1|<!DOCTYPE html", re.IGNORECASE)
REFUSED = re.compile(r"^(Kernel push|Dataset( version)? creation) error:", re.MULTILINE)  # said with exit code 0
WAITS = (5, 20, 60)  # seconds before a throttled call is tried again
READY_MINUTES = 30
LOGIN = "log in once: `kaggle auth login`, or put an API token into ~/.kaggle/access_token (kaggle.com, Settings, API)"


def call(arguments: Sequence[str], waits: Sequence[float] = WAITS, sleep=time.sleep) -> str:
    """What `kaggle ARGUMENTS` prints; a throttled call is repeated. UserError with what it said where it fails."""
    if not shutil.which("kaggle"):
        raise UserError("the kaggle command is not installed", "Kaggle's official package", "none on the path",
                        f"{sys.executable} -m pip install kaggle; it is looked for on the path")  # fmt: skip
    for wait in (*waits, None):
        done = subprocess.run(["kaggle", *arguments], capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).strip()
        if done.returncode == 0 and not REFUSED.search(said):
            return said
        if wait is None or not THROTTLED.search(said):
            break
        sleep(wait)
    step = LOGIN if re.search(r"\b401\b|\b403\b|authenticate|credential|Unauthorized|kaggle\.json", said, re.IGNORECASE) else None
    raise UserError(
        f"kaggle {' '.join(arguments[:2])} failed", "exit code 0, no error", said.splitlines()[-1] if said else done.returncode, step
    )


def owner(given: str | None) -> str:
    """The account: as given, KAGGLE_USERNAME, or what `kaggle config view` names."""
    found = given or os.environ.get("KAGGLE_USERNAME")
    if not found:
        match = re.search(r"username: *(\S+)", call(["config", "view"]))
        found = match[1] if match and match[1] != "None" else None
    if not found:
        raise UserError("whose notebook is it? the account is not known", "--owner NAME, or KAGGLE_USERNAME", "neither", LOGIN)
    return found


def _folder(root: Path, name: str) -> Path:
    """kaggle/<name> of a system; "reconvla" is short for "repro-reconvla"."""
    name = name if name.startswith("repro-") else f"repro-{name}"
    folder = root / "kaggle" / name
    if name not in SYSTEMS or not folder.is_dir():
        there = [one for one in SYSTEMS if (root / "kaggle" / one).is_dir()]
        raise UserError(f"there is no built notebook {name!r}", " | ".join(there) or "none is built", name, "repro kaggle build")
    return folder


def push(root: Path, name: str, account: str | None, datasets: Sequence[str] = (), models: Sequence[str] = (), outputs: Sequence[str] = (),
         internet: bool = True, echo=print) -> str:  # fmt: skip
    """Upload a built notebook, which starts it as Save & Run All; returns owner/slug. The committed metadata stays as it is."""
    folder = _folder(root, name)
    about = json.loads((folder / "kernel-metadata.json").read_text())
    about["id"] = f"{owner(account)}/{folder.name}"
    about |= {
        "dataset_sources": list(datasets),
        "model_sources": list(models),
        "kernel_sources": list(outputs),
        "enable_internet": internet,
    }
    with tempfile.TemporaryDirectory() as place:
        shutil.copy(folder / about["code_file"], place)
        Path(place, "kernel-metadata.json").write_text(json.dumps(about, indent=1))
        echo(call(["kernels", "push", "-p", place, "--accelerator", about["machine_shape"]]))
    return about["id"]


def status(root: Path, name: str, account: str | None) -> str:
    slug = _folder(root, name).name
    return call(["kernels", "status", f"{owner(account)}/{slug}"])


def pull(root: Path, name: str, account: str | None, out: Path) -> str:
    """The output of the last run (results.zip and all) into `out`."""
    slug = _folder(root, name).name
    target = f"{owner(account)}/{slug}"
    out.mkdir(parents=True, exist_ok=True)
    return call(["kernels", "output", target, "-p", str(out)])


def push_store(folder: Path, slug: str, account: str | None, message: str = "new version", minutes: float = READY_MINUTES, sleep=time.sleep,
               echo=print) -> str:  # fmt: skip
    """A private Kaggle data set of a store, or of a folder of stores (training, validation); waits until it can be attached.

    A data set of that name gets a new version. The data keep the licence of where they come from: none is given to them here.
    """
    from repro.data.episodes import Store

    stores = (
        [folder] if (folder / "meta").is_dir() else sorted(path for path in folder.glob("*") if (path / "meta" / "repro.json").is_file())
    )
    if not stores:
        raise UserError(
            f"{folder} holds no store", "a store (meta/, data/), or a folder of stores", "none", "repro calvin import, or repro store fetch"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{4,48}[a-z0-9]", slug):
        raise UserError(f"{slug!r} is no name of a data set", "6 to 50 small letters, digits and dashes", slug)
    frames = sum(Store(path).frames for path in stores)  # each is opened: half a store is not uploaded
    target = f"{owner(account)}/{slug}"
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:  # on the same disk, so that files are linked and not copied
        for store in stores:
            shutil.copytree(store, Path(place, store.name), copy_function=_link)
        about = {"title": slug.replace("-", " "), "id": target, "licenses": [{"name": "other"}]}
        Path(place, "dataset-metadata.json").write_text(json.dumps(about, indent=1))
        where = ["-p", place, "--dir-mode", "zip"]
        known = _ready(target) is not None
        echo(call(["datasets", "version", *where, "-m", message] if known else ["datasets", "create", *where]))
    for _ in range(int(minutes * 6)):
        sleep(10)  # at once, a new version would be taken for ready because the old one is
        if _ready(target):
            echo(
                f"{target} is ready: {len(stores)} stores, {frames} frames. Attach it: Add Input, or repro kaggle push NAME --data {target}"
            )
            return target
    raise UserError(
        f"{target} is not ready after {minutes:.0f} minutes", "status ready", "still being made", f"kaggle datasets status {target}"
    )


def _ready(target: str) -> bool | None:
    """Whether a data set can be attached; None where there is none of that name."""
    try:
        word = call(["datasets", "status", target]).split()[-1].lower()
    except UserError as error:
        if re.search(r"\b404\b|not found|\b403\b", str(error), re.IGNORECASE):
            return None
        raise
    if word == "failed":
        raise UserError(f"Kaggle could not make {target} of what was sent", "status ready", "failed", "push it again")
    return word == "ready"


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
