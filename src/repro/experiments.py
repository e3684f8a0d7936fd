"""The ReconVLA experiment of notebooks 05 to 10: its variants, its floors, and the run records they leave.

The paper's ablation (Table 2) has three trained rows without pretraining: baseline, reconstruction of the whole image, and of
the gaze region. A fourth model is trained blind, as the floor of a policy that cannot see.
"""

import time
from pathlib import Path

import numpy as np
import torch

from repro import attention, machine, pictures, results
from repro.data.episodes import Store
from repro.evaluation import chains, floors, offline
from repro.models.reconvla import ReconVLA
from repro.profiles import Profile
from repro.sims.base import tabletop
from repro.sims.tabletop import language, tasks
from repro.sims.tabletop.world import PlayTable
from repro.training import checkpoint, launch
from repro.training.loop import read_metrics

VARIANTS = {  # name -> what it changes in the preset
    "baseline": {"recon": False},
    "whole": {"target": "whole"},
    "gaze": {},
    "blind": {"recon": False, "blind": True},
}
RENDERER = "play table (OpenCV)"


def job(settings: Profile, work: Path, variant: str, seed: int) -> Path:
    """The config file of one training run, as `repro train` takes it."""
    clock = {"budget_minutes": settings.budget_minutes, "checkpoint_minutes": settings.checkpoint_minutes}
    return launch.write_config(
        work / "train" / f"{variant}.json", name=variant, store=work / "store" / "training", folder=work / "train" / variant,
        model={"preset": settings.preset, **VARIANTS[variant]},
        train={"seed": seed, "steps": settings.train_steps, "batch_size": settings.batch_size, "accumulate": settings.accumulate,
               "learning_rate": settings.learning_rate, **clock})  # fmt: skip


def load(work: Path) -> dict[str, ReconVLA]:
    """The trained variants from their last checkpoints; `trained` on each says how far it got, on what, `minutes` how long it took."""
    models = {}
    for variant in VARIANTS:
        path = checkpoint.need(work / "train" / variant)
        about = checkpoint.about(path)
        models[variant] = ReconVLA.load(path)
        models[variant].minutes = read_metrics(work / "train" / variant / "metrics.jsonl")[-1]["seconds"] / 60
        models[variant].trained = {key: about[key] for key in ("step", "train", "clockwork", "data", "commit") if key in about}
    return models


def parameters(models: dict[str, ReconVLA]) -> list[tuple[str, str, int]]:
    """(variant, part, number of parameters) of every part of every model."""
    return [(name, part, sum(p.numel() for p in module.parameters()))
            for name, model in models.items() for part, module in model.named_children()]


def is_embedded(work: Path) -> bool:
    """True where the training data came from the play table, so that its simulator can score a policy."""
    return Store(work / "store" / "training").meta.get("simulator") == "tabletop"


def start_states(settings: Profile, seed: int) -> dict[str, list]:
    """What is evaluated: chains of five, and single tasks from states in which they are possible. Held out by their seeds."""
    names = tasks.check_tasks(settings.tasks)
    rng = np.random.default_rng([seed, 2027])
    single = [({**tasks.symbolic_for(task, rng), "seed": int(rng.integers(2**31))}, (task,))
              for task in names for _ in range(settings.evaluate_single)]
    return {"single tasks": single, "chains of 5": tasks.chains(settings.evaluate_chains, 5, seed=7_000 + seed, tasks=settings.tasks)}


def demonstrations(work: Path) -> dict[str, np.ndarray]:
    """The first recorded training episode of each task: (T, 7) actions."""
    store = Store(work / "store" / "training")
    first = {info.task_id: info.index for info in reversed(store.episodes)}
    return {task: store.read(index, columns=["action"]).columns["action"] for task, index in first.items()}


def policies(settings: Profile, models: dict[str, object], work: Path, seed: int) -> dict[str, object]:
    """The trained models, then the floors, then the expert as ceiling; `models`: variant -> loaded ReconVLA."""
    sentences = tuple(language.VALIDATION[task] for task in tasks.check_tasks(settings.tasks))
    return {
        **models,
        "gaze, shuffled instruction": floors.ShuffledInstruction(models["gaze"], sentences, seed),
        "gaze, images blanked": floors.Blank(models["gaze"]),
        "replay of one demonstration": floors.Replay(demonstrations(work)),
        "random actions": floors.RandomPolicy(seed),
        "constant action": floors.ConstantPolicy(),
        "scripted expert (ceiling)": floors.ExpertPolicy(seed),
    }


def roll_out(settings: Profile, work: Path, scored: dict[str, object], seed: int, log=print) -> list[dict]:
    """Evaluate every policy on the same start states of the play table; one run record per policy and benchmark, saved."""
    scene, found = settings.evaluation_scene, []
    torch.set_num_threads(max(1, machine.cores() - settings.workers))  # the simulators' processes need the other cores
    training = Store(work / "store" / "training")
    trained_on = "".join(sorted({info.scene for info in training.episodes}))
    for benchmark, starts in start_states(settings, seed).items():
        tried = len({task for _, chain in starts for task in chain})
        for name, policy in scored.items():
            begun = time.monotonic()
            folder = work / "outcomes" / benchmark.replace(" ", "_") / name.replace(" ", "_").replace(",", "")
            outcomes = chains.evaluate(policy, tabletop(scene), starts, folder, simulators=settings.simulators, name=name,
                                       workers=2 * (settings.workers > 1), fresh=True, log=log)
            config = {"profile": settings.name, "policy": about(policy), "max_steps": 360}
            record = results.record(
                "reconvla", name, benchmark=f"play table {trained_on}->{scene}, {tried} tasks, {benchmark}",
                data=training.meta["name"], data_hash=training.hash, config=config, seed=seed, metrics=chains.summarise(outcomes, seed),
                minutes=minutes(policy, begun), simulator="tabletop", renderer=RENDERER, not_comparable_with=["reconvla"])
            results.save(record, work / "runs")
            found.append(record)
    return found


def score_offline(settings: Profile, work: Path, models: dict[str, object], seed: int, every: int = 5) -> list[dict]:
    """Action error on the validation episodes, for models and floors; works on any data, real CALVIN too. Records saved."""
    training, validation = (Store(work / "store" / split) for split in ("training", "validation"))
    scored = {**models, "constant action": offline.ConstantAction(training, chunk=next(iter(models.values())).config.chunk)}
    found = []
    for name, policy in [*scored.items(), ("gaze, shuffled instruction", models["gaze"])]:
        begun = time.monotonic()
        metrics = offline.action_error(policy, validation, every, shuffle_instructions="shuffled" in name)
        record = results.record(
            "reconvla", name, benchmark=f"offline action error, {validation.meta['name']}", data=training.meta["name"],
            data_hash=training.hash, config={"profile": settings.name, "policy": about(policy), "every": every}, seed=seed,
            metrics=metrics, minutes=minutes(policy, begun), simulator="none (offline)", renderer="none",
            not_comparable_with=["reconvla"])
        results.save(record, work / "runs")
        found.append(record)
    return found


def minutes(policy, begun: float) -> float:
    """Wall clock of a record: training, where the policy was trained, and evaluation since `begun`."""
    return getattr(policy, "minutes", 0.0) + (time.monotonic() - begun) / 60


def about(policy) -> dict:
    """What identifies a policy in a record: a model's config and the step of its checkpoint, or a floor's name."""
    if hasattr(policy, "config"):
        config = {key: value for key, value in policy.config.__dict__.items() if key != "words"}
        return {"model": config, "trained": getattr(policy, "trained", {})}
    inner = getattr(policy, "policy", None)
    return {"floor": getattr(policy, "name", type(policy).__name__), **({"of": about(inner)} if inner is not None else {})}




# ---- pictures and attention --------------------------------------------------------------------------------------------------------

def reconstructions(model: ReconVLA, work: Path, count: int = 6, seed: int = 0):
    """Figure: for `count` held-out frames the target and what the denoiser draws from noise (static part above, wrist below)."""
    store = Store(work / "store" / "validation")
    frames = attention_frames(store, count)
    targets = np.stack([model.prepare(frame)["target"] for frame in frames])
    torch.manual_seed(seed)
    drawn = model.reconstruct(frames, [frame["task"] for frame in frames])
    labels = [f"target: {frame['task']}" for frame in frames] + ["drawn from noise"] * len(frames)
    return pictures.sheet([*targets, *drawn], labels, columns=len(frames), size=2.0)


def attention_frames(store: Store, count: int) -> list[dict]:
    """About `count` frames with a true gaze box, spread evenly over the episodes: the step's columns, `task` and `episode`."""
    each, found = max(1, count // max(1, len(store))), []
    for info in store.episodes[:: max(1, len(store) // count)]:
        columns = store.read(info.index).columns
        sure = [t for t in range(info.length) if columns["gaze.source"][t] != "fallback"]
        for t in [sure[int(i)] for i in np.linspace(0, len(sure) - 1, min(each, len(sure))).round()] if sure else []:
            found.append({**{key: column[t] for key, column in columns.items()}, "task": info.task, "episode": info.index})
    return found


def attention_of(model: ReconVLA, frames: list[dict], batch: int = 32) -> np.ndarray:
    """(N, static rows, columns): the static camera's part of the last layer's attention, mean over heads and action tokens."""
    parts = [frames[i : i + batch] for i in range(0, len(frames), batch)]
    return np.concatenate([attention.static_maps(model, part, [frame["task"] for frame in part]) for part in parts])


def record_attention(settings: Profile, work: Path, models: dict, maps: dict[str, np.ndarray], frames: list[dict], seed: int) -> list[dict]:
    """One run record per model: attention inside the gaze box, with its floors. Saved."""
    training, validation = (Store(work / "store" / split) for split in ("training", "validation"))
    boxes, episodes = np.stack([frame["gaze.box"] for frame in frames]), np.array([frame["episode"] for frame in frames])
    found = []
    for name, static in maps.items():
        begun = time.monotonic()
        record = results.record(
            "reconvla", name, benchmark=f"attention, held-out episodes of {validation.meta['name']}", data=training.meta["name"],
            data_hash=training.hash, config={"profile": settings.name, "policy": about(models[name]), "reduced": attention.caption()},
            seed=seed, metrics=attention.measure_all(static, boxes, episodes, seed=seed), minutes=minutes(models[name], begun),
            simulator="none (recorded frames)", renderer="none", not_comparable_with=["reconvla"])
        results.save(record, work / "runs")
        found.append(record)
    return found


def film(model: ReconVLA, settings: Profile, seed: int, count: int = 8):
    """Figure: one single-task rollout of the model on the play table, `count` pictures from start to end."""
    state, (task,) = start_states(settings, seed)["single tasks"][0]
    table = PlayTable(settings.evaluation_scene)
    observation, shots = table.reset(state), []
    for step in range(0, 360, model.config.chunk):
        shots.append((step, observation["observation.images.static"]))
        if table.done(task):
            break
        for action in model.act([observation], [language.VALIDATION[task]])[0]:
            table.step(action, render=False)
            if table.done(task):
                break
        observation = table.observe()
    picks = [shots[i] for i in np.linspace(0, len(shots) - 1, min(count, len(shots))).round().astype(int)]
    end = "achieved" if table.done(task) else "not achieved"
    title = f"{language.VALIDATION[task]}: {end}"
    return pictures.sheet([image for _, image in picks], [f"step {step}" for step, _ in picks], columns=4, title=title)
