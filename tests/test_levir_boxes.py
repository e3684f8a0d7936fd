"""Boxes of changes: hand-computed masks, what three numbers lose, moved with their pixels. Run: pytest tests/test_levir_boxes.py"""

import numpy as np
import pytest

from repro.data import levir_boxes as boxes
from repro.data.overlap import iou


def mask(*rectangles, size=(32, 64)) -> np.ndarray:
    """(H, W) with rectangles x1, y1, x2, y2, class."""
    made = np.zeros(size, np.uint8)
    for x1, y1, x2, y2, kind in rectangles:
        made[y1:y2, x1:x2] = kind
    return made


def pixels(box, size=(32, 64)):
    return None if box is None else (np.asarray(box) * [size[1], size[0], size[1], size[0]]).tolist()


def test_one_part_and_the_border():
    main, union, count = boxes.boxes(mask((0, 0, 8, 4, 2)))
    assert pixels(main) == pixels(union) == [0, 0, 8, 4] and count == 1 and main.dtype == np.float32
    main, _, _ = boxes.boxes(mask((56, 28, 64, 32, 1)))
    assert pixels(main) == [56, 28, 64, 32] and main[2] == main[3] == 1, "the far border is exclusive: exactly 1"
    assert pixels(boxes.boxes(np.ones((32, 64), np.uint8))[0]) == [0, 0, 64, 32]
    assert boxes.boxes(np.zeros((32, 64), np.uint8)) == (None, None, 0)


def test_touching_corners_are_one_part():
    main, _, count = boxes.boxes(mask((4, 4, 8, 8, 2), (8, 8, 12, 12, 2)))
    assert count == 1 and pixels(main) == [4, 4, 12, 12], "8-connected"
    main, union, count = boxes.boxes(mask((4, 4, 8, 8, 2), (9, 9, 14, 13, 2)))
    assert count == 2 and pixels(main) == [9, 9, 14, 13] and pixels(union) == [4, 4, 14, 13], "a pixel between them is enough"


def test_holes_count_as_outside_and_a_part_in_a_hole_is_its_own():
    ring = mask((2, 2, 22, 22, 2), (4, 4, 20, 20, 0), (8, 8, 16, 16, 1))
    assert boxes.parts(ring).tolist() == [[2, 2, 22, 22, 400 - 256], [8, 8, 16, 16, 64]]


def test_specks_are_left_out():
    main, union, count = boxes.boxes(mask((0, 0, 3, 5, 2), (30, 10, 34, 14, 1)))  # 15 pixels and 16
    assert count == 1 and pixels(main) == pixels(union) == [30, 10, 34, 14]
    assert boxes.boxes(mask((0, 0, 5, 3, 2))) == (None, None, 0)
    assert boxes.boxes(mask((0, 0, 5, 3, 2)), least=15)[2] == 1


def test_classes_that_touch_are_one_part_and_ties_are_settled():
    assert boxes.parts(mask((4, 4, 10, 10, 2), (10, 4, 20, 6, 1))).tolist() == [[4, 4, 20, 10, 36 + 20]]
    tied = mask((40, 2, 44, 6, 2), (10, 2, 14, 6, 2), (2, 20, 6, 24, 1))
    assert boxes.parts(tied)[:, :2].tolist() == [[10, 2], [40, 2], [2, 20]], "the upper, then the left one"


def test_three_numbers_lose_the_aspect_and_nothing_else():
    square = np.array([0.25, 0.5, 0.5, 0.75], np.float32)
    assert boxes.encode(square).tolist() == pytest.approx([0.375, 0.625, 0.25])
    assert boxes.decode(boxes.encode(square)) == pytest.approx(square)
    for ratio, published in ((1, 1.0), (1.25, 0.81), (1.5, 0.69), (2, 0.55), (3, 0.41), (4, 0.33), (8, 0.22)):
        wide = np.array([0.5 - 0.05 * ratio, 0.45, 0.5 + 0.05 * ratio, 0.55])
        for box in (wide, wide[[1, 0, 3, 2]]):
            found = iou(boxes.decode(boxes.encode(box)), box)
            assert found == pytest.approx(1 / (2 * np.sqrt(ratio) - 1), abs=1e-6) and found == pytest.approx(published, abs=0.006)
            assert boxes.ceiling(box) == pytest.approx(found)
    assert boxes.decode(np.array([0.1, 0.9, 0.4])) == pytest.approx([0, 0.7, 0.3, 1]), "cut off at the border"
    assert boxes.decode(np.zeros((5, 3))).shape == (5, 4) and boxes.encode(np.zeros((2, 5, 4))).shape == (2, 5, 3)


def test_iou():
    one = np.array([0, 0, 0.5, 1.0])
    assert iou(one, one) == 1 and iou(one, [0.25, 0, 0.75, 1]) == pytest.approx(1 / 3)
    assert iou(one, [0.5, 0, 1, 1]) == 0 and iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0
    assert iou(one, np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]])).tolist() == [0.5, 0.5]


def scene(size=(40, 40), box=(6, 10, 20, 18)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two dates whose second has one white oblong, exactly at the box."""
    before = np.full((*size, 3), 60, np.uint8)
    after = before.copy()
    after[box[1] : box[3], box[0] : box[2]] = 255
    return before, after, (np.array(box) / [size[1], size[0], size[1], size[0]]).astype(np.float32)


def seen(after: np.ndarray) -> np.ndarray:
    return boxes.boxes(after[..., 0] > 157)[0]


def test_turns_and_flips_move_boxes_with_their_pixels():
    _, after, box = scene()
    for move in (boxes.flipped, boxes.turned):
        picture, moved = move(after, box)
        assert np.allclose(seen(picture), moved, atol=1e-6), move
        assert not np.allclose(moved, box) and move(after, None)[1] is None
    picture, moved = boxes.cropped(after, box, (4, 8, 24, 28))
    assert np.allclose(moved, [0.1, 0.1, 0.8, 0.5], atol=1e-6) and np.abs(seen(picture) - moved).max() <= 1 / 40
    assert boxes.cropped(after, box, (10, 0, 40, 30))[1] == pytest.approx([0, 10 / 30, 10 / 30, 18 / 30], abs=1e-6), "cut off at the window"


@pytest.mark.parametrize("size", [(40, 40), (40, 60)])
def test_augment_moves_both_dates_and_the_box_alike(size):
    before, after, box = scene(size, (2, 10, 26, 16))
    before[0:4, 0:4] = 255  # a corner that both dates have
    after[0:4, 0:4] = 255
    shapes = set()
    for seed in range(60):
        one, two, moved = boxes.augment(before, after, box, np.random.default_rng(seed))
        assert one.shape == two.shape == before.shape and one.dtype == np.uint8
        apart = boxes.boxes(np.abs(two.astype(int) - one).max(2) > 97)[0]
        assert np.abs(apart - moved).max() < 1.5 / 40, "where its pixels are"
        sides = lambda b: sorted([(b[2] - b[0]) * size[1], (b[3] - b[1]) * size[0]])
        assert all(now >= then - 1e-4 for now, then in zip(sides(moved), sides(box), strict=True)), "the window has all of it"
        wide = (moved[2] - moved[0]) * size[1] > (moved[3] - moved[1]) * size[0]
        shapes.add((bool(wide), bool(moved[0] + moved[2] < 1), bool(moved[1] + moved[3] < 1)))
    assert len(shapes) >= (6 if size[0] == size[1] else 3), "turned and flipped both ways"
    again = boxes.augment(before, after, box, np.random.default_rng(3))
    assert all(np.array_equal(a, b) for a, b in zip(again, boxes.augment(before, after, box, np.random.default_rng(3)), strict=True))
    assert boxes.augment(before, after, None, np.random.default_rng(0))[2] is None


def test_differencing_finds_a_change_under_another_light_and_nothing_in_nothing():
    rng = np.random.default_rng(0)
    before = (90 + 20 * rng.standard_normal((64, 64, 1))).clip(40, 140).astype(np.uint8).repeat(3, 2)
    after = (before * 0.6).astype(np.uint8)
    after[20:40, 30:50] = 250
    assert iou(boxes.difference_box(before, after), np.array([30, 20, 50, 40]) / 64) > 0.7
    shifted = boxes.matched(before, (before * 0.6).astype(np.uint8))
    assert np.abs(shifted.astype(int) - (before * 0.6).astype(np.uint8)).max() <= 1, "a change of light alone is taken out"
    assert boxes.difference_box(before, before) is None
