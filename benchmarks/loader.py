"""Does the loader keep a trainer fed? Samples a second on a LIBERO-like store: two cameras of 256 x 256, chunks of 10 actions.

    python benchmarks/loader.py --json results/benchmarks/loader.json

A sample is both pictures as uint8, state, action chunk and sentence. The loader works in two parts: each frame is decoded and resized once,
by `--workers` threads, into memory-mapped arrays; then batches are read from these, in random order, by the training process itself.
`prepare` and `serve` are their rates; `first epoch` counts both, `later epochs` the second. Target: >= 300 samples/s, 20 times what a
trainer of 15 samples/s takes, in the first epoch too. Rates of the clock fall where others use the machine: the load, and samples per CPU
second of all threads together, are recorded beside them. Pictures are the grocery table's, drawn at 256 x 256 and repeated; the page cache
is warm when batches are read.
"""

import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from repro import benchmark, machine
from repro.data.batches import Batches, pictures
from repro.data.episodes import Episode, Store, StoreWriter
from repro.sims import base
from repro.training.checkpoint import provenance

TRAINER, TARGET, LENGTH = 15, 300, 64  # samples/s; samples/s; frames an episode


def a_store(folder: Path, episodes: int, size: int) -> Store:
    """Episodes of LIBERO's columns: three demonstrations on the grocery table, over and over until there are enough."""
    table, drawn = base.grocery(image_size=size, wrist_size=size).build(), []
    for number in range(min(episodes, 3)):
        seen, expert = [table.reset({"task": 2 * number, "layout": "wide", "seed": number})], table.expert(
            table.task_name(2 * number), np.random.default_rng(number))
        actions = []
        for _ in range(LENGTH):
            actions.append(np.clip(expert.act(), -1, 1))
            seen.append(table.step(actions[-1]))
        columns = {name: np.stack([one[name] for one in seen[:-1]]) for name in
                   ("observation.images.static", "observation.images.wrist", "observation.state")}
        drawn.append((table.task_name(2 * number), columns | {"action": np.float32(actions)}))
    with StoreWriter(folder, fps=20) as writer:
        for number in range(episodes):
            task, columns = drawn[number % len(drawn)]
            writer.add(Episode(task.replace("_", " "), columns, {"task_id": task}))
    return Store(folder)


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--episodes", type=int, default=24)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    found = {"prepare": [], "serve": [], "first epoch": []}
    cpu = {"prepare": [], "serve": []}
    with tempfile.TemporaryDirectory() as name:
        store = a_store(Path(name) / "store", given.episodes, given.size)
        for number in range(given.rounds):
            clock, used = time.perf_counter(), time.process_time()
            batches = Batches(store, given.batch, chunk=10, prepare=pictures, cache=Path(name) / f"cache{number}", workers=given.workers)
            prepared, used_to_prepare = time.perf_counter() - clock, time.process_time() - used
            steps = -(-len(batches) // given.batch)
            clock, used = time.perf_counter(), time.process_time()
            for step in range(steps):
                batch = batches(step)
                assert batch["static"].shape == (given.batch, given.size, given.size, 3) and batch["action"].shape[1:] == (10, 7)
            served, used_to_serve = time.perf_counter() - clock, time.process_time() - used
            samples = steps * given.batch
            found["prepare"].append(store.frames / prepared)
            found["serve"].append(samples / served)
            found["first epoch"].append(samples / (prepared + served))
            cpu["prepare"].append(store.frames / used_to_prepare)
            cpu["serve"].append(samples / used_to_serve)
    median = {name: round(float(np.median(values))) for name, values in found.items()}
    benchmark.record({
        "frames": store.frames, "picture": given.size, "cameras": 2, "batch": given.batch, "workers": given.workers, "rounds": given.rounds,
        "samples_per_second": {**median, "later epochs": median["serve"]},
        "slowest": {name: round(min(values)) for name, values in found.items()},
        "samples_per_cpu_second": {name: round(float(np.median(values))) for name, values in cpu.items()},
        "trainer": TRAINER, "target": TARGET, "times_the_trainer": round(median["first epoch"] / TRAINER, 1),
        "met_in_the_first_epoch": median["first epoch"] >= TARGET, "met_later": median["serve"] >= TARGET,
        "cores": machine.cores(), "load": round(psutil.getloadavg()[0], 1), **provenance(),
    }, given.json)  # fmt: skip


if __name__ == "__main__":
    main()
