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
# # 00 · Environment
# What is this machine, which numbers will the chosen profile use, and does the embedded simulator draw what it should?
# Every notebook starts with the same two cells: parameters, then the profile they select.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper

# %%
from repro import machine, profiles

settings = profiles.get(profile)
settings

# %% [markdown]
# ## The machine
# The dtype is chosen by compute capability, never by `torch.cuda.is_bf16_supported()`, which says True on a T4 and means emulation.

# %%
dtype, reason = machine.compute_dtype()
for name, value in machine.describe().items():
    print(f"{name:12} {value}")
print(f"{'dtype':12} {dtype}: {reason}")

# %% [markdown]
# ## Is everything there?

# %%
from repro.doctor import checks, show

show(checks())

# %% [markdown]
# ## The embedded play table
# CALVIN's state, action and camera layout, drawn with numpy and OpenCV. It is a stand-in: scores on it say nothing about CALVIN.

# %%
import matplotlib.pyplot as plt

from repro.sims.tabletop.world import PlayTable

figure, axes = plt.subplots(2, 4, figsize=(11, 5.6))
for column, scene in enumerate("ABCD"):
    observation = PlayTable(scene, seed=0).reset(None)
    for axis, camera in zip(axes[:, column], ("static", "wrist"), strict=True):
        axis.imshow(observation[f"observation.images.{camera}"])
        axis.set(title=f"scene {scene}, {camera}", xticks=[], yticks=[])

# %% [markdown]
# The same bits everywhere: the state after ten fixed actions, compared when this notebook is validated.

# %% tags=["nbval-check-output"]
import numpy as np

for scene in "ABCD":
    table = PlayTable(scene, seed=0)
    table.reset(None)
    for _ in range(10):
        table.step(np.array([0.5, 0.2, -1, 0, 0, 0.3, -1]), render=False)
    print(scene, np.round(table.state()["robot_obs"][:7], 4).tolist())
