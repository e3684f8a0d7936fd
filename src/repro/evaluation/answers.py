"""A policy's answers to recorded frames: how far from the recorded actions, and whether words and pictures have anything to do with it.

A model that says one constant action, or has forgotten its words or its eyes, can load, be deterministic and lie in the data's range. So
its error stands beside three others on the same frames: of the best constant answer; of its own, told another task; of its own, shown the
pictures of another episode. Frames are of the training data where `repro evaluate --check` is given these: no measure of generalisation.
"""

from dataclasses import dataclass

import numpy as np

from repro.data.episodes import Store, decode_png
from repro.evaluation.offline import recorded_chunks
from repro.intervals import bootstrap

FRAMES, TOGETHER = 48, 16  # observations that the policy is asked about, and at once
RISE = 0.1  # share by which an error has to rise for what was taken away to have mattered


@dataclass(frozen=True)
class Frame:
    """A step with a picture of its own. `following`: (n, 7) the recorded actions from it to the episode's end."""

    episode: int
    seen: dict
    told: str
    following: np.ndarray


@dataclass(frozen=True)
class Errors:
    """Mean absolute errors of the six motion numbers over the chunk, in action units ([-1, 1]), one a frame: (F,)."""

    own: np.ndarray
    constant: np.ndarray      # of the best constant answer on these very frames: none is nearer
    told: np.ndarray | None   # of its own, told another task of the data; None where there is only one
    moved: float              # mean change of its answers when it was shown those: 0 where it does not look
    shown: np.ndarray | None  # of its own, shown the pictures of another frame, of another episode where there are two; None: one frame


def frames_of(store: Store, count: int = FRAMES) -> list[Frame]:
    """About `count` steps that carry a picture of their own, spread over the episodes."""
    found, each = [], max(1, count // len(store))
    for info in store.episodes[:: max(1, len(store) // count)]:
        columns = store.read(info.index, decode=False).columns  # pictures: lists of PNG
        drawn = np.flatnonzero(columns.get("info.drawn", np.ones(info.length, bool)))
        for t in drawn[np.linspace(0, len(drawn) - 1, min(each, len(drawn))).astype(int)]:
            with store.reading(info.index):
                seen = {name: decode_png(values[t]) if ".images." in name else values[t] for name, values in columns.items()
                        if name.startswith("observation.")}
            found.append(Frame(info.index, seen, info.task, columns["action"][t:]))
    return found


def asked(policy, frames: list[Frame]) -> np.ndarray:
    """(F, K, 7)"""
    parts = [frames[i : i + TOGETHER] for i in range(0, len(frames), TOGETHER)]
    return np.concatenate([np.asarray(policy.act([one.seen for one in part], [one.told for one in part])) for part in parts])


def errors(policy, frames: list[Frame]) -> Errors:
    """Of the frames as they are, and with one thing exchanged."""
    said = asked(policy, frames)
    truth = np.concatenate([recorded_chunks(one.following, np.zeros(1, int), said.shape[1]) for one in frames])[..., :6]
    far = lambda actions: np.abs(actions[..., :6] - truth).mean((1, 2))
    sentences, episodes = sorted({one.told for one in frames}), {one.episode for one in frames}
    other = dict(zip(sentences, sentences[1:] + sentences[:1], strict=True))
    told, shown, moved = None, None, 0.0
    if len(sentences) > 1:
        told = far(asked(policy, [Frame(one.episode, one.seen, other[one.told], one.following) for one in frames]))
    if len(frames) > 1:
        others = [_elsewhere(frames, i, len(episodes) > 1) for i in range(len(frames))]
        elsewhere = asked(policy, [Frame(one.episode, one.seen | _pictures(other), one.told, one.following)
                                   for one, other in zip(frames, others, strict=True)])
        shown, moved = far(elsewhere), float(np.abs(elsewhere - said)[..., :6].mean())
    return Errors(far(said), far(np.median(truth, axis=0)[None]), told, moved, shown)


def _pictures(frame: Frame) -> dict:
    return {name: value for name, value in frame.seen.items() if ".images." in name}


def _elsewhere(frames: list[Frame], i: int, another: bool) -> Frame:
    """A frame half-way round from the i-th, of another episode where there is one."""
    turned = frames[(half := (i + len(frames) // 2) % len(frames)) :] + frames[:half]
    return next((one for one in turned if one.episode != frames[i].episode), turned[0]) if another else turned[0]


def rises(frames: list[Frame], own: np.ndarray, other: np.ndarray) -> bool:
    """Whether an error is larger by RISE at least, and by more than chance: 95 % bootstrap over episodes of the difference."""
    apart = other - own
    each = [apart[[one.episode == episode for one in frames]].mean() for episode in sorted({one.episode for one in frames})]
    return bool(bootstrap(each)[0] > 0 and other.mean() >= (1 + RISE) * own.mean())
