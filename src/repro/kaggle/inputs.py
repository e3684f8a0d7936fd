"""What is attached to a Kaggle notebook, told by content and never by its name: data sets, stores, models, wheels.

    found = find(Path("/kaggle/input"))
    found.describe()                          # one line a thing
    found.outputs                             # what earlier sessions left
    found.calvin_root()                       # the one CALVIN folder, None where there is none, an error where there are two

Mounts were seen as /kaggle/input/<slug>, /kaggle/input/datasets/<owner>/<slug> and /kaggle/input/models/<owner>/<model>/<framework>/
<variation>/<version>. A folder of frames is never listed: CALVIN has half a million files in one.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from repro.machine import UserError
from repro.profiles import PROFILES

DEEP = 9  # folders below the inputs; a model's lie six deep, a data set's own may follow
LISTED = 5000  # entries of one folder that are looked at
SPLITS = ("training", "validation")
INDEX = "ep_start_end_ids.npy"
FETCHING = "fetching"  # the folder of data.calvin_remote beside its stores, as long as they are not done
SECTIONS = "sections.json"  # of an earlier session (earlier.py), in a folder called like its profile
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pth", ".pt")
ATTACH = "right panel, Add Input"


@dataclass
class Inputs:
    """Folders by what they hold. `models` folder -> architecture; `weightless` those of them without weights."""

    top: Path
    calvin: list[Path] = field(default_factory=list)
    stores: list[Path] = field(default_factory=list)  # single ones, each with meta/repro.json
    libero: list[Path] = field(default_factory=list)
    levir: list[Path] = field(default_factory=list)
    models: dict[Path, str] = field(default_factory=dict)
    weightless: list[Path] = field(default_factory=list)
    wheels: list[Path] = field(default_factory=list)
    fetching: list[Path] = field(default_factory=list)  # stores that data.calvin_remote was not done with
    outputs: list[Path] = field(default_factory=list)  # work folders of earlier sessions, each with its sections.json
    torn: list[Path] = field(default_factory=list)  # the same without one
    attached: list[str] = field(default_factory=list)  # the uppermost folders, for a message when nothing was found

    def describe(self) -> list[str]:
        """One line a thing that was found, or one that says that nothing was."""
        kinds = {"CALVIN": self.calvin, "store": self.stores, "LIBERO": self.libero, "LEVIR-CC": self.levir, "wheels": self.wheels,
                 "unfinished stores (calvin_episodes goes on)": self.fetching, "earlier session": self.outputs}  # fmt: skip
        lines = [f"{kind}: {path}" for kind, paths in kinds.items() for path in paths]
        for path, architecture in self.models.items():
            lines.append(f"model: {path} ({architecture})" + (", but NO WEIGHTS beside its config.json" if path in self.weightless else ""))
        if lines:
            return lines
        return [f"nothing is attached that the kit knows (in {self.top}: {', '.join(self.attached) or 'nothing'})"]

    def calvin_root(self) -> Path | None:
        """The attached CALVIN folder, or a folder of stores made of one, which comes first. UserError for two of a kind, or half of one."""
        made = sorted({path.parent for path in self.stores if path.name in SPLITS and _source(path) == "CALVIN layout"})
        if found := _one(made, "folders of CALVIN stores", "calvin_root"):
            halves = [name for name in SPLITS if not (found / name / "meta" / "repro.json").is_file()]
        elif found := _one(self.calvin, "CALVIN folders", "calvin_root"):
            halves = [name for name in SPLITS if not (found / name / INDEX).is_file()]
        else:
            return None
        if halves:
            raise UserError(f"{found} is half of a CALVIN data set", "training/ and validation/", f"no {' and no '.join(halves)}",
                            f"{ATTACH}: the whole data set, or remove this one")  # fmt: skip
        return found

    def libero_root(self) -> Path | None:
        return _one(self.libero, "LIBERO folders", "libero_root")

    def levir_root(self) -> Path | None:
        return _one(self.levir, "LEVIR-CC folders", "levir_root")


def _one(found: list[Path], what: str, parameter: str) -> Path | None:
    if len(found) > 1:
        raise UserError(f"several {what} are attached", "one", ", ".join(map(str, found)),
                        f"set `{parameter}` in the parameters cell to the one you mean, or remove the others")  # fmt: skip
    return found[0] if found else None


def _source(store: Path) -> str | None:
    about = _json(store / "meta" / "repro.json")
    return about.get("source")


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find(top: Path) -> Inputs:
    """What is below `top`. A folder that cannot be read is passed over; nothing is opened but small JSON files."""
    found = Inputs(top)
    if top.is_dir():
        found.attached = sorted(path.name for path in top.iterdir())[:20]
        _look(top, 0, found)
    return found


def _look(folder: Path, depth: int, found: Inputs) -> None:
    """One folder and those below it. What can be told by the presence of one file is told so, before anything is listed."""
    if folder.name.endswith(".part"):  # a copy that was stopped
        return
    if (folder / INDEX).is_file():  # a split by itself
        found.calvin += [folder.parent] if folder.name in SPLITS and folder.parent not in found.calvin else []
        return
    if any((folder / name / INDEX).is_file() for name in SPLITS):
        found.calvin.append(folder)
        return
    if (folder / SECTIONS).is_file() and (folder.name in PROFILES or "profile" in _json(folder / SECTIONS)):
        found.outputs.append(folder)
        return
    if folder.name in PROFILES and (folder / "store").is_dir():
        found.torn.append(folder)
        return
    if (folder / FETCHING).is_dir():
        found.fetching.append(folder)
        return
    if (folder / "meta" / "repro.json").is_file():
        found.stores.append(folder)
        return
    if (folder / "meta" / "info.json").is_file():
        found.libero += [folder] if _is_libero(folder) else []
        return
    below, names = [], []
    try:
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(LISTED), strict=False):
                (below if entry.is_dir() else names).append(entry.name)
    except OSError:
        return
    if "LevirCCcaptions.json" in names:
        found.levir.append(folder)
        return
    if any(name.endswith("_demo.hdf5") for name in names):
        found.libero.append(folder)
    if any(name.endswith(".whl") for name in names):
        found.wheels.append(folder)
    if "config.json" in names and (architecture := _architecture(folder / "config.json")):
        found.models[folder] = architecture
        found.weightless += [] if any(name.endswith(WEIGHTS) for name in names) else [folder]
    for name in sorted(below) if depth < DEEP else []:
        _look(folder / name, depth + 1, found)


def _architecture(config: Path) -> str | None:
    """What a config.json says it is of: transformers' architectures or model_type, diffusers' _class_name."""
    about = _json(config)
    named = about.get("architectures") or [about.get("model_type") or about.get("_class_name")]
    return str(named[0]) if isinstance(named, list) and named and named[0] else None


def _is_libero(folder: Path) -> bool:
    """A LeRobot data set of LIBERO: two cameras, a state of 8 numbers, actions of 7."""
    features = _json(folder / "meta" / "info.json").get("features", {})
    shape = lambda *names: next((list(features[name].get("shape", ())) for name in names if name in features), None)
    cameras = sum("image" in name for name in features)
    return cameras >= 2 and shape("observation.state", "state") == [8] and shape("action", "actions") == [7]
