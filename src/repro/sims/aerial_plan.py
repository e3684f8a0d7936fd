"""What stands where in an aerial scene, and what changes: roads with junctions, lots along them, fields, trees, water.

    scene, change = plan(rng, "localisable")

Lots are laid out for everything that ever stands there; a change takes some of them out of the first date. A new building stands on the
same kinds of ground, beside the same roads, as those that were there before: only the other date tells which is new.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from repro.sims.aerial_drawing import fill, strip
from repro.sims.aerial_scene import SIZE, Building, Day, Plot, Road, Scene, axes, oblong

ROOFS = {  # RGB of roofs by quarter
    "homes": ((122, 84, 70), (104, 96, 92), (146, 128, 112), (90, 88, 92), (134, 104, 84), (168, 160, 150)),
    "works": ((188, 190, 190), (160, 168, 176), (206, 204, 198), (118, 132, 148), (176, 166, 150)),
}
GROUNDS = ("grass", "bareland", "grass")  # of aerial_drawing.PALETTES
MARGIN = 1.4  # the largest new building is this much larger than the next, in area: otherwise which one is "the" box would be a toss-up


@dataclass(frozen=True)
class Change:
    """What the captions are about. kind: none | built | lake | felled; buildings, roads: how many are new."""

    kind: str
    ground: str = "grass"  # what the scene mostly lies on: grass | bareland
    buildings: int = 0
    roads: int = 0
    works: bool = False  # halls, not homes
    beside_road: bool = False
    trees: bool = False  # whether trees stood where there are buildings now
    soil: bool = False  # whether it is bare soil now


class Ground:
    """Which pixels are taken, so that nothing is built on anything."""

    def __init__(self):
        self.taken = np.zeros((SIZE, SIZE), np.uint8)

    def free(self, corners: np.ndarray) -> bool:
        mask = np.zeros((SIZE, SIZE), np.uint8)
        fill(mask, corners, 255)
        return not cv2.bitwise_and(mask, self.taken).any()

    def take(self, corners: np.ndarray) -> None:
        fill(self.taken, corners, 255)


def street(start: np.ndarray, angle: float, bend: float, width: float, surface: str, length: float = 420.0, end: bool = False) -> Road:
    """A road from `start` on, turning by `bend` radians over its length."""
    steps = 14
    headings = angle + bend * np.linspace(0, 1, steps)
    moves = np.stack([np.cos(headings), np.sin(headings)], 1) * length / steps
    return Road(np.concatenate([start[None], start + np.cumsum(moves, 0)]), width, surface, end)


def network(rng: np.random.Generator) -> list[Road]:
    """A main road across the frame, perhaps a second one beside it, and side streets from it."""
    angle, surface = rng.uniform(0, 2 * np.pi), str(rng.choice(["asphalt", "asphalt", "concrete", "dirt"]))
    along, across = axes(angle)
    middle = np.array([SIZE / 2, SIZE / 2]) + across * rng.uniform(-70, 70)
    bend = rng.uniform(-0.35, 0.35)
    main = street(middle - along * 230, angle - bend / 2, bend, rng.uniform(11, 16), surface, 460)
    roads = [main]
    if rng.random() < 0.25:
        side = np.sign(rng.uniform(-1, 1)) * rng.uniform(95, 130)
        roads.append(street(middle + across * side - along * 230, angle - bend / 2, bend, rng.uniform(9, 13), surface, 460))
    for _ in range(rng.integers(0, 3)):
        roads.append(branch(rng, main))
    return roads


def branch(rng: np.random.Generator, main: Road) -> Road:
    """A side street from somewhere in the frame on, at about a right angle; some end in a turning circle."""
    inside = [i for i, (x, y) in enumerate(main.points[:-1]) if 20 < x < SIZE - 20 and 20 < y < SIZE - 20] or [len(main.points) // 2]
    i = rng.choice(inside)
    step = main.points[i + 1] - main.points[i]
    angle = np.arctan2(step[1], step[0]) + rng.choice([-1, 1]) * np.pi / 2 + rng.normal(0, 0.12)
    ends = rng.random() < 0.4
    start = main.points[i] + rng.random() * step
    return street(start, angle, rng.uniform(-0.3, 0.3), rng.uniform(9, 12), main.surface, rng.uniform(70, 120) if ends else 300, bool(ends))


def house(rng: np.random.Generator, x: float, y: float, angle: float, works: bool, size: float = 1.0) -> Building:
    """A building at a place, of a kind, its area times `size`."""
    grow = np.sqrt(size)
    if works:
        width, depth, height = rng.uniform(48, 74) * grow, rng.uniform(34, 50) * grow, rng.uniform(10, 18)
        kind, wing = "flat" if rng.random() < 0.75 else "gable", 0
    else:
        width, depth, height = rng.uniform(30, 42) * grow, rng.uniform(22, 30) * grow, rng.uniform(7, 12)
        kind, wing = str(rng.choice(["gable", "hip", "hip"])), int(rng.choice([-1, 0, 0, 1]))
    colours = ROOFS["works" if works else "homes"]
    colour = np.array(colours[rng.integers(len(colours))]) * rng.uniform(0.85, 1.12)
    return Building(x, y, width, depth, angle, height, kind, tuple(colour.tolist()), wing)


def lots(rng: np.random.Generator, roads: list[Road], ground: Ground, works: bool) -> list[Building]:
    """A building on each lot that has room, along both sides of the roads."""
    made = []
    for road in roads:
        lengths = np.r_[0, np.cumsum(np.linalg.norm(np.diff(road.points, axis=0), axis=1))]
        for side in (-1, 1):
            at = rng.uniform(4, 24)
            while at < lengths[-1]:
                building = house(rng, 0, 0, 0, works, rng.uniform(0.75, 1.5))
                x, y = (np.interp(at, lengths, road.points[:, k]) for k in (0, 1))
                ahead = [np.interp(min(at + 4, lengths[-1]), lengths, road.points[:, k]) for k in (0, 1)]
                angle = float(np.arctan2(ahead[1] - y, ahead[0] - x))
                away = axes(angle)[1] * side
                where = np.array([x, y]) + away * (road.width / 2 + rng.uniform(8, 16) + building.depth / 2)
                at += building.width + rng.uniform(8, 26)
                if not (12 < where[0] < SIZE - 12 and 12 < where[1] < SIZE - 12):
                    continue
                turned = angle + rng.normal(0, 0.04) + (np.pi if side > 0 else 0)  # a wing lies at the back
                building = replace(building, x=float(where[0]), y=float(where[1]), angle=turned,
                                   drive=tuple((np.array([x, y]) + away * road.width * 0.4).tolist()))  # fmt: skip
                around = [oblong(*c.mean(0), np.linalg.norm(c[1] - c[0]) + 8, np.linalg.norm(c[3] - c[0]) + 8, building.angle)
                          for c in building.footprints()]  # fmt: skip
                if all(ground.free(corners) for corners in around):
                    for corners in around:
                        ground.take(corners)
                    made.append(building)
    return made


def blob(rng: np.random.Generator, x: float, y: float, radius: float) -> np.ndarray:
    """(40, 2) corners of a round-ish outline."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    reach = 1 + sum(rng.uniform(-0.2, 0.2) / k * np.cos(k * turn + rng.uniform(0, 6.3)) for k in (1, 2, 3, 4))
    stretch = rng.uniform(0.7, 1.3)
    return np.stack([x + radius * reach * stretch * np.cos(turn), y + radius * reach / stretch * np.sin(turn)], 1)


def place_for(rng: np.random.Generator, ground: Ground, radius: float, tries: int = 30) -> tuple[float, float] | None:
    """A free place for something round, or None."""
    for _ in range(tries):
        x, y = rng.uniform(radius * 0.7, SIZE - radius * 0.7, 2)
        if ground.free(blob_box(x, y, radius)):
            return float(x), float(y)
    return None


def blob_box(x: float, y: float, radius: float) -> np.ndarray:
    """(8, 2): an octagon around a blob."""
    turn = np.arange(8) * np.pi / 4
    return np.stack([x + 1.25 * radius * np.cos(turn), y + 1.25 * radius * np.sin(turn)], 1)


def wood(rng: np.random.Generator, ground: Ground, x: float, y: float, spread: float, count: int) -> np.ndarray:
    """(n, 3) trees about a place, none on a roof or a road."""
    xy, radius = rng.normal((x, y), spread, (count, 2)), rng.uniform(4, 9, count)
    return standing(ground, np.column_stack([xy, radius]))


def standing(ground: Ground, trees: np.ndarray) -> np.ndarray:
    """Of trees (n, 3), those that stand on free ground in the frame."""
    at = np.round(trees[:, :2]).astype(int)
    inside = ((at >= 0) & (at < SIZE)).all(1)
    at = at.clip(0, SIZE - 1)
    return trees[inside & (ground.taken[at[:, 1], at[:, 0]] == 0)]


def days(rng: np.random.Generator) -> tuple[Day, Day]:
    """Two dates years apart: season, light and camera have nothing to do with each other; the first frame is where the truth is not."""

    def one(later: bool) -> Day:
        light, cast = rng.uniform(0.72, 0.98) if later else rng.uniform(0.88, 1.12), rng.normal(0, 0.025, 3)
        off = tuple(rng.uniform(-1.4, 1.4, 2).tolist()) if later else (0.0, 0.0)
        return Day(rng.uniform(0, 1), float(rng.choice([1.0, 1.0, 0.75])), rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.1),
                   rng.uniform(0.42, 0.62), tuple((light * (1 + cast)).tolist()), rng.uniform(0.88, 1.15), rng.uniform(0.0, 0.08),
                   rng.uniform(0.45, 0.85), off, rng.uniform(-0.25, 0.25) if later else 0.0, int(rng.integers(384 * 384)))  # fmt: skip

    return one(False), one(True)


def plan(rng: np.random.Generator, state: str) -> tuple[Scene, Change]:
    """A scene of the state asked for (unchanged | localisable | not localisable), and what changed in it."""
    scene = Scene(int(rng.integers(3)), tuple(rng.integers(384 * 384, size=4).tolist()))
    ground, works = Ground(), bool(rng.random() < 0.25)
    roads = network(rng)
    new_road = len(roads) > 1 and state == "localisable" and rng.random() < 0.22
    for road in roads:
        strip(ground.taken, road, 8)
    if rng.random() < 0.22:
        pond(rng, scene.water, ground, rng.uniform(22, 40))
    stood = lots(rng, roads, ground, works)
    for i in rng.permutation(len(stood))[: round(len(stood) * rng.uniform(0, 0.45))]:  # lots that stay empty, with or without soil
        if rng.random() < 0.4:
            scene.soil.append(stood[i].footprints()[0])
        stood[i] = None
    scene.roads, scene.buildings = roads, [b for b in stood if b is not None]
    fields(rng, scene, ground)
    woods(rng, scene, ground)
    change = Change("none")
    if state == "localisable":
        change = built(rng, scene, new_road, works, ground)
    elif state == "not localisable":
        change = unmarked(rng, scene, ground)
    return scene, change


def pond(rng: np.random.Generator, into: list[np.ndarray], ground: Ground, radius: float) -> bool:
    """Water on free ground; False where there is none."""
    place = place_for(rng, ground, radius)
    if place is None:
        return False
    into.append(blob(rng, *place, radius))
    ground.take(blob_box(*place, radius * 0.9))
    return True


def fields(rng: np.random.Generator, scene: Scene, ground: Ground) -> None:
    """Fields and lawns, mostly of another colour at each date, and soil that is bare at one date only: none of it counts."""
    for _ in range(rng.integers(1, 5)):
        x, y = rng.uniform(20, SIZE - 20, 2)
        angle, tone = rng.uniform(0, np.pi), rng.uniform(0.1, 0.45)
        tones = (tone, tone) if rng.random() < 0.2 else (tone, rng.uniform(tone + 0.25, 0.95))
        corners = oblong(x, y, *rng.uniform(45, 130, 2), angle)
        scene.plots.append(Plot(corners, tones[:: rng.choice([-1, 1])], angle, rng.uniform(0, 0.10) if rng.random() < 0.6 else 0.0))
    for _ in range(rng.poisson(0.7)):
        radius = rng.uniform(12, 34)
        place = place_for(rng, ground, radius, 4)
        if place is not None:
            scene.soil_once[rng.integers(2)].append(blob(rng, *place, radius))


def woods(rng: np.random.Generator, scene: Scene, ground: Ground) -> None:
    """Single trees, a row along a road, a grove."""
    found = [wood(rng, ground, SIZE / 2, SIZE / 2, 90, int(rng.integers(4, 26)))]
    if rng.random() < 0.5:
        found.append(wood(rng, ground, *rng.uniform(20, SIZE - 20, 2), rng.uniform(12, 26), int(rng.integers(15, 50))))
    if rng.random() < 0.4:
        road = scene.roads[0]
        steps = np.interp(np.arange(0, len(road.points) - 1, 0.45), np.arange(len(road.points)), road.points[:, 0])
        rows = np.interp(np.arange(0, len(road.points) - 1, 0.45), np.arange(len(road.points)), road.points[:, 1])
        step = road.points[-1] - road.points[0]
        across = np.array([-step[1], step[0]]) / np.linalg.norm(step) * (road.width / 2 + 7)
        found.append(standing(ground, np.column_stack([steps + across[0], rows + across[1], rng.uniform(4, 6.5, len(steps))])))
    scene.trees = np.concatenate(found)


def built(rng: np.random.Generator, scene: Scene, new_road: bool, works: bool, ground: Ground) -> Change:
    """New buildings and/or a road: they are taken out of the first date."""
    if new_road:
        scene.new_roads, scene.roads = [scene.roads[-1]], scene.roads[:-1]
    count = int(rng.choice([1, 2, 3, 4], p=[0.5, 0.24, 0.16, 0.1])) if not new_road or rng.random() < 0.5 else 0
    count = min(count, len(scene.buildings)) if new_road else max(1, count)
    if count:
        scene.buildings, scene.new_buildings = chosen(rng, scene.buildings, count, ground, works)
    count = len(scene.new_buildings)
    for building in scene.new_buildings:
        if rng.random() < 0.5:  # the works around it are not grown over yet
            scene.new_soil.append(oblong(building.x, building.y, building.width * 1.5, building.depth * 1.6, building.angle))
        elif rng.random() < 0.5:  # trees stood there
            scene.gone_trees = np.concatenate([scene.gone_trees, rng.normal((building.x, building.y, 5), (9, 8, 1), (4, 3))])
    beside = all(building.drive is not None for building in scene.new_buildings)
    return Change("built", GROUNDS[scene.ground], count, len(scene.new_roads), works, beside, bool(len(scene.gone_trees)))


def chosen(rng: np.random.Generator, stood: list[Building], count: int, ground: Ground, works: bool) -> tuple[list, list]:
    """(those that stay, `count` new ones): neighbours or anywhere, the largest by MARGIN."""
    if not stood:
        place = place_for(rng, ground, 26, 200) or (SIZE / 2, SIZE / 2)
        return [], [house(rng, *place, rng.uniform(0, np.pi), works)]
    places = np.array([[b.x, b.y] for b in stood])
    first = int(rng.integers(len(stood)))
    order = np.argsort(np.linalg.norm(places - places[first], axis=1)) if rng.random() < 0.5 else np.r_[first, rng.permutation(len(stood))]
    picked = list(dict.fromkeys(order.tolist()))[:count]
    new = sorted((stood[i] for i in picked), key=lambda b: -b.pixels)
    if len(new) > 1 and (short := MARGIN * new[1].pixels / new[0].pixels) > 1:  # the others are made smaller, on their own lots
        new = [new[0], *(replace(b, width=b.width / np.sqrt(short), depth=b.depth / np.sqrt(short)) for b in new[1:])]
    return [b for i, b in enumerate(stood) if i not in picked], new


def unmarked(rng: np.random.Generator, scene: Scene, ground: Ground) -> Change:
    """A change that masks of roads and buildings do not know: a lake, or trees that are gone."""
    if rng.random() < 0.5 and pond(rng, scene.new_water, ground, rng.uniform(28, 48)):
        inside = cv2.pointPolygonTest
        shore = scene.new_water[0].astype(np.float32)
        scene.trees = np.array([t for t in scene.trees if inside(shore, (float(t[0]), float(t[1])), False) < 0]).reshape(-1, 3)
        return Change("lake", GROUNDS[scene.ground])
    place = place_for(rng, ground, 34) or tuple(rng.uniform(60, SIZE - 60, 2))
    scene.gone_trees = wood(rng, ground, *place, 20, 70)
    if len(scene.gone_trees) < 12:
        scene.gone_trees = np.column_stack([rng.normal(place, 16, (30, 2)), rng.uniform(4, 8, 30)])
    if rng.random() < 0.6:
        scene.new_soil.append(blob(rng, *place, 36))
    return Change("felled", GROUNDS[scene.ground], soil=bool(scene.new_soil))
