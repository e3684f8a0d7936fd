"""What a run tells while it trains: metrics.jsonl, TensorBoard, and wandb when asked; and the curves drawn of it afterwards.

metrics.jsonl (a line a step) is the truth. On resuming, its lines after the checkpoint's step are dropped, and TensorBoard's file is
written anew from the rest, so that no step stands twice. `tensorboard --logdir work/smoke/train` shows all runs of a profile.
"""

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from repro.machine import UserError
from repro.training import checkpoint

WATCHED = "held_out"  # of what is measured on held-out data: the lowest is the best


class Metrics:
    """metrics.jsonl and what is drawn of it while the run goes on. main: this process writes; others only keep their lines.

    `begin` opens TensorBoard, and wandb where a project is named; it is called once the run is known to be what the folder holds.
    """

    def __init__(self, path: Path, step: int, main: bool):
        self.lines = [line for line in read_metrics(path) if line["step"] <= step] if main and step else []
        self.file, self.curves = None, []
        if main:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".part")
            aside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            os.replace(aside, path)
            self.file = path.open("a")

    def begin(self, project: str, about: dict, say: Callable[[str], None]) -> None:
        """Curves beside the file. project: of wandb, "" for none; about: what wandb shows as the run's config."""
        if self.file is None:
            return
        folder = Path(self.file.name).parent
        if find_spec("tensorboard"):
            self.curves.append(TensorBoard(folder / "tensorboard", self.lines))
        else:
            say("TensorBoard is not installed (pip install tensorboard): metrics.jsonl has every step")
        if project:
            self.curves.append(Wandb(project, folder, about))

    def write(self, line: dict) -> None:
        self.lines.append(line)
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        for curve in self.curves:
            curve.write(line)

    def flush(self) -> None:
        checkpoint.flush(Path(self.file.name))

    def close(self) -> None:
        if self.file:
            self.file.close()
        for curve in self.curves:
            curve.close()

    def mean(self, count: int) -> dict:
        recent = self.lines[-count:]
        values = {name: [line[name] for line in recent if name in line] for name in dict.fromkeys(n for line in recent for n in line)}
        return {name: sum(found) / len(found) for name, found in values.items()}


class TensorBoard:
    """Scalars of each line as <folder>/events.out.tfevents..., with the time at which the run had that line."""

    def __init__(self, folder: Path, lines: list[dict]):
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)  # lines after the checkpoint are in there too
        self.began = time.time() - (lines[-1]["seconds"] if lines else 0.0)
        self.writer = SummaryWriter(str(folder), flush_secs=30)
        for line in lines:
            self.write(line)

    def write(self, line: dict) -> None:
        for name, value in scalars(line).items():
            self.writer.add_scalar(name, value, line["step"], walltime=self.began + line["seconds"])

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """The run in a wandb project. WANDB_MODE=offline needs neither network nor account; `wandb sync <folder>/wandb/offline-*` sends it."""

    def __init__(self, project: str, folder: Path, about: dict):
        try:
            import wandb
        except ImportError as error:
            raise UserError("wandb is asked for and not installed", f"the package wandb, for project {project!r}", error,
                            'pip install wandb, or leave `wandb` empty: TensorBoard and metrics.jsonl are written anyway') from error
        note = folder / "wandb_id.txt"  # the same run in each session
        if not note.exists():
            note.write_text(uuid.uuid4().hex[:12])
        try:
            self.run = wandb.init(project=project, name=folder.name, id=note.read_text(), resume="allow", dir=str(folder), config=about,
                                  settings=wandb.Settings(console="off", silent=True))
        except wandb.errors.Error as error:
            raise UserError("wandb does not begin", "an account here (wandb login), or offline mode", str(error).splitlines()[0],
                            "wandb login, or WANDB_MODE=offline in the environment") from error

    def write(self, line: dict) -> None:
        self.run.log(scalars(line), step=line["step"])  # steps that it has already are passed over

    def close(self) -> None:
        self.run.finish()


def scalars(line: dict) -> dict[str, float]:
    """A line's numbers under the names of the curves: train/loss, ..., validation/held_out."""
    return {f"{'validation' if name.startswith(WATCHED) else 'train'}/{name}": value
            for name, value in line.items() if name not in ("step", "seconds")}


# ---- held-out data says which step is best, and when to stop -----------------------------------------------------------------------


def watched(lines: list[dict]) -> dict[int, float]:
    """{step: held-out loss} of the lines that have one."""
    return {line["step"]: line[WATCHED] for line in lines if WATCHED in line}


def stops_early(lines: list[dict], patience: int) -> str:
    """Why a run with these lines stops early; "" where it does not. patience: measurements in a row without a new lowest; 0: never.

    Only lines decide, so a run that is started again comes to the same answer.
    """
    found = list(watched(lines).items())
    best = min((pair for pair in found if math.isfinite(pair[1])), key=lambda pair: pair[1], default=(0, math.inf))
    since = sum(step > best[0] for step, _ in found)
    return f"the held-out loss is not below {best[1]:.4g} (step {best[0]}) for {since} measurements" if 0 < patience <= since else ""


# ---- reading and drawing -----------------------------------------------------------------------------------------------------------


def read_metrics(path: Path | str) -> list[dict]:
    """Lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    whole = lines if not lines or lines[-1].endswith("}") else lines[:-1]
    return [json.loads(line) for line in whole]


def loss_curve(runs: dict[str, Path | str], scalar: str = "loss", smooth: int = 25, label: str = ""):
    """Figure: one scalar of several runs ({name: folder}) over optimizer steps, running mean of `smooth` steps; label: of its axis.

    Lines differ in style, not only in colour, so the figure reads in grey as well.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")  # not pyplot's, which a notebook would show a second time
    axes = figure.subplots()
    styles = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
    for i, (name, folder) in enumerate(runs.items()):
        lines = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if scalar in line]
        if not lines:
            continue
        values, window = np.array([line[scalar] for line in lines]), min(smooth, len(lines))
        sums = np.cumsum(np.insert(values, 0, 0.0))
        mean = (sums[window:] - sums[:-window]) / window
        at = [line["step"] for line in lines][window - 1:]
        axes.plot(at, mean, color=f"C{i}", linestyle=styles[i % len(styles)], linewidth=1.8, label=name,
                  marker="o" if len(at) == 1 else None)
    axes.set_xlabel("optimizer step")
    names = {"loss": "training loss", "action": "cross-entropy of the action tokens (nats)",
             "recon": "reconstruction loss (MSE of the noise)", "l1": "mean error of the most likely first action",
             "held_out": "cross-entropy on held-out episodes (nats)"}
    axes.set_ylabel(label or names.get(scalar, scalar))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, handlelength=3.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
