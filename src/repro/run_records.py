"""Run records: made, checked, written, read. One is one JSON file, `<profile>/runs/<id>.json` (fields: FIELDS below).

    save(record("reconvla", "gaze", benchmark=..., metrics={"1/1": {...}}, ...), work / "runs")
    for one in load_all(work / "runs"): ...

A metric is `{"value", "n", "low", "high"}` with a 95 % interval; rates of a chain are called "1/5" ... "5/5" (shares in [0, 1]), the mean
number of tasks solved in a row "average length", the success of one task "task/<name>". A record that names a paper in
`not_comparable_with` stands in a table of its own and never gets a difference against that paper's rows.
"""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from repro import clock, machine
from repro.machine import UserError

FIELDS = {  # what every record holds, and its type
    "id": str, "system": str, "variant": str, "benchmark": str, "data": str, "data_hash": str, "config": dict, "seed": int,
    "metrics": dict, "hardware": str, "minutes": (int, float), "commit": str, "packages": dict, "simulator": str, "renderer": str,
    "not_comparable_with": list, "created": str,
}
SAME = ("system", "variant", "benchmark", "simulator", "seed")  # two records that agree in these would look alike in every table
LATER = {"peak_memory_gib": dict}  # what records made by earlier versions lack: of the process that wrote it, by kind (clock.peak_gib)
PACKAGES = ("torch", "transformers", "numpy", "opencv-python-headless", "pyarrow", "accelerate", "pillow", "matplotlib")


def _commit() -> str:
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown (git is not installed)"
    return head.stdout.strip() + ("+changes" if changed.stdout.strip() else "") if head.returncode == 0 else "unknown (no git checkout)"


def provenance() -> dict:
    """Commit ("+changes": of an edited tree; of a built notebook its library), package versions and hardware of this process."""
    # an uploaded notebook carries its library, and no git
    commit = f"library {os.environ['REPRO_BUNDLE']}" if os.environ.get("REPRO_BUNDLE") else _commit()
    packages = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        cuda = sys.modules["torch"].cuda  # asked only where nvidia-smi is not: it would make a context in this process
        names = [one["name"] for one in machine.gpus()] or [cuda.get_device_name(i) for i in range(cuda.device_count())]
        hardware = f"{len(names)} x {names[0]}, {hardware}"
    return {"commit": commit, "packages": packages, "hardware": hardware}


def record(system: str, variant: str, *, benchmark: str, data: str, data_hash: str, config: dict, seed: int, metrics: dict, minutes: float,
           simulator: str, renderer: str, not_comparable_with: list[str] | tuple[str, ...] = ()) -> dict:
    """A record with its id and provenance. The id depends on what was run only, so a repeated run replaces its record."""
    what = {"system": system, "variant": variant, "benchmark": benchmark, "data": data, "data_hash": data_hash, "config": config,
            "seed": seed, "simulator": simulator, "renderer": renderer}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:10]
    name = re.sub(r"[^a-z0-9]+", "-", f"{system}-{variant}".lower()).strip("-")
    return {"id": f"{name}-{digest}", **what, "metrics": metrics, "minutes": round(float(minutes), 2), **provenance(),
            "peak_memory_gib": {kind: round(gib, 2) for kind, gib in clock.peak_gib().items()},
            "not_comparable_with": list(not_comparable_with), "created": datetime.now(UTC).isoformat(timespec="seconds")}


def check(record: dict, where: str) -> dict:
    """The record itself, or a UserError that names `where` and the field that is wrong."""
    def bad(field: str, expected: str, found: object):
        return UserError(f"{where}: field {field} is wrong", expected, repr(found)[:200], "run again what wrote it, or delete the file")
    if not isinstance(record, dict):
        raise bad("(whole file)", "a JSON object", type(record).__name__)
    for field, kind in {**FIELDS, **{name: kind for name, kind in LATER.items() if name in record}}.items():
        if field not in record:
            raise bad(repr(field), "present", f"only {', '.join(sorted(record))}")
        if not isinstance(record[field], kind) or isinstance(record[field], bool):
            raise bad(repr(field), getattr(kind, "__name__", "a number"), record[field])
    for name, metric in record["metrics"].items():
        if not isinstance(metric, dict) or not {"value", "n", "low", "high"} <= set(metric):
            raise bad(f"metrics[{name!r}]", "an object with value, n, low, high", metric)
        numbers = [metric[k] for k in ("low", "value", "high", "n")]
        if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers):
            raise bad(f"metrics[{name!r}]", "finite numbers", metric)
        if not metric["low"] - 1e-9 <= metric["value"] <= metric["high"] + 1e-9 or metric["n"] < 0:
            raise bad(f"metrics[{name!r}]", "low <= value <= high and n >= 0", metric)
        if (is_rate(name) or name.startswith("task/")) and not 0 <= metric["value"] <= 1:
            raise bad(f"metrics[{name!r}]", "a share in [0, 1]", metric)
    return record


def save(record: dict, folder: str | Path) -> Path:
    """Write `<folder>/<id>.json`, whole or not at all, in the place of what its profile answered to the same question before (SAME)."""
    path = Path(folder) / f"{record.get('id', 'record')}.json"
    check(record, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, default=str, allow_nan=False) + "\n")
    os.replace(part, path)
    for other in path.parent.glob(f"{record['id'].rpartition('-')[0]}-*.json"):
        if other != path and "profile" in record["config"] and _question(other) == _question(path):
            other.unlink(missing_ok=True)  # runs side by side
    return path


def _question(path: Path) -> list | None:
    """What a file's record has of SAME, its profile, and the training step it is of; None where it has no profile, or is no record."""
    try:
        found = json.loads(path.read_text())
        return [*(found[field] for field in SAME), found["config"]["profile"], found["config"].get("step")]
    except (OSError, ValueError, TypeError, KeyError):  # `load_all` will say
        return None


def load(path: str | Path) -> dict:
    """One record; a broken file is a UserError naming file and field."""
    try:
        found = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a run record", "JSON", str(error), "run again what wrote it, or delete the file") from error
    return check(found, str(path))


def load_all(folder: str | Path) -> list[dict]:
    """Every record of a folder (`results/<profile>/runs`), by system, benchmark, creation time."""
    found = [load(path) for path in sorted(Path(folder).glob("*.json"))]
    return sorted(found, key=lambda r: (r["system"], r["benchmark"], r["created"], r["id"]))


def file_name(text: str) -> str:
    """The name of a policy, benchmark, .. as that of a file or folder."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def is_rate(name: str) -> bool:
    return re.fullmatch(r"\d+/\d+", name) is not None
