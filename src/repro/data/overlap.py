"""How far boxes overlap."""

import numpy as np


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) x0, y0, x1, y1, broadcast against each other; 0 where both are empty; an inverted box has
    no area."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    inside = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    area = lambda box: np.clip(box[..., 2:] - box[..., :2], 0, None).prod(-1)
    union = area(a) + area(b) - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
