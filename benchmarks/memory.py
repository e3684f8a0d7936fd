"""GPU memory of one training step of the pretrained ReconVLA, presets t4, paper_nf4 and paper, against the 15 GiB that a T4 leaves free.

    python benchmarks/memory.py [--json results/benchmarks/memory.json] [--only t4] [--no-gpu]

On an NVIDIA GPU the step is run and *measured* (float16, the process held to 15 GiB). Elsewhere it is *computed*: the same step runs on
fake tensors, which have shapes and no data, and every storage is counted from the operation that makes it until it is freed; weights,
gradients, AdamW and NF4 with its scales included. Not seen: memory that a kernel takes inside itself. That counting is checked against
what torch's profiler sees a real CPU allocate for a small model (target: within 15 %), and what trains here against what ReconVLA trains
with the preset. The step is made up of its parts, not of ReconVLA.loss itself. The output says which of the two it is. The whole language
model of `paper` is always computed: to build it takes 29 GiB of the machine's memory before the GPU is asked.
"""

import weakref
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro import benchmark
from repro.machine import describe
from repro.models import adapters, towers
from repro.models.denoiser import Denoiser
from repro.models.reconvla import PRESETS
from repro.training import memory

GIB, LIMIT, TARGET = 2**30, 15.0, 0.15
CONTEXT = 0.45  # GiB of CUDA context, cuBLAS and cuDNN workspaces on a T4: an assumption, not part of what torch counts
SLACK = 0.08  # of the step's own memory, lost between the allocator's blocks: an assumption


@dataclass(frozen=True)
class Case:
    """One training step. Frozen weights are float16, what trains is float32, arithmetic float16 by autocast."""

    vision: str
    language: str
    quantise: str | None = None
    micro_batch: int = 4
    rank: int | None = 16          # of LoRA; None: the whole language model trains, in float32
    width: int = 512               # denoiser
    depth: int = 3
    heads: int = 8
    draws: int = 4
    text: int = 65                 # instruction twice, prompt, proprioception
    labels: int = 36               # action tokens and the end token
    checkpointing: bool = True     # of decoder layers
    logits: str = "labels"         # positions with a label, or "all"
    vae: str = "offline"           # latents come with the data; "loop": the VAE encodes each target in the step
    attention: str = "math"        # worst case: scores in full (grouped heads on a T4); "fused": a kernel that does not hold them
    size: tuple[tuple[str, int], ...] = ()  # for the check: a small language model instead of the published config


def trained_by(preset: str) -> int:
    """Parameters that ReconVLA itself trains with a preset, built without weights."""
    return memory.weights(PRESETS[preset])[0]


def of(preset: str, micro_batch: int) -> Case:
    """The training step of a preset of ReconVLAConfig."""
    c = PRESETS[preset]
    return Case(c.vision, c.language, c.quantise, micro_batch, c.lora_rank or None, c.denoiser_width, c.denoiser_depth, c.denoiser_heads,
                c.draws, checkpointing=c.checkpointing)  # fmt: skip


T4 = of("t4", 4)
PAPER = of("paper_nf4", 1)
WHOLE = of("paper", 1)
VARIANTS = {"": {}, ", no checkpointing": {"checkpointing": False}, ", fused attention": {"attention": "fused"},
            ", logits everywhere": {"logits": "all"}, ", VAE in the step": {"vae": "loop"}}  # fmt: skip
CASES = {
    **{f"t4{name}": replace(T4, **change) for name, change in VARIANTS.items()}, "t4, whole language model": replace(T4, rank=None),
    **{f"paper, NF4{name}": replace(PAPER, **change) for name, change in VARIANTS.items()},
    "paper, float16 weights": replace(PAPER, quantise=None), "paper, whole language model": WHOLE,
}  # fmt: skip
PRESET = {T4: "t4", PAPER: "paper_nf4", WHOLE: "paper"}


# --------------------------------------------------------------------------------------------------------- the step


class Step(nn.Module):
    """The parts of ReconVLA and one optimizer step on made-up data."""

    def __init__(self, case: Case, fake: bool):
        """The parts; on the meta device, where they cost nothing, if `fake`."""
        super().__init__()
        with torch.device("meta" if fake else "cpu"):
            self.build(case, fake)

    def build(self, case: Case, fake: bool) -> None:
        self.case, half = case, torch.float16
        self.tower = towers.vision(case.vision, pretrained=False, dtype=half)
        if case.size:
            from transformers import AutoModelForCausalLM, Qwen2Config

            del self.tower.encoder.layers[2:]  # float16 is slow on a CPU
            self.decoder = AutoModelForCausalLM.from_config(Qwen2Config(**dict(case.size)), dtype=half)
            if case.quantise and not fake:
                adapters.quantise(self.decoder, half, "cpu")
        else:
            kind = None if fake else case.quantise  # bitsandbytes does not take fake tensors: Packed stands in
            self.decoder, _ = towers.language(case.language, pretrained=False, dtype=torch.float32 if case.rank is None else half,
                                              quantise=kind)  # fmt: skip
        if fake and case.quantise:
            for path, part in [(path, part) for path, part in self.decoder.model.named_modules() if isinstance(part, nn.Linear)]:
                self.decoder.model.set_submodule(path, Packed(part))
        if case.rank is None:
            adapters.switch_checkpointing(self.decoder, case.checkpointing)
        else:
            adapters.add(self.decoder, adapters.LoRA(rank=case.rank), checkpointing=case.checkpointing)
        hidden = self.decoder.config.hidden_size
        self.projector = nn.Sequential(nn.Linear(self.tower.dim, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.denoiser = Denoiser(hidden, 64, self.tower.grid, case.width, case.depth, case.heads, case.draws)
        self.slots = nn.Parameter(torch.zeros(2, 256, hidden)) if case.rank else None  # offsets of the action tokens beside adapters
        self.vae = towers.vae("black-forest-labs/FLUX.1-dev", pretrained=False) if case.vae == "loop" else None

    def start(self, device: str, fake: bool) -> "Step":
        """Move to the device (or become fake tensors of the mode that is on), make up a batch, make the optimizer."""
        if fake:
            made = {}  # one storage for tied weights
            for part in self.modules():
                for group in (part._parameters, part._buffers):
                    for name, old in group.items():
                        if old is not None and old not in made:
                            new = torch.empty(old.shape, dtype=old.dtype)
                            made[old] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
                        group[name] = None if old is None else made[old]
        case, side = self.case, self.tower.grid[0]
        (self if fake else self.to(device)).train()
        size, B = self.tower.image_size, case.micro_batch
        target = (B, 3, 16 * side, 16 * side) if self.vae else (B, 64, side, side)
        self.data = [torch.randint(0, 100, (B, case.text + case.labels), device=device),
                     *(torch.rand(shape, device=device) for shape in ((B, 3, size, size), target))]  # fmt: skip
        self.optimizer = torch.optim.AdamW(adapters.trainable(self).values(), foreach=True)
        return self

    def run(self) -> None:
        with sdpa_kernel(self.kernels()):  # the backward pass too, which recomputes layers
            self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def loss(self) -> Tensor:
        case, (ids, pixels, target) = self.case, self.data
        with torch.autocast(pixels.device.type, torch.float16):
            latents = target
            if self.vae:
                with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
                    latents = F.pixel_unshuffle(self.vae.encode(target).latent_dist.sample(), 2)
            image, text = self.projector(self.tower(pixels)), self.decoder.get_input_embeddings()(ids)
            text = text if self.slots is None else text + self.slots.mean((0, 1))
            sequence = torch.cat([image, text], dim=1).float()  # image first, for brevity; the length is what counts
            hidden = self.decoder.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
            asked = hidden[:, -case.labels - 1 : -1] if case.logits == "labels" else hidden[:, :-1]
            labels = ids[:, -case.labels :] if case.logits == "labels" else torch.zeros_like(asked[..., 0], dtype=torch.long)
            action = F.cross_entropy(self.decoder.lm_head(asked).float().flatten(0, 1), labels.flatten())
            return action + self.reconstruct(latents, hidden[:, : image.shape[1]])

    def reconstruct(self, latents: Tensor, hidden: Tensor) -> Tensor:
        """Denoiser.loss without its mask, whose values fake tensors do not have."""
        with torch.autocast(latents.device.type, enabled=False):
            draws = self.case.draws
            latents, hidden = latents.repeat(draws, 1, 1, 1), hidden.float().repeat(draws, 1, 1)
            noise, t = torch.randn_like(latents), torch.randint(0, 1000, (len(latents),), device=latents.device)
            alpha = self.denoiser.alphas[t].float().view(-1, 1, 1, 1)
            return (self.denoiser.net(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, t, hidden) - noise).square().mean()

    def kernels(self) -> list[SDPBackend]:
        return [SDPBackend.MATH] if self.case.attention == "math" else [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]

    def account(self) -> dict[str, float]:
        """GiB that stay from step to step, by what they are."""
        states = [value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
        train = list(adapters.trainable(self).values())
        frozen = [t for t in [*self.parameters(), *self.buffers(), *scales(self)] if not t.requires_grad]
        return {"frozen weights": gib(frozen), "trainable weights": gib(train), "AdamW": gib(states), "batch": gib(self.data)}


class Packed(nn.Linear):
    """The memory of bitsandbytes' Linear4bit: half a byte a weight, a byte a block of 64, 4 bytes a 256 of these, and two tables."""

    def __init__(self, old: nn.Linear):
        super().__init__(old.in_features, old.out_features, bias=False, device="meta")
        n, self.bias = old.weight.numel(), old.bias
        self.weight = nn.Parameter(torch.empty(-(-n // 2), 1, dtype=torch.uint8), requires_grad=False)
        blocks = -(-n // 64)
        sizes = {"absmax": (blocks, torch.uint8), "absmax2": (-(-blocks // 256), torch.float32), "tables": (16 + 256 + 1, torch.float32)}
        for name, (count, dtype) in sizes.items():
            self.register_buffer(name, torch.empty(count, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return _PackedProduct.apply(x.half(), self.in_features, self.out_features).to(x.dtype)


class _PackedProduct(torch.autograd.Function):
    """x W^T with W unpacked to 16 bits for the product alone, forward and backward (bitsandbytes' MatMul4Bit)."""

    @staticmethod
    def forward(ctx, x, inside, outside):
        ctx.shape = (outside, inside)
        return x @ _PackedProduct.unpacked(x, ctx.shape).t()

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ _PackedProduct.unpacked(gradient, ctx.shape), None, None

    @staticmethod
    def unpacked(like, shape):
        _scales = like.new_empty(shape[0] * shape[1] // 64, dtype=torch.float32)
        return like.new_empty(shape)


def scales(model: nn.Module) -> list[Tensor]:
    """What NF4 layers of bitsandbytes hold beside their weights."""
    states = [part.weight.quant_state for part in model.modules() if getattr(getattr(part, "weight", None), "quant_state", None)]
    return [t for s in states for t in (s.absmax, s.code, *((s.offset, s.state2.absmax, s.state2.code) if s.nested else ()))]


def gib(tensors: list[Tensor]) -> float:
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values()) / GIB


# ------------------------------------------------------------------------------------------------ computed, measured


class Live(TorchDispatchMode):
    """Counts the bytes of every storage from the operation that makes it until it is freed."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def computed(case: Case) -> dict:
    """Peak of the second step (AdamW's state is there from the first), GiB."""
    step = Step(case, fake=True)
    with FakeTensorMode(), Live() as live:
        step.start("cpu", fake=True)
        step.run()
        live.peak = live.now
        step.run()
        return report(case, step, live.peak / GIB, "computed")


def measured(case: Case) -> dict:
    """The same on the first GPU, held to LIMIT; out of memory is reported as such."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT * GIB / torch.cuda.get_device_properties(0).total_memory))
    try:
        step = Step(case, fake=False).start("cuda", fake=False)
        step.run()
        torch.cuda.reset_peak_memory_stats()
        step.run()
        torch.cuda.synchronize()
        return report(case, step, torch.cuda.max_memory_allocated() / GIB, "measured", torch.cuda.max_memory_reserved() / GIB)
    except torch.cuda.OutOfMemoryError:
        return {"how": "measured", "micro_batch": case.micro_batch, "fits": False, "found": f"out of memory at {LIMIT} GiB"}


def report(case: Case, step: Step, peak: float, how: str, reserved: float | None = None) -> dict:
    stay = step.account()
    above = peak - sum(stay.values())
    total = (reserved or peak + SLACK * above) + CONTEXT
    train = sum(p.numel() for p in adapters.trainable(step).values()) / 1e6
    return {"how": how, "micro_batch": case.micro_batch, "trainable_millions": train, **stay, "step at its peak": above, "torch peak": peak,
            "with context and slack": total, "fits": total <= LIMIT}  # fmt: skip


def largest(case: Case, run) -> dict:
    """The largest micro-batch that fits, by the line through two runs; the run at that size is what is given."""
    one, two = (run(replace(case, micro_batch=n)) for n in (1, 2))
    if not two["fits"]:
        return one
    total = "with context and slack"
    size = 1 + int((LIMIT - one[total]) / (two[total] - one[total]))
    while not (found := run(replace(case, micro_batch=size)))["fits"]:
        size -= 1
    return found


# ------------------------------------------------------------------------------------------------------------ check

SMALL = Case("google/siglip-base-patch16-224", "", micro_batch=2, width=128, heads=4, size=tuple({
    "vocab_size": 2000, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None}.items()))  # fmt: skip
CHECKS = {
    "checkpointing": SMALL, "no checkpointing": replace(SMALL, checkpointing=False), "NF4": replace(SMALL, quantise="nf4"),
    "whole model, fused": replace(SMALL, rank=None, attention="fused"),
}  # fmt: skip


def check(case: Case) -> dict:
    """MiB that stay and MiB of a step above them: counted on fake tensors, and allocated by a real CPU as torch's profiler saw it."""
    from torch.profiler import ProfilerActivity, profile

    step = Step(case, fake=True)
    with FakeTensorMode(), Live() as live:
        step.start("cpu", fake=True)
        step.run()
        live.peak = before = live.now
        step.run()
        stays = sum(step.account().values())
    step = Step(case, fake=False).start("cpu", fake=False)
    step.run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step.run()
    now = peak = 0
    for event in sorted((e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {"stays_computed": 1024 * stays, "stays_measured": 1024 * sum(step.account().values()),
            "step_computed": (live.peak - before) / 2**20, "step_measured": peak / 2**20, "ratio": (live.peak - before) / peak}  # fmt: skip


def main() -> None:
    options = benchmark.options(__doc__)
    options.add_argument("--only", default="", help="cases whose name begins so")
    options.add_argument("--no-gpu", action="store_true", help="compute, even where there is a GPU")
    given = options.parse_args()
    torch.manual_seed(0)
    run = measured if torch.cuda.is_available() and not given.no_gpu else computed
    columns = ["frozen weights", "trainable weights", "AdamW", "step at its peak", "torch peak", "with context and slack"]
    print(f"GiB, {run.__name__}; limit {LIMIT}\n{'case':32} batch  {'  '.join(columns)}  fits")
    cases, found = {name: case for name, case in CASES.items() if name.startswith(given.only)}, {}
    for name, case in cases.items():
        found[name] = computed(case) if case == WHOLE else run(case)
        if case in PRESET:
            found[name]["trainable_millions_of_the_preset"] = trained_by(PRESET[case]) / 1e6
        if case in (T4, PAPER):
            found[f"{name}, largest micro-batch"] = largest(case, run)
        for title in [title for title in (name, f"{name}, largest micro-batch") if title in found]:
            row = found[title]
            numbers = "  ".join(f"{row.get(c, float('nan')):{len(c)}.2f}" for c in columns)
            print(f"{title:32} {row['micro_batch']:5}  {numbers}  {'yes' if row['fits'] else 'no'}", flush=True)
    checks = {name: check(case) for name, case in CHECKS.items()}
    for name, row in checks.items():
        print(f"check, {name}, MiB computed / measured: stays {row['stays_computed']:.2f} / {row['stays_measured']:.2f}, "
              f"a step {row['step_computed']:.1f} / {row['step_measured']:.1f}")  # fmt: skip
    rounded = lambda row: {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
    out = {
        "command": benchmark.command(), "how": run.__name__, "unit": "GiB", "limit": LIMIT,
        "assumed": {"context": CONTEXT, "slack_of_the_step": SLACK}, "machine": describe()["gpus"] or describe()["cpu"],
        "cases": {name: rounded(row) for name, row in found.items()},
        "configs": {name: {k: v for k, v in asdict(case).items() if k != "size"} for name, case in cases.items()},
        "check": {name: rounded(row) for name, row in checks.items()}, "check_target": TARGET,
        "check_met": all(abs(row["ratio"] - 1) <= TARGET for row in checks.values()),
        "same_parameters_as_the_preset": all(row["trainable_millions"] == row["trainable_millions_of_the_preset"]
                                             for row in found.values() if "trainable_millions_of_the_preset" in row),
    }  # fmt: skip
    benchmark.record(out, given.json, show=False)


if __name__ == "__main__":
    main()
