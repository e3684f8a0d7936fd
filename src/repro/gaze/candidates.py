"""Boxes: what a detector answers (boxes with a score and the noun they are, best first)."""

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


def area(box: np.ndarray) -> np.ndarray:
    """Area of boxes (..., 4); an inverted box has none."""
    box = np.asarray(box, dtype=np.float64)
    return np.clip(box[..., 2] - box[..., 0], 0, None) * np.clip(box[..., 3] - box[..., 1], 0, None)
