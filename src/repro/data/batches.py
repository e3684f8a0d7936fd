"""Batches: a pure function of (seed, step), so that resuming a run needs no loader state.

    batches = Batches(Store("data/store"), batch_size=16, chunk=5, seed=0, prepare=model.prepare)
    batches(0)["action"]                                                # (16, 5, 7) float32

Every frame of every episode is one sample and comes once an epoch, in an order drawn from (seed, epoch). What a model makes of a
frame's pictures is computed once and kept in memory-mapped files (machine.prepared), keyed by the store's hash and the model's key.

`corrupt=0.33` gives a third of the frames the gaze box of a frame of another episode, elsewhere: what a detector that fails does.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from repro import clock, machine
from repro.data.episodes import EpisodeInfo, Store
from repro.data.overlap import iou
from repro.freshness import write
from repro.machine import UserError

SPARE = 4 * 2**30  # bytes of disk that stay free for checkpoints: four runs of profile t4 keep two of 0.3 GiB each and write a third
TOGETHER = 32  # steps that `prepare_many` is given at once
WRONG = 0.5  # IoU with the own box from which another one is no wrong box
KEPT, DONE = 8, "episodes.done"  # episodes after which prepared arrays are flushed, and the file that says which are


def last_of_run(frames: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """For each of N rows the last row up to which the frames follow one another in the same episode (frame numbers and episodes (N,))."""
    if len(frames) == 0:
        return np.zeros(0, np.int64)
    breaks = (np.diff(frames) != 1) | (np.diff(episodes) != 0)
    ends = np.append(np.flatnonzero(breaks), len(frames) - 1)
    return ends[np.searchsorted(ends, np.arange(len(frames)))]


def chunk_rows(rows: np.ndarray, last: np.ndarray, chunk: int) -> np.ndarray:
    """(B, K): the rows of the next K actions; past the end of the run the last is repeated."""
    return np.minimum(rows[:, None] + np.arange(chunk), last[rows][:, None])


def pictures(observation: dict) -> dict[str, np.ndarray]:
    """The simplest `prepare`: both pictures as they are."""
    return {"static": observation["observation.images.static"], "wrist": observation["observation.images.wrist"]}


pictures.key = "pictures"


def _hash(seed: int, *columns: np.ndarray) -> np.ndarray:
    """(N,) uint64 of (N,) integers: splitmix64 over the columns, the same on every machine."""
    x = np.full(len(columns[0]), seed, np.uint64)
    for column in columns:
        x = (x ^ column.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        x ^= x >> np.uint64(31)
    return x


def held_out_episodes(episodes: list[EpisodeInfo], amount: float, seed: int = 0) -> frozenset[int]:
    """Numbers of the episodes not to train on: a share (below 1) or a count (1, 2, ...) of them, drawn from `seed`, the tasks in turn.

    A larger amount holds out these and more. At least one episode stays on each side. Overlapping segments of one recording (CALVIN's play)
    are episodes of their own here: give such data a validation store instead.
    """
    count = round(amount * len(episodes)) if 0 < amount < 1 else int(amount)
    if amount <= 0 or (amount >= 1 and amount != count) or not 1 <= (count := max(1, count)) < len(episodes):
        raise UserError("Episodes cannot be held out so.", f"a share in (0, 1), or a count in 1 ... {len(episodes) - 1}", amount,
                        "another `held_out`, or more episodes")
    order, turn = np.random.default_rng([seed, 77]).permutation(len(episodes)), {}
    place = {i: turn.setdefault(episodes[i].task_id or episodes[i].task, []) for i in order}  # the episodes of its task, in their order
    for i in order:
        place[i].append(i)
    return frozenset(episodes[i].index for i in sorted(order, key=lambda i: place[i].index(i))[:count])


def other_boxes(episodes: np.ndarray, frames: np.ndarray, found: np.ndarray, seed: int, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of N rows (episode and frame numbers, whether its box was found, boxes (N, 4)): a number in [0, 1), and the row of a found
    box of another episode that lies elsewhere (IoU < WRONG), so that it is wrong; drawn up to 20 times, after which the last one stays.
    Both depend on seed, episode, frame and boxes alone, so the frames of 8 % wrong boxes are among those of 33 %."""
    rows = np.flatnonzero(found)
    owners, own = episodes[rows], np.unique(episodes)
    if len(np.unique(owners)) < 2:
        raise UserError("Gaze boxes cannot be exchanged between episodes.", expected="found boxes in two episodes or more",
                        found=f"{len(np.unique(owners))}", next_step="annotate the store (repro gaze annotate), or corrupt=0")
    first, after = (dict(zip(own, np.searchsorted(owners, own, side), strict=True)) for side in ("left", "right"))
    first, after = (np.array([table[episode] for episode in episodes]) for table in (first, after))
    other, right = np.zeros(len(episodes), int), np.ones(len(episodes), bool)
    for draw in range(20):
        place = (_hash(seed + 1 + 1_000_003 * draw, episodes, frames) % (len(rows) - (after - first)).astype(np.uint64)).astype(np.int64)
        other = np.where(right, rows[np.where(place < first, place, place + after - first)], other)
        right = iou(boxes, boxes[other]) >= WRONG
    return _hash(seed, episodes, frames) / 2.0**64, other


class Batches:
    """`batches(step)` -> dict of numpy arrays; `batches.sample(i)` one sample; `len(batches)` samples an epoch.

    Keys: what `prepare` gives; state (B, S) float32; action (B, K, 7) float32, after the end the last action repeated; action.valid
    (B, K) bool, False where repeated; instruction, task_id (lists); gaze.box (B, 4) and gaze.valid (B,) bool, False for a fallback
    (present when the store has gaze boxes); episode, frame, row (B,) int64, frame counted within its episode.
    """

    def __init__(
        self,
        store: Store,
        batch_size: int,
        chunk: int,
        seed: int = 0,
        prepare: Callable[[dict], dict[str, np.ndarray]] | None = None,
        key: str | dict[str, str] | None = None,
        only: Callable[[EpisodeInfo], bool] | None = None,
        gaze: bool | None = None,
        cache: Path | str | None = None,
        workers: int = 2,
        log: Callable = print,
        corrupt: float = 0.0,
        corrupt_seed: int = 0,
    ):
        """`prepare` maps one step (pictures, state, task, gaze.*) to arrays of fixed shape; it must be a pure function, safe in threads.

        `key` names what `prepare` depends on (default: its own or its object's attribute `key`), or what each kind of its arrays does
        (`prepared`). `only` chooses episodes. `gaze`: True demands gaze boxes, False ignores them. `cache`: folder for the prepared
        arrays, default machine.prepared(store). `corrupt`: share of the found gaze boxes that are replaced, in every epoch the same ones
        (attribute `corrupted`, (frames of the store,) bool); what `prepare` makes of a box is made of the wrong one too.
        """
        self.store, self.batch_size, self.chunk, self.seed = store, batch_size, chunk, seed
        chosen = [episode for episode in store.episodes if only is None or only(episode)]
        if not chosen:
            raise UserError(f"No episode of {store.folder} is chosen.", expected="at least one", found=f"0 of {len(store)}")
        self.rows = np.concatenate([np.arange(episode.start, episode.start + episode.length) for episode in chosen])
        if "info.drawn" in store.columns:  # a row that carries an earlier step's picture is no sample; its action is part of a chunk
            drawn = np.asarray(store.column("info.drawn"), bool)
            self.rows = self.rows[drawn[self.rows]]
        lengths = [episode.length for episode in store.episodes]
        self.episode = np.repeat(np.arange(len(store)), lengths)
        self.state, self.action = store.column("observation.state"), store.column("action")
        numbers = store.column("info.frame") if "info.frame" in store.columns else np.arange(store.frames)
        self.last = last_of_run(numbers, self.episode)
        self.gaze = "gaze.box" in store.columns if gaze is None else gaze
        if self.gaze:
            self.box = store.column("gaze.box")  # says which step is missing when there is no such column
            self.valid = np.array(store.column("gaze.source")) != "fallback"
        self.prepared = {} if prepare is None else prepared(store, prepare, key, cache, workers, log)
        self.corrupted, self.wrong = np.zeros(store.frames, bool), {}
        if corrupt:
            self._corrupt(corrupt, corrupt_seed, prepare, key, cache, workers, log)
        self._orders: dict[int, np.ndarray] = {}

    def _corrupt(self, share: float, seed: int, prepare, key, cache, workers, log) -> None:
        if not self.gaze or not 0 < share <= 1:
            raise UserError("Boxes cannot be corrupted so.", expected="a share in [0, 1] of data with gaze boxes that are used",
                            found=f"share {share}, gaze {self.gaze}")
        frames = np.concatenate([np.arange(episode.length) for episode in self.store.episodes])
        boxes = np.asarray(self.box)
        number, other = other_boxes(self.episode, frames, self.valid, seed, boxes)
        boxes = boxes[other]
        self.corrupted = (number < share) & self.valid
        self.box = np.where(self.corrupted[:, None], boxes, self.box)
        if prepare is not None:  # made for every frame once: whatever the share, the same arrays
            key, how = _key(prepare, key), f"; boxes of other episodes that lie elsewhere, seed {seed}"
            key = {kind: one + how for kind, one in key.items()} if isinstance(key, dict) else key + how
            self.wrong = prepared(self.store, prepare, key, cache, workers, log, boxes)

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, step: int) -> dict:
        """The batch of `step` (0, 1, ...); the same for the same seed and step, whatever came before."""
        if step < 0:
            raise ValueError(f"step must be >= 0, got {step}")
        first = step * self.batch_size
        places = np.arange(first, first + self.batch_size)
        epochs = places // len(self)
        return self.gather(
            np.concatenate([self._order(epoch)[places[epochs == epoch] % len(self)] for epoch in np.unique(epochs).tolist()])
        )

    def sample(self, i: int) -> dict:
        """Sample `i` of len(self), in the order of the store, without the batch axis."""
        return {name: values[0] for name, values in self.gather(self.rows[i : i + 1] if i >= 0 else self.rows[[i]]).items()}

    def gather(self, rows: np.ndarray) -> dict:
        """The batch of these rows of the store."""
        following = chunk_rows(rows, self.last, self.chunk)
        infos = [self.store.episodes[episode] for episode in self.episode[rows]]
        batch = {name: np.asarray(values[rows]) for name, values in self.prepared.items()}
        wrong = np.flatnonzero(self.corrupted[rows])
        for name, values in self.wrong.items():
            batch[name][wrong] = values[rows[wrong]]
        batch |= {
            "state": self.state[rows], "action": self.action[following],
            "action.valid": rows[:, None] + np.arange(self.chunk) == following,
            "instruction": [info.task for info in infos], "task_id": [info.task_id for info in infos],
            "episode": self.episode[rows], "frame": rows - np.array([info.start for info in infos]), "row": rows,
        }  # fmt: skip
        return batch | ({"gaze.box": self.box[rows], "gaze.valid": self.valid[rows]} if self.gaze else {})

    def _order(self, epoch: int) -> np.ndarray:
        """The rows in this epoch's order."""
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e == epoch - 1}  # a batch spans at most a few epochs
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
        return self._orders[epoch]


# --- what a model makes of a frame, once ---------------------------------------------------------------------------------------------


def _key(prepare: Callable, key: str | dict[str, str] | None) -> str | dict[str, str]:
    """What names the results of `prepare`."""
    key = key or getattr(prepare, "key", None) or getattr(getattr(prepare, "__self__", None), "key", None)
    if not key:
        raise ValueError("prepare needs a key (a string naming what it depends on): pass key=, or give it an attribute `key`")
    return key


def prepared(
    store: Store, prepare: Callable, key: str | dict[str, str] | None = None, cache: Path | str | None = None, workers: int = 2,
    log: Callable = print, boxes: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The arrays `prepare` gives for every frame of the store, (N, ...) memory-mapped; made once, then found again. Zero where the store
    says (`info.drawn`) that a frame carries an earlier one's picture.

    `boxes` (N, 4) stand in for the store's gaze boxes; then only those arrays are kept that depend on the box.

    They lie in `<cache>/<hash of store and key>/`, written aside and renamed. Arrays of an earlier version of the same store are stale:
    they are said to be so and deleted. Two processes that want the same arrays build them once.

    A `key` of several kinds, {kind: key}: `prepare(step, only=kind)` gives the arrays of one kind, which lie in a folder of their own, so
    that models which agree in one kind share it.
    """
    key = _key(prepare, key)
    if isinstance(key, dict):
        return {name: array for kind, one in key.items()
                for name, array in prepared(store, partial(prepare, only=kind), one, cache, workers, log, boxes).items()}  # fmt: skip
    cache = Path(cache) if cache else machine.prepared(store.folder)
    folder = cache / hashlib.sha256(f"{store.hash}\n{key}".encode()).hexdigest()[:16]
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # freed by the kernel when this process ends, however it ends
            _drop_stale(store, cache, log)
            if not folder.is_dir():
                _build(store, prepare, key, folder, workers, boxes, log)
    return {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def _drop_stale(store: Store, cache: Path, log: Callable) -> None:
    for about in cache.glob("*/about.json"):
        made = json.loads(about.read_text())
        if made["store"] == str(store.folder.resolve()) and made["hash"] != store.hash:
            log(f"{about.parent} was prepared from an earlier version of {store.folder}: deleted")
            shutil.rmtree(about.parent)


class _OtherShape(ValueError):
    """`prepare` gave an array of another shape than for the first frame."""


def _build(store: Store, prepare: Callable, key: str, folder: Path, workers: int, boxes: np.ndarray | None, log: Callable) -> None:
    """Written to `<folder>.part` and renamed. Episodes that a run has finished before it was killed, or stopped by clock.OutOfTime, are
    kept; `about.json` stands there from the start, so that a stale part is known as one."""
    clock.check()
    part, columns = folder.with_name(folder.name + ".part"), [n for n in store.columns if n.startswith(("observation.", "gaze."))]
    step = next(_steps(store, 0, columns))
    first = prepare(step)
    if boxes is not None:
        one, two = (prepare({**step, "gaze.box": np.float32(box)}) for box in ((0, 0, 1, 1), (0, 0, 0.3, 0.3)))
        first = {name: value for name, value in first.items() if not np.array_equal(one[name], two[name])}
        if not first:  # nothing of this kind is made of a box
            return
    drawn = np.asarray(store.column("info.drawn"), bool) if "info.drawn" in store.columns else np.ones(store.frames, bool)
    done = {int(i) for i in (part / DONE).read_text().split()} if (part / DONE).is_file() else set()
    left = (one for i, one in enumerate(store.episodes) if i not in done)
    _room(part.parent, first, int(sum(drawn[one.start : one.start + one.length].sum() for one in left)), log)
    part.mkdir(exist_ok=True)
    write(part / "about.json", {"store": str(store.folder.resolve()), "hash": store.hash, "key": key, "frames": store.frames})
    arrays = {name: np.lib.format.open_memmap(part / f"{name}.npy", "r+" if done else "w+", np.asarray(value).dtype,
                                              (store.frames, *np.shape(value))) for name, value in first.items()}  # fmt: skip

    def one(i: int) -> int:
        steps = ((row, step if boxes is None else {**step, "gaze.box": boxes[row]})
                 for row, step in enumerate(_steps(store, i, columns), store.episodes[i].start) if drawn[row])  # fmt: skip
        while some := list(islice(steps, TOGETHER)):
            clock.check()
            for (row, _), found in zip(some, _many(prepare, [step for _, step in some]), strict=True):
                for name, array in arrays.items():
                    if np.shape(found[name]) != array.shape[1:]:
                        raise _OtherShape(f"prepare gave `{name}` {np.shape(found[name])} for row {row}, {array.shape[1:]} for the first")
                    array[row] = found[name]
        return i

    before = sum(store.episodes[i].length for i in done)
    progress = clock.Progress("prepared pictures", store.frames, "frames", log, before=before)
    try:
        with ThreadPoolExecutor(workers) as pool:  # decoding and resizing free the interpreter lock
            left = iter([i for i in range(len(store)) if i not in done])
            while some := list(islice(left, KEPT)):
                finished = list(pool.map(one, some))
                for array in arrays.values():
                    array.flush()
                with open(part / DONE, "a") as file:
                    file.write("".join(f"{i}\n" for i in finished))
                before += sum(store.episodes[i].length for i in finished)
                progress(before)
        os.rename(part, folder)
        (folder / DONE).unlink(missing_ok=True)
    except _OtherShape:  # the arrays are of no use; of what else may be wrong (a torn store) they know nothing
        shutil.rmtree(part, ignore_errors=True)
        raise


def _room(place: Path, first: dict[str, np.ndarray], frames: int, log: Callable) -> None:
    """Says how much will be written where it is much; an error where it does not fit with as much again, at most SPARE, left free."""
    needed, free = frames * sum(np.asarray(value).nbytes for value in first.values()), shutil.disk_usage(place).free
    if needed > 2**30:
        log(f"preparing {frames:,} pictures once: {needed / 2**30:.1f} GiB in {place}")
    if (wanted := needed + min(needed, SPARE)) > free:
        raise UserError(f"{place} is too small for the prepared pictures", f"{wanted / 2**30:.1f} GiB free", f"{free / 2**30:.1f} GiB",
                        f"use fewer episodes, draw_every, or a store on a larger disk; what lies in {place} already is made again when "
                        "it is needed, and may be deleted")


def _many(prepare: Callable, steps: list[dict]) -> list[dict]:
    """`prepare` of each step; at once where the object that it belongs to has a `prepare_many`."""
    whole, kind = (prepare.func, prepare.keywords) if isinstance(prepare, partial) else (prepare, {})
    many = getattr(getattr(whole, "__self__", None), "prepare_many", None) if getattr(whole, "__name__", "") == "prepare" else None
    return many(steps, **kind) if many else [prepare(step) for step in steps]


def _steps(store: Store, i: int, columns: list[str]):
    """The steps of episode `i`, one dict each."""
    episode = store.read(i, columns)
    for t in range(store.episodes[i].length):
        yield {"task": episode.task} | {name: values[t] for name, values in episode.columns.items()}
