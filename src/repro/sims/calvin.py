"""The real CALVIN simulator, driven from the user's own checkout of `calvin_env` (mees/calvin_env), which is not changed on disk.

Runs in a worker process (`repro.sims.worker`) whose interpreter has pybullet; nothing of CALVIN is carried here. Facts it relies on
(measured, calvin_env 797142c5, pybullet 3.2.7):
- `env.step` renders every camera. With the camera list empty it is the same call without pictures, about 40 times as fast.
- `env.reset` leaves solver state behind, so that the second episode of a process differs from the first in the fifth digit. Loading
  the bodies anew with a re-seeded generator (55 ms) gives the same bits as a fresh process, whatever ran before.
- `Robot.reset` does not reset `gripper_action`; the first frame would show the last episode's.
- Pictures of TinyRenderer (CPU) and EGL differ by about 20 of 255 grey levels: train and test with one, never compare across.
"""

import hashlib
import importlib.metadata
import logging
import math
import os
import sys
from pathlib import Path

import numpy as np

from repro.machine import UserError
from repro.sims.tabletop.scenes import BLOCKS, ITEMS, item_boxes

COMMIT = "797142c588c21e76717268b7b430958dbd13bf48"
DIGEST = "e31696ea4d86684d"  # of the files the simulator is made of, see `digest`
CLONE = f"""git clone --recurse-submodules https://github.com/mees/calvin && git -C calvin/calvin_env checkout {COMMIT[:10]}
    (its own submodule pointer is older and has a defect in the button); then set CALVIN_ROOT to the folder calvin"""
LINKS = {"button_link": "button", "switch_link": "switch", "slide_link": "slider", "drawer_link": "drawer", "led_link": "led",
         "light_link": "lightbulb"}  # link of the table -> item


def checkout(folder: str | Path) -> Path:
    """The folder of calvin_env in a checkout of calvin_env or of calvin, or a UserError saying what to clone."""
    folder = Path(folder).expanduser().resolve()
    for place in (folder, folder / "calvin_env"):
        if (place / "calvin_env" / "envs" / "play_table_env.py").is_file() and (place / "conf").is_dir():
            if not (place / "data" / "calvin_table_D").is_dir():
                raise UserError(f"{place} has no simulator assets", "data/calvin_table_A ... D, data/franka_panda, data/blocks",
                                ", ".join(sorted(f.name for f in place.glob("data/*"))) or "no data folder", CLONE)
            return place
    empty = (folder / "calvin_env").is_dir() and not any((folder / "calvin_env").iterdir())
    raise UserError(f"{folder} is not a checkout of calvin_env", "calvin_env/envs/play_table_env.py, conf/ and data/",
                    "an empty submodule folder calvin_env" if empty else "a folder without them" if folder.is_dir() else "no such folder",
                    f"git -C {folder} submodule update --init" if empty else CLONE)


def digest(root: Path) -> str:
    """sha256 (16 digits) of the code, configuration and assets that decide what the simulator does; line ends don't count."""
    total = hashlib.sha256()
    for part, pattern in (("calvin_env", "**/*.py"), ("conf", "**/*.yaml"), ("data", "**/*")):
        for file in sorted(f for f in (root / part).glob(pattern) if f.is_file() and "__pycache__" not in f.parts):
            total.update(file.relative_to(root).as_posix().encode() + b"\0")
            total.update(hashlib.sha256(file.read_bytes().replace(b"\r\n", b"\n")).digest())
    return total.hexdigest()[:16]


class Calvin:
    """One CALVIN environment; one a process, since calvin_env uses pybullet's default client in places.

    scene: A | B | C | D. root: the checkout. renderer: "tiny" (CPU) or "egl". any_version: accept another state of the checkout than
    commit 797142c5, and say so in `about()`. State: {"robot_obs": (15,), "scene_obs": (24,)} in the scene's own block order.
    """

    _taken = False

    def __init__(self, root: str, scene: str = "D", renderer: str = "tiny", any_version: bool = False):
        if Calvin._taken:
            raise UserError("one CALVIN environment a process", found="a second one", next_step="start another worker")
        if scene not in tuple("ABCD"):
            raise UserError(f"no CALVIN scene {scene!r}", "A, B, C or D", scene)
        if renderer not in ("tiny", "egl"):
            raise UserError(f"no renderer {renderer!r}", "tiny (CPU) or egl", renderer)
        self.root, self.scene, self.renderer = checkout(root), scene, renderer
        self.found = digest(self.root)
        if self.found != DIGEST and not any_version:
            raise UserError(f"{self.root} is not calvin_env at commit {COMMIT[:10]}, or it was changed", f"content {DIGEST}", self.found,
                            f"git -C {self.root} checkout {COMMIT[:10]} and git status there; or any_version=True, said in every record")
        self.env, self.oracle = self._make()
        Calvin._taken = True
        self.cameras, self.env.cameras = {camera.name: camera for camera in self.env.cameras}, []
        self.block_order = tuple(f"{o.name.removeprefix('block_')}_block" for o in self.env.scene.movable_objects)
        self.table = next(o for o in self.env.scene.fixed_objects if o.name == "table").uid
        bullet, cid = self.env.p, self.env.cid
        self.links = {bullet.getJointInfo(self.table, i, physicsClientId=cid)[12].decode(): i
                      for i in range(bullet.getNumJoints(self.table, physicsClientId=cid))}  # link name -> index
        self.items = {block: (o.uid, None) for block, o in zip(self.block_order, self.env.scene.movable_objects, strict=True)}
        self.items |= {item: (self.table, self.links[name]) for name, item in LINKS.items()}
        self.start = None

    def _make(self):
        """The environment as conf/config_data_collection.yaml composes it (static and gripper camera), and the task oracle."""
        sys.path.insert(0, str(self.root))
        logging.getLogger("calvin_env").setLevel(logging.ERROR)
        try:
            import hydra
            from calvin_env.envs import play_table_env
            from omegaconf import OmegaConf
        except ImportError as error:
            raise UserError("CALVIN's simulator cannot be imported", "pybullet, gym, hydra-core, opencv, quaternion, GitPython", error,
                            "repro sims setup calvin") from error
        play_table_env.get_git_commit_hash = lambda path: self.found  # it wants a .git folder, for a log line
        conf = self.root / "conf"
        robot = OmegaConf.merge(*(OmegaConf.load(conf / "robot" / f"{name}.yaml") for name in ("panda", "panda_longer_finger")))
        robot.pop("defaults", None)
        cameras = {name: OmegaConf.load(conf / "cameras" / "cameras" / f"{name}.yaml") for name in ("static", "gripper")}
        config = OmegaConf.create({
            "scene": OmegaConf.load(conf / "scene" / f"calvin_scene_{self.scene}.yaml"), "robot": robot, "cameras": cameras,
            "env": OmegaConf.load(conf / "env" / "play_table_env.yaml"), "data_path": "data", "use_vr": False})  # fmt: skip
        env = hydra.utils.instantiate(config.env, show_gui=False, use_vr=False, use_scene_info=True, use_egl=self.renderer == "egl")
        return env, hydra.utils.instantiate(OmegaConf.load(conf / "tasks" / "new_playtable_tasks.yaml"))

    # --- the simulator contract -------------------------------------------------------------------------------------

    def reset(self, state: dict, render: bool = True) -> dict | None:
        """Start from recorded or official vectors; the world is loaded anew, so that the same state gives the same bits."""
        try:
            robot, scene = (np.asarray(state[key], np.float64) for key in ("robot_obs", "scene_obs"))
        except (KeyError, TypeError) as error:
            raise UserError("a CALVIN state has robot_obs (15,) and scene_obs (24,)", "both", sorted(state), "see protocols.py") from error
        for name, value, length in (("robot_obs", robot, 15), ("scene_obs", scene, 24)):
            if value.shape != (length,) or not np.isfinite(value).all():
                raise UserError(f"bad {name} in a CALVIN state", f"{length} finite numbers", value.tolist())
        env = self.env
        env.seed(0)
        env.scene.np_random = env.np_random
        env.load()
        env.robot.gripper_action = 1 if robot[14] >= 0 else -1
        env.reset(robot_obs=robot, scene_obs=scene)
        self.info = env.get_info()
        self.start_task()
        return self.observe() if render else None

    def step(self, action, render: bool = True) -> dict | None:
        """One relative action (7,) at 30 Hz: xyz per 0.02 m, Euler angles per 0.05 rad, clipped to [-1, 1]; gripper > 0 opens."""
        action = np.asarray(action)
        if action.shape != (7,) or action.dtype.kind != "f" or not np.isfinite(action).all():
            raise UserError("bad CALVIN action", "7 finite floating-point numbers", f"{action.dtype} {action.shape} {action.tolist()}",
                            "relative actions: xyz, Euler angles, gripper -1 close / +1 open")
        action = np.clip(action.astype(np.float64), -1, 1)
        action[6] = 1 if action[6] > 0 else -1
        self.info = self.env.step(action)[3]
        return self.observe() if render else None

    def start_task(self) -> None:
        self.start = self.info

    def done(self, task: str) -> bool:
        """The official oracle's verdict on the change since `start_task`."""
        if task not in self.oracle.tasks:
            raise UserError(f"CALVIN has no task {task!r}", "one of its 34", task)
        return bool(self.oracle.get_task_info_for_set(self.start, self.info, {task}))

    def observe(self) -> dict:
        """Both cameras, 200x200 and 84x84, robot_obs (15,), and environment_state (24,) with blocks as red, blue, pink."""
        robot, scene = (self.env.get_state_obs()[key] for key in ("robot_obs", "scene_obs"))
        order, picture = [self.block_order.index(block) for block in BLOCKS], self.frame()
        return {
            "observation.images.static": picture["static"],
            "observation.images.wrist": picture["wrist"],
            "observation.state": robot.astype(np.float32),
            "observation.environment_state": np.concatenate([scene[:6], scene[6:].reshape(3, 6)[order].ravel()]).astype(np.float32),
        }

    def frame(self) -> dict[str, np.ndarray]:
        """Per camera (static, wrist) the picture uint8 (H, W, 3) and "<camera>_ids" uint8 (H, W): which of `scenes.ITEMS` is seen, from 1;
        0 is anything else. The renderer makes both in one go; CALVIN's cameras throw the second away."""
        import pybullet as bullet

        found = {}
        for name, ours in (("static", "static"), ("gripper", "wrist")):
            seen, real = {}, bullet.getCameraImage

            def keep(*args, seen=seen, real=real, **named):
                seen["ids"] = real(*args, flags=bullet.ER_SEGMENTATION_MASK_OBJECT_AND_LINKINDEX, **named)
                return seen["ids"]

            bullet.getCameraImage = keep  # the camera's own code makes the picture
            try:
                found[ours] = np.ascontiguousarray(self.cameras[name].render()[0], np.uint8)
            finally:
                bullet.getCameraImage = real
            raw = np.reshape(seen["ids"][4], found[ours].shape[:2])
            body, link, ids = np.where(raw < 0, -1, raw & (2**24 - 1)), (raw >> 24) - 1, np.zeros(raw.shape, np.uint8)
            for item, (uid, part) in self.items.items():
                ids[(body == uid) & ((link == part) | (part is None))] = 1 + ITEMS.index(item)
            found[f"{ours}_ids"] = ids
        return found

    def boxes(self) -> dict[str, list[int]]:
        """{item: [x0, y0, x1, y1]} of the visible pixels in the static image, from the renderer's own segmentation."""
        return item_boxes(self.frame()["static_ids"])

    def sample(self, symbolic: dict, rng: np.random.Generator) -> dict:
        """A start state for a demonstration: blocks spread over the scene's own surfaces (official evaluations use two slots), yaw 90 +-
        22.5 degrees, arm joints within 0.08 rad of rest. `symbolic` as in `tabletop.tasks`, without a block in the hand."""
        scene, bullet, cid = self.env.scene, self.env.p, self.env.cid
        limits = {door.name: bullet.getJointInfo(self.table, door.joint_index, physicsClientId=cid)[8:10] for door in scene.doors}
        slide, drawer = 0.28 if self.scene in "AD" else limits["base__slide"][1], 0.22
        values = [slide * (symbolic["slider"] == "left"), drawer * (symbolic["drawer"] == "open"), 0, 0.088 * symbolic["lightbulb"],
                  symbolic["lightbulb"], symbolic["led"]]
        at, yaw = self._places(symbolic, values[1], rng), math.pi / 2 + rng.uniform(-math.pi / 8, math.pi / 8, 3)
        for name in self.block_order:
            i = BLOCKS.index(name)
            values += [*at[i], 0, 0, yaw[i]]
        joints = np.array(self.env.robot.initial_joint_positions) + rng.normal(0, 0.04, 7).clip(-0.08, 0.08)
        self.reset({"robot_obs": np.array([*[0] * 6, 0.08, *joints, 1]), "scene_obs": np.array(values, np.float64)}, render=False)
        for _ in range(20):
            self.step(np.array([0, 0, 0, 0, 0, 0, 1.0]), render=False)  # until the blocks rest: the oracle asks what they touch at first
        return self.state()

    def _places(self, symbolic: dict, drawer: float, rng: np.random.Generator) -> list:
        """Centres of the three blocks, apart from each other and from the button."""
        bullet, cid, surfaces = self.env.p, self.env.cid, self.env.scene.surfaces
        low, high = bullet.getAABB(self.table, self.links["drawer_link"], physicsClientId=cid)
        button = np.mean(bullet.getAABB(self.table, self.links["button_link"], physicsClientId=cid), 0)
        for _ in range(2000):
            at = []
            for block in BLOCKS:
                place = {"under": "table", "stacked": "table"}.get(symbolic[block], symbolic[block])
                if place == "drawer":
                    at.append([(low[0] + high[0]) / 2 + rng.uniform(-0.05, 0.05), rng.uniform(-0.15, -0.10) - drawer, 0.37])
                else:
                    at.append(rng.uniform(*surfaces[place]) + (0, 0, 0.001))
            for top, block in enumerate(BLOCKS):
                if symbolic[block] == "stacked":
                    below = next(i for i, other in enumerate(BLOCKS) if symbolic[other] == "under")
                    at[top] = [at[below][0], at[below][1], at[below][2] + 0.042]
            flat = [p for block, p in zip(BLOCKS, at, strict=True) if symbolic[block] != "stacked"]
            if all(math.dist(p[:2], q[:2]) > 0.11 for i, p in enumerate(flat) for q in flat[:i]) and all(
                    math.dist(p[:2], button[:2]) > 0.09 for p in flat):
                return at
        raise UserError("no room for the blocks", found=symbolic, next_step="another symbolic state")

    def state(self) -> dict:
        """robot_obs and scene_obs, float64, as CALVIN's frames hold them. (Velocities are not in them: a reset starts at rest.)"""
        return self.env.get_state_obs()

    def about(self) -> dict:
        """What a record must say of this simulator."""
        commit = COMMIT[:10] if self.found == DIGEST else f"OTHER THAN {COMMIT[:10]}"
        packages = ("pybullet", "numpy", "gym", "hydra-core", "scipy")
        return {"simulator": "CALVIN", "scene": self.scene, "checkout": commit, "content": self.found, "assets": "CALVIN's own",
                "renderer": {"tiny": "TinyRenderer (CPU)", "egl": f"EGL, device {os.environ.get('EGL_VISIBLE_DEVICES', 0)}"}[self.renderer],
                "versions": {name: importlib.metadata.version(name) for name in packages}, "control_hz": 30,
                "image_size": [200, 200], "wrist_size": [84, 84]}

    def expert(self, task: str, rng: np.random.Generator):
        """The scripted expert, which reads the simulator's true state."""
        from repro.sims.calvin_expert import Expert

        return Expert(self, task, rng)

    def close(self) -> None:
        self.env.close()
        self.env.ownsPhysicsClient, Calvin._taken = False, False
