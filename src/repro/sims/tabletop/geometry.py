"""Which convex solids make up the play table: furniture, items, robot. No drawing here, only shapes, poses and looks.

`solids(scene)` lists every box, prism and few-sided tube once, each in the frame of the body that carries it; `poses(scene,
robot_obs, scene_obs)` says where the bodies are. Both are pure functions; the first is cached by the renderer. Every face is
planar and convex, every solid is the intersection of its faces' half-spaces (the tests cast rays against just that).
"""

import math
from dataclasses import dataclass

import numpy as np

from . import scenes as s
from .looks import BULB, BUTTON, DARK, FINGER, FLAT, FLOOR, GREY, LED, PAD, WALL, WHITE, WOOD, WOOD2
from .looks import look as looked
from .scenes import ITEMS, Scene

ARM = ("upper_arm", "forearm", "elbow", "wrist")
BODIES = ("room", "world", "slider", "switch", "button", "drawer", *s.BLOCKS, "finger_left", "finger_right", "hand", *ARM)
BODY = {name: i for i, name in enumerate(BODIES)}
ITEM_ID = {"": 0, **{item: i + 1 for i, item in enumerate(ITEMS)}}
MAX_CORNERS = 11  # of a face, one more than any has: a cut at the near plane adds one

# A stylised arm: a base beside the table as in CALVIN, two links, the wrist above the hand. Drawn only, never collided with.
ARM_BASE = (-0.34, -0.46, 0.24)
ARM_SHOULDER = (-0.34, -0.46, 0.573)
ARM_UPPER, ARM_FORE = 0.42, 0.44
ARM_WRIST = 0.225  # the wrist stands this far above the tcp, along the fingers

@dataclass(frozen=True)
class Solids:
    """V corners and F faces of S convex solids, both in the order of BODIES; faces of one solid stand together."""

    vertex: np.ndarray  # (V, 3) metres, in the frame of its body
    vertex_body: np.ndarray  # (V,) index into BODIES
    corner: np.ndarray  # (MAX_CORNERS, F) vertex indices, counter-clockwise from outside, the last one repeated
    corners: np.ndarray  # (F,) how many are real
    normal: np.ndarray  # (F, 3) outward unit normal, body frame
    body: np.ndarray  # (F,)
    solid: np.ndarray  # (F,)
    item: np.ndarray  # (F,) 0 or index into ITEMS + 1
    colour: np.ndarray  # (F, 3) float RGB before lighting
    texture: np.ndarray  # (F,) WOOD, ... or FLAT
    dim: np.ndarray  # (F,) 0..1, how much light reaches an enclosed face
    receiver: np.ndarray  # (F,) 0 or index into RECEIVERS + 1: horizontal faces that shadows fall on


# Height of the horizontal surfaces that catch shadows; Solids.receiver is 1 + index here.
RECEIVERS = (s.FLOOR_Z, s.TABLE_Z, s.CABINET_FLOOR_Z, s.DRAWER_FLOOR_Z)


class Builder:
    """Collects solids; `bodies` and `items` number the names of a table's movable parts and of what can be looked at."""

    def __init__(self, look, bodies=BODY, items=ITEM_ID):
        self.bodies, self.items = bodies, items
        self.plain = {WOOD: np.mean(look.wood, 0), WOOD2: np.mean(look.wood2, 0)}
        self.vertices, self.vertex_body, self.faces, self.n_solids = [], [], [], 0

    def hull(self, body, points, faces, colour=WHITE, texture=FLAT, item="", dim=1.0, receiver=0, ends=None):
        """One convex solid from corners (n, 3) and faces (tuples of corner indices, any orientation). `ends`: colour of the first two."""
        points = np.asarray(points, float)
        base, centre = len(self.vertices), points.mean(0)
        self.vertices += list(points)
        self.vertex_body += [self.bodies[body]] * len(points)
        for i, face in enumerate(faces):
            a, b, c = points[list(face[:3])]
            normal = np.cross(b - a, c - a)
            normal /= np.linalg.norm(normal)
            if normal @ (a - centre) < 0:
                face, normal = face[::-1], -normal
            top, grain, tint = receiver if normal[2] > 0.99 else 0, texture, ends if ends and i < 2 else colour
            if texture in (WOOD, WOOD2) and np.sort(np.ptp(points[list(face)], axis=0))[1] < 0.03:  # too narrow for grain to show
                grain, tint = FLAT, self.plain[texture]
            self.faces.append(([base + i for i in face], normal, self.bodies[body], self.n_solids, self.items[item], tint, grain, dim, top))
        self.n_solids += 1

    def prism(self, body, polygon, axis, low, high, top=None, **look):
        """Polygon (n, 2) in the plane across `axis` (0, 1, 2), swept from low to high, where it may become `top` (n, 2)."""
        n, others = len(polygon), [i for i in range(3) if i != axis]
        points = np.zeros((2 * n, 3))
        points[:, axis] = [low] * n + [high] * n
        points[:n, others], points[n:, others] = polygon, polygon if top is None else top
        sides = [(i, (i + 1) % n, n + (i + 1) % n, n + i) for i in range(n)]
        self.hull(body, points, [tuple(range(n)), tuple(range(n, 2 * n)), *sides], **look)

    def box(self, body, box, **look):
        """Axis-aligned box (x0, x1, y0, y1, z0, z1)."""
        x0, x1, y0, y1, z0, z1 = box
        self.prism(body, [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], 2, z0, z1, **look)

    def tube(self, body, centre, radius, axis, low, high, sides=8, end=None, **look):
        """Few-sided cylinder, or cone when `end`, the radius at `high`, is given. `centre` are the two coordinates across the axis."""
        angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
        ring = np.stack([np.cos(angle), np.sin(angle)], 1)
        self.prism(body, np.add(centre, radius * ring), axis, low, high, top=None if end is None else np.add(centre, end * ring), **look)

    def done(self) -> Solids:
        order = np.argsort(self.vertex_body, kind="stable")
        place = np.argsort(order)
        faces = sorted(self.faces, key=lambda face: face[2])
        corner = np.array([place[face[0] + [face[0][-1]] * (MAX_CORNERS - len(face[0]))] for face in faces]).T
        corners = np.array([len(face[0]) for face in faces])
        columns = (np.array(column) for column in zip(*(face[1:] for face in faces), strict=True))
        return Solids(np.array(self.vertices)[order], np.array(self.vertex_body)[order], corner, corners, *columns)


def solids(scene: Scene) -> Solids:
    """All solids of a scene. Lamps are listed as off; the renderer gives their faces the colour of their state."""
    look = looked(scene.name)
    b = Builder(look)
    _furniture(b, scene, look)
    _fixtures(b, scene, look)
    _drawer_and_door(b, scene, look)
    for name in s.BLOCKS:
        half, h = scene.block_length[name] / 2, s.BLOCK_SIDE / 2
        b.box(name, (-half, half, -h, h, -h, h), colour=look.blocks[name], item=name)
    hand(b)
    arm(b)
    return b.done()


def _furniture(b, scene, look):
    """Room, table and cabinet: the fixed boxes of scenes.py, and what nothing touches: legs, a strip above the drawer, the robot's base."""
    b.box("world", (-4, 4, -3, 0.6, -0.05, s.FLOOR_Z), texture=FLOOR, receiver=1)
    b.box("room", (-4, 4, 0.6, 0.65, 0, 3), texture=WALL)
    b.box("room", (-4, 4, 0.585, 0.6, 0, 0.07), colour=tuple(0.7 * c for c in look.wall))
    fixed = s.fixed(scene)
    for name, box in fixed.items():
        if name not in ("led", "lightbulb"):
            b.box("world", box, texture=WOOD2 if name == "lamp" else WOOD, dim=0.85 if name in ("cabinet_floor", "cabinet_back") else 1.0,
                  receiver={"top": 2, "cabinet_floor": 3}.get(name, 0))
    (x0, x1), (y0, y1), low = s.TABLE_X, s.TABLE_Y, fixed["body_left"][4]
    strip = (fixed["body_left"][1], fixed["body_right"][0], y0, y0 + 0.01, s.DRAWER_RIM_Z + 0.003, s.TABLE_Z - s.TABLE_THICK)
    b.box("world", strip, texture=WOOD)
    for x in (x0 + 0.01, x1 - 0.06):
        for y in (y0 + 0.01, y1 - 0.06):
            b.box("room", (x, x + 0.05, y, y + 0.05, s.FLOOR_Z, low), texture=WOOD, dim=0.8)
    b.tube("world", ARM_BASE[:2], 0.10, 2, s.FLOOR_Z, ARM_BASE[2], colour=GREY)
    b.tube("world", ARM_BASE[:2], 0.085, 2, ARM_BASE[2], ARM_SHOULDER[2], end=0.065)


def _fixtures(b, scene, look):
    """Lever with its sloping mount, button, led and lightbulb."""
    (y, z), half = s.SWITCH_YZ, s.SWITCH_BAR[0] / 2
    slope = s.SWITCH_AXIS[1] / s.SWITCH_AXIS[2]
    line = lambda height, gap: (y + gap + (height - z) * slope, height)  # (y, z) along the lever's travel, `gap` behind its centre
    x, back = scene.switch_x, s.LAMP_Y[0]
    mount = [line(s.TABLE_Z, 0.045), line(s.LAMP_TOP_Z, 0.045), (back, s.LAMP_TOP_Z), (back, s.TABLE_Z)]
    b.prism("world", mount, 0, x - half, x + half, texture=WOOD2)
    slot = [line(z - 0.02, 0.042), line(s.LAMP_TOP_Z, 0.042), line(s.LAMP_TOP_Z, 0.046), line(z - 0.02, 0.046)]
    b.prism("world", slot, 0, x - 0.01, x + 0.01, colour=DARK)
    lever = s.moving(scene, "switch")["lever"]
    b.box("switch", lever, colour=look.metal, item="switch")
    b.box("switch", (x - 0.008, x + 0.008, lever[3], lever[3] + 0.03, z - 0.008, z + 0.008), colour=look.metal, item="switch")

    (bx, by), top, r = scene.button_xy, s.TABLE_Z, s.BUTTON_RADIUS
    b.tube("world", (bx, by), r + 0.007, 2, top, top + 0.004, sides=10, colour=GREY)
    b.tube("button", (bx, by), r, 2, s.BUTTON_Z - s.BUTTON_TRAVEL, s.BUTTON_Z, sides=10, end=0.9 * r, colour=BUTTON, item="button")
    (lx, ly, _), r = scene.led_xyz, s.LED_RADIUS
    b.tube("world", (lx, ly), r + 0.006, 2, top, top + 0.005, sides=10, colour=DARK)
    b.tube("world", (lx, ly), r, 2, top + 0.005, top + r, sides=10, end=0.7 * r, colour=LED[0], item="led")
    (x, y, z), r = scene.lightbulb_xyz, s.LIGHTBULB_RADIUS
    b.tube("world", (x, y), 0.6 * r, 2, s.LAMP_TOP_Z, z - 0.8 * r, colour=DARK)
    rings = ((-0.8, 0.55), (-0.25, 1.0), (0.35, 0.95), (1.0, 0.4))
    for (low, radius), (high, end) in zip(rings, rings[1:], strict=False):
        b.tube("world", (x, y), radius * r, 2, z + low * r, z + high * r, end=end * r, colour=BULB[0], item="lightbulb")


def _drawer_and_door(b, scene, look):
    for name, box in s.moving(scene, "drawer").items():
        if name.startswith(("bar", "post")):
            b.box("drawer", box, colour=look.metal, item="drawer")
        else:
            floor = name == "floor"
            b.box("drawer", box, texture=WOOD if floor else WOOD2, item="drawer", dim=0.9 if floor else 1.0, receiver=4 if floor else 0)
    parts = s.moving(scene, "slider")
    b.box("slider", parts["door"], texture=WOOD2, item="slider")
    b.box("slider", parts["lid"], texture=WOOD2, item="slider")
    x0, x1, y0, y1, z0, z1 = parts["handle"]  # drawn as a grip on two feet
    for box in ((x0, x1, y0, y0 + 0.014, z0, z1), (x0, x1, y0 + 0.014, y1, z0, z0 + 0.02), (x0, x1, y0 + 0.014, y1, z1 - 0.02, z1)):
        b.box("slider", box, colour=look.metal, item="slider")


def hand(b):
    """Palm and two fingers in the hand frame (z along the fingers); a finger's origin is on the inner face of its pad."""
    x0, x1, y0, y1, z0, z1 = s.PALM_BOX
    slab = lambda y: [(x0, -y), (x1, -y), (x1, y), (x0, y)]
    b.prism("hand", slab(0.62 * y1), 2, z0, z0 + 0.025, top=slab(y1))
    b.box("hand", (x0, x1, y0, y1, z0 + 0.025, z1), ends=GREY)
    half, thick, (low, high), pad = s.FINGER_WIDTH / 2, s.FINGER_THICK, s.FINGER_Z, s.PAD_Z[0]
    for name, side in (("finger_left", -1), ("finger_right", 1)):
        slab = lambda outer, side=side: [(-half, 0), (half, 0), (half, side * outer), (-half, side * outer)]
        b.prism(name, slab(1.7 * thick), 2, low, pad, top=slab(thick), colour=FINGER)
        b.prism(name, slab(thick), 2, pad, high, top=slab(0.7 * thick), colour=PAD)


def arm(b):
    """Links along their own z from 0 to their length; joints are short tubes across them."""
    b.tube("upper_arm", (0, 0), 0.060, 2, 0.0, ARM_UPPER, end=0.052)
    b.tube("forearm", (0, 0), 0.052, 2, 0.0, ARM_FORE, end=0.042)
    for name, radius, half in (("upper_arm", 0.068, 0.072), ("elbow", 0.062, 0.066), ("wrist", 0.054, 0.058)):
        b.tube(name, (0, 0), radius, 0, -half, half, ends=None if name == "wrist" else GREY)
    b.tube("wrist", (0, 0), 0.034, 0, -0.062, 0.062, sides=6, colour=DARK)
    flange = ARM_WRIST + s.PALM_BOX[4]
    b.tube("wrist", (0, 0), 0.046, 2, 0.0, flange, end=0.04)


def rotation(euler) -> np.ndarray:
    """(3, 3) matrix of extrinsic xyz angles in rad: Rz @ Ry @ Rx, as pybullet."""
    (cx, cy, cz), (sx, sy, sz) = (tuple(map(f, euler)) for f in (math.cos, math.sin))
    return np.array([[cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
                     [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
                     [-sy, cy * sx, cy * cx]])


def _cross(a, b):
    """np.cross of two vectors, ten times quicker."""
    return np.array([a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]])


def _frame(out, z, side, origin):
    """Write a pose (3, 4) into `out`: its z along the unit vector given, its x as near to `side` as that allows."""
    x = side - (side @ z) * z
    x /= math.sqrt(x @ x)
    out[:, 0], out[:, 1], out[:, 2], out[:, 3] = x, _cross(z, x), z, origin


def poses(scene: Scene, robot_obs: np.ndarray, scene_obs: np.ndarray) -> np.ndarray:
    """(len(BODIES), 3, 4): rotation and translation of every body for one state (robot_obs (15,), scene_obs (24,))."""
    pose = np.tile(np.eye(3, 4), (len(BODIES), 1, 1))
    slider, drawer, button, switch = scene_obs[:4].tolist()
    button *= 0.7  # so that a pressed button still stands out of its ring
    for joint, value in (("drawer", drawer), ("slider", slider), ("switch", switch), ("button", button)):
        pose[BODY[joint], :, 3] = [value * a for a in s.AXES[joint]]
    for i, name in enumerate(scene.block_order):
        block = pose[BODY[name]]
        block[:, :3], block[:, 3] = rotation(scene_obs[9 + 6 * i : 12 + 6 * i]), scene_obs[6 + 6 * i : 9 + 6 * i]
    place_robot(pose, robot_obs)
    return pose


def place_robot(pose: np.ndarray, robot_obs: np.ndarray, body: dict[str, int] = BODY, shoulder=ARM_SHOULDER) -> None:
    """Write the poses of hand, fingers and arm into `pose` (bodies, 3, 4)."""
    hand = pose[body["hand"]]
    hand[:, :3], hand[:, 3] = rotation(robot_obs[3:6]), robot_obs[:3]
    pose[body["finger_left"]] = pose[body["finger_right"]] = hand
    opening = 0.5 * max(0.0, robot_obs[6]) * hand[:, 1]
    pose[body["finger_left"], :, 3] -= opening
    pose[body["finger_right"], :, 3] += opening
    _reach(pose, hand, body, np.array(shoulder))


def _reach(pose, hand, body, shoulder):
    """Poses of the arm by two-link inverse kinematics, the elbow as high as it can be; out of reach, the links stretch."""
    z = hand[:, 2]
    wrist = hand[:, 3] - ARM_WRIST * z
    reach = wrist - shoulder
    distance = math.sqrt(reach @ reach)
    along = (ARM_UPPER**2 - ARM_FORE**2 + distance**2) / (2 * distance)
    side = np.array([reach[1], -reach[0], 0.0])  # reach x up
    side /= math.sqrt(side @ side)
    elbow = shoulder + along / distance * reach + math.sqrt(max(0.0, ARM_UPPER**2 - along**2)) / distance * _cross(side, reach)
    for name, start, end, length in (("upper_arm", shoulder, elbow, ARM_UPPER), ("forearm", elbow, wrist, ARM_FORE)):
        span = end - start
        long = math.sqrt(span @ span)
        _frame(pose[body[name]], span / long, side, start)
        if name == "upper_arm":
            pose[body["elbow"], :, :3], pose[body["elbow"], :, 3] = pose[body[name], :, :3], elbow
        pose[body[name], :, 2] *= max(1.0, long / length)
    _frame(pose[body["wrist"]], z, side, wrist)
