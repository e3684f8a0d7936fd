"""`repro evaluate chains` as it is typed, on the play table, with an official checkpoint's folder that learned nothing and with ours.
Run: pytest tests/test_chain_scores.py"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from test_reconvla_exact import ABOUT, FIELDS, STATS, VECTORS, data, folder_of, small_parts

from repro import run_records
from repro.data.calvin_import import ensure_store
from repro.data.episodes import Store
from repro.evaluation import chain_scores, policies, protocols
from repro.evaluation.commands import evaluate
from repro.machine import UserError
from repro.models import official, towers
from repro.models.keypoint_policy import KeypointConfig, KeypointPolicy
from repro.models.words import split
from repro.sims import base, calvin_layout, environments
from repro.sims.tabletop import language, tasks

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
    assert set(found) == {"KeypointPolicy seeing", "images blanked", "shuffled instruction", "replay of one demonstration",
                          "random actions", "constant action", "scripted expert (ceiling)"}
    assert all(f"| {name} |" in output for name in found) and "play table A->D, 6 tasks, chains of 5, at most 40 steps a task" in output
    assert "protocol but for: the embedded play table" in output and "out of distribution" in output
    for record in found.values():
        lengths = [int(one) for one in record["outcomes"]]
        assert len(lengths) == 3 == record["metrics"]["1/5"]["n"] and record["not_comparable_with"] == ["reconvla"]
        assert record["metrics"]["average length"]["value"] == pytest.approx(np.mean(lengths))
        assert record["config"]["max_steps"] == 40 and record["config"]["departs"] == ["the embedded play table"]
    lengths = [int(one) for one in found["scripted expert (ceiling)"]["outcomes"]]
    first = sum(length > 0 for length in lengths) + (sum(lengths) in (3, 6, 9, 12, 15))  # a whole mean counts as one chain more
    said = "ReconVLA's script, which divides by N + 1, would print"
    assert any(lengths) and f"scripted expert (ceiling): {said} {100 * first / 4:.1f}, " in output
    outcomes = {path: path.read_text() for path in (tmp_path / "outcomes").rglob("outcomes.jsonl")}
    assert len(outcomes) == 7
    called(made / "seeing", "--protocol", "reconvla", out=tmp_path)
    assert outcomes == {path: path.read_text() for path in (tmp_path / "outcomes").rglob("outcomes.jsonl")}, "nothing was done twice"


def test_models_stand_beside_one_another(called, made, tmp_path):
    called(made / "seeing", "--no-floors", out=tmp_path)
    called(made / "blind", "--no-floors", out=tmp_path)
    assert {record["variant"] for record in run_records.load_all(tmp_path / "runs")} == {"KeypointPolicy seeing", "KeypointPolicy blind"}
    output = called(made / "seeing", "--blind", made / "blind", "--tasks", ",".join(TASKS[:5]), out=tmp_path)
    assert "| blind, trained |" in output and "blanked" not in output and "5 tasks" in output and "N + 1" not in output


def test_the_released_layout_is_a_policy_without_denoiser_and_vae(called, made, released, tmp_path):
    output = called(released, "--no-floors", "--server-seam", out=tmp_path)
    record, = run_records.load_all(tmp_path / "runs")
    assert record["variant"] == "official checkpoint ReconVLA" and "| official checkpoint ReconVLA |" in output
    model = record["config"]["policy"]["model"]
    assert model["recon"] is False and model["acting_static_rows"] == 167 and record["not_comparable_with"] == ["reconvla"]
    policy = policies.load_policy(released)
    assert policy.vae is None and policy.denoiser is None and not policy.training
    known = json.loads((VECTORS / "prompt.json").read_text())
    assert policy.stats["observation.state"] == {key: pytest.approx(known[key]) for key in ("mean", "std")}, "as the official code scales"
    called(released, "--no-floors", "--nf4", out=tmp_path / "4 bits")
    record, = run_records.load_all(tmp_path / "4 bits" / "runs")
    assert "language model in 4 bits" in record["config"]["departs"] and record["config"]["policy"]["model"]["quantise"] == "nf4"


def test_calvins_own_simulator_is_asked_for_its_own_sequences(called, made, released, tmp_path, monkeypatch):
    """With the play table in CALVIN's place; its start states, sentences and name are CALVIN's."""
    asked = []
    monkeypatch.setattr(environments, "launch", lambda name, **options: asked.append((name, options)) or base.tabletop("D"))
    monkeypatch.setattr(environments, "calvin_home", lambda: None)
    monkeypatch.setattr(protocols, "calvin_validation_sentences", lambda home: language.VALIDATION)
    every = [(state, names) for state, names in tasks.chains(500, 5, 1)]
    monkeypatch.setattr(protocols, "calvin_chains", lambda n: every[:n])
    store = Store(made / "store")
    store.meta["simulator"] = "calvin"  # as repro demos calvin says
    plan = chain_scores.plan_of(store, "calvin", protocol="ReconVLA", renderer="egl")
    assert asked == [("calvin", {"scene": "D", "renderer": "egl"})] and len(plan.chains) == 500 and plan.departs == ()
    policy = policies.load_policy(released)
    seam, *others = chain_scores.departures(policy, plan)
    assert seam == "static camera on 222 rows as in training, not the server's 167", "334 * 2 // 3"
    policy.config = replace(policy.config, acting_static_rows=167)
    assert chain_scores.departures(policy, plan) == others and [told.split()[0] for told in others] == ["prompt", "answers"]
    assert "computed in bfloat16, not in float32" in chain_scores.departures(policy.to(torch.bfloat16), plan)
    assert chain_scores.departures(policy, replace(plan, rules=protocols.CALVIN)) == [], "another protocol than the server's"
    assert chain_scores.plan_of(store, "calvin", count=3).departs == ("3 chains of 1000", "drawn by TinyRenderer, not by EGL")
    output = called(released, "--simulator", "calvin", "--no-floors", out=tmp_path)
    assert "CALVIN D, official sequences" in output and "IG: implicit grounding, ReconVLA (paper)" in output and "3.95" in output
    with pytest.raises(UserError, match="scene D"):
        chain_scores.plan_of(store, "calvin", "A")


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
    with pytest.raises(UserError, match="has its own weights"):
        policies.load_policy(released, elsewhere={"vggt": "file"})
    store = Store(made / "store")
    store.meta["simulator"] = "libero"
    with pytest.raises(UserError, match="cannot act in tabletop"):
        chain_scores.plan_of(store)
