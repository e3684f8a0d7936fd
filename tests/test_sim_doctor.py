"""`repro doctor --sim`. Run: pytest tests/test_sim_doctor.py"""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from repro import sim_doctor
from repro.cli import cli
from repro.sims import environments


def by_name(found):
    return {check.name: check for check in found}


def test_play_table_passes():
    found = by_name(sim_doctor.checks("tabletop"))
    assert {check.status for check in found.values()} == {"OK"} and set(found) >= {"picture", "orientation", "repeats", "speed"}


@pytest.mark.parametrize("name", ["calvin", "libero"])
def test_real_simulators_pass(real, name, monkeypatch):
    launch = real(name, **({"scene": "D"} if name == "calvin" else {"suite": "libero_object", "image_size": 256}))
    monkeypatch.setattr(environments, "launch", lambda *_, **options: launch)
    found = by_name(sim_doctor.checks(name))
    assert not [check for check in found.values() if check.status == "FAIL"], found
    assert "known" in found["picture"].found
    if name == "libero":
        assert found["assets"].status == "WARN" and "stand-in assets" in found["assets"].found and "ketchup" in found["settling"].found


def test_mirrored_and_darker_pictures_are_caught(real, monkeypatch):
    launch = real("libero", suite="libero_object", image_size=256)
    for name, options, known in (("orientation", {"orientation": "rotated"}, 135.1), ("picture", {}, 99.3)):
        monkeypatch.setattr(environments, "launch", lambda *_, chosen=options, **__: replace(launch, options=launch.options | chosen))
        monkeypatch.setitem(sim_doctor.FINGERPRINT, ("LIBERO", "MuJoCo, osmesa", "stand-in assets"), known)
        if name == "orientation":  # said to be upright, drawn rotated
            monkeypatch.setattr(sim_doctor.Worker, "about", property(lambda self: {**self._about, "orientation": "upright"},
                                                                     lambda self, value: setattr(self, "_about", value)), raising=False)
        assert by_name(sim_doctor.checks("libero"))[name].status == "FAIL"
        monkeypatch.undo()


def test_what_is_missing_is_a_failed_check(monkeypatch, tmp_path):
    monkeypatch.setenv("REPRO_SIMS", str(tmp_path))
    for name in ("REPRO_CALVIN_PYTHON", "REPRO_LIBERO_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(cli, ["doctor", "--sim", "calvin"])
    assert result.exit_code == 1 and "[FAIL]" in result.output and "repro sims setup calvin" in result.output
