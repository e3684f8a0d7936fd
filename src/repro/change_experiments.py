"""The change agent's experiment of notebook 07: its rows, their jobs, and records of how well they point and write, beside their floors.

Rows: "guide" is upstream's architecture with true boxes as targets; "upstream" also has its target, the whole picture for every pair,
whose training error goes to 0 while it points at nothing; "ours" mends what the guide gets wrong. Captions are told in three modes,
always shown together: *given* (the first of the five, an oracle: whoever has it knows that something changed), *none*, and *generated*
(its own). A low loss is no success: what counts is the IoU of the decoded square and whether it points inside, beside the floors.

"guide" and "ours" differ in many things at once. EXTRA rows change one of them, or one group: what a cause is worth. The controls of
"ours" take one of the two dates away (repro.change_asked).
"""

import math
import re
import time
from pathlib import Path

import numpy as np
import torch

from repro import attention, clock, machine, run_records
from repro.change_asked import CONTROLS, Answers, answered, controlled
from repro.data.levir import Pairs, of_one_source
from repro.evaluation import captions, localisation
from repro.machine import UserError
from repro.models.change_agent import ChangeAgent
from repro.profiles import Profile
from repro.training import checkpoint, launch
from repro.training.loop import read_metrics

PRESETS = {"tiny": {"guide": "change_tiny_guide", "ours": "change_tiny_ours"}, "full": {"guide": "change_guide", "ours": "change_t4"}}
ROWS = {"upstream": ("guide", {"box": "whole"}), "guide": ("guide", {}), "ours": ("ours", {})}  # preset, and what it changes
EXTRA = {  # one cause each; not in notebook 07
    "guide, boxes only": ("guide", {"unboxed": "masked"}),  # no target where there is no box, instead of the whole picture
    "ours, first token": ("ours", {"read": "first"}),
    "ours, guide's fusion and loss": ("ours", {"fusion": "add", "loss": "mse"}),
}
CONTROLLED = "ours"  # the row whose controls are recorded
DEBUG = 5  # batches of the guide's debug mode
PAPER = "change_agent"
MAPS, CELLS = 60, 8  # pairs whose maps are measured, at most; cells of the occlusion map along each side


def pairs_of(work: Path, split: str) -> Pairs:
    """The store of one split that notebook 03 makes."""
    place = work / "store" / f"levir_{split}"
    if not (place / "meta" / "repro.json").is_file():
        raise UserError(f"{place} is missing", "a store of LEVIR pairs, or of aerial ones", "none",
                        "run notebook 03 first (repro run --only 03); where it has run, its data has no such split: give it one")
    return of_one_source(Pairs(place))


def boxes_of(pairs: Pairs) -> np.ndarray:
    """(n, 4) box of the largest changed component, NaN for pairs that are not localisable; what was guessed by differencing is no truth."""
    sure = np.array(pairs.column("state")) == "localisable"
    return np.where(sure[:, None], np.asarray(pairs.column("box_main"), np.float32), np.float32(np.nan))


def embedded(pairs: Pairs) -> bool:
    """Were these pairs drawn by sims/aerial.py?"""
    return bool(pairs.store.meta.get("drawn"))


def named(rows: str) -> list[str]:
    """The rows of a comma-separated text; "" for all."""
    chosen = [row.strip() for row in rows.split(",") if row.strip()] or list(ROWS)
    if unknown := [row for row in chosen if row not in ROWS]:
        raise UserError(f"there is no row {unknown[0]!r}", ", ".join(ROWS), rows)
    return chosen


def folder(work: Path, row: str, seed: int = 0) -> Path:
    """Where one training run lies."""
    return work / "train" / (f"change-{slug(row)}" + (f"-seed{seed}" if seed else ""))


def slug(row: str) -> str:
    """A row's name as part of a folder's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", row)


def job(settings: Profile, work: Path, row: str, seed: int = 0, minutes: float | None = None, model: dict | None = None,
        debug: bool = False, **train) -> Path:
    """The config file of one training run, as `repro train` takes it. model, train: fields over the preset's and profile's own.

    Another vision tower, language model, fusion or loss is one entry of `model`, e.g. {"fusion": "add"}. debug: five batches.
    """
    preset, changes = {**ROWS, **EXTRA}[row]
    place, preset = folder(work, row, seed), PRESETS[settings.agent_size][preset]
    steps = DEBUG if debug else train.pop("steps", settings.agent_steps)
    warmup = min(launch.TRAIN[preset]["warmup"], max(1, steps // 10))
    clock = {"budget_minutes": settings.budget_minutes if minutes is None else minutes, "checkpoint_minutes": settings.checkpoint_minutes}
    return launch.write_config(
        place.parent / f"{place.name}.json", name=row, folder=place, store=pairs_of(work, "train").store.folder,
        validation=pairs_of(work, "val").store.folder, model={"preset": preset, **changes, **(model or {})},
        train={"seed": seed, "steps": steps, "warmup": warmup, "measure_every": max(4, min(1000, steps // 10)), "best": True,
               "cpu_bfloat16": True, **clock, **train})  # fmt: skip


def jobs(settings: Profile, work: Path, rows: list[str], seed: int = 0, **options) -> list[Path]:
    """The config files of these rows. They share the session: with fewer devices than rows each gets its part of the time."""
    turns = math.ceil(len(rows) / (len(machine.capabilities()) or machine.cores()))
    return [job(settings, work, row, seed, settings.budget_minutes / turns, **options) for row in rows]


def load(work: Path, rows: list[str], seed: int = 0) -> dict[str, ChangeAgent]:
    """Trained rows, from the checkpoint of the best validation score. On each: `trained`, how far; `minutes`, how long."""
    found = {}
    for row in rows:
        place = folder(work, row, seed)
        path = checkpoint.need(place / "best", "07")
        model, about = ChangeAgent.load(path), checkpoint.about(path)
        lines = read_metrics(place / "metrics.jsonl")
        model.minutes = lines[-1]["seconds"] / 60
        model.trained = {key: about[key] for key in ("step", "train", "data", "commit", "peak_memory_gib") if key in about}
        found[row] = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    return found


def parameters(models: dict[str, ChangeAgent]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): parameters that train, of all, of each part of each model."""
    counts = {row: model.counts() for row, model in models.items()}
    names = dict.fromkeys(name for found in counts.values() for name in found)
    table = [[name, *("{:,} of {:,}".format(*found[name]) if name in found else "-" for found in counts.values())] for name in names]
    sums = [f"{sum(t for t, _ in found.values()):,} of {sum(n for _, n in found.values()):,}" for found in counts.values()]
    return ["part: trainable of all", *models], [*table, ["all", *sums]]


# ---- records -----------------------------------------------------------------------------------------------------------------------


def _record(pairs: Pairs, training: Pairs, settings: Profile, variant: str, what: str, config: dict, metrics: dict, minutes: float,
            seed: int) -> dict:
    source = "drawn aerial pairs" if embedded(training) else str(training.store.meta.get("source", "LEVIR pairs"))
    benchmark = f"change agent, {what}, {len(pairs)} test pairs of {source}"
    return run_records.record(
        PAPER, variant, benchmark=benchmark, data=source, data_hash=training.hash,
        config={"profile": settings.name, "test": pairs.hash, **config}, seed=seed, metrics=metrics, minutes=minutes,
        simulator="none (pictures)", renderer="drawn" if embedded(training) else "none", not_comparable_with=[PAPER])


def score(settings: Profile, work: Path, models: dict[str, ChangeAgent], seed: int = 0, split: str = "test", floors: bool = True,
          folder: Path | None = None, log=print) -> tuple[list[dict], dict[str, dict[str, Answers]]]:
    """Records of every row in every mode and, unless floors is False, of the floors and the ceiling, saved in `folder` (work/runs); and the
    answers, {row: {mode: Answers}}. Answers are kept as they come: out of time, the next session goes on with the modes that are missing.

    Boxes are the largest changed component's, whatever a row was trained on; numbers stand by how many components there are, too. Row
    "ours" is also asked with one of the two dates taken away.
    """
    pairs, training, found, given = pairs_of(work, split), pairs_of(work, "train"), [], {}
    boxes, states, changed = boxes_of(pairs), list(pairs.column("state")), np.asarray(pairs.column("changed"))
    masks = pairs.masks(range(len(pairs))) if "images.mask" in pairs.store.columns else None
    counts = np.where(np.array(pairs.column("box_source")) == "mask", np.asarray(pairs.column("components")), 0)
    references, taught = pairs.column("captions"), training.column("captions")

    def keep(variant: str, what: str, config: dict, metrics: dict, minutes: float) -> None:
        record = _record(pairs, training, settings, variant, what, config, metrics, minutes, seed)
        run_records.save(record, folder or work / "runs")
        found.append(record)

    def pointing(vectors: np.ndarray, gate: np.ndarray | None = None) -> dict:
        columns = localisation.numbers(vectors, boxes, masks)
        if gate is not None:
            columns[localisation.GATED] = localisation.gated(columns["IoU of the square"], gate)
        return localisation.averages(columns, seed) | localisation.by_components(columns, counts, seed)

    guesses = localisation.floors(training, boxes_of(training), pairs, boxes, seed)
    differencing = localisation.numbers(guesses["differencing"], boxes)["IoU of the square"]
    for row, model in models.items():
        place = work / "outcomes" / "change agent" / f"{slug(row)} seed {seed} {split}"
        given[row], written, took = answered(model, pairs, place)
        about, spent = {"model": vars(model.config), "trained": model.trained}, took.get("captions", 0.0)
        for mode, one in given[row].items():
            spent += took[mode]
            metrics = pointing(one.vectors, one.changed)
            iou = localisation.numbers(one.vectors, boxes)["IoU of the square"]
            metrics["IoU minus differencing's"] = localisation.difference(iou, differencing, seed)
            if one.changed is not None:
                metrics |= localisation.gate(one.changed, changed, states)
            keep(f"{row}, caption {mode}", "localisation", {**about, "caption": mode}, metrics, model.minutes + spent / 60)
            log(f"{row}, caption {mode}: mean IoU {metrics['mean IoU of the square']['value']:.3f}")
        if written:
            keep(f"{row}, greedy", "captions", {**about, "meteor": captions.lacks_meteor() or "1.5"},
                 flat(captions.report(written, references, changed, seed=seed)), model.minutes + spent / 60)
        for control in CONTROLS if row == CONTROLLED else ():
            one, seconds = controlled(model, pairs, place, control)
            metrics = pointing(one.vectors, one.changed) | localisation.says_change(one.changed, states)
            keep(f"{row}, {control}", "localisation", {**about, "caption": "none", "control": control}, metrics,
                 model.minutes + seconds / 60)
            log(f"{row}, {control}: mean IoU {metrics['mean IoU of the square']['value']:.3f}")
    for name, vectors in guesses.items() if floors else ():
        blind = np.full(len(pairs), np.mean(training.column("changed"))) if name == localisation.CONSTANT else None
        metrics = pointing(vectors, blind)
        if blind is not None:  # says of every pair what most training pairs are
            metrics |= localisation.gate(blind, changed, states)
        keep(name, "localisation", {"floor": name}, metrics, 0)
    for name, sentences in captions.floors(changed, taught).items() if floors else ():
        keep(name, "captions", {"floor": name, "meteor": captions.lacks_meteor() or "1.5"},
             flat(captions.report(sentences, references, changed, seed=seed)), 0)
    return found, given


def flat(report: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """Metrics of a record: "BLEU-4, overall", "flag accuracy" ..."""
    return {f"flag {name}" if group == "flag" else f"{name}, {group}": metric for group, some in report.items()
            for name, metric in some.items()}  # fmt: skip


# ---- where they look ---------------------------------------------------------------------------------------------------------------


def occlusion(model: ChangeAgent, before: np.ndarray, after: np.ndarray, told: str | None, cells: int = CELLS) -> np.ndarray:
    """(cells, cells), sums to 1: how far [cx, cy, scale] moves when a cell of the later picture is put back to what was before.

    before, after: (H, W, 3). It asks nothing of the model's inside, so the guide's, which has no map, can be held against ours.
    """
    edges = [np.linspace(0, size, cells + 1).round().astype(int) for size in after.shape[:2]]
    healed = [after]
    for y in range(cells):
        for x in range(cells):
            one = after.copy()
            place = np.s_[edges[0][y] : edges[0][y + 1], edges[1][x] : edges[1][x + 1]]
            one[place] = before[place]
            healed.append(one)
    vectors = model.act(np.stack([before] * len(healed)), np.stack(healed), [told] * len(healed))["vector"]
    moved = np.linalg.norm(vectors[1:] - vectors[0], axis=1).reshape(cells, cells)
    return moved / max(moved.sum(), 1e-12) if moved.sum() > 1e-12 else np.full((cells, cells), 1 / cells**2)


def look(settings: Profile, work: Path, models: dict[str, ChangeAgent], found: dict[str, dict[str, Answers]], seed: int = 0,
         split: str = "test", count: int = MAPS) -> tuple[list[dict], dict[str, np.ndarray], np.ndarray]:
    """(records, {name: maps (m, rows, columns)}, the m rows of the store): where rows look, with the numbers of repro.attention. Saved.

    Maps: "<row>, occlusion" of every row, and "<row>, reading" where the head reads by maps. Captions are withheld.
    Minutes at most in every profile: out of time, it begins again in the next session.
    """
    pairs, training = pairs_of(work, split), pairs_of(work, "train")
    rows = np.flatnonzero(~np.isnan(boxes_of(pairs)).any(1))[:count]
    boxes, maps, made = boxes_of(pairs)[rows], {}, []
    for row, model in models.items():
        begun = time.monotonic()
        found_maps, progress = [], clock.Progress(f"occlusion, {row}", len(rows), "pairs")
        for i in rows:
            clock.check()
            found_maps.append(occlusion(model, *(picture[0] for picture in pairs.pictures([i])), None))
            progress(len(found_maps))
        maps[f"{row}, occlusion"] = np.stack(found_maps)
        if found[row]["none"].maps is not None:
            maps[f"{row}, reading"] = found[row]["none"].maps[rows]
        for name in (name for name in maps if name.startswith(f"{row}, ")):
            columns = attention.frame_numbers(maps[name], boxes, rows, seed=seed, tolerance=0, size=64)
            record = _record(pairs, training, settings, name, "maps", {"model": vars(model.config), "trained": model.trained},
                             attention.averages(columns, seed), (time.monotonic() - begun) / 60, seed)
            run_records.save(record, work / "runs")
            made.append(record)
    return made, maps, rows
