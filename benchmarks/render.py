"""Pictures a second of the play table on one core: `python benchmarks/render.py`. Target: both cameras together >= 400 a second."""

import json
import time

import cv2
import numpy as np

from repro.sims.tabletop import render
from repro.sims.tabletop.scenes import SCENES


def states(moving):
    """Forty states along a motion of the hand above the table; with `moving`, the drawer moves as well."""
    blocks = (0.05, -0.12, 0.46, 0, 0, 1.2, 0.2, -0.1, 0.46, 0, 0, 1.7, -0.02, -0.04, 0.46, 0, 0, 0.4)
    for i in range(40):
        drawer = 0.005 * i if moving else 0.1
        robot_obs = np.array([-0.2 + 0.01 * i, -0.2, 0.62 - 0.003 * i, np.pi, 0, 1.57, 0.04, *np.zeros(7), 1])
        yield robot_obs, np.array([0.1, drawer, 0, 0.05, 1, 1, *blocks])


def main():
    cv2.setNumThreads(1)
    rates = {}
    for moving in (False, True):
        for cameras in (("static",), ("wrist",), ("static", "wrist")):
            cases = [(scene, *state, cameras) for scene in SCENES.values() for state in states(moving)]
            best = np.full(len(cases), np.inf)
            for _ in range(6):  # the least time of each picture: what the code needs, not what else the machine does
                for i, case in enumerate(cases):
                    start = time.perf_counter()
                    render.render(*case)
                    best[i] = min(best[i], time.perf_counter() - start)
            rates[f"{'+'.join(cameras)}, drawer {'moves' if moving else 'rests'}"] = round(1 / best.mean())
    print(json.dumps({"unit": "calls per second, one core", **rates}, indent=2))


if __name__ == "__main__":
    main()
