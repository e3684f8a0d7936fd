"""Everything tiny: tower, VAE and language model of a ReconVLA that trains on a CPU. What they learn first: tiny_training.py.

    ReconVLA.build(PRESETS["tiny"], stats, instructions=..., **load_parts("parts"))
"""
import hashlib
import json
import math
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2Config, Qwen2ForCausalLM
from transformers.masking_utils import sdpa_mask

from repro.machine import UserError

SIZE, GRID, STATIC_TOKENS, PATCH = 128, 8, 6, 16  # canvas px, tokens a side, rows of them for the static camera, px a token
STATIC_ROWS, CELLS = STATIC_TOKENS * PATCH, 4  # px of the static camera; cells per token and axis of the segmentation
CHANNELS = 16
VAE_SIZE = SIZE // 2  # px of the canvas as the VAE sees it: two latents a token on 8 x 8, and a quarter of the work of full size
VAE = dict(block_out_channels=[8, 16, 32], down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
           layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=VAE_SIZE, mid_block_add_attention=False, shift_factor=0.0)


class Residual(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.net = nn.Sequential(nn.GroupNorm(4, c), nn.ReLU(), nn.Conv2d(c, c, 3, 1, 1), nn.GroupNorm(4, c), nn.ReLU(),
                                 nn.Conv2d(c, c, 3, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.net(x)


class TinyTower(nn.Module):
    """Canvas -> one token per 16 x 16 px, row by row: 8 * channels numbers of what is there, then 2 * channels of where the token is.

    The place is a fixed sine code of the token's centre, as strong as all the rest, which a linear layer can read off. frozen: does not
    train, whatever `train` or a caller's loop says, and needs `weights`: nothing random is frozen by default.
    """

    image_mean = image_std = (0.5, 0.5, 0.5)

    def __init__(self, image_size: tuple[int, int] = (SIZE, SIZE), channels: int = CHANNELS, weights: dict[str, Tensor] | None = None,
                 frozen: bool = False, identity: dict | None = None):
        super().__init__()
        c, self.image_size, self.identity = channels, tuple(image_size), identity
        self.grid, self.dim = (image_size[0] // PATCH, image_size[1] // PATCH), 10 * c
        self.net = nn.Sequential(nn.Conv2d(3, c, 5, 2, 2), nn.GroupNorm(4, c), nn.ReLU(), nn.Conv2d(c, 2 * c, 3, 2, 1),
                                 nn.GroupNorm(4, 2 * c), nn.ReLU(), nn.Conv2d(2 * c, 4 * c, 3, 2, 1), Residual(4 * c),
                                 nn.Conv2d(4 * c, 8 * c, 3, 2, 1), Residual(8 * c), nn.GroupNorm(4, 8 * c))
        self.register_buffer("places", places(self.grid, 2 * c), persistent=False)
        self.pretrained, self.frozen = weights is not None, False
        if weights is not None:
            self.load_state_dict(weights)
        if frozen:
            self.freeze()

    def freeze(self, random: bool = False) -> "TinyTower":
        """random: random weights were asked for (a look at memory or speed)."""
        if not (self.pretrained or random):
            raise UserError("a random tower must not be frozen", expected="trained weights, or a tower that trains along",
                            next_step="pass vision= of tiny.load_parts, or set freeze_vision=False (and cache_features=False)")
        self.frozen = True
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TinyTower":
        return super().train(mode and not self.frozen)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        tokens = self.net(pixels).flatten(2).transpose(1, 2)
        return torch.cat([tokens, self.places.expand(len(tokens), -1, -1)], dim=2)


def places(grid: tuple[int, int], width: int) -> Float[Tensor, "n width"]:
    """Sines and cosines of the centres' x, then y, in [-1, 1], periods from 4 down to the token's size: deviation 2 on average."""
    codes = []
    for n in grid[::-1]:
        centre = (torch.arange(n) + 0.5) / n * 2 - 1
        angles = math.pi * centre[:, None] * 2.0 ** torch.linspace(-1, 2, width // 4)
        codes.append(8**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1))
    x, y = codes
    return torch.cat([x.repeat(grid[0], 1), y.repeat_interleave(grid[1], 0)], dim=1)


def attention_float32(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """PyTorch's attention in float32 whatever the autocast: on CPUs the bfloat16 kernel is the slower one. For transformers' interface."""
    with torch.autocast(query.device.type, enabled=False):
        causal = attention_mask is None and query.shape[2] > 1
        out = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attention_mask, dropout, causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("sdpa_float32", attention_float32)
AttentionMaskInterface.register("sdpa_float32", sdpa_mask)


def language(config, tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 of the config's sizes, random."""
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=config.intermediate, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.heads, max_position_embeddings=4096, tie_word_embeddings=True,
        initializer_range=config.init, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa_float32"))


def load_parts(folder: Path | str) -> dict:
    """What `pretrain` wrote, for ReconVLA.build: "vision", which is frozen there if the config says so, "vae", and, where it was trained,
    "language" with its "projector", "proprio" and "tokenizer"."""
    from diffusers import AutoencoderKL

    from repro.models.pointing import load_language

    vae = _need(folder, "vae")
    model = AutoencoderKL.from_config(json.loads((vae / "config.json").read_text()))
    model.load_state_dict(load_file(vae / "vae.safetensors"))
    model.identity = identity("tiny VAE", vae / "vae.safetensors")
    return {"vision": load_tower(folder), "vae": model.requires_grad_(False).eval(), **load_language(folder)}


def load_tower(folder: Path | str) -> TinyTower:
    """The tower of a folder that `pretrain_tower` wrote; it trains along until it is frozen."""
    path = _need(folder, "tower")
    weights = load_file(path / "tower.safetensors")
    return TinyTower(channels=len(weights["net.0.bias"]), weights=weights, identity=identity("tiny tower", path / "tower.safetensors"))


def _need(folder: Path | str, name: str) -> Path:
    path = Path(folder) / name
    if not (path / "about.json").is_file():
        raise UserError(f"{folder} holds no tiny parts", expected=f"{name}/about.json", found="none",
                        next_step="train them first: repro.models.tiny_training.pretrain")
    return path


def identity(name: str, path: Path) -> dict:
    """`whole`: a checkpoint holds these weights too, and can be loaded without this folder."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": name, "revision": digest[:16], "sha256": digest, "whole": True}
