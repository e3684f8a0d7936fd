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
# # 09 · Evaluate
# Closed loop under CALVIN's rules: chains of five tasks, 360 steps a task, success checked at every step, stop at the first failure,
# no robot reset between tasks. Also single tasks. Floors stand beside every score: blind, shuffled instruction, blanked images, replay
# of one demonstration, random, constant; the scripted expert is the ceiling. `simulator` switches to CALVIN's own (the first official
# sequences and sentences) or LIBERO's. On recorded data without a simulator only the offline action error can be had; the table says so.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
simulator = "tabletop"  # tabletop | calvin | libero: the embedded play table, or a real one (repro sims setup calvin | libero)
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% tags=["reconvla"]
from repro import experiments, scoring

models = experiments.load(work, seed)
closed_loop = scoring.can_roll_out(work, simulator)
print(f"{simulator}: rollouts and offline error" if closed_loop else "recorded data: NO simulator of it chosen, offline action error only")

# %% [markdown] tags=["reconvla"]
# ## Offline: how far from the recorded actions?
# A low error is not success; a blind policy with a lower one can act worse.

# %% tags=["reconvla"]
from repro import results

offline = scoring.score_offline(settings, work, models, seed)
print(results.markdown(*results.other_table(offline)))

# %% [markdown] tags=["reconvla"]
# ## Closed loop

# %% tags=["reconvla"]
rolled_out = scoring.roll_out(settings, work, models, seed, simulator) if closed_loop else []

# %% tags=["reconvla"]
for benchmark in sorted({record["benchmark"] for record in rolled_out}):
    print(benchmark, "(not comparable with the paper)")
    group = [record for record in rolled_out if record["benchmark"] == benchmark]
    print(results.markdown(*results.chain_table(group)), "\n")
    print(results.markdown(*results.task_table(group)), "\n")

# %% [markdown] tags=["reconvla"]
# Floors that do not depend on any weights are compared when this notebook is validated.

# %% tags=["reconvla", "nbval-check-output"]
for record in rolled_out:
    name, (first, metric) = record["variant"], next(iter(record["metrics"].items()))
    if name in ("constant action", "scripted expert (ceiling)"):
        print(f"{record['benchmark']:46} {name:26} {first} {metric['value']:.3f} n = {metric['n']}")

# %% [markdown] tags=["reconvla"]
# ## One rollout, as it was

# %% tags=["reconvla"]
from repro import pictures

if closed_loop:
    figure = scoring.film(models["gaze"], settings, work, seed, simulator)
    display(pictures.keep(figure, work / "figures" / "rollout.png"))

# %% [markdown] tags=["vggt-vla"]
# ## VGGT-VLA on LIBERO's rules
# Notebook 06's rows on the suite of their data (the grocery table, or LIBERO's own), single tasks, at most 280 steps, layout *wide*: target
# and basket are moved, from starts that no demonstration had. Official init states hardly differ: a replay of one demonstration that began
# from such a one solves most, so a score there proves little. `repro evaluate --model RUN --store STORE` gives other suites and films.

# %% tags=["vggt-vla"]
from repro import results, vla_experiments
from repro.evaluation import suites

rows = vla_experiments.there(work, list(vla_experiments.ROWS), seed, settings.vla_preset)
policies = vla_experiments.load(work, rows, seed, settings.vla_preset)
acted = vla_experiments.roll_out(settings, work, policies, seed) if rows else []
for benchmark in dict.fromkeys(record["benchmark"] for record in acted):
    print(results.markdown(*suites.table([record for record in acted if record["benchmark"] == benchmark])), "\n")
if not rows:
    print("no VGGT-VLA is trained here yet: run notebook 06 first")
