"""LIBERO's suites, closed loop: in the real benchmark, or on the embedded grocery table in its stead; floors beside every score.

    plan = plan_of("grocery", layout="wide", episodes=10)
    outcomes = run(policy, plan, "work/outcomes/vggt_tiny")                       # resumed where it was killed
    replayed, began = demonstrations(store, plan)
    floors = beside(policy, replayed, plan, blind=blind, began=began)
    records = score({"vggt": policy, **floors}, plan, "work/evaluation", store, videos=2)

An episode is the simulator's `reset` (which sets the init state and lets things settle, 10 steps of an opening gripper that are not
counted; the grocery table has nothing to settle), then at most 220 / 280 / 300 / 520 / 400 steps (libero_spatial, _object, _goal, _10, _90;
the grocery table: 280, as libero_object), ended by the first step after which the task's goal holds. How many actions of a chunk are
executed is the convention's (evaluation/protocols.py), or given.

Layout "official": episode i of a task starts from init state i. That alone proves little where these hardly differ: on libero_object a
replay of one demonstration and a blind policy solve most of them; on the grocery table a replay of one from another official start 63 % of
120, a policy trained blind 32 %. "wide" moves target and basket by up to 7 and 5 cm, drawn from seeds that no scripted demonstration has
(`libero_hdf5.WIDE_SEED`).
"""

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro import clock, run_records
from repro.data.episodes import EpisodeInfo, Store
from repro.data.libero_hdf5 import INITS, OTHER_STARTS, WIDE_SEED, start
from repro.data.libero_tasks import SUITE_OF, places, resolve, sentence_of, suite_named, why_not
from repro.evaluation import chains, films, floors, protocols
from repro.evaluation.chains import Outcome
from repro.evaluation.policies import about, minutes
from repro.intervals import wilson
from repro.machine import UserError
from repro.run_records import file_name
from repro.sims import environments
from repro.sims.base import Launch
from repro.sims.worker import Worker, opened

GROCERY, TABLE = "grocery", "grocery table"  # as a suite and simulator; in the metadata of a store that was made on it
SUITES = (GROCERY, *protocols.SUITES)
SCRIPTED = (GROCERY, "libero_object", "libero_spatial")  # those that the expert, the ceiling, can do
STAND_IN = {GROCERY: "libero_object"}  # whose step limit and number of init states hold
DRAWS = 4000  # of the bootstrap


@dataclass(frozen=True)
class Plan:
    """What is evaluated, and under which rules."""

    suite: str
    layout: str
    protocol: str
    max_steps: int
    execute: int | None        # actions of a chunk; None: all of them
    sentences: dict[str, str]  # task -> instruction
    chains: list               # (state, (task,)) of each episode
    episodes: int              # of each task
    of: int                    # tasks that the suite has
    launch: Launch
    about: dict                # what the simulator says of itself

    @property
    def name(self) -> str:
        """For the record: suite or table, layout, tasks."""
        where = TABLE if self.suite == GROCERY else self.suite
        layout = "wide layout" if self.layout == "wide" else "official init states"
        return f"{where}, {layout}, {len(self.sentences)} single tasks"

    @property
    def folder(self) -> str:
        """Of outcomes and films: other tasks, or another number of episodes, have another."""
        which = "_" + hashlib.sha256("\n".join(self.sentences).encode()).hexdigest()[:8] if len(self.sentences) < self.of else ""
        return f"{file_name(self.name)}{which}_{self.episodes}_episodes"

    @property
    def followed(self) -> str:
        """For the record: the convention's name where it is followed, else what departs from it, its own number in brackets."""
        its = protocols.libero_protocol(self.protocol)
        both = {"tasks": (len(self.sentences), self.of), "episodes of each": (self.episodes, its.trials),
                "layout": (self.layout, "official"), "actions of a chunk": (self.execute or "all", its.actions_per_query),
                "settle steps": (self.about["settle_steps"], its.settle_steps),
                "static picture": (self.about["image_size"][0], its.render), "wrist picture": (self.about["wrist_size"][0], its.render)}
        departs = [f"{what} {ours} ({theirs})" for what, (ours, theirs) in both.items() if ours != theirs]
        steps = limit(self.suite, self.protocol)
        kept = f"{self.protocol}'s step limit" if self.max_steps == steps else f"not {self.protocol}: {self.max_steps} steps ({steps})"
        return self.protocol if self.max_steps == steps and not departs else "; ".join([kept, *departs])


def plan_of(suite: str, layout: str = "official", episodes: int | None = None, tasks: list[str] | None = None,
            protocol: str = "openvla-oft", seed: int = 0, execute: int | None = None, max_steps: int | None = None, **simulator) -> Plan:
    """The plan of a suite: `episodes` of each task (None: the convention's trials), all tasks unless some are named.

    protocol: openvla | openvla-oft | openpi | lerobot. execute: actions of each chunk (None: the convention's; 0: all). max_steps: None
    for the convention's. simulator: options of the launch (image_size, wrist_size, orientation, assets, renderer); pictures are of the
    convention's size unless one is given. seed: of the wide starts, and of fixtures.
    """
    if suite not in SUITES:
        raise UserError(f"no suite {suite!r}", " | ".join(SUITES), suite)
    rules, stand_in = protocols.libero_protocol(protocol), STAND_IN.get(suite, suite)
    sizes = {} if suite == GROCERY else {"image_size": rules.render, "wrist_size": rules.render}
    launch = environments.launch(GROCERY if suite == GROCERY else "libero", suite=suite, **{**sizes, **simulator})
    with opened(launch) as worker:
        about, every = worker.about, list(worker.call("task_list"))
    chosen = [task.strip() for task in tasks or every]
    if unknown := [task for task in chosen if task not in every]:
        near = _nearest(unknown[0], every)
        raise UserError(f"{suite} has no task {unknown[0]!r}", " | ".join(every), ", ".join(unknown), near and f"did you mean {near!r}?")
    first = WIDE_SEED + 1000 * seed if layout == "wide" else rules.seed + 1000 * seed
    found = protocols.libero_chains(rules, stand_in, chosen, episodes, layout, first)
    executed = rules.actions_per_query if execute is None else execute or None
    return Plan(suite, layout, protocol, max_steps or limit(suite, protocol), executed, {task: sentence_of(task) for task in chosen},
                [({**state, "suite": suite}, task) for state, task in found], len(found) // len(chosen), len(every), launch, about)


def _nearest(name: str, tasks: list[str]) -> str | None:
    """The task whose name, or a word of it, is most like it; None where none is."""
    words = {word: task for task in reversed(tasks) for word in task.split("_")}
    near = difflib.get_close_matches(name, tasks, n=1, cutoff=0.3) or difflib.get_close_matches(name, words, n=1)
    return words.get(near[0], near[0]) if near else None


def limit(suite: str, protocol: str = "openvla-oft") -> int:
    """Steps that an episode may take; the conventions agree but for LeRobot's libero_spatial."""
    return protocols.libero_protocol(protocol).max_steps[STAND_IN.get(suite, suite)]


def sizes_of(store: Store) -> dict[str, int]:
    """Options of a plan: pictures of the size that the policy was trained on; others look a little different."""
    side = lambda camera: store.info["features"][f"observation.images.{camera}"]["shape"][0]
    return {"image_size": side("static"), "wrist_size": side("wrist")}


def placed(store: Store, hint: str = "") -> tuple[dict[tuple[str, str], tuple[str, str]], list[str]]:
    """({(scene, task_id) of an episode: (suite, name) in the benchmark}, why others are not there).

    hint: the suite, where the data do not say theirs. What the folder of the data was called does not matter, nor that sentences lack the
    scene; see data/libero_tasks.py.
    """
    told = {(info.scene, info.task_id): info.task for info in store.episodes}
    if store.meta.get("simulator") == TABLE:
        return {key: (GROCERY, key[1]) for key in told}, []
    has = {(scene, task): [(scene, task)] if SUITE_OF.get(task) == scene else places(task, sentence, suite_named(scene) or hint)
           for (scene, task), sentence in told.items()}
    found = resolve(has)
    return found, [why_not(told[key], has[key]) for key in has if key not in found]


def tasks_of(store: Store) -> tuple[dict[str, list[str]], list[str]]:
    """({suite: names of its tasks that the store has}, why others are not there)."""
    found, unclear = placed(store)
    names: dict[str, set] = {}
    for suite, name in found.values():
        names.setdefault(suite, set()).add(name)
    return {suite: sorted(names[suite]) for suite in sorted(names)}, unclear


def suite_of(store: Store) -> str:
    """The one suite that the store's tasks are of; a UserError where they are of several, or of none."""
    found, unclear = tasks_of(store)
    if len(found) != 1:
        raise UserError(f"{store.folder}: which suite is it?", "tasks of one of LIBERO's suites",
                        ", ".join(found) or "; ".join(unclear[:3]),
                        "import one suite's tasks alone (repro libero import .. --task_names), or name the suite: repro evaluate --suite")
    return next(iter(found))


def recorded(store: Store, hint: str = "") -> dict[str, np.ndarray]:
    """{task, as the benchmark calls it: (T, 7) actions} of one demonstration each, the first that nothing disturbed: only there were just
    these actions executed. hint: see `placed`."""
    return {task: _actions(store, info) for task, info in _undisturbed(store, hint).items()}


def _undisturbed(store: Store, hint: str = "", layout: str = "") -> dict[str, EpisodeInfo]:
    """{task: its first such episode}, of this layout where there is one."""
    found, (at, _) = {}, placed(store, hint)
    for info in sorted(store.episodes, key=lambda info: bool(layout) and _layout(info) != layout):
        _, name = at.get((info.scene, info.task_id), ("", ""))
        if name and name not in found and not info.info.get("disturbed"):
            found[name] = info
    return found


def _layout(info: EpisodeInfo) -> str:
    """That a demonstration began in; LIBERO's own, of people, where its init states were drawn too."""
    return info.info.get("state", {}).get("layout", "official")


def _actions(store: Store, info: EpisodeInfo) -> np.ndarray:
    return store.read(info.index, columns=["action"]).columns["action"]


def demonstrations(store: Store, plan: Plan) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """({task of the plan: (T, 7) actions}, {task: where they begin}) of one undisturbed demonstration each, in the plan's layout: of the
    store, else by the scripted expert where it can; else of the other layout, which says less."""
    stored = {task: info for task, info in _undisturbed(store, plan.suite, plan.layout).items() if task in plan.sentences}
    lacking = [task for task in plan.sentences if task not in stored or _layout(stored[task]) != plan.layout]
    played = by_expert(plan, lacking) if lacking and plan.suite in SCRIPTED else {}
    states = {task: {"layout": _layout(info), **info.info.get("state", {})} for task, info in stored.items()}
    states |= {task: state for task, (_, state) in played.items()}
    scored, began = {_start(state, task) for state, (task,) in plan.chains}, {}
    for task, state in states.items():
        began[task] = {"by": "scripted expert" if task in played else f"episode {stored[task].index}",
                       **{name: state[name] for name in ("layout", "init", "seed") if name in state}}
        if "init" in state:
            began[task]["evaluated too"] = _start(state, task) in scored
    return {task: played[task][0] if task in played else _actions(store, stored[task]) for task in states}, began


def by_expert(plan: Plan, tasks: list[str]) -> dict[str, tuple[np.ndarray, dict]]:
    """{task: (actions (T, 7), state)} that the scripted expert plays, undisturbed, in the plan's layout from the first start that is none
    of the plan's; where all 50 official ones are, from the first. What it fails at is left out."""
    found, scored = {}, {_start(state, task) for state, (task,) in plan.chains}
    with Worker(plan.launch) as worker:
        for task in tasks:
            every = [start(task, plan.suite, plan.layout, 0, number) for number in range(INITS)]
            for state in ([state for state in every if _start(state, task) not in scored] or every)[:OTHER_STARTS]:
                played = worker.ask_and_wait("apply", "repro.sims.libero_expert:record", [state, 0, {"every": 0}])
                if played["success"]:
                    found[task] = np.asarray(played["actions"], np.float32), state
                    break
    return found


def _start(state: dict, task: str) -> tuple:
    """What makes two starts the same: in the wide layout task and simulator seed, in the official one task and init state."""
    layout = state.get("layout", "official")
    return layout, task, int(state.get("seed", 0) if layout == "wide" else state.get("init", 0))


def begun(store: Store, starts: list) -> list[dict]:
    """Those of the starts [(state, tasks)] that a demonstration of the store began from, as far as the store knows (scripted files)."""
    had = {_start(info.info["state"], info.task_id) for info in store.episodes if "init" in info.info.get("state", {})}
    return [state for state, (task, *_) in starts if _start(state, task) in had]


def beside(policy, demonstrations: dict[str, np.ndarray], plan: Plan, seed: int = 0, blind=None,
           began: dict[str, dict] | None = None) -> dict[str, object]:
    """What a score is seen beside. blind: a policy of the same kind trained without pictures; without one its pictures are blanked.

    A task without a demonstration is replayed by standing still; that, and one of another layout (began: see `demonstrations`), is said by
    the floor's name. A UserError where no task has one.
    """
    if not any(task in demonstrations for task in plan.sentences):
        raise UserError("there is no demonstration to replay", f"of a task of {plan.suite}: {', '.join(sorted(plan.sentences)[:3])} ..",
                        ", ".join(sorted(demonstrations)[:3]) or "none", "a store of this suite, other tasks, or no floors (--no-floors)")
    replayed = floors.replay(demonstrations, plan.sentences, began, plan.layout)
    return floors.beside(policy, plan.sentences, replayed, seed, blind, plan.suite in SCRIPTED)


def run(policy, plan: Plan, folder: Path | str, name: str | None = None, simulators: int = 16, workers: int = 0, fresh: bool = False,
        renew: bool = False, log: Callable[[str], None] = print) -> list[Outcome]:
    """The outcomes of a policy on a plan, in its order; what `folder` holds of the same evaluation is kept (chains.evaluate)."""
    workers = workers if plan.suite == GROCERY else max(1, workers)  # LIBERO's packages are not ours
    return chains.evaluate(policy, plan.launch, plan.chains, folder, plan.max_steps, simulators, plan.sentences, plan.execute, name, fresh,
                           workers, renew=renew, log=log)


def summarise(outcomes: list[Outcome], seed: int = 0) -> dict[str, dict]:
    """Metrics: "1/1" (all episodes, Wilson), "task/<name>" (Wilson), "suite" (mean over tasks, 95 % for other episodes *and other tasks*).

    Episodes of a task are alike, so "suite" draws tasks, then episodes within each (two-level bootstrap), and is never narrower than
    Wilson's interval over all episodes. The ablation's tables keep to the tasks that were
    played; results/README.md says which is the headline.
    """
    metrics = {name: value for name, value in chains.summarise(outcomes, seed).items() if name != "average length"}
    tasks = list(dict.fromkeys(o.tasks for o in outcomes))
    rng, rates = np.random.default_rng(seed), [np.array([o.length for o in outcomes if o.tasks == task], float) for task in tasks]
    again = np.array([[rng.choice(rates[t], len(rates[t])).mean() for t in rng.integers(0, len(rates), len(rates))] for _ in range(DRAWS)])
    low, high = np.percentile(again.mean(1), [2.5, 97.5])
    mean = float(np.mean([rate.mean() for rate in rates]))
    floor, roof = wilson(int(sum(rate.sum() for rate in rates)), len(outcomes))
    low, high = min(float(low), floor, mean), max(float(high), roof, mean)
    return {**metrics, "suite": {"value": mean, "n": len(outcomes), "low": low, "high": high}}


def score(scored: dict[str, object], plan: Plan, folder: Path | str, store: Store, system: str = "vggt_vla", seed: int = 0, videos: int = 0,
          simulators: int = 16, workers: int = 0, fresh: bool = False, config: dict | None = None, renew: bool = False,
          log: Callable[[str], None] = print) -> list[dict]:
    """Evaluate every policy on the same starts; outcomes, films (of the first policy) and a run record each, below `folder`. The records,
    each with the successes of all episodes, a digit each, as `outcomes`.

    store: the training data. videos: films of so many successes and as many failures. fresh, renew: see chains.evaluate.
    """
    folder, found = Path(folder), []
    for name, policy in scored.items():
        place = folder / "outcomes" / plan.folder / file_name(name)
        outcomes = run(policy, plan, place, name, simulators, workers, fresh, renew, log)
        if name == next(iter(scored)) and videos:
            film(policy, plan, outcomes, folder / "films" / plan.folder, videos, log)
        rules = {"protocol": plan.followed, "layout": plan.layout, "tasks": list(plan.sentences), "episodes": plan.episodes,
                 "max_steps": plan.max_steps, "execute": plan.execute, "settle_steps": plan.about["settle_steps"], "simulator": plan.about}
        record = run_records.record(
            system, name, benchmark=plan.name, data=store.meta["name"], data_hash=store.hash, seed=seed,
            config={**(config or {}), **rules, "policy": about(policy)}, metrics=summarise(outcomes, seed),
            minutes=minutes(policy, seconds=chains.spent(place)),
            simulator=plan.about["simulator"], renderer=f"{plan.about['renderer']}, {plan.about['assets']}", not_comparable_with=[system])
        found.append({**record, "outcomes": "".join(str(outcome.length) for outcome in outcomes)})
        run_records.save(found[-1], folder / "runs")
    return found


def film(policy, plan: Plan, outcomes: list[Outcome], folder: Path | str, count: int = 2, log: Callable[[str], None] = print) -> list[Path]:
    """Films of the first `count` successes and the first `count` failures, of different tasks where there are: <task>_<episode>_<how>.mp4.

    They are played again, one at a time; where arithmetic in a batch rounded otherwise, one may end otherwise, and its name says how.
    """
    made = []
    for wanted in (True, False):
        ended = [o for o in outcomes if bool(o.length) == wanted]
        first = {o.tasks: o for o in reversed(ended)}  # one a task, then the others
        for outcome in sorted(ended, key=lambda o: (first[o.tasks] is not o, o.chain))[:count]:
            task, = outcome.tasks
            clock.check()
            shots, solved = films.play(policy, plan.launch, plan.chains[outcome.chain], plan.sentences[task], plan.max_steps, plan.execute,
                                       outcome.chain)
            made.append(films.write(Path(folder) / f"{file_name(task)}_{outcome.chain}_{'success' if solved else 'failure'}.mp4", shots))
            log(f"film: {made[-1]}")
    return made


def table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of records of one plan: a row a policy; the suite's success and each task's in %, with intervals."""
    tasks = [name for name in records[0]["metrics"] if name.startswith("task/")]
    brief = [name.removeprefix("task/").removeprefix("pick_up_the_").removesuffix("_and_place_it_in_the_basket").replace("_", " ")
             for name in tasks]
    n = records[0]["metrics"]["suite"]["n"]
    percent = lambda m: f"{100 * m['value']:.0f} ({100 * m['low']:.0f} ... {100 * m['high']:.0f})"
    rows = [[r["variant"], *(percent(r["metrics"][name]) for name in ("suite", *tasks))] for r in records]
    return [records[0]["benchmark"], f"success % (n = {n})", *brief], rows
