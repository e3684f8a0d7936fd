"""What turns pictures into tokens: the canvas that holds both cameras, a small convolutional tower, keypoints.

The canvas is ReconVLA's: one image, the static camera above the wrist camera, so that one grid of tokens covers both and
the reconstruction target lies on the same grid. `compose` is the only place that builds it, for training and acting
alike (upstream stitches 173/161 rows in training and 167/167 when acting, defect D2).
"""
import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F


def resize(image: UInt8[np.ndarray, "h w 3"], height: int, width: int, resample: str = "area") -> UInt8[np.ndarray, "height width 3"]:
    """Resize, width first, then height. `area`: averages when shrinking, linear when growing; `lanczos`: Pillow's, as upstream.

    Two explicit passes, because Pillow 13 swapped the order of its own and thereby the pixels (papers/reconvla/notes.md).
    """
    if resample == "lanczos":
        across = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.LANCZOS)
        return np.asarray(across.resize((width, height), Image.Resampling.LANCZOS))
    for size in ((width, image.shape[0]), (width, height)):
        shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def compose(static: UInt8[np.ndarray, "h w 3"], wrist: UInt8[np.ndarray, "h2 w2 3"], height: int, width: int, static_rows: int,
            resample: str = "area") -> UInt8[np.ndarray, "height width 3"]:
    """Both cameras in one image: rows 0..static_rows-1 the static camera (or a gaze crop of it), the rest the wrist camera.

    Each part is stretched to its place whatever its aspect. Upstream: 334 x 334 px, 173 static rows, lanczos.
    """
    return np.concatenate([resize(static, static_rows, width, resample), resize(wrist, height - static_rows, width, resample)])


class TinyTower(nn.Module):
    """Four strided convolutions: canvas -> one token per 16 x 16 px, plus the map at stride 4 for keypoints.

    Trained from scratch together with the policy (nothing random is ever frozen). Learned positions, as in a ViT.
    """

    patch, map_stride = 16, 4

    def __init__(self, height: int, width: int, channels: int, token_dim: int):
        super().__init__()
        self.grid = (height // self.patch, width // self.patch)
        c = channels
        self.fine = nn.Sequential(nn.Conv2d(3, c, 5, 2, 2), nn.GroupNorm(4, c), nn.ReLU(),
                                  nn.Conv2d(c, 2 * c, 3, 2, 1), nn.GroupNorm(4, 2 * c), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(2 * c, 2 * c, 3, 2, 1), nn.GroupNorm(4, 2 * c), nn.ReLU(),
                                    nn.Conv2d(2 * c, token_dim, 3, 2, 1))
        self.positions = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], token_dim))

    def forward(self, canvas: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b c mh mw"]]:
        features = self.fine(canvas)
        return self.coarse(features).flatten(2).transpose(1, 2) + self.positions, features


class Keypoints(nn.Module):
    """Where things are, as one vector: soft-argmax points of both cameras, fused with instruction and state (tiny models only).

    A departure from the paper. A small decoder trained on plain tokens for minutes learns the proprioception and ignores the image;
    explicit image coordinates make it look. Of each camera's points `fixed` come from learned maps and `asked` from maps that the
    instruction picks. The softmax must start sharp: started flat, every point is the centre of every image, and the loss stands
    still (measured on coloured squares, 470 steps of 16: error of the aim 0.40 flat, 0.09 sharp).
    """

    def __init__(self, channels: int, fixed: int, asked: int, static_rows: int, width: int, state_dim: int):
        super().__init__()
        self.static_rows = static_rows  # of the feature map
        self.maps = nn.Conv2d(channels, fixed, 1)
        self.ask = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, asked * channels))
        self.sharpness = nn.Parameter(torch.cat([torch.full((fixed,), 8.0), torch.full((asked,), 4.0)]).log())
        self.fuse = nn.Sequential(nn.Linear(4 * (fixed + asked) + width + state_dim, 2 * width), nn.GELU(),
                                  nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def points(self, features: Float[Tensor, "b c mh mw"], text: Float[Tensor, "b d"]) -> Float[Tensor, "b k 2"]:
        """Expected (x, y) in [-1, 1] under each map's softmax: first the static camera's points, then the wrist's."""
        B, C = features.shape[:2]
        asked = torch.einsum("bkc,bcyx->bkyx", self.ask(text).view(B, -1, C), features) * C**-0.5
        maps = torch.cat([self.maps(features), asked], dim=1) * self.sharpness.exp()[:, None, None]
        found = []
        for part in (maps[:, :, : self.static_rows], maps[:, :, self.static_rows:]):
            weight = F.softmax(part.flatten(2), dim=2).view(part.shape)
            x = (weight.sum(2) * torch.linspace(-1, 1, part.shape[3], device=part.device)).sum(-1)
            y = (weight.sum(3) * torch.linspace(-1, 1, part.shape[2], device=part.device)).sum(-1)
            found.append(torch.stack([x, y], dim=-1))
        return torch.cat(found, dim=1)

    def forward(self, features: Float[Tensor, "b c mh mw"], text: Float[Tensor, "b d"], state: Float[Tensor, "b s"]
                ) -> Float[Tensor, "b d"]:
        """`text`: mean word embedding; `state`: normalised proprioception."""
        text = F.layer_norm(text, text.shape[-1:])
        return self.fuse(torch.cat([self.points(features, text).flatten(1), text, state], dim=1))
