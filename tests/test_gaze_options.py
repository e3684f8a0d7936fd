"""Options over a detector's boxes, each by itself: `pytest tests/test_gaze_options.py`."""

from dataclasses import replace

import numpy as np
import pytest

from repro.data.overlap import iou
from repro.gaze.candidates import Candidates, candidates
from repro.gaze.colour import Colour, understood
from repro.gaze.options import ALL, GAP, NONE, SINGLE, WITHOUT, Options, look, nms, plausible, related
from repro.gaze.phrase import Phrase, parse

IMAGE = np.zeros((100, 100, 3), np.uint8)


class Told:
    """A detector that answers what it was told, a frame after the other; a tile gets nothing."""

    name = "told"

    def __init__(self, *frames: Candidates):
        self.frames = frames

    def __call__(self, images, nouns):
        if len(images) > len(self.frames):
            return [found()] * len(images)
        return [frame.take([name in asked for name in frame.names]) for frame, asked in zip(self.frames, nouns, strict=True)]

    def fingerprint(self):
        return ""


def at(x, y, score, name="mug", size=0.1):
    return (x, y, x + size, y + size), score, name


def found(*boxes) -> Candidates:
    return candidates([b[0] for b in boxes], [b[1] for b in boxes], [b[2] for b in boxes])


def first(detector, sentence, options, count=1):
    phrase = sentence if isinstance(sentence, Phrase) else parse(sentence)
    return look(detector, [IMAGE] * count, [phrase] * count, options)


def test_labels_and_the_lists_of_single_options():
    assert (NONE.label, ALL.label, Options(tiles=True, smooth=True).label) == ("none", "all", "tiles + smooth")
    assert [o.label for o in SINGLE] == ["tiles", "nms", "filters", "relations", "smooth"] and len(WITHOUT) == 5


def test_none_is_the_best_box_of_one_look():
    told = Told(found(at(0.1, 0.1, 0.6), at(0.5, 0.5, 0.9), at(0.8, 0.1, 0.99, "bowl")))
    gaze = first(told, "pick up the mug in the bowl", NONE)[0]
    assert gaze.box.tolist() == pytest.approx([0.5, 0.5, 0.6, 0.6]) and gaze.score == pytest.approx(0.9) and gaze.source == "detector"
    nothing = first(Told(found(at(0.8, 0.1, 0.99, "bowl"))), "pick up the mug in the bowl", NONE)[0]
    assert (nothing.source, nothing.note, nothing.box.tolist()) == ("fallback", "no detection", [0, 0, 1, 1])


def test_two_equal_ones_are_flagged_and_a_relation_decides():
    twins = found(at(0.1, 0.5, 0.8), at(0.7, 0.5, 0.79), at(0.66, 0.46, 0.5, "bowl", 0.18))
    assert first(Told(twins), "pick up the mug", ALL)[0].note == "ambiguous"
    gaze = first(Told(twins), "pick up the mug in the bowl", replace(NONE, relations=True))[0]
    assert gaze.box[0] == pytest.approx(0.7) and gaze.note == ""
    assert gaze.score == pytest.approx(0.79), "the detector's own score"
    gaze = first(Told(twins.take([0, 1])), "pick up the mug in the bowl", ALL)[0]
    assert gaze.note == "reference not found; ambiguous"


def test_the_bowl_is_not_the_block_in_it():
    boxes = found(at(0.6, 0.6, 0.9, "blue block", 0.2), at(0.65, 0.65, 0.5, "blue block", 0.06), at(0.6, 0.6, 0.95, "red bowl", 0.2))
    gaze = first(Told(boxes), "pick up the blue block in the red bowl", replace(NONE, relations=True))[0]
    assert gaze.box.tolist() == pytest.approx([0.65, 0.65, 0.71, 0.71])


@pytest.mark.parametrize("place, x, y", [("left of", 0.2, 0.5), ("right of", 0.7, 0.5), ("behind", 0.45, 0.25), ("in front of", 0.45, 0.72),
                                         ("next to", 0.58, 0.5)])  # fmt: skip
def test_places(place, x, y):
    reference, far = found(at(0.45, 0.5, 1.0, "plate")), {"left of": (0.7, 0.5), "right of": (0.2, 0.5), "behind": (0.45, 0.72),
                                                          "in front of": (0.45, 0.25), "next to": (0.9, 0.1)}[place]  # fmt: skip
    ranks, note = related(found(at(*far, 0.8), at(x, y, 0.7)), [reference], place, None)
    assert ranks[1] > 2 * ranks[0] and note == ""


def test_between_and_sides():
    mine = found(at(0.45, 0.5, 0.7), at(0.1, 0.1, 0.8), at(0.8, 0.8, 0.75))
    between = related(mine, [found(at(0.2, 0.5, 1.0, "plate")), found(at(0.7, 0.5, 1.0, "bowl"))], "between", None)[0]
    assert mine.boxes[between.argmax()][0] == pytest.approx(0.45)
    for side, x in (("left", 0.1), ("right", 0.8), ("back", 0.1), ("front", 0.8), ("middle", 0.45), ("top", 0.1), ("bottom", 0.8)):
        assert mine.boxes[related(mine, [], None, side)[0].argmax()][0] == pytest.approx(x), side
    doubtful = found(at(0.45, 0.5, 0.9), at(0.1, 0.1, 0.2))
    assert related(doubtful, [], None, "left")[0].argmax() == 0, "a doubtful box is no left mug"


def test_nms_keeps_the_better_of_one_noun():
    boxes = found(at(0.1, 0.1, 0.9), at(0.11, 0.1, 0.8), at(0.11, 0.1, 0.7, "bowl"), at(0.5, 0.5, 0.6))
    kept = nms(boxes)
    assert list(zip(kept.names, kept.scores.astype(float).round(2).tolist(), strict=True)) == [("mug", 0.9), ("bowl", 0.7), ("mug", 0.6)]


def test_filters_by_size_aspect_and_position():
    boxes = Candidates(np.array([[0.4, 0.4, 0.5, 0.5], [0, 0, 0.9, 0.9], [0.1, 0.1, 0.9, 0.15], [0.4, 0.4, 0.41, 0.41], [0.9, 0.95, 1, 1]],
                                np.float32), np.ones(5, np.float32), ("mug",) * 5)  # fmt: skip
    assert plausible(boxes).tolist() == [True, False, False, False, False]
    assert plausible(Candidates(np.array([[0.2, 0.5, 0.8, 0.9]], np.float32), np.ones(1), ("drawer",))).all(), "furniture is large"


def test_tiles_find_what_is_too_small_for_one_look():
    image = np.full((200, 200, 3), 128, np.uint8)
    image[30:38, 30:38] = (210, 20, 20)
    phrase = parse("pick up the red block")
    least = Colour(0.75)
    assert not look(least, [image], [phrase], NONE)[0].valid
    gaze = look(least, [image], [phrase], replace(NONE, tiles=True))[0]
    assert iou(gaze.box, np.array([30, 30, 38, 38]) / 200) > 0.6
    assert least.needs_whole("drawer") and not least.needs_whole("red block")


def test_smoothing_follows_one_thing_and_says_what_it_bridged():
    here, there = at(0.2, 0.2, 0.8), at(0.7, 0.7, 0.9)
    frames = [found(here), found(here), found(here, there), found(), found(), found(here), found(here)]
    plain = first(Told(*frames), "pick up the mug", NONE, 7)
    assert plain[2].box[0] == pytest.approx(0.7) and not plain[3].valid
    smooth = first(Told(*frames), "pick up the mug", replace(NONE, smooth=True), 7)
    assert [g.note for g in smooth] == ["", "", "", "carried over", "carried over", "", ""]
    assert all(g.box[0] == pytest.approx(0.2) for g in smooth) and smooth[3].score == pytest.approx(0.4)


def test_smoothing_bridges_no_long_gap_and_no_end():
    here = at(0.2, 0.2, 0.8)
    frames = [found(here), *[found()] * (GAP + 1), found(here), found()]
    gazes = first(Told(*frames), "pick up the mug", replace(NONE, smooth=True), len(frames))
    assert [g.valid for g in gazes] == [True, *[False] * (GAP + 1), True, False]


def test_smoothing_does_not_go_from_the_target_to_the_destination():
    mug, bowl = at(0.2, 0.2, 0.8), at(0.7, 0.7, 0.8, "bowl")
    frames, held = [found(mug), found(), found(bowl)], [False, True, True]
    gazes = look(Told(*frames), [IMAGE] * 3, [parse("put the mug in the bowl")] * 3, replace(NONE, smooth=True), held)
    assert [g.valid for g in gazes] == [True, False, True] and gazes[2].box[0] == pytest.approx(0.7)


def test_a_relation_that_nothing_meets_is_flagged():
    alone = found(at(0.1, 0.1, 0.9, "blue block", 0.06), at(0.6, 0.6, 0.95, "red bowl", 0.2))
    assert first(Told(alone), "pick up the blue block in the red bowl", ALL)[0].note == "relation not met"


def test_smoothing_keeps_the_steady_boxes_of_a_detector_with_low_scores():
    frames = [found(at(0.2, 0.2, 0.3))] * 10
    assert all(g.valid for g in first(Told(*frames), "pick up the mug", replace(NONE, smooth=True), 10))


def test_two_bowls_of_one_noun_are_two_things():
    sentence = "stack the black bowl at the front on the black bowl in the middle"
    bowls = found(at(0.45, 0.8, 0.8, "black bowl"), at(0.45, 0.5, 0.8, "black bowl"), at(0.45, 0.2, 0.8, "black bowl"))
    phrase = parse(sentence)
    assert (phrase.side, phrase.destination_side) == ("front", "middle")
    held = [False, False, False, True, True, True]
    gazes = look(Told(bowls, bowls, found(), found(), bowls, bowls), [IMAGE] * 6, [phrase] * 6, replace(ALL, tiles=False), held)
    assert [round(float(g.box[1]), 1) if g.valid else None for g in gazes] == [0.8, 0.8, None, None, 0.5, 0.5]


def test_what_nothing_names_is_flagged_without_a_look():
    assert not parse("go left").named
    assert first(None, parse("go left"), ALL)[0].note == "unnamed"


def test_colour_understands_nouns():
    assert understood("the purple brick")[0] == "pink" and understood("black bowls")[0] == "black"
    assert understood("sliding door")[1] is understood("cabinet")[1]
    assert understood("soup") == (None, None) and not len(Colour()([np.full((50, 50, 3), 200, np.uint8)], [["soup"]])[0])
