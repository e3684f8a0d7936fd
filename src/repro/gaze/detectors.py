"""Where the thing of a phrase is in the static image: boxes with a score and their source.

    gaze = colour(image, parse("grab the blue cube"))
    gaze.box                                              # float32 (4,) x0, y0, x1, y1 in [0, 1] of the image

A failed detection is the flagged fallback: the full frame, score 0, source "fallback". It is never a guess: the losses mask it.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from repro.gaze.phrase import Phrase, gaze_item
from repro.machine import UserError

FULL_FRAME = np.array([0, 0, 1, 1], dtype=np.float32)
FULL_FRAME.setflags(write=False)
SOURCES = ("truth", "state", "detector", "colour", "fallback")

# What colour can tell of an item: hue in degrees, and how far from it a pixel may be. Only blocks, and lights while they are lit, have a
# colour that their name tells; drawer, sliding door, button and switch look different on every table.
HUES = {"red_block": (357.0, 12.0), "blue_block": (232.0, 28.0), "pink_block": (312.0, 28.0)}
HUES |= {"led": (122.0, 24.0), "lightbulb": (57.0, 10.0)}


@dataclass(frozen=True)
class Gaze:
    """One detection. box: float32 (4,) x0, y0, x1, y1 in [0, 1]; score in [0, 1]; source one of SOURCES."""

    box: np.ndarray = field(default_factory=FULL_FRAME.copy)
    score: float = 0.0
    source: str = "fallback"

    @property
    def valid(self) -> bool:
        """False for a fallback."""
        return self.source != "fallback"


def truth(boxes: dict, phrase: Phrase, image_size: tuple[int, int], source: str = "truth") -> Gaze:
    """The simulator's own box of what the phrase asks to look at; a fallback where it is hidden or the words name no item.

    boxes: item -> (x0, y0, x1, y1) pixels, x1 and y1 exclusive, visible items only; image_size: (height, width).
    """
    box = boxes.get(gaze_item(phrase))
    if box is None:
        return Gaze()
    height, width = image_size
    box = np.asarray(box, dtype=np.float32) / np.array([width, height, width, height], dtype=np.float32)
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UserError(f"The box of {gaze_item(phrase)} does not lie in the image.", expected=f"x0 < x1 <= {width}, y0 < y1 <= {height}",
                        found=boxes[gaze_item(phrase)], next_step="check that the boxes belong to images of this size")  # fmt: skip
    return Gaze(box, 1.0, source)


def colour(image: np.ndarray, phrase: Phrase) -> Gaze:
    """The item by its colour, without any weights: a block named by colour, a lit light; everything else is a fallback.

    image: uint8 (H, W, 3) RGB. Pixels of the hue are joined across gaps of 6 % of the image height (fingers in front of a block).
    The score is the product of how much of that colour in the image lies in the chosen patch (1: no second candidate), how close
    its pixels are to the hue, and how full the patch is against twelve pixels of a 200 x 200 image; below 0.4, where
    about every second claim is wrong (measured), nothing is claimed.
    """
    hue = HUES.get(gaze_item(phrase))
    if hue is None:
        return Gaze()
    found = colour_patch(image, *hue)
    return Gaze() if found is None or found[1] < 0.4 else Gaze(found[0], found[1], "colour")


def colour_patch(image: np.ndarray, hue: float, spread: float) -> tuple[np.ndarray, float] | None:
    """(box in [0, 1], score) of the largest patch of saturated pixels within `spread` degrees of `hue`, or None.

    A patch is found by its strongly saturated pixels and reaches as far as its weakly saturated ones (shaded or washed-out faces).
    """
    height, width = image.shape[:2]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(np.float32)
    away = np.abs((hsv[..., 0] * 2 - hue + 180) % 360 - 180)  # OpenCV keeps half degrees
    right, saturation = (away <= spread) & (hsv[..., 2] >= 50), hsv[..., 1]
    strong = _dense(right & (saturation >= 130))
    if not strong.any():
        return None
    weak = _dense(right & (saturation >= min(130, 0.6 * np.median(saturation[strong]))))  # wood is a weak red: 0.6 keeps it out
    gap = round(0.06 * height) | 1
    joined = cv2.morphologyEx(weak.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
    count, labels = cv2.connectedComponents(joined, connectivity=8)
    sizes = np.bincount(labels[strong], minlength=count)
    best = int(sizes[1:].argmax()) + 1
    patch = weak & (labels == best)
    rows, columns = np.flatnonzero(patch.any(1)), np.flatnonzero(patch.any(0))
    box = np.array([columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height], dtype=np.float32)
    alone = sizes[best] / sizes.sum()
    closeness = 1 - float(away[patch].mean()) / (2 * spread)
    fullness = min(1.0, sizes[best] / (12 * height * width / 40_000))
    return box, float(alone * closeness * fullness)


def _dense(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have at least three of their eight neighbours in it: specks of noise go, corners stay."""
    return mask & (cv2.boxFilter(mask.astype(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_REPLICATE) >= 4)
