"""What new columns of a store cost beside finding them, and whether memory stays flat.

    python benchmarks/columns.py [--frames 10000] [--json results/benchmarks/columns.json]

Stores of small made-up pictures, 1x and 10x the frames, get boxes, scores, words and crops that cost next to nothing to find; each run
is a process of its own. Cost: frames/s of such a run, journal and all, against a run that adds nothing (a bare copy), as milliseconds
a frame; target: at most 1 (a detector takes tens). Memory: highest resident size at 1x and 10x the frames; target: at most 1.2x
(what a store knows of each episode, about 2 kB, and buffers that a small store does not fill).
Medians of the rounds. Resume: a run that was stopped half way, seconds until it finds something new; no frame twice.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from repro import benchmark
from repro.data.columns import replace_columns
from repro.data.episodes import Episode, Store, StoreWriter

EPISODE, PICTURE = 50, "observation.images.static"  # frames of an episode, about what CALVIN's annotations have


def make(folder: Path, frames: int) -> Path:
    """A store of `frames` pictures of 16 x 16 and CALVIN's numbers."""
    rng = np.random.default_rng(0)
    with StoreWriter(folder, 30) as writer:
        for i in range(frames // EPISODE):
            columns = {
                PICTURE: rng.integers(0, 256, (EPISODE, 16, 16, 3), dtype=np.uint8),
                "observation.state": rng.normal(size=(EPISODE, 15)).astype(np.float32),
                "action": rng.uniform(-1, 1, (EPISODE, 7)).astype(np.float32),
            }
            writer.add(Episode("open the drawer", columns, {"task_id": "open_drawer", "scene": "D", "number": i}))
    return folder


def gaze(episode: Episode) -> dict:
    """Columns as a gaze detector gives them, without looking."""
    frames = episode.columns[PICTURE]
    box = np.tile(np.array([0.2, 0.3, 0.5, 0.7], np.float32), (len(frames), 1))
    words = ["detector"] * len(frames)
    return {"gaze.box": box, "gaze.score": box[:, 0], "gaze.source": words, "gaze.crop": np.ascontiguousarray(frames[:, 4:12, 4:12])}


def run(kind: str, folder: Path) -> dict:
    """One run in this process: seconds, MiB at the highest, and for `resume` seconds until the first new episode, and the hash."""
    calls, began = [], time.perf_counter()

    def counted(episode: Episode) -> dict:
        calls.append(time.perf_counter() - began)
        if kind == "stop" and len(calls) > len(Store(folder)) // 2:
            raise KeyboardInterrupt
        return gaze(episode)

    try:
        if kind == "copy":
            replace_columns(folder, lambda episode: {})
        else:
            replace_columns(folder, counted, [PICTURE], None if kind == "without key" else "gaze 1", print)
    except KeyboardInterrupt:
        pass
    seconds, first = time.perf_counter() - began, min(calls, default=0.0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "first": first, "calls": len(calls), "peak_MiB": peak, "hash": Store(folder).hash}


def apart(kind: str, folder: Path) -> dict:
    """`run` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--run", kind, "--folder", str(folder)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--frames", type=int, default=10_000, help="frames at 1x")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(run(options.run, options.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        stores = {times: make(Path(name) / f"x{times}", times * options.frames) for times in (1, 10)}

        def fresh(times: int, *kinds: str) -> list[dict]:
            """Runs one after the other on a copy of the store of `times` the frames."""
            folder = Path(shutil.copytree(stores[times], Path(name) / "copy"))
            found = [apart(kind, folder) for kind in kinds]
            shutil.rmtree(folder)
            return found

        copy, plain, keyed, small = ([fresh(times, kind)[0] for _ in range(options.rounds)]
                                     for times, kind in ((10, "copy"), (10, "without key"), (10, "key"), (1, "key")))  # fmt: skip
        resumed = fresh(10, "stop", "resume")[1]
    frames, middle = 10 * options.frames, lambda runs, what: float(np.median([one[what] for one in runs]))
    result = {
        "frames": frames, "episodes": frames // EPISODE, "rounds": options.rounds,
        "copy_frames_per_s": frames / middle(copy, "seconds"), "without_key_frames_per_s": frames / middle(plain, "seconds"),
        "with_key_frames_per_s": frames / middle(keyed, "seconds"),
        "cost_ms_per_frame": 1000 * (middle(keyed, "seconds") - middle(copy, "seconds")) / frames,
        "peak_MiB_1x": middle(small, "peak_MiB"), "peak_MiB_10x": middle(keyed, "peak_MiB"),
        "peak_growth": middle(keyed, "peak_MiB") / middle(small, "peak_MiB"),
        "resume_seconds": resumed["first"], "resume_episodes_found": resumed["calls"],
        "same_hash": len({one["hash"] for one in (*plain, *keyed, resumed)}) == 1,
    }  # fmt: skip
    for key, value in result.items():
        print(f"{key:26} {value:10.3g}" if isinstance(value, float) and value < 10 else f"{key:26} {value:10.0f}")
    print("target: cost_ms_per_frame <= 1, peak_growth <= 1.2")
    benchmark.record(result, options.json, show=False)


if __name__ == "__main__":
    main()
