"""When a training run saves and when it stops: by its own budget, or because it was told to."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Wall clock of one session: when to save, when to stop. Times in seconds of `clock`."""

    def __init__(self, minutes: float, checkpoint_minutes: float, reserve: float, clock: Callable[[], float] = time.monotonic):
        self.clock, self.every, self.reserve = clock, 60 * checkpoint_minutes, reserve
        self.start = self.saved = clock()
        self.end = self.start + 60 * minutes if minutes else math.inf
        self.slowest_step = self.slowest_save = 0.0

    def step_took(self, seconds: float) -> None:
        self.slowest_step = max(self.slowest_step, seconds)

    def save_took(self, seconds: float) -> None:
        self.slowest_save, self.saved = max(self.slowest_save, seconds), self.clock()

    def due(self) -> bool:
        """Is a timed checkpoint due?"""
        return self.clock() - self.saved >= self.every

    def over(self) -> bool:
        """Must training stop now, so that one more step and a save of twice the longest one seen still fit?"""
        return self.clock() + self.slowest_step + 2 * self.slowest_save + self.reserve >= self.end


@contextmanager
def told_to_stop() -> Iterator[list[str]]:
    """A list that gets the name of each signal that asks this process to end: SIGTERM, SIGINT. The step in hand is finished first; a
    third one ends the process as it would have. Elsewhere than in a main thread, where no signal arrives, it stays empty."""
    told: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(number: int, frame) -> None:
        told.append(signal.Signals(number).name)
        if len(told) > 2:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
