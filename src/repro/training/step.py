"""One optimizer step: the same global batch whether one process does it or several, at once or in parts that fit the memory.

A step is `accumulate` micro-batches, numbered through the whole run. With W processes each takes every W-th of them; where W does not
divide them, each micro-batch is first cut into equal pieces. Losses and gradients are summed with each piece's share as its weight, so a
step is the same for any W (to rounding), but for what is drawn in it: before each piece every generator is seeded by (seed, micro-batch,
piece), so noise and dropout are the same for each W that divides `accumulate`, and others where micro-batches are cut. A resumed run
needs no generator's state. A loss that is a mean over valid tokens is, over pieces of a micro-batch, the mean of their means.

Where a GPU's memory does not hold a piece, it is halved, for good and said aloud; nothing else of the step changes.
"""

import gc
import math
import random
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size

from repro.machine import UserError

NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")  # beside what Accelerate takes for it
SKIPS = 20  # steps in a row that a float16 run may leave out: a scale of 65536 is at 1/16 then
BUCKET = 2**25  # gradients that are summed over the processes at a time


class Step:
    """`Step(...)(number)` does optimizer step `number` (0-based); means of the model's scalars over the global batch, and grad_norm."""

    def __init__(self, model: torch.nn.Module, optimizer, batches: Callable[[int], dict], accelerator: Accelerator, config,
                 here: Callable, log: Callable[[str], None] = print):
        self.model, self.optimizer, self.batches, self.accelerator, self.config = model, optimizer, batches, accelerator, config
        self.here, self.log, self.parts, self.skipped = here, log, 1, 0
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        world = accelerator.num_processes
        self.pieces = world // math.gcd(world, config.accumulate)
        if config.batch_size < self.pieces:
            raise UserError(f"{world} processes cannot share {config.accumulate} x {config.batch_size} samples: some would have none",
                            f"batch_size {self.pieces} or more, or accumulate a multiple of {world}",
                            f"batch_size {config.batch_size}, accumulate {config.accumulate}", "take fewer processes, or change these two")
        every = [(j, piece) for j in range(config.accumulate) for piece in range(self.pieces)]
        self.mine = every[accelerator.process_index::world]

    def __call__(self, number: int) -> dict[str, float]:
        while True:
            try:
                scalars = self._gradients(number)
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve(error)
        self._sum_over_processes(scalars)
        norm = float(self.accelerator.clip_grad_norm_(self.weights, self.config.clip))
        try:
            self.optimizer.step()  # with float16 the scaler leaves out a step whose gradients are not finite, and halves its scale
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            # No activation is left by now: smaller pieces are no help.
            raise UserError("the GPU's memory does not hold the weights, their gradients and what the optimizer keeps of them", (
                "a model whose training fits"), str(error).split("\n")[0], (
                "train fewer weights (LoRA, NF4), take a smaller preset, or end other programs on this GPU")) from None
        self.optimizer.zero_grad()
        return self.finite({**scalars, "grad_norm": norm}, number, scaled=self.accelerator.scaler is not None)

    def finite(self, scalars: dict[str, float], number: int, scaled: bool) -> dict[str, float]:
        """The scalars, or {"skipped": 1} for a step that the scaler has left out, SKIPS in a row at most. UserError elsewhere."""
        if math.isfinite(scalars["loss"]) and math.isfinite(scalars["grad_norm"]):
            self.skipped = 0
            return scalars
        self.skipped += 1
        if not scaled or self.skipped > SKIPS:
            what = "loss" if not math.isfinite(scalars["loss"]) else "grad_norm"
            often = f", and so were {self.skipped - 1} steps before it" if scaled else ""
            raise UserError(f"the {what} is {scalars[what]} at step {number + 1}{often}", expected="a finite number", next_step=(
                "lower the learning rate or look at the data; the last checkpoint stays"))
        self.log(f"step {number + 1} is left out: float16 overflowed, and the loss scale was lowered")
        return {"skipped": 1.0}

    def _gradients(self, number: int) -> dict[str, float]:
        """Gradients of this process' pieces; no word is exchanged with others, so a process may do its own again."""
        sums: dict[str, float] = {}
        self.largest = 0
        for j, piece in self.mine:
            micro = number * self.config.accumulate + j
            batch = self.batches(micro)
            size = len(next(iter(batch.values())))
            first, last = (size * k // self.pieces for k in (piece, piece + 1))
            edges = sorted({first + (last - first) * k // self.parts for k in range(self.parts + 1)})
            for part, (start, end) in enumerate(zip(edges, edges[1:], strict=False)):
                self.largest = max(self.largest, end - start)
                weight = (end - start) / size / self.config.accumulate
                seed(self.config.seed, micro, piece, part)
                cut = batch if end - start == size else {name: values[start:end] for name, values in batch.items()}
                with self.here():
                    out = self.model(cut)
                self.accelerator.backward(out["loss"] * weight)
                for name, value in out.items():
                    sums[name] = sums.get(name, 0.0) + weight * float(value.detach())
        return sums

    def _halve(self, error: Exception) -> None:
        """Half as many samples at a time from now on, and nothing left of the gradients so far."""
        if self.largest <= 1:
            raise UserError("the GPU's memory does not hold a single sample", "a model that fits", str(error).split("\n")[0], (
                "a smaller preset, NF4, gradient checkpointing, or fewer programs on this GPU")) from None
        self.parts *= 2
        self.optimizer.zero_grad()
        gc.collect()
        torch.cuda.empty_cache()
        self.log(f"out of GPU memory with {self.largest} samples at a time: from now on {-(-self.largest // 2)}, accumulated "
                 f"{len(self.mine) * self.parts} times; the global batch stays the same")

    def _sum_over_processes(self, scalars: dict[str, float]) -> None:
        """Sums of gradients and scalars over all processes, in place."""
        if self.accelerator.num_processes == 1:
            return
        device = self.accelerator.device
        total = lambda values: (torch.distributed.all_reduce(values), values)[1]
        anywhere = total(torch.tensor([float(weight.grad is not None) for weight in self.weights], device=device)).tolist()
        grads = []
        for weight, held in zip(self.weights, anywhere, strict=True):
            if held and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            grads += [weight.grad] if held else []
        while grads:
            count, together = 0, []
            while grads and (not together or (count + grads[0].numel() <= BUCKET and grads[0].dtype == together[0].dtype)):
                together.append(grads.pop(0))
                count += together[-1].numel()
            flat = total(torch.cat([grad.flatten() for grad in together]))
            for grad, values in zip(together, flat.split([grad.numel() for grad in together]), strict=True):
                grad.copy_(values.view_as(grad))
        names = sorted(scalars)
        values = total(torch.tensor([scalars[name] for name in names], dtype=torch.float64, device=device))
        scalars |= zip(names, values.tolist(), strict=True)


def sound(model: torch.nn.Module, number: int) -> None:
    """UserError where weights that train are not finite: no checkpoint is made of them. The loss shows it only a step later."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not weight.isfinite().all():
            raise UserError(f"the weights {name} are not finite after step {number}", "finite numbers", (
                f"{int((~weight.isfinite()).sum())} of {weight.numel()} are not"), (
                "lower the learning rate or look at the data; the last checkpoint stays"))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory was too small, whatever library says so."""
    return should_reduce_batch_size(error) or any(name in str(error) for name in NO_MEMORY)


def seed(*numbers: int) -> None:
    """Seed torch's (CPU and GPUs), numpy's and Python's generators by these numbers together."""
    one = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(one), np.random.seed(one), torch.manual_seed(one)


def same_step(step: int, folder, accelerator: Accelerator) -> None:
    """UserError, in every process, where they would go on from different steps: each has seen a folder of its own."""
    steps = gather_object([step])
    if len(set(steps)) > 1:
        raise UserError(f"the processes of this run found different checkpoints in {folder}", "one folder that all of them see",
                        f"steps {', '.join(map(str, steps))}", "put the run's folder on a disk that all nodes share")


def same_everywhere(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """The main process' weights and buffers in every process."""
    if accelerator.num_processes > 1:
        for values in (*model.parameters(), *model.buffers()):
            torch.distributed.broadcast(values.detach(), 0)
