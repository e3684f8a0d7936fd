"""README says what the records say, and points at files that exist. Run: pytest tests/test_readme.py"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from repro import (
    ablation_statistics,
    ablation_tables,
    change_ablation,
    experiments,
    looking,
    readme,
    real_tables,
    run_records,
    vla_ablation,
)
from repro.data.episodes import Episode, StoreWriter
from repro.evaluation import gaze
from repro.machine import UserError
from repro.models import tiny
from repro.sims.tabletop import scenes
from repro.training import launch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
READING = (ROOT / "results" / "README.md").read_text()  # how to read the tables; speeds


def test_the_results_are_the_records():
    section = README.split(readme.START)[1].split(readme.END)[0].strip()
    assert section == ablation_tables.readme_section(ROOT / "results" / "cpu").strip()
    for word in ("Not comparable with the paper", "| baseline |", "| gaze |", "| gaze, shuffled instruction |", "| random actions |",
                 "| scripted expert (ceiling) |"):
        assert word in section, word


def test_vggt_vlas_block_and_the_check_are_the_records():
    section = README.split(readme.VLA_START)[1].split(readme.VLA_END)[0].strip()
    assert section == vla_ablation.readme_section(ROOT / "results" / "cpu").strip()
    measured = ("Not comparable with LIBERO", "wide: success %", "| none |", "| graph |", "| vggt |", "| blind |",
                "| replay of one demonstration |")
    for word in measured if (ROOT / "results" / "cpu" / "runs" / "vggt_vla").is_dir() else ("Not measured yet",):
        assert word in section, word
    said = README.split(readme.CHECK_START)[1].split(readme.CHECK_END)[0].strip()
    assert said == f"```\n{(ROOT / 'results' / 'cpu' / 'check.txt').read_text()}```" and "closed loop" in said
    record = json.loads((ROOT / "results" / "cpu" / "check.json").read_text())
    assert said == f"```\n{record['text']}```" and "+changes" not in record["commit"] and len(record["lines"]) == 15
    assert f"without a backbone, {record['checkpoint']['step']:,} steps on the grocery table" in README
    libero = json.loads((ROOT / "results" / "sims" / "check.json").read_text())
    found = {line["name"]: (line["status"], line["found"]) for line in libero["lines"]}
    assert libero["text"] == (ROOT / "results" / "sims" / "check.txt").read_text() and "+changes" not in libero["commit"]
    assert len(found) == 12 and [name for name, (status, _) in found.items() if status != "OK"] == ["own rollouts"]
    assert f"there it looks: {found['looks'][1]})" in README and found["own rollouts"][1].startswith("2 of 3 ")


def test_the_job_for_your_own_libero_data_trains_on_what_an_import_gives(tmp_path, monkeypatch):
    """LIBERO's files hold no gaze boxes: README's job must not ask for any, and one that does is told how not to."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "STORE", 20, {"source": "test"}) as writer:
        for _ in range(2):
            pictures = {f"observation.images.{name}": rng.integers(0, 256, (6, 128, 128, 3), dtype=np.uint8)
                        for name in ("static", "wrist")}
            numbers = {"observation.state": rng.standard_normal((6, 8)).astype(np.float32),
                       "action": np.sign(rng.standard_normal((6, 7))).astype(np.float32)}
            writer.add(Episode("put the milk in the basket", {**pictures, **numbers}))
    job = json.loads(re.search(r"echo '(\{[^']*?\})' > vggt.json", README, re.S)[1])
    job["train"] |= {"steps": 2, "measure_every": 1}
    monkeypatch.chdir(tmp_path)
    Path("vggt.json").write_text(json.dumps(job))
    assert launch.train_from_config("vggt.json", lambda line: None).finished
    del job["model"]["point_weight"]
    Path("other.json").write_text(json.dumps({**job, "folder": "other"}))
    with pytest.raises(UserError, match='no gaze boxes(.|\n)*"point_weight": 0'):
        launch.train_from_config("other.json", lambda line: None)


def test_the_job_for_your_own_calvin_data_trains_on_an_import_with_boxes(tmp_path, monkeypatch):
    """And one that is of other data, or does not say where the tiny parts are, is told so in the words of a config file."""
    from diffusers import AutoencoderKL
    from safetensors.torch import save_file

    rng = np.random.default_rng(0)
    for folder, size, more in (("work/smoke/store/training", 15, {"gaze.box": np.tile(np.float32([0.2, 0.2, 0.6, 0.6]), (6, 1)),
                                                                  "gaze.source": ["truth"] * 6}), ("libero", 8, {})):
        with StoreWriter(tmp_path / folder, 30, {"source": "test"}) as writer:
            pictures = {f"observation.images.{name}": rng.integers(0, 256, (6, 96, 96, 3), dtype=np.uint8) for name in ("static", "wrist")}
            numbers = {"observation.state": rng.standard_normal((6, size)).astype(np.float32),
                       "action": np.sign(rng.standard_normal((6, 7))).astype(np.float32)}
            writer.add(Episode("open the drawer", {**pictures, **numbers, **more}))
    vae = AutoencoderKL.from_config(tiny.VAE)
    for name, weights in (("tower", tiny.TinyTower().state_dict()), ("vae", vae.state_dict())):
        place = tmp_path / "work/smoke/parts" / name
        place.mkdir(parents=True)
        save_file(weights, place / f"{name}.safetensors")
        (place / "about.json").write_text("{}")
    vae.save_config(place)
    job = json.loads(re.search(r"echo '(\{[^']*?\})' > gaze.json", README, re.S)[1])
    job["train"]["steps"] = 2
    monkeypatch.chdir(tmp_path)
    Path("gaze.json").write_text(json.dumps(job))
    assert launch.train_from_config("gaze.json", lambda line: None).finished
    del job["parts"]
    for store, said in ((job["store"], r'the tiny vision and vae (.|\n)*"parts": "work/smoke/parts"'),
                        ("libero", r'libero holds other data (.|\n)*15 numbers(.|\n)*found: 8(.|\n)*"vggt_tiny"')):
        Path("other.json").write_text(json.dumps({**job, "store": store, "folder": "other"}))
        with pytest.raises(UserError, match=said):
            launch.train_from_config("other.json", lambda line: None)


def test_the_change_agents_block_is_the_records():
    section = README.split(readme.CHANGE_START)[1].split(readme.CHANGE_END)[0].strip()
    assert section == change_ablation.readme_section(ROOT / "results" / "cpu").strip()
    measured = ("Not comparable with LEVIR-CC", "| upstream, caption none |", "| guide, caption none |", "| ours, caption none |", "random",
                "differencing", "ceiling")
    for word in measured if (ROOT / "results" / "cpu" / "runs" / "change_agent").is_dir() else ("Not measured yet",):
        assert word in section, word


def test_the_ablations_tables_are_the_records():
    folder = ROOT / "results" / "cpu"
    assert (folder / "ablation.md").read_text() == ablation_tables.markdown(ablation_statistics.load(folder / "runs" / "ablation"))


def test_what_the_prose_says_of_the_ablation_is_in_the_records():
    """Numbers in sentences around the tables, which no command writes."""
    records = ablation_statistics.load(ROOT / "results" / "cpu" / "runs" / "ablation")
    rows = [r for r in records if r["config"]["row"] in experiments.ROWS]
    rates = {}
    for record in rows:
        for name, metric in record["metrics"].items():
            if name.startswith("task/") and metric["n"]:
                rates.setdefault((record["benchmark"], record["variant"], name), []).append(metric["value"])
    apart = max(100 * (max(found) - min(found)) for found in rates.values())
    assert f"up to {apart:.0f} points" in README and f"up to {apart:.0f} points" in READING
    looked = [r for r in rows if r["benchmark"] == ablation_statistics.ATTENTION and "jumps" in r["frames"]]
    name = next(name for name in looked[0]["frames"]["jumps"] if name.startswith("jump rate of the map (over"))
    jumps = ablation_statistics.frames(looked, name)
    means = [100 * ablation_statistics.mean(found, (0, 1), True)["value"] for found in jumps.values()]
    most = list(jumps)[int(np.argmax(means))]
    assert f"in {min(means):.0f} to {max(means):.0f} % of the steps (the most: `{most}`)" in READING.replace("\n", " ")
    by_row = ablation_statistics.lengths(records, ablation_statistics.chain_benchmarks(records)[0])
    apart = [by_row["gaze"][seed].mean() - by_row["baseline"][seed].mean() for seed in sorted(by_row["gaze"])]
    for text in (README, READING):
        said = text.replace("\n", " ")
        assert f"{apart[0]:+.2f} " in said and ", ".join(f"{one:+.2f}" for one in apart[1:-1]) in said and f"{apart[-1]:+.2f}" in said
    counted = lambda row: len(by_row.get(row, ()))
    assert [counted(row) for row in ("baseline", "whole", "gaze", "gaze+pretrain")] == [5] * 4
    texts = [" ".join(text.split()) for text in (README, READING)]
    everywhere = lambda *said: [one for one in said for text in texts if one not in text]
    told = ablation_statistics.told_instead(records, ablation_statistics.chain_benchmarks(records)[0])
    solved, of = (sum(one[key] for one in told if not one["opposite"]) for key in ("solved", "attempts"))
    assert f"{solved} of {of} attempts" in texts[0] and f"{solved} of {of}. Where" in texts[1]
    pairs = {(one["seed"], one["task"]): (one["solved"], one["attempts"], *one["right"])
             for one in told if one["opposite"] and one["attempts"]}
    assert pairs == {(0, "close_drawer"): (0, 9, 21, 22), (3, "move_slider_right"): (12, 12, 21, 22), (3, "turn_on_led"): (15, 15, 24, 24),
                     (3, "turn_off_lightbulb"): (2, 11, 14, 25)}
    assert not everywhere("0 of 9", "21 of 22", "12 of 12", "15 of 15", "2 of 11", "told right")
    benchmark = ablation_statistics.chain_benchmarks(records)[0]
    blind, later = ([next(r["metrics"] for r in records if (r["variant"], r["benchmark"], r["seed"]) == ("blind", benchmark, seed))[
        f"task/{name}"] for name in ("move_slider_left", "move_slider_right", "close_drawer")] for seed in (1, 2))
    assert all(one["value"] == 1 for one in blind) and not everywhere("29 of 29") and sum(one["n"] for one in blind) == 29
    assert (later[2]["value"], later[2]["n"]) == (1, 10) and not everywhere("10 of 10")
    assert sum(round(one["value"] * one["n"]) for one in later[:2]) == 3 and sum(one["n"] for one in later[:2]) == 15
    assert "(slider 3 of 15)" in texts[1]
    at = lambda row, seed=1: f"{by_row[row][seed].mean():.3g}"
    assert (at("blind"), at("baseline"), at("baseline+pretrain"), at("gaze+pretrain")) == ("0.32", "1.14", "2.77", "2.85")
    assert not everywhere("0.32", "2.77", "2.85") and "of its 1.14 tasks in a row 0.32 are left" in texts[1]
    least, most = min(by_row["gaze"].values(), key=np.mean).mean(), max(by_row["gaze"].values(), key=np.mean).mean()
    assert f"`gaze`: {least:.2f} to {most:.2f}" in texts[0]
    ends = {r["variant"]: r["learning"]["recon"][-1] for r in records if r["benchmark"] == ablation_statistics.OFFLINE and r["seed"] == 1
            and r["config"]["row"] == "gaze"}
    right, *wrong = (ends[name] for name in sorted(ends, key=lambda name: "%" in name and int(name.split()[1])))
    assert f"of seed 1 it ends at {right:.3f} with right boxes, at {wrong[0]:.3f}, {wrong[1]:.3f} and {wrong[2]:.3f} with wrong" in texts[1]
    every = [r["learning"]["recon"][-1] for r in records if (r["benchmark"], r["variant"]) == (ablation_statistics.OFFLINE, "gaze")]
    assert f"range over ({min(every):.3f} to {max(every):.3f})" in texts[1]
    drawn = ablation_statistics.frames(records, looking.REBUILT_OWN, ablation_statistics.REBUILT)
    off = {name: f"{ablation_statistics.mean(drawn[name], (0, np.inf), True)['value']:.3g}" for name in sorted(drawn)}
    dose = [off["gaze"], *(off[f"gaze, {share} % wrong boxes"] for share in (8, 33, 100))]
    assert f"by {dose[0]} a pixel with right boxes, by {dose[3]} with" in texts[0]
    assert "is {} with right boxes, {}, {} and {} with 8, 33 and 100 %".format(*dose) in texts[1]
    wrong = {share: by_row[f"gaze, {share} % wrong boxes"] for share in (8, 33, 100)}
    assert [f"{wrong[100][seed].mean() - by_row['gaze'][seed].mean():+.2f}" for seed in (1, 2)] == ["+0.63", "-0.45"]
    assert "(+0.63)" in texts[0] and "(-0.45; less with each share" in texts[0]
    one, two = ([f"{by_row[name][seed].mean():.3g}" for name in ("gaze", *(f"gaze, {share} % wrong boxes" for share in wrong))]
                for seed in (1, 2))
    assert "seed 1 has {} with right boxes and {}, {}, {} with wrong ones".format(*one) in texts[1]
    assert f"seed 2 has {two[0]} and {', '.join(two[1:])}, less with each" in texts[1] and sorted(two, reverse=True) == two
    plain = [f"{by_row[name][1].mean():.3g}" for name in ("baseline plain", "gaze plain")]
    assert f"`gaze plain` has {plain[1]} and `baseline plain` {plain[0]}" in texts[0]
    assert f"`baseline plain` has {plain[0]} in D" in texts[1]
    apart = ablation_statistics.difference(by_row["gaze plain"], by_row["baseline plain"], (-5, 5))
    assert "{:+.2f}, these very models [{:+.2f}, {:+.2f}]".format(apart["value"], *apart["alone"]) in texts[1]
    before = by_row["gaze+pretrain"]
    assert f"missed on average ({np.mean(list(before.values())):.2f}; two of five seeds reach it)" in texts[0]
    assert sum(values.mean() >= 3 for values in before.values()) == 2
    for other, later in (("baseline", "+1.57 [+1.28, +1.86]"), ("gaze", "+1.65 [+1.04, +2.26]")):
        apart = ablation_statistics.difference({k: v for k, v in before.items() if k}, by_row[other], (-5, 5))
        assert f"{apart['value']:+.2f} [{apart['low']:+.2f}, {apart['high']:+.2f}]" == later and later in texts[1]
    apart = ablation_statistics.difference(by_row["mask"], by_row["baseline"], (-5, 5))
    mass = ablation_statistics.frames(records, ablation_statistics.MASS)
    looks = ablation_statistics.difference(mass["mask"], mass["baseline"], (-1, 1), True)
    assert apart["of"] == [0, 1, 2] and apart["positive"] == 3
    for one in (apart, looks):
        assert not everywhere(f"{one['value']:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]")
    assert [f"{mass[name][1].mean():.3f}" for name in ("gaze untaught", "baseline untaught")] == ["0.065", "0.079"]
    assert "0.065 and 0.079" in texts[0] and "0.079 of `baseline untaught`, 0.065 of `gaze untaught`" in texts[1]
    assert (at("gaze untaught"), at("baseline untaught")) == ("0.63", "0.96")
    assert (at("baseline+pretrain", 2), at("gaze+pretrain", 2)) == ("2.98", "2.82") and not everywhere("2.98", "2.82", "2.88")
    assert f"{ablation_statistics.mean(by_row['baseline+pretrain'], (0, 5))['value']:.3g}" == "2.88"
    few = {name: list(by_row[name]) for name in {r["variant"] for r in rows} if name in by_row and counted(name) < 5}
    assert few.pop("mask") == [0, 1, 2] and few.pop("baseline+pretrain") == [1, 2]
    assert {tuple(few.pop(name)) for name in ("blind", *(f"gaze, {share} % wrong boxes" for share in wrong))} == {(1, 2)}
    assert few and all(seeds == [1] for seeds in few.values()), "rows of one seed are of seed 1"
    apart = ablation_statistics.difference(by_row["gaze+pretrain"], by_row["baseline+pretrain"], (-5, 5))
    assert not everywhere(f"{apart['value']:+.2f} [{apart['low']:+.2f}, {apart['high']:+.2f}]") and apart["of"] == [1, 2]
    assert not everywhere(f"seed 2 {at('blind', 2)}")
    way = {step: ablation_statistics.lengths(records, name, step) for step, name in {
        (r["config"]["step"], r["benchmark"]) for r in records if "step" in r["config"]}}
    for row, seed, said in (("baseline", 1, "at the 50 % mark it does {} % of single tasks, at the end {} %"),
                            ("gaze", 2, "would stop at 50 %, with {} %, and ends with {} %")):
        assert said.format(*(f"{100 * way[step][row][seed].mean():.1f}" for step in (1250, 2500))) in texts[1]
        learned = next(r for r in records if (r["benchmark"], r["variant"], r["seed"]) == (ablation_statistics.OFFLINE, row, seed))
        assert ablation_statistics.patient_stop(learned["learning"]) == {"baseline": 0.45, "gaze": 0.5}[row]
    evaluating = {}
    for r in rows:
        if r["seed"] and r["config"]["row"] != "floors":
            key = r["variant"].split(", shuffled")[0].split(", images")[0], r["seed"]
            evaluating[key] = evaluating.get(key, 0) + r["minutes"] - r["training_minutes"]
    assert f"took {min(evaluating.values()):.0f} to {max(evaluating.values()):.0f} minutes to evaluate" in texts[1]
    trained = {(r["variant"], r["seed"]): r["training_minutes"] for r in rows if r["benchmark"] == ablation_statistics.OFFLINE}
    assert f"{max(evaluating[key] + trained[key] for key in evaluating):.0f} with the evaluation" in texts[1]
    gains = [mark["success gain"] for mark in ablation_statistics.on_the_way(records)]
    assert f"{min(g['value'] for g in gains):+.2f} to {max(g['value'] for g in gains):+.2f} of single tasks" in texts[1]
    half = [(g["high"] - g["low"]) / 2 for g in gains]
    assert f"intervals of {min(half):.2f} to {max(half):.2f} either way" in texts[1]
    stops = [ablation_statistics.patient_stop(r["learning"]) for r in records
             if r["benchmark"] == ablation_statistics.OFFLINE and r["variant"] == "baseline"]
    assert f"end after {100 * min(stops):.0f} to {100 * max(stops):.0f} % of the steps" in texts[1]


def test_scene_d_stands_where_others_do():
    a, b, c, d = (scenes.scene(name) for name in "ABCD")
    assert (d.drawer_x, d.button_xy, d.led_xyz) == (b.drawer_x, c.button_xy, c.led_xyz)
    off = [abs(mine - its) for mine, its in ((d.switch_x, a.switch_x), (d.lightbulb_xyz[0], a.lightbulb_xyz[0]),
                                             *zip(d.cabinet_x, a.cabinet_x, strict=True))]
    assert off == pytest.approx([0.02] * 4) and "(here 2 cm off)" in README


def test_the_real_simulators_block_is_the_records():
    section = README.split(readme.REAL_START)[1].split(readme.REAL_END)[0].strip()
    assert section == real_tables.real_section(ROOT / "results" / "sims").strip()
    for word in ("CALVIN", "LIBERO", "TinyRenderer", "stand-in assets", "Not comparable with", "blind", "replay", "n = "):
        assert word in section, word
    found = {r["variant"]: r["metrics"] for r in run_records.load_all(ROOT / "results" / "sims" / "runs")
             if "average length" in r["metrics"] and "CALVIN" in r["benchmark"]}
    average = {name: f"{metrics['average length']['value']:.2f}" for name, metrics in found.items()}
    row = lambda name: average[f"ReconVLA tiny, {name}"]
    said = " ".join(README.split(readme.REAL_END)[1].split("### Gaze boxes")[0].split())
    assert f"`gaze` {row('gaze')}, `whole` {row('whole')}, baseline {row('baseline')} tasks in a row" in said
    assert f"Trained blind they have {row('blind')} left, and the small policy {average['blind']}" in said
    shuffled = [found[f"{name}, shuffled instruction"]["1/5"]["value"] for name in ("keypoint policy", "ReconVLA tiny, gaze")]
    assert [round(40 * rate) for rate in shuffled] == [1, 1]
    assert found["keypoint policy"]["1/5"]["value"] == 0.5
    whole, base = (found[f"ReconVLA tiny, {name}"]["average length"] for name in ("gaze", "baseline"))
    assert base["low"] < whole["value"] < base["high"] and whole["low"] < base["value"] < whole["high"], "intervals that hold one another"


def test_the_differences_to_the_official_code_and_the_speeds_of_the_tiny_model_are_the_records():
    record = json.loads((ROOT / "results" / "benchmarks" / "exactness.json").read_text())
    assert record["met"] and "+changes" not in record["commit"]
    found = record["largest absolute difference"]
    section = READING.split("against the official code\n")[1].split("## ")[0]
    for name in ("denoiser", "denoiser, paper's sizes", "cross-entropy", "VAE posterior", "sampler, 1000 steps, relative"):
        assert f"{found[name]:.1e}" in section, name
    assert found["denoiser loss"] == found["denoiser loss, paper's sizes"] == found["reconstruction"] == 0
    assert all(found[name] for name in found if name.endswith("equal"))
    cache, memory = (json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text()) for name in ("cache", "memory"))
    assert f"{cache['environment_steps_per_second']['median']:,}/s" in READING and f"**{cache['ratio']:.1f}x, below target**" in READING
    assert memory["how"] == "computed" and "**computed**" in READING
    for case in ("t4", "paper, NF4"):
        assert f"{memory['cases'][case]['with context and slack']:.1f} GiB" in READING, case
    share = found["denoiser, paper's sizes"] / found["denoiser, paper's sizes, largest value"]
    assert f"denoiser to {share:.1e} of its largest value at the paper's sizes" in README and f"it is {share:.1e} of the largest" in section
    target = "cached features and latents make ReconVLA's tiny training"
    assert f"{target} {cache['ratio']:.1f} times as fast, not 1.5" in README


def test_the_speeds_and_differences_of_vggt_vla_are_the_records():
    exact, memory = (json.loads((ROOT / "results" / "benchmarks" / f"vggt_{name}.json").read_text()) for name in ("exactness", "memory"))
    row = lambda beginning: next(line for line in READING.splitlines() if line.startswith(f"| {beginning}"))
    notes, full = (ROOT / "papers" / "vggt_vla" / "notes.md").read_text(), exact["cases"]["full"]
    others = max(one["largest difference"] for name, one in exact["cases"].items() if name != "full")
    assert exact["met"] and (full["layers"], full["width"]) == (24, 1024)
    assert max(full["largest difference"], others) < exact["target"] == 1e-4
    for said in (f"{full['largest difference']:.1e} at VGGT-1B's sizes", f"{full['numbers compared']:,} numbers", f"{others:.1e} at most"):
        assert said in row("VGGT's aggregator"), said
    for one in exact["cases"].values():
        assert f"| {one['largest difference']:.1e} |" in notes
    assert memory["how"] == "computed" and exact["commit"] and memory["commit"]
    cases, times = memory["cases"], memory["language"]
    one, other, each = (cases[name] for name in ("vggt_qwen3", "vggt_qwen3_dinov2", "vggt_qwen3, language in each step"))
    gib = lambda case: f"{case['with context and slack']:.1f} GiB"
    assert one["fits"] and other["fits"] and (one["batch"], other["batch"]) == (16, 12)
    said = row("memory of a training step in 15 GiB, fp16: `vggt_qwen3`")
    assert f"{gib(one)}; {gib(other)}, **computed**" in said
    assert f"{one['trainable_millions']:.1f} M and {other['trainable_millions']:.1f} M parameters train" in said
    said = row("`vggt_qwen3`, sentences encoded once")
    cached, slow = times["cached"]["seconds"], times["in each step"]["seconds"]
    assert f"memory {gib(one)} against {gib(each)}" in said and f"{cached:.2f} s against {slow:.2f} s ({slow / cached:.2f}x;" in said
    assert f"frozen weights {one['frozen weights']:.2f} GiB against {each['frozen weights']:.2f} GiB" in said
    language = each["all_millions"] - one["all_millions"]  # a tied matrix is counted once
    assert language == pytest.approx(596.0, abs=0.1)
    assert each["frozen weights"] - one["frozen weights"] == pytest.approx(2 * language * 1e6 / 2**30, abs=0.002)  # float16


@pytest.mark.parametrize("folder", [ROOT, ROOT / "results"])
def test_every_link_picture_and_file_that_is_named_exists(folder):
    text = (folder / "README.md").read_text()
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", text) if not t.startswith("http")]
    assert len(targets) > 5
    assert [t for t in targets if not (folder / t.split("#")[0]).exists()] == []
    for target, heading in (t.split("#") for t in targets if "#" in t):
        headings = re.findall(r"^#+ (.*)$", (folder / target).read_text(), flags=re.MULTILINE)
        assert heading in [re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings], heading
    named = re.findall(r"`((?:papers|results/cpu|src|benchmarks|tests)/[\w./-]*)`", text)
    assert [n for n in named if not (ROOT / n).exists()] == []


def test_every_notebook_is_listed():
    for path in (ROOT / "notebooks").glob("*.py"):
        assert f"`{path.stem}`" in README


def test_no_committed_record_is_of_an_edited_tree():
    for path in (ROOT / "results").glob("*/runs/**/*.json"):
        assert "+changes" not in run_records.load(path)["commit"], path


def test_the_gaze_block_is_the_records():
    section = README.split(gaze.START)[1].split(gaze.END)[0].strip()
    records = gaze.ordered(ROOT / "results" / "gaze")
    assert section == gaze.readme_section(records).strip()
    assert "| 92 | 67 |" in section and "| none |" in section and "| all |" in section
    assert "not run" in section or any("grounding" in record["config"]["detector"] for record in records)
