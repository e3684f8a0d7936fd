"""Loss curves that grow under a notebook's cell while its runs train: where somebody is watching, and nowhere else."""

import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from repro import machine
from repro.training.logs import loss_curve, read_metrics

EVERY = 30.0  # seconds


def watched() -> bool:
    """Whether this is an interactive Kaggle session: in a saved version, or headless, nobody sees a figure change."""
    return machine.on_kaggle() == "Interactive" and "ipykernel" in sys.modules


@contextmanager
def curves(folders: list[Path], every: float = EVERY) -> Iterator[None]:
    """Within it, one figure with the training loss of the runs in `folders`, drawn anew every 30 s; it is taken away at the end, where
    the notebook draws its own."""
    if not watched():
        yield
        return
    from IPython.display import HTML, Image, display

    shown, done = display(HTML(""), display_id=True), threading.Event()

    def draw() -> None:
        while not done.wait(every):
            runs = {folder.name: folder for folder in folders if read_metrics(folder / "metrics.jsonl")}
            if runs:
                picture = io.BytesIO()
                loss_curve(runs).savefig(picture, dpi=100)
                shown.update(Image(picture.getvalue()))

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        shown.update(HTML(""))
