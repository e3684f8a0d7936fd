"""VGGT-VLA: model, graph, cached language, checkpoints, attention. Run: pytest tests/test_vggt_vla.py"""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Config, Dinov2Model, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from repro.machine import UserError
from repro.models import fingerprint, sentences, towers, vggt, vggt_file, vggt_vla_checkpoint
from repro.models import pretrained as files
from repro.models.graph import GraphConvolution, chain_edges, grid_edges, normalised
from repro.models.prompt import small_tokenizer
from repro.models.vggt_vla import PRESETS, VGGTVLA
from repro.models.vggt_vla_attention import attention, record

WORDS = ["lift the red block", "open the drawer", "push the blue block"]
STATS = {"observation.state": {"mean": [0.1] * 15, "std": [0.5] * 15}}
SMALL = replace(PRESETS["vggt_tiny"], image_size=32, grid=(2, 2), width=32, heads=2, depth=1, backbone_width=32, backbone_heads=2,
                queries=4, head_width=32, channels=8, keypoints=4, language_width=16, text_length=12, chunk=3)  # fmt: skip


def build(seed=0, **changes):
    torch.manual_seed(seed)
    return VGGTVLA.build(replace(SMALL, **changes), STATS, WORDS)


def observation(seed=0):
    rng = np.random.default_rng(seed)
    return {"observation.images.static": rng.integers(0, 256, (50, 50, 3), dtype=np.uint8),
            "observation.images.wrist": rng.integers(0, 256, (40, 40, 3), dtype=np.uint8),
            "observation.state": rng.standard_normal(15).astype(np.float32)}  # fmt: skip


OBSERVATIONS = [observation(i) for i in range(3)]


def batch(model, seed=0):
    rng, c = np.random.default_rng(seed), model.config
    made = model.prepare_many(OBSERVATIONS)
    action = rng.uniform(-1, 1, (3, c.chunk, c.action_dim)).astype(np.float32)
    action[..., -1] = np.sign(action[..., -1])
    return {name: np.stack([one[name] for one in made]) for name in made[0]} | {
        "state": np.stack([one["observation.state"] for one in OBSERVATIONS]), "instruction": WORDS, "action": action,
        "gaze.box": np.tile(np.float32([0.2, 0.2, 0.4, 0.6]), (3, 1)), "gaze.valid": np.array([True, True, False])}  # fmt: skip


# ---- pretrained stand-ins: small, written to disk, read like the published ones ------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Folders: "qwen3" of hidden 32, "qwen2" of hidden 24 (the pair of the 0 % story), "dinov2", "vggt"."""
    top = tmp_path_factory.mktemp("shelf")
    tokenizer = small_tokenizer(WORDS, "short")
    common = dict(vocab_size=len(tokenizer), intermediate_size=40, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                  initializer_range=0.3, bos_token_id=None, eos_token_id=None)  # fmt: skip
    torch.manual_seed(3)
    Qwen3ForCausalLM(Qwen3Config(hidden_size=32, head_dim=16, **common)).save_pretrained(top / "qwen3")
    Qwen2ForCausalLM(Qwen2Config(hidden_size=24, **common)).save_pretrained(top / "qwen2")
    for name in ("qwen3", "qwen2"):
        tokenizer.save_pretrained(top / name)
    Dinov2Model(Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
                ).save_pretrained(top / "dinov2")  # fmt: skip
    net = vggt.Aggregator(vggt.VGGTConfig(28, 14, 32, 1, 4, 64, 2, 1))
    (top / "vggt").mkdir()
    save_file({vggt_file.PREFIX + name: tensor for name, tensor in net.state_dict().items()}, top / "vggt" / "model.safetensors")
    return top


def guide(shelf, seed=0, **changes):
    """`vggt_qwen3` on the small folders."""
    torch.manual_seed(seed)
    config = replace(PRESETS["vggt_qwen3"], language=str(shelf / "qwen3"), backbone_weights=str(shelf / "vggt"), dtype="float32",
                     state_dim=15, image_size=28, grid=(2, 2), text_length=12, width=32, heads=2, queries=4, head_width=32, chunk=3,
                     query_layers=1)
    return VGGTVLA.build(replace(config, **changes), STATS, WORDS)


# ---- shapes, losses, gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["vggt", "graph", "none"])
@pytest.mark.parametrize("fusion", ["concat", "cross"])
def test_every_trainable_part_gets_a_gradient_and_actions_are_whole(backbone, fusion):
    model = build(backbone=backbone, fusion=fusion, proprio=fusion == "cross")
    out = model.loss(batch(model))
    out["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
    actions = model.act(OBSERVATIONS, WORDS)
    assert actions.shape == (3, 3, 7) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    assert set(np.unique(actions[..., -1])) <= {-1.0, 1.0} and np.array_equal(actions, model.act(OBSERVATIONS, WORDS)) and model.training


def test_losses_are_the_formulas():
    model = build(gripper="bce", loss="smooth_l1", gripper_weight=0.5, point_weight=0.2, word_dropout=0.0).eval()
    given = batch(model)
    said, point = (x.detach().numpy() for x in model.guess(given))
    out = {name: float(value.detach()) for name, value in model.loss(given).items()}
    error = np.abs(said[..., :-1] - given["action"][..., :-1])
    assert out["action"] == pytest.approx(np.where(error < 1, 0.5 * error**2, error - 0.5).mean(), rel=1e-4)
    signs = np.sign(given["action"][..., -1])
    assert out["gripper"] == pytest.approx(np.log1p(np.exp(-signs * said[..., -1])).mean(), rel=1e-4)
    gaze = np.abs(point[:2] - np.float32([[-0.4, -0.2]])).mean() / 2  # box centre (0.3, 0.4) in [-1, 1]; the third is no true box
    assert out["point"] == pytest.approx(gaze, rel=1e-4)
    assert out["loss"] == pytest.approx(out["action"] + 0.5 * out["gripper"] + 0.2 * 2 * out["point"], rel=1e-5)
    for kind, value in (("mse", (error**2).mean()), ("l1", error.mean())):
        model.config = replace(model.config, loss=kind)
        assert float(model.loss(given)["action"].detach()) == pytest.approx(value, rel=1e-4)


def test_one_batch_is_learned_by_heart():
    model = build(word_dropout=0.0, loss="mse")
    given, optimizer = batch(model), torch.optim.AdamW(model.parameters(), 3e-3)
    first = float(model.loss(given)["action"].detach())
    for _ in range(120):
        optimizer.zero_grad()
        out = model.loss(given)
        out["loss"].backward()
        optimizer.step()
    assert float(out["action"].detach()) < 0.02 * first
    assert np.abs(model.act(OBSERVATIONS, WORDS) - given["action"]).mean() < 0.1


def test_it_looks_at_pictures_and_words_and_a_blind_one_at_words_alone():
    for blind in (False, True):
        model = build(blind=blind, point_weight=0.0 if blind else 0.1)
        here = model.act(OBSERVATIONS[:1], WORDS[:1])
        other = {**OBSERVATIONS[0], "observation.images.static": np.zeros((50, 50, 3), np.uint8)}
        assert np.array_equal(here, model.act([other], WORDS[:1])) == blind
        assert not np.array_equal(here, model.act(OBSERVATIONS[:1], WORDS[1:2]))


def squares(n, seed):
    """Pictures with a red and a blue square; the action points from the middle to the one that is asked for."""
    rng = np.random.default_rng(seed)
    views, at, asked = np.full((n, 2, 32, 32, 3), 120, np.uint8), rng.integers(3, 29, (n, 2, 2)), rng.integers(0, 2, n)
    for picture, places in zip(views[:, 0], at, strict=True):
        for (x, y), colour in zip(places, ((200, 20, 20), (20, 20, 200)), strict=True):
            picture[y - 3: y + 3, x - 3: x + 3] = colour
    aim = at[np.arange(n), asked] / 16 - 1
    action = np.zeros((n, 2, 7), np.float32)
    action[..., :2], action[..., 6] = aim[:, None], np.where(aim[:, :1] > 0, 1, -1)
    box = (np.concatenate([aim - 0.1, aim + 0.1], axis=1) / 2 + 0.5).astype(np.float32)
    return {"views": views, "state": np.zeros((n, 15), np.float32), "action": action, "gaze.box": box, "gaze.valid": np.ones(n, bool),
            "instruction": [f"go to the {('red', 'blue')[i]} square" for i in asked]}  # fmt: skip


def test_it_learns_to_go_where_the_instruction_says():
    torch.manual_seed(0)
    config = replace(SMALL, width=64, backbone_width=64, head_width=128, channels=16, keypoints=16, language_width=32, chunk=2,
                     word_dropout=0.0)  # fmt: skip
    model = VGGTVLA.build(config, STATS, ["go to the red square", "go to the blue square"])
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(120):
        optimizer.zero_grad()
        model.loss(squares(64, step))["loss"].backward()
        optimizer.step()
    held_out = squares(256, 10_000)
    swapped = {**held_out, "instruction": [s.replace("red", "X").replace("blue", "red").replace("X", "blue")
                                           for s in held_out["instruction"]]}  # fmt: skip
    with torch.no_grad():
        found, other = model.eval().loss(held_out), model.loss(swapped)
    floor = np.abs(held_out["action"] - np.median(held_out["action"], axis=0)).mean()
    assert found["l1"] < 0.2 * floor and found["point"] < 0.05 and other["l1"] > 3 * found["l1"], (found, other, floor)


def test_frozen_parts_stay_and_the_guides_shapes_flow(shelf):
    model = guide(shelf, vision=str(shelf / "dinov2"))
    assert "parameters train" in model.counts()
    before = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in before} == {"tower", "blocks"}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    out = model.loss(batch(model))
    out["loss"].backward()
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())]
    assert trained == []
    states, real = model.words(WORDS, model.device)
    assert states.shape == (3, 12, 32) and real.sum(1).min() > 0
    features, _ = model.features(torch.randn(3, 8, 32), model.read(states), real)
    assert features.shape == (3, 8 + 12, 32) and model.queries.shape == (4, 32)
    assert model.prepare(OBSERVATIONS[0])["features"].shape == (2, 4, 24)
    pictures = guide(shelf, seed=1, vision=str(shelf / "dinov2"), cache_features=False)
    pictures.load_weights({name: model.state_dict()[name] for name in vggt_vla_checkpoint.saved_names(model)}, "test")
    assert "views" in pictures.prepare(OBSERVATIONS[0])
    assert np.allclose(pictures.act(OBSERVATIONS, WORDS), model.act(OBSERVATIONS, WORDS), atol=5e-3)  # float16 of the cache


def test_the_key_tells_frozen_towers_apart(shelf):
    seen = guide(shelf, vision=str(shelf / "dinov2"))
    assert seen.key == guide(shelf, seed=1, vision=str(shelf / "dinov2")).key != guide(shelf).key, "what trains is no part of it"
    keys = [seen.key]
    with torch.no_grad():
        next(seen.tower.parameters()).view(-1)[0] += 1
    keys.append(seen.key)
    seen.tower.image_mean = [0.1, 0.2, 0.3]  # of a preprocessor_config.json: other pixels, the same weights
    keys.append(seen.key)
    seen.tower.image_std = [0.1, 0.2, 0.3]
    assert len({*keys, seen.key}) == 4, "features that another tower saw are not read"


def test_padding_words_change_nothing(shelf):
    short, long = guide(shelf), guide(shelf, text_length=20)
    long.load_weights({name: short.state_dict()[name] for name in vggt_vla_checkpoint.saved_names(short)}, "test")
    assert np.allclose(short.act(OBSERVATIONS, WORDS), long.act(OBSERVATIONS, WORDS), atol=1e-5)


# ---- graph ---------------------------------------------------------------------------------------------------------------------------


def test_edges_are_exact_on_a_hand_made_case():
    pairs = lambda edges: {(i, j) for i, j in edges.nonzero().tolist() if i < j}
    assert pairs(grid_edges(2, 3)) == {(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)}
    assert pairs(grid_edges(2, 3, 8)) == pairs(grid_edges(2, 3)) | {(0, 4), (1, 3), (1, 5), (2, 4)}
    assert pairs(chain_edges(4)) == {(0, 1), (1, 2), (2, 3)}
    for edges in (grid_edges(2, 3), grid_edges(3, 3, 8), chain_edges(4)):
        assert torch.equal(edges, edges.T) and not edges.diagonal().any()
    average = normalised(chain_edges(3), torch.tensor([[True, True, False]]))
    assert average.tolist() == [[[0, 1, 0], [1, 0, 0], [0, 1, 0]]]
    layer = GraphConvolution(2)
    with torch.no_grad():
        layer.own.weight.copy_(torch.eye(2)), layer.own.bias.zero_(), layer.neighbours.weight.copy_(2 * torch.eye(2))
        x = torch.tensor([[[1.0, 0], [0, 4], [6, 0]]])
        assert layer(x, normalised(chain_edges(3))).tolist() == [[[1, 8], [7, 4], [6, 8]]]
    with pytest.raises(UserError, match="4 or 8"):
        grid_edges(2, 2, 6)


def test_the_models_graph_joins_no_patch_with_a_word_and_no_two_cameras():
    edges = build(backbone="graph").graph.edges
    n = 4
    assert edges.shape == (2 * n + 12, 2 * n + 12) and not edges[:n, n:].any() and not edges[2 * n:, : 2 * n].any()
    assert torch.equal(edges[:n, :n], edges[n: 2 * n, n: 2 * n]) and edges[2 * n, 2 * n + 1]


# ---- language, once ------------------------------------------------------------------------------------------------------------------


def test_cached_language_gives_the_same_actions_and_no_language_model_is_kept(shelf):
    once, always = guide(shelf), guide(shelf, cache_language=False)
    assert once.words.reader is None and always.words.reader is not None
    assert np.allclose(once.act(OBSERVATIONS, WORDS), always.act(OBSERVATIONS, WORDS), atol=1e-3)
    assert once.counts() == always.counts() and not any("words" in name for name in once.state_dict())
    new = ["open the red block"]
    assert np.allclose(once.act(OBSERVATIONS[:1], new), always.act(OBSERVATIONS[:1], new), atol=1e-3)
    assert new[0] in once.words.table.states  # encoded now, kept


def test_the_file_of_sentences_is_found_again_and_never_of_another_model(shelf, tmp_path):
    file, opened = tmp_path / "sentences.safetensors", []

    def opening(name):
        def make():
            opened.append(name)
            return sentences.Reader.open(str(shelf / name), None, 12)
        return make

    get = lambda name, some: sentences.cached(some, str(shelf / name), None, 12, file, opening(name), log=lambda line: None)
    first = get("qwen3", WORDS[:2])
    again = get("qwen3", WORDS[:1])
    assert opened == ["qwen3"] and torch.equal(again.states[WORDS[0]], first.states[WORDS[0]]) and first.states[WORDS[0]].shape[1] == 32
    get("qwen3", WORDS)
    assert opened == ["qwen3"] * 2 and len(sentences.Table.load(file).states) == 3
    assert get("qwen2", WORDS).about["hidden_size"] == 24 and opened[-1] == "qwen2"
    file.write_bytes(b"x")
    with pytest.raises(UserError, match="no encoded sentences"):
        get("qwen2", WORDS)


def test_the_file_of_sentences_is_never_of_other_weights_or_another_revision(shelf, tmp_path):
    file, folder, opened, said = tmp_path / "sentences.safetensors", tmp_path / "qwen3", [], []
    shutil.copytree(shelf / "qwen3", folder)

    def get(name, revision, place):
        def make():
            opened.append((name, revision))
            reader = sentences.Reader.open(str(place), None, 12)
            reader.about["name"] = name
            return reader
        return sentences.cached(WORDS[:1], name, revision, 12, file, make, log=said.append)

    first = get(str(folder), None, folder)
    assert "asked_revision" not in first.about, "what a checkpoint says of its language model is the model's"
    assert torch.equal(get(str(folder), None, folder).states[WORDS[0]], first.states[WORDS[0]]) and len(opened) == 1 and not said
    weights = load_file(folder / "model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    tuned = get(str(folder), None, folder)  # fine-tuned, in the same folder
    assert len(opened) == 2 and not torch.equal(tuned.states[WORDS[0]], first.states[WORDS[0]]) and "made anew" in said[-1]
    inside = get(str(tmp_path), None, folder)  # the folder above, which the loader takes too
    assert len(opened) == 3 and inside.about["sha256"] == tuned.about["sha256"]
    get(str(tmp_path), None, folder)
    assert len(opened) == 3
    for revision, count in ((None, 4), ("main", 4), ("v2", 5), ("v2", 5), (None, 6)):
        get("someone/model", revision, folder)
        assert len(opened) == count, revision
    pinned = files.PUBLISHED["Qwen/Qwen3-0.6B-Base"][0]
    assert {sentences.asked_revision("Qwen/Qwen3-0.6B-Base", one) for one in (None, pinned)} == {pinned}


def test_instructions_that_cannot_be_read_are_errors(shelf):
    long = "open the drawer " * 9
    for text, step in (("", "give it words"), (long, "shorten it")):
        for model in (build(), guide(shelf)):
            with pytest.raises(UserError, match="empty or too long") as caught:
                model.act(OBSERVATIONS[:2], [WORDS[0], text])
            assert repr(text) in str(caught.value) and step in str(caught.value)


# ---- checkpoints ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(shelf, tmp_path):
    """A checkpoint of the guide's model on the hidden-32 language model."""
    model = guide(shelf, vision=str(shelf / "dinov2"))
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    return model, tmp_path / "saved"


def test_a_checkpoint_comes_back_bit_by_bit(saved, tmp_path):
    (tmp_path / "tiny").mkdir()
    tiny = build()
    tiny.save(tmp_path / "tiny")
    for model, folder in (saved, (tiny, tmp_path / "tiny")):
        again = VGGTVLA.load(folder)
        assert again.config == model.config and again.stats == model.stats
        assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert np.array_equal(again.act(OBSERVATIONS, WORDS), model.act(OBSERVATIONS, WORDS))
    names = load_file(saved[1] / "model.safetensors")
    assert not any(name.startswith(("tower.", "blocks.")) for name in names)


def test_known_sentences_need_no_language_model_and_new_ones_say_which(saved, monkeypatch):
    model, folder = saved
    monkeypatch.setattr(sentences.Reader, "open", lambda *_, **__: pytest.fail("the language model was built"))
    assert np.array_equal(VGGTVLA.load(folder).act(OBSERVATIONS, WORDS), model.act(OBSERVATIONS, WORDS))


def test_the_zero_percent_story_ends_in_a_table(saved, shelf, monkeypatch):
    """Trained on one hidden size, evaluated on another: refused before anything is built, whichever way the other model comes in."""
    model, folder = saved
    monkeypatch.setattr(VGGTVLA, "__init__", lambda *_, **__: pytest.fail("a model was built"))
    monkeypatch.setattr(sentences.Reader, "__init__", lambda *_, **__: pytest.fail("a language model was built"))
    with pytest.raises(UserError) as error:
        VGGTVLA.load(folder, language=str(shelf / "qwen2"))
    text = str(error.value)
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]
    assert ["module", "checkpoint", "this environment"] in rows and ["language.hidden_size", "32", "24"] in rows
    assert ["language.model_type", "qwen3", "qwen2"] in rows and "nothing was built" in text and str(shelf / "qwen3") in text


def test_a_transformers_without_the_model_is_told_which_version_has_it(saved, monkeypatch):
    monkeypatch.setattr(fingerprint, "knows", lambda kind: kind != "qwen3")
    with pytest.raises(UserError) as error:
        VGGTVLA.load(saved[1])
    assert "transformers>=4.51" in str(error.value) and "qwen3" in str(error.value)


def test_another_tokenizer_or_other_weights_under_the_same_name_are_refused(saved, shelf, tmp_path, monkeypatch):
    model, folder = saved
    other = tmp_path / "qwen3"
    shutil.copytree(shelf / "qwen3", other)
    assert np.array_equal(VGGTVLA.load(folder, language=str(other)).act(OBSERVATIONS, WORDS), model.act(OBSERVATIONS, WORDS))
    small_tokenizer(["push the blue block", "turn on the lamp"], "short").save_pretrained(other)
    with pytest.raises(UserError, match=r"language.tokenizer"):
        VGGTVLA.load(folder, language=str(other))
    shutil.copytree(shelf / "qwen3", other, dirs_exist_ok=True)
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    loaded = VGGTVLA.load(folder, language=str(other))  # shapes and tokenizer agree; it is not needed yet
    with monkeypatch.context() as patched:
        patched.setattr(files, "load", lambda *_, **__: pytest.fail("the language model was built"))
        with pytest.raises(UserError, match="sha256"):
            loaded.act(OBSERVATIONS[:1], ["open the blue block"])


def edited(folder, change):
    about = json.loads((folder / "model.json").read_text())
    change(about)
    (folder / "model.json").write_text(json.dumps(about))


@pytest.mark.parametrize("change, row", [
    (lambda about: about["belongs"]["vggt"].update(sha256="0" * 64), "vggt.sha256"),
    (lambda about: about["belongs"]["vggt"].update(heads=8), "vggt.heads|8|4"),
    (lambda about: about["belongs"]["vision"].update(sha256="0" * 64), "vision.sha256"),
    (lambda about: about["belongs"]["vision"].update(num_hidden_layers=2), "vision.num_hidden_layers|2|1")])  # fmt: skip
def test_other_frozen_parts_are_refused_before_any_part_is_built(saved, monkeypatch, change, row):
    model, folder = saved
    edited(folder, change)
    for place, name in ((vggt_file, "Alternating"), (files, "load"), (towers, "PatchTower"), (sentences, "FrozenWords")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("a part was built"))
    with pytest.raises(UserError, match="nothing was built") as error:
        VGGTVLA.load(folder)
    assert row in str(error.value).replace(" ", "")


def test_a_pinned_part_with_other_weights_is_refused_without_the_net(saved, monkeypatch):
    """The checkpoint names a hub id, whose published sha256 is known: nothing is fetched to see that it is another."""
    model, folder = saved
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    edited(folder, lambda about: about["config"].update(backbone_weights="facebook/VGGT-1B"))
    with pytest.raises(UserError, match=r"vggt.sha256.*f164acf6"):
        VGGTVLA.load(folder)


def test_frozen_parts_may_lie_elsewhere_and_must_be_the_same(saved, shelf, tmp_path):
    """A checkpoint whose backbone was a path goes to another machine: the path is given anew, the file is compared."""
    model, folder = saved
    edited(folder, lambda about: about["config"].update(backbone_weights="/kaggle/input/vggt/model.safetensors"))
    with pytest.raises(UserError, match="nothing at that path(.|\n)*--vggt FILE"):
        VGGTVLA.load(folder)
    moved = VGGTVLA.load(folder, elsewhere={"vggt": str(shelf / "vggt")})
    assert all((a == b).all() for a, b in zip(moved.state_dict().values(), model.state_dict().values(), strict=True))
    weights = load_file(shelf / "vggt" / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"vggt.sha256"):
        VGGTVLA.load(folder, elsewhere={"vggt": str(tmp_path)})
    both = {"vggt": str(shelf / "vggt"), "vision": str(shelf / "dinov2")}
    assert VGGTVLA.load(folder, elsewhere=both).tower is not None
    build().save(tmp_path)
    with pytest.raises(UserError, match="no frozen vggt and no frozen vision that could lie elsewhere"):
        VGGTVLA.load(tmp_path, elsewhere=both)


def test_damaged_files_are_refused(saved, shelf):
    model, folder = saved
    whole = (folder / "model.json").read_text()
    edited(folder, lambda about: about["config"].update(new=1))
    with pytest.raises(UserError, match="another model or version"):
        VGGTVLA.load(folder)
    (folder / "model.json").write_text(whole)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name != "queries"}, folder / "model.safetensors")
    with pytest.raises(UserError, match="queries: expected"):
        VGGTVLA.load(folder)
    with pytest.raises(UserError, match="holds no model"):
        VGGTVLA.load(folder / "nowhere")


class FakeStore:
    def __init__(self, views=("static", "wrist"), state=15, action=7, units=None, **meta):
        self.columns, self.meta = [f"observation.images.{view}" for view in views], meta | {"action": units or {}}
        self.stats = {"observation.state": {"mean": [0] * state}, "action": {"mean": [0] * action}}


@pytest.mark.parametrize("store, row", [
    (FakeStore(action=8), "action.dim | 7"), (FakeStore(views=("static",)), "cameras.views"), (FakeStore(state=8), "state.dim | 15"),
    (FakeStore(orientation="rotated"), "cameras.orientation | upright")])  # fmt: skip
def test_data_of_another_convention_is_refused(tmp_path, store, row):
    build().save(tmp_path)
    VGGTVLA.load(tmp_path, store=FakeStore())
    with pytest.raises(UserError) as error:
        VGGTVLA.load(tmp_path, store=store)
    assert row.replace(" ", "") in str(error.value).replace(" ", "")


LIBERO = {"metres": 0.05, "radians": 0.5, "rate_hz": 20, "gripper": "-1 close, +1 open (LIBERO's own sign is the reverse)"}
CALVIN = {"metres_per_unit": 0.02, "radians_per_unit": 0.05, "control_hz": 30, "gripper": "-1 close, +1 open"}


@pytest.mark.parametrize("action, row", [
    (CALVIN, "action.metres|0.05|0.02"), (LIBERO | {"radians": 1.0}, "action.radians|0.5|1.0"),
    (LIBERO | {"rate_hz": 10}, "action.rate_hz|20|10"),
    (LIBERO | {"gripper": "-1 open, +1 close"}, "action.gripper|-1close,+1open|-1open,+1close")])  # fmt: skip
def test_what_an_action_is_comes_from_the_training_data_and_other_data_are_refused(tmp_path, capsys, action, row):
    torch.manual_seed(0)
    made = VGGTVLA.build(SMALL, STATS, WORDS, conventions=fingerprint.conventions(FakeStore(units=LIBERO)))
    made.save(tmp_path)
    same = VGGTVLA.load(tmp_path, store=FakeStore(units=LIBERO | {"gripper": "-1 close, +1 open"}))
    assert same.conventions == made.conventions and same.conventions["metres"] == 0.05 and capsys.readouterr().out == ""
    with pytest.raises(UserError) as error:
        VGGTVLA.load(tmp_path, store=FakeStore(units=action))
    assert row in str(error.value).replace(" ", "")


def test_conventions_that_nobody_recorded_are_said_to_be_unknown(tmp_path, capsys):
    build().save(tmp_path)
    edited(tmp_path, lambda about: about["belongs"]["action"].update(chunk=3, convention="relative"))  # as older checkpoints say it
    VGGTVLA.load(tmp_path, store=FakeStore(units=LIBERO))
    out = capsys.readouterr().out
    assert "metres, radians, rate_hz, gripper of an action: not recorded in the checkpoint" in out and "the data" not in out
    VGGTVLA.load(tmp_path, store=FakeStore())
    assert "not recorded in the data" in capsys.readouterr().out


def test_missing_cameras_wrong_actions_and_random_frozen_parts_are_errors(shelf):
    model = build()
    with pytest.raises(UserError, match="camera"):
        model.prepare({name: value for name, value in OBSERVATIONS[0].items() if "wrist" not in name})
    with pytest.raises(UserError, match="actions"):
        model.loss(batch(model) | {"action": np.zeros((3, 3, 8), np.float32)})
    with pytest.raises(UserError, match="state"):
        VGGTVLA.build(SMALL, {"observation.state": {"mean": [0.0] * 8, "std": [1.0] * 8}}, WORDS)
    with pytest.raises(UserError, match="gaze"):
        model.loss({name: value for name, value in batch(model).items() if "gaze" not in name})
    random = vggt.Alternating(32, 1, 4, 64)
    random.identity, random.config = {"name": "x", "sha256": None}, vggt.VGGTConfig(28, 14, 32, 1, 4, 64, 2, 1)
    with pytest.raises(UserError, match="never frozen"):
        VGGTVLA(replace(SMALL, backbone_weights="x"), STATS, build().words, None, random)
    assert build(views=("static",)).act([{k: v for k, v in OBSERVATIONS[0].items() if "wrist" not in k}], WORDS[:1]).shape == (1, 3, 7)


@pytest.mark.parametrize("changes", [{"loss": "huber"}, {"views": ("wrist", "static")}, {"vision": "patch"}, {"grid": (3, 3)},
                                     {"chunk": 0}, {"grid": (2, 4)}, {"image_size": 36}, {"grid": (16, 16)},
                                     {"channels": 12}, {"width": 34}, {"heads": 3}, {"backbone_heads": 3}])  # fmt: skip
def test_configs_that_make_no_sense_are_refused(changes):
    with pytest.raises(UserError, match="model config"):
        replace(SMALL, **changes)


# ---- training ------------------------------------------------------------------------------------------------------------------------


def store_of(folder, episodes=2, length=6):
    from repro.data.episodes import Episode, StoreWriter

    rng = np.random.default_rng(0)
    with StoreWriter(folder, 20, {"source": "test", "action": LIBERO}) as writer:
        for i in range(episodes):
            action = np.sign(rng.standard_normal((length, 7))).astype(np.float32)
            writer.add(Episode(WORDS[i], {
                "observation.images.static": rng.integers(0, 256, (length, 40, 40, 3), dtype=np.uint8),
                "observation.images.wrist": rng.integers(0, 256, (length, 40, 40, 3), dtype=np.uint8),
                "observation.state": rng.standard_normal((length, 15)).astype(np.float32), "action": action,
                "gaze.box": np.tile(np.float32([0.1, 0.1, 0.3, 0.3]), (length, 1)), "gaze.score": np.ones(length, np.float32),
                "gaze.source": ["truth"] * length}, {"task_id": f"task_{i}"}))  # fmt: skip
    return folder


def test_a_job_trains_is_cut_and_goes_on_bit_by_bit(tmp_path, shelf, monkeypatch):
    from dataclasses import asdict

    from repro.training import launch

    store, lines = store_of(tmp_path / "store"), []
    fields = {name: value for name, value in asdict(SMALL).items() if value != asdict(PRESETS["vggt_tiny"])[name]}
    qwen = {"language": str(shelf / "qwen3"), "language_width": 128}
    for name, more in (("tiny", {}), ("frozen", qwen)):
        job = dict(name=name, store=store, model={"preset": "vggt_tiny", **fields, **more},
                   train={"steps": 4, "batch_size": 2, "warmup": 1})  # fmt: skip
        whole = launch.train_from_config(launch.write_config(tmp_path / "a.json", **job, folder=tmp_path / name / "whole"), lines.append)
        cut = dict(job, folder=tmp_path / name / "cut")
        asked, real = [], launch.train

        def interrupted(model, batches, *given, asked=asked, real=real, **named):
            def until(i):
                asked.append(i)
                if len(asked) == 3:
                    raise KeyboardInterrupt
                return batches(i)
            return real(model, until, *given, **named)

        path = launch.write_config(tmp_path / "b.json", **dict(cut, train={**job["train"], "checkpoint_minutes": 0.0}))
        monkeypatch.setattr(launch, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            launch.train_from_config(path, lines.append)
        monkeypatch.setattr(launch, "train", real)
        again = launch.train_from_config(path, lines.append)
        assert again.resumed_from == 2 and whole.step == again.step == 4
        one, two = (load_file(summary.checkpoint / "model.safetensors") for summary in (whole, again))
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        assert VGGTVLA.load(whole.checkpoint).conventions == LIBERO | {"gripper": "-1 close, +1 open"}
        assert any("trainable of" in line for line in lines)
    assert json.loads((whole.checkpoint / "about.json").read_text())["train"]["learning_rate"] == 1e-3  # the preset's own
    assert list(tmp_path.glob("store.prepared/sentences-qwen3.safetensors"))


# ---- attention -----------------------------------------------------------------------------------------------------------------------


def test_attention_of_queries_and_words_is_what_acting_used():
    model = build(fusion="cross")
    before = model.act(OBSERVATIONS, WORDS)
    with record(model, "queries") as maps:
        assert np.allclose(model.act(OBSERVATIONS, WORDS), before, atol=1e-4)
    assert maps.layers().shape == (3, 1, 2, 4, 8) and all(layer.reading.record is None for layer in model.reader)
    words = attention(model, OBSERVATIONS, WORDS, "words")
    assert words.shape == (3, 2, 2, 12, 8)  # language adapter, then the backbone's global block
    _, real = model.words(WORDS, model.device)
    sums = words[:, 0].sum(-1)  # in the adapter a word reads patches alone
    assert np.allclose(sums[real.numpy()[:, None].repeat(2, 1)], 1, atol=1e-5) and not sums[~real.numpy()[:, None].repeat(2, 1)].any()
    with pytest.raises(UserError, match="no words read"):
        attention(build(backbone="none"), OBSERVATIONS, WORDS, "words")
    with pytest.raises(UserError, match="one call"):
        with record(model):
            pass
    assert all(layer.reading.record is None for layer in model.reader)


def test_the_attention_module_makes_maps_of_it():
    from repro.attention import mass_in, static_maps

    model = build()
    maps = static_maps(model, OBSERVATIONS, WORDS)
    assert maps.shape == (3, 2, 2) and (maps.sum((1, 2)) < 1).all() and mass_in(maps[0], np.array([0, 0, 1, 1])) == pytest.approx(1)
    whole = attention(model, OBSERVATIONS, WORDS)[:, -1].mean((1, 2))
    assert np.allclose(maps.reshape(3, -1), (whole / whole.sum(-1, keepdims=True))[:, :4], atol=1e-5)
