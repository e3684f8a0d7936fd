"""A scripted expert with privileged state for CALVIN's own simulator: relative actions only, all 34 tasks, scenes A, B, C and D.

    expert = Expert(simulator, "open_drawer", rng)      # simulator: repro.sims.calvin.Calvin
    while not simulator.done("open_drawer"):
        simulator.step(expert.act(), render=False)

A script is a generator of actions that follows the things it handles: it re-aims at their present place, reads where drawer, door,
switch and button are from the simulator (they differ by scene), and tries a missed grasp again. Speeds, heights, grasp points, tilts,
paths and spots vary with the rng. The environment adds relative actions to a target pose of its own, so the script steers that
target and adds what the arm lacks. This is smooth scripted motion, not CALVIN's teleoperated play; records must say so.

The hand: yaw about the vertical, `tilt` (rad) from pointing straight down towards pointing ahead (+y at yaw pi/2). Pads close along
the hand's y, which is world x at yaw pi/2. The tcp lies between the pads, 0.02 m above the fingertips.
"""

import math
from collections.abc import Iterator

import numpy as np

OPEN, CLOSE = 1.0, -1.0
POSITION_STEP, ROTATION_STEP = 0.02, 0.05  # m and rad of a unit action
TABLE, HALF = 0.44, 0.02  # height of the table top (and of the cabinet's floor) in all four scenes; half a block's height and width (m)
FRONT = -0.18  # y of the table's front edge (m)
YAW, YAWS = 1.5, (-0.1, 3.9)  # the hand's yaw at rest, and what the wrist can do (rad)
FINGERS, OPENED = 0.013, 0.052  # from the tcp to the outside of the closed, of the open fingers, along the hand's y (m)


def wrap(angle: float) -> float:
    """The same angle (rad) in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def pointing(yaw: float, tilt: float) -> np.ndarray:
    """Unit vector (3,) along which the fingers point."""
    return np.array([math.sin(tilt) * math.cos(yaw), math.sin(tilt) * math.sin(yaw), -math.cos(tilt)])


def rim(length: float, yaw: float, dx: float, dy: float) -> float:
    """From the middle of a block of this length (m) and yaw (rad) to its rim, in the direction (dx, dy)."""
    along, across = abs(dx * math.cos(yaw) + dy * math.sin(yaw)), abs(dy * math.cos(yaw) - dx * math.sin(yaw))
    return min(length / 2 / max(along, 1e-9), HALF / max(across, 1e-9))


def within(yaw: float) -> float:
    """The same yaw (rad) within pi of the middle of what the wrist can do, so that differences never lead through its stop."""
    return wrap(yaw - sum(YAWS) / 2) + sum(YAWS) / 2


def hand_yaws(block_yaw: float, short: bool, now: float, turn: float = 0.0) -> list[float]:
    """The hand's yaws (rad) that lay the pads on opposite sides of a block, with room to turn by `turn` afterwards; the handiest first.
    A short block may be held along either side, a long one only across."""
    options = [block_yaw + k * (math.pi / 2 if short else math.pi) for k in range(-8, 9)]
    stop = lambda yaw: max(0.0, YAWS[0] - yaw, yaw - YAWS[1])
    ease = lambda o: 0.5 * abs(o - now) + abs(o - YAW) + abs(o + turn - YAW) + 10 * (stop(o) + stop(o + turn))
    return sorted(options, key=ease)[: 2 if short else 1]


class Expert:
    """`act() -> (7,)` float64, one step of the script for `task`; stands still once the script is over."""

    def __init__(self, simulator, task: str, rng: np.random.Generator):
        self.script = Script(simulator, task, rng).run()

    def act(self) -> np.ndarray:
        return next(self.script)


class Script:
    """One variation of one task as a generator of actions. Positions in m (world), angles in rad."""

    def __init__(self, simulator, task: str, rng: np.random.Generator):
        self.sim, self.task, self.rng = simulator, task, rng
        self.bullet, self.robot, self.client = simulator.env.p, simulator.env.robot, {"physicsClientId": simulator.env.cid}
        self.speed = rng.uniform(0.7, 1.0)  # share of the greatest step
        self.high = rng.uniform(0.62, 0.68)  # of the tcp while it travels
        self.grip, self.sway, self.lack = float(self.robot.gripper_action), np.zeros(3), np.zeros(3)
        self.names = sorted(simulator.info["scene_info"]["movable_objects"])  # block_blue, block_pink, block_red
        self.mine = next((name for name in self.names if name[6:] in task), None)
        self.start = {name: (self.at(name), self.yaw(name)) for name in self.names}
        self.carried = self.held()

    def run(self) -> Iterator[np.ndarray]:
        verb, _, rest = self.task.partition("_")
        way = -1 if rest.endswith("left") else 1
        script = {
            "open": lambda: self.drawer(True), "close": lambda: self.drawer(False), "move": lambda: self.slider(way),
            "turn": lambda: self.button() if rest.endswith("led") else self.switch(rest.startswith("on")),
            "rotate": lambda: self.rotate(-way), "lift": self.lift, "unstack": self.unstack, "place": self.put, "stack": self.put,
            "push": lambda: self.into_drawer() if rest == "into_drawer" else self.push_task(way),
        }[verb]  # fmt: skip
        if self.grip > 0 and self.sim.info["robot_info"]["gripper_opening_width"] < 0.075:
            yield from self.hold(4)  # the last task ended while the fingers were opening
        if self.carried and verb not in ("place", "stack"):
            if self.at(self.carried)[2] > TABLE + 1.6 * HALF:  # in the air, as after unstacking
                yield from self.lower(self.free_spot(self.carried))
            else:
                yield from self.hold(5, OPEN)
        while True:
            yield from self.retreat()
            yield from script()
            yield from self.hold(8)
            while self.sim.done(self.task):
                yield from self.hold(1)

    # --- what there is ------------------------------------------------------------------------------------------------

    @property
    def xyz(self) -> np.ndarray:
        return np.array(self.sim.info["robot_info"]["tcp_pos"])

    @property
    def angles(self) -> tuple[float, float]:
        """(yaw, tilt) of the hand."""
        _, pitch, yaw = self.sim.info["robot_info"]["tcp_orn"]
        return within(yaw), -pitch

    def block(self, name: str) -> dict:
        return self.sim.info["scene_info"]["movable_objects"][name]

    def at(self, name: str) -> np.ndarray:
        """Where the block's middle is (3,)."""
        return np.array(self.block(name)["current_pos"])

    def axes(self, name: str) -> np.ndarray:
        """Its own axes as columns (3, 3); the first is the long one."""
        return np.array(self.bullet.getMatrixFromQuaternion(self.block(name)["current_orn"])).reshape(3, 3)

    def yaw(self, name: str) -> float:
        """The direction of its long axis, or of a level one if that stands upright."""
        axes = self.axes(name)
        x, y, _ = axes[:, 0] if abs(axes[2, 0]) < 0.7 else axes[:, 1]
        return math.atan2(y, x)

    def length(self, name: str) -> float:
        return self.bullet.getCollisionShapeData(self.block(name)["uid"], -1, **self.client)[0][3][0]

    def rests_on(self, name: str) -> str:
        """base (the table), plank (the cabinet), drawer, the name of a block below, or nothing."""
        touched = {(contact[2], contact[4]) for contact in self.block(name)["contacts"]}
        things = {(self.sim.table, self.sim.links["plank_link"]): "plank", (self.sim.table, self.sim.links["drawer_link"]): "drawer",
                  (self.sim.table, -1): "base"}  # fmt: skip
        things |= {(self.block(o)["uid"], -1): o for o in self.names if self.at(o)[2] < self.at(name)[2] - HALF}
        return next((what for part, what in things.items() if part in touched), "nothing")

    def obstacles(self, name: str) -> list[np.ndarray]:
        """Where the other blocks and the button are (2,)."""
        return [self.at(other)[:2] for other in self.names if other != name] + [self.box("button_link").mean(0)[:2]]

    def held(self) -> str | None:
        """The block between the closed pads."""
        if self.grip > 0 or self.sim.info["robot_info"]["gripper_opening_width"] < 0.02:
            return None
        for name in self.names:
            links = {contact[4] for contact in self.block(name)["contacts"] if contact[2] == self.robot.robot_uid}
            both = all(links & {finger, finger + 1} for finger in self.robot.gripper_joint_ids)  # each finger or its tip
            if both and np.abs(self.at(name) - self.xyz).max() < 0.05:
                return name
        return None

    def box(self, link: str) -> np.ndarray:
        """(low, high) corners (2, 3) of a part of the table, where it is now."""
        return np.array(self.bullet.getAABB(self.sim.table, self.sim.links[link], **self.client))

    def joint(self, name: str) -> float:
        """How far drawer or slide is open (m)."""
        return self.sim.info["scene_info"]["doors"][f"base__{name}"]["current_state"]

    def travel(self) -> float:
        """How far the sliding door can go (m)."""
        return self.bullet.getJointInfo(self.sim.table, self.sim.links["slide_link"], **self.client)[9]

    # --- motion -------------------------------------------------------------------------------------------------------

    def action(self, xyz, yaw: float, tilt: float = 0.0, grip: float | None = None) -> np.ndarray:
        """One action that brings the environment's target pose nearer to a pose: straight, no faster than `speed`, with a slight sway
        while the way is long."""
        self.grip = self.grip if grip is None else grip
        way, late = np.asarray(xyz) - self.xyz, self.robot.target_pos - self.lack - self.xyz
        if np.linalg.norm(way) > 0.02:  # the arm lags along the way, which does no harm, and drifts off it, which does
            late = late - (late @ way) / (way @ way) * way
        self.lack = np.clip(self.lack + 0.2 * late, -0.025, 0.025)
        move = (np.asarray(xyz) + self.lack - self.robot.target_pos) / POSITION_STEP
        roll, pitch, turn = self.robot.target_orn
        spin = np.array([wrap(math.pi - roll), -tilt - pitch, within(yaw) - within(turn)]) / ROTATION_STEP
        far = max(float(np.abs(move).max()), 1e-9)
        self.sway = 0.8 * self.sway + 0.06 * self.rng.standard_normal(3)
        move = move * min(0.6, self.speed / far) + self.sway * (far > 4)
        return np.concatenate([np.clip(move, -1, 1), np.clip(0.6 * spin, -1, 1), [self.grip]])

    def go(self, where, yaw: float | None = None, tilt: float | None = None, grip: float | None = None, near: float = 0.003,
           steps: int = 70) -> Iterator[np.ndarray]:  # fmt: skip
        """Actions until the hand is within `near` of `where` (a point, or a function that gives one) and turned as asked, or stuck."""
        yaw, tilt = self.angles[0] if yaw is None else yaw, self.angles[1] if tilt is None else tilt
        before, still, self.lack = None, 0, np.zeros(3)
        for _ in range(steps):
            xyz, pose = np.asarray(where() if callable(where) else where), np.array([*self.xyz, *self.angles])
            turned = abs(wrap(yaw - pose[3])) < 0.03 and abs(tilt - pose[4]) < 0.03
            still = still + 1 if before is not None and np.abs(pose - before).max() < 5e-4 else 0
            if still > 4 or (turned and np.abs(xyz - pose[:3]).max() < near):
                return
            before = pose
            yield self.action(xyz, yaw, tilt, grip)

    def hold(self, steps: int, grip: float | None = None) -> Iterator[np.ndarray]:
        """Stand still, perhaps while the fingers move."""
        (yaw, tilt), xyz, self.lack = self.angles, self.robot.target_pos.copy(), np.zeros(3)
        for _ in range(steps):
            yield self.action(xyz, yaw, tilt, grip)

    def back(self, far: float, grip: float | None = None, near: float = 0.015) -> Iterator[np.ndarray]:
        """Draw back along the fingers by `far` metres."""
        yield from self.go(self.xyz - far * pointing(*self.angles), grip=grip, near=near)

    def retreat(self) -> Iterator[np.ndarray]:
        """Away from wherever the last task left the hand: back along the fingers if they are tilted, then up and clear of the cabinet."""
        if abs(self.angles[1]) > 0.1 and self.xyz[1] > -0.1:
            yield from self.back(0.10)
        x, y, z = self.xyz
        if z < 0.58:
            yield from self.go((x, y, 0.61), near=0.015)
        if y > -0.03:
            yield from self.go((x, -0.08, max(self.xyz[2], 0.61)), near=0.03)

    def reach(self, where, yaw: float = YAW, tilt: float = 0.0, grip: float | None = None, clearance: float = 0.07,
              near: float = 0.003) -> Iterator[np.ndarray]:  # fmt: skip
        """Travel high, then come to `where` along the fingers from `clearance` before it."""
        aim = where if callable(where) else lambda: np.asarray(where)
        before = lambda: aim() - clearance * pointing(yaw, tilt)
        x, y, z = before() + (*self.rng.normal(0, 0.01, 2), 0)
        if math.dist(self.xyz[:2], (x, y)) > 0.03:
            yield from self.go((x, min(y, -0.05), max(self.high, z)), yaw, tilt, grip, near=0.025)
        yield from self.go(before, yaw, tilt, grip, near=0.006)
        yield from self.go(aim, yaw, tilt, grip, near)

    def stoop(self, xyz) -> float:
        """The tilt with which closed fingers get there: far from its base the arm is too short to come from above."""
        return float(np.clip(3 * (math.dist(xyz[:2], self.robot.base_position[:2]) - 0.66), 0.0, 0.5))

    # --- furniture ----------------------------------------------------------------------------------------------------

    def drawer(self, opens: bool) -> Iterator[np.ndarray]:
        """Hook the closed fingers behind the bar and pull, or push the bar from the front."""
        x = self.box("drawer_link")[:, 0].mean() + self.rng.uniform(-0.06, 0.06)
        bar, out, z = self.box("drawer_link")[0][1] + 0.015, self.joint("drawer"), self.rng.uniform(0.380, 0.390)
        if opens:
            yield from self.reach((x, bar + 0.032, z), grip=CLOSE)
            yield from self.go((x, bar + out - 0.22, z), YAW, 0.0, CLOSE)
        else:
            z -= self.rng.uniform(0.0, 0.02)
            yield from self.reach((x, bar - self.rng.uniform(0.035, 0.06), z), grip=CLOSE)
            yield from self.go((x, bar + out + 0.005, z), YAW, 0.0, CLOSE)

    def slider(self, way: int) -> Iterator[np.ndarray]:
        """Push the handle sideways with the closed fingers; way -1 left, 1 right."""
        handle, beside = self.box("slide_link")[:, 0].mean(), 0.02 + FINGERS
        z = self.rng.uniform(0.51, 0.54)
        y = -0.02 + (z - 0.525) / math.sqrt(3) + self.rng.uniform(-0.006, 0.006)  # the handle leans back by 30 degrees
        start = (handle - way * (beside + self.rng.uniform(0.015, 0.035)), y, z)
        tilt = self.stoop(start)
        yield from self.reach(start, YAW, tilt, CLOSE, clearance=0.11)
        more = self.joint("slide") if way > 0 else self.travel() - self.joint("slide")
        yield from self.go((handle + way * (more + 0.01 - beside), y, z), YAW, tilt, CLOSE)

    def switch(self, on: bool) -> Iterator[np.ndarray]:
        """Lift the lever from below with tilted fingers, or press it down from above; it slides along (0, 1/2, 0.87)."""
        low, high = self.box("switch_link")
        bar = np.array([(low[0] + high[0]) / 2 - self.rng.uniform(0, 0.04), low[1] + 0.022, low[2] + 0.045])
        up, tilt = np.array([0.0, 0.5, math.sqrt(0.75)]), self.rng.uniform(0.7, 0.85) if on else self.rng.uniform(0.4, 0.55)
        start, way = (bar + (0, -0.01, -0.05), 0.12) if on else (bar + (0, 0.005, 0.05), -0.12)
        yield from self.reach(start, YAW, tilt, CLOSE)
        yield from self.go(start + way * up, YAW, tilt, CLOSE)

    def button(self) -> Iterator[np.ndarray]:
        """Press with the closed fingertips, and let go."""
        x, y, _ = self.box("button_link").mean(0) + self.rng.uniform(-0.012, 0.012, 3)
        top = self.box("button_link")[1][2]
        yield from self.reach((x, y, top + 0.035), grip=CLOSE, clearance=self.rng.uniform(0.02, 0.06), near=0.01)
        yield from self.go((x, y, top - 0.01), YAW, 0.0, CLOSE, steps=12)
        yield from self.go((x, y, top + 0.09), YAW, 0.0, CLOSE, near=0.02)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def room(self, name: str, yaw: float) -> float:
        """Distance (m, at most 0.03) of the open fingers at a block's sides from what they could hit; negative: no room."""
        fingers = self.at(name)[:2] + np.array([[math.sin(yaw), -math.cos(yaw)]]) * [[OPENED], [-OPENED]]
        sizes = [0.035 if abs(self.at(o)[2] - self.at(name)[2]) < 0.03 else 0.0 for o in self.names if o != name] + [0.052]
        gaps = [math.dist(finger, thing) - size for finger in fingers for thing, size in zip(self.obstacles(name), sizes, strict=True)]
        if self.rests_on(name) == "drawer":
            (left, front, _), (right, *_) = self.box("drawer_link")
            gaps += [*(fingers[:, 0] - left - 0.035), *(right - 0.035 - fingers[:, 0]), *(fingers[:, 1] - front - 0.118)]
        return min(gaps + [0.03])

    def grasp(self, name: str, turn: float = 0.0) -> Iterator[np.ndarray]:
        """Take the block between the pads, with room to turn it by `turn` afterwards; up to three tries."""
        for _ in range(3):
            yield from self.take(name, turn)
            if self.held() == name:
                return
            yield from self.hold(4, OPEN)
            yield from self.back(0.08, OPEN)

    def take(self, name: str, turn: float) -> Iterator[np.ndarray]:
        """One try. The hand leans back where cabinet, door handle or table edge are behind the block."""
        where, length, y = self.rests_on(name), self.length(name), self.at(name)[1]
        yaws = hand_yaws(self.yaw(name), length < 0.06, self.angles[0], turn)
        yaw = yaws[0] if where == "plank" else max(yaws, key=lambda o: min(0.0, self.room(name, o)))
        tilt = 0.0
        if where == "plank" or y > -0.08 or (where == "drawer" and y > FRONT - 0.05):
            tilt = self.rng.uniform(0.75, 0.9) if where == "plank" else self.rng.uniform(0.45, 0.6)
        across = abs(math.sin(yaw - self.yaw(name))) > 0.5  # held by its ends
        along, high = 0.0 if across else self.rng.uniform(-0.3, 0.3) * (length - 0.03), self.rng.uniform(0.003, 0.008) + 0.004 * (tilt > 0)
        off = along * np.array([math.cos(self.yaw(name)), math.sin(self.yaw(name))]) if where != "plank" else self.off_walls(name)
        aim = lambda: self.at(name) + (*off, high)
        yield from self.reach(aim, yaw, tilt, OPEN)
        for _ in range(9):
            if self.held() == name:
                break
            yield self.action(aim(), yaw, tilt, CLOSE)
        yield from self.hold(2, CLOSE)

    def off_walls(self, name: str) -> np.ndarray:
        """Where (x, y) to take a block in the cabinet, from its middle: not deep inside, and the open fingers clear of walls and door."""
        x, y, _ = self.at(name)
        edges = sorted([*self.box("plank_link")[:, 0], *self.box("slide_link")[:, 0]])
        left = max(edge for edge in edges if edge < x or edge == edges[0])
        right = min(edge for edge in edges if edge > x or edge == edges[-1])
        free = np.clip(x, min(left + 0.07, (left + right) / 2), max(right - 0.07, (left + right) / 2))
        forward = np.clip(0.092 - y, 0.012 - self.length(name) / 2, 0.0) + self.rng.uniform(-0.004, 0.004)
        return np.array([np.clip(free - x, -0.02, 0.02), forward])

    def lift(self) -> Iterator[np.ndarray]:
        """Take it up, out of the cabinet or drawer along the fingers; push the door out of the way first if need be."""
        if self.rests_on(self.mine) == "plank":
            x, (left, *_), (right, *_) = self.at(self.mine)[0], *self.box("slide_link")
            way = 1 if x < self.box("plank_link")[:, 0].mean() else -1
            gap, more = (left - x, self.joint("slide")) if way > 0 else (x - right, self.travel() - self.joint("slide"))
            if gap < 0.115 and more > 0.01:
                yield from self.slider(way)
                yield from self.retreat()
        yield from self.grasp(self.mine)
        yield from self.back(self.rng.uniform(0.1, 0.13), CLOSE)

    def rotate(self, way: int) -> Iterator[np.ndarray]:
        """Turn it between the pads, on the table or a little above it; way 1 left (counter-clockwise), -1 right."""
        turn = way * self.rng.uniform(1.2, 1.4) - wrap(self.yaw(self.mine) - self.start[self.mine][1])
        yield from self.grasp(self.mine, turn)
        xyz, yaw = self.xyz + (0, 0, self.rng.choice([0.0, 0.015, 0.025])), self.angles[0] + turn
        yield from self.go(xyz, grip=CLOSE, near=0.01)
        yield from self.go(xyz, yaw, grip=CLOSE)
        yield from self.hold(4, OPEN)

    def unstack(self) -> Iterator[np.ndarray]:
        """Take the upper block down. The oracle is content as soon as it leaves the lower one, so the task ends with it in the air."""
        top = max(self.names, key=lambda name: (self.rests_on(name) in self.names, self.at(name)[2]))
        yield from self.grasp(top)
        yield from self.lower(self.free_spot(top))

    def free_spot(self, name: str) -> np.ndarray:
        """A place for the middle of a block on the table near where it is now, away from the other blocks and the button."""
        x, y, _ = self.at(name)
        spots = [(x, y) + self.rng.uniform(-0.15, 0.15, 2) for _ in range(60)]
        spots = [spot for spot in spots if FRONT + 0.04 < spot[1] < -0.05 and abs(spot[0]) < 0.35] or [np.array([0.0, -0.1])]
        room = lambda spot: min(math.dist(spot, thing) for thing in self.obstacles(name))
        return np.array([*min(spots, key=lambda spot: math.dist(spot, (x, y)) + 10 * max(0.0, 0.1 - room(spot))), TABLE + HALF])

    def lower(self, at, yaw: float | None = None, tilt: float = 0.0) -> Iterator[np.ndarray]:
        """Carry the held block over `at` (the place of its middle), set it down along the fingers, open, draw back. The hand leans back
        as much as it did when it took the block, so that the block lies level, or by `tilt`."""
        name = self.held()
        if name is None:
            return
        yaw, now = self.angles[0] if yaw is None else yaw, self.angles
        up = max(self.axes(name).T, key=lambda axis: abs(axis[2]))  # the block's axis that is nearly upright
        leans = math.atan2(np.sign(up[2]) * (up[0] * math.cos(now[0]) + up[1] * math.sin(now[0])), abs(up[2]))
        tilt = max(tilt, now[1] + leans)
        goal = lambda before: np.array(at) + (0, 0, 0.003) - before * pointing(yaw, tilt) + self.xyz - self.at(name)
        above = lambda: np.array([goal(0.09)[0], min(goal(0.09)[1], -0.05), max(self.high, goal(0.09)[2])])
        yield from self.go((*self.xyz[:2], above()[2]), grip=CLOSE, near=0.02)
        yield from self.go(above, yaw, tilt, CLOSE, near=0.02)
        yield from self.go(lambda: goal(0.09), yaw, tilt, CLOSE, near=0.005)
        yield from self.go(lambda: goal(0.0), yaw, tilt, CLOSE)
        yield from self.hold(4, OPEN)
        yield from self.back(0.10, OPEN)

    def put(self) -> Iterator[np.ndarray]:
        """place_in_slider, place_in_drawer, stack_block, with the block that is in the hand (taken up again if it was dropped)."""
        name = self.carried
        if name and self.held() != name:
            yield from self.grasp(name)
        if self.held() is None:
            return
        straight = hand_yaws(YAW, False, self.angles[0])[0]
        if self.task == "place_in_slider":
            yield from self.lower(self.cabinet_spot(name), straight, self.rng.uniform(0.5, 0.65))
        elif self.task == "place_in_drawer":
            yield from self.lower(self.drawer_spot(), straight)
        else:
            others = [o for o in self.names if o != name]
            free = [o for o in others if self.rests_on(o) == "base" and all(self.rests_on(b) != o for b in others)] or others
            below = free[self.rng.integers(len(free))]
            turn = (self.yaw(below) - self.yaw(name) + math.pi / 4) % (math.pi / 2) - math.pi / 4
            aside = self.at(below) - self.box("button_link").mean(0)  # a long block must not come to lie on the button
            across = lambda extra: abs(math.cos(self.yaw(name) + turn + extra - math.atan2(aside[1], aside[0])))
            near = self.length(name) > 0.05 and math.hypot(*aside[:2]) < 0.1
            extra = min(0.0, math.copysign(math.pi / 2, YAW - self.angles[0] - turn), key=across) if near else 0.0
            yield from self.lower(self.at(below) + (0, 0, 2 * HALF), self.angles[0] + turn + extra)

    def cabinet_spot(self, name: str) -> np.ndarray:
        """A place for the middle of a block in the open part of the cabinet, away from walls, door and other blocks."""
        (left, *_), (right, *_) = self.box("plank_link")
        (door_left, *_), (door_right, *_) = self.box("slide_link")
        there = [self.at(o)[0] for o in self.names if o != name and self.rests_on(o) == "plank"]
        walls = (left, right, door_left, door_right)
        room = lambda x: min([0.07, *(abs(x - wall) for wall in walls)]) + min([0.09, *(abs(x - other) for other in there)])
        x = max((x for x in self.rng.uniform(left + 0.05, right - 0.05, 60) if not door_left < x < door_right), key=room)
        return np.array([x, self.rng.uniform(0.082, 0.102), TABLE + HALF])

    def drawer_spot(self) -> np.ndarray:
        """Where to let a block fall into the open drawer."""
        x, deep = self.box("drawer_link")[:, 0].mean() + self.rng.uniform(-0.08, 0.08), self.joint("drawer")
        return np.array([x, FRONT - deep / 2 + 0.01 + self.rng.uniform(-1, 1) * max(0.0, deep / 2 - 0.06), 0.385])

    def push_task(self, way: int) -> Iterator[np.ndarray]:
        """Push the block to the left or right by what it still lacks, slanting to a side where that way is freer."""
        x, y, _ = self.at(self.mine)
        by = max(0.107 - way * (x - self.start[self.mine][0][0]), 0.02)
        path = lambda slant: [(x + part * way * by, y + part * slant * by) for part in (0.4, 0.7, 1.0)]
        room = lambda slant: min(math.dist(spot, thing) for spot in path(slant) for thing in self.obstacles(self.mine))
        slants = [*self.rng.uniform(-0.2, 0.2, 3), *self.rng.uniform(-0.7, 0.7, 12)]
        slants = [slant for slant in slants if FRONT + 0.03 < y + slant * by < -0.03] or [0.0]
        slant = next((slant for slant in slants if room(slant) > 0.1), max(slants, key=room))
        yield from self.push(self.mine, np.array([way * by, slant * by, 0.0]), self.rng.uniform(0.65, 0.85))

    def push(self, name: str, by: np.ndarray, speed: float) -> Iterator[np.ndarray]:
        """Push the block by a vector (3,) in m with the closed fingers and draw them back while it slides on."""
        start, far = self.at(name), float(np.linalg.norm(by))
        along = by / far
        back = rim(self.length(name), self.yaw(name), *along[:2]) + FINGERS + self.rng.uniform(0.012, 0.03)
        low = start + (0, 0, self.rng.uniform(0.003, 0.008))
        tilt = self.stoop(low)
        yield from self.reach(low - back * along, YAW, tilt, CLOSE)
        before, usual, self.speed = self.xyz, self.speed, speed
        for _ in range(60):
            moved, fast, before = (self.at(name) - start) @ along, 30 * (self.xyz - before) @ along, self.xyz  # m, m/s
            if moved > 0.001 and moved + max(fast**2 / 8, fast / 30 + 0.005) > far:  # 8 m/s^2: twice what friction brakes with
                break
            yield self.action(low + (far + 0.05) * along, YAW, tilt, CLOSE)
        self.speed = 1.0
        yield from self.go(self.xyz - 0.04 * along, YAW, tilt, CLOSE, near=0.02)
        self.speed = usual

    def into_drawer(self) -> Iterator[np.ndarray]:
        """Push the block on the table over the edge, slowly so that it falls near it; carry it if it is not in line with the drawer."""
        middle = self.box("drawer_link")[:, 0].mean()
        aside = {name: abs(self.at(name)[0] - middle) for name in self.names if self.rests_on(name) == "base"}
        if not aside:
            return
        name = min(aside, key=aside.get)
        y = self.at(name)[1]
        if aside[name] > 0.15 or y > -0.08 or self.rng.random() < 0.1:  # behind it is the door's handle
            yield from self.grasp(name)
            yield from self.lower(self.drawer_spot())
        else:
            yield from self.push(name, np.array([0.0, FRONT - 0.03 - y, 0.0]), self.rng.uniform(0.25, 0.4))
