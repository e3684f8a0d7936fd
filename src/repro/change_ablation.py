"""The change agent's rows over seeds: each trained, scored beside floors and ceiling, recorded. Resumable.

    repro ablation --system change_agent --profile cpu            # again and again, until it says that all is done
    repro ablation --system change_agent --profile cpu --tables

A seed is first weights, an order of the pairs and what is drawn on the way; train, validation and test pairs are the same for all.
"""

import hashlib
import json
import math
import sys
from pathlib import Path

from repro import change_asked, change_experiments, change_tables, freshness, results, run_records, seeds
from repro.evaluation import localisation
from repro.intervals import over_seeds
from repro.profiles import Profile
from repro.seeds import FLOORS, Clock, OutOfTime, Run, is_done
from repro.training import launch

SYSTEM = "change_agent"
POINTING = {"mean IoU of the square": False, localisation.GATED: False, "pointing in the box": True, "hit rate at IoU 0.5": True,
            "centre error (picture widths)": False, "gate accuracy": True}  # metric -> in percent
FLOOR_ORDER = ("constant", "whole frame", "random", "differencing", "edges gained", "ceiling", "always", "perfect flag")
WRITING = ("BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D")


def runs(settings: Profile) -> list[Run]:
    """Rows seed by seed, so that a table that is not finished is balanced; floors and ceiling, which no seed changes much, once; last the
    rows that are trained with the first seed alone."""
    found, first = [Run(row, seed) for seed in settings.agent_seeds for row in change_experiments.ROWS], settings.agent_seeds[0]
    few = [Run(row, first) for row in settings.agent_few_rows]
    return [*found[: len(change_experiments.ROWS)], Run(FLOORS, first), *found[len(change_experiments.ROWS):], *few]


def prepare(settings: Profile, work: Path, log=print) -> None:
    """The stores of notebook 03, made here where they are absent."""
    from repro.data import levir
    from repro.sims import aerial

    if not (work / "store" / "levir_train" / "meta" / "repro.json").is_file():
        layout = levir.find(aerial.ensure(work / "aerial", *settings.aerial_pairs, 0, settings.workers), work / "levir")
        for split in layout.splits:
            levir.ensure_store(layout.root, split, work / "store" / f"levir_{split}", log=log)


def digest(settings: Profile, work: Path) -> str:
    """Of what decides the numbers of every run, the code that scores included: where that is another, runs are scored anew, not trained."""
    asked = {name: getattr(settings, name) for name in ("agent_size", "agent_steps")}
    asked |= {split: change_experiments.pairs_of(work, split).hash for split in ("train", "val", "test")}
    asked["code"] = freshness.code("evaluation/localisation.py", "evaluation/edge_floor.py", "change_asked.py")
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:10]


def place(work: Path, run: Run) -> Path:
    """Folder of a run's records and done.json."""
    return work / "ablation" / SYSTEM / f"{change_experiments.slug(run.row)}-seed{run.seed}"


def kept(work: Path, run: Run) -> Path:
    """Folder of its records."""
    return place(work, run) / "runs"


def made(settings: Profile, work: Path, run: Run, clock: Clock, log) -> list[dict]:
    """Train, where there is something to train, and record."""
    models = {}
    if run.row != FLOORS:
        summary = launch.train_from_config(change_experiments.job(settings, work, run.row, run.seed, clock.left()), log)
        if not summary.finished:
            raise OutOfTime(summary.reason)
        models = change_experiments.load(work, [run.row], run.seed)
    return change_experiments.score(settings, work, models, run.seed, floors=run.row == FLOORS, folder=kept(work, run), log=log)[0]


# ---- tables ------------------------------------------------------------------------------------------------------------------------

Table = tuple[list[str], list[list[str]]]


def records(work: Path) -> list[dict]:
    """Those of the runs that are done with the same settings: the newest run's."""
    notes = sorted((work / "ablation" / SYSTEM).glob("*/done.json"), key=lambda path: path.stat().st_mtime)
    asked = json.loads(notes[-1].read_text())["asked"] if notes else ""
    told = [(path, json.loads(path.read_text())) for path in notes]
    return [run_records.load(path.parent / "runs" / name) for path, note in told if note["asked"] == asked for name in note["records"]]


def _rows(found: list[dict], asks: str) -> dict[str, list[dict]]:
    """{variant: its records, a seed each} of those that have the metric: rows and their caption modes first, then the controls, floors, the
    ceiling."""
    have = [r for r in found if asks in r["metrics"]]
    rows = [*change_experiments.ROWS, *change_experiments.EXTRA]
    order = [*(f"{row}, caption {mode}" for row in rows for mode in change_asked.MODES), *(f"{row}, greedy" for row in rows),
             *(f"{change_experiments.CONTROLLED}, {control}" for control in change_asked.CONTROLS), *FLOOR_ORDER]
    rank = lambda r: next((i for i, name in enumerate(order) if r["variant"].startswith(name)), len(order))
    grouped: dict[str, list[dict]] = {}
    for r in sorted(have, key=rank):
        grouped.setdefault(r["variant"], []).append(r)
    return grouped


def _cell(found: list[dict], name: str, percent: bool) -> str:
    metrics = [r["metrics"][name] for r in found if name in r["metrics"]]
    if not metrics:
        return "-"
    return change_tables.cell(over_seeds(metrics, math.inf if name.startswith(("CIDEr-D", "centre error")) else 1.0), percent)


def pointing_table(found: list[dict]) -> Table:
    """Where rows, controls, floors and the ceiling point: pairs with a box only, but for the gate, which is asked of all."""
    grouped = _rows(found, "mean IoU of the square")
    n = {r["metrics"]["mean IoU of the square"]["n"] for some in grouped.values() for r in some}
    rows = [[name, str(len(some)), *(_cell(some, metric, percent) for metric, percent in POINTING.items())]
            for name, some in grouped.items()]
    titles = [metric + (" %" if percent else "") for metric, percent in POINTING.items()]
    return [f"row (n = {', '.join(map(str, sorted(n)))} pairs with a box)", "seeds", *titles], rows


def component_table(found: list[dict]) -> Table:
    """IoU and pointing of "ours", floors and the ceiling by how many parts the mask has."""
    some = [r for r in found if r["variant"].startswith((f"{change_experiments.CONTROLLED}, caption", *FLOOR_ORDER))]
    grouped = _rows(some, "mean IoU of the square")
    return change_tables.component_table({name: {metric: over_seeds([r["metrics"][metric] for r in some])
                                                 for metric in some[0]["metrics"] if metric.endswith(localisation.COMPONENTS)}
                                          for name, some in grouped.items()})


def margin(found: list[dict]) -> str:
    """What drawn pairs do for a model with several parts to choose from; "" for others."""
    from repro.sims.aerial_plan import MARGIN

    drawn = any(r["renderer"] == "drawn" for r in found)
    return f"; by construction the largest new building has {MARGIN:g} times the area of the next or more" if drawn else ""


def writing_table(found: list[dict]) -> Table:
    """Captions, x 100: over all pairs, over those that changed, and the change flag."""
    grouped, groups = _rows(found, "BLEU-4, overall"), ("overall", "change only")
    rows = [[name, str(len(some)), *(_cell(some, f"{metric}, {group}", True) for group in groups for metric in WRITING),
             _cell(some, "flag accuracy", True)] for name, some in grouped.items()]
    return ["row", "seeds", *(f"{metric}, {group}" for group in groups for metric in WRITING), "flag accuracy %"], rows


def state_table(found: list[dict]) -> Table:
    """How often each row with a gate, and each control, says that something changed, of the pairs of each state. It has no third answer."""
    rows, n = [], {}
    for name, some in {**_rows(found, "gate accuracy"), **_rows(found, "says change, unchanged")}.items():
        said = {state: [metric for r in some if (metric := change_tables.says_change(r["metrics"], state))]
                for state in change_tables.STATES}  # fmt: skip
        n |= {state: metrics[0]["n"] for state, metrics in said.items() if metrics}
        cells = [change_tables.cell(over_seeds(metrics) if metrics else None, True) for metrics in said.values()]
        rows.append([name, str(len(some)), *cells, change_tables.NO_ANSWER])
    titles = [f'"change" % of {state} (n = {n.get(state, 0)})' for state in change_tables.STATES]
    return ["row", "seeds", *titles, '"changed, no box"'], rows


def parts(found: list[dict]) -> list[tuple[str, Table]]:
    """(title, table) of everything there are records for."""
    named = [("Pointing (not comparable with LEVIR-CC)", pointing_table(found)),
             (f"By 8-connected parts of the mask{margin(found)} (not comparable with LEVIR-CC)", component_table(found)),
             ("What the gate says, by state (not comparable with LEVIR-CC)", state_table(found)),
             ("Captions (not comparable with LEVIR-CC)", writing_table(found))]
    return [(title, table) for title, table in named if table[1]]


def markdown(found: list[dict]) -> str:
    """All tables, one after another."""
    return "\n\n".join(f"## {title}\n\n{results.markdown(*table)}" for title, table in parts(found)) + "\n"


def write(work: Path, log=print, found: list[dict] | None = None) -> list[dict]:
    """`<work>/change_agent.md` from the records of what is done, or of `found` alone; returns them."""
    if found := records(work) if found is None else found:
        work.mkdir(parents=True, exist_ok=True)
        (work / f"{SYSTEM}.md").write_text(markdown(found))
        log(f"{len(found)} records; tables: {SYSTEM}.md")
    return found


def draw(settings: Profile, work: Path) -> list[str]:
    """change_answers.png of the first seed: best, middle and worst answers, captions withheld; its name. Nothing before all are done."""
    from repro import change_figures, pictures
    from repro.evaluation import localisation

    seed, rows = settings.agent_seeds[0], list(change_experiments.ROWS)
    if not all(is_done(sys.modules[__name__], settings, work, Run(row, seed)) for row in rows):
        return []
    pairs, models = change_experiments.pairs_of(work, "test"), change_experiments.load(work, rows, seed)
    none = {row: change_asked.answers(model, pairs, "none") for row, model in models.items()}
    iou = localisation.numbers(none[rows[-1]].vectors, change_experiments.boxes_of(pairs))["IoU of the square"]
    sheet = change_figures.sheet(pairs, change_figures.chosen(iou, pairs.column("state")), none)
    pictures.keep(sheet, work / "figures" / "change_answers.png")
    return ["change_answers.png"]


def publish(work: Path, target: Path, drawn: list[str], log=print) -> Path:
    """Put records, tables and figures of what is done into `results/<profile>`."""
    return seeds.publish(write(work, log), SYSTEM, work, target, [f"{SYSTEM}.md", *(f"figures/{name}" for name in drawn)], log)


def short_table(found: list[dict]) -> Table:
    """Where the three main rows, captions withheld, the floors and the ceiling point."""
    titles, lines = pointing_table(found)
    mains = [f"{row}, caption none" for row in change_experiments.ROWS]
    columns = [0, 1, *(titles.index(title) for title in ("mean IoU of the square", "pointing in the box %", "gate accuracy %"))]
    kept = [line for line in lines if line[0] in mains or line[0].startswith(FLOOR_ORDER)]
    return [titles[i] for i in columns], [[line[i] for i in columns] for line in kept]


def readme_section(folder: Path | str) -> str:
    """What README says of the rows in `results/<profile>`."""
    kept = Path(folder) / "runs" / SYSTEM
    found = run_records.load_all(kept) if kept.is_dir() else []
    if not found:
        return "Not measured yet.\n"
    longest = max(r["minutes"] for r in found)
    return (f"{seeds.where_from(found, folder)}; a run: at most {longest:.0f} min on one core. **Not comparable with LEVIR-CC.**\n\n"
            f"{results.markdown(*short_table(found))}\n")
