"""New columns of a store: what they leave alone, and kills, damage, errors, other keys and second processes on the way."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from repro import clock
from repro.data.columns import replace_columns
from repro.data.episodes import Episode, Store, StoreWriter
from repro.machine import UserError

PICTURE, LENGTHS = "observation.images.static", (6, 1, 9, 4, 7, 3)


@pytest.fixture
def store(tmp_path):
    """A store of six episodes, 30 frames."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "store", 30, {"source": "test"}) as writer:
        for i, length in enumerate(LENGTHS):
            columns = {
                PICTURE: rng.integers(0, 256, (length, 16, 12, 3), dtype=np.uint8),
                "action": rng.uniform(-1, 1, (length, 7)).astype(np.float32),
                "words": [f"frame {k}" for k in range(length)],
            }
            writer.add(Episode(f"task {i % 2}", columns, {"task_id": "t", "number": i}))
    return tmp_path / "store"


def found(episode: Episode, scale: float = 2.0) -> dict:
    """What the detector of these tests finds: numbers, words and a crop."""
    frames = episode.columns[PICTURE]
    return {
        "gaze.box": (frames[:, 0, :4, 0] * scale).astype(np.float32), "gaze.source": [f"{episode.task} {scale}"] * len(frames),
        "gaze.crop": np.ascontiguousarray(frames[:, 4:12, 2:8]),
    }  # fmt: skip


class Counting:
    """`found`, counting its calls; fails at episode `fail`."""

    def __init__(self, scale: float = 2.0, fail: int | None = None, error: Exception | None = None):
        self.scale, self.fail, self.error, self.calls = scale, fail, error or RuntimeError("out of ideas"), []

    def __call__(self, episode: Episode) -> dict:
        if episode.info["number"] == self.fail:
            raise self.error
        self.calls.append(episode.info["number"])
        return found(episode, self.scale)


def content(folder: Path) -> tuple:
    """What must not depend on how a store came about: hash, metadata, data."""
    texts = [(folder / "meta" / f"{name}.json").read_text() for name in ("info", "stats", "repro")]
    store = Store(folder)
    return store.hash, texts, [store.table(i).to_pydict() for i in range(len(store))]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def journalled(folder: Path) -> set[int]:
    return {int(path.name[:6]) for path in folder.with_name("store.columns").glob("*/*.arrow")}


def half_done(folder: Path, scale: float = 2.0, key: str = "key") -> None:
    """A run that ended in an error at episode 3."""
    with pytest.raises(UserError, match="Episode 3"):
        replace_columns(folder, Counting(scale, fail=3), [PICTURE], key)


# --- what comes out -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "key"])
def test_the_rest_is_kept(store, key):
    before = Store(store)
    action = [before.read(i).columns["action"] for i in range(6)]
    png = [before.read(i, [PICTURE], decode=False).columns for i in range(6)]
    after = replace_columns(
        store, lambda e: {"words": [e.task] * len(e.columns["action"]), "gaze.box": e.columns["action"][:, :4] * 2}, ["action"], key
    )
    for i in range(6):
        np.testing.assert_array_equal(after.read(i).columns["gaze.box"], action[i][:, :4] * 2)
        assert after.read(i).columns["words"] == [f"task {i % 2}"] * LENGTHS[i] and after.read(i, [PICTURE], decode=False).columns == png[i]
    assert after.hash != before.hash and after.meta["source"] == "test" and after.columns == [PICTURE, "action", "words", "gaze.box"]
    for name in (PICTURE, "action"):
        for kind, value in before.stats[name].items():
            np.testing.assert_array_equal(after.stats[name][kind], value)
    whole = after.column("gaze.box").astype(np.float64)
    np.testing.assert_allclose(after.stats["gaze.box"]["std"], whole.std(0))
    assert names(store) == ["store"]


def test_it_is_the_store_that_a_writer_would_have_written(store, tmp_path):
    old = Store(store)
    with StoreWriter(tmp_path / "written", 30, old.meta) as writer:
        for i in range(len(old)):
            episode = old.read(i)
            writer.add(Episode(episode.task, episode.columns | found(episode), episode.info))
    after, written = replace_columns(store, found, [PICTURE], "key"), Store(tmp_path / "written")
    assert after.hash == written.hash and after.info == written.info
    assert after.info["features"]["gaze.crop"] == {"dtype": "image", "shape": [8, 6, 3], "names": ["height", "width", "channels"]}
    assert {**after.meta, "columns": 0} == {**written.meta, "columns": 0}
    assert json.loads((store / "meta/stats.json").read_text()) == json.loads((tmp_path / "written/meta/stats.json").read_text())
    episodes = [pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet") for folder in (store, tmp_path / "written")]
    assert episodes[0].equals(episodes[1])  # digests and statistics of each episode among them
    for i in range(6):
        assert after.table(i).equals(written.table(i))
        np.testing.assert_array_equal(after.read(i).columns["gaze.crop"], after.read(i).columns[PICTURE][:, 4:12, 2:8])
    note = json.loads(pq.read_schema(next((store / "data").glob("*/*"))).metadata[b"huggingface"])["info"]["features"]
    assert note["gaze.crop"] == {"_type": "Image"} and note["gaze.box"]["length"] == 4


def test_the_same_columns_twice(store):
    first = replace_columns(store, Counting(2.0), [PICTURE], "one")
    boxes = first.column("gaze.box")
    second = replace_columns(store, Counting(3.0), [PICTURE], "two")
    assert first.hash != second.hash and second.columns == first.columns
    np.testing.assert_array_equal(second.column("gaze.box") * 2, boxes * 3)
    assert [(one["key"], one["names"]) for one in second.meta["columns"]] == [("two", ["gaze.box", "gaze.source", "gaze.crop"])]
    again, lines = Counting(3.0), []
    assert replace_columns(store, again, [PICTURE], "two", lines.append).hash == second.hash
    assert again.calls == [] and "already" in lines[0] and names(store) == ["store"]
    assert replace_columns(store, Counting(2.0), [PICTURE], "one").hash == first.hash
    third = replace_columns(store, lambda e: {"far": np.zeros(len(e.columns["action"]))}, ["action"])
    assert [one["key"] for one in third.meta["columns"]] == ["one", None]


def test_threads_find_the_same(store, tmp_path):
    shutil.copytree(store, tmp_path / "other")
    one = replace_columns(store, Counting(), [PICTURE], "key")
    assert replace_columns(tmp_path / "other", Counting(), [PICTURE], "key", workers=3).hash == one.hash


# --- kills --------------------------------------------------------------------------------------------------------------------------

RUN = """
import sys, time, numpy as np
from repro.data.columns import replace_columns
sys.path.insert(0, sys.argv[2])
from test_columns import PICTURE, found
def slow(episode):
    time.sleep(0.06)
    print(episode.info["number"], flush=True)
    return found(episode)
print("ready", flush=True)
replace_columns(sys.argv[1], slow, [PICTURE], "key", lambda line: print("said", line, flush=True))
print("done", flush=True)
"""


def test_a_killed_run_goes_on(store, tmp_path):
    shutil.copytree(store, tmp_path / "whole")
    replace_columns(tmp_path / "whole", found, [PICTURE], "key")
    rng, kills, calls, done = random.Random(5), 0, [], False
    while not done:
        finished = journalled(store)
        process = subprocess.Popen([sys.executable, "-c", RUN, str(store), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        if kills < 6:
            time.sleep(rng.uniform(0.02, 0.16))
            process.send_signal(signal.SIGKILL)
            kills += 1
        lines = process.stdout.read().split("\n")
        process.wait()
        numbers, done = {int(line) for line in lines if line.isdigit()}, "done" in lines
        assert not numbers & finished, "an episode that was finished is computed again"
        assert not finished or not lines[0] or re.match(r"said resumed: \d+ of 30 frames were done", lines[0])
        calls += numbers
    assert kills >= 3 and set(calls) == set(range(6)) and len(calls) <= 6 + kills
    assert content(store) == content(tmp_path / "whole") and names(store) == ["store", "whole"]


EVERYWHERE = """
import os, shutil, signal, sys
from pathlib import Path
import pyarrow as pa
from repro.data.columns import replace_columns
from repro.data.episodes import StoreWriter
sys.path.insert(0, sys.argv[2])
from test_columns import PICTURE, found
folder, every, n = Path(sys.argv[1]), int(sys.argv[3]), 1

def killed_before_step(n):
    steps = 0
    def counted(function):
        def step(*args, **kwargs):
            nonlocal steps
            steps += 1
            if steps == n:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return step
    for place, name in [(os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (shutil, "rmtree"), (Path, "write_bytes"),
                        (Path, "write_text"), (Path, "mkdir"), (StoreWriter, "add"), (StoreWriter, "_finish")]:
        setattr(place, name, counted(getattr(place, name)))
    replace_columns(folder / str(n) / "store", found, [PICTURE], "key")

while True:
    shutil.copytree(folder / "store", folder / str(n) / "store")
    child = os.fork()
    if child == 0:
        killed_before_step(n)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    n += every
print(n)
"""


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.full)])
def test_a_kill_at_any_step_leaves_the_old_store_or_the_new(store, tmp_path, every):
    """Killed before the first, sixth, .. step that touches the disk, each time from a fresh start; then run again."""
    command = [sys.executable, "-c", EVERYWHERE, str(tmp_path), str(Path(__file__).parent), str(every)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    steps, old, seen = int(run.stdout), Store(store).hash, set()
    shutil.copytree(store, tmp_path / "whole")
    new = content(replace_columns(tmp_path / "whole", found, [PICTURE], "key").folder)
    for n in range(1, steps, every):
        folder, again = tmp_path / str(n) / "store", Counting()
        finished, killed = journalled(folder), Store(folder)
        assert killed.hash in (old, new[0]) and len([killed.read(i) for i in range(6)]) == 6
        replace_columns(folder, again, [PICTURE], "key")
        assert set(again.calls) == (set() if killed.hash == new[0] else set(range(6)) - finished)
        assert content(folder) == new and names(folder) == ["store"], f"step {n}"
        seen.add(killed.hash)
    assert steps > 40 and seen == {old, new[0]}


# --- damage, errors, other keys, other stores, other processes ----------------------------------------------------------------------


def test_an_error_names_the_episode_and_keeps_what_is_done(store):
    old, lines, broken = Store(store).hash, [], Counting(fail=3)
    with pytest.raises(UserError, match=r"(?s)Episode 3 of .*'task 1'.*RuntimeError: out of ideas.*3 of 6 episodes"):
        replace_columns(store, broken, [PICTURE], "key")
    assert Store(store).hash == old and journalled(store) == {0, 1, 2} and names(store) == ["store", "store.columns"]
    again = Counting()
    replace_columns(store, again, [PICTURE], "key", lines.append)
    assert again.calls == [3, 4, 5] and lines[0] == "resumed: 16 of 30 frames were done"
    with pytest.raises(UserError, match="Episode 3"):
        replace_columns(store, Counting(fail=3), [PICTURE])  # without a key nothing is kept
    assert names(store) == ["store"]


def test_an_interrupt_passes_through(store):
    with pytest.raises(KeyboardInterrupt):
        replace_columns(store, Counting(fail=3, error=KeyboardInterrupt()), [PICTURE], "key")
    assert journalled(store) == {0, 1, 2} and names(store) == ["store", "store.columns"]


def test_a_full_disk(store, monkeypatch):
    old, write = Store(store).hash, Path.write_bytes

    def full(path, data):
        if path.name == "000002.part":
            write(path, data[:100])
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="(?s)Episode 2 .*No space left"):
        replace_columns(store, found, [PICTURE], "key")
    assert Store(store).hash == old and journalled(store) == {0, 1} and not list(store.parent.glob("*/*/*.part"))
    monkeypatch.undo()
    add = StoreWriter.add
    monkeypatch.setattr(StoreWriter, "add", lambda self, e: add(self, e) if self.episodes < 4 else full(store.parent / "000002.part", b""))
    with pytest.raises(OSError, match="No space left"):  # in the last pass
        replace_columns(store, found, [PICTURE], "key")
    assert Store(store).hash == old and journalled(store) == set(range(6)) and not (store.parent / "store.part").exists()
    monkeypatch.undo()
    again = Counting()
    replace_columns(store, again, [PICTURE], "key")
    assert again.calls == [] and "gaze.crop" in Store(store).columns


def test_columns_that_differ_are_told_at_once(store):
    with pytest.raises(UserError, match="(?s)Episode 2 .*differ from those of the other episodes"):
        replace_columns(store, lambda e: {"size": np.zeros((len(e.columns["action"]), 1 + e.info["number"] // 2))}, ["action"], "key")
    half_done(store, key="mixed")
    with pytest.raises(UserError, match="(?s)Episode 3 .*differ"):  # from what an earlier run has kept, too
        replace_columns(store, lambda e: {"gaze.box": np.zeros(len(e.columns[PICTURE]))}, [PICTURE], "mixed")
    with pytest.raises(UserError, match="(?s)Episode 0 .*another length"):
        replace_columns(store, lambda e: {"gaze.box": np.zeros(3)}, ["action"], "short")
    with pytest.raises(UserError, match="has no column gaze.box"):
        replace_columns(store, found, ["gaze.box"], "none")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:300] + b"?" + data[301:]])
def test_a_damaged_journal_file_is_computed_again(store, damage):
    half_done(store)
    path = next(store.parent.glob("store.columns/*/000001-*.arrow"))
    path.write_bytes(damage(path.read_bytes()))
    again, lines = Counting(), []
    after = replace_columns(store, again, [PICTURE], "key", lines.append)
    assert again.calls == [1, 3, 4, 5] and "000001" in lines[0] and "damaged: episode 1" in lines[0] and "15 of 30" in lines[1]
    np.testing.assert_array_equal(after.read(1).columns["gaze.crop"], after.read(1).columns[PICTURE][:, 4:12, 2:8])


def test_another_key_begins_anew_and_leaves_the_first_its_journal(store):
    half_done(store, key="one")
    other, lines = Counting(3.0), []
    replace_columns(store, other, [PICTURE], "two", lines.append)
    assert other.calls == list(range(6)) and "keeps 3 of 6 episodes made with another key (one)" in lines[0]
    assert journalled(store) == {0, 1, 2}
    first = Counting(2.0)
    after = replace_columns(store, first, [PICTURE], "one")  # its columns were replaced meanwhile, but not what it reads
    assert first.calls == [3, 4, 5] and names(store) == ["store"]
    assert after.read(0).columns["gaze.source"][0] == after.read(5).columns["gaze.source"][0].replace("1", "0", 1) == "task 0 2.0"


def test_a_changed_store_begins_anew(store):
    half_done(store)
    replace_columns(store, lambda e: {PICTURE: 255 - e.columns[PICTURE]}, [PICTURE])
    again, lines = Counting(), []
    after = replace_columns(store, again, [PICTURE], "key", lines.append)
    assert again.calls == list(range(6)) and "other episodes" in lines[0] and "deleted" in lines[0] and names(store) == ["store"]
    np.testing.assert_array_equal(after.read(0).columns["gaze.crop"], after.read(0).columns[PICTURE][:, 4:12, 2:8])


def test_a_second_process_is_refused(store):
    inside, leave = threading.Event(), threading.Event()

    def waits(episode):
        inside.set()
        leave.wait(20)
        return found(episode)

    first = threading.Thread(target=replace_columns, args=(store, waits, [PICTURE], "key"))
    first.start()
    assert inside.wait(20)
    for key in ("key", "other", None):
        with pytest.raises(UserError, match=f"(?s)Another process.*held by process {os.getpid()}"):
            replace_columns(store, found, [PICTURE], key)
    leave.set()
    first.join()
    assert "gaze.box" in Store(store).columns and names(store) == ["store"]


def test_the_lock_of_a_killed_process_is_free(store):
    store.with_name("store.lock").write_text("1")  # process 1 lives, but it holds no lock
    replace_columns(store, found, [PICTURE], "key")
    assert names(store) == ["store"]


# --- the session's clock --------------------------------------------------------------------------------------------------------------


def test_a_run_tells_its_progress(store, monkeypatch):
    seconds = [0.0]
    monkeypatch.setattr(clock, "now", lambda: seconds[0])

    def slow(episode):
        seconds[0] += 40
        return found(episode)

    lines = []
    replace_columns(store, slow, [PICTURE], "key", lines.append)
    told = [line.split(" | ")[0] for line in lines]
    lengths = np.cumsum([episode.length for episode in Store(store).episodes])
    assert told == [*(f"gaze: {done}/30 frames" for done in lengths), "writing store: 30/30 frames"]
    assert "40 s to go" not in lines[-2] and lines[-2].split(" | ")[2] == "took 4 min"


@pytest.mark.parametrize("workers", [1, 3])
def test_out_of_time_it_keeps_what_is_done_and_goes_on(store, tmp_path, monkeypatch, workers):
    """The clock stands still but for 40 s an episode: the session of 150 s and its reserve has room for three of them."""
    shutil.copytree(store, tmp_path / "whole")
    whole, before = replace_columns(tmp_path / "whole", found, [PICTURE], "key"), Store(store).hash
    seconds, calls = [0.0], []
    monkeypatch.setattr(clock, "now", lambda: seconds[0])
    monkeypatch.setenv(clock.END, "150")

    def slow(episode):
        seconds[0] += 40
        calls.append(episode.info["number"])
        return found(episode)

    with pytest.raises(clock.OutOfTime):
        replace_columns(store, slow, [PICTURE], "key", workers=workers)
    over = 40 * (workers - 1)  # threads that work side by side, each of which this clock counts
    assert Store(store).hash == before and journalled(store) == set(calls) and seconds[0] <= 150 + over
    assert len(calls) == 3 or workers > 1, "not begun: a fourth, which would end after the session"
    monkeypatch.setenv(clock.END, str(seconds[0] + clock.RESERVE + 41 * (6 - len(calls))))
    with pytest.raises(clock.OutOfTime):  # all are found, and there is no time to rewrite the store
        monkeypatch.setattr(clock, "check", lambda needed=0.0, check=clock.check: check(0.0 if needed else 60.0))
        replace_columns(store, slow, [PICTURE], "key", workers=1)
    monkeypatch.undo()
    rest = Counting()
    assert replace_columns(store, rest, [PICTURE], "key").hash == whole.hash and not set(rest.calls) & set(calls)
    assert content(store) == content(tmp_path / "whole")


def test_out_of_time_in_the_midst_of_an_episode_is_no_error(store, monkeypatch):
    monkeypatch.setattr(clock, "now", lambda: 0.0)
    monkeypatch.setenv(clock.END, "1000")

    def detector(episode):
        if episode.info["number"] == 2:
            monkeypatch.setenv(clock.END, "1")
            clock.check()
        return found(episode)

    with pytest.raises(clock.OutOfTime):
        replace_columns(store, detector, [PICTURE], "key")
    assert journalled(store) == {0, 1}
