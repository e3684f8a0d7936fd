"""The change agent's tables, from its records (repro.change_experiments): where rows point, what the gate says by state, what they write.

    print(results.markdown(*change_tables.localisation_table(records)))

Every cell is a value with its 95 % interval, as the record has it. Floors and the ceiling stand in the same tables.
"""

from pathlib import Path

from repro import results
from repro.evaluation import captions, localisation

STATES = ("unchanged", "localisable", "not localisable")
NO_ANSWER = "no such answer"  # the gate has two: a change that has no box is told as any other, and a square is drawn for it


def cell(metric: dict | None, percent: bool) -> str:
    """Value and interval of a metric, in percent or as it is; "-" for none."""
    if metric is None:
        return "-"
    value, low, high = (metric[key] * (100 if percent else 1) for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]" if percent else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def localisation_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) from records: rows and modes, then floors and ceiling; n of the pairs with a box; rates in percent."""
    columns = {"mean IoU of the square": False, localisation.GATED: False, "IoU minus differencing's": False, "hit rate at IoU 0.25": True,
               "hit rate at IoU 0.5": True, "pointing in the box": True, "centre error (picture widths)": False,
               "scale error (picture widths)": False, "F1 of 3x3 cells": False, "gate accuracy": True}  # fmt: skip
    rows = [[r["variant"], str(r["seed"]), str(r["metrics"]["mean IoU of the square"]["n"]),
             *(cell(r["metrics"].get(name), percent) for name, percent in columns.items())]
            for r in records if "mean IoU of the square" in r["metrics"]]  # fmt: skip
    return ["", "seed", "n", *(name + (" %" if percent else "") for name, percent in columns.items())], rows


def says_change(metrics: dict[str, dict], state: str) -> dict | None:
    """Metric: how often the gate says that something changed, of the pairs of one state; None where there are none, or no gate."""
    if f"says change, {state}" in metrics:  # a control: nothing is right
        return metrics[f"says change, {state}"]
    right = metrics.get(f"gate accuracy, {state}")
    if right is None or state != "unchanged":
        return right
    return {**right, "value": 1 - right["value"], "low": 1 - right["high"], "high": 1 - right["low"]}


def state_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): for each row with a gate, in each mode and control, and each state what the gate says, and how sure it is.

    Right is "change" of both changed states. Of the third, changed without a box, nothing says whether the square that is drawn then is
    right; the agent cannot say "changed, but I cannot point at it".
    """
    rows = []
    for r in records:
        m, (row, _, mode) = r["metrics"], r["variant"].partition(", caption ")
        for state, said in ((state, said) for state in STATES if (said := says_change(m, state))):
            square = cell(m.get("mean IoU of the square"), False) if state == "localisable" else "nothing to point at"
            rows.append([row, mode or "-", str(r["seed"]), state, str(said["n"]), cell(said, True), NO_ANSWER,
                         cell(m.get(f"gate probability, {state}"), False), square])  # fmt: skip
    return ["row", "caption", "seed", "state", "n", 'says "change" %', 'says "changed, no box"', "mean probability of a change",
            "mean IoU of the square"], rows


def component_table(shown: dict[str, dict[str, dict]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) from {row: metrics}: IoU and pointing by how many parts a pair's mask has; groups without a pair are left out."""
    groups = [g for g in localisation.COMPONENTS if any(f"mean IoU of the square, {g}" in metrics for metrics in shown.values())]
    n = {g: next(m[name]["n"] for m in shown.values() if (name := f"mean IoU of the square, {g}") in m) for g in groups}
    rows = [[name, *(cell(metrics.get(f"{what}, {group}"), percent) for group in groups
                     for what, percent in (("mean IoU of the square", False), ("pointing in the box", True)))]
            for name, metrics in shown.items() if any(f"mean IoU of the square, {group}" in metrics for group in groups)]
    return ["row", *(f"{group} (n = {n[group]}): {what}" for group in groups for what in ("mean IoU", "pointing in the box %"))], rows


def caption_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): overall, then change only; x 100, as published; METEOR and S*m only where Java is."""
    rows = []
    for group in ("overall", "change only"):
        for r in (r for r in records if f"BLEU-4, {group}" in r["metrics"]):
            found = [r["metrics"].get(f"{name}, {group}") for name in captions.METRICS]
            lacks = r["config"].get("meteor") == "no java"  # where it was scored, not where it is printed
            shown = [cell(metric, True) if metric else "n/a (no java)" if name in ("METEOR", "S*m") and lacks else "n/a"
                     for name, metric in zip(captions.METRICS, found, strict=True)]
            rows.append([r["variant"], group, str(r["metrics"][f"BLEU-4, {group}"]["n"]), *shown,
                         cell(r["metrics"].get("flag accuracy"), True)])
    return ["", "pairs", "n", *captions.METRICS, "flag accuracy %"], rows


def published(path: Path) -> tuple[list[str], list[list[str]]]:
    """(header, rows): what others print for LEVIR-CC's test split (papers/change_agent/claims.toml): a table of its own."""
    found = results.claims(path)["caption"]
    keys = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr-D", "S*m")
    return ["system", *keys, "source"], [[row["label"], *(row.get(key, "-") for key in keys), row["source"]] for row in found]
