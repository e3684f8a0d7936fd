"""Gaze crops, and gaze boxes as columns of a store.

    crop(image, gaze.box, size=(173, 334))
    annotate("data/store", "truth")                       # adds gaze.box, gaze.score, gaze.source
"""

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from repro.data.episodes import Episode, Store, replace_columns
from repro.gaze.detectors import FULL_FRAME, colour, truth
from repro.gaze.phrase import gaze_item, parse, resolve
from repro.machine import UserError

__all__ = ["FULL_FRAME", "annotate", "crop", "pixels"]

STATIC, STATE, BOXES = "observation.images.static", "observation.environment_state", "info.boxes"


def pixels(box: np.ndarray, height: int, width: int, margin: float = 0.0, minimum: int = 0) -> tuple[int, int, int, int]:
    """The whole pixels (x0, y0, x1, y1), x1 and y1 exclusive, that a box in [0, 1] covers; at least one, all of them in the image.

    margin: share of the box's own sides added at each side. minimum: least side in pixels, reached by growing about the centre and,
    at the border, by moving inwards (never more than the image). NaN, inverted or empty boxes and boxes off the image are errors.
    """
    box = np.asarray(box, dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
        raise UserError("This is not a box.", expected="four finite numbers x0 < x1, y0 < y1 in [0, 1], in the order x0, y0, x1, y1",
                        found=box.tolist())  # fmt: skip
    if np.abs(box).max() > 2 or box[0] >= 1 or box[1] >= 1 or box[2] <= 0 or box[3] <= 0:
        raise UserError("The box lies off the image.", expected="x0, y0, x1, y1 in [0, 1] of the image", found=box.tolist(),
                        next_step="divide pixel boxes by the image's width and height")  # fmt: skip
    grow = (box[2:] - box[:2]) * margin
    x0, x1 = _span(box[0] - grow[0], box[2] + grow[0], width, minimum)
    y0, y1 = _span(box[1] - grow[1], box[3] + grow[1], height, minimum)
    return x0, y0, x1, y1


def _span(low: float, high: float, length: int, minimum: int) -> tuple[int, int]:
    """Pixels from `low` to `high` (in [0, 1]) along an axis of `length` pixels."""
    # Boxes are float32: a thousandth of a pixel is rounding, not a further pixel.
    start, stop = max(0, int(np.floor(low * length + 1e-3))), min(length, int(np.ceil(high * length - 1e-3)))
    start = min(start, length - 1)
    stop = max(stop, start + 1)
    wanted = min(minimum, length)
    if stop - start < wanted:
        start = min(max(0, start - (wanted - stop + start) // 2), length - wanted)
        stop = start + wanted
    return start, stop


def crop(image: np.ndarray, box: np.ndarray, size: tuple[int, int] | None = None, margin: float = 0.0, minimum: int = 0) -> np.ndarray:
    """The part of an image (H, W, 3) uint8 under a box in [0, 1] (see `pixels`), as a new array.

    size: (height, width) to stretch it to whatever its aspect, as ReconVLA stretches its gaze crops; by default it stays as it is.
    """
    x0, y0, x1, y1 = pixels(box, image.shape[0], image.shape[1], margin, minimum)
    part = image[y0:y1, x0:x1]
    if size is None:
        return part.copy()
    shrinks = part.shape[0] >= size[0] and part.shape[1] >= size[1]
    return cv2.resize(part, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def annotate(folder: Path | str, detector: str = "truth", look_ahead: bool = True) -> dict:
    """Add gaze.box (T, 4), gaze.score (T,) and gaze.source to every episode of a store; a report of what was found.

    detector: "truth" takes the simulator's boxes from the store's column `info.boxes`; "colour" looks at the pictures. With
    `look_ahead`, "truth" resolves "the block" and "the top block" from the whole episode's motion; such boxes have the source "state".
    Report: frames by source in all and per task, and `unnamed`: the instructions whose words, and motion, named no item, with their frames.
    """
    if detector not in ("truth", "colour"):
        raise UserError(f"There is no detector {detector!r}.", expected="truth or colour", found=detector)
    store = Store(folder)
    if detector == "truth" and BOXES not in store.columns:
        raise UserError(f"{folder} holds no simulator boxes.", expected=f"column {BOXES}", found=store.columns,
                        next_step="import data that has a boxes.json, or use the detector colour")  # fmt: skip
    image_size = tuple(store.info["features"][STATIC]["shape"][:2])
    sources, tasks, unnamed = Counter(), {}, Counter()

    def detect(episode: Episode) -> dict:
        phrase, named_by = parse(episode.task), detector
        if detector == "colour":
            gazes = [colour(image, phrase) for image in episode.columns[STATIC]]
        else:
            if look_ahead:
                told, phrase = phrase, resolve(phrase, episode.columns[STATE])
                named_by = "truth" if gaze_item(told) == gaze_item(phrase) else "state"
            gazes = [truth(json.loads(boxes), phrase, image_size, named_by) for boxes in episode.columns[BOXES]]
        counts = Counter(gaze.source for gaze in gazes)
        sources.update(counts)
        tasks.setdefault(episode.info.get("task_id") or "unknown", Counter()).update(counts)
        if gaze_item(phrase) is None:
            unnamed[episode.task] += len(gazes)
        return {
            "gaze.box": np.stack([gaze.box for gaze in gazes]),
            "gaze.score": np.array([gaze.score for gaze in gazes], dtype=np.float32),
            "gaze.source": [gaze.source for gaze in gazes],
        }

    replace_columns(folder, detect, reads=[BOXES, STATE] if detector == "truth" else [STATIC])
    return {
        "detector": detector, "frames": sum(sources.values()), "sources": dict(sources),
        "tasks": {task: dict(counts) for task, counts in sorted(tasks.items())}, "unnamed": dict(unnamed),
    }  # fmt: skip
