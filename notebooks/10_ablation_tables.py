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
# # 10 · Tables and report
# Everything here is computed from run records; nothing is typed. The paper's numbers come from `papers/reconvla/claims.toml`. Rows of
# the play table stand apart: they are not comparable with the paper's and get no difference.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% [markdown]
# ## The paper's ablation, as printed
# The mean number of tasks in a row is the sum of the five rates. Where the printed average says otherwise, the table says so.

# %% tags=["nbval-check-output"]
from repro import results

paper = results.claims(machine.root() / "papers" / "reconvla" / "claims.toml")
print(results.markdown(*results.paper_table(paper, [], table=2)))

# %% [markdown]
# ## Ours

# %%
records = results.load_all(work / "runs")
benchmarks = sorted({r["benchmark"] for r in records if "1/5" in r["metrics"] or "1/1" in r["metrics"]})
for benchmark in benchmarks:
    print(benchmark, "(not comparable with the paper)\n")
    print(results.markdown(*results.chain_table([r for r in records if r["benchmark"] == benchmark])), "\n")

# %%
from repro import pictures

for i, benchmark in enumerate(benchmarks):
    figure = results.figure([r for r in records if r["benchmark"] == benchmark], benchmark)
    display(pictures.keep(figure, work / "figures" / f"table_{i}.png"))

# %% [markdown]
# ## Where they look

# %%
looked = [r for r in records if r["benchmark"].startswith("attention")]
print(results.markdown(*results.other_table(looked)))

# %% [markdown]
# ## The report

# %%
print("report:", results.report(work).name, "and report.html, in the work folder")
