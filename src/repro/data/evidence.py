"""What the content of LIBERO episodes says of how their pictures lie and what their gripper's sign means.

Layouts differ in both, and no file says it: a wrong choice trains without an error and then succeeds at nothing.
"""

import numpy as np

from repro.data.episodes import Episode
from repro.machine import UserError

SURE, STRONG, LOOKED = 0.3, 0.5, 20  # correlations that say something, and that decide; how many episodes of a source are looked at
ORIENTATIONS = ("raw", "rotated", "upright")  # how pictures may lie: keys of UPRIGHT in data/libero.py


class Evidence:
    """What the content says of orientation and gripper. Numbers in -1 ... 1 over the first episodes, nan where nothing speaks.
    CALVIN's static camera looks from elsewhere: of its episodes only the gripper is told."""

    def __init__(self):
        self.hand, self.spot, self.agree, self.episodes, self.libero = [], [], [], 0, True

    def add(self, episode: Episode) -> None:
        self.episodes += 1
        self.libero = episode.columns["observation.state"].shape[1] == 8
        if self.episodes > LOOKED:
            return
        state, action = episode.columns["observation.state"], episode.columns["action"]
        new = np.flatnonzero(episode.columns["info.drawn"])
        pictures = episode.columns["observation.images.static"]
        coarse = slice(None, None, max(1, pictures.shape[1] // 64))
        small = pictures[new, coarse, coarse].astype(np.int16)
        moving = np.maximum(np.abs(np.diff(small, axis=0)).sum(3) - 30, 0).astype(float)  # (K - 1, h, w)
        mass = moving.sum((1, 2))
        some = mass > 0
        row, column = (np.arange(n) for n in moving.shape[1:])
        self.spot.append(np.stack([moving.sum(1) @ column, moving.sum(2) @ row], 1)[some] / mass[some, None])
        self.hand.append(((state[new[1:]] + state[new[:-1]]) / 2)[some][:, :3])
        fingers = state[:, 6] - state[:, 7] if self.libero else state[:, 6]  # CALVIN's seventh number is their opening
        moved, command = np.diff(fingers), action[:-1, 6]
        fast = np.abs(moved) > max(1e-4, 0.2 * np.abs(moved).max(initial=0))  # metres: else noise decides
        self.agree += (np.sign(moved) * np.sign(command))[fast].tolist()

    def found(self) -> dict[str, float]:
        """right: the hand's y against the column where pixels move (agentview faces the robot: above 0 where it is not mirrored); up: its
        z against the row from below, at the same distance; open: the gripper's command and the fingers agree (+1 opens: above 0)."""
        hand, spot = np.concatenate(self.hand), np.concatenate(self.spot)
        told = {"open": round(float(np.mean(self.agree)), 2) if self.agree else float("nan")}
        # what is nearer to the camera is lower in the picture too: taken out of both
        away = np.column_stack([hand[:, 0], np.ones(len(hand))])
        left = lambda values: values - away @ np.linalg.lstsq(away, values, rcond=None)[0]
        for name, a, b in (("right", hand[:, 1], spot[:, 0]), ("up", left(hand[:, 2]), left(-spot[:, 1]))):
            speaks = self.libero and len(a) > 8 and a.std() > 1e-6 and b.std() > 1e-6
            told[name] = round(float(np.corrcoef(a, b)[0, 1]), 2) if speaks else float("nan")
        return told


def check(found: dict[str, float], where: str, orientation: str, gripper: str, insist: bool = False) -> list[str]:
    """Warnings; a UserError where the fingers contradict the gripper's sign, or the pixels strongly the orientation and nobody insists."""
    if found["open"] < -SURE:
        raise UserError(f"{where}: the gripper's sign is the other way round", f"+1 {gripper}",
                        f"the fingers agree with it to {found['open']:+.2f}", "another --gripper: closes | opens | opens01")
    lie = [name for name in ("right", "up") if found[name] < -SURE]
    said = ", ".join(f"{name} {found[name]:+.2f}" for name in lie)
    step = f"look at the pictures, and give --orientation {' | '.join(one for one in ORIENTATIONS if one != orientation)}"
    if not insist and any(found[name] < -STRONG for name in lie):
        raise UserError(f"{where}: its pictures do not lie as {orientation!r} says", "pixels that move where the hand is, above 0",
                        said, f"{step}; --insist keeps it as it is")
    return [f"WARNING {where}: taken as {orientation!r}, but the pixels that move speak against it ({said}): {step}"] if lie else []
