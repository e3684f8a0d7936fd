"""Batches: pure in (seed, step), every sample once an epoch, chunks and prepared pictures right."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from repro.data import batches as batches_of
from repro.data.batches import Batches, chunk_rows, last_of_run, pictures
from repro.data.columns import replace_columns
from repro.data.episodes import Episode, Store, StoreWriter
from repro.machine import UserError

LENGTHS = (5, 9, 3, 7)


@pytest.fixture
def store(tmp_path):
    with StoreWriter(tmp_path / "store", 30) as writer:
        for i, length in enumerate(LENGTHS):
            rows = np.arange(length) + 100 * i
            columns = {
                "observation.images.static": np.broadcast_to(rows[:, None, None, None] % 251, (length, 6, 6, 3)).astype(np.uint8),
                "observation.images.wrist": np.broadcast_to(rows[:, None, None, None] % 241, (length, 4, 4, 3)).astype(np.uint8),
                "observation.state": np.repeat(rows[:, None], 15, 1).astype(np.float32),
                "action": np.repeat(rows[:, None], 7, 1).astype(np.float32),
                "info.frame": np.delete(np.arange(length + 1), 4) if i == 1 else np.arange(length),  # episode 1 lost a frame
            }
            writer.add(Episode(f"sentence {i}", columns, {"task_id": f"task_{i % 2}", "scene": "D"}))
    return Store(tmp_path / "store")


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def test_a_batch_depends_on_seed_and_step_alone(store):
    one, two = Batches(store, 4, 5, seed=3), Batches(store, 4, 5, seed=3)
    late = two(17)
    for step in (0, 5, 6, 7, 100):
        one(step)
    assert same(one(17), late) and same(one(17), late)
    assert not same(Batches(store, 4, 5, seed=4)(17), late)


@pytest.mark.parametrize("batch_size", [4, 7, 50])
def test_every_sample_once_an_epoch(store, batch_size):
    batches = Batches(store, batch_size, 5)
    assert len(batches) == sum(LENGTHS)
    rows = np.concatenate([batches(step)["row"] for step in range(30)])
    epochs = rows[: len(rows) // len(batches) * len(batches)].reshape(-1, len(batches))
    assert (np.sort(epochs, 1) == np.arange(len(batches))).all()
    assert len(epochs) < 2 or (epochs[0] != epochs[1]).any()


def test_chunks_stop_at_the_end_and_at_a_lost_frame(store):
    batches = Batches(store, 4, 4)
    assert batches.sample(1)["action"][:, 0].tolist() == [1, 2, 3, 4]
    assert batches.sample(3)["action"][:, 0].tolist() == [3, 4, 4, 4] and batches.sample(3)["action.valid"].tolist() == [1, 1, 0, 0]
    assert batches.sample(7)["action"][:, 0].tolist() == [102, 103, 103, 103]  # frame 104 of episode 1 is missing
    assert batches.sample(9)["action"][:, 0].tolist() == [104, 105, 106, 107]
    assert batches.sample(9)["frame"] == 4 and batches.sample(9)["instruction"] == "sentence 1" and batches.sample(9)["task_id"] == "task_1"
    last = last_of_run(np.array([0, 1, 2, 0, 1]), np.array([0, 0, 0, 1, 1]))
    assert last.tolist() == [2, 2, 2, 4, 4] and chunk_rows(np.array([1, 3]), last, 3).tolist() == [[1, 2, 2], [3, 4, 4]]


def test_only_chooses_episodes(store):
    batches = Batches(store, 4, 5, only=lambda episode: episode.task_id == "task_1")
    assert len(batches) == 9 + 7
    assert set(np.concatenate([batches(step)["episode"] for step in range(4)])) == {1, 3}
    with pytest.raises(UserError, match="No episode"):
        Batches(store, 4, 5, only=lambda episode: False)


def test_prepared_pictures_belong_to_their_rows_and_are_made_once(store):
    calls = []

    def prepare(step):
        calls.append(threading.get_ident())
        return {"canvas": step["observation.images.static"] + 1, "row": step["observation.state"][:1]}

    batches = Batches(store, 8, 5, prepare=prepare, key="plus one")
    assert len(calls) == sum(LENGTHS) + 1  # one more for the shapes
    batch = batches(0)
    assert batch["canvas"].shape == (8, 6, 6, 3) and batch["canvas"].dtype == np.uint8
    assert (batch["canvas"][:, 0, 0, 0] == batch["state"][:, 0] % 251 + 1).all()
    Batches(store, 8, 5, prepare=prepare, key="plus one")
    assert len(calls) == sum(LENGTHS) + 1
    Batches(store, 8, 5, prepare=prepare, key="another")
    assert len(calls) == 2 * (sum(LENGTHS) + 1)
    assert Batches(store, 8, 5, prepare=pictures)(0)["wrist"].shape == (8, 4, 4, 3)
    with pytest.raises(ValueError, match="key"):
        Batches(store, 8, 5, prepare=lambda step: {})


def test_a_stale_cache_is_noticed(store):
    lines = []
    Batches(store, 8, 5, prepare=pictures, log=lines.append)
    cache = store.folder.with_name("store.prepared")
    (old,) = cache.glob("*/about.json")
    assert json.loads(old.read_text())["key"] == "pictures" and lines.pop().startswith("prepared pictures: 24/24 frames") and not lines
    replace_columns(store.folder, lambda e: {"observation.state": e.columns["observation.state"] + 1}, ["observation.state"])
    Batches(Store(store.folder), 8, 5, prepare=pictures, log=lines.append)
    assert "earlier version" in lines[0] and not old.exists() and len(list(cache.glob("*/about.json"))) == 1


def test_a_failing_prepare_leaves_no_cache(store):
    with pytest.raises(ValueError, match="for row"):
        Batches(store, 8, 5, prepare=lambda step: {"x": np.zeros(4 if step["observation.state"][0] == 202 else 3)}, key="uneven")
    assert not list(store.folder.with_name("store.prepared").glob("*/"))


def test_prepared_pictures_go_on_where_a_run_was_stopped(store, monkeypatch):
    monkeypatch.setattr(batches_of, "KEPT", 1)
    asked, stop = [], [17]

    def prepare(step):
        asked.append(float(step["observation.state"][0]))
        if len(asked) == stop[0]:
            raise KeyboardInterrupt
        return {"row": step["observation.state"][:1]}

    with pytest.raises(KeyboardInterrupt):
        Batches(store, 8, 5, prepare=prepare, key="stopped", workers=1)
    cache = store.folder.with_name("store.prepared")
    part, = cache.glob("*.part")
    done = sorted(map(int, (part / "episodes.done").read_text().split()))
    assert done == [0, 1], "the third was in the middle"
    first, stop[0] = set(asked), -1
    asked.clear()
    found = Batches(store, 8, 5, prepare=prepare, key="stopped", workers=1)
    kept = {float(i) for e in done for i in store.read(e, ["observation.state"]).columns["observation.state"][:, 0]}
    assert not kept & set(asked[1:]) and kept < first, "what was finished is not made again"
    whole = Batches(store, 8, 5, prepare=lambda step: {"row": step["observation.state"][:1]}, key="undisturbed", workers=1)
    assert all((found(step)["row"] == whole(step)["row"]).all() for step in range(6)) and not list(cache.glob("*.part"))
    assert not list(cache.glob("*/episodes.done"))


def test_an_error_that_is_not_of_the_arrays_keeps_them(store, monkeypatch):
    monkeypatch.setattr(batches_of, "KEPT", 1)
    asked, torn = [], [True]

    def prepare(step):
        asked.append(int(step["observation.state"][0]))
        if torn[0] and asked[-1] == 202:
            raise UserError("a torn picture")
        return {"first": step["observation.state"][:1]}

    with pytest.raises(UserError, match="a torn picture"):
        Batches(store, 8, 5, prepare=prepare, key="torn", workers=1)
    torn[0] = False
    asked.clear()
    found = Batches(store, 24, 5, prepare=prepare, key="torn", workers=1)(0)
    assert sorted(asked[1:]) == [200, 201, 202, *range(300, 307)], "what was made before stays"
    assert (found["first"] == found["state"][:, :1]).all()


def test_pictures_that_do_not_fit_on_the_disk_are_refused_first(store, monkeypatch):
    said = []
    monkeypatch.setattr(batches_of.shutil, "disk_usage", lambda place: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="too small for the prepared"):
        Batches(store, 8, 5, prepare=pictures, log=said.append)
    assert not list(store.folder.with_name("store.prepared").glob("*/"))


def test_gaze_boxes_are_given_or_asked_for(store):
    assert "gaze.box" not in Batches(store, 4, 5)(0)
    with pytest.raises(UserError, match="gaze boxes first"):
        Batches(store, 4, 5, gaze=True)

    def annotate(episode):
        n = len(episode.columns["action"])
        return {"gaze.box": np.full((n, 4), 0.25, np.float32), "gaze.source": ["fallback" if i == 0 else "truth" for i in range(n)]}

    batch = Batches(replace_columns(store.folder, annotate, ["action"]), 24, 5, gaze=True)(0)
    assert batch["gaze.box"].shape == (24, 4) and (batch["gaze.valid"] == (batch["frame"] > 0)).all()
