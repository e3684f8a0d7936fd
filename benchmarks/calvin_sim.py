"""CALVIN's own simulator: chain evaluation with pictures on demand in worker processes, against the official loop, in one run.

`python benchmarks/calvin_sim.py [--chains 6] [--json FILE]`; needs `repro sims setup calvin` and CALVIN_ROOT. The official loop is
`env.step` with both cameras at each of a chain's steps and the oracle after each (mees/calvin, evaluate_policy.py), in one process
without the policy's own time. Ours is `evaluate` with 2 workers; the policy is given a picture for every chunk of 5 and replays the
expert's actions, so that both do the very same ones. Target: >= 6 times the environment steps a second, the same outcomes.
"""

import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from repro import benchmark
from repro.evaluation.chains import evaluate
from repro.evaluation.protocols import calvin_chains
from repro.sims import environments
from repro.sims.worker import Worker

MAX_STEPS = 360


def with_expert(simulator, state: dict, tasks: list, seed: int) -> list[np.ndarray]:
    """In the worker: the expert's actions, one array (T, 7) a task, up to the first failure."""
    simulator.reset(state, render=False)
    done = []
    for position, task in enumerate(tasks):
        simulator.start_task()
        expert, actions = simulator.expert(task, np.random.default_rng([seed, position])), []
        while len(actions) < MAX_STEPS and not (actions and simulator.done(task)):
            actions.append(np.float32(expert.act()))
            simulator.step(actions[-1], render=False)
        done.append(np.array(actions))
        if not simulator.done(task):
            break
    return done


def official(simulator, state: dict, tasks: list, actions: list) -> dict:
    """In the worker: the official loop over the same actions. Success and steps per task, and the seconds of stepping."""
    env, success, steps, seconds = simulator.env, [], [], 0.0
    simulator.reset(state, render=False)
    env.cameras = list(simulator.cameras.values())
    try:
        for task, part in zip(tasks, actions, strict=False):
            start, solved, taken = env.get_info(), False, 0
            begun = time.perf_counter()
            for action in part:
                action = np.clip(action.astype(np.float64), -1, 1)
                action[6] = 1 if action[6] > 0 else -1
                info = env.step(action)[3]
                taken += 1
                if simulator.oracle.get_task_info_for_set(start, info, {task}):
                    solved = True
                    break
            seconds += time.perf_counter() - begun
            success.append(solved)
            steps.append(taken)
            if not solved:
                break
    finally:
        env.cameras = []
    return {"success": success, "steps": steps, "seconds": seconds}


@dataclass
class Recorded:
    """Replays the recorded actions of each chain in chunks of 5, and is given a picture for each chunk as a policy is."""

    actions: list
    name: str = "recorded actions"

    def act(self, observations, instructions):
        chunks = []
        for seen in observations:
            assert seen["observation.images.static"].shape == (200, 200, 3)
            where = seen["rollout"]
            part = self.actions[where.chain][where.position][where.step : where.step + 5]
            chunks.append(np.concatenate([part, np.tile(np.float32([0, 0, 0, 0, 0, 0, 1]), (5 - len(part), 1))]))
        return np.array(chunks, np.float32)


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    launch = replace(environments.launch("calvin", scene="D"), path=(str(Path(__file__).resolve().parent),))
    chains = calvin_chains(a.chains)
    with Worker(launch) as worker:
        about = worker.about
        run = lambda function, *arguments: worker.ask_and_wait("apply", f"calvin_sim:{function}", list(arguments))
        actions = [run("with_expert", state, list(tasks), i) for i, (state, tasks) in enumerate(chains)]
        theirs = [run("official", state, list(tasks), part) for (state, tasks), part in zip(chains, actions, strict=True)]
    sentences = {task: task for _, tasks in chains for task in tasks}
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        ours = evaluate(Recorded(actions), launch, chains, folder, MAX_STEPS, a.workers, sentences, workers=a.workers, log=lambda _: None)
        wall = time.perf_counter() - begun
    steps = sum(sum(o.steps) for o in ours)
    equal = [list(o.success) == t["success"] and list(o.steps) == t["steps"] for o, t in zip(ours, theirs, strict=True)]
    rate = sum(sum(t["steps"]) for t in theirs) / sum(t["seconds"] for t in theirs)
    found = {"chains": a.chains, "workers": a.workers, "steps": steps, "tasks_solved": sum(o.length for o in ours),
             "official_steps_per_s": rate, "ours_steps_per_s": steps / wall, "ratio": steps / wall / rate, "equal_outcomes": sum(equal),
             "renderer": about["renderer"], "checkout": about["checkout"], "versions": about["versions"], "first": asdict(ours[0])}
    benchmark.record(found, a.json)
    print(f"{'OK' if found['ratio'] >= 6 else 'BELOW TARGET'}: {found['ratio']:.1f} x the environment steps a second, start of the workers "
          f"and resets counted (target 6); {sum(equal)} of {a.chains} chains with equal outcomes")


if __name__ == "__main__":
    main()
