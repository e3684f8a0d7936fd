"""Where a policy looks on recorded frames: which frames, its maps on them, the numbers of each frame, and their records.

    frames = attention_frames(store, 40)
    columns = attention_columns(attention_of(model, frames), frames)       # one number a frame, with every control
"""

import time
from pathlib import Path

import numpy as np
import torch

from repro import attention, clock, run_records
from repro.data.episodes import Store
from repro.data.overlap import iou
from repro.evaluation.policies import about, minutes
from repro.models.reconvla import ReconVLA
from repro.profiles import Profile

CAUTION = ("Attention shows where image tokens are read, not what an action depends on: what passes through other tokens (instruction, "
           "proprioception, earlier actions) is not in the map, and reading is no proof of use.")


def attention_frames(store: Store, count: int, episodes: list | None = None) -> list[dict]:
    """About `count` frames with a true gaze box (any, of data without boxes), spread evenly over the episodes (all of the store): the
    step's columns, `task`, `episode` and `step`."""
    episodes = store.episodes if episodes is None else episodes
    each, found = max(1, count // max(1, len(episodes))), []
    for info in episodes[:: max(1, len(episodes) // count)]:
        columns = store.read(info.index).columns
        sure = [t for t in range(info.length) if "gaze.source" not in columns or columns["gaze.source"][t] != "fallback"]
        for t in [sure[int(i)] for i in np.linspace(0, len(sure) - 1, min(each, len(sure))).round()] if sure else []:
            found.append(_frame(info, columns, t))
    return found


def attention_strips(store: Store, count: int = 16, every: int = 5) -> list[dict]:
    """Every `every`-th frame of about `count` whole episodes, evenly chosen among those with a true gaze box in all of these frames."""
    found = []
    for info in store.episodes[:: max(1, len(store) // count)]:
        columns, steps = store.read(info.index).columns, range(0, info.length, every)
        if len(steps) > 1 and all(columns["gaze.source"][t] != "fallback" for t in steps):
            found += [_frame(info, columns, t) for t in steps]
    return found


def _frame(info, columns: dict, t: int) -> dict:
    return {**{key: column[t] for key, column in columns.items()}, "task": info.task, "task_id": info.task_id, "episode": info.index,
            "step": t}


def attention_of(model: ReconVLA, frames: list[dict], batch: int = 32, log=print, source: str = "queries") -> np.ndarray:
    """(N, static rows, columns): the static camera's part of the last layer's attention, mean over heads and action tokens (or words).

    A minute or two for the frames of any profile: out of time, it begins again in the next session.
    """
    found, progress = [], clock.Progress("attention", len(frames), "frames", log)
    for i in range(0, len(frames), batch):
        clock.check()
        part = frames[i : i + batch]
        found.append(attention.static_maps(model, part, [frame["task"] for frame in part], source=source))
        progress(i + len(part))
    return np.concatenate(found)


def attention_columns(static: np.ndarray, frames: list[dict], seed: int = 0) -> dict[str, np.ndarray]:
    """The numbers of each frame, with every control (attention.frame_numbers)."""
    return attention.frame_numbers(static, np.stack([frame["gaze.box"] for frame in frames]), _of(frames, "episode"),
                                   [frame["task_id"] for frame in frames], seed=seed)


REBUILT_OWN, REBUILT_APART = "mean |error| of the rebuilt region", "mean |error|, own target minus other tasks' targets"
REBUILT_ELSEWHERE = "mean |error|, own target minus its task's targets elsewhere"


def reconstruction_columns(model: ReconVLA, frames: list[dict], seed: int = 0, batch: int = 32) -> dict[str, np.ndarray]:
    """How near what the denoiser draws from noise (once a frame) is to its own target, the part of the static camera, pixels in [0, 1];
    that minus the mean over the frames of other tasks, which the sentence alone can bring below 0; and minus the mean over those frames of
    the task's other episodes whose gaze box lies elsewhere (IoU < attention.APART; NaN where there are none): only the picture can."""
    targets, drawn = [], []
    torch.manual_seed(seed)
    for i in range(0, len(frames), batch):
        clock.check()
        part = frames[i : i + batch]
        targets.append(model.targets(part))
        drawn.append(model.reconstruct(part, [frame["task"] for frame in part]))
    border = targets[0].shape[1] * model.config.static_tokens // model.config.grid[0]
    aims, shown = (np.concatenate(some)[:, :border].astype(np.float32) / 255 for some in (targets, drawn))
    tasks, episodes = _of(frames, "task_id"), _of(frames, "episode")
    boxes = np.stack([np.asarray(frame["gaze.box"], float) for frame in frames])
    away = np.stack([iou(box, boxes) < attention.APART for box in boxes])
    mean = lambda values: values.mean() if len(values) else np.nan
    columns = {name: [] for name in (REBUILT_OWN, REBUILT_APART, REBUILT_ELSEWHERE)}
    for i, picture in enumerate(shown):
        error = np.abs(aims - picture).mean((1, 2, 3))
        columns[REBUILT_OWN].append(error[i])
        columns[REBUILT_APART].append(error[i] - mean(error[tasks != tasks[i]]))
        columns[REBUILT_ELSEWHERE].append(error[i] - mean(error[(tasks == tasks[i]) & (episodes != episodes[i]) & away[i]]))
    return {"episode": episodes, **{name: np.array(values) for name, values in columns.items()}}


def attention_jumps(static: np.ndarray, frames: list[dict]) -> dict[str, np.ndarray]:
    """Whether the map's maximum jumps along the episodes of `attention_strips`, with its controls (attention.frame_jumps)."""
    return attention.frame_jumps(static, np.stack([frame["gaze.box"] for frame in frames]), _of(frames, "episode"), _of(frames, "step"))


def _of(frames: list[dict], key: str) -> np.ndarray:
    return np.array([frame[key] for frame in frames])


def record_attention(settings: Profile, work: Path, models: dict, maps: dict[str, np.ndarray], frames: list[dict], seed: int,
                     strips: tuple[dict[str, np.ndarray], list[dict]] | None = None) -> list[dict]:
    """One run record per model, then one per model but the baseline with its paired differences to the baseline's attention. Saved.

    maps: {model: static maps of `frames`}; strips: the same of `attention_strips` and these, for how often the maximum jumps.
    """
    where, begun, found = f"attention, held-out episodes of {Store(work / 'store' / 'validation').meta['name']}", time.monotonic(), []
    columns = {name: [attention_columns(static, frames, seed)] for name, static in maps.items()}
    for name in columns if strips else ():
        columns[name].append(attention_jumps(strips[0][name], strips[1]))
    for name, mine in columns.items():
        metrics = {key: metric for part in mine for key, metric in attention.averages(part, seed).items()}
        found.append(_attention_record(settings, work, name, where, about(models[name]), metrics, minutes(models[name], begun), seed))
    for name in [name for name in columns if name != "baseline" and "baseline" in columns]:
        metrics = {key: metric for ours, theirs in zip(columns[name], columns["baseline"], strict=True)
                   for key, metric in attention.differences(ours, theirs, seed).items()}
        both = {name: about(models[name]), "baseline": about(models["baseline"])}
        found.append(_attention_record(settings, work, f"{name} minus baseline", f"{where}: paired differences", both, metrics,
                                       minutes(None, begun), seed))
    return found


def _attention_record(settings: Profile, work: Path, name: str, benchmark: str, policy: dict, metrics: dict, spent: float, seed: int
                      ) -> dict:
    training = Store(work / "store" / "training")
    record = run_records.record(
        "reconvla", name, benchmark=benchmark, data=training.meta["name"], data_hash=training.hash,
        config={"profile": settings.name, "policy": policy, "reduced": attention.caption()}, seed=seed, metrics=metrics, minutes=spent,
        simulator="none (recorded frames)", renderer="none", not_comparable_with=["reconvla"])
    run_records.save(record, work / "runs")
    return record
