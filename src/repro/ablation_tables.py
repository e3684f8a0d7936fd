"""The tables of the ablation, from records alone; how its means and intervals are made is in ablation_statistics.py.

    records = load("results/cpu/runs/ablation")
    print(results.markdown(*chain_table(records, benchmark)))
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from repro import attention, results, seeds
from repro.ablation_statistics import (
    ATTENTION,
    BASELINE,
    LOOKED,
    MASS,
    OFFLINE,
    OWN,
    REBUILT,
    chain_benchmarks,
    difference,
    early_stop,
    frames,
    is_floor,
    lengths,
    load,
    mean,
    on_the_way,
    records_of,
    variants,
)
from repro.experiments import CONTROL, LONG, UNTAUGHT
from repro.intervals import over_seeds, wilson
from repro.looking import REBUILT_APART, REBUILT_OWN

Table = tuple[list[str], list[list[str]]]


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
