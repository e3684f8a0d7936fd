"""The VGGT-VLA experiment of notebook 06: its rows, their jobs, and a first look at what they do on the grocery table.

The question is what a geometry backbone adds. Rows differ in the backbone alone: none (tokens as they were fused), the graph, VGGT's
alternating blocks; "blind" is the last one trained without pictures, the floor of a policy that cannot see. A low held-out loss is no
success: a blind policy can have the lower one. What counts is measured in notebook 09, beside its floors.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from repro import attention, attention_figures, looking, machine, pictures, scoring
from repro.data import libero_hdf5
from repro.data.batches import held_out_episodes
from repro.data.episodes import Store
from repro.evaluation import chains, suites
from repro.evaluation.policies import load_policy
from repro.intervals import wilson
from repro.machine import UserError
from repro.models import sentences
from repro.models.vggt_vla import PRESETS, TRAIN, VGGTVLA
from repro.profiles import Profile
from repro.sims import base
from repro.training import checkpoint, launch
from repro.training.loop import read_metrics

ROWS = {  # name -> what it changes in the preset
    "none": {"backbone": "none", "backbone_weights": ""},
    "graph": {"backbone": "graph", "backbone_weights": ""},
    "vggt": {},  # as the preset is, which `named` sees to
    "blind": {"blind": True, "point_weight": 0.0},  # with the preset's own backbone
}
HELD_OUT = 0.1  # share of the episodes that is not trained on
MAX_STEPS = 280  # of a rollout, as in libero_object
FEW = 20  # rollouts for which starting processes of their own is not worth it
WIDE = (suites.GROCERY, "libero_object")  # suites that have the wide layout
EXECUTE = 4  # actions of each chunk of 8, for every row; chosen without a record (papers/vggt_vla/notes.md)


def data(work: Path) -> Store:
    """The store that notebook 02 makes."""
    place = work / "store" / "libero"
    if not (place / "meta" / "repro.json").is_file():
        raise UserError(f"{place} is missing", "a store of LIBERO data, or of the grocery table", "none",
                        "run notebook 02 first (repro run --only 02), or `repro libero import FILES STORE`")
    return Store(place)


def named(rows: str, preset: str = "vggt_tiny", usual: Iterable[str] = tuple(ROWS)) -> list[str]:
    """The rows of a comma-separated text; "" for the `usual` ones. A preset without VGGT's blocks has no row "vggt"."""
    has = [row for row in ROWS if row != "vggt" or PRESETS[preset].backbone == "vggt"]
    chosen = [row.strip() for row in rows.split(",") if row.strip()] or [row for row in usual if row in has]
    if unknown := [row for row in chosen if row not in has]:
        raise UserError(f"preset {preset} has no row {unknown[0]!r}", ", ".join(has), rows)
    return chosen


def folder(work: Path, row: str, seed: int = 0, preset: str = "vggt_tiny") -> Path:
    """Where one training run lies."""
    return work / "train" / (f"{preset.replace('_', '-')}-{row}" + (f"-seed{seed}" if seed else ""))


def model_of(store: Store, row: str, preset: str) -> dict:
    """The job's model: the preset, what the row changes, the data's state, and no pointing where the data have no gaze boxes."""
    named(row, preset)
    given = {"preset": preset, **ROWS[row], "state_dim": len(store.stats["observation.state"]["mean"])}
    return given if "gaze.box" in store.columns else {**given, "point_weight": 0.0}


def job(settings: Profile, work: Path, row: str, seed: int = 0, preset: str = "", minutes: float | None = None, **train) -> Path:
    """The config file of one training run, as `repro train` takes it. train: fields of TrainConfig over the preset's and profile's own.

    preset: "" for the profile's. minutes: wall clock of this session (default: the profile's).
    """
    store, preset = data(work), preset or settings.vla_preset
    place, steps = folder(work, row, seed, preset), train.get("steps", settings.vla_steps)
    warmup = min(TRAIN[preset].get("warmup", 50), max(1, steps // 10))
    clock = {"budget_minutes": settings.budget_minutes if minutes is None else minutes, "checkpoint_minutes": settings.checkpoint_minutes}
    return launch.write_config(
        place.parent / f"{place.name}.json", name=row, folder=place, store=store.folder, held_out=HELD_OUT,
        model=model_of(store, row, preset),
        train={"seed": seed, "steps": steps, "warmup": warmup, "measure_every": max(5, steps // 40), "best": True, "cpu_bfloat16": True,
               **clock, **train})  # fmt: skip


def jobs(settings: Profile, work: Path, rows: list[str], seed: int = 0, preset: str = "", **train) -> list[Path]:
    """The config files of these rows. They share the session: with fewer devices than rows each gets its part of the time."""
    turns = math.ceil(len(rows) / (len(machine.capabilities()) or machine.cores()))
    return [job(settings, work, row, seed, preset, settings.budget_minutes / turns, **train) for row in rows]


def encode(store: Store, preset: str) -> str:
    """Encode the training sentences once, where the preset's language model is frozen; what that gave, in a line."""
    config, told = PRESETS[preset], sorted({episode.task for episode in store.episodes})
    if config.language == "tiny":
        words = sentences.build(config, told).tokenizer
        return f"{len(told)} sentences, {len(words)} tokens: word embeddings that train along, since nothing random is ever frozen"
    file = launch.sentences_file(store, config)
    table = sentences.build(config, told, file).table
    numbers = sum(states.numel() for states in table.states.values())
    return (f"{len(told)} sentences by {config.language}, states of {table.about['hidden_size']} numbers, {2 * numbers / 1e6:.1f} MB in "
            f"{file.name}; from here on the language model is not in memory")


def load(work: Path, rows: list[str], seed: int = 0, preset: str = "vggt_tiny", best: bool = False) -> dict[str, VGGTVLA]:
    """Trained rows from their last checkpoints, or those of the lowest held-out loss. On each: `trained`, how far; `minutes`, how long."""
    found, store = {}, data(work)
    for row in rows:
        place = folder(work, row, seed, preset)
        found[row] = load_policy(checkpoint.need(place / "best" if best else place, "06"), store, place)
    return found


def there(work: Path, rows: list[str], seed: int = 0, preset: str = "vggt_tiny") -> list[str]:
    """Those of the rows that have a checkpoint."""
    places = {row: folder(work, row, seed, preset) for row in rows}
    return [row for row, place in places.items() if place.is_dir() and checkpoint.latest(place, lambda line: None)]


def parameters(models: dict[str, VGGTVLA]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): parameters of each part of each model, then what trains of all of them."""
    counts, names = {}, {name: dict(model.named_children()) for name, model in models.items()}
    for row, model in models.items():
        for name, values in model.named_parameters():
            part = name.split(".")[0] if name.split(".")[0] in names[row] else "queries, types, cameras"
            counts[part, row] = counts.get((part, row), 0) + values.numel()
    table = [[part, *(f"{counts[part, row]:,}" if (part, row) in counts else "-" for row in models)]
             for part in dict.fromkeys(part for part, _ in counts)]
    sums = [[text, *(f"{sum(p.numel() for p in model.parameters() if p.requires_grad or not only):,}" for model in models.values())]
            for text, only in (("trainable", True), ("in all", False))]
    return ["part", *models], table + sums


def held_out_table(work: Path, models: dict[str, VGGTVLA], seed: int, preset: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows): last and lowest held-out loss of each run, and at which step."""
    rows = []
    for row in models:
        lines = [line for line in read_metrics(folder(work, row, seed, preset) / "metrics.jsonl") if "held_out" in line]
        low = min(lines, key=lambda line: line["held_out"])
        rows.append([row, str(lines[-1]["step"]), f"{lines[-1]['held_out']:.3f}", f"{low['held_out']:.3f} (step {low['step']})",
                     f"{lines[-1]['held_out_l1']:.3f}", f"{lines[-1]['seconds'] / 60:.1f}"])
    return ["row", "steps", "held-out loss", "lowest", "held-out mean error of an action", "minutes"], rows


# ---- attention ---------------------------------------------------------------------------------------------------------------------


def held_out_frames(store: Store, count: int) -> list[dict]:
    """About `count` frames with a true gaze box (any, where the data have no boxes) from the episodes that are not trained on."""
    aside = held_out_episodes(store.episodes, HELD_OUT)
    return looking.attention_frames(store, count, [episode for episode in store.episodes if episode.index in aside])


def attention_columns(model: VGGTVLA, store: Store, count: int, source: str = "queries") -> tuple[dict[str, np.ndarray], list[str]]:
    """The numbers of each held-out frame, with every control (attention.frame_numbers), and its task.

    source: where its action "queries" look, or the instruction's "words" (models/vggt_vla_attention.py).
    """
    frames = held_out_frames(store, count)
    columns = looking.attention_columns(looking.attention_of(model, frames, source=source), frames)
    return columns, [frame["task_id"] for frame in frames]


def attention_figure(models: dict[str, VGGTVLA], store: Store, count: int, note: str, shown: int = 3, source: str = "queries", log=print):
    """Figure: the same held-out frames for each model, and under each column the numbers over all of them; maps alone, and a line that says
    so, where the data have no gaze boxes."""
    frames = held_out_frames(store, count)
    maps = {row: looking.attention_of(model, frames, source=source) for row, model in models.items()}
    picks = [len(frames) * i // shown for i in range(shown)]
    if "gaze.box" not in store.columns:
        log(f"{store.folder} has no gaze boxes: maps are drawn, and nothing is measured")
        return _maps_alone([frames[i] for i in picks], {row: found[picks] for row, found in maps.items()})
    numbers = {row: attention.averages(looking.attention_columns(found, frames)) for row, found in maps.items()}
    rows = [(frames[i]["task"], frames[i]["observation.images.static"], {row: maps[row][i] for row in maps}, frames[i]["gaze.box"])
            for i in picks]
    return attention_figures.compare(rows, f"{note} {looking.CAUTION}", numbers)


def _maps_alone(frames: list[dict], maps: dict[str, np.ndarray]):
    """Figure: the frames, each with every model's map, on one colour scale."""
    top = max(attention_figures.LEAST, *(float(attention_figures.relative(one).max()) for found in maps.values() for one in found))
    shots, labels = [], []
    for i, frame in enumerate(frames):
        image = frame["observation.images.static"]
        shots += [image, *(attention_figures.overlay(image, found[i], top=top) for found in maps.values())]
        labels += [frame["task"], *maps]
    return pictures.sheet(shots, labels, 1 + len(maps), "attention, without gaze boxes to measure it")


# ---- closed loop -------------------------------------------------------------------------------------------------------------------


def plan(settings: Profile, store: Store, layout: str = "wide", seed: int = 0, suite: str = "", log=print) -> suites.Plan:
    """The evaluation of policies trained on `store`: its own suite and tasks, pictures of its size, starts that no demonstration had.

    layout: "wide" where the suite has one, else the official init states, which demonstrations may have had too (`suites.begun`). seed: of
    the wide starts. suite: which, where the data are of several. Tasks that the benchmark cannot be asked for are told to `log`.
    """
    found, unclear = suites.tasks_of(store)
    for why in unclear:
        log(f"not evaluated: {why}")
    if not (suite or len(found) == 1) or (suite or next(iter(found))) not in found:
        raise UserError(f"{store.folder}: which suite is evaluated?", "data of one of LIBERO's suites, or which of several",
                        ", ".join(found) or "; ".join(unclear[:3]),
                        "give suite=" + " or ".join(found) if found else "repro evaluate --suite SUITE --tasks NAME,NAME --no-floors")
    suite = suite or next(iter(found))
    layout = layout if suite in WIDE else "official"
    here = suites.plan_of(suite, layout, settings.vla_episodes, found[suite], seed=seed, execute=EXECUTE, **suites.sizes_of(store))
    if layout == "wide" and (twice := suites.begun(store, here.chains)):
        raise UserError(f"{store.folder} has demonstrations of starts that are evaluated", "none", f"{len(twice)}, the first {twice[0]}",
                        "another seed, or write the demonstrations again with a seed of 0 ... 8")
    return here


def layouts(suite: str) -> tuple[str, ...]:
    """Those that a suite can be evaluated in."""
    return ("wide", "official") if suite in WIDE else ("official",)


def floors_of(row: str, model: VGGTVLA | None, store: Store, here: suites.Plan, seed: int = 0) -> dict[str, object]:
    """What a score is seen beside: `model` itself with blanked pictures and shuffled sentences; replay, random, constant, expert. With None
    the model, those that need its weights cannot act: see `needs_weights`."""
    replayed, began = suites.demonstrations(store, here)
    found = suites.beside(model, replayed, here, seed, began=began)
    return {f"{row}, {name}" if needs_weights(name) else name: floor for name, floor in found.items()}


def needs_weights(floor: str) -> bool:
    """Whether a floor of this name is a trained policy, hindered."""
    return floor.endswith(("images blanked", "shuffled instruction"))


def repeated(store: Store, starts: list) -> int | None:
    """How many of the starts a demonstration began from; None where the store does not say where its demonstrations began."""
    told = any("init" in info.info.get("state", {}) for info in store.episodes)
    return len(suites.begun(store, starts)) if told else None


def roll_out(settings: Profile, work: Path, models: dict[str, VGGTVLA], seed: int = 0, layout: str = "wide", log=print) -> list[dict]:
    """A run record of each model from the same starts, and of the floors of the last one that sees; saved in work/runs. Where the data are
    of several suites, of each suite."""
    store, seeing, found = data(work), [row for row, model in models.items() if not model.config.blind], []
    for suite in suites.tasks_of(store)[0] or [""]:
        here = plan(settings, store, layout, seed, suite, log)
        floors = floors_of(seeing[-1], models[seeing[-1]], store, here, seed) if seeing else {}
        about = {"profile": settings.name, "starts of demonstrations": repeated(store, here.chains)}
        found += suites.score({**models, **floors}, here, work, store, seed=seed, simulators=settings.simulators, renew=True, config=about,
                              log=log)
    return found


# ---- a first look at rollouts --------------------------------------------------------------------------------------------------------


def starts(store: Store, each: int, seed: int = 0) -> list[tuple[dict, tuple[str]]]:
    """What `chains.evaluate` takes: `each` starts of every task that was trained on, wide layout, none of them a demonstration's."""
    tasks = sorted({episode.task_id for episode in store.episodes})
    return [(libero_hdf5.start(task, "grocery", "wide", seed, libero_hdf5.UNSEEN + i), (task,)) for task in tasks for i in range(each)]


def first_look(settings: Profile, work: Path, models: dict[str, VGGTVLA], seed: int = 0, log=print) -> dict[str, list[chains.Outcome]]:
    """Outcomes of each model on the same starts of the grocery table; {} where the data are of another simulator."""
    store = data(work)
    if store.meta.get("simulator") != "grocery table":
        log(f"the data are of {store.meta.get('simulator', 'a simulator that is not named')}: no rollout here, see notebook 09")
        return {}
    told, begin = {episode.task_id: episode.task for episode in store.episodes}, starts(store, settings.vla_rollouts, seed)
    workers = settings.workers if settings.workers > 1 and len(begin) > FEW else 0
    return {row: chains.evaluate(model, base.grocery(), begin, work / "outcomes" / "first look" / row, MAX_STEPS, settings.simulators, told,
                                 name=row, renew=True, workers=workers, log=log)
            for row, model in models.items()}  # fmt: skip


def success_table(found: dict[str, list[chains.Outcome]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows): successes of each row with their 95 % interval (Wilson), then the floors, which are not measured here."""
    rows = []
    for row, outcomes in found.items():
        done, n = sum(outcome.success[-1] for outcome in outcomes), len(outcomes)
        low, high = wilson(done, n)
        rows.append([row, f"{done} of {n}", f"{100 * done / n:.0f} [{100 * low:.0f}, {100 * high:.0f}]"])
    floors = [[name, "-", "measured in notebook 09"] for name in ("shuffled instruction", "replay of one demonstration", "random actions")]
    return ["policy", "solved", "%"], rows + floors


def film(model: VGGTVLA, work: Path, seed: int = 0, count: int = 8):
    """Figure: one rollout of the first task, `count` pictures from start to end."""
    store = data(work)
    told, (state, tasks) = {episode.task_id: episode.task for episode in store.episodes}, starts(store, 1, seed)[0]
    shots = scoring.watch(model, base.grocery(), (state, tasks), told, MAX_STEPS)
    picks = [shots[i] for i in np.linspace(0, len(shots) - 1, min(count, len(shots))).round().astype(int)]
    title = f"{told[tasks[0]]}: {shots[-1][0]}"
    return pictures.sheet([image for *_, image in picks], [f"step {step}" for _, step, _ in picks], columns=4, title=title)
