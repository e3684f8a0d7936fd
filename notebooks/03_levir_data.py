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
# # 03 · LEVIR-CC data
# Two dates of one place, five sentences on what has changed, and, from LEVIR-MCI's masks, where. By default a program draws the pairs, in
# LEVIR-MCI's own layout; set `levir_root` to your download instead: its zip, a folder, an Arrow folder, or pictures with annotations.json.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
levir_root = ""  # LEVIR-CC, LEVIR-MCI, Arrow or plain folders, or a zip; empty: aerial scenes drawn here
difference = False  # without masks: guess boxes by differencing, flagged and never scored
seed = 0

# %%
from repro import machine, pictures, profiles

settings = profiles.get(profile)
work = machine.work(profile)
print("pairs that are drawn where there is no download: {} train, {} val, {} test".format(*settings.aerial_pairs))

# %% [markdown]
# ## What is there
# The layout is found by content, and what was found is shown. LEVIR-CC has captions and no boxes; LEVIR-MCI adds masks of roads and
# buildings. Whether a pair has changed is read off LEVIR-CC's five fixed sentences and compared with `changeflag`.

# %% tags=["nbval-check-output"]
from repro.data import levir, levir_boxes, levir_figures
from repro.sims import aerial

root = levir_root or aerial.ensure(work / "aerial", *settings.aerial_pairs, seed, settings.workers)
layout = levir.find(root, work / "levir")  # a zip is unpacked there
print(layout.describe())

# %% [markdown]
# ## Into the store
# A pair that cannot be used (no partner, other sizes, torn, a mask of other values, captions that disagree) is left out and named; more
# than 1 % of them stops the run. A store of a split that this data lacks is of another data set, and is removed.

# %%
stores = levir.ensure_stores(layout, work / "store", difference, log=print)

# %% [markdown]
# ## Three states
# A changed pair may have nothing in its mask (a lake, felled trees): it is *changed, no box*, takes part in captions and in the question
# whether anything has changed, and never in localisation. No box is invented for it, nor for a pair without change.

# %% tags=["nbval-check-output"]
text, table = levir.state_table(stores)
print(text)

# %% [markdown]
# ## Look at the pairs

# %%
pairs = stores.get("train") or next(iter(stores.values()))
states = pairs.column("state")
of_state = lambda state, n: [i for i, found in enumerate(states) if found == state][:n]
picks = of_state("localisable", 6) + of_state("unchanged", 4) + of_state("not localisable", 2)
sheet = levir_figures.contact_sheet([pairs[i] for i in picks], title=f"{layout.root.name}: {len(pairs)} pairs of one split")
pictures.keep(sheet, work / "figures" / "levir_pairs.png")

# %% [markdown]
# ## Boxes, and what three numbers keep of them
# 8-connected parts of the mask, of at least 16 pixels: `main` is the box of the largest, `union` is around all. The head predicts
# [cx, cy, scale], a square: the aspect is lost, and the intersection over union with the box it came from is the ceiling.

# %%
import numpy as np

marked = of_state("localisable", len(pairs))
several = sorted(marked, key=lambda i: -pairs.column("components")[i])[:4]
none = f"{layout.root.name} has no pair with a box here: LEVIR-CC has captions alone, LEVIR-MCI has its pairs with masks"
sheet = lambda: levir_figures.contact_sheet([pairs[i] for i in several], square=True, title="The pairs with most parts")
pictures.keep(sheet(), work / "figures" / "levir_boxes.png") if several else print(none)

# %% tags=["nbval-check-output"]
for name in ("box_main", "box_union") if marked else ():
    boxes = pairs.column(name)[marked]
    kept, scale = levir_boxes.ceiling(boxes).mean(), levir_boxes.encode(boxes)[:, 2]
    print(f"{name:10} n {len(boxes):5}   ceiling: mean IoU {kept:.2f}   scale: median {np.median(scale):.2f}, most {scale.max():.2f}")
if not marked:
    print(none)

# %% [markdown]
# ## What differencing finds
# Histograms matched, |difference|, Otsu, the largest part: season, light, fields and cars differ too. Only a guess to fall back on. Where
# there are masks it is measured against their boxes; where there are none its guesses can only be looked at.

# %% tags=["nbval-check-output"]
masked = [some for some in (stores.get("val"), pairs) if some and "mask" in some.column("box_source")]
if masked:
    found = levir_boxes.agreement(masked[0])
    print(f"n {found['n']}   mean IoU with the box from the mask {found['iou']:.2f} [{found['low']:.2f}, {found['high']:.2f}]")
    shares = f"IoU of at least 0.25: {found['hit25']:.2f}, of at least 0.5: {found['hit50']:.2f}"
    print(f"{shares}; centre inside the box: {found['pointing']:.2f}")
else:
    print("no box from a mask to compare with")

# %%
unsure = [] if masked else of_state("not localisable", 6)
sheet = lambda: levir_figures.guess_sheet([pairs[i] for i in unsure], title="Guessed by differencing")
pictures.keep(sheet(), work / "figures" / "levir_guesses.png") if unsure else print("no guesses are shown: there are better boxes")

# %% [markdown]
# ## Boxes move with the pixels
# One of eight positions, then a window of at least three quarters of each side, for both dates alike. Training does this where the tower
# sees pictures in each step (`augment` of the agent's config, on in preset `t4`); a caption that names a place is flipped, words and all.

# %%
sheet = lambda: levir_figures.augmented_sheet(pairs[marked[0]], range(6))
pictures.keep(sheet(), work / "figures" / "levir_augment.png") if marked else print(none)

# %% [markdown]
# ## A data set of your own
# One file with one function that yields `levir.pair(name, split, before, after, captions, mask or box)`; the rest of the kit takes the
# store it is written to. Here: pairs from two folders of pictures, with boxes from a table.

# %%
def field_survey():
    for i in (several or picks)[:3]:  # instead: cv2.imread of your files, your sentences, your boxes as shares of the sides
        before, after = (found[0] for found in pairs.pictures([i]))
        box = pairs.column("box_main")[i] if i in marked else None
        yield levir.pair(f"field_{i}", "train", before, after, ["a barn is built on the field"], box=box)


own = levir.write_store(field_survey(), work / "store" / "own_pairs", {"source": "an example"}, replace=True)
box = own[0].box_main
print(len(own), "pairs;", own[0].state, own[0].box_source, "no box" if box is None else [round(float(side), 2) for side in box])
