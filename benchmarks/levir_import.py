"""How fast a LEVIR-MCI folder becomes a store, and whether memory stays flat.

    python benchmarks/levir_import.py --json results/benchmarks/levir_import.json

Throughput: `import_levir` against reading the same three pictures of each pair with PIL and encoding them with the same encoder alone, by
as many processes, taking turns; target: at least 0.8. By the clock, and by processor time, which other work on the machine changes less.
Memory: highest resident size of an import and its workers together at 1x and 8x the pairs; target: flat. The pairs are drawn
(sims.aerial); --root names a folder of LEVIR-MCI instead.
"""

import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import psutil

from repro import benchmark, machine
from repro.data import levir
from repro.data.episodes import encode_png
from repro.data.parallel import in_order
from repro.sims import aerial

IMPORT = """import sys
from dataclasses import replace
from repro.data import levir
if __name__ == "__main__":
    layout = levir.find(sys.argv[1])
    part = replace(layout, entries=tuple(layout.of("train")[: int(sys.argv[4])]))
    levir.import_levir(part, "train", sys.argv[2], workers=int(sys.argv[3]), replace=True)
"""


def least(files: list[tuple[Path, Path, Path]]) -> int:
    """The least an import of some pairs can do: PIL reads, the store's encoder writes. Pictures handled."""
    cv2.setNumThreads(1)
    for before, after, mask in files:
        for path in (before, after):
            encode_png(np.asarray(PIL.Image.open(path).convert("RGB")))
        grey = np.ascontiguousarray(np.asarray(PIL.Image.open(mask))[..., 0])
        cv2.imencode(".png", grey, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return 3 * len(files)


def timed(work) -> tuple[float, float]:
    """(pairs/s by the clock, pairs per second of processor time, workers included) of `work()`, which returns a number of pairs."""

    def spent() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    clock, processor = time.perf_counter(), spent()
    pairs = work()
    return pairs / (time.perf_counter() - clock), pairs / (spent() - processor)


def alone(layout, workers: int) -> int:
    """`least` of all pairs by `workers` processes; their start counts, as it does in the import."""
    files = [(e.before, e.after, e.mask) for e in layout.of("train")]
    return sum(in_order(least, ((files[i : i + levir.GROUP],) for i in range(0, len(files), levir.GROUP)), workers)) // 3


def peak_memory(script: Path, root: Path, out: Path, workers: int, pairs: int) -> float:
    """MiB: highest resident size of an import of the first `pairs` pairs, its workers included."""
    process, peak = subprocess.Popen([sys.executable, str(script), str(root), str(out), str(workers), str(pairs)]), 0
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            peak = max(peak, sum(one.memory_info().rss for one in family))
        except psutil.NoSuchProcess:
            continue
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"the import failed with exit code {process.returncode}")
    return peak / 2**20


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--pairs", type=int, default=800, help="drawn, where no --root is given")
    parser.add_argument("--root", type=Path, help="a folder of LEVIR-MCI")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--note", default="", help="what else the machine was doing: kept in the record")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = given.root or aerial.write(folder / "raw", given.pairs, 0, 0, workers=given.workers)
        layout = levir.find(root)
        layout = replace(layout, entries=tuple(layout.of("train")[: given.pairs]))
        whole = lambda: levir.import_levir(layout, "train", folder / "store", workers=given.workers, replace=True)["pairs"]
        rates = np.array([(timed(lambda: alone(layout, given.workers)), timed(whole)) for _ in range(given.rounds)])
        (folder / "one.py").write_text(IMPORT)
        counts = len(layout.entries) // 8, len(layout.entries)
        memory = [peak_memory(folder / "one.py", root, folder / "store", given.workers, n) for n in counts]
    ratios = rates[:, 1] / rates[:, 0]  # (rounds, 2): by the clock, by processor time
    result = {
        "pairs": counts[1], "rounds": given.rounds, "workers": given.workers, "cores": machine.cores(),
        "source": "LEVIR-MCI" if given.root else "sims.aerial",
        "alone_pairs_per_s": float(np.median(rates[:, 0, 0])), "import_pairs_per_s": float(np.median(rates[:, 1, 0])),
        "ratio": float(np.median(ratios[:, 0])), "ratio_lowest": float(ratios[:, 0].min()), "ratio_highest": float(ratios[:, 0].max()),
        "ratio_processor_time": float(np.median(ratios[:, 1])), "ratio_processor_time_lowest": float(ratios[:, 1].min()),
        "target_ratio": 0.8, "peak_MiB_1x": memory[0], "peak_MiB_8x": memory[1], "peak_growth": memory[1] / memory[0], "note": given.note,
    }  # fmt: skip
    benchmark.record(result, given.json)


if __name__ == "__main__":
    main()
