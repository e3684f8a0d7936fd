"""Action tokens, denoiser, canvas and the tiny ReconVLA. Run: pytest tests/test_models.py"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from repro.machine import UserError
from repro.models.action_tokens import ActionTokens, normalise_state
from repro.models.denoiser import Denoiser, cosine_alphas, grid_positions
from repro.models.reconvla import PRESETS, ReconVLA, ReconVLAConfig
from repro.models.towers import Keypoints, compose
from repro.models.words import Words, vocabulary

INSTRUCTIONS = ["lift the red block", "lift the blue block", "open the drawer"]
STATS = {"observation.state": {"mean": [0.1] * 15, "std": [0.5] * 15}}
SMALL = ReconVLAConfig(words=vocabulary(INSTRUCTIONS), height=96, width=48, static_rows=48, channels=8, keypoints=4, asked_keypoints=2,
                       hidden=32, layers=2, heads=2, intermediate=48, denoiser_width=32, denoiser_depth=1,
                       denoiser_heads=2, draws=2)  # fmt: skip


def model(config=SMALL, seed=0, **changes):
    torch.manual_seed(seed)
    return ReconVLA(replace(config, **changes), STATS)


def observation(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation.images.static": rng.integers(0, 256, (200, 200, 3), np.uint8),
        "observation.images.wrist": rng.integers(0, 256, (84, 84, 3), np.uint8),
        "observation.state": rng.normal(0.1, 0.5, 15).astype(np.float32),
        "gaze.box": np.array([0.2, 0.3, 0.4, 0.5], np.float32),
    }


def batch(net, n=3):
    observations = [observation(i) for i in range(n)]
    prepared = [net.prepare(one) for one in observations]
    out = {key: np.stack([one[key] for one in prepared]) for key in prepared[0]}
    out["state"] = np.stack([one["observation.state"] for one in observations])
    out["action"] = np.random.default_rng(9).uniform(-1, 1, (n, net.config.chunk, net.config.action_dim)).astype(np.float32)
    return out | {"instruction": [INSTRUCTIONS[i % 3] for i in range(n)], "gaze.valid": np.ones(n, bool)}


# ---- action tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary_size", "shape"), [(151643, (5, 7)), (400, (2, 10, 7)), (32000, (3,))])
def test_action_tokens_fill_the_last_256_ids_and_come_back_as_bin_centres(vocabulary_size, shape):
    tokens, values = ActionTokens(vocabulary_size), np.random.default_rng(0).uniform(-1, 1, shape)
    ids = tokens.encode(values)
    assert ids.shape == shape and ids.min() >= vocabulary_size - 256 and ids.max() <= vocabulary_size - 1
    assert np.abs(tokens.decode(ids) - values).max() <= 1 / 255 + 1e-6
    assert (tokens.encode(np.array([-1.0, -7.0, 1.0, 7.0])) == vocabulary_size - np.array([1, 1, 256, 256])).all()


def test_action_tokens_are_those_of_the_papers_code():
    tokens = ActionTokens(151643)
    ids = tokens.encode(np.array([-1.0, -0.5, 0.0, 0.5, 1.0]))
    assert ids.tolist() == [151642, 151579, 151515, 151451, 151387]  # 151643 - digitize(x, linspace(-1, 1, 256))
    assert tokens.decode(ids[-1:]) == tokens.decode(ids[-1:] + 1)  # the last edge has an id of its own and the same centre
    centres = np.unique(tokens.decode(np.arange(151387, 151643)))
    assert len(centres) == 255 and np.allclose(np.diff(centres), 2 / 255, atol=1e-6)


def test_nan_actions_and_foreign_ids_are_errors():
    with pytest.raises(UserError, match=r"not finite[\s\S]*\[0, 1\]"):
        ActionTokens(400).encode(np.array([[0.0, np.nan]]))
    for foreign in (143, 400, 0):
        with pytest.raises(UserError, match=str(foreign)):
            ActionTokens(400).decode(np.array([200, foreign]))


def test_state_fills_the_range_with_three_standard_deviations():
    mean, std = np.array([1.0, 2.0], np.float32), np.array([0.5, 0.0], np.float32)
    normal = normalise_state(np.array([[1.75, 2.0], [9.0, 2.1]], np.float32), mean, std)
    assert np.allclose(normal[0], [0.5, 0.0], atol=1e-4) and (normal[1] == 1.0).all()


# ---- denoiser ----------------------------------------------------------------------------------------------------------------


def test_noise_schedule_is_the_cosine():
    alphas = cosine_alphas()
    bar = lambda s: math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
    expected = [bar(0.001) / bar(0), bar(0.5) / bar(0)]
    assert torch.allclose(alphas[[0, 499]], torch.tensor(expected, dtype=torch.float64), atol=1e-12)
    assert alphas[-1] < 1e-6 and (alphas[-1] / alphas[-2]).item() == pytest.approx(0.001)  # max_beta .999


def test_denoiser_equals_a_plain_formula_for_its_condition_and_starts_as_zero():
    torch.manual_seed(0)
    net = Denoiser(hidden_dim=8, latent_dim=12, grid=(2, 3), width=16, depth=2, heads=2).net
    x, hidden, t = torch.randn(2, 12, 2, 3), torch.randn(2, 6, 8), torch.tensor([3, 900])
    assert (net(x, t, hidden) == 0).all()  # adaLN-Zero: gates and output start at zero
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    seen = []
    net.blocks[0].register_forward_hook(lambda _m, inputs, _o: seen.append(inputs))
    net(x, t, hidden)
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = net.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], 1))
    normal = (hidden - hidden.mean(-1, keepdim=True)) / (hidden.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    condition = time[:, None] + F.silu(normal) @ net.z_embedder[1].weight.T + net.z_embedder[1].bias
    assert torch.allclose(seen[0][1], condition, atol=1e-5)  # per token and additive
    tokens = torch.einsum("bdyx,wd->byxw", x, net.x_embedder.proj.weight[:, :, 0, 0]).reshape(2, 6, 16) + net.x_embedder.proj.bias
    assert torch.allclose(seen[0][0], tokens + net.pos_embed, atol=1e-5)  # row by row


def test_positions_encode_column_then_row():
    code = grid_positions(2, 3, 8)[0]
    assert torch.equal(code[0, :4], code[3, :4]) and torch.equal(code[0, 4:], code[1, 4:])  # same column; same row
    assert code[1, 0] == pytest.approx(math.sin(1)) and code[3, 4] == pytest.approx(math.sin(1)) and code[0, 2] == 1


def test_masked_samples_do_not_reach_the_reconstruction_loss():
    torch.manual_seed(0)
    net = Denoiser(hidden_dim=8, latent_dim=12, grid=(2, 3), width=16, depth=1, heads=2, draws=2)
    torch.nn.init.normal_(net.net.final_layer.linear.weight)
    x, hidden = torch.randn(2, 12, 2, 3), torch.randn(2, 6, 8)
    t, noise = torch.randint(0, 1000, (4,)), torch.randn(4, 12, 2, 3)
    only_first = net.loss(x, hidden, torch.tensor([True, False]), t, noise)
    other = net.loss(torch.stack([x[0], 100 * x[1]]), hidden, torch.tensor([True, False]), t, noise)
    assert only_first == other and only_first != net.loss(x, hidden, torch.tensor([True, True]), t, noise)
    alone = net.loss(x[:1], hidden[:1], torch.tensor([True]), t[::2], noise[::2])
    assert torch.allclose(only_first, alone)
    assert net.loss(x, hidden, torch.tensor([False, False])) == 0


def test_sampler_finds_the_only_picture_it_was_trained_on():
    torch.manual_seed(0)
    net = Denoiser(hidden_dim=4, latent_dim=3, grid=(2, 2), width=32, depth=1, heads=2)
    picture, hidden = torch.tensor([[-0.9, 0.9], [0.5, -0.5]]).expand(16, 3, 2, 2), torch.randn(1, 4, 4).expand(16, 4, 4)
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(250):
        optimizer.zero_grad()
        net.loss(picture, hidden, torch.ones(16, dtype=torch.bool)).backward()
        optimizer.step()
    sampled = net.sample(hidden[:2], steps=40, clip=1.0, generator=torch.Generator().manual_seed(0))
    assert (sampled - picture[:2]).abs().mean() < 0.15


# ---- canvas and words --------------------------------------------------------------------------------------------------------


def test_canvas_holds_static_above_wrist_and_the_upstream_geometry_has_the_173rd_row_as_seam():
    static, wrist = np.full((200, 200, 3), 200, np.uint8), np.full((84, 84, 3), 50, np.uint8)
    for resample in ("area", "lanczos"):
        canvas = compose(static, wrist, 334, 334, 173, resample)
        assert canvas.shape == (334, 334, 3) and (canvas[:173] == 200).all() and (canvas[173:] == 50).all()


def test_training_and_acting_see_the_same_canvas():
    net, seen = model(), []
    net.vision_tower.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    one = observation()
    net.act([one], ["lift the red block"])
    net.eval().loss(batch(net, 1))
    assert torch.equal(seen[0], seen[1])


def test_gaze_target_is_the_crop_above_the_unchanged_wrist_and_whole_is_the_canvas():
    net, one = model(), observation()
    one["observation.images.static"][:] = 10
    one["observation.images.static"][60:100, 40:80] = 250  # exactly the box
    prepared = net.prepare(one)
    target = prepared["target"]
    assert target.shape == (24, 12, 3) and (target[:12] == 250).all()
    averaged = prepared["canvas"][48:].reshape(12, 4, 12, 4, 3).mean((1, 3))
    assert np.abs(averaged - target[12:]).max() <= 1
    whole = net.pixels(net.latents(torch.from_numpy(prepared["canvas"][None])))[0].numpy()
    assert whole[:12].min() == 10 and np.abs(whole[12:].astype(int) - target[12:]).max() <= 1
    assert torch.equal(net.pixels(net.latents(torch.from_numpy(target[None])))[0], torch.from_numpy(target))
    assert model(recon=False).key == net.key == model(target="whole").key != model(gaze_margin=0.5).key
    del one["gaze.box"]
    with pytest.raises(UserError, match="gaze.box"):
        net.prepare(one)
    assert set(model(recon=False).prepare(one)) == {"canvas"}


def test_latents_lie_on_the_token_grid_in_channel_row_column_order():
    net = model()
    picture = torch.randint(0, 256, (1, 24, 12, 3), dtype=torch.uint8)
    latents = net.latents(picture)
    for c, p, q, y, x in ((0, 0, 0, 0, 0), (2, 1, 3, 4, 2), (1, 3, 0, 5, 1)):
        assert latents[0, c * 16 + p * 4 + q, y, x] == pytest.approx(picture[0, 4 * y + p, 4 * x + q, c].item() / 127.5 - 1, abs=1e-6)


def test_words_are_fixed_in_length_and_unseen_words_share_a_few_ids():
    words = Words(vocabulary(INSTRUCTIONS), 6)
    assert words.words == ("block", "blue", "drawer", "lift", "open", "red", "the")
    assert words.encode(["Lift the RED block!"]).tolist() == [[8, 11, 10, 5, 0, 0]]
    assert 1 <= words.encode(["hoist"])[0, 0] <= 4 and words.encode(["a b c d e f g h"]).shape == (1, 6)


# ---- ReconVLA ----------------------------------------------------------------------------------------------------------------


DEPARTURES = ("keypoints", "ordered_bins", "soft_bins", "proprio", "word_dropout", "action_dropout")
AS_PAPER = {name: getattr(PRESETS["plain"], name) for name in DEPARTURES}


@pytest.mark.parametrize("changes", [{}, {"target": "whole"}, {"recon": False}, {"recon": False, "blind": True}, AS_PAPER,
                                     {"chunk": 2, "action_dim": 3}])  # fmt: skip
def test_every_variant_learns_a_batch_by_heart_and_acts_in_range(changes):
    net = model(**changes)
    data, optimizer, losses = batch(net), torch.optim.Adam(net.parameters(), lr=3e-3), []
    for _ in range(12):
        optimizer.zero_grad()
        out = net.loss(data)
        out["loss"].backward()
        optimizer.step()
        losses.append(out["loss"].item())
    assert losses[-1] < losses[0] - 0.3
    assert ("recon" in out) == net.config.recon and all(value.ndim == 0 for value in out.values())
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)
    actions = net.act([observation(i) for i in range(2)], INSTRUCTIONS[:2])
    assert actions.shape == (2, net.config.chunk, net.config.action_dim) and actions.dtype == np.float32 and np.abs(actions).max() <= 1


def test_acting_is_the_greedy_reading_of_the_training_forward():
    net = model().eval()
    observations = [observation(i) for i in range(3)]
    actions = net.act(observations, INSTRUCTIONS)
    data = batch(net) | {"action": actions}
    prompt, where = net.prompt(torch.from_numpy(data["canvas"]), data["state"], INSTRUCTIONS)
    ids = torch.from_numpy(net.tokens.encode(actions.reshape(3, -1)))
    hidden = net.decoder.model(inputs_embeds=torch.cat([prompt, F.embedding(ids[:, :-1], net.embedding) + where], 1)).last_hidden_state
    logits = hidden[:, prompt.shape[1] - 1:] @ net.embedding[net.tokens.first:].T
    again = net.tokens.decode(net.tokens.first + logits.argmax(-1).numpy()).reshape(actions.shape)
    assert (again == actions).mean() > 0.98  # cached and uncached sums differ in the last bits
    assert (net.act(observations[:1], INSTRUCTIONS[:1])[0] == actions[0]).mean() > 0.9  # the batch does not matter either


def test_image_tokens_see_the_instruction_and_lie_where_the_model_says():
    net, seen = model().eval(), []
    keep = lambda _module, _args, kwargs, out: seen.append((kwargs["inputs_embeds"], out.last_hidden_state))
    net.decoder.model.register_forward_hook(keep, with_kwargs=True)
    data = batch(net, 1)
    for sentence in ("lift the red block", "open the drawer"):
        net.loss(data | {"instruction": [sentence]})
    (inputs_a, a), (inputs_b, b) = seen
    image = net.image_positions
    assert image.stop - image.start == net.config.grid[0] * net.config.grid[1] == 18
    assert torch.equal(inputs_a[:, image], inputs_b[:, image]) and not torch.allclose(a[:, image], b[:, image])


def test_a_blind_model_ignores_the_image_and_a_fallback_gaze_is_masked():
    blind, dark = model(recon=False, blind=True).eval(), observation(5)
    dark["observation.state"] = observation(0)["observation.state"]
    assert np.array_equal(blind.act([observation(0)], INSTRUCTIONS[:1]), blind.act([dark], INSTRUCTIONS[:1]))
    net = model().eval()
    data = batch(net) | {"gaze.valid": np.array([True, False, True])}
    torch.nn.init.normal_(net.denoiser.net.final_layer.linear.weight)
    losses = []
    for value in (0, 255):
        data["target"][1] = value
        torch.manual_seed(0)
        losses.append(net.loss(data)["recon"].item())
    assert losses[0] == losses[1]
    with pytest.raises(UserError, match="blind"):
        model(blind=True)


def test_soft_bins_are_a_gaussian_around_the_bin_and_zero_is_plain_cross_entropy():
    net = model()
    labels = torch.tensor([[net.tokens.first + 100]])
    logits = torch.full((1, 1, net.tokens.vocab_size), -30.0)
    distance = torch.arange(256) - 100
    logits[0, 0, net.tokens.first:] = -0.5 * (distance / 2.0).float() ** 2  # the target itself: loss = its entropy
    assert net.cross_entropy(logits, labels).item() == pytest.approx(math.log(2 * math.sqrt(2 * math.pi * math.e)), abs=1e-3)
    plain = model(soft_bins=0.0)
    assert plain.cross_entropy(logits, labels).item() == pytest.approx(math.log(2 * math.sqrt(2 * math.pi)), abs=1e-3)


def test_save_and_load_give_the_same_actions_and_name_every_wrong_tensor(tmp_path):
    net = model()
    net.save(tmp_path)
    again = ReconVLA.load(tmp_path)
    assert again.config == net.config and again.stats == net.stats
    assert np.array_equal(net.act([observation()], INSTRUCTIONS[:1]), again.act([observation()], INSTRUCTIONS[:1]))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    weights = load_file(tmp_path / "model.safetensors")
    weights["mm_projector.0.weight"] = torch.zeros(3, 3)
    weights["foreign"] = weights.pop("proprio.0.bias")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as error:
        ReconVLA.load(tmp_path)
    assert all(name in str(error.value) for name in ("mm_projector.0.weight", "(3, 3)", "foreign", "proprio.0.bias"))
    about = json.loads((tmp_path / "model.json").read_text())
    about["config"]["dropout"] = 0.5
    (tmp_path / "model.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="dropout"):
        ReconVLA.load(tmp_path)


def test_config_and_statistics_are_checked():
    for wrong, said in (({"target": "crop"}, "crop"), ({"height": 100}, "16 px"), ({"recon_weight": -1.0}, "recon_weight")):
        with pytest.raises(UserError, match=said):
            replace(SMALL, **wrong)
    with pytest.raises(UserError, match="no words"):
        ReconVLA(replace(SMALL, words=()), STATS)
    with pytest.raises(UserError, match="another size"):
        ReconVLA(SMALL, {"observation.state": {"mean": [0.0] * 8, "std": [1.0] * 8}})


def test_keypoints_find_a_spot_in_either_camera_and_the_instruction_moves_the_asked_ones():
    torch.manual_seed(0)
    keypoints = Keypoints(channels=2, fixed=1, asked=1, static_rows=5, width=8, state_dim=15)
    with torch.no_grad():
        keypoints.maps.weight.fill_(0.0)
        keypoints.maps.weight[0, 0] = 9.0
    features = torch.zeros(1, 2, 9, 5)
    features[0, 0, 0, 4] = features[0, 0, 8, 2] = 5.0  # static: top right; wrist (rows 5..8): bottom middle
    points = keypoints.points(features, torch.randn(1, 8))[0]
    assert torch.allclose(points[[0, 2]], torch.tensor([[1.0, -1.0], [0.0, 1.0]]), atol=1e-3)
    features = torch.randn(1, 2, 9, 5)
    one, two = (keypoints.points(features, text)[0] for text in (torch.randn(1, 8), torch.randn(1, 8)))
    assert torch.equal(one[[0, 2]], two[[0, 2]]) and not torch.allclose(one[[1, 3]], two[[1, 3]])


def test_reconstructions_are_pictures_laid_out_like_the_target():
    net = model()
    drawn = net.reconstruct([observation(i) for i in range(2)], INSTRUCTIONS[:2], steps=3)
    assert drawn.shape == (2, *batch(net)["target"].shape[1:]) and drawn.dtype == np.uint8
    with pytest.raises(UserError, match="no reconstruction head"):
        model(recon=False).reconstruct([observation()], INSTRUCTIONS[:1])


def test_the_blind_policy_misses_what_the_seeing_one_hits():
    """A white square's place is the action: after some seconds of training the error of the seeing model is far below the blind one's."""
    rng, errors = np.random.default_rng(0), {}
    places = rng.integers(0, 5, (96, 2))
    canvas = np.full((96, 96, 48, 3), 90, np.uint8)
    for picture, (x, y) in zip(canvas, places, strict=True):
        picture[9 * y: 9 * y + 8, 9 * x: 9 * x + 8] = 255
    action = np.repeat((places[:, None] - 2) / 2.5, 2, axis=1).astype(np.float32)  # (96, 2, 2)
    data = {"canvas": canvas, "state": rng.normal(size=(96, 15)), "action": action, "instruction": ["lift the red block"] * 96}
    for blind in (False, True):
        net = model(recon=False, blind=blind, chunk=2, action_dim=2, layers=1)
        optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
        for i in range(100):
            rows = np.random.default_rng(i).permutation(96)[:32]
            part = {key: [value[j] for j in rows] if key == "instruction" else value[rows] for key, value in data.items()}
            optimizer.zero_grad()
            net.loss(part)["loss"].backward()
            optimizer.step()
        errors[blind] = net.eval().loss(data)["l1"].item()
    assert errors[False] < 0.5 * errors[True]
