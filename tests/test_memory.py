"""What cannot be trained here is told before anything is loaded. Run: pytest tests/test_memory.py"""

from dataclasses import replace

import pytest

from repro import machine
from repro.machine import UserError
from repro.models.reconvla import PRESETS, ReconVLA
from repro.training import launch, memory


def here(monkeypatch, *gpus: float, machine_gib: float = 64.0) -> None:
    about = {"memory_gib": machine_gib, "gpus": [{"name": f"GPU {i}", "memory_gib": gib} for i, gib in enumerate(gpus)]}
    monkeypatch.setattr(machine, "describe", lambda: about)


def test_weights_are_counted_without_any():
    trained, frozen = memory.weights(PRESETS["paper"])
    assert trained == pytest.approx(7.696e9, rel=1e-3) and memory.TRAINED * trained / 2**30 == pytest.approx(114.7, abs=0.05)
    assert frozen / 2**30 < 2
    adapted, packed = memory.weights(PRESETS["paper_nf4"])
    assert adapted == pytest.approx(123e6, rel=1e-3) and packed < 0.5 * memory.weights(replace(PRESETS["paper_nf4"], quantise=None))[1]


def test_a_model_whose_weights_fit_no_gpu_is_refused_with_what_it_needs_and_what_there_is(monkeypatch):
    here(monkeypatch, 141.0, 79.3, machine_gib=2000.0)
    said = r"14\d\.\d GiB on every GPU, 28\.7 of them while AdamW(.|\n)*7\.70 billion(.|\n)*GPU 1: 79\.3 GiB(.|\n)*paper_nf4, or lora_rank"
    with pytest.raises(UserError, match=said):
        memory.check(PRESETS["paper"])
    with pytest.raises(UserError, match="a smaller preset"):
        here(monkeypatch, 4.0)
        memory.check(PRESETS["paper_nf4"])
    here(monkeypatch, 15.0, 15.0)
    for preset in ("t4", "paper_nf4", "tiny"):
        memory.check(PRESETS[preset])
    here(monkeypatch, 180.0)
    memory.check(PRESETS["paper"])
    here(monkeypatch, machine_gib=62.0)
    with pytest.raises(UserError, match=r"11\d\.\d GiB here, on every GPU 28\.7 more while (.|\n)*no GPU, and this machine: 62\.0 GiB"):
        memory.check(PRESETS["paper"])
    memory.check(replace(PRESETS["paper"], language="somebody/unknown-7B"))  # its config would be a download
    memory.check(object())


def test_a_job_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "Store", lambda folder: type("S", (), {"hash": "aa", "episodes": [], "columns": ["gaze.box"]})())
    monkeypatch.setattr(launch, "_build", lambda *_: pytest.fail("the model was built"))
    kinds, build = [], ReconVLA.build
    monkeypatch.setattr(ReconVLA, "build", lambda *given, **how: kinds.append(how["pretrained"]) or build(*given, **how))
    here(monkeypatch, 79.3)
    path = launch.write_config(tmp_path / "a.json", name="a", store=tmp_path / "store", folder=tmp_path / "a", model={"preset": "paper"})
    with pytest.raises(UserError, match="does not hold this model"):
        launch.train_from_config(path, lambda line: None)
    assert kinds == [False] and not (tmp_path / "a").exists()
