"""Records, intervals, tables, report. Run: pytest tests/test_results.py"""

import json
from pathlib import Path

import numpy as np
import pytest

from repro import benchmark, run_records
from repro import results as R
from repro.intervals import bootstrap, wilson
from repro.machine import UserError

CLAIMS = Path(__file__).parents[1] / "papers" / "reconvla" / "claims.toml"


def chain_metrics(lengths):
    n = len(lengths)
    metrics = {}
    for k in range(1, 6):
        count = sum(length >= k for length in lengths)
        low, high = wilson(count, n)
        metrics[f"{k}/5"] = {"value": count / n, "n": n, "low": low, "high": high}
    low, high = bootstrap(lengths, (0, 5))
    return {**metrics, "average length": {"value": float(np.mean(lengths)), "n": n, "low": low, "high": high}}


def make(variant="gaze", lengths=(5, 3, 0, 2), **changes):
    fields = {"benchmark": "play table D->D", "data": "tabletop-D", "data_hash": "ab12", "config": {"steps": 3}, "seed": 0,
              "metrics": chain_metrics(list(lengths)), "minutes": 1.5, "simulator": "tabletop", "renderer": "opencv",
              "not_comparable_with": ["reconvla"]}
    return run_records.record("reconvla", variant, **{**fields, **changes})


def test_wilson_by_hand():
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # (p + z2/2n +- z sqrt(p q/n + z2/4n2)) / (1 + z2/n)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4) and wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(81, 263)
    assert (low, high) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, case (a), method 3
    for k, n in ((-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="0 <= k <= n"):
            wilson(k, n)


def test_bootstrap():
    values = np.random.default_rng(0).normal(2, 1, 400)
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((values.mean() - 0.098, values.mean() + 0.098), abs=0.015)  # 1.96 / sqrt(400)
    assert bootstrap(values) == (low, high) != bootstrap(values, seed=1)
    low, high = bootstrap([0] * 10, (0, 5))
    assert low == 0 and high == pytest.approx(5 * 0.2775, abs=1e-3), "ten zeros are no certainty"
    with pytest.raises(ValueError, match="no values"):
        bootstrap([])


def test_record_round_trip(tmp_path):
    record = make()
    path = run_records.save(record, tmp_path)
    assert run_records.load(path) == record and path.name == f"{record['id']}.json" and list(tmp_path.iterdir()) == [path]
    assert set(record["packages"]) >= {"python", "torch", "numpy"} and record["commit"] and "CPU" in record["hardware"]


def test_a_record_can_be_made_without_git(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("REPRO_BUNDLE", raising=False)
    assert make()["commit"] == "unknown (git is not installed)"


def test_id_depends_on_what_was_run_only():
    assert make()["id"] == make(lengths=(1, 1, 1, 1), minutes=9)["id"], "a repeated run replaces its record"
    ids = {make()["id"], make(seed=1)["id"], make("whole")["id"], make(config={"steps": 4})["id"], make(data_hash="cd34")["id"]}
    assert len(ids) == 5 and all(i.startswith("reconvla-") for i in ids)


def test_a_record_takes_the_place_of_an_older_configurations_alone(tmp_path):
    for steps in (100, 200):
        path = run_records.save(make("gaze", config={"profile": "cpu", "steps": steps}), tmp_path)
    assert list(tmp_path.iterdir()) == [path] and run_records.load(path)["config"]["steps"] == 200
    torn = tmp_path / f"{path.stem[:-10]}0123456789.json"
    torn.write_text('{"id": ')  # is left for load_all to name
    others = [make("gaze", **more, config={"profile": "cpu"}) for more in ({"seed": 1}, {"simulator": "CALVIN"}, {"benchmark": "other"})]
    others += [make("gaze", config=config) for config in ({"profile": "cpu", "step": 50}, {"protocol": "a"}, {"protocol": "b"})]
    assert len({path, torn, *(run_records.save(one, tmp_path) for one in others)}) == 8 == len(list(tmp_path.iterdir()))


@pytest.mark.parametrize("damage, words", [
    (lambda r: r.pop("seed"), "'seed'"),
    (lambda r: r.update(minutes="long"), "'minutes'"),
    (lambda r: r.update(seed=True), "'seed'"),
    (lambda r: r["metrics"]["1/5"].pop("low"), r"metrics\['1/5'\]"),
    (lambda r: r["metrics"]["1/5"].update(value=57.0, high=60.0), "share in"),
    (lambda r: r["metrics"]["average length"].update(high=0.1), "low <= value <= high"),
    (lambda r: r["metrics"]["average length"].update(value=float("nan")), "finite"),
])
def test_bad_records_name_file_and_field(tmp_path, damage, words):
    record = json.loads(json.dumps(make()))
    damage(record)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=words) as caught:
        run_records.load(path)
    assert str(path) in str(caught.value) and "next step" in str(caught.value)
    with pytest.raises(UserError, match=words):
        run_records.save(record, tmp_path / "other")
    assert not (tmp_path / "other").exists(), "nothing half-written"


def test_torn_record(tmp_path):
    (tmp_path / "torn.json").write_text('{"id": "x", ')
    with pytest.raises(UserError, match="not a run record") as caught:
        run_records.load_all(tmp_path)
    assert "torn.json" in str(caught.value)


def test_planted_inconsistency_is_flagged():
    good = make()
    header, rows = R.chain_table([good])
    assert rows[0][header.index("sum of rates")] == "ok"
    good["metrics"]["average length"] = {"value": 2.6, "n": 4, "low": 1, "high": 4}
    assert R.chain_table([good])[1][0][header.index("sum of rates")] == "INCONSISTENT: 2.500, not 2.6"


def test_paper_table_2_is_recomputed():
    header, rows = R.paper_table(R.claims(CLAIMS), [], 2)
    sums = {row[0].removesuffix(" (paper)"): row[header.index("sum of rates")] for row in rows}
    assert [row[1:7] for row in rows] == [
        ["88.8", "76.1", "63.7", "57.0", "49.0", "3.36"], ["89.8", "80.3", "67.7", "56.6", "46.5", "3.42"],
        ["96.8", "86.9", "76.9", "64.9", "58.2", "3.85"], ["95.6", "87.6", "76.9", "69.3", "64.1", "3.95"]]
    assert len(sums) == 4 and not any("OpenVLA" in label and "not OpenVLA" not in label for label in sums)
    for label, total in (("Baseline", 3.346), ("whole image", 3.409), ("of the gaze region", 3.837), ("pretraining", 3.935)):
        verdict, = [v for k, v in sums.items() if label in k]
        assert verdict.startswith(f"INCONSISTENT: {total:.3f}") and "N+1 = 251" in verdict
    other = R.paper_table(R.claims(CLAIMS), [], 3)[1]
    assert [r[7] for r in other if r[0].startswith("OpenVLA")] == ["ok"]
    assert [r[7] for r in other if "UniPi" in r[0]] == ["no rates printed"]


def test_printed_precision_decides_the_slack():
    assert R.inconsistency([0.5] * 5, 2.5, 0) == ""
    rates = [0.92, 0.70, 0.54, 0.41, 0.26]
    assert R.inconsistency(rates, 2.83, 0.005) == "" != R.inconsistency(rates, 2.84, 0.005)


def test_denominators_of_the_forensic_note():
    """251, 498 and 502 alone, of 50 ... 520, give every printed cell of six rows (ABCD->D is the sixth)."""
    found = {tuple(r["rates"]) for r in R.claims(CLAIMS)["row"] if r["table"] in (1, 2) and r.get("variant") != "whole"}
    rows = [*found, ("98.0", "90.0", "84.5", "78.5", "70.5")]
    assert len(rows) == 6
    near = lambda cell, n: range(int(float(cell) / 100 * n) - 1, int(float(cell) / 100 * n) + 3)
    prints = lambda cell, n: any(f"{100 * k / n:.1f}" == cell for k in near(cell, n))
    assert [n for n in range(50, 521) if all(prints(cell, n) for row in rows for cell in row)] == [251, 498, 502]


def test_play_table_never_meets_the_paper():
    ours = make("gaze", simulator="calvin_env", benchmark="CALVIN ABC->D", renderer="EGL", not_comparable_with=[])
    play, play_abc = make("gaze"), make("gaze", benchmark="CALVIN ABC->D", not_comparable_with=[])  # simulator alone keeps it out
    header, rows = R.paper_table(R.claims(CLAIMS), [play, play_abc, ours], 2)
    mine = [row for row in rows if "(ours" in row[0]]
    assert len(mine) == 1 and mine[0][-1] == "-1.35 tasks"  # 2.5 against the paper's 3.85
    marked = R.paper_table(R.claims(CLAIMS), [{**ours, "not_comparable_with": ["reconvla"]}], 2)[1]
    assert not any("(ours" in row[0] for row in marked)
    header, rows = R.chain_table([play])
    assert "NOT COMPARABLE" in rows[0][-1] and not any("difference" in h for h in header)


def test_report_is_written_from_records(tmp_path):
    with pytest.raises(UserError, match="no run record"):
        R.report(tmp_path)
    extra = {"attention mass in the gaze box": {"value": 0.2, "n": 9, "low": 0.1, "high": 0.3}}
    lengths = {"baseline": (1, 0, 2, 0), "gaze": (5, 3, 0, 2)}
    for variant, found in lengths.items():
        run_records.save(make(variant, found, metrics={**chain_metrics(list(found)), **extra}), tmp_path / "runs")
    path = R.report(tmp_path, [CLAIMS])
    text, page = path.read_text(), (tmp_path / "report.html").read_text()
    assert "| gaze | 0 | 4 | 75.0 [30.1, 95.4]" in text and "0.2 [0.1, 0.3]" in text and "not comparable" in text
    assert "88.8" in text and "2508.10333" in text
    assert (tmp_path / "figures" / "chains_play_table_d_d.png").read_bytes()[:4] == b"\x89PNG"
    assert "data:image/png;base64," in page and "src=\"figures" not in page, "one file that can be sent"
    assert "D-&gt;D" in page and "D->D" in text, "the page escapes its text"


def test_figure_draws_the_intervals(tmp_path):
    fig = R.figure([make("baseline", (1, 0, 2, 0)), make("gaze")], "play table")
    left, right = fig.axes
    assert [t.get_text() for t in right.get_yticklabels()] == ["baseline (n = 4)", "gaze (n = 4)"]
    assert len(left.containers) == len(right.containers) == 2 and all(c.has_yerr for c in left.containers)
    one = R.figure([make(metrics={"1/1": {"value": 0.5, "n": 4, "low": 0.15, "high": 0.85}})])
    assert len(one.axes) == 1, "single-task rollouts have one rate"


def test_what_sources_state_stands_beside_what_is_here():
    """VGGT-VLA's sources have no table: what they state, and the one number of a rollout, are in the report all the same."""
    root = Path(__file__).resolve().parents[1]
    found = R.claims(root / "papers" / "vggt_vla" / "claims.toml")
    header, rows = R.claims_table(found)
    assert header == ["what", "stated by the source", "here"] and rows[0][1].startswith("0 of 9 episodes (trained with Qwen3-0.6B")
    told = [block for block in R.blocks([], [found]) if block[0] == "table"]
    assert told[0][1:] == (header, rows)
    here = {row[0]: row[2] for row in rows}
    cases = json.loads((root / "results" / "benchmarks" / "vggt_memory.json").read_text())["cases"]
    for name in ("vggt_qwen3", "vggt_qwen3_dinov2"):
        case = cases[name]
        assert here[f"trainable parameters, {name}"].startswith(f"{case['trainable_millions']:.1f} M ")
        told = next(text for what, text in here.items() if what.startswith(f"GPU memory of a step, {name}, "))
        assert told.startswith(f"{case['with context and slack']:.1f} GiB at batch {case['batch']}, {case['how']}, ")


def test_a_row_without_rates_is_shown_without(tmp_path):
    path = tmp_path / "claims.toml"
    path.write_text(CLAIMS.read_text() + '\n[[row]]\ntable = 2\nlabel = "no rates"\nbenchmark = "b"\naverage_length = "1.5"\n')
    header, rows = R.paper_table(R.claims(path), [], 2)
    assert rows[-1][:8] == ["no rates (paper)", *["-"] * 5, "1.5", "no rates printed"]


@pytest.mark.parametrize("text, words", [
    ("[paper\n", "not TOML"), ('[paper]\nname = "x"\n', "arxiv"),
    (CLAIMS.read_text() + '\n[[row]]\ntable = 2\nlabel = "half"\nbenchmark = "b"\nrates = ["1"]\naverage_length = "1"\n', "half"),
    (CLAIMS.read_text() + '\n[[claim]]\nwhat = "loss"\nstated = "0"\n', "what, stated, here"),
])
def test_bad_claims(tmp_path, text, words):
    path = tmp_path / "claims.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        R.claims(path)


def test_a_benchmark_says_how_it_was_called_but_not_where_its_numbers_went(monkeypatch):
    for words in (["--no-gpu", "--json", "/somewhere/x.json"], ["--json=/somewhere/x.json", "--no-gpu"]):
        monkeypatch.setattr("sys.argv", ["/home/me/benchmarks/memory.py", *words])
        assert benchmark.command() == "python benchmarks/memory.py --no-gpu"
