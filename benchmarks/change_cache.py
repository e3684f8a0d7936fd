"""What caching a frozen CLIP pays for the change agent: training steps per CPU second with and without it, same code and batches.

`python benchmarks/change_cache.py [--repeats N] [--language tiny|qwen] [--json FILE]`. A CLIP of ViT-B/32's published size (random weights,
written to a folder and read from it, for its speed alone) is frozen; once its features are made beforehand, as runs do, once both dates of
each pair are seen in each step; the two take turns. Target on a CPU: 3 times the steps, with the tiny language model. "qwen" takes one of
Qwen2.5-0.5B's size with LoRA instead, whose own step costs more than CLIP's: caching pays less there. Seconds are of this process' CPU
time, one thread, so that they hold on a busy machine too.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from repro import benchmark
from repro.models import change_agent_checkpoint, pretrained
from repro.models.change_agent import PRESETS, TRAIN, ChangeAgent
from repro.training.checkpoint import provenance

RATIO, CLIP = 3.0, "openai/clip-vit-base-patch32"
SENTENCES = ["the scene is the same as before", "some roads and houses are built on the bareland", "a house is built in the top left"]


def agents(language: str, folder: Path) -> dict[str, ChangeAgent]:
    """{"on": with cached features, "off": without}, alike in all else."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig.from_dict(pretrained.PUBLISHED[CLIP][2])).save_pretrained(folder / "clip")
    found = {}
    for name in ("on", "off"):
        torch.manual_seed(0)
        config = replace(PRESETS["ours"], vision=str(folder / "clip"), dtype="float32", quantise="", cache_features=name == "on")
        if language == "tiny":
            found[name] = ChangeAgent.build(replace(config, language="tiny", lora_rank=0), SENTENCES)
        else:
            tower, decoder, _ = change_agent_checkpoint.parts(replace(config, vision="tiny"), pretrained=False)
            tower, _, tokenizer = change_agent_checkpoint.parts(replace(config, language="tiny", lora_rank=0), SENTENCES)
            decoder.identity = {"name": "random", "revision": None, "sha256": "none: speed only"}
            found[name] = ChangeAgent(config, tower, decoder, tokenizer)
        found[name].train()
    return found


def batch(model: ChangeAgent, size: int) -> dict:
    """Noise of LEVIR's shapes, as a run's loader gives it."""
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 256, (2, size, 256, 256, 3), np.uint8)
    corner = rng.uniform(0, 0.5, (size, 2))
    return model.prepare_many(before, after) | {
        "box": np.concatenate([corner, corner + 0.3], axis=1).astype(np.float32), "changed": np.ones(size, bool),
        "caption": [SENTENCES[1 + i % 2] for i in range(size)]}  # fmt: skip


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--language", choices=("tiny", "qwen"), default="tiny")
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = TRAIN["ours"]["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        made = {name: (model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4), batch(model, size))
                for name, model in agents(given.language, Path(folder)).items()}  # fmt: skip
    seconds = {name: [] for name in made}
    for _ in range(given.repeats + 1):
        for name, (model, optimizer, data) in made.items():
            began = time.process_time()
            optimizer.zero_grad()
            model.loss(data)["loss"].backward()
            optimizer.step()
            seconds[name].append(time.process_time() - began)
    rates = {name: 1 / float(np.median(values[1:])) for name, values in seconds.items()}
    benchmark.record({
        "command": f"python benchmarks/change_cache.py --repeats {given.repeats} --language {given.language}", "threads": 1, "batch": size,
        "repeats": given.repeats, "language": given.language, "seconds": {k: [round(s, 3) for s in v] for k, v in seconds.items()},
        "steps_per_cpu_second": {name: round(value, 3) for name, value in rates.items()},
        "ratio": round(rates["on"] / rates["off"], 2), "target_ratio": RATIO, "ratio_met": rates["on"] / rates["off"] >= RATIO,
        **provenance()}, given.json)  # fmt: skip


if __name__ == "__main__":
    main()
