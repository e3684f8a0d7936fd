"""A tiny folder in CALVIN's layout, for tests that need one to break."""

import json
from pathlib import Path

import numpy as np

FRAMES = 12


def frame(number: int, size: int = 20, wrist: int = 8, dtype=np.float64) -> dict[str, np.ndarray]:
    """One frame whose numbers can be recognised: state[0] is its number / 1000, block k's x is k + 1."""
    rng = np.random.default_rng(number)
    actions = rng.uniform(-1, 1, 7)
    actions[6] = 1 if number % 2 else -1
    scene = np.zeros(24)
    scene[[6, 12, 18]] = 1, 2, 3
    state = rng.normal(size=15)
    state[0] = number / 1000
    return {
        "actions": rng.normal(size=7).astype(dtype), "rel_actions": actions.astype(dtype), "robot_obs": state.astype(dtype),
        "scene_obs": scene.astype(dtype), "rgb_static": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "rgb_gripper": rng.integers(0, 256, (wrist, wrist, 3), dtype=np.uint8),
    }  # fmt: skip


def write_dict(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(value, dtype=object), allow_pickle=True)


def make(
    root: Path, split: str = "training", scene: str | None = "D", segments=((100, 107), (200, 211)), notes=None, digits: int = 7,
    boxes: bool = False, **options,
) -> Path:  # fmt: skip
    """Write `root/split` and return it. notes: [(start, end, task, sentence)], by default one a segment and one overlapping."""
    folder = root / split
    folder.mkdir(parents=True)
    (first, last), *_ = segments
    notes = notes or [(start, end, "open_drawer", "open the drawer") for start, end in segments] + [(first, last - 3, "lift_x", "lift it")]
    for start, end in segments:
        for number in range(start, end + 1):
            np.savez_compressed(folder / f"episode_{number:0{digits}d}.npz", **frame(number, **options))
    np.save(folder / "ep_start_end_ids.npy", np.array(segments, np.int64))
    if scene:
        write_dict(folder / "scene_info.npy", {f"calvin_scene_{scene}": [0, 10**6]})
    starts = [(np.int64(start), np.int64(end)) for start, end, _, _ in notes]
    language = {"ann": [note[3] for note in notes], "task": [note[2] for note in notes], "emb": np.zeros((len(notes), 1, 3), np.float32)}
    write_dict(folder / "lang_annotations" / "auto_lang_ann.npy", {"language": language, "info": {"episodes": [], "indx": starts}})
    if boxes:
        told = [{"start": s, "end": e, "scene": "calvin_scene_A", "targets": ["drawer"], "goal_items": []} for s, e, _, _ in notes]
        table = {f"{n:07d}": {"drawer": [n % 7, 1, 9, 8]} for start, end in segments for n in range(start, end + 1)}
        text = json.dumps({"image_size": {"rgb_static": [20, 20]}, "episodes": told, "rgb_static": table, "rgb_gripper": {}})
        (folder / "boxes.json").write_text(text)
    return folder
