"""`repro evaluate --check`: would this checkpoint act, and if not, at which step does the way from data to success break?

A low loss says nothing of that: the system that VGGT-VLA comes from reached 0.0017 and succeeded in 0 of 9 episodes. So, cheap first:

    loads         the checkpoint belongs to the parts, cameras, state and actions that are here
    forward       a chunk of finite actions comes out for each observation
    same twice    the same input gives the same bits
    action range  actions lie where the data's lie
    knows data    its actions are nearer to the recorded ones than any constant action's
    reads         told another task, they are further away
    looks         shown another episode's pictures, they change, and are further away
    statistics    the state is scaled by statistics of this data
    gripper       the command's sign agrees with the fingers in the data
    orientation   pictures lie the same way for the data's hand, the model and the simulator
    replay        a demonstration's own actions succeed in the simulator, from its own start
    own rollouts  the checkpoint itself does these demonstrations' tasks, from the same starts
    overfits      a fresh model of the same config learns the shortest of them, and plays of it with pushes, in a few minutes
    closed loop   ... and then succeeds from its start
    alone         a fresh model that learned the demonstration without these plays does so too

Each is a `doctor.Check` with the next step; lines `data` and `simulator` come only where these fail. What comes after one that fails
can fail for the same reason: begin with the first.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from repro.data.episodes import Store
from repro.data.evidence import STRONG, SURE, Evidence
from repro.doctor import FAIL, OK, WARN, Check
from repro.evaluation import answers, rehearsal
from repro.evaluation.answers import Frame, asked
from repro.evaluation.policies import load_policy
from repro.machine import UserError
from repro.sims.base import Launch
from repro.sims.worker import WorkerLost

REVERSED = 0.25  # share of frames with the data's gripper sign, below which a model says the reverse
KNOWN = 0.8  # share of the best constant answer's error, above which the data are not known
UNMOVED = 0.02  # share of that error, below which answers that change with the pictures count as the same
LEARNED = 0.3  # share of the mean action's error at which a demonstration is learned
OTHER = 25.0  # mean grey levels between the simulator's picture and the data's: another scene
ACTS = ("same twice", "action range", "knows data", "reads", "looks")  # lines that need actions
LAST, TRAINED = ("replay", "own rollouts"), ("overfits", "closed loop", "alone")  # lines that need a simulator; those that train as well
BROKEN = (UserError, WorkerLost, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OSError, cv2.error)  # what fails a line
DIMENSIONS = ("x", "y", "z", "rotation x", "rotation y", "rotation z", "gripper")


def checks(folder: Path | str, store: Store | Path | str, simulator: str | None = None, overfit: bool = True, minutes: float = 3.0,
           language: str | None = None, log: Callable[[str], None] = lambda line: None,
           elsewhere: dict[str, str] | None = None) -> Iterator[Check]:
    """The lines, as they are found; all of them once checkpoint and data load, WARN with the reason where one cannot be tried.

    simulator: tabletop | grocery | calvin | libero, "none" (nothing is stepped), None: the store's own. minutes: of each of the two
    trainings in the last three lines, which `overfit` False leaves out. language, elsewhere: other places of frozen parts (load_policy).
    Nothing is written but into a temporary folder.
    """
    try:
        store = store if isinstance(store, Store) else Store(store)
        policy = load_policy(folder, store, language=language, elsewhere=elsewhere)
    except Exception as error:  # whatever it is that keeps it from loading is what this line is for
        yield _failed("loads", error)
        return
    count = sum(p.numel() for p in policy.parameters())
    yield Check("loads", OK, f"{type(policy).__name__}, {count:,} parameters, step {getattr(policy, 'trained', {}).get('step', 'unknown')}")
    try:
        frames, evidence, starts = answers.frames_of(store), evidence_of(store), rehearsal.starts(store)
    except BROKEN as error:
        yield _failed("data", error)
        return
    acts = _guarded("forward", forward, policy, frames)
    yield acts
    if acts.status == OK:
        yield _guarded("same twice", same_twice, policy, frames)
        yield _guarded("action range", action_range, policy, frames, store)
        yield from known(policy, frames)
    else:
        yield from _untried(ACTS, "no actions", "mend forward first")
    yield _guarded("statistics", statistics, policy, store)
    yield _guarded("gripper", gripper, policy if acts.status == OK else None, frames, evidence)
    where, why, step, lines = None, "nothing is stepped", "leave out --simulator none", LAST
    if simulator != "none" and not starts:
        why, step = "the store does not say where its demonstrations start", (
            "check on files that hold the simulator's states (LIBERO's HDF5; scripted ones of repro demos): LeRobot sets hold none")
    elif simulator != "none":
        try:
            where = rehearsal.simulator_of(store, simulator, starts[0].scene)
        except BROKEN as error:
            yield _failed("simulator", error)
            why, step = "no simulator", "mend the line simulator"
    yield _guarded("orientation", orientation, policy, store, evidence, where, starts[0] if starts else None)
    if where is not None:
        ended = {}
        yield _guarded("replay", replay, store, where, starts, ended)
        starts = [start for start in starts if ended.get(start.index)]
        why, step, lines = "no demonstration whose own actions succeed", "mend replay first", LAST[1:]
    if where is None or not starts:
        yield from _untried((*lines, *(TRAINED if overfit else ())), why, step)
        return
    if acts.status == OK:
        yield _guarded("own rollouts", own_rollouts, policy, store, where, starts)
    else:
        yield from _untried(("own rollouts",), "no actions", "mend forward first")
    if overfit:
        yield from overfits(policy, store, starts, where, minutes, log)


def _failed(name: str, error: Exception) -> Check:
    """A line from an error: what was expected and found, and its own next step."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    steps = [line.removeprefix("next step: ") for line in lines if line.startswith("next step: ")]
    told = "; ".join(line for line in lines if not line.startswith("next step: "))
    told = told if isinstance(error, UserError) else f"{type(error).__name__}: {told}"
    return Check(name, FAIL, told, "; ".join(steps) or "read the message")


def _guarded(name: str, function: Callable, *arguments) -> Check:
    try:
        return function(*arguments)
    except BROKEN as error:
        return _failed(name, error)


def _untried(names: tuple[str, ...], why: str, step: str) -> Iterator[Check]:
    return (Check(name, WARN, f"not tried: {why}", step) for name in names)


# ---- the policy on recorded frames ---------------------------------------------------------------------------------------------------

def forward(policy, frames: list[Frame]) -> Check:
    """Finite chunks (B, K, 7)."""
    said, count = asked(policy, frames[:4]), len(frames[:4])
    if said.ndim != 3 or len(said) != count or said.shape[1] == 0 or said.shape[2] != 7:
        return Check("forward", FAIL, f"actions {said.shape}, expected ({count}, K, 7)", "look at the model's chunk and action_dim")
    if not np.isfinite(said).all():
        return Check("forward", FAIL, "actions that are not finite", "look at the training's loss for NaN; train again with a lower rate")
    return Check("forward", OK, f"{said.shape[1]} actions of 7 numbers for each observation")


def same_twice(policy, frames: list[Frame]) -> Check:
    """The same input, with others asked in between."""
    before = asked(policy, frames[:4])
    asked(policy, frames[4:8] or frames[:4])
    apart = float(np.abs(before - asked(policy, frames[:4])).max())
    if apart:
        return Check("same twice", FAIL, f"the same observation gave actions up to {apart:.3g} apart",
                     "call eval() in act (dropout, augmentation), decode greedily, keep no state between queries")
    return Check("same twice", OK, "the same observation gives the same actions, bit for bit")


def action_range(policy, frames: list[Frame], store: Store) -> Check:
    """Every number within the data's least and greatest, with a tenth of their distance to spare."""
    said, stats = asked(policy, frames).reshape(-1, 7), store.stats["action"]
    low, high = (np.asarray(stats[key], float).reshape(-1) for key in ("min", "max"))
    spare = 0.1 * (high - low) + 0.02
    outside = [f"{name} {said[:, d].min():.2f} ... {said[:, d].max():.2f} (data {low[d]:.2f} ... {high[d]:.2f})"
               for d, name in enumerate(DIMENSIONS) if said[:, d].min() < low[d] - spare[d] or said[:, d].max() > high[d] + spare[d]]
    if outside:
        return Check("action range", FAIL, "; ".join(outside), "un-normalise with this data's statistics: actions are relative, in [-1, 1]")
    return Check("action range", OK, f"{len(frames)} observations: all seven numbers where the data's are")


def known(policy, frames: list[Frame]) -> Iterator[Check]:
    """Three lines: the policy's error beside the best constant answer's, and beside its own without the words or the pictures."""
    try:
        found = answers.errors(policy, frames)
    except BROKEN as error:
        yield _failed("knows data", error)
        yield from _untried(("reads", "looks"), "no errors", "mend knows data first")
        return
    own, floor = float(found.own.mean()), float(found.constant.mean())
    what = f"{len(frames)} observations: error {own:.3f}, the best constant action's {floor:.3f}"
    yield Check("knows data", OK, what) if own < KNOWN * floor else Check(
        "knows data", FAIL, what, "it has learned less than this data holds: train longer, look at the loss, check on its training data")
    if found.told is None:
        yield Check("reads", WARN, "the data have one task only, so whether it reads is not seen", "check on data of several tasks")
    else:
        worse, what = answers.rises(frames, found.own, found.told), f"error {own:.3f}, told another task {float(found.told.mean()):.3f}"
        yield Check("reads", OK, what) if worse else Check("reads", FAIL, f"{what}: it is no worse for it", (
            "look at the words' part: where one scene has several tasks, success without it is luck"))
    if found.shown is None:
        yield Check("looks", WARN, "there is one frame only", "check on more data")
        return
    what = f"error {own:.3f}, shown other pictures {float(found.shown.mean()):.3f}"
    if found.moved < UNMOVED * floor:
        yield Check("looks", FAIL, f"{what}: its answers stay as they are", "it acts without eyes: look at the cameras and at frozen parts")
    elif not answers.rises(frames, found.own, found.shown):
        yield Check("looks", WARN, f"{what}: hardly worse, though its answers change", "through the state alone? evaluate wide, blanked")
    else:
        yield Check("looks", OK, what)


def statistics(policy, store: Store) -> Check:
    """The checkpoint's mean and deviation of the state beside this store's: within a deviation, and a factor of three."""
    theirs, ours = (s["observation.state"] for s in (policy.stats, store.stats))
    mean, std, least = *(np.asarray(ours[key], float) for key in ("mean", "std")), 0.02
    scale = np.maximum(std, least)
    shift = np.abs(np.asarray(theirs["mean"], float) - mean) / scale
    ratio = np.maximum(np.asarray(theirs["std"], float), least) / scale
    wrong = [f"state[{d}]: mean {theirs['mean'][d]:.3g}, std {theirs['std'][d]:.3g} (data {mean[d]:.3g}, {std[d]:.3g})"
             for d in np.flatnonzero((shift > 1) | (ratio > 3) | (ratio < 1 / 3))]
    if wrong:
        return Check("statistics", FAIL, "; ".join(wrong[:3]) + f"; {len(wrong)} of {len(mean)} numbers",
                     "use the statistics of the training data, or check on data of the same robot, units and tasks")
    return Check("statistics", OK, "the state's mean and deviation are those of this data")


# ---- conventions: the data, the model, the simulator ---------------------------------------------------------------------------------

def evidence_of(store: Store, episodes: int = 12) -> dict[str, float]:
    """What the pictures and fingers of the first episodes say (data/evidence.py)."""
    seen, names = Evidence(), ["observation.images.static", "observation.state", "action"]
    names += ["info.drawn"] if "info.drawn" in store.columns else []
    for info in store.episodes[:episodes]:
        episode = store.read(info.index, names)
        episode.columns.setdefault("info.drawn", np.ones(info.length, bool))
        seen.add(episode)
    return seen.found()


def gripper(policy, frames: list[Frame], evidence: dict[str, float]) -> Check:
    """+1 opens in the data; and the model, if it acts, says what the data say no more seldom than the commoner sign alone would."""
    agree = evidence["open"]
    if agree < -SURE:
        return Check("gripper", FAIL, f"+1 should open, but the fingers in the data do the reverse (agreement {agree:+.2f})",
                     "import the data again with another --gripper: closes | opens | opens01")
    told = f"+1 opens: the fingers agree ({agree:+.2f})"
    if policy is not None:
        signs = np.sign([one.following[0, 6] for one in frames])
        same, common = (np.sign(asked(policy, frames)[:, 0, 6]) == signs).mean(), max((signs == one).mean() for one in (-1, 1))
        if same < REVERSED:
            return Check("gripper", FAIL, f"the model says the reverse of the data in {100 * (1 - same):.0f} % of the frames",
                         "turn the sign of its gripper: -1 closes and +1 opens here, the reverse of LIBERO's own")
        told += f", the model's actions in {100 * same:.0f} % of the frames"
        if same < common:
            return Check("gripper", WARN, f"{told}, where the commoner sign alone is right in {100 * common:.0f} %",
                         "it does not know when to close: see knows data, train longer")
    if np.isnan(agree):
        return Check("gripper", WARN, "the fingers in the data never move", "check on demonstrations in which they do")
    return Check("gripper", OK, told)


def orientation(policy, store: Store, evidence: dict[str, float], where: Launch | None, start: rehearsal.Start | None) -> Check:
    """Where pixels move beside the hand in the data, by the import's own thresholds; the model's config; what the simulator draws at a
    demonstration's start."""
    shown, again = getattr(policy.config, "orientation", "upright"), "import the data again with --orientation raw | rotated | upright"
    found = {name: evidence[name] for name in ("right", "up") if not np.isnan(evidence[name])}
    said, least = ", ".join(f"{name} {value:+.2f}" for name, value in found.items()), min(found.values(), default=0.0)
    if least < -STRONG:
        return Check("orientation", FAIL, f"in the data the pixels that move contradict the hand ({said})", again)
    if shown != store.meta.get("orientation", "upright").split(",")[0]:
        return Check("orientation", FAIL, f"the model is for {shown} pictures, the data's are {store.meta.get('orientation', 'upright')}",
                     "train and evaluate with pictures that lie the same way")
    told, status, step = f"pixels move where the hand is ({said})" if said else "the data say nothing", OK, ""
    if least < -SURE:
        told, status, step = f"in the data the pixels that move speak against the hand ({said})", WARN, f"look at the pictures; {again}"
    if where is None or start is None:
        return Check("orientation", status if said else WARN, told, step if said else "look at the pictures")
    apart = {name: rehearsal.distance(store, where, start, name) for name in ("static", "wrist")}
    for camera, errors in apart.items():
        best, as_it_is = min(errors, key=errors.get), errors["as they should"]
        if best != "as they should" and errors[best] < 0.8 * as_it_is:
            return Check("orientation", FAIL, f"the simulator's {camera} picture fits the data's best {best}: {errors[best]:.1f} grey "
                         f"levels, {as_it_is:.1f} as it is", "start the simulator with orientation='upright', or import the data again")
        if as_it_is > OTHER:
            return Check("orientation", FAIL, f"the simulator's {camera} picture is not the data's: {as_it_is:.1f} grey levels apart",
                         "same assets, renderer and camera as the demonstrations'; compare the two pictures")
    return Check("orientation", status, f"{told}; the simulator draws the data's first picture, to "
                 f"{apart['static']['as they should']:.1f} grey levels", step)


# ---- one demonstration ---------------------------------------------------------------------------------------------------------------

def replay(store: Store, where: Launch, starts: list[rehearsal.Start], ended: dict[int, int | None] | None = None) -> Check:
    """The actions of the first demonstrations, from their own starts: all of them succeed. ended: gets the steps of each episode's."""
    ended = {} if ended is None else ended
    for start in starts:
        ended[start.index] = rehearsal.play(store, where, start)
    failed = [f"episode {start.index} ({start.task})" for start in starts if ended[start.index] is None]
    if failed:
        return Check("replay", FAIL, f"{len(failed)} of {len(ended)} demonstrations do not succeed: {', '.join(failed)}",
                     "look at the gripper's sign, the action's units, rows that were left out, fixtures, and the simulator's version")
    return Check("replay", OK, f"{len(ended)} demonstrations succeed with their own actions, after {_listed(ended.values())} steps")


def own_rollouts(policy, store: Store, where: Launch, starts: list[rehearsal.Start]) -> Check:
    """The checkpoint itself, from the starts of these demonstrations, which it may have been trained on: far too few for a success rate."""
    ended, limit = rehearsal.perform(policy, store, where, starts)
    done = [steps for steps in ended if steps is not None]
    what = f"{len(done)} of {len(ended)} done from demonstrations' starts, {rehearsal.EXECUTE} actions of a chunk, at most {limit} steps"
    if not done:
        return Check("own rollouts", FAIL, what, "do not score it yet: see knows data, reads, looks; train longer, or on more data")
    if len(done) < len(ended):
        return Check("own rollouts", WARN, what, "so few say little: score it, repro evaluate --suite")
    return Check("own rollouts", OK, f"{what}: after {_listed(done)} steps")


def _listed(numbers) -> str:
    return ", ".join(map(str, numbers))


def overfits(policy, store: Store, starts: list[rehearsal.Start], where: Launch, minutes: float, log: Callable) -> Iterator[Check]:
    """A fresh model of the same config, trained on the shortest demonstration and pushed plays of it, then in the simulator from its start;
    and another one that was trained on the demonstration alone."""
    start, made = min(starts, key=lambda start: store.episodes[start.index].length), []
    how, shortest = (policy, store, start, where, minutes, log), f"the shortest of {len(starts)}"
    yield _guarded("overfits", learns, *how, shortest, made)
    if made:
        yield _guarded("closed loop", succeeds, made.pop(), store, start, where, log)
    else:
        yield from _untried(("closed loop",), "nothing was learned", "mend overfits first")
    yield _guarded("alone", alone, *how)


def learns(policy, store: Store, start: rehearsal.Start, where: Launch, minutes: float, log: Callable, which: str, made: list) -> Check:
    """The demonstration with pushed plays of it. made: gets the model."""
    model, found = rehearsal.learn(policy, store, start, where, minutes, log)
    made.append(model)
    what = f"episode {start.index} ({which}) and {found.plays} pushed plays of it, {_trained(found)}"
    return Check("overfits", OK, what) if found.error < LEARNED * found.floor else Check(
        "overfits", FAIL, what, "give it more --minutes; if the error stays, look at the learning rate and at what the model is shown")


def succeeds(model, store: Store, start: rehearsal.Start, where: Launch, log: Callable) -> Check:
    """The model that learned it, from its start."""
    (done,), limit = rehearsal.perform(model, store, where, [start], log)
    if done is None:
        return Check("closed loop", FAIL, f"not done after {limit} steps from its own start",
                     "do not train on more data before this succeeds: give it more --minutes, execute fewer actions of a chunk")
    return Check("closed loop", OK, f"done after {done} steps (the demonstration: {store.episodes[start.index].length})")


def alone(policy, store: Store, start: rehearsal.Start, where: Launch, minutes: float, log: Callable) -> Check:
    """The demonstration without plays of it: learned, and from its start."""
    model, found = rehearsal.learn(policy, store, start, where, minutes, log, pushed=0)
    (done,), limit = rehearsal.perform(model, store, where, [start], log)
    what = f"without the pushed plays, {_trained(found)}; {'not done' if done is None else 'done'} after {done or limit} steps"
    return Check("alone", OK, what) if done is not None else Check(
        "alone", WARN, what, "one demonstration shows no way back onto its path: what counts is closed loop, the line above")


def _trained(found: rehearsal.Learned) -> str:
    return f"{found.steps} steps in {found.minutes:.1f} min: error {found.error:.3f}, mean action {found.floor:.3f}"
