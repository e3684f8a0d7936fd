"""The reconstruction head of ReconVLA: a small diffusion transformer that rebuilds the gaze region from image tokens.

For each image token n the language model's last hidden state h[n] conditions one latent token:
    c[n] = t_emb + Linear(SiLU(LayerNorm(h[n])))          (no cross-attention, the two grids lie on top of each other)
and an adaLN-Zero DiT predicts the noise in the latents (DDPM, 1000 steps, cosine schedule, mean squared error).
Structure and parameter names follow OpenHelix-Team/ReconVLA @047ccd9 (`denoiser_dit.py`), which took them from ROSS;
grid, width and latent size are free here (upstream: 27x27, 1024, 64, 16 heads). The loss mask is real (upstream's is not, D6);
output, loss and the 1000-step sampler are compared with numbers of the official code in tests/test_reconvla_exact.py.

| paper / upstream | here |
|---|---|
| z (condition), h | `hidden` (B, N, C): decoder states at the image positions |
| z_0 (latents) | `latents` (B, D, gh, gw) |
| t_embedder, z_embedder, x_embedder | the same |
"""
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 1000


def cosine_alphas(steps: int = STEPS, max_beta: float = 0.999) -> Float[Tensor, " t"]:
    """Cumulative product of 1 - beta for the cosine schedule alpha_bar(s) = cos^2((s + .008) / 1.008 * pi / 2), float64."""
    bar = lambda s: math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = [min(1 - bar((i + 1) / steps) / bar(i / steps), max_beta) for i in range(steps)]
    return torch.cumprod(1 - torch.tensor(betas, dtype=torch.float64), dim=0)


def sincos(positions: Float[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """1-D sine-cosine code: the sines of all frequencies, then the cosines."""
    omega = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def grid_positions(height: int, width: int, channels: int) -> Float[Tensor, "1 n channels"]:
    """Fixed 2-D code of a grid, row by row: the first half of the channels encodes the column, the second half the row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([sincos(columns.flatten().float(), channels // 2), sincos(rows.flatten().float(), channels // 2)], dim=1)[None]


class TimestepEmbedder(nn.Module):
    """Diffusion step (0..999, not rescaled) -> vector: cosines, then sines of 128 frequencies, then a two-layer MLP."""

    def __init__(self, width: int, frequencies: int = 128):
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Int[Tensor, " b"]) -> Float[Tensor, "b width"]:
        omega = torch.exp(-math.log(10000) * torch.arange(self.frequencies, dtype=torch.float32, device=t.device) / self.frequencies)
        angles = t[:, None].float() * omega
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.mlp[0].weight.dtype))


class PatchEmbed(nn.Module):
    """A 1x1 convolution: one latent token -> one transformer token."""

    def __init__(self, latent_dim: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(latent_dim, width, 1)

    def forward(self, latents: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b n width"]:
        return self.proj(latents).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Plain multi-head self-attention with a fused qkv projection."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class MLP(nn.Module):
    def __init__(self, width: int, ratio: int = 4):
        super().__init__()
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """DiT block; shift, scale and gate come from the condition of each token (adaLN-Zero: it starts as the identity)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Float[Tensor, "b n c"], c: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    def __init__(self, width: int, latent_dim: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, latent_dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Float[Tensor, "b n c"], c: Float[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """Noise predictor eps(latents_t, t, hidden)."""

    def __init__(self, hidden_dim: int, latent_dim: int, grid: tuple[int, int], width: int, depth: int, heads: int):
        super().__init__()
        self.grid = grid
        self.x_embedder = PatchEmbed(latent_dim, width)
        self.t_embedder = TimestepEmbedder(width)
        self.ln_pre = nn.LayerNorm(hidden_dim, eps=1e-5, elementwise_affine=False)  # 1e-5: 1e-6 moves small states visibly
        self.z_embedder = nn.Sequential(nn.SiLU(), nn.Linear(hidden_dim, width))
        self.pos_embed = nn.Parameter(grid_positions(*grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, latent_dim)
        self.reset()

    def reset(self) -> None:
        """DiT's initial values: Xavier for linear maps, zero for every modulation and for the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.detach().view(self.x_embedder.proj.out_channels, -1))
        nn.init.zeros_(self.x_embedder.proj.bias)
        for linear in (self.t_embedder.mlp[0], self.t_embedder.mlp[2]):
            nn.init.normal_(linear.weight, std=0.02)
        modulations = [part.adaLN_modulation[1] for part in (*self.blocks, self.final_layer)]
        for linear in (*modulations, self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, noisy: Float[Tensor, "b d gh gw"], t: Int[Tensor, " b"], hidden: Float[Tensor, "b n h"]
                ) -> Float[Tensor, "b d gh gw"]:
        x = self.x_embedder(noisy) + self.pos_embed
        c = self.t_embedder(t)[:, None] + self.z_embedder(self.ln_pre(hidden))
        for block in self.blocks:
            x = block(x, c)
        return self.final_layer(x, c).transpose(1, 2).reshape(noisy.shape)


class Denoiser(nn.Module):
    """Diffusion loss and sampler around the DiT (`net`). `draws` noise levels are drawn per sample and step (upstream: 4)."""

    def __init__(self, hidden_dim: int, latent_dim: int, grid: tuple[int, int], width: int, depth: int, heads: int, draws: int = 4):
        super().__init__()
        self.net = DiT(hidden_dim, latent_dim, grid, width, depth, heads)
        self.draws = draws
        self.register_buffer("alphas", cosine_alphas(), persistent=False)

    def loss(self, latents: Float[Tensor, "b d gh gw"], hidden: Float[Tensor, "b n h"], mask: Bool[Tensor, " b"],
             t: Int[Tensor, " k"] | None = None, noise: Float[Tensor, "k d gh gw"] | None = None,
             tokens: Bool[Tensor, "gh gw"] | None = None) -> Float[Tensor, ""]:
        """Mean squared error of the predicted noise over the samples whose `mask` is true (0 if there is none).

        `tokens`: which of the grid's tokens count (default all). Runs in float32 whatever the autocast. `t` and `noise` (k = draws * b)
        are given by tests only; drawn, they come in upstream's order (levels, then noise).
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents, hidden = latents.float().repeat(self.draws, 1, 1, 1), hidden.float().repeat(self.draws, 1, 1)
            weight = mask.float().repeat(self.draws)
            t = torch.randint(0, STEPS, (len(latents),), device=latents.device) if t is None else t
            noise = torch.randn_like(latents) if noise is None else noise
            alpha = self.alphas[t].float().view(-1, 1, 1, 1)
            error = (self.net(alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, t, hidden) - noise).square().mean(dim=1)
            each = error.mean(dim=(1, 2)) if tokens is None else error[:, tokens].mean(dim=1)
            return (each * weight).sum() / weight.sum().clamp(min=1.0)

    @torch.no_grad()
    def sample(self, hidden: Float[Tensor, "b n h"], steps: int = 50, clip: float | None = None,
               generator: torch.Generator | None = None) -> Float[Tensor, "b d gh gw"]:
        """Latents rebuilt from the image tokens by ancestral DDPM sampling on `steps` evenly spaced of the 1000 levels.

        Variance fixed at beta (FIXED_LARGE). steps=1000 is upstream's sampler, which walks them all. `clip`: bound of the latents if
        they have one (pixels: 1.0).
        """
        levels = torch.linspace(0, STEPS - 1, min(steps, STEPS)).round().long().tolist()
        x = torch.randn(len(hidden), self.net.x_embedder.proj.in_channels, *self.net.grid, generator=generator).to(hidden.device)
        hidden = hidden.float()
        for i in reversed(range(len(levels))):
            bar = float(self.alphas[levels[i]])
            before = float(self.alphas[levels[i - 1]]) if i else 1.0
            beta = 1 - bar / before
            eps = self.net(x, torch.full((len(x),), levels[i], device=x.device), hidden)
            clean = (x - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
            clean = clean if clip is None else clean.clamp(-clip, clip)
            mean = (math.sqrt(before) * beta * clean + math.sqrt(1 - beta) * (1 - before) * x) / (1 - bar)
            step_noise = torch.randn(x.shape, generator=generator).to(x.device) if i else torch.zeros_like(x)
            x = mean + math.sqrt(beta) * step_noise
        return x
