"""Boxes: what a detector answers (boxes with a score and the noun they are, best first), and how far two overlap."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Candidates:
    """Answers for one picture. boxes: float32 (N, 4) x0, y0, x1, y1 in [0, 1]; scores: float32 (N,) in [0, 1], falling;
    names: N strings, which of the nouns that were asked for each box is."""

    boxes: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, index) -> "Candidates":
        """The candidates at `index` (integers or a mask), in that order."""
        index = np.arange(len(self))[index]
        return Candidates(self.boxes[index], self.scores[index], tuple(self.names[i] for i in index))

    def of(self, name: str) -> "Candidates":
        """Those that are `name`."""
        return self.take([i for i, own in enumerate(self.names) if own == name])


def candidates(boxes, scores, names) -> Candidates:
    """Candidates of any sequences, sorted by falling score (equal scores keep their order)."""
    scores = np.asarray(scores, np.float32).reshape(-1)
    boxes, order = np.asarray(boxes, np.float32).reshape(-1, 4), np.argsort(-scores, kind="stable")
    return Candidates(boxes[order], scores[order], tuple(names[i] for i in order))


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (..., 4) x0, y0, x1, y1, broadcast against each other; 0 where both are empty."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inside = size[..., 0] * size[..., 1]
    union = area(a) + area(b) - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)


def area(box: np.ndarray) -> np.ndarray:
    """Area of boxes (..., 4); an inverted box has none."""
    box = np.asarray(box, dtype=np.float64)
    return np.clip(box[..., 2] - box[..., 0], 0, None) * np.clip(box[..., 3] - box[..., 1], 0, None)
