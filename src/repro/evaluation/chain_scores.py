"""Chains of five of one checkpoint, its floors beside it: on the embedded play table, or in CALVIN's own simulator by its own sequences.

    repro evaluate chains --model RUN --store STORE                                    # play table, scene D
    repro evaluate chains --model ReconVLA --store STORE --simulator calvin --renderer egl --protocol reconvla   # the authors' folder

With CALVIN's simulator the rules are the protocol's (protocols.py): CALVIN's 1000 chains of at most 360 steps a task, or the 500 of 500
steps of ReconVLA's script. Rates are over N; what ReconVLA's own script would have printed, over N + 1, is said beside them. No record of
this module claims to be comparable with the paper: whoever puts one beside it sees in `config` what departs from the protocol.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro import run_records
from repro.data.episodes import Store
from repro.evaluation import chains, protocols
from repro.evaluation.policies import about, mended, minutes
from repro.machine import UserError, cores
from repro.run_records import file_name
from repro.sims import environments
from repro.sims.base import Launch
from repro.sims.tabletop import language, tasks
from repro.sims.worker import Worker

LENGTH, START = 5, 8_000  # tasks a chain; seed of the play table's start states, none of notebook 09's or the ablation's
SERVER_ROWS, CANVAS = 167, 334  # px: the static camera's as ReconVLA's server pastes it, and all; trained with 173 (notes.md, D2)


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and how."""

    benchmark: str
    rules: protocols.ChainProtocol
    launch: Launch
    chains: list               # (start state, tasks)
    sentences: dict[str, str]  # of the tasks
    about: dict                # what the simulator says of itself
    departs: tuple[str, ...]   # how it departs from the protocol


def plan_of(store: Store, simulator: str = "tabletop", scene: str = "D", count: int | None = None, chosen: list[str] | None = None,
            protocol: str = "CALVIN", seed: int = 0, renderer: str = "tiny") -> Plan:
    """The plan. count: chains (None: the protocol's, on the play table 100). chosen: tasks of the play table (None: those of the store);
    CALVIN's sequences take all 34, in scene D. seed: of the play table's start states. renderer: of CALVIN's simulator, "egl" as published,
    or "tiny", which draws on a CPU and otherwise."""
    rules, made_in = protocols.chain_protocol(protocol), store.meta.get("simulator", "calvin_env")
    if made_in not in protocols.CALVINS or (simulator == "tabletop") and made_in != "tabletop":
        raise UserError(f"policies of {made_in}'s data cannot act in {simulator}: their proprioception or pictures differ",
                        "the play table's data, or with --simulator calvin CALVIN's", made_in, "another store, or repro evaluate --suite")
    if simulator == "tabletop":
        if renderer != "tiny":
            raise UserError("the play table draws itself", "--renderer with --simulator calvin", renderer, "leave it out")
        launch, departs = environments.launch("tabletop", scene=scene), ["the embedded play table"]
        names = tasks.check_tasks(chosen or sorted({episode.task_id for episode in store.episodes}))
        starts, sentences = tasks.chains(count or 100, LENGTH, START + seed, names), language.VALIDATION
        benchmark = f"play table {''.join(sorted({e.scene for e in store.episodes}))}->{scene}, {len(names)} tasks, chains of {LENGTH}"
    else:
        if chosen:
            raise UserError("CALVIN's sequences go through all of its tasks", "no --tasks", ", ".join(chosen), "leave it out")
        if scene != "D":
            raise UserError("CALVIN's start states are those of scene D", "--scene D", scene, "leave it out")
        if count and count > 1000:
            raise UserError("CALVIN has 1000 sequences", "--chains 1 .. 1000", count)
        launch, starts = environments.launch("calvin", scene=scene, renderer=renderer), protocols.calvin_chains(count or rules.chains)
        departs = [f"{len(starts)} chains of {rules.chains}"] * (len(starts) != rules.chains)
        departs += ["drawn by TinyRenderer, not by EGL"] * (renderer != "egl")
        sentences = protocols.calvin_validation_sentences(environments.calvin_home())
        benchmark = f"CALVIN {scene}, official sequences, chains of {LENGTH}"
    with Worker(launch) as worker:
        found = worker.about
    told = {task: sentences[task] for task in sorted({task for _, some in starts for task in some})}
    return Plan(benchmark, rules, launch, starts, told, found, tuple(departs))


def demonstrations(store: Store) -> dict[str, np.ndarray]:
    """The first recorded episode of each task: (T, 7) actions."""
    first = {info.task_id: info.index for info in reversed(store.episodes)}
    return {task: store.read(index, columns=["action"]).columns["action"] for task, index in first.items()}


def departures(policy, plan: Plan) -> list[str]:
    """How an evaluation departs from the plan's protocol, in words; of an official policy also how it acts otherwise than its server."""
    if not getattr(policy, "official", False):
        return [*plan.departs]
    config, dtype, own = policy.config, str(next(policy.mm_projector.parameters()).dtype).removeprefix("torch."), []
    own += ["language model in 4 bits"] * bool(config.quantise)
    if plan.rules.appends_mean:
        own += [f"static camera on {config.static_rows} rows as in training, not the server's {SERVER_ROWS}"] * (
            not config.acting_static_rows)
        own += [f"computed in {dtype}, not in float32"] * (dtype != "float32")
        own += ["prompt ids built directly, not through text and back, which spoils about one prompt in eleven",
                "answers that are no chunk of actions are read again within the action tokens"]
    return [*plan.departs, *own]


def score(scored: dict[str, object], plan: Plan, folder: Path | str, store: Store, seed: int = 0, simulators: int = 32,
          workers: int | None = None, fresh: bool = False, log: Callable[[str], None] = print) -> list[dict]:
    """Evaluate every policy on the same chains; a run record each below `folder`, with the lengths of all chains as `outcomes`. A policy's
    outcomes lie in a folder of its weights. workers: processes (None: CALVIN one a core, the play table none but this)."""
    folder, found = Path(folder), []
    workers = (cores() if plan.launch.one_a_process else 0) if workers is None else workers
    for name, policy in scored.items():
        identity = chains.identity(policy)
        place = folder / "outcomes" / file_name(plan.benchmark) / file_name(f"{plan.rules.name} {len(plan.chains)} {name} {identity[:8]}")
        outcomes = chains.evaluate(policy, plan.launch, plan.chains, place, plan.rules.max_steps, simulators, plan.sentences, name=name,
                                   workers=workers, fresh=fresh, log=log)
        config = {"protocol": plan.rules.name, "departs": departures(policy, plan), "chains": len(outcomes),
                  "max_steps": plan.rules.max_steps, "simulator": plan.about, "identity": identity, "policy": about(policy)}
        record = run_records.record(
            "reconvla", name, benchmark=plan.benchmark, data=store.meta["name"], data_hash=store.hash, config=config, seed=seed,
            metrics=chains.summarise(outcomes, seed) | mended(policy), minutes=minutes(policy, seconds=chains.spent(place)),
            simulator=plan.about["simulator"], renderer=plan.about["renderer"], not_comparable_with=["reconvla"])
        found.append({**record, "outcomes": "".join(str(outcome.length) for outcome in outcomes)})
        run_records.save(found[-1], folder / "runs")
        if plan.rules.appends_mean:
            printed = protocols.as_printed(outcomes, plan.rules)
            log(f"{name}: {plan.rules.name}'s script, which divides by N + 1, would print "
                + ", ".join(f"{100 * share:.1f}" for key, share in printed.items() if "/" in key) + f"; {printed['average length']:.2f}")
    return found
