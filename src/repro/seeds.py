"""Rows over seeds, resumable: what `repro ablation` does for each of the three systems.

    run(ablation, settings, work)     # or vla_ablation, change_ablation: all runs, a core or GPU each; again and again until all are done

A system's module says what there is to do: SYSTEM, its name; runs(settings), what is asked for; prepare(settings, work, log), what all runs
share; digest(settings, work), of what decides their numbers; place(work, run), a run's folder, and kept(work, run), that of its records;
made(settings, work, run, clock, log), the records, or OutOfTime. A run that is done leaves a note with the digest and its records' names.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from repro import clock, freshness, run_records
from repro.clock import OutOfTime
from repro.machine import UserError
from repro.profiles import Profile
from repro.training import launch
from repro.training.budget import Budget
from repro.training.checkpoint import alone  # noqa: F401 (for callers)

FLOORS = "floors"  # not a row that is trained: random, constant, replay, ..., a row with blanked pictures and shuffled instruction
WITHOUT_WEIGHTS = "floors without weights"  # those of them that no trained row is needed for, where a system does them apart


@dataclass(frozen=True)
class Run:
    """One row of the ablation, with one seed and one share of wrong gaze boxes."""

    row: str
    seed: int
    corrupt: float = 0.0

    @property
    def key(self) -> str:
        return f"{self.row}:{self.seed}:{self.corrupt:g}"

    @property
    def variant(self) -> str:
        """Its name in records."""
        return self.row + (f", {100 * self.corrupt:g} % wrong boxes" if self.corrupt else "")


class Timed:
    """A policy that gives up when the time is over. Chains that are finished are on disk, the others begin again."""

    def __init__(self, policy, check: Callable[[], None]):
        self.policy, self.check = policy, check

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def act(self, observations, instructions):
        self.check()
        return self.policy.act(observations, instructions)


class Clock:
    """Budget of one process, which ends with the session at the latest; without minutes, no limit but the session's."""

    def __init__(self, minutes: float):
        self.budget = Budget(minutes, 1e9, reserve=5.0)
        self.limited = bool(minutes)

    def left(self) -> float:
        """Minutes for a training session; 0 where there is no limit."""
        self.check()
        own = (self.budget.end - self.budget.clock()) / 60 if self.limited else math.inf
        left = min(own, (clock.left() - clock.RESERVE) / 60)
        return 0.0 if math.isinf(left) else left

    def check(self) -> None:
        clock.check()
        if self.budget.over():
            raise OutOfTime("the budget ends")


def is_done(system, settings: Profile, work: Path, run: Run) -> bool:
    """Whether its records are there, all of them, made with what is asked for now."""
    note = system.place(work, run) / "done.json"
    found = json.loads(note.read_text()) if note.is_file() else {}
    return found.get("asked") == system.digest(settings, work) and all(
        (system.kept(work, run) / name).is_file() for name in found["records"])


def named(notes: Iterable[Path], kept: Callable[[Path], Path]) -> list[dict]:
    """The records of the runs that left these notes (done.json), of those whose records are all there. A run that was cut may have left
    records, and no note. kept: a run's folder -> that of its records."""
    found = []
    for note in notes:
        files = [kept(note.parent) / name for name in json.loads(note.read_text())["records"]]
        found += [run_records.load(file) for file in files] if all(file.is_file() for file in files) else []
    return found


def do(system, settings: Profile, work: Path, run: Run, minutes: float = 0.0, log=print) -> bool:
    """Do or finish one run; False where the budget ended first, or another process is at it."""
    if is_done(system, settings, work, run):
        return True
    limit, begun, folder = Clock(minutes), time.monotonic(), system.place(work, run)
    with alone(folder / ".lock") as free:
        if not free:
            log(f"{run.key}: another process is at it")
            return False
        try:
            found = system.made(settings, work, run, limit, log)
        except OutOfTime as reason:
            log(f"{run.key}: {reason}; to be continued")
            return False
        names = [run_records.save(record, system.kept(work, run)).name for record in found]
        freshness.write(folder / "done.json", {"asked": system.digest(settings, work), "records": names})
    log(f"{run.key}: done, {(time.monotonic() - begun) / 60:.1f} min in this session")
    return True


def one(system, settings: Profile, work: Path, key: str, minutes: float, log=print) -> bool:
    """The run called `key` ("row:seed:share"), as `run` asks for it in a process of its own."""
    row, seed, corrupt = key.rsplit(":", 2)
    if minutes and math.isfinite(clock.left()):  # training goes by the session's end where there is one
        clock.begin(min(minutes, clock.left() / 60))
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    return do(system, settings, work, Run(row, int(seed), float(corrupt)), minutes, log)


def given(system, folder: Path) -> list[dict]:
    """The records in `folder`, for tables of them alone (write's `found`), which need no data. Others than the system's are an error."""
    told = run_records.load_all(folder)
    own = lambda r: r["system"].removesuffix(" ablation") == system.SYSTEM and ("asked" in r["config"] or system.SYSTEM == "change_agent")
    others = [record for record in told if not own(record)]
    if others or not told:
        found = f"{len(others)} of {len(told)} are not: {', '.join(sorted({r['system'] for r in others}))}" if told else "no record"
        raise UserError(f"{folder} holds no records of {system.SYSTEM}'s ablation, or not these alone", "*.json as --publish writes them: "
                        "results/cpu/runs/ablation (reconvla), results/cpu/runs/vggt_vla, results/cpu/runs/change_agent", found,
                        "give the folder of the records itself, and --system as theirs")
    return told


def join(system, settings: Profile, work: Path, folder: Path, log=print) -> list[Run]:
    """Take over the runs whose records lie in `folder`, another machine's or an earlier session's: they are not done again. Those taken.

    Only those that were asked for the very same, down to the data and the tiny parts: of others no table is made beside these.
    """
    asked, found = system.digest(settings, work), {}
    told = run_records.load_all(folder)
    if not told:
        raise UserError(f"{folder} holds no record", "*.json as --publish writes them, e.g. results/cpu/runs/ablation", "none",
                        "give the folder of the records itself")
    for record in told:
        if record["config"].get("asked") == asked:
            found.setdefault(Run(record["config"]["row"], record["seed"], record["config"]["corrupt"]), []).append(record)
    taken = [one for one in found if not is_done(system, settings, work, one)]
    for one in taken:
        names = [run_records.save(record, system.kept(work, one)).name for record in found[one]]
        system.place(work, one).mkdir(parents=True, exist_ok=True)
        freshness.write(system.place(work, one) / "done.json", {"asked": asked, "records": names})
    if others := len(told) - sum(map(len, found.values())):
        log(f"{folder}: {others} of {len(told)} records are of other settings, data or tiny parts (not {asked}) and are left")
    log(f"{folder}: {len(taken)} runs are taken over" + (f": {', '.join(one.key for one in taken)}" if taken else ""))
    return taken


def run(system, settings: Profile, work: Path, minutes: float = 0.0, slots: int | None = None, log=print, joined: Path | None = None
        ) -> list[Run]:
    """Do all runs of the profile, `slots` at a time in processes of a core each (0: one after another in this one); those left over.

    joined: a folder of records, whose runs count (`join`)."""
    limit, wanted = Clock(minutes), system.runs(settings)
    system.prepare(settings, work, log)
    if joined:
        join(system, settings, work, joined, log)

    def left(run: Run) -> list[str] | None:
        try:
            return None if is_done(system, settings, work, run) else [
                "ablation", "--system", system.SYSTEM, "--profile", settings.name, "--one", run.key, "--minutes", f"{limit.left():.3f}"]
        except OutOfTime:
            return None

    if slots == 0:
        for one in wanted:
            if left(one):
                do(system, settings, work, one, limit.left(), log)
        failed = []
    else:
        failed = launch.side_by_side([(one.key, lambda one=one: left(one)) for one in wanted], slots, log)
    open_ = [one for one in wanted if not is_done(system, settings, work, one)]
    said = f", left: {', '.join(run.key for run in open_)}" if open_ else ""
    log(f"ablation: {len(wanted) - len(open_)} of {len(wanted)} runs are done{said}")
    if failed:
        raise UserError(f"{len(failed)} runs of the ablation failed", found="\n  ".join(failed), next_step="mend it and start again")
    return open_


def publish(found: list[dict], name: str, work: Path, target: Path, files: Iterable[str], log=print) -> Path:
    """Put records into `target`/runs/`name`, and files of the work folder beside them; records of an edited tree are refused."""
    edited = sorted({r["commit"] for r in found if "+changes" in r["commit"]})
    if not found or edited:
        raise UserError("this ablation cannot be published", "records of clean commits", ", ".join(edited) or "no record",
                        "commit, or use a fresh clone, and run it again: repro ablation --profile ...")
    kept = target / "runs" / name
    shutil.rmtree(kept, ignore_errors=True)
    for record in found:
        run_records.save(record, kept)
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(work / file, target / file)
    log(f"{len(found)} records to {kept}")
    return target


def where_from(found: list[dict], folder: Path | str) -> str:
    """"Profile `cpu`: data; hardware, torch; commit": how README begins a table of records."""
    unique = lambda values: ", ".join(sorted(set(values)))
    trained = {r["config"].get("policy", {}).get("trained", {}).get("commit", "") for r in found} - {"", *(r["commit"] for r in found)}
    by = f", trained by {unique(trained)}" if trained else ""
    return (f"Profile `{Path(folder).name}`: {unique(r['data'] for r in found)}; {unique(r['hardware'] for r in found)}, "
            f"{unique('torch ' + r['packages'].get('torch', '?') for r in found)}; commit {unique(r['commit'] for r in found)}{by}")
