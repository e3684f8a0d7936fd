"""Scripted episodes in the layout of LIBERO's own HDF5 files: `<folder>/<suite>/<task>_demo.hdf5`.

    write("work/libero", "libero_object", tasks=(0, 3), per_task=50)

As in LIBERO's create_dataset.py: `states[k]` is before action k, `obs/*[k]` and `robot_states[k]` are after it, pictures are stored raw
(upside down), `actions` are as executed and in LIBERO's sign (gripper -1 open, +1 close), the last `rewards` and `dones` are 1. Unlike
there the first five steps stay, since the objects have settled before. `data.attrs` say that this is scripted, not human, and with which
assets. What LIBERO doesn't have is in a group `extras` of each demo:
    expert_actions (T, 7)   without the disturbance, LIBERO's sign: what to learn where noise was on
    state (T + 1, 8), environment_state (T + 1, 6)   from before the first action on: pose and fingers; middles of target and destination
    steps (K,), boxes (K, 2, 4)   of each picture: actions done before it; boxes x0, y0, x1, y1 of target and destination in agentview_rgb
                            as stored, x1 and y1 exclusive, -1 where not seen
    agentview_rgb, eye_in_hand_rgb   the pictures of `steps` that obs/ doesn't hold: the one before the first action
With every > 1 pictures are drawn at every n-th step only, `obs/` has no pictures (a LIBERO reader stops instead of pairing wrong rows) and
all K of them are in `extras`: picture i goes with actions[steps[i]:].
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import repro
from repro import clock, freshness
from repro.machine import UserError
from repro.sims import demos, environments
from repro.sims.base import Launch

INITS, OTHER_STARTS = 50, 10  # official init states of a task; other starts tried where the expert fails at one
APART = 100_000  # from the first simulator seed of one data seed's starts to the next's
UNSEEN = 90_000  # number of the first start of rollouts: demonstrations have the lower ones
WIDE_SEED = 900_000  # simulator seed of the first wide start of evaluations: demonstrations have the lower ones
SAME = ("states", "robot_states")
OBS = ("ee_states", "gripper_states", "joint_states")


def libero_sign(actions: np.ndarray) -> np.ndarray:
    """Actions (T, 7) with the gripper's sign turned: ours is +1 open, LIBERO's -1 open. Its own inverse."""
    return actions * np.array([1, 1, 1, 1, 1, 1, -1.0])


def start(task, suite: str, layout: str, seed: int, number: int, inits: int = INITS) -> dict:
    """The state of a task's episode: the first `inits` official init states in turn; the wide layout draws a new one for each number."""
    return {"suite": suite, "task": task, "init": number % inits, "layout": layout, "seed": seed * APART + number}


def write(folder: Path | str, suite: str = "libero_object", tasks: Sequence[int | str] = tuple(range(10)), per_task: int = 50,
          layout: str = "official", seed: int = 0, workers: int = 1, launch: Callable[[str], Launch] | None = None,
          noise: Sequence[float] = (0.0,), pushes: float = 0.0, every: int = 1, first: int = 0, inits: int = INITS, image_size: int = 128,
          log: Callable[[str], None] = print) -> Path:
    """Play and write `per_task` episodes of each task; one file a task, whole or not at all. Returns the suite's folder. Out of time, the
    task that is being written is dropped; the same call goes on after those that are there. Each file notes what was asked for
    (repro_request); where one of another request is there, nothing is written.

    The content depends on the arguments alone, not on `workers`. suite "grocery" is the embedded table;
    layout: "official" | "wide" (libero_object, grocery); first: number of the first start, so official init states `first` ... are used;
    inits: of the official init states only the first so many are used, by other starts too: the rest is for evaluation; seed: 0 ... 8, so
    that no start is one of an evaluation's (WIDE_SEED);
    noise, pushes, every: see `repro.sims.libero_expert.record`.
    """
    if per_task < 1 or every < 1 or workers < 1 or not 0 <= pushes <= 1 or not len(noise):
        raise UserError("nothing to write", "per_task, every and workers >= 1, pushes in 0 ... 1, one noise scale or more",
                        f"per_task={per_task} every={every} workers={workers} pushes={pushes} noise={noise}")
    _before_evaluations(seed, first, per_task, inits)
    launch = launch or (lambda name: environments.launch("grocery" if name == "grocery" else "libero", suite=name, orientation="raw",
                                                          image_size=image_size, wrist_size=image_size))
    options = launch(suite).options
    if options.get("orientation") != "raw":
        raise UserError("LIBERO's files hold raw pictures", "a simulator launched with orientation='raw'", options.get("orientation"))
    settings = {"noise": list(noise), "pushes": pushes, "every": every}
    request = json.dumps({"per_task": per_task, "layout": layout, "seed": seed, "first": first, "inits": inits, **settings,
                          "simulator": options, "repro": repro.__version__}, sort_keys=True)  # fmt: skip
    folder = Path(folder).expanduser() / suite
    with demos.Crew(launch, workers, log) as crew:
        paths = [folder / f"{name}_demo.hdf5" for name in
                 crew.map(lambda task: crew.run(suite, "repro.sims.libero_expert:task_name", task, suite), tasks)]
        there = {path: _request(path) for path in paths if path.exists()}
        if others := [path for path, asked in there.items() if asked != request]:
            raise UserError(f"{others[0]} is there already", "a new folder, or files of the same request",
                            ", ".join(path.name for path in others), "remove it, or give another folder")
        if there:
            log(f"{len(there)} of {len(paths)} tasks are here already")
        done = per_task * len(there)
        progress = clock.Progress("demonstrations", per_task * len(paths), "episodes", log, before=done)
        for task, path in zip(tasks, paths, strict=True):
            if path in there:
                continue
            jobs = [(task, number) for number in range(first, first + per_task)]
            found = crew.map(lambda job: _episode(crew, suite, layout, seed, settings, per_task, inits, *job), jobs)
            failed = _write_task(path, found, per_task, settings, layout, seed, request)
            log(f"{path}: {per_task} episodes" + (f", {failed} other attempts failed" if failed else ""))
            done += per_task
            progress(done)
    return folder


def ensure_grocery(folder: Path | str, settings, seed: int = 0, log: Callable[[str], None] = print) -> Path:
    """The grocery table's files of a profile, wide layout: those in `folder` where they are of the same request, else written anew.

    Out of time, all of it is written anew in the next session: 6 minutes of one core in every profile.
    """
    clock.check()
    folder = Path(folder).expanduser()
    request = {"per_task": settings.grocery_per_task, "seed": seed, "noise": settings.noise / 2, "version": 2}
    _before_evaluations(seed, 0, request["per_task"], INITS)
    note, place = folder / "request.json", folder / "grocery"
    if not (note.is_file() and json.loads(note.read_text()) == request):
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, "grocery", range(6), request["per_task"], "wide", seed, settings.workers, noise=(0.0, request["noise"]), log=log)
        freshness.write(note, request)  # last: its presence says that the files are whole
    return place


def _before_evaluations(seed: int, first: int, per_task: int, inits: int) -> None:
    """A UserError where a start, or one of those tried instead of it, could be one that evaluations begin from."""
    seeds = WIDE_SEED // APART
    if not 0 <= seed < seeds or not 1 <= inits <= INITS or first < 0 or first + per_task * OTHER_STARTS > UNSEEN:
        raise UserError("starts of demonstrations would be starts of evaluations too",
                        f"seed 0 ... {seeds - 1}, inits 1 ... {INITS}, first >= 0, first + {OTHER_STARTS} * per_task at most {UNSEEN:,}",
                        f"seed={seed} inits={inits} first={first} per_task={per_task}", "another seed, or fewer demonstrations")


def _episode(crew: demos.Crew, suite: str, layout: str, seed: int, settings: dict, per_task: int, inits: int, task, number: int) -> dict:
    """A recording; where the expert fails at a start, one from a later start."""
    failed = 0
    for other in range(OTHER_STARTS):
        state = start(task, suite, layout, seed, number + other * per_task, inits)
        played = crew.run(suite, "repro.sims.libero_expert:record", state, [seed, number, other], settings)
        if played["success"]:
            return played | {"failed": failed + played["tries"] - 1, "state": state, "proprio": played["state"]}
        failed += played["tries"]
    raise UserError(f"the expert fails at task {task} of {suite}", found=f"{failed} failures in a row", next_step="another task or seed")


def _request(path: Path) -> str | None:
    """What a file notes of what was asked for; None where it does not."""
    import h5py

    try:
        with h5py.File(path) as file:
            return file["data"].attrs.get("repro_request")
    except (OSError, KeyError):  # not one of these files
        return None


def _write_task(path: Path, episodes, per_task: int, settings: dict, layout: str, seed: int, request: str) -> int:
    """One file of a task, written aside and renamed. Returns how many attempts failed."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    part, total, failed = path.with_suffix(".part"), 0, 0
    try:
        with h5py.File(part, "w") as file:
            data = file.create_group("data")
            for i, played in enumerate(episodes):
                clock.check()
                if i == 0:
                    _describe(data, played, settings, layout, seed)
                _demo(data.create_group(f"demo_{i}"), played, settings["every"])
                total += len(played["actions"])
                failed += played["failed"]
            data.attrs.update({"num_demos": per_task, "total": total, "repro_failed_attempts": failed, "repro_request": request})
        os.replace(part, path)
        return failed
    finally:
        part.unlink(missing_ok=True)


def _describe(data, played: dict, settings: dict, layout: str, seed: int) -> None:
    """The attributes of `data`: LIBERO's own, and repro_*."""
    about, task = played["about"], played["bddl"]
    bddl = f"libero/libero/bddl_files/{about['suite']}/{played['task']}.bddl"
    problem = {"problem_name": task["problem_name"], "domain_name": "robosuite", "language_instruction": task["language"]}
    size = about["image_size"][0]
    options = {"robots": ["Panda"], "bddl_file_name": bddl, "controller_configs": {"type": "OSC_POSE"}, "control_freq": about["control_hz"],
               "camera_names": ["robot0_eye_in_hand", "agentview"], "camera_heights": size, "camera_widths": size, "ignore_done": True,
               "has_renderer": False, "has_offscreen_renderer": True, "use_camera_obs": True, "reward_shaping": True,
               "camera_depths": False, "camera_segmentations": None}  # fmt: skip
    name = task["problem_name"]
    arguments = {"type": 1, "env_name": name, "problem_name": name, "bddl_file": bddl, "env_kwargs": options}
    data.attrs.update({
        "env_name": name, "problem_info": json.dumps(problem), "bddl_file_name": bddl, "bddl_file_content": task["content"],
        "env_args": json.dumps(arguments), "macros_image_convention": "opengl",
        "repro_source": "scripted, not human", "repro_assets": about["assets"], "repro_about": json.dumps(about),
        "repro_layout": layout, "repro_seed": seed, "repro_settings": json.dumps(settings), "repro_every": settings["every"],
        "repro_pictures": "all" if settings["every"] == 1 else f"every {settings['every']}th step, in extras only"})  # fmt: skip


def _demo(group, played: dict, every: int) -> None:
    """One episode."""
    actions, xml = libero_sign(played["actions"]), played["model_file"]
    last = np.zeros(len(actions), np.uint8)
    last[-1] = 1
    group.attrs.update({"num_samples": len(actions), "init_state": played["states"][0], "repro_noise": played["noise"],
                        "repro_pushed": played["pushed"], "repro_state": json.dumps(played["state"]),
                        "repro_fixtures": json.dumps({name: at.tolist() for name, at in played["fixtures"].items()})})
    group.attrs["model_file"] = xml
    group.create_dataset("actions", data=actions)
    for name in SAME:
        group.create_dataset(name, data=played[name])
    group.create_dataset("rewards", data=last)
    group.create_dataset("dones", data=last)
    obs, extras = group.create_group("obs"), group.create_group("extras")
    for name in OBS:
        obs.create_dataset(name, data=played[name])
    obs.create_dataset("ee_pos", data=played["ee_states"][:, :3])
    obs.create_dataset("ee_ori", data=played["ee_states"][:, 3:])
    pictures = {"agentview_rgb": played["static"], "eye_in_hand_rgb": played["wrist"]}
    for name, frames in pictures.items():
        if every == 1:
            obs.create_dataset(name, data=frames[1:])
        extras.create_dataset(name, data=frames[:1] if every == 1 else frames)
    extras.create_dataset("expert_actions", data=libero_sign(played["expert_actions"]))
    extras.create_dataset("state", data=played["proprio"])
    extras.create_dataset("environment_state", data=played["environment_state"])
    extras.create_dataset("steps", data=played["frame_steps"])
    extras.create_dataset("boxes", data=played["boxes"])
