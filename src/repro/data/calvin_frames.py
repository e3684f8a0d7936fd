"""One frame of CALVIN, and a run of them: read, checked, its blocks in one order; damaged ones are counted.

    frame = read_frame(folder / "episode_0000042.npz", ("rgb_static", "scene_obs"))
    check_frame(frame, shapes, path)                # shapes: member -> shape, as Split.shapes gives them
    scene_obs = canonical(frame["scene_obs"], "D")

Layout (mees/calvin, README of the data set): `episode_XXXXXXX.npz` one frame at 30 Hz. The three blocks in `scene_obs` are in the scene's
own order; everything that leaves these modules has them as red, blue, pink.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

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
