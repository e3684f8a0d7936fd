"""The rows of VGGT-VLA from the store to a first look at rollouts, on a few small pictures. Run: pytest tests/test_vla_experiments.py"""

import json
from dataclasses import replace

import pytest

from repro import profiles, vla_experiments
from repro.data import libero, libero_hdf5
from repro.data.batches import held_out_episodes
from repro.machine import UserError
from repro.models.vggt_vla import VGGTVLA
from repro.sims import base
from repro.training import checkpoint, launch

SETTINGS = replace(profiles.SMOKE, vla_steps=2, workers=1, simulators=4)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    small = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    files = libero_hdf5.write(folder / "libero", "grocery", (0, 3), 2, "wide", launch=small, log=lambda line: None)
    libero.ensure_store(files, folder / "store" / "libero", log=lambda line: None)
    return folder


def test_rows_are_trained_loaded_and_looked_at(work, monkeypatch):
    store, rows, said = vla_experiments.data(work), vla_experiments.named("vggt, blind"), []
    configs = vla_experiments.jobs(SETTINGS, work, rows, batch_size=4)
    jobs = [json.loads(path.read_text()) for path in configs]
    assert [job["model"].get("blind", False) for job in jobs] == [False, True] and jobs[0]["model"]["state_dim"] == 8
    assert all(job["held_out"] == 0.1 and job["train"]["best"] and job["train"]["warmup"] == 1 for job in jobs)
    for config in configs:
        assert launch.train_from_config(config, said.append).finished
    assert any("trainable of" in line for line in said) and any("1 episodes held out" in line for line in said)
    models = vla_experiments.load(work, rows)
    best = vla_experiments.load(work, rows, best=True)
    for model in [*models.values(), *best.values()]:
        assert isinstance(model, VGGTVLA) and model.trained["step"] == 2 and model.minutes > 0
    assert checkpoint.about(checkpoint.need(work / "train" / "vggt-tiny-vggt"))["data"]["held out episodes"] == sorted(
        held_out_episodes(store.episodes, 0.1))

    header, table = vla_experiments.parameters(models)
    counts = {line[0]: line[1:] for line in table}
    as_number = lambda text: 0 if text == "-" else int(text.replace(",", ""))
    assert header == ["part", "vggt", "blind"] and counts["point"][1] == "-"
    for column, model in enumerate(models.values()):
        assert sum(as_number(line[1 + column]) for line in table[:-2]) == sum(p.numel() for p in model.parameters())
        assert f"{counts['trainable'][column]} of {counts['in all'][column]} parameters train" == model.counts()
    assert [line[0] for line in vla_experiments.held_out_table(work, models, 0, "vggt_tiny")[1]] == rows

    monkeypatch.setattr(vla_experiments, "MAX_STEPS", 9)
    found = vla_experiments.first_look(SETTINGS, work, models, log=said.append)
    assert {row: len(outcomes) for row, outcomes in found.items()} == {"vggt": 2, "blind": 2}
    assert all(outcome.steps == (9,) for outcomes in found.values() for outcome in outcomes)
    lines = vla_experiments.success_table(found)[1]
    assert lines[0] == ["vggt", "0 of 2", "0 [0, 66]"] and lines[-1][-1] == "measured in notebook 09"
    assert len(vla_experiments.film(models["vggt"], work).axes) == 3  # queries at 0 and 8, and the end


def test_rollouts_begin_where_no_demonstration_did(work):
    store = vla_experiments.data(work)
    used = [episode.info["state"]["seed"] for episode in store.episodes]
    begins = vla_experiments.starts(store, 3)
    assert len(begins) == 6 and not {state["seed"] for state, _ in begins} & set(used)
    assert {tasks for _, tasks in begins} == {(episode.task_id,) for episode in store.episodes}


def test_data_of_another_simulator_are_not_rolled_out_here(work, monkeypatch):
    store, said = vla_experiments.data(work), []
    store.meta["simulator"] = "libero"
    monkeypatch.setattr(vla_experiments, "data", lambda work: store)
    assert vla_experiments.first_look(SETTINGS, work, {"vggt": None}, log=said.append) == {} and "notebook 09" in said[0]


def test_without_gaze_boxes_nothing_points_and_small_words_train_along(work, monkeypatch):
    store = vla_experiments.data(work)
    assert "point_weight" not in vla_experiments.model_of(store, "vggt", "vggt_tiny")
    told = vla_experiments.encode(store, "vggt_tiny")
    assert told.startswith("2 sentences") and "train along" in told
    monkeypatch.setattr(type(store), "columns", ["action"])
    assert vla_experiments.model_of(store, "vggt", "vggt_tiny")["point_weight"] == 0.0


def test_what_is_missing_or_misspelt_is_said(tmp_path, work):
    with pytest.raises(UserError, match="run notebook 02 first"):
        vla_experiments.data(tmp_path)
    with pytest.raises(UserError, match="there is no row 'vgtt'"):
        vla_experiments.named("none, vgtt")
    assert vla_experiments.named("") == ["none", "graph", "vggt", "blind"]
    settings = profiles.get("t4")
    config = json.loads(vla_experiments.job(settings, work, "graph").read_text())
    assert config["model"] == {"preset": "vggt_qwen3", "backbone": "graph", "backbone_weights": "", "state_dim": 8}
    assert launch.train_config(launch.Job(**config), tmp_path).keep_epochs == 5
