"""Simulators in processes of their own: the wire, losses, kills. Run: pytest tests/test_worker.py"""

import contextlib
import os
import random
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
from walkers import launch

from repro.evaluation import floors as F
from repro.evaluation.chains import evaluate
from repro.machine import UserError
from repro.sims import worker as W
from repro.sims.base import tabletop
from repro.sims.tabletop import tasks

QUIET = {"log": lambda line: None}


def plan(n):
    """n play-table chains of two tasks."""
    return [(state, chain[:2]) for state, chain in tasks.chains(n, 5, seed=4)]


def test_wire_brings_back_what_was_sent():
    rng = np.random.default_rng(0)
    sent = {"a": [1, 2.5, None, True, "ä"], "images": rng.integers(0, 255, (3, 4, 3)).astype(np.uint8), "empty": np.zeros((0, 7), "f4"),
            "nested": [{"x": np.arange(5, dtype=np.int64)}, np.float64(0.1)], "flags": np.array([True, False]), "scalar": np.array(3.5)}
    frame = W.pack(sent)
    magic, first, second = W.HEAD.unpack(frame[: W.HEAD.size])
    got = W.unpack(frame[W.HEAD.size : W.HEAD.size + first], frame[W.HEAD.size + first :])
    assert magic == W.MAGIC and len(frame) == W.HEAD.size + first + second and got["a"] == sent["a"] and got["nested"][1] == 0.1
    for mine, other in ((sent[k], got[k]) for k in ("images", "empty", "flags", "scalar")):
        assert mine.dtype == other.dtype and mine.shape == other.shape and (mine == other).all()
    assert (got["nested"][0]["x"] == np.arange(5)).all()


@pytest.mark.parametrize("value", [np.array([object()]), {1: "no string"}, {"__array__": 1}, np.array(["text"])])
def test_wire_refuses_what_it_cannot_carry(value):
    with pytest.raises(TypeError):
        W.pack(value)


@pytest.mark.parametrize("head", [b'{"__array__": ["|O", [1]]}', b'{"__array__": ["<f8", [2]]}', b'{"__array__": ["<f8", [-1]]}', b"1"])
def test_wire_refuses_frames_that_do_not_agree(head):
    with pytest.raises(ValueError):
        W.unpack(head, b"12345678")


def test_worker_needs_numpy_alone(tmp_path):
    """The worker's side imports nothing of this environment but numpy: everything else is hidden from it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'cv2', 'yaml', 'pyarrow', 'PIL', 'click', 'psutil', 'matplotlib', 'scipy', 'transformers'):\n"
        "    sys.modules[name] = None\n")
    state = tasks.initial_state("D", tasks.symbolic_for("open_drawer", np.random.default_rng(0)), 1)
    start = replace(tabletop(), environment={"PYTHONPATH": str(tmp_path)})
    with W.Worker(start) as worker:
        worker.call("reset", state, render=False)
        assert worker.call("done", "open_drawer") is False and worker.about["simulator"] == "tabletop"
        with pytest.raises(UserError, match="cv2"):
            worker.call("observe")  # pictures of the play table are drawn with OpenCV: the hiding works


def test_worker_that_prints_and_asks_is_understood(tmp_path):
    state = [({"at": [0.0, 0.0, 0.0]}, ("east",))]
    outcome, = evaluate(F.ExpertPolicy(), launch("Chatty"), state, tmp_path, instructions={"east": "go east"}, workers=1, **QUIET)
    assert outcome.success == (True,)
    with W.Worker(launch("Chatty")) as worker:
        worker.call("reset", {"at": [0, 0, 0]})
        worker.call("step", np.zeros(7), render=False)
        assert "hello from a simulator" in worker.last_words()


def test_what_goes_wrong_in_a_worker_is_said(tmp_path):
    with W.Worker(launch("Broken")) as worker:
        worker.call("reset", {"at": [0, 0, 0]})
        with pytest.raises(UserError, match="ZeroDivisionError: a defect"):
            worker.call("step", np.zeros(7))
        assert worker.call("observe")["observation.state"].shape == (3,), "it lives on"
    with pytest.raises(UserError, match="no play table scene 'Q'"):
        W.Worker(tabletop("Q"))
    with pytest.raises(UserError, match="cannot make the simulator walkers:Nobody"):
        W.Worker(launch("Nobody"))
    with pytest.raises(UserError, match="interpreter cannot be started"):
        W.Worker(launch("Walker", python=str(tmp_path / "python")))
    noise = tmp_path / "noisy"
    noise.write_text("#!/bin/sh\necho this is not a frame at all; sleep 5\n")
    noise.chmod(0o755)
    with pytest.raises(W.WorkerLost, match="no frame"):
        W.Worker(launch("Walker", python=str(noise)))


def test_dying_and_hanging_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(W, "RESTARTS", 2)
    state, said = [({"at": [0.0, 0.0, 0.0]}, ("east",))], []
    with pytest.raises(UserError, match="lost 3 times on the same chain") as caught:
        evaluate(F.ExpertPolicy(), launch("Dying"), state, tmp_path / "a", instructions={"east": "x"}, workers=1, log=said.append)
    assert "exit code 3" in str(caught.value) and "out of memory, say" in str(caught.value) and "started again" in said[0]
    with pytest.raises(UserError, match="hung: no answer for 1 s"):
        evaluate(F.ExpertPolicy(), launch("Hanging"), state, tmp_path / "b", instructions={"east": "x"}, workers=1, patience=1.0, **QUIET)


def test_a_healthy_worker_is_heard_however_late_its_answer_is_read():
    """While another worker was waited for, its time went by; a wide answer comes in parts, and between two of them nothing is there."""
    with W.Worker(launch("Wide")) as worker:
        for _ in range(3):
            worker.ask("call", "observe", [], {})
            worker.deadline = time.monotonic() - 1
            assert worker.answer()["observation.images.static"].shape == (800, 800, 3)


def children() -> list[psutil.Process]:
    """Live workers of this process."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "worker.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.full)])
def test_random_kills_change_nothing(tmp_path, kills):
    """Workers are killed (or stopped, as if hung) at random moments: every chain is there once, with the outcome of a quiet run."""
    chains, rng, done, others = plan(12), random.Random(0), threading.Event(), set(children())
    quiet = evaluate(F.RandomPolicy(1), tabletop(), chains, tmp_path / "quiet", max_steps=40, simulators=4, **QUIET)
    struck = []

    def strike():
        while not done.wait(rng.uniform(0.05, 0.35)) and len(struck) < kills:
            for victim in rng.sample(found, 1) if (found := sorted(set(children()) - others, key=lambda p: p.pid)) else []:
                os.kill(victim.pid, signal.SIGSTOP if len(struck) % 8 == 3 else signal.SIGKILL)  # stopped: as if hung
                struck.append(victim.pid)

    killer, started = threading.Thread(target=strike), time.monotonic()
    killer.start()
    try:
        part = 0
        while len(struck) < kills and time.monotonic() - started < 300 or part == 0:  # as many evaluations as the kills need
            part += 1
            outcomes = evaluate(F.RandomPolicy(1), tabletop(), chains, tmp_path / str(part), max_steps=40, simulators=4, workers=2,
                                patience=8.0, **QUIET)
            assert outcomes == quiet
    finally:
        done.set()
        killer.join()
    assert len(struck) == kills and not set(children()) - others
