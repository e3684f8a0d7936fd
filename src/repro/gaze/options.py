"""Better boxes from any detector: five named options, each of which can be left out. NONE is the best box of one look, unfiltered.

    gazes = look(detector, images, phrases, ALL)          # one episode's frames; [Gaze], one a frame

The order is fixed: tiles (more candidates) -> nms -> filters -> relations (which of them is meant) -> smooth (along the episode).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np

from repro.data.overlap import iou
from repro.gaze.candidates import Candidates, candidates
from repro.gaze.detectors import Gaze
from repro.gaze.phrase import Phrase, moved_on, nouns


@dataclass(frozen=True)
class Options:
    """What is done with a detector's candidates.

    tiles: a second look at four overlapping tiles of 5/8 of the side, enlarged to the picture's size; boxes that an inner border cuts
        are dropped.
    nms: of two boxes of one noun that overlap by more than half (IoU), the better one stays.
    filters: boxes of impossible size or aspect, or cut by two borders, go (`plausible`).
    relations: "in the red bowl", "next to the plate", "the left mug" decide among candidates (`related`).
    smooth: one path through the episode's candidates that jumps little; gaps of up to GAP frames are bridged, and say so.
    """

    tiles: bool = False
    nms: bool = False
    filters: bool = False
    relations: bool = False
    smooth: bool = False

    @property
    def label(self) -> str:
        on = [field.name for field in fields(self) if getattr(self, field.name)]
        return "all" if len(on) == len(fields(self)) else " + ".join(on) or "none"


NONE, ALL = Options(), Options(True, True, True, True, True)
SINGLE = tuple(replace(NONE, **{field.name: True}) for field in fields(Options))  # one option alone
WITHOUT = tuple(replace(ALL, **{field.name: False}) for field in fields(Options))  # all but one
TILE, GAP, KEPT = 5 / 8, 8, 6  # share of the side; frames; candidates a frame that a path may go through
LARGE = ("drawer", "door", "slider", "cabinet", "stove", "microwave", "shelf", "table", "rack", "caddy", "tray", "basket", "compartment")
ALIKE = 0.9  # of the best one's rank: then two candidates are equal, and the box is flagged
MET = 0.2  # a relation that the best candidate meets by less (0 ... 1) is not met, and the box is flagged


def look(detector, images: Sequence[np.ndarray], phrases: Sequence[Phrase], options: Options = ALL, held: Sequence[bool] | None = None,
         source: str = "detector") -> list[Gaze]:
    """The gaze of every frame of one episode (never of two: smoothing goes along it).

    images: uint8 (H, W, 3) RGB; phrases: one a frame; held: whether the gripper holds the target, when the gaze goes on to the destination.
    Nothing found: a fallback with the note "no detection"; nothing to look for: "unnamed". Notes also say "ambiguous" (two candidates
    are as good), "reference not found", "relation not met" (no candidate stands where the sentence says) and "carried over" (bridged
    by smoothing, with half the score).
    """
    held = [False] * len(images) if held is None else held
    asked = [nouns(phrase, bool(h)) if phrase.named else () for phrase, h in zip(phrases, held, strict=True)]
    found = _ask(detector, images, asked)
    if options.tiles:
        found = [_merged(whole, parts) for whole, parts in zip(found, _tiles(detector, images, asked), strict=True)]
    ranked = []
    for boxes, names, phrase, image, h in zip(found, asked, phrases, images, held, strict=True):
        boxes = nms(boxes) if options.nms else boxes
        boxes = boxes.take(plausible(boxes, image.shape[1] / image.shape[0])) if options.filters else boxes
        ranked.append(_rank(boxes, names, phrase, bool(h), options.relations))
    # What is looked for may change along the episode; "the bowl in front" and "the bowl in the middle" are two things of one noun.
    sought = [(*names, *said(p, bool(h)), moved_on(p, bool(h)), p.target) for names, p, h in zip(asked, phrases, held, strict=True)]
    picks = _path(ranked, sought) if options.smooth else [0 if len(r.boxes) else None for r in ranked]
    gazes = [_gaze(r, pick, source) for r, pick in zip(ranked, picks, strict=True)]
    return _bridged(gazes, sought) if options.smooth else gazes


# ---- more candidates, and fewer ---------------------------------------------------------------------------------------------------------


def _ask(detector, images, asked) -> list[Candidates]:
    """The detector's answers; a picture of which nothing is asked is not shown to it."""
    some = [i for i, names in enumerate(asked) if names]
    answers = dict(zip(some, detector([images[i] for i in some], [asked[i] for i in some]) if some else (), strict=True))
    return [answers.get(i, candidates([], [], [])) for i in range(len(images))]


def _tiles(detector, images, asked) -> list[list[Candidates]]:
    """Per image, the candidates of its four tiles in the image's own [0, 1]. Not asked: nouns that the detector `needs_whole` pictures
    for."""
    origins = [(x, y) for y in (0.0, 1 - TILE) for x in (0.0, 1 - TILE)]
    cut = [_tile(image, origin) for image in images for origin in origins]
    whole = getattr(detector, "needs_whole", lambda noun: False)
    found = _ask(detector, cut, [[noun for noun in names if not whole(noun)] for names in asked for _ in origins])
    return [[_placed(found[len(origins) * i + k], origin) for k, origin in enumerate(origins)] for i in range(len(images))]


def _tile(image: np.ndarray, origin: tuple[float, float]) -> np.ndarray:
    height, width = image.shape[:2]
    x, y = round(origin[0] * width), round(origin[1] * height)
    part = image[y : y + round(TILE * height), x : x + round(TILE * width)]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)


def _placed(found: Candidates, origin: tuple[float, float]) -> Candidates:
    """A tile's boxes in the whole picture, without those that an inner border cuts."""
    low, high = found.boxes[:, :2].copy(), found.boxes[:, 2:].copy()
    inner_low, inner_high = np.array(origin) > 0, np.array(origin) + TILE < 1
    whole = ~((low < 0.01) & inner_low).any(1) & ~((high > 0.99) & inner_high).any(1)
    boxes = np.concatenate([low, high], 1) * TILE + np.array([*origin, *origin])
    return Candidates(boxes.astype(np.float32), found.scores, found.names).take(whole)


def _merged(whole: Candidates, parts: list[Candidates]) -> Candidates:
    """All candidates: the whole picture's, and the tiles' with a little less score. A thing seen twice is there twice, until `nms`."""
    every = [whole, *parts]
    scores = np.concatenate([whole.scores, *(0.95 * part.scores for part in parts)])
    return candidates(np.concatenate([c.boxes for c in every]), scores, [name for c in every for name in c.names])


def nms(found: Candidates, most: float = 0.5) -> Candidates:
    """Non-maximum suppression among boxes of one noun: none of those kept overlaps a better one by more than `most` (IoU)."""
    kept: list[int] = []
    for i in range(len(found)):
        if all(found.names[i] != found.names[k] or iou(found.boxes[i], found.boxes[k]) <= most for k in kept):
            kept.append(i)
    return found.take(kept)


def plausible(found: Candidates, aspect: float = 1.0) -> np.ndarray:
    """Mask of the boxes that can be what they are called. aspect: the picture's width over its height.

    Things are between 0.02 % and 15 % of the picture, furniture (LARGE) up to 40 %; sides differ by less than a factor 4 (furniture 5);
    and a box that touches two borders of the picture is cut off, or is the background.
    """
    width, height = (found.boxes[:, 2] - found.boxes[:, 0]) * aspect, found.boxes[:, 3] - found.boxes[:, 1]
    large = np.array([bool(set(name.split()) & set(LARGE)) for name in found.names], dtype=bool)
    area, shape = width * height / aspect, np.maximum(width, height) / np.maximum(1e-6, np.minimum(width, height))
    borders = (found.boxes[:, :2] < 0.005).sum(1) + (found.boxes[:, 2:] > 0.995).sum(1)
    return (area > 2e-4) & (area < np.where(large, 0.40, 0.15)) & (shape < np.where(large, 5, 4)) & (borders < 2)


# ---- which one is meant -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranked:
    boxes: np.ndarray  # (K, 4) best first
    scores: np.ndarray  # the detector's
    ranks: np.ndarray  # what they were sorted by
    note: str


def _rank(found: Candidates, asked: Sequence[str], phrase: Phrase, held: bool, relations: bool) -> _Ranked:
    """The candidates of what is looked at, best first."""
    if not asked:
        return _Ranked(np.zeros((0, 4), np.float32), *np.zeros((2, 0), np.float32), "unnamed")
    mine, ranks, note = found.of(asked[0]), None, ""
    if relations and len(mine):
        ranks, note = related(mine, [found.of(name) for name in asked[1:]], *said(phrase, held))
    ranks = mine.scores if ranks is None else ranks
    order = np.argsort(-ranks, kind="stable")
    rivals = [i for i in order[1:] if ranks[i] >= ALIKE * ranks[order[0]] and iou(mine.boxes[i], mine.boxes[order[0]]) < 0.3]
    note = "; ".join(filter(None, (note, "ambiguous" if rivals else "")))
    order = order[:KEPT]
    return _Ranked(mine.boxes[order], mine.scores[order], ranks[order], note)


def said(phrase: Phrase, held: bool) -> tuple[str | None, str | None]:
    """(place, side) of what is looked at."""
    return (phrase.destination_place, phrase.destination_side) if moved_on(phrase, held) else (phrase.place, phrase.side)


def related(mine: Candidates, references: list[Candidates], place: str | None, side: str | None) -> tuple[np.ndarray, str]:
    """(rank of each candidate, note): its score times how well it stands where the sentence says."""
    ranks, note = mine.scores.astype(np.float64).copy(), ""
    if place is not None and references and place != "and":  # "between A and B": A is looked at, wherever it stands
        if any(len(r) == 0 for r in references):
            note = "reference not found"
        elif place == "between" and len(references) > 1:
            ranks *= [max(_between(box, a, b) for a in references[0].boxes for b in references[1].boxes) for box in mine.boxes]
        else:
            r = references[0]
            fit = np.array([[_stands(box, other, place) for other in r.boxes] for box in mine.boxes])
            ranks *= (fit * r.scores).max(1)
            note = "relation not met" if fit[ranks.argmax()].max() < MET else ""
    if side is not None:
        good = mine.scores >= 0.6 * mine.scores.max()
        centre = (mine.boxes[:, :2] + mine.boxes[:, 2:]) / 2
        key = {"left": centre[:, 0], "right": -centre[:, 0], "top": centre[:, 1], "back": centre[:, 1], "farthest": centre[:, 1],
               "bottom": -centre[:, 1], "front": -centre[:, 1], "nearest": -centre[:, 1]}.get(side)  # fmt: skip
        if key is not None:
            ranks *= np.where(good & (key <= key[good].min() + 0.03), 1.0, 0.3)
        elif side == "middle":
            away = np.linalg.norm(centre - np.median(centre[good], axis=0), axis=1)
            ranks *= np.where(good & (away <= away[good].min() + 0.03), 1.0, 0.3)
    return ranks, note


def _stands(box: np.ndarray, other: np.ndarray, place: str) -> float:
    """0.02 ... 1: how well `box` stands at that place of `other`, both x0, y0, x1, y1. The camera's left, right, front and behind."""
    if iou(box, other) > 0.7:  # the thing itself: "the blue block in the red bowl" is not the bowl
        return 0.02
    centre, its, sides = (box[:2] + box[2:]) / 2, (other[:2] + other[2:]) / 2, (other[2:] - other[:2])
    apart = np.maximum(0, np.maximum(box[:2] - other[2:], other[:2] - box[2:]))
    near = float(np.exp(-((np.linalg.norm(apart) / max(1e-3, sides.mean())) ** 2)))
    across, down = (centre - its) / 0.04
    step = lambda x: 1 / (1 + float(np.exp(-np.clip(x, -30, 30))))
    if place in ("in", "on", "inside", "from", "of", "on top of"):
        inside = np.clip(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0, None)
        inner = float(inside.prod() / max(1e-6, (box[2:] - box[:2]).prod()))
        beside = float(inside[0] / max(1e-6, box[2] - box[0]))
        above = float(np.exp(-((max(0.0, other[1] - box[3]) / max(1e-3, 0.3 * sides[1])) ** 2))) if box[1] < other[1] else 0.0
        value = inner if place in ("in", "inside") else max(inner, beside * above)
    elif place == "left of":
        value = step(-across) * (0.3 + 0.7 * near)
    elif place == "right of":
        value = step(across) * (0.3 + 0.7 * near)
    elif place == "behind":
        value = step(-down) * (0.3 + 0.7 * near)
    elif place in ("in front of", "under"):
        value = step(down) * (0.3 + 0.7 * near)
    else:  # next to, near, beside ...
        value = near * (1 - 0.8 * float(iou(box, other) > 0.3))
    return max(0.02, value)


def _between(box: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    centre, p, q = ((x[:2] + x[2:]) / 2 for x in (box, a, b))
    span = max(1e-3, float(np.linalg.norm(p - q)))
    return max(0.02, float(np.exp(-((np.linalg.norm(centre - (p + q) / 2) / (0.35 * span)) ** 2))))


# ---- along the episode ------------------------------------------------------------------------------------------------------------------


def _path(ranked: list[_Ranked], asked: Sequence[tuple]) -> list[int | None]:
    """The candidate of every frame on the best path (Viterbi): high ranks, small steps; None where leaving the frame out is better.

    A step of a tenth of the picture costs as much as a rank three times lower; what is asked may change along the episode, and the path
    begins anew.
    """
    picks: list[int | None] = []
    start = 0
    for end in range(1, len(ranked) + 1):
        if end == len(ranked) or asked[end] != asked[start]:
            picks += _viterbi(ranked[start:end])
            start = end
    return picks


def _viterbi(ranked: list[_Ranked]) -> list[int | None]:
    """A state is a candidate, or None, which keeps the place of the last one seen."""
    # Leaving a frame out costs as much as a candidate with a third of the scores that this detector usually gives here.
    missing = np.log(0.35 * np.median([frame.scores[0] for frame in ranked if len(frame.boxes)] or [1.0]))
    # per frame: (cost so far, place or None, pick, index of the state before)
    states, history = [(0.0, None, None, -1)], []
    for frame in ranked:
        new = []
        cost, at, _, before = max(((s[0] + missing, s[1], None, i) for i, s in enumerate(states)), key=lambda s: s[0])
        new.append((cost, at, None, before))
        # The best candidate is worth its score, whatever relations did to its rank.
        worth = frame.scores[0] * frame.ranks / frame.ranks[0] if len(frame.boxes) else ()
        for k, (box, rank) in enumerate(zip(frame.boxes, worth, strict=True)):
            centre = (box[:2] + box[2:]) / 2
            steps = [s[0] - (0.0 if s[1] is None else min(3.5, float(np.sum((centre - s[1]) ** 2)) / 0.01 * 1.1)) for s in states]
            best = int(np.argmax(steps))
            new.append((steps[best] + float(np.log(max(1e-4, rank))), centre, k, best))
        history.append(new)
        states = new
    picks, i = [], int(np.argmax([s[0] for s in states]))
    for frame in reversed(history):
        picks.append(frame[i][2])
        i = frame[i][3]
    return picks[::-1]


def _gaze(ranked: _Ranked, pick: int | None, source: str) -> Gaze:
    if pick is None:
        return Gaze(note=ranked.note if ranked.note == "unnamed" else "no detection")
    return Gaze(ranked.boxes[pick].copy(), float(ranked.scores[pick]), source, ranked.note)


def _bridged(gazes: list[Gaze], asked: Sequence[tuple]) -> list[Gaze]:
    """Gaps of up to GAP frames between two finds of the same noun get the box on the straight way between them, half the score and a
    note."""
    gazes, last = list(gazes), None
    for t, gaze in enumerate(gazes):
        if not gaze.valid:
            continue
        if last is not None and 1 < t - last <= GAP + 1 and asked[last] == asked[t]:
            for between in range(last + 1, t):
                part = (between - last) / (t - last)
                box = (1 - part) * gazes[last].box + part * gaze.box
                gazes[between] = Gaze(box.astype(np.float32), 0.5 * min(gazes[last].score, gaze.score), gaze.source, "carried over")
        last = t
    return gazes
