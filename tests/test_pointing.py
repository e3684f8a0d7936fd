"""The tiny language model learns to point, is found again, and is what a policy begins with."""
import hashlib
import json

import numpy as np
import pytest
import torch

from repro.models import pointing, tiny
from repro.models.reconvla import ReconVLA
from repro.models.reconvla_config import PRESETS

STATS = {"observation.state": {"mean": [0.0] * 15, "std": [1.0] * 15}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, drawn = tmp_path_factory.mktemp("parts"), tiny.Drawn(48, ("A", "B", "C"), 0, None)
    tiny.pretrain_tower(folder, steps=6, pictures=48, drawn=drawn, log=lambda _: None)
    tiny.pretrain_vae(folder, steps=2, pictures=48, drawn=drawn, log=lambda _: None)
    pointing.pretrain_language(folder, steps=25, pictures=48, drawn=drawn, log=lambda _: None)
    return folder


def test_questions_name_one_thing_each_and_validation_sentences_are_others():
    asked = pointing.questions()
    assert len(asked) == 7  # three blocks, drawer, slider, button, switch
    for training, validation in asked.values():
        assert training and validation and not set(training) & set(validation)
    assert not any("tower" in sentence for training, _ in asked.values() for sentence in training)  # stacks are no single thing


def test_a_question_shows_the_thing_in_its_box():
    data = tiny.draw_pictures(6, seed=3)
    ask = pointing.Questions(data, np.zeros((6, 64, 160), np.float16))
    batch = ask(np.arange(len(ask)), np.random.default_rng(0), np.zeros(15, np.float32))
    for row, item, box, action in zip(ask.rows, ask.items, batch["gaze.box"], batch["action"][:, 0], strict=True):
        shown = data.ids[row, :24] == item
        inside = np.zeros_like(shown)
        x0, y0, x1, y1 = (box * (32, 24, 32, 24)).round().astype(int)
        inside[y0:y1, x0:x1] = True
        assert shown.sum() >= pointing.LEAST and not (shown & ~inside).any() and shown[y0].any() and shown[:, x1 - 1].any()
        assert np.allclose((action + 1) / 2, box)


def test_it_learns_and_its_record_says_how_well_beside_the_mean_box(folder):
    about = json.loads((folder / "language" / "about.json").read_text())
    assert about["loss"] < 0.75 * about["first_loss"]
    assert 0 < about["box_error_of_the_mean_box"] < 0.5 and about["box_error"] > 0 and about["held_out_looks"] >= 3


def test_it_is_found_again_and_another_one_is_trained_anew(folder, tmp_path):
    said = []
    before = (folder / "language" / "language.safetensors").read_bytes()
    pointing.pretrain_language(folder, steps=25, pictures=48, log=said.append)
    assert not said and (folder / "language" / "language.safetensors").read_bytes() == before


def test_a_policy_begins_with_its_weights_and_tokenizer(folder):
    parts = tiny.load_parts(folder)
    slots = parts["language"].get_input_embeddings().weight.detach().clone()
    projector = parts["projector"][0].weight.detach().clone()
    model = ReconVLA.build(PRESETS["tiny"], STATS, instructions=["something else"], **parts)
    assert torch.equal(model.decoder.get_input_embeddings().weight, slots)  # ordered bins do not write over what was learned
    assert torch.equal(model.mm_projector[0].weight, projector)
    file = folder / "language" / "language.safetensors"
    assert model.decoder.began_as["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()  # a run's checkpoints say so (launch.py)
    assert model.text.tokenizer.vocab_size == parts["tokenizer"].vocab_size


def test_without_it_the_parts_are_tower_and_vae_alone(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "language")
    assert sorted(tiny.load_parts(tmp_path / "parts")) == ["vae", "vision"]
