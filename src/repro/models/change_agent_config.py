"""The change agent's configs and presets. Widths of pretrained parts are never typed here: they are read from the parts' own files."""

from dataclasses import dataclass, replace

from repro.machine import UserError

NO_CHANGE = "the scene is the same as before"  # the one sentence that no-change pairs are captioned with: others cost BLEU-4 (levir.md)
ASK = "what changed?"  # stands before a caption where the language model sees the pictures
CHOICES = {"features": ("pooled", "grid"), "read": ("first", "last"), "fusion": ("add", "concat"), "loss": ("mse", "l1", "iou"),
           "box": ("main", "union", "whole"), "unboxed": ("whole", "masked"), "captions": ("first", "any"), "quantise": ("", "nf4"),
           "dtype": ("float32", "auto")}  # fmt: skip


@dataclass(frozen=True)
class ChangeConfig:
    """Everything that decides the model; saved beside the weights. Defaults are those of `guide`."""

    # parts: "tiny" (trained along), or a hub id or folder (frozen)
    vision: str = "openai/clip-vit-base-patch32"
    vision_revision: str | None = None
    language: str = "Qwen/Qwen2.5-0.5B"
    language_revision: str | None = None
    quantise: str = "nf4"            # the frozen language model in 4 bits, double quantised; "": in `dtype`
    lora_rank: int = 8               # of a pretrained language model; 0: it is frozen whole
    lora_alpha: float = 16.0
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] | list[str] = ("q_proj", "v_proj")
    dtype: str = "auto"              # of frozen parts: by the device's capability; "float32"
    checkpointing: bool = False      # recompute the language model's activations in the backward pass
    cache_features: bool = True      # with a frozen tower: `prepare_many` gives what it sees; False: pictures, seen in each step
    # how it reads
    features: str = "pooled"         # one vector a date, beside the language model; "grid": patches of both dates, and into it too
    read: str = "first"              # token whose state is the sentence: a causal model's first one knows no later word; "last"
    fusion: str = "add"              # of what is seen and what is read; "concat": both through a linear map
    text_length: int = 128           # tokens of a caption; longer ones are refused
    # what it learns
    box: str = "main"                # of the largest changed component; "union": of all; "whole": upstream's constant target
    unboxed: str = "whole"           # target of pairs without a box: the whole picture, as upstream; "masked": no loss of the action
    loss: str = "mse"                # of [cx, cy, scale]; "l1"; "iou": l1 + 1 - GIoU of the square with the box
    gate_weight: float = 0.0         # of the cross-entropy of "something changed"; 0: no gate, it always points
    caption_weight: float = 0.0      # of the captions' cross-entropy (needs "grid"); 0: it does not learn to write
    caption_dropout: float = 0.0     # share of training captions that are withheld
    captions: str = "first"          # training captions: the first of five, as upstream; "any" of them
    flips: bool = False              # training pictures, boxes and words for places are flipped together (a tower that trains)
    augment: bool = False            # they are turned and cut as well (data/change_batches.py); a frozen tower then sees them in each step
    point_weight: float = 0.0        # of the cross-entropy between where the head reads and the box (needs "grid")
    anchor: bool = False             # the head's numbers are added to where and how wide its maps are (needs "grid")
    # sizes of new parts
    head_dropout: float = 0.1
    readers: int = 8                 # maps over the grid that the head reads with (grid)
    width: int = 256                 # of the grid's cells (grid)
    mixing: int = 0                  # residual 3x3 convolutions over the grid, the receptive field doubling (grid)
    stride: int = 1                  # cells of the grid, along each side, that are one token to the language model
    # tiny parts
    image_size: int = 64             # px that the tiny tower sees; 8 px a cell
    channels: int = 16               # of its first convolution; its cells have four times as many numbers
    hidden: int = 96                 # tiny language model
    layers: int = 2
    heads: int = 4
    intermediate: int = 192
    init: float = 0.1                # deviation of its first weights

    def __post_init__(self):
        object.__setattr__(self, "lora_targets", tuple(self.lora_targets))
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"model config: unknown {name}", f"one of {allowed}", repr(getattr(self, name)))
        if self.features == "pooled" and (self.caption_weight or self.point_weight or self.anchor):
            raise UserError("model config: captions and pointing need to see the grid", 'features="grid"',
                            f"pooled, caption_weight {self.caption_weight}, point_weight {self.point_weight}, anchor {self.anchor}",
                            "pooled features never enter the language model: leave these three out")
        if self.augment and self.cache_features and self.vision != "tiny":
            raise UserError("model config: features that are cached cannot be augmented", "augment with cache_features=False",
                            "augment=True, cache_features=True", "leave one of the two out")
        if min(self.readers, self.width, self.stride, self.text_length, self.hidden, self.layers) < 1:
            raise UserError("model config: sizes must be positive", ">= 1", "0 or less")
        if self.image_size % (8 * self.stride):
            raise UserError("model config: the tokens do not divide the picture", f"a multiple of {8 * self.stride} px", self.image_size)


_GUIDE = ChangeConfig()
_OURS = replace(_GUIDE, features="grid", read="last", fusion="concat", unboxed="masked", gate_weight=0.2, caption_weight=0.2,
                caption_dropout=0.5, captions="any", point_weight=0.2, anchor=True, loss="iou", mixing=2, text_length=64)  # fmt: skip
_SMALL = {"vision": "tiny", "language": "tiny", "quantise": "", "lora_rank": 0, "dtype": "float32", "text_length": 64}
PRESETS = {
    "guide": _GUIDE,
    "ours": _OURS,
    "t4": replace(_OURS, augment=True, cache_features=False),
    "tiny_guide": replace(_GUIDE, **_SMALL),
    "tiny_ours": replace(_OURS, **_SMALL, width=64, mixing=3, head_dropout=0.0, flips=True),
}
# The guide's optimiser, fields of training.loop.TrainConfig; it saves every 500 steps (here by the clock), evaluates every 1000
_OPTIMISER = {"batch_size": 4, "learning_rate": 1e-4, "weight_decay": 0.01, "warmup": 500, "final": 0.1, "clip": 1.0, "seed": 42,
              "measure_every": 1000, "best": True}  # fmt: skip
TRAIN = {
    "guide": _OPTIMISER, "ours": _OPTIMISER, "t4": _OPTIMISER,
    "tiny_guide": {"batch_size": 16, "learning_rate": 2e-3, "weight_decay": 0.01, "warmup": 100, "final": 0.0, "best": True},
    "tiny_ours": {"batch_size": 16, "learning_rate": 2e-3, "weight_decay": 0.01, "warmup": 100, "final": 0.0, "best": True},
}  # fmt: skip
