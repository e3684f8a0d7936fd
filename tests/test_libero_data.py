"""LIBERO's HDF5 files into the store, from made-up files of both layouts. Run: pytest tests/test_libero_data.py"""

import json
import shutil

import h5py
import numpy as np
import pytest

from repro import clock
from repro.data import libero
from repro.data.batches import Batches, pictures
from repro.data.episodes import Store
from repro.data.evidence import LOOKED
from repro.data.libero import ensure_store, import_libero
from repro.data.libero_sources import files_of
from repro.machine import UserError

T, SIZE, WORDS = 9, 16, "pick up the milk"


def original(path, demos=2, words=WORDS, **wrong):
    """As LIBERO's create_dataset.py writes: obs[k] after action k; row 0 of a picture is its bottom; gripper +1 closes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["problem_info"] = json.dumps({"language_instruction": f'"{words}"'})
        for i in range(demos):
            demo, rng = data.create_group(f"demo_{i}"), np.random.default_rng(i)
            actions = rng.uniform(-1, 1, (T, 7))
            actions[:, 6] = np.where(np.arange(T) < 4, -1, 1)
            demo["actions"] = actions
            frames = np.zeros((T, SIZE, SIZE, 3), np.uint8)
            frames[:, 0, :, 0] = 10 + np.arange(T)[:, None]  # the bottom row says which action came before
            values = {"agentview_rgb": frames, "eye_in_hand_rgb": frames, "ee_states": rng.normal(size=(T, 6)),
                      "gripper_states": np.tile(np.arange(T)[:, None], 2).astype(float)} | wrong
            for name, value in values.items():
                if value is not None:
                    demo[f"obs/{name}"] = value
    return path


def scripted(path, every=4):
    """As `repro demos libero --every 4` writes."""
    original(path, 1, agentview_rgb=None, eye_in_hand_rgb=None)
    with h5py.File(path, "a") as file:
        data, demo = file["data"], file["data/demo_0"]
        data.attrs.update({"repro_source": "scripted, not human", "repro_assets": "stand-in assets"})
        demo.attrs.update({"repro_state": json.dumps({"task": "x", "init": 3}), "repro_noise": 0.1, "repro_pushed": False})
        steps = np.arange(0, T + 1, every)
        frames = np.zeros((len(steps), SIZE, SIZE, 3), np.uint8)
        frames[:, 0, :, 0] = 10 + steps[:, None]
        boxes = np.tile(np.array([[[2, 0, 6, 4], [8, 8, 12, 12]]]), (len(steps), 1, 1))
        boxes[1, 0] = -1  # the target hidden
        extras = {"expert_actions": demo["actions"][:] * 0.5, "steps": steps, "agentview_rgb": frames, "eye_in_hand_rgb": frames,
                  "boxes": boxes, "state": np.arange(8.0 * (T + 1)).reshape(T + 1, 8), "environment_state": np.zeros((T + 1, 6))}
        for name, value in extras.items():
            demo[f"extras/{name}"] = value
    return path


def test_original_files(tmp_path):
    path = original(tmp_path / "libero_object" / "milk_demo.hdf5")
    report = import_libero(path, tmp_path / "store")
    store = Store(tmp_path / "store")
    assert report["episodes"] == 2 and report["frames"] == 2 * (T - 1) and store.episodes[0].task == WORDS
    assert store.episodes[0].task_id == "milk" and "scripted" not in store.meta["name"]
    columns = store.read(0).columns
    with h5py.File(path) as file:
        actions = file["data/demo_0/actions"][:]
    picture = columns["observation.images.static"]
    assert (picture[:, -1, :, 0] == (10 + np.arange(T - 1))[:, None]).all() and (picture[:, 0] == 0).all(), "upright, and before its action"
    assert np.allclose(columns["action"][:, :6], actions[1:, :6], atol=1e-6)
    assert (columns["action"][:, 6] == -actions[1:, 6]).all(), "ours: +1 opens"
    assert columns["observation.state"].shape == (T - 1, 8) and (columns["observation.state"][:, 6] == np.arange(T - 1)).all()


def test_where_a_demonstration_starts(tmp_path):
    """Original files: row 0 is what action 0 led to. Regenerated ones: row 0 is before it, ten dummy actions after states[0]."""
    path = original(tmp_path / "libero_object" / "milk_demo.hdf5", demos=1)
    states, begin = np.arange(5.0 * T).reshape(T, 5), lambda: Store(tmp_path / "store").episodes[0].info.get("start")
    import_libero(path, tmp_path / "store")
    assert begin() is None, "nothing is made up"
    with h5py.File(path, "a") as file:
        file["data/demo_0/states"] = states
    import_libero(path, tmp_path / "store", replace=True)
    assert begin() == {"task": "milk", "flat": states[1].tolist(), "settle": False}
    with h5py.File(path, "a") as file:
        del file["data"].attrs["problem_info"]
    import_libero(path, tmp_path / "store", replace=True)
    assert begin() == {"task": "milk", "flat": states[0].tolist(), "settle": True}
    with h5py.File(path, "a") as file:
        del file["data/demo_0/states"]
        file["data/demo_0"].attrs["init_state"] = states[3]
    import_libero(path, tmp_path / "store", replace=True)
    assert begin() == {"task": "milk", "flat": states[3].tolist(), "settle": True}
    with h5py.File(path, "a") as file:
        file["data/demo_0/states"] = states * np.nan
    with pytest.raises(UserError, match="milk_demo.hdf5, demo_0: its states"):
        import_libero(path, tmp_path / "store", replace=True)


def test_scripted_files_with_few_pictures(tmp_path):
    scripted(tmp_path / "libero_object" / "milk_demo.hdf5")
    store = ensure_store(tmp_path / "libero_object", tmp_path / "store")
    columns, info = store.read(0).columns, store.episodes[0].info
    assert store.meta["name"].endswith("scripted") and info["disturbed"] is True and info["state"]["init"] == 3
    assert columns["info.drawn"].tolist() == [True, False, False, False, True, False, False, False, True]
    assert columns["observation.images.static"][:, -1, 0, 0].tolist() == [10] * 4 + [14] * 4 + [18]
    assert np.allclose(columns["gaze.box"][0], [2 / 16, 12 / 16, 6 / 16, 1.0]) and columns["gaze.source"][0] == "truth"
    assert columns["gaze.source"][4] == "fallback" and (columns["gaze.box"][4] == [0, 0, 1, 1]).all()
    with h5py.File(tmp_path / "libero_object" / "milk_demo.hdf5") as file:
        assert np.allclose(columns["action"][:, :6], 0.5 * file["data/demo_0/actions"][:, :6], atol=1e-6), "the undisturbed actions"
    batches = Batches(store, 3, 4, prepare=pictures)
    assert len(batches) == 3, "samples start where there is a picture"
    first = batches.gather(batches.rows[:1])
    assert np.allclose(first["action"][0], columns["action"][:4]), "and their chunks have every action"
    assert ensure_store(tmp_path / "libero_object", tmp_path / "store").hash == store.hash


@pytest.mark.parametrize(("gone", "said"), [
    ("extras/eye_in_hand_rgb", "no extras/eye_in_hand_rgb; there are"), ("extras/steps", "no extras/steps"), ("extras", "no extras/expert"),
    ("repro_state", "no attribute repro_state"), ("obs", "no obs"), ("pictures", "'wrist': 1"), ("boxes", "'boxes': 2"),
])  # fmt: skip
def test_scripted_files_that_lack_something(tmp_path, gone, said):
    """What the first demonstration has may be missing in another; nothing is left then."""
    path = scripted(tmp_path / "milk_demo.hdf5")
    with h5py.File(path, "a") as file:
        file.copy("data/demo_0", "data/demo_1")
        demo = file["data/demo_1"]
        if gone in demo.attrs:
            del demo.attrs[gone]
        elif gone in demo:
            del demo[gone]
        else:  # as where a camera's pictures are missing in obs, and the one in extras is there
            name, count = {"pictures": ("extras/eye_in_hand_rgb", 1), "boxes": ("extras/boxes", 2)}[gone]
            values = demo[name][:count]
            del demo[name]
            demo[name] = values
    with pytest.raises(UserError, match="milk_demo.hdf5, demo_1(.|\n)*give the other files as SOURCES") as caught:
        import_libero(path, tmp_path / "store")
    assert said in str(caught.value) and not (tmp_path / "store").exists()


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no HDF5 file"):
        import_libero(tmp_path, tmp_path / "store")
    (tmp_path / "torn_demo.hdf5").write_bytes(b"\x89HDF\r\n but not really")
    with pytest.raises(UserError, match="torn_demo.hdf5 cannot be read"):
        import_libero(tmp_path / "torn_demo.hdf5", tmp_path / "store")
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["x"] = 1
    with pytest.raises(UserError, match="not one of LIBERO's files"):
        import_libero(tmp_path / "other.hdf5", tmp_path / "store")
    for wrong, said in (({"ee_states": None}, "lacking"), ({"gripper_states": np.zeros((T - 2, 2))}, "do not fit"),
                        ({"agentview_rgb": np.zeros((T, 4, 4, 3), np.float32)}, "wrong kind")):
        path = original(tmp_path / f"{said.split()[0]}_demo.hdf5", **wrong)
        with pytest.raises(UserError, match=said):
            import_libero(path, tmp_path / "store")
    assert not (tmp_path / "store").exists(), "nothing half-written"


# --- a store is of the files, the episodes and the tasks that are asked for ---------------------------------------------------------


def test_ensure_store_imports_once_and_again_when_what_is_asked_for_differs(tmp_path):
    said, info, path = [], tmp_path / "store" / "meta" / "info.json", original(tmp_path / "a" / "libero_object" / "milk_demo.hdf5")
    other = shutil.copytree(tmp_path / "a", tmp_path / "b") / "libero_object" / path.name
    with h5py.File(other, "a") as file:  # of the same name and size
        file["data/demo_1/actions"][:] *= 0.5

    def again(source, **how):
        """(whether it is imported again, its hash)."""
        said.clear()
        before = info.stat().st_mtime_ns
        store = ensure_store(source, tmp_path / "store", log=said.append, **how)
        assert (info.stat().st_mtime_ns != before) == any("importing again" in line for line in said), said
        return bool(said), store.hash

    first = ensure_store(path, tmp_path / "store", log=said.append).hash
    assert not any("again" in line for line in said) and again(path) == (False, first)
    assert path.stat().st_size == other.stat().st_size
    made, changed = again(other)
    assert made and changed != first and again(other) == (False, changed)
    assert again(path, only=lambda number: number == 0)[0] and len(Store(tmp_path / "store")) == 1
    assert again(path) == (True, first) and again(path, drop_noops=True)[0] and again(path) == (True, first)
    moved = path.parents[1].rename(tmp_path / "moved") / "libero_object" / path.name
    assert again(moved) == (False, first), "the same files elsewhere"
    with h5py.File(moved, "a") as file:
        file["data"].attrs["remark"] = "nothing that goes into the store"
    assert again(moved) == (True, first), "what the store notes of its files is not in its hash"
    meta = json.loads((tmp_path / "store" / "meta" / "repro.json").read_text())
    del meta["source_fingerprint"]
    (tmp_path / "store" / "meta" / "repro.json").write_text(json.dumps(meta))
    assert again(moved) == (True, first), "one of an earlier version does not say what it was made of"


def test_a_named_task_is_imported_without_others_of_the_same_sentence(tmp_path):
    names = [f"KITCHEN_SCENE{number}_turn_on_the_stove" for number in (3, 9)]
    for name in names:
        original(tmp_path / "libero_90" / f"{name}_demo.hdf5", 1, words="turn on the stove")
    tasks = lambda *named: sorted(
        {info.task_id for info in ensure_store(tmp_path / "libero_90", tmp_path / "store", task_names=named, log=lambda _: None).episodes})
    assert tasks(names[0]) == names[:1] and tasks(names[1]) == names[1:] and tasks(*names) == names
    assert tasks("turn on the stove") == names == tasks()


def test_files_of_one_name_are_told_apart(tmp_path):
    for layout in ("wide", "official"):
        original(tmp_path / layout / "libero_object" / "milk_demo.hdf5", 1)
    report = import_libero([tmp_path / "wide", tmp_path / "official"], tmp_path / "store")
    assert list(report["evidence"]) == [f"{layout}/libero_object/milk_demo.hdf5" for layout in ("wide", "official")]
    one = import_libero(tmp_path / "wide", tmp_path / "one")
    assert list(one["evidence"]) == ["milk_demo.hdf5"] == list(Store(tmp_path / "one").meta["evidence"])


def test_nothing_chosen_is_said_before_anything_is_written(tmp_path):
    path = original(tmp_path / "milk_demo.hdf5")
    with pytest.raises(UserError, match="no episode is chosen") as caught:
        import_libero(path, tmp_path / "store", only=lambda number: number > 9, task_names=[WORDS])
    assert "some of 2 episodes" in str(caught.value) and "`only`" in str(caught.value) and WORDS in str(caught.value)
    assert "next step" in str(caught.value) and files_of(tmp_path) == [path]


@pytest.mark.parametrize("problem", ["{}", "[]", "pick up the milk", json.dumps({"language_instruction": 3})])
def test_a_file_that_does_not_say_its_instruction_is_named(tmp_path, problem):
    path = original(tmp_path / "milk_demo.hdf5")
    with h5py.File(path, "a") as file:
        file["data"].attrs["problem_info"] = problem
    with pytest.raises(UserError, match="milk_demo.hdf5: the attribute problem_info") as caught:
        import_libero(path, tmp_path / "store")
    assert problem in str(caught.value)


# --- damage, and contradictions -----------------------------------------------------------------------------------------------------


def garble(path, demo):
    """Other bytes in a demonstration's actions, which are stored with a checksum."""
    with h5py.File(path, "a") as file:
        values = file[f"{demo}/actions"][:]
        del file[f"{demo}/actions"]
        file[demo].create_dataset("actions", data=values, chunks=values.shape, fletcher32=True)
        at = file[f"{demo}/actions"].id.get_chunk_info(0).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(at)
        raw.write(b"garbled")


def test_a_damaged_demonstration_is_left_out_and_named(tmp_path):
    said, path = [], original(tmp_path / "milk_demo.hdf5", 100)
    garble(path, "data/demo_7")
    report = import_libero(path, tmp_path / "store", log=said.append)
    store = Store(tmp_path / "store")
    assert report["episodes"] == len(store) == 99 and list(report["damaged"]) == ["milk_demo.hdf5, demo_7"]
    assert store.meta["damaged"] == report["damaged"] and said[-1].startswith("left out: milk_demo.hdf5, demo_7: OSError")
    assert "demo_7" not in [info.info["demo"] for info in store.episodes]
    garble(path, "data/demo_80")
    with pytest.raises(UserError, match=r"too many damaged episodes(.|\n)*at most 1% of 100(.|\n)*2 so far(.|\n)*demo_7(.|\n)*demo_80"):
        import_libero(path, tmp_path / "none")
    assert not list(tmp_path.glob("none*"))


def test_a_contradiction_is_said_as_soon_as_enough_was_looked_at(tmp_path, monkeypatch):
    path, read = original(tmp_path / "milk_demo.hdf5", 40), []
    with h5py.File(path, "a") as file:
        for i in range(40):  # fingers that open where the command closes
            grip = file[f"data/demo_{i}/actions"][:, 6]
            file[f"data/demo_{i}/obs/gripper_states"][:] = np.cumsum(grip)[:, None] * [0.01, -0.01]
    true = libero._house
    monkeypatch.setattr(libero, "_house", lambda *given: read.append(given[1]) or true(*given))
    with pytest.raises(UserError, match="gripper's sign is the other way"):
        import_libero(path, tmp_path / "store")
    assert LOOKED <= len(read) <= LOOKED + 2 and not list(tmp_path.glob("store*"))


def test_what_is_known_of_a_source_is_not_looked_at_again(tmp_path, monkeypatch):
    """Stopped after enough was looked at, the import goes on with the next episode, and ends as if it had not been stopped."""
    path, read, true = original(tmp_path / "milk_demo.hdf5", 40), [], libero._house
    whole = import_libero(path, tmp_path / "whole")

    def house(episode, where, *rest):
        read.append(where)
        if len(read) == 30:
            raise clock.OutOfTime("now")
        return true(episode, where, *rest)

    monkeypatch.setattr(libero, "_house", house)
    with pytest.raises(clock.OutOfTime):
        import_libero(path, tmp_path / "store")
    report = import_libero(path, tmp_path / "store")
    assert len(read) <= 40 + 3 and str({**report, "out": whole["out"]}) == str(whole)
    assert str(Store(tmp_path / "store").meta) == str(Store(tmp_path / "whole").meta)
