"""Numbers of [cx, cy, scale] against boxes, floors and ceiling. Run: pytest tests/test_localisation.py"""

import numpy as np
import pytest
from fake_pairs import store

from repro.data import levir_boxes
from repro.evaluation import localisation
from repro.intervals import wilson
from repro.machine import UserError

NONE = [np.nan] * 4
BOXES = np.float32([[0.2, 0.2, 0.6, 0.6], [0.0, 0.0, 0.5, 0.5], [0.1, 0.4, 0.9, 0.6], NONE])


def test_numbers_of_hand_made_pairs():
    said = np.float32([[0.4, 0.4, 0.4], [0.5, 0.25, 0.5], [0.5, 0.5, 0.2], [0.5, 0.5, 1.0]])
    masks = np.zeros((4, 10, 10), np.uint8)
    masks[0, 4, 4], masks[1, 5, 2] = 1, 2  # the second one: x and y exchanged, so not where it points (5, 2)
    found = localisation.numbers(said, BOXES, masks)
    assert found["IoU of the square"][:3] == pytest.approx([1, 1 / 3, 0.04 / 0.16], abs=1e-5)
    assert found["hit rate at IoU 0.5"][:3].tolist() == [1, 0, 0] and found["hit rate at IoU 0.25"][:2].tolist() == [1, 1]
    assert found["pointing in the box"][:3].tolist() == [1, 1, 1] and found["pointing in the mask"][:2].tolist() == [1, 0]
    assert found["centre error (picture widths)"][:3] == pytest.approx([0, 0.25, 0], abs=1e-6)
    assert found["scale error (picture widths)"][:3] == pytest.approx([0, 0, 0.2], abs=1e-6)
    # cells: the box [0, .5]^2 touches 2 x 2, the square x .25 to .75 touches 3 x 2: 2 * 4 / (4 + 6)
    assert found["F1 of 3x3 cells"][1] == pytest.approx(0.8)
    assert all(np.isnan(column[3]) for column in found.values())


def test_averages_leave_out_pairs_without_a_box_and_carry_their_intervals():
    said = np.float32([[0.4, 0.4, 0.4], [0.9, 0.9, 0.1], [0.5, 0.5, 0.4], [0.5, 0.5, 1.0]])
    found = localisation.averages(localisation.numbers(said, BOXES))
    assert {metric["n"] for metric in found.values()} == {3}
    rate = found["pointing in the box"]
    assert rate["value"] == pytest.approx(2 / 3) and (rate["low"], rate["high"]) == wilson(2, 3)
    assert found["mean IoU of the square"]["low"] <= found["mean IoU of the square"]["value"] <= found["mean IoU of the square"]["high"]
    assert localisation.averages(localisation.numbers(said[3:], BOXES[3:])) == {}


def test_what_is_no_vector_is_refused():
    for wrong in (np.full((4, 3), 1.5), np.full((4, 3), np.nan), np.zeros((3, 3))):
        with pytest.raises(UserError, match="no .cx, cy, scale"):
            localisation.numbers(wrong, BOXES)


def test_the_gate_is_scored_by_state():
    states = ["unchanged", "localisable", "not localisable", "unchanged"]
    found = localisation.gate(np.array([0.2, 0.9, 0.1, 0.7]), np.array([False, True, True, False]), states)
    assert found["gate accuracy"]["value"] == 0.5 and found["gate accuracy, localisable"]["value"] == 1
    assert found["gate accuracy, not localisable"]["value"] == 0 and found["gate accuracy, unchanged"]["n"] == 2
    sure = found["gate probability, unchanged"]
    assert [sure[key] for key in ("value", "low", "high", "n")] == pytest.approx([0.45, 0.2, 0.7, 2])
    assert found["gate probability, not localisable"]["value"] == pytest.approx(0.1)


def test_paired_differences_are_narrower_than_their_parts():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(size=40)
    found = localisation.difference(np.append(theirs + 0.01, np.nan), np.append(theirs, 0.5))
    assert found["n"] == 40 and found["low"] == pytest.approx(0.01, abs=1e-6) == pytest.approx(found["value"], abs=1e-6)


def test_floors_are_what_they_say_and_the_ceiling_is_above_them(tmp_path):
    pairs = store(tmp_path / "pairs", 12)
    boxes = np.asarray(pairs.column("box_main"))
    training = np.concatenate([boxes, np.float32([NONE])])
    assert np.isnan(training).any(1).sum() > 1
    found = localisation.floors(pairs, training[:-1], pairs, boxes, seed=1)
    has = ~np.isnan(boxes).any(1)
    mean = levir_boxes.encode(boxes[has]).mean(0)
    assert np.allclose(found["constant (training mean)"], mean) and (found["whole frame"] == [0.5, 0.5, 1]).all()
    known = {tuple(v) for v in levir_boxes.encode(boxes[has]).round(5).tolist()}
    assert {tuple(v) for v in found["random (a training pair's)"].round(5).tolist()} <= known
    again = localisation.floors(pairs, training[:-1], pairs, boxes, seed=1)
    assert all(np.array_equal(again[name], found[name]) for name in found)
    mean_iou = {name: np.nanmean(localisation.numbers(vectors, boxes)["IoU of the square"]) for name, vectors in found.items()}
    ceiling = mean_iou.pop("ceiling (three numbers)")
    assert ceiling == pytest.approx(levir_boxes.ceiling(boxes[has]).mean(), abs=1e-6) and ceiling > max(mean_iou.values())
    assert localisation.averages(localisation.numbers(found["whole frame"], boxes))["pointing in the box"]["value"] < 1
    with pytest.raises(UserError, match="no box among the training pairs"):
        localisation.floors(pairs, np.float32([NONE]), pairs, boxes)


def test_a_silent_gate_draws_no_square():
    iou = np.array([0.8, 0.6, np.nan, np.nan])
    found = localisation.gated(iou, np.array([0.5, 0.49, 0.9, 0.1]))
    assert found[:2].tolist() == [0.8, 0] and np.isnan(found[2:]).all(), "a pair without a box is not scored, silent or not"
    metric = localisation.averages({localisation.GATED: found})[localisation.GATED]
    assert (metric["value"], metric["n"]) == (pytest.approx(0.4), 2)


def test_numbers_stand_by_how_many_parts_the_mask_has():
    columns = {"IoU of the square": np.array([0.8, 0.6, 0.5, 0.1, 0.3, np.nan]), "pointing in the box": np.array([1, 1, 0, 0, 1, np.nan]),
               "centre error (picture widths)": np.zeros(6)}
    found = localisation.by_components(columns, np.array([1, 1, 2, 5, 3, 1]))
    told = {name: (round(metric["value"], 6), metric["n"]) for name, metric in found.items()}
    assert told == {"mean IoU of the square, 1 component": (0.7, 2), "pointing in the box, 1 component": (1, 2),
                    "mean IoU of the square, 2 components": (0.5, 1), "pointing in the box, 2 components": (0, 1),
                    "mean IoU of the square, 3+ components": (0.2, 2), "pointing in the box, 3+ components": (0.5, 2)}  # fmt: skip
    assert (found["pointing in the box, 3+ components"]["low"], found["pointing in the box, 3+ components"]["high"]) == wilson(1, 2)
    assert localisation.by_components(columns, np.zeros(6, int)) == {}, "without masks nobody knows"


def test_what_a_gate_says_is_told_whatever_is_right():
    states = ["unchanged", "localisable", "localisable", "unchanged", "not localisable"]
    found = localisation.says_change(np.array([0.9, 0.5, 0.2, 0.1, 0.4]), states)
    assert {name: (metric["value"], metric["n"]) for name, metric in found.items()} == {
        "says change, unchanged": (0.5, 2), "says change, localisable": (0.5, 2), "says change, not localisable": (0, 1)}
    assert localisation.says_change(None, states) == {}
