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
    OFFLINE,
    OWN,
    PAPER_GAIN,
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
    seeds_for,
    variants,
)
from repro.experiments import CONTROL, LONG, UNTAUGHT
from repro.intervals import over_seeds
from repro.looking import REBUILT_APART, REBUILT_ELSEWHERE, REBUILT_OWN

Table = tuple[list[str], list[list[str]]]


def _against(found: dict, variant: str, bounds: tuple[float, float], shared: bool = False, baseline: str = BASELINE) -> list[str]:
    """Cells "difference" and "seeds in which it is positive"; none of a row that began elsewhere than the baseline, or went on longer."""
    if variant == baseline or baseline not in found or (variant in (*UNTAUGHT, *LONG) and baseline == BASELINE):
        return ["", ""]
    apart = difference(found[variant], found[baseline], bounds, shared)
    return ["-", "-"] if apart is None else [signed(apart), f"{apart['positive']} of {apart['seeds']}"]


def _cell(name: str, metric: dict, several: bool) -> str:
    """A number with its interval; among rows of several seeds a row of one has none, since the others' are over seeds."""
    cell = results.shown(name, metric)
    return cell.split(" [")[0] if several and metric["seeds"] == 1 else cell


def signed(metric: dict) -> str:
    """A difference with its interval; of one seed there is none."""
    if metric["seeds"] == 1:
        return f"{metric['value']:+.3g} (one seed)"
    return f"{metric['value']:+.3g} [{metric['low']:+.3g}, {metric['high']:+.3g}]"


def chain_table(records: list[dict], benchmark: str) -> Table:
    """Rates and average length of every row, and its paired difference to the baseline."""
    found, rows = lengths(records, benchmark), []
    several = max(map(len, found.values())) > 1
    for variant in variants(r for r in records if r["benchmark"] == benchmark):
        seeds = found[variant]
        rates = [_cell(f"{k}/5", mean({s: v >= k for s, v in seeds.items()}, (0, 1)), several) for k in range(1, 6)]
        average = mean(seeds, (0, 5))
        control = _against(found, variant, (-5, 5), baseline=CONTROL[variant])[0] if variant in CONTROL else ""
        rows.append([variant, str(len(seeds)), str(average["n"]), *rates, _cell("average length", average, several),
                     *_against(found, variant, (-5, 5)), control and f"{control} ({CONTROL[variant]})"])
    titles = ["row", "seeds", "chains", *(f"{k}/5 %" for k in range(1, 6)), "average length", "minus baseline", "seeds above baseline"]
    if not any(row[-1] for row in rows):
        return titles, [row[:-1] for row in rows]
    return [*titles, "minus the row that differs in the reconstruction alone"], rows


def _by_task(records: list[dict], benchmark: str) -> dict[str, tuple[str, dict[str, dict[int, np.ndarray]]]]:
    """{number of an attention map: (its heading, {row: {seed: mean of each task}})}, of the seeds whose records keep it by frame."""
    looked = [r for r in records if r["benchmark"] == benchmark]
    has = lambda r: [*r["frames"], *r["frames"].get("jumps", ())]
    names, every, found = [name for r in looked for name in has(r)], {r["seed"] for r in looked}, {}
    for name in dict.fromkeys(name for start in LOOKED for name in names if name.startswith(start)):
        mine = [r for r in looked if name in has(r)]
        rows, lost = frames(mine, name, benchmark), sorted(every - {r["seed"] for r in mine})
        counts = [len(values) for by_seed in rows.values() for values in by_seed.values()]
        if min(counts):
            short = name.replace("attention mass, gaze box minus", "mass, minus").replace(", gaze box minus", ", minus").replace(
                " (over 0.2 of the width, frames 5 apart)", "")
            without = f"; without seed {', '.join(map(str, lost))}, whose records keep no frames" if lost else ""
            found[name] = f"{short} (n = {counts[0]} tasks{without})", rows
    return found


BOX_JUMPS, MAP_JUMPS = "jump rate of the gaze box", "jump rate of the map"


def attention_tables(records: list[dict], benchmark: str = ATTENTION, order: list[str] | None = None, baseline: str = BASELINE
                     ) -> list[Table]:
    """The gaze box against other boxes, how spread and how steady the maps are: each number over seeds and tasks, and its paired difference
    to the baseline's, that of the numbers of `scale_table` included."""
    looked, found = [r for r in records if r["benchmark"] == benchmark], _by_task(records, benchmark)
    order = variants(looked) if order is None else order
    shown = [name for name in found if name not in OWN]
    seeds = {variant: str(len({r["seed"] for r in looked if r["variant"] == variant})) for variant in order}

    def cell(name: str, row: str) -> str:
        rows, limits = found[name][1], (-1, 1) if " minus " in name else (0, 1)
        return _cell(name, mean(rows[row], limits, True), max(map(len, rows.values())) > 1) if row in rows else "-"

    values = [[row, seeds[row], *(cell(name, row) for name in shown)] for row in order] if shown else []
    box = next((r["metrics"][name] for r in looked for name in r["metrics"] if name.startswith(BOX_JUMPS)), None)
    if values and box:  # it depends on the frames alone
        itself = f"{results.shown(BOX_JUMPS, box)} ({box['n']} episodes)"
        values.append(["the gaze box itself", "", *(itself if name.startswith(MAP_JUMPS) else "" for name in shown)])
    wider = lambda name: (-2, 2) if " minus " in name else (-1, 1)
    apart = [[variant, *(_against(rows, variant, wider(name), True, baseline)[0] if variant in rows else "-"
                         for name, (_, rows) in found.items())]
             for variant in order if variant != baseline] if any(baseline in rows for _, rows in found.values()) else []
    return [(["row", "seeds", *(found[name][0] for name in shown)], values),
            ([f"row, minus {baseline}", *(title for title, _ in found.values())], apart)]


def scale_table(records: list[dict], benchmark: str = ATTENTION, order: list[str] | None = None) -> Table:
    """The numbers in the gaze box itself, over seeds and tasks, between what uniform attention scores and what the box itself does: the
    most that a map of so few tokens can. These two depend on the frames and the grid alone, which all rows share; they count episodes, and
    so do numbers that no record keeps by frame (episodes of a task are alike: such an interval is rather narrow)."""
    looked, found, kinds = [r for r in records if r["benchmark"] == benchmark], _by_task(records, benchmark), attention.quantities().items()
    order = variants(looked) if order is None else order
    own = {f"{name} {at} the gaze box": [f"{name}, {end}" for end in (attention.UNIFORM[key], attention.ITSELF)]
           for key, (name, at) in kinds}
    if not looked or any(name not in r["metrics"] for r in looked for names in own.items() for name in (names[0], *names[1])):
        return ["row"], []
    first, titles, columns = looked[0]["metrics"], [], []
    for name, ends in own.items():
        if name in found:
            title, by_row = found[name]
            metrics = {row: mean(by_row[row], (0, 1), True) for row in order if row in by_row}
        else:
            title = f"{name} (n = {first[name]['n']} episodes)"
            metrics = {row: over_seeds([r["metrics"][name] for r in looked if r["variant"] == row]) for row in order}
        several = any(metric["seeds"] > 1 for metric in metrics.values())
        titles.append(title)
        cells = [_cell(name, metrics[row], several) if row in metrics else "-" for row in order]
        columns.append([results.shown(name, first[ends[0]]), *cells, results.shown(name, first[ends[1]])])
    seeds = [str(len({r["seed"] for r in looked if r["variant"] == row})) for row in order]
    counted = f"(n = {first[next(iter(own.values()))[0]]['n']} episodes)"
    named = [f"uniform attention {counted}", *order, f"{attention.ITSELF} {counted}"]
    return ["row", "seeds", *titles], [list(line) for line in zip(named, ["", *seeds, ""], *columns, strict=True)]


def tasks_in_chains(records: list[dict], benchmark: str) -> Table:
    """Success of each task within the chains, %: of all attempts, and in brackets of the seed with the least and the one with the most,
    for attempts of one model are alike: where it fails at a lamp it nearly always does. The worst task first."""
    of = [r for r in records if r["benchmark"] == benchmark and not is_floor(records, r["variant"])]
    columns, tried = variants(of), {}  # {(task, row): [(solved, attempts) of each seed]}
    for record in of:
        for name, rate in record["metrics"].items():
            if name.startswith("task/") and rate["n"]:
                tried.setdefault((name[5:], record["variant"]), []).append((round(rate["value"] * rate["n"]), rate["n"]))
    total = {task: np.sum([np.sum(counts, axis=0) for (name, _), counts in tried.items() if name == task], axis=0) for task, _ in tried}

    def cell(task: str, row: str) -> str:
        if not (counts := tried.get((task, row))):
            return "-"
        (solved, attempts), rates = np.sum(counts, axis=0), [100 * some / of for some, of in counts]
        apart = f"[{min(rates):.0f}, {max(rates):.0f}] " if len(rates) > 1 else ""
        return f"{100 * solved / attempts:.0f} {apart}of {attempts}"

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
    every, rows, counted = [r for r in records if r["benchmark"] == OFFLINE], [], "-"
    several = len({r["seed"] for r in every}) > 1
    for variant in variants(every):
        mine = [r for r in every if r["variant"] == variant]
        error = over_seeds([r["metrics"]["motion error"] for r in mine], np.inf)
        counted = error["n"]
        ends = [r["learning"]["held_out"][-1] for r in mine if r["learning"]["held_out"]]
        stops = [early_stop(r["learning"]) for r in mine]
        rows.append([variant, str(len(mine)), _cell("motion error", error, several), span(ends) if len(ends) > 1 else f"{ends[0]:.3g}"
                     if ends else "-", ", ".join(f"{100 * stop['share']:.0f} %" if stop else "-" for stop in stops)])
    return ["row", "seeds", f"motion error (n = {counted} episodes)",
            "action loss at the end, 8 held-out batches of the evaluation scene; of several seeds the mean [least, most]",
            "where it is least, in hindsight (share of the steps; neighbours hardly differ)"], rows


def rebuilt_table(records: list[dict]) -> Table:
    """How near a drawn reconstruction is to its own target, whether nearer than to those of other tasks, and than to those of its task
    where the box lies elsewhere; over seeds and tasks. Rows are not compared: their targets differ."""
    heads = {REBUILT_OWN: "mean error a pixel and colour, 0 to 1", REBUILT_APART: "own target minus other tasks' targets",
             REBUILT_ELSEWHERE: "own target minus its task's targets elsewhere"}
    every, titles, columns = [r for r in records if r["benchmark"] == REBUILT], [], []
    rows = variants(every)
    for name, head in heads.items():
        found = frames([r for r in every if name in r["frames"]], name, REBUILT)
        count = max((len(values) for by_seed in found.values() for values in by_seed.values()), default=0)
        if count:
            bounds, several = (0 if name == REBUILT_OWN else -1, 1), max(map(len, found.values())) > 1
            titles.append(f"{head} (n = {count} tasks)")
            columns.append([_cell("error", mean(found[row], bounds, shared=True), several) if row in found else "-" for row in rows])
    seeds = [str(len({r["seed"] for r in every if r["variant"] == row})) for row in rows]
    return ["row", "seeds", *titles], [list(line) for line in zip(rows, seeds, *columns, strict=True)]


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


WAY = "On the way: does the gain level off? (Looks into each run, whose learning rate ends at 0: it levels off for that reason too)"


def markdown(records: list[dict]) -> str:
    """All tables, one after another."""
    parts = [(f"Chains of five: {name} (not comparable with the paper)", chain_table(records, name)) for name in chain_benchmarks(records)]
    parts += [(f"Tasks within the chains, success % of the attempts [of the seed with the least, the most], the worst first: {name}. (A "
               "task is attempted where all before it in its chain were solved, so rows did not attempt the same ones)",
               tasks_in_chains(records, name)) for name in chain_benchmarks(records)]
    parts += attention_parts(records, "Attention on held-out frames")
    parts += [("What the denoiser draws from noise, held-out frames, part of the static camera. Below 0: nearer to its own target; beside "
               "other tasks' the sentence alone can do that, beside its own task's elsewhere only the picture",
               rebuilt_table(records))]
    parts += [("Offline, held-out episodes", offline_table(records)), (WAY, way_table(records))]
    return "\n\n".join(f"## {title}\n\n{results.markdown(*table)}" for title, table in parts if table[1]) + "\n"


def counted(records: list[dict]) -> str:
    """The comparison that counts: gaze minus baseline, evaluation scene, without the first seed; and how many seeds a gain of the paper's
    size would take, as these spread."""
    found = lengths(records, chain_benchmarks(records)[0])
    later = [{seed: values for seed, values in found.get(name, {}).items() if seed != min(found[name])} for name in ("gaze", BASELINE)]
    apart = difference(*later, (-5, 5))
    told = f"`gaze` minus `baseline`, average length, without the first seed: {signed(apart) if apart else 'no other seed is done yet'}."
    if not apart or apart["seeds"] < 2:
        return told
    spread = np.array([(later[0][seed] - later[1][seed]).mean() for seed in sorted(later[0].keys() & later[1].keys())])
    return (f"{told} The seeds' differences spread by {spread.std(ddof=1):.2g} (standard deviation); an interval of +-{PAPER_GAIN}, the "
            f"paper's gain on CALVIN, would take {seeds_for(spread, PAPER_GAIN)} such seeds, and there are {apart['seeds']}.")


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
