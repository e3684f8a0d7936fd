"""CALVIN in: the annotated episodes of a split (calvin.py) as a store.

    import_calvin("downloads/task_D_D", "training", "store/training")
    store = ensure_store("downloads/task_D_D", "training", "store/training")       # imported only where it is not there yet

Scripted play may have pictures of every few frames only (about.json: draw_every). In a store the frames between repeat the picture
before, and its boxes; the column `info.drawn` says which are new.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from repro import clock, freshness
from repro.data.calvin import Annotation, Calvin, Split
from repro.data.calvin_frames import BLOCKS, FPS, Damage, DamagedFrame, canonical, check_frame, read_frame, read_frames
from repro.data.episodes import Column, Episode, Store, encode_pictures
from repro.data.parallel import in_order
from repro.data.resumable import ResumableWriter
from repro.data.stored import Stored, is_store
from repro.machine import UserError

READERS = ("data/boxes.py", "data/calvin.py", "data/calvin_frames.py", "data/calvin_import.py")  # decide, beside the data, what is stored
PLAYED = ("scripted", "variation", "noise", "actions", "draw_every")  # what the play table's about.json says of its demonstrations
ACTION_UNITS = {
    "metres_per_unit": 0.02, "radians_per_unit": 0.05, "control_hz": FPS,
    "gripper": "-1 close, +1 open", "source_gripper": "-1 close, +1 open",
}  # fmt: skip


def read_episode(split: tuple, start: int, end: int, scene: str, every: int = 1) -> tuple[dict, dict[str, str]]:
    """In a worker: (columns with encoded pictures, {} when no frame is left; damaged frames name -> why). every: frames to a picture."""
    stack, ids, damaged = read_frames(split, start, end)
    drawn = (np.array(ids, np.int64) - start) % every == 0
    if not drawn.any():
        return {}, damaged
    first = int(drawn.argmax())  # not 0 where the first picture is damaged
    stack, ids, drawn = {name: values[first:] for name, values in stack.items()}, ids[first:], drawn[first:]
    columns = {
        "observation.images.static": _encoded(stack["rgb_static"], drawn),
        "observation.images.wrist": _encoded(stack["rgb_gripper"], drawn),
        "observation.state": stack["robot_obs"].astype(np.float32),
        "observation.environment_state": canonical(stack["scene_obs"], scene).astype(np.float32),
        "action": np.clip(stack["rel_actions"], -1, 1).astype(np.float32),
        "info.frame": np.array(ids, np.int64),
    }
    return columns | ({"info.drawn": drawn} if every > 1 else {}), damaged


def _encoded(frames: np.ndarray, drawn: np.ndarray) -> Column:
    """The column of pictures (T, H, W, 3), each that is not `drawn` (T,) replaced by the one before."""
    column = encode_pictures(frames[drawn])
    return column if drawn.all() else replace(column, array=column.array.take(pa.array(np.cumsum(drawn) - 1)))


def _pictured(columns: dict) -> np.ndarray:
    """(T,) the frame whose picture each row of an episode has."""
    frames, drawn = columns["info.frame"], columns.get("info.drawn", True)
    return np.maximum.accumulate(np.where(drawn, frames, 0))


def _about(root: Path | str) -> dict:
    """about.json, where the play table says what it is, or above its split in place of the root; a CALVIN download has none."""
    above = [Path(root).resolve().parent] if (Path(root) / "ep_start_end_ids.npy").is_file() else []
    found = [path for folder in (Path(root), *above) if (path := folder / "about.json").is_file()]
    return json.loads(found[0].read_text()) if found else {"name": Path(root).name, "simulator": "calvin_env"}


def frames_a_picture(root: Path | str, split: str) -> int:
    """How many frames repeat one picture: 1 but for some scripted play."""
    return _about(root).get("draw_every", 1) if split == "training" else 1


def code() -> str:
    """Of what decides a store's content beside the data."""
    return freshness.code(*READERS)


def store_meta(root: Path | str, source: Split) -> dict:
    """What a store of `source`, a split of `root`, says of itself."""
    about = _about(root)
    return {
        "source": "CALVIN layout", "name": about["name"], "simulator": about["simulator"], "split": source.name,
        "robot_type": "franka", "scene_known_by": source.scene_known_by, "blocks": list(BLOCKS),
        "action": ACTION_UNITS, "source_statistics": source.statistics, "source_fingerprint": source.fingerprint(), "code": code(),
        "played": {name: about[name] for name in PLAYED if name in about},
    }  # fmt: skip


def as_episode(source: Split, note: Annotation, columns: dict) -> Episode:
    """The episode of one annotation, with the boxes that the split has."""
    if source.boxes:
        columns = {**columns, "info.boxes": source.boxes.texts(_pictured(columns))}
    info = {"task_id": note.task_id, "scene": note.scene, "annotation": note.index, "source_start": note.start, "source_end": note.end}
    info |= {"targets": list(note.targets), "goal_items": list(note.goal_items)} if source.boxes else {}
    return Episode(note.instruction, columns, info)


def import_calvin(root: Path | str, split: str, out: Path | str, workers: int = 2, scene: str | None = None, replace: bool = False,
                  log: Callable[[str], None] = print) -> dict:  # fmt: skip
    """Write the annotated episodes of one split as a store at `out`. Streams: memory does not grow with the data.

    A damaged frame is left out of its episode and reported (the step before it is then followed by the step after it; `info.frame`
    keeps the numbers, so that the gap can be seen). Killed, it or a worker, or stopped by clock.OutOfTime, it goes on at the next call.
    Returns the report {episodes, frames, damaged: {name: why}, dropped: [annotation], scene_known_by, hash, out}.
    Raises UserError for a wrong structure or more than 1 % damaged frames; then nothing is left at `out`.
    """
    clock.check()
    source = Calvin(root).split(split, scene)
    notes, where, every = source.annotations, (source.folder, source.digits, source.shapes), frames_a_picture(root, split)
    meta = store_meta(root, source)
    with ResumableWriter(out, FPS, meta, {**meta, "scene": scene, "every": every}, replace, drop=UserError) as writer:
        done, dropped = writer.note.get("tried", 0), writer.note.get("dropped", [])
        damage = Damage(source.frames, writer.note.get("damaged", {}))
        if done:
            log(f"{split}: {done:,} of {len(notes):,} episodes are here already")
        progress = clock.Progress(f"import {split}", len(notes), "episodes", log, before=done)
        tasks = ((where, note.start, note.end, note.scene, every) for note in notes[done:])
        found = zip(notes[done:], in_order(read_episode, tasks, workers), strict=True)
        for tried, (note, (columns, damaged)) in enumerate(found, done + 1):
            damage.add(damaged, source.folder)
            if columns:
                writer.add(as_episode(source, note, columns))
            else:
                dropped = [*dropped, note.index]  # what the last note holds stays as it is
            writer.note = {"tried": tried, "damaged": damage.frames, "dropped": dropped}
            progress(tried)
            clock.check()
        writer.meta["damaged"], writer.meta["dropped_annotations"] = damage.frames, dropped
    return {
        "out": str(out), "episodes": writer.episodes, "frames": writer.frames, "damaged": damage.frames, "dropped": dropped,
        "scene_known_by": source.scene_known_by, "hash": writer.hash.hexdigest(),
    }  # fmt: skip


def ensure_store(root: Path | str, split: str, out: Path | str, workers: int = 2, scene: str | None = None, log: Callable = print) -> Store:
    """The store of a split: the one at `out` where it was made from the same data by the same code, gaze boxes and all, and no frame that
    it lacks can be read now; else a fresh import. What it lacks is said each time."""
    source = Calvin(root).split(split, scene)
    why = _outdated(Store(out), source) if is_store(out) else None
    if why:
        log(f"{out} {why}: importing again; gaze boxes, too, are found anew")
    if why or not is_store(out):
        if isinstance(source, Stored):
            if source.store.meta.get("code") != code():
                log(f"{source.folder} was made by another version of this library, and is used as it is")
            source.copy(out)
        else:
            import_calvin(root, split, out, workers, scene, True, log)
    store = Store(out)
    for name, said in store.meta.get("damaged", {}).items():
        log(f"left out {name}: {said}")
    return store


def _outdated(store: Store, source: Split | Stored) -> str | None:
    """Why a store is not what `source` would give now; None where it is."""
    if store.meta.get("source_fingerprint") != source.fingerprint():
        return f"was made from other data than {source.folder} holds now"
    if isinstance(source, Stored):
        return None if store.meta.get("code") == source.store.meta.get("code") else f"is no copy of {source.folder}"
    if store.meta.get("code") != code():
        return "was made by another version of this library"
    mended = next((name for name in store.meta.get("damaged", {}) if _readable(source, name)), None)
    return mended and f"lacks {mended}, which can be read now"


def _readable(source: Split, name: str) -> bool:
    """Whether a frame that was damaged is so no longer."""
    path = source.folder / name
    try:
        check_frame(read_frame(path, source.shapes), source.shapes, path)
    except DamagedFrame:
        return False
    return True
