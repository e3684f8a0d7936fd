"""What caching pays for the tiny ReconVLA: training steps a second with and without it, and how fast it acts.

`python benchmarks/cache.py [--parts FOLDER] [--json FILE]`, on an idle machine. Training: the same code and batches, once with the frozen
tower's tokens and the VAE's posterior made beforehand (as a run does), once with canvases and target pictures, seen and encoded at each
step; the two take turns. Target: 1.5 times the steps. Acting: 32 raw observations a call, canvas, tower, prompt and 35 tokens included;
environment steps = observations x actions a chunk. Target: 1,000 a second on 2 threads. Without --parts tower and VAE are trained for a
few steps only: right for speed. Numbers per CPU second say more than those of the clock where others use the machine (--threads 1).
"""

import tempfile
import time
from dataclasses import replace

import numpy as np
import torch

from repro import benchmark, machine
from repro.models import tiny, tiny_training
from repro.models.reconvla import PRESETS, ReconVLA
from repro.sims.tabletop.language import TRAIN
from repro.training.checkpoint import provenance

OBSERVATIONS, BATCH, RATIO, STEPS = 32, 32, 1.5, 1000.0


def observations(count: int) -> list[dict]:
    """Noise with the shapes of the play table's frames."""
    rng = np.random.default_rng(0)
    return [{"observation.images.static": rng.integers(0, 256, (200, 200, 3), np.uint8),
             "observation.images.wrist": rng.integers(0, 256, (84, 84, 3), np.uint8),
             "observation.state": rng.normal(size=15).astype(np.float32), "gaze.box": np.float32([0.2, 0.3, 0.4, 0.5])}
            for _ in range(count)]  # fmt: skip


def batch(net: ReconVLA, words: list[str]) -> dict:
    """What a run's loader gives."""
    seen, rng = observations(BATCH), np.random.default_rng(1)
    made = [net.prepare(one) for one in seen]
    return {key: np.stack([one[key] for one in made]) for key in made[0]} | {
        "state": np.stack([one["observation.state"] for one in seen]), "gaze.valid": np.ones(BATCH, bool),
        "action": rng.uniform(-1, 1, (BATCH, net.config.chunk, net.config.action_dim)).astype(np.float32),
        "instruction": [words[i] for i in rng.integers(len(words), size=BATCH)]}  # fmt: skip


def step(net: ReconVLA, optimizer: torch.optim.Optimizer, data: dict) -> float:
    """Seconds of one training step."""
    began = time.perf_counter()
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=machine.fast_bfloat16()):  # as runs on a CPU do (TrainConfig.cpu_bfloat16)
        loss = net.loss(data)["loss"]
    loss.backward()
    optimizer.step()
    return time.perf_counter() - began


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--parts", help="folder of tiny_training.pretrain")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    words = sorted({sentence for sentences in TRAIN.values() for sentence in sentences})
    with tempfile.TemporaryDirectory() as folder:
        ready = tiny.load_parts(given.parts or tiny_training.pretrain(folder, tower_steps=2, vae_steps=2, pictures=36,
                                                                                log=lambda line: None))
    nets, seconds = {}, {"on": [], "off": []}
    for name in seconds:
        torch.manual_seed(0)
        config = replace(PRESETS["tiny"], cache_features=name == "on", cache_latents=name == "on")
        net = ReconVLA.build(config, {"observation.state": {"mean": [0.0] * 15, "std": [1.0] * 15}}, instructions=words, **ready).train()
        nets[name] = net, torch.optim.AdamW([p for p in net.parameters() if p.requires_grad]), batch(net, words)
    for _ in range(given.repeats + 2):
        for name, parts in nets.items():
            seconds[name].append(step(*parts))
    rates = {name: 1 / float(np.median(values[2:])) for name, values in seconds.items()}

    net, seen = nets["on"][0].eval(), observations(OBSERVATIONS)
    rng, acting, busy = np.random.default_rng(2), [], []
    for _ in range(given.repeats + 2):
        asked = [words[i] for i in rng.integers(len(words), size=OBSERVATIONS)]
        began, used = time.perf_counter(), time.process_time()
        actions = net.act(seen, asked)
        acting.append(time.perf_counter() - began)
        busy.append(time.process_time() - used)
    speed = OBSERVATIONS * actions.shape[1] / np.array(acting[2:])
    began = time.process_time()
    for part in range(0, OBSERVATIONS, 16):
        net.prepare_many(seen[part: part + 16])
    found = {
        "threads": given.threads, "batch": BATCH, "repeats": given.repeats,
        "train_steps_per_second": {name: round(value, 2) for name, value in rates.items()},
        "ratio": round(rates["on"] / rates["off"], 2), "target_ratio": RATIO, "ratio_met": rates["on"] / rates["off"] >= RATIO,
        "observations_per_call": OBSERVATIONS, "chunk": int(actions.shape[1]),
        "environment_steps_per_second": {"median": round(float(np.median(speed))), "best": round(float(speed.max()))},
        "environment_steps_per_cpu_second": round(OBSERVATIONS * actions.shape[1] / float(np.median(busy[2:]))),
        "target_steps": STEPS, "steps_met": bool(np.median(speed) >= STEPS),
        "prepared_frames_per_cpu_second": round(OBSERVATIONS / (time.process_time() - began)), **provenance(),
    }  # fmt: skip
    benchmark.record(found, given.json)


if __name__ == "__main__":
    main()
