"""Where am I, which dtype and why; profiles; the shape checker. Run: pytest tests/test_machine.py"""

import dataclasses
import os
import re
import threading
from pathlib import Path

import pytest

from repro import machine, profiles, run_records
from repro.machine import UserError


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An empty folder as the current one, none of our environment variables."""
    for name in ("REPRO_ROOT", "REPRO_WORK", "REPRO_CALVIN", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


@pytest.mark.parametrize(
    "found, dtype, word",
    [
        ([], "torch.float32", "CPU"),
        ([(7, 5)], "torch.float16", "7.5"),  # T4, where torch.cuda.is_bf16_supported() says True
        ([(8, 0)], "torch.bfloat16", "8.0"),
        ([(9, 0), (9, 0)], "torch.bfloat16", "9.0"),
        ([(9, 0), (7, 5)], "torch.float16", "7.5"),  # the weakest decides
    ],
)
def test_dtype_goes_by_capability_and_says_why(monkeypatch, found, dtype, word):
    pytest.importorskip("torch")
    monkeypatch.setattr(machine, "capabilities", lambda: found)
    chosen, reason = machine.compute_dtype()
    assert str(chosen) == dtype and word in reason


SMI = "0, GPU-aa, Tesla T4, 7.5, 15360\\n1, GPU-bb, NVIDIA H200, 9.0, 143771\\n"


def test_gpus_are_asked_of_nvidia_smi_and_torch_makes_no_context(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{SMI}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_device_capability", "get_device_properties", "get_device_name", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, lambda *rest: pytest.fail("torch was asked: it makes a context"))
    assert machine.capabilities() == [(7, 5), (9, 0)] and str(machine.compute_dtype()[0]) == "torch.float16"
    t4, h200 = machine.describe()["gpus"]
    assert t4 == {"name": "Tesla T4", "capability": "7.5", "memory_gib": 15.0} and h200["memory_gib"] == 140.4
    assert run_records.provenance()["hardware"].startswith("2 x Tesla T4, ")
    for visible, found in (("1", [(9, 0)]), ("1,0", [(9, 0), (7, 5)]), ("GPU-bb", [(9, 0)]), ("", []), ("-1", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [one["capability"] for one in machine.gpus()] == found
    assert not torch.cuda.is_initialized()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)  # there is a context: torch knows best
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (8, 6))
    assert machine.capabilities() == [(8, 6)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-aa, NVIDIA GB10, 12.1, [N/A]'\n")
    assert machine.gpus() == [] and machine.capabilities() == [(8, 6)], "nvidia-smi does not tell the memory: torch is asked"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, no driver, x, y, z'\nexit 9\n")
    assert machine.gpus() == []


def test_root_is_the_nearest_parent_with_notebooks(bare, monkeypatch):
    assert machine.root() == bare
    (bare / "notebooks").mkdir()
    (bare / "pyproject.toml").touch()
    deep = bare / "results" / "smoke" / "notebooks"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)  # where nbval runs the committed notebooks
    assert machine.root() == bare
    assert machine.work("smoke") == bare / "work" / "smoke"
    monkeypatch.setenv("REPRO_ROOT", str(deep))
    assert machine.work("cpu") == deep / "work" / "cpu"
    monkeypatch.setenv("REPRO_WORK", str(bare / "elsewhere"))
    assert machine.work("cpu") == bare / "elsewhere" / "cpu", "profiles are never mixed"


def test_kaggle_works_in_its_saved_folder(bare, monkeypatch):
    assert machine.on_kaggle() is None
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert machine.on_kaggle() == "Batch"
    assert machine.work("t4") == Path("/kaggle/working/work/t4")


def test_what_is_made_again_lies_beside_the_store_or_on_a_scratch_disk(bare, monkeypatch):
    monkeypatch.setenv("REPRO_SCRATCH", "")
    assert machine.prepared(bare / "t4" / "store" / "training") == bare / "t4" / "store" / "training.prepared"
    monkeypatch.setenv("REPRO_SCRATCH", str(bare / "tmp"))
    places = [machine.prepared(bare / profile / "store" / "training") for profile in ("t4", "cpu")]
    assert {place.parent for place in places} == {bare / "tmp"} and places[0] != places[1]
    assert all(re.fullmatch(r"training-\w{8}\.prepared", place.name) for place in places)
    assert machine.prepared(Path("t4/store/training")) == places[0]  # by the place, however it is written


def test_calvin_data_is_named_by_a_variable(bare, monkeypatch):
    assert machine.calvin_data() is None
    monkeypatch.setenv("REPRO_CALVIN", str(bare))
    assert machine.calvin_data() == bare
    monkeypatch.setenv("REPRO_CALVIN", str(bare / "task_D_D"))
    with pytest.raises(UserError, match=r"task_D_D(.|\n)*next step: .*REPRO_CALVIN"):
        machine.calvin_data()


def test_a_lock_is_held_by_one_and_waited_for_by_others(tmp_path):
    said = []

    def wait():
        with machine.alone(tmp_path / "a" / ".lock", wait=True) as free:
            said.append(free)

    other = threading.Thread(target=wait)
    with machine.alone(tmp_path / "a" / ".lock") as free:
        other.start()
        other.join(0.3)
        with machine.alone(tmp_path / "a" / ".lock") as second:
            assert free and not second and not said
    other.join(10)
    assert said == [True]


def test_describe_names_the_hardware():
    pytest.importorskip("torch")
    about = machine.describe()
    assert about["cores"] >= 1 and about["memory_gib"] > 0 and about["cpu"]
    assert {"gpus", "python", "platform", "kaggle"} <= set(about)


def test_profiles_differ_in_size_only_and_a_wrong_name_is_helped():
    assert list(profiles.PROFILES) == ["smoke", "cpu", "t4", "paper"]
    for name, profile in profiles.PROFILES.items():
        assert profiles.get(name) is profile and profile.name == name
        for field in dataclasses.fields(profile):
            value = getattr(profile, field.name)
            assert not isinstance(value, int | float) or value > 0, f"{name}.{field.name} = {value}"
    assert len(profiles.get("smoke").tasks) == 8 and profiles.get("t4").tasks is None
    with pytest.raises(UserError, match=r"no profile 'smok'(.|\n)*did you mean 'smoke'\?"):
        profiles.get("smok")


def test_a_wrong_shape_is_caught_in_the_models():
    """The import hook of conftest.py is on: an annotated function of repro.models refuses a tensor of another rank."""
    torch = pytest.importorskip("torch")
    from jaxtyping import TypeCheckError

    from repro.models import denoiser

    assert denoiser.sincos(torch.zeros(3), 8).shape == (3, 8)
    with pytest.raises(TypeCheckError):
        denoiser.sincos(torch.zeros(3, 1), 8)
