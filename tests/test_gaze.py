"""Language, phrases, detectors, crops and their quality: `pytest tests/test_gaze.py`."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from repro.data.episodes import Episode, Store, StoreWriter
from repro.data.overlap import iou
from repro.gaze.annotate import annotate, course, holding
from repro.gaze.colour import Colour
from repro.gaze.crops import crop, pixels
from repro.gaze.detectors import FULL_FRAME, Gaze, load, truth
from repro.gaze.options import NONE, look
from repro.gaze.phrase import Phrase, gaze_item, parse
from repro.gaze.quality import calibration, contact_sheet, detection_quality
from repro.machine import UserError
from repro.sims.tabletop import render
from repro.sims.tabletop.language import TRAIN, VALIDATION
from repro.sims.tabletop.scenes import BLOCKS, ITEMS, SCENES, item_boxes


def words(sentence: str) -> set[str]:
    return set(re.findall(r"[a-z]+", sentence.lower()))


# --- language -----------------------------------------------------------------------------------------------------------------------


def test_every_task_has_wordings_and_validation_is_unseen():
    assert len(TRAIN) == 34 and TRAIN.keys() == VALIDATION.keys()
    spoken = [sentence.lower() for sentences in TRAIN.values() for sentence in sentences]
    assert min(len(sentences) for sentences in TRAIN.values()) >= 8
    assert len(set(spoken)) == len(spoken), "one sentence names two tasks"
    assert not {sentence.lower() for sentence in VALIDATION.values()} & set(spoken)
    assert len(set(VALIDATION.values())) == 34
    assert not set().union(*map(words, VALIDATION.values())) - set().union(*map(words, spoken)), "a word that training never says"


def test_wordings_are_not_those_of_the_test_data(test_data):
    for split in ("training", "validation"):
        told = json.loads((test_data("calvin_sim") / split / "boxes.json").read_text())["episodes"]
        ours = {s for task in TRAIN for s in (*TRAIN[task], VALIDATION[task])}
        assert not ours & {entry["instruction"] for entry in told}


# --- detectors ----------------------------------------------------------------------------------------------------------------------


def test_truth_takes_the_box_or_falls_back():
    boxes = {"drawer": [0.1, 0.5, 0.6, 1.0], "red_block": [0, 0, 0.1, 0.1]}
    gaze = truth(boxes, "drawer")
    assert gaze.box.dtype == np.float32 and gaze.box.tolist() == pytest.approx([0.1, 0.5, 0.6, 1.0])
    assert (gaze.score, gaze.source, gaze.note) == (1.0, "truth", "")
    for item, note in (("blue_block", "hidden"), (None, "unnamed")):
        gaze = truth(boxes, item)
        assert (gaze.box.tolist(), gaze.score, gaze.source, gaze.valid, gaze.note) == ([0, 0, 1, 1], 0.0, "fallback", False, note)
    with pytest.raises(UserError, match="does not lie in the image"):
        truth({"drawer": [0.2, 0.5, 1.2, 1.0]}, "drawer")


def colour(image: np.ndarray, sentence: str | Phrase) -> Gaze:
    return look(Colour(), [image], [parse(sentence) if isinstance(sentence, str) else sentence], NONE, source="colour")[0]


def test_colour_on_a_drawn_patch():
    image = np.full((200, 200, 3), 128, np.uint8)
    assert colour(image, "lift the red block").source == "fallback"
    image[40:60, 100:130] = (210, 30, 30)
    image[40:60, 112:118] = 150  # a finger in front
    gaze = colour(image, "lift the red block")
    assert gaze.source == "colour" and gaze.box.tolist() == pytest.approx([0.5, 0.2, 0.65, 0.3]) and gaze.score > 0.6 and not gaze.note
    image[150:170, 20:50] = (210, 30, 30)  # a second one: it may be either
    assert colour(image, "lift the red block").note == "ambiguous"
    for other in ("lift the blue block", "lift the pink block", "open the drawer", "press the button"):
        assert colour(image, other).note == "no detection", other
    image[150:152, 150:152] = (20, 20, 220)
    assert colour(image, "lift the blue block").source == "fallback", "four pixels prove nothing"
    for bad in (image[..., 0], np.dstack([image, image[..., :1]]), image.astype(float)):
        with pytest.raises(UserError, match="RGB"):
            colour(bad, "lift the red block")


def test_detectors_are_loaded_by_name_and_never_replaced():
    assert load("colour").name == "colour"
    with pytest.raises(UserError, match="no detector"):
        load("yolo")
    with pytest.raises(UserError, match="no weights"):
        load("colour", "somewhere")


def shares(rows: list[tuple[Gaze, Gaze]]) -> dict:
    found, true = zip(*rows, strict=True)
    boxes, sources = [np.stack([gaze.box for gaze in gazes]) for gazes in (found, true)], [gaze.source for gaze in found]
    return detection_quality(*boxes, sources, np.array([gaze.valid for gaze in true]))


def asked(block: str) -> Phrase:
    return Phrase(block.replace("_", " "), block)


@pytest.mark.parametrize("scene", SCENES)
def test_colour_finds_blocks_on_the_play_table(scene):
    rng, rows = np.random.default_rng(1), []
    for _ in range(20):
        robot, world = np.zeros(15), np.zeros(24)
        robot[:6] = *rng.uniform([-0.3, -0.25, 0.5], [0.3, 0.1, 0.7]), np.pi, 0, np.pi / 2
        for block, x in enumerate(rng.permutation([-0.25, 0.02, 0.25])):
            world[6 + 6 * block : 12 + 6 * block] = x, rng.uniform(-0.18, -0.02), 0.46, 0, 0, rng.uniform(-2, 2)
        picture = render.render(SCENES[scene], robot, world, cameras=("static",))
        boxes = {item: np.divide(box, 200) for item, box in item_boxes(picture["static_ids"]).items()}
        rows += [(colour(picture["static"], asked(b)), truth(boxes, b)) for b in BLOCKS]
    report = shares(rows)
    assert report["detection_rate"] >= 0.93 and report["false_alarms"] == 0, report


# --- crops --------------------------------------------------------------------------------------------------------------------------


def test_crop_edges():
    image = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    assert (crop(image, FULL_FRAME) == image).all() and crop(image, FULL_FRAME).base is None
    assert pixels([0.25, 0.2, 0.5, 0.6], 10, 20) == (5, 2, 10, 6)
    for x0 in range(20):  # pixel boxes survive the way through float32
        box = np.array([x0 / 20, 0, (x0 + 1) / 20, 1], np.float32)
        assert pixels(box, 10, 20) == (x0, 0, x0 + 1, 10)
    assert pixels([-0.2, -0.1, 0.1, 1.3], 10, 20) == (0, 0, 2, 10), "clamped"
    assert pixels([0.999, 0.999, 0.9991, 0.9992], 10, 20) == (19, 9, 20, 10), "never empty"
    assert pixels([0.25, 0.2, 0.5, 0.6], 10, 20, margin=0.2) == (4, 1, 11, 7)
    assert pixels([0.0, 0.4, 0.05, 0.5], 10, 20, minimum=6) == (0, 2, 6, 8), "grows, moved inwards at the border"
    assert pixels([0.95, 0.9, 1.0, 1.0], 10, 20, minimum=50) == (0, 0, 20, 10), "never more than the image"
    touched = [40.6 / 200, 60.4 / 200, 80.2 / 200, 101.7 / 200]
    assert pixels(touched, 200, 200) == (40, 60, 81, 102), "every pixel that the box touches"
    assert pixels(touched, 200, 200, truncate=True) == (40, 60, 80, 101), "upstream: box.astype(int)"
    assert pixels([0.201, 0.2, 0.204, 0.6], 200, 200, truncate=True) == (40, 40, 41, 120), "never empty"
    assert crop(image, [0.25, 0.2, 0.5, 0.6], size=(7, 9)).shape == (7, 9, 3)
    assert (crop(np.full((10, 20, 3), 77, np.uint8), [0.1, 0.1, 0.2, 0.9], size=(30, 4)) == 77).all()


BAD_BOXES = [[np.nan, 0, 1, 1], [0.5, 0, 0.4, 1], [0.2, 0.2, 0.2, 0.4], [0, 0, 1], [83, 94, 105, 115], [1.1, 0, 1.4, 1]]


@pytest.mark.parametrize("box", BAD_BOXES)
def test_bad_boxes_are_refused(box):
    with pytest.raises(UserError, match="box"):
        crop(np.zeros((10, 10, 3), np.uint8), np.array(box))


def store(folder, boxes=True):
    """Two episodes of four frames: one that lifts the red block, one that takes an unnamed pile apart."""
    image = np.full((4, 100, 100, 3), 128, np.uint8)
    image[:3, 8:20, 10:20] = (220, 20, 20)
    states = np.zeros((4, 24), np.float32)
    states[:, 18] = np.linspace(0, 0.2, 4)  # pink moves
    seen = ['{"red_block": [10, 8, 20, 20], "pink_block": [0, 0, 4, 4]}'] * 3 + ['{"pink_block": [0, 0, 4, 4]}']
    with StoreWriter(folder, fps=30) as writer:
        for task, name in (("lift the red block", "lift_red_block_table"), ("take the tower apart", "unstack_block")):
            columns = {"observation.images.static": image, "observation.environment_state": states, "info.boxes": seen}
            writer.add(Episode(task, columns if boxes else {k: v for k, v in columns.items() if k != "info.boxes"}, {"task_id": name}))
    return folder


def test_annotate_by_truth(tmp_path):
    report = annotate(store(tmp_path / "store"), "truth")
    assert report["frames"] == 8 and report["sources"] == {"truth": 3, "fallback": 1, "state": 4} and report["unnamed"] == {}
    first = Store(tmp_path / "store").read(0).columns
    assert first["gaze.source"] == ["truth"] * 3 + ["fallback"] and first["gaze.score"].tolist() == [1, 1, 1, 0]
    assert first["gaze.box"].dtype == np.float32
    np.testing.assert_allclose(first["gaze.box"], [[0.1, 0.08, 0.2, 0.2]] * 3 + [[0, 0, 1, 1]])
    assert (first["observation.images.static"][0, 10, 12] == (220, 20, 20)).all(), "pictures are untouched"
    report = annotate(tmp_path / "store", "truth", look_ahead=False)
    assert report["sources"] == {"truth": 3, "fallback": 5} and report["unnamed"] == {"take the tower apart": 4}


def test_annotate_by_colour_replaces_the_columns(tmp_path):
    annotate(store(tmp_path / "store"), "truth")
    report = annotate(tmp_path / "store", "colour", NONE, crop_size=(16, 24))
    assert report["tasks"] == {"lift_red_block_table": {"colour": 3, "fallback": 1}, "unstack_block": {"colour": 3, "fallback": 1}}
    assert report["notes"] == {"no detection": 2} and report["options"] == "none"
    found = Store(tmp_path / "store").read(0).columns
    np.testing.assert_allclose(found["gaze.box"][0], [0.1, 0.08, 0.2, 0.2])
    assert found["gaze.crop"].shape == (4, 16, 24, 3) and found["gaze.note"] == ["", "", "", "no detection"]
    assert np.abs(found["gaze.crop"][0].astype(int) - (220, 20, 20)).max() <= 2, "the crop is the block"


def test_an_earlier_crop_goes_when_the_boxes_are_others(tmp_path):
    annotate(store(tmp_path / "store"), "truth", crop_size=(8, 8))
    annotate(tmp_path / "store", "colour", NONE)
    assert "gaze.crop" not in Store(tmp_path / "store").columns and "gaze.box" in Store(tmp_path / "store").columns


def test_several_steps_go_on_when_the_hand_lets_go():
    phrase = parse("put the soup in the basket and put the sauce in the basket")
    assert phrase.then is not None
    held = np.array([0, 1, 1, 1, 0, 0, 1, 1], bool)
    phrases, on, notes = course(phrase, held)
    assert [p.target for p in phrases] == ["soup"] * 4 + ["sauce"] * 4 and on == held.tolist() and not any(notes)
    assert not any(course(phrase, held, follow=False)[1])
    assert course(parse("turn on the stove and put the pan on it"), held)[2][0] == "several steps"


def test_an_empty_instruction_does_not_stop_a_store(tmp_path):
    image = np.full((2, 40, 40, 3), 128, np.uint8)
    with StoreWriter(tmp_path / "store", fps=30) as writer:
        writer.add(Episode("...", {"observation.images.static": image}, {}))
    assert annotate(tmp_path / "store", "colour")["notes"] == {"unnamed": 2}


class Once:
    """A detector that counts how often it is asked, and breaks at one call."""

    name = "once"

    def __init__(self, breaks_at=None):
        self.asked, self.breaks_at = 0, breaks_at

    def fingerprint(self):
        return "1"

    def __call__(self, images, nouns):
        self.asked += 1
        if self.asked == self.breaks_at:
            raise RuntimeError("the machine was switched off")
        return Colour()(images, nouns)


def test_annotate_goes_on_where_it_broke(tmp_path):
    broken, well = Once(breaks_at=2), Once()
    with pytest.raises(UserError, match="switched off"):
        annotate(store(tmp_path / "store"), broken, NONE)
    assert "gaze.box" not in Store(tmp_path / "store").columns
    annotate(tmp_path / "store", well, NONE)
    assert well.asked == 1, "the first episode was kept"
    annotate(store(tmp_path / "other"), Once(), NONE)
    assert Store(tmp_path / "store").hash == Store(tmp_path / "other").hash


def test_the_gaze_follows_to_the_destination_while_the_target_is_held(tmp_path):
    proprio = np.zeros((6, 15), np.float32)
    proprio[:, 6], proprio[:, 14] = [0.08, 0.08, 0.05, 0.04, 0.04, 0.08], [1, 1, -1, -1, -1, 1]  # opens, closes on 4 cm, holds, lets go
    states = np.zeros((6, 24), np.float32)
    columns = {"observation.images.static": np.zeros((6, 40, 40, 3), np.uint8), "observation.state": proprio,
               "observation.environment_state": states,
               "info.boxes": ['{"red_block": [10, 8, 20, 20], "drawer": [0, 20, 40, 40]}'] * 6}  # fmt: skip
    episode = Episode("put the red block into the drawer", columns, {"task_id": "place"})
    assert holding(episode).tolist() == [False, False, False, False, True, False]
    assert holding(episode, parse(episode.task)).tolist() == holding(episode).tolist(), "the block is at the hand"
    states[:, 6] = 0.5
    assert not holding(episode, parse(episode.task)).any(), "it is elsewhere: something else is held"
    states[:, 6] = 0
    for follow, held in ((True, [0, 0.5, 1, 1]), (False, [0.25, 0.2, 0.5, 0.5])):
        folder = tmp_path / str(follow)
        with StoreWriter(folder, fps=30) as writer:
            writer.add(episode)
        annotate(folder, "truth", follow=follow)
        boxes = Store(folder).read(0, ["gaze.box"]).columns["gaze.box"]
        np.testing.assert_allclose(boxes[4], held, atol=1e-6)
        np.testing.assert_allclose(boxes[[0, 5]], [[0.25, 0.2, 0.5, 0.5]] * 2, atol=1e-6)


def test_another_camera_gives_other_boxes_from_the_same_state(tmp_path, monkeypatch):
    monkeypatch.setattr("repro.gaze.annotate.check_state", lambda *rest, **more: {})
    states = np.tile(np.array([0] * 6 + [0.05, -0.1, 0.46, 0, 0, 1] * 3, np.float32), (2, 1))
    columns = {"observation.images.static": np.zeros((2, 40, 40, 3), np.uint8), "observation.environment_state": states}
    with StoreWriter(tmp_path / "store", fps=30) as writer:
        writer.add(Episode("push the drawer", columns, {"task_id": "push", "scene": "D"}))
    found, usual = [], render.static_camera()
    for camera in (None, replace(usual, focal=usual.focal * 0.8), replace(usual, eye=usual.eye * 1.1)):
        annotate(tmp_path / "store", "state", camera=camera)
        found.append(tuple(Store(tmp_path / "store").read(0, ["gaze.box"]).columns["gaze.box"][0].tolist()))
    assert len(set(found)) == 3 and (0, 0, 1, 1) not in found


def test_annotate_says_what_is_missing(tmp_path):
    with pytest.raises(UserError, match="holds no simulator boxes"):
        annotate(store(tmp_path / "store", boxes=False), "truth")
    with pytest.raises(UserError, match="no detector"):
        annotate(tmp_path / "store", "yolo")
    with pytest.raises(UserError, match="crops cannot be cut"):
        annotate(tmp_path / "store", "colour", crop_size=(-5, -5))
    with pytest.raises(UserError, match="need no weights"):
        annotate(store(tmp_path / "other"), "truth", weights="somewhere")


# --- quality ------------------------------------------------------------------------------------------------------------------------


def test_iou_by_hand():
    a = np.array([0, 0, 2, 2])
    others = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [0, 0, 1, 2], [5, 5, 6, 6], [2, 2, 0, 0]])
    assert iou(a, others).tolist() == pytest.approx([1, 1 / 7, 0, 0.5, 0, 0])
    assert iou(others[:, None], others[None]).shape == (6, 6)
    assert float(iou(np.zeros(4), np.zeros(4))) == 0


def test_detection_quality_by_hand():
    true = np.tile([0.0, 0.0, 0.2, 0.2], (6, 1))
    found = np.array([[0, 0, 0.2, 0.2], [0, 0, 0.2, 0.1], [0.5, 0, 0.7, 0.2], [0, 0, 1, 1], [0, 0, 1, 1], [0.4, 0.4, 0.6, 0.6]])
    sources = ["colour", "colour", "colour", "fallback", "fallback", "colour"]
    report = detection_quality(found, true, sources, [True] * 4 + [False] * 2, episodes=[0, 0, 0, 0, 1, 1])
    assert (report["n"], report["detection_rate"], report["precision"]) == (4, 0.5, pytest.approx(2 / 3))
    assert (report["low"], report["high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson, 2 of 4
    assert (report["hidden"], report["false_alarms"]) == (2, 1)
    assert report["centre_error"] == pytest.approx(0.05 * 200)  # of 0, 0.05 and 0.5
    assert report["jump_rate"] == 0.5 and report["sources"] == {"colour": 4, "fallback": 2}
    nothing = detection_quality(found[3:4], true[3:4], ["fallback"])
    assert detection_quality(found[3:4], found[3:4], ["fallback"])["detection_rate"] == 0, "a fallback is a miss even where it fits"
    assert nothing["detection_rate"] == 0 and nothing["precision"] is None and nothing["centre_error"] is None


def test_contact_sheet_tells_hits_from_misses():
    boxes = np.array([[0.1, 0.1, 0.5, 0.5]] * 4)
    true = np.array([[0.1, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.1, 0.1, 0.5, 0.5], [np.nan] * 4])
    images, sources = [np.zeros((20, 20, 3), np.uint8)] * 4, ["colour", "colour", "fallback", "fallback"]
    figure = contact_sheet(images, boxes, true, ["a"] * 4, sources, columns=3)
    titles = [axis.get_title().split("\n")[-1] for axis in figure.axes[:4]]
    assert titles == ["hit, IoU 1.00", "MISS, IoU 0.00", "MISS: fallback", "hidden, none claimed"]
    assert [len(axis.patches) for axis in figure.axes[:4]] == [4, 4, 2, 0]


def test_gaze_item_is_the_target_or_where_the_held_block_goes():
    assert gaze_item(parse("press the button")) == "button"
    assert gaze_item(parse("put the block you hold into the cabinet")) == "slider"
    assert gaze_item(parse("stack it on another block")) is None
    assert set(filter(None, (parse(s).item for s in VALIDATION.values()))) <= set(ITEMS)


def test_calibration_by_hand():
    report = calibration(np.array([0.9, 0.9, 0.5, 0.5]), np.array([True, True, True, False]))
    assert [(row["n"], row["right"]) for row in report["rows"]] == [(2, 0.5), (2, 1.0)]
    assert report["error"] == pytest.approx(0.5 * 0.0 + 0.5 * 0.1) and report["separates"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert calibration(np.ones(3), np.ones(3, bool))["separates"] is None
