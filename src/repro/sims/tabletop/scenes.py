"""The four play tables A, B, C, D: where everything stands, in metres, in CALVIN's world frame.

x points right, y away from the front edge of the table, z up. Numbers follow the measured geometry of CALVIN's scenes
(table top at z = 0.44, drawer travel 0.22 along -y, slider travel along -x, switch moving along (0, 0.5, 0.866)); the
furniture itself is our own and simpler. As in CALVIN the scenes differ in where drawer, slider, switch and button are,
in block sizes, in colours, and in the order in which `scene_obs` lists the blocks.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from repro.machine import UserError

BLOCKS = ("red_block", "blue_block", "pink_block")
# Everything that can be looked at, in the order of the per-pixel item ids (id = index + 1; 0 is everything else).
ITEMS = (*BLOCKS, "drawer", "slider", "button", "switch", "led", "lightbulb")

TABLE_X = (-0.48, 0.48)  # extents of the table top
TABLE_Y = (-0.24, 0.30)
TABLE_Z = 0.44  # height of the table top: blocks of height 0.04 rest with their centre at 0.46
TABLE_THICK = 0.02  # of the top; under it the body reaches down to z = 0.24

# The drawer slides along -y out of the front face; joint 0 closed .. 0.22 open.
DRAWER_TRAVEL = 0.22
DRAWER_HALF_WIDTH = 0.12  # inside, along x
DRAWER_DEPTH = 0.24  # inside, along y, behind the front panel
DRAWER_FLOOR_Z = 0.34  # blocks rest on it with their centre at 0.36
DRAWER_RIM_Z = 0.40  # upper edge of its walls and front panel
DRAWER_WALL = 0.01
HANDLE_HALF_WIDTH = 0.096  # the bar in front of the panel: z 0.34 .. 0.38, its centre HANDLE_GAP before the panel
HANDLE_GAP = 0.045
HANDLE_THICK = 0.02
HANDLE_Z = (0.345, 0.375)

# The cabinet at the back of the table: a shelf with side walls and a back; one half is covered by the sliding door, which
# is an L of a front panel and a lid over its half, so that only the uncovered half can be reached, from above or the front.
CABINET_Y = (0.05, 0.21)
CABINET_FLOOR_Z = 0.46
CABINET_TOP_Z = 0.60
CABINET_WALL = 0.012
DOOR_THICK = 0.014  # the door's front panel: y from CABINET_Y[0] - DOOR_THICK to CABINET_Y[0]
SLIDER_HANDLE = (0.04, 0.03, 0.10)  # full extents x, y, z of the upright handle bar in front of the door
SLIDER_HANDLE_Z = 0.53  # centre
LAMP_Y = (0.11, 0.21)  # the box behind the switch that carries the bulb; 0.16 wide, from the table top up to LAMP_TOP_Z
LAMP_TOP_Z = 0.60
FLOOR_Z = 0.0  # the room's floor: what falls off the table ends here

SWITCH_TRAVEL = 0.088
SWITCH_AXIS = (0.0, 0.5, 0.866)
SWITCH_BAR = (0.12, 0.03, 0.03)  # full extents of the lever bar
SWITCH_YZ = (0.02, 0.527)  # centre of the bar at joint 0
BUTTON_TRAVEL = 0.02
BUTTON_RADIUS = 0.03
BUTTON_Z = 0.46  # its top when not pressed
LIGHTBULB_RADIUS = 0.035
LED_RADIUS = 0.02

# The hand. Its frame has the tcp as origin; z points along the fingers (down at rest), the fingers open along y (world x
# at yaw pi/2). A box is (x0, x1, y0, y1, z0, z1) in metres.
MAX_WIDTH = 0.08  # greatest opening between the pads
FINGER_WIDTH = 0.02  # of a finger along hand x
FINGER_THICK = 0.014  # along hand y, outside of its pad: the pads are at y = +-width / 2
FINGER_Z = (-0.122, 0.008)  # from the palm to the fingertip; the tcp lies between the pads
PAD_Z = (-0.022, 0.008)  # the part of a finger that grips
PALM_BOX = (-0.03, 0.03, -0.08, 0.08, -0.19, -0.122)
REST_POSE = (-0.04, -0.32, 0.62, math.pi, 0.0, math.pi / 2)  # tcp xyz and euler xyz (extrinsic, as pybullet)
WORKSPACE = ((-0.46, 0.46), (-0.58, 0.24), (0.30, 0.82))  # limits of the tcp
MAX_TILT = 0.9  # rad of roll and pitch away from pointing straight down
MAX_TURN = 2.9  # rad of yaw away from the rest pose, as the last joint of the arm


@dataclass(frozen=True)
class Scene:
    """One play table. Positions in metres, colours RGB in 0..255."""

    name: str
    block_order: tuple[str, str, str]  # order of the three blocks in scene_obs[6:24]
    block_length: dict[str, float]  # long side (x at yaw 0); the other two sides are 0.04
    drawer_x: float
    cabinet_x: tuple[float, float]  # left and right inner face of the cabinet; the door covers one half of it
    slider_travel: float
    switch_x: float
    button_xy: tuple[float, float]
    led_xyz: tuple[float, float, float]
    lightbulb_xyz: tuple[float, float, float]

    @property
    def door_right_x(self) -> float:
        """Centre of the door at slider joint 0: it covers the right half. At joint t the centre is at door_right_x - t."""
        return self.cabinet_x[1] - self.slider_travel / 2


BLOCK_SIDE = 0.04

SCENES = {
    "A": Scene("A", ("pink_block", "blue_block", "red_block"), {"red_block": 0.08, "blue_block": 0.056, "pink_block": 0.04},
               0.10, (-0.36, 0.20), 0.28, 0.32, (-0.28, -0.10), (-0.28, 0.02, 0.452), (0.32, 0.16, 0.64)),
    "B": Scene("B", ("red_block", "blue_block", "pink_block"), {"red_block": 0.056, "blue_block": 0.04, "pink_block": 0.08},
               0.18, (-0.20, 0.404), 0.302, -0.32, (0.28, -0.10), (0.28, 0.02, 0.452), (-0.32, 0.16, 0.64)),
    "C": Scene("C", ("blue_block", "red_block", "pink_block"), {"red_block": 0.04, "blue_block": 0.08, "pink_block": 0.056},
               0.10, (-0.20, 0.28), 0.24, -0.32, (-0.12, -0.12), (-0.12, 0.0, 0.452), (-0.32, 0.16, 0.64)),
    "D": Scene("D", ("red_block", "blue_block", "pink_block"), {"red_block": 0.04, "blue_block": 0.056, "pink_block": 0.08},
               0.18, (-0.38, 0.18), 0.28, 0.30, (-0.12, -0.12), (-0.12, 0.0, 0.452), (0.30, 0.16, 0.64)),
}


@lru_cache(maxsize=512)
def scene(name: str) -> Scene:
    """"A" to "D"; "A~7": A with the look that seed 7 paints (looks.py); "R~7": another table with its own look, furniture where seed 7
    puts it. No R is one of the four: pictures and play of R tables are for what is learned before the experiment."""
    letter, _, seed = name.partition("~")
    if name in SCENES:
        return SCENES[name]
    if letter in (*SCENES, "R") and seed.isdecimal():
        return replace(SCENES[letter], name=name) if letter in SCENES else _another(name, int(seed))
    raise UserError(f"no play table scene {name!r}", f"one of {', '.join(SCENES)}, or with a seed: A~7 repainted, R~7 rearranged too", name)


def _another(name: str, seed: int) -> Scene:
    rng = np.random.default_rng([seed, 82])
    side = 1 if rng.random() < 0.5 else -1  # of the switch; the cabinet stands on the other
    switch, travel = side * rng.uniform(0.28, 0.34), rng.uniform(0.23, 0.31)
    inner = abs(switch) - rng.uniform(0.115, 0.15)  # the cabinet's face by the lamp
    cabinet = sorted((side * inner, side * max(inner - 2 * travel, -0.42)))
    bx, by = rng.uniform(-0.3, 0.3), rng.uniform(-0.13, -0.09)
    order, lengths = (tuple(values[k] for k in rng.permutation(3)) for values in (BLOCKS, (0.04, 0.056, 0.08)))
    return Scene(name, order, dict(zip(BLOCKS, lengths, strict=True)), rng.uniform(-0.05, 0.25), tuple(cabinet),
                 (cabinet[1] - cabinet[0]) / 2, switch, (bx, by), (bx, by + 0.12, 0.452), (switch, 0.16, 0.64))


Box = tuple[float, float, float, float, float, float]  # x0, x1, y0, y1, z0, z1 in metres

# Direction in which each movable part goes when its joint grows, and how far (the slider's travel is the scene's own).
JOINTS = ("drawer", "slider", "switch", "button")
AXES = {"drawer": (0.0, -1.0, 0.0), "slider": (-1.0, 0.0, 0.0), "switch": SWITCH_AXIS, "button": (0.0, 0.0, -1.0)}


def travel(scene: Scene, joint: str) -> float:
    """Upper joint limit in metres; the lower one is 0."""
    return {"drawer": DRAWER_TRAVEL, "slider": scene.slider_travel, "switch": SWITCH_TRAVEL, "button": BUTTON_TRAVEL}[joint]


def fixed(scene: Scene) -> dict[str, Box]:
    """The solid parts that never move."""
    x0, x1 = scene.cabinet_x
    y0, y1 = CABINET_Y
    d0, d1 = scene.drawer_x - DRAWER_HALF_WIDTH - DRAWER_WALL, scene.drawer_x + DRAWER_HALF_WIDTH + DRAWER_WALL
    bx, by, bz = scene.lightbulb_xyz
    lx, ly, _ = scene.led_xyz
    under = TABLE_Z - TABLE_THICK
    r = LIGHTBULB_RADIUS
    return {
        "top": (*TABLE_X, *TABLE_Y, under, TABLE_Z),
        "body_left": (TABLE_X[0], d0, *TABLE_Y, 0.24, under),
        "body_right": (d1, TABLE_X[1], *TABLE_Y, 0.24, under),
        "body_back": (d0, d1, TABLE_Y[0] + DRAWER_DEPTH + 0.02, TABLE_Y[1], 0.24, under),
        "body_bottom": (d0, d1, *TABLE_Y, 0.24, DRAWER_FLOOR_Z - DRAWER_WALL),
        "cabinet_floor": (x0, x1, y0, y1, TABLE_Z, CABINET_FLOOR_Z),
        "cabinet_left": (x0 - CABINET_WALL, x0, y0, y1, TABLE_Z, CABINET_TOP_Z),
        "cabinet_right": (x1, x1 + CABINET_WALL, y0, y1, TABLE_Z, CABINET_TOP_Z),
        "cabinet_back": (x0 - CABINET_WALL, x1 + CABINET_WALL, y1, y1 + CABINET_WALL, TABLE_Z, CABINET_TOP_Z),
        "lamp": (bx - 0.08, bx + 0.08, *LAMP_Y, TABLE_Z, LAMP_TOP_Z),
        "lightbulb": (bx - r, bx + r, by - r, by + r, LAMP_TOP_Z, bz + r),
        "led": (lx - LED_RADIUS, lx + LED_RADIUS, ly - LED_RADIUS, ly + LED_RADIUS, TABLE_Z, TABLE_Z + LED_RADIUS),
    }


def moving(scene: Scene, joint: str) -> dict[str, Box]:
    """The solid parts of one joint, where they are at joint 0; at joint t all of them are shifted by t * AXES[joint]."""
    if joint == "drawer":
        x0, x1 = scene.drawer_x - DRAWER_HALF_WIDTH, scene.drawer_x + DRAWER_HALF_WIDTH
        w, y0 = DRAWER_WALL, TABLE_Y[0]
        y1, floor = y0 + DRAWER_DEPTH, DRAWER_FLOOR_Z
        bar = y0 - w - HANDLE_GAP
        h0, h1 = scene.drawer_x - HANDLE_HALF_WIDTH, scene.drawer_x + HANDLE_HALF_WIDTH
        posts = {f"post_{n}": (x, x + 0.01, bar + HANDLE_THICK / 2, y0 - w, *HANDLE_Z) for n, x in (("left", h0), ("right", h1 - 0.01))}
        return {
            "panel": (x0 - w, x1 + w, y0 - w, y0, floor - w, DRAWER_RIM_Z),
            "floor": (x0, x1, y0, y1, floor - w, floor),
            "side_left": (x0 - w, x0, y0, y1, floor - w, DRAWER_RIM_Z),
            "side_right": (x1, x1 + w, y0, y1, floor - w, DRAWER_RIM_Z),
            "back": (x0 - w, x1 + w, y1, y1 + w, floor - w, DRAWER_RIM_Z),
            "bar": (h0, h1, bar - HANDLE_THICK / 2, bar + HANDLE_THICK / 2, *HANDLE_Z),
            **posts,
        }
    if joint == "slider":
        c, half = scene.door_right_x, scene.slider_travel / 2
        y0, y1 = CABINET_Y
        hx, hy, hz = SLIDER_HANDLE
        face = y0 - DOOR_THICK
        return {
            "door": (c - half, c + half, face, y0, CABINET_FLOOR_Z, CABINET_TOP_Z + DOOR_THICK),
            "lid": (c - half, c + half, y0, y1, CABINET_TOP_Z, CABINET_TOP_Z + DOOR_THICK),
            "handle": (c - hx / 2, c + hx / 2, face - hy, face, SLIDER_HANDLE_Z - hz / 2, SLIDER_HANDLE_Z + hz / 2),
        }
    if joint == "switch":
        (bx, by, bz), (y, z) = SWITCH_BAR, SWITCH_YZ
        return {"lever": (scene.switch_x - bx / 2, scene.switch_x + bx / 2, y - by / 2, y + by / 2, z - bz / 2, z + bz / 2)}
    x, y = scene.button_xy
    return {"button": (x - BUTTON_RADIUS, x + BUTTON_RADIUS, y - BUTTON_RADIUS, y + BUTTON_RADIUS, BUTTON_Z - BUTTON_TRAVEL, BUTTON_Z)}


def extent(mask: np.ndarray) -> list[int]:
    """Box [x0, y0, x1, y1] in pixels of the true pixels of a mask (H, W), x1 and y1 exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def item_boxes(ids: np.ndarray) -> dict[str, list[int]]:
    """Visible boxes of a picture's ids (H, W): item -> [x0, y0, x1, y1] in pixels, x1 and y1 exclusive. Hidden items are absent."""
    return {ITEMS[number - 1]: extent(ids == number) for number in np.unique(ids[ids > 0]).tolist()}
