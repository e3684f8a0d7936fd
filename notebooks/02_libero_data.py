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
# # 02 · LIBERO data
# LIBERO's demonstrations come as original HDF5, as OpenVLA's regenerated HDF5 and as LeRobot folders; all become one store. By default the
# embedded grocery table writes the HDF5 first; set `libero_root` to your own download instead (a suite's folder, or a LeRobot folder).

# %% tags=["parameters"]
profile = "smoke"  # smoke | cpu | t4 | paper
libero_root = ""  # a folder of <task>_demo.hdf5 files, or a LeRobot data set; empty: the embedded grocery table
task_names = ""  # tasks or sentences, comma-separated; empty: all
drop_noops = False  # leave out rows that do nothing, by OpenVLA's rule
seed = 0

# %%
from repro import machine, profiles

settings = profiles.get(profile)
work = machine.work(profile)
print(f"{settings.grocery_per_task} demonstrations of each grocery task, layout wide")

# %% [markdown]
# ## Raw files
# A scripted expert plays in the layout of LIBERO's own files: pictures upside down, the observation *after* its action, gripper +1 closes.
# Scripted, not human; the grocery table is kinematic and not comparable with LIBERO. The layout of a file is read off its content.

# %%
from repro.data import libero, libero_hdf5, libero_sources

root = libero_root or libero_hdf5.ensure_grocery(work / "libero", settings, seed)
for source in libero_sources.sources_of(root):
    print(source.describe())

# %% [markdown]
# ## Into the store
# Upright with true left and right, the observation before its action, gripper +1 opens, metres and radians per unit as they were.

# %%
names = [name.strip() for name in task_names.split(",") if name.strip()]
store = libero.ensure_store(root, work / "store" / "libero", task_names=names, drop_noops=drop_noops, log=print)

# %% tags=["nbval-check-output"]
print(f"{len(store)} episodes, {store.frames} frames, {len({e.task for e in store.episodes})} tasks; {store.meta['orientation']}")
for sentence in sorted({e.task for e in store.episodes}):
    print(f"  {sentence}")

# %% [markdown]
# ## Which way do pictures lie?
# Three conventions are in use, and a wrong one trains without an error. The content tells: where the hand moves to its +y, pixels move
# to the right (`right`, above 0), and where it rises they move up (`up`); `open`: the gripper's command and the fingers agree.

# %%
from repro import pictures

episode = store.read(len(store) // 2)
upright = episode.columns["observation.images.static"][len(episode.columns["action"]) // 2]
views = {"the store: upright": upright, "HDF5: upside down": upright[::-1], "LeRobot, RLDS: turned, so mirrored": upright[:, ::-1]}
pictures.keep(pictures.sheet(list(views.values()), list(views), 3, "The same moment"), work / "figures" / "libero_orientation.png")

# %%
for name, told in list(store.meta["evidence"].items())[:6]:
    print(f"{name[:48]:48}", ", ".join(f"{key} {value:+.2f}" for key, value in sorted(told.items())))

# %% [markdown]
# ## Look at the episodes

# %%
picks = [store.read(i) for i in range(0, len(store), max(1, len(store) // 4))][:4]
frames = [(e, int(share * (len(e.columns["action"]) - 1))) for e in picks for share in (0, 0.33, 0.66, 1)]
images = [e.columns["observation.images.static"][t] for e, t in frames]
pictures.keep(pictures.sheet(images, [f"{e.task}\nframe {t}" for e, t in frames]), work / "figures" / "libero_episodes.png")

# %%
images = [e.columns["observation.images.wrist"][t] for e, t in frames]
pictures.keep(pictures.sheet(images, [f"wrist, frame {t}" for _, t in frames]), work / "figures" / "libero_wrist.png")

# %% [markdown]
# ## Actions and states
# Actions are relative, in [-1, 1]: 0.05 m and 0.5 rad (axis-angle) per unit at 20 Hz; gripper -1 close, +1 open.

# %%
figure = pictures.histograms(store.column("action"), ["x", "y", "z", "turn x", "turn y", "turn z", "gripper"], "action unit")
pictures.keep(figure, work / "figures" / "libero_actions.png")

# %% [markdown]
# The state is position (m), axis-angle (rad), two finger joints (m). LeRobot's sets name it x, y, z, rx, ry, rz, rw, gripper: wrong names.

# %% tags=["nbval-check-output"]
for name, names in (("action", ["x", "y", "z", "turn x", "turn y", "turn z", "gripper"]), ("observation.state", store.meta["state_names"])):
    for i, column in enumerate(names):
        print(f"{name:18} {column:14} mean {store.stats[name]['mean'][i]:+.2f}  std {store.stats[name]['std'][i]:.2f}")
