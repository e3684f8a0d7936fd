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
# Where do the positions that predict actions look? Last layer, mean over heads and action tokens, on held-out frames. The paper shows
# pictures only; here the attention inside the gaze box is measured, beside uniform attention and another episode's box.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %%
from repro import experiments
from repro.data.episodes import Store

models = experiments.load(work)
frames = experiments.attention_frames(Store(work / "store" / "validation"), settings.attention_frames)
print(f"{len(frames)} frames of {len({f['episode'] for f in frames})} held-out episodes")

# %% [markdown]
# ## The same frames, three models

# %%
from repro import attention, pictures

maps = {name: experiments.attention_of(models[name], frames) for name in ("baseline", "whole", "gaze")}
picks = range(0, len(frames), max(1, len(frames) // 3))[:3]
shown = lambda i: {name: found[i] for name, found in maps.items()}
rows = [(frames[i]["task"], frames[i]["observation.images.static"], shown(i), frames[i]["gaze.box"]) for i in picks]
pictures.keep(attention.compare(rows), work / "figures" / "attention.png")

# %% [markdown]
# ## Measured
# Attention mass inside the gaze box and IoU of the hottest tenth of the image with it; intervals by bootstrap over episodes.

# %%
records = experiments.record_attention(settings, work, models, maps, frames, seed)

# %%
from repro import results

print(results.markdown(*results.other_table(records)))

# %% [markdown]
# The floor does not depend on any weights: what uniform attention puts into the box is the box' area. Compared when validated.

# %% tags=["nbval-check-output"]
floor = records[0]["metrics"]["attention mass, uniform (box area)"]
print(f"uniform attention: {floor['value']:.4f}, n = {floor['n']} episodes")
