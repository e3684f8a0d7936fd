"""Held-out episodes, the best model, models of every n epochs, early stopping, and curves. Run: pytest tests/test_held_out.py

All of it survives a cut: a run that was interrupted leaves the same files as one that was not.
"""

import json
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_training import CONFIG, Clock, Toy, ToyConfig, batches, quiet, tensors
from test_vggt_vla import SMALL

from repro.data.batches import held_out_episodes
from repro.data.episodes import Episode, Store, StoreWriter
from repro.machine import UserError
from repro.training import checkpoint, launch, logs, loop
from repro.training.loop import TrainConfig, read_metrics, train

WATCHING = replace(CONFIG, measure_every=1, best=True)
LOSSES = (9.0, 5.0, 7.0, 4.0, 6.0, 4.5, 4.0, 8.0)  # held out, by step: the lowest at step 4


def measured(model, losses=LOSSES):
    """A measure that goes by the steps done, which the model's own buffer counts: as a real one, it depends on the model alone."""
    return {"held_out": losses[round(float(model.asked)) - 1], "drawn": float(torch.rand(()))}


class Watched(Toy):
    """Counts its steps, so that `measured` can say what is wanted after each."""

    def __init__(self, config=ToyConfig()):
        super().__init__(config)
        self.register_buffer("asked", torch.zeros(()))

    def forward(self, batch):
        self.asked += 0.5  # two micro-batches a step
        return super().forward(batch)

    @classmethod
    def load(cls, folder):
        toy = cls()
        toy.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        return toy


class Long:
    """Batches with a length: 20 samples, of which a step takes 2 x 4."""

    world = 1

    def __len__(self):
        return 20

    def __call__(self, i):
        return batches(i)


def run(folder, config=WATCHING, clock=None, **more):
    source = clock.batches if clock else batches
    return train(Watched(), source, folder, config, log=quiet, measure=measured, **({"clock": clock} if clock else {}), **more)


def names(folder):
    return [path.name for path in checkpoint.steps(folder)]


def test_held_out_data_is_measured_as_the_model_acts(tmp_path):
    """No dropout, no gradients; then training goes on."""
    model, seen = Watched(), []

    def measure(model):
        seen.append((model.training, torch.is_grad_enabled()))
        return {"held_out": 1.0}
    train(model, batches, tmp_path, replace(CONFIG, measure_every=1), log=quiet, measure=measure)
    assert seen == [(False, False)] * CONFIG.steps and model.training


# ---- which episodes ----------------------------------------------------------------------------------------------------------


def episodes(per_task=(6, 6, 3)):
    tasks = [f"task_{t}" for t, count in enumerate(per_task) for _ in range(count)]
    return [SimpleNamespace(index=i, task_id=task, task=task) for i, task in enumerate(tasks)]


def test_held_out_episodes_are_of_all_tasks_in_turn_and_grow_with_the_amount():
    every = episodes()
    three, nine = held_out_episodes(every, 3), held_out_episodes(every, 9)
    assert len(three) == 3 and {every[i].task_id for i in three} == {"task_0", "task_1", "task_2"} and three < nine and len(nine) == 9
    assert held_out_episodes(every, 0.2) == three and held_out_episodes(every, 3, seed=1) != three
    assert held_out_episodes(every, 0.01) < three, "a share that rounds to none holds out one"
    for wrong in (0, -1, 15, 99, 1.5):
        with pytest.raises(UserError, match="cannot be held out"):
            held_out_episodes(every, wrong)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "store"
    with StoreWriter(folder, fps=20) as writer:
        for i in range(6):
            task = ("lift the red block", "open the drawer")[i % 2]
            columns = {"observation.images.static": rng.integers(0, 256, (5, 40, 40, 3), np.uint8),
                       "observation.images.wrist": rng.integers(0, 256, (5, 30, 30, 3), np.uint8),
                       "observation.state": rng.normal(size=(5, 15)).astype(np.float32),
                       "action": rng.uniform(-1, 1, (5, 7)).astype(np.float32)}  # fmt: skip
            writer.add(Episode(task, columns, {"task_id": task.replace(" ", "_")}))
    return Store(folder)


MODEL = {"preset": "vggt_tiny", "point_weight": 0.0} | {
    name: getattr(SMALL, name) for name in ("image_size", "grid", "width", "heads", "depth", "backbone_width", "backbone_heads", "queries",
                                            "head_width", "channels", "keypoints", "language_width", "text_length", "chunk")}  # fmt: skip


def job(store, folder, train, model=MODEL, **more):
    return launch.write_config(folder.with_suffix(".json"), name=folder.name, store=store.folder, folder=folder, model=model,
                               train={"steps": 4, "batch_size": 4, "log_seconds": 0, "measure_every": 2, **train}, **more)


def test_a_job_trains_on_one_side_and_measures_on_the_other(store, tmp_path, monkeypatch):
    sides = {}
    seen = launch.Batches.__call__

    def noted(self, step):
        batch = seen(self, step)
        sides.setdefault(id(self), set()).update(batch["episode"].tolist())
        return batch

    monkeypatch.setattr(launch.Batches, "__call__", noted)
    said = []
    summary = launch.train_from_config(job(store, tmp_path / "run", {"steps": 8, "best": True, "keep_epochs": 1}, held_out=2), said.append)
    trained, held = sides.values()
    assert len(trained) == 4 and len(held) == 2 and not trained & held
    about = checkpoint.about(summary.checkpoint)
    assert about["data"]["held out episodes"] == sorted(held) and {e.task for e in store.episodes if e.index in held} == {
        "lift the red block", "open the drawer"}  # fmt: skip
    assert "20 samples of 4 episodes, 1.6 epochs; 2 episodes held out" in "\n".join(said)
    assert any(line.replace(",", "").split()[1:3] == ["trainable", "of"] for line in said)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "held_out" in line] == [2, 4, 6, 8] and "held_out_l1" in lines[1]
    assert all(line["grad_norm"] > 0 for line in lines)
    assert len(names(tmp_path / "run" / "best")) == 1 and names(tmp_path / "run" / "kept") == ["step_00000005"]
    launch.VGGTVLA.load(checkpoint.latest(tmp_path / "run" / "best"))
    with pytest.raises(UserError, match="another run[\\s\\S]*held_out_seed"):
        launch.train_from_config(job(store, tmp_path / "run", {"steps": 8}, held_out=2, held_out_seed=5), quiet)
    with pytest.raises(UserError, match="two kinds of held-out data"):
        job(store, tmp_path / "both", {}, held_out=2, validation=str(store.folder))
    with pytest.raises(UserError, match="none is measured"):
        launch.train_from_config(job(store, tmp_path / "none", {"patience": 2}), quiet)


@pytest.mark.parametrize("backbone", ["vggt", "graph"])
def test_gradient_checkpointing_is_a_field_of_the_job_and_changes_no_weight(store, tmp_path, backbone):
    found, calls = {}, []
    for on in (False, True):
        config = job(store, tmp_path / f"{on}", {"steps": 2, "measure_every": 0}, {**MODEL, "backbone": backbone, "checkpointing": on})
        with torch.autograd.graph.saved_tensors_hooks(lambda x, on=on: (calls.append(on), x)[1], lambda x: x):
            found[on] = launch.train_from_config(config, quiet).checkpoint
    one, two = (launch.VGGTVLA.load(found[on]).state_dict() for on in (False, True))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert calls.count(True) < calls.count(False), "fewer tensors are kept for the backward pass"


# ---- the best model, and those of every n epochs -----------------------------------------------------------------------------


def test_the_best_model_is_that_of_the_lowest_held_out_loss(tmp_path):
    summary = run(tmp_path)
    assert names(tmp_path / "best") == ["step_00000004"] and summary.step == 8
    about = checkpoint.about(tmp_path / "best" / "step_00000004")
    assert about["held_out"] == 4.0 and about["train"]["learning_rate"] == CONFIG.learning_rate
    short = train(Watched(), batches, tmp_path / "short", replace(WATCHING, best=False), log=quiet, measure=measured)
    assert all(torch.equal(a, b) for a, b in zip(tensors(summary.checkpoint), tensors(short.checkpoint), strict=True)), "a mere witness"


@pytest.mark.parametrize("cut_after", [1, 3, 4, 6])
def test_a_run_that_was_cut_keeps_the_same_best_model_bit_for_bit(tmp_path, cut_after):
    run(tmp_path / "whole")
    run(tmp_path / "cut", replace(WATCHING, budget_minutes=cut_after + 0.5), Clock(per_batch=30.0))
    if cut_after == 4:  # killed between saving the run and its best model
        checkpoint.shutil.rmtree(tmp_path / "cut" / "best")
    if cut_after == 3:  # the last checkpoint is damaged: the run goes on from the one before, and the best of the lost steps is dropped
        run(tmp_path / "cut", replace(WATCHING, budget_minutes=2.5), Clock(per_batch=30.0))
        (checkpoint.latest(tmp_path / "cut", quiet) / "model.pt").unlink()
    run(tmp_path / "cut")
    assert names(tmp_path / "whole" / "best") == names(tmp_path / "cut" / "best") == ["step_00000004"]
    one, two = (torch.load(tmp_path / which / "best" / "step_00000004" / "model.pt", weights_only=True) for which in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (read_metrics(tmp_path / which / "metrics.jsonl") for which in ("whole", "cut"))
    assert [{**line, "seconds": 0} for line in one] == [{**line, "seconds": 0} for line in two]


def test_models_of_every_n_epochs_are_kept_beside_the_marks(tmp_path):
    train(Toy(), Long(), tmp_path / "one", replace(CONFIG, batch_size=4, keep_epochs=1), log=quiet)  # an epoch is 2.5 steps
    assert names(tmp_path / "one" / "kept") == ["step_00000003", "step_00000005", "step_00000008"]
    train(Toy(), Long(), tmp_path / "two", replace(CONFIG, batch_size=4, keep_epochs=2, marks=(0.25,)), log=quiet)
    assert names(tmp_path / "two" / "kept") == ["step_00000002", "step_00000005"]
    with pytest.raises(UserError, match="how long an epoch is"):
        train(Toy(), batches, tmp_path / "three", replace(CONFIG, keep_epochs=1), log=quiet)


def test_a_mark_is_kept_before_the_run_moves_on_and_only_real_saves_are_measured(tmp_path, monkeypatch):
    """A run that is killed between two saves begins again before both: a mark that came later would never be made."""
    saved, took, save, count = [], [], checkpoint.save, loop.Budget.save_took
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *rest: saved.append((folder.name, step)) or save(folder, step, *rest))
    monkeypatch.setattr(loop.Budget, "save_took", lambda self, seconds: took.append(seconds) or count(self, seconds))
    config = replace(WATCHING, marks=(0.5,))
    run(tmp_path / "run", replace(config, budget_minutes=4.5), Clock(per_batch=30.0))
    assert [name for name, step in saved if step == 4] == ["kept", "run", "best"]
    checkpoint.shutil.rmtree(tmp_path / "run" / "best")
    saved.clear(), took.clear()
    run(tmp_path / "run", config)
    assert saved == [("best", 4), ("run", 8)] and len(took) == 1


# ---- early stopping ----------------------------------------------------------------------------------------------------------


def test_a_run_stops_early_says_why_and_is_finished(tmp_path):
    config = replace(WATCHING, patience=3)
    summary = run(tmp_path, config)
    assert (summary.step, summary.finished) == (7, True)
    assert summary.reason == "stopped early: the held-out loss is not below 4 (step 4) for 3 measurements"
    before = (summary.checkpoint / "about.json").stat().st_mtime_ns
    again = run(tmp_path, config)
    assert (again.step, again.finished, again.reason, again.resumed_from) == (7, True, summary.reason, 7)
    assert (summary.checkpoint / "about.json").stat().st_mtime_ns == before
    more = run(tmp_path, replace(config, patience=4))  # the user may have more patience
    assert (more.step, more.finished) == (8, True) and more.reason == (
        "stopped early: the held-out loss is not below 4 (step 4) for 4 measurements")


@pytest.mark.parametrize("cut_after", [2, 5, 6])
def test_a_run_that_was_cut_stops_at_the_same_step(tmp_path, cut_after):
    config = replace(WATCHING, patience=3)
    whole = run(tmp_path / "whole", config)
    cut = run(tmp_path / "cut", replace(config, budget_minutes=cut_after + 0.5), Clock(per_batch=30.0))
    assert not cut.finished and cut.step == cut_after
    cut = run(tmp_path / "cut", config)
    assert (cut.step, cut.reason) == (whole.step, whole.reason)
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole.checkpoint), tensors(cut.checkpoint), strict=True))


def test_patience_counts_measurements_since_the_lowest():
    lines = [{"step": step, "held_out": loss} for step, loss in ((10, 3.0), (20, 2.0), (30, 2.0), (40, 2.5))] + [{"step": 45}]
    assert "not below 2 (step 20) for 2 measurements" in logs.stops_early(lines, 2)
    assert logs.stops_early(lines, 3) == logs.stops_early(lines, 0) == logs.stops_early([], 1) == ""
    lines = [{"step": step, "held_out": loss} for step, loss in ((10, float("nan")), (20, 2.0), (30, float("nan")), (40, 1.0))]
    assert logs.stops_early(lines, 1) == "" and "not below 2 (step 20) for 1 " in logs.stops_early(lines[:3], 1)
    with pytest.raises(UserError, match="patience"):
        TrainConfig(patience=-1)


# ---- TensorBoard and wandb ---------------------------------------------------------------------------------------------------


def curve(folder, tag):
    """(steps, values) of a TensorBoard curve, read from every event file without its own rule for doubles."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    files = sorted(folder.glob("events.out.tfevents.*"))
    events = [(event.step, value) for file in files for event in EventFileLoader(str(file)).Load() for value in event.summary.value]
    found = [(step, round(float(value.tensor.float_val[0]), 5)) for step, value in events if value.tag == tag]
    return [step for step, _ in found], [value for _, value in found]


@pytest.mark.skipif(not find_spec("tensorboard"), reason="tensorboard is not installed")
def test_a_resumed_run_continues_its_tensorboard_curve_without_double_points(tmp_path):
    run(tmp_path, replace(WATCHING, budget_minutes=5.5), Clock(per_batch=30.0))
    checkpoint.shutil.rmtree(checkpoint.latest(tmp_path, quiet))  # as if it had been killed before it saved step 5
    resumed = run(tmp_path)
    assert resumed.resumed_from == 4
    lines = read_metrics(tmp_path / "metrics.jsonl")
    steps, values = curve(tmp_path / "tensorboard", "train/grad_norm")
    assert steps == list(range(1, 9)) and values == pytest.approx([line["grad_norm"] for line in lines], abs=1e-4)
    assert curve(tmp_path / "tensorboard", "validation/held_out") == (list(range(1, 9)), list(LOSSES))


def test_without_tensorboard_a_run_goes_on_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "find_spec", lambda name: None)
    said = []
    train(Toy(), batches, tmp_path, CONFIG, log=said.append)
    assert any("pip install tensorboard" in line for line in said) and not (tmp_path / "tensorboard").exists()


class FakeRun:
    def __init__(self, **asked):
        self.asked, self.logged, self.finished = asked, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


def test_wandb_gets_every_line_of_the_same_run_and_draws_no_number_of_ours(tmp_path, monkeypatch):
    runs = []

    def init(**asked):
        __import__("random").random(), np.random.rand(), torch.rand(())
        runs.append(FakeRun(**asked))
        return runs[-1]

    fake = SimpleNamespace(init=init, Settings=lambda **about: about, errors=SimpleNamespace(Error=RuntimeError))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = replace(CONFIG, wandb="mine")
    clock = Clock(per_batch=30.0)
    train(Toy(), clock.batches, tmp_path / "asked", replace(config, budget_minutes=3.5), clock=clock, log=quiet)
    asked = train(Toy(), batches, tmp_path / "asked", config, log=quiet)
    plain = train(Toy(), batches, tmp_path / "plain", CONFIG, log=quiet)
    assert all(torch.equal(a, b) for a, b in zip(tensors(asked.checkpoint), tensors(plain.checkpoint), strict=True))
    assert [step for one in runs for step, _ in one.logged] == list(range(1, 9)) and all(one.finished for one in runs)
    assert {"train/loss", "train/grad_norm", "train/lr"} <= set(runs[0].logged[0][1])
    assert runs[0].asked["id"] == runs[1].asked["id"] and runs[0].asked["project"] == "mine" and runs[0].asked["resume"] == "allow"

    def refuse(**asked):
        raise RuntimeError("api_key not configured")

    fake.init = refuse
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        train(Toy(), batches, tmp_path / "refused", config, log=quiet)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        train(Toy(), batches, tmp_path / "missing", config, log=quiet)


@pytest.mark.skipif(not find_spec("wandb"), reason="wandb is not installed (it is no requirement)")
def test_wandb_offline_needs_no_network_and_no_account(tmp_path, monkeypatch):
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_API_KEY", ""), ("HTTPS_PROXY", "http://127.0.0.1:9")):
        monkeypatch.setenv(name, value)
    train(Toy(), batches, tmp_path, replace(CONFIG, wandb="mine"), log=quiet)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 8
