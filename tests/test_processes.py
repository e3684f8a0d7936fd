"""One training run on several processes, in parts that fit the memory, told to stop, killed: always the same run.

Run: pytest tests/test_processes.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_training import CONFIG, Toy, ToyConfig, batches, quiet, tensors

from repro import clock, machine
from repro.machine import UserError
from repro.training import checkpoint, launch, live
from repro.training.loop import SESSION_ENDS, read_metrics, train

ROOT, POPEN = Path(__file__).resolve().parents[1], subprocess.Popen
PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
import torch
from accelerate import PartialState
from dataclasses import replace
from test_processes import Noisy, wide
from test_training import CONFIG
from repro.training.loop import train
state = PartialState(cpu=True)
for accumulate in {accumulates}:
    train(Noisy(seed=7 + state.process_index), wide, f"{folder}/{{accumulate}}", replace(CONFIG, accumulate=accumulate, steps={steps}))
state.wait_for_everyone()
state.destroy_process_group()
"""


class Noisy(Toy):
    """A loss that is a mean over samples, with noise drawn from every generator, and a part that only some batches reach."""

    def __init__(self, config=ToyConfig(), seed=7):
        super().__init__(config)
        torch.manual_seed(seed)
        self.net = torch.nn.Linear(4, config.width)
        self.seldom = torch.nn.Linear(4, 1)

    def forward(self, batch):
        noise = torch.randn(()) + float(np.random.rand()) + __import__("random").random()
        x = torch.from_numpy(batch["x"])
        loss = (self.net(x) - noise).square().mean()
        if float(x[0, 0]) > 0:
            loss = loss + self.seldom(x).mean()
        return {"loss": loss, "noise": noise}


def wide(i):
    """Micro-batch i: 8 samples whose first numbers have one sign, so that both halves of it reach the same parts."""
    x = np.random.default_rng([3, i]).normal(size=(8, 4)).astype(np.float32)
    return {"x": np.abs(x) * np.sign(x[:1, :1])}


def torchrun(code: Path, processes: int = 2) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", str(code)],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip


def losses(folder: Path) -> np.ndarray:
    return np.array([[line["loss"], line["grad_norm"]] for line in read_metrics(folder / "metrics.jsonl")])


def test_two_processes_do_what_one_does_and_one_goes_on_where_two_stopped(tmp_path):
    """accumulate 4: each takes every other micro-batch, noise and all; 1: each takes half of it."""
    for steps in (5, 8):
        (tmp_path / "run.py").write_text(PROCESSES.format(tests=str(ROOT / "tests"), folder=tmp_path, accumulates=(4, 1), steps=steps))
        if steps == 5:
            done = torchrun(tmp_path / "run.py")
            assert done.returncode == 0, done.stdout + done.stderr
    one = train(Noisy(), wide, tmp_path / "one", replace(CONFIG, accumulate=4, steps=5), log=quiet)
    assert json.loads((tmp_path / "4" / "summary.json").read_text())["processes"] == 2
    assert np.abs(losses(tmp_path / "4") - losses(tmp_path / "one")).max() < 1e-5
    two = checkpoint.need(tmp_path / "4")
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tensors(two), tensors(one.checkpoint), strict=True))
    assert len(losses(tmp_path / "1")) == 5 and np.isfinite(losses(tmp_path / "1")).all()
    config = replace(CONFIG, accumulate=4, steps=5)  # the same run, now on one process
    again = train(Noisy(seed=1), wide, tmp_path / "4", config, log=quiet)
    assert again.resumed_from == 5 and again.finished and again.processes == 1


def test_halves_of_a_micro_batch_on_two_processes_are_the_whole_one(tmp_path, monkeypatch):
    """Without noise, one micro-batch cut in two gives the gradients of the whole."""
    (tmp_path / "run.py").write_text(
        PROCESSES.format(tests=str(ROOT / "tests"), folder=tmp_path, accumulates=(1,), steps=4).replace("Noisy(", "Silent(").replace(
            "import Noisy", "import Silent"))
    done = torchrun(tmp_path / "run.py")
    assert done.returncode == 0, done.stdout + done.stderr
    train(Silent(), wide, tmp_path / "one", replace(CONFIG, accumulate=1, steps=4), log=quiet)
    assert np.abs(losses(tmp_path / "1") - losses(tmp_path / "one")).max() < 1e-5


class Silent(Noisy):
    """Without noise, and with a memory that holds `most` samples."""

    most = 10**9

    def forward(self, batch):
        x = torch.from_numpy(batch["x"])
        if len(x) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nsecond line")
        loss = self.net(x).square().mean()
        return {"loss": loss + self.seldom(x).mean() if float(x[0, 0]) > 0 else loss}


@pytest.mark.parametrize("most", [1, 3, 4])
def test_out_of_memory_halves_what_is_done_at_once_and_nothing_else(tmp_path, most):
    whole, said = train(Silent(), wide, tmp_path / "whole", CONFIG, log=quiet), []
    small = Silent()
    small.most = most
    parts = train(small, wide, tmp_path / "parts", CONFIG, log=said.append)
    assert np.abs(losses(tmp_path / "whole") - losses(tmp_path / "parts")).max() < 1e-5
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tensors(whole.checkpoint), tensors(parts.checkpoint), strict=True))
    told = [line for line in said if "out of GPU memory" in line]
    assert told[0] == "out of GPU memory with 8 samples at a time: from now on 4, accumulated 4 times; the global batch stays the same"
    assert len(told) == {4: 1, 3: 2, 1: 3}[most]


def test_a_memory_that_holds_no_sample_is_an_error(tmp_path):
    model = Silent()
    model.most = 0
    with pytest.raises(UserError, match=r"does not hold a single sample[\s\S]*Tried to allocate 9 GiB\.\n  next step: a smaller preset"):
        train(model, wide, tmp_path, CONFIG, log=quiet)


# ---- told to stop, killed --------------------------------------------------------------------------------------------------------


RUN = """
import sys, time
sys.path.insert(0, {tests!r})
from dataclasses import replace
from test_processes import Noisy, wide
from test_training import CONFIG
from repro.training.loop import train
def slow(i):
    time.sleep(0.01)
    return wide(i)
print("begin", flush=True)
summary = train(Noisy(), slow, sys.argv[1], replace(CONFIG, steps=60, checkpoint_minutes=1e-3, keep=2))
print(summary.reason, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_saves_and_says_so(tmp_path, number):
    with subprocess.Popen([sys.executable, "-c", RUN.format(tests=str(ROOT / "tests")), str(tmp_path / "run")], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # fmt: skip
        while not (tmp_path / "run" / "metrics.jsonl").is_file() or len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    summary, lines = json.loads((tmp_path / "run" / "summary.json").read_text()), read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert f"told to stop ({number.name})" in said and not summary["finished"]
    assert checkpoint.about(checkpoint.need(tmp_path / "run"))["step"] == summary["step"] == len(lines)


FORKED = """
import os, sys, time
import torch.utils.tensorboard  # once, and not in each child
sys.path.insert(0, {tests!r})
from dataclasses import replace
from test_processes import Noisy, wide
from test_training import CONFIG
from repro.training.loop import train
def slow(i):
    time.sleep(0.004)
    return wide(i)
def run(folder):
    return train(Noisy(), slow, folder, replace(CONFIG, steps=24, checkpoint_minutes=5e-4, keep=2), log=lambda line: None)
for line in sys.stdin:  # one line, one process that trains until it is done or killed
    child = os.fork()
    if not child:
        run(line.strip())
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def killed(tmp_path: Path, kills: int) -> None:
    """Kill a training at random instants, begin it again until it is done; the last weights are those of one that nobody disturbed."""
    rng, struck, runs = np.random.default_rng(0), 0, 0
    parent = subprocess.Popen([sys.executable, "-c", FORKED.format(tests=str(ROOT / "tests"))], text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip

    def go(folder: Path, after: float | None) -> int:
        parent.stdin.write(f"{folder}\n")
        parent.stdin.flush()
        child = int(parent.stdout.readline())
        if after is not None:
            time.sleep(after)
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return int(parent.stdout.readline())

    began = time.monotonic()
    assert go(tmp_path / "whole", None) == 0
    whole, took = checkpoint.need(tmp_path / "whole"), time.monotonic() - began
    while struck < kills:
        folder = tmp_path / f"run{runs}"
        runs += 1
        while (code := go(folder, rng.uniform(0, 0.6 * took) if struck < kills else None)) != 0:
            assert code == -signal.SIGKILL
            struck += 1
        last = checkpoint.need(folder)
        assert checkpoint.about(last)["step"] == 24
        assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(last), strict=True))
        assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(1, 25))
    parent.stdin.close()
    parent.wait()


def test_a_training_that_is_killed_ends_as_if_nobody_had(tmp_path):
    killed(tmp_path, 8)


@pytest.mark.full
def test_a_training_that_is_killed_many_times_ends_as_if_nobody_had(tmp_path):
    killed(tmp_path, 60)


# ---- the session's clock ----------------------------------------------------------------------------------------------------------


def test_a_run_stops_before_the_session_does_and_the_next_one_goes_on(tmp_path, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(clock, "now", lambda: seconds[0])

    def slow(i):
        seconds[0] += 15.0  # a step takes 30 s
        return batches(i)

    monkeypatch.setenv(clock.END, "200.0")
    said = []
    first = train(Toy(), slow, tmp_path / "cut", CONFIG, log=said.append, clock=lambda: seconds[0])
    assert (first.reason, first.finished, first.step) == (SESSION_ENDS, False, 6) and seconds[0] <= 200 - clock.RESERVE
    assert json.loads((tmp_path / "cut" / "summary.json").read_text())["reason"] == SESSION_ENDS
    assert any("min of the session left" in line for line in said)
    monkeypatch.delenv(clock.END)
    whole = train(Toy(), batches, tmp_path / "whole", CONFIG, log=quiet)
    second = train(Toy(), batches, tmp_path / "cut", CONFIG, log=quiet)
    assert second.resumed_from == 6 and second.finished
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole.checkpoint), tensors(second.checkpoint), strict=True))


def configs(tmp_path: Path, names: list[str]) -> list[Path]:
    return [launch.write_config(tmp_path / f"{name}.json", name=name, store=tmp_path / "store", folder=tmp_path / name) for name in names]


ENDS = """import json, sys, pathlib
job = json.load(open(sys.argv[1]))
folder = pathlib.Path(job["folder"])
folder.mkdir(exist_ok=True)
(folder / "summary.json").write_text(json.dumps({{"reason": {0}}}))"""


def fake_popen(monkeypatch, gpus: int, code: str) -> list[tuple[list[str], dict]]:
    """`repro` replaced by `code`; what was called, with its environment."""
    called = []

    def start(command, env, **options):
        called.append((command[1:], env))
        return POPEN([sys.executable, "-c", code, command[-1]], env=env, **options)

    monkeypatch.setattr(machine, "capabilities", lambda: [(7, 5)] * gpus)
    monkeypatch.setattr(launch.subprocess, "Popen", start)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("REPRO_PROCESSES", raising=False)
    return called


def test_two_gpus_are_for_two_runs_or_for_both_processes_of_one(tmp_path, monkeypatch):
    paths, lines = configs(tmp_path, ["a", "b"]), []
    called = fake_popen(monkeypatch, 2, "import time; time.sleep(0.3)\n" + ENDS.format("'all steps done'"))
    launch.jobs(paths, log=lines.append)
    assert sorted(env["CUDA_VISIBLE_DEVICES"] for _, env in called) == ["0", "1"]
    assert all(command == ["-m", "repro", "train", str(path)] for (command, _), path in zip(called, paths, strict=True))
    called.clear()
    monkeypatch.setenv("REPRO_PROCESSES", "2")
    launch.jobs(paths, log=lines.append)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in called] == ["0,1", "0,1"]
    assert called[0][0] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "repro", "train", str(paths[0])]
    called.clear()
    launch.jobs(paths, log=lines.append, processes=4)
    assert "4 processes for one run, and 2 GPUs here: 2; the global batch stays the same" in lines


def test_jobs_that_the_session_cuts_are_out_of_time_and_none_begins_after_its_end(tmp_path, monkeypatch):
    called = fake_popen(monkeypatch, 0, ENDS.format(f"{SESSION_ENDS!r} if job['name'] == 'b' else 'all steps done'"))
    with pytest.raises(clock.OutOfTime, match=": b go on"):
        launch.jobs(configs(tmp_path, ["a", "b"]), log=quiet)
    assert len(called) == 2
    fake_popen(monkeypatch, 0, "pass")  # it had no time to begin; what stands there is of an earlier session
    with pytest.raises(clock.OutOfTime, match=": a go on"):
        launch.jobs(configs(tmp_path, ["a"]), log=quiet)
    monkeypatch.setenv(clock.END, repr(clock.now() + 1))
    with pytest.raises(clock.OutOfTime):
        launch.jobs(configs(tmp_path, ["c"]), log=quiet)
    assert len(called) == 2


def test_an_interrupted_notebook_lets_each_run_save_first(tmp_path, monkeypatch):
    code = ("import signal, sys, time, pathlib; out = pathlib.Path(sys.argv[1] + '.saved');"
            "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), out.write_text('saved'), sys.exit(0)));"
            "print('ready', flush=True); time.sleep(60)")
    fake_popen(monkeypatch, 0, code)
    paths = configs(tmp_path, ["a"])

    def interrupt(line):
        if "ready" in line:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        launch.jobs(paths, log=interrupt)
    assert Path(f"{paths[0]}.saved").read_text() == "saved"


def test_curves_grow_where_somebody_watches(tmp_path, monkeypatch):
    import IPython.display

    shown = []

    class Handle:
        def update(self, what):
            shown.append(what)

    monkeypatch.setattr(IPython.display, "display", lambda what, display_id: Handle())
    train(Toy(), batches, tmp_path / "gaze", CONFIG, log=quiet)
    with live.curves([tmp_path / "gaze"], every=0.05):
        time.sleep(0.3)
    assert not shown  # headless
    monkeypatch.setattr(live, "watched", lambda: True)
    with live.curves([tmp_path / "gaze", tmp_path / "not_begun"], every=0.05):
        time.sleep(0.5)
    assert len(shown) >= 2 and shown[0].data.startswith(b"\x89PNG") and shown[-1].data == ""
