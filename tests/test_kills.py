"""Long stages, killed at random instants or stopped by the session's clock, and called again: what comes out is that of an undisturbed run.

Run: pytest tests/test_kills.py. Kills are real: this file, run as a script, forks a process that does a stage, and sends it SIGKILL.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import calvin_folder
import h5py
import levir_folder
import numpy as np
import pytest
from test_libero_data import original
from walkers import TASKS, Walker

from repro import clock
from repro.data import batches, calvin_frames, calvin_import, change_batches, episodes, levir, libero
from repro.data.episodes import Episode, Store, StoreWriter
from repro.evaluation import chains
from repro.evaluation.floors import RandomPolicy
from repro.gaze import annotate

QUIET = {"log": lambda line: None}


@dataclass(frozen=True)
class Stage:
    """One long stage. make(raw): its input; run(place, raw, unit): the stage in `place`, calling unit(what) at each unit of its work;
    result(place): what must be the same (JSON). again: units that a kill may cost."""

    make: Callable
    run: Callable
    result: Callable
    again: int


@contextlib.contextmanager
def calling(module, name: str, unit: Callable):
    """`module.name` calls unit() first."""
    true = getattr(module, name)

    def called(*arguments, **options):
        unit()
        return true(*arguments, **options)

    setattr(module, name, called)
    try:
        yield
    finally:
        setattr(module, name, true)


def rows(folder: Path) -> list:
    """All of a store: its hash, what it says of itself, and every row."""
    store = Store(folder)
    tables = [hashlib.sha256(json.dumps(store.table(i).to_pylist(), default=repr).encode()).hexdigest() for i in range(len(store))]
    return [store.hash, json.loads(json.dumps(store.meta)), (folder / "meta" / "stats.json").read_text(), tables,
            sorted(path.name for path in folder.parent.iterdir() if not path.name.endswith(".prepared"))]  # fmt: skip


# --- the stages -------------------------------------------------------------------------------------------------------------------------


def make_calvin(raw: Path) -> None:
    spans = [(100 + 10 * i, 103 + 10 * i) for i in range(12)]
    notes = [(a, b, "open_drawer", f"open the drawer {i % 3}") for i, (a, b) in enumerate(spans)]
    calvin_folder.make(raw, segments=spans, notes=notes)
    (raw / "training" / "episode_0000131.npz").unlink()  # a damaged frame, counted once


def run_calvin(place: Path, raw: Path, unit: Callable) -> None:
    with calling(calvin_import, "read_episode", unit):
        calvin_import.ensure_store(raw, "training", place / "store", 1, **QUIET)


def make_libero(raw: Path) -> None:
    for task in ("milk", "soup"):
        path = original(raw / f"{task}_demo.hdf5", 7)
        with h5py.File(path, "a") as file:
            for i in range(7):  # what the content says of the file depends on every episode of it
                demo, rng = file[f"data/demo_{i}"], np.random.default_rng(i)
                demo["obs/agentview_rgb"][:] = rng.integers(0, 255, demo["obs/agentview_rgb"].shape, dtype=np.uint8)
                demo["obs/gripper_states"][:] = rng.normal(size=(9, 2)) * 0.01 - [0, 0.02] * demo["actions"][:, 6:]
            still = file["data/demo_3/actions"]
            still[2:5] = 0.0  # no-ops, counted once
            still[2:5, 6] = -1


def run_libero(place: Path, raw: Path, unit: Callable) -> None:
    with calling(libero, "_house", unit):
        libero.ensure_store(raw, place / "store", drop_noops=True, **QUIET)


def make_levir(raw: Path) -> None:
    levir_folder.levir_folder(raw, train=12)


def run_levir(place: Path, raw: Path, unit: Callable) -> None:
    with calling(levir, "_group", unit):
        levir.ensure_store(raw, "train", place / "store", True, 1)


def make_gaze(raw: Path) -> None:
    rng = np.random.default_rng(0)
    with StoreWriter(raw / "store", 30) as writer:
        for i in range(10):
            boxes = json.dumps({"red_block": [10 + i, 8, 20 + i, 20], "pink_block": [0, 0, 4, 4]})
            columns = {"observation.images.static": rng.integers(0, 255, (4, 40, 40, 3), dtype=np.uint8),
                       "observation.environment_state": np.zeros((4, 24), np.float32), "info.boxes": [boxes] * 4}  # fmt: skip
            writer.add(Episode("lift the red block" if i % 2 else "take the tower apart", columns, {"task_id": "lift"}))


def run_gaze(place: Path, raw: Path, unit: Callable) -> None:
    with calling(annotate, "exact", unit):
        annotate.annotate(place / "store", "truth", crop_size=(20, 20), **QUIET)


class Means:
    """Prepares what an episode's frames are on average."""

    key = "mean"

    def __init__(self, unit: Callable):
        self.unit = unit

    def prepare(self, step: dict) -> dict[str, np.ndarray]:
        return {"mean": step["observation.images.static"].mean((0, 1)), "one": step["observation.images.static"][:2]}

    def prepare_many(self, steps: list[dict]) -> list[dict]:
        self.unit()
        return list(map(self.prepare, steps))


def run_prepared(place: Path, raw: Path, unit: Callable) -> None:
    batches.prepared(Store(place / "store"), Means(unit).prepare, workers=1, **QUIET)


def result_prepared(place: Path) -> list:
    (folder,) = [path for path in (place / "store.prepared").iterdir() if path.is_dir()]
    return sorted([path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in folder.glob("*.npy"))


def make_pairs(raw: Path) -> None:
    make = lambda i: levir.pair(f"{i}", "train", *levir_folder.picture(i)[None].repeat(2, 0), levir.NO_CHANGE)
    levir.write_store(map(make, range(20)), raw / "store")


def run_pairs(place: Path, raw: Path, unit: Callable) -> None:
    def prepare(before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray]:
        unit()
        return {"mean": before.mean((1, 2)), "apart": after[:, :2] - before[:, :2]}

    change_batches.prepared(levir.Pairs(place / "store"), prepare, "mean", **QUIET)


def run_chains(place: Path, raw: Path, unit: Callable) -> None:
    class Slow(RandomPolicy):
        def act(self, observations, instructions):
            unit()
            return super().act(observations, instructions)

    rng = np.random.default_rng(1)
    starts = [({"at": rng.normal(size=3).tolist()}, tuple(rng.permutation(TASKS).tolist())) for _ in range(12)]
    chains.evaluate(Slow(2), Walker, starts, place / "outcomes", 12, 3, {task: f"go {task}" for task in TASKS}, name="random", **QUIET)


def result_chains(place: Path) -> list:
    found = [json.loads(line) for line in (place / "outcomes" / "outcomes.jsonl").read_text().splitlines()]
    assert len({one["chain"] for one in found}) == len(found), "a finished chain was run again"
    return sorted([one["chain"], one["tasks"], one["success"], one["steps"]] for one in found)


STORE = lambda place: rows(place / "store")
STAGES = {  # a kill may cost what came after the last data file was full (FILE_EPISODES), and what was under way
    "calvin": Stage(make_calvin, run_calvin, STORE, 3),
    "libero": Stage(make_libero, run_libero, STORE, 3 + 14),  # what the content says of a file is read again
    "levir": Stage(make_levir, run_levir, STORE, 3),
    "gaze": Stage(make_gaze, run_gaze, STORE, 1),
    "prepared": Stage(make_gaze, run_prepared, result_prepared, 3),
    "pairs": Stage(make_pairs, run_pairs, result_prepared, 1),
    "chains": Stage(lambda raw: None, run_chains, result_chains, 15),
}


SMALL = [(episodes, "FILE_EPISODES", 2), (batches, "KEPT", 2), (change_batches, "TOGETHER", 2), (levir, "GROUP", 2),
         (calvin_frames, "DAMAGED_LIMIT", 0.05)]  # data files, batches and groups that a few episodes fill  # fmt: skip


# --- kills ------------------------------------------------------------------------------------------------------------------------------


def child(name: str, place: Path, raw: Path, pause: float, step: int = 0) -> int:
    """Fork: the stage in `place`, with `pause` seconds a unit; the units and, at the end, the result are written beside it. step: the child
    kills itself before so many things that it does to the disk."""
    process = os.fork()
    if process:
        return process
    stage, told = STAGES[name], os.open(f"{place}.units", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def unit() -> None:
        os.write(told, b"x")
        time.sleep(pause)

    try:
        if step:
            killed_before(step)
        stage.run(place, raw, unit)
        Path(f"{place}.new").write_text(json.dumps(stage.result(place)))
        os.rename(f"{place}.new", f"{place}.result")
    except BaseException as error:
        Path(f"{place}.error").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(0)


def killed_before(step: int) -> None:
    left = [step]

    def counted(function):
        def called(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return called

    for place, name in [(os, "rename"), (os, "replace"), (os, "unlink"), (os, "fsync"), (os, "truncate"), (shutil, "rmtree"),
                        (Path, "write_bytes"), (Path, "write_text"), (Path, "mkdir"), (Path, "unlink"), (StoreWriter, "add")]:
        setattr(place, name, counted(getattr(place, name)))


def disturbed(name: str, folder: Path, kills: int, seed: int, steps: int) -> dict:
    """Begin the stage again and again, killed at random instants, until it is done; as often as it takes for so many kills. Or, with steps:
    killed once before its first, its (1 + steps)th, ... deed on the disk, then undisturbed. What was counted."""
    for module, constant, value in SMALL:
        setattr(module, constant, value)
    raw, rng, done = folder / "raw", random.Random(seed), {"kills": 0, "runs": 0, "units": 0, "allowed": 0}
    before = (raw / "store").is_dir()

    def begin(place: Path) -> Path:
        place.mkdir()
        if before:
            shutil.copytree(raw / "store", place / "store")
        return place

    whole = begin(folder / "whole")
    began = time.monotonic()
    os.waitpid(child(name, whole, raw, 0.01), 0)
    assert Path(f"{whole}.result").exists(), Path(f"{whole}.error").read_text()
    lasts, wanted = time.monotonic() - began, Path(f"{whole}.result").read_text()
    units = len(Path(f"{whole}.units").read_bytes())
    step = 1
    while done["kills"] < kills:
        place, hit = begin(folder / f"cut{done['runs']}"), 0
        while not Path(f"{place}.result").exists():
            process = child(name, place, raw, 0.01, step if steps and not hit else 0)
            if not steps and done["kills"] < kills:
                time.sleep(rng.uniform(0.05, 0.7) * lasts)
                os.kill(process, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL and not Path(f"{place}.result").exists():
                hit += 1
                done["kills"] += 1
            assert not Path(f"{place}.error").exists(), Path(f"{place}.error").read_text()
        assert Path(f"{place}.result").read_text() == wanted, f"run {done['runs']} of {name} ended otherwise"
        done["runs"] += 1
        done["units"] += len(Path(f"{place}.units").read_bytes())
        done["allowed"] += units + hit * STAGES[name].again
        step += steps
        if steps and not hit:
            break
    return done


def in_a_script(folder: Path, names: list[str], kills: int, steps: int = 0) -> dict[str, dict]:
    """What `disturbed` says of each stage, from a process that has one thread, and can fork."""
    for name in names:
        (folder / name / "raw").mkdir(parents=True)
        STAGES[name].make(folder / name / "raw")
    said = subprocess.run([sys.executable, __file__, str(folder), ",".join(names), str(kills), str(steps)], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout.splitlines()[-1])


@pytest.mark.parametrize("kills", [2, pytest.param(6, marks=pytest.mark.full)])
def test_killed_at_random_instants_every_stage_ends_as_if_undisturbed(tmp_path, kills):
    for name, done in in_a_script(tmp_path, list(STAGES), kills).items():
        assert done["kills"] == kills and done["units"] <= done["allowed"], (name, done)


@pytest.mark.parametrize("steps", [9, pytest.param(1, marks=pytest.mark.full)])
def test_killed_before_any_deed_on_the_disk_an_import_ends_as_if_undisturbed(tmp_path, steps):
    done = in_a_script(tmp_path, ["calvin"], 10_000, steps)["calvin"]
    assert done["kills"] >= 40 / steps and done["units"] <= done["allowed"], done


# --- the session's clock ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sessions(monkeypatch):
    """`sessions(stage, place, raw, seconds) -> (sessions, units)`: the stage until it is done, in sessions of random length on a clock that
    only goes on by 10 s a unit. No session ends later than its end."""
    for module, constant, value in SMALL:
        monkeypatch.setattr(module, constant, value)
    now, units = [1e6], [0]
    monkeypatch.setattr(clock, "now", lambda: now[0])

    def unit() -> None:
        units[0] += 1
        now[0] += 10

    def go(stage: Stage, place: Path, raw: Path, rng: random.Random) -> tuple[int, int]:
        place.mkdir()
        if (raw / "store").is_dir():
            shutil.copytree(raw / "store", place / "store")
        units[0] = 0
        for session in range(1, 200):
            end = now[0] + clock.RESERVE + rng.uniform(25, 160)
            monkeypatch.setenv(clock.END, repr(end))
            try:
                stage.run(place, raw, unit)
                return session, units[0]
            except clock.OutOfTime:
                assert now[0] <= end, f"{now[0] - end} s after the end"
                left = Store(place / "store").hash if (place / "store" / "meta").is_dir() else None
                assert left in (None, Store(raw / "store").hash if (raw / "store").is_dir() else None), "half of it is taken for whole"
                now[0] = end + 3600
        raise AssertionError("never done")

    return go


@pytest.mark.parametrize("name", list(STAGES))
def test_sessions_that_are_too_short_add_up_to_one_that_is_not(tmp_path, sessions, name, monkeypatch):
    stage, raw = STAGES[name], tmp_path / "raw"
    raw.mkdir()
    stage.make(raw)
    (tmp_path / "whole").mkdir()
    if (raw / "store").is_dir():
        shutil.copytree(raw / "store", tmp_path / "whole" / "store")
    stage.run(tmp_path / "whole", raw, lambda: None)
    rng, needed = random.Random(4), 0
    for turn in range(3):
        place = tmp_path / f"cut{turn}"
        count, units = sessions(stage, place, raw, rng)
        assert stage.result(place) == stage.result(tmp_path / "whole"), f"run {turn} ended otherwise"
        needed += count
    assert needed > 4, f"{needed} sessions for 3 runs: nothing was cut"
    monkeypatch.setenv(clock.END, "1.0")  # long ago
    with pytest.raises(clock.OutOfTime):
        (tmp_path / "never").mkdir()
        if (raw / "store").is_dir():
            shutil.copytree(raw / "store", tmp_path / "never" / "store")
        stage.run(tmp_path / "never", raw, lambda: pytest.fail("begun without time"))


if __name__ == "__main__":
    folder, names, kills, steps = Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4])
    print(json.dumps({name: disturbed(name, folder / name, kills, len(name), steps) for name in names}))
