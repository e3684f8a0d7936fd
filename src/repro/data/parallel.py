"""Work on many files by worker processes, results in the order of the tasks: `in_order(read_episode, tasks, workers=2)`."""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from repro.machine import UserError


class WorkerDied(UserError):
    """A process that did a part of the work was killed: not for what it worked on, so that the same call may succeed later."""


def in_order(function: Callable, tasks: Iterable[tuple], workers: int) -> Iterator:
    """function(*task) for each task, in order, by `workers` processes with at most three tasks each under way (1: in this process)."""
    if workers <= 1:
        for task in tasks:
            yield function(*task)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise WorkerDied(
            "A worker process died.",
            found=str(error),
            next_step="memory is the usual cause, or a script without `if __name__ == '__main__':`; workers=1 needs neither",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
