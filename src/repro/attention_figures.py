"""Pictures of attention: maps over frames, models side by side, an episode as a strip, curves over time, numbers with their controls.

    figure = compare([(instruction, picture, {"baseline": map, "gaze": map}, box)], numbers={"baseline": metrics, "gaze": metrics})
    figure = gallery(pictures, maps, boxes, steps, title=instruction)
    figure = curve({"baseline": maps, "gaze": maps}, boxes, steps)
    figure = dots({"baseline": metrics, "gaze": metrics})

Maps are drawn relative to uniform attention (1 = uniform) over a faded grey picture, light to dark: they read the same in grey print.
Boxes are black with a white rim. `pictures.keep` writes a figure to disk.
"""

import textwrap

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from repro.attention import UNIFORM, caption, mass_in, quantities

MAP = LinearSegmentedColormap.from_list("attention", ["white", *colormaps["inferno_r"](np.linspace(0.12, 0.92, 8))])  # evenly darker
SCALE = "attention per token / uniform (1 = uniform)"
LEAST = 8.0  # the darkest shade is at least this much times uniform: maps that are nearly flat look it
STYLES = (("0.0", "-", "o"), ("0.45", "--", "s"), ("0.25", ":", "^"), ("0.6", "-.", "D"))  # grey, line, marker of each model


# ---- one picture ---------------------------------------------------------------------------------------------------------------

def relative(static: np.ndarray) -> np.ndarray:
    """The map with mean 1: attention of each token in units of uniform attention."""
    return static / max(static.sum(), 1e-12) * static.size


def overlay(image: np.ndarray, static: np.ndarray, box: np.ndarray | None = None, top: float | None = None) -> np.ndarray:
    """uint8 (H, W, 3): the map over the faded grey picture, light to dark, and the box; `top` is the value drawn darkest, in units of
    uniform attention (default: the map's own maximum; share one between panels)."""
    height, width = image.shape[:2]
    faded = 0.65 + 0.35 * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] / 255
    values = cv2.resize(relative(static).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colour = MAP(Normalize(0, top or float(relative(static).max()), clip=True)(values))[..., :3]
    drawn = np.ascontiguousarray((255 * faded * colour).round().astype(np.uint8))
    return drawn if box is None else boxed(drawn, box)


def boxed(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A copy of the picture with the box (xyxy in [0, 1]) in black with a white rim."""
    drawn, (height, width) = image.copy(), image.shape[:2]
    thick = max(1, round(width / 200))
    x0, y0, x1, y1 = (np.asarray(box, float) * (width, height, width, height)).round().astype(int)
    for shade, wide in ((255, 3 * thick), (0, thick)):
        cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), (shade,) * 3, wide)
    return drawn


def _big(image: np.ndarray, side: int = 400) -> np.ndarray:
    return cv2.resize(image, (round(side * image.shape[1] / image.shape[0]), side), interpolation=cv2.INTER_LINEAR)


def _bar(figure: Figure, axes, top: float) -> None:
    """The colour scale that all panels share, with uniform attention marked."""
    bar = figure.colorbar(ScalarMappable(Normalize(0, top), MAP), ax=axes, shrink=0.9, pad=0.01, aspect=30)
    bar.ax.tick_params(labelsize=8)
    bar.set_label(SCALE, fontsize=8)
    bar.ax.axhline(1, color="black", linewidth=1.2)


def _bare(axis) -> None:
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


# ---- models side by side -------------------------------------------------------------------------------------------------------

def compare(rows: list[tuple[str, np.ndarray, dict[str, np.ndarray], np.ndarray]], note: str = "",
            numbers: dict[str, dict[str, dict]] | None = None, counted: str = "episodes") -> Figure:
    """One row per frame, the picture and then one map per model (or per reduction) on one colour scale, its mass in the box below.

    rows: (label, static image uint8 (H, W, 3), {model name: static map (rows, columns)}, gaze box xyxy in [0, 1]); every row names the
    same models in the same order. numbers: {model name: metrics of attention.averages}, written under the columns with interval and n of
    what is `counted`.
    """
    names = list(rows[0][2])
    top = max(LEAST, max(float(relative(static).max()) for _, _, maps, _ in rows for static in maps.values()))
    lines = [_numbers(numbers[name]) for name in names] if numbers else []
    figure = Figure(figsize=(2.6 * (1 + len(names)) + 1.0, 2.95 * len(rows) + 0.5 + 0.14 * (1 + max(map(len, lines), default=0))),
                    layout="compressed", dpi=110)
    axes = figure.subplots(len(rows), 1 + len(names), squeeze=False)
    for at, (line, (label, image, maps, box)) in enumerate(zip(axes, rows, strict=True)):
        big = _big(image)
        line[0].imshow(boxed(big, box))
        line[0].set_xlabel(textwrap.fill(label, 38), fontsize=8)
        for axis, (name, static) in zip(line[1:], maps.items(), strict=True):
            axis.imshow(overlay(big, static, box, top))
            inside, area = mass_in(static, box), mass_in(np.ones_like(static), box)
            axis.set_xlabel(f"mass in the box {inside:.3f}, uniform {area:.3f}\n(this frame, n = 1)", fontsize=8)
            if at == 0:
                axis.set_title(name, fontsize=10)
        for axis in line:
            _bare(axis)
    axes[0, 0].set_title("frame and gaze box", fontsize=10)
    for axis, text in zip(axes[-1, 1:], lines, strict=False):
        axis.set_xlabel(axis.get_xlabel() + "\n\n" + "\n".join(text), fontsize=6.8)  # its longest line fits below a column
    if lines:
        said = f"All measured frames, mean over\n{counted} [95 % interval]:"
        axes[-1, 0].set_xlabel(f"{axes[-1, 0].get_xlabel()}\n\n{said}", fontsize=8)
    _bar(figure, axes, top)
    figure.get_layout_engine().set(h_pad=0.08)
    figure.supxlabel(textwrap.fill(note or caption(), 45 * (1 + len(names))), fontsize=7)
    return figure


def _numbers(metrics: dict[str, dict]) -> list[str]:
    """Lines under a column: attention mass with n and interval, its controls, and the pointing game."""
    wanted = [("mass in the box", "attention mass in the gaze box"), ("another episode's box", "attention mass in another episode's box"),
              ("minus same task's box", "attention mass, gaze box minus the same task's box elsewhere"),
              ("uniform", f"attention mass, {UNIFORM['mass']}")]
    wanted += [("pointing game", name) for name in metrics if name.startswith("pointing") and name.endswith("in the gaze box")]
    found = [(label, metrics[name]) for label, name in wanted if name in metrics]
    return [f"{label} {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}], n = {m['n']}" for label, m in found]


# ---- one episode ---------------------------------------------------------------------------------------------------------------

def gallery(images: list[np.ndarray], statics: np.ndarray, boxes: np.ndarray, steps: np.ndarray, title: str = "", every: int = 1,
            columns: int = 8, note: str = "") -> Figure:
    """A strip of an episode's frames, every `every`-th of those given: map, box, time step, attention mass in the box."""
    picks, steps = range(0, len(images), every), np.asarray(steps)
    top = max(LEAST, max(float(relative(statics[i]).max()) for i in picks))
    lines = -(-len(picks) // columns)
    columns = -(-len(picks) // lines)  # lines of about one length
    figure = Figure(figsize=(1.75 * columns + 0.9, 2.3 * lines + 0.6), layout="constrained", dpi=110)
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis in axes.reshape(-1):
        _bare(axis)
    for axis, i in zip(axes.reshape(-1), picks, strict=False):
        inside, area = mass_in(statics[i], boxes[i]), mass_in(np.ones_like(statics[i]), boxes[i])
        axis.imshow(overlay(_big(images[i], 300), statics[i], boxes[i], top))
        axis.set_xlabel(f"step {steps[i]}\nmass in the box {inside:.3f}\n{inside / area:.1f} x uniform", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    _bar(figure, axes, top)
    shown = f"{len(picks)} of {len(images)} measured frames of one episode, steps {steps[0]} to {steps[-1]}. "
    figure.supxlabel(textwrap.fill(shown + (note or caption()), 24 * columns + 12), fontsize=7)
    return figure


def curve(series: dict[str, np.ndarray], boxes: np.ndarray, steps: np.ndarray, title: str = "", note: str = "") -> Figure:
    """Attention mass in the gaze box over an episode's time steps, one line per model, with what uniform attention puts there."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained", dpi=130)
    axis = figure.subplots()
    area = [mass_in(np.ones_like(next(iter(series.values()))[0]), box) for box in boxes]
    axis.fill_between(steps, area, color="0.87", step=None, label="uniform attention (box area)", linewidth=0)
    for (name, statics), (grey, line, marker) in zip(series.items(), STYLES * len(series), strict=False):
        masses = [mass_in(static, box) for static, box in zip(statics, boxes, strict=True)]
        axis.plot(steps, masses, line, color=grey, marker=marker, markersize=3.5, markevery=max(1, len(masses) // 12), label=name,
                  linewidth=1.4)
    axis.set(xlabel=f"time step (1 episode, n = {len(boxes)} frames)", ylabel="attention mass in the gaze box")
    axis.set_ylim(0)
    axis.margins(x=0.01)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.set_title(title, fontsize=10)
    figure.supxlabel(textwrap.fill(note or caption(), 100), fontsize=7)
    return figure


# ---- numbers -------------------------------------------------------------------------------------------------------------------

def dots(numbers: dict[str, dict[str, dict]], tolerance: float = 5, size: int = 200, note: str = "") -> Figure:
    """One panel a quantity: each model in its gaze box and, hollow, in the controls' boxes, with 95 % intervals; dashed: uniform."""
    found = quantities(tolerance, size)
    figure = Figure(figsize=(3.1 * len(found), 3.4), layout="constrained", dpi=130)
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    kinds = (("the gaze box", "o", "black"), ("another episode's box", "s", "white"),
             ("the same task's box elsewhere", "^", "0.75"))
    for axis, (key, (name, at)) in zip(axes, found.items(), strict=True):
        for x, metrics in enumerate(numbers.values()):
            for shift, (where, marker, fill) in zip((-0.2, 0, 0.2), kinds, strict=True):
                if (m := metrics.get(f"{name} {at} {where}")) is not None:
                    axis.errorbar(x + shift, m["value"], [[m["value"] - m["low"]], [m["high"] - m["value"]]], fmt=marker, color="black",
                                  markerfacecolor=fill, markersize=6, capsize=2, linewidth=1, label=where if x == 0 else None)
        own, first = f"{name} {at} the gaze box", next(iter(numbers.values()))
        axis.axhline(first[f"{name}, {UNIFORM[key]}"]["value"], color="black", linestyle="--", linewidth=0.9, label="uniform attention")
        axis.set_xticks(range(len(numbers)), [f"{model}\nn = {m[own]['n']}" for model, m in numbers.items()], fontsize=8)
        axis.set_xlim(-0.5, len(numbers) - 0.5)
        axis.set_ylim(0)
        axis.set_title(name, fontsize=10)
        axis.tick_params(axis="y", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean over episodes, 95 % interval", fontsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.supxlabel("n counts episodes. " + (note or caption()), fontsize=7)
    return figure
