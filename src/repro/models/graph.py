"""The graph variant of VGGT-VLA: each layer is graph convolution over the edges, self-attention over all tokens, and an MLP.

    links = torch.block_diag(grid_edges(14, 14), chain_edges(77))        # patches, then words
    layer(tokens, normalised(links, real), mask)

Edges join patches that touch (4 or 8 neighbours) and words that follow one another; none joins a patch and a word, or the patches of two
cameras: attention does that. A convolution is a linear map of a token plus another of the mean of its neighbours (GraphSAGE's mean,
arXiv 1706.02216). Nothing is pretrained: this backbone trains whole.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from repro.machine import UserError
from repro.models.vggt import MLP, Attention


def grid_edges(rows: int, columns: int, neighbours: int = 4) -> Bool[Tensor, "n n"]:
    """Which patches of a grid, numbered row by row, touch: at a side (4), or at a side or corner (8). No patch is its own neighbour."""
    if neighbours not in (4, 8):
        raise UserError("graph: a patch has 4 or 8 neighbours", "4 or 8", neighbours)
    at = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    apart = (at[:, None] - at[None]).abs()
    return apart.sum(-1) == 1 if neighbours == 4 else apart.amax(-1) == 1


def chain_edges(n: int) -> Bool[Tensor, "n n"]:
    """Which of n words follow one another."""
    place = torch.arange(n)
    return (place[:, None] - place[None]).abs() == 1


def normalised(edges: Bool[Tensor, "n n"], real: Bool[Tensor, "b n"] | None = None) -> Float[Tensor, "b n n"]:
    """Rows that average over the neighbours that are real; a token without any gets zeros. real None: all, and B is 1."""
    weight = (edges[None] if real is None else edges[None] & real[:, None, :]).float()
    return weight / weight.sum(-1, keepdim=True).clamp(min=1)


class GraphConvolution(nn.Module):
    """x -> own(x) + neighbours(mean of the neighbours' x)."""

    def __init__(self, dim: int):
        super().__init__()
        self.own, self.neighbours = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n d"], average: Float[Tensor, "#b n n"]) -> Float[Tensor, "b n d"]:
        return self.own(x) + self.neighbours(average.to(x.dtype) @ x)


class GraphLayer(nn.Module):
    """Graph convolution, self-attention, MLP; each after a norm and added to what came in."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.norm1, self.convolution = nn.LayerNorm(dim), GraphConvolution(dim)
        self.norm2, self.attn = nn.LayerNorm(dim), Attention(dim, heads, qk_norm=False)
        self.norm3, self.mlp = nn.LayerNorm(dim), MLP(dim, hidden)

    def forward(self, x: Float[Tensor, "b n d"], average: Float[Tensor, "#b n n"], mask: Bool[Tensor, "#b 1 #n m"] | None = None
                ) -> Float[Tensor, "b n d"]:
        x = x + self.convolution(self.norm1(x), average)
        x = x + self.attn(self.norm2(x), mask=mask)
        return x + self.mlp(self.norm3(x))


class Graph(nn.Module):
    """The stack of layers over one set of edges (N, N). checkpointing: activations are recomputed in the backward pass, in training."""

    def __init__(self, dim: int, depth: int, heads: int, hidden: int, edges: Bool[Tensor, "n n"]):
        super().__init__()
        self.checkpointing = False
        self.register_buffer("edges", edges, persistent=False)
        self.blocks = nn.ModuleList(GraphLayer(dim, heads, hidden) for _ in range(depth))

    def forward(self, x: Float[Tensor, "b n d"], real: Bool[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        """real: False for tokens (padding words) that nobody reads."""
        average = normalised(self.edges, real)
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            given = (x, average, real[:, None, None])
            x = checkpoint(block, *given, use_reentrant=False) if again else block(*given)
        return x
