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

import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro import clock, machine, results, run_records
from repro.data.calvin_import import ensure_store
from repro.data.overlap import iou
from repro.evaluation.gaze_sets import Episode, Set, clutter, items, stored, textures
from repro.evaluation.gaze_tables import END, OPTIONS, START, detectors_table, items_table, options_table, ordered, readme_section, report
from repro.gaze.candidates import area
from repro.gaze.detectors import Detector, Gaze
from repro.gaze.options import ALL, NONE, WITHOUT, Options, look
from repro.gaze.quality import calibration, contact_sheet, reliability
from repro.intervals import bootstrap
from repro.machine import UserError

__all__ = ["END", "OPTIONS", "START", "Episode", "Measured", "Set", "clutter", "compare", "detectors_table", "gain", "items", "items_table",
           "measure", "options_table", "ordered", "publish", "readme_section", "report", "run", "save_figures", "sheet", "stored",
           "textures"]  # fmt: skip


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
    record = run_records.record("gaze", f"{detector.name}, {one.options.label}", benchmark=f"gaze: {one.set.name}", data=one.set.name,
                                data_hash=one.set.digest, config=told, seed=seed, metrics=metrics, minutes=minutes,
                                simulator=one.set.simulator, renderer=one.set.renderer, not_comparable_with=["guide"])  # fmt: skip
    config = told | {"sources": Counter(g.source for g in one.gazes), "notes": notes, "calibration": meaning["rows"],
                     "calibration error": meaning["error"], "separates": meaning["separates"]}  # fmt: skip
    return record | {"config": config}


# ---- a whole measurement ----------------------------------------------------------------------------------------------------------------

SIZES = {"smoke": (24, 12), "cpu": (240, 60), "t4": (240, 60), "paper": (240, 60)}  # cluttered scenes, play tables with unseen textures


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
                    run_records.save(record, work / "runs")
                (work / "report.md").write_text(report(ordered(work)))
            records += made
    return records


def _still_good(work: Path, detectors: Sequence[Detector], sets: Sequence[Set], seed: int) -> dict[tuple[str, str], list[dict]]:
    """{(detector, set): its records} of an earlier session where they are all there and still hold; any other record is removed."""
    commit, found = run_records.provenance()["commit"], {}
    paths = [] if "+changes" in commit else sorted(work.glob("runs/*.json"))  # edited: anything may differ
    kept = [run_records.load(path) for path in paths]
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


def publish(work: Path, log: Callable[[str], None] = print) -> Path:
    """Copy records, report and figures of work to results/gaze, ready to commit; records of an edited tree are refused."""
    target, found = machine.root() / "results" / "gaze", sorted(work.glob("runs/*.json"))
    if not found:
        raise UserError("no records of gaze quality", f"{work}/runs/*.json", "none", "repro gaze quality")
    records = [run_records.load(path) for path in found]
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
