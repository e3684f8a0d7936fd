"""CALVIN's own simulator through a worker; skips loudly without a checkout (CALVIN_ROOT) and `repro sims setup calvin`. What needs neither
runs always. Run: pytest tests/test_calvin_sim.py"""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repro.data.calvin import Calvin as Frames
from repro.evaluation import floors
from repro.evaluation.chains import evaluate
from repro.evaluation.protocols import calvin_chains, calvin_start_state, calvin_starts
from repro.machine import UserError
from repro.sims import calvin, calvin_layout, environments
from repro.sims.worker import Worker

START = calvin_start_state(calvin_starts()[0])
DOWN = np.array([0.2, 0.1, -0.6, 0, 0, 0.3, -1.0])


def digest(arrays) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def walk(worker, steps=60, seed=0, look=False):
    """States after random actions from the first official start state."""
    worker.call("reset", START, render=look)
    rng, seen = np.random.default_rng(seed), []
    for i in range(steps):
        worker.call("step", np.clip(DOWN + rng.uniform(-1, 1, 7), -1, 1), render=look and i % 20 == 0)
        state = worker.call("state")
        seen += [state["robot_obs"], state["scene_obs"]]
    return digest(seen)


def test_same_bits_in_any_order_of_episodes_and_with_pictures(real):
    with Worker(real("calvin", scene="D")) as one, Worker(real("calvin", scene="D")) as two:
        fresh = walk(one)
        assert walk(one, seed=1) != fresh and walk(one) == fresh and walk(two, look=True) == fresh
        first = one.call("reset", START)
        second = two.call("reset", START)
        assert all((first[key] == second[key]).all() for key in first)


def test_pictures_boxes_and_state_agree(real):
    with Worker(real("calvin", scene="A")) as worker:
        seen, boxes = worker.call("reset", START), worker.call("boxes")
        frame = worker.call("frame")
        scene, about = worker.call("state")["scene_obs"], worker.about
    assert seen["observation.images.static"].shape == (200, 200, 3) and seen["observation.images.wrist"].shape == (84, 84, 3)
    assert (frame["static"] == seen["observation.images.static"]).all()
    blocks = seen["observation.environment_state"][6:].reshape(3, 6)
    assert np.allclose(blocks, scene[6:].reshape(3, 6)[[2, 1, 0]], atol=1e-6), "scene A lists pink, blue, red; we red, blue, pink"
    colours = {"red_block": (200, 0, 0), "blue_block": (0, 0, 200), "pink_block": (200, 0, 200)}
    for block, colour in colours.items():
        if block in boxes:
            x0, y0, x1, y1 = boxes[block]
            middle = seen["observation.images.static"][y0:y1, x0:x1].reshape(-1, 3).astype(int)
            near = np.abs(middle - colour).max(1) < 90
            assert near.mean() > 0.3, f"the box of {block} holds its colour"
    assert about["renderer"] == "TinyRenderer (CPU)" and about["checkout"] == calvin.COMMIT[:10] and about["scene"] == "A"


def test_official_rules_and_expert(real, tmp_path):
    chains = [(state, tasks[:2]) for state, tasks in calvin_chains(3)]
    sentences = {task: task for _, tasks in chains for task in tasks}
    outcomes = [evaluate(floors.ExpertPolicy(), real("calvin", scene="D"), chains, tmp_path / str(i), instructions=sentences, workers=w,
                         log=lambda line: None) for i, w in enumerate((1, 2))]
    assert outcomes[0] == outcomes[1], "which worker a chain falls to changes nothing"
    assert sum(o.length for o in outcomes[0]) >= 5 and all(n < 360 for o in outcomes[0] for n in o.steps[: o.length])
    still = evaluate(floors.ConstantPolicy(), real("calvin", scene="D"), chains[:1], tmp_path / "still", 20, instructions=sentences,
                     workers=1, log=lambda line: None)
    assert still[0].success == (False,) and still[0].steps == (20,)


def test_bad_actions_and_states(real):
    with Worker(real("calvin", scene="D")) as worker:
        worker.call("reset", START, render=False)
        for wrong in (np.zeros(6), np.zeros(7, np.int64), np.full(7, np.nan), np.zeros((1, 7))):
            with pytest.raises(UserError, match="bad CALVIN action"):
                worker.call("step", wrong)
        with pytest.raises(UserError, match="robot_obs"):
            worker.call("reset", {"scene_obs": np.zeros(24)})
        with pytest.raises(UserError, match="24 finite numbers"):
            worker.call("reset", {**START, "scene_obs": np.zeros(23)})
        with pytest.raises(UserError, match="no task 'fly'"):
            worker.call("done", "fly")
        assert worker.call("done", "open_drawer") is False
    with pytest.raises(UserError, match="no CALVIN scene 'E'"):
        Worker(real("calvin", scene="E"))


def test_demonstrations_in_calvins_layout(real, tmp_path):
    launch = lambda scene: real("calvin", scene=scene)
    written = calvin_layout.write(tmp_path / "d", ("D",), ("open_drawer", "place_in_drawer"), 1, 1, "D", 0, 2, launch, lambda line: None)
    about = json.loads((written / "about.json").read_text())
    assert about["simulator"] == "calvin" and about["scripted"] is True and about["renderer"] == "TinyRenderer (CPU)"
    split = Frames(written).split("training")
    tasks = [annotation.task_id for annotation in split.annotations]

    assert {"open_drawer", "place_in_drawer"} <= set(tasks) and any(t.startswith("lift_") for t in tasks), "a lift comes before a place"
    with pytest.raises(UserError, match="is there already"):
        calvin_layout.write(written, ("D",), launch=launch)


def test_a_changed_checkout_is_refused(real, tmp_path):
    launch = real("calvin", scene="D")
    copy = tmp_path / "calvin_env"
    shutil.copytree(launch.options["root"], copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    config = copy / "conf" / "env" / "play_table_env.yaml"
    config.write_text(config.read_text().replace("control_freq: 30", "control_freq: 60"))
    changed = replace(launch, options={**launch.options, "root": str(copy)})
    with pytest.raises(UserError, match="not calvin_env at commit"):
        Worker(changed)
    with Worker(replace(changed, options={**changed.options, "any_version": True})) as worker:
        assert worker.about["checkout"].startswith("OTHER THAN")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    """Needs no simulator."""
    with pytest.raises(UserError, match="git clone --recurse-submodules"):
        calvin.checkout(tmp_path)
    (tmp_path / "calvin_env").mkdir()
    with pytest.raises(UserError, match="submodule update --init"):
        calvin.checkout(tmp_path)
    monkeypatch.setenv("REPRO_SIMS", str(tmp_path / "sims"))
    monkeypatch.delenv("REPRO_CALVIN_PYTHON", raising=False)
    with pytest.raises(UserError, match="repro sims setup calvin"):
        environments.launch("calvin", scene="D")
    with pytest.raises(UserError, match="calvin | libero"):
        environments.setup("calwin")
    (tmp_path / "sims" / "calvin" / "bin").mkdir(parents=True)
    (tmp_path / "sims" / "calvin" / "bin" / "python").symlink_to(Path("/bin/sh"))
    with pytest.raises(UserError, match="half of one"):
        environments.interpreter("calvin")
    (tmp_path / "sims" / "calvin" / "installed.json").write_text("{}")
    monkeypatch.setenv("CALVIN_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such folder"):
        environments.launch("calvin", scene="D")
