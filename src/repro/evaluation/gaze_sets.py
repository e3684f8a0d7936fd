"""Frames with true boxes that detectors are measured on: drawn scenes, recorded ones, play tables with unseen textures.

    sets = [clutter(60), stored(Store("store/validation")), items("work/calvin", "validation"), textures(60)]

What makes a frame complex is written in evaluation/gaze.py.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from repro.data.boxes import BoxIndex
from repro.data.calvin import Calvin
from repro.data.calvin_frames import canonical
from repro.data.episodes import Store
from repro.gaze import annotate, state
from repro.gaze.candidates import area
from repro.gaze.options import said
from repro.gaze.phrase import BLOCK, HELD, TOP, Phrase, parse, resolve
from repro.gaze.phrase import look as look_at
from repro.machine import UserError
from repro.sims import clutter as cluttered
from repro.sims.tabletop import looks, render
from repro.sims.tabletop.scenes import ITEMS, SCENES, item_boxes
from repro.sims.tabletop.tasks import initial_state, random_symbolic

NOUNS = {"red_block": "red block", "blue_block": "blue block", "pink_block": "pink block", "drawer": "drawer", "slider": "sliding door",
         "button": "button", "switch": "switch", "led": "led", "lightbulb": "light bulb"}  # fmt: skip
OCCLUDED, SMALL, SEEN = 0.6, 0.004, 0.1


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
