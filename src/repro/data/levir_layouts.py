"""Which bi-temporal data a folder or zip holds, and its pairs' names, captions and files; pictures are not opened here.

| layout | known by | splits | boxes |
|---|---|---|---|
| LEVIR-MCI | LevirCCcaptions.json and images/<split>/label | as the json says | from the masks |
| LEVIR-CC | LevirCCcaptions.json, no label folder | as the json says | none |
| Arrow (`save_to_disk`) | state.json, or dataset_dict.json | its folders; val and test where it lacks them | column bbox |
| pictures with JSON | annotations.json | its key split; val and test where it lacks them | its key bbox |

Of the last two, "validation" is val, and a set that lacks val or test has a tenth of train divided off for each by a hash of the names, and
the layout says so. What was found is a value
(`Layout`) that prints itself: nothing is guessed in silence. Arrow files are read with pyarrow, which executes nothing.
"""

import json
import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from repro.data.levir_arrow import arrow, size_of
from repro.data.levir_entries import SPLITS, Entry, Layout, box_of, divided, given, mixed, read_json, safe, sentences, split_of, unique
from repro.machine import UserError

CAPTIONS = "LevirCCcaptions.json"
UNPACKED = "unpacked_from.json"  # in a folder that `unpack` made: which zip it is of


# --- unpacking ----------------------------------------------------------------------------------------------------------------------


def unpack(archive: Path | str, folder: Path | str) -> Path:
    """The files of a zip in `folder`, whole or not at all, with a note (UNPACKED) of which zip they are of. A folder with this zip's note
    is taken as it is, one with another's is made anew.

    Raises UserError, with nothing written, for a folder without a note, for a torn zip, for names that lead out of the folder, for links,
    for too little disk and for a place that cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    note, file = folder / UNPACKED, archive.stat()
    mine = {"name": archive.name, "bytes": file.st_size, "modified_ns": file.st_mtime_ns}
    if folder.is_dir() and not note.is_file():
        raise UserError(f"{folder} is in the way: {archive.name} would be unpacked there", f"a folder unpacked from it, with {UNPACKED}",
                        "a folder without that note", f"give {folder} itself if it holds the data; else move it, or give another place: "
                        "levir.find(zip, place)")  # fmt: skip
    if note.is_file() and read_json(note) == mine:
        return folder
    part, old = (folder.with_name(folder.name + end) for end in (".part", ".old"))
    try:
        with zipfile.ZipFile(archive) as file:
            members = [info for info in file.infolist() if not info.filename.startswith("__MACOSX/")]
            for info in members:
                safe(info.filename, archive, stat.S_IFMT(info.external_attr >> 16))
            folder.parent.mkdir(parents=True, exist_ok=True)
            size, free = sum(info.file_size for info in members), shutil.disk_usage(folder.parent).free
            if size > free:
                raise UserError(f"{archive} does not fit on the disk of {folder}", f"{size:,} bytes", f"{free:,} bytes free")
            shutil.rmtree(part, ignore_errors=True)
            for info in members:
                file.extract(info, part)
        (part / UNPACKED).write_text(json.dumps(mine))
        if folder.is_dir():
            os.rename(folder, old)  # another zip's: never half of it under its name
        os.rename(part, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked into {folder}", "a whole zip and a folder that can be written", error,
                        "download it again, or give another place: levir.find(zip, place)") from error  # fmt: skip
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)
    return folder


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
    for mark, reader in ((CAPTIONS, _levir), ("dataset_dict.json", arrow), ("state.json", arrow), ("annotations.json", _folders)):
        roots = sorted({path.parent for path in raw.rglob(mark) if "__MACOSX" not in path.parts})
        if len(roots) > 1:
            raise UserError(f"{raw} holds several data sets", f"one {mark}", ", ".join(map(str, roots[:4])), "name one of these folders")
        if roots:
            return reader(roots[0])
    raise UserError(f"{raw} holds no bi-temporal data that is known here", f"{CAPTIONS}, dataset_dict.json, state.json or annotations.json",
                    ", ".join(sorted(path.name for path in raw.iterdir())[:8]) or "an empty folder",
                    "unpack what is inside it, or write its pairs with levir.write_store")  # fmt: skip


def _levir(root: Path) -> Layout:
    """LEVIR-CC or LEVIR-MCI: the json's pairs, their files matched by name."""
    path = root / CAPTIONS
    images = read_json(path)
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
        folder, name = root / "images" / image["split"], safe(image["filename"], path).name
        told = image.get("sentences", [])
        whole = isinstance(told, list) and all(isinstance(one, dict) for one in told)
        captions, wrong = sentences([one.get("raw", "") for one in told]) if whole else ((), "its sentences are no list of {raw}")
        problem = wrong or mixed(captions, image.get("changeflag"))
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
        remarks.append(f"not LEVIR's pictures: {read_json(root / 'aerial.json').get('made_by')}")
    kind = "LEVIR-MCI" if masks else "LEVIR-CC"
    return Layout(root, kind, f"{CAPTIONS}, {'with' if masks else 'no'} label folders", unique(entries, path),
                  "mask" if masks else None, tuple(remarks))  # fmt: skip


def _folders(root: Path) -> Layout:
    """annotations.json: a list of {image, image2, caption: sentence or sentences, bbox?: [x1, y1, x2, y2], mask?, split?, name?}."""
    path = root / "annotations.json"
    records, entries = read_json(path), []
    if not isinstance(records, list) or not records:
        raise UserError(f"{path} is no list of pairs", '[{"image": "a.png", "image2": "b.png", "caption": "..."}]', type(records).__name__)
    for i, record in enumerate(records):
        if not isinstance(record, dict) or not {"image", "image2", "caption"} <= set(record):
            raise UserError(f"{path}: record {i} lacks what a pair has", "image, image2, caption", record)
        if odd := {key: record[key] for key in ("image", "image2", "mask") if not isinstance(record.get(key) or "", str)}:
            raise UserError(f"{path}: record {i} has a wrong file name", "text", odd, "name files as the folder has them")
        files = [root / safe(str(record[key]), path) for key in ("image", "image2")]
        mask = root / safe(record["mask"], path) if record.get("mask") else None
        (captions, wrong), (box, odd) = sentences(record["caption"]), box_of(record.get("bbox"))
        problem = wrong or mixed(captions, record.get("changeflag")) or odd
        if lacking := [str(file.relative_to(root)) for file in (*files, mask) if file is not None and not file.is_file()]:
            problem = f"no file {', '.join(lacking)}"
        name = str(record.get("name") or PurePosixPath(str(record["image2"])).with_suffix(""))
        entries.append(Entry(name, split_of(record.get("split"), path), captions, *files, mask, box, problem))
    masks = sum(entry.mask is not None for entry in entries)
    if masks not in (0, len(entries)):
        raise UserError(f"{path}: {masks} of {len(entries)} pairs have a mask", "a mask for each, or for none", masks)
    entries, said = divided(entries)
    entries, told = given(entries, lambda entry: size_of(entry.before))
    boxes = "mask" if masks else "given" if any(entry.box is not None for entry in entries) else None
    return Layout(root, "pictures with JSON", "annotations.json", unique(entries, path), boxes, tuple(said + told))
