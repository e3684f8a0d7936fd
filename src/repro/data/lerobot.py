"""Episodes of a LeRobot data set of others: layouts v2.0, v2.1 and v3.0, pictures inside the parquet files.

    for episode in LeRobot("downloads/libero_spatial_image").read():
        episode.columns["action"]                                       # (T, 7) as stored: nothing is turned, scaled or renamed but keys

The layout is told by `codebase_version` in meta/info.json. v2.x: one parquet file an episode, meta/tasks.jsonl and meta/episodes.jsonl;
v3.0: many episodes a file, meta/tasks.parquet and meta/episodes/*/*.parquet (LeRobot's documentation of its data set format).
One episode is in memory at a time. Key names differ between data sets of the same recordings: KEYS lists those that are known.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repro.data.episodes import Episode, decode_png
from repro.machine import UserError

VERSIONS = ("v2.0", "v2.1", "v3.0")
KEYS = {  # ours -> theirs, the first that is there
    "observation.images.static": ("observation.images.image", "image", "observation.images.agentview", "observation.images.agentview_rgb"),
    "observation.images.wrist": ("observation.images.wrist_image", "observation.images.image2", "wrist_image", "image2",
                                 "observation.images.eye_in_hand_rgb"),
    "observation.state": ("observation.state", "state"),
    "action": ("action", "actions"),
}  # fmt: skip
ROWS = 64  # decoded at a time


class Damaged(Exception):
    """An episode with a picture that cannot be decoded; the others are as sound as without it."""


class LeRobot:
    """A data set's folder. `version`, `info` (info.json), `keys` ours -> theirs, `episodes` [(index, sentence, length, file)]."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.info = self._json("info.json")
        self.version = self.info.get("codebase_version")
        if self.version not in VERSIONS:
            raise UserError(f"{self.folder} has an unknown LeRobot layout", " | ".join(VERSIONS), self.version or "no codebase_version",
                            "convert it with LeRobot's own script, or take a data set in one of these layouts")
        if lacking := [name for name, kind in (("features", dict), ("data_path", str)) if not isinstance(self.info.get(name), kind)]:
            raise UserError(f"{self.folder}/meta/info.json lacks {', '.join(lacking)}", "codebase_version, features {..}, data_path \"..\"",
                            ", ".join(self.info), "download it again")
        self.keys = self._keys()
        rows = self._v3() if self.version == "v3.0" else self._v2()
        self.episodes = sorted((int(i), str(sentence), int(length), file) for i, sentence, length, file in rows)
        told = self.info.get("total_episodes", len(self.episodes))
        if not self.episodes or len(self.episodes) != told:
            raise UserError(f"{self.folder}: its list of episodes is not whole", f"{told} episodes (info.json), at least 1",
                            len(self.episodes), "download it again")  # fmt: skip

    def _json(self, name: str) -> dict:
        path = self.folder / "meta" / name
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read", "LeRobot's meta folder", error,
                            "give the folder that holds meta/ and data/") from error
        if not isinstance(found, dict):
            raise UserError(f"{path} is not LeRobot's", "a JSON object {..}", type(found).__name__, "download it again")
        return found

    def _keys(self) -> dict[str, str]:
        """Which of the data set's features is what; a camera that is missing, and video files, are refused."""
        features, found = self.info.get("features", {}), {}
        for ours, known in KEYS.items():
            found[ours] = next((name for name in known if name in features), None)
            if found[ours] is None:
                what = "camera" if "images" in ours else "column"
                raise UserError(f"{self.folder} has no {what} for {ours}", " | ".join(known), ", ".join(features) or "no features",
                                "rename the feature, or add its name to KEYS in repro/data/lerobot.py")
            if features[found[ours]].get("dtype") == "video":
                raise UserError(f"{self.folder} keeps {found[ours]} as video", "pictures inside the parquet files (dtype image)", "video",
                                "take a data set of pictures: lerobot/libero_*_image (v2.0) or HuggingFaceVLA/libero (v3.0)")
        return found

    def _v2(self) -> list[tuple]:
        path, chunk = self.folder / "meta" / "episodes.jsonl", int(self.info.get("chunks_size", 1000))
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
            return [(row["episode_index"], row["tasks"][0], row["length"],
                     self._place(episode_index=row["episode_index"], episode_chunk=row["episode_index"] // chunk)) for row in rows]
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{path} cannot be read", '{"episode_index", "tasks": [...], "length"} a line',
                            f"{type(error).__name__}: {error}", "download it again") from error

    def _v3(self) -> list[tuple]:
        names = ["episode_index", "tasks", "length", "data/chunk_index", "data/file_index"]
        files = sorted((self.folder / "meta" / "episodes").glob("*/*.parquet"))
        try:
            rows = [row for path in files for row in pq.read_table(path, columns=names).to_pylist()]
            return [(row["episode_index"], row["tasks"][0], row["length"],
                     self._place(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])) for row in rows]
        except (OSError, pa.ArrowException, KeyError, IndexError, TypeError) as error:
            raise UserError(f"{self.folder}/meta/episodes cannot be read", ", ".join(names), f"{type(error).__name__}: {error}",
                            "download it again") from error

    def _place(self, **numbers) -> Path:
        return self.folder / self.info["data_path"].format(**numbers)

    def read(self, wanted: Callable[[int, str], bool] = lambda index, sentence: True) -> Iterator[Episode]:
        """Episodes whose (index, sentence) is `wanted`, in order, with the columns of KEYS; pictures (T, H, W, 3) uint8 RGB.

        One that is damaged, by a picture or by the bytes of its rows, has no columns, and info["damaged"] says why. A file that is missing
        or cut off is refused before any is read."""
        files: dict[Path, dict] = {}
        for index, sentence, length, file in self.episodes:
            if wanted(index, sentence):
                files.setdefault(file, {})[index] = (sentence, length)
        columns = ["episode_index", *self.keys.values()]
        for path in files:
            _whole(path, columns)
        for path, here in files.items():
            rows: list[pa.RecordBatch] = []
            try:
                for batch in _by_episode(path, columns):
                    index = batch.column(0)[0].as_py()
                    if rows and rows[0].column(0)[0].as_py() != index:
                        yield from self._episode(rows, here, path)
                        rows = []
                    rows += [batch] if index in here else []
                yield from self._episode(rows, here, path)
            except (OSError, pa.ArrowException) as error:
                why = f"{path.name}: {type(error).__name__}: {error}"
                yield from (Episode(sentence, {}, {"episode": index, "file": path.name, "damaged": why})
                            for index, (sentence, _) in sorted(here.items()))
                here.clear()
            if here:
                raise UserError(f"{path} lacks episodes", f"the episodes {list(here)[:5]}", "none of their rows", "download it again")

    def _episode(self, rows: list[pa.RecordBatch], here: dict, path: Path) -> Iterator[Episode]:
        if not rows:
            return
        table = pa.Table.from_batches(rows)
        index = table["episode_index"][0].as_py()
        sentence, length = here.pop(index)
        if len(table) != length:
            raise UserError(f"{path}: episode {index} is not whole", f"{length} rows", len(table), "download it again")
        info = {"episode": index, "file": path.name}
        try:
            columns = {ours: (_pictures if "images" in ours else _numbers)(table[theirs], f"{path}, episode {index}, {theirs}")
                       for ours, theirs in self.keys.items()}  # fmt: skip
        except Damaged as error:
            columns, info = {}, info | {"damaged": str(error)}
        yield Episode(sentence, columns, info)


def _whole(path: Path, columns: list[str]) -> None:
    """UserError where a file is missing, lacks its end, where parquet keeps what it holds, or lacks a column."""
    try:
        with pq.ParquetFile(path) as file:
            lacking = [name for name in columns if name not in file.schema_arrow.names]
        found = f"no {', '.join(lacking)}"
    except (OSError, pa.ArrowException) as error:
        lacking, found = columns, f"{type(error).__name__}: {error}"
    if lacking:
        raise UserError(f"{path} cannot be read", "a whole parquet file with " + ", ".join(columns), found, "download it again")


def _by_episode(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The file's rows in order, each batch of one episode."""
    with pq.ParquetFile(path, pre_buffer=False) as file:  # nothing is read ahead: memory stays flat
        for batch in file.iter_batches(ROWS, columns=columns, use_threads=False):
            batch = batch.select(columns)
            index = batch.column(0).to_numpy()
            cuts = [0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]
            for start, stop in zip(cuts, cuts[1:], strict=False):
                if stop > start:
                    yield batch.slice(start, stop - start)


def _pictures(column: pa.ChunkedArray, where: str) -> np.ndarray:
    if not pa.types.is_struct(column.type) or column.type.get_field_index("bytes") < 0:
        raise UserError(f"{where}: no pictures", "a struct of bytes and path", column.type)
    found = [row["bytes"] for row in column.to_pylist()]
    if None in found:
        raise UserError(f"{where}: the pictures are not in the parquet file", "their bytes", "a path only",
                        "export it with embedded pictures")
    try:
        return np.stack([decode_png(data) for data in found])
    except (cv2.error, ValueError) as error:
        raise Damaged(f"{where}: a picture cannot be decoded (expected PNG or JPEG, all of one size): {error}".strip()) from error


def _numbers(column: pa.ChunkedArray, where: str) -> np.ndarray:
    try:
        return np.array(column.to_pylist(), np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: not rows of one length", "numbers", error) from error
