"""How good gaze boxes are against the truth, in numbers and to the eye.

    report = detection_quality(predicted, truth, sources=sources)
    contact_sheet(images, predicted, truth, labels).savefig("gaze.png")
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from repro.gaze import detectors
from repro.gaze.phrase import parse
from repro.machine import UserError
from repro.results import wilson

DASHES, PREDICTED = (0, (3, 2)), "#ffd60a"


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) x0, y0, x1, y1, broadcast against each other; 0 where both are empty."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inside = size[..., 0] * size[..., 1]
    union = area(a) + area(b) - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def area(box: np.ndarray) -> np.ndarray:
    """Area of boxes (..., 4); an inverted box has none."""
    box = np.asarray(box, dtype=np.float64)
    return np.clip(box[..., 2] - box[..., 0], 0, None) * np.clip(box[..., 3] - box[..., 1], 0, None)


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


def _share(k: int, n: int) -> float | None:
    return float(k / n) if n else None


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


# ---- a store's detector against its true boxes ------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Scored:
    """A detector's boxes on frames of a store, beside the simulator's; lists of one entry a frame."""

    detector: str
    predicted: np.ndarray  # (N, 4)
    truth: np.ndarray  # (N, 4), NaN where the target is hidden
    sources: list[str]
    tasks: list[str]
    instructions: list[str]
    episodes: np.ndarray
    images: list[np.ndarray]

    def quality(self, task: str | None = None) -> dict:
        """`detection_quality` of the frames of one task, or of all."""
        pick = np.array([task in (None, t) for t in self.tasks])
        chosen = [s for s, p in zip(self.sources, pick, strict=True) if p]
        visible = ~np.isnan(self.truth[pick]).any(1)
        return detection_quality(self.predicted[pick], np.nan_to_num(self.truth[pick]), chosen, visible, self.episodes[pick])

    def table(self) -> str:
        """Markdown: one row a task, and all."""
        lines = ["| task | frames | detected [95 %] | precision | centre error, px | jump rate | sources |", "|---" * 7 + "|"]
        cell = lambda value, form: "-" if value is None else format(value, form)
        for task in [*sorted(set(self.tasks)), None]:
            q = self.quality(task)
            sources = ", ".join(f"{name} {n}" for name, n in sorted(q["sources"].items()))
            lines.append(f"| {task or '**all**'} | {q['n']} | {cell(q['detection_rate'], '.2f')} [{q['low']:.2f}, {q['high']:.2f}] | "
                         f"{cell(q['precision'], '.2f')} | {cell(q['centre_error'], '.1f')} | {cell(q['jump_rate'], '.2f')} | {sources} |")
        return "\n".join(lines)

    def sheet(self, count: int = 12) -> Figure:
        """Frames spread over the episodes, each with its verdict."""
        picks = np.linspace(0, len(self.tasks) - 1, min(count, len(self.tasks))).round().astype(int)
        return contact_sheet([self.images[i] for i in picks], self.predicted[picks], self.truth[picks],
                             [self.instructions[i] for i in picks], [self.sources[i] for i in picks], title=f"detector {self.detector}")


def score(store, detector: str = "colour", every: int = 5) -> Scored:
    """Run a detector on every `every`-th frame of a store that `crops.annotate` has given its true boxes.

    The truth is `gaze.box` where its source is truth or state; elsewhere the target is hidden.
    """
    if detector != "colour":
        raise UserError(f"there is no detector {detector!r} to score", expected="colour")
    if "gaze.box" not in store.columns:
        raise UserError(f"{store.folder} has no gaze boxes", expected="column gaze.box", next_step="annotate it first (crops.annotate)")
    found = {name: [] for name in ("predicted", "truth", "sources", "tasks", "instructions", "episodes", "images")}
    for info in store.episodes:
        columns = store.read(info.index, ["observation.images.static", "gaze.box", "gaze.source"]).columns
        phrase = parse(info.task)
        for t in range(0, info.length, every):
            image = columns["observation.images.static"][t]
            gaze = detectors.colour(image, phrase)
            known = columns["gaze.source"][t] in ("truth", "state")
            box = columns["gaze.box"][t] if known else np.full(4, np.nan)
            values = (gaze.box, box, gaze.source, info.task_id, info.task, info.index, image)
            for name, value in zip(found, values, strict=True):
                found[name].append(value)
    arrays = {name: np.array(found.pop(name)) for name in ("predicted", "truth", "episodes")}
    return Scored(detector, **arrays, **found)
