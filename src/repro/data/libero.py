"""LIBERO in: the original HDF5 files, OpenVLA's regenerated ones, and LeRobot folders, all into one store.

    repro libero look downloads/libero_object                             # which layout it is, and by what that is known
    repro libero import downloads/libero_object store/training --task_names pick_up_the_milk_and_place_it_in_the_basket
    import_libero("libero_object/*_demo.hdf5", "work/store/training")

How files are told apart and read is in libero_sources.py.

In the store: pictures upright with true left and right (LIBERO's are flipped top to bottom; a turn by 180 degrees, customary elsewhere,
mirrors them), the picture *before* its action (an original file's first action, which none precedes, is left out), gripper -1 close / +1
open, 0.05 m and 0.5 rad per unit as they were. observation.state is LIBERO's 8-D: end-effector position (m), axis-angle (rad), two finger
joints (m), whatever a data set's metadata call them. Both choices that cannot be read off names are checked against the content: fingers
against the gripper's sign, moving pixels against the hand's position. Files of `repro demos libero --every n` have a picture at every n-th
step only: other rows carry the last picture and `info.drawn` False, and no batch starts there.
"""

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from repro import clock, freshness
from repro.data.calvin_frames import DAMAGED_LIMIT
from repro.data.episodes import Episode, Store, as_column
from repro.data.evidence import LOOKED, Evidence, check
from repro.data.libero_sources import AGAIN, Source, opened, sources_of
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
READERS = ("data/libero.py", "data/libero_sources.py", "data/lerobot.py", "data/evidence.py",
           "data/libero_tasks.py")  # code that decides what a store holds
PIECES, PIECE = 64, 4096  # of a source, and bytes of each: what its mark is made from
NOOP = 1e-4  # OpenVLA's rule: a movement below this, and the gripper as at the last action that was kept


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
    with opened(source.path) as file:
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
