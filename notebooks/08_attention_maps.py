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
# # 08 · Attention maps
# Where do the positions that predict actions look? Last layer, mean over heads and over the 35 action tokens, renormalised over the image
# tokens, on held-out frames. The paper shows pictures only; here the maps are measured, beside what uniform attention, another episode's
# box and the same task's box elsewhere would score. Attention is no proof of use: what reaches an action through the instruction,
# the proprioception or earlier actions is not in the map.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% tags=["reconvla"]
from repro import experiments, looking
from repro.data.episodes import Store

models = {name: model for name, model in experiments.load(work, seed).items() if name != "blind"}
validation = Store(work / "store" / "validation")
frames = looking.attention_frames(validation, settings.attention_frames)
strips = looking.attention_strips(validation)
print(f"{len(frames)} frames of {len({f['episode'] for f in frames})} held-out episodes; every 5th frame of "
      f"{len({f['episode'] for f in strips})} whole ones, {len(strips)} frames")

# %% tags=["reconvla"]
maps = {name: looking.attention_of(model, frames) for name, model in models.items()}
strip_maps = {name: looking.attention_of(model, strips) for name, model in models.items()}
records = looking.record_attention(settings, work, models, maps, frames, seed, (strip_maps, strips))

# %% [markdown] tags=["reconvla"]
# ## The same frames, three models
# Light is little, dark is much, 1 is what uniform attention gives each token; one scale for all panels. Below the columns: all frames.

# %% tags=["reconvla"]
from repro import attention, attention_figures, pictures

picks = [len(frames) * i // 3 for i in range(3)]
rows = [(frames[i]["task"], frames[i]["observation.images.static"], {name: maps[name][i] for name in maps}, frames[i]["gaze.box"])
        for i in picks]
numbers = {record["variant"]: record["metrics"] for record in records if record["variant"] in maps}
note = f"{attention.caption()} {looking.CAUTION}"
pictures.keep(attention_figures.compare(rows, note, numbers), work / "figures" / "attention.png")

# %% [markdown] tags=["reconvla"]
# ## Measured
# *Mass*: share of the static camera's attention in the box. *Pointing game*: is the maximum in the box, or within 5 px of 200? *Equal-area
# IoU*: overlap of the box with as many of the brightest pixels. *Entropy*: 1 where attention is uniform. *Jump rate*: how often the maximum
# moves by more than a fifth of the picture from one query to the next, beside the same frames in random order and the box itself. A box
# is often smaller than a token: "the box itself on this grid" is the best a map of this grid can do.

# %% tags=["reconvla"]
pictures.keep(attention_figures.dots(numbers), work / "figures" / "attention_numbers.png")

# %% tags=["reconvla"]
from repro import results

print(results.markdown(*results.other_table([record for record in records if record["variant"] in maps])))

# %% [markdown] tags=["reconvla"]
# ## Differences, paired
# The same frames, model minus baseline, then the mean over episodes. An interval that holds 0 shows no effect of the reconstruction.

# %% tags=["reconvla"]
print(results.markdown(*results.other_table([record for record in records if record["variant"] not in maps])))

# %% [markdown] tags=["reconvla"]
# ## One episode
# Every fifth frame, as often as the policy is asked: evenly spaced, so that nothing is chosen by how it looks.

# %% tags=["reconvla"]
at = [i for i, frame in enumerate(strips) if frame["episode"] == strips[0]["episode"]]
shots, boxes, steps = ([strips[i][key] for i in at] for key in ("observation.images.static", "gaze.box", "step"))
title = f"gaze: {strips[at[0]]['task']}"
figure = attention_figures.gallery(shots, strip_maps["gaze"][at], boxes, steps, title, every=max(1, len(at) // 8), columns=4)
pictures.keep(figure, work / "figures" / "attention_episode.png")

# %% tags=["reconvla"]
series = {name: found[at] for name, found in strip_maps.items()}
pictures.keep(attention_figures.curve(series, boxes, steps, strips[at[0]]["task"], note), work / "figures" / "attention_curve.png")

# %% [markdown] tags=["reconvla"]
# The floors do not depend on any weights: what uniform attention scores follows from boxes and grid. Compared when validated.

# %% tags=["reconvla", "nbval-check-output"]
for name, floor in records[0]["metrics"].items():
    if ", uniform" in name or name.startswith("jump rate of the gaze box"):
        print(f"{name}: {floor['value']:.4f}, n = {floor['n']} episodes")

# %% [markdown] tags=["vggt-vla"]
# ## VGGT-VLA
# The same numbers for notebook 06's rows that see: where do the action queries look, on held-out episodes of the grocery table? They read
# features *after* the backbone, where a patch's feature also holds what it took from others: read the map with that in mind.

# %% tags=["vggt-vla"]
from repro import pictures, vla_ablation, vla_experiments

rows = vla_experiments.there(work, ["none", "graph", "vggt"], seed, settings.vla_preset)
if rows:
    policies = vla_experiments.load(work, rows, seed, settings.vla_preset)
    figure = vla_experiments.attention_figure(policies, vla_experiments.data(work), settings.attention_frames, vla_ablation.REDUCED)
    display(pictures.keep(figure, work / "figures" / "vla_attention.png"))
else:
    print("no VGGT-VLA is trained here yet: run notebook 06 first")

# %% [markdown] tags=["vggt-vla"]
# And the instruction's words, where they read patches: in the backbone's global, or the graph's, attention.

# %% tags=["vggt-vla"]
if mixing := {row: policies[row] for row in rows if row != "none"}:
    note, store = vla_ablation.REDUCED.replace(*vla_ablation.SAID.values()), vla_experiments.data(work)
    figure = vla_experiments.attention_figure(mixing, store, settings.attention_frames, note, source="words")
    display(pictures.keep(figure, work / "figures" / "vla_attention_words.png"))
