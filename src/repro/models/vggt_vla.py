"""VGGT-VLA: does a geometry backbone help manipulation? (the guides G0, G1; VGGT is arXiv 2503.11651)

    views   --patches or a frozen tower--> (B, V*196, 768) --+--> adapter --> VGGT's blocks, a graph, or nothing --> projector
    words   --frozen language model, cached--> (B, 77, 768) -+                                                          |
                                                        (B, 10, 7) actions <-- MLP <-- 16 action queries read (B, V*196 + 77, 768)

    model = VGGTVLA.build(PRESETS["vggt_tiny"], store.stats, [episode.task for episode in store.episodes])

One class for every preset (models/vggt_vla_config.py). Views are single frames, static camera first; in VGGT's frame blocks the patches of
a view read their own view, and words the first one. A checkpoint says what it belongs to, and is refused, before anything is built, where a
backbone, a tokenizer, a camera convention or the actions are others (models/fingerprint.py). There is no loading of a part of it.
"""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from repro.machine import UserError
from repro.models import fingerprint, sentences, towers, vggt, vggt_vla_checkpoint
from repro.models.action_tokens import normalise_state
from repro.models.graph import Graph, chain_edges, grid_edges
from repro.models.parts import fingerprint as weights_fingerprint
from repro.models.vggt_vla_config import PRESETS, TRAIN, VGGTVLAConfig  # noqa: F401 (callers import them from here)
from repro.models.vggt_vla_parts import Convolutions, LanguageAdapter, Patches, QueryLayer

LOSSES = {"mse": F.mse_loss, "l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss}


class VGGTVLA(nn.Module):
    """The policy. `stats`: {"observation.state": {"mean": [...], "std": [...]}} of the training data; words, tower, blocks: ready parts.

    conventions: what an action of 1 is in that data (fingerprint.conventions), kept for data that it is used with later.
    """

    def __init__(self, config: VGGTVLAConfig, stats: dict, words: nn.Module, tower: nn.Module | None = None,
                 blocks: vggt.Alternating | None = None, conventions: dict | None = None):
        super().__init__()
        self.config, self.conventions = config, conventions or {}
        c = config
        self.stats = {"observation.state": {k: [float(x) for x in stats["observation.state"][k]] for k in ("mean", "std")}}
        self.mean, self.std = (np.asarray(self.stats["observation.state"][k], np.float32) for k in ("mean", "std"))
        if self.mean.shape != (c.state_dim,):
            raise UserError("the data's state has another size than the model's", expected=c.state_dim, found=self.mean.shape)
        if tower is not None and (tuple(tower.grid) != c.grid or tower.image_size != c.image_size):
            raise UserError("the vision tower has another grid or picture size than the config", (c.grid, c.image_size),
                            (tower.grid, tower.image_size))
        for part in (tower, blocks):
            if part is not None and not part.identity.get("sha256"):
                raise UserError("a part with random weights is never frozen", "weights from a file, with their sha256", part.identity,
                                'load them, or train along: vision="patch", backbone_weights=""')
        d, self.words, self.tower = c.width, words, tower
        self.eyes = None if tower is not None else nn.ModuleList(self._eye(words.width) for _ in c.views)
        self.see = nn.Identity() if tower is None else nn.Linear(tower.dim, d)
        self.read = nn.Sequential(nn.LayerNorm(words.width), nn.Linear(words.width, d))
        self.types = nn.Parameter(0.02 * torch.randn(2, d))  # of image tokens, of words
        self.cameras = nn.Parameter(0.02 * torch.randn(len(c.views), 1, d))
        self.language_adapter = LanguageAdapter(d, c.heads) if c.fusion == "cross" else None
        self._backbone(blocks)
        self.memory_norm = nn.LayerNorm(d)
        extra = (c.state_dim if c.proprio else 0, 2 * c.keypoints * len(c.views), 2 if c.point_weight else 0)
        self.state_token = nn.Linear(c.state_dim, d) if c.proprio else None
        self.point_tokens = nn.Linear(2 * c.keypoints, d) if c.keypoints else None
        self.point = nn.Sequential(nn.Linear(sum(extra[:2]) + words.width, 128), nn.ReLU(), nn.Linear(128, 2)) if c.point_weight else None
        self.queries = nn.Parameter(0.02 * torch.randn(c.queries, d))
        self.reader = nn.ModuleList(QueryLayer(d, c.heads) for _ in range(c.query_layers))
        self.head_norm = nn.LayerNorm(d)
        self.head = nn.Sequential(nn.Linear(c.queries * d + sum(extra), c.head_width), nn.GELU(),
                                  nn.Linear(c.head_width, c.chunk * c.action_dim))
        self.image_positions = slice(0, c.tokens)  # of the features that the queries read

    def _eye(self, words: int) -> nn.Module:
        c = self.config
        return Patches(c.image_size, c.grid, c.width) if c.vision == "patch" else (
            Convolutions(c.image_size, c.grid, c.width, c.channels, c.keypoints, words))

    def _backbone(self, blocks: vggt.Alternating | None) -> None:
        c, d, length = self.config, self.config.width, self.config.text_length
        self.graph = self.blocks = None
        if c.backbone == "graph":
            edges = torch.block_diag(*(grid_edges(*c.grid, c.neighbours) for _ in c.views), chain_edges(length))
            self.graph = Graph(d, c.depth, c.heads, 4 * d, edges)
            self.graph.checkpointing = c.checkpointing
        elif c.backbone == "vggt":
            if (blocks is None) == bool(c.backbone_weights):
                raise UserError("VGGT's blocks do not fit the config", "pretrained blocks, and only where backbone_weights names them",
                                (c.backbone_weights or "none named", "none given" if blocks is None else "given"))
            wide = c.backbone_width if blocks is None else blocks.config.dim
            self.blocks = blocks or vggt.Alternating(wide, c.depth, c.backbone_heads, 4 * wide, scale=0.5)
            self.blocks.checkpointing = c.checkpointing
            self.image_adapter, self.word_adapter, self.projector = nn.Linear(d, wide), nn.Linear(d, wide), nn.Linear(2 * wide, d)
            patches = vggt.patch_positions(*c.grid).repeat(len(c.views), 1)
            frames = torch.arange(len(c.views)).repeat_interleave(len(patches) // len(c.views))
            self.register_buffer("positions", F.pad(patches, (0, 0, 0, length))[None], persistent=False)
            self.register_buffer("frames", F.pad(frames, (0, length)) if len(c.views) > 1 else None, persistent=False)

    @classmethod
    def build(cls, config: VGGTVLAConfig, stats: dict, instructions: list[str] = (), cache: Path | str | None = None,
              conventions: dict | None = None) -> "VGGTVLA":
        """With the parts that the config names. instructions: of the training data; a frozen language model encodes them once.

        cache: file for the encoded sentences (models/sentences.py); found again by a run on the same language model.
        """
        words = sentences.build(config, instructions, cache)
        return cls(config, stats, words, *vggt_vla_checkpoint.frozen_parts(config), conventions)

    def train(self, mode: bool = True) -> "VGGTVLA":
        super().train(mode)
        for frozen in (self.tower, self.blocks if self.config.backbone_weights else None):
            if frozen is not None:
                frozen.train(mode and frozen is self.blocks)  # no dropout in there; training mode switches checkpointing on
        return self

    @property
    def device(self) -> torch.device:
        return self.types.device

    def arithmetic(self):
        """The context that frozen parts in 16 bits beside trained ones in 32 need; otherwise whatever is set stays."""
        held = {p.dtype for part in (self.blocks, self.tower) if part is not None for p in part.parameters()} - {torch.float32}
        return torch.autocast(self.device.type, held.pop()) if held else nullcontext()

    def counts(self) -> str:
        """"12,345,678 of 23,456,789 parameters train", the language model not counted where it is not in memory."""
        every = list(self.parameters())
        return f"{sum(p.numel() for p in every if p.requires_grad):,} of {sum(p.numel() for p in every):,} parameters train"

    # ---- pictures -----------------------------------------------------------------------------------------------
    @property
    def _sees_once(self) -> bool:
        return self.tower is not None and self.config.cache_features

    @property
    def key(self) -> str:
        """Names what `prepare` depends on, frozen weights included."""
        c, seen = self.config, self.tower
        tower = {"tower": [weights_fingerprint(seen), list(seen.image_mean), list(seen.image_std)]} if self._sees_once else {}
        return "vggt_vla " + json.dumps({"views": c.views, "size": c.image_size} | tower)

    def prepare(self, observation: dict) -> dict[str, np.ndarray]:
        """One step -> "views" uint8 (V, S, S, 3), area-averaged; with a frozen tower "features" float16 (V, N, Dv)."""
        return self.prepare_many([observation])[0]

    def prepare_many(self, observations: list[dict]) -> list[dict[str, np.ndarray]]:
        """`prepare` of several steps, which a frozen tower sees at once."""
        c, names = self.config, [f"observation.images.{view}" for view in self.config.views]
        for observation in observations[:1]:
            lacking = [name for name in names if name not in observation]
            if lacking:
                raise UserError("a camera that the model looks through is missing", names,
                                [name for name in observation if ".images." in name] or "none",
                                f"give it {', '.join(lacking)}, or train with views=(...) of what there is")
        shown = np.stack([[towers.resize(one[name], c.image_size, c.image_size) for name in names] for one in observations])
        if not self._sees_once:
            return [{"views": one} for one in shown]
        with torch.no_grad():
            seen = self.tower(self._pixels(shown.reshape(-1, *shown.shape[2:]))).to(torch.float16).cpu().numpy()
        return [{"features": one} for one in seen.reshape(len(shown), len(names), *seen.shape[1:])]

    def _pixels(self, pictures: np.ndarray) -> Float[Tensor, "b 3 h w"]:
        # contiguous: torch 2.13's backward of a strided 1x1 convolution over 8 channels-last channels crashes on two threads of a CPU
        pixels = torch.as_tensor(np.asarray(pictures)).to(self.device).permute(0, 3, 1, 2).float().contiguous() / 255
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (
            (self.tower.image_mean, self.tower.image_std) if self.tower is not None else ([0.5] * 3, [0.5] * 3)))
        return (pixels - mean) / std

    def look(self, batch: dict, words: Float[Tensor, "b e"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b p"] | None]:
        """Image tokens of all views, and keypoints (x, y in [-1, 1]) of all views in a row. A blind model sees grey."""
        c, B = self.config, len(words)
        if self.tower is not None:
            if "features" in batch:
                seen = torch.as_tensor(np.asarray(batch["features"])).to(self.device).float()
            else:
                views = np.asarray(batch["views"])
                seen = self.tower(self._pixels(views.reshape(-1, *views.shape[2:]))).unflatten(0, (B, len(c.views))).float()
            tokens, points = self.see(seen * 0 if c.blind else seen), None
        else:
            views = np.asarray(batch["views"])
            found = [eye(self._pixels(views[:, i]) * (0 if c.blind else 1), words) for i, eye in enumerate(self.eyes)]
            tokens = torch.stack([one for one, _ in found], dim=1)
            points = torch.cat([p.flatten(1) for _, p in found], dim=1) if c.keypoints else None
        return (tokens + self.cameras + self.types[0]).flatten(1, 2), points

    # ---- forward ------------------------------------------------------------------------------------------------
    def features(self, image: Float[Tensor, "b n d"], words: Float[Tensor, "b l d"], real: Bool[Tensor, "b l"]
                 ) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
        """What the action queries read: image tokens, then words, after fusion and backbone; and what of it is real."""
        if self.language_adapter is not None:
            words = self.language_adapter(words, image)
        real = torch.cat([real.new_ones(image.shape[:2]), real], dim=1)
        if self.blocks is not None:
            tokens = torch.cat([self.image_adapter(image), self.word_adapter(words)], dim=1)
            fused = self.projector(self.blocks(tokens, self.positions, self.frames, real).to(tokens.dtype))
        else:
            fused = torch.cat([image, words], dim=1)
            fused = fused if self.graph is None else self.graph(fused, real)
        return self.memory_norm(fused), real

    def guess(self, batch: dict) -> tuple[Float[Tensor, "b k a"], Float[Tensor, "b 2"] | None]:
        """(what the head says of each action, gaze point in [-1, 1] or None). batch: views or features, state (B, S), instruction."""
        c = self.config
        states, real = self.words(list(batch["instruction"]), self.device)
        said = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        image, points = self.look(batch, said)
        memory, mask = self.features(image, self.read(states) + self.types[1], real)
        beside = []
        if c.proprio:
            normal = torch.from_numpy(normalise_state(np.asarray(batch["state"], np.float32), self.mean, self.std)).to(self.device)
            beside, memory = [normal], torch.cat([memory, self.state_token(normal)[:, None]], dim=1)
        if points is not None:
            tokens = self.point_tokens(points.unflatten(1, (len(c.views), -1)))
            beside, memory = [*beside, points], torch.cat([memory, tokens], dim=1)
        mask = F.pad(mask, (0, memory.shape[1] - mask.shape[1]), value=True)[:, None, None]
        point = None
        if self.point is not None:
            point = self.point(torch.cat([*beside, said], dim=1))
            beside.append(point)
        queries = self.queries.expand(len(memory), -1, -1)
        for layer in self.reader:
            queries = layer(queries, memory, mask)
        out = self.head(torch.cat([self.head_norm(queries).flatten(1), *beside], dim=1))
        return out.unflatten(1, (c.chunk, c.action_dim)).float(), point

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss`, under the name that DistributedDataParallel calls."""
        return self.loss(batch)

    def loss(self, batch: dict) -> dict[str, Tensor]:
        """Scalars: "loss" (total), "action" (of the config's kind), "l1" (mean error of actions in [-1, 1]), "gripper", "point".

        Batch, numpy: views or features, state (B, S), action (B, K, A), instruction list; gaze.box (B, 4) and gaze.valid (B,) to point.
        """
        c = self.config
        wanted = torch.as_tensor(np.asarray(batch["action"], np.float32)).to(self.device)
        if tuple(wanted.shape[1:]) != (c.chunk, c.action_dim):
            raise UserError("the data's actions have another shape than the model's", f"(B, {c.chunk}, {c.action_dim})",
                            tuple(wanted.shape), "train with this chunk and action_dim")
        with self.arithmetic():
            said, point = self.guess(batch)
        moving = slice(None) if c.gripper == "same" else slice(-1)
        out = {"action": LOSSES[c.loss](said[..., moving], wanted[..., moving])}
        out["loss"] = out["action"]
        if c.gripper == "bce":
            out["gripper"] = F.binary_cross_entropy_with_logits(said[..., -1], (wanted[..., -1] > 0).float())
            out["loss"] = out["loss"] + c.gripper_weight * out["gripper"]
        if point is not None:
            if "gaze.box" not in batch:
                raise UserError("pointing at the gaze region needs gaze boxes in the data", "column gaze.box", sorted(batch),
                                "run the gaze step (notebook 04), or set point_weight to 0")
            box = torch.as_tensor(np.asarray(batch["gaze.box"], np.float32)).to(self.device).nan_to_num()
            valid = torch.as_tensor(np.asarray(batch["gaze.valid"])).to(self.device).float()
            error = (point.float() - (box[:, :2] + box[:, 2:] - 1)).abs().mean(1)
            out["point"] = (error * valid).sum() / valid.sum().clamp(min=1) / 2
            out["loss"] = out["loss"] + c.point_weight * 2 * out["point"]
        with torch.no_grad():
            out["l1"] = (self._actions(said) - wanted).abs().mean()
        return out

    def _actions(self, said: Float[Tensor, "b k a"]) -> Float[Tensor, "b k a"]:
        """In [-1, 1]; the gripper is -1 or +1."""
        return torch.cat([said[..., :-1].clamp(-1, 1), torch.where(said[..., -1:] > 0, 1.0, -1.0)], dim=-1)

    @torch.inference_mode()
    def act(self, observations: list[dict], instructions: list[str]) -> Float[np.ndarray, "b k a"]:
        """Actions in [-1, 1], float32, for a batch of raw observations; the same for the same input."""
        was_training = self.training
        self.eval()
        try:
            prepared = self.prepare_many(observations)
            batch = {name: np.stack([one[name] for one in prepared]) for name in prepared[0]}
            batch |= {"state": np.stack([one["observation.state"] for one in observations]), "instruction": list(instructions)}
            with self.arithmetic():
                return self._actions(self.guess(batch)[0]).cpu().numpy()
        finally:
            self.train(was_training)

    def attention(self, observations: list[dict], instructions: list[str], source: str = "queries") -> Float[np.ndarray, "b l h q n"]:
        """Softmax weights of "queries" or "words" to image tokens, with which it acts (models/vggt_vla_attention.py)."""
        from repro.models.vggt_vla_attention import attention

        return attention(self, observations, instructions, source)

    # ---- on disk ------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """Write weights that train, config, statistics and what they belong to into a folder (models/vggt_vla_checkpoint.py)."""
        vggt_vla_checkpoint.save(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str, language: str | None = None, store=None, elsewhere: dict[str, str] | None = None) -> "VGGTVLA":
        """The model of a folder written by `save`; UserError with a table where it does not belong to what is here.

        language: another place of the *same* language model; elsewhere: {"vision": folder, "vggt": file}, of the same frozen parts. store:
        data it is to be used with, compared as well.
        """
        return vggt_vla_checkpoint.load(cls, Path(folder), language, store, elsewhere)

    def load_weights(self, weights: dict[str, Tensor], source: Path | str) -> None:
        """Take over all tensors or none."""
        fingerprint.take(self, vggt_vla_checkpoint.saved_names(self), weights, source)
