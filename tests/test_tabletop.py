"""The play table: honest contact, exact states, the 34 tasks, and the CALVIN layout it writes. Run: pytest tests/test_tabletop.py"""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from repro.data.batches import Batches
from repro.data.calvin import Calvin
from repro.data.calvin_frames import read_frame
from repro.data.calvin_import import ensure_store
from repro.machine import UserError
from repro.sims import calvin_layout as dataset
from repro.sims import demos
from repro.sims.tabletop import scenes, tasks
from repro.sims.tabletop.expert import Expert
from repro.sims.tabletop.world import PlayTable

REST = [0.0] * 6


def start(task: str, scene: str = "D", seed: int = 0) -> PlayTable:
    rng = np.random.default_rng([seed, tasks.TASKS.index(task)])
    table = PlayTable(scene)
    table.reset(tasks.initial_state(scene, tasks.symbolic_for(task, rng), rng, vary_robot=True), render=False)
    return table


def solve(table: PlayTable, task: str, seed: int = 0) -> int | None:
    """Steps the expert needs, None if 360 are not enough."""
    table.start_task()
    expert = Expert(table, task, np.random.default_rng(seed))
    for step in range(360):
        table.step(expert.act(), render=False)
        if table.done(task):
            return step + 1
    return None


@pytest.mark.parametrize("scene", "ABCD")
def test_expert_solves_every_task(scene):
    failed = [task for task in tasks.TASKS if solve(start(task, scene, seed=11), task) is None]
    assert not failed


@pytest.mark.full
@pytest.mark.parametrize("scene", "ABCD")
def test_expert_solves_every_task_from_many_starts(scene):
    runs = [(task, seed) for task in tasks.TASKS for seed in range(10)]
    failed = [run for run in runs if solve(start(run[0], scene, seed=run[1]), run[0], run[1]) is None]
    assert len(failed) <= 0.01 * len(runs), failed


@pytest.mark.parametrize("task", tasks.TASKS)
def test_nothing_is_achieved_at_the_start_or_by_waiting(task):
    table = start(task)
    table.start_task()
    assert not table.done(task)
    for gripper in (1.0, -1.0):
        for _ in range(8):
            table.step([*REST, gripper if table.held is None else -1.0], render=False)
    assert not table.done(task)


def near(task: str, table: PlayTable) -> tuple:
    """A point beside, not touching, what the task is about."""
    name = tasks.block_of(task)
    if name:
        x, y, z, _ = table.blocks[scenes.BLOCKS.index(name)]
        return x, y, z + 0.075
    if "drawer" in task:
        return table.scene.drawer_x, -0.36 - table.joint["drawer"] * (task == "close_drawer"), 0.36
    if "slider" in task:
        return table.scene.door_right_x - table.joint["slider"], -0.03, 0.53
    if "led" in task:
        return (*table.scene.button_xy, scenes.BUTTON_Z + 0.025)
    return table.scene.switch_x, -0.05, 0.53


@pytest.mark.parametrize("task", ["open_drawer", "move_slider_left", "move_slider_right", "turn_on_led", "turn_on_lightbulb",
                                  "lift_red_block_table", "push_blue_block_left", "rotate_pink_block_right"])  # fmt: skip
def test_closing_the_fingers_in_the_air_achieves_nothing(task):
    """Go near what the task is about, close the fingers there, and then move as the task would ask."""
    for move in ((0, 0, 1), (0, -1, 0), (-1, 0, 0), (1, 0, 0), (0, 0, 0)):
        table = start(task)
        table.start_task()
        before = table.info()
        for _ in range(60):
            target = near(task, table)
            step = (np.array(target) - table.pose[:3]) / 0.02
            step[2] = step[2] if abs(step[:2]).max() < 0.5 else max(0.0, (0.66 - table.pose[2]) / 0.02)
            table.step([*np.clip(step, -1, 1), 0, 0, 0, 1], render=False)
        for _ in range(6):
            table.step([*REST, -1], render=False)
        for _ in range(15 if any(move) else 0):
            away = move if move != (0, -1, 0) or "drawer" not in task else (0, -1, 0.2)
            table.step([*np.multiply(away, 0.3), 0, 0, 0, -1], render=False)
            if task.startswith("move_slider") or task == "turn_on_lightbulb":
                break  # sideways from there the hand would honestly meet the thing
        assert table.held is None and not table.done(task)
        assert table.info()["joints"]["drawer"] == before["joints"]["drawer"]


def test_a_block_is_grasped_only_between_both_pads_and_falls_when_released():
    table = start("lift_red_block_table")
    assert solve(table, "lift_red_block_table") is not None and table.held == 0
    lifted = table.blocks[0][2]
    for _ in range(12):
        table.step([*REST, 1], render=False)
    assert table.held is None and table.blocks[0][2] < lifted - 0.05 and "robot" not in table.info()["blocks"]["red_block"]["contacts"]


def test_the_hand_cannot_pass_through_the_table():
    table = PlayTable("D")
    for _ in range(60):
        table.step([0, 0.6, -1, 0, 0, 0, -1], render=False)
    assert table.pose[2] > scenes.TABLE_Z


def test_actions_are_relative_and_clipped_to_two_centimetres():
    table = PlayTable("D")
    before = np.array(table.pose)
    table.step([5, 0, 0.5, 0, 0, 1, 1], render=False)
    moved = np.array(table.pose) - before
    np.testing.assert_allclose(moved[[0, 1, 2, 5]], [0.02, 0, 0.01, 0.05], atol=1e-9)


@pytest.mark.parametrize("action", [[0] * 6, [math.nan] + [0] * 6])
def test_a_bad_action_is_an_error(action):
    with pytest.raises(UserError, match="bad play table action"):
        PlayTable("D").step(action)


def test_state_restores_to_the_bit():
    table = start("place_in_drawer")
    expert = Expert(table, "place_in_drawer", np.random.default_rng(0))
    table.start_task()
    actions = []
    for step in range(40):
        if step == 10:
            saved = table.state()
        actions.append(expert.act())
        table.step(actions[-1], render=False)
    other = PlayTable("D", seed=5)
    other.reset(json.loads(json.dumps({k: v.tolist() if hasattr(v, "tolist") else v for k, v in saved.items()})), render=False)
    for action in actions[10:]:
        other.step(action, render=False)
    for key in ("robot_obs", "scene_obs"):
        np.testing.assert_array_equal(other.state()[key], table.state()[key])


HASH = """
import hashlib, numpy as np
from repro.sims.tabletop.world import PlayTable
table, digest = PlayTable("B", seed=3), hashlib.sha256()
for action in np.random.default_rng(0).uniform(-1, 1, (40, 7)):
    seen = table.step(action)
    for key in sorted(seen):
        digest.update(seen[key].tobytes())
print(digest.hexdigest())
"""


def test_same_bits_in_two_processes():
    runs = [subprocess.run([sys.executable, "-c", HASH], capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert runs[0] == runs[1] and len(runs[0].strip()) == 64


def test_observation_has_calvins_layout_with_blocks_in_one_order():
    table = PlayTable("A", seed=1)
    seen = table.observe()
    assert seen["observation.images.static"].shape == (200, 200, 3) and seen["observation.images.wrist"].shape == (84, 84, 3)
    assert seen["observation.state"].shape == (15,) and seen["observation.environment_state"].shape == (24,)
    raw = table.scene_obs()[6:].reshape(3, 6)
    pink = table.scene.block_order.index("pink_block")
    assert pink == 0  # scene A lists pink first; the observation always lists red, blue, pink
    np.testing.assert_allclose(seen["observation.environment_state"][18:21], raw[pink, :3], atol=1e-6)


def test_chains_are_legal_and_of_distinct_categories():
    for state, chain in tasks.chains(50, 5, seed=4):
        assert len({tasks.CATEGORY[task] for task in chain}) == 5
        for task in chain:
            state = tasks.outcome(task, state)
            assert state is not None


def test_chains_of_few_tasks_and_impossible_ones():
    few = ("open_drawer", "close_drawer", "turn_on_led")
    assert all(set(chain) <= set(few) for _, chain in tasks.chains(5, 3, tasks=few))
    with pytest.raises(UserError, match="no chains of 5"):
        tasks.chains(1, 5, tasks=few)
    with pytest.raises(UserError, match="unknown play table task"):
        tasks.chains(1, 2, tasks=("open_the_window", "turn_on_led"))


# --- the data set -----------------------------------------------------------------------------------------------------------

SMALL = {"tasks": ("open_drawer", "lift_red_block_table", "place_in_drawer", "turn_on_led"), "episodes_per_task": 2,
         "validation_per_task": 1, "log": lambda line: None}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return dataset.write(tmp_path_factory.mktemp("play") / "calvin", scenes=("A", "D"), workers=1, **SMALL)


def digest(root) -> str:
    """Of every index, annotation and box, and of all members of all frames."""
    found = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".npy", ".json", ".yaml", ".npz")):
        arrays = np.load(path) if path.suffix == ".npz" else None
        found.update(b"".join(arrays[name].tobytes() for name in sorted(arrays)) if arrays else path.read_bytes())
    return found.hexdigest()


def test_the_data_set_reads_back_as_calvin(written):
    training, validation = (Calvin(written).split(name) for name in ("training", "validation"))
    assert len(training.annotations) == 2 * 2 * 4 and len(validation.annotations) == 4
    assert {note.scene for note in training.annotations} == {"A", "D"} and {note.scene for note in validation.annotations} == {"D"}
    sentences = {note.instruction.lower() for note in training.annotations}
    assert not sentences & {note.instruction.lower() for note in validation.annotations}
    boxes = json.loads((written / "training" / "boxes.json").read_text())
    assert set(boxes["rgb_static"]) == {path.stem.removeprefix("episode_") for path in (written / "training").glob("episode_*.npz")}
    assert {e["task"]: e["targets"] for e in boxes["episodes"]}["turn_on_led"] == ["button"]
    assert {e["task"]: e["goal_items"] for e in boxes["episodes"]}["place_in_drawer"] == ["drawer"]


def test_recorded_actions_follow_calvins_definition(written):
    """rel_actions are differences of recorded poses, and the play table executes them to the next recorded state."""
    note = next(n for n in Calvin(written).split("training").annotations if n.scene == "D" and n.task_id == "lift_red_block_table")
    frames = [np.load(written / "training" / f"episode_{i:07d}.npz") for i in range(note.start, note.end + 1)]
    for one, two in zip(frames, frames[1:], strict=False):
        np.testing.assert_allclose(one["actions"][:6], two["robot_obs"][:6])
        np.testing.assert_allclose(one["rel_actions"][:3], np.clip((two["robot_obs"][:3] - one["robot_obs"][:3]) / 0.02, -1, 1))
        assert one["actions"].dtype == np.float64 and one["rel_actions"][6] == two["robot_obs"][14]


def test_the_bits_do_not_depend_on_the_number_of_workers(written, tmp_path):
    again = dataset.write(tmp_path / "calvin", scenes=("A", "D"), workers=2, **SMALL)
    assert digest(again) == digest(written)


# --- other tables --------------------------------------------------------------------------------------------------------------


def test_a_table_with_a_seed_is_repainted_or_rearranged_and_its_own():
    assert scenes.scene("D") is scenes.SCENES["D"] and replace(scenes.scene("D~3"), name="D") == scenes.SCENES["D"]
    tables = [scenes.scene(f"R~{seed}") for seed in range(200)]
    for table in tables:
        (x0, x1), half = table.cabinet_x, 0.08
        assert -0.46 < x0 < x1 < 0.46 and x1 - x0 == pytest.approx(2 * table.slider_travel) and table.slider_travel > 0.1
        assert not x0 - 0.02 < table.switch_x + (half if table.switch_x < 0 else -half) < x1 + 0.02  # the lamp stands beside the cabinet
    assert len({table.drawer_x for table in tables}) == 200 and {len(set(table.block_length.values())) for table in tables} == {3}
    assert {table.switch_x > 0 for table in tables} == {True, False} == {table.block_order[0] == "red_block" for table in tables}
    for wrong in ("E", "R", "R~x", "E~3"):
        with pytest.raises(UserError, match="no play table scene"):
            scenes.scene(wrong)


@pytest.mark.parametrize("task", ["open_drawer", "move_slider_left", "turn_on_lightbulb", "turn_on_led", "place_in_slider"])
def test_the_expert_plays_on_other_tables(task):
    for seed in range(4):
        table, rng = PlayTable(f"R~{seed}"), np.random.default_rng(seed)
        table.reset(table.sample(tasks.symbolic_for(task, rng), rng), render=False)
        table.start_task()
        expert = Expert(table, task, rng, 0.05)
        for _ in range(150):
            table.step(expert.act(), render=False)
            if table.done(task):
                break
        assert table.done(task), (task, seed)


def test_a_data_set_of_other_tables(tmp_path):
    few = {"episodes_per_task": 1, "validation_per_task": 1, "tasks": ("turn_on_led", "turn_off_led", "open_drawer")}
    root = dataset.write(tmp_path / "calvin", scenes=("R~1", "R~2"), validation_scene="D", workers=1, log=lambda line: None, **few)
    store = ensure_store(root, "training", tmp_path / "store", workers=1, log=lambda line: None)
    assert {info.scene for info in store.episodes} == {"R~1", "R~2"} and len(store) == 6


# --- calm and disturbed demonstrations: the labels are the expert's ---------------------------------------------------------

CALM = {"variation": 0.05, "noise": 0.4, "row": 2}


def played(seed: int = 0, **how) -> tuple[demos.Plan, dict]:
    symbolic = {"led": 0, "lightbulb": 0, "slider": "left", "drawer": "closed", **dict.fromkeys(scenes.BLOCKS, "table")}
    recording = demos.Plan("D", symbolic, ("lift_red_block_table", "stack_block"), (seed,), **how)
    return recording, dataset._play_here(recording)


def test_executed_actions_give_the_recorded_states_and_labels_are_what_the_expert_commands_there():
    disturbed = pushes = 0
    for seed in range(4):
        recording, found = played(seed, variation=0.05, noise=0.4)
        table = PlayTable("D")
        table.reset(found["start"], render=False)
        rng = np.random.default_rng([seed, 0])  # of the first attempt
        table.sample(recording.symbolic, rng)
        for note in found["notes"]:
            noise = demos.Noise(rng, recording.noise)
            table.start_task()
            expert = Expert(table, note["task"], rng, recording.variation)
            for t in range(note["start"], note["end"] + 1):
                np.testing.assert_array_equal(table.robot_obs(), found["robot_obs"][t])
                np.testing.assert_array_equal(table.scene_obs(), found["scene_obs"][t])
                np.testing.assert_array_equal(expert.act(), found["labels"][t])
                np.testing.assert_array_equal(noise(found["labels"][t], found["robot_obs"][t, 2]), found["actions"][t])
                table.step(found["actions"][t], render=False)
            pushes += noise.pushes
            assert table.done(note["task"])
        differs = np.abs(found["actions"] - found["labels"]).max(1) > 0
        assert not (differs & (found["robot_obs"][:, 2] <= 0.57)).any() and (found["actions"][:, 6] == found["labels"][:, 6]).all()
        disturbed += differs.sum()
    assert disturbed > 20 and pushes > 0


def test_a_push_goes_against_the_expert_and_ends_and_low_or_slow_hands_are_left_alone():
    ahead, rng = np.array([1.0, 0, 0, 0, 0, 0, 1]), np.random.default_rng(0)
    runs = []
    for _ in range(200):
        noise = demos.Noise(rng, 1e-9)  # pushes alone
        off = [np.abs(noise(ahead, 0.65) - ahead).max() > 0.1 for _ in range(60)]
        runs += [len(run) for run in "".join("x" if o else " " for o in off).split()]
        assert noise.pushes <= 2
    assert 100 < len(runs) < 400 and max(runs) <= 2 * 12 and np.mean(runs) > 2
    noise = demos.Noise(rng, 0.4)
    assert all((noise(ahead, 0.5) == ahead).all() and (noise(0.5 * ahead, 0.65) == 0.5 * ahead).all() for _ in range(200))


def test_without_variation_or_noise_nothing_has_changed():
    """The same bits as ever: no draw for the noise, no labels, and neighbouring tasks share a frame."""
    _, found = played()
    assert "labels" not in found and found["notes"][0]["end"] == found["notes"][1]["start"]
    assert len(found["actions"]) == len(found["robot_obs"]) - 1
    _, calm = played(variation=0.05)
    np.testing.assert_array_equal(calm["labels"], calm["actions"])
    assert calm["notes"][0]["end"] + 1 == calm["notes"][1]["start"] and len(calm["labels"]) == len(calm["robot_obs"])


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    return dataset.write(tmp_path_factory.mktemp("calm") / "calvin", workers=1, **SMALL, **CALM)


def test_the_data_set_says_and_holds_the_commands(calm):
    about = json.loads((calm / "about.json").read_text())
    assert (about["variation"], about["noise"], about["actions"]) == (0.05, 0.4, "the expert's commands")
    split = Calvin(calm).split("training")
    assert len(split.annotations) == 2 * 4
    numbers = [i for note in split.annotations for i in range(note.start, note.end)]
    frames, following = ([read_frame(split.frame_path(i + k), ("actions", "rel_actions", "robot_obs")) for i in numbers] for k in (0, 1))
    for frame in frames:
        np.testing.assert_allclose(frame["actions"][:3], frame["robot_obs"][:3] + 0.02 * frame["rel_actions"][:3])
        assert np.abs(frame["rel_actions"]).max() <= 1 and abs(frame["rel_actions"][6]) == 1
    off = [np.abs(b["robot_obs"][:3] - a["actions"][:3]).max() for a, b in zip(frames, following, strict=True)]
    assert max(off) > 0.003 and np.median(off) < 1e-9  # disturbed in places, exact elsewhere


def test_the_bits_of_disturbed_play_do_not_depend_on_the_number_of_workers(calm, tmp_path):
    again = dataset.write(tmp_path / "calvin", workers=2, **SMALL, **CALM)
    assert digest(again) == digest(calm)


def test_a_store_of_sparse_pictures_repeats_each_until_the_next(calm, tmp_path):
    """Actions, states and the pictures that are drawn are those of the full data set; info.drawn tells which, and boxes follow them."""
    thin = dataset.write(tmp_path / "calvin", workers=1, draw_every=3, **SMALL, **CALM)
    full = ensure_store(calm, "training", tmp_path / "full", workers=1)
    store = ensure_store(thin, "training", tmp_path / "thin", workers=2)
    assert "info.drawn" not in full.columns and store.meta["played"]["draw_every"] == 3 and len(store) == len(full)
    for i in range(len(store)):
        one, two = full.read(i).columns, store.read(i).columns
        shown = np.arange(len(one["action"])) // 3 * 3
        assert two["info.drawn"].tolist() == (shown == np.arange(len(shown))).tolist()
        for name, values in one.items():
            expected = [values[t] for t in shown] if name.startswith("observation.images") or name == "info.boxes" else values
            np.testing.assert_array_equal(two[name], expected)
    assert len(Batches(store, batch_size=2, chunk=5)) == store.column("info.drawn").sum() < store.frames / 2.8
    assert Calvin(thin).split("validation").frames == Calvin(calm).split("validation").frames
    assert "info.drawn" not in ensure_store(thin, "validation", tmp_path / "validation", workers=1).columns


def test_frames_after_a_damaged_picture_keep_the_one_before(tmp_path):
    few = {"episodes_per_task": 1, "validation_per_task": 1, "log": lambda line: None}
    root = dataset.write(tmp_path / "calvin", tasks=("open_drawer", "close_drawer", "turn_on_led"), workers=1, draw_every=4, **few)
    note = Calvin(root).split("training").annotations[0]
    (root / "training" / f"episode_{note.start + 4:07d}.npz").unlink()
    found = ensure_store(root, "training", tmp_path / "store", workers=1, log=lambda line: None).read(0).columns
    assert note.start + 4 not in found["info.frame"] and found["info.drawn"].tolist()[:9] == [True, *[False] * 6, True, False]
    np.testing.assert_array_equal(found["observation.images.static"][6], found["observation.images.static"][0])
    assert found["info.boxes"][6] == found["info.boxes"][0] != "{}"


def test_ensure_writes_anew_when_variation_or_noise_changes(tmp_path):
    settings = SimpleNamespace(scenes=("D",), tasks=("turn_on_led",), episodes_per_task=1, validation_episodes_per_task=1,
                               evaluation_scene="D", workers=1)  # fmt: skip
    lines, about = [], lambda: json.loads((tmp_path / "calvin" / "about.json").read_text())
    dataset.ensure(tmp_path / "calvin", settings, log=lines.append)
    assert (about()["variation"], about()["noise"]) == (1.0, 0.0)
    settings.variation, settings.noise = 0.05, 0.4
    dataset.ensure(tmp_path / "calvin", settings, log=lines.append)
    assert (about()["variation"], about()["noise"]) == (0.05, 0.4) and any("writing it anew" in line for line in lines)
    count = len(lines)
    dataset.ensure(tmp_path / "calvin", settings, log=lines.append)
    assert len(lines) == count


def test_a_data_set_is_whole_or_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "_boxes", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        dataset.write(tmp_path / "calvin", workers=1, **{**SMALL, "tasks": ("turn_on_led",)})
    assert not (tmp_path / "calvin").exists()


@pytest.mark.parametrize("wrong", [{"scenes": ("E",)}, {"scenes": ()}, {"episodes_per_task": 0}, {"tasks": ("fly",)},
                                   {"variation": 1.5}, {"noise": -0.1}, {"row": 0}, {"draw_every": 0},
                                   {"noise": 0.4, "launch": object()}])  # fmt: skip
def test_bad_arguments_write_nothing(tmp_path, wrong):
    with pytest.raises(UserError):
        dataset.write(tmp_path / "calvin", **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())
