"""`repro evaluate chains` as it is typed, on the play table, with an official checkpoint's folder that learned nothing and with ours.
Run: pytest tests/test_chain_scores.py"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_reconvla_exact import ABOUT, FIELDS, STATS, data, folder_of, small_parts

from repro import run_records
from repro.data.calvin_import import ensure_store
from repro.data.episodes import Store
from repro.evaluation import chain_scores, policies, protocols
from repro.evaluation.commands import evaluate
from repro.machine import UserError
from repro.models import official, towers
from repro.models.keypoint_policy import KeypointConfig, KeypointPolicy
from repro.models.words import split
from repro.sims import calvin_layout

TASKS = ("open_drawer", "close_drawer", "turn_on_led", "turn_off_led", "turn_on_lightbulb", "turn_off_lightbulb")
QUIET = dict(log=lambda line: None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with store/, of six tasks in scene A, and models of this library: seeing/ and blind/ ."""
    top = tmp_path_factory.mktemp("chains")
    calvin_layout.write(top / "raw", ("A",), TASKS, 1, 1, "D", 0, 1, draw_every=5, **QUIET)
    store = ensure_store(top / "raw", "training", top / "store", 1, **QUIET)
    words = tuple(sorted({word for episode in store.episodes for word in split(episode.task)}))
    for name, more in (("seeing", {}), ("blind", {"blind": True, "point_weight": 0.0})):
        (top / name).mkdir()
        KeypointPolicy(KeypointConfig(words, TASKS, **more), store.stats).save(top / name)
    return top


@pytest.fixture
def called(made, monkeypatch):
    """The command's output; a task may take 40 steps."""
    for name, rules in list(protocols.CHAIN_PROTOCOLS.items()):
        monkeypatch.setitem(protocols.CHAIN_PROTOCOLS, name, replace(rules, max_steps=40))

    def call(model, *more, out):
        answer = CliRunner().invoke(evaluate, ["chains", "--model", str(model), "--store", str(made / "store"), "--chains", "3",
                                               "--out", str(out), *map(str, more)])
        if answer.exception:
            raise answer.exception
        return answer.output

    return call


@pytest.fixture
def released(tmp_path, monkeypatch):
    """A folder in the layout of the released checkpoint, small; SigLIP's architecture is the small one."""
    folder = folder_of(tmp_path / "ReconVLA")
    small_parts()["tokenizer"].save_pretrained(folder)
    monkeypatch.setattr(towers, "vision", lambda *_, **__: small_parts()["vision"])
    monkeypatch.setattr(towers, "vae", lambda *_, **__: pytest.fail("acting needs no VAE, whose config is gated"))
    return folder


def test_a_score_stands_among_its_floors_and_goes_on(called, made, tmp_path):
    output = called(made / "seeing", "--protocol", "reconvla", out=tmp_path)
    found = {record["variant"]: record for record in run_records.load_all(tmp_path / "runs")}
    assert set(found) == {"KeypointPolicy", "images blanked", "shuffled instruction", "replay of one demonstration", "random actions",
                          "constant action", "scripted expert (ceiling)"}
    assert all(f"| {name} |" in output for name in found) and "play table A->D, 6 tasks, chains of 5, 40 steps a task" in output
    for record in found.values():
        lengths = [int(one) for one in record["outcomes"]]
        assert len(lengths) == 3 == record["metrics"]["1/5"]["n"] and record["not_comparable_with"] == ["reconvla"]
        assert record["metrics"]["average length"]["value"] == pytest.approx(np.mean(lengths))
        assert record["config"]["max_steps"] == 40 and record["config"]["protocol"] == "not ReconVLA: its rules alone"
    lengths = [int(one) for one in found["scripted expert (ceiling)"]["outcomes"]]
    first = sum(length > 0 for length in lengths) + (sum(lengths) in (3, 6, 9, 12, 15))  # a whole mean counts as one chain more
    said = "ReconVLA's script, which divides by N + 1, would print"
    assert any(lengths) and f"scripted expert (ceiling): {said} {100 * first / 4:.1f}, " in output
    outcomes = {path: path.read_text() for path in (tmp_path / "outcomes").rglob("outcomes.jsonl")}
    assert len(outcomes) == 7
    called(made / "seeing", "--protocol", "reconvla", out=tmp_path)
    assert outcomes == {path: path.read_text() for path in (tmp_path / "outcomes").rglob("outcomes.jsonl")}, "nothing was done twice"
    output = called(made / "seeing", "--blind", made / "blind", "--tasks", ",".join(TASKS[:5]), out=tmp_path / "blind")
    assert "| blind, trained |" in output and "blanked" not in output and "5 tasks" in output and "N + 1" not in output


def test_the_released_layout_is_a_policy_without_denoiser_and_vae(called, made, released, tmp_path):
    output = called(released, "--no-floors", out=tmp_path)
    record, = run_records.load_all(tmp_path / "runs")
    assert record["variant"] == "released checkpoint" and "| released checkpoint |" in output
    assert record["config"]["policy"]["model"]["recon"] is False and record["not_comparable_with"] == ["reconvla"], "no CALVIN"
    policy = policies.load_policy(released, Store(made / "store"))
    assert policy.vae is None and policy.denoiser is None
    known = Store(made / "store").meta["source_statistics"]["robot_obs"]
    assert policy.stats["observation.state"]["mean"] == pytest.approx(known["mean"]), "statistics.yaml's, not the store's own"


def test_it_acts_as_the_whole_one_does(released):
    parts = small_parts()
    net = official.load_official(released, STATS, **{**parts, "vae": None}, acting=True, **FIELDS).eval()
    with torch.inference_mode():
        inputs, mask = net.prompt(data())
        assert net._read(inputs, mask, 12, False).tolist() == ABOUT["greedy"]
    four = official.load_official(released, STATS, **{**parts, "vae": None}, acting=True, quantise="nf4", **FIELDS).eval()
    kinds = {type(part).__name__ for part in four.decoder.modules()}
    assert "Linear4bit" in kinds and four.config.quantise == "nf4"
    with torch.inference_mode():
        inputs, mask = four.prompt(data())
        assert four._read(inputs, mask, 12, False).shape == (2, 12)
    with pytest.raises(UserError, match="quantised so"):
        official.load_official(released, STATS, **parts, quantise="int8", **FIELDS)


def test_what_does_not_fit_is_refused(called, made, released, tmp_path):
    for model, more, said in (
            (made / "seeing", ["--nf4"], "precision it was trained in"), (made / "seeing", ["--server-seam"], "its own canvas"),
            (released, ["--simulator", "calvin", "--tasks", "open_drawer"], "all of its tasks"),
            (made / "seeing", ["--renderer", "egl"], "draws itself"),
            (made / "seeing", ["--blind", made / "seeing"], "was not trained blind"),
            (made / "seeing", ["--blind", made / "blind", "--no-floors"], "--blind does nothing"),
            (tmp_path / "nowhere", [], "nowhere")):
        with pytest.raises(UserError, match=said):
            called(model, *more, out=tmp_path / "out")
    with pytest.raises(UserError, match="proprioception's scale"):
        policies.load_policy(released)
    store = Store(made / "store")
    store.meta["simulator"] = "libero"
    with pytest.raises(UserError, match="cannot act in tabletop"):
        chain_scores.plan_of(store)
