"""VGGT-VLA's rows over seeds, on the grocery table or on LIBERO: each trained, let act beside floors, looked at, recorded. Resumable.

    repro ablation --system vggt_vla --profile cpu            # again and again, until it says that all is done
    repro ablation --system vggt_vla --profile cpu --tables

The question: does a geometry backbone ("vggt", "graph") help against the same policy without one ("none"), and does any of them do what a
policy that was trained without pictures ("blind") cannot? The rows of a seed begin from the same starts: differences are paired.
"""

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from repro import ablation, ablation_statistics, ablation_tables, attention, results, run_records, seeds, vla_experiments
from repro.data import libero, libero_hdf5
from repro.data.episodes import Store
from repro.evaluation import suites
from repro.evaluation.policies import about, minutes
from repro.intervals import wilson
from repro.machine import UserError
from repro.profiles import Profile
from repro.seeds import FLOORS, WITHOUT_WEIGHTS, Clock, OutOfTime, Run, Timed, is_done
from repro.training import checkpoint, launch

SYSTEM = "vggt_vla"
LOOKS = {"queries": "attention on held-out frames of", "words": "attention of the instruction's words on held-out frames of"}
SAID = {"queries": "the action queries", "words": "the instruction's words"}
REDUCED = "Attention of the action queries to the image tokens, last layer, mean over heads, renormalised, static camera only."


def runs(settings: Profile) -> list[Run]:
    """Rows and floors seed by seed, so that a table that is not finished is balanced."""
    return [Run(row, seed) for seed in settings.vla_seeds for row in (*vla_experiments.ROWS, WITHOUT_WEIGHTS, FLOORS)]


def prepare(settings: Profile, work: Path, log=print) -> None:
    """The store of notebook 02, whatever it was made of; where it is absent, that of the grocery table, made here."""
    if not (work / "store" / "libero" / "meta" / "repro.json").is_file():
        raw = libero_hdf5.ensure_grocery(work / "libero", settings, 0, log)
        libero.ensure_store(raw, work / "store" / "libero", log=log)


def digest(settings: Profile, work: Path) -> str:
    """Of what decides the numbers of every run."""
    asked = {name: getattr(settings, name) for name in ("vla_preset", "vla_steps", "vla_episodes", "attention_frames")}
    asked |= {"data": vla_experiments.data(work).hash, "execute": vla_experiments.EXECUTE, "held_out": vla_experiments.HELD_OUT}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]


def place(work: Path, run: Run) -> Path:
    """Folder of a run's outcomes, records and done.json."""
    return work / "ablation" / SYSTEM / f"{run.row.replace(' ', '-')}-seed{run.seed}"


def kept(work: Path, run: Run) -> Path:
    """Folder of its records."""
    return place(work, run) / "runs"


def made(settings: Profile, work: Path, run: Run, clock: Clock, log) -> list[dict]:
    """Train, where there is something to train, and record."""
    return {FLOORS: _floors, WITHOUT_WEIGHTS: _without_weights}.get(run.row, _trained)(settings, work, run, clock, log)


def _model(settings: Profile, work: Path, run: Run, row: str):
    return vla_experiments.load(work, [row], run.seed, settings.vla_preset)[row]


def is_trained(settings: Profile, work: Path, run: Run) -> bool:
    """Whether its training has ended here; of a run that was taken over from another machine there are the records alone."""
    place = vla_experiments.folder(work, run.row, run.seed, settings.vla_preset)
    last = checkpoint.latest(place, lambda line: None) if place.is_dir() else None
    return last is not None and checkpoint.about(last)["step"] >= settings.vla_steps


def _trained(settings: Profile, work: Path, run: Run, clock, log) -> list[dict]:
    summary = launch.train_from_config(vla_experiments.job(settings, work, run.row, run.seed, minutes=clock.left()), log)
    if not summary.finished:
        raise OutOfTime(summary.reason)
    model = _model(settings, work, run, run.row)
    first, *others = _score(settings, work, run, lambda here: {run.row: model}, clock, log)
    learned = ablation.learning(vla_experiments.folder(work, run.row, run.seed, settings.vla_preset))
    found = [{**first, "learning": learned}, *others, *looks(settings, work, run, model, log)]
    return [{**record, "training_minutes": round(model.minutes, 2)} for record in found]


def _floors(settings: Profile, work: Path, run: Run, clock, log) -> list[dict]:
    """The row "vggt", hindered."""
    of = Run("vggt", run.seed)
    if not is_trained(settings, work, of):
        if is_done(sys.modules[__name__], settings, work, of):
            raise UserError(f"the floors of seed {run.seed} need its row vggt, which was trained elsewhere",
                            str(vla_experiments.folder(work, of.row, of.seed, settings.vla_preset)), "its records alone",
                            f"do them there, or leave this seed out (--seeds), or remove {place(work, of)}")
        raise OutOfTime("vggt with this seed is not trained yet")
    store, policy = vla_experiments.data(work), _model(settings, work, run, "vggt")
    hindered = lambda here: {name: floor for name, floor in vla_experiments.floors_of("vggt", policy, store, here, run.seed).items()
                             if vla_experiments.needs_weights(name)}
    return _score(settings, work, run, hindered, clock, log)


def _without_weights(settings: Profile, work: Path, run: Run, clock, log) -> list[dict]:
    """Replay, random, constant, expert."""
    store = vla_experiments.data(work)
    others = lambda here: {name: floor for name, floor in vla_experiments.floors_of("vggt", None, store, here, run.seed).items()
                           if not vla_experiments.needs_weights(name)}
    return _score(settings, work, run, others, clock, log)


def _score(settings: Profile, work: Path, run: Run, policies: Callable[[suites.Plan], dict[str, object]], clock, log) -> list[dict]:
    """Records of each policy in each layout of each suite that the data are of. policies: what is scored on a plan."""
    store, found = vla_experiments.data(work), []
    timed = lambda policy: policy if getattr(policy, "privileged", False) else Timed(policy, clock.check)
    for suite in suites.tasks_of(store)[0] or [""]:
        for layout in vla_experiments.layouts(suite):
            here = vla_experiments.plan(settings, store, layout, run.seed, suite, log)
            scored = {name: timed(policy) for name, policy in policies(here).items()}
            found += suites.score(scored, here, place(work, run), store, SYSTEM, run.seed, simulators=settings.simulators,
                                  config=_about(settings, work, run), renew=True, log=log)
    return found


def _about(settings: Profile, work: Path, run: Run) -> dict:
    return {"profile": settings.name, "asked": digest(settings, work), "row": run.row, "corrupt": 0.0}


def looked_at(store: Store) -> str:
    """Where the frames are from, for the names of records: the table, or the suites."""
    found = suites.tasks_of(store)[0]
    return f"the {suites.TABLE}" if suites.GROCERY in found else ", ".join(found) or store.meta["name"]


def looks(settings: Profile, work: Path, run: Run, model, log=print) -> list[dict]:
    """Attention inside the gaze box, on frames of the held-out episodes: of the action queries, and of the words, where these read patches
    (without a backbone they do not, and a blind policy has nothing to look at). Nothing where the data have no gaze boxes."""
    store, found = vla_experiments.data(work), []
    mixes = model.config.backbone != "none" or model.config.fusion == "cross"
    if run.row != "blind" and "gaze.box" not in store.columns:
        log(f"{run.key}: {store.folder} has no gaze boxes: where the model looks is not measured")
        return []
    for source, beginning in LOOKS.items() if run.row != "blind" else ():
        if source == "words" and not mixes:
            continue
        begun = time.monotonic()
        columns, tasks = vla_experiments.attention_columns(model, store, settings.attention_frames, source)
        record = run_records.record(
            SYSTEM, run.row, benchmark=f"{beginning} {looked_at(store)}", data=store.meta["name"], data_hash=store.hash, seed=run.seed,
            config={**_about(settings, work, run), "policy": about(model), "reduced": REDUCED.replace("the action queries", SAID[source])},
            metrics=attention.averages(columns), minutes=minutes(model, begun), simulator="none (recorded frames)", renderer="none",
            not_comparable_with=[SYSTEM])  # fmt: skip
        found.append({**record, "frames": ablation.by_frame(columns, tasks)})
    return found


# ---- tables ------------------------------------------------------------------------------------------------------------------------

def load(folders: Iterable[Path]) -> list[dict]:
    """Records of these folders, of the latest settings only, each number once."""
    return ablation_statistics.latest([record for folder in folders if folder.is_dir() for record in run_records.load_all(folder)])


def records(work: Path) -> list[dict]:
    """Those of the runs of a work folder that are done, of the latest settings only, each number once."""
    return ablation_statistics.latest(seeds.named(sorted((work / "ablation" / SYSTEM).glob("*/done.json")), lambda place: place / "runs"))


def variants(found: Iterable[dict]) -> list[str]:
    """Rows first, in their order, then floors."""
    order = list(vla_experiments.ROWS)
    return sorted({r["variant"] for r in found}, key=lambda name: (order.index(name) if name in order else len(order), name))


def benchmarks(found: Iterable[dict]) -> list[str]:
    """The layouts, "wide" first: where things hardly move, a score says little."""
    return sorted({r["benchmark"] for r in found if "outcomes" in r}, key=lambda name: ("wide" not in name, name))


def table_of(benchmark: str) -> str:
    """The suite, or the grocery table."""
    return benchmark.split(", ")[0]


def apart(benchmark: str) -> str:
    """What it is not comparable with: of LIBERO's own suites, no policy here is one of the paper's."""
    return "LIBERO" if table_of(benchmark) == suites.TABLE else "the paper"


def same_starts(benchmark: str) -> bool:
    """Whether all seeds have the same start states: official ones are a fixed list, wide ones are drawn anew for each seed."""
    return "wide" not in benchmark


def success_table(found: list[dict], benchmark: str) -> ablation_tables.Table:
    """Success over seeds and starts, and paired differences to the policy without a backbone and to the blind one."""
    scored, rows, shared = ablation_statistics.lengths(found, benchmark), [], same_starts(benchmark)
    for name in variants(r for r in found if r["benchmark"] == benchmark):
        mean, cells = ablation_statistics.mean(scored[name], (0, 1), shared), []
        for other in ("none", "blind"):
            both = name != other and other in scored
            apart = ablation_statistics.difference(scored[name], scored[other], (-1, 1), shared) if both else None
            cells.append("" if apart is None else ablation_tables.signed(apart | {k: 100 * apart[k] for k in ("value", "low", "high")}))
        rows.append([name, str(mean["seeds"]), str(mean["n"]), results.shown("1/1", mean), *cells])
    return ["row", "seeds", "starts", "success %", "minus none, points", "minus blind, points"], rows


def task_table(found: list[dict], benchmark: str) -> ablation_tables.Table:
    """Success of each task in % over the episodes of all seeds, with Wilson's interval."""
    mine, shared, rows = [r for r in found if r["benchmark"] == benchmark], same_starts(benchmark), []
    tasks = [name for name in mine[0]["metrics"] if name.startswith("task/")] if mine else []
    for name in variants(mine):
        cells = [pooled([r["metrics"][task] for r in mine if r["variant"] == name], shared) for task in tasks]
        rows.append([name, str(cells[0]["n"]) if cells else "0", *(
            f"{100 * cell['value']:.0f} [{100 * cell['low']:.0f}, {100 * cell['high']:.0f}]" for cell in cells)])
    brief = lambda task: task.removeprefix("task/").removeprefix("pick_up_the_").removesuffix("_and_place_it_in_the_basket")
    return ["row", "n of each task", *(brief(task).replace("_", " ") for task in tasks)], rows


def pooled(rates: list[dict], shared: bool) -> dict:
    """A success rate over the episodes of all seeds, with Wilson's interval; shared: they are of the same starts, which count once."""
    counts = [rate["n"] for rate in rates]
    n, solved = sum(counts), sum(round(rate["value"] * rate["n"]) for rate in rates)
    alike = len(rates) if shared else 1
    low, high = wilson(solved / alike, n // alike)
    return {"value": solved / n, "n": n // alike, "low": low, "high": high}


def learning_table(found: list[dict]) -> ablation_tables.Table:
    """Had the runs levelled off? Loss of the actions on held-out episodes, mean over seeds [least, most]; early records do not have it."""
    rows, trained = [], [r for r in found if r.get("learning", {}).get("held_out")]
    for name in variants(trained):
        curves = [r["learning"] for r in trained if r["variant"] == name]
        at = lambda share, curves=curves: ablation_tables.span(
            [float(np.interp(share * curve["step"][-1], curve["held_out_step"], curve["held_out"])) for curve in curves])
        least = ", ".join(f"{100 * ablation_statistics.early_stop(curve)['share']:.0f} %" for curve in curves)
        rows.append([name, str(len(curves)), str(curves[0]["step"][-1]), at(0.5), at(0.75), at(1), least])
    return ["row", "seeds", "steps", "half-way [least, most]", "at three quarters", "at the end", "where it is least (share of the steps)"
            ], rows


def parts(found: list[dict]) -> list[tuple[str, ablation_tables.Table]]:
    """(title, table) of everything there are records for."""
    named = [(f"{name} (not comparable with {apart(name)})", success_table(found, name)) for name in benchmarks(found)]
    first = {table_of(name): name for name in reversed(benchmarks(found))}
    named += [(f"{name}, by task, % (episodes of all seeds together, Wilson's intervals)", task_table(found, name))
              for name in first.values()]
    for beginning in LOOKS.values():
        for name in sorted({r["benchmark"] for r in found if r["benchmark"].startswith(beginning)}):
            looked = variants(r for r in found if r["benchmark"] == name)
            named += ablation_tables.attention_parts(found, name, name, looked, "none")
    named.append(("Loss of the actions on held-out episodes, while training", learning_table(found)))
    return [(title, table) for title, table in named if table[1]]


def markdown(found: list[dict]) -> str:
    """All tables, one after another."""
    return "\n\n".join(f"## {title}\n\n{results.markdown(*table)}" for title, table in parts(found)) + "\n"


def figure(found: list[dict]):
    """Success of every row: a mark for each seed, the mean with its interval; floors below a line."""
    from matplotlib.figure import Figure

    from repro.ablation_figures import MARKS, SEED

    names, seeds = variants(r for r in found if "outcomes" in r), sorted({r["seed"] for r in found})
    if not names:
        return None
    drawn = Figure(figsize=(1.8 + 4.2 * len(benchmarks(found)), 1.8 + 0.36 * len(names)), layout="constrained", dpi=130)
    for axis, benchmark in zip(drawn.subplots(1, len(benchmarks(found)), squeeze=False)[0], benchmarks(found), strict=True):
        scored = ablation_statistics.lengths(found, benchmark)
        for i, name in enumerate(names):
            if name not in scored:
                continue
            one = ablation_statistics.mean(scored[name], (0, 1), same_starts(benchmark))
            axis.errorbar(100 * one["value"], i, xerr=[[100 * (one["value"] - one["low"])], [100 * (one["high"] - one["value"])]], fmt="|",
                          color="black", markersize=13, markeredgewidth=2, capsize=4)
            for seed, values in scored[name].items():
                axis.plot(100 * values.mean(), i + 0.22, MARKS[seeds.index(seed) % len(MARKS)], **SEED)
        count = len(next(iter(next(iter(scored.values())).values())))
        axis.set_xlabel(f"success, % ({count} episodes a seed)\n{benchmark}", fontsize=8.5)
        axis.set_xlim(-3, 103)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_yticks(range(len(names)), names if axis is drawn.axes[0] else [""] * len(names))
        axis.axhline(sum(name in vla_experiments.ROWS for name in names) - 0.4, color="0.7", linewidth=0.8)
        axis.grid(axis="x", alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    drawn.axes[0].plot([], [], "|", color="black", markersize=10, markeredgewidth=2, label="mean of the seeds")
    for k, seed in enumerate(seeds):
        drawn.axes[0].plot([], [], MARKS[k % len(MARKS)], **SEED, label=f"seed {seed}")
    drawn.legend(loc="outside lower center", ncols=1 + len(seeds), frameon=False, fontsize=8)
    others = " or ".join(sorted({apart(benchmark) for benchmark in benchmarks(found)}))
    drawn.suptitle(f"bars: 95 % intervals over seeds and starts; not comparable with {others}", fontsize=8)
    return drawn


def write(work: Path, log=print, found: list[dict] | None = None) -> list[dict]:
    """`<work>/vggt_vla.md` and `<work>/figures/vla_ablation.png` from the records of what is done, or of `found` alone; returns them."""
    from repro import pictures

    if found := records(work) if found is None else ablation_statistics.latest(found):
        work.mkdir(parents=True, exist_ok=True)
        (work / f"{SYSTEM}.md").write_text(markdown(found))
        pictures.keep(figure(found), work / "figures" / "vla_ablation.png")
        log(f"{len(found)} records; tables: {SYSTEM}.md, figure: figures/vla_ablation.png")
    return found


def publish(work: Path, target: Path, drawn: Iterable[str] = (), log=print) -> Path:
    """Put records, tables and figures of what is done into `results/<profile>`; drawn: figures beside vla_ablation.png."""
    files = [f"{SYSTEM}.md", *(f"figures/{name}" for name in ("vla_ablation.png", *drawn))]
    return seeds.publish(write(work, log), SYSTEM, work, target, files, log)


def draw(settings: Profile, work: Path) -> list[str]:
    """vla_attention.png: the rows that see, on the same held-out frames, of the first seed of which all three were trained here and are
    done; its name. Nothing without such a seed."""
    from repro import pictures

    rows = [row for row in vla_experiments.ROWS if row != "blind"]
    here = lambda run: is_done(sys.modules[__name__], settings, work, run) and is_trained(settings, work, run)
    seed = next((seed for seed in settings.vla_seeds if all(here(Run(row, seed)) for row in rows)), None)
    if seed is None:
        return []
    models, store = vla_experiments.load(work, rows, seed, settings.vla_preset), vla_experiments.data(work)
    pictures.keep(vla_experiments.attention_figure(models, store, settings.attention_frames, REDUCED),
                  work / "figures" / "vla_attention.png")
    return ["vla_attention.png"]


def short_table(found: list[dict]) -> ablation_tables.Table:
    """The success tables in one: of each layout, success; of the first, which tells policies apart, the differences as well."""
    titles, rows = ["row", "seeds"], {}
    for name in benchmarks(found):
        header, lines = success_table(found, name)
        wanted = ["starts", "success %"] if len(titles) > 2 else ["starts", *header[3:]]
        layout = "official" if same_starts(name) else "wide"
        layout = layout if len({table_of(other) for other in benchmarks(found)}) == 1 else f"{table_of(name)}, {layout}"
        titles += [f"{layout}: {title}" for title in wanted]
        for line in lines:
            rows.setdefault(line[0], line[:2]).extend(line[header.index(title)] for title in wanted)
    return titles, [line for line in rows.values() if len(line) == len(titles)]


def readme_section(folder: Path | str) -> str:
    """What README says of the rows in `results/<profile>`."""
    found = load([Path(folder) / "runs" / SYSTEM])
    if not found:
        return "Not measured yet.\n"
    others = " or ".join(sorted({apart(name) for name in benchmarks(found)}))
    return (f"{seeds.where_from(found, folder)}; {longest(found)} on one core. **Not comparable with {others}.**\n\n"
            f"{results.markdown(*short_table(found))}\n")


def longest(found: list[dict]) -> str:
    """How long the longest run trained; early records of a run hold its training and evaluation in one number."""
    rows = [r for r in found if r["config"]["row"] in vla_experiments.ROWS]
    if all("training_minutes" in r for r in rows):
        return f"a run trains for at most {max((r['training_minutes'] for r in rows), default=0):.0f} min"
    return f"a run with its evaluation takes at most {max(r['minutes'] for r in rows):.0f} min"
