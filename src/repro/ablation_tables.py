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
    latest,
    lengths,
    load,
    mean,
    on_the_way,
    patient_stop,
    records_of,
    seeds_for,
    told_instead,
    variants,
)
from repro.experiments import CONTROL, LONG, UNTAUGHT
from repro.intervals import over_seeds
from repro.looking import REBUILT_APART, REBUILT_ELSEWHERE, REBUILT_OWN

Table = tuple[list[str], list[list[str]]]


def _comparable(variant: str, baseline: str) -> bool:
    """Rows that began elsewhere than the baseline, or went on longer, are not compared with it."""
    return variant != baseline and not (baseline == BASELINE and variant in (*UNTAUGHT, *LONG))


def _against(found: dict, variant: str, bounds: tuple[float, float], baseline: str = BASELINE) -> str:
    """Cell "difference" of frames or tasks that all seeds share."""
    if baseline not in found or not _comparable(variant, baseline):
        return ""
    apart = difference(found[variant], found[baseline], bounds, shared=True)
    return "-" if apart is None else signed(apart)


def _chains_apart(found: dict, variant: str, baseline: str, alone: bool) -> tuple[str, str]:
    """Cells "difference of average lengths" and "seeds in which it is positive"; alone: with the interval of these very models."""
    if baseline not in found or not _comparable(variant, baseline):
        return "", ""
    if not (apart := difference(found[variant], found[baseline], (-5, 5))):
        return "-", "-"
    told = signed(apart) if apart["seeds"] > 1 else f"{apart['value']:+.3g} (seed {apart['of'][0]})"
    low, high = apart["alone"]
    return told + (f"; alone [{low:+.3g}, {high:+.3g}]" if alone else ""), f"{apart['positive']} of {apart['seeds']}"


def _named(mine: Iterable[int], every: Iterable[int]) -> str:
    """Cell "seeds": how many, and which where they are not all there are."""
    mine, every = sorted(mine), sorted(every)
    return str(len(mine)) if mine == every else f"{len(mine)} (seed{'s' * (len(mine) > 1)} {', '.join(map(str, mine))})"


def _cell(name: str, metric: dict, several: bool) -> str:
    """A number with its interval; among rows of several seeds a row of one has none, since the others' are over seeds."""
    cell = results.shown(name, metric)
    return cell.split(" [")[0] if several and metric["seeds"] == 1 else cell


def signed(metric: dict) -> str:
    """A difference with its interval; of one seed there is none."""
    if metric["seeds"] == 1:
        return f"{metric['value']:+.3g} (one seed)"
    return f"{metric['value']:+.3g} [{metric['low']:+.3g}, {metric['high']:+.3g}]"


GAZE, THE_CONTROL = "gaze", "minus the row that differs in the reconstruction alone"


def chain_table(records: list[dict], benchmark: str, alone: bool = True) -> Table:
    """Rates and average length of every row, and its paired differences: to the baseline; to `gaze`, of what is made of it (wrong boxes, a
    stage before, its floors); to the row that differs in the reconstruction alone. alone: each with the interval of these very models."""
    found, rows = lengths(records, benchmark), []
    several, every = max(map(len, found.values())) > 1, {seed for seeds in found.values() for seed in seeds}
    for variant in variants(r for r in records if r["benchmark"] == benchmark):
        seeds = found[variant]
        rates = [_cell(f"{k}/5", mean({s: v >= k for s, v in seeds.items()}, (0, 1)), several) for k in range(1, 6)]
        average, of_gaze = mean(seeds, (0, 5)), variant.startswith(GAZE) and variant not in (*UNTAUGHT, *LONG)
        control = _chains_apart(found, variant, CONTROL[variant], alone)[0] if variant in CONTROL else ""
        rows.append([variant, _named(seeds, every), str(average["n"]), *rates, _cell("average length", average, several),
                     *_chains_apart(found, variant, BASELINE, alone), _chains_apart(found, variant, GAZE, alone)[0] if of_gaze else "",
                     control and f"{control} ({CONTROL[variant]})"])
    titles = ["row", "seeds", "chains", *(f"{k}/5 %" for k in range(1, 6)), "average length", "minus baseline", "seeds above baseline",
              "minus gaze", THE_CONTROL]
    kept = [k for k, title in enumerate(titles) if title not in ("minus gaze", THE_CONTROL) or any(row[k] for row in rows)]
    return [titles[k] for k in kept], [[row[k] for k in kept] for row in rows]


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
    seeds = {variant: _named({r["seed"] for r in looked if r["variant"] == variant}, {r["seed"] for r in looked}) for variant in order}

    def cell(name: str, row: str) -> str:
        rows, limits = found[name][1], (-1, 1) if " minus " in name else (0, 1)
        return _cell(name, mean(rows[row], limits, True), max(map(len, rows.values())) > 1) if row in rows else "-"

    values = [[row, seeds[row], *(cell(name, row) for name in shown)] for row in order] if shown else []
    box = next((r["metrics"][name] for r in looked for name in r["metrics"] if name.startswith(BOX_JUMPS)), None)
    if values and box:  # it depends on the frames alone
        itself = f"{results.shown(BOX_JUMPS, box)} ({box['n']} episodes)"
        values.append(["the gaze box itself", "", *(itself if name.startswith(MAP_JUMPS) else "" for name in shown)])
    wider = lambda name: (-2, 2) if " minus " in name else (-1, 1)
    apart = [[variant, *(_against(rows, variant, wider(name), baseline) if variant in rows else "-"
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
    seeds = [_named({r["seed"] for r in looked if r["variant"] == row}, {r["seed"] for r in looked}) for row in order]
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
        mine = sorted((r for r in every if r["variant"] == variant), key=lambda r: r["seed"])
        error = over_seeds([r["metrics"]["motion error"] for r in mine], np.inf)
        counted = error["n"]
        ends = [r["learning"]["held_out"][-1] for r in mine if r["learning"]["held_out"]]
        stops = [early_stop(r["learning"]) for r in mine]
        ended = [patient_stop(r["learning"], PATIENCE) for r in mine]
        percent = lambda shares: ", ".join("-" if share is None else f"{100 * share:.0f} %" for share in shares)
        loss = span(ends) if len(ends) > 1 else f"{ends[0]:.3g}" if ends else "-"
        rows.append([variant, _named((r["seed"] for r in mine), {r["seed"] for r in every}), _cell("motion error", error, several), loss,
                     percent(stop and stop["share"] for stop in stops), percent(ended)])
    return ["row", "seeds", f"motion error (n = {counted} episodes)",
            "action loss at the end, 8 held-out batches of the evaluation scene; of several seeds the mean [least, most]",
            "where it is least, in hindsight (share of the steps; neighbours hardly differ)",
            f"where `patience` {PATIENCE} would have ended training"], rows


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
    seeds = [_named({r["seed"] for r in every if r["variant"] == row}, {r["seed"] for r in every}) for row in rows]
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


PATIENCE = 2
WAY = "On the way: does the gain level off? (Looks into each run, whose learning rate ends at 0: it levels off for that reason too)"
READING = """# The ablation of ReconVLA on the embedded play table

Which part of the method makes the tiny model act better, and where does it look? Computed from the run records beside this file
by `repro ablation --profile {profile} --publish`; nothing is typed. Not comparable with the paper: another simulator, another size. How the
method differs from the paper's, and what each row is for: [notes](../../papers/reconvla/notes.md).

| row | what it is |
| --- | --- |
| baseline | actions alone, no reconstruction |
| whole, gaze | the same, and the denoiser rebuilds the whole picture, or the gaze region (the paper's idea) |
| gaze, n % wrong boxes | `gaze`, trained with that share of boxes of other things |
| gaze+pretrain, baseline+pretrain | a stage before on other tables, with and without reconstruction |
| box, mask | no reconstruction: the gaze box, or its mask, is predicted instead (the cheap ways to be told where to look) |
| .. untaught | the language model begins at random; in all other rows it was first taught to point at what a sentence names |
| .. plain | action tokens' targets one-hot and their embeddings in no order, as in the paper (their action loss is another measure) |
| blind | trained without pictures: what can be done by heart |
| gaze, shuffled instruction / images blanked | the trained `gaze`, told another task's sentence / shown grey |
| replay, random, constant, scripted expert | floors without a model, and the ceiling |

No row has the published head: all read a chunk in one pass from action queries, see the proprioception as Fourier features and draw
noise once a sample (the paper: token by token, 15 tokens, four times); all but the plain ones aim at a Gaussian over ordered bins.

Every seed has a first language model, an order of the data and start states of its own, which all its rows share. Brackets are 95 %
intervals over seeds and start states (Student's over the seeds' means, never narrower than the start states alone leave open); a row of one
seed has none, and stands beside rows of other seeds: its paired differences say more. "Alone" is the narrower interval of these very
models, paired over the same chains: what more chains of the same models could change, and nothing about other seeds.

{counted}

{pretrained}
"""


def reading(records: list[dict]) -> str:
    """What to know before the tables: rows, intervals, the comparison that counts, the stage before."""
    profile = next((r["config"]["profile"] for r in records if r["config"].get("profile")), "cpu")
    return READING.format(profile=profile, counted=counted(records), pretrained=pretrained(records)).rstrip() + "\n"


def told_table(records: list[dict]) -> Table:
    """The shuffled instruction by what was said instead: tasks that were told their opposite one by one, all others together."""
    rows, of = [], lambda solved, tried: f"{solved} of {tried}"
    for benchmark in chain_benchmarks(records):
        scene = benchmark.split("->")[1].split(",")[0]
        found = [one for one in told_instead(records, benchmark) if one["attempts"]]
        rows += [[scene, str(one["seed"]), one["task"], f"the opposite: {one['told']}", of(one["solved"], one["attempts"]),
                  of(*one["right"])] for one in found if one["opposite"]]
        if others := [one for one in found if not one["opposite"]]:
            solved, right = np.sum([(one["solved"], one["attempts"]) for one in others], 0), np.sum([one["right"] for one in others], 0)
            seeds = ", ".join(map(str, sorted({one["seed"] for one in others})))
            rows.append([scene, seeds, "all others", "a task with another thing", of(*solved), of(*right)])
    return ["scene", "seed", "true task", "told instead", "the true task was solved all the same", "told right, `gaze` solves it in"], rows


def made_by(records: list[dict]) -> Table:
    """Which commit trained each row's seeds."""
    trained = [r for r in records if r["benchmark"] == OFFLINE and "trained" in r["config"].get("policy", {})]
    commit = {(r["variant"], r["seed"]): r["config"]["policy"]["trained"].get("commit", "?")[:7] for r in trained}
    every = sorted({seed for _, seed in commit})
    rows = [[row, *(commit.get((row, seed), "") for seed in every)] for row in variants(trained)]
    return ["row", *(f"seed {seed}" for seed in every)], rows


def markdown(records: list[dict]) -> str:
    """How to read them, and all tables, one after another."""
    parts = [(f"Chains of five: {name} (not comparable with the paper)", chain_table(records, name)) for name in chain_benchmarks(records)]
    parts += [(f"Tasks within the chains, success % of the attempts [of the seed with the least, the most], the worst first: {name}. (A "
               "task is attempted where all before it in its chain were solved, so rows did not attempt the same ones)",
               tasks_in_chains(records, name)) for name in chain_benchmarks(records)]
    parts += [("The shuffled instruction: is it the thing that is read, or what to do with it? (Tasks told their opposite one by one; "
               "other seeds have none)", told_table(records))]
    parts += attention_parts(records, "Attention on held-out frames")
    parts += [("What the denoiser draws from noise, held-out frames, part of the static camera. Below 0: nearer to its own target; beside "
               "other tasks' the sentence alone can do that, beside its own task's elsewhere only the picture",
               rebuilt_table(records))]
    parts += [("Offline, held-out episodes", offline_table(records)), (WAY, way_table(records)), ("Trained by commit", made_by(records))]
    return reading(records) + "\n" + "\n\n".join(f"## {title}\n\n{results.markdown(*table)}" for title, table in parts if table[1]) + "\n"


def counted(records: list[dict]) -> str:
    """The comparison that counts: gaze minus baseline, evaluation scene, without the first seed; and how many seeds would show a gain of
    the paper's size, as these spread."""
    found = lengths(records, chain_benchmarks(records)[0])
    later = [_without_first(found, name) for name in (GAZE, BASELINE)]
    apart = difference(*later, (-5, 5))
    told = f"`gaze` minus `baseline`, average length, without the first seed: {signed(apart) if apart else 'no other seed is done yet'}."
    if not apart or apart["seeds"] < 2:
        return told
    spread = np.array([(later[0][seed] - later[1][seed]).mean() for seed in apart["of"]])
    told += f" The seeds' differences spread by {spread.std(ddof=1):.2g} (standard deviation)."
    needed = seeds_for(spread, PAPER_GAIN)
    return told + (f" To show a true gain of {PAPER_GAIN}, the paper's on CALVIN, in four of five repetitions takes {needed} such seeds; "
                   f"these are {len(spread)}." if needed else "")


def _without_first(found: dict[str, dict[int, np.ndarray]], row: str) -> dict[int, np.ndarray]:
    first = min((seed for seeds in found.values() for seed in seeds), default=None)
    return {seed: values for seed, values in found.get(row, {}).items() if seed != first}


def pretrained(records: list[dict]) -> str:
    """What the stage before adds, evaluation scene, to no reconstruction at all and to the gaze region alone, with and without the first
    seed, as in what counts; "" without such a row of several seeds."""
    found = lengths(records, chain_benchmarks(records)[0])
    row, said = "gaze+pretrain", []
    for other, what in ((BASELINE, ""), (GAZE, ", the paper's own contrast in Table 2")):
        every, later = difference(found.get(row, {}), found.get(other, {}), (-5, 5)), difference(
            _without_first(found, row), _without_first(found, other), (-5, 5))
        if every and every["seeds"] > 2:
            said.append(f"minus `{other}`{what}: {signed(every)}, without the first seed {signed(later)}")
    return f"`{row}`, average length, {'; '.join(said)}." if said else ""


def short_table(records: list[dict]) -> Table:
    """The chain tables in one: of each benchmark the average length, of the first, which no row was trained in, first tasks and the
    difference to the baseline as well."""
    tables = {name: chain_table(records, name, alone=False) for name in chain_benchmarks(records)}
    titles, order, rows = ["row", "seeds", "chains each"], [], {}
    short = {"1/5 %": "first task %", "minus baseline": "minus baseline of the same seeds"}
    for name, (header, lines) in tables.items():
        wanted = ["average length", *(["1/5 %", "minus baseline"] if not order else [])]
        titles += [f"{name.split('->')[1].split(',')[0]}: {short.get(title, title)}" for title in wanted]
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
            f"{counted(records)} {pretrained(records)}\n\n{results.markdown(*short_table(records))}\n")


def publish(work: Path, target: Path, drawn: Iterable[str] = (), log=print) -> Path:
    """Put the records, ablation.md and figures of what is done into `results/<profile>`; those of an edited tree are refused.

    drawn: figures of work/figures beside ablation_*.png (ablation.draw)."""
    records = write(work, log)
    for old in (target / "figures").glob("ablation_*.png"):
        old.unlink()
    shown = [path.name for path in (work / "figures").glob("ablation_*.png")]
    return seeds.publish(records, "ablation", work, target, ["ablation.md", *(f"figures/{name}" for name in (*shown, *drawn))], log)


def write(work: Path, log=print, found: list[dict] | None = None) -> list[dict]:
    """`<work>/ablation.md` and `<work>/figures/ablation_*.png` from the records of what is done, or of `found`, records of elsewhere,
    alone; returns the records."""
    from repro import ablation_figures, pictures

    records = records_of(work) if found is None else latest(found)
    if records:
        work.mkdir(parents=True, exist_ok=True)
        (work / "ablation.md").write_text(markdown(records))
        for name, figure in ablation_figures.everything(records).items():
            pictures.keep(figure, work / "figures" / f"ablation_{name}.png")
        log(f"{len(records)} records; tables: ablation.md, figures: figures/ablation_*.png")
    return records
