"""`repro evaluate --suite` as it is typed, on the grocery table, with models that learned nothing. Run: pytest tests/test_evaluate.py"""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from repro import run_records
from repro.data import libero_hdf5
from repro.data.episodes import Store
from repro.data.libero import import_libero
from repro.evaluation import suites
from repro.evaluation.commands import evaluate
from repro.machine import UserError
from repro.models.vggt_vla import PRESETS, VGGTVLA
from repro.sims import base

MILK, BUTTER = (f"pick_up_the_{item}_and_place_it_in_the_basket" for item in ("milk", "butter"))
SMALL = replace(PRESETS["vggt_tiny"], state_dim=8, image_size=32, width=64, backbone="none", query_layers=1, queries=4, head_width=32,
                channels=8, keypoints=8, language_width=16)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with store/, of two tasks in the wide layout, and the models seeing/ and blind/."""
    top = tmp_path_factory.mktemp("evaluate")
    launch = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    files = libero_hdf5.write(top, "grocery", (MILK, BUTTER), 1, "wide", launch=launch, every=8, log=lambda line: None)
    import_libero(files, top / "store")
    store = Store(top / "store")
    for name, config in (("seeing", SMALL), ("blind", replace(SMALL, blind=True, point_weight=0.0))):
        (top / name).mkdir()
        VGGTVLA.build(config, store.stats, [info.task for info in store.episodes]).save(top / name)
    return top


@pytest.fixture
def called(made, monkeypatch):
    """The command's output; its episodes end after 80 steps."""
    monkeypatch.setattr(suites, "limit", lambda suite, protocol="openvla-oft": 80)

    def call(*more, out):
        answer = CliRunner().invoke(evaluate, ["--model", str(made / "seeing"), "--store", str(made / "store"), "--episodes", "1",
                                               "--out", str(out), *map(str, more)])
        if answer.exception:
            raise answer.exception
        return answer.output

    return call


def test_a_score_stands_among_its_floors(called, made, tmp_path):
    output = called("--tasks", f"{MILK}, {BUTTER}", "--videos", 1, out=tmp_path)
    found = {record["variant"]: record for record in run_records.load_all(tmp_path / "runs")}
    assert set(found) == {"VGGTVLA", "images blanked", "shuffled instruction", "replay of one demonstration", "random actions",
                          "constant action", "scripted expert (ceiling)"}
    assert all(f"| {name} |" in output for name in found) and "| grocery table, official init states, 2 single tasks |" in output
    assert "out of distribution" in output and "--blind" in output and output.endswith(f"records: {tmp_path / 'runs'}\n")
    assert found["scripted expert (ceiling)"]["outcomes"] == "11" and found["constant action"]["outcomes"] == "00"
    config = found["replay of one demonstration"]["config"]
    assert config["tasks"] == [MILK, BUTTER] and config["episodes"] == 1 and config["protocol"].startswith("openvla-oft's step limit; ")
    began = config["policy"]["demonstrations"][MILK]
    assert began["by"] == "scripted expert" and began["layout"] == "official", "the store's began in the wide one"
    assert len(list((tmp_path / "films").rglob("*_failure.mp4"))) == 1


def test_one_task_after_the_other(called, made, tmp_path):
    for task in (MILK, BUTTER):
        called("--tasks", task, "--no-floors", out=tmp_path)
    output = called("--tasks", MILK, "--no-floors", out=tmp_path)
    assert {tuple(record["config"]["tasks"]) for record in run_records.load_all(tmp_path / "runs")} == {(MILK,), (BUTTER,)}
    assert "out of distribution" not in output, "nothing was blanked"


def test_a_policy_that_was_trained_blind_is_the_floor(called, made, tmp_path):
    output = called("--tasks", MILK, "--layout", "wide", "--blind", made / "blind", out=tmp_path)
    assert "| blind, trained |" in output and "blanked" not in output and "--blind" not in output
    stored = next(r for r in run_records.load_all(tmp_path / "runs") if r["variant"] == "replay of one demonstration")
    assert stored["config"]["policy"]["demonstrations"][MILK]["by"].startswith("episode ")
    with pytest.raises(UserError, match="was not trained blind"):
        called("--tasks", MILK, "--blind", made / "seeing", out=tmp_path)
