"""The official evaluation protocols: CALVIN's 1000 chains and start states, ReconVLA's variant of them, LIBERO's four conventions.

Our own implementation; what it gives is equal to what the official code gives (tests hold it to digests taken from that code):
mees/calvin @ fa03f01f (`multistep_sequences.py`, `utils.py`, `evaluate_policy.py`), OpenHelix-Team/ReconVLA @ 047ccd9
(`evaluate_policy_multiserver.py`; its `question.json` is the same list of 1000). LIBERO's are data: `papers/libero/protocols.toml`.
"""

import difflib
import functools
import hashlib
import json
import math
import os
import tomllib
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np

from repro.machine import UserError


def _known(what: str, name: str, names) -> str:
    """`name` itself if it is one of `names`, else a UserError with the nearest one."""
    if name not in names:
        near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
        raise UserError(f"unknown {what} {name!r}", ", ".join(names), name, f"did you mean {near[0]!r}?" if near else None)
    return name


# ---- rules of a chain evaluation -----------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ChainProtocol:
    """Chains of five tasks, stopped at the first failure; success is tested after every step, the robot isn't reset between tasks."""

    name: str
    source: str
    chains: int  # N: the first N of CALVIN's 1000
    max_steps: int  # environment steps a task
    appends_mean: bool = False  # the script appends the mean to the N results before it counts, so that rates are over N+1
    length: int = 5


CALVINS = ("tabletop", "calvin", "calvin_env")  # simulators of stores in CALVIN's units: ours, CALVIN's with scripts, CALVIN's own data
CALVIN = ChainProtocol("CALVIN", "mees/calvin @ fa03f01f, evaluate_policy.py", 1000, 360)
RECONVLA = ChainProtocol("ReconVLA", "OpenHelix-Team/ReconVLA @ 047ccd9, evaluate_policy_multiserver.py, its defaults", 500, 500, True)
CHAIN_PROTOCOLS = {protocol.name: protocol for protocol in (CALVIN, RECONVLA)}


def chain_protocol(name: str) -> ChainProtocol:
    """CALVIN or ReconVLA, by name."""
    return CHAIN_PROTOCOLS[_known("chain protocol", name, CHAIN_PROTOCOLS)]


def as_printed(outcomes: list, protocol: ChainProtocol) -> dict[str, float]:
    """"1/5" ... "5/5" (shares) and "average length" as the protocol's own script computes them; print shares as f"{100 * share:.1f}".

    To recompute printed numbers, never to report ours: those are `chains.summarise`, over N. Where `appends_mean`, the denominator is
    N+1, and the mean counts as one more chain whenever it happens to be a whole number (5/5 in all N gives 100 %, not N/(N+1)).
    outcomes: any number of `chains.Outcome`; the script run in parts prints each part by itself (ReconVLA's rows fit one part of 250).
    """
    if not outcomes:
        raise UserError("no outcomes to count", "one Outcome a chain", "none")
    results = [outcome.length for outcome in outcomes]
    if protocol.appends_mean:
        results.append(sum(results) / len(results))
    rates = {f"{k}/{protocol.length}": sum(r in range(k, protocol.length + 1) for r in results) / len(results)
             for k in range(1, protocol.length + 1)}
    return {**rates, "average length": float(np.mean(results))}


# ---- CALVIN: which tasks follow one another ------------------------------------------------------------------------------------

BLOCKS = ("red_block", "blue_block", "pink_block")
KEYS = ("led", "lightbulb", "slider", "drawer", *BLOCKS, "grasped")  # of a symbolic state, in the order that the seeds depend on
SWITCHES = {  # task: what it changes, from, to
    "move_slider_left": ("slider", "right", "left"), "move_slider_right": ("slider", "left", "right"),
    "open_drawer": ("drawer", "closed", "open"), "close_drawer": ("drawer", "open", "closed"),
    "turn_on_lightbulb": ("lightbulb", 0, 1), "turn_off_lightbulb": ("lightbulb", 1, 0),
    "turn_on_led": ("led", 0, 1), "turn_off_led": ("led", 1, 0)}  # fmt: skip
CALVIN_TASKS = (  # in the order that the official draws index
    *(f"{verb}_{block}_{side}" for verb in ("rotate", "push") for block in BLOCKS for side in ("right", "left")), *list(SWITCHES)[:4],
    *(f"lift_{block}_{place}" for block in BLOCKS for place in ("table", "slider", "drawer")),
    "place_in_slider", "place_in_drawer", "stack_block", "unstack_block", *list(SWITCHES)[4:], "push_into_drawer")
SEQUENCES = "4121d62cea846bd5a80cf9309b27240dbd8b2a21a5ba02f311f39df01819e86d"  # sha256 of the official 1000, as JSON


def calvin_category(task: str) -> str:
    """Which of the 11 categories `task` is of; a chain has at most one task of each. Rotating and pushing are one, both lights are one."""
    if task in SWITCHES:
        return "light" if task.startswith("turn") else SWITCHES[task][0]
    if task.startswith("lift"):
        return "lift_" + task.rpartition("_")[2]
    return "move" if task.endswith(("_right", "_left")) else task.partition("_in_")[0]


def calvin_outcome(task: str, state: dict) -> dict | None:
    """The symbolic state after `task`, or None where the official table of conditions has not exactly one outcome.

    A place is "table", "slider_left", "slider_right", "drawer", "grasped", "stacked_top" or "stacked_bottom". As official, and unlike the
    play table's rule: a block placed in the cabinet is then held to lie in the half named after where the door *is*, the covered one (5 of
    the 1000 chains end with lifting it there, once the door has moved); stacking needs exactly one block on the table; push_into_drawer
    needs both others in the cabinet.
    """
    at = lambda *places: [block for block in BLOCKS if state[block] in places]
    held, table = at("grasped"), at("table")
    if task.startswith("place") or task == "stack_block":
        now = {"place_in_slider": "slider_" + state["slider"], "place_in_drawer": "drawer", "stack_block": "stacked_top"}[task]
        if not held or (now == "drawer" and state["drawer"] == "closed") or (now == "stacked_top" and len(table) != 1):
            return None
        below = {table[0]: "stacked_bottom"} if now == "stacked_top" else {}
        return {**state, held[0]: now, **below, "grasped": 0}
    if held:
        return None
    if task in SWITCHES:
        key, before, after = SWITCHES[task]
        return {**state, key: after} if state[key] == before else None
    if task == "unstack_block":
        pair = at("stacked_top", "stacked_bottom")
        return {**state, **dict.fromkeys(pair, "table")} if pair else None
    if task == "push_into_drawer":
        clear = state["drawer"] == "open" and len(table) == 1 and len(at("slider_left", "slider_right")) == 2
        return {**state, table[0]: "drawer"} if clear else None
    block = next(block for block in BLOCKS if block in task)
    if not task.startswith("lift"):  # rotate, push
        return state if state[block] == "table" else None
    place = task.rpartition("_")[2]
    if place == "slider":
        place = "slider_left" if state["slider"] == "right" else "slider_right"  # the half that the door leaves open
    ready = state[block] == place and (place != "drawer" or state["drawer"] == "open")
    return {**state, block: "grasped", "grasped": 1} if ready else None


def calvin_starts() -> list[dict]:
    """The 192 symbolic start states in official order: one or two blocks on the table, the others in different halves of the cabinet."""
    places = [p for p in product(("table", "slider_right", "slider_left"), repeat=3)
              if p.count("table") in (1, 2) and p.count("slider_right") < 2 and p.count("slider_left") < 2]  # fmt: skip
    fixtures = product((0, 1), (0, 1), ("right", "left"), ("closed", "open"))
    return [dict(zip(KEYS, (*fixture, *place, 0), strict=True)) for fixture in fixtures for place in places]


def _step(task: int, state: tuple) -> tuple | None:
    """`calvin_outcome` on values that can be remembered: an index into CALVIN_TASKS, a state's values."""
    after = calvin_outcome(CALVIN_TASKS[task], dict(zip(KEYS, state, strict=True)))
    return after and tuple(after.values())


def _draw(index: int, start: dict, count: int) -> list[tuple[str, ...]]:
    """The first `count` of random draws of five tasks, seeded with `index`, that are a chain from `start`.

    A draw is `RandomState.choice(34, 5, replace=False)`: the first five of a shuffle. About 7500 draws make one chain, so shuffles are made
    by the thousand: a Generator over the same bits shuffles each row just as RandomState does (the digest of all chains is checked).
    """
    bits = np.random.MT19937()
    bits.state = np.random.RandomState(index).get_state(legacy=False)
    generator, rows = np.random.Generator(bits), np.empty((1024, len(CALVIN_TASKS)), np.int64)
    categories = sorted({calvin_category(task) for task in CALVIN_TASKS})
    category = np.array([1 << categories.index(calvin_category(task)) for task in CALVIN_TASKS])
    after, root, found = functools.cache(_step), tuple(start.values()), []
    begins = np.array([after(task, root) is not None for task in range(len(CALVIN_TASKS))])
    while True:
        rows[:] = np.arange(len(CALVIN_TASKS))
        draws = generator.permuted(rows, axis=1, out=rows)[:, :5]
        draws = draws[begins[draws[:, 0]]]
        distinct = np.bitwise_or.reduce(category[draws], 1) == category[draws].sum(1)
        for draw in draws[distinct].tolist():
            if functools.reduce(lambda state, task: state and after(task, state), draw, root):
                found.append(tuple(CALVIN_TASKS[task] for task in draw))
                if len(found) == count:
                    return found


@functools.cache
def _official_chains() -> str:
    """The 1000 official chains as JSON, [[[key, value] of the start state ...], [task ...]] each; about 4 seconds, then remembered."""
    starts, count = calvin_starts(), CALVIN.chains
    shares = [len(part) for part in np.array_split(range(count), len(starts))]
    chains = [(list(start.items()), list(tasks)) for i, start in enumerate(starts) for tasks in _draw(i, start, shares[i])]
    np.random.RandomState(0).shuffle(chains)
    text = json.dumps(chains)
    if _sha256(text) != SEQUENCES:
        raise UserError("these are not CALVIN's official chains: this numpy draws other random numbers", f"digest {SEQUENCES[:16]}",
                        f"{_sha256(text)[:16]} with numpy {np.__version__}", "use numpy 1.26 ... 2.4, where this was tested")
    return text


def _sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def calvin_sequences(n: int = 1000, cache: str | Path | None = None, log=print) -> list[tuple[dict, tuple[str, ...]]]:
    """The first n of CALVIN's 1000 official (symbolic start state, five tasks). The official `get_sequences(n)` draws others if n < 1000.

    cache: a folder where they are kept as `calvin_sequences.json`, a file with the official list's sha256; a damaged one is made anew.
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 1 <= n <= CALVIN.chains:
        raise UserError("no such number of CALVIN chains", f"1 ... {CALVIN.chains}", n)
    file = Path(cache).expanduser() / "calvin_sequences.json" if cache is not None else None
    text = file.read_bytes() if file and file.is_file() else None
    if text is None or _sha256(text) != SEQUENCES:
        if text is not None:
            log(f"{file} is damaged (not the official chains): it is made anew")
        text = _official_chains()
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{os.getpid()}.part")
            part.write_text(text)
            os.replace(part, file)
    return [(dict(map(tuple, start)), tuple(tasks)) for start, tasks in json.loads(text)[:n]]


# ---- CALVIN: start states and wordings -----------------------------------------------------------------------------------------

ROBOT_OBS = (0.02586889, -0.2313129, 0.5712808, 3.09045411, -0.02908596, 1.50013585, 0.07999963,  # tcp xyz, Euler xyz, gripper width
             -1.21779124, 1.03987629, 2.11978254, -2.34205014, -0.87015899, 1.64119093, 0.55344928, 1.0)  # 7 joints, gripper open
CABINET = {"slider_left": (-0.240851662, 0.0924044687, 0.460990009), "slider_right": (0.070341633, 0.0924044687, 0.460990009)}
TABLE_SLOTS = ((0.0500000896, -0.120000177, 0.459990009), (0.229995412, -0.11999514, 0.45999001))
YAW = (math.pi / 2 - math.pi / 8, math.pi / 2 + math.pi / 8)


def fnv1_32(text: str) -> int:
    """FNV-1 as pyhash computes it for a Python 3 string: from 0, not the usual offset, over UTF-16-LE."""
    value = 0
    for byte in text.encode("utf-16-le"):
        value = (value * 0x01000193 & 0xFFFFFFFF) ^ byte
    return value


def calvin_start_state(symbolic: dict) -> dict[str, np.ndarray]:
    """{"robot_obs": (15,), "scene_obs": (24,)} float64 of one of the 192 start states, metres and radians, bit for bit the official ones.

    scene_obs: slider, drawer, button, switch joint, lightbulb, led, then (xyz, Euler xyz) of the red, blue and pink block. Slots and yaws
    are drawn by the legacy generator, seeded with a hash of the state's values; numpy's global generator is not touched.
    Only for scene D, where CALVIN evaluates: the places are scene D's, and A and C list the blocks in another order (A: pink, blue, red;
    C: blue, red, pink), so that there the vector would put blocks in each other's places.
    """
    starts, found = calvin_starts(), {key: symbolic.get(key) for key in KEYS}
    if set(symbolic) != set(KEYS) or found not in starts:
        raise UserError("not one of CALVIN's 192 start states", f"{', '.join(KEYS)} as in calvin_starts()", symbolic)
    state = starts[starts.index(found)]  # plain numbers, in the order that the hash depends on
    rng, slots = np.random.RandomState(fnv1_32(str(state.values()))), list(TABLE_SLOTS)
    rng.shuffle(slots)
    red, blue, pink = (state[block] for block in BLOCKS)
    table = (slots[0], slots[1] if red == "table" else slots[0], slots[1])
    scene = np.zeros(24)
    scene[0] = 0.28 if state["slider"] == "left" else 0
    scene[1] = 0.22 if state["drawer"] == "open" else 0
    scene[3:6] = 0.088 * state["lightbulb"], state["lightbulb"], state["led"]
    for first, place, slot in zip((6, 12, 18), (red, blue, pink), table, strict=True):
        scene[first:first + 3] = CABINET.get(place, slot)
        scene[first + 5] = rng.uniform(*YAW)
    return {"robot_obs": np.array(ROBOT_OBS), "scene_obs": scene}


def calvin_chains(n: int = 1000, cache: str | Path | None = None) -> list[tuple[dict[str, np.ndarray], tuple[str, ...]]]:
    """What `chains.evaluate` takes: (start state, tasks) of the first n official chains."""
    return [(calvin_start_state(symbolic), tasks) for symbolic, tasks in calvin_sequences(n, cache)]


SENTENCES = "calvin_models/conf/annotations/new_playtable_validation.yaml"
SENTENCES_DIGEST = "4ceaad8d0e5a9965bc89815f4904f33e44ae58ff7b35d1a5c4ee8cc243c137bd"  # sha256 of its content


def calvin_validation_sentences(checkout: str | Path) -> dict[str, str]:
    """task -> the one sentence that official evaluation says, read from the user's checkout of mees/calvin (not of calvin_env alone).

    They are not carried here; `sims.tabletop.language.VALIDATION` is our own wording and not the benchmark's. A changed file is refused.
    """
    import yaml
    checkout = Path(checkout).expanduser().resolve()
    file = next((place for place in (checkout / SENTENCES, checkout.parent / SENTENCES) if place.is_file()), None)
    if file is None:
        raise UserError("CALVIN's validation sentences are not there", checkout / SENTENCES, "no such file",
                        "git clone https://github.com/mees/calvin and give that folder (calvin_env alone does not hold them)")
    try:
        sentences = yaml.safe_load(file.read_bytes())
        digest = _sha256(json.dumps(sentences, sort_keys=True))
    except (yaml.YAMLError, TypeError) as error:
        digest = str(error)
    if digest != SENTENCES_DIGEST:
        raise UserError(f"{file} does not hold the official sentences", f"content {SENTENCES_DIGEST}", digest,
                        f"git -C {file.parent} checkout fa03f01f -- {file.name}")
    return {task: sentence for task, (sentence,) in sentences.items()}


# ---- LIBERO --------------------------------------------------------------------------------------------------------------------

MANIFEST = Path(__file__).parents[3] / "papers" / "libero" / "protocols.toml"
SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
INIT_STATES = 50  # official ones of each task


@dataclass(frozen=True)
class LiberoProtocol:
    """One harness's convention. Gripper numbers are the harness's; in our simulators -1 closes and +1 opens, the reverse of LIBERO's."""

    name: str
    source: str  # repository @ commit, file
    trials: int  # episodes a task; episode i starts from official init state i
    max_steps: dict  # suite -> environment steps that the policy has
    settle_steps: int  # with the gripper opening, after the init state is set; not counted
    seeding: str  # when numpy's global generator, which places fixtures, is seeded: "once a task" | "each episode" (with seed + episode)
    seed: int  # the simulator's
    render: int  # px, both cameras
    cameras: list  # that the policy sees
    rotated: list  # those that the harness turns by 180 degrees before the policy sees them
    actions_per_query: int  # of each chunk executed
    notes: dict  # what is said in words: init state, model input, gripper, success, exceptions, denominator, departure (ours)


def libero_protocol(name: str, file: str | Path = MANIFEST) -> LiberoProtocol:
    """A convention by name (openvla, openvla-oft, openpi, lerobot), read from the manifest and checked."""
    try:
        found = tomllib.loads(Path(file).read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{file} cannot be read", "TOML, one table a convention", error, "restore it from the repository") from error
    table = {"name": name, **found[_known("LIBERO protocol", name, found)]}
    kinds = {field.name: field.type for field in fields(LiberoProtocol)}
    wrong = [f"{key} = {table.get(key, 'missing')!r}" for key in sorted(kinds.keys() | table.keys())
             if key not in kinds or type(table.get(key)) is not kinds[key]]
    if not wrong:
        steps, counts = table["max_steps"], [table[key] for key in ("trials", "settle_steps", "render", "actions_per_query")]
        fine = {f"max_steps = {steps}": set(steps) == set(SUITES),
                "a number below 1": all(type(n) is int and n > 0 for n in (*steps.values(), *counts)),
                f"seeding = {table['seeding']!r}": table["seeding"] in ("once a task", "each episode")}
        wrong = [what for what, ok in fine.items() if not ok]
    if wrong:
        raise UserError(f"{file}: convention {name} is wrong", f"the fields of LiberoProtocol: {', '.join(kinds)}", "; ".join(wrong))
    return LiberoProtocol(**table)


def libero_chains(protocol: LiberoProtocol, suite: str, tasks: list[str], episodes: int | None = None, layout: str = "official",
                  seed: int | None = None) -> list[tuple[dict, tuple[str]]]:
    """What `chains.evaluate` takes: ({suite, task, init, layout, seed}, (task,)) for the first `episodes` (None: all trials) of each task.

    layout "wide" moves target and basket, since official init states of libero_object can be solved blind. The simulator is re-seeded
    before *every* reset, with seed + episode (seed: None for the convention's own). LeRobot does the same. The others seed once a task and
    let resets draw on, so that an episode depends on those before it: their first episode is reproduced; in later ones fixtures (cabinet,
    stove, rack; 1-2 cm) are placed by other draws of the same distribution. libero_object has no fixtures.
    """
    _known("LIBERO suite", suite, protocol.max_steps)
    _known("layout", layout, ("official", "wide"))
    episodes, first = protocol.trials if episodes is None else episodes, protocol.seed if seed is None else seed
    if isinstance(tasks, str) or not tasks or not all(isinstance(task, str) for task in tasks) or len(set(tasks)) < len(tasks):
        raise UserError("which LIBERO tasks?", "a list of names, each once", repr(tasks))
    if episodes < 1 or (layout == "official" and episodes > INIT_STATES):
        raise UserError(f"no {episodes} episodes a task", f"1 ... {INIT_STATES}, one for each official init state", episodes,
                        "layout='wide' has any number")
    return [({"suite": suite, "task": task, "init": episode % INIT_STATES, "layout": layout, "seed": first + episode}, (task,))
            for task in tasks for episode in range(episodes)]
