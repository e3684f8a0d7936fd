"""One explicit training loop: for a laptop's core, Kaggle's two T4s and a cluster alike (Accelerate moves the tensors).

    summary = train(model, Batches(store, 32, model.config.chunk, prepare=model.prepare), "runs/gaze", TrainConfig(steps=2000))

A step is an optimizer step: `accumulate` micro-batches, gradients clipped, then AdamW (step.py), the same on one GPU and on several.
Training stops by steps, by its own budget, by the session's clock, or when it is told to (SIGTERM, Ctrl-C); it saves every
`checkpoint_minutes` and before it stops, and goes on by itself where a folder holds a checkpoint: bit for bit the same run on a CPU,
because a batch is a function of its number, the learning rate of the step, and the generators are seeded by the micro-batch.
"""
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file

from repro import clock as session
from repro import freshness, machine
from repro.machine import UserError
from repro.training import checkpoint
from repro.training.budget import Budget, told_to_stop
from repro.training.logs import WATCHED, Metrics, loss_curve, read_metrics, stops_early, watched  # noqa: F401 (two of them for callers)
from repro.training.step import Step, same_everywhere, same_step, sound

# what may change between sessions of one run
CLOCKWORK = ("checkpoint_minutes", "budget_minutes", "reserve_seconds", "keep", "log_seconds", "measure_every", "marks", "cpu_bfloat16",
             "best", "patience", "keep_epochs", "wandb")


@dataclass(frozen=True)
class TrainConfig:
    """Everything besides model and data that decides a run; saved in every checkpoint."""

    seed: int = 0
    steps: int = 2000               # optimizer steps, not micro-batches
    batch_size: int = 32            # per micro-batch; what the batches are made with
    accumulate: int = 1             # micro-batches per step, shared by the processes: batch_size * accumulate is the global batch on any
    learning_rate: float = 3e-3     # peak
    warmup: int = 50                # steps of linear warm-up, then a cosine down to ...
    final: float = 0.0              # ... this share of the peak
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0               # largest norm of all gradients together
    checkpoint_minutes: float = 120.0  # wall clock between checkpoints
    budget_minutes: float = 0.0     # wall clock of this call; 0: no limit. Where the session has an end (clock.py), that counts instead
    reserve_seconds: float = 5.0    # kept free before the budget's end, on top of what steps and saves were seen to take
    keep: int = 2                   # checkpoints kept
    log_seconds: float = 30.0       # between printed lines; metrics.jsonl has every step
    measure_every: int = 0          # steps between measurements on held-out data, and one at the end; 0: none
    marks: tuple[float, ...] = ()   # shares of the steps after which the model is kept for good, in <folder>/kept
    best: bool = False              # keep the model of the lowest held-out loss, in <folder>/best (with measure_every)
    patience: int = 0               # stop after so many measurements without a lower held-out loss; 0: never
    keep_epochs: int = 0            # epochs between models kept for good, in <folder>/kept, beside `marks`; 0: none
    wandb: str = ""                 # a project of wandb; "": TensorBoard and metrics.jsonl alone
    cpu_bfloat16: bool = False      # matrix products in bfloat16 where there is no GPU and the CPU has them in hardware

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "marks", tuple(self.marks))
        for name in ("steps", "batch_size", "accumulate", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"training config: {name} must be at least 1", found=getattr(self, name))
        if not 0 <= self.final <= 1:
            raise UserError("training config: final is a share of the peak learning rate", "in [0, 1]", self.final)
        if self.patience < 0 or self.keep_epochs < 0:
            raise UserError("training config: patience and keep_epochs count", ">= 0 (0: none)", (self.patience, self.keep_epochs))


LATER = [("model", "gaze_truncate", False), ("train", "final", 0.0)]  # fields that came later, with what was done before

SESSION_ENDS, OWN_BUDGET = "the session's time is over", "the budget of this run ends"


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended; it stands in <folder>/summary.json too."""

    step: int
    finished: bool     # all steps done, or stopped early for good; False: the budget or the session ended first, call again
    reason: str        # SESSION_ENDS where nothing that follows should begin either
    minutes: float     # of all sessions of this run
    loss: float        # mean of the last 50 steps; nan if there are none
    checkpoint: Path
    resumed_from: int  # 0: from scratch
    processes: int = 1
    samples_per_second: float = 0.0  # of this session, without what was saved and measured
    peak_memory: str = ""            # of the main process


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate of `step` (0-based): linear warm-up, then a cosine that reaches `final` of the peak after the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    fallen = 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))
    return config.learning_rate * (config.final + (1 - config.final) * fallen)


def train(model: torch.nn.Module, batches: Callable[[int], dict], folder: Path | str, config: TrainConfig, data: dict | None = None,
          clock: Callable[[], float] = time.monotonic, log: Callable[[str], None] = print,
          measure: Callable[[torch.nn.Module], dict[str, float]] | None = None) -> Summary:
    """Train `model` (a `loss(batch) -> dict` with "loss", a `config` dataclass, `save(folder)`) and leave checkpoints in `folder`.

    `batches(i)` gives micro-batch i = step * accumulate + j as numpy arrays. `data` names the data (e.g. {"hash": ..}): a
    checkpoint of other data, model or training config is refused with the differing fields. Writes `metrics.jsonl` and `tensorboard/`; what
    `measure(model)` gives every `measure_every` steps stands in the lines of these steps, and its "held_out" says which model is kept as
    the best and when patience ends. A run that stopped early is finished: called again it does nothing, unless patience was raised.
    """
    folder, data = Path(folder), data or {}
    epoch = _epoch(batches, config)
    if (config.best or config.patience) and not (measure and config.measure_every):
        raise UserError("`best` and `patience` go by a loss on held-out data, and none is measured", "held-out episodes and measure_every",
                        f"measure_every {config.measure_every}, held-out data {'there' if measure else 'none'}",
                        "give the job `held_out` or `validation`, and train.measure_every")
    dtype, why = machine.compute_dtype()
    precision = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    here = nullcontext  # beside Accelerate's own precision, which one process cannot change from run to run
    if config.cpu_bfloat16 and not machine.capabilities() and machine.fast_bfloat16():
        dtype, why = torch.bfloat16, "no NVIDIA GPU: matrix products in bfloat16, which this CPU has in hardware"
        here = partial(torch.autocast, "cpu", torch.bfloat16)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    say = log if accelerator.is_main_process else lambda line: None
    say(f"device {accelerator.device} x {accelerator.num_processes}, {str(dtype).removeprefix('torch.')}: {why}")
    limited = math.isfinite(session.left())  # by the session's end, which then takes the place of the run's own budget
    budget = Budget(0.0 if limited else config.budget_minutes, config.checkpoint_minutes, config.reserve_seconds, clock)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, betas=config.betas,
                                  weight_decay=config.weight_decay)
    _held_in_32_bits(model)
    model.train()
    model = accelerator.prepare_model(model, evaluation_mode=True)  # no wrapper: step.py sums the gradients
    optimizer = accelerator.prepare_optimizer(optimizer)
    plain = accelerator.unwrap_model(model)
    same_everywhere(plain, accelerator)
    every = list(plain.parameters())
    say(f"{sum(p.numel() for p in every if p.requires_grad):,} trainable of {sum(p.numel() for p in every):,} parameters")
    identity = {"model": asdict(plain.config), "train": _deciding(config), "data": data}

    last = checkpoint.latest(folder, say)
    step, seconds_before = _resume(last, plain, optimizer, accelerator, identity) if last else (0, 0.0)
    same_step(step, folder, accelerator)
    resumed_from, saved_at = step, step if last else -1
    if last:
        before = checkpoint.about(last).get("dtype", str(dtype))
        say(f"resumed from {last}" + (f"; trained in {before} so far, from here on in {dtype}" if before != str(dtype) else ""))
    metrics = Metrics(folder / "metrics.jsonl", step, accelerator.is_main_process)

    def about() -> dict:
        return {**identity, "processes": accelerator.num_processes, "clockwork": {name: getattr(config, name) for name in CLOCKWORK},
                "stats": getattr(plain, "stats", {}), "peak_memory_gib": session.peak_gib(), "dtype": str(dtype), **checkpoint.provenance()}

    metrics.begin(config.wandb, {**identity, **checkpoint.provenance()}, say)

    def save() -> Path:
        nonlocal saved_at, last
        if saved_at == step:
            return last
        began = clock()
        sound(plain, step)
        if accelerator.is_main_process:
            metrics.flush()
            state = {"optimizer": optimizer.state_dict(), "seconds": seconds_before + clock() - budget.start,
                     "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {}}
            last = checkpoint.save(folder, step, plain.save, state, about(), config.keep)
        saved_at = step
        accelerator.wait_for_everyone()
        budget.save_took(clock() - began)
        return last

    def keep_best() -> None:
        """Keep the model of the lowest held-out loss; after the run itself is saved, so that the best is never ahead of it."""
        losses = watched(metrics.lines)
        if _agree(accelerator, [accelerator.is_main_process and _is_best(folder / "best", step, losses)])[0]:
            save()
            if accelerator.is_main_process:
                checkpoint.save(folder / "best", step, plain.save, {}, {**about(), WATCHED: losses[step]}, 1)

    if last and config.best:
        keep_best()  # had the run been killed between the two
    early, reason = stops_early(metrics.lines, config.patience), "all steps done"
    one_step = Step(model, optimizer, batches, accelerator, config, here, log)
    progress = session.Progress(folder.name, config.steps, "steps", say, before=step, every=config.log_seconds)
    samples, shown, worked = config.batch_size * config.accumulate, step, 0.0  # a step; step of the last line; seconds of steps so far
    with told_to_stop() as told:
        while True:
            time_left = session.left() - budget.slowest_step - 2 * budget.slowest_save
            unknown = limited and step > resumed_from and not budget.slowest_save  # what a save takes; the last one must fit
            flags = [budget.over(), time_left < session.RESERVE, told[:1], budget.due() or unknown, early]
            over, ended, stopped, due, early = _agree(accelerator, flags)
            if early or step >= config.steps:
                reason = f"stopped early: {early}" if early else reason
                break
            if over or ended or stopped:
                reason = f"told to stop ({stopped[0]})" if stopped else SESSION_ENDS if ended else OWN_BUDGET
                break
            if due:
                save()
            began = clock()
            for group in optimizer.param_groups:
                group["lr"] = rate(step, config)
            scalars = {**one_step(step), "lr": rate(step, config)}
            worked += clock() - began
            step += 1
            measured = bool(measure and config.measure_every and (step % config.measure_every == 0 or step == config.steps))
            if measured:
                scalars |= _aside(plain, measure, accelerator, here)
            metrics.write({"step": step, **scalars, "seconds": round(seconds_before + clock() - budget.start, 3)})
            if progress.due(step):
                values = {name: value for name, value in metrics.mean(step - shown).items() if name not in ("step", "seconds", "lr")}
                said = " ".join(f"{name} {value:.3f}" for name, value in values.items())
                progress(step, f"{said} | {(step - resumed_from) * samples / worked:.0f} samples/s" if worked else said)
                shown = step
            marked = step in {round(share * config.steps) for share in config.marks}
            if marked or (epoch and step // epoch > (step - 1) // epoch):
                sound(plain, step)
                if accelerator.is_main_process:
                    checkpoint.save(folder / "kept", step, plain.save, {}, about(), config.steps)
            if measured and config.best:
                keep_best()  # saves the run itself, so it comes after what would not be made again
            if measured:
                early = stops_early(metrics.lines, config.patience)
            budget.step_took(clock() - began)  # with all that came after it: one more of the slowest must fit
        path = save()
    metrics.close()
    optimizer.zero_grad()
    seconds = seconds_before + clock() - budget.start
    finished, loss = bool(early) or step >= config.steps, metrics.mean(50).get("loss", math.nan)
    speed = (step - resumed_from) * samples / worked if worked else 0.0
    summary = Summary(step, finished, reason, seconds / 60, loss, path, resumed_from, accelerator.num_processes, speed,
                      session.peak_memory())
    if accelerator.is_main_process:
        freshness.write(folder / "summary.json", {**asdict(summary), "checkpoint": path.name})
    return summary


def _aside(model, measure, accelerator: Accelerator, here: Callable) -> dict[str, float]:
    """What `measure` says of the model as it acts; the run goes on as if nothing had been asked."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), accelerator.autocast(), here():
            return {name: float(value) for name, value in measure(model).items()}
    finally:
        model.train(was_training)


def _held_in_32_bits(model: torch.nn.Module) -> None:
    """UserError where weights that train are held in 16 bits: a step smaller than their rounding is none."""
    narrow = {name: weight.dtype for name, weight in model.named_parameters() if weight.requires_grad and weight.dtype.itemsize < 4}
    if narrow:
        raise UserError("weights that train are held in 16 bits, in which small steps are lost", "float32; products are in 16 anyway",
                        f"{len(narrow)} of them, {', '.join(sorted(map(str, set(narrow.values()))))}, such as {next(iter(narrow))}",
                        'set dtype to "float32" or "auto" in the model\'s config; a language model in 4 bits needs lora_rank')


def _epoch(batches, config: TrainConfig) -> float:
    """Optimizer steps between models that are kept for good, not a whole number; 0: none."""
    if not config.keep_epochs:
        return 0.0
    if not hasattr(batches, "__len__"):
        raise UserError("keep_epochs needs to know how long an epoch is", "batches with a length", type(batches).__name__, "keep_epochs=0")
    return config.keep_epochs * len(batches) / (config.batch_size * config.accumulate)


def _is_best(folder: Path, step: int, losses: dict[int, float]) -> bool:
    """Is this step's held-out loss below that of the best model on disk? One of a later step, or of another run, does not count."""
    lowest = math.inf
    for path in checkpoint.steps(folder):
        found = checkpoint.about(path)
        if found["step"] > step:
            shutil.rmtree(path)
        elif WATCHED in found and losses.get(found["step"]) == found[WATCHED]:
            lowest = min(lowest, found[WATCHED])
    return losses.get(step, math.inf) < lowest


def _deciding(config: TrainConfig) -> dict:
    """Fields that decide the run."""
    return {name: value for name, value in asdict(config).items() if name not in CLOCKWORK}


def _agree(accelerator: Accelerator, flags: list) -> list:
    """The main process' flags for all: clocks of two processes differ, and one stopping alone would hang the others."""
    return broadcast_object_list(flags) if accelerator.num_processes > 1 else flags


def _resume(path: Path, model, optimizer, accelerator: Accelerator, identity: dict) -> tuple[int, float]:
    """Put weights, optimizer and scaler back; (step, seconds of earlier sessions). Refuses another run's checkpoint."""
    about = checkpoint.about(path)
    different = [f"{part}.{name}: checkpoint {old!r}, now {new!r}" for part, name, old, new in differences(about, identity)]
    if different:
        raise UserError(f"{path} belongs to another run", expected="the same model, training and data", found="; ".join(different),
                        next_step="use another folder, or set these fields back")
    if hasattr(model, "load_weights"):  # into the model that is there: a second one of its size may not fit
        model.load_weights(load_file(path / "model.safetensors"), path)
    else:
        model.load_state_dict(type(model).load(path).state_dict())
    state = checkpoint.load_state(path)
    optimizer.load_state_dict(state["optimizer"])
    if accelerator.scaler and state["scaler"]:  # a run that began in another precision has none
        accelerator.scaler.load_state_dict(state["scaler"])
    return about["step"], state["seconds"]


def differences(about: dict, identity: dict) -> list[tuple]:
    """(part, field, old, new) for each field in which a checkpoint's about.json and a run differ. Of a field that came later, a checkpoint
    without it and one with what was done before it are the same."""
    now = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    flat = lambda tree: {(part, name): value for part, fields_ in tree.items()
                         for name, value in (fields_.items() if isinstance(fields_, dict) else [("", fields_)])
                         if (part, name, value) not in LATER}
    old, new = flat({part: about.get(part, {}) for part in now}), flat(now)
    return [(*key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
