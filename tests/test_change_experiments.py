"""The change agent's way from stores to records, tables and figures, and its command. Run: pytest tests/test_change_experiments.py"""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from fake_pairs import one, store

from repro import change_asked, change_experiments, change_figures, change_tables, cli, profiles, run_records
from repro.data import levir_boxes, overlap
from repro.evaluation import change_answer, localisation
from repro.machine import UserError
from repro.models.change_agent import PRESETS, TRAIN
from repro.training import checkpoint, launch, loop

TINY = {"image_size": 32, "channels": 4, "hidden": 32, "heads": 2, "intermediate": 32, "layers": 1, "width": 16, "readers": 2, "mixing": 1,
        "text_length": 24}  # fmt: skip
SETTINGS = replace(profiles.get("smoke"), agent_steps=4, budget_minutes=0)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Stores of pairs, and rows "guide" and "ours" trained for four steps."""
    top = tmp_path_factory.mktemp("work")
    for i, (split, n) in enumerate((("train", 16), ("val", 8), ("test", 20))):
        store(top / "store" / f"levir_{split}", n, split, 32, seed=i)
    for row in ("guide", "ours"):
        path = change_experiments.job(SETTINGS, top, row, model=TINY, batch_size=4)
        launch.train_from_config(path, log=lambda line: None)
    return top


@pytest.fixture(scope="module")
def scored(work):
    models = change_experiments.load(work, ["guide", "ours"])
    with pytest.MonkeyPatch.context() as patch:  # METEOR's Java takes seconds a table; tests/test_captions.py has it
        patch.setattr(change_experiments.captions, "lacks_meteor", lambda: "no java")
        return models, *change_experiments.score(SETTINGS, work, models, log=lambda line: None)


def test_training_is_the_loop_of_all_models_and_goes_on_bit_for_bit(work, tmp_path, monkeypatch):
    place = change_experiments.folder(work, "ours")
    lines = loop.read_metrics(place / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and {"action", "gate", "caption", "point", "grad_norm"} <= set(lines[0])
    assert 0 <= lines[-1]["held_out"] <= 1 and "held_out_gate" in lines[-1] and checkpoint.latest(place / "best") is not None
    config = json.loads(place.with_suffix(".json").read_text())
    job = launch.write_config(tmp_path / "cut.json", **{**config, "folder": str(tmp_path / "cut")})
    asked = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(loop.Budget, "over", lambda self: next(asked) >= 2)  # the session ends after two steps
        assert launch.train_from_config(job, log=lambda line: None).step == 2
    summary = launch.train_from_config(job, log=lambda line: None)
    assert summary.finished and summary.resumed_from == 2
    weights = [checkpoint.digest(checkpoint.need(folder) / "model.safetensors") for folder in (place, tmp_path / "cut")]
    assert weights[0] == weights[1]


def test_models_are_kept_by_epochs_and_shares_of_the_run_where_a_job_asks(work, tmp_path):
    config = json.loads(change_experiments.folder(work, "guide").with_suffix(".json").read_text())
    config["train"] |= {"keep_epochs": 1, "marks": [0.25], "measure_every": 0, "best": False}  # 16 pairs in batches of 4: 4 steps an epoch
    job = launch.write_config(tmp_path / "kept.json", **{**config, "folder": str(tmp_path / "kept")})
    launch.train_from_config(job, log=lambda line: None)
    assert [path.name for path in checkpoint.steps(tmp_path / "kept" / "kept")] == ["step_00000001", "step_00000004"]


def test_the_learning_rate_falls_to_a_share_and_old_checkpoints_do_not_see_the_field():
    settings = loop.TrainConfig(steps=100, warmup=10, learning_rate=1e-4, final=0.1)
    assert loop.rate(9, settings) == pytest.approx(1e-4) and loop.rate(100, settings) == pytest.approx(1e-5)
    assert loop.rate(55, settings) == pytest.approx(5.5e-5) and loop.rate(100, replace(settings, final=0.0)) == pytest.approx(0)
    assert loop.differences({"train": {}}, {"train": {"final": 0.0}}) == loop.differences({"train": {"final": 0.0}}, {"train": {}}) == []
    assert loop.differences({"train": {}}, {"train": {"final": 0.1}}) == [("train", "final", None, 0.1)]
    with pytest.raises(UserError, match="share of the peak"):
        loop.TrainConfig(final=2.0)
    for preset in ("change_guide", "change_t4"):
        given = launch.TRAIN[preset]
        assert (given["batch_size"], given["learning_rate"], given["weight_decay"], given["warmup"], given["final"], given["clip"]) == (
            4, 1e-4, 0.01, 500, 0.1, 1.0)  # fmt: skip


def test_the_memory_that_is_told_is_the_benchmarks_of_the_present_presets():
    root = Path(__file__).parents[1]
    found = json.loads((root / "results" / "benchmarks" / "change_memory.json").read_text())
    told = (root / "results" / "README.md").read_text().splitlines()
    line = next(line for line in told if "benchmarks/change_memory.py" in line and "t4" in line)
    assert f"| {found['cases']['t4']['GB with context and slack']:.1f} GB, **{found['how']}**" in line and found["cases"]["t4"]["met"]
    assert {"t4", "t4, features cached", "guide"} <= set(found["cases"])
    for name, changes in (("t4", {}), ("t4, features cached", {"cache_features": True, "augment": False}), ("guide", {})):
        preset = "guide" if name == "guide" else "t4"
        present = json.loads(json.dumps(asdict(replace(PRESETS[preset], **changes))))
        assert found["cases"][name]["config"] == present, f"{name} is another than was measured: run benchmarks/change_memory.py again"
        assert found["cases"][name]["batch"] == TRAIN[preset]["batch_size"]


def test_results_readme_says_what_caching_pays_or_that_nobody_measured():
    root = Path(__file__).parents[1]
    line = next(line for line in (root / "results" / "README.md").read_text().splitlines() if "`benchmarks/change_cache.py`" in line)
    record = root / "results" / "benchmarks" / "change_cache.json"
    said = f"| {json.loads(record.read_text())['ratio']:.1f}x" if record.is_file() else "| no record yet |"
    assert said in line
    caching = {name for name, config in PRESETS.items() if config.vision != "tiny" and config.cache_features}
    assert caching == {"guide", "ours"} and "presets `guide`, `ours`; `t4` augments instead and never caches" in line


def test_pairs_without_any_box_are_refused_before_anything_is_made(work, tmp_path):
    from repro.data import levir

    levir.write_store((replace_mask(one(i, "train", 32)) for i in range(6)), tmp_path / "cc")
    config = json.loads(change_experiments.folder(work, "ours").with_suffix(".json").read_text())
    for field in ("store", "validation"):
        job = launch.write_config(tmp_path / "cc.json", **{**config, "folder": str(tmp_path / "run"), field: str(tmp_path / "cc")})
        with pytest.raises(UserError, match="(?s)no pair with a box.*6 pairs, none localisable.*LEVIR-MCI"):
            launch.train_from_config(job, log=lambda line: None)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cc.prepared").exists()


def test_a_caption_that_is_too_long_is_refused_before_anything_is_made(work, tmp_path):
    from repro.data import levir

    said = lambda pair, captions: levir.pair(pair.name, pair.split, pair.before, pair.after, captions, pair.mask)
    pairs = [one(i, "train", 32) for i in range(6)]
    pairs[3] = said(pairs[3], [*pairs[3].captions[:4], "a house " * 30])  # the fifth sentence of one pair
    levir.write_store(pairs, tmp_path / "long")
    config = json.loads(change_experiments.folder(work, "ours").with_suffix(".json").read_text())
    for field in ("store", "validation"):
        job = launch.write_config(tmp_path / "long.json", **{**config, "folder": str(tmp_path / "run"), field: str(tmp_path / "long")})
        with pytest.raises(UserError, match="(?s)a caption is too long.*a house a house.*text_length"):
            launch.train_from_config(job, log=lambda line: None)
    assert not (tmp_path / "run").exists() and not (tmp_path / "long.prepared").exists()


def replace_mask(pair):
    """As LEVIR-CC has it: captions, no mask."""
    from repro.data import levir

    return levir.pair(pair.name, pair.split, pair.before, pair.after, pair.captions)


def test_debug_is_five_batches_and_wrong_jobs_are_refused(work):
    path = change_experiments.job(SETTINGS, work, "upstream", debug=True)
    given = json.loads(path.read_text())
    assert given["train"]["steps"] == 5 and given["model"]["box"] == "whole" and given["model"]["preset"] == "change_tiny_guide"
    path.unlink()
    with pytest.raises(UserError, match="no row"):
        change_experiments.named("ours,theirs")
    with pytest.raises(UserError, match="notebook 03"):
        change_experiments.pairs_of(work / "nowhere", "train")


def test_records_hold_every_mode_floor_and_ceiling_of_the_same_pairs(work, scored):
    models, records, found = scored
    names = {r["variant"] for r in records if r["benchmark"].startswith("change agent, localisation")}
    assert {"guide, caption given", "guide, caption none", "ours, caption given", "ours, caption none", "ours, caption generated",
            "ours, second date twice", "ours, dates swapped", "ours, another pair's first date",
            "ceiling (three numbers)", "differencing", "edges gained (tuned on training)", "whole frame"} <= names  # fmt: skip
    pairs = change_experiments.pairs_of(work, "test")
    n = sum(state == "localisable" for state in pairs.column("state"))
    assert {r["metrics"]["mean IoU of the square"]["n"] for r in records if "mean IoU of the square" in r["metrics"]} == {n} and n < 10
    assert {record["id"] for record in run_records.load_all(work / "runs")} == {record["id"] for record in records}
    one = next(r for r in records if r["variant"] == "ours, caption none")
    mine = localisation.numbers(models["ours"].act(*pairs.pictures(range(len(pairs))))["vector"], pairs.column("box_main"))
    assert one["metrics"]["mean IoU of the square"]["value"] == pytest.approx(np.nanmean(mine["IoU of the square"]), abs=1e-5)
    guess = next(r for r in records if r["variant"] == "differencing")["metrics"]["mean IoU of the square"]["value"]
    silent = np.where(found["ours"]["none"].changed >= 0.5, mine["IoU of the square"], 0)[np.array(pairs.column("state")) == "localisable"]
    assert one["metrics"][localisation.GATED]["value"] == pytest.approx(silent.mean(), abs=1e-5)
    assert not any(localisation.GATED in r["metrics"] for r in records if r["variant"].startswith("guide"))
    apart = one["metrics"]["IoU minus differencing's"]
    assert apart["value"] == pytest.approx(np.nanmean(mine["IoU of the square"]) - guess, abs=1e-5) and apart["n"] == n
    assert one["metrics"]["gate accuracy"]["n"] == len(pairs) and "change_agent" in one["not_comparable_with"]
    assert found["ours"]["generated"].told == change_asked.write(models["ours"], pairs)
    assert found["ours"]["given"].told[1] == pairs.column("captions")[1][0]


def test_controls_are_answers_to_the_altered_dates(work, scored):
    models, records, _ = scored
    pairs = change_experiments.pairs_of(work, "test")
    before, after = pairs.pictures(range(len(pairs)))
    other = change_asked.others(len(pairs))
    assert sorted(other) == list(range(len(pairs))) and (other != np.arange(len(pairs))).all()
    shown = {"second date twice": (after, after), "dates swapped": (after, before), "another pair's first date": (before[other], after)}
    assert set(shown) == set(change_asked.CONTROLS)
    values = set()
    for control, dates in shown.items():
        metrics = next(r["metrics"] for r in records if r["variant"] == f"ours, {control}")
        said = models["ours"].act(*dates)
        mine = localisation.numbers(said["vector"], change_experiments.boxes_of(pairs))
        for name, column in (("mean IoU of the square", "IoU of the square"), ("centre error (picture widths)",) * 2):
            assert metrics[name]["value"] == pytest.approx(np.nanmean(mine[column]), abs=1e-5), control
        known = np.array(pairs.column("state")) == "localisable"
        assert metrics["says change, localisable"]["value"] == pytest.approx((said["changed"] >= 0.5)[known].mean())
        assert "IoU minus differencing's" not in metrics and "gate accuracy" not in metrics
        values.add(round(metrics["centre error (picture widths)"]["value"], 7))
    assert len(values) == 3, "three different questions"
    with pytest.raises(UserError, match="no other pair"):
        change_asked.others(1)


def test_tables_and_figures_are_made_of_records_and_answers(work, scored, tmp_path):
    models, records, found = scored
    header, rows = change_tables.localisation_table(records)
    assert len(header) == len(rows[0]) and len(rows) == 14 and all("[" in row[3] for row in rows)
    gated = [row[4] != "-" for row in rows if row[0].startswith(("guide", "ours"))]
    assert header[4] == localisation.GATED and gated == [False] * 2 + [True] * 6
    header, rows = change_tables.state_table(records)
    assert {row[3] for row in rows} == {"unchanged", "localisable", "not localisable"} and len(rows) == 21
    blind = [row for row in rows if row[0] == localisation.CONSTANT]  # half of the training pairs are changed: so it says of all
    assert [row[5].split()[0] for row in blind] == ["100.0"] * 3 and {row[7].split()[0] for row in blind} == {"0.500"}
    assert header[6] == 'says "changed, no box"'
    given = found["ours"]["none"].changed[np.array(change_experiments.pairs_of(work, "test").column("state")) == "not localisable"]
    third = next(row for row in rows if row[1] == "none" and row[3] == "not localisable")
    assert third[4:7] == [str(len(given)), third[5], "no such answer"] and third[5].startswith(f"{100 * (given >= 0.5).mean():.1f} [")
    assert third[7].startswith(f"{given.mean():.3f} [") and third[8] == "nothing to point at"
    header, rows = change_tables.caption_table(records)
    assert {row[1] for row in rows} == {"overall", "change only"} and len(rows) == 6 and rows[0][7] == "n/a (no java)"
    header, rows = change_experiments.parameters(models)
    assert rows[-1][0] == "all" and all(" of " in cell for cell in rows[-1][1:])
    pairs = change_experiments.pairs_of(work, "test")
    none = {row: some["none"] for row, some in found.items()}
    boxes = np.asarray(pairs.column("box_main"))
    iou = localisation.numbers(none["ours"].vectors, boxes)["IoU of the square"]
    at = change_figures.chosen(iou, pairs.column("state"), 2)
    assert {pairs.column("state")[i] for i in at} == {"unchanged", "localisable", "not localisable"} and at[0] == np.nanargmax(iou)
    made, maps, rows = change_experiments.look(SETTINGS, work, models, found, count=3)
    assert set(maps) == {"guide, occlusion", "ours, occlusion", "ours, reading"} and len(made) == 3
    assert any("minus another episode's box" in name for name in made[0]["metrics"])
    for name, figure in {"sheet": change_figures.sheet(pairs, at, none), "maps": change_figures.maps_sheet(pairs, rows, maps),
                         "scatter": change_figures.scatter({row: said.vectors for row, said in none.items()}, boxes),
                         "reach": change_figures.reach({row: said.vectors for row, said in none.items()}, boxes)}.items():  # fmt: skip
        figure.savefig(tmp_path / f"{name}.png")
        assert PIL.Image.open(tmp_path / f"{name}.png").size[0] > 300


def test_the_sheet_says_what_each_answer_is_to_its_pair(work):
    pairs = change_experiments.pairs_of(work, "test")
    rows = [pairs.column("state").index(state) for state in change_tables.STATES]  # unchanged, localisable, not localisable
    vectors = np.tile(np.float32([0.5, 0.5, 0.5]), (len(pairs), 1))
    sure = lambda p: change_experiments.Answers([], vectors, np.full(len(pairs), p))
    models = {"loud": sure(0.9), "silent": sure(0.2), "no gate": change_experiments.Answers([], vectors)}
    figure = change_figures.sheet(pairs, rows, models)
    labels = np.array([axis.get_xlabel().replace("\n", " ") for axis in figure.axes]).reshape(3, 6)[:, 2:]
    iou = float(overlap.iou(levir_boxes.decode(vectors[0]), pairs.column("box_main")[rows[1]]))
    assert labels.tolist() == [
        ["unchanged", "change (p = 0.90), false alarm", "no change (p = 0.20), right", "false alarm"],
        ["localisable", f"change (p = 0.90), IoU {iou:.2f}", "no change (p = 0.20), missed", f"IoU {iou:.2f}"],
        ["not localisable", "change (p = 0.90), no box to check", "no change (p = 0.20), missed", "no box to check"]]  # fmt: skip
    drawn = np.array([len(axis.patches) for axis in figure.axes]).reshape(3, 6)[:, 2:]
    assert drawn.tolist() == [[0, 1, 0, 1], [1, 2, 1, 2], [0, 1, 0, 1]], "no square where the gate is silent, the truth where there is one"


class Corner:
    """Stands for an agent: its answer moves with the brightness of the later picture's first quarter."""

    def act(self, before, after, captions):
        light = after[:, : after.shape[1] // 2, : after.shape[2] // 2].mean((1, 2, 3)) / 255
        return {"vector": np.stack([light, 0 * light + 0.5, 0 * light + 0.5], axis=1)}


def test_occlusion_finds_what_the_answer_hangs_on():
    before, after = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    after[4:12, 4:12], after[20:30, 20:30] = 200, 200
    found = change_experiments.occlusion(Corner(), before, after, None, cells=4)
    assert found[:2, :2].sum() == pytest.approx(1) and found.shape == (4, 4) and found[2:, 2:].sum() == 0
    assert np.allclose(change_experiments.occlusion(Corner(), before, before, None, cells=4), 1 / 16)


def test_the_command_says_how_good_the_checkpoint_was_by_its_own_metrics(work, tmp_path):
    for row, gated in (("ours", True), ("guide", False)):
        place = change_experiments.folder(work, row)
        path = checkpoint.need(place / "best")
        line = next(line for line in loop.read_metrics(place / "metrics.jsonl") if line["step"] == checkpoint.about(path)["step"])
        said = change_answer.measured(path)
        assert f"step {line['step']}: mean IoU {1 - line['held_out']:.2f}, " in said and ("gate was right" in said) == gated
        assert f"the box for {100 * line['held_out_pointing']:.0f} %" in said
    shutil.copytree(path, tmp_path / "alone" / path.name)
    assert "is not known" in change_answer.measured(tmp_path / "alone" / path.name)
    lines = [{"step": 1, "held_out": 0.9}, {"step": 2}, {"step": line["step"], "held_out": 0.25}]
    (tmp_path / "alone" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    assert change_answer.measured(tmp_path / "alone" / path.name).endswith(f"step {line['step']}: mean IoU 0.75"), "of its own step"
    PIL.Image.fromarray(one(1, "x", 32).after).save(tmp_path / "a.png")
    for out, said in (("a.png", "is one of the two pictures"), ("a.jpg", "would hold a PNG picture")):
        before = (tmp_path / "a.png").read_bytes()
        with pytest.raises(UserError, match=said):
            change_answer.answer(place, tmp_path / "a.png", tmp_path / "a.png", out=tmp_path / out)
        assert (tmp_path / "a.png").read_bytes() == before and not (tmp_path / "a.jpg").exists()
    lines = change_answer.answer(place, tmp_path / "a.png", tmp_path / "a.png", out=tmp_path / "out.png")
    assert any("no gate: it always points somewhere" in line for line in lines) and (tmp_path / "out.png").exists()


def test_the_command_says_vector_and_box_or_no_change(work, tmp_path, monkeypatch):
    shown = one(1, "x", 32)
    for name, picture in (("a", shown.before), ("b", shown.after)):
        PIL.Image.fromarray(picture).save(tmp_path / f"{name}.png")
    run = str(change_experiments.folder(work, "ours"))
    base = ["evaluate", "change-agent", "--run", run, "--before", str(tmp_path / "a.png"), "--after", str(tmp_path / "b.png")]
    for chance, said in ((0.9, "box: x 8 to 24, y 4 to 20 px"), (0.1, "no change")):
        answers = lambda self, batch, captions, p=chance: {"vector": np.float32([[0.5, 0.375, 0.5]]), "changed": np.float32([p])}
        with monkeypatch.context() as patch:
            patch.setattr(change_answer.ChangeAgent, "answers", answers)
            out = tmp_path / f"{chance}.png"
            done = CliRunner().invoke(cli.cli, [*base, "--out", str(out)])
        assert done.exit_code == 0 and said in done.output and "[0.500, 0.375, 0.500]" in done.output and out.exists() == (chance > 0.5)
        assert f"probability of a change: {chance:.2f}" in done.output and ("told as any other" in done.output) == (chance > 0.5)
        assert "of an earlier answer" not in done.output
    drawn = np.asarray(PIL.Image.open(tmp_path / "0.9.png"))
    assert drawn.shape == (32, 32, 3) and (drawn[4, 8:24] == 0).all() and not list(tmp_path.glob("*.part"))
    with monkeypatch.context() as patch:
        patch.setattr(change_answer.ChangeAgent, "answers", answers)  # nothing changed, and a picture stands there
        silent = CliRunner().invoke(cli.cli, [*base, "--out", str(tmp_path / "0.9.png")])
    assert f"{tmp_path / '0.9.png'} is of an earlier answer, not of this one" in silent.output
    plain = CliRunner().invoke(cli.cli, [*base, "--out", str(tmp_path / "c.png"), "--caption", "a house appears"])
    assert plain.exit_code == 0 and "best" in plain.output and "probability of a change" in plain.output
    PIL.Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    for before, what in (("large.png", "different sizes"), ("torn.png", "no picture"), ("none.png", "no picture")):
        with pytest.raises(UserError, match=what):
            change_answer.answer(change_experiments.folder(work, "ours"), tmp_path / before, tmp_path / "b.png", out=tmp_path / "d.png")
    assert not (tmp_path / "d.png").exists()


def two_dates(folder: Path, size: int = 32) -> tuple[Path, Path]:
    """The files of both dates of a changed pair."""
    folder.mkdir(exist_ok=True)
    shown = one(1, "x", size)
    for name, picture in (("a", shown.before), ("b", shown.after)):
        PIL.Image.fromarray(picture).save(folder / f"{name}.png")
    return folder / "a.png", folder / "b.png"


def test_the_command_refuses_pictures_of_sixteen_bits_and_tells_of_small_ones(work, tmp_path):
    run, (before, after) = change_experiments.folder(work, "guide"), two_dates(tmp_path)
    deep = np.full((32, 32), 1000, np.uint16)
    for name, made in (("deep", PIL.Image.fromarray(deep)), ("float", PIL.Image.fromarray(deep.astype(np.float32)))):
        made.save(tmp_path / f"{name}.tif")
        with pytest.raises(UserError, match="(?s)more than 8 bits.*scale its values"):
            change_answer.answer(run, tmp_path / f"{name}.tif", after, out=tmp_path / "out.png")
    for mode in ("L", "RGBA", "P", "1"):
        PIL.Image.open(before).convert(mode).save(tmp_path / "mode.png")
        assert change_answer.picture(tmp_path / "mode.png").shape == (32, 32, 3)
    assert not (tmp_path / "out.png").exists()
    small = PIL.Image.new("RGB", (1, 1))
    small.save(tmp_path / "small.png")
    lines = change_answer.answer(run, tmp_path / "small.png", tmp_path / "small.png", out=tmp_path / "out.png")
    assert any("the pictures have 1 px, fewer than the 32 px" in line for line in lines)
    assert not any("fewer than" in line for line in change_answer.answer(run, before, after, out=tmp_path / "out.png"))


SPOILT = {
    "weights cut": ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:-100]), "model.safetensors cannot be read"),
    "weights missing": ("model.safetensors", lambda file: file.unlink(), "model.safetensors cannot be read"),
    "model.json torn": ("model.json", lambda file: file.write_text(file.read_text()[:50]), "model.json cannot be read"),
    "model.json a list": ("model.json", lambda file: file.write_text("[]"), "model.json is not a change agent's"),
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("explained", [True, False])
def test_the_command_says_which_file_of_a_checkpoint_is_damaged(work, tmp_path, kind, explained):
    name, spoil, said = SPOILT[kind]
    place = tmp_path / "step_00000001"
    shutil.copytree(checkpoint.need(change_experiments.folder(work, "guide")), place)
    spoil(place / name)
    if not explained:  # without about.json nobody knows what the files were
        (place / "about.json").unlink()
    with pytest.raises(UserError, match=f"(?s)step_00000001 is damaged.*{name}" if explained else said):
        change_answer.answer(place, *two_dates(tmp_path), out=tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_the_command_says_where_it_cannot_write_and_which_notebook_trains(work, tmp_path):
    run, dates = change_experiments.folder(work, "guide"), two_dates(tmp_path)  # no gate: it always draws
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for out, said in (("folder", "is a folder"), ("file/out.png", "cannot be written")):
        with pytest.raises(UserError, match=said):
            change_answer.answer(run, *dates, out=tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine" and not list(tmp_path.rglob("*.part"))
    with pytest.raises(UserError, match="notebook 07"):
        change_answer.answer(tmp_path / "folder", *dates, out=tmp_path / "out.png")
