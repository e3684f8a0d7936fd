"""The ReconVLA experiment of notebooks 05 to 10: its rows, its floors, and the run records they leave.

The paper's ablation (Table 2) has four trained rows: baseline, reconstruction of the whole image, of the gaze region, and of the gaze
region after pretraining. Beside them stand two cheap ways to be told where to look (predict the gaze box, or its mask), a model that is
trained blind, as the floor of a policy that cannot see, two rows whose language model was not taught to point before, and two of three
times the steps. `repro ablation` runs them all over seeds; the notebooks show some, once.
"""

import re
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from repro import attention, clock, machine, pictures, run_records
from repro.data.episodes import Store
from repro.evaluation import chain_scores, chains, floors, offline, protocols, suites
from repro.evaluation.policies import about, load_policy, mended, minutes  # noqa: F401 (callers know them from here)
from repro.machine import UserError
from repro.models.reconvla import ReconVLA
from repro.profiles import Profile
from repro.sims import environments
from repro.sims.base import Launch, tabletop
from repro.sims.tabletop import language, tasks
from repro.sims.worker import Worker
from repro.training import launch

ROWS = {  # name -> what it changes in the preset
    "baseline": {"recon": False},
    "whole": {"target": "whole"},
    "gaze": {},
    "gaze+pretrain": {},
    "gaze+pretrain without denoiser": {},
    "baseline+pretrain": {"recon": False},
    "box": {"recon": False, "aux": "box"},
    "mask": {"recon": False, "aux": "mask"},
    "blind": {"recon": False, "blind": True},
    "baseline untaught": {"recon": False},
    "gaze untaught": {},
    "baseline long": {"recon": False},
    "gaze long": {},
}
PRETRAINED = {  # row -> (row of the stage before, is its denoiser kept?)
    "gaze+pretrain": ("gaze", True), "gaze+pretrain without denoiser": ("gaze", False), "baseline+pretrain": ("baseline", True)}
LONG = {"baseline long": 3, "gaze long": 3}  # row -> times the steps, by a learning rate that falls as much later
CONTROL = {  # row -> what differs from it in the reconstruction alone
    "gaze untaught": "baseline untaught", "gaze+pretrain": "baseline+pretrain", "gaze long": "baseline long"}
UNTAUGHT = ("baseline untaught", "gaze untaught")  # rows whose language model begins at random: it was not taught to point
VARIANTS = {name: ROWS[name] for name in ("baseline", "whole", "gaze", "blind")}  # those of the notebooks
MARKS = (0.1, 0.25, 0.5, 0.75, 1.0)  # shares of the steps at which a run of `curve_seeds` is looked at
CAUTION = ("Attention shows where image tokens are read, not what an action depends on: what passes through other tokens (instruction, "
           "proprioception, earlier actions) is not in the map, and reading is no proof of use.")
PRETRAINING_SEED = 1000  # of the episodes of the stage before, on top of the data's own seed


def folder(work: Path, row: str, seed: int = 0, corrupt: float = 0.0) -> Path:
    """Where one training run lies."""
    name = re.sub(r"[^a-z0-9]+", "-", row) + (f"-wrong{100 * corrupt:g}" if corrupt else "") + (f"-seed{seed}" if seed else "")
    return work / "train" / name


def parts(settings: Profile, work: Path, log=print, seed: int = 0, taught: bool = True) -> str:
    """The folder of the tiny parts, trained before all else (once); "" where the preset has its own. taught False: tower and VAE alone.

    Tower and VAE are the same for all seeds, frozen in every row. The language model, in which most of a policy's weights begin, learns
    anew for each seed, from pictures of its own: else the seeds of "baseline" would differ in the order of the frames alone.
    """
    config = launch.PRESETS[settings.preset]
    if not (config.vae == "tiny" or (config.vision == "tiny" and getattr(config, "freeze_vision", False))):
        return ""
    from repro.models import pointing, tiny_pictures, tiny_training

    training = Store(work / "store" / "training")
    states = tiny_pictures.recorded(training) if training.meta.get("simulator") == "tabletop" else None
    tiny_training.pretrain(work / "parts", tower_steps=settings.tower_steps, vae_steps=settings.vae_steps,
                  language_steps=settings.language_steps, states=states, pictures=settings.part_pictures, log=log)
    if taught and (seed == 0 or not settings.language_steps):
        return str(work / "parts")
    place = work / (f"parts-seed{seed}" if taught else "parts-untaught")
    for name in ("tower", "vae"):
        _copied(work / "parts" / name, place / name)
    if not taught:
        return str(place)
    pointing.pretrain_language(place, settings.language_steps, seed, states, settings.part_pictures, log=log)
    return str(place)


def _copied(part: Path, place: Path) -> None:
    """The same part in another folder, whole or absent; one that lies there already, which a run may be reading, is left alone."""
    told = place / "about.json"
    if told.is_file() and told.read_bytes() == (part / "about.json").read_bytes():
        return
    aside = place.with_name(f"{place.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    shutil.copytree(part, aside)
    shutil.rmtree(place, ignore_errors=True)
    aside.rename(place)


def _write_job(settings: Profile, work: Path, place: Path, row: str, seed: int, minutes: float | None, train: dict, **more) -> Path:
    validation = work / "store" / "validation"
    clock = {"budget_minutes": settings.budget_minutes if minutes is None else minutes, "checkpoint_minutes": settings.checkpoint_minutes}
    steps = train.get("steps", settings.train_steps)
    return launch.write_config(
        place.parent / f"{place.name}.json", folder=place, parts=parts(settings, work, seed=seed, taught=row not in UNTAUGHT),
        validation=str(validation) if validation.is_dir() else "",
        model={"preset": settings.preset, **ROWS[row]},
        train={"seed": seed, "steps": steps, "batch_size": settings.batch_size, "accumulate": settings.accumulate,
               "learning_rate": settings.learning_rate, "measure_every": max(25, steps // 20), "cpu_bfloat16": True, **clock,
               **train}, **more)  # fmt: skip


def job(settings: Profile, work: Path, row: str, seed: int, corrupt: float = 0.0, minutes: float | None = None) -> Path:
    """The config file of one training run, as `repro train` takes it. minutes: wall clock of this session (default: the profile's)."""
    marks = {"marks": MARKS} if row in ("baseline", "gaze") and seed in settings.curve_seeds and not corrupt else {}
    more = {}
    if row in PRETRAINED:
        before, kept = PRETRAINED[row]
        more = {"start": str(folder(work, f"pretraining {before}", seed)), "keep_denoiser": kept}
    steps = {"steps": LONG[row] * settings.train_steps} if row in LONG else {}
    return _write_job(settings, work, folder(work, row, seed, corrupt), row, seed, minutes, marks | steps, name=row,
                      store=work / "store" / "training", corrupt=corrupt, **({"corrupt_seed": seed} if corrupt else {}), **more)


def job_before(settings: Profile, work: Path, row: str, seed: int, minutes: float | None = None) -> Path:
    """The stage before a row of PRETRAINED: on other play tables, with the tokenizer and statistics of the rows' own data."""
    before = PRETRAINED[row][0]
    name, steps = f"pretraining {before}", {"steps": settings.pretrain_steps}
    return _write_job(settings, work, folder(work, name, seed), before, seed, minutes, steps, name=name,
                      store=work / "store" / "pretraining", like=str(work / "store" / "training"))


def load(work: Path, seed: int = 0, rows=tuple(VARIANTS)) -> dict[str, ReconVLA]:
    """Trained rows from their last checkpoints; `trained` on each says how far it got, on what, `minutes` how long it took."""
    return {row: load_run(folder(work, row, seed)) for row in rows}


def load_run(place: Path, path: Path | None = None):
    """The policy of a run's last checkpoint, or of `path`, one kept on the way."""
    return load_policy(path or place, run=place)


def parameters(models: dict[str, ReconVLA]) -> list[tuple[str, str, int]]:
    """(variant, part, number of parameters) of every part of every model."""
    return [(name, part, sum(p.numel() for p in module.parameters()))
            for name, model in models.items() for part, module in model.named_children()]


def can_roll_out(work: Path, simulator: str) -> bool:
    """True where `simulator` can show the policies what they were trained on; LIBERO has a proprioception of its own, which the grocery
    table shares, but neither looks like the other."""
    made_in = Store(work / "store" / "training").meta.get("simulator", "calvin_env")
    if simulator in ("tabletop", "grocery"):
        return made_in == {"tabletop": "tabletop", "grocery": suites.TABLE}[simulator]
    if made_in == suites.TABLE or (simulator == "libero") != (made_in == "libero"):
        raise UserError(f"policies trained on data of {made_in} cannot act in {simulator}: their proprioception or pictures differ",
                        "libero with LIBERO data, grocery with the grocery table's, tabletop or calvin with the others",
                        f"{simulator} with {made_in}", "another `simulator`, or prepare other data first (repro demos)")
    return True


def where(simulator: str, settings: Profile, work: Path, seed: int) -> tuple[Launch, dict[str, list], dict[str, str]]:
    """How the simulator is started, what is evaluated in it (benchmark -> chains), and the sentence of each task."""
    training = Store(work / "store" / "training")
    trained_on = "".join(sorted({info.scene for info in training.episodes}))
    if simulator == "tabletop":
        starts = start_states(settings, seed)
        count = {name: len({task for _, chain in found for task in chain}) for name, found in starts.items()}
        table = f"play table {trained_on}->{settings.evaluation_scene}"
        return (tabletop(settings.evaluation_scene), {f"{table}, {count[name]} tasks, {name}": found for name, found in starts.items()},
                language.VALIDATION)
    if simulator == "grocery":
        plans = [suites.plan_of("grocery", layout, settings.evaluate_single, seed=seed, **suites.sizes_of(training))
                 for layout in ("wide", "official")]
        return plans[0].launch, {plan.name: plan.chains for plan in plans}, plans[0].sentences
    if simulator == "calvin":
        found = protocols.calvin_chains(settings.evaluate_chains)
        named = {f"CALVIN {settings.evaluation_scene}, official sequences, chains of 5": found}
        return (environments.launch("calvin", scene=settings.evaluation_scene), named,
                protocols.calvin_validation_sentences(environments.calvin_home()))
    suite = suites.suite_of(training)
    plan = suites.plan_of(suite, "official", settings.evaluate_single, suites.tasks_of(training)[0][suite], "openpi", seed=seed,
                          **suites.sizes_of(training))
    return plan.launch, {plan.name: plan.chains}, plan.sentences


def start_states(settings: Profile, seed: int) -> dict[str, list]:
    """What is evaluated: chains of five, and single tasks from states in which they are possible. Held out by their seeds."""
    names = tasks.check_tasks(settings.tasks)
    rng = np.random.default_rng([seed, 2027])
    single = [({**tasks.symbolic_for(task, rng), "seed": int(rng.integers(2**31))}, (task,))
              for task in names for _ in range(settings.evaluate_single)]
    return {"single tasks": single, "chains of 5": tasks.chains(settings.evaluate_chains, 5, seed=7_000 + seed, tasks=settings.tasks)}


def demonstrations(work: Path) -> dict[str, np.ndarray]:
    """The first recorded training episode of each task, as its simulator calls it: (T, 7) actions."""
    store = Store(work / "store" / "training")
    if store.meta.get("simulator") in ("libero", suites.TABLE):
        return suites.recorded(store)
    return chain_scores.demonstrations(store)


def policies(models: dict[str, object], work: Path, sentences: dict[str, str], seed: int) -> dict[str, object]:
    """The trained models, then the floors, then the expert as ceiling; `models`: variant -> loaded ReconVLA, `sentences`: of the tasks."""
    replay = floors.replay(demonstrations(work), sentences)
    return {
        **models,
        "gaze, shuffled instruction": floors.ShuffledInstruction(models["gaze"], tuple(sorted(set(sentences.values()))), seed),
        "gaze, images blanked": floors.Blank(models["gaze"]),
        replay.name: replay,
        "random actions": floors.RandomPolicy(seed),
        "constant action": floors.ConstantPolicy(),
        "scripted expert (ceiling)": floors.ExpertPolicy(seed),
    }


def roll_out(settings: Profile, work: Path, models: dict[str, object], seed: int, simulator: str = "tabletop", log=print) -> list[dict]:
    """Evaluate the models, the floors and the expert on the same start states; one run record per policy and benchmark, saved."""
    torch.set_num_threads(max(1, machine.cores() - settings.workers))  # the simulators' processes need the other cores
    launch, benchmarks, sentences = where(simulator, settings, work, seed)
    training, found = Store(work / "store" / "training"), []
    with Worker(launch) as worker:
        about_it = worker.about
    limit = suites.limit(about_it["suite"]) if simulator in ("libero", "grocery") else protocols.CALVIN.max_steps
    for benchmark, starts in benchmarks.items():
        told = {task: sentences[task] for task in sorted({task for _, chain in starts for task in chain})}
        for name, policy in policies(models, work, told, seed).items():
            folder = work / "outcomes" / re.sub(r"[^A-Za-z0-9]+", "_", benchmark) / name.replace(" ", "_").replace(",", "")
            outcomes = chains.evaluate(policy, launch, starts, folder, limit, settings.simulators, told, name=name, renew=True, log=log,
                                       workers=2 if simulator not in ("tabletop", "grocery") else 2 * (settings.workers > 1))
            config = {"profile": settings.name, "policy": about(policy), "max_steps": limit}
            if simulator != "tabletop":
                config["simulator"] = about_it
            record = run_records.record(
                "reconvla", name, benchmark=benchmark, data=training.meta["name"], data_hash=training.hash, config=config, seed=seed,
                metrics=chains.summarise(outcomes, seed) | mended(policy), minutes=minutes(policy, seconds=chains.spent(folder)),
                simulator=simulator,
                renderer=", ".join([about_it["renderer"], *([about_it["assets"]] if simulator == "libero" else [])]),
                not_comparable_with=["reconvla"])
            run_records.save(record, work / "runs")
            found.append(record)
    return found


def score_offline(settings: Profile, work: Path, models: dict[str, object], seed: int, every: int = 5) -> list[dict]:
    """Action error on the validation episodes, for models and floors; works on any data, real CALVIN too. Records saved."""
    training, validation = (Store(work / "store" / split) for split in ("training", "validation"))
    scored = {**models, "constant action": offline.ConstantAction(training, chunk=next(iter(models.values())).config.chunk)}
    found = []
    for name, policy in [*scored.items(), ("gaze, shuffled instruction", models["gaze"])]:
        begun = time.monotonic()
        metrics = offline.action_error(policy, validation, every, shuffle_instructions="shuffled" in name) | mended(policy)
        record = run_records.record(
            "reconvla", name, benchmark=f"offline action error, {validation.meta['name']}", data=training.meta["name"],
            data_hash=training.hash, config={"profile": settings.name, "policy": about(policy), "every": every}, seed=seed,
            metrics=metrics, minutes=minutes(policy, begun), simulator="none (offline)", renderer="none",
            not_comparable_with=["reconvla"])
        run_records.save(record, work / "runs")
        found.append(record)
    return found


# ---- pictures and attention --------------------------------------------------------------------------------------------------------

def attention_frames(store: Store, count: int, episodes: list | None = None) -> list[dict]:
    """About `count` frames with a true gaze box (any, of data without boxes), spread evenly over the episodes (all of the store): the
    step's columns, `task`, `episode` and `step`."""
    episodes = store.episodes if episodes is None else episodes
    each, found = max(1, count // max(1, len(episodes))), []
    for info in episodes[:: max(1, len(episodes) // count)]:
        columns = store.read(info.index).columns
        sure = [t for t in range(info.length) if "gaze.source" not in columns or columns["gaze.source"][t] != "fallback"]
        for t in [sure[int(i)] for i in np.linspace(0, len(sure) - 1, min(each, len(sure))).round()] if sure else []:
            found.append(_frame(info, columns, t))
    return found


def attention_strips(store: Store, count: int = 16, every: int = 5) -> list[dict]:
    """Every `every`-th frame of about `count` whole episodes, evenly chosen among those with a true gaze box in all of these frames."""
    found = []
    for info in store.episodes[:: max(1, len(store) // count)]:
        columns, steps = store.read(info.index).columns, range(0, info.length, every)
        if len(steps) > 1 and all(columns["gaze.source"][t] != "fallback" for t in steps):
            found += [_frame(info, columns, t) for t in steps]
    return found


def _frame(info, columns: dict, t: int) -> dict:
    return {**{key: column[t] for key, column in columns.items()}, "task": info.task, "task_id": info.task_id, "episode": info.index,
            "step": t}


def attention_of(model: ReconVLA, frames: list[dict], batch: int = 32, log=print, source: str = "queries") -> np.ndarray:
    """(N, static rows, columns): the static camera's part of the last layer's attention, mean over heads and action tokens (or words).

    A minute or two for the frames of any profile: out of time, it begins again in the next session.
    """
    found, progress = [], clock.Progress("attention", len(frames), "frames", log)
    for i in range(0, len(frames), batch):
        clock.check()
        part = frames[i : i + batch]
        found.append(attention.static_maps(model, part, [frame["task"] for frame in part], source=source))
        progress(i + len(part))
    return np.concatenate(found)


def attention_columns(static: np.ndarray, frames: list[dict], seed: int = 0) -> dict[str, np.ndarray]:
    """The numbers of each frame, with every control (attention.frame_numbers)."""
    return attention.frame_numbers(static, np.stack([frame["gaze.box"] for frame in frames]), _of(frames, "episode"),
                                   [frame["task_id"] for frame in frames], seed=seed)


REBUILT_OWN, REBUILT_APART = "mean |error| of the rebuilt region", "mean |error|, own target minus other tasks' targets"


def reconstruction_columns(model: ReconVLA, frames: list[dict], seed: int = 0, batch: int = 32) -> dict[str, np.ndarray]:
    """How near what the denoiser draws from noise (once a frame) is to its own target, the part of the static camera, pixels in [0, 1]; and
    that minus the mean over the frames of other tasks: below 0 it depends on the frame."""
    targets, drawn = [], []
    torch.manual_seed(seed)
    for i in range(0, len(frames), batch):
        clock.check()
        part = frames[i : i + batch]
        targets.append(model.targets(part))
        drawn.append(model.reconstruct(part, [frame["task"] for frame in part]))
    border = targets[0].shape[1] * model.config.static_tokens // model.config.grid[0]
    aims, shown = (np.concatenate(some)[:, :border].astype(np.float32) / 255 for some in (targets, drawn))
    tasks, own, others = np.array([frame["task_id"] for frame in frames]), [], []
    for i, picture in enumerate(shown):
        apart = np.abs(aims - picture).mean((1, 2, 3))
        own.append(apart[i])
        others.append(apart[tasks != tasks[i]].mean() if (tasks != tasks[i]).any() else np.nan)
    return {"episode": _of(frames, "episode"), REBUILT_OWN: np.array(own), REBUILT_APART: np.array(own) - np.array(others)}


def attention_jumps(static: np.ndarray, frames: list[dict]) -> dict[str, np.ndarray]:
    """Whether the map's maximum jumps along the episodes of `attention_strips`, with its controls (attention.frame_jumps)."""
    return attention.frame_jumps(static, np.stack([frame["gaze.box"] for frame in frames]), _of(frames, "episode"), _of(frames, "step"))


def _of(frames: list[dict], key: str) -> np.ndarray:
    return np.array([frame[key] for frame in frames])


def record_attention(settings: Profile, work: Path, models: dict, maps: dict[str, np.ndarray], frames: list[dict], seed: int,
                     strips: tuple[dict[str, np.ndarray], list[dict]] | None = None) -> list[dict]:
    """One run record per model, then one per model but the baseline with its paired differences to the baseline's attention. Saved.

    maps: {model: static maps of `frames`}; strips: the same of `attention_strips` and these, for how often the maximum jumps.
    """
    where, begun, found = f"attention, held-out episodes of {Store(work / 'store' / 'validation').meta['name']}", time.monotonic(), []
    columns = {name: [attention_columns(static, frames, seed)] for name, static in maps.items()}
    for name in columns if strips else ():
        columns[name].append(attention_jumps(strips[0][name], strips[1]))
    for name, mine in columns.items():
        metrics = {key: metric for part in mine for key, metric in attention.averages(part, seed).items()}
        found.append(_attention_record(settings, work, name, where, about(models[name]), metrics, minutes(models[name], begun), seed))
    for name in [name for name in columns if name != "baseline" and "baseline" in columns]:
        metrics = {key: metric for ours, theirs in zip(columns[name], columns["baseline"], strict=True)
                   for key, metric in attention.differences(ours, theirs, seed).items()}
        both = {name: about(models[name]), "baseline": about(models["baseline"])}
        found.append(_attention_record(settings, work, f"{name} minus baseline", f"{where}: paired differences", both, metrics,
                                       minutes(None, begun), seed))
    return found


def _attention_record(settings: Profile, work: Path, name: str, benchmark: str, policy: dict, metrics: dict, spent: float, seed: int
                      ) -> dict:
    training = Store(work / "store" / "training")
    record = run_records.record(
        "reconvla", name, benchmark=benchmark, data=training.meta["name"], data_hash=training.hash,
        config={"profile": settings.name, "policy": policy, "reduced": attention.caption()}, seed=seed, metrics=metrics, minutes=spent,
        simulator="none (recorded frames)", renderer="none", not_comparable_with=["reconvla"])
    run_records.save(record, work / "runs")
    return record


def watch(policy, launch: Launch, chain: tuple, sentences: dict[str, str], max_steps: int) -> list[tuple[str, int, np.ndarray]]:
    """One chain, up to its first failure: (task, step, static picture) before each query, ("solved" | "failed", ...) at its end."""
    (state, tasks), shots = chain, []
    with Worker(launch) as worker:
        worker.call("reset", state, render=False)
        for task in tasks:
            worker.call("start_task")
            solved, step = False, 0
            while step < max_steps and not solved:
                seen = worker.call("observe")
                shots.append((task, step, seen["observation.images.static"]))
                for action in policy.act([seen], [sentences[task]])[0][: max_steps - step]:
                    worker.call("step", action, render=False)
                    step += 1
                    if solved := worker.call("done", task):
                        break
            shots.append(("solved" if solved else "failed", step, worker.call("observe")["observation.images.static"]))
            if not solved:
                break
    return shots


def film(model: ReconVLA, settings: Profile, work: Path, seed: int, simulator: str = "tabletop", count: int = 8):
    """Figure: the first chain of the evaluation, `count` pictures of its first task from start to end."""
    launch, benchmarks, sentences = where(simulator, settings, work, seed)
    state, tasks_ = next(iter(benchmarks.values()))[0]
    shots = watch(model, launch, (state, tasks_[:1]), sentences, 360)
    picks = [shots[i] for i in np.linspace(0, len(shots) - 1, min(count, len(shots))).round().astype(int)]
    title = f"{sentences[tasks_[0]]}: {shots[-1][0]}"
    return pictures.sheet([image for *_, image in picks], [f"step {step}" for _, step, _ in picks], columns=4, title=title)
