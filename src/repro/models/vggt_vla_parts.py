"""Layers of VGGT-VLA that train: patches or small convolutions, keypoints, reading across, action queries."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.denoiser import grid_positions
from repro.models.keypoint_policy import Residual
from repro.models.vggt import MLP, Attention, Projection, attend


class Patches(nn.Module):
    """Pixels -> (B, N, width): one linear map of each square patch, plus a fixed code of its row and column."""

    def __init__(self, size: int, grid: tuple[int, int], width: int):
        super().__init__()
        self.embed = Projection(size // grid[0], width)
        self.register_buffer("places", grid_positions(*grid, width).float(), persistent=False)

    def forward(self, pixels: Float[Tensor, "b 3 h w"], words: Float[Tensor, "b e"]) -> tuple[Float[Tensor, "b n d"], None]:
        return self.embed(pixels) + self.places, None


class Convolutions(nn.Module):
    """Pixels -> tokens on the grid and, with keypoints, the expected (x, y) in [-1, 1] under each map's softmax, (B, K, 2).

    A departure for small data: 5x5 convolution, two residual blocks to a quarter of the size, features scaled and shifted by what the words
    say (FiLM, arXiv 1709.07871), keypoints from there (spatial softmax, arXiv 1504.00702; it starts sharp), tokens by one more convolution.
    """

    def __init__(self, size: int, grid: tuple[int, int], width: int, channels: int, keypoints: int, words: int):
        super().__init__()
        c = channels
        self.body = nn.Sequential(nn.Conv2d(3, c, 5, 2, 2), nn.GroupNorm(8, c), nn.ReLU(), Residual(c, c, 2), Residual(c, 2 * c, 1))
        self.film = nn.Linear(words, 4 * c)
        step = size // 4 // grid[0]
        self.embed = nn.Conv2d(2 * c, width, step, step)
        self.maps = nn.Conv2d(2 * c, keypoints, 1) if keypoints else None
        self.sharpness = nn.Parameter(torch.full((keypoints,), 2.0)) if keypoints else None
        self.register_buffer("places", grid_positions(*grid, width).float(), persistent=False)

    def forward(self, pixels: Float[Tensor, "b 3 h w"], words: Float[Tensor, "b e"]
                ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b k 2"] | None]:
        scale, shift = self.film(words)[..., None, None].chunk(2, dim=1)
        features = F.relu(self.body(pixels) * (1 + scale) + shift)
        tokens = self.embed(features).flatten(2).transpose(1, 2) + self.places
        if self.maps is None:
            return tokens, None
        maps = self.maps(features) * self.sharpness.exp()[:, None, None]
        weight = F.softmax(maps.flatten(2), dim=2).view(maps.shape)
        sides = ((2, maps.shape[3]), (3, maps.shape[2]))
        x, y = ((weight.sum(axis) * torch.linspace(-1, 1, n, device=maps.device)).sum(-1) for axis, n in sides)
        return tokens, torch.stack([x, y], dim=-1)


class Reading(nn.Module):
    """Cross-attention: queries read memory. `record`: None, or a list that takes the weights of each call."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.record = heads, None
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n d"], memory: Float[Tensor, "b m d"], mask: Bool[Tensor, "b 1 1 m"] | None = None
                ) -> Float[Tensor, "b n d"]:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(self, q, k, v, mask))


class LanguageAdapter(nn.Module):
    """Words read the patches, then an MLP; each added to the words."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.memory_norm, self.reading = nn.LayerNorm(width), nn.LayerNorm(width), Reading(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, 4 * width)

    def forward(self, words: Float[Tensor, "b l d"], image: Float[Tensor, "b n d"]) -> Float[Tensor, "b l d"]:
        words = words + self.reading(self.norm1(words), self.memory_norm(image))
        return words + self.mlp(self.norm2(words))


class QueryLayer(nn.Module):
    """Action queries read the features, then one another, then an MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.reading = nn.LayerNorm(width), Reading(width, heads)
        self.norm2, self.attn = nn.LayerNorm(width), Attention(width, heads, qk_norm=False)
        self.norm3, self.mlp = nn.LayerNorm(width), MLP(width, 4 * width)

    def forward(self, queries: Float[Tensor, "b q d"], memory: Float[Tensor, "b m d"], mask: Bool[Tensor, "b 1 1 m"]
                ) -> Float[Tensor, "b q d"]:
        queries = queries + self.reading(self.norm1(queries), memory, mask)
        queries = queries + self.attn(self.norm2(queries))
        return queries + self.mlp(self.norm3(queries))
