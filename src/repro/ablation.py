"""The ablation over seeds: every row trained, evaluated where it was not trained and where it was, looked at, recorded. Resumable.

    repro ablation --profile cpu --minutes 120        # goes on where it was; again and again until it says that all is done
    repro ablation --profile cpu --rows baseline,gaze --seeds 0,1 --corrupt 0.33
    repro ablation --profile cpu --tables             # only the tables and figures of what is done
    repro ablation --tables --join results/cpu/runs/ablation      # of these records alone, without data

A run is one row with one seed (and one share of wrong gaze boxes): train -> chains of five in the evaluation scene and, from held-out
start states, in the training scenes -> attention on held-out frames -> offline action error -> records in work/<profile>/runs/ablation.
What is done is never repeated; a run that was killed goes on from its checkpoint and its finished chains. Runs come seed by seed, so that
a table that is not finished is balanced. A seed is a first language model, an order of the data and start states of its own; the rows of a
seed share them: differences are paired.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from repro import ablation_statistics, attention, experiments, looking, run_records, scoring
from repro.ablation_tables import markdown, publish, write  # noqa: F401 (of every system, beside its runs)
from repro.data.episodes import Store
from repro.evaluation import chains, offline, policies, protocols
from repro.machine import UserError
from repro.profiles import Profile
from repro.seeds import FLOORS, Clock, OutOfTime, Run, Timed, alone, is_done
from repro.sims.base import tabletop
from repro.sims.tabletop import language, tasks
from repro.training import checkpoint, launch, memory
from repro.training.loop import read_metrics

SCENES, CURVE = 9_000, 2_027  # seeds of start states: chains of the first scene and those after, single tasks on the way
APART = 100  # from those of a seed to the next one's
MAX_STEPS = protocols.CALVIN.max_steps
SYSTEM, RECORDS = "reconvla", "reconvla ablation"


def runs(settings: Profile) -> list[Run]:
    """Everything the profile asks for: the main rows and floors seed by seed, then those of fewer seeds and wrong boxes; long rows once."""
    unknown = sorted({*settings.rows, *settings.few_rows} - set(experiments.ROWS))
    if unknown or not settings.rows or not settings.seeds:
        raise UserError("the ablation has no such rows", " | ".join(experiments.ROWS), ", ".join(unknown) or "no row or no seed")
    found = []
    for seed in settings.seeds:
        found += [Run(row, seed) for row in settings.rows]
        found += [Run(FLOORS, seed)] if "gaze" in settings.rows else []
    for seed in settings.few_seeds:
        found += [Run(row, seed) for row in settings.few_rows if row not in experiments.LONG or seed == settings.few_seeds[0]]
        found += [Run("gaze", seed, share) for share in settings.corrupt] if "gaze" in settings.rows else []
    return found


def asked(settings: Profile, work: Path) -> dict:
    """What is asked of every run, the data and the tiny parts: a run with other ones is another run, and no table mixes the two. (Of the
    code, each record holds the commit.)"""
    names = ("preset", "tower_steps", "vae_steps", "language_steps", "part_pictures", "train_steps",
             "batch_size", "accumulate", "learning_rate",
             "evaluation_scene", "attention_frames", "pretrain_steps", "pretrain_tables", "pretrain_episodes_per_task",
             "ablation_chains", "curve_single", *(["optimizer"] if settings.optimizer else []))  # of profiles without one as ever
    return {name: value for name, value in dataclasses.asdict(settings).items() if name in names} | {
        split: Store(work / "store" / split).hash for split in ("training", "validation")} | {
        "parts": [hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted((work / "parts").glob("*/*.safetensors"))]}


def digest(settings: Profile, work: Path) -> str:
    return hashlib.sha256(json.dumps(asked(settings, work), sort_keys=True).encode()).hexdigest()[:10]


def place(work: Path, run: Run) -> Path:
    """Folder of outcomes and of done.json."""
    return work / "ablation" / experiments.folder(work, run.row, run.seed, run.corrupt).name


def kept(work: Path, run: Run) -> Path:
    """Folder of records: one for all runs."""
    return work / "runs" / "ablation"


def made(settings: Profile, work: Path, run: Run, clock: Clock, log) -> list[dict]:
    """Train, where there is something to train, and record."""
    return (_floors if run.row == FLOORS else _trained)(settings, work, run, clock, log)


# ---- one run -------------------------------------------------------------------------------------------------------------------

def _trained(settings: Profile, work: Path, run: Run, clock: Clock, log) -> list[dict]:
    taught = run.row not in experiments.UNTAUGHT
    with alone(work / "ablation" / (f"parts-seed{run.seed}" if taught else "parts-untaught") / ".lock", wait=True):
        experiments.parts(settings, work, log, run.seed, taught)
    if run.row in experiments.PRETRAINED:
        with alone(work / "ablation" / f"pretraining-{experiments.PRETRAINED[run.row][0]}-seed{run.seed}" / ".lock", wait=True):
            _train(experiments.job_before(settings, work, run.row, run.seed, clock.left()), log)
    _train(experiments.job(settings, work, run.row, run.seed, run.corrupt, clock.left()), log)
    place = experiments.folder(work, run.row, run.seed, run.corrupt)
    model = experiments.load_run(place)
    if run.row in experiments.PRETRAINED:  # a row costs what the stage before it did, too
        before = experiments.folder(work, f"pretraining {experiments.PRETRAINED[run.row][0]}", run.seed)
        model.minutes += read_metrics(before / "metrics.jsonl")[-1]["seconds"] / 60
    found = _evaluate(settings, work, run, {run.variant: model}, clock, log)
    clock.check()
    found += [_look(settings, work, run, model), _offline(settings, work, run, model, place)]
    found += [_rebuild(settings, work, run, model)] if model.denoiser is not None else []
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


def _evaluate(settings: Profile, work: Path, run: Run, scored: dict[str, object], clock: Clock, log) -> list[dict]:
    """One record per policy and benchmark; each with the lengths of all chains, a digit each, as `outcomes`."""
    found = []
    for benchmark, places in benchmarks(settings, work, run.seed).items():
        for name, policy in scored.items():
            seconds, outcomes = 0.0, []
            for scene, starts in places:
                folder = place(work, run) / run_records.file_name(name) / f"{run_records.file_name(benchmark)}-{scene}"
                outcomes += _roll_out(policy, name, scene, starts, folder, settings, clock, log)
                seconds += chains.spent(folder)
            begun, metrics = time.monotonic() - seconds, chains.summarise(outcomes) | policies.mended(policy)
            record = _record(settings, work, run, name, policy, benchmark, metrics, begun, starts=starts_digest(places))
            found.append({**record, "outcomes": "".join(str(outcome.length) for outcome in outcomes)})
    return found


def starts_digest(places: list[tuple[str, list]]) -> str:
    """Of scenes, start states, tasks and their sentences: rows that were told the same from the same states can be paired."""
    told = {task: language.VALIDATION[task] for _, starts in places for _, chain in starts for task in chain}
    return hashlib.sha256(json.dumps([places, told], sort_keys=True, default=float).encode()).hexdigest()[:16]


def _roll_out(policy, name: str, scene: str, starts: list, folder: Path, settings: Profile, clock: Clock, log) -> list[chains.Outcome]:
    """Chains in this process; those that are done are read. Of another policy's outcomes there (trained anew) nothing is kept."""
    told = {task for _, chain in starts for task in chain}
    timed = policy if getattr(policy, "privileged", False) else Timed(policy, clock.check)
    return chains.evaluate(timed, tabletop(scene), starts, folder, MAX_STEPS, settings.simulators,
                           {task: language.VALIDATION[task] for task in sorted(told)}, name=name, renew=True, log=log)


def _record(settings: Profile, work: Path, run: Run, name: str, policy, benchmark: str, metrics: dict, begun: float, simulator="tabletop",
            **config) -> dict:
    training = Store(work / "store" / "training")
    about = {"profile": settings.name, "asked": digest(settings, work), "row": run.row, "corrupt": run.corrupt,
             "policy": policies.about(policy), **config}
    record = run_records.record(RECORDS, name, benchmark=benchmark, data=training.meta["name"], data_hash=training.hash, config=about,
                                seed=run.seed, metrics=metrics, minutes=policies.minutes(policy, begun), simulator=simulator,
                                renderer="play table (OpenCV)" if simulator == "tabletop" else "none", not_comparable_with=["reconvla"])
    return record | ({"training_minutes": round(policy.minutes, 2)} if hasattr(policy, "minutes") else {})


def _looked(settings: Profile, work: Path, model, jumps: bool = False) -> tuple[dict, dict]:
    """(metrics, columns by frame) of attention on held-out frames; jumps: also how often the maximum jumps along whole episodes."""
    store = Store(work / "store" / "validation")
    frames = looking.attention_frames(store, settings.attention_frames)
    columns = looking.attention_columns(looking.attention_of(model, frames), frames)
    metrics, shown = attention.averages(columns), by_frame(columns, [frame["task_id"] for frame in frames])
    if jumps and (strips := looking.attention_strips(store)):
        moved = looking.attention_jumps(looking.attention_of(model, strips), strips)
        metrics |= attention.averages(moved)
        shown |= {"jumps": by_frame(moved, [frame["task_id"] for frame in strips])}
    return metrics, shown


def by_frame(columns: dict[str, np.ndarray], tasks: list[str], kept: tuple[str, ...] = ablation_statistics.LOOKED) -> dict:
    """What `ablation_tables` takes means of over tasks, frame by frame, None where a frame has none. kept: how its names begin."""
    names = [name for name in columns if name.startswith(kept)]
    return {"episode": columns["episode"].tolist(), "task": tasks} | {
        name: [None if np.isnan(x) else round(float(x), 5) for x in columns[name]] for name in names}


def _look(settings: Profile, work: Path, run: Run, model) -> dict:
    begun, (metrics, frames) = time.monotonic(), _looked(settings, work, model, jumps=True)
    record = _record(settings, work, run, run.variant, model, ablation_statistics.ATTENTION, metrics, begun, "none (recorded frames)",
                     reduced=attention.caption())
    return {**record, "frames": frames}


def _offline(settings: Profile, work: Path, run: Run, model, place: Path) -> dict:
    """Action error on held-out episodes; beside it the learning curve, as `learning`."""
    begun = time.monotonic()
    metrics = offline.action_error(model, Store(work / "store" / "validation"), every=10) | policies.mended(model)
    record = _record(settings, work, run, run.variant, model, ablation_statistics.OFFLINE, metrics, begun, "none (offline)", every=10)
    return {**record, "learning": learning(place)}


def _rebuild(settings: Profile, work: Path, run: Run, model) -> dict:
    """What the denoiser draws for held-out frames, of which two of five attention frames are."""
    begun, store = time.monotonic(), Store(work / "store" / "validation")
    frames = looking.attention_frames(store, max(1, 2 * settings.attention_frames // 5))
    columns, told = looking.reconstruction_columns(model, frames, run.seed), [frame["task_id"] for frame in frames]
    record = _record(settings, work, run, run.variant, model, ablation_statistics.REBUILT, attention.averages(columns, tasks=told), begun,
                     "none (recorded frames)")
    return {**record, "frames": by_frame(columns, told, (looking.REBUILT_OWN, looking.REBUILT_APART, looking.REBUILT_ELSEWHERE))}


def learning(place: Path, bins: int = 50) -> dict[str, list]:
    """A run's metrics in at most `bins` means: step, action, recon where there is one; held_out at steps of its own."""
    every = read_metrics(place / "metrics.jsonl")
    lines = [line for line in every if "action" in line]  # a step that float16 left out has none
    groups = np.array_split(np.arange(len(lines)), min(bins, len(lines)))
    names = [name for name in ("action", "recon", "box", "mask") if name in lines[-1]]
    found = {"step": [lines[group[-1]]["step"] for group in groups]}
    found |= {name: [round(float(np.mean([lines[i][name] for i in group])), 5) for group in groups] for name in names}
    held = [line for line in every if "held_out" in line]
    return found | {"held_out_step": [line["step"] for line in held], "held_out": [round(line["held_out"], 5) for line in held]}


def _mark(settings: Profile, work: Path, run: Run, model, clock: Clock, log) -> dict:
    """A run on its way: single tasks from a small fixed set of start states, and attention."""
    begun, step = time.monotonic(), model.trained["step"]
    scene, store = settings.evaluation_scene, Store(work / "store" / "training")
    starts = scoring.start_states(replace(settings, evaluate_single=settings.curve_single), CURVE)["single tasks"]
    outcomes = _roll_out(model, run.variant, scene, starts, place(work, run) / "on the way" / str(step), settings, clock, log)
    metrics, frames = _looked(settings, work, model)
    record = _record(settings, work, run, run.variant, model, f"{ablation_statistics.ON_THE_WAY}, scene {scene}",
                     {"1/1": chains.summarise(outcomes)["1/1"], **metrics}, begun, step=step,
                     epochs=round(step * settings.batch_size * settings.accumulate / _samples(store), 3))
    return {**record, "outcomes": "".join(str(outcome.length) for outcome in outcomes), "frames": frames}


def _samples(store: Store) -> int:
    """Frames with a picture of their own: what an epoch goes through."""
    return int(np.sum(store.column("info.drawn"))) if "info.drawn" in store.columns else store.frames


def _floors(settings: Profile, work: Path, run: Run, clock: Clock, log) -> list[dict]:
    place = experiments.folder(work, "gaze", run.seed)
    last = checkpoint.latest(place, log) if place.is_dir() else None
    if last is None and is_done(sys.modules[__name__], settings, work, Run("gaze", run.seed)):
        raise UserError(f"the floors of seed {run.seed} need its row gaze, which was trained elsewhere", str(place), "its records alone",
                        f"do them there, or leave this seed out (--seeds), or remove {work / 'ablation' / place.name}")
    if last is None or checkpoint.about(last)["step"] < settings.train_steps:
        raise OutOfTime("gaze with this seed is not trained yet")
    told = {task: language.VALIDATION[task] for task in tasks.check_tasks(settings.tasks)}
    scored = scoring.policies({"gaze": experiments.load_run(place)}, work, told, run.seed)
    return _evaluate(settings, work, run, {name: policy for name, policy in scored.items() if name != "gaze"}, clock, log)


def prepare(settings: Profile, work: Path, log=print) -> None:
    """What all runs share: the stores of notebooks 01 and 04 (made here where they are absent), tiny parts, pretraining's episodes."""
    memory.check(launch.PRESETS[settings.preset])
    if not (work / "store" / "training" / "meta" / "repro.json").is_file():
        _data(settings, work / "calvin", {split: work / "store" / split for split in ("training", "validation")}, 0, log)
    if (made_in := Store(work / "store" / "training").meta.get("simulator", "calvin_env")) != "tabletop":
        raise UserError(f"{work / 'store' / 'training'} is data of {made_in}, and the ablation lets its rows act on the play table",
                        "a store of the play table", made_in, "give the ablation a work folder of its own (REPRO_WORK); real data: repro "
                        "run -p calvin_root FOLDER, then repro evaluate chains --simulator calvin")
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
    from repro.data.calvin_import import ensure_store
    from repro.sims import calvin_layout

    calvin_layout.ensure(raw, settings, seed, log)
    for split, place in stores.items():
        ensure_store(raw, split, place, settings.workers, log=log)


def _annotate(store: Path, log) -> None:
    if "gaze.box" not in Store(store).columns:
        from repro.gaze.annotate import annotate

        log(f"{store.name}: gaze boxes {annotate(store, 'truth')['sources']}")


def draw(settings: Profile, work: Path) -> list[str]:
    """attention.png (baseline | whole | gaze, those that are done), attention_episode.png and reconstruction.png (gaze) of one seed that
    was trained here; their names. Nothing without "gaze". The seed is the one in the middle by what gaze's attention mass in the box has
    over the baseline's; the frames are the first of three kinds of tasks, evenly among the kinds in alphabetical order."""
    from repro import attention_figures, experiment_figures, pictures

    here = lambda row, seed: (is_done(sys.modules[__name__], settings, work, Run(row, seed))
                              and experiments.folder(work, row, seed).is_dir())
    mass = ablation_statistics.frames(ablation_statistics.records_of(work), ablation_statistics.MASS)
    gain = {seed: mass["gaze"][seed].mean() - mass.get("baseline", {}).get(seed, mass["gaze"][seed]).mean()
            for seed in settings.seeds if here("gaze", seed)}
    if not gain:
        return []
    seed = sorted(gain, key=gain.get)[(len(gain) - 1) // 2]
    done = [row for row in ("baseline", "whole", "gaze") if here(row, seed)]
    models, store = experiments.load(work, seed, tuple(done)), Store(work / "store" / "validation")
    frames, strips = looking.attention_frames(store, settings.attention_frames), looking.attention_strips(store)
    maps = {row: looking.attention_of(model, frames) for row, model in models.items()}
    tasks_ = [frame["task_id"] for frame in frames]
    numbers = {row: attention.averages(looking.attention_columns(static, frames, seed), seed, tasks_) for row, static in maps.items()}
    kind = [tasks.CATEGORY.get(task, task) for task in tasks_]
    kinds = sorted(set(kind))
    picks = sorted({kind.index(kinds[len(kinds) * k // 3]) for k in range(3)})
    shown = [(frames[i]["task"], frames[i]["observation.images.static"], {row: maps[row][i] for row in maps}, frames[i]["gaze.box"])
             for i in picks]
    note = f"{attention.caption()} {looking.CAUTION} Models of seed {seed}."
    figures = {"attention": attention_figures.compare(shown, note, numbers, "tasks"),
               "reconstruction": experiment_figures.reconstructions(models["gaze"], work, seed=seed, name=f"gaze, seed {seed}")}
    if strips:
        at = [frame for frame in strips if frame["episode"] == strips[0]["episode"]]
        figures["attention_episode"] = attention_figures.gallery(
            [frame["observation.images.static"] for frame in at], looking.attention_of(models["gaze"], at),
            np.stack([frame["gaze.box"] for frame in at]), np.array([frame["step"] for frame in at]),
            f"gaze, seed {seed}: {at[0]['task']}", every=max(1, len(at) // 8), columns=4)
    for name, figure in figures.items():
        pictures.keep(figure, work / "figures" / f"{name}.png")
    return [f"{name}.png" for name in figures]
