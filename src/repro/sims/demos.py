"""Demonstrations by the scripted experts, played in the simulators' own processes. Scripted, not human: every data set says so.

A CALVIN-like recording is a piece of play: one to three tasks in a row. It is first played blind; its actions, played again from the
same state, give the same bits, and then pictures are drawn (`redraw`), so that failed attempts cost no picture.

Noise (`Plan.noise`) is that of DART (Laskey et al. 2017): a disturbed action is executed, the expert's own is recorded as the label.
The states are then as wide as a learner's own mistakes make them, and every label still says what is right.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from repro.machine import UserError
from repro.sims.base import Launch
from repro.sims.tabletop.scenes import BLOCKS
from repro.sims.tabletop.tasks import block_of
from repro.sims.worker import Worker, WorkerLost

MAX_STEPS, AFTER, ATTEMPTS = 360, 3, 20  # steps a task may take, frames recorded after it is done, tries of a recording
RHO, INNOVATION, SHARES = 0.7, 0.7, (0.0, 0.4, 1.0)  # of the AR(1) disturbance; shares of `noise`, one drawn a task
TRAVELS, HEIGHT = 0.95, 0.57  # it acts while the hand goes at more than this share of full speed, above this height in metres
PUSH, PUSHES, LASTS = 0.06, 2, (4, 13)  # chance a step that a push begins, most of them in a task, steps that one lasts
GOALS = {"place_in_slider": ["slider"], "place_in_drawer": ["drawer"], "push_into_drawer": ["drawer"]}


@dataclass(frozen=True)
class Plan:
    """One recording to be played: a symbolic start state and the tasks in a row, and how: the expert's `variation` (1: its natural one)
    and the `noise` that disturbs it, in units of an action."""

    scene: str
    symbolic: dict
    tasks: tuple[str, ...]
    seed: tuple[int, ...]
    variation: float = 1.0
    noise: float = 0.0

    @property
    def labelled(self) -> bool:
        """Whether the expert's own actions are recorded, a frame each. Otherwise actions are CALVIN's: differences of recorded poses."""
        return self.variation < 1 or self.noise > 0


def play(simulator, plan: Plan, expert: Callable | None = None) -> dict | None:
    """Play one recording blind: robot_obs (T, 15), scene_obs (T, 24), gripper (T,), start state, executed actions, one note a task.

    actions (T - 1, 7), or (T, 7) where the plan is `labelled`: then each frame also has its label, "labels" (T, 7), what the expert
    commanded there, and tasks share no frame. expert: (task, rng) -> expert (default: the simulator's own).
    None where the expert failed ATTEMPTS times in a row, each from another start."""
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([*plan.seed, attempt])
        start = simulator.sample(plan.symbolic, rng)
        simulator.reset(start, render=False)
        states, actions, labels, notes = [simulator.state()], [], [], []
        for task in plan.tasks:
            noise = Noise(rng, plan.noise) if plan.noise else None
            simulator.start_task()
            note = _one_task(simulator, task, (expert or simulator.expert)(task, rng), noise, states, actions, labels)
            if note is None:
                break
            notes.append(note)
        else:
            return {**_recorded(states, labels, notes, plan.labelled), "start": start, "actions": np.array(actions)}
    return None


def _recorded(states: list, labels: list, notes: list, labelled: bool) -> dict:
    """What is kept of a recording. With labels the last state, for which there is none, is not a frame; without, two tasks share one."""
    robot, scene = (np.array([state[key] for state in states]) for key in ("robot_obs", "scene_obs"))
    if not labelled:
        return {"robot_obs": robot, "scene_obs": scene, "gripper": np.append(robot[1:, 14], robot[-1, 14]), "notes": notes}
    labels = np.clip(labels, -1, 1)
    return {"robot_obs": robot[:-1], "scene_obs": scene[:-1], "gripper": labels[:, 6], "labels": labels,
            "notes": [{**note, "end": note["end"] - 1} for note in notes]}  # fmt: skip


class Noise:
    """What disturbs one task: AR(1) on position, half of it on yaw, only while the hand travels and does not change its grip; and at
    most PUSHES pushes off its way, after which the direction to go can no longer be told from how far the task has got."""

    def __init__(self, rng: np.random.Generator, noise: float):
        self.rng, self.scale = rng, noise * SHARES[rng.integers(len(SHARES))]
        self.value, self.grip, self.pushes, self.left, self.way = np.zeros(4), None, 0, 0, np.zeros(7)

    def __call__(self, action: np.ndarray, height: float) -> np.ndarray:
        """The action that is executed in place of `action` (7,)."""
        self.value = RHO * self.value + INNOVATION * self.rng.standard_normal(4)
        high = height > HEIGHT and self.grip in (None, action[6])
        travels = high and np.abs(action[:3]).max() > TRAVELS
        self.grip = action[6]
        if travels and not self.left and self.pushes < PUSHES and self.rng.random() < PUSH:
            self.pushes, self.left, self.way = self.pushes + 1, int(self.rng.integers(*LASTS)), self._direction()
        self.left = max(0, self.left - 1) if high else 0
        if self.left:
            return np.clip(action + self.way, -1, 1)
        return np.clip(action + self.scale * np.array([*self.value[:3], 0, 0, self.value[3] / 2, 0]), -1, 1) if travels else action

    def _direction(self) -> np.ndarray:
        """Level or slightly up, strong enough to overcome what the expert does; and any turn."""
        x, y, z, yaw = self.rng.uniform(-1, 1, 4)
        level = 2 / max(abs(x), abs(y))
        return np.array([level * x, level * y, 0.6 * abs(z), 0, 0, 2 * yaw, 0])


def kept(plans: list[Plan], played: list[dict | None], log) -> tuple[list[Plan], list[dict]]:
    """Plans and recordings without those the expert could not play, which are named; more than 5 % of them (and one) is a UserError."""
    failed = [plan for plan, recording in zip(plans, played, strict=True) if recording is None]
    for plan in failed:
        log(f"left out: the expert could not play {' -> '.join(plan.tasks)} in scene {plan.scene}, {ATTEMPTS} tries (seed {plan.seed})")
    if len(failed) > max(1, 0.05 * len(plans)):
        raise UserError(f"the expert could not play {len(failed)} of {len(plans)} recordings", "at most 5 % of them",
                        [" -> ".join(plan.tasks) for plan in failed[:5]], "this is a defect of the expert: report it with the seeds above")
    whole = [(plan, recording) for plan, recording in zip(plans, played, strict=True) if recording is not None]
    return [plan for plan, _ in whole], [recording for _, recording in whole]


def play_as(simulator, plan: dict) -> dict | None:
    """`play` of a plan that came as a dictionary over the wire."""
    return play(simulator, Plan(plan["scene"], plan["symbolic"], tuple(plan["tasks"]), tuple(plan["seed"])))


def _one_task(simulator, task: str, expert, noise: Noise | None, states: list, actions: list, labels: list) -> dict | None:
    """Play one task on from the present state; None if it was not achieved, or undone in the frames after."""
    start, success = len(states) - 1, None
    for _ in range(MAX_STEPS):
        labels.append(np.asarray(expert.act(), np.float64))
        actions.append(noise(labels[-1], states[-1]["robot_obs"][2]) if noise else labels[-1])
        simulator.step(actions[-1], render=False)
        states.append(simulator.state())
        if success is None and simulator.done(task):
            success = len(states) - 1
        if success is not None and len(states) - 1 >= success + AFTER:
            break
    if success is None or not simulator.done(task):
        return None
    before, after = (_blocks(states[i]["scene_obs"], simulator.block_order) for i in (start, -1))
    moved = block_of(task) or max(BLOCKS, key=lambda block: np.linalg.norm(after[block] - before[block]))
    targets, goals = things_of(task, moved, after)
    return {"task": task, "start": start, "end": len(states) - 1, "success": success, "targets": targets, "goal_items": goals}


def _blocks(scene_obs: np.ndarray, order: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Centre (3,) of each block in metres."""
    return {block: np.asarray(scene_obs[6 + 6 * i : 9 + 6 * i]) for i, block in enumerate(order)}


def things_of(task: str, moved: str, blocks: dict[str, np.ndarray]) -> tuple[list[str], list[str]]:
    """What the hand moves or touches, and what the action is for, as in the boxes.json of the CALVIN simulator's recordings."""
    if task.startswith("turn_"):
        return (["button"], ["led"]) if task.endswith("led") else (["switch"], ["lightbulb"])
    if task in ("open_drawer", "close_drawer"):
        return ["drawer"], []
    if task.startswith("move_slider"):
        return ["slider"], []
    if task == "stack_block":
        others = [block for block in BLOCKS if block != moved]
        return [moved], [min(others, key=lambda block: np.linalg.norm(blocks[block] - blocks[moved]))]
    return [moved], GOALS.get(task, [])


def redraw(simulator, played: dict):
    """`simulator.frame()` of every step of a recording, by playing its actions again; a step that differs is a UserError."""
    simulator.reset(played["start"], render=False)
    for step, robot in enumerate(played["robot_obs"]):
        if step:
            simulator.step(played["actions"][step - 1], render=False)
        if not (simulator.state()["robot_obs"] == robot).all():
            raise UserError("a recording played again went another way", "the same bits", f"another robot_obs at step {step}",
                            "this is a defect of the simulator's reset: report it")
        yield simulator.frame()


def drawn(simulator, played: dict) -> dict[str, np.ndarray]:
    """All frames of a recording: "static", "wrist", "static_ids", "wrist_ids", each (T, H, W, ...) uint8."""
    frames = list(redraw(simulator, played))
    return {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}


class Crew:
    """Workers of one simulator that share a list of jobs; a lost worker is replaced and its job done again."""

    def __init__(self, launch: Callable[[str], Launch], workers: int, log=print):
        self.launch, self.log, self.mine = launch, log, threading.local()
        self.pool, self.all = ThreadPoolExecutor(workers), []

    def run(self, key: str, function: str, *arguments, tries: int = 3):
        """`function` ("module:name") of the simulator started by `launch(key)` and the arguments, in this thread's worker."""
        for attempt in range(tries):
            try:
                if getattr(self.mine, "key", None) != key:
                    self._start(key)
                return self.mine.worker.ask_and_wait("apply", function, list(arguments))
            except WorkerLost as error:
                self.mine.key = None
                if attempt + 1 == tries:
                    raise UserError(f"the simulator's process was lost {tries} times on one recording", found=error) from error
                self.log(f"{str(error).splitlines()[0]}; the recording is done again")

    def _start(self, key: str) -> None:
        if getattr(self.mine, "worker", None):
            self.mine.worker.close()
        self.mine.worker, self.mine.key = Worker(self.launch(key), patience=600), key
        self.all.append(self.mine.worker)

    def about(self, key: str) -> dict:
        """What the simulator says of itself."""
        with Worker(self.launch(key)) as worker:
            return {name: worker.about[name] for name in ("renderer", "versions", "checkout", "assets") if name in worker.about}

    def map(self, function: Callable, jobs: list):
        """Results of `function(job)` in order, from the crew's threads."""
        return self.pool.map(function, jobs)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.pool.shutdown(wait=not any(error), cancel_futures=True)
        for worker in self.all:
            worker.close()
