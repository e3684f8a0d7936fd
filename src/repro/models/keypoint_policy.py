"""A small policy that acts: two little CNNs, soft-argmax keypoints, one MLP that writes the whole chunk.

    instruction --words--> which task --embedding--+------------------------+
    static picture --CNN, FiLM--> keypoints (x, y) --+--> where to look --+--> MLP --> K actions
    wrist picture  --CNN, FiLM--> keypoints (x, y) --+                    |
    proprioception ---------------------------------------------------------+

Not a paper's model: it is the control for closed loops on the real simulators, small enough to see some 10^5 frames in minutes on one
core. (Deep Visuomotor Policies, arXiv 1504.00702, for the keypoints; chunk regression by L1 as in arXiv 2304.13705.) Beside the actions it
learns to point at the gaze region's centre in the static picture, and feeds that point to the action head. The instruction is read as a bag
of words and sorted into one of the *training* tasks: a new wording of a known task can work, a new task can't. Nothing is pretrained.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from repro.machine import UserError
from repro.models.action_tokens import normalise_state
from repro.models.towers import resize
from repro.models.words import split

CAMERAS = ("static", "wrist")


@dataclass(frozen=True)
class KeypointConfig:
    """Everything that decides the model. `words` and `tasks` are filled from the training episodes."""

    words: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    word_dropout: float = 0.2  # share of words left out in training
    size: int = 64             # px of both pictures
    channels: int = 16         # of the first convolution
    keypoints: int = 32        # per camera
    hidden: int = 256
    embedding: int = 32        # of a task
    chunk: int = 5             # actions per query
    action_dim: int = 7
    state_dim: int = 15
    point_weight: float = 0.1  # of the gaze point's L1 error
    task_weight: float = 0.1   # of the cross-entropy that sorts instructions
    blind: bool = False        # pictures blanked in training and acting: the floor of a policy that cannot see

    def __post_init__(self):
        if self.blind and self.point_weight:
            raise UserError("model config: a blind model has nothing to point with", "point_weight 0", self.point_weight)
        if not (self.words and self.tasks):
            return
        if min(self.size, self.channels, self.keypoints, self.hidden, self.chunk) < 1:
            raise UserError("model config: sizes must be positive", found=asdict(self))


PRESETS = {"keypoints": KeypointConfig(), "keypoints-blind": KeypointConfig(blind=True, point_weight=0.0)}


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU(),
                                  nn.Conv2d(after, after, 3, 1, 1), nn.GroupNorm(8, after))
        self.shortcut = nn.Conv2d(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class Eye(nn.Module):
    """Picture and task -> K points. The softmax starts sharp: started flat, every point is the middle of every picture."""

    def __init__(self, channels: int, keypoints: int, embedding: int):
        super().__init__()
        c = channels
        self.body = nn.Sequential(nn.Conv2d(3, c, 5, 2, 2), nn.GroupNorm(8, c), nn.ReLU(), Residual(c, c, 2), Residual(c, 2 * c, 1))
        self.film = nn.Linear(embedding, 4 * c)
        self.maps = nn.Conv2d(2 * c, keypoints, 1)
        self.sharpness = nn.Parameter(torch.full((keypoints,), 2.0))

    def forward(self, picture: Float[Tensor, "b 3 h w"], task: Float[Tensor, "b e"]) -> Float[Tensor, "b k 2"]:
        """Expected (x, y) in [-1, 1] under each map's softmax."""
        features = self.body(picture)
        scale, shift = self.film(task)[..., None, None].chunk(2, dim=1)
        maps = self.maps(F.relu(features * (1 + scale) + shift)) * self.sharpness.exp()[:, None, None]
        weight = F.softmax(maps.flatten(2), dim=2).view(maps.shape)
        x = (weight.sum(2) * torch.linspace(-1, 1, maps.shape[3], device=maps.device)).sum(-1)
        y = (weight.sum(3) * torch.linspace(-1, 1, maps.shape[2], device=maps.device)).sum(-1)
        return torch.stack([x, y], dim=-1)


class KeypointPolicy(nn.Module):
    """The policy. `stats`: {"observation.state": {"mean": [...], "std": [...]}} of the training data."""

    def __init__(self, config: KeypointConfig, stats: dict):
        super().__init__()
        if not config.words or not config.tasks:
            raise UserError("model config: no words or no tasks", next_step="train through repro.training.launch, which fills them in")
        self.config = c = config
        self.stats = {"observation.state": {k: [float(x) for x in stats["observation.state"][k]] for k in ("mean", "std")}}
        self.data = {}  # conventions of what it is trained on (fingerprint.of_data)
        self.mean, self.std = (np.asarray(self.stats["observation.state"][k], np.float32) for k in ("mean", "std"))
        if self.mean.shape != (c.state_dim,):
            raise UserError("the data's state has another size than the model's", expected=c.state_dim, found=self.mean.shape)
        self.index = {word: i for i, word in enumerate(c.words)}
        self.read = nn.Sequential(nn.Linear(len(c.words), 64), nn.ReLU(), nn.Linear(64, len(c.tasks)))
        self.task = nn.Parameter(torch.randn(len(c.tasks), c.embedding))
        self.eyes = nn.ModuleList(Eye(c.channels, c.keypoints, c.embedding) for _ in CAMERAS)
        seen = 2 * 2 * c.keypoints + c.state_dim + c.embedding
        self.point = nn.Sequential(nn.Linear(seen, 128), nn.ReLU(), nn.Linear(128, 2))
        self.head = nn.Sequential(nn.Linear(seen + 2, c.hidden), nn.ReLU(), nn.Linear(c.hidden, c.hidden), nn.ReLU(),
                                  nn.Linear(c.hidden, c.chunk * c.action_dim))

    @property
    def device(self) -> torch.device:
        return self.task.device

    @property
    def key(self) -> str:
        """Names what `prepare` depends on."""
        return f"keypoints {self.config.size}"

    def prepare(self, observation: dict) -> dict[str, UInt8[np.ndarray, "s s 3"]]:
        """One step -> both pictures, area-averaged to size x size."""
        size = self.config.size
        return {name: resize(observation[f"observation.images.{name}"], size, size) for name in CAMERAS}

    def bag(self, instructions: list[str]) -> Float[Tensor, "b words"]:
        """Which known words an instruction has, scaled to length 1; unknown words say nothing."""
        found = np.zeros((len(instructions), len(self.index)), np.float32)
        for row, instruction in zip(found, instructions, strict=True):
            row[[self.index[word] for word in split(instruction) if word in self.index]] = 1
        bag = torch.from_numpy(found).to(self.device)
        if self.training and self.config.word_dropout:
            bag = bag * (torch.rand(bag.shape, device=self.device) >= self.config.word_dropout)
        return bag / bag.norm(dim=1, keepdim=True).clamp(min=1)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss`, under the name that DistributedDataParallel calls."""
        return self.loss(batch)

    def guess(self, pictures: dict, state: np.ndarray, instructions: list[str]
              ) -> tuple[Float[Tensor, "b k a"], Float[Tensor, "b 2"], Float[Tensor, "b tasks"]]:
        """(actions, gaze point in [-1, 1], logits of the task)."""
        logits = self.read(self.bag(instructions))
        task = F.softmax(logits, dim=1) @ self.task
        seen = [torch.from_numpy(normalise_state(np.asarray(state, np.float32), self.mean, self.std)).to(self.device), task]
        for eye, name in zip(self.eyes, CAMERAS, strict=True):
            shown = np.asarray(pictures[name])[:1 if self.config.blind else None]
            picture = torch.as_tensor(shown).to(self.device).permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
            points = eye(picture, task[: len(shown)]).flatten(1)
            seen.append((points * 0).expand(len(task), -1) if self.config.blind else points)  # every weight keeps a gradient, of zero
        seen = torch.cat(seen, dim=1)
        point = self.point(seen)
        actions = self.head(torch.cat([seen, point], dim=1))
        return actions.view(-1, self.config.chunk, self.config.action_dim), point, logits

    def loss(self, batch: dict) -> dict[str, Tensor]:
        """Scalars: "loss" (total), "l1" of the actions, "point" (picture widths), "task" (cross-entropy).

        Batch, numpy: static, wrist (uint8), state (B, S), action (B, K, A), instruction, task_id (lists), gaze.box (B, 4), gaze.valid (B,).
        """
        actions, point, logits = self.guess(batch, batch["state"], list(batch["instruction"]))
        out = {"l1": (actions - torch.as_tensor(batch["action"]).to(self.device)).abs().mean()}
        labels = torch.tensor([self.config.tasks.index(task) for task in batch["task_id"]], device=self.device)
        out["task"] = F.cross_entropy(logits, labels)
        out["loss"] = out["l1"] + self.config.task_weight * out["task"]
        if self.config.point_weight:
            if "gaze.box" not in batch:
                raise UserError("pointing at the gaze region needs gaze boxes in the data", "column gaze.box", sorted(batch),
                                "run the gaze step (notebook 04), or set point_weight to 0")
            box = torch.as_tensor(batch["gaze.box"]).to(self.device)
            centre, valid = box[:, :2] + box[:, 2:] - 1, torch.as_tensor(batch["gaze.valid"]).to(self.device).float()
            out["point"] = ((point - centre).abs().mean(1) * valid).sum() / valid.sum().clamp(min=1) / 2
            out["loss"] = out["loss"] + self.config.point_weight * 2 * out["point"]
        return out

    @torch.inference_mode()
    def act(self, observations: list[dict], instructions: list[str]) -> Float[np.ndarray, "b k a"]:
        """Actions in [-1, 1]; the gripper is -1 or +1."""
        was_training = self.training
        self.eval()
        prepared = [self.prepare(observation) for observation in observations]
        pictures = {name: np.stack([one[name] for one in prepared]) for name in CAMERAS}
        actions = self.guess(pictures, np.stack([o["observation.state"] for o in observations]), list(instructions))[0].clamp(-1, 1)
        self.train(was_training)
        actions = actions.cpu().numpy()
        actions[..., -1] = np.where(actions[..., -1] > 0, 1, -1)
        return actions

    # ---- on disk ------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `model.json` (config and statistics) into an existing folder."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, Path(folder) / "model.safetensors")
        about = {"model": "KeypointPolicy", "config": asdict(self.config), "stats": self.stats, "data": self.data}
        (Path(folder) / "model.json").write_text(json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path | str) -> "KeypointPolicy":
        """The model of a folder written by `save` (a checkpoint is one)."""
        folder = Path(folder)
        if not (folder / "model.json").exists():
            raise UserError(f"{folder} holds no model", expected="model.json and model.safetensors", next_step="train first")
        about = json.loads((folder / "model.json").read_text())
        unknown = set(about["config"]) - {field.name for field in fields(KeypointConfig)}
        if about["model"] != "KeypointPolicy" or unknown:
            raise UserError(f"{folder}/model.json is of another model", "KeypointPolicy", f"{about['model']}, {sorted(unknown)}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in about["config"].items()}
        model = cls(KeypointConfig(**values), about["stats"])
        found = load_file(folder / "model.safetensors")
        wrong = [name for name, tensor in model.state_dict().items() if name not in found or found[name].shape != tensor.shape]
        if wrong or len(found) != len(model.state_dict()):
            raise UserError(f"{folder}/model.safetensors does not fit the model", f"{len(model.state_dict())} tensors", wrong or len(found))
        model.load_state_dict(found)
        model.data = about.get("data", {})
        return model
