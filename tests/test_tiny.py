"""The tiny tower and VAE: what they learn first, frozen parts, caches, heads. Run: pytest tests/test_tiny.py"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from repro.machine import UserError
from repro.models import reconvla_pictures, tiny, tiny_pictures, tiny_training
from repro.models.reconvla import PRESETS, ReconVLA, box_share
from repro.models.towers import compose

INSTRUCTIONS = ["lift the red block", "open the drawer"]
STATS = {"observation.state": {"mean": [0.1] * 15, "std": [0.5] * 15}}
SMALL = dict(hidden=32, layers=1, heads=2, intermediate=32, denoiser_width=32, denoiser_depth=1, denoiser_heads=2)


HOW = dict(pictures=24, batch=8)


@pytest.fixture(scope="module")
def drawn():
    return tiny_pictures.Drawn(24, ("A", "B", "C"), 0, None)


@pytest.fixture(scope="module")
def folder(drawn, tmp_path_factory):
    path = tmp_path_factory.mktemp("parts")
    for train in (tiny_training.pretrain_tower, tiny_training.pretrain_vae):
        train(path, steps=30, drawn=drawn, log=lambda line: None, **HOW)
    return path


def model(folder, seed=0, **changes):
    torch.manual_seed(seed)
    return ReconVLA.build(replace(PRESETS["tiny"], **SMALL | changes), STATS, instructions=INSTRUCTIONS, **tiny.load_parts(folder))


def observation(seed=0):
    rng = np.random.default_rng(seed)
    return {"observation.images.static": rng.integers(0, 256, (200, 200, 3), np.uint8), "gaze.box": np.float32([0.2, 0.3, 0.4, 0.5]),
            "observation.images.wrist": rng.integers(0, 256, (84, 84, 3), np.uint8), "observation.state": np.zeros(15, np.float32)}


def batch(net):
    prepared = [net.prepare(observation(i)) for i in range(2)]
    return {key: np.stack([one[key] for one in prepared]) for key in prepared[0]} | {
        "state": np.zeros((2, 15), np.float32), "action": np.zeros((2, 5, 7), np.float32), "instruction": INSTRUCTIONS,
        "gaze.box": np.float32([[0.2, 0.3, 0.4, 0.5]] * 2), "gaze.valid": np.ones(2, bool)}


def test_pictures_are_the_same_for_a_seed_and_never_show_scene_d(drawn):
    again, shown = tiny_pictures.draw_pictures(24), drawn.training
    assert all(np.array_equal(a, b) for a, b in zip(again[:3], shown[:3], strict=True))
    assert again.canvas.shape == (24, 128, 128, 3) and not np.array_equal(again.canvas, drawn.held_out.canvas)
    assert set(np.unique(again.ids)) <= set(range(10)) and len(np.unique(again.ids)) >= 8
    with pytest.raises(UserError, match="D is for evaluation"):
        tiny_pictures.draw_pictures(1, scenes=("A", "D"))


def test_recorded_states_are_drawn_as_they_were():
    from repro.sims.tabletop.world import PlayTable

    table = PlayTable("A", seed=3)
    seen = table.reset()
    states = {"A": tuple(seen[name][None] for name in ("observation.state", "observation.environment_state"))}
    shown = tiny_pictures.draw_pictures(1, ("A",), states=states)  # the first look is the scene's own
    canvas = compose(seen["observation.images.static"], seen["observation.images.wrist"], 128, 128, 96)
    assert np.abs(shown.canvas[0].astype(int) - canvas).mean() < 0.5


def test_a_tower_and_a_vae_learn_in_30_steps_and_say_what_they_are(folder):
    about = {part: json.loads((folder / part / "about.json").read_text()) for part in ("tower", "vae")}
    assert all(one["loss"] < 0.75 * one["first_loss"] and one["scenes"] == ["A", "B", "C"] for one in about.values())
    assert all({"steps", "looks", "held_out_looks", "minutes", "commit"} <= set(one) for one in about.values())
    assert set(about["tower"]["iou"]) == set(tiny_pictures.items())
    assert set(about["vae"]["psnr"]["gaze"]) == {"vae", "mean picture", "averaged to 18 x 18 px"}


def test_a_part_is_found_again_and_another_one_is_trained_anew_with_a_word(drawn, tmp_path):
    lines = []
    how = dict(drawn=drawn, log=lines.append, **HOW)
    path = tiny_training.pretrain_tower(tmp_path, steps=1, **how)
    before = (path / "tower.safetensors").stat().st_mtime_ns
    tiny_training.pretrain_tower(tmp_path, steps=1, **how)
    assert (path / "tower.safetensors").stat().st_mtime_ns == before and "trained otherwise" not in "".join(lines)
    tiny_training.pretrain_tower(tmp_path, steps=2, **how)
    assert (path / "tower.safetensors").stat().st_mtime_ns != before and "steps 1 instead of 2" in "".join(lines)
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(UserError, match="tiny_training.pretrain"):
        tiny.load_parts(tmp_path)


def test_parts_are_scored_on_looks_never_seen_and_asked_for_by_their_states(drawn, tmp_path):
    same = tiny_pictures.Drawn(24, ("A", "B", "C"), 0, None)
    same._made = dict.fromkeys((False, True), drawn.training)
    for train, name in ((tiny_training.pretrain_tower, "iou"), (tiny_training.pretrain_vae, "psnr")):
        told = [json.loads((train(tmp_path / str(i), steps=1, drawn=one, log=lambda line: None, **HOW) / "about.json").read_text())
                for i, one in enumerate((drawn, same))]
        assert told[0]["first_loss"] == told[1]["first_loss"] and told[0][name] != told[1][name]
    asked = lambda **states: tiny_training.asked("tower", ("A", "B"), 1, 0, states, 24)["states"]
    one, two = (np.zeros((2, 3)), np.ones(2)), (np.zeros((2, 3)), np.array([1.0, 2.0]))
    assert asked(A=one, B=two) == asked(B=two, A=one, C=one) and len({asked(A=one, B=two), asked(A=two, B=one), asked(A=one), asked()}) == 4


def test_the_rate_rises_to_its_peak_and_falls_to_zero():
    """Under one constant gradient AdamW's step is about its rate (the cycle moves its first beta, too)."""
    weight, at, rows = torch.nn.Parameter(torch.zeros(())), [], []

    def loss(some):
        at.append(weight.item())
        rows.append(some)
        return 0.5 * weight
    tiny_training.descend([weight], loss, 24, 40, 3, 1e-2, "x", lambda line: None, 8)
    steps = -np.diff([*at, weight.item()])
    assert steps[0] == pytest.approx(1e-2 / 25, rel=0.01) and steps.max() == pytest.approx(1e-2, rel=0.2) and steps[-1] < 1e-5
    assert 8 <= steps.argmax() <= 16 and all(np.array_equal(some, np.random.default_rng([3, i]).integers(24, size=8))
                                                         for i, some in enumerate(rows))  # fmt: skip


def test_a_linear_layer_reads_a_tokens_place():
    tokens = tiny.TinyTower()(torch.randn(4, 3, 128, 128)).detach()
    x = ((torch.arange(64) % 8 + 0.5) / 4 - 1).repeat(4)
    tokens = tokens.flatten(0, 1)
    solved = torch.linalg.lstsq(tokens[:, 128:], x[:, None], driver="gelsd").solution
    assert tokens.shape == (256, 160) and (tokens[:, 128:] @ solved - x[:, None]).abs().max() < 0.05
    assert tokens[:, 128:].std() == pytest.approx(2, abs=0.3)


def test_frozen_stays_frozen_and_nothing_random_is_frozen(folder):
    with pytest.raises(UserError, match="random tower"):
        tiny.TinyTower(frozen=True)
    with pytest.raises(UserError, match="random tower"):
        ReconVLA.build(replace(PRESETS["tiny"], recon=False), STATS, instructions=INSTRUCTIONS)
    net = model(folder).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=0.1)
    net.loss(batch(net))["loss"].backward()
    optimizer.step()
    same = {name for name, value in net.state_dict().items() if torch.equal(value, before[name])}
    assert all((name.startswith(("vision_tower", "vae")) <= (name in same)) for name in before) and "mm_projector.0.weight" not in same
    assert not net.vision_tower.training and not net.vae.training
    along = model(folder, freeze_vision=False, cache_features=False).train()
    along.loss(batch(along))["action"].backward()
    assert along.vision_tower.net[0].weight.grad.abs().sum() > 0


def test_cached_is_uncached_within_float16_and_other_weights_are_another_key(folder):
    off = dict(cache_features=False, cache_latents=False)
    cached, fresh = (model(folder, posterior="mean", **how).eval() for how in ({}, off))
    losses = []
    for net in (cached, fresh):
        data = batch(net)
        torch.nn.init.normal_(net.denoiser.net.final_layer.linear.weight, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(3)
        losses.append({name: value.item() for name, value in net.loss(data).items()})
        assert ("features" in data) == net.config.cache_features and (data["target_gaze"].dtype == np.uint8) != net.config.cache_latents
    assert losses[0]["action"] == pytest.approx(losses[1]["action"], rel=2e-3)
    assert losses[0]["recon"] == pytest.approx(losses[1]["recon"], rel=2e-3)
    key = cached.key
    assert model(folder, seed=5, target="whole").key == key != fresh.key  # neither the policy's weights nor its target matter
    with torch.no_grad():
        cached.vision_tower.net[0].weight[0, 0, 0, 0] += 1
    assert cached.key != key
    many = [observation(i) for i in range(3)]
    for one, other in zip(fresh.prepare_many(many), map(fresh.prepare, many), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in other)
    for one, other in zip(cached.prepare_many(many), map(cached.prepare, many), strict=True):
        assert all(np.allclose(one[name], other[name], atol=2e-2) for name in other)


def test_latents_have_unit_variance_and_come_back(folder, drawn):
    net = model(folder)
    latents = reconvla_pictures.latents(net, torch.from_numpy(drawn.held_out.canvas[:8]))
    assert latents.shape == (8, 16, 8, 8) and latents.std() == pytest.approx(1, abs=0.35)
    assert reconvla_pictures.pixels(net, latents).shape == (8, 64, 64, 3)


def test_a_checkpoint_needs_no_parts_folder_and_refuses_another_tower(folder, drawn, tmp_path):
    net = model(folder).eval()
    net.save(tmp_path)
    again = ReconVLA.load(tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    assert np.array_equal(net.act([observation()], INSTRUCTIONS[:1]), again.act([observation()], INSTRUCTIONS[:1]))
    assert again.vision_tower.frozen and again.vision_tower.identity == net.vision_tower.identity and again.key == net.key
    from repro.models import parts

    other = tmp_path / "other"
    tiny_training.pretrain_tower(other, steps=1, drawn=drawn, log=lambda line: None, **HOW)
    tiny_training.pretrain_vae(other, steps=1, drawn=drawn, log=lambda line: None, **HOW)
    built = parts.build(net.config, tokenizer=net.text.tokenizer, **tiny.load_parts(other))
    with pytest.raises(UserError, match=r"tiny tower[\s\S]*frozen|frozen[\s\S]*tiny tower"):
        ReconVLA.load(tmp_path, built)


def test_the_mask_is_the_share_of_each_cell_and_boxes_not_found_count_for_nothing(folder):
    share = box_share(torch.tensor([[0.125, 0.25, 0.5, 0.5]]), 2, 4)[0]  # x: half of cell 0, all of cell 1; y: half of row 0
    assert torch.allclose(share, torch.tensor([0.25, 0.5, 0, 0, 0, 0, 0, 0]))
    net = model(folder, aux="mask", recon=False).eval()
    data = batch(net) | {"gaze.valid": np.array([True, False])}
    with torch.no_grad():
        net.mask_head.weight.zero_()
        net.mask_head.bias.fill_(-1.0)
    covered = box_share(torch.from_numpy(data["gaze.box"][:1]), 6, 8).mean().item()
    expected = np.log1p(np.exp(-1.0)) + covered  # softplus(-1) - y * (-1)
    out = net.loss(data)
    assert out["mask"].item() == pytest.approx(expected, rel=1e-5)
    assert out["loss"].item() == pytest.approx(out["action"].item() + out["mask"].item(), rel=1e-6)
    data["gaze.box"][1] = np.nan
    assert net.loss(data)["mask"].item() == pytest.approx(expected, rel=1e-5)
    box = model(folder, aux="box", recon=False).eval()
    with torch.no_grad():
        box.box_head[2].weight.zero_(), box.box_head[2].bias.zero_()
    assert box.loss(data | {"gaze.box": np.float32([[0.2, 0.3, 0.4, 0.5]] * 2)})["box"].item() == pytest.approx(0.225)
