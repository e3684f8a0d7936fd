"""The ReconVLA experiment of notebooks 05 to 10: its variants, its floors, and the run records they leave.

The paper's ablation (Table 2) has three trained rows without pretraining: baseline, reconstruction of the whole image, and of
the gaze region. A fourth model is trained blind, as the floor of a policy that cannot see.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np

from repro import results
from repro.data.episodes import Store
from repro.evaluation import chains, floors, offline
from repro.profiles import Profile
from repro.sims.tabletop import language, tasks
from repro.sims.tabletop.expert import Expert
from repro.sims.tabletop.world import PlayTable

VARIANTS = {  # name -> what it changes in the preset
    "baseline": {"recon": False},
    "whole": {"target": "whole"},
    "gaze": {},
    "blind": {"recon": False, "blind": True},
}
RENDERER = "play table (OpenCV)"


def job(settings: Profile, work: Path, variant: str, seed: int) -> dict:
    """The config of one training run, as `repro train` takes it."""
    return {
        "name": variant,
        "store": str(work / "store" / "training"),
        "folder": str(work / "train" / f"{variant}-{seed}"),
        "model": {"preset": settings.preset, **VARIANTS[variant]},
        "train": {
            "seed": seed, "steps": settings.train_steps, "batch_size": settings.batch_size, "accumulate": settings.accumulate,
            "learning_rate": settings.learning_rate, "budget_minutes": settings.budget_minutes,
            "checkpoint_minutes": settings.checkpoint_minutes,
        },
    }  # fmt: skip


def is_embedded(work: Path) -> bool:
    """True where the training data came from the play table, so that its simulator can score a policy."""
    return Store(work / "store" / "training").meta.get("simulator") == "tabletop"


def start_states(settings: Profile, seed: int) -> dict[str, list]:
    """What is evaluated: chains of five, and single tasks from states in which they are possible. Held out by their seeds."""
    names = tasks.check_tasks(settings.tasks)
    rng = np.random.default_rng([seed, 2027])
    single = [({**tasks.symbolic_for(task, rng), "seed": int(rng.integers(2**31))}, (task,)) for task in names for _ in range(settings.evaluate_single)]
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
        "scripted expert (ceiling)": floors.ExpertPolicy(Expert, seed),
    }


def roll_out(settings: Profile, work: Path, scored: dict[str, object], seed: int, log=print) -> list[dict]:
    """Evaluate every policy on the same start states of the play table; one run record per policy and benchmark, saved."""
    scene, found = settings.evaluation_scene, []
    training = Store(work / "store" / "training")
    trained_on = "".join(sorted({info.scene for info in training.episodes}))
    for benchmark, starts in start_states(settings, seed).items():
        for name, policy in scored.items():
            begun = time.monotonic()
            in_process = isinstance(policy, floors.ExpertPolicy) or settings.workers < 2
            folder = work / "outcomes" / benchmark.replace(" ", "_") / name.replace(" ", "_").replace(",", "")
            outcomes = chains.evaluate(policy, partial(PlayTable, scene), starts, folder, simulators=settings.simulators, name=name,
                                       workers=0 if in_process else 2, fresh=True, log=log)
            record = results.record(
                "reconvla", name, benchmark=f"play table {trained_on}->{scene}, {len(set(t for _, ts in starts for t in ts))} tasks, {benchmark}",
                data=training.meta.get("name", "play table"), data_hash=training.hash,
                config={"profile": settings.name, "policy": about(policy), "max_steps": 360}, seed=seed, metrics=chains.summarise(outcomes, seed),
                minutes=(time.monotonic() - begun) / 60, simulator="tabletop", renderer=RENDERER, not_comparable_with=["reconvla"])  # fmt: skip
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
            "reconvla", name, benchmark=f"offline action error, {validation.meta.get('name', 'validation')}", data=training.meta.get("name", ""),
            data_hash=training.hash, config={"profile": settings.name, "policy": about(policy), "every": every}, seed=seed, metrics=metrics,
            minutes=(time.monotonic() - begun) / 60, simulator="none (offline)", renderer="none", not_comparable_with=["reconvla"])  # fmt: skip
        results.save(record, work / "runs")
        found.append(record)
    return found


def about(policy) -> dict:
    """What identifies a policy in a record: a model's config and the step of its checkpoint, or a floor's name."""
    if hasattr(policy, "config"):
        config = {key: value for key, value in policy.config.__dict__.items() if key != "words"}
        return {"model": config, "trained": getattr(policy, "trained", {})}
    inner = getattr(policy, "policy", None)
    return {"floor": getattr(policy, "name", type(policy).__name__), **({"of": about(inner)} if inner is not None else {})}


