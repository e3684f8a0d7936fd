"""Gaze crops: the part of a picture under a box.

    crop(image, gaze.box, size=(173, 334), margin=0.1, minimum=24)
"""

import cv2
import numpy as np

from repro.machine import UserError


def pixels(box: np.ndarray, height: int, width: int, margin: float = 0.0, minimum: int = 0, truncate: bool = False
           ) -> tuple[int, int, int, int]:
    """The whole pixels (x0, y0, x1, y1), x1 and y1 exclusive, that a box in [0, 1] covers; at least one, all of them in the image.

    margin: share of the box's own sides added at each side. minimum: least side in pixels, reached by growing about the centre and,
    at the border, by moving inwards (never more than the image). truncate: both corners rounded down, as upstream (`box.astype(int)`,
    main_worker.py), which leaves out a last row and column that is covered in part. NaN, inverted or empty boxes and boxes off the
    image are errors.
    """
    box = np.asarray(box, dtype=np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
        raise UserError("This is not a box.", expected="four finite numbers x0 < x1, y0 < y1 in [0, 1], in the order x0, y0, x1, y1",
                        found=box.tolist())  # fmt: skip
    if np.abs(box).max() > 2 or box[0] >= 1 or box[1] >= 1 or box[2] <= 0 or box[3] <= 0:
        raise UserError("The box lies off the image.", expected="x0, y0, x1, y1 in [0, 1] of the image", found=box.tolist(),
                        next_step="divide pixel boxes by the image's width and height")  # fmt: skip
    grow = (box[2:] - box[:2]) * margin
    x0, x1 = _span(box[0] - grow[0], box[2] + grow[0], width, minimum, truncate)
    y0, y1 = _span(box[1] - grow[1], box[3] + grow[1], height, minimum, truncate)
    return x0, y0, x1, y1


def _span(low: float, high: float, length: int, minimum: int, truncate: bool) -> tuple[int, int]:
    """Pixels from `low` to `high` (in [0, 1]) along an axis of `length` pixels."""
    # Boxes are float32: a thousandth of a pixel is rounding, not a further pixel.
    start, stop = max(0, int(np.floor(low * length + 1e-3))), min(length, int(np.ceil(high * length - 1e-3)))
    if truncate:
        stop = min(length, int(np.floor(high * length + 1e-3)))
    start = min(start, length - 1)
    stop = max(stop, start + 1)
    wanted = min(minimum, length)
    if stop - start < wanted:
        start = min(max(0, start - (wanted - stop + start) // 2), length - wanted)
        stop = start + wanted
    return start, stop


def crop(image: np.ndarray, box: np.ndarray, size: tuple[int, int] | None = None, margin: float = 0.0, minimum: int = 0,
         truncate: bool = False) -> np.ndarray:
    """The part of an image (H, W, 3) uint8 under a box in [0, 1] (see `pixels`), as a new array.

    size: (height, width) to stretch it to whatever its aspect, as ReconVLA stretches its gaze crops; by default it stays as it is.
    """
    x0, y0, x1, y1 = pixels(box, image.shape[0], image.shape[1], margin, minimum, truncate)
    part = image[y0:y1, x0:x1]
    if size is None:
        return part.copy()
    shrinks = part.shape[0] >= size[0] and part.shape[1] >= size[1]
    return cv2.resize(part, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
