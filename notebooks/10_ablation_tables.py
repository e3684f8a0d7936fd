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
# the play table stand apart, never in one table with the paper's: they are not comparable, and no difference is taken.

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
settings

# %% [markdown] tags=["reconvla"]
# ## The paper's ablation, as printed
# The mean number of tasks in a row is the sum of the five rates. Where the printed average says otherwise, the table says so.

# %% tags=["reconvla", "nbval-check-output"]
from repro import results

paper = results.claims(machine.root() / "papers" / "reconvla" / "claims.toml")
print(results.markdown(*results.paper_table(paper, [], table=2)))

# %% [markdown]
# ## Ours, one seed
# The rows that the notebooks before trained and let act, with floors and ceiling.

# %%
from repro import results, run_records

records = run_records.load_all(work / "runs")
benchmarks = sorted({r["benchmark"] for r in records if "1/5" in r["metrics"] or "1/1" in r["metrics"]})
for benchmark in benchmarks:
    print(benchmark, "(not comparable with the paper)\n")
    print(results.markdown(*results.chain_table([r for r in records if r["benchmark"] == benchmark])), "\n")

# %%
from repro import pictures

for i, benchmark in enumerate(benchmarks):
    figure = results.figure([r for r in records if r["benchmark"] == benchmark], benchmark)
    display(pictures.keep(figure, work / "figures" / f"table_{i}.png"))

# %% [markdown] tags=["reconvla"]
# ## Ours, over seeds
# The whole ablation: each row of Table 2 and the rows around it, trained with several seeds and evaluated from the same start states, so
# that differences to the baseline are paired. It takes longer than a notebook should; this shows what is done of it here, or, where nothing
# is, what is committed of profile `cpu`.

# %% tags=["reconvla"]
from repro import ablation_figures, ablation_statistics, ablation_tables

found, own = ablation_tables.write(work, log=lambda line: None), True
if not found:
    print(f"No record is here yet; they are made, a part at a time, by: repro ablation --profile {profile}\n")
    found, own = ablation_statistics.load(machine.root() / "results" / "cpu" / "runs" / "ablation"), False
    print(f"Committed beside the library, of profile cpu: {len(found) or 'none'}\n")
print(ablation_tables.markdown(found) if found else "")

# %% tags=["reconvla"]
for name, figure in ablation_figures.everything(found).items():
    display(pictures.keep(figure, work / "figures" / f"ablation_{name}.png" if own else None))

# %% [markdown] tags=["vggt-vla"]
# ## What VGGT-VLA's sources state
# Two guides and the report of a failure: no success that a run could be compared with.

# %% tags=["vggt-vla", "nbval-check-output"]
from repro import results

sources = results.claims(machine.root() / "papers" / "vggt_vla" / "claims.toml")
print(results.markdown(*results.claims_table(sources)))

# %% [markdown] tags=["vggt-vla"]
# ## VGGT-VLA over seeds
# No backbone, graph, VGGT's blocks, and a blind policy, on the grocery table; what is done of `repro ablation --system vggt_vla`.

# %% tags=["vggt-vla"]
from repro import vla_ablation

found = vla_ablation.write(work, log=lambda line: None)
print(vla_ablation.markdown(found) if found else f"No records yet: repro ablation --system vggt_vla --profile {profile}")

# %% tags=["vggt-vla"]
if found:
    display(pictures.keep(vla_ablation.figure(found), work / "figures" / "vla_ablation.png"))

# %% [markdown]
# ## Where they look

# %%
for benchmark in sorted({r["benchmark"] for r in records if r["benchmark"].startswith("attention")}):
    print(benchmark, "\n")
    print(results.markdown(*results.other_table([r for r in records if r["benchmark"] == benchmark])), "\n")

# %% [markdown]
# ## The report

# %%
print("report:", results.report(work).name, "and report.html, in the work folder")
