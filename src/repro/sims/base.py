"""What every simulator offers (the play table, CALVIN, LIBERO), and how one is started, here or in a process of its own."""

import importlib
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from repro.machine import UserError


class Simulator(Protocol):
    """The contract. Pictures are drawn only when asked for; the same state gives the same bits, whatever ran before."""

    def reset(self, state: dict, render: bool = True) -> dict | None:
        """Start from `state` (the simulator's docstring says what it holds); the observation if `render`."""

    def step(self, action: np.ndarray, render: bool = True) -> dict | None:
        """One relative action (7,) in [-1, 1]: position, rotation, gripper -1 close / +1 open."""

    def start_task(self) -> None:
        """From here on `done` compares with the present state."""

    def done(self, task: str) -> bool:
        """Whether `task` has been achieved since `start_task`, by the simulator's own rule."""

    def observe(self) -> dict:
        """observation.images.static and .wrist uint8 (H, W, 3) RGB upright, observation.state float32, observation.environment_state."""

    def boxes(self) -> dict[str, list[int]]:
        """{item: [x0, y0, x1, y1]} of its visible pixels in the static image, x1 and y1 exclusive."""

    def state(self) -> dict:
        """Vectors that say where everything is."""

    def about(self) -> dict:
        """For the run record: simulator, renderer, assets, versions."""

    def expert(self, task: str, rng: np.random.Generator):
        """`act() -> (7,)`: a scripted policy with privileged state."""


@dataclass(frozen=True)
class Launch:
    """How to make a simulator: a class by name ("module:Class"), its options (plain JSON), the interpreter that has its packages
    (None: this one), extra environment variables and import folders."""

    make: str
    options: dict = field(default_factory=dict)
    python: str | None = None
    environment: dict = field(default_factory=dict)
    path: tuple[str, ...] = ()
    one_a_process: bool = False  # such a simulator allows no second one beside it

    def build(self):
        """The simulator, in this process."""
        module, _, name = self.make.partition(":")
        try:
            return getattr(importlib.import_module(module), name)(**self.options)
        except (ImportError, AttributeError, TypeError) as error:
            raise UserError(f"cannot make the simulator {self.make}", "a class 'package.module:Class' and options it takes",
                            f"{error} (options {self.options})") from error


def tabletop(scene: str = "D") -> Launch:
    """The embedded play table."""
    return Launch("repro.sims.tabletop.world:PlayTable", {"scene": scene})


def grocery(suite: str = "grocery", **options) -> Launch:
    """The embedded table with groceries: tasks, actions and proprioception in LIBERO's way."""
    return Launch("repro.sims.tabletop.grocery:GroceryTable", {"suite": suite, **options})
