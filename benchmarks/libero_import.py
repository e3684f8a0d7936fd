"""How fast LIBERO's HDF5 becomes a store, and whether memory stays flat.

    python benchmarks/libero_import.py --json results/benchmarks/libero_import.json

Throughput: `import_libero` against reading the same arrays and encoding the same pictures alone, with as many threads, taking turns;
target: at least 0.8. Memory: highest resident size of an import's process at 1x and 8x the demonstrations; target: flat. The files are of
the grocery table, repeated, their extras taken off: the original layout.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import h5py
import numpy as np
import psutil

from repro import machine
from repro.data import libero_hdf5
from repro.data.episodes import encode_png
from repro.data.libero import import_libero

IMPORT = """import sys
from repro.data.libero import import_libero
import_libero(sys.argv[1], sys.argv[2], replace=True, workers=int(sys.argv[3]))"""


def repeated(source: Path, path: Path, times: int) -> Path:
    """The file's demonstrations `times` times over, without extras."""
    with h5py.File(source) as old, h5py.File(path, "w") as new:
        data = new.create_group("data")
        data.attrs.update(dict(old["data"].attrs))
        names = sorted(old["data"])
        for i in range(times * len(names)):
            old.copy(old["data"][names[i % len(names)]], data, f"demo_{i}")
            del data[f"demo_{i}/extras"]
    return path


def alone(path: Path, workers: int) -> float:
    """Frames/s of the least an import can do: read what it needs and encode both pictures."""

    def encode(arrays) -> int:
        for pictures in arrays:
            for picture in pictures[:, ::-1]:
                encode_png(np.ascontiguousarray(picture))
        return len(arrays[0])

    start, frames, waiting = time.perf_counter(), 0, []
    with h5py.File(path) as file, ThreadPoolExecutor(workers) as pool:
        for demo in file["data"].values():
            _ = demo["actions"][:], demo["obs/ee_states"][:], demo["obs/gripper_states"][:]
            waiting.append(pool.submit(encode, [demo[f"obs/{name}"][:-1] for name in ("agentview_rgb", "eye_in_hand_rgb")]))
            if len(waiting) > workers:
                frames += waiting.pop(0).result()
        frames += sum(job.result() for job in waiting)
    return frames / (time.perf_counter() - start)


def imported(path: Path, out: Path, workers: int) -> float:
    """Frames/s of the import."""
    start = time.perf_counter()
    return import_libero(path, out, replace=True, workers=workers)["frames"] / (time.perf_counter() - start)


def peak_memory(path: Path, out: Path, workers: int) -> float:
    """MiB: highest resident size of an import in an interpreter of its own."""
    process, peak = subprocess.Popen([sys.executable, "-c", IMPORT, str(path), str(out), str(workers)]), 0
    while process.poll() is None:
        try:
            peak = max(peak, psutil.Process(process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            break
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"the import failed with exit code {process.returncode}")
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=4, help="how often 6 demonstrations are repeated at 1x")
    parser.add_argument("--size", type=int, default=128, help="of pictures: 128 as LIBERO's own, 256 as OpenVLA's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (source,) = libero_hdf5.write(folder, "grocery", (3,), 6, "wide", image_size=options.size, log=lambda line: None).iterdir()
        one, many = (repeated(source, folder / f"x{n}_demo.hdf5", n * options.times) for n in (1, 8))
        rates = [(alone(many, options.workers), imported(many, folder / "store", options.workers)) for _ in range(options.rounds)]
        memory = [peak_memory(path, folder / "store", options.workers) for path in (one, many)]
    ratios = [done / least for least, done in rates]
    result = {
        "demonstrations": 8 * options.times * 6, "picture": options.size, "rounds": options.rounds, "workers": options.workers,
        "alone_frames_per_s": float(np.median([least for least, _ in rates])),
        "import_frames_per_s": float(np.median([done for _, done in rates])),
        "ratio": float(np.median(ratios)), "ratio_lowest": min(ratios),
        "peak_MiB_1x": memory[0], "peak_MiB_8x": memory[1], "peak_growth": memory[1] / memory[0], "cores": machine.cores(),
    }  # fmt: skip
    for key, value in result.items():
        print(f"{key:22} {value:10.3g}" if isinstance(value, float) and value < 10 else f"{key:22} {value:10.0f}")
    print("target: ratio >= 0.8, peak_growth about 1")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
