"""How good gaze boxes are against the truth, in numbers and to the eye.

    report = detection_quality(predicted, truth, sources=sources)
    calibration(scores, hits)                             # what a score means
    contact_sheet(images, predicted, truth, labels).savefig("gaze.png")

Which frames are measured, and what is compared with what, is in `evaluation/gaze.py`.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from repro.data.overlap import iou
from repro.intervals import wilson

DASHES, PREDICTED = (0, (3, 2)), "#ffd60a"


def detection_quality(predicted: np.ndarray, truth: np.ndarray, sources: Sequence[str] | None = None, visible: np.ndarray | None = None,
                      episodes: np.ndarray | None = None, image_size: int = 200, at: float = 0.5) -> dict:  # fmt: skip
    """Numbers of N frames: predicted and true boxes (N, 4) in [0, 1], the predicted ones' `sources` (all "detector" if not given).

    Only frames whose target is visible (default: all) count for the rates; a claim about a hidden target is a false alarm.
    - detection_rate, low, high: share of visible frames with IoU >= `at`, with its Wilson 95 % interval; fallbacks are misses. The
      interval takes frames as independent; those of one episode are not, so it is too narrow: count episodes for a claim.
    - precision: the same among claims only (None without a claim). false_alarms: claims on the `hidden` frames.
    - centre_error: median distance of box centres in pixels over claims on visible frames (None without any).
    - jump_rate: share of steps within an episode (`episodes`: (N,) ids, frames in order) in which the centre of a claim moves by more
      than a tenth of the image.
    - sources: frames by source; n: visible frames.
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64).reshape(-1, 4), np.asarray(truth, dtype=np.float64).reshape(-1, 4)
    n = len(predicted)
    sources = list(sources) if sources is not None else ["detector"] * n
    visible = np.ones(n, dtype=bool) if visible is None else np.asarray(visible, dtype=bool)
    if not len(truth) == len(sources) == len(visible) == n:
        raise ValueError(f"lengths differ: {n} predicted, {len(truth)} true, {len(sources)} sources, {len(visible)} visible")
    claimed = np.array([source != "fallback" for source in sources], dtype=bool)
    counted, hit = visible & claimed, visible & claimed & (iou(predicted, truth) >= at)
    low, high = wilson(int(hit.sum()), int(visible.sum()))
    centre = (predicted[:, :2] + predicted[:, 2:]) / 2
    error = np.linalg.norm(centre - (truth[:, :2] + truth[:, 2:]) / 2, axis=1)[counted] * image_size
    follows = claimed[1:] & claimed[:-1]
    if episodes is not None:
        follows &= np.asarray(episodes)[1:] == np.asarray(episodes)[:-1]
    jumps = np.linalg.norm(np.diff(centre, axis=0), axis=1)[follows] > 0.1
    return {
        "n": int(visible.sum()), "detection_rate": _share(hit.sum(), visible.sum()), "low": low, "high": high,
        "precision": _share(hit.sum(), counted.sum()), "hidden": int((~visible).sum()), "false_alarms": int((claimed & ~visible).sum()),
        "centre_error": float(np.median(error)) if len(error) else None, "jump_rate": _share(jumps.sum(), len(jumps)),
        "sources": dict(Counter(sources)),
    }  # fmt: skip


def calibration(scores: np.ndarray, hits: np.ndarray, bins: int = 5) -> dict:
    """What a detector's score means: claims (N,) by score in `bins` equal bins of [0, 1], and how often each bin is right (hits, bool
    (N,)).

    rows: per bin that holds a claim: low, high, n, mean score, right (share), and its Wilson interval. error: expected calibration error,
    the mean distance between score and share right, weighted by n (Guo et al. 2017). separates: the chance that a right claim
    has a higher score than a wrong one (0.5: the score says nothing; None without both).
    """
    scores, hits = np.asarray(scores, np.float64), np.asarray(hits, bool)
    place, rows = np.clip((scores * bins).astype(int), 0, bins - 1), []
    for b in range(bins):
        mine = place == b
        if mine.any():
            low, high = wilson(int(hits[mine].sum()), int(mine.sum()))
            rows.append({"low": b / bins, "high": (b + 1) / bins, "n": int(mine.sum()), "score": float(scores[mine].mean()),
                         "right": float(hits[mine].mean()), "right_low": low, "right_high": high})  # fmt: skip
    error = sum(row["n"] * abs(row["score"] - row["right"]) for row in rows) / max(1, len(scores))
    right, wrong = scores[hits], scores[~hits]
    above = float(((right[:, None] > wrong) + 0.5 * (right[:, None] == wrong)).mean()) if len(right) and len(wrong) else None
    return {"n": len(scores), "rows": rows, "error": float(error), "separates": above}


def _share(k: int, n: int) -> float | None:
    return float(k / n) if n else None


def reliability(reports: dict[str, dict], title: str = "") -> Figure:
    """What scores mean: share right (with its interval) against mean score, one line a `calibration` report; the diagonal is honest."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="score = share right")
    for (name, found), style in zip(reports.items(), (("0.5", "s", "--"), ("black", "o", "-"), ("#7a5195", "^", "-.")), strict=False):
        score, right = ([row[key] for row in found["rows"]] for key in ("score", "right"))
        bars = np.abs(np.array([[row["right_low"], row["right_high"]] for row in found["rows"]]).reshape(-1, 2).T - right)
        axis.errorbar(score, right, bars, color=style[0], marker=style[1], linestyle=style[2], capsize=3,
                      label=f"{name} (n = {found['n']} claims, error {found['error']:.2f})")  # fmt: skip
    axis.set(xlabel="detector's score, mean of bin", ylabel="share with IoU >= 0.5 [95 %]", xlim=(0, 1), ylim=(0, 1.02))
    axis.set_title(title, fontsize=9)
    axis.legend(fontsize=8, loc="lower right")
    return figure


def contact_sheet(images: Sequence[np.ndarray], predicted: np.ndarray, truth: np.ndarray, labels: Sequence[str],
                  sources: Sequence[str] | None = None, columns: int = 4, title: str = "") -> Figure:  # fmt: skip
    """One picture per image (uint8 RGB): the true box dashed, the predicted one a broad band beneath it, the verdict in words.

    A true box with a NaN means that the target is hidden. Every verdict is also a word, so that the sheet reads in grey.
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64).reshape(-1, 4), np.asarray(truth, dtype=np.float64).reshape(-1, 4)
    sources = list(sources) if sources is not None else ["detector"] * len(images)
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.7 * columns, 3.15 * rows + 0.75), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    for i, (axis, image, label) in enumerate(zip(axes, images, labels, strict=False)):
        axis.imshow(image, interpolation="nearest")
        hidden, claimed = bool(np.isnan(truth[i]).any()), sources[i] != "fallback"
        if claimed:
            _draw(axis, predicted[i], image.shape, ("black", 3.6, "-"), (PREDICTED, 2.6, "-"))
        if not hidden:
            _draw(axis, truth[i], image.shape, ("white", 1.2, "-"), ("black", 1.2, DASHES))
        axis.set_title(f"{_wrap(label)}\n{_verdict(predicted[i], truth[i], hidden, claimed)}", fontsize=8)
    handles = [Line2D([], [], color="black", linestyle=DASHES, label="truth (dashed)"),
               Line2D([], [], color=PREDICTED, linewidth=3, label="predicted (broad band)")]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _draw(axis, box: np.ndarray, shape: tuple, *lines: tuple) -> None:
    """A box in [0, 1] on pixels whose centres are whole numbers; each of `lines` (colour, width, style) lies on the one before."""
    (x0, y0, x1, y1), height, width = box, shape[0], shape[1]
    for colour, thickness, style in lines:
        axis.add_patch(Rectangle((x0 * width - 0.5, y0 * height - 0.5), (x1 - x0) * width, (y1 - y0) * height, fill=False,
                                 edgecolor=colour, linewidth=thickness, linestyle=style, clip_on=False))  # fmt: skip


def _verdict(predicted: np.ndarray, truth: np.ndarray, hidden: bool, claimed: bool) -> str:
    if hidden:
        return "FALSE ALARM: target hidden" if claimed else "hidden, none claimed"
    if not claimed:
        return "MISS: fallback"
    overlap = float(iou(predicted, truth))
    return f"{'hit' if overlap >= 0.5 else 'MISS'}, IoU {overlap:.2f}"


def _wrap(label: str, width: int = 34) -> str:
    """At most two lines."""
    if len(label) <= width:
        return label
    cut = label.rfind(" ", 0, width + 1)
    cut = width if cut <= 0 else cut
    rest = label[cut:].strip()
    return f"{label[:cut]}\n{rest if len(rest) <= width else rest[: width - 1] + '…'}"
