"""The profiles smoke | cpu | t4 | paper: every number that differs between them, and nothing else.

A notebook reads them by `profile = profiles.get("smoke")`; a number that is the same everywhere belongs to the module that uses it.
"""

import difflib
from dataclasses import dataclass, replace

from repro.machine import UserError

EIGHT_TASKS = (
    "open_drawer", "close_drawer", "move_slider_left", "move_slider_right",
    "turn_on_led", "turn_on_lightbulb", "lift_red_block_table", "push_blue_block_left",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """What a run of the notebooks does, by size."""

    name: str
    where: str  # hardware it is meant for
    scenes: tuple[str, ...]  # play-table scenes to train on
    evaluation_scene: str  # D: unseen where `scenes` is A, B, C
    tasks: tuple[str, ...] | None  # None: all 34
    episodes_per_task: int  # in training/, for each scene and task
    validation_episodes_per_task: int
    preset: str  # model size: a preset of ReconVLAConfig
    train_steps: int  # optimizer steps, not micro-batches
    batch_size: int  # per micro-batch and device
    accumulate: int  # effective batch = batch_size * accumulate * devices
    learning_rate: float  # peak of the cosine
    budget_minutes: float  # wall clock of one training run: save and stop before it ends
    checkpoint_minutes: float  # wall clock between checkpoints; the guide's default is 120
    evaluate_chains: int  # chains of five tasks; CALVIN's own number is 1000
    evaluate_single: int  # single-task rollouts per task
    simulators: int  # stepped together with one batched policy call
    attention_frames: int  # frames whose attention is measured
    workers: int  # processes that write or import data


SMOKE = Profile(
    name="smoke", where="any CPU, minutes: proves every step",
    scenes=("D",), evaluation_scene="D", tasks=EIGHT_TASKS, episodes_per_task=4, validation_episodes_per_task=1,
    preset="tiny", train_steps=60, batch_size=16, accumulate=1, learning_rate=3e-3, budget_minutes=3, checkpoint_minutes=120,
    evaluate_chains=4, evaluate_single=1, simulators=8, attention_frames=16, workers=2,
)  # fmt: skip

CPU = replace(
    SMOKE, name="cpu", where="any CPU, under an hour on 2 cores: tiny models, trained until they begin to act",
    episodes_per_task=40, validation_episodes_per_task=3,
    train_steps=1400, batch_size=16, learning_rate=3e-3, budget_minutes=40,
    evaluate_chains=24, evaluate_single=8, simulators=32, attention_frames=120,
)  # fmt: skip

T4 = replace(
    CPU, name="t4", where="Kaggle, 2 x T4, one session of 11 h, resumes in the next",
    scenes=("A", "B", "C"), tasks=None, episodes_per_task=100, validation_episodes_per_task=5,
    train_steps=20_000, batch_size=2, accumulate=8, learning_rate=2e-4, budget_minutes=660,
    evaluate_chains=200, evaluate_single=25, attention_frames=500, workers=4,
)  # fmt: skip

PAPER = replace(
    T4, name="paper", where="a cluster, by torchrun or accelerate: the paper's own sizes",
    train_steps=4200, batch_size=8, accumulate=8, learning_rate=2e-5,  # 2 epochs of ~1.07 M annotated frames, 8 GPUs: global 512
    budget_minutes=7 * 24 * 60,
    evaluate_chains=1000, simulators=64, workers=16,
)  # fmt: skip

PROFILES = {profile.name: profile for profile in (SMOKE, CPU, T4, PAPER)}


def get(name: str) -> Profile:
    """The profile called `name`; a UserError with the nearest name where there is none."""
    if name in PROFILES:
        return PROFILES[name]
    near = difflib.get_close_matches(name, PROFILES, n=1)
    raise UserError(
        f"there is no profile {name!r}",
        expected=" | ".join(PROFILES),
        found=repr(name),
        next_step=f"did you mean {near[0]!r}?" if near else "use one of these names",
    )
