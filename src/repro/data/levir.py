"""LEVIR-CC and LEVIR-MCI in: pairs of pictures of one place at two dates, what is said of the change, and where it is.

    store = ensure_store("LEVIR-MCI-dataset.zip", "train", "work/store/levir_train", log=print)
    pairs = Pairs("work/store/levir_train")
    pairs[0].after, pairs[0].captions, pairs[0].box_main                # (256, 256, 3) uint8, five sentences, (4,) or None
    pairs.column("state"), pairs.pictures([3, 1, 4])                    # without decoding a picture; decoding six

Three states: `unchanged`, `localisable` (changed, and there is a box) and `not localisable`: changed, but not in the mask, which knows
roads and buildings only. A pair may be changed and have no box; none is ever invented. Whether a pair is changed comes from its captions
(LEVIR-CC's five no-change sentences), compared with changeflag where that is given. Boxes come from masks (8-connected parts of at least
16 pixels; the largest and all), or as given. `difference=True` adds boxes guessed by differencing where nothing better is there: their
box_source is "diff" and their state stays `not localisable`, so that nobody scores against them.
"""

import hashlib
import json
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from repro.data import levir_boxes
from repro.data.calvin import DAMAGED_LIMIT, in_order
from repro.data.episodes import PICTURE, Column, Episode, Store, StoreWriter, as_column, decode_png
from repro.data.levir_layouts import NO_CHANGE, Entry, Layout, find, png_of, unpack
from repro.machine import UserError

__all__ = ["NO_CHANGE", "Pair", "Pairs", "ensure_store", "find", "import_levir", "pair", "read", "state_table", "unpack", "write_store"]

STATES = ("unchanged", "localisable", "not localisable")
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
    """A Pair from what is known of it: its state and boxes follow. box: as given, (4,) in [0, 1]; a mask goes before it."""
    captions = tuple(captions)
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


# --- one pair, from its files -------------------------------------------------------------------------------------------------------


class Unusable(Exception):
    """One pair that cannot be used; the rest go on without it."""


def load(entry: Entry, difference: bool = False, size: str | None = None) -> Pair:
    """The pair of an entry, pictures decoded. Raises Unusable, with the reason, for one that cannot be used; `size`: what all are to be."""
    if entry.problem:
        raise Unusable(entry.problem)
    before, after = (_picture(png_of_entry(entry, which), which) for which in ("before", "after"))
    if before.shape != after.shape:
        raise Unusable(f"the dates differ in size: {_size(before)} and {_size(after)}")
    if size and _size(before) != size:
        raise Unusable(f"{_size(before)}, others are {size}")
    mask = None
    if entry.mask is not None:
        mask = classes(_picture(entry.mask.read_bytes(), "mask", "grey"))
        if mask.shape != before.shape[:2]:
            raise Unusable(f"the mask is {_size(mask)}, the pictures are {_size(before)}")
    return pair(entry.name, entry.split, before, after, entry.captions, mask, entry.box, difference)


def png_of_entry(entry: Entry, which: str) -> bytes:
    """The bytes of a date's picture; Unusable where they cannot be read."""
    try:
        return png_of(getattr(entry, which))
    except (OSError, ValueError) as error:
        raise Unusable(f"{which}: {error}") from error


def _picture(data: bytes, which: str, kind: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8 RGB, or the first channel (H, W) of a grey one, of a whole PNG or JPEG; Unusable for anything else."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if data else None
    if found is None or (data.startswith(b"\x89PNG") and b"IEND" not in data[-16:]):
        raise Unusable(f"{which}: a torn picture, or none")
    if found.dtype != np.uint8:
        raise Unusable(f"{which}: {found.dtype} pixels, not uint8")
    if kind == "grey":
        if found.ndim == 3 and not (found[..., :1] == found[..., :3]).all():
            raise Unusable(f"{which}: a coloured picture, not grey")
        return np.ascontiguousarray(found if found.ndim == 2 else found[..., 0])
    turn = cv2.COLOR_GRAY2RGB if found.ndim == 2 else cv2.COLOR_BGRA2RGB if found.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(found, turn)


def classes(grey: np.ndarray) -> np.ndarray:
    """(H, W) uint8 classes 0, 1, 2 of a mask's values 0, 128, 255; Unusable for any other value."""
    counts = np.bincount(grey.ravel(), minlength=256)
    if counts.sum() != counts[GREY].sum():
        odd = [int(value) for value in np.flatnonzero(counts) if value not in GREY]
        raise Unusable(f"the mask holds the values {odd[:5]}, not only 0, 128, 255")
    return np.searchsorted(GREY, grey).astype(np.uint8)


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def read(raw: Path | str, split: str, difference: bool = False, log: Callable[[str], None] | None = print) -> Iterator[Pair]:
    """The pairs of one split of a folder or zip, one at a time; its structure is said to `log` first.

    A pair that cannot be used (no partner, other sizes, torn, a mask of other values, captions that disagree) is left out and named; more
    than 1 % of them, or a wrong structure, is a UserError.
    """
    layout = find(raw)
    (log or (lambda line: None))(layout.describe())
    return _sound(layout, split, difference, log or (lambda line: None))


def _sound(layout: Layout, split: str, difference: bool, say: Callable[[str], None]) -> Iterator[Pair]:
    entries, left_out = layout.of(split), {}
    size = usual_size(entries)
    for entry in entries:
        try:
            found = load(entry, difference, size)
        except Unusable as error:
            left_out[entry.name] = str(error)
            say(f"left out: {entry.name}: {error}")
            few(left_out, len(entries), layout.root)
        else:
            yield found


def few(left_out: dict[str, str], total: int, where: Path) -> None:
    """UserError where more than 1 % of the pairs cannot be used."""
    if len(left_out) > DAMAGED_LIMIT * total:
        shown = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:5])
        raise UserError(f"{where}: too many pairs cannot be used", f"at most {DAMAGED_LIMIT:.0%} of {total}",
                        f"{len(left_out)} so far ({shown})", "download or repair these files")  # fmt: skip


def usual_size(entries: list[Entry]) -> str | None:
    """The size of the pictures, as the first pair that can be opened has them; None where none can."""
    for entry in entries:
        try:
            return _size(load(entry).before)
        except Unusable:
            continue
    return None


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


def _group(entries: list[Entry], difference: bool, size: str | None) -> tuple[dict[str, Column] | None, Counter, dict[str, str]]:
    """In a worker: (columns, counts of the state table, name -> why left out) of some entries; pictures are to be of `size`."""
    cv2.setNumThreads(1)
    pairs, wrong = [], {}
    for entry in entries:
        try:
            pairs.append(load(entry, difference, size))
        except Unusable as error:
            wrong[entry.name] = str(error)
    return (columns_of(pairs) if pairs else None), Counter(map(cell, pairs)), wrong


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


def import_levir(layout: Layout, split: str, place: Path | str, difference: bool = False, workers: int = 2, replace: bool = False,
                 log: Callable[[str], None] | None = None) -> dict:  # fmt: skip
    """Write one split of a layout as a store, with `workers` processes where it is large; memory does not grow with the data.

    Returns {pairs, states: {cell: count}, left_out: {name: why}, hash}. Raises UserError for a wrong structure, or for more than 1 % of
    pairs that cannot be used; then nothing is left at `place`.
    """
    say, entries = log or (lambda line: None), layout.of(split)
    say(layout.describe())
    left_out, states, size = {}, Counter(), usual_size(entries)
    workers = workers if len(entries) > 8 * GROUP else 1  # starting a process costs more than so few pairs
    groups = ((entries[i : i + GROUP], difference, size) for i in range(0, len(entries), GROUP))
    about = {"source": layout.kind, "split": split, "asked": _asked(layout, split, difference),
             "drawn": (layout.root / "aerial.json").is_file()}  # by sims/aerial.py
    with StoreWriter(place, 1, about, replace) as writer:
        for columns, counts, wrong in in_order(_group, groups, workers):
            left_out |= wrong
            few(left_out, len(entries), layout.root)
            states.update(counts)
            if columns:
                writer.add(Episode("", columns, {"split": split}))
        writer.meta |= {"states": dict(states), "left_out": left_out, "known_by": layout.known_by, "remarks": list(layout.remarks)}
    for name, why in left_out.items():
        say(f"left out: {name}: {why}")
    if states["unchanged | box"]:
        say(f"{states['unchanged | box']} pairs of {split} have a mask but captions without a change: they count as unchanged, without box")
    return {"pairs": writer.frames, "states": dict(states), "left_out": left_out, "hash": writer.hash.hexdigest()}


def _asked(layout: Layout, split: str, difference: bool) -> str:
    """A hash of what a store is made from: names, captions, boxes and the sizes of the files."""
    told = hashlib.sha256(json.dumps([layout.kind, split, difference, GROUP]).encode())
    for entry in layout.of(split):
        files = [p if isinstance(p, Path) else p[0] for p in (entry.before, entry.after, entry.mask) if p is not None]
        sizes = [os.stat(file).st_size if file.is_file() else None for file in files]
        told.update(json.dumps([entry.name, entry.captions, entry.box, entry.problem, sizes]).encode())
    return told.hexdigest()


def ensure_store(raw: Path | str, split: str, place: Path | str, difference: bool = False, workers: int = 2,
                 log: Callable[[str], None] | None = None) -> "Pairs":  # fmt: skip
    """The store at `place` where it was made from this split of these files, else a fresh import; see `import_levir`."""
    layout = find(raw)
    meta = Store(place).meta if (Path(place) / "meta" / "repro.json").is_file() else {}
    if meta.get("asked") != _asked(layout, split, difference):
        import_levir(layout, split, place, difference, workers, True, log)
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
        self._tables: OrderedDict = OrderedDict()  # the last few row groups, still PNG

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
        for at in np.argsort(groups, kind="stable"):  # each row group once
            data = self._table(int(groups[at]), name)[int(indices[at] - self.starts[groups[at]])]
            made[at] = decode_png(data.as_py())
        return made

    def _table(self, group: int, name: str) -> pa.Array:
        key = (group, name)
        if key not in self._tables:
            self._tables[key] = self.store.table(group, [name])[name].combine_chunks().field("bytes")
        self._tables.move_to_end(key)
        while len(self._tables) > 6:
            self._tables.popitem(last=False)
        return self._tables[key]


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
