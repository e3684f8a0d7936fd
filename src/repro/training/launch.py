"""Training jobs in processes of their own: one per GPU, or each on several GPUs, or side by side on the CPU's cores.

    path = write_config("runs/gaze.json", name="gaze", store="work/store/training", folder="runs/gaze",
                        model={"preset": "tiny", "target": "gaze"}, train={"steps": 2000})
    jobs([path, ...])                    # each runs `python -m repro train runs/gaze.json`
    jobs([path], processes=2)            # torchrun --nproc_per_node 2 -m repro train runs/gaze.json: two GPUs for one job
    python -m repro train runs/gaze.json # the same by hand; more machines: torchrun --nnodes, or accelerate launch

A notebook's kernel that dies takes no training with it, and a job started again goes on from its last checkpoint.
"""
import json
import math
import os
import queue
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file

from repro import clock, machine
from repro.data.batches import Batches, held_out_episodes
from repro.data.episodes import EpisodeInfo, Store
from repro.machine import UserError, nearest
from repro.models import change_agent_config, fingerprint, keypoint_policy, reconvla, vggt_vla
from repro.models import parts as part
from repro.models.change_agent_config import ChangeConfig
from repro.models.keypoint_policy import KeypointConfig, KeypointPolicy
from repro.models.reconvla import ReconVLA, ReconVLAConfig
from repro.models.vggt_vla import VGGTVLA, VGGTVLAConfig
from repro.models.words import vocabulary
from repro.training import change_training, checkpoint, live, memory
from repro.training.loop import OWN_BUDGET, SESSION_ENDS, Summary, TrainConfig, train

TORCHRUN = re.compile(r"[EW]\d{4} .*torch/distributed/")  # how torchrun begins its own account of a process that failed
SAVING = 120  # seconds that a run which is told to stop has for its checkpoint
HELD_OUT = 8  # batches of held-out frames, always the same; fewer where they hold all frames
CHANGE = {f"change_{name}": config for name, config in change_agent_config.PRESETS.items()}
PRESETS = {**reconvla.PRESETS, **keypoint_policy.PRESETS, **vggt_vla.PRESETS, **CHANGE}
TRAIN = {**vggt_vla.TRAIN, **{f"change_{name}": train for name, train in change_agent_config.TRAIN.items()}}

UNUSED = {KeypointConfig: ("parts", "like", "start"), VGGTVLAConfig: ("parts", "start")}  # fields of a job, by model


@dataclass(frozen=True)
class Job:
    """One training run: what a config file holds."""

    name: str
    store: str                                   # folder of the training episodes
    folder: str                                  # where checkpoints and metrics.jsonl go
    model: dict = field(default_factory=dict)    # {"preset": "tiny", any field of ReconVLAConfig}
    train: dict = field(default_factory=dict)    # fields of TrainConfig; those of TRAIN by preset where none is given
    validation: str = ""                         # store whose action loss is measured along the way (train.measure_every); "": none
    held_out: float = 0                          # instead of it: so many episodes of `store`, or such a share of them, are not trained on
    held_out_seed: int = 0                       # which; apart from train.seed, so that runs of several seeds hold out the same
    parts: str = ""                              # folder of a tower and a VAE trained before (models/tiny.py); "": what the config names
    like: str = ""                               # store whose sentences make the tokenizer, whose statistics scale the state; "": `store`
    start: str = ""                              # run or checkpoint whose weights it begins with, all of them; the optimizer is fresh
    keep_denoiser: bool = True                   # False: all but the denoiser of `start`, as ReconVLA's scripts do, by mistake
    corrupt: float = 0.0                         # share of gaze boxes that are replaced by another episode's (data/batches.py)
    corrupt_seed: int = 0


def _checked(kind: type, values: dict, source: str):
    """`kind(**values)`, or an error naming unknown and missing fields, and numbers that are not finite."""
    if not isinstance(values, dict):
        raise UserError(f"{source} is no config", "a JSON object {..}: " + ", ".join(f.name for f in fields(kind)), type(values).__name__,
                        "write it by repro.training.launch.write_config")
    _known(kind, values, source)
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if lacking := [name for name in needed if name not in values]:
        raise UserError(f"{source}: missing fields", ", ".join(needed), f"no {', '.join(lacking)}",
                        "add them, or write the file by repro.training.launch.write_config")
    if wrong := [f.name for f in fields(kind) if f.default_factory is dict and not isinstance(values.get(f.name, {}), dict)]:
        raise UserError(f"{source}: {', '.join(wrong)} of a wrong kind", "a JSON object {..}", [values[name] for name in wrong])
    if wrong := [name for name, value in values.items() if not _fits(value, next(f.type for f in fields(kind) if f.name == name))]:
        raise UserError(f"{source}: {', '.join(wrong)} of a wrong kind", "; ".join(
            f"{f.name}: {getattr(f.type, '__name__', f.type)}" for f in fields(kind) if f.name in wrong), [values[name] for name in wrong])
    return kind(**values)


def _fits(value: object, kind: object) -> bool:
    """Whether a JSON value can stand in a field of this plain type; of others nothing is said here."""
    allowed = {float: (int, float), int: (int,), str: (str, os.PathLike), bool: (bool,)}.get(kind)
    return allowed is None or (isinstance(value, allowed) and (kind is bool or not isinstance(value, bool)))


def _known(kind: type, values: dict, source: str) -> None:
    names = [f.name for f in fields(kind)]
    if unknown := sorted(set(values) - set(names)):
        raise UserError(f"{source}: unknown fields", ", ".join(names), ", ".join(unknown),
                        nearest(unknown[0], names, "use these names, or leave the field out"))
    for name, value in _not_finite(values):
        raise UserError(f"{source}: {name} is no number to train with", "a finite number", value, "correct it, or leave it out")


def _not_finite(values: object, name: str = "") -> Iterator[tuple[str, float]]:
    """("train.learning_rate", nan): where among JSON values stand NaN or infinities, which Python reads though JSON has none."""
    if isinstance(values, float) and not math.isfinite(values):
        yield name, values
    for key, value in values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list | tuple) else ():
        yield from _not_finite(value, f"{name}.{key}" if name else str(key))


def write_config(path: Path | str, **job) -> Path:
    """Write a job's config file (fields of `Job`), after checking them; returns its path."""
    path = Path(path)
    job = _checked(Job, {name: str(value) if isinstance(value, Path) else value for name, value in job.items()}, str(path))
    if job.validation and job.held_out:
        raise UserError(f"{path}: two kinds of held-out data", "`validation`, a store, or `held_out`, episodes of the training store",
                        f"validation {job.validation!r}, held_out {job.held_out}", "leave one of them out")
    train_config(job, path)
    model_config(job.model, [])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(job), indent=1))
    return path


def train_config(job: Job, path: Path) -> TrainConfig:
    """The job's training settings, over its preset's own where it has such."""
    return _checked(TrainConfig, {**TRAIN.get(job.model.get("preset"), {}), **job.train}, f"{path}, train")


def model_config(chosen: dict, episodes: list[EpisodeInfo]) -> ReconVLAConfig | KeypointConfig | VGGTVLAConfig | ChangeConfig:
    """The config that {"preset": .., field: value, ..} names, with the training episodes' words and tasks where it has such fields."""
    chosen = dict(chosen)
    preset = chosen.pop("preset", "tiny")
    if preset not in PRESETS:
        raise UserError(f"there is no model preset {preset!r}", expected=" | ".join(PRESETS), found=repr(preset),
                        next_step=nearest(str(preset), PRESETS, "use one of these names"))
    _known(type(PRESETS[preset]), chosen, "model config")  # their values are checked together with the preset's
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
    config, settings = model_config(job.model, []), train_config(job, path)
    if os.environ.get("RANK", "0") != "0":  # of several processes the main one writes
        return _train(job, config, settings, log)
    lock = Path(job.folder + ".lock")
    with checkpoint.alone(lock) as free:
        if not free:
            raise UserError(f"{job.folder}: another process trains into this folder", "one at a time", "its lock is held",
                            "wait for it, or end it (ps aux | grep 'repro train'); a lock goes with its process")
        try:
            return _train(job, config, settings, log)
        finally:
            if not Path(job.folder).exists():  # refused by its data or parts
                lock.unlink(missing_ok=True)


def _train(job: Job, config, settings: TrainConfig, log: Callable[[str], None]) -> Summary:
    if isinstance(config, ChangeConfig):
        return change_training.run(job, config, settings, log)
    unused = {name: getattr(job, name) for name in UNUSED.get(type(config), ()) if getattr(job, name)}
    if unused:
        raise UserError(f"{job.name}: {type(config).__name__.removesuffix('Config')} knows no such fields", "a job without them", unused)
    store = Store(job.store)
    config = model_config(job.model, store.episodes)
    state = PartialState(cpu=not torch.cuda.is_available())  # each process has its GPU from here on; 4-bit parts are loaded onto it
    if not job.parts:
        memory.check(config)
    torch.manual_seed(settings.seed)  # the first weights
    model = _build(job, config, store)
    data = {"hash": store.hash} | (begin(model, job) if job.start else {})
    model.to(state.device)  # frozen parts see all frames before the loop begins
    if job.parts:
        began_as = getattr(model.decoder, "began_as", None)
        data["parts"] = part.identities(model) | ({"language, as it began": began_as} if began_as else {})
    say = log if state.is_main_process else lambda line: None
    points = isinstance(config, KeypointConfig | VGGTVLAConfig)
    gaze = config.point_weight > 0 if points else config.aux != "none" or (config.recon and config.target == "gaze")
    if gaze and "gaze.box" not in store.columns:
        without = '"point_weight": 0' if points else '"target": "whole", no "aux"'
        raise UserError(f"{store.folder} has no gaze boxes, which this model learns from", "a column gaze.box", "none",
                        f"repro gaze annotate, or train without them: in the job's model {without}")
    common = {"chunk": config.chunk, "prepare": model.prepare, "key": model.key, "log": say, "gaze": gaze}
    aside = held_out_episodes(store.episodes, job.held_out, job.held_out_seed) if job.held_out else frozenset()
    if aside:
        data |= {"held_out": job.held_out, "held_out_seed": job.held_out_seed, "held out episodes": sorted(aside)}
    batches = Batches(store, settings.batch_size, seed=settings.seed, only=lambda episode: episode.index not in aside,
                      corrupt=job.corrupt, corrupt_seed=job.corrupt_seed, **common)
    epochs = settings.steps * settings.batch_size * settings.accumulate / len(batches)
    say(f"{job.name}: {len(batches)} samples of {len(store) - len(aside)} episodes, {epochs:.1f} epochs; {len(aside)} episodes held out")
    if job.corrupt:
        data |= {"corrupt": job.corrupt, "corrupt_seed": job.corrupt_seed, "corrupted frames": int(batches.corrupted.sum())}
    held_out = None
    if (job.validation or aside) and settings.measure_every:
        held_out = Batches(Store(job.validation) if job.validation else store, settings.batch_size, **common,
                           only=(lambda episode: episode.index in aside) if aside else None)
    measure = None if held_out is None else lambda model: _measured(model, held_out)
    summary = train(model, batches, job.folder, settings, data=data, log=log, measure=measure)
    say(f"{job.name}: {summary.reason} at step {summary.step} of {settings.steps}, {summary.minutes:.1f} min in all, {summary.checkpoint}")
    if state.num_processes > 1:  # without a barrier first, a process can abort at exit after a correct result
        state.wait_for_everyone()
        state.destroy_process_group()
    return summary


def _measured(model: torch.nn.Module, held_out: Batches) -> dict[str, float]:
    """Means over the held-out batches: "held_out", the loss of the actions, and "held_out_l1" where the model tells it."""
    losses = [model.loss(held_out(i)) for i in range(min(HELD_OUT, -(-len(held_out) // held_out.batch_size)))]
    return {shown: sum(float(one[name]) for one in losses) / len(losses)
            for shown, name in (("held_out", "action"), ("held_out_l1", "l1")) if name in losses[0]}


def sentences_file(store: Store, config: VGGTVLAConfig) -> Path:
    """Where the sentences of a store are kept as a frozen language model encodes them."""
    return machine.prepared(store.folder) / f"sentences-{Path(config.language).name}.safetensors"


def _build(job: Job, config: ReconVLAConfig | KeypointConfig | VGGTVLAConfig, store: Store) -> torch.nn.Module:
    """The model of a job with its first weights."""
    if isinstance(config, KeypointConfig):
        model = KeypointPolicy(config, store.stats)
        model.data = fingerprint.of_data(store)
        return model
    like, ready = Store(job.like) if job.like else store, {}
    if isinstance(config, VGGTVLAConfig):
        stores = {like, store, *([Store(job.validation)] if job.validation else [])}  # a frozen language model reads them all once
        known = [like] if config.language == "tiny" else stores
        return VGGTVLA.build(config, like.stats, sorted({episode.task for one in known for episode in one.episodes}),
                             sentences_file(store, config), fingerprint.conventions(store))
    found = len(like.stats.get("observation.state", {}).get("mean", ()))
    if found != config.state_dim:
        raise UserError(f"{like.folder} holds other data than this model is made for", f"{config.state_dim} numbers of the state "
                        "(observation.state), as in CALVIN", found or f"none; columns {', '.join(like.columns)}",
                        'in the job\'s model the preset for these data: "vggt_tiny" (LIBERO), "change_tiny_ours" (LEVIR); or "state_dim"')
    if not job.parts and (taught := [name for name, needed in (("vision", config.freeze_vision), ("vae", config.recon))
                                     if needed and getattr(config, name) == "tiny"]):
        raise UserError(f"{job.name}: the tiny {' and '.join(taught)} learn before all else, and the job does not say where they are",
                        'the folder of what they have learned, "parts" beside "model": "parts": "work/smoke/parts"', "no parts",
                        "add it; that folder is made by: repro run --profile smoke --only 01 --only 04 --only 05")
    if job.parts:
        from repro.models import tiny

        ready = tiny.load_parts(job.parts)
    model = ReconVLA.build(config, like.stats, instructions=[episode.task for episode in like.episodes], **ready)
    model.data = fingerprint.of_data(store)
    return model


def begin(model: ReconVLA, job: Job) -> dict:
    """Put the weights of `job.start` into the model, all or an error; what a checkpoint says of it."""
    path = Path(job.start) if (Path(job.start) / "about.json").is_file() else checkpoint.need(job.start)
    part.same(json.loads((path / "model.json").read_text())["parts"], model, path)
    weights = load_file(path / "model.safetensors")
    if not job.keep_denoiser:
        own = model.state_dict()
        weights = {name: own[name] if name.startswith("denoiser.") and name in own else value for name, value in weights.items()}
    model.load_weights(weights, path)
    about = checkpoint.about(path)
    return {"start": {"sha256": about["files"]["model.safetensors"], "step": about["step"], "data": about.get("data", {}).get("hash"),
                      "denoiser": "kept" if job.keep_denoiser else "begun anew"}}


def jobs(configs: list[Path | str], slots: int | None = None, log: Callable[[str], None] = print, processes: int = 0) -> None:
    """Run the jobs of several config files in subprocesses, `slots` at a time, and no more than there are GPUs, where there are any.

    `slots` defaults to one per GPU, or one per core, at most one per job; the cores are divided among them. `processes` of one job: each
    takes a GPU of its own, and they share its global batch; 0: what REPRO_PROCESSES says, else 1, and never more than there are GPUs.
    Lines are passed on as "[name] line". All jobs are let finish; then the failed ones are one error with the last lines of each.
    clock.OutOfTime where the session ends before a job does: it goes on in the next.
    """
    clock.check()
    gpus = len(machine.capabilities())
    processes = processes or int(os.environ.get("REPRO_PROCESSES") or 1)
    if gpus and processes > gpus:
        log(f"{processes} processes for one run, and {gpus} GPU{'s' * (gpus > 1)} here: {gpus}; the global batch stays the same")
        processes = gpus
    paths = list(map(Path, configs))
    summaries = {path: Path(json.loads(path.read_text())["folder"]) / "summary.json" for path in paths}
    for summary in summaries.values():
        summary.unlink(missing_ok=True)  # of an earlier session
    in_time = lambda: clock.left() > clock.RESERVE
    commands = [(path.stem, lambda path=path: ["train", str(path)] if in_time() else None) for path in paths]
    with live.curves([summary.parent for summary in summaries.values()]):
        failed = side_by_side(commands, slots, log, processes)
    if failed:
        raise UserError(f"{len(failed)} of {len(configs)} training jobs failed", found="\n  ".join(failed), next_step=(
            "mend what the last lines say and start again: finished jobs are skipped, the others go on from their checkpoints"))
    ended = {path: json.loads(summary.read_text()) if summary.is_file() else {"finished": False, "reason": SESSION_ENDS}  # did not begin
             for path, summary in summaries.items()}
    for path, one in ended.items():
        if one["reason"] == OWN_BUDGET:
            log(f"[WARN] {path.stem} is not finished: {one['reason']} at step {one['step']}; what follows takes it as it is")
    cut = {path.stem: one["reason"] for path, one in ended.items() if not one["finished"] and one["reason"] != OWN_BUDGET}
    if cut:
        raise clock.OutOfTime(f"{', '.join(sorted(set(cut.values())))}: {', '.join(cut)} go on in the next session")


def side_by_side(commands: list[tuple[str, Callable[[], list[str] | None]]], slots: int | None = None,
                 log: Callable[[str], None] = print, processes: int = 1) -> list[str]:
    """Run `repro ...` in subprocesses, as `jobs` does; a text with the last lines of each that failed.

    Each has a name, and arguments that are asked for when its turn comes; None: it is left out.
    """
    gpus = len(machine.capabilities())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    room = gpus // processes
    slots = min(slots or room, room) if gpus else slots or max(1, min(machine.cores() // processes, len(commands)))
    free: queue.Queue[int] = queue.Queue()
    for slot in range(slots):
        free.put(slot)

    running: list[subprocess.Popen] = []

    def run(named: tuple[str, Callable[[], list[str] | None]]) -> str | None:
        name, arguments = named[0], named[1]()
        if arguments is None:
            return None
        slot = free.get()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(visible[slot * processes : (slot + 1) * processes])
        else:
            environment["OMP_NUM_THREADS"] = str(max(1, machine.cores() // (slots * processes)))
        environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(SAVING)
        last, told = deque(maxlen=15), True
        try:
            process = subprocess.Popen([sys.executable, "-m", *_torchrun(processes), "repro", *arguments], env=environment, text=True,
                                       stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            running.append(process)
            for line in process.stdout:
                told = told and not TORCHRUN.match(line)  # what comes after says less than what its process said
                if told:
                    last.append(line.rstrip())
                log(f"[{name}] {line.rstrip()}")
            code = process.wait()
        finally:
            free.put(slot)
        return None if code == 0 else f"{name} (exit code {code}):\n    " + "\n    ".join(last)

    with ThreadPoolExecutor(slots) as pool:
        try:
            return [problem for problem in pool.map(run, commands) if problem]
        except BaseException:  # an interrupted notebook leaves no training behind that nobody watches; each saves what it has first
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(SAVING)
                except subprocess.TimeoutExpired:
                    process.kill()
            raise


def _torchrun(processes: int) -> list[str]:
    """What stands between `python -m` and `repro`, for so many processes on this machine; each run finds a free port for itself."""
    return [] if processes == 1 else ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
