"""VGGT-VLA's rows over seeds, on a few small pictures: done once, resumed, tabulated. Run: pytest tests/test_vla_ablation.py"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from repro import ablation_tables, cli, profiles, readme, results, run_records, seeds, vla_ablation, vla_experiments
from repro.data import libero, libero_hdf5
from repro.evaluation import suites
from repro.intervals import wilson
from repro.machine import UserError
from repro.seeds import FLOORS, WITHOUT_WEIGHTS, Run
from repro.sims import base
from repro.training import launch

ATTENTION = "attention on held-out frames of the grocery table"  # as published records name it
WORDS = "attention of the instruction's words on held-out frames of the grocery table"
WEIGHTLESS = ["constant action", "random actions", "replay of one demonstration", "scripted expert (ceiling)"]

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
        assert seeds.do(vla_ablation, SETTINGS, work, Run(WITHOUT_WEIGHTS, 0), **QUIET), "nothing has to be trained for these"
        said = []
        for row in vla_experiments.ROWS:
            assert seeds.do(vla_ablation, SETTINGS, work, Run(row, 0), log=said.append)
        assert seeds.do(vla_ablation, SETTINGS, work, Run(FLOORS, 0), log=said.append)
        yield vla_ablation.records(work)


def test_every_row_and_floor_is_scored_from_the_same_starts(found):
    wide, official = vla_ablation.benchmarks(found)
    assert wide == "grocery table, wide layout, 2 single tasks" and official.endswith("official init states, 2 single tasks")
    floors = [*WEIGHTLESS, "vggt, images blanked", "vggt, shuffled instruction"]
    for name in (wide, official):
        mine = [r for r in found if r["benchmark"] == name]
        assert sorted(r["variant"] for r in mine) == sorted([*vla_experiments.ROWS, *floors])
        assert all(len(r["outcomes"]) == 2 and r["config"]["execute"] == 4 and r["config"]["max_steps"] == 9 for r in mine)
        replay = next(r["config"] for r in mine if r["variant"].startswith("replay"))
        began = {told["layout"] for told in replay["policy"]["demonstrations"].values()}
        assert began == {replay["layout"]}, "also where the store has wide ones only"
    assert {r["config"]["row"] for r in found if r["variant"] in WEIGHTLESS} == {WITHOUT_WEIGHTS}
    assert {r["config"]["row"] for r in found if r["variant"].startswith("vggt, ")} == {FLOORS}
    looked = [r for r in found if r["benchmark"] == ATTENTION]
    assert {r["variant"] for r in looked} == {"none", "graph", "vggt"}
    words = [r for r in found if r["benchmark"] == WORDS]
    assert {r["variant"] for r in words} == {"graph", "vggt"}, "without a backbone words read no patches"
    assert all("the instruction's words" in r["config"]["reduced"] for r in words)
    mass = "attention mass in the gaze box"
    told = {(r["variant"], r["benchmark"]): r["metrics"][mass]["value"] for r in looked + words}
    assert told["vggt", ATTENTION] != told["vggt", WORDS]
    titles = [title for title, _ in vla_ablation.parts(found)]
    assert len(set(titles)) == len(titles) and f"{ATTENTION}, minus none" in titles and f"{WORDS}, minus none" not in titles
    assert all(set(r["frames"]["episode"]) and len(r["frames"]["episode"]) == 4 for r in looked)


def test_attention_is_looked_at_on_episodes_that_nobody_trained_on(work, found):
    model = vla_experiments.load(work, ["vggt"])["vggt"]
    store = vla_experiments.data(work)
    seen = {frame["episode"] for frame in vla_experiments.held_out_frames(store, 4)}
    assert seen == set(model.trained["data"]["held out episodes"]) and len(seen) == 2


def test_a_record_says_how_long_its_run_trained_and_looked_and_one_how_it_learned(work, found):
    trained = [r for r in found if r["config"]["row"] in vla_experiments.ROWS]
    for row, model in vla_experiments.load(work, list(vla_experiments.ROWS)).items():
        mine = [r for r in trained if r["variant"] == row]
        assert {r["training_minutes"] for r in mine} == {round(model.minutes, 2)}
        assert all(r["minutes"] < model.minutes + 0.5 for r in mine if r["benchmark"] == ATTENTION)
        curve, = [r["learning"] for r in mine if "learning" in r]
        assert curve["held_out_step"][-1] == curve["step"][-1] == 2 and curve["held_out"][-1] > 0
    assert not any("learning" in r or "training_minutes" in r for r in found if r not in trained)
    title, (header, rows) = vla_ablation.parts(found)[-1]
    assert title.startswith("Loss of the actions on held-out episodes") and [line[:3] for line in rows] == [
        [row, "1", "2"] for row in vla_experiments.ROWS]
    assert "at the end" in header and vla_ablation.learning_table([{**r, "learning": {}} for r in found])[1] == []


def test_the_clock_of_a_look_is_its_own(work, found, monkeypatch):
    """The two evaluations before it do not count; training does, as in every record."""
    model, ticks = vla_experiments.load(work, ["vggt"])["vggt"], iter(range(0, 10**6, 60))
    monkeypatch.setattr(vla_ablation, "minutes", lambda model, begun: begun)
    monkeypatch.setattr(vla_ablation.time, "monotonic", lambda: next(ticks))
    begun = [record["minutes"] for record in vla_ablation.looks(SETTINGS, work, Run("vggt", 0), model, **QUIET)]
    assert begun[0] < begun[1]


def copied(work, place, but=()):
    """The store and the runs' records and notes, without what was trained."""
    shutil.copytree(work / "store", place / "store")
    shutil.copytree(work / "ablation", place / "ablation")
    for name in but:
        (place / "ablation" / "vggt_vla" / name).unlink()
    return place


def test_a_run_that_was_cut_stands_in_no_table(work, found, tmp_path):
    """Its first layout's records are saved before its second layout is played."""
    other = copied(work, tmp_path, ["vggt-seed0/done.json"])
    for path in vla_ablation.kept(other, Run("vggt", 0)).glob("*.json"):
        if "wide layout" not in json.loads(path.read_text())["benchmark"]:
            path.unlink()
    told = vla_ablation.write(other, **QUIET)
    assert {r["variant"] for r in found} - {r["variant"] for r in told} == {"vggt"} and (other / "figures" / "vla_ablation.png").is_file()
    one = next(vla_ablation.kept(other, Run("none", 0)).glob("*.json"))
    one.unlink()
    assert "none" not in {r["variant"] for r in vla_ablation.records(other)}, "a lost record makes a run a part"
    cut = [r for r in found if (r["variant"], "official" in r["benchmark"]) != ("vggt", True)]
    assert len(vla_ablation.figure(cut).axes) == 2, "and a published part is drawn as far as it goes"


def test_what_was_taken_over_is_published_without_its_weights(work, found, tmp_path):
    published, other = tmp_path / "published", tmp_path / "other"
    for record in found:
        if record["config"]["row"] != FLOORS:
            run_records.save({**record, "commit": "0123456789ab"}, published)
    shutil.copytree(work / "store", other / "store")
    assert len(seeds.join(vla_ablation, SETTINGS, other, published, **QUIET)) == 5
    assert vla_ablation.draw(SETTINGS, other) == []
    target = vla_ablation.publish(other, tmp_path / "results" / "cpu", vla_ablation.draw(SETTINGS, other), **QUIET)
    assert len(run_records.load_all(target / "runs" / "vggt_vla")) == len(list(published.glob("*.json")))
    with pytest.raises(UserError, match="floors of seed 0 need its row vggt, which was trained elsewhere"):
        seeds.do(vla_ablation, SETTINGS, other, Run(FLOORS, 0), **QUIET)


def test_floors_of_one_run_and_of_two_count_once(found, tmp_path):
    """Earlier records have all floors in the row "floors"."""
    early = [{**r, "id": f"early-{r['id']}", "config": {**r["config"], "row": FLOORS}, "created": "2026-01-01"}
             for r in found if r["variant"] in WEIGHTLESS]
    for record in [*found, *early]:
        run_records.save(record, tmp_path)
    told = vla_ablation.load([tmp_path])
    assert sorted(r["id"] for r in told) == sorted(r["id"] for r in found)
    assert vla_ablation.markdown(told) == vla_ablation.markdown(found)
    early = [r for r in found if r["variant"] not in WEIGHTLESS] + early
    assert vla_ablation.markdown(early) == vla_ablation.markdown(found), "the row's name is in no table"


def test_benchmarks_have_the_names_of_the_data(work, found, monkeypatch):
    """Real LIBERO in the store of notebook 02: its own suites, the layouts that they have, and attention where there are gaze boxes."""
    store, scored, said = vla_experiments.data(work), [], []
    monkeypatch.setattr(vla_experiments, "data", lambda work: store)
    assert vla_ablation.looked_at(store) == "the grocery table"
    goals = {"libero_goal": ["turn_on_the_stove"], "libero_object": ["pick_up_the_milk_and_place_it_in_the_basket"]}
    monkeypatch.setattr(suites, "tasks_of", lambda store: (goals, []))
    plan = lambda settings, store, layout, seed, suite, log: SimpleNamespace(name=f"{suite}, {layout}")
    monkeypatch.setattr(vla_experiments, "plan", plan)
    monkeypatch.setattr(suites, "score", lambda scored_, here, *given, **how: scored.append(here.name) or [{"benchmark": here.name}])
    model = vla_experiments.load(work, ["vggt"])["vggt"]
    vla_ablation._score(SETTINGS, work, Run("vggt", 0), lambda here: {"vggt": model}, SimpleNamespace(check=None), said.append)
    assert scored == ["libero_goal, official", "libero_object, wide", "libero_object, official"]
    looked = vla_ablation.looks(SETTINGS, work, Run("vggt", 0), model, **QUIET)
    assert [r["benchmark"].split("frames of ")[1] for r in looked] == ["libero_goal, libero_object"] * 2
    table = vla_ablation.parts([*(made(row, 0, "10", benchmark="libero_goal, official init states, 1 single tasks")
                                  for row in ("none", "vggt")), *looked])
    titles = [title for title, _ in table]
    assert titles[0].endswith("(not comparable with the paper)") and not any("grocery" in title for title in titles)
    monkeypatch.setattr(type(store), "columns", [name for name in store.columns if not name.startswith("gaze.")])
    assert vla_ablation.looks(SETTINGS, work, Run("vggt", 0), model, said.append) == []
    assert len(said) == 1 and "has no gaze boxes" in said[0]
    assert vla_ablation.looks(SETTINGS, work, Run("blind", 0), model, said.append) == [] and len(said) == 1


def test_done_is_done_until_something_else_is_asked(work, found, monkeypatch):
    assert all(seeds.is_done(vla_ablation, SETTINGS, work, Run(row, 0)) for row in [*vla_experiments.ROWS, WITHOUT_WEIGHTS, FLOORS])
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
    assert [one.key for one in left] == ["none:1:0", "graph:1:0", "vggt:1:0", "blind:1:0", "floors without weights:1:0", "floors:1:0"]
    assert asked[:6] == [None] * 6 and asked[6][:3] == ["ablation", "--system", "vggt_vla"] and "none:1:0" in asked[6]


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
    cell = lambda solved, n: "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * share for share in (solved / n, *wilson(solved, n))))
    assert vla_ablation.task_table(records, records[0]["benchmark"]) == (["row", "n of each task", "milk"], [
        ["none", "8", cell(3, 8)], ["vggt", "8", cell(7, 8)], ["blind", "8", cell(0, 8)], ["random actions", "4", cell(0, 4)]])
    assert len(vla_ablation.figure(records).axes) == 1 and vla_ablation.figure([]) is None


def test_official_starts_are_counted_once_however_many_seeds_repeat_them():
    benchmark = "grocery table, official init states, 2 single tasks"
    records = [made("none", seed, "1" * 12 + "0" * 8, benchmark=benchmark) for seed in range(3)]
    header, (row,) = vla_ablation.success_table(records, benchmark)
    told = dict(zip(header, row, strict=True))
    assert told["seeds"] == "3" and told["starts"] == "20"
    value, low, high = (float(x) for x in told["success %"].replace("[", "").replace("]", "").replace(",", "").split())
    assert value == 60 and low <= 40 and high >= 78, "three copies of 20 starts say no more than 20 starts"
    assert vla_ablation.task_table(records, benchmark)[1][0][1:] == ["20", "60 [39, 78]"], "so for each task"
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


def test_how_long_a_run_trains_is_said_of_what_records_know():
    early = [{**made("none", 0, "11"), "minutes": 9.0}, {**made("blind", 0, "00"), "minutes": 40.0},
             {**made("random actions", 0, "00", FLOORS), "minutes": 99.0}]
    assert vla_ablation.longest(early) == "a run with its evaluation takes at most 40 min"
    late = [{**r, "training_minutes": r["minutes"] - 5} for r in early[:2]] + early[2:]
    assert vla_ablation.longest(late) == "a run trains for at most 35 min"
    assert vla_ablation.longest([*late, early[0]]).startswith("a run with its evaluation takes")


@pytest.mark.parametrize("folder", [Path(__file__).parents[1] / "results" / "cpu"], ids=["cpu"])
def test_the_full_tables_beside_published_records_are_theirs(folder):
    told = readme.tables(folder)
    assert set(told) == {path.name for path in folder.glob("*.md")}
    for name, text in told.items():
        assert (folder / name).read_text() == text, f"{name}: python -m repro.results --readme {folder}"
    records = vla_ablation.load([folder / "runs" / "vggt_vla"])
    scale = dict(ablation_tables.attention_parts(records, "", ATTENTION, ["none", "graph", "vggt"], "none"))
    header, rows = scale[": from uniform attention to the box itself"]
    assert [row[0].split(" (n = 60")[0] for row in rows] == ["uniform attention", "none", "graph", "vggt", "the box itself on this grid"]
    assert header[3].startswith("pointing game (5 of 200 px) in the gaze box (n = 60 episodes")
    metrics = next(r["metrics"] for r in records if r["benchmark"] == ATTENTION)
    for row, of in ((0, "uniform (any token)"), (-1, "the box itself on this grid")):
        assert rows[row][3] == results.shown("", metrics[f"pointing game (5 of 200 px), {of}"])


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
    assert json.loads(json.dumps([one.key for one in vla_ablation.runs(SETTINGS)]))[:7] == [
        "none:0:0", "graph:0:0", "vggt:0:0", "blind:0:0", "floors without weights:0:0", "floors:0:0", "none:1:0"]
