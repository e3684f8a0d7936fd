"""Records of gaze boxes as tables: options, detectors, items; the report, and README's block of them.

    markdown(*options_table(records, "cluttered scenes"))
"""

from pathlib import Path

from repro import results, run_records
from repro.gaze.options import ALL, NONE, SINGLE, WITHOUT

OPTIONS = (NONE, *SINGLE, *WITHOUT, ALL)  # that a measurement compares
# The guide's own claims for GroundingDINO on CALVIN (papers/reconvla/notes.md); it states neither n nor rules.
GUIDE = {"simple": 0.92, "complex": 0.67}


def options_table(records: list[dict], name: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a choice of options on the set called `name`: simple and complex scenes, the gain over "none" on the same
    frames and, for all but one, what that one adds to the others."""
    mine = [r for r in records if r["data"] == name]
    parts = [p for p in ("simple", "complex") if any(p in r["metrics"] for r in mine)]
    count = {p: next(r["metrics"][p] for r in mine if p in r["metrics"]) for p in parts}
    header = ["options", *(f"{p} % (n = {count[p]['n']} frames, {count[p]['groups']} scenes)" for p in parts)]
    header += [*(f"{p}: minus none" for p in parts), *(f"{p}: all minus this" for p in parts)]
    rows = []
    for r in mine:
        gains = [_percent(r["metrics"].get(f"{p}, {what}"), "+") for what in ("minus none", "all minus this") for p in parts]
        rows.append([_left_out(r["config"]["options"]), *(_percent(r["metrics"].get(p)) for p in parts), *gains])
    return header, rows


def _left_out(label: str) -> str:
    """ "tiles + nms + ..." of four options, as what is left out."""
    missing = [options.label for options in SINGLE if options.label not in label.split(" + ")]
    return f"all but {missing[0]}" if len(missing) == 1 else label


def detectors_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a set and detector with all options and with none, under the guide's numbers; GroundingDINO says
    "not run" until it was."""
    header = ["detector", "options", "set", "simple % [95 %]", "complex % [95 %]", "precision %", "false alarms on hidden things",
              "centre error, px", "jumps %", "calibration error"]  # fmt: skip
    rows = [["GroundingDINO, the guide's claim (**not comparable**: its frames, rules and n are not stated)", "-", "CALVIN",
             f"{100 * GUIDE['simple']:.0f}", f"{100 * GUIDE['complex']:.0f}", *["-"] * 5]]  # fmt: skip
    for r in (r for r in records if r["config"]["options"] in ("none", "all")):
        m = r["metrics"]
        number = lambda key, scale, form, m=m: format(scale * m[key]["value"], form) if key in m else "-"
        alarms = f"{m['false alarms']['value'] * m['false alarms']['n']:.0f} of {m['false alarms']['n']}" if "false alarms" in m else "-"
        rows.append([r["config"]["detector"], r["config"]["options"], r["data"], _percent(m.get("simple")), _percent(m.get("complex")),
                     number("precision", 100, ".0f"), alarms, number("centre error", 1, ".1f"), number("jumps", 100, ".1f"),
                     f"{r['config']['calibration error']:.2f}"])  # fmt: skip
    if not any("grounding" in r["config"]["detector"] for r in records):
        rows.append(["GroundingDINO", "none and all", "all", *["not run (no weights here)"] * 2, *["-"] * 5])
    return header, rows


def items_table(records: list[dict], name: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row an item of the set called `name`, and all; columns: none and all options; on items at least half
    visible where that is known."""
    mine = [r for r in records if r["data"] == name and r["config"]["options"] in ("none", "all")]
    keys = [k for k in dict.fromkeys(k for r in mine for k in r["metrics"]) if k.startswith("item ")]
    half = [k for k in keys if k.endswith("half visible")]
    keys = [*(half or [k for k in keys if "," not in k]), "at least half visible" if half else "all"]
    rows = [[k.removeprefix("item ").split(",")[0] if k.startswith("item") else "**all**", str(mine[0]["metrics"][k]["n"]),
             *(_percent(r["metrics"].get(k)) for r in mine)] for k in keys]  # fmt: skip
    return ["item", "frames", *(f"{r['config']['options']}: IoU >= 0.5, % [95 %]" for r in mine)], rows


def _percent(metric: dict | None, sign: str = "") -> str:
    if metric is None or not metric["n"]:
        return "-"
    value, low, high = (100 * metric[k] for k in ("value", "low", "high"))
    return f"{value:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def report(records: list[dict]) -> str:
    """The tables of a measurement, in markdown."""
    parts = ["# Gaze boxes: how good they are",
             "Shares of frames with IoU >= 0.5 with the simulator's box; brackets: 95 % bootstrap over scenes or episodes; where "
             "no scene differs, what so many scenes can still hide (Wilson). What makes a frame complex is written in "
             "`src/repro/evaluation/gaze.py`. " + _where(records),
             results.markdown(*detectors_table(records))]  # fmt: skip
    for name, detector in dict.fromkeys((r["data"], r["config"]["detector"]) for r in records):
        mine = [r for r in records if (r["data"], r["config"]["detector"]) == (name, detector)]
        parts.append(f"## {name}: {detector}\n\n{results.markdown(*options_table(mine, name))}")
        if any(k.startswith("item ") for r in mine for k in r["metrics"]):
            parts.append(results.markdown(*items_table(mine, name)))
    return "\n\n".join(parts) + "\n"


def _where(records: list[dict]) -> str:
    """Hardware, commit and time of records, in words."""
    commits, hardware = ({r[key] for r in records} for key in ("commit", "hardware"))
    return f"Commit {', '.join(sorted(commits))}; {', '.join(sorted(hardware))}."


START = "<!-- gaze: written by `repro gaze quality --publish` from results/gaze, checked by tests/test_readme.py -->"
END = "<!-- end of gaze -->"


def ordered(folder: Path) -> list[dict]:
    """The records of folder/runs in the order of a report: by set, then none, one option, all but one, all."""
    labels = [options.label for options in OPTIONS]
    kinds = ("clutter", "CALVIN", "tabletop")
    place = lambda r: ([r["simulator"].startswith(kind) for kind in kinds].index(True), r["data"], r["config"]["detector"],
                       labels.index(r["config"]["options"]))  # fmt: skip
    return sorted((run_records.load(path) for path in folder.glob("runs/*.json")), key=place)


def readme_section(records: list[dict]) -> str:
    """README's block of gaze boxes: detectors; the options and the items are in the report."""
    return f"{_where(records)}\n\n{results.markdown(*detectors_table(records))}\n"
