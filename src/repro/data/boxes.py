"""boxes.json: ground-truth boxes a simulator wrote beside CALVIN frames (format: the README of the test data `calvin_sim`).

box_index("calvin_sim", "training").boxes(20000)["drawer"]           # [x0, y0, x1, y1] pixels of the static camera
"""

import json
import mmap
import re
from pathlib import Path

import numpy as np

from repro.machine import UserError

ENTRY = re.compile(rb'\s*"(\d+)"\s*:\s*(\{[^{}]*\})\s*([,}])')  # "0020000": {"drawer": [x0, y0, x1, y1], ...} and what follows it


class BoxIndex:
    """Boxes of a split: `episodes` as in the file; `boxes(frame)` {item: [x0, y0, x1, y1]}, static camera, x1 and y1 exclusive.

    Only a frame's place in the file is kept in memory (20 bytes), not its boxes.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.stat().st_size:
            raise UserError(f"{path} is empty.", expected='"episodes" and "rgb_static": {frame: {item: box}}', next_step="get it again")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            section = re.search(rb'"rgb_static"\s*:\s*\{', text)
            episodes = re.search(rb'"episodes"\s*:\s*(?=\[)', text)
            if not section or not episodes:
                raise UserError(f"{path} holds no boxes.", expected='"episodes" and "rgb_static": {frame: {item: box}}', found="not both")
            self.episodes = _json_at(text, episodes.end(), path)
            places = np.array(sorted(_places(text, section.end(), path)), np.int64).reshape(-1, 3)
        self.frames, self.starts, self.sizes = places[:, 0].copy(), places[:, 1].copy(), places[:, 2].astype(np.int32)

    def texts(self, frames: np.ndarray) -> list[str]:
        """The boxes of each frame as JSON; "{}" for a frame the file does not have."""
        found = []
        with open(self.path, "rb") as file:
            for i in self._at(frames):
                if i is None:
                    found.append("{}")
                    continue
                file.seek(int(self.starts[i]))
                found.append(json.dumps(json.loads(file.read(int(self.sizes[i])))))
        return found

    def _at(self, frames) -> list[int | None]:
        """Where each frame stands in `frames`; None for one the file does not have."""
        places = np.searchsorted(self.frames, frames)
        return [int(i) if i < len(self.frames) and self.frames[i] == frame else None for frame, i in zip(frames, places, strict=True)]

    def need(self, start: int, end: int) -> None:
        """UserError where the first or the last frame of an episode has no table: the file is of other frames."""
        missing = [frame for frame, place in zip((start, end), self._at((start, end)), strict=True) if place is None]
        if missing:
            about = f"frames {self.frames[0]}..{self.frames[-1]}" if len(self.frames) else "no frames"
            raise UserError(f"{self.path} has no boxes of frame {missing[0]}, of the annotation {start}..{end}.",
                            "a table for each annotated frame", about, "get it from where the frames are from, or remove it")  # fmt: skip

    def boxes(self, frame: int) -> dict[str, list[int]]:
        return json.loads(self.texts(np.array([frame]))[0])


def _places(text: mmap.mmap, at: int, path: Path) -> list[tuple[int, int, int]]:
    """(frame, first byte, bytes) of every box table from byte `at` to the end of its section."""
    places = []
    while entry := ENTRY.match(text, at):
        places.append((int(entry[1]), entry.start(2), entry.end(2) - entry.start(2)))
        at = entry.end()
        if entry[3] == b"}":
            return places
    raise UserError(f"{path} breaks off or is garbled.", expected="one box table a frame", found=f"byte {at}", next_step="get it again")


def _json_at(text: mmap.mmap, at: int, path: Path):
    """The JSON value that begins at byte `at`; reads on in steps until it is whole."""
    size = 1 << 16
    while True:
        try:
            return json.JSONDecoder().raw_decode(text[at : at + size].decode("utf-8", "ignore"))[0]
        except json.JSONDecodeError as error:
            if at + size >= len(text):
                raise UserError(f"{path} breaks off or is garbled.", expected="JSON", found=str(error), next_step="get it again") from error
            size *= 4


def box_index(root: Path | str, split: str) -> BoxIndex | None:
    """The boxes of `root/split`, or None where there is no boxes.json."""
    path = Path(root) / split / "boxes.json"
    return BoxIndex(path) if path.is_file() else None
