"""The change agent's rows over seeds: done once, resumed, tabulated from records. Run: pytest tests/test_change_ablation.py"""

from dataclasses import replace

import pytest
from fake_pairs import store

from repro import change_ablation, change_asked, change_experiments, change_tables, freshness, profiles, run_records, seeds
from repro.evaluation import localisation
from repro.machine import UserError
from repro.seeds import FLOORS, Run
from repro.training import launch

TINY = {"image_size": 32, "channels": 4, "hidden": 32, "heads": 2, "intermediate": 32, "layers": 1, "width": 16, "readers": 2, "mixing": 1,
        "text_length": 24}  # fmt: skip
CAUSES = tuple(change_experiments.EXTRA)
SETTINGS = replace(profiles.get("smoke"), agent_steps=3, budget_minutes=0, agent_seeds=(0, 1), agent_few_rows=CAUSES)
QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    top = tmp_path_factory.mktemp("work")
    for i, (split, n) in enumerate((("train", 16), ("val", 8), ("test", 20))):
        store(top / "store" / f"levir_{split}", n, split, 32, seed=i)
    job, own = change_experiments.job, {**change_experiments.ROWS, **change_experiments.EXTRA}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(change_experiments, "job", lambda settings, work, row, seed, minutes: job(
            settings, work, row, seed, minutes, model={**TINY, **own[row][1]}, batch_size=4))
        patch.setattr(change_experiments.captions, "lacks_meteor", lambda: "no java")  # it takes seconds a table
        yield top


@pytest.fixture(scope="module")
def found(work):
    wanted = change_ablation.runs(SETTINGS)
    for run in (*wanted[:5], *wanted[-3:]):  # all of seed 0, and a row of seed 1
        assert seeds.do(change_ablation, SETTINGS, work, run, **QUIET)
    return change_ablation.records(work)


def test_rows_come_seed_by_seed_and_floors_once():
    assert [run.key for run in change_ablation.runs(SETTINGS)] == [
        "upstream:0:0", "guide:0:0", "ours:0:0", "floors:0:0", "upstream:1:0", "guide:1:0", "ours:1:0", *(f"{row}:0:0" for row in CAUSES)]
    of_cpu = [run for run in change_ablation.runs(profiles.get("cpu")) if run.row in CAUSES]
    assert [(run.row, run.seed) for run in of_cpu] == [(row, 0) for row in CAUSES], "one seed of each"


def test_rows_of_one_cause_change_one_thing(work, found):
    asked = {row: change_experiments.load(work, [row])[row].config for row in ("guide", "ours", *CAUSES)}
    apart = lambda one, other: {name for name, value in vars(asked[one]).items() if vars(asked[other])[name] != value}
    assert apart("guide, boxes only", "guide") == {"unboxed"} and asked["guide, boxes only"].unboxed == "masked"
    assert apart("ours, first token", "ours") == {"read"} and asked["ours, first token"].read == "first"
    assert apart("ours, guide's fusion and loss", "ours") == {"fusion", "loss"}
    assert all(vars(asked["ours, guide's fusion and loss"])[name] == vars(asked["guide"])[name] for name in ("fusion", "loss"))
    places = {change_ablation.place(work, Run(row, 0)).name for row in asked} | {change_experiments.folder(work, row).name for row in asked}
    assert len(places) == 2 * len(asked) and all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0-") for name in places)


def test_controls_stand_between_the_rows_and_the_floors(work, found):
    _, rows = change_ablation.pointing_table(found)
    names = [row[0] for row in rows]
    first = names.index("ours, second date twice")
    assert names[first : first + 3] == ["ours, second date twice", "ours, dates swapped", "ours, another pair's first date"]
    assert names[first - 1].startswith("ours, guide's fusion and loss, caption") and names[first + 3] == localisation.CONSTANT
    assert {row[1] for row in rows if row[0].startswith(CAUSES)} == {"1"}, "one seed, and the table says so"


def test_numbers_by_parts_stand_beside_the_margin_that_drawn_pairs_have(work, found):
    from repro.sims.aerial_plan import MARGIN

    header, rows = change_ablation.component_table(found)
    pairs = change_experiments.pairs_of(work, "test")
    n = sum(state == "localisable" and parts == 1 for state, parts in zip(pairs.column("state"), pairs.column("components"), strict=True))
    group = f"1 component (n = {n}): "
    assert header == ["row", f"{group}mean IoU", f"{group}pointing in the box %"], "these have one part each"
    assert [row[0] for row in rows][:3] == [f"ours, caption {mode}" for mode in ("given", "none", "generated")]
    one = next(r["metrics"] for r in found if r["variant"] == "ours, caption none")
    assert rows[1][1] == change_tables.cell(one["mean IoU of the square, 1 component"], False)
    assert change_ablation.margin([{"renderer": "none"}]) == "" and f" {MARGIN} times" in change_ablation.margin([{"renderer": "drawn"}])
    assert change_tables.component_table({"a": {"gate accuracy": {}}}) == (["row"], [])


def test_every_row_is_scored_in_its_modes_and_floors_stand_beside(work, found):
    header, rows = change_ablation.pointing_table(found)
    assert header[1] == "seeds" and "pairs with a box" in header[0]
    names = {row[0]: row[1] for row in rows}
    assert [names[f"{row}, caption {mode}"] for row, mode in (("upstream", "given"), ("upstream", "none"), ("guide", "none"),
                                                              ("ours", "given"), ("ours", "none"), ("ours", "generated"))] == list("221111")
    assert {"whole frame", "random", "differencing"} <= {name.split(" (")[0] for name in names} and len(names) >= 10
    assert rows[0][0].startswith("upstream") and [row[-1] != "-" for row in rows if row[0].startswith("ours, c")] == [True] * 3
    _, written = change_ablation.writing_table(found)
    assert written[0][0] == "ours, greedy" and len(written) >= 3
    assert change_ablation.markdown(found).count("not comparable with LEVIR-CC") == 4
    assert not list((work / "runs").glob("*")), "records of the rows lie in their own folders"


def test_the_third_state_is_told_apart_in_the_table_and_not_by_the_gate(work, found):
    header, rows = change_ablation.state_table(found)
    states = change_experiments.pairs_of(work, "test").column("state")
    for state, title in zip(change_tables.STATES, header[2:5], strict=True):
        assert f"{state} (n = {states.count(state)})" in title
    gated = [*(f"ours, caption {mode}" for mode in change_asked.MODES), localisation.CONSTANT]
    causes = [f"{row}, caption {mode}" for row in CAUSES[1:] for mode in change_asked.MODES]
    controls = [f"ours, {control}" for control in change_asked.CONTROLS]
    assert [row[0] for row in rows] == [*gated[:3], *causes, gated[3], *controls], "rows with a gate, the floor of a gate, controls"
    assert {row[-1] for row in rows} == {"no such answer"}
    twice = next(r["metrics"] for r in found if r["variant"] == "ours, second date twice")
    assert "gate accuracy" not in twice, "of altered dates nothing is right"
    assert rows[-3][2] == change_tables.cell(twice["says change, unchanged"], True)
    metrics = next(r["metrics"] for r in found if r["variant"] == "ours, caption none")
    quiet, third = metrics["gate accuracy, unchanged"], metrics["gate accuracy, not localisable"]
    assert rows[1][2].startswith(f"{100 * (1 - quiet['value']):.1f} [{100 * (1 - quiet['high']):.1f}, ")
    assert rows[1][4].startswith(f"{100 * third['value']:.1f} [{100 * third['low']:.1f}, "), "changed: that it says so is right"


def test_done_is_done_until_something_else_is_asked(work, found, monkeypatch):
    assert seeds.is_done(change_ablation, SETTINGS, work, Run("ours", 0)) and seeds.is_done(change_ablation, SETTINGS, work, Run(FLOORS, 0))
    assert not seeds.is_done(change_ablation, SETTINGS, work, Run("ours", 1))
    assert not seeds.is_done(change_ablation, replace(SETTINGS, agent_steps=4), work, Run("ours", 0))
    monkeypatch.setattr(launch, "train_from_config", lambda *a: pytest.fail("trained again"))
    assert seeds.do(change_ablation, SETTINGS, work, Run("ours", 0), **QUIET)
    said = []
    monkeypatch.setattr(launch, "side_by_side", lambda commands, slots, log: said.extend(make() for _, make in commands) or [])
    left = seeds.run(change_ablation, SETTINGS, work, **QUIET)
    assert [one.key for one in left] == ["guide:1:0", "ours:1:0"] and said[:5] == [None] * 5 and said[5][2] == "change_agent"


def test_other_code_that_scores_scores_anew_and_trains_nothing(work, found, monkeypatch):
    steps = {path: path.read_bytes() for path in sorted((work / "train" / "change-guide").rglob("about.json"))}
    monkeypatch.setattr(freshness, "code", lambda *names: "another")
    done = change_ablation.place(work, Run("guide", 0)) / "done.json"
    before = done.read_text()
    assert not seeds.is_done(change_ablation, SETTINGS, work, Run("guide", 0))
    said = []
    assert seeds.do(change_ablation, SETTINGS, work, Run("guide", 0), log=said.append)
    assert any("all steps done at step 3 of 3" in line for line in said) and any("mean IoU" in line for line in said)
    assert steps and {path: path.read_bytes() for path in steps} == steps
    done.write_text(before)


def test_a_budget_that_ends_leaves_it_to_be_continued(work, found):
    said = []
    assert not seeds.do(change_ablation, SETTINGS, work, Run("guide", 1), minutes=1e-6, log=said.append)
    assert "to be continued" in said[-1] and not (change_ablation.place(work, Run("guide", 1)) / "done.json").exists()


def test_seeds_and_pairs_are_added_as_independent_errors():
    share = lambda value: {"value": value, "n": 50, "low": value - 0.03, "high": value + 0.03}
    one = change_ablation.over_seeds([share(0.5)])
    assert (one["low"], one["high"], one["n"], one["seeds"]) == (pytest.approx(0.47), pytest.approx(0.53), 50, 1)
    alike = change_ablation.over_seeds([share(0.5)] * 3)
    assert alike["high"] == pytest.approx(0.53), "seeds that agree leave the pairs"
    three = change_ablation.over_seeds([share(0.4), share(0.5), share(0.6)])
    assert three["value"] == pytest.approx(0.5) and three["high"] - 0.5 == pytest.approx((0.03**2 + (4.303 * 0.1 / 3**0.5) ** 2) ** 0.5)
    few = change_ablation.over_seeds([share(0.03), share(0.05), share(0.1)])
    assert few["low"] == 0 and change_ablation.over_seeds([share(0.97)] * 2)["high"] == 1, "no share is below 0 or above 1"
    assert change_ablation.over_seeds([share(1.2)] * 2, most=10.0)["high"] == pytest.approx(1.23)


def test_rows_come_in_their_order_floors_after_them_and_the_ceiling_last():
    names = ["ceiling (three numbers)", "edges gained (tuned on training)", "ours, dates swapped", "ours, caption none", "differencing",
             "constant (training mean)", "ours, caption given", "guide, caption none"]  # fmt: skip
    found = change_ablation._rows([{"variant": name, "metrics": {"m": 0}} for name in names], "m")
    assert list(found) == [names[i] for i in (7, 6, 3, 2, 5, 4, 1, 0)]


def test_published_are_clean_records_with_the_tables(work, found, tmp_path, monkeypatch):
    drawn = change_ablation.draw(SETTINGS, work)
    assert drawn == ["change_answers.png"] and change_ablation.draw(replace(SETTINGS, agent_steps=9), work) == []
    monkeypatch.setattr(change_ablation, "records", lambda work: [{**record, "commit": "0123456789ab"} for record in found])
    target = change_ablation.publish(work, tmp_path / "results" / "cpu", drawn, **QUIET)
    assert len(run_records.load_all(target / "runs" / "change_agent")) == len(found)
    assert (target / "figures" / drawn[0]).stat().st_size > 10_000
    section = change_ablation.readme_section(target)
    assert "Not comparable with LEVIR-CC" in section and "| ours, caption none | 1 |" in section
    assert change_ablation.readme_section(tmp_path) == "Not measured yet.\n"
    monkeypatch.setattr(change_ablation, "records", lambda work: [{**found[0], "commit": "0123456789ab+changes"}])
    with pytest.raises(UserError, match="clean commits"):
        change_ablation.publish(work, target, [], **QUIET)
