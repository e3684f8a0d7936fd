"""Training the change agent on stores of pairs (data/levir.py), by the same loop as every model.

A job as in training/launch.py: `store` and `validation` are stores of pairs, the preset is called change_<preset of ChangeConfig>.
"""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import PartialState

from repro.data import levir_boxes, overlap
from repro.data.change_batches import PairBatches
from repro.data.levir import Pairs
from repro.machine import UserError
from repro.models.change_agent import NO_CHANGE, ChangeAgent
from repro.models.change_agent_config import ChangeConfig
from repro.training.loop import Summary, TrainConfig, train

HELD_OUT = 256  # validation pairs with a box that are measured along the way, always the same, and their mean IoU decides the best


def run(job, config: ChangeConfig, settings: TrainConfig, log: Callable[[str], None] = print) -> Summary:
    """Do the job (training.launch.Job), or go on with it."""
    unused = {name: getattr(job, name) for name in ("parts", "like", "start", "corrupt", "held_out") if getattr(job, name)}
    if unused:
        raise UserError(f"{job.name}: the change agent knows no such fields", "store, validation, folder, model, train", unused)
    pairs = Pairs(job.store)
    for some in (pairs, Pairs(job.validation) if job.validation else pairs):
        if "localisable" not in some.column("state"):
            raise UserError(f"{some.store.folder} has no pair with a box: there is no pointing to learn", "masks, or boxes as given",
                            f"{len(some)} pairs, none localisable", "LEVIR-CC has captions alone; LEVIR-MCI has its pairs with masks")
    state = PartialState(cpu=not torch.cuda.is_available())  # each process has its GPU from here on; 4-bit parts are loaded onto it
    torch.manual_seed(settings.seed)  # the first weights
    model = ChangeAgent.build(config, sorted({caption for captions in pairs.column("captions") for caption in captions}))
    for some in (pairs, Pairs(job.validation) if job.validation else pairs):  # one that is too long would stop the run in its middle
        for caption in {caption for captions in some.column("captions") for caption in captions}:
            model.ids(caption)
    say = log if state.is_main_process else lambda line: None
    model.to(state.device)  # a frozen tower sees all pairs before the loop begins
    batches = batches_of(pairs, model, settings.batch_size, settings.seed, say)
    boxes = int((~np.isnan(batches.box).any(1)).sum())
    epochs = settings.steps * settings.batch_size * settings.accumulate / len(batches)
    say(f"{job.name}: {len(batches)} pairs, {boxes} with a box, {epochs:.1f} epochs")
    measure = None
    if job.validation and settings.measure_every:
        held_out = batches_of(Pairs(job.validation), model, settings.batch_size, log=say)
        measure = lambda one: measured(one, held_out)
    summary = train(model, batches, job.folder, settings, {"hash": pairs.hash}, log=log, measure=measure)
    say(f"{job.name}: {summary.reason} at step {summary.step} of {settings.steps}, {summary.minutes:.1f} min in all, {summary.checkpoint}")
    if state.num_processes > 1:  # without a barrier first, a process can abort at exit after a correct result
        state.wait_for_everyone()
        state.destroy_process_group()
    return summary


def batches_of(pairs: Pairs, model: ChangeAgent, batch_size: int, seed: int = 0, log: Callable[[str], None] = print) -> PairBatches:
    """The training batches that the model's config asks for. Pictures are flipped where a tower that trains sees them; augmented, also
    where a frozen one sees them in each step."""
    c = model.config
    box, flips = "union" if c.box == "union" else "main", c.flips and not model.tower.frozen
    return PairBatches(pairs, batch_size, seed, model.prepare_many, model.key, box, c.captions, NO_CHANGE, flips, log=log,
                       augment=c.augment)


def measured(model: ChangeAgent, held_out: PairBatches) -> dict[str, float]:
    """"held_out": 1 - mean IoU of the decoded square with the box, on pairs that have one; "held_out_pointing"; "held_out_gate".

    Captions are given to a model that is always given one in training, and to no other.
    """
    rows = np.flatnonzero(~np.isnan(held_out.box).any(1))[:HELD_OUT]
    rows = np.concatenate([rows, np.flatnonzero(~held_out.changed)[: len(rows)]])
    found = []
    for part in np.array_split(rows, -(-len(rows) // held_out.batch_size)):
        batch = held_out.gather(part)
        found.append(model.answers(batch, batch["caption"] if not model.config.caption_dropout else [None] * len(part)))
    vectors, boxes = np.concatenate([one["vector"] for one in found]), held_out.box[rows]
    has = ~np.isnan(boxes).any(1)
    inside = ((vectors[has, :2] >= boxes[has, :2]) & (vectors[has, :2] <= boxes[has, 2:])).all(1)
    scores = {"held_out": 1 - overlap.iou(levir_boxes.decode(vectors[has]), boxes[has]).mean(), "held_out_pointing": inside.mean()}
    if "changed" in found[0]:
        scores["held_out_gate"] = ((np.concatenate([one["changed"] for one in found]) >= 0.5) == held_out.changed[rows]).mean()
    return {name: float(value) for name, value in scores.items()}
