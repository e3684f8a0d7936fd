"""What `repro simulate` trains, on embedded data: VLAs whose tower sees another simulator's pictures. Run: pytest tests/test_real.py"""

import copy
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

from repro import cli, profiles, real, real_tables, run_records
from repro.data import libero, libero_hdf5
from repro.data.calvin_import import ensure_store
from repro.evaluation import floors
from repro.evaluation.policies import load_policy
from repro.gaze.annotate import annotate
from repro.machine import UserError
from repro.models import tiny_training
from repro.sims import base, calvin_layout
from repro.training import launch

SIZE = replace(real.SIZES["smoke"], vla_steps=2, parts=(2, 2, 2, 24))
SAID = []


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Trained in this process."""
    monkeypatch.setattr(launch, "jobs", lambda configs, log: [launch.train_from_config(config, log) for config in configs])


def observations(store, count=2):
    columns = store.read(0).columns
    return [{name: values[t] for name, values in columns.items() if name.startswith("observation.")} for t in range(count)]


def test_reconvlas_rows_begin_with_the_parts_and_train_the_tower_along(tmp_path):
    settings = replace(profiles.get("smoke"), scenes=("A",), evaluation_scene="A", tasks=profiles.EIGHT_TASKS[:2], episodes_per_task=1)
    calvin_layout.ensure(tmp_path / "calvin", settings, log=SAID.append)
    store = ensure_store(tmp_path / "calvin", "training", tmp_path / "store", workers=1, log=SAID.append)
    annotate(store.folder, "truth")
    store = type(store)(store.folder)
    models = real.reconvla(tmp_path, store, SIZE, 0, None, SAID.append)
    assert list(models) == ["ReconVLA tiny, baseline", "ReconVLA tiny, whole", "ReconVLA tiny, gaze", "ReconVLA tiny, blind"]
    learned = load_file(tmp_path / "parts" / "tower" / "tower.safetensors")
    for name, model in models.items():
        assert model.trained["step"] == 2 and (model.config.recon, model.config.target, model.config.blind) == {
            "baseline": (False, "gaze", False), "whole": (True, "whole", False), "gaze": (True, "gaze", False),
            "blind": (False, "gaze", True)}[name.split(", ")[1]]
        now = dict(model.vision_tower.named_parameters())
        apart = [float((now[key].detach() - value).abs().max()) for key, value in learned.items() if key in now]
        assert model.config.blind or 0 < max(apart) < 0.1, "from what was learned, and along"
        assert np.isfinite(model.act(observations(store), ["open the drawer"] * 2)).all()
    records = real.looked(tmp_path, models, store, store, {"renderer": "r"}, 0)
    assert {(r["variant"].split(", ")[1], r["benchmark"]) for r in records} == {
        *((row, real.OFFLINE) for row in real.RECONVLA), *((row, real.ATTENTION) for row in ("baseline", "whole", "gaze"))}
    with Image.open(tmp_path / "figures" / "calvin_attention.png") as figure:
        assert figure.width > 800, "the picture and three rows"
    header, rows = real_tables.recorded_table(records)
    assert header[1].startswith("motion error (n = 2)") and len(header) == 8
    assert [row[-1] == "-" for row in rows] == [True, True, False, True], "the VAE is that of the row that reconstructs the gaze region"
    metrics = next(r["metrics"] for r in records if "gaze targets, through the VAE, dB" in r["metrics"])
    assert 3 < metrics["gaze targets, through the VAE, dB"]["value"] < 60 > metrics["gaze targets, the mean picture, dB"]["value"]
    kept = (tmp_path / "parts" / "tower" / "tower.safetensors").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_training, "pretrain", lambda *a, **k: pytest.fail("learned again"))
        again = real.reconvla(tmp_path, store, SIZE, 0, tmp_path / "parts", SAID.append)
    assert list(again) == list(models) and (tmp_path / "parts" / "tower" / "tower.safetensors").stat().st_mtime_ns == kept


def test_vggt_vlas_rows(tmp_path):
    small = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    files = libero_hdf5.write(tmp_path / "libero", "grocery", (0,), 1, "wide", launch=small, log=SAID.append)
    store = libero.ensure_store(files, tmp_path / "store", log=SAID.append)
    models = real.vggt_vla(tmp_path, store, SIZE, 0, SAID.append)
    assert [(name, model.config.backbone, model.config.blind) for name, model in models.items()] == [
        ("VGGT-VLA tiny, none", "none", False), ("VGGT-VLA tiny, vggt", "vggt", False), ("VGGT-VLA tiny, blind", "vggt", True)]
    seen = observations(store)
    for name, model in models.items():
        said, dark = (model.act([{**one, **change} for one in seen], [store.episodes[0].task] * 2) for change in (
            {}, {"observation.images.static": np.zeros_like(seen[0]["observation.images.static"])}))
        assert said.shape == (2, 8, 7) and np.array_equal(said, dark) == name.endswith("blind")


def test_a_policy_of_any_kind_is_refused_data_of_another_kind(tmp_path):
    """What pictures and actions mean goes into the checkpoint, whatever the model, and is compared where it is used."""
    small = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    files = libero_hdf5.write(tmp_path / "libero", "grocery", (0,), 1, "wide", launch=small, log=SAID.append)
    store = libero.ensure_store(files, tmp_path / "store", log=SAID.append)
    job = launch.write_config(tmp_path / "keypoint.json", name="k", store=store.folder, folder=tmp_path / "keypoint",
                              model={"preset": "keypoints", "state_dim": 8}, train={"steps": 1, "batch_size": 2})
    launch.train_from_config(job, SAID.append)
    assert load_policy(tmp_path / "keypoint", store).data["orientation"] == "upright"
    other = copy.copy(store)
    other.meta = store.meta | {"orientation": "rotated, as OpenVLA has it", "action": store.meta["action"] | {"metres": 0.02}}
    with pytest.raises(UserError) as error:
        load_policy(tmp_path / "keypoint", other)
    assert all(row in str(error.value).replace(" ", "") for row in ("data.orientation|upright|rotated", "data.metres|0.05|0.02"))
    with pytest.raises(UserError, match="leave out --language, --vggt"):
        load_policy(tmp_path / "keypoint", store, language="x", elsewhere={"vggt": "y", "vision": ""})


def test_a_replay_without_a_demonstration_says_in_how_many_tasks_it_stands_still():
    moves = {"milk": np.ones((3, 7), np.float32)}
    assert floors.replay(moves, ["milk"]).name == "replay of one demonstration"
    floor = floors.replay(moves, ["milk", "soup"])
    assert floor.name == "replay of one demonstration (stands still in 1 of 2 tasks)" and (floor.demonstrations["soup"][:, :6] == 0).all()


def record_of(folder, name, seed=0, simulator="LIBERO", commit="0123456789ab"):
    share = {"value": 0.5, "n": 10, "low": 0.2, "high": 0.8}
    one = run_records.record("real simulators", name, benchmark="LIBERO-Object, wide layout", data="d", data_hash="h", config={
        "simulator": {"renderer": "r", "versions": {}, "assets": "a"}}, seed=seed, metrics={"1/1": share}, minutes=1, simulator=simulator,
        renderer="r", not_comparable_with=["x"])
    return run_records.save({**one, "commit": commit}, folder / "runs")


def test_what_is_published_takes_the_place_of_the_same_simulators_records(tmp_path, monkeypatch):
    monkeypatch.setattr(real.machine, "root", lambda: tmp_path)
    monkeypatch.setattr(real.machine, "work", lambda profile: tmp_path / "work")
    kept, gone = record_of(tmp_path / "results" / "sims", "blind", simulator="CALVIN"), record_of(tmp_path / "results" / "sims", "older")
    record_of(tmp_path / "work" / "sims" / "libero", "blind")
    record_of(tmp_path / "work" / "sims" / "libero" / "seed1", "blind", seed=1)
    real.publish("cpu", log=SAID.append)
    assert kept.exists() and not gone.exists() and len(list(kept.parent.glob("*.json"))) == 2
    real.publish("cpu", 1, log=SAID.append)
    assert [one["seed"] for one in run_records.load_all(kept.parent)] == [0, 1], "CALVIN's, and LIBERO's of that seed"
    record_of(tmp_path / "results" / "sims", "blind", seed=2)
    with pytest.raises(UserError, match="two records of 'blind'"):
        real_tables.real_section(tmp_path / "results" / "sims")


def test_parts_are_reconvlas_alone():
    said = CliRunner().invoke(cli.cli, ["simulate", "libero", "--parts", "work/parts"])
    assert isinstance(said.exception, UserError) and "only ReconVLA" in str(said.exception)


def test_rows_stand_before_floors_in_the_readme(tmp_path):
    for name in ("random actions", "blind", "VGGT-VLA tiny, none", "keypoint policy", "constant action"):
        record_of(tmp_path, name)
    section = real_tables.real_section(tmp_path)
    order = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][2:]
    assert order == ["VGGT-VLA tiny, none", "keypoint policy", "blind", "constant action", "random actions"]


def test_held_out_init_states_are_held_out(tmp_path):
    """What the record says is counted in the store; with all 50 init states in training, or a wide start, nothing is evaluated."""
    small = lambda suite: base.grocery(suite, image_size=32, wrist_size=32, orientation="raw")
    rest = {"launch": small, "every": 40, "log": SAID.append}
    files = lambda name, **how: libero_hdf5.write(tmp_path / name, "grocery", (0,), 2, "wide", **rest, **how)
    made = lambda name, **how: libero.ensure_store(files(name, **how), tmp_path / name / "store")
    held_out = range(45, 50)
    wide = lambda seed: {"wide": [({"task": task, "init": 45, "layout": "wide", "seed": seed}, (task,))]}
    kept = made("kept", first=44, inits=45)
    task = kept.episodes[0].task_id
    assert [info.info["state"]["init"] for info in kept.episodes] == [44, 0], "number 45 wraps before what is held out"
    assert real.untrained(kept, held_out, wide(900_000)) == "45 ... 49; the 2 demonstrations began from 2 others, 0 ... 44"
    with pytest.raises(UserError, match="1 starts of demonstrations"):
        real.untrained(kept, held_out, wide(45))
    with pytest.raises(UserError, match=r"init states \[45\]"):
        real.untrained(made("all", first=44), held_out, wide(900_000))


def test_other_starts_stay_out_of_what_is_held_out():
    """Where the expert fails at a start, another one is tried; with 36 a task that of number 9 was 45."""
    asked = []

    class Failing:
        def run(self, suite, function, state, seed, settings):
            asked.append(state)
            return {"success": False, "tries": 1}

    for number in range(36):
        with pytest.raises(UserError, match="the expert fails"):
            libero_hdf5._episode(Failing(), "libero_object", "wide", 0, {}, 36, 40, "milk", number)
    assert len(asked) == 360 and max(state["init"] for state in asked) == 39 and len({state["seed"] for state in asked}) == 360


def test_the_largest_size_writes_no_held_out_start(tmp_path, monkeypatch):
    """What `repro simulate libero --profile t4` asks the writer for, by the writer's own rule."""
    asked = []

    def stop(*given):
        raise KeyError("enough")

    monkeypatch.setattr(real.environments, "launch", lambda name, **options: None)
    monkeypatch.setattr(libero_hdf5, "write", lambda *given, inits, log: (asked.append((given[3], inits)), given[0].mkdir(parents=True)))
    monkeypatch.setattr(real.libero_data, "ensure_store", stop)
    with pytest.raises(KeyError, match="enough"):
        real.libero(tmp_path, real.SIZES["t4"], log=SAID.append)
    assert asked == [(200, 40), (40, 40)]
    assert {libero_hdf5.start("milk", "libero_object", "wide", 0, number, 40)["init"] for number in range(2000)} == set(range(40))
