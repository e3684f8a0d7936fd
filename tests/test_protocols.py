"""Official protocols against digests and numbers taken from the official code. Run: pytest tests/test_protocols.py"""

import hashlib
import json
import os
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from repro.evaluation import protocols as P
from repro.evaluation.chains import Outcome
from repro.machine import UserError

CLAIMS = Path(__file__).parents[1] / "papers" / "reconvla" / "claims.toml"
START_STATES = "2db0a533c3ca6603f801b10ba4636d65f1ebfbcfcba25c320ea6a573787776c8"  # sha256, official function with pyhash's hash in Python


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    return P.calvin_sequences(cache=folder), folder


# ---- CALVIN --------------------------------------------------------------------------------------------------------------------

def test_the_1000_official_sequences(chains):
    found, _ = chains
    assert hashlib.sha256(json.dumps([(list(start.items()), list(tasks)) for start, tasks in found]).encode()).hexdigest() == P.SEQUENCES
    assert P.SEQUENCES == "4121d62cea846bd5a80cf9309b27240dbd8b2a21a5ba02f311f39df01819e86d"
    attempts = Counter(task for _, tasks in found for task in tasks)
    assert attempts["place_in_slider"] == 398 and attempts["open_drawer"] == 379 and set(attempts) == set(P.CALVIN_TASKS)
    assert Counter(tasks[0] for _, tasks in found)["open_drawer"] == 115
    assert found[0][1] == ("rotate_blue_block_right", "move_slider_right", "lift_red_block_slider", "place_in_slider", "turn_off_lightbulb")


def test_cache_is_whole_checked_and_mended(chains):
    found, folder = chains
    file, said = folder / "calvin_sequences.json", []
    assert [f.name for f in folder.iterdir()] == [file.name] and P.calvin_sequences(3, folder, said.append) == found[:3] and not said
    file.write_bytes(file.read_bytes()[:1000])
    assert P.calvin_sequences(1000, folder, said.append) == found and "damaged" in said[0]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == P.SEQUENCES
    P.calvin_sequences(1, folder)[0][0]["led"] = 7  # a caller's own copy
    assert P.calvin_sequences(1, folder) == found[:1] == P.calvin_sequences(1)


@pytest.mark.parametrize("n", [0, 1001, 2.0, True])
def test_there_are_1000_chains(n):
    with pytest.raises(UserError, match="1 ... 1000"):
        P.calvin_sequences(n)


def test_another_numpy_that_draws_otherwise_is_noticed(monkeypatch):
    monkeypatch.setattr(P, "_draw", lambda index, start, count: [P.CALVIN_TASKS[:5]] * count)
    with pytest.raises(UserError, match="this numpy draws other random numbers"):
        P._official_chains.__wrapped__()


def test_official_conditions():
    start = dict(P.calvin_starts()[0], red_block="grasped", blue_block="table", pink_block="slider_left", grasped=1)
    assert start["slider"] == "right" and P.calvin_outcome("place_in_slider", start)["red_block"] == "slider_right"  # the covered half
    assert P.calvin_outcome("stack_block", start) == dict(start, red_block="stacked_top", blue_block="stacked_bottom", grasped=0)
    assert P.calvin_outcome("stack_block", dict(start, pink_block="table")) is None  # two outcomes
    assert P.calvin_outcome("turn_on_led", start) is None is P.calvin_outcome("place_in_drawer", start)
    table = dict(start, red_block="table", blue_block="slider_right", drawer="open", grasped=0)
    assert P.calvin_outcome("push_into_drawer", table)["red_block"] == "drawer"
    assert P.calvin_outcome("push_into_drawer", dict(table, blue_block="drawer")) is None
    assert P.calvin_outcome("lift_pink_block_slider", table)["grasped"] == 1 and P.calvin_outcome("lift_blue_block_slider", table) is None
    assert len(P.CALVIN_TASKS) == 34 and len({P.calvin_category(task) for task in P.CALVIN_TASKS}) == 11
    assert P.calvin_category("turn_on_led") == P.calvin_category("turn_off_lightbulb")


def test_hash_is_pyhash():
    assert P.fnv1_32("test") == 3910690890  # pyhash's own vector for a str


def test_the_192_official_start_states(chains):
    starts = P.calvin_starts()
    before = np.random.get_state()[1].tobytes()  # noqa: NPY002
    states = [P.calvin_start_state(start) for start in starts]
    assert np.random.get_state()[1].tobytes() == before  # noqa: NPY002
    assert len(starts) == 192 and {tuple(start.values()) for start, _ in chains[0]} == {tuple(start.values()) for start in starts}
    whole = b"".join(state[key].astype("<f8").tobytes() for state in states for key in ("robot_obs", "scene_obs"))
    assert hashlib.sha256(whole).hexdigest() == START_STATES
    first = chains[0][0][0]
    state = P.calvin_start_state(first)
    assert P.fnv1_32(str(first.values())) == 2138410836 and state["scene_obs"][11] == pytest.approx(1.88594101, abs=1e-8)
    assert state["scene_obs"][12] == pytest.approx(0.23, abs=1e-4)  # slots [1, 0]: the blue block, first on the table, takes the second
    for same in (dict(sorted(first.items())), {k: np.int64(v) if isinstance(v, int) else v for k, v in first.items()}):
        assert P.calvin_start_state(same)["scene_obs"].tobytes() == state["scene_obs"].tobytes()


@pytest.mark.parametrize("change", [{"red_block": "drawer"}, {"slider": "middle"}, {"scene": "D"}, {"grasped": 1}])
def test_other_start_states_are_refused(change):
    with pytest.raises(UserError, match="192 start states"):
        P.calvin_start_state({**P.calvin_starts()[5], **change})


def test_chains_for_evaluate(chains):
    found = P.calvin_chains(2, chains[1])
    assert [tasks for _, tasks in found] == [tasks for _, tasks in chains[0][:2]]
    assert found[0][0]["robot_obs"].shape == (15,) and found[0][0]["scene_obs"].shape == (24,)


def test_validation_sentences_come_from_the_users_checkout(tmp_path):
    with pytest.raises(UserError, match="(?s)new_playtable_validation.yaml.*git clone"):
        P.calvin_validation_sentences(tmp_path)
    file = tmp_path / P.SENTENCES
    file.parent.mkdir(parents=True)
    for text in ("open_drawer: [pull it]", "a: [b", "nothing"):
        file.write_text(text)
        with pytest.raises(UserError, match="official sentences"):
            P.calvin_validation_sentences(tmp_path)


def test_official_validation_sentences():
    root = Path(os.environ.get("CALVIN_ROOT") or "no CALVIN_ROOT")
    if not any((place / P.SENTENCES).is_file() for place in (root, root.parent)):
        pytest.skip("CALVIN_ROOT is not (in) a checkout of mees/calvin: its validation sentences are not compared")
    sentences = P.calvin_validation_sentences(root)
    assert set(sentences) == set(P.CALVIN_TASKS) and all(isinstance(sentence, str) for sentence in sentences.values())


# ---- what scripts print --------------------------------------------------------------------------------------------------------

def outcomes(counts, n):
    """n chains of which counts[k] solve at least k + 1 tasks."""
    lengths = [sum(i < count for count in counts) for i in range(n)]
    success = [(True,) * length + (False,) * (length < 5) for length in lengths]
    return [Outcome(i, "", ("task",) * 5, each, (1,) * len(each)) for i, each in enumerate(success)]


def cells(found):
    return [f"{100 * found[f'{k}/5']:.1f}" for k in range(1, 6)], f"{found['average length']:.2f}"


def test_the_papers_rows_are_recomputed_as_printed():
    """All rows but the whole-image one print exactly from 250 chains and the N+1 of ReconVLA's script, and not from N."""
    rows = [r for r in tomllib.loads(CLAIMS.read_text())["row"] if r["table"] in (1, 2) and r["variant"] != "whole"]
    rows.append({"rates": ["98.0", "90.0", "84.5", "78.5", "70.5"], "average_length": "4.23", "variant": "ABCD->D"})
    for row in rows:
        ran = outcomes([round(float(rate) * 251 / 100) for rate in row["rates"]], 250)
        rates, average = cells(P.as_printed(ran, P.RECONVLA))
        assert rates == row["rates"] and cells(P.as_printed(ran, P.CALVIN))[0] != row["rates"]
        if row["variant"] != "explicit":
            assert average == row["average_length"]
        else:  # 3.616: the paper prints 3.61, cut and not rounded
            assert (average, row["average_length"]) == ("3.62", "3.61") and P.as_printed(ran, P.RECONVLA)["average length"] == 3.616


def test_the_mean_counts_itself_when_it_is_whole():
    whole, broken = outcomes([4] * 5, 4), outcomes([3, 1, 1, 1, 1], 4)
    assert P.as_printed(whole, P.RECONVLA) == P.as_printed(whole, P.CALVIN) == {**{f"{k}/5": 1 for k in range(1, 6)}, "average length": 5}
    assert P.as_printed(broken, P.RECONVLA)["1/5"] == 3 / 5 and P.as_printed(broken, P.CALVIN)["1/5"] == 3 / 4


def test_chain_protocols():
    assert P.chain_protocol("CALVIN") == P.CALVIN and (P.CALVIN.chains, P.CALVIN.length, P.CALVIN.max_steps) == (1000, 5, 360)
    assert (P.RECONVLA.chains, P.RECONVLA.max_steps, P.RECONVLA.appends_mean, P.CALVIN.appends_mean) == (500, 500, True, False)
    with pytest.raises(UserError, match="did you mean 'ReconVLA'"):
        P.chain_protocol("reconVLA")
    with pytest.raises(UserError, match="no outcomes"):
        P.as_printed([], P.CALVIN)


# ---- LIBERO --------------------------------------------------------------------------------------------------------------------

def test_libero_conventions():
    found = {name: P.libero_protocol(name) for name in ("openvla", "openvla-oft", "openpi", "lerobot")}
    assert set(tomllib.loads(P.MANIFEST.read_text())) == set(found)
    assert [p.max_steps["libero_spatial"] for p in found.values()] == [220, 220, 220, 280]
    assert [p.actions_per_query for p in found.values()] == [1, 8, 5, 10] and [p.trials for p in found.values()] == [50, 50, 50, 10]
    assert all(p.settle_steps == 10 and set(p.rotated) <= set(p.cameras) and p.source.count(" @ ") == 1 for p in found.values())
    words = {"init_state", "model_input", "gripper", "policy_seed", "success", "exceptions", "denominator", "departure"}
    assert all(set(p.notes) == words for p in found.values())
    with pytest.raises(UserError, match="did you mean 'openvla-oft'"):
        P.libero_protocol("openvla_oft")


@pytest.mark.parametrize("old,new,said", [
    ("trials = 50", 'trials = "50"', "trials = '50'"), ("render = 256\n", "", "render = 'missing'"), ("seed = 0", "sed = 0", "sed = 0"),
    ("libero_spatial = 220", "libero_spatial = 0", "below 1"), ("libero_goal = 300", "libero_gaol = 300", "libero_gaol"),
    ('"once a task"', '"never"', "seeding = 'never'"), ("trials = 50", "trials = ", "cannot be read")])
def test_broken_manifest(tmp_path, old, new, said):
    file = tmp_path / "protocols.toml"
    file.write_text(P.MANIFEST.read_text().replace(old, new, 1))
    with pytest.raises(UserError) as error:
        P.libero_protocol("openvla", file)
    assert said in str(error.value)


def test_libero_chains():
    ours = P.libero_chains(P.libero_protocol("openvla"), "libero_object", ["soup", "milk"], 2)
    assert ours == [({"suite": "libero_object", "task": task, "init": i, "layout": "official", "seed": i}, (task,))
                    for task in ("soup", "milk") for i in (0, 1)]
    lerobot = P.libero_chains(P.libero_protocol("lerobot"), "libero_goal", ["soup"])
    assert [(state["init"], state["seed"]) for state, _ in lerobot] == [(i, 1000 + i) for i in range(10)]
    wide = P.libero_chains(P.libero_protocol("openpi"), "libero_object", ["soup"], 60, "wide", seed=100)
    assert (wide[59][0]["init"], wide[59][0]["seed"], wide[59][0]["layout"]) == (9, 159, "wide")


@pytest.mark.parametrize("change,said", [
    ({"suite": "libero_objects"}, "did you mean 'libero_object'"), ({"layout": "broad"}, "official, wide"), ({"tasks": []}, "each once"),
    ({"tasks": ["a", "a"]}, "each once"), ({"tasks": "soup"}, "each once"), ({"episodes": 51}, "1 ... 50"), ({"episodes": 0}, "1 ... 50")])
def test_bad_libero_requests(change, said):
    with pytest.raises(UserError) as error:
        P.libero_chains(P.libero_protocol("openvla"), **{"suite": "libero_object", "tasks": ["soup"], **change})
    assert said in str(error.value)
