"""The small policy of the real simulators' closed loops. Run: pytest tests/test_keypoint_policy.py"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from repro.machine import UserError
from repro.models.keypoint_policy import KeypointConfig, KeypointPolicy

STATS = {"observation.state": {"mean": [0.0] * 3, "std": [1.0] * 3}}
CONFIG = KeypointConfig(words=("blue", "go", "red", "square", "the", "to"), tasks=("blue", "red"), size=32, state_dim=3, chunk=2)


def scene(n, seed=0):
    """Pictures with a red and a blue square; the action points from the middle to the one that is asked for."""
    rng = np.random.default_rng(seed)
    static, at = np.full((n, 32, 32, 3), 120, np.uint8), rng.integers(3, 29, (n, 2, 2))
    for picture, places in zip(static, at, strict=True):
        for (x, y), colour in zip(places, ((200, 20, 20), (20, 20, 200)), strict=True):
            picture[y - 3 : y + 3, x - 3 : x + 3] = colour
    asked = rng.integers(0, 2, n)
    aim = at[np.arange(n), asked] / 16 - 1
    action = np.zeros((n, 2, 7), np.float32)
    action[:, :, :2], action[:, :, 6] = aim[:, None], np.where(aim[:, :1] > 0, 1, -1)
    words = [("red", "blue")[i] for i in asked]
    box = np.concatenate([aim - 0.1, aim + 0.1], axis=1) / 2 + 0.5
    return {"static": static, "wrist": static * 0, "state": np.zeros((n, 3), np.float32), "action": action, "task_id": words,
            "instruction": [f"go to the {word} square" for word in words], "gaze.box": box.astype(np.float32),
            "gaze.valid": np.ones(n, bool)}


def fit(config, steps=220):
    torch.manual_seed(0)
    model, optimizer = KeypointPolicy(config, STATS), None
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(steps):
        found = model.loss(scene(64, step))
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def seeing():
    return fit(CONFIG)


def test_it_looks_where_the_instruction_says(seeing):
    held_out = scene(256, 10_000)
    blind = fit(replace(CONFIG, blind=True, point_weight=0.0), 60)
    with torch.no_grad():
        found, floor = seeing.loss(held_out), blind.loss(held_out)
    assert found["l1"] < 0.35 * floor["l1"], (found, floor)
    assert found["point"] < 0.12, "the gaze point, in picture widths"
    swap = {"red": "blue", "blue": "red"}
    other = {**held_out, "instruction": [" ".join(swap.get(w, w) for w in s.split()) for s in held_out["instruction"]]}
    with torch.no_grad():
        assert seeing.loss(other)["l1"] > 2 * found["l1"], "told the other colour it goes to the other square"


def test_act_save_load(seeing, tmp_path):
    batch = scene(5, 3)
    observations = [{"observation.images.static": s, "observation.images.wrist": w, "observation.state": np.zeros(3, np.float32)}
                    for s, w in zip(batch["static"], batch["wrist"], strict=True)]
    actions = seeing.act(observations, batch["instruction"])
    assert actions.shape == (5, 2, 7) and np.abs(actions).max() <= 1 and set(np.unique(actions[..., 6])) <= {-1.0, 1.0}
    one_by_one = np.concatenate([seeing.act([o], [i]) for o, i in zip(observations, batch["instruction"], strict=True)])
    assert np.allclose(actions, one_by_one, atol=1e-5)
    assert seeing.act(observations[:1], ["never heard of these"]).shape == (1, 2, 7)
    seeing.save(tmp_path)
    again = KeypointPolicy.load(tmp_path)
    assert again.config == seeing.config and (again.act(observations, batch["instruction"]) == actions).all()


class Still:
    """A simulator in which every task is done after its first step; it gives what a policy may need only when it draws."""

    def reset(self, state, render=True):
        self.steps = 0
        return self.observe() if render else None

    def start_task(self):
        self.steps = 0

    def step(self, action, render=True):
        self.steps += 1

    def done(self, task):
        return self.steps > 0

    def observe(self):
        grey = np.full((32, 32, 3), 99, np.uint8)
        return {"observation.images.static": grey, "observation.images.wrist": grey, "observation.state": np.zeros(3, np.float32)}


def test_seeing_and_blind_go_through_an_evaluation(tmp_path):
    """A blind policy still needs proprioception, which a simulator gives with its pictures only."""
    from repro.evaluation import chains

    for name, config in {"seeing": CONFIG, "blind": replace(CONFIG, blind=True, point_weight=0.0)}.items():
        found = chains.evaluate(KeypointPolicy(config, STATS), Still, [({}, ("red",)), ({}, ("blue",))], tmp_path / name, 5,
                                instructions={"red": "go to the red square", "blue": "go to the blue square"}, log=lambda line: None)
        assert [outcome.length for outcome in found] == [1, 1]


def test_a_blind_policy_is_one_whatever_is_shown():
    blind = KeypointPolicy(replace(CONFIG, blind=True, point_weight=0.0), STATS).eval()
    batch = scene(4)
    turned = {**batch, "static": batch["static"][::-1].copy()}
    with torch.no_grad():
        first, second = (blind.guess(b, b["state"], batch["instruction"])[0] for b in (batch, turned))
        alone = blind.guess({k: batch[k][3:] for k in ("static", "wrist")}, batch["state"][3:], batch["instruction"][3:])[0]
    assert torch.equal(first, second) and torch.allclose(first[3:], alone, atol=1e-6)


def test_wrong_input_is_said(tmp_path):
    with pytest.raises(UserError, match="another size"):
        KeypointPolicy(replace(CONFIG, state_dim=8), STATS)
    with pytest.raises(UserError, match="no words or no tasks"):
        KeypointPolicy(KeypointConfig(), STATS)
    with pytest.raises(UserError, match="nothing to point with"):
        KeypointConfig(blind=True)
    with pytest.raises(UserError, match="holds no model"):
        KeypointPolicy.load(tmp_path)
    with pytest.raises(UserError, match="gaze.box"):
        KeypointPolicy(CONFIG, STATS).loss({k: v for k, v in scene(2).items() if k != "gaze.box"})
