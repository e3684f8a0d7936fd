"""Closed loops on the real simulators: scripted demonstrations, a small policy, its floors, run records. `repro simulate calvin | libero`.

Everything is written below one folder and found again by a rerun: demonstrations in the official format, the store, checkpoints, outcomes,
records, a film. Scripted demonstrations and, on CALVIN, a CPU renderer: nothing here may be compared with a paper's row.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from repro import attention, attention_figures, experiments, looking, machine, pictures, run_records, vla_experiments
from repro.data import calvin_import, libero_hdf5
from repro.data import libero as libero_data
from repro.data.episodes import Store
from repro.evaluation import chains, floors, offline, protocols, suites
from repro.evaluation.policies import about as about_policy
from repro.evaluation.policies import load_policy, minutes
from repro.gaze.annotate import annotate
from repro.intervals import bootstrap
from repro.machine import UserError
from repro.models import reconvla_pictures, tiny_training
from repro.models.keypoint_policy import KeypointPolicy
from repro.models.towers import resize
from repro.scoring import watch
from repro.sims import calvin_layout, environments
from repro.sims.base import Launch
from repro.sims.worker import Worker
from repro.training import launch

CANNOT = "published numbers: scripted demonstrations, a small policy"  # what no record of this module may be compared with


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    per_task: int  # demonstrations of each CALVIN task
    tasks: tuple[str, ...] | None  # of CALVIN; None: all 34
    steps: int  # of training, batches of 64
    chains: int  # official CALVIN sequences, from the first
    wide: int  # LIBERO demonstrations a task in the wide layout ...
    official: int  # ... and from official init states
    trials: int  # LIBERO episodes a task and layout
    minutes: float  # of wall clock: one training run of the small policy at most
    max_steps: int = 360
    vla_steps: int = 30  # of training a VLA: ReconVLA's rows on CALVIN, VGGT-VLA's on LIBERO
    vla_minutes: float = 2.0
    parts: tuple[int, ...] = (20, 20, 10, 60)  # ReconVLA's tiny parts: steps of tower, VAE and language model; pictures


ELEVEN = ("open_drawer", "close_drawer", "move_slider_left", "move_slider_right", "turn_on_led", "turn_off_led", "turn_on_lightbulb",
          "turn_off_lightbulb", "lift_red_block_table", "lift_blue_block_table", "lift_pink_block_table")  # over half of the first tasks
SIZES = {
    "smoke": Size(1, ("open_drawer", "turn_on_led"), 30, 2, 2, 1, 1, 2, 40),
    "cpu": Size(12, ELEVEN, 3500, 40, 36, 12, 30, 12, vla_steps=2500, vla_minutes=60, parts=(1200, 2000, 3000, 12_000)),
    "t4": Size(60, None, 40_000, 1000, 200, 40, 50, 240, vla_steps=20_000, vla_minutes=300, parts=(1200, 2000, 3000, 12_000)),
}
LIBERO_TASKS = ("pick_up_the_alphabet_soup_and_place_it_in_the_basket", "pick_up_the_bbq_sauce_and_place_it_in_the_basket")
NOISE = (0.0, 0.1, 0.25)  # scales of the noise that demonstrations are disturbed with; what is learned is the undisturbed action
VARIANTS = {"keypoint policy": {"preset": "keypoints"}, "blind": {"preset": "keypoints-blind"}}
RECONVLA = ("baseline", "whole", "gaze", "blind")  # rows that are trained on CALVIN's own pictures
OFFLINE, ATTENTION = "offline action error, held-out episodes in CALVIN's pictures", "attention, held-out episodes in CALVIN's pictures"
VGGT_VLA = ("none", "vggt", "blind")  # rows of notebook 06 that are trained on LIBERO's


def train(work: Path, store: Store, size: Size, seed: int, log, **model) -> dict[str, KeypointPolicy]:
    """The seeing policy and one trained blind, from their last checkpoints; `minutes` and `trained` on each."""
    configs = {name: launch.write_config(
        work / "train" / f"{name.split()[0]}.json", name=name, store=store.folder, folder=work / "train" / name.split()[0],
        model={**chosen, **model, "state_dim": len(store.stats["observation.state"]["mean"])},
        train={"seed": seed, "steps": size.steps, "batch_size": 64, "learning_rate": 1e-3, "warmup": 100, "budget_minutes": size.minutes},
    ) for name, chosen in VARIANTS.items()}
    launch.jobs(list(configs.values()), log=log)
    found = {}
    for name, config in configs.items():
        found[name] = load_policy(config.with_suffix(""))
    return found


def reconvla(work: Path, store: Store, size: Size, seed: int, parts: Path | str | None, log) -> dict[str, object]:
    """ReconVLA, tiny, in four rows. parts: a folder of its small parts (None: learned here, in minutes); they have seen the play table
    alone, so the tower trains along (`freeze_vision=False`), which departs from the paper; the VAE stays as it is (`looked` says how well
    it rebuilds CALVIN's pictures)."""
    tower, vae, language, pictures = size.parts
    given = Path(parts) if parts else tiny_training.pretrain(
        work / "parts", tower_steps=tower, vae_steps=vae, language_steps=language, pictures=pictures, log=log)
    configs = {row: launch.write_config(
        work / "train" / f"reconvla-{row}.json", name=f"reconvla {row}", store=store.folder, folder=work / "train" / f"reconvla-{row}",
        parts=str(given), model={"preset": "tiny", **experiments.ROWS[row], "freeze_vision": False, "cache_features": False},
        train={"seed": seed, "steps": size.vla_steps, "batch_size": 32, "learning_rate": 1.5e-3, "budget_minutes": size.vla_minutes,
               "checkpoint_minutes": 5, "cpu_bfloat16": True},
    ) for row in RECONVLA}
    launch.jobs(list(configs.values()), log=log)
    return {f"ReconVLA tiny, {row}": load_policy(config.with_suffix("")) for row, config in configs.items()}


def looked(work: Path, models: dict[str, object], store: Store, validation: Store, settings: dict, seed: int) -> list[dict]:
    """Records of ReconVLA's rows on held-out episodes: action error, attention (and its figure), how the frozen VAE rebuilds the gaze
    targets."""
    frames, found, maps = looking.attention_frames(validation, 200), [], {}
    for name, model in models.items():
        begun = time.monotonic()
        told = {OFFLINE: offline.action_error(model, validation)}
        if model.config.recon and model.config.target == "gaze":
            told[OFFLINE] |= rebuilt(model, frames)
        if not model.config.blind:
            maps[name] = looking.attention_of(model, frames)
            told[ATTENTION] = attention.averages(looking.attention_columns(maps[name], frames, seed))
        for benchmark, metrics in told.items():
            record = run_records.record(
                "real simulators", name, benchmark=benchmark, data=store.meta["name"], data_hash=store.hash, seed=seed, metrics=metrics,
                config={**settings, "policy": about_policy(model), "simulator": {"recorded": True}}, minutes=minutes(model, begun),
                simulator="CALVIN", renderer=settings["renderer"], not_comparable_with=[CANNOT])
            run_records.save(record, work / "runs")
            found.append(record)
    if maps:
        draw_attention(work, frames, maps, {r["variant"]: r["metrics"] for r in found if r["benchmark"] == ATTENTION})
    return found


def draw_attention(work: Path, frames: list[dict], maps: dict[str, np.ndarray], numbers: dict[str, dict]) -> Path:
    """Three held-out frames, the rows side by side, their numbers over all frames below: work/figures/calvin_attention.png. maps: row ->
    (frames, rows, columns); numbers: row -> metrics of attention.averages."""
    short, shots = lambda name: name.split(", ")[-1], [len(frames) * part // 6 for part in (1, 3, 5)]
    rows = [(frames[i]["task"], frames[i]["observation.images.static"], {short(name): maps[name][i] for name in maps},
             frames[i]["gaze.box"]) for i in shots]
    note = f"{attention.caption()} {looking.CAUTION}"
    path = work / "figures" / "calvin_attention.png"
    pictures.keep(attention_figures.compare(rows, note, {short(name): metrics for name, metrics in numbers.items()}), path)
    return path


def rebuilt(model, frames: list[dict]) -> dict[str, dict]:
    """Peak signal-to-noise ratio of the gaze targets through the VAE, in dB, a mean over frames with its interval over episodes; beside it
    that of the frames' mean picture."""
    with torch.inference_mode():
        shown = np.stack([reconvla_pictures.target_pictures(model, frame)["target_gaze"] for frame in frames])
        through = np.concatenate([model.targets(frames[i : i + 32]) for i in range(0, len(frames), 32)])
    shown = np.stack([resize(one, *through.shape[1:3]) for one in shown]).astype(np.float32)
    episodes, found = np.array([frame["episode"] for frame in frames]), {}
    for name, other in (("through the VAE", through), ("the mean picture", np.broadcast_to(shown.mean(0), shown.shape))):
        decibel = 10 * np.log10(255**2 / np.maximum(np.square(shown - other).mean((1, 2, 3)), 1e-9))
        means = [float(decibel[episodes == e].mean()) for e in np.unique(episodes)]
        low, high = bootstrap(means)
        found[f"gaze targets, {name}, dB"] = {"value": float(np.mean(means)), "n": len(means), "low": low, "high": high}
    return found


def vggt_vla(work: Path, store: Store, size: Size, seed: int, log) -> dict[str, object]:
    """VGGT-VLA, tiny, in three rows."""
    configs = {row: launch.write_config(
        work / "train" / f"vggt-{row}.json", name=f"vggt_vla {row}", store=store.folder, folder=work / "train" / f"vggt-{row}",
        model=vla_experiments.model_of(store, row, "vggt_tiny"),
        train={"seed": seed, "steps": size.vla_steps, "warmup": min(100, size.vla_steps // 10), "budget_minutes": size.vla_minutes,
               "checkpoint_minutes": 5, "cpu_bfloat16": True},
    ) for row in VGGT_VLA}
    launch.jobs(list(configs.values()), log=log)
    return {f"VGGT-VLA tiny, {row}": load_policy(config.with_suffix("")) for row, config in configs.items()}


def replayed(store: Store) -> dict[str, np.ndarray]:
    """The last demonstration of each task, (T, 7) actions."""
    last = {info.task_id: info.index for info in store.episodes}
    return {task: store.read(index, columns=["action"]).columns["action"] for task, index in last.items()}


def policies(models: dict[str, KeypointPolicy], recorded: dict[str, np.ndarray], sentences: dict[str, str], seed: int) -> dict[str, object]:
    """The models, then what any score must be seen beside, then the expert. recorded: one demonstration a task, to be replayed; where
    a task has none the replay stands still, and its name says in how many."""
    told, of = tuple(sorted(set(sentences.values()))), ("keypoint policy", "ReconVLA tiny, gaze", "VGGT-VLA tiny, vggt")
    shuffled = {f"{name}, shuffled instruction": floors.ShuffledInstruction(models[name], told, seed) for name in of if name in models}
    replay = floors.replay(recorded, sentences)
    return {**models, **shuffled, replay.name: replay,
            "random actions": floors.RandomPolicy(seed), "constant action": floors.ConstantPolicy(),
            "scripted expert (ceiling)": floors.ExpertPolicy(seed)}


def untrained(store: Store, held_out: range, starts: dict[str, list]) -> str:
    """For the record: that none of the store's demonstrations began from a held-out init state, in any layout; a UserError where one did,
    or began from one of the wide starts."""
    states = [info.info.get("state") for info in store.episodes]
    if not all(states):
        raise UserError(f"{store.folder} does not say where its demonstrations began", "the state of each scripted episode",
                        f"{sum(not state for state in states)} of {len(states)} without", "import the scripted files again")
    used = {int(state["init"]) for state in states}
    also = sorted(used & set(held_out))
    if twice := [state for found in starts.values() for state in suites.begun(store, found)] or also:
        raise UserError("what is evaluated was trained on", f"init states {held_out[0]} ... {held_out[-1]} and wide seeds without a "
                        f"demonstration", f"init states {also}" if also else f"{len(twice)} starts of demonstrations",
                        f"remove {store.folder.parent.parent} and begin again")
    return f"{held_out[0]} ... {held_out[-1]}; the {len(states)} demonstrations began from {len(used)} others, {min(used)} ... {max(used)}"


def roll_out(work: Path, scored: dict[str, object], starts: dict[str, list], how: Launch, sentences: dict[str, str], store: Store,
             settings: dict, seed: int, log) -> list[dict]:
    """Evaluate every policy on the same chains of every benchmark; one record each, saved."""
    torch.set_num_threads(1)
    with Worker(how) as worker:
        simulator = worker.about
    renderer = ", ".join([simulator["renderer"], *(f"{k} {v}" for k, v in simulator["versions"].items()), simulator["assets"]])
    found = []
    for benchmark, begin in starts.items():
        for name, policy in scored.items():
            folder = work / "outcomes" / benchmark.replace(" ", "_").replace(",", "") / name.replace(" ", "_")
            outcomes = chains.evaluate(policy, how, begin, folder, settings["max_steps"], instructions=sentences, name=name, workers=2,
                                       renew=True, execute=settings.get("execute"), log=log)
            record = run_records.record(
                "real simulators", name, benchmark=benchmark, data=store.meta["name"], data_hash=store.hash,
                config={**settings, "policy": about_policy(policy), "simulator": simulator}, seed=seed,
                metrics=chains.summarise(outcomes, seed), minutes=minutes(policy, seconds=chains.spent(folder)),
                simulator=simulator["simulator"], renderer=renderer, not_comparable_with=[CANNOT])
            record["outcomes"] = "".join(str(outcome.length) for outcome in outcomes)  # of each chain: policies can be paired
            run_records.save(record, work / "runs")
            found.append(record)
    return found


# ---- CALVIN ------------------------------------------------------------------------------------------------------------------------

def calvin(work: Path, size: Size, seed: int = 0, renderer: str = "tiny", parts: Path | str | None = None,
           log: Callable[[str], None] = print) -> list[dict]:
    """CALVIN scene D under the official rules: demonstrations, training, the first `size.chains` official sequences.

    parts: where ReconVLA's tiny parts lie (`repro ablation` makes them in work/<profile>/parts); None: made here."""
    start = lambda scene: environments.launch("calvin", scene=scene, renderer=renderer)
    how, sentences = start("D"), protocols.calvin_validation_sentences(environments.calvin_home())
    data = work / "demonstrations"
    if not data.is_dir():
        calvin_layout.write(data, ("D",), size.tasks, size.per_task, 1, "D", seed, 2, start, log)
    stores = []
    for split in ("training", "validation"):
        stores.append(calvin_import.ensure_store(data, split, work / "store" / split, log=log))
        if "gaze.box" not in stores[-1].columns:
            annotate(stores[-1].folder, "truth")
            stores[-1] = Store(stores[-1].folder)
    store, validation = stores
    rows = reconvla(work, store, size, seed, parts, log)
    models = rows | train(work, store, size, seed, log, word_dropout=0.5)
    settings = {"protocol": "mees/calvin evaluate_policy.py", "sequences": f"first {size.chains} of 1000", "max_steps": size.max_steps,
                "wording": "official validation sentences", "demonstrations": "scripted", "renderer": renderer}
    starts = {f"CALVIN D, official sequences, {size.max_steps} steps": protocols.calvin_chains(size.chains)}
    scored = policies(models, replayed(store), sentences, seed)
    found = roll_out(work, scored, starts, how, sentences, store, settings, seed, log)
    found += looked(work, rows, store, validation, settings, seed)
    chain = next(iter(starts.values()))[0]
    film(models["keypoint policy"], how, chain, sentences, size.max_steps, work / "films" / "calvin.gif")
    return found


# ---- LIBERO ------------------------------------------------------------------------------------------------------------------------

def libero(work: Path, size: Size, seed: int = 0, assets: str | None = None, log: Callable[[str], None] = print) -> list[dict]:
    """Two libero_object tasks, one policy: noisy demonstrations in the wide and official layouts, held-out starts of both.

    Official init states hardly move the target: a blind policy and a replay solve them. The wide layout moves it by 7 cm each way.
    """
    options = {"suite": "libero_object", **({"assets": assets} if assets else {})}
    how, parts = environments.launch("libero", **options), []
    held_out = range(libero_hdf5.INITS - min(10, -(-size.trials // 2)), libero_hdf5.INITS)
    raw = lambda suite: environments.launch("libero", **{**options, "suite": suite, "orientation": "raw"})
    for layout, count in (("wide", size.wide), ("official", size.official)):
        parts.append(work / "demonstrations" / layout)
        if not parts[-1].is_dir():
            part = parts[-1].with_name(f"{layout}.part")  # all tasks or none
            shutil.rmtree(part, ignore_errors=True)
            libero_hdf5.write(part, "libero_object", LIBERO_TASKS, count, layout, seed, 2, raw, NOISE, 0.6, 4, inits=held_out[0],
                              log=log)
            part.replace(parts[-1])
    store = libero_data.ensure_store(parts, work / "store" / "training")
    starts = {f"LIBERO-Object, 2 tasks, {layout} layout": [
        ({"suite": "libero_object", "task": task, "init": held_out[i % len(held_out)], "layout": layout,
          "seed": libero_hdf5.WIDE_SEED + i}, (task,))
        for task in LIBERO_TASKS for i in range(size.trials if layout == "wide" else len(held_out))] for layout in ("wide", "official")}
    inits = untrained(store, held_out, starts)
    models = vggt_vla(work, store, size, seed, log) | train(work, store, size, seed, log, chunk=8)
    sentences = {task: task.replace("_", " ") for task in LIBERO_TASKS}
    protocol = protocols.libero_protocol("openpi")
    settings = {"protocol": "10 settle steps not counted, 8 actions a query, re-seeded each episode",
                "max_steps": min(size.max_steps, protocol.max_steps["libero_object"]), "demonstrations": "scripted, noise and pushes",
                "init states": inits}
    with Worker(how) as worker:  # what is replayed: the expert, undisturbed, from official init state 0
        played = {task: worker.ask_and_wait("apply", "repro.sims.libero_expert:record",
                                            [{"task": task, "init": 0, "layout": "official", "seed": seed}, seed, {"every": 0}])
                  for task in LIBERO_TASKS}
    recorded = {task: np.asarray(episode["actions"], np.float32) for task, episode in played.items()}
    found = roll_out(work, policies(models, recorded, sentences, seed), starts, how, sentences, store, settings, seed, log)
    film(models["keypoint policy"], how, next(iter(starts.values()))[0], sentences, settings["max_steps"], work / "films" / "libero.gif")
    return found


# ---- films -------------------------------------------------------------------------------------------------------------------------

def film(policy, how: Launch, chain: tuple, sentences: dict[str, str], max_steps: int, path: Path) -> Path:
    """A GIF of the static camera, a picture a query, up to the chain's first failure; its last picture stays."""
    images = [Image.fromarray(shot).quantize(64) for *_, shot in watch(policy, how, chain, sentences, max_steps)]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    images[0].save(part, format="GIF", save_all=True, append_images=images[1:], duration=[120] * (len(images) - 1) + [1500], loop=0)
    part.replace(path)
    return path


def run(name: str, profile: str, seed: int = 0, log: Callable[[str], None] = print, **options) -> list[dict]:
    """What `repro simulate` does; everything lies in work/<profile>/sims/<name>, of another seed than 0 in a folder of its own there."""
    if profile not in SIZES:
        raise UserError(f"no size {profile!r}", " | ".join(SIZES), profile)
    if name not in ("calvin", "libero"):
        raise UserError(f"no real simulator {name!r}", "calvin | libero", name)
    return (calvin if name == "calvin" else libero)(_folder(profile, name, seed), SIZES[profile], seed, log=log, **options)


def _folder(profile: str, name: str, seed: int) -> Path:
    return machine.work(profile) / "sims" / name / (f"seed{seed}" if seed else "")


def publish(profile: str, seed: int = 0, log: Callable[[str], None] = print) -> Path:
    """Put the records, figures and films of a seed into results/sims, ready to commit, in place of the same simulator's that lie there;
    those of an edited tree are refused."""
    target, folders = machine.root() / "results" / "sims", [_folder(profile, name, seed) for name in ("calvin", "libero")]
    found = {path: run_records.load(path) for folder in folders for path in sorted(folder.glob("runs/*.json"))}
    if not found:
        raise UserError("no records of the real simulators", f"{folders[0]}/runs/*.json", "none", "repro simulate")
    edited = [path.name for path, record in found.items() if "+changes" in record["commit"]]
    if edited:
        raise UserError("records of an edited tree are not published", "commit, then repro simulate again", edited[:3])
    fresh = {record["simulator"] for record in found.values()}
    for path in (target / "runs").glob("*.json"):
        if run_records.load(path)["simulator"] in fresh:
            path.unlink()
    seen = [path for folder in folders for kind in ("films/*.gif", "figures/*.png") for path in sorted(folder.glob(kind))]
    for path in [*found, *seen]:
        place = target / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        log(f"{place.relative_to(machine.root())}")
    return target
