"""Sheets of pictures for notebooks, and figures as PNG: kept in the work folder and shown in the cell, also where no widget runs.

    pictures.keep(pictures.sheet(images, labels), work / "figures" / "episodes.png")
"""

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib.figure import Figure


def sheet(images: Sequence[np.ndarray], labels: Sequence[str], columns: int = 4, title: str = "", size: float = 2.4) -> Figure:
    """A grid of uint8 RGB pictures (any sizes), each under its label; `size` inches a picture."""
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(size * columns, (size + 0.45) * rows + (0.3 if title else 0)), layout="constrained", dpi=100)
    for axis in np.atleast_1d(figure.subplots(rows, columns)).reshape(-1):
        axis.set_axis_off()
    for axis, image, label in zip(figure.axes, images, labels, strict=False):
        axis.imshow(image, interpolation="nearest")
        lines = [line for part in label.split("\n") for line in textwrap.wrap(part, max(8, int(13 * size))) or [""]]
        axis.set_title("\n".join(lines), fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def histograms(values: np.ndarray, names: Sequence[str], xlabel: str, span: tuple[float, float] = (-1, 1)) -> Figure:
    """One histogram a column of `values` (N, D), counts on a log axis that all share."""
    figure = Figure(figsize=(2 * len(names), 2.3), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(names), sharey=True)
    for axis, column, name in zip(axes, values.T, names, strict=True):
        axis.hist(column, bins=41, range=span, color="0.35")
        axis.set(title=name, xlabel=xlabel, yscale="log")
    axes[0].set_ylabel(f"frames (n = {len(values)})")
    return figure


def keep(figure: Figure, path: Path | str | None):
    """Write the figure as PNG, whole or not at all (None: nowhere), and return it for display in a notebook: pictures as JPEG.

    A figure counts as pictures where JPEG halves it; the letters and lines of a plot are cleaner, and hardly larger, as PNG.
    """
    from IPython.display import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    whole = PIL.Image.open(buffer).convert("RGB")
    png, jpeg = _encoded(whole, "png", optimize=True), _encoded(whole, "jpeg", quality=85, subsampling=0)
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(png)
        os.replace(part, path)
    return Image(data=jpeg if 2 * len(jpeg) < len(png) else png, width=int(figure.get_figwidth() * 85))


def _encoded(whole: PIL.Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    whole.save(buffer, kind, **options)
    return buffer.getvalue()
