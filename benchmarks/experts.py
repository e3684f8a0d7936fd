"""The scripted experts in the real simulators, under the official rules.

`python benchmarks/experts.py [--calvin 100] [--inits 10] [--json FILE]`; needs `repro sims setup calvin | libero`, CALVIN_ROOT and
LIBERO's assets; what is missing is left out and said. Targets: CALVIN scene D, first 100 official sequences: average length >= 4.5; LIBERO,
10 official init states a task: libero_object >= 98 %, libero_spatial >= 90 %.
"""

import tempfile
import time

from repro import benchmark
from repro.evaluation import floors, protocols
from repro.evaluation.chains import evaluate, summarise
from repro.machine import UserError
from repro.sims import environments
from repro.sims.worker import Worker


def scored(launch, chains: list, max_steps: int) -> dict:
    """Metrics of the expert with 2 workers, what the simulator is, and seconds."""
    sentences = {task: task for _, tasks in chains for task in tasks}
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = evaluate(floors.ExpertPolicy(), launch, chains, folder, max_steps, 2, sentences, workers=2)
    with Worker(launch) as worker:
        about = worker.about
    return {"metrics": summarise(outcomes), "seconds": time.perf_counter() - begun, "simulator": about}


def main() -> None:
    parser = benchmark.options(__doc__)
    parser.add_argument("--calvin", type=int, default=100, help="official sequences; 0: leave CALVIN out")
    parser.add_argument("--inits", type=int, default=10, help="official init states a LIBERO task; 0: leave LIBERO out")
    a = parser.parse_args()
    found = {}
    if a.calvin:
        try:
            chains = protocols.calvin_chains(a.calvin)
            found["calvin D"] = scored(environments.launch("calvin", scene="D"), chains, protocols.CALVIN.max_steps)
        except UserError as error:
            print(f"CALVIN is left out: {error}")
    for suite in ("libero_object", "libero_spatial") if a.inits else ():
        try:
            launch = environments.launch("libero", suite=suite)
            with Worker(launch) as worker:
                names = worker.call("task_list")
            chains = [({"suite": suite, "task": task, "init": i, "seed": i}, (task,)) for task in names for i in range(a.inits)]
            found[suite] = scored(launch, chains, 280)
        except UserError as error:
            print(f"{suite} is left out: {error}")
    for name, target in (("calvin D", 4.5), ("libero_object", 0.98), ("libero_spatial", 0.90)):
        if name in found:
            m = found[name]["metrics"]["average length" if name == "calvin D" else "1/1"]
            print(f"{'OK' if m['value'] >= target else 'BELOW TARGET'}: {name}: {m['value']:.3f} (n = {m['n']}), target {target}")
    benchmark.record(found, a.json, show=False)


if __name__ == "__main__":
    main()
