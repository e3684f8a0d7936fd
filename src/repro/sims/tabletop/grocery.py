"""The grocery table: the play table's hand and contact on a kitchen worktop with groceries and a basket, for tasks in LIBERO's way.

    table = GroceryTable()
    seen = table.reset({"task": "pick_up_the_milk_and_place_it_in_the_basket", "init": 3, "layout": "wide", "seed": 7})

Interfaces are LIBERO's: x away from the robot and towards the camera `agentview`, y to the camera's right, z up, table top at 0.90 m;
actions 7-D, 0.05 m and 0.5 rad (axis-angle, world frame) per unit at 20 Hz; proprioception end-effector position 3, axis-angle 3, finger
joints 2; one picture over the table and one at the wrist. All six groceries stand there in every task, at the same spots: the instruction
matters. It is kinematic and simpler than LIBERO (no dynamics: nothing topples, the basket does not move) and not comparable with it.
"""

import math

import numpy as np

from ...machine import UserError
from ..libero import WIDE
from . import scenes
from .scenes import extent
from .solids import Solid, euler, upright
from .world import PlayTable

CONTROL_HZ, METRES, RADIANS = 20, 0.05, 0.5
TABLE_Z = 0.90
TABLE = (-0.42, 0.40, -0.56, 0.56, TABLE_Z - 0.04, TABLE_Z)
HALF = {  # half sizes (m) of the box that touches: cans and the bottle are drawn round inside it
    "alphabet_soup": (0.031, 0.031, 0.043), "cream_cheese": (0.045, 0.028, 0.021), "butter": (0.050, 0.025, 0.018),
    "milk": (0.030, 0.030, 0.065), "orange_juice": (0.032, 0.028, 0.060), "bbq_sauce": (0.027, 0.027, 0.070),
}  # fmt: skip
ITEMS = tuple(HALF)
TASKS = tuple(f"pick_up_the_{item}_and_place_it_in_the_basket" for item in ITEMS)
SPOTS = {"alphabet_soup": (-0.13, -0.29), "cream_cheese": (0.07, -0.27), "butter": (0.08, -0.14), "milk": (-0.14, -0.01),
         "orange_juice": (-0.12, -0.15), "bbq_sauce": (0.07, 0.02)}  # fmt: skip
BASKET, INSIDE, WALL, RIM = (-0.02, 0.25), 0.085, 0.010, 0.08  # its middle; half its inner width; thickness; height of the rim (m)
BASKET_FLOOR = TABLE_Z + 0.010
JITTER = 0.01  # m: what differs between official init states
APART = {"items": 0.11, "basket": 0.17, "both": 0.20}  # m between middles: closer than this, a wide draw is rejected
REST = (-0.20, 0.0, 1.16, math.pi, 0.0, 0.0)  # the hand: position and Euler angles
WORKSPACE = ((-0.36, 0.34), (-0.46, 0.46), (TABLE_Z + 0.005, 1.40))
INITS = 50
VIEW = {"upright": (slice(None), slice(None)), "rotated": (slice(None), slice(None, None, -1)), "raw": (slice(None, None, -1), slice(None))}
OPEN, CLOSE = 1.0, -1.0
FIRM = 3  # steps that the hand waits with what it holds
FUNNEL = 8.0  # m above the grasp for each m beside it
GAIN = 0.4  # share of the way left that the expert goes in a step: it slows down before its goals, which a learner can see and copy


def box_parts(x: float, y: float) -> dict[str, tuple]:
    """The basket's five boards, as boxes (x0, x1, y0, y1, z0, z1), with its middle at x, y."""
    a, b, low, high = INSIDE, INSIDE + WALL, TABLE_Z, TABLE_Z + RIM
    return {
        "basket_floor": (x - b, x + b, y - b, y + b, low, BASKET_FLOOR),
        "basket_far": (x - b, x - a, y - b, y + b, BASKET_FLOOR, high), "basket_near": (x + a, x + b, y - b, y + b, BASKET_FLOOR, high),
        "basket_left": (x - a, x + a, y - b, y - a, BASKET_FLOOR, high), "basket_right": (x - a, x + a, y + a, y + b, BASKET_FLOOR, high),
    }  # fmt: skip


def start(task: str, init: int, layout: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where an episode begins: items (6, 4) x, y, z, yaw; basket (2,); hand (6,). Official: `init` 0..49 alone says it, spots +-1 cm.
    Wide: besides, `seed` moves the target by up to 7 cm and the basket by up to 5 cm in x and y, anew for each."""
    rng = np.random.default_rng([init, TASKS.index(task), 50])
    at = np.array([SPOTS[item] for item in ITEMS]) + rng.uniform(-JITTER, JITTER, (len(ITEMS), 2))
    yaw, hand = rng.uniform(-0.25, 0.25, len(ITEMS)), np.array(REST) + np.array([*rng.uniform(-0.01, 0.01, 3), 0, 0, 0])
    basket, target = np.array(BASKET) + rng.uniform(-JITTER, JITTER, 2), TASKS.index(task)
    if layout == "wide":
        rng, (here, there) = np.random.default_rng([seed, target, 51]), (at[target].copy(), basket)
        others = np.delete(at, target, 0)
        for _ in range(10_000):
            at[target], basket = (p + rng.uniform(-w, w, 2) for p, w in ((here, WIDE["target"]), (there, WIDE["destination"])))
            clear = min(np.linalg.norm(others - at[target], axis=1)) > APART["items"]
            if clear and min(np.linalg.norm(others - basket, axis=1)) > APART["basket"] and math.dist(at[target], basket) > APART["both"]:
                break
        yaw[target] = rng.uniform(-0.4, 0.4)
    z = [TABLE_Z + HALF[item][2] for item in ITEMS]
    return np.column_stack([at, z, yaw]), basket, hand


class GroceryTable(PlayTable):
    """State: {"task": name or number, "init": 0..49, "layout": official | wide, "seed": int}, or what `state()` gave.

    orientation: how pictures lie, upright | rotated | raw, see `repro.sims.libero`. `step` and contact are the play table's.
    """

    def __init__(self, image_size: int = 128, wrist_size: int = 128, orientation: str = "upright", suite: str = "grocery"):
        if orientation not in VIEW:
            raise UserError(f"no orientation {orientation!r}", " | ".join(VIEW), orientation)
        self.sizes, self.orientation, self.suite = {"static": image_size, "wrist": wrist_size}, orientation, suite
        self.half, self.reach = list(HALF.values()), 0.14
        self.parts, self.joint, self.boxes_of, self.travel = {}, {}, {}, {}
        self.reset({"task": 0}, render=False)

    # --- the simulator contract -------------------------------------------------------------------------------------

    def reset(self, state: dict, render: bool = True) -> dict | None:
        task, layout = self.task_name(state["task"], self.suite), state.get("layout", "official")
        init, seed = int(state.get("init", 0)), int(state.get("seed", 0))
        if layout not in ("official", "wide") or not 0 <= init < INITS:
            raise UserError("no such start on the grocery table", f"official | wide, init 0 ... {INITS - 1}", f"{layout}, {init}")
        self.placed = {"suite": self.suite, "task": task, "init": init, "layout": layout, "seed": seed}
        items, basket, hand = start(task, init, layout, seed)
        flat = [0, *hand, scenes.MAX_WIDTH, OPEN, *basket, *items.ravel(), -1, *[0] * 12, *[self._code("top")] * len(ITEMS)]
        self._set_flat(np.asarray(state.get("flat", flat), np.float64))
        return self.observe() if render else None

    def task_list(self) -> list[str]:
        return list(TASKS)

    def task_name(self, task: int | str, suite: str = "grocery") -> str:
        """The name of a task given by name or number."""
        name = TASKS[task] if isinstance(task, int) and 0 <= task < len(TASKS) else task
        if name not in TASKS:
            raise UserError(f"no task {task!r} on the grocery table", f"a name, or 0 ... {len(TASKS) - 1}: {', '.join(TASKS)}", task)
        return name

    def start_task(self) -> None:
        """A task's goal is a state, not a change: nothing to remember."""

    def done(self, task: str) -> bool:
        """Whether the task's item lies in the basket, let go and at rest."""
        i = TASKS.index(self.task_name(task))
        (x, y, z), inside = self.solid[i].c, INSIDE - 0.005
        at_rest = self.support[i] is not None and i != self.held
        return at_rest and abs(x - self.basket[0]) < inside and abs(y - self.basket[1]) < inside and z < BASKET_FLOOR + 0.10

    def observe(self, pictures: bool = True) -> dict:
        """As LIBERO's: state (8,); environment_state (6,): middles of the target and of the basket's floor (m)."""
        drawn = {}
        if pictures:
            frame = self._frame(("static", "wrist"))
            drawn = {f"observation.images.{name}": np.ascontiguousarray(frame[name][VIEW[self.orientation]]) for name in self.sizes}
        where = [*self.solid[TASKS.index(self.placed["task"])].c, *self.basket, BASKET_FLOOR]
        return {**drawn, "observation.state": np.array([*self.pose[:3], *self.axis_angle(), *self.fingers()], np.float32),
                "observation.environment_state": np.array(where, np.float32)}

    def boxes(self) -> dict[str, list[int]]:
        ids = self._frame(("static",))["static_ids"][VIEW[self.orientation]]
        return {name: extent(ids == k + 1) for k, name in enumerate((*ITEMS, "basket")) if (ids == k + 1).any()}

    def state(self) -> dict:
        return {**self.placed, "flat": self.flat()}

    def about(self) -> dict:
        return {"simulator": "grocery table", "suite": self.suite, "assets": "grocery table, drawn by the library",
                "renderer": "play table (OpenCV)", "orientation": self.orientation, "control_hz": CONTROL_HZ,
                "image_size": [self.sizes["static"]] * 2, "wrist_size": [self.sizes["wrist"]] * 2, "settle_steps": 0}

    def expert(self, task: str, rng: np.random.Generator, noise: float = 0.0, pushes: float = 0.0) -> "Expert":
        return Expert(self, task, rng, noise, pushes)

    # --- what a recording holds besides, as LIBERO's ----------------------------------------------------------------

    def flat(self) -> np.ndarray:
        """(54,) float64: 0, hand 6, opening, command, basket 2, items 6 x 4, held or -1, grip 12, what each item stands on."""
        grip = [0.0] * 12 if self.grip is None else [*self.grip[0], *(v for axis in self.grip[1] for v in axis)]
        items = [value for block in self.blocks for value in block]
        return np.array([0, *self.pose, self.command, *self.basket, *items, -1 if self.held is None else self.held, *grip,
                         *map(self._code, self.support)], np.float64)

    def proprio(self) -> dict[str, np.ndarray]:
        """LIBERO's recorded proprioception; the joint angles are those of a plain two-link arm, a stand-in."""
        told, fingers = self.observe(pictures=False), np.array(self.fingers())
        return {"robot_states": np.array([*fingers, *self.pose[:3], *self._quaternion()]),
                "ee_states": np.array([*self.pose[:3], *self.axis_angle()]), "gripper_states": fingers,
                "joint_states": np.array(self._arm()), "state": told["observation.state"],
                "environment_state": told["observation.environment_state"]}

    def facts(self) -> dict:
        """What a file of recordings says of the task."""
        task = self.placed["task"]
        item, sentence = ITEMS[TASKS.index(task)], task.replace("_", " ")
        objects = " ".join(f"{name}_1 - {name}" for name in ITEMS)
        content = (f"(define (problem Grocery_Table)\n  (:domain robosuite)\n  (:language {sentence})\n"
                   f"  (:objects {objects} basket_1 - basket)\n"
                   f"  (:obj_of_interest {item}_1 basket_1)\n"
                   f"  (:goal (And (In {item}_1 basket_1_contain_region)))\n)\n")  # fmt: skip
        return {"fixtures": {"basket": np.array([*self.basket, TABLE_Z])}, "model_file": "<grocery_table/>", "items": [item, "basket"],
                "bddl": {"content": content, "problem_name": "Grocery_Table", "language": sentence}}

    def fingers(self) -> tuple[float, float]:
        return self.pose[6] / 2, -self.pose[6] / 2

    def axis_angle(self) -> list[float]:
        """(3,) rad, as robosuite: twice the arc cosine of w along the quaternion's vector, continuous around a hand that points down."""
        x, y, z, w = self._quaternion()
        long = math.sqrt(max(1e-12, 1 - w * w))
        return [2 * math.acos(max(-1.0, min(1.0, w))) / long * v for v in (x, y, z)]

    def _quaternion(self) -> tuple[float, float, float, float]:
        """x, y, z, w of the hand."""
        (cr, cp, cy), (sr, sp, sy) = (tuple(f(angle / 2) for angle in self.pose[3:6]) for f in (math.cos, math.sin))
        return (sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy, cr * cp * cy + sr * sp * sy)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _code(self, support) -> float:
        """A number for what an item stands on: -2 falling, -1 the room's floor, an item's number, 100 + a fixed part's."""
        if support is None or isinstance(support, int):
            return -2.0 if support is None else float(support)
        return -1.0 if support == "floor" else 100.0 + ("top", *box_parts(0, 0)).index(support)

    def _set_flat(self, flat: np.ndarray) -> None:
        n, names = len(ITEMS), ("top", *box_parts(0, 0))
        if flat.shape != (24 + 5 * n,) or not np.isfinite(flat).all():
            raise UserError("bad state of a grocery table", f"{24 + 5 * n} finite numbers", flat.shape)
        values = flat.tolist()
        self.pose, self.command, self.basket = tuple(values[1:8]), values[8], tuple(values[9:11])
        self.fixed = {name: Solid.of(box) for name, box in {"top": TABLE, **box_parts(*self.basket)}.items()}
        self.blocks = [tuple(values[11 + 4 * i : 15 + 4 * i]) for i in range(n)]
        rest = values[11 + 4 * n :]
        self.held, grip, codes = None if rest[0] < 0 else int(rest[0]), rest[1:13], rest[13:]
        self.grip = None if self.held is None else (tuple(grip[:3]), tuple(tuple(grip[k : k + 3]) for k in (3, 6, 9)))
        self.support = [None if c == -2 else "floor" if c == -1 else int(c) if c < 100 else names[int(c) - 100] for c in codes]
        self.touched, self.near, self.heading = set(), [], (0.0, 0.0)
        self.solid = [Solid((x, y, z), upright(yaw), h) for (x, y, z, yaw), h in zip(self.blocks, self.half, strict=True)]
        self._set_pose(self.pose)

    def _target(self, a: list) -> tuple:
        """Where the action wants hand and fingers: OSC_POSE's units, the rotation before the hand's own, inside the workspace."""
        xyz = [min(hi, max(lo, p + METRES * d)) for p, d, (lo, hi) in zip(self.pose, a, WORKSPACE, strict=False)]
        angles, width = self.pose[3:6], self.pose[6]
        turn = [RADIANS * v for v in a[3:6]]
        if angle := math.hypot(*turn):
            roll, pitch, yaw = euler(tuple(_turned(axis, [v / angle for v in turn], angle) for axis in self.axes))
            tilt = max(-scenes.MAX_TILT, min(scenes.MAX_TILT, roll + (2 * math.pi if roll < 0 else 0) - math.pi))
            limit = lambda value, most: max(-most, min(most, value))
            angles = (math.pi + tilt, limit(pitch, scenes.MAX_TILT), limit(yaw, scenes.MAX_TURN))
        if self.held is None:
            width = min(scenes.MAX_WIDTH, max(0.0, width + 0.02 * self.command))
        return (*xyz, *angles, width)

    def _spring_button(self) -> None:
        """There is none."""

    def _frame(self, cameras: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Upright pictures and "<camera>_ids": 1 + index in (*ITEMS, "basket"), 0 for everything else."""
        from . import grocery_render  # a table that is never looked at needs no OpenCV

        return grocery_render.render(self.pose, [solid.c for solid in self.solid], [solid.axes for solid in self.solid], self.basket,
                                     self.sizes, cameras)


def _turned(v: tuple, k: list, angle: float) -> tuple:
    """v turned by `angle` about the unit vector k (Rodrigues)."""
    c, s, along = math.cos(angle), math.sin(angle), sum(p * q for p, q in zip(k, v, strict=True)) * (1 - math.cos(angle))
    cross = (k[1] * v[2] - k[2] * v[1], k[2] * v[0] - k[0] * v[2], k[0] * v[1] - k[1] * v[0])
    return tuple(c * p + s * q + along * r for p, q, r in zip(v, cross, k, strict=True))


class Expert:
    """`act() -> (7,)` float64 for one task, with privileged state; begins again where a grasp or a placement failed. Scripted, not human.

    Speeds, heights, grasp points and the place to let go vary with the rng. With `noise` (scale of an AR(1) disturbance, as a share of a
    unit action) and `pushes` (probability of one in an episode) the hand is disturbed while it travels; `clean` is then what was wanted.
    """

    def __init__(self, table: GroceryTable, task: str, rng: np.random.Generator, noise: float = 0.0, pushes: float = 0.0):
        self.table, self.item, self.rng, self.noise = table, TASKS.index(table.task_name(task)), rng, noise
        self.speed, self.hover, self.carry = rng.uniform(0.4, 0.6), rng.uniform(0.05, 0.09), rng.uniform(0.02, 0.07)
        self.spot, self.drift, self.push = rng.uniform(-0.02, 0.02, 2), np.zeros(3), rng.normal(size=3)
        self.push *= 1.2 / np.linalg.norm(self.push)
        self.push_at = int(rng.integers(5, 60)) if rng.random() < pushes else None
        self.pushing, self.steps, self.fine, self.script = 0, 0, False, self._script()

    def act(self) -> np.ndarray:
        self.clean = next(self.script)
        self.steps += 1
        self.drift, apart = 0.7 * self.drift + 0.7 * self.rng.normal(size=3), np.zeros(7)
        if not self.fine:
            apart[:3] = self.noise * self.drift
            if self.push_at is not None and self.steps >= self.push_at and self.pushing < 6:
                self.pushing += 1
                apart[:3] = self.push
        return self.clean + apart

    def _to(self, goal, grip: float, yaw: float | None = None) -> np.ndarray:
        move = np.clip(GAIN * (np.asarray(goal) - self.table.pose[:3]) / METRES, -self.speed, self.speed)
        turn = 0.0 if yaw is None else np.clip((yaw - self.table.pose[5]) / RADIANS, -0.3, 0.3)
        return np.array([*move, 0.0, 0.0, turn, grip])

    def _yaw(self) -> float:
        """Of the hand, so that the fingers close across the item's narrow side: the nearest of the turns that look the same."""
        yaw, (a, b, _) = self.table.blocks[self.item][3], HALF[ITEMS[self.item]]
        every = math.pi / 2 if a == b else math.pi
        return min((yaw + k * every for k in range(-4, 5)), key=lambda turn: abs(turn))

    def _script(self):
        while True:
            yield from self._attempt()

    def _attempt(self):
        """Down to the item, close, up, over the basket, down, open, up; then still for as long as it is done.

        The way down is a funnel: the nearer from the side, the lower. A learner that sees where the hand is knows where to go on; one that
        was shown a stop above the item stays there."""
        table, i, (_, _, tall) = self.table, self.item, HALF[ITEMS[self.item]]
        along, sink = self.rng.uniform(-0.006, 0.006), self.rng.uniform(0.0, 0.012)

        def aim(lift: float = 0.0) -> np.ndarray:
            x, y, z = table.solid[i].c
            return np.array([x + along, y, max(TABLE_Z + 0.011, z + max(0.0, tall - 0.04) - sink) + lift])

        def funnel() -> np.ndarray:
            goal, high = aim(), aim(tall + 0.02 + self.hover)[2]
            aside = np.linalg.norm(goal[:2] - table.pose[:2])
            high = max(high, 1.12) if aside > 0.05 else high
            lift = FUNNEL * (aside - 0.008) + 0.3 * (abs(self._yaw() - table.pose[5]) - 0.05)
            return np.array([*goal[:2], goal[2] + min(max(0.0, lift), high - goal[2])])

        yield from self._reach(funnel, OPEN, 40, near=0.03)
        self.fine = True
        yield from self._reach(funnel, OPEN, 60, near=0.008)
        firm = 0  # steps with it in the hand, before the hand goes up: a learner that closes a step late has it too
        for _ in range(11):
            if firm < FIRM:
                yield self._to(aim(), CLOSE, self._yaw())
                firm += table.held == i
        self.fine = False
        hangs = lambda: table.pose[2] - table.solid[i].lo[2]  # how far the item's lowest point is below the hand
        high = 1.06 + self.carry + hangs()  # clears all other groceries
        aside = lambda: np.array(table.basket) + self.spot + table.pose[:2] - table.solid[i].c[:2]
        yield from self._reach(lambda: np.array([*table.pose[:2], high]), CLOSE, 60, near=0.03, while_held=True)
        yield from self._reach(lambda: np.array([*aside(), high]), CLOSE, 60, near=0.02, while_held=True)
        self.fine = True
        yield from self._reach(lambda: np.array([*aside(), BASKET_FLOOR + 0.012 + hangs()]), CLOSE, 40, near=0.015, while_held=True)
        for _ in range(4):
            yield self._to(table.pose[:3], OPEN)
        self.fine = False
        x, y, z = table.pose[:3]
        yield from self._reach(lambda: np.array([x, y, max(z, 1.12)]), OPEN, 30, near=0.02)
        while table.done(TASKS[i]):
            yield self._to((x, y, 1.12), OPEN)

    def _reach(self, goal, grip: float, steps: int, near: float = 0.004, while_held: bool = False):
        """Actions until the hand is `near` a goal that may move, or `steps` are over, or what it holds is lost."""
        for _ in range(steps):
            yaw = self._yaw() if grip == OPEN and not self.table.done(TASKS[self.item]) else None
            at = goal()
            there = np.abs(at - self.table.pose[:3]).max() < near and (yaw is None or abs(yaw - self.table.pose[5]) < 0.03)
            if there or (while_held and self.table.held != self.item):
                return
            yield self._to(at, grip, yaw)
