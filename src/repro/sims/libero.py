"""LIBERO's own environments (hf-libero 0.1.4 on robosuite 1.4.0 and MuJoCo 3.3.2), not changed on disk.

Runs in a worker process (`repro.sims.worker`) of an environment without torch. Facts it relies on (measured):
- The first import of `libero.libero` asks two questions on stdin unless its config file is there; it is written before.
- `ControlEnv.reset` swallows every exception and tries for ever; here it is `env.reset` with a bound.
- Init states hold no fixtures (cabinet, stove): a reset draws them from numpy's global generator, around where the last reset of the
  same environment left them. So each episode gets an environment of its own and a seeded generator.
- MuJoCo 3.3.3 and later draw LIBERO-Object about 38 grey levels darker, 3.4.0 and later throw a bottle in libero_10: 3.3.2 is asked for.
- robosuite's segmentation overflows under numpy 2; here pixels are read as integers.
- The environment's pictures are upside down. `orientation`: "upright" (true left and right), "rotated" (by 180 degrees, so mirrored, as in
  OpenVLA's, openpi's and LeRobot's data), "raw" (as in LIBERO's HDF5 files).
"""

import contextlib
import ctypes.util
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from repro.data.npy import Unpickler
from repro.machine import UserError
from repro.sims.tabletop.scenes import extent

MUJOCO, SETTLE, RESETS = "3.3.2", 10, 20  # version; dummy actions after a reset, by all conventions; resets tried when placement fails
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
DUMMY = np.array([0, 0, 0, 0, 0, 0, -1.0])  # LIBERO's sign: -1 opens the gripper
CAMERAS = {"static": "agentview", "wrist": "robot0_eye_in_hand"}
VIEW = {"upright": (slice(None, None, -1), slice(None)), "rotated": (slice(None, None, -1), slice(None, None, -1)),
        "raw": (slice(None), slice(None))}
LIBRARIES = {"osmesa": ("OSMesa", "libosmesa6"), "egl": ("EGL", "libegl1 libegl-mesa0 libgl1-mesa-dri")}
HUB = "hf download lerobot/libero-assets --repo-type dataset --local-dir FOLDER; then give it as `assets` or in REPRO_LIBERO_ASSETS"
WIDE = {"target": 0.07, "destination": 0.05}  # m in x and y: how far the wide layout moves them
APART = {"target": 0.085, "destination": 0.17, "both": 0.20}  # m: closer than this to another object, a draw is rejected


def package() -> Path:
    """The folder of the installed hf-libero, or a UserError."""
    found = importlib.util.find_spec("libero")
    if not found or not found.submodule_search_locations:
        raise UserError("hf-libero is not installed here", "hf-libero 0.1.4", "nothing", "repro sims setup libero")
    return Path(next(iter(found.submodule_search_locations))) / "libero"


def assets_folder(assets: str | None) -> Path:
    """The asset folder: the one given, or the one inside the package. Never downloaded silently."""
    folder = Path(assets).expanduser().resolve() if assets else package() / "assets"
    if not (folder / "scenes" / "libero_floor_base_style.xml").is_file():
        raise UserError(f"{folder} holds no LIBERO assets", "scenes/, stable_hope_objects/, textures/ ... (not in hf-libero's wheel)",
                        "a folder without them" if folder.is_dir() else "no such folder", HUB)
    return folder


def task_names(suite: str) -> list[str]:
    """The tasks of a suite in its official order (task_order_index 0), from the package's own list."""
    if suite not in SUITES:
        raise UserError(f"no LIBERO suite {suite!r}", " | ".join(SUITES), suite)
    spec = importlib.util.spec_from_file_location("libero_task_map", package() / "benchmark" / "libero_suite_task_map.py")
    module = importlib.util.module_from_spec(spec)  # alone: the package around it imports torch
    spec.loader.exec_module(module)
    return list(module.libero_task_map[suite])


def init_states(suite: str, task: str) -> np.ndarray:
    """(50, S) float64 flattened MuJoCo states [time, qpos, qvel]; a restricted unpickler reads torch's zip file."""
    path = package() / "init_files" / suite / f"{task}.pruned_init"
    try:
        with zipfile.ZipFile(path) as archive, archive.open(next(n for n in archive.namelist() if n.endswith("data.pkl"))) as file:
            return np.asarray(Unpickler(file.read(), path).load(), np.float64)
    except (OSError, zipfile.BadZipFile, StopIteration) as error:
        raise UserError(f"{path} cannot be read", "a zip file with data.pkl", error, "repro sims setup libero") from error


class Libero:
    """One environment at a time, built anew at each reset (0.2-0.5 s with small assets): the same state then gives the same bits.

    State: {"task": name or index, "init": 0..49, "layout": "official" | "wide", "seed": int, "suite": optional, default the constructor's};
    or "flat" instead of "init": a recording's flattened MuJoCo state [time, qpos, qvel], with "settle" False where it had settled already.
    """

    def __init__(self, suite: str = "libero_object", assets: str | None = None, image_size: int = 128, wrist_size: int = 128,
                 renderer: str = "osmesa", orientation: str = "upright", any_mujoco: bool = False):
        for name, value, known in (("renderer", renderer, LIBRARIES), ("orientation", orientation, VIEW)):
            if value not in known:
                raise UserError(f"no {name} {value!r}", " | ".join(known), value)
        library, packages = LIBRARIES[renderer]
        if sys.platform.startswith("linux") and not ctypes.util.find_library(library):
            raise UserError(f"the library {library}, which draws LIBERO's pictures, is not installed", f"lib{library}", "nothing",
                            f"sudo apt-get install {packages}")
        self.suite, self.tasks, self.assets = suite, task_names(suite), assets_folder(assets)
        self.sizes, self.renderer, self.orientation = {"static": image_size, "wrist": wrist_size}, renderer, orientation
        found = importlib.metadata.version("mujoco")
        if found != MUJOCO and not any_mujoco:
            raise UserError(f"MuJoCo {found} draws and settles LIBERO's scenes in another way", MUJOCO, found,
                            f"pip install mujoco=={MUJOCO} (repro sims setup libero), or any_mujoco=True, said in every record")
        self.make = self._import()
        self.env = self.built = None

    def _import(self):
        """`libero.libero.envs`, with its config written to a folder of our own and its assets pointed at ours."""
        os.environ["MUJOCO_GL"] = self.renderer
        os.environ.setdefault("PYOPENGL_PLATFORM", self.renderer)
        root = package()
        import yaml

        places = {"benchmark_root": root, "bddl_files": root / "bddl_files", "init_states": root / "init_files",
                  "datasets": root.parent / "datasets", "assets": self.assets}
        text = yaml.safe_dump({name: str(place) for name, place in places.items()})
        name = hashlib.sha256(f"{os.getuid()} {text}".encode()).hexdigest()[:12]  # the same folder for the same places
        home = Path(os.environ.setdefault("LIBERO_CONFIG_PATH", str(Path(tempfile.gettempdir()) / f"repro-libero-{name}")))
        if not (home / "config.yaml").is_file():
            home.mkdir(parents=True, exist_ok=True)
            part = home / f"config.{os.getpid()}.part"
            part.write_text(text)
            part.replace(home / "config.yaml")
        try:
            import libero.libero as package_

            package_._assets_path_cache = str(self.assets)  # it ignores the config's key
            from libero.libero.envs.env_wrapper import ControlEnv
        except ImportError as error:
            raise UserError("LIBERO cannot be imported", "all of its packages", error, "repro sims setup libero") from error
        return ControlEnv

    # --- the simulator contract -------------------------------------------------------------------------------------

    def reset(self, state: dict, render: bool = True) -> dict | None:
        """A hard reset under the state's seed, its init state, the layout, then 10 dummy actions to settle, as all conventions do.

        A "flat" state holds no fixtures (cabinet, stove): these stand where the seed puts them, not where they stood in the recording.
        """
        suite, layout, seed = state.get("suite", self.suite), state.get("layout", "official"), int(state.get("seed", 0))
        task = self.task_name(state["task"], suite)
        inits = init_states(suite, task)
        if not 0 <= state.get("init", 0) < len(inits):
            raise UserError(f"no init state {state['init']} of {task}", f"0 ... {len(inits) - 1}", state["init"])
        if layout not in ("official", "wide"):
            raise UserError(f"no layout {layout!r}", "official | wide", layout)
        if "flat" in state and layout == "wide":
            raise UserError("a recorded state is not moved", "layout 'official' with \"flat\"", layout)
        self._build(suite, task)  # anew: a reset moves the fixtures from where the last one left them. It draws too
        np.random.seed(seed % 2**32)  # fixtures are drawn from the global generator
        self._hard_reset()
        self._set(self._recorded(state["flat"], task) if "flat" in state else inits[state.get("init", 0)])
        self.placed = {"suite": suite, "task": task, "init": int(state.get("init", 0)), "layout": layout, "seed": seed}
        if layout == "wide":
            self._spread(np.random.default_rng(seed))
        before = {name: self.where(name) for name in self.world.objects_dict}
        for _ in range(SETTLE if state.get("settle", True) else 0):
            self.seen = self.world.step(DUMMY)[0]
        self.settled = {name: float(np.linalg.norm(self.where(name) - at)) for name, at in before.items()}
        return self.observe() if render else None

    def _recorded(self, flat, task: str) -> np.ndarray:
        """A state from outside, if it is one of the scene that is built."""
        flat, size = np.asarray(flat, np.float64), len(self.flat())
        if flat.shape != (size,) or not np.isfinite(flat).all():
            raise UserError(f"this is no state of {task}", f"{size} finite numbers [time, qpos, qvel]", flat.shape,
                            "a recording of the same task, suite and LIBERO version")
        return flat

    def task_list(self) -> list[str]:
        """The tasks of this simulator's suite, in the official order."""
        return self.tasks

    def task_name(self, task: int | str, suite: str) -> str:
        """The name of a task given by name or number."""
        names = self.tasks if suite == self.suite else task_names(suite)
        name = names[task] if isinstance(task, int) and 0 <= task < len(names) else task
        if name not in names:
            raise UserError(f"no task {task!r} in {suite}", f"a name, or 0 ... {len(names) - 1}: {', '.join(names)}", task)
        return name

    def _build(self, suite: str, task: str) -> None:
        self.close()
        file = package() / "bddl_files" / suite / f"{task}.bddl"
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self.env = self.make(bddl_file_name=str(file), use_camera_obs=False, has_offscreen_renderer=False, ignore_done=True,
                                     camera_heights=self.sizes["static"], camera_widths=self.sizes["static"])
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"the environment of {task} cannot be built: an asset is missing or broken", f"all assets in {self.assets}",
                            str(error)[:400], HUB) from error
        self.world, self.built = self.env.env, (suite, task)

    def _hard_reset(self) -> None:
        from robosuite.utils.errors import RandomizationError

        for _ in range(RESETS):
            try:
                self.world.reset()
                self.canvas = None
                self._context()  # always: made later, between two steps, it would change the last bits of what follows
                return
            except RandomizationError as error:
                problem = error
        raise UserError(f"LIBERO found no place for the objects in {RESETS} resets", found=problem, next_step="another seed")

    def _set(self, flat: np.ndarray) -> None:
        """As ControlEnv.regenerate_obs_from_state."""
        sim = self.world.sim
        sim.set_state_from_flattened(flat)
        sim.forward()
        self.world._check_success()
        self.world._post_process()
        self.world._update_observables(force=True)
        self.seen = self.world._get_observations()

    def _spread(self, rng: np.random.Generator) -> None:
        """The wide layout: target and destination moved, until both stand clear of everything (measured recipe, libero_object)."""
        sim, moved = self.world.sim, dict(zip(("target", "destination"), self.world.obj_of_interest[:2], strict=False))
        objects = {name: sim.data.get_joint_qpos(o.joints[-1])[:2].copy() for name, o in self.world.objects_dict.items()}
        if len(moved) < 2 or any(name not in objects for name in moved.values()):
            raise UserError("the wide layout needs a movable target and destination", "libero_object", self.built, "layout='official'")
        others = [xy for name, xy in objects.items() if name not in moved.values()]
        for _ in range(10_000):
            at = {role: objects[name] + rng.uniform(-WIDE[role], WIDE[role], 2) for role, name in moved.items()}
            if np.linalg.norm(at["target"] - at["destination"]) > APART["both"] and all(
                    np.linalg.norm(at[role] - xy) > APART[role] for role in at for xy in others):
                break
        else:
            raise UserError("no wide layout without overlaps", found=self.placed, next_step="another seed")
        for role, name in moved.items():
            joint = self.world.objects_dict[name].joints[-1]
            pose = sim.data.get_joint_qpos(joint).copy()
            pose[:2] = at[role]
            sim.data.set_joint_qpos(joint, pose)
        sim.forward()

    def step(self, action, render: bool = True) -> dict | None:
        """One OSC_POSE action (7,) at 20 Hz: 0.05 m and 0.5 rad per unit, clipped to [-1, 1]; gripper > 0 opens (LIBERO's own: closes)."""
        action = np.asarray(action)
        if action.shape != (7,) or action.dtype.kind != "f" or not np.isfinite(action).all():
            raise UserError("bad LIBERO action", "7 finite floating-point numbers", f"{action.dtype} {action.shape} {action.tolist()}",
                            "relative actions: xyz, axis-angle, gripper -1 close / +1 open")
        action = np.clip(action.astype(np.float64), -1, 1)
        action[6] = -1.0 if action[6] > 0 else 1.0
        self.seen = self.world.step(action)[0]
        return self.observe() if render else None

    def start_task(self) -> None:
        """A task's goal is a state, not a change: nothing to remember."""

    def done(self, task: str) -> bool:
        """LIBERO's own goal predicates of the task that was reset."""
        if task not in (self.built[1], str(self.tasks.index(self.built[1])) if self.built[1] in self.tasks else ""):
            raise UserError("an episode has one task", self.built[1], task)
        return bool(self.world._check_success())

    def observe(self, pictures: bool = True) -> dict:
        """Pictures, unless told not; state (8,): end-effector position (m), axis-angle (rad), two finger joints (m); environment_state
        (6,): centres of the target and of the destination (m)."""
        from robosuite.utils.transform_utils import quat2axisangle

        seen, interest = self.seen, self.world.obj_of_interest
        state = np.concatenate([seen["robot0_eef_pos"], quat2axisangle(seen["robot0_eef_quat"].copy()), seen["robot0_gripper_qpos"]])
        drawn = {f"observation.images.{name}": self._picture(name) for name in CAMERAS if pictures}
        return {**drawn, "observation.state": state.astype(np.float32),
                "observation.environment_state": np.concatenate([self.where(interest[0]), self.where(interest[-1])]).astype(np.float32)}

    def where(self, name: str) -> np.ndarray:
        """Position (3,) in metres of an object, a fixture or a site of the task."""
        model, data, thing = self.world.sim.model, self.world.sim.data, self.world.get_object(name)
        if name in self.world.object_sites_dict:
            return np.array(data.site_xpos[model.site_name2id(name)])
        return np.array(data.body_xpos[model.body_name2id(thing.root_body)])

    def _context(self):
        """The drawing context of this episode; pictures are drawn on demand."""
        if self.canvas is None:
            from robosuite.utils.binding_utils import MjRenderContextOffscreen

            sim = self.world.sim
            self.canvas = MjRenderContextOffscreen(sim, device_id=self.world.render_gpu_device_id)
            self.canvas.vopt.geomgroup[0], self.canvas.vopt.geomgroup[1] = 0, 1  # no collision meshes
        return self.canvas

    def _picture(self, name: str, segmentation: bool = False) -> np.ndarray:
        """(H, W, 3) uint8 RGB, or with segmentation (H, W) the geom seen, -1 for none; in this simulator's orientation."""
        import mujoco

        context, size = self._context(), self.sizes[name]
        context.gl_ctx.make_current()
        context.render(size, size, self.world.sim.model.camera_name2id(CAMERAS[name]), segmentation)
        pixels = np.empty((size, size, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, mujoco.MjrRect(0, 0, size, size), context.con)
        if segmentation:
            number = pixels.astype(np.int64) @ (1, 256, 65536)
            lookup = np.full(context.scn.ngeom + 1, -1)
            for geom in context.scn.geoms[: context.scn.ngeom]:
                if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                    lookup[geom.segid + 1] = geom.objid
            pixels = lookup[np.where(number < len(lookup), number, 0)]
        return np.ascontiguousarray(pixels[VIEW[self.orientation]])

    def boxes(self) -> dict[str, list[int]]:
        """{instance: [x0, y0, x1, y1]} of the visible pixels in the static picture; names as in the task's bddl file (alphabet_soup_1)."""
        geoms, owner = self._picture("static", segmentation=True), self.world.model.geom_ids_to_instances
        seen = {}
        for geom in np.unique(geoms[geoms >= 0]).tolist():
            seen.setdefault(owner.get(geom), []).append(geom)
        return {name: extent(np.isin(geoms, ids)) for name, ids in seen.items() if name and "Panda" not in name and "Mount" not in name}

    def state(self) -> dict:
        """How the episode began, the flattened MuJoCo state, where the fixtures stand, and how far each object went while settling (m)."""
        fixtures = {name: self.where(name) for name in self.world.fixtures_dict}
        return {**self.placed, "mujoco": self.flat(), "fixtures": fixtures, "settled": self.settled}

    def flat(self) -> np.ndarray:
        """The flattened MuJoCo state [time, qpos, qvel]."""
        return np.array(self.world.sim.get_state().flatten())

    def proprio(self) -> dict[str, np.ndarray]:
        """What LIBERO's files record of the robot, and `observe`'s two vectors."""
        seen, told = self.seen, self.observe(pictures=False)
        position, angles = seen["robot0_eef_pos"], told["observation.state"][3:6]
        return {"robot_states": np.concatenate([seen["robot0_gripper_qpos"], position, seen["robot0_eef_quat"]]),
                "ee_states": np.concatenate([position, angles]), "gripper_states": seen["robot0_gripper_qpos"].copy(),
                "joint_states": seen["robot0_joint_pos"].copy(), "state": told["observation.state"],
                "environment_state": told["observation.environment_state"]}

    def facts(self) -> dict:
        """What a file of recordings says of the task: where the fixtures stand, the bddl file, the model's xml, target and destination."""
        import robosuite
        from libero.libero.envs.bddl_utils import get_problem_info

        world, xml = self.world, self.world.sim.model.get_xml()
        for place, name in ((self.assets, "libero/libero/assets"), (Path(robosuite.__file__).parent, "robosuite")):
            xml = xml.replace(str(place), name)  # files say nothing of this machine
        bddl = {"content": Path(world.bddl_file_name).read_text(), "problem_name": world.parsed_problem["problem_name"],
                "language": get_problem_info(world.bddl_file_name)["language_instruction"]}
        return {"fixtures": self.state()["fixtures"], "bddl": bddl, "model_file": xml,
                "items": [world.obj_of_interest[0], world.obj_of_interest[-1]]}

    def about(self) -> dict:
        """What a record must say of this simulator."""
        readme = self.assets / "README.md"
        lite = readme.is_file() and "stand-in assets" in readme.read_text(errors="replace")
        files = sorted(f"{f.relative_to(self.assets).as_posix()} {f.stat().st_size}" for f in self.assets.rglob("*") if f.is_file())
        content = hashlib.sha256("\n".join(files).encode()).hexdigest()[:16]
        packages = ("mujoco", "robosuite", "hf-libero", "numpy")
        return {"simulator": "LIBERO", "suite": self.suite, "assets": "stand-in assets" if lite else "LIBERO's own (user's folder)",
                "content": content, "renderer": f"MuJoCo, {self.renderer}", "orientation": self.orientation, "control_hz": 20,
                "image_size": [self.sizes["static"]] * 2, "wrist_size": [self.sizes["wrist"]] * 2, "settle_steps": SETTLE,
                "versions": {name: importlib.metadata.version(name) for name in packages}}

    def missing_assets(self) -> list[str]:
        """Files that the XML files in the asset folder name and that are not there."""
        named = ((xml, node.get("file")) for xml in sorted(self.assets.rglob("*.xml")) for node in ElementTree.parse(xml).iter())
        return [str((xml.parent / name).relative_to(self.assets)) for xml, name in named if name and not (xml.parent / name).exists()]

    def expert(self, task: str, rng: np.random.Generator, noise: float = 0.0, pushes: float = 0.0):
        """The scripted expert, which reads the simulator's true state; disturbed, where noise or pushes are asked for."""
        from repro.sims.libero_expert import Expert

        return Expert(self, task, rng, noise, pushes)

    def close(self) -> None:
        if self.env is not None:
            self.canvas = None
            self.env.close()
            self.env = self.built = None
