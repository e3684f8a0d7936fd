"""Episodes and the store they live in: a LeRobot v3.0 data set on disk, written and read with pyarrow.

    with StoreWriter("data/store", fps=30, meta={"source": "CALVIN"}) as writer:
        writer.add(Episode("open the drawer", {"observation.images.static": frames, "action": actions}, {"scene": "D"}))
    store = Store("data/store")
    store.read(0).columns["action"]                                     # (T, 7) float32

One parquet row group per episode, pictures embedded as PNG in a struct<bytes, path>, a new file after about 100 MB, statistics and a
content hash written with the data. The hash is over pixels and numbers, so it depends neither on time nor on the PNG encoder.
A store is whole or absent: everything is written to `<folder>.part` and renamed at the end.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repro.machine import UserError

VERSION = "v3.0"
FILE_BYTES = 100 * 2**20  # a data file is closed after this many bytes, LeRobot's own default
FILE_EPISODES = 100  # or after as many: whoever opens a file holds the description of all its row groups in memory
FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")  # LeRobot's own, made by the writer
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass
class Episode:
    """One demonstration: `task` the instruction; `columns` name -> (T, ...) array or list of T strings; `info` JSON-able facts."""

    task: str
    columns: dict
    info: dict = field(default_factory=dict)


@dataclass(frozen=True)
class EpisodeInfo:
    """What the store knows of one episode without reading its frames. `start` is its first row; `info` is Episode.info."""

    index: int
    length: int
    task: str
    task_id: str
    scene: str
    start: int
    info: dict


@dataclass(frozen=True)
class Column:
    """One column of one episode, ready to be written. `stats` is None for strings."""

    array: pa.Array
    feature: dict
    digest: str
    stats: dict | None


# --- one column ---------------------------------------------------------------------------------------------------------------------


def encode_png(picture: np.ndarray) -> bytes:
    """PNG of an RGB picture (H, W, 3) uint8; level 1, the fastest that still compresses."""
    return cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()


def decode_png(data: bytes) -> np.ndarray:
    """RGB picture (H, W, 3) uint8 of a PNG; ValueError for what is none."""
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if found is None:
        raise ValueError("a torn picture, or none")
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def describe(values: np.ndarray) -> dict:
    """min, max, mean, std (population) over the first axis of (n, ...), and count [n]; all float64 but the count."""
    values = np.asarray(values, np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {**found, "count": np.array([len(values)])}


def merge(one: dict, two: dict) -> dict:
    """Statistics of the union of two sets from the statistics of each (Chan, Golub, LeVeque 1983)."""
    n, m = one["count"][0], two["count"][0]
    delta = two["mean"] - one["mean"]
    variance = (n * one["std"] ** 2 + m * two["std"] ** 2) / (n + m) + delta**2 * n * m / (n + m) ** 2
    return {
        "min": np.minimum(one["min"], two["min"]),
        "max": np.maximum(one["max"], two["max"]),
        "mean": one["mean"] + delta * m / (n + m),
        "std": np.sqrt(variance),
        "count": np.array([n + m]),
    }


def encode_pictures(frames: np.ndarray) -> Column:
    """The column of (T, H, W, 3) uint8 RGB frames. Its statistics, in [0, 1] and of shape (3, 1, 1), are of every 8th row and column."""
    digest = hashlib.blake2b(digest_size=16)
    for frame in frames:
        digest.update(np.ascontiguousarray(frame))
    pixels = describe(frames[:, ::8, ::8].reshape(-1, 3) / 255.0)
    stats = {key: value if key == "count" else value.reshape(3, 1, 1) for key, value in pixels.items()}
    stats["count"] = np.array([len(frames)])  # frames, as LeRobot counts pictures
    array = pa.StructArray.from_arrays(
        [pa.array([encode_png(frame) for frame in frames], pa.binary()), pa.nulls(len(frames), pa.string())], fields=list(PICTURE)
    )
    feature = {"dtype": "image", "shape": list(frames.shape[1:]), "names": ["height", "width", "channels"]}
    return Column(array, feature, digest.hexdigest(), stats)


def as_column(name: str, values) -> Column:
    """The column of `values`: a Column as it is, (T, H, W, 3) uint8 pictures, a list of strings, or (T,) / (T, n) numbers."""
    if isinstance(values, Column):
        return values
    if isinstance(values, (list, tuple)) and all(isinstance(value, str) for value in values):
        digest = hashlib.blake2b(json.dumps(list(values)).encode(), digest_size=16).hexdigest()
        return Column(pa.array(values, pa.string()), {"dtype": "string", "shape": [1], "names": None}, digest, None)
    values = np.ascontiguousarray(values)
    if values.ndim == 4 and values.dtype == np.uint8 and values.shape[-1] == 3:
        return encode_pictures(values)
    if values.ndim not in (1, 2) or values.dtype.kind not in "fiub":
        raise UserError(
            f"Column {name} cannot be stored.",
            expected="uint8 pictures (T, H, W, 3), numbers (T,) or (T, n), or T strings",
            found=f"{values.dtype} {values.shape}",
        )
    flat = pa.array(values.reshape(-1))
    array = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    digest = hashlib.blake2b(f"{values.dtype}{values.shape}".encode() + values.tobytes(), digest_size=16).hexdigest()
    shape = [1] if values.ndim == 1 else [values.shape[1]]
    stats = describe(values.reshape(len(values), -1))
    return Column(array, {"dtype": str(values.dtype), "shape": shape, "names": None}, digest, stats)


def _hugging_face(features: dict) -> bytes:
    """The schema note by which `datasets` knows the columns, pictures among them."""

    def kind(feature: dict) -> dict:
        if feature["dtype"] == "image":
            return {"_type": "Image"}
        value = {"dtype": feature["dtype"], "_type": "Value"}
        return value if feature["shape"] == [1] else {"feature": value, "length": feature["shape"][0], "_type": "Sequence"}

    return json.dumps({"info": {"features": {name: kind(feature) for name, feature in features.items()}}}).encode()


# --- writing ------------------------------------------------------------------------------------------------------------------------


def aside(folder: Path) -> tuple[Path, Path]:
    """Where a store is built before it is renamed, and where an old one waits while the new one takes its name."""
    return folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")


def recover(folder: Path) -> None:
    """Put back the old store when a replacement was killed between its two renames."""
    old = aside(folder)[1]
    if old.exists() and not folder.exists():
        os.rename(old, folder)


class StoreWriter:
    """Writes a store, one episode at a time; memory does not grow with the data. Use it as a context manager.

    Leaving the block writes the metadata and renames the folder into place; an exception inside it removes what was written.
    """

    def __init__(self, folder: Path | str, fps: int, meta: dict | None = None, replace: bool = False):
        """`meta`: JSON-able facts about the source, kept in meta/repro.json. `replace`: an existing store is replaced at the end."""
        self.folder, self.fps, self.meta, self.replace = Path(folder), fps, dict(meta or {}), replace
        recover(self.folder)
        there = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else ["a file"] * self.folder.exists()
        if there and not (self.folder / "meta" / "repro.json").is_file():  # the sources themselves, perhaps: never replaced
            raise UserError(f"{self.folder} exists and is no store.", "a new folder, or a store to replace", ", ".join(there[:5]),
                            "choose another folder: what is there is not touched")
        if self.folder.exists() and not replace:
            raise UserError(f"{self.folder} exists.", "a new folder", "a store" if there else "an empty folder",
                            "choose another folder, or --replace (in Python: replace=True) to replace it")
        self.part, self.old = aside(self.folder)
        self.features: dict = {}
        self.tasks: dict[str, int] = {}
        self.stats: dict = {}
        self.rows: list[dict] = []
        self.episodes = self.frames = self.file = self.groups = 0  # groups: episodes in the file that is open
        self.hash = hashlib.sha256()
        self.data = self.episode_table = None

    def __enter__(self):
        shutil.rmtree(self.part, ignore_errors=True)  # of a run that was killed
        (self.part / EPISODES_PATH).parent.mkdir(parents=True)
        return self

    def __exit__(self, kind, error, trace):
        for writer in (self.data, self.episode_table):
            if writer is not None and kind is not None:
                writer.close()
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.part, ignore_errors=True)

    def add(self, episode: Episode) -> None:
        """Append one episode. Every episode has the columns, dtypes and shapes of the first."""
        columns = {name: as_column(name, values) for name, values in episode.columns.items() if name not in INDEX_COLUMNS}
        length = len(next(iter(columns.values())).array) if columns else 0
        self._check(columns, length)
        digests = {name: column.digest for name, column in sorted(columns.items())}
        self.hash.update((json.dumps([episode.task, length, episode.info, digests], sort_keys=True) + "\n").encode())
        task = self.tasks.setdefault(episode.task, len(self.tasks))
        step = np.arange(length, dtype=np.int64)
        index = ((step / self.fps).astype(np.float32), step, np.full(length, self.episodes), self.frames + step, np.full(length, task))
        columns |= {name: as_column(name, values) for name, values in zip(INDEX_COLUMNS, index, strict=True)}
        self._write(columns)
        row = {
            "episode_index": self.episodes, "tasks": [episode.task], "length": length,
            "data/chunk_index": self.file // FILES_PER_CHUNK, "data/file_index": self.file % FILES_PER_CHUNK,
            "dataset_from_index": self.frames, "dataset_to_index": self.frames + length,
            "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0,
            "info": json.dumps(episode.info), "digests": json.dumps(digests),
        }  # fmt: skip
        for name, column in columns.items():
            if column.stats is not None:
                self.stats[name] = merge(self.stats[name], column.stats) if name in self.stats else column.stats
                row |= {f"stats/{name}/{key}": value.tolist() for key, value in column.stats.items()}
        self.rows.append(row)
        self.episodes, self.frames = self.episodes + 1, self.frames + length
        if len(self.rows) == 256:
            self._flush_rows()

    def _check(self, columns: dict[str, Column], length: int) -> None:
        lengths = {name: len(column.array) for name, column in columns.items()}
        if length == 0 or set(lengths.values()) != {length}:
            raise UserError(f"Episode {self.episodes} cannot be stored.", expected="columns of one length, at least 1", found=lengths)
        features = {name: column.feature for name, column in columns.items()}
        if self.features and features != {name: self.features[name] for name in self.features if name not in INDEX_COLUMNS}:
            raise UserError(f"Episode {self.episodes} differs in its columns from the first.", expected=self.features, found=features)

    def _write(self, columns: dict[str, Column]) -> None:
        """One row group; a new file when the last has grown past FILE_BYTES or has FILE_EPISODES."""
        self.features = self.features or {name: column.feature for name, column in columns.items()}
        arrays = {name: columns[name].array for name in self.features}
        if self.data is not None and (self.sink.tell() > FILE_BYTES or self.groups == FILE_EPISODES):
            self._close_file()
        if self.data is None:
            schema = pa.schema({name: array.type for name, array in arrays.items()}, metadata={"huggingface": _hugging_face(self.features)})
            path = self.part / DATA_PATH.format(chunk_index=self.file // FILES_PER_CHUNK, file_index=self.file % FILES_PER_CHUNK)
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures = {name for name, feature in self.features.items() if feature["dtype"] == "image"}
            others = [name for name in self.features if name not in pictures]
            packed = {
                **{name: "snappy" for name in others},
                **{f"{name}.{leaf}": "none" for name in pictures for leaf in ("bytes", "path")},
            }
            words = [name for name in others if self.features[name]["dtype"] == "string"]
            if "info.drawn" in self.features:  # rows that repeat an earlier picture: it is written once
                words += [f"{name}.bytes" for name in pictures]
            self.sink = pa.OSFile(str(path), "wb")
            self.data = pq.ParquetWriter(
                self.sink, schema, compression=packed, use_dictionary=words, write_statistics=["episode_index", "index"],
                dictionary_pagesize_limit=2**26,
            )
        self.data.write_table(pa.Table.from_arrays(list(arrays.values()), schema=self.data.schema), row_group_size=len(arrays["index"]))
        self.groups += 1

    def _close_file(self) -> None:
        self.data.close()
        self.sink.close()
        self.data, self.file, self.groups = None, self.file + 1, 0

    def _flush_rows(self) -> None:
        if not self.rows:
            return
        table = pa.Table.from_pylist(self.rows, schema=self.episode_table.schema if self.episode_table else None)
        if self.episode_table is None:
            self.episode_table = pq.ParquetWriter(self.part / EPISODES_PATH, table.schema)
        self.episode_table.write_table(table)
        self.rows = []

    def _finish(self) -> None:
        if not self.episodes:
            raise UserError(f"No episode was added to {self.folder}.", expected="at least one", found=0)
        self._flush_rows()
        self.episode_table.close()
        if self.data is not None:
            self._close_file()
        meta = self.part / "meta"
        pq.write_table(_task_table(self.tasks), meta / "tasks.parquet")
        info = {
            "codebase_version": VERSION, "robot_type": self.meta.get("robot_type"), "fps": self.fps, "features": self.features,
            "total_episodes": self.episodes, "total_frames": self.frames, "total_tasks": len(self.tasks),
            "splits": {"train": f"0:{self.episodes}"}, "data_path": DATA_PATH, "video_path": None,
            "chunks_size": FILES_PER_CHUNK, "data_files_size_in_mb": FILE_BYTES // 2**20, "video_files_size_in_mb": 200,
        }  # fmt: skip
        stats = {name: {key: value.tolist() for key, value in stats.items()} for name, stats in self.stats.items()}
        for name, value in (("info", info), ("stats", stats), ("repro", {**self.meta, "hash": self.hash.hexdigest()})):
            (meta / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
        if self.folder.exists():
            shutil.rmtree(self.old, ignore_errors=True)
            os.rename(self.folder, self.old)
        os.rename(self.part, self.folder)
        shutil.rmtree(self.old, ignore_errors=True)


def _task_table(tasks: dict[str, int]) -> pa.Table:
    """tasks.parquet as pandas writes a frame whose index is the instruction, without needing pandas."""
    columns = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    note = {
        "index_columns": ["task"], "column_indexes": [], "pandas_version": "2.0.0",
        "columns": [{"name": n, "field_name": n, "pandas_type": p, "numpy_type": t, "metadata": None} for n, p, t in columns],
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks.keys(), pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(note)})


# --- reading ------------------------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(what: object) -> Iterator[None]:
    """UserError that names `what` for whatever a torn or garbled file makes its readers raise."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{what} cannot be read.", "a file as it was written", f"{type(error).__name__}: {error}",
                        "remove the store and import it again") from error  # fmt: skip


class Store:
    """A store on disk. `info`: LeRobot's info.json; `meta`: ours (source, units, hash); `stats` name -> {min, max, mean, std, count}.

    `episodes`: an EpisodeInfo each; `digests`: for each the JSON text of {column: digest of its content}.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        recover(self.folder)
        self.info, self.meta = self._json("info", "features", "fps", "total_frames"), self._json("repro", "hash")
        if self.info.get("codebase_version") != VERSION:
            raise UserError(f"{self.folder} has another format.", expected=VERSION, found=self.info.get("codebase_version"))
        self.stats = {name: {key: np.array(v) for key, v in stats.items()} for name, stats in self._json("stats").items()}
        self.hash, self.fps, self.frames = self.meta["hash"], self.info["fps"], self.info["total_frames"]
        self._open = threading.local()  # a parquet handle is not shared between threads
        with _reading(self.folder / EPISODES_PATH):
            self._list()

    def _list(self) -> None:
        """The episodes, and where each lies."""
        table = pq.ParquetFile(self.folder / EPISODES_PATH)
        names = [name for name in table.schema_arrow.names if not name.startswith("stats/")]
        self.episodes, self._places, self.digests, first = [], [], [], {}
        for row in (row for batch in table.iter_batches(256, columns=names) for row in batch.to_pylist()):
            i, info = len(self.episodes), json.loads(row["info"])
            facts = (info.get("task_id", ""), info.get("scene", ""))
            self.episodes.append(EpisodeInfo(i, row["length"], row["tasks"][0], *facts, row["dataset_from_index"], info))
            file = (row["data/chunk_index"], row["data/file_index"])
            self._places.append((file, i - first.setdefault(file, i)))
            self.digests.append(row["digests"])

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def columns(self) -> list[str]:
        """Names of the columns, without LeRobot's index columns."""
        return [name for name in self.info["features"] if name not in INDEX_COLUMNS]

    def _json(self, name: str, *keys: str) -> dict:
        path = self.folder / "meta" / f"{name}.json"
        if not path.is_file():
            raise UserError(
                f"{path} is missing.", expected=f"a store ({self.folder}/meta/...)",
                next_step="make it with `repro calvin import` or `repro libero import`"
            )
        with _reading(path):
            found = json.loads(path.read_text())
            if lacking := [key for key in keys if key not in found]:
                raise KeyError(lacking[0])
        return found

    def need(self, columns: Sequence[str]) -> None:
        """UserError where the store lacks one of `columns`."""
        missing = [name for name in columns if name not in self.info["features"]]
        if missing:
            step = "add gaze boxes first (repro gaze annotate)" if all(name.startswith("gaze.") for name in missing) else None
            raise UserError(
                f"{self.folder} has no column {', '.join(missing)}.", expected=list(columns), found=self.columns, next_step=step
            )

    def _file(self, file: tuple[int, int]) -> pq.ParquetFile:
        if getattr(self._open, "name", None) != file:
            path = self._path(file)
            if not path.is_file():
                raise UserError(f"{path} is missing: the store is not whole.", next_step="import it again")
            self._open.name, self._open.file = file, pq.ParquetFile(path)
        return self._open.file

    def _path(self, file: tuple[int, int]) -> Path:
        return self.folder / DATA_PATH.format(chunk_index=file[0], file_index=file[1])

    def reading(self, i: int):
        """A block in which the content of episode `i` is read: what is torn there is a UserError that names its file."""
        return _reading(f"{self._path(self._places[i][0])} (episode {i})")

    def table(self, i: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Episode `i` as stored: pictures still PNG."""
        columns = list(self.columns if columns is None else columns)
        self.need(columns)
        file, group = self._places[i]
        with self.reading(i):
            return self._file(file).read_row_group(group, columns=columns)

    def read(self, i: int, columns: Sequence[str] | None = None, decode: bool = True) -> Episode:
        """Episode `i` with the named columns (all by default). Pictures are (T, H, W, 3) uint8, or lists of PNG bytes if not `decode`."""
        table, episode = self.table(i, columns), self.episodes[i]
        with self.reading(i):
            values = {name: _values(table[name], self.info["features"][name], decode) for name in table.column_names}
        return Episode(episode.task, values, dict(episode.info))

    def column(self, name: str):
        """A whole column in memory: (N, ...) numbers or a list of N strings. Not for pictures."""
        self.need([name])
        feature = self.info["features"][name]
        if feature["dtype"] == "image":
            raise ValueError(f"{name} holds pictures: read them by episode")
        parts = []
        for file in dict.fromkeys(file for file, _ in self._places):
            with _reading(self._path(file)):
                parts.append(_values(self._file(file).read(columns=[name])[name], feature, True))
        if (rows := sum(map(len, parts))) != self.frames:
            raise UserError(f"{self.folder} holds other rows than it says: its columns do not belong to its episodes.",
                            f"{self.frames} rows", f"{rows} rows of {name}", "remove it and import it again")  # fmt: skip
        return [text for part in parts for text in part] if feature["dtype"] == "string" else np.concatenate(parts)


def _values(column: pa.ChunkedArray, feature: dict, decode: bool):
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if feature["dtype"] == "image":
        data = array.field("bytes").to_pylist()
        return np.stack([decode_png(png) for png in data]) if decode else data
    if feature["dtype"] == "string":
        return array.to_pylist()
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)
