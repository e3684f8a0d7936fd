"""Arrow folders as `datasets.save_to_disk` writes them, read with pyarrow: nothing in them is executed.

Columns image, image2 (struct<bytes, path> or binary) and caption (a sentence or several); bbox [x1, y1, x2, y2] and name where there are
any. One set, or one a split with dataset_dict.json above them.
"""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa

from repro.data.levir_entries import Entry, Layout, clean, divided, given, mixed, read_json, safe, unique
from repro.machine import UserError


def arrow(root: Path) -> Layout:
    """A folder of `save_to_disk`: one set, or one a split; columns image, image2, caption and, where there are any, bbox and name."""
    folders, entries, sizes = {"": root}, [], {}
    if (root / "dataset_dict.json").is_file():
        folders = {str(name): root / safe(str(name), root) for name in read_json(root / "dataset_dict.json")["splits"]}
    columns = set()
    for split, folder in folders.items():
        row = 0
        told = read_json(folder / "state.json")
        if not isinstance(told, dict) or not told.get("_data_files"):
            raise UserError(f"{folder / 'state.json'} names no Arrow files", '{"_data_files": [{"filename"}]}', told, "save the set again")
        for about in told["_data_files"]:
            path = folder / safe(about["filename"], folder)
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
                problem = mixed(captions, values.get("changeflag"))
                if box is not None and (len(box) != 4 or not np.isfinite(box).all()):
                    box, problem = None, f"bbox {box} is not four numbers"
                if box is not None and max(box) > 1:
                    sizes[name] = size_of(png_of((path, "image", i)))
                entries.append(Entry(name, split, captions, (path, "image", i), (path, "image2", i), box=box, problem=problem))
                row += 1
    entries, said = divided(entries)
    entries, told = given(entries, sizes)
    return Layout(root, "Arrow", "dataset_dict.json" if "" not in folders else "state.json", unique(entries, root),
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


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height of a picture, from its header; (1, 1) for none: what is wrong with it is said when it is decoded."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:  # reads the header only
            return picture.size
    except (OSError, ValueError):
        return 1, 1
