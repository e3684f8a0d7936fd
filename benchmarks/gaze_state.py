"""Gaze boxes from state (`repro.gaze.state`) against what CALVIN's own renderer shows: centre in the true box, IoU, by scene and item.

`python benchmarks/gaze_state.py [--data FOLDER/calvin_sim] [--tasks 31] [--every 8] [--json FILE]`. Scenes need `repro sims setup calvin`
and CALVIN_ROOT; what is missing is left out and said. True boxes are the segmentation's. Counted are items that show at least half of the
pixels they have without what stands before them: in the simulator, as a second picture without robot and blocks has them (of a block: its
projected hull's area); in calvin_sim, the most that the item shows in the episode. Target: the centre inside for >= 99 % of each item.
"""

import json
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from repro import benchmark
from repro.data.calvin_frames import BLOCK_ORDER  # of what the worker has, which imports this file: no pyarrow
from repro.data.overlap import iou
from repro.gaze.state import BLOCKS, TABLES, _block, check, state_boxes
from repro.intervals import wilson
from repro.machine import UserError
from repro.sims import environments
from repro.sims.tabletop import tasks
from repro.sims.tabletop.render import static_camera
from repro.sims.tabletop.scenes import ITEMS, item_boxes
from repro.sims.worker import Worker

TARGET = 0.99


def frames(simulator, task: str, seed: int, every: int, most: int = 80) -> list:
    """In the worker: every `every`-th frame of the expert at a task: (picture, ids, ids without robot and blocks, raw scene_obs)."""
    import pybullet as bullet

    cid, rng = simulator.env.cid, np.random.default_rng([seed, tasks.TASKS.index(task)])
    bodies = [simulator.env.robot.robot_uid, *(simulator.items[block][0] for block in simulator.block_order)]

    def furniture() -> np.ndarray:
        kept = [bullet.getBasePositionAndOrientation(body, physicsClientId=cid) for body in bodies]
        for body in bodies:
            bullet.resetBasePositionAndOrientation(body, [0, 0, -20], [0, 0, 0, 1], physicsClientId=cid)
        ids = simulator.frame()["static_ids"]
        for body, pose in zip(bodies, kept, strict=True):
            bullet.resetBasePositionAndOrientation(body, *pose, physicsClientId=cid)
        return ids

    simulator.reset(simulator.sample(tasks.symbolic_for(task, rng), rng), render=False)
    simulator.start_task()
    expert, found = simulator.expert(task, rng), []
    for step in range(most):
        if step % every == 0:
            seen = simulator.frame()
            found.append([seen["static"], seen["static_ids"], furniture(), simulator.state()["scene_obs"]])
        if simulator.done(task):
            break
        simulator.step(np.float32(expert.act()), render=False)
    return found


class Score:
    """Per item: how often the predicted centre lies in the true box, and the IoU, of items that show half of themselves or more."""

    def __init__(self):
        self.inside, self.ious, self.hidden, self.absent = defaultdict(list), defaultdict(list), defaultdict(int), defaultdict(int)

    def add(self, boxes: dict, true: dict, pixels: dict, whole: dict) -> None:
        """boxes: predicted, in [0, 1]; true: in pixels; pixels: visible ones; whole: those of the item without what stands before it."""
        for item in ITEMS:
            if item not in true:
                self.hidden[item] += item in boxes  # by arm or hand, which are not modelled
            elif pixels[item] >= whole[item] / 2:
                if item not in boxes:
                    self.absent[item] += 1
                x0, y0, x1, y1 = true[item]
                box = boxes.get(item, np.zeros(4)) * 200
                x, y = (box[:2] + box[2:]) / 2
                self.inside[item].append(x0 <= x <= x1 and y0 <= y <= y1)
                self.ious[item].append(float(iou(box, np.array(true[item], float))))

    def table(self) -> dict:
        rows = {}
        for item in [*ITEMS, "all"]:
            chosen = ITEMS if item == "all" else [item]
            inside, ious = (np.array([value for name in chosen for value in kept[name]]) for kept in (self.inside, self.ious))
            low, high = wilson(int(inside.sum()), len(inside))
            rows[item] = {"n": len(inside), "centre_inside": float(inside.mean()) if len(inside) else None, "low": low, "high": high,
                          "iou_at_least_0.5": float((ious >= 0.5).mean()) if len(inside) else None,
                          "iou_median": float(np.median(ious)) if len(inside) else None,
                          "absent": sum(self.absent[name] for name in chosen),
                          "boxes_of_hidden_items": sum(self.hidden[name] for name in chosen)}  # fmt: skip
        return rows


def hull(points: np.ndarray) -> int:
    """Pixels of the picture that the convex hull of points (N, 3) covers."""
    mask, pixels = np.zeros((200, 200), np.uint8), static_camera().project(points)[0]
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round((pixels - 0.5) * 16).astype(np.int32)), 1, 8, 4)
    return int(mask.sum())


def fit(images: list, states: list, scene: str, order: tuple) -> dict:
    """What `check` says of the pictures."""
    told = check(np.array(images), np.array(states), scene, order)
    return {"frames": told.frames, "blocks": told.looked, "orders": {", ".join(o): share for o, share in told.shares.items()},
            "distance_px": told.distance, "offset_px": told.offset}  # fmt: skip


def simulated(launch, scene: str, count: int, every: int) -> dict:
    """Frames of the expert at `count` tasks, in a scene of the real simulator."""
    score, images, states = Score(), [], []
    able = [task for task in tasks.TASKS if not task.startswith(("place_", "stack_"))]  # those begin with a block in the hand
    with Worker(replace(launch, path=(str(Path(__file__).resolve().parent),))) as worker:
        order = scene_order(scene)
        for task in able[:: max(1, len(able) // count)][:count]:
            for picture, ids, alone, state in worker.ask_and_wait("apply", "gaze_state:frames", [task, ord(scene), every]):
                whole = {item: int((alone == 1 + k).sum()) for k, item in enumerate(ITEMS)}
                for block, pose in zip(order, state[6:].reshape(3, 6), strict=True):
                    whole[block] = hull(_block(pose, TABLES[scene].lengths[BLOCKS.index(block)]).corners())
                pixels = {item: int((ids == 1 + k).sum()) for k, item in enumerate(ITEMS)}
                score.add(state_boxes(scene, state, order), item_boxes(ids), pixels, whole)
                images.append(picture)
                states.append(state)
        return {"frames": len(images), "check": fit(images, states, scene, order), "items": score.table(), "simulator": worker.about}


def scene_order(scene: str) -> tuple[str, ...]:
    return tuple(f"{colour}_block" for colour in BLOCK_ORDER[scene])


def recorded(folder: Path) -> dict:
    """The frames of calvin_sim, scene D."""
    score, images, states = Score(), [], []
    for split in ("training", "validation"):
        told = json.loads((folder / split / "boxes.json").read_text())
        for episode in told["episodes"]:
            names = [f"{frame:07d}" for frame in range(episode["start"], episode["end"] + 1)]
            most = {item: max(told["pixels_static"][name].get(item, 0) for name in names) for item in ITEMS}
            for name in names:
                with np.load(folder / split / f"episode_{name}.npz") as data:
                    state = data["scene_obs"]
                    if int(name) % 8 == 0:
                        images.append(data["rgb_static"])
                        states.append(state)
                score.add(state_boxes("D", state), told["rgb_static"][name], told["pixels_static"][name], most)
    return {"check": fit(images, states, "D", BLOCKS), "items": score.table()}


def main() -> None:
    parser = benchmark.options(__doc__)
    beside = Path(os.environ.get("REPRO_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=beside / "calvin_sim", help="the folder of calvin_sim")
    parser.add_argument("--tasks", type=int, default=31, help="of each scene; 0: leave the simulator out")
    parser.add_argument("--every", type=int, default=8, help="steps between frames")
    a = parser.parse_args()
    found = {"note": "frames of one episode are not independent: the 95 % Wilson intervals are too narrow"}
    if a.data.is_dir():
        found["calvin_sim, scene D"] = recorded(a.data)
    else:
        print("calvin_sim is left out: no such folder")
    for scene in TABLES if a.tasks else ():
        try:
            found[f"simulator, scene {scene}"] = simulated(environments.launch("calvin", scene=scene), scene, a.tasks, a.every)
        except UserError as error:
            print(f"scene {scene} is left out: {error}")
    for name, part in found.items():
        for item, row in part["items"].items() if isinstance(part, dict) else ():
            if row["n"]:
                verdict = "OK" if row["centre_inside"] >= TARGET else "BELOW TARGET"
                print(f"{verdict}: {name}, {item}: centre inside {row['centre_inside']:.4f} [{row['low']:.4f}, {row['high']:.4f}], n = "
                      f"{row['n']}; IoU >= 0.5: {row['iou_at_least_0.5']:.3f}, median {row['iou_median']:.2f}")  # fmt: skip
    benchmark.record(found, a.json, show=False)


if __name__ == "__main__":
    main()
