"""The scripted expert for CALVIN's own simulator: its geometry and its motion always, its tasks where a checkout and the environment of
`repro sims setup calvin` are. Run: pytest tests/test_calvin_expert.py"""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from repro.evaluation import floors
from repro.evaluation.chains import evaluate
from repro.evaluation.protocols import calvin_chains
from repro.sims.calvin_expert import YAWS, Expert, hand_yaws, pointing, rim, within, wrap
from repro.sims.tabletop.scenes import BLOCKS
from repro.sims.tabletop.tasks import TASKS, symbolic_for
from repro.sims.worker import Worker

ANGLES = np.random.default_rng(0).uniform(-20, 20, 200)


def test_angles():
    for angle in ANGLES:
        for same, middle in ((wrap(angle), 0.0), (within(angle), sum(YAWS) / 2)):
            assert abs(same - middle) <= math.pi and math.isclose(math.cos(same), math.cos(angle), abs_tol=1e-9)
            assert math.isclose(math.sin(same), math.sin(angle), abs_tol=1e-9)
    assert np.allclose(pointing(0.7, 0.0), [0, 0, -1]) and np.allclose(pointing(math.pi / 2, math.pi / 2), [0, 1, 0])
    assert all(math.isclose(np.linalg.norm(pointing(a, a / 20)), 1) for a in ANGLES)


def test_rim_of_a_block():
    assert math.isclose(rim(0.08, 0.0, 1, 0), 0.04) and math.isclose(rim(0.08, 0.0, 0, -1), 0.02)
    assert math.isclose(rim(0.04, math.pi / 4, 1, 0), 0.02 * math.sqrt(2), rel_tol=1e-6)
    assert all(0.02 - 1e-9 <= rim(0.08, a, math.cos(b), math.sin(b)) <= math.hypot(0.04, 0.02) for a, b in ANGLES.reshape(-1, 2))


@pytest.mark.parametrize("turn", (0.0, 1.4, -1.4))
def test_the_hand_fits_the_block_and_the_wrist(turn):
    for yaw, now in ANGLES.reshape(-1, 2):
        yaw, now = wrap(yaw), within(now)
        long, short = hand_yaws(yaw, False, now, turn), hand_yaws(yaw, True, now, turn)
        assert len(long) == 1 and abs(math.sin(long[0] - yaw)) < 1e-9, "a long block is held across"
        assert len(short) == 2 and abs(abs(math.sin(short[0] - short[1])) - 1) < 1e-9, "a short one either way"
        for hand in (*long, short[0]):
            assert YAWS[0] - 0.4 < min(hand, hand + turn) and max(hand, hand + turn) < YAWS[1] + 0.4


class Button:
    """The least that a simulator is for the expert to press a button: a hand that follows its target, a button, no blocks."""

    table, links = 0, {"button_link": 0}

    def __init__(self):
        self.robot = SimpleNamespace(target_pos=np.array([0.03, -0.23, 0.57]), target_orn=np.array([3.09, -0.03, 1.5]), gripper_action=1)
        box = lambda body, link, physicsClientId: ((-0.155, -0.155, 0.457), (-0.085, -0.085, 0.487))
        self.env = SimpleNamespace(p=SimpleNamespace(getAABB=box), robot=self.robot, cid=0)
        self.pressed = False
        self.step(np.array([0.0] * 6 + [1]))

    def step(self, action):
        assert action.shape == (7,) and action.dtype == np.float64 and np.abs(action).max() <= 1 and action[6] in (-1, 1)
        self.robot.target_pos += 0.02 * action[:3]
        self.robot.target_orn += 0.05 * action[3:6]
        hand = {"tcp_pos": tuple(self.robot.target_pos), "tcp_orn": tuple(self.robot.target_orn), "gripper_opening_width": 0.08}
        self.info = {"robot_info": hand, "scene_info": {"movable_objects": {}}}
        x, y, z = self.robot.target_pos
        self.pressed |= z - 0.02 < 0.477 and math.hypot(x + 0.12, y + 0.12) < 0.03

    def done(self, task):
        return self.pressed


def press(seed: int) -> np.ndarray:
    simulator, actions = Button(), []
    expert = Expert(simulator, "turn_on_led", np.random.default_rng(seed))
    while not simulator.pressed:
        actions.append(expert.act())
        simulator.step(actions[-1])
        assert len(actions) < 100
    return np.array(actions)


def test_a_script_varies_with_the_generator_alone_and_is_smooth():
    first, again, other = press(1), press(1), press(2)
    assert np.array_equal(first, again) and not np.array_equal(first[:10], other[:10])
    jumps = [np.abs(np.diff(press(seed)[:, :3], axis=0)) for seed in range(10)]
    assert np.concatenate(jumps).mean() < 0.15 and len({len(press(seed)) for seed in range(10)}) > 3


def expert_on(chains, launch, folder):
    sentences = {task: task for task in TASKS}
    return evaluate(floors.ExpertPolicy(), launch, chains, folder, instructions=sentences, workers=1, log=lambda _: None)


def solved(launch, folder, seeds) -> tuple[list[str], int]:
    """(what failed, number of tries) over all tasks from sampled starts; a task for a block in the hand comes after its lift."""
    chains = {1: [], 2: []}
    with Worker(launch) as worker:
        for seed in seeds:
            for i, task in enumerate(TASKS):
                symbolic = symbolic_for(task, np.random.default_rng([seed, i]))
                held = next((block for block in BLOCKS if symbolic[block] == "grasped"), None)
                row = (f"lift_{held}_table", task) if held else (task,)
                start = worker.call("sample", {**symbolic, held: "table"} if held else symbolic, rng=1000 * seed + i)
                chains[len(row)].append((start, row))
    failed = []
    for length, part in chains.items():
        outcomes = expert_on(part, launch, folder / str(length))
        failed += [row[-1] for (_, row), outcome in zip(part, outcomes, strict=True) if outcome.length < length]
    return failed, sum(map(len, chains.values()))


@pytest.mark.parametrize("scene", "ABCD")
def test_every_task_in_every_scene(real, tmp_path, scene):
    """Sampled starts lie anywhere on a surface; some cannot be solved (a block at the very edge, or against the door's handle)."""
    failed, tries = solved(real("calvin", scene=scene), tmp_path, [3])
    assert tries == len(TASKS) and len(failed) <= 4, failed


@pytest.mark.full
@pytest.mark.parametrize("scene", "ABCD")
def test_every_task_from_many_starts(real, tmp_path, scene):
    failed, tries = solved(real("calvin", scene=scene), tmp_path, range(10))
    assert len(failed) <= 0.08 * tries, failed
    assert max(failed.count(task) for task in TASKS) <= 6, "no task fails as a rule"


@pytest.mark.parametrize("n", (20, pytest.param(100, marks=pytest.mark.full)))
def test_official_sequences(real, tmp_path, n):
    outcomes = expert_on(calvin_chains(n), real("calvin", scene="D"), tmp_path)
    assert np.mean([outcome.length for outcome in outcomes]) >= 4.5
