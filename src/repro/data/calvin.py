"""CALVIN in: read the official layout (real downloads, the play table's, calvin_sim) and write a store.

    python -m repro.data.calvin import downloads/task_D_D store/training --split training
    python -m repro.data.calvin extract --ann_path .../auto_lang_ann.npy --npz_src_dir .../training --root_folder extracted
    python -m repro.data.calvin crop --root_folder extracted --npz_src_dir .../training --detector colour
    python -m repro.data.calvin json --root_folder extracted --output calvin_train.json

Layout (mees/calvin, README of the data set): `episode_XXXXXXX.npz` one frame at 30 Hz, `ep_start_end_ids.npy` inclusive segments,
`lang_annotations/auto_lang_ann.npy` sentences with inclusive frame ranges that may overlap, `scene_info.npy` frame range of each scene.
The three blocks in `scene_obs` are in the scene's own order; everything that leaves this module has them as red, blue, pink.
Scripted play may have pictures of every few frames only (about.json: draw_every). In a store the frames between repeat the picture
before, and its boxes; the column `info.drawn` says which are new.
"""

import hashlib
import json
import multiprocessing
import re
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import yaml

from repro import clock
from repro.data import npy
from repro.data.boxes import box_index
from repro.data.episodes import Column, Episode, Store, encode_pictures
from repro.data.resumable import ResumableWriter
from repro.data.stored import Stored, is_store
from repro.machine import UserError
from repro.sims.tabletop.scenes import scene as play_table

FPS = 30
BLOCKS = ("red", "blue", "pink")  # canonical order
BLOCK_ORDER = {  # the order in scene_obs, from the scene configurations of calvin_env
    "A": ("pink", "blue", "red"),
    "B": ("red", "blue", "pink"),
    "C": ("blue", "red", "pink"),
    "D": ("red", "blue", "pink"),
}
NUMBERS = {"rel_actions": (7,), "robot_obs": (15,), "scene_obs": (24,)}
PICTURES = ("rgb_static", "rgb_gripper")
MEMBERS = (*NUMBERS, *PICTURES)  # depth, tactile and absolute actions are never decompressed
DAMAGED_LIMIT = 0.01  # more than this share of damaged frames stops a run
PLAYED = ("scripted", "variation", "noise", "actions", "draw_every")  # what the play table's about.json says of its demonstrations
ACTION_UNITS = {
    "metres_per_unit": 0.02, "radians_per_unit": 0.05, "control_hz": FPS,
    "gripper": "-1 close, +1 open", "source_gripper": "-1 close, +1 open",
}  # fmt: skip


@dataclass(frozen=True)
class Annotation:
    """One sentence over the frames start..end, both inclusive. `scene` is "A".."D"; targets and goal_items come from boxes.json."""

    index: int
    start: int
    end: int
    task_id: str
    instruction: str
    scene: str
    targets: tuple[str, ...] = ()
    goal_items: tuple[str, ...] = ()


class DamagedFrame(Exception):
    """One frame that cannot be read; the run goes on without it."""


@dataclass
class Damage:
    """Damaged frames by file name, of `total` frames; stops the run above DAMAGED_LIMIT."""

    total: int
    frames: dict[str, str] = field(default_factory=dict)

    def add(self, found: dict[str, str], folder: Path) -> None:
        self.frames |= found
        if len(self.frames) > DAMAGED_LIMIT * self.total:
            shown = "; ".join(f"{name}: {why}" for name, why in list(self.frames.items())[:5])
            raise UserError(
                f"{folder}: too many damaged frames, nothing was written.",
                expected=f"at most {DAMAGED_LIMIT:.0%} of {self.total} frames",
                found=f"{len(self.frames)} so far ({shown})",
                next_step="download or copy these files again",
            )


# --- one frame ----------------------------------------------------------------------------------------------------------------------


def read_frame(path: Path, members: Iterable[str] = MEMBERS) -> dict[str, np.ndarray]:
    """The named members of one frame, others not decompressed. Raises DamagedFrame when the file is missing, truncated or garbled."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DamagedFrame("not an npz file")
            return {name: file[name] for name in members}
    except FileNotFoundError as error:
        raise DamagedFrame("missing") from error
    except KeyError as error:
        raise DamagedFrame(f"no member {error}") from error
    except (
        OSError,
        ValueError,
        EOFError,
        IndexError,
        TypeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise DamagedFrame(f"unreadable ({type(error).__name__}: {error})") from error


def check_frame(frame: dict[str, np.ndarray], shapes: dict[str, tuple], path: Path) -> None:
    """UserError when a member has another shape or type than `shapes` says; DamagedFrame when its numbers are no CALVIN numbers."""
    for name, values in frame.items():
        kind = "u" if name in PICTURES else "f"
        if values.shape != tuple(shapes[name]) or values.dtype.kind != kind or (kind == "u" and values.dtype != np.uint8):
            raise UserError(
                f"{path}: `{name}` has another shape or type than the data set's first frame.",
                expected=f"{'uint8' if kind == 'u' else 'float'} {tuple(shapes[name])}",
                found=f"{values.dtype} {values.shape}",
                next_step="frames of different recordings do not mix: put them in folders of their own",
            )
        if kind == "f" and not np.isfinite(values).all():
            raise DamagedFrame(f"`{name}` is not finite")
    if "rel_actions" in frame and np.abs(frame["rel_actions"]).max() > 1 + 1e-5:
        raise DamagedFrame("`rel_actions` outside [-1, 1]")


def block_order(scene: str) -> tuple[str, ...]:
    """Of scene_obs, in CALVIN's scenes or in a play table's own one ("R~7", see sims.tabletop.scenes.scene); KeyError for no scene."""
    if scene in BLOCK_ORDER:
        return BLOCK_ORDER[scene]
    try:
        return tuple(block.removesuffix("_block") for block in play_table(scene).block_order)
    except UserError as error:
        raise KeyError(scene) from error


def canonical(scene_obs: np.ndarray, scene: str) -> np.ndarray:
    """scene_obs (..., 24) with its blocks in the order red, blue, pink."""
    order = [block_order(scene).index(colour) for colour in BLOCKS]
    blocks = scene_obs[..., 6:].reshape(*scene_obs.shape[:-1], 3, 6)[..., order, :]
    return np.concatenate([scene_obs[..., :6], blocks.reshape(*scene_obs.shape[:-1], 18)], axis=-1)


# --- the layout ---------------------------------------------------------------------------------------------------------------------


class Calvin:
    """A CALVIN folder: `splits` name -> path; `split(name)` -> Split. A split folder itself is taken too."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{self.root} is not a folder.", expected="a CALVIN folder with training/ and validation/")
        named = {name: self.root / name for name in ("training", "validation") if (self.root / name).is_dir()}
        alone = {self.root.name: self.root} if (self.root / "ep_start_end_ids.npy").is_file() else {}
        self.splits = named or alone
        if not self.splits:
            inside = sorted(path.name for path in self.root.iterdir())
            raise UserError(
                f"{self.root} is {'empty' if not inside else 'not a CALVIN folder'}.",
                expected="training/ or validation/ with ep_start_end_ids.npy, episode_XXXXXXX.npz and lang_annotations/",
                found=", ".join(inside[:8]) or "nothing",
                next_step="give the folder that holds training/ (for example task_D_D or calvin_debug_dataset)",
            )

    def split(self, name: str, scene: str | None = None) -> "Split | Stored":
        """One split, its index and annotations checked; or a store in its place. `scene` "A".."D" is for data whose scene no file tells."""
        if name not in self.splits:
            raise UserError(f"{self.root} has no split {name!r}.", expected="one of the splits it has", found=sorted(self.splits))
        return Stored(self.splits[name]) if is_store(self.splits[name]) else Split(self.splits[name], name, scene)


class Split:
    """One checked split. `segments` (n, 2) int64 inclusive; `annotations`; `scene_known_by` says where the scenes come from."""

    def __init__(self, folder: Path | str, name: str, scene: str | None = None, annotations: Path | str | None = None):
        """`annotations`: another auto_lang_ann.npy than the split's own. Raises UserError for a wrong structure."""
        self.folder, self.name, self.scene = Path(folder), name, scene
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder.", expected="a CALVIN split with ep_start_end_ids.npy and frames")
        if scene is not None and scene not in BLOCK_ORDER:
            raise UserError(f"There is no scene {scene!r}.", expected=sorted(BLOCK_ORDER))
        self.segments = read_segments(self.folder)
        self.boxes = box_index(self.folder.parent, self.folder.name)
        self.digits = _digits(self.folder)
        self.annotated_in = Path(annotations) if annotations else find_annotations(self.folder)
        self.annotations = self._annotations(self.annotated_in)
        self.frames = count_frames(self.annotations)

    def frame_path(self, frame: int) -> Path:
        return self.folder / f"episode_{frame:0{self.digits}d}.npz"

    def describe(self) -> str:
        """What the split holds, one fact a line."""
        tasks, scenes = {note.task_id for note in self.annotations}, sorted({note.scene for note in self.annotations})
        lengths = [note.end - note.start + 1 for note in self.annotations]
        lines = (
            f"{self.name}: {len(self.annotations)} annotated episodes of {len(tasks)} tasks, {self.frames} frames",
            f"recordings: {len(self.segments)}, {int((self.segments[:, 1] - self.segments[:, 0] + 1).sum())} frames, ids "
            f"{self.segments.min()}..{self.segments.max()}",
            f"episode length: {min(lengths)} to {max(lengths)} frames at {FPS} Hz",
            f"scene {', '.join(scenes)} (known from: {self.scene_known_by}); boxes: {'boxes.json' if self.boxes else 'none'}",
            "pictures: " + ", ".join(f"{name} {'x'.join(map(str, self.shapes[name]))}" for name in PICTURES),
        )
        return "\n".join(lines)

    def fingerprint(self) -> str:
        """Changes when the index, the annotations, the boxes or any of 16 frames spread over the split do; cheap on any size."""
        digest = hashlib.sha256(repr((self.name, self.scene, self.segments.tolist(), self.annotations)).encode())
        notes = self.annotations[:: max(1, len(self.annotations) // 16)]
        for path in [self.folder / "boxes.json", *(self.frame_path((note.start + note.end) // 2) for note in notes)]:
            if path.is_file():
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @cached_property
    def shapes(self) -> dict[str, tuple]:
        """Shape of every member, from the first readable annotated frame. UserError when that frame is no CALVIN frame."""
        first = [frame for note in self.annotations for frame in (note.start, note.end)][:100]
        for path in map(self.frame_path, first):
            try:
                frame = read_frame(path)
            except DamagedFrame as error:
                why = f"{path.name}: {error}"
                continue
            shapes = NUMBERS | {name: frame[name].shape for name in PICTURES}
            for name in PICTURES:
                if frame[name].ndim != 3 or frame[name].shape[2] != 3:
                    raise UserError(
                        f"{path}: `{name}` is no picture.", expected="uint8 (H, W, 3)", found=f"{frame[name].dtype} {frame[name].shape}"
                    )
            try:
                check_frame(frame, shapes, path)
            except DamagedFrame:
                pass  # its shapes are right; the reader will report it
            return shapes
        raise UserError(
            f"{self.folder}: no annotated frame can be read.",
            expected=f"episode_*.npz with {', '.join(MEMBERS)}",
            found=why,
            next_step="check that the frames lie beside ep_start_end_ids.npy",
        )

    @cached_property
    def statistics(self) -> dict | None:
        """statistics.yaml as {key: {mean, std}}, the numbers ReconVLA normalises proprioception with; None where there is none."""
        path = self.folder / "statistics.yaml"
        if not path.is_file():
            return None
        try:
            found = yaml.safe_load(path.read_text()) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path} cannot be read.", expected="plain YAML", found=str(error).splitlines()[0]) from error
        values = {key: value[0] for key, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)}
        return {key: {name: value[name] for name in ("mean", "std")} for key, value in values.items() if {"mean", "std"} <= value.keys()}

    def _annotations(self, path: Path) -> list[Annotation]:
        table = read_annotations(path)
        scene_of, self.scene_known_by = self._scenes()
        told = {(entry["start"], entry["end"]): entry for entry in self.boxes.episodes} if self.boxes else {}
        found = []
        for index, (instruction, task_id, (start, end)) in enumerate(table):
            inside = (self.segments[:, 0] <= start) & (end <= self.segments[:, 1])
            if start > end or not inside.any():
                raise UserError(
                    f"{path}: annotation {index} ({task_id}) lies outside the recorded segments.",
                    expected=f"frames within one segment of {self.folder / 'ep_start_end_ids.npy'}",
                    found=f"{start}..{end}",
                    next_step="the two files belong to different versions of the data set: get both from one download",
                )
            entry = told.get((start, end), {})
            items = [tuple(entry.get(key, ())) for key in ("targets", "goal_items")]
            found.append(Annotation(index, start, end, task_id, instruction, scene_of(start, end), *items))
        return found

    def _scenes(self) -> tuple[Callable[[int, int], str], str]:
        """(frames -> scene letter, where that is known from)."""
        path = self.folder / "scene_info.npy"
        if self.scene is not None:
            return lambda start, end: self.scene, "the caller"
        if path.is_file():
            ranges = {_letter(name, path): span for name, span in npy.load_dict(path).items()}

            def scene_of(start: int, end: int) -> str:
                for letter, (first, last) in ranges.items():
                    if first <= start and end <= last:
                        return letter
                raise UserError(f"{path} names no scene for the frames {start}..{end}.", expected="a range that holds them", found=ranges)

            return scene_of, "scene_info.npy"
        if self.boxes and all("scene" in entry for entry in self.boxes.episodes):
            told = {(entry["start"], entry["end"]): _letter(entry["scene"], self.boxes.path) for entry in self.boxes.episodes}

            def scene_of(start: int, end: int) -> str:
                if (start, end) not in told:
                    raise UserError(
                        f"{self.boxes.path} names no scene for the frames {start}..{end}.", next_step="pass scene='D' (or A, B, C)"
                    )
                return told[start, end]

            return scene_of, "boxes.json"
        if self.name == "validation":
            return lambda start, end: "D", "CALVIN validates in scene D"
        raise UserError(
            f"{path} is missing, so the order of the blocks in scene_obs is unknown.",
            expected="{'calvin_scene_D': [first, last]}",
            next_step="pass scene='D' (or A, B, C) if the whole split is of one scene",
        )


def _letter(name: str, path: Path) -> str:
    letter = str(name).removeprefix("calvin_scene_")
    try:
        block_order(letter)
    except KeyError as error:
        raise UserError(f"{path} names an unknown scene.", expected="calvin_scene_A .. calvin_scene_D", found=name) from error
    return letter


def _digits(folder: Path) -> int:
    """How many digits a frame's name has (7 in CALVIN); looks at the first frame it meets, not at all of them."""
    for path in folder.iterdir():
        if found := re.fullmatch(r"episode_(\d+)\.npz", path.name):
            return len(found[1])
    raise UserError(f"{folder} holds no frames.", expected="episode_XXXXXXX.npz", found="none", next_step="give the folder with the frames")


def read_segments(folder: Path) -> np.ndarray:
    """ep_start_end_ids.npy: (n, 2) int64, first and last frame of each recording, both inclusive."""
    path = folder / "ep_start_end_ids.npy"
    if not path.is_file():
        inside = sorted(entry.name for entry, _ in zip(folder.iterdir(), range(5), strict=False))
        raise UserError(
            f"{path} is missing: {folder} is not a CALVIN split.",
            expected="ep_start_end_ids.npy, the index of the recordings",
            found=", ".join(inside) or "an empty folder",
            next_step="give a folder that holds it, or download the data set again",
        )
    segments = npy.load(path)
    if segments.ndim != 2 or segments.shape[1:] != (2,) or segments.dtype.kind not in "iu" or len(segments) == 0:
        raise UserError(f"{path} is no index.", expected="integers (n, 2), n >= 1", found=f"{segments.dtype} {segments.shape}")
    if (segments[:, 0] > segments[:, 1]).any() or (segments < 0).any():
        raise UserError(f"{path} is no index.", expected="0 <= start <= end", found=segments[segments[:, 0] > segments[:, 1]][:3].tolist())
    return segments.astype(np.int64)


def find_annotations(folder: Path) -> Path:
    """lang_annotations/auto_lang_ann.npy, or the same file of a lang_<model> folder: they differ in the embeddings only."""
    first = folder / "lang_annotations" / "auto_lang_ann.npy"
    others = sorted(folder.glob("lang_*/auto_lang_ann.npy"))
    if not first.is_file() and not others:
        raise UserError(
            f"{first} is missing.", expected="the language annotations", next_step="download the language annotations of the data set"
        )
    return first if first.is_file() else others[0]


def read_annotations(path: Path) -> list[tuple[str, str, tuple[int, int]]]:
    """[(sentence, task, (start, end))], both frames inclusive."""
    values = npy.load_dict(path)
    try:
        sentences, tasks, spans = values["language"]["ann"], values["language"]["task"], values["info"]["indx"]
        found = [(s, t, (int(a), int(b))) for s, t, (a, b) in zip(list(sentences), list(tasks), list(spans), strict=True)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{path} has another structure.",
            expected="{'language': {'ann', 'task', ...}, 'info': {'indx': [(start, end)]}}, lists of one length",
            found=f"{type(error).__name__}: {error}",
        ) from error
    if not found or not all(isinstance(s, str) and s.strip() and isinstance(t, str) for s, t, _ in found):
        raise UserError(
            f"{path} holds no annotations.", expected="at least one, each with a sentence and a task", found=f"{len(found)} entries"
        )
    return [(str(s), str(t), span) for s, t, span in found]


def count_frames(annotations: Iterable[Annotation]) -> int:
    """Distinct annotated frames; overlapping annotations share theirs."""
    count, last = 0, -1
    for note in sorted(annotations, key=lambda note: note.start):
        count += max(0, note.end - max(note.start - 1, last))
        last = max(last, note.end)
    return count


# --- import -------------------------------------------------------------------------------------------------------------------------


def read_frames(split: tuple, start: int, end: int) -> tuple[dict[str, np.ndarray], list[int], dict[str, str]]:
    """(member -> (T, ...), the T frame numbers, damaged frames name -> why) of start..end. `split`: (folder, digits, member -> shape)."""
    folder, digits, shapes = split
    frames, ids, damaged = [], [], {}
    for number in range(start, end + 1):
        path = folder / f"episode_{number:0{digits}d}.npz"
        try:
            frame = read_frame(path, shapes)
            check_frame(frame, shapes, path)
        except DamagedFrame as error:
            damaged[path.name] = str(error)
            continue
        frames.append(frame)
        ids.append(number)
    return {name: np.stack([frame[name] for frame in frames]) for name in shapes if frames}, ids, damaged


def read_episode(split: tuple, start: int, end: int, scene: str, every: int = 1) -> tuple[dict, dict[str, str]]:
    """In a worker: (columns with encoded pictures, {} when no frame is left; damaged frames name -> why). every: frames to a picture."""
    stack, ids, damaged = read_frames(split, start, end)
    drawn = (np.array(ids, np.int64) - start) % every == 0
    if not drawn.any():
        return {}, damaged
    first = int(drawn.argmax())  # not 0 where the first picture is damaged
    stack, ids, drawn = {name: values[first:] for name, values in stack.items()}, ids[first:], drawn[first:]
    columns = {
        "observation.images.static": _encoded(stack["rgb_static"], drawn),
        "observation.images.wrist": _encoded(stack["rgb_gripper"], drawn),
        "observation.state": stack["robot_obs"].astype(np.float32),
        "observation.environment_state": canonical(stack["scene_obs"], scene).astype(np.float32),
        "action": np.clip(stack["rel_actions"], -1, 1).astype(np.float32),
        "info.frame": np.array(ids, np.int64),
    }
    return columns | ({"info.drawn": drawn} if every > 1 else {}), damaged


def _encoded(frames: np.ndarray, drawn: np.ndarray) -> Column:
    """The column of pictures (T, H, W, 3), each that is not `drawn` (T,) replaced by the one before."""
    column = encode_pictures(frames[drawn])
    return column if drawn.all() else replace(column, array=column.array.take(pa.array(np.cumsum(drawn) - 1)))


def _pictured(columns: dict) -> np.ndarray:
    """(T,) the frame whose picture each row of an episode has."""
    frames, drawn = columns["info.frame"], columns.get("info.drawn", True)
    return np.maximum.accumulate(np.where(drawn, frames, 0))


def in_order(function: Callable, tasks: Iterable[tuple], workers: int) -> Iterator:
    """function(*task) for each task, in order, by `workers` processes with at most three tasks each under way (1: in this process)."""
    if workers <= 1:
        for task in tasks:
            yield function(*task)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "A worker process died.",
            found=str(error),
            next_step="memory is the usual cause, or a script without `if __name__ == '__main__':`; workers=1 needs neither",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _about(root: Path | str) -> dict:
    """about.json, where the play table says what it is; a CALVIN download has none."""
    about = Path(root) / "about.json"
    return json.loads(about.read_text()) if about.is_file() else {"name": Path(root).name, "simulator": "calvin_env"}


def frames_a_picture(root: Path | str, split: str) -> int:
    """How many frames repeat one picture: 1 but for some scripted play."""
    return _about(root).get("draw_every", 1) if split == "training" else 1


def store_meta(root: Path | str, source: Split) -> dict:
    """What a store of `source`, a split of `root`, says of itself."""
    about = _about(root)
    return {
        "source": "CALVIN layout", "name": about["name"], "simulator": about["simulator"], "split": source.name,
        "robot_type": "franka", "scene_known_by": source.scene_known_by, "blocks": list(BLOCKS),
        "action": ACTION_UNITS, "source_statistics": source.statistics, "source_fingerprint": source.fingerprint(),
        "played": {name: about[name] for name in PLAYED if name in about},
    }  # fmt: skip


def as_episode(source: Split, note: Annotation, columns: dict) -> Episode:
    """The episode of one annotation, with the boxes that the split has."""
    if source.boxes:
        columns = {**columns, "info.boxes": source.boxes.texts(_pictured(columns))}
    info = {"task_id": note.task_id, "scene": note.scene, "annotation": note.index, "source_start": note.start, "source_end": note.end}
    info |= {"targets": list(note.targets), "goal_items": list(note.goal_items)} if source.boxes else {}
    return Episode(note.instruction, columns, info)


def import_calvin(root: Path | str, split: str, out: Path | str, workers: int = 2, scene: str | None = None, replace: bool = False,
                  log: Callable[[str], None] = print) -> dict:  # fmt: skip
    """Write the annotated episodes of one split as a store at `out`. Streams: memory does not grow with the data.

    A damaged frame is left out of its episode and reported (the step before it is then followed by the step after it; `info.frame`
    keeps the numbers, so that the gap can be seen). Killed, or stopped by clock.OutOfTime, it goes on at the next call.
    Returns the report {episodes, frames, damaged: {name: why}, dropped: [annotation], scene_known_by, hash, out}.
    Raises UserError for a wrong structure or more than 1 % damaged frames; then nothing is left at `out`.
    """
    clock.check()
    source = Calvin(root).split(split, scene)
    notes, where, every = source.annotations, (source.folder, source.digits, source.shapes), frames_a_picture(root, split)
    meta = store_meta(root, source)
    with ResumableWriter(out, FPS, meta, {**meta, "scene": scene, "every": every}, replace, drop=UserError) as writer:
        done, dropped = writer.note.get("tried", 0), writer.note.get("dropped", [])
        damage = Damage(source.frames, writer.note.get("damaged", {}))
        if done:
            log(f"{split}: {done:,} of {len(notes):,} episodes are here already")
        progress = clock.Progress(f"import {split}", len(notes), "episodes", log, before=done)
        tasks = ((where, note.start, note.end, note.scene, every) for note in notes[done:])
        found = zip(notes[done:], in_order(read_episode, tasks, workers), strict=True)
        for tried, (note, (columns, damaged)) in enumerate(found, done + 1):
            damage.add(damaged, source.folder)
            if columns:
                writer.add(as_episode(source, note, columns))
            else:
                dropped.append(note.index)
            writer.note = {"tried": tried, "damaged": damage.frames, "dropped": dropped}
            progress(tried)
            clock.check()
        writer.meta["damaged"], writer.meta["dropped_annotations"] = damage.frames, dropped
    return {
        "out": str(out), "episodes": writer.episodes, "frames": writer.frames, "damaged": damage.frames, "dropped": dropped,
        "scene_known_by": source.scene_known_by, "hash": writer.hash.hexdigest(),
    }  # fmt: skip


def ensure_store(root: Path | str, split: str, out: Path | str, workers: int = 2, scene: str | None = None, log: Callable = print) -> Store:
    """The store of a split: the one at `out` where it was made from the same data, gaze boxes and all, else a fresh import."""
    source = Calvin(root).split(split, scene)
    if is_store(out):
        store = Store(out)
        if store.meta.get("source_fingerprint") == source.fingerprint():
            return store
        log(f"{out} was made from other data than {root}/{split} holds now: importing again")
    if isinstance(source, Stored):
        return source.copy(out)
    report = import_calvin(root, split, out, workers, scene, True, log)
    for name, why in report["damaged"].items():
        log(f"left out {name}: {why}")
    return Store(out)


# --- commands -----------------------------------------------------------------------------------------------------------------------


@click.group("calvin", help="Read CALVIN data: import it into a store, or make the ReconVLA guide's folders and JSON.")
def calvin() -> None:
    pass


def _report(report: dict) -> None:
    for name, why in report.pop("damaged").items():
        click.echo(f"  left out {name}: {why}")
    click.echo(", ".join(f"{key} {value}" for key, value in report.items()))


@calvin.command("import", help="Write the annotated episodes of ROOT as a store at OUT.")
@click.argument("root", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--split", default="training", show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--scene", help="A, B, C or D, for data whose scene no file tells")
@click.option("--replace", is_flag=True, help="replace a store that is already there")
def import_command(root: Path, out: Path, split: str, workers: int, scene: str | None, replace: bool) -> None:
    _report(import_calvin(root, split, out, workers, scene, replace, click.echo))


@calvin.command("extract", help="Guide, step 1: ROOT/{i}_{task}/ with lang_ann/lang_ann.yaml and img/frame_XXXXXXX.png.")
@click.option("--ann_path", required=True, type=click.Path(path_type=Path), help="auto_lang_ann.npy")
@click.option("--npz_src_dir", required=True, type=click.Path(path_type=Path), help="the folder of episode_XXXXXXX.npz")
@click.option("--root_folder", required=True, type=click.Path(path_type=Path), help="where to write; must not exist")
@click.option("--scene", help="A, B, C or D, for data whose scene no file tells")
@click.option("--workers", default=2, show_default=True)
def extract_command(ann_path: Path, npz_src_dir: Path, root_folder: Path, scene: str | None, workers: int) -> None:
    from repro.data import guide

    _report(guide.extract(ann_path, npz_src_dir, root_folder, scene, workers))


@calvin.command("crop", help="Guide, step 2: crop/frame_XXXXXXX.png beside every picture, and crop_info.jsonl.")
@click.option("--root_folder", required=True, type=click.Path(path_type=Path))
@click.option("--npz_src_dir", type=click.Path(path_type=Path), help="where boxes.json lies; needed by --detector truth")
@click.option("--detector", type=click.Choice(["truth", "colour", "transformers", "groundingdino-py", "none"]), default="colour",
              show_default=True)
@click.option("--weights", help="GroundingDINO's weights, for transformers and groundingdino-py: hub id, folder or Kaggle input")
def crop_command(root_folder: Path, npz_src_dir: Path | None, detector: str, weights: str | None) -> None:
    from repro.data import guide

    click.echo(", ".join(f"{source} {count}" for source, count in guide.crop(root_folder, detector, npz_src_dir, weights).items()))


@calvin.command("json", help="Guide, step 3: records {id, image, crop, instruction, actions}.")
@click.option("--root_folder", required=True, type=click.Path(path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--future_k", default=5, show_default=True, help="actions a record holds; the last is repeated at an episode's end")
def json_command(root_folder: Path, output: Path, future_k: int) -> None:
    from repro.data import guide

    click.echo(f"{guide.write_json(root_folder, output, future_k)} records in {output}")


def main() -> None:
    """Run the commands; a UserError is a message, not a traceback."""
    try:
        calvin(standalone_mode=False)
    except clock.OutOfTime as stopped:
        click.echo(f"{stopped}; what is done is kept: the same command goes on from there")
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
