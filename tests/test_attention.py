"""Attention: recorded, reduced, drawn, measured. Run: pytest tests/test_attention.py"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from repro import attention as A
from repro import attention_figures as figures
from repro.machine import UserError

GRID = (3, 4)  # two static rows above one wrist row


class Policy(torch.nn.Module):
    """Two text tokens, 12 image tokens, one text token; then three tokens are written, as ReconVLA.act does it."""

    image_positions = slice(2, 14)
    config = SimpleNamespace(grid=GRID, height=48, static_rows=32, chunk=1, action_dim=3)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.decoder = Qwen2ForCausalLM(Qwen2Config(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                                    num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa")).eval()

    @torch.inference_mode()
    def act(self, observations, instructions):
        inputs, cache = torch.ones(len(observations), 15, dtype=torch.long), DynamicCache(config=self.decoder.config)
        inputs[:, 5] = 7
        for _ in range(3):
            hidden = self.decoder.model(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state
            inputs = torch.full((len(observations), 1), 3)
        return hidden


class OnePass(Policy):
    """The same model, whose act() computes no attention that hooks could see; it offers its sequence instead."""

    tokens = SimpleNamespace(encode=lambda actions: np.asarray(actions))

    def act(self, observations, instructions):
        return np.zeros((len(observations), 1, 3))

    def sequence(self, observations, instructions, ids=None):
        prompt = torch.ones(len(observations), 15, dtype=torch.long)
        prompt[:, 5] = 7
        ids = torch.full((len(observations), 3), 3) if ids is None else torch.as_tensor(ids)
        return self.decoder.get_input_embeddings()(torch.cat([prompt, ids[:, :-1]], dim=1))


def hooks(model):
    return sum(len(m._forward_hooks) for m in model.modules())


def test_record_sees_every_query_and_leaves_no_trace():
    model = Policy()
    plain = model.act([{}, {}], ["", ""])
    with A.record(model) as recorded:
        assert model.decoder.config._attn_implementation == "eager" and hooks(model) == 2
        eager = model.act([{}, {}], ["", ""])
    maps = recorded.maps()
    assert maps.shape == (2, 2, 4, 3, 12) and maps.dtype == np.float32  # batch, layers, heads, queries, image tokens
    assert (maps > 0).all() and (maps.sum(-1) < 1).all(), "weights of the softmax; the rest goes to other tokens"
    assert torch.allclose(plain, eager, atol=1e-5), "recording changes nothing the model does"
    assert model.decoder.config._attn_implementation == "sdpa" and hooks(model) == 0
    model.act([{}], [""])
    assert recorded.maps().shape[0] == 2, "nothing is recorded after the block"


def test_record_cleans_up_after_an_error():
    model = Policy()
    with pytest.raises(KeyError), A.record(model):
        raise KeyError
    assert model.decoder.config._attn_implementation == "sdpa" and hooks(model) == 0


def test_recorded_weights_are_those_of_transformers():
    model = Policy()
    with A.record(model) as recorded:
        model.act([{}], [""])
    model.decoder.set_attn_implementation("eager")
    ids = torch.ones(1, 15, dtype=torch.long)
    ids[:, 5] = 7
    truth = model.decoder(torch.cat([ids, torch.full((1, 2), 3)], 1), output_attentions=True).attentions
    for layer in range(2):
        assert np.allclose(recorded.maps()[0, layer], truth[layer][0, :, -3:, 2:14].detach().numpy(), atol=1e-5)


def test_record_says_what_is_missing():
    with pytest.raises(UserError, match="no attention was recorded"), A.record(Policy()) as recorded:
        recorded.maps()
    model = Policy()
    with pytest.raises(UserError, match="one batch size"), A.record(model) as recorded:
        model.act([{}], [""])
        model.act([{}, {}], ["", ""])
        recorded.maps()


def test_one_pass_gives_the_maps_of_the_decode_loop():
    torch.manual_seed(0)
    loop, once = Policy(), OnePass().train()
    stepwise = A.attention_of(loop, [{}, {}], ["", ""], rollout=True)
    whole = A.attention_of(once, [{}, {}], ["", ""], rollout=True)
    assert np.allclose(stepwise.maps(), whole.maps(), atol=1e-6) and whole.maps().shape == (2, 2, 4, 3, 12)
    assert np.allclose(stepwise.rollout(), whole.rollout(), atol=1e-6)
    assert once.training and hooks(once) == 0 and once.decoder.config._attn_implementation == "sdpa"
    given = A.attention_of(once, [{}], [""], actions=np.array([[[9, 9, 3]]]))
    assert np.allclose(given.maps()[0, :, :, 0], whole.maps()[0, :, :, 0], atol=1e-6), "the first query has seen no action"
    assert not np.allclose(given.maps()[0, :, :, 1], whole.maps()[0, :, :, 1], atol=1e-6), "the second has seen the given one"


def test_filled_up_rows_do_not_change_the_maps():
    class Filled(OnePass):
        def sequence(self, observations, instructions, ids=None):
            self.image_positions = slice(4, 16)  # of this batch
            embeddings = super().sequence(observations, instructions, ids)
            embeddings = torch.cat([torch.ones_like(embeddings[:, :2]), embeddings], dim=1)
            return embeddings, (torch.arange(19) >= 2).expand(len(observations), -1)

    plain, filled = (A.attention_of(model, [{}, {}], ["", ""], rollout=True) for model in (OnePass(), Filled()))
    assert np.allclose(plain.maps(), filled.maps(), atol=1e-6) and np.allclose(plain.rollout(), filled.rollout(), atol=1e-6)


def test_rollout_is_the_product_of_the_layers():
    model = OnePass()
    found = A.attention_of(model, [{}], [""], rollout=True).rollout()
    model.decoder.set_attn_implementation("eager")
    with torch.inference_mode():
        layers = model.decoder.model(inputs_embeds=model.sequence([{}], [""]), output_attentions=True).attentions
    product = torch.eye(17)
    for weights in layers:
        product = (weights[0].mean(0) + torch.eye(17)) / 2 @ product
    assert np.allclose(product.sum(-1).numpy(), 1, atol=1e-5)
    tokens = product[-3:, 2:14].mean(0).numpy()
    assert np.allclose(found, tokens / tokens.sum(), atol=1e-5)
    with pytest.raises(UserError, match="no rollout"):
        A.attention_of(model, [{}], [""]).rollout()


def test_a_decode_loop_that_cannot_be_seen_is_an_error():
    class Fast(Policy):
        def act(self, observations, instructions):  # the prompt through the modules, the rest by hand
            return self.decoder.model(input_ids=torch.ones(len(observations), 15, dtype=torch.long))

    with pytest.raises(UserError, match="some action tokens only"):
        A.attention_of(Fast(), [{}], [""])
    with pytest.raises(UserError, match="needs a model with sequence"):
        A.attention_of(Policy(), [{}], [""], actions=np.zeros((1, 1, 3)))


def test_what_is_written_after_the_actions_is_left_out():
    class Ending(Policy):
        config = SimpleNamespace(grid=GRID, height=48, static_rows=32, chunk=1, action_dim=2)

    shorter, whole = A.attention_of(Ending(), [{}], [""], rollout=True), A.attention_of(Policy(), [{}], [""])
    assert np.allclose(shorter.maps(), whole.maps()[:, :, :, :2]) and len(shorter.rows) == 2


def test_token_rows_of_a_canvas_whose_pixel_rows_were_rounded():
    """The published canvas: 14 of 27 token rows are 173 of 334 px, and 27 * 173 / 334 is 13.98."""
    class Large(OnePass):
        image_positions = slice(0, 54)
        config = SimpleNamespace(grid=(27, 2), height=334, static_rows=173, chunk=1, action_dim=1)

        def sequence(self, observations, instructions, ids=None):
            return torch.ones(len(observations), 55, 16)

    assert A.static_maps(Large(), [{}], [""]).shape == (1, 14, 2)


def test_static_maps_of_every_reduction():
    model = OnePass()
    last, rolled = A.static_maps(model, [{}], [""]), A.static_maps(model, [{}], [""], layers="rollout")
    assert last.shape == rolled.shape == (1, 2, 4) and not np.allclose(last, rolled)
    recorded = A.attention_of(model, [{}], [""]).maps()
    assert np.allclose(A.static_maps(model, [{}], [""], layers=0, heads=[1, 2])[0].ravel(), A.reduce(recorded, 0, [1, 2])[0, :8])
    assert "rollout" in A.caption("rollout")
    for wrong in ({"layers": 99}, {"layers": "first"}, {"heads": 77}, {"heads": "rollout"}, {"layers": "rollout", "heads": 0}):
        with pytest.raises(UserError, match="layers|heads"):
            A.static_maps(model, [{}], [""], **wrong)


def test_reduce_by_hand():
    attention = np.zeros((2, 2, 2, 3))  # layers, heads, queries, image tokens
    attention[1, 0, :, 0] = 0.2  # last layer, head 0: both queries look at token 0
    attention[1, 1, 0, 2] = 0.4  # head 1: one query looks at token 2
    attention[0, :, :, 1] = 0.1
    assert np.allclose(A.reduce(attention), [0.5, 0, 0.5])
    assert np.allclose(A.reduce(attention, heads=0), [1, 0, 0])
    assert np.allclose(A.reduce(attention, layers=0), [0, 1, 0])
    assert np.allclose(A.reduce(attention, layers="mean"), np.array([0.1, 0.1, 0.1]) / 0.3)
    assert np.allclose(A.reduce(attention[None])[0], A.reduce(attention))
    for wrong, said in (({"layers": 99}, "2 layers: -2 .. 1"), ({"layers": "first"}, "first"), ({"heads": 77}, "2 heads: -2 .. 1"),
                        ({"heads": "rollout"}, "no such heads"), ({"layers": "rollout"}, "static_maps"), ({"layers": []}, "no such layers"),
                        ({"heads": [0, -3]}, "no such heads"), ({"heads": 0.5}, "no such heads"), ({"layers": [[0, 1]]}, "no such layers")):
        with pytest.raises(UserError, match=re.escape(said)):
            A.reduce(attention, **wrong)
    assert "last layer" in A.caption() and "layer 0" in A.caption(0) and "head 1" in A.caption(heads=1)


def test_split_maps_the_canvas_back_onto_both_pictures():
    static, wrist = A.split(np.arange(12.0), GRID, 2)
    assert static.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]] and wrist.tolist() == [[8, 9, 10, 11]]
    with pytest.raises(UserError, match="token grid"):
        A.split(np.arange(11.0), GRID, 2)


def test_mass_by_hand():
    static = np.array([[0.1, 0.2, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0]])  # the wrist part took the other 0.6
    assert A.mass_in(static, [0, 0, 0.5, 0.5]) == pytest.approx(0.75)
    assert A.mass_in(static, [0, 0, 0.125, 1]) == pytest.approx(0.25)  # half of the first column
    assert A.mass_in(static, [0, 0, 1, 1]) == pytest.approx(1)


BOX = [0.25, 0.5, 0.5, 0.75]  # a sixteenth of the picture


def drawn(box, cells=40):
    """A map with all its mass in the box, evenly."""
    static = A.covered(cells, cells, box)
    return static / static.sum()


def test_all_mass_in_the_box_scores_one():
    found = A.measure(drawn(BOX), BOX, tolerance=0, size=40)
    assert found["mass"] == pytest.approx(1) and found["pointing"] == 1 and found["iou"] == pytest.approx(1)
    elsewhere = A.measure(drawn(BOX), [0.6, 0.1, 0.85, 0.35], tolerance=0, size=40)
    assert (elsewhere["mass"], elsewhere["pointing"], elsewhere["iou"]) == (0, 0, 0)
    half = A.measure(drawn(BOX), [0.375, 0.5, 0.625, 0.75], tolerance=0, size=40)
    assert half["mass"] == pytest.approx(0.5) and half["pointing"] == pytest.approx(0.5) and half["iou"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("box", [BOX, [0.1, 0.2, 0.35, 0.7], [0, 0, 1, 1], [0.501, 0.502, 0.503, 0.504]])
@pytest.mark.parametrize("shape", [(6, 6), (14, 27)])
def test_a_uniform_map_scores_its_floor(shape, box):
    found = A.measure(np.full(shape, 0.3 / (shape[0] * shape[1])), box)
    assert found["mass"] == pytest.approx(found["mass_uniform"]) and found["iou"] == pytest.approx(found["iou_uniform"])
    assert found["pointing"] == found["pointing_uniform"] and found["entropy"] == pytest.approx(1)
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert found["mass_uniform"] == pytest.approx(area) and found["iou_uniform"] == pytest.approx(area / (2 - area))


def test_an_empty_box_is_an_error():
    for wrong in ([0.5, 0.5, 0.5, 0.9], [1.1, 0, 1.2, 1]):
        with pytest.raises(UserError, match="empty"):
            A.measure(np.ones((4, 4)), wrong)


def test_pointing_game_by_hand():
    static = np.zeros((10, 10))
    static[2, 7] = 1  # centre at x = 0.75, y = 0.25
    assert A.peaks(static).tolist() == [[0.75, 0.25]]
    assert A.pointing(static, [0.7, 0.2, 0.8, 0.3], 0) == 1 and A.pointing(static, [0.5, 0.2, 0.7, 0.3], 0) == 0
    assert A.pointing(static, [0.5, 0.2, 0.7, 0.3], 0.05) == 1 and A.pointing(static, [0.5, 0.2, 0.7, 0.3], 0.049) == 0
    assert A.pointing(static, [0.5, 0.3, 0.7, 0.5], 0.05) == 0, "distance to a corner is the diagonal one"
    static[9, 0] = 1
    assert A.pointing(static, [0.7, 0.2, 0.8, 0.3], 0) == 0.5, "maxima that tie share"
    rng = np.random.default_rng(0)
    for _ in range(20):
        wild = rng.random((5, 7))
        y, x = np.unravel_index(A.smooth(wild, 350).argmax(), (350, 350))
        assert np.allclose(A.peaks(wild)[0], ((x + 0.5) / 350, (y + 0.5) / 350), atol=1 / 7), "where the interpolated map is highest"


def test_smooth_is_the_interpolation_of_the_pictures():
    import cv2
    static = np.random.default_rng(0).random((6, 9)).astype(np.float32)
    assert np.allclose(A.smooth(static, 200), cv2.resize(static, (200, 200), interpolation=cv2.INTER_LINEAR), atol=1e-4)


def test_equal_area_iou_by_hand():
    picture = np.zeros((10, 10))
    picture[0, :4] = [4, 3, 2, 1]
    assert A.equal_area_iou(picture, [0, 0, 0.4, 0.1]) == pytest.approx(1)
    assert A.equal_area_iou(picture, [0.2, 0, 0.6, 0.1]) == pytest.approx(2 / 6)  # two of four shared
    assert A.equal_area_iou(picture, [0, 0, 0.1, 0.1]) == pytest.approx(1), "the brightest pixel for a box of one pixel"
    picture[0, :4] = 1
    assert A.equal_area_iou(picture, [0, 0, 0.2, 0.1]) == pytest.approx(1 / 3), "four tie for two places: half of each"


def test_entropy_by_hand():
    one = np.zeros((4, 4))
    one[1, 1] = 0.2
    four = np.zeros((4, 4))
    four[0] = 0.1
    assert A.entropy(one) == 0 and A.entropy(four) == pytest.approx(0.5) and A.entropy(np.ones((4, 4))) == pytest.approx(1)


def looking(seed=0, episodes=8, frames=3):
    """Boxes anywhere, and maps with all attention on them."""
    corners = np.random.default_rng(seed).uniform(0, 0.7, (episodes * frames, 2))
    boxes = np.concatenate([corners, corners + 0.2], 1)
    return np.stack([drawn(box, 10) for box in boxes]), boxes, np.repeat(np.arange(episodes), frames)


def measured(*args, seed=0):
    return A.averages(A.frame_numbers(*args, seed=seed), seed)


GAIN = "attention mass, gaze box minus another episode's box"
ELSEWHERE = "the same task's box elsewhere"


def test_another_episodes_box_tells_looking_from_staring():
    looks, boxes, episodes = looking()
    stares = np.broadcast_to(looks[0], looks.shape)
    good, bad = measured(looks, boxes, episodes), measured(stares, boxes, episodes)
    assert good[GAIN]["low"] > 0.2 and bad[GAIN]["low"] < 0.1
    assert good["attention mass in the gaze box"]["n"] == 8, "episodes are counted, not frames"
    assert all(m["low"] <= m["value"] <= m["high"] for m in good.values())
    assert measured(looks, boxes, episodes) == good  # seeded
    assert measured(looks, boxes, episodes, seed=1)[GAIN]["value"] != good[GAIN]["value"], "another seed, other boxes"
    own, itself = good["attention mass in the gaze box"], good["attention mass, the box itself on this grid"]
    assert own["value"] == pytest.approx(itself["value"]), "these maps are the boxes drawn on the grid"
    alone = measured(looks[:3], boxes[:3], episodes[:3])
    assert GAIN not in alone, "one episode has no other box"


def test_the_same_tasks_box_elsewhere_unmasks_a_map_that_knows_where_things_usually_are():
    usual = {"drawer": ([0.1, 0.6, 0.4, 0.9], [0.5, 0.6, 0.8, 0.9]), "block": ([0.1, 0.1, 0.3, 0.3], [0.6, 0.2, 0.8, 0.4])}
    tasks = [task for task in usual for _ in range(4)]
    boxes, episodes = np.array([usual[task][i % 2] for task in usual for i in range(4)]), np.arange(8)
    known = {task: (drawn(one) + drawn(other)) / 2 for task, (one, other) in usual.items()}
    found = measured(np.stack([known[task] for task in tasks]), boxes, episodes, tasks)
    seen = measured(np.stack([drawn(box) for box in boxes]), boxes, episodes, tasks)
    assert found[GAIN]["value"] > 0.2, "another task's box is somewhere else"
    assert found[f"attention mass, gaze box minus {ELSEWHERE}"]["value"] == pytest.approx(0, abs=0.02)
    for name in ("attention mass", "pointing game (5 of 200 px)", "equal-area IoU"):
        assert seen[f"{name}, gaze box minus {ELSEWHERE}"]["value"] > 0.3, "one that sees where this one is"


def test_a_box_that_is_always_there_is_no_control_and_neither_is_a_task_seen_once():
    button, spots = [0.2, 0.2, 0.4, 0.4], ([0.1, 0.6, 0.3, 0.8], [0.6, 0.6, 0.8, 0.8])
    boxes = np.array([button, [0.22, 0.2, 0.42, 0.4], button, *spots, spots[0]])  # the button's moves by a pixel or two
    columns = A.frame_numbers(np.stack([drawn(box) for box in boxes]), boxes, np.arange(6), ["button"] * 3 + ["block"] * 2 + ["once"])
    column = columns[f"attention mass in {ELSEWHERE}"]
    assert np.isnan(column).tolist() == [True] * 3 + [False] * 2 + [True]
    assert A.averages(columns)[f"attention mass in {ELSEWHERE}"]["n"] == 2, "and n says so"
    assert not np.isnan(columns["attention mass in another episode's box"]).any()


def test_controls_are_frames_of_other_episodes():
    episodes, tasks = np.repeat(np.arange(4), 5), np.repeat(["a", "a", "b", "b"], 5)
    rng = np.random.default_rng(0)
    assert all((episodes[others] != e).all() and len(others) == 8 for e, others in zip(episodes, A.other_frames(episodes, None, 8, rng),
                                                                                      strict=True))
    for i, others in enumerate(A.other_frames(episodes, tasks, 8, rng)):
        assert (tasks[others] == tasks[i]).all() and (episodes[others] != episodes[i]).all()


def test_averages_are_means_of_episode_means():
    columns = {"episode": np.array([0, 0, 0, 1, 2]), "x": np.array([0.0, 0.3, 0.6, 0.9, np.nan])}
    assert A.averages(columns)["x"]["value"] == pytest.approx(0.6) and A.averages(columns)["x"]["n"] == 2
    columns["episode"] = np.arange(5)  # those of a task are alike
    assert A.averages(columns, tasks=list("aaabc"))["x"]["value"] == pytest.approx((0.3 + 0.9) / 2)
    assert A.averages(columns, tasks=list("aaabc"))["x"]["n"] == 2


def test_differences_are_paired():
    looks, boxes, episodes = looking(episodes=12)
    blurred = 0.97 * looks + 0.03 / 100  # a little worse on every single frame
    a, b = A.frame_numbers(looks, boxes, episodes), A.frame_numbers(blurred, boxes, episodes)
    name = "attention mass in the gaze box"
    found, apart = A.differences(a, b)[f"{name}, difference"], (A.averages(a)[name], A.averages(b)[name])
    assert found["value"] == pytest.approx(apart[0]["value"] - apart[1]["value"]) and found["n"] == 12
    assert found["low"] > 0 and apart[1]["high"] > apart[0]["low"], "pairing sees what two intervals that overlap do not"
    assert not any("uniform (" in key or "itself" in key for key in A.differences(a, b))
    none = A.differences(a, a)[f"{name}, difference"]
    assert none["value"] == 0 and none["low"] < 0 < none["high"], "equal on twelve episodes is not certainty"
    with pytest.raises(UserError, match="same frames"):
        A.differences(a, {**b, "episode": episodes[::-1]})


def test_jumps_counted_by_hand():
    def at(*cells):
        maps = np.zeros((len(cells), 10, 10))
        for static, (x, y) in zip(maps, cells, strict=True):
            static[y, x] = 1
        return maps
    maps = at((0, 0), (0, 0), (5, 0), (5, 2), (5, 5), (3, 3), (3, 3))  # episode 0: 0, 0.5, 0.2, 0.3; episode 1: none
    boxes = np.tile([0.1, 0.1, 0.3, 0.3], (7, 1))
    boxes[6] += 0.4
    episodes, steps = np.array([0] * 5 + [1] * 2), np.array([0, 4, 8, 12, 16, 0, 4])
    found = A.averages(A.frame_jumps(maps, boxes, episodes, steps))
    label = "(over 0.2 of the width, frames 4 apart)"
    assert found[f"jump rate of the map {label}"]["value"] == pytest.approx((2 / 4 + 0) / 2), "0.2 is not over 0.2"
    assert found[f"jump rate of the gaze box {label}"]["value"] == pytest.approx((0 + 1) / 2)
    # of episode 0's ten pairs all but (0, 1) and (2, 3) lie further apart
    assert found[f"jump rate of the map in random order {label}"]["value"] == pytest.approx((8 / 10 + 0) / 2)
    assert found[f"jump rate, map minus random order {label}"]["value"] == pytest.approx((0.5 - 0.8) / 2)
    order = np.array([3, 0, 6, 2, 5, 1, 4])
    assert A.averages(A.frame_jumps(maps[order], boxes[order], episodes[order], steps[order])) == found, "sorted by step, not by row"
    still = A.frame_jumps(np.repeat(maps[:1], 7, 0), boxes, episodes, steps)
    fewer = A.differences(still, A.frame_jumps(maps, boxes, episodes, steps))
    assert fewer[f"jump rate of the map {label}, difference"]["value"] == pytest.approx(-0.25)
    maps[3] = np.nan  # a mean over the others would not say so
    for numbers in (lambda: A.frame_jumps(maps, boxes, episodes, steps), lambda: A.frame_numbers(maps, boxes, episodes)):
        with pytest.raises(UserError, match="100 of 700 are not"):
            numbers()
    maps[3] = maps[2]
    with pytest.raises(UserError, match="evenly spaced"):
        A.frame_jumps(maps, boxes, episodes, np.array([0, 4, 8, 12, 17, 0, 4]))


def test_metrics_fit_a_run_record():
    from repro import run_records
    looks, boxes, episodes = looking()
    metrics = {**measured(looks, boxes, episodes, ["t"] * 24),
               **A.averages(A.frame_jumps(looks, boxes, episodes, np.tile([0, 1, 2], 8)))}
    record = run_records.record("reconvla", "gaze", benchmark="attention", data="d", data_hash="0", config={}, seed=0, metrics=metrics,
                                minutes=0, simulator="none", renderer="none")
    assert run_records.check(record, "here") is record and len(metrics) == 26


# ---- pictures ------------------------------------------------------------------------------------------------------------------

def shades(picture):
    return np.asarray(picture).astype(int).sum(-1)


def test_overlay_is_darkest_where_attention_is():
    image = np.full((40, 60, 3), 120, np.uint8)
    static = np.zeros((4, 6))
    static[1, 4] = 1
    picture = shades(figures.overlay(image, static))
    y, x = np.unravel_index(picture.argmin(), picture.shape)
    assert picture.shape == (40, 60) and 10 <= y < 20 and 40 <= x < 50
    assert shades(figures.overlay(image, static, top=96)).min() > picture.min(), "a shared scale makes a weaker map lighter"
    assert np.array_equal(figures.overlay(image, static), figures.overlay(image, 0.1 * static)), "relative to uniform"
    box = figures.overlay(image, static, [0.1, 0.1, 0.5, 0.5])
    assert (box[4, 6:29] == 0).all() and (box[3, 6:29] == 255).all() and (image == 120).all()


def test_the_colour_scale_reads_in_grey():
    grey = figures.MAP(np.linspace(0, 1, 50))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(grey) < 0).all() and grey[0] == pytest.approx(1) and grey[-1] < 0.2
    assert np.diff(grey).max() < -0.2 / 50 and np.diff(grey).min() > -2 / 50, "even steps"


def words(figure):
    figure.canvas.draw()
    texts = [text for axis in figure.axes for text in (axis.get_title(), axis.get_xlabel(), axis.get_ylabel())]
    texts += [text.get_text() for legend in figure.legends for text in legend.texts]
    return "\n".join([*texts, figure.get_suptitle(), figure.get_supxlabel()])


def test_compare_shares_one_scale_and_names_the_numbers(tmp_path):
    image = np.full((50, 50, 3), 90, np.uint8)
    flat, peak = np.full((5, 5), 0.02), np.zeros((5, 5))
    peak[2, 2] = 0.5
    box = np.array([0.4, 0.4, 0.6, 0.6])
    row = ("lift the red block", image, {"Baseline": flat, "Whole": flat, "Gaze": peak}, box)
    figure = figures.compare([row])
    assert [axis.get_title() for axis in figure.axes[:4]] == ["frame and gaze box", "Baseline", "Whole", "Gaze"]
    below = [axis.get_xlabel() for axis in figure.axes]
    assert below[0] == "lift the red block" and "0.040, uniform 0.040" in below[1] and "in the box 1.000" in below[3]
    assert all("n = 1" in text for text in below[1:4]) and "last layer, mean over heads" in words(figure)
    shown = [shades(axis.images[0].get_array()) for axis in figure.axes[1:4]]
    assert (shown[0] == shown[1]).all() and shown[2][200, 200] < shown[0][200, 200] < shown[2][20, 20]
    assert figure.axes[-1].get_ylabel() == "attention per token / uniform (1 = uniform)"
    figure.savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000
    looks, boxes, episodes = looking()
    metrics = measured(looks, boxes, episodes, ["t"] * 24)
    figure = figures.compare([row, row], A.caption("rollout"), {name: metrics for name in row[2]})
    below = figure.axes[7].get_xlabel()
    m = metrics["attention mass in the gaze box"]
    assert f"mass in the box {m['value']:.3f} [{m['low']:.3f}, {m['high']:.3f}], n = 8" in below and "mean over\nepisodes" in words(figure)
    by_task = A.averages(A.frame_numbers(looks, boxes, episodes, [f"t{e % 3}" for e in episodes]), 0, [f"t{e % 3}" for e in episodes])
    assert by_task["attention mass in the gaze box"]["n"] == 3, "tasks are counted where they are told"
    assert "another episode's box" in below and "same task's box" in below and "pointing game" in below and "rollout" in words(figure)
    assert "another episode's box" not in figure.axes[3].get_xlabel(), "once, below the last row"


def test_gallery_is_a_strip_of_the_episode():
    looks, boxes, _ = looking(episodes=1, frames=10)
    images = [np.full((50, 50, 3), 90, np.uint8)] * 10
    figure = figures.gallery(images, looks, boxes, 4 * np.arange(10), "open the drawer", every=3)
    panels = [axis.get_xlabel() for axis in figure.axes if axis.images]
    assert [text.split("\n")[0] for text in panels] == ["step 0", "step 12", "step 24", "step 36"]
    assert f"in the box {A.mass_in(looks[3], boxes[3]):.3f}" in panels[1] and "x uniform" in panels[1]
    said = words(figure)
    assert "open the drawer" in said and "4 of 10 measured frames of one episode, steps 0 to 36" in said.replace("\n", " ")


def test_curve_shows_every_model_and_the_uniform_level():
    looks, boxes, _ = looking(episodes=1, frames=10)
    figure = figures.curve({"baseline": np.full_like(looks, 0.01), "gaze": looks}, boxes, np.arange(10), "open the drawer")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["uniform attention (box area)", "baseline", "gaze"]
    assert np.allclose(axis.lines[0].get_ydata(), 0.04) and axis.lines[1].get_ydata()[3] == pytest.approx(A.mass_in(looks[3], boxes[3]))
    assert len({line.get_linestyle() for line in axis.lines}) == 2, "told apart without colour"
    assert "n = 10 frames" in axis.get_xlabel() and axis.get_ylabel() == "attention mass in the gaze box"


def test_dots_show_controls_beside_each_number():
    looks, boxes, episodes = looking()
    metrics = measured(looks, boxes, episodes, ["t"] * 24)
    figure = figures.dots({"baseline": metrics, "gaze": metrics})
    assert [axis.get_title() for axis in figure.axes] == ["attention mass", "pointing game (5 of 200 px)", "equal-area IoU"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["baseline\nn = 8", "gaze\nn = 8"]
    said = words(figure)
    kinds = ("the gaze box", "another episode's box", "the same task's box elsewhere", "uniform attention")
    assert all(part in said for part in (*kinds, "n counts episodes"))
    assert figure.axes[0].get_ylabel() == "mean over episodes, 95 % interval"


def test_static_maps_of_the_tiny_reconvla():
    from repro.models.reconvla import ReconVLA, ReconVLAConfig
    torch.manual_seed(0)
    config = ReconVLAConfig(grid=(3, 2), height=48, width=32, static_tokens=2, channels=8, freeze_vision=False,
                            cache_features=False, hidden=32, layers=2, heads=2, chunk=2, recon=False)
    sentences = ["lift the block", "open the drawer, slowly"]  # of unequal length: the shorter one is filled up
    model = ReconVLA.build(config, {"observation.state": {"mean": [0.0] * 15, "std": [1.0] * 15}}, instructions=sentences)
    observation = {"observation.images.static": np.full((50, 50, 3), 9, np.uint8),
                   "observation.images.wrist": np.zeros((20, 20, 3), np.uint8), "observation.state": np.zeros(15, np.float32)}
    plain, recorded = model.act([observation] * 2, sentences), A.attention_of(model, [observation] * 2, sentences, rollout=True)
    assert recorded.maps().shape == (2, 2, 2, 14, 6)  # batch, layers, heads, 2 actions of 7 tokens, 3 x 2 image tokens
    for i, sentence in enumerate(sentences):
        alone = A.attention_of(model, [observation], [sentence], rollout=True)
        assert np.allclose(alone.maps()[0], recorded.maps()[i], atol=1e-5), "maps do not depend on what else is in the batch"
        assert np.allclose(alone.rollout()[0], recorded.rollout()[i], atol=1e-5)
    for layers in (-1, "rollout"):
        static = A.static_maps(model, [observation] * 2, sentences, layers)
        assert static.shape == (2, 2, 2) and (0 < static).all() and (static.sum((1, 2)) < 1).all()
    assert np.array_equal(plain, model.act([observation] * 2, sentences)) and hooks(model) == 0
