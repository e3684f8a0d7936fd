"""`repro doctor --sim tabletop | calvin | libero`: does a simulator draw, settle and repeat as the known versions do?

Known values were measured with the pins of `repro sims setup` (calvin_env 797142c5 with pybullet 3.2.7; hf-libero 0.1.4 with MuJoCo
3.3.2) and, for LIBERO's own assets, stand in its issues (mean of LIBERO-Object 135.5 up to MuJoCo 3.3.2, 99.3 from 3.3.3 on).
"""

import time
from collections.abc import Callable

import numpy as np

from repro.doctor import FAIL, OK, WARN, Check
from repro.evaluation.protocols import calvin_start_state, calvin_starts
from repro.machine import UserError
from repro.sims import environments
from repro.sims.base import Launch
from repro.sims.libero import MUJOCO
from repro.sims.worker import Worker, WorkerLost

SOUP, KETCHUP = "pick_up_the_alphabet_soup_and_place_it_in_the_basket", {"suite": "libero_10", "task": 0, "init": 0, "seed": 0}
FINGERPRINT = {  # (simulator, renderer, assets) -> mean grey level of the static picture, 0 ... 255
    ("CALVIN", "TinyRenderer (CPU)", "CALVIN's own"): 130.6,
    ("LIBERO", "MuJoCo, osmesa", "stand-in assets"): 135.1,
    ("LIBERO", "MuJoCo, osmesa", "LIBERO's own (user's folder)"): 135.5,
}


def checks(name: str, **options) -> list[Check]:
    """All checks of one simulator, cheap first; ends at the first FAIL that the rest depends on."""
    found = []
    try:
        options = ({"suite": "libero_object", "image_size": 256, "any_mujoco": True} if name == "libero" else {"scene": "D"}) | options
        launch = environments.launch(name, **options)
        lacking = {} if name == "tabletop" else environments.missing_libraries(name)
        if lacking:
            found.append(Check("libraries", WARN, "missing: " + ", ".join(lacking), f"sudo apt-get install {' '.join(lacking.values())}"))
        with Worker(launch, patience=120) as worker:
            about = worker.about
            versions = ", ".join(f"{package} {version}" for package, version in about.get("versions", {}).items())
            other = about.get("versions", {}).get("mujoco", MUJOCO) != MUJOCO
            found.append(Check("simulator", FAIL if other else OK, ", ".join(filter(None, (about["simulator"], versions))),
                               f"MuJoCo {MUJOCO} is the one scores were published with: repro sims setup libero" if other else ""))
            found += _assets(about, worker)
            for check in (_fingerprint, _flip, _settling, _repeats, _speed):
                found += check(name, worker, launch)
    except (UserError, WorkerLost) as error:
        lines = str(error).splitlines()
        step = next((line.split(": ", 1)[1] for line in lines if line.strip().startswith("next step: ")), f"repro sims setup {name}")
        found.append(Check("simulator", FAIL, "; ".join(line.strip() for line in lines if "next step: " not in line), step))
    return found


def _start(name: str) -> dict:
    if name == "calvin":
        return calvin_start_state(calvin_starts()[0])
    if name == "libero":
        return {"suite": "libero_object", "task": SOUP, "init": 0, "seed": 0}
    from repro.sims.tabletop import tasks

    return tasks.initial_state("D", tasks.symbolic_for("open_drawer", np.random.default_rng(0)), 1)


def _assets(about: dict, worker: Worker) -> list[Check]:
    if about["simulator"] != "LIBERO":
        return [Check("assets", OK, f"{about['assets']}{', checkout ' + about['checkout'] if 'checkout' in about else ''}")]
    missing = worker.call("missing_assets")
    if missing:
        return [Check("assets", FAIL, f"{len(missing)} files that the scenes name are missing, first {missing[0]}",
                      "hf download lerobot/libero-assets --repo-type dataset --local-dir FOLDER")]
    status = WARN if about["assets"] == "stand-in assets" else OK
    step = "scores must be labelled so and never compared with published ones" if status == WARN else ""
    return [Check("assets", status, f"{about['assets']}, content {about['content']}, complete", step)]


def _fingerprint(name: str, worker: Worker, launch: Launch) -> list[Check]:
    about, seen = worker.about, worker.call("reset", _start(name))
    mean = float(seen["observation.images.static"].mean())
    known = FINGERPRINT.get((about["simulator"], about["renderer"], about["assets"]))
    text = f"{about['renderer']}: mean grey level {mean:.2f}"
    if known is None:
        return [Check("picture", OK, text + ", no known value for this combination")]
    if abs(mean - known) <= 0.5:
        return [Check("picture", OK, text + f", known {known:.1f}")]
    step = "MuJoCo 3.3.3 and later draw darker (99.3): repro sims setup libero" if name == "libero" else "another scene or checkout?"
    return [Check("picture", FAIL, text + f", known {known:.1f}", step)]


def _flip(name: str, worker: Worker, launch: Launch) -> list[Check]:
    """A thing known to be on the left must be in the left half of an upright picture, and what is high above what is low."""
    boxes, width = worker.call("boxes"), worker.about.get("image_size", [200])[0]
    left, right = ("alphabet_soup_1", "basket_1") if name == "libero" else ("led", "lightbulb")
    if left not in boxes or right not in boxes:
        return [Check("orientation", FAIL, f"{left} or {right} is not in the picture: {sorted(boxes)}", "another scene or checkout?")]
    a, b = (np.mean(boxes[item][0::2]) / width for item in (left, right))
    good = (a < 0.5 < b) == (worker.about.get("orientation", "upright") != "rotated")
    found = f"{left} at {100 * a:.0f} % of the width, {right} at {100 * b:.0f} %"
    return [Check("orientation", OK if good else FAIL, found, "" if good else "the picture is mirrored: see `orientation`, sims/libero.py")]


def _settling(name: str, worker: Worker, launch: Launch) -> list[Check]:
    if name != "libero":
        return []
    worker.call("reset", KETCHUP, render=False)
    settled = worker.call("state")["settled"]
    good = settled["ketchup_1"] < 0.3
    return [Check("settling", OK if good else FAIL, f"libero_10 task 0: the ketchup moves {settled['ketchup_1']:.2f} m, known 0.03",
                  "" if good else "MuJoCo 3.4 and later throw it over half a metre: repro sims setup libero")]


def _repeats(name: str, worker: Worker, launch: Launch) -> list[Check]:
    """Twenty equal actions from one state, with another episode between, in two processes: the same bits."""
    def walk(worker: Worker) -> bytes:
        worker.call("reset", _start(name), render=False)
        rng = np.random.default_rng(0)
        for _ in range(20):
            worker.call("step", rng.uniform(-1, 1, 7), render=False)
        state = worker.call("state")
        return b"".join(state[key].tobytes() for key in ("robot_obs", "scene_obs", "mujoco") if key in state)

    first, second = walk(worker), walk(worker)
    with Worker(launch, patience=120) as other:
        good = first == second == walk(other)
    found = "the same bits again and in another process" if good else "the same actions end elsewhere"
    return [Check("repeats", OK if good else FAIL, found,
                  "" if good else "scores of this installation cannot be repeated: report versions and machine")]


def _speed(name: str, worker: Worker, launch: Launch) -> list[Check]:
    worker.call("reset", _start(name), render=False)
    rates = []
    for count, call in ((60, lambda: worker.call("step", np.zeros(7), render=False)), (10, lambda: worker.call("observe"))):
        begun = time.perf_counter()
        _times(count, call)
        rates.append(count / (time.perf_counter() - begun))
    both = 1 / (1 / rates[0] + 1 / rates[1])
    found = f"{rates[0]:.0f} steps/s without pictures, {rates[1]:.0f} pairs of pictures/s, {both:.0f} steps/s with both"
    return [Check("speed", OK, found)]


def _times(count: int, call: Callable) -> None:
    for _ in range(count):
        call()
