"""Which bi-temporal data a folder or zip holds, and its pairs' names, captions and files; pictures are not opened here.

| layout | known by | splits | boxes |
|---|---|---|---|
| LEVIR-MCI | LevirCCcaptions.json and images/<split>/label | as the json says | from the masks |
| LEVIR-CC | LevirCCcaptions.json, no label folder | as the json says | none |
| Arrow (`save_to_disk`) | state.json, or dataset_dict.json | its folders; one without a split is divided | column bbox |
| pictures with JSON | annotations.json | its key split; where none has one it is divided | its key bbox |

A set without splits is divided 9:1 into train and val by a hash of the names, and the layout says so. What was found is a value
(`Layout`) that prints itself: nothing is guessed in silence. Arrow files are read with pyarrow, which executes nothing.
"""

import hashlib
import json
import os
import shutil
import stat
import zipfile
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from repro.machine import UserError

CAPTIONS = "LevirCCcaptions.json"
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


# --- unpacking ----------------------------------------------------------------------------------------------------------------------


def unpack(archive: Path | str, folder: Path | str) -> Path:
    """The files of a zip in `folder`, whole or not at all; an existing folder is taken as this zip's, unpacked before.

    Raises UserError, with nothing written, for a torn zip, for names that lead out of the folder, for links, for too little disk and for
    a place that cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    if folder.is_dir():
        return folder
    part = folder.with_name(folder.name + ".part")
    try:
        with zipfile.ZipFile(archive) as file:
            members = [info for info in file.infolist() if not info.filename.startswith("__MACOSX/")]
            for info in members:
                _safe(info.filename, archive, stat.S_IFMT(info.external_attr >> 16))
            folder.parent.mkdir(parents=True, exist_ok=True)
            size, free = sum(info.file_size for info in members), shutil.disk_usage(folder.parent).free
            if size > free:
                raise UserError(f"{archive} does not fit on the disk of {folder}", f"{size:,} bytes", f"{free:,} bytes free")
            shutil.rmtree(part, ignore_errors=True)
            for info in members:
                file.extract(info, part)
        os.rename(part, folder)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}", "a whole zip and a folder that can be written", error,
                        "download it again, or give another place: levir.find(zip, place)") from error  # fmt: skip
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _safe(name: str, where: Path, kind: int = 0) -> PurePosixPath:
    """`name` as a path that stays inside its folder; UserError for any other, and for members that are neither file nor folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name:
        raise UserError(f"{where} names a file outside its own folder; nothing of it was used", "names inside it", repr(name))
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{where} holds a link or a device; nothing of it was used", "files and folders", repr(name))
    return path


# --- which layout -------------------------------------------------------------------------------------------------------------------


def find(raw: Path | str, place: Path | str | None = None) -> Layout:
    """The layout of a folder or zip, found by content at any depth. place: where a zip is unpacked (default: a folder beside it)."""
    raw = Path(raw).expanduser()
    if raw.is_file() and zipfile.is_zipfile(raw):
        raw = unpack(raw, place or raw.with_suffix(""))
    if not raw.is_dir():
        raise UserError(f"{raw} is neither a folder nor a zip", "LEVIR-CC, LEVIR-MCI, an Arrow folder, or pictures with annotations.json",
                        "another kind of file" if raw.exists() else "nothing at that path")  # fmt: skip
    if (raw / "meta" / "repro.json").is_file():
        raise UserError(f"{raw} is a store already", "raw data", "meta/repro.json", "use it as it is: levir.Pairs")
    for mark, reader in ((CAPTIONS, _levir), ("dataset_dict.json", _arrow), ("state.json", _arrow), ("annotations.json", _folders)):
        roots = sorted({path.parent for path in raw.rglob(mark) if "__MACOSX" not in path.parts})
        if len(roots) > 1:
            raise UserError(f"{raw} holds several data sets", f"one {mark}", ", ".join(map(str, roots[:4])), "name one of these folders")
        if roots:
            return reader(roots[0])
    raise UserError(f"{raw} holds no bi-temporal data that is known here", f"{CAPTIONS}, dataset_dict.json, state.json or annotations.json",
                    ", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
                    "unpack what is inside it, or write its pairs with levir.write_store")  # fmt: skip


def clean(text: str) -> str:
    """A caption as it is scored: lower case, without the release's leading space and closing " ."."""
    return str(text).strip().removesuffix(".").strip().lower()


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read", "JSON", error, "download it again") from error


def _mixed(captions: tuple[str, ...], flag) -> str | None:
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


def _levir(root: Path) -> Layout:
    """LEVIR-CC or LEVIR-MCI: the json's pairs, their files matched by name."""
    path = root / CAPTIONS
    images = _json(path)
    images = images.get("images") if isinstance(images, dict) else None
    if not isinstance(images, list) or not images:
        raise UserError(f"{path} is not LEVIR-CC's", '{"images": [{"filename", "split", "sentences": [{"raw"}]}]}', type(images).__name__)
    masks = any((root / "images" / split / "label").is_dir() for split in SPLITS)
    entries, flags = [], 0
    for i, image in enumerate(images):
        if not isinstance(image, dict) or image.get("split") not in SPLITS or not isinstance(image.get("filename"), str):
            found = {key: image.get(key) for key in ("filename", "split")} if isinstance(image, dict) else image
            raise UserError(f"{path}: images[{i}] has no split or no file name", f"split: {' | '.join(SPLITS)}; filename", found,
                            "use the json of the release")  # fmt: skip
        folder, name = root / "images" / image["split"], _safe(image["filename"], path).name
        captions = tuple(clean(sentence.get("raw", "")) for sentence in image.get("sentences", ()))
        problem = _mixed(captions, image.get("changeflag"))
        if len(captions) != 5 and not problem:
            problem = f"{len(captions)} captions, not 5"
        files = {kind: folder / kind / name for kind in (("A", "B", "label") if masks else ("A", "B"))}
        if lacking := [kind for kind, file in files.items() if not file.is_file()]:
            problem = f"no file {', '.join(f'{kind}/{name}' for kind in lacking)}"
        flags += "changeflag" in image
        stem = name.rpartition(".")[0] or name
        entries.append(Entry(stem, image["split"], captions, files["A"], files["B"], files.get("label"), problem=problem))
    remarks = [f"changeflag is in {flags:,} of {len(images):,} entries, and was compared with the captions"]
    for split in sorted({entry.split for entry in entries}):
        known = {entry.before.name for entry in entries if entry.split == split}
        extra = sorted({file.name for kind in "AB" for file in (root / "images" / split / kind).glob("*")} - known)
        if extra:
            remarks.append(f"{split}: {len(extra)} pictures are not in the json and are left out: {', '.join(extra[:3])}")
    if (root / "aerial.json").is_file():
        remarks.append(f"not LEVIR's pictures: {_json(root / 'aerial.json').get('made_by')}")
    kind = "LEVIR-MCI" if masks else "LEVIR-CC"
    return Layout(root, kind, f"{CAPTIONS}, {'with' if masks else 'no'} label folders", _unique(entries, path),
                  "mask" if masks else None, tuple(remarks))  # fmt: skip


def _unique(entries: list[Entry], path: Path) -> tuple[Entry, ...]:
    twice = [key for key, n in Counter((entry.split, entry.name) for entry in entries).items() if n > 1]
    if twice:
        raise UserError(f"{path} names pairs twice", "each name once in a split", ", ".join(f"{s}/{n}" for s, n in twice[:5]))
    return tuple(entries)


def _divided(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """(entries with a split each, remarks): a set without splits is divided 9:1 by a hash of the names, the same on every machine."""
    lacking = [entry for entry in entries if not entry.split]
    if not lacking:
        return entries, []
    if len(lacking) < len(entries):
        raise UserError(f"{len(lacking)} of {len(entries)} pairs have no split", "a split for each, or for none", lacking[0].name)
    order = sorted(entries, key=lambda entry: hashlib.sha256(entry.name.encode()).digest())
    held = {entry.name for entry in order[: max(1, len(order) // 10)]} if len(order) > 1 else set()
    said = f"no splits in the source: divided here, by a hash of the names, into {len(entries) - len(held)} train and {len(held)} val"
    return [replace(entry, split="val" if entry.name in held else "train") for entry in entries], [said]


def _given(entries: list[Entry], sizes: dict[str, tuple[int, int]]) -> tuple[list[Entry], list[str]]:
    """(entries with boxes in [0, 1], remarks). sizes: width and height of a pair's picture, for boxes in pixels."""
    boxes = [entry.box for entry in entries if entry.box is not None]
    if not boxes:
        return entries, []
    pixels, made = max(max(box) for box in boxes) > 1, []
    for entry in entries:
        if entry.box is not None:
            width, height = sizes[entry.name] if pixels else (1, 1)
            x1, y1, x2, y2 = entry.box[0] / width, entry.box[1] / height, entry.box[2] / width, entry.box[3] / height
            good = 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
            wrong = None if good else f"bbox {entry.box} is not x1 < x2, y1 < y2 in the picture"
            entry = replace(entry, box=(x1, y1, x2, y2) if good else None, problem=entry.problem or wrong)
        made.append(entry)
    remarks = [f"bbox is in {'pixels, known by a value above 1' if pixels else 'shares of the sides: no value is above 1'}"]
    if len(boxes) > 1 and all(entry.box in (None, (0, 0, 1, 1)) for entry in made):
        remarks.append("every bbox is the whole picture, which localises nothing: none is used")
        made = [replace(entry, box=None) for entry in made]
    return made, remarks


# --- Arrow --------------------------------------------------------------------------------------------------------------------------


def _arrow(root: Path) -> Layout:
    """A folder of `save_to_disk`: one set, or one a split; columns image, image2, caption and, where there are any, bbox and name."""
    folders, entries, sizes = {"": root}, [], {}
    if (root / "dataset_dict.json").is_file():
        folders = {str(name): root / _safe(str(name), root) for name in _json(root / "dataset_dict.json")["splits"]}
    columns = set()
    for split, folder in folders.items():
        row = 0
        told = _json(folder / "state.json")
        if not isinstance(told, dict) or not told.get("_data_files"):
            raise UserError(f"{folder / 'state.json'} names no Arrow files", '{"_data_files": [{"filename"}]}', told, "save the set again")
        for about in told["_data_files"]:
            path = folder / _safe(about["filename"], folder)
            table = arrow_table(path)
            if lacking := {"image", "image2", "caption"} - set(table.column_names):
                raise UserError(f"{path} lacks columns", "image, image2, caption, and perhaps bbox", f"no {', '.join(sorted(lacking))} in "
                                f"{', '.join(table.column_names)}")  # fmt: skip
            columns |= set(table.column_names)
            for i, values in enumerate(table.select([c for c in table.column_names if c not in ("image", "image2")]).to_pylist()):
                name = str(values.get("name") or f"{split or root.name}_{row:06d}")
                captions = values["caption"] if isinstance(values["caption"], list) else [values["caption"]]
                captions = tuple(clean(caption) for caption in captions if caption is not None)
                box = values.get("bbox")
                box = tuple(map(float, box)) if box is not None and len(box) else None
                problem = _mixed(captions, values.get("changeflag"))
                if box is not None and (len(box) != 4 or not np.isfinite(box).all()):
                    box, problem = None, f"bbox {box} is not four numbers"
                if box is not None and max(box) > 1:
                    sizes[name] = _size(png_of((path, "image", i)))
                entries.append(Entry(name, split, captions, (path, "image", i), (path, "image2", i), box=box, problem=problem))
                row += 1
    entries, said = _divided(entries)
    entries, told = _given(entries, sizes)
    return Layout(root, "Arrow", "dataset_dict.json" if "" not in folders else "state.json", _unique(entries, root),
                  "given" if "bbox" in columns else None, tuple(said + told))  # fmt: skip


@lru_cache(4)
def arrow_table(path: Path) -> pa.Table:
    """An Arrow file of `save_to_disk` (stream format; the file format too), mapped, not read."""
    try:
        source = pa.memory_map(str(path))
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} cannot be read", "an Arrow file of save_to_disk", error, "copy it again") from error


def png_of(place: Path | tuple) -> bytes:
    """The bytes of a picture: of a file, or of an Arrow file's cell, a struct<bytes, path> or binary. ValueError where there are none."""
    if isinstance(place, Path):
        return place.read_bytes()
    path, column, row = place
    cell = arrow_table(path)[column][row].as_py()
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ValueError(f"row {row} of {path.name} holds no picture in its column {column}")
    return data


def _size(data: bytes) -> tuple[int, int]:
    import io

    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:  # reads the header only
            return picture.size
    except (OSError, ValueError):
        return 1, 1  # what is wrong with it is said when it is decoded


# --- pictures with JSON -------------------------------------------------------------------------------------------------------------


def _folders(root: Path) -> Layout:
    """annotations.json: a list of {image, image2, caption: sentence or sentences, bbox?: [x1, y1, x2, y2], mask?, split?, name?}."""
    path = root / "annotations.json"
    records, entries, sizes = _json(path), [], {}
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} is no list of pairs", '[{"image": "a.png", "image2": "b.png", "caption": "..."}]', type(records).__name__)
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not {"image", "image2", "caption"} <= set(record):
            raise UserError(f"{path}: record {i} lacks what a pair has", "image, image2, caption", record)
        files = [root / _safe(str(record[key]), path) for key in ("image", "image2")]
        mask = root / _safe(str(record["mask"]), path) if record.get("mask") else None
        captions = record["caption"] if isinstance(record["caption"], list) else [record["caption"]]
        captions, box = tuple(map(clean, captions)), record.get("bbox")
        problem = _mixed(captions, record.get("changeflag"))
        if lacking := [str(file.relative_to(root)) for file in (*files, mask) if file is not None and not file.is_file()]:
            problem = f"no file {', '.join(lacking)}"
        name = str(record.get("name") or PurePosixPath(record["image2"]).with_suffix(""))
        if box is not None and (len(box) != 4 or not all(isinstance(v, int | float) and np.isfinite(v) for v in box)):
            box, problem = None, f"bbox {box} is not four numbers"
        if box is not None and max(box) > 1:
            sizes[name] = _size(files[0].read_bytes()) if files[0].is_file() else (1, 1)
        box = None if box is None else tuple(map(float, box))
        entries.append(Entry(name, str(record.get("split") or ""), captions, *files, mask, box, problem))
    masks = sum(entry.mask is not None for entry in entries)
    if masks not in (0, len(entries)):
        raise UserError(f"{path}: {masks} of {len(entries)} pairs have a mask", "a mask for each, or for none", masks)
    entries, said = _divided(entries)
    entries, told = _given(entries, sizes)
    boxes = "mask" if masks else "given" if any(entry.box is not None for entry in entries) else None
    return Layout(root, "pictures with JSON", "annotations.json", _unique(entries, path), boxes, tuple(said + told))
