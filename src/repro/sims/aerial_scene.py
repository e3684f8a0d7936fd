"""What an aerial scene is made of, and what a day's light and camera are. Coordinates are (x, y) pixels, y down; angles in radians."""

from dataclasses import dataclass, field

import numpy as np

SIZE = 256  # pixels a side, of half a metre each, as in LEVIR-CC


@dataclass(frozen=True)
class Road:
    """A strip along `points` (n, 2) of `width` pixels. surface: asphalt | concrete | dirt; end: whether a turning circle ends it."""

    points: np.ndarray
    width: float
    surface: str
    end: bool = False


@dataclass(frozen=True)
class Building:
    """A roof over a rectangle (or an L, where `wing`): centre, width along `angle`, depth across it, height in pixels of shadow."""

    x: float
    y: float
    width: float
    depth: float
    angle: float
    height: float
    roof: str  # gable | hip | flat
    colour: tuple[float, float, float]
    wing: int = 0  # -1, 0, 1: the side an L's wing is on
    drive: tuple[float, float] | None = None  # where its driveway meets the road

    @property
    def pixels(self) -> float:
        return self.width * self.depth * (1.35 if self.wing else 1)

    def footprints(self) -> list[np.ndarray]:
        """(4, 2) corners of its one or two rectangles."""
        main = oblong(self.x, self.y, self.width, self.depth, self.angle)
        if not self.wing:
            return [main]
        along, across = axes(self.angle)
        x, y = np.array([self.x, self.y]) + along * self.wing * self.width * 0.26 + across * self.depth * 0.7
        return [main, oblong(x, y, self.width * 0.48, self.depth * 0.8, self.angle)]


@dataclass(frozen=True)
class Plot:
    """A field or lawn of its own: corners (n, 2), what of the ground's palette it has at each date (0..1), furrows along `angle`."""

    corners: np.ndarray
    tones: tuple[float, float]
    angle: float
    furrows: float


@dataclass
class Scene:
    """What stands where. `new` and `gone` name what only the second, or only the first, date has: buildings, roads, water, trees."""

    ground: int  # which palette
    offsets: tuple[int, int, int, int]  # where its textures are cut from the noise fields
    roads: list[Road] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    trees: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))  # (n, 3): x, y, radius
    water: list[np.ndarray] = field(default_factory=list)
    soil: list[np.ndarray] = field(default_factory=list)  # bare patches
    soil_once: tuple[list[np.ndarray], list[np.ndarray]] = field(default_factory=lambda: ([], []))  # those of one date: grown over, or dug
    new_roads: list[Road] = field(default_factory=list)
    new_buildings: list[Building] = field(default_factory=list)
    new_water: list[np.ndarray] = field(default_factory=list)
    new_soil: list[np.ndarray] = field(default_factory=list)
    gone_trees: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))


@dataclass(frozen=True)
class Day:
    """Season, light and camera of one date."""

    season: float  # 0 lush .. 1 dry
    leaves: float  # how much of a canopy has leaves
    sun: float  # direction the light comes from
    shadow: float  # length of a shadow, in heights
    dark: float  # of a shadow: the share of light that it takes
    gain: tuple[float, float, float]
    gamma: float
    haze: float
    blur: float
    shift: tuple[float, float]  # how the camera is off, in pixels ...
    turn: float  # ... and in degrees
    moved: int  # where the season's patches lie


def axes(angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along and across."""
    return np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])


def oblong(x: float, y: float, width: float, depth: float, angle: float) -> np.ndarray:
    """(4, 2) corners of a turned rectangle, in order."""
    along, across = axes(angle)
    along, across = along * width / 2, across * depth / 2
    return np.array([x, y]) + np.array([-along - across, along - across, along + across, -along + across])
