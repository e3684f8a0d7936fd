"""Offline action error: how far the predicted chunk lies from the recorded one, where no simulator can be stepped.

A low error is not success: in closed loop a blind policy with a lower error can do worse than a seeing one. Floors belong
beside it (a constant action, a blind model, another episode's instruction), and the table says "offline" on every row.
"""

import numpy as np

from repro import clock
from repro.data.episodes import Store
from repro.intervals import bootstrap


class ConstantAction:
    """The floor that ignores everything: the mean training action, gripper by majority, repeated over the chunk."""

    def __init__(self, store: Store, chunk: int):
        actions = np.concatenate([store.read(info.index, columns=["action"]).columns["action"] for info in store.episodes])
        self.action = np.append(actions[:, :6].mean(0), np.sign(actions[:, 6].sum()) or 1.0).astype(np.float32)
        self.chunk = chunk

    def act(self, observations: list[dict], instructions: list[str]) -> np.ndarray:
        """(B, K, 7) float32, the same for every observation."""
        return np.broadcast_to(self.action, (len(observations), self.chunk, 7)).copy()


def recorded_chunks(actions: np.ndarray, starts: np.ndarray, chunk: int) -> np.ndarray:
    """(T, 7) actions -> (S, K, 7): the K actions from each start; past the end the last action is repeated, as in training."""
    return actions[np.minimum(starts[:, None] + np.arange(chunk), len(actions) - 1)]


def action_error(policy, store: Store, every: int = 5, shuffle_instructions: bool = False, log=print) -> dict[str, dict]:
    """Errors of `policy` on every `every`-th frame of each episode of `store`.

    Returns {"motion error": .., "gripper accuracy": ..}, each {"value", "n", "low", "high"}: the mean absolute error of the six
    motion dimensions over the whole chunk (in action units, [-1, 1]) and the share of right gripper signs. n counts episodes;
    the 95 % interval is a bootstrap over episodes, because frames of one episode are not independent.
    `shuffle_instructions` gives every episode the sentence of another task (the next one in the store that differs). Minutes at most in
    every profile: out of time, it begins again in the next session.
    """
    motion, gripper, progress = [], [], clock.Progress("action error", len(store), "episodes", log)
    sentences = [info.task for info in store.episodes]
    for position, info in enumerate(store.episodes):
        clock.check()
        episode = store.read(info.index)
        starts = np.arange(0, info.length, every)
        seen = {key: column for key, column in episode.columns.items() if key.startswith("observation")}
        observations = [{key: column[start] for key, column in seen.items()} for start in starts]
        sentence = _other(sentences, position) if shuffle_instructions else info.task
        predicted = policy.act(observations, [sentence] * len(starts))
        truth = recorded_chunks(episode.columns["action"], starts, predicted.shape[1])
        motion.append(float(np.abs(predicted[..., :6] - truth[..., :6]).mean()))
        gripper.append(float((np.sign(predicted[..., 6]) == np.sign(truth[..., 6])).mean()))
        progress(position + 1)
    return {"motion error": _measured(motion, (0.0, 2.0)), "gripper accuracy": _measured(gripper, (0.0, 1.0))}


def _other(sentences: list[str], position: int) -> str:
    """The next sentence, going round, that differs from the one at `position`; itself only if all are equal."""
    turned = sentences[position + 1 :] + sentences[:position]
    return next((sentence for sentence in turned if sentence != sentences[position]), sentences[position])


def _measured(values: list[float], bounds: tuple[float, float]) -> dict:
    low, high = bootstrap(values, bounds)
    return {"value": float(np.mean(values)), "n": len(values), "low": low, "high": high}
