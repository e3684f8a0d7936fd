"""What GroundingDINO costs: images in batches against one by one, and whether its memory grows with the number of images.

    python benchmarks/grounding_dino.py [--images 32] [--json results.json]

The model is small and random (`grounding_dino.tiny`), on the CPU, so only the ratios of one run say something. At 64 pixels a call's
fixed cost is what a batch saves; at 320 pixels the arithmetic is, which a CPU does no faster in batches (a GPU does). Targets: at least
2 times the images a second in batches of 8 at 64 pixels; memory that is flat: eight times the images, less than 1.1 times the peak.
"""

import resource
import sys
import tempfile
import time

import numpy as np

from repro import benchmark
from repro.gaze.grounding_dino import GroundingDino, tiny

NOUNS, TARGET, FLAT = ["blue block", "red bowl"], 2.0, 1.1


class Frames:
    """Made-up images, each made when it is asked for: what is held is what the detector holds."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> np.ndarray:
        if i >= self.count:
            raise IndexError(i)
        return np.random.default_rng(i).integers(0, 256, (200, 200, 3), np.uint8)


def peak_mib() -> float:
    """The most memory this process has had so far (Linux counts it in KiB, macOS in bytes)."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10


def seconds(detect: GroundingDino, frames, batch: int) -> float:
    """Seconds per image."""
    detect.batch = batch
    began = time.perf_counter()
    detect(frames, [NOUNS] * len(frames))
    return (time.perf_counter() - began) / len(frames)


def main() -> None:
    options = benchmark.options(__doc__)
    options.add_argument("--images", type=int, default=32, help="images of one measurement")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = tiny(folder)
        detectors = {size: GroundingDino(weights, shortest=size, longest=2 * size) for size in (64, 96, 320)}
    few, many = 4 * given.images, 32 * given.images
    peaks = []
    for count in (few, many):  # before anything larger sets the peak
        seconds(detectors[64], Frames(count), 8)
        peaks.append(peak_mib())
    frames = [Frames(given.images)[i] for i in range(given.images)]
    speed = {}
    for size, detect in detectors.items():
        rounds = {1: [], 8: []}
        for _ in range(2 if size > 100 else 5):  # one by one and in batches by turns, so that other work on the machine meets both
            for batch, taken in rounds.items():
                taken.append(seconds(detect, frames, batch))
        one, eight = (min(taken) for taken in rounds.values())
        speed[f"{size}_px"] = {"ms_one_by_one": round(1000 * one, 2), "ms_in_batches_of_8": round(1000 * eight, 2),
                               "ratio": round(one / eight, 2)}  # fmt: skip
    ratio = speed["64_px"]["ratio"]
    found = {
        "images": given.images, "nouns": NOUNS, "speed": speed, "ratio_target": TARGET, "ratio_met": ratio >= TARGET,
        "memory_images": [few, many], "peak_mib": [round(peak, 1) for peak in peaks], "peak_ratio": round(peaks[1] / peaks[0], 3),
        "peak_target": FLAT, "peak_met": peaks[1] / peaks[0] < FLAT,
    }  # fmt: skip
    benchmark.record(found, given.json)


if __name__ == "__main__":
    main()
