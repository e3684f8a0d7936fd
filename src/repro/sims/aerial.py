"""Aerial pairs like LEVIR-MCI's, made by a program: two dates of one place, masks of what was built, five captions.

    write("work/aerial", train=400, val=60, test=100, seed=0)           # the exact LEVIR-MCI layout
    pair = scene(np.random.default_rng(0))                              # one levir.Pair, with its mask

Half of the pairs have no change; one in twenty has a change that masks do not know (a lake, felled trees); the rest one to four new
buildings, a new road, or both. What does not count changes in all of them: cars, shadows, season, fields, light, haze, blur, and where the
camera stood, by up to 2 pixels. Masks are of the second date. Where several buildings are new the largest is so by a margin (aerial_plan).
A stand-in: what is measured on it is not comparable with LEVIR-CC.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from repro import clock
from repro.data.episodes import encode_png
from repro.data.levir_entries import NO_CHANGE
from repro.data.levir_layouts import CAPTIONS
from repro.data.levir_pairs import GREY, Pair, pair
from repro.data.parallel import in_order
from repro.machine import UserError
from repro.sims.aerial_drawing import draw, placed, strip
from repro.sims.aerial_plan import Change, days, plan
from repro.sims.aerial_scene import SIZE, Scene

VERSION = 1  # of the drawing: a folder written by another is written again
SHARES = {"unchanged": 0.5, "localisable": 0.45, "not localisable": 0.05}
NUMBERS = {1: ("a", "one"), 2: ("two", "two"), 3: ("three", "several"), 4: ("four", "several")}


def mask_of(planned: Scene, day) -> np.ndarray:
    """(256, 256) uint8 classes 0, 1 road, 2 building of what the second date has and the first has not, where its camera sees it."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for road in planned.new_roads:
        strip(mask, road)
    mask = (mask > 127).astype(np.uint8)
    old = np.zeros((SIZE, SIZE), np.uint8)
    for road in planned.roads:
        strip(old, road)
    mask[old > 127] = 0  # where it joins, the road was there
    for building in planned.new_buildings:
        for corners in building.footprints():
            cv2.fillConvexPoly(mask, np.round(corners * 16).astype(np.int32), 2, cv2.LINE_8, 4)
    return cv2.warpAffine(mask, placed(day), (SIZE, SIZE), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)


def scene(rng: np.random.Generator, state: str | None = None, name: str = "scene", split: str = "train") -> Pair:
    """One pair, drawn; `state` unchanged | localisable | not localisable, by default one of them by their SHARES."""
    state = state or str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if state not in SHARES:
        raise UserError(f"there is no state {state!r}", " | ".join(SHARES), state)
    while True:
        planned, change = plan(rng, state)
        first, second = days(rng)
        mask = mask_of(planned, second)
        before, after = draw(planned, first, 0, rng), draw(planned, second, 1, rng)
        made = pair(name, split, before, after, captions(rng, change, planned, mask), mask)
        if made.state == state:  # not so where all that is new lies outside of the second frame
            return made


# --- words --------------------------------------------------------------------------------------------------------------------------


def where(x: float, y: float) -> str:
    """LEVIR-CC's way to say a place: thirds of the picture; x and y in [0, 1]."""
    column, row = int(min(2, 3 * x)), int(min(2, 3 * y))
    if (row, column) == (1, 1):
        return "in the center"
    if row == 1:
        return f"on the {('left', '', 'right')[column]}"
    side = ("top", "", "bottom")[row]
    return f"at the {side}" if column == 1 else f"in the {side} {('left', '', 'right')[column]} corner"


def captions(rng: np.random.Generator, change: Change, planned: Scene, mask: np.ndarray) -> tuple[str, ...]:
    """Five sentences; the five no-change ones, in their order, where nothing counts."""
    if change.kind == "none":
        return NO_CHANGE
    if change.kind == "built":
        ys, xs = np.nonzero(mask)
        spot = (xs.mean() / SIZE, ys.mean() / SIZE) if len(xs) else (0.5, 0.5)
    else:
        middle = planned.new_water[0].mean(0) if planned.new_water else planned.gone_trees[:, :2].mean(0)
        spot = tuple((middle / SIZE).clip(0, 0.999))
    found: dict[str, None] = {}
    while len(found) < 5:
        text = sentence(rng, change)
        found[f"{text} {where(*spot)}" if rng.random() < 0.25 else text] = None
    return tuple(found)


def sentence(rng: np.random.Generator, change: Change) -> str:
    """One way to say a change."""
    pick = lambda *words: str(rng.choice(words))
    land = "bareland" if change.ground == "bareland" else "grassland"
    ground = pick(f"on the {land}", "on the vacant land", "in the scene")
    if change.kind == "lake":
        return pick(f"a lake has formed {ground}", f"a pond appears {ground}", f"the {land} has been turned into a lake",
                    f"a lake replaces the {land}", "there is a lake now where there was land", "part of the land is now under water")
    if change.kind == "felled":
        return pick("many trees have been removed", "the trees have disappeared", "the woods have been cleared", "a grove of trees is gone",
                    f"the trees {pick('were', 'have been')} cut down{' and the soil is bare' if change.soil else ''}",
                    "the vegetation has been cleared away")
    number = pick(*NUMBERS[min(4, max(1, change.buildings))])
    one = change.buildings == 1
    kind = pick("building", "hall", "factory building", "large building") if change.works else pick("house", "villa", "house", "building")
    thing = f"{number} {kind}{'' if one else 's'}"
    is_, has = ("is", "has") if one else ("are", "have")
    if change.roads and not change.buildings:
        return pick(f"a road is built {ground}", f"a new road appears {ground}", "a road has been constructed", "a path is paved",
                    f"a road now runs through the {land}", "a side road is connected to the main road",
                    f"a {pick('narrow', 'new')} road is built")
    beside = pick("beside the road", "along the road", "next to the road", ground) if change.beside_road else ground
    if change.roads:
        return pick(f"{thing} and a road are built {ground}", f"a road and {thing} appear {ground}",
                    f"{thing} {has} been built along a new road", f"a road is built and {thing} appear{'s' if one else ''} beside it",
                    f"a new road leads to {thing}")
    return pick(f"{thing} {is_} built {beside}", f"{thing} appear{'s' if one else ''} {beside}", f"{thing} {has} been constructed {beside}",
                f"there {is_} {thing} {beside} now", f"{thing} {has} replaced the {pick(land, 'trees') if change.trees else land}")


# --- the layout ---------------------------------------------------------------------------------------------------------------------


def states(count: int, rng: np.random.Generator) -> list[str]:
    """`count` states by SHARES, shuffled; one of each from three on."""
    rare = round(SHARES["not localisable"] * count) or int(count >= 3)
    same = int(SHARES["unchanged"] * count)
    made = ["unchanged"] * same + ["not localisable"] * rare + ["localisable"] * (count - same - rare)
    return [made[i] for i in rng.permutation(count)]


def _files(folder: Path, split: str, number: int, state: str, seed: tuple[int, ...]) -> tuple[str, tuple[str, ...], bool]:
    """In a worker: draw a pair and write its three pictures; (file name, captions, changed)."""
    cv2.setNumThreads(1)
    made = scene(np.random.default_rng(seed), state, f"{split}_{number:06d}", split)
    for kind, picture in (("A", made.before), ("B", made.after), ("label", np.repeat(GREY[made.mask][..., None], 3, axis=2))):
        (folder / "images" / split / kind / f"{made.name}.png").write_bytes(encode_png(picture))
    return f"{made.name}.png", made.captions, made.changed


def tasks(folder: Path, counts: dict[str, int], seed: int) -> Iterator[tuple]:
    """What each pair is drawn from. Its picture depends on the seed, the split and its place in it, on nothing else."""
    for which, (split, count) in enumerate(counts.items()):
        rng, number = np.random.default_rng((seed, which)), 0
        for i, state in enumerate(states(count, rng)):
            number += 1 + int(rng.random() < 0.1)  # names have gaps, as LEVIR-CC's
            yield folder, split, number, state, (seed, which, i)


def write(folder: Path | str, train: int, val: int, test: int, seed: int = 0, workers: int = 1, log=print) -> Path:
    """Write `train`, `val` and `test` pairs as LEVIR-MCI lays them out, whole or not at all; the folder must not exist yet. Out of time, it
    is written anew in the next session: in every profile that is less than 2 minutes.

    LevirCCcaptions.json; images/{train,val,test}/{A,B,label}/<split>_<6 digits>.png; aerial.json says that a program drew them.
    """
    folder, counts = Path(folder), {"train": train, "val": val, "test": test}
    if folder.exists():
        raise UserError(f"{folder} exists", found="a file or folder", next_step="choose another folder, or delete it")
    if min(counts.values()) < 0 or not sum(counts.values()):
        raise UserError("these are no numbers of pairs", "none below 0, one above", counts)
    clock.check()
    part, progress = folder.with_name(folder.name + ".part"), clock.Progress("drawing", sum(counts.values()), "pairs", log)
    shutil.rmtree(part, ignore_errors=True)
    try:
        for split in counts:
            for kind in ("A", "B", "label"):
                (part / "images" / split / kind).mkdir(parents=True)
        images, drawn = [], in_order(_files, tasks(part, counts, seed), workers)
        for i, (name, sentences, changed) in enumerate(drawn):
            split = name.partition("_")[0]
            told = [{"tokens": s.split(), "raw": f" {s} .", "imgid": i, "sentid": 5 * i + k} for k, s in enumerate(sentences)]
            images.append({"filepath": split, "filename": name, "imgid": i, "sentids": [5 * i + k for k in range(5)], "split": split,
                           "changeflag": int(changed), "sentences": told})  # fmt: skip
            progress(i + 1)
            clock.check()
        (part / CAPTIONS).write_text(json.dumps({"images": images, "dataset": "repro aerial"}))
        (part / "aerial.json").write_text(json.dumps(about(counts, seed)))
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def about(counts: dict[str, int], seed: int) -> dict:
    """What decides a folder, kept in its aerial.json."""
    return {"made_by": "drawn by a program (repro.sims.aerial), not comparable with LEVIR-CC", "version": VERSION, "seed": seed, **counts}


def ensure(folder: Path | str, train: int, val: int, test: int, seed: int = 0, workers: int = 1) -> Path:
    """The folder where it holds these pairs already, else written; one that this module did not write is refused."""
    folder, told = Path(folder), Path(folder) / "aerial.json"
    if folder.exists():
        if not told.is_file():
            raise UserError(f"{folder} was not written here", "a folder with aerial.json, or none", "another one", "choose another place")
        if json.loads(told.read_text()) == about({"train": train, "val": val, "test": test}, seed):
            return folder
        shutil.rmtree(folder)
    return write(folder, train, val, test, seed, workers)
