"""What the content of LIBERO episodes says of how their pictures lie and what their gripper's sign means.

Layouts differ in both, and no file says it: a wrong choice trains without an error and then succeeds at nothing.
"""

import numpy as np

from repro.data.episodes import Episode
from repro.machine import UserError

SURE, LOOKED = 0.3, 20  # a correlation that says something, and how many episodes of a source are looked at


class Evidence:
    """What the content says of a source's orientation and gripper. Correlations over the first episodes, nan where nothing speaks."""

    def __init__(self):
        self.hand, self.spot, self.grip, self.open, self.episodes = [], [], [], [], 0

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        if self.episodes > LOOKED:
            return
        state, action = episode.columns["observation.state"], episode.columns["action"]
        new = np.flatnonzero(episode.columns["info.drawn"])
        small = episode.columns["observation.images.static"][new, ::4, ::4].astype(np.int16)
        moving = np.maximum(np.abs(np.diff(small, axis=0)).sum(3) - 30, 0).astype(float)  # (K - 1, h, w)
        mass = moving.sum((1, 2))
        some = mass > 0
        row, column = (np.arange(n) for n in moving.shape[1:])
        self.spot.append(np.stack([moving.sum(1) @ column, moving.sum(2) @ row], 1)[some] / mass[some, None])
        self.hand.append(((state[new[1:]] + state[new[:-1]]) / 2)[some][:, [1, 2]])
        opening = state[:, 6] - state[:, 7]
        self.grip.append(action[:-1, 6])
        self.open.append(np.diff(opening))

    def found(self) -> dict[str, float]:
        """right: the hand's y against the column where pixels move (upright and unmirrored: above 0, agentview faces the robot); up: its z
        against the row from below; open: the gripper's command against the fingers' opening (+1 opens: above 0)."""
        hand, spot = np.concatenate(self.hand), np.concatenate(self.spot)
        pairs = {"right": (hand[:, 0], spot[:, 0]), "up": (hand[:, 1], -spot[:, 1]),
                 "open": (np.concatenate(self.grip), np.concatenate(self.open))}  # fmt: skip
        return {name: round(float(np.corrcoef(a, b)[0, 1]), 2) if len(a) > 8 and a.std() > 1e-6 and b.std() > 1e-6 else float("nan")
                for name, (a, b) in pairs.items()}  # fmt: skip


def check(found: dict[str, float], where: str, orientation: str, gripper: str) -> list[str]:
    """Warnings; a UserError where the fingers contradict the gripper's sign."""
    if found["open"] < -SURE:
        raise UserError(f"{where}: the gripper's sign is the other way round", f"+1 {gripper}", f"correlation {found['open']} with the fingers",
                        "--gripper opens (or closes)")
    return [f"WARNING {where}: taken as {orientation!r}, but pixels that move speak against it ({name} {found[name]}): look at the pictures, "
            "and give --orientation raw | rotated | upright" for name in ("right", "up") if found[name] < -SURE]  # fmt: skip
