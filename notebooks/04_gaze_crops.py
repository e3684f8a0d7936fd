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

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% [markdown]
# ## From the instruction to a phrase

# %% tags=["nbval-check-output"]
from repro.gaze.phrase import parse
from repro.sims.tabletop.language import VALIDATION

for task in list(VALIDATION)[::4]:
    phrase = parse(VALIDATION[task])
    print(f"{VALIDATION[task]:58.58} -> {phrase.target}" + (f" {phrase.relation} {phrase.destination}" if phrase.destination else ""))

# %% [markdown]
# ## Boxes into the store
# `gaze.box`, `gaze.score` and `gaze.source` become columns of every step. Where no simulator box was recorded, `colour` looks instead.

# %% tags=["nbval-check-output"]
from repro.data.episodes import Store
from repro.gaze.crops import annotate

stores = {split: Store(work / "store" / split) for split in ("training", "validation")}
for split, store in stores.items():
    report = annotate(store.folder, "truth" if "info.boxes" in store.columns else "colour")
    print(f"{split:11} {report['detector']}: {report['frames']} frames, sources {report['sources']}, unnamed {report['unnamed']}")

# %% [markdown]
# ## The weights-free detector against the truth
# Share of frames with IoU >= 0.5 and its 95 % interval (frames of one episode are not independent: it is too narrow), by task.

# %% tags=["nbval-check-output"]
from repro.gaze import quality

scored = quality.score(Store(work / "store" / "validation"), "colour", every=5)
print(scored.table())

# %%
from repro import pictures

pictures.keep(scored.sheet(12), work / "figures" / "gaze_colour.png")

# %% [markdown]
# ## What the model will have to reconstruct
# Above: the frame with its gaze region. Below: the crop, which takes the static camera's place on the reconstruction target.

# %%
from repro.attention import boxed
from repro.gaze.crops import crop

store = Store(work / "store" / "training")
steps = [store.read(i).columns for i in range(0, len(store), max(1, len(store) // 6))][:6]
shots = [(c["observation.images.static"][len(c["action"]) // 3], c["gaze.box"][len(c["action"]) // 3]) for c in steps]
images = [boxed(image, box) for image, box in shots] + [crop(image, box, size=(100, 100)) for image, box in shots]
pictures.keep(pictures.sheet(images, ["gaze region"] * 6 + ["crop"] * 6, columns=6), work / "figures" / "gaze_crops.png")
