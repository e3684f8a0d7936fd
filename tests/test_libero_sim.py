"""LIBERO's own environments through a worker; skips loudly without `repro sims setup libero` and assets.
Run: pytest tests/test_libero_sim.py"""

import hashlib
import json

import numpy as np
import pytest

from repro.data import libero_hdf5
from repro.machine import UserError
from repro.sims.worker import Worker

SOUP = {"task": 0, "init": 0}
DOWN = np.array([0.3, -0.4, -0.6, 0, 0, 0.1, -1.0])
CHEESE = "pick_up_the_cream_cheese_and_place_it_in_the_basket"


def digest(arrays) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def walk(worker, state, steps=25, look=False) -> str:
    """States after random actions."""
    worker.call("reset", state, render=look)
    rng, seen = np.random.default_rng(0), []
    for i in range(steps):
        worker.call("step", np.clip(DOWN + rng.uniform(-1, 1, 7), -1, 1), render=look and i % 20 == 0)
        seen.append(worker.call("state")["mujoco"])
    return digest(seen)


@pytest.fixture(scope="module")
def soup(request):
    """A worker of libero_object at 256 pixels, for all tests that don't need their own."""
    workers = []

    def get(real):
        if not workers:
            workers.append(Worker(real("libero", suite="libero_object", image_size=256)))
        return workers[0]

    yield get
    for worker in workers:
        worker.close()


def near(box, known, by=1) -> bool:
    return np.abs(np.array(box) - known).max() <= by


def test_same_bits_in_any_order_of_episodes_and_with_pictures(real, soup):
    one = soup(real)
    with Worker(real("libero", suite="libero_object", image_size=256)) as two:
        fresh = walk(one, SOUP)
        other = walk(one, {"suite": "libero_spatial", "task": 7, "init": 3, "seed": 5}, 10)
        assert walk(one, SOUP) == fresh == walk(two, SOUP, look=True), "neither another episode nor pictures change physics"
        assert walk(two, {"suite": "libero_spatial", "task": 7, "init": 3, "seed": 5}, 10) == other, "fixtures too"
        assert walk(two, {"suite": "libero_spatial", "task": 7, "init": 3, "seed": 6}, 10) != other, "the seed places the fixtures"


def test_pictures_and_boxes(real, soup):
    worker = soup(real)
    seen, boxes, about = worker.call("reset", SOUP), worker.call("boxes"), worker.about
    picture = seen["observation.images.static"]
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8 and seen["observation.images.wrist"].shape == (128, 128, 3)
    assert seen["observation.state"].shape == (8,) and seen["observation.state"].dtype == np.float32
    assert near(boxes["alphabet_soup_1"], [55, 110, 74, 134]) and near(boxes["basket_1"], [176, 106, 237, 165]), boxes
    assert abs(picture.mean() - 135.5) < 3, "MuJoCo 3.3.2 draws this floor lighter than later versions"
    assert np.allclose(seen["observation.environment_state"][:2], (-0.119, -0.24), atol=0.005), "the target's x and y"
    assert about["orientation"] == "upright" and about["versions"]["mujoco"] == "3.3.2" and about["image_size"] == [256, 256]
    raws = {}
    for orientation in ("raw", "rotated"):
        with Worker(real("libero", suite="libero_object", image_size=256, orientation=orientation)) as other:
            raws[orientation] = other.call("reset", SOUP)["observation.images.static"]
            x0, y0, x1, y1 = other.call("boxes")["alphabet_soup_1"]
            flipped = [256 - 74, 110, 256 - 55, 134] if orientation == "rotated" else [55, 256 - 134, 74, 256 - 110]
            assert near([x0, y0, x1, y1], flipped), orientation
    assert (raws["raw"][::-1] == picture).all() and (raws["raw"][::-1, ::-1] == raws["rotated"]).all()


def test_what_is_refused(real, soup, tmp_path):
    worker = soup(real)
    worker.call("reset", SOUP, render=False)
    before = worker.call("state")["mujoco"]
    for wrong in (np.zeros(6), np.zeros((1, 7)), np.zeros(7, np.int64), np.full(7, np.nan)):
        with pytest.raises(UserError, match="bad LIBERO action"):
            worker.call("step", wrong)
    assert (worker.call("state")["mujoco"] == before).all(), "a refused action moves nothing"
    refused = {"no LIBERO suite 'libero_object2'": {"suite": "libero_object2"}, "no task 10": {"task": 10},
               "no task 'fly'": {"task": "fly"}, "no init state 50": {"init": 50}, "no layout 'narrow'": {"layout": "narrow"}}
    for said, change in refused.items():
        with pytest.raises(UserError, match=said):
            worker.call("reset", SOUP | change, render=False)
    with pytest.raises(UserError, match="an episode has one task"):
        worker.call("done", CHEESE)
    for said, options in {"holds no LIBERO assets": {"assets": str(tmp_path)}, "no LIBERO suite 'libero'": {"suite": "libero"},
                          "no renderer 'glx'": {"renderer": "glx"}, "no orientation 'left'": {"orientation": "left"}}.items():
        with pytest.raises(UserError, match=said):
            Worker(real("libero", **options))


def test_another_mujoco_is_refused(real, tmp_path):
    """Another version in front of the environment's own, as an installed package's metadata says it."""
    launch = real("libero", suite="libero_object")
    (tmp_path / "mujoco-3.8.1.dist-info").mkdir()
    (tmp_path / "mujoco-3.8.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: mujoco\nVersion: 3.8.1\n")
    other = type(launch)(launch.make, launch.options, launch.python, launch.environment, (str(tmp_path),), launch.one_a_process)
    with pytest.raises(UserError, match="MuJoCo 3.8.1 draws and settles"):
        Worker(other)
    allowed = type(other)(other.make, other.options | {"any_mujoco": True}, other.python, other.environment, other.path)
    with Worker(allowed) as worker:
        assert worker.about["versions"]["mujoco"] == "3.8.1", "what was found is in every record"


def test_wide_layout(real, soup):
    worker = soup(real)
    places, official = [], worker.call("reset", SOUP)["observation.environment_state"]
    settled = worker.call("state")["settled"]
    for seed in (0, 1, 0):
        moved = worker.call("reset", SOUP | {"layout": "wide", "seed": seed})["observation.environment_state"]
        shift = np.abs(moved - official)
        assert shift[:2].max() <= 0.071 and shift[3:5].max() <= 0.051 and shift[[0, 1, 3, 4]].max() > 0.005, shift
        assert np.linalg.norm(moved[:2] - moved[3:5]) > 0.19
        now = worker.call("state")["settled"]
        assert all(now[name] < settled[name] + 0.01 for name in now), "nothing overlapped: nothing was thrown"
        places.append(moved)
    assert (places[0] == places[2]).all() and (places[0] != places[1]).any()
    with pytest.raises(UserError, match="wide layout needs a movable target"):
        worker.call("reset", {"suite": "libero_goal", "task": 0, "layout": "wide"}, render=False)


def test_a_recorded_state_is_where_it_begins(real, soup):
    worker = soup(real)
    worker.call("reset", SOUP, render=False)
    for _ in range(12):
        worker.call("step", DOWN, render=False)
    flat = worker.call("state")["mujoco"]
    worker.call("reset", {"task": 0, "flat": flat.tolist(), "settle": False}, render=False)
    assert np.array_equal(worker.call("state")["mujoco"], flat), "not a step more"
    worker.call("reset", {"task": 0, "flat": flat.tolist()}, render=False)
    assert np.abs(worker.call("state")["mujoco"] - flat).max() > 1e-3, "ten dummy actions after it"
    for said, wrong in (("this is no state of", {"flat": flat[:-1].tolist()}), ("is not moved", {"flat": flat.tolist(), "layout": "wide"})):
        with pytest.raises(UserError, match=said):
            worker.call("reset", {"task": 0, **wrong}, render=False)


def record(worker, state, **settings) -> dict:
    return worker.ask_and_wait("apply", "repro.sims.libero_expert:record", [state, [0], {"every": 0, "tries": 1, **settings}])


def test_expert(real, soup):
    worker = soup(real)
    for state in (SOUP | {"task": 3}, SOUP | {"suite": "libero_spatial", "task": 8}):
        played = record(worker, state)
        actions = played["actions"]
        assert played["success"] and len(actions) < 200 and np.abs(actions).max() <= 1
        assert actions[0, 6] == 1 and (actions[:, 6] == -1).sum() > 20 and (actions == played["expert_actions"]).all()
        assert record(worker, state)["states"].tobytes() == played["states"].tobytes(), "the same seed, the same bits"
    noisy = record(worker, SOUP, noise=[0.25], pushes=1.0, tries=3)
    apart = np.abs(noisy["actions"] - np.clip(noisy["expert_actions"], -1, 1)).max(0)
    assert noisy["success"] and noisy["pushed"] and apart[:3].min() > 0.1 and (apart[3:] == 0).all()
    with pytest.raises(UserError, match="the scripted expert cannot do"):
        record(worker, {"suite": "libero_goal", "task": 0})


def test_hdf5_in_liberos_layout(real, soup, tmp_path):
    h5py = pytest.importorskip("h5py")
    launch = lambda suite: real("libero", suite=suite, orientation="raw")
    quiet = lambda line: None
    folder = libero_hdf5.write(tmp_path, tasks=(3,), per_task=1, launch=launch, first=4, every=1, log=quiet)
    (path,) = folder.iterdir()
    assert path.name == "pick_up_the_bbq_sauce_and_place_it_in_the_basket_demo.hdf5" and path.parent.name == "libero_object"
    with h5py.File(path) as file:
        data, demo = file["data"], file["data/demo_0"]
        official = {"env_name", "problem_info", "bddl_file_name", "bddl_file_content", "env_args", "macros_image_convention", "num_demos",
                    "total"}
        assert official <= set(data.attrs) and data.attrs["macros_image_convention"] == "opengl" and data.attrs["num_demos"] == 1
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "pick the bbq sauce and place it in the basket"
        assert data.attrs["repro_source"] == "scripted, not human"
        assert data.attrs["repro_assets"] == json.loads(data.attrs["repro_about"])["assets"]
        steps = demo.attrs["num_samples"]
        assert data.attrs["total"] == steps and demo.attrs["model_file"].startswith("<mujoco") and "/home" not in demo.attrs["model_file"]
        shapes = {"actions": 7, "states": 110, "robot_states": 9, "obs/ee_states": 6, "obs/ee_pos": 3, "obs/ee_ori": 3,
                  "obs/gripper_states": 2, "obs/joint_states": 7}
        assert {name: demo[name].shape for name in shapes} == {name: (steps, n) for name, n in shapes.items()}
        assert demo["actions"].dtype == np.float64 and (demo.attrs["init_state"] == demo["states"][0]).all()
        assert demo["rewards"][:].tolist() == demo["dones"][:].tolist() == [0] * (steps - 1) + [1]
        for camera in ("agentview_rgb", "eye_in_hand_rgb"):
            assert demo["obs"][camera].shape == (steps, 128, 128, 3) and demo["obs"][camera].dtype == np.uint8
        gripper = demo["actions"][:, 6]
        assert gripper[0] == -1 and gripper.max() == 1, "LIBERO's sign: -1 opens"
        assert np.allclose(demo["robot_states"][:, 2:5], demo["obs/ee_pos"][:])
        assert np.allclose(demo["extras/state"][1:, :3], demo["obs/ee_pos"])
        first, boxes, states = demo["extras/agentview_rgb"][0], demo["extras/boxes"][:], demo["states"][:]
        assert boxes.shape == (steps + 1, 2, 4) and demo["extras/steps"][:].tolist() == list(range(steps + 1))
        drawn = demo["obs/agentview_rgb"][:]
    with Worker(launch("libero_object")) as worker:
        seen = worker.call("reset", {"task": 3, "init": 4, "seed": 4})
        assert (seen["observation.images.static"] == first).all() and worker.call("boxes")["bbq_sauce_1"] == boxes[0, 0].tolist()
        assert (worker.call("state")["mujoco"] == states[0]).all()
        actions = libero_hdf5.libero_sign(np.load(_actions(path, tmp_path)))
        seen = worker.call("step", actions[0])
        assert (seen["observation.images.static"] == drawn[0]).all(), "frame k is seen after action k, as in LIBERO's own files"
    with pytest.raises(UserError, match="is there already"):
        libero_hdf5.write(tmp_path, tasks=(3,), per_task=1, launch=launch, every=50, log=quiet)


def _actions(path, folder):
    """The actions of demo_0 in a file of their own."""
    import h5py

    with h5py.File(path) as file:
        np.save(folder / "actions.npy", file["data/demo_0/actions"][:])
    return folder / "actions.npy"


def test_hdf5_with_few_pictures_cannot_be_misread(real, soup, tmp_path):
    h5py = pytest.importorskip("h5py")
    quiet = lambda line: None
    with pytest.raises(UserError, match="raw pictures"):
        libero_hdf5.write(tmp_path, tasks=(0,), per_task=1, launch=lambda suite: real("libero", suite=suite), every=60, log=quiet)
    assert not list(tmp_path.rglob("*.hdf5")) and not list(tmp_path.rglob("*.part")), "whole or not at all"
    launch = lambda suite: real("libero", suite=suite, orientation="raw")
    folder = libero_hdf5.write(tmp_path, tasks=(0,), per_task=1, layout="wide", launch=launch, every=40, noise=(0.1,), log=quiet)
    with h5py.File(next(folder.iterdir())) as file:
        assert file["data"].attrs["repro_every"] == 40 and "every 40th step" in file["data"].attrs["repro_pictures"]
        for demo in file["data"].values():
            assert "agentview_rgb" not in demo["obs"] and demo["obs/ee_pos"].shape == (demo.attrs["num_samples"], 3)
            count = len(demo["extras/steps"])
            assert demo["extras/steps"][:].tolist() == [40 * i for i in range(count)] and count >= 3
            assert demo["extras/agentview_rgb"].shape == demo["extras/eye_in_hand_rgb"].shape == (count, 128, 128, 3)
            wanted, executed = demo["extras/expert_actions"][:], demo["actions"][:]
            assert wanted.shape == executed.shape and (wanted != executed).any() and (wanted[:, 6] == executed[:, 6]).all()


@pytest.mark.full
@pytest.mark.parametrize(("suite", "layout", "least"), [("libero_object", "official", 29), ("libero_object", "wide", 28),
                                                         ("libero_spatial", "official", 27)])
def test_expert_on_all_tasks(real, suite, layout, least):
    with Worker(real("libero", suite=suite)) as worker:
        starts = [{"task": task, "init": init, "layout": layout, "seed": init} for task in range(10) for init in range(3)]
        solved = [record(worker, start)["success"] for start in starts]
    assert sum(solved) >= least, solved
