"""LIBERO's suites on the grocery table: plans, outcomes, floors, films, records. Run: pytest tests/test_suites.py"""

import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from repro import run_records, scoring
from repro.data import libero_hdf5
from repro.data.episodes import Store
from repro.data.libero import import_libero
from repro.evaluation import floors, policies, protocols, suites
from repro.evaluation.chains import Outcome
from repro.intervals import wilson
from repro.machine import UserError
from repro.models.keypoint_policy import KeypointConfig, KeypointPolicy
from repro.sims import base

MILK, BUTTER = (f"pick_up_the_{item}_and_place_it_in_the_basket" for item in ("milk", "butter"))
QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two demonstrations each of two tasks, the first of each disturbed."""
    top = tmp_path_factory.mktemp("suites")
    launch = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    calm = libero_hdf5.write(top / "calm", "grocery", (MILK, BUTTER), 1, launch=launch, first=3, every=8, **QUIET)
    rough = libero_hdf5.write(top / "rough", "grocery", (MILK, BUTTER), 1, launch=launch, noise=(0.25,), pushes=1.0, every=8, **QUIET)
    import_libero([rough, calm], top / "store" / "training")
    return Store(top / "store" / "training")


@pytest.fixture
def plan():
    return lambda layout="official", episodes=2, **more: suites.plan_of(
        "grocery", layout, episodes, [MILK, BUTTER], image_size=48, wrist_size=32, **more)


def test_plans_keep_the_conventions(plan):
    assert [suites.limit(suite) for suite in protocols.SUITES] == [220, 280, 300, 520, 400] and suites.limit("grocery") == 280
    assert suites.limit("libero_spatial", "lerobot") == 280
    assert [plan(protocol=name).execute for name in ("openvla", "openvla-oft", "openpi")] == [1, 8, 5]
    assert plan(execute=3).execute == 3 and plan(execute=0).execute is None, "0: the whole chunk"
    assert [state["init"] for state, _ in plan(episodes=50).chains][:50] == list(range(50))
    wide, again, other = plan("wide", 3), plan("wide", 3), plan("wide", 3, seed=1)
    seeds = lambda found: {state["seed"] for state, _ in found.chains}
    assert wide.chains == again.chains and not seeds(wide) & seeds(other) and min(seeds(wide) | seeds(other)) >= suites.WIDE_SEED
    assert wide.name == "grocery table, wide layout, 2 single tasks" and wide.sentences[MILK] == MILK.replace("_", " ")
    assert wide.about["settle_steps"] == 0 and wide.max_steps == 280
    for error, call in (("no suite", lambda: suites.plan_of("libero_kitchen")),
                        ("has no task", lambda: suites.plan_of("grocery", tasks=["x"])),
                        ("no 51 episodes", lambda: plan(episodes=51)), ("unknown layout", lambda: plan("narrow"))):
        with pytest.raises(UserError, match=error):
            call()


def test_other_tasks_or_episodes_are_another_evaluation(store, plan, tmp_path):
    """Nothing is refused, thrown away or written over, and a record says what was played."""
    one = lambda task, episodes=1: suites.plan_of("grocery", "official", episodes, [task], image_size=48, wrist_size=32)
    whole = suites.plan_of("grocery", episodes=1)
    plans = [one(MILK), one(BUTTER), one(BUTTER, 2), plan(), whole]
    assert len({where.folder for where in plans}) == len(plans)
    assert whole.folder == "grocery_table_official_init_states_6_single_tasks_1_episodes"
    records = [suites.score({"still": floors.ConstantPolicy()}, where, tmp_path, store, **QUIET)[0] for where in plans[:3]]
    told = {(*record["config"]["tasks"], record["config"]["episodes"]) for record in run_records.load_all(tmp_path / "runs")}
    assert told == {(MILK, 1), (BUTTER, 1), (BUTTER, 2)} and len({record["id"] for record in records}) == 3


def test_a_convention_is_named_alone_only_where_it_is_followed(plan):
    said = plan(episodes=20, execute=4).followed
    assert said == ("openvla-oft's step limit; tasks 2 (6); episodes of each 20 (50); actions of a chunk 4 (8); settle steps 0 (10); "
                    "static picture 48 (256); wrist picture 32 (256)")
    assert "layout wide (official)" in plan("wide").followed and "actions of a chunk all (8)" in plan(execute=0).followed
    assert plan(max_steps=9).followed.startswith("not openvla-oft: 9 steps (280); ")
    real = {"settle_steps": 10, "image_size": [256, 256], "wrist_size": [256, 256]}
    assert replace(plan(), about=real, episodes=50, of=2).followed == "openvla-oft"


def test_a_task_is_named_as_it_is_meant():
    with pytest.raises(UserError, match="'mlik'(.|\n)*did you mean 'pick_up_the_milk_and"):
        suites.plan_of("grocery", tasks=["mlik"])
    with pytest.raises(UserError, match="did you mean 'pick_up_the_orange_juice_and"):
        suites.plan_of("grocery", tasks=["pick_up_orange_juice"])
    assert list(suites.plan_of("grocery", episodes=1, tasks=[MILK, f" {BUTTER} "]).sentences) == [MILK, BUTTER]


def test_no_scripted_demonstration_begins_where_an_evaluation_does(tmp_path, store, plan):
    last = libero_hdf5.start(MILK, "grocery", "wide", 8, libero_hdf5.UNSEEN - 1)["seed"]
    assert last < libero_hdf5.WIDE_SEED == min(state["seed"] for state, _ in plan("wide").chains)
    (tmp_path / "files").mkdir()
    settings = SimpleNamespace(grocery_per_task=1, noise=0.1, workers=1)
    for error, call in (("seed=9", lambda: libero_hdf5.write(tmp_path / "x", "grocery", (MILK,), 1, "wide", seed=9)),
                        ("seed=-1", lambda: libero_hdf5.write(tmp_path / "x", "grocery", (MILK,), 1, "wide", seed=-1)),
                        ("per_task=9001", lambda: libero_hdf5.write(tmp_path / "x", "grocery", (MILK,), 9001, "wide")),
                        ("inits=51", lambda: libero_hdf5.write(tmp_path / "x", "grocery", (MILK,), 1, "wide", inits=51)),
                        ("seed=9", lambda: libero_hdf5.ensure_grocery(tmp_path / "files", settings, 9))):
        with pytest.raises(UserError, match=f"starts of evaluations too(.|\n)*{error}"):
            call()
    assert (tmp_path / "files").is_dir() and not (tmp_path / "x").exists(), "nothing is lost, nothing half-written"
    official = plan(episodes=50).chains
    assert [state["init"] for state in suites.begun(store, official)] == [0, 3, 0, 3] and suites.begun(store, plan("wide", 50).chains) == []


def test_what_is_replayed_was_not_disturbed(store):
    found = suites.recorded(store)
    assert set(found) == {MILK, BUTTER} and [info.info["disturbed"] for info in store.episodes] == [True, True, False, False]
    calm = next(info.index for info in store.episodes if info.task_id == MILK and not info.info["disturbed"])
    assert np.array_equal(found[MILK], store.read(calm, ["action"]).columns["action"])


def test_what_was_disturbed_is_never_replayed(store):
    """Its stored actions are not those that were executed."""
    rough = SimpleNamespace(episodes=[info for info in store.episodes if info.info["disturbed"] or info.task_id == BUTTER],
                            meta=store.meta, read=store.read)
    assert set(suites.recorded(rough)) == {BUTTER}
    assert "(stands still in 1 of 2 tasks)" in str(list(suites.beside(floors.ConstantPolicy(), suites.recorded(rough), PAIR)))


PAIR = SimpleNamespace(sentences={MILK: "milk", BUTTER: "butter"}, suite="libero_goal", layout="official")


def test_what_is_replayed_began_in_the_layout_that_is_evaluated(store, plan, monkeypatch):
    """The store's own; where it has none, the expert's, from a start that nobody is scored from; else the floor's name says which."""
    official, wide = plan(episodes=3), plan("wide", 3)
    stored, began = suites.demonstrations(store, official)
    calm = next(info.index for info in store.episodes if info.task_id == MILK and not info.info["disturbed"])
    assert np.array_equal(stored[MILK], suites.recorded(store)[MILK])
    assert began[MILK] == {"by": f"episode {calm}", "layout": "official", "init": 3, "seed": 3, "evaluated too": False}
    assert suites.demonstrations(store, plan(episodes=4))[1][MILK]["evaluated too"], "init state 3 is one of its starts"
    played, began = suites.demonstrations(store, wide)
    assert set(played) == {MILK, BUTTER} and played[MILK].dtype == np.float32
    for task, actions in played.items():
        told = began[task]
        assert (told["by"], told["layout"], told["evaluated too"]) == ("scripted expert", "wide", False)
        table = wide.launch.build()
        table.reset({"task": task, **{name: told[name] for name in ("layout", "init", "seed")}}, render=False)
        for action in actions:
            table.step(action, render=False)
        assert table.done(task), "from there it succeeds"
    assert np.array_equal(suites.demonstrations(store, wide)[0][MILK], played[MILK]), "the same again"
    every = plan(episodes=50)
    store.episodes, kept = [], store.episodes
    try:
        assert [one["init"] for one in suites.demonstrations(store, plan(episodes=20))[1].values()] == [20, 20]
        assert [one["evaluated too"] for one in suites.demonstrations(store, every)[1].values()] == [True, True], "all 50 are"
    finally:
        store.episodes = kept
    monkeypatch.setattr(suites, "SCRIPTED", ())
    other, began = suites.demonstrations(store, wide)
    scored = suites.beside(floors.ConstantPolicy(), other, wide, began=began)
    name = "replay of one demonstration (of the official layout in 2 of 2 tasks)"
    assert policies.about(scored[name])["demonstrations"][BUTTER]["layout"] == "official" and scored[name].name == name


def test_floors_and_ceiling(store, plan, tmp_path):
    """Official starts are solved by playing one demonstration to them; in the wide layout that fails. The expert does both."""
    share = {}
    for layout in ("official", "wide"):
        where = plan(layout, 8)
        replayed, began = suites.demonstrations(store, where)
        scored = suites.beside(floors.ConstantPolicy(), replayed, where, began=began)
        assert list(scored) == ["images blanked", "shuffled instruction", "replay of one demonstration", "random actions",
                                "constant action", "scripted expert (ceiling)"]
        for name in ("replay of one demonstration", "random actions", "constant action", "scripted expert (ceiling)"):
            found = suites.run(scored[name], where, tmp_path / layout / name, name, **QUIET)
            share[layout, name.split()[0]] = suites.summarise(found)["suite"]["value"]
    assert share["official", "scripted"] == share["wide", "scripted"] == 1
    assert share["official", "random"] == share["wide", "random"] == share["wide", "constant"] == 0
    assert share["official", "replay"] >= 0.5 > share["wide", "replay"], share


def test_resumed_where_it_was_killed(plan, tmp_path):
    where, said = plan(), []
    whole = suites.run(floors.ExpertPolicy(0), where, tmp_path / "a", **QUIET)
    lines = (tmp_path / "a" / "outcomes.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "outcomes.jsonl").write_text("".join(lines[:2]))
    assert suites.run(floors.ExpertPolicy(0), where, tmp_path / "a", log=said.append) == whole and "2 of 4 chains are done" in said[0]
    with pytest.raises(UserError, match="another evaluation"):
        suites.run(floors.ExpertPolicy(0), plan("wide"), tmp_path / "a", **QUIET)


def outcomes(**solved):
    flat = [(task, ok) for task, shares in solved.items() for ok in shares]
    return [Outcome(i, "x", (task,), (bool(ok),), (9,)) for i, (task, ok) in enumerate(flat)]


def test_intervals_by_hand():
    found = suites.summarise(outcomes(a=[1] * 10, b=[0] * 10))
    assert found["task/a"] == {"value": 1.0, "n": 10, "low": wilson(10, 10)[0], "high": 1.0}
    assert found["suite"]["value"] == found["1/1"]["value"] == 0.5 and found["suite"]["n"] == 20
    assert found["suite"]["low"] == 0 and found["suite"]["high"] == 1, "with other tasks it could be anything"
    even = suites.summarise(outcomes(a=[1, 0] * 10, b=[0, 1] * 10))
    assert even["suite"]["low"] <= even["1/1"]["low"] and even["suite"]["high"] >= even["1/1"]["high"] and even["suite"]["high"] < 0.75
    assert suites.summarise(outcomes(a=[0] * 8))["suite"]["high"] == wilson(0, 8)[1], "0 of 8 is not certainty"
    assert suites.summarise(outcomes(a=[1] * 3, b=[1, 0, 0])) == suites.summarise(outcomes(a=[1] * 3, b=[1, 0, 0])), "seeded"


def test_records_and_films(store, plan, tmp_path):
    """A replay of one demonstration does its own start and fails where the table is another: a film of each, and a record."""
    replay = floors.Replay(suites.recorded(store))
    where = plan("wide", 3)
    own = [(dict(info.info["state"]), (info.task_id,)) for info in store.episodes if not info.info["disturbed"]]
    where = replace(where, chains=own + where.chains)
    records = suites.score({"replay": replay, "constant action": floors.ConstantPolicy()}, where, tmp_path, store, videos=1, **QUIET)
    assert [r["variant"] for r in records] == ["replay", "constant action"] and run_records.load_all(tmp_path / "runs")
    mine = records[0]
    assert 2 / 8 <= mine["metrics"]["suite"]["value"] < 1 and mine["metrics"]["suite"]["n"] == 8
    assert mine["simulator"] == "grocery table" and mine["not_comparable_with"] == ["vggt_vla"] and mine["config"]["max_steps"] == 280
    films = {path.stem.rsplit("_", 1)[1]: path for path in (tmp_path / "films").rglob("*.mp4")}
    assert set(films) == {"success", "failure"} and not list((tmp_path / "films").rglob("*.part*"))
    film = cv2.VideoCapture(str(films["success"]))
    count, size = film.get(cv2.CAP_PROP_FRAME_COUNT), (film.get(cv2.CAP_PROP_FRAME_WIDTH), film.get(cv2.CAP_PROP_FRAME_HEIGHT))
    ok, first = film.read()
    seen = where.launch.build().reset(where.chains[0][0])["observation.images.static"]
    assert count > 20 and size == (2 * 288, 288) and ok
    half = cv2.cvtColor(cv2.resize(first[:, :288], (48, 48), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
    assert np.abs(half.astype(int) - seen).mean() < 12, "upright, in its own colours"
    header, rows = suites.table(records)
    assert header[:2] == ["grocery table, wide layout, 2 single tasks", "success % (n = 8)"] and rows[1][1].startswith("0 (0 ")


def test_a_policy_is_loaded_by_what_its_checkpoint_says(tmp_path):
    stats = {"observation.state": {"mean": [0.0] * 8, "std": [1.0] * 8}}
    KeypointPolicy(KeypointConfig(words=("milk",), tasks=(MILK,), state_dim=8), stats).save(tmp_path)
    policy = policies.load_policy(tmp_path)
    assert isinstance(policy, KeypointPolicy) and not policy.training, "as it acts"
    for name in policies.MODELS:
        (tmp_path / "model.json").write_text(json.dumps({"model": name}))
        assert policies.class_of(tmp_path).__name__ == name
    (tmp_path / "model.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        policies.load_policy(tmp_path)
    with pytest.raises(UserError, match="holds no checkpoint"):
        policies.load_policy(tmp_path / "nothing")


def test_the_experiment_knows_the_grocery_table(store):
    work = store.folder.parents[1]
    assert scoring.can_roll_out(work, "grocery") and not scoring.can_roll_out(work, "tabletop")
    for other in ("libero", "calvin"):
        with pytest.raises(UserError, match="cannot act in"):
            scoring.can_roll_out(work, other)
    launch, benchmarks, sentences = scoring.where("grocery", SimpleNamespace(evaluate_single=2, evaluation_scene="D"), work, 0)
    assert [len(found) for found in benchmarks.values()] == [12, 12] and len(sentences) == 6 and launch.options["suite"] == "grocery"


def test_in_liberos_own_simulator(real, tmp_path):
    """The same plan and the same call, with MuJoCo behind it."""
    how = real("libero", suite="libero_object")
    tasks = ["pick_up_the_alphabet_soup_and_place_it_in_the_basket"]
    where = suites.plan_of("libero_object", "wide", 1, tasks, assets=how.options["assets"], image_size=128, wrist_size=128)
    assert where.about["settle_steps"] == 10 and where.max_steps == 280 and where.name == "libero_object, wide layout, 1 single tasks"
    assert suites.summarise(suites.run(floors.ExpertPolicy(0), where, tmp_path, **QUIET))["suite"]["value"] == 1
