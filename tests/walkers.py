"""A point that walks, as a fake simulator: good, fragile, dying, hanging, chatty. Needs numpy alone, so that a worker can import it."""

import os
import sys
import time
from pathlib import Path

import numpy as np

from repro.machine import UserError
from repro.sims.base import Launch

TASKS = ("east", "west", "north", "south", "up")
AXES = {"east": (0, 1), "west": (0, -1), "north": (1, 1), "south": (1, -1), "up": (2, 1)}


def launch(name: str, **settings) -> Launch:
    """How to start one of the classes below in a worker."""
    return Launch(f"walkers:{name}", path=(str(Path(__file__).parent),), **settings)


class Walker:
    """A point that walks; a task is to be 3 units further along its axis than at the task's start. Counts what it is asked to do."""

    def __init__(self):
        self.resets = self.renders = self.steps = 0

    def reset(self, state, render=True):
        self.resets += 1
        self.at = np.array(state["at"], float)
        self.start_task()
        return self.observe() if render else None

    def start_task(self):
        self.begin = self.at.copy()

    def observe(self):
        self.renders += 1
        return {"observation.images.static": np.full((2, 2, 3), 200, np.uint8), "observation.state": np.float32(self.at)}

    def step(self, action, render=True):
        assert render is False, "evaluation renders on demand only"
        self.steps += 1
        self.at += action[:3]

    def done(self, task):
        axis, sign = AXES[task]
        return sign * (self.at - self.begin)[axis] > 2.999

    def expert(self, task, rng):
        return Expert(task, rng)


class Expert:
    """Waits a moment, then walks as the task asks."""

    def __init__(self, task, rng):
        self.task, self.wait = task, int(rng.integers(4))

    def act(self):
        axis, sign = AXES[self.task]
        action = np.zeros(7)
        action[axis] = sign * (self.wait <= 0)
        self.wait -= 1
        return action


class Fragile(Walker):
    def step(self, action, render=True):
        super().step(action, render)
        if self.steps > 20:
            raise UserError("the table broke", found=self.steps)


class Broken(Walker):
    def step(self, action, render=True):
        raise ZeroDivisionError("a defect")


class Dying(Walker):
    """Dies at its first step, with last words."""

    def step(self, action, render=True):
        print("out of memory, say", file=sys.stderr)
        os._exit(3)


class Hanging(Walker):
    def step(self, action, render=True):
        time.sleep(60)


class Wide(Walker):
    """What it sees is more than a pipe holds."""

    def observe(self):
        return {"observation.images.static": np.full((800, 800, 3), 200, np.uint8)}


class Chatty(Walker):
    """Prints, asks and writes to file descriptor 1, as simulators do."""

    def step(self, action, render=True):
        print("hello from a simulator")
        os.write(1, b"RPR1 looks like a frame")
        try:
            input("a question?")
        except EOFError:
            pass
        super().step(action, render)
