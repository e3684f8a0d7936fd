"""Batches of bi-temporal pairs: a pure function of (seed, step), and what a model makes of their pictures, made once.

    batches = PairBatches(Pairs("work/store/change/train"), 32, seed=0, prepare=agent.prepare_many, key=agent.key)
    batches(0)["box"]                                                   # (32, 4) float32, NaN where a pair has none

Prepared arrays (CLIP's features, or small pictures) lie memory-mapped in machine.prepared(store), under a name made of the data's hash
and the model's key. What was prepared of an earlier version of the same data is stale: it is said to be so and deleted.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from repro import clock, machine
from repro.data import levir_boxes
from repro.freshness import write
from repro.machine import UserError

TOGETHER, DONE = 64, "pairs.done"  # pairs that are prepared at once, and the file that says how many are
WINDOW = 0.75  # of each side of a picture that is left when it is cut, at least
SWAPS = (  # words that a flip exchanges: left to right, top to bottom
    {"left": "right", "right": "left"},
    {"top": "bottom", "bottom": "top", "upper": "lower", "lower": "upper", "above": "below", "below": "above"},
)
PLACES = re.compile(rf"\b({'|'.join([*SWAPS[0], *SWAPS[1], 'center', 'centre', 'middle', 'corner', 'corners'])})\b")


class PairBatches:
    """`batches(step)` -> dict; `batches.gather(indices)` these pairs as they are; `len(batches)` pairs an epoch.

    Keys: what `prepare(before, after)` gives; box (B, 4) float32 xyxy in [0, 1], NaN where there is none; changed (B,) bool; caption, a
    list; index (B,) int64. captions: "first" of the five, or "any", drawn anew in each epoch; half of the pairs without a change are then
    told `unchanged`, the sentence that the agent writes for them. flips: pictures, boxes and the words left, right, top ... are flipped
    together, drawn anew in each epoch; augment: turned and cut as well (`augmented`). Both need pictures. box: "main" or "union".
    """

    def __init__(self, pairs, batch_size: int, seed: int = 0, prepare: Callable | None = None, key: str = "", box: str = "main",
                 captions: str = "first", unchanged: str = "", flips: bool = False, cache: Path | str | None = None,
                 log: Callable = print, augment: bool = False):
        if not len(pairs):
            raise UserError("there are no pairs to make batches of", "at least one", 0, "import data first (notebook 03)")
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed
        sure = np.array(pairs.column("state")) == "localisable"  # a box guessed by differencing is no truth
        self.box = np.where(sure[:, None], np.asarray(pairs.column(f"box_{box}"), np.float32), np.float32(np.nan))
        self.changed, self.told = np.asarray(pairs.column("changed"), bool), list(pairs.column("captions"))
        self.any, self.unchanged = captions == "any", unchanged
        self.move = augmented if augment else flipped_somehow if flips else None
        self.prepared = {} if prepare is None else prepared(pairs, prepare, key, cache, log)
        if self.move and set(self.prepared) != {"pictures"}:
            raise UserError(f"only pictures can be {'augmented' if augment else 'flipped'}", "a vision tower that sees them in each step",
                            sorted(self.prepared) or "no pictures", "cache_features=False, or neither flips nor augment")

    def __len__(self) -> int:
        return len(self.pairs)

    def __call__(self, step: int) -> dict:
        """The batch of `step` (0, 1, ...); the same for the same seed and step, whatever came before."""
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        places = step * self.batch_size + np.arange(self.batch_size)
        batch = self.gather(self._rows(places))
        draws = [np.random.default_rng([self.seed, 1, place]) for place in places.tolist()]
        if self.any:
            batch["caption"] = [self._caption(row, rng) for row, rng in zip(batch["index"], draws, strict=True)]
        if self.move:
            each = zip(*(batch[name] for name in ("pictures", "box", "caption", "changed")), draws, strict=True)
            pictures, boxes, batch["caption"] = zip(*(self.move(*one) for one in each), strict=True)
            batch |= {"pictures": np.stack(pictures), "box": np.stack(boxes), "caption": list(batch["caption"])}
        return batch

    def _rows(self, places: np.ndarray) -> np.ndarray:
        epochs = places // len(self)
        return np.concatenate([np.random.default_rng([self.seed, epoch]).permutation(len(self))[places[epochs == epoch] % len(self)]
                               for epoch in np.unique(epochs).tolist()])

    def _caption(self, row: int, rng: np.random.Generator) -> str:
        if not self.changed[row] and self.unchanged and rng.random() < 0.5:
            return self.unchanged
        return self.told[row][rng.integers(len(self.told[row]))]

    def gather(self, rows: np.ndarray) -> dict:
        """The batch of these pairs, with their first captions, not flipped."""
        rows = np.asarray(rows, np.int64)
        return {name: np.asarray(values[rows]) for name, values in self.prepared.items()} | {
            "box": self.box[rows], "changed": self.changed[rows], "caption": [self.told[row][0] for row in rows], "index": rows}


def flipped(pictures: np.ndarray, box: np.ndarray, caption: str, kind: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Pictures (..., H, W, 3), box (4,) and the words for places, flipped together. kind: 0 not, 1 left-right, 2 top-bottom, 3 both."""
    x0, y0, x1, y1 = box
    if kind & 1:
        pictures, x0, x1 = pictures[..., ::-1, :], 1 - x1, 1 - x0
    if kind & 2:
        pictures, y0, y1 = pictures[..., ::-1, :, :], 1 - y1, 1 - y0
    swaps = {word: other for bit, words in enumerate(SWAPS) if kind >> bit & 1 for word, other in words.items()}
    if swaps:
        caption = re.sub(rf"\b({'|'.join(swaps)})\b", lambda found: swaps[found[0]], caption)
    return pictures, np.float32([x0, y0, x1, y1]), caption


def flipped_somehow(pictures: np.ndarray, box: np.ndarray, caption: str, changed: bool, rng: np.random.Generator):
    """`flipped` in one of the four ways."""
    return flipped(pictures, box, caption, rng.integers(4))


def augmented(pictures: np.ndarray, box: np.ndarray, caption: str, changed: bool, rng: np.random.Generator):
    """(pictures, box, caption) turned, flipped and cut by `levir_boxes.augment`; where the caption names a place only flipped, words too.

    A sentence has no word for where a quarter turn or a window puts "in the top left corner". A changed pair without a box is not cut:
    nobody knows where its change is, and the window might leave it out.
    """
    if PLACES.search(caption):
        return flipped(pictures, box, caption, rng.integers(4))
    known = not np.isnan(box).any()
    before, after, moved = levir_boxes.augment(*pictures, box if known else None, rng, 1.0 if changed and not known else WINDOW)
    return np.stack([before, after]), moved if known else box, caption


# ---- what a model makes of a pair's pictures, once ---------------------------------------------------------------------------------


def prepared(pairs, prepare: Callable, key: str, cache: Path | str | None = None, log: Callable = print) -> dict[str, np.ndarray]:
    """The arrays that `prepare(before, after)` gives for all pairs, (n, ...) memory-mapped; made once, then found again.

    cache: folder, by default machine.prepared(store). Written aside and renamed; two processes that want the same arrays build them once.
    """
    if not key:
        raise ValueError("prepare needs a key: a string that names what it depends on")
    cache = Path(cache) if cache else machine.prepared(pairs.store.folder)
    folder = cache / hashlib.sha256(f"{pairs.hash}\n{key}".encode()).hexdigest()[:16]
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the kernel when this process ends, however it ends
            _drop_stale(pairs, key, cache, log)
            if not folder.is_dir():
                _build(pairs, prepare, key, folder, log)
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def _drop_stale(pairs, key: str, cache: Path, log: Callable) -> None:
    for about in cache.glob("*/about.json"):
        made = json.loads(about.read_text())
        if made["store"] == str(pairs.store.folder.resolve()) and made["hash"] != pairs.hash:
            log(f"{about.parent} was prepared from an earlier version of {pairs.store.folder}: deleted")
            shutil.rmtree(about.parent)
        elif made["key"] != key:
            log(f"{about.parent} was prepared by another model ({made['key']}): not used here")


def _build(pairs, prepare: Callable, key: str, folder: Path, log: Callable) -> None:
    """Written to `<folder>.part` and renamed. Pairs that a run has finished before it was killed, or stopped by clock.OutOfTime, are kept:
    DONE says how many; `about.json` stands there from the start, so that a stale part is known as one."""
    clock.check()
    part = folder.with_name(folder.name + ".part")
    done = int((part / DONE).read_text()) if (part / DONE).is_file() else 0
    if not done:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        write(part / "about.json", {"store": str(pairs.store.folder.resolve()), "hash": pairs.hash, "key": key, "pairs": len(pairs)})
    arrays = {path.stem: np.load(path, mmap_mode="r+", allow_pickle=False) for path in part.glob("*.npy")}
    progress = clock.Progress("prepared pictures", len(pairs), "pairs", log, before=done)
    for first in range(done, len(pairs), TOGETHER):
        clock.check()
        rows = np.arange(first, min(first + TOGETHER, len(pairs)))
        for name, value in prepare(*pairs.pictures(rows)).items():
            if name not in arrays:
                arrays[name] = np.lib.format.open_memmap(part / f"{name}.npy", "w+", value.dtype, (len(pairs), *value.shape[1:]))
            arrays[name][rows] = value
        for array in arrays.values():
            array.flush()
        write(part / DONE, int(rows[-1]) + 1)
        progress(int(rows[-1]) + 1)
    os.rename(part, folder)
    (folder / DONE).unlink()
