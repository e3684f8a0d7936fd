# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Train VGGT-VLA
# Does a geometry backbone help? The same policy with three backbones: *none*, *graph*, *vggt*; and *blind*, vggt trained without pictures,
# whose score can be had without looking. The system that is reproduced reached a loss of 0.0017 and solved 0 of 9 episodes: here a first
# look at rollouts stands beside the curves, and a checkpoint that belongs to another language model is refused. The smoke profile trains
# two of the four rows, for a few steps.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
preset = ""  # vggt_tiny (a CPU) | vggt_qwen3 | vggt_qwen3_dinov2 | graph_qwen2 (published weights); empty: the profile's
rows = ""  # of none, graph, vggt, blind, comma-separated; empty: the profile's
seed = 0

# %%
from repro import machine, profiles, vla_experiments

settings = profiles.get(profile)
work, preset = machine.work(profile), preset or settings.vla_preset
chosen = vla_experiments.named(rows, preset, settings.vla_rows)
print(f"preset {preset}: {', '.join(chosen)}; at most {settings.vla_steps} steps each")

# %% [markdown]
# ## The data
# Notebook 02's store, the embedded grocery table unless it was given LIBERO's files. One episode in ten is held out, whole: frames of one
# episode never stand on both sides. Learning curves and the best checkpoint go by these.

# %%
from repro.data.batches import held_out_episodes

store = vla_experiments.data(work)
aside = held_out_episodes(store.episodes, vla_experiments.HELD_OUT)
print(f"{len(store)} episodes, {store.frames} frames; held out: episodes {', '.join(map(str, sorted(aside)))}")

# %% [markdown]
# ## Sentences, encoded once
# A frozen language model says the same of a sentence in every step, so it says it once and leaves. What it was (name, revision, shapes,
# tokenizer) goes into every checkpoint and is compared before anything is loaded.

# %%
print(vla_experiments.encode(store, preset))

# %% [markdown]
# ## Train
# Each row in a process of its own; a folder that holds a checkpoint is resumed. Kept beside the last checkpoint: the one of the lowest
# held-out loss. Curves while it trains: `tensorboard --logdir work/<profile>/train`.

# %%
from repro.training import launch

launch.jobs(vla_experiments.jobs(settings, work, chosen, seed, preset))

# %% [markdown]
# ## Parameters by part
# In a guide's preset VGGT's blocks are frozen; in the tiny one all parts train. The head reads keypoints and state past the backbone, so
# the rows say what a backbone *adds* (papers/vggt_vla/notes.md, Departures).

# %% tags=["nbval-check-output"]
from repro import results

models = vla_experiments.load(work, chosen, seed, preset)
print(results.markdown(*vla_experiments.parameters(models)))

# %% [markdown]
# ## Learning curves
# First on training frames, then on the held-out episodes.

# %%
from repro import pictures
from repro.training.loop import loss_curve

runs = {row: vla_experiments.folder(work, row, seed, preset) for row in chosen}
figure = loss_curve(runs, "action", max(1, settings.vla_steps // 40), "loss of the actions, training frames")
pictures.keep(figure, work / "figures" / "vla_loss.png")

# %%
figure = loss_curve(runs, "held_out", smooth=1, label="loss of the actions, held-out episodes")
pictures.keep(figure, work / "figures" / "vla_loss_held_out.png")

# %%
print(results.markdown(*vla_experiments.held_out_table(work, models, seed, preset)))

# %% [markdown]
# ## A first look at rollouts
# The grocery table, wide layout, starts that no demonstration had. Few rollouts: read the intervals. It is kinematic and scripted, and not
# comparable with LIBERO. A low loss above means nothing where the blind row solves as much.

# %%
found = vla_experiments.first_look(settings, work, models, seed)
print(results.markdown(*vla_experiments.success_table(found)))

# %% [markdown]
# What the last row that can see does, as it was:

# %%
if found:
    seeing = [row for row in chosen if row != "blind"] or chosen
    figure = vla_experiments.film(models[seeing[-1]], work, seed)
    display(pictures.keep(figure, work / "figures" / "vla_rollout.png"))

# %% [markdown]
# ## The checkpoint that is refused
# In the report a checkpoint of Qwen3-0.6B was given Qwen2-0.5B, with a warning. This is what loading says here, before anything is built:

# %% tags=["nbval-check-output"]
from repro.models import fingerprint

belongs, given = (fingerprint.of_name(name) for name in ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen2-0.5B"))
print(fingerprint.refusal({"language": belongs}, {"language": given}, "the report's checkpoint"))
