"""One training run on several processes, in parts that fit the memory, told to stop, killed: always the same run.

Run: pytest tests/test_processes.py
"""

import contextlib
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
from repro.training.loop import OWN_BUDGET, SESSION_ENDS, read_metrics, train

ROOT, POPEN = Path(__file__).resolve().parents[1], subprocess.Popen
PROCESSES = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from accelerate import PartialState
from dataclasses import replace
from test_processes import Noisy, Silent, wide
from test_training import CONFIG
from repro.training.loop import train
state = PartialState(cpu=True)
def cut(i):
    if i == {cut}:  # in step {cut} // accumulate, by the process that has this micro-batch
        os.kill(os.getpid(), signal.SIGTERM)
    return wide(i)
folder = sys.argv[1] if len(sys.argv) > 1 else "{folder}"
summary = train({model}(seed=7 + state.process_index), cut, folder, replace(CONFIG, accumulate={accumulate}, steps=8))
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


def torchrun(tmp_path: Path, accumulate: int, model: str = "Noisy", cut: int = -1) -> dict:
    """Train eight steps on two processes, into <tmp_path>/two."""
    code = tmp_path / "run.py"
    code.write_text(PROCESSES.format(tests=str(ROOT / "tests"), folder=tmp_path / "two", accumulate=accumulate, model=model, cut=cut))
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(code)],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "two" / "summary.json").read_text())


def losses(folder: Path) -> np.ndarray:
    return np.array([[line["loss"], line["grad_norm"]] for line in read_metrics(folder / "metrics.jsonl")])


def test_two_processes_do_what_one_does_and_one_goes_on_where_two_stopped(tmp_path):
    """accumulate 4: each takes every other micro-batch, noise and all. Told to stop in their sixth step, they are gone on from by one."""
    summary = torchrun(tmp_path, accumulate=4, cut=20)
    assert (summary["processes"], summary["step"], summary["finished"]) == (2, 6, False) and "SIGTERM" in summary["reason"]
    config = replace(CONFIG, accumulate=4)
    whole = train(Noisy(), wide, tmp_path / "one", config, log=quiet)
    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")[:6]).max() < 1e-5
    again = train(Noisy(seed=1), wide, tmp_path / "two", config, log=quiet)
    assert again.resumed_from == 6 and again.finished and again.processes == 1
    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).max() < 1e-5
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tensors(again.checkpoint), tensors(whole.checkpoint), strict=True))


def test_halves_of_a_micro_batch_on_two_processes_are_the_whole_one(tmp_path):
    """Without noise, one micro-batch cut in two gives the gradients of the whole."""
    assert torchrun(tmp_path, accumulate=1, model="Silent")["processes"] == 2
    train(Silent(), wide, tmp_path / "one", replace(CONFIG, accumulate=1), log=quiet)
    assert np.abs(losses(tmp_path / "two") - losses(tmp_path / "one")).max() < 1e-5


@pytest.mark.full
def test_two_nodes_share_a_run_and_say_so_where_their_disks_are_two(tmp_path):
    """torchrun --nnodes 2, both nodes on this machine: one folder is one run; two folders that differ are an error, not a wait."""
    code = tmp_path / "run.py"
    code.write_text(PROCESSES.format(tests=str(ROOT / "tests"), folder=tmp_path / "shared", accumulate=4, model="Noisy", cut=-1))

    def nodes(folders: list[Path], port: int) -> list[subprocess.CompletedProcess]:
        node = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1"]
        started = [subprocess.Popen([*node, f"--node_rank={rank}", f"--master_port={port}", str(code), str(folder)], text=True,
                                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
                   for rank, folder in enumerate(folders)]  # fmt: skip
        return [(one.communicate(timeout=240)[0], one.returncode) for one in started]

    assert [code for _, code in nodes([tmp_path / "shared"] * 2, 29611)] == [0, 0]
    train(Noisy(), wide, tmp_path / "one", replace(CONFIG, accumulate=4), log=quiet)
    assert np.abs(losses(tmp_path / "shared") - losses(tmp_path / "one")).max() < 1e-5
    ended = nodes([tmp_path / "shared", tmp_path / "elsewhere"], 29612)
    assert all(code != 0 for _, code in ended)
    assert any("found different checkpoints" in said and "steps 8, 0" in said for said, _ in ended)


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


def test_a_memory_that_holds_no_optimizer_says_that_smaller_pieces_are_no_help(tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(UserError, match=r"does not hold the weights, their gradients[\s\S]*9 GiB\.\n  next step: train fewer weights"):
        train(Silent(), wide, tmp_path, CONFIG, log=quiet)


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
def run(folder):
    first = []
    def slow(i):
        if not first:
            first.append(i)
            os.write(1, f"{{i // 2}}\\n".encode())  # the step that it begins with
        time.sleep(0.004)
        return wide(i)
    return train(Noisy(), slow, folder, replace(CONFIG, steps=24, checkpoint_minutes=5e-4, keep=2), log=lambda line: None)
for line in sys.stdin:  # one line, one process that trains until it is done or killed
    child = os.fork()
    if not child:
        os.write(1, f"{{os.getpid()}}\\n".encode())
        run(line.strip())
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(1, f"ended {{code}}\\n".encode())
"""


def killed(tmp_path: Path, kills: int) -> None:
    """Kill a training at random instants, begin it again until it is done: each begins where the last checkpoint is, and the last weights
    are those of a run that nobody disturbed."""
    rng, struck, runs, went_on = np.random.default_rng(0), 0, 0, 0
    parent = subprocess.Popen([sys.executable, "-c", FORKED.format(tests=str(ROOT / "tests"))], text=True, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip

    def go(folder: Path, after: float | None) -> tuple[int, list[int], float]:
        """(exit code, the step it began with, seconds)."""
        parent.stdin.write(f"{folder}\n")
        parent.stdin.flush()
        child, began = int(parent.stdout.readline()), time.monotonic()
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        said = []
        while not (line := parent.stdout.readline()).startswith("ended"):
            said.append(int(line))
        return int(line.split()[1]), said, time.monotonic() - began

    code, said, took = go(tmp_path / "whole", None)
    assert (code, said) == (0, [0])
    whole = checkpoint.need(tmp_path / "whole")
    while struck < kills:
        folder, saved = tmp_path / f"run{runs}", 0
        runs += 1
        while True:
            code, said, _ = go(folder, rng.uniform(0, took) if struck < kills else None)
            assert said in ([], [saved]), "it begins with the step after its last checkpoint"
            went_on += said not in ([], [0])
            last = checkpoint.latest(folder, pytest.fail)
            saved = checkpoint.about(last)["step"] if last else 0
            if code == 0:
                break
            assert code == -signal.SIGKILL
            struck += 1
        assert saved == 24
        assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(last), strict=True))
        assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == list(range(1, 25))
    parent.stdin.close()
    parent.wait()
    assert went_on > kills / 4


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


def test_no_session_of_any_length_is_overrun_whatever_saves_and_measurements_take(tmp_path, monkeypatch):
    """50 sessions: steps of 20 s, measurements of 150 s every third step, saves of 90 s, of which nothing is known before."""
    seconds, rng, over, model = [0.0], np.random.default_rng(0), [], Toy()
    monkeypatch.setattr(clock, "now", lambda: seconds[0])

    def slow(i):
        seconds[0] += 10.0
        return batches(i)

    def measure(model):
        seconds[0] += 150.0
        return {"held_out": 1.0}

    save = checkpoint.save

    def slow_save(*arguments, **options):
        seconds[0] += 90.0
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", slow_save)
    config, ended = replace(CONFIG, steps=400, measure_every=3), []
    for _ in range(50):
        end = seconds[0] + rng.uniform(700, 3000)
        monkeypatch.setenv(clock.END, repr(end))
        ended.append(train(model, slow, tmp_path, config, log=quiet, clock=lambda: seconds[0], measure=measure))
        over.append(seconds[0] - end)
        seconds[0] = max(seconds[0], end)
        if ended[-1].finished:
            break
    assert len(ended) > 5 and max(over) <= 60
    assert all(later.resumed_from == one.step > one.resumed_from for one, later in zip(ended, ended[1:], strict=False))


def test_a_float16_run_leaves_out_steps_that_overflow_and_no_more_than_that(tmp_path):
    from types import SimpleNamespace

    from repro.training import step

    said = []
    one = step.Step(Silent(), None, wide, SimpleNamespace(num_processes=1, process_index=0), CONFIG, None, said.append)
    fine, overflow = {"loss": 1.0, "grad_norm": 2.0}, {"loss": 1.0, "grad_norm": float("inf")}
    assert one.finite(fine, 0, scaled=True) == fine
    for number in range(step.SKIPS):
        assert one.finite(overflow, number, scaled=True) == {"skipped": 1.0}
    assert said[0] == "step 1 is left out: float16 overflowed, and the loss scale was lowered"
    with pytest.raises(UserError, match=f"grad_norm is inf at step 31, and so were {step.SKIPS} steps before it"):
        one.finite(overflow, 30, scaled=True)
    one.finite(fine, 31, scaled=True)
    assert one.finite(overflow, 32, scaled=True) == {"skipped": 1.0}, "counted anew"
    with pytest.raises(UserError, match="grad_norm is inf at step 34"):
        one.finite(overflow, 33, scaled=False)
    with pytest.raises(UserError, match="the loss is nan at step 35"):  # gradients can be numbers all the same
        one.finite({"loss": float("nan"), "grad_norm": 2.0}, 34, scaled=False)


def test_processes_that_would_have_no_sample_are_refused():
    from types import SimpleNamespace

    from repro.training import step

    last = SimpleNamespace(num_processes=4, process_index=3)
    shared = lambda **sizes: step.Step(Silent(), None, wide, last, replace(CONFIG, **sizes), None)
    with pytest.raises(UserError, match="4 processes cannot share 1 x 2 samples"):
        shared(batch_size=2, accumulate=1)
    assert shared(batch_size=2, accumulate=2).mine and shared(batch_size=1, accumulate=4).mine


def test_one_process_at_a_time_trains_into_a_folder(tmp_path):
    path, = configs(tmp_path, ["a"])
    with checkpoint.alone(tmp_path / "a.lock") as free:
        assert free
        with pytest.raises(UserError, match="another process trains into this folder"):
            launch.train_from_config(path)


def test_a_run_on_two_processes_that_fails_says_why(tmp_path):
    lines = []
    with pytest.raises(UserError) as error:
        launch.jobs(configs(tmp_path, ["a"]), log=lines.append, processes=2)
    assert "next step" in str(error.value) and str(tmp_path / "store") in str(error.value) and "torch/distributed" not in str(error.value)


def configs(tmp_path: Path, names: list[str]) -> list[Path]:
    return [launch.write_config(tmp_path / f"{name}.json", name=name, store=tmp_path / "store", folder=tmp_path / name) for name in names]


ENDS = """import json, sys, pathlib
job = json.load(open(sys.argv[1]))
folder = pathlib.Path(job["folder"])
folder.mkdir(exist_ok=True)
reason = {0}
(folder / "summary.json").write_text(json.dumps({{"reason": reason, "finished": reason == "all steps done", "step": 7}}))"""


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
    launch.jobs(paths, slots=1, log=lines.append, processes=1)
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env in called] == ["0", "0"], "fewer at a time than there are GPUs"
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
    said = []
    fake_popen(monkeypatch, 0, ENDS.format(repr(OWN_BUDGET)))
    launch.jobs(configs(tmp_path, ["a"]), log=said.append)
    assert said == [f"[WARN] a is not finished: {OWN_BUDGET} at step 7; what follows takes it as it is"]
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
