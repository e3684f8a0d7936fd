"""Training jobs in processes of their own: one per GPU, or side by side on the CPU's cores.

    path = write_config("runs/gaze.json", name="gaze", store="work/store/training", folder="runs/gaze",
                        model={"preset": "tiny", "target": "gaze"}, train={"steps": 2000})
    jobs([path, ...])                    # each runs `python -m repro train runs/gaze.json`
    python -m repro train runs/gaze.json # the same by hand; `torchrun --nproc_per_node 2 -m repro train ..` uses two GPUs for one job

A notebook's kernel that dies takes no training with it, and a job started again goes on from its last checkpoint.
"""
import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from accelerate import PartialState

from repro import machine
from repro.data.batches import Batches
from repro.data.episodes import EpisodeInfo, Store
from repro.machine import UserError
from repro.models import keypoint_policy, reconvla
from repro.models.keypoint_policy import KeypointConfig, KeypointPolicy
from repro.models.reconvla import ReconVLA, ReconVLAConfig
from repro.models.words import vocabulary
from repro.training.loop import Summary, TrainConfig, train

PRESETS = {**reconvla.PRESETS, **keypoint_policy.PRESETS}


@dataclass(frozen=True)
class Job:
    """One training run: what a config file holds."""

    name: str
    store: str                                   # folder of the training episodes
    folder: str                                  # where checkpoints and metrics.jsonl go
    model: dict = field(default_factory=dict)    # {"preset": "tiny", any field of ReconVLAConfig}
    train: dict = field(default_factory=dict)    # fields of TrainConfig


def _checked(kind: type, values: dict, source: str):
    """`kind(**values)`, or an error naming unknown fields."""
    unknown = sorted(set(values) - {f.name for f in fields(kind)})
    if unknown:
        raise UserError(f"{source}: unknown fields", expected=", ".join(f.name for f in fields(kind)), found=", ".join(unknown))
    return kind(**values)


def write_config(path: Path | str, **job) -> Path:
    """Write a job's config file (fields of `Job`), after checking them; returns its path."""
    path = Path(path)
    job = _checked(Job, {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}, str(path))
    _checked(TrainConfig, job.train, f"{path}, train")
    model_config(job.model, [])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(job), indent=1))
    return path


def model_config(chosen: dict, episodes: list[EpisodeInfo]) -> ReconVLAConfig | KeypointConfig:
    """The config that {"preset": .., field: value, ..} names, with the training episodes' words and tasks where it has such fields."""
    chosen = dict(chosen)
    preset = chosen.pop("preset", "tiny")
    if preset not in PRESETS:
        raise UserError(f"there is no model preset {preset!r}", expected=" | ".join(PRESETS), found=repr(preset))
    _checked(type(PRESETS[preset]), chosen, "model config")
    filled = {}
    if isinstance(PRESETS[preset], KeypointConfig):
        filled = {"words": vocabulary(episode.task for episode in episodes),
                  "tasks": tuple(sorted({episode.task_id for episode in episodes}))}
    return replace(PRESETS[preset], **{**filled, **chosen})


def train_from_config(path: Path | str, log: Callable[[str], None] = print) -> Summary:
    """Do the job of a config file in this process; what `repro train CONFIG.json` calls."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no config {path}", expected="a file written by launch.write_config")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no JSON", found=str(error)) from error
    job = _checked(Job, values, str(path))
    config, settings, store = model_config(job.model, []), _checked(TrainConfig, job.train, f"{path}, train"), Store(job.store)
    config = model_config(job.model, store.episodes)
    torch.manual_seed(settings.seed)  # the first weights
    small = isinstance(config, KeypointConfig)
    model = KeypointPolicy(config, store.stats) if small else ReconVLA.build(
        config, store.stats, instructions=[episode.task for episode in store.episodes])
    state = PartialState(cpu=not torch.cuda.is_available())
    batches = Batches(store, settings.batch_size, config.chunk, settings.seed, prepare=model.prepare, key=model.key, log=log,
                      gaze=config.point_weight > 0 if small else config.recon and config.target == "gaze",
                      rank=state.process_index, world=state.num_processes)
    summary = train(model, batches, job.folder, settings, data={"hash": store.hash}, log=log)
    log(f"{job.name}: {summary.reason} at step {summary.step} of {settings.steps}, {summary.minutes:.1f} min in all, {summary.checkpoint}")
    if state.num_processes > 1:  # without a barrier first, a process can abort at exit after a correct result
        state.wait_for_everyone()
        state.destroy_process_group()
    return summary


def jobs(configs: list[Path | str], slots: int | None = None, log: Callable[[str], None] = print) -> None:
    """Run the jobs of several config files in subprocesses, as many at a time as there are GPUs, else `slots` on the CPU.

    `slots` defaults to one per core, at most one per job; the cores are divided among them. Lines are passed on as "[name] line".
    All jobs are let finish; then the failed ones are one error with the last lines of each.
    """
    gpus = len(machine.capabilities())
    slots = gpus or slots or max(1, min(machine.cores(), len(configs)))
    free: queue.Queue[int] = queue.Queue()
    for slot in range(slots):
        free.put(slot)

    running: list[subprocess.Popen] = []

    def run(path: Path) -> str | None:
        slot = free.get()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")[slot]
        else:
            environment["OMP_NUM_THREADS"] = str(max(1, machine.cores() // slots))
        last = deque(maxlen=15)
        try:
            process = subprocess.Popen([sys.executable, "-m", "repro", "train", str(path)], env=environment, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            running.append(process)
            for line in process.stdout:
                last.append(line.rstrip())
                log(f"[{path.stem}] {line.rstrip()}")
            code = process.wait()
        finally:
            free.put(slot)
        return None if code == 0 else f"{path.stem} (exit code {code}):\n    " + "\n    ".join(last)

    with ThreadPoolExecutor(slots) as pool:
        try:
            failed = [problem for problem in pool.map(run, [Path(path) for path in configs]) if problem]
        except BaseException:  # an interrupted notebook leaves no training behind that nobody watches; checkpoints stay
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise
    if failed:
        raise UserError(f"{len(failed)} of {len(configs)} training jobs failed", found="\n  ".join(failed), next_step=(
            "mend what the last lines say and start again: finished jobs are skipped, the others go on from their checkpoints"))
