"""Tables, figures and the report. Tables are computed from run records (run_records.py) and claims, never typed.

`python -m repro.results results/smoke` writes `results/smoke/report.md` and a self-contained `report.html`;
`python -m repro.results --readme results/cpu` the tables in README.md (readme.py).
"""

import base64
import html
import io
import math
import re
import sys
import tomllib
from pathlib import Path

import numpy as np

from repro.machine import UserError
from repro.run_records import is_rate, load_all

STAND_IN = {"tabletop": "Measured on the embedded play table, a stand-in simulator: **not comparable** with the paper's rows",
            "grocery table": "Measured on the embedded grocery table, a stand-in simulator: **not comparable** with LIBERO"}


# ---- claims -------------------------------------------------------------------------------------------------------------------

def claims(path: str | Path) -> dict:
    """`papers/<name>/claims.toml`: {"paper": {...}, "row": [{table, label, rates (as printed), average_length, ...}], "claim": [{what,
    stated, here}]}, checked."""
    try:
        found = tomllib.loads(Path(path).read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML", "claims as in papers/reconvla", str(error), "repair the line named above") from error
    for need in ("name", "arxiv", "simulator", "obtained", "n_stated"):
        if need not in found.get("paper", {}):
            raise UserError(f"{path}: [paper] has no `{need}`", need, sorted(found.get("paper", {})), "add it")
    for i, row in enumerate(found.get("row", [])):
        if not {"table", "label", "benchmark", "average_length"} <= set(row) or len(row.setdefault("rates", [])) not in (0, 5):
            raise UserError(f"{path}: row {i} ({row.get('label', 'no label')})",
                            "table, label, benchmark, average_length, rates (five or none)", sorted(row), "complete the row")
    for i, claim in enumerate(found.get("claim", [])):
        if not {"what", "stated", "here"} <= set(claim):
            raise UserError(f"{path}: claim {i} ({claim.get('what', 'nothing')})", "what, stated, here", sorted(claim), "complete it")
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


# ---- tables --------------------------------------------------------------------------------------------------------------------

def shown(name: str, metric: dict) -> str:
    """One metric as a cell: rates in percent, everything else as it is, with its 95 % interval."""
    percent = is_rate(name) or name.startswith("task/")
    value, low, high = (metric[k] * (100 if percent else 1) for k in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]" if percent else f"{value:.3g} [{low:.3g}, {high:.3g}]"


def is_comparable(record: dict, paper: dict) -> bool:
    """True where a record may share a table with a paper's rows: same system and simulator, not excluded by the record itself."""
    same = record["system"] == paper["name"] and record["simulator"] == paper["simulator"]
    return same and paper["name"] not in record["not_comparable_with"]


def _rate_names(records: list[dict]) -> list[str]:
    return sorted({name for r in records for name in r["metrics"] if is_rate(name)}, key=lambda name: [int(x) for x in name.split("/")])


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
    named = lambda name: not is_rate(name) and name != "average length" and not name.startswith("task/")
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
    for found in (one for one in papers if one.get("claim")):
        out += [("heading", f"{found['paper']['title']}: what its sources state"), ("table", *claims_table(found))]
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


def claims_table(found: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what a source states beside its tables, why it cannot be taken as it stands, and what there is here."""
    stated = lambda claim: claim["stated"] + (f" ({claim['cause']})" if "cause" in claim else "")
    return ["what", "stated by the source", "here"], [[claim["what"], stated(claim), claim["here"]] for claim in found.get("claim", [])]


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
        from repro.readme import write_readme

        write_readme("README.md", sys.argv[2])
    else:
        print(report(sys.argv[1]))
