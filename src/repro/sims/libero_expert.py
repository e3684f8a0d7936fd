"""A scripted expert with privileged state for LIBERO's pick-and-place tasks, and the recorder of its episodes. Scripted, not human.

    expert = Expert(simulator, task, rng)               # simulator: repro.sims.libero.Libero, after reset
    while not simulator.done(task):
        simulator.step(expert.act(), render=False)

A closed loop over waypoints: above the object, down, close, lift, over the destination, down, open, away. It aims at where the object
is now, rises again when the object is far to the side of the low hand, and begins again when a grasp or a placement failed. What fits
between the fingers is grasped across its narrow side, what doesn't (a bowl) by its rim, where there is most room for hand and finger.
Speeds, heights, grasp points and the place to let go vary with the rng. Tasks: all of libero_object and libero_spatial; others only
where their goal is one movable object in or on something.
"""

import math

import numpy as np

from repro.machine import UserError

STEP, TURN = 0.05, 0.5  # m and rad of a unit action
OPEN, CLOSE = 1.0, -1.0
FITS, REACH = 0.068, 0.035  # m: the widest thing the fingers close around (they open 0.08); how far below its top they hold it
RIMS = (0.006, 0.018)  # m inside the widest extent: where a rim is grasped
TURNS = sorted((k * math.pi / 12 for k in range(-12, 12)), key=lambda turn: (not -math.pi / 2 <= turn < math.pi / 2, abs(turn)))  # yaws
OFF = 0.03  # m to the side of where it should be: the low hand rises again
PUSH = 6  # steps of a push


def wrap(angle: float) -> float:
    """The same angle (rad) of a hand that looks the same after half a turn, in [-pi/2, pi/2)."""
    return (angle + math.pi / 2) % math.pi - math.pi / 2


class Expert:
    """`act() -> (7,)` float64: xyz, axis-angle, gripper +1 open / -1 close. With `noise` (scale) and `pushes` (probability of one in an
    episode) the hand is disturbed; `clean` is then what the expert wanted at the last step."""

    def __init__(self, simulator, task: str, rng: np.random.Generator, noise: float = 0.0, pushes: float = 0.0):
        goals, self.sim, self.world, self.rng = simulator.world.parsed_problem["goal_state"], simulator, simulator.world, rng
        if len(goals) != 1 or goals[0][0] not in ("in", "on") or goals[0][1] not in self.world.objects_dict:
            raise UserError(f"the scripted expert cannot do {task!r}", "one movable object in or on something", goals,
                            "libero_object or libero_spatial")
        relation, self.item, self.destination = goals[0]
        self.data, model = self.world.sim.data, self.world.sim.model
        thing = self.world.objects_dict[self.item]
        self.body = model.body_name2id(thing.root_body)
        mine = [model.geom_name2id(name) for name in thing.contact_geoms]
        robot = {model.geom_name2id(name) for part in (self.world.robots[0].robot_model, self.world.robots[0].gripper)
                 for name in part.contact_geoms}
        self.others = [g for g in range(model.ngeom) if model.geom_contype[g] and g not in robot and g not in mine]
        signs = np.array(np.meshgrid(*[(-1, 1)] * 3)).reshape(3, -1).T
        self.corners = np.concatenate([middle + (signs * half) @ axes.T for middle, axes, half in map(self._box, mine)])
        self.corners = (self.corners - self.data.body_xpos[self.body]) @ self.data.body_xmat[self.body].reshape(3, 3)
        self.speed, self.high = rng.uniform(0.75, 1.0), rng.uniform(0.07, 0.11)  # share of the greatest step; hover above the object (m)
        self.inside = relation == "in"  # then the object's middle has to come down to the region's, else its lowest point to the top
        self.carry = rng.uniform(0.16, 0.22) if self.inside else rng.uniform(0.09, 0.14)  # how much higher to carry it (m)
        self.shut = int(rng.integers(10, 14))  # steps to close
        self.aim, self.spot = rng.normal(0, 0.003, 2).clip(-0.006, 0.006), rng.normal(0, 0.004, 2).clip(-0.01, 0.01)
        self.noise, self.push = noise, rng.normal(size=3)
        self.drift, self.push = np.zeros(3), 1.2 * self.push / np.linalg.norm(self.push)
        self.push_at = int(rng.integers(5, 90)) if rng.random() < pushes else None
        self.pushing, self.steps, self.tried, self.before = 0, 0, [], np.zeros(3)
        self._go("above")

    def _box(self, geom: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Middle (3,), axes as columns (3, 3) and half sizes (3,) of a geom's bounding box (m)."""
        middle, half = np.split(self.world.sim.model._model.geom_aabb[geom], 2)
        axes = self.data.geom_xmat[geom].reshape(3, 3)
        return self.data.geom_xpos[geom] + axes @ middle, axes, half

    # --- what there is ----------------------------------------------------------------------------------------------

    @property
    def hand(self) -> np.ndarray:
        """Where the point between the fingertips is (3,)."""
        return self.sim.seen["robot0_eef_pos"]

    @property
    def yaw(self) -> float:
        """The direction of the fingers' axis, from where it is at rest (rad): 0 closes along the world's y."""
        x, y, z, w = self.sim.seen["robot0_eef_quat"]
        return wrap(math.atan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z)))

    @property
    def points(self) -> np.ndarray:
        """Corners (N, 3) of the object's parts, now."""
        return self.data.body_xpos[self.body] + self.corners @ self.data.body_xmat[self.body].reshape(3, 3).T

    def grasp(self) -> tuple[np.ndarray, float]:
        """Where to close (3,), and the hand's yaw (rad)."""
        points = self.points
        low, top = points[:, 2].min(), points[:, 2].max()
        z = max(top - self.depth, low + 0.011)
        level = np.abs(points[:, 2] - z) < 0.03
        near = points[level] if top - low > 0.08 and level.sum() > 7 else points  # of something tall, the part between the fingers
        middle = (near.min(0) + near.max(0))[:2] / 2
        width = lambda yaw: np.ptp(near[:, :2] @ self._away(yaw))
        narrow = [yaw for yaw in TURNS[: len(TURNS) // 2] if width(yaw) < FITS]
        at = lambda yaw, rim: np.array([*(middle if rim is None else middle + self._away(yaw) * (width(yaw) / 2 - rim)), z])
        if self.way is None:  # chosen once for each approach
            ways = [(yaw, None) for yaw in narrow] or [(yaw, rim) for yaw in TURNS for rim in RIMS]
            room = lambda way: min(self._room(at(*way), self._away(way[0]), way[1] is None), 0.02)
            if not self.tried and narrow and narrow[0] == 0.0 and room((0.0, None)) > 0.003:
                ways = ways[:1]
            worth = lambda way: room(way) - 0.003 * abs(wrap(way[0])) - (0.1 * width(way[0]) if way[1] is None else 0.0)
            self.way = max(ways, key=lambda way: worth(way) - 0.01 * self.tried.count(way))
            self.tried.append(self.way)
        return at(*self.way), wrap(self.way[0])

    @staticmethod
    def _away(yaw: float) -> np.ndarray:
        """Direction (2,) of the fingers' axis of a hand at this yaw."""
        return np.array([-math.sin(yaw), math.cos(yaw)])

    def _room(self, at: np.ndarray, away: np.ndarray, both: bool) -> float:
        """How far (m) the outer finger, or both, and the palm of an open hand that grasps at `at` would be from everything else."""
        sides, along = (-1, 1) if both else (1,), np.array([-away[1], away[0]])
        finger = [(side * r, z) for side in sides for r in (0.036, 0.055) for z in (-0.01, 0.02, 0.05)]
        palm = [(r, z) for r in (-0.1, -0.05, 0.0, 0.05, 0.1) for z in (0.042, 0.1)]
        spots = np.array([at + (*(r * away + w * along), z) for part, half in ((finger, 0.01), (palm, 0.03)) for r, z in part
                          for w in (-half, half)])
        reach = lambda box: np.linalg.norm(np.maximum(np.abs((spots - box[0]) @ box[1]) - box[2], 0), axis=1).min()
        above = lambda box: box[0][2] + np.abs(box[1][2]) @ box[2] > self.lowest + 0.005  # not what the object stands on
        return min((reach(box) for box in map(self._box, self.others) if above(box)), default=1.0)

    # --- the script ---------------------------------------------------------------------------------------------------

    def _go(self, phase: str) -> None:
        self.phase, self.since = phase, 0
        if phase == "above":
            self.way = None
            self.depth = REACH + self.rng.uniform(-0.007, 0.003)
            self.lowest = self.points[:, 2].min()  # where the object stands

    def _next(self) -> tuple[np.ndarray, float | None, float]:
        """(waypoint, yaw or None to keep it, gripper) of this step; moves on to the next phase where this one is done."""
        hand, (at, yaw) = self.hand, self.grasp()
        at[:2] += self.aim
        aside = np.linalg.norm(at[:2] - hand[:2])
        if self.phase == "above":
            goal = at + (0, 0, self.points[:, 2].max() - at[2] + self.high)
            if aside > 0.06 and hand[2] < goal[2] - 0.03:  # low and far: rise first
                return np.array([*hand[:2], goal[2]]), yaw, OPEN
            if aside < 0.012 and abs(hand[2] - goal[2]) < 0.03 and abs(wrap(yaw - self.yaw)) < 0.06:
                self._go("down")
            return goal, yaw, OPEN
        if self.phase == "down":
            if aside > OFF:
                self._go("above")
            elif (hand[2] - at[2] < 0.006 and aside < 0.008) or self.since > 40:
                self._go("close")
                self.held = hand.copy()
            return at, yaw, OPEN
        if self.phase == "close":
            if self.since >= self.shut:
                self._go("lift")
            return self.held, None, CLOSE
        left = self.points[:, 2].min() < self.lowest + 0.3 * (hand[2] - self.held[2] - 0.03)  # on the ground
        if self.phase in ("lift", "over") and (left or np.linalg.norm(self.points.mean(0) - hand) > 0.12):
            self._go("above")
            return hand + (0, 0, 0.05), None, OPEN
        target = self.sim.where(self.destination)
        over = np.array([*(target[:2] + self.spot + hand[:2] - self._middle()),
                         min(max(self.held[2], target[2]) + self.carry, max(self.held[2] + 0.09, target[2] + 0.35))])
        wide = np.linalg.norm(over[:2] - hand[:2])
        if self.phase == "lift":
            if hand[2] > over[2] - 0.03:
                self._go("over")
            return np.array([*self.held[:2], over[2]]), None, CLOSE
        if self.phase == "over":
            if wide < 0.01 or (self.since > 15 and np.linalg.norm(hand - self.before) < 0.001):  # there, or the arm is at full stretch
                self._go("lower")
            return over, None, CLOSE
        if self.phase == "lower":
            height = (self.points[:, 2].mean() if self.inside else self.points[:, 2].min() - 0.01) - target[2]
            if (height < 0.005 and wide < 0.012) or self.since > 30:
                self._go("open")
                self.held = hand.copy()
            return np.array([*over[:2], hand[2] - height - 0.01]), None, CLOSE
        if self.since > 25:  # let go, and not done: again
            self._go("above")
        return self.held + (0, 0, 0.0 if self.since < 6 else 0.15), None, OPEN

    def _middle(self) -> np.ndarray:
        """Where the object's middle is, from above (2,)."""
        points = self.points
        return (points[:, :2].min(0) + points[:, :2].max(0)) / 2

    def act(self) -> np.ndarray:
        goal, yaw, gripper = self._next()
        self.since, self.before = self.since + 1, self.hand.copy()
        move = np.clip((goal - self.hand) / STEP, -self.speed, self.speed)
        turn = 0.0 if yaw is None else np.clip(wrap(yaw - self.yaw) / TURN, -0.5, 0.5)
        self.clean = np.array([*move, 0.0, 0.0, turn, gripper])
        return self.clean + np.array([*self._disturbance(), 0.0, 0.0, 0.0, 0.0])

    def _disturbance(self) -> np.ndarray:
        """What moves the hand off its way (3,): AR(1) noise, half of it while going down, none while the fingers move; one push."""
        self.steps += 1
        self.drift = 0.7 * self.drift + 0.7 * self.rng.normal(size=3)
        calm = self.phase in ("down", "lower", "close", "open")
        if self.push_at is not None and self.steps >= self.push_at and self.pushing < PUSH and not calm:
            self.pushing += 1
            return self.push
        return self.noise * self.drift * {"down": 0.5, "lower": 0.5, "close": 0.0, "open": 0.0}.get(self.phase, 1.0)


# --- the recorder of LIBERO and of the grocery table, called as "repro.sims.libero_expert:record" --------------------


def record(simulator, state: dict, seed, settings: dict) -> dict:
    """One episode that succeeds, or {"success": False} after `tries`. Played blind; its actions, played again from the same state, give
    the same bits, and then every `every`-th step is drawn: failures cost no picture.

    Settings (all optional): noise: scales of the AR(1) noise, one drawn an episode ([0.0]; unit: share of a unit action); pushes: share
    of episodes with a push (0.0); every: steps between pictures (1; 0 = none); max_steps (280); tries (5).
    Arrays, T actions: actions (T, 7) as executed and expert_actions (T, 7) without noise, both in [-1, 1], gripper +1 open; states (T, S)
    before each action; after each: robot_states (T, 9) = fingers 2, position 3, quaternion xyzw 4, ee_states (T, 6), gripper_states
    (T, 2), joint_states (T, 7). Before the first and after each: state (T + 1, 8), environment_state (T + 1, 6) as `observe` gives them.
    K pictures, at `frame_steps` (K,) = actions done before: static and wrist (K, H, W, 3) in the simulator's orientation, boxes
    (K, 2, 4) int64 of target and destination in `static`, -1 where not seen.
    """
    settings = {"noise": [0.0], "pushes": 0.0, "every": 1, "max_steps": 280, "tries": 5, **settings}
    for attempt in range(settings["tries"]):
        rng = np.random.default_rng([*np.atleast_1d(seed).tolist(), attempt])
        played = _play(simulator, state, rng, settings)
        if played["success"]:
            break
    else:
        return {"success": False, "tries": settings["tries"]}
    played |= {"tries": attempt + 1, "task": simulator.placed["task"], "about": simulator.about(), **simulator.facts()}
    return played | (_draw(simulator, state, played, settings["every"]) if settings["every"] else {})


def task_name(simulator, task: int | str, suite: str) -> str:
    """The name of a task, as a file about it is called."""
    return simulator.task_name(task, suite)


def _play(simulator, state: dict, rng: np.random.Generator, settings: dict) -> dict:
    simulator.reset(state, render=False)
    task, noise = simulator.placed["task"], float(rng.choice(settings["noise"]))
    expert = simulator.expert(task, rng, noise, settings["pushes"])
    rows, seen, success = {"actions": [], "expert_actions": [], "states": []}, [simulator.proprio()], False
    while len(rows["actions"]) < settings["max_steps"] and not success:
        rows["states"].append(simulator.flat())
        rows["actions"].append(np.clip(expert.act(), -1, 1))
        rows["expert_actions"].append(expert.clean)
        simulator.step(rows["actions"][-1], render=False)
        seen.append(simulator.proprio())
        success = simulator.done(task)
    after = {key: np.array([each[key] for each in seen[1:]]) for key in ("robot_states", "ee_states", "gripper_states", "joint_states")}
    both = {key: np.array([each[key] for each in seen]) for key in ("state", "environment_state")}
    return {"success": success, "noise": noise, "pushed": expert.pushing > 0, **{k: np.array(v) for k, v in rows.items()}, **after, **both}


def _draw(simulator, state: dict, played: dict, every: int) -> dict:
    """Pictures and boxes, by playing the actions again."""
    simulator.reset(state, render=False)
    steps, found = [], {"static": [], "wrist": [], "boxes": []}
    for step in range(len(played["actions"]) + 1):
        if step:
            simulator.step(played["actions"][step - 1], render=False)
        if step < len(played["states"]) and not (simulator.flat() == played["states"][step]).all():
            raise UserError("an episode played again went another way", "the same bits", f"another state at step {step}",
                            "this is a defect of the simulator's reset: report it")
        if step % every == 0:
            seen, boxes = simulator.observe(), simulator.boxes()
            steps.append(step)
            found["static"].append(seen["observation.images.static"])
            found["wrist"].append(seen["observation.images.wrist"])
            found["boxes"].append([boxes.get(item, [-1] * 4) for item in played["items"]])
    return {"frame_steps": np.array(steps), **{key: np.array(value) for key, value in found.items()}}
