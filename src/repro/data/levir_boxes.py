"""Boxes of what changed: from masks, as the three numbers a head predicts, moved with the pixels, and guessed by differencing.

    main, union, components = boxes(mask)                              # 8-connected parts of at least 16 pixels
    decode(encode(main))                                               # the best box that [cx, cy, scale] can say: a square

A box is float32 (4,), x1 y1 x2 y2 in [0, 1] of the picture, x2 and y2 exclusive. Three numbers lose the aspect: a box r times as wide as
high comes back as a square of the same area, of intersection over union 1 / (2 sqrt(r) - 1) with it; `ceiling` is that, on real boxes.
"""

import cv2
import numpy as np

from repro.data.overlap import iou
from repro.intervals import bootstrap
from repro.machine import UserError

SPECK = 16  # pixels: smaller parts of a mask are left out


def parts(mask: np.ndarray, least: int = SPECK) -> np.ndarray:
    """(n, 5) int: x1, y1, x2, y2 (exclusive) and pixels of each 8-connected part of mask (H, W) != 0, the largest first.

    Of equally large parts the one whose first row, then first column, comes first is first.
    """
    count, _, stats, _ = cv2.connectedComponentsWithStats((mask != 0).astype(np.uint8), connectivity=8)
    found = stats[1:count].astype(np.int64)  # x, y, width, height, area; row 0 is the background
    found = found[found[:, cv2.CC_STAT_AREA] >= least]
    found = found[np.lexsort((found[:, 0], found[:, 1], -found[:, 4]))]
    return np.column_stack([found[:, :2], found[:, :2] + found[:, 2:4], found[:, 4]])


def boxes(mask: np.ndarray, least: int = SPECK) -> tuple[np.ndarray | None, np.ndarray | None, int]:
    """(box of the largest part, box around all parts, how many parts) of a mask (H, W); None, None, 0 where no part is large enough."""
    found, (height, width) = parts(mask, least), mask.shape
    if not len(found):
        return None, None, 0
    size = np.array([width, height, width, height], np.float32)
    around = np.concatenate([found[:, :2].min(0), found[:, 2:4].max(0)])
    return (found[0, :4] / size).astype(np.float32), (around / size).astype(np.float32), len(found)


def encode(box: np.ndarray) -> np.ndarray:
    """(..., 3) float32 [cx, cy, scale] of boxes (..., 4); scale is sqrt(width * height), so (0, 1] like the rest."""
    box = np.asarray(box, np.float32)
    sides = box[..., 2:] - box[..., :2]
    return np.concatenate([(box[..., :2] + box[..., 2:]) / 2, np.sqrt(sides.prod(-1, keepdims=True))], -1)


def decode(vector: np.ndarray) -> np.ndarray:
    """(..., 4) float32: the square [cx, cy, scale] (..., 3) stands for, cut off at the picture's border."""
    vector = np.asarray(vector, np.float32)
    centre, half = vector[..., :2], vector[..., 2:] / 2
    return np.clip(np.concatenate([centre - half, centre + half], -1), 0, 1)


def ceiling(box: np.ndarray) -> np.ndarray:
    """(...,): the intersection over union that boxes (..., 4) keep when they are said as [cx, cy, scale]."""
    return iou(decode(encode(box)), box)


# --- moved with the pixels ----------------------------------------------------------------------------------------------------------


def flipped(picture: np.ndarray, box: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Left and right exchanged."""
    return picture[:, ::-1], None if box is None else np.array([1 - box[2], box[1], 1 - box[0], box[3]], np.float32)


def turned(picture: np.ndarray, box: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """A quarter turn against the clock: what was on the right is on top."""
    return np.rot90(picture), None if box is None else np.array([box[1], 1 - box[2], box[3], 1 - box[0]], np.float32)


def cropped(picture: np.ndarray, box: np.ndarray | None, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """The window x1, y1, x2, y2 (pixels) at the picture's own size again; what of the box lies outside is cut off."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = window
    cut = cv2.resize(np.ascontiguousarray(picture[y1:y2, x1:x2]), (width, height), interpolation=cv2.INTER_LINEAR)
    if box is None:
        return cut, None
    corner, side = np.array([x1, y1, x1, y1]), np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    return cut, np.clip((box * np.array([width, height, width, height]) - corner) / side, 0, 1).astype(np.float32)


def augment(before: np.ndarray, after: np.ndarray, box: np.ndarray | None, rng: np.random.Generator, least: float = 0.75):
    """(before, after, box) flipped, turned and cropped alike: one of eight positions, then a window of `least`..1 of each side.

    Pictures (H, W, 3) uint8 of one size; those that are not square are only turned by 180 degrees. The window holds the whole box.
    """
    flips, turns, share = rng.integers(2), rng.integers(4), rng.uniform(least, 1)
    height, width = before.shape[:2]
    place = rng.uniform(size=2)
    if height != width:
        turns = 2 * (turns // 2)
    both, moved = np.concatenate([before, after], axis=2), box  # six channels: they cannot be moved apart
    if flips:
        both, moved = flipped(both, moved)
    for _ in range(turns):
        both, moved = turned(both, moved)
    size = np.array([width, height])
    if moved is not None:
        low, high = np.floor(moved[:2] * size), np.ceil(moved[2:] * size)
        side = np.maximum(np.round(share * size), high - low)
        first, last = np.maximum(high - side, 0), np.minimum(low, size - side)
    else:
        side = np.round(share * size)
        first, last = np.zeros(2), size - side
    start = np.round(first + place * (last - first)).astype(int)
    both, moved = cropped(both, moved, (*start, *(start + side.astype(int))))
    return both[..., :3], both[..., 3:], moved


# --- guessed by differencing --------------------------------------------------------------------------------------------------------


def matched(source: np.ndarray, like: np.ndarray) -> np.ndarray:
    """`source` (H, W, 3) uint8 with each channel's histogram made that of `like`."""
    table = np.empty((256, 3), np.uint8)
    for c in range(3):
        ours, theirs = (np.bincount(picture[..., c].ravel(), minlength=256) / picture[..., c].size for picture in (source, like))
        levels = np.flatnonzero(theirs)  # those that occur: the others would draw the brightest to 255
        table[:, c] = np.interp(np.cumsum(ours), np.cumsum(theirs)[levels], levels).round()
    return cv2.LUT(np.ascontiguousarray(source), table[None])


def difference_mask(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(H, W) bool: where two dates differ, without a model: histograms matched, blurred, |difference|, Otsu, opened and closed."""
    blurred = [cv2.GaussianBlur(picture, (0, 0), 1.5) for picture in (matched(before, after), after)]
    apart = cv2.absdiff(*blurred).max(axis=2)  # absdiff: a uint8 subtraction would wrap around
    _, mask = cv2.threshold(apart, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    kernel = np.ones((3, 3), np.uint8)
    return cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel) != 0


def difference_box(before: np.ndarray, after: np.ndarray) -> np.ndarray | None:
    """The box of the largest part of `difference_mask`: a guess to fall back on, never a truth to score against. None: nothing differs."""
    return boxes(difference_mask(before, after))[0]


def agreement(pairs, most: int = 400) -> dict:
    """How well differencing finds the main boxes of levir.Pairs that have one from a mask, of the first `most` at the most.

    {n, iou, low, high: its mean and 95 % interval, hit25, hit50: shares of at least that IoU, pointing: centres inside the box}. UserError
    where no pair has a box to compare with.
    """
    marked = [i for i, source in enumerate(pairs.column("box_source")) if source == "mask"][:most]
    if not marked:
        raise UserError(f"{pairs.store.folder} has no box from a mask to compare with", "LEVIR-MCI's masks", "none")
    found, inside = [], []
    for i in marked:
        (before,), (after,) = pairs.pictures([i])
        guess, truth = difference_box(before, after), pairs.column("box_main")[i]
        found.append(0.0 if guess is None else float(iou(guess, truth)))
        centre = np.full(2, -1.0) if guess is None else (guess[:2] + guess[2:]) / 2
        inside.append(bool((truth[:2] <= centre).all() and (centre <= truth[2:]).all()))
    low, high = bootstrap(found, (0, 1))
    shares = {"hit25": np.mean(np.array(found) >= 0.25), "hit50": np.mean(np.array(found) >= 0.5), "pointing": np.mean(inside)}
    return {"n": len(found), "iou": float(np.mean(found)), "low": low, "high": high} | {k: float(v) for k, v in shares.items()}
