"""The ablation: resumed after a kill, nothing repeated; first weights, wrong boxes, intervals. Run: pytest tests/test_ablation.py"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from repro import (
    ablation,
    ablation_figures,
    ablation_statistics,
    ablation_tables,
    change_ablation,
    clock,
    experiments,
    looking,
    machine,
    profiles,
    results,
    run_records,
    scoring,
    seeds,
    vla_ablation,
)
from repro.cli import cli
from repro.data.batches import Batches, other_boxes
from repro.data.calvin_import import ensure_store
from repro.data.episodes import Episode, Store, StoreWriter
from repro.data.overlap import iou
from repro.evaluation import chains, floors, offline
from repro.gaze.annotate import annotate
from repro.intervals import t95, wilson
from repro.machine import UserError, root
from repro.models import tiny
from repro.models.reconvla import ReconVLAConfig
from repro.seeds import Run
from repro.sims import calvin_layout
from repro.sims.tabletop import language
from repro.training import checkpoint, launch
from repro.training.loop import TrainConfig, read_metrics

TOY = ReconVLAConfig(vae="pixels", hidden=16, layers=1, heads=2, intermediate=32, channels=4, denoiser_width=32, denoiser_depth=1,
                     denoiser_heads=2, chunk=5, cache_features=False,
                     **({"freeze_vision": False} if hasattr(ReconVLAConfig, "freeze_vision") else {"keypoints": 0}))  # fmt: skip
SETTINGS = replace(profiles.get("smoke"), scenes=("A",), preset="toy", train_steps=6, batch_size=4, pretrain_steps=3, attention_frames=8,
                   ablation_chains=3, simulators=3, workers=1, rows=("baseline", "gaze"), seeds=(0, 1), corrupt=(), curve_seeds=(1,),
                   curve_single=1, tasks=profiles.EIGHT_TASKS[:5], episodes_per_task=1)  # fmt: skip


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """A model of a few thousand numbers, and tasks that end after five steps."""
    monkeypatch.setitem(launch.PRESETS, "toy", TOY)
    monkeypatch.setattr(ablation, "MAX_STEPS", 5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The stores of the toy, made once."""
    work = tmp_path_factory.mktemp("data")
    calvin_layout.ensure(work / "calvin", SETTINGS, log=lambda line: None)
    for split in ("training", "validation"):
        annotate(ensure_store(work / "calvin", split, work / "store" / split, workers=1, log=lambda line: None).folder, "truth")
    return work


@pytest.fixture
def work(data, tmp_path):
    shutil.copytree(data / "store", tmp_path / "store")
    return tmp_path


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_ablation as t
t.launch.PRESETS["toy"], t.ablation.MAX_STEPS = t.TOY, 5
t.seeds.run(t.ablation, t.SETTINGS, Path(sys.argv[1]), slots=0, log=lambda line: print(line, flush=True))
"""


def test_a_killed_ablation_goes_on_where_it_was_and_repeats_nothing(work):
    process = subprocess.Popen([sys.executable, "-c", KILLED.format(tests=str(Path(__file__).parent)), str(work)], text=True,
                               stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("gaze: 1/3 chains") or line.startswith("gaze: 3/3 chains"):  # of gaze:0, in the middle of its evaluation
            os.kill(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL, said
    done = {path.name: path.stat().st_mtime_ns for path in (work / "runs" / "ablation").glob("*.json")}
    trained = {path: path.stat().st_mtime_ns for path in (work / "train").glob("*/step_*/about.json")}
    assert seeds.is_done(ablation, SETTINGS, work, Run("baseline", 0)) and not seeds.is_done(ablation, SETTINGS, work, Run("gaze", 0))
    assert len(done) == 4 and len(trained) == 2

    log = []
    assert seeds.run(ablation, SETTINGS, work, slots=0, log=log.append) == []
    assert {name: (work / "runs" / "ablation" / name).stat().st_mtime_ns for name in done} == done
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert any("gaze: 1 of 3 chains are done already" in line or "gaze: 3/3" in line for line in log) and "6 of 6 runs are done" in log[-1]
    assert [json.loads((work / "ablation" / name / "done.json").read_text())["asked"] for name in ("baseline-seed1", "floors")]
    again = []
    seeds.run(ablation, SETTINGS, work, slots=0, log=again.append)
    assert "6 of 6" in again[-1] and not any("step" in line for line in again)
    check_tables(work)
    check_another_machine(work)


def check_another_machine(work):
    """What the records of one machine hold is not done again on another, whose policies are not there; other data are another table."""
    other = work / "another machine"
    shutil.copytree(work / "store", other / "store")
    published, said = work / "published", []
    shutil.copytree(work / "runs" / "ablation", published)
    for path in published.glob("*.json"):
        record = json.loads(path.read_text())
        if record["config"]["row"] == seeds.FLOORS and record["seed"] == 1:
            path.unlink()
    more = replace(SETTINGS, seeds=(0, 1, 2), rows=("baseline", "gaze"))
    shutil.copytree(work / "parts", other / "parts") if (work / "parts").is_dir() else None
    with pytest.raises(UserError, match="floors of seed 1 need its row gaze, which was trained elsewhere"):
        seeds.run(ablation, more, other, slots=0, log=said.append, joined=published)
    assert any("5 runs are taken over: " in line for line in said) and not (other / "train").exists()
    assert ablation_statistics.load(other / "runs" / "ablation"), "and they stand in its tables"
    assert ablation.draw(SETTINGS, other) == [], "figures need the policies"
    for path in published.glob("*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "config": {**record["config"], "asked": "other"}}))
    shutil.rmtree(other / "ablation")
    said.clear()
    assert seeds.join(ablation, SETTINGS, other, published, said.append) == [] and "are of other settings, data or tiny parts" in said[0]


def check_tables(work):
    """What the five runs say: both scenes, paired over two seeds, on the way, and the figures."""
    records = ablation_tables.write(work, lambda line: None)
    assert ablation_statistics.chain_benchmarks(records) == [f"play table A->{where}, 5 tasks, chains of 5" for where in "DA"]
    header, rows = ablation_tables.chain_table(records, "play table A->D, 5 tasks, chains of 5")
    assert [row[0] for row in rows][:2] == ["baseline", "gaze"] and rows[0][1:3] == ["2", "6"]
    assert rows[1][header.index("seeds above baseline")].endswith("of 2")
    assert {"random actions", "constant action", "scripted expert (ceiling)", "gaze, shuffled instruction"} <= {row[0] for row in rows}
    looked, apart = ablation_tables.attention_tables(records)
    assert [row[:2] for row in looked[1][:-1]] == [["baseline", "2"], ["gaze", "2"]] and [row[0] for row in apart[1]] == ["gaze"]
    header, scale = ablation_tables.scale_table(records)
    assert [row[:2] for row in scale[1:-1]] == [["baseline", "2"], ["gaze", "2"]]
    assert [scale[i][0] for i in (0, -1)] == [f"{what} (n = 5 episodes)" for what in ("uniform attention", "the box itself on this grid")]
    assert header[3] == "pointing game (5 of 200 px) in the gaze box (n = 5 tasks)" and len(header) == 5
    value = lambda cell: float(cell.split(" [")[0])
    assert all(value(scale[0][i]) <= value(scale[-1][i]) for i in (2, 3, 4)), "no map does better than the box itself"
    less = lambda r: {**r, "frames": {k: v for k, v in r["frames"].items() if k not in ablation_statistics.OWN[1:]}}
    header, fewer = ablation_tables.scale_table([less(r) if "frames" in r and r["seed"] == 0 else r for r in records])
    assert header[2].endswith("(n = 5 tasks)") and "without seed 0" in header[3], "early records keep the mass alone by frame"
    assert fewer[0] == scale[0] and [row[2] for row in fewer] == [row[2] for row in scale] and fewer[1][3] != scale[1][3]
    header, fewer = ablation_tables.scale_table([less(r) if "frames" in r else r for r in records])
    assert header[2].endswith("(n = 5 tasks)") and header[3].endswith("(n = 5 episodes)"), "what nobody keeps by frame"
    assert [value(row[3]) for row in fewer] == pytest.approx([value(row[3]) for row in scale], abs=0.05)
    assert looked[1][-1][0] == "the gaze box itself" and " episodes)" in "".join(looked[1][-1])
    titles = [line for line in (work / "ablation.md").read_text().splitlines() if line.startswith("## ")]
    assert len(titles) == len(set(titles)) and "## Attention on held-out frames, minus baseline" in titles
    assert "(n = 5 tasks)" in looked[0][2] and any(title.startswith("attention entropy") for title in looked[0])
    header, rebuilt = ablation_tables.rebuilt_table(records)
    assert [row[:2] for row in rebuilt] == [["gaze", "2"]] and "(n = 5 tasks)" in header[2] and 0 < value(rebuilt[0][2]) < 1
    assert len(header) == 4, "one episode a task has no other of its own"
    way = ablation_statistics.on_the_way(records)
    assert [mark["step"] for mark in way] == [1, 2, 3, 4, 6] and way[-1]["success gain"]["n"] == 5 and way[0]["epochs"] < way[1]["epochs"]
    figures = {path.stem for path in (work / "figures").glob("*.png")}
    assert figures == {"ablation_rows", "ablation_on_the_way", "ablation_learning", "ablation_attention"}
    assert "not comparable with the paper" in (work / "ablation.md").read_text() and str(work) not in json.dumps(records)


def test_a_seed_has_start_states_and_a_language_model_of_its_own(work):
    first, second, again = (ablation.benchmarks(SETTINGS, work, seed) for seed in (0, 1, 0))
    flat = lambda found: [json.dumps({k: np.asarray(v).tolist() for k, v in state.items()}) for places in found.values()
                          for _, starts in places for state, _ in starts]
    assert flat(first) == flat(again) and not set(flat(first)) & set(flat(second)) and first.keys() == second.keys()
    settings = replace(SETTINGS, preset="tiny", tower_steps=1, vae_steps=1, language_steps=2, part_pictures=24)
    jobs = [json.loads(experiments.job(settings, work, "gaze", seed).read_text()) for seed in (0, 1)]
    assert [Path(job["parts"]).name for job in jobs] == ["parts", "parts-seed1"]
    weights = lambda part: [load_file(next((Path(job["parts"]) / part).glob("*.safetensors"))) for job in jobs]
    same = lambda one, other: all(torch.equal(one[name], other[name]) for name in one)
    assert same(*weights("tower")) and same(*weights("vae")) and not same(*weights("language"))
    assert json.loads(experiments.job(settings, work, "gaze", 1, 0.33).read_text())["corrupt_seed"] == 1, "wrong boxes of its own"
    theirs = json.loads(experiments.job(replace(settings, optimizer=profiles.get("paper").optimizer), work, "gaze", 2).read_text())["train"]
    assert (theirs["betas"], theirs["weight_decay"], theirs["warmup"]) == ([0.9, 0.999], 0.0, 126) and "betas" not in jobs[0]["train"]
    assert TrainConfig(**theirs).betas == (0.9, 0.999)
    untaught = Path(json.loads(experiments.job(settings, work, "gaze untaught", 1).read_text())["parts"])
    assert untaught.name == "parts-untaught" and sorted(path.name for path in untaught.iterdir()) == ["tower", "vae"]
    found, ready = load_file(untaught / "tower" / "tower.safetensors"), tiny.load_parts(untaught)
    assert same(found, weights("tower")[0]) and "language" not in ready and ready["vision"] is not None
    before = ablation.asked(settings, work)
    (work / "parts" / "vae" / "vae.safetensors").write_bytes(b"another")
    assert ablation.asked(settings, work) != before, "what other parts made is asked for anew"


def test_a_row_trains_what_its_name_says(work):
    """Of every row the model, steps, first weights and data, as its config file says them; of its control all but the reconstruction."""
    settings = replace(SETTINGS, batch_size=3, accumulate=2, learning_rate=7e-4, train_steps=8)
    told = lambda row, seed=0, corrupt=0.0: json.loads(experiments.job(settings, work, row, seed, corrupt).read_text())
    model = lambda job: launch.model_config(job["model"], [])
    none, gaze = (False, "gaze", "none", False), (True, "gaze", "none", False)  # recon, target, aux, blind
    kinds = {"baseline": none, "whole": (True, "whole", "none", False), "gaze": gaze, "gaze+pretrain": gaze,
             "gaze+pretrain without denoiser": gaze, "baseline+pretrain": none, "box": (False, "gaze", "box", False),
             "mask": (False, "gaze", "mask", False), "blind": (False, "gaze", "none", True), "baseline untaught": none,
             "gaze untaught": gaze, "baseline long": none, "gaze long": gaze, "baseline plain": none, "gaze plain": gaze}  # fmt: skip
    starts = {"gaze+pretrain": ("pretraining-gaze-seed1", True), "gaze+pretrain without denoiser": ("pretraining-gaze-seed1", False),
              "baseline+pretrain": ("pretraining-baseline-seed1", True)}  # fmt: skip
    assert kinds.keys() == experiments.ROWS.keys()
    for row, kind in kinds.items():
        job = told(row, 1)
        config = model(job)
        assert (config.recon, config.target, config.aux, config.blind) == kind, row
        assert (config.ordered_bins, config.soft_bins) == ((False, 0.0) if row.endswith(" plain") else (True, 2.0)), row
        assert (Path(job["start"]).name, job["keep_denoiser"]) == starts.get(row, ("", True)), row
        assert job["train"]["steps"] == (24 if row.endswith(" long") else 8) and job["train"]["seed"] == 1 and job["corrupt"] == 0
        assert [job["train"][name] for name in ("batch_size", "accumulate", "learning_rate")] == [3, 2, 7e-4]
        assert [Path(job[name]).name for name in ("store", "validation", "like")] == ["training", "validation", ""]
        assert ("marks" in job["train"]) == (row in ("baseline", "gaze")), row
    wrong = told("gaze", 1, 0.33)
    assert "marks" not in told("gaze", 0)["train"] and "marks" not in wrong["train"] and wrong["corrupt"] == 0.33
    for row, before in (("gaze+pretrain", gaze), ("gaze+pretrain without denoiser", gaze), ("baseline+pretrain", none)):
        job = json.loads(experiments.job_before(settings, work, row, 1).read_text())
        config = model(job)
        assert (config.recon, config.target, config.aux, config.blind) == before and job["folder"] == told(row, 1)["start"]
        assert [Path(job[name]).name for name in ("store", "like")] == ["pretraining", "training"], "other tables, one tokenizer"
        assert job["train"]["steps"] == settings.pretrain_steps and job["train"]["seed"] == 1
    for row, control in experiments.CONTROL.items():
        mine, theirs = told(row), told(control)
        assert replace(model(mine), recon=False) == model(theirs) != model(mine) and mine["train"] == theirs["train"]
        assert bool(mine["start"]) == bool(theirs["start"]) and (row in experiments.UNTAUGHT) == (control in experiments.UNTAUGHT)


def test_pretraining_is_on_tables_of_its_own_and_costs_its_row_time(work, monkeypatch):
    made, trained = [], []

    def data(settings, raw, stores, seed, log):
        made.append((settings.scenes, settings.episodes_per_task, seed))
        for place in (raw, *stores.values()):
            place.mkdir()
    monkeypatch.setattr(ablation, "_data", data)
    monkeypatch.setattr(ablation, "_annotate", lambda *_: None)
    settings = replace(SETTINGS, rows=("gaze+pretrain",), pretrain_tables=2, pretrain_episodes_per_task=7)
    ablation.prepare(settings, work, log=lambda line: None)
    assert made == [(("R~0", "R~1"), 7, experiments.PRETRAINING_SEED)] and experiments.PRETRAINING_SEED > 0
    assert (work / "store" / "pretraining").is_dir() and not (work / "store" / "pretraining.part").exists()
    ablation.prepare(replace(settings, rows=("gaze",)), work, log=lambda line: None)
    assert len(made) == 1

    before = work / "train" / "pretraining-gaze"
    before.mkdir(parents=True)
    (before / "metrics.jsonl").write_text('{"step": 3, "seconds": 120.0}\n')
    monkeypatch.setattr(ablation, "_train", lambda config, log: trained.append(config.stem))
    monkeypatch.setattr(experiments, "load_run", lambda place, path=None: SimpleNamespace(minutes=1.0, denoiser=None))
    monkeypatch.setattr(ablation, "_evaluate", lambda settings, work, run, scored, *_: [model.minutes for model in scored.values()])
    for name in ("_look", "_offline"):
        monkeypatch.setattr(ablation, name, lambda *_: {})
    for row, stages, minutes in (("gaze+pretrain", ["pretraining-gaze", "gaze-pretrain"], 3.0), ("gaze", ["gaze"], 1.0)):
        assert ablation._trained(settings, work, Run(row, 0), seeds.Clock(0), print) == [minutes, {}, {}] and trained == stages
        trained.clear()


def test_what_decides_a_number_decides_the_digest(work):
    """A run that was done with other settings is another run; more rows, seeds or shares of wrong boxes leave it as it is."""
    before = ablation.digest(SETTINGS, work)
    for name in ("tower_steps", "vae_steps", "language_steps", "part_pictures", "train_steps", "batch_size", "accumulate", "learning_rate",
                 "attention_frames", "pretrain_steps", "pretrain_tables", "pretrain_episodes_per_task", "ablation_chains",
                 "curve_single"):
        assert ablation.digest(replace(SETTINGS, **{name: getattr(SETTINGS, name) * 2 + 1}), work) != before, name
    for other in ({"preset": "tiny"}, {"evaluation_scene": "A"}, {"optimizer": (("betas", (0.9, 0.999)),)}):
        assert ablation.digest(replace(SETTINGS, **other), work) != before, other
    assert ablation.digest(replace(SETTINGS, rows=("gaze",), seeds=(4,), corrupt=(0.5,), workers=7, budget_minutes=9.0), work) == before
    note, record = ablation.place(work, Run("gaze", 0)) / "done.json", ablation.kept(work, Run("gaze", 0)) / "one.json"
    for path, text in ((note, json.dumps({"asked": before, "records": ["one.json"]})), (record, "{}")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    done = lambda settings: seeds.is_done(ablation, settings, work, Run("gaze", 0))
    assert done(SETTINGS) and not done(replace(SETTINGS, train_steps=7)), "done is what was done as it is asked now"
    record.unlink()
    assert not done(SETTINGS)
    shutil.rmtree(work / "store" / "validation")
    shutil.copytree(work / "store" / "training", work / "store" / "validation")
    assert ablation.digest(SETTINGS, work) != before


def test_chains_are_in_their_scenes_under_held_out_sentences(work, monkeypatch):
    found = ablation.benchmarks(SETTINGS, work)
    assert {name.split(",")[0]: [(scene, len(starts)) for scene, starts in places] for name, places in found.items()} == {
        "play table A->D": [("D", 3)], "play table A->A": [("A", 3)]}
    asked = []
    monkeypatch.setattr(chains, "evaluate", lambda policy, how, *given, **_: asked.append((how, given[-1])) or [])
    for (scene, starts), in found.values():
        ablation._roll_out(floors.RandomPolicy(0), "x", scene, starts, work, SETTINGS, seeds.Clock(0), print)
        how, told = asked.pop()
        assert how.options["scene"] == scene and told == {task: language.VALIDATION[task] for _, chain in starts for task in chain}


def test_records_tell_the_start_states_of_their_chains(work, monkeypatch):
    monkeypatch.setattr(ablation, "_roll_out", lambda *_: [])
    monkeypatch.setattr(chains, "summarise", lambda outcomes: {})
    monkeypatch.setattr(ablation, "_record", lambda settings, work, run, name, policy, benchmark, *_, **config: {benchmark: config})
    found = ablation._evaluate(SETTINGS, work, Run("gaze", 1), {"gaze": SimpleNamespace()}, None, print)
    assert [{name: one[name] for name in one if name != "outcomes"} for one in found] == [
        {name: {"starts": ablation.starts_digest(places)}} for name, places in ablation.benchmarks(SETTINGS, work, 1).items()]


def test_looks_on_the_way_are_the_same_for_all_seeds(work, monkeypatch):
    asked = []
    monkeypatch.setattr(ablation, "_roll_out", lambda policy, name, scene, starts, *_: asked.append((scene, starts)) or [])
    monkeypatch.setattr(chains, "summarise", lambda outcomes: {"1/1": {}})
    monkeypatch.setattr(ablation, "_looked", lambda *_: ({}, {}))
    monkeypatch.setattr(ablation, "_record", lambda *given, **config: config)
    settings, model = replace(SETTINGS, accumulate=2, curve_single=2), SimpleNamespace(trained={"step": 5})
    found = [ablation._mark(settings, work, Run("gaze", seed), model, None, print) for seed in (0, 1)]
    flat = [json.dumps([scene, [[{k: np.asarray(v).tolist() for k, v in state.items()}, chain] for state, chain in starts]])
            for scene, starts in asked]  # fmt: skip
    assert flat[0] == flat[1] and asked[0][0] == "D" and [chain for _, chain in asked[0][1]] == [(t,) for t in SETTINGS.tasks for _ in "ab"]
    frames = Store(work / "store" / "training").frames
    assert found[1]["step"] == 5 and found[1]["epochs"] == round(5 * 4 * 2 / frames, 3)


def test_floors_are_of_the_seeds_own_gaze_when_it_is_trained(work, monkeypatch):
    place, step, asked = experiments.folder(work, "gaze", 1), 5, []
    place.mkdir(parents=True)
    monkeypatch.setattr(checkpoint, "latest", lambda *_: place)
    monkeypatch.setattr(checkpoint, "about", lambda path: {"step": step})
    monkeypatch.setattr(experiments, "load_run", lambda path: path)
    monkeypatch.setattr(ablation, "_evaluate", lambda settings, work, run, scored, *_: list(scored))
    monkeypatch.setattr(scoring, "policies", lambda models, _, *given: asked.append((models, *given)) or {"gaze": 0, "a floor": 1})
    with pytest.raises(seeds.OutOfTime, match="not trained yet"):
        ablation._floors(SETTINGS, work, Run(seeds.FLOORS, 1), None, print)
    step = SETTINGS.train_steps
    assert ablation._floors(SETTINGS, work, Run(seeds.FLOORS, 1), None, print) == ["a floor"]
    assert asked == [({"gaze": place}, {task: language.VALIDATION[task] for task in SETTINGS.tasks}, 1)]


class Told:
    """A policy that keeps what it was asked."""

    def __init__(self, name):
        self.name, self.asked, self.config = name, [], SimpleNamespace(chunk=2)

    def act(self, observations, instructions):
        self.asked += zip(observations, instructions, strict=True)
        return np.zeros((len(observations), 2, 7), np.float32)


def test_floors_are_what_their_names_say(work):
    models = {"baseline": Told("baseline"), "gaze": Told("gaze")}
    told = {task: language.VALIDATION[task] for task in SETTINGS.tasks}
    found, sentence = scoring.policies(models, work, told, 4), told[SETTINGS.tasks[0]]
    seen = {"observation.images.static": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "observation.state": np.ones(15, np.float32)}
    for name in ("gaze, shuffled instruction", "gaze, images blanked"):
        found[name].act([seen], [sentence])
    (shown, other), (blank, same) = models["gaze"].asked
    assert not models["baseline"].asked and shown is seen and other != sentence and other in told.values() and same == sentence
    assert len(np.unique(blank["observation.images.static"])) == 1 and (blank["observation.state"] == 1).all()
    assert found["random actions"] == floors.RandomPolicy(4) and found["scripted expert (ceiling)"] == floors.ExpertPolicy(4)
    assert found["gaze, shuffled instruction"].seed == 4
    how, benchmarks, sentences = scoring.where("tabletop", SETTINGS, work, 0)
    assert how.options["scene"] == "D" and sentences is language.VALIDATION and all("A->D, " in name for name in benchmarks)
    flat = lambda seed: [[json.dumps({k: np.asarray(v).tolist() for k, v in state.items()}) for state, _ in starts]
                         for starts in scoring.start_states(SETTINGS, seed).values()]
    assert flat(0) == flat(0) and all(not set(one) & set(two) for one, two in zip(flat(0), flat(1), strict=True)), "of each seed its own"
    models["gaze"].asked.clear()
    records = {r["variant"]: r for r in scoring.score_offline(SETTINGS, work, models, 0)}
    own, shuffled = np.split(np.array([sentence for _, sentence in models["gaze"].asked]), 2)
    assert (own == [sentence for _, sentence in models["baseline"].asked]).all() and (own != shuffled).all()
    assert {"baseline", "gaze", "constant action", "gaze, shuffled instruction"} == records.keys()
    assert records["gaze"]["metrics"]["motion error"]["n"] == len(Store(work / "store" / "validation"))


def test_what_is_looked_at_was_held_out(work, monkeypatch):
    class Seen(Exception):
        pass

    def seen(*given):
        raise Seen(next(one for one in given if isinstance(one, Store)).folder.name)
    monkeypatch.setattr(looking, "attention_frames", seen)
    monkeypatch.setattr(offline, "action_error", lambda policy, store, every: seen(store))
    for call in (lambda: ablation._looked(SETTINGS, work, None), lambda: ablation._rebuild(SETTINGS, work, Run("gaze", 0), None),
                 lambda: ablation._offline(SETTINGS, work, Run("gaze", 0), None, work), lambda: ablation.draw(SETTINGS, work)):  # fmt: skip
        monkeypatch.setattr(ablation, "is_done", lambda system, settings, work, run: run.row == "gaze")
        monkeypatch.setattr(ablation_statistics, "frames", lambda *_: {"gaze": {seed: np.full(2, seed) for seed in (0, 1)}})
        monkeypatch.setattr(experiments, "load", lambda *_: {})
        experiments.folder(work, "gaze").mkdir(parents=True, exist_ok=True)
        with pytest.raises(Seen, match="validation"):
            call()


def test_figures_are_of_the_seed_in_the_middle(work, monkeypatch):
    class Seen(Exception):
        pass

    def load(work, seed, rows):
        raise Seen(f"{seed} {rows}")
    gain = {0: 0.5, 1: 0.1, 2: 0.3, 3: 0.9}
    monkeypatch.setattr(ablation, "is_done", lambda system, settings, work, run: run.seed != 3 and run.row != "whole")
    monkeypatch.setattr(ablation_statistics, "frames", lambda *_: {
        "gaze": {seed: np.full(2, 1 + gain[seed]) for seed in gain}, "baseline": {seed: np.ones(2) for seed in gain}})  # fmt: skip
    monkeypatch.setattr(experiments, "load", load)
    for seed in gain:
        for row in ("baseline", "gaze"):
            experiments.folder(work, row, seed).mkdir(parents=True)
    with pytest.raises(Seen, match=r"2 \('baseline', 'gaze'\)"):
        ablation.draw(replace(SETTINGS, seeds=(0, 1, 2, 3)), work)


def test_frames_without_a_true_box_are_not_looked_at(tmp_path):
    with StoreWriter(tmp_path / "store", 30) as writer:
        for i, lost in enumerate(((), (0, 1, 5), range(11))):
            columns = {"action": np.zeros((11, 7), np.float32), "observation.state": np.zeros((11, 15), np.float32),
                       "gaze.box": np.float32([[0, 0, 0.5, 0.5]] * 11),
                       "gaze.source": ["fallback" if t in lost else "truth" for t in range(11)]}
            writer.add(Episode(f"sentence {i}", columns, {"task_id": f"task_{i}", "scene": "D"}))
    store = Store(tmp_path / "store")
    found = [(frame["episode"], frame["step"]) for frame in looking.attention_frames(store, 9)]
    assert found == [(0, 0), (0, 5), (0, 10), (1, 2), (1, 7), (1, 10)], "spread over the episodes and over each"
    assert [(frame["episode"], frame["step"]) for frame in looking.attention_strips(store)] == [(0, 0), (0, 5), (0, 10)]


def test_frames_are_looked_at_under_their_own_sentences_from_the_positions_asked_for():
    seen, frames = [], [{"task": name} for name in "abc"]
    net = SimpleNamespace(config=SimpleNamespace(grid=(8, 8), static_rows=48, height=64),
                          attention=lambda part, told, source: seen.append((told, source)) or np.ones((len(part), 2, 1, 1, 64)))
    assert looking.attention_of(net, frames, batch=2, log=lambda line: None, source="words").shape == (3, 6, 8)
    assert seen == [(["a", "b"], "words"), (["c"], "words")]


def test_a_gain_of_attention_is_the_rows_minus_the_baselines(work):
    frames = looking.attention_frames(Store(work / "store" / "validation"), 8)
    config = SimpleNamespace(config=SimpleNamespace(chunk=5))
    maps = {"baseline": np.ones((len(frames), 6, 8)), "gaze": np.stack([looking.attention.covered(6, 8, f["gaze.box"]) for f in frames])}
    found = {r["variant"]: r for r in looking.record_attention(SETTINGS, work, dict.fromkeys(maps, config), maps, frames, 0)}
    mass = lambda variant, end="": found[variant]["metrics"]["attention mass in the gaze box" + end]["value"]
    assert found.keys() == {"baseline", "gaze", "gaze minus baseline"} and mass("gaze") > mass("baseline") + 0.1
    assert mass("gaze minus baseline", ", difference") == pytest.approx(mass("gaze") - mass("baseline"))


def test_a_part_that_lies_there_is_left_alone_while_others_read_it(tmp_path):
    part, place = tmp_path / "parts" / "tower", tmp_path / "parts-seed1" / "tower"
    part.mkdir(parents=True)
    for say in ("one", "other"):
        (part / "about.json").write_text(say), (part / "tower.safetensors").write_text(say)
        experiments._copied(part, place)
        assert {path.name: path.read_text() for path in place.iterdir()} == {"about.json": say, "tower.safetensors": say}
        (place / "tower.safetensors").write_text("untouched")
        experiments._copied(part, place)
        assert (place / "tower.safetensors").read_text() == "untouched" and [path.name for path in place.parent.iterdir()] == ["tower"]


def test_what_rows_of_a_seed_share_is_made_under_its_lock(work, monkeypatch):
    held = {}

    def free(name: str) -> None:
        with machine.alone(work / "ablation" / name / ".lock") as held[name]:
            pass

    monkeypatch.setattr(experiments, "parts", lambda settings, work, log, seed, taught: free("parts-seed1" if taught else "parts-untaught"))
    monkeypatch.setattr(experiments, "job_before", lambda *_: free("pretraining-gaze-seed1"))
    monkeypatch.setattr(experiments, "job", lambda *_: None)
    monkeypatch.setattr(launch, "train_from_config", lambda config, log: SimpleNamespace(finished=True))
    monkeypatch.setattr(experiments, "load_run", lambda place: (_ for _ in ()).throw(seeds.OutOfTime("over")))
    for row in ("gaze untaught", "gaze+pretrain"):
        with pytest.raises(seeds.OutOfTime):
            ablation._trained(SETTINGS, work, Run(row, 1), seeds.Clock(0), print)
    assert held == {"parts-seed1": False, "parts-untaught": False, "pretraining-gaze-seed1": False}


def test_a_reconstruction_is_near_its_own_target_or_not():
    """Two tasks with targets of 0 and 102; the first is drawn right, the second as the first's target; the wrist's half is not counted.
    Of the second task the boxes lie apart and the targets differ: nothing drawn is nearer to its own than to the other's, in the mean."""
    shown = np.zeros((4, 8, 4, 3), np.uint8)
    shown[2:, :6] = 102
    shown[3, :6] = 51
    shown[:, 6:] = np.arange(4)[:, None, None, None]
    boxes = [(0, 0, 0.5, 0.5), (0, 0, 0.5, 0.4), (0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1)]
    frames = [{"episode": i, "task_id": "ab"[i // 2], "task": "", "shown": i, "gaze.box": boxes[i]} for i in range(4)]
    config = SimpleNamespace(static_tokens=6, grid=(8, 8))
    net = SimpleNamespace(config=config, targets=lambda part: np.stack([shown[frame["shown"]] for frame in part]),
                          reconstruct=lambda part, told: np.zeros((len(part), 8, 4, 3), np.uint8))
    found = looking.reconstruction_columns(net, frames, batch=3)
    assert found["episode"].tolist() == [0, 1, 2, 3] and found[looking.REBUILT_OWN].tolist() == pytest.approx([0, 0, 0.4, 0.2])
    assert found[looking.REBUILT_APART].tolist() == pytest.approx([-0.3, -0.3, 0.4, 0.2])
    assert np.isnan(found[looking.REBUILT_ELSEWHERE][:2]).all(), "a box that hardly moves is no control"
    assert found[looking.REBUILT_ELSEWHERE][2:].tolist() == pytest.approx([0.2, -0.2])


def test_learning_passes_over_steps_that_float16_left_out(tmp_path):
    lines = [{"step": 1, "skipped": 1.0}, {"step": 2, "action": 2.0}, {"step": 3, "action": 1.0},
             {"step": 4, "skipped": 1.0, "held_out": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ablation.learning(tmp_path) == {"step": [2, 3], "action": [2.0, 1.0], "held_out_step": [4], "held_out": [3.0]}


def test_minutes_end_before_the_session_does(tmp_path, monkeypatch):
    """A training run goes by the session's end, where there is one; so that is what minutes move."""
    found = []
    monkeypatch.setattr(seeds, "do", lambda *_: found.append(clock.left() / 60))
    monkeypatch.setattr(clock, "now", lambda: 0.0)
    for end in (600.0, 60.0):
        monkeypatch.setenv(clock.END, repr(end))
        seeds.one(ablation, SETTINGS, tmp_path, "gaze:0:0", 3.0)
    monkeypatch.delenv(clock.END)
    seeds.one(ablation, SETTINGS, tmp_path, "gaze:0:0", 3.0)
    assert found == [3.0, 1.0, np.inf]


def test_rows_of_a_real_simulators_data_do_not_act_on_the_play_table(work):
    told = work / "store" / "training" / "meta" / "repro.json"
    about = json.loads(told.read_text())
    assert about["simulator"] == "tabletop"
    told.write_text(json.dumps(about | {"simulator": "calvin_env"}))
    with pytest.raises(UserError, match="is data of calvin_env, and the ablation lets its rows act on the play table"):
        ablation.prepare(SETTINGS, work, log=lambda line: None)


def test_minutes_stop_a_run_cleanly_and_unknown_rows_are_refused(work, monkeypatch):
    said = []
    assert seeds.run(ablation, replace(SETTINGS, seeds=(0,), rows=("baseline",)), work, minutes=0.05, slots=0, log=said.append)
    assert "0 of 1 runs are done, left: baseline:0:0" in said[-1] and not (work / "runs").exists()
    with pytest.raises(UserError, match="no such rows"):
        ablation.runs(replace(SETTINGS, rows=("gazing",)))
    order = [run.key for run in ablation.runs(replace(SETTINGS, few_rows=("gaze long", "box"), few_seeds=(1, 0), corrupt=(0.33,)))]
    assert order == ["baseline:0:0", "gaze:0:0", "floors:0:0", "baseline:1:0", "gaze:1:0", "floors:1:0", "gaze long:1:0", "box:1:0",
                     "gaze:1:0.33", "box:0:0", "gaze:0:0.33"]
    steps = [json.loads(experiments.job(SETTINGS, work, row, 0).read_text())["train"]["steps"] for row in ("gaze", "gaze long")]
    assert steps == [SETTINGS.train_steps, 3 * SETTINGS.train_steps]
    monkeypatch.setenv("REPRO_WORK", str(work))
    said = str(CliRunner().invoke(cli, ["ablation", "--tables"]).exception)
    assert "no run of the ablation is done" in said and f"RUN/done.json in {work / 'cpu' / 'ablation'}" in said
    assert "--tables --join" in said and "runs/ablation" in said and "repro ablation --system reconvla --profile cpu " in said

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(seeds, "run", stopped)
    ended = CliRunner().invoke(cli, ["ablation"])
    assert ended.exit_code == 130 and "the same command goes on from there" in ended.output and "Aborted" not in ended.output


# ---- training: weights to begin with, held-out loss, wrong boxes ---------------------------------------------------------------


def test_a_run_begins_with_all_weights_of_another_or_without_its_denoiser(work, tmp_path):
    shutil.copytree(work / "store" / "training", work / "store" / "pretraining")
    launch.train_from_config(experiments.job_before(SETTINGS, work, "gaze+pretrain", 0), log=lambda line: None)
    before = load_file(checkpoint.need(work / "train" / "pretraining-gaze") / "model.safetensors")
    for row, (stage, kept) in experiments.PRETRAINED.items():
        if stage != "gaze":
            continue
        path = experiments.job(SETTINGS, work, row, 0)
        job = launch.Job(**json.loads(path.read_text()))
        torch.manual_seed(0)
        model = launch._build(job, launch.model_config(job.model, []), Store(job.store))
        fresh = {name: value.clone() for name, value in model.state_dict().items()}
        about = launch.begin(model, job)["start"]
        assert about["denoiser"] == ("kept" if kept else "begun anew") and about["step"] == 3
        same = {name: torch.equal(value, before[name]) for name, value in model.state_dict().items() if name in before}
        denoiser = {name for name in same if name.startswith("denoiser.")}
        assert len(denoiser) > 5 and all(same[name] for name in same.keys() - denoiser)
        assert all(same[name] for name in denoiser) if kept else all(torch.equal(model.state_dict()[n], fresh[n]) for n in denoiser)
        assert any(not torch.equal(before[name], fresh[name]) for name in same.keys() - denoiser)
    summary = launch.train_from_config(experiments.job(SETTINGS, work, "gaze+pretrain", 0), log=lambda line: None)
    assert checkpoint.about(summary.checkpoint)["data"]["start"]["sha256"] and summary.step == 6
    baseline = json.loads(experiments.job(SETTINGS, work, "baseline", 0).read_text())
    with pytest.raises(UserError, match="does not fit"):  # a model without a denoiser cannot take over one
        launch.begin(launch._build(launch.Job(**baseline), launch.model_config(baseline["model"], []), Store(baseline["store"])),
                     launch.Job(**{**baseline, "start": str(work / "train" / "pretraining-gaze")}))


def test_the_held_out_loss_is_measured_without_changing_the_run_and_marks_are_kept(work):
    quiet = {"log": lambda line: None}
    plain = experiments.job(SETTINGS, work, "gaze", 0)
    launch.train_from_config(plain, **quiet)
    marked = json.loads(experiments.job(SETTINGS, work, "gaze", 1).read_text())
    marked |= {"folder": str(work / "train" / "marked"), "train": {**marked["train"], "seed": 0, "measure_every": 2}}
    (work / "marked.json").write_text(json.dumps(marked))
    launch.train_from_config(work / "marked.json", **quiet)
    one, two = (read_metrics(work / "train" / name / "metrics.jsonl") for name in ("gaze", "marked"))
    assert [line["action"] for line in one] == [line["action"] for line in two]
    assert [line["step"] for line in two if "held_out" in line] == [2, 4, 6] and [line["step"] for line in one if "held_out" in line] == [6]
    kept = checkpoint.steps(work / "train" / "marked" / "kept")
    assert [path.name for path in kept] == [f"step_{step:08d}" for step in (1, 2, 3, 4, 6)]
    last = [load_file(path / "model.safetensors") for path in (kept[-1], checkpoint.need(work / "train" / "gaze"))]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    learned = ablation.learning(work / "train" / "marked")
    assert learned["step"] == [1, 2, 3, 4, 5, 6] and learned["held_out_step"] == [2, 4, 6] and "recon" in learned


def test_a_job_reaches_its_run(work, monkeypatch):
    """Wrong boxes in the share and of the seed that it names, a loss on its validation store, tokenizer and statistics of `like`."""
    made = []

    class Seen(Batches):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            made.append(self)
    monkeypatch.setattr(launch, "Batches", Seen)
    launch.train_from_config(experiments.job(replace(SETTINGS, train_steps=1), work, "gaze", 3, 0.5), log=lambda line: None)
    training, held_out = made
    wanted = Batches(Store(work / "store" / "training"), 4, 5, corrupt=0.5, corrupt_seed=3)
    assert 0 < wanted.corrupted.sum() and (training.corrupted == wanted.corrupted).all() and training.seed == 3
    assert not held_out.corrupted.any() and [one.store.folder.name for one in made] == ["training", "validation"]
    shutil.copytree(work / "store" / "validation", work / "store" / "pretraining")
    job = launch.Job(**json.loads(experiments.job_before(SETTINGS, work, "gaze+pretrain", 0).read_text()))
    like, own = (launch._build(one, launch.model_config(job.model, []), Store(one.store)) for one in (job, replace(job, like="")))
    words = lambda net: net.text.tokenizer.get_vocab()
    means = [list(one.stats["observation.state"]["mean"]) for one in (like, Store(work / "store" / "training"), own)]
    assert means[0] == pytest.approx(means[1]) and means[0] != pytest.approx(means[2])
    rows = launch._build(replace(job, store=job.like, like=""), launch.model_config(job.model, []), Store(job.like))
    assert words(like) == words(rows) != words(own)


def test_boxes_are_wrong_in_the_share_asked_for_in_the_same_frames_always():
    episodes, found = np.repeat(np.arange(50), 200), np.random.default_rng(0).random(10_000) < 0.9
    frames, rng = np.tile(np.arange(200), 50), np.random.default_rng(1)
    corner = np.column_stack([0.3 * rng.integers(0, 3, 10_000), 0.3 * rng.integers(0, 3, 10_000)])
    boxes = np.column_stack([corner, corner + 0.25])  # in nine places
    number, other = other_boxes(episodes, frames, found, 3, boxes)
    again = other_boxes(episodes, frames, found, 3, boxes)
    assert (number == again[0]).all() and (other == again[1]).all() and (other_boxes(episodes, frames, found, 4, boxes)[0] != number).any()
    for share in (0.08, 0.33):
        assert (number < share).mean() == pytest.approx(share, abs=0.015)
    assert found[other].all() and (episodes[other] != episodes).all() and (iou(boxes, boxes[other]) == 0).all(), "or not wrong"
    alike = np.tile([0, 0, 1, 1], (10_000, 1))
    assert (episodes[other_boxes(episodes, frames, found, 3, alike)[1]] != episodes).all(), "where all lie there, it is another one's"
    counts = np.bincount(episodes[other], minlength=50)
    assert counts.min() > 120 and counts.max() < 290  # every episode lends its boxes alike
    alone, _ = other_boxes(episodes[200:], frames[200:], found[200:], 3, boxes[200:])
    assert (alone == number[200:]).all()  # decided by episode and frame, not by place
    with pytest.raises(UserError, match="cannot be exchanged"):
        other_boxes(episodes, frames, found & (episodes == 3), 0, boxes)


def test_a_wrong_box_changes_what_is_made_of_the_box_and_nothing_else(tmp_path):
    rng, folder = np.random.default_rng(0), tmp_path / "store"
    with StoreWriter(folder, 30) as writer:
        for i in range(4):
            columns = {"observation.images.static": rng.integers(0, 256, (6, 8, 8, 3), np.uint8), "action": np.zeros((6, 7), np.float32),
                       "observation.state": np.zeros((6, 15), np.float32), "gaze.box": rng.random((6, 4)).astype(np.float32),
                       "gaze.source": ["truth"] * 5 + ["fallback"]}  # fmt: skip
            writer.add(Episode(f"sentence {i}", columns, {"task_id": "task", "scene": "D"}))
    prepare = lambda step: {"target": step["gaze.box"] * 2, "mean": step["observation.images.static"].mean(keepdims=True)}
    common = {"prepare": prepare, "key": "test", "log": lambda line: None}
    clean = Batches(Store(folder), 24, 5, **common)(0)
    wrong = Batches(Store(folder), 24, 5, corrupt=0.5, **common)
    dirty = wrong(0)
    touched = wrong.corrupted[dirty["row"]]
    assert 0 < wrong.corrupted.sum() < 20 and not wrong.corrupted[5::6].any() and (dirty["row"] == clean["row"]).all()
    assert (dirty["gaze.box"] == clean["gaze.box"]).all(1).tolist() == (~touched).tolist()
    assert np.allclose(dirty["target"], 2 * dirty["gaze.box"]) and (dirty["mean"] == clean["mean"]).all()
    assert set(wrong.wrong) == {"target"} and (wrong(0)["gaze.box"] == dirty["gaze.box"]).all()
    every = Batches(Store(folder), 24, 5, corrupt=1.0, seed=9, **common)
    assert every.corrupted.sum() == 20 and (every.corrupted | ~wrong.corrupted).all()
    assert len(list((tmp_path / "store.prepared").iterdir())) == 3  # the arrays, those of wrong boxes, and the lock
    other = Batches(Store(folder), 24, 5, corrupt=1.0, corrupt_seed=1, **common)(0)
    assert np.allclose(other["target"], 2 * other["gaze.box"]) and (other["gaze.box"] != every(0)["gaze.box"]).any(), "of its own seed"
    with pytest.raises(UserError, match="cannot be corrupted"):
        Batches(Store(folder), 24, 5, corrupt=1.5, **common)


JUMPS = "jump rate of the map (over 0.2 of the width, frames 5 apart)"


# ---- statistics ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds, spread", [(3, 0.3), (5, 0.3), (5, 0.0), (3, 1.0)])
def test_intervals_cover_over_seeds_and_their_own_start_states(seeds, spread):
    """400 made-up tables of a few seeds and 100 chains each: the interval of the mean must hold the truth about 95 times in 100."""
    rng, hits, naive = np.random.default_rng(0), 0, 0
    for _ in range(400):
        values = 2 + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 1.4, (seeds, 100))
        found = ablation_statistics.nested(values, (-9, 9))
        hits += found["low"] <= 2 <= found["high"]
        naive += abs(values.mean() - 2) <= 1.96 * values.std() / values.size**0.5
    assert 0.93 <= hits / 400 <= 1.0
    assert naive / 400 < 0.75 or spread == 0, "forgetting the seeds claims far too much"


@pytest.mark.parametrize("seeds, tasks, spread", [(1, 13, 0.02), (1, 10, 0.02), (3, 13, 0.02), (5, 13, 0.05)])
def test_intervals_cover_over_seeds_and_tasks_that_they_share(seeds, tasks, spread):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        shift = rng.normal(0, 0.01, (seeds, 1)) if seeds > 1 else 0.0  # one seed says nothing of others
        values = 0.1 + shift + rng.normal(0, spread, (1, tasks)) + rng.normal(0, 0.01, (seeds, tasks))
        found = ablation_statistics.crossed(values, (-1, 1))
        hits += found["low"] <= 0.1 <= found["high"]
    assert 0.93 <= hits / 400 <= 1.0


def test_intervals_by_hand():
    """Seeds of start states of their own, then shared ones: Student's over the seeds, and over both."""
    values = np.array([[0.0, 1.0], [2.0, 3.0], [7.0, 8.0]])  # means 0.5, 2.5, 7.5
    found, spread = ablation_statistics.nested(values, (-99, 99)), np.sqrt((9 + 1 + 16) / 2)
    half = 4.303 * spread / 3**0.5
    assert (found["low"], found["high"]) == pytest.approx((3.5 - half, 3.5 + half), rel=1e-3) and found["n"] == 6 and found["seeds"] == 3
    found = ablation_statistics.crossed(values, (-99, 99))
    half = np.hypot(half, 12.706 * 0.5**0.5 / 2**0.5)  # means of the two: 3 and 4
    assert (found["low"], found["high"]) == pytest.approx((3.5 - half, 3.5 + half), rel=1e-3) and found["n"] == 2 and found["seeds"] == 3


def test_early_stopping_on_the_way_and_offline_by_hand():
    learned = {"step": [2, 4, 8], "held_out_step": [2, 4, 8], "held_out": [3.0, 1.0, 2.0]}
    assert ablation_statistics.early_stop(learned) == {"step": 4, "share": 0.5, "loss": 1.0, "end": 2.0}
    assert ablation_statistics.early_stop({**learned, "held_out": []}) is None

    def one(name, benchmark, outcomes="", seed=0, metrics=None, **more):
        return {"variant": name, "seed": seed, "benchmark": benchmark, "outcomes": outcomes, "metrics": metrics or {},
                "config": {"row": name, "corrupt": 0.0, **more}, "learning": learned,
                "frames": {"task": ["a"], ablation_statistics.GAIN: [0.1 + (name == "gaze")]}}
    way = f"{ablation_statistics.ON_THE_WAY}, scene D"
    records = [one(*given, seed, step=step, epochs=step / 2) for seed in (0, 1) for given, step in (
        (("baseline", way, "0001"), 1), (("gaze", way, "0111"), 1), (("baseline", way, "0011"), 2), (("gaze", way, "0111"), 2))]
    marks = ablation_statistics.on_the_way(records)
    assert [(mark["step"], round(mark["success gain"]["value"], 6), round(mark["attention gain"]["value"], 6)) for mark in marks] == [
        (1, 0.5, 1.0), (2, 0.25, 1.0)]
    header, rows = ablation_tables.way_table(records)
    at = {title: [row[i] for row in rows] for i, title in enumerate(header)}
    assert [cell.split(" [")[0] for cell in at["baseline, single tasks %"] + at["gaze, single tasks %"]] == ["25.0", "50.0", "75.0", "75.0"]
    error = {"motion error": {"value": 0.1, "n": 3, "low": 0.0, "high": 1.0}}
    header, rows = ablation_tables.offline_table([one("gaze", ablation_statistics.OFFLINE, metrics=error)])
    assert rows[0][3:] == ["2", "50 %", "100 %"], "the loss at the end; where it was least; where patience would have ended it"
    later = one("gaze", ablation_statistics.OFFLINE, metrics=error, seed=1)
    later["learning"] = {"step": [1, 2], "held_out_step": [1, 2], "held_out": [3.0, 1.0]}
    assert [ablation_tables.offline_table(found)[1][0][4] for found in (
        [one("gaze", ablation_statistics.OFFLINE, metrics=error), later], [later, one("gaze", ablation_statistics.OFFLINE, metrics=error)])
    ] == ["50 %, 100 %"] * 2, "seed by seed, in whatever order records are read"
    longer = {"step": [2, 4, 6, 8], "held_out_step": [2, 4, 6, 8], "held_out": [1.0, 2.0, 2.0, 0.5]}
    assert [ablation_statistics.patient_stop(longer, patience) for patience in (1, 2, 3)] == [0.5, 0.75, 1.0]
    assert ablation_statistics.patient_stop({"step": [2], "held_out_step": [], "held_out": []}) is None
    chained = "play table ABC->D, 13 tasks, chains of 5"
    some = [one(name, chained, outcomes, seed) for name, outcomes in (("baseline", "00"), ("gaze", "11"), ("baseline long", "11"),
                                                                     ("gaze long", "33")) for seed in (0, 1)]  # fmt: skip
    header, rows = ablation_tables.chain_table([r for r in some if not (r["seed"] and "long" in r["variant"])], chained)
    told = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert told["gaze"]["minus baseline"].startswith("+1 [") and told["gaze long"]["minus baseline"] == "", "it went on longer"
    assert told["gaze long"][header[-1]].startswith("+2 (seed 0); alone [") and told["gaze long"][header[-1]].endswith("] (baseline long)")
    assert told["gaze long"]["average length"] == "3" and told["gaze"]["average length"].startswith("1 [")


def test_a_frame_without_a_control_is_kept_as_none_and_counts_for_nothing():
    columns = {"episode": np.arange(3), ablation_statistics.TASK_GAIN: np.array([0.25, np.nan, -0.5]), "elsewhere": np.ones(3)}
    kept = ablation.by_frame(columns, ["a", "a", "b"])
    assert kept == {"episode": [0, 1, 2], "task": ["a", "a", "b"], ablation_statistics.TASK_GAIN: [0.25, None, -0.5]}
    record = {"variant": "gaze", "seed": 0, "benchmark": ablation_statistics.ATTENTION, "config": {}, "frames": kept}
    assert ablation_statistics.frames([record], ablation_statistics.TASK_GAIN)["gaze"][0].tolist() == [0.25, -0.5]


def test_what_was_done_twice_counts_once():
    one = {"variant": "gaze", "seed": 0, "benchmark": ablation_statistics.OFFLINE, "config": {"asked": "x"}, "created": "2026-01-01"}
    newer = {**one, "created": "2026-01-02"}
    mark = {**one, "config": {"asked": "x", "step": 5}}
    assert ablation_statistics.latest([one, mark, newer]) == [mark, newer]


def test_join_says_where_it_can_do_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no record"):
        seeds.join(SimpleNamespace(digest=lambda *given: "x"), SETTINGS, tmp_path, tmp_path)
    for system, option in (("reconvla", "--publish"), ("vggt_vla", "--publish"), ("change_agent", "--slots=1")):
        said = CliRunner().invoke(cli, ["ablation", "--profile", "smoke", "--system", system, "--join", str(tmp_path), option])
        assert isinstance(said.exception, UserError) and "--join" in str(said.exception)


@pytest.mark.parametrize(("system", "folder"), [("reconvla", "ablation"), ("vggt_vla", "vggt_vla"), ("change_agent", "change_agent")])
def test_tables_of_given_records_need_no_data_and_no_store(tmp_path, monkeypatch, system, folder):
    published = root() / "results" / "cpu"
    monkeypatch.setenv("REPRO_WORK", str(tmp_path / "work"))
    (tmp_path / "empty").mkdir()
    ask = lambda records: CliRunner().invoke(cli, ["ablation", "--system", system, "--tables", "--join", str(records)])
    done = ask(published / "runs" / folder)
    assert done.exit_code == 0 and done.exception is None
    work, name = tmp_path / "work" / "cpu", "ablation" if system == "reconvla" else system
    assert (work / f"{name}.md").read_text() in done.output and sorted(path.name for path in work.iterdir() if path.is_dir()) == (
        [] if system == "change_agent" else ["figures"])
    loaded = {"reconvla": lambda: ablation_tables.markdown(ablation_statistics.load(published / "runs" / folder)),
              "vggt_vla": lambda: vla_ablation.markdown(vla_ablation.load([published / "runs" / folder])),
              "change_agent": lambda: change_ablation.markdown(run_records.load_all(published / "runs" / folder))}[system]
    assert (work / f"{name}.md").read_text() == loaded()
    foreign = published / "runs" / ("vggt_vla" if system == "reconvla" else "ablation")
    for wrong, found in ((tmp_path / "empty", "no record"), (foreign, "are not")):
        said = ask(wrong).exception
        assert isinstance(said, UserError) and f"{wrong} holds no records of {system}'s" in str(said) and found in str(said)


def test_the_comparison_that_counts_leaves_the_first_seed_out():
    def one(name, seed, outcomes):
        return {"variant": name, "seed": seed, "benchmark": "play table ABC->D, 13 tasks, chains of 5", "outcomes": outcomes, "config": {},
                "metrics": {"average length": {}}}
    first = [one("baseline", 0, "0000"), one("gaze", 0, "5555")]
    assert ablation_tables.counted(first).endswith("without the first seed: no other seed is done yet.")
    two = [*first, one("baseline", 1, "1111"), one("gaze", 1, "2222")]
    assert ablation_tables.counted(two).endswith("+1 (one seed).")
    three = ablation_tables.counted([*two, one("baseline", 2, "1111"), one("gaze", 2, "1111")])  # differences 1 and 0
    assert "+0.5 [" in three and "spread by 0.71" in three and three.endswith("such seeds; these are 2.")
    assert ablation_tables.pretrained(three_seeds := [*two, one("baseline", 2, "1111")]) == "", "none of such a row"
    before = [one("gaze+pretrain", seed, "3333") for seed in range(3)]
    said = ablation_tables.pretrained([*three_seeds, one("gaze", 2, "1111"), *before])  # minus baseline 3, 2, 2; minus gaze -2, 1, 2
    assert "minus `baseline`: +2.33 [" in said and "without the first seed +2 [" in said
    assert "minus `gaze`, the paper's own contrast in Table 2: +0.333 [" in said and "without the first seed +1.5 [" in said


def test_seeds_that_show_a_gain():
    apart = np.array([-0.5, 0.1, 0.3, 0.7])
    spread, n = apart.std(ddof=1), ablation_statistics.seeds_for(apart, 0.5)
    drawn = np.random.default_rng(7).normal(0.5, spread, (4000, n))
    shown = lambda x: np.mean(x.mean(1) > t95(x.shape[1] - 1) * x.std(1, ddof=1) / x.shape[1] ** 0.5)
    assert 0.78 < shown(drawn) < 0.9 and shown(drawn[:, :-1]) < 0.82
    assert ablation_statistics.seeds_for(apart[:1], 0.5) is None is ablation_statistics.seeds_for(np.ones(3), 0.5)
    claimed = {row["variant"]: float(row["average_length"]) for row in results.claims(root() / "papers/reconvla/claims.toml")["row"]
               if row["table"] == 2}
    assert ablation_statistics.PAPER_GAIN == pytest.approx(claimed["gaze"] - claimed["baseline"])


def test_the_interval_of_these_models_alone_knows_nothing_of_other_seeds():
    rng = np.random.default_rng(0)
    values = rng.normal(3, 1, (5, 100)) + np.array([-2, -1, 0, 1, 2])[:, None]
    low, high = ablation_statistics.of_these_models(values, (-9, 9))
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / 500**0.5, rel=0.15), "start states alone"
    assert ablation_statistics.nested(values, (-9, 9))["high"] - values.mean() > 1.5, "seeds too"
    low, high = ablation_statistics.of_these_models(np.repeat([[1.0], [3.0]], 50, 1), (0, 5))
    assert low < 2 < high, "start states that came out alike are not certain"
    rare = np.eye(2, 10) * [[0.0], [5.0]]  # 0 but for one of the second seed's
    assert ablation_statistics.of_these_models(rare, (0, 5))[0] == 0 > ablation_statistics.of_these_models(rare, (-5, 5))[0]


def test_rows_that_began_elsewhere_are_never_paired(monkeypatch):
    def one(variant, **config):
        return {"variant": variant, "seed": 1, "benchmark": "b", "outcomes": "01", "config": config}
    older = ablation_statistics.lengths([one("baseline"), one("gaze", starts="a")], "b")
    assert set(older) == {"baseline", "gaze"}, "of older records it is not known"
    state, chain = {"seed": 1, "drawer": "open"}, ("open_drawer", "turn_on_led")
    digests = [ablation.starts_digest(places) for places in ([("D", [(state, chain)])], [("A", [(state, chain)])],
               [("D", [({**state, "seed": 2}, chain)])], [("D", [(state, chain[:1])])])]  # fmt: skip
    assert len(set(digests)) == 4 and digests[0] == ablation.starts_digest([("D", [(dict(state), chain)])])
    monkeypatch.setitem(language.VALIDATION, chain[0], "pull it open")
    assert ablation.starts_digest([("D", [(state, chain)])]) not in digests, "told otherwise, nothing is paired either"
    with pytest.raises(UserError, match="seed 1 began in different start states"):
        ablation_statistics.lengths([one("baseline", starts="b"), one("gaze", starts="a")], "b")


def test_the_shuffled_instruction_by_what_was_told():
    """Of a seed whose order is not the first seed's; another block is another thing, though its task is of the same category."""
    known = ("turn_on_led", "turn_off_led", "lift_red_block_table", "lift_blue_block_table", "open_drawer")
    sentence = {task: language.VALIDATION[task] for task in known}
    said = lambda seed: floors.ShuffledInstruction(None, tuple(sorted(sentence.values())), seed).other()
    seed = next(seed for seed in range(1, 999) if all(said(seed)[sentence[task]] == sentence[other] for task, other in (
        ("turn_off_led", "turn_on_led"), ("lift_red_block_table", "lift_blue_block_table"))))
    metrics = {f"task/{task}": {"value": 0.5, "n": 2 if task == "turn_off_led" else 4} for task in known}
    metrics |= {"average length": {"value": 1.0, "n": 4}}
    record = {"benchmark": "play table A->D, 5 tasks", "variant": "gaze, shuffled instruction", "seed": seed, "metrics": metrics}
    right = {**record, "variant": "gaze", "metrics": {f"task/{task}": {"value": 0.75, "n": 8} for task in known}}
    told = ablation_statistics.told_instead([record, right, {**right, "seed": seed + 1}], record["benchmark"])
    assert {(one["task"], one["told"]) for one in told if one["opposite"]} == {("turn_off_led", "turn_on_led")}
    assert {one["task"]: (one["solved"], one["attempts"]) for one in told} == {
        task: (1, 2) if task == "turn_off_led" else (2, 4) for task in known}
    assert {one["right"] for one in told} == {(6, 8)} and {one["seed"] for one in told} == {seed}
    assert ablation_tables.told_table([record, right])[1] == [
        ["D", str(seed), "turn_off_led", "the opposite: turn_on_led", "1 of 2", "6 of 8"],
        ["D", str(seed), "all others", "a task with another thing", "8 of 16", "24 of 32"]]


def test_the_least_loss_is_the_entropy_of_its_targets():
    assert ablation_figures.least_loss(2.0) == pytest.approx(0.5 * np.log(2 * np.pi * np.e * 4), abs=1e-3)


def test_nothing_is_certain_and_one_seed_says_nothing_of_differences():
    zeros = np.zeros((2, 50))
    assert ablation_statistics.nested(zeros, (0, 5))["high"] == pytest.approx(5 * wilson(0, 100)[1])
    assert ablation_statistics.crossed(zeros, (0, 5))["high"] == pytest.approx(5 * wilson(0, 50)[1])
    alike = ablation_statistics.nested(np.tile([0.0, 1.0], (3, 50)), (0, 1))
    assert alike["low"] < 0.45 and alike["high"] > 0.55, "seeds that happen to agree do not make the start states certain"
    one = ablation_statistics.difference({0: np.ones(9)}, {0: np.zeros(9), 1: np.zeros(9)}, (-5, 5))
    assert ablation_tables.signed(one) == "+1 (one seed)"
    assert t95(1) == 12.706 and t95(4) == 2.776 and 1.96 < t95(60) < 2.01 < t95(20) < t95(10)
    with pytest.raises(ValueError, match="no spread"):
        t95(0)


def test_differences_are_paired_over_seeds_and_chains():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 2, 300)
    base = {seed: 3 + hard + rng.normal(0, 0.1, 300) for seed in range(4)}
    ours = {seed: values + 0.2 + 0.001 * seed for seed, values in base.items() if seed < 3}
    found = ablation_statistics.difference(ours, base, (-5, 5))
    assert found["value"] == pytest.approx(0.201) and found["seeds"] == 3 == found["positive"] and found["high"] - found["low"] < 0.1
    assert ablation_statistics.difference({7: hard}, base, (-5, 5)) is None
    alone = ablation_statistics.mean(base, (-9, 9))
    assert alone["high"] - alone["low"] > 0.2


def test_tables_come_from_the_latest_settings_only_and_figures_from_wrong_boxes(tmp_path):
    def saved(variant, seed, corrupt, outcomes, asked="now", created="2026-01-02"):
        config = {"row": variant.split(",")[0], "corrupt": corrupt, "asked": asked}
        ended = [chains.Outcome(i, variant, tuple("abcde"), (True,) * int(k) + (False,) * (k < "5"), (1,)) for i, k in enumerate(outcomes)]
        common = dict(data="d", data_hash="h", config=config, seed=seed, minutes=1, simulator="tabletop", renderer="r",
                      not_comparable_with=["reconvla"])  # fmt: skip
        one = run_records.record("reconvla ablation", variant, benchmark="play table A->D, 5 tasks, chains of 5",
                                 metrics=chains.summarise(ended), **common)  # fmt: skip
        run_records.save({**one, "outcomes": outcomes, "created": created}, tmp_path)
        frames = {"episode": [0, 1, 2], "task": ["a", "a", "b"], ablation_statistics.TASK_GAIN: [0.1, None, None],
                  **{n: [0.1, 0.2, 0.4 + 0.1 * (variant == "gaze")] for n in (ablation_statistics.MASS, ablation_statistics.GAIN)},
                  "jumps": {"episode": [3], "task": ["b"], JUMPS: [0.5]}}  # fmt: skip
        two = run_records.record("reconvla ablation", variant, benchmark=ablation_statistics.ATTENTION, metrics={}, **common)
        run_records.save({**two, "frames": frames, "created": created}, tmp_path)

    for seed in (0, 1):
        saved("baseline", seed, 0.0, "0123")
        saved("gaze", seed, 0.0, "1234")
        saved("gaze, 33 % wrong boxes", seed, 0.33, "0133")
    saved("whole", 0, 0.0, "5555", "before", "2026-01-01")
    records = ablation_statistics.load(tmp_path)
    assert ablation_statistics.variants(records) == ["baseline", "gaze", "gaze, 33 % wrong boxes"]
    header, rows = ablation_tables.chain_table(records, records[-1]["benchmark"])
    assert header[-3:] == ["minus baseline", "seeds above baseline", "minus gaze"]
    assert rows[1][-3].startswith("+1 [") and "; alone [" in rows[1][-3] and rows[1][-2:] == ["2 of 2", ""]
    assert rows[2][-1].startswith("-0.75 ["), "what is made of gaze is compared with it, too"
    assert rows[2][1] == "2" and rows[0][-1] == ""
    header, rows = ablation_tables.chain_table([r for r in records if not (r["seed"] == 0 and r["config"]["corrupt"])],
                                               records[-1]["benchmark"], alone=False)
    assert rows[2][1] == "1 (seed 1)" and rows[2][-3:] == ["+0.25 (seed 1)", "1 of 1", "-0.75 (seed 1)"]
    assert rows[0][3].startswith("75.0 [")
    header, rows = ablation_tables.tasks_in_chains(records, records[-1]["benchmark"])
    assert header == ["task", "baseline", "gaze", "gaze, 33 % wrong boxes"] and [row[0] for row in rows] == list("edbca"), "the worst first"
    assert rows[-1] == ["a", "75 [75, 75] of 8", "100 [100, 100] of 8", "75 [75, 75] of 8"] and rows[0] == ["e", "-", "0 [0, 0] of 2", "-"]
    never = lambda r: {**r, "metrics": {**r["metrics"], "task/a": {"value": 0.0, "n": 4}}}
    few = [never(r) if r["seed"] and r["variant"] == "gaze" else r for r in records]
    told = {row[0]: row[2] for row in ablation_tables.tasks_in_chains(few, few[-1]["benchmark"])[1]}
    assert told["a"] == "50 [0, 100] of 8", "of each seed, not as one sample"
    assert ablation_statistics.frames(records)["gaze"][0].tolist() == pytest.approx([0.15, 0.5]), "tasks are counted"
    values, apart = ablation_tables.attention_tables(records)
    assert values[0][:2] == ["row", "seeds"] and values[0][3] == "mass, minus another episode's box (n = 2 tasks)" and len(values[0]) == 5
    assert apart[0][:2] == ["row, minus baseline", "attention mass in the gaze box (n = 2 tasks)"]
    assert values[0][-1] == "jump rate of the map (n = 1 tasks)" and values[1][1][-1].startswith("0.5 [")
    assert [row[0] for row in apart[1]] == ["gaze", "gaze, 33 % wrong boxes"] and apart[1][0][1].startswith("+0.05 [")
    assert ablation_statistics.frames(records, ablation_statistics.TASK_GAIN)["gaze"][0].tolist() == pytest.approx([0.1])
    assert set(ablation_figures.everything(records)) == {"rows", "wrong_boxes", "attention"}
    assert ablation_tables.reading(records).startswith("# The ablation") and "`gaze` minus `baseline`" in ablation_tables.reading(records)
    for seed in (0, 1):  # a row that began elsewhere is compared with the one that began there, too
        saved("baseline untaught", seed, 0.0, "0000")
        saved("gaze untaught", seed, 0.0, "0001")
    records = ablation_statistics.load(tmp_path)
    header, rows = ablation_tables.chain_table(records, records[-1]["benchmark"])
    assert header[-1] == "minus the row that differs in the reconstruction alone" and [row[0] for row in rows][:2] == ["baseline", "gaze"]
    told = {row[0]: row[-3:] for row in rows}
    assert told["gaze untaught"][:2] == ["", ""] and told["gaze untaught"][2].startswith("+0.25 [")
    assert told["gaze untaught"][2].endswith("] (baseline untaught)") and told["gaze"][2] == told["baseline untaught"][2] == ""


def test_what_is_done_is_published_whole_and_never_of_an_edited_tree(tmp_path):
    """Records and tables of the small ablation above, moved to results/<profile>; older records there are gone."""
    def record(seed, commit, benchmark, **more):
        config = {"row": "baseline", "corrupt": 0.0, "asked": "now"}
        solved = chains.summarise([chains.Outcome(i, "baseline", tuple("abcde"), (True, False), (1, 1)) for i in range(3)])
        error = {"motion error": {"value": 0.1, "n": 3, "low": 0.0, "high": 1.0}}
        one = run_records.record("reconvla ablation", "baseline", benchmark=benchmark, data="play table A", data_hash="h", config=config,
                                 seed=seed, minutes=2, simulator="tabletop", renderer="r", not_comparable_with=["reconvla"],
                                 metrics=solved if "chains" in benchmark else error)
        return run_records.save({**one, "commit": commit, **more}, tmp_path / "work" / "runs" / "ablation")

    def done(*paths):
        note = tmp_path / "work" / "ablation" / "baseline" / "done.json"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"asked": "now", "records": [path.name for path in paths]}))

    learned = {"step": [1, 2], "action": [2.0, 1.0], "held_out": [1.5], "held_out_step": [2]}
    target = tmp_path / "results" / "cpu"
    old = target / "runs" / "ablation" / "old.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    with pytest.raises(UserError, match="cannot be published"):
        ablation_tables.publish(tmp_path / "work", target)
    done(record(0, "abc+changes", "play table A->D, 5 tasks, chains of 5", outcomes="111"))
    with pytest.raises(UserError, match="abc.changes"):
        ablation_tables.publish(tmp_path / "work", target, log=lambda line: None)
    assert old.exists()
    shutil.rmtree(tmp_path / "work")
    first = record(0, "abc", "play table A->D, 5 tasks, chains of 5", outcomes="111")
    with pytest.raises(UserError, match="cannot be published"):  # of a run that was cut while it saved
        ablation_tables.publish(tmp_path / "work", target)
    done(first, record(0, "abc", ablation_statistics.OFFLINE, learning=learned))
    record(1, "abc", "play table A->D, 5 tasks, chains of 5", outcomes="111")  # of a run that was cut
    ablation_tables.publish(tmp_path / "work", target, log=lambda line: None)
    assert not old.exists() and len(list(old.parent.glob("*.json"))) == 2
    names = ["ablation_learning.png", "ablation_rows.png"]
    assert (target / "ablation.md").is_file() and [path.name for path in sorted((target / "figures").iterdir())] == names
    section = ablation_tables.readme_section(target)
    assert "1 trained runs" in section and "| baseline | 1 | 3 |" in section and "commit abc;" in section
