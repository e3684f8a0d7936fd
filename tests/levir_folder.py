"""Small folders of bi-temporal pairs in the layouts that are read, for tests."""

import json
from pathlib import Path

import numpy as np

from repro.data.episodes import encode_png
from repro.data.levir_entries import NO_CHANGE
from repro.data.levir_layouts import CAPTIONS

CHANGE = ("a house is built", "a villa appears", "a building is constructed beside the road", "one house is there now", "a house here")
SIZE = 24
MASK = (slice(4, 12), slice(6, 18))  # rows, columns of the building that is new in every second pair
BOX = np.array([6, 4, 18, 12], np.float32) / SIZE


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def grey_mask(changed: bool) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE, 3), np.uint8)
    mask[MASK] = 255 if changed else 0
    return mask


def levir_folder(root: Path, train: int = 4, val: int = 2, masks: bool = True, flags: bool = True) -> Path:
    """LEVIR-MCI's layout (LEVIR-CC's without masks); pairs 1, 3, ... are changed, with MASK; names have gaps: 000001, 000003, ..."""
    images = []
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            name, changed = f"{split}_{2 * i + 1:06d}.png", bool(i % 2)
            kinds = {"A": picture(2 * i), "B": picture(2 * i + 1)} | ({"label": grey_mask(changed)} if masks else {})
            for kind, pixels in kinds.items():
                file = root / "images" / split / kind / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(encode_png(pixels))
            sentences = [{"raw": f" {s} .", "tokens": s.split()} for s in (CHANGE if changed else NO_CHANGE)]
            flag = {"changeflag": int(changed)} if flags else {}
            images.append({"filename": name, "filepath": split, "split": split, "sentences": sentences} | flag)
    (root / CAPTIONS).write_text(json.dumps({"images": images}))
    return root


def edit(root: Path, change) -> None:
    """`change(images)` on the entries of LevirCCcaptions.json."""
    told = json.loads((root / CAPTIONS).read_text())
    change(told["images"])
    (root / CAPTIONS).write_text(json.dumps(told))
