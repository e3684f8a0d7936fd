"""What the change agent learns from: targets of [cx, cy, scale], and each part of its loss.

A pair without a box teaches nothing about places ("masked"), or, as upstream's do, the whole picture.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.change_agent_config import NO_CHANGE


def parts(model: nn.Module, batch: dict, said: dict[str, Tensor], captions: list[str | None]) -> dict[str, Tensor]:
    """Scalars: "loss" (total), "action" (of the config's kind, over pairs that have a target), "gate", "caption", "point".

    said: the model's `answer` to the batch, told these captions. Batch, numpy: box (B, 4) xyxy in [0, 1], NaN where there is none; changed
    (B,) bool.
    """
    c, out = model.config, {}
    if c.caption_weight:
        with model.arithmetic():
            out["caption"] = caption(model, said, captions, batch["changed"])
    box = torch.as_tensor(np.asarray(batch["box"], np.float32)).to(model.device)
    wanted, filled, weight = target(box, c.box, c.unboxed)
    per = {"mse": lambda: (said["vector"] - wanted).square().mean(1), "l1": lambda: (said["vector"] - wanted).abs().mean(1),
           "iou": lambda: (said["vector"] - wanted).abs().mean(1) + 1 - giou(said["vector"], filled)}[c.loss]()  # fmt: skip
    out["action"] = (per * weight).sum() / weight.sum().clamp(min=1)
    out["loss"] = out["action"] + c.caption_weight * out.get("caption", 0)
    if "gate" in said:
        changed = torch.as_tensor(np.asarray(batch["changed"])).to(model.device).float()
        out["gate"] = F.binary_cross_entropy_with_logits(said["gate"], changed)
        out["loss"] = out["loss"] + c.gate_weight * out["gate"]
    if c.point_weight:
        out["point"] = (crossed(said["maps"].float().mean(1), filled) * weight).sum() / weight.sum().clamp(min=1)
        out["loss"] = out["loss"] + c.point_weight * out["point"]
    return out


def caption(model: nn.Module, said: dict[str, Tensor], captions: list[str | None], changed) -> Tensor:
    """Cross-entropy of the words and the end, given the words before: pairs with a caption; without a change NO_CHANGE's alone."""
    begins = len(model.question)
    words = [(row, place, number) for row, (text, change) in enumerate(zip(captions, changed, strict=True))
             if text and (change or text == NO_CHANGE) for place, number in enumerate(model.ids(text)) if place >= begins]
    if not words:
        return said["states"].sum() * 0
    rows, places, numbers = torch.tensor(words, device=model.device).unbind(1)
    return F.cross_entropy(model.decoder.lm_head(said["states"][rows, places]).float(), numbers)  # the state before each word


def target(box: Float[Tensor, "b 4"], kind: str, unboxed: str
           ) -> tuple[Float[Tensor, "b 3"], Float[Tensor, "b 4"], Float[Tensor, " b"]]:
    """([cx, cy, scale], box, weight) of boxes, NaN where a pair has none: then the whole picture, (0.5, 0.5, 1), or weight 0 ("masked").

    kind "whole": upstream's constant target, whatever the box.
    """
    whole = torch.tensor([0.0, 0.0, 1.0, 1.0], device=box.device)
    has = ~box.isnan().any(1)
    filled = torch.where(has[:, None] & torch.tensor(kind != "whole", device=box.device), box.nan_to_num(), whole)
    x0, y0, x1, y1 = filled.unbind(1)
    vector = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, ((x1 - x0) * (y1 - y0)).sqrt()], dim=1)
    return vector, filled, has.float() if unboxed == "masked" and kind != "whole" else torch.ones_like(x0)


def giou(vector: Float[Tensor, "b 3"], box: Float[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    """Generalised IoU (Rezatofighi et al. 2019, arXiv 1902.09630) of the square, clipped to the picture, with the box; in (-1, 1]."""
    half = vector[:, 2:] / 2
    square = torch.cat([vector[:, :2] - half, vector[:, :2] + half], dim=1).clamp(0, 1)
    area = lambda b: (b[:, 2] - b[:, 0]).clamp(min=0) * (b[:, 3] - b[:, 1]).clamp(min=0)
    both = area(torch.cat([torch.maximum(square[:, :2], box[:, :2]), torch.minimum(square[:, 2:], box[:, 2:])], dim=1))
    hull = area(torch.cat([torch.minimum(square[:, :2], box[:, :2]), torch.maximum(square[:, 2:], box[:, 2:])], dim=1)).clamp(min=1e-6)
    union = (area(square) + area(box) - both).clamp(min=1e-6)
    return both / union - (hull - union) / hull


def crossed(maps: Float[Tensor, "b rows columns"], box: Float[Tensor, "b 4"]) -> Float[Tensor, " b"]:
    """Cross-entropy (nats) of each map, which sums to 1, with the map that is even over the box; cells that its border cuts by area."""
    rows, columns = maps.shape[1:]

    def inside(cells: int, low: Tensor, high: Tensor) -> Tensor:
        edges = torch.arange(cells + 1, device=maps.device) / cells
        return (torch.minimum(edges[1:], high[:, None]) - torch.maximum(edges[:-1], low[:, None])).clamp(min=0)

    even = inside(rows, box[:, 1], box[:, 3])[:, :, None] * inside(columns, box[:, 0], box[:, 2])[:, None]
    even = even / even.sum((1, 2), keepdim=True).clamp(min=1e-9)
    return -(even * maps.clamp(min=1e-9).log()).sum((1, 2))
