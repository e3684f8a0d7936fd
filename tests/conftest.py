"""Shared fixtures. The whole suite runs offline on a CPU."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("repro.models", "shapecheck.check")  # shapes and dtypes of the models' public functions, in tests only

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def test_data():
    """`test_data("calvin_sim") -> Path` of frames from the real simulators; skips loudly where they are absent."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("REPRO_TEST_DATA", ROOT.parent / "shared" / "data")) / name
        if not folder.is_dir():
            pytest.skip(f"SKIPPED LOUDLY: {folder} is missing; set REPRO_TEST_DATA to the folder that holds {name}/")
        return folder

    return find


@pytest.fixture
def real(test_data):
    """`real("calvin", scene="D") -> Launch` of a real simulator; skips loudly where its environment, checkout or assets are absent."""
    from repro.machine import UserError
    from repro.sims import environments

    def find(name: str, **options):
        if name == "libero" and not os.environ.get("REPRO_LIBERO_ASSETS"):
            options.setdefault("assets", str(test_data("libero_assets_lite")))
        try:
            launch = environments.launch(name, **options)
        except UserError as error:
            pytest.skip(f"SKIPPED LOUDLY: {error}")
        lacking = environments.missing_libraries(name) if name == "libero" else {}
        if "OSMesa" in lacking:
            pytest.skip(f"SKIPPED LOUDLY: type: sudo apt-get install {lacking['OSMesa']}")
        return launch

    return find


KAGGLE_SETS = ("REPRO_WORK", "HF_HUB_OFFLINE", "REPRO_SESSION_END", "REPRO_PROCESSES", "REPRO_SCRATCH")  # by session.begin()


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A root like /kaggle in Batch, nothing attached, no GPU, no internet; what a session sets is put back afterwards."""
    from repro.kaggle import session

    for folder in ("input", "working"):
        (tmp_path / "kaggle" / folder).mkdir(parents=True)
    monkeypatch.setenv("REPRO_KAGGLE_ROOT", str(tmp_path / "kaggle"))
    monkeypatch.setenv("REPRO_ROOT", str(ROOT))
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    for name in KAGGLE_SETS:
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(session, "internet", lambda: False)
    monkeypatch.setattr(session, "gpus", lambda: [])
    return tmp_path / "kaggle"
