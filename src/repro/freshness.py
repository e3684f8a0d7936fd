"""Is an executed notebook still what its inputs and code give? Fingerprints, manifests, and the reason for a re-run.

A manifest work/<profile>/notebooks/NN_name.json is written when a notebook ended well: the digests of all it was made from
(its text, parameters, the library, the environment, the user's data, the executed notebooks before it) and what it made.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import repro

# what no result depends on: places, and how a run ends, splits its work or tells its errors
NO_RESULT = ("REPRO_ROOT", "REPRO_WORK", "REPRO_SCRATCH", "REPRO_TRACEBACK", "REPRO_SESSION_END", "REPRO_PROCESSES")


def digest(*parts: bytes | str) -> str:
    """16 hex digits of SHA-256 over the parts."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "little") + raw)
    return whole.hexdigest()[:16]


@functools.cache
def code(*names: str) -> str:
    """Digest of these files and folders of the library: what a result that is kept over sessions depends on beside its inputs."""
    package = Path(repro.__file__).parent
    files = [file for name in names for file in ([package / name] if name.endswith(".py") else sorted((package / name).rglob("*.py")))]
    return digest(*(part for file in files for part in (str(file.relative_to(package)), file.read_bytes())))


def surroundings(root: Path, parameters: dict) -> dict[str, str]:
    """Digests of everything but the notebook that decides its result: code, claims, environment and the user's data."""
    package = Path(repro.__file__).parent
    code = [part for file in sorted(package.rglob("*.py")) for part in (str(file.relative_to(package)), file.read_bytes())]
    claims = [file.read_bytes() for file in sorted(root.glob("papers/*/*.toml"))]
    versions = sorted(f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions())
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith("REPRO_") and k not in NO_RESULT}
    named = [root / Path(value).expanduser() for value in (*settings.values(), *parameters.values()) if isinstance(value, str) and value]
    data = [_stamp(path) for path in named if path.exists()]
    return {
        "code": digest(*code, *claims),
        "environment": digest(platform.python_version(), platform.machine(), *versions, json.dumps(settings)),
        "data": digest(*data),
    }


def _stamp(path: Path) -> str:
    """Name, size and time of a file, or of a folder and its direct entries. Deeper changes need --fresh: data may be terabytes."""
    about = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in (path, *(sorted(path.iterdir()) if path.is_dir() else ()))]
    return json.dumps(about)


def fingerprint(path: Path, parameters: dict, before: list[Path], folder: Path, around: dict[str, str]) -> dict[str, str]:
    """What a result is made from, by part, so that a re-run can name its reason; `before` are the notebooks that come earlier."""
    earlier = [f"{p.stem} {(manifest(folder, p.stem) or {}).get('executed', '')}" for p in before]
    return {
        "notebook": digest(path.read_bytes()),
        "parameters": digest(json.dumps(parameters, sort_keys=True)),
        "earlier notebooks": digest(*earlier),
        **around,
    }


def manifest(folder: Path, stem: str) -> dict | None:
    """The manifest of an executed notebook, None where it has none."""
    file = folder / f"{stem}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def stale(folder: Path, stem: str, prints: dict[str, str], work: Path) -> str | None:
    """Why a notebook has to run, e.g. "code changed"; None where its executed copy still stands."""
    last = manifest(folder, stem)
    copy = folder / f"{stem}.ipynb"
    if last is None or not copy.is_file():
        return "not run yet"
    if digest(copy.read_bytes()) != last["executed"]:
        return "executed copy was edited"
    changed = [part for part, value in prints.items() if last["fingerprint"].get(part) != value]
    if changed:
        return f"{' and '.join(changed)} changed"
    now = contents(work)
    lost = [name for name, count in last["made"].items() if now.get(name, (0,))[0] < count]
    return f"files are missing in {lost[0]}" if lost else None


def contents(work: Path) -> dict[str, tuple[int, int]]:
    """`{folder: (number of files, newest time)}` below the work folder: what a notebook made, at the price of one walk."""
    counts = {}
    for folder, _, files in os.walk(work):
        if files and Path(folder) != work / "notebooks":
            times = [os.stat(os.path.join(folder, file)).st_mtime_ns for file in files]
            counts[os.path.relpath(folder, work)] = (len(files), max(times))
    return counts


def write(file: Path, content: dict | int) -> None:
    """JSON, whole or absent."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, file)
