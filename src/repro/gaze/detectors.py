"""Where the thing of a phrase is in the static image: boxes with a score and their source, from the simulator or from a detector.

    detector = load("colour")                             # or "transformers", "groundingdino-py", with weights
    detector([image], [["blue block", "red bowl"]])       # -> [Candidates]; options.look makes a Gaze a frame of them

A failed detection is the flagged fallback: the full frame, score 0, source "fallback". It is never a guess: the losses mask it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from repro.gaze.candidates import Candidates
from repro.machine import UserError

FULL_FRAME = np.array([0, 0, 1, 1], dtype=np.float32)
FULL_FRAME.setflags(write=False)
SOURCES = ("truth", "state", "detector", "colour", "fallback")

@dataclass(frozen=True)
class Gaze:
    """One detection. box: float32 (4,) x0, y0, x1, y1 in [0, 1]; score in [0, 1]; source one of SOURCES; note: what a reader must know ("no
    detection", "ambiguous", "carried over", "reference not found"), or nothing."""

    box: np.ndarray = field(default_factory=FULL_FRAME.copy)
    score: float = 0.0
    source: str = "fallback"
    note: str = ""

    @property
    def valid(self) -> bool:
        """False for a fallback."""
        return self.source != "fallback"


def truth(boxes: dict, item: str | None, source: str = "truth") -> Gaze:
    """The known box of an item; a fallback where it is hidden (note "hidden") or the words name no item (note "unnamed").

    boxes: item -> (x0, y0, x1, y1) in [0, 1], visible items only.
    """
    box = boxes.get(item)
    if box is None:
        return Gaze(note="unnamed" if item is None else "hidden")
    box = np.asarray(box, dtype=np.float32)
    if not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UserError(f"The box of {item} does not lie in the image.", expected="0 <= x0 < x1 <= 1, 0 <= y0 < y1 <= 1",
                        found=box.tolist(), next_step="check that the boxes belong to images of this size")  # fmt: skip
    return Gaze(box, 1.0, source)


class Detector(Protocol):
    """Finds nouns in pictures. `name` stands in records; `fingerprint()` changes with weights, thresholds and rules. A detector may also
    have `needs_whole(noun) -> bool`: nouns that it tells by their place in the whole picture, and must not be asked of a tile."""

    name: str

    def __call__(self, images: Sequence[np.ndarray], nouns: Sequence[Sequence[str]]) -> list[Candidates]: ...

    def fingerprint(self) -> str: ...


def load(name: str = "colour", weights: str | Path | None = None, **options) -> Detector:
    """A detector by name: "colour" (no weights), "transformers" or "groundingdino-py" (GroundingDINO in either form).

    weights: hub id, local folder or Kaggle input, see `grounding_dino.GroundingDino`, which also takes `options`. An unknown name, or a
    GroundingDINO without weights, is a UserError; nothing takes another's place.
    """
    if name == "colour":
        from repro.gaze.colour import Colour

        if weights is not None:
            raise UserError("The detector colour has no weights.", expected="no weights", found=str(weights),
                            next_step="choose transformers or groundingdino-py")  # fmt: skip
        return Colour(**options)
    if name not in ("transformers", "groundingdino-py"):
        raise UserError(f"There is no detector {name!r}.", expected="colour, transformers or groundingdino-py", found=name)
    from repro.gaze.grounding_dino import GroundingDino, find_weights

    weights = weights or find_weights()
    if weights is None:
        raise UserError("GroundingDINO's weights are not here.", expected="a hub id, a folder, or a Kaggle input with them", found="none",
                        next_step="README, section GroundingDINO; with internet: weights IDEA-Research/grounding-dino-tiny")  # fmt: skip
    return GroundingDino(weights, backend=name, **options)
