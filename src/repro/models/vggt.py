"""VGGT's aggregator (arXiv 2503.11651): frame and global attention in turns, under the parameter names of facebook/VGGT-1B.

    aggregator = vggt_file.load("facebook/VGGT-1B")          # hub id, folder or file; every tensor must be there and fit
    outputs = aggregator(images)                             # images (B, S, 3, H, W) in [0, 1] -> one (B, S, 5 + P, 2 C) per layer

A frame's tokens are a camera token, registers, and the patch tokens of a DINOv2 tower. Layer i runs `frame_blocks[i]`, in which a token
reads its own frame, then `global_blocks[i]`, in which it reads all frames; its output is both, side by side. Queries and keys are
normalised per head and turned by their patch's row and column (2-D rotary positions; tokens that are no patch stand at 0, 0).
`Alternating` is the blocks alone, for tokens of any origin (models/vggt_vla.py). The heads (cameras, depth, points, tracks) are not here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from repro.machine import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of what DINOv2 was trained on


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes; the defaults are VGGT-1B's. vggt_file.config_of reads them off a file."""

    image: int = 518         # px; side for which the tower's positions are stored, others are interpolated
    patch: int = 14          # px
    dim: int = 1024          # C
    depth: int = 24          # frame blocks, and as many global blocks
    heads: int = 16
    hidden: int = 4096       # of the MLPs
    registers: int = 4
    tower_depth: int = 24    # blocks of the DINOv2 tower, of the same width
    rope_base: float = 100.0


# ------------------------------------------------------------------------------------------------------ blocks


def attend(module: nn.Module, q: Float[Tensor, "b h n e"], k: Float[Tensor, "b h m e"], v: Float[Tensor, "b h m e"],
           mask: Bool[Tensor, "#b 1 #n m"] | None = None) -> Float[Tensor, "b n d"]:
    """Softmax attention, heads side by side; what `mask` forbids (False) is not read. `module.record`: None, or a list for the weights."""
    if module.record is None:
        out = F.scaled_dot_product_attention(q, k, v, mask)
    else:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1)
        module.record.append(weights.detach().float().cpu())
        out = weights @ v
    return out.transpose(1, 2).flatten(2)


def angles(positions: Int[Tensor, "b n 2"], width: int, base: float) -> tuple[Float[Tensor, "b 1 n e"], Float[Tensor, "b 1 n e"]]:
    """Cosines and sines for heads of `width` numbers: the first half turns with the row, the second with the column."""
    speed = base ** -(torch.arange(0, width // 2, 2, device=positions.device).float() / (width // 2))
    turn = positions[..., None].float() * speed  # (B, N, 2, E/4)
    turn = torch.cat([turn, turn], dim=-1).flatten(2)[:, None]
    return turn.cos(), turn.sin()


def turned(x: Float[Tensor, "b h n e"], cos: Float[Tensor, "#b 1 n e"], sin: Float[Tensor, "#b 1 n e"]) -> Float[Tensor, "b h n e"]:
    """Rotary positions: in each half of a head, number i and number i + E/4 are a point in the plane that is turned."""
    a, b, c, d = x.chunk(4, dim=-1)
    return (x * cos + torch.cat([-b, a, -d, c], dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Self-attention; `record`: None, or a list that takes the weights of each call."""

    def __init__(self, dim: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads, self.record = heads, None
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = (nn.LayerNorm(dim // heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Float[Tensor, "b n d"], turn: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
                ) -> Float[Tensor, "b n d"]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = turned(q, *turn), turned(k, *turn)
        return self.proj(attend(self, q.to(v.dtype), k.to(v.dtype), v, mask))


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """LayerScale: a learned factor per channel."""

    def __init__(self, dim: int, first: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), first))

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return x * self.gamma


class Block(nn.Module):
    """x + scale * attention(norm x), then x + scale * MLP(norm x)."""

    def __init__(self, dim: int, heads: int, hidden: int, qk_norm: bool = True, scale: float = 0.01, eps: float = 1e-5):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(dim, eps=eps), Attention(dim, heads, qk_norm), Scale(dim, scale)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(dim, eps=eps), MLP(dim, hidden), Scale(dim, scale)

    def forward(self, x: Float[Tensor, "b n d"], turn: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
                ) -> Float[Tensor, "b n d"]:
        x = x + self.ls1(self.attn(self.norm1(x), turn, mask))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Alternating(nn.Module):
    """Frame and global blocks in turns. dim, depth, heads, hidden, rope_base: as in VGGTConfig. scale: first value of LayerScale.

    checkpointing: a block's activations are recomputed in the backward pass, in training mode.
    """

    def __init__(self, dim: int, depth: int, heads: int, hidden: int, rope_base: float = 100.0, scale: float = 0.01):
        super().__init__()
        if dim % heads or dim // heads % 4:
            raise UserError("VGGT's blocks: the width does not divide into heads", "heads of a multiple of 4 numbers", f"{dim} / {heads}")
        self.heads, self.rope_base, self.checkpointing = heads, rope_base, False
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(Block(dim, heads, hidden, scale=scale) for _ in range(depth)) for _ in range(2))

    def layers(self, tokens: Float[Tensor, "b n c"], positions: Int[Tensor, "#b n 2"], frames: Int[Tensor, " n"] | None = None,
               real: Bool[Tensor, "b n"] | None = None) -> Iterator[tuple[Float[Tensor, "b n c"], Float[Tensor, "b n c"]]]:
        """Of each layer what frame and global attention leave. frames: the frame of each token (None: one for all). real: False for what
        nobody reads.

        positions: row and column, (0, 0) for what is no patch, patches from (1, 1).
        """
        turn = angles(positions, tokens.shape[-1] // self.heads, self.rope_base)
        everyone = None if real is None else real[:, None, None]
        own = None if frames is None else (frames[:, None] == frames)[None, None]
        own = everyone if own is None else own if everyone is None else own & everyone
        for within, across in zip(self.frame_blocks, self.global_blocks, strict=True):
            framed = tokens = self._run(within, tokens, turn, own)
            tokens = self._run(across, tokens, turn, everyone)
            yield framed, tokens

    def forward(self, tokens: Float[Tensor, "b n c"], positions: Int[Tensor, "#b n 2"], frames: Int[Tensor, " n"] | None = None,
                real: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n c2"]:
        """The last layer's output, frame attention's beside global attention's: twice the width."""
        for pair in self.layers(tokens, positions, frames, real):
            last = pair
        return torch.cat(last, dim=-1)

    def _run(self, block: Block, *given) -> Tensor:
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, *given, use_reentrant=False)
        return block(*given)


# -------------------------------------------------------------------------------------------------- aggregator


def patch_positions(rows: int, columns: int, device: torch.device | None = None) -> Int[Tensor, "n 2"]:
    """(row, column) of each patch, row by row, from (1, 1)."""
    return torch.cartesian_prod(torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device))


class Projection(nn.Module):
    """Square patches -> tokens, row by row."""

    def __init__(self, patch: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        return self.proj(pixels).flatten(2).transpose(1, 2)


class Tower(nn.Module):
    """DINOv2 with registers: normalised pixels -> patch tokens after the last norm."""

    def __init__(self, c: VGGTConfig):
        super().__init__()
        self.patch, self.side = c.patch, c.image // c.patch
        self.patch_embed = Projection(c.patch, c.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.side**2, c.dim))
        self.register_tokens = nn.Parameter(1e-6 * torch.randn(1, c.registers, c.dim))
        self.mask_token = nn.Parameter(torch.zeros(1, c.dim), requires_grad=False)  # of DINOv2's training; in the file, never used
        self.blocks = nn.ModuleList(Block(c.dim, c.heads, c.hidden, False, 1.0, 1e-6) for _ in range(c.tower_depth))
        self.norm = nn.LayerNorm(c.dim, eps=1e-6)

    def positions(self, rows: int, columns: int) -> Float[Tensor, "1 n d"]:
        """Stored positions of the patches, interpolated (bicubic, antialiased) where the grid is another one."""
        stored = self.pos_embed[:, 1:]
        if (rows, columns) == (self.side, self.side):
            return stored
        grid = stored.float().unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        return F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True).flatten(2).transpose(1, 2).to(stored.dtype)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        x = self.patch_embed(pixels) + self.positions(pixels.shape[2] // self.patch, pixels.shape[3] // self.patch)
        first = torch.cat([self.cls_token + self.pos_embed[:, :1], self.register_tokens], dim=1)
        x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, first.shape[1]:]


class Aggregator(Alternating):
    """Images -> tokens of every layer."""

    def __init__(self, config: VGGTConfig | None = None):
        c = config or VGGTConfig()
        super().__init__(c.dim, c.depth, c.heads, c.hidden, c.rope_base)
        self.config, self.patch_embed = c, Tower(c)
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, c.dim))  # of the first frame; of all others
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, c.registers, c.dim))

    def forward(self, images: Float[Tensor, "b s 3 h w"]) -> list[Float[Tensor, "b s p c2"]]:
        """Per layer (B, S, 1 + registers + patches, 2 C). images: RGB in [0, 1], sides multiples of the patch; frame 0 is special."""
        B, S, _, H, W = images.shape
        c = self.config
        if H % c.patch or W % c.patch:
            raise UserError("VGGT: the picture's sides are no multiples of the patch", f"multiples of {c.patch}", (H, W))
        mean, std = (torch.tensor(values, device=images.device, dtype=images.dtype).view(3, 1, 1) for values in (MEAN, STD))
        patches = self.patch_embed(((images - mean) / std).flatten(0, 1)).unflatten(0, (B, S))
        special = torch.cat([self.camera_token, self.register_token], dim=2)  # (1, 2, 1 + R, C)
        which = (torch.arange(S, device=images.device) > 0).long()
        tokens = torch.cat([special[:, which].expand(B, -1, -1, -1), patches], dim=2)  # (B, S, P, C)
        P = tokens.shape[2]
        at = F.pad(patch_positions(H // c.patch, W // c.patch, images.device), (0, 0, P - patches.shape[2], 0)).repeat(S, 1)
        frames = torch.arange(S, device=images.device).repeat_interleave(P) if S > 1 else None
        return [torch.cat(pair, dim=-1).unflatten(1, (S, P)) for pair in self.layers(tokens.flatten(1, 2), at[None], frames)]
