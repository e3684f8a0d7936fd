"""Action tokens, denoiser, prompt and the tiny ReconVLA. Run: pytest tests/test_models.py"""

import json
import math
import re
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from repro import attention
from repro.attention import attention_of
from repro.data.batches import Batches
from repro.data.columns import replace_columns
from repro.data.episodes import Episode, Store, StoreWriter
from repro.evaluation.floors import Blank
from repro.evaluation.policies import mended
from repro.experiments import ROWS
from repro.kaggle.fetched import PREPARED
from repro.machine import UserError
from repro.models import adapters, reconvla_pictures, towers
from repro.models import parts as parts_of
from repro.models.action_tokens import ActionTokens, normalise_state
from repro.models.decoding import Reader, forward, greedy
from repro.models.denoiser import Denoiser, cosine_alphas, grid_positions
from repro.models.parts import Parts, fingerprint, restore
from repro.models.parts import build as build_parts
from repro.models.prompt import IGNORE, IMAGE, Prompt, small_tokenizer
from repro.models.reconvla import CLIP, PRESETS, ReconVLA, ReconVLAConfig
from repro.models.towers import VisionTower, compose
from repro.profiles import T4

INSTRUCTIONS = ["lift the red block", "lift the blue block", "open the drawer"]
STATS = {"observation.state": {"mean": [0.1] * 15, "std": [0.5] * 15}}
SMALL = ReconVLAConfig(grid=(6, 3), height=96, width=48, static_tokens=3, channels=8, freeze_vision=False, cache_features=False,
                       vae="pixels", hidden=32, layers=2, heads=2, intermediate=48, denoiser_width=32, denoiser_depth=1,
                       denoiser_heads=2, draws=2)  # fmt: skip
LARGE = replace(PRESETS["paper"], grid=(3, 3), height=50, width=50, static_tokens=2, denoiser_width=32, denoiser_depth=1, denoiser_heads=2,
                dtype="float32", checkpointing=False, chunk=2)  # the published model's fields on small parts
VAE = dict(block_out_channels=[8, 8], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
           layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=12, scaling_factor=0.36, shift_factor=0.11)  # fmt: skip


def model(config=SMALL, seed=0, **changes):
    torch.manual_seed(seed)
    return ReconVLA.build(replace(config, **changes), STATS, instructions=INSTRUCTIONS)


def parts(template="official", seed=0):
    torch.manual_seed(seed)
    sizes = dict(hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=42, patch_size=14)
    tokenizer = small_tokenizer(INSTRUCTIONS, template)
    language = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer) + 5, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                            num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, bos_token_id=None,
                                            eos_token_id=None))  # fmt: skip
    vision = VisionTower(SiglipVisionModel(SiglipVisionConfig(**sizes)), [0.5] * 3, [0.5] * 3, {"name": "siglip", "sha256": None})
    return Parts(vision, language, tokenizer, AutoencoderKL(**VAE).eval())


def large(given=None, **changes):
    given = given or parts()
    torch.manual_seed(1)
    return ReconVLA(replace(LARGE, **changes), STATS, given)


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
    out["gaze.box"] = np.stack([one["gaze.box"] for one in observations])
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


def test_sampler_draws_with_the_variance_of_the_forward_process():
    """FIXED_LARGE: beta, not the posterior's. A new denoiser predicts no noise, so each step is a formula; 1000 steps would hide it."""
    net = Denoiser(hidden_dim=4, latent_dim=3, grid=(2, 2), width=32, depth=1, heads=2)
    found = net.sample(torch.zeros(2, 4, 4), steps=3, clip=3.0, generator=torch.Generator().manual_seed(0))
    drawn_alike = torch.Generator().manual_seed(0)
    x, *noise = (torch.randn(2, 3, 2, 2, generator=drawn_alike).double() for _ in range(3))
    for level, lower, drawn in ((999, 500, noise[0]), (500, 0, noise[1])):
        bar, before = net.alphas[level], net.alphas[lower]
        clean, beta = (x / bar.sqrt()).clamp(-3, 3), 1 - bar / before
        x = (before.sqrt() * beta * clean + (1 - beta).sqrt() * (1 - before) * x) / (1 - bar) + beta.sqrt() * drawn
    assert torch.allclose(found.double(), (x / net.alphas[0].sqrt()).clamp(-3, 3), atol=1e-4) and (found.abs() < 2.9).any()


# ---- canvas and prompt --------------------------------------------------------------------------------------------------------


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
    net.config = replace(net.config, acting_static_rows=net.config.static_rows + 4)
    net.act([one], ["lift the red block"])
    assert not torch.equal(seen[0], seen[2]), "the server's seam reaches the tower"


def test_gaze_target_is_the_crop_above_the_unchanged_wrist_and_whole_is_the_canvas():
    net, one = model(), observation()
    one["observation.images.static"][:] = 10
    one["observation.images.static"][60:100, 40:80] = 250  # exactly the box
    prepared = net.prepare(one)
    target = prepared["target_gaze"]
    assert target.shape == (24, 12, 3) and (target[:12] == 250).all()
    averaged = prepared["canvas"][48:].reshape(12, 4, 12, 4, 3).mean((1, 3))
    assert np.abs(averaged - target[12:]).max() <= 1
    whole = prepared["target_whole"]
    assert whole[:12].min() == 10 and (whole[12:] == target[12:]).all()
    latents = reconvla_pictures.latents(net, torch.from_numpy(target[None]))
    assert torch.equal(reconvla_pictures.pixels(net, latents)[0], torch.from_numpy(target))
    assert net.key == model(target="whole").key and model(recon=False).key == {"seen": net.key["seen"]}
    for other in (model(gaze_margin=0.5), model(gaze_truncate=True), model(latent_patch=2)):
        assert other.key["target"] != net.key["target"] and other.key["seen"] == net.key["seen"]
    for other in (model(resample="lanczos"), model(static_tokens=2)):
        assert other.key["target"] != net.key["target"] and other.key["seen"] != net.key["seen"]
    part = observation() | {"gaze.box": np.float32([0.2, 0.3, 0.4015, 0.5])}  # of 200 px: 80.3
    assert not np.array_equal(*(model(gaze_truncate=way).prepare(part)["target_gaze"] for way in (False, True)))
    del one["gaze.box"]
    with pytest.raises(UserError, match="gaze.box"):
        net.prepare(one)
    assert set(model(recon=False).prepare(one)) == {"canvas"}


def test_latents_lie_on_the_token_grid_in_channel_row_column_order():
    net = model()
    picture = torch.randint(0, 256, (1, 24, 12, 3), dtype=torch.uint8)
    latents = reconvla_pictures.latents(net, picture)
    for c, p, q, y, x in ((0, 0, 0, 0, 0), (2, 1, 3, 4, 2), (1, 3, 0, 5, 1)):
        assert latents[0, c * 16 + p * 4 + q, y, x] == pytest.approx(picture[0, 4 * y + p, 4 * x + q, c].item() / 127.5 - 1, abs=1e-6)


def test_small_tokenizer_has_qwens_format_and_is_the_same_for_the_same_sentences(tmp_path):
    tokenizer = small_tokenizer(INSTRUCTIONS, "short")
    assert tokenizer.backend_tokenizer.to_str() == small_tokenizer(INSTRUCTIONS[::-1] * 2, "short").backend_tokenizer.to_str()
    assert len(tokenizer.encode(" lift the red block")) == 4 and len(tokenizer) == tokenizer.vocab_size + 2
    text = "Hoist l'anneau; 3 blöcks!\n"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and max(ids) < ActionTokens(tokenizer.vocab_size).first  # no text reaches the slots
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again.encode(text) == ids and Prompt(again, "short").end == Prompt(tokenizer, "short").end


@pytest.mark.parametrize(("template", "dimension"), [("official", 14), ("short", 3)])
def test_a_conversation_is_text_image_text_state_answer_and_only_the_answer_is_supervised(template, dimension):
    prompt = Prompt(small_tokenizer(INSTRUCTIONS, template), template)
    state, action = np.linspace(-1, 1, 4), np.linspace(-1, 1, dimension)
    ids, labels = prompt.sample("open the drawer", state, action)
    assert ids.count(IMAGE) == 1 and ids[-1] == prompt.end and labels[-dimension - 1:] == ids[-dimension - 1:]
    assert set(labels[: -dimension - 1]) == {IGNORE} and prompt.tokens.decode(np.array(ids[-dimension - 1: -1])).shape == (dimension,)
    at = ids.index(IMAGE)
    text = prompt.tokenizer.decode(ids[:at]) + "<image>" + prompt.tokenizer.decode(ids[at + 1: -dimension - 1 - len(prompt.answer) - 4])
    published = ("A chat between a curious human and an artificial intelligence robot. The robot provides actions to follow out "
                 "the user's instructions. USER: open the drawer\n<image>\nopen the drawer\n")
    assert text == (published if template == "official" else " open the drawer<image> open the drawer")
    assert prompt.sample("open the drawer", state)[0] == ids[: -dimension - 1]
    with pytest.raises(UserError, match="marker"):
        prompt.text("open <image>")
    with pytest.raises(UserError, match="template"):
        Prompt(prompt.tokenizer, "long")


# ---- ReconVLA ----------------------------------------------------------------------------------------------------------------


DEPARTURES = ("ordered_bins", "soft_bins", "proprio", "word_dropout", "parallel")
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


@pytest.mark.parametrize("build", [model, partial(model, parallel=False), large])
def test_acting_is_the_greedy_reading_of_the_training_forward(build):
    net = build().eval()
    observations = [observation(i) for i in range(3)]
    n, first, stop = net.config.chunk * net.config.action_dim, net.tokens.first, net.tokens.vocab_size
    with torch.inference_mode():
        inputs, mask = net.prompt(net.observed(observations, INSTRUCTIONS))
        assert not mask.all()  # the instructions differ in length
        fast, plain = (net._read(inputs, mask, n, True) for _ in range(2))
        net.decoder.set_attn_implementation("eager")
        plain = net._read(inputs, mask, n, True)
        net.decoder.set_attn_implementation("sdpa")
        assert torch.equal(fast, plain) and Reader.fits(net.decoder)
        whole, real = net.sequence(observations, INSTRUCTIONS, fast.numpy())
        logits = net.logits(forward(net.decoder, whole, real)[:, -n:])[..., first:stop]
    assert torch.equal(first + logits.argmax(-1), fast)
    if net.config.constrained:
        actions = net.act(observations, INSTRUCTIONS)
        assert np.array_equal(actions.reshape(3, -1), net.tokens.decode(fast.numpy()))


def test_in_one_pass_actions_come_from_queries_and_the_loss_sees_no_action():
    """What earlier actions were changes the later ones' cross-entropy token by token, and does not with queries."""
    for parallel in (False, True):
        net = model(parallel=parallel, recon=False, word_dropout=0.0).eval()
        assert (net.queries is not None) == parallel
        data = batch(net)
        other = {**data, "action": np.concatenate([-data["action"][:, :1], data["action"][:, 1:]], axis=1)}
        rows = []
        for one in (data, other):
            ids = torch.from_numpy(net.tokens.encode(one["action"].reshape(len(one["action"]), -1)))
            with torch.no_grad():
                hidden, start = net._hidden(one, ids)
            rows.append(hidden[:, start + net.config.action_dim :])
        assert torch.equal(*rows) == parallel
    net = model(recon=False)
    net.loss(batch(net))["loss"].backward()
    assert (net.queries.grad.abs().sum(1) > 0).all()  # the last one predicts the end
    with pytest.raises(UserError, match="constrained"):
        replace(PRESETS["tiny"], constrained=False)


@pytest.mark.parametrize("build", [model, large])
def test_neither_filling_up_nor_the_batch_changes_a_result(build):
    net = build(word_dropout=0.0, recon=False).eval()
    sentences = ["open the drawer", "lift the red block and then the blue block, slowly", "lift"]
    data = batch(net) | {"instruction": sentences}
    with torch.inference_mode():
        together, mask = net.prompt(data)
        hidden = forward(net.decoder, together, mask)
        image = net.image_positions
        assert torch.isfinite(hidden).all()
        for i, sentence in enumerate(sentences):
            one = {key: value[i: i + 1] for key, value in data.items()} | {"instruction": [sentence]}
            alone, real = net.prompt(one)
            assert real.all()
            states = forward(net.decoder, alone, real)
            assert torch.allclose(states[:, net.image_positions], hidden[i: i + 1, image], atol=2e-5)
            assert torch.allclose(states[:, -1], hidden[i: i + 1, -1], atol=2e-5)
    losses = [net.loss({key: value[i: i + 1] for key, value in data.items()})["action"].item() for i in range(3)]
    assert net.loss(data)["action"].item() == pytest.approx(np.mean(losses), abs=1e-5)


def test_an_answer_that_is_no_chunk_is_counted_and_read_again():
    net = large().eval()
    observations = [observation(i) for i in range(2)]
    actions = net.act(observations, INSTRUCTIONS[:2])
    assert net.malformed == 2 and np.abs(actions).max() <= 1  # random weights do not end after 14 tokens
    constrained = large(constrained=True).eval()
    assert np.array_equal(actions, constrained.act(observations, INSTRUCTIONS[:2])) and constrained.malformed == 0
    good = iter([torch.full((2,), net.tokens.first + 3)] * 14 + [torch.full((2,), net.text.end)])
    net._read = lambda *_: torch.stack([next(good) for _ in range(15)], dim=1)
    net.act(observations, INSTRUCTIONS[:2])
    assert net.malformed == 2
    told, = mended(net).values()
    assert (told["value"], told["n"]) == (0.5, 4) and told["low"] < 0.5 < told["high"], "and a record says so"
    assert mended(net) == {} == mended(constrained), "what was told is told once; who cannot err has nothing to tell"
    floor, net._read = Blank(net), lambda _i, _m, steps, _c: torch.full((2, steps), net.tokens.first + 3)  # without an end
    floor.act(observations, INSTRUCTIONS[:2])
    told, = mended(floor).values()
    assert (told["value"], told["n"]) == (1.0, 2) and mended(net) == {}, "a floor's answers stand in its own record, not in the model's"


def test_greedy_gives_grouped_heads_and_adapters_the_same_tokens():
    torch.manual_seed(0)
    decoder = parts().language.eval()
    inputs, mask = torch.randn(2, 5, 32), torch.tensor([[False, True, True, False, True], [True] * 5])
    embed, choose = lambda ids: decoder.get_input_embeddings()(ids)[:, None], lambda hidden: decoder.lm_head(hidden).argmax(-1)
    with torch.inference_mode():
        fast, plain = (greedy(decoder, inputs, mask, 6, embed, choose, fast) for fast in (True, False))
    assert torch.equal(fast, plain)
    adapters.add(decoder, adapters.LoRA(rank=2), checkpointing=False)
    assert not Reader.fits(decoder)


def test_image_tokens_see_the_instruction_and_lie_where_the_model_says():
    net, seen = model().eval(), []
    keep = lambda _module, _args, kwargs, out: seen.append((kwargs["inputs_embeds"], out.last_hidden_state))
    net.decoder.model.register_forward_hook(keep, with_kwargs=True)
    data = batch(net, 1)
    for sentence in ("lift the red block", "lift the blue block"):
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
        data["target_gaze"][1] = value
        torch.manual_seed(0)
        losses.append(net.loss(data)["recon"].item())
    assert losses[0] == losses[1]
    with pytest.raises(UserError, match="blind"):
        model(blind=True)


def test_what_is_rebuilt_is_the_target_that_is_named():
    """Table 2's switch: of two targets in a batch the other one decides nothing."""
    given = parts()
    for target, other in (("gaze", "whole"), ("whole", "gaze")):
        net = large(given, target=target, posterior="mean")
        torch.nn.init.normal_(net.denoiser.net.final_layer.linear.weight)
        data, losses = batch(net), {}
        for changed in ("nothing", f"target_{other}", f"target_{target}"):
            torch.manual_seed(0)
            losses[changed] = net.loss({name: value + (name == changed) for name, value in data.items() if name.startswith("target")}
                                       | {name: value for name, value in data.items() if not name.startswith("target")})["recon"].item()
        assert losses[f"target_{other}"] == losses["nothing"] != losses[f"target_{target}"]


def test_lambda_and_the_auxiliary_s_weight_scale_what_is_added():
    for weight, name, changes in (("recon_weight", "recon", {}), ("aux_weight", "box", {"recon": False, "aux": "box"}),
                                  ("aux_weight", "mask", {"recon": False, "aux": "mask"})):
        for value in (0.5, 3.0):
            net = model(**changes, **{weight: value}).eval()
            out = net.loss(batch(net))
            assert out[name].item() > 0 and out["loss"].item() == pytest.approx(out["action"].item() + value * out[name].item())


def test_the_gaze_margin_widens_what_is_cut_out():
    seen = observation()
    tight, wide = (model(gaze_margin=margin).prepare(seen)["target_gaze"] for margin in (0.0, 0.5))
    rows = SMALL.static_tokens * SMALL.latent_patch
    assert not np.array_equal(tight[:rows], wide[:rows]) and np.array_equal(tight[rows:], wide[rows:]), "the wrist's rows stay"
    around = observation() | {"gaze.box": np.array([0.1, 0.2, 0.5, 0.6], np.float32)}  # half its size more on each side
    assert np.array_equal(wide, model(gaze_margin=0.0).prepare(around)["target_gaze"])


def test_checkpointing_gives_the_tiny_model_the_same_gradients_too():
    gradients, on = [], []
    for checkpointing in (False, True):
        net = model(checkpointing=checkpointing).train()
        data = batch(net)
        torch.manual_seed(0)
        net.loss(data)["loss"].backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
        on.append(any(getattr(part, "gradient_checkpointing", False) for part in net.decoder.modules()))
    assert on == [False, True] and gradients[0].keys() == gradients[1].keys()
    assert all(torch.allclose(gradients[0][name], grad, atol=1e-6) for name, grad in gradients[1].items())


def test_words_are_dropped_in_training_alone():
    net = model(word_dropout=1.0)
    data = batch(net)
    read = lambda: net.prompt(data)[0].detach()
    kept = [net.eval() and read(), read()]
    dropped = [net.train() and read(), read()]
    assert torch.equal(*kept) and not torch.equal(*dropped) and not torch.equal(kept[0], dropped[0])
    image = net.image_positions
    assert torch.equal(kept[0][:, image], dropped[0][:, image]), "words only"
    plain = model(word_dropout=0.0).train()
    assert torch.equal(plain.prompt(data)[0], kept[0])


@pytest.mark.parametrize("build", [model, large, lambda: large(constrained=False)])
def test_what_is_not_a_number_is_no_action(build):
    """The best of NaN is the first of 256 slots, +0.996, as in the official code."""
    net = build().eval()
    seen = [observation(0), observation(1)]
    lost = seen[1] | {"observation.state": np.where(np.arange(15) == 3, np.nan, seen[1]["observation.state"])}
    with pytest.raises(UserError, match="state is not a number"):
        net.act([seen[0], lost], INSTRUCTIONS[:2])
    net.act(seen, INSTRUCTIONS[:2])
    with torch.no_grad():
        net.decoder.model.layers[0].mlp.up_proj.weight[0, 0] = np.nan
    with pytest.raises(UserError, match="answer is not a number"):
        net.act(seen, INSTRUCTIONS[:2])
    with pytest.raises(UserError, match="no number"):
        attention.static_maps(net, seen, INSTRUCTIONS[:2], actions=np.zeros((2, net.config.chunk, 7), np.float32))


@pytest.mark.parametrize(("changed", "told", "said"), [
    ({"observation.state": np.zeros(1, np.float32)}, None, "states and instructions"),
    ({"observation.state": np.zeros(7, np.float32)}, None, "states and instructions"),
    ({}, INSTRUCTIONS[:2], "states and instructions"),
    ({"observation.images.static": np.zeros((200, 200, 3), np.float32)}, None, "static is no picture.*\n.*\n.*float32"),
    ({"observation.images.static": np.zeros((3, 200, 200), np.uint8)}, None, "static is no picture"),
    ({"observation.images.wrist": np.zeros((84, 84), np.uint8)}, None, "wrist is no picture"),
    ({"observation.images.wrist": np.zeros((84, 84, 4), np.uint8)}, None, "wrist is no picture"),
    ({"observation.images.wrist": None}, None, r"wrist is no picture(.*\n)+.*none, in"),
])  # fmt: skip
@pytest.mark.parametrize("build", [model, large])
def test_what_is_no_observation_is_refused(build, changed, told, said):
    seen = {name: value for name, value in (observation() | changed).items() if value is not None}
    with pytest.raises(UserError) as refused:
        build().eval().act([seen], INSTRUCTIONS[:1] if told is None else told)
    assert re.search(said, str(refused.value))


def test_a_sentence_is_no_list_of_instructions():
    net = model()
    with pytest.raises(UserError, match="states and instructions"):
        net.prompt(batch(net, 13) | {"instruction": "open the door"})  # 13 letters


@pytest.mark.parametrize("name", [name for name, config in PRESETS.items() if config.quantise is None])
def test_every_preset_is_built_of_its_sizes_alone_and_nothing_random_is_frozen_unasked(name):
    with torch.device("meta"):
        net = ReconVLA.build(PRESETS[name], STATS, pretrained=False, instructions=INSTRUCTIONS)
    frozen = [part for part in (net.vision_tower, net.vae) if part is not None and not any(p.requires_grad for p in part.parameters())]
    assert net.vision_tower.frozen == PRESETS[name].freeze_vision and len(frozen) == 2
    if PRESETS[name].vision == "tiny":
        with pytest.raises(UserError, match="must not be frozen"):
            ReconVLA.build(PRESETS[name], STATS, instructions=INSTRUCTIONS)
        with pytest.raises(UserError, match="tiny VAE"):
            ReconVLA.build(replace(PRESETS[name], freeze_vision=False, cache_features=False), STATS, instructions=INSTRUCTIONS)


def test_soft_bins_are_a_gaussian_around_the_bin_and_zero_is_plain_cross_entropy():
    net = model()
    labels = torch.tensor([[net.tokens.first + 100]])
    logits = torch.full((1, 1, len(net.text.tokenizer)), -30.0)
    distance = torch.arange(256) - 100
    logits[0, 0, net.tokens.first: net.tokens.vocab_size] = -0.5 * (distance / 2.0).float() ** 2  # the target itself: loss = its entropy
    assert net.cross_entropy(logits, labels).item() == pytest.approx(math.log(2 * math.sqrt(2 * math.pi * math.e)), abs=1e-3)
    plain = model(soft_bins=0.0)
    assert plain.cross_entropy(logits, labels).item() == pytest.approx(math.log(2 * math.sqrt(2 * math.pi)), abs=1e-3)


def test_with_a_vae_prepare_gives_its_posterior_and_the_loss_is_the_one_of_the_pictures():
    given = parts()
    cached, fresh = large(given, posterior="mean"), large(given, posterior="mean", cache_latents=False)
    data, pictures = batch(cached), batch(fresh)
    assert data["target_gaze"].dtype == np.float16 and data["target_gaze"].shape == (3, 8, 6, 6)
    assert pictures["target_gaze"].shape == (3, 42, 42, 3) and set(data) == set(pictures)
    losses = []
    for net, one in ((cached, data), (fresh, pictures)):
        torch.nn.init.normal_(net.denoiser.net.final_layer.linear.weight, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(3)
        losses.append(net.loss(one)["recon"].item())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # float16 on disk
    shown = cached.targets([observation(0)])
    assert shown.shape == (1, 12, 12, 3) and cached.reconstruct([observation(0)], INSTRUCTIONS[:1], steps=2).shape == shown.shape
    assert not any(parameter.requires_grad for parameter in cached.vae.parameters()) and not cached.train().vae.training


def test_latents_are_scaled_unfolded_and_drawn_anew():
    net = large()
    moments = torch.randn(2, 8, 6, 6)
    latents = reconvla_pictures.latents
    first, second = latents(net, moments), latents(net, moments)
    assert not torch.equal(first, second)
    mean = latents(large(posterior="mean"), moments)
    assert mean[0, 2 * 4 + 1 * 2 + 0, 1, 2] == pytest.approx(((moments[0, 2, 3, 4] - 0.11) * 0.36).item(), abs=1e-6)
    assert torch.allclose(torch.stack([latents(net, moments) for _ in range(400)]).mean(0), mean, atol=0.2)
    none = parts()
    none.vae.register_to_config(shift_factor=None)
    assert torch.allclose(latents(large(none, posterior="mean"), moments), mean + 0.11 * 0.36, atol=1e-6)


def test_features_of_a_frozen_tower_can_be_cached():
    given = parts()
    seen, cached = large(given), large(given, cache_features=True)
    data = batch(cached)
    assert "canvas" not in data and data["features"].shape == (3, 9, 24) and data["features"].dtype == np.float16
    assert cached.loss(data)["action"].item() == pytest.approx(seen.loss(batch(seen))["action"].item(), abs=2e-3)


def test_the_key_tells_frozen_weights_apart():
    given = parts()
    keys = [large(given).key, large(given, cache_features=True).key]
    assert keys == [large(parts()).key, large(parts(), cache_features=True).key] and keys[0] != keys[1]
    assert large(given, target="whole").key == keys[0] and large(given, cache_latents=False).key != keys[0]
    baseline, pictures = large(given, recon=False), large(given, cache_latents=False)
    assert baseline.key == large(given, recon=False, blind=True).key == {"seen": keys[0]["seen"]}, "without a VAE the same is seen"
    assert large(given, recon=False, cache_features=True).key == {"seen": keys[1]["seen"]}
    assert pictures.key["seen"] == keys[0]["seen"] and keys[1]["target"] == keys[0]["target"] != pictures.key["target"]
    given.vision.image_mean = [0.1, 0.2, 0.3]  # of a preprocessor_config.json: other pixels, the same weights
    assert [large(given).key == keys[0], large(given, cache_features=True).key == keys[1]] == [True, False]
    given.vision.image_mean = [0.5] * 3
    assert large(given, cache_features=True).key == keys[1]
    with torch.no_grad():
        given.vision.embeddings.patch_embedding.weight[0, 0, 0, 0] += 1
    assert [large(given).key == keys[0], large(given, cache_features=True).key == keys[1]] == [True, False]
    with torch.no_grad():
        given.vae.encoder.conv_in.weight[0, 0, 0, 0] += 1
    assert large(given).key["target"] != keys[0]["target"] and large(given).key["seen"] == keys[0]["seen"]
    assert fingerprint(given.vae) == fingerprint(given.vae.half())  # the same numbers, whatever holds them


def stored(place, episodes=2):
    """A store of frames with gaze boxes, three an episode."""
    with StoreWriter(place, 30) as writer:
        for i in range(episodes):
            seen = [observation(3 * i + k) for k in range(3)]
            columns = {name: np.stack([one[name] for one in seen]) for name in seen[0]} | {
                "action": np.zeros((3, 7), np.float32), "gaze.source": ["truth"] * 3}
            writer.add(Episode(INSTRUCTIONS[i % 3], columns, {"task_id": "task", "scene": "D"}))
    return Store(place)


def made_by(net, store, **how):
    return Batches(store, 6, 2, prepare=net.prepare, key=net.key, workers=1, log=lambda line: None, **how)


@pytest.mark.parametrize("cache_features", [False, True])
def test_rows_share_what_they_see_and_train_on_what_one_pass_gives(tmp_path, cache_features):
    """With a VAE: a baseline finds the canvas (or features) of the gaze row, adds nothing, and has the same numbers, in whatever order."""
    store, given, made = stored(tmp_path / "store"), parts(), []
    gaze, baseline = (large(given, cache_features=cache_features, recon=recon) for recon in (True, False))
    batch = made_by(gaze, store)(0)
    one_pass = [one for i in (0, 3) for one in gaze.prepare_many([observation(i + k) for k in range(3)])]  # an episode at a time
    assert set(one_pass[0]) == {"features" if cache_features else "canvas", "target_gaze", "target_whole"}
    assert all(np.array_equal(batch[name], np.stack([one_pass[row][name] for row in batch["row"]])) for name in one_pass[0])
    for net in (baseline, large(given, cache_features=cache_features, recon=False, blind=True), large(given, target="whole",
                cache_features=cache_features), gaze):  # fmt: skip
        net.prepare_many = lambda *_, **__: made.append(1)  # nothing is made anew
        found = made_by(net, store)(0)
        assert all(np.array_equal(found[name], batch[name]) for name in found if name in batch) and not made
        assert any(name.startswith("target_") for name in found) == net.config.recon
    folders = [path for path in (tmp_path / "store.prepared").iterdir() if path.is_dir()]
    assert sorted(sorted(file.stem for file in path.glob("*.npy")) for path in folders) == sorted(
        [["features" if cache_features else "canvas"], ["target_gaze", "target_whole"]])


def test_wrong_boxes_are_made_of_the_gaze_target_alone(tmp_path):
    store, given = stored(tmp_path / "store"), parts()
    assert set(made_by(large(given), store, corrupt=1.0).wrong) == {"target_gaze"}
    assert made_by(large(given, recon=False), store, corrupt=1.0).wrong == {}
    assert sum(path.is_dir() for path in (tmp_path / "store.prepared").iterdir()) == 3


def test_what_was_prepared_under_the_former_key_is_not_read_and_an_older_store_s_is_deleted(tmp_path):
    store, net, said = stored(tmp_path / "store"), large(), []
    made_by(net, store)
    for about in (tmp_path / "store.prepared").glob("*/about.json"):
        assert json.loads(about.read_text())["key"].startswith(("reconvla seen {", "reconvla target {"))  # it was "reconvla {"
    replace_columns(store.folder, lambda e: {"observation.state": e.columns["observation.state"] + 1}, ["observation.state"])
    Batches(Store(store.folder), 6, 2, prepare=net.prepare, workers=1, log=said.append)
    assert sum("earlier version" in line for line in said) == 2 == sum(path.is_dir() for path in (tmp_path / "store.prepared").iterdir())


def test_the_bytes_of_a_prepared_frame_are_those_that_all_rows_of_t4_write(tmp_path, monkeypatch):
    """SigLIP's and FLUX's configs without weights: the VAE's output has its shape, and no numbers."""
    with torch.device("meta"):
        given = build_parts(PRESETS["t4"], False, INSTRUCTIONS)
        nets = {row: ReconVLA(replace(PRESETS["t4"], **ROWS[row]), STATS, given) for row in (*T4.rows, *T4.few_rows)}
    monkeypatch.setattr(parts_of, "fingerprint", lambda *modules: "no weights")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no meta device
    shapes = reconvla_pictures.moments
    monkeypatch.setattr(reconvla_pictures, "moments", lambda net, picture: torch.zeros(shapes(net, picture).shape))
    store = stored(tmp_path / "store")
    for net in nets.values():
        made_by(net, store)
    arrays = [np.load(path, mmap_mode="r") for path in (tmp_path / "store.prepared").glob("*/*.npy")]
    assert sum(array.nbytes for array in arrays) == 6 * PREPARED["t4"]
    assert sorted(array.dtype.name for array in arrays) == ["float16", "float16", "uint8"]


def test_switches_of_what_is_rebuilt():
    """Which targets matter: a wrist row's, and those of a frame whose box is a full-frame fallback."""
    given, losses = parts(), {}
    for name, changes in (("default", {}), ("fallback", {"mask_fallback": False}), ("no wrist", {"target_wrist": False})):
        net = large(given, posterior="mean", **changes)
        for part in (net.denoiser.net.x_embedder.proj, net.denoiser.net.final_layer.linear):
            torch.nn.init.zeros_(part.weight)  # nothing is predicted: a token's error is its noise alone
        data = batch(net) | {"gaze.valid": np.array([True, True, False])}
        noise = reconvla_pictures.latents(net, torch.from_numpy(data["target_gaze"]).float()).repeat(4, 1, 1, 1)
        draw = net.denoiser.loss
        for changed in ("nothing", "wrist row", "fallback frame"):
            other = noise.clone()
            other[:, :, 2] += changed == "wrist row"
            other[2::3] += changed == "fallback frame"
            net.denoiser.loss = lambda *args, other=other, draw=draw, **kwargs: draw(*args, **kwargs, noise=other)
            losses[name, changed] = net.loss(data)["recon"].item()
    same = {name: [losses[name, part] == losses[name, "nothing"] for part in ("wrist row", "fallback frame")]
            for name in ("default", "fallback", "no wrist")}
    assert same == {"default": [False, True], "fallback": [False, False], "no wrist": [True, True]}
    assert [large(given, draws=draws).denoiser.draws for draws in (1, 4)] == [1, 4]


def test_box_head_learns_from_true_boxes_only():
    net = model(aux="box", recon=False).eval()
    data = batch(net) | {"gaze.valid": np.array([True, False, True])}
    before = net.loss(data)["box"].item()
    data["gaze.box"][1] = 1.0
    assert net.loss(data)["box"].item() == before
    data["gaze.box"][0] = [0.0, 0.0, 0.1, 0.1]
    out = net.loss(data)
    assert out["box"].item() != before and out["loss"].item() == pytest.approx((out["action"] + out["box"]).item())


def test_slots_train_beside_frozen_embeddings():
    given = parts()
    adapters.add(given.language, adapters.LoRA(rank=2), checkpointing=False)
    net = large(given, train_slots=True)
    plain = large(given)
    data = batch(net)
    torch.manual_seed(0)
    first = net.loss(data)
    torch.manual_seed(0)
    assert plain.loss(data)["action"].item() == first["action"].item()  # offsets start at zero
    first["loss"].backward()
    assert net.slots.grad.abs().sum((1, 2)).min() > 0 and net.decoder.get_input_embeddings().weight.grad is None


def test_a_language_model_in_16_bits_with_adapters_in_32_learns_and_acts():
    given = parts()
    adapters.add(given.language.to(torch.bfloat16), adapters.LoRA(rank=2), checkpointing=False)
    net = large(given, train_slots=True, aux="box")
    out = net.loss(batch(net))
    out["loss"].backward()
    assert all(torch.isfinite(value) for value in out.values()) and net.slots.grad.dtype == torch.float32
    assert net.act([observation()], INSTRUCTIONS[:1]).shape == (1, 2, 7)
    assert net.reconstruct([observation()], INSTRUCTIONS[:1], steps=2).shape == (1, 12, 12, 3)
    assert np.isfinite(attention_of(net, [observation()], INSTRUCTIONS[:1]).maps()).all()
    plain, seen = large(), []  # a loop's own mixed precision stays on where the weights are float32
    plain.decoder.model.layers[0].self_attn.q_proj.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        plain.loss(batch(plain))
    assert seen == [torch.bfloat16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_the_layers_of_a_language_model_in_16_bits_add_up_is_float32(dtype):
    """In training and, token by token, in acting; in float16 sums of published models overflow."""
    given, seen = parts(), []
    adapters.add(given.language.to(dtype), adapters.LoRA(rank=2), checkpointing=False)
    net = large(given, train_slots=True)
    for layer in (*net.decoder.model.layers, net.decoder.model.norm):
        layer.register_forward_hook(lambda _m, inputs, out: seen.extend(x.dtype for x in (*inputs, out) if isinstance(x, torch.Tensor)))
    net.loss(batch(net))
    assert len(seen) == 6 and set(seen) == {torch.float32}
    net.act([observation()], INSTRUCTIONS[:1])
    assert len(seen) > 6 * 15 and set(seen) == {torch.float32}


def test_a_language_model_that_trains_whole_is_held_in_32_bits(monkeypatch):
    """On a GPU "auto" is 16 bits, for what is frozen."""
    monkeypatch.setattr(towers, "compute_dtype", lambda: (torch.bfloat16, "said so"))
    with torch.device("meta"):
        whole, adapted = (ReconVLA.build(PRESETS[name], STATS, pretrained=False, instructions=INSTRUCTIONS) for name in ("paper", "t4"))
    kinds = lambda module: {parameter.dtype for parameter in module.parameters() if parameter.requires_grad}
    assert kinds(whole) == kinds(adapted) == {torch.float32}
    with torch.device("meta"):
        acting = restore(PRESETS["paper"], {}, whole.text.tokenizer, None)
    assert acting.language.lm_head.weight.dtype == torch.bfloat16, "to act is no step"
    assert adapted.decoder.lm_head.weight.dtype == whole.vision_tower.embeddings.patch_embedding.weight.dtype == torch.bfloat16


def test_frozen_parts_are_named_not_saved_and_another_one_is_refused(tmp_path):
    def named(seed=0, sha="a" * 64):
        given = parts(seed=seed)
        for part, name in ((given.vision, "siglip"), (given.language, "qwen"), (given.vae, "flux")):
            part.identity = {"name": name, "revision": "1", "sha256": sha}
        adapters.add(given.language, adapters.LoRA(rank=2), checkpointing=False)
        return given

    net = large(named()).eval()
    torch.nn.init.normal_(net.mm_projector[0].weight)
    adapted = {name: value for name, value in net.named_parameters() if "lora_" in name}
    for value in adapted.values():
        torch.nn.init.normal_(value)  # as if they had learned
    net.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith(("vision_tower", "vae")) for name in saved)
    assert {name for name in saved if name.startswith("decoder")} == adapted.keys() and adapted and "mm_projector.0.weight" in saved
    again = ReconVLA.load(tmp_path, named())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(UserError) as error:
        other = named()
        other.language.identity = {"name": "qwen", "revision": "2", "sha256": "b" * 64}
        other.vae.identity = None
        ReconVLA.load(tmp_path, other)
    assert all(said in str(error.value) for said in ("language", "revision 2", "b" * 64, "vae", "flux"))
    assert "siglip" not in str(error.value)


def test_a_model_of_unnamed_parts_is_saved_whole(tmp_path):
    net = large().eval()
    net.save(tmp_path)
    again = ReconVLA.load(tmp_path, parts(seed=5)).eval()
    assert np.array_equal(net.act([observation()], INSTRUCTIONS[:1]), again.act([observation()], INSTRUCTIONS[:1]))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


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


def test_a_batch_that_lacks_what_the_loss_needs_is_refused():
    """Without gaze.valid every full-frame box of a frame where none was found would count."""
    for changes, gone in (({}, "gaze.valid"), ({}, "target_gaze"), ({"aux": "box", "recon": False}, "gaze.valid"),
                          ({"aux": "box", "recon": False}, "gaze.box"), ({"aux": "mask", "target": "whole"}, "gaze.box")):
        net = model(**changes)
        with pytest.raises(UserError, match=f"the batch lacks {gone}"):
            net.loss({name: value for name, value in batch(net).items() if name != gone})
    for changes in ({"target": "whole"}, {"recon": False}, {"mask_fallback": False}):  # these learn from every frame
        net = model(**changes)
        assert net.loss({name: value for name, value in batch(net).items() if name not in ("gaze.valid", "gaze.box")})["loss"].isfinite()


def test_config_and_statistics_are_checked():
    for wrong, said in (({"target": "crop"}, "crop"), ({"static_tokens": 6}, "static_tokens"), ({"recon_weight": -1.0}, "recon_weight"),
                        ({"template": "long"}, "template"), ({"cache_features": True}, "cannot be cached")):
        with pytest.raises(UserError, match=said):
            replace(SMALL, **wrong)
    for wrong, said in (({"quantise": "nf4"}, "trains whole"), ({"lora_rank": 16}, "trains whole"), ({"dtype": "float99"}, "float99"),
                        ({"draws": 0}, "draws"), ({"gaze_margin": -0.6}, "gaze_margin"), ({"word_dropout": 2.0}, "word_dropout"),
                        ({"word_dropout": -1}, "word_dropout"), ({"soft_bins": -1}, "soft_bins"), ({"soft_bins": np.nan}, "soft_bins"),
                        ({"recon_weight": np.nan}, "recon_weight"), ({"aux_weight": np.inf}, "aux_weight"), ({"chunk": 0}, "chunk"),
                        ({"denoiser_depth": 0}, "denoiser_depth"), ({"denoiser_heads": 5}, "denoiser_width"), ({"grid": (6, 0)}, "grid"),
                        ({"latent_patch": 0}, "latent_patch"), ({"hidden": 30, "heads": 4}, "hidden"), ({"channels": 6}, "channels"),
                        ({"acting_static_rows": 0}, "acting_static_rows"), ({"acting_static_rows": 400}, "acting_static_rows"),
                        ({"height": 1}, "static_tokens"), ({"lora_alpha": 0, "lora_rank": 1, "language": "x/y"}, "lora_alpha")):
        with pytest.raises(UserError, match=said):
            replace(SMALL, **wrong)
    for name, wrong in (("chunk", "5"), ("chunk", 5.0), ("chunk", True), ("blind", "false"), ("recon_weight", "1"), ("grid", 6)):
        config = replace(SMALL)
        object.__setattr__(config, name, wrong)  # as from a JSON file: in tests kinds are checked before
        with pytest.raises(UserError, match=name):
            config.__post_init__()
    replace(SMALL, recon_weight=1, soft_bins=0, acting_static_rows=95, grid=[6, 3], word_dropout=1)  # whole numbers are numbers
    replace(SMALL, language="Qwen/Qwen2.5-0.5B", quantise="nf4", lora_rank=16)
    with pytest.raises(UserError, match="another size"):
        ReconVLA.build(SMALL, {"observation.state": {"mean": [0.0] * 8, "std": [1.0] * 8}}, instructions=INSTRUCTIONS)
    with pytest.raises(UserError, match="another grid"):
        large(grid=(4, 3))
    for preset in PRESETS.values():  # token rows are whole pixel rows, as nearly as the canvas allows
        assert abs(preset.static_rows / preset.height - preset.static_tokens / preset.grid[0]) < 1 / preset.height


def test_the_paper_in_nf4_is_the_paper_with_a_frozen_language_model_and_trains_what_memory_py_counts():
    paper, nf4 = PRESETS["paper"], PRESETS["paper_nf4"]
    assert nf4 == replace(paper, quantise="nf4", lora_rank=16, train_slots=True) and paper.quantise is None and paper.lora_rank == 0
    with torch.device("meta"):  # its config alone; bitsandbytes takes no meta tensors, and what trains is not quantised
        net = ReconVLA.build(replace(nf4, quantise=None), STATS, pretrained=False, instructions=INSTRUCTIONS)
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    record = json.loads((Path(__file__).parents[1] / "results/benchmarks/memory.json").read_text())
    for case, c in (("t4", PRESETS["t4"]), ("paper, NF4", nf4)):
        told = [record["configs"][case][name] for name in ("vision", "language", "width", "depth", "heads", "draws", "rank", "quantise")]
        assert told == [c.vision, c.language, c.denoiser_width, c.denoiser_depth, c.denoiser_heads, c.draws, c.lora_rank, c.quantise], case
    recorded = record["cases"]["paper, NF4"]
    assert trained == pytest.approx(1e6 * recorded["trainable_millions"], abs=1000)
    assert recorded["micro_batch"] == 1 and recorded["fits"]


def test_reconstructions_are_pictures_laid_out_like_the_target():
    net = model()
    drawn = net.reconstruct([observation(i) for i in range(2)], INSTRUCTIONS[:2], steps=3)
    assert drawn.shape == (2, *batch(net)["target_gaze"].shape[1:]) and drawn.dtype == np.uint8
    with pytest.raises(UserError, match="no reconstruction head"):
        model(recon=False).reconstruct([observation()], INSTRUCTIONS[:1])


def test_samples_of_a_wild_denoiser_stay_within_the_bound():
    """Errors of a small denoiser add up over the steps; the predicted clean latents are bounded, so the samples are."""
    net = large().eval()
    with torch.no_grad():
        for parameter in net.denoiser.net.final_layer.linear.parameters():
            parameter.normal_(0, 5)
    seen, draw = [], net.denoiser.sample
    net.denoiser.sample = lambda *args, **kwargs: seen.append(draw(*args, **kwargs)) or seen[-1]
    torch.manual_seed(0)
    net.reconstruct([observation()], INSTRUCTIONS[:1], steps=20)
    hidden = torch.randn(1, len(seen[0][0, 0].flatten()), net.decoder.config.hidden_size)
    assert seen[0].abs().max() <= CLIP + 1e-3 < draw(hidden, 20).abs().max()


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
