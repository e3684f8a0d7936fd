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
# # 04 · Gaze crops
# What does the instruction name, where is it in the picture, and how far can the box be trusted? Two detectors so far: `truth`
# (the simulator's own segmentation) and `colour` (no weights). A failed detection is a flagged full frame, never a guess.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0

# %%
from repro import machine, profiles
from repro.data.episodes import Store

settings = profiles.get(profile)
work = machine.work(profile)
stores = {split: Store(work / "store" / split) for split in ("training", "validation")}
settings

# %% [markdown]
# ## Instruction -> phrase

# %% tags=["nbval-check-output"]
from repro.gaze.phrase import parse
from repro.sims.tabletop import language

for task in list(language.VALIDATION)[::5]:
    phrase = parse(language.VALIDATION[task])
    print(f"{language.VALIDATION[task]:55.55} -> {phrase.target} | {phrase.item} | {phrase.destination}")

# %% [markdown]
# ## Boxes into the store
# `gaze.box`, `gaze.score` and `gaze.source` become columns of every step.

# %% tags=["nbval-check-output"]
from repro.gaze.crops import annotate

for split in stores:
    print(split, annotate(work / "store" / split, detector="truth"))

# %% [markdown]
# ## The weights-free detector against the truth
# Detection rate at IoU 0.5 with its 95 % interval, centre error, jump rate. This is the floor for GroundingDINO.

# %% tags=["nbval-check-output"]
from repro.gaze.quality import score_store

quality = score_store(Store(work / "store" / "validation"), detector="colour", every=5)
quality.table()

# %%
quality.sheet()

# %% [markdown]
# ## What the reconstruction target will be: the crop

# %%
from repro.gaze.crops import crop
from repro.gaze.quality import contact_sheet

store = Store(work / "store" / "training")
episodes = [store.read(i) for i in range(0, len(store.episodes), max(1, len(store.episodes) // 8))][:8]
middles = [{key: column[len(column) // 3] for key, column in e.columns.items()} for e in episodes]
crops = [crop(m["observation.images.static"], m["gaze.box"], size=(64, 64)) for m in middles]
sheet = contact_sheet(crops, labels=[e.task[:34] for e in episodes])
