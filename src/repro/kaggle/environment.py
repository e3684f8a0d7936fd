"""The packages of a Kaggle session: what is missing is installed, what is there stays as it is.

Everything installed is a constraint of the one pip call, so that pip either adds packages or fails: it can replace none, torch, numpy and
transformers least of all. A package counts as there when its module can be imported: Kaggle's cv2 is of another distribution than ours.
Imports nothing but the standard library and packaging: it runs before the rest can be imported.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Sequence
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from repro.machine import UserError

MODULES = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}  # where the module has another name
HEADLESS = ("jupytext", "papermill", "nbformat", "nbclient", "ipykernel")  # for `repro run`; a notebook that runs needs none
PRETRAINED = ("diffusers", "peft", "bitsandbytes")  # not for the tiny models of smoke and cpu
NEVER = ("torch", "numpy", "transformers")  # never installed: without them this is not Kaggle's image
AGAIN = "Run All again in a few minutes, or attach the data set that `repro kaggle wheels` makes"
SWITCH = "turn on Internet (right panel, Session options), or attach the data set that `repro kaggle wheels` makes; then Run All again"
# What Kaggle's image lacks, or may lack; in requirements.txt's version, but for diffusers: 0.39 and later want safetensors 0.8, it has 0.7.
WHEELS = ("jaxtyping", "wadler-lindig", "diffusers==0.37.1", "bitsandbytes")
IMAGE = (  # what it has of what these ask for: Colab's freeze of May 2026, see constraints-kaggle.txt
    "torch", "numpy", "packaging", "pillow", "regex", "requests", "filelock", "huggingface-hub", "safetensors", "importlib-metadata",
    "httpx", "transformers", "accelerate", "peft", "tokenizers",
)  # fmt: skip


def needs(pyproject: Path, profile: str) -> list[Requirement]:
    """What a notebook of this profile imports, as pyproject.toml declares it."""
    declared = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    skipped = HEADLESS + (PRETRAINED if profile in ("smoke", "cpu") else ())
    return [one for one in map(Requirement, declared) if one.name not in skipped]


def missing(wanted: Sequence[Requirement]) -> list[Requirement]:
    """Those whose module cannot be found."""
    importlib.invalidate_caches()
    return [one for one in wanted if importlib.util.find_spec(MODULES.get(one.name.lower(), one.name.replace("-", "_"))) is None]


def installed() -> dict[str, str]:
    """Name -> version of all installed packages."""
    found = {}
    for one in importlib.metadata.distributions():
        name = one.metadata["Name"]
        if name and name not in found:  # the first on the path is the one that is imported
            found[name] = one.version
    return found


def ensure(pyproject: Path, profile: str, wheels: Sequence[Path] = (), online: bool = True, echo=print) -> dict[str, str]:
    """Install what is missing, once and quietly; {name: version} of what was added. Says what it did.

    `wheels`: folders that are looked through for it, whatever packages theirs are of. `online`: whether an index may be asked, too.
    UserError where torch, numpy or transformers are missing or of a version we cannot use, where pip fails, and where
    something that was there changed.
    """
    wanted = needs(pyproject, profile)
    before, lacking = installed(), missing(wanted)
    wrong = [f"{one} wanted, {before.get(one.name, 'none')} found" for one in wanted if one.name in NEVER and
             (one in lacking or (one.name in before and not one.specifier.contains(before[one.name], prereleases=True)))]  # fmt: skip
    if wrong:
        raise UserError("this image has other basic packages than we can use", "they are never installed or replaced", "; ".join(wrong),
                        "right panel, Session options, Environment: always use the latest; then Run All again")  # fmt: skip
    for one in wanted:
        if one.name in before and not one.specifier.contains(before[one.name], prereleases=True):
            echo(f"packages: {one.name} {before[one.name]} is here, {one} is what the kit was tested with; left as it is")
    if not lacking:
        echo(f"packages: all {len(wanted)} are here, nothing was installed")
        return {}
    if not wheels and not online:
        raise UserError(f"{', '.join(map(str, lacking))} must be installed", "internet, or attached wheels", "neither", SWITCH)
    _pip(lacking, wheels, online, before)
    still, after = missing(wanted), installed()
    changed = [f"{name} {version} -> {after.get(name)}" for name, version in before.items() if after.get(name) != version]
    if still or changed:
        raise UserError("the installation did not do what it should", "all packages there, none replaced",
                        f"missing {', '.join(map(str, still)) or 'none'}; changed {', '.join(changed) or 'none'}",
                        "restart the session (Run, Restart & clear cell outputs) and Run All")  # fmt: skip
    added = {name: version for name, version in after.items() if name not in before}
    places = [*map(str, wheels), *(["the package index"] if online else [])]
    echo(f"packages: installed {', '.join(f'{name} {version}' for name, version in sorted(added.items()))} from "
         f"{' and '.join(places)}; {len(before)} others left as they were")  # fmt: skip
    return added


def _pip(lacking: Sequence[Requirement], wheels: Sequence[Path], online: bool, before: dict[str, str]) -> None:
    """One quiet `pip install` under the constraint that everything stays as it is."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in sorted(before.items()) if _valid(name, version)))
        source = [*([] if online else ["--no-index"]), *(part for folder in wheels for part in ("--find-links", str(folder)))]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--constraint",
                   str(constraints), *source, *map(str, lacking)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.strip().splitlines()[-1:]
        raise UserError(f"could not install {', '.join(map(str, lacking))}", "they are all that is missing here",
                        " | ".join(errors[:3]) or f"pip ended with {done.returncode}", AGAIN if online else SWITCH)  # fmt: skip


def _valid(name: str, version: str) -> bool:
    """Whether pip takes the line: rests of broken installations have names such as ~orch."""
    try:
        return bool(Version(version)) and re.match(r"[A-Za-z0-9]", name) is not None
    except InvalidVersion:
        return False


# -------------------------------------------------------------------------------------------------- wheels to attach


def download_wheels(out: Path, root: Path, pythons: Sequence[str] = ("3.12", "3.13"), echo=print) -> list[Path]:
    """The wheels that a session without internet lacks, into `out`, with the metadata of a Kaggle data set; needs an index.

    Versions are requirements.txt's. UserError where pip fails, or where a wheel asks for what neither they nor Kaggle's image have.
    """
    pins = {one.name: one for one in _requirements(root / "requirements.txt")}
    image = {one.name: one for one in _requirements(root / "constraints-kaggle.txt")}
    out.mkdir(parents=True, exist_ok=True)
    for python in pythons:
        platforms = [
            part for tag in ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64") for part in ("--platform", tag)
        ]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:",
                   "--dest", str(out), "--python-version", python, *platforms, *(str(pins.get(name, name)) for name in WHEELS)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"could not download wheels for Python {python}", ", ".join(WHEELS), done.stderr.strip().splitlines()[-1:],
                            "check the connection to the package index")  # fmt: skip
    found = sorted(out.glob("*.whl"))
    problems = [
        problem for path in found for problem in unmet(path, {path.name.split("-")[0].lower().replace("_", "-") for path in found}, image)
    ]
    if problems:
        raise UserError("these wheels would not install on Kaggle", "what they ask for is among them or in the image", "; ".join(problems),
                        "add it to WHEELS in src/repro/kaggle/environment.py, or pin an older version")  # fmt: skip
    about = {"title": "repro wheels", "id": "OWNER/repro-wheels", "licenses": [{"name": "other"}]}
    (out / "dataset-metadata.json").write_text(json.dumps(about, indent=1) + "\n")
    echo(f"{out}: {len(found)} wheels, {sum(path.stat().st_size for path in found) / 1e6:.1f} MB, for Python {', '.join(pythons)}")
    return found


def unmet(wheel: Path, beside: set[str], image: dict[str, Requirement]) -> list[str]:
    """What a wheel asks for that is neither beside it nor, in a fitting version, in Kaggle's image."""
    with zipfile.ZipFile(wheel) as file:
        inside = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        about = Parser().parsestr(file.read(inside).decode())
    found = []
    for line in map(Requirement, about.get_all("Requires-Dist") or []):
        name = line.name.lower().replace("_", "-")
        if line.marker and not any(line.marker.evaluate({"extra": "", "python_version": version}) for version in ("3.12", "3.13")):
            continue
        pinned = [one.version for one in image[line.name].specifier] if line.name in image else []
        if name not in beside and (name not in IMAGE or not all(line.specifier.contains(version) for version in pinned)):
            found.append(f"{wheel.name} asks for {line}")
    return found


def _requirements(path: Path) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]
