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
# Raw frames in CALVIN's layout become one store (LeRobot v3.0). By default the embedded play table writes the raw frames first;
# set `calvin_root` to read your own download instead (`task_D_D`, `task_ABC_D`, the debug set: any folder with `training/`).

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
# A scripted expert with privileged state plays; every sentence is ours, none is CALVIN's. Scripted play, not human play.

# %%
from repro.data.calvin import Calvin
from repro.sims import calvin_layout

root = calvin_root or calvin_layout.ensure(work / "calvin", settings, seed)
for split in ("training", "validation"):
    print(Calvin(root).split(split).describe(), "\n")

# %% [markdown]
# ## Into the store
# One episode per annotation. A damaged frame is left out, counted and named; a wrong structure is refused.

# %%
from repro.data.calvin_import import ensure_store

stores = {split: ensure_store(root, split, work / "store" / split, settings.workers) for split in ("training", "validation")}

# %% tags=["nbval-check-output"]
for split, store in stores.items():
    tasks, scenes = {e.task_id for e in store.episodes}, sorted({e.scene for e in store.episodes})
    print(f"{split:11} {len(store):5} episodes {store.frames:7} frames {len(tasks):3} tasks, scenes {', '.join(scenes)}")

# %% [markdown]
# ## Look at the episodes

# %%
from repro import pictures

store = stores["training"]
picks = [store.read(i) for i in range(0, len(store), max(1, len(store) // 4))][:4]
frames = [(e, int(share * (len(e.columns["action"]) - 1))) for e in picks for share in (0, 0.33, 0.66, 1)]
images = [e.columns["observation.images.static"][t] for e, t in frames]
pictures.keep(pictures.sheet(images, [f"{e.task}\nframe {t}" for e, t in frames]), work / "figures" / "episodes.png")

# %% [markdown]
# ## The actions
# Relative, in [-1, 1]: 0.02 m and 0.05 rad per unit; gripper -1 close, +1 open.

# %%
figure = pictures.histograms(store.column("action"), ["x", "y", "z", "roll", "pitch", "yaw", "gripper"], "action unit")
pictures.keep(figure, work / "figures" / "actions.png")

# %% tags=["nbval-check-output"]
for name in ("action", "observation.state"):
    print(f"{name:18} mean", [round(float(x), 3) for x in store.stats[name]["mean"][:7]])
