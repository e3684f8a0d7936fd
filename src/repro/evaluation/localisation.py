"""How well [cx, cy, scale] points at what changed: numbers of each pair, floors, and the ceiling that three numbers allow.

    columns = numbers(vectors, boxes)                                  # (n,) each, NaN for pairs without a box
    metrics = averages(columns)                                        # {name: {value, n, low, high}}
    for name, guesses in floors(training_boxes, pairs, boxes).items(): ...

Only localisable pairs are scored: changed, with a box from a mask or as given. A box that was guessed by differencing is no truth, and a
changed pair without one has nothing to point at. There is no published score of [cx, cy, scale] on LEVIR; numbers stand beside floors:

- constant: the mean vector of the training boxes, for every pair;
- whole frame: (0.5, 0.5, 1), what upstream trains on; its "success rate" by pointing is high for nothing;
- random: another pair's vector, drawn from training;
- differencing: the largest part of the matched pictures' difference (data/levir_boxes.py), no learning;
- edges gained: the largest part of where edges came (evaluation/edge_floor.py), two numbers chosen on training pairs, no learning;
- ceiling: the true box said in three numbers, its aspect lost.
"""

import numpy as np

from repro.data import levir_boxes, overlap
from repro.evaluation.edge_floor import WHOLE, tuned
from repro.intervals import bootstrap, wilson
from repro.machine import UserError

RATES = ("hit rate at IoU 0.25", "hit rate at IoU 0.5", "pointing in the box", "pointing in the mask")  # shares of pairs: Wilson
CONSTANT = "constant (training mean)"
GATED = "IoU, 0 where the gate is silent"
COMPONENTS = ("1 component", "2 components", "3+ components")  # 8-connected parts of a pair's mask (data/levir_boxes.py)


def numbers(vectors: np.ndarray, boxes: np.ndarray, masks: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Columns (n,) of vectors (n, 3) against boxes (n, 4) xyxy in [0, 1]; NaN where a box is NaN.

    IoU of the decoded square (cut off at the picture's border), hit rates, errors in picture widths, whether the predicted centre lies in
    the box and, with masks (n, H, W) of classes, on a changed pixel; F1 of the cells of a 3x3 grid that square and box touch.
    """
    vectors, boxes = np.asarray(vectors, np.float64), np.asarray(boxes, np.float64)
    if vectors.shape != (len(boxes), 3) or not np.isfinite(vectors).all() or vectors.min(initial=0) < 0 or vectors.max(initial=0) > 1:
        raise UserError("these are no [cx, cy, scale]", f"({len(boxes)}, 3) in [0, 1]",
                        f"{vectors.shape}, {vectors.min(initial=1)} to {vectors.max(initial=0)}")
    has = ~np.isnan(boxes).any(1)
    true, said = levir_boxes.encode(boxes), vectors
    squares = levir_boxes.decode(said)
    iou = overlap.iou(squares, boxes)
    inside = ((said[:, :2] >= boxes[:, :2]) & (said[:, :2] <= boxes[:, 2:])).all(1)
    apart = np.abs(said - true)
    found = {"IoU of the square": iou, "hit rate at IoU 0.25": iou >= 0.25, "hit rate at IoU 0.5": iou >= 0.5,
             "pointing in the box": inside,
             "centre error (picture widths)": np.hypot(apart[:, 0], apart[:, 1]), "scale error (picture widths)": apart[:, 2],
             "F1 of 3x3 cells": grid_f1(squares, boxes)}  # fmt: skip
    if masks is not None:
        height, width = masks.shape[1:]
        at = (np.minimum((said[:, 1] * height).astype(int), height - 1), np.minimum((said[:, 0] * width).astype(int), width - 1))
        found["pointing in the mask"] = masks[np.arange(len(masks)), *at] != 0
    return {name: np.where(has, column, np.nan) for name, column in found.items()}


def cells(boxes: np.ndarray, side: int = 3) -> np.ndarray:
    """(n, side, side) bool: cells of a grid over the picture that boxes (n, 4) touch with more than a border."""
    edges = np.arange(side + 1) / side
    touch = lambda low, high: (np.minimum(edges[1:], high[:, None]) - np.maximum(edges[:-1], low[:, None])) > 1e-6
    return touch(boxes[:, 1], boxes[:, 3])[:, :, None] & touch(boxes[:, 0], boxes[:, 2])[:, None, :]


def grid_f1(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(n,) F1 of the cells that two boxes (n, 4) touch; 0 where they share none."""
    a, b = cells(np.asarray(one, float)), cells(np.asarray(two, float))
    return 2 * (a & b).sum((1, 2)) / np.maximum(a.sum((1, 2)) + b.sum((1, 2)), 1)


def gated(iou: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(n,) IoU of what the agent really says: 0 where its gate tells no change (below 0.5) and no square is drawn; NaN stays."""
    return np.where(np.isnan(iou) | (np.asarray(probability) >= 0.5), iou, 0.0)


def by_components(columns: dict[str, np.ndarray], counts: np.ndarray, seed: int = 0) -> dict[str, dict]:
    """{"mean IoU of the square, 2 components": metric ...}: IoU and pointing apart, by how many parts the mask has.

    counts (n,): 0 for pairs without a mask or a part in it; a group without a pair has no metric. The box to be found is the largest
    part's, so with several a model has to choose.
    """
    found, shown = {}, {name: columns[name] for name in ("IoU of the square", "pointing in the box")}
    for i, group in enumerate(COMPONENTS, 1):
        rows = np.minimum(counts, len(COMPONENTS)) == i
        some = averages({name: values[rows] for name, values in shown.items()}, seed)
        found |= {f"{name}, {group}": metric for name, metric in some.items()}
    return found


def averages(columns: dict[str, np.ndarray], seed: int = 0) -> dict[str, dict]:
    """{name: metric}: means over the pairs that have the number, rates with Wilson's interval, other means with a bootstrap over pairs."""
    found = {}
    for name, values in columns.items():
        known = values[~np.isnan(np.asarray(values, float))].astype(float)
        if not len(known):
            continue
        low, high = wilson(int(known.sum()), len(known)) if name in RATES else bootstrap(known, (0, 1), seed)
        value = float(known.mean())
        found[f"mean {name}" if name == "IoU of the square" else name] = {"value": value, "n": len(known), "low": min(low, value),
                                                                         "high": max(high, value)}  # fmt: skip
    return found


def difference(ours: np.ndarray, theirs: np.ndarray, seed: int = 0) -> dict:
    """Metric: mean of ours minus theirs over the same pairs, paired bootstrap."""
    apart = np.asarray(ours, float) - np.asarray(theirs, float)
    apart = apart[~np.isnan(apart)]
    (low, high), value = bootstrap(apart, (-1, 1), seed), float(apart.mean())
    return {"value": value, "n": len(apart), "low": min(low, value), "high": max(high, value)}


def gate(probability: np.ndarray, changed: np.ndarray, states: list[str]) -> dict[str, dict]:
    """Metrics: share of pairs for which the gate (change where >= 0.5) is right, over all and by state; by state its mean probability too.

    Changed without a box counts as changed: the gate has no third answer.
    """
    probability = np.asarray(probability, float)
    right = (probability >= 0.5) == np.asarray(changed, bool)
    groups = {"gate accuracy": np.ones(len(right), bool),
              **{f"gate accuracy, {state}": np.array(states) == state for state in sorted(set(states))}}
    found = {}
    for name, rows in groups.items():
        low, high = wilson(int(right[rows].sum()), int(rows.sum()))
        found[name] = {"value": float(right[rows].mean()), "n": int(rows.sum()), "low": low, "high": high}
    for state in sorted(set(states)):
        some = probability[np.array(states) == state]
        low, high = bootstrap(some, (0, 1))
        found[f"gate probability, {state}"] = {"value": float(some.mean()), "n": len(some), "low": low, "high": high}
    return found


def says_change(probability: np.ndarray | None, states: list[str]) -> dict[str, dict]:
    """Metrics: share of the pairs of each state of which a gate says "change", whatever would be right; none without a gate."""
    said, found = None if probability is None else np.asarray(probability) >= 0.5, {}
    for state in sorted(set(states)) if said is not None else ():
        rows = np.array(states) == state
        low, high = wilson(int(said[rows].sum()), int(rows.sum()))
        found[f"says change, {state}"] = {"value": float(said[rows].mean()), "n": int(rows.sum()), "low": low, "high": high}
    return found


def floors(taught, training: np.ndarray, pairs, boxes: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """{name: vectors (n, 3)} for all pairs of a store and their boxes (n, 4); taught: the training pairs, training: their boxes (m, 4), NaN
    where there is none.

    Where nothing differs, differencing says the whole frame, as both do without a box. The last one is the ceiling.
    """
    known = levir_boxes.encode(training[~np.isnan(training).any(1)])
    if not len(known):
        raise UserError("there is no box among the training pairs", "at least one localisable pair", f"{len(training)} pairs without")
    n, rng, rows = len(boxes), np.random.default_rng([seed, 7]), np.flatnonzero(~np.isnan(boxes).any(1))
    differing, edges = np.tile(WHOLE, (n, 1)), np.tile(WHOLE, (n, 1))
    edges[rows] = tuned(taught, training).vectors(pairs, rows)
    for row in rows:  # one after the other: memory does not grow with the data
        before, after = pairs.pictures([row])
        if (box := levir_boxes.difference_box(before[0], after[0])) is not None:
            differing[row] = levir_boxes.encode(box)
    true = levir_boxes.encode(boxes)
    return {CONSTANT: np.tile(known.mean(0), (n, 1)), "whole frame": np.tile(WHOLE, (n, 1)),
            "random (a training pair's)": known[rng.integers(len(known), size=n)], "differencing": differing,
            "edges gained (tuned on training)": edges, "ceiling (three numbers)": np.where(np.isnan(true), WHOLE, true)}  # fmt: skip
