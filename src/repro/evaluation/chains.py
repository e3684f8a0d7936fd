"""Closed-loop evaluation under CALVIN's rules: chains of five tasks, 360 steps a task, stop at the first failure.

The rules (mees/calvin, `evaluate_policy.py`): the simulator is reset once a chain; the robot is *not* reset between tasks; success of the
current task is tested after every simulator step; the instruction is the task's validation wording. The policy's chunk is executed open
loop; when a task is achieved the rest of the chunk is dropped and the policy is asked anew with the next instruction.

Many simulators are stepped together and one batched policy call serves all of them. Only frames the policy sees are rendered.
Every finished chain is one line of `<folder>/outcomes.jsonl`; a run that was killed, or stopped by clock.OutOfTime, continues there: chains
that were under way begin again. A chain of length 1 is a plain rollout.
Rates are counts over N chains (an official script divides by N+1).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import numpy as np

from repro import clock, freshness
from repro.intervals import bootstrap, wilson
from repro.machine import UserError
from repro.sims.base import Launch
from repro.sims.rollouts import Group
from repro.sims.worker import Remote


@dataclass(frozen=True)
class Outcome:
    """What happened in one chain. `success` and `steps` have one entry per task attempted: the first failure is the last entry."""

    chain: int
    policy: str
    tasks: tuple[str, ...]
    success: tuple[bool, ...]
    steps: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tasks solved in a row, 0 ... len(tasks)."""
        return sum(self.success)


def evaluate(policy, simulator: Launch | Callable[[], object], chains: list, folder: str | Path, max_steps: int = 360, simulators: int = 32,
             instructions: dict[str, str] | None = None, execute: int | None = None, name: str | None = None, fresh: bool = False,
             workers: int = 0, patience: float = 180.0, renew: bool = False, log: Callable[[str], None] = print) -> list[Outcome]:
    """Outcomes of `policy` on `chains`, in their order.

    policy: `act(observations: list[dict], instructions: list[str]) -> (B, K, 7)` in [-1, 1]; `sees = False` on it asks for no pictures,
    `privileged = True` stands for the simulator's own expert. simulator: how one is started (`sims.base.Launch`), or, without workers, a
    callable that gives one. chains: (initial state, tasks) pairs, all of one length. execute: how many actions of a chunk are run (None:
    all). folder: holds `evaluation.json` (what is evaluated) and `outcomes.jsonl`; a rerun continues. Outcomes of another evaluation there
    (policy, chains, rules or the library's code) are refused; with `renew` they go, with `fresh` those of this one go too. instructions:
    task -> sentence (default: the play table's validation wordings). simulators: stepped together. workers: processes that share them, each
    with its simulator's own interpreter; 0: this process. A worker that dies or gives no answer for `patience` seconds is replaced and its
    chains begin again from their start states.
    """
    if instructions is None:
        from repro.sims.tabletop.language import VALIDATION as instructions
    _check_chains(chains, instructions)
    name = name or getattr(policy, "name", type(policy).__name__)
    used = {task: instructions[task] for _, tasks in chains for task in tasks}
    what = {"policy": name, "identity": identity(policy), "chains": _digest(chains), "n": len(chains), "max_steps": max_steps,
            "execute": execute, "instructions": _digest(used), "code": freshness.code("models", "sims", "evaluation/chains.py")}
    clock.check()
    file = _open_folder(Path(folder), what, fresh, renew, log)
    outcomes = {o.chain: o for o in read_outcomes(file, log)}
    waiting = [i for i in range(len(chains)) if i not in outcomes]
    if outcomes and waiting:
        log(f"{name}: {len(outcomes)} of {len(chains)} chains are done already, continuing")
    earlier, started, slowest, renders = spent(file.parent), time.monotonic(), 0.0, getattr(policy, "sees", True)
    progress = clock.Progress(name, len(chains), "chains", log, before=len(outcomes))
    groups, simulators = _groups(simulator, renders, max_steps, simulators if waiting else 0, workers, patience, log)
    home, seen = {}, {}  # chain -> its group, chain -> what its policy sees
    try:
        while waiting or seen:
            clock.check(slowest)
            round_began = time.monotonic()
            fresh_chains = [{} for _ in groups]
            while waiting and len(home) < simulators:
                index = waiting.pop(0)
                home[index] = min(range(len(groups)), key=lambda g: sum(h == g for h in home.values()))
                fresh_chains[home[index]][index] = (chains[index][0], tuple(chains[index][1]))
            if any(fresh_chains):
                seen |= _everywhere(groups, "begin", fresh_chains)
            order = sorted(seen)
            sentences = [instructions[seen[i]["rollout"].task] for i in order]
            chunks = dict(zip(order, _ask(policy, name, [seen[i] for i in order], sentences, execute), strict=True))
            found = _everywhere(groups, "run", [{i: chunks[i] for i in order if home[i] == g} for g in range(len(groups))])
            seen = {i: answer for i, answer in found.items() if isinstance(answer, dict)}
            ended = [Outcome(i, name, tuple(chains[i][1]), *found[i]) for i in sorted(found.keys() - seen.keys())]
            _append(file, ended, earlier + time.monotonic() - started)
            for outcome in ended:
                outcomes[outcome.chain] = outcome
                del home[outcome.chain]
            progress(len(outcomes), _so_far(outcomes.values()) if outcomes else "none has ended yet")
            slowest = max(slowest, time.monotonic() - round_began)
    finally:
        for group in groups:
            group.close()
    return [outcomes[i] for i in range(len(chains))]


def _groups(simulator, renders: bool, max_steps: int, simulators: int, workers: int, patience: float, log) -> tuple[list, int]:
    """The processes that step simulators, or this one, and how many simulators there are in all."""
    if not workers or not simulators:
        make = simulator.build if isinstance(simulator, Launch) else simulator
        return [Group(make, renders, max_steps)] * bool(simulators), simulators
    if not isinstance(simulator, Launch):
        raise UserError("worker processes need to be told how to start a simulator", "a repro.sims.base.Launch", simulator, "or workers=0")
    simulators = min(simulators, workers) if simulator.one_a_process else simulators
    groups = []
    try:
        for _ in range(min(workers, simulators)):
            groups.append(Remote(simulator, renders, max_steps, patience, log))
    except BaseException:
        for group in groups:
            group.close()
        raise
    return groups, simulators


def _everywhere(groups: list, method: str, work: list[dict]) -> dict:
    """Ask every group that has work, then collect: processes work at the same time."""
    asked = [(group, part) for group, part in zip(groups, work, strict=True) if part]
    for group, part in asked:
        group.ask(method, part)
    return {index: answer for group, _ in asked for index, answer in group.answer().items()}


def _so_far(outcomes: Iterable[Outcome]) -> str:
    """The score of the chains that have ended."""
    lengths = [o.length for o in outcomes]
    alone = all(len(o.tasks) == 1 for o in outcomes)
    return f"success so far {100 * np.mean(lengths):.0f} %" if alone else f"average length so far {np.mean(lengths):.2f}"


def _append(file: Path, ended: list[Outcome], seconds: float) -> None:
    """One line each, on the disk before anything else happens; with the seconds that the evaluation has taken so far, in all sessions."""
    if not ended:
        return
    with open(file, "a") as lines:
        lines.writelines(json.dumps({**asdict(outcome), "seconds": round(seconds, 1)}) + "\n" for outcome in ended)
        lines.flush()
        os.fsync(lines.fileno())


def _check_chains(chains: list, instructions: dict[str, str]) -> None:
    lengths = sorted({len(tasks) for _, tasks in chains})
    if len(lengths) != 1 or lengths[0] == 0:
        raise UserError("chains must be there and be of one length", "one length", lengths or "no chain", "make chains of one length")
    missing = sorted({task for _, tasks in chains for task in tasks} - set(instructions))
    if missing:
        raise UserError("tasks without an instruction", "a sentence for each task", ", ".join(missing), "add them to `instructions`")


def _ask(policy, name: str, observations: list[dict], sentences: list[str], execute: int | None) -> np.ndarray | list[int]:
    """One batched call, checked: a policy that answers nonsense fails here, not in the simulator. Of the expert, its seed."""
    if getattr(policy, "privileged", False):
        return [policy.seed] * len(observations)
    actions = np.asarray(policy.act(observations, sentences), np.float32)
    if actions.ndim != 3 or actions.shape[0] != len(observations) or actions.shape[1] == 0 or actions.shape[2] != 7:
        raise UserError(f"policy {name} gave actions of a wrong shape", f"({len(observations)}, K, 7)", actions.shape, "see evaluate()")
    if not np.isfinite(actions).all():
        raise UserError(f"policy {name} gave actions that are not finite", "numbers in [-1, 1]", "NaN or infinite", "check its weights")
    return actions[:, :execute]


def _plain(value):
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return asdict(value) if is_dataclass(value) else str(value)


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def identity(policy) -> str:
    """What makes two policies the same: weights and config of a model, fields of a floor. Keeps a rerun from mixing two checkpoints."""
    if hasattr(policy, "state_dict"):
        digest = hashlib.sha256(_digest(getattr(policy, "config", None)).encode())
        for key, value in sorted(policy.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(dtype=_bytes()).numpy().tobytes())
        return digest.hexdigest()[:16]
    inner = getattr(policy, "policy", None)
    fields = {k: v for k, v in sorted(vars(policy).items()) if k != "policy" and not k.startswith("_") and not callable(v)}
    return _digest([type(policy).__name__, fields, identity(inner) if inner is not None else ""])


def _bytes():
    import torch
    return torch.uint8


def _open_folder(folder: Path, what: dict, fresh: bool, renew: bool, log) -> Path:
    """Path of outcomes.jsonl in a folder that belongs to this evaluation, or a UserError that names what differs."""
    about, file = folder / "evaluation.json", folder / "outcomes.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    other = about.exists() and json.loads(about.read_text()) != what
    if (fresh or renew and other) and (about.exists() or file.exists()):
        log(f"{folder}: starting anew, earlier outcomes are removed")
        file.unlink(missing_ok=True)
        about.unlink(missing_ok=True)
    if about.exists():
        found = json.loads(about.read_text())
        if found != what:
            differs = [k for k in what if found.get(k) != what[k]]
            raise UserError(f"{folder} holds outcomes of another evaluation", {k: what[k] for k in differs},
                            {k: found.get(k) for k in differs},
                            "choose another folder (--out), or throw those outcomes away (--fresh; fresh=True)")
    elif file.exists():
        raise UserError(f"{file} has no evaluation.json beside it", "both files, or none", "outcomes alone", "remove it, or --fresh")
    else:
        freshness.write(about, what)
    file.touch()
    return file


def read_outcomes(file: str | Path, log=print) -> list[Outcome]:
    """Outcomes of a JSONL file. A last line torn by a kill is cut off and said; any other bad line is a UserError."""
    file = Path(file)
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        log(f"{file}: the last line was torn by a kill; it is dropped and its chain runs again")
        os.truncate(file, len(whole))
    found = []
    for number, line in enumerate(whole.decode().splitlines(), 1):
        try:
            row = json.loads(line)
            found.append(Outcome(row["chain"], row["policy"], *(tuple(row[k]) for k in ("tasks", "success", "steps"))))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{file}, line {number} is not an outcome", "chain, policy, tasks, success, steps", line[:80],
                            "remove the line; its chain runs again") from error
    return found


def spent(folder: Path | str) -> float:
    """Seconds that the evaluation in this folder has taken, over all its sessions; 0 where none is told."""
    file = Path(folder) / "outcomes.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return float(json.loads(lines[-1]).get("seconds", 0)) if lines else 0.0


# ---- what the outcomes say -----------------------------------------------------------------------------------------------------

def _rate(k: int, n: int) -> dict:
    low, high = wilson(k, n)
    return {"value": k / n, "n": n, "low": low, "high": high}


def _mean(values: np.ndarray, bounds: tuple[float, float], seed: int) -> dict:
    low, high = bootstrap(values, bounds, seed)
    return {"value": float(values.mean()), "n": len(values), "low": low, "high": high}


def summarise(outcomes: list[Outcome], seed: int = 0) -> dict[str, dict]:
    """Metrics of a run record: "1/5" ... "5/5" (Wilson), "average length" (bootstrap over chains), "task/<name>" per attempt (Wilson)."""
    long, lengths = len(outcomes[0].tasks), np.array([o.length for o in outcomes])
    metrics = {f"{k}/{long}": _rate(int((lengths >= k).sum()), len(lengths)) for k in range(1, long + 1)}
    metrics["average length"] = _mean(lengths, (0, long), seed)
    tried = [(task, ok) for o in outcomes for task, ok in zip(o.tasks, o.success, strict=False)]
    for task in sorted({task for task, _ in tried}):
        results = [ok for t, ok in tried if t == task]
        metrics[f"task/{task}"] = _rate(sum(results), len(results))
    return metrics


def compare(ours: list[Outcome], theirs: list[Outcome], seed: int = 0) -> dict[str, dict]:
    """Differences (ours - theirs) over the *same* chains: paired bootstrap of the rates (as shares) and of the average length."""
    if [(o.chain, o.tasks) for o in ours] != [(o.chain, o.tasks) for o in theirs]:
        raise UserError("two policies can be compared over the same chains only", [o.chain for o in ours][:5],
                        [o.chain for o in theirs][:5], "evaluate both on one list of chains")
    long = len(ours[0].tasks)
    a, b = (np.array([o.length for o in side]) for side in (ours, theirs))
    metrics = {f"difference {k}/{long}": _mean((a >= k).astype(float) - (b >= k), (-1, 1), seed) for k in range(1, long + 1)}
    return {**metrics, "difference average length": _mean((a - b).astype(float), (-long, long), seed)}
