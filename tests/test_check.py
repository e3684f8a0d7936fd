"""`repro evaluate --check`: each line says FAIL for what it is about, and only then. Run: pytest tests/test_check.py"""

import shutil
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import cv2
import h5py
import numpy as np
import pytest
import torch
from torch import nn

from repro.data import episodes, libero_hdf5
from repro.data.calvin_import import ensure_store
from repro.data.episodes import Episode, Store, StoreWriter
from repro.data.libero import import_libero
from repro.doctor import FAIL, OK, WARN
from repro.evaluation import answers, check, rehearsal
from repro.evaluation.policies import load_policy
from repro.machine import UserError
from repro.models.vggt_vla import PRESETS, VGGTVLA
from repro.sims import base, calvin_layout
from repro.sims.tabletop.world import PlayTable
from repro.training import checkpoint

SOUND = ["loads", "forward", "same twice", "action range", "knows data", "reads", "looks", "statistics", "gripper", "orientation", "replay",
         "own rollouts"]  # fmt: skip
MILK, BUTTER = (f"pick_up_the_{item}_and_place_it_in_the_basket" for item in ("milk", "butter"))
STATIC, WRIST, STATE = "observation.images.static", "observation.images.wrist", "observation.state"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three demonstrations each of two grocery tasks, official init states. LIBERO's files stay beside it, in grocery/."""
    top = tmp_path_factory.mktemp("check")
    launch = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    files = libero_hdf5.write(top, "grocery", (MILK, BUTTER), 3, launch=launch, log=lambda line: None)
    import_libero(files, top / "store")
    return Store(top / "store")


@dataclass(frozen=True)
class Config:
    chunk: int = 5
    orientation: str = "upright"


LOOKS = 0.2  # m for a grey level


def thumb(picture):
    """(12, 12) grey levels"""
    return cv2.resize(picture, (12, 12), interpolation=cv2.INTER_AREA).astype(np.float32).mean(2)


class Recalls(nn.Module):
    """Does what was recorded where state and pictures were nearest, under the same instruction; what a well trained policy does on its own
    data."""

    def __init__(self, store, change=lambda actions: actions, stats=None):
        super().__init__()
        self.anchor, self.config, self.change, self.known = nn.Parameter(torch.zeros(1)), Config(), change, {}
        self.stats = stats or {STATE: {key: store.stats[STATE][key].tolist() for key in ("mean", "std")}}
        for info in store.episodes:
            columns, starts = store.read(info.index, [STATE, STATIC, "action"]).columns, np.arange(info.length)
            following = np.minimum(starts[:, None] + np.arange(5), info.length - 1)
            thumbs = np.stack([thumb(picture) for picture in columns[STATIC]])
            self.known.setdefault(info.task, []).append((columns[STATE], thumbs, columns["action"][following]))

    def act(self, observations, instructions):
        found = []
        for seen, told in zip(observations, instructions, strict=True):
            states, thumbs, chunks = (np.concatenate(part) for part in zip(*self.known[told], strict=True))
            far = np.abs(states - seen[STATE]).sum(1) + LOOKS * np.abs(thumbs - thumb(seen[STATIC])).mean((1, 2))
            found.append(chunks[far.argmin()])
        return self.change(np.array(found, np.float32))


def altered(store, out, only=lambda info: True, **changes):
    """A copy of the store with columns changed; changes: column's last word -> function of the episode's values. only: which episodes."""
    with StoreWriter(out, store.fps, {k: v for k, v in store.meta.items() if k != "hash"}) as writer:
        for info in filter(only, store.episodes):
            episode = store.read(info.index)
            columns = {name: changes.get(name.split(".")[-1], lambda x: x)(values) for name, values in episode.columns.items()}
            writer.add(Episode(episode.task, columns, episode.info))
    return Store(out)


def lines(policy, store, monkeypatch, **settings):
    """{name: status} of all lines but the two that train."""
    monkeypatch.setattr(check, "load_policy", lambda folder, store, **parts: policy)
    found = list(check.checks("nowhere", store, overfit=False, **settings))
    assert all(bool(line.next_step) == (line.status != OK) for line in found), "a next step where there is something to do"
    return {line.name: line.status for line in found}


def failed(found):
    return [name for name, status in found.items() if status == FAIL]


def test_what_is_sound_passes(store, monkeypatch):
    assert lines(Recalls(store), store, monkeypatch) == dict.fromkeys(SOUND, OK)


def shaken(actions):
    return np.clip(actions + 0.001 * np.random.default_rng().normal(size=actions.shape), -1, 1).astype(np.float32)


def reverses(actions):
    return actions * np.float32([1, 1, 1, 1, 1, 1, -1])


@pytest.mark.parametrize("line, change", [
    ("same twice", shaken),
    ("action range", lambda actions: 20 * actions),
    ("gripper", reverses),
    ("forward", lambda actions: actions[..., :6]),
    ("forward", lambda actions: actions * np.nan),
])  # fmt: skip
def test_a_broken_policy_fails_its_own_line(store, monkeypatch, line, change):
    found = lines(Recalls(store, change), store, monkeypatch)
    first, *others = failed(found)
    assert first == line and set(others) <= {"knows data", "reads", "own rollouts"}, others
    assert list(found) == SOUND and (line != "forward" or all(found[name] == WARN for name in (*check.ACTS, "own rollouts")))


def test_a_gripper_worse_than_the_commoner_sign_is_not_sound(store):
    """In four of ten frames right is neither the reverse nor knowledge."""
    frames = answers.frames_of(store)
    signs = np.sign([one.following[0, 6] for one in frames])
    for share, status in ((1.0, OK), (0.42, WARN), (0.1, FAIL)):
        said = signs * np.where(np.arange(len(signs)) < share * len(signs), 1, -1)
        parts = np.split(np.tile(said[:, None, None], (1, 5, 7)), range(answers.TOGETHER, len(said), answers.TOGETHER))
        policy = SimpleNamespace(act=lambda seen, told, parts=parts: parts.pop(0))
        assert check.gripper(policy, frames, {"open": 1.0}).status == status
    assert "the model" not in check.gripper(None, frames, {"open": 1.0}).found, "which was not asked"


class Constant(Recalls):
    """The best there is of those that say the same whatever they are shown."""

    def act(self, observations, instructions):
        every = np.concatenate([chunks for parts in self.known.values() for *_, chunks in parts])
        return np.tile(np.append(np.median(every[..., :6], 0), np.sign(every[..., 6:].sum(0)), 1), (len(observations), 1, 1))


class Deaf(Recalls):
    """Looks, and does not read: the nearest of all tasks."""

    def __init__(self, store):
        super().__init__(store)
        self.known = dict.fromkeys(self.known, [part for parts in self.known.values() for part in parts])


class Scrambled(Recalls):
    """Trained, then its words were exchanged."""

    def __init__(self, store):
        super().__init__(store)
        self.known = dict(zip(self.known, list(self.known.values())[::-1], strict=True))


def test_a_policy_that_learned_nothing_does_not_pass(store, monkeypatch):
    """A constant in the data's range is deterministic, finite and has the gripper right most of the time."""
    assert failed(lines(Constant(store), store, monkeypatch)) == ["knows data", "reads", "looks", "own rollouts"]


def test_a_policy_that_does_not_read_or_look(store, monkeypatch):
    assert failed(lines(Deaf(store), store, monkeypatch)) == ["reads"]
    assert {"reads", "own rollouts"} <= set(failed(lines(Scrambled(store), store, monkeypatch)))
    monkeypatch.setattr(sys.modules[__name__], "LOOKS", 0.0)
    assert "looks" in failed(lines(Recalls(store), store, monkeypatch))


def test_what_one_task_cannot_show_is_said(store, tmp_path, monkeypatch):
    alone = altered(store, tmp_path / "alone", only=lambda info: info.task_id == MILK)
    found = lines(Recalls(alone), alone, monkeypatch)
    assert found.pop("reads") == WARN and set(found.values()) == {OK}


def test_demonstrations_are_begun_of_several_tasks(store):
    assert [(start.index, start.task) for start in rehearsal.starts(store)] == [(0, BUTTER), (3, MILK), (1, BUTTER)]


def told_of(*episodes, simulator="libero"):
    """A store that says so much: (scene, task_id, sentence) of each episode, all with a start."""
    infos = [SimpleNamespace(index=i, scene=scene, task_id=task, task=sentence, info={"start": {"flat": [i]}})
             for i, (scene, task, sentence) in enumerate(episodes)]
    features = {f"observation.images.{camera}": {"shape": (64, 64, 3)} for camera in ("static", "wrist")}
    return SimpleNamespace(folder="stored", episodes=infos, columns=(), meta={"simulator": simulator}, info={"features": features})


def test_libero_is_started_by_the_benchmarks_names_not_by_those_of_a_folder(monkeypatch):
    monkeypatch.setattr(rehearsal.environments, "launch", lambda name, **options: (name, options["suite"]))
    said = MILK.replace("_", " ")
    of_a_maker = told_of(("libero_object_no_noops", "task_7", said), ("libero_object_no_noops", MILK, said))
    assert [(start.scene, start.task) for start in rehearsal.starts(of_a_maker)] == [("libero_object", MILK)] * 2
    assert rehearsal.simulator_of(of_a_maker) == ("libero", "libero_object")
    mixed = told_of(("data", "a", "turn on the stove and put the moka pot on it"), ("data", "b", said), ("data", "c", "sing a song"))
    assert [start.scene for start in rehearsal.starts(mixed)] == ["libero_10"], "of one suite alone, and never of what nobody knows"
    with pytest.raises(UserError, match="which suite is it(.|\n)*libero_10, libero_object"):
        rehearsal.simulator_of(mixed)


def test_a_file_that_was_renamed_is_started_by_the_benchmarks_name():
    """A simulator's reset takes no other."""
    renamed = told_of(("my files", "milk, cleaned", MILK.replace("_", " ")))
    renamed.episodes[0].info["start"]["task"] = "milk, cleaned"
    start, = rehearsal.starts(renamed)
    assert start.task == start.state["task"] == MILK and start.state["flat"] == [0]
    assert "task" not in rehearsal.starts(told_of(("libero_object", MILK, "")))[0].state, "none is added"


def test_wrong_statistics(store, monkeypatch):
    stats = {STATE: {"mean": store.stats[STATE]["mean"] + np.float32([0.5, 0, 0, 0, 0, 0, 0, 0]), "std": store.stats[STATE]["std"]}}
    assert failed(lines(Recalls(store, stats=stats), store, monkeypatch)) == ["statistics"]
    stats = {STATE: {"mean": store.stats[STATE]["mean"], "std": 100 * store.stats[STATE]["std"]}}  # in centimetres
    assert failed(lines(Recalls(store, stats=stats), store, monkeypatch)) == ["statistics"]


@pytest.mark.parametrize("flip", [np.s_[:, ::-1], np.s_[:, :, ::-1], np.s_[:, ::-1, ::-1]])
def test_pictures_that_lie_otherwise(store, tmp_path, monkeypatch, flip):
    """Upside down, mirrored, turned by 180 degrees: nothing else notices before it acts, and training would not either."""
    turned = altered(store, tmp_path / "turned", static=lambda pictures: np.ascontiguousarray(pictures[flip]))
    assert failed(lines(Recalls(turned), turned, monkeypatch)) in (["orientation"], ["orientation", "own rollouts"])


def test_what_the_import_accepts_with_a_warning_passes_with_one(store):
    """The same numbers from which data/evidence.py warns and refuses."""
    ask = lambda up, where=None: check.orientation(Recalls(store), store, {"right": 0.9, "up": up}, where, rehearsal.starts(store)[0])
    found = {up: ask(up) for up in (0.9, -0.29, -0.31, -0.49, -0.51)}
    assert [one.status for one in found.values()] == [OK, OK, WARN, WARN, FAIL]
    assert "up -0.31" in found[-0.31].found and "--orientation" in found[-0.31].next_step
    seen = ask(-0.4, base.grocery(image_size=48, wrist_size=32))
    assert seen.status == WARN and "speak against the hand" in seen.found and "the simulator draws" in seen.found


def test_a_simulator_or_a_model_that_shows_them_otherwise(store):
    evidence, start = check.evidence_of(store), rehearsal.starts(store)[0]
    ask = lambda **how: check.orientation(Recalls(store), store, evidence, base.grocery(image_size=48, wrist_size=32, **how), start)
    assert ask().status == OK
    turned = ask(orientation="rotated")
    assert turned.status == FAIL and "mirrored" in turned.found  # the grocery table's "rotated" is what a half turn of raw pictures gives
    assert "upside down" in ask(orientation="raw").found
    policy = Recalls(store)
    policy.config = Config(orientation="rotated")
    assert "the model is for rotated" in check.orientation(policy, store, evidence, None, None).found


def test_the_gripper_the_other_way_round_in_the_data(store, tmp_path, monkeypatch):
    other = altered(store, tmp_path / "other", action=reverses)
    assert failed(lines(Recalls(other), other, monkeypatch)) == ["gripper", "replay"], "it can't be replayed either"


def test_demonstrations_of_the_play_table_begin_where_they_did(tmp_path):
    """Stores have blocks red, blue, pink, simulators an order of their own: on this table red, pink, blue."""
    root = calvin_layout.write(tmp_path / "calvin", scenes=("R~1",), validation_scene="D", workers=1, log=lambda line: None,
                               episodes_per_task=1, validation_per_task=1, tasks=("lift_blue_block_table", "lift_pink_block_table"))
    store = ensure_store(root, "training", tmp_path / "store", workers=1, log=lambda line: None)
    table = PlayTable("R~1")
    assert table.block_order == ("red_block", "pink_block", "blue_block")
    found = rehearsal.starts(store)
    assert {start.task for start in found} == {"lift_blue_block_table", "lift_pink_block_table"}
    for start in found:
        table.reset(start.state, render=False)
        seen = store.read(start.index, ["observation.environment_state", "observation.images.static"]).columns
        blocks = table.state()["scene_obs"][6:].reshape(3, 6)[[0, 2, 1]]
        np.testing.assert_allclose(blocks.ravel(), seen["observation.environment_state"][0][6:], atol=1e-6)
        drawn = table.observe()["observation.images.static"].astype(float)
        assert np.abs(drawn - seen["observation.images.static"][0]).mean() < 1, "and it looks so"
        assert rehearsal.play(store, rehearsal.simulator_of(store, None, start.scene), start), "its own actions do the task"


def test_a_replay_of_other_actions(store, tmp_path, monkeypatch):
    half = altered(store, tmp_path / "half", action=lambda actions: actions * np.float32([0.5, 0.5, 0.5, 1, 1, 1, 1]))
    assert failed(lines(Recalls(half), half, monkeypatch)) == ["replay"]


def test_what_cannot_be_tried_is_said(store, tmp_path, monkeypatch):
    last = ["replay", "own rollouts"]
    found = lines(Recalls(store), store, monkeypatch, simulator="none")
    assert [name for name, status in found.items() if status == WARN] == last and not failed(found)
    assert failed(lines(Recalls(store), store, monkeypatch, simulator="moon")) == ["simulator"]
    unknown = altered(store, tmp_path / "unknown")
    for info in unknown.episodes:
        del info.info["state"]
    found = list(check.checks("nowhere", unknown))  # as of a LeRobot set: with training asked for, each line says why it was not tried
    said = [line for line in found if line.status == WARN]
    assert [line.name for line in said] == [*last, "overfits", "closed loop", "alone"]
    assert all("does not say where its demonstrations start" in line.found and "LeRobot" in line.next_step for line in said)


def test_data_of_several_suites_need_no_simulator_where_no_start_is_known(store, tmp_path, monkeypatch):
    """As of LeRobot's libero, of all suites: they lack starts, and no suite has to be named for that."""
    both = altered(store, tmp_path / "both")
    for i, info in enumerate(both.episodes):
        del info.info["state"]
        said = "turn on the stove and put the moka pot on it" if i % 2 else MILK.replace("_", " ")
        both.episodes[i] = replace(info, scene="data", task_id=said, task=said)
    both.meta["simulator"] = "libero"
    with pytest.raises(UserError, match="which suite is it"):
        rehearsal.simulator_of(both)
    found = lines(Recalls(both), both, monkeypatch)
    assert "simulator" not in found and found["replay"] == found["own rollouts"] == WARN


def test_a_damaged_picture_is_a_line_that_names_its_episode(store, tmp_path, monkeypatch):
    whole = episodes.encode_png
    with monkeypatch.context() as patch:
        patch.setattr(episodes, "encode_png", lambda picture: whole(picture)[: 20 if picture[0, 0, 0] == 77 else None])
        mark = lambda pictures: np.concatenate([pictures[:-1], np.full_like(pictures[-1:], 77)])  # each episode's last
        broken = altered(store, tmp_path / "broken", static=mark)
    monkeypatch.setattr(check, "load_policy", lambda folder, store, **parts: Recalls.__new__(Recalls))
    monkeypatch.setattr(Recalls, "parameters", lambda self: [])
    loads, data = check.checks("nowhere", broken)
    assert (loads.status, data.name, data.status) == (OK, "data", FAIL)
    assert "(episode 0) cannot be read" in data.found and data.next_step == "remove the store and import it again"
    with pytest.raises(UserError, match="(?s)episode 0.*cannot be read"):
        check.evidence_of(broken)


def as_others_write(files, out, regenerated):
    """Copies of scripted files without what only ours have: LIBERO's original layout, or OpenVLA's, a row before its action."""
    out.mkdir(parents=True)
    for path in sorted(files.glob("*.hdf5")):
        shutil.copy(path, out / path.name)
        with h5py.File(out / path.name, "r+") as file:
            for demo in file["data"].values():
                if regenerated:
                    for name, key in (("agentview_rgb", "agentview_rgb"), ("eye_in_hand_rgb", "eye_in_hand_rgb")):
                        demo["obs"][name][...] = np.concatenate([demo["extras"][key][:1], demo["obs"][name][:-1]])
                    state = demo["extras"]["state"][: len(demo["actions"])]
                    demo["obs"]["ee_states"][...], demo["obs"]["gripper_states"][...] = state[:, :6], state[:, 6:]
                del demo["extras"]
                for name in [name for name in demo.attrs if name.startswith("repro_")]:
                    del demo.attrs[name]
            for name in [name for name in file["data"].attrs if regenerated or name.startswith("repro_")]:
                del file["data"].attrs[name]
    return out


@pytest.mark.parametrize("regenerated", [False, True])
def test_liberos_own_files_are_played_again_too(store, tmp_path, monkeypatch, regenerated):
    """No line is left out where demonstrations are not scripted: their files hold the simulator's states."""
    import_libero(as_others_write(store.folder.parent / "grocery", tmp_path / "grocery", regenerated), tmp_path / "store")
    other = Store(tmp_path / "store")
    assert ("regenerated" if regenerated else "original") in other.meta["source"] and "state" not in other.episodes[0].info
    assert lines(Recalls(other), other, monkeypatch, simulator="grocery") == dict.fromkeys(SOUND, OK)
    for info in other.episodes:
        info.info["start"]["flat"][1] += 0.05  # m, the hand's x
    assert "replay" in failed(lines(Recalls(other), other, monkeypatch, simulator="grocery")), "it is the start that is used"


def test_no_checkpoint(store, tmp_path):
    line, = check.checks(tmp_path, store)
    assert (line.name, line.status) == ("loads", FAIL) and "train first" in line.next_step


SMALL = replace(PRESETS["vggt_tiny"], state_dim=8, image_size=32, width=64, backbone="none", query_layers=1, queries=4, head_width=128,
                channels=8, keypoints=8, language_width=16)  # fmt: skip


class Learns(Recalls):
    """Knows after training what it was trained on: only then what it recalls is right."""

    key = "learns"

    def prepare(self, observation):
        return {"state": observation[STATE]}

    def loss(self, batch):
        return {"loss": (self.anchor - 1).square().sum()}

    def forward(self, batch):
        return self.loss(batch)

    def save(self, folder):
        torch.save(self.state_dict(), folder / "model.pt")

    @property
    def device(self):
        return self.anchor.device

    def act(self, observations, instructions):
        return super().act(observations, instructions) * np.float32(self.anchor.item() > 0.5)


class Numb(Learns):
    def loss(self, batch):
        return {"loss": 0 * self.anchor.sum()}


@pytest.mark.parametrize("kind, status", [(Learns, OK), (Numb, FAIL)])
def test_one_demonstration_is_learned_and_then_done(store, monkeypatch, kind, status):
    """The last two lines: training, then the closed loop, of a model that learns and of one that does not."""
    monkeypatch.setattr(rehearsal, "fresh", lambda policy, store: kind(store))
    monkeypatch.setattr(rehearsal, "STEPS", (60, 60))
    policy = Recalls(store)
    policy.trained, policy.device = {"train": {"learning_rate": 0.1, "batch_size": 8}}, torch.device("cpu")
    start, where = rehearsal.starts(store)[0], rehearsal.simulator_of(store)
    found = list(check.overfits(policy, store, [start], where, 1, lambda line: None))
    last = OK if status == OK else WARN
    assert [(line.name, line.status) for line in found] == [("overfits", status), ("closed loop", status), ("alone", last)], found
    assert f"episode {start.index} (the shortest of 1) and " in found[0].found and " pushed plays of it" in found[0].found


@pytest.mark.parametrize("broken, failing, untried", [
    ("learn", ["overfits", "alone"], ["closed loop"]), ("perform", ["closed loop", "alone"], []),
])  # fmt: skip
def test_an_error_stays_in_its_own_line(store, monkeypatch, broken, failing, untried):
    """Whatever raises: all three lines come, each by its own name."""
    def breaks(*given, **named):
        raise cv2.error("in " + broken)

    monkeypatch.setattr(rehearsal, "learn", lambda *given, **named: ("a model", rehearsal.Learned(9, 0.1, 0.0, 1.0, 3)))
    monkeypatch.setattr(rehearsal, broken, breaks)
    found = {line.name: line for line in check.overfits(None, store, rehearsal.starts(store), None, 1, None)}
    assert list(found) == list(check.TRAINED)
    assert [name for name, line in found.items() if line.status == FAIL] == failing and f"in {broken}" in found[failing[0]].found
    assert [name for name, line in found.items() if line.status == WARN] == untried
    assert broken == "learn" or "9 steps in 0.1 min" in found["overfits"].found


def test_plays_with_pushes_are_labelled_with_the_way_back(store, monkeypatch):
    start, where = rehearsal.starts(store)[0], rehearsal.simulator_of(store)
    demo = store.read(start.index).columns
    with monkeypatch.context() as patch:
        patch.setattr(rehearsal, "HARD", 0.0)
        calm, = rehearsal.around(store, where, start, count=1)
    n = len(calm.columns["action"])
    np.testing.assert_allclose(calm.columns["action"], demo["action"][:n], atol=2e-3, err_msg="without pushes it is the demonstration")
    for name in (STATE, "observation.images.static"):
        assert np.abs(calm.columns[name].astype(float) - demo[name][:n]).mean() < (1e-3 if name == STATE else 1.0)
    plays = rehearsal.around(store, where, start, count=4)
    assert plays and set(plays[0].columns) == set(demo)
    for play in plays:
        action, state = play.columns["action"], play.columns[STATE]
        off = demo[STATE][: len(action), :3] - state[:, :3]
        far = np.abs(off) > 0.01
        assert far.any(), "the pushes show"
        back = (action - demo["action"][: len(action)])[:, :3]
        assert (np.sign(back[far]) == np.sign(off[far]))[np.abs(back[far]) > 0].all(), "labels lead back"
        assert np.abs(off[-1]).max() < 0.02, "and it comes back"
    monkeypatch.delitem(store.meta, "action")
    with pytest.raises(UserError, match="does not say how far"):
        rehearsal.around(store, where, start)


def test_a_fresh_model_of_the_same_config_learns(store, tmp_path, monkeypatch):
    """A real one, for a few steps: other weights than the checkpoint's, and an error that falls."""
    torch.manual_seed(3)
    VGGTVLA.build(SMALL, store.stats, [info.task for info in store.episodes]).save(tmp_path)
    policy = load_policy(tmp_path, store)
    model = rehearsal.fresh(policy, store)
    assert model.config == policy.config and not torch.equal(model.head[0].weight, policy.head[0].weight)
    begun, asked = time.monotonic(), []
    slow = lambda *given: (time.sleep(1.0), [])[1]
    monkeypatch.setattr(rehearsal, "around", slow)
    whole = answers.asked
    monkeypatch.setattr(answers, "asked", lambda model, frames: asked.append(len(frames)) or whole(model, frames))
    model, found = rehearsal.learn(policy, store, rehearsal.starts(store)[0], rehearsal.simulator_of(store), 0.01)
    assert found.steps == rehearsal.STEPS[0] and found.error < found.floor and found.plays == 0
    assert 0 < 60 * found.minutes < time.monotonic() - begun - 1.0, "of training alone"
    assert asked == [store.episodes[0].length], "in parts"
    (_, limit) = rehearsal.perform(model, store, rehearsal.simulator_of(store), rehearsal.starts(store)[:1])
    assert limit == 2 * store.episodes[0].length + 20


def test_a_checkpoint_of_another_kind_of_data_does_not_load(store, tmp_path):
    VGGTVLA.build(SMALL, store.stats, [info.task for info in store.episodes]).save(tmp_path)
    other = altered(store, tmp_path / "other")
    other.meta["orientation"] = "rotated by 180 degrees"
    with pytest.raises(UserError, match="cameras.orientation"):
        load_policy(tmp_path, other)
    (tmp_path / "model.json").write_text('{"model": "Oracle"}')
    with pytest.raises(UserError, match="names no model that acts"):
        load_policy(tmp_path)


def test_a_damaged_checkpoint_that_is_named_itself_is_refused(store, tmp_path):
    model = VGGTVLA.build(SMALL, store.stats, [info.task for info in store.episodes])
    step = checkpoint.save(tmp_path / "run", 1, model.save, {}, {}, keep=1)
    assert not load_policy(step).training, "as it acts"
    weights = step / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is not what was saved(.|\n)*name the run, .*run"):
        load_policy(step)
