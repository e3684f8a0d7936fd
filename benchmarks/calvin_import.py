"""How fast CALVIN frames become a store, and whether memory stays flat.

    python benchmarks/calvin_import.py                       # makes its own frames
    python benchmarks/calvin_import.py --source ../shared/data/calvin_sim/training --json results.json

Throughput: `import_calvin` against reading the same files and encoding the same pictures alone, both with two processes started the
same way, taking turns; target: at least 0.8. Memory: highest resident size of the process tree at 1x and 10x the frames; target: flat.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import psutil

from repro import benchmark
from repro.data.calvin import Calvin
from repro.data.calvin_frames import MEMBERS, read_frame
from repro.data.calvin_import import import_calvin
from repro.data.episodes import encode_png
from repro.data.parallel import in_order

EPISODE = 50  # frames of an episode, about what CALVIN's annotations have
IMPORT = """import sys
from repro.data.calvin_import import import_calvin
import_calvin(sys.argv[1], "training", sys.argv[2], int(sys.argv[3]), replace=True)"""
BASE = 400  # different frames; more are hard links to these


def picture(rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3): shaded surfaces, a few flat blocks, a little grain; compresses about as CALVIN's pictures do."""
    wall = cv2.resize(rng.integers(60, 200, (5, 5, 3), dtype=np.uint8), (size, size), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    for _ in range(8):
        x, y = rng.integers(0, size - 8, 2)
        wall[y : y + rng.integers(6, size // 3), x : x + rng.integers(6, size // 3)] = rng.integers(0, 255, 3)
    grain = rng.integers(-1, 2, (size, size, 1)) * (rng.random((size, size, 1)) < 0.15)
    return np.clip(wall + grain, 0, 255).astype(np.uint8)


def base_frames(folder: Path, source: Path | None) -> list[Path]:
    """The different frames: of `source`, or made here."""
    if source:
        return sorted(source.glob("episode_*.npz"))
    folder.mkdir(parents=True)
    for i in range(BASE):
        rng = np.random.default_rng(i)
        actions = np.append(rng.uniform(-1, 1, 6), 1.0)
        np.savez_compressed(
            folder / f"frame_{i}.npz", actions=actions, rel_actions=actions, robot_obs=rng.normal(size=15), scene_obs=rng.normal(size=24),
            rgb_static=picture(rng, 200), rgb_gripper=picture(rng, 84),
        )  # fmt: skip
    return sorted(folder.glob("*.npz"))


def link_split(root: Path, frames: list[Path], count: int) -> Path:
    """A training split of `count` frames in episodes of EPISODE."""
    folder = root / "training"
    (folder / "lang_annotations").mkdir(parents=True)
    for i in range(count):
        try:
            os.link(frames[i % len(frames)], folder / f"episode_{i:07d}.npz")
        except OSError:  # another disk
            shutil.copyfile(frames[i % len(frames)], folder / f"episode_{i:07d}.npz")
    spans = [(start, min(start + EPISODE, count) - 1) for start in range(0, count, EPISODE)]
    np.save(folder / "ep_start_end_ids.npy", np.array(spans))
    np.save(folder / "scene_info.npy", {"calvin_scene_D": [0, count - 1]}, allow_pickle=True)
    language = {"ann": ["open the drawer"] * len(spans), "task": ["open_drawer"] * len(spans), "emb": np.zeros((len(spans), 1, 1))}
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", {"language": language, "info": {"indx": spans}}, allow_pickle=True)
    return root


def read_and_encode(paths: list[Path]) -> int:
    """The least an import can do: read what it needs of each frame and encode both pictures."""
    cv2.setNumThreads(1)
    for path in paths:
        frame = read_frame(path, MEMBERS)
        encode_png(frame["rgb_static"])
        encode_png(frame["rgb_gripper"])
    return len(paths)


def alone(root: Path, workers: int) -> float:
    """Frames/s of `read_and_encode` by `workers` processes, their start included."""
    split = Calvin(root).split("training")
    tasks = [([split.frame_path(i) for i in range(note.start, note.end + 1)],) for note in split.annotations]
    start = time.perf_counter()
    return sum(in_order(read_and_encode, tasks, workers)) / (time.perf_counter() - start)


def imported(root: Path, out: Path, workers: int) -> float:
    """Frames/s of the import, the start of its processes included."""
    start = time.perf_counter()
    report = import_calvin(root, "training", out, workers, replace=True)
    return report["frames"] / (time.perf_counter() - start)


def peak_memory(root: Path, out: Path, workers: int) -> float:
    """MiB: highest sum of resident sizes of an import's processes, in an interpreter of its own."""
    process = subprocess.Popen([sys.executable, "-c", IMPORT, str(root), str(out), str(workers)])
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        tree = psutil.Process(process.pid)
        while not done.wait(0.02):
            try:
                peak = max(peak, sum(one.memory_info().rss for one in (tree, *tree.children(recursive=True))))
            except psutil.NoSuchProcess:  # a worker that just ended
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    code = process.wait()
    done.set()
    thread.join()
    if code:
        raise SystemExit(f"the import failed with exit code {code}")
    return peak / 2**20


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--source", type=Path, help="folder of episode_*.npz to repeat instead of made frames")
    parser.add_argument("--frames", type=int, default=1000, help="frames at 1x")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = base_frames(folder / "base", options.source)
        one, ten = (link_split(folder / f"x{n}", frames, n * options.frames) for n in (1, 10))
        rates = [(alone(ten, options.workers), imported(ten, folder / "store", options.workers)) for _ in range(options.rounds)]
        memory = [peak_memory(root, folder / "store", options.workers) for root in (one, ten)]
        kilobytes = np.mean([path.stat().st_size for path in frames]) / 1000
    ratios = [done / least for least, done in rates]
    result = {
        "frames": 10 * options.frames, "rounds": options.rounds, "workers": options.workers, "kB_per_frame": float(kilobytes),
        "alone_frames_per_s": float(np.median([least for least, _ in rates])),
        "import_frames_per_s": float(np.median([done for _, done in rates])),
        "ratio": float(np.median(ratios)), "ratio_lowest": min(ratios),
        "peak_MiB_1x": memory[0], "peak_MiB_10x": memory[1], "peak_growth": memory[1] / memory[0],
    }  # fmt: skip
    for key, value in result.items():
        print(f"{key:22} {value:10.3g}" if isinstance(value, float) and value < 10 else f"{key:22} {value:10.0f}")
    print("target: ratio >= 0.8, peak_growth about 1")
    benchmark.record(result, options.json, show=False)


if __name__ == "__main__":
    main()
