"""How good a detector's gaze boxes are, with and without each option: the sets that are measured, the comparison, and its run records.

    sets = [clutter(60), stored(Store("store/validation"))]
    records, measured = compare(load("colour"), sets)
    markdown(*options_table(records, sets[0].name))

A frame is complex if any of four rules holds, else simple (the guide's words: occlusion, small, same colour, "the blue block in the red
bowl"):
- occluded: less than 60 % of the thing is visible (clutter: its own pixels; recorded frames: pixels against the most in its episode);
- small: its true box is under 0.4 % of the picture (13 x 13 of 200 x 200 pixels);
- twin: another thing in the picture has the same name ("the block", on a table with three);
- nested: the sentence tells it by its place or side ("in the red bowl", "the left mug").
Only frames with at least a tenth of the thing visible count. Intervals are bootstraps over episodes, whose frames are not independent.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from repro import machine, results
from repro.data.boxes import BoxIndex
from repro.data.calvin import ensure_store
from repro.data.episodes import Store
from repro.gaze import annotate
from repro.gaze.candidates import area, iou
from repro.gaze.detectors import Detector, Gaze
from repro.gaze.options import ALL, NONE, SINGLE, WITHOUT, Options, look
from repro.gaze.phrase import BLOCK, HELD, TOP, Phrase, parse
from repro.gaze.quality import calibration, contact_sheet, detection_quality, reliability
from repro.intervals import bootstrap
from repro.machine import UserError
from repro.sims import clutter as cluttered
from repro.sims.tabletop import looks, render
from repro.sims.tabletop.scenes import ITEMS, SCENES, item_boxes
from repro.sims.tabletop.tasks import initial_state, random_symbolic

NOUNS = {"red_block": "red block", "blue_block": "blue block", "pink_block": "pink block", "drawer": "drawer", "slider": "sliding door",
         "button": "button", "switch": "switch", "led": "led", "lightbulb": "light bulb"}  # fmt: skip
OCCLUDED, SMALL, SEEN = 0.6, 0.004, 0.1
# The guide's own claims for GroundingDINO on CALVIN (papers/reconvla/notes.md); it states neither n nor rules.
GUIDE = {"simple": 0.92, "complex": 0.67}


@dataclass(frozen=True)
class Episode:
    """One thing looked for along frames. truth: (T, 4) in [0, 1], NaN where it is hidden; visible: (T,) share of it, NaN where unknown."""

    images: Sequence[np.ndarray]
    phrase: Phrase
    said: str
    truth: np.ndarray
    visible: np.ndarray
    twin: bool = False
    group: str = ""  # what belongs together when intervals are drawn: a scene, a recorded episode
    held: np.ndarray | None = None  # (T,) bool: the gripper holds the target, see gaze.annotate.holding

    @property
    def counted(self) -> np.ndarray:
        return ~np.isnan(self.truth).any(1) & ~(self.visible < SEEN)

    def reasons(self) -> list[tuple[str, ...]]:
        """Per frame, the rules by which it is complex; none: simple."""
        nested = self.phrase.place is not None or self.phrase.side is not None
        fixed = (("twin",) if self.twin else ()) + (("nested",) if nested else ())
        return [(("occluded",) if share < OCCLUDED else ()) + (("small",) if size < SMALL else ()) + fixed
                for share, size in zip(self.visible, area(np.nan_to_num(self.truth)), strict=True)]  # fmt: skip


@dataclass(frozen=True)
class Set:
    """Episodes with one name, and what a record must say of them."""

    name: str
    simulator: str
    renderer: str
    episodes: list[Episode] = field(repr=False)


def clutter(count: int, seed: int = 1000, frames: int = 6) -> Set:
    """`count` cluttered scenes (sims/clutter.py), a third of them plain, a quarter far away, a hand passing over each. Seeds under
    1000 served development."""
    made = []
    for i in range(count):
        kind = "plain" if i % 3 == 0 else cluttered.KINDS[1:][i % 6]
        clip = cluttered.make(seed + i, kind, frames, far=i % 4 == 3)
        truth = np.array([np.divide(f.boxes.get("target", [np.nan] * 4), cluttered.SIZE) for f in clip.frames])
        seen = np.array([f.visible["target"] for f in clip.frames])
        made.append(Episode([f.image for f in clip.frames], parse(clip.instruction), clip.instruction, truth, seen, "twin" in clip.names,
                            f"{seed + i}"))  # fmt: skip
    return Set("cluttered scenes", "clutter (drawn scenes)", "OpenCV rasteriser", made)


def items(root: Path | str, split: str, every: int = 1, name: str = "calvin_sim") -> Set:
    """All nine items of every annotated episode of a folder in CALVIN's layout with boxes.json, looked for in every `every`-th frame."""
    folder = Path(root) / split
    index = BoxIndex(folder / "boxes.json")
    pixels = json.loads((folder / "boxes.json").read_text())["pixels_static"]
    made = []
    for episode in index.episodes:
        frames = list(range(episode["start"], episode["end"] + 1))
        files = [next(folder.glob(f"episode_*{frame}.npz")) for frame in frames[::every]]
        images = [np.load(file)["rgb_static"] for file in files]
        for item, noun in NOUNS.items():
            counts = np.array([pixels.get(f"{frame:07d}", {}).get(item, 0) for frame in frames])
            if counts.max() == 0:
                continue
            truth = np.array([np.divide(index.boxes(frame).get(item, [np.nan] * 4), 200) for frame in frames[::every]])
            made.append(Episode(images, Phrase(noun, item), noun, truth, counts[::every] / counts.max(),
                                group=f"{episode['start']}"))  # fmt: skip
    return Set(f"{name}, {split}, all items", "CALVIN (recorded frames)", "TinyRenderer (CPU)", made)


def stored(store: Store, every: int = 3) -> Set:
    """Every `every`-th frame of a store with simulator boxes (`info.boxes`), the instruction's own thing looked for. How much of it is
    visible:
    its box's area against the largest in its episode."""
    made, size = [], tuple(store.info["features"][annotate.STATIC]["shape"][:2])
    for info in store.episodes:
        episode = store.read(info.index)
        episode.columns = {name: values[::every] for name, values in episode.columns.items()}
        phrase, held = parse(info.task), annotate.holding(episode)
        gazes = annotate.exact(episode, annotate.true_boxes(episode, size), "truth")
        truth = np.array([gaze.box if gaze.valid else [np.nan] * 4 for gaze in gazes], dtype=np.float64)
        areas = area(np.nan_to_num(truth))
        made.append(Episode(list(episode.columns[annotate.STATIC]), phrase, info.task, truth, areas / max(1e-9, areas.max()),
                            phrase.target in (BLOCK, TOP, HELD), str(info.index), held))  # fmt: skip
    name = f"{store.meta.get('name') or store.folder.name}, held-out instructions"
    played = store.meta.get("simulator") == "tabletop"
    return Set(name, "tabletop (recorded frames)" if played else "CALVIN (recorded frames)", "as recorded", made)


def textures(count: int, seed: int = 0) -> Set:
    """All visible items of `count` play tables A-D with woods, metals, walls, floors and shades of the blocks drawn anew."""
    random, made = np.random.default_rng([seed, 31]), []
    for i in range(count):
        scene = looks.repainted(SCENES["ABCD"[i % 4]], int(random.integers(2**31)))
        state = initial_state("ABCD"[i % 4], random_symbolic(random), int(random.integers(2**31)))
        drawn = render.render(scene, state["robot_obs"], state["scene_obs"], cameras=("static",))
        for item, box in item_boxes(drawn["static_ids"]).items():
            if (drawn["static_ids"] == ITEMS.index(item) + 1).sum() >= 30:
                made.append(Episode([drawn["static"]], Phrase(NOUNS[item], item), NOUNS[item], np.array([box]) / 200, np.array([np.nan]),
                                    group=str(i)))  # fmt: skip
    return Set("play tables with unseen textures, all items", "tabletop", "OpenCV rasteriser", made)


# ---- measuring --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A detector's gaze on a set with one choice of options; (N,) arrays over its frames."""

    set: Set
    options: Options
    gazes: list[Gaze]
    truth: np.ndarray  # (N, 4)
    hit: np.ndarray  # IoU >= 0.5 with the true box
    counted: np.ndarray
    complex: np.ndarray
    reasons: list[tuple[str, ...]]
    group: np.ndarray
    episode: np.ndarray
    seconds: float

    def rate(self, part: np.ndarray) -> dict:
        """Share of hits among counted frames of a part (N,) bool: value, n (frames), low, high (bootstrap over groups)."""
        return _clustered(self.hit, self.counted & part, self.group)

    def quality(self) -> dict:
        """`quality.detection_quality` of all counted frames."""
        boxes = np.stack([g.box for g in self.gazes])
        return detection_quality(boxes, np.nan_to_num(self.truth), [g.source for g in self.gazes], self.counted, self.episode)

    def calibration(self) -> dict:
        claims = np.array([g.valid for g in self.gazes]) & self.counted
        return calibration(np.array([g.score for g in self.gazes])[claims], self.hit[claims])


def measure(detector: Detector, frames: Set, options: Options) -> Measured:
    """Look for every episode's thing in its frames."""
    source, gazes, start = "colour" if detector.name == "colour" else "detector", [], time.monotonic()
    for episode in frames.episodes:
        gazes += look(detector, episode.images, [episode.phrase] * len(episode.images), options, episode.held, source)
    seconds = time.monotonic() - start
    truth = np.concatenate([e.truth for e in frames.episodes])
    hit = np.array([g.valid for g in gazes]) & (iou(np.stack([g.box for g in gazes]), np.nan_to_num(truth)) >= 0.5)
    reasons = [r for e in frames.episodes for r in e.reasons()]
    group = np.array([e.group for e in frames.episodes for _ in e.images])
    number = np.array([i for i, e in enumerate(frames.episodes) for _ in e.images])
    counted = np.concatenate([e.counted for e in frames.episodes])
    return Measured(frames, options, gazes, truth, hit, counted, np.array([bool(r) for r in reasons]), reasons, group, number, seconds)


def _clustered(values: np.ndarray, part: np.ndarray, group: np.ndarray, least: float = 0.0, seed: int = 0, draws: int = 2000) -> dict:
    """Mean of values in [least, 1] over `part`, with a 95 % bootstrap interval over groups (their frames kept together)."""
    n = int(part.sum())
    if n == 0:
        return {"value": 0.0, "n": 0, "low": 0.0, "high": 0.0}
    names, place = np.unique(group[part], return_inverse=True)
    total, count = np.bincount(place, values[part].astype(float)), np.bincount(place).astype(float)
    value = float(total.sum() / count.sum())
    if np.ptp(total / count) == 0:  # a bootstrap of equal groups would claim certainty
        low, high = bootstrap(total / count, (least, 1.0))
        return {"value": value, "n": n, "groups": len(names), "low": min(low, value), "high": max(high, value)}
    picks = np.random.default_rng(seed).integers(0, len(names), (draws, len(names)))
    low, high = np.percentile(total[picks].sum(1) / count[picks].sum(1), [2.5, 97.5])
    return {"value": value, "n": n, "groups": len(names), "low": min(float(low), value), "high": max(float(high), value)}


def gain(one: Measured, none: Measured, part: np.ndarray) -> dict:
    """Hits with the options minus hits with none, the same frames paired."""
    return _clustered(one.hit.astype(float) - none.hit, none.counted & part, none.group, -1.0)


def compare(detector: Detector, sets: Sequence[Set], options: Sequence[Options] = (NONE, *SINGLE, *WITHOUT, ALL), seed: int = 0,
            log: Callable[[str], None] = print) -> tuple[list[dict], dict]:
    """Measure every set with every choice of options; (run records, {(set, label): Measured})."""
    records, found = [], {}
    for frames in sets:
        none = measure(detector, frames, NONE)
        for each in options:
            one = none if each == NONE else measure(detector, frames, each)
            found[frames.name, each.label] = one
            records.append(_record(detector, one, none, seed))
            m = records[-1]["metrics"]
            shares = ", ".join(f"{k} {m[k]['value']:.3f} (n {m[k]['n']})" for k in ("simple", "complex") if k in m)
            log(f"{frames.name}: {each.label}: {shares}")
    return records, found


def _record(detector: Detector, one: Measured, none: Measured, seed: int) -> dict:
    every, quality, meaning = np.ones(len(one.hit), bool), one.quality(), one.calibration()
    parts = {"all": every, "simple": ~one.complex, "complex": one.complex}
    parts |= {f"complex: {rule}": np.array([rule in r for r in one.reasons]) for rule in ("occluded", "small", "twin", "nested")}
    metrics = {name: one.rate(part) for name, part in parts.items() if (one.counted & part).any()}
    if one is not none:
        metrics |= {f"{name}, minus none": gain(one, none, part) for name, part in parts.items() if (one.counted & part).any()}
    for item in dict.fromkeys(e.phrase.item for e in one.set.episodes if e.phrase.item):
        mine = np.array([e.phrase.item == item for e in one.set.episodes for _ in e.images])
        if (one.counted & mine).any():
            metrics[f"item {item}"] = one.rate(mine)
        half = mine & (np.concatenate([e.visible for e in one.set.episodes]) >= 0.5)
        if (one.counted & half).any():
            metrics[f"item {item}, at least half visible"] = one.rate(half)
    half = np.concatenate([e.visible for e in one.set.episodes]) >= 0.5
    if half.any():
        metrics["at least half visible"] = one.rate(half)
    point = lambda value, n: {"value": float(value), "n": n, "low": float(value), "high": float(value)}
    for name in ("precision", "centre_error", "jump_rate"):
        if quality[name] is not None:
            metrics[name.replace("_", " ")] = point(quality[name], quality["n"])
    metrics["calibration error"] = point(meaning["error"], meaning["n"])
    notes = {}
    for gaze in one.gazes:
        notes[gaze.note] = notes.get(gaze.note, 0) + bool(gaze.note)
    config = {"detector": detector.name, "fingerprint": detector.fingerprint(), "options": one.options.label, "sources": quality["sources"],
              "notes": {k: v for k, v in notes.items() if v}, "hidden": quality["hidden"], "false alarms": quality["false_alarms"],
              "calibration": meaning["rows"], "separates": meaning["separates"],
              "milliseconds a frame": round(1000 * one.seconds / max(1, len(one.hit)), 1)}  # fmt: skip
    fixed = {k: config[k] for k in ("detector", "fingerprint", "options")}
    record = results.record("gaze", f"{detector.name}, {one.options.label}", benchmark=f"gaze: {one.set.name}", data=one.set.name,
                            data_hash="", config=fixed, seed=seed, metrics=metrics, minutes=one.seconds / 60, simulator=one.set.simulator,
                            renderer=one.set.renderer, not_comparable_with=["guide"])  # fmt: skip
    return record | {"config": config}


# ---- tables -----------------------------------------------------------------------------------------------------------------------------


def options_table(records: list[dict], name: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a choice of options on the set called `name`, simple and complex scenes, each with its gain over "none"."""
    mine = [r for r in records if r["data"] == name]
    parts = [p for p in ("simple", "complex") if any(p in r["metrics"] for r in mine)]
    count = {p: next(r["metrics"][p] for r in mine if p in r["metrics"]) for p in parts}
    header = ["options", *(f"{p} % (n = {count[p]['n']} frames, {count[p]['groups']} scenes)" for p in parts)]
    header += [f"{p}: gain" for p in parts]
    rows = []
    for r in mine:
        cells = [_percent(r["metrics"].get(p)) for p in parts] + [_percent(r["metrics"].get(f"{p}, minus none"), "+") for p in parts]
        rows.append([r["config"]["options"], *cells])
    return header, rows


def detectors_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a set and detector with all options and with none, beside the guide's numbers; GroundingDINO says
    "not run" until it was."""
    header = ["detector", "options", "set", "simple % [95 %]", "complex % [95 %]", "precision %", "centre error, px", "jumps %",
              "calibration error"]  # fmt: skip
    rows = [["GroundingDINO, the guide's claim", "none", "CALVIN; n and rules not stated", f"{100 * GUIDE['simple']:.0f}",
             f"{100 * GUIDE['complex']:.0f}", "-", "-", "-", "-"]]  # fmt: skip
    for r in records:
        if r["config"]["options"] in ("none", "all"):
            m = r["metrics"]
            number = lambda key, scale, form, m=m: format(scale * m[key]["value"], form) if key in m else "-"
            rows.append([r["config"]["detector"], r["config"]["options"], r["data"], _percent(m.get("simple")), _percent(m.get("complex")),
                         number("precision", 100, ".0f"), number("centre error", 1, ".1f"), number("jump rate", 100, ".1f"),
                         number("calibration error", 1, ".2f")])  # fmt: skip
    if not any("grounding" in r["config"]["detector"] for r in records):
        rows.append(["GroundingDINO", "none and all", "all", *["not run (no weights here)"] * 2, "-", "-", "-", "-"])
    return header, rows


def items_table(records: list[dict], name: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row an item of the set called `name`, and all; columns: none and all options; on items at least half
    visible where that is known."""
    mine = [r for r in records if r["data"] == name and r["config"]["options"] in ("none", "all")]
    keys = [k for k in dict.fromkeys(k for r in mine for k in r["metrics"]) if k.startswith("item ")]
    half = [k for k in keys if k.endswith("half visible")]
    keys = [*(half or [k for k in keys if "," not in k]), "at least half visible" if half else "all"]
    rows = [[k.removeprefix("item ").split(",")[0] if k.startswith("item") else "**all**", str(mine[0]["metrics"][k]["n"]),
             *(_percent(r["metrics"].get(k)) for r in mine)] for k in keys]  # fmt: skip
    return ["item", "frames", *(f"{r['config']['options']}: IoU >= 0.5, % [95 %]" for r in mine)], rows


def _percent(metric: dict | None, sign: str = "") -> str:
    if metric is None or not metric["n"]:
        return "-"
    value, low, high = (100 * metric[k] for k in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


# ---- a whole measurement
# ------------------------------------------------------------------------------------------------------------------

SIZES = {"smoke": (42, 12), "cpu": (300, 60), "t4": (300, 60)}  # cluttered scenes, play tables with unseen textures


def run(work: Path, profile: str, detectors: Sequence[Detector], folders: Sequence[Path] = (), seed: int = 0,
        log: Callable[[str], None] = print) -> list[dict]:
    """Measure detectors on cluttered scenes, on unseen textures and on the validation split of every folder in CALVIN's layout with
    boxes.json (its instructions' own things, and all items); records in work/runs, sheets and reliability in work/figures, tables
    in work/report.md."""
    if profile not in SIZES:
        raise UserError(f"no size {profile!r}", " | ".join(SIZES), profile)
    clips, tables = SIZES[profile]
    sets, every = [clutter(clips), textures(tables, seed=1)], 4 if profile == "smoke" else 1
    for folder in folders:
        store = ensure_store(folder, "validation", work / "store" / Path(folder).name)
        sets += [stored(store, every), items(folder, "validation", every, Path(folder).name)]
    records = []
    for detector in detectors:
        made, found = compare(detector, sets, seed=seed, log=log)
        records += made
        for frames in sets:
            save_figures(found[frames.name, "all"], found[frames.name, "none"], work / "figures", detector.name)
    for record in records:
        results.save(record, work / "runs")
    (work / "report.md").write_text(report(ordered(work)))
    return records


def save_figures(one: Measured, none: Measured, folder: Path, name: str) -> list[Path]:
    """Contact sheets of hits and of misses, and the reliability of the score, as PNG files."""
    slug = re.sub(r"[^a-z0-9]+", "_", f"{name} {one.set.name}".lower()).strip("_")
    figures = {"hits": sheet(one, one.hit), "misses": sheet(one, ~one.hit),
               "calibration": reliability({"none": none.calibration(), "all": one.calibration()}, f"{name}: {one.set.name}")}  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for kind, figure in figures.items():
        figure.savefig(folder / f"{slug}_{kind}.png", dpi=80, metadata={"Software": None})
    return [folder / f"{slug}_{kind}.png" for kind in figures]


def sheet(one: Measured, which: np.ndarray, count: int = 12):
    """A contact sheet of up to `count` counted frames of `which` (N,) bool, spread over the set."""
    pictures = [image for episode in one.set.episodes for image in episode.images]
    said = [episode.said for episode in one.set.episodes for _ in episode.images]
    picks = np.flatnonzero(which & one.counted)
    picks = picks[np.linspace(0, len(picks) - 1, min(count, len(picks))).round().astype(int)] if len(picks) else picks
    truth = np.where(one.counted[:, None], one.truth, np.nan)
    return contact_sheet([pictures[i] for i in picks], np.array([one.gazes[i].box for i in picks]), truth[picks], [said[i] for i in picks],
                         [one.gazes[i].source for i in picks],
                         title=f"{one.set.name}, options {one.options.label}: {'hits' if len(picks) and one.hit[picks[0]] else 'misses'}")


def report(records: list[dict]) -> str:
    """The tables of a measurement, in markdown."""
    parts = ["# Gaze boxes: how good they are",
             "Shares of frames with IoU >= 0.5 with the simulator's box; brackets: 95 % bootstrap over scenes or episodes. What makes "
             "a frame complex is written in `src/repro/evaluation/gaze.py`. " + _where(records),
             results.markdown(*detectors_table(records))]  # fmt: skip
    for name in dict.fromkeys(r["data"] for r in records):
        parts.append(f"## {name}\n\n{results.markdown(*options_table(records, name))}")
        if any(k.startswith("item ") for r in records if r["data"] == name for k in r["metrics"]):
            parts.append(results.markdown(*items_table(records, name)))
    return "\n\n".join(parts) + "\n"


def _where(records: list[dict]) -> str:
    """Hardware, commit and time of records, in words."""
    commits, hardware = ({r[key] for r in records} for key in ("commit", "hardware"))
    return f"Commit {', '.join(sorted(commits))}; {', '.join(sorted(hardware))}."


START = "<!-- gaze: written by `repro gaze quality --publish` from results/gaze, checked by tests/test_readme.py -->"
END = "<!-- end of gaze -->"


def ordered(folder: Path) -> list[dict]:
    """The records of folder/runs in the order of a report: by set, then none, one option, all but one, all."""
    labels = [options.label for options in (NONE, *SINGLE, *WITHOUT, ALL)]
    kinds = ("clutter", "CALVIN", "tabletop")
    place = lambda r: ([r["simulator"].startswith(kind) for kind in kinds].index(True), r["data"], r["config"]["detector"],
                       labels.index(r["config"]["options"]))  # fmt: skip
    return sorted((results.load(path) for path in folder.glob("runs/*.json")), key=place)


def readme_section(records: list[dict]) -> str:
    """README's block of gaze boxes: detectors, the options on cluttered scenes, the items of the simulator's frames."""
    drawn = next(r["data"] for r in records if r["simulator"].startswith("clutter"))
    parts = [_where(records), results.markdown(*detectors_table(records)), f"Options on {drawn}, frames with IoU >= 0.5:",
             results.markdown(*options_table([r for r in records if r["config"]["detector"] == "colour"], drawn))]  # fmt: skip
    for name in dict.fromkeys(r["data"] for r in records if r["data"].endswith("all items") and r["simulator"].startswith("CALVIN")):
        parts += [f"`colour` on {name} (at least half visible):", results.markdown(*items_table(records, name))]
    return "\n\n".join(parts) + "\n"


def publish(work: Path, log: Callable[[str], None] = print) -> Path:
    """Copy records, report and figures of work to results/gaze, ready to commit; records of an edited tree are refused."""
    target, found = machine.root() / "results" / "gaze", sorted(work.glob("runs/*.json"))
    if not found:
        raise UserError("no records of gaze quality", f"{work}/runs/*.json", "none", "repro gaze quality")
    records = [results.load(path) for path in found]
    if any("+changes" in record["commit"] for record in records):
        raise UserError("records of an edited tree are not published", "commit, then repro gaze quality again", work)
    for part in ("runs", "figures"):
        shutil.rmtree(target / part, ignore_errors=True)
        shutil.copytree(work / part, target / part)
    shutil.copyfile(work / "report.md", target / "report.md")
    readme = machine.root() / "README.md"
    readme.write_text(results.between(readme.read_text(), START, END, readme_section(ordered(target))))
    log(f"{len(found)} records, figures and report.md: {target.relative_to(machine.root())}")
    return target
