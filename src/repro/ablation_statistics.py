"""What the ablation's records say: means over seeds, paired differences to the baseline, and their intervals.

    records = load("results/cpu/runs/ablation")
    by_row = lengths(records, chain_benchmarks(records)[0])                # {row: {seed: tasks solved in a row}}
    gain = difference(by_row["gaze"], by_row["baseline"], (-5, 5))

Chains: each seed has start states of its own, the same for all rows. So the means (or paired differences) of the seeds are independent, and
their interval is Student's, S - 1 degrees of freedom; never narrower than what the start states alone leave open. With one seed there is an
interval of start states, and none of a difference: what other seeds would have given is not known.
Attention, and tasks on the way: frames and start states are the same for all seeds. There the half-width is the root of the sum of two
squares: Student's over the means of the seeds, and Student's over the means of the tasks (or start states). What is left beside these two
is counted in both, so that such an interval is rather too wide.
The one comparison that counts: gaze minus baseline, average length, evaluation scene, of the seeds after the first, whose numbers were seen
before it was named. The others are a look around, each with an interval of its own that knows nothing of how many there are.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from repro import run_records, seeds
from repro.evaluation import floors
from repro.experiments import ROWS
from repro.intervals import bootstrap, t95
from repro.machine import UserError
from repro.sims.tabletop import language, tasks
from repro.training.logs import stops_early

ATTENTION, OFFLINE, ON_THE_WAY = "attention on held-out frames", "offline action error on held-out episodes", "single tasks on the way"
REBUILT = "reconstruction of held-out targets"
MASS = "attention mass in the gaze box"
GAIN = "attention mass, gaze box minus another episode's box"
TASK_GAIN = "attention mass, gaze box minus the same task's box elsewhere"
OWN = (MASS, "pointing game (5 of 200 px) in the gaze box", "equal-area IoU with the gaze box")
LOOKED = (*OWN, "attention mass, gaze box minus", "pointing game (5 of 200 px), gaze box minus", "equal-area IoU, gaze box minus",
          "attention entropy", "jump rate of the map (over", "jump rate, map minus random order")  # beginnings of what is kept by frame
BASELINE = "baseline"
PAPER_GAIN = 0.49  # average length on CALVIN ABC->D, reconstruction of the gaze region minus none: Table 2, 3.85 - 3.36


def load(folder: Path | str) -> list[dict]:
    """The records of `<profile>/runs/ablation`, of the latest settings only: others are older tables."""
    return latest(run_records.load_all(folder) if Path(folder).is_dir() else [])


def records_of(work: Path) -> list[dict]:
    """Those of the runs of a work folder that are done, of the latest settings only."""
    kept = work / "runs" / "ablation"
    return latest(seeds.named(sorted((work / "ablation").glob("*/done.json")), lambda place: kept))


def latest(found: list[dict]) -> list[dict]:
    """Those made with the settings of the newest; of what was done twice the newer."""
    newest = max(found, key=lambda record: record["created"])["config"]["asked"] if found else ""
    of = {}
    for record in sorted((one for one in found if one["config"]["asked"] == newest), key=lambda one: one["created"]):
        of[record["variant"], record["seed"], record["benchmark"], record["config"].get("step")] = record
    return [record for record in found if any(record is kept for kept in of.values())]


def variants(records: Iterable[dict]) -> list[str]:
    """Names in the order of a table: rows, each with its wrong boxes after it, then floors."""
    seen = {record["variant"]: (record["config"]["row"], record["config"]["corrupt"]) for record in records}
    order = list(ROWS)
    return sorted(seen, key=lambda name: (order.index(seen[name][0]) if seen[name][0] in order else 99, seen[name][1]))


def is_floor(records: Iterable[dict], variant: str) -> bool:
    return any(record["variant"] == variant and record["config"]["row"] not in ROWS for record in records)


def lengths(records: Iterable[dict], benchmark: str, step: int | None = None) -> dict[str, dict[int, np.ndarray]]:
    """{variant: {seed: tasks solved in a row, (n,)}}. Rows of a seed are paired: start states that are known to differ are an error."""
    records = list(records)
    for seed in {r["seed"] for r in records}:
        begun = {r["config"]["starts"]: r["variant"] for r in records
                 if (r["seed"], r["benchmark"], r["config"].get("step")) == (seed, benchmark, step) and "starts" in r["config"]}
        if len(begun) > 1:
            raise UserError(f"rows of seed {seed} began in different start states, so they cannot be paired", benchmark,
                            ", ".join(f"{name}: {key}" for key, name in begun.items()), "do these rows again, by the same commit")
    return _by_seed((r for r in records if r["benchmark"] == benchmark and r["config"].get("step") == step),
                    lambda record: np.array([int(digit) for digit in record["outcomes"]], float))


def frames(records: Iterable[dict], name: str = GAIN, benchmark: str = ATTENTION, step: int | None = None
           ) -> dict[str, dict[int, np.ndarray]]:
    """{variant: {seed: the number's mean in each task}}. Episodes of a task show the same thing, often at the same place, so tasks are
    counted, not episodes."""
    def by_task(record: dict) -> np.ndarray:
        kept = record["frames"]["jumps"] if name.startswith("jump rate") else record["frames"]
        tasks, values = np.array(kept["task"]), np.array([np.nan if x is None else x for x in kept[name]])
        means = [values[tasks == task] for task in np.unique(tasks)]
        return np.array([part[~np.isnan(part)].mean() for part in means if not np.isnan(part).all()])
    return _by_seed((r for r in records if r["benchmark"] == benchmark and r["config"].get("step") == step), by_task)


def _by_seed(records: Iterable[dict], values) -> dict[str, dict[int, np.ndarray]]:
    found = {}
    for record in records:
        found.setdefault(record["variant"], {})[record["seed"]] = values(record)
    return {variant: dict(sorted(seeds.items())) for variant, seeds in found.items()}


def of_these_models(values: np.ndarray, bounds: tuple[float, float]) -> tuple[float, float]:
    """95 % interval of the mean of (seeds, start states) for these very models: start states alone are drawn anew, within each seed. Of
    other seeds it says nothing."""
    values = np.atleast_2d(np.asarray(values, float))
    apart = values - values.mean(1, keepdims=True)
    if not apart.any():  # all start states of a seed came out alike: what is still possible
        return bootstrap(np.full(values.size, values.mean()), bounds)
    low, high = bootstrap(apart.ravel())
    return tuple(float(x) for x in np.clip([values.mean() + low, values.mean() + high], *bounds))


def nested(values: np.ndarray, bounds: tuple[float, float]) -> dict:
    """Metric of (seeds, start states of each seed's own): the mean over all and its 95 % interval; n counts all start states."""
    values = np.atleast_2d(np.asarray(values, float))
    S, mean = len(values), float(values.mean())
    low, high = bootstrap(values.ravel(), bounds)
    if S > 1:
        half = t95(S - 1) * values.mean(1).std(ddof=1) / S**0.5
        low, high = min(low, mean - half), max(high, mean + half)
    return _metric(mean, low, high, bounds, values.size, S)


def crossed(values: np.ndarray, bounds: tuple[float, float]) -> dict:
    """Metric of (seeds, start states or tasks that all seeds share): the mean, and the 95 % interval over both; n counts the latter."""
    values = np.atleast_2d(np.asarray(values, float))
    (S, n), mean = values.shape, float(values.mean())
    if np.ptp(values) == 0:
        low, high = bootstrap(values[0], bounds)
    else:
        student = lambda means: t95(len(means) - 1) * means.std(ddof=1) / len(means) ** 0.5 if len(means) > 1 else 0.0
        half = float(np.hypot(student(values.mean(1)), student(values.mean(0))))
        low, high = mean - half, mean + half
    return _metric(mean, low, high, bounds, n, S)


def _metric(mean: float, low: float, high: float, bounds: tuple[float, float], n: int, seeds: int) -> dict:
    low, high = np.clip([low, high], *bounds)
    return {"value": mean, "n": n, "low": min(float(low), mean), "high": max(float(high), mean), "seeds": seeds}


def mean(by_seed: dict[int, np.ndarray], bounds: tuple[float, float], shared: bool = False) -> dict:
    """Over seeds; shared: they saw the same start states or frames."""
    return (crossed if shared else nested)(np.stack(list(by_seed.values())), bounds)


def difference(ours: dict[int, np.ndarray], theirs: dict[int, np.ndarray], bounds: tuple[float, float], shared: bool = False
               ) -> dict | None:
    """Ours minus theirs over the seeds that both have, paired, or None; `of`: these seeds, `positive`: in how many it is; where they do not
    share start states `alone`: (low, high) of these very models."""
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    apart = np.stack([ours[seed] - theirs[seed] for seed in both])
    told = {"positive": int((apart.mean(1) > 0).sum()), "of": both}
    return {**crossed(apart, bounds), **told} if shared else {**nested(apart, bounds), **told, "alone": of_these_models(apart, bounds)}


def seeds_for(differences: np.ndarray, gain: float, power: float = 0.8) -> int | None:
    """How many seeds an experiment needs that shows a true mean difference of `gain` > 0 (its interval above 0) in a share `power` of its
    repetitions, if differences of seeds spread normally and as these (S,) do; simulated. None of a single one, or of ones that agree."""
    if len(differences) < 2 or not (spread := float(np.std(differences, ddof=1))):
        return None
    drawn = np.random.default_rng(0).normal(gain, spread, (4000, 1000))
    shown = lambda n: (drawn[:, :n].mean(1) > t95(n - 1) * drawn[:, :n].std(1, ddof=1) / n**0.5).mean()
    return next((n for n in range(2, drawn.shape[1] + 1) if shown(n) >= power), None)


def chain_benchmarks(records: Iterable[dict]) -> list[str]:
    """Those of chains of five; the evaluation scene, which no row was trained in, first."""
    names = {record["benchmark"] for record in records if "average length" in record["metrics"]}
    trained_in = lambda name: name.split("->")[0].endswith(name.split("->")[1].split(",")[0])
    return sorted(names, key=lambda name: (trained_in(name), name))


def early_stop(learning: dict) -> dict | None:
    """Where stopping by the held-out action loss would have stopped: its least value so far measured; share 1: never."""
    if not learning["held_out"]:
        return None
    at = int(np.argmin(learning["held_out"]))
    return {"step": learning["held_out_step"][at], "share": learning["held_out_step"][at] / learning["step"][-1],
            "loss": learning["held_out"][at], "end": learning["held_out"][-1]}


def patient_stop(learning: dict, patience: int = 2) -> float | None:
    """Share of the steps after which `train.patience` ends such a run (training/logs.stops_early); 1: it does not. None: not measured."""
    lines = [{"step": step, "held_out": loss} for step, loss in zip(learning["held_out_step"], learning["held_out"], strict=True)]
    ends = (lines[k]["step"] for k in range(len(lines)) if stops_early(lines[: k + 1], patience))
    return next(ends, learning["step"][-1]) / learning["step"][-1] if lines else None


SHUFFLED, TURNED = "gaze, shuffled instruction", ("slider", "drawer", "lightbulb", "led")  # categories of two tasks that undo each other


def told_instead(records: Iterable[dict], benchmark: str) -> list[dict]:
    """What became of each task under the shuffled instruction, one entry a seed and task: {"seed", "task", "told": the task whose sentence
    was given, "opposite": of the same thing?, "solved", "attempts", "right": (solved, attempts) of the same model told the task itself}."""
    mine = [r for r in records if r["benchmark"] == benchmark]
    of = lambda record: {name[5:]: (round(rate["value"] * rate["n"]), rate["n"])
                         for name, rate in record["metrics"].items() if name.startswith("task/")}
    known = sorted({task for r in mine for task in of(r) if task in language.VALIDATION})
    sentence, found = {task: language.VALIDATION[task] for task in known}, []
    right = {r["seed"]: of(r) for r in mine if r["variant"] == "gaze"}
    for record in sorted((r for r in mine if r["variant"] == SHUFFLED), key=lambda r: r["seed"]):
        said = floors.ShuffledInstruction(None, tuple(sorted(set(sentence.values()))), record["seed"]).other()
        for task, (solved, tried) in of(record).items():
            other = next(name for name in known if sentence[name] == said[sentence[task]])
            found.append({"seed": record["seed"], "task": task, "told": other, "solved": solved, "attempts": tried,
                          "opposite": tasks.CATEGORY[task] == tasks.CATEGORY[other] in TURNED,
                          "right": right.get(record["seed"], {}).get(task, (0, 0))})
    return found


def on_the_way(records: list[dict]) -> list[dict]:
    """One entry per step at which runs were looked at: {"step", "epochs", "success": {variant: metric}, "attention": {variant: metric},
    "success gain", "attention gain": paired difference gaze - baseline or None}."""
    marks = sorted({(r["config"]["step"], r["config"]["epochs"], r["benchmark"]) for r in records if "step" in r["config"]})
    found = []
    for step, epochs, benchmark in marks:
        success, seen = lengths(records, benchmark, step), frames(records, GAIN, benchmark, step)
        gain = lambda by_row: difference(by_row["gaze"], by_row[BASELINE], (-1, 1), True) if {"gaze", BASELINE} <= by_row.keys() else None
        found.append({"step": step, "epochs": epochs, "success": {name: mean(seeds, (0, 1), True) for name, seeds in success.items()},
                      "attention": {name: mean(seeds, (-1, 1), True) for name, seeds in seen.items()},
                      "success gain": gain(success), "attention gain": gain(seen)})
    return found
