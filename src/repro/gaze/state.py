"""Gaze boxes of CALVIN's nine items from recorded state, through the static camera; the pictures are asked whether state and camera fit.

    check(images, scene_obs, "D")                         # refuses a wrong block order, another camera, flipped pictures
    state_boxes("D", scene_obs)["red_block"]              # float32 (4,) x0, y0, x1, y1 in [0, 1]

A box holds the whole item: what the arm, the hand or another block hides of it is not taken off. What the furniture always hides is: the
drawer's part under the table top, the button's sunk part, and blocks in the closed drawer or behind the sliding door, which have no box.
Lengths are metres in CALVIN's world frame, read from the vertices of the table meshes of calvin_env 797142c5 (scenes A ... D, joints at 0)
and, for blocks, from pybullet.getVisualShapeData (3.2.7). TinyRenderer draws half a pixel to the right of and above this projection.
"""

from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import yaml

from repro.machine import UserError
from repro.sims.tabletop.geometry import rotation
from repro.sims.tabletop.raster import Camera
from repro.sims.tabletop.render import STATIC_EYE, STATIC_FOV, STATIC_SIZE, STATIC_TARGET, STATIC_UP, static_camera

BLOCKS = ("red_block", "blue_block", "pink_block")  # the canonical order, that of `data.calvin_frames.canonical`
LEAST_SEEN = 0.1  # share of a block that must show past the furniture
FRONT = -0.18  # y of the table's front edge, from which the drawer comes out
# The cabinet's front leans back: axes to the right, up along it and out of it, from its foot on the table top.
WALL = {"axes": np.array([[1, 0, 0], [0, 0.5, 0.75**0.5], [0, -(0.75**0.5), 0.5]]), "origin": np.array([0, 0.02, 0.44])}
# By scene: lengths of the red, blue and pink block; x of the middles of items, joints at 0; x of the cabinet's inner sides.
Table = namedtuple("Table", "lengths drawer slider button switch led lightbulb cabinet")
TABLES = {
    "A": Table((0.056, 0.08, 0.04), 0.10, 0.04, -0.28, 0.30, -0.28, 0.30, (-0.36, 0.16)),
    "B": Table((0.04, 0.08, 0.056), 0.18, 0.228, 0.28, -0.32, 0.28, -0.32, (-0.18, 0.34)),
    "C": Table((0.08, 0.04, 0.056), 0.10, 0.20, -0.12, -0.32, -0.12, -0.32, (-0.18, 0.34)),
    "D": Table((0.056, 0.04, 0.08), 0.18, 0.04, -0.12, 0.30, -0.12, 0.30, (-0.36, 0.16)),
}


class Solid(NamedTuple):
    """A box from low to high (3,) along its own axes (rows), seen from its origin."""

    low: Sequence[float]
    high: Sequence[float]
    axes: np.ndarray = np.eye(3)
    origin: np.ndarray = np.zeros(3)

    def corners(self) -> np.ndarray:
        """(8, 3)"""
        return np.array(list(product(*zip(self.low, self.high, strict=True)))) @ self.axes + self.origin

    def hides(self, points: np.ndarray, eye: np.ndarray) -> np.ndarray:
        """Which of the points (N, 3) lie behind it, or in it, as the eye sees them."""
        start, way = (points - self.origin) @ self.axes.T, (eye - points) @ self.axes.T
        way = np.where(np.abs(way) < 1e-12, 1e-12, way)
        ends = np.stack([(self.low - start) / way, (self.high - start) / way])
        return np.maximum(ends.min(0).max(1), 0) < np.minimum(ends.max(0).min(1), 1) - 1e-9


def _upright(x: float, width: float, low: float, high: float, near: float, far: float) -> Solid:
    """On the cabinet's front: x of its middle, heights along the front, distances from it."""
    return Solid((x - width / 2, low, near), (x + width / 2, high, far), **WALL)


def _rings(x: float, y: float, rings: Sequence[tuple[float, float]]) -> np.ndarray:
    """Points (16 n, 3) of level circles (z, radius)."""
    turn = np.arange(16) * np.pi / 8
    return np.concatenate([np.stack([x + r * np.cos(turn), y + r * np.sin(turn), np.full(16, z)], 1) for z, r in rings])


def _furniture(table: Table, slider: float, drawer: float, button: float, switch: float) -> tuple[dict[str, np.ndarray], list[Solid]]:
    """(points (N, 3) around the visible part of each item of the table, solids that can hide a block)."""
    across = lambda half, y0, y1, z0, z1: Solid((table.drawer - half, y0 - drawer, z0), (table.drawer + half, y1, z1))
    hidden_from = lambda y: min(FRONT, y - drawer)  # what is further back lies under the table top
    pulled = [across(0.22, FRONT, hidden_from(-0.16), 0.30, 0.40), across(0.20, FRONT, hidden_from(0.06), 0.32, 0.40),
              across(0.12, FRONT - 0.08, FRONT - drawer, 0.34, 0.38)]  # panel, tray, handle  # fmt: skip
    door = _upright(table.slider - slider, 0.28, 0, 0.22, 0, 0.02)
    lever = [_upright(table.switch, width, 0.06 + switch, 0.092 + switch, 0, far) for width, far in ((0.12, 0.042), (0.10, 0.056))]
    corners = lambda solids: np.concatenate([solid.corners() for solid in solids])
    points = {
        "drawer": corners(pulled),
        "slider": corners([door, _upright(table.slider - slider, 0.04, 0.03, 0.19, 0.02, 0.08)]),  # and its handle
        "button": _rings(table.button, -0.12, [(0.46, 0.032), (0.484 - button, 0.032)]),  # the ring around it belongs to the table
        "switch": corners(lever),
        "led": Solid((table.led - 0.08, 0.14, 0.648), (table.led + 0.08, 0.18, 0.664)).corners(),
        "lightbulb": _rings(table.lightbulb, 0.16, [(0.6695 + 0.028 * np.sin(a), 0.028 * np.cos(a)) for a in np.linspace(-0.9, 1.5, 7)]),
    }
    sides = [Solid((x, FRONT - drawer, 0.32), (x + 0.02, 0.06 - drawer, 0.40)) for x in (table.drawer - 0.20, table.drawer + 0.18)]
    cabinet = [Solid((x0, 0, -0.2), (x1, 0.23, 0), **WALL) for x0, x1 in ((-0.44, table.cabinet[0]), (table.cabinet[1], 0.44))]
    return points, [Solid((-0.44, FRONT, 0.40), (0.44, 0.18, 0.44)), pulled[0], *sides, door, *cabinet]


def _block(pose: np.ndarray, length: float) -> Solid:
    half = np.array([length / 2, 0.02, 0.02])
    return Solid(-half, half, rotation(pose[3:]).T, pose[:3])


def _seen(block: Solid, furniture: list[Solid], eye: np.ndarray) -> float:
    """Share of a block's faces towards the eye that no furniture hides."""
    grid = np.array(list(product((-1, 1), *[np.linspace(-0.9, 0.9, 5)] * 2)))
    points = np.concatenate([np.roll(grid, axis, 1) for axis in range(3)])  # on the faces of a cube
    normal = np.where(np.abs(points) == 1, points, 0) @ block.axes
    points = points * block.high @ block.axes + block.origin
    points = points[np.einsum("nd,nd->n", normal, eye - points) > 0]
    return float(1 - np.any([solid.hides(points, eye) for solid in furniture], 0).mean())


def state_boxes(scene: str, scene_obs: np.ndarray, order: Sequence[str] = BLOCKS, camera: Camera | None = None) -> dict[str, np.ndarray]:
    """item -> box, float32 (4,) x0, y0, x1, y1 in [0, 1] of the static picture, cut at its border; what is outside it has none.

    scene: "A" ... "D". scene_obs: (24,) in metres and rad, its blocks in `order`: red, blue, pink as stores hold them, unless given.
    camera: CALVIN's static one, unless given. UserError for another scene, order or shape. Nothing here looks at a picture: `check` does.
    """
    (table, order), state, camera = _known(scene, order), _states(scene_obs, (24,)), camera or static_camera()
    points, furniture = _furniture(table, *state[:4])
    for name, pose in zip(order, state[6:].reshape(3, 6), strict=True):
        block = _block(pose, table.lengths[BLOCKS.index(name)])
        if _seen(block, furniture, camera.eye) >= LEAST_SEEN:
            points[name] = block.corners()
    found = {}
    for item, around in points.items():
        pixels = camera.project(around)[0]
        box = np.clip(np.concatenate([pixels.min(0), pixels.max(0)]) / camera.size, 0, 1).astype(np.float32)
        if box[0] < box[2] and box[1] < box[3]:
            found[item] = box
    return found


def _known(scene: str, order: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    if scene not in TABLES:
        raise UserError(f"CALVIN has no scene {scene!r}.", "A, B, C or D", scene, "the embedded play table's renderer knows its own boxes")
    if sorted(order) != sorted(BLOCKS):
        raise UserError("This is no order of the blocks.", ", ".join(BLOCKS) + " in some order", order)
    return TABLES[scene], tuple(order)


def _states(scene_obs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    states = np.asarray(scene_obs, np.float64)
    if states.shape != shape or not np.isfinite(states).all():
        raise UserError("This is not CALVIN's scene_obs.", f"finite numbers {shape}", states if states.size <= 24 else states.shape)
    return states


# ---- do state and pictures fit? ----------------------------------------------------------------------------------------------------

HUES = {"red_block": (345, 375), "blue_block": (205, 260), "pink_block": (280, 335)}  # degrees, what the colour words mean
PATCH, APART = 0.02, 0.07  # shares of the picture's side: half a patch, least distance of the blocks that are looked at
FITS, CLEARLY, OFF = 0.7, 0.25, 0.0125  # limits, see `check`


@dataclass(frozen=True)
class Fit:
    """What the pictures say. shares: order of the blocks -> share of blocks that show, where they are projected, the colour it gives them;
    looked: of how many blocks; distance: median, in pixels, from a block's projection to the middle of its colour; offset: the same to the
    right and down; unsure: why the pictures could not tell, empty where they could."""

    frames: int
    looked: int
    shares: dict[tuple[str, ...], float]
    distance: float
    offset: tuple[float, float]
    unsure: str = ""


def check(images: Sequence[np.ndarray], scene_obs: np.ndarray, scene: str, order: Sequence[str] = BLOCKS, camera: Camera | None = None,
          least: int = 20, must: bool = True) -> Fit:  # fmt: skip
    """Are the blocks where scene_obs (N, 24), in this order, and the camera put them in N square pictures, uint8 (N, H, H, 3) RGB?

    Looked at are blocks that furniture leaves half in view, 7 % of the side apart from others, with their colour anywhere in the picture
    (else the arm hides them). UserError
    - when no order finds its colours on 70 % of them, or the colours are 1.25 % of the side off: not this camera, or not these pictures;
    - when another order fits 25 points better than the one assumed (pictures in BGR look like red and blue exchanged);
    - when they cannot tell: fewer than `least` blocks, or two orders within 25 points (must=False returns a Fit that is `unsure`).
    Blocks alone are looked at: a wrong scene whose block order is right (B for D) is not found, nor is the embedded play table, whose
    furniture is another. 200 frames of many episodes take 0.5 s.
    """
    (table, order), camera, images = _known(scene, order), camera or static_camera(), np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or images.shape[1] != images.shape[2]:
        raise UserError("These are not pictures of CALVIN's static camera.", "uint8 (N, H, H, 3) RGB", f"{images.dtype} {images.shape}")
    side, places = images.shape[1], _places(table, _states(scene_obs, (len(images), 24)), camera)
    shares, looked, offs = _evidence(images, places)
    best, second = sorted(shares, key=shares.get, reverse=True)[:2]
    right, down, distance = offs[best] if shares[best] >= FITS else min(offs.values(), key=lambda off: off[2])
    fit = Fit(len(images), looked, shares, distance, (right, down))
    told, say = f"{fit.looked} blocks in {fit.frames} pictures", lambda names: ", ".join(name.removesuffix("_block") for name in names)
    if fit.looked >= least and (shares[best] < FITS or distance > OFF * side):
        raise UserError("The pictures do not fit the camera.", f"colours on {FITS:.0%} of the blocks, {OFF * side:.1f} px off at most",
                        f"{shares[best]:.0%} of {told} in the best order ({say(best)}); {distance:.1f} px off, in the median "
                        f"{right:+.1f} px right and {down:+.1f} px down", _remedy(images, places, shares[best]))  # fmt: skip
    if fit.looked >= least and shares[order] < shares[best] - CLEARLY:
        raise UserError(f"The blocks of scene_obs do not stand in the order assumed, scene {scene}.", say(order),
                        f"order {say(best)} fits {shares[best]:.0%} of {told}, the assumed one {shares[order]:.0%}",
                        f"order={best}, or the right scene (its own order), or RGB for BGR")  # fmt: skip
    if fit.looked < least or shares[second] > shares[best] - CLEARLY:
        fit = replace(fit, unsure=f"{told} could be looked at; the two best orders fit {shares[best]:.0%} and {shares[second]:.0%} of them")
        if must:
            raise UserError("Not checked: the pictures cannot tell if state and camera fit.", f"at least {least} blocks, of all colours",
                            fit.unsure, "more pictures, of other episodes; in Python, check(..., must=False) goes on")  # fmt: skip
    return fit


def _remedy(images: np.ndarray, places: list, share: float) -> str:
    """What to do: turn them where that fits as `check` wants it, and better than the `share` of the pictures as they are."""
    turned = {"flipped vertically": images[:, ::-1], "flipped horizontally": images[:, :, ::-1], "turned around": images[:, ::-1, ::-1]}
    for how, pictures in turned.items():
        shares, _, offs = _evidence(pictures, places)
        best = max(shares, key=shares.get)
        if shares[best] >= FITS and shares[best] > share and offs[best][2] <= OFF * images.shape[1]:
            return f"{how}, these pictures fit: turn them"
    return "pass the camera that took them (camera_of, --camera), or the pictures of these very states"


def _places(table: Table, states: np.ndarray, camera: Camera) -> list[tuple[int, int, np.ndarray]]:
    """(frame, slot in scene_obs, where in the picture (2,) in [0, 1]) of the blocks to look at."""
    found = []
    for frame, state in enumerate(states):
        poses, furniture = state[6:].reshape(3, 6), _furniture(table, *state[:4])[1]
        at = camera.project(poses[:, :3])[0] / camera.size
        gap = np.linalg.norm(at[:, None] - at, axis=2) + np.eye(3)
        for slot in np.flatnonzero((np.abs(at - 0.5) < 0.5 - 2 * PATCH).all(1) & (gap.min(1) > APART)):
            if _seen(_block(poses[slot], 0.04), furniture, camera.eye) >= 0.5:
                found.append((frame, int(slot), at[slot]))
    return found


def _evidence(images: np.ndarray, places: list) -> tuple[dict[tuple[str, ...], float], int, dict[tuple[str, ...], list[float]]]:
    """(order -> share of places with the colour it gives them, how many places, order -> median right, down, distance of that colour)."""
    side, orders, pixels = images.shape[1], list(permutations(BLOCKS)), {}
    hits, away = dict.fromkeys(orders, 0), {order: [] for order in orders}
    for frame, slot, at in places:
        pixels = pixels if frame in pixels else {frame: _coloured(images[frame])}
        for name, found in pixels[frame].items():
            to = found + 0.5 - at * side
            if len(to) >= (PATCH * side) ** 2:
                middle = np.median(to, 0)
                for order in (order for order in orders if order[slot] == name):
                    hits[order] += (np.abs(to) < PATCH * side).all(1).sum() >= 0.3 * (2 * PATCH * side) ** 2
                    away[order].append((*middle, np.linalg.norm(middle)))
    looked = len(away[max(hits, key=hits.get)])
    offs = {order: np.median(off or [[np.inf] * 3], 0).tolist() for order, off in away.items()}
    return {order: float(hit / max(1, looked)) for order, hit in hits.items()}, looked, offs


def _coloured(image: np.ndarray) -> dict[str, np.ndarray]:
    """Block -> (n, 2) x and y of the pixels of its hue."""
    hue, saturation, value = np.moveaxis(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV), 2, 0)
    vivid, degrees = (saturation >= 130) & (value >= 50), hue * 2.0  # wood is a weak red
    return {name: np.argwhere(vivid & ((degrees - low) % 360 <= high - low))[:, ::-1] for name, (low, high) in HUES.items()}


def camera_of(folder: Path | str, any_camera: bool = False) -> Camera:
    """The static camera of a CALVIN folder, from its `.hydra/merged_config.yaml`; without it the standard one, for `check` to confirm.
    UserError for a file that does not tell and, unless `any_camera`, for another camera than the standard one."""
    path = Path(folder) / ".hydra" / "merged_config.yaml"
    if not path.is_file():
        return static_camera()
    try:
        told = yaml.safe_load(path.read_text())["cameras"]["static"]
        size, fov = [int(told[key]) for key in ("width", "height")], float(told["fov"])
        eye, target, up = (np.array(told[key], np.float64).reshape(3) for key in ("look_from", "look_at", "up_vector"))
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not tell the static camera.", "cameras.static: width, height, fov, look_from, look_at, up_vector",
                        f"{type(error).__name__}: {error}") from error  # fmt: skip
    standard = np.hstack([STATIC_SIZE, STATIC_SIZE, STATIC_FOV, STATIC_EYE, STATIC_TARGET, STATIC_UP])
    if size[0] != size[1] or not (any_camera or np.allclose(np.hstack([*size, fov, eye, target, up]), standard, atol=1e-5)):
        raise UserError(f"{path}: this is not CALVIN's static camera.", standard.tolist(), told, "any_camera=True takes a square one")
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, up) / np.linalg.norm(np.cross(forward, up))
    return Camera(size[0], size[0] / 2 / np.tan(np.radians(fov / 2)), eye, np.array([right, np.cross(forward, right), forward]))
