"""ReconVLA against numbers of the official code (tests/vectors/reconvla/README.md). Run: pytest tests/test_reconvla_exact.py"""

import hashlib
import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from repro.machine import UserError
from repro.models import reconvla_pictures, towers
from repro.models.action_tokens import normalise_state
from repro.models.denoiser import Denoiser
from repro.models.official import STATISTICS, load_official
from repro.models.prompt import IGNORE, IMAGE, Prompt, small_tokenizer
from repro.models.reconvla import PRESETS, ReconVLA
from repro.models.towers import VisionTower

VECTORS = Path(__file__).parent / "vectors" / "reconvla"
STATS = {"observation.state": {"mean": [0.0] * 15, "std": [(1 / 3) - 1e-5] * 15}}  # normalised state = state
INSTRUCTIONS = ["lift the red block", "open the drawer and push the button"]


def weight(name: str, shape: list[int]) -> torch.Tensor:
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if len(shape) == 1:
        return torch.from_numpy(0.1 * x + (1.0 if "norm" in name.rsplit(".", 2)[-2] and name.endswith("weight") else 0.0))
    return torch.from_numpy(x * min(0.7, 1.5 / int(np.prod(shape[1:])) ** 0.5))


# ---- denoiser ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def denoiser():
    net = Denoiser(hidden_dim=24, latent_dim=8, grid=(3, 3), width=64, depth=2, heads=16)
    with torch.no_grad():
        for name, tensor in net.net.state_dict().items():
            if name != "pos_embed":
                tensor.copy_(weight(f"net.{name}", tensor.shape))
    random = np.random.RandomState(1)
    latents = torch.from_numpy(random.standard_normal((3, 8, 3, 3)).astype(np.float32))
    hidden = torch.from_numpy((0.01 * random.standard_normal((3, 9, 24))).astype(np.float32))
    return net, latents, hidden, np.load(VECTORS / "denoiser.npz")


def test_denoiser_gives_the_official_output_and_positions(denoiser):
    net, latents, hidden, official = denoiser
    assert np.abs(net.net.pos_embed[0].numpy() - official["pos_embed"]).max() < 1e-6
    with torch.no_grad():
        output = net.net(latents, torch.tensor([0, 417, 999]), hidden).numpy()
    assert np.abs(output - official["output"]).max() < 1e-5


def test_denoiser_gives_the_official_loss(denoiser):
    net, latents, hidden, official = denoiser
    torch.manual_seed(5)
    assert net.loss(latents, hidden, torch.ones(3, dtype=torch.bool)).item() == pytest.approx(official["loss"].mean(), rel=1e-6)


PAPER = dict(hidden_dim=3584, latent_dim=64, grid=(27, 27), width=1024, depth=3)


def paper_weights(net: torch.nn.Module) -> None:
    """The last map divided by 4, so that outputs are as large as noise."""
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name != "pos_embed":
                tensor.copy_(weight(f"net.{name}", tensor.shape) / (4 if name.startswith("final_layer.linear") else 1))


def paper_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, hidden states, noise levels."""
    random = np.random.RandomState(1)
    latents = torch.from_numpy(random.standard_normal((2, 64, 27, 27)).astype(np.float32))
    return latents, torch.from_numpy((0.01 * random.standard_normal((2, 729, 3584))).astype(np.float32)), torch.tensor([17, 803])


def paper_sized() -> dict[str, np.ndarray | float]:
    """Output and loss of the denoiser at the paper's sizes."""
    net, (latents, hidden, levels) = Denoiser(heads=16, draws=1, **PAPER), paper_inputs()
    paper_weights(net.net)
    with torch.no_grad():
        output = net.net(latents, levels, hidden).numpy()
        torch.manual_seed(5)
        loss = net.loss(latents, hidden, torch.ones(2, dtype=torch.bool)).item()
    return {"output": output.reshape(-1)[::997], "loss": loss}


def test_denoiser_of_the_papers_sizes_gives_the_official_output_and_loss():
    official, ours = np.load(VECTORS / "denoiser_paper.npz"), paper_sized()
    assert np.abs(official["output"]).max() > 2 and np.abs(ours["output"] - official["output"]).max() < 1e-5
    assert abs(ours["loss"] - official["loss"].mean()) < 1e-5


def test_sampler_with_all_levels_is_the_official_one(denoiser):
    net, _, hidden, official = denoiser
    found = net.sample(hidden[:1], steps=1000, generator=torch.Generator().manual_seed(6)).numpy()
    assert np.abs(found / official["sampled"] - 1).max() < 2e-3  # 1000 steps with random weights grow to 1e4 and amplify rounding


# ---- prompt ------------------------------------------------------------------------------------------------------------------


class Recorded:
    """A tokenizer that knows the ids of a few pieces of text."""

    unk_token_id = None

    def __init__(self, about: dict):
        self.vocab_size, self.texts, self.end = about["vocab_size"], about["texts"], about["end"]

    def encode(self, text, add_special_tokens=False):
        return self.texts[text]

    def convert_tokens_to_ids(self, token):
        return self.end


def test_prompt_and_labels_are_the_official_ids():
    about = json.loads((VECTORS / "prompt.json").read_text())
    prompt = Prompt(Recorded(about), "official")
    assert prompt.answer == [35560, 3846, 2821, 25] and prompt.end == 151645 and prompt.tokens.first == 151387
    assert STATISTICS == {name: about[name] for name in ("mean", "std")}, "what a released checkpoint's state is scaled by"
    for sample in about["samples"]:
        state = normalise_state(np.array(sample["state"]), np.array(about["mean"]), np.array(about["std"]))
        ids, labels = prompt.sample(sample["instruction"], state, np.array(sample["action"]))
        assert ids == sample["ids"] and ids.count(IMAGE) == 1
        assert labels == [IGNORE] * sample["first_label"] + sample["labels"] and len(sample["labels"]) == 36


# ---- canvas ------------------------------------------------------------------------------------------------------------------


def test_canvas_and_target_have_the_official_pixels_and_the_server_seam_is_a_switch():
    official = json.loads((VECTORS / "canvas.json").read_text())["pictures"]
    random = np.random.RandomState(2)
    random.randint(0, 256, 0)
    static = np.repeat(np.repeat(random.randint(0, 256, (40, 40, 3)), 5, 0), 5, 1).astype(np.uint8)
    wrist = np.repeat(np.repeat(random.randint(0, 256, (28, 28, 3)), 3, 0), 3, 1).astype(np.uint8)
    one = {"observation.images.static": static, "observation.images.wrist": wrist}
    canvas = reconvla_pictures.canvas
    digest = lambda picture: hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()
    for size, suffix in ((334, ""), (384, "_384")):
        net = ReconVLA.__new__(ReconVLA)  # only its pictures
        torch.nn.Module.__init__(net)
        net.config, net.image_size = PRESETS["paper"], (size, size)
        assert net.config.static_rows == 173
        assert digest(canvas(net, one)) == digest(canvas(net, one, acting=True)) == official["canvas" + suffix]["sha256"]
        assert digest(canvas(net, one, static[60:101, 40:81])) == official["target" + suffix]["sha256"]
        net.config = replace(net.config, acting_static_rows=167)
        assert digest(canvas(net, one)) == official["canvas" + suffix]["sha256"]
        assert digest(canvas(net, one, acting=True)) == official["server" + suffix]["sha256"]


# ---- the whole model ---------------------------------------------------------------------------------------------------------


ABOUT = json.loads((VECTORS / "model.json").read_text())
FIELDS = dict(chunk=1, action_dim=6, height=42, width=42)


def folder_of(path: Path, drop=(), add=(), shards: int = 2, **config) -> Path:
    """A checkpoint folder in the official layout, with the weights that the numbers were made with."""
    tensors = {name: weight(name, shape) for name, shape in ABOUT["shapes"].items() if not name.endswith("pos_embed")}
    net = Denoiser(48, 16, (3, 3), 64, 2, 16).net
    tensors |= {name: net.pos_embed.clone() for name in ABOUT["shapes"] if name.endswith("pos_embed")}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in drop} | dict(add)
    path.mkdir(exist_ok=True)
    if shards == 1:
        save_file(tensors, path / "model.safetensors")
    else:
        names, index = sorted(tensors), {}
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            save_file({name: tensors[name] for name in names[i::shards]}, path / file)
            index |= dict.fromkeys(names[i::shards], file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (path / "config.json").write_text(json.dumps({"model_type": "recon_qwen2", **ABOUT["language"], **ABOUT["config_keys"],
                                                  "mm_inv_projector_type": "denoiser_vit2x", **config}))  # the vectors' has a depth of 2
    return path


def small_parts():
    tower = VisionTower(SiglipVisionModel(SiglipVisionConfig(**ABOUT["vision"])), [0.5] * 3, [0.5] * 3, {"name": "small", "sha256": None})
    return {"vision": tower, "vae": AutoencoderKL.from_config(ABOUT["vae"]),
            "tokenizer": small_tokenizer(INSTRUCTIONS, "official", merges=100)}


def data():
    """The batch of the official run."""
    random = np.random.RandomState(4)
    state, action = random.uniform(-1, 1, (2, 15)), random.uniform(-1, 1, (2, 6))
    random = np.random.RandomState(3)
    canvas, target = (random.randint(0, 256, (2, 42, 42, 3)).astype(np.uint8) for _ in range(2))
    blocky = lambda picture: np.repeat(np.repeat(picture[:, ::6, ::6], 6, 1), 6, 2)
    return {"canvas": blocky(canvas), "target_gaze": blocky(target), "state": state, "action": action[:, None].astype(np.float64),
            "instruction": INSTRUCTIONS, "gaze.valid": np.ones(2, bool)}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_official(folder_of(tmp_path_factory.mktemp("official") / "checkpoint"), STATS, **small_parts(), **FIELDS)


def test_an_official_checkpoint_gives_the_official_losses(loaded):
    loaded.train()
    batch = data()
    assert (loaded.config.grid, loaded.config.static_tokens) == ((3, 3), 2)  # the seam's row counts as the static camera's
    for i, instruction in enumerate(INSTRUCTIONS):  # the same conversation went in
        assert loaded.text.sample(instruction, batch["state"][i], batch["action"][i]) == (ABOUT["ids"][i], ABOUT["labels"][i])
    torch.manual_seed(11)
    out = loaded.loss(batch)
    assert out["action"].item() == pytest.approx(ABOUT["lm_loss"], rel=1e-6, abs=1e-6)
    assert out["recon"].item() == pytest.approx(ABOUT["vm_loss"], rel=1e-6, abs=1e-6)
    assert out["loss"].item() == pytest.approx(ABOUT["loss"], rel=1e-6, abs=1e-6)
    moments = reconvla_pictures.moments(loaded, torch.from_numpy(batch["target_gaze"])).ravel()[::7][:40]
    assert np.abs(moments.numpy() - ABOUT["moments"]).max() < 1e-5


def test_greedy_tokens_are_the_official_ones(loaded):
    loaded.eval()
    with torch.inference_mode():
        inputs, mask = loaded.prompt(data())
        for fast in (True, False):
            loaded.decoder.set_attn_implementation("sdpa" if fast else "eager")
            assert loaded._read(inputs, mask, 12, False).tolist() == ABOUT["greedy"]
        loaded.decoder.set_attn_implementation("sdpa")


def test_one_shard_or_many_and_the_denoiser_is_read_too(loaded, tmp_path):
    one = load_official(folder_of(tmp_path / "one", shards=1), STATS, **small_parts(), **FIELDS)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), loaded.state_dict().values(), strict=True))
    theirs = "model.mm_inv_projector.net.final_layer.linear.weight"
    assert torch.equal(one.denoiser.net.final_layer.linear.weight, weight(theirs, ABOUT["shapes"][theirs]))


def test_an_official_model_that_was_saved_is_loaded_by_published_names(loaded, tmp_path, monkeypatch):
    """Its config.json names a folder of the authors' machine, where nobody finds a tower."""
    loaded.eval().save(tmp_path)
    asked, small = [], small_parts()
    monkeypatch.setattr(towers, "vision", lambda name, *_, **__: asked.append(name) or small["vision"])
    monkeypatch.setattr(towers, "language", lambda name, *_, **__: asked.append(name) or (Qwen2ForCausalLM(loaded.decoder.config), None))
    again = ReconVLA.load(tmp_path).eval()
    assert asked == [PRESETS["paper"].vision, PRESETS["paper"].language]
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), again.state_dict().values(), strict=True))


def test_all_that_does_not_fit_is_listed_in_one_error(tmp_path):
    folder = folder_of(tmp_path / "broken", drop=("model.norm.weight", "model.mm_projector.0.bias"),
                       add={"model.image_newline": torch.zeros(48), "model.mm_projector.2.weight": torch.zeros(3, 3)}.items())
    with pytest.raises(UserError) as error:
        load_official(folder, STATS, **small_parts(), **FIELDS)
    for said in ("missing: decoder.model.norm.weight", "missing: mm_projector.0.bias", "unexpected: model.image_newline",
                 "misshapen: model.mm_projector.2.weight (3, 3), expected (48, 48)"):
        assert said in str(error.value)
    net = [name for name in ABOUT["shapes"] if name.startswith("model.mm_inv_projector.")]
    for gone in (net, [name for name in net if ".blocks.1." in name]):  # config.json says that there is a denoiser of two blocks
        with pytest.raises(UserError) as error:
            load_official(folder_of(tmp_path / f"without {len(gone)}", drop=gone), STATS, **small_parts(), **FIELDS)
        assert str(error.value).count("missing: denoiser.net.") >= len(gone) - 1 and "blocks.1.attn" in str(error.value)
    with pytest.raises(UserError, match="unexpected: model.mm_inv_projector.net"):
        load_official(folder_of(tmp_path / "off", recon_enable=False), STATS, **small_parts(), **FIELDS)
    with pytest.raises(UserError, match="does not say with what denoiser"):
        load_official(folder_of(tmp_path / "other", mm_inv_projector_type="mlp"), STATS, **small_parts(), **FIELDS)
    positions = "model.mm_inv_projector.net.pos_embed"
    with pytest.raises(UserError, match="positions"):
        load_official(folder_of(tmp_path / "moved", add={positions: torch.zeros(1, 9, 64)}.items()), STATS, **small_parts(), **FIELDS)
    with pytest.raises(UserError, match=r"config.json"):
        load_official(tmp_path, STATS)


def spoilt(file: Path, spoil) -> None:
    tensors = load_file(file)
    spoil(tensors["model.norm.weight"], tensors)
    save_file(tensors, file)


DAMAGED = {  # what is done to a folder of one file: what the error says
    "weights cut": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]), "model.safetensors is"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "0 bytes"),
    "config torn": (lambda f: (f / "config.json").write_text((f / "config.json").read_text()[:40]), "config.json cannot be read"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json cannot be read"),
    "config of another": (lambda f: (f / "config.json").write_text('{"image_embed_len": "9"}'), "image_embed_len '9'"),
    "no square": (lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace(
        '"image_embed_len": 9', '"image_embed_len": 10')), "no square grid"),
    "config odd": (lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace(
        '"num_attention_heads": ', '"num_attention_heads": "x", "was": ')), "describes no Qwen2"),
    "index bare": (lambda f: (f / "model.safetensors.index.json").write_text('{"metadata": {}}'), "index.json names no files"),
    "index torn": (lambda f: (f / "model.safetensors.index.json").write_text('{"weig'), "index.json cannot be read"),
    "a number lost": (lambda f: spoilt(f / "model.safetensors", lambda norm, _: norm[3:4].fill_(np.nan)), "1 of 48 are not"),
    "a number too large": (lambda f: spoilt(f / "model.safetensors", lambda norm, _: norm[3:5].fill_(np.inf)), "2 of 48 are not"),
    "whole numbers": (lambda f: spoilt(f / "model.safetensors", lambda norm, all: all.update({"model.norm.weight": norm.long()})), "int64"),
}  # fmt: skip


@pytest.mark.parametrize("done", DAMAGED)
def test_a_damaged_folder_is_an_error_that_names_the_file_and_what_to_do(done, tmp_path):
    spoil, said = DAMAGED[done]
    folder = folder_of(tmp_path / "checkpoint", shards=1)
    spoil(folder)
    with pytest.raises(UserError) as error:
        load_official(folder, STATS, **small_parts(), **FIELDS)
    assert said in str(error.value) and str(folder) in str(error.value) and "download the folder again" in str(error.value)


def test_a_folder_without_tokenizer_and_a_field_that_is_none_are_errors(tmp_path):
    folder, parts = folder_of(tmp_path / "checkpoint", shards=1), small_parts()
    with pytest.raises(UserError, match="tokenizer of the language model .*checkpoint cannot be read"):
        load_official(folder, STATS, **{**parts, "tokenizer": None}, **FIELDS)
    with pytest.raises(UserError, match="statistics say nothing of the state"):
        load_official(folder, {}, **parts, **FIELDS)
    with pytest.raises(UserError, match="this dtype"):
        load_official(folder, STATS, torch.int8, **parts, **FIELDS)
    with pytest.raises(UserError, match="found: chunks"):
        load_official(folder, STATS, **parts, **FIELDS, chunks=2)
    parts["tokenizer"].save_pretrained(folder)
    assert len(load_official(folder, STATS, **{**parts, "tokenizer": None}, **FIELDS).text.tokenizer) == len(parts["tokenizer"])
