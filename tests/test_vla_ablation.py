"""VGGT-VLA's rows over seeds, on a few small pictures: done once, resumed, tabulated. Run: pytest tests/test_vla_ablation.py"""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from repro import cli, profiles, run_records, seeds, vla_ablation, vla_experiments
from repro.data import libero, libero_hdf5
from repro.evaluation import suites
from repro.machine import UserError
from repro.seeds import FLOORS, Run
from repro.sims import base
from repro.training import launch

SETTINGS = replace(profiles.SMOKE, vla_steps=2, workers=1, simulators=4, vla_seeds=(0, 1), attention_frames=4)
QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    small = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    files = libero_hdf5.write(folder / "libero", "grocery", (0, 3), 3, "wide", launch=small, **QUIET)
    libero.ensure_store(files, folder / "store" / "libero", **QUIET)
    return folder


@pytest.fixture(scope="module")
def found(work):
    """All records of one seed, from rollouts of 9 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "limit", lambda suite, protocol="openvla-oft": 9)
        patch.setattr(vla_experiments, "HELD_OUT", 2)
        assert not seeds.do(vla_ablation, SETTINGS, work, Run(FLOORS, 0), **QUIET), "the floors are those of a trained model"
        said = []
        for row in vla_experiments.ROWS:
            assert seeds.do(vla_ablation, SETTINGS, work, Run(row, 0), log=said.append)
        assert seeds.do(vla_ablation, SETTINGS, work, Run(FLOORS, 0), log=said.append)
        yield vla_ablation.records(work)


def test_every_row_and_floor_is_scored_from_the_same_starts(found):
    wide, official = vla_ablation.benchmarks(found)
    assert wide == "grocery table, wide layout, 2 single tasks" and official.endswith("official init states, 2 single tasks")
    floors = ["constant action", "random actions", "replay of one demonstration", "scripted expert (ceiling)",
              "vggt, images blanked", "vggt, shuffled instruction"]
    for name in (wide, official):
        mine = [r for r in found if r["benchmark"] == name]
        assert sorted(r["variant"] for r in mine) == sorted([*vla_experiments.ROWS, *floors])
        assert all(len(r["outcomes"]) == 2 and r["config"]["execute"] == 4 and r["config"]["max_steps"] == 9 for r in mine)
    looked = [r for r in found if r["benchmark"] == vla_ablation.ATTENTION]
    assert {r["variant"] for r in looked} == {"none", "graph", "vggt"}
    words = [r for r in found if r["benchmark"] == vla_ablation.WORDS]
    assert {r["variant"] for r in words} == {"graph", "vggt"}, "without a backbone words read no patches"
    assert all("the instruction's words" in r["config"]["reduced"] for r in words)
    mass = "attention mass in the gaze box"
    told = {(r["variant"], r["benchmark"]): r["metrics"][mass]["value"] for r in looked + words}
    assert told["vggt", vla_ablation.ATTENTION] != told["vggt", vla_ablation.WORDS]
    assert [title for title, _ in vla_ablation.parts(found)].count(vla_ablation.WORDS) == 1
    assert all(set(r["frames"]["episode"]) and len(r["frames"]["episode"]) == 4 for r in looked)


def test_attention_is_looked_at_on_episodes_that_nobody_trained_on(work, found):
    model = vla_experiments.load(work, ["vggt"])["vggt"]
    store = vla_experiments.data(work)
    seen = {frame["episode"] for frame in vla_experiments.held_out_frames(store, 4)}
    assert seen == set(model.trained["data"]["held out episodes"]) and len(seen) == 2


def test_done_is_done_until_something_else_is_asked(work, found, monkeypatch):
    assert all(seeds.is_done(vla_ablation, SETTINGS, work, Run(row, 0)) for row in [*vla_experiments.ROWS, FLOORS])
    assert not seeds.is_done(vla_ablation, SETTINGS, work, Run("vggt", 1))
    assert not seeds.is_done(vla_ablation, replace(SETTINGS, vla_episodes=2), work, Run("vggt", 0))
    monkeypatch.setattr(launch, "train_from_config", lambda *a: pytest.fail("trained again"))
    assert seeds.do(vla_ablation, SETTINGS, work, Run("vggt", 0), **QUIET)
    record = next((vla_ablation.place(work, Run("none", 0)) / "runs").glob("*.json"))
    kept = record.read_text()
    record.unlink()
    assert not seeds.is_done(vla_ablation, SETTINGS, work, Run("none", 0)), "a lost record is noticed"
    record.write_text(kept)


def test_a_budget_that_ends_leaves_it_to_be_continued(work, found):
    said = []
    assert not seeds.do(vla_ablation, SETTINGS, work, Run("vggt", 1), minutes=1e-6, log=said.append)
    assert "to be continued" in said[-1] and not (vla_ablation.place(work, Run("vggt", 1)) / "done.json").exists()


def test_runs_are_asked_for_in_processes_of_their_own(work, found, monkeypatch):
    asked = []
    monkeypatch.setattr(launch, "side_by_side", lambda commands, slots, log: asked.extend(make() for _, make in commands) or [])
    left = seeds.run(vla_ablation, SETTINGS, work, **QUIET)
    assert [one.key for one in left] == ["none:1:0", "graph:1:0", "vggt:1:0", "blind:1:0", "floors:1:0"]
    assert asked[:5] == [None] * 5 and asked[5][:3] == ["ablation", "--system", "vggt_vla"] and "none:1:0" in asked[5]


def made(variant, seed, outcomes, row=None, benchmark="grocery table, wide layout, 2 single tasks"):
    successes = [int(digit) for digit in outcomes]
    share = {"value": float(np.mean(successes)), "n": len(successes), "low": 0.0, "high": 1.0}
    return {"variant": variant, "seed": seed, "benchmark": benchmark, "outcomes": outcomes,
            "metrics": {"1/1": share, "task/pick_up_the_milk_and_place_it_in_the_basket": share},
            "config": {"row": row or variant, "corrupt": 0.0, "asked": "x"}}


def test_tables_take_differences_over_the_same_starts():
    records = [made("none", 0, "1100"), made("none", 1, "1000"), made("vggt", 0, "1110"), made("vggt", 1, "1111"),
               made("blind", 0, "0000"), made("blind", 1, "0000"), made("random actions", 0, "0000", FLOORS)]
    header, rows = vla_ablation.success_table(records, records[0]["benchmark"])
    cells = {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}
    assert list(cells) == ["none", "vggt", "blind", "random actions"]
    assert cells["vggt"]["success %"].startswith("87.5 [") and cells["none"]["success %"].startswith("37.5 [")
    assert cells["vggt"]["minus none, points"].startswith("+50 [") and cells["vggt"]["minus blind, points"].startswith("+87.5 [")
    assert cells["none"]["minus none, points"] == "" and cells["random actions"]["seeds"] == "1"
    assert cells["random actions"]["minus none, points"] == "-50 (one seed)", "over the seed that both have"
    assert vla_ablation.task_table(records, records[0]["benchmark"]) == (["row", "milk"], [["none", "38"], ["vggt", "88"], ["blind", "0"],
                                                                                          ["random actions", "0"]])
    assert len(vla_ablation.figure(records).axes) == 1 and vla_ablation.figure([]) is None


def test_official_starts_are_counted_once_however_many_seeds_repeat_them():
    benchmark = "grocery table, official init states, 2 single tasks"
    records = [made("none", seed, "1" * 12 + "0" * 8, benchmark=benchmark) for seed in range(3)]
    header, (row,) = vla_ablation.success_table(records, benchmark)
    told = dict(zip(header, row, strict=True))
    assert told["seeds"] == "3" and told["starts"] == "20"
    value, low, high = (float(x) for x in told["success %"].replace("[", "").replace("]", "").replace(",", "").split())
    assert value == 60 and low <= 40 and high >= 78, "three copies of 20 starts say no more than 20 starts"
    other = [made("none", seed, "1" * 12 + "0" * 8) for seed in range(3)]
    header, (row,) = vla_ablation.success_table(other, other[0]["benchmark"])
    assert dict(zip(header, row, strict=True))["starts"] == "60", "wide starts are other ones for each seed"


def test_the_short_table_says_what_a_backbone_adds():
    layouts = ("grocery table, wide layout, 2 single tasks", "grocery table, official init states, 2 single tasks")
    records = [made(row, seed, outcomes, benchmark=benchmark) for row, outcomes in (("none", "1100"), ("vggt", "1110"), ("blind", "0000"))
               for seed in (0, 1) for benchmark in layouts]
    header, rows = vla_ablation.short_table(records)
    assert header == ["row", "seeds", "wide: starts", "wide: success %", "wide: minus none, points", "wide: minus blind, points",
                      "official: starts", "official: success %"]
    assert [row[0] for row in rows] == ["none", "vggt", "blind"]
    assert rows[1][4].startswith("+25") and rows[1][2] == "8" and rows[1][6] == "4"


@pytest.mark.parametrize("preset", list(vla_experiments.PRESETS))
def test_a_row_has_the_backbone_of_its_name(preset):
    rows = vla_experiments.named("", preset)
    assert rows == (["none", "graph", "blind"] if preset == "graph_qwen2" else ["none", "graph", "vggt", "blind"])
    for row in set(rows) - {"blind"}:
        given = {**vla_experiments.ROWS[row]}
        assert replace(vla_experiments.PRESETS[preset], **given).backbone == row
    if "vggt" not in rows:
        with pytest.raises(UserError, match="has no row 'vggt'"):
            vla_experiments.named("none,vggt", preset)


def test_published_are_clean_records_with_tables_and_figures(work, found, tmp_path, monkeypatch):
    monkeypatch.setattr(run_records, "provenance", lambda: pytest.fail("nothing is recorded anew"))
    clean = [{**record, "commit": "0123456789ab"} for record in found]
    monkeypatch.setattr(vla_ablation, "records", lambda work: clean)
    drawn = vla_ablation.draw(SETTINGS, work)
    assert drawn == ["vla_attention.png"]
    target = vla_ablation.publish(work, tmp_path / "results" / "cpu", drawn, **QUIET)
    assert len(run_records.load_all(target / "runs" / "vggt_vla")) == len(found)
    assert (target / "figures" / "vla_attention.png").stat().st_size > 10_000
    section = vla_ablation.readme_section(target)
    assert section.startswith("Profile `cpu`") and "Not comparable with LIBERO" in section and "| vggt, images blanked | 1 | 2 |" in section
    monkeypatch.setattr(vla_ablation, "records", lambda work: [{**clean[0], "commit": "0123456789ab+changes"}])
    with pytest.raises(UserError, match="clean commits"):
        vla_ablation.publish(work, tmp_path / "results" / "cpu", **QUIET)
    assert vla_ablation.readme_section(tmp_path) == "Not measured yet.\n"


def test_the_command_refuses_what_it_does_not_have():
    said = CliRunner().invoke(cli.cli, ["ablation", "--system", "vggt_vla", "--rows", "vggt"])
    assert isinstance(said.exception, UserError) and "always all of them" in str(said.exception)
    assert json.loads(json.dumps([one.key for one in vla_ablation.runs(SETTINGS)]))[:6] == [
        "none:0:0", "graph:0:0", "vggt:0:0", "blind:0:0", "floors:0:0", "none:1:0"]
