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
# Every notebook starts with the same two cells: the parameters, then the profile they select.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
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
from repro import doctor

doctor.show(doctor.checks(profile))

# %% [markdown]
# ## The embedded play table
# CALVIN's state, action and camera layout, drawn with numpy and OpenCV. It is a stand-in: a score on it is not a CALVIN score.

# %%
from repro import pictures
from repro.sims.tabletop.world import PlayTable

seen = {scene: PlayTable(scene, seed=1).reset() for scene in "ABCD"}
images = [seen[scene][f"observation.images.{camera}"] for camera in ("static", "wrist") for scene in "ABCD"]
labels = [f"scene {scene}, {camera} camera" for camera in ("static", "wrist") for scene in "ABCD"]
pictures.keep(pictures.sheet(images, labels), work / "figures" / "play_table.png")

# %% [markdown]
# The same bits everywhere: the tcp after ten fixed actions. This table is compared when the notebook is validated.

# %% tags=["nbval-check-output"]
import numpy as np

for scene in "ABCD":
    table = PlayTable(scene, seed=0)
    for _ in range(10):
        table.step(np.array([0.5, 0.2, -1, 0, 0, 0.3, -1]), render=False)
    print(scene, np.round(table.robot_obs()[:7], 4).tolist())
