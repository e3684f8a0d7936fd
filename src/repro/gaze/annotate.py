"""Gaze boxes, and crops, as columns of a store.

    annotate("data/store", "truth")                       # adds gaze.box, gaze.score, gaze.source, gaze.note
    annotate("data/store", "transformers", weights="IDEA-Research/grounding-dino-tiny", crop_size=(224, 224))

Episodes stream through; what is done is kept, so that a run that was killed, or stopped by clock.OutOfTime, goes on where it was
(`data.columns`).
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from repro import freshness
from repro.data.columns import replace_columns
from repro.data.episodes import Episode, Store
from repro.gaze import state
from repro.gaze.crops import crop
from repro.gaze.detectors import Detector, Gaze, load, truth
from repro.gaze.options import ALL, Options, look
from repro.gaze.phrase import Phrase, gaze_item, moved_on, parse, resolve
from repro.gaze.phrase import look as look_at
from repro.machine import UserError
from repro.sims.tabletop.raster import Camera

STATIC, STATE, BOXES, PROPRIO = "observation.images.static", "observation.environment_state", "info.boxes", "observation.state"
RULES = ("annotate", "options", "phrase", "nouns", "state", "crops", "detectors", "candidates", "grounding_dino", "grounding_dino_models")
EXACT = ("truth", "state")  # where boxes come from without looking


def annotate(folder: Path | str, detector: str | Detector = "truth", options: Options = ALL, *, weights: str | Path | None = None,
             follow: bool = True, look_ahead: bool = True, crop_size: tuple[int, int] | None = None, margin: float = 0.0,
             minimum: int = 0, camera: Camera | None = None, log: Callable[[str], None] | None = print) -> dict:
    """Add gaze.box (T, 4), gaze.score (T,), gaze.source and gaze.note to every episode of a store; a report of what was found.

    detector: "truth" takes the simulator's boxes from the column `info.boxes`; "state" projects CALVIN's recorded state through the
    camera, once `state.check` has found both to fit the pictures; "colour", "transformers" or "groundingdino-py" (with `weights`), or
    any detector, looks at the pictures, with `options`.
    follow: the gaze goes on to the destination while the gripper holds the target (ReconVLA's figures show it, its code does not).
    look_ahead: for truth and state, "the block" and "the top block" are resolved from the whole episode's motion (source "state").
    crop_size: also a column gaze.crop, pictures of (height, width), with `margin` and `minimum` as in `crops.crop`; without it an earlier
    column gaze.crop goes, for it was cut from other boxes. camera: for "state", where it is not CALVIN's standard one (`state.camera_of`).
    An instruction of several steps goes on to the next when the hand lets go; where that cannot be seen, notes say "several steps".
    Report: frames by source and by note in all, by source per task, and `unnamed`: instructions that named no item, with their frames.
    """
    if crop_size is not None and (not 1 <= min(crop_size) <= max(crop_size) <= 2000 or margin < 0 or minimum < 0):
        raise UserError("These crops cannot be cut.", expected="1 to 2,000 pixels, nothing negative",
                        found=f"{crop_size}, margin {margin}, minimum {minimum}")
    store, name = Store(folder), detector if isinstance(detector, str) else detector.name
    if isinstance(detector, str) and name not in (*EXACT, "colour", "transformers", "groundingdino-py"):
        raise UserError(f"There is no detector {name!r}.", expected="truth, state, colour, transformers or groundingdino-py", found=name,
                        next_step="truth where the data have true boxes, state for CALVIN, else a detector that looks")  # fmt: skip
    if name not in EXACT:
        detector = load(name, weights) if isinstance(detector, str) else detector
        how = f"{detector.name} {detector.fingerprint()} {options.label}"
    elif weights is not None:
        raise UserError(f"Boxes by {name} need no weights.", expected="no weights", found=str(weights), next_step="another detector")
    else:
        taken = f" {camera.size} {camera.focal} {camera.eye.tolist()} {camera.axes.tolist()}" if camera and name == "state" else ""
        how = name + taken
    _need(store, name)
    if name == "state":
        if store.meta.get("simulator") == "tabletop":
            raise UserError("Boxes from state know CALVIN's furniture; the play table has its own.", expected="data of CALVIN",
                            found=store.meta.get("name"), next_step="detector truth: the play table's data carry true boxes")  # fmt: skip
        check_state(store, camera=camera)
    image_size = tuple(store.info["features"][STATIC]["shape"][:2])
    sources, notes, tasks, unnamed = Counter(), Counter(), {}, Counter()

    def detect(episode: Episode) -> dict:
        if name in EXACT:
            boxes = true_boxes(episode, image_size) if name == "truth" else state_of(episode, camera)
            gazes = exact(episode, boxes, name, follow, look_ahead)
        else:
            gazes = detected(episode, detector, options, follow)
        columns = {
            "gaze.box": np.stack([gaze.box for gaze in gazes]),
            "gaze.score": np.array([gaze.score for gaze in gazes], dtype=np.float32),
            "gaze.source": [gaze.source for gaze in gazes],
            "gaze.note": [gaze.note for gaze in gazes],
        }
        if crop_size is not None:
            pictures = zip(episode.columns[STATIC], gazes, strict=True)
            columns["gaze.crop"] = np.stack([crop(image, gaze.box, crop_size, margin, minimum) for image, gaze in pictures])
        return columns

    wanted = {"truth": [BOXES, STATE], "state": [STATE]}.get(name, [STATIC]) + [PROPRIO, "action"]
    reads = [column for column in dict.fromkeys(wanted + ([STATIC] if crop_size else [])) if column in store.columns]
    key = f"gaze {rules()}: {how}, follow {follow}, ahead {look_ahead}, crop {crop_size} {margin} {minimum}"
    store = replace_columns(folder, detect, reads=reads, key=key, log=log, drops=() if crop_size else ("gaze.crop",))
    for i, info in enumerate(store.episodes):
        found = store.read(i, ["gaze.source", "gaze.note"]).columns
        counts = Counter(found["gaze.source"])
        sources.update(counts)
        notes.update(note for note in found["gaze.note"] if note)
        tasks.setdefault(info.task_id or "unknown", Counter()).update(counts)
        unnamed[info.task] += sum(note == "unnamed" for note in found["gaze.note"])
    return {
        "detector": name, "options": None if name in EXACT else options.label, "frames": sum(sources.values()), "sources": dict(sources),
        "notes": dict(notes), "tasks": {task: dict(counts) for task, counts in sorted(tasks.items())}, "unnamed": dict(+unnamed),
    }  # fmt: skip


def _need(store: Store, name: str) -> None:
    column, what = {"truth": (BOXES, "simulator boxes"), "state": (STATE, "simulator state")}.get(name, (STATIC, "pictures of the camera"))
    if column not in store.columns or STATIC not in store.columns:
        raise UserError(f"{store.folder} holds no {what}.", expected=f"columns {column}, {STATIC}", found=store.columns,
                        next_step="another detector (truth, state, colour, transformers), or import data that has them")  # fmt: skip


def rules() -> str:
    """Hash of the rules that boxes follow from besides the detector's own fingerprint: with other rules a store is annotated anew."""
    return freshness.code(*(f"gaze/{name}.py" for name in RULES))


# ---- one episode ----------------------------------------------------------------------------------------------------------------------


def detected(episode: Episode, detector: Detector, options: Options = ALL, follow: bool = True) -> list[Gaze]:
    """The gaze of every frame, by looking at the pictures."""
    phrases, held, notes = course(understood(episode.task), holding(episode), follow)
    source = "colour" if detector.name == "colour" else "detector"
    gazes = look(detector, list(episode.columns[STATIC]), phrases, options, held, source)
    return [_noted(gaze, note) for gaze, note in zip(gazes, notes, strict=True)]


def exact(episode: Episode, boxes: Sequence[dict], name: str, follow: bool = True, look_ahead: bool = True) -> list[Gaze]:
    """The gaze of every frame from known boxes: per frame {item: (x0, y0, x1, y1)} in [0, 1]."""
    told = understood(episode.task)
    phrase = resolve(told, episode.columns[STATE]) if look_ahead and STATE in episode.columns else told
    source = name if gaze_item(told) == gaze_item(phrase) else "state"
    phrases, held, notes = course(phrase, holding(episode, phrase), follow)
    return [_noted(truth(found, _item(p, h), source), note) for found, p, h, note in zip(boxes, phrases, held, notes, strict=True)]


def understood(instruction: str) -> Phrase:
    """`parse`, where an instruction without a word names nothing: its frames become fallbacks and do not stop a store."""
    return parse(instruction) if any(c.isalnum() for c in instruction) else Phrase("", None)


def course(phrase: Phrase, held: np.ndarray, follow: bool = True) -> tuple[list[Phrase], list[bool], list[str]]:
    """(what is looked for, whether the gaze is on where it goes, note) of every frame. held: (T,) bool.

    With several steps ("put the soup and the sauce in the basket") the next begins when the hand lets go after holding for three frames. A
    step that holds nothing ("turn on the stove") has no end that could be seen: its frames are noted "several steps".
    """
    phrases, notes, count = [], [], 0
    for grip in held:
        if not grip and count >= 3 and phrase.then is not None:
            phrase = phrase.then
        count = count + 1 if grip else 0
        phrases.append(phrase)
        notes.append("several steps" if phrase.then is not None and not moved_on(phrase, True) else "")
    return phrases, [bool(grip) and follow for grip in held], notes


def _noted(gaze: Gaze, note: str) -> Gaze:
    return replace(gaze, note="; ".join(filter(None, (gaze.note, note))))


def _item(phrase: Phrase, held: bool) -> str | None:
    item = look_at(phrase, held)[1]
    return gaze_item(phrase) if item is None else item


def true_boxes(episode: Episode, image_size: tuple[int, int]) -> list[dict]:
    """Per frame {item: (x0, y0, x1, y1)} in [0, 1] from the column `info.boxes`, whose pixels are of images of (height, width)."""
    height, width = image_size
    return [{item: np.divide(box, (width, height, width, height)) for item, box in json.loads(text).items()}
            for text in episode.columns[BOXES]]  # fmt: skip


def state_of(episode: Episode, camera: Camera | None = None) -> list[dict]:
    return [state.state_boxes(episode.info["scene"], row, camera=camera) for row in episode.columns[STATE]]


def check_state(store: Store, frames: int = 60, camera: Camera | None = None) -> dict:
    """`state.check` on frames spread over the store, scene by scene; its reports. A UserError where order or camera do not fit."""
    reports = {}
    for scene in sorted({info.scene for info in store.episodes}):
        mine = [info.index for info in store.episodes if info.scene == scene]
        picked = [store.read(i, [STATIC, STATE]).columns for i in mine[:: max(1, len(mine) // 10)]]
        every = max(1, sum(len(c[STATE]) for c in picked) // frames)
        images, rows = (np.concatenate([c[name] for c in picked])[::every] for name in (STATIC, STATE))
        reports[scene] = state.check(images, rows, scene, camera=camera)
    return reports


def holding(episode: Episode, phrase: Phrase | None = None) -> np.ndarray:
    """(T,) bool: whether the gripper holds something, and, with a block named and the state known, whether it is that block.

    Holding: the command is to close, the fingers have stopped (by less than 1 mm a frame) and stand apart by more than 4 mm. CALVIN's
    proprioception (T, 15) has width and command; LIBERO's (T, 8) has both finger joints, and the action the command. Others: never.
    """
    proprio = episode.columns.get(PROPRIO)
    if proprio is None or proprio.shape[1] not in (8, 15):
        return np.zeros(len(next(iter(episode.columns.values()))), dtype=bool)
    if proprio.shape[1] == 15:
        width, closing = proprio[:, 6], proprio[:, 14] < 0
    else:
        width, closing = proprio[:, 6] - proprio[:, 7], episode.columns["action"][:, 6] < 0
    still = np.abs(np.diff(width, prepend=width[:1])) < 1e-3
    held = closing & still & (width > 4e-3) & (width < 0.078)
    item = phrase and phrase.item
    if item in state.BLOCKS and STATE in episode.columns:
        at = episode.columns[STATE][:, 6 + 6 * state.BLOCKS.index(item) :][:, :3]
        held &= np.linalg.norm(at - proprio[:, :3], axis=1) < 0.06
    return held
