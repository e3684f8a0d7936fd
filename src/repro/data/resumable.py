"""A store that is written over several sessions: after each `commit` a killed run loses nothing of what came before.

    with ResumableWriter(folder, fps, meta, asked={"url": url, "episodes": 500}) as writer:
        for i in range(writer.episodes, 500): writer.add(...); writer.commit()

What is committed are closed data files and meta in `<folder>.part/progress.json`; the finished store is the same, byte for byte, as one
that was committed at the same episodes and never stopped.
"""

import io
import json
import os
from pathlib import Path

import numpy as np

from repro.data.episodes import DATA_PATH, EPISODES_PATH, FILES_PER_CHUNK, StoreWriter


class ResumableWriter(StoreWriter):
    """StoreWriter that keeps what it wrote when it is left by an exception. `asked`: what is being made; other progress is discarded.

    `note` is the caller's own state (JSON), committed and restored with the rest.
    """

    def __init__(self, folder: Path | str, fps: int, meta: dict, asked: dict):
        super().__init__(folder, fps, meta)
        self.asked, self.note, self.finishing = json.loads(json.dumps(asked)), {}, False

    @property
    def progress(self) -> Path:
        return self.part / "progress.json"

    def __enter__(self):
        kept = json.loads(self.progress.read_text()) if self.progress.is_file() else {}
        if kept.get("asked") != self.asked:
            return super().__enter__()
        (self.part / EPISODES_PATH).parent.mkdir(parents=True, exist_ok=True)  # empty so far, and lost where only files were kept
        for name in ("features", "tasks", "rows", "episodes", "frames", "file", "note"):
            setattr(self, name, kept[name])
        self.stats = {name: {key: np.array(value) for key, value in stats.items()} for name, stats in kept["stats"].items()}
        for row in self.rows:  # as add() does
            line = [row["tasks"][0], row["length"], json.loads(row["info"]), json.loads(row["digests"])]
            self.hash.update((json.dumps(line, sort_keys=True) + "\n").encode())
        for path in self.part.glob("data/*/*.parquet"):
            if path not in map(self._data_file, range(self.file)):
                path.unlink()  # of after the last commit
        return self

    def _data_file(self, number: int) -> Path:
        return self.part / DATA_PATH.format(chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK)

    @property
    def bytes(self) -> int:
        """On disk so far."""
        return sum(path.stat().st_size for path in self.part.glob("data/*/*.parquet"))

    def commit(self) -> None:
        """Close the data file, and note all that is needed to go on."""
        if self.data is not None:
            self.data.close()
            self.sink.close()
            self.data, self.file, self.groups = None, self.file + 1, 0
        stats = {name: {key: value.tolist() for key, value in stats.items()} for name, stats in self.stats.items()}
        kept = {name: getattr(self, name) for name in ("asked", "features", "tasks", "rows", "episodes", "frames", "file", "note")}
        part = self.progress.with_suffix(".part")
        with open(part, "w") as file:
            json.dump({**kept, "stats": stats}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.progress)

    def __exit__(self, kind, error, trace):
        if kind is None:
            super().__exit__(kind, error, trace)
        elif self.episodes:
            self.commit()  # what was fetched is kept for the next session

    def _flush_rows(self) -> None:
        if self.finishing:  # until then all rows stay at hand: the table of episodes cannot be reopened
            super()._flush_rows()

    def _finish(self) -> None:
        self.finishing = True
        self.progress.unlink(missing_ok=True)
        if self.data is None:  # closed by the last commit
            self.data, self.sink = io.BytesIO(), io.BytesIO()
        super()._finish()
