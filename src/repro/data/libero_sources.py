"""LIBERO's files as others made them: which layout one has, by what that is known, and its demonstrations as they are stored.

The layouts hold the same recordings in different ways; which one a file has is read off its content and said in the report:
| layout | known by | the picture of a row is | pictures lie | gripper +1 |
|---|---|---|---|---|
| original | attributes of `data` (problem_info, macros_image_convention) | after its action | upside down | closes |
| regenerated (OpenVLA) | `data` without attributes | before its action | upside down | closes |
| scripted (`repro demos`) | a group `extras` in each demo | after, and the first one is kept | upside down | closes |
| LeRobot v2.0, v2.1, v3.0 | meta/info.json | before its action | turned by 180 degrees | closes |
"""

import glob
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro.data.episodes import Episode
from repro.data.lerobot import LeRobot
from repro.data.libero_tasks import SUITE_OF, places, resolve, sentence_of, suite_named, why_not
from repro.machine import UserError

EXTRAS = ("expert_actions", "state", "environment_state", "steps", "boxes", "agentview_rgb", "eye_in_hand_rgb")  # of a scripted one
AGAIN = "download it again, or make it again, or leave it out: give the other files as SOURCES"


@dataclass(frozen=True)
class Source:
    """One file or folder. `tasks` task_id -> sentence; `read(wanted)` gives (number, Episode) as they are stored, rows already paired.
    An episode that cannot be read has no columns; its info["damaged"] says why."""

    path: Path
    layout: str
    known_by: str
    observation: str  # what its rows hold: before | after the action
    orientation: str  # a key of UPRIGHT
    tasks: dict[str, str]
    episodes: list[tuple[int, str]]  # (number, sentence) of all
    read: Callable[[Callable[[int, str], bool]], Iterator[tuple[int, Episode]]]
    unclear: tuple[str, ...] = ()  # why tasks are not the benchmark's, so that they cannot be evaluated

    def describe(self) -> str:
        return f"{self.path.name}: {self.kind()}"

    def kind(self) -> str:
        return (f"{self.layout}, known by {self.known_by}; pictures {self.orientation}, {self.observation} the action; "
                f"{len(self.tasks)} task{'s' * (len(self.tasks) > 1)}" + "".join(f"; not to be evaluated: {why}" for why in self.unclear))


def files_of(pattern: str | Path) -> list[Path]:
    """What a folder or a glob pattern names: the folder itself where it is a LeRobot data set, else its HDF5 files, sorted."""
    place = Path(pattern).expanduser()
    if (place / "meta" / "repro.json").is_file():
        raise UserError(f"{place} is a store already", "LIBERO's files, or a LeRobot data set of others", "meta/repro.json",
                        "use it as it is")
    if (place / "meta" / "info.json").is_file():
        return [place]
    inside = lambda: (path for path in place.rglob("*") if path.suffix in (".hdf5", ".h5") and path.is_file())
    found = sorted(inside() if place.is_dir() else map(Path, glob.glob(str(place))))
    if found:
        return found
    wanted = "LIBERO's <task>_demo.hdf5 files, or a LeRobot folder with meta/info.json"
    if not place.is_dir():
        raise UserError(f"there is no {pattern}", wanted, "no such file or folder", "correct the path, or make some: repro demos libero")
    if calvin := [name for name in ("training", "validation") if (place / name).is_dir()] or [*place.glob("episode_*.npz")][:1]:
        raise UserError(f"{pattern} is CALVIN's, not LIBERO's", wanted, calvin[0], f"repro calvin import {pattern} STORE")
    raise UserError(f"no HDF5 file in {pattern}", wanted, ", ".join(sorted(path.name for path in place.iterdir())[:5]) or "an empty folder",
                    "give the folder that holds them, or make some: repro demos libero")


def sources_of(sources: Sequence[str | Path] | str | Path) -> list[Source]:
    """The files and folders that are named, each with its layout."""
    listed = sources if isinstance(sources, list | tuple) else [sources]
    return [_lerobot(path) if path.is_dir() else _hdf5(path) for one in listed for path in files_of(one)]


def _lerobot(folder: Path) -> Source:
    data = LeRobot(folder)
    has = {said: places("", said, suite_named(folder.resolve())) for _, said, _, _ in data.episodes}
    found = resolve(has)
    named = {said: found.get(said, (folder.name, said.replace(" ", "_"))) for said in has}

    def read(wanted):
        for episode in data.read(wanted):
            episode.info |= dict(zip(("scene", "task_id"), named[episode.task], strict=True))
            yield episode.info["episode"], episode

    return Source(folder, f"LeRobot {data.version}", "codebase_version in meta/info.json", "before", "rotated",
                  {name: said for said, (_, name) in named.items()}, [(index, sentence) for index, sentence, _, _ in data.episodes], read,
                  tuple(why_not(said, has[said]) for said in has if said not in found))


def _hdf5(path: Path) -> Source:
    """The layout of one HDF5 file, by the attributes and groups it has."""
    import h5py

    with opened(path) as file:
        data = file["data"] if "data" in file else None
        names = [name for name in data if re.fullmatch(r"demo_\d+", name)] if isinstance(data, h5py.Group) else []
        if not names and (data is None or "problem_info" not in data.attrs):
            raise UserError(f"{path} is not one of LIBERO's files", "a group data with demo_0, demo_1, ...", sorted(file),
                            AGAIN)
        if not names:
            raise UserError(f"{path} holds 0 demonstrations", "data/demo_0, demo_1, ...", ", ".join(data) or "an empty group", AGAIN)
        attributes = dict(data.attrs)
        scripted = "extras" in data[names[0]]
    own = _own_sentence(path, attributes["problem_info"]) if "problem_info" in attributes else None
    # the benchmark's name of the task: libero_object's own files say "pick the milk ..." where evaluations ask to "pick up the milk ..."
    official = Path(str(attributes.get("bddl_file_name", ""))).stem
    task = path.stem.removesuffix("_demo")
    sentence = sentence_of(official) if official else own or sentence_of(task)
    if scripted:
        layout, known_by = "scripted, LIBERO's layout", "a group extras in each demo"
    elif own is not None:
        layout, known_by = "original HDF5", "the attribute problem_info of data"
    else:
        layout, known_by = "regenerated HDF5 (OpenVLA)", "data without attributes"
    upright = str(attributes.get("macros_image_convention", "opengl")) == "opencv"
    kind = "scripted" if scripted else "after" if own is not None else "before"
    scene = path.parent.name if scripted else SUITE_OF.get(task, path.parent.name)  # the suite, whatever the folder is called
    read = lambda wanted: _demos(path, task, scene, sentence, own, kind, wanted)
    may = places(task, sentence, suite_named(path))
    unclear = () if task in SUITE_OF or len(may) == 1 else (why_not(sentence, may),)
    return Source(path, layout, known_by, "before" if kind == "before" else "after", "upright" if upright else "raw",
                  {task: sentence}, [(number, sentence) for number in sorted(int(name.split("_")[1]) for name in names)], read, unclear)


def _own_sentence(path: Path, problem) -> str:
    try:
        return json.loads(problem)["language_instruction"].strip('"')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: the attribute problem_info of data does not say the instruction", '{"language_instruction": "..", ..}',
                        str(problem)[:200], AGAIN) from error


def opened(path: Path):
    import h5py

    try:
        return h5py.File(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read", "a whole HDF5 file", error, AGAIN) from error


def _demos(path: Path, task: str, scene: str, sentence: str, own: str | None, kind: str, wanted) -> Iterator[tuple[int, Episode]]:
    with opened(path) as file:
        data = file["data"]
        for number in sorted(int(name.split("_")[1]) for name in data if name.startswith("demo_")):
            if wanted(number, sentence):
                info = {"task_id": task, "scene": scene, "file": path.name, "demo": f"demo_{number}"}
                info |= {"own_sentence": own} if own not in (None, sentence) else {}
                try:
                    yield number, Episode(sentence, *_demo(data[f"demo_{number}"], kind, f"{path}, demo_{number}", info))
                except (OSError, RuntimeError, KeyError) as error:  # of HDF5: garbled bytes inside
                    yield number, Episode(sentence, {}, info | {"damaged": f"{type(error).__name__}: {error}"})


def _demo(demo, kind: str, where: str, info: dict) -> tuple[dict, dict]:
    """(columns, info): pictures as they lie, actions in the source's sign, each row the observation before its action."""
    need, told = ("actions", "obs"), ()
    if kind == "scripted":
        need, told = (*need, *(f"extras/{name}" for name in EXTRAS)), ("repro_state", "repro_noise", "repro_pushed")
    lacking = [key for key in need if key not in demo] + [f"attribute {key}" for key in told if key not in demo.attrs]
    if lacking:
        raise UserError(f"{where} lacks what a demonstration has", ", ".join(need), f"no {', '.join(lacking)}; there are {', '.join(demo)}",
                        AGAIN)
    if kind == "scripted":
        info |= {"state": json.loads(demo.attrs["repro_state"]), "disturbed": bool(demo.attrs["repro_noise"] or demo.attrs["repro_pushed"])}
        return _scripted(demo["obs"], demo["extras"], where) | {"action": np.asarray(demo["extras/expert_actions"])}, info
    obs, count = demo["obs"], len(demo["actions"])
    need = ("agentview_rgb", "eye_in_hand_rgb", "ee_states", "gripper_states")
    lacking = [key for key in need if key not in obs]
    if lacking or any(len(obs[key]) != count for key in obs):
        raise UserError(f"{where}: its observations do not fit its {count} actions", ", ".join(need) + ", one row an action",
                        f"lacking {lacking}; there are {', '.join(obs)}" if lacking else {key: len(obs[key]) for key in obs}, AGAIN)
    seen, done = (slice(0, count - 1), slice(1, count)) if kind == "after" else (slice(0, count), slice(0, count))
    if (start := _start(demo, kind, where, info["task_id"])) is not None:
        info |= {"start": start}
    return {
        "observation.images.static": obs["agentview_rgb"][seen], "observation.images.wrist": obs["eye_in_hand_rgb"][seen],
        "observation.state": np.concatenate([obs["ee_states"][seen], obs["gripper_states"][seen]], axis=1),
        "action": np.asarray(demo["actions"][done]), "info.drawn": np.ones(seen.stop, bool),
    }, info  # fmt: skip


def _start(demo, kind: str, where: str, task: str) -> dict | None:
    """What a simulator's reset needs to begin where the first stored row is; None where the file does not say.

    states[k], flattened [time, qpos, qvel], is before action k. Original files: the first row kept is the one after action 0, so states[1],
    and nothing moves before it. Regenerated ones: states[0] (or the attribute init_state), from which ten dummy actions were done first.
    """
    if "states" not in demo and (kind == "after" or "init_state" not in demo.attrs):
        return None
    states = np.asarray(demo["states"][:2] if "states" in demo else demo.attrs["init_state"][None], np.float64)
    row = int(kind == "after")
    if states.ndim != 2 or not np.isfinite(states).all():
        raise UserError(f"{where}: its states are of a wrong shape", "(T, S) finite numbers, one row an action", states.shape)
    return {"task": task, "flat": states[row].tolist(), "settle": kind == "before"} if row < len(states) else None


def _scripted(obs, extras, where: str) -> dict:
    """All T rows of a file of `repro demos libero`; picture i of `steps` holds until the next. Boxes are of upright pictures."""
    count, steps, pictures = len(extras["expert_actions"]), np.asarray(extras["steps"]), {}
    for ours, theirs in (("static", "agentview_rgb"), ("wrist", "eye_in_hand_rgb")):
        pictures[ours] = np.concatenate([extras[theirs][:], obs[theirs][:]]) if theirs in obs else extras[theirs][:]
    counts = {**{name: len(seen) for name, seen in pictures.items()}, "boxes": len(extras["boxes"])}
    if set(counts.values()) != {len(steps)} or steps[:1].tolist() != [0]:
        raise UserError(f"{where}: its pictures do not fit its steps", f"{len(steps)} of each camera and as many boxes, from step 0",
                        f"{counts}, from step {steps[:1].tolist()}", AGAIN)
    shown = np.searchsorted(steps, np.arange(count), side="right") - 1
    height, width = pictures["static"].shape[1:3]
    box = np.asarray(extras["boxes"])[shown, 0].astype(np.float32)  # the target's
    seen = (box >= 0).all(1)
    box = np.column_stack([box[:, 0], height - box[:, 3], box[:, 2], height - box[:, 1]]) / (width, height, width, height)
    return {
        "observation.images.static": pictures["static"][shown], "observation.images.wrist": pictures["wrist"][shown],
        "observation.state": np.asarray(extras["state"])[:count],
        "observation.environment_state": np.asarray(extras["environment_state"])[:count].astype(np.float32),
        "gaze.box": np.where(seen[:, None], box, (0, 0, 1, 1)).astype(np.float32), "gaze.score": seen.astype(np.float32),
        "gaze.source": ["truth" if s else "fallback" for s in seen], "info.drawn": np.isin(np.arange(count), steps),
    }
