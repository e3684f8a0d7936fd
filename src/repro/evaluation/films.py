"""Films (mp4) of closed loops: an episode played again, both cameras side by side, so that a success or a failure can be looked at.

MPEG-4 Part 2, which OpenCV writes without further packages: players and ffmpeg open it, browsers do not; for those:
ffmpeg -i a.mp4 -c:v libx264 b.mp4
"""

import os
from pathlib import Path

import cv2
import numpy as np

from repro.machine import UserError
from repro.sims.base import Launch
from repro.sims.rollouts import Rollout
from repro.sims.worker import opened

EVERY = 2  # simulator steps between two pictures


def write(path: Path | str, pictures: list[np.ndarray], fps: float = 10.0, least: int = 256) -> Path:
    """Write RGB pictures (H, W, 3) uint8 as an mp4, whole or not at all; small ones enlarged to `least` px in height."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    times = max(1, -(-least // pictures[0].shape[0]))
    height, width = (times * side for side in pictures[0].shape[:2])
    part = path.with_name(path.stem + ".part.mp4")  # the ending says the format
    film = cv2.VideoWriter(str(part), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height))
    try:
        if not film.isOpened():
            raise UserError(f"{path} cannot be written", "an OpenCV that writes mp4", cv2.__version__, "pip install opencv-python-headless")
        for picture in pictures:
            film.write(cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), (width, height), interpolation=cv2.INTER_NEAREST))
        film.release()
        os.replace(part, path)
    finally:
        film.release()
        part.unlink(missing_ok=True)
    return path


def play(policy, launch: Launch, chain: tuple[dict, tuple[str]], sentence: str, max_steps: int, execute: int | None = None,
         index: int = 0) -> tuple[list[np.ndarray], bool]:
    """One episode of `chains.evaluate` again: (pictures, a few after its end; whether the task was done)."""
    (state, (task,)), shots, step, solved = chain, [], 0, False
    with opened(launch) as worker:
        seen = worker.call("reset", state)
        worker.call("start_task")
        shots.append(_beside(seen))
        while step < max_steps and not solved:
            seen = {**worker.call("observe"), "rollout": Rollout(index, 0, step, task)}
            for action in policy.act([seen], [sentence])[0][: execute or None][: max_steps - step]:
                worker.call("step", action, render=False)
                step += 1
                if step % EVERY == 0:
                    shots.append(_beside(worker.call("observe")))
                if solved := bool(worker.call("done", task)):
                    break
        shots += [_beside(worker.call("observe"))] * 8
    return shots, solved


def _beside(seen: dict) -> np.ndarray:
    """Static and wrist picture in a row, the wrist's stretched to the same height."""
    static, wrist = seen["observation.images.static"], seen["observation.images.wrist"]
    side = static.shape[0]
    return np.concatenate([static, cv2.resize(wrist, (side, side), interpolation=cv2.INTER_AREA)], axis=1)
