"""LIBERO's HDF5 files into the store.

    import_libero("libero_object/*_demo.hdf5", "work/store/training")

Pictures are turned upright (the files hold them upside down), the gripper's sign to ours (+1 open), observation.state is LIBERO's 8-D:
end-effector position (m), axis-angle (rad), two finger joints (m). In the original files `obs[k]` is *after* action k, so row k here pairs
`obs[k - 1]` with action k, and the first action, which no picture precedes, is left out. Files of `repro demos libero` say what was
before it, hold the target's true box (gaze.*), the noise-free action, and may have a picture at every n-th step only: such rows carry the
last picture and `info.drawn` False, and no batch starts there.
"""

import glob
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from repro.data.episodes import Episode, Store, StoreWriter
from repro.machine import UserError

FPS = 20
ACTION_UNITS = {"metres": 0.05, "radians": 0.5, "rate_hz": FPS, "gripper": "-1 close, +1 open (LIBERO's own sign is the reverse)"}
NEED = ("actions", "obs")


def files_of(pattern: str | Path) -> list[Path]:
    """The HDF5 files a folder or a glob pattern names, sorted."""
    place = Path(pattern).expanduser()
    found = sorted(place.rglob("*.hdf5")) if place.is_dir() else sorted(map(Path, glob.glob(str(place))))
    if not found:
        raise UserError(f"no HDF5 file in {pattern}", "LIBERO's <task>_demo.hdf5 files", "none", "download them, or repro demos libero")
    return found


def import_libero(sources: list[str | Path] | str | Path, out: Path | str, only: Callable[[int], bool] | None = None,
                  replace: bool = False) -> dict:
    """Write the demonstrations of the files as a store at `out`, one episode in memory at a time; {episodes, frames, hash, files}.

    only: which demonstrations of each file, by number. Raises UserError naming the file where its structure is not LIBERO's.
    """
    import h5py

    files = [file for source in (sources if isinstance(sources, list) else [sources]) for file in files_of(source)]
    meta = {"source": "LIBERO HDF5", "robot_type": "panda", "simulator": "libero", "action": ACTION_UNITS, "files": [f.name for f in files]}
    with StoreWriter(out, FPS, meta, replace) as writer:
        for path in files:
            try:
                with h5py.File(path) as file:
                    data = _structure(file, path)
                    for number in sorted(int(name.split("_")[1]) for name in data if name.startswith("demo_")):
                        if only is None or only(number):
                            writer.add(_episode(data, f"demo_{number}", path))
            except OSError as error:
                raise UserError(f"{path} cannot be read", "a whole HDF5 file", error, "download it again") from error
        scripted = "scripted" in str(writer.meta.setdefault("made_by", _maker(files[0])))
        suites = sorted({path.parent.name for path in files})
        writer.meta["name"] = f"{', '.join(suites)}, {len(files)} files" + (", scripted" if scripted else "")
    return {"episodes": writer.episodes, "frames": writer.frames, "hash": writer.hash.hexdigest(), "files": [str(f) for f in files]}


def _maker(path: Path) -> str:
    import h5py

    with h5py.File(path) as file:
        attributes = file["data"].attrs
        return "; ".join(str(attributes[key]) for key in ("repro_source", "repro_assets") if key in attributes) or "LIBERO (teleoperated)"


def _structure(file, path: Path):
    if "data" not in file or "problem_info" not in file["data"].attrs:
        raise UserError(f"{path} is not one of LIBERO's files", "a group data with the attribute problem_info", sorted(file),
                        "LIBERO's <suite>/<task>_demo.hdf5")
    return file["data"]


def _episode(data, name: str, path: Path) -> Episode:
    """One demonstration; see the module's docstring for how rows are paired."""
    demo, where = data[name], f"{path}, {name}"
    if any(key not in demo for key in NEED):
        raise UserError(f"{where} lacks what a demonstration has", ", ".join(NEED), ", ".join(demo))
    obs, extras = demo["obs"], demo.get("extras")
    actions = np.asarray((extras or demo)["expert_actions" if extras else "actions"], np.float64)
    count = len(actions)
    if actions.shape != (count, 7) or not count or not np.isfinite(actions).all():
        raise UserError(f"{where}: actions of a wrong shape", "(T, 7) finite numbers", actions.shape)
    columns = _scripted(obs, extras, count, where) if extras else _original(obs, count, where)
    rows = len(columns["observation.state"])
    action = np.clip(actions[count - rows :], -1, 1) * (1, 1, 1, 1, 1, 1, -1)
    instruction = str(json.loads(data.attrs["problem_info"])["language_instruction"]).strip('"')
    columns["action"] = action.astype(np.float32)
    info = {"task_id": path.name.removesuffix("_demo.hdf5"), "scene": path.parent.name, "file": path.name, "demo": name}
    if extras:
        info |= {"state": json.loads(demo.attrs["repro_state"]), "disturbed": bool(demo.attrs["repro_noise"] or demo.attrs["repro_pushed"])}
    return Episode(instruction, columns, info)


def _upright(pictures: np.ndarray, where: str) -> np.ndarray:
    pictures = np.asarray(pictures)
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise UserError(f"{where}: pictures of a wrong kind", "(T, H, W, 3) uint8", f"{pictures.dtype} {pictures.shape}")
    return np.ascontiguousarray(pictures[:, ::-1])


def _original(obs, count: int, where: str) -> dict:
    """Rows 1 ... T - 1 of a file of LIBERO's own."""
    lacking = [key for key in ("agentview_rgb", "eye_in_hand_rgb", "ee_states", "gripper_states") if key not in obs]
    if lacking or any(len(obs[key]) != count for key in obs):
        raise UserError(f"{where}: its observations do not fit its {count} actions", "agentview_rgb, eye_in_hand_rgb, ee_states, "
                        "gripper_states, one row an action", f"lacking {lacking}" if lacking else {key: len(obs[key]) for key in obs})
    state = np.concatenate([obs["ee_states"][:], obs["gripper_states"][:]], axis=1)
    return {"observation.images.static": _upright(obs["agentview_rgb"][:-1], where), "info.drawn": np.ones(count - 1, bool),
            "observation.images.wrist": _upright(obs["eye_in_hand_rgb"][:-1], where), "observation.state": state[:-1].astype(np.float32)}


def _scripted(obs, extras, count: int, where: str) -> dict:
    """All T rows of a file of `repro demos libero`; picture i of `steps` holds until the next."""
    steps, pictures = np.asarray(extras["steps"]), {}
    for ours, theirs in (("static", "agentview_rgb"), ("wrist", "eye_in_hand_rgb")):
        pictures[ours] = _upright(np.concatenate([extras[theirs][:], obs[theirs][:]]) if theirs in obs else extras[theirs][:], where)
    if len(steps) != len(pictures["static"]) or steps[0] != 0:
        raise UserError(f"{where}: its pictures do not fit its steps", f"{len(steps)} pictures, from step 0", len(pictures["static"]))
    shown = np.searchsorted(steps, np.arange(count), side="right") - 1
    height, width = pictures["static"].shape[1:3]
    box = np.asarray(extras["boxes"])[shown, 0].astype(np.float32)  # the target's
    seen = (box >= 0).all(1)
    box = np.column_stack([box[:, 0], height - box[:, 3], box[:, 2], height - box[:, 1]]) / (width, height, width, height)
    return {
        "observation.images.static": pictures["static"][shown], "observation.images.wrist": pictures["wrist"][shown],
        "observation.state": np.asarray(extras["state"])[:count].astype(np.float32),
        "observation.environment_state": np.asarray(extras["environment_state"])[:count].astype(np.float32),
        "gaze.box": np.where(seen[:, None], box, (0, 0, 1, 1)).astype(np.float32), "gaze.score": seen.astype(np.float32),
        "gaze.source": ["truth" if s else "fallback" for s in seen], "info.drawn": np.isin(np.arange(count), steps),
    }


def ensure_store(sources: list[str | Path] | str | Path, out: Path | str, only: Callable[[int], bool] | None = None) -> Store:
    """The store at `out` where there is one of these files' names, else a fresh import."""
    names = [file.name for source in (sources if isinstance(sources, list) else [sources]) for file in files_of(source)]
    if (Path(out) / "meta" / "repro.json").is_file() and Store(out).meta.get("files") == names:
        return Store(out)
    import_libero(sources, out, only, replace=True)
    return Store(out)
