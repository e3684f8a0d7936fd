"""The store: LeRobot v3.0 layout, statistics, hash, whole or absent."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from repro.data import episodes as module
from repro.data.episodes import Episode, Store, StoreWriter
from repro.data.resumable import ResumableWriter
from repro.machine import UserError


def episode(seed: int, length: int = 6, task: str = "open the drawer") -> Episode:
    rng = np.random.default_rng(seed)
    columns = {
        "observation.images.static": rng.integers(0, 256, (length, 16, 12, 3), dtype=np.uint8),
        "observation.state": rng.normal(size=(length, 15)).astype(np.float32),
        "action": rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        "info.frame": np.arange(length) + 100 * seed,
        "words": [f"frame {i}" for i in range(length)],
    }
    return Episode(task, columns, {"task_id": "open_drawer", "scene": "D", "extra": [1, 2]})


def write(folder, lengths=(6, 1, 9), first: int = 0) -> list[Episode]:
    made = [episode(first + i, length, f"task {i % 2}") for i, length in enumerate(lengths)]
    with StoreWriter(folder, 30, {"source": "test"}) as writer:
        for one in made:
            writer.add(one)
    return made


def test_what_is_written_is_read(tmp_path):
    made = write(tmp_path / "store")
    store = Store(tmp_path / "store")
    assert len(store) == 3 and store.frames == 16 and store.fps == 30 and store.meta["source"] == "test"
    assert [(e.length, e.start, e.task, e.task_id, e.scene) for e in store.episodes][2] == (9, 7, "task 0", "open_drawer", "D")
    for i, one in enumerate(made):
        back = store.read(i)
        assert back.task == one.task and back.info == one.info
        for name, values in one.columns.items():
            np.testing.assert_array_equal(back.columns[name], values)
            assert not isinstance(values, np.ndarray) or back.columns[name].dtype == values.dtype
    np.testing.assert_array_equal(store.column("action"), np.concatenate([one.columns["action"] for one in made]))
    assert list(store.read(0, ["action"]).columns) == ["action"]
    assert store.read(0, ["observation.images.static"], decode=False).columns["observation.images.static"][0].startswith(b"\x89PNG")


def test_layout_is_lerobot_v3(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_BYTES", 4000)  # forces several files
    made = write(tmp_path / "store", (6, 5, 9, 4))
    info = json.loads((tmp_path / "store/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["total_frames"] == 24 and info["splits"] == {"train": "0:4"}
    picture = info["features"]["observation.images.static"]
    assert picture == {"dtype": "image", "shape": [16, 12, 3], "names": ["height", "width", "channels"]}
    rows = pq.read_table(tmp_path / "store/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert len({row["data/file_index"] for row in rows}) > 1
    seen = 0
    for file in sorted((tmp_path / "store/data").glob("*/*.parquet")):
        data = pq.ParquetFile(file)
        note = json.loads(data.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        assert note["observation.images.static"] == {"_type": "Image"}
        assert set(note) == set(data.schema_arrow.names) == set(info["features"])
        for group in range(data.num_row_groups):  # one row group an episode
            table = data.read_row_group(group)
            assert set(table["episode_index"].to_pylist()) == {seen}
            assert table["frame_index"].to_pylist() == list(range(len(made[seen].columns["action"])))
            assert table["index"].to_pylist()[0] == rows[seen]["dataset_from_index"]
            np.testing.assert_allclose(table["timestamp"].to_numpy(), np.arange(len(table)) / 30, rtol=1e-6)
            seen += 1
    assert seen == 4
    tasks = pq.read_table(tmp_path / "store/meta/tasks.parquet")
    assert tasks.to_pylist() == [{"task_index": 0, "task": "task 0"}, {"task_index": 1, "task": "task 1"}]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_a_file_ends_after_so_many_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_EPISODES", 2)
    made = write(tmp_path / "store", (6, 5, 9, 4, 1))
    groups = [pq.ParquetFile(file).num_row_groups for file in sorted((tmp_path / "store/data").glob("*/*.parquet"))]
    store = Store(tmp_path / "store")
    assert groups == [2, 2, 1] and all((store.read(i).columns["action"] == one.columns["action"]).all() for i, one in enumerate(made))


def test_statistics_are_numpys(tmp_path):
    made = write(tmp_path / "store", (6, 1, 40, 3))
    stats = Store(tmp_path / "store").stats
    whole = np.concatenate([one.columns["action"] for one in made]).astype(np.float64)
    for key, expected in {"min": whole.min(0), "max": whole.max(0), "mean": whole.mean(0), "std": whole.std(0)}.items():
        np.testing.assert_allclose(stats["action"][key], expected, rtol=1e-9, atol=1e-12)
    pixels = np.concatenate([one.columns["observation.images.static"][:, ::8, ::8].reshape(-1, 3) for one in made]) / 255
    np.testing.assert_allclose(stats["observation.images.static"]["mean"][:, 0, 0], pixels.mean(0))
    np.testing.assert_allclose(stats["observation.images.static"]["std"][:, 0, 0], pixels.std(0))
    assert stats["action"]["count"].tolist() == [50] and "words" not in stats


def test_hash_follows_the_content(tmp_path):
    write(tmp_path / "one")
    time.sleep(0.01)
    write(tmp_path / "two")
    write(tmp_path / "other", first=1)
    one, two, other = (Store(tmp_path / name).hash for name in ("one", "two", "other"))
    assert one == two != other


def test_bad_input_is_refused(tmp_path):
    write(tmp_path / "store")
    with pytest.raises(UserError, match="exists"):
        StoreWriter(tmp_path / "store", 30)
    with pytest.raises(UserError, match="gaze.box"):
        Store(tmp_path / "store").read(0, ["gaze.box"])
    with pytest.raises(UserError, match="info.json is missing"):
        Store(tmp_path)
    with pytest.raises(UserError, match="No episode"), StoreWriter(tmp_path / "new", 30):
        pass
    with pytest.raises(UserError, match="differs in its columns"), StoreWriter(tmp_path / "new", 30) as writer:
        writer.add(episode(0))
        writer.add(Episode("x", {"action": np.zeros((3, 7), np.float32)}))
    with pytest.raises(UserError, match="one length"), StoreWriter(tmp_path / "new", 30) as writer:
        writer.add(Episode("x", {"action": np.zeros((3, 7)), "state": np.zeros((4, 7))}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def other_pictures(path):
    """The same file, but the pictures of its second episode are none."""
    data = pq.ParquetFile(path)
    groups = [data.read_row_group(i).to_pylist() for i in range(data.num_row_groups)]
    with pq.ParquetWriter(path, data.schema_arrow) as writer:
        for i, rows in enumerate(groups):
            picture = lambda row, i=i: {"bytes": b"none" if i == 1 else row["observation.images.static"]["bytes"], "path": None}
            rows = [row | {"observation.images.static": picture(row)} for row in rows]
            writer.write_table(pa.Table.from_pylist(rows, schema=data.schema_arrow))


DAMAGE = [  # (file, what happens to it, what is read, what is said)
    ("meta/info.json", cut, lambda store: store(), "JSONDecodeError"),
    ("meta/repro.json", cut, lambda store: store(), "JSONDecodeError"),
    ("meta/repro.json", lambda path: path.write_text("{}"), lambda store: store(), "KeyError: 'hash'"),
    ("meta/stats.json", cut, lambda store: store(), "JSONDecodeError"),
    (module.EPISODES_PATH, cut, lambda store: store(), "Arrow"),
    (module.EPISODES_PATH, lambda path: path.unlink(), lambda store: store(), "FileNotFoundError"),
    ("data/chunk-000/file-000.parquet", cut, lambda store: store().read(1), r"\(episode 1\)(.|\n)*Arrow"),
    ("data/chunk-000/file-000.parquet", cut, lambda store: store().column("action"), "Arrow"),
    ("data/chunk-000/file-000.parquet", other_pictures, lambda store: store().read(1), r"\(episode 1\)(.|\n)*torn picture"),
]


@pytest.mark.parametrize("name, spoil, read, said", DAMAGE)
def test_damage_names_the_file_and_what_to_do(tmp_path, name, spoil, read, said):
    write(tmp_path / "store")
    spoil(tmp_path / "store" / name)
    with pytest.raises(UserError, match=f"{name}(.|\\n)*({said})(.|\\n)*import it again"):
        read(lambda: Store(tmp_path / "store"))


LOOP = """
import sys, numpy as np
from repro.data.episodes import Episode, StoreWriter
folder, n = sys.argv[1], 0
print("ready", flush=True)
while True:
    with StoreWriter(folder, 30, {"n": n}, replace=True) as writer:
        for i in range(5):
            writer.add(Episode("x", {"action": np.full((50, 7), n, np.float32), "picture": np.full((4, 32, 32, 3), n % 256, np.uint8)[:1].repeat(50, 0)}))
    n += 1
"""  # noqa: E501


def test_a_killed_writer_leaves_the_store_whole(tmp_path):
    folder, seen = tmp_path / "store", 0
    for turn in range(6):
        process = subprocess.Popen([sys.executable, "-c", LOOP, str(folder)], stdout=subprocess.PIPE)
        process.stdout.readline()
        end = time.monotonic() + 60
        while not folder.exists() and time.monotonic() < end:  # the first store takes as long as the machine is busy
            time.sleep(0.01)
        time.sleep(0.15 + 0.037 * turn)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (folder.exists() or folder.with_name("store.old").exists()) and (store := Store(folder)):
            seen += 1
            assert len(store) == 5
            values = [store.read(i).columns["action"] for i in range(5)]
            assert all(value.shape == (50, 7) and (value == store.meta["n"]).all() for value in values)
    assert seen == 6, f"only {seen} of 6 kills came after a first store was whole"


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    write(tmp_path / "store")
    os.rename(tmp_path / "store", tmp_path / "store.old")
    assert len(Store(tmp_path / "store")) == 3 and not (tmp_path / "store.old").exists()


# --- stopped by a signal ------------------------------------------------------------------------------------------------------------


def resumable(folder, count: int = 8, stop_at: int = -1) -> Store:
    """`count` episodes, gone on with where the last call stopped. stop_at: raise between this episode and its note."""
    with ResumableWriter(folder, 30, {}, {"count": count}) as writer:
        for i in range(writer.note.get("tried", 0), count):
            writer.add(episode(i, 5 + i % 3))
            if i == stop_at:
                raise KeyboardInterrupt
            writer.note = {"tried": i + 1}
    return Store(folder)


def rows_of(store: Store) -> list:
    return [store.column("action").tolist(), store.column("info.frame").tolist(), *(store.table(i).to_pylist() for i in range(len(store)))]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("place", [(pq.ParquetWriter, "write_table"), (ResumableWriter, "_write"), (StoreWriter, "_close_file"),
                                   (os, "replace"), (os, "fsync"), (module, "merge"), (ResumableWriter, "commit")],
                         ids=lambda place: place[1])  # fmt: skip
def test_a_stop_in_the_midst_of_an_episode_shifts_nothing(tmp_path, monkeypatch, place, after):
    monkeypatch.setattr(module, "FILE_EPISODES", 3)
    whole, (owner, name) = resumable(tmp_path / "whole"), place
    true, stops = getattr(owner, name), 0
    for call in (1, 2, 3, 4, 5, 25, 30):  # it raises in so many different calls
        folder, left = tmp_path / f"cut{call}", [call]

        def stopped(*arguments, left=left, **options):
            left[0] -= 1
            if not left[0] and not after:
                raise KeyboardInterrupt
            made = true(*arguments, **options)
            if not left[0]:
                raise KeyboardInterrupt
            return made

        with monkeypatch.context() as cut:
            cut.setattr(owner, name, stopped)
            try:
                resumable(folder)
            except KeyboardInterrupt:
                stops += 1
        store = Store(folder) if (folder / "meta").is_dir() else resumable(folder)
        assert store.hash == whole.hash and rows_of(store) == rows_of(whole), f"{name} {call}"
    assert stops >= 2, "nothing was stopped"


def test_a_stop_between_an_episode_and_its_note_does_not_add_it_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FILE_EPISODES", 3)
    whole = resumable(tmp_path / "whole")
    for i in (0, 1, 4, 7):
        with pytest.raises(KeyboardInterrupt):
            resumable(tmp_path / f"cut{i}", stop_at=i)
        store = resumable(tmp_path / f"cut{i}")
        assert len(store) == 8 and store.hash == whole.hash and rows_of(store) == rows_of(whole)


def test_a_store_with_other_rows_than_it_says_is_refused(tmp_path):
    write(tmp_path / "store")
    info = json.loads((tmp_path / "store/meta/info.json").read_text())
    (tmp_path / "store/meta/info.json").write_text(json.dumps(info | {"total_frames": 15}))
    with pytest.raises(UserError, match=r"other rows than it says(.|\n)*15 rows(.|\n)*16 rows of action"):
        Store(tmp_path / "store").column("action")
