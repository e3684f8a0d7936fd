"""Pairs of pictures of one place at two dates, and the store they live in.

    pairs = Pairs("work/store/levir_train")
    pairs[0].after, pairs[0].captions, pairs[0].box_main                # (256, 256, 3) uint8, five sentences, (4,) or None
    pairs.column("state"), pairs.pictures([3, 1, 4])                    # without decoding a picture; decoding six
    write_store((pair(name, "train", before, after, captions, box=box) for ...), "work/store/own")       # a data set of your own
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from repro.data import levir_boxes
from repro.data.episodes import PICTURE, Column, Episode, Store, StoreWriter, as_column, decode_png
from repro.data.levir_entries import NO_CHANGE, mixed
from repro.machine import UserError

GROUP = 16  # pairs in a row group of the store: about 3 MB, what reading one pair costs
GREY = np.array([0, 128, 255], np.uint8)  # a mask's classes 0 nothing, 1 road, 2 building, as LEVIR-MCI writes them


@dataclass(frozen=True)
class Pair:
    """Two dates of one place. before, after: (H, W, 3) uint8 RGB; boxes float32 (4,) x1 y1 x2 y2 in [0, 1], x2 and y2 exclusive, or None.

    box_main is of the largest changed part, box_union around all `components` parts; box_source says where they come from: mask | given |
    diff | None. mask: (H, W) uint8, 0 nothing, 1 road, 2 building, or None where the data has none.
    """

    name: str
    split: str
    before: np.ndarray
    after: np.ndarray
    captions: tuple[str, ...]
    changed: bool
    state: str
    box_main: np.ndarray | None
    box_union: np.ndarray | None
    box_source: str | None
    components: int
    mask: np.ndarray | None = None


def pair(name: str, split: str, before: np.ndarray, after: np.ndarray, captions: Iterable[str], mask: np.ndarray | None = None,
         box: np.ndarray | None = None, difference: bool = False) -> Pair:  # fmt: skip
    """A Pair from what is known of it: its state and boxes follow. box: as given, (4,) in [0, 1]; a mask goes before it.

    Raises UserError for captions, masks or boxes that cannot be.
    """
    captions = tuple(captions)
    if wrong := mixed(captions, None):
        raise UserError(f"{name}: {wrong}", "sentences that agree on whether anything has changed", captions)
    if mask is not None and (mask.shape != before.shape[:2] or mask.max() > 2):
        raise UserError(f"{name}: a wrong mask", f"{before.shape[:2]}: 0, 1, 2", f"{mask.shape}: up to {mask.max()}")
    if box is not None and not (np.shape(box) == (4,) and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise UserError(f"{name}: a wrong box", "x1 < x2, y1 < y2, shares of the sides", box, "divide pixels by width and height")
    changed = any(caption not in NO_CHANGE for caption in captions)
    main = union = source = None
    components = 0
    if changed and mask is not None:
        main, union, components = levir_boxes.boxes(mask)
        source = "mask" if components else None
    elif changed and box is not None:
        main = union = np.asarray(box, np.float32)
        source, components = "given", 1
    state = "unchanged" if not changed else "not localisable" if main is None else "localisable"
    if difference and state == "not localisable" and mask is None:
        main = union = levir_boxes.difference_box(before, after)
        source = None if main is None else "diff"
    return Pair(name, split, before, after, captions, changed, state, main, union, source, components, mask)


# --- into the store -----------------------------------------------------------------------------------------------------------------


def _box_column(found: list[np.ndarray | None]) -> Column:
    """(n, 4) float32, NaN where there is no box; without statistics, which NaN would spoil."""
    made = as_column("box", np.stack([np.full(4, np.nan, np.float32) if box is None else box for box in found]))
    return Column(made.array, made.feature, made.digest, None)


def _mask_column(masks: list[np.ndarray]) -> Column:
    """Masks as grey PNG of LEVIR-MCI's values: a picture in every viewer."""
    data = [cv2.imencode(".png", GREY[mask], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes() for mask in masks]
    digest = hashlib.blake2b(b"".join(np.ascontiguousarray(mask).tobytes() for mask in masks), digest_size=16).hexdigest()
    array = pa.StructArray.from_arrays([pa.array(data, pa.binary()), pa.nulls(len(data), pa.string())], fields=list(PICTURE))
    return Column(array, {"dtype": "image", "shape": [*masks[0].shape, 3], "names": ["height", "width", "channels"]}, digest, None)


def columns_of(pairs: list[Pair]) -> dict[str, Column]:
    """The store's columns of some pairs, ready to be written."""
    made = {"images.before": np.stack([p.before for p in pairs]), "images.after": np.stack([p.after for p in pairs])}
    made |= {name: [getattr(p, name) for p in pairs] for name in ("name", "state")}
    made |= {"captions": [json.dumps(p.captions) for p in pairs], "box_source": [p.box_source or "" for p in pairs],
             "changed": np.array([p.changed for p in pairs]), "components": np.array([p.components for p in pairs], np.int64)}  # fmt: skip
    columns = {name: as_column(name, values) for name, values in made.items()}
    columns |= {name: _box_column([getattr(p, name) for p in pairs]) for name in ("box_main", "box_union")}
    if pairs[0].mask is not None:
        columns["images.mask"] = _mask_column([p.mask for p in pairs])
    return columns


def cell(found: Pair) -> str:
    """Where a pair stands in the state table: changed | box, changed | no box, unchanged | box (a conflict), unchanged | no box."""
    marked = found.box_source in ("mask", "given") if found.changed else found.mask is not None and bool(found.mask.any())
    return f"{'changed' if found.changed else 'unchanged'} | {'box' if marked else 'no box'}"


def write_store(pairs: Iterable[Pair], place: Path | str, meta: dict | None = None, replace: bool = False) -> "Pairs":
    """Any pairs of one split as a store at `place`: all that a data set of your own needs. Nothing is left there if it fails."""
    states, pairs = Counter(), iter(pairs)
    with StoreWriter(place, 1, meta, replace) as writer:
        while some := list(islice(pairs, GROUP)):
            writer.add(Episode("", columns_of(some), {"split": some[0].split}))
            states.update(map(cell, some))
        writer.meta["states"] = dict(states)
    return Pairs(place)


# --- reading the store --------------------------------------------------------------------------------------------------------------


class Pairs:
    """The pairs of a store. `len`, `pairs[i]` -> Pair; `column(name)`; `pictures(indices)`; `masks(indices)`; `hash`; `states`."""

    def __init__(self, folder: Path | str):
        self.store = Store(folder)
        self.store.need(["images.before", "images.after", "captions", "box_main"])
        self.hash, self.states = self.store.hash, self.store.meta.get("states", {})
        self.starts = np.array([episode.start for episode in self.store.episodes])
        self._columns: dict = {}

    def __len__(self) -> int:
        return self.store.frames

    def __getitem__(self, i: int) -> Pair:
        i = self._checked([i])[0]
        before, after = (found[0] for found in self.pictures([i]))
        box = {name: None if np.isnan(self.column(name)[i]).any() else self.column(name)[i] for name in ("box_main", "box_union")}
        split = self.store.episodes[int(np.searchsorted(self.starts, i, side="right")) - 1].info["split"]
        mask = self.masks([i])[0] if "images.mask" in self.store.columns else None
        value = {name: self.column(name)[i] for name in ("name", "captions", "state", "box_source")}
        return Pair(split=split, before=before, after=after, changed=bool(self.column("changed")[i]),
                    components=int(self.column("components")[i]), mask=mask, **value, **box)  # fmt: skip

    def column(self, name: str):
        """All values of name | changed | state | captions | box_main | box_union | box_source | components; no picture is decoded.

        Strings as lists (box_source None where there is no box), captions as tuples of sentences, boxes (n, 4) float32 with NaN where
        there is none.
        """
        if name not in self._columns:
            found = self.store.column(name)
            if name == "captions":
                found = [tuple(json.loads(text)) for text in found]
            self._columns[name] = [text or None for text in found] if name == "box_source" else found
        return self._columns[name]

    def pictures(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """(before, after), each (n, H, W, 3) uint8 RGB, of the pairs at these indices, in this order."""
        return self._decoded("images.before", indices), self._decoded("images.after", indices)

    def masks(self, indices) -> np.ndarray:
        """(n, H, W) uint8: 0 nothing, 1 road, 2 building. UserError where the data has no masks."""
        return np.searchsorted(GREY, self._decoded("images.mask", indices)[..., 0]).astype(np.uint8)

    def _checked(self, indices) -> np.ndarray:
        found = np.asarray(indices, np.int64).reshape(-1)
        if len(found) and (found.min() < -len(self) or found.max() >= len(self)):
            raise IndexError(f"there is no pair {int(found.max())}: the store has {len(self)}")
        return found % len(self)

    def _decoded(self, name: str, indices) -> np.ndarray:
        indices = self._checked(indices)
        groups = np.searchsorted(self.starts, indices, side="right") - 1
        self.store.need([name])
        made = np.empty((len(indices), *self.store.info["features"][name]["shape"]), np.uint8)
        for group in np.unique(groups):  # each row group is read once
            data = self.store.table(int(group), [name])[name].combine_chunks().field("bytes")
            with self.store.reading(int(group)):
                for at in np.flatnonzero(groups == group):
                    made[at] = decode_png(data[int(indices[at] - self.starts[group])].as_py())
        return made


def of_one_source(pairs: Pairs) -> Pairs:
    """These pairs, where the stores levir_<split> beside theirs are of the same kind of data; UserError where one is of another."""
    about = lambda store: {name: store.meta.get(name) for name in ("source", "known_by", "drawn")}
    for place in sorted(pairs.store.folder.parent.glob("levir_*")):
        if (place / "meta" / "repro.json").is_file() and (other := about(Store(place))) != about(pairs.store):
            raise UserError(f"{pairs.store.folder} and {place.name} beside it are of different data", "one data set, to train and test on",
                            f"{about(pairs.store)} and {other}", "run notebook 03 again with one levir_root (repro run --only 03)")
    return pairs


def state_table(stores: dict[str, Pairs]) -> tuple[str, dict]:
    """(text, {split: {cell: pairs}}): changed or not against box or none, for each split."""
    cells = [f"{changed} | {box}" for changed in ("changed", "unchanged") for box in ("box", "no box")]
    counts = {split: {name: int(pairs.states.get(name, 0)) for name in cells} for split, pairs in stores.items()}
    heads = {"changed | box": "localisable", "changed | no box": "changed, no box", "unchanged | box": "conflict: unchanged, mask",
             "unchanged | no box": "unchanged"}  # fmt: skip
    lines = [f"{'split':8}" + "".join(f"{heads[name]:>27}" for name in cells) + f"{'all':>8}"]
    for split, found in counts.items():
        lines.append(f"{split:8}" + "".join(f"{found[name]:27}" for name in cells) + f"{sum(found.values()):8}")
    return "\n".join(lines), counts
