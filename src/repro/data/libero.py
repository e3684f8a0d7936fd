"""LIBERO in: the original HDF5 files, OpenVLA's regenerated ones, and LeRobot folders, all into one store.

    repro libero look downloads/libero_object                             # which layout it is, and by what that is known
    repro libero import downloads/libero_object store/training --task_names pick_up_the_milk_and_place_it_in_the_basket
    import_libero("libero_object/*_demo.hdf5", "work/store/training")

The layouts hold the same recordings in different ways; which one a file has is read off its content and said in the report:
| layout | known by | the picture of a row is | pictures lie | gripper +1 |
|---|---|---|---|---|
| original | attributes of `data` (problem_info, macros_image_convention) | after its action | upside down | closes |
| regenerated (OpenVLA) | `data` without attributes | before its action | upside down | closes |
| scripted (`repro demos`) | a group `extras` in each demo | after, and the first one is kept | upside down | closes |
| LeRobot v2.0, v2.1, v3.0 | meta/info.json | before its action | turned by 180 degrees | closes |

In the store: pictures upright with true left and right (LIBERO's are flipped top to bottom; a turn by 180 degrees, customary elsewhere,
mirrors them), the picture *before* its action (an original file's first action, which none precedes, is left out), gripper -1 close / +1
open, 0.05 m and 0.5 rad per unit as they were. observation.state is LIBERO's 8-D: end-effector position (m), axis-angle (rad), two finger
joints (m), whatever a data set's metadata call them. Both choices that cannot be read off names are checked against the content: fingers
against the gripper's sign, moving pixels against the hand's position. Files of `repro demos libero --every n` have a picture at every
n-th step only: other rows carry the last picture and `info.drawn` False, and no batch starts there.
"""

import difflib
import glob
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from repro import clock, freshness
from repro.data.calvin_frames import DAMAGED_LIMIT
from repro.data.episodes import Episode, Store, as_column
from repro.data.evidence import LOOKED, Evidence, check
from repro.data.lerobot import LeRobot
from repro.data.libero_tasks import SUITE_OF, places, resolve, sentence_of, suite_named, why_not
from repro.data.resumable import ResumableWriter
from repro.machine import UserError

FPS = 20  # of the simulator; LeRobot's sets say 10, which is a label
ACTION_UNITS = {"metres": 0.05, "radians": 0.5, "rate_hz": FPS, "gripper": "-1 close, +1 open (LIBERO's own sign is the reverse)"}
STATE_NAMES = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_left", "finger_right"]
ORIENTATION = "upright, true left and right"
ROWS, COLUMNS = (slice(None), slice(None, None, -1)), (slice(None), slice(None), slice(None, None, -1))
UPRIGHT = {"raw": ROWS, "rotated": COLUMNS, "upright": (slice(None),)}  # how pictures (T, H, W, 3) lie -> what makes them upright
GRIPPER = {"closes": (-1.0, 0.0), "opens": (1.0, 0.0), "opens01": (2.0, -1.0)}  # what +1 does (opens01: 1 open, 0 closed) -> scale, shift
BEGUN = {"last": -1, "looked": -1}  # of a source: number of the last episode that is written, and of the last that Evidence looked at
READERS = ("data/libero.py", "data/lerobot.py", "data/evidence.py", "data/libero_tasks.py")  # code that decides what a store holds
EXTRAS = ("expert_actions", "state", "environment_state", "steps", "boxes", "agentview_rgb", "eye_in_hand_rgb")  # of a scripted one
AGAIN = "download it again, or make it again, or leave it out: give the other files as SOURCES"
PIECES, PIECE = 64, 4096  # of a source, and bytes of each: what its mark is made from
NOOP = 1e-4  # OpenVLA's rule: a movement below this, and the gripper as at the last action that was kept


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


# --- which layout -------------------------------------------------------------------------------------------------------------------


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

    with _opened(path) as file:
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


def _opened(path: Path):
    import h5py

    try:
        return h5py.File(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read", "a whole HDF5 file", error, AGAIN) from error


def _demos(path: Path, task: str, scene: str, sentence: str, own: str | None, kind: str, wanted) -> Iterator[tuple[int, Episode]]:
    with _opened(path) as file:
        data = file["data"]
        for number in sorted(int(name.split("_")[1]) for name in data if name.startswith("demo_")):
            if wanted(number, sentence):
                info = {"task_id": task, "scene": scene, "file": path.name, "demo": f"demo_{number}"}
                info |= {"own_sentence": own} if own not in (None, sentence) else {}
                try:
                    yield number, Episode(sentence, *_demo(data[f"demo_{number}"], kind, f"{path}, demo_{number}", info))
                except (OSError, RuntimeError, KeyError) as error:  # of HDF5: garbled bytes inside
                    yield number, Episode(sentence, {}, info | {"damaged": f"{type(error).__name__}: {error}"})


# --- one demonstration, as stored ---------------------------------------------------------------------------------------------------


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


# --- the store's own way ------------------------------------------------------------------------------------------------------------


def _house(episode: Episode, where: str, orientation: str, gripper: str, noops: bool) -> tuple[Episode, int]:
    """The episode as the store has it, and how many of its rows were no-ops that were left out."""
    columns, action = dict(episode.columns), np.asarray(episode.columns["action"], np.float64)
    state = np.asarray(columns["observation.state"], np.float64)
    if action.ndim != 2 or action.shape[1] != 7 or not len(action):
        raise UserError(f"{where}: actions of a wrong shape", "(T, 7), T >= 1", action.shape, AGAIN)
    if "state" not in episode.info and np.abs(action).max() > 1 + 1e-3:
        raise UserError(f"{where}: these are not LIBERO's relative actions", "within [-1, 1]", f"up to {np.abs(action).max():.3g}")
    if state.shape != (len(action), 8):
        raise UserError(f"{where}: a state of a wrong shape", f"({len(action)}, 8)", state.shape, AGAIN)
    for name, values in (("actions", action), ("state", state)):
        if not (fine := np.isfinite(values)).all():
            raise UserError(f"{where}: its {name} are not all numbers", f"finite numbers in {len(values)} rows", f"{(~fine).sum()} of "
                            f"{fine.size} not finite, the first in row {int((~fine).any(1).argmax())}, counted from 0", AGAIN)
    if len(state) > 1 and np.allclose(np.linalg.norm(state[:, 3:7], axis=1), 1, atol=1e-3):
        raise UserError(f"{where}: the state holds a quaternion", "position 3, axis-angle 3, finger joints 2",
                        "position 3, quaternion 4, gripper 1")
    for name in ("observation.images.static", "observation.images.wrist"):
        pictures = np.asarray(columns[name])
        if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8 or len(pictures) != len(action):
            raise UserError(f"{where}: pictures of a wrong kind", f"({len(action)}, H, W, 3) uint8", f"{pictures.dtype} {pictures.shape}",
                            "write them again as uint8, 0 ... 255, or leave the file out: give the other files as SOURCES")
        columns[name] = pictures[UPRIGHT[orientation]]
    if (gripper == "opens01") != (action[:, 6].min() >= 0 and (action[:, 6] < 0.5).any()) and len(np.unique(action[:, 6])) > 1:
        raise UserError(f"{where}: the gripper's commands are not what {gripper!r} means", "0 and 1 with opens01, else -1 and +1",
                        np.unique(action[:, 6])[:5].tolist(), "another --gripper: closes | opens | opens01")
    keep = kept(action) if noops else np.ones(len(action), bool)
    scale, shift = GRIPPER[gripper]
    action[:, 6] = scale * action[:, 6] + shift
    columns |= {"action": np.clip(action, -1, 1).astype(np.float32), "observation.state": state.astype(np.float32)}
    columns.setdefault("info.drawn", np.ones(len(action), bool))
    if not keep.all():
        columns = {name: [v for v, k in zip(values, keep, strict=True) if k] if isinstance(values, list) else values[keep]
                   for name, values in columns.items()}  # fmt: skip
    return Episode(episode.task, columns, episode.info), int((~keep).sum())


def kept(action: np.ndarray) -> np.ndarray:
    """(T,) bool: actions (T, 7) that are no no-ops, by OpenVLA's rule: |first six| >= 1e-4, or another gripper than at the last one kept.

    OpenVLA plays the rest again in the simulator; here rows are left out of what was recorded, so the arm may drift a little over a gap.
    """
    moves, keep, last = np.linalg.norm(action[:, :6], axis=1) >= NOOP, np.zeros(len(action), bool), None
    for k, grip in enumerate(action[:, 6].tolist()):
        keep[k] = moves[k] or (last is not None and grip != last)
        last = grip if keep[k] else last
    return keep


# --- import -------------------------------------------------------------------------------------------------------------------------


def chosen(sources: list[Source], task_names: Sequence[str] = (), only: Callable[[int], bool] | None = None) -> list[dict[int, str]]:
    """Of each source the episodes {number: sentence} of the tasks named (task_id or sentence; all where none is) whose number `only` takes.

    A task_id takes its own episodes alone, though others have the same sentence. A UserError with the nearest name for an unknown one."""
    known = {name: sentence for source in sources for task, sentence in source.tasks.items() for name in (task, sentence)}
    for name in task_names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            raise UserError(f"no task {name!r} in {', '.join(s.path.name for s in sources[:3])}", " | ".join(sorted(set(known.values()))),
                            name, f"did you mean {near[0]!r}?" if near else "repro libero look lists the tasks")
    asked, found = set(task_names), []
    for source in sources:
        said = {sentence for task, sentence in source.tasks.items() if not asked or {task, sentence} & asked}
        found.append({number: sentence for number, sentence in source.episodes if sentence in said and (only is None or only(number))})
    return found


def import_libero(sources: Sequence[str | Path] | str | Path, out: Path | str, only: Callable[[int], bool] | None = None,
                  replace: bool = False, task_names: Sequence[str] = (), drop_noops: bool = False, orientation: str | None = None,
                  gripper: str = "closes", workers: int = 1, log: Callable[[str], None] | None = None,
                  insist: bool = False) -> dict:  # fmt: skip
    """Write the demonstrations of the sources as a store at `out`. Streams: at most `workers` + 1 episodes are in memory. Killed, or
    stopped by clock.OutOfTime, it goes on at the next call.

    only: which demonstrations of each file (LeRobot: episodes), by number. orientation: how the sources' pictures lie (raw | rotated |
    upright), where it is not as the table above says. gripper: what +1 does in the sources (closes | opens; opens01: 1 open, 0 closed).
    insist: orientation stands even where the content speaks strongly against it. workers: threads that encode pictures.
    A damaged episode, one whose pictures cannot be decoded or rows not be read, is left out and reported.
    Returns {out, episodes, frames, noops, sources: [what each is], evidence, warnings, damaged: {name: why}, hash, files}.
    Raises UserError naming the file where its structure is not LIBERO's, or more than 1 % of the episodes are damaged; then nothing is
    left at `out`.
    """
    for name, value, known in (("orientation", orientation, (None, *UPRIGHT)), ("gripper", gripper, GRIPPER)):
        if value not in known:
            raise UserError(f"no {name} {value!r}", " | ".join(filter(None, known)), value)
    clock.check()
    found, say = sources_of(sources), log or (lambda line: None)
    episodes = chosen(found, task_names, only)
    total = sum(map(len, episodes))
    if not total:
        by = [f"task_names={list(task_names)}"] * bool(task_names) + ["`only`"] * (only is not None)
        raise UserError("no episode is chosen, so nothing can be imported", f"some of {sum(len(one.episodes) for one in found)} episodes",
                        f"none by {' and '.join(by) or 'no SOURCES'}", "choose others: repro libero look lists the tasks")
    meta = {"source": found[0].layout, "robot_type": "panda", "simulator": "libero", "action": ACTION_UNITS,
            "orientation": ORIENTATION, "state_names": STATE_NAMES,
            "observation": "before its action", "files": [source.path.name for source in found],
            "sources": [source.describe() for source in found], "noops_dropped": drop_noops,
            "asked": _asked(task_names, drop_noops, orientation, gripper), "source_fingerprint": fingerprint(found, episodes)}  # fmt: skip
    with ResumableWriter(out, FPS, meta, meta, replace, UserError) as writer, ThreadPoolExecutor(workers) as pool:
        fresh = {"sources": 0, **BEGUN, "tried": 0, "noops": 0, "evidence": {}, "warnings": {}, "damaged": {}}
        note = writer.note = fresh | writer.note
        if note["tried"]:
            say(f"{note['tried']:,} of {total:,} episodes are here already")
        for kind, count in Counter(source.kind() for source in found[note["sources"] :]).items():
            say(f"{count} file{'s, each' * (count > 1)}: {kind}")
        progress = clock.Progress("import", total, "episodes", say, before=note["tried"])
        for label, source, some in list(zip(_labels(found), found, episodes, strict=True))[note["sources"] :]:
            lie, unit = orientation or source.orientation, "episode " if source.path.is_dir() else "demo_"
            house = lambda n, episode, demo=f"{source.path}, {unit}", lie=lie: _house(episode, f"{demo}{n}", lie, gripper, drop_noops)
            seen = None if label in note["evidence"] else Evidence()  # None: enough has been looked at
            for number, dropped, episode in _read(source, some, house, note, seen, pool, workers):
                if seen and seen.episodes >= LOOKED:  # said now, not hours later at the source's end: more would say nothing else
                    _conclude(note, label, source, seen, lie, gripper, insist)
                    seen = None
                if "damaged" in episode.info:
                    note["damaged"][f"{label}, {unit}{number}"] = episode.info["damaged"]
                    _few(note["damaged"], total, source.path)
                elif len(episode.columns["action"].array):
                    writer.add(episode)
                note |= {"last": number, "tried": note["tried"] + 1, "noops": note["noops"] + dropped}
                writer.note = note  # the episode counts
                progress(note["tried"])
            if seen and seen.episodes:
                _conclude(note, label, source, seen, lie, gripper, insist)
            note |= {"sources": note["sources"] + 1, **BEGUN}
        noops, evidence, damaged = (note[name] for name in ("noops", "evidence", "damaged"))
        warnings = [line for lines in note["warnings"].values() for line in lines]
        scripted, maker = _maker(found[0])
        simulator = "grocery table" if "grocery" in maker else "libero"
        writer.meta |= {"made_by": maker, "evidence": evidence, "damaged": damaged, "simulator": simulator}
        suites = sorted({source.path.parent.name if source.path.is_file() else source.path.name for source in found})
        writer.meta["name"] = f"{', '.join(suites)}, {len(found)} files" + (", scripted" if scripted else "")
    for line in [*warnings, *(f"left out: {name}: {why}" for name, why in damaged.items())]:
        say(line)
    return {"out": str(out), "episodes": writer.episodes, "frames": writer.frames, "noops": noops, "sources": meta["sources"],
            "evidence": evidence, "warnings": warnings, "damaged": damaged, "hash": writer.hash.hexdigest(),
            "files": [str(source.path) for source in found]}  # fmt: skip


def _labels(sources: list[Source]) -> list[str]:
    """What the sources are called apart from where they all lie: the file's name, with folders in front where these differ."""
    paths = [source.path.absolute() for source in sources]
    top = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(top).as_posix() for path in paths]


def _conclude(note: dict, label: str, source: Source, seen: Evidence, orientation: str, gripper: str, insist: bool) -> None:
    """Keep what a source's content says; a UserError where it contradicts."""
    note["evidence"][label] = seen.found()
    note["warnings"][label] = check(note["evidence"][label], str(source.path), orientation, gripper, insist)


def _few(damaged: dict[str, str], total: int, path: Path) -> None:
    """UserError where more than 1 % of the episodes are damaged."""
    if len(damaged) > DAMAGED_LIMIT * total:
        shown = "; ".join(f"{name}: {why}" for name, why in list(damaged.items())[:5])
        raise UserError(f"{path}: too many damaged episodes, nothing was written", f"at most {DAMAGED_LIMIT:.0%} of {total}",
                        f"{len(damaged)} so far ({shown})", AGAIN)


def fingerprint(sources: list[Source], episodes: list[dict[int, str]]) -> str:
    """Changes when the files do, or which episodes are chosen of them; the same wherever the data lie."""
    told = hashlib.sha256()
    for source, some in zip(sources, episodes, strict=True):
        named = source.path.parts[-2:] if source.path.is_file() else source.path.parts[-1:]  # a file's folder may name the scene
        told.update(json.dumps([named, source.layout, source.observation, source.orientation, source.tasks, list(some.items())]).encode())
        told.update(_mark(source.path).encode())
    return told.hexdigest()


def _mark(path: Path) -> str:
    """Of the sizes of a source's files, and of PIECES pieces spread over them, at least one a file; cheap on any size."""
    files, mark = sorted(path.rglob("*.parquet")) if path.is_dir() else [path], hashlib.sha256()
    each = max(1, PIECES // len(files)) if files else 0
    for file in files:
        size = file.stat().st_size
        mark.update(f"{file.name} {size}\n".encode())
        with open(file, "rb") as opened:
            for i in range(each):
                opened.seek(size * i // each)
                mark.update(opened.read(PIECE))
    return mark.hexdigest()


def _read(source: Source, some: dict[int, str], house: Callable[[int, Episode], tuple[Episode, int]], note: dict, seen: Evidence | None,
          pool: ThreadPoolExecutor, workers: int) -> Iterator[tuple[int, int, Episode]]:  # fmt: skip
    """(number, rows left out, episode encoded by the pool's threads) of the source's episodes `some` after note["last"].

    Of those before, written in an earlier session, the ones up to note["looked"] are read again for what they say of the source, where
    that is not known yet (seen).
    """
    last, looked, waiting = note["last"], note["looked"] if seen else -1, []
    for number, episode in source.read(lambda n, s: n in some and (n > last or n <= looked)):
        clock.check()
        episode, dropped = (episode, 0) if "damaged" in episode.info else house(number, episode)
        if seen and seen.episodes < LOOKED:
            note["looked"] = max(number, note["looked"])
        if seen and len(episode.columns.get("action", ())):
            seen.add(episode)
        if number > last:
            waiting.append((number, dropped, pool.submit(_encoded, episode)))
        if len(waiting) > workers:
            number, dropped, job = waiting.pop(0)
            yield number, dropped, job.result()
    for number, dropped, job in waiting:
        yield number, dropped, job.result()


def _encoded(episode: Episode) -> Episode:
    return Episode(episode.task, {name: as_column(name, values) for name, values in episode.columns.items()}, episode.info)


def _asked(task_names=(), drop_noops=False, orientation=None, gripper="closes") -> dict:
    return {"task_names": sorted(task_names), "drop_noops": drop_noops, "orientation": orientation, "gripper": gripper,
            "code": freshness.code(*READERS)}


def _maker(source: Source) -> tuple[bool, str]:
    """(whether it is scripted, who made it)."""
    if source.path.is_dir():
        return False, "LIBERO (teleoperated)"
    with _opened(source.path) as file:
        attributes = file["data"].attrs
        said = "; ".join(str(attributes[key]) for key in ("repro_source", "repro_assets") if key in attributes)
    return "scripted" in said, said or "LIBERO (teleoperated)"


def ensure_store(sources: Sequence[str | Path] | str | Path, out: Path | str, only: Callable[[int], bool] | None = None,
                 log: Callable[[str], None] = print, **how) -> Store:  # fmt: skip
    """The store at `out` where it was made from the same episodes of the same files, the same way, else a fresh import; see
    `import_libero`."""
    if (Path(out) / "meta" / "repro.json").is_file():
        found, store = sources_of(sources), Store(out)
        asked = _asked(**{key: value for key, value in how.items() if key not in ("workers", "insist")})
        made_of = fingerprint(found, chosen(found, asked["task_names"], only))
        if (store.meta.get("asked"), store.meta.get("source_fingerprint")) == (asked, made_of):
            return store
        log(f"{out} was made from other files or episodes, in another way, or by another version: importing again; gaze boxes, too, "
            "are found anew")
    import_libero(sources, out, only, replace=True, log=log, **how)
    return Store(out)


# --- commands -----------------------------------------------------------------------------------------------------------------------


@click.group("libero", help="Read LIBERO data: original or regenerated HDF5, LeRobot v2.0, v2.1, v3.0.",
             context_settings={"help_option_names": ["-h", "--help"]})
def libero() -> None:
    pass


@libero.command("look", help="Say which layout SOURCES have, how that is known, and which tasks they hold. Writes nothing.")
@click.argument("sources", nargs=-1, required=True)
def look_command(sources: tuple[str, ...]) -> None:
    for source in sources_of(sources):
        click.echo(source.describe())
        for task, sentence in source.tasks.items():
            click.echo(f"  {task}: {sentence}")


@libero.command("import", help="Write SOURCES (files, folders, globs) as a store at OUT.")
@click.argument("sources", nargs=-1, metavar="SOURCES...")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--task_names", help="Tasks or sentences, comma-separated (default: all).")
@click.option("--drop_noops", is_flag=True, help="Leave out rows that do nothing, by OpenVLA's rule.")
@click.option("--orientation", type=click.Choice(list(UPRIGHT)), help="How the sources' pictures lie (default: as their layout says).")
@click.option("--gripper", type=click.Choice(list(GRIPPER)), default="closes", show_default=True, help="What +1 does in the sources.")
@click.option("--insist", is_flag=True, help="Keep --orientation although the pixels that move speak strongly against it.")
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Threads that encode pictures.")
@click.option("--replace", is_flag=True, help="Replace a store that is already there.")
def import_command(sources: tuple[str, ...], out: Path, task_names: str | None, drop_noops: bool, orientation: str | None, gripper: str,
                   insist: bool, workers: int, replace: bool) -> None:
    if not sources:
        raise click.UsageError(f"Missing argument 'OUT': SOURCES come first, OUT is the last, and only {str(out)!r} is given.")
    names = [name.strip() for name in task_names.split(",")] if task_names else []
    report = import_libero(sources, out, None, replace, names, drop_noops, orientation, gripper, workers, click.echo, insist)
    for name, found in report["evidence"].items():
        click.echo(f"  {name}: " + ", ".join(f"{key} {value:+.2f}" for key, value in found.items()))
    click.echo(", ".join(f"{key} {report[key]}" for key in ("out", "episodes", "frames", "noops", "hash")))
