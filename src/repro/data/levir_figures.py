"""Figures of pairs: both dates, the mask, boxes. Blue and orange boxes, in full and broken lines; masks in LEVIR-MCI's colours.

    pictures.keep(contact_sheet([pairs[i] for i in range(8)]), "figures/levir_pairs.png")
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from repro.data import levir_boxes
from repro.data.levir_pairs import Pair

MAIN, UNION, SQUARE, GUESS = "#1f6fd6", "#e08214", "#ffffff", "#f0d020"
TILE, GAP, WORDS = 1.55, 0.14, 0.36  # inches: a picture with its gutter, between pairs, the two lines above
MASK = np.array([[0, 0, 0], [255, 255, 0], [255, 0, 0]], np.uint8)  # nothing, road, building: as in LEVIR-MCI's label_rgb


def outline(axis, box: np.ndarray | None, size: tuple[int, int], colour: str, style: str) -> None:
    """A box (4,) in [0, 1] on a picture of `size` (height, width)."""
    if box is not None:
        height, width = size
        corner, sides = (box[0] * width - 0.5, box[1] * height - 0.5), ((box[2] - box[0]) * width, (box[3] - box[1]) * height)
        axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor="black", linewidth=2.6))
        axis.add_patch(Rectangle(corner, *sides, fill=False, edgecolor=colour, linewidth=1.4, linestyle=style))


def contact_sheet(pairs: Sequence[Pair], across: int = 2, square: bool = False, title: str = "") -> Figure:
    """Each pair as before | after | mask (where there is one), under its state and first caption; boxes on the second date.

    square: also the square that [cx, cy, scale] makes of the main box, and the intersection over union that it keeps.
    """
    masked = any(p.mask is not None for p in pairs)
    wide, rows = (3 if masked else 2), -(-len(pairs) // across)
    width, height = (TILE * wide + GAP) * across, (TILE + WORDS) * rows + 0.7  # inches
    figure = Figure(figsize=(width, height), dpi=100)
    for k, p in enumerate(pairs):
        row, column = divmod(k, across)
        left, bottom = column * (TILE * wide + GAP) + GAP / 2, height - 0.35 - (row + 1) * (TILE + WORDS)
        side = 0.97 * TILE
        axes = [figure.add_axes(((left + i * TILE) / width, bottom / height, side / width, side / height)) for i in range(wide)]
        for axis in axes:
            axis.set_axis_off()
        tiles = [p.before, p.after] + ([MASK[p.mask]] if p.mask is not None else [])
        for axis, tile in zip(axes, tiles, strict=False):
            axis.imshow(tile, interpolation="nearest")
        outline(axes[1], p.box_union if p.components > 1 else None, p.after.shape[:2], UNION, "--")
        guess = p.box_source == "diff"
        outline(axes[1], p.box_main, p.after.shape[:2], *((GUESS, "-.") if guess else (MAIN, "-")))
        words = ("guessed; " if guess else "") + p.state + (f", {p.components} part{'s' * (p.components > 1)}" if p.components else "")
        if square and p.box_main is not None and not guess:
            outline(axes[1], levir_boxes.decode(levir_boxes.encode(p.box_main)), p.after.shape[:2], SQUARE, ":")
            words += f"; square: IoU {levir_boxes.ceiling(p.box_main):.2f}"
        axes[0].set_title("\n".join([words, *textwrap.wrap(p.captions[0], 22 * wide)[:1]]), fontsize=7, loc="left", pad=3)
    sources = {p.box_source for p in pairs}
    drawn = [(MAIN, "-", "main: largest part"), (UNION, "--", "union: all parts")] if sources - {"diff", None} else []
    drawn += [(GUESS, "-.", "guessed by differencing, never scored")] if "diff" in sources else []
    drawn += [("0.5", ":", "square of [cx, cy, scale]")] if square else []
    lines = [Patch(fill=False, edgecolor=colour, linestyle=style, label=name) for colour, style, name in drawn]
    lines += [Patch(color=MASK[i] / 255, label=name) for i, name in ((1, "mask: road"), (2, "mask: building"))] if masked else []
    if lines:
        figure.legend(handles=lines, loc="lower center", ncols=len(lines), fontsize=7, frameon=False)
    heads = "before | after" + (" | mask" if masked else "")
    figure.suptitle(f"{title} ({heads})" if title else heads, fontsize=9, y=1 - 0.14 / height)
    return figure


def guess_sheet(pairs: Sequence[Pair], title: str = "") -> Figure:
    """`contact_sheet` of pairs with the boxes that differencing guesses, whether or not their store was made with them."""
    boxes = [levir_boxes.difference_box(p.before, p.after) for p in pairs]
    return contact_sheet([replace(p, box_main=box, box_union=box, box_source=None if box is None else "diff", components=0)
                          for p, box in zip(pairs, boxes, strict=True)], title=title)  # fmt: skip


def augmented_sheet(pair: Pair, seeds: Sequence[int]) -> Figure:
    """Both dates of a pair after `levir_boxes.augment`, a column for each seed, with the box where it has moved."""
    figure = Figure(figsize=(1.7 * len(seeds), 4.1), layout="constrained", dpi=100)
    for axes, seed in zip(figure.subplots(2, len(seeds), squeeze=False).T, seeds, strict=True):
        before, after, box = levir_boxes.augment(pair.before, pair.after, pair.box_main, np.random.default_rng(seed))
        for axis, picture in zip(axes, (before, after), strict=True):
            axis.imshow(picture, interpolation="nearest")
            outline(axis, box, picture.shape[:2], MAIN, "-")
            axis.set(xticks=[], yticks=[])
        axes[0].set_title(f"seed {seed}", fontsize=8)
    for axis, name in zip(figure.axes[:: len(seeds)], ("before", "after"), strict=True):
        axis.set_ylabel(name, fontsize=8)
    figure.suptitle("one pair, moved; blue: where its box has moved to, on both dates", fontsize=9)
    return figure
