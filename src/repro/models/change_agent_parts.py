"""What the change agent is made of beside its backbones: tiny tower, grid of changes, readers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

CELL = 8  # px of the tiny tower's cells


class Block(nn.Module):
    """x + two 3x3 convolutions, spread by `dilation`."""

    def __init__(self, width: int, dilation: int = 1):
        super().__init__()
        self.net = nn.Sequential(nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, dilation, dilation),
                                 nn.GroupNorm(4, width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.net(x)


class TinyTower(nn.Module):
    """(B, 3, S, S) in [-1, 1] -> one cell per 8 x 8 px; `whole` puts their mean first, as CLIP does its pooled vector. Always trains."""

    frozen = False

    def __init__(self, image_size: int, channels: int):
        super().__init__()
        c, self.image_size = channels, image_size
        self.grid, self.dim = (image_size // CELL,) * 2, 4 * c
        self.net = nn.Sequential(nn.Conv2d(3, c, 5, 2, 2), nn.GroupNorm(4, c), nn.ReLU(), nn.Conv2d(c, 2 * c, 3, 2, 1), Block(2 * c),
                                 nn.Conv2d(2 * c, 4 * c, 3, 2, 1), Block(4 * c), nn.GroupNorm(4, 4 * c))

    def whole(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b m d"]:
        cells = self.net(pixels).flatten(2).transpose(1, 2)
        return torch.cat([cells.mean(1, keepdim=True), cells], dim=1)


class Grid(nn.Module):
    """Patches of both dates -> one grid of `width` numbers a cell: both and their difference, then convolutions of growing reach."""

    def __init__(self, dim: int, width: int, mixing: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.join = nn.Linear(3 * dim, width)
        self.mix = nn.Sequential(*(Block(width, 2**i) for i in range(mixing)), nn.GroupNorm(4, width), nn.ReLU())

    def forward(self, seen: Float[Tensor, "b 2 rows columns d"]) -> Float[Tensor, "b width rows columns"]:
        before, after = self.norm(seen).unbind(1)
        cells = self.join(torch.cat([before, after, (after - before).abs()], dim=-1))
        return self.mix(cells.permute(0, 3, 1, 2).contiguous())


class Readers(nn.Module):
    """Maps over the grid, asked for by a state of the language model; what they find, where, and how spread.

    `out` numbers: of each map the mean of its part of the cells' values, mean x and y, deviation in x and y (picture widths).
    """

    def __init__(self, states: int, width: int, readers: int, grid: tuple[int, int], part: int = 16):
        super().__init__()
        self.count, self.part, self.out = readers, part, readers * (part + 4)
        self.ask = nn.Linear(states, readers * part)
        self.keys, self.values = nn.Conv2d(width, readers * part, 1), nn.Conv2d(width, readers * part, 1)
        self.lean = nn.Conv2d(width, readers, 1)  # what is looked at whatever is asked
        y, x = torch.meshgrid(*((torch.arange(n) + 0.5) / n for n in grid), indexing="ij")
        self.register_buffer("places", torch.stack([x, y], -1).flatten(0, 1), persistent=False)

    def forward(self, states: Float[Tensor, "b d"], cells: Float[Tensor, "b w rows columns"]
                ) -> tuple[Float[Tensor, "b o"], Float[Tensor, "b k rows columns"], Float[Tensor, "b 3"]]:
        """(what is found, the maps, the [cx, cy, scale] of a square over which a map as spread as theirs would be even)."""
        rows, columns = cells.shape[2:]
        split = lambda x: x.flatten(2).unflatten(1, (self.count, self.part))  # (B, K, part, N)
        scores = (self.ask(states).unflatten(1, (self.count, self.part, 1)) * split(self.keys(cells))).sum(2) / self.part**0.5
        maps = (scores + self.lean(cells).flatten(2)).float().softmax(-1)
        found = (split(self.values(cells)) * maps[:, :, None]).sum(-1)
        at = (maps[..., None] * self.places).sum(2)  # no matrix products: autocast would round them to 16 bits
        spread = (maps[..., None] * (self.places - at[:, :, None]).square()).sum(2).clamp(min=1e-6).sqrt()
        square = torch.cat([at.mean(1), 12**0.5 * spread.mean(1).prod(1, keepdim=True).sqrt()], dim=1)
        return torch.cat([found.flatten(1), at.flatten(1), spread.flatten(1)], dim=1), maps.unflatten(2, (rows, columns)), square
