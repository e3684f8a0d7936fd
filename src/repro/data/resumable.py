"""A store that is written over several sessions: a killed run, or one whose session ends, loses at most what came after the last commit.

    with ResumableWriter(folder, fps, meta, asked={"url": url, "episodes": 500}) as writer:
        for i in range(writer.episodes, 500):
            writer.add(...)
            writer.note = {"tried": i + 1}

A commit comes whenever a data file is full, when the block is left by an exception between two episodes, and when it is asked for. What is
committed are closed data files, `<folder>.part/rows.jsonl` (an episode a line) and `progress.json` (how many of these count). The finished
store has the hash of one that was written at once; byte for byte it is the same where both were committed at the same episodes.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from repro import freshness
from repro.data.episodes import DATA_PATH, EPISODES_PATH, FILES_PER_CHUNK, Episode, StoreWriter, merge
from repro.data.parallel import WorkerDied

STATISTICS = ("min", "max", "mean", "std", "count")
KEPT = ("asked", "features", "episodes", "frames", "file", "note", "committed")


class ResumableWriter(StoreWriter):
    """StoreWriter that keeps what it wrote when it is left by an exception, but for those of the types `drop`: what the data are to blame
    for, and the next call would meet again (a worker that died is not).

    `asked` (JSON): what is being made, of which source, by which code (freshness.code of the reader's files); progress of anything else,
    or written by other code of these modules, is discarded.
    `note`: the caller's own state (JSON), committed and restored with the rest; to be set after each add: until then the episode is half
    added, and an exception (a signal may raise one anywhere) leaves the last commit as it is.
    """

    def __init__(self, folder: Path | str, fps: int, meta: dict, asked: dict, replace: bool = False,
                 drop: type[Exception] | tuple = ()):  # fmt: skip
        super().__init__(folder, fps, meta, replace)
        writers = freshness.code("data/episodes.py", "data/resumable.py")
        self.asked, self.note, self.drop = json.loads(json.dumps({**asked, "writers": writers})), {}, drop
        self.committed, self.finishing = 0, False  # bytes of rows.jsonl that count

    @property
    def note(self) -> dict:
        return self._note

    @note.setter
    def note(self, value: dict) -> None:
        self._note, self.between = value, True  # between two episodes: files, rows and note tell of the same ones

    @property
    def progress(self) -> Path:
        return self.part / "progress.json"

    @property
    def kept_rows(self) -> Path:
        return self.part / "rows.jsonl"

    def __enter__(self):
        kept = json.loads(self.progress.read_text()) if self.progress.is_file() else {}
        if kept.get("asked") != self.asked:
            return super().__enter__()
        (self.part / EPISODES_PATH).parent.mkdir(parents=True, exist_ok=True)  # empty so far, and lost where only files were kept
        for name in ("features", "file", "note", "committed"):
            setattr(self, name, kept[name])
        os.truncate(self.kept_rows, self.committed)  # what came after the last commit
        for row in self._rows():
            self._remember(row)
        for path in self.part.glob("data/*/*.parquet"):
            if path not in map(self._data_file, range(self.file)):
                path.unlink()  # of after the last commit
        return self

    def _rows(self) -> Iterator[dict]:
        with open(self.kept_rows) as lines:
            yield from map(json.loads, lines)

    def _remember(self, row: dict) -> None:
        """What add() would know after this episode."""
        line = [row["tasks"][0], row["length"], json.loads(row["info"]), json.loads(row["digests"])]
        self.hash.update((json.dumps(line, sort_keys=True) + "\n").encode())
        self.tasks.setdefault(row["tasks"][0], len(self.tasks))
        for name in self.features:
            if f"stats/{name}/min" in row:
                stats = {key: np.array(row[f"stats/{name}/{key}"]) for key in STATISTICS}
                self.stats[name] = merge(self.stats[name], stats) if name in self.stats else stats
        self.episodes, self.frames = self.episodes + 1, self.frames + row["length"]

    def _data_file(self, number: int) -> Path:
        return self.part / DATA_PATH.format(chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK)

    def add(self, episode: Episode) -> None:
        """Append one episode; it counts once `note` is set."""
        self.between = False
        super().add(episode)

    @property
    def bytes(self) -> int:
        """On disk so far."""
        return sum(path.stat().st_size for path in self.part.glob("data/*/*.parquet"))

    def _close_file(self) -> None:
        super()._close_file()
        if not self.finishing:
            self.commit()

    def commit(self) -> None:
        """Close the data file, and note all that is needed to go on."""
        between, self.between = self.between, False  # nor is it to be repeated where it was stopped: its rows may be in the file already
        if self.data is not None:
            super()._close_file()
        with open(self.kept_rows, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
            file.flush()
            os.fsync(file.fileno())
            self.committed = file.tell()
        self.rows = []
        part = self.progress.with_suffix(".part")
        with open(part, "w") as file:
            json.dump({name: getattr(self, name) for name in KEPT}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.progress)
        self.between = between

    def __exit__(self, kind, error, trace):
        if not self.episodes or (kind and issubclass(kind, self.drop) and not issubclass(kind, WorkerDied)):
            super().__exit__(kind, error, trace)
        elif kind is None:
            self._finish()
        elif self.between:
            self.commit()  # what was made is kept for the next session
        elif self.data is not None:  # what came after the last commit is removed by the next call
            self.data.close()
            self.sink.close()

    def _flush_rows(self) -> None:
        if self.finishing:  # until then rows are kept as lines: a table of episodes cannot be reopened
            super()._flush_rows()

    def _finish(self) -> None:
        if self.rows:
            self.commit()  # a kill from here on costs nothing
        self.finishing = True
        for row in self._rows() if self.episodes else ():
            self.rows.append(row)
            if len(self.rows) == 256:
                self._flush_rows()
        super()._finish()
        for name in (self.progress, self.kept_rows):
            (self.folder / name.name).unlink()  # last: a whole store beside which they stand is whole
