"""The rows of VGGT-VLA from the store to a first look at rollouts, on a few small pictures. Run: pytest tests/test_vla_experiments.py"""

import json
from dataclasses import replace

import pytest
from test_libero import lerobot, original, played, regenerated  # noqa: F401  (played is a fixture)

from repro import profiles, vla_experiments
from repro.data import libero, libero_hdf5, libero_sources, libero_tasks
from repro.data.batches import held_out_episodes
from repro.data.episodes import Store
from repro.evaluation import floors, suites
from repro.machine import UserError
from repro.models.vggt_vla import VGGTVLA
from repro.sims import base, environments
from repro.sims.worker import opened
from repro.training import checkpoint, launch

SETTINGS = replace(profiles.SMOKE, vla_steps=2, workers=1, simulators=4)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    small = lambda suite: base.grocery(suite, image_size=48, wrist_size=32, orientation="raw")
    files = libero_hdf5.write(folder / "libero", "grocery", (0, 3), 2, "wide", launch=small, log=lambda line: None)
    libero.ensure_store(files, folder / "store" / "libero", log=lambda line: None)
    return folder


def test_rows_are_trained_loaded_and_looked_at(work, monkeypatch):
    store, rows, said = vla_experiments.data(work), vla_experiments.named("vggt, blind"), []
    configs = vla_experiments.jobs(SETTINGS, work, rows, batch_size=4)
    jobs = [json.loads(path.read_text()) for path in configs]
    assert [job["model"].get("blind", False) for job in jobs] == [False, True] and jobs[0]["model"]["state_dim"] == 8
    assert all(job["held_out"] == 0.1 and job["train"]["best"] and job["train"]["warmup"] == 1 for job in jobs)
    for config in configs:
        assert launch.train_from_config(config, said.append).finished
    assert any("trainable of" in line for line in said) and any("1 episodes held out" in line for line in said)
    models = vla_experiments.load(work, rows)
    best = vla_experiments.load(work, rows, best=True)
    for model in [*models.values(), *best.values()]:
        assert isinstance(model, VGGTVLA) and model.trained["step"] == 2 and model.minutes > 0
    assert checkpoint.about(checkpoint.need(work / "train" / "vggt-tiny-vggt"))["data"]["held out episodes"] == sorted(
        held_out_episodes(store.episodes, 0.1))

    lines = work / "train" / "vggt-tiny-blind" / "metrics.jsonl"
    kept = lines.read_text()
    lines.write_text(kept.splitlines(keepends=True)[0])
    assert vla_experiments.load(work, ["blind"])["blind"].minutes == 0, "a torn log is no reason to refuse a checkpoint"
    lines.write_text(kept)
    with pytest.raises(UserError, match="(?s)holds no checkpoint.*notebook 06"):
        vla_experiments.load(work, ["graph"])

    header, table = vla_experiments.parameters(models)
    counts = {line[0]: line[1:] for line in table}
    as_number = lambda text: 0 if text == "-" else int(text.replace(",", ""))
    assert header == ["part", "vggt", "blind"] and counts["point"][1] == "-"
    for column, model in enumerate(models.values()):
        assert sum(as_number(line[1 + column]) for line in table[:-2]) == sum(p.numel() for p in model.parameters())
        assert f"{counts['trainable'][column]} of {counts['in all'][column]} parameters train" == model.counts()
    assert [line[0] for line in vla_experiments.held_out_table(work, models, 0, "vggt_tiny")[1]] == rows

    monkeypatch.setattr(vla_experiments, "MAX_STEPS", 9)
    found = vla_experiments.first_look(SETTINGS, work, models, log=said.append)
    assert {row: len(outcomes) for row, outcomes in found.items()} == {"vggt": 2, "blind": 2}
    assert all(outcome.steps == (9,) for outcomes in found.values() for outcome in outcomes)
    lines = vla_experiments.success_table(found)[1]
    assert lines[0] == ["vggt", "0 of 2", "0 [0, 66]"] and lines[-1][-1] == "measured in notebook 09"
    assert len(vla_experiments.film(models["vggt"], work).axes) == 3  # queries at 0 and 8, and the end
    check_maps_without_boxes(models["vggt"], store, monkeypatch)


def check_maps_without_boxes(model, store, monkeypatch):
    """Real LIBERO has no gaze boxes before notebook 04: notebook 08 draws maps, and says that it measures nothing."""
    said = []
    assert "in the box" in vla_experiments.attention_figure({"vggt": model}, store, 4, "", log=said.append).axes[1].get_xlabel()
    assert said == []
    read = Store.read
    bare = lambda episode: replace(episode, columns={k: v for k, v in episode.columns.items() if not k.startswith("gaze.")})
    monkeypatch.setattr(Store, "read", lambda store, *given, **how: bare(read(store, *given, **how)))
    monkeypatch.setattr(Store, "columns", [name for name in store.columns if not name.startswith("gaze.")])
    figure = vla_experiments.attention_figure({"vggt": model}, store, 4, "", log=said.append)
    assert [axis.get_title() for axis in figure.axes][1::2] == ["vggt"] * 3 and "no gaze boxes" in said[-1]


def test_rollouts_begin_where_no_demonstration_did(work):
    store = vla_experiments.data(work)
    used = [episode.info["state"]["seed"] for episode in store.episodes]
    begins = vla_experiments.starts(store, 3)
    assert len(begins) == 6 and not {state["seed"] for state, _ in begins} & set(used)
    assert {tasks for _, tasks in begins} == {(episode.task_id,) for episode in store.episodes}


def test_data_of_another_simulator_are_not_rolled_out_here(work, monkeypatch):
    store, said = vla_experiments.data(work), []
    store.meta["simulator"] = "libero"
    monkeypatch.setattr(vla_experiments, "data", lambda work: store)
    assert vla_experiments.first_look(SETTINGS, work, {"vggt": None}, log=said.append) == {} and "notebook 09" in said[0]


def test_without_gaze_boxes_nothing_points_and_small_words_train_along(work, monkeypatch):
    store = vla_experiments.data(work)
    assert "point_weight" not in vla_experiments.model_of(store, "vggt", "vggt_tiny")
    told = vla_experiments.encode(store, "vggt_tiny")
    assert told.startswith("2 sentences") and "train along" in told
    monkeypatch.setattr(type(store), "columns", ["action"])
    assert vla_experiments.model_of(store, "vggt", "vggt_tiny")["point_weight"] == 0.0


def test_what_is_missing_or_misspelt_is_said(tmp_path, work):
    with pytest.raises(UserError, match="run notebook 02 first"):
        vla_experiments.data(tmp_path)
    with pytest.raises(UserError, match="has no row 'vgtt'"):
        vla_experiments.named("none, vgtt")
    assert vla_experiments.named("") == ["none", "graph", "vggt", "blind"]
    settings = profiles.get("t4")
    config = json.loads(vla_experiments.job(settings, work, "graph").read_text())
    assert config["model"] == {"preset": "vggt_qwen3", "backbone": "graph", "backbone_weights": "", "state_dim": 8}
    assert launch.train_config(launch.Job(**config), tmp_path).keep_epochs == 5


# ---- which suite and tasks ---------------------------------------------------------------------------------------------------------

MILK = "pick_up_the_milk_and_place_it_in_the_basket"
BOWL = "pick up the black bowl next to the plate and place it on the plate"
STOVE, POTS, MUG = "turn on the stove", "put both moka pots on the stove", "KITCHEN_SCENE8_put_both_moka_pots_on_the_stove"
RACK, BOOK = "put the wine bottle on the rack", "pick up the book and place it in the back compartment of the caddy"
QUIET = {"log": lambda line: None}


class Benchmark:
    """What a plan asks LIBERO's simulator: its tasks, and what it is."""

    def __init__(self, suite, **options):
        self.suite = suite

    def task_list(self):
        return libero_tasks.TASKS[self.suite]

    def about(self):
        return {"simulator": "LIBERO", "renderer": "none", "assets": "none", "settle_steps": 10}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(environments, "launch", lambda name, **options: base.Launch(f"{__name__}:Benchmark", options))


def told(folder, played, *sentences, version="v2.0"):  # noqa: F811
    """A LeRobot folder with these sentences."""
    lerobot(folder, played, version, episodes=len(sentences))
    rows = [{"episode_index": i, "tasks": [said], "length": len(played["actions"])} for i, said in enumerate(sentences)]
    (folder / "meta" / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stored(source, place):
    libero.import_libero(source, place)
    return Store(place)


def test_every_layout_is_evaluated_in_its_own_suite(tmp_path, played, benchmark):  # noqa: F811
    """Whatever the folder is called: the suite and its names of the tasks are the benchmark's, for the plan and for what is replayed."""
    spatial = BOWL.replace(" ", "_")
    for source, suite, tasks in (
            (original(tmp_path / "a", played), "libero_object", [MILK]),
            (regenerated(tmp_path / "b", played), "libero_object", [MILK]),  # libero_object_no_noops
            (told(tmp_path / "libero_spatial_image", played, BOWL, BOWL), "libero_spatial", [spatial]),
            (lerobot(tmp_path / "libero", played, "v3.0"), "libero_object", sorted([
                MILK, "pick_up_the_alphabet_soup_and_place_it_in_the_basket"])),
            (told(tmp_path / "libero_10_image", played, POTS, BOOK), "libero_10",
             [MUG, "STUDY_SCENE1_pick_up_the_book_and_place_it_in_the_back_compartment_of_the_caddy"]),
            (told(tmp_path / "some download", played, STOVE, RACK), "libero_goal",
             ["put_the_wine_bottle_on_the_rack", "turn_on_the_stove"])):
        store, said = stored(source, tmp_path / "stores" / source.parent.name / source.name), []
        here = vla_experiments.plan(SETTINGS, store, log=said.append)
        assert (here.suite, sorted(here.sentences), said) == (suite, tasks, []), source
        assert {state["suite"] for state, _ in here.chains} == {suite}
        assert here.layout == ("wide" if suite == "libero_object" else "official")
        assert {info.scene for info in store.episodes} == {suite} and {info.task_id for info in store.episodes} == set(tasks)
        known = suites.recorded(store)
        assert sorted(known) == tasks and all(len(actions) > 20 for actions in known.values())
        assert "replay of one demonstration" in suites.beside(floors.ConstantPolicy(), known, here), "nothing stands still"


def test_stores_that_were_imported_before_are_evaluated_too(tmp_path, played, benchmark):  # noqa: F811
    """Their scene is the folder's name, their task the sentence."""
    store = stored(told(tmp_path / "libero_10_image", played, POTS, BOOK), tmp_path / "store")
    store.episodes = [replace(info, scene="libero_10_image", task_id=info.task.replace(" ", "_")) for info in store.episodes]
    here = vla_experiments.plan(SETTINGS, store, **QUIET)
    assert here.suite == "libero_10" and MUG in here.sentences and set(suites.recorded(store)) == set(here.sentences)


def test_data_of_several_suites_are_evaluated_in_each(tmp_path, played, benchmark, monkeypatch):  # noqa: F811
    store = stored(told(tmp_path / "libero", played, STOVE, RACK, POTS, BOWL), tmp_path / "store")
    assert suites.tasks_of(store)[0] == {"libero_10": [MUG], "libero_goal": ["put_the_wine_bottle_on_the_rack", "turn_on_the_stove"],
                                         "libero_spatial": [BOWL.replace(" ", "_")]}
    with pytest.raises(UserError, match="(?s)which suite.*libero_10, libero_goal, libero_spatial"):
        vla_experiments.plan(SETTINGS, store)
    scored = []
    monkeypatch.setattr(vla_experiments, "data", lambda work: store)
    monkeypatch.setattr(suites, "score", lambda policies, here, *given, config, **how: scored.append((here.suite, config)) or [here.name])
    assert len(vla_experiments.roll_out(SETTINGS, tmp_path, {}, **QUIET)) == 3
    assert [suite for suite, _ in scored] == ["libero_10", "libero_goal", "libero_spatial"]
    assert scored[0][1] == {"profile": "smoke", "starts of demonstrations": None}, "people's data do not say where they began"


def test_what_the_benchmark_cannot_be_asked_for_is_said_at_import_and_at_evaluation(tmp_path, played, benchmark):  # noqa: F811
    both = told(tmp_path / "libero_90", played, "open the top drawer of the cabinet", "wash the dishes")
    described = libero_sources.sources_of(both)[0].describe()
    assert "said by 2 tasks" in described and "KITCHEN_SCENE1_open_the_top" in described and "'wash the dishes' is said by no" in described
    with pytest.raises(UserError, match="(?s)which suite.*'open the top drawer of the cabinet' is said by 2 tasks.*--suite SUITE"):
        vla_experiments.plan(SETTINGS, stored(both, tmp_path / "store"), **QUIET)
    said, part = [], stored(told(tmp_path / "x", played, STOVE, "close the microwave"), tmp_path / "part")
    assert list(vla_experiments.plan(SETTINGS, part, log=said.append).sentences) == ["KITCHEN_SCENE6_close_the_microwave"]
    assert len(said) == 1 and "not evaluated: 'turn on the stove' is said by 3 tasks" in said[0], "libero_90 has it twice"
    alone = stored(told(tmp_path / "y", played, STOVE), tmp_path / "alone")
    assert suites.tasks_of(alone)[0] == {} and list(suites.recorded(alone, "libero_goal")) == ["turn_on_the_stove"], "the user says which"


def test_a_replay_that_stands_still_says_so(benchmark):
    here, still = suites.plan_of("libero_goal", episodes=1), floors.ConstantPolicy()
    known = {"turn_on_the_stove": 0, "not_a_task": 0}
    assert "replay of one demonstration (stands still in 9 of 10 tasks)" in suites.beside(still, known, here)
    with pytest.raises(UserError, match="(?s)no demonstration to replay.*libero_goal.*not_a_task.*--no-floors"):
        suites.beside(still, {"not_a_task": 0}, here)


def test_wide_starts_of_demonstrations_are_not_evaluated(work):
    store = vla_experiments.data(work)
    here = vla_experiments.plan(SETTINGS, store, **QUIET)
    assert here.layout == "wide" and vla_experiments.repeated(store, here.chains) == 0, "scripted data say where they began"
    store.episodes[1].info["state"]["seed"] = libero_hdf5.WIDE_SEED
    with pytest.raises(UserError, match="demonstrations of starts that are evaluated"):
        vla_experiments.plan(SETTINGS, store, **QUIET)


def test_the_lists_are_the_benchmarks(real, tmp_path, played):  # noqa: F811
    """Every suite's list in its own package, and a plan in its own simulator."""
    how = real("libero", suite="libero_object")
    with opened(how) as worker:
        for suite, names in libero_tasks.TASKS.items():
            ask = lambda number, suite=suite: worker.ask_and_wait("apply", "repro.sims.libero_expert:task_name", [number, suite])
            assert [ask(number) for number in range(len(names))] == names
            with pytest.raises(UserError, match="no task"):
                ask(len(names))
    store = stored(told(tmp_path / "libero_spatial_image", played, BOWL), tmp_path / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_LIBERO_ASSETS", how.options["assets"] or "")
        here = vla_experiments.plan(replace(SETTINGS, vla_episodes=1), store, **QUIET)
    assert here.suite == "libero_spatial" and here.about["simulator"] == "LIBERO" and list(here.sentences.values()) == [BOWL]
