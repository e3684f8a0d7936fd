"""The session's clock: when it ends, what is left of it, and a line every 30 s for people and for logs.

    clock.begin(minutes=660)                                   # once, by whoever begins the session (kaggle/session.py)
    progress = clock.Progress("gaze", len(frames), "frames")   # in each long stage, in this process or one that it starts
    for i, frame in enumerate(frames):
        clock.check()                                          # OutOfTime before the session ends; what is done is on disk
        ...
        progress(i + 1)

The end stands in the environment (REPRO_SESSION_END, seconds since 1970), so every process that is started knows it. Without it there is
no end: on a laptop nothing stops by itself.
"""

import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

END = "REPRO_SESSION_END"
RESERVE = 20.0  # seconds before the end at which a stage stops at the latest: what it still has to write, and the summary
LINE_EVERY = 30.0  # seconds
PLAN_AFTER = 120.0  # seconds of a stage after which its speed is known well enough to say whether it will be done in this session

now: Callable[[], float] = time.time  # seconds since 1970; tests put another clock here


class OutOfTime(Exception):
    """The session ends before the work does. What is done is on disk; the same call, in the next session, goes on from there."""


def begin(minutes: float) -> None:
    """This session ends in so many minutes, for this process and all that it starts; 0: no end."""
    if minutes:
        os.environ[END] = repr(now() + 60 * minutes)
    else:
        os.environ.pop(END, None)


def left() -> float:
    """Seconds until the session ends; inf where it has no end."""
    return float(os.environ[END]) - now() if os.environ.get(END) else math.inf


def check(needed: float = 0.0) -> None:
    """OutOfTime where the session does not last for `needed` seconds more and RESERVE."""
    if left() < needed + RESERVE:
        raise OutOfTime("the session's time is over")


def in_words(seconds: float) -> str:
    """"45 s", "12 min", "3.4 h"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def peak_gib() -> dict[str, float]:
    """The most that this process has taken so far, in GiB: "memory", resident; where it uses one, "GPU memory" as well."""
    torch = sys.modules.get("torch")
    status = Path("/proc/self/status")  # Linux: getrusage also counts what the process that started this one had taken by then
    if status.is_file() and (told := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        found = {"memory": int(told[1]) / 2**20}
    else:
        found = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)}
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["GPU memory"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def peak_memory() -> str:
    """"memory 1.2 GiB", or with GPUs "GPU memory 9.1 of 14.6 GiB, memory ..": `peak_gib` in words."""
    peak = peak_gib()
    parts = [f"memory {peak['memory']:.1f} GiB"]
    if "GPU memory" in peak:
        cuda = sys.modules["torch"].cuda
        whole = cuda.get_device_properties(cuda.current_device()).total_memory
        parts.insert(0, f"GPU memory {peak['GPU memory']:.1f} of {whole / 2**30:.1f} GiB")
    return ", ".join(parts)


class Progress:
    """A line every 30 s, and one at the end: how far, how fast, how long still, memory, minutes left in the session.

    `progress(done, "loss 0.123")`; `total` and `done` count `unit`; `before` of them were done in earlier sessions and do not count for the
    speed. Once, after the first two minutes, it says whether the whole will be done in this session.
    """

    def __init__(self, name: str, total: int, unit: str, log: Callable[[str], None] = print, before: int = 0, every: float = LINE_EVERY):
        self.name, self.total, self.unit, self.log, self.before, self.every = name, total, unit, log, before, every
        self.began = self.said = now()
        self.planned = math.isinf(left())

    def __call__(self, done: int, more: str = "") -> None:
        """Say it where a line is due."""
        if not self.due(done):
            return
        time_, last = now(), done >= self.total
        self.said = time_
        took, speed = time_ - self.began, self.speed(done)
        parts = [f"{self.name}: {done:,}/{self.total:,} {self.unit}", *([more] if more else [])]
        if speed:
            parts.append(f"{speed:.1f} {self.unit}/s" if speed >= 0.1 else f"{60 * speed:.1f} {self.unit}/min")
        parts.append(f"took {in_words(took)}" if last else f"{in_words(self.needs(done))} to go" if speed else "")
        parts.append(peak_memory())
        if not math.isinf(left()):
            parts.append(f"{max(0.0, left()) / 60:.0f} min of the session left")
        self.log(" | ".join(part for part in parts if part))
        if not self.planned and not last and speed and took >= PLAN_AFTER:
            self.planned = True
            self._plan(done)

    def due(self, done: int) -> bool:
        """Whether a line would be said now."""
        return done >= self.total or now() - self.said >= self.every

    def speed(self, done: int) -> float:
        """`unit` a second in this session so far; 0.0 before the first."""
        took = now() - self.began
        return (done - self.before) / took if took > 0 else 0.0

    def needs(self, done: int) -> float:
        """Seconds for the rest at this speed; inf before the first."""
        speed = self.speed(done)
        return (self.total - done) / speed if speed else math.inf

    def _plan(self, done: int) -> None:
        needs = self.needs(done)
        if needs + RESERVE < left():
            self.log(f"{self.name}: needs about {in_words(needs)} more, and will be done in this session ({in_words(left())} left)")
            return
        reached = int(done + (left() - RESERVE) * self.speed(done))
        sessions = math.ceil((needs - left()) / max(1.0, left() + now() - self.began))
        self.log(f"{self.name}: needs about {in_words(needs)} more, and the session has {in_words(left())}: it will stop near "
                 f"{reached:,} of {self.total:,} {self.unit} and go on in the next session (about {sessions} more of this length)")
