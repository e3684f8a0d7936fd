"""CALVIN's official layout (real downloads, the play table's, calvin_sim): what a folder is, its splits, recordings and annotations.

    split = Calvin("downloads/task_D_D").split("training")
    print(split.describe())
    split.annotations[0]                            # Annotation(index=0, start=..., end=..., task_id="open_drawer", ...)

Layout (mees/calvin, README of the data set): `ep_start_end_ids.npy` inclusive segments, `lang_annotations/auto_lang_ann.npy` sentences with
inclusive frame ranges that may overlap, `scene_info.npy` frame range of each scene; the frames themselves are calvin_frames'.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from repro.data import npy
from repro.data.boxes import box_index
from repro.data.calvin_frames import BLOCK_ORDER, FPS, MEMBERS, NUMBERS, PICTURES, DamagedFrame, block_order, check_frame, read_frame
from repro.data.stored import Stored, is_store
from repro.machine import UserError, nearest


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


class Calvin:
    """A CALVIN folder: `splits` name -> path; `split(name)` -> Split. A split folder itself is taken too."""

    def __init__(self, root: Path | str):
        self.root = Path(root)
        if not self.root.is_dir():
            raise UserError(f"{self.root} is not a folder.", expected="a CALVIN folder with training/ and validation/",
                            found="a file" if self.root.exists() else "nothing at this path",
                            next_step="correct the path: the folder that holds training/ (for example task_D_D)")  # fmt: skip
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
            raise UserError(f"{self.root} has no split {name!r}.", expected="one of the splits it has", found=sorted(self.splits),
                            next_step=nearest(name, self.splits, f"name one of these, or download {name}"))  # fmt: skip
        return Stored(self.splits[name]) if is_store(self.splits[name]) else Split(self.splits[name], name, scene)


class Split:
    """One checked split. `segments` (n, 2) int64 inclusive; `annotations`; `scene_known_by` says where the scenes come from."""

    def __init__(self, folder: Path | str, name: str, scene: str | None = None, annotations: Path | str | None = None):
        """`annotations`: another auto_lang_ann.npy than the split's own. Raises UserError for a wrong structure."""
        self.folder, self.name, self.scene = Path(folder), name, scene
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder.", expected="a CALVIN split with ep_start_end_ids.npy and frames",
                            found="a file" if self.folder.exists() else "nothing at this path",
                            next_step="correct the path (for example task_D_D/training)")  # fmt: skip
        if scene is not None and scene not in BLOCK_ORDER:
            raise UserError(f"There is no scene {scene!r}.", expected=sorted(BLOCK_ORDER), found=scene,
                            next_step=nearest(scene.upper(), BLOCK_ORDER, "name one, or none where scene_info.npy tells it"))  # fmt: skip
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
                    next_step="the two files belong to different splits or versions of the data set: take both of one split (training's "
                    "sentences with training's frames), from one download",
                )
            if self.boxes:
                self.boxes.need(start, end)
                if (start, end) not in told:
                    raise UserError(f"{self.boxes.path} does not tell the targets of the annotation {start}..{end} of {path}.",
                                    "an entry in its episodes for each annotation", f"{len(told)} others",
                                    "get it from where the annotations are from, or remove it")  # fmt: skip
            entry = told.get((start, end), {})
            items = [tuple(entry.get(key, ())) for key in ("targets", "goal_items")]
            found.append(Annotation(index, start, end, task_id, instruction, scene_of(start, end), *items))
        return found

    def _scenes(self) -> tuple[Callable[[int, int], str], str]:
        """(frames -> scene letter, where that is known from). UserError where the caller and a file say different ones."""
        path = self.folder / "scene_info.npy"
        if path.is_file():
            ranges = [(_letter(name, path), *span) for name, span in npy.load_dict(path).items()]
            told = lambda start, end: next((letter for letter, first, last in ranges if first <= start and end <= last), self.scene)
        elif self.boxes and all("scene" in entry for entry in self.boxes.episodes):
            path = self.boxes.path
            entries = {(entry["start"], entry["end"]): _letter(entry["scene"], path) for entry in self.boxes.episodes}
            told = lambda start, end: entries.get((start, end), self.scene)
        elif self.scene is not None:
            return lambda start, end: self.scene, "the caller"
        elif self.name == "validation":
            return lambda start, end: "D", "CALVIN validates in scene D"
        else:
            raise UserError(
                f"{path} is missing, so the order of the blocks in scene_obs is unknown.",
                expected="{'calvin_scene_D': [first, last]}",
                next_step="pass scene='D' (or A, B, C) if the whole split is of one scene",
            )

        def scene_of(start: int, end: int) -> str:
            letter = told(start, end)
            if letter is None:
                raise UserError(
                    f"{path} names no scene for the frames {start}..{end}.",
                    expected="a scene for all annotated frames",
                    found="none that holds these",
                    next_step="pass scene='D' (or A, B, C)",
                )
            if self.scene not in (None, letter):
                raise UserError(
                    f"Two scenes for the frames {start}..{end} of {self.folder}: the order of the blocks in scene_obs follows from it.",
                    expected=f"scene {letter}, as {path} says",
                    found=f"scene {self.scene}, as the caller says (--scene)",
                    next_step=f"leave the scene out, or remove {path.name} if it is wrong",
                )
            return letter

        return scene_of, path.name


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
