"""How well the ReconVLA experiment's rows act: rollouts among their floors, action error on recorded episodes, and the records of both.

    records = roll_out(settings, work, experiments.load(work), seed, "tabletop")
"""

import re
import time
from pathlib import Path

import numpy as np
import torch

from repro import machine, pictures, run_records
from repro.data.episodes import Store
from repro.evaluation import chain_scores, chains, floors, offline, protocols, suites
from repro.evaluation.policies import about, mended, minutes
from repro.machine import UserError
from repro.models.reconvla import ReconVLA
from repro.profiles import Profile
from repro.sims import environments
from repro.sims.base import Launch, tabletop
from repro.sims.tabletop import language, tasks
from repro.sims.worker import Worker


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
