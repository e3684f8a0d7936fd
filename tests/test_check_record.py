"""What `repro evaluate --check --out` writes, and --language. Run: pytest tests/test_check_record.py"""

import hashlib
import json
import tempfile
from dataclasses import replace

import pytest
from click.testing import CliRunner
from test_libero_data import original

from repro.data.episodes import Store
from repro.data.libero import import_libero
from repro.evaluation import check_record
from repro.evaluation.commands import evaluate
from repro.evaluation.policies import load_policy
from repro.machine import UserError
from repro.models.vggt_vla import PRESETS, VGGTVLA

SMALL = replace(PRESETS["vggt_tiny"], state_dim=8, image_size=32, width=64, backbone="none", query_layers=1, queries=4, head_width=32,
                channels=8, keypoints=8, language_width=16)  # fmt: skip


@pytest.fixture
def made(tmp_path):
    """(checkpoint, store) of a model that has learned nothing."""
    import_libero(original(tmp_path / "libero_object" / "milk_demo.hdf5"), tmp_path / "store")
    (folder := tmp_path / "model").mkdir()
    store = Store(tmp_path / "store")
    VGGTVLA.build(SMALL, store.stats, [info.task for info in store.episodes]).save(folder)
    return folder, tmp_path / "store"


def called(made, *more):
    folder, store = made
    return CliRunner().invoke(evaluate, ["--model", str(folder), "--store", str(store), "--check", *map(str, more)])


def test_the_lines_and_their_record_are_written(made, tmp_path):
    out = tmp_path / "results" / "check.txt"
    answer = called(made, "--simulator", "none", "--out", out)
    assert answer.exit_code == 1, "it has learned nothing"
    record = json.loads(out.with_suffix(".json").read_text())
    assert out.read_text() == record["text"] and answer.output.endswith(record["text"]) and "[FAIL] knows data" in record["text"]
    names = [line["name"] for line in record["lines"]]
    assert names[:3] == ["loads", "forward", "same twice"] and names[-3:] == ["overfits", "closed loop", "alone"]
    assert record["checkpoint"]["model"] == "VGGTVLA"
    weights = hashlib.sha256((made[0] / "model.safetensors").read_bytes()).hexdigest()
    assert record["checkpoint"]["files"]["model.safetensors"] == weights
    assert record["data_hash"] == Store(made[1]).hash and record["commit"] and record["hardware"] and record["packages"]["torch"]
    assert record["asked"] == {"simulator": "none", "no_overfit": False, "minutes": 3.0, **dict.fromkeys(("language", "vision", "vggt"))}
    assert record["seed"] == 0
    assert str(tmp_path) not in json.dumps(record), "no path of this machine"
    assert sorted(path.name for path in out.parent.iterdir()) == ["check.json", "check.txt"]


def test_a_place_where_nothing_can_be_written_is_refused_first(made, tmp_path):
    for wrong in (tmp_path, tmp_path / "check.json"):
        answer = called(made, "--simulator", "none", "--out", wrong)
        assert isinstance(answer.exception, UserError) and "no place for the lines" in str(answer.exception) and not answer.output


def test_what_cannot_be_read_is_null_and_the_line_is_kept(made, tmp_path, monkeypatch):
    """The lines were shown; a record of them says no folder of the machine, also not of those in an error's text."""
    monkeypatch.setenv("REPRO_WORK", str(tmp_path / "mine"))
    out = tmp_path / "elsewhere" / "check.txt"
    answer = called((made[0], tmp_path / "no store"), "--language", tmp_path / "words", "--out", out)
    assert answer.exit_code == 1 and f"{tmp_path}/no store" in answer.output and "[FAIL] loads" in answer.output
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["data"] is record["data_hash"] is None and record["checkpoint"]["model"] == "VGGTVLA"
    assert record["asked"]["language"] == "words" and "[FAIL] loads        no store" in record["text"] == out.read_text()
    assert called((tmp_path / "no model", made[1]), "--out", out).exit_code == 1
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["checkpoint"] is None and record["data_hash"] == Store(made[1]).hash
    told = check_record._without(f"{tmp_path}/mine/cpu/store, {tmp_path}/model/x and {tempfile.gettempdir()}/tmp1", (made[0],))
    assert told == "cpu/store, model/x and tmp1" and str(tmp_path) not in json.dumps(record)


def test_another_place_of_the_language_model_reaches_the_checkpoint(made, monkeypatch):
    given = []
    load = VGGTVLA.load.__func__
    monkeypatch.setattr(VGGTVLA, "load", classmethod(lambda cls, folder, language=None, store=None, elsewhere=None: (
        given.append(language), load(cls, folder, None, store))[1]))  # fmt: skip
    assert "[OK]   loads" in called(made, "--simulator", "none", "--no-overfit", "--language", "elsewhere").output
    assert given == ["elsewhere"]
    (made[0] / "model.json").write_text(json.dumps({"model": "KeypointPolicy"}))
    with pytest.raises(UserError, match="takes no parts from elsewhere"):
        load_policy(made[0], language="elsewhere")
