"""CALVIN's 34 tasks on the play table: when each is achieved, when it is possible, start states and chains of tasks.

Names, thresholds and conditions are those of CALVIN's task oracle; a condition compares `PlayTable.info()` at the start of
the task with the present one. The symbolic side follows its `get_sequences`: a symbolic state is a dict with led and
lightbulb (0 or 1), slider ("left" or "right": where the door is), drawer ("open" or "closed") and a place for each block:
"table", "slider_left", "slider_right", "drawer", "grasped", "stacked" (on another one) or "under" (another one on top).
"""

import math
from itertools import product

import numpy as np

from ...machine import UserError
from . import scenes
from .scenes import BLOCKS

CATEGORIES = {  # a chain takes at most one task of each
    "move": [f"{verb}_{b}_{d}" for verb in ("rotate", "push") for b in BLOCKS for d in ("left", "right")] + ["push_into_drawer"],
    "slider": ["move_slider_left", "move_slider_right"],
    "drawer": ["open_drawer", "close_drawer"],
    "lift_table": [f"lift_{b}_table" for b in BLOCKS],
    "lift_slider": [f"lift_{b}_slider" for b in BLOCKS],
    "lift_drawer": [f"lift_{b}_drawer" for b in BLOCKS],
    "place": ["place_in_slider", "place_in_drawer"],
    "stack": ["stack_block"],
    "unstack": ["unstack_block"],
    "lightbulb": ["turn_on_lightbulb", "turn_off_lightbulb"],
    "led": ["turn_on_led", "turn_off_led"],
}
CATEGORY = {task: category for category, tasks in CATEGORIES.items() for task in tasks}
TASKS = tuple(CATEGORY)
SURFACES = frozenset(("table", "cabinet", "drawer"))
LIFT_FROM = {"table": ("table", 0.05), "slider": ("cabinet", 0.03), "drawer": ("drawer", 0.05)}  # surface and height in metres


def check_tasks(tasks) -> tuple[str, ...]:
    """The given task names as a tuple (None: all 34); an unknown one is an error."""
    tasks = TASKS if tasks is None else tuple(tasks)
    unknown = [t for t in tasks if t not in CATEGORY]
    if unknown or not tasks:
        raise UserError("unknown play table task", expected="names out of " + ", ".join(TASKS), found=", ".join(unknown) or "none")
    return tasks


def block_of(task: str) -> str | None:
    """The block a task names, if it names one."""
    return next((b for b in BLOCKS if b in task), None)


def _turned(a: float, b: float) -> float:
    return math.degrees((b - a + math.pi) % (2 * math.pi) - math.pi)


def achieved(task: str, start: dict, now: dict) -> bool:
    """Whether `task` is done, judged from two `PlayTable.info()` dicts."""
    if task in ("move_slider_left", "move_slider_right", "open_drawer", "close_drawer"):
        joint, least = ("slider", 0.15) if "slider" in task else ("drawer", 0.12)
        sign = 1 if task in ("move_slider_left", "open_drawer") else -1
        return sign * (now["joints"][joint] - start["joints"][joint]) > least
    if task.startswith("turn_"):
        light = "led" if task.endswith("led") else "lightbulb"
        return start["lights"][light] != now["lights"][light] == task.startswith("turn_on")
    name = block_of(task)
    if name is None:
        return any(_block_task(task, start["blocks"][b], now["blocks"][b]) for b in BLOCKS)
    return _block_task(task, start["blocks"][name], now["blocks"][name])


def _block_task(task: str, a: dict, b: dict) -> bool:
    """The condition of a task for one block: `a` at the start, `b` now."""
    before, after = a["contacts"], b["contacts"]
    dx, dy, dz = (q - p for p, q in zip(a["xyz"], b["xyz"], strict=True))
    if task.startswith("rotate"):
        roll, pitch, yaw = (_turned(p, q) for p, q in zip(a["euler"], b["euler"], strict=True))
        sign = 1 if task.endswith("left") else -1
        moved = math.hypot(dx, dy, dz)
        return sign * yaw > 60 and abs(roll) < 30 and abs(pitch) < 30 and moved < 0.1 and bool(after - {"robot"})
    if task == "push_into_drawer":
        return "table" in before and "drawer" in after and "robot" not in before | after
    if task.startswith("push"):
        return dx * (1 if task.endswith("right") else -1) > 0.1 and bool(before & SURFACES) and bool(after & SURFACES)
    if task.startswith("lift"):
        surface, height = LIFT_FROM[task.rsplit("_", 1)[1]]
        return surface in before and after == {"robot"} and dz > height
    if task.startswith("place"):
        return before == {"robot"} and "robot" not in after and ("drawer" if task.endswith("drawer") else "cabinet") in after
    others = set(BLOCKS)
    if task == "stack_block":  # the only thing it touches is the block it stands on; it did not at the start
        return not a["stands_on_block"] and b["stands_on_block"] and len(after) == 1
    return a["stands_on_block"] and "robot" not in before | after and not after & others and bool(after & SURFACES)  # unstack_block


# --- symbolic: what is possible when ------------------------------------------------------------------------------------


def outcome(task: str, s: dict) -> dict | None:
    """The symbolic state that `task` leads to from `s`, or None if it is not possible there."""
    name, held = block_of(task), next((b for b in BLOCKS if s[b] == "grasped"), None)
    on_table = [b for b in BLOCKS if s[b] == "table"]
    free_side = "slider_left" if s["slider"] == "right" else "slider_right"  # the half that the door leaves open
    if task in ("place_in_slider", "place_in_drawer", "stack_block"):
        if held is None:
            return None
        if task == "place_in_slider":
            return {**s, held: free_side}
        if task == "place_in_drawer":
            return {**s, held: "drawer"} if s["drawer"] == "open" else None
        return {**s, **dict.fromkeys(on_table, "under"), held: "stacked"} if on_table else None
    if held is not None:
        return None
    for key, values in (("slider", ("right", "left")), ("drawer", ("closed", "open")), ("lightbulb", (0, 1)), ("led", (0, 1))):
        if CATEGORY[task] == key:
            old, new = values if task in ("move_slider_left", "open_drawer") or task.startswith("turn_on") else values[::-1]
            return {**s, key: new} if s[key] == old else None
    if task == "unstack_block":
        if "stacked" not in (s[b] for b in BLOCKS):
            return None
        return {**s, **{b: "table" for b in BLOCKS if s[b] in ("stacked", "under")}}
    if task == "push_into_drawer":  # only when it is clear which block goes there
        return {**s, on_table[0]: "drawer"} if len(on_table) == 1 and s["drawer"] == "open" else None
    if task.startswith("lift") and not task.endswith("table"):
        place = "drawer" if task.endswith("drawer") else free_side
        ready = s[name] == place and (place != "drawer" or s["drawer"] == "open")
        return {**s, name: "grasped"} if ready else None
    if s[name] != "table":
        return None
    return {**s, name: "grasped"} if task.startswith("lift") else dict(s)


def random_symbolic(rng: np.random.Generator) -> dict:
    """One of CALVIN's 192 symbolic start states: one or two blocks on the table, the others in different halves of the cabinet."""
    places = [p for p in product(("table", "slider_left", "slider_right"), repeat=3)
              if p.count("table") in (1, 2) and p.count("slider_left") < 2 and p.count("slider_right") < 2]  # fmt: skip
    s = {"led": int(rng.integers(2)), "lightbulb": int(rng.integers(2))}
    s["slider"], s["drawer"] = ("left", "right")[rng.integers(2)], ("closed", "open")[rng.integers(2)]
    return {**s, **dict(zip(BLOCKS, places[rng.integers(len(places))], strict=True))}


def symbolic_for(task: str, rng: np.random.Generator) -> dict:
    """A random symbolic state in which `task` is possible; also with all blocks on the table, in the drawer, in the hand or stacked."""
    check_tasks([task])
    while True:
        s = random_symbolic(rng)
        kind = rng.integers(4)
        if kind == 1:
            s.update(dict.fromkeys(BLOCKS, "table"))
        if kind >= 2:
            a, b = (BLOCKS[i] for i in rng.permutation(3)[:2])
            s.update({a: ("drawer", "grasped")[rng.integers(2)]} if kind == 2 else {a: "stacked", b: "under"})
        if outcome(task, s) is not None:
            return s


def chains(n: int, length: int = 5, seed: int = 0, tasks=None) -> list[tuple[dict, tuple[str, ...]]]:
    """n pairs (symbolic state, task names), each task possible after the one before, in the spirit of CALVIN's get_sequences.

    Categories in a chain are distinct; where `tasks` covers fewer than `length` of them, only the tasks are. The symbolic
    state carries a "seed" that fixes block positions and yaw when a table is reset to it.
    """
    tasks = check_tasks(tasks)
    if not 1 <= length <= len(set(tasks)):
        raise UserError(f"no chains of {length} tasks", expected=f"1 to {len(set(tasks))} with these tasks", found=length)
    key = CATEGORY.get if len({CATEGORY[t] for t in tasks}) >= length else str
    out, rng = [], np.random.default_rng([seed, 34])
    for tries in range(2000 * n):
        if len(out) == n:
            break
        start = s = random_symbolic(rng)
        chain = []
        while len(chain) < length:
            used = {key(t) for t in chain}
            legal = [t for t in tasks if key(t) not in used and outcome(t, s) is not None]
            if not legal:
                break
            chain.append(legal[rng.integers(len(legal))])
            s = outcome(chain[-1], s)
        else:
            out.append(({**start, "seed": seed * 1_000_003 + tries}, tuple(chain)))
    if len(out) < n:
        raise UserError(f"only {len(out)} of {n} chains of {length} tasks exist", found=", ".join(tasks), next_step="allow more tasks")
    return out


# --- start states -------------------------------------------------------------------------------------------------------


def initial_state(scene: str, symbolic: dict, rng: np.random.Generator | int, vary_robot: bool = False) -> dict:
    """A state for `PlayTable.reset` that realises `symbolic`: random block positions, yaw 90 +- 22.5 degrees as in CALVIN.

    The robot is at rest with open fingers, unless it holds a block; `vary_robot` starts it up to 8 cm and 0.25 rad off.
    """
    rng = np.random.default_rng(rng)
    table = scenes.scene(scene)
    pose = np.array(scenes.REST_POSE)
    held = next((i for i, b in enumerate(BLOCKS) if symbolic[b] == "grasped"), None)
    if vary_robot or held is not None:
        pose[:3] += rng.uniform((-0.08, -0.06, -0.06), (0.08, 0.06, 0.06))
        pose[5] += rng.uniform(-0.25, 0.25)
    drawer = scenes.DRAWER_TRAVEL if symbolic["drawer"] == "open" else 0.0
    at = _positions(table, symbolic, drawer, rng)
    yaw = math.pi / 2 + rng.uniform(-math.pi / 8, math.pi / 8, 3)
    grip, width = None, scenes.MAX_WIDTH
    if held is not None:  # the long side lies along the fingers' width, so that the pads are on the short one
        at[held], width = pose[:3], scenes.BLOCK_SIDE
        yaw[held] = pose[5]
        grip = [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0]
    switch = scenes.SWITCH_TRAVEL if symbolic["lightbulb"] else 0.0
    slider = table.slider_travel if symbolic["slider"] == "left" else 0.0
    scene_obs = [slider, drawer, 0.0, switch, symbolic["lightbulb"], symbolic["led"]]
    for name in table.block_order:
        i = BLOCKS.index(name)
        scene_obs += [*at[i], 0.0, 0.0, yaw[i]]
    robot_obs = [*pose, width, *[0.0] * 7, 1.0 if held is None else -1.0]
    return {"robot_obs": np.array(robot_obs), "scene_obs": np.array(scene_obs, np.float64), "held": held, "grip": grip}


def _positions(table: scenes.Scene, symbolic: dict, drawer: float, rng: np.random.Generator) -> list:
    """Centres of the three blocks: apart from each other, from button and led, and with room to push them."""
    half = table.slider_travel / 2
    middle = {"slider_left": table.cabinet_x[0] + half, "slider_right": table.cabinet_x[1] - half, "drawer": table.drawer_x}
    while True:
        at = [None] * 3
        for i, b in enumerate(BLOCKS):
            place = symbolic[b]
            if place in ("table", "under"):
                at[i] = (*rng.uniform((-0.32, -0.185), (0.32, -0.055)), scenes.TABLE_Z + 0.02)
            elif place == "drawer":
                at[i] = (middle[place] + rng.uniform(-0.06, 0.06), rng.uniform(-0.17, -0.11) - drawer, scenes.DRAWER_FLOOR_Z + 0.02)
            elif place in middle:
                at[i] = (middle[place] + rng.uniform(-0.03, 0.03), 0.13 + rng.uniform(-0.015, 0.015), scenes.CABINET_FLOOR_Z + 0.02)
        under = next((at[i] for i, b in enumerate(BLOCKS) if symbolic[b] == "under"), None)
        at = [(under[0], under[1], under[2] + 0.04) if symbolic[b] == "stacked" else p for b, p in zip(BLOCKS, at, strict=True)]
        flat = [p for b, p in zip(BLOCKS, at, strict=True) if p is not None and symbolic[b] != "stacked"]
        apart = all(math.dist(p[:2], q[:2]) > 0.12 for k, p in enumerate(flat) for q in flat[:k])
        clear = all(math.dist(p[:2], table.button_xy) > 0.09 and math.dist(p[:2], table.led_xyz[:2]) > 0.08 for p in flat)
        if apart and clear:
            return at
