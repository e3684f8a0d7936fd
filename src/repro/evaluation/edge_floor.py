"""A guess without learning of where something was built: where the later picture has gained edges. A floor for pointing.

    floor = tuned(train, boxes_of_train)                               # its two numbers are chosen on training pairs, never on test
    vectors = floor.vectors(test, rows)                                # (n, 3)

Light and season change grey levels everywhere and edges much less; walls, roofs and kerbs bring them. So this is the strongest floor known
here, well above the plain difference of the pictures (data/levir_boxes.py).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from repro.data import levir_boxes, overlap
from repro.machine import UserError

BLURS, QUANTILES = (2.0, 3.0, 4.0), (0.9, 0.93, 0.95, 0.97, 0.98)  # what is tried
MOST = 200  # training pairs with a box that they are tried on
WHOLE = np.float32([0.5, 0.5, 1.0])


def energy(picture: np.ndarray, blur: float) -> np.ndarray:
    """(H, W) float32: how steep the grey levels of a picture (H, W, 3) uint8 are, averaged over `blur` pixels."""
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.0)
    return cv2.GaussianBlur(np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)), (0, 0), blur)


def largest(gain: np.ndarray, quantile: float) -> np.ndarray:
    """(3,) [cx, cy, scale] of the largest part of a picture's pixels above its own quantile; the whole picture where there is none."""
    box = levir_boxes.boxes(gain > np.quantile(gain, quantile))[0]
    return WHOLE if box is None else levir_boxes.encode(box)


@dataclass(frozen=True)
class EdgeFloor:
    """blur: deviation in pixels; quantile: share of each picture that is left out."""

    blur: float
    quantile: float

    def vector(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """(3,) [cx, cy, scale] of a pair (H, W, 3) uint8."""
        return largest(energy(after, self.blur) - energy(before, self.blur), self.quantile)

    def vectors(self, pairs, rows: np.ndarray) -> np.ndarray:
        """(n, 3) of these pairs of a store, one after the other: memory does not grow with the data."""
        found = (pairs.pictures([row]) for row in rows)
        return np.array([self.vector(before[0], after[0]) for before, after in found], np.float32).reshape(-1, 3)


def tuned(pairs, boxes: np.ndarray, most: int = MOST) -> EdgeFloor:
    """The floor whose blur and quantile give the highest mean IoU on the first `most` pairs of a store that have a box.

    boxes (n, 4), NaN where there is none. Raises UserError where no pair has one.
    """
    rows = np.flatnonzero(~np.isnan(boxes).any(1))[:most]
    if not len(rows):
        raise UserError("there is no box among the training pairs", "at least one localisable pair", f"{len(boxes)} pairs without")
    scores = np.zeros((len(BLURS), len(QUANTILES)))
    for row in rows:
        before, after = (picture[0] for picture in pairs.pictures([row]))
        for i, blur in enumerate(BLURS):
            gain = energy(after, blur) - energy(before, blur)
            said = np.array([largest(gain, quantile) for quantile in QUANTILES])
            scores[i] += overlap.iou(levir_boxes.decode(said), boxes[row])
    blur, quantile = np.unravel_index(np.argmax(scores), scores.shape)
    return EdgeFloor(BLURS[blur], QUANTILES[quantile])
