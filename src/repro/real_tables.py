"""Tables of the real simulators, and README's block of them.

    print(results.markdown(*real_table(records)))
"""

from pathlib import Path

from repro.machine import UserError
from repro.results import markdown, shown
from repro.run_records import load_all


def real_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of records from the real simulators: one row a policy, one column a benchmark and its metric, n in the title. A
    UserError where two records claim one cell (of several seeds or settings)."""
    titles, cells, told = {}, {}, {}
    for r in records:
        if (other := told.setdefault((r["variant"], r["benchmark"]), r["id"])) != r["id"]:
            raise UserError(f"two records of {r['variant']!r}, {r['benchmark']}", "one: of one seed and one setting",
                            f"{other}, {r['id']}", "remove one of the two files")
        for metric in ("1/1", "1/5", "5/5", "average length"):
            if metric in r["metrics"] and not (metric == "average length" and "1/1" in r["metrics"]):
                m = r["metrics"][metric]
                what = {"1/1": "success %", "1/5": "first task %", "5/5": "all five %"}.get(metric, metric)
                titles[r["benchmark"], metric] = f"{r['benchmark']}: {what} (n = {m['n']})"
                cells.setdefault(r["variant"], {})[r["benchmark"], metric] = shown(metric, m)
    rows = [[variant, *(row.get(key, "-") for key in titles)] for variant, row in cells.items()]
    return ["policy", *titles.values()], rows


def recorded_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what policies do on recorded frames of a real simulator: one row a policy."""
    wanted = ("motion error", "attention mass in the gaze box", "attention mass, gaze box minus another episode's box",
              "pointing game (5 of 200 px), gaze box minus another episode's box", "equal-area IoU, gaze box minus another episode's box",
              "gaze targets, through the VAE, dB", "gaze targets, the mean picture, dB")
    cells, counts = {}, {}
    for r in sorted(records, key=lambda r: r["variant"]):
        for name in wanted:
            if name in r["metrics"]:
                cells.setdefault(r["variant"], {})[name] = shown(name, r["metrics"][name])
                counts[name] = r["metrics"][name]["n"]
    titles = [name for name in wanted if name in counts]
    return (["policy, on held-out recorded episodes", *(f"{name} (n = {counts[name]})" for name in titles)],
            [[variant, *(row.get(name, "-") for name in titles)] for variant, row in cells.items()])


def real_section(folder: str | Path) -> str:
    """README's block "real simulators": a table for each, with renderer, versions, assets, data and what it must not be compared with."""
    parts, rank = [], lambda name: (not name.startswith(("ReconVLA", "VGGT-VLA")), name != "keypoint policy", name != "blind")
    for name in sorted({r["simulator"] for r in load_all(Path(folder) / "runs")}):
        group = [r for r in load_all(Path(folder) / "runs") if r["simulator"] == name]
        recorded = [r for r in group if "recorded" in r["config"]["simulator"]]
        group = sorted((r for r in group if r not in recorded), key=lambda r: (r["benchmark"], rank(r["variant"]), r["variant"]))
        if not group:
            raise UserError(f"{folder}: {name} has no closed loop", "records of rollouts beside those of recorded frames",
                            f"{len(recorded)} of recorded frames", "let `repro simulate` end, then publish again")
        first, about = group[0], group[0]["config"]["simulator"]
        said = "; ".join([f"renderer {about['renderer']}", ", ".join(f"{k} {v}" for k, v in about["versions"].items()),
                          f"assets: **{about['assets']}**", *([f"calvin_env {about['checkout']}"] if "checkout" in about else []),
                          f"data: {first['data']}", f"commit {', '.join(sorted({r['commit'] for r in group}))}", first["hardware"]])
        kept = {key: value for key, value in first["config"].items() if key not in ("policy", "simulator", "renderer")}
        parts.append(f"**{name}** ({said}). " + "; ".join(f"{key}: {value}" for key, value in kept.items())
                     + f". **Not comparable with {', '.join(first['not_comparable_with'])}.**\n\n{markdown(*real_table(group))}\n"
                     + (f"\n{markdown(*recorded_table(recorded))}\n" if recorded else ""))
    return "\n".join(parts)
