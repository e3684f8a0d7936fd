"""GPU memory of one training step of the change agent's presets, batch 4, in float16, against 6 GB (the guide says 8-10 GB on a T4).

    python benchmarks/change_memory.py [--json results/benchmarks/change_memory.json] [--no-gpu]

On an NVIDIA GPU the steps are run and *measured*, the process held to 15 GiB. Elsewhere they are *computed*: the same step on fake tensors,
every storage counted from the operation that makes it until it is freed; NF4 weights as they are packed, with their scales
(benchmarks/memory.py says how far that is to be trusted). Frozen parts have random numbers of the published sizes. Captions are as long as
LEVIR-CC's longest (39 words); lengths are in tokens, one a word, and the vocabulary is the published one.
"""

from dataclasses import asdict, replace

import numpy as np
import torch
from memory import CONTEXT, GIB, LIMIT, SLACK, Live, Packed, gib
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from repro import benchmark
from repro.machine import describe
from repro.models import adapters, change_agent_checkpoint
from repro.models.change_agent import PRESETS, TRAIN, ChangeAgent

GB, TARGET, WORDS = 1e9, 6.0, 39
RANDOM = {"name": "random numbers", "revision": None, "sha256": "none: memory only"}
CASES = {  # name: (preset, config changes)
    "t4": ("t4", {}),
    "t4, features cached": ("t4", {"cache_features": True, "augment": False}),
    "t4, language in 16 bits": ("t4", {"quantise": ""}),
    "t4, checkpointing": ("t4", {"checkpointing": True}),
    "guide": ("guide", {}),
}


class Words:
    """A tokenizer without a vocabulary: every word is token 1."""

    eos_token_id = 0

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return [1] * len(text.split())


def agent(preset: str, changes: dict, real: bool) -> ChangeAgent:
    """On the device of the context. real: quantised by bitsandbytes; else its packed weights are stood in for."""
    c = replace(PRESETS[preset], **changes, caption_dropout=0.0)  # all captions are told
    plain = replace(c, quantise=c.quantise if real else "", lora_rank=0)
    tower, decoder, _ = change_agent_checkpoint.parts(plain, pretrained=False)
    tower, decoder = tower.half(), decoder if real and c.quantise else decoder.half()
    if c.quantise and not real:
        for path, part in [(path, part) for path, part in decoder.model.named_modules() if isinstance(part, nn.Linear)]:
            decoder.model.set_submodule(path, Packed(part))
    adapters.add(decoder, adapters.LoRA(c.lora_rank, c.lora_alpha, c.lora_dropout, c.lora_targets), c.checkpointing)
    tower.identity = decoder.identity = RANDOM
    return ChangeAgent(c, tower, decoder, Words())


def batch(model: ChangeAgent, size: int) -> dict:
    c, n = model.config, model.tower.grid[0] * model.tower.grid[1]
    seen = {"features": np.zeros((size, 2, 1 + n, model.tower.dim), np.float16)} if c.cache_features else {
        "pictures": np.zeros((size, 2, 256, 256, 3), np.uint8)}  # fmt: skip
    return seen | {"box": np.full((size, 4), [0.2, 0.2, 0.5, 0.5], np.float32), "changed": np.ones(size, bool),
                   "caption": [" ".join(["word"] * WORDS)] * size}  # fmt: skip


def faked(model: nn.Module) -> nn.Module:
    """Meta tensors -> fake ones of the mode that is on; one storage for tied weights."""
    made = {}
    for part in model.modules():
        for group in (part._parameters, part._buffers):
            for name, old in group.items():
                if old is not None and id(old) not in made:
                    new = torch.empty(old.shape, dtype=old.dtype)
                    made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
                group[name] = None if old is None else made[id(old)]
    return model


class Stepper:
    """A model in training mode with its optimizer; `step` is one."""

    def __init__(self, model: ChangeAgent, size: int, kind: str):
        self.model, self.batch, self.kind = model.train(), batch(model, size), kind
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)

    def step(self) -> None:
        with torch.autocast(self.kind, torch.float16):
            self.model.loss(self.batch)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def report(self, peak: float, how: str, reserved: float | None = None) -> dict:
        states = [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        every = [*self.model.parameters(), *self.model.buffers()]
        stay = {"frozen weights": gib([t for t in every if not t.requires_grad]), "AdamW": gib(states),
                "trainable weights": gib([t for t in every if t.requires_grad])}  # fmt: skip
        above = peak - sum(stay.values())
        total = ((reserved or peak + SLACK * above) + CONTEXT) * GIB / GB
        counts = self.model.counts().values()
        return {"how": how, "batch": len(self.batch["caption"]), "trainable_millions": sum(t for t, _ in counts) / 1e6,
                "all_millions": sum(n for _, n in counts) / 1e6, **stay, "step at its peak": above, "torch peak": peak,
                "GB with context and slack": total, "met": total < TARGET}  # fmt: skip


def computed(preset: str, changes: dict) -> dict:
    with torch.device("meta"):
        model = agent(preset, changes, real=False)
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        stepper = Stepper(faked(model), TRAIN[preset]["batch_size"], "cpu")
        stepper.step()
        live.peak = live.now
        stepper.step()
        return stepper.report(live.peak / GIB, "computed")


def measured(preset: str, changes: dict) -> dict:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT * GIB / torch.cuda.get_device_properties(0).total_memory))
    stepper = Stepper(agent(preset, changes, real=True).to("cuda"), TRAIN[preset]["batch_size"], "cuda")
    stepper.step()
    torch.cuda.reset_peak_memory_stats()
    stepper.step()
    torch.cuda.synchronize()
    return stepper.report(torch.cuda.max_memory_allocated() / GIB, "measured", torch.cuda.max_memory_reserved() / GIB)


def main() -> None:
    options = benchmark.options(__doc__)
    options.add_argument("--no-gpu", action="store_true", help="compute, even where there is a GPU")
    options.add_argument("--only", default="", help="one case, by its name")
    given = options.parse_args()
    torch.manual_seed(0)
    run = measured if torch.cuda.is_available() and not given.no_gpu else computed
    columns = ["frozen weights", "trainable weights", "AdamW", "step at its peak", "torch peak", "GB with context and slack"]
    print(f"GiB, {run.__name__}; target < {TARGET} GB\n{'case':28} batch  train M  {'  '.join(columns)}  met")
    cases = {}
    for name, (preset, changes) in CASES.items():
        if given.only not in ("", name):
            continue
        row = cases[name] = run(preset, changes) | {"config": asdict(replace(PRESETS[preset], **changes))}
        numbers = "  ".join(f"{row[c]:{len(c)}.2f}" for c in columns)
        print(f"{name:28} {row['batch']:5}  {row['trainable_millions']:7.2f}  {numbers}  {'yes' if row['met'] else 'no'}", flush=True)
    if given.json:
        rounded = lambda row: {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        out = {"command": benchmark.command(), "how": run.__name__, "unit": "GiB",
               "target_gb": TARGET, "assumed": {"context": CONTEXT, "slack_of_the_step": SLACK}, "machine": describe(),
               "cases": {name: rounded(row) for name, row in cases.items()}}  # fmt: skip
        benchmark.record(out, given.json, show=False)


if __name__ == "__main__":
    main()
