"""CALVIN in: the reader, the import, bad input, the guide's commands."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys

import calvin_folder
import cv2
import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from repro import freshness
from repro.data import calvin_import, episodes, guide, npy
from repro.data.calvin import Calvin
from repro.data.calvin_commands import calvin
from repro.data.calvin_frames import DamagedFrame, canonical, read_frame
from repro.data.calvin_import import ensure_store, import_calvin, read_episode
from repro.data.episodes import Store
from repro.machine import UserError

LONG = ((0, 219),)  # one damaged frame of 220 is less than 1 %


def run(root, tmp_path, split="training", **options):
    report = import_calvin(root, split, tmp_path / "store", workers=1, **options)
    return report, Store(tmp_path / "store")


def refused(root, tmp_path, match, split="training"):
    """The import stops with this message and leaves nothing."""
    with pytest.raises(UserError, match=match) as error:
        import_calvin(root, split, tmp_path / "store", workers=1)
    assert not list(tmp_path.glob("store*"))
    return str(error.value)


# --- good input ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("digits", [7, 6])
def test_import_reads_what_was_written(tmp_path, dtype, digits):
    calvin_folder.make(tmp_path / "data", dtype=dtype, digits=digits)
    report, store = run(tmp_path / "data", tmp_path)
    assert report["episodes"] == 3 and report["damaged"] == {} and store.hash == report["hash"]
    assert [episode.length for episode in store.episodes] == [8, 12, 5]  # both ends inclusive; the last overlaps the first
    for info, first in zip(store.episodes, (100, 200, 100), strict=True):
        read = store.read(info.index)
        numbers = range(first, first + info.length)
        assert read.columns["info.frame"].tolist() == list(numbers)
        for row, number in enumerate(numbers):
            frame = calvin_folder.frame(number, dtype=dtype)
            np.testing.assert_array_equal(read.columns["observation.images.static"][row], frame["rgb_static"])
            np.testing.assert_array_equal(read.columns["observation.images.wrist"][row], frame["rgb_gripper"])
            np.testing.assert_array_equal(read.columns["action"][row], frame["rel_actions"].astype(np.float32))
            np.testing.assert_array_equal(read.columns["observation.state"][row], frame["robot_obs"].astype(np.float32))
    assert store.episodes[2].task == "lift it" and store.episodes[2].task_id == "lift_x" and store.episodes[2].scene == "D"


@pytest.mark.parametrize("scene, x", [("A", [3, 2, 1]), ("B", [1, 2, 3]), ("C", [2, 1, 3]), ("D", [1, 2, 3])])
def test_blocks_come_out_red_blue_pink(tmp_path, scene, x):
    """On disk block k has x = k + 1 in the scene's own order (reference: calvin_env's scene configurations)."""
    calvin_folder.make(tmp_path / "data", scene=scene)
    _, store = run(tmp_path / "data", tmp_path)
    assert store.read(0).columns["observation.environment_state"][0, [6, 12, 18]].tolist() == x
    assert store.episodes[0].scene == scene
    back = canonical(np.arange(24.0), scene)
    assert back[:6].tolist() == list(range(6)) and sorted(back) == list(range(24))


def test_where_the_scene_is_known_from(tmp_path):
    calvin_folder.make(tmp_path / "a", "validation", scene=None)
    split = Calvin(tmp_path / "a").split("validation")
    assert split.annotations[0].scene == "D" and "validates" in split.scene_known_by
    calvin_folder.make(tmp_path / "b", "validation", scene=None, boxes=True)
    split = Calvin(tmp_path / "b").split("validation")
    assert split.annotations[0].scene == "A" and split.scene_known_by == "boxes.json" and split.annotations[0].targets == ("drawer",)
    calvin_folder.make(tmp_path / "c", scene=None)
    with pytest.raises(UserError, match="order of the blocks"):
        Calvin(tmp_path / "c").split("training")
    assert Calvin(tmp_path / "c").split("training", scene="C").annotations[0].scene == "C"
    assert "3 annotated episodes of 2 tasks, 20 frames" in Calvin(tmp_path / "c").split("training", scene="C").describe()


def test_a_scene_that_a_file_contradicts_is_refused(tmp_path):
    calvin_folder.make(tmp_path / "info")
    for root, scene, file, told in (("info", "B", "scene_info.npy", "D"), ("boxes", "C", "boxes.json", "A")):
        if root == "boxes":
            calvin_folder.make(tmp_path / "boxes", scene=None, boxes=True)
        with pytest.raises(UserError, match=f"scene {told}, as .*{file} says\n.*scene {scene}, as the caller"):
            import_calvin(tmp_path / root, "training", tmp_path / "store", 1, scene)
        assert not list(tmp_path.glob("store*"))
        assert Calvin(tmp_path / root).split("training", told).annotations == Calvin(tmp_path / root).split("training").annotations
    calvin_folder.write_dict(tmp_path / "info/training/scene_info.npy", {"calvin_scene_D": [0, 150]})  # nothing of the second recording
    assert [note.scene for note in Calvin(tmp_path / "info").split("training", "D").annotations] == ["D", "D", "D"]
    with pytest.raises(UserError, match=r"names no scene for the frames 200\.\.211"):
        Calvin(tmp_path / "info").split("training")


def test_a_stand_in_is_none_of_calvins_where_its_split_is_given_for_the_root(tmp_path):
    folder = calvin_folder.make(tmp_path / "data")
    assert run(folder, tmp_path)[1].meta["simulator"] == "calvin_env", "a download"
    (tmp_path / "data" / "about.json").write_text(json.dumps({"name": "play table D", "simulator": "tabletop", "draw_every": 3}))
    (tmp_path / "training").symlink_to(folder)
    for root in (tmp_path / "data", folder, tmp_path / "training"):
        meta, told = run(root, tmp_path, replace=True)[1].meta, calvin_import.frames_a_picture(root, "training")
        assert (meta["simulator"], meta["name"], told) == ("tabletop", "play table D", 3)


def test_boxes_lie_in_the_store(tmp_path):
    calvin_folder.make(tmp_path / "data", boxes=True)
    _, store = run(tmp_path / "data", tmp_path)
    read = store.read(1)
    assert [json.loads(text)["drawer"][0] for text in read.columns["info.boxes"]] == [n % 7 for n in range(200, 212)]
    assert read.info["targets"] == ["drawer"]


def test_members_that_are_not_needed_are_not_decompressed(tmp_path):
    folder = calvin_folder.make(tmp_path / "data")
    for path in folder.glob("episode_*.npz"):
        frame = dict(np.load(path))
        np.savez_compressed(path, **frame, depth_static=np.array([{"a": 1}], dtype=object))  # reading it would raise
    report, _ = run(tmp_path / "data", tmp_path)
    assert report["damaged"] == {}


def test_workers_change_nothing(tmp_path):
    calvin_folder.make(tmp_path / "data")
    one = import_calvin(tmp_path / "data", "training", tmp_path / "one", workers=1)
    two = import_calvin(tmp_path / "data", "training", tmp_path / "two", workers=2)
    assert one["hash"] == two["hash"]


def killed_at(split: tuple, start: int, *rest):
    """read_episode, in a worker that memory runs out for at the sixteenth episode."""
    if start == 250:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_episode(split, start, *rest)


def test_a_worker_that_is_killed_costs_nothing_that_was_committed(tmp_path, monkeypatch):
    spans = [(100 + 10 * i, 103 + 10 * i) for i in range(18)]
    calvin_folder.make(tmp_path / "data", segments=spans, notes=[(a, b, "open_drawer", "open it") for a, b in spans])
    whole = import_calvin(tmp_path / "data", "training", tmp_path / "whole", workers=1)
    monkeypatch.setattr(episodes, "FILE_EPISODES", 2)
    with monkeypatch.context() as cut:
        cut.setattr(calvin_import, "read_episode", killed_at)
        with pytest.raises(UserError, match="A worker process died"):
            import_calvin(tmp_path / "data", "training", tmp_path / "store", workers=2)
    kept = json.loads((tmp_path / "store.part" / "progress.json").read_text())
    assert kept["episodes"] == kept["note"]["tried"] >= 2
    asked = []
    monkeypatch.setattr(calvin_import, "read_episode", lambda split, start, *rest: asked.append(start) or read_episode(split, start, *rest))
    again = import_calvin(tmp_path / "data", "training", tmp_path / "store", workers=1)
    assert again["hash"] == whole["hash"] and len(asked) == 18 - kept["episodes"], "what earlier sessions made is kept"


def test_ensure_store_imports_once_and_again_when_the_data_changed(tmp_path):
    calvin_folder.make(tmp_path / "data")
    lines = []
    ensure_store(tmp_path / "data", "training", tmp_path / "store", workers=1, log=lines.append)
    assert len(lines) == 1 and lines.pop().startswith("import training: 3/3 episodes")
    written = (tmp_path / "store/meta/info.json").stat().st_mtime_ns
    ensure_store(tmp_path / "data", "training", tmp_path / "store", workers=1, log=lines.append)
    assert (tmp_path / "store/meta/info.json").stat().st_mtime_ns == written and not lines
    np.savez(tmp_path / "data/training/episode_0000103.npz", **calvin_folder.frame(104))
    ensure_store(tmp_path / "data", "training", tmp_path / "store", workers=1, log=lines.append)
    assert (tmp_path / "store/meta/info.json").stat().st_mtime_ns != written and "importing again" in lines[0]


def test_ensure_store_imports_again_with_other_code_and_discards_what_that_left_half_done(tmp_path, monkeypatch):
    spans = [(100 + 10 * i, 103 + 10 * i) for i in range(6)]
    calvin_folder.make(tmp_path / "data", segments=spans, notes=[(a, b, "open_drawer", "open it") for a, b in spans])
    lines, asked, stop = [], [], []

    def read(split, start, *rest):
        asked.append(start)
        if start in stop:
            raise KeyboardInterrupt
        return read_episode(split, start, *rest)

    monkeypatch.setattr(calvin_import, "read_episode", read)
    ensured = lambda name="store": ensure_store(tmp_path / "data", "training", tmp_path / name, workers=1, log=lines.append)
    first = ensured()
    stop.append(140)
    with pytest.raises(KeyboardInterrupt):
        ensured("half")
    stop.clear()
    asked.clear()
    assert first.meta["code"] and len(ensured()) == 6 and not asked
    monkeypatch.setattr(freshness, "code", lambda *names: "of another version")
    lines.clear()
    assert ensured().hash == first.hash and len(asked) == 6 and "was made by another version of this library: importing again" in lines[0]
    asked.clear()
    assert ensured("half").hash == first.hash and len(asked) == 6, "nothing of the other version's half"


def test_frames_that_were_damaged_are_read_once_they_are_whole(tmp_path):
    folder, lines = calvin_folder.make(tmp_path / "data", segments=LONG, size=4, wrist=4), []
    ensured = lambda: ensure_store(tmp_path / "data", "training", tmp_path / "store", workers=1, log=lines.append)
    for number in (100, 150):
        spoil_truncated(folder / f"episode_{number:07d}.npz")
    assert ensured().frames == 218 + 215
    lines.clear()
    written = (tmp_path / "store/meta/info.json").stat().st_mtime_ns
    assert ensured().frames == 218 + 215 and (tmp_path / "store/meta/info.json").stat().st_mtime_ns == written
    assert [line.partition(":")[0] for line in lines] == ["left out episode_0000100.npz", "left out episode_0000150.npz"]
    lines.clear()
    np.savez(folder / "episode_0000150.npz", **calvin_folder.frame(150, size=4, wrist=4))
    assert ensured().frames == 219 + 216 and "lacks episode_0000150.npz, which can be read now: importing again" in lines[0]
    assert [line.partition(":")[0] for line in lines[2:]] == ["left out episode_0000100.npz"]


def test_real_simulator_frames(test_data, tmp_path):
    root = test_data("calvin_sim")
    split = Calvin(root).split("training")
    assert (len(split.annotations), split.frames, split.scene_known_by) == (24, 890, "scene_info.npy")
    assert set(split.statistics) == {"robot_obs", "scene_obs"} and len(split.statistics["robot_obs"]["mean"]) == 15
    report = import_calvin(root, "validation", tmp_path / "store", workers=2)
    store = Store(tmp_path / "store")
    assert (report["episodes"], report["frames"], report["damaged"], report["scene_known_by"]) == (9, 373, {}, "boxes.json")
    read, raw = store.read(7), np.load(root / "validation/episode_0060300.npz")
    np.testing.assert_array_equal(read.columns["observation.images.static"][11], raw["rgb_static"])
    np.testing.assert_allclose(read.columns["observation.environment_state"][11], raw["scene_obs"], rtol=1e-6)
    assert json.loads(read.columns["info.boxes"][11])["drawer"] and store.episodes[7].info["goal_items"] == ["drawer"]
    state = store.stats["observation.state"]
    assert np.abs(state["mean"] - np.array(Calvin(root).split("validation").statistics["robot_obs"]["mean"])).max() < 0.02


# --- bad input ----------------------------------------------------------------------------------------------------------------------


def spoil_missing(path):
    path.unlink()


def spoil_truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


def spoil_empty(path):
    path.write_bytes(b"")


def spoil_garbage(path):
    path.write_bytes(os.urandom(500))


def spoil_nan(path):
    frame = dict(np.load(path))
    frame["rel_actions"][2] = np.nan
    np.savez(path, **frame)


def spoil_member(path):
    frame = dict(np.load(path))
    del frame["rgb_gripper"]
    np.savez(path, **frame)


SPOIL = {spoil_missing: "missing", spoil_truncated: "unreadable", spoil_empty: "unreadable", spoil_garbage: "unreadable",
         spoil_nan: "not finite", spoil_member: "rgb_gripper"}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOIL, ids=lambda spoil: spoil.__name__)
def test_a_damaged_frame_is_left_out_and_named(tmp_path, spoil):
    folder = calvin_folder.make(tmp_path / "data", segments=LONG, size=4, wrist=4)
    spoil(folder / "episode_0000100.npz")
    report, store = run(tmp_path / "data", tmp_path)
    assert list(report["damaged"]) == ["episode_0000100.npz"] and SPOIL[spoil] in report["damaged"]["episode_0000100.npz"]
    assert store.meta["damaged"] == report["damaged"]
    numbers = store.read(0).columns["info.frame"]
    assert 100 not in numbers and len(numbers) == 219  # the second, overlapping annotation counts the frame once
    assert report["frames"] == 219 + 216


def test_damage_in_the_first_frame_is_no_different(tmp_path):
    folder = calvin_folder.make(tmp_path / "data", segments=LONG, size=4, wrist=4)
    spoil_truncated(folder / "episode_0000000.npz")
    assert list(run(tmp_path / "data", tmp_path)[0]["damaged"]) == ["episode_0000000.npz"]


def test_more_than_one_percent_damaged_stops(tmp_path):
    folder = calvin_folder.make(tmp_path / "data", segments=LONG, size=4, wrist=4)
    for number in (5, 6, 7):
        spoil_missing(folder / f"episode_{number:07d}.npz")
    assert "episode_0000005.npz: missing" in refused(tmp_path / "data", tmp_path, "too many damaged")


def test_wrong_structure_is_refused(tmp_path):
    folder = calvin_folder.make(tmp_path / "size")
    np.savez(folder / "episode_0000203.npz", **calvin_folder.frame(203, size=24))
    assert "episode_0000203.npz" in refused(tmp_path / "size", tmp_path, "another shape")
    folder = calvin_folder.make(tmp_path / "shape")
    np.savez(folder / "episode_0000203.npz", **calvin_folder.frame(203) | {"robot_obs": np.zeros(14)})
    refused(tmp_path / "shape", tmp_path, "robot_obs")
    calvin_folder.make(tmp_path / "outside", notes=[(100, 108, "open_drawer", "open it")])
    refused(tmp_path / "outside", tmp_path, "outside the recorded segments")
    calvin_folder.make(tmp_path / "between", notes=[(105, 203, "open_drawer", "open it")])
    refused(tmp_path / "between", tmp_path, "outside the recorded segments")
    folder = calvin_folder.make(tmp_path / "index")
    (folder / "ep_start_end_ids.npy").unlink()
    refused(tmp_path / "index", tmp_path, "ep_start_end_ids.npy is missing")
    np.save(folder / "ep_start_end_ids.npy", np.zeros((3, 3), int))
    refused(tmp_path / "index", tmp_path, "no index")
    folder = calvin_folder.make(tmp_path / "language")
    (folder / "lang_annotations/auto_lang_ann.npy").unlink()
    refused(tmp_path / "language", tmp_path, "auto_lang_ann.npy is missing")
    uneven = {"language": {"ann": ["x"], "task": []}, "info": {"indx": [(100, 101)]}}
    calvin_folder.write_dict(folder / "lang_annotations/auto_lang_ann.npy", uneven)
    refused(tmp_path / "language", tmp_path, "another structure")
    folder = calvin_folder.make(tmp_path / "broken")
    (folder / "lang_annotations/auto_lang_ann.npy").write_bytes((folder / "lang_annotations/auto_lang_ann.npy").read_bytes()[:150])
    refused(tmp_path / "broken", tmp_path, "cannot be read")
    folder = calvin_folder.make(tmp_path / "boxes", boxes=True)
    (folder / "boxes.json").write_text((folder / "boxes.json").read_text()[:-120])
    refused(tmp_path / "boxes", tmp_path, "garbled")


def test_boxes_of_other_frames_are_refused(tmp_path):
    folder = calvin_folder.make(tmp_path / "data", boxes=True)
    whole = json.loads((folder / "boxes.json").read_text())
    spoil = lambda **other: (folder / "boxes.json").write_text(json.dumps(whole | other))
    table = whole["rgb_static"]
    spoil(rgb_static={f"{int(name) + 1000:07d}": boxes for name, boxes in table.items()})
    assert "frames 1100..1211" in refused(tmp_path / "data", tmp_path, r"no boxes of frame 100, of the annotation 100\.\.107")
    spoil(rgb_static={name: boxes for name, boxes in table.items() if name != "0000211"})
    refused(tmp_path / "data", tmp_path, "no boxes of frame 211")
    spoil(rgb_static={})
    refused(tmp_path / "data", tmp_path, "(garbled|no boxes of frame 100)")
    spoil(episodes=whole["episodes"][:2])
    refused(tmp_path / "data", tmp_path, r"does not tell the targets of the annotation 100\.\.104")
    (folder / "boxes.json").write_text("")
    refused(tmp_path / "data", tmp_path, "boxes.json is empty")


def test_empty_and_foreign_folders_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "is empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/readme.txt").write_text("x")
    assert "readme.txt" in refused(tmp_path / "other", tmp_path, "not a CALVIN folder")
    refused(tmp_path / "nowhere", tmp_path, "not a folder")
    calvin_folder.make(tmp_path / "data")
    refused(tmp_path / "data", tmp_path, "no split 'validation'", split="validation")


def test_random_damage_never_escapes(tmp_path):
    """Any flipped byte gives the frame, a damaged frame or a refusal, never another exception."""
    path, rng = tmp_path / "episode_0000001.npz", np.random.default_rng(0)
    np.savez_compressed(path, **calvin_folder.frame(1, size=4, wrist=4))
    whole, damaged = path.read_bytes(), 0
    for _ in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            read_frame(path)
        except DamagedFrame:
            damaged += 1
    assert damaged > 100


# --- pickles ------------------------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled by anything less careful, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def save(path, payload: bytes):
    """A .npy file with an object array whose pickle is `payload`."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|O", "fortran_order": False, "shape": ()})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue() + payload)


def test_a_pickle_that_calls_is_refused_by_name(tmp_path):
    folder = calvin_folder.make(tmp_path / "data")
    payload = pickle.dumps(np.array({"language": Bomb(tmp_path / "boom")}, dtype=object), protocol=4)
    save(folder / "lang_annotations/auto_lang_ann.npy", payload)
    message = refused(tmp_path / "data", tmp_path, "auto_lang_ann.npy")
    assert "posix.system" in message and not (tmp_path / "boom").exists()
    for name in ("builtins.eval", "numpy.testing._private.utils.runstring", "numpy.core.multiarray.fromfile", "functools.partial"):
        module, _, function = name.rpartition(".")
        save(tmp_path / "x.npy", f"c{module}\n{function}\n(S'1'\ntR.".encode())
        with pytest.raises(UserError, match="x.npy asks for"):
            npy.load(tmp_path / "x.npy")


def test_numpy_1_and_numpy_2_names_are_read(tmp_path):
    value = {"indx": [(np.int64(3), np.int64(9))], "emb": np.arange(6, dtype=np.float32).reshape(2, 1, 3)}
    for protocol in (2, 3, 4):
        payload = pickle.dumps(np.array(value, dtype=object), protocol=protocol)
        for core in (b"core", b"_core"):
            other = {b"core": b"_core", b"_core": b"core"}[core]
            if protocol < 4:
                text = payload.replace(b"numpy." + other + b".", b"numpy." + core + b".")
            else:  # in protocol 4 names carry their length in one byte
                long, short = b"numpy." + other + b".multiarray", b"numpy." + core + b".multiarray"
                text = payload.replace(bytes([len(long)]) + long, bytes([len(short)]) + short)
            text = text if protocol < 4 else _without_frames(text)
            save(tmp_path / "x.npy", text)
            back = npy.load_dict(tmp_path / "x.npy")
            assert back["indx"] == value["indx"]
            np.testing.assert_array_equal(back["emb"], value["emb"])


def _without_frames(payload: bytes) -> bytes:
    """Protocol 4 without its FRAME opcode (0x95 and 8 bytes), whose length no longer fits after the names changed."""
    assert payload[2:3] == b"\x95"
    return payload[:2] + payload[11:]


# --- the guide's commands -----------------------------------------------------------------------------------------------------------


def test_guides_commands(tmp_path):
    folder = calvin_folder.make(tmp_path / "data", boxes=True)
    out, result = tmp_path / "extracted", CliRunner()

    def call(*arguments):
        done = result.invoke(calvin, [str(argument) for argument in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    ann = folder / "lang_annotations/auto_lang_ann.npy"
    call("extract", "--ann_path", ann, "--npz_src_dir", folder, "--root_folder", out, "--workers", 1)
    about = yaml.safe_load((out / "0_open_drawer/lang_ann/lang_ann.yaml").read_text())
    assert about["ann"] == "open the drawer" and about["task"] == "open_drawer" and about["indx"] == [100, 107]
    assert len(list((out / "1_open_drawer/img").iterdir())) == 12
    picture = cv2.imread(str(out / "2_lift_x/img/frame_0000102.png"))[:, :, ::-1]
    np.testing.assert_array_equal(picture, calvin_folder.frame(102)["rgb_static"])

    call("json", "--root_folder", out, "--output", tmp_path / "without.json")
    assert json.loads((tmp_path / "without.json").read_text())[0]["crop"] is None
    assert "truth" in call("crop", "--root_folder", out, "--npz_src_dir", folder, "--detector", "truth")
    call("json", "--root_folder", out, "--output", tmp_path / "train.json")
    records = json.loads((tmp_path / "train.json").read_text())
    assert len(records) == 8 + 12 + 5 and set(records[0]) == {"id", "image", "crop", "instruction", "actions"}
    assert records[0]["id"] == "task_0_frame_100" and records[0]["image"] == "0_open_drawer/img/frame_0000100.png"
    expected = [calvin_folder.frame(n)["rel_actions"] for n in (106, 107, 107, 107, 107)]  # the tail repeats the last action
    np.testing.assert_allclose(records[6]["actions"], expected, atol=1e-6)
    x0 = 100 % 7
    np.testing.assert_array_equal(cv2.imread(str(out / records[0]["crop"]))[:, :, ::-1], calvin_folder.frame(100)["rgb_static"][1:8, x0:9])
    line = json.loads((out / "0_open_drawer/crop_info.jsonl").read_text().splitlines()[0])
    assert line["coordinates"] == {"x1": x0, "y1": 1, "x2": 9, "y2": 8} and line["source"] == "truth" and line["score"] > 0
    again = (folder / "boxes.json").read_text().replace(f"[{x0}, 1, 9, 8]", f"[{x0}, 1, 8, 7]")
    (folder / "boxes.json").write_text(again)
    assert f"[{x0}, 1, 8, 7]" in again and "truth" in call("crop", "--root_folder", out, "--npz_src_dir", folder, "--detector", "truth")
    line = json.loads((out / "0_open_drawer/crop_info.jsonl").read_text().splitlines()[0])
    assert line["coordinates"] == {"x1": x0, "y1": 1, "x2": 8, "y2": 7}, "other boxes, other crops"
    assert "fallback" in call("crop", "--root_folder", out, "--detector", "none")


def test_records_without_crops_are_counted_aloud_and_a_file_that_cannot_be_made_is_named(tmp_path):
    folder, out, said = calvin_folder.make(tmp_path / "data"), tmp_path / "extracted", []
    guide.extract(folder / "lang_annotations/auto_lang_ann.npy", folder, out, workers=1)
    assert guide.write_json(out, tmp_path / "c.json", log=said.append) == 25
    assert said == ["[WARN] 25 of 25 records have no crop: repro calvin crop first"]
    guide.crop(out, "none")
    assert guide.write_json(out, tmp_path / "c.json", log=said.append) == 25 and len(said) == 1
    (out / "2_lift_x/crop/frame_0000102.png").unlink()
    guide.write_json(out, tmp_path / "c.json", log=said.append)
    assert "1 of 25 records" in said[1]
    (tmp_path / "full.json.part").symlink_to(tmp_path / "nowhere" / "file")  # as in /proc: the folder is there, no file can be made
    with pytest.raises(UserError, match=f"full.json cannot be written(.|\n)*{tmp_path}, which takes none"):
        guide.write_json(out, tmp_path / "full.json")


@pytest.mark.parametrize(("arguments", "said"), [
    (["import", "nothere", "out"], "found: nothing at this path\n  next step: correct the path"),
    (["import", "data", "out", "--split", "trainning"], "next step: did you mean 'training'"),
    (["import", "data", "out", "--split", "test"], "next step: name one of these"),
    (["import", "data", "out", "--scene", "Q"], "found: Q\n  next step: name one"),
    (["import", "data", "out", "--scene", "d"], "next step: did you mean 'D'"),
    (["extract", "nothere.npy", "data/training"], "next step: correct the path"),
    (["extract", "data/training/ep_start_end_ids.npy", "data/training"], "dictionary(.|\n)*next step: give another file"),
    (["extract", "data/training/lang_annotations/auto_lang_ann.npy", "nothere"], "found: nothing at this path\n  next step: correct"),
    (["extract", "data/training/lang_annotations/auto_lang_ann.npy", "data/validation"], "next step: .*different splits or versions"),
    (["crop", "--root_folder", "out", "--detector", "truth"], "found: no --npz_src_dir\n  next step: .*the split's folder"),
])  # fmt: skip
def test_refusals_say_what_to_do_next(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    calvin_folder.make(tmp_path / "data")
    calvin_folder.make(tmp_path / "data", "validation", segments=((500, 507),))
    if arguments[0] == "extract":
        arguments = ["extract", "--ann_path", arguments[1], "--npz_src_dir", arguments[2], "--root_folder", "out"]
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(calvin, arguments, catch_exceptions=False)


def test_extract_leaves_nothing_when_it_stops(tmp_path):
    folder = calvin_folder.make(tmp_path / "data")
    spoil_missing(folder / "episode_0000105.npz")
    command = [sys.executable, "-m", "repro", "calvin", "extract", "--ann_path", folder / "lang_annotations/auto_lang_ann.npy"]
    command += ["--npz_src_dir", folder, "--root_folder", tmp_path / "out", "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert "episode_0000105.npz" in done.stderr
    assert not list(tmp_path.glob("out*"))
