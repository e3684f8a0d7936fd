"""The ablation over seeds: every row trained, evaluated where it was not trained and where it was, looked at, recorded. Resumable.

    repro ablation --profile cpu --minutes 120        # goes on where it was; again and again until it says that all is done
    repro ablation --profile cpu --rows baseline,gaze --seeds 0,1 --corrupt 0.33
    repro ablation --profile cpu --tables             # only the tables and figures of what is done

A run is one row with one seed (and one share of wrong gaze boxes): train -> chains of five in the evaluation scene and, from held-out
start states, in the training scenes -> attention on held-out frames -> offline action error -> records in work/<profile>/runs/ablation.
What is done is never repeated; a run that was killed goes on from its checkpoint and its finished chains. Runs come seed by seed, so that
a table that is not finished is balanced. A seed is a first language model, an order of the data and start states of its own; the rows of a
seed share them: differences are paired.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from repro import ablation_tables, attention, experiments, results
from repro.data.episodes import Store
from repro.evaluation import chains, offline, protocols
from repro.evaluation.policies import mended
from repro.machine import UserError
from repro.profiles import Profile
from repro.sims.base import tabletop
from repro.sims.tabletop import language, tasks
from repro.training import checkpoint, launch
from repro.training.loop import Budget, read_metrics

FLOORS = "floors"  # not a row that is trained: random, constant, replay, ..., blanked and shuffled "gaze"
SCENES, CURVE = 9_000, 2_027  # seeds of start states: chains of the first scene and those after, single tasks on the way
APART = 100  # from those of a seed to the next one's
MAX_STEPS = protocols.CALVIN.max_steps
SYSTEM = "reconvla ablation"


class OutOfTime(Exception):
    """A run cannot go on now, mostly because the budget ends; what is done is on disk."""


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


def runs(settings: Profile) -> list[Run]:
    """Everything the profile asks for: the main rows and floors seed by seed, then those of fewer seeds and wrong boxes."""
    unknown = sorted({*settings.rows, *settings.few_rows} - set(experiments.ROWS))
    if unknown or not settings.rows or not settings.seeds:
        raise UserError("the ablation has no such rows", " | ".join(experiments.ROWS), ", ".join(unknown) or "no row or no seed")
    found = []
    for seed in settings.seeds:
        found += [Run(row, seed) for row in settings.rows]
        found += [Run(FLOORS, seed)] if "gaze" in settings.rows else []
    for seed in settings.few_seeds:
        found += [Run(row, seed) for row in settings.few_rows]
        found += [Run("gaze", seed, share) for share in settings.corrupt] if "gaze" in settings.rows else []
    return found


def asked(settings: Profile, work: Path) -> dict:
    """What is asked of every run, the data and the tiny parts: a run with other ones is another run, and no table mixes the two. (Of the
    code, each record holds the commit.)"""
    names = ("preset", "tower_steps", "vae_steps", "language_steps", "part_pictures", "train_steps",
             "batch_size", "accumulate", "learning_rate",
             "evaluation_scene", "attention_frames", "pretrain_steps", "pretrain_tables", "pretrain_episodes_per_task",
             "ablation_chains", "curve_single")
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in names} | {
        split: Store(work / "store" / split).hash for split in ("training", "validation")} | {
        "parts": [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted((work / "parts").glob("*/*.safetensors"))]}


def _digest(settings: Profile, work: Path) -> str:
    return hashlib.sha256(json.dumps(asked(settings, work), sort_keys=True).encode()).hexdigest()[:10]


def _place(work: Path, run: Run) -> Path:
    """Folder of outcomes and of done.json."""
    return work / "ablation" / experiments.folder(work, run.row, run.seed, run.corrupt).name


def is_done(settings: Profile, work: Path, run: Run) -> bool:
    """Whether its records are there, all of them, made with what is asked for now."""
    file = _place(work, run) / "done.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found.get("asked") == _digest(settings, work) and all((work / "runs" / "ablation" / name).is_file() for name in found["records"])


# ---- one run -------------------------------------------------------------------------------------------------------------------

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
    """Budget of one process; without minutes, no limit."""

    def __init__(self, minutes: float):
        self.budget = Budget(minutes, 1e9, reserve=5.0)
        self.limited = bool(minutes)

    def left(self) -> float:
        """Minutes for a training session; 0 where there is no limit."""
        self.check()
        return (self.budget.end - self.budget.clock()) / 60 if self.limited else 0.0

    def check(self) -> None:
        if self.budget.over():
            raise OutOfTime("the budget ends")


def do(settings: Profile, work: Path, run: Run, minutes: float = 0.0, log=print) -> bool:
    """Do or finish one run; False where the budget ended first, or another process is at it."""
    if is_done(settings, work, run):
        return True
    clock, begun = Clock(minutes), time.monotonic()
    with alone(_place(work, run)) as free:
        if not free:
            log(f"{run.key}: another process is at it")
            return False
        try:
            found = _floors(settings, work, run, clock, log) if run.row == FLOORS else _trained(settings, work, run, clock, log)
        except OutOfTime as reason:
            log(f"{run.key}: {reason}; to be continued")
            return False
        names = [results.save(record, work / "runs" / "ablation").name for record in found]
        replace_text(_place(work, run) / "done.json", json.dumps({"asked": _digest(settings, work), "records": names}, indent=1))
    log(f"{run.key}: done, {(time.monotonic() - begun) / 60:.1f} min in this session")
    return True


def _trained(settings: Profile, work: Path, run: Run, clock: Clock, log) -> list[dict]:
    with alone(work / "ablation" / f"parts-seed{run.seed}", wait=True):
        experiments.parts(settings, work, log, run.seed)
    if run.row in experiments.PRETRAINED:
        with alone(work / "ablation" / f"pretraining-{experiments.PRETRAINED[run.row][0]}-seed{run.seed}", wait=True):
            _train(experiments.job_before(settings, work, run.row, run.seed, clock.left()), log)
    _train(experiments.job(settings, work, run.row, run.seed, run.corrupt, clock.left()), log)
    place = experiments.folder(work, run.row, run.seed, run.corrupt)
    model = experiments.load_run(place)
    found = _evaluate(settings, work, run, {run.variant: model}, clock, log)
    clock.check()
    found += [_look(settings, work, run, model), _offline(settings, work, run, model, place)]
    kept = checkpoint.steps(place / "kept") if run.row in ("baseline", "gaze") and not run.corrupt else []
    return found + [_mark(settings, work, run, experiments.load_run(place, path), clock, log) for path in kept]


def _train(config: Path, log) -> None:
    summary = launch.train_from_config(config, log)
    if not summary.finished:
        raise OutOfTime(summary.reason)


def benchmarks(settings: Profile, work: Path, seed: int = 0) -> dict[str, list[tuple[str, list]]]:
    """{benchmark: [(scene, chains)]}: the evaluation scene, then the training scenes in turn, as many chains in all; a seed's own."""
    trained = "".join(sorted({info.scene for info in Store(work / "store" / "training").episodes}))
    names, n = tasks.check_tasks(settings.tasks), settings.ablation_chains
    places = {settings.evaluation_scene: [settings.evaluation_scene]}
    if trained != settings.evaluation_scene:
        places[trained] = list(trained)
    starts = iter(range(SCENES + APART * seed, SCENES + APART * (seed + 1)))
    return {f"play table {trained}->{where}, {len(names)} tasks, chains of 5": [
        (scene, tasks.chains(len(part), 5, next(starts), names)) for scene, part in zip(scenes, np.array_split(np.arange(n), len(scenes)),
                                                                                       strict=True) if len(part)]
            for where, scenes in places.items()}


def _evaluate(settings: Profile, work: Path, run: Run, policies: dict[str, object], clock: Clock, log) -> list[dict]:
    """One record per policy and benchmark; each with the lengths of all chains, a digit each, as `outcomes`."""
    found = []
    for benchmark, places in benchmarks(settings, work, run.seed).items():
        for name, policy in policies.items():
            begun, outcomes = time.monotonic(), []
            for scene, starts in places:
                outcomes += _roll_out(policy, name, scene, starts, _place(work, run) / _slug(name) / f"{_slug(benchmark)}-{scene}",
                                      settings, clock, log)
            record = _record(settings, work, run, name, policy, benchmark, chains.summarise(outcomes) | mended(policy), begun)
            found.append({**record, "outcomes": "".join(str(outcome.length) for outcome in outcomes)})
    return found


def _roll_out(policy, name: str, scene: str, starts: list, folder: Path, settings: Profile, clock: Clock, log) -> list[chains.Outcome]:
    """Chains in this process; those that are done are read. Of another policy's outcomes there (trained anew) nothing is kept."""
    told, what = {task for _, chain in starts for task in chain}, folder / "evaluation.json"
    timed = policy if getattr(policy, "privileged", False) else Timed(policy, clock.check)
    fresh = what.is_file() and json.loads(what.read_text()).get("identity") != chains.identity(timed)
    return chains.evaluate(timed, tabletop(scene), starts, folder, MAX_STEPS, settings.simulators,
                           {task: language.VALIDATION[task] for task in sorted(told)}, name=name, fresh=fresh, log=log)


def _record(settings: Profile, work: Path, run: Run, name: str, policy, benchmark: str, metrics: dict, begun: float, simulator="tabletop",
            **config) -> dict:
    training = Store(work / "store" / "training")
    about = {"profile": settings.name, "asked": _digest(settings, work), "row": run.row, "corrupt": run.corrupt,
             "policy": experiments.about(policy), **config}
    record = results.record(SYSTEM, name, benchmark=benchmark, data=training.meta["name"], data_hash=training.hash, config=about,
                            seed=run.seed, metrics=metrics, minutes=experiments.minutes(policy, begun), simulator=simulator,
                            renderer="play table (OpenCV)" if simulator == "tabletop" else "none", not_comparable_with=["reconvla"])
    return record | ({"training_minutes": round(policy.minutes, 2)} if hasattr(policy, "minutes") else {})


def _looked(settings: Profile, work: Path, model, jumps: bool = False) -> tuple[dict, dict]:
    """(metrics, columns by frame) of attention on held-out frames; jumps: also how often the maximum jumps along whole episodes."""
    store = Store(work / "store" / "validation")
    frames = experiments.attention_frames(store, settings.attention_frames)
    columns = experiments.attention_columns(experiments.attention_of(model, frames), frames)
    metrics, shown = attention.averages(columns), kept(columns, [frame["task_id"] for frame in frames])
    if jumps and (strips := experiments.attention_strips(store)):
        moved = experiments.attention_jumps(experiments.attention_of(model, strips), strips)
        metrics |= attention.averages(moved)
        shown |= {"jumps": kept(moved, [frame["task_id"] for frame in strips])}
    return metrics, shown


def kept(columns: dict[str, np.ndarray], tasks: list[str]) -> dict:
    """What `ablation_tables` takes differences of, frame by frame, None where a frame has none."""
    names = [name for name in columns if name.startswith(ablation_tables.LOOKED)]
    return {"episode": columns["episode"].tolist(), "task": tasks} | {
        name: [None if np.isnan(x) else round(float(x), 5) for x in columns[name]] for name in names}


def _look(settings: Profile, work: Path, run: Run, model) -> dict:
    begun, (metrics, frames) = time.monotonic(), _looked(settings, work, model, jumps=True)
    record = _record(settings, work, run, run.variant, model, ablation_tables.ATTENTION, metrics, begun, "none (recorded frames)",
                     reduced=attention.caption())
    return {**record, "frames": frames}


def _offline(settings: Profile, work: Path, run: Run, model, place: Path) -> dict:
    """Action error on held-out episodes; beside it the learning curve, as `learning`."""
    begun = time.monotonic()
    metrics = offline.action_error(model, Store(work / "store" / "validation"), every=10) | mended(model)
    record = _record(settings, work, run, run.variant, model, ablation_tables.OFFLINE, metrics, begun, "none (offline)", every=10)
    return {**record, "learning": learning(place)}


def learning(place: Path, bins: int = 50) -> dict[str, list]:
    """A run's metrics in at most `bins` means: step, action, recon where there is one; held_out at steps of its own."""
    lines = read_metrics(place / "metrics.jsonl")
    groups = np.array_split(np.arange(len(lines)), min(bins, len(lines)))
    names = [name for name in ("action", "recon", "box", "mask") if name in lines[-1]]
    found = {"step": [lines[group[-1]]["step"] for group in groups]}
    found |= {name: [round(float(np.mean([lines[i][name] for i in group])), 5) for group in groups] for name in names}
    held = [line for line in lines if "held_out" in line]
    return found | {"held_out_step": [line["step"] for line in held], "held_out": [round(line["held_out"], 5) for line in held]}


def _mark(settings: Profile, work: Path, run: Run, model, clock: Clock, log) -> dict:
    """A run on its way: single tasks from a small fixed set of start states, and attention."""
    begun, step = time.monotonic(), model.trained["step"]
    scene, store = settings.evaluation_scene, Store(work / "store" / "training")
    starts = experiments.start_states(replace(settings, evaluate_single=settings.curve_single), CURVE)["single tasks"]
    outcomes = _roll_out(model, run.variant, scene, starts, _place(work, run) / "on the way" / str(step), settings, clock, log)
    metrics, frames = _looked(settings, work, model)
    record = _record(settings, work, run, run.variant, model, f"{ablation_tables.ON_THE_WAY}, scene {scene}",
                     {"1/1": chains.summarise(outcomes)["1/1"], **metrics}, begun, step=step,
                     epochs=round(step * settings.batch_size * settings.accumulate / _samples(store), 3))
    return {**record, "outcomes": "".join(str(outcome.length) for outcome in outcomes), "frames": frames}


def _samples(store: Store) -> int:
    """Frames with a picture of their own: what an epoch goes through."""
    return int(np.sum(store.column("info.drawn"))) if "info.drawn" in store.columns else store.frames


def _floors(settings: Profile, work: Path, run: Run, clock: Clock, log) -> list[dict]:
    place = experiments.folder(work, "gaze", run.seed)
    last = checkpoint.latest(place, log) if place.is_dir() else None
    if last is None or checkpoint.about(last)["step"] < settings.train_steps:
        raise OutOfTime("gaze with this seed is not trained yet")
    scored = experiments.policies({"gaze": experiments.load_run(place)}, work, language.VALIDATION, run.seed)
    return _evaluate(settings, work, run, {name: policy for name, policy in scored.items() if name != "gaze"}, clock, log)


# ---- all runs ------------------------------------------------------------------------------------------------------------------

def run(settings: Profile, work: Path, minutes: float = 0.0, slots: int | None = None, log=print, of=None) -> list[Run]:
    """Do all runs of the profile, `slots` at a time in processes of a core each (0: one after another in this one); those left over.

    of: the module whose runs these are, this one or `vla_ablation`: it has runs, prepare, is_done and do.
    """
    of = of or sys.modules[__name__]
    clock, wanted = Clock(minutes), of.runs(settings)
    of.prepare(settings, work, log)

    def left(run: Run) -> list[str] | None:
        try:
            return None if of.is_done(settings, work, run) else [
                "ablation", "--system", of.SYSTEM.split()[0], "--profile", settings.name, "--one", run.key,
                "--minutes", f"{clock.left():.3f}"]
        except OutOfTime:
            return None

    if slots == 0:
        for one in wanted:
            if left(one):
                of.do(settings, work, one, clock.left(), log)
        failed = []
    else:
        failed = launch.side_by_side([(one.key, lambda one=one: left(one)) for one in wanted], slots, log)
    open_ = [one for one in wanted if not of.is_done(settings, work, one)]
    said = f", left: {', '.join(run.key for run in open_)}" if open_ else ""
    log(f"ablation: {len(wanted) - len(open_)} of {len(wanted)} runs are done{said}")
    if failed:
        raise UserError(f"{len(failed)} runs of the ablation failed", found="\n  ".join(failed), next_step="mend it and start again")
    return open_


def prepare(settings: Profile, work: Path, log=print) -> None:
    """What all runs share: the stores of notebooks 01 and 04 (made here where they are absent), tiny parts, pretraining's episodes."""
    if not (work / "store" / "training" / "meta" / "repro.json").is_file():
        _data(settings, work / "calvin", {split: work / "store" / split for split in ("training", "validation")}, 0, log)
    for split in ("training", "validation"):
        _annotate(work / "store" / split, log)
    experiments.parts(settings, work, log)
    if {*settings.rows, *settings.few_rows} & set(experiments.PRETRAINED) and not (work / "store" / "pretraining").is_dir():
        raw, part = work / "calvin_pretraining", work / "store" / "pretraining.part"
        others = tuple(f"R~{k}" for k in range(settings.pretrain_tables))
        _data(replace(settings, scenes=others, episodes_per_task=settings.pretrain_episodes_per_task), raw, {"training": part},
              experiments.PRETRAINING_SEED, log)
        _annotate(part, log)
        os.rename(part, work / "store" / "pretraining")
        shutil.rmtree(raw)


def _data(settings: Profile, raw: Path, stores: dict[str, Path], seed: int, log) -> None:
    from repro.data.calvin import ensure_store
    from repro.sims import calvin_layout

    calvin_layout.ensure(raw, settings, seed, log)
    for split, place in stores.items():
        ensure_store(raw, split, place, settings.workers, log=log)


def _annotate(store: Path, log) -> None:
    if "gaze.box" not in Store(store).columns:
        from repro.gaze.annotate import annotate

        log(f"{store.name}: gaze boxes {annotate(store, 'truth')['sources']}")


@contextmanager
def alone(folder: Path, wait: bool = False) -> Iterator[bool]:
    """True where no other process holds this folder; the kernel frees it when a process ends, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            free = True
        except BlockingIOError:
            free = False
        yield free


def replace_text(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text + "\n")
    os.replace(part, path)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")


def one(settings: Profile, work: Path, key: str, minutes: float, log=print) -> bool:
    """The run called `key` ("row:seed:share"), as `run` asks for it in a process of its own."""
    row, seed, corrupt = key.rsplit(":", 2)
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
    return do(settings, work, Run(row, int(seed), float(corrupt)), minutes, log)


def draw(settings: Profile, work: Path) -> list[str]:
    """attention.png (baseline | whole | gaze, those that are done) and reconstruction.png of the first seed, as notebooks 08 and 05 draw
    them; their names. Nothing without "gaze"."""
    from repro import attention_figures, experiment_figures, pictures

    seed = settings.seeds[0]
    done = [row for row in ("baseline", "whole", "gaze") if is_done(settings, work, Run(row, seed))]
    if "gaze" not in done:
        return []
    models, store = experiments.load(work, seed, tuple(done)), Store(work / "store" / "validation")
    frames = experiments.attention_frames(store, settings.attention_frames)
    maps = {row: experiments.attention_of(model, frames) for row, model in models.items()}
    numbers = {row: attention.averages(experiments.attention_columns(static, frames, seed), seed) for row, static in maps.items()}
    picks = [frames[len(frames) * i // 3] for i in range(3)]
    shown = [(frame["task"], frame["observation.images.static"], {row: maps[row][len(frames) * i // 3] for row in maps}, frame["gaze.box"])
             for i, frame in enumerate(picks)]
    figures = {"attention": attention_figures.compare(shown, f"{attention.caption()} {experiments.CAUTION}", numbers),
               "reconstruction": experiment_figures.reconstructions(models["gaze"], work, seed=seed)}
    for name, figure in figures.items():
        pictures.keep(figure, work / "figures" / f"{name}.png")
    return [f"{name}.png" for name in figures]
