"""Gaze boxes from CALVIN's state, and the check that state, block order and camera fit the pictures: `pytest tests/test_gaze_state.py`.

On recorded frames of the real simulator (calvin_sim) and on the simulator itself where they are; geometry and check also on drawn pictures.
"""

import math
from dataclasses import asdict
from itertools import permutations
from pathlib import Path

import cv2
import numpy as np
import pytest

from repro.data.calvin_frames import BLOCK_ORDER, canonical
from repro.gaze.state import BLOCKS, TABLES, camera_of, check, state_boxes
from repro.machine import UserError
from repro.sims.tabletop.render import STATIC_EYE, STATIC_TARGET, STATIC_UP, static_camera
from repro.sims.tabletop.scenes import ITEMS

BENCHMARKS = str(Path(__file__).resolve().parents[1] / "benchmarks")
COLOURS = {"red_block": (200, 20, 20), "blue_block": (20, 20, 200), "pink_block": (200, 20, 200)}
ON_TABLE = ((0.05, -0.12, 0.46), (0.25, -0.05, 0.46), (-0.1, -0.03, 0.46))


def world(blocks=ON_TABLE, slider=0.0, drawer=0.0, button=0.0, switch=0.0, yaw=0.0) -> np.ndarray:
    return np.array([slider, drawer, button, switch, 0, 0, *(value for at in blocks for value in (*at, 0, 0, yaw))])


def swapped(states: np.ndarray, slots) -> np.ndarray:
    """The blocks of states (N, 24) in another order."""
    return np.concatenate([states[:, :6], states[:, 6:].reshape(-1, 3, 6)[:, list(slots)].reshape(-1, 18)], 1)


def turned(images: np.ndarray, scale=1.0, right=0.0, down=0.0) -> np.ndarray:
    """The pictures scaled about their middle and shifted, in pixels: another field of view, another frame."""
    middle = (1 - scale) * images.shape[1] / 2
    matrix = np.array([[scale, 0, middle + right], [0, scale, middle + down]])
    return np.stack([cv2.warpAffine(image, matrix, image.shape[1::-1], borderMode=cv2.BORDER_REPLICATE) for image in images])


def drawn(scene="D", count=40, size=200, in_line=False) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of wood-coloured tables with the blocks on them as coloured boxes, and their states. in_line: along the middle row."""
    rng, images, states = np.random.default_rng(0), [], []
    for _ in range(count):
        x = rng.permutation([-0.25, 0.02, 0.28]) + rng.uniform(-0.05, 0.05, 3)
        states.append(world([(a, 0.043 * a - 0.1 if in_line else rng.uniform(-0.14, -0.02), 0.46) for a in x], yaw=rng.uniform(1, 2)))
        image = np.full((size, size, 3), (140, 100, 70), np.uint8)
        for block, box in state_boxes(scene, states[-1]).items():
            if block in COLOURS:
                x0, y0, x1, y1 = (box * size).round().astype(int)
                image[y0:y1, x0:x1] = COLOURS[block]
        images.append(image)
    return np.stack(images), np.stack(states)


@pytest.fixture
def recorded(test_data):
    """Every 16th frame of calvin_sim: pictures and states."""
    files = sorted((test_data("calvin_sim") / "training").glob("episode_*.npz"))[::16]
    frames = [np.load(file) for file in files]
    return np.stack([frame["rgb_static"] for frame in frames]), np.stack([frame["scene_obs"] for frame in frames])


def show(table: dict) -> None:
    for item, row in table.items():
        print(f"{item}: centre inside {row['centre_inside']:.4f} of {row['n']}, IoU median {row['iou_median']:.2f}")


# --- against the renderer's own boxes -----------------------------------------------------------------------------------------------


def test_boxes_on_recorded_frames_of_the_real_simulator(test_data, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gaze_state

    found = gaze_state.recorded(test_data("calvin_sim"))
    show(found["items"])
    assert set(found["items"]) == {*ITEMS, "all"} and found["items"]["all"]["n"] > 9000
    for item, row in found["items"].items():
        assert row["centre_inside"] >= 0.99 and row["iou_at_least_0.5"] >= 0.98 and row["iou_median"] >= 0.85 and row["absent"] == 0, item
    assert max(found["check"]["orders"], key=found["check"]["orders"].get) == ", ".join(BLOCKS)


@pytest.mark.parametrize("scene", TABLES)
def test_boxes_in_the_real_simulator(real, monkeypatch, scene):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gaze_state

    found = gaze_state.simulated(real("calvin", scene=scene), scene, 4, 10)
    show(found["items"])
    assert found["frames"] >= 15 and found["simulator"]["scene"] == scene
    for item, row in found["items"].items():
        if row["n"]:
            assert row["centre_inside"] == 1 and row["iou_at_least_0.5"] >= 0.9, (item, row)
            assert item in BLOCKS or row["iou_median"] >= 0.75, (item, row)  # blocks may be half hidden
    assert found["check"]["orders"][", ".join(gaze_state.scene_order(scene))] >= 0.85, "the data import's order of this scene"


# --- geometry -----------------------------------------------------------------------------------------------------------------------


def test_projection_is_that_of_pybullets_matrices():
    """A block's box by the view and projection matrices that pybullet.computeViewMatrix and computeProjectionMatrixFOV define."""
    eye, target, up = map(np.array, (STATIC_EYE, STATIC_TARGET, STATIC_UP))
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross(up, back) / np.linalg.norm(np.cross(up, back))
    view = np.eye(4)
    view[:3, :3] = right, np.cross(back, right), back
    view[:3, 3] = -view[:3, :3] @ eye
    f, near, far = 1 / math.tan(math.radians(10) / 2), 0.01, 10.0
    lens = np.array([[f, 0, 0, 0], [0, f, 0, 0], [0, 0, (far + near) / (near - far), 2 * far * near / (near - far)], [0, 0, -1, 0]])
    yaw, length = 0.7, 0.056  # the red block of scene D
    turn = np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    corners = np.array([(x, y, z) for x in (-length / 2, length / 2) for y in (-0.02, 0.02) for z in (-0.02, 0.02)]) @ turn.T + ON_TABLE[0]
    clip = np.c_[corners, np.ones(8)] @ (lens @ view).T
    seen = np.c_[(1 + clip[:, 0] / clip[:, 3]) / 2, (1 - clip[:, 1] / clip[:, 3]) / 2]
    box = state_boxes("D", world(yaw=yaw))["red_block"]
    assert box.dtype == np.float32 and np.allclose(box, [*seen.min(0), *seen.max(0)], atol=1e-6)


@pytest.mark.parametrize("scene", TABLES)
def test_joints_move_their_own_items(scene):
    rest, keys = state_boxes(scene, world()), {"slider": 0.2, "drawer": 0.2, "button": 0.02, "switch": 0.08}
    assert set(rest) == set(ITEMS) and all(0 <= b[0] < b[2] <= 1 and 0 <= b[1] < b[3] <= 1 for b in rest.values())
    for joint, value in keys.items():
        now = state_boxes(scene, world(**{joint: value}))
        assert [item for item in ITEMS if (now[item] != rest[item]).any()] == [joint]
        x, y = ((now[joint] - rest[joint])[:2] + (now[joint] - rest[joint])[2:]) / 2
        assert {"slider": x < -0.15, "drawer": y > 0.08, "button": 0 < y < 0.02, "switch": y < -0.1}[joint], (joint, x, y)


@pytest.mark.parametrize("scene", TABLES)
def test_furniture_hides_blocks(scene):
    table, away = TABLES[scene], ON_TABLE[1:]
    in_drawer = lambda pulled: world([(table.drawer, -0.10 - pulled, 0.36), *away], drawer=pulled)
    assert "red_block" not in state_boxes(scene, in_drawer(0.0)) and "red_block" in state_boxes(scene, in_drawer(0.2))
    in_cabinet = lambda door: world([(table.slider - 0.02, 0.08, 0.46), *away], slider=door)
    assert "red_block" not in state_boxes(scene, in_cabinet(0.0)) and "red_block" in state_boxes(scene, in_cabinet(0.24))
    assert "red_block" not in state_boxes(scene, world([(3.0, 0, 0.46), *away])), "outside the picture"


@pytest.mark.parametrize("scene", TABLES)
def test_raw_and_canonical_states_give_the_same_boxes(scene):
    raw, names = world(yaw=1.3), tuple(f"{colour}_block" for colour in BLOCK_ORDER[scene])
    ours, theirs = state_boxes(scene, canonical(raw, scene)), state_boxes(scene, raw, order=names)
    assert all((ours[item] == theirs[item]).all() for item in ITEMS)
    if names != BLOCKS:
        assert (state_boxes(scene, raw)["red_block"] != ours["red_block"]).any()


def test_bad_arguments():
    with pytest.raises(UserError, match="no scene 'E'"):
        state_boxes("E", world())
    with pytest.raises(UserError, match="no order of the blocks"):
        state_boxes("D", world(), order=("red", "blue", "pink"))
    for wrong in (np.zeros(23), np.zeros((2, 24)), np.full(24, np.nan)):
        with pytest.raises(UserError, match="not CALVIN's scene_obs"):
            state_boxes("D", wrong)
    images, states = drawn(count=3)
    with pytest.raises(UserError, match="no scene 'calvin_scene_D'"):
        check(images, states, "calvin_scene_D")
    with pytest.raises(UserError, match="not CALVIN's scene_obs"):
        check(images, states[:2], "D")
    for wrong in (images[:, :100], images / 255, images[..., 0]):
        with pytest.raises(UserError, match="not pictures of CALVIN's static camera"):
            check(wrong, states, "D")


# --- do state and pictures fit? -----------------------------------------------------------------------------------------------------

REFUSED = {  # what is wrong with the pictures: how it is made, what the message must name
    "flipped vertically": (lambda images: images[:, ::-1], "flipped vertically, these pictures fit"),
    "flipped horizontally": (lambda images: images[:, :, ::-1], "flipped horizontally, these pictures fit"),
    "turned around": (lambda images: images[:, ::-1, ::-1], "turned around, these pictures fit"),
    "20 px to the right": (lambda images: turned(images, right=20), "pass the camera"),
    "20 px up": (lambda images: turned(images, down=-20), "pass the camera"),
    "4 px aslant": (lambda images: turned(images, right=3, down=3), "pass the camera"),
    "fov 12": (lambda images: turned(images, math.tan(math.radians(5)) / math.tan(math.radians(6))), "pass the camera"),
    "fov 9": (lambda images: turned(images, math.tan(math.radians(5)) / math.tan(math.radians(4.5))), "pass the camera"),
}


@pytest.mark.parametrize("kind", ["drawn", "recorded"])
def test_the_right_order_and_camera_fit(kind, request):
    images, states = drawn() if kind == "drawn" else request.getfixturevalue("recorded")
    fit = check(images, states, "D")
    assert not fit.unsure and fit.looked > 60 and fit.shares[BLOCKS] > 0.9 and fit.distance < 1.5 and max(map(abs, fit.offset)) < 1, fit
    assert max(share for order, share in fit.shares.items() if order != BLOCKS) < 0.5
    larger = np.stack([cv2.resize(image, (448, 448)) for image in images])
    assert check(larger, states, "D").shares[BLOCKS] > 0.9, "another size of the same picture"
    assert check(images, swapped(states, (2, 1, 0)), "D", order=BLOCKS[::-1]).shares[BLOCKS[::-1]] == fit.shares[BLOCKS]


@pytest.mark.parametrize("kind", ["drawn", "recorded"])
def test_every_other_order_is_refused(kind, request):
    images, states = drawn() if kind == "drawn" else request.getfixturevalue("recorded")
    for slots in permutations(range(3)):
        if slots != (0, 1, 2):
            found = ", ".join(BLOCKS[slot].removesuffix("_block") for slot in slots)
            with pytest.raises(UserError, match=rf"(?s)order assumed.*expected: red, blue, pink.*order {found} fits .*assumed one \d+%"):
                check(images, swapped(states, slots), "D")


def test_a_wrong_scene_gives_itself_away_by_its_order(recorded):
    images, states = recorded
    for scene in "AC":
        with pytest.raises(UserError, match="do not stand in the order assumed"):
            check(images, canonical(states, scene), scene)


@pytest.mark.parametrize("kind", ["drawn", "recorded"])
@pytest.mark.parametrize("what", REFUSED)
def test_other_cameras_are_refused(what, kind, request):
    images, states = drawn() if kind == "drawn" else request.getfixturevalue("recorded")
    make, told = REFUSED[what]
    with pytest.raises(UserError, match=f"(?s)do not fit the camera.*{told}"):
        check(make(images), states, "D")


def test_pictures_of_other_states_are_refused():
    images, states = drawn()
    with pytest.raises(UserError, match="(?s)do not fit the camera.*pictures of these very states"):
        check(images, np.roll(states, 1, 0), "D")
    with pytest.raises(UserError, match="do not fit the camera"):
        check(images, np.concatenate([np.roll(states[:18], 1, 0), states[18:]]), "D")  # 18 of 40: the median alone would not tell


def test_pictures_that_a_turn_fits_no_better_are_not_to_be_turned():
    images, states = drawn(in_line=True)  # flipped vertically the blocks are where they were
    assert check(images, states, "D").shares[BLOCKS] > 0.9 and check(images[:, ::-1], states, "D").shares[BLOCKS] > 0.9
    with pytest.raises(UserError, match="do not fit the camera") as error:
        check(turned(images, right=2, down=2), states, "D")
    assert "pass the camera" in str(error.value) and "turn them" not in str(error.value)


def test_the_camera_that_took_the_pictures_is_accepted():
    images, states = drawn()
    wide = static_camera()
    wide = type(wide)(wide.size, wide.focal * 0.8, wide.eye, wide.axes)
    with pytest.raises(UserError, match="do not fit the camera"):
        check(turned(images, 0.8), states, "D")
    assert check(turned(images, 0.8), states, "D", camera=wide).distance < 1.5


def test_what_cannot_be_told_is_not_checked():
    images, states = drawn()
    cases = {"few blocks": (images[:4], states[:4]), "grey": (np.full_like(images, 128), states),
             "stacked": (images, np.stack([world([(0.05, -0.1, 0.46 + 0.04 * i) for i in range(3)])] * len(images)))}  # fmt: skip
    red = images.copy()
    red[red[..., 2] > 150] = (140, 100, 70)  # blue and pink are nowhere to be seen
    cases["one colour"] = red, states
    for what, (pictures, seen) in cases.items():
        with pytest.raises(UserError, match="Not checked"):
            check(pictures, seen, "D")
        fit = check(pictures, seen, "D", must=False)
        assert fit.unsure and fit.frames == len(pictures), (what, asdict(fit))


# --- the camera in the data ---------------------------------------------------------------------------------------------------------

CONFIG = """
cameras:
  static: {{_target_: Camera, name: static, fov: {fov}, width: 200, height: 200, look_at: [-0.026242351, -0.0302329882, 0.3920000493],
    look_from: [2.871459009488717, -2.166602199425597, 2.555159848480571], up_vector: [0.404140397, 0.22629790978, 0.886261696]}}
env: {{cameras: "${{cameras}}"}}
"""


def test_camera_of_a_folder(tmp_path):
    same = lambda a, b: a.size == b.size and all(np.allclose(getattr(a, k), getattr(b, k), atol=1e-3) for k in ("focal", "eye", "axes"))
    assert same(camera_of(tmp_path), static_camera())
    path = tmp_path / ".hydra" / "merged_config.yaml"
    path.parent.mkdir()
    path.write_text(CONFIG.format(fov=10))
    assert same(camera_of(tmp_path), static_camera())
    path.write_text(CONFIG.format(fov=12))
    with pytest.raises(UserError, match="not CALVIN's static camera"):
        camera_of(tmp_path)
    other = camera_of(tmp_path, any_camera=True)
    assert other.focal == pytest.approx(100 / math.tan(math.radians(6)))
    for broken in ("cameras: {gripper: {}}", "a: [", "cameras: {static: {fov: x, width: 1, height: 1}}", "3"):
        path.write_text(broken)
        with pytest.raises(UserError, match="does not tell the static camera"):
            camera_of(tmp_path)
