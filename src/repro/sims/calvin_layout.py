"""Scripted play in CALVIN's own layout, on the embedded play table or in CALVIN's own simulator.

    write("work/calvin", scenes=("D",), tasks=None, episodes_per_task=20, validation_per_task=2, seed=0)

gives `training/` and `validation/` with episode_XXXXXXX.npz, ep_start_end_ids.npy, ep_lens.npy, scene_info.npy, statistics.yaml,
lang_annotations/auto_lang_ann.npy, and boxes.json (true boxes from the renderer's item ids). A recording is a piece of play: one
to `row` tasks in a row, each annotated, neighbours sharing a frame. First every recording is played without pictures, in
parallel; then frame numbers are known and the frames are drawn and written in parallel. The bits depend on the arguments alone, not
on the number of workers. Scripted, not human: about.json says so, and names simulator and renderer.

Calm demonstrations, with `noise` that the expert corrects, are what a small model learns from: variation=0.05, noise=0.4. Their
actions are the expert's own commands, which are exact; CALVIN's rule (differences of recorded poses) would say what a disturbed hand
did instead of what it should do. With the natural variation and no noise the actions keep CALVIN's rule.

draw_every=3 draws every third frame of a task: time and disk for pictures fall to a third, while actions and states stay at 30 Hz.
Frames between carry black pictures and no boxes; a store repeats the picture before, and its column `info.drawn` says which are new.
"""

import json
import multiprocessing
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import yaml

from repro import clock
from repro.machine import UserError
from repro.sims import demos
from repro.sims.base import Launch
from repro.sims.demos import Plan
from repro.sims.tabletop import language
from repro.sims.tabletop.scenes import BLOCKS, ITEMS, SCENES, item_boxes
from repro.sims.tabletop.scenes import scene as table_of
from repro.sims.tabletop.tasks import check_tasks, outcome, symbolic_for

TASKS_IN_A_ROW = 3
UNITS = np.array([0.02] * 3 + [0.05] * 3)  # metres and rad of a relative action of 1
LABELLED, RECORDED = "the expert's commands", "differences of recorded poses (CALVIN's rule)"
FIRST_FRAME = {"training": 0, "validation": 5_000_000}


def _number(scene: str) -> int:
    """One of its own for each name of scenes.scene."""
    return ord(scene[0]) + 256 * int(scene[2:] or 0)


def plan(split: str, scene: str, tasks: tuple[str, ...], per_task: int, seed: int, held: bool = True,
         length: int = TASKS_IN_A_ROW) -> list[Plan]:  # fmt: skip
    """Recordings in which every task occurs `per_task` times; the next task in a row is one that has become possible. held: a recording
    may start with a block in the hand; without, it starts on the table, and the row with its lift. length: most tasks in a row."""
    rng = np.random.default_rng([seed, len(split), _number(scene)])
    left, plans = Counter(dict.fromkeys(tasks, per_task)), []
    while +left:
        wanted = [task for task in tasks if left[task] > 0]
        task = wanted[rng.integers(len(wanted))]
        state = symbolic = symbolic_for(task, rng)
        row = []
        carried = next((block for block in BLOCKS if symbolic[block] == "grasped"), None)
        if carried and not held:
            symbolic, row = {**symbolic, carried: "table"}, [f"lift_{carried}_table"]
        while task is not None:
            row.append(task)
            left[task] -= 1
            state = outcome(task, state)
            legal = [t for t in tasks if left[t] > 0 and outcome(t, state) is not None]
            task = legal[rng.integers(len(legal))] if legal and len(row) < length else None
        plans.append(Plan(scene, symbolic, tuple(row), (seed, len(split), _number(scene), len(plans))))
    return plans


class _Table:
    """The play table in a pool of this interpreter's processes."""

    held, about = True, {"simulator": "tabletop", "renderer": "play table (OpenCV)"}

    def __init__(self, map_):
        self.play, self.draw = (lambda plans: map_(_play_here, plans)), (lambda jobs: map_(_draw_here, jobs))


def _play_here(recording: Plan) -> dict:
    from repro.sims.tabletop.expert import Expert
    from repro.sims.tabletop.world import PlayTable

    table = PlayTable(recording.scene)
    return demos.play(table, recording, lambda task, rng: Expert(table, task, rng, recording.variation))


def _draw_here(job: tuple) -> list[list[str]]:
    """Pictures of the play table are a pure function of the recorded states: nothing is played again."""
    from repro.sims.tabletop.render import render

    folder, scene, first, played = job
    return _frames(folder, first, played, lambda t: render(table_of(scene), played["robot_obs"][t], played["scene_obs"][t]))


class _Real:
    """CALVIN's simulator in workers of its own interpreter, a scene each."""

    held = False

    def __init__(self, crew: demos.Crew, scene: str):
        self.crew, self.about = crew, {"simulator": "calvin", **crew.about(scene)}

    def play(self, plans):
        return self.crew.map(lambda p: self.crew.run(p.scene, "repro.sims.demos:play_as", asdict(p)), plans)

    def draw(self, jobs):
        return self.crew.map(self._draw, jobs)

    def _draw(self, job: tuple) -> list[list[str]]:
        folder, scene, first, played = job
        seen = self.crew.run(scene, "repro.sims.demos:drawn", {key: played[key] for key in ("start", "actions", "robot_obs")})
        return _frames(folder, first, played, lambda t: {key: value[t] for key, value in seen.items()})


@contextmanager
def _players(launch: Callable[[str], Launch] | None, scene: str, workers: int, log):
    """Who plays and draws: the play table's pool, or CALVIN's crew."""
    if launch is None:
        context = multiprocessing.get_context("spawn")
        if workers < 2:
            yield _Table(map)
            return
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                yield _Table(pool.map)
            finally:
                pool.shutdown(cancel_futures=True)  # after an error, or out of time, what waits is not done any more
        return
    with demos.Crew(launch, workers, log) as crew:
        yield _Real(crew, scene)


# --- frames ---------------------------------------------------------------------------------------------------------------

def actions(robot_obs: np.ndarray, gripper: np.ndarray, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(absolute, relative) actions (T, 7) by CALVIN's definition: the next frame's tcp pose, and its difference to this one's, in units
    of 0.02 m and 0.05 rad clipped to [-1, 1]; the last frame stands still. With labels: the pose that the expert commands, and its
    command."""
    if labels is not None:
        return np.column_stack([robot_obs[:, :6] + labels[:, :6] * UNITS, labels[:, 6]]), labels
    absolute = np.column_stack([np.vstack([robot_obs[1:, :6], robot_obs[-1:, :6]]), gripper])
    step = absolute[:, :6] - robot_obs[:, :6]
    step[:, 3:] = (step[:, 3:] + np.pi) % (2 * np.pi) - np.pi
    return absolute, np.column_stack([np.clip(step / UNITS, -1, 1), gripper])


def _save(path: Path, **arrays: np.ndarray) -> None:
    """What np.savez_compressed writes, at the quickest level of compression: a third of the time for a tenth more bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(name + ".npy", "w") as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _frames(folder: str, first: int, played: dict, picture: Callable[[int], dict]) -> list[list[str]]:
    """Write the frames of one recording; the box tables of each frame as JSON: boxes of static and wrist camera, pixels of both.
    A frame that is not "drawn" has black pictures and no boxes."""
    absolute, relative = actions(played["robot_obs"], played["gripper"], played.get("labels"))
    lines = []
    for t, drawn in enumerate(played["drawn"]):
        seen = picture(t) if drawn else {key: np.zeros_like(seen[key]) for key in ("static", "wrist")}
        _save(Path(folder) / f"episode_{first + t:07d}.npz", actions=absolute[t], rel_actions=relative[t], robot_obs=played["robot_obs"][t],
              scene_obs=played["scene_obs"][t], rgb_static=seen["static"], rgb_gripper=seen["wrist"])  # fmt: skip
        if not drawn:
            lines.append(["{}"] * 4)
            continue
        ids = [seen[f"{camera}_ids"] for camera in ("static", "wrist")]
        counts = [{ITEMS[i - 1]: int(n) for i, n in enumerate(np.bincount(a.ravel(), minlength=len(ITEMS) + 1)) if i and n} for a in ids]
        lines.append([json.dumps(found) for found in (*(item_boxes(a) for a in ids), *counts)])
    return lines


def write(root: Path | str, scenes=("D",), tasks=None, episodes_per_task: int = 10, validation_per_task: int = 2,
          validation_scene: str | None = None, seed: int = 0, workers: int = 2, launch: Callable[[str], Launch] | None = None,
          log=print, variation: float = 1.0, noise: float = 0.0, row: int = TASKS_IN_A_ROW,
          draw_every: int = 1) -> Path:  # fmt: skip
    """Write the data set at `root` (which must not exist), whole or not at all: out of time, it is written anew in the next session. On the
    play table that is less than 5 minutes in every profile.

    launch: how CALVIN's simulator is started, scene -> Launch; None: the play table.

    scenes: those of training/; validation_scene: that of validation/ (default: D where it is among `scenes`, or the last). tasks: names,
    None for all 34. Validation instructions are wordings that no training episode has. variation, noise: of the play table's expert, see
    `demos.Plan`; row: most tasks in a recording; draw_every: frames of training/ from one picture of a task to the next.
    """
    tasks, root = check_tasks(tasks), Path(root)
    for name in (*scenes, validation_scene or "D"):
        table_of(name)
    if not scenes or min(episodes_per_task, validation_per_task) < 1:
        raise UserError("the play table cannot write this", expected=f"scenes out of {', '.join(SCENES)}, at least one episode per task",
                        found=f"scenes {scenes}, {validation_scene}, {episodes_per_task} and {validation_per_task} episodes")  # fmt: skip
    if not (0 <= variation <= 1 and 0 <= noise <= 1 and min(row, draw_every) >= 1) or (launch and (variation, noise) != (1, 0)):
        raise UserError("demonstrations cannot be played so",
                        "variation and noise from 0 to 1 (1 and 0 in CALVIN's simulator), row and draw_every at least 1",
                        f"variation {variation}, noise {noise}, row {row}, draw_every {draw_every}")  # fmt: skip
    if root.exists():
        raise UserError(f"{root} is there already", expected="a folder that does not exist", next_step="remove it, or give another place")
    part = root.with_name(root.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    clock.check()
    splits = {"training": tuple(scenes), "validation": (validation_scene or ("D" if "D" in scenes else scenes[-1]),)}
    with _players(launch, splits["training"][0], workers, log) as players:
        for split, its_scenes in splits.items():
            count = episodes_per_task if split == "training" else validation_per_task
            plans = [p for scene in its_scenes for p in plan(split, scene, tasks, count, seed, players.held, row)]
            plans = [replace(p, variation=variation, noise=noise) for p in plans]
            _write_split(part / split, split, plans, seed, draw_every if split == "training" else 1, players, log)
        kind = "play table" if launch is None else "CALVIN simulator, scripted"
        about = {"name": f"{kind} {''.join(sorted(scenes))}, {len(tasks)} tasks", **players.about, "seed": seed, "scripted": True,
                 "variation": variation, "noise": noise, "actions": LABELLED if plans[0].labelled else RECORDED,
                 "draw_every": draw_every}  # fmt: skip
    (part / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    os.replace(part, root)
    return root


def _each(results: Iterable, name: str, total: int, log) -> list:
    """The results as they come, with a line of progress every 30 s; OutOfTime where the session ends."""
    progress, found = clock.Progress(name, total, "recordings", log), []
    for result in results:
        found.append(result)
        progress(len(found))
        clock.check()
    return found


def _write_split(folder: Path, split: str, plans: list[Plan], seed: int, draw_every: int, players, log) -> None:
    (folder / "lang_annotations").mkdir(parents=True)
    plans, played = demos.kept(plans, _each(players.play(plans), f"playing {split}", len(plans), log), log)
    lengths = np.array([len(p["robot_obs"]) for p in played])
    firsts = FIRST_FRAME[split] + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    log(f"{split}: {len(plans)} recordings of {lengths.sum()} frames; drawing them")
    for recording in played:
        recording["drawn"] = _drawn(recording, draw_every)
    jobs = [(str(folder), p.scene, int(first), recording) for p, first, recording in zip(plans, firsts, played, strict=True)]
    tables = [line for lines in _each(players.draw(jobs), f"drawing {split}", len(jobs), log) for line in lines]
    np.save(folder / "ep_start_end_ids.npy", np.column_stack([firsts, firsts + lengths - 1]).astype(np.int64))
    np.save(folder / "ep_lens.npy", lengths.astype(np.int64))
    ranges = {}
    for p, first, length in zip(plans, firsts, lengths, strict=True):
        ranges.setdefault(f"calvin_scene_{p.scene}", [int(first), 0])[1] = int(first + length - 1)
    if split == "training":
        np.save(folder / "scene_info.npy", np.array(ranges, dtype=object), allow_pickle=True)
    notes = _sentences(split, plans, played, firsts, seed)
    language_info = {"language": {"ann": [n["instruction"] for n in notes], "task": [n["task"] for n in notes],
                                  "emb": np.zeros((len(notes), 1, 384), np.float32)},
                     "info": {"episodes": [], "indx": [(n["start"], n["end"]) for n in notes]}}  # fmt: skip
    np.save(folder / "lang_annotations" / "auto_lang_ann.npy", np.array(language_info, dtype=object), allow_pickle=True)
    _statistics(folder / "statistics.yaml", played)
    _boxes(folder / "boxes.json", notes, tables, int(firsts[0]))


def _drawn(played: dict, every: int) -> np.ndarray:
    """(T,) bool: the frames that get a picture, counted from each task's first."""
    starts, frames = np.array([note["start"] for note in played["notes"]]), np.arange(len(played["robot_obs"]))
    return (frames - starts[np.searchsorted(starts, frames, side="right") - 1]) % every == 0


def _sentences(split: str, plans: list[Plan], played: list[dict], firsts: np.ndarray, seed: int) -> list[dict]:
    """One annotation per task: frame numbers, the sentence, and what boxes.json says of it."""
    rng, notes = np.random.default_rng([seed, 5]), []
    for p, first, recording in zip(plans, firsts, played, strict=True):
        for note in recording["notes"]:
            wordings = language.TRAIN[note["task"]]
            sentence = wordings[rng.integers(len(wordings))] if split == "training" else language.VALIDATION[note["task"]]
            notes.append({
                "start": int(first) + note["start"], "end": int(first) + note["end"], "success_frame": int(first) + note["success"],
                "task": note["task"], "instruction": sentence, "scene": f"calvin_scene_{p.scene}", "targets": note["targets"],
                "goal_items": note["goal_items"], "seed": p.seed[-1],
            })  # fmt: skip
    return json.loads(json.dumps(notes))  # equal strings become separate ones: the pickle's bytes then depend on their text alone


def _statistics(path: Path, played: list[dict]) -> None:
    """Mean and standard deviation as CALVIN's transforms read them, and the bounds of the absolute actions."""
    found = {}
    for name in ("robot_obs", "scene_obs"):
        values = np.concatenate([p[name] for p in played])
        found[name] = [{"_target_": "calvin_models.calvin_agent.utils.transforms.NormalizeVector", "mean": values.mean(0).tolist(),
                        "std": values.std(0).tolist()}]  # fmt: skip
    absolute = np.concatenate([actions(p["robot_obs"], p["gripper"], p.get("labels"))[0] for p in played])
    found |= {"act_max_bound": absolute.max(0).tolist(), "act_min_bound": absolute.min(0).tolist()}
    path.write_text(yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=10_000))


def _boxes(path: Path, notes: list[dict], tables: list, first: int) -> None:
    """boxes.json, one frame a line."""
    head = {"box": "[x0, y0, x1, y1] in pixels, x1 and y1 exclusive; visible pixels only", "items": list(ITEMS),
            "image_size": {"rgb_static": [200, 200], "rgb_gripper": [84, 84]}, "episodes": notes}  # fmt: skip
    with open(path, "w") as file:
        file.write(json.dumps(head, indent=1)[:-2])
        for place, name in enumerate(("rgb_static", "rgb_gripper", "pixels_static", "pixels_gripper")):
            file.write(f',\n "{name}": {{\n')
            file.write(",\n".join(f'  "{first + t:07d}": {line[place]}' for t, line in enumerate(tables)))
            file.write("\n }")
        file.write("\n}\n")


def ensure(root: Path | str, settings, seed: int = 0, log=print) -> Path:
    """The data set that a profile asks for: the one at `root` if it was made with the same numbers, else written anew."""
    root = Path(root)
    wanted = {
        "scenes": list(settings.scenes), "tasks": list(check_tasks(settings.tasks)), "episodes_per_task": settings.episodes_per_task,
        "validation_per_task": settings.validation_episodes_per_task, "validation_scene": settings.evaluation_scene, "seed": seed,
        "variation": getattr(settings, "variation", 1.0), "noise": getattr(settings, "noise", 0.0),
        "row": getattr(settings, "row", TASKS_IN_A_ROW), "draw_every": getattr(settings, "draw_every", 1),
    }  # fmt: skip
    asked = root / "asked.json"
    if asked.is_file() and json.loads(asked.read_text()) == wanted:
        return root
    if root.exists():
        log(f"{root} was made with other numbers: writing it anew")
        shutil.rmtree(root)
    write(root, workers=settings.workers, log=log, **wanted)
    asked.write_text(json.dumps(wanted))
    return root
