"""GPU memory of one training step of VGGT-VLA's presets in float16 against 15 GiB, and what caching the language saves.

    python benchmarks/vggt_memory.py [--json results/benchmarks/vggt_memory.json] [--no-gpu]

On an NVIDIA GPU the steps are run and *measured*, the process held to 15 GiB. Elsewhere they are *computed*: the same step on fake tensors,
every storage counted from the operation that makes it until it is freed (benchmarks/memory.py says how far that is to be trusted). Frozen
parts are float16 with random numbers of the published sizes; what trains is float32, with AdamW. Cached against uncached language, both by
models/sentences.py, is also timed, in turns, at full width and a sixth of VGGT's depth, in CPU seconds of one thread (or GPU seconds). The
sentences are LIBERO's, cut by a small tokenizer. The guide says 20 and 28 GB.
"""

import statistics
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from change_memory import faked
from memory import CONTEXT, GIB, LIMIT, SLACK, Live, gib
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from repro import benchmark
from repro.machine import describe
from repro.models import fingerprint, pretrained, sentences, towers, vggt
from repro.models.prompt import small_tokenizer
from repro.models.vggt_vla import PRESETS, TRAIN, VGGTVLA, VGGTVLAConfig
from repro.training.checkpoint import provenance

STATS = {"observation.state": {"mean": [0.0] * 8, "std": [1.0] * 8}}
RANDOM = {"name": "random numbers", "revision": None, "sha256": "none: memory only"}
THINGS = ("alphabet soup", "cream cheese", "salad dressing", "bbq sauce", "ketchup", "tomato sauce", "butter", "milk", "chocolate pudding",
          "orange juice")  # fmt: skip
SENTENCES = [f"pick up the {thing} and place it in the basket" for thing in THINGS]  # libero_object's
CASES = {  # name: (preset, config changes); "kernel": of attention, which by default holds no scores
    "vggt_qwen3": ("vggt_qwen3", {}),
    "vggt_qwen3, scores in full": ("vggt_qwen3", {"kernel": SDPBackend.MATH}),
    "vggt_qwen3, no checkpointing": ("vggt_qwen3", {"checkpointing": False}),
    "vggt_qwen3, language in each step": ("vggt_qwen3", {"cache_language": False}),
    "vggt_qwen3, one view": ("vggt_qwen3", {"views": ("static",)}),
    "vggt_qwen3_dinov2": ("vggt_qwen3_dinov2", {}),
    "vggt_qwen3_dinov2, scores in full": ("vggt_qwen3_dinov2", {"kernel": SDPBackend.MATH}),
    "vggt_qwen3_dinov2, vision in each step": ("vggt_qwen3_dinov2", {"cache_features": False}),
    "graph_qwen2": ("graph_qwen2", {}),
}


def words_of(c: VGGTVLAConfig, dtype: torch.dtype) -> sentences.FrozenWords:
    """The library's own: a table of states (random numbers, as many as the sentences have tokens), or the language model in each step."""
    tokenizer = small_tokenizer(SENTENCES)
    if c.cache_language:
        about = fingerprint.of_config(pretrained.PUBLISHED[c.language][2])
        tokens = {one: len(tokenizer(one)["input_ids"]) for one in SENTENCES}
        states = {one: torch.randn(n, about["hidden_size"], device="cpu").half() for one, n in tokens.items()}
        return sentences.FrozenWords(sentences.Table(about, states), c.text_length)
    model, _ = towers.language(c.language, pretrained=False, dtype=dtype, expect={"model_type": None})
    reader = sentences.Reader(model, tokenizer, c.text_length)
    return sentences.FrozenWords(sentences.Table(reader.about), c.text_length, reader)


def model_of(preset: str, changes: dict, dtype: torch.dtype, depth: int | None = None) -> VGGTVLA:
    """A preset with random numbers in its frozen parts, on the device of the context."""
    c = replace(PRESETS[preset], **changes)
    tower, blocks, words = None, None, words_of(c, dtype)
    if c.vision != "patch":
        tower = towers.frozen_vision(c.vision, pretrained=False, dtype=dtype, size=c.image_size)
        tower.identity = RANDOM
    if c.backbone_weights:
        sizes = vggt.VGGTConfig()
        blocks = vggt.Alternating(sizes.dim, depth or sizes.depth, sizes.heads, sizes.hidden).to(dtype).requires_grad_(False)
        blocks.identity, blocks.config = RANDOM, sizes
    return VGGTVLA(c, STATS, words, tower, blocks)


def batch_of(model: VGGTVLA, size: int) -> dict:
    c = model.config
    views = {"features": np.zeros((size, len(c.views), c.grid[0] * c.grid[1], model.tower.dim), np.float16)} if model._sees_once else {
        "views": np.zeros((size, len(c.views), c.image_size, c.image_size, 3), np.uint8)}  # fmt: skip
    return views | {"state": np.zeros((size, c.state_dim), np.float32), "instruction": [SENTENCES[i % len(SENTENCES)] for i in range(size)],
                    "action": np.zeros((size, c.chunk, c.action_dim), np.float32)}  # fmt: skip


def whole(model: VGGTVLA) -> list[nn.Module]:
    """The policy, and the language model where it is in memory: FrozenWords keeps it out of the policy's state."""
    return [model] if model.words.reader is None else [model, model.words.reader.model]


class Stepper:
    """A model in training mode with its optimizer; `step` is one."""

    def __init__(self, model: VGGTVLA, size: int, kind: str, half: bool = True):
        self.model, self.batch, self.kind, self.half = model.train(), batch_of(model, size), kind, half
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)

    def step(self) -> None:
        with torch.autocast(self.kind, torch.float16) if self.half else nullcontext():
            self.model.loss(self.batch)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def account(self) -> dict[str, float]:
        """GiB that stay."""
        states = [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
        train = [p for p in self.model.parameters() if p.requires_grad]
        frozen = [t for part in whole(self.model) for t in [*part.parameters(), *part.buffers()] if not t.requires_grad]
        return {"frozen weights": gib(frozen), "trainable weights": gib(train), "AdamW": gib(states)}


def kernel(changes: dict):
    """(the context that chooses it, the other changes)."""
    rest = {name: value for name, value in changes.items() if name != "kernel"}
    return (sdpa_kernel([changes["kernel"]]) if "kernel" in changes else nullcontext()), rest


def computed(preset: str, changes: dict) -> dict:
    chosen, changes = kernel(changes)
    with torch.device("meta"):
        model = model_of(preset, changes, torch.float16)
    with chosen, FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        for part in whole(model):
            faked(part)
        stepper = Stepper(model, TRAIN[preset]["batch_size"], "cpu")
        stepper.step()
        live.peak = live.now
        stepper.step()
        return report(stepper, live.peak / GIB, "computed", preset)


def measured(preset: str, changes: dict) -> dict:
    chosen, changes = kernel(changes)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT * GIB / torch.cuda.get_device_properties(0).total_memory))
    try:
        with torch.device("cuda"):
            stepper = Stepper(model_of(preset, changes, torch.float16), TRAIN[preset]["batch_size"], "cuda")
        with chosen:
            stepper.step()
            torch.cuda.reset_peak_memory_stats()
            stepper.step()
        torch.cuda.synchronize()
        return report(stepper, torch.cuda.max_memory_allocated() / GIB, "measured", preset, torch.cuda.max_memory_reserved() / GIB)
    except torch.cuda.OutOfMemoryError:
        return {"how": "measured", "batch": TRAIN[preset]["batch_size"], "fits": False, "found": f"out of memory at {LIMIT} GiB"}


def report(stepper: Stepper, peak: float, how: str, preset: str, reserved: float | None = None) -> dict:
    stay, every = stepper.account(), [p for part in whole(stepper.model) for p in part.parameters()]
    above = peak - sum(stay.values())
    total = (reserved or peak + SLACK * above) + CONTEXT
    return {"how": how, "batch": TRAIN[preset]["batch_size"], "trainable_millions": sum(p.numel() for p in every if p.requires_grad) / 1e6,
            "all_millions": sum(p.numel() for p in every) / 1e6, **stay, "step at its peak": above, "torch peak": peak,
            "with context and slack": total, "fits": total <= LIMIT}  # fmt: skip


def timed(size: int = 2, depth: int = 4, repeats: int = 5) -> dict[str, dict]:
    """Of cached language and of the language model in each step, in turns: median seconds of a step at full width, VGGT `depth` deep, and
    the frozen weights that stay in memory (GiB, in the dtype here)."""
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dtype, clock = (torch.float16, time.perf_counter) if kind == "cuda" else (torch.float32, time.process_time)
    steppers, found = {}, {"cached": [], "in each step": []}
    for name in found:
        with torch.device(kind):
            made = model_of("vggt_qwen3", {"cache_language": name == "cached", "checkpointing": False}, dtype, depth)
            steppers[name] = Stepper(made, size, kind, kind == "cuda")
        steppers[name].step()
    for _ in range(repeats):
        for name, stepper in steppers.items():
            began = clock()
            stepper.step()
            if kind == "cuda":
                torch.cuda.synchronize()
            found[name].append(clock() - began)
    return {name: {"seconds": statistics.median(took), "of": took, "frozen weights": steppers[name].account()["frozen weights"],
                   "device": kind} for name, took in found.items()}  # fmt: skip


def main() -> None:
    options = benchmark.options(__doc__)
    options.add_argument("--no-gpu", action="store_true", help="compute, even where there is a GPU")
    options.add_argument("--no-time", action="store_true", help="memory only")
    given = options.parse_args()
    torch.manual_seed(0)
    run = measured if torch.cuda.is_available() and not given.no_gpu else computed
    columns = ["frozen weights", "trainable weights", "AdamW", "step at its peak", "torch peak", "with context and slack"]
    print(f"GiB, {run.__name__}; limit {LIMIT}\n{'case':40} batch  train M  {'  '.join(columns)}  fits")
    cases = {}
    for name, (preset, changes) in CASES.items():
        row = cases[name] = run(preset, changes)
        numbers = "  ".join(f"{row.get(c, float('nan')):{len(c)}.2f}" for c in columns)
        millions, fits = row.get("trainable_millions", 0), "yes" if row["fits"] else "no"
        print(f"{name:40} {row['batch']:5}  {millions:7.1f}  {numbers}  {fits}", flush=True)
    times = {} if given.no_time else timed()
    for name, row in times.items():
        print(f"language {name}: {row['seconds']:.2f} s a step ({row['device']}, 4 of 24 layers), frozen {row['frozen weights']:.2f} GiB")
    if given.json:
        rounded = lambda row: {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        out = {"command": benchmark.command(), "how": run.__name__, "unit": "GiB",
               "limit": LIMIT, "assumed": {"context": CONTEXT, "slack_of_the_step": SLACK}, "machine": describe(),
               "cases": {name: rounded(row) for name, row in cases.items()}, "language": times}  # fmt: skip
        benchmark.record(out | provenance(), given.json, show=False)


if __name__ == "__main__":
    main()
