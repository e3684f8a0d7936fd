"""One training run on two processes: is it the same run, and how much faster is it? Same global batch, same code, one thread a process.

    python benchmarks/processes.py --json results/benchmarks/processes.json

The `tiny` ReconVLA on generated pictures, by `repro train` in one process, by torchrun in `--processes`, and again by one, all with one
thread each. `same`: the largest difference of the losses of one process and several (target < 1e-5); `again`: of one process and itself.
`efficiency` = samples/s of several / (processes * the mean samples/s of the two single runs). With GPUs each process takes one.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import psutil

from repro import benchmark, machine
from repro.data.episodes import Episode, Store, StoreWriter
from repro.training import launch
from repro.training.checkpoint import provenance
from repro.training.loop import read_metrics

SIDES, LENGTH = (200, 84), 24  # pixels of the two pictures; frames an episode


def a_store(folder: Path, episodes: int) -> Store:
    """Episodes of noise: nothing is learnt here, only timed."""
    rng = np.random.default_rng(0)
    with StoreWriter(folder, fps=30) as writer:
        for number in range(episodes):
            columns = {f"observation.images.{name}": rng.integers(0, 256, (LENGTH, side, side, 3), np.uint8)
                       for name, side in zip(("static", "wrist"), SIDES, strict=True)}
            columns |= {"observation.state": rng.normal(size=(LENGTH, 15)).astype(np.float32),
                        "action": rng.uniform(-1, 1, (LENGTH, 7)).astype(np.float32)}
            writer.add(Episode(("lift the red block", "open the drawer")[number % 2], columns, {}))
    return Store(folder)


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8, help="per micro-batch")
    parser.add_argument("--accumulate", type=int, default=4, help="micro-batches a step, shared by the processes")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        a_store(Path(place) / "store", 16)
        settings = {"steps": given.steps, "batch_size": given.batch, "accumulate": given.accumulate}
        found, losses = {}, {}
        for name, processes in (("one", 1), ("several", given.processes), ("again", 1)):
            path = launch.write_config(Path(place) / f"{name}.json", name=name, store=Path(place) / "store", folder=Path(place) / name,
                                       model={"preset": "tiny", "target": "whole", "vae": "pixels", "freeze_vision": False,
                                              "cache_features": False}, train=settings)
            launch.jobs([path], slots=machine.cores(), processes=processes)
            found[name] = json.loads((Path(place) / name / "summary.json").read_text())["samples_per_second"]
            losses[name] = np.array([line["loss"] for line in read_metrics(Path(place) / name / "metrics.jsonl")])
    single = (found["one"] + found["again"]) / 2
    benchmark.record({
        "processes": given.processes, "global batch": given.batch * given.accumulate, "steps": given.steps,
        "samples/s": {name: round(value, 2) for name, value in found.items()},
        "ratio": round(found["several"] / single, 3), "efficiency": round(found["several"] / single / given.processes, 3),
        "same": float(np.abs(losses["one"] - losses["several"]).max()), "again": float(np.abs(losses["one"] - losses["again"]).max()),
        "load": psutil.getloadavg()[0], **machine.describe(), **provenance(),
    }, given.json)


if __name__ == "__main__":
    main()
