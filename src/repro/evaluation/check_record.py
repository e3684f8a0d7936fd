"""What `repro evaluate --check --out FILE` leaves: the lines as they are shown, and a record beside them of what was checked.

    results/cpu/check.txt     the lines
    results/cpu/check.json    {"text", "lines", "checkpoint", "data", "data_hash", "asked", "seed", "minutes", "commit", "packages", ...}

A checkpoint is its files' sha256, its step and the commit it was trained at; what cannot be read is null. Neither file holds the folders
that the machine has it in: of those of checkpoint, data, language model and work the lines keep the last name.
"""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from repro import machine, run_records
from repro.data.episodes import Store
from repro.doctor import Check, show
from repro.evaluation.check import BROKEN
from repro.evaluation.policies import find
from repro.machine import UserError
from repro.training import checkpoint

SEED = 0  # of rehearsal.learn: pushes, first weights, order of batches


def place(out: Path | str) -> Path:
    """Where the text goes; UserError before anything is checked where it cannot go there."""
    out = Path(out)
    if out.suffix == ".json" or out.is_dir():
        raise UserError(f"{out} is no place for the lines", "a file such as check.txt; its record goes to check.json beside it",
                        "a folder" if out.is_dir() else "a .json file")
    return out


def text_of(lines: list[Check]) -> str:
    shown = []
    show(lines, shown.append)
    return "".join(line + "\n" for line in shown)


def checkpoint_of(folder: Path | str) -> dict:
    """{"name", "model", "step", "commit", "data_hash", "files": {name: sha256}} of a checkpoint; what is not known is None."""
    path = find(folder)
    read = lambda name: json.loads((path / name).read_text()) if (path / name).is_file() else {}
    trained = read("about.json")
    files = {file.name: checkpoint.digest(file) for file in sorted(path.iterdir()) if file.is_file() and file.name != "training.pt"}
    return {"name": path.name, "model": read("model.json").get("model"), "step": trained.get("step"), "commit": trained.get("commit"),
            "data_hash": trained.get("data", {}).get("hash"), "files": files}


def save(out: Path | str, lines: list[Check], folder: Path | str, store: Path | str, asked: dict, minutes: float) -> None:
    """Write FILE and FILE's .json, each whole. asked: the command's settings. minutes: wall clock of all lines."""
    out, data = place(out), _known(lambda: Store(store))
    places = (folder, store, *(asked[name] for name in ("language", "vision", "vggt") if asked.get(name)))
    lines = [replace(line, found=_without(line.found, places), next_step=_without(line.next_step, places)) for line in lines]
    text, asked = text_of(lines), {name: _without(value, places) if isinstance(value, str) else value for name, value in asked.items()}
    record = {"text": text, "lines": [asdict(line) for line in lines], "checkpoint": _known(lambda: checkpoint_of(folder)),
              "data": data and data.meta.get("name"), "data_hash": data and data.hash, "asked": asked, "seed": SEED,
              "minutes": round(minutes, 1), **run_records.provenance(), "created": datetime.now(UTC).isoformat(timespec="seconds")}
    out.parent.mkdir(parents=True, exist_ok=True)
    for file, content in ((out.with_suffix(".json"), json.dumps(record, indent=1) + "\n"), (out, text)):
        part = file.with_name(file.name + ".part")
        part.write_text(content)
        os.replace(part, file)


def _known(read: Callable):
    """What is read, None where it cannot be: the first lines say why."""
    try:
        return read()
    except BROKEN:
        return None


def _without(text: str, places: tuple[Path | str, ...]) -> str:
    """The text with the last names of these places in the place of their paths; of others, what is below the repository, home, .."""
    known = {str(path): path.name for place in places for path in (Path(place), Path(place).expanduser().resolve())}
    known |= {f"{top}/": "" for top in (machine.root(), machine.work(""), Path.cwd(), Path.home(), tempfile.gettempdir())}
    for path in sorted((path for path in known if path.startswith("/")), key=len, reverse=True):
        text = text.replace(path, known[path])
    return text
