"""Attention: recorded, reduced, drawn, measured. Run: pytest tests/test_attention.py"""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from repro import attention as A
from repro.machine import UserError

GRID = (3, 4)  # two static rows above one wrist row


class Policy(torch.nn.Module):
    """Two text tokens, 12 image tokens, one text token; then three tokens are written, as ReconVLA.act does it."""

    image_positions = slice(2, 14)

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
    assert A.image_share(attention) == pytest.approx(0.2)
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


def test_uniform_attention_has_the_mass_of_the_box_area():
    found = A.measure(np.full((6, 6), 1 / 36), [0.1, 0.2, 0.35, 0.7])
    assert found["mass"] == pytest.approx(found["uniform"]) == pytest.approx(0.125)
    peak = np.zeros((10, 10))
    peak[4:6, 4:6] = 1
    hit, miss = A.measure(peak, [0.35, 0.35, 0.65, 0.65]), A.measure(peak, [0, 0, 0.3, 0.3])
    assert hit["mass"] == pytest.approx(1) and hit["iou"] > 0.6 and miss["mass"] == 0 and miss["iou"] == 0
    assert hit["iou_uniform"] == pytest.approx(0.009 / (0.1 + 0.09 - 0.009))
    with pytest.raises(UserError, match="empty"):
        A.measure(peak, [0.5, 0.5, 0.5, 0.9])


def test_shuffled_box_control_tells_looking_from_staring():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.7, (24, 2))
    boxes = np.concatenate([corners, corners + 0.2], 1)
    episodes = np.repeat(np.arange(8), 3)
    looks = np.full((24, 10, 10), 0.01)
    for static, (x, y) in zip(looks, corners, strict=True):
        static[int(10 * y + 1), int(10 * x + 1)] += 1
    stares = np.broadcast_to(looks[0], looks.shape)
    gain = "attention mass, gaze box minus another episode's box"
    good, bad = A.measure_all(looks, boxes, episodes), A.measure_all(stares, boxes, episodes)
    assert good[gain]["low"] > 0.2 and bad[gain]["low"] < 0.1
    assert good["attention mass in the gaze box"]["n"] == 8, "episodes are counted, not frames"
    assert all(m["low"] <= m["value"] <= m["high"] for m in good.values())
    assert A.measure_all(looks, boxes, episodes) == good  # seeded
    alone = A.measure_all(looks[:3], boxes[:3], episodes[:3])
    assert gain not in alone, "one episode has no other box"


def test_overlay_is_brightest_where_attention_is():
    image = np.full((40, 60, 3), 120, np.uint8)
    static = np.zeros((4, 6))
    static[1, 4] = 1
    drawn = A.overlay(image, static).astype(int).sum(-1)
    y, x = np.unravel_index(drawn.argmax(), drawn.shape)
    assert drawn.shape == (40, 60) and 10 <= y < 20 and 40 <= x < 50
    dim = A.overlay(image, static, top=4.0).astype(int).sum(-1)
    assert dim.max() < drawn.max(), "a shared scale makes a weaker map darker"
    box = A.overlay(image, static, [0.1, 0.1, 0.5, 0.5])
    assert (box[4, 6:29] == 255).all() and (image == 120).all()


def test_compare_shares_one_scale_and_names_the_numbers(tmp_path):
    image = np.full((50, 50, 3), 90, np.uint8)
    flat, peak = np.full((5, 5), 0.02), np.zeros((5, 5))
    peak[2, 2] = 0.5
    box = np.array([0.4, 0.4, 0.6, 0.6])
    fig = A.compare([("lift the red block", image, {"Baseline": flat, "whole": flat, "gaze": peak}, box)])
    titles = [ax.get_title() for ax in fig.axes]
    assert "0.040 (uniform 0.040)" in titles[1] and "in the box 1.000" in titles[3] and titles[0] == "lift the red block"
    shown = [np.asarray(ax.images[0].get_array()).astype(int).sum(-1) for ax in fig.axes[1:4]]
    assert (shown[0] == shown[1]).all() and shown[2].max() > shown[0][10:20, 10:20].max()
    assert fig.axes[-1].get_ylabel().endswith("(1 = uniform)")
    fig.savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 5000


def test_static_maps_of_the_tiny_reconvla():
    from repro.models.reconvla import ReconVLA, ReconVLAConfig
    torch.manual_seed(0)
    config = ReconVLAConfig(words=("lift",), height=48, width=32, static_rows=32, keypoints=0, hidden=32, layers=2, heads=2, chunk=2,
                            recon=False)
    model = ReconVLA(config, {"observation.state": {"mean": [0.0] * 15, "std": [1.0] * 15}})
    observation = {"observation.images.static": np.full((50, 50, 3), 9, np.uint8),
                   "observation.images.wrist": np.zeros((20, 20, 3), np.uint8), "observation.state": np.zeros(15, np.float32)}
    with A.record(model) as recorded:
        plain = model.act([observation] * 2, ["lift"] * 2)
    assert recorded.maps().shape == (2, 2, 2, 14, 6)  # batch, layers, heads, 2 actions of 7 tokens, 3 x 2 image tokens
    static = A.static_maps(model, [observation] * 2, ["lift"] * 2)
    assert static.shape == (2, 2, 2) and (static.sum((1, 2)) < 1).all()
    assert np.array_equal(plain, model.act([observation] * 2, ["lift"] * 2)) and hooks(model) == 0
