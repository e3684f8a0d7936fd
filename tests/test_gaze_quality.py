"""Cluttered scenes, what is measured on them, and the records: `pytest tests/test_gaze_quality.py`."""

import json

import numpy as np
import pytest

from repro import run_records
from repro.evaluation import gaze as evaluation
from repro.gaze.candidates import candidates
from repro.gaze.colour import Colour
from repro.gaze.detectors import Gaze
from repro.gaze.options import ALL, NONE, SINGLE, WITHOUT
from repro.gaze.phrase import parse
from repro.sims import clutter
from repro.sims.tabletop import looks, render
from repro.sims.tabletop.scenes import SCENES


@pytest.fixture(scope="module")
def scenes():
    return evaluation.clutter(48, seed=5000)


@pytest.mark.parametrize("kind", clutter.KINDS)
def test_a_sentence_is_true_of_its_scene(kind):
    for seed in range(6):
        clip = clutter.make(seed, kind, frames=2, hand=False)
        phrase, boxes = parse(clip.instruction), clip.frames[0].boxes
        assert phrase.target == clip.names["target"], clip.instruction
        assert clip.frames[0].visible["target"] > 0.3 and set(boxes) <= set(clip.names)
        centre = {role: (box[0] + box[2]) / 2 for role, box in boxes.items()}
        assert ("twin" in clip.names) == (kind != "plain")
        if kind == "plain":
            assert list(clip.names.values()).count(clip.names["target"]) == 1 and (phrase.place, phrase.side) == (None, None)
            continue
        assert clip.names["twin"] == clip.names["target"]
        if kind == "side" and "twin" in centre:
            assert (centre["target"] < centre["twin"]) == (phrase.side == "left")
        elif kind in ("left of", "right of"):
            assert (phrase.place, phrase.references) == (kind, (clip.names["reference"],))
            assert (centre["target"] < centre["reference"]) == (kind == "left of")
        elif kind in ("in", "on"):
            box, other = boxes["target"], boxes["reference"]
            assert other[0] <= (box[0] + box[2]) / 2 <= other[2] and phrase.place == kind


def test_the_same_seed_draws_the_same_bits_and_the_hand_hides():
    one, two, other = (clutter.make(seed, "in") for seed in (3, 3, 4))
    assert all((a.image == b.image).all() and a.boxes == b.boxes for a, b in zip(one.frames, two.frames, strict=True))
    assert (one.frames[0].image != other.frames[0].image).any()
    assert min(frame.visible["target"] for frame in one.frames) < 0.8 * max(frame.visible["target"] for frame in one.frames)
    with pytest.raises(ValueError, match="no kind"):
        clutter.make(1, "beside")


def test_repainted_tables_keep_their_shape_and_the_known_ones_their_bits():
    state = np.zeros(15), np.zeros(24)
    state[0][:6] = 0, -0.3, 0.6, np.pi, 0, np.pi / 2
    plain, painted = (render.render(scene, *state, cameras=("static",)) for scene in (SCENES["D"], looks.repainted(SCENES["D"], 5)))
    assert (plain["static_ids"] == painted["static_ids"]).all() and np.abs(plain["static"].astype(int) - painted["static"]).mean() > 10
    assert looks.look("D") is looks.LOOKS["D"]


def episode(sentence, truth, visible, held=None, **more):
    count = len(truth)
    phrases, never = [parse(sentence)] * count, [False] * count
    return evaluation.Episode([None] * count, phrases, sentence, truth, np.array(visible), held or never, **more)


def test_reasons_are_the_stated_rules():
    truth = np.array([[0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.15, 0.15], [0.1, 0.1, 0.3, 0.3], [np.nan] * 4, [0.1, 0.1, 0.3, 0.3]])
    plain = episode("pick up the red block", truth, [1.0, 1.0, 0.5, 0.0, np.nan])
    assert plain.reasons() == [(), ("small",), ("occluded",), ("occluded", "small"), ()]
    assert plain.counted.tolist() == [True] * 3 + [False, True]
    assert episode("pick up the red block in the bowl", truth[:1], [1.0], twin=True).reasons() == [("twin", "nested")]
    assert episode("lift the block", truth[:1], [1.0]).reasons() == [("twin",)], "there are three"
    moved = episode("put the red block from the bowl into the drawer", truth[[0, 0]], [1.0, 1.0], [False, True])
    assert moved.reasons() == [("nested",), ()], "the drawer is what is looked at then"


def test_every_kind_of_scene_is_drawn_near_and_far(monkeypatch):
    drawn = []
    monkeypatch.setattr(clutter, "make", lambda *given, far: drawn.append((given[1], far)) or clutter.Clip("lift it", "", {}, []))
    evaluation.clutter(240)
    counts = {kind: sum(k == kind for k, _ in drawn) for kind in clutter.KINDS}
    assert counts.pop("plain") == 80 and min(counts.values()) >= 26
    assert {(kind, far) for kind in clutter.KINDS for far in (False, True)} == set(drawn)


def test_a_closed_drawer_is_not_an_occluded_one(test_data):
    frames = evaluation.items(test_data("calvin_sim"), "training", every=8)
    drawers = np.concatenate([e.visible for e in frames.episodes if e.item == "drawer"])
    assert (drawers > 0.6).mean() > 0.9 and drawers.max() <= 1
    blocks = np.concatenate([e.visible[e.counted] for e in frames.episodes if e.item == "blue_block"])
    assert (blocks > 0.6).mean() > 0.6 and (blocks < 0.6).any(), "the hand covers some"


class Right:
    """A detector that knows the answer, or always says the same."""

    name, fingerprint = "right", lambda self: ""

    def __init__(self, frames, box=None):
        self.answers = {image.tobytes(): truth for e in frames.episodes for image, truth in zip(e.images, e.truth, strict=True)}
        self.box = box

    def __call__(self, images, nouns):
        boxes = [self.box or self.answers.get(image.tobytes(), [np.nan]) for image in images]
        return [candidates([] if np.isnan(b).any() else [b], [] if np.isnan(b).any() else [0.9], names[:1] * (not np.isnan(b).any()))
                for b, names in zip(boxes, nouns, strict=True)]  # fmt: skip


def test_a_perfect_detector_is_perfect_and_a_constant_one_is_not(scenes):
    every = np.ones(sum(len(e.images) for e in scenes.episodes), bool)
    perfect = evaluation.measure(Right(scenes), scenes, NONE)
    others = perfect.others()
    assert perfect.rate(every)["value"] == 1 == others["precision"]["value"] and others["centre error"]["value"] < 1e-3
    assert others["share of the thing in the crop, margin 0%"]["value"] > 0.999 and others["precision"]["low"] < 1
    constant = evaluation.measure(Right(scenes, [0.45, 0.45, 0.55, 0.55]), scenes, NONE)
    assert constant.rate(every)["value"] < 0.1, "the floor: a box in the middle"
    change = evaluation.gain(perfect, constant, every)
    assert change["value"] == pytest.approx(1 - constant.rate(every)["value"]) and change["low"] > 0.8


def test_options_put_complex_scenes_right_and_simple_ones_not_wrong(scenes):
    none, everything = (evaluation.measure(Colour(), scenes, options) for options in (NONE, ALL))
    errors = [1 - one.rate(one.complex)["value"] for one in (none, everything)]
    print("\nerror on complex scenes:", errors)
    assert errors[1] <= errors[0] / 2 and errors[0] > 0.3
    assert evaluation.gain(everything, none, ~none.complex)["value"] >= 0
    assert evaluation.gain(everything, none, none.complex)["low"] > 0, "more than noise"


def test_records_hold_gains_and_tables_say_not_run(scenes, tmp_path):
    few = evaluation.Set("few", "clutter", "OpenCV", scenes.episodes[:8])
    records, found = evaluation.compare(Colour(), [few], log=lambda line: None)
    assert len(records) == 2 + len(SINGLE) + len(WITHOUT) and {r["config"]["options"] for r in records} >= {"none", "all", "tiles"}
    for record in records:
        path = run_records.save(record, tmp_path)
        assert json.loads(path.read_text())["metrics"]["all"]["n"] > 20
    text = evaluation.report(records)
    assert "not run" in text and "| 92 | 67 |" in text and "not comparable" in text and "| all but relations |" in text
    assert len({r["data_hash"] for r in records}) == 1 and records[0]["data_hash"]
    assert len(evaluation.save_figures(found["few", "all"], found["few", "none"], tmp_path / "figures", "colour")) == 3


def test_an_interval_of_no_difference_is_no_certainty():
    same = evaluation._clustered(np.zeros(10), np.ones(10, bool), np.array(list("abcdefghij")), -1.0)
    assert same["low"] < -0.1 and same["high"] > 0.1 and same["value"] == 0
    frames = evaluation._clustered(np.array([1.0] * 50 + [0.0] * 50), np.ones(100, bool), np.array(["a"] * 50 + ["b"] * 50))
    assert frames["high"] - frames["low"] == 1, "a hundred frames of two scenes are two scenes"


def test_colour_on_real_simulator_frames(test_data):
    frames = evaluation.items(test_data("calvin_sim"), "validation", every=6)
    one = evaluation.measure(Colour(), frames, ALL)
    record = evaluation._record(Colour(), one, one, one, 0, 0.0)
    half = record["metrics"]["at least half visible"]
    print("\ncolour, items at least half visible:", half)
    assert half["n"] > 400 and half["value"] >= 0.80
    assert record["metrics"]["precision"]["value"] >= 0.85
    blind = evaluation.measure(Right(frames, [0.3, 0.3, 0.5, 0.5]), frames, NONE)
    assert blind.rate(np.ones(len(blind.hit), bool))["value"] < 0.15, "the floor: a box in the middle"


def test_a_gaze_is_a_hit_only_when_it_claims():
    assert not Gaze().valid and Gaze(source="colour").valid
