"""LIBERO's layouts into one store, each with its traps; made-up files and the grocery table's. Run: pytest tests/test_libero.py"""

import json
import shutil

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from repro import clock
from repro.data import libero_hdf5
from repro.data.episodes import Store, encode_png
from repro.data.libero import import_libero, kept
from repro.data.libero_commands import libero
from repro.data.libero_sources import files_of, sources_of
from repro.data.libero_tasks import sentence_of
from repro.machine import UserError
from repro.sims import base
from repro.sims.tabletop import grocery

MILK, SOUP = (f"pick_up_the_{item}_and_place_it_in_the_basket" for item in ("milk", "alphabet_soup"))
STATE = "observation.state"
CAMERAS = ("observation.images.static", "observation.images.wrist")


@pytest.fixture(scope="module")
def played():
    """One episode of the grocery table, as LIBERO's environment gives it: observation before each action, LIBERO's signs, raw pictures."""
    table = grocery.GroceryTable(image_size=48, wrist_size=32, orientation="raw")
    seen = table.reset({"task": MILK, "init": 4, "layout": "wide", "seed": 2})
    expert, rows = table.expert(MILK, np.random.default_rng(0)), []
    while not table.done(MILK):
        action = np.clip(expert.act(), -1, 1)
        rows.append((seen, action * (1, 1, 1, 1, 1, 1, -1)))
        seen = table.step(action)
    after = [row[0] for row in rows[1:]] + [seen]
    pack = lambda steps: {name: np.stack([step[name] for step in steps]) for name in (*CAMERAS, STATE)}
    return {"before": pack([row[0] for row in rows]), "after": pack(after), "actions": np.array([row[1] for row in rows])}


def hdf5(path, seen, actions, attributes):
    """As LIBERO's create_dataset.py and OpenVLA's regenerate_libero_dataset.py lay a file out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs.update(attributes)
        demo = data.create_group("demo_0")
        demo["actions"] = actions
        for name, value in (("agentview_rgb", seen[CAMERAS[0]]), ("eye_in_hand_rgb", seen[CAMERAS[1]]), ("ee_states", seen[STATE][:, :6]),
                            ("gripper_states", seen[STATE][:, 6:])):
            demo[f"obs/{name}"] = value
    return path


def original(folder, played, **attributes):
    told = {"problem_info": json.dumps({"language_instruction": '"pick the milk and place it in the basket"'}),
            "bddl_file_name": f"libero/bddl_files/libero_object/{MILK}.bddl", "macros_image_convention": "opengl"}
    return hdf5(folder / "libero_object" / f"{MILK}_demo.hdf5", played["after"], played["actions"], told | attributes)


def regenerated(folder, played):
    return hdf5(folder / "libero_object_no_noops" / f"{MILK}_demo.hdf5", played["before"], played["actions"], {})


def lerobot(folder, played, version="v2.0", keys=("observation.images.image", "observation.images.wrist_image"), episodes=2,
            state="observation.state", action="action", change=lambda columns: columns):
    """As lerobot/libero_spatial_image (v2.0) and HuggingFaceVLA/libero (v3.0): pictures turned by 180 degrees, wrong names of the state."""
    meta, n = folder / "meta", len(played["actions"])
    meta.mkdir(parents=True)
    sentences = [sentence_of(MILK), sentence_of(SOUP)]
    places = {"v3.0": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    path = places.get(version, "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")
    features = {key: {"dtype": "image", "shape": [48, 48, 3]} for key in keys} | {
        state: {"dtype": "float32", "shape": [8], "names": ["x", "y", "z", "rx", "ry", "rz", "rw", "gripper"]},
        action: {"dtype": "float32", "shape": [7]}}  # fmt: skip
    (meta / "info.json").write_text(json.dumps({"codebase_version": version, "fps": 10, "total_episodes": episodes, "chunks_size": 1000,
                                                "data_path": path, "features": features}))
    tables = []
    for i in range(episodes):
        turned = [[{"bytes": encode_png(np.ascontiguousarray(p[::-1, ::-1])), "path": None} for p in played["before"][name]]
                  for name in CAMERAS]
        columns = dict(zip(keys, turned, strict=False)) | {
            state: played["before"][STATE].tolist(), action: played["actions"].tolist(),
            "episode_index": [i] * n, "task_index": [i % 2] * n, "index": list(range(i * n, i * n + n))}  # fmt: skip
        tables.append(pa.table(change(columns)))
    rows = [{"episode_index": i, "tasks": [sentences[i % 2]], "length": n} for i in range(episodes)]
    (folder / "data" / "chunk-000").mkdir(parents=True)
    if version == "v3.0":
        pq.write_table(pa.concat_tables(tables), folder / path.format(chunk_index=0, file_index=0))
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        told = [row | {"data/chunk_index": 0, "data/file_index": 0} for row in rows]
        pq.write_table(pa.Table.from_pylist(told), meta / "episodes" / "chunk-000" / "file-000.parquet")
    else:
        for i, table in enumerate(tables):
            pq.write_table(table, folder / path.format(episode_chunk=0, episode_index=i))
        (meta / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def same_as_before(columns, played, first=0):
    """The store's rows are the environment's observation before the action, upright, with our sign."""
    for name in CAMERAS:
        assert (columns[name] == played["before"][name][first:, ::-1]).all(), "flipped top to bottom, left and right as they are"
    assert np.allclose(columns[STATE], played["before"][STATE][first:], atol=1e-6)
    assert np.allclose(columns["action"][:, :6], played["actions"][first:, :6], atol=1e-6), "units are kept"
    assert (columns["action"][:, 6] == -played["actions"][first:, 6]).all(), "+1 opens"


# --- each layout gives the same store -----------------------------------------------------------------------------------------------


def test_original_and_regenerated_files_differ_by_one_row(tmp_path, played):
    for make, first, layout in ((original, 1, "original HDF5"), (regenerated, 0, "regenerated HDF5 (OpenVLA)")):
        report = import_libero(make(tmp_path / layout[:4], played), tmp_path / layout[:8])
        store = Store(tmp_path / layout[:8])
        assert layout in report["sources"][0] and report["warnings"] == []
        same_as_before(store.read(0).columns, played, first)
        assert store.episodes[0].task == sentence_of(MILK) and store.episodes[0].task_id == MILK
        assert store.meta["orientation"] == "upright, true left and right" and store.meta["observation"] == "before its action"
        assert store.meta["action"]["metres"] == 0.05 and store.stats["action"]["count"] == len(played["actions"]) - first
    own = Store(tmp_path / "original").episodes[0].info["own_sentence"]
    assert own == "pick the milk and place it in the basket", "LIBERO-Object's own wording differs from the benchmark's"


@pytest.mark.parametrize(("version", "keys", "names"), [
    ("v2.0", ("observation.images.image", "observation.images.wrist_image"), ("observation.state", "action")),
    ("v2.1", ("image", "wrist_image"), ("state", "actions")),
    ("v3.0", ("observation.images.image", "observation.images.image2"), ("observation.state", "action")),
])  # fmt: skip
def test_lerobot_folders(tmp_path, played, version, keys, names):
    folder = lerobot(tmp_path / "set", played, version, keys, 3, *names)
    report = import_libero(folder, tmp_path / "store", workers=2)
    store = Store(tmp_path / "store")
    assert report["episodes"] == 3 and report["warnings"] == [] and version in report["sources"][0] and store.fps == 20
    assert [info.task for info in store.episodes] == [sentence_of(MILK), sentence_of(SOUP), sentence_of(MILK)]
    for i in range(3):
        same_as_before(store.read(i).columns, played)
    assert store.meta["state_names"][3:6] == ["axis_angle_x", "axis_angle_y", "axis_angle_z"], "not what the data set's metadata say"
    assert import_libero(folder, tmp_path / "milk", task_names=[MILK])["episodes"] == 2


# --- the traps ----------------------------------------------------------------------------------------------------------------------


def test_a_mirrored_or_upside_down_picture_is_noticed(tmp_path, played):
    folder = lerobot(tmp_path / "set", played)
    assert "right -" in refused(tmp_path, folder, "do not lie as 'raw' says", orientation="raw"), "as if they lay like HDF5's"
    report = import_libero(folder, tmp_path / "flipped", orientation="raw", insist=True)
    (told,) = report["evidence"].values()
    assert told["right"] < -0.9 and ["right -" in line for line in report["warnings"]] == [True]
    told = refused(tmp_path, original(tmp_path, played), "do not lie as 'rotated' says", orientation="rotated")
    assert "right -" in told and "up -" in told and "raw | upright; --insist" in told, "180 degrees instead of a flip"
    (told,) = import_libero(folder, tmp_path / "right")["evidence"].values()
    assert told["right"] > 0.9 and told["up"] > 0.2 and told["open"] > 0.9


def test_pictures_that_are_said_to_lie_upright_are_not_flipped(tmp_path, played):
    path = original(tmp_path, played, macros_image_convention="opencv")
    assert "pictures upright" in sources_of(path)[0].describe()
    import_libero(path, tmp_path / "store", insist=True)  # its pictures are upside down
    assert (Store(tmp_path / "store").read(0).columns[CAMERAS[0]] == played["after"][CAMERAS[0]][:-1]).all()


def test_gripper_signs(tmp_path, played):
    ours = played | {"actions": played["actions"] * (1, 1, 1, 1, 1, 1, -1)}
    as_rlds = (1 - played["actions"][:, 6]) / 2  # 1 open, 0 closed
    zero_one = played | {"actions": np.column_stack([played["actions"][:, :6], as_rlds])}
    for i, (wrong, gripper) in enumerate(((ours, "opens"), (zero_one, "opens01"))):
        said = "gripper's sign is the other way" if gripper == "opens" else "commands are not what 'closes' means"
        path = original(tmp_path / str(i), wrong)
        with pytest.raises(UserError, match=said):
            import_libero(path, tmp_path / "store")
        assert not (tmp_path / "store").exists()
        import_libero(path, tmp_path / f"store{i}", gripper=gripper)
        same_as_before(Store(tmp_path / f"store{i}").read(0).columns, played, 1)


def test_noops(tmp_path, played):
    grip = np.array([-1, -1, -1, 1, 1, 1, -1.0])
    move = np.array([0, 1, 0, 0, 0, 1, 0.0])
    actions = np.column_stack([move * 0.5, np.zeros((7, 5)), grip])
    assert kept(actions).tolist() == [False, True, False, True, False, True, True], "a change of the gripper is no no-op"
    before = kept(np.column_stack([np.full(3, 5e-5), np.zeros((3, 5)), [1, -1, 1]]))
    assert not before.any(), "before the first move the gripper is not asked"
    still = played | {"actions": played["actions"].copy()}
    still["actions"][[3, 4], :6] = 0
    whole = import_libero(regenerated(tmp_path, still), tmp_path / "a")
    less = import_libero(regenerated(tmp_path, still), tmp_path / "b", drop_noops=True)
    assert whole["frames"] - less["frames"] == less["noops"] == (~kept(still["actions"])).sum() >= 2
    assert Store(tmp_path / "b").meta["noops_dropped"] is True


# --- bad input ----------------------------------------------------------------------------------------------------------------------


def refused(tmp_path, source, said, **how):
    with pytest.raises(UserError, match=said) as caught:
        import_libero(source, tmp_path / "store", **how)
    assert not (tmp_path / "store").exists() and not (tmp_path / "store.part").exists(), "nothing half-written"
    return str(caught.value)


def test_bad_hdf5(tmp_path, played):
    path = original(tmp_path, played)
    torn = tmp_path / f"{SOUP}_demo.hdf5"
    torn.write_bytes(path.read_bytes()[:-20_000])
    refused(tmp_path, torn, f"{SOUP}_demo.hdf5 cannot be read")
    told = refused(tmp_path, path, "no task 'pick up the mlik'", task_names=["pick up the mlik"])
    assert "did you mean" in told and sentence_of(MILK) in told
    with h5py.File(path, "a") as file:
        del file["data/demo_0/obs/eye_in_hand_rgb"]
    assert "eye_in_hand_rgb" in refused(tmp_path, path, "do not fit")
    refused(tmp_path, regenerated(tmp_path, played | {"actions": played["actions"][:, :6]}), "actions of a wrong shape")
    refused(tmp_path, regenerated(tmp_path, played | {"actions": played["actions"] * 3}), "not LIBERO's relative actions")
    with h5py.File(path, "a") as file:
        del file["data/demo_0"]
    assert "give the other files as SOURCES" in refused(tmp_path, path, "holds 0 demonstrations")
    refused(tmp_path, path, "no orientation 'left'", orientation="left")


@pytest.mark.parametrize("broken", ["actions", "state"])
def test_what_is_not_a_number_is_counted_and_placed(tmp_path, played, broken):
    actions, before = played["actions"].copy(), played["before"] | {STATE: played["before"][STATE].copy()}
    (actions if broken == "actions" else before[STATE])[3, 2:4] = np.nan, np.inf
    path = regenerated(tmp_path, played | {"actions": actions, "before": before})
    told = refused(tmp_path, path, f"demo_0: its {broken} are not all numbers" if broken == "state" else "demo_0: ")
    assert f"2 of {len(actions) * (8 if broken == 'state' else 7)} not finite, the first in row 3" in told and "next step" in told


@pytest.mark.parametrize(("make", "said", "found", "step"), [
    (lambda place: None, "there is no ", "no such file or folder", "correct the path"),
    (lambda place: (place / "training").mkdir(parents=True), "is CALVIN's", "training", "repro calvin import"),
    (lambda place: place.mkdir(), "no HDF5 file", "an empty folder", "give the folder"),
    (lambda place: (place / "a").mkdir(parents=True), "no HDF5 file", "found: a\n", "give the folder"),
])  # fmt: skip
def test_a_wrong_source_is_called_what_it_is(tmp_path, make, said, found, step):
    make(tmp_path / "given")
    told = refused(tmp_path, tmp_path / "given", said)
    assert found in told and step in told and ("CALVIN" in told) == ("CALVIN" in said)


@pytest.mark.parametrize(("info", "said"), [
    ([], "a JSON object"), ({}, "found: no codebase_version"), ({"codebase_version": "v3.0"}, "lacks features, data_path"),
    ({"codebase_version": "v2.1", "features": [], "data_path": "x"}, "lacks features"),
])  # fmt: skip
def test_lerobots_info_of_another_kind(tmp_path, info, said):
    (tmp_path / "set" / "meta").mkdir(parents=True)
    (tmp_path / "set" / "meta" / "info.json").write_text(json.dumps(info))
    assert said in refused(tmp_path, tmp_path / "set", "set")


def test_bad_lerobot(tmp_path, played):
    make = lambda name, **how: lerobot(tmp_path / name, played, **how)
    refused(tmp_path, make("a", version="v1.6"), "unknown LeRobot layout")
    refused(tmp_path, make("b", keys=("observation.images.image", "observation.images.top")), "no camera for observation.images.wrist")
    refused(tmp_path, make("c", change=lambda c: c | {"action": [row[:6] for row in c["action"]]}), "actions of a wrong shape")
    quaternion = [[0, 0, 1, 1, 0, 0, 0, 0.04]] * len(played["actions"])
    refused(tmp_path, make("d", change=lambda c: c | {STATE: quaternion}), "holds a quaternion")
    for version in ("v2.1", "v3.0"):
        folder = make(f"torn {version}", version=version)
        file = next((folder / "data").rglob("*.parquet"))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        refused(tmp_path, folder, f"{file.name} cannot be read")
    short = make("short", change=lambda c: {name: values[:-1] for name, values in c.items()})
    refused(tmp_path, short, "is not whole")
    video = make("video")
    info = json.loads((video / "meta" / "info.json").read_text())
    info["features"]["observation.images.image"]["dtype"] = "video"
    (video / "meta" / "info.json").write_text(json.dumps(info))
    refused(tmp_path, video, "as video")
    import_libero(make("good"), tmp_path / "made")
    refused(tmp_path, tmp_path / "made", "is a store already")
    shutil.rmtree(tmp_path / "made")


def test_a_picture_that_cannot_be_decoded_costs_its_episode_alone(tmp_path, played):
    few = {"before": {name: seen[[0] * 4] for name, seen in played["before"].items()}, "actions": played["actions"][[0] * 4]}

    def tear(columns, damaged):
        pictures = columns["observation.images.wrist_image"]
        torn = [{**picture, "bytes": picture["bytes"][:9]} if row == 2 else picture for row, picture in enumerate(pictures)]
        return columns | ({"observation.images.wrist_image": torn} if columns["episode_index"][0] in damaged else {})

    for version in ("v2.1", "v3.0"):
        one = lerobot(tmp_path / f"one {version}", few, version, episodes=100, change=lambda columns: tear(columns, {60}))
        report, said = import_libero(one, tmp_path / f"store {version}", log=(lines := []).append), "\n".join(lines)
        assert report["episodes"] == 99 and list(report["damaged"]) == [f"one {version}, episode 60"]
        file = "file-000" if version == "v3.0" else "episode_000060"
        assert f"left out: one {version}, episode 60: " in said and f"{file}.parquet, episode 60, observation.images.wrist_image" in said
        assert 60 not in [info.info["episode"] for info in Store(tmp_path / f"store {version}").episodes]
    two = lerobot(tmp_path / "two", few, episodes=100, change=lambda columns: tear(columns, {60, 61}))
    told = refused(tmp_path, two, "too many damaged episodes, nothing was written")
    assert "at most 1% of 100" in told and "episode 60" in told and "episode 61" in told


def test_garbled_rows_cost_their_episodes_alone(tmp_path, played):
    few = {"before": {name: seen[[0] * 4] for name, seen in played["before"].items()}, "actions": played["actions"][[0] * 4]}
    folder = lerobot(tmp_path / "set", few, "v2.1", episodes=100)
    file = folder / "data" / "chunk-000" / "episode_000033.parquet"
    raw = bytearray(file.read_bytes())
    raw[4:2000] = bytes(1996)
    file.write_bytes(raw)
    assert list(import_libero(folder, tmp_path / "store")["damaged"]) == ["set, episode 33"] and len(Store(tmp_path / "store")) == 99


def test_a_download_that_is_not_whole_is_said_before_any_episode_is_read(tmp_path, played, monkeypatch):
    folder = lerobot(tmp_path / "set", played, "v2.1", episodes=3)
    monkeypatch.setattr("repro.data.lerobot._by_episode", lambda *given: pytest.fail("read"))
    file = folder / "data" / "chunk-000" / "episode_000002.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    assert "download it again" in refused(tmp_path, folder, "episode_000002.parquet cannot be read")
    file.unlink()
    refused(tmp_path, folder, "episode_000002.parquet cannot be read")


def test_commands(tmp_path, played):
    path, run = original(tmp_path, played), CliRunner().invoke
    looked = run(libero, ["look", str(path)])
    assert looked.exit_code == 0 and "original HDF5, known by" in looked.output and MILK in looked.output
    done = run(libero, ["import", str(path), str(tmp_path / "store"), "--task_names", MILK, "--drop_noops"])
    assert done.exit_code == 0 and "episodes 1" in done.output and "right +" in done.output, done.output
    assert files_of(tmp_path / "libero_object") == [path]
    short = path.with_name("x_demo.h5")
    shutil.copy(path, short)
    assert files_of(tmp_path / "libero_object") == [path, short] and list(sources_of(short)[0].tasks) == ["x"]
    both = run(libero, ["import", str(path.parent), str(tmp_path / "two")]).output
    assert both.startswith("2 files, each: original HDF5, known by") and both.count("known by") == 1, both
    lost = run(libero, ["import", str(path)])
    assert lost.exit_code == 2 and "Missing argument 'OUT'" in lost.output and "Usage" in lost.output
    none = run(libero, ["import", str(path), str(tmp_path / "none"), "--workers", "0"])
    assert none.exit_code == 2 and "'--workers'" in none.output and not (tmp_path / "none").exists()
    turned = ["import", str(path), str(tmp_path / "turned"), "--orientation", "upright"]
    assert isinstance(run(libero, turned).exception, UserError) and not (tmp_path / "turned").exists()
    assert run(libero, [*turned, "--insist"]).exit_code == 0 and (tmp_path / "turned").exists()


def test_what_is_no_store_is_never_replaced(tmp_path, played):
    """The raw data as OUT, the folder above them, a file: refused with --replace too; a store and an empty folder are replaced."""
    path = original(tmp_path, played)
    for out in (path.parent, path.parent.parent, path):
        for replace in (False, True):
            with pytest.raises(UserError, match="exists and is no store(.|\n)*what is there is not touched"):
                import_libero(path, out, replace=replace)
    assert path.is_file() and not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.old"))
    (tmp_path / "store").mkdir()
    with pytest.raises(UserError, match="--replace"):
        import_libero(path, tmp_path / "store")
    for _ in range(2):
        assert import_libero(path, tmp_path / "store", replace=True)["episodes"] == 1
    with pytest.raises(UserError, match=r"found: a store(.|\n)*--replace \(in Python: replace=True\)"):
        import_libero(path, tmp_path / "store")


# --- the grocery table --------------------------------------------------------------------------------------------------------------


def test_the_grocery_table_is_a_simulator(tmp_path):
    table = base.grocery(image_size=48).build()
    start = {"task": SOUP, "init": 3, "layout": "wide", "seed": 5}
    table.reset(start, render=False)
    expert, rng = table.expert(SOUP, np.random.default_rng(1)), np.random.default_rng(2)
    for _ in range(25):
        table.step(expert.act(), render=False)
    assert table.held == 0, "in the hand"
    saved, ways = table.state(), []
    for simulator in (table, base.grocery(image_size=48).build()):
        simulator.reset(saved, render=False)
        rng = np.random.default_rng(2)
        seen = [simulator.step(rng.uniform(-1, 1, 7)) for _ in range(12)][-1]
        ways.append((simulator.flat().tobytes(), seen[CAMERAS[0]].tobytes()))
    assert ways[0] == ways[1], "a state goes on bit for bit"
    seen = table.reset(start)
    state = seen[STATE]
    assert state.shape == (8,) and abs(np.linalg.norm(state[3:6]) - np.pi) < 1e-3 and np.allclose(state[6:], (0.04, -0.04))
    boxes = table.boxes()
    assert set(boxes) == {*grocery.ITEMS, "basket"} and boxes["basket"][0] > boxes["milk"][2], "the basket is on the right, unmirrored"
    mirrored = grocery.GroceryTable(image_size=48, orientation="rotated")
    assert (mirrored.reset(start)[CAMERAS[0]] == seen[CAMERAS[0]][:, ::-1]).all()
    for wrong, said in (({"task": "fly"}, "no task"), ({"init": 50}, "no such start"), ({"layout": "narrow"}, "no such start")):
        with pytest.raises(UserError, match=said):
            table.reset(start | wrong)


def test_actions_are_in_liberos_units():
    table = grocery.GroceryTable()
    table.reset({"task": 0}, render=False)
    x, y, z, *angles = table.observe(pictures=False)[STATE][:6].tolist()
    told = table.step([0.5, -0.5, 0.2, 0, 0, 0.4, 1.0], render=False) or table.observe(pictures=False)
    assert np.allclose(told[STATE][:3], (x + 0.025, y - 0.025, z + 0.01), atol=1e-6)
    assert np.isclose(table.pose[5], 0.2, atol=1e-6), "0.5 rad per unit, about the world's z"


def test_layouts():
    official = [grocery.start(MILK, init, "official", 0) for init in range(50)]
    at = np.array([items[:, :2] for items, _, _ in official])
    assert np.ptp(at, axis=0).max() <= 0.02 and (grocery.start(MILK, 7, "official", 9)[0] == official[7][0]).all()
    wide = [grocery.start(MILK, 7, "wide", seed) for seed in range(100)]
    moved = np.array([items[3, :2] - official[7][0][3, :2] for items, _, _ in wide])
    baskets = np.array([basket - official[7][1] for _, basket, _ in wide])
    assert 0.06 < np.abs(moved).max() <= 0.07 and 0.04 < np.abs(baskets).max() <= 0.05
    assert all(np.linalg.norm(np.delete(items[:, :2], 3, 0) - items[3, :2], axis=1).min() > 0.11 for items, _, _ in wide)


def test_the_grocery_expert():
    """At least 98 % in both layouts, and after disturbances; a hand that does nothing, or lets go beside the basket, has not done it."""
    table, done, count = grocery.GroceryTable(), 0, 100
    for k in range(count):
        task = grocery.TASKS[k % len(grocery.TASKS)]
        table.reset({"task": task, "init": k % 50, "layout": ("wide", "official")[k % 2], "seed": k}, render=False)
        assert not table.done(task)
        expert = table.expert(task, np.random.default_rng(k), noise=0.25 * (k % 3 == 0), pushes=0.5)
        for _ in range(220):
            table.step(np.clip(expert.act(), -1, 1), render=False)
            if table.done(task):
                assert table.held is None, "what the hand still holds over the basket's floor is not placed"
                break
        done += table.done(task)
        assert sum(table.done(other) for other in grocery.TASKS) <= 1
    assert done >= 0.98 * count
    table.reset({"task": MILK}, render=False)
    expert = table.expert(MILK, np.random.default_rng(0))
    while table.held is None:
        table.step(expert.act(), render=False)
    for _ in range(20):
        table.step([0, 0, 0.2, 0, 0, 0, -1], render=False)
    for _ in range(20):
        table.step([0, 0, 0, 0, 0, 0, 1], render=False)
    assert table.held is None and table.support[3] is not None and not table.done(MILK)


def test_demonstrations_go_on_after_the_tasks_that_are_there(tmp_path, monkeypatch):
    """Out of time, and again; files of another request are refused, and those of the same are left as they are."""
    launch, said = (lambda suite: base.grocery(suite, image_size=32, wrist_size=32, orientation="raw")), []
    write = lambda tasks=(0, 3, 1), **how: libero_hdf5.write(
        tmp_path, "grocery", tasks, **{"per_task": 1, "layout": "wide", "launch": launch, "every": 40, "log": said.append, **how})
    true, written = libero_hdf5._write_task, []

    def stopped(path, *given):
        if len(written) == 1:
            raise clock.OutOfTime("now")
        written.append(path)
        return true(path, *given)

    monkeypatch.setattr(libero_hdf5, "_write_task", stopped)
    with pytest.raises(clock.OutOfTime):
        write()
    assert list((tmp_path / "grocery").iterdir()) == written
    first = written[0].stat().st_mtime_ns
    monkeypatch.setattr(libero_hdf5, "_write_task", true)
    other = lambda suite: base.grocery(suite, image_size=48, orientation="raw")
    for change in ({"per_task": 2}, {"seed": 1}, {"every": 30}, {"launch": other}):
        with pytest.raises(UserError, match="is there already"):
            write(**change)
    folder = write()
    assert "1 of 3 tasks are here already" in said and len(list(folder.iterdir())) == 3 and written[0].stat().st_mtime_ns == first
    assert import_libero(write((0,)), tmp_path / "store")["episodes"] == 3
    with h5py.File(written[0], "a") as file:
        del file["data"].attrs["repro_request"]
    with pytest.raises(UserError, match="is there already"):
        write()


def test_grocery_demonstrations_are_genuine_hdf5(tmp_path):
    """Written through the recorder of the real simulator; without its extras a file is an original one and gives the same rows."""
    launch = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    folder = libero_hdf5.write(tmp_path, "grocery", (MILK,), 2, "wide", launch=launch, log=lambda line: None)
    (path,) = folder.iterdir()
    with h5py.File(path) as file:
        data, demo = file["data"], file["data/demo_0"]
        official = "env_name problem_info bddl_file_name bddl_file_content env_args macros_image_convention num_demos total".split()
        assert {*official, "repro_source"} <= set(data.attrs) and "grocery table" in data.attrs["repro_assets"]
        assert (demo.attrs["init_state"] == demo["states"][0]).all() and demo["dones"][-1] == 1
        table = grocery.GroceryTable(image_size=48, wrist_size=32, orientation="raw")
        table.reset({"task": MILK, "flat": demo.attrs["init_state"]}, render=False)
        for k, action in enumerate(demo["actions"][:10] * (1, 1, 1, 1, 1, 1, -1.0)):
            seen = table.step(action)
            assert (demo["obs/agentview_rgb"][k] == seen[CAMERAS[0]]).all(), "the observation after the action, upside down"
            assert np.allclose(demo["obs/ee_states"][k], seen[STATE][:6], atol=1e-6)
    import_libero(path, tmp_path / "scripted")
    with h5py.File(path, "a") as file:
        for demo in file["data"].values():
            del demo["extras"]
    import_libero(path, tmp_path / "original")
    full, plain = (Store(tmp_path / name).read(1).columns for name in ("scripted", "original"))
    for name in (*CAMERAS, STATE, "action"):
        assert (full[name][1:] == plain[name]).all(), name
    assert Store(tmp_path / "scripted").meta["simulator"] == "grocery table" and (full["gaze.score"] > 0).mean() > 0.8


