"""The whole path on frames of the real CALVIN simulator: import, true boxes, training, attention, offline error, record, table.

Run: pytest tests/test_whole_path.py (needs the folder calvin_sim in REPRO_TEST_DATA)
"""

from dataclasses import replace

import numpy as np
import pytest

from repro import experiments, looking, profiles, results, run_records, scoring
from repro.data.calvin_import import ensure_store
from repro.data.episodes import Store
from repro.gaze.annotate import annotate
from repro.machine import UserError
from repro.training import checkpoint, launch

QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def short():
    """The smoke profile, but only a dozen steps."""
    return replace(profiles.get("smoke"), train_steps=12, batch_size=8, attention_frames=9, workers=1, tower_steps=2, vae_steps=2,
                   part_pictures=48)


def test_real_simulator_frames_from_import_to_table(test_data, short, tmp_path):
    source = test_data("calvin_sim")
    for split, episodes in (("training", 24), ("validation", 9)):
        store = ensure_store(source, split, tmp_path / "store" / split, workers=1, **QUIET)
        assert len(store) == episodes
        report = annotate(store.folder, "truth")
        assert report["sources"].get("fallback", 0) == 0 and report["sources"]["truth"] > 0.9 * report["frames"]
    assert not scoring.can_roll_out(tmp_path, "tabletop") and scoring.can_roll_out(tmp_path, "calvin")
    with pytest.raises(UserError, match="cannot act in libero"):
        scoring.can_roll_out(tmp_path, "libero")
    for variant in experiments.VARIANTS:
        launch.train_from_config(experiments.job(short, tmp_path, variant, seed=0), **QUIET)
    models = experiments.load(tmp_path)
    assert {name: model.trained["step"] for name, model in models.items()} == dict.fromkeys(experiments.VARIANTS, 12)

    offline = scoring.score_offline(short, tmp_path, models, seed=0, every=10)
    assert {r["variant"] for r in offline} == {*models, "constant action", "gaze, shuffled instruction"}
    for record in offline:
        error = record["metrics"]["motion error"]
        assert error["n"] == 9 and 0 < error["low"] <= error["value"] <= error["high"] < 2

    frames = looking.attention_frames(Store(tmp_path / "store" / "validation"), short.attention_frames)
    maps = {name: looking.attention_of(models[name], frames) for name in ("baseline", "gaze")}
    records = looking.record_attention(short, tmp_path, models, maps, frames, seed=0)
    uniform = records[0]["metrics"]["attention mass, uniform (box area)"]["value"]
    areas = [np.prod(frame["gaze.box"][2:] - frame["gaze.box"][:2]) for frame in frames]
    assert uniform == pytest.approx(np.mean(areas), rel=1e-5)

    results.report(tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "offline action error, calvin_sim" in report and "not comparable" in report and "2508.10333" in report
    assert len(run_records.load_all(tmp_path / "runs")) == len(offline) + len(records)


def test_a_checkpoint_says_what_it_was_trained_on(test_data, short, tmp_path):
    store = ensure_store(test_data("calvin_sim"), "validation", tmp_path / "store" / "training", workers=1, **QUIET)
    summary = launch.train_from_config(experiments.job(replace(short, train_steps=2), tmp_path, "baseline", seed=3), **QUIET)
    about = checkpoint.about(summary.checkpoint)
    assert about["data"]["hash"] == store.hash and about["train"]["seed"] == 3 and about["model"]["recon"] is False


@pytest.mark.full
def test_notebook_09_in_calvins_own_simulator(test_data, real, short, tmp_path):
    """The models of the notebooks, a dozen steps old, under the official rules: every policy is scored; only the expert solves."""
    real("calvin", scene="D")
    for split in ("training", "validation"):
        annotate(ensure_store(test_data("calvin_sim"), split, tmp_path / "store" / split, workers=1, **QUIET).folder, "truth")
    for variant in experiments.VARIANTS:
        launch.train_from_config(experiments.job(short, tmp_path, variant, seed=0), **QUIET)
    models, two = experiments.load(tmp_path), replace(short, evaluate_chains=2)
    records = scoring.roll_out(two, tmp_path, models, 0, "calvin", **QUIET)
    assert {r["variant"] for r in records} >= {*models, "random actions", "scripted expert (ceiling)", "replay of one demonstration"}
    expert = next(r for r in records if r["variant"].startswith("scripted"))
    assert expert["metrics"]["average length"]["value"] >= 4 and expert["renderer"] == "TinyRenderer (CPU)"
    assert all(r["simulator"] == "calvin" and r["not_comparable_with"] for r in records)
    assert scoring.film(models["gaze"], two, tmp_path, 0, "calvin") is not None
