"""What a change agent answers on all pairs of a store: in each caption mode, and in controls that take one of the two dates away.

    found, written, seconds = answered(model, pairs, folder)           # {mode: Answers}; kept in the folder over sessions
    control, seconds = controlled(model, pairs, folder, "dates swapped")

A model that points as well when both pictures are of the second date, or when the first is of another place, finds new houses by what
they look like and compares nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from repro import clock, freshness
from repro.data.change_batches import prepared
from repro.data.levir import Pairs
from repro.evaluation import chains, kept
from repro.machine import UserError
from repro.models.change_agent import ChangeAgent

MODES = ("given", "none", "generated")
CONTROLS = ("second date twice", "dates swapped", "another pair's first date")  # instead of the two dates, captions withheld


@dataclass
class Answers:
    """Of one model in one mode on all pairs of a store. vectors (n, 3); changed (n,) or None; maps (n, rows, columns) or None; told, n."""

    told: list[str | None]
    vectors: np.ndarray
    changed: np.ndarray | None = None
    maps: np.ndarray | None = None


def answers(model: ChangeAgent, pairs: Pairs, mode: str, written: list[str] | None = None, batch: int = 32) -> Answers:
    """The model's answers. written: captions that it wrote before, for "generated"; without them it writes them now."""
    ready = prepared(pairs, model.prepare_many, model.key)
    told = told_in(pairs, mode, written or (write(model, pairs) if mode == "generated" else None))
    heard = model.fitted(told) if mode == "generated" else told
    found = [model.answers(part, heard[i : i + batch]) for i, part in _parts(ready, len(pairs), batch, f"answers, caption {mode}")]
    return _whole(told, found)


def _whole(told: list[str | None], found: list[dict[str, np.ndarray]]) -> Answers:
    whole = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    return Answers(told, whole["vector"], whole.get("changed"), whole.get("map"))


def told_in(pairs: Pairs, mode: str, written: list[str] | None) -> list[str | None]:
    """What the model is told of each pair."""
    return {"given": [some[0] for some in pairs.column("captions")], "none": [None] * len(pairs), "generated": written}[mode]


def write(model: ChangeAgent, pairs: Pairs, batch: int = 32, beams: int = 1) -> list[str]:
    """A caption for each pair, by the model."""
    ready = prepared(pairs, model.prepare_many, model.key)
    return [text for _, part in _parts(ready, len(pairs), batch, "captions") for text in model.write(part, beams)]


def _parts(ready: dict[str, np.ndarray], n: int, batch: int, name: str) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(first, arrays) of each batch of n pairs; OutOfTime where the session ends."""
    progress = clock.Progress(name, n, "pairs")
    for i in range(0, n, batch):
        clock.check()
        yield i, {name: values[i : i + batch] for name, values in ready.items()}
        progress(min(n, i + batch))


def answered(model: ChangeAgent, pairs: Pairs, place: Path) -> tuple[dict[str, Answers], list[str] | None, dict[str, float]]:
    """({mode: Answers}, the captions that it wrote, {mode or "captions": seconds}): what an earlier session has kept in `place` is read."""
    who, found, took, written = _who(model, pairs), {}, {}, None
    if "generated" in modes(model):
        text, took["captions"] = kept.once(place / "captions.npz", who, lambda: {"text": np.array(write(model, pairs))})
        written = text["text"].tolist()
    for mode in modes(model):
        arrays = lambda mode=mode: {name: value for name, value in vars(answers(model, pairs, mode, written)).items()
                                    if isinstance(value, np.ndarray)}  # fmt: skip
        values, took[mode] = kept.once(place / f"{mode}.npz", who, arrays)
        found[mode] = Answers(told=told_in(pairs, mode, written), **values)
    return found, written, took


def _who(model: ChangeAgent, pairs: Pairs) -> str:
    return f"{chains.identity(model)} {pairs.hash} {freshness.code('models', 'change_asked.py')}"


def modes(model: ChangeAgent) -> tuple[str, ...]:
    """The caption modes that this model has: one that does not see pictures through its language model cannot write."""
    return MODES if model.config.caption_weight else MODES[:2]


# ---- controls ----------------------------------------------------------------------------------------------------------------------


def others(n: int, seed: int = 0) -> np.ndarray:
    """(n,) for each pair another one: a random round trip, so that none is its own, and each is some pair's other once."""
    if n < 2:
        raise UserError("there is no other pair", "at least two", n)
    order, found = np.random.default_rng([seed, 14]).permutation(n), np.empty(n, int)
    found[order] = np.roll(order, 1)
    return found


def altered(ready: np.ndarray, control: str, rows: np.ndarray) -> np.ndarray:
    """What stands for these rows in a control; ready (n, 2, ...): what was prepared of both dates of all pairs."""
    first, second = ready[rows, 0], ready[rows, 1]
    shown = {"second date twice": (second, second), "dates swapped": (second, first),
             "another pair's first date": (ready[others(len(ready))[rows], 0], second)}  # fmt: skip
    return np.stack(shown[control], axis=1)


def controlled(model: ChangeAgent, pairs: Pairs, place: Path, control: str, batch: int = 32) -> tuple[Answers, float]:
    """(answers in one of CONTROLS with captions withheld, seconds), kept in `place` as those of `answered` are.

    Pairs keep their order: what is said of row i is held against the box of row i.
    """
    ready, told = prepared(pairs, model.prepare_many, model.key), [None] * len(pairs)

    def arrays() -> dict[str, np.ndarray]:
        progress, found = clock.Progress(f"answers, {control}", len(pairs), "pairs"), []
        for i in range(0, len(pairs), batch):
            clock.check()
            rows = np.arange(i, min(len(pairs), i + batch))
            found.append(model.answers({name: altered(values, control, rows) for name, values in ready.items()}, told[i : i + batch]))
            progress(int(rows[-1]) + 1)
        whole = _whole(told, found)
        return {name: value for name, value in vars(whole).items() if isinstance(value, np.ndarray)}

    values, seconds = kept.once(place / f"{control.replace(' ', '_')}.npz", _who(model, pairs), arrays)
    return Answers(told=told, **values), seconds
