"""A simulator in its own process, with its own interpreter and packages.

    with Worker(launch) as worker:                    # starts `<launch.python> worker.py`, which needs numpy and the simulator alone
        seen = worker.call("reset", state)            # any method of the simulator contract

Spoken over two pipes: a frame is the magic b"RPR1", the length of a JSON head (uint32) and of the arrays behind it (uint64), little-endian.
Arrays are named in the head by dtype and shape and follow as raw bytes; nothing is pickled, so a frame cannot run code. What a simulator
prints goes to the worker's log, never into the pipe. A worker that dies, hangs or talks nonsense raises `WorkerLost` with the end of its
log; `Remote` starts it anew and repeats its chains from their start states.
"""

import importlib
import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

if __name__ == "__main__":  # the worker's side: `repro` is the folder around this file, installed in this interpreter or not
    import importlib.util

    _folder = Path(__file__).resolve().parents[1]
    _spec = importlib.util.spec_from_file_location("repro", _folder / "__init__.py", submodule_search_locations=[str(_folder)])
    sys.modules["repro"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["repro"])
    sys.path[:] = [place for place in sys.path if place != str(Path(__file__).resolve().parent)]  # sims/ holds a calvin.py

import numpy as np

from repro.machine import UserError
from repro.sims.base import Launch
from repro.sims.rollouts import Group, Rollout

MAGIC, HEAD = b"RPR1", struct.Struct("<4sIQ")
KINDS = "biuf"  # dtypes that travel: bool, integers, floating point
MOMENT = 5.0  # seconds for each part of an answer, however late it is read: another worker was waited for
RESTARTS, STARTS = 25, 5  # of one chain, and of one process in a row, before the evaluation gives up


class WorkerLost(Exception):
    """The worker died, hung or sent what is no frame; the message holds the end of its log."""


# --- the wire ------------------------------------------------------------------------------------------------------------


def pack(value) -> bytes:
    """A frame with `value`: None, bool, int, float, str, list, tuple (arrives as a list), dict with string keys, numpy arrays."""
    arrays = []

    def plain(item):
        if isinstance(item, np.ndarray):
            if item.dtype.kind not in KINDS:
                raise TypeError(f"an array of dtype {item.dtype} cannot be sent")
            arrays.append(np.ascontiguousarray(item).tobytes())
            return {"__array__": [item.dtype.str, list(item.shape)]}
        if isinstance(item, np.generic):
            return item.item()
        if isinstance(item, dict):
            if any(not isinstance(key, str) or key == "__array__" for key in item):
                raise TypeError("a dictionary needs string keys to be sent")
            return {key: plain(entry) for key, entry in item.items()}
        return [plain(entry) for entry in item] if isinstance(item, list | tuple) else item

    head = json.dumps(plain(value)).encode()
    body = b"".join(arrays)
    return HEAD.pack(MAGIC, len(head), len(body)) + head + body


def unpack(head: bytes, body: bytes):
    """The value of a frame's two parts; a ValueError where they don't agree."""
    offset = 0

    def restore(item):
        nonlocal offset
        if isinstance(item, list):
            return [restore(entry) for entry in item]
        if not isinstance(item, dict):
            return item
        if "__array__" not in item:
            return {key: restore(entry) for key, entry in item.items()}
        dtype, shape = np.dtype(item["__array__"][0]), tuple(item["__array__"][1])
        if dtype.kind not in KINDS or any(not isinstance(n, int) or n < 0 for n in shape):
            raise ValueError(f"no array of dtype {dtype} and shape {shape}")
        count = int(np.prod(shape, dtype=np.int64))
        array = np.frombuffer(body, dtype, count, offset).reshape(shape).copy()
        offset += array.nbytes
        return array

    value = restore(json.loads(head))
    if offset != len(body):
        raise ValueError(f"{len(body)} bytes of arrays, {offset} named")
    return value


# --- the worker's side -----------------------------------------------------------------------------------------------------


class Host:
    """What the parent can ask for, by method name."""

    def __init__(self):
        self.launch = self.group = self.simulator = None

    def make(self, make: str, options: dict, path: list) -> dict:
        """Build the simulator and say what it is."""
        sys.path[:0] = path
        self.launch = Launch(make, options)
        self.simulator = self.launch.build()
        return self.simulator.about() if hasattr(self.simulator, "about") else {}

    def call(self, name: str, arguments: list, named: dict):
        """A method of the simulator."""
        if "rng" in named:
            named = {**named, "rng": np.random.default_rng(named["rng"])}
        return getattr(self.simulator, name)(*arguments, **named)

    def apply(self, function: str, arguments: list):
        """A function "module:name" of the simulator and arguments."""
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(self.simulator, *arguments)

    def chains(self, renders: bool, max_steps: int) -> None:
        """Begin an evaluation; the first chain uses the simulator that is there."""
        self.group = Group(self.launch.build, renders, max_steps)
        self.group.free.append(self.simulator)

    def begin(self, work: list) -> list:
        return self._sorted(self.group.begin({index: (state, tuple(tasks)) for index, state, tasks in work}))

    def run(self, work: list) -> list:
        return self._sorted(self.group.run(dict(work)))

    @staticmethod
    def _sorted(found: dict) -> list:
        return [[i, {**a, "rollout": list(vars(a["rollout"]).values())} if isinstance(a, dict) else a] for i, a in found.items()]


def serve() -> None:
    """Answer frames from stdin until it closes. Only frames leave by the real stdout; prints go to stderr, the worker's log."""
    inlet, outlet = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a simulator that asks a question reads end-of-file, not our frames
    host = Host()
    while head := inlet.read(HEAD.size):
        _, first, second = HEAD.unpack(head)
        method, arguments = unpack(inlet.read(first), inlet.read(second))
        try:
            answer = {"answer": getattr(host, method)(*arguments)}
            frame = pack(answer)
        except UserError as error:
            frame = pack({"refused": str(error)})
        except Exception:
            frame = pack({"failed": traceback.format_exc()})
        outlet.write(frame)
        outlet.flush()


# --- the parent's side -----------------------------------------------------------------------------------------------------


class Worker:
    """The parent's end. `patience`: seconds without an answer after which it counts as hung."""

    def __init__(self, launch: Launch, patience: float = 180.0):
        self.launch, self.patience = launch, patience
        self.log = tempfile.TemporaryFile()
        command = [launch.python or sys.executable, "-u", str(Path(__file__).resolve())]
        mine = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}  # which names this interpreter's packages
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        try:
            self.process = subprocess.Popen(command, env={**mine, "OMP_NUM_THREADS": "1", **launch.environment}, **pipes)
        except OSError as error:
            raise UserError("the simulator's interpreter cannot be started", command[0], error, "repro sims setup NAME") from error
        self.about = self.ask_and_wait("make", launch.make, launch.options, list(launch.path))

    def call(self, name: str, *arguments, **named):
        """A method of the simulator: `worker.call("step", action, render=False)`; `rng=` takes a seed."""
        return self.ask_and_wait("call", name, list(arguments), named)

    def ask_and_wait(self, method: str, *arguments):
        self.ask(method, *arguments)
        return self.answer()

    def ask(self, method: str, *arguments) -> None:
        """Send a request; `answer` gets what comes back."""
        self.deadline = time.monotonic() + self.patience
        try:
            self.process.stdin.write(pack([method, list(arguments)]))
            self.process.stdin.flush()
        except OSError:
            raise self._lost("died") from None

    def answer(self):
        """What the last request gives. UserError: the simulator refused. WorkerLost: nobody is there to answer."""
        magic, first, second = HEAD.unpack(self._read(HEAD.size))
        if magic != MAGIC:
            raise self._lost(f"sent what is no frame ({magic!r}): something writes to its standard output before the worker starts")
        try:
            answer = unpack(self._read(first), self._read(second))
        except (ValueError, TypeError) as error:
            raise self._lost(f"sent a broken frame: {error}") from None
        if "refused" in answer:
            raise UserError(answer["refused"])
        if "failed" in answer:
            raise UserError(f"the simulator {self.launch.make} failed", found=answer["failed"].strip(),
                            next_step="repro doctor --sim calvin | libero checks the simulator")
        return answer["answer"]

    def _read(self, count: int) -> bytes:
        found, pipe, least = bytearray(), self.process.stdout.fileno(), min(self.patience, MOMENT)
        while len(found) < count:
            if not select.select([pipe], [], [], max(least, self.deadline - time.monotonic()))[0]:
                raise self._lost(f"hung: no answer for {self.patience:.0f} s")
            part = os.read(pipe, count - len(found))
            if not part:
                raise self._lost("died")
            found += part
        return bytes(found)

    def _lost(self, how: str) -> WorkerLost:
        """The reason, the exit code and the end of the log; the process is gone afterwards."""
        if how.startswith("died"):
            try:
                how += f", exit code {self.process.wait(5)}"
            except subprocess.TimeoutExpired:
                pass
        tail = self.last_words()
        self.close()
        return WorkerLost(f"the simulator's process {how}" + (f"; its last words:\n{tail}" if tail else ""))

    def last_words(self, count: int = 1500) -> str:
        """The end of what the worker printed."""
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), count, max(0, size - count)).decode(errors="replace").strip()

    def close(self) -> None:
        """End the process; a worker that is busy or hung is killed."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:  # unsent bytes for a dead process
                pass

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.close()


class Here:
    """A simulator in this process, spoken to as a worker is."""

    def __init__(self, launch: Launch):
        self.simulator = launch.build()
        self.about = self.simulator.about()

    def call(self, name: str, *arguments, **named):
        return getattr(self.simulator, name)(*arguments, **named)

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *error) -> None:
        self.simulator = None


def opened(launch: Launch) -> "Worker | Here":
    """A simulator that needs an interpreter of its own in a worker, an embedded one here: nothing is started for it."""
    return Worker(launch) if launch.python or launch.one_a_process else Here(launch)


class Remote:
    """A `Group` in a worker. A lost worker is replaced and its chains begin again; since a reset is clean, nothing else changes."""

    def __init__(self, launch: Launch, renders: bool, max_steps: int, patience: float = 180.0, log=print):
        self.launch, self.settings, self.patience, self.log = launch, (renders, max_steps), patience, log
        self.chains, self.losses = {}, {}  # chain -> (state, tasks), chain -> how often it was lost
        self.worker = None
        self._start()

    def _start(self) -> None:
        for _ in range(STARTS):
            try:
                self.worker = Worker(self.launch, self.patience)
                return self.worker.ask_and_wait("chains", *self.settings)
            except WorkerLost as error:
                lost = error
        raise UserError(f"the simulator's process does not start, {STARTS} tries", found=lost, next_step="repro doctor --sim") from lost

    def ask(self, method: str, work: dict) -> None:
        if method == "begin":
            self.chains |= work
            work = [[index, *chain] for index, chain in work.items()]
        else:
            work = [[index, chunk] for index, chunk in work.items()]
        self.lost = None
        try:
            self.worker.ask(method, work)
        except WorkerLost as error:
            self.lost = error

    def answer(self) -> dict:
        while True:
            try:
                if self.lost:
                    raise self.lost
                return self._received(self.worker.answer())
            except WorkerLost as error:
                self._again(error)

    def _again(self, error: WorkerLost) -> None:
        """A new worker, and its chains from their start states."""
        for index in self.chains:
            self.losses[index] = self.losses.get(index, 0) + 1
        worst = max(self.losses.get(index, 0) for index in self.chains)
        if worst > RESTARTS:
            raise UserError(f"the simulator's process was lost {worst} times on the same chain", found=error,
                            next_step="see its last words above; repro doctor --sim calvin | libero; finished chains are kept")
        self.log(f"{str(error).splitlines()[0]}; started again, chains {sorted(self.chains)} from their start states")
        self._start()
        self.lost = None
        try:
            self.worker.ask("begin", [[index, *chain] for index, chain in self.chains.items()])
        except WorkerLost as again:
            self.lost = again

    def _received(self, answer: list) -> dict:
        found = {}
        for index, item in answer:
            if isinstance(item, dict):
                found[index] = {**item, "rollout": Rollout(*item["rollout"])}
            else:
                found[index] = tuple(item[0]), tuple(item[1])
                del self.chains[index]
        return found

    def close(self) -> None:
        if self.worker:
            self.worker.close()


if __name__ == "__main__":
    serve()
