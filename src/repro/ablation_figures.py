"""Pictures of the ablation: rows, wrong boxes, the gain by epoch, learning curves. From records alone; told apart without colour.

    figures = everything(ablation_statistics.load("work/cpu/runs/ablation"))        # name -> matplotlib Figure
"""

import numpy as np
from matplotlib.figure import Figure

from repro import ablation_statistics as statistics
from repro import attention
from repro.ablation_statistics import ATTENTION, BASELINE, GAIN, OFFLINE

STYLES = (("0.0", "-", "o"), ("0.5", "--", "s"), ("0.3", ":", "^"), ("0.65", "-.", "D"), ("0.15", (0, (5, 1, 1, 1)), "v"),
          ("0.45", (0, (1, 2)), "P"), ("0.75", "-", "X"), ("0.6", "--", "*"))
MARKS = "ovs^DPX*"  # of seeds
OTHERS = "another episode's box", "the same task's box elsewhere"  # what attention in the gaze box is compared with
SEED = {"color": "0.45", "markersize": 5, "markerfacecolor": "white", "linestyle": "none"}


def _note(records: list[dict], what: str) -> str:
    """What bars are; of one seed they know nothing of other seeds."""
    several = len({r["seed"] for r in records}) > 1
    over = f"seeds and {what}, none where there is one seed" if several else f"{what} (one seed: nothing is said of others)"
    return f"bars: 95 % intervals over {over}; not comparable with the paper"


def everything(records: list[dict]) -> dict[str, Figure]:
    """Every figure there are records for."""
    found = {"rows": rows(records), "wrong_boxes": wrong_boxes(records), "on_the_way": on_the_way(records), "learning": learning(records),
             "attention": looked_at(records)}
    return {name: figure for name, figure in found.items() if figure is not None}


def rows(records: list[dict]) -> Figure | None:
    """Average length of every row: a mark for each seed, the mean with its interval; floors as lines, named on the right-hand axis."""
    benchmarks = statistics.chain_benchmarks(records)
    if not benchmarks:
        return None
    names = [name for name in statistics.variants(records) if not statistics.is_floor(records, name)]
    figure = Figure(figsize=(1.5 + 5 * len(benchmarks), 2.4 + 0.42 * len(names)), layout="constrained", dpi=130)
    seeds = sorted({record["seed"] for record in records})
    for axis, benchmark in zip(figure.subplots(1, len(benchmarks), squeeze=False)[0], benchmarks, strict=True):
        found = statistics.lengths(records, benchmark)
        for i, name in enumerate(names):
            if name not in found:
                continue
            one, several = statistics.mean(found[name], (0, 5)), max(map(len, found.values())) > 1
            bar = [[one["value"] - one["low"]], [one["high"] - one["value"]]] if one["seeds"] > 1 or not several else None
            axis.errorbar(one["value"], i, xerr=bar, fmt="|", color="black", markersize=14, markeredgewidth=2, capsize=4)
            for seed, values in found[name].items():
                axis.plot(values.mean(), i + 0.22, MARKS[seeds.index(seed) % len(MARKS)], **SEED)
        count = next(len(values) for by_seed in found.values() for values in by_seed.values())
        axis.set_xlabel(f"average length (tasks solved in a row, 0 to 5)\n{benchmark}, n = {count} a seed", fontsize=8.5)
        axis.set_ylim(len(names) - 0.4, -0.6)
        _floors(axis, {name: statistics.mean(found[name], (0, 5))["value"] for name in found if statistics.is_floor(records, name)})
        axis.set_yticks(range(len(names)), names if axis is figure.axes[0] else [""] * len(names))
        _plain(axis)
    figure.axes[0].plot([], [], "|", color="black", markersize=10, markeredgewidth=2, label="mean of the seeds")
    for k, seed in enumerate(seeds):
        figure.axes[0].plot([], [], MARKS[k % len(MARKS)], **SEED, label=f"seed {seed}")
    figure.legend(loc="outside lower center", ncols=1 + len(seeds), frameon=False, fontsize=8)
    figure.suptitle(_note(records, "start states"), fontsize=8)
    return figure


def _floors(axis, floors: dict[str, float]) -> None:
    """Dashed lines, named above; those that stand close to one another share a label."""
    groups: list[list[tuple[float, str]]] = []
    for name, value in sorted(floors.items(), key=lambda pair: pair[1]):
        axis.axvline(value, color="0.6", linestyle=(0, (4, 3)), linewidth=1, zorder=0)
        if groups and value - groups[-1][0][0] < 1:
            groups[-1].append((value, name))
        else:
            groups.append([(value, name)])
    top = axis.twiny()
    top.set_xlim(axis.get_xlim())
    text = lambda group: "\n".join(f"{name.replace(' of one demonstration', '')} {value:.2f}" for value, name in group)
    top.set_xticks([np.mean([value for value, _ in group]) for group in groups], [text(group) for group in groups], fontsize=6.5)
    for label, group in zip(top.get_xticklabels(), groups, strict=True):
        label.set_ha("left" if group[0][0] < 2.5 else "right")
    top.tick_params(length=0, pad=1)
    for side in ("right", "top"):
        top.spines[side].set_visible(False)


def wrong_boxes(records: list[dict]) -> Figure | None:
    """Average length and attention gain of "gaze" against the share of wrong boxes it was trained with, the baseline as a band; over the
    seeds that all of these have, each with a mark and a thin line of its own where there are several."""
    benchmarks = statistics.chain_benchmarks(records)
    shares = {r["variant"]: r["config"]["corrupt"] for r in records if r["config"]["row"] == "gaze" and "step" not in r["config"]}
    if len(shares) < 2 or not benchmarks:
        return None
    figure = Figure(figsize=(9.5, 3.9), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2)
    panels = [(left, benchmarks[:2], lambda name: statistics.lengths(records, name), (0, 5)),
              (right, [ATTENTION], lambda name: statistics.frames(records, GAIN), (-1, 1))]
    for axis, names, get, bounds in panels:
        for k, name in enumerate(names):
            found, (shade, dash, mark) = get(name), STYLES[k]
            found = {variant: seeds for variant, seeds in found.items() if variant in shares or variant == BASELINE}
            common = set.intersection(*(set(seeds) for seeds in found.values()))
            if not common:
                continue
            found = {variant: {seed: seeds[seed] for seed in sorted(common)} for variant, seeds in found.items()}
            shared = axis is right
            means = {share: statistics.mean(found[variant], bounds, shared) for variant, share in shares.items() if variant in found}
            mine = sorted(means.items(), key=lambda pair: pair[0])
            label = f"gaze, {name.split('->')[1].split(',')[0]}" if "->" in name else "gaze"
            counted = f"seed {min(common)}, n = {mine[0][1]['n']}" if len(common) == 1 else _n(mine)
            _line(axis, [100 * share + k for share, _ in mine], [metric for _, metric in mine], shade, dash, mark, f"{label} ({counted})")
            for seed in sorted(common) if len(common) > 1 else ():
                at = sorted((100 * share + k + 0.8, found[variant][seed].mean()) for variant, share in shares.items() if variant in found)
                axis.plot(*zip(*at, strict=True), MARKS[seed % len(MARKS)], **{**SEED, "linestyle": dash}, linewidth=0.6,
                          label=f"seed {seed}" if not k else None)
            if BASELINE in found:
                base = statistics.mean(found[BASELINE], bounds, shared)
                axis.axhspan(base["low"], base["high"], color=shade, alpha=0.13, linewidth=0)
                axis.axhline(base["value"], color=shade, linestyle=(0, (1, 1)), linewidth=1,
                             label=label.replace("gaze", "baseline, band: interval"))
        axis.set(xlabel="wrong gaze boxes in training (%)", xticks=[100 * share for share in sorted(shares.values())])
        axis.legend(frameon=False, fontsize=7.5)
        _plain(axis)
    left.set_ylabel("average length (tasks in a row)")
    right.set_ylabel("attention mass in the gaze box\nminus in another episode's box")
    figure.suptitle(_note([r for r in records if r["seed"] in common], "start states, or tasks"), fontsize=8)
    return figure


def looked_at(records: list[dict]) -> Figure | None:
    """Attention in the gaze box minus what two other boxes get, every row that is trained: mean over seeds and tasks with its interval; a
    row of one seed has a mark alone."""
    mine = [r for r in records if r["benchmark"] == ATTENTION]
    names, found = statistics.variants(mine), {}
    for key, (start, _) in attention.quantities().items():
        for box in OTHERS:
            title = f"{start}, gaze box minus {box}"
            rows_ = statistics.frames([r for r in mine if title in r["frames"]], title)  # too few episodes have no other box of their task
            found[key, box] = {name: seeds for name, seeds in rows_.items() if all(map(len, seeds.values()))}
    if not any(found.values()):
        return None
    figure = Figure(figsize=(13, 1.8 + 0.36 * len(names)), layout="constrained", dpi=130)
    axes = figure.subplots(1, len(attention.quantities()), sharey=True)
    for axis, (key, (start, _)) in zip(axes, attention.quantities().items(), strict=True):
        for k, box in enumerate(OTHERS):
            several = max((len(seeds) for seeds in found[key, box].values()), default=0) > 1
            for i, name in enumerate(names):
                if name not in found[key, box]:
                    continue
                one = statistics.mean(found[key, box][name], (-1, 1), True)
                bar = [[one["value"] - one["low"]], [one["high"] - one["value"]]] if one["seeds"] > 1 or not several else None
                axis.errorbar(one["value"], i + 0.3 * k - 0.15, xerr=bar, color="0.1" if k else "0.5", marker="os"[k], capsize=3,
                              markersize=5, markerfacecolor="white" if k else "0.5", linestyle="none",
                              label=f"minus {box} (n = {one['n']} tasks)" if name == next(iter(found[key, box])) else None)
        axis.axvline(0, color="0.6", linewidth=1)
        axis.set_xlabel(start)
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.4, -0.6)
        _plain(axis)
    axes[0].legend(frameon=False, fontsize=7.5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.suptitle(_note(mine, "tasks") + "; right of 0: the model looks at the gaze box more than at the other", fontsize=8)
    return figure


def _n(mine: list) -> str:
    seeds = mine[0][1]["seeds"]
    return f"{seeds} seed{'s' * (seeds > 1)}, n = {mine[0][1]['n']}"


def _line(axis, at, metrics: list[dict], shade, dash, mark, label: str, bars: bool = True) -> None:
    values = np.array([metric["value"] for metric in metrics])
    error = np.abs(np.array([[metric["low"], metric["high"]] for metric in metrics]).T - values)
    axis.errorbar(at, values, yerr=error if bars else None, color=shade, linestyle=dash, marker=mark, capsize=3, linewidth=1.5, label=label)


def on_the_way(records: list[dict]) -> Figure | None:
    """Single-task success and attention gain at 10 ... 100 % of training, and the gain of reconstruction with its interval."""
    marks = statistics.on_the_way(records)
    if not marks:
        return None
    figure = Figure(figsize=(11, 7), layout="constrained", dpi=130)
    at = np.array([mark["epochs"] for mark in marks])
    panels = figure.subplots(2, 2, sharex=True).ravel()
    apart = 0.012 * at[-1]  # the two rows stand beside each other
    for axis, what in zip(panels, ("success", "attention"), strict=False):
        for k, name in enumerate((BASELINE, "gaze")):
            mine = [(x + k * apart, mark[what][name]) for x, mark in zip(at, marks, strict=True) if name in mark[what]]
            if mine:
                _line(axis, [x for x, _ in mine], [m for _, m in mine], *STYLES[k], f"{name} ({_n(mine)})")
    stops = _stops(records, at[-1] / marks[-1]["step"])
    for axis, what in zip(panels[2:], ("success", "attention"), strict=True):
        mine = [(x, mark[f"{what} gain"]) for x, mark in zip(at, marks, strict=True) if mark[f"{what} gain"]]
        if mine:  # a difference of one seed has no interval
            label, bars = f"gaze minus baseline ({_n(mine)})", mine[0][1]["seeds"] > 1
            _line(axis, [x for x, _ in mine], [m for _, m in mine], *STYLES[0], label, bars)
        for stop in sorted(set(stops.values())):
            names = sorted(name for name, at_ in stops.items() if at_ == stop)
            axis.axvline(stop, color="0.5", linestyle="-." if "gaze" in names else ":", linewidth=1.2,
                         label=f"held-out loss least, in hindsight: {', '.join(names)}")
        axis.axhline(0, color="0.7", linewidth=0.8)
        axis.margins(y=0.35)  # room for the legend
        axis.set(xlabel="epochs of training")
    labels = "single tasks solved (share)", "attention mass in the gaze box\nminus in another episode's box"
    for axis, label in zip(panels, (*labels, *(f"difference of {label}" for label in labels)), strict=True):
        axis.set(ylabel=label, xlim=(0, at[-1] * 1.05))
        axis.legend(frameon=False, fontsize=7)
        _plain(axis)
    figure.suptitle(_note(records, "start states, or tasks") + "; marks within each run, whose learning rate ends at 0", fontsize=8)
    return figure


def _stops(records: list[dict], epochs_a_step: float) -> dict[str, float]:
    """{variant: epochs at which the held-out loss was least}, mean over seeds, of those looked at on the way."""
    names = {r["variant"] for r in records if "step" in r["config"]}
    ended = [r for r in records if r["benchmark"] == OFFLINE]
    stops = {name: [statistics.early_stop(r["learning"]) for r in ended if r["variant"] == name] for name in names}
    return {name: epochs_a_step * float(np.mean([stop["step"] for stop in found])) for name, found in stops.items() if found and all(found)}


def learning(records: list[dict]) -> Figure | None:
    """Training and held-out loss of the action tokens of every row without wrong boxes, of one kind of targets (the first row's), mean over
    seeds, with the range of seeds; and the reconstruction's of rows that have one, those with wrong boxes too."""
    mine = [r for r in records if r["benchmark"] == OFFLINE and not r["config"]["corrupt"]]
    if not mine:
        return None
    width = lambda record: record["config"].get("policy", {}).get("model", {}).get("soft_bins", 0.0)
    others = sorted({r["variant"] for r in mine if width(r) != width(mine[0])})
    mine = [r for r in mine if r["variant"] not in others]
    every = [r for r in records if r["benchmark"] == OFFLINE]
    figure = Figure(figsize=(14, 4.2), layout="constrained", dpi=130)
    axes = figure.subplots(1, 3)
    axes[1].sharey(axes[0])
    panels = ("action", "step", "training", mine), ("held_out", "held_out_step", "held-out episodes, 8 batches", mine), (
        "recon", "step", "training, reconstruction of the latents' noise", every)
    for axis, (name, steps, title, drawn) in zip(axes, panels, strict=True):
        for k, variant in enumerate(statistics.variants(drawn)):
            curves = [r["learning"] for r in drawn if r["variant"] == variant and r["learning"].get(name)]
            if not curves:
                continue
            shade, dash, mark = STYLES[k % len(STYLES)]
            values = np.array([curve[name] for curve in curves])
            at = curves[0][steps]
            sparse = (k, 9) if len(at) > 20 else None
            axis.plot(at, values.mean(0), color=shade, linestyle=dash, marker=mark, markevery=sparse, markersize=4, linewidth=1.4,
                      markerfacecolor="white" if k >= len(STYLES) else shade,
                      label=f"{variant} ({len(curves)} seed{'s' * (len(curves) > 1)})")
            axis.fill_between(at, values.min(0), values.max(0), color=shade, alpha=0.1, linewidth=0)
        axis.set(xlabel="optimizer step", title=title)
        axis.title.set_fontsize(9)
        _plain(axis)
    if bins := width(mine[0]):
        for axis in axes[:2]:
            axis.axhline(least_loss(bins), color="0.5", linestyle=(0, (4, 3)), linewidth=1,
                         label=f"least possible with targets over {bins:g} bins")
    early = lambda name: [value for r in every for at, value in zip(r["learning"]["step"], r["learning"].get(name, []), strict=False)
                          if at >= 0.05 * r["learning"]["step"][-1]]
    for axis, name in ((axes[0], "action"), (axes[2], "recon")):
        if found := early(name):
            axis.set_ylim(top=max(found) * 1.02)  # the first steps, which are much higher, would flatten all that follows
    axes[0].set_ylabel("cross-entropy of the action tokens (nats)")
    axes[2].set_ylabel("mean squared error of the noise (variance 1)")
    for axis in axes[1:]:
        if axis.lines:
            axis.legend(framealpha=1, edgecolor="white", fontsize=7, handlelength=4, ncols=1 + (len(axis.lines) > len(STYLES) + 2))
    apart = f"; {', '.join(others)}: other targets, so that their loss of action tokens is another measure, not drawn" if others else ""
    figure.suptitle(f"lines: mean over seeds; bands: range of seeds; the first steps lie above the axes{apart}", fontsize=8)
    return figure


def least_loss(width: float) -> float:
    """Entropy (nats) of a Gaussian over bins, `width` bins wide: cross-entropy against such a target cannot be lower."""
    weight = np.exp(-0.5 * (np.arange(-50, 51) / width) ** 2)
    weight /= weight.sum()
    return float(-(weight * np.log(weight)).sum())


def _plain(axis) -> None:
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
