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
# (rebuild the gaze region). A fourth model is trained *blind*: what it scores can be had without looking. The table's last row, gaze after
# pretraining on other tables, takes two stages: `repro ablation --rows gaze+pretrain` trains both, and notebook 10 shows what it gave.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% [markdown]
# ## What is frozen has learned something first
# The paper freezes a pretrained vision tower and a pretrained VAE. The tiny preset has none, and nothing random is ever frozen: its parts
# are trained here once, on pictures of the training scenes in repainted looks, and measured on looks they never saw. Other presets name
# published weights and train nothing here.

# %%
from repro import experiment_figures, experiments, pictures, results

parts = experiments.parts(settings, work)
print(results.markdown(*experiment_figures.parts_table(parts)) if parts else f"preset {settings.preset}: parts with published weights")

# %% [markdown]
# What the VAE loses, no policy can rebuild: the target below is drawn through it.

# %%
if parts:
    display(pictures.keep(experiment_figures.rebuilt(parts), work / "figures" / "vae.png"))

# %% [markdown]
# ## Four configs that differ in one line

# %%
configs = [experiments.job(settings, work, variant, seed) for variant in experiments.VARIANTS]
experiments.VARIANTS

# %% [markdown]
# ## Train
# Each in a process of its own, one per GPU or two on a CPU. A folder that holds a checkpoint is resumed, bit for bit on a CPU.

# %%
from repro.training import launch

launch.jobs(configs)

# %% [markdown]
# ## Parameters by part
# The denoiser is there in training only; the frozen VAE only where something is rebuilt.

# %% tags=["nbval-check-output"]
models = experiments.load(work, seed)
counts = {(name, part): count for name, part, count in experiments.parameters(models)}
print(f"{'part':14}", *(f"{name:>10}" for name in models))
for part in dict.fromkeys(part for _, part in counts):
    print(f"{part:14}", *(f"{counts.get((name, part), 0):10,}" for name in models))

# %% [markdown]
# ## Loss curves
# Low loss is not success: notebook 09 lets the policies act. First the action tokens' loss on training frames, then on held-out episodes.

# %%
from repro.training.loop import loss_curve

runs = {variant: experiments.folder(work, variant, seed) for variant in models}
pictures.keep(loss_curve(runs, "action"), work / "figures" / "loss_action.png")

# %%
pictures.keep(loss_curve(runs, "held_out", smooth=1), work / "figures" / "loss_held_out.png")

# %%
pictures.keep(loss_curve({name: runs[name] for name in ("whole", "gaze")}, "recon"), work / "figures" / "loss_reconstruction.png")

# %% [markdown]
# ## What the denoiser draws
# Above: the target, the gaze region stretched over the unchanged wrist picture, as the VAE gives it back. Below: a sample from noise, given
# only the language model's states at the image tokens. Under each the error of the gaze region against its own target and, as a floor,
# against the other frames' targets: where the two are alike, the states do not say which region it is.

# %%
drawn = experiment_figures.reconstructions(models["gaze"], work, count=6, seed=seed)
pictures.keep(drawn, work / "figures" / "reconstruction.png")

# %% [markdown]
# The same of the model that rebuilds the whole picture:

# %%
drawn = experiment_figures.reconstructions(models["whole"], work, count=6, seed=seed)
pictures.keep(drawn, work / "figures" / "reconstruction_whole.png")
