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
# What does the instruction name, where is it in the picture, and how far can the box be trusted? The guide reports that GroundingDINO
# finds the target in 92 % of simple and 67 % of complex scenes, that "the blue block in the red bowl" finds only the bowl, and that a
# failed detection scatters the model's attention. Here every box has a score, a source and a note; a failed detection is a flagged full
# frame, never a guess.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0
detector = "colour"  # for data without simulator boxes: colour (no weights) | transformers | groundingdino-py
weights = ""  # GroundingDINO: hub id or folder; "" looks among Kaggle's inputs

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% [markdown]
# ## From the instruction to a phrase
# Rules over words, no model: the target, what tells it from others of its kind, and where it goes.

# %% tags=["nbval-check-output"]
from repro.gaze.phrase import parse
from repro.sims.tabletop.language import VALIDATION

free = ["pick up the blue block in the red bowl", "put the left mug on the plate next to the tin", "close the top drawer of the cabinet"]
print(f"{'instruction':61} | {'target':13} | {'told by':14} | goes")
for sentence in list(VALIDATION.values())[::5] + free:
    phrase = parse(sentence)
    told = " ".join(filter(None, (phrase.side, phrase.place, " and ".join(phrase.references))))
    goes = f"{phrase.relation} {phrase.destination}" if phrase.destination else ""
    print(f"{sentence:61.61} | {phrase.target:13} | {told:14} | {goes}")

# %% [markdown]
# ## Boxes into the store
# `gaze.box`, `gaze.score`, `gaze.source` and `gaze.note` become columns of every step. While the gripper holds the target, the gaze is
# on the destination (the paper's figures show it; its code does not do it: `follow=False`). What is done is kept: an interrupted run goes
# on.

# %% tags=["nbval-check-output"]
from repro.data.episodes import Store
from repro.gaze.annotate import annotate

stores = {split: Store(work / "store" / split) for split in ("training", "validation")}
for split, store in stores.items():
    source = "truth" if "info.boxes" in store.columns else detector
    report = annotate(store.folder, source, weights=weights or None if source != "colour" else None)
    print(f"{split:11} {report['detector']}: {report['frames']} frames, sources {report['sources']}, notes {report['notes']}")

# %% [markdown]
# ## Scenes that are hard
# Drawn with textures and colours nobody has seen: twins of the same colour, things in bowls and on plates, far things, and a hand that
# passes over. The sentence is above each picture, the true box is drawn.

# %%
from repro import pictures, results, run_records
from repro.attention_figures import boxed
from repro.evaluation import gaze as evaluation

clutter = evaluation.clutter(evaluation.SIZES.get(profile, evaluation.SIZES["cpu"])[0])
shown = [episode for episode in clutter.episodes if episode.truth[2, 0] >= 0][:12]
marked = [boxed(episode.images[2], episode.truth[2]) for episode in shown]
pictures.keep(pictures.sheet(marked, [episode.said for episode in shown], columns=4), work / "figures" / "gaze_scenes.png")

# %% [markdown]
# ## With and without each option
# "none" is fixed: the best box of one look, no filter. Each option is measured alone, left out of all, and all together, on the same
# frames; brackets are 95 % intervals over scenes. GroundingDINO is measured too where its weights are attached.

# %%
from repro.gaze.detectors import load
from repro.gaze.grounding_dino import find_weights

where = weights or find_weights()
detectors = [load("colour")] + ([load("transformers", where)] if where else [])
held_out = [evaluation.stored(stores["validation"])] if "info.boxes" in stores["validation"].columns else []
records, found = [], {}
for each in detectors:
    made, measured = evaluation.compare(each, [clutter, *held_out], seed=seed, log=print if where else lambda line: None)
    records, found[each.name] = records + made, measured

# %%
paths = [run_records.save(record, work / "gaze" / "runs") for record in records]
print(results.markdown(*evaluation.detectors_table(records)))

# %%
print(results.markdown(*evaluation.options_table([r for r in records if r["config"]["detector"] == "colour"], clutter.name)))

# %% tags=["nbval-check-output"]
scores = {options: found["colour"][clutter.name, options] for options in ("none", "all")}
for options, one in scores.items():
    simple, hard = one.rate(~one.complex), one.rate(one.complex)
    print(f"{options:5} simple {simple['value']:.2f} of {simple['n']} frames, complex {hard['value']:.2f} of {hard['n']}")

# %% [markdown]
# ## Hits, misses, and what a score means
# First what the options put right: the same frames with none (misses) and with all options.

# %%
none, everything = scores["none"], scores["all"]
pictures.keep(evaluation.sheet(none, ~none.hit & everything.hit, 8), work / "figures" / "gaze_none.png")

# %%
pictures.keep(evaluation.sheet(everything, ~none.hit & everything.hit, 8), work / "figures" / "gaze_all.png")

# %%
pictures.keep(evaluation.sheet(everything, ~everything.hit, 8), work / "figures" / "gaze_misses.png")

# %%
from repro.gaze.quality import reliability

meaning = {options: one.calibration() for options, one in scores.items()}
pictures.keep(reliability(meaning, f"colour: {clutter.name}"), work / "figures" / "gaze_calibration.png")

# %% [markdown]
# ## What the model will have to reconstruct
# Above: the frame with its gaze region. Below: the crop, which takes the static camera's place on the
# reconstruction target (here stretched to a square; ReconVLA stretches it too).

# %%
from repro.gaze.crops import crop

store = Store(work / "store" / "training")
steps = [store.read(i).columns for i in range(0, len(store), max(1, len(store) // 6))][:6]
shots = [(c["observation.images.static"][len(c["action"]) // 3], c["gaze.box"][len(c["action"]) // 3]) for c in steps]
images = [boxed(image, box) for image, box in shots] + [crop(image, box, size=(100, 100)) for image, box in shots]
pictures.keep(pictures.sheet(images, ["gaze region"] * 6 + ["crop"] * 6, columns=6), work / "figures" / "gaze_crops.png")
