"""Figures of notebooks: what is kept and what is shown. Run: pytest tests/test_pictures.py"""

import io

import numpy as np
import PIL.Image

from repro import pictures


def test_a_figure_is_kept_as_png_and_shown_as_jpeg_only_where_that_halves_it(tmp_path):
    slope = np.linspace(40, 200, 300)[:, None, None] + np.random.default_rng(0).normal(0, 4, (300, 300, 3))
    frame = slope.astype(np.uint8)  # smooth, with a camera's noise: what PNG can't compress
    photo = pictures.keep(pictures.sheet([frame] * 2, ["a frame"] * 2), tmp_path / "new/photo.png")
    plot = pictures.keep(pictures.histograms(np.random.default_rng(0).normal(size=(50, 2)), ["x", "y"], "m"), tmp_path / "new/plot.png")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["photo.png", "plot.png"]
    kept = {name: PIL.Image.open(tmp_path / f"new/{name}.png") for name in ("photo", "plot")}
    assert all(image.format == "PNG" for image in kept.values())
    assert (photo.format, plot.format) == ("jpeg", "png") and plot.data == (tmp_path / "new/plot.png").read_bytes()
    shown = PIL.Image.open(io.BytesIO(photo.data))
    assert shown.format == "JPEG" and shown.size == kept["photo"].size
    assert 2 * len(photo.data) < (tmp_path / "new/photo.png").stat().st_size
