"""What the session's clock does to commands, records, budgets, and the stages that tests/test_kills.py does not cut.

Run: pytest tests/test_stops.py
"""

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import calvin_folder
import fake_pairs
import numpy as np
import pytest
from test_remote_zip import QUICK, Server
from walkers import Walker, launch

from repro import change_experiments, cli, clock, looking, machine, run_records, scoring, seeds
from repro.data import calvin_remote, libero_hdf5
from repro.data.episodes import Episode, Store, StoreWriter
from repro.evaluation import gaze, kept, offline
from repro.evaluation.floors import RandomPolicy
from repro.gaze.colour import Colour
from repro.machine import UserError
from repro.profiles import SMOKE
from repro.sims import aerial, calvin_layout

SILENT = {"log": lambda line: None}


@pytest.fixture
def session(monkeypatch):
    """`session(checks)`: from now on a session that is over after so many looks at the clock; without a number, one without an end."""
    looks = [0]

    def now() -> float:
        looks[0] += 1
        return 1e6 + looks[0]

    def begin(checks: int | None = None) -> None:
        if checks is None:
            monkeypatch.delenv(clock.END, raising=False)
        else:
            monkeypatch.setenv(clock.END, repr(1e6 + looks[0] + checks + clock.RESERVE))

    monkeypatch.setattr(clock, "now", now)
    monkeypatch.setenv(clock.END, "")
    return begin


def until_done(session, stage, first: int, more: int) -> int:
    """Call stage() in sessions of so many looks at the clock, each longer than the last, until it is done; how many it took."""
    for count in range(1, 100):
        session(first + more * (count - 1))
        try:
            stage()
            return count
        except clock.OutOfTime:
            continue
    raise AssertionError("never done")


# --- commands, budgets, records ---------------------------------------------------------------------------------------------------------


def test_a_command_that_is_out_of_time_says_so_and_succeeds(tmp_path, monkeypatch, capsys):
    calvin_folder.make(tmp_path / "raw")
    monkeypatch.setenv(clock.END, "1.0")
    command = ["calvin", "import", str(tmp_path / "raw"), str(tmp_path / "store"), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["repro", *command])
    cli.main()  # no exit code but 0
    assert capsys.readouterr().out == "the session's time is over; what is done is kept: the same command goes on from there\n"
    assert not (tmp_path / "store").exists()
    monkeypatch.delenv(clock.END)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code and len(Store(tmp_path / "store")) == 3


def test_a_budget_of_rows_over_seeds_ends_with_the_session(tmp_path, monkeypatch):
    assert seeds.OutOfTime is clock.OutOfTime
    now = [1e6]
    monkeypatch.setattr(clock, "now", lambda: now[0])
    monkeypatch.delenv(clock.END, raising=False)
    free, short = seeds.Clock(0), seeds.Clock(5)
    assert free.left() == 0 and 4.8 < short.left() <= 5, "without a session, their own budget; 0: none"
    monkeypatch.setenv(clock.END, repr(1e6 + 120 + clock.RESERVE))
    assert free.left() == pytest.approx(2) and short.left() == pytest.approx(2), "the session ends first"
    asked = []
    timed = seeds.Timed(SimpleNamespace(act=lambda seen, told: asked.append(told)), free.check)
    timed.act([], ["a"])
    now[0] += 121
    with pytest.raises(clock.OutOfTime):
        timed.act([], ["b"])
    assert asked == [["a"]]

    def made(settings, work, run, limit, log):
        clock.check()

    system = SimpleNamespace(place=lambda work, run: tmp_path / "place", digest=lambda settings, work: "x", made=made)
    said = []
    assert not seeds.do(system, None, tmp_path, seeds.Run("row", 0), log=said.append)
    assert said == ["row:0:0: the session's time is over; to be continued"] and not (tmp_path / "place" / "done.json").exists()


def test_a_run_that_another_process_is_at_is_left_to_it(tmp_path):
    system, said = SimpleNamespace(place=lambda work, run: tmp_path / "place", digest=lambda settings, work: "x"), []
    with machine.alone(tmp_path / "place" / ".lock"):
        assert not seeds.do(system, None, tmp_path, seeds.Run("row", 0), log=said.append)
    assert said == ["row:0:0: another process is at it"]


RECORDS = """
import json, sys, numpy as np
from repro import run_records
metric = {"value": 1.0, "n": 1, "low": 1.0, "high": 1.0}
about = dict(benchmark="b", data="d", data_hash="h", config={}, seed=0, metrics={"m": metric}, minutes=1, simulator="s", renderer="r")
one = run_records.record("x", "y", **about)
taken = np.ones(2**26)
print(json.dumps([one, run_records.record("x", "y", **about)]))
"""


def test_a_record_holds_the_peak_of_memory_and_one_without_it_stays_readable(tmp_path):
    said = subprocess.run([sys.executable, "-c", RECORDS], capture_output=True, text=True, check=True).stdout
    record, after = json.loads(said)
    peaks = [one["peak_memory_gib"]["memory"] for one in (record, after)]
    assert 0.02 < peaks[0] and peaks[0] + 0.4 < peaks[1] < peaks[0] + 0.8, "half a GiB more was taken"
    path = run_records.save(record, tmp_path)
    assert run_records.load(path)["peak_memory_gib"] == record["peak_memory_gib"]
    earlier = {key: value for key, value in record.items() if key != "peak_memory_gib"}
    path.write_text(json.dumps(earlier))
    assert run_records.load(path) == earlier
    path.write_text(json.dumps({**earlier, "peak_memory_gib": 3}))
    with pytest.raises(UserError, match="peak_memory_gib"):
        run_records.load(path)


# --- stages -----------------------------------------------------------------------------------------------------------------------------


def test_a_partial_import_goes_on_in_the_next_session(tmp_path, session, monkeypatch):
    monkeypatch.setattr(calvin_remote, "SPARE", 0)
    root = tmp_path / "raw" / "task_X"
    for split, count, at in (("training", 8, 1000), ("validation", 3, 5000)):
        spans = [(at + 20 * i, at + 20 * i + 3) for i in range(count)]
        calvin_folder.make(root, split, segments=spans, notes=[(a, b, f"task_{i % 3}", "do it") for i, (a, b) in enumerate(spans)])
    server, commits = Server(), []
    try:
        url = server.zip("/task_X.zip", root)
        fetch = lambda place, **options: calvin_remote.fetch(url, place, 8, **{**SILENT, **QUICK, **options})
        session()
        whole = fetch(tmp_path / "whole")
        sent, server.sent = server.sent, 0
        true = calvin_remote.ResumableWriter.commit
        monkeypatch.setattr(calvin_remote.ResumableWriter, "commit", lambda self: commits.append(self.episodes) or true(self))
        count = until_done(session, lambda: fetch(tmp_path / "cut"), 12, 4)
        falls = [a > b for a, b in zip(commits, commits[1:], strict=False)]
        assert count >= 3 and sum(falls) <= 1, "validation, then training, which may begin below: nothing that was fetched is lost"
        for split, store in whole.items():
            cut = Store(tmp_path / "cut" / split)
            same = lambda meta: {key: value for key, value in meta.items() if key != "created"}
            assert cut.hash == store.hash and same(cut.meta) == same(store.meta) and cut.digests == store.digests
        assert server.sent < 2 * sent, "members are not fetched again"
    finally:
        server.http.shutdown()
        server.http.server_close()


EMBEDDED = {
    "play table": lambda place: calvin_layout.write(place, ("D",), ("turn_on_led",), 2, 1, workers=1, **SILENT),
    "aerial": lambda place: aerial.write(place, 3, 1, 1, **SILENT),
    "grocery": lambda place: libero_hdf5.write(place, "grocery", range(1), 2, "wide", image_size=32, **SILENT),
}


@pytest.mark.parametrize("name", list(EMBEDDED))
def test_embedded_data_are_whole_or_absent(tmp_path, session, name):
    files = lambda place: {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    session()
    EMBEDDED[name](tmp_path / "whole")
    session(2)
    with pytest.raises(clock.OutOfTime):
        EMBEDDED[name](tmp_path / "cut")
    assert not list((tmp_path / "cut").rglob("*.*")), "nothing that could be taken for data"
    session()
    EMBEDDED[name](tmp_path / "cut")
    one, two = (files(tmp_path / place) for place in ("whole", "cut"))
    assert one.keys() == two.keys() and (name == "grocery" or one == two), "HDF5 notes the time; its content is tested in test_libero"
    session(0)
    with pytest.raises(clock.OutOfTime):
        EMBEDDED[name](tmp_path / "never")
    assert not list((tmp_path / "never").rglob("*.*"))


def test_gaze_quality_goes_on_with_the_sets_that_lack(tmp_path, session, monkeypatch):
    monkeypatch.setitem(gaze.SIZES, "smoke", (2, 1))
    monkeypatch.setattr(gaze, "OPTIONS", (gaze.NONE, gaze.ALL))
    told = run_records.provenance()
    commit = ["1234"]
    monkeypatch.setattr(run_records, "provenance", lambda: {**told, "commit": commit[0]})
    seen = []

    class Counting(Colour):
        def __call__(self, images, nouns):
            seen.append(len(images))
            return super().__call__(images, nouns)

    run = lambda place: gaze.run(place, "smoke", [Counting()], **SILENT)
    numbers = lambda made: [(r["id"], r["metrics"]) for r in made]
    session()
    whole, all_seen = numbers(run(tmp_path / "whole")), sum(seen)
    seen.clear()
    with pytest.raises(clock.OutOfTime):
        session(30)
        run(tmp_path / "cut")
    first = sorted((tmp_path / "cut" / "runs").iterdir())
    assert 0 < len(first) < len(whole), "one of the two sets is measured"
    session()
    times = {path: path.stat().st_mtime_ns for path in first}
    assert numbers(run(tmp_path / "cut")) == whole and sum(seen) < 2 * all_seen
    assert times == {path: path.stat().st_mtime_ns for path in first}, "what was measured is left as it is"
    assert (tmp_path / "cut" / "report.md").read_text() == (tmp_path / "whole" / "report.md").read_text()
    seen.clear()
    run(tmp_path / "cut")
    assert not seen
    commit[0] = "5678"
    assert numbers(run(tmp_path / "cut")) == whole and sum(seen) == all_seen, "another commit: measured anew"
    assert {r["commit"] for r in map(run_records.load, (tmp_path / "cut" / "runs").iterdir())} == {"5678"}


@dataclass
class Pointer:
    """Stands for a change agent: points where the pictures are brightest, writes what it is told."""

    config: object
    _asked: list
    key: str = "mean"

    def prepare_many(self, before, after):
        return {"mean": after.mean((1, 2, 3)).astype(np.float32)}

    def answers(self, ready, told):
        self._asked.append(told)
        return {"vector": np.stack([ready["mean"] / 255] * 3, 1), "changed": np.array([bool(one) for one in told])}

    def fitted(self, told):
        return told

    def write(self, ready, beams):
        self._asked.append("write")
        return [f"mean {value:.1f}" for value in ready["mean"]]


def test_the_change_agents_answers_are_kept(tmp_path, session):
    pairs = fake_pairs.store(tmp_path / "store", 80, size=16)
    model = Pointer(SimpleNamespace(caption_weight=1.0), [])
    session()
    whole, text, _ = change_experiments.answered(model, pairs, tmp_path / "whole")
    needed = len(model._asked)
    assert needed == 4 * 3 and list(whole) == ["given", "none", "generated"] and whole["generated"].told == text
    model._asked.clear()
    sessions = until_done(session, lambda: change_experiments.answered(model, pairs, tmp_path / "cut"), 15, 1)
    assert sessions >= 2 and len(model._asked) <= needed + 3 * sessions
    model._asked.clear()
    session()
    again, said, took = change_experiments.answered(model, pairs, tmp_path / "cut")
    assert not model._asked and said == text and all(seconds >= 0 for seconds in took.values())
    for mode, one in whole.items():
        np.testing.assert_array_equal(one.vectors, again[mode].vectors)
        np.testing.assert_array_equal(one.changed, again[mode].changed)
        assert one.told == again[mode].told and again[mode].maps is None
    change_experiments.answered(Pointer(SimpleNamespace(caption_weight=0.5), model._asked), pairs, tmp_path / "cut")
    assert len(model._asked) == needed, "another model's answers are its own"


def test_what_is_kept_is_of_the_same_question_and_whole(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"a": np.arange(3), "words": np.array(["one", "three"])}

    one, seconds = kept.once(tmp_path / "deep" / "x.npz", "asked", make)
    two, again = kept.once(tmp_path / "deep" / "x.npz", "asked", make)
    assert len(calls) == 1 and one.keys() == two.keys() and two["words"].tolist() == ["one", "three"] and seconds == again
    kept.once(tmp_path / "deep" / "x.npz", "another question", make)
    assert len(calls) == 2
    (tmp_path / "deep" / "x.npz").write_bytes((tmp_path / "deep" / "x.npz").read_bytes()[:-40])
    kept.once(tmp_path / "deep" / "x.npz", "another question", make)
    assert len(calls) == 3 and [path.name for path in (tmp_path / "deep").iterdir()] == ["x.npz"]


def test_looking_and_scoring_end_before_the_session(tmp_path, session):
    with StoreWriter(tmp_path / "store", 30) as writer:
        for i in range(4):
            columns = {"observation.state": np.zeros((6, 15), np.float32), "action": np.full((6, 7), 0.1 * i, np.float32)}
            writer.add(Episode("do it", columns))
    store = Store(tmp_path / "store")
    floor, asked = offline.ConstantAction(store, 5), []
    policy = SimpleNamespace(act=lambda seen, told: asked.append(1) or floor.act(seen, told))
    session(8)
    with pytest.raises(clock.OutOfTime):
        offline.action_error(policy, store, **SILENT)
    assert 0 < len(asked) < 4
    session()
    assert offline.action_error(policy, store, **SILENT) == offline.action_error(floor, store, **SILENT)
    session(0)
    with pytest.raises(clock.OutOfTime):
        looking.attention_of(None, [{"task": "x"}], **SILENT)


def test_rollouts_of_the_experiment_go_on_and_their_minutes_are_of_all_sessions(tmp_path, session, monkeypatch):
    with StoreWriter(tmp_path / "store" / "training", 30, {"name": "walks"}) as writer:
        writer.add(Episode("go up", {"action": np.zeros((2, 7), np.float32)}))
    rng = np.random.default_rng(0)
    starts = {"walks": [({"at": rng.normal(size=3).tolist()}, ("up", "east")) for _ in range(8)]}
    how, calls = launch("Walker", options={}), []

    class Counting(RandomPolicy):
        def act(self, observations, instructions):
            calls.append(1)
            time.sleep(0.02)
            return super().act(observations, instructions)

    monkeypatch.setattr(scoring, "where", lambda *arguments: (how, starts, {"up": "go up", "east": "go east"}))
    monkeypatch.setattr(scoring, "policies", lambda models, work, told, seed: models)
    monkeypatch.setattr(scoring, "Worker", lambda how: contextlib.nullcontext(SimpleNamespace(about={"renderer": "none"})))
    true = scoring.chains.evaluate
    monkeypatch.setattr(scoring.chains, "evaluate", lambda policy, how, starts, folder, limit, *rest, **options: true(
        policy, Walker, starts, folder, 10, 2, *rest[1:], **{**options, "workers": 0}))  # fmt: skip
    roll = lambda work: scoring.roll_out(SMOKE, tmp_path, {work: Counting(3)}, 0, log=lambda line: None)
    session()
    (whole,) = roll("whole")
    needed = len(calls)
    calls.clear()
    with pytest.raises(clock.OutOfTime):
        session(14)
        roll("cut")
    first = len(calls)
    session()
    (record,) = roll("cut")
    assert record["metrics"] == whole["metrics"] and 0 < first < needed and len(calls) < needed + 10
    spent = scoring.chains.spent(tmp_path / "outcomes" / "walks" / "cut")
    assert spent >= 0.02 * needed - 0.1 and record["minutes"] == round(spent / 60, 2), "of both sessions"
    calls.clear()
    assert roll("cut")[0]["metrics"] == whole["metrics"] and not calls, "what is finished is not done again"
