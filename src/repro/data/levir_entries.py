"""What a source of bi-temporal pairs is, before any picture is opened: its pairs' names, captions and files, and how it prints itself."""

import hashlib
import json
import re
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from repro.machine import UserError

SPLITS = ("train", "val", "test")
NO_CHANGE = ("there is no difference", "the two scenes seem identical", "the scene is the same as before", "no change has occurred",
             "almost nothing has changed")  # LEVIR-CC's five sentences for a pair without change, word by word  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One pair as its source names it. before, after: a file, or (Arrow file, column, row); box as given, x1 y1 x2 y2 in [0, 1].

    `problem`: why it cannot be used, where that is known without opening its pictures.
    """

    name: str
    split: str
    captions: tuple[str, ...]
    before: Path | tuple
    after: Path | tuple
    mask: Path | None = None
    box: tuple[float, ...] | None = None
    problem: str | None = None

    @property
    def changed(self) -> bool:
        return any(caption not in NO_CHANGE for caption in self.captions)


@dataclass(frozen=True)
class Layout:
    """What a source is: `kind`, `known_by`, its entries, where boxes come from ("mask", "given" or None), and remarks."""

    root: Path
    kind: str
    known_by: str
    entries: tuple[Entry, ...]
    boxes: str | None
    remarks: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, int]:
        """Pairs of each split, in the order train, val, test, others."""
        count = Counter(entry.split for entry in self.entries)
        return {name: count[name] for name in sorted(count, key=lambda n: (SPLITS.index(n) if n in SPLITS else 9, n))}

    def of(self, split: str) -> list[Entry]:
        """The entries of one split; UserError where it has none."""
        found = [entry for entry in self.entries if entry.split == split]
        if not found:
            raise UserError(f"{self.root} has no split {split!r}", "one of its splits", ", ".join(self.splits))
        return found

    def describe(self) -> str:
        """The table that is shown: a line a split, and what was decided."""
        lines = [f"{self.root.name}: {self.kind}, known by {self.known_by}; boxes: {self.boxes or 'none'}",
                 f"  {'split':8} {'pairs':>6} {'changed':>8} {'captions':>9} {'unusable':>9}"]  # fmt: skip
        for name in self.splits:
            some = self.of(name)
            facts = (len(some), sum(e.changed for e in some), sum(len(e.captions) for e in some), sum(bool(e.problem) for e in some))
            lines.append(f"  {name:8} {facts[0]:6} {facts[1]:8} {facts[2]:9} {facts[3]:9}")
        return "\n".join(lines + [f"  {remark}" for remark in self.remarks])


# --- what all layouts need ----------------------------------------------------------------------------------------------------------------


def safe(name: str, where: Path, kind: int = 0) -> PurePosixPath:
    """`name` as a path that stays inside its folder; UserError for any other, and for members that are neither file nor folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise UserError(f"{where} names a file outside its own folder; nothing of it was used", "names inside it", repr(name))
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{where} holds a link or a device; nothing of it was used", "files and folders", repr(name))
    return path


def clean(text: str) -> str:
    """A caption as it is scored: lower case, without the release's leading space and closing " ."; TypeError for what is no text."""
    if not isinstance(text, str):
        raise TypeError(f"a caption is no text: {text!r}")
    return text.strip().removesuffix(".").strip().lower()


def sentences(found) -> tuple[tuple[str, ...], str | None]:
    """(captions, what is wrong with them) of a sentence or a list of sentences; () for None."""
    try:
        return tuple(map(clean, found if isinstance(found, list) else [] if found is None else [found])), None
    except TypeError as error:
        return (), str(error)


def box_of(found) -> tuple[tuple[float, ...] | None, str | None]:
    """(x1 y1 x2 y2, what is wrong with it) of a bbox as its source has it; None where there is none."""
    if found is None or found == []:
        return None, None
    four = isinstance(found, list) and len(found) == 4 and all(isinstance(v, int | float) and abs(v) < 1e9 for v in found)  # not NaN
    return (tuple(map(float, found)), None) if four else (None, f"bbox {found!r} is not four numbers")


def split_of(name, where: Path) -> str:
    """The name of a split, which also names a folder; UserError for any other than a plain word, "" where there is none."""
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"\w[\w-]*|", name)):
        raise UserError(f"{where} has a split whose name cannot be used", "a plain word, as train, val, test", repr(name), "rename it")
    return name or ""


def read_json(path: Path):
    """What a JSON file holds; UserError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read", "JSON", error, "download it again") from error


def mixed(captions: tuple[str, ...], flag) -> str | None:
    """What is wrong with the captions of one pair, or None."""
    same = sum(caption in NO_CHANGE for caption in captions)
    if not captions or not all(captions):
        return "no caption" if not captions else "an empty caption"
    if 0 < same < len(captions):
        return f"{same} of its {len(captions)} captions say that nothing has changed"
    if flag is not None and flag not in (0, 1):
        return f"changeflag {flag!r} is neither 0 nor 1"
    if flag is not None and flag != (same == 0):
        return f"changeflag {flag}, but its captions say {'a change' if same == 0 else 'none'}"
    return None


def unique(entries: list[Entry], path: Path) -> tuple[Entry, ...]:
    twice = [key for key, n in Counter((entry.split, entry.name) for entry in entries).items() if n > 1]
    if twice:
        raise UserError(f"{path} names pairs twice", "each name once in a split", ", ".join(f"{s}/{n}" for s, n in twice[:5]))
    return tuple(entries)


def divided(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """(entries with a split each, remarks), so that what can be trained on can be selected and tested on too.

    "validation" is val. A set without splits is all train. For a val or test that is lacking a tenth of train is divided off, by a hash of
    the names, the same on every machine.
    """
    said = []
    if lacking := [entry for entry in entries if not entry.split]:
        if len(lacking) < len(entries):
            raise UserError(f"{len(lacking)} of {len(entries)} pairs have no split", "a split for each, or for none", lacking[0].name)
        said, entries = ["no splits in the source: all is train"], [replace(entry, split="train") for entry in entries]
    splits = {entry.split for entry in entries}
    if foreign := sorted(splits & {"validation", "valid", "dev"}):
        if len({"val", *foreign} & splits) > 1:
            raise UserError("the source has several validation splits", "one of val, validation, valid, dev", ", ".join(sorted(splits)),
                            "rename or merge them")  # fmt: skip
        said.append(f"its split {foreign[0]!r} is val here")
        entries = [replace(entry, split="val" if entry.split == foreign[0] else entry.split) for entry in entries]
    splits = {entry.split for entry in entries}
    tenth = max(1, sum(entry.split == "train" for entry in entries) // 10)
    for lacks in [split for split in ("val", "test") if "train" in splits and split not in splits]:
        entries, n = _parted(entries, lacks, tenth)
        said.append(f"no {lacks} in the source: {n} of train's pairs divided off here, by a hash of the names")
    return entries, said


def _parted(entries: list[Entry], split: str, n: int) -> tuple[list[Entry], int]:
    """(entries, how many): the first `n` of train's by a hash of their names belong to `split`; one at least stays."""
    train = sorted((e.name for e in entries if e.split == "train"), key=lambda name: hashlib.sha256(name.encode()).digest())
    held = set(train[: min(n, len(train) - 1)])
    return [replace(e, split=split) if e.split == "train" and e.name in held else e for e in entries], len(held)


def given(entries: list[Entry], size: Callable[[Entry], tuple[int, int] | None]) -> tuple[list[Entry], list[str]]:
    """(entries with boxes in [0, 1], remarks). size: width and height of an entry's first picture, None where it cannot be read; asked
    where boxes are in pixels.

    Four equal numbers, as 0 0 0 0, are no box where nothing has changed; where something has, the entry cannot be used.
    """
    boxes = [entry.box for entry in entries if entry.box is not None]
    if not boxes:
        return entries, []
    pixels, made, marks = max(max(box) for box in boxes) > 1, [], 0
    for entry in entries:
        if entry.box is not None and len(set(entry.box)) == 1 and not entry.changed:
            entry, marks = replace(entry, box=None), marks + 1
        elif entry.box is not None:
            box, wrong = _shares(entry, size) if pixels else (entry.box, None)
            if box is not None and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
                box, wrong = None, wrong or f"bbox {entry.box} is not x1 < x2, y1 < y2 in the picture"
            entry = replace(entry, box=box, problem=entry.problem or wrong)
        made.append(entry)
    remarks = [f"bbox is in {'pixels, known by a value above 1' if pixels else 'shares of the sides: no value is above 1'}"]
    if marks:
        remarks.append(f"{marks} unchanged pairs have four equal numbers as bbox: taken as no box")
    left = [entry.box for entry in made if entry.box is not None]
    if len(left) > 1 and set(left) == {(0, 0, 1, 1)}:
        remarks.append("every bbox is the whole picture, which localises nothing: none is used")
        made = [replace(entry, box=None) for entry in made]
    return made, remarks


def _shares(entry: Entry, size: Callable) -> tuple[tuple[float, ...] | None, str | None]:
    """(a box in pixels as shares of the sides, what is wrong with it); (None, None) where loading the picture will say what is wrong."""
    if max(entry.box) <= 1 and entry.changed:
        return None, f"bbox {entry.box} has no value above 1, and others are in pixels"
    sides = size(entry)
    return (None if sides is None else tuple(value / side for value, side in zip(entry.box, sides * 2, strict=True))), None
