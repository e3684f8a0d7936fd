"""GroundingDINO: names and boxes of what it says, its inputs, and that its two implementations say the same.

    make test                    with transformers' own model; what needs the original package is skipped
    make test-groundingdino      all of it beside groundingdino-py, on transformers 4.57.6 and on the pinned one

The weights are small and random (`grounding_dino.tiny`): they tell whether the numbers are the same, never whether they are right.
"""

import importlib.util
import json
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from repro import clock
from repro.gaze import grounding_dino_models, grounding_dino_weights
from repro.gaze.grounding_dino import GroundingDino, find_weights, tiny, to_package, to_transformers
from repro.machine import UserError

SIZES = {"shortest": 96, "longest": 192}
package = pytest.mark.skipif(importlib.util.find_spec("groundingdino") is None,
                             reason="SKIPPED LOUDLY: groundingdino-py is not here; type: make test-groundingdino")  # fmt: skip
warnings.filterwarnings("ignore", category=FutureWarning)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def detect(folder):
    return GroundingDino(folder, box_threshold=0, text_threshold=0, **SIZES)


@pytest.fixture(scope="module")
def pth(folder, tmp_path_factory):
    """The same weights as the package's authors publish theirs: a .pth, names from a parallel run, and things that no model needs."""
    state = {f"module.{name}": tensor for name, tensor in to_package(load_file(folder / "model.safetensors")).items()}
    head = {name: tensor for name, tensor in state.items() if name.startswith("module.bbox_embed.0.")}
    state |= {name.replace("module.bbox_embed.0.", copy): tensor for name, tensor in head.items()
              for copy in ("module.bbox_embed.1.", "module.transformer.decoder.bbox_embed.0.", "module.transformer.decoder.bbox_embed.1.")}
    state |= {"module.label_enc.weight": torch.ones(3, 256), "module.bert.embeddings.position_ids": torch.arange(512)[None],
              "module.bert.pooler.dense.weight": torch.ones(32, 32), "module.bert.pooler.dense.bias": torch.ones(32)}  # fmt: skip
    file = tmp_path_factory.mktemp("package") / "groundingdino_tiny.pth"
    torch.save({"model": state}, file)
    return file


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def plant(monkeypatch, detector, logits, boxes):
    """Let a detector's model say these logits and boxes of every image."""
    several = lambda array, images: np.stack([array] * len(images)).astype(np.float32)
    monkeypatch.setattr(detector, "raw", lambda images, captions: (several(logits, images), several(boxes, images)))


# ------------------------------------------------------------------------------------------------------ what it says


def test_names_are_those_of_the_best_token_and_boxes_lie_in_the_image(monkeypatch, folder):
    detect = GroundingDino(folder, box_threshold=0.3, text_threshold=0.2, **SIZES)
    # [CLS] red bowl . dx ##9 . [SEP]; separators are never a name, however sure they are.
    tokens = detect.tokenizer.convert_ids_to_tokens(detect.tokenizer("red bowl. dx9.")["input_ids"])
    assert tokens == ["[CLS]", "red", "bowl", ".", "d", "##x", "##9", ".", "[SEP]"]
    logits = np.full((6, 9), -5.0)
    logits[:, [0, 3, 7, 8]] = 9.0
    logits[0, 2], logits[0, 4] = 1.0, 0.5  # bowl beats d
    logits[1, 1], logits[1, 6] = 1.0, 2.0  # ##9 beats red
    logits[2, 1] = -0.9  # probability 0.29: below the threshold
    logits[3, 1] = logits[4, 1] = logits[5, 1] = 3.0
    boxes = np.array([[0.5, 0.5, 0.2, 0.4], [0.1, 0.9, 0.4, 0.4], [0.5, 0.5, 0.1, 0.1], [1.2, 0.5, 0.3, 0.1], [0.5, 0.5, 0.0, 0.1],
                      [0.25, 0.25, 0.5, 0.5]])  # fmt: skip
    plant(monkeypatch, detect, logits, boxes)
    (found,) = detect([picture(0)], [["Red  Bowl", "DX9"]])
    assert found.names == ("Red  Bowl", "DX9", "Red  Bowl")
    np.testing.assert_allclose(found.boxes, [[0, 0, 0.5, 0.5], [0, 0.7, 0.3, 1], [0.4, 0.3, 0.6, 0.7]], atol=1e-6)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3.0, -2.0, -1.0])), atol=1e-6)
    assert found.boxes.dtype == found.scores.dtype == np.float32


@pytest.mark.parametrize("box, text, kept", [(0.5, 0.0, 2), (0.0, 0.5, 2), (0.0, 0.0, 3), (0.8, 0.1, 1), (1.0, 0.0, 0)])
def test_thresholds(monkeypatch, folder, box, text, kept):
    detect = GroundingDino(folder, box_threshold=box, text_threshold=text, **SIZES)
    plant(monkeypatch, detect, np.array([[0, p, 0, 0] for p in (-1.0, 1.0, 2.0)]), np.full((3, 4), 0.5))
    (found,) = detect([picture(0)], [["bowl"]])
    assert len(found) == kept and list(found.scores) == sorted(found.scores, reverse=True)


def test_answers_do_not_depend_on_the_batch(detect, folder):
    images = [picture(i, *size) for i, size in enumerate([(120, 160), (150, 130), (120, 160), (240, 320), (120, 160), (150, 130)])]
    nouns = [["blue block"], ["drawer", "red bowl", "green light"], ["red bowl"], ["blue block"], ["the sliding door", "cup"], ["cup"]]
    together = detect(images, nouns)
    assert len(together) == 6 and all(len(found) for found in together)
    for image, asked, found in zip(images, nouns, together, strict=True):
        (alone,) = detect([image], [asked])
        assert alone.names == found.names and set(found.names) <= set(asked)
        np.testing.assert_allclose(alone.boxes, found.boxes, atol=1e-5)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-5)
    small = GroundingDino(folder, batch=2, box_threshold=0, text_threshold=0, **SIZES)(images, nouns)
    assert [found.names for found in small] == [found.names for found in together]
    assert detect([], []) == []


def test_one_batch_of_images_is_held_at_a_time(monkeypatch, detect):
    class Reader:
        held = most = 0

        def __len__(self):
            return 40

        def __getitem__(self, i):
            if i >= 40:
                raise IndexError
            return picture(i)

    sizes = []
    plant(monkeypatch, detect, np.zeros((1, 4)), np.full((1, 4), 0.5))
    answer = detect.raw
    monkeypatch.setattr(detect, "raw", lambda images, captions: sizes.append(len(images)) or answer(images, captions))
    assert len(detect(Reader(), [["cup"]] * 40)) == 40
    assert sizes == [8] * 5


def test_it_stops_between_batches_where_the_session_ends(detect, monkeypatch):
    image = np.zeros((20, 20, 3), np.uint8)
    monkeypatch.setenv("REPRO_SESSION_END", "1.0")
    with pytest.raises(clock.OutOfTime):
        detect([image], [["block"]])
    monkeypatch.delenv("REPRO_SESSION_END")
    assert len(detect([image], [["block"]])) == 1


def test_half_precision_is_near_and_finite(detect, folder):
    for dtype, near in ((torch.float16, 0.02), (torch.bfloat16, 0.15)):
        half = GroundingDino(folder, dtype=dtype, **SIZES)
        assert all(p.dtype == torch.float32 for p in half.model.parameters())
        (a, boxes), (b, others) = detect.raw([picture(0)], ["red bowl."]), half.raw([picture(0)], ["red bowl."])
        # Proposals whose scores are near change places, so queries are compared where both started from the same place.
        same = np.abs(boxes - others).max(axis=2) < 0.02
        assert same.mean() > 0.5 and np.isfinite(others).all()
        assert np.median(np.abs(a - b)[same]) < near * np.abs(a).max()
        assert half.fingerprint() != detect.fingerprint()


def test_the_port_says_what_the_package_said(folder):
    """Three queries as the package answers them (`make test-groundingdino` compares all), for environments that do not have it."""
    logits, boxes = GroundingDino(folder, **SIZES).raw([picture(0)], ["blue block. red bowl."])
    np.testing.assert_allclose(logits[0, [0, 14, 29]], [
        [0.91143, 2.6263, 2.15175, 3.90841, 13.27069, 6.01993, 9.27857, 3.56231],
        [2.84159, 6.24578, 6.12978, 7.53792, 13.86437, 7.42154, 10.98077, 8.14445],
        [-2.42827, 2.11676, 0.91193, 3.13996, 10.34681, 3.43048, 7.43719, 2.04984]], atol=2e-4)  # fmt: skip
    np.testing.assert_allclose(boxes[0, [0, 14, 29]], [
        [0.76821, 0.03109, 0.0564, 0.12231], [0.28165, 0.16692, 0.09426, 0.16334],
        [0.60717, 0.11813, 0.07107, 0.08622]], atol=2e-5)  # fmt: skip


def test_places_of_tokens_in_their_phrase():
    ids = torch.tensor([[101, 276, 281, 1012, 288, 1012, 102], [101, 288, 1012, 102, 0, 0, 0], [101, 7, 8, 1029, 9, 1012, 102]])
    found = grounding_dino_models.places(ids)
    assert found.tolist() == [[0, 0, 1, 2, 0, 1, 0], [0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 2, 0, 1, 0]]


def test_the_port_refines_boxes_with_the_clamp_of_the_package():
    x = torch.tensor([0.0, 1e-5, 0.3, 0.9999, 1.0])
    with grounding_dino_models._Clamp():
        found = torch.special.logit(x, eps=1e-5)
    torch.testing.assert_close(found, torch.tensor([-np.log(1e3), -np.log(1e3), np.log(3 / 7), np.log(999.9), np.log(1e3)]).float())
    assert torch.special.logit(x, eps=1e-5)[0] < -11  # and others' logit is as it was


def test_numbers_that_are_not_finite_are_refused(detect, folder):
    broken = GroundingDino(folder, **SIZES)
    torch.nn.init.constant_(broken.model.model.model.level_embed, float("nan"))
    with pytest.raises(UserError, match="not finite"):
        broken([picture(0)], [["cup"]])


# ------------------------------------------------------------------------------------------------ weights of any origin


def test_weights_convert_there_and_back_bit_for_bit(folder):
    state = load_file(folder / "model.safetensors")
    other = to_package(state)
    back = to_transformers(other)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    again = to_package(back)
    assert again.keys() == other.keys() and all(torch.equal(again[name], other[name]) for name in other)
    assert not any(name.startswith("model.") for name in other) and all(name in other for name in (
        "backbone.0.layers.1.blocks.0.attn.qkv.weight", "transformer.decoder.layers.1.ca_text.in_proj_bias", "backbone.0.norm3.bias",
        "transformer.encoder.fusion_layers.0.attn.values_v_proj.weight", "bert.encoder.layer.1.output.LayerNorm.bias", "feat_map.weight"))
    qkv = other["transformer.encoder.text_layers.0.self_attn.in_proj_weight"]
    assert torch.equal(qkv[256:512], state["model.encoder.layers.0.text_enhancer_layer.self_attn.key.weight"])


def test_a_pth_of_the_package_is_the_same_model(detect, folder, pth):
    other = GroundingDino(pth, tokenizer=folder, config=folder, box_threshold=0, text_threshold=0, **SIZES)
    for a, b in zip(detect.raw([picture(0)], ["red bowl."]), other.raw([picture(0)], ["red bowl."]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert other.fingerprint() == detect.fingerprint() != GroundingDino(pth, tokenizer=folder, config=folder).fingerprint()
    assert GroundingDino(pth.parent, tokenizer=folder / "tokenizer.json", config=folder / "config.json")  # a folder with one .pth


def test_the_published_models_are_known_by_their_sizes(tmp_path, pth):
    for width, depth in ((96, 6), (128, 18)):
        state = {"model.backbone.conv_encoder.model.embeddings.patch_embeddings.projection.weight": torch.zeros(width, 3, 4, 4)}
        config = grounding_dino_weights.read_config(pth, state, None)
        assert config.backbone_config.embed_dim == width and config.backbone_config.depths[2] == depth
        assert (config.num_queries, config.d_model, config.text_config.hidden_size, config.text_config.vocab_size) == (900, 256, 768, 30522)
    with pytest.raises(UserError, match="96 or 128"):
        GroundingDino(pth)
    program = tmp_path / "GroundingDINO_SwinT_OGC.py"
    program.write_text("raise SystemExit('executed')")
    with pytest.raises(UserError, match="never executed"):
        GroundingDino(pth, config=program)


def test_looking_for_weights_lists_no_folder_of_frames(folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "zz" / "dino")
    for name in ("calvin/training/ep_start_end_ids.npy", "store/meta/info.json", "store/data/a.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: listed.append(Path(place).name) or scandir(place))
    assert find_weights([tmp_path]) == tmp_path / "zz" / "dino" and listed == [tmp_path.name, "calvin", "zz", "dino"]


def test_find_weights(folder, pth, tmp_path):
    deep = tmp_path / "models" / "someone" / "grounding-dino" / "pytorch" / "tiny" / "1"
    assert find_weights([tmp_path]) is None and find_weights([tmp_path / "absent"]) is None
    (tmp_path / "frames").mkdir()
    shutil.copy(pth, tmp_path / "frames" / "groundingdino_swint_ogc.pth")
    assert find_weights([str(tmp_path)]) == tmp_path / "frames" / "groundingdino_swint_ogc.pth"
    shutil.copytree(folder, deep)
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "config.json").write_text('{"model_type": "bert"}')
    assert find_weights([tmp_path]) == deep
    assert GroundingDino(tmp_path / "models", **SIZES).raw([picture(0)], ["cup."])[0].shape == (1, 30, 4)  # [CLS] cup . [SEP]


def test_sharded_weights_are_one_model(detect, folder, tmp_path):
    state = load_file(folder / "model.safetensors")
    names = sorted(state)
    for i, part in enumerate((names[:100], names[100:])):
        save_file({name: state[name] for name in part}, tmp_path / f"model-{i}.safetensors")
    places = {name: f"model-{int(i >= 100)}.safetensors" for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / file, tmp_path)
    assert GroundingDino(tmp_path, box_threshold=0, text_threshold=0, **SIZES).fingerprint() == detect.fingerprint()


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("image, found", [
    (np.zeros((40, 40, 4), np.uint8), r"uint8 \(40, 40, 4\)"), (np.zeros((40, 40), np.uint8), r"uint8 \(40, 40\)"),
    (np.zeros((40, 40, 1), np.uint8), r"uint8 \(40, 40, 1\)"), (np.zeros((40, 40, 3), np.float32), r"float32 \(40, 40, 3\)"),
    (np.zeros((0, 40, 3), np.uint8), r"uint8 \(0, 40, 3\)"), ("picture.png", "str"),
    (np.zeros((1, 900, 3), np.uint8), "1 x 900 pixels, scaled to")])  # fmt: skip
def test_images_that_cannot_be_used(detect, image, found):
    with pytest.raises(UserError, match=found) as error:
        detect([picture(0), image], [["cup"], ["cup"]])
    assert "image 1" in str(error.value)


@pytest.mark.parametrize("nouns", [[], [""], ["cup", "  "], "cup", ["block no. 5"], ["cup?"], ["\u200b"]])
def test_nouns_that_cannot_be_used(detect, nouns):
    with pytest.raises(UserError, match="noun"):
        detect([picture(0)], [nouns])


def test_other_requests_that_cannot_be_used(detect, folder):
    with pytest.raises(UserError, match="0 lists"):
        detect([picture(0)], [])
    with pytest.raises(UserError, match="256 tokens"):
        detect([picture(0)], [["red bowl"] * 100])
    with pytest.raises(UserError, match="caption"):
        detect.raw([picture(0)], [" . "])
    for wrong in ({"backend": "onnx"}, {"batch": 0}, {"box_threshold": 1.5}, {"text_threshold": -1}, {"shortest": 99, "longest": 9}):
        with pytest.raises(UserError, match="cannot use"):
            GroundingDino(folder, **wrong)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "groundingdino_swint_ogc.pth", "weights/groundingdino_swint_ogc.pth"])
def test_missing_weights(source):
    with pytest.raises(UserError, match=r"is missing(.|\n)*/kaggle/input(.|\n)*Kaggle model or dataset"):
        GroundingDino(source)


@pytest.mark.parametrize("kind, says", [
    ("LocalEntryNotFoundError", "turn the internet on; or attach the files as a Kaggle model"),
    ("OfflineModeIsEnabled", "turn the internet on; or attach the files as a Kaggle model"),
    ("GatedRepoError", "https://huggingface.co/IDEA-Research/grounding-dino-tiny, set HF_TOKEN"),
    ("RepositoryNotFoundError", "check the spelling"), ("RevisionNotFoundError", "at revision main")])  # fmt: skip
def test_the_hub_refuses(monkeypatch, kind, says):
    import huggingface_hub
    from huggingface_hub import errors

    def download(*_, **__):
        raise type(kind, (getattr(errors, kind),), {"__init__": lambda self: None, "__str__": lambda self: "the hub's words\nand more"})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(grounding_dino_weights, "silent", lambda: None)
    with pytest.raises(UserError, match=says) as error:
        GroundingDino("IDEA-Research/grounding-dino-tiny", revision="main")
    assert f"{kind}: the hub's words" in str(error.value)


def test_a_hub_that_does_not_answer_is_known_soon(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    monkeypatch.setattr(grounding_dino_weights, "silent", lambda: "no name")
    with pytest.raises(UserError, match=r"does not answer \(no name\)(.|\n)*turn the internet on"):
        GroundingDino("IDEA-Research/grounding-dino-tiny")


def test_a_hub_id_asks_for_no_more_than_it_needs(monkeypatch, folder, pth):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(grounding_dino_weights, "silent", lambda: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.update({name: options}) or str(folder))
    GroundingDino("someone/tiny", revision="v1", **SIZES)
    GroundingDino(pth, tokenizer="google-bert/bert-base-uncased", config=folder, **SIZES)
    assert asked["someone/tiny"]["revision"] == "v1" and "*.safetensors" in asked["someone/tiny"]["allow_patterns"]
    assert not any("safetensors" in pattern for pattern in asked["google-bert/bert-base-uncased"]["allow_patterns"])


def test_files_that_are_not_weights(folder, tmp_path):
    with pytest.raises(UserError, match="an empty folder"):
        GroundingDino(tmp_path)
    bad = tmp_path / "groundingdino.pth"
    bad.write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match="download it again"):
        GroundingDino(bad, tokenizer=folder)
    torch.save({"model": torch.nn.Linear(1, 1)}, bad)  # a pickled object: could run anything, is not run
    with pytest.raises(UserError, match="cannot be read as weights"):
        GroundingDino(bad, tokenizer=folder)
    shutil.copy(bad, tmp_path / "groundingdino_b.pth")
    with pytest.raises(UserError, match="pass the file itself"):
        GroundingDino(tmp_path, tokenizer=folder)


def broken(folder, tmp_path):
    """A copy whose weights lack two tensors, have one too many and one of another shape."""
    shutil.copytree(folder, tmp_path / "broken")
    state = load_file(folder / "model.safetensors")
    del state["model.level_embed"], state["bbox_embed.0.layers.2.bias"]
    state["model.text_projection.weight"] = torch.zeros(7, 7)
    save_file(state | {"adapter.weight": torch.zeros(1)}, tmp_path / "broken" / "model.safetensors")
    return tmp_path / "broken"


def test_every_tensor_that_does_not_fit_is_listed(folder, tmp_path):
    with pytest.raises(UserError) as error:
        GroundingDino(broken(folder, tmp_path))
    lines = [line.strip() for line in str(error.value).splitlines() if line.startswith("    ")]
    assert lines == ["missing: bbox_embed.0.layers.2.bias", "missing: model.level_embed", "unexpected: adapter.weight",
                     "misshapen: model.text_projection.weight is (7, 7), not (256, 32)"]  # fmt: skip


def test_box_heads_that_differ_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state["model.decoder.bbox_embed.1.layers.0.bias"] = state["bbox_embed.0.layers.0.bias"] + 1
    with pytest.raises(UserError, match="box heads of their own"):
        to_transformers(state)


def test_tokenizers_that_are_not_the_models(folder, pth, tmp_path):
    with pytest.raises(UserError, match=r"No tokenizer(.|\n)*bert-base-uncased"):
        GroundingDino(pth, config=folder)
    with pytest.raises(UserError, match="No tokenizer"):
        GroundingDino(folder, tokenizer=tmp_path)
    shutil.copy(folder / "tokenizer_config.json", tmp_path)
    (tmp_path / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace('"?": 1029', '"!": 1029'))
    with pytest.raises(UserError, match="not this model's"):
        GroundingDino(folder, tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        GroundingDino(folder, tokenizer=tmp_path)


# ------------------------------------------------------------------------------------------------ the original package


def test_the_package_is_asked_for_by_name_where_it_is_not_installed(monkeypatch, folder):
    monkeypatch.setattr(grounding_dino_models, "NEEDED", ("no_such_package",))
    with pytest.raises(UserError, match=r"without no_such_package(.|\n)*requirements-groundingdino.txt"):
        GroundingDino(folder, backend="groundingdino-py")


def test_nms_in_plain_torch_keeps_the_best_of_what_overlaps():
    rng = torch.Generator().manual_seed(0)
    corner, scores = torch.rand(200, 2, generator=rng), torch.rand(200, generator=rng)
    boxes = torch.cat([corner, corner + 0.05 + 0.3 * torch.rand(200, 2, generator=rng)], 1)
    kept = grounding_dino_models.nms(boxes, scores, 0.4).tolist()

    def overlap(a, b):
        size = (torch.minimum(boxes[a, 2:], boxes[b, 2:]) - torch.maximum(boxes[a, :2], boxes[b, :2])).clamp(min=0).prod()
        return size / ((boxes[[a, b], 2:] - boxes[[a, b], :2]).prod(1).sum() - size)

    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True) and 1 < len(kept) < 200
    for i in range(200):
        better = [k for k in kept if scores[k] > scores[i]]
        assert (i in kept) == all(overlap(i, k) <= 0.4 for k in better)
    assert grounding_dino_models.nms(boxes[:0], scores[:0], 0.4).shape == (0,)


@pytest.fixture(scope="module")
def original(folder):
    return GroundingDino(folder, backend="groundingdino-py", box_threshold=0, text_threshold=0, **SIZES)


BATCHES = {
    "one": ([(120, 160)], ["blue block. red bowl."]),
    "one text": ([(120, 160)] * 3, ["blue block. red bowl."] * 3),
    "texts of unequal length": ([(120, 160)] * 3, ["blue block. red bowl.", "cup.", "the sliding door. drawer. green light."]),
    "sizes": ([(120, 160), (150, 130)], ["blue block."] * 2),
    "sizes and texts": ([(120, 160), (150, 130)], ["blue block. red bowl.", "drawer."]),
}


@package
@pytest.mark.parametrize("batch", BATCHES)
def test_both_implementations_say_the_same_of_every_query(detect, original, batch):
    sizes, captions = BATCHES[batch]
    images = [picture(i, *size) for i, size in enumerate(sizes)]
    (logits, boxes), (others, other_boxes) = detect.raw(images, captions), original.raw(images, captions)
    assert logits.shape == others.shape and logits.dtype == others.dtype == np.float32 and logits.shape[1] == 30
    there = np.isfinite(logits)
    np.testing.assert_array_equal(there, np.isfinite(others))  # -inf beyond the end of a shorter text, in both
    apart = np.abs(logits[there] - others[there]).max(), np.abs(boxes - other_boxes).max()
    print(f"{batch}: {boxes.shape[0] * 30} queries; logits up to {np.abs(logits[there]).max():.1f} differ by at most {apart[0]:.1e}, "
          f"boxes by {apart[1]:.1e}")  # fmt: skip
    assert max(apart) < 1e-4 and logits[there].std() > 1


@package
def test_both_agree_on_boxes_at_the_borders(detect, original, folder, tmp_path):
    """With a box head that drives boxes to 0 and 1, where the package clamps at 1e-3 and the port, left alone, at 1e-5."""
    shutil.copytree(folder, tmp_path / "wild")
    state = load_file(folder / "model.safetensors")
    for name in ("bbox_embed.0.layers.2.weight", "model.encoder_output_bbox_embed.layers.2.weight"):
        state[name] *= 6
    save_file(state, tmp_path / "wild" / "model.safetensors")
    both = [GroundingDino(tmp_path / "wild", backend=backend, **SIZES) for backend in grounding_dino_models.BACKENDS]
    (logits, boxes), (others, other_boxes) = (one.raw([picture(0)], ["red bowl. cup."]) for one in both)
    assert ((boxes < 1e-3) | (boxes > 1 - 1e-3)).any(axis=2).mean() > 0.2
    print(f"at the borders: logits differ by at most {np.abs(logits - others).max():.1e}, boxes by {np.abs(boxes - other_boxes).max():.1e}")
    assert np.abs(logits - others).max() < 1e-4 and np.abs(boxes - other_boxes).max() < 1e-4


@package
@pytest.mark.full
def test_the_published_size_as_the_package_itself_builds_it(monkeypatch, folder, tmp_path):
    """swin_T_OGC from the package's own builder and config, random weights: saved as its .pth, then read by both backends.

    Of 900 proposals some score so nearly the same that rounding ranks them differently, and a query's rank decides what it starts
    from: so the port is given the package's ranking.
    """
    from pathlib import Path

    import groundingdino
    from groundingdino.models import build_model
    from groundingdino.util import get_tokenlizer
    from groundingdino.util.slconfig import SLConfig
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    bert, tokenizer = grounding_dino_models._with_masks(BertModel(BertConfig())), AutoTokenizer.from_pretrained(str(folder))
    monkeypatch.setattr(get_tokenlizer, "get_tokenlizer", lambda _: tokenizer)
    monkeypatch.setattr(get_tokenlizer, "get_pretrained_language_model", lambda _: bert)
    config = SLConfig.fromfile(str(Path(groundingdino.__file__).parent / "config" / "GroundingDINO_SwinT_OGC.py"))
    model = build_model(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "bbox_embed" in name or "gamma" in name or "sampling_offsets" in name or "attention_weights" in name:  # zero, or nearly
                tensor.copy_(torch.randn_like(tensor) * (0.02 if tensor.dim() > 1 else 0.1))
    torch.save({"model": model.state_dict()}, tmp_path / "groundingdino_swint_ogc.pth")
    options = {"tokenizer": folder, "shortest": 256, "longest": 512}
    original = GroundingDino(tmp_path, backend="groundingdino-py", **options)
    image, rank, ranks = picture(0), torch.topk, []
    monkeypatch.setattr(torch, "topk", lambda *a, **b: ranks.append(rank(*a, **b)[1]) or rank(*a, **b))
    logits, boxes = original.raw([image], ["blue block. red bowl."])
    with torch.no_grad():
        own = model(original._pixels([image])[0], captions=["blue block. red bowl."])
    np.testing.assert_array_equal(logits, own["pred_logits"][..., :8].numpy())
    np.testing.assert_array_equal(boxes, own["pred_boxes"].numpy())
    monkeypatch.setattr(torch, "topk", lambda scores, *a, **b: (scores.gather(1, ranks[0]), ranks[0]))
    others, other_boxes = GroundingDino(tmp_path, **options).raw([image], ["blue block. red bowl."])
    apart = np.abs(logits - others).max(), np.abs(boxes - other_boxes).max()
    print(f"published size: 900 queries; logits up to {np.abs(logits).max():.1f} differ by at most {apart[0]:.1e}, boxes by {apart[1]:.1e}")
    assert max(apart) < 1e-4 and logits.shape == (1, 900, 8)
    (tmp_path / "groundingdino_swint_ogc.pth").unlink()  # 0.7 GB that pytest would keep


@package
def test_both_answer_the_same_candidates(detect, original, pth, folder):
    images = [picture(i, *size) for i, size in enumerate([(120, 160), (150, 130), (120, 160)])]
    nouns = [["blue block", "red bowl"], ["drawer"], ["cup", "green light", "switch"]]
    for a, b in zip(detect(images, nouns), original(images, nouns), strict=True):
        assert a.names == b.names
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
    loaded = GroundingDino(pth, backend="groundingdino-py", tokenizer=folder, config=folder, **SIZES)
    for a, b in zip(original.raw(images[:1], ["cup."]), loaded.raw(images[:1], ["cup."]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert original.name == "grounding-dino (groundingdino-py)" and original.fingerprint() != detect.fingerprint()


@package
def test_the_package_in_half_precision(original, folder):
    half = GroundingDino(folder, backend="groundingdino-py", dtype=torch.bfloat16, **SIZES)
    (_, boxes), (_, others) = original.raw([picture(0)], ["red bowl."]), half.raw([picture(0)], ["red bowl."])
    assert np.isfinite(others).all() and (np.abs(boxes - others).max(axis=2) < 0.02).mean() > 0.5


@package
def test_pictures_are_scaled_as_the_package_does(folder):
    from groundingdino.datasets import transforms
    from PIL import Image

    detect = GroundingDino(folder)  # 800 and 1333, as its load_image
    scale = transforms.Compose([transforms.RandomResize([800], max_size=1333), transforms.ToTensor(),
                                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])  # fmt: skip
    for size in ((200, 200), (480, 640), (333, 801), (1000, 211), (900, 1700), (800, 801)):
        theirs, _ = scale(Image.fromarray(picture(0, *size)), None)
        pixels, mask = detect._pixels([picture(0, *size)])
        assert pixels[0].shape == theirs.shape and mask.all()
        assert (pixels[0] - theirs).abs().max() < 1e-5


@package
def test_every_tensor_that_does_not_fit_the_package_is_listed(folder, tmp_path):
    with pytest.raises(UserError) as error:
        GroundingDino(broken(folder, tmp_path), backend="groundingdino-py")
    lines = [line.strip() for line in str(error.value).splitlines() if line.startswith("    ")]
    assert lines == ["missing: bbox_embed.0.layers.2.bias", "missing: transformer.level_embed", "unexpected: adapter.weight",
                     "misshapen: feat_map.weight is (7, 7), not (256, 32)"]  # fmt: skip


@package
def test_other_users_of_bert_and_of_the_package_see_no_change(original):
    import transformers
    from groundingdino.util import get_tokenlizer
    from transformers import BertConfig, BertModel

    other = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    ours = original.model.model.bert
    new = int(transformers.__version__.split(".")[0]) >= 5
    assert ("_with_masks" in ours.get_head_mask.__qualname__) == new and "get_head_mask" not in vars(other)
    assert "get_extended_attention_mask" not in vars(other) and get_tokenlizer.get_tokenlizer.__name__ == "get_tokenlizer"


def test_without_weights_nothing_takes_their_place(monkeypatch, tmp_path):
    from repro.gaze import detectors

    monkeypatch.setenv("KAGGLE_INPUT", str(tmp_path))
    monkeypatch.setattr("repro.gaze.grounding_dino.find_weights", lambda *folders: None)
    for name in ("transformers", "groundingdino-py"):
        with pytest.raises(UserError, match="weights are not here"):
            detectors.load(name)
