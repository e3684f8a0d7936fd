"""Pictures of the change agent: both dates, the truth and what was answered, failures included; maps; scatter of centres.

    figure = sheet(pairs, rows, {"ours": answers, "guide": answers})
    figure = maps_sheet(pairs, rows, {"ours, reading": maps})
    figure = scatter({"ours": answers.vectors}, boxes)

Truth is a solid line, an answer a dashed one with a cross, both black or blue and orange with a white rim, so that they part in grey too.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from repro.attention_figures import overlay
from repro.data import levir_boxes, overlap
from repro.evaluation import localisation
from repro.intervals import bootstrap

TRUE, SAID = {"edgecolor": "#0072b2", "linestyle": "-"}, {"edgecolor": "#e69f00", "linestyle": (0, (4, 2))}
VERDICT = {  # what an answer is to a pair of this state, where the gate is silent and where there is a square
    ("localisable", True): "missed", ("localisable", False): "", ("unchanged", True): "right", ("unchanged", False): "false alarm",
    ("not localisable", True): "missed", ("not localisable", False): "no box to check",
}  # fmt: skip
RIM = [withStroke(linewidth=4, foreground="white")]


def chosen(iou: np.ndarray, states: Sequence[str], count: int = 3) -> np.ndarray:
    """Rows for a sheet: the best, the middle and the worst by IoU, then one of each other state. iou (n,), NaN without a box."""
    known = np.flatnonzero(~np.isnan(iou))
    order = known[np.argsort(-iou[known], kind="stable")]
    middle = max(0, len(order) // 2 - count // 2)
    picks = [*order[:count], *order[middle : middle + count], *order[-count:]]
    others = [np.flatnonzero(np.array(states) == state)[:1] for state in ("not localisable", "unchanged")]
    return np.array(list(dict.fromkeys([*map(int, picks), *(int(row) for found in others for row in found)])), int)


def _draw(axis, box: np.ndarray, style: dict, height: int, width: int) -> None:
    x0, y0, x1, y1 = np.asarray(box, float) * (width, height, width, height)
    axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, linewidth=1.8, path_effects=RIM, **style))
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))  # a box on the border does not widen the picture


def sheet(pairs, rows: Sequence[int], answers: dict, title: str = "") -> Figure:
    """A row a pair: T1, T2, the truth on T2, then each model's square on T2 with its IoU, or "no change" where its gate says so, and
    whether that is right, a miss or a false alarm.

    answers: {name: change_experiments.Answers}, of all pairs of the store.
    """
    names, states = ["T1", "T2", "truth", *answers], pairs.column("state")
    figure = Figure(figsize=(1.9 * len(names), 2.15 * len(rows) + 0.7), layout="constrained", dpi=72)
    axes = np.atleast_2d(figure.subplots(len(rows), len(names), squeeze=False))
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=10)
    for line, row in zip(axes, rows, strict=True):
        before, after = (picture[0] for picture in pairs.pictures([row]))
        height, width = after.shape[:2]
        for axis, picture in zip(line, [before, *[after] * (len(names) - 1)], strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        box = np.asarray(pairs.column("box_main")[row]) if states[row] == "localisable" else None
        if box is not None:
            _draw(line[2], box, TRUE, height, width)
        line[2].set_xlabel(states[row], fontsize=8)
        for axis, one in zip(line[3:], answers.values(), strict=True):
            vector, square = one.vectors[row], levir_boxes.decode(one.vectors[row])
            silent = one.changed is not None and bool(one.changed[row] < 0.5)
            if not silent:
                _draw(axis, square, SAID, height, width)
                axis.plot(vector[0] * width, vector[1] * height, "+", color="#e69f00", markersize=9, markeredgewidth=1.8, path_effects=RIM)
            if box is not None:
                _draw(axis, box, TRUE, height, width)
            said = [] if one.changed is None else [f"{'no ' * silent}change (p = {one.changed[row]:.2f})"]
            said += [VERDICT[states[row], silent] or f"IoU {float(overlap.iou(square, box)):.2f}"]
            axis.set_xlabel(",\n".join(said) if len(said) > 1 else said[0], fontsize=8)
    figure.suptitle(f"{title}\nsolid blue: truth; dashed orange and cross: answer".strip(), fontsize=10)
    return figure


def maps_sheet(pairs, rows: Sequence[int], maps: dict[str, np.ndarray], count: int = 6) -> Figure:
    """A row a pair: T2 with the true box, then each map (m, rows, columns) over it, with the share of it that lies in the box."""
    from repro.attention import mass_in

    rows = list(rows)[:count]
    figure = Figure(figsize=(2.1 * (1 + len(maps)), 2.3 * len(rows) + 0.6), layout="constrained", dpi=100)
    axes = np.atleast_2d(figure.subplots(len(rows), 1 + len(maps), squeeze=False))
    for i, (line, row) in enumerate(zip(axes, rows, strict=True)):
        after, box = pairs.pictures([row])[1][0], np.asarray(pairs.column("box_main")[row])
        line[0].imshow(after)
        _draw(line[0], box, TRUE, *after.shape[:2])
        line[0].set_xlabel(f"box: {(box[2:] - box[:2]).prod():.2f} of the picture", fontsize=8)
        for axis, (name, found) in zip(line[1:], maps.items(), strict=True):
            axis.imshow(overlay(after, found[i], box))
            axis.set_xlabel(f"{mass_in(found[i], box):.2f} of it in the box", fontsize=8)
            if i == 0:
                axis.set_title(name, fontsize=10)
        for axis in line:
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("T2 and the box", fontsize=10)
    figure.suptitle("light: nothing; dark: the most of each map. Solid blue, or black and white: the true box", fontsize=9)
    return figure


def _mean(values: np.ndarray) -> str:
    """A mean of shares with its 95 % interval."""
    low, high = bootstrap(values, (0, 1))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def scatter(vectors: dict[str, np.ndarray], boxes: np.ndarray) -> Figure:
    """A column a model: what it says against the truth for cx, cy and scale, with the diagonal; pairs with a box. Mean errors, 95 %."""
    has = ~np.isnan(boxes).any(1)
    true, names = levir_boxes.encode(boxes[has]), ("cx", "cy", "scale")
    figure = Figure(figsize=(2.6 * len(vectors), 7.8), layout="constrained", dpi=100)
    axes = figure.subplots(3, len(vectors), squeeze=False, sharex="row", sharey="row")
    for column, (name, said) in enumerate(vectors.items()):
        for i, what in enumerate(names):
            axis = axes[i, column]
            axis.plot([0, 1], [0, 1], color="0.6", linewidth=1)
            axis.plot(true[:, i], said[has, i], "o", color="black", alpha=0.35, markersize=3, markeredgewidth=0)
            axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=f"true {what} (picture widths)")
            axis.set_title(f"mean error {_mean(np.abs(true[:, i] - said[has, i]))}", fontsize=8)
        axes[0, column].set_title(f"{name} (n = {int(has.sum())})\n{axes[0, column].get_title()}", fontsize=8)
    for i, what in enumerate(names):
        axes[i, 0].set_ylabel(f"{what} it says (picture widths)")
    return figure


def reach(vectors: dict[str, np.ndarray], boxes: np.ndarray) -> Figure:
    """Share of pairs whose IoU is at least x, a line for each model, floor and the ceiling; they differ in dash as well as in shade."""
    figure = Figure(figsize=(9.5, 4), layout="constrained", dpi=110)
    axis, dashes = figure.subplots(), ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3))]
    for i, (name, said) in enumerate(vectors.items()):
        iou = localisation.numbers(said, boxes)["IoU of the square"]
        iou = np.sort(iou[~np.isnan(iou)])
        share = 1 - np.arange(len(iou)) / max(1, len(iou))
        axis.step([0, *iou, 1], [1, *share, 0], where="pre", linestyle=dashes[i % len(dashes)], color=f"{0.45 * (i // len(dashes)):.2f}"
                  if i >= len(dashes) else f"C{i}", label=f"{name}: {_mean(iou)}")  # fmt: skip
    axis.set(xlabel="IoU of the square with the box, at least", ylabel="share of pairs", xlim=(0, 1), ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(title=f"mean IoU and 95 % interval, n = {len(iou)} pairs", title_fontsize=8, fontsize=8, frameon=False, handlelength=3.5,
                loc="center left", bbox_to_anchor=(1.01, 0.5))  # beside the lines
    return figure
