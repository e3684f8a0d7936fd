"""Pictures of the play table against slow references: rays cast at the same solids, projected corners, real CALVIN frames."""

import hashlib
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from repro.sims.tabletop import geometry, raster, render
from repro.sims.tabletop.scenes import BLOCK_SIDE, BLOCKS, ITEMS, REST_POSE, SCENES, item_boxes

RED, BLUE, PINK = (0.05, -0.12, 0.46, 0, 0, 1.2), (0.20, -0.10, 0.46, 0, 0, 1.7), (-0.02, -0.04, 0.46, 0, 0, 0.4)
PLACES = dict(red_block=RED, blue_block=BLUE, pink_block=PINK)


def robot(*pose, width=0.04):
    return np.array([*(pose or REST_POSE), width, *np.zeros(7), 1.0])


def table(scene, slider=0.0, drawer=0.0, button=0.0, switch=0.0, bulb=0, led=0, **blocks):
    places = PLACES | blocks
    return np.array([slider, drawer, button, switch, bulb, led, *(v for name in scene.block_order for v in places[name])], float)


def cast(scene, robot_obs, scene_obs, camera, pixels):
    """Item ids seen by rays through pixel centres (n, 2), from the half-spaces of every solid, none left out."""
    s, pose = geometry.solids(scene), geometry.poses(scene, robot_obs, scene_obs)
    at = pose[s.vertex_body]
    corner = np.einsum("vij,vj->vi", at[:, :, :3], s.vertex) + at[:, :, 3]
    normal = np.einsum("fij,fj->fi", pose[s.body, :, :3], s.normal)
    offset = np.einsum("fi,fi->f", normal, corner[s.corner[0]])
    xy = (pixels + 0.5 - camera.size / 2) / camera.focal
    rays = np.hstack([xy, np.ones((len(xy), 1))]) @ camera.axes
    speed, gap = rays @ normal.T, offset - normal @ camera.eye  # the ray is inside a half-space while t * speed <= gap
    with np.errstate(divide="ignore"):
        t = gap / speed
    best, ids = np.full(len(rays), np.inf), np.zeros(len(rays), int)
    for solid in range(s.solid.max() + 1):
        f = s.solid == solid
        enter = np.where(speed[:, f] < 0, t[:, f], -np.inf).max(1)
        leave = np.where(speed[:, f] > 0, t[:, f], np.inf).min(1)
        nearer = (enter < leave) & (enter > raster.NEAR) & (enter < best)
        best[nearer], ids[nearer] = enter[nearer], s.item[f][0]
    return ids


STATES = [
    ("A", robot(0.06, -0.15, 0.55, np.pi, 0, 1.2), dict(drawer=0.2, slider=0.12, red_block=(0.06, -0.15, 0.55, 0, 0, -0.37))),
    ("B", robot(-0.32, 0.0, 0.50, 2.35, 0, np.pi / 2, width=0.0), dict(switch=0.05, led=1)),
    ("C", robot(0.10, -0.36, 0.44, np.pi, 0.2, 1.6), dict(drawer=0.22, bulb=1, pink_block=(0.1, -0.36, 0.44, 0.1, 0, 0.0))),
    ("D", robot(), dict(slider=0.28, button=0.02, pink_block=(0.05, 0.13, 0.48, 0, 0, 1.0))),
]


@pytest.mark.parametrize("name, robot_obs, state", STATES)
@pytest.mark.parametrize("view", ["static", "wrist"])
def test_ids_are_what_rays_hit(name, robot_obs, state, view):
    scene = SCENES[name]
    scene_obs = table(scene, **state)
    ids = render.render(scene, robot_obs, scene_obs, (view,))[f"{view}_ids"]
    camera = render.static_camera() if view == "static" else render.wrist_camera(robot_obs)
    edge = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    y, x = np.mgrid[1 : ids.shape[0] : 3, 1 : ids.shape[1] : 3].reshape(2, -1)
    inside = ~edge[y, x]
    agree = cast(scene, robot_obs, scene_obs, camera, np.stack([x, y], 1)) == ids[y, x]
    assert agree[inside].mean() >= 0.995
    assert agree.mean() >= 0.97
    assert len(np.unique(ids[y, x])) >= (6 if view == "static" else 2)  # there is something to agree about


def test_every_item_is_seen_at_rest():
    for scene in SCENES.values():
        for state in (dict(), dict(slider=scene.slider_travel, drawer=0.22, switch=0.088, button=0.02, bulb=1, led=1)):
            ids = render.render(scene, robot(), table(scene, **state), ("static",))["static_ids"]
            assert np.bincount(ids.ravel(), minlength=10)[1:].min() >= 25, (scene.name, state)


def test_nearer_things_hide_farther_ones():
    scene = SCENES["D"]
    to_camera = render.static_camera().eye - np.array(PLACES["red_block"][:3])
    to_camera /= np.linalg.norm(to_camera)

    def red_pixels(distance):
        tcp = np.array(PLACES["red_block"][:3]) + distance * to_camera + [0, 0, 0.02]
        ids = render.render(scene, robot(*tcp, np.pi, 0, np.pi / 2, width=0.0), table(scene), ("static",))["static_ids"]
        return (ids == 1).sum()

    open_view = (render.render(scene, robot(), table(scene), ("static",))["static_ids"] == 1).sum()
    assert red_pixels(0.12) < 0.8 * open_view  # the fingers are between block and camera
    assert red_pixels(-0.12) == open_view  # and here behind the block
    blocks = dict(blue_block=(*(np.array(PLACES["red_block"][:3]) + 0.09 * to_camera), 0, 0, 0.3))
    ids = render.render(scene, robot(-0.3, -0.2, 0.7, *REST_POSE[3:]), table(scene, **blocks), ("static",))["static_ids"]
    assert (ids == 1).sum() < 0.5 * open_view < (ids == 2).sum()


def test_boxes_are_the_projected_corners():
    scene, camera = SCENES["D"], render.static_camera()
    boxes = item_boxes(render.render(scene, robot(-0.3, -0.2, 0.7, *REST_POSE[3:]), table(scene), ("static",))["static_ids"])
    for name in BLOCKS:
        half = np.array([scene.block_length[name], BLOCK_SIDE, BLOCK_SIDE]) / 2
        corners = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) * half
        uv, _ = camera.project(corners @ geometry.rotation(PLACES[name][3:]).T + PLACES[name][:3])
        assert np.abs(np.array(boxes[name]) - [*uv.min(0), *uv.max(0)]).max() < 2, name
    assert item_boxes(np.zeros((4, 4), np.uint8)) == {}
    ids = np.zeros((6, 9), np.uint8)
    ids[2:4, 3:8] = 9
    assert item_boxes(ids) == {ITEMS[8]: [3, 2, 8, 4]}


def test_joints_move_their_items():
    scene = SCENES["D"]
    base, moved = (item_boxes(render.render(scene, robot(), table(scene, **state), ("static",))["static_ids"])
                   for state in (dict(), dict(slider=0.2, drawer=0.2, switch=0.088)))
    assert moved["drawer"][3] > base["drawer"][3] + 20  # towards the camera is down
    assert moved["slider"][0] < base["slider"][0] - 20
    assert moved["switch"][1] < base["switch"][1] - 15


def test_lights_shine_at_their_place_only():
    scene, camera = SCENES["D"], render.static_camera()
    dark = render.render(scene, robot(), table(scene))["static"].astype(int)
    for light, place in (("bulb", scene.lightbulb_xyz), ("led", scene.led_xyz)):
        lit = render.render(scene, robot(), table(scene, **{light: 1}))["static"].astype(int)
        change = np.abs(lit - dark).max(2)
        (u, v), = camera.project(np.array([place]))[0]
        y, x = np.nonzero(change > 8)
        assert np.hypot(x - u, y - v).max() < 42  # glow included
        assert change[int(v) - 1 : int(v) + 2, int(u) - 1 : int(u) + 2].min() > 50


def test_wrist_camera_follows_the_hand():
    scene, boxes = SCENES["D"], []
    for pose in ((-0.1, -0.1, 0.6, np.pi, 0, np.pi / 2), (0.2, -0.4, 0.5, np.pi, 0, 0.9), (0.1, -0.1, 0.55, 2.8, 0.1, 1.7)):
        grip = geometry.rotation(pose[3:]) @ geometry.rotation((np.pi, 0, np.pi / 2)).T  # the block turns with the hand
        yaw, pitch, roll = np.arctan2(grip[1, 0], grip[0, 0]), np.arcsin(-grip[2, 0]), np.arctan2(grip[2, 1], grip[2, 2])
        ids = render.render(scene, robot(*pose), table(scene, red_block=(*pose[:3], roll, pitch, yaw)), ("wrist",))["wrist_ids"]
        boxes.append(item_boxes(ids)["red_block"])
    assert np.ptp(boxes, axis=0).max() <= 1  # a held block stands still in the picture
    x0, y0, x1, y1 = boxes[0]
    assert x0 < 42 < x1 and y0 < 21 < y1


def test_a_camera_that_sees_nothing():
    scene = SCENES["D"]
    picture = render.render(scene, robot(0, 0, 0.8, 0, 0, 0), table(scene), ("wrist",))  # the hand points at the ceiling
    assert picture["wrist"].shape == (84, 84, 3) and not picture["wrist_ids"].any()


def test_pure_function(tmp_path):
    """Same arguments, same bits: in any order of calls, with or without kept layers, and in another process."""
    arguments = [(SCENES[name], robot_obs, table(SCENES[name], **state)) for name, robot_obs, state in STATES * 2]
    copies = [(r.copy(), s.copy()) for _, r, s in arguments]

    def digest(cases):
        return [hashlib.sha256(b"".join(v.tobytes() for _, v in sorted(render.render(*case).items()))).hexdigest() for case in cases]

    first = digest(arguments)
    render._MODELS.clear()
    assert digest(arguments[::-1])[::-1] == first
    for (_, robot_obs, scene_obs), (r, s) in zip(arguments, copies, strict=True):
        assert (robot_obs == r).all() and (scene_obs == s).all()
    alone = render.render(*arguments[0], cameras=("wrist",))
    assert sorted(alone) == ["wrist", "wrist_ids"]
    assert (alone["wrist"] == render.render(*arguments[0])["wrist"]).all()
    np.savez(tmp_path / "state.npz", r=arguments[3][1], s=arguments[3][2])
    program = ("import sys, hashlib, numpy as np; from repro.sims.tabletop import render, scenes; d = np.load(sys.argv[1]);"
               "out = render.render(scenes.SCENES['D'], d['r'], d['s']);"
               "print(hashlib.sha256(b''.join(v.tobytes() for _, v in sorted(out.items()))).hexdigest())")
    other = subprocess.run([sys.executable, "-c", program, tmp_path / "state.npz"], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first[3]


def test_blocks_stand_where_the_real_simulator_shows_them(test_data):
    """Same states, same cameras: block boxes of real CALVIN frames and of ours (the furniture is our own)."""
    folder = test_data("calvin_sim") / "training"
    truth, overlaps, shifts = json.loads((folder / "boxes.json").read_text()), {"static": [], "wrist": []}, {"static": [], "wrist": []}
    for frame in range(20000, 20890, 40):
        step = np.load(folder / f"episode_{frame:07d}.npz")
        pictures = render.render(SCENES["D"], step["robot_obs"], step["scene_obs"])
        for view, key in (("static", "static"), ("wrist", "gripper")):
            ours, theirs = item_boxes(pictures[f"{view}_ids"]), truth[f"rgb_{key}"][f"{frame:07d}"]
            for name in set(BLOCKS) & set(ours) & set(theirs):
                a, b = np.array(ours[name]), np.array(theirs[name])
                if truth[f"pixels_{key}"][f"{frame:07d}"][name] < 120 or b.min() == 0 or b.max() == len(pictures[view]):
                    continue  # hidden by the other arm, or cut by the border
                size = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None).prod()
                overlaps[view].append(size / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - size))
                shifts[view].append(np.abs(a + np.roll(a, 2) - b - np.roll(b, 2)).max() / 2)
    for view in ("static", "wrist"):
        assert len(overlaps[view]) >= 8
        assert np.median(overlaps[view]) > 0.7, view
        assert np.median(shifts[view]) <= 1.5, view  # pixels
