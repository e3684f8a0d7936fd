"""Pictures of the grocery table, by the play table's renderer: LIBERO's `agentview` opposite the robot, and the camera on the hand."""

from functools import lru_cache
from types import SimpleNamespace

import cv2
import numpy as np

from . import geometry as g
from . import grocery
from .looks import DARK, FLOOR, WOOD, WOOD2
from .render import Camera, Model, cast_shadows, draw, wrist_camera

BODIES = ("room", "world", "basket", *grocery.ITEMS, "finger_left", "finger_right", "hand", *g.ARM)
BODY = {name: i for i, name in enumerate(BODIES)}
ITEM_ID = {"": 0, **{name: i + 1 for i, name in enumerate((*grocery.ITEMS, "basket"))}}
FIXED, FREE, NEARBY = ("room", "world"), ("basket", g.ARM[-1]), ("world", "finger_right")
SHADOWS = (("basket", 60), ("hand", 50), ("finger_left", 60), ("finger_right", 60), *((item, 96) for item in grocery.ITEMS))
RECEIVERS = (0.0, grocery.TABLE_Z, grocery.BASKET_FLOOR)
BASE, SHOULDER = (-0.56, 0.0), (-0.56, 0.0, grocery.TABLE_Z + 0.36)
LIGHT = np.array([0.34, -0.42, 0.84])  # unit vector towards the lamp, on the camera's left
FOV, EYE, TARGET = 49.0, (0.78, 0.0, 1.54), (-0.06, 0.0, 0.985)
WHITE, CREAM, RED, BROWN, LID = (238, 238, 234), (240, 226, 190), (196, 34, 30), (92, 36, 22), (186, 188, 192)
BLUE, SKY, ORANGE, GREEN, YELLOW, GOLD = (36, 82, 190), (120, 178, 224), (240, 138, 24), (44, 132, 58), (248, 214, 70), (206, 150, 20)


def agentview(size: int) -> Camera:
    """The camera in front of the table; its right is the world's +y."""
    eye, forward = np.array(EYE), np.subtract(TARGET, EYE)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    return Camera(size, size / 2 / np.tan(np.radians(FOV / 2)), eye, np.array([right, np.cross(forward, right), forward]))


def render(pose: tuple, centres: list, axes: list, basket: tuple, sizes: dict[str, int], cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Per camera "static" or "wrist" uint8 (size, size, 3) RGB upright, and "<camera>_ids" uint8 (size, size), see ITEM_ID.

    pose: the hand's position, Euler angles and opening (7,); centres and axes of the items; basket: its x and y (m).
    """
    model, robot = _model(sizes["static"]), np.asarray(pose, float)
    placed = np.tile(np.eye(3, 4), (len(BODIES), 1, 1))
    placed[BODY["basket"], :2, 3] = basket
    for item, centre, columns in zip(grocery.ITEMS, centres, axes, strict=True):
        placed[BODY[item], :, :3], placed[BODY[item], :, 3] = np.array(columns).T, centre
    g.place_robot(placed, robot, BODY, SHOULDER)
    world, pictures, dark = model.world(placed), {}, (False, False)
    for name in cameras:
        camera = model.camera if name == "static" else wrist_camera(robot, sizes["wrist"])
        bodies, back = (FREE, model.background(dark)) if name == "static" else (NEARBY, None)
        layer = draw(model, camera, world, bodies, dark, back)
        cast_shadows(layer, model, camera, world.corner)
        pictures[name], pictures[f"{name}_ids"] = cv2.cvtColor(layer.rgba, cv2.COLOR_RGBA2RGB), layer.tag & 15
    return pictures


@lru_cache(maxsize=4)
def _model(size: int) -> Model:
    return Model(SimpleNamespace(name="G"), solids(), agentview(size), BODY, (FIXED, FREE, NEARBY), SHADOWS, RECEIVERS, LIGHT)


def solids() -> g.Solids:
    """Everything that is drawn: a tiled kitchen wall, a worktop, the basket, the groceries, the robot."""
    b = g.Builder(g.looked("G"), BODY, ITEM_ID)
    b.box("world", grocery.TABLE, texture=WOOD, receiver=2)
    b.box("room", (-3, 3, -3, 3, -0.05, 0.0), texture=FLOOR, receiver=1)
    b.box("room", (-0.92, -0.86, -3, 3, 0.0, 2.6), texture=FLOOR)  # kitchen tiles behind the robot
    b.box("room", (-0.86, -0.80, -3, 3, 0.0, grocery.TABLE_Z - 0.10), texture=WOOD2)
    b.tube("world", BASE, 0.085, 2, grocery.TABLE_Z - 0.1, SHOULDER[2], end=0.065)
    _basket(b)
    for item in grocery.ITEMS:
        _grocery(b, item, *grocery.HALF[item])
    g.hand(b)
    g.arm(b)
    return b.done()


def _basket(b) -> None:
    """Wicker walls and a rim; the first solid is what casts its shadow."""
    parts = grocery.box_parts(0, 0)
    for name in ("basket_far", "basket_near", "basket_left", "basket_right"):
        x0, x1, y0, y1, z0, z1 = parts[name]
        b.box("basket", (x0, x1, y0, y1, grocery.TABLE_Z, z1 - 0.012), texture=WOOD2, item="basket")
        b.box("basket", (x0 - 0.003, x1 + 0.003, y0 - 0.003, y1 + 0.003, z1 - 0.012, z1), colour=(112, 70, 34), item="basket")
    a, high = grocery.INSIDE, grocery.BASKET_FLOOR
    b.box("basket", (-a, a, -a, a, grocery.TABLE_Z, high), texture=WOOD2, item="basket", dim=0.85, receiver=3)


def _grocery(b, item: str, x: float, y: float, z: float) -> None:
    """One grocery around its middle, half sizes x, y, z. A hidden core comes first: its eight corners cast the shadow."""
    b.box(item, (-0.7 * x, 0.7 * x, -0.7 * y, 0.7 * y, -0.97 * z, {"bbq_sauce": 0.2}.get(item, 0.55) * z), colour=DARK, item=item)
    ring = lambda share, low, high, colour, end=None: b.tube(item, (0, 0), share * x, 2, low * z, high * z, sides=10,
                                                             end=None if end is None else end * x, colour=colour, item=item)
    if item == "alphabet_soup":
        for low, high, colour in ((-1, -0.9, LID), (-0.9, -0.1, WHITE), (-0.1, 0.9, RED), (0.9, 1, LID)):
            ring(1.04, low, high, colour)
    elif item == "bbq_sauce":
        for low, high, colour in ((-1, -0.6, BROWN), (-0.6, 0.1, GOLD), (0.1, 0.3, BROWN)):
            ring(1.04, low, high, colour)
        ring(1.04, 0.3, 0.7, BROWN, end=0.4)
        ring(0.45, 0.7, 1, RED)
    elif item in ("milk", "orange_juice"):
        body, band, cap = (WHITE, BLUE, WHITE) if item == "milk" else (ORANGE, CREAM, GREEN)
        for low, high, colour in ((-1, -0.5, body), (-0.5, 0.1, band), (0.1, 0.6, body)):
            b.box(item, (-x, x, -y, y, low * z, high * z), colour=colour, item=item)
        gable = lambda y: [(-x, -y), (x, -y), (x, y), (-x, y)]
        b.prism(item, gable(y), 2, 0.6 * z, 0.92 * z, top=gable(0.12 * y), colour=body, item=item)
        b.box(item, (-x, x, -0.12 * y, 0.12 * y, 0.92 * z, z), colour=cap if item == "orange_juice" else BLUE, item=item)
    else:
        ends, label = (YELLOW, WHITE) if item == "butter" else (SKY, WHITE)
        for low, high, colour in ((-1, -0.45, ends), (-0.45, 0.45, label), (0.45, 1, ends)):
            b.box(item, (low * x, high * x, -y, y, -z, z), colour=colour, item=item)
        b.box(item, (-0.25 * x, 0.25 * x, -0.5 * y, 0.5 * y, z, 1.02 * z), colour=RED if item == "butter" else BLUE, item=item)
