"""Small pairs for tests of the change agent: textured ground, bright squares appear; light and position shift between the dates."""

import cv2
import numpy as np

from repro.data import levir

WHERE = (("top left", "top right"), ("bottom left", "bottom right"))


def one(i: int, split: str, size: int = 64, seed: int = 0):
    """Pair number i: every other one unchanged; of the changed, one in ten is changed without a mask."""
    rng = np.random.default_rng([seed, i])
    ground = cv2.resize(rng.uniform(60, 120, (8, 8, 3)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    before = ground + rng.normal(0, 4, ground.shape)
    after = np.roll(ground, rng.integers(-1, 2, 2), (0, 1)) * rng.uniform(0.85, 1.15) + rng.normal(0, 4, ground.shape)
    mask, changed = np.zeros((size, size), np.uint8), i % 2 == 1
    x, y = rng.integers(0, size, 2)  # what does not count: small, dark
    cv2.circle(after, (int(x), int(y)), size // 20, (30, 40, 30), -1)
    captions = levir.NO_CHANGE
    if changed and i % 20 == 19:
        cv2.circle(after, (size // 2, size // 2), size // 6, (40, 60, 140), -1)
        captions = ("a lake has formed",) * 5
    elif changed:
        w, h = rng.integers(size // 6, size // 3, 2)
        x, y = rng.integers(0, size - w), rng.integers(0, size - h)
        mask[y : y + h, x : x + w] = 2
        after[y : y + h, x : x + w] = rng.uniform(170, 250, 3)
        corner = WHERE[int(y + h / 2 > size / 2)][int(x + w / 2 > size / 2)]
        captions = (f"a house is built in the {corner}", "a house appears", "one house is built", "a new house", f"a house in the {corner}")
    shown = [np.clip(picture, 0, 255).astype(np.uint8) for picture in (before, after)]
    return levir.pair(f"{split}_{i:06d}.png", split, *shown, tuple(captions), mask)


def store(place, n: int = 24, split: str = "train", size: int = 64, seed: int = 0) -> levir.Pairs:
    return levir.write_store((one(i, split, size, seed) for i in range(n)), place)
