"""ReconVLA (arXiv 2508.10333): a language model that reads both cameras, writes actions, and rebuilds where it should look.

    instruction | image tokens | instruction | proprioception | <act> | 35 action tokens
                        |                                                    |
             denoiser rebuilds the gaze region                  cross-entropy on the actions

The instruction stands before *and* after the image, so that image tokens can attend to it causally. Loss = action
cross-entropy + recon_weight * diffusion loss; the reconstruction exists in training only.

Departures of the `tiny` preset, which has no pretrained part and trains on a CPU. Each is a field of the config, so that
`plain` (all of them off) can be compared: keypoints, ordered_bins, soft_bins, proprio="linear", word_dropout, action_dropout,
draws=1. Two have no switch: no VAE (the latents are the target's own pixels, area-averaged so that one token holds
latent_patch x latent_patch x 3 of them, scaled to [-1, 1]: nothing random is frozen), and no end token (35 actions always).
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from repro.gaze.crops import crop
from repro.machine import UserError
from repro.models.action_tokens import BIN_VALUES, BINS, ActionTokens, normalise_state
from repro.models.denoiser import Denoiser
from repro.models.towers import Keypoints, TinyTower, compose, resize
from repro.models.words import PAD, UNKNOWN, Words

BIN_SCALE = 0.1  # standard deviation of ordered bins; with the decoder's 0.02 the loss stands still for the first hundreds of steps


@dataclass(frozen=True)
class ReconVLAConfig:
    """Everything that decides the model; saved beside the weights. `words` is filled from the training instructions."""

    words: tuple[str, ...] = ()
    text_length: int = 12           # word slots of one instruction
    word_dropout: float = 0.1       # share of words made unknown in training: wordings not seen before contain unseen words
    height: int = 144               # canvas, px
    width: int = 96
    static_rows: int = 96           # of the canvas' rows; a multiple of 16
    resample: str = "area"          # or "lanczos", as upstream
    channels: int = 24              # of the tower's first convolution
    keypoints: int = 32             # per camera, added to every action position; 0 = none at all, as in the paper
    asked_keypoints: int = 16       # further ones per camera, on maps that the instruction picks
    hidden: int = 128               # decoder
    layers: int = 3
    heads: int = 4
    intermediate: int = 256
    init: float = 0.09              # deviation of first weights: 1 / sqrt(hidden); Qwen2's 0.02 suits widths in the thousands
    chunk: int = 5                  # actions per query
    action_dim: int = 7
    state_dim: int = 15
    proprio: str = "linear"         # "tokens": 15 action-slot tokens, as in the paper; "linear": one continuous token
    ordered_bins: bool = True       # action embeddings start as Fourier features of their value; False: random
    soft_bins: float = 2.0          # width (in bins) of the Gaussian target over bins; 0: one-hot, as in the paper
    action_dropout: float = 0.0     # share of action tokens hidden from later ones in training: without, a chunk is copied, not seen
    recon: bool = True              # False: the paper's baseline
    target: str = "gaze"            # "gaze": crop above wrist image; "whole": the canvas itself
    recon_weight: float = 1.0       # lambda
    gaze_margin: float = 0.0        # of the box's size, added on each side; 0 as upstream
    latent_patch: int = 4           # pixels of the target per token and axis
    denoiser_width: int = 96
    denoiser_depth: int = 2
    denoiser_heads: int = 4
    draws: int = 1                  # noise levels per sample and step; upstream 4: less noise per step, fewer steps a minute
    blind: bool = False             # canvas blanked in training and acting: the floor of a policy that cannot see

    def __post_init__(self):
        for name, allowed in (("proprio", ("linear", "tokens")), ("target", ("gaze", "whole")), ("resample", ("area", "lanczos"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"model config: unknown {name}", expected=f"one of {allowed}", found=repr(getattr(self, name)))
        if self.height % 16 or self.width % 16 or self.static_rows % 16 or not 0 < self.static_rows < self.height:
            raise UserError("model config: the canvas does not fall into 16 px patches", found=(self.height, self.width, self.static_rows),
                            expected="height, width, static_rows multiples of 16")
        if self.recon_weight < 0:
            raise UserError("model config: recon_weight must not be negative", expected=">= 0", found=self.recon_weight)
        if self.blind and self.recon:
            raise UserError("model config: a blind model has nothing to reconstruct from", next_step="set recon to false with blind")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of image tokens; rows below static_rows / 16 belong to the static camera."""
        return self.height // TinyTower.patch, self.width // TinyTower.patch


PRESETS = {
    "tiny": ReconVLAConfig(),
    "plain": ReconVLAConfig(keypoints=0, ordered_bins=False, soft_bins=0.0, proprio="tokens", word_dropout=0.0, action_dropout=0.0,
                            draws=4),
}


def fourier(values: Float[np.ndarray, " n"], width: int) -> Float[Tensor, "n width"]:
    """Sines and cosines of `values` in [-1, 1], periods from 4 down to 1/16, unit variance: neighbours start alike."""
    angles = torch.from_numpy(np.pi * values[:, None] * 2.0 ** np.linspace(-1, 5, width // 2)[None]).float()
    return 2**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)


class ReconVLA(nn.Module):
    """The policy. `stats`: {"observation.state": {"mean": [...], "std": [...]}} of the training data."""

    def __init__(self, config: ReconVLAConfig, stats: dict):
        super().__init__()
        if not config.words:
            raise UserError("model config: no words", next_step="fill `words` with repro.models.words.vocabulary(training instructions)")
        self.config, self.text = config, Words(config.words, config.text_length)
        self.stats = {"observation.state": {k: [float(x) for x in stats["observation.state"][k]] for k in ("mean", "std")}}
        self.state_mean, self.state_std = (np.asarray(self.stats["observation.state"][k], np.float32) for k in ("mean", "std"))
        if self.state_mean.shape != (config.state_dim,):
            raise UserError("the data's state has another size than the model's", expected=config.state_dim, found=self.state_mean.shape)
        self.act_id = self.text.size  # stands where upstream has " ASSISTANT:"
        self.tokens = ActionTokens(self.text.size + 1 + BINS)
        c, d = config, config.hidden
        self.vision_tower = TinyTower(c.height, c.width, c.channels, d)
        self.mm_projector = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d))  # mlp2x_gelu
        map_rows = c.static_rows // TinyTower.map_stride
        self.keypoints = Keypoints(2 * c.channels, c.keypoints, c.asked_keypoints, map_rows, d, c.state_dim) if c.keypoints else None
        self.proprio = nn.Sequential(nn.Linear(c.state_dim, d), nn.GELU(), nn.Linear(d, d)) if c.proprio == "linear" else None
        self.decoder = Qwen2ForCausalLM(Qwen2Config(
            vocab_size=self.tokens.vocab_size, hidden_size=d, intermediate_size=c.intermediate, num_hidden_layers=c.layers,
            num_attention_heads=c.heads, num_key_value_heads=c.heads, max_position_embeddings=1024, tie_word_embeddings=True,
            initializer_range=c.init, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa"))
        if c.ordered_bins:
            with torch.no_grad():  # slots run from the highest value (id first) down
                self.embedding[self.tokens.first:] = BIN_SCALE * fourier(BIN_VALUES[::-1].copy(), d)
        latent_dim = 3 * c.latent_patch**2
        self.denoiser = Denoiser(d, latent_dim, c.grid, c.denoiser_width, c.denoiser_depth, c.denoiser_heads, c.draws) if c.recon else None

    @property
    def embedding(self) -> Tensor:
        """Input embeddings (vocabulary, hidden); tied to the output head."""
        return self.decoder.get_input_embeddings().weight

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    # ---- pictures -----------------------------------------------------------------------------------------------
    @property
    def key(self) -> str:
        """Names what `prepare` depends on: baseline, whole and gaze models of one geometry share a cache."""
        names = ("height", "width", "static_rows", "resample", "latent_patch", "gaze_margin")
        return "reconvla " + json.dumps({name: getattr(self.config, name) for name in names})

    def canvas(self, observation: dict, static: np.ndarray | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """Both cameras of a raw observation in one image; `static` stands in for the static camera's picture."""
        c = self.config
        static = observation["observation.images.static"] if static is None else static
        return compose(static, observation["observation.images.wrist"], c.height, c.width, c.static_rows, c.resample)

    def prepare(self, observation: dict) -> dict[str, np.ndarray]:
        """One step -> {"canvas": uint8 (H, W, 3)} and, if it has a gaze box, {"target": uint8 (gh * p, gw * p, 3)}.

        The target is the canvas with the gaze crop (stretched, as upstream) in place of the static picture, above the unchanged
        wrist picture, area-averaged to `latent_patch` pixels a token. The whole-image target is the canvas itself (see `latents`).
        """
        c, out = self.config, {"canvas": self.canvas(observation)}
        if "gaze.box" in observation:
            gaze = crop(observation["observation.images.static"], observation["gaze.box"], margin=c.gaze_margin)
            out["target"] = resize(self.canvas(observation, gaze), c.grid[0] * c.latent_patch, c.grid[1] * c.latent_patch)
        elif c.recon and c.target == "gaze":
            raise UserError("the gaze target needs gaze boxes in the data", expected="column gaze.box", found=sorted(observation),
                            next_step="run the gaze step (notebook 04), or set target='whole' or recon=False")
        return out

    def latents(self, picture: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b d gh gw"]:
        """A target, or a canvas (averaged down first), unfolded to the token grid in [-1, 1]; channel order colour, row, column."""
        picture = picture.permute(0, 3, 1, 2).float() / 127.5 - 1
        shrink = picture.shape[2] // (self.config.grid[0] * self.config.latent_patch)
        return F.pixel_unshuffle(F.avg_pool2d(picture, shrink), self.config.latent_patch)

    def pixels(self, latents: Float[Tensor, "b d gh gw"]) -> UInt8[Tensor, "b th tw 3"]:
        """The inverse of `latents`, rounded to bytes."""
        image = F.pixel_shuffle(latents.float(), self.config.latent_patch).permute(0, 2, 3, 1)
        return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    # ---- sequence -----------------------------------------------------------------------------------------------
    @property
    def image_positions(self) -> slice:
        """Where the grid's tokens lie in the sequence, row by row."""
        return slice(self.config.text_length, self.config.text_length + self.config.grid[0] * self.config.grid[1])

    def prompt(self, canvas: UInt8[Tensor, "b h w 3"], state: Float[np.ndarray, "b s"], instructions: list[str]
               ) -> tuple[Float[Tensor, "b l d"], Float[Tensor, "b 1 d"]]:
        """Embeddings of everything before the first action token (the last is <act>), and what is added to each action token.

        The second is the keypoints' vector, already added to <act>; zero without keypoints.
        """
        words = torch.from_numpy(self.text.encode(instructions)).to(self.device)
        if self.training and self.config.word_dropout:
            hidden = (torch.rand(words.shape, device=self.device) < self.config.word_dropout) & (words > UNKNOWN)
            words = torch.where(hidden, torch.randint_like(words, 1, UNKNOWN + 1), words)
        text = F.embedding(words, self.embedding)
        pixels = canvas.permute(0, 3, 1, 2).float() / 127.5 - 1
        image, features = self.vision_tower(pixels * 0 if self.config.blind else pixels)
        normal = normalise_state(np.asarray(state, np.float32), self.state_mean, self.state_std)
        numbers = torch.from_numpy(normal).to(self.device)
        if self.proprio is not None:
            proprio = self.proprio(numbers)[:, None]
        else:
            proprio = F.embedding(torch.from_numpy(self.tokens.encode(normal)).to(self.device), self.embedding)
        where = torch.zeros_like(text[:, :1])
        if self.keypoints is not None:
            there = (words != PAD)[..., None]
            where = self.keypoints(features, (text * there).sum(1) / there.sum(1).clamp(min=1), numbers)[:, None]
        return torch.cat([text, self.mm_projector(image), text, proprio, self.embedding[self.act_id] + where], dim=1), where

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss`, under the name that DistributedDataParallel calls."""
        return self.loss(batch)

    def loss(self, batch: dict) -> dict[str, Tensor]:
        """Scalars: "loss" (total), "action" (cross-entropy), "recon", and "l1": mean error of the most likely *first* action.

        (Later actions of a chunk resemble the ones before them, which the model is shown here: their error says little.)

        Batch, numpy: canvas, target (uint8), state (B, S), action (B, K, A), instruction list, gaze.valid (B,) bool.
        """
        ids = self.tokens.encode(batch["action"].reshape(len(batch["action"]), -1))
        labels = torch.from_numpy(ids).to(self.device)
        prompt, where = self.prompt(torch.as_tensor(batch["canvas"]).to(self.device), batch["state"], list(batch["instruction"]))
        shown = labels[:, :-1]
        if self.training and self.config.action_dropout:
            hidden = torch.rand(shown.shape, device=self.device) < self.config.action_dropout
            shown = torch.where(hidden, torch.full_like(shown, self.act_id), shown)
        sequence = torch.cat([prompt, F.embedding(shown, self.embedding) + where], dim=1)
        hidden = self.decoder.model(inputs_embeds=sequence, use_cache=False).last_hidden_state
        logits = (hidden[:, prompt.shape[1] - 1:] @ self.embedding.T).float()
        out = {"action": self.cross_entropy(logits, labels)}
        with torch.no_grad():
            slots = logits[:, : self.config.action_dim, self.tokens.first:]
            best = self.tokens.decode((self.tokens.first + slots.argmax(-1)).cpu().numpy())
            out["l1"] = torch.tensor(float(np.abs(best - batch["action"][:, 0]).mean()))
        out["loss"] = out["action"]
        if self.denoiser is not None:
            gaze = self.config.target == "gaze"
            valid = batch["gaze.valid"] if gaze else np.ones(len(labels), bool)
            latents = self.latents(torch.as_tensor(batch["target" if gaze else "canvas"]).to(self.device))
            mask = torch.as_tensor(np.asarray(valid, bool)).to(self.device)
            out["recon"] = self.denoiser.loss(latents, hidden[:, self.image_positions], mask)
            out["loss"] = out["loss"] + self.config.recon_weight * out["recon"]
        return out

    def cross_entropy(self, logits: Float[Tensor, "b n v"], labels: Int[Tensor, "b n"]) -> Float[Tensor, ""]:
        """Over the whole vocabulary; with soft_bins the target is a Gaussian over neighbouring bins instead of one bin."""
        if not self.config.soft_bins:
            return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        slots = torch.arange(self.tokens.first, self.tokens.vocab_size, device=logits.device)
        weight = F.softmax(-0.5 * ((slots - labels[..., None]) / self.config.soft_bins).square(), dim=-1)
        return -(weight * F.log_softmax(logits, dim=-1)[..., self.tokens.first:]).sum(-1).mean()

    # ---- acting -------------------------------------------------------------------------------------------------
    def _prompt_of(self, observations: list[dict], instructions: list[str]) -> tuple[Tensor, Tensor]:
        canvas = torch.from_numpy(np.stack([self.canvas(observation) for observation in observations])).to(self.device)
        return self.prompt(canvas, np.stack([observation["observation.state"] for observation in observations]), instructions)

    @torch.inference_mode()
    def act(self, observations: list[dict], instructions: list[str]) -> Float[np.ndarray, "b k a"]:
        """Greedy actions in [-1, 1] for a batch of raw observations: the best of the 256 action slots at each position."""
        was_training, c = self.training, self.config
        self.eval()
        inputs, where = self._prompt_of(observations, instructions)
        cache, chosen, slots = DynamicCache(config=self.decoder.config), [], self.embedding[self.tokens.first:]
        for _ in range(c.chunk * c.action_dim):
            hidden = self.decoder.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            chosen.append((hidden @ slots.T).argmax(-1))
            inputs = F.embedding(chosen[-1], slots)[:, None] + where
        self.train(was_training)
        ids = self.tokens.first + torch.stack(chosen, dim=1).cpu().numpy()
        return self.tokens.decode(ids).reshape(len(observations), c.chunk, c.action_dim)

    @torch.inference_mode()
    def reconstruct(self, observations: list[dict], instructions: list[str], steps: int = 50) -> UInt8[np.ndarray, "b th tw 3"]:
        """What the denoiser draws from noise at the image tokens: pictures laid out like the target. To look at; acting does not use it."""
        if self.denoiser is None:
            raise UserError("this model has no reconstruction head", expected="a model trained with recon=True")
        was_training = self.training
        self.eval()
        hidden = self.decoder.model(inputs_embeds=self._prompt_of(observations, instructions)[0], use_cache=False).last_hidden_state
        drawn = self.denoiser.sample(hidden[:, self.image_positions], steps, clip=1.0)
        self.train(was_training)
        return self.pixels(drawn).cpu().numpy()

    # ---- on disk ------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """Write `model.safetensors` and `model.json` (config and statistics) into an existing folder."""
        folder, weights = Path(folder), self.state_dict()
        weights.pop("decoder.lm_head.weight")  # the same numbers as the input embeddings
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps({"model": "ReconVLA", "config": asdict(self.config), "stats": self.stats}, indent=1))

    @classmethod
    def load(cls, folder: Path | str) -> "ReconVLA":
        """The model of a folder written by `save` (a checkpoint is one). Missing, foreign or misshapen tensors are all named."""
        folder = Path(folder)
        if not (folder / "model.json").exists():
            raise UserError(f"{folder} holds no model", expected="model.json and model.safetensors", next_step="train first (notebook 05)")
        about = json.loads((folder / "model.json").read_text())
        unknown = set(about["config"]) - {field.name for field in fields(ReconVLAConfig)}
        if unknown:
            raise UserError(f"{folder}/model.json has config fields this version does not know", found=sorted(unknown),
                            next_step="use the version of repro named in about.json")
        model = cls(ReconVLAConfig(**{**about["config"], "words": tuple(about["config"]["words"])}), about["stats"])
        model.load_weights(load_file(folder / "model.safetensors"), folder / "model.safetensors")
        return model

    def load_weights(self, weights: dict[str, Tensor], source: Path | str) -> None:
        """Take over all tensors or none."""
        expected = {name: tuple(t.shape) for name, t in self.state_dict().items() if name != "decoder.lm_head.weight"}
        found = {name: tuple(t.shape) for name, t in weights.items()}
        wrong = [f"{name}: expected {expected.get(name, 'absent')}, found {found.get(name, 'absent')}"
                 for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
        if wrong:
            raise UserError(f"{source} does not fit the model", expected=f"{len(expected)} tensors", found="; ".join(wrong),
                            next_step="load it with the config it was saved with")
        self.load_state_dict(weights, strict=False)
