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
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from repro import clock, freshness
from repro.data.calvin_frames import DAMAGED_LIMIT
from repro.data.episodes import Column, Episode, Store
from repro.data.levir_arrow import png_of, size_of
from repro.data.levir_entries import NO_CHANGE, Entry, Layout
from repro.data.levir_layouts import find, unpack
from repro.data.levir_pairs import GREY, GROUP, Pair, Pairs, cell, columns_of, of_one_source, pair, state_table, write_store
from repro.data.parallel import in_order
from repro.data.resumable import ResumableWriter
from repro.machine import UserError

__all__ = ["GREY", "NO_CHANGE", "Pair", "Pairs", "ensure_store", "ensure_stores", "find", "import_levir", "of_one_source", "pair", "read",
           "state_table", "unpack", "write_store"]  # fmt: skip


READERS = tuple(f"data/{name}.py" for name in (
    "levir", "levir_arrow", "levir_boxes", "levir_entries", "levir_layouts", "levir_pairs", "overlap"))
HEADERS = 128  # pictures whose size is looked up to say what size is usual


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
    if found is None:
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
    """The size of most pictures, by the headers of some HEADERS first dates spread over all entries; None where none can be opened."""
    found = Counter()
    for entry in entries[:: max(1, len(entries) // HEADERS)]:
        try:
            found[size_of(png_of(entry.before))] += 1
        except (OSError, ValueError):
            continue
    del found[None]
    return "{}x{}".format(*found.most_common(1)[0][0]) if found else None


# --- into the store ----------------------------------------------------------------------------------------------------------------------


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


def import_levir(layout: Layout, split: str, place: Path | str, difference: bool = False, workers: int = 2, replace: bool = False,
                 log: Callable[[str], None] | None = None) -> dict:  # fmt: skip
    """Write one split of a layout as a store, with `workers` processes; memory does not grow with the data. Killed, it or a
    worker, or stopped by clock.OutOfTime, it goes on at the next call.

    Returns {pairs, states: {cell: count}, left_out: {name: why}, hash}. Raises UserError for a wrong structure, or for more than 1 % of
    pairs that cannot be used; then nothing is left at `place`.
    """
    clock.check()
    say, entries = log or (lambda line: None), layout.of(split)
    say(f"{split}, {len(entries):,} pairs of {layout.describe().splitlines()[0]}")
    stamped = _stamped(layout, split, difference)  # before anything is read
    size, firsts = usual_size(entries), range(0, len(entries), GROUP)
    about = {"source": layout.kind, "split": split, "asked": _asked(layout, split, difference),
             "drawn": (layout.root / "aerial.json").is_file()}  # by sims/aerial.py
    with ResumableWriter(place, 1, about, about, replace, drop=UserError) as writer:
        done, left_out, states = (writer.note.get(name, none) for name, none in (("groups", 0), ("left_out", {}), ("states", {})))
        states = Counter(states)
        progress = clock.Progress(f"import {split}", len(entries), "pairs", say, before=min(len(entries), done * GROUP))
        groups = ((entries[i : i + GROUP], difference, size) for i in firsts[done:])
        for i, (columns, counts, wrong) in enumerate(in_order(_group, groups, workers), done + 1):
            left_out |= wrong
            few(left_out, len(entries), layout.root)
            states.update(counts)
            if columns:
                writer.add(Episode("", columns, {"split": split}))
            writer.note = {"groups": i, "left_out": left_out, "states": dict(states)}
            progress(min(len(entries), i * GROUP))
            clock.check()
        writer.meta |= {"states": dict(states), "left_out": left_out, "known_by": layout.known_by, "remarks": list(layout.remarks),
                        "stamped": stamped}
    for name, why in left_out.items():
        say(f"left out: {name}: {why}")
    if states["unchanged | box"]:
        say(f"{states['unchanged | box']} pairs of {split} have a mask but captions without a change: they count as unchanged, without box")
    return {"pairs": writer.frames, "states": dict(states), "left_out": left_out, "hash": writer.hash.hexdigest()}


def _asked(layout: Layout, split: str, difference: bool) -> str:
    """A hash of what a store is made from: names, captions, boxes, what the files hold, and the code that reads them."""
    return _told(layout, split, difference, lambda file: zlib.crc32(file.read_bytes()))


def _stamped(layout: Layout, split: str, difference: bool) -> str:
    """The same by the files' sizes and times: where these are as they were, nobody has to read the files."""
    return _told(layout, split, difference, lambda file: (file.stat().st_size, file.stat().st_mtime_ns))


def _told(layout: Layout, split: str, difference: bool, of: Callable[[Path], object]) -> str:
    told, of = hashlib.sha256(json.dumps([layout.kind, split, difference, GROUP, freshness.code(*READERS)]).encode()), cache(of)
    for entry in layout.of(split):
        files = [p if isinstance(p, Path) else p[0] for p in (entry.before, entry.after, entry.mask) if p is not None]
        held = [of(file) if file.is_file() else None for file in files]
        told.update(json.dumps([entry.name, entry.captions, entry.box, entry.problem, held]).encode())
    return told.hexdigest()


def ensure_stores(layout: Layout, folder: Path | str, difference: bool = False, workers: int = 2,
                  log: Callable[[str], None] | None = None) -> dict[str, Pairs]:  # fmt: skip
    """{split: Pairs} of all splits of a layout, as stores `folder`/levir_<split>. Those of splits that it lacks are another data set's:
    they are removed, and said to be, so that nobody trains on one set and tests on another."""
    for place in sorted(Path(folder).glob("levir_*")):
        if (place / "meta" / "repro.json").is_file() and place.name.removeprefix("levir_") not in layout.splits:
            (log or (lambda line: None))(f"removed: {place}, of another data set: {layout.root.name} has no such split")
            for gone in (place, place.with_name(place.name + ".prepared")):
                shutil.rmtree(gone, ignore_errors=True)
    return {split: ensure_store(layout, split, Path(folder) / f"levir_{split}", difference, workers, log) for split in layout.splits}


def ensure_store(raw: Layout | Path | str, split: str, place: Path | str, difference: bool = False, workers: int = 2,
                 log: Callable[[str], None] | None = None) -> Pairs:  # fmt: skip
    """The store at `place` where it was made from this split of these files, else a fresh import; see `import_levir`."""
    layout = raw if isinstance(raw, Layout) else find(raw)
    about, stamped = Path(place) / "meta" / "repro.json", _stamped(layout, split, difference)
    meta = Store(place).meta if about.is_file() else {}
    if meta.get("stamped") == stamped:
        return Pairs(place)
    if meta.get("asked") == _asked(layout, split, difference):
        freshness.write(about, {**meta, "stamped": stamped})  # only times have changed: the next call need not read the files again
    else:
        few_pairs = len(layout.of(split)) <= 8 * GROUP  # starting processes costs more than so few pairs
        import_levir(layout, split, place, difference, 1 if few_pairs else workers, True, log)
    return Pairs(place)
