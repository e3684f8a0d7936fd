"""`colour`, the detector of the offline kit: classical vision (colour names, shape, layout), no weights, no simulator's palette.

    Colour()([image], [["blue block", "drawer"]])         # -> [Candidates]

A picture is cut into patches of one named colour (hue ranges of everyday words, not of any renderer), into dark and bright grey patches,
and into patches that stand out from their surroundings. A noun is a colour word and a kind; a patch's score is how well its size and place
fit the kind, times how well its colour fits the word. Sizes and places of a table's parts were set on the training split of real CALVIN
simulator frames, those of bowls, plates and mugs on our own cluttered scenes. A drawer and a sliding door look like the table they are
part of: they are found by their handles, and their box is laid out from the handle's.
"""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from repro.gaze.candidates import Candidates, candidates
from repro.machine import UserError

# Everyday colour words: hue in degrees (middle, half width). Purple and magenta are what tables call pink.
HUES = {"red": (357, 13), "orange": (26, 10), "yellow": (56, 14), "green": (122, 38), "blue": (230, 30), "pink": (308, 28)}
# Patches without a hue, and what they count; contrast: whatever stands out.
SURE = {"black": 1.0, "dark": 0.95, "white": 0.9, "contrast": 0.8}
WORDS = {**{name: name for name in HUES}, "purple": "pink", "magenta": "pink", "violet": "pink", "white": "white", "silver": "white",
         "black": "black", "grey": "dark", "gray": "dark", "dark": "dark"}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What a kind of thing looks like. Sizes are shares of the picture's side, spreads are factors.

    panel: for a thing that is found by its handle, how its box follows from the handle's.
    """

    width: tuple[float, float]
    height: tuple[float, float]
    band: tuple[float, float] = (0.0, 1.0)  # where its centre is, from the top
    patches: tuple[str, ...] = (*HUES, "black", "white")  # what it can be when no colour was said
    panel: Callable[[float, float, float, float], tuple[float, float, float, float]] | None = None


def _drawer(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
    """A drawer's box from its handle's, both in [0, 1]. The lower the handle stands in the picture, the further the drawer is open: its
    right end comes nearer, and its box begins at the table's front edge."""
    width, height, out = x1 - x0, y1 - y0, min(1.0, max(0.0, (y0 - 0.675) / 0.185))
    top = y0 - 0.3 * height
    return x0 - 0.18 * width, top if out < 0.1 else min(top, 0.635), x0 + (1.45 + 0.34 * out) * width, y1


def _door(x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
    """A sliding door's box from its handle's, which stands at its left, a little below the middle."""
    width, middle = x1 - x0, (y0 + y1) / 2 - 0.35 * (x1 - x0)
    return x0 - 0.65 * width, middle - 1.28 * width, x0 + 2.25 * width, middle + 1.28 * width


KINDS = {
    "block": Kind((0.10, 1.4), (0.10, 1.4), patches=tuple(HUES)),
    "button": Kind((0.088, 1.25), (0.084, 1.25), (0.35, 0.62), ("black", "dark", "contrast")),
    "switch": Kind((0.18, 1.25), (0.07, 1.4), (0.05, 0.42), ("black", "dark", "contrast")),
    "drawer": Kind((0.285, 1.2), (0.135, 1.3), (0.65, 1.0), ("black", "dark", "contrast"), _drawer),
    "slider": Kind((0.105, 1.35), (0.225, 1.35), (0.15, 0.45), ("black", "dark", "contrast"), _door),
    "led": Kind((0.15, 1.8), (0.055, 1.4), (0.0, 0.5), ("green", "white")),
    "light bulb": Kind((0.085, 1.25), (0.075, 1.3), (0.0, 0.25), ("yellow", "white")),
    "bowl": Kind((0.17, 1.4), (0.12, 1.4)),
    "plate": Kind((0.20, 1.4), (0.10, 1.4)),
    "mug": Kind((0.09, 1.4), (0.11, 1.4)),
    "can": Kind((0.07, 1.4), (0.13, 1.4)),
}
NAMES = {"cube": "block", "brick": "block", "box": "block", "object": "block", "thing": "block", "item": "block", "cup": "mug",
         "dish": "plate", "door": "slider", "cabinet": "slider", "lever": "switch", "bulb": "light bulb", "lightbulb": "light bulb",
         "lamp": "light bulb", "light": "led", "bottle": "can"}  # fmt: skip
LEAST = 12 / 40_000  # of the picture's pixels: smaller patches are noise


@dataclass(frozen=True)
class Patch:
    """A connected part of a picture. box: pixels x0, y0, x1, y1; area: its pixels; close: 0 ... 1, how near its colour is to its name;
    grey: share of bright grey pixels around it (a robot, a floor)."""

    name: str
    box: tuple[int, int, int, int]
    area: int
    close: float
    grey: float


class Colour:
    """The detector. `least`: candidates below this score are not claimed (0.4: below it about every second claim is wrong)."""

    name = "colour"

    def __init__(self, least: float = 0.4):
        self.least, self._seen = least, OrderedDict()

    def fingerprint(self) -> str:
        """Changes when the rules change."""
        return hashlib.sha256(f"{self.least} {Path(__file__).read_text()}".encode()).hexdigest()[:16]

    def __call__(self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]) -> list[Candidates]:
        """Candidates of every image (H, W, 3) uint8 RGB for its nouns, best first. A noun of an unknown kind and without a colour finds
        none."""
        return [self.one(image, asked) for image, asked in zip(images, nouns, strict=True)]

    def one(self, image: np.ndarray, nouns: Sequence[str]) -> Candidates:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError("This is not an RGB picture.", expected="uint8 (H, W, 3)", found=f"{image.dtype} {image.shape}",
                            next_step="drop the alpha channel, or repeat a grey one three times")  # fmt: skip
        found, boxes, scores, names = self._patches(image), [], [], []
        for noun in dict.fromkeys(nouns):
            colour, kind = understood(noun)
            for patch in found:
                score = fits(patch, colour, kind, image.shape[:2])
                if score >= self.least:
                    boxes.append(_laid_out(patch, kind, image.shape[:2]))
                    scores.append(score)
                    names.append(noun)
        return candidates(boxes, scores, names)


    def needs_whole(self, noun: str) -> bool:
        """True for kinds that are told by where they are in the whole picture: a tile of it would mislead."""
        kind = understood(noun)[1]
        return kind is not None and kind.band != (0.0, 1.0)

    def _patches(self, image: np.ndarray) -> list[Patch]:
        """`patches`, kept for the last pictures: another noun is often asked of the same one."""
        key = hashlib.blake2b(image.tobytes(), digest_size=16).digest() + str(image.shape).encode()
        if key not in self._seen:
            self._seen[key] = patches(image)
            if len(self._seen) > 4096:
                self._seen.popitem(last=False)
        return self._seen[key]


def understood(noun: str) -> tuple[str | None, Kind | None]:
    """(colour, kind) of a noun phrase: "the purple brick" -> ("pink", KINDS["block"]); None for what it does not say or we do not know."""
    words = re.findall(r"[a-z]+", noun.lower().replace("_", " "))
    colour = next((WORDS[word] for word in words if word in WORDS), None)
    for word in reversed(words):
        word = word if word in KINDS or word in NAMES else word.removesuffix("s")
        if word in KINDS or word in NAMES:
            return colour, KINDS[NAMES.get(word, word)]
    return colour, None


def fits(patch: Patch, colour: str | None, kind: Kind | None, size: tuple[int, int]) -> float:
    """0 ... 1, how well a patch is the thing of that colour and kind."""
    if colour is None and kind is None:
        return 0.0
    if patch.name != colour and (colour is not None or patch.name not in kind.patches):
        return 0.0
    kind, side = kind or Kind((0.10, 2.0), (0.10, 2.0)), size[0]
    x0, y0, x1, y1 = patch.box
    off = [np.log(length / side / usual) / np.log(spread) for length, (usual, spread) in ((x1 - x0, kind.width), (y1 - y0, kind.height))]
    # A hand in front of a thing makes it smaller, never larger: up to half its size counts little.
    shape = np.exp(-0.125 * sum(max(0.0, abs(o) - 1) ** 2 for o in off))
    middle = (y0 + y1) / 2 / side
    outside = max(0.0, kind.band[0] - middle, middle - kind.band[1])
    return float(patch.close * shape * np.exp(-((outside / 0.05) ** 2)) * (1 - 0.6 * patch.grey if patch.name in SURE else 1))


def _laid_out(patch: Patch, kind: Kind | None, size: tuple[int, int]) -> np.ndarray:
    """The thing's box in [0, 1]: the patch's own, or the one that its handle tells."""
    box = np.array(patch.box) / (size[1], size[0], size[1], size[0])
    return np.clip(kind.panel(*box.tolist()) if kind is not None and kind.panel is not None else box, 0, 1)


# ---- patches ----------------------------------------------------------------------------------------------------------------------


def patches(image: np.ndarray) -> list[Patch]:
    """All patches of a picture, of every hue and grey."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    saturation, value = hsv[..., 1].astype(np.float32), hsv[..., 2]
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    bright = (saturation < 45) & (value > 135)
    vivid = (saturation >= 130) & (value >= 50) & np.any([_away(hsv, name) <= HUES[name][1] for name in HUES if name != "orange"], axis=0)
    dark = ((saturation < 60) & (value < 125)) | ((value < 55) & ~vivid)
    masks = {"black": dark & (value < 75), "dark": dark, "contrast": _stands_out(lab) & ~bright & ~dark & ~vivid,
             "white": bright & (value > 165) & ~_large(bright)}  # fmt: skip
    found = [patch for name in HUES for patch in _coloured(name, hsv)]
    found += [patch for name, mask in masks.items() for patch in _grey(name, mask, bright, lab)]
    bar = np.ones((1, round(0.06 * len(image))), np.uint8)  # what is left of a mask are bars that lie, freed from what stands under them
    lying = {name: cv2.morphologyEx(masks[name].astype(np.uint8), cv2.MORPH_OPEN, bar) > 0 for name in ("dark", "contrast")}
    return found + [patch for name, mask in lying.items() for patch in _grey(name, mask, bright, lab)]


def _coloured(name: str, hsv: np.ndarray) -> list[Patch]:
    """Patches of a hue: found by strongly saturated pixels, reaching as far as weakly saturated ones (shaded or washed-out faces),
    joined across gaps of 6 % of the height (fingers in front of a block)."""
    spread, height, away = HUES[name][1], hsv.shape[0], _away(hsv, name)
    right, saturation = (away <= spread) & (hsv[..., 2] >= 50), hsv[..., 1]
    strong = _dense(right & (saturation >= 130))
    if not strong.any():
        return []
    weak = _dense(right & (saturation >= min(130, 0.6 * np.median(saturation[strong]))))  # wood is a weak red: 0.6 keeps it out
    gap = round(0.06 * height) | 1
    joined = cv2.morphologyEx(weak.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8))
    found = []
    for mask, _ in _components(joined, weak, LEAST * strong.size):
        seen = int((mask & strong).sum())
        if seen:
            closeness = 1 - float(away[mask].mean()) / (2 * spread)
            found.append(Patch(name, _box(mask), seen, closeness * min(1.0, seen / (LEAST * strong.size)), 0.0))
    return found


# Degrees between a hue (OpenCV keeps half degrees: 0 ... 179) and each colour word.
AWAY = {name: np.abs((np.arange(256, dtype=np.float32) * 2 - hue + 180) % 360 - 180) for name, (hue, _) in HUES.items()}


def _away(hsv: np.ndarray, name: str) -> np.ndarray:
    return AWAY[name][hsv[..., 0]]


def _grey(name: str, mask: np.ndarray, bright: np.ndarray, lab: np.ndarray) -> list[Patch]:
    """Patches without a hue, none larger than a sixth of the picture; what hardly differs from its surroundings counts little."""
    mask, found = _dense(mask), []
    joined = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    for part, area in _components(joined, mask, 2 * LEAST * mask.size):
        if area > mask.size / 6:
            continue
        x0, y0, x1, y1 = _box(part)
        fill = area / ((x1 - x0) * (y1 - y0))
        edge = slice(max(0, y0 - 4), y1 + 4), slice(max(0, x0 - 4), x1 + 4)
        near = cv2.dilate(part[edge].astype(np.uint8), np.ones((7, 7), np.uint8)).astype(bool) & ~part[edge]
        if not near.any():
            continue
        differs = np.linalg.norm(lab[edge][part[edge]].mean(0) - lab[edge][near].mean(0)) / 28
        close = SURE[name] * min(1.0, fill / 0.35) * min(1.0, differs)
        found.append(Patch(name, (x0, y0, x1, y1), area, close, float(bright[edge][near].mean()) if name != "white" else 0.0))
    return found


def _stands_out(lab: np.ndarray) -> np.ndarray:
    """Pixels that differ from the median of their surroundings (a quarter of the picture) by more than wood grain does."""
    size = min(255, round(0.25 * len(lab)) | 1)
    away = lab.astype(np.float32) - np.dstack([cv2.medianBlur(np.ascontiguousarray(lab[..., i]), size) for i in range(3)])
    return np.sqrt(0.5 * away[..., 0] ** 2 + away[..., 1] ** 2 + away[..., 2] ** 2) > 24


def _large(mask: np.ndarray) -> np.ndarray:
    """Pixels of components larger than 3 % of the picture: floor, wall, robot."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] > 0.03 * mask.size
    large[0] = False
    return large[labels]


def _components(joined: np.ndarray, mask: np.ndarray, least: float):
    """(mask, pixels) of the components of `joined`, cut down to `mask`, of `least` pixels or more."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    for i in range(1, count):
        if stats[i, cv2.CC_STAT_AREA] >= least:
            part = mask & (labels == i)
            area = int(part.sum())
            if area >= least:
                yield part, area


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _dense(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask that have at least three of their eight neighbours in it: specks of noise go, corners stay."""
    return mask & (cv2.boxFilter(mask.astype(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_REPLICATE) >= 4)
