"""One explicit training loop: for a laptop's core, Kaggle's two T4s and a cluster alike (Accelerate moves the tensors).

    summary = train(model, Batches(store, 32, model.config.chunk, prepare=model.prepare), "runs/gaze", TrainConfig(steps=2000))

A step is an optimizer step: `accumulate` micro-batches, gradients clipped, then AdamW. Training stops by steps or by the clock,
saves every `checkpoint_minutes` and before the budget ends, and goes on by itself where a folder holds a checkpoint: bit for bit the
same run on a CPU, because a batch is a function of its number, the learning rate of the step, and every generator is saved.
"""
import json
import math
import os
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file

from repro import machine
from repro.machine import UserError
from repro.training import checkpoint

# what may change between sessions of one run
CLOCKWORK = ("checkpoint_minutes", "budget_minutes", "reserve_seconds", "keep", "log_every", "measure_every", "marks", "cpu_bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """Everything besides model and data that decides a run; saved in every checkpoint."""

    seed: int = 0
    steps: int = 2000               # optimizer steps, not micro-batches
    batch_size: int = 32            # per micro-batch and process; what the batches are made with
    accumulate: int = 1             # micro-batches per step
    learning_rate: float = 3e-3     # peak
    warmup: int = 50                # steps of linear warm-up, then a cosine down to 0
    weight_decay: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0               # largest norm of all gradients together
    checkpoint_minutes: float = 120.0  # wall clock between checkpoints
    budget_minutes: float = 0.0     # wall clock of this session; 0: no limit
    reserve_seconds: float = 5.0    # kept free before the budget's end, on top of what steps and saves were seen to take
    keep: int = 2                   # checkpoints kept
    log_every: int = 50             # steps between printed lines; metrics.jsonl has every step
    measure_every: int = 0          # steps between measurements on held-out data, and one at the end; 0: none
    marks: tuple[float, ...] = ()   # shares of the steps after which the model is kept for good, in <folder>/kept
    cpu_bfloat16: bool = False      # matrix products in bfloat16 where there is no GPU and the CPU has them in hardware

    def __post_init__(self):
        object.__setattr__(self, "betas", tuple(self.betas))
        object.__setattr__(self, "marks", tuple(self.marks))
        for name in ("steps", "batch_size", "accumulate", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training config: {name} must be at least 1", found=getattr(self, name))


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended."""

    step: int
    finished: bool     # all steps done; False: the budget ended first, call again
    reason: str
    minutes: float     # of all sessions of this run
    loss: float        # mean of the last 50 steps; nan if there are none
    checkpoint: Path
    resumed_from: int  # 0: from scratch


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


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate of `step` (0-based): linear warm-up, then a cosine that reaches 0 after the last step."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


def train(model: torch.nn.Module, batches: Callable[[int], dict], folder: Path | str, config: TrainConfig, data: dict | None = None,
          clock: Callable[[], float] = time.monotonic, log: Callable[[str], None] = print,
          measure: Callable[[torch.nn.Module], dict[str, float]] | None = None) -> Summary:
    """Train `model` (a `loss(batch) -> dict` with "loss", a `config` dataclass, `save(folder)`) and leave checkpoints in `folder`.

    `batches(i)` gives micro-batch i = step * accumulate + j as numpy arrays. `data` names the data (e.g. {"hash": ..}): a
    checkpoint of other data, model or training config is refused with the differing fields. Writes `metrics.jsonl`; what `measure(model)`
    gives every `measure_every` steps stands in the lines of these steps.
    """
    folder, data = Path(folder), data or {}
    dtype, why = machine.compute_dtype()
    precision = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    here = nullcontext  # beside Accelerate's own precision, which one process cannot change from run to run
    if config.cpu_bfloat16 and not machine.capabilities() and machine.fast_bfloat16():
        dtype, why = torch.bfloat16, "no NVIDIA GPU: matrix products in bfloat16, which this CPU has in hardware"
        here = partial(torch.autocast, "cpu", torch.bfloat16)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision, gradient_accumulation_steps=config.accumulate)
    say = log if accelerator.is_main_process else lambda line: None
    say(f"device {accelerator.device} x {accelerator.num_processes}, {str(dtype).removeprefix('torch.')}: {why}")
    budget = Budget(config.budget_minutes, config.checkpoint_minutes, config.reserve_seconds, clock)
    seed = config.seed + accelerator.process_index
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, betas=config.betas,
                                  weight_decay=config.weight_decay)
    model.train()
    model, optimizer = accelerator.prepare(model, optimizer)
    plain = accelerator.unwrap_model(model)
    identity = {"model": asdict(plain.config), "train": _deciding(config), "data": data, "processes": accelerator.num_processes}

    last = checkpoint.latest(folder, say)
    step, seconds_before = _resume(last, plain, optimizer, accelerator, identity) if last else (0, 0.0)
    resumed_from, saved_at = step, step if last else -1
    if last:
        say(f"resumed from {last}")
    metrics = Metrics(folder / "metrics.jsonl", step, accelerator.is_main_process)

    def about() -> dict:
        return {**identity, "clockwork": {name: getattr(config, name) for name in CLOCKWORK}, "stats": getattr(plain, "stats", {}),
                "dtype": str(dtype), **checkpoint.provenance()}

    def save() -> Path:
        nonlocal saved_at, last
        began = clock()
        generators = gather_object([checkpoint.random_state()])
        if accelerator.is_main_process and saved_at != step:
            metrics.flush()
            state = {"optimizer": optimizer.state_dict(), "random": generators, "seconds": seconds_before + clock() - budget.start,
                     "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {}}
            last = checkpoint.save(folder, step, plain.save, state, about(), config.keep)
        saved_at = step
        accelerator.wait_for_everyone()
        budget.save_took(clock() - began)
        return last

    reason = "all steps done"
    while step < config.steps:
        over, due = _agree(accelerator, [budget.over(), budget.due()])
        if over:
            reason = "the session's budget ends"
            break
        if due:
            save()
        began = clock()
        scalars = _one_step(model, optimizer, batches, accelerator, config, step, here)
        budget.step_took(clock() - began)
        if not math.isfinite(scalars["loss"]):
            raise UserError(f"the loss is {scalars['loss']} at step {step + 1}", expected="a finite number", next_step=(
                f"lower the learning rate or look at the data; last checkpoint: {last or 'none'}"))
        step += 1
        if measure and config.measure_every and (step % config.measure_every == 0 or step == config.steps):
            scalars |= _aside(plain, measure, accelerator, here)
        metrics.write({"step": step, **scalars, "seconds": round(seconds_before + clock() - budget.start, 3)})
        if step % config.log_every == 0 or step == config.steps:
            shown = {name: value for name, value in metrics.mean(config.log_every).items() if name not in ("step", "seconds", "lr")}
            parts = " ".join(f"{name} {value:.3f}" for name, value in shown.items())
            say(f"step {step}/{config.steps} {parts} | {step / max(1e-9, metrics.lines[-1]['seconds']):.1f} steps/s")
        if step in {round(share * config.steps) for share in config.marks} and accelerator.is_main_process:
            checkpoint.save(folder / "kept", step, plain.save, {}, about(), len(config.marks))
    path = save()
    metrics.close()
    optimizer.zero_grad()
    seconds = seconds_before + clock() - budget.start
    return Summary(step, step >= config.steps, reason, seconds / 60, metrics.mean(50).get("loss", math.nan), path, resumed_from)


def _one_step(model, optimizer, batches, accelerator: Accelerator, config: TrainConfig, step: int, here: Callable) -> dict:
    """Forward and backward of all micro-batches, then one clipped AdamW step; means over the micro-batches."""
    for group in optimizer.param_groups:
        group["lr"] = rate(step, config)
    collected, norm = [], 0.0
    for j in range(config.accumulate):
        with accelerator.accumulate(model):
            with here():
                out = model(batches(step * config.accumulate + j))
            accelerator.backward(out["loss"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
        collected.append({name: float(value.detach()) for name, value in out.items()})
    means = {name: sum(one[name] for one in collected) / len(collected) for name in collected[0]}
    return {**means, "grad_norm": float(norm), "lr": rate(step, config)}


def _aside(model, measure, accelerator: Accelerator, here: Callable) -> dict[str, float]:
    """What `measure` says of the model as it acts; the run goes on as if nothing had been asked."""
    state, was_training = checkpoint.random_state(), model.training
    model.eval()
    try:
        with torch.no_grad(), accelerator.autocast(), here():
            return {name: float(value) for name, value in measure(model).items()}
    finally:
        model.train(was_training)
        checkpoint.set_random_state(state)


def _deciding(config: TrainConfig) -> dict:
    return {name: value for name, value in asdict(config).items() if name not in CLOCKWORK}


def _agree(accelerator: Accelerator, flags: list[bool]) -> list[bool]:
    """The main process' flags for all: clocks of two processes differ, and one stopping alone would hang the others."""
    return broadcast_object_list(flags) if accelerator.num_processes > 1 else flags


def _resume(path: Path, model, optimizer, accelerator: Accelerator, identity: dict) -> tuple[int, float]:
    """Put weights, optimizer, scaler and generators back; (step, seconds of earlier sessions). Refuses another run's checkpoint."""
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
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    checkpoint.set_random_state(state["random"][accelerator.process_index])
    return about["step"], state["seconds"]


def differences(about: dict, identity: dict) -> list[tuple]:
    """(part, field, old, new) for each field in which a checkpoint's about.json and a run differ."""
    now = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    flat = lambda tree: {(part, name): value for part, fields_ in tree.items()
                         for name, value in (fields_.items() if isinstance(fields_, dict) else [("", fields_)])}
    old, new = flat({part: about.get(part, {}) for part in now}), flat(now)
    return [(*key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


class Metrics:
    """metrics.jsonl, one line a step. On resuming, lines after the checkpoint's step are dropped, so that no step stands twice."""

    def __init__(self, path: Path, step: int, main: bool):
        self.lines = [line for line in read_metrics(path) if line["step"] <= step] if main and step else []
        self.file = None
        if main:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(".part")
            aside.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            os.replace(aside, path)
            self.file = path.open("a")

    def write(self, line: dict) -> None:
        self.lines.append(line)
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def flush(self) -> None:
        checkpoint.flush(Path(self.file.name))

    def close(self) -> None:
        if self.file:
            self.file.close()

    def mean(self, count: int) -> dict:
        recent = self.lines[-count:]
        values = {name: [line[name] for line in recent if name in line] for name in dict.fromkeys(n for line in recent for n in line)}
        return {name: sum(found) / len(found) for name, found in values.items()}


def read_metrics(path: Path | str) -> list[dict]:
    """Lines of a metrics.jsonl; a last line cut off by a kill is left out."""
    lines = Path(path).read_text().splitlines() if Path(path).exists() else []
    whole = lines if not lines or lines[-1].endswith("}") else lines[:-1]
    return [json.loads(line) for line in whole]


def loss_curve(runs: dict[str, Path | str], scalar: str = "loss", smooth: int = 25):
    """Figure: one scalar of several runs ({name: folder}) over optimizer steps, running mean of `smooth` steps.

    Lines differ in style, not only in colour, so the figure reads in grey as well.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    styles = ["-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3))]
    for i, (name, folder) in enumerate(runs.items()):
        lines = [line for line in read_metrics(Path(folder) / "metrics.jsonl") if scalar in line]
        if not lines:
            continue
        values, window = np.array([line[scalar] for line in lines]), min(smooth, len(lines))
        sums = np.cumsum(np.insert(values, 0, 0.0))
        mean = (sums[window:] - sums[:-window]) / window
        at = [line["step"] for line in lines][window - 1:]
        axes.plot(at, mean, color=f"C{i}", linestyle=styles[i % len(styles)], linewidth=1.8, label=name,
                  marker="o" if len(at) == 1 else None)
    axes.set_xlabel("optimizer step")
    names = {"loss": "training loss", "action": "cross-entropy of the action tokens (nats)",
             "recon": "reconstruction loss (MSE of the noise)", "l1": "mean error of the most likely first action",
             "held_out": "cross-entropy on held-out episodes (nats)"}
    axes.set_ylabel(names.get(scalar, scalar))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, handlelength=3.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
