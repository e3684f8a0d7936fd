"""VGGT's aggregator against numbers of the official code (tests/vectors/vggt/README.md), and its file. Run: pytest tests/test_vggt.py"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from repro.machine import UserError
from repro.models import pretrained, vggt_file
from repro.models.vggt import Aggregator, Alternating, VGGTConfig

VECTORS = Path(__file__).parent / "vectors" / "vggt"
SMALL = VGGTConfig(image=42, patch=14, dim=32, depth=3, heads=4, hidden=128, registers=4, tower_depth=2)


def weight(name, shape):
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)).astype(np.float32)
    if name.endswith("gamma"):
        x = 0.5 + 0.2 * x
    elif len(shape) == 1:
        x = 0.1 * x + (1.0 if "norm" in name.rsplit(".", 2)[-2] and name.endswith("weight") else 0.0)
    elif name.endswith(("token", "tokens", "embed")):
        x = 0.5 * x
    else:
        x = x * min(0.7, 1.5 / int(np.prod(shape[1:])) ** 0.5)
    return torch.from_numpy(np.asarray(x, np.float32))


def weights():
    return {name: weight(name, shape) for name, shape in json.loads((VECTORS / "names.json").read_text())["small"].items()}


CASES = {  # name: (sizes, shape of the pictures, numbers of a layer that the vectors hold: every so many)
    "square": (SMALL, (1, 1, 3, 42, 42), 1), "wide": (SMALL, (2, 2, 3, 42, 56), 1),
    "deep": (VGGTConfig(image=42, patch=14, dim=64, depth=24, heads=4, hidden=256, registers=4, tower_depth=2), (1, 2, 3, 42, 56), 8),
    "full": (VGGTConfig(), (1, 2, 3, 224, 224), 1009)}  # fmt: skip


def case(name):
    """(sizes, shape of the pictures, official numbers of each layer)."""
    config, shape, _ = CASES[name]
    official = np.load(VECTORS / f"{name if name in ('deep', 'full') else 'aggregator'}.npz")
    return config, shape, [official[f"{name}.{i}"] for i in range(config.depth)]


def sample(name, layer):
    every = CASES[name][2]
    return layer if every == 1 else layer.reshape(-1)[::every]


def images(shape):
    random = np.random.RandomState(3)
    if shape == CASES["wide"][1]:
        random.rand(*CASES["square"][1])  # they were drawn one after the other
    return torch.from_numpy(random.rand(*shape).astype(np.float32))


def made(config):
    """The aggregator with `weight`s."""
    with torch.device("meta"):
        net = Aggregator(config)
    net = net.to_empty(device="cpu").eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            tensor.copy_(weight(name, tensor.shape))
    return net


@pytest.fixture(scope="module")
def model():
    net = Aggregator(SMALL).eval()
    net.load_state_dict(weights(), strict=True)
    return net


@pytest.mark.parametrize("name", ["square", "wide", "deep"])  # "full": benchmarks/vggt_exactness.py
def test_every_layer_gives_the_official_numbers(name):
    config, shape, official = case(name)
    with torch.no_grad():
        found = made(config)(images(shape))
    assert len(found) == config.depth == len(official)
    for layer, numbers in zip(found, official, strict=True):
        assert sample(name, layer.numpy()).shape == numbers.shape
        assert np.abs(sample(name, layer.numpy()) - numbers).max() < 1e-4


def test_names_and_shapes_are_those_of_the_official_model_small_and_full():
    about = json.loads((VECTORS / "names.json").read_text())
    shapes = lambda net: {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    assert shapes(Aggregator(SMALL)) == about["small"]
    with torch.device("meta"):
        full = shapes(Aggregator())
    assert len(full) == about["full"]["tensors"] and sum(int(np.prod(shape)) for shape in full.values()) == about["full"]["numbers"]
    assert hashlib.sha256(json.dumps(sorted(full.items())).encode()).hexdigest() == about["full"]["sha256"]
    assert vggt_file.config_of({name: tuple(shape) for name, shape in full.items()}, "test") == VGGTConfig()


def written(folder, **changes):
    """A file of VGGT-1B's layout, heads included."""
    tensors = {vggt_file.PREFIX + name: tensor for name, tensor in weights().items()}
    tensors |= {"camera_head.token_norm.weight": torch.ones(64), "depth_head.norm.weight": torch.ones(64)}
    tensors |= {name: tensor for name, tensor in changes.items() if tensor is not None}
    for name, tensor in changes.items():
        if tensor is None:
            tensors.pop(name)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_file_of_the_published_layout_loads_strictly_and_frozen(tmp_path, model):
    loaded = vggt_file.load(written(tmp_path / "vggt"))
    assert loaded.config == SMALL and len(loaded.identity["sha256"]) == 64
    assert not any(p.requires_grad for p in loaded.parameters()) and not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    blocks = vggt_file.load(tmp_path / "vggt" / "model.safetensors", blocks_only=True)
    assert type(blocks) is Alternating and len(blocks.state_dict()) == 2 * 3 * 18
    assert torch.equal(blocks.global_blocks[2].mlp.fc2.weight, model.global_blocks[2].mlp.fc2.weight)
    half = vggt_file.load(tmp_path / "vggt", dtype=torch.float16, blocks_only=True)
    assert half.frame_blocks[0].attn.qkv.weight.dtype == torch.float16


@pytest.mark.parametrize("changes, words", [
    ({"aggregator.global_blocks.1.ls2.gamma": None}, "global_blocks.1.ls2.gamma: expected (32,), found absent"),
    ({"aggregator.frame_blocks.0.attn.proj.weight": torch.zeros(32, 30)}, "expected (32, 32), found (32, 30)"),
    ({"aggregator.extra": torch.zeros(1)}, "aggregator.extra: expected absent"), ({"other.weight": torch.zeros(1)}, "unexpected: other"),
    ({"aggregator.camera_token": None}, "holds no VGGT aggregator")])  # fmt: skip
@pytest.mark.parametrize("blocks_only", [False, True])
def test_a_file_that_does_not_fit_is_refused(tmp_path, changes, words, blocks_only):
    with pytest.raises(UserError) as error:
        vggt_file.load(written(tmp_path / "vggt", **changes), blocks_only=blocks_only)
    assert words in str(error.value) and vggt_file.NAME in str(error.value)


def test_a_pinned_name_is_found_among_the_kaggle_inputs_by_content(tmp_path, monkeypatch):
    """In any safetensors with the aggregator's names and the published sha256; else the hub is asked, for the pinned commit."""
    inputs = tmp_path / "input"
    monkeypatch.setattr(pretrained, "KAGGLE_INPUT", inputs)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, revision, **_: asked.append((name, revision)) or str(inputs))
    monkeypatch.setattr(pretrained, "silent", lambda: None)
    written(tmp_path / "a")
    file = inputs / "vggt" / "pytorch" / "1b" / "1" / "weights.safetensors"
    file.parent.mkdir(parents=True)
    (tmp_path / "a" / "model.safetensors").rename(file)
    save_file({"blocks.0.weight": torch.ones(2)}, inputs / "other.safetensors")
    (inputs / "broken.safetensors").write_bytes(b"x")
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(pretrained.PUBLISHED, vggt_file.NAME, ("0" * 40, sha, {}))
    found = vggt_file.find()
    assert found.file == file and found.identity == {"name": vggt_file.NAME, "revision": None, "sha256": sha} and found.config == SMALL
    assert vggt_file.load(blocks_only=True).identity["sha256"] == sha and asked == []
    monkeypatch.setitem(pretrained.PUBLISHED, vggt_file.NAME, ("0" * 40, "a" * 64, {}))
    with pytest.raises(UserError, match="hold a VGGT aggregator, but not") as error:
        vggt_file.find()
    assert str(file) in str(error.value) and sha in str(error.value) and asked == []
    file.unlink()
    with pytest.raises(UserError, match="not read"):
        vggt_file.find()
    assert asked == [(vggt_file.NAME, "0" * 40)]


def test_an_error_says_only_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "KAGGLE_INPUT", tmp_path / "input")
    looked = []
    for there, revision in ((False, None), (True, None), (True, "1" * 40)):
        if there:
            (tmp_path / "input").mkdir(exist_ok=True)
        with pytest.raises(UserError, match="looked in") as error:
            vggt_file.find(revision=revision)
        looked.append(str(tmp_path / "input") in str(error.value))
        assert (revision or pretrained.PUBLISHED[vggt_file.NAME][0]) in str(error.value)
    assert looked == [False, True, False]


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(UserError, match="no VGGT weights in"):
        vggt_file.load(tmp_path)


def tokens(net, n=9, batch=2):
    torch.manual_seed(2)
    return torch.randn(batch, n, 32), torch.randint(0, 4, (1, n, 2)), torch.tensor([0] * 5 + [1] * (n - 5))


def test_frame_blocks_read_their_own_frame_and_nobody_reads_what_is_not_real(model):
    x, at, frames = tokens(model)
    other = x.clone()
    other[:, 7] += 1
    with torch.no_grad():
        one, two = (next(model.layers(given, at, frames)) for given in (x, other))
        assert torch.equal(one[0][:, :5], two[0][:, :5]) and not torch.equal(one[0][:, 5:], two[0][:, 5:])
        assert not torch.allclose(one[1][:, :5], two[1][:, :5])
        real = torch.ones(2, 9, dtype=torch.bool)
        real[0, 7] = False
        masked, masked2 = (Alternating.forward(model, given, at, frames, real) for given in (x, other))
        keep = torch.arange(9) != 7
        assert torch.equal(masked[0, keep], masked2[0, keep]) and not torch.allclose(masked[1, keep], masked2[1, keep])


def test_recorded_weights_are_the_ones_used(model):
    x, at, frames = tokens(model)
    attention = model.global_blocks[0].attn
    with torch.no_grad():
        plain = next(model.layers(x, at, frames))[1]
        attention.record = []
        try:
            recorded = next(model.layers(x, at, frames))[1]
            (seen,) = attention.record
        finally:
            attention.record = None
    assert torch.allclose(plain, recorded, atol=1e-5) and seen.shape == (2, 4, 9, 9)
    assert torch.allclose(seen.sum(-1), torch.ones(2, 4, 9))


def test_checkpointing_changes_no_gradient(model):
    net = Alternating(32, 2, 4, 64, scale=0.5).train()
    x, at, frames = tokens(net)
    found = []
    for on in (False, True):
        net.checkpointing = on
        net.zero_grad()
        net(x, at, frames).square().sum().backward()
        found.append([p.grad.clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_pictures_and_widths_that_do_not_fit_are_refused(model):
    with pytest.raises(UserError, match="multiples"):
        model(torch.rand(1, 1, 3, 40, 42))
    with pytest.raises(UserError, match="width"):
        Alternating(30, 1, 4, 60)
