"""VGGT-VLA's configs and presets. Sizes of pretrained parts are never typed here: they are read from the parts' own files."""

from dataclasses import dataclass, replace

from repro.machine import UserError

CHOICES = {"backbone": ("vggt", "graph", "none"), "fusion": ("concat", "cross"), "loss": ("mse", "l1", "smooth_l1"),
           "gripper": ("same", "bce"), "neighbours": (4, 8), "dtype": ("float32", "auto"),
           "orientation": ("upright", "rotated", "raw")}  # fmt: skip
OWN = ("patch", "conv")  # vision that trains along


@dataclass(frozen=True)
class VGGTVLAConfig:
    """Everything that decides the model; saved beside the weights. Defaults are those of `vggt_qwen3`."""

    # parts
    vision: str = "patch"            # "patch": linear patches; "conv": small convolutions; or a tower for towers.frozen_vision, frozen
    vision_revision: str | None = None
    language: str = "Qwen/Qwen3-0.6B-Base"  # frozen, its states cached; "tiny": word embeddings that train along
    language_revision: str | None = None
    backbone: str = "vggt"           # alternating attention; "graph": models/graph.py; "none": tokens as fused
    backbone_weights: str = "facebook/VGGT-1B"  # of vggt, frozen, sizes as in the file; "": blocks of the sizes below, trained
    backbone_revision: str | None = None
    dtype: str = "auto"              # of frozen parts: by the device's capability; "float32"
    checkpointing: bool = True       # recompute the backbone's activations in the backward pass
    cache_language: bool = True      # each sentence encoded once, no language model in training; False: encoded in each step
    cache_features: bool = True      # with a frozen tower: `prepare` gives its tokens; False: pictures
    # what it sees
    views: tuple[str, ...] | list[str] = ("static", "wrist")  # one or two cameras, one frame each
    orientation: str = "upright"     # of the pictures it is shown: upright (true left and right), rotated by 180 degrees, raw
    image_size: int = 224            # px, pictures are stretched to squares
    grid: tuple[int, int] | list[int] = (14, 14)  # patches of one view
    text_length: int = 77            # tokens of an instruction; longer ones are refused
    proprio: bool = False            # the state as a token and in the head; the guide has none
    state_dim: int = 8
    blind: bool = False              # pictures blanked in training and acting: the floor of a policy that cannot see
    # sizes
    width: int = 768                 # of tokens outside the backbone, of queries
    heads: int = 12
    depth: int = 6                   # of the graph, of vggt without backbone_weights
    backbone_width: int = 1024       # of vggt without backbone_weights
    backbone_heads: int = 16
    fusion: str = "cross"            # words first read the patches, then both are concatenated; "concat": concatenated as they are
    neighbours: int = 4              # of a patch in the graph; or 8
    channels: int = 16               # of the first convolution with vision="conv"
    language_width: int = 128        # of the tiny word embeddings
    queries: int = 16
    query_layers: int = 3
    head_width: int = 1024
    # actions
    chunk: int = 10
    action_dim: int = 7
    loss: str = "mse"                # or "l1", "smooth_l1"
    gripper: str = "same"            # last action: as the others; "bce": a logit of open (+1), binary cross-entropy
    gripper_weight: float = 0.1      # of that cross-entropy
    # departures for small data (off in the guides' presets)
    keypoints: int = 0               # per view: spatial softmax of the convolutions, a token and part of the head's input; needs "conv"
    point_weight: float = 0.0        # of the L1 error (picture widths) in predicting the gaze region's centre from keypoints
    word_dropout: float = 0.0        # share of tokens replaced in training, tiny language

    def __post_init__(self):
        object.__setattr__(self, "grid", tuple(self.grid))
        object.__setattr__(self, "views", tuple(self.views))
        wrong = [(name, allowed) for name, allowed in CHOICES.items() if getattr(self, name) not in allowed]
        for name, allowed in wrong:
            raise UserError(f"model config: unknown {name}", f"one of {allowed}", repr(getattr(self, name)))
        if self.views not in (("static",), ("wrist",), ("static", "wrist")):
            raise UserError("model config: unknown views", "static, wrist, or both in this order", self.views)
        if self.keypoints and self.vision != "conv":
            raise UserError("model config: keypoints need convolutions", 'vision="conv"', self.vision)
        if self.point_weight and not (self.keypoints and self.views[0] == "static" and not self.blind):
            raise UserError("model config: nothing to point with", "keypoints, the static view, not blind",
                            (self.keypoints, self.views, self.blind))
        if min(self.chunk, self.action_dim, self.queries, self.query_layers, self.depth, self.text_length) < 1:
            raise UserError("model config: sizes must be positive", ">= 1", "0 or less")
        if self.vision in OWN and (self.image_size % self.grid[0] or self.image_size % self.grid[1]):
            raise UserError("model config: the grid does not divide the picture", f"sides that divide {self.image_size}", self.grid)
        rows, columns = self.grid
        if self.vision in OWN and rows != columns:
            raise UserError("model config: cells of the grid must be square, as pictures are", "as many rows as columns", self.grid)
        if self.vision == "conv" and (self.image_size % (4 * rows) or self.channels % 8):
            raise UserError("model config: the convolutions do not fit", f"image_size a multiple of {4 * rows}, channels one of 8",
                            (self.image_size, self.channels))
        for name, width, heads in (("width", self.width, self.heads), ("backbone_width", self.backbone_width, self.backbone_heads)):
            if width % (4 * heads):  # rotary and fixed codes of rows and columns: sines and cosines of each
                raise UserError(f"model config: {name} does not fit its heads", f"a multiple of 4 x {heads}", width)

    @property
    def tokens(self) -> int:
        """Image tokens of all views."""
        return len(self.views) * self.grid[0] * self.grid[1]


_GUIDE = VGGTVLAConfig()
_TINY = VGGTVLAConfig(
    vision="conv", language="tiny", backbone_weights="", dtype="float32", checkpointing=False, image_size=64, grid=(4, 4), text_length=24,
    proprio=True, state_dim=15, width=128, heads=4, depth=2, backbone_width=128, backbone_heads=4, fusion="concat", query_layers=1,
    queries=8, head_width=256, chunk=8, loss="l1", keypoints=32, point_weight=0.1, word_dropout=0.1)  # fmt: skip
PRESETS = {
    "vggt_qwen3": _GUIDE,
    "vggt_qwen3_dinov2": replace(_GUIDE, vision="facebook/dinov2-base", image_size=196, query_layers=6),  # 14 x 14 patches of 14 px
    "graph_qwen2": replace(_GUIDE, language="Qwen/Qwen2-0.5B", backbone="graph", backbone_weights="", fusion="concat"),
    "vggt_tiny": _TINY,
}
# The guides' optimiser and checkpoints, fields of training.loop.TrainConfig (their 100 epochs are steps = 100 * samples / batch_size)
TRAIN = {
    "vggt_qwen3": {"batch_size": 16, "learning_rate": 3e-5, "weight_decay": 1e-5, "clip": 1.0, "seed": 42, "keep_epochs": 5},
    "vggt_qwen3_dinov2": {"batch_size": 12, "learning_rate": 3e-5, "weight_decay": 1e-5, "clip": 1.0, "seed": 42, "keep_epochs": 5},
    "graph_qwen2": {"batch_size": 32, "learning_rate": 1e-4, "clip": 1.0},
    "vggt_tiny": {"batch_size": 32, "learning_rate": 1e-3, "weight_decay": 1e-4, "warmup": 100},  # a recipe that acts at this size
}
