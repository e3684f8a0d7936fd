"""What checkpoints cost: time spent saving, as a share of training time, at one checkpoint every two minutes.

    python benchmarks/checkpoint.py [--minutes 1] [--json results.json]

Trains the tiny ReconVLA on made-up frames with the loop as it is, with a checkpoint every five seconds, and times each whole save
(weights, optimizer, generators, digests, flush to disk, rename, deleting old ones) in that same run. Target: below 2 % at 2 minutes.
"""

import statistics
import tempfile
import time
from dataclasses import replace

import numpy as np

from repro import benchmark
from repro.models.reconvla import PRESETS, ReconVLA
from repro.training import checkpoint
from repro.training.loop import TrainConfig, train

INTERVAL, TARGET = 120.0, 0.02  # seconds; share


def batch(net: ReconVLA, size: int) -> dict:
    """A batch of noise with the shapes of the play table's frames."""
    rng, config = np.random.default_rng(0), net.config
    pictures = lambda *shape: rng.integers(0, 256, (size, *shape, 3), np.uint8)
    return {
        "canvas": pictures(config.height, config.width), "target_gaze": pictures(*(n * config.latent_patch for n in config.grid)),
        "state": rng.normal(size=(size, config.state_dim)), "action": rng.uniform(-1, 1, (size, config.chunk, config.action_dim)),
        "instruction": ["open the drawer"] * size, "gaze.valid": np.ones(size, bool),
    }  # fmt: skip


def main() -> None:
    options = benchmark.options(__doc__)
    options.add_argument("--minutes", type=float, default=1.0, help="length of the training run")
    given = options.parse_args()
    stats = {"observation.state": {"mean": [0.0] * 15, "std": [1.0] * 15}}
    trains = replace(PRESETS["tiny"], freeze_vision=False, cache_features=False, vae="pixels")  # nothing random is frozen
    net = ReconVLA.build(trains, stats, instructions=["open the drawer"])
    data, saves, save = batch(net, 32), [], checkpoint.save

    def timed(*args, **kwargs):
        began = time.perf_counter()
        path = save(*args, **kwargs)
        saves.append(time.perf_counter() - began)
        return path

    checkpoint.save = timed
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(steps=1_000_000, budget_minutes=given.minutes, checkpoint_minutes=5 / 60)
        began = time.perf_counter()
        summary = train(net, lambda i: data, folder, config)
        seconds = time.perf_counter() - began
        size = sum(file.stat().st_size for file in checkpoint.latest(folder).iterdir())
    share = statistics.mean(saves) / (INTERVAL + statistics.mean(saves))
    found = {
        "parameters": sum(p.numel() for p in net.parameters()), "checkpoint_mb": round(size / 1e6, 2), "saves": len(saves),
        "save_seconds_mean": round(statistics.mean(saves), 4), "save_seconds_max": round(max(saves), 4),
        "share_at_5_s": round(sum(saves) / seconds, 5), "share_at_2_min": round(share, 6), "target": TARGET, "met": share < TARGET,
        "steps_per_second": round(summary.step / (seconds - sum(saves)), 2),
    }  # fmt: skip
    benchmark.record(found, given.json)


if __name__ == "__main__":
    main()
