"""The profiles smoke | cpu | t4 | paper: every number that differs between them, and nothing else.

A notebook reads them by `profile = profiles.get("smoke")`; a number that is the same everywhere belongs to the module that uses it.
"""

from dataclasses import dataclass, replace

from repro.machine import UserError, nearest

THIRTEEN_TASKS = (  # each names one thing, and needs no more than one grasp
    "open_drawer", "close_drawer", "move_slider_left", "move_slider_right", "turn_on_led", "turn_off_led", "turn_on_lightbulb",
    "turn_off_lightbulb", "lift_red_block_table", "lift_blue_block_table", "lift_pink_block_table", "place_in_slider", "place_in_drawer",
)  # fmt: skip
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
    batch_size: int  # per micro-batch
    accumulate: int  # global batch = batch_size * accumulate, on one GPU or several
    learning_rate: float  # peak of the cosine
    optimizer: tuple[tuple[str, object], ...]  # other fields of TrainConfig for ReconVLA's AdamW; (): as they are there
    budget_minutes: float  # wall clock of one training run: save and stop before it ends
    checkpoint_minutes: float  # wall clock between checkpoints; the guide's default is 120
    evaluate_chains: int  # chains of five tasks; CALVIN's own number is 1000
    evaluate_single: int  # single-task rollouts per task
    simulators: int  # stepped together with one batched policy call
    attention_frames: int  # frames whose attention is measured
    workers: int  # processes that write or import data
    variation: float  # how much the expert's way differs from one demonstration to the next; 1: as much as it can
    noise: float  # scale of the disturbance that demonstrations recover from; 0: none
    draw_every: int  # frames of training/ from one picture of a task to the next
    tower_steps: int  # of the tiny vision tower, before all else; where the preset has tiny parts
    vae_steps: int  # of the tiny VAE
    language_steps: int  # of the tiny language model, which learns to point; 0: it starts random
    part_pictures: int  # drawn for the three
    rows: tuple[str, ...]  # of the ablation (experiments.ROWS); here and below: `repro ablation`
    seeds: tuple[int, ...]
    few_rows: tuple[str, ...]  # rows of fewer seeds ...
    few_seeds: tuple[int, ...]  # ... these, and so for wrong boxes
    corrupt: tuple[float, ...]  # shares of wrong gaze boxes that "gaze" is trained with too
    pretrain_steps: int  # of the stage before row "gaze+pretrain" ...
    pretrain_tables: int  # ... on so many other play tables (scenes.scene, "R~..") ...
    pretrain_episodes_per_task: int  # ... each
    ablation_chains: int  # start states of chains of five in the evaluation scene, and as many in the training scenes
    curve_seeds: tuple[int, ...]  # seeds whose baseline and gaze runs are evaluated on the way too ...
    curve_single: int  # ... by so many single-task rollouts a task
    grocery_per_task: int  # scripted demonstrations of each of the grocery table's six tasks
    vla_rows: tuple[str, ...]  # of VGGT-VLA (vla_experiments.ROWS)
    vla_preset: str  # model size: a preset of VGGTVLAConfig
    vla_steps: int  # optimizer steps of VGGT-VLA
    vla_rollouts: int  # a task, of the first look at them on the grocery table
    vla_seeds: tuple[int, ...]  # of its rows over seeds ...
    vla_episodes: int  # ... and episodes a task and layout in their evaluation
    aerial_pairs: tuple[int, int, int]  # bi-temporal aerial pairs that are drawn: train, val, test
    agent_size: str  # of the change agent: tiny, or full with published weights
    agent_steps: int  # optimizer steps of the change agent
    agent_seeds: tuple[int, ...]  # of its rows over seeds
    agent_few_rows: tuple[str, ...]  # rows of the first seed alone (change_experiments.EXTRA)


SMOKE = Profile(
    name="smoke", where="any CPU, minutes: proves every step",
    scenes=("D",), evaluation_scene="D", tasks=EIGHT_TASKS, episodes_per_task=3, validation_episodes_per_task=1,
    preset="tiny", train_steps=30, batch_size=16, accumulate=1, learning_rate=3e-3, optimizer=(), budget_minutes=3, checkpoint_minutes=120,
    evaluate_chains=2, evaluate_single=1, simulators=8, attention_frames=16, workers=2,
    variation=0.05, noise=0.4, draw_every=1, tower_steps=30, vae_steps=100, language_steps=20, part_pictures=200,
    rows=("baseline", "gaze"), seeds=(0, 1), few_rows=(), few_seeds=(), corrupt=(), pretrain_steps=60, pretrain_tables=2,
    pretrain_episodes_per_task=1, ablation_chains=4, curve_seeds=(), curve_single=1, grocery_per_task=4,
    vla_rows=("vggt", "blind"), vla_preset="vggt_tiny", vla_steps=10, vla_rollouts=1, vla_seeds=(0,), vla_episodes=1,
    aerial_pairs=(80, 24, 24), agent_size="tiny", agent_steps=8, agent_seeds=(0,), agent_few_rows=(),
)  # fmt: skip

CPU = replace(
    SMOKE, name="cpu", where="any CPU: tiny models, trained until they act; the ablation is resumed until it is done",
    scenes=("A", "B", "C"), tasks=THIRTEEN_TASKS, episodes_per_task=40, validation_episodes_per_task=3, draw_every=3,
    train_steps=2500, batch_size=32, learning_rate=1.5e-3, budget_minutes=60, checkpoint_minutes=5,
    evaluate_chains=100, evaluate_single=4, simulators=32, attention_frames=400,
    tower_steps=1200, vae_steps=2000, language_steps=3000, part_pictures=12_000,
    rows=("baseline", "gaze", "whole", "gaze+pretrain"), seeds=(0, 1, 2, 3, 4),
    few_rows=("blind", "baseline untaught", "gaze untaught", "box", "mask", "baseline long", "gaze long", "baseline+pretrain",
              "baseline plain", "gaze plain"),
    few_seeds=(0, 1, 2),
    corrupt=(0.08, 0.33, 1.0),
    pretrain_steps=2500, pretrain_tables=60, pretrain_episodes_per_task=2, ablation_chains=100, curve_seeds=(0, 1, 2), curve_single=8,
    grocery_per_task=100, vla_rows=("none", "graph", "vggt", "blind"), vla_steps=4000, vla_rollouts=5, vla_seeds=(0, 1, 2), vla_episodes=20,
    aerial_pairs=(3000, 300, 500), agent_steps=2500, agent_seeds=(0, 1, 2),
    agent_few_rows=("guide, boxes only", "ours, first token", "ours, guide's fusion and loss"),
)  # fmt: skip

T4 = replace(
    CPU, name="t4", where="Kaggle, 2 x T4, one session of 11 h, resumes in the next",
    scenes=("A", "B", "C"), tasks=None, episodes_per_task=10, validation_episodes_per_task=2,  # 20,000 pictures: 14 GiB prepared, of 20
    # Rows "..+pretrain" need four times as many of 60 other tables, 34 tasks x 2 episodes each: 55 GiB more, not on Kaggle's disk.
    train_steps=20_000, batch_size=2, accumulate=8, learning_rate=2e-4, budget_minutes=660,
    checkpoint_minutes=120, seeds=(0, 1, 2), few_rows=("blind", "baseline+pretrain"), few_seeds=(0,), corrupt=(),
    evaluate_chains=200, evaluate_single=25, attention_frames=500, workers=4,
    preset="t4", pretrain_steps=20_000, ablation_chains=500, curve_single=5, vla_preset="vggt_qwen3", vla_steps=20_000, vla_rollouts=20,
    vla_episodes=50,
    agent_size="full", agent_few_rows=(), agent_steps=17_000,  # 10 epochs of LEVIR-CC's 6,815 pairs in batches of 4
)  # fmt: skip

PAPER = replace(
    T4, name="paper", where="GPUs of 150 GiB or more, by torchrun or accelerate: the paper's own sizes, the whole model on each GPU",
    train_steps=4200, batch_size=8, accumulate=64, learning_rate=2e-5,  # 2 epochs of ~1.07 M annotated frames; 8 micro-batches a GPU
    optimizer=(("betas", (0.9, 0.999)), ("weight_decay", 0.0), ("warmup", 126)),  # the scripts': transformers' defaults, 3 % of the steps
    budget_minutes=7 * 24 * 60,
    evaluate_chains=1000, simulators=64, workers=16, preset="paper", pretrain_steps=4200, ablation_chains=1000,
)  # fmt: skip

PROFILES = {profile.name: profile for profile in (SMOKE, CPU, T4, PAPER)}


def get(name: str) -> Profile:
    """The profile called `name`; a UserError with the nearest name where there is none."""
    if name in PROFILES:
        return PROFILES[name]
    raise UserError(
        f"there is no profile {name!r}",
        expected=" | ".join(PROFILES),
        found=repr(name),
        next_step=nearest(name, PROFILES, "use one of these names"),
    )
