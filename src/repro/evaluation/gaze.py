"""How good a detector's gaze boxes are, with and without each option: the sets that are measured, the comparison, and its run records.

    sets = [clutter(60), stored(Store("store/validation"))]
    records, measured = compare(load("colour"), sets)
    markdown(*options_table(records, sets[0].name))

A frame is complex if any of four rules holds, else simple (the guide's words: occlusion, small, same colour, "the blue block in the red
bowl"):
- occluded: less than 60 % of the thing is visible: of its own pixels (clutter), or of what its projected box usually holds (`items`: pixels
  against `state.state_boxes`; `stored`: area of the visible box against the projected one). Play-table frames: not known, no frame
  counts as such;
- small: its true box is under 0.4 % of the picture (13 x 13 of 200 x 200 pixels);
- twin: another thing in the picture has the name of what is looked for ("the block", on a table with three);
- nested: the sentence tells it by its place or side ("in the red bowl", "the left mug").
Only frames with at least a tenth of the thing visible count. Intervals are bootstraps over episodes, whose frames are not independent.
"""

import hashlib
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from repro import clock, machine, results
from repro.data.boxes import BoxIndex
from repro.data.calvin import Calvin, canonical, ensure_store
from repro.data.episodes import Store
from repro.gaze import annotate, state
from repro.gaze.candidates import area, iou
from repro.gaze.detectors import Detector, Gaze
from repro.gaze.options import ALL, NONE, SINGLE, WITHOUT, Options, look, said
from repro.gaze.phrase import BLOCK, HELD, TOP, Phrase, parse, resolve
from repro.gaze.phrase import look as look_at
from repro.gaze.quality import calibration, contact_sheet, reliability
from repro.intervals import bootstrap
from repro.machine import UserError
from repro.sims import clutter as cluttered
from repro.sims.tabletop import looks, render
from repro.sims.tabletop.scenes import ITEMS, SCENES, item_boxes
from repro.sims.tabletop.tasks import initial_state, random_symbolic

NOUNS = {"red_block": "red block", "blue_block": "blue block", "pink_block": "pink block", "drawer": "drawer", "slider": "sliding door",
         "button": "button", "switch": "switch", "led": "led", "lightbulb": "light bulb"}  # fmt: skip
OCCLUDED, SMALL, SEEN = 0.6, 0.004, 0.1
OPTIONS = (NONE, *SINGLE, *WITHOUT, ALL)  # that a measurement compares
# The guide's own claims for GroundingDINO on CALVIN (papers/reconvla/notes.md); it states neither n nor rules.
GUIDE = {"simple": 0.92, "complex": 0.67}


@dataclass(frozen=True)
class Episode:
    """What is looked for along frames, a phrase a frame. truth: (T, 4) in [0, 1], NaN where it is hidden; visible: (T,) share of it, NaN
    where unknown; held: (T,) bool, the gripper holds the target and the gaze is on the destination; item: its name in CALVIN, where one is
    asked for."""

    images: Sequence[np.ndarray]
    phrases: Sequence[Phrase]
    said: str
    truth: np.ndarray
    visible: np.ndarray
    held: Sequence[bool]
    twin: bool = False
    group: str = ""  # what belongs together when intervals are drawn: a scene, a recorded episode
    item: str | None = None

    @property
    def counted(self) -> np.ndarray:
        return ~np.isnan(self.truth).any(1) & ~(self.visible < SEEN)

    def reasons(self) -> list[tuple[str, ...]]:
        """Per frame, the rules by which it is complex; none: simple."""
        found = []
        sizes = area(np.nan_to_num(self.truth))
        for phrase, held, share, size in zip(self.phrases, self.held, self.visible, sizes, strict=True):
            rules = {"occluded": share < OCCLUDED, "small": size < SMALL,
                     "twin": self.twin or look_at(phrase, held)[0] in (BLOCK, TOP, HELD), "nested": any(said(phrase, held))}  # fmt: skip
            found.append(tuple(rule for rule, holds in rules.items() if holds))
        return found


@dataclass
class Set:
    """Episodes with one name, and what a record must say of them."""

    name: str
    simulator: str
    renderer: str
    episodes: list[Episode] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """Hash of all pictures, true boxes and sentences."""
        total = hashlib.sha256()
        for episode in self.episodes:
            total.update(episode.said.encode() + np.asarray(episode.truth, np.float32).tobytes())
            for image in episode.images:
                total.update(hashlib.blake2b(np.ascontiguousarray(image)).digest())
        return total.hexdigest()


def clutter(count: int, seed: int = 1000, frames: int = 6) -> Set:
    """`count` cluttered scenes (sims/clutter.py), a third of them plain, a quarter far away, a hand passing over each. Seeds under
    1000 served development."""
    made = []
    for i in range(count):
        kind = "plain" if i % 3 == 0 else cluttered.KINDS[1:][(2 * (i // 3) + i % 3 - 1) % 6]
        clip = cluttered.make(seed + i, kind, frames, far=np.random.default_rng([seed + i, 9]).random() < 0.25)
        truth = np.array([np.divide(f.boxes.get("target", [np.nan] * 4), cluttered.SIZE) for f in clip.frames])
        seen = np.array([f.visible["target"] for f in clip.frames])
        words, never = clip.instruction, [False] * frames
        made.append(Episode([f.image for f in clip.frames], [parse(words)] * frames, words, truth, seen, never, "twin" in clip.names,
                            f"{seed + i}"))  # fmt: skip
    return Set("cluttered scenes", "clutter (drawn scenes)", "OpenCV rasteriser", made)


def items(root: Path | str, split: str, every: int = 1, name: str = "calvin_sim") -> Set:
    """All nine items of every annotated episode of a folder in CALVIN's layout with boxes.json, looked for in every `every`-th frame."""
    folder, source = Path(root) / split, Calvin(root).split(split)
    if not (folder / "boxes.json").is_file():
        raise UserError(f"{folder} has no true boxes to compare with.", expected="boxes.json beside the frames", found="none",
                        next_step="frames of a simulator (repro demos calvin); the notebook shows a detector without them")  # fmt: skip
    index, told = BoxIndex(folder / "boxes.json"), json.loads((folder / "boxes.json").read_text())["pixels_static"]
    pixels = {int(frame): counts for frame, counts in told.items()}
    seen, made = [], []
    for episode in index.episodes:
        frames = range(episode["start"], episode["end"] + 1, every)
        files = [np.load(folder / f"episode_{frame:0{source.digits}d}.npz") for frame in frames]
        scene = episode["scene"].removeprefix("calvin_scene_")
        projected = [state.state_boxes(scene, canonical(file["scene_obs"][None], scene)[0]) for file in files]
        images, boxes = [file["rgb_static"] for file in files], [index.boxes(frame) for frame in frames]
        for item, noun in NOUNS.items():
            count = np.array([pixels.get(frame, {}).get(item, 0) for frame in frames])
            whole = np.array([40_000 * area(p[item]) if item in p else np.nan for p in projected])
            truth = np.array([np.divide(b.get(item, [np.nan] * 4), 200) for b in boxes])
            seen.append((item, count / whole))
            made.append(Episode(images, [Phrase(noun, item)] * len(images), noun, truth, count / whole, [False] * len(images),
                                group=f"{episode['start']}", item=item))  # fmt: skip
    usual = {item: np.nanpercentile(np.concatenate([s for i, s in seen if i == item]), 90) for item in NOUNS}
    made = [replace(e, visible=np.minimum(1, e.visible / usual[e.item])) for e in made]
    return Set(f"{name}, {split}, all items", "CALVIN (recorded frames)", "TinyRenderer (CPU)", made)


def stored(store: Store, every: int = 3) -> Set:
    """Every `every`-th frame of a store with simulator boxes (`info.boxes`), the instruction's own thing looked for."""
    made, size = [], tuple(store.info["features"][annotate.STATIC]["shape"][:2])
    played = store.meta.get("simulator") == "tabletop"
    for info in store.episodes:
        episode = store.read(info.index)
        held = annotate.holding(episode, resolve(parse(info.task), episode.columns[annotate.STATE]))
        phrases, on, _ = annotate.course(parse(info.task), held)
        boxes, exact = annotate.true_boxes(episode, size), annotate.exact
        gazes = exact(episode, boxes, "truth")
        truth = np.array([gaze.box if gaze.valid else [np.nan] * 4 for gaze in gazes], dtype=np.float64)
        visible = np.full(len(truth), np.nan)
        if not played:
            whole = [gaze.box for gaze in exact(episode, annotate.state_of(episode), "state")]
            visible = np.minimum(1, area(np.nan_to_num(truth)) / np.maximum(1e-9, area(np.array(whole))))
        made.append(Episode(list(episode.columns[annotate.STATIC][::every]), phrases[::every], info.task, truth[::every], visible[::every],
                            on[::every], group=str(info.index)))  # fmt: skip
    name = f"{store.meta.get('name') or store.folder.name}, its instructions"
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
                made.append(Episode([drawn["static"]], [Phrase(NOUNS[item], item)], NOUNS[item], np.array([box]) / 200, np.array([np.nan]),
                                    [False], group=str(i), item=item))  # fmt: skip
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

    @property
    def claimed(self) -> np.ndarray:
        return np.array([g.valid for g in self.gazes])

    def others(self) -> dict:
        """Precision among claims, false alarms on frames whose thing has no pixel, jumps between neighbouring claims by more than a
        tenth of the picture, the median distance of centres in pixels of 200, and how much of the thing a crop with no and with 15 %
        margin holds."""
        boxes, hidden = np.stack([g.box for g in self.gazes]).astype(np.float64), np.isnan(self.truth).any(1)
        every = self.claimed & self.counted
        centre, real = (boxes[:, :2] + boxes[:, 2:]) / 2, np.nan_to_num(self.truth)
        away = 200 * np.linalg.norm(centre - (real[:, :2] + real[:, 2:]) / 2, axis=1)
        steps = np.append(self.claimed[1:] & self.claimed[:-1] & (self.episode[1:] == self.episode[:-1]), False)
        jumps = np.append(np.linalg.norm(np.diff(centre, axis=0), axis=1) > 0.1, False)
        found = {"precision": _clustered(self.hit, every, self.group), "false alarms": _clustered(self.claimed, hidden, self.group),
                 "jumps": _clustered(jumps, steps, self.group), "centre error": _clustered(away, every, self.group, middle=np.median)}
        for margin in (0.0, 0.15):
            grown = boxes + margin * np.concatenate([boxes[:, :2] - boxes[:, 2:], boxes[:, 2:] - boxes[:, :2]], 1)
            inside = np.clip(np.minimum(grown[:, 2:], real[:, 2:]) - np.maximum(grown[:, :2], real[:, :2]), 0, None).prod(1)
            held = inside / np.maximum(1e-9, area(real))
            found[f"share of the thing in the crop, margin {margin:.0%}"] = _clustered(held, every, self.group)
        return {name: value for name, value in found.items() if value["n"]}

    def calibration(self) -> dict:
        claims = self.claimed & self.counted
        return calibration(np.array([g.score for g in self.gazes])[claims], self.hit[claims])


def measure(detector: Detector, frames: Set, options: Options, log: Callable[[str], None] = lambda line: None) -> Measured:
    """Look for every episode's thing in its frames; OutOfTime where the session ends."""
    source, gazes, start = "colour" if detector.name == "colour" else "detector", [], time.monotonic()
    progress = clock.Progress(f"{detector.name}, {frames.name}, {options.label}", len(frames.episodes), "episodes", log)
    for i, episode in enumerate(frames.episodes):
        clock.check()
        progress(i)
        gazes += look(detector, episode.images, episode.phrases, options, episode.held, source)
    seconds = time.monotonic() - start
    truth = np.concatenate([e.truth for e in frames.episodes])
    hit = np.array([g.valid for g in gazes]) & (iou(np.stack([g.box for g in gazes]), np.nan_to_num(truth)) >= 0.5)
    reasons = [r for e in frames.episodes for r in e.reasons()]
    group = np.array([e.group for e in frames.episodes for _ in e.images])
    number = np.array([i for i, e in enumerate(frames.episodes) for _ in e.images])
    counted = np.concatenate([e.counted for e in frames.episodes])
    return Measured(frames, options, gazes, truth, hit, counted, np.array([bool(r) for r in reasons]), reasons, group, number, seconds)


def _clustered(values: np.ndarray, part: np.ndarray, group: np.ndarray, least: float = 0.0, middle=np.mean, seed: int = 0,
               draws: int = 2000) -> dict:  # fmt: skip
    """Mean (or another `middle`) of values over `part`, with a 95 % bootstrap interval over groups (their frames kept together). Shares
    lie in [least, 1]: where all groups are equal, the interval is what is still possible."""
    n = int(part.sum())
    if n == 0:
        return {"value": 0.0, "n": 0, "groups": 0, "low": 0.0, "high": 0.0}
    chosen = values[part].astype(float)
    names, place = np.unique(group[part], return_inverse=True)
    value, random = float(middle(chosen)), np.random.default_rng(seed)
    picks = random.integers(0, len(names), (draws, len(names)))
    if middle is not np.mean:
        parts = [chosen[place == g] for g in range(len(names))]
        found = [middle(np.concatenate([parts[g] for g in pick])) for pick in picks[:300]]
        low, high = np.percentile(found, [2.5, 97.5])
    else:
        total, count = np.bincount(place, chosen), np.bincount(place).astype(float)
        low, high = np.percentile(total[picks].sum(1) / count[picks].sum(1), [2.5, 97.5])
        if np.ptp(total / count) == 0:  # a bootstrap of equal groups would claim certainty
            low, high = bootstrap(total / count, (least, 1.0))
    return {"value": value, "n": n, "groups": len(names), "low": min(float(low), value), "high": max(float(high), value)}


def gain(one: Measured, none: Measured, part: np.ndarray) -> dict:
    """Hits with the options minus hits with none, the same frames paired."""
    return _clustered(one.hit.astype(float) - none.hit, none.counted & part, none.group, -1.0)


def compare(detector: Detector, sets: Sequence[Set], options: Sequence[Options] = OPTIONS, seed: int = 0,
            log: Callable[[str], None] = print) -> tuple[list[dict], dict]:
    """Measure every set with every choice of options, NONE and ALL always among them; (run records, {(set, label): Measured}). A
    record's minutes are those of all its set's measurements: they share what the detector has seen."""
    records, found = [], {}
    for frames in sets:
        start = time.monotonic()
        for each in dict.fromkeys((NONE, ALL, *options)):
            one = found[frames.name, each.label] = measure(detector, frames, each, log)
            rates = {"simple": one.rate(~one.complex), "complex": one.rate(one.complex)}
            shares = ", ".join(f"{name} {m['value']:.3f} (n {m['n']})" for name, m in rates.items() if m["n"])
            log(f"{detector.name}, {frames.name}, {each.label}: {shares}, {1000 * one.seconds / max(1, len(one.hit)):,.0f} ms a frame")
        minutes = (time.monotonic() - start) / 60
        for each in options:
            one = found[frames.name, each.label]
            records.append(_record(detector, one, found[frames.name, "none"], found[frames.name, "all"], seed, minutes))
    return records, found


def _record(detector: Detector, one: Measured, none: Measured, everything: Measured, seed: int, minutes: float) -> dict:
    meaning, every = one.calibration(), np.ones(len(one.hit), bool)
    parts = {"all": every, "simple": ~one.complex, "complex": one.complex}
    parts |= {f"complex: {rule}": np.array([rule in r for r in one.reasons]) for rule in ("occluded", "small", "twin", "nested")}
    parts = {name: part for name, part in parts.items() if (one.counted & part).any()}
    metrics = {name: one.rate(part) for name, part in parts.items()}
    if one.options != NONE:
        metrics |= {f"{name}, minus none": gain(one, none, part) for name, part in parts.items()}
    if one.options in WITHOUT:
        metrics |= {f"{name}, all minus this": gain(everything, one, part) for name, part in parts.items()}
    visible = np.concatenate([e.visible for e in one.set.episodes]) >= 0.5
    item = np.array([e.item or "" for e in one.set.episodes for _ in e.images])
    for name in dict.fromkeys(i for i in item.tolist() if i):
        for what, part in ((f"item {name}", item == name), (f"item {name}, at least half visible", (item == name) & visible)):
            if (one.counted & part).any():
                metrics[what] = one.rate(part)
    if visible.any():
        metrics["at least half visible"] = one.rate(visible)
    metrics |= one.others()
    notes = Counter(gaze.note for gaze in one.gazes if gaze.note)
    told = {"detector": detector.name, "fingerprint": detector.fingerprint(), "options": one.options.label}
    record = results.record("gaze", f"{detector.name}, {one.options.label}", benchmark=f"gaze: {one.set.name}", data=one.set.name,
                            data_hash=one.set.digest, config=told, seed=seed, metrics=metrics, minutes=minutes,
                            simulator=one.set.simulator, renderer=one.set.renderer, not_comparable_with=["guide"])  # fmt: skip
    config = told | {"sources": Counter(g.source for g in one.gazes), "notes": notes, "calibration": meaning["rows"],
                     "calibration error": meaning["error"], "separates": meaning["separates"]}  # fmt: skip
    return record | {"config": config}


# ---- tables -----------------------------------------------------------------------------------------------------------------------------


def options_table(records: list[dict], name: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a choice of options on the set called `name`: simple and complex scenes, the gain over "none" on the same
    frames and, for all but one, what that one adds to the others."""
    mine = [r for r in records if r["data"] == name]
    parts = [p for p in ("simple", "complex") if any(p in r["metrics"] for r in mine)]
    count = {p: next(r["metrics"][p] for r in mine if p in r["metrics"]) for p in parts}
    header = ["options", *(f"{p} % (n = {count[p]['n']} frames, {count[p]['groups']} scenes)" for p in parts)]
    header += [*(f"{p}: minus none" for p in parts), *(f"{p}: all minus this" for p in parts)]
    rows = []
    for r in mine:
        gains = [_percent(r["metrics"].get(f"{p}, {what}"), "+") for what in ("minus none", "all minus this") for p in parts]
        rows.append([_left_out(r["config"]["options"]), *(_percent(r["metrics"].get(p)) for p in parts), *gains])
    return header, rows


def _left_out(label: str) -> str:
    """ "tiles + nms + ..." of four options, as what is left out."""
    missing = [options.label for options in SINGLE if options.label not in label.split(" + ")]
    return f"all but {missing[0]}" if len(missing) == 1 else label


def detectors_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a set and detector with all options and with none, under the guide's numbers; GroundingDINO says
    "not run" until it was."""
    header = ["detector", "options", "set", "simple % [95 %]", "complex % [95 %]", "precision %", "false alarms on hidden things",
              "centre error, px", "jumps %", "calibration error"]  # fmt: skip
    rows = [["GroundingDINO, the guide's claim (**not comparable**: its frames, rules and n are not stated)", "-", "CALVIN",
             f"{100 * GUIDE['simple']:.0f}", f"{100 * GUIDE['complex']:.0f}", *["-"] * 5]]  # fmt: skip
    for r in (r for r in records if r["config"]["options"] in ("none", "all")):
        m = r["metrics"]
        number = lambda key, scale, form, m=m: format(scale * m[key]["value"], form) if key in m else "-"
        alarms = f"{m['false alarms']['value'] * m['false alarms']['n']:.0f} of {m['false alarms']['n']}" if "false alarms" in m else "-"
        rows.append([r["config"]["detector"], r["config"]["options"], r["data"], _percent(m.get("simple")), _percent(m.get("complex")),
                     number("precision", 100, ".0f"), alarms, number("centre error", 1, ".1f"), number("jumps", 100, ".1f"),
                     f"{r['config']['calibration error']:.2f}"])  # fmt: skip
    if not any("grounding" in r["config"]["detector"] for r in records):
        rows.append(["GroundingDINO", "none and all", "all", *["not run (no weights here)"] * 2, *["-"] * 5])
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

SIZES = {"smoke": (42, 12), "cpu": (240, 60), "t4": (240, 60), "paper": (240, 60)}  # cluttered scenes, play tables with unseen textures


def run(work: Path, profile: str, detectors: Sequence[Detector], folders: Sequence[Path] = (), seed: int = 0,
        log: Callable[[str], None] = print) -> list[dict]:
    """Measure detectors on cluttered scenes, on unseen textures and on the validation split of every folder in CALVIN's layout with
    boxes.json (its instructions' own things, and all items); records in work/runs, sheets and reliability in work/figures, tables
    in work/report.md. What an earlier session has measured of the same sets, with the same detector and commit, is not measured again."""
    if profile not in SIZES:
        raise UserError(f"there is no profile {profile!r}", " | ".join(SIZES), profile, "use one of these names")
    for folder in folders:  # before an hour is spent
        if not (Path(folder) / "validation" / "boxes.json").is_file():
            raise UserError(f"{folder} has no true boxes to compare with.", f"{folder}/validation/boxes.json", "none",
                            "the folder over training/ and validation/, in CALVIN's layout, that a simulator wrote (repro demos calvin)")
    clips, tables = SIZES[profile]
    sets, every = [clutter(clips), textures(tables, seed=1)], 4 if profile == "smoke" else 1
    for folder in folders:
        store = ensure_store(folder, "validation", work / "store" / Path(folder).name)
        sets += [stored(store, every), items(folder, "validation", every, Path(folder).name)]
    records, found = [], _still_good(work, detectors, sets, seed)
    if not found:
        shutil.rmtree(work / "figures", ignore_errors=True)
    for detector in detectors:
        for frames in sets:
            made = found.get((detector.name, frames.name))
            if made is None:
                made, measured = compare(detector, [frames], OPTIONS, seed, log)
                save_figures(measured[frames.name, "all"], measured[frames.name, "none"], work / "figures", detector.name)
                for record in made:
                    results.save(record, work / "runs")
                (work / "report.md").write_text(report(ordered(work)))
            records += made
    return records


def _still_good(work: Path, detectors: Sequence[Detector], sets: Sequence[Set], seed: int) -> dict[tuple[str, str], list[dict]]:
    """{(detector, set): its records} of an earlier session where they are all there and still hold; any other record is removed."""
    commit, found = results.provenance()["commit"], {}
    kept = [] if "+changes" in commit else [results.load(path) for path in sorted(work.glob("runs/*.json"))]  # edited: anything may differ
    for detector in detectors:
        for frames in sets:
            asked = (detector.name, frames.name, detector.fingerprint(), frames.digest, seed, commit)
            mine = [r for r in kept if asked == (r["config"]["detector"], r["data"], r["config"]["fingerprint"],
                                                 r["data_hash"], r["seed"], r["commit"])]  # fmt: skip
            by_label = {r["config"]["options"]: r for r in mine}
            if by_label.keys() == {options.label for options in OPTIONS}:
                found[detector.name, frames.name] = [by_label[options.label] for options in OPTIONS]
    good = {f"{r['id']}.json" for some in found.values() for r in some}
    for path in work.glob("runs/*.json"):
        if path.name not in good:
            path.unlink()
    return found


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
    apart = np.unique(one.episode[picks], return_index=True)[1]  # one frame an episode, where there are enough
    picks = picks[apart] if len(apart) >= min(count, 4) else picks
    picks = picks[np.linspace(0, len(picks) - 1, min(count, len(picks))).round().astype(int)] if len(picks) else picks
    truth = np.where(one.counted[:, None], one.truth, np.nan)
    return contact_sheet([pictures[i] for i in picks], np.array([one.gazes[i].box for i in picks]), truth[picks], [said[i] for i in picks],
                         [one.gazes[i].source for i in picks],
                         title=f"{one.set.name}, options {one.options.label}: {'hits' if len(picks) and one.hit[picks[0]] else 'misses'}")


def report(records: list[dict]) -> str:
    """The tables of a measurement, in markdown."""
    parts = ["# Gaze boxes: how good they are",
             "Shares of frames with IoU >= 0.5 with the simulator's box; brackets: 95 % bootstrap over scenes or episodes; where "
             "no scene differs, what so many scenes can still hide (Wilson). What makes a frame complex is written in "
             "`src/repro/evaluation/gaze.py`. " + _where(records),
             results.markdown(*detectors_table(records))]  # fmt: skip
    for name, detector in dict.fromkeys((r["data"], r["config"]["detector"]) for r in records):
        mine = [r for r in records if (r["data"], r["config"]["detector"]) == (name, detector)]
        parts.append(f"## {name}: {detector}\n\n{results.markdown(*options_table(mine, name))}")
        if any(k.startswith("item ") for r in mine for k in r["metrics"]):
            parts.append(results.markdown(*items_table(mine, name)))
    return "\n\n".join(parts) + "\n"


def _where(records: list[dict]) -> str:
    """Hardware, commit and time of records, in words."""
    commits, hardware = ({r[key] for r in records} for key in ("commit", "hardware"))
    return f"Commit {', '.join(sorted(commits))}; {', '.join(sorted(hardware))}."


START = "<!-- gaze: written by `repro gaze quality --publish` from results/gaze, checked by tests/test_readme.py -->"
END = "<!-- end of gaze -->"


def ordered(folder: Path) -> list[dict]:
    """The records of folder/runs in the order of a report: by set, then none, one option, all but one, all."""
    labels = [options.label for options in OPTIONS]
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
        colour = [r for r in records if r["config"]["detector"] == "colour"]
        parts += [f"`colour` on {name} (at least half visible):", results.markdown(*items_table(colour, name))]
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
