"""Closed-loop evaluation on a fake simulator. Run: pytest tests/test_chains.py"""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from walkers import AXES, TASKS, Walker, launch

from repro.evaluation import chains as C
from repro.evaluation import floors as F
from repro.machine import UserError

SENTENCES = {task: f"go {task}" for task in TASKS}


@dataclass(frozen=True)
class Obedient:
    """Walks where the sentence says, one unit a step, in chunks of five, unless the sentence is in `refuses`."""

    refuses: tuple[str, ...] = ()

    def act(self, observations, instructions):
        chunks = np.zeros((len(instructions), 5, 7), np.float32)
        for chunk, sentence in zip(chunks, instructions, strict=True):
            axis, sign = AXES[sentence.removeprefix("go ")]
            chunk[:, axis] = 0 if sentence in self.refuses else sign
        return chunks


def make_chains(n, tasks=TASKS):
    rng = np.random.default_rng(1)
    return [({"at": rng.normal(size=3).tolist()}, tuple(rng.permutation(tasks))) for _ in range(n)]


def run(policy, folder, n=6, **settings):
    return C.evaluate(policy, settings.pop("make", Walker), settings.pop("chains", make_chains(n)), folder, instructions=SENTENCES,
                      **{"log": lambda line: None, **settings})


def test_rules_of_the_chain(tmp_path):
    made = []
    outcomes = run(Obedient(), tmp_path, n=3, simulators=1, make=lambda: made.append(Walker()) or made[-1])
    world = made[0]
    assert len(made) == 1 and world.resets == 3, "one simulator, reset once a chain and never between tasks"
    assert all(o.success == (True,) * 5 and o.length == 5 for o in outcomes)
    # success is tested after each step: three steps a task, though a chunk has five; the rest of the chunk is dropped
    assert all(o.steps == (3,) * 5 for o in outcomes) and world.steps == 45
    assert world.renders == 15, "one picture a query: five tasks of three chains, one chunk each"


def test_stops_at_the_first_failure_after_the_step_limit(tmp_path):
    made = []
    chain = [({"at": [0, 0, 0]}, ("east", "west", "north", "south", "up"))]
    outcome, = run(Obedient(("go north",)), tmp_path, chains=chain, max_steps=12, make=lambda: made.append(Walker()) or made[-1])
    assert outcome.success == (True, True, False) and outcome.steps == (3, 3, 12) and outcome.length == 2
    assert made[0].steps == 18, "no step beyond the limit (12 is no multiple of the chunk) and none after the failure"


def test_execute_part_of_the_chunk(tmp_path):
    made = []
    chain = [({"at": [0, 0, 0]}, ("east",))]
    run(Obedient(), tmp_path, chains=chain, execute=2, make=lambda: made.append(Walker()) or made[-1])
    assert made[0].renders == 2  # three steps at two a query


@pytest.mark.parametrize("policy", [F.RandomPolicy(3), Obedient(("go up",)), F.ShuffledInstruction(Obedient(), tuple(SENTENCES.values()))])
def test_batched_equals_one_by_one(tmp_path, policy):
    one = run(policy, tmp_path / "one", n=9, simulators=1, max_steps=40)
    many = run(policy, tmp_path / "many", n=9, simulators=4, max_steps=40)
    assert one == many and len({o.length for o in one} | {o.steps for o in one}) > 1


def test_worker_processes_give_the_same_outcomes(tmp_path):
    here = run(F.RandomPolicy(3), tmp_path / "here", n=5, max_steps=40)
    there = run(F.RandomPolicy(3), tmp_path / "there", n=5, max_steps=40, simulators=3, workers=2, make=launch("Walker"))
    assert there == here
    with pytest.raises(UserError, match="the table broke"):
        run(F.RandomPolicy(3), tmp_path / "fragile", n=2, make=launch("Fragile"), workers=1)
    with pytest.raises(UserError, match="how to start a simulator"):
        run(F.RandomPolicy(3), tmp_path / "callable", n=2, workers=1)


def test_one_call_a_round(tmp_path):
    sizes = []

    class Counting(Obedient):
        def act(self, observations, instructions):
            sizes.append(len(observations))
            return super().act(observations, instructions)

    run(Counting(), tmp_path, n=8, simulators=4)
    assert sizes == [4] * 10


def test_resume_gives_the_same_outcomes(tmp_path):
    whole = run(F.RandomPolicy(), tmp_path / "whole", n=6, max_steps=20)
    lines = (tmp_path / "whole" / "outcomes.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 6
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "evaluation.json").write_text((tmp_path / "whole" / "evaluation.json").read_text())
    (cut / "outcomes.jsonl").write_text("".join(lines[:3]) + lines[3][:20])  # killed while writing the fourth line
    said, made = [], []
    again = run(F.RandomPolicy(), cut, n=6, max_steps=20, simulators=1, log=said.append, make=lambda: made.append(Walker()) or made[-1])
    assert again == whole and made[0].resets == 3, "only the chains that are missing run again"
    assert "torn" in said[0] and "continuing" in said[1]
    assert len((cut / "outcomes.jsonl").read_text().splitlines()) == 6


def test_killed_in_the_middle(tmp_path):
    class Dies(Walker):
        def step(self, action, render=True):
            super().step(action, render)
            if self.resets == 4 and self.steps > 95:
                raise KeyboardInterrupt

    whole = run(F.RandomPolicy(), tmp_path / "whole", max_steps=30)
    with pytest.raises(KeyboardInterrupt):
        run(F.RandomPolicy(), tmp_path / "cut", max_steps=30, simulators=1, make=Dies)
    assert 0 < len(C.read_outcomes(tmp_path / "cut" / "outcomes.jsonl")) < 6
    assert run(F.RandomPolicy(), tmp_path / "cut", max_steps=30) == whole


def test_long_chains_say_something_before_the_first_ends(tmp_path, monkeypatch):
    moments, said = iter(range(0, 10**6, 7)), []
    monkeypatch.setattr(C.clock, "now", lambda: next(moments))
    run(F.RandomPolicy(), tmp_path, n=2, max_steps=60, log=said.append)
    assert "0/2 chains | none has ended yet" in said[0] and "2/2 chains | average length so far 0.00" in said[-1]
    said.clear()
    run(Obedient(), tmp_path / "rollouts", chains=[(state, tasks[:1]) for state, tasks in make_chains(2)], log=said.append)
    assert "2/2 chains | success so far 100 %" in said[-1]


def test_another_evaluation_in_the_folder_is_refused(tmp_path):
    run(F.RandomPolicy(0), tmp_path, max_steps=20)
    with pytest.raises(UserError, match="another evaluation") as caught:
        run(F.RandomPolicy(1), tmp_path, max_steps=20)
    assert "identity" in str(caught.value) and "fresh=True" in str(caught.value)
    with pytest.raises(UserError, match="max_steps"):
        run(F.RandomPolicy(0), tmp_path, max_steps=21)
    said = []
    assert run(F.RandomPolicy(1), tmp_path, max_steps=20, fresh=True, log=said.append) and "starting anew" in said[0]


def test_identity_sees_weights():
    import torch
    a, b = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert C.identity(a) == C.identity(a) != C.identity(b)
    assert C.identity(F.Blank(a)) != C.identity(F.Blank(b)) != C.identity(b)


def test_bad_line_and_bad_input(tmp_path):
    run(F.RandomPolicy(), tmp_path, max_steps=20)
    file = tmp_path / "outcomes.jsonl"
    file.write_text("{}\n" + file.read_text())
    with pytest.raises(UserError, match="line 1 is not an outcome"):
        run(F.RandomPolicy(), tmp_path, max_steps=20)
    with pytest.raises(UserError, match="one length"):
        run(F.RandomPolicy(), tmp_path / "a", chains=[({}, TASKS), ({}, TASKS[:2])])
    with pytest.raises(UserError, match="without an instruction"):
        run(F.RandomPolicy(), tmp_path / "b", chains=[({}, ("fly",))])


@pytest.mark.parametrize("actions, words", [(np.zeros((1, 5, 6)), "wrong shape"), (np.full((1, 5, 7), np.nan), "not finite")])
def test_nonsense_from_a_policy(tmp_path, actions, words):
    class Broken:
        def act(self, observations, instructions):
            return actions

    with pytest.raises(UserError, match=words):
        run(Broken(), tmp_path, n=1)


def test_floors(tmp_path):
    length = lambda policy, where, **more: C.summarise(run(policy, tmp_path / where, n=8, max_steps=60, **more))["average length"]["value"]
    assert length(Obedient(), "obedient") == 5
    assert length(F.ConstantPolicy(), "still") == 0
    assert length(F.ShuffledInstruction(Obedient(), tuple(SENTENCES.values())), "shuffled") == 0
    step = {t: np.float32([[s if i == a else 0 for i in range(7)] for _ in range(3)]) for t, (a, s) in AXES.items()}
    assert length(F.Replay(step), "replay") == 5
    assert length(F.Replay({t: a[:2] for t, a in step.items()}), "short replay") == 0, "a replay that is over stands still"
    with pytest.raises(UserError, match="no demonstration"):
        run(F.Replay({}), tmp_path / "none", n=1)


def test_floors_need_no_picture(tmp_path):
    made = []
    run(F.RandomPolicy(), tmp_path, n=1, max_steps=20, make=lambda: made.append(Walker()) or made[-1])
    assert made[0].steps == 20 and made[0].renders == 0


def test_blank_hides_the_picture_only():
    class Looks:
        def act(self, observations, instructions):
            self.seen = observations[0]
            return np.zeros((1, 1, 7))

    looks = Looks()
    before = {"observation.images.static": np.full((2, 2, 3), 9, np.uint8), "observation.state": np.ones(3), "rollout": None}
    F.Blank(looks).act([before], ["x"])
    assert (looks.seen["observation.images.static"] == 127).all() and (looks.seen["observation.state"] == 1).all()
    assert (before["observation.images.static"] == 9).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_expert_is_made_anew_for_each_task(tmp_path, workers):
    outcomes = run(F.ExpertPolicy(7), tmp_path, n=3, simulators=2, workers=workers, make=launch("Walker"))
    assert [o.length for o in outcomes] == [5, 5, 5] and {n for o in outcomes for n in o.steps} <= {3, 4, 5, 6}
    # its rng is seeded by (seed, chain, position): the wait it draws before it moves differs between the tasks, not between the runs
    assert len({o.steps for o in outcomes}) > 1 and outcomes == run(F.ExpertPolicy(7), tmp_path / "one", n=3, simulators=1)


def outcome(chain, *success):
    return C.Outcome(chain, "x", TASKS, success, (3,) * len(success))


def test_summary_by_hand():
    found = C.summarise([outcome(0, True, True, False), outcome(1, False), outcome(2, *[True] * 5), outcome(3, True, False)])
    assert [found[f"{k}/5"]["value"] for k in range(1, 6)] == [0.75, 0.5, 0.25, 0.25, 0.25]
    assert found["average length"]["value"] == 2.0 == sum(found[f"{k}/5"]["value"] for k in range(1, 6))
    assert found["task/east"]["value"] == 0.75 and found["task/east"]["n"] == 4
    assert found["task/north"] == found["task/north"] | {"value": 0.5, "n": 2}  # attempts only
    assert all(m["low"] <= m["value"] <= m["high"] for m in found.values())
    nothing = C.summarise([outcome(i, False) for i in range(8)])
    assert nothing["average length"]["low"] == 0 < nothing["average length"]["high"], "0 of 8 is not certainty"
    assert C.summarise([C.Outcome(0, "x", ("east",), (True,), (4,))])["1/1"]["value"] == 1


def test_paired_comparison():
    good = [outcome(i, True, True, i % 2 == 0) for i in range(20)]
    bad = [outcome(i, True, False) for i in range(20)]
    found = C.compare(good, bad)["difference average length"]
    assert found["value"] == 1.5 and 1.2 < found["low"] < 1.5 < found["high"] < 1.8
    assert C.compare(good, bad) == C.compare(good, bad)  # seeded
    with pytest.raises(UserError, match="same chains"):
        C.compare(good, bad[1:])


def test_lines_are_json_of_one_chain_each(tmp_path):
    run(Obedient(), tmp_path, n=2)
    rows = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["chain", "policy", "seconds", "steps", "success", "tasks"]] * 2
    assert 0 <= rows[0]["seconds"] <= C.spent(tmp_path) == rows[1]["seconds"]
