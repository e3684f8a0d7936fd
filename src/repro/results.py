"""Run records, intervals, tables, figures and the report. Tables are computed from records, never typed.

`python -m repro.results results/smoke` writes `results/smoke/report.md` and a self-contained `report.html`.

A record is one JSON file, `<profile>/runs/<id>.json` (fields: FIELDS below). A metric is `{"value", "n", "low", "high"}` with a 95 %
interval; rates of a chain are called "1/5" ... "5/5" (shares in [0, 1]), the mean number of tasks solved in a row "average length", the
success of one task "task/<name>". A record that names a paper in `not_comparable_with` stands in a table of its own and never gets a
difference against that paper's rows.
"""

import base64
import hashlib
import html
import importlib.metadata
import io
import json
import math
import os
import platform
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from repro import clock, machine
from repro.intervals import bootstrap, wilson  # noqa: F401
from repro.machine import UserError

FIELDS = {  # what every record holds, and its type
    "id": str, "system": str, "variant": str, "benchmark": str, "data": str, "data_hash": str, "config": dict, "seed": int,
    "metrics": dict, "hardware": str, "minutes": (int, float), "commit": str, "packages": dict, "simulator": str, "renderer": str,
    "not_comparable_with": list, "created": str,
}
LATER = {"peak_memory_gib": dict}  # what records made by earlier versions lack: of the process that wrote it, by kind (clock.peak_gib)
PACKAGES = ("torch", "transformers", "numpy", "opencv-python-headless", "pyarrow", "accelerate", "pillow", "matplotlib")
STAND_IN = {"tabletop": "Measured on the embedded play table, a stand-in simulator: **not comparable** with the paper's rows",
            "grocery table": "Measured on the embedded grocery table, a stand-in simulator: **not comparable** with LIBERO"}


# ---- records -------------------------------------------------------------------------------------------------------------------

def provenance() -> dict:
    """Commit ("+changes": of an edited tree; of a built notebook its library), package versions and hardware of this process."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=False)
    commit = head.stdout.strip() + ("+changes" if changed.stdout.strip() else "") if head.returncode == 0 else "unknown (no git checkout)"
    if os.environ.get("REPRO_BUNDLE"):  # an uploaded notebook carries its library, and no git
        commit = f"library {os.environ['REPRO_BUNDLE']}"
    packages = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    hardware = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        cuda = sys.modules["torch"].cuda  # asked only where nvidia-smi is not: it would make a context in this process
        names = [one["name"] for one in machine.gpus()] or [cuda.get_device_name(i) for i in range(cuda.device_count())]
        hardware = f"{len(names)} x {names[0]}, {hardware}"
    return {"commit": commit, "packages": packages, "hardware": hardware}


def record(system: str, variant: str, *, benchmark: str, data: str, data_hash: str, config: dict, seed: int, metrics: dict, minutes: float,
           simulator: str, renderer: str, not_comparable_with: list[str] | tuple[str, ...] = ()) -> dict:
    """A record with its id and provenance. The id depends on what was run only, so a repeated run replaces its record."""
    what = {"system": system, "variant": variant, "benchmark": benchmark, "data": data, "data_hash": data_hash, "config": config,
            "seed": seed, "simulator": simulator, "renderer": renderer}
    digest = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:10]
    name = re.sub(r"[^a-z0-9]+", "-", f"{system}-{variant}".lower()).strip("-")
    return {"id": f"{name}-{digest}", **what, "metrics": metrics, "minutes": round(float(minutes), 2), **provenance(),
            "peak_memory_gib": {kind: round(gib, 2) for kind, gib in clock.peak_gib().items()},
            "not_comparable_with": list(not_comparable_with), "created": datetime.now(UTC).isoformat(timespec="seconds")}


def check(record: dict, where: str) -> dict:
    """The record itself, or a UserError that names `where` and the field that is wrong."""
    def bad(field: str, expected: str, found: object):
        return UserError(f"{where}: field {field} is wrong", expected, repr(found)[:200], "run again what wrote it, or delete the file")
    if not isinstance(record, dict):
        raise bad("(whole file)", "a JSON object", type(record).__name__)
    for field, kind in {**FIELDS, **{name: kind for name, kind in LATER.items() if name in record}}.items():
        if field not in record:
            raise bad(repr(field), "present", f"only {', '.join(sorted(record))}")
        if not isinstance(record[field], kind) or isinstance(record[field], bool):
            raise bad(repr(field), getattr(kind, "__name__", "a number"), record[field])
    for name, metric in record["metrics"].items():
        if not isinstance(metric, dict) or not {"value", "n", "low", "high"} <= set(metric):
            raise bad(f"metrics[{name!r}]", "an object with value, n, low, high", metric)
        numbers = [metric[k] for k in ("low", "value", "high", "n")]
        if not all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in numbers):
            raise bad(f"metrics[{name!r}]", "finite numbers", metric)
        if not metric["low"] - 1e-9 <= metric["value"] <= metric["high"] + 1e-9 or metric["n"] < 0:
            raise bad(f"metrics[{name!r}]", "low <= value <= high and n >= 0", metric)
        if (_is_rate(name) or name.startswith("task/")) and not 0 <= metric["value"] <= 1:
            raise bad(f"metrics[{name!r}]", "a share in [0, 1]", metric)
    return record


def save(record: dict, folder: str | Path) -> Path:
    """Write `<folder>/<id>.json`, whole or not at all."""
    path = Path(folder) / f"{record.get('id', 'record')}.json"
    check(record, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1, default=str, allow_nan=False) + "\n")
    os.replace(part, path)
    return path


def load(path: str | Path) -> dict:
    """One record; a broken file is a UserError naming file and field."""
    try:
        found = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a run record", "JSON", str(error), "run again what wrote it, or delete the file") from error
    return check(found, str(path))


def load_all(folder: str | Path) -> list[dict]:
    """Every record of a folder (`results/<profile>/runs`), by system, benchmark, creation time."""
    found = [load(path) for path in sorted(Path(folder).glob("*.json"))]
    return sorted(found, key=lambda r: (r["system"], r["benchmark"], r["created"], r["id"]))


def claims(path: str | Path) -> dict:
    """`papers/<name>/claims.toml`: {"paper": {...}, "row": [{table, label, rates (as printed), average_length, ...}]}, checked."""
    try:
        found = tomllib.loads(Path(path).read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML", "claims as in papers/reconvla", str(error), "repair the line named above") from error
    for need in ("name", "arxiv", "simulator", "obtained", "n_stated"):
        if need not in found.get("paper", {}):
            raise UserError(f"{path}: [paper] has no `{need}`", need, sorted(found.get("paper", {})), "add it")
    for i, row in enumerate(found.get("row", [])):
        if not {"table", "label", "benchmark", "average_length"} <= set(row) or len(row.get("rates", [])) not in (0, 5):
            raise UserError(f"{path}: row {i} ({row.get('label', 'no label')})",
                            "table, label, benchmark, average_length, rates (five or none)", sorted(row), "complete the row")
    return found


def inconsistency(rates: list[float], average: float, slack: float, n: list[int] | tuple[int, ...] = ()) -> str:
    """"" if the five rates (shares) sum to the average length within `slack`, else one sentence.

    The mean number of tasks in a row *is* the sum of the five rates. If dividing by N+1 instead of N (an official evaluation script
    appends the mean to the results before counting) for one N in `n` explains the gap, the sentence says so.
    """
    total = math.fsum(rates)
    if abs(total - average) <= slack + 1e-9:
        return ""
    text = f"INCONSISTENT: {total:.3f}, not {average:g}"
    for count in n:
        if abs(total * (count + 1) / count - average) <= slack + 1e-9:
            return f"{text} (agrees if the rates were divided by N+1 = {count + 1})"
    return text


def _slack(row: dict) -> float:
    """What rounding of the printed cells (percent, tasks) allows between the sum of the rates and the average."""
    unit = lambda cell: 0.5 * 10.0 ** -len(cell.partition(".")[2])
    return sum(unit(cell) / 100 for cell in row["rates"]) + unit(row["average_length"])


def _is_rate(name: str) -> bool:
    return re.fullmatch(r"\d+/\d+", name) is not None


# ---- tables --------------------------------------------------------------------------------------------------------------------

def shown(name: str, metric: dict) -> str:
    """One metric as a cell: rates in percent, everything else as it is, with its 95 % interval."""
    percent = _is_rate(name) or name.startswith("task/")
    value, low, high = (metric[k] * (100 if percent else 1) for k in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]" if percent else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def is_comparable(record: dict, paper: dict) -> bool:
    """True where a record may share a table with a paper's rows: same system and simulator, not excluded by the record itself."""
    same = record["system"] == paper["name"] and record["simulator"] == paper["simulator"]
    return same and paper["name"] not in record["not_comparable_with"]


def _rate_names(records: list[dict]) -> list[str]:
    return sorted({name for r in records for name in r["metrics"] if _is_rate(name)}, key=lambda name: [int(x) for x in name.split("/")])


def _length_check(record: dict) -> str:
    """Sum of the record's rates against its average length; both come from the same outcomes, so only float error is forgiven."""
    metrics, names = record["metrics"], _rate_names([record])
    if "average length" not in metrics or not names:
        return ""
    return inconsistency([metrics[n]["value"] for n in names], metrics["average length"]["value"], 1e-6) or "ok"


def chain_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of chain results of one benchmark: no difference column, and the mark where a paper must not be compared."""
    names = _rate_names(records)
    header = ["variant", "seed", "n", *(f"{n} %" for n in names), "average length", "sum of rates", "beside a paper's row"]
    rows = []
    for r in (r for r in records if _rate_names([r])):
        cells = [shown(n, r["metrics"][n]) if n in r["metrics"] else "-" for n in [*names, "average length"]]
        mark = "NOT COMPARABLE: " + ", ".join(r["not_comparable_with"]) if r["not_comparable_with"] else "same simulator needed"
        rows.append([r["variant"], str(r["seed"]), str(r["metrics"][_rate_names([r])[0]]["n"]), *cells, _length_check(r), mark])
    return header, rows


def paper_table(found: dict, records: list[dict], table: int) -> tuple[list[str], list[list[str]]]:
    """(header, rows): the paper's rows as printed with the check of their sums, then comparable records with their difference."""
    paper = found["paper"]
    header = ["row", "1/5 %", "2/5 %", "3/5 %", "4/5 %", "5/5 %", "average length", "sum of rates", "difference (ours - paper)"]
    rows, printed = [], {}
    for row in (r for r in found["row"] if r["table"] == table):
        cells = row["rates"] or ["-"] * 5
        verdict = inconsistency([float(c) / 100 for c in row["rates"]], float(row["average_length"]), _slack(row),
                                [*paper.get("n_suspected", []), paper["n_stated"]]) or "ok" if row["rates"] else "no rates printed"
        rows.append([f"{row['label']} (paper)", *cells, row["average_length"], verdict, ""])
        printed[row.get("variant"), row["benchmark"]] = row
    for r in (r for r in records if is_comparable(r, paper) and (r["variant"], r["benchmark"]) in printed):
        row, mine = printed[r["variant"], r["benchmark"]], r["metrics"].get("average length")
        cells = [shown(n, r["metrics"][n]) if n in r["metrics"] else "-" for n in ("1/5", "2/5", "3/5", "4/5", "5/5")]
        gap = f"{mine['value'] - float(row['average_length']):+.2f} tasks" if mine else "-"
        rows.append([f"{r['variant']} (ours, n = {r['metrics'].get('1/5', mine)['n']}, seed {r['seed']})", *cells,
                     shown("average length", mine) if mine else "-", _length_check(r), gap])
    return header, rows


def other_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): every metric that is no chain rate or task, one a row, one record a column; n in the row's name."""
    named = lambda name: not _is_rate(name) and name != "average length" and not name.startswith("task/")
    return _by_record(records, [name for name in dict.fromkeys(n for r in records for n in r["metrics"]) if named(name)], "measure", shown)


def task_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): success per attempt of each task as "solved/tried", one record a column."""
    names = sorted({name for r in records for name in r["metrics"] if name.startswith("task/")})
    return _by_record(records, names, "task", lambda name, m: f"{round(m['value'] * m['n'])}/{m['n']}")


def _by_record(records: list[dict], names: list[str], what: str, cell) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name in names:
        counts = {r["metrics"][name]["n"] for r in records if name in r["metrics"]}
        label = name.removeprefix("task/") + (f" (n = {counts.pop()})" if len(counts) == 1 and what == "measure" else "")
        rows.append([label, *(cell(name, r["metrics"][name]) if name in r["metrics"] else "-" for r in records)])
    return [what, *(r["variant"] for r in records)], rows


def summary(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): one row a variant over all benchmarks of a profile, the columns that a first look needs."""
    wanted = [("single tasks", "1/1", "single tasks %"), ("chains of 5", "1/5", "chains: first task %"),
              ("chains of 5", "average length", "chains: average length"), ("offline", "motion error", "offline motion error"),
              ("attention", "attention mass, gaze box minus another episode's box", "attention gain in the gaze box")]
    cells, counts = {}, {}
    for r in sorted(records, key=lambda r: "single tasks" not in r["benchmark"]):  # their order of variants
        for i, (kind, metric, _) in enumerate(wanted):
            if kind in r["benchmark"] and metric in r["metrics"]:
                cells.setdefault(r["variant"], ["-"] * len(wanted))[i] = shown(metric, r["metrics"][metric])
                counts.setdefault(i, set()).add(r["metrics"][metric]["n"])
    titles = [f"{title} (n = {', '.join(map(str, sorted(counts[i])))})" for i, (_, _, title) in enumerate(wanted) if i in counts]
    rows = [[variant, *(cell for i, cell in enumerate(row) if i in counts)] for variant, row in cells.items()]
    return ["variant", *titles], rows


def real_table(records: list[dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of records from the real simulators: one row a policy, one column a benchmark and its metric, n in the title."""
    titles, cells = {}, {}
    for r in records:
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
        group = sorted((r for r in group if r not in recorded), key=lambda r: (r["benchmark"], rank(r["variant"])))
        first, about = group[0], group[0]["config"]["simulator"]
        said = "; ".join([f"renderer {about['renderer']}", ", ".join(f"{k} {v}" for k, v in about["versions"].items()),
                          f"assets: **{about['assets']}**", *([f"calvin_env {about['checkout']}"] if "checkout" in about else []),
                          f"data: {first['data']}", f"commit {', '.join(sorted({r['commit'] for r in group}))}", first["hardware"]])
        kept = {key: value for key, value in first["config"].items() if key not in ("policy", "simulator", "renderer")}
        parts.append(f"**{name}** ({said}). " + "; ".join(f"{key}: {value}" for key, value in kept.items())
                     + f". **Not comparable with {', '.join(first['not_comparable_with'])}.**\n\n{markdown(*real_table(group))}\n"
                     + (f"\n{markdown(*recorded_table(recorded))}\n" if recorded else ""))
    return "\n".join(parts)


START = "<!-- ablation: written by `python -m repro.results --readme results/cpu`, checked by tests/test_readme.py -->"
END = "<!-- end of the ablation -->"
REAL_START, REAL_END = "<!-- real simulators: written by the same command from results/sims -->", "<!-- end of real simulators -->"
VLA_START, VLA_END = "<!-- VGGT-VLA: written by the same command from results/cpu -->", "<!-- end of VGGT-VLA -->"
CHANGE_START, CHANGE_END = "<!-- change agent: written by the same command from results/cpu -->", "<!-- end of change agent -->"
CHECK_START, CHECK_END = "<!-- check: results/cpu/check.txt, written by `repro evaluate --check` -->", "<!-- end of check -->"


def write_readme(readme: str | Path, folder: str | Path) -> None:
    """Put between their marks in the README: the ablations of `folder`, its check.txt, and `real_section(folder/../sims)`."""
    from repro import ablation_tables, change_ablation, vla_ablation

    text, folder = Path(readme).read_text(), Path(folder)
    for start, end, section in ((START, END, ablation_tables.readme_section(folder)),
                                (VLA_START, VLA_END, vla_ablation.readme_section(folder)),
                                (CHANGE_START, CHANGE_END, change_ablation.readme_section(folder)),
                                (CHECK_START, CHECK_END, f"```\n{(folder / 'check.txt').read_text()}```\n"),
                                (REAL_START, REAL_END, real_section(folder.parent / "sims"))):
        text = between(text, start, end, section)
    Path(readme).write_text(text)


def between(text: str, start: str, end: str, section: str) -> str:
    """The text with `section` between its marks."""
    before, rest = text.split(start)
    return f"{before}{start}\n{section}{end}{rest.split(end)[1]}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A GitHub table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in line) + " |" for line in lines)


def figure(records: list[dict], title: str = ""):
    """Success after k tasks and average length with 95 % intervals, n in the labels; told apart by marker and dash, so grey print works."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    records = [r for r in records if _rate_names([r])]
    names = _rate_names(records)
    key = "average length" if len(names) > 1 else names[0]
    fig = Figure(figsize=(10 if len(names) > 1 else 6, 1.6 + 0.42 * max(len(records), 4)), layout="constrained", dpi=130)
    axes = fig.subplots(1, 2 if len(names) > 1 else 1, squeeze=False)[0]
    nothing = []
    for i, r in enumerate(records):
        dash = ("-", "--", ":", "-.")[i % 4]
        style = {"color": colormaps["cividis"](0.8 * (i % 5) / 4), "marker": "osD^vPX*"[i % 8], "linestyle": dash, "capsize": 3}
        for ax, keys in ((axes[0], names), (axes[-1], [key])):
            mine = [(k, r["metrics"][k]) for k in keys if k in r["metrics"]]
            values = np.array([m["value"] for _, m in mine])
            errors = np.abs(np.array([[m["low"], m["high"]] for _, m in mine]).T - values)
            if ax is not axes[-1] and not values.any():
                nothing.append(r["variant"])  # at 0 for every length: its interval stands in the other panel
            elif ax is axes[-1]:
                ax.errorbar(values, [i] * len(mine), xerr=errors, **{**style, "linestyle": "none"})
            else:
                ax.errorbar([int(k.split("/")[0]) + 0.05 * (i - len(records) / 2) for k, _ in mine], values, yerr=errors, **style)
    axes[-1].set_yticks(range(len(records)), [f"{r['variant']} (n = {r['metrics'][_rate_names([r])[0]]['n']})" for r in records])
    axes[-1].set(ylim=(len(records) - 0.4, -0.6), xlabel="average length (tasks in a row)" if len(names) > 1 else f"success {key} (share)",
                 xlim=(-0.1, int(names[-1].split("/")[1]) + 0.1) if len(names) > 1 else (-0.03, 1.03))
    if len(names) > 1:
        axes[0].set(xlabel="tasks solved in a row, at least", ylabel="share of chains", ylim=(-0.03, 1.03),
                    xticks=range(1, len(names) + 1))
    if nothing:
        axes[0].text(0.5, 0.05, f"{len(nothing)} of {len(records)} at 0 throughout", transform=axes[0].transAxes, ha="center", fontsize=9)
    for ax in axes:
        ax.grid(color="0.9")
        ax.set_axisbelow(True)
    fig.suptitle(title + "\nbars: 95 % intervals", fontsize=10)
    return fig


# ---- the report ----------------------------------------------------------------------------------------------------------------

def _png(fig) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def blocks(records: list[dict], papers: list[dict]) -> list[tuple]:
    """The report as a list of ("heading" | "text" | "table" | "figure", ...), from records and claims alone."""
    out = [("heading", "Results"), ("text", "Every number below is computed from the run records; brackets are 95 % intervals (Wilson for "
                                            "rates, bootstrap over chains or episodes for means).")]
    for found in (one for one in papers if one.get("row")):  # some sources print no table
        paper = found["paper"]
        out += [("heading", f"{paper['title']}: what the paper prints (arXiv {paper['arxiv']})"),
                ("text", f"{paper['obtained']}. n stated: {paper['n_stated']}. {paper.get('n_note', '')}")]
        for table in sorted({row["table"] for row in found["row"]}):
            out += [("text", f"**Table {table}**"), ("table", *paper_table(found, records, table))]
    for benchmark in sorted({r["benchmark"] for r in records}):
        group = [r for r in records if r["benchmark"] == benchmark]
        stands_in = any(r["not_comparable_with"] for r in group)
        where = ", ".join(sorted({f"simulator {r['simulator']}, renderer {r['renderer']}" for r in group}))
        out += [("heading", f"{benchmark}{' (not comparable with the paper)' if stands_in else ''}"),
                ("text", "".join(f"{said}. " for name, said in STAND_IN.items() if name in where) + f"{where}.")]
        if _rate_names(group):
            title = benchmark + (" (not comparable with the paper)" if stands_in else "")
            out += [("table", *chain_table(group)), ("figure", f"chains: {benchmark}", _png(figure(group, title)))]
        for made in (other_table(group), task_table(group)):
            if made[1]:
                out.append(("table", *made))
    rows = [[r["id"], f"{r['data']} {r['data_hash'][:12]}", r["hardware"], f"{r['minutes']:.1f}", r["commit"], r["created"]]
            for r in records]
    return [*out, ("heading", "Run records"), ("table", ["record", "data", "hardware", "minutes", "commit", "created"], rows)]


def _bold(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text))


def report(folder: str | Path, papers: list[str | Path] | None = None) -> Path:
    """Write `<folder>/report.md` (figures under `<folder>/figures/`) and a self-contained `report.html` from `<folder>/runs/*.json`.

    papers: paths of claims.toml; by default those under `papers/` of this checkout.
    """
    folder = Path(folder)
    records = load_all(folder / "runs")
    if not records:
        raise UserError(f"{folder / 'runs'} holds no run record", "*.json", "none", "run `make run`, or `repro run`, first")
    if papers is None:
        papers = sorted((Path(__file__).parents[2] / "papers").glob("*/claims.toml"))
    text, page = [], []
    for kind, *content in blocks(records, [claims(path) for path in papers]):
        if kind == "heading":
            text.append(f"{'#' if not text else '##'} {content[0]}")
            page.append(f"<h2>{html.escape(content[0])}</h2>")
        elif kind == "text":
            text.append(content[0])
            page.append(f"<p>{_bold(content[0])}</p>")
        elif kind == "table":
            header, rows = content
            text.append(markdown(header, rows))
            body = "".join("<tr>" + "".join(f"<td>{_bold(str(c))}</td>" for c in row) + "</tr>" for row in rows)
            page.append("<table><tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in header) + f"</tr>{body}</table>")
        else:
            name = re.sub(r"[^a-z0-9]+", "_", content[0].lower()).strip("_") + ".png"
            (folder / "figures").mkdir(exist_ok=True)
            (folder / "figures" / name).write_bytes(content[1])
            text.append(f"![{content[0]}](figures/{name})")
            page.append(f'<img alt="{html.escape(content[0])}" src="data:image/png;base64,{base64.b64encode(content[1]).decode()}">')
    style = "body{font:15px/1.5 sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem}table{border-collapse:collapse;font-size:13px}" \
            "td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:left;vertical-align:top}img{max-width:100%}"
    (folder / "report.md").write_text("\n\n".join(text) + "\n")
    (folder / "report.html").write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Results</title><style>{style}</style>'
                                        + "\n".join(page) + "</html>\n")
    return folder / "report.md"


if __name__ == "__main__":
    if sys.argv[1] == "--readme":
        write_readme("README.md", sys.argv[2])
    else:
        print(report(sys.argv[1]))
