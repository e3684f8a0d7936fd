"""Everything that decides a ReconVLA, and the sizes it comes in (see models/reconvla.py)."""
import math
from dataclasses import dataclass, fields, replace

from repro.machine import UserError

CHOICES = {"proprio": ("linear", "fourier", "tokens"), "dtype": ("auto", "float32", "float16", "bfloat16"),
           "target": ("gaze", "whole"), "resample": ("area", "lanczos"), "posterior": ("sample", "mean"),
           "template": ("official", "short"), "aux": ("none", "box", "mask"), "quantise": (None, "nf4")}  # fmt: skip
_MANY = 1_000_000
RANGES = {int: (1, _MANY), float: (0.0, _MANY), bool: (False, True),  # of numbers: by name, or else by kind; NaN is in none
          "lora_rank": (0, _MANY), "lora_alpha": (1e-6, _MANY), "init": (1e-6, _MANY), "word_dropout": (0.0, 1.0)}  # fmt: skip


@dataclass(frozen=True)
class ReconVLAConfig:
    """Everything that decides the model; saved beside the weights. Defaults are those of `tiny`."""

    # parts: "tiny", or a hub id or folder for models/towers.py
    vision: str = "tiny"
    vision_revision: str | None = None
    language: str = "tiny"
    language_revision: str | None = None
    freeze_vision: bool = True      # False: the tiny tower trains along, from what it has learned or from random weights
    vae: str = "tiny"               # of models/tiny.py; "pixels": none, latents are the target's pixels, area-averaged
    vae_revision: str | None = None
    dtype: str = "float32"          # of pretrained parts but the VAE; "auto": by the device's capability; a language model that trains
                                    # whole is float32 until it has
    quantise: str | None = None     # "nf4": the language model's frozen weights in 4 bits
    lora_rank: int = 0              # 0: the language model trains whole, as in the paper
    lora_alpha: float = 32.0
    train_slots: bool = False       # learned offsets of the 256 slots' embeddings and outputs, where LoRA leaves those frozen
    checkpointing: bool = False     # recompute activations in the backward pass: less memory, more time
    # canvas
    grid: tuple[int, int] | list[int] = (8, 8)  # rows and columns of image tokens; the tower must have the same
    height: int = 128               # canvas, px; where the tower wants another size, it is resized to that (bicubic)
    width: int = 128
    static_tokens: int = 6          # rows of the grid for the static camera; its pixel rows follow: 334 * 14 // 27 = 173
    resample: str = "area"          # or "lanczos", as upstream
    acting_static_rows: int | None = None  # px; None: as in training. 167 repeats upstream's server, which moves the seam (D2)
    # tiny parts
    channels: int = 16              # of the tower's first convolution; its tokens have ten times as many numbers
    hidden: int = 128               # decoder
    layers: int = 3
    heads: int = 4
    intermediate: int = 256
    init: float = 0.09              # deviation of first weights: 1 / sqrt(hidden); Qwen2's 0.02 suits widths in the thousands
    # tokens
    template: str = "short"         # "official": the published conversation
    chunk: int = 5                  # actions per query
    action_dim: int = 7
    state_dim: int = 15
    proprio: str = "fourier"        # "tokens": 15 action-slot tokens, as in the paper; "linear": one continuous token; "fourier": of waves
    word_dropout: float = 0.1       # share of text tokens replaced in training: wordings not seen before hold unseen tokens
    ordered_bins: bool = True       # action embeddings start as Fourier features of their value; False: as the language model has them
    soft_bins: float = 2.0          # width (in bins) of the Gaussian target over bins; 0: one-hot, as in the paper
    parallel: bool = True           # a chunk is read in one pass, from learned action queries (as OpenVLA-OFT does). False: token by
                                    # token, as in the paper: a small model then copies the actions before, and looks once a chunk
    constrained: bool = True        # acting: the best of the 256 slots, chunk * action_dim times; False: as upstream, see `act`
    # reconstruction
    recon: bool = True              # False: the paper's baseline
    target: str = "gaze"            # "gaze": crop above wrist image; "whole": the canvas itself
    recon_weight: float = 1.0       # lambda
    target_wrist: bool = True       # the wrist image below is rebuilt too, as published; False: its tokens are left out of the loss
    mask_fallback: bool = True      # samples without a gaze box are left out; False: upstream, trained on their full-frame box
    gaze_margin: float = 0.0        # of the box's size, added on each side; 0 as upstream
    gaze_truncate: bool = False     # True: the box's corners rounded down, as upstream; False: every pixel that the box touches
    posterior: str = "sample"       # of the VAE, drawn anew at each use; or its "mean"
    latent_patch: int = 4           # pixels of the target per token and axis, where there is no VAE
    denoiser_width: int = 96
    denoiser_depth: int = 2
    denoiser_heads: int = 4
    draws: int = 1                  # noise levels per sample and step; upstream 4: less noise per step, fewer steps a minute
    # comparisons, caches
    aux: str = "none"               # rows to compare with: "box": predict the gaze box from the last prompt token; "mask": from each
                                    # of the static camera's image tokens, which share of it the box covers
    aux_weight: float = 1.0
    blind: bool = False             # canvas blanked in training and acting: the floor of a policy that cannot see
    cache_latents: bool = True      # with a VAE: `prepare` gives its posterior; False: pictures, encoded at each use
    cache_features: bool = True     # with a frozen tower: `prepare` gives its tokens; False: the canvas

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid) if isinstance(self.grid, tuple | list) else (self.grid,))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"model config: unknown {name}", expected=f"one of {allowed}", found=repr(getattr(self, name)))
        for f in fields(self):
            if f.type in RANGES:
                value, (low, high) = getattr(self, f.name), RANGES.get(f.name, RANGES[f.type])
                right = isinstance(value, (int, float) if f.type is float else f.type) and isinstance(value, bool) == (f.type is bool)
                if not right or not low <= value <= high:
                    raise UserError(f"model config: {f.name} is out of range", expected=f"{f.type.__name__}, {low} .. {high}",
                                    found=repr(value))
        if len(self.grid) != 2 or not all(type(n) is int and n > 0 for n in self.grid):
            raise UserError("model config: grid is no grid", expected="(rows, columns) of image tokens, both >= 1", found=self.grid)
        if self.language == "tiny" and (self.quantise or self.lora_rank):
            raise UserError("model config: the tiny language model trains whole", expected="quantise=None and lora_rank=0",
                            found=f"quantise {self.quantise}, lora_rank {self.lora_rank}",
                            next_step="leave both out, or name a pretrained language model")
        for name, width, unit in (("denoiser_width", self.denoiser_width, math.lcm(4, self.denoiser_heads)),
                                  ("hidden", self.hidden, 2 * self.heads), ("channels", self.channels, 4)):
            if width % unit:  # heads of one width each, of pairs (hidden); sines and cosines of rows and columns; groups that are normed
                raise UserError(f"model config: {name} does not divide", expected=f"a multiple of {unit}", found=width)
        if not 0 < self.static_tokens < self.grid[0]:
            raise UserError("model config: static_tokens leaves one camera without tokens", found=self.static_tokens,
                            expected=f"1 .. {self.grid[0] - 1} of the grid's rows")
        for name, rows in (("static_tokens", self.static_rows), ("acting_static_rows", self.acting_static_rows)):
            if rows is not None and not (type(rows) is int and 0 < rows < self.height):
                raise UserError(f"model config: {name} leaves one camera without pixel rows", found=repr(rows),
                                expected=f"1 .. {self.height - 1} of the canvas' rows" + (", or None" if name[0] == "a" else ""))
        if self.blind and self.recon:
            raise UserError("model config: a blind model has nothing to reconstruct from", next_step="set recon to false with blind")
        if self.parallel and not self.constrained:
            raise UserError("model config: a chunk that is read in one pass is always constrained",
                            expected="constrained=True, or parallel=False")
        if self.cache_features and not self.freeze_vision:
            raise UserError("model config: the tokens of a tower that trains along cannot be cached",
                            next_step="set cache_features=False, or freeze_vision=True")

    @property
    def static_rows(self) -> int:
        """Pixel rows of the canvas that show the static camera."""
        return self.height * self.static_tokens // self.grid[0]


AS_PUBLISHED = dict(resample="lanczos", template="official", proprio="tokens", word_dropout=0.0, ordered_bins=False, soft_bins=0.0,
                    draws=4, constrained=False, parallel=False, cache_features=False, gaze_truncate=True)  # fmt: skip
ADAPTED = dict(lora_rank=16, train_slots=True, checkpointing=True)  # the language model is frozen: LoRA, and the action slots beside it
PRESETS = {
    "tiny": ReconVLAConfig(),
    "plain": ReconVLAConfig(ordered_bins=False, soft_bins=0.0, proprio="tokens", word_dropout=0.0, draws=4, parallel=False),
    "t4": ReconVLAConfig(**AS_PUBLISHED | ADAPTED | dict(constrained=True), vision="google/siglip-base-patch16-384",
                         language="Qwen/Qwen2.5-0.5B", vae="black-forest-labs/FLUX.1-dev", dtype="auto", grid=(24, 24), height=384,
                         width=384, static_tokens=12, denoiser_width=384, denoiser_depth=3, denoiser_heads=6),
    "paper": ReconVLAConfig(**AS_PUBLISHED, vision="google/siglip-so400m-patch14-384", language="Qwen/Qwen2-7B",
                            vae="black-forest-labs/FLUX.1-dev", dtype="auto", checkpointing=True, grid=(27, 27), height=334, width=334,
                            static_tokens=14, denoiser_width=1024, denoiser_depth=3, denoiser_heads=16),
}  # fmt: skip
PRESETS["paper_nf4"] = replace(PRESETS["paper"], quantise="nf4", **ADAPTED)  # one T4 of 16 GB, micro-batch 1 (benchmarks/memory.py)
