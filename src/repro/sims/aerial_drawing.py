"""Draws one date of an aerial scene: ground, water, roads, roofs, canopies, cars, the light of the day. numpy and OpenCV only.

    picture = draw(scene, day, 1, rng)                                  # (256, 256, 3) uint8 RGB

Everything is drawn straight down; what stands up is told from what lies flat by its shading and by the shadow it casts.
"""

from functools import lru_cache

import cv2
import numpy as np

from repro.sims.aerial_scene import SIZE, Building, Day, Road, Scene, axes, oblong

SHIFT = 4  # bits of a pixel's fraction in OpenCV's polygons
BANK = 640  # side of the noise fields that scenes cut their textures from


# --- textures -----------------------------------------------------------------------------------------------------------------------


@lru_cache(1)
def bank() -> tuple[np.ndarray, np.ndarray]:
    """Two noise fields (2, 640, 640) float32 of mean 0 and deviation 1: broad patches, and fine grain. The same in every process."""
    rng = np.random.default_rng(20201)

    def octaves(cells: list[int], fall: float) -> np.ndarray:
        made = np.zeros((BANK, BANK), np.float32)
        for i, n in enumerate(cells):
            layer = rng.standard_normal((n, n), np.float32)
            made += fall**i * (cv2.resize(layer, (BANK, BANK), interpolation=cv2.INTER_CUBIC) if n < BANK else layer)
        return (made - made.mean()) / made.std()

    return (np.stack([octaves([9, 18, 36, 72], 0.6) for _ in range(2)]), np.stack([octaves([80, 160, 320, 640], 0.85) for _ in range(2)]))


def noise(kind: int, which: int, offset: int) -> np.ndarray:
    """A (256, 256) window of a noise field: kind 0 broad, 1 fine."""
    y, x = divmod(offset % (384 * 384), 384)
    return bank()[kind][which, y : y + SIZE, x : x + SIZE]


# Colours of the ground from damp to dry, RGB, at five points of a palette; lush and dry season.
PALETTES = np.array([
    [[[52, 70, 42], [70, 92, 52], [92, 112, 66], [124, 130, 88], [150, 140, 110]],
     [[78, 78, 56], [104, 98, 72], [130, 120, 90], [152, 140, 110], [176, 160, 132]]],  # meadow
    [[[84, 84, 58], [116, 106, 76], [140, 124, 94], [160, 142, 112], [182, 164, 136]],
     [[100, 88, 70], [130, 110, 86], [154, 132, 104], [174, 152, 124], [192, 174, 150]]],  # bare land
    [[[58, 80, 46], [78, 104, 58], [96, 120, 68], [112, 126, 80], [134, 134, 98]],
     [[84, 88, 58], [112, 110, 74], [132, 126, 88], [148, 138, 104], [160, 148, 120]]],  # lawns
], np.float32)  # fmt: skip
SURFACES = {"asphalt": (112, 112, 114), "concrete": (164, 161, 154), "dirt": (158, 140, 114)}
SOIL, WATER, CANOPY = (150, 124, 96), (48, 68, 72), np.array([[[30, 48, 28], [88, 112, 58]], [[56, 52, 36], [128, 110, 72]]], np.float32)
CARS = ((226, 226, 224), (40, 40, 44), (150, 152, 156), (132, 34, 32), (40, 62, 110), (92, 94, 98))


def ramp(colours: np.ndarray) -> np.ndarray:
    """A table (256, 1, 3) uint8 through equally spaced colours, for cv2.applyColorMap."""
    at, points = np.linspace(0, len(colours) - 1, 256), np.arange(len(colours))
    return np.stack([np.interp(at, points, colours[:, c]) for c in range(3)], -1).round().astype(np.uint8)[:, None]


def tinted(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(256, 256, 3) uint8: the table's colour of each value in [0, 1]."""
    return cv2.applyColorMap(cv2.convertScaleAbs(np.clip(values, 0, 1), alpha=255), table)


def fill(canvas: np.ndarray, corners: np.ndarray, colour) -> None:
    """A convex polygon with smooth edges, its corners to a sixteenth of a pixel."""
    cv2.fillConvexPoly(canvas, np.round(corners * (1 << SHIFT)).astype(np.int32), colour, cv2.LINE_AA, SHIFT)


def filled(corners: list[np.ndarray]) -> np.ndarray:
    """(256, 256) uint8 0..255: polygons of any kind, smooth at their edges."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    cv2.fillPoly(mask, [np.round(c * (1 << SHIFT)).astype(np.int32) for c in corners], 255, cv2.LINE_AA, SHIFT)
    return mask


def strip(mask: np.ndarray, road: Road, grow: float = 0.0, value: int = 255) -> None:
    """A road's surface, `grow` pixels wider, drawn into a mask."""
    points = np.round(road.points * (1 << SHIFT)).astype(np.int32)
    cv2.polylines(mask, [points], False, value, max(1, round(road.width + grow)), cv2.LINE_AA, SHIFT)
    if road.end:
        cv2.circle(mask, tuple(points[-1].tolist()), round((road.width * 1.05 + grow / 2) * (1 << SHIFT)), value, -1, cv2.LINE_AA, SHIFT)


def within(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that a mask reaches."""
    x, y, width, height = cv2.boundingRect(mask)
    return slice(y, y + height), slice(x, x + width)


def laid(canvas: np.ndarray, over: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`over`, a picture, on the canvas where the mask (0..255) is; the canvas itself is changed."""
    at = within(mask)
    if mask[at].size:
        share = mask[at] * np.float32(1 / 255)
        canvas[at] = cv2.blendLinear(np.ascontiguousarray(over[at]), np.ascontiguousarray(canvas[at]), share, 1 - share)
    return canvas


def plain(colour) -> np.ndarray:
    """A (256, 256, 3) uint8 surface of one colour."""
    return np.full((SIZE, SIZE, 3), np.array(colour, np.uint8), np.uint8)


def textured(colour, grain: np.ndarray, amount: float) -> np.ndarray:
    """A (256, 256, 3) uint8 surface of one colour with grain."""
    level = np.clip(0.5 + 0.5 * amount * grain, 0, 1)
    base = np.array(colour, np.float32)
    return tinted(level, ramp(np.stack([base * 0.72, base, base * 1.24]).clip(0, 255)))


# --- layers, from the ground up -----------------------------------------------------------------------------------------------------


def ground(scene: Scene, day: Day, date: int) -> np.ndarray:
    """Patches of vegetation and soil, fields with furrows; some of it has another colour at each date."""
    broad, patches = noise(0, 0, scene.offsets[0]), noise(0, 1, scene.offsets[1] + day.moved)
    grain = noise(1, 0, scene.offsets[2])
    wet = 0.5 + 0.17 * broad + 0.15 * patches
    steps = np.arange(SIZE, dtype=np.float32)
    for plot in scene.plots:
        mask = filled([plot.corners])
        at = within(mask)
        slope = 0.9 * np.array([np.sin(plot.angle), np.cos(plot.angle)], np.float32)
        wave = np.sin(slope[0] * steps[at[0], None] + slope[1] * steps[None, at[1]])
        wet[at] += mask[at] * np.float32(1 / 255) * (plot.tones[date] + 0.10 * broad[at] + np.float32(plot.furrows) * wave - wet[at])
    lush, dry = PALETTES[scene.ground]
    return tinted(wet + 0.075 * grain, ramp(lush + (dry - lush) * day.season))


def shaded(colour, tilt: float) -> tuple[int, int, int]:
    """A roof facet's colour: 1 faces the light, -1 away from it."""
    return tuple(int(min(255, c * (0.86 + 0.26 * tilt))) for c in colour)


def roof(canvas: np.ndarray, building: Building, corners: np.ndarray, day: Day) -> None:
    """One rectangle's roof: facets by where they face, a ridge, eaves; a flat one with parapet and plant."""
    along, across = axes(building.angle)
    light = np.array([np.cos(day.sun), np.sin(day.sun)])
    a, b, c, d = corners
    if building.roof == "flat":
        fill(canvas, corners, shaded(building.colour, 0.9))
        inner = corners + 0.07 * (corners.mean(0) - corners)
        fill(canvas, inner, shaded(building.colour, 0.35))
        for u, v in ((0.3, 0.35), (0.7, 0.6)):
            x, y = a + (b - a) * u + (d - a) * v
            fill(canvas, oblong(x - 1.2 * light[0], y - 1.2 * light[1], 5, 4, building.angle), shaded(building.colour, -1.2))
            fill(canvas, oblong(x, y, 5, 4, building.angle), shaded(building.colour, 1.2))
        return
    if np.linalg.norm(b - a) < np.linalg.norm(d - a):
        a, b, c, d, along, across = b, c, d, a, across, -along
    inset = 0.5 * np.linalg.norm(d - a) / np.linalg.norm(b - a) if building.roof == "hip" else 0.0
    left, right = (a + d) / 2, (b + c) / 2
    left, right = left + (right - left) * inset, right + (left - right) * inset
    fill(canvas, np.array([a, b, right, left]), shaded(building.colour, float(-across @ light)))
    fill(canvas, np.array([d, c, right, left]), shaded(building.colour, float(across @ light)))
    if inset:
        fill(canvas, np.array([a, d, left]), shaded(building.colour, float(-along @ light)))
        fill(canvas, np.array([b, c, right]), shaded(building.colour, float(along @ light)))
    ends = np.round(np.array([left, right]) * (1 << SHIFT)).astype(int).tolist()
    cv2.line(canvas, tuple(ends[0]), tuple(ends[1]), shaded(building.colour, 1.0), 1, cv2.LINE_AA, SHIFT)


def canopies(canvas: np.ndarray, trees: np.ndarray, scene: Scene, day: Day) -> np.ndarray:
    """Tree crowns as bumpy domes lit from one side."""
    dome, mask = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
    whole = np.round(trees * (1 << SHIFT)).astype(int).tolist()
    for x, y, r in whole:
        cv2.circle(mask, (x, y), r, 255, -1, cv2.LINE_AA, SHIFT)
        for share, level in ((1, 110), (0.72, 175), (0.4, 225)):
            cv2.circle(dome, (x, y), int(r * share), level, -1, cv2.LINE_8, SHIFT)
    grain = noise(1, 1, scene.offsets[3])
    height = cv2.GaussianBlur(dome, (0, 0), 1.6).astype(np.float32) / 255 + 0.16 * grain
    slope_x, slope_y = cv2.Sobel(height, cv2.CV_32F, 1, 0, ksize=3), cv2.Sobel(height, cv2.CV_32F, 0, 1, ksize=3)
    lit = 0.42 - 0.30 * (np.cos(day.sun) * slope_x + np.sin(day.sun) * slope_y) + 0.22 * (height - 0.6)
    mask = cv2.convertScaleAbs(cv2.GaussianBlur(mask, (0, 0), 0.8) * (day.leaves + (1 - day.leaves) * (grain > 0.2)), alpha=1.0)
    leafy = CANOPY[0] + (CANOPY[1] - CANOPY[0]) * (0.75 * day.season)
    return laid(canvas, tinted(lit, ramp(leafy)), mask)


def shadows(canvas: np.ndarray, buildings: list[Building], trees: np.ndarray, day: Day) -> np.ndarray:
    """What buildings and trees darken."""
    away = -day.shadow * np.array([np.cos(day.sun), np.sin(day.sun)])
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for building in buildings:
        for corners in building.footprints():
            both = np.concatenate([corners, corners + away * building.height]).astype(np.float32)
            fill(mask, cv2.convexHull(both)[:, 0], 255)
    for x, y, r in trees:
        centre = np.round((np.array([x, y]) + away * r * 0.9) * (1 << SHIFT)).astype(int).tolist()
        cv2.circle(mask, tuple(centre), round(r * 0.95 * (1 << SHIFT)), 230, -1, cv2.LINE_AA, SHIFT)
    return dimmed(canvas, cv2.GaussianBlur(mask, (0, 0), 0.7), day.dark)


def dimmed(canvas: np.ndarray, mask: np.ndarray, dark: float) -> np.ndarray:
    """The canvas with a share of its light taken where the mask (0..255) is; a little less of the blue, which the sky gives."""
    table = (255 - np.arange(256)[:, None] * dark * np.array([1.0, 0.98, 0.88])).round().astype(np.uint8)
    return cv2.multiply(canvas, cv2.applyColorMap(mask, table[:, None]), scale=1 / 255)


def cars(canvas: np.ndarray, roads: list[Road], day: Day, rng: np.random.Generator) -> None:
    """Cars of this date on the roads: here today and gone tomorrow."""
    away = -day.shadow * np.array([np.cos(day.sun), np.sin(day.sun)])
    for road in roads:
        for _ in range(rng.poisson(1.6)):
            i, share = rng.integers(len(road.points) - 1), rng.random()
            step = road.points[i + 1] - road.points[i]
            angle = float(np.arctan2(step[1], step[0]))
            x, y = road.points[i] + share * step + axes(angle)[1] * road.width * rng.choice([-0.24, 0.24])
            colour = CARS[rng.integers(len(CARS))]
            fill(canvas, oblong(x + 2 * away[0], y + 2 * away[1], 9, 4.4, angle), (62, 62, 64))
            fill(canvas, oblong(x, y, 9, 4.2, angle), colour)
            fill(canvas, oblong(*(np.array([x, y]) + axes(angle)[0] * 1.2), 2, 3.4, angle), (46, 52, 58))


def draw(scene: Scene, day: Day, date: int, rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8 RGB of the scene at date 0 or 1. rng: what belongs to this date alone, cars and grain."""
    roads = scene.roads + (scene.new_roads if date else [])
    buildings = scene.buildings + (scene.new_buildings if date else [])
    water = scene.water + (scene.new_water if date else [])
    soil = scene.soil + scene.soil_once[date] + (scene.new_soil if date else [])
    trees = scene.trees if date else np.concatenate([scene.trees, scene.gone_trees])
    grain = noise(1, 1, scene.offsets[2])
    canvas = ground(scene, day, date)
    if soil:
        soft = cv2.GaussianBlur(filled(soil), (0, 0), 3)
        canvas = laid(canvas, textured(SOIL, grain + noise(0, 0, scene.offsets[1]), 0.4), soft)
    if water:
        canvas = laid(canvas, plain((136, 126, 104)), cv2.dilate(filled(water), np.ones((5, 5), np.uint8)))
        canvas = laid(canvas, textured(np.array(WATER) * (1.15 - 0.25 * day.season), noise(0, 1, scene.offsets[3]), 0.25), filled(water))
    for building in buildings:
        if building.drive is not None:
            ends = np.round(np.array([[building.x, building.y], building.drive]) * (1 << SHIFT)).astype(int).tolist()
            cv2.line(canvas, tuple(ends[0]), tuple(ends[1]), (158, 155, 148), 6, cv2.LINE_AA, SHIFT)
    canvas = paved(canvas, roads, grain)
    cars(canvas, roads, day, rng)
    canvas = shadows(canvas, buildings, trees, day)
    for building in buildings:
        for corners in building.footprints()[::-1]:
            roof(canvas, building, corners, day)
    canvas = canopies(canvas, trees, scene, day)
    return photographed(canvas, day, noise(1, 0, int(rng.integers(384 * 384))))


def paved(canvas: np.ndarray, roads: list[Road], grain: np.ndarray) -> np.ndarray:
    """Roads: verges first, then surfaces, so that junctions are open; a broken line in the middle of wide asphalt."""
    for surface in dict.fromkeys(road.surface for road in roads):
        verge, mask = np.zeros((SIZE, SIZE), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
        for road in (road for road in roads if road.surface == surface):
            strip(verge, road, 4, 150)
            strip(mask, road)
        canvas = laid(canvas, plain([int(0.5 * c + 78) for c in SURFACES[surface]]), verge)
        canvas = laid(canvas, textured(SURFACES[surface], grain, 0.16), mask)
    for road in roads:
        if road.surface == "asphalt" and road.width >= 13:
            lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(road.points, axis=0), axis=1))]
            for start in np.arange(4, lengths[-1] - 6, 14):
                ends = [[np.interp(s, lengths, road.points[:, k]) for k in (0, 1)] for s in (start, start + 5)]
                a, b = np.round(np.array(ends) * (1 << SHIFT)).astype(int).tolist()
                cv2.line(canvas, tuple(a), tuple(b), (172, 170, 160), 1, cv2.LINE_AA, SHIFT)
    return canvas


def placed(day: Day) -> np.ndarray:
    """(2, 3): where the camera of a day puts the scene, a turn about the middle and a shift."""
    matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), day.turn, 1.0)
    matrix[:, 2] += day.shift
    return matrix


def photographed(canvas: np.ndarray, day: Day, grain: np.ndarray) -> np.ndarray:
    """The scene as the day's camera and air give it: off by a pixel or two, blurred, with another light, haze and grain."""
    if day.turn or any(day.shift):
        canvas = cv2.warpAffine(canvas, placed(day), (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    canvas = cv2.GaussianBlur(canvas, (0, 0), day.blur)
    levels = (np.arange(256)[:, None] / 255) ** day.gamma * np.array(day.gain) * (1 - day.haze) + 0.72 * day.haze
    canvas = cv2.LUT(canvas, (255 * levels).clip(0, 255).astype(np.uint8)[None])
    return cv2.add(canvas, cv2.merge([(2.2 * grain).astype(np.float32)] * 3), dtype=cv2.CV_8U)
