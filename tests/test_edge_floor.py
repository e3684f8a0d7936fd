"""The strongest guess without learning: it finds edges that came, its numbers are training's. Run: pytest tests/test_edge_floor.py"""

import numpy as np
import pytest
from fake_pairs import store

from repro.data import levir_boxes, overlap
from repro.evaluation import edge_floor, localisation
from repro.evaluation.edge_floor import EdgeFloor
from repro.machine import UserError
from repro.sims import aerial


def ground(rng, size=96):
    return rng.uniform(90, 110, (size, size, 1)).repeat(3, axis=2)


def test_edges_that_came_are_found_in_another_light_and_edges_that_went_are_not():
    rng = np.random.default_rng(0)
    before, after = ground(rng), ground(rng) * 0.7 + 40
    before[60:80, 10:30] = 250  # gone: more contrast than what came
    after[20:44, 50:74:6] = 200  # a house with stripes
    shown = [np.clip(picture, 0, 255).astype(np.uint8) for picture in (before, after)]
    found = levir_boxes.decode(EdgeFloor(2.0, 0.9).vector(*shown))
    assert overlap.iou(found, np.float32([50, 20, 72, 44]) / 96) > 0.5
    swapped = levir_boxes.decode(EdgeFloor(2.0, 0.9).vector(*shown[::-1]))
    went = np.float32([10, 60, 30, 80]) / 96
    assert overlap.iou(swapped, went) > 0.25 and overlap.iou(swapped, found) == 0, "the other way round it is what went"
    same = np.full((32, 32, 3), 9, np.uint8)
    assert EdgeFloor(2.0, 0.9).vector(same, same).tolist() == [0.5, 0.5, 1.0], "nothing: the whole picture"


def test_its_numbers_are_the_best_of_training_and_of_no_more_pairs_than_asked(tmp_path):
    pairs = store(tmp_path / "pairs", 24)
    boxes = np.asarray(pairs.column("box_main"))
    rows = np.flatnonzero(~np.isnan(boxes).any(1))
    score = lambda floor, some: overlap.iou(levir_boxes.decode(floor.vectors(pairs, some)), boxes[some]).mean()
    every = [EdgeFloor(blur, quantile) for blur in edge_floor.BLURS for quantile in edge_floor.QUANTILES]
    assert edge_floor.tuned(pairs, boxes) == max(every, key=lambda floor: score(floor, rows))
    few = np.where(np.arange(len(boxes))[:, None] > rows[2], np.float32(np.nan), boxes)
    assert edge_floor.tuned(pairs, boxes, most=3) == edge_floor.tuned(pairs, few)
    with pytest.raises(UserError, match="no box among the training pairs"):
        edge_floor.tuned(pairs, np.full((24, 4), np.nan, np.float32))


@pytest.fixture(scope="module")
def scores():
    """IoU of both floors without learning on the pairs of tests/test_aerial.py; the numbers are the ones that training pairs give."""
    drawn = [aerial.scene(np.random.default_rng((9, i)), "localisable") for i in range(48)]
    boxes = np.array([p.box_main for p in drawn])
    edges = np.array([EdgeFloor(2.0, 0.95).vector(p.before, p.after) for p in drawn])
    plain = [levir_boxes.difference_box(p.before, p.after) for p in drawn]
    plain = np.array([edge_floor.WHOLE if box is None else levir_boxes.encode(box) for box in plain])
    return [localisation.numbers(vectors, boxes)["IoU of the square"].mean() for vectors in (edges, plain)]


def test_it_is_stronger_than_plain_differencing(scores):
    assert scores[0] > scores[1] + 0.1
