"""Policies that any score must be seen beside: floors that cannot see, read or react, and the expert as the ceiling.

All have `act(observations, instructions) -> (B, K, 7)` as models do, and depend on nothing but their fields and the observation, so
that outcomes do not depend on how many simulators run together.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from repro.machine import UserError


@dataclass(frozen=True)
class RandomPolicy:
    """Uniform motion in [-1, 1], gripper open or closed at random, new in every step."""

    seed: int = 0
    chunk: int = 5
    name: str = "random actions"
    sees = False

    def act(self, observations: list[dict], instructions: list[str]) -> np.ndarray:
        chunks = []
        for where in (o["rollout"] for o in observations):
            rng = np.random.default_rng([self.seed, where.chain, where.position, where.step])
            chunk = rng.uniform(-1, 1, (self.chunk, 7))
            chunk[:, 6] = np.where(chunk[:, 6] > 0, 1, -1)
            chunks.append(chunk)
        return np.array(chunks, np.float32)


@dataclass(frozen=True)
class ConstantPolicy:
    """The same action always; by default no motion with the gripper open."""

    action: tuple[float, ...] = (0, 0, 0, 0, 0, 0, 1)
    chunk: int = 5
    name: str = "constant action"
    sees = False

    def act(self, observations: list[dict], instructions: list[str]) -> np.ndarray:
        return np.broadcast_to(np.float32(self.action), (len(observations), self.chunk, 7)).copy()


@dataclass(frozen=True)
class Replay:
    """One recorded demonstration per task, (T, 7) actions, played open loop from the task's start; stands still when it is over.
    began: where each one was recorded, for the record."""

    demonstrations: dict[str, np.ndarray]
    name: str = "replay of one demonstration"
    began: dict[str, dict] | None = None
    sees = False

    def act(self, observations: list[dict], instructions: list[str]) -> np.ndarray:
        parts = []
        for where in (o["rollout"] for o in observations):
            if where.task not in self.demonstrations:
                raise UserError("Replay has no demonstration of a task", where.task, ", ".join(sorted(self.demonstrations)), "record one")
            actions = np.asarray(self.demonstrations[where.task], np.float32)
            rest = actions[where.step :]
            parts.append(rest if len(rest) else np.append(np.zeros(6, np.float32), actions[-1, 6])[None])
        long = max(len(part) for part in parts)
        still = lambda part: np.append(np.zeros(6, np.float32), part[-1, 6])  # no motion, gripper as it ended
        return np.stack([np.concatenate([part, np.tile(still(part), (long - len(part), 1))]) for part in parts])


def replay(demonstrations: dict[str, np.ndarray], tasks: Iterable[str], began: dict[str, dict] | None = None, layout: str = "") -> Replay:
    """The floor for these tasks: one without a demonstration stands still, and the floor's name says in how many; also in how many the
    demonstration began ({task: {"layout", ..}}) in another layout than this one."""
    tasks, still = list(tasks), np.array([[0, 0, 0, 0, 0, 0, 1]], np.float32)
    others = [one["layout"] for one in (began or {}).values() if layout and one["layout"] != layout]
    counts = {**{f"of the {other} layout": others.count(other) for other in others},
              "stands still": sum(task not in demonstrations for task in tasks)}
    said = ", ".join(f"{what} in {count} of {len(tasks)} tasks" for what, count in counts.items() if count)
    return Replay({task: demonstrations.get(task, still) for task in tasks}, Replay.name + (f" ({said})" if said else ""), began)


@dataclass(frozen=True)
class Blank:
    """Any policy with its pictures replaced by one grey level. (A policy *trained* blind is the stronger control: train one.)"""

    policy: object
    level: int = 127
    name: str = "images blanked"

    def act(self, observations: list[dict], instructions: list[str]) -> np.ndarray:
        blank = lambda key, value: np.full_like(value, self.level) if key.startswith("observation.images.") else value
        return self.policy.act([{k: blank(k, v) for k, v in o.items()} for o in observations], instructions)


@dataclass(frozen=True)
class ShuffledInstruction:
    """Any policy, told to do another task of the set: the sentences are turned by one place in a seeded random order."""

    policy: object
    sentences: tuple[str, ...]
    seed: int = 0
    name: str = "shuffled instruction"

    def __post_init__(self):
        if len(set(self.sentences)) < 2:
            raise UserError("shuffling instructions needs two different ones", ">= 2", self.sentences, "evaluate more than one task")

    def other(self) -> dict[str, str]:
        """{sentence: what is said instead}. It may be the very opposite, about the same thing."""
        order = [str(s) for s in np.random.default_rng(self.seed).permutation(sorted(set(self.sentences)))]
        return dict(zip(order, order[1:] + order[:1], strict=True))

    def act(self, observations: list[dict], instructions: list[str]) -> np.ndarray:
        other = self.other()
        return self.policy.act(observations, [other[sentence] for sentence in instructions])


@dataclass(frozen=True)
class ExpertPolicy:
    """The ceiling: the simulator's own scripted expert, which reads its true state. `evaluate` runs it beside the simulator."""

    seed: int = 0
    name: str = "scripted expert"
    sees = False
    privileged = True


def beside(policy, sentences: dict[str, str], replayed: Replay, seed: int = 0, blind=None, expert: bool = True) -> dict[str, object]:
    """What a score is seen beside, by name. blind: a policy of the same kind trained without pictures; without one its pictures are
    blanked. expert: whether the simulator has one."""
    found = {"blind, trained" if blind is not None else "images blanked": Blank(policy) if blind is None else blind}
    if len(set(sentences.values())) > 1:
        found["shuffled instruction"] = ShuffledInstruction(policy, tuple(sorted(set(sentences.values()))), seed)
    found |= {replayed.name: replayed, "random actions": RandomPolicy(seed), "constant action": ConstantPolicy()}
    return found | ({"scripted expert (ceiling)": ExpertPolicy(seed)} if expert else {})
