"""Many simulators, here or in processes of their own, each working through one chain of tasks (used by `chains.evaluate`)."""

import multiprocessing
from dataclasses import dataclass

import numpy as np

from repro.machine import UserError


@dataclass(frozen=True)
class Rollout:
    """Where an observation comes from: `observation["rollout"]`. For floors and the expert; a policy under test does not read it."""

    chain: int
    position: int  # of the task in the chain
    step: int  # simulator steps spent on this task so far
    task: str
    simulator: object


class Group:
    """Simulators of one process, each working through one chain. Keyed by chain index; `ask` now, `answer` when it is ready."""

    def __init__(self, make_simulator, renders: bool, max_steps: int, shows_simulator: bool = True):
        self.make, self.renders, self.max_steps, self.shows = make_simulator, renders, max_steps, shows_simulator
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
        """{chain: actions (K, 7)} -> {chain: next observation, or its Outcome fields (success, steps) when it is over}."""
        return {index: self._finish(index) if self._execute(self.running[index], actions) else self._observation(index)
                for index, actions in chunks.items()}

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
        where = Rollout(index, position, chain["step"], chain["tasks"][position], chain["simulator"] if self.shows else None)
        return {**(seen or {}), "rollout": where}

    def _execute(self, chain: dict, actions: np.ndarray) -> bool:
        """Run a chunk until the task is achieved, its steps are spent or the chunk ends. True when the chain is over."""
        task = chain["tasks"][len(chain["success"])]
        for action in actions[: self.max_steps - chain["step"]]:
            chain["simulator"].step(action, render=False)
            chain["step"] += 1
            if chain["simulator"].done(task):
                return self._close_task(chain, True)
        return chain["step"] >= self.max_steps and self._close_task(chain, False)

    def _close_task(self, chain: dict, solved: bool) -> bool:
        chain["success"].append(solved)
        chain["steps"].append(chain["step"])
        chain["step"] = 0
        if solved and len(chain["success"]) < len(chain["tasks"]):
            chain["simulator"].start_task()  # the world stays as it is, the robot too
            return False
        return True


class Process:
    """A Group in a process of its own."""

    def __init__(self, make_simulator, renders: bool, max_steps: int):
        context = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make_simulator, renders, max_steps), daemon=True)
        self.process.start()
        there.close()

    def ask(self, method: str, work: dict) -> None:
        self.pipe.send((method, work))

    def answer(self) -> dict:
        try:
            answer = self.pipe.recv()
        except EOFError:
            self.process.join(5)
            raise UserError("a simulator process died", "an answer", f"exit code {self.process.exitcode}, its own message stands above",
                            "start the evaluation again: it continues; fewer `simulators` or `workers` need less memory") from None
        if isinstance(answer, UserError):
            raise answer
        return answer

    def close(self) -> None:
        self.pipe.close()
        self.process.join(2)
        if self.process.is_alive():
            self.process.terminate()


def _serve(pipe, make_simulator, renders: bool, max_steps: int) -> None:
    group = Group(make_simulator, renders, max_steps, shows_simulator=False)
    while True:
        try:
            method, work = pipe.recv()
        except EOFError:
            return
        try:
            group.ask(method, work)
            pipe.send(group.answer())
        except UserError as error:  # raised again in the parent, with its own words
            pipe.send(error)
