"""Arrow folders as `datasets.save_to_disk` writes them, read with pyarrow: nothing in them is executed.

Columns image, image2 (struct<bytes, path> or binary) and caption (a sentence or several); bbox [x1, y1, x2, y2] and name where there are
any. One set, or one a split with dataset_dict.json above them.
"""

import io
from functools import lru_cache
from pathlib import Path

import PIL.Image
import pyarrow as pa

from repro.data.levir_entries import Entry, Layout, box_of, divided, given, mixed, read_json, safe, sentences, split_of, unique
from repro.machine import UserError


def arrow(root: Path) -> Layout:
    """A folder of `save_to_disk`: one set, or one a split; columns image, image2, caption and, where there are any, bbox and name."""
    entries, columns = [], set()
    for split, folder in _folders(root).items():
        row = 0
        for path in _files(folder):
            table = arrow_table(path)
            if lacking := {"image", "image2", "caption"} - set(table.column_names):
                raise UserError(f"{path} lacks columns", "image, image2, caption, and perhaps bbox", f"no {', '.join(sorted(lacking))} in "
                                f"{', '.join(table.column_names)}")  # fmt: skip
            columns |= set(table.column_names)
            for i, values in enumerate(table.select([c for c in table.column_names if c not in ("image", "image2")]).to_pylist()):
                name = str(values.get("name") or f"{split or root.name}_{row:06d}")
                (captions, wrong), (box, odd) = sentences(values["caption"]), box_of(values.get("bbox"))
                problem = wrong or mixed(captions, values.get("changeflag")) or odd
                entries.append(Entry(name, split, captions, (path, "image", i), (path, "image2", i), box=box, problem=problem))
                row += 1
    known_by = "dataset_dict.json" if (root / "dataset_dict.json").is_file() else "state.json"
    entries, said = divided(entries)
    entries, told = given(entries, _size)
    return Layout(root, "Arrow", known_by, unique(entries, root), "given" if "bbox" in columns else None, tuple(said + told))


def _folders(root: Path) -> dict[str, Path]:
    """{split: folder}, "" for a set without splits."""
    path = root / "dataset_dict.json"
    if not path.is_file():
        return {"": root}
    told = read_json(path)
    splits = told.get("splits") if isinstance(told, dict) else None
    if not isinstance(splits, list) or not splits:
        raise UserError(f"{path} names no splits", '{"splits": ["train", "test"]}', told, "save the set again")
    return {split_of(name, path): root / safe(str(name), root) for name in splits}


def _files(folder: Path) -> list[Path]:
    """The Arrow files that state.json names."""
    told = read_json(folder / "state.json")
    files = told.get("_data_files") if isinstance(told, dict) else None
    if not isinstance(files, list) or not files or not all(isinstance(f, dict) and isinstance(f.get("filename"), str) for f in files):
        raise UserError(f"{folder / 'state.json'} names no Arrow files", '{"_data_files": [{"filename"}]}', told, "save the set again")
    return [folder / safe(about["filename"], folder) for about in files]


def _size(entry: Entry) -> tuple[int, int] | None:
    """Width and height of an entry's first date."""
    try:
        return size_of(png_of(entry.before))
    except (OSError, ValueError):
        return None


@lru_cache(4)
def arrow_table(path: Path) -> pa.Table:
    """An Arrow file of `save_to_disk` (stream format; the file format too), mapped, not read."""
    try:
        source = pa.memory_map(str(path))
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowException, OSError) as error:
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


def size_of(data: Path | bytes) -> tuple[int, int] | None:
    """Width and height of a picture, from its header; None for none: what is wrong with it is said when it is decoded."""
    try:
        with PIL.Image.open(data if isinstance(data, Path) else io.BytesIO(data)) as picture:  # reads the header only
            return picture.size
    except (OSError, ValueError, PIL.Image.DecompressionBombError):
        return None
