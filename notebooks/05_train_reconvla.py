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
# # 05 · Train ReconVLA
# The ablation of the paper's Table 2, without pretraining: *baseline* (actions only), *whole* (also rebuild the whole image), *gaze*
# (rebuild the gaze region). A fourth model is trained *blind*: what it scores can be had without looking.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% [markdown]
# ## Four configs that differ in one line

# %%
from repro import experiments

configs = [experiments.job(settings, work, variant, seed) for variant in experiments.VARIANTS]
experiments.VARIANTS

# %% [markdown]
# ## Train
# Each in a process of its own, one per GPU or two on a CPU. A folder that holds a checkpoint is resumed, bit for bit on a CPU.

# %%
from repro.training import launch

launch.jobs(configs)

# %% tags=["nbval-check-output"]
models = experiments.load(work)
for variant, part, count in experiments.parameters(models):
    print(f"{variant:9} {part:13} {count:8,} parameters")

# %% [markdown]
# ## Loss curves
# Low loss is not success: notebook 09 lets the policies act.

# %%
from repro import pictures
from repro.training.loop import loss_curve

runs = {variant: work / "train" / variant for variant in models}
pictures.keep(loss_curve(runs, "action"), work / "figures" / "loss_action.png")

# %%
pictures.keep(loss_curve({name: runs[name] for name in ("whole", "gaze")}, "recon"), work / "figures" / "loss_reconstruction.png")

# %% [markdown]
# ## What the denoiser draws
# The target (gaze crop above the wrist camera) and a sample from noise, given only the language model's states at the image tokens.

# %%
pictures.keep(experiments.reconstructions(models["gaze"], work, count=6, seed=seed), work / "figures" / "reconstruction.png")
