"""The four play tables A, B, C, D: where everything stands, in metres, in CALVIN's world frame.

x points right, y away from the front edge of the table, z up. Numbers follow the measured geometry of CALVIN's scenes
(table top at z = 0.44, drawer travel 0.22 along -y, slider travel along -x, switch moving along (0, 0.5, 0.866)); the
furniture itself is our own and simpler. As in CALVIN the scenes differ in where drawer, slider, switch and button are,
in block sizes, in colours, and in the order in which `scene_obs` lists the blocks.
"""

from dataclasses import dataclass

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
HANDLE_GAP = 0.035
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

SWITCH_TRAVEL = 0.088
SWITCH_AXIS = (0.0, 0.5, 0.866)
SWITCH_BAR = (0.12, 0.03, 0.03)  # full extents of the lever bar
SWITCH_YZ = (0.02, 0.527)  # centre of the bar at joint 0
BUTTON_TRAVEL = 0.02
BUTTON_RADIUS = 0.03
BUTTON_Z = 0.46  # its top when not pressed
LIGHTBULB_RADIUS = 0.035
LED_RADIUS = 0.02


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
