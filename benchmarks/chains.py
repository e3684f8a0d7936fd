"""Chain evaluation: many simulators with one batched policy call, against one simulator with batch 1, in one run.

`python benchmarks/chains.py [--model FOLDER] [--chains 32] [--max-steps 360] [--json FILE]`. Target: >= 4 times the chains a second
(starting the simulator processes counts), >= 99 % of the outcomes equal: batched arithmetic rounds differently, so the differing chains
are listed. Without --model the policy is a tiny ReconVLA with random weights: right for speed, but it solves next to nothing, so give a
trained one to judge the outcomes.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

from repro import benchmark
from repro.evaluation.chains import evaluate
from repro.sims.base import tabletop
from repro.sims.tabletop.language import TRAIN, VALIDATION
from repro.sims.tabletop.tasks import chains


def policy(folder: str | None, threads: int):
    import torch  # here: the simulator processes import this file too, and need none of it

    from repro.evaluation.policies import load_policy
    from repro.models.reconvla import PRESETS, ReconVLA
    torch.set_num_threads(threads)
    if folder:
        return load_policy(folder)
    torch.manual_seed(0)
    words = [sentence for sentences in TRAIN.values() for sentence in sentences]
    trains = replace(PRESETS["tiny"], freeze_vision=False, cache_features=False, vae="pixels")  # nothing random is frozen
    return ReconVLA.build(trains, {"observation.state": {"mean": [0.0] * 15, "std": [1.0] * 15}}, instructions=words)


def timed(model, plan, simulators: int, workers: int, max_steps: int):
    """(outcomes, seconds) with this many simulators; the first query is made before the clock starts."""
    with tempfile.TemporaryDirectory() as folder:
        evaluate(model, tabletop(), plan[:simulators], Path(folder) / "warm", 5, simulators, VALIDATION, log=lambda line: None)
        started = time.perf_counter()
        outcomes = evaluate(model, tabletop(), plan, Path(folder) / "timed", max_steps, simulators, VALIDATION, workers=workers,
                            log=lambda line: None)
        return outcomes, time.perf_counter() - started


def main():
    parser = benchmark.options(__doc__)
    parser.add_argument("--model", help="folder of a trained policy")
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--length", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=360)
    parser.add_argument("--simulators", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2, help="simulator processes of the batched run")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    a = parser.parse_args()
    model, plan = policy(a.model, a.threads), chains(a.chains, length=a.length, seed=0)
    many, fast = timed(model, plan, a.simulators, a.workers, a.max_steps)
    one, slow = timed(model, plan, 1, 0, a.max_steps)
    differ = [o.chain for o, p in zip(one, many, strict=True) if (o.success, o.steps) != (p.success, p.steps)]
    found = {"chains": len(plan), "length": a.length, "max_steps": a.max_steps, "simulators": a.simulators, "workers": a.workers,
             "model": "/".join(Path(a.model).parts[-2:]) if a.model else "random weights",
             "threads": a.threads, "batched_chains_per_s": len(plan) / fast, "single_chains_per_s": len(plan) / slow,
             "ratio": slow / fast, "equal_share": 1 - len(differ) / len(plan), "differing_chains": differ,
             "tasks_solved": sum(o.length for o in one)}
    benchmark.record(found, a.json)
    print(f"{'OK' if found['ratio'] >= 4 else 'BELOW TARGET'}: {found['ratio']:.1f} x the chains a second (target 4); "
          f"{'OK' if found['equal_share'] >= 0.99 else 'BELOW TARGET'}: {100 * found['equal_share']:.1f} % of outcomes equal (target 99)")


if __name__ == "__main__":
    main()
