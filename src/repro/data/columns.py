"""New columns of a store, from a function of an episode that may take hours over all of them: streamed, and resumed after a kill.

    replace_columns("data/store", lambda episode: {"gaze.box": boxes(episode.columns["picture"])}, ["picture"], key="finder 1", log=print)

With a key, what is found for an episode is first kept in a journal, `<store>.columns/<stamp>/`, one Arrow file an episode, whole or
absent. When all are there the store is rewritten in one pass. The stamp is a hash of the key and of all that the function is given
(instructions, infos, the columns it reads): a journal is of use for as long as these stay, whatever else becomes of the store.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from repro import clock
from repro.data.episodes import EPISODES_PATH, Column, Episode, Store, StoreWriter, as_column, aside
from repro.machine import UserError


def replace_columns(folder: Path | str, new: Callable[[Episode], dict], reads: Sequence[str] = (), key: str | None = None,
                    log: Callable[[str], None] | None = None, workers: int = 1, drops: Sequence[str] = ()) -> Store:  # fmt: skip
    """Add or replace columns: `new` gets each episode with the columns `reads` and returns {name: values of its T frames}.

    `key` names what `new` depends on besides the episode (detector, weights, options). With it a run that was
    killed, or stopped by clock.OutOfTime, goes on with the episodes that are missing, and a store that has these columns from this key, and
    from the same episodes, is left as it is; without it nothing is kept. `workers`: threads that call `new`, with a key. `drops`: columns
    that go, where they are there. Pictures are copied as they are, not encoded again. The store is rewritten aside and then takes the old
    one's name; its hash changes, and `meta["columns"]` says which key made what. `log` gets the progress.
    """
    folder, say = Path(folder), log or (lambda line: None)
    with _locked(folder):
        store = Store(folder)
        store.need(reads)
        for left in aside(folder):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        journal = Journal(store, key, reads, say) if key is not None else None

        def made(i: int) -> dict[str, Column]:
            try:
                columns = {name: as_column(name, values) for name, values in new(store.read(i, reads)).items()}
                lengths = {name: len(column.array) for name, column in columns.items()}
                if set(lengths.values()) - {store.episodes[i].length}:
                    raise UserError("New columns of another length.", expected=f"{store.episodes[i].length} values each", found=lengths)
                if journal:
                    journal.put(i, columns)
            except clock.OutOfTime:
                raise  # in the midst of an episode: it begins again
            except Exception as error:
                step = f"{len(journal.done)} of {len(store)} episodes are done and kept: run the same again to go on" if journal else None
                raise UserError(f"Episode {i} of {folder} ({store.episodes[i].task!r}) got no new columns; the store is as it was.",
                                found=f"{type(error).__name__}: {error}", next_step=step) from error  # fmt: skip
            return columns

        if journal and any(one["stamp"] == journal.stamp for one in store.meta.get("columns", [])):
            say(f"{folder} has these columns already, made with the same key: {key}")
        else:
            if journal:
                _fill(journal, made, say, workers)
            stamp = {"key": key, "stamp": journal.stamp if journal else None}
            _rewrite(store, journal.get if journal else made, stamp, say, drops)
        if journal:
            journal.remove()
    return Store(folder)


def _fill(journal: "Journal", made: Callable[[int], dict], say: Callable[[str], None], workers: int) -> None:
    """Make and keep the columns of the episodes that the journal lacks. Stops before one that would take longer than the session lasts."""
    store, done, slowest = journal.store, journal.frames, [0.0]
    progress = clock.Progress("new columns", store.frames, "frames", say, before=done)

    def timed(i: int) -> tuple[int, list[str]]:
        clock.check(slowest[0])
        began = clock.now()
        names = list(made(i))
        slowest[0] = max(slowest[0], clock.now() - began)
        return i, names

    lacking = [i for i in range(len(store)) if i not in journal.done]
    with ThreadPoolExecutor(workers) as pool:  # one worker is this thread: what is set for a thread (torch's modes) holds in `new`
        for i, names in (map if workers == 1 else pool.map)(timed, lacking):
            done += store.episodes[i].length
            progress.name = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))  # gaze for gaze.box and gaze.score
            progress(done)


def _rewrite(store: Store, found: Callable[[int], dict[str, Column]], stamp: dict, say: Callable[[str], None],
             drops: Sequence[str] = ()) -> None:  # fmt: skip
    """The store once more, with the columns `found(i)` in place of those of the same names, or after the others. Out of time, it is as it
    was: what is rewritten in a session is rewritten whole."""
    kept, columns = pq.ParquetFile(store.folder / EPISODES_PATH), {}
    meta = {name: value for name, value in store.meta.items() if name != "hash"}
    progress = clock.Progress(f"writing {store.folder.name}", store.frames, "frames", say)
    with StoreWriter(store.folder, store.fps, meta, replace=True) as writer:
        for row in (row for batch in kept.iter_batches(32) for row in batch.to_pylist()):
            clock.check()
            episode, digests = store.episodes[row["episode_index"]], json.loads(row["digests"])
            columns = found(episode.index)
            stays = [name for name in store.columns if name not in columns and name not in drops]
            table, both = store.table(episode.index, stays), dict.fromkeys(name for name in store.columns if name not in drops) | columns
            for name in stays:
                keys = [key for key in ("min", "max", "mean", "std", "count") if f"stats/{name}/{key}" in row]
                stats = {key: np.array(row[f"stats/{name}/{key}"]) for key in keys}
                both[name] = Column(table[name].combine_chunks(), store.info["features"][name], digests[name], stats or None)
            writer.add(Episode(episode.task, both, episode.info))
            progress(episode.start + episode.length)
        others = [one for one in meta.get("columns", []) if not set(one["names"]) & set(columns)]
        writer.meta["columns"] = [*others, {**stamp, "names": list(columns)}]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Refuses a second process on the same store. The kernel frees the lock when its holder ends, however it ends: it is never stale."""
    path = folder.with_name(folder.name + ".lock")
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(lock.fileno()), os.stat(path))  # not a file that its holder has just removed
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            lock.seek(0)
            raise UserError(f"Another process is adding columns to {folder}.", found=f"{path}, held by process {lock.read() or 'unknown'}",
                            next_step="wait until it is done, then run this again")  # fmt: skip
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        finally:
            path.unlink()


class Journal:
    """Columns of the episodes that are done, on disk. `done`: episode -> file; `frames`: how many they have."""

    def __init__(self, store: Store, key: str, reads: Sequence[str], say: Callable[[str], None]):
        """Opens the journal of this key or begins it; those of other keys are named and left, those of earlier episodes deleted."""
        self.store, self.key, root = store, key, store.folder.with_name(store.folder.name + ".columns")
        self.stamp = hashlib.sha256(json.dumps([_given(store, reads), key]).encode()).hexdigest()[:16]
        self.folder, self.done, self.features = root / self.stamp, {}, None
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "about.json").is_file():
            (self.folder / "about.part").write_text(json.dumps({"key": key, "reads": list(reads), "given": _given(store, reads)}))
            os.replace(self.folder / "about.part", self.folder / "about.json")
        finished = {one["stamp"] for one in store.meta.get("columns", [])}  # killed just before they were removed
        for other in sorted(set(root.iterdir()) - {self.folder}):
            about = json.loads((other / "about.json").read_text()) if (other / "about.json").is_file() else None
            if about and about["given"] == _given(store, about["reads"]) and other.name not in finished:
                count = len(list(other.glob("*.arrow")))
                say(f"{other} keeps {count} of {len(store)} episodes made with another key ({about['key']}): delete it if it is of no use")
            else:
                say(f"{other} is finished, or was made from other episodes than {store.folder} has now: deleted")
                shutil.rmtree(other)
        for path in sorted(self.folder.glob("*.arrow")):
            i, digest = path.stem.split("-")
            if _digest(path.read_bytes()) == digest:
                self.done[int(i)] = path
            else:
                say(f"{path} is damaged: episode {int(i)} is computed again")
                path.unlink()
        self.frames = sum(store.episodes[i].length for i in self.done)
        if self.done:
            say(f"resumed: {self.frames:,} of {store.frames:,} frames were done")
            self.features = {name: column.feature for name, column in self.get(min(self.done)).items()}

    def put(self, i: int, columns: dict[str, Column]) -> None:
        """Keep the columns of episode `i`, of the kinds and shapes of the first."""
        features = {name: column.feature for name, column in columns.items()}
        self.features = self.features or features
        if features != self.features:
            raise UserError("New columns differ from those of the other episodes.", expected=self.features, found=features)
        notes = {n: [c.feature, c.digest, c.stats and {k: v.tolist() for k, v in c.stats.items()}] for n, c in columns.items()}
        table = pa.Table.from_arrays([c.array for c in columns.values()], names=list(columns), metadata={"notes": json.dumps(notes)})
        sink, part = pa.BufferOutputStream(), self.folder / f"{i:06d}.part"
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        path = self.folder / f"{i:06d}-{_digest(sink.getvalue())}.arrow"
        try:
            part.write_bytes(sink.getvalue())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)  # what a full disk has left
        self.done[i] = path

    def get(self, i: int) -> dict[str, Column]:
        """The columns of episode `i`."""
        table = pa.ipc.open_stream(self.done[i].read_bytes()).read_all()
        columns = {}
        for name, (feature, digest, stats) in json.loads(table.schema.metadata[b"notes"]).items():
            stats = stats and {key: np.array(value) for key, value in stats.items()}
            columns[name] = Column(table[name].combine_chunks(), feature, digest, stats)
        return columns

    def remove(self) -> None:
        """Delete the journal, and the folder of journals when it was the last."""
        shutil.rmtree(self.folder)
        with suppress(OSError):  # others are in it
            self.folder.parent.rmdir()


def _digest(data) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _given(store: Store, reads: Sequence[str]) -> str:
    """Hash of all that a function of an episode with the columns `reads` is given, over the whole store."""
    found = hashlib.sha256()
    for episode, text in zip(store.episodes, store.digests, strict=True):
        digests = json.loads(text)
        given = [episode.task, episode.length, episode.info, {name: digests.get(name) for name in reads}]
        found.update((json.dumps(given, sort_keys=True) + "\n").encode())
    return found.hexdigest()
