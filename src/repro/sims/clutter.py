"""Cluttered table tops to test a gaze detector on: what a play table cannot show. Same-colour twins, things in bowls and on plates, far and
covered things, textures and colours drawn anew for every scene; with the true box of every thing. Numpy and OpenCV.

    clip = make(seed=7, kind="in")
    clip.instruction                                      # "pick up the blue block in the red bowl"
    clip.frames[0].image, clip.frames[0].boxes["target"]  # uint8 (200, 200, 3); (x0, y0, x1, y1) pixels

Not a robot simulator: nothing can be done here. Left, right, front and behind are the camera's, as in LIBERO's sentences.
"""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from repro.sims.tabletop.raster import Camera, World, rasterise
from repro.sims.tabletop.scenes import extent

SIZE, FINE = 200, 2  # pixels of a side; drawn this many times larger, then averaged
# The sentence's kinds. plain: one thing of its colour and kind; the others have a twin that only the place, or the side, tells apart.
KINDS = ("plain", "in", "on", "next to", "left of", "right of", "side")
HUES = {"red": 0, "orange": 28, "yellow": 54, "green": 125, "blue": 225, "pink": 315}  # degrees, jittered by scene
THINGS = ("block", "mug", "can")  # what can be meant; bowls and plates are what they can be in or on
LIGHT = np.array([-0.4, -0.45, 0.8])


@dataclass(frozen=True)
class Thing:
    """One thing on the table: kind, colour word, RGB, place of its foot (x, y, z) in metres, yaw in rad, scale."""

    kind: str
    colour: str
    rgb: tuple[float, float, float]
    foot: tuple[float, float, float]
    yaw: float
    scale: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True)
class Frame:
    """image uint8 (H, W, 3); boxes of the visible things, pixels, x1 and y1 exclusive: "target", "twin", "reference", "other 0" ...;
    visible: the share of each thing's own pixels that nothing covers."""

    image: np.ndarray
    boxes: dict[str, list[int]]
    visible: dict[str, float]


@dataclass(frozen=True)
class Clip:
    """A scene seen while a grey hand passes over it. names: what each thing is called ("target" -> "blue block")."""

    instruction: str
    kind: str
    names: dict[str, str]
    frames: list[Frame]


def make(seed: int, kind: str, frames: int = 6, far: bool = False, hand: bool = True) -> Clip:
    """A scene of a kind of KINDS; the same bits for the same arguments. far: everything at under half its size."""
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}: one of {', '.join(KINDS)}")
    random = np.random.default_rng([seed, KINDS.index(kind)])
    camera = _camera(random, far)
    while True:
        things, instruction = _arrange(random, kind, camera)
        if things:
            break
    table, floor = _texture(random), _texture(random)
    whole = {}
    for role, thing in things.items():
        shapes = _Shapes()
        shapes.thing(thing, role)
        whole[role] = int((_draw(shapes, camera, [role])[1][::FINE, ::FINE] > 0).sum())
    ground, low, shown = _ground(camera, table, floor, things), random.uniform(0.05, 0.11), []
    start = random.choice((-1, 1)) * random.uniform(0.22, 0.34)
    for t in range(frames):  # the hand comes from one side, passes in front of the target, and leaves at the other
        way = start * (1 - 2 * t / max(1, frames - 1))
        at = np.array(things["target"].foot) + (way, -0.03, low) if hand else None
        shown.append(_frame(things, at, camera, ground, whole))
    return Clip(instruction, kind, {role: thing.name for role, thing in things.items()}, shown)


def _arrange(random, kind: str, camera: Camera) -> tuple[dict[str, Thing], str]:
    """Things of a scene and its sentence; ({}, "") when a draw did not work out."""
    colours = list(random.permutation([*HUES, "white", "black"]))
    hue = {name: _rgb(random, name) for name in colours}
    things: dict[str, Thing] = {}
    spots = list(random.uniform((-0.26, -0.17), (0.26, 0.17), (40, 2)))

    def put(role, what, colour, spot, z=0.0):
        things[role] = Thing(what, colour, hue[colour], (*spot, z), random.uniform(0, np.pi))

    def free(apart=0.12):
        while spots:
            spot = spots.pop()
            if all(np.hypot(*(spot - t.foot[:2])) > apart for t in things.values()):
                return spot
        return None

    what, mine = random.choice(THINGS), colours[0]
    holder = {"in": "bowl", "on": "plate"}.get(kind) or random.choice(("bowl", "plate", "mug", "can"))
    if kind in ("in", "on"):
        what = "block"
    if kind != "plain" and kind != "side":
        put("reference", holder, colours[1], free())
    if kind in ("in", "on"):
        put("target", what, mine, np.array(things["reference"].foot[:2]) + random.uniform(-0.012, 0.012, 2), 0.012)
    elif kind == "next to":
        angle = random.uniform(0, 2 * np.pi)
        put("target", what, mine, np.array(things["reference"].foot[:2]) + 0.125 * np.array([np.cos(angle), np.sin(angle)]))
    else:
        put("target", what, mine, free())
    if kind != "plain":
        spot = free(0.2 if kind == "next to" else 0.12)
        if spot is None:
            return {}, ""
        put("twin", what, mine, spot)
    for i in range(int(random.integers(2, 5))):
        spot = free()
        if spot is not None:
            put(f"other {i}", random.choice((*THINGS, "bowl", "plate")), colours[2 + i], spot)
    if any(abs(t.foot[0]) > 0.30 or abs(t.foot[1]) > 0.21 for t in things.values()):
        return {}, ""
    x = {role: float(camera.project(np.array([thing.foot]))[0][0, 0]) for role, thing in things.items()}
    sentence = f"pick up the {mine} {what}"
    if kind in ("left of", "right of"):
        sign = 1 if kind == "left of" else -1
        if not (x["reference"] - x["target"]) * sign > 18 or not (x["reference"] - x["twin"]) * sign < -18:
            return {}, ""
    if kind == "side":
        if abs(x["target"] - x["twin"]) < 25:
            return {}, ""
        sentence = f"pick up the {'left' if x['target'] < x['twin'] else 'right'} {mine} {what}"
    elif kind != "plain":
        place = {"in": "in", "on": "on", "next to": "next to", "left of": "to the left of", "right of": "to the right of"}[kind]
        sentence += f" {place} the {things['reference'].name}"
    return things, sentence


def _rgb(random, name: str) -> tuple[float, float, float]:
    """A shade that people call by that name, 0 ... 255."""
    if name == "white":
        return (random.uniform(225, 250),) * 3
    if name == "black":
        return (random.uniform(22, 45),) * 3
    hue = (HUES[name] + random.uniform(-7, 7)) % 360
    return tuple(255 * c for c in colorsys.hsv_to_rgb(hue / 360, random.uniform(0.72, 0.95), random.uniform(0.72, 0.95)))


def _camera(random, far: bool) -> Camera:
    """A camera in front of and above the table."""
    azimuth, height = random.uniform(-0.5, 0.5), random.uniform(0.7, 1.0)
    eye = 1.6 * np.array([np.sin(azimuth), -np.cos(azimuth) * np.cos(height) / np.cos(0.8), np.sin(height)])
    forward = np.array([0, 0, 0.0]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1.0))
    right /= np.linalg.norm(right)
    focal = SIZE * FINE / 2 / np.tan(np.radians(21 if far else 12.5))
    return Camera(SIZE * FINE, focal, eye, np.array([right, np.cross(forward, right), forward]))


def _texture(random) -> np.ndarray:
    """(256, 256, 3) float RGB of a surface nobody has seen: a dull colour with streaks, tiles or specks."""
    base = 255 * np.array(colorsys.hsv_to_rgb(random.uniform(0, 1), random.uniform(0.05, 0.38), random.uniform(0.35, 0.85)))
    grid = {0: (2, 24), 1: (24, 2), 2: (16, 16)}[int(random.integers(3))]
    noise = cv2.resize(random.normal(0, 1, grid).astype(np.float32), (256, 256), interpolation=cv2.INTER_CUBIC)
    fine = random.normal(0, 1, (256, 256)).astype(np.float32)
    return np.clip(base * (1 + 0.10 * random.uniform(0.3, 1.2) * noise + 0.03 * fine)[..., None], 0, 255)


# ---- shapes and drawing -------------------------------------------------------------------------------------------------------------


class _Shapes:
    """Convex solids in world coordinates, each with a colour per face and the role of its thing."""

    def __init__(self):
        self.vertex, self.faces = [], []  # faces: (corner indices, solid, colour, role)
        self.solids = 0

    def prism(self, low, high, rgb, role, lid=None):
        """Two rings (n, 3) of corners, joined. lid: colour of the second ring's face."""
        base, n = len(self.vertex), len(low)
        self.vertex += [*low, *high]
        sides = [(i, (i + 1) % n, n + (i + 1) % n, n + i) for i in range(n)]
        for k, face in enumerate([tuple(range(n)), tuple(range(n, 2 * n)), *sides]):
            self.faces.append(([base + i for i in face], self.solids, lid if k == 1 and lid is not None else rgb, role))
        self.solids += 1

    def tube(self, centre, radius, z0, z1, rgb, role, end=None, lid=None, sides=10):
        angle = np.arange(sides) * 2 * np.pi / sides
        ring = np.stack([np.cos(angle), np.sin(angle)], 1)
        end = radius if end is None else end
        self.prism(*(np.c_[centre + r * ring, np.full(sides, z)] for r, z in ((radius, z0), (end, z1))), rgb, role, lid)

    def thing(self, thing: Thing, role: str):
        """The solids of one thing."""
        (x, y, z), s, rgb = thing.foot, thing.scale, np.array(thing.rgb)
        centre, axis = np.array([x, y]), np.array([np.cos(thing.yaw), np.sin(thing.yaw)])
        if thing.kind == "block":
            u, v = 0.030 * s * axis, 0.022 * s * np.array([-axis[1], axis[0]])
            square = np.array([u + v, v - u, -u - v, u - v])
            self.prism(*(np.c_[centre + square, np.full(4, h)] for h in (z, z + 0.044 * s)), rgb, role)
        elif thing.kind == "bowl":
            self.tube(centre, 0.045, z, z + 0.008, 0.85 * rgb, role)
            angle = np.arange(13) * 2 * np.pi / 12
            for a, b in zip(angle, angle[1:], strict=False):
                arc = lambda r, h, a=a, b=b: [(x + r * np.cos(t), y + r * np.sin(t), h) for t in (a, b)]
                low = [*arc(0.045, z), *arc(0.040, z)[::-1]]
                high = [*arc(0.075, z + 0.042), *arc(0.069, z + 0.042)[::-1]]
                self.prism(np.array(low), np.array(high), rgb, role)
        elif thing.kind == "plate":
            self.tube(centre, 0.055, z, z + 0.008, rgb, role, end=0.085, lid=0.93 * rgb, sides=14)
        elif thing.kind == "mug":
            self.tube(centre, 0.034, z, z + 0.075, rgb, role, lid=0.45 * rgb)
            u, v = 0.012 * axis, 0.006 * np.array([-axis[1], axis[0]])
            side = centre + 0.044 * axis
            square = side + np.array([u + v, v - u, -u - v, u - v])
            self.prism(*(np.c_[square, np.full(4, h)] for h in (z + 0.018, z + 0.058)), 0.9 * rgb, role)
        else:  # can
            self.tube(centre, 0.028, z, z + 0.095, rgb, role, lid=(200, 200, 204))

    def hand(self, at):
        """A grey gripper: two fingers and a palm above the place, and the arm behind it."""
        grey, (x, y, z) = np.array([176.0, 178.0, 182.0]), at
        for dx in (-0.035, 0.035):
            self.prism(*(np.array([(x + dx + a, y + b, h) for a, b in ((-0.01, -0.01), (0.01, -0.01), (0.01, 0.01), (-0.01, 0.01))])
                         for h in (z - 0.05, z + 0.03)), grey, "")  # fmt: skip
        self.tube(np.array([x, y]), 0.06, z + 0.03, z + 0.10, grey, "", sides=8)
        self.tube(np.array([x, y]), 0.045, z + 0.10, z + 0.7, 0.9 * grey, "", sides=8)


@dataclass(frozen=True)
class _Solids:
    corner: np.ndarray  # (corners, F), the last repeated, as raster.rasterise wants it
    corners: np.ndarray
    solid: np.ndarray


def _draw(shapes: _Shapes, camera: Camera, roles: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(colour (H, W, 3) float, role index + 1 (H, W), drawn (H, W)) of the solids; role 0 is nobody's."""
    vertex = np.array(shapes.vertex)
    most = max(len(face[0]) for face in shapes.faces) + 1
    corner = np.array([face[0] + [face[0][-1]] * (most - len(face[0])) for face in shapes.faces])
    corners, solid = np.array([len(face[0]) for face in shapes.faces]), np.array([face[1] for face in shapes.faces])
    a, b, c = (vertex[corner[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    centre = np.array([vertex[np.unique(corner[solid == s])].mean(0) for s in range(shapes.solids)])
    turned = ((a - centre[solid]) * normal).sum(1) < 0
    normal[turned] *= -1
    for i in np.flatnonzero(turned):
        corner[i, : corners[i]] = corner[i, : corners[i]][::-1]
        corner[i, corners[i] :] = corner[i, corners[i] - 1]
    rgb = np.array([face[2] for face in shapes.faces], float) * (0.55 + 0.5 * np.maximum(normal @ LIGHT, 0))[:, None]
    role = np.array([roles.index(face[3]) + 1 if face[3] else 0 for face in shapes.faces])
    colour, tag, depth = (np.zeros((camera.size, camera.size, n)).squeeze() for n in (3, 1, 1))
    groups = np.array_split(np.arange(shapes.solids), -(-len(shapes.faces) // 200))  # a picture has codes for 255 faces
    for group in groups:
        faces = np.flatnonzero(np.isin(solid, group))
        used = np.unique(corner[faces])
        place = np.zeros(len(vertex), int)
        place[used] = np.arange(len(used))
        part = _Solids(place[corner[faces]].T, corners[faces], solid[faces])
        world = World(vertex[used], normal[faces], (normal[faces] * a[faces]).sum(1))
        fill = rasterise(part, (0, len(used), 0, len(faces)), world, camera, depth.astype(np.float32))
        hit = fill.code > 0
        face = faces[fill.face[fill.code[hit] - 1]]
        colour[hit], tag[hit], depth = rgb[face], role[face], fill.inverse_depth
    return colour, tag, depth > 0


def _frame(things: dict[str, Thing], hand, camera: Camera, back: np.ndarray, whole: dict[str, int]) -> Frame:
    roles, shapes = list(things), _Shapes()
    for role, thing in things.items():
        shapes.thing(thing, role)
    if hand is not None:
        shapes.hand(hand)
    colour, tag, drawn = _draw(shapes, camera, roles)
    image = np.where(drawn[..., None], colour, back)
    image = cv2.resize(image.astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    ids, boxes, visible = tag[::FINE, ::FINE].astype(int), {}, {}
    for i, role in enumerate(roles):
        mine = ids == i + 1
        visible[role] = float(mine.sum() / max(1, whole[role]))
        if mine.sum() >= 4:
            boxes[role] = extent(mine)
    return Frame(np.clip(image, 0, 255).astype(np.uint8), boxes, visible)


def _ground(camera: Camera, table: np.ndarray, floor: np.ndarray, things: dict[str, Thing]) -> np.ndarray:
    """The table top (0.8 x 0.6 m at z = 0) with soft contact shadows, over the floor."""
    v, u = np.mgrid[: camera.size, : camera.size] + 0.5 - camera.size / 2
    ray = np.stack([u / camera.focal, v / camera.focal, np.ones_like(u)], -1) @ camera.axes
    hit = camera.eye + ray * (-camera.eye[2] / np.minimum(ray[..., 2], -1e-6))[..., None]
    x, y = hit[..., 0], hit[..., 1]
    look = lambda surface, per: surface[(y * per).astype(int) % 256, (x * per).astype(int) % 256]
    shade = np.ones_like(x)
    for thing in things.values():
        r = {"bowl": 0.07, "plate": 0.08}.get(thing.kind, 0.04)
        shade -= 0.35 * np.exp(-(((x - thing.foot[0] - 0.012) ** 2 + (y - thing.foot[1] + 0.008) ** 2) / r**2) ** 2)
    on = (np.abs(x) < 0.42) & (np.abs(y) < 0.31)
    return np.where(on[..., None], look(table, 400) * np.clip(shade, 0.4, 1)[..., None], 0.8 * look(floor, 120))
