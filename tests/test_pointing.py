"""The tiny language model learns to point, is found again, and is what a policy begins with."""
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from repro.models import pointing, tiny, tiny_pictures, tiny_training
from repro.models.reconvla import ReconVLA
from repro.models.reconvla_config import PRESETS
from repro.sims.tabletop import scenes, tasks
from repro.sims.tabletop.expert import Expert
from repro.sims.tabletop.world import PlayTable

STATS = {"observation.state": {"mean": [0.0] * 15, "std": [1.0] * 15}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, drawn = tmp_path_factory.mktemp("parts"), tiny_pictures.Drawn(48, ("A", "B", "C"), 0, None)
    tiny_training.pretrain_tower(folder, steps=6, pictures=48, drawn=drawn, log=lambda _: None)
    tiny_training.pretrain_vae(folder, steps=2, pictures=48, drawn=drawn, log=lambda _: None)
    pointing.pretrain_language(folder, steps=25, pictures=48, drawn=drawn, log=lambda _: None)
    return folder


def test_questions_name_one_thing_each_and_validation_sentences_are_others():
    asked = pointing.questions()
    assert len(asked) == 7  # three blocks, drawer, slider, button, switch
    for training, validation in asked.values():
        assert training and validation and not set(training) & set(validation)
    assert not any("tower" in sentence for training, _ in asked.values() for sentence in training)  # stacks are no single thing


def test_a_question_shows_the_thing_in_its_box():
    data = tiny_pictures.draw_pictures(6, seed=3)
    ask = pointing.Questions(data, np.zeros((6, 64, 160), np.float16))
    batch = ask(np.arange(len(ask)), np.random.default_rng(0))
    for row, item, box, action in zip(ask.rows, ask.items, batch["gaze.box"], batch["action"][:, 0], strict=True):
        shown = data.ids[row, :24] == item
        inside = np.zeros_like(shown)
        x0, y0, x1, y1 = (box * (32, 24, 32, 24)).round().astype(int)
        inside[y0:y1, x0:x1] = True
        assert shown.sum() >= pointing.LEAST and not (shown & ~inside).any() and shown[y0].any() and shown[:, x1 - 1].any()
        assert np.allclose((action[3:] + 1) / 2, box)


def test_the_answer_leads_from_the_hand_to_the_thing():
    """The expert's hand is at that place when it has done the task."""
    asked = {"open_drawer": "drawer", "close_drawer": "drawer", "move_slider_left": "slider", "turn_on_led": "button",
             "turn_on_lightbulb": "switch", "lift_blue_block_table": "blue_block"}
    for i, (task, item) in enumerate(asked.items()):
        table, rng = PlayTable("ABC"[i % 3]), np.random.default_rng(i)
        table.reset(table.sample(tasks.symbolic_for(task, rng), rng), render=False)
        table.start_task()
        expert = Expert(table, task, rng, 0.05)
        while not table.done(task):
            table.step(expert.act(), render=False)
        env = table.scene_obs()
        env = np.concatenate([env[:6], env[6:].reshape(3, 6)[[table.scene.block_order.index(b) for b in scenes.BLOCKS]].ravel()])
        away = np.array(table.pose[:3]) - tiny_pictures.handles(table.scene, env)[scenes.ITEMS.index(item)]
        assert np.abs(away).max() < 0.07, (task, away)
    data = tiny_pictures.draw_pictures(6, seed=3)
    ask = pointing.Questions(data, np.zeros((6, 64, 160), np.float16))
    batch = ask(np.arange(len(ask)), np.random.default_rng(0))
    there = batch["state"][:, :3] + batch["action"][:, 0, :3] * pointing.REACH
    near = np.abs(batch["action"][:, 0, :3]).max(1) < 1
    assert near.sum() > 5 and np.allclose(there[near], data.places[ask.rows, ask.items - 1][near], atol=1e-5)


def test_it_learns_and_its_record_says_how_well_beside_the_mean_box(folder):
    about = json.loads((folder / "language" / "about.json").read_text())
    assert about["loss"] < 0.75 * about["first_loss"]
    assert 0 < about["box_error_of_the_mean_box"] < 0.5 and about["box_error"] > 0 and about["held_out_looks"] >= 3
    assert 0.01 < about["distance_error_of_the_mean"] < 0.5 and about["distance_error"] > 0


def test_it_is_found_again_and_another_one_is_trained_anew(folder, tmp_path):
    said = []
    before = (folder / "language" / "language.safetensors").read_bytes()
    pointing.pretrain_language(folder, steps=25, pictures=48, log=said.append)
    assert not said and (folder / "language" / "language.safetensors").read_bytes() == before


def test_it_is_scored_on_looks_and_sentences_it_never_met(folder, tmp_path, monkeypatch):
    drawn, made = tiny_pictures.Drawn(24, ("A", "B", "C"), 1, None), []

    class Seen(pointing.Questions):
        def __init__(self, data, *given):
            super().__init__(data, *given)
            self.data, self.said = data, set()
            made.append(self)

        def __call__(self, chosen, rng):
            found = super().__call__(chosen, rng)
            self.said |= set(found["instruction"])
            return found
    monkeypatch.setattr(pointing, "Questions", Seen)
    shutil.copytree(folder / "tower", tmp_path / "tower")
    path = pointing.pretrain_language(tmp_path, steps=2, pictures=24, drawn=drawn, log=lambda _: None)
    (training, held), asked = made, pointing.questions().values()
    assert training.data is drawn.training and held.data is drawn.held_out and len(training.said) > 5 and len(held.said) > 5
    assert training.said <= {s for some, _ in asked for s in some} and held.said <= {s for _, some in asked for s in some}
    about = json.loads((path / "about.json").read_text())
    assert about["tower"] == tiny.load_tower(folder).identity["sha256"], "of another tower it is another one"


def test_a_policy_begins_with_its_weights_and_tokenizer(folder):
    parts = tiny.load_parts(folder)
    slots = parts["language"].get_input_embeddings().weight.detach().clone()
    projector = parts["projector"][0].weight.detach().clone()
    model = ReconVLA.build(PRESETS["tiny"], STATS, instructions=["something else"], **parts)
    assert torch.equal(model.decoder.get_input_embeddings().weight, slots)  # ordered bins do not write over what was learned
    assert torch.equal(model.mm_projector[0].weight, projector) and model.proprio is parts["proprio"]
    assert torch.equal(model.queries.view(5, 7, -1), parts["queries"].expand(5, -1, -1)) and parts["queries"].std() > 0
    file = folder / "language" / "language.safetensors"
    assert model.decoder.began_as["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()  # a run's checkpoints say so (launch.py)
    assert model.text.tokenizer.vocab_size == parts["tokenizer"].vocab_size


def test_without_it_the_parts_are_tower_and_vae_alone(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "language")
    assert sorted(tiny.load_parts(tmp_path / "parts")) == ["vae", "vision"]
