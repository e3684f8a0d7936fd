"""Pictures of the play table that the tiny parts learn from: training scenes A, B, C, mostly repainted, and other tables. Never scene D.

    draw_pictures(600, states=recorded(Store("data/store")))
"""
import math
from collections.abc import Iterable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from repro.gaze.crops import crop
from repro.machine import UserError
from repro.models.tiny import CELLS, GRID, SIZE, STATIC_ROWS, STATIC_TOKENS
from repro.models.towers import compose, resize

OWN_LOOK = 10  # one look in so many is a scene as it is
NEW_LOOKS = 2**31  # repainted looks of pretraining are numbered from here, looks of an evaluation below


class Pictures(NamedTuple):
    """What both parts learn from. N frames, those of one look together."""

    canvas: UInt8[np.ndarray, "n 128 128 3"]
    gaze: UInt8[np.ndarray, "n 96 128 3"]  # the crop of one visible item, stretched, that stands above the wrist picture in a target
    ids: UInt8[np.ndarray, "n 32 32"]  # item at the middle of each cell, 0 for none
    robot: Float[np.ndarray, "n 15"]  # robot_obs
    places: Float[np.ndarray, "n items 3"]  # where the hand takes, pushes or presses each item, m
    looks: int


def recorded(store, scenes: Iterable[str] = ("A", "B", "C")) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{scene: (robot states (N, 15), environment states (N, 24))} of a store's episodes in these scenes."""
    robot, environment, found = store.column("observation.state"), store.column("observation.environment_state"), {}
    for scene in scenes:
        rows = [np.arange(e.start, e.start + e.length) for e in store.episodes if e.scene == scene]
        if rows:
            found[scene] = robot[np.concatenate(rows)], environment[np.concatenate(rows)]
    return found


def random_state(scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(robot_obs, environment state) of no episode: joints anywhere on their way, the hand anywhere above the table or near an item,
    a block held or not."""
    from repro.sims.tabletop import scenes as s
    from repro.sims.tabletop import tasks

    symbolic = tasks.random_symbolic(rng)
    held = s.BLOCKS[rng.integers(3)] if rng.random() < 0.3 else None
    state = tasks.initial_state(scene.name, symbolic | ({held: "grasped"} if held else {}), rng, vary_robot=True)
    robot, env = state["robot_obs"], state["scene_obs"]
    env = np.concatenate([env[:6], env[6:].reshape(3, 6)[[scene.block_order.index(b) for b in s.BLOCKS]].ravel()])
    if rng.random() < 0.5:
        env[:4] = rng.uniform(0, (scene.slider_travel, s.DRAWER_TRAVEL, s.BUTTON_TRAVEL, s.SWITCH_TRAVEL))
        env[4], env[5] = env[3] > s.SWITCH_TRAVEL / 2, rng.integers(2)
    low, high = np.array(s.WORKSPACE).T
    hand = rng.uniform((low[0], low[1], 0.46), high)
    if rng.random() < 0.6:  # near a block, the drawer's handle, the button, the lever or the door's handle
        near = [*env[6:].reshape(3, 6)[:, :3], (scene.drawer_x, -0.31 - env[1], 0.38), (*scene.button_xy, 0.48),
                (scene.switch_x, *s.SWITCH_YZ), (scene.door_right_x - env[0], 0.0, s.SLIDER_HANDLE_Z)]
        hand = np.array(near[rng.integers(len(near))]) + rng.normal(0, 0.03, 3) + (0, 0, rng.uniform(0, 0.12))
    robot[:3] = hand.clip(low, high)
    robot[5] = math.pi / 2 + rng.normal(0, 0.5)
    if held:  # upright in the hand
        block = 6 + 6 * s.BLOCKS.index(held)
        env[block: block + 3], env[block + 5], robot[6], robot[14] = robot[:3], robot[5], s.BLOCK_SIDE, -1.0
    else:
        robot[3:5] += rng.normal(0, 0.12, 2)
        robot[6], robot[14] = rng.uniform(0, s.MAX_WIDTH), rng.choice((-1.0, 1.0))
    return robot, env


def handles(scene, env: np.ndarray) -> Float[np.ndarray, "items 3"]:
    """Where the hand takes hold of each item, for an environment state (24,) with blocks red, blue, pink; led, bulb: of their switch."""
    from repro.sims.tabletop import scenes as s

    place = {}
    parts = {"slider": "handle", "drawer": "bar", "button": "button", "switch": "lever"}
    for (joint, part), value in zip(parts.items(), env[:4], strict=True):
        x0, x1, y0, y1, z0, z1 = s.moving(scene, joint)[part]
        place[joint] = np.array([x0 + x1, y0 + y1, z0 + z1]) / 2 + value * np.array(s.AXES[joint])
    blocks = dict(zip(s.BLOCKS, env[6:].reshape(3, 6)[:, :3], strict=True))
    place |= blocks | {"led": place["button"], "lightbulb": place["switch"]}
    return np.array([place[item] for item in s.ITEMS], np.float32)


def draw_pictures(count: int, scenes: Iterable[str] = ("A", "B", "C"), seed: int = 0, states: dict | None = None, held_out: bool = False,
                  per_look: int = 30) -> Pictures:
    """`count` pictures: one look in two of a training scene, mostly repainted, the other of a table of its own (scenes.scene, "R~.."),
    so that where things are must be seen. held_out: none of the others' looks and tables, and no scene as it is.

    states: of the training scenes, as `recorded` gives them; by default, and on the other tables, each one is a `random_state`.
    """
    from repro.sims.tabletop.render import render
    from repro.sims.tabletop.scenes import BLOCKS, item_boxes, scene

    scenes = checked(scenes)
    rng, canvas, gaze, ids, robots, places = np.random.default_rng([seed, held_out]), [], [], [], [], []
    per_look = min(per_look, max(1, count // 6))  # few pictures: still some looks
    looks = -(-count // per_look)
    for i in range(looks):
        name, new = scenes[i // 2 % len(scenes)], f"~{NEW_LOOKS + (seed * 2 + held_out) * 1_000_000 + i}"
        if i % 2:
            table = scene("R" + new)
        else:
            table = scene(name if not held_out and i % OWN_LOOK == 0 else name + new)
        order = [BLOCKS.index(block) for block in table.block_order]
        for _ in range(min(per_look, count - i * per_look)):
            if states and name in states and not i % 2:
                robot, env = (part[row] for row in [rng.integers(len(states[name][0]))] for part in states[name])
            else:
                robot, env = random_state(table, rng)
            shown = render(table, robot, np.concatenate([env[:6], env[6:].reshape(3, 6)[order].ravel()]))
            boxes = list(item_boxes(shown["static_ids"]).values())
            part = crop(shown["static"], np.array(boxes[rng.integers(len(boxes))]) / len(shown["static"]))
            canvas.append(compose(shown["static"], shown["wrist"], SIZE, SIZE, STATIC_ROWS))
            gaze.append(resize(part, STATIC_ROWS, SIZE))
            robots.append(np.float32(robot))
            places.append(handles(table, env))
            ids.append(np.concatenate([
                cv2.resize(shown[f"{camera}_ids"], (GRID * CELLS, rows * CELLS), interpolation=cv2.INTER_NEAREST)
                for camera, rows in (("static", STATIC_TOKENS), ("wrist", GRID - STATIC_TOKENS))]))
    return Pictures(*map(np.stack, (canvas, gaze, ids, robots, places)), looks)


def checked(scenes: Iterable[str]) -> tuple[str, ...]:
    scenes = tuple(scenes)
    if not scenes or set(scenes) - set("ABC"):
        raise UserError("tiny parts are trained on training scenes only", expected="some of A, B, C: D is for evaluation", found=scenes)
    return scenes


class Drawn:
    """Pictures to learn from and held-out ones, drawn when first asked for."""

    def __init__(self, count: int, scenes: Iterable[str], seed: int, states: dict | None):
        self._how, self._made = (checked(scenes), seed, states), {}
        self._count = {False: count, True: max(24, min(192, count // 8))}

    def _get(self, held_out: bool) -> Pictures:
        if held_out not in self._made:
            self._made[held_out] = draw_pictures(self._count[held_out], *self._how, held_out, per_look=8 if held_out else 30)
        return self._made[held_out]

    training, held_out = property(lambda self: self._get(False)), property(lambda self: self._get(True))


def items() -> tuple[str, ...]:
    from repro.sims.tabletop.scenes import ITEMS

    return ITEMS


def pixels(pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """In [-1, 1], as tower and VAE are shown them."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def gaze_targets(data: Pictures, rows: np.ndarray) -> UInt8[np.ndarray, "b 128 128 3"]:
    return np.concatenate([data.gaze[rows], data.canvas[rows][:, STATIC_ROWS:]], axis=1)


def cells(ids: UInt8[np.ndarray, "b 32 32"]) -> Tensor:
    """Items by token and cell, (B, 64, 16)."""
    return torch.from_numpy(ids).long().reshape(-1, GRID, CELLS, GRID, CELLS).permute(0, 1, 3, 2, 4).reshape(-1, GRID**2, CELLS**2)
