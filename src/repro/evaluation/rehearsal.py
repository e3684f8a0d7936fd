"""Demonstrations in the simulator: played again, begun again by the policy, and one learned by heart by a fresh model. For `check`.

A single demonstration shows no way back onto its path: what learns it alone drifts off by a little, sees what it was never shown, and is
lost, however low its loss. So the simulator also plays it with pushes of the hand, each state labelled with the way back (`around`), and
`learn` says how many such plays a model was trained on; `pushed=0` leaves the demonstration alone.
"""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from repro.data.batches import Batches
from repro.data.calvin_frames import BLOCKS, block_order
from repro.data.episodes import Episode, Store, StoreWriter
from repro.evaluation import answers, chains, protocols, suites
from repro.evaluation.offline import recorded_chunks
from repro.machine import UserError
from repro.models.sentences import build as words_of
from repro.sims import environments
from repro.sims.base import Launch
from repro.sims.worker import opened
from repro.training.loop import TrainConfig, train

EXECUTE = 4  # actions of a chunk before it looks again
TRIED = 3  # demonstrations that are played again
AROUND = 12  # plays with pushes
PUSHED, EVERY, HARD = 4, 14, 0.7  # steps of a push, steps from one to the next at least, its strength in action units at most
BACK = 0.5  # share of the way back to the path in one step
STEPS = (60, 1200)  # of training, at least and at most
FLIPS = {"as they should": (slice(None), slice(None)), "upside down": (slice(None, None, -1), slice(None)),
         "mirrored": (slice(None), slice(None, None, -1)), "turned by 180 degrees": (slice(None, None, -1), slice(None, None, -1))}


@dataclass(frozen=True)
class Start:
    """Where a demonstration of a store begins."""

    index: int  # of the episode
    task: str  # as its simulator calls it
    scene: str  # or LIBERO's suite
    state: dict  # for the simulator's reset


@dataclass(frozen=True)
class Learned:
    """How learning one demonstration went."""

    steps: int
    minutes: float  # of training
    error: float    # mean absolute error of the six motion numbers, over the demonstration's own pictures
    floor: float    # the same of its mean action
    plays: int      # with pushes, that it was trained on besides


def starts(store: Store) -> list[Start]:
    """TRIED episodes of one scene, of different tasks where there are, whose start is known and whose actions are those executed:
    scripted ones without a disturbance, recorded ones whose file holds the simulator's states, or the play table's."""
    table = store.meta.get("simulator", "calvin_env") in protocols.CALVINS
    known = {(info.scene, info.task_id): (info.scene, info.task_id) for info in store.episodes} if table else suites.placed(store)[0]
    at = lambda info: known.get((info.scene, info.task_id))
    told = lambda info: info.info.get("state") or info.info.get("start") or (table and "observation.environment_state" in store.columns)
    able = [info for info in store.episodes if not info.info.get("disturbed") and at(info) and told(info)]
    able = [info for info in able if at(info)[0] == at(able[0])[0]]
    first = {at(info): info for info in reversed(able)}
    chosen = sorted(able, key=lambda info: (first[at(info)] is not info, info.index))[:TRIED]
    said = lambda info: dict(info.info.get("state") or info.info.get("start") or _on_the_table(store, info))
    state = lambda info: said(info) | ({"task": at(info)[1]} if "task" in said(info) else {})  # the benchmark's name, not the file's
    return [Start(info.index, at(info)[1], at(info)[0], state(info)) for info in chosen]


def _on_the_table(store: Store, info) -> dict:
    """The first state of an episode of the play table or CALVIN."""
    columns = store.read(info.index, ["observation.state", "observation.environment_state"]).columns
    robot, scene = columns["observation.state"][0], columns["observation.environment_state"][0]
    return {"robot_obs": robot, "scene_obs": _in_scene_order(scene, info.scene)}


def _in_scene_order(scene_obs: np.ndarray, scene: str) -> np.ndarray:
    """(24,) with its blocks red, blue, pink, as in a store, to the order of the scene's simulator."""
    blocks = scene_obs[6:].reshape(3, 6)[[BLOCKS.index(colour) for colour in block_order(scene)]]
    return np.concatenate([scene_obs[:6], blocks.ravel()])


def simulator_of(store: Store, name: str | None = None, scene: str | None = None) -> Launch:
    """The simulator that a store was made in (or `name`), its pictures of the data's sizes."""
    made_in = store.meta.get("simulator", "calvin_env")
    name = name or {"grocery table": "grocery", "calvin_env": "calvin"}.get(made_in, made_in)
    if name not in ("tabletop", "grocery", "calvin", "libero"):
        raise UserError(f"no simulator {name!r}", "tabletop | grocery | calvin | libero | none", name)
    if name in ("tabletop", "calvin"):
        return environments.launch(name, scene=scene or store.episodes[0].scene)
    suite = (scene or suites.suite_of(store)) if name == "libero" else suites.GROCERY
    return environments.launch(name, suite=suite, **suites.sizes_of(store))


def distance(store: Store, where: Launch, start: Start, camera: str) -> dict[str, float]:
    """Mean difference (grey levels) of the data's first picture and the simulator's, by how the latter is turned."""
    column = f"observation.images.{camera}"
    data = store.read(start.index, [column]).columns[column][0].astype(np.float32)
    with opened(where) as worker:
        drawn = worker.call("reset", start.state)[column]
    drawn = cv2.resize(drawn, data.shape[1::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
    return {name: float(np.abs(drawn[way] - data).mean()) for name, way in FLIPS.items()}


def play(store: Store, where: Launch, start: Start) -> int | None:
    """Steps after which the demonstration's own actions have done its task; None where they have not."""
    actions = np.asarray(store.read(start.index, ["action"]).columns["action"], np.float64)
    with opened(where) as worker:
        worker.call("reset", start.state, render=False)
        worker.call("start_task")
        for step, action in enumerate(actions, 1):
            worker.call("step", action, render=False)
            if worker.call("done", start.task):
                return step
    return None


def around(store: Store, where: Launch, start: Start, seed: int = 0, count: int = AROUND) -> list[Episode]:
    """The demonstration played again with pushes, its actions corrected by the way back; those plays of `count` that still succeed.

    What the simulator does not show (gaze boxes) is the demonstration's of the same step.
    """
    demo, found = store.read(start.index), []
    actions, path, unit = demo.columns["action"], demo.columns["observation.state"][:, :3], _metres(store)
    with opened(where) as worker:
        for play in range(count):
            rng, seen = np.random.default_rng([seed, play]), worker.call("reset", start.state)
            worker.call("start_task")
            shown, said, push, until, done = [], [], np.zeros(3), 0, False
            for t, action in enumerate(actions):
                if t >= until + EVERY - PUSHED and rng.random() < 0.2:
                    push, until = rng.uniform(-HARD, HARD, 3), t + PUSHED
                label = action.astype(np.float64)
                label[:3] = np.clip(label[:3] + BACK * (path[t] - seen["observation.state"][:3]) / unit, -1, 1)
                shown.append(seen)
                said.append(label.astype(np.float32))
                seen = worker.call("step", np.clip(label + np.append(push * (t < until), np.zeros(4)), -1, 1))
                if done := bool(worker.call("done", start.task)):
                    break
            if done:
                columns = {name: np.stack([one[name] for one in shown]) if name in shown[0] else values[: len(shown)]
                           for name, values in demo.columns.items()}
                columns |= {"action": np.stack(said)} | ({"info.drawn": np.ones(len(said), bool)} if "info.drawn" in columns else {})
                found.append(Episode(demo.task, columns, demo.info))
    return found


def _metres(store: Store) -> float:
    """Of an action of 1, as the store's metadata give it (data/calvin_import.py, data/libero.py)."""
    units = store.meta.get("action", {})
    metres = units.get("metres_per_unit") or units.get("metres")
    if not metres:
        raise UserError(f"{store.folder} does not say how far an action of 1 goes", '"metres" or "metres_per_unit" of "action" in its meta',
                        units, "import the data again")
    return float(metres)


def fresh(policy, store: Store) -> torch.nn.Module:
    """A model of the same config with first weights; frozen parts are the policy's own."""
    config, kind = policy.config, type(policy).__name__
    sentences = sorted({episode.task for episode in store.episodes})
    if kind == "VGGTVLA":
        words = words_of(config, sentences) if config.language == "tiny" else policy.words
        return type(policy)(config, store.stats, words, policy.tower, policy.blocks if config.backbone_weights else None)
    if kind == "ReconVLA":
        frozen = {"vision": copy.deepcopy(policy.vision_tower), "vae": policy.vae, "tokenizer": policy.text.tokenizer}
        return type(policy).build(config, store.stats, instructions=sentences, **frozen)
    return type(policy)(config, store.stats)


def learn(policy, store: Store, start: Start, where: Launch, minutes: float, log: Callable[[str], None] = lambda line: None,
          seed: int = 0, pushed: int = AROUND) -> tuple[torch.nn.Module, Learned]:
    """(a fresh model, trained on one demonstration for about `minutes`, together with those of `pushed` plays with pushes that succeed (0:
    on the demonstration alone); how that went). Nothing is written that stays."""
    torch.manual_seed(seed)
    model, episode = fresh(policy, store).to(policy.device), store.read(start.index)
    plays = around(store, where, start, seed, pushed) if pushed else []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with StoreWriter(place / "store", store.fps, {**store.meta, "name": "one demonstration"}) as writer:
            for one in [Episode(episode.task, episode.columns, episode.info), *plays]:
                writer.add(one)
        config = _training(policy, model, batches := _batches(place / "store", model, policy, seed), minutes, seed)
        summary = train(model, batches, place / "run", config, log=log)
    return model, Learned(summary.step, summary.minutes, *_errors(model, episode), len(plays))


def perform(policy, store: Store, where: Launch, begun: list[Start], log: Callable[[str], None] = lambda line: None
            ) -> tuple[list[int | None], int]:
    """(for each start the steps after which the policy has done its task, None where it has not; the steps that it was given)."""
    limit = 2 * max(store.episodes[start.index].length for start in begun) + 20
    sentences = {start.task: store.episodes[start.index].task for start in begun}
    with tempfile.TemporaryDirectory() as folder:
        ended = chains.evaluate(policy, where, [(start.state, (start.task,)) for start in begun], folder, limit, 1, sentences,
                                execute=EXECUTE, workers=int(where.python is not None), log=log)
    return [outcome.steps[0] if outcome.length else None for outcome in ended], limit


def _batches(folder: Path, model, policy, seed: int) -> Batches:
    size = min(64, getattr(policy, "trained", {}).get("train", {}).get("batch_size", 32))
    return Batches(Store(folder), size, model.config.chunk, seed, model.prepare, workers=1, log=lambda line: None)


def _training(policy, model, batches: Batches, minutes: float, seed: int) -> TrainConfig:
    """The run's own learning rate; as many steps as fit into the minutes here, so that the rate comes down to 0 in time."""
    took = []
    for i in range(3):
        begun = time.monotonic()
        model.loss(batches(i))["loss"].backward()
        took.append(time.monotonic() - begun)
    model.zero_grad(set_to_none=True)
    least, most = STEPS
    steps = int(min(most, max(least, 0.8 * 60 * minutes / (1.2 * min(took)))))
    rate = getattr(policy, "trained", {}).get("train", {}).get("learning_rate", 1e-3)
    return TrainConfig(seed=seed, steps=steps, batch_size=batches.batch_size, learning_rate=rate, warmup=min(50, steps // 4),
                       budget_minutes=1.5 * minutes + 1)


def _errors(model, episode: Episode) -> tuple[float, float]:
    """Mean absolute error of the motion over the demonstration's own pictures, of the model and of the mean action."""
    columns = episode.columns
    drawn = np.flatnonzero(columns.get("info.drawn", np.ones(len(columns["action"]), bool)))
    seen = [{name: values[t] for name, values in columns.items() if name.startswith("observation.")} for t in drawn]
    said = answers.asked(model, [answers.Frame(0, one, episode.task, columns["action"][t:]) for t, one in zip(drawn, seen, strict=True)])
    truth = recorded_chunks(columns["action"], drawn, said.shape[1])[..., :6]
    return float(np.abs(said[..., :6] - truth).mean()), float(np.abs(truth - truth.mean((0, 1))).mean())
