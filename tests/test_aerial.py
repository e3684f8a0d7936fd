"""Aerial pairs: the layout, the three states, what is new and what only differs. Run: pytest tests/test_aerial.py"""

import json
import re
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest

from repro.data import levir, levir_boxes, overlap
from repro.data.levir import NO_CHANGE
from repro.machine import UserError
from repro.sims import aerial, aerial_drawing, aerial_plan

PLACES = re.compile(r" (in the center|on the (left|right)|at the (top|bottom)|in the (top|bottom) (left|right) corner)$")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return aerial.write(tmp_path_factory.mktemp("aerial") / "raw", train=40, val=10, test=3, seed=4)


@pytest.fixture(scope="module")
def pairs(folder):
    return list(levir.read(folder, "train", log=None))


@pytest.fixture(scope="module")
def drawn():
    """48 localisable pairs."""
    return [aerial.scene(np.random.default_rng((9, i)), "localisable") for i in range(48)]


def test_the_layout_is_that_of_levir_mci(folder):
    told = json.loads((folder / "LevirCCcaptions.json").read_text())["images"]
    assert Counter(image["split"] for image in told) == {"train": 40, "val": 10, "test": 3}
    numbers = [int(re.fullmatch(r"train_(\d{6})\.png", image["filename"])[1]) for image in told if image["split"] == "train"]
    assert numbers == sorted(set(numbers)) and max(numbers) > 40, "names have gaps"
    for image in told:
        assert image["filepath"] == image["split"] and len(image["sentences"]) == len(image["sentids"]) == 5
        assert all(s["raw"] == f" {' '.join(s['tokens'])} ." and s["imgid"] == image["imgid"] for s in image["sentences"])
        for kind in ("A", "B", "label"):
            picture = cv2.imread(str(folder / "images" / image["split"] / kind / image["filename"]), cv2.IMREAD_UNCHANGED)
            assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8
        assert set(np.unique(picture)) <= {0, 128, 255} and (picture == picture[..., :1]).all(), "grey, three channels"
    layout = levir.find(folder)
    assert layout.kind == "LEVIR-MCI" and layout.splits == {"train": 40, "val": 10, "test": 3} and "drawn by a program" in layout.describe()
    assert not [entry.problem for entry in layout.entries if entry.problem]


def test_all_three_states_are_there(pairs, folder):
    assert Counter(p.state for p in pairs) == {"unchanged": 20, "localisable": 18, "not localisable": 2}
    assert {p.state for p in levir.read(folder, "test", log=None)} == {"unchanged", "localisable", "not localisable"}
    for p in pairs:
        assert p.changed == (p.captions != NO_CHANGE) and bool(p.mask.any()) == (p.state == "localisable"), p.name


def test_captions_name_object_number_and_at_times_the_place(drawn):
    sentences = [s for p in drawn for s in p.captions]
    assert all(len(set(p.captions)) == 5 for p in drawn)
    assert 0.15 < np.mean([bool(PLACES.search(s)) for s in sentences]) < 0.4, "about a quarter"
    assert len(set(sentences)) > 150
    for p in drawn:
        built, road = (p.mask == 2).any(), (p.mask == 1).any()
        words = " ".join(p.captions)
        assert bool(re.search(r"house|villa|building|hall", words)) == bool(built) and (not road or re.search("road|path", words))
        place = {m[0] for m in map(PLACES.search, p.captions) if m}
        assert len(place) <= 1, "one place a pair"
        for side, low, high, axis in (("left", 0, 0.5, 1), ("right", 0.5, 1, 1), ("top", 0, 0.5, 0), ("bottom", 0.5, 1, 0)):
            if any(side in words for words in place):
                assert low <= np.nonzero(p.mask)[axis].mean() / 256 <= high, (side, p.captions)
        stood = {word for word in ("trees", "bareland", "grassland") if f"replaced the {word}" in words}
        assert len(stood - {"trees"}) <= 1, "the ground is of one kind"
    lake = aerial.scene(np.random.default_rng(1), "not localisable")
    assert re.search("lake|pond|water|tree|woods|vegetation", " ".join(lake.captions))


def test_the_same_seed_draws_the_same_and_another_does_not(folder, tmp_path):
    again = aerial.write(tmp_path / "again", train=3, val=0, test=3, seed=4, workers=1)
    other = aerial.write(tmp_path / "other", train=1, val=0, test=0, seed=5)
    first = [sorted(path.glob("images/test/B/*")) for path in (folder, again)]
    assert [p.name for p in first[0]] == [p.name for p in first[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*first, strict=True)), "a split does not depend on the others' size"
    assert next(other.glob("images/train/A/*")).read_bytes() != next(again.glob("images/train/A/*")).read_bytes()


def test_masks_are_where_buildings_are_new(drawn):
    """Each new building's roof, of a colour the ground has not, is in the second picture under the mask and not in the first."""
    rng = np.random.default_rng(0)
    shown = 0
    while shown < 6:
        planned, change = aerial_plan.plan(rng, "localisable")
        if not planned.new_buildings:
            continue
        shown += 1
        first, second = aerial_plan.days(rng)
        planned.gone_trees, planned.trees = np.zeros((0, 3)), np.zeros((0, 3))
        planned.new_buildings = [replace(b, colour=(255.0, 0.0, 255.0)) for b in planned.new_buildings]
        planned.new_roads = []
        mask = aerial.mask_of(planned, second) == 2
        before, after = aerial_drawing.draw(planned, first, 0, rng), aerial_drawing.draw(planned, second, 1, rng)
        magenta = lambda picture: np.minimum(picture[..., 0], picture[..., 2]).astype(int) - picture[..., 1] > 60
        assert not magenta(before).any()
        assert overlap.iou(levir_boxes.boxes(magenta(after))[1], levir_boxes.boxes(mask)[1]) > 0.85
        assert (magenta(after) & mask).sum() / (magenta(after) | mask).sum() > 0.85


def test_what_does_not_count_differs_in_every_unchanged_pair():
    for i in range(6):
        p = aerial.scene(np.random.default_rng((2, i)), "unchanged")
        apart = np.abs(p.before.astype(int) - p.after).mean()
        assert apart > 6 and p.mask.sum() == 0, "season, light and camera"
        levels = levir_boxes.matched(p.before, p.after)
        assert np.abs(levels.astype(int) - p.after).max(2).mean() > 6, "not only the light"


def test_the_main_box_is_the_largest_by_a_margin():
    margins = []
    for i in range(40):
        planned, change = aerial_plan.plan(np.random.default_rng((3, i)), "localisable")
        areas = sorted((b.pixels for b in planned.new_buildings), reverse=True)
        assert len(areas) == change.buildings and (change.buildings or change.roads)
        if len(areas) > 1:
            margins.append(areas[0] / areas[1])
    assert len(margins) > 5 and min(margins) >= aerial_plan.MARGIN - 1e-6


def test_differencing_stays_below_its_bound(drawn):
    found = [levir_boxes.difference_box(p.before, p.after) for p in drawn]
    mean = np.mean([0 if box is None else overlap.iou(box, p.box_main) for box, p in zip(found, drawn, strict=True)])
    assert mean < 0.3, mean
    share = np.mean([levir_boxes.encode(p.box_main)[2] for p in drawn])
    assert 0.1 < share < 0.5 and np.mean([levir_boxes.ceiling(p.box_main) for p in drawn]) > 0.7, "the three numbers can say them"


def test_nothing_is_built_on_anything():
    for i in range(12):
        planned, _ = aerial_plan.plan(np.random.default_rng((6, i)), "localisable")
        taken = np.zeros((256, 256), int)
        for building in planned.buildings + planned.new_buildings:
            mask = np.zeros((256, 256), np.uint8)
            for corners in building.footprints():
                cv2.fillConvexPoly(mask, np.round(corners).astype(np.int32), 1)
            taken += mask
        roads = np.zeros((256, 256), np.uint8)
        for road in planned.roads + planned.new_roads:
            aerial_drawing.strip(roads, road)
        assert taken.max() <= 1 and not (taken * (roads > 127)).any(), i


def test_bad_arguments(folder, tmp_path):
    with pytest.raises(UserError, match="exists"):
        aerial.write(folder, 1, 1, 1)
    with pytest.raises(UserError, match="no numbers of pairs"):
        aerial.write(tmp_path / "none", 0, 0, 0)
    with pytest.raises(UserError, match="no state 'demolished'"):
        aerial.scene(np.random.default_rng(0), "demolished")
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="not written here"):
        aerial.ensure(tmp_path / "mine", 1, 0, 0)
    assert aerial.ensure(folder, 40, 10, 3, 4) == folder
    assert not (tmp_path / "none").exists()
