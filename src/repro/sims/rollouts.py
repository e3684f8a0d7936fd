"""Simulators working through chains of tasks, a chunk of actions at a time: the half of an evaluation that may run in a worker."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rollout:
    """Where an observation comes from: `observation["rollout"]`. For floors; a policy under test does not read it."""

    chain: int
    position: int  # of the task in the chain
    step: int  # simulator steps spent on this task so far
    task: str


class Group:
    """Simulators of one process, each working through one chain. Keyed by chain index; `ask` now, `answer` when it is ready."""

    def __init__(self, make_simulator, renders: bool, max_steps: int):
        self.make, self.renders, self.max_steps = make_simulator, renders, max_steps
        self.running, self.free, self.ready = {}, [], None

    def ask(self, method: str, work: dict) -> None:
        self.ready = getattr(self, method)(work)

    def answer(self) -> dict:
        return self.ready

    def close(self) -> None:
        self.running.clear()

    def begin(self, chains: dict) -> dict:
        """{chain: (state, tasks)} -> {chain: first observation}."""
        for index, (state, tasks) in chains.items():
            simulator = self.free.pop() if self.free else self.make()
            seen = simulator.reset(state, render=self.renders)  # once a chain
            simulator.start_task()
            self.running[index] = {"simulator": simulator, "tasks": tasks, "success": [], "steps": [], "step": 0, "seen": seen}
        return {index: self._observation(index) for index in chains}

    def run(self, chunks: dict) -> dict:
        """{chain: actions (K, 7), or a seed for the simulator's own expert} -> {chain: next observation, or its outcome}."""
        return {index: self._finish(index) if self._execute(index, chunk) else self._observation(index) for index, chunk in chunks.items()}

    def _finish(self, index: int) -> tuple:
        chain = self.running.pop(index)
        self.free.append(chain["simulator"])
        return tuple(chain["success"]), tuple(chain["steps"])

    def _observation(self, index: int) -> dict:
        """What the policy sees now; a policy that does not look costs no picture."""
        chain = self.running[index]
        seen, chain["seen"] = chain["seen"], None
        if self.renders and seen is None:
            seen = chain["simulator"].observe()
        position = len(chain["success"])
        return {**(seen or {}), "rollout": Rollout(index, position, chain["step"], chain["tasks"][position])}

    def _execute(self, index: int, chunk) -> bool:
        """Run a chunk until the task is achieved, its steps are spent or the chunk ends. True when the chain is over."""
        chain = self.running[index]
        simulator, task = chain["simulator"], chain["tasks"][len(chain["success"])]
        actions = chunk if isinstance(chunk, np.ndarray) else self._expert(index, chunk)
        for _, action in zip(range(self.max_steps - chain["step"]), actions, strict=False):
            simulator.step(action, render=False)
            chain["step"] += 1
            if simulator.done(task):
                return self._close_task(chain, True)
        return chain["step"] >= self.max_steps and self._close_task(chain, False)

    def _expert(self, index: int, seed: int):
        """Actions of the simulator's own expert, one at a time: it looks into the world before each."""
        chain = self.running[index]
        position = len(chain["success"])
        expert = chain["simulator"].expert(chain["tasks"][position], np.random.default_rng([seed, index, position]))
        while True:
            yield expert.act()

    def _close_task(self, chain: dict, solved: bool) -> bool:
        chain["success"].append(solved)
        chain["steps"].append(chain["step"])
        chain["step"] = 0
        if solved and len(chain["success"]) < len(chain["tasks"]):
            chain["simulator"].start_task()  # the world stays as it is, the robot too
            return False
        return True
