"""Colours and textures of the four scenes: what differs for the eye, as the numbers in scenes.py differ for the hand.

Furniture is never red, blue or pink, so that a colour detector can work; the blocks keep their hue and vary a little in shade.
"""

import colorsys
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np

WOOD, WOOD2, FLOOR, WALL, FLAT = 0, 1, 2, 3, -1  # textures; FLAT faces have one colour
SIDE = 512  # texels along a texture; it repeats
TEXEL = {WOOD: 0.002, WOOD2: 0.002, FLOOR: 0.01, WALL: 0.01}  # metres


@dataclass(frozen=True)
class Look:
    """Colours of a scene, RGB 0..255, and its wood: grain frequency (rings per metre) and contrast 0..1."""

    wood: tuple[tuple[int, int, int], tuple[int, int, int]]  # light and dark of the table
    wood2: tuple[tuple[int, int, int], tuple[int, int, int]]  # of door and drawer front
    grain: tuple[float, float]
    metal: tuple[int, int, int]  # handles and lever
    floor: tuple[tuple[int, int, int], tuple[int, int, int]]
    tile: int  # floor tile or board, in texels of 1 cm
    wall: tuple[int, int, int]
    blocks: dict[str, tuple[int, int, int]]


LOOKS = {
    "A": Look(
        wood=((222, 196, 150), (196, 164, 112)), wood2=((156, 164, 138), (138, 146, 120)), grain=(22.0, 0.5), metal=(52, 54, 58),
        floor=((176, 172, 164), (164, 160, 152)), tile=32, wall=(214, 218, 208),
        blocks={"red_block": (206, 38, 34), "blue_block": (38, 66, 206), "pink_block": (232, 74, 206)},
    ),
    "B": Look(
        wood=((122, 84, 56), (82, 53, 34)), wood2=((142, 102, 68), (104, 70, 44)), grain=(30.0, 0.8), metal=(186, 160, 96),
        floor=((222, 218, 208), (206, 202, 190)), tile=32, wall=(186, 180, 160),
        blocks={"red_block": (224, 30, 36), "blue_block": (30, 48, 220), "pink_block": (240, 60, 220)},
    ),
    "C": Look(
        wood=((226, 222, 210), (204, 200, 186)), wood2=((124, 138, 132), (108, 122, 116)), grain=(16.0, 0.6), metal=(92, 86, 76),
        floor=((136, 110, 82), (118, 94, 68)), tile=16, wall=(200, 206, 212),
        blocks={"red_block": (196, 26, 30), "blue_block": (26, 58, 196), "pink_block": (226, 66, 190)},
    ),
    "D": Look(
        wood=((186, 138, 88), (138, 96, 56)), wood2=((162, 116, 70), (118, 80, 46)), grain=(26.0, 0.8), metal=(66, 70, 76),
        floor=((238, 238, 238), (206, 206, 208)), tile=64, wall=(226, 226, 224),
        blocks={"red_block": (218, 22, 22), "blue_block": (22, 34, 214), "pink_block": (236, 48, 226)},
    ),
    "G": Look(  # the grocery table: a light worktop, wicker, kitchen tiles
        wood=((206, 176, 136), (178, 142, 100)), wood2=((176, 126, 70), (120, 80, 40)), grain=(24.0, 0.5), metal=(66, 70, 76),
        floor=((218, 226, 224), (206, 216, 216)), tile=16, wall=(214, 218, 214), blocks={},
    ),
}


def repainted(scene, seed: int):
    """The same table (a scenes.Scene) in woods, metal, walls, floor and shades of its blocks that the seed draws; nobody trained on
    them."""
    return replace(scene, name=f"{scene.name[0]}~{seed}")


@lru_cache(maxsize=64)
def look(name: str) -> Look:
    """The look of a scene's name: "D", or "D~7" as `repainted` calls it."""
    if "~" not in name:
        return LOOKS[name]
    random = np.random.default_rng([int(name.split("~")[1]), 77])

    def paint(hue, saturation, value):
        shade = colorsys.hsv_to_rgb(random.uniform(*hue) / 360 % 1, random.uniform(*saturation), random.uniform(*value))
        return tuple(round(255 * c) for c in shade)

    def pair(light):
        return light, tuple(round(random.uniform(0.65, 0.9) * c) for c in light)

    any_hue = (0, 360)
    table = paint((18, 48), (0.15, 0.6), (0.4, 0.9)) if random.random() < 0.6 else paint(any_hue, (0.02, 0.3), (0.4, 0.95))
    front = paint((18, 48), (0.15, 0.6), (0.4, 0.9)) if random.random() < 0.6 else paint(any_hue, (0.02, 0.3), (0.4, 0.9))
    metal = paint(any_hue, (0.0, 0.15), (0.15, 0.45)) if random.random() < 0.7 else paint((35, 50), (0.3, 0.5), (0.6, 0.8))
    hues = {"red_block": (350, 365), "blue_block": (215, 240), "pink_block": (295, 318)}
    return Look(wood=pair(table), wood2=pair(front), grain=(random.uniform(12, 34), random.uniform(0.3, 0.9)), metal=metal,
                floor=pair(paint(any_hue, (0.0, 0.3), (0.5, 0.95))), tile=int(random.choice((16, 32, 64))),
                wall=paint(any_hue, (0.0, 0.12), (0.7, 0.92)),
                blocks={name: paint(hue, (0.72, 0.95), (0.75, 0.95)) for name, hue in hues.items()})  # fmt: skip


WHITE, GREY, DARK, FINGER, PAD, BUTTON = (228, 229, 232), (150, 152, 158), (58, 60, 66), (190, 192, 196), (104, 108, 116), (36, 36, 40)
LED = ((74, 104, 78), (40, 255, 70))  # off, on
BULB = ((206, 206, 200), (255, 226, 64))


def textures(name: str) -> np.ndarray:
    """(4, 512, 512, 3) float32 RGB before lighting, in the order WOOD, WOOD2, FLOOR, WALL, of the scene called `name`."""
    about, random = look(name), np.random.default_rng([ord(c) for c in name] if "~" in name else ord(name))
    wood, wood2 = _wood(about.wood, *about.grain, random), _wood(about.wood2, *about.grain, random)
    u, v = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    checker = ((u // about.tile + v // about.tile) % 2)[:, :, None]
    floor = np.where(checker == 1, np.float32(about.floor[0]), np.float32(about.floor[1]))
    seam = ((u % about.tile == 0) | (v % about.tile == 0))[:, :, None]
    floor = np.where(seam, 0.88 * floor, floor) + random.normal(0, 2.0, (SIDE, SIDE, 1))
    wall = np.float32(about.wall) + 3 * _noise(random, 16, 16) + random.normal(0, 1.0, (SIDE, SIDE, 1))
    return np.stack([wood, wood2, floor, wall]).astype(np.float32)


def _noise(random, rows, columns):
    """(512, 512, 1) smooth noise of unit size that repeats, from a grid of rows x columns."""
    grid = np.pad(random.normal(0, 1, (rows, columns)).astype(np.float32), 1, mode="wrap")
    step = (SIDE // rows, SIDE // columns)
    large = cv2.resize(grid, ((columns + 2) * step[1], (rows + 2) * step[0]), interpolation=cv2.INTER_CUBIC)
    return large[step[0] : step[0] + SIDE, step[1] : step[1] + SIDE, None]


def _wood(colours, rings, contrast, random):
    """Boards with the grain along u: rings bent by slow noise, fine streaks, one joint every 128 texels."""
    light, dark = (np.float32(c) for c in colours)
    v = np.arange(SIDE, dtype=np.float32)[:, None, None] / SIDE
    boards = np.repeat(random.uniform(-0.25, 0.25, 4), SIDE // 4)[:, None, None]
    phase = v * round(rings * SIDE * TEXEL[WOOD]) + 0.8 * _noise(random, 8, 2) + 4 * boards
    grain = 0.5 + 0.5 * np.sin(2 * np.pi * phase)
    mix = contrast * (0.35 * grain**2 + 0.20 * _noise(random, 128, 4) + 0.10 * _noise(random, 256, 16)) + 0.35 + boards * contrast
    wood = light + (dark - light) * np.clip(mix, 0, 1.2)
    wood.reshape(4, SIDE // 4, SIDE, 3)[:, :2] *= 0.85
    return wood
