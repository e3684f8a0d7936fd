"""What the ablation says: means over seeds, paired differences to the baseline, intervals, and their tables. From records alone.

    records = load("results/cpu/runs/ablation")
    print(results.markdown(*chain_table(records, benchmark)))

Chains: each seed has start states of its own, the same for all rows. So the means (or paired differences) of the seeds are independent, and
their interval is Student's, S - 1 degrees of freedom; never narrower than what the start states alone leave open. With one seed there is an
interval of start states, and none of a difference: what other seeds would have given is not known.
Attention, and tasks on the way: frames and start states are the same for all seeds. There an interval draws seeds and, independently of
them, tasks (or start states), both with replacement, and averages over all pairs drawn; the spread of both is widened to Student's.
The one comparison that counts: gaze minus baseline, average length, evaluation scene, of the seeds after the first, whose numbers were seen
before it was named. The others are a look around, each with an interval of its own that knows nothing of how many there are.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from repro import attention, results, run_records, seeds
from repro.experiments import CONTROL, LONG, REBUILT_APART, REBUILT_OWN, ROWS, UNTAUGHT
from repro.intervals import bootstrap, over_seeds, t95, wilson

ATTENTION, OFFLINE, ON_THE_WAY = "attention on held-out frames", "offline action error on held-out episodes", "single tasks on the way"
REBUILT = "reconstruction of held-out targets"
MASS = "attention mass in the gaze box"
GAIN = "attention mass, gaze box minus another episode's box"
TASK_GAIN = "attention mass, gaze box minus the same task's box elsewhere"
OWN = (MASS, "pointing game (5 of 200 px) in the gaze box", "equal-area IoU with the gaze box")
LOOKED = (*OWN, "attention mass, gaze box minus", "pointing game (5 of 200 px), gaze box minus", "equal-area IoU, gaze box minus",
          "attention entropy", "jump rate of the map (over", "jump rate, map minus random order")  # beginnings of what is kept by frame
BASELINE = "baseline"


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
    """{variant: {seed: tasks solved in a row, (n,)}}."""
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


# ---- intervals -----------------------------------------------------------------------------------------------------------------

def nested(values: np.ndarray, bounds: tuple[float, float]) -> dict:
    """Metric of (seeds, start states of each seed's own): the mean over all and its 95 % interval; n counts all start states."""
    values = np.atleast_2d(np.asarray(values, float))
    S, mean = len(values), float(values.mean())
    low, high = bootstrap(values.ravel(), bounds)
    if S > 1:
        half = t95(S - 1) * values.mean(1).std(ddof=1) / S**0.5
        low, high = min(low, mean - half), max(high, mean + half)
    return _metric(mean, low, high, bounds, values.size, S)


def crossed(values: np.ndarray, bounds: tuple[float, float], draws: int = 4000, seed: int = 0) -> dict:
    """Metric of (seeds, start states or tasks that all seeds share): the mean, and the 95 % interval over both; n counts the latter."""
    values = np.atleast_2d(np.asarray(values, float))
    (S, n), mean = values.shape, float(values.mean())
    if np.ptp(values) == 0:
        low, high = bootstrap(values[0], bounds)
    else:
        rng = np.random.default_rng(seed)
        widened = lambda size: (size / (size - 1)) ** 0.5 * t95(size - 1) / 1.96 if size > 1 else 1.0
        rows, columns = (1 / size + (rng.multinomial(size, np.full(size, 1 / size), draws) - 1) / size * widened(size) for size in (S, n))
        low, high = np.percentile(((rows @ values) * columns).sum(1), [2.5, 97.5])
    return _metric(mean, low, high, bounds, n, S)


def _metric(mean: float, low: float, high: float, bounds: tuple[float, float], n: int, seeds: int) -> dict:
    low, high = np.clip([low, high], *bounds)
    return {"value": mean, "n": n, "low": min(float(low), mean), "high": max(float(high), mean), "seeds": seeds}


def mean(by_seed: dict[int, np.ndarray], bounds: tuple[float, float], shared: bool = False) -> dict:
    """Over seeds; shared: they saw the same start states or frames."""
    return (crossed if shared else nested)(np.stack(list(by_seed.values())), bounds)


def difference(ours: dict[int, np.ndarray], theirs: dict[int, np.ndarray], bounds: tuple[float, float], shared: bool = False
               ) -> dict | None:
    """Ours minus theirs over the seeds that both have, paired, or None; `positive`: the number of seeds in which it is."""
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    apart = np.stack([ours[seed] - theirs[seed] for seed in both])
    return {**(crossed if shared else nested)(apart, bounds), "positive": int((apart.mean(1) > 0).sum())}


# ---- tables --------------------------------------------------------------------------------------------------------------------

Table = tuple[list[str], list[list[str]]]


def chain_benchmarks(records: Iterable[dict]) -> list[str]:
    """Those of chains of five; the evaluation scene, which no row was trained in, first."""
    names = {record["benchmark"] for record in records if "average length" in record["metrics"]}
    trained_in = lambda name: name.split("->")[0].endswith(name.split("->")[1].split(",")[0])
    return sorted(names, key=lambda name: (trained_in(name), name))


def _against(found: dict, variant: str, bounds: tuple[float, float], shared: bool = False, baseline: str = BASELINE) -> list[str]:
    """Cells "difference" and "seeds in which it is positive"; none of a row that began elsewhere than the baseline, or went on longer."""
    if variant == baseline or baseline not in found or (variant in (*UNTAUGHT, *LONG) and baseline == BASELINE):
        return ["", ""]
    apart = difference(found[variant], found[baseline], bounds, shared)
    return ["-", "-"] if apart is None else [signed(apart), f"{apart['positive']} of {apart['seeds']}"]


def signed(metric: dict) -> str:
    """A difference with its interval; of one seed there is none."""
    if metric["seeds"] == 1:
        return f"{metric['value']:+.3g} (one seed)"
    return f"{metric['value']:+.3g} [{metric['low']:+.3g}, {metric['high']:+.3g}]"


def chain_table(records: list[dict], benchmark: str) -> Table:
    """Rates and average length of every row, and its paired difference to the baseline."""
    found, rows = lengths(records, benchmark), []
    for variant in variants(r for r in records if r["benchmark"] == benchmark):
        seeds = found[variant]
        rates = [results.shown(f"{k}/5", mean({s: v >= k for s, v in seeds.items()}, (0, 1))) for k in range(1, 6)]
        average = mean(seeds, (0, 5))
        control = _against(found, variant, (-5, 5), baseline=CONTROL[variant])[0] if variant in CONTROL else ""
        rows.append([variant, str(len(seeds)), str(average["n"]), *rates, results.shown("average length", average),
                     *_against(found, variant, (-5, 5)), control and f"{control} ({CONTROL[variant]})"])
    titles = ["row", "seeds", "chains", *(f"{k}/5 %" for k in range(1, 6)), "average length", "minus baseline", "seeds above baseline"]
    if not any(row[-1] for row in rows):
        return titles, [row[:-1] for row in rows]
    return [*titles, "minus the row that differs in the reconstruction alone"], rows


def attention_tables(records: list[dict], benchmark: str = ATTENTION, order: list[str] | None = None, baseline: str = BASELINE
                     ) -> list[Table]:
    """The gaze box against other boxes, how spread and how steady the maps are: each number over seeds and tasks, and its paired difference
    to the baseline's, that of the numbers of `scale_table` included."""
    looked = [r for r in records if r["benchmark"] == benchmark]
    has = lambda r: [*r["frames"], *r["frames"].get("jumps", ())]
    names = [name for start in LOOKED for name in (has(looked[0]) if looked else ())
             if name.startswith(start) and all(name in has(r) for r in looked)]
    found = {name: frames(looked, name, benchmark) for name in names}
    found = {name: rows for name, rows in found.items() if all(len(v) for by_seed in rows.values() for v in by_seed.values())}
    short = lambda name: name.replace("attention mass, gaze box minus", "mass, minus").replace(
        ", gaze box minus", ", minus").replace(" (over 0.2 of the width, frames 5 apart)", "")
    n = lambda rows: len(next(iter(next(iter(rows.values())).values())))
    header = {name: f"{short(name)} (n = {n(rows)} tasks)" for name, rows in found.items()}
    limits = lambda name: (-1, 1) if " minus " in name else (0, 1)
    order = variants(looked) if order is None else order
    values = [[variant, str(len(found[MASS][variant])), *(results.shown(name, mean(rows[variant], limits(name), True))
                                                          for name, rows in found.items() if name not in OWN)]
              for variant in order] if found else []
    wider = lambda name: (-2, 2) if " minus " in name else (-1, 1)
    apart = [[variant, *(_against(rows, variant, wider(name), True, baseline)[0] for name, rows in found.items())]
             for variant in order if variant != baseline] if any(baseline in rows for rows in found.values()) else []
    return [(["row", "seeds", *(title for name, title in header.items() if name not in OWN)], values),
            ([f"row, minus {baseline}", *header.values()], apart)]


def scale_table(records: list[dict], benchmark: str = ATTENTION, order: list[str] | None = None) -> Table:
    """The numbers in the gaze box itself, over seeds, between what uniform attention scores and what the box itself does: the most that a
    map of so few tokens can. These two depend on the frames and the grid alone, which all rows share."""
    looked, kinds = [r for r in records if r["benchmark"] == benchmark], attention.quantities().items()
    uniform = [f"{name}, {attention.UNIFORM[key]}" for key, (name, _) in kinds]
    itself = [f"{name}, {attention.ITSELF}" for _, (name, _) in kinds]
    if not looked or any(name not in r["metrics"] for r in looked for name in (*OWN, *uniform, *itself)):
        return ["row"], []
    first, found = looked[0]["metrics"], [_own(looked, name) for name in OWN]
    order = variants(looked) if order is None else order
    seeds = {variant: str(len({r["seed"] for r in looked if r["variant"] == variant})) for variant in order}
    rows = [[variant, seeds[variant], *(results.shown(name, metrics[variant]) for name, (metrics, _) in zip(OWN, found, strict=True))]
            for variant in order]
    alone = lambda title, names: [title, "", *(results.shown(name, first[name]) for name in names)]
    return (["row", "seeds", *(f"{name} (n = {metrics[order[0]]['n']} {what})" for name, (metrics, what) in zip(OWN, found, strict=True))],
            [alone("uniform attention", uniform), *rows, alone(attention.ITSELF, itself)])


def _own(looked: list[dict], name: str) -> tuple[dict[str, dict], str]:
    """({variant: metric over seeds}, what its n counts): tasks, where all records keep the number by frame; early ones do not but for the
    mass. There episodes are counted, though those of a task are alike: such an interval is rather narrow."""
    if all(name in r["frames"] for r in looked):
        by_row = frames(looked, name, looked[0]["benchmark"])
        return {variant: mean(by_seed, (0, 1), True) for variant, by_seed in by_row.items()}, "tasks"
    metrics: dict[str, list[dict]] = {}
    for r in looked:
        metrics.setdefault(r["variant"], []).append(r["metrics"][name])
    return {variant: over_seeds(some) for variant, some in metrics.items()}, "episodes"


def tasks_in_chains(records: list[dict], benchmark: str) -> Table:
    """Success of each task within the chains, %, with Wilson's interval over the attempts of all seeds; the worst first."""
    of = [r for r in records if r["benchmark"] == benchmark and not is_floor(records, r["variant"])]
    columns, tried = variants(of), {}
    for record in of:
        for name, rate in record["metrics"].items():
            if name.startswith("task/"):
                solved, attempts = tried.get((name[5:], record["variant"]), (0, 0))
                tried[name[5:], record["variant"]] = solved + round(rate["value"] * rate["n"]), attempts + rate["n"]
    total = {task: np.sum([counts for (name, _), counts in tried.items() if name == task], axis=0) for task, _ in tried}

    def cell(task: str, row: str) -> str:
        solved, attempts = tried.get((task, row), (0, 0))
        low, high = wilson(solved, attempts) if attempts else (0, 0)
        return f"{100 * solved / attempts:.0f} [{100 * low:.0f}, {100 * high:.0f}] of {attempts}" if attempts else "-"

    order = sorted(total, key=lambda task: (total[task][0] / total[task][1], task))
    return ["task", *columns], [[task, *(cell(task, row) for row in columns)] for task in order]


def attention_parts(records: list[dict], title: str, benchmark: str = ATTENTION, order: list[str] | None = None, baseline: str = BASELINE
                    ) -> list[tuple[str, Table]]:
    """(title, table) of everything about where the rows look."""
    values, apart = attention_tables(records, benchmark, order, baseline)
    return [(f"{title}: from uniform attention to the box itself", scale_table(records, benchmark, order)),
            (f"{title}: against other boxes", values), (f"{title}, minus {baseline}", apart)]


def span(values: list[float]) -> str:
    """Mean over seeds [least, most]."""
    return f"{np.mean(values):.3g} [{min(values):.3g}, {max(values):.3g}]" if values else "-"


def offline_table(records: list[dict]) -> Table:
    """Action error over seeds and episodes; the held-out loss at the end, mean over seeds [least, most]; where it was least."""
    rows, counted = [], "-"
    for variant in variants(r for r in records if r["benchmark"] == OFFLINE):
        mine = [r for r in records if r["benchmark"] == OFFLINE and r["variant"] == variant]
        error = over_seeds([r["metrics"]["motion error"] for r in mine], np.inf)
        counted = error["n"]
        ends = [r["learning"]["held_out"][-1] for r in mine if r["learning"]["held_out"]]
        stops = [early_stop(r["learning"]) for r in mine]
        rows.append([variant, str(len(mine)), results.shown("motion error", error), span(ends) if len(ends) > 1 else f"{ends[0]:.3g}"
                     if ends else "-", ", ".join(f"{100 * stop['share']:.0f} %" if stop else "-" for stop in stops)])
    return ["row", "seeds", f"motion error (n = {counted} episodes)",
            "action loss at the end, 8 held-out batches of the evaluation scene; of several seeds the mean [least, most]",
            "where it is least, in hindsight (share of the steps; neighbours hardly differ)"], rows


def rebuilt_table(records: list[dict]) -> Table:
    """How near a drawn reconstruction is to its own target, and whether nearer than to those of other tasks; over seeds and tasks."""
    rows, counted = [], 0
    for variant in variants(r for r in records if r["benchmark"] == REBUILT):
        own, apart = (frames(records, name, REBUILT)[variant] for name in (REBUILT_OWN, REBUILT_APART))
        counted = len(next(iter(own.values())))
        metric = mean(apart, (-1, 1), shared=True)
        rows.append([variant, str(len(own)), results.shown("error", mean(own, (0, 1), shared=True)),
                     f"{metric['value']:+.3g} [{metric['low']:+.3g}, {metric['high']:+.3g}]"])
    return ["row", "seeds", f"mean error a pixel and colour, 0 to 1 (n = {counted} tasks)", "own target minus other tasks' targets"], rows


def early_stop(learning: dict) -> dict | None:
    """Where stopping by the held-out action loss would have stopped: its least value so far measured; share 1: never."""
    if not learning["held_out"]:
        return None
    at = int(np.argmin(learning["held_out"]))
    return {"step": learning["held_out_step"][at], "share": learning["held_out_step"][at] / learning["step"][-1],
            "loss": learning["held_out"][at], "end": learning["held_out"][-1]}


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


def way_table(records: list[dict]) -> Table:
    """Gain of the gaze reconstruction by epoch."""
    rows = []
    for mark in on_the_way(records):
        cells = [results.shown("1/1", mark["success"][name]) if name in mark["success"] else "-" for name in (BASELINE, "gaze")]
        some = next(iter(mark["success"].values()))
        gains = [signed(mark[f"{what} gain"]) if mark[f"{what} gain"] else "-" for what in ("success", "attention")]
        rows.append([str(mark["step"]), f"{mark['epochs']:.2g}", str(some["seeds"]), str(some["n"]), *cells, *gains])
    return ["step", "epochs", "seeds", "rollouts", "baseline, single tasks %", "gaze, single tasks %", "gaze minus baseline (share)",
            "attention gain, gaze minus baseline"], rows


WAY = "On the way: does the gain level off? (Looks into one run, whose learning rate ends at 0: it levels off for that reason too)"


def markdown(records: list[dict]) -> str:
    """All tables, one after another."""
    parts = [(f"Chains of five: {name} (not comparable with the paper)", chain_table(records, name)) for name in chain_benchmarks(records)]
    parts += [(f"Tasks within the chains, success % of the attempts, the worst first: {name}. (A task is attempted where all before it in "
               "its chain were solved, so rows did not attempt the same ones)", tasks_in_chains(records, name))
              for name in chain_benchmarks(records)]
    parts += attention_parts(records, "Attention on held-out frames")
    parts += [("What the denoiser draws from noise, held-out frames, part of the static camera (below 0: it depends on the frame)",
               rebuilt_table(records))]
    parts += [("Offline, held-out episodes", offline_table(records)), (WAY, way_table(records))]
    return "\n\n".join(f"## {title}\n\n{results.markdown(*table)}" for title, table in parts if table[1]) + "\n"


def counted(records: list[dict]) -> str:
    """The comparison that counts, in a sentence: gaze minus baseline, evaluation scene, without the first seed."""
    found = lengths(records, chain_benchmarks(records)[0])
    later = [{seed: values for seed, values in found.get(name, {}).items() if seed != min(found[name])} for name in ("gaze", BASELINE)]
    apart = difference(*later, (-5, 5))
    return f"`gaze` minus `baseline`, average length, without the first seed: {signed(apart) if apart else 'no other seed is done yet'}."


def short_table(records: list[dict]) -> Table:
    """The chain tables in one: of each benchmark the average length, of the first, which no row was trained in, first tasks and the
    difference to the baseline as well."""
    tables = {name: chain_table(records, name) for name in chain_benchmarks(records)}
    titles, order, rows = ["row", "seeds", "chains each"], [], {}
    for name, (header, lines) in tables.items():
        wanted = ["average length", *(["1/5 %", "minus baseline"] if not order else [])]
        titles += [f"{name.split('->')[1].split(',')[0]}: {title.replace('1/5 %', 'first task %')}" for title in wanted]
        order = order or [line[0] for line in lines]
        for line in lines:
            told = dict(zip(header, line, strict=True))
            rows.setdefault(line[0], [told["row"], told["seeds"], told["chains"]]).extend(told[title] for title in wanted)
    return titles, [rows[name] for name in order if len(rows[name]) == len(titles)]


def readme_section(folder: Path | str) -> str:
    """What README says of the ablation in `results/<profile>`: how it was made, and the chains."""
    records = load(Path(folder) / "runs" / "ablation")
    trained = [r for r in records if r["benchmark"] == OFFLINE]
    spent = [r["training_minutes"] for r in trained if "training_minutes" in r]
    took = f", training of {min(spent):.0f} to {max(spent):.0f} min each on one core" if spent else ""
    return (f"{seeds.where_from(records, folder)}; {len(trained)} trained runs{took}. **Not comparable with the paper.**\n\n"
            f"{counted(records)}\n\n{results.markdown(*short_table(records))}\n")


def publish(work: Path, target: Path, drawn: Iterable[str] = (), log=print) -> Path:
    """Put the records, ablation.md and figures of what is done into `results/<profile>`; those of an edited tree are refused.

    drawn: figures of work/figures beside ablation_*.png (ablation.draw)."""
    records = write(work, log)
    for old in (target / "figures").glob("ablation_*.png"):
        old.unlink()
    shown = [path.name for path in (work / "figures").glob("ablation_*.png")]
    return seeds.publish(records, "ablation", work, target, ["ablation.md", *(f"figures/{name}" for name in (*shown, *drawn))], log)


def write(work: Path, log=print) -> list[dict]:
    """`<work>/ablation.md` and `<work>/figures/ablation_*.png` from the records of what is done; returns them."""
    from repro import ablation_figures, pictures

    records = records_of(work)
    if records:
        (work / "ablation.md").write_text(markdown(records))
        for name, figure in ablation_figures.everything(records).items():
            pictures.keep(figure, work / "figures" / f"ablation_{name}.png")
        log(f"{len(records)} records; tables: ablation.md, figures: figures/ablation_*.png")
    return records
