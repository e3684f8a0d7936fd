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
# # 01 · CALVIN data
# Raw frames in CALVIN's layout -> one store (LeRobot v3.0). By default the embedded play table writes the raw frames first;
# set `calvin_root` to read your own download instead (`task_D_D`, `task_ABC_D`, the debug set: anything with `training/`).

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
calvin_root = ""  # a CALVIN folder; empty: the embedded play table
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% [markdown]
# ## Raw frames
# A scripted expert with privileged state plays; every sentence is ours, none is CALVIN's. Scripted, not human.

# %%
from repro.sims.tabletop import dataset

if not calvin_root:
    dataset.ensure(work / "calvin", settings, seed)
root = calvin_root or work / "calvin"

# %%
from repro.data.calvin import Calvin

calvin = Calvin(root)
for split in ("training", "validation"):
    print(calvin.split(split).describe(), "\n")

# %% [markdown]
# ## Into the store
# One episode per annotation. Damaged frames are skipped, counted and named; wrong structure is refused.

# %%
from repro.data.calvin import ensure_store

stores = {split: ensure_store(root, split, work / "store" / split, workers=settings.workers) for split in ("training", "validation")}

# %% tags=["nbval-check-output"]
for split, store in stores.items():
    frames = sum(episode.length for episode in store.episodes)
    tasks = len({episode.task_id for episode in store.episodes})
    print(f"{split:11} {len(store.episodes):5} episodes  {frames:6} frames  {tasks:3} tasks  scenes {sorted({e.scene for e in store.episodes})}")

# %% [markdown]
# ## Look at the episodes

# %%
from repro.gaze.quality import contact_sheet

episodes = [stores["training"].read(i) for i in range(0, len(stores["training"].episodes), max(1, len(stores["training"].episodes) // 4))][:4]
picks = [(e, int(share * (len(e.columns["action"]) - 1))) for e in episodes for share in (0, 0.33, 0.66, 1)]
sheet = contact_sheet([e.columns["observation.images.static"][t] for e, t in picks], labels=[f"{e.task[:34]}\nframe {t}" for e, t in picks])

# %% [markdown]
# ## The actions
# Relative, in [-1, 1] (0.02 m and 0.05 rad per unit); gripper -1 close, +1 open.

# %%
import matplotlib.pyplot as plt
import numpy as np

actions = np.concatenate([stores["training"].read(e.index, columns=["action"]).columns["action"] for e in stores["training"].episodes[:200]])
figure, axes = plt.subplots(1, 7, figsize=(14, 2.2), sharey=True)
for axis, values, name in zip(axes, actions.T, ("x", "y", "z", "roll", "pitch", "yaw", "gripper"), strict=True):
    axis.hist(values, bins=41, range=(-1.025, 1.025), color="0.35")
    axis.set(title=name, xlabel="action unit", yscale="log")
axes[0].set_ylabel(f"frames (n = {len(actions)})")
