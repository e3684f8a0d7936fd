"""The session's clock: its end, what is left, and the lines of long stages."""

import subprocess
import sys

import pytest

from repro import clock


@pytest.fixture
def time(monkeypatch):
    """A clock that goes on only when told: time[0] seconds."""
    seconds = [1000.0]
    monkeypatch.setattr(clock, "now", lambda: seconds[0])
    monkeypatch.delenv(clock.END, raising=False)
    yield seconds
    clock.begin(0)


def test_a_session_without_an_end_never_stops(time):
    time[0] = 1e12
    clock.check(needed=1e9)
    assert clock.left() == float("inf")


def test_the_end_is_known_in_every_process_that_is_started(monkeypatch):
    monkeypatch.delenv(clock.END, raising=False)
    clock.begin(10)
    try:
        code = "from repro import clock; print(clock.left())"
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert 560 < float(said.stdout) <= 600
    finally:
        clock.begin(0)


def test_a_stage_stops_while_there_is_room_for_what_it_needs(time):
    clock.begin(1)
    time[0] += 60 - clock.RESERVE - 5
    clock.check(needed=5)
    with pytest.raises(clock.OutOfTime):
        clock.check(needed=5.1)


def test_a_line_comes_every_thirty_seconds_and_at_the_end(time):
    lines = []
    clock.begin(60)
    progress = clock.Progress("gaze", 1000, "frames", lines.append, before=100)
    for done in range(101, 1001):
        time[0] += 0.1
        progress(done, "found 93 %" if done % 2 == 0 else "")
    assert len(lines) == 3  # at 30 s, 60 s, and 90 s: the end
    assert lines[0].startswith("gaze: 400/1,000 frames | found 93 % | 10.0 frames/s | 60 s to go | memory ")
    assert lines[0].endswith("GiB | 60 min of the session left")
    assert "took 90 s" in lines[-1]


@pytest.mark.parametrize(("total", "says"), [
    (2000, "will be done in this session"),
    (100_000, "will stop near 35,800 of 100,000 frames and go on in the next session (about 2 more of this length)"),
])  # fmt: skip
def test_after_two_minutes_it_says_whether_the_session_is_long_enough(time, total, says):
    lines = []
    clock.begin(60)
    progress = clock.Progress("import", total, "frames", lines.append)
    for second in range(1, 151):
        time[0] += 1
        progress(10 * second)
    plan = [line for line in lines if "needs about" in line]
    assert len(plan) == 1 and says in plan[0]
