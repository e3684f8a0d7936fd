"""The loop, checkpoints under real kills, resuming bit for bit, and jobs in subprocesses. Run: pytest tests/test_training.py"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from repro import machine
from repro.evaluation.policies import load_policy
from repro.machine import UserError
from repro.training import change_training, checkpoint, launch, loop
from repro.training.loop import Budget, TrainConfig, differences, loss_curve, rate, read_metrics, train
from repro.training.step import sound

CONFIG = TrainConfig(steps=8, accumulate=2, warmup=2, learning_rate=1e-2, reserve_seconds=0.0, log_seconds=0.0)


@dataclass(frozen=True)
class ToyConfig:
    width: int = 8
    name: str = "toy"


class Toy(torch.nn.Module):
    """Draws from all three generators in its loss, so that a generator that is not put back shows."""

    def __init__(self, config=ToyConfig()):
        super().__init__()
        self.config = config
        torch.manual_seed(7)
        self.net = torch.nn.Linear(4, config.width)

    def forward(self, batch):
        noise = torch.randn(()) + float(np.random.rand()) + __import__("random").random()
        loss = (self.net(torch.from_numpy(batch["x"])) - noise).square().mean()
        return {"loss": loss, "noise": noise}

    def save(self, folder):
        torch.save(self.state_dict(), Path(folder) / "model.pt")

    @classmethod
    def load(cls, folder):
        toy = cls()
        toy.load_state_dict(torch.load(Path(folder) / "model.pt", weights_only=True))
        return toy


def batches(i):
    return {"x": np.random.default_rng([3, i]).normal(size=(4, 4)).astype(np.float32)}


class Clock:
    """Seconds that pass only when a batch is made (or when told)."""

    def __init__(self, per_batch=0.0):
        self.now, self.per_batch = 0.0, per_batch

    def __call__(self):
        return self.now

    def batches(self, i):
        self.now += self.per_batch
        return batches(i)


def quiet(_line):
    pass


def tensors(path):
    state = checkpoint.load_state(path)
    found = [torch.load(path / "model.pt", weights_only=True)[name] for name in ("net.weight", "net.bias")]
    return found + [part[key] for part in state["optimizer"]["state"].values() for key in ("exp_avg", "exp_avg_sq", "step")]


# ---- resuming ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_after", [1, 3, 7])
def test_resuming_is_bit_identical_to_never_having_stopped(tmp_path, cut_after):
    whole = train(Toy(), batches, tmp_path / "whole", CONFIG, log=quiet)
    clock = Clock(per_batch=30.0)  # a step takes one minute
    first = train(Toy(), clock.batches, tmp_path / "cut", replace(CONFIG, budget_minutes=cut_after + 0.5), clock=clock, log=quiet)
    assert (first.step, first.finished) == (cut_after, False) and "budget" in first.reason
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:  # a killed session leaves lines after its last checkpoint
        file.write(json.dumps({"step": cut_after + 1, "loss": 1.0, "seconds": 1.0}) + '\n{"step": 99, "lo')
    torch.randn(5), np.random.rand(3)  # the generators are elsewhere in the next session
    second = train(Toy(ToyConfig()), batches, tmp_path / "cut", CONFIG, log=quiet)
    assert second.finished and second.resumed_from == cut_after and whole.finished
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole.checkpoint), tensors(second.checkpoint), strict=True))
    one, two = (read_metrics(tmp_path / run / "metrics.jsonl") for run in ("whole", "cut"))
    assert [line["step"] for line in two] == list(range(1, 9))
    assert [{**line, "seconds": 0} for line in one] == [{**line, "seconds": 0} for line in two]


def test_the_tiny_model_resumes_bit_for_bit_too(tmp_path):
    from test_models import batch, model

    clock, config, data = Clock(per_batch=60.0), replace(CONFIG, steps=4, accumulate=1), batch(model(), 2)
    whole = train(model(), lambda i: data, tmp_path / "whole", config, log=quiet)
    timed = lambda i: clock.batches(i) and data
    first = train(model(), timed, tmp_path / "cut", replace(config, budget_minutes=2.5), clock=clock, log=quiet)
    second = train(model(seed=5), lambda i: data, tmp_path / "cut", config, log=quiet)
    assert first.step == second.resumed_from == 2 and second.step == 4
    assert (whole.checkpoint / "model.safetensors").read_bytes() == (second.checkpoint / "model.safetensors").read_bytes()
    assert load_policy(second.checkpoint).trained["dtype"] == "torch.float32"  # as records say


def test_a_finished_run_is_left_alone(tmp_path):
    first = train(Toy(), batches, tmp_path, CONFIG, log=quiet)
    before = (first.checkpoint / "about.json").stat().st_mtime_ns
    again = train(Toy(), batches, tmp_path, CONFIG, log=quiet)
    assert again.finished and again.resumed_from == 8 and again.loss == first.loss
    assert (first.checkpoint / "about.json").stat().st_mtime_ns == before


def test_a_checkpoint_of_another_run_is_refused_with_the_differing_fields(tmp_path):
    train(Toy(), batches, tmp_path, CONFIG, data={"hash": "aa"}, log=quiet)
    with pytest.raises(UserError) as error:
        train(Toy(ToyConfig(name="other")), batches, tmp_path, replace(CONFIG, learning_rate=0.5, keep=9), data={"hash": "bb"}, log=quiet)
    said = str(error.value)
    for part in ("model.name: checkpoint 'toy', now 'other'", "train.learning_rate", "data.hash: checkpoint 'aa', now 'bb'"):
        assert part in said
    assert "keep" not in said and "width" not in said  # the clockwork may change
    assert differences({"a": {"x": 1}}, {"a": {"x": 1, "y": (2,)}}) == [("a", "y", None, [2])]


def test_accumulated_micro_batches_are_one_big_batch(tmp_path):
    class Plain(Toy):
        def forward(self, batch):
            return {"loss": self.net(torch.from_numpy(batch["x"])).square().mean()}

    parts = train(Plain(), batches, tmp_path / "parts", replace(CONFIG, accumulate=2), log=quiet)
    both = lambda i: {"x": np.concatenate([batches(2 * i)["x"], batches(2 * i + 1)["x"]])}
    one = train(Plain(), both, tmp_path / "one", replace(CONFIG, accumulate=1), log=quiet)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tensors(parts.checkpoint), tensors(one.checkpoint), strict=True))
    start = Plain().net.weight
    assert (tensors(one.checkpoint)[0] - start).abs().max() > 0.01


def test_gradients_are_clipped_and_the_rate_is_warmed_up_and_decays_to_zero(tmp_path):
    assert [rate(step, replace(CONFIG, warmup=4, learning_rate=1.0)) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(5, CONFIG) == pytest.approx(0.5e-2) and rate(8, CONFIG) == pytest.approx(0.0)
    train(Toy(), lambda i: {"x": 1e6 * batches(i)["x"]}, tmp_path / "big", replace(CONFIG, steps=1), log=quiet)
    moments = tensors(checkpoint.latest(tmp_path / "big"))[2:]
    norm = sum(float(m.square().sum()) for m in (moments[0], moments[3])) ** 0.5 / (1 - CONFIG.betas[0])
    assert norm == pytest.approx(1.0, abs=1e-3) and read_metrics(tmp_path / "big" / "metrics.jsonl")[0]["grad_norm"] > 1e6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path):
    with pytest.raises(UserError, match="nan at step 3"):
        train(Toy(), lambda i: {"x": batches(i)["x"] * (np.nan if i == 5 else 1)}, tmp_path, CONFIG, log=quiet)


@pytest.mark.parametrize("kept", [(), (0.25,)])
def test_weights_that_are_not_finite_are_in_no_checkpoint(tmp_path, monkeypatch, kept):
    """The loss of the step that spoils them is a number: the next step would tell, and the last one has no next."""
    config = replace(CONFIG, marks=kept)
    with monkeypatch.context() as spoilt:
        spoilt.setattr(loop, "rate", lambda step, config: float("nan") if step == (1 if kept else 7) else 1e-3)
        with pytest.raises(UserError, match=f"the weights net.weight are not finite after step {2 if kept else 8}(.|\n)*32 of 32"):
            train(Toy(), batches, tmp_path, config, log=quiet)
    assert not list(tmp_path.rglob("step_*"))


def test_weights_that_train_are_sound_where_all_are_numbers():
    toy = Toy()
    toy.net.bias.data[0] = float("inf")
    with pytest.raises(UserError, match="net.bias are not finite after step 3(.|\n)*1 of 8"):
        sound(toy, 3)
    toy.net.bias.requires_grad_(False)
    sound(toy, 3)


# ---- the clock ---------------------------------------------------------------------------------------------------------------


def test_checkpoints_come_by_the_clock_and_before_the_budget_ends(tmp_path):
    clock, saved = Clock(per_batch=30.0), []
    config = replace(CONFIG, steps=100, checkpoint_minutes=3.0, budget_minutes=8.5, keep=100)
    summary = train(Toy(), clock.batches, tmp_path, config, clock=clock, log=saved.append)
    assert [int(path.name[5:]) for path in checkpoint.steps(tmp_path)] == [3, 6, 8]
    assert summary.step == 8 and clock.now <= 8.5 * 60 and not summary.finished
    assert summary.minutes == pytest.approx(8.0)


def test_the_budget_keeps_room_for_the_slowest_step_and_two_saves():
    clock = Clock()
    budget = Budget(minutes=10, checkpoint_minutes=2, reserve=5, clock=clock)
    budget.step_took(20)
    budget.save_took(30)
    clock.now = 600 - 20 - 60 - 5 - 1
    assert not budget.over() and budget.due()
    clock.now += 1
    assert budget.over() and not Budget(0, 120, 5, clock).over()


# ---- checkpoints -------------------------------------------------------------------------------------------------------------


def write_toy(path):
    (path / "model.pt").write_bytes(os.urandom(1000))


def test_a_checkpoint_explains_itself_and_only_the_last_are_kept(tmp_path):
    summary = train(Toy(), batches, tmp_path, replace(CONFIG, keep=1), data={"hash": "aa"}, log=quiet)
    about = checkpoint.about(summary.checkpoint)
    assert about["step"] == 8 and about["model"] == {"width": 8, "name": "toy"} and about["train"]["learning_rate"] == 0.01
    assert about["data"] == {"hash": "aa"} and about["versions"]["torch"] == torch.__version__ and "commit" in about
    for step in (9, 10, 11):
        checkpoint.save(tmp_path, step, write_toy, {}, {}, keep=2)
    assert [path.name for path in checkpoint.steps(tmp_path)] == ["step_00000010", "step_00000011"]


def test_damaged_and_partial_checkpoints_are_passed_over_and_named(tmp_path):
    said = []
    for step in (1, 2, 3, 4):
        checkpoint.save(tmp_path, step, write_toy, {"n": step}, {}, keep=9)
    (tmp_path / "step_00000004" / "about.json").unlink()
    with (tmp_path / "step_00000003" / "training.pt").open("r+b") as file:
        file.seek(100), file.write(b"xx")
    (tmp_path / "step_00000009.part").mkdir()
    assert checkpoint.latest(tmp_path, said.append).name == "step_00000002"
    assert len(said) == 2 and "about.json is missing" in said[0] and "training.pt is not what was saved" in said[1]
    assert checkpoint.save(tmp_path, 4, write_toy, {}, {}, keep=9).name == "step_00000004"  # a damaged one gives way
    assert checkpoint.latest(tmp_path, said.append).name == "step_00000004" and not list(tmp_path.glob("*.part"))
    for step in (1, 2, 3, 4):
        (tmp_path / f"step_{step:08d}" / "about.json").unlink(missing_ok=True)
    assert checkpoint.latest(tmp_path, said.append) is None
    with pytest.raises(UserError, match=r"(?s)those there are damaged.*step_00000002: about.json is missing.*copy them again.*or train on"):
        checkpoint.need(tmp_path)
    assert checkpoint.save(tmp_path, 1, write_toy, {}, {}, keep=2) == checkpoint.need(tmp_path)  # a run that begins anew
    assert checkpoint.steps(tmp_path) == [tmp_path / "step_00000001"]
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.need(tmp_path / "nothing")


def test_a_full_disk_leaves_nothing_half_written_and_the_checkpoints_before(tmp_path):
    checkpoint.save(tmp_path, 1, write_toy, {}, {})
    for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("I/O error: No space left on device (os error 28)")):

        def full(part, error=error):
            (part / "model.bin").write_bytes(b"half")
            raise error

        with pytest.raises(UserError, match=r"disk full: checkpoint .*step_00000002(.|\n)*next step: .*du -sh"):
            checkpoint.save(tmp_path, 2, full, {}, {})
        assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"] and checkpoint.damage(checkpoint.need(tmp_path)) is None

    def wrong(part):
        raise RuntimeError("another error")

    with pytest.raises(RuntimeError, match="another error"):
        checkpoint.save(tmp_path, 2, wrong, {}, {})


def test_the_training_state_executes_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"optimizer": Evil()}, tmp_path / "training.pt")
    with pytest.raises(Exception, match="[Ww]eights"):
        checkpoint.load_state(tmp_path)
    assert not (tmp_path / "executed").exists()


SAVER = """
import os, sys, torch
from pathlib import Path
from repro.training import checkpoint
for line in sys.stdin:                       # one line, one process that does nothing but save, from this step on
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print("dead", flush=True)
        continue
    print("pid", os.getpid(), flush=True)    # by the child itself: always before its first "saved"
    folder, step = Path(sys.argv[1]), int(line)
    while True:
        step += 1
        values = torch.full((200_000,), float(step))
        checkpoint.save(folder, step, lambda path: torch.save(values, path / "model.pt"), {"values": values}, {}, keep=2)
        os.write(1, f"saved {step}\\n".encode())  # one system call: a kill can't tear the line
"""


def killed_saves(folder, kills, seed=0):
    """Kill a process that does nothing but save, `kills` times at random moments; after each the last announced save must load."""
    rng, step, inside = np.random.default_rng(seed), 0, 0
    parent = subprocess.Popen([sys.executable, "-c", SAVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    for _ in range(kills):
        parent.stdin.write(f"{step}\n")
        parent.stdin.flush()
        (named, child), (said, announced) = (parent.stdout.readline().split() for _ in range(2))
        assert (named, said) == ("pid", "saved")  # nothing is killed on a guess
        announced = int(announced)
        time.sleep(float(rng.uniform(0, 0.05)))
        os.kill(int(child), signal.SIGKILL)
        while (said := parent.stdout.readline().split()) != ["dead"]:
            announced = int(said[1])
        inside += bool(list(folder.glob("*.part")))
        last = checkpoint.latest(folder, pytest.fail)
        step = checkpoint.about(last)["step"]
        assert announced <= step <= announced + 1
        assert (checkpoint.load_state(last)["values"] == step).all() and (torch.load(last / "model.pt") == step).all()
    parent.stdin.close()
    parent.wait()
    return inside


@pytest.mark.full
def test_sigkill_at_any_moment_of_a_save_leaves_the_last_checkpoint_loadable_many_times(tmp_path):
    assert killed_saves(tmp_path, 1000) > 200


def test_sigkill_at_any_moment_of_a_save_leaves_the_last_checkpoint_loadable(tmp_path):
    assert killed_saves(tmp_path, 40) > 5  # most kills hit inside a save


# ---- curves and jobs ---------------------------------------------------------------------------------------------------------


def test_loss_curve_shows_each_run_with_its_own_line_style(tmp_path):
    for name in ("baseline", "gaze"):
        train(Toy(), batches, tmp_path / name, CONFIG, log=quiet)
    axes = loss_curve({name: tmp_path / name for name in ("baseline", "gaze")}, smooth=2).axes[0]
    lines = axes.get_lines()
    assert len(lines[0].get_xdata()) == 7 and lines[0].get_linestyle() != lines[1].get_linestyle()
    expected = np.mean([line["loss"] for line in read_metrics(tmp_path / "gaze" / "metrics.jsonl")[:2]])
    assert lines[1].get_ydata()[0] == pytest.approx(expected)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["baseline", "gaze"]


def test_config_files_are_checked_before_anything_runs(tmp_path):
    good = {"name": "gaze", "store": tmp_path / "store", "folder": tmp_path / "run"}
    for wrong, said in ((dict(model={"preset": "huge"}), "huge"), (dict(train={"learning": 1}), "learning"), (dict(color=1), "color"),
                        (dict(model={"target": "crop"}), "crop")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            launch.write_config(tmp_path / "job.json", **good, **wrong)
    assert not (tmp_path / "job.json").exists()
    path = launch.write_config(tmp_path / "job.json", **good, model={"preset": "tiny", "recon": False})
    assert not launch.model_config(json.loads(path.read_text())["model"], []).recon
    words = launch.model_config({"preset": "keypoints"}, [SimpleNamespace(task="open the drawer", task_id="open_drawer")]).words
    assert words == ("drawer", "open", "the")
    with pytest.raises(UserError, match="there is no config"):
        launch.train_from_config(tmp_path / "missing.json")


@pytest.mark.parametrize(("part", "field", "value", "said"), [
    ("", "stor", "x", "did you mean 'store'"), ("train", "stpes", 3, "did you mean 'steps'"), ("train", "zzz", 3, "leave the field out"),
    ("model", "blnd", True, "did you mean 'blind'"), ("model", "preset", "tny", "did you mean 'tiny'"),
    ("model", "preset", "zzz", "use one of these names"),
])  # fmt: skip
def test_names_that_are_mistyped_are_guessed(tmp_path, part, field, value, said):
    job = {"name": "x", "store": str(tmp_path), "folder": str(tmp_path / "run"), "model": {}, "train": {}}
    (job[part] if part else job)[field] = value
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(UserError, match=f"next step: .*{said}"):
        launch.train_from_config(tmp_path / "job.json", quiet)


@pytest.mark.parametrize(("part", "field", "value", "named"), [
    ("train", "learning_rate", "NaN", "train.learning_rate"), ("train", "clip", "-Infinity", "train.clip"),
    ("train", "betas", "[0.9, 1e999]", "train.betas.1"), ("model", "recon_weight", "Infinity", "model.recon_weight"),
    ("", "corrupt", "NaN", "corrupt"),
])  # fmt: skip
def test_numbers_that_are_not_finite_are_refused(tmp_path, part, field, value, named):
    job = {"name": "x", "store": str(tmp_path), "folder": str(tmp_path / "run"), "model": {}, "train": {}}
    (job[part] if part else job)[field] = json.loads(value)
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(UserError, match=f": {named} is no number.*\n  expected: a finite number\n  found: (nan|-?inf)"):
        launch.train_from_config(tmp_path / "job.json", quiet)
    with pytest.raises(UserError, match=f"{named} is no number"):
        launch.write_config(tmp_path / "written.json", **job)
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


@pytest.mark.parametrize("wrong", [{"train": {"stpes": 3}}, {"model": {"preset": "tny"}}, {"store": "nowhere"}])
def test_a_refused_job_leaves_no_lock(tmp_path, wrong):
    job = {"name": "x", "store": str(tmp_path), "folder": str(tmp_path / "run"), "model": {}, "train": {}}
    (tmp_path / "job.json").write_text(json.dumps(job | wrong))
    with pytest.raises(UserError):
        launch.train_from_config(tmp_path / "job.json", quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_a_lock_that_its_holder_removed_is_held_by_nobody(tmp_path, monkeypatch):
    """Two processes that wait at two files of one name would train into one folder."""
    flock = machine.fcntl.flock
    monkeypatch.setattr(machine.fcntl, "flock", lambda *how: (tmp_path / "run.lock").unlink() or flock(*how))
    with checkpoint.alone(tmp_path / "run.lock") as free:
        assert not free


def test_fields_that_a_model_would_pass_over_are_refused(tmp_path):
    job = dict(name="a", store=tmp_path / "store", folder=tmp_path / "a")
    for model, field in (*(("keypoints", field) for field in ("like", "parts", "start")), ("vggt_tiny", "parts"), ("vggt_tiny", "start")):
        path = launch.write_config(tmp_path / "a.json", **job, model={"preset": model}, **{field: "elsewhere"})
        with pytest.raises(UserError, match=f"knows no such fields[\\s\\S]*{field}.*elsewhere"):
            launch.train_from_config(path, quiet)


def test_a_process_is_on_its_gpu_before_its_model_is_and_the_model_before_the_frames(tmp_path, monkeypatch):
    """Else every process loads 4-bit weights onto the first GPU, and a frozen tower sees all frames on the CPU."""
    done, state = [], SimpleNamespace(device=torch.device("meta"), is_main_process=True)
    monkeypatch.setattr(launch, "PartialState", lambda cpu: done.append("state") or state)
    monkeypatch.setattr(launch, "Store", lambda folder: SimpleNamespace(hash="aa", episodes=[], columns=["gaze.box"]))
    made = torch.nn.Linear(1, 1)
    made.prepare, made.key = None, "toy"
    monkeypatch.setattr(launch, "_build", lambda *_: done.append("model") or made)

    def frames(*_, **__):
        done.append(made.weight.device)
        raise UserError("far enough")

    monkeypatch.setattr(launch, "Batches", frames)
    path = launch.write_config(tmp_path / "a.json", name="a", store=tmp_path / "store", folder=tmp_path / "a")
    with pytest.raises(UserError, match="far enough"):
        launch.train_from_config(path, quiet)
    assert done == ["state", "model", state.device]
    done.clear()
    monkeypatch.setattr(change_training, "PartialState", launch.PartialState)
    monkeypatch.setattr(change_training, "Pairs", lambda folder: SimpleNamespace(column=lambda name: ["localisable"]))
    monkeypatch.setattr(change_training.ChangeAgent, "build", frames)
    path = launch.write_config(tmp_path / "b.json", name="b", store="store", folder=tmp_path / "b", model={"preset": "change_t4"})
    with pytest.raises(UserError, match="far enough"):
        launch.train_from_config(path, quiet)
    assert done == ["state", state.device]


def test_jobs_train_in_subprocesses_and_a_failed_one_shows_its_last_lines(tmp_path):
    from repro.data.episodes import Episode, StoreWriter

    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", fps=30) as writer:
        for task in ("lift the red block", "open the drawer"):
            columns = {
                "observation.images.static": rng.integers(0, 256, (6, 200, 200, 3), np.uint8),
                "observation.images.wrist": rng.integers(0, 256, (6, 84, 84, 3), np.uint8),
                "observation.state": rng.normal(size=(6, 15)).astype(np.float32), "action": rng.uniform(-1, 1, (6, 7)).astype(np.float32),
            }  # fmt: skip
            writer.add(Episode(task, columns, {}))
    size = {"hidden": 32, "layers": 1, "channels": 8, "denoiser_width": 32, "denoiser_depth": 1, "target": "whole", "vae": "pixels",
            "freeze_vision": False, "cache_features": False}
    job = dict(store=tmp_path / "store", model=size, train={"steps": 2, "batch_size": 4, "log_seconds": 0})
    good = launch.write_config(tmp_path / "good.json", name="good", folder=tmp_path / "good", **job)
    bad = launch.write_config(tmp_path / "bad.json", name="bad", folder=tmp_path / "bad", **{**job, "store": tmp_path / "nowhere"})
    lines = []
    with pytest.raises(UserError, match=r"1 of 2 training jobs failed[\s\S]*bad \(exit code [\s\S]*nowhere"):
        launch.jobs([good, bad], slots=2, log=lines.append)
    assert any(line.startswith("[good] good: 2/2 steps | ") for line in lines)
    assert checkpoint.about(checkpoint.need(tmp_path / "good"))["step"] == 2


# ---- precision -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_on_a_cpu_is_for_those_that_have_it_and_the_checkpoint_says_so(tmp_path, monkeypatch, fast):
    """Asked for, but the CPU has it not: the very weights of float32. It has: other ones, nearly the same."""
    monkeypatch.setattr(machine, "fast_bfloat16", lambda: fast)
    monkeypatch.setattr(machine, "capabilities", lambda: [])
    said = []
    asked = train(Toy(), batches, tmp_path / "asked", replace(CONFIG, cpu_bfloat16=True), log=said.append)
    plain = train(Toy(), batches, tmp_path / "plain", CONFIG, log=quiet)
    one, two = (tensors(summary.checkpoint)[0] for summary in (asked, plain))
    assert torch.equal(one, two) != fast and torch.allclose(one, two, atol=0.05)
    assert checkpoint.about(asked.checkpoint)["dtype"] == ("torch.bfloat16" if fast else "torch.float32")
    assert any("bfloat16" in line for line in said) == fast
    train(Toy(), batches, tmp_path / "asked", CONFIG, log=said.append)
    assert any("trained in torch.bfloat16 so far, from here on in torch.float32" in line for line in said) == fast


def test_a_run_that_began_in_another_precision_goes_on_with_a_scaler(tmp_path):
    """As on a T4, with a checkpoint of a CPU: float16 needs a scaler, and the checkpoint holds none."""
    summary, toy, scaler = train(Toy(), batches, tmp_path, CONFIG, log=quiet), Toy(), torch.amp.GradScaler("cpu")
    about, before = checkpoint.about(summary.checkpoint), scaler.state_dict()
    identity = {part: about[part] for part in ("model", "train", "data")}
    assert loop._resume(summary.checkpoint, toy, torch.optim.AdamW(toy.parameters()), SimpleNamespace(scaler=scaler), identity)[0] == 8
    assert scaler.state_dict() == before


def test_weights_that_train_in_16_bits_are_refused(tmp_path):
    toy = Toy()
    toy.net.bias.data = toy.net.bias.data.half()
    with pytest.raises(UserError, match=r"held in 16 bits[\s\S]*1 of them, torch.float16, such as net.bias"):
        train(toy, batches, tmp_path, CONFIG, log=quiet)
    toy.net.bias.requires_grad_(False)
    loop._held_in_32_bits(toy)  # frozen ones may be


def test_a_field_of_the_model_that_came_later_does_not_stop_earlier_runs():
    """Nor one that a version between left in the file: both say what was done."""
    without, off, on = ({"model": {"chunk": 5, **more}} for more in ({}, {"gaze_truncate": False}, {"gaze_truncate": True}))
    assert loop.differences(without, off) == loop.differences(off, without) == loop.differences(off, off) == []
    assert loop.differences(without, on) == [("model", "gaze_truncate", None, True)]
    assert loop.differences(on, off) == [("model", "gaze_truncate", True, None)]


@pytest.mark.parametrize("part, field, value", [("train", "steps", "many"), ("train", "learning_rate", "a"), ("train", "steps", True),
                                                ("", "held_out", "x"), ("", "store", 5)])
def test_a_value_of_a_wrong_kind_is_named(tmp_path, part, field, value):
    job = {"name": "x", "store": str(tmp_path), "folder": str(tmp_path / "run"), "model": {}, "train": {}}
    (job[part] if part else job)[field] = value
    (tmp_path / "job.json").write_text(json.dumps(job))
    with pytest.raises(UserError, match=f"{field} of a wrong kind"):
        launch.train_from_config(tmp_path / "job.json", lambda line: None)
