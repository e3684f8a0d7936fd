"""A scripted expert with privileged state: relative actions only, solves each of the 34 tasks from wherever the hand is.

    expert = Expert(table, "open_drawer", rng)
    while not table.done("open_drawer"):
        table.step(expert.act(), render=False)

A script is a generator of actions that follows the things it handles (it re-aims at their present place and tries a missed grasp
again). Start offsets, speeds, heights and grasp points vary with the rng. Before it moves, the expert plays its script in a copy
of the table and draws other variations until one succeeds, so that obstacles on the way need no rule of their own.
"""

import math
from collections.abc import Iterator

import numpy as np

from . import scenes
from .scenes import BLOCKS
from .tasks import block_of
from .world import POSITION_STEP, ROTATION_STEP, YAW, PlayTable, wrap

OPEN, CLOSE = 1.0, -1.0
TABLE = scenes.TABLE_Z + scenes.BLOCK_SIDE / 2  # height of the middle of a block on the table
FINGERS = 0.014  # half of the closed fingers along hand y
TRIES, MAX_STEPS = 30, 300
SLOWS = 0.4  # share of the remaining way that a calm step goes: it slows down before its goal instead of stopping at once


class Calm:
    """A generator whose draws keep to the middle: `share` of the spread of each, and of several ways to do a task always the usual one.

    Two experts in one state then do nearly the same, which is what a small model can learn from few demonstrations; where they go
    must be read off the state, not guessed. What does not scale (a choice among equals) is left as it is.
    """

    def __init__(self, rng: np.random.Generator, share: float):
        self.rng, self.share = rng, share
        self.integers = rng.integers

    def uniform(self, low=0.0, high=1.0, size=None):
        middle, drawn = np.add(low, high) / 2, self.rng.uniform(low, high, size)
        return middle + self.share * (drawn - middle)

    def standard_normal(self, size=None):
        return self.share * self.rng.standard_normal(size)

    def random(self) -> float:
        return 0.5 + self.share * (self.rng.random() - 0.5)


class Expert:
    """`act() -> (7,)` float64, one step of the script for `task`; stands still once the script is over.

    variation: 1 for the natural variation of start offsets, paths, heights and speeds; towards 0 it goes the middle way (see `Calm`), at
    full speed until it slows down before a goal, and varies more only where the calm script does not succeed.
    """

    def __init__(self, table: PlayTable, task: str, rng: np.random.Generator, variation: float = 1.0):
        self.table, self.task = table, task
        copy, state, start = PlayTable(table.scene.name), table.state(), table.start_info
        found = {}
        for i, seed in enumerate(rng.integers(2**63, size=TRIES).tolist()):
            copy.reset(state, render=False)
            copy.start_info = start
            share = min(1.0, variation + 0.1 * i)
            done, tidy = _outcome(copy, task, seed, share)
            found.setdefault((done, tidy), (seed, share))
            if tidy:
                break
        self.script = _script(table, task, *found[max(found)])

    def act(self) -> np.ndarray:
        return next(self.script)


def _script(table: PlayTable, task: str, seed: int, variation: float) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    return Script(table, task, rng if variation >= 1.0 else Calm(rng, variation)).run()


def _outcome(table: PlayTable, task: str, seed: int, variation: float) -> tuple[bool, bool]:
    """(done, tidy) of the script with this seed. Done: the task stays done for a few steps. Tidy: the blocks it is not about were left
    where they were, none came to lie by the button or the led, and the hand holds one only after a lift."""
    script, after = _script(table, task, seed, variation), 0
    name, before, was_held = block_of(task), [b[:3] for b in table.blocks], table.held
    for _ in range(MAX_STEPS):
        table.step(next(script), render=False)
        after = after + 1 if table.done(task) else 0
        if after > 5:
            moved = [i for i in range(3) if math.dist(table.blocks[i][:3], before[i]) > 0.02 and i != was_held]
            mine = 0 if task.split("_")[0] in ("place", "stack", "turn", "open", "close", "move") else 1
            others = len(moved) > mine or (name is not None and any(BLOCKS[i] != name for i in moved))
            rides = task in ("open_drawer", "close_drawer") and all(table.blocks[i][2] < scenes.TABLE_Z for i in moved)
            fixed = (table.scene.button_xy, table.scene.led_xyz[:2])
            clear = all(math.dist(table.blocks[i][:2], xy) > 0.08 for i in moved for xy in fixed if i != table.held)
            return True, clear and (rides or not others) and (table.held is None) == (not task.startswith("lift"))
    return False, False


class Script:
    """One variation of one task as a generator of actions. Positions in metres, angles in rad."""

    def __init__(self, table: PlayTable, task: str, rng: np.random.Generator):
        self.table, self.scene, self.task, self.rng = table, table.scene, task, rng
        calm = isinstance(rng, Calm)
        self.speed = 1.0 if calm else rng.uniform(0.7, 1.0)  # share of the greatest step
        self.gain = SLOWS if calm else 1.0
        self.high = rng.uniform(0.66, 0.72)  # of the tcp while it travels
        self.grip = table.command
        self.sway = np.zeros(3)

    def run(self) -> Iterator[np.ndarray]:
        held = self.table.held is not None
        verb = self.task.split("_")[0]
        if held and verb != "place" and self.task != "stack_block":  # a rotated block may still be in the hand
            for _ in range(4):
                yield self.action(self.xyz, grip=OPEN)
        yield from self.retreat()
        while True:
            if verb in ("open", "close"):
                yield from self.drawer()
            elif verb == "move":
                yield from self.slider()
            elif verb == "turn":
                yield from self.button() if self.task.endswith("led") else self.switch()
            elif verb == "place" or self.task == "stack_block":
                yield from self.put(held)
            elif self.task == "push_into_drawer":
                yield from self.into_drawer()
            elif verb == "push":
                way = 1 if self.task.endswith("right") else -1
                yield from self.push(BLOCKS.index(block_of(self.task)), way * self.rng.uniform(0.125, 0.15))
            else:
                yield from self.grasp_task(verb)
            for _ in range(6):
                yield self.action(self.xyz, grip=self.grip)
            if self.table.done(self.task):
                while True:
                    yield self.action(self.xyz, grip=self.grip)
            yield from self.retreat()

    # --- motion -------------------------------------------------------------------------------------------------------

    @property
    def xyz(self) -> np.ndarray:
        return np.array(self.table.pose[:3])

    def action(self, xyz, yaw: float | None = None, pitch: float = 0.0, grip: float | None = None) -> np.ndarray:
        """One action towards a pose: straight, no faster than `speed`, with a slight sway while the way is long."""
        self.grip = self.grip if grip is None else grip
        pose = self.table.pose
        move = (np.asarray(xyz) - pose[:3]) / POSITION_STEP
        far = float(np.abs(move).max())
        move *= min(self.gain, self.speed / max(far, 1e-9))
        self.sway = 0.8 * self.sway + 0.06 * self.rng.standard_normal(3)
        if far > 4:
            move += self.sway
        turn = np.array([wrap(math.pi - pose[3]), pitch - pose[4], 0.0 if yaw is None else yaw - pose[5]]) / ROTATION_STEP
        return np.concatenate([np.clip(move, -1, 1), np.clip(turn, -1, 1), [self.grip]])

    def go(self, where, yaw: float | None = None, pitch: float = 0.0, grip: float | None = None, near: float = 0.003,
           steps: int = 70) -> Iterator[np.ndarray]:  # fmt: skip
        """Actions until the hand is within `near` of `where` (a point, or a function that gives one) and stands as asked, or is stuck."""
        before, still = None, 0
        for _ in range(steps):
            xyz = np.asarray(where() if callable(where) else where)
            pose = self.table.pose
            turned = abs(pitch - pose[4]) < 0.02 and abs(wrap(math.pi - pose[3])) < 0.02 and (yaw is None or abs(yaw - pose[5]) < 0.02)
            if np.abs(xyz - pose[:3]).max() < near and turned:
                return
            still = still + 1 if before is not None and np.abs(np.subtract(pose, before)).max() < 1e-4 else 0
            if still > 3:
                return
            before = pose
            yield self.action(xyz, yaw, pitch, grip)

    def retreat(self) -> Iterator[np.ndarray]:
        """Away from whatever the last task left the hand at: out from under things if tilted, then up."""
        x, y, _ = self.xyz
        if abs(self.table.pose[4]) > 0.05:
            yield from self.go((x, y - 0.07, self.xyz[2] - 0.01), pitch=self.table.pose[4], near=0.01)
        if self.xyz[2] < 0.62:
            yield from self.go((self.xyz[0], self.xyz[1], 0.64), near=0.02)

    def above(self, xyz, yaw: float | None = YAW, pitch: float = 0.0, grip: float | None = None,
              clearance: float = 0.07) -> Iterator[np.ndarray]:  # fmt: skip
        """Travel high to over `xyz`, then down to `clearance` above it."""
        if math.dist(self.xyz[:2], xyz[:2]) > 0.03:
            yield from self.go((xyz[0], xyz[1], max(self.high, xyz[2] + clearance)), yaw, pitch, grip, near=0.025)
        yield from self.go((xyz[0], xyz[1], xyz[2] + clearance), yaw, pitch, grip, near=0.006)

    # --- furniture ----------------------------------------------------------------------------------------------------

    def drawer(self) -> Iterator[np.ndarray]:
        """Hook the closed fingers behind the bar and pull, or push the bar from the front."""
        x = self.scene.drawer_x + self.rng.uniform(-0.06, 0.06)
        z = self.rng.uniform(0.352, 0.362)
        bar = lambda: scenes.TABLE_Y[0] - scenes.DRAWER_WALL - scenes.HANDLE_GAP - self.table.joint["drawer"]
        opens = self.task.startswith("open")
        away = 0.0275 if opens else -0.045
        yield from self.above((x, bar() + away, z), grip=CLOSE)
        yield from self.go((x, bar() + away, z), YAW, grip=CLOSE)
        end = bar() - 0.25 if opens else scenes.TABLE_Y[0] - scenes.HANDLE_GAP - scenes.DRAWER_WALL - 0.02
        yield from self.go((x, end, z), YAW, grip=CLOSE)

    def slider(self) -> Iterator[np.ndarray]:
        """Push the handle sideways with the closed fingers."""
        way = -1 if self.task.endswith("left") else 1
        y = scenes.CABINET_Y[0] - scenes.DOOR_THICK - scenes.SLIDER_HANDLE[1] / 2 + self.rng.uniform(-0.004, 0.0)
        z = self.rng.uniform(0.505, 0.55)
        handle = self.scene.door_right_x - self.table.joint["slider"]
        start = handle - way * (scenes.SLIDER_HANDLE[0] / 2 + FINGERS + self.rng.uniform(0.02, 0.04))
        yield from self.above((start, y, z), grip=CLOSE, clearance=0.12)
        yield from self.go((start, y, z), YAW, grip=CLOSE)
        yield from self.go((start + way * (self.scene.slider_travel + 0.06), y, z), YAW, grip=CLOSE)

    def switch(self) -> Iterator[np.ndarray]:
        """Lift the lever from below with tilted fingers, or push it down from above."""
        x = self.scene.switch_x + self.rng.uniform(-0.045, 0.045)
        (y, z), (_, ay, az) = scenes.SWITCH_YZ, scenes.SWITCH_AXIS
        now = self.table.joint["switch"]
        if self.task.startswith("turn_on"):
            tilt, low = self.rng.uniform(-0.85, -0.75), z - 0.052
            yield from self.above((x, -0.04, low), pitch=tilt, grip=CLOSE, clearance=0.09)
            yield from self.go((x, -0.04, low), YAW, tilt, CLOSE)
            yield from self.go((x, y, low), YAW, tilt, CLOSE)
            travel = scenes.SWITCH_TRAVEL + 0.01
            yield from self.go((x, y + ay * travel, low + az * travel + 0.015), YAW, tilt, CLOSE)
        else:
            yield from self.above((x, y + ay * now, z + az * now + 0.04), grip=CLOSE, clearance=0.03)
            yield from self.go((x, y, z + 0.015), YAW, grip=CLOSE)

    def button(self) -> Iterator[np.ndarray]:
        """Press with the closed fingertips, and let go."""
        x, y = np.array(self.scene.button_xy) + self.rng.uniform(-0.012, 0.012, 2)
        yield from self.above((x, y, scenes.BUTTON_Z + 0.03), grip=CLOSE, clearance=self.rng.uniform(0.02, 0.06))
        for _ in range(20):
            if self.table.pressed:
                break
            yield self.action((x, y, scenes.BUTTON_Z - 0.01), YAW, grip=CLOSE)
        yield from self.go((x, y, scenes.BUTTON_Z + 0.08), YAW, grip=CLOSE, near=0.02)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def block(self, i: int) -> np.ndarray:
        return np.array(self.table.blocks[i])

    def yaw_for(self, i: int, extra: float = 0.0) -> float:
        """The hand's yaw that lays the pads on the short side of block i, nearest to the present one, with room to turn by `extra`."""
        length = self.scene.block_length[BLOCKS[i]]
        every = math.pi if length > 0.06 else math.pi / 2
        yaw = self.block(i)[3]
        options = [yaw + k * every for k in range(-5, 6)]
        fits = [o for o in options if max(abs(o - YAW), abs(o + extra - YAW)) < scenes.MAX_TURN - 0.05]
        return min(fits, key=lambda o: abs(o - self.table.pose[5]) + 0.5 * abs(o - YAW))

    def grasp(self, i: int, extra_turn: float = 0.0) -> Iterator[np.ndarray]:
        """Take block i between the pads; up to three tries."""
        along = self.rng.uniform(-0.3, 0.3) * (self.scene.block_length[BLOCKS[i]] - 0.03)
        sink = self.rng.uniform(-0.004, 0.006)
        for _ in range(3):
            yaw = self.yaw_for(i, extra_turn)

            def aim(lift: float = 0.0) -> np.ndarray:
                x, y, z, turn = self.block(i)
                return np.array([x + along * math.cos(turn), y + along * math.sin(turn), z + sink + lift])

            yield from self.above(aim(), yaw, grip=OPEN, clearance=0.06)
            yield from self.go(aim, yaw, grip=OPEN, near=0.004)
            for _ in range(7):
                if self.table.held == i:
                    return
                yield self.action(aim(), yaw, grip=CLOSE)
            if self.table.held == i:
                return
            yield from self.go(lambda: aim(0.08), yaw, grip=OPEN, near=0.02)

    def grasp_task(self, verb: str) -> Iterator[np.ndarray]:
        """rotate, lift, unstack."""
        name = block_of(self.task)
        i = BLOCKS.index(name) if name else next((j for j in range(3) if isinstance(self.table.support[j], int)), 0)
        turn = (1 if self.task.endswith("left") else -1) * self.rng.uniform(1.15, 1.35) if verb == "rotate" else 0.0
        yield from self.grasp(i, turn)
        x, y, z = self.xyz
        if verb == "rotate":
            yaw = self.table.pose[5] + turn
            yield from self.go((x, y, z), yaw, grip=CLOSE)
            yield from self.go((x, y, z), yaw, grip=OPEN, steps=4)
        elif verb == "lift":
            yield from self.go((x, y, max(z + self.rng.uniform(0.09, 0.13), 0.60)), grip=CLOSE, near=0.01)
        else:
            spot = self.free_spot(i)
            yield from self.go((x, y, z + 0.08), grip=CLOSE, near=0.02)
            yield from self.lower((*spot, TABLE))

    def free_spot(self, i: int) -> tuple[float, float]:
        """A place on the table away from the other blocks, the button and the led."""
        taken = [self.block(j)[:2] for j in range(3) if j != i] + [self.scene.button_xy, self.scene.led_xyz[:2]]
        if isinstance(self.rng, Calm):  # the nearest free place, not any
            spots = sorted(((x, -0.12) for x in np.linspace(-0.3, 0.3, 25)), key=lambda spot: math.dist(spot, self.block(i)[:2]))
            return max(spots, key=lambda spot: all(math.dist(spot, other) > 0.11 for other in taken))
        while True:
            spot = self.rng.uniform((-0.3, -0.18), (0.3, -0.06))
            if all(math.dist(spot, other) > 0.11 for other in taken):
                return tuple(spot)

    def lower(self, at, yaw: float = YAW) -> Iterator[np.ndarray]:
        """Carry the held block over `at` (the place of its middle), set it down, open, go up."""
        i = self.table.held
        if i is None:
            return
        offset = lambda: self.xyz - np.array(self.table.solid[i].c)
        over = np.array(at) + [0, 0, 0.09]
        yield from self.go(lambda: np.array([*(over + offset())[:2], max(self.high + 0.02, over[2])]), yaw, grip=CLOSE, near=0.02)
        yield from self.go(lambda: over + offset(), yaw, grip=CLOSE, near=0.005)
        yield from self.go(lambda: np.array(at) + [0, 0, 0.003] + offset(), yaw, grip=CLOSE, near=0.003)
        x, y, z = self.xyz
        for _ in range(4):
            yield self.action((x, y, z), grip=OPEN)
        yield from self.go((x, y, z + 0.10), grip=OPEN, near=0.02)

    def put(self, held: bool) -> Iterator[np.ndarray]:
        """place_in_slider, place_in_drawer, stack_block with the block in the hand (taken up again if it was dropped)."""
        yaw = YAW + self.rng.uniform(-0.15, 0.15)
        if self.task == "stack_block":
            under = {s for s in self.table.support if isinstance(s, int)}
            below = [j for j in range(3) if j != self.table.held and j not in under and self.table.support[j] == "top"]
            j = below[self.rng.integers(len(below))] if below else 0
            x, y, z, yaw = self.block(j)
            yaw = min((yaw + k * math.pi / 2 for k in range(-4, 5)), key=lambda o: abs(o - YAW))
            yield from self.lower((x, y, z + scenes.BLOCK_SIDE), yaw)
        elif self.task == "place_in_drawer":
            out = self.table.joint["drawer"]
            y = scenes.TABLE_Y[0] - out / 2 + self.rng.uniform(-1, 1) * max(0.0, out / 2 - 0.06)
            yield from self.lower((self.scene.drawer_x + self.rng.uniform(-0.05, 0.05), y, scenes.DRAWER_FLOOR_Z + 0.02), yaw)
        else:
            half = self.scene.slider_travel / 2
            covered_right = self.table.joint["slider"] < half
            x = self.scene.cabinet_x[0] + half if covered_right else self.scene.cabinet_x[1] - half
            there = [self.block(j)[0] for j in range(3) if self.table.support[j] == "cabinet_floor"]
            drawn = np.outer(np.linspace(0, 1, 10), (1, -1)).ravel() if isinstance(self.rng, Calm) else self.rng.uniform(-1, 1, 20)
            spots = x + drawn * (half - 0.07)
            room = lambda spot: min([0.11, *(abs(spot - other) for other in there)])
            x = max(spots, key=room)  # the first that is clear, or the clearest
            y = 0.13 + self.rng.uniform(-0.015, 0.015)
            yield from self.lower((x, y, scenes.CABINET_FLOOR_Z + 0.02), yaw)

    def push(self, i: int, by: float) -> Iterator[np.ndarray]:
        """Push block i along x by `by` metres, slanting to a side as the rng says; seldom carry it, low, over what is in the way."""
        x, y, z, _ = self.block(i)
        way, slant = math.copysign(1.0, by), self.rng.uniform(-0.2, 0.2) if self.rng.random() < 0.7 else self.rng.uniform(-0.65, 0.65)
        if self.rng.random() < 0.06:
            yield from self.grasp(i)
            yield from self.lower((x + by, y + slant * abs(by), z), self.table.pose[5])
            return
        half = self.reach(i, 1.0, 0.0)
        back = half + FINGERS + self.rng.uniform(0.012, 0.03)
        start = np.array([x - way * back, y - slant * back, z - self.rng.uniform(0.0, 0.004)])
        yield from self.above(start, grip=CLOSE)
        yield from self.go(start, YAW, grip=CLOSE)
        end = start + [way * (back - half - FINGERS + abs(by)), slant * abs(by), 0]
        yield from self.go(end, YAW, grip=CLOSE)
        yield from self.go(end + [-way * 0.02, 0, 0], YAW, grip=CLOSE, near=0.006)

    def reach(self, i: int, dx: float, dy: float) -> float:
        """From the middle of block i to its rim in the direction (dx, dy)."""
        yaw, length = self.block(i)[3], self.scene.block_length[BLOCKS[i]]
        a, b = abs(dx * math.cos(yaw) + dy * math.sin(yaw)), abs(-dx * math.sin(yaw) + dy * math.cos(yaw))
        return min(length / 2 / max(a, 1e-9), scenes.BLOCK_SIDE / 2 / max(b, 1e-9))

    def into_drawer(self) -> Iterator[np.ndarray]:
        """Push the block that lies on the table in line with the drawer, then over the edge; or, as the rng says, carry it there."""
        on_table = [j for j in range(3) if self.table.support[j] == "top"]
        if not on_table:
            return
        i = min(on_table, key=lambda j: abs(self.block(j)[0] - self.scene.drawer_x))
        if self.rng.random() < 0.15:
            yield from self.grasp(i)
            yield from self.go((*self.xyz[:2], 0.60), grip=CLOSE, near=0.02)
            y = scenes.TABLE_Y[0] - self.table.joint["drawer"] / 2
            yield from self.lower((self.scene.drawer_x + self.rng.uniform(-0.05, 0.05), y, scenes.DRAWER_FLOOR_Z + 0.02))
            return
        off = self.scene.drawer_x + self.rng.uniform(-0.04, 0.04) - self.block(i)[0]
        if abs(self.scene.drawer_x - self.block(i)[0]) > 0.055:
            yield from self.push(i, off)
            yield from self.retreat()
        x, y, z, _ = self.block(i)
        back = self.reach(i, 0.0, 1.0) + 0.01 + self.rng.uniform(0.012, 0.025)
        yield from self.above((x, y + back, z), grip=CLOSE)
        yield from self.go((x, y + back, z), YAW, grip=CLOSE)
        yield from self.go((x, scenes.TABLE_Y[0] - 0.03, z), YAW, grip=CLOSE)
