"""The change agent: losses, what reaches the head, captions, batches, checkpoints. Run: pytest tests/test_change_agent.py"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from fake_pairs import store
from safetensors.torch import load_file
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from repro.data import levir_boxes, overlap
from repro.data.change_batches import PairBatches, augmented, flipped
from repro.machine import UserError
from repro.models.change_agent import ASK, NO_CHANGE, PRESETS, ChangeAgent, shrink
from repro.models.change_agent_losses import crossed, giou, target
from repro.models.change_agent_parts import Readers, TinyTower
from repro.models.prompt import small_tokenizer
from repro.training import change_training

TINY = {"image_size": 32, "channels": 4, "hidden": 32, "heads": 2, "intermediate": 32, "layers": 1}
SMALL = {"tiny_guide": TINY, "tiny_ours": {**TINY, "width": 16, "readers": 2, "mixing": 1}}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return store(tmp_path_factory.mktemp("pairs") / "train", 20, size=32)


@pytest.fixture(scope="module")
def sentences(pairs):
    return sorted({one for some in pairs.column("captions") for one in some})


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, sentences):
    """Folders read like the published ones: "clip" of 4 x 4 patches, "qwen" of hidden 64, "other" of hidden 48."""
    top = tmp_path_factory.mktemp("shelf")
    tokenizer = small_tokenizer([*sentences, ASK])
    torch.manual_seed(3)
    CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
                                     patch_size=8)).save_pretrained(top / "clip")  # fmt: skip
    for name, hidden in (("qwen", 64), ("other", 48)):
        Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=2, initializer_range=0.2, bos_token_id=None,
                                     eos_token_id=None, tie_word_embeddings=True)).save_pretrained(top / name)  # fmt: skip
        tokenizer.save_pretrained(top / name)
    return top


def build(name, sentences, seed=0, **changes):
    torch.manual_seed(seed)
    return ChangeAgent.build(replace(PRESETS[name], **{**SMALL[name], **changes}), sentences)


def published(shelf, preset="ours", seed=0, **changes):
    """A full preset on the small folders."""
    torch.manual_seed(seed)
    given = {"vision": str(shelf / "clip"), "language": str(shelf / "qwen"), "quantise": "", "dtype": "float32", "width": 16, "readers": 2}
    return ChangeAgent.build(replace(PRESETS[preset], **{**given, **changes}))


def batch(model, pairs, rows=range(8)):
    return PairBatches(pairs, 8, prepare=model.prepare_many, key=model.key, log=lambda line: None).gather(np.arange(20)[list(rows)])


# ---- losses --------------------------------------------------------------------------------------------------------------------------


def test_targets_and_overlaps_are_the_data_halfs():
    boxes = torch.tensor([[0.1, 0.2, 0.5, 0.4], [float("nan")] * 4])
    vector, filled, weight = target(boxes, "main", "masked")
    assert np.allclose(vector[0], levir_boxes.encode(boxes[0].numpy())) and weight.tolist() == [1, 0] and filled[1].tolist() == [0, 0, 1, 1]
    vector, _, weight = target(boxes, "main", "whole")
    assert vector[1].tolist() == [0.5, 0.5, 1.0] and weight.tolist() == [1, 1]
    assert target(boxes, "whole", "masked")[0].tolist() == [[0.5, 0.5, 1.0]] * 2 and target(boxes, "whole", "masked")[2].sum() == 2
    said = torch.tensor([[0.3, 0.3, 0.3], [0.9, 0.9, 0.4], [0.2, 0.2, 0.2]])
    true = torch.tensor([[0.1, 0.2, 0.5, 0.4], [0.6, 0.6, 1.0, 1.0], [0.5, 0.2, 0.7, 0.4]])
    iou = overlap.iou(levir_boxes.decode(said.numpy()), true.numpy())
    found = giou(said, true).tolist()  # IoU less the share of the hull that neither covers
    assert found == pytest.approx([iou[0] - 0.01 / 0.12, iou[1], -0.10 / 0.18], abs=1e-5) and iou[:2] == pytest.approx([6 / 11, 9 / 16])
    assert crossed(torch.full((1, 2, 2), 0.25), torch.tensor([[0.0, 0.0, 0.5, 0.5]]))[0] == pytest.approx(np.log(4), abs=1e-5)


def test_readers_say_the_square_over_which_a_map_is_even():
    readers = Readers(8, 8, 2, (64, 64))
    with torch.no_grad():
        for part in (readers.ask, readers.lean):
            part.weight.zero_(), part.bias.zero_()
        readers.lean.weight[:, 0] = 1.0
        cells = torch.zeros(1, 8, 64, 64)
        cells[:, 0] = -50.0
        cells[:, 0, 16:32, 8:40] = 50.0  # rows, columns: y 0.25 to 0.5, x 0.125 to 0.625
        found, maps, square = readers(torch.zeros(1, 8), cells)
    assert np.allclose(square[0], levir_boxes.encode(np.float32([0.125, 0.25, 0.625, 0.5])), atol=2e-3) and found.shape == (1, readers.out)
    assert maps[0, 1, 16:32, 8:40].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("loss", ["mse", "l1", "iou"])
def test_losses_are_the_formulas_and_pairs_without_a_box_are_left_out(loss, pairs, sentences):
    model = build("tiny_ours", sentences, loss=loss, caption_dropout=0.0).eval()
    given = batch(model, pairs)
    with torch.no_grad():
        said, out = model.answer(given, given["caption"]), model.loss(given)
    has = ~np.isnan(given["box"]).any(1)
    assert 0 < has.sum() < 8 and (np.array(pairs.column("state"))[:8] == "localisable").sum() == has.sum()
    error = said["vector"].numpy()[has] - levir_boxes.encode(given["box"][has])
    overlap = giou(said["vector"][has], torch.tensor(given["box"][has])).numpy()
    wanted = {"mse": (error**2).mean(1), "l1": np.abs(error).mean(1), "iou": np.abs(error).mean(1) + 1 - overlap}[loss]
    assert float(out["action"]) == pytest.approx(wanted.mean(), rel=1e-4)
    signs = np.where(given["changed"], 1, -1)
    assert float(out["gate"]) == pytest.approx(np.log1p(np.exp(-signs * said["gate"].numpy())).mean(), rel=1e-4)
    c = model.config
    parts = out["action"] + c.gate_weight * out["gate"] + c.caption_weight * out["caption"] + c.point_weight * out["point"]
    assert float(out["loss"]) == pytest.approx(float(parts), rel=1e-5)
    other = {**given, "box": np.where(has[:, None], given["box"], np.float32([0, 0, 0.1, 0.1]))}
    assert float(model.loss(other)["action"].detach()) != pytest.approx(float(out["action"]))  # a box there would have counted


def test_captions_are_taught_word_by_word_and_unchanged_pairs_one_sentence(pairs, sentences):
    model = build("tiny_ours", sentences, caption_dropout=0.0).eval()
    given = batch(model, pairs, range(2))  # an unchanged and a changed pair
    given["caption"] = [NO_CHANGE, given["caption"][1]]
    with torch.no_grad():
        both, said = float(model.loss(given)["caption"]), model.answer(given, given["caption"])
        logits = model.decoder.lm_head(said["states"])
    begins, losses = len(model.question), []
    for i, caption in enumerate(given["caption"]):
        ids = model.ids(caption)
        for place in range(begins, len(ids)):  # the state at the word before says the word
            losses.append(-float(logits[i, place].log_softmax(-1)[ids[place]]))
    assert both == pytest.approx(np.mean(losses), rel=1e-4) and ids[-1] == model.tokenizer.eos_token_id
    given["caption"] = ["there is no difference", given["caption"][1]]  # told, and not taught
    with torch.no_grad():
        assert float(model.loss(given)["caption"]) == pytest.approx(np.mean(losses[begins - len(ids) :]), rel=1e-4)


# ---- what reaches the head -----------------------------------------------------------------------------------------------------------


def test_the_guides_head_never_hears_the_caption_past_its_first_token_and_ours_does(pairs, sentences):
    for name, same in (("tiny_guide", True), ("tiny_ours", False)):
        model = build(name, sentences)
        given = batch(model, pairs, range(2))
        one, two = (model.answers(given, [text, text])["vector"] for text in ("a house appears", "a house in the top left"))
        assert np.array_equal(one, two) == same
    model = build("tiny_guide", sentences, read="last")
    assert not np.array_equal(*(model.answers(given, [text, text])["vector"] for text in ("a house appears", "a house in the top left")))


def test_answers_do_not_depend_on_what_stands_beside_in_the_batch(pairs, sentences):
    model = build("tiny_ours", sentences)
    given = batch(model, pairs, range(3))
    told = [None, "a house is built in the top left", "a new house"]
    together = model.answers(given, told)
    for i in range(3):
        alone = model.answers({"pictures": given["pictures"][i : i + 1]}, told[i : i + 1])
        for name, values in together.items():
            assert np.allclose(alone[name][0], values[i], atol=2e-5), name
    assert together["map"].shape == (3, 4, 4) and np.allclose(together["map"].sum((1, 2)), 1, atol=1e-5)
    assert set(together) == {"vector", "changed", "map"} and set(build("tiny_guide", sentences).answers(given, told)) == {"vector"}


POOLED = {"features": "pooled", "caption_weight": 0.0, "point_weight": 0.0, "anchor": False}


@pytest.mark.parametrize("change", [{}, {"fusion": "add"}, POOLED])
def test_every_part_gets_a_gradient(change, pairs, sentences):
    model = build("tiny_ours", sentences, caption_dropout=0.0, **change)
    model.loss(batch(model, pairs))["loss"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_a_few_pairs_are_learned_by_heart_box_gate_and_caption(pairs, sentences):
    model = build("tiny_ours", sentences, caption_dropout=0.5)
    given = batch(model, pairs, [0, 1, 3, 2])
    given["caption"] = [NO_CHANGE, *given["caption"][1:3], NO_CHANGE]
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        model.loss(given)["loss"].backward()
        optimizer.step()
    found = model.answers(given, [None] * 4)
    iou = overlap.iou(levir_boxes.decode(found["vector"][1:3]), given["box"][1:3])
    assert (iou > 0.6 * levir_boxes.ceiling(given["box"][1:3])).all() and ((found["changed"] >= 0.5) == given["changed"]).all()
    assert model.write(given) == given["caption"] == model.write(given, beams=2)


def test_what_it_wrote_before_changes_no_answer_and_can_always_be_told(pairs, sentences):
    model, fresh = build("tiny_ours", sentences, text_length=12), build("tiny_ours", sentences, text_length=12)
    given = batch(model, pairs)
    written = model.write(given)  # of random weights: broken letters
    told = model.fitted(written)
    assert all(len(model.tokenizer.encode(" " + text)) <= 12 for text in told) and told != written
    assert all(len(one) <= len(other) for one, other in zip(told, written, strict=True))
    with pytest.raises(UserError, match="too long"):
        model.answers(given, written)
    assert np.array_equal(model.answers(given, told)["vector"], fresh.answers(given, told)["vector"])
    assert model.fitted([NO_CHANGE, ""]) == [NO_CHANGE, ""]


# ---- batches -------------------------------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_seed_and_step_and_cover_an_epoch(pairs, sentences):
    model = build("tiny_ours", sentences)
    make = lambda seed=0: PairBatches(pairs, 5, seed, model.prepare_many, model.key, captions="any", unchanged=NO_CHANGE, flips=True,
                                      log=lambda line: None)  # fmt: skip
    one, two = make()(3), make()(3)
    assert one.pop("caption") == two.pop("caption")
    assert all(np.array_equal(one[name], two[name], equal_nan=name == "box") for name in one)
    seen = np.concatenate([make()(step)["index"] for step in range(4)])
    assert sorted(seen.tolist()) == list(range(20)) and not np.array_equal(make(1)(0)["index"], make()(0)["index"])
    told = [make()(step) for step in range(12)]
    quiet = [caption for one in told for caption, changed in zip(one["caption"], one["changed"], strict=True) if not changed]
    assert 0.35 < np.mean([caption == NO_CHANGE for caption in quiet]) < 0.85 and len(set(quiet)) > 3


def test_flips_move_pictures_boxes_and_words_together():
    picture = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    box = np.float32([0.0, 0.25, 0.5, 0.5])
    shown, moved, told = flipped(picture, box, "a house in the top left, left of the upper road", 1)
    assert np.array_equal(shown[:, :, 0], picture[:, :, 3]) and moved.tolist() == [0.5, 0.25, 1.0, 0.5]
    assert told == "a house in the top right, right of the upper road"
    shown, moved, told = flipped(picture, box, "a house in the top left corner", 3)
    assert np.array_equal(shown[:, 0, 0], picture[:, 3, 3]) and moved.tolist() == [0.5, 0.5, 1.0, 0.75] and "bottom right" in told
    assert flipped(picture, box, "top left", 0)[2] == "top left" and np.isnan(flipped(picture, np.full(4, np.nan), "", 3)[1]).all()


def lit(i: int, size: int = 32):
    """A pair whose only change is one white oblong, at the mask; every third names a place, every fifth is changed without a mask."""
    from repro.data import levir

    rng = np.random.default_rng(i)
    before = np.full((size, size, 3), 60, np.uint8)
    before[:4, :4] = 150  # a corner that both dates have
    after, mask = before.copy(), np.zeros((size, size), np.uint8)
    x, y = rng.integers(5, 20, 2)
    after[y : y + 5, x : x + 9] = 255
    if i % 5 != 4:
        mask[y : y + 5, x : x + 9] = 2
    side = "left" if x + 4.5 < size / 2 else "right"
    return levir.pair(f"p{i}", "train", before, after, (f"a house is built on the {side}" if i % 3 == 0 else "a house is built",) * 5, mask)


def test_augmented_batches_move_both_dates_the_box_and_the_words_together(tmp_path, shelf):
    from repro.data import levir

    made = levir.write_store(map(lit, range(15)), tmp_path / "lit")
    model = published(shelf, "t4")
    assert model.config.augment and not model.config.cache_features and not PRESETS["ours"].augment and not PRESETS["tiny_ours"].augment
    build_batches = lambda seed=0: change_training.batches_of(made, model, 5, seed, log=lambda line: None)
    batches, places, tall, sizes = build_batches(), set(), set(), []
    for step in range(24):
        one = batches(step)
        for (before, after), box, caption, row in zip(one["pictures"], one["box"], one["caption"], one["index"], strict=True):
            white = np.argwhere(after.min(2) > 200)
            top, left, bottom, right = (*white.min(0), *(white.max(0) + 1))
            assert (before < 200).all() and (before > 100).any() == (after[..., 0] == 150).any(), "the corner moves in both dates"
            if row % 5 == 4:
                assert np.isnan(box).all() and len(white) == 45, "a change that nobody can point at is not cut off"
            else:
                assert np.abs(box * 32 - (left, top, right, bottom)).max() < 1.5, "where its pixels are"
            if row % 3 == 0:
                assert caption.split()[-1] == ("left" if left + right < 32 else "right") and right - left == 9
            else:
                tall.add(bool(bottom - top > right - left))
                sizes.append(len(white))
            places.add((left + right < 32, top + bottom < 32))
    assert len(places) == 4 and tall == {True, False} and max(sizes) > 55, "turned, flipped and cut"
    again, other = build_batches()(3), build_batches(1)(3)
    assert all(np.array_equal(again[name], batches(3)[name], equal_nan=name == "box") for name in ("pictures", "box", "index"))
    assert not np.array_equal(again["pictures"], other["pictures"])
    plain = batches.gather(np.arange(3))
    assert np.array_equal(plain["pictures"][:, 1], made.pictures(range(3))[1]), "what is measured is not moved"
    model.train().loss(again)["loss"].backward()
    assert model.projector.weight.grad.abs().sum() > 0


def test_cached_features_are_never_augmented(shelf, pairs, sentences):
    for preset, given in (("t4", {"cache_features": True}), ("ours", {"augment": True})):
        with pytest.raises(UserError, match="cached cannot be augmented"):
            published(shelf, preset, **given)
    model = published(shelf)
    with pytest.raises(UserError, match="only pictures can be augmented"):
        PairBatches(pairs, 4, 0, model.prepare_many, model.key, augment=True, log=lambda line: None)
    tiny = build("tiny_ours", sentences, augment=True)  # trains, so it sees pictures anyway
    assert change_training.batches_of(pairs, tiny, 4, log=lambda line: None).move is augmented


def test_the_key_tells_frozen_towers_apart(shelf):
    seen = published(shelf)
    assert seen.key == published(shelf, seed=1).key, "what trains is no part of it"
    keys = [seen.key]
    with torch.no_grad():
        next(seen.tower.parameters()).view(-1)[0] += 1
    keys.append(seen.key)
    seen.tower.image_mean = [0.1, 0.2, 0.3]  # of a preprocessor_config.json: other pixels, the same weights
    keys.append(seen.key)
    seen.tower.image_std = [0.1, 0.2, 0.3]
    assert len({*keys, seen.key}) == 4, "features that another tower saw are not read"


def test_prepared_features_are_found_again_and_stale_ones_are_named_and_deleted(tmp_path, shelf):
    place, told = tmp_path / "data", []
    model, calls = published(shelf), []
    prepare = lambda before, after: calls.append(len(before)) or model.prepare_many(before, after)
    data = store(place, 6, size=32)
    first = PairBatches(data, 2, prepare=prepare, key=model.key, log=told.append)
    assert first.prepared["features"].shape == (6, 2, 17, 32) and first.prepared["features"].dtype == np.float16 and sum(calls) == 6
    assert told.pop().startswith("prepared pictures: 6/6 pairs")
    PairBatches(data, 2, prepare=prepare, key=model.key, log=told.append)
    assert sum(calls) == 6 and not told
    made = Path(first.prepared["features"].filename)
    shutil.rmtree(place)
    PairBatches(store(place, 6, size=32, seed=9), 2, prepare=prepare, key=model.key, log=told.append)
    assert sum(calls) == 12 and "earlier version" in told[0] and not made.exists()
    cached = first.gather(np.arange(2))
    model.config = replace(model.config, cache_features=False)
    straight = model.prepare_many(*store(tmp_path / "again", 6, size=32).pictures([0, 1]))
    assert straight["pictures"].dtype == np.uint8 and "seen by" not in model.key
    assert np.allclose(model.answers(straight, [None] * 2)["vector"], model.answers(cached, [None] * 2)["vector"], atol=2e-3)


def test_guessed_boxes_are_never_taught(tmp_path):
    from repro.data import levir

    shown = np.zeros((32, 32, 3), np.uint8)
    bright = shown.copy()
    bright[5:15, 5:15] = 255
    guessed = levir.pair("a", "train", shown, bright, ("a house",) * 5, difference=True)
    given = levir.pair("b", "train", shown, bright, ("a house",) * 5, box=np.float32([0.1, 0.1, 0.5, 0.5]))
    assert guessed.box_source == "diff"
    made = PairBatches(levir.write_store([guessed, given], tmp_path / "s"), 2)
    assert np.isnan(made.box[0]).all() and made.box[1].tolist() == pytest.approx([0.1, 0.1, 0.5, 0.5])
    with pytest.raises(UserError, match="only pictures can be flipped"):
        PairBatches(levir.write_store([given], tmp_path / "t"), 2, flips=True)


def test_shrinking_is_area_averaging():
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(shrink(pictures, 8), pictures)
    blocks = pictures.reshape(2, 2, 4, 2, 4, 2, 3).mean((3, 5))
    assert np.abs(shrink(pictures, 4) - blocks).max() <= 1  # rounded twice: across, then down
    assert shrink(pictures, 6).shape == (2, 2, 6, 6, 3)


# ---- pretrained parts ----------------------------------------------------------------------------------------------------------------


def test_the_towers_pooled_vector_is_transformers_own(shelf):
    model = published(shelf, "guide")
    own = CLIPVisionModel.from_pretrained(shelf / "clip")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model.tower.whole(pixels)[:, 0], own(pixels).pooler_output, atol=1e-5)
        assert torch.equal(model.tower(pixels), model.tower.whole(pixels)[:, 1:])


def test_another_vision_tower_is_one_argument_and_sees_its_own_normalisation(tmp_path, shelf, pairs):
    from transformers import Dinov2Config, Dinov2Model, SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "dino")
    SiglipVisionModel(SiglipVisionConfig(**sizes, intermediate_size=32)).save_pretrained(tmp_path / "siglip")
    (tmp_path / "siglip" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    model = published(shelf, vision=str(tmp_path / "dino"))
    shown = np.stack(pairs.pictures([0, 1]), 1)
    size, own = model.tower.image_size, Dinov2Model.from_pretrained(tmp_path / "dino")
    small = np.stack([PIL.Image.fromarray(one).resize((size, size), PIL.Image.Resampling.BICUBIC) for pair in shown for one in pair])
    pixels = (small / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = own(torch.tensor(pixels).permute(0, 3, 1, 2).float()).last_hidden_state.unflatten(0, (2, 2))
        assert torch.allclose(model._see(shown), wanted, atol=1e-3)
    assert model.grid.join.in_features == 3 * 24 and model.loss(batch(model, pairs))["loss"].isfinite()
    with pytest.raises(UserError, match="no pooled vector"):
        published(shelf, vision=str(tmp_path / "siglip"))


def test_a_vit_is_one_argument_and_says_its_own_normalisation(tmp_path, shelf, pairs):
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    sizes["intermediate_size"] = 32
    ViTModel(ViTConfig(**sizes), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    with pytest.raises(UserError, match="(?s)normalised.*preprocessor_config.json"):
        published(shelf, vision=str(tmp_path / "vit"))
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}))
    model = published(shelf, vision=str(tmp_path / "vit"))
    shown, own = np.stack(pairs.pictures([0, 1]), 1), ViTModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False)
    pixels = torch.tensor((shown.reshape(4, 32, 32, 3) / 255 - 0.4) / 0.2).permute(0, 3, 1, 2).float()  # of its own size: not resized
    with torch.no_grad():
        wanted = own(pixels).last_hidden_state.unflatten(0, (2, 2))
        assert torch.allclose(model._see(shown), wanted, atol=1e-3)
    assert model.loss(batch(model, pairs))["loss"].isfinite()
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    again = ChangeAgent.load(tmp_path / "saved")
    assert np.array_equal(again.act(*pairs.pictures([1]))["vector"], model.act(*pairs.pictures([1]))["vector"])


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral"])
def test_another_family_of_language_models_is_one_argument(family, tmp_path, shelf, pairs, sentences):
    import transformers

    tokenizer = small_tokenizer([*sentences, ASK])
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 24, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    config = getattr(transformers, f"{family}Config")(**sizes)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    model = published(shelf, language=str(tmp_path / "other"))
    assert model.decoder.config.model_type == family.lower() and model.projector.out_features == 48
    given = batch(model, pairs)
    model.loss(given)["loss"].backward()
    train = [name for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None and p.grad.abs().sum()]
    assert len(train) == 2 and len(model.write(given)) == 8
    (tmp_path / "saved").mkdir()
    model.save(tmp_path / "saved")
    again, told = ChangeAgent.load(tmp_path / "saved"), ["a house appears"] * 8
    assert np.array_equal(again.answers(given, told)["vector"], model.eval().answers(given, told)["vector"])
    with pytest.raises(UserError, match=f"(?s)language.model_type *\\| {family.lower()} *\\| qwen2"):
        ChangeAgent.load(tmp_path / "saved", language=str(shelf / "qwen"))


def test_a_language_model_without_the_layers_that_are_asked_is_refused(tmp_path, shelf, sentences):
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = small_tokenizer([*sentences, ASK])
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=None)
                    ).save_pretrained(tmp_path / "gpt2")  # fmt: skip
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match="(?s)keeps its layers elsewhere.*Llama"):
        published(shelf, language=str(tmp_path / "gpt2"))
    with pytest.raises(UserError, match="does not hold the language model"):
        published(shelf, language=str(shelf / "clip"))


@pytest.mark.parametrize("preset", ["guide", "t4"])
def test_widths_come_from_the_parts_and_only_new_parts_and_adapters_train(preset, shelf, pairs):
    model = published(shelf, preset)
    assert model.projector.out_features == 64 and model.head[0].in_features == 64 and model.head[-1].out_features == 3
    assert model.projector.in_features == (2 * 32 if preset == "guide" else 16)
    model.loss(batch(model, pairs))["loss"].backward()
    train = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum()} <= train
    frozen = [name for name, _ in model.named_parameters() if name not in train]
    assert all(name.startswith(("tower.", "decoder.")) for name in frozen)
    adapters = sorted({name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in train if "lora_" in name})
    assert adapters == ["q_proj", "v_proj"] and all("lora_" in name for name in train if name.startswith("decoder."))
    assert model.decoder.lora.rank == 8 and model.decoder.lora.alpha == 16 and model.decoder.lora.dropout == 0.05


def test_four_bits_train_after_an_evaluation(shelf, pairs):
    pytest.importorskip("bitsandbytes")
    model = published(shelf, "ours", quantise="nf4", caption_dropout=0.0)
    assert any(type(part).__name__ == "Linear4bit" for part in model.decoder.modules())
    assert all(not part.support_avx512bf16_for_cpu for part in model.decoder.modules() if hasattr(part, "support_avx512bf16_for_cpu"))
    given = batch(model, pairs)
    model.answers(given, [None] * 8)  # on some CPUs this would spoil the gradients without the guard
    model.train().loss(given)["loss"].backward()
    grads = {name: p.grad for name, p in model.named_parameters() if "lora_B" in name}
    assert grads and all(grad is not None and grad.abs().sum() > 0 for grad in grads.values())


def test_nothing_random_is_frozen_and_nothing_else_is_taken(shelf, sentences, tmp_path):
    with pytest.raises(UserError, match="missing"):
        published(shelf, vision=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="missing"):
        published(shelf, language=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="does not hold the vision tower"):
        (tmp_path / "clip32").mkdir()
        published(shelf, vision=str(shelf / "qwen"))
    model = build("tiny_ours", sentences)
    model.tower.requires_grad_(False)
    with pytest.raises(UserError, match="random weights is never frozen"):
        ChangeAgent(model.config, model.tower, model.decoder, model.tokenizer)
    with pytest.raises(UserError, match="captions and pointing need to see the grid"):
        replace(PRESETS["guide"], caption_weight=0.1)
    with pytest.raises(UserError, match="unknown fusion"):
        replace(PRESETS["guide"], fusion="gate")
    with pytest.raises(UserError, match="did not learn to write"):
        build("tiny_guide", sentences).write({"pictures": np.zeros((1, 2, 32, 32, 3), np.uint8)})
    with pytest.raises(UserError, match="too long"):
        build("tiny_ours", sentences, text_length=3).ids("a house is built in the top left of the picture")


# ---- on disk -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tiny_guide", "tiny_ours", "published"])
def test_a_checkpoint_answers_as_the_model_did(kind, tmp_path, pairs, sentences, shelf):
    model = published(shelf) if kind == "published" else build(kind, sentences)
    given = batch(model, pairs, range(3))
    model.save(tmp_path)
    torch.manual_seed(99)
    again = ChangeAgent.load(tmp_path)
    told = ["a house appears", None, NO_CHANGE]
    first, second = model.answers(given, told), again.answers(given, told)
    assert all(np.array_equal(first[name], second[name]) for name in first) and again.config == model.config
    held = load_file(tmp_path / "model.safetensors")
    if kind == "published":
        assert not any(name.startswith("tower.") for name in held) and all("lora_" in name for name in held if name.startswith("decoder."))
    with pytest.raises(UserError, match="does not fit the model"):
        again.load_weights({**held, "extra": torch.zeros(1)}, "x")


def test_a_checkpoint_of_other_parts_is_refused(tmp_path, shelf, sentences):
    published(shelf).save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    said = about["belongs"]
    assert said["language"]["hidden_size"] == 64 and said["vision"]["sha256"] and said["action"]["box"] == "main"
    with pytest.raises(UserError, match="hidden_size"):
        ChangeAgent.load(tmp_path, language=str(shelf / "other"))
    torch.manual_seed(4)
    fine = Qwen2ForCausalLM.from_pretrained(shelf / "qwen")
    torch.nn.init.normal_(fine.model.layers[0].mlp.up_proj.weight)
    fine.save_pretrained(tmp_path / "tuned")
    small_tokenizer([*sentences, ASK]).save_pretrained(tmp_path / "tuned")
    with pytest.raises(UserError, match="sha256"):
        ChangeAgent.load(tmp_path, language=str(tmp_path / "tuned"))
    (tmp_path / "model.json").write_text(json.dumps({**about, "config": {**about["config"], "horizon": 3}}))
    with pytest.raises(UserError, match="horizon"):
        ChangeAgent.load(tmp_path)
    with pytest.raises(UserError, match="holds no model"):
        ChangeAgent.load(tmp_path / "nothing")


def test_presets_are_the_guides():
    guide, ours = asdict(PRESETS["guide"]), asdict(PRESETS["ours"])
    assert (guide["lora_rank"], guide["lora_alpha"], guide["lora_dropout"], guide["lora_targets"]) == (8, 16, 0.05, ("q_proj", "v_proj"))
    assert guide["read"] == "first" and guide["features"] == "pooled" and guide["quantise"] == "nf4" and not guide["gate_weight"]
    assert ours["read"] == "last" and ours["features"] == "grid" and ours["unboxed"] == "masked" and ours["gate_weight"] > 0
    assert TinyTower(64, 16).dim == 64 and TinyTower(64, 16).grid == (8, 8)
