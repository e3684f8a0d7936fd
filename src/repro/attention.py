"""Where the model looked: record attention, reduce it to a map, and measure the map against the gaze box. Pictures: attention_figures.

    static = static_maps(model, observations, instructions)         # (B, rows, columns); in single steps:
    recorded = attention_of(model, observations, instructions)      # or `with record(model) as recorded:` around one act()
    tokens = reduce(recorded.maps())                                # (B, image tokens), each sums to 1
    static, wrist = split(tokens, model.config.grid, static_rows)   # the canvas holds the static camera above the wrist camera
    columns = frame_numbers(static, boxes, episodes, tasks)         # every number of every frame, with its controls
    averages(columns), differences(columns, columns_of_another)     # metrics of a run record

A model shows its `decoder` (transformers) and `image_positions`, the slice of the sequence that holds the image tokens. What is seen is
attention *from the positions that predict actions to image tokens*. It is not proof of use: what passes through other tokens
(instruction, proprioception, keypoints) is not in the map. So each number stands beside its controls:

- uniform: what attention spread evenly over the picture would score with the same box;
- another episode's box: the same map scored on boxes of frames of other episodes. What a map gains over it, it owes to this episode;
- the same task's box elsewhere: a map that has learned where such things usually are gains nothing over this one;
- the box itself on this grid: the map whose tokens have as much as of them lies in the box. Boxes smaller than a token score below 1.
"""

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from repro.data.overlap import iou
from repro.intervals import bootstrap
from repro.machine import UserError

# ---- recording -----------------------------------------------------------------------------------------------------------------


class Recording:
    """Attention of one `act` call or of one forward pass, layer by layer."""

    def __init__(self, layers: int):
        self.layers = [[] for _ in range(layers)]
        self.rolled = [None] * layers  # per layer: how much of each image token is in each position (B, positions, image tokens)
        self.rows = []  # of the last layer's, those that predict actions

    def maps(self) -> np.ndarray:
        """float32 (B, layers, heads, queries, image tokens); one query per action token, weights as the softmax gave them."""
        if not all(self.layers):
            raise UserError("no attention was recorded", "a call of act() inside the block that runs the decoder's modules", "none",
                            "act inside `with record(model)`, or use attention_of() where act() computes attention by itself")
        sizes = {rows.shape[0] for layer in self.layers for rows in layer}
        if len(sizes) > 1:
            raise UserError("one block records one batch size", "one", sorted(sizes), "use one block per act() call")
        return np.stack([np.concatenate(layer, axis=2) for layer in self.layers], axis=1)

    def rollout(self) -> np.ndarray:
        """(B, image tokens), each sums to 1: attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928), mean over the queries.

        The product over all layers of (A + I) / 2, A the mean over heads: it follows attention through other tokens too.
        In a causal model early tokens are read by all that follow, so rollout leans to the top of the picture whatever is there.
        """
        if not self.rows:
            raise UserError("no rollout was recorded", "record(model, rollout=True)", "rollout=False")
        tokens = np.concatenate(self.rows, axis=1).mean(1, dtype=np.float64)
        return tokens / np.maximum(tokens.sum(-1, keepdims=True), 1e-12)

    def roll(self, layer: int, weights: torch.Tensor, image: slice, queries: int) -> None:
        """Follow the image tokens through one layer; `weights` (B, heads, queries, keys) of a whole prompt or of what follows a cache."""
        mean = weights.detach().float().mean(1)
        if mean.shape[1] == mean.shape[2]:
            self.rolled[layer] = None  # a new sequence begins
        below = torch.eye(mean.shape[2], device=mean.device)[None, :, image] if layer == 0 else self.rolled[layer - 1]
        if below is None or below.shape[1] != mean.shape[2]:
            raise UserError("rollout needs every query of the sequence", f"{mean.shape[2]} positions so far", "fewer were recorded",
                            "begin the block before the prompt is read, without a preallocated cache")
        new = (mean @ below + below[:, -mean.shape[1]:]) / 2
        self.rolled[layer] = new if self.rolled[layer] is None else torch.cat([self.rolled[layer], new], dim=1)
        if layer == len(self.layers) - 1:
            self.rows.append(new[:, -queries:].cpu().numpy())


@contextmanager
def record(model, queries: int = 1, rollout: bool = False):
    """Record while the block runs; hooks and the attention implementation are put back after it, whatever happens.

    Fused attention (sdpa, flash) gives no weights, so the decoder runs "eager" inside the block. Of each forward the last `queries`
    positions are kept: 1 while tokens are written one by one (the prompt's last token first, then one per generated token). Only what
    runs the decoder's own modules is seen: a loop with attention of its own is not, use `attention_of`.
    """
    decoder = model.decoder
    modules = [m for m in decoder.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]
    if not modules:
        raise UserError("the decoder has no attention modules to record", "transformers decoder layers", type(decoder).__name__)
    recording, before = Recording(len(modules)), decoder.config._attn_implementation

    def keep(layer: int):
        def hook(_module, _inputs, output):
            weights, image = output[1], model.image_positions  # (B, heads, queries, keys); where the image lies in this batch
            if weights is None:
                raise UserError("an attention module gave no weights", "eager attention", decoder.config._attn_implementation)
            recording.layers[layer].append(weights[:, :, -queries:, image].detach().float().cpu().numpy())
            if rollout:
                recording.roll(layer, weights, image, queries)
        return hook

    hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(sorted(modules, key=lambda m: m.layer_idx))]
    decoder.set_attn_implementation("eager")
    try:
        yield recording
    finally:
        decoder.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def attention_of(model, observations: list[dict], instructions: list[str], actions: np.ndarray | None = None,
                 rollout: bool = False, source: str = "queries") -> Recording:
    """The attention with which the model predicts its own actions, or `actions` (B, chunk, action_dim) if they are given.

    One forward pass over the whole sequence, so it does not matter how `act` decodes. For it a model offers `sequence(observations,
    instructions, ids)`: embeddings (B, L, d) of the prompt and of all action tokens but the last (`ids` None: the greedy ones), so that
    the last chunk x action_dim positions are those that predict; or a pair of them and a mask (B, L) that is False where a row is filled
    up. `image_positions` must hold for it. A model with a method attention(observations, instructions, source), which gives (B, layers,
    heads, queries, image tokens), records itself; of it alone `source` may be another than the positions that predict actions, "words".
    Any other is recorded while it acts.
    """
    if hasattr(model, "attention"):
        if actions is not None or rollout:
            raise UserError("this model's attention is that of its own actions, layer by layer", "no actions, no rollout",
                            type(model).__name__, 'leave `actions` out and choose a layer or "mean"')
        found = model.attention(observations, instructions, source)
        recorded = Recording(found.shape[1])
        recorded.layers = [[found[:, layer]] for layer in range(found.shape[1])]
        return recorded
    if source != "queries":
        raise UserError("of this model the positions that predict actions are recorded", '"queries"', source)
    queries, was_training = model.config.chunk * model.config.action_dim, model.training
    model.eval()
    try:
        if not hasattr(model, "sequence"):
            return _while_acting(model, observations, instructions, actions, queries, rollout)
        ids = None if actions is None else model.tokens.encode(np.asarray(actions).reshape(len(actions), -1))
        with torch.inference_mode():
            found = model.sequence(observations, instructions, ids)
            embeddings, mask = found if isinstance(found, tuple) else (found, None)
            filled = {} if mask is None else {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}
            with record(model, queries, rollout) as recorded, getattr(model, "arithmetic", nullcontext)():
                model.decoder.model(inputs_embeds=embeddings, use_cache=False, **filled)
        return recorded
    finally:
        model.train(was_training)


def _while_acting(model, observations, instructions, actions, queries: int, rollout: bool) -> Recording:
    if actions is not None:
        raise UserError("attention under given actions needs a model with sequence()", "a method sequence(observations, instructions, ids)",
                        type(model).__name__, "leave `actions` out: the model's own actions")
    with record(model, rollout=rollout) as recorded:
        model.act(observations, instructions)
    found = min(map(len, recorded.layers))
    recorded.layers, recorded.rows = [rows[:queries] for rows in recorded.layers], recorded.rows[:queries]  # without an end token's
    if found < queries:
        raise UserError("act() ran the decoder's attention modules for some action tokens only", f"{queries} queries", found,
                        "give the model a method sequence(observations, instructions, ids)")
    return recorded


# ---- maps ----------------------------------------------------------------------------------------------------------------------

Which = int | list[int] | str  # one layer or head (negative: from the end), some, or "mean"; for layers also "rollout"


def reduce(attention: np.ndarray, layers: Which = -1, heads: Which = "mean") -> np.ndarray:
    """(..., layers, heads, queries, image tokens) -> (..., image tokens): mean over the chosen layers and heads and over all queries,
    then renormalised over the image tokens to sum 1."""
    def pick(array, which, axis, name):
        if isinstance(which, str) and which == "mean":
            return array
        n, chosen = array.shape[axis], np.atleast_1d(which)
        if chosen.dtype.kind not in "iu" or chosen.ndim > 1 or not chosen.size or chosen.min() < -n or chosen.max() >= n:
            raise UserError(f"there are no such {name}", f'"mean", or of {n} {name}: {-n} .. {n - 1}, one or a list', repr(which),
                            'rollout is of all layers, mean over heads: static_maps(layers="rollout"), or Recording.rollout()')
        return np.take(array, chosen, axis)
    if attention.ndim < 4:
        raise UserError("attention has a wrong shape", "(..., layers, heads, queries, image tokens)", attention.shape)
    tokens = pick(pick(attention, layers, -4, "layers"), heads, -3, "heads").mean((-4, -3, -2), dtype=np.float64)
    return tokens / np.maximum(tokens.sum(-1, keepdims=True), 1e-12)


def caption(layers: Which = -1, heads: Which = "mean") -> str:
    """The sentence that belongs under every map."""
    if layers == "rollout":
        return "Attention rollout over all layers (mean over heads), action tokens' positions to image tokens, static camera only."
    which = {"-1": "last layer", "mean": "mean over layers"}.get(str(layers), f"layer {layers}")
    return (f"Attention from the action tokens' positions to the image tokens, {which}, "
            f"{'mean over heads' if heads == 'mean' else f'head {heads}'}, renormalised over image tokens, static camera only.")


def need_numbers(maps: np.ndarray) -> None:
    """Refuse maps with NaN: a mean over frames would leave these out and count the others."""
    if bad := int((~np.isfinite(maps)).sum()):
        raise UserError("an attention map holds no numbers", "finite values", f"{bad} of {np.size(maps)} are not",
                        "the weights are damaged or float16 overflowed: repro evaluate --check, or load the model in float32")


def split(tokens: np.ndarray, grid: tuple[int, int], static_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(..., image tokens) -> maps of the static (..., static_rows, columns) and the wrist camera (..., the other rows, columns).

    Each covers its whole picture: the canvas stretches both to full width, so token (y, x) of the static part stands for the
    rectangle [x / columns, (x+1) / columns] x [y / static_rows, (y+1) / static_rows] of the static image.
    """
    rows, columns = grid
    if tokens.shape[-1] != rows * columns or not 0 < static_rows <= rows:
        raise UserError("the map does not fit the token grid", f"{rows} x {columns} tokens", tokens.shape, "take them from the model")
    need_numbers(tokens)
    canvas = tokens.reshape(*tokens.shape[:-1], rows, columns)
    return canvas[..., :static_rows, :], canvas[..., static_rows:, :]


def static_maps(model, observations: list[dict], instructions: list[str], layers: Which = -1, heads: Which = "mean",
                actions: np.ndarray | None = None, source: str = "queries") -> np.ndarray:
    """(B, static rows, columns): record, reduce and keep the static camera's part (sum < 1: the wrist has the rest)."""
    if layers == "rollout" and heads != "mean":
        raise UserError("rollout follows the mean over heads", 'heads="mean"', repr(heads), "leave `heads` out, or choose a layer")
    recorded, config = attention_of(model, observations, instructions, actions, layers == "rollout", source), model.config
    tokens = recorded.rollout() if layers == "rollout" else reduce(recorded.maps(), layers, heads)
    if hasattr(config, "views"):  # a grid for each camera, the static one's first
        if config.views[0] != "static":
            raise UserError("this model does not see the static camera", "static among its views", config.views)
        rows, columns = config.grid
        return split(tokens, (len(config.views) * rows, columns), rows)[0]
    return split(tokens, config.grid, round(config.grid[0] * config.static_rows / config.height))[0]  # pixel rows are rounded down


# ---- numbers of one map --------------------------------------------------------------------------------------------------------

def _inside(edges: int, low: float, high: float) -> np.ndarray:
    """(edges,) share of each of `edges` equal cells of [0, 1] that lies between low and high."""
    borders = np.arange(edges + 1) / edges
    return np.clip(np.minimum(borders[1:], high) - np.maximum(borders[:-1], low), 0, None) * edges


def covered(rows: int, columns: int, box: np.ndarray) -> np.ndarray:
    """(rows, columns) share of each cell of the picture that lies in the box (xyxy in [0, 1])."""
    x0, y0, x1, y1 = np.clip(np.asarray(box, float), 0, 1)
    return np.outer(_inside(rows, y0, y1), _inside(columns, x0, x1))


def mass_in(static: np.ndarray, box: np.ndarray) -> float:
    """Share of the static camera's attention inside the box (xyxy in [0, 1]); cells the border cuts count by area."""
    return float((static * covered(*static.shape, box)).sum() / max(static.sum(), 1e-12))


def peaks(static: np.ndarray) -> np.ndarray:
    """(k, 2) x, y in [0, 1] of the map's maximum, more than one where tokens tie: the centres of these tokens.

    The map interpolated linearly to the picture has its maximum exactly there.
    """
    y, x = np.nonzero(static >= static.max() * (1 - 1e-9))
    return np.stack([(x + 0.5) / static.shape[1], (y + 0.5) / static.shape[0]], axis=1)


def pointing(static: np.ndarray, box: np.ndarray, tolerance: float) -> float:
    """Pointing game: 1 if the map's maximum lies in the box or within `tolerance` (share of the picture's side) of it; ties share."""
    x0, y0, x1, y1 = np.asarray(box, float)
    x, y = peaks(static).T
    away = np.hypot(np.maximum(0, np.maximum(x0 - x, x - x1)), np.maximum(0, np.maximum(y0 - y, y - y1)))
    return float((away <= tolerance + 1e-9).mean())


def smooth(static: np.ndarray, size: int) -> np.ndarray:
    """(size, size): the map interpolated linearly over its picture; token values stand at token centres."""
    def weights(cells: int) -> np.ndarray:
        at = np.clip((np.arange(size) + 0.5) * cells / size - 0.5, 0, cells - 1)
        return np.clip(1 - np.abs(at[:, None] - np.arange(cells)), 0, None)
    return weights(static.shape[0]) @ np.asarray(static, np.float64) @ weights(static.shape[1]).T


def equal_area_iou(picture: np.ndarray, box: np.ndarray, ranked: np.ndarray | None = None) -> float:
    """Overlap of the box with as many of the brightest pixels as the box covers; pixels that tie for the last places share them.

    `ranked`: the picture's values in rising order, where one picture meets many boxes.
    """
    inside, flat = covered(*picture.shape, box).ravel(), picture.ravel()
    area = inside.sum()
    ranked = np.sort(flat) if ranked is None else ranked
    level = ranked[max(0, flat.size - 1 - int(area))]
    slack = 1e-9 * max(abs(float(ranked[-1])), 1e-300)
    above, tied = flat > level + slack, np.abs(flat - level) <= slack
    both = inside[above].sum() + inside[tied].mean() * (area - above.sum())
    return float(both / (2 * area - both))


def entropy(static: np.ndarray) -> float:
    """Of the map, in units of the uniform map's: 0 where one token has everything, 1 where all have the same."""
    p = static.ravel() / max(static.sum(), 1e-12)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum() / np.log(static.size) + 0.0)


def measure(static: np.ndarray, box: np.ndarray, tolerance: float = 5, size: int = 200) -> dict[str, float]:
    """One map (rows, columns) against one gaze box (xyxy in [0, 1]) of a picture of `size` x `size` px; `tolerance` in px.

    mass: attention inside the box; pointing: is the maximum in it; iou: overlap at equal area; each with what uniform attention scores
    (mass: the box' area; pointing: share of tokens that would hit; iou: a random mask of that area). entropy does not ask for the box.
    """
    _need_area(box)
    area = float(covered(1, 1, box)[0, 0])
    return {"mass": mass_in(static, box), "mass_uniform": area, "pointing": pointing(static, box, tolerance / size),
            "pointing_uniform": pointing(np.ones_like(static), box, tolerance / size), "iou": equal_area_iou(smooth(static, size), box),
            "iou_uniform": area / (2 - area), "entropy": entropy(static)}


def _need_area(box: np.ndarray) -> None:
    if covered(1, 1, box)[0, 0] <= 0:
        raise UserError("the gaze box is empty", "x0 < x1 and y0 < y1, in [0, 1]", list(box), "leave frames without a box out")


# ---- numbers of many frames ----------------------------------------------------------------------------------------------------
# Columns: {name: (M,) values, NaN where a frame has none, "episode": (M,)}. They become metrics by `averages` and `differences`.

UNIFORM = {"mass": "uniform (box area)", "pointing": "uniform (any token)", "iou": "uniform (random mask)"}
ITSELF = "the box itself on this grid"
APART = 0.5  # IoU with the gaze box, from which a box of another episode is no control


def quantities(tolerance: float = 5, size: int = 200) -> dict[str, tuple[str, str]]:
    """Key -> (name, preposition) of the numbers that ask for a box."""
    return {"mass": ("attention mass", "in"), "pointing": (f"pointing game ({tolerance:g} of {size} px)", "in"),
            "iou": ("equal-area IoU", "with")}


def other_frames(episodes: np.ndarray, tasks: Sequence[str] | None, draws: int, rng: np.random.Generator) -> list[np.ndarray]:
    """For each frame up to `draws` frames of other episodes (of the same task, if tasks are given): first an episode, then a frame."""
    tasks, found = np.asarray([""] * len(episodes) if tasks is None else tasks), []
    frames_of = {e: np.flatnonzero(episodes == e) for e in np.unique(episodes)}
    for episode, task in zip(episodes, tasks, strict=True):
        candidates = [e for e, frames in frames_of.items() if e != episode and tasks[frames[0]] == task]
        drawn = rng.integers(len(candidates), size=draws) if candidates else []
        found.append(np.array([rng.choice(frames_of[candidates[i]]) for i in drawn], int))
    return found


def frame_numbers(statics: np.ndarray, boxes: np.ndarray, episodes: np.ndarray, tasks: Sequence[str] | None = None, draws: int = 8,
                  tolerance: float = 5, size: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of maps (M, rows, columns) against boxes (M, 4): the numbers of `measure`, and their controls.

    `tasks` (M,), one name per episode, adds the control "the same task's box elsewhere": of another episode of the task, and with an IoU of
    less than 0.5 with the frame's own. (A button is at the same place in every episode of a scene; its box there would be no control, and
    such frames have none.) A control is the mean over up to `draws` boxes; the draw depends on `seed`, episodes and boxes only, so two
    models are held against the same ones.
    """
    episodes, boxes, named = np.asarray(episodes), np.asarray(boxes, float), quantities(tolerance, size)
    need_numbers(statics)
    for box in boxes:
        _need_area(box)
    controls = {"another episode's box": other_frames(episodes, None, draws, np.random.default_rng([seed, 0]))}
    if tasks is not None:
        same = other_frames(episodes, tasks, 4 * draws, np.random.default_rng([seed, 1]))
        controls["the same task's box elsewhere"] = [others[iou(boxes[i], boxes[others]) < APART][:draws] for i, others in enumerate(same)]
    rows = []
    for i, (static, box) in enumerate(zip(statics, boxes, strict=True)):
        picture = smooth(static, size)
        ranked = np.sort(picture, axis=None)
        score = {"mass": lambda b, m=static: mass_in(m, b), "pointing": lambda b, m=static: pointing(m, b, tolerance / size),
                 "iou": lambda b, m=picture, r=ranked: equal_area_iou(m, b, r)}
        found, itself = (measure(m, box, tolerance, size) for m in (static, covered(*static.shape, box)))
        row = {}
        for key, (name, at) in named.items():
            row[f"{name} {at} the gaze box"] = own = found[key]
            row[f"{name}, {UNIFORM[key]}"] = found[f"{key}_uniform"]
            for control, others in controls.items():
                row[f"{name} {at} {control}"] = other = np.mean([score[key](boxes[j]) for j in others[i]]) if len(others[i]) else np.nan
                row[f"{name}, gaze box minus {control}"] = own - other
            row[f"{name}, {ITSELF}"] = itself[key]
        rows.append({**row, "attention entropy (1 = uniform)": found["entropy"]})
    return {"episode": episodes, **{name: np.array([row[name] for row in rows]) for name in rows[0]}}


def frame_jumps(statics: np.ndarray, boxes: np.ndarray, episodes: np.ndarray, steps: np.ndarray, distance: float = 0.2
                ) -> dict[str, np.ndarray]:
    """Columns: 1 where the map's maximum moved by more than `distance` (of the picture's side) since the episode's frame before, else 0.

    Beside it the same for the gaze box' centre, and for the map's maximum with the episode's frames in random order (exact: the share of
    all its pairs that lie that far apart). A map that never moves scores 0: compare with the box. `steps` (M,) must be evenly spaced.
    """
    episodes, steps, boxes = np.asarray(episodes), np.asarray(steps), np.asarray(boxes, float)
    need_numbers(statics)
    at = {"of the map": np.stack([peaks(static).mean(0) for static in statics]),
          "of the gaze box": (boxes[:, :2] + boxes[:, 2:]) / 2}
    strides = {int(d) for e in np.unique(episodes) for d in np.diff(np.sort(steps[episodes == e]))}
    if len(strides) != 1 or 0 in strides:
        raise UserError("jumps need episodes whose frames are evenly spaced", "one stride, two frames or more", sorted(strides)[:8],
                        "take every k-th frame of each episode")
    label = f"(over {distance:g} of the width, frames {strides.pop()} apart)"
    names = {key: f"jump rate {key} {label}" for key in ("of the map", "of the gaze box", "of the map in random order")}
    minus = f"jump rate, map minus random order {label}"
    columns = {"episode": episodes, **{name: np.full(len(episodes), np.nan) for name in (*names.values(), minus)}}
    for e in np.unique(episodes):
        order = np.flatnonzero(episodes == e)[np.argsort(steps[episodes == e])]
        for key, points in at.items():
            far = np.linalg.norm(points[order][:, None] - points[order][None], axis=-1) > distance + 1e-9
            columns[names[key]][order[1:]] = np.diagonal(far, 1)
            if key == "of the map" and len(order) > 1:
                columns[names["of the map in random order"]][order[1:]] = far[np.triu_indices(len(order), 1)].mean()
    columns[minus] = columns[names["of the map"]] - columns[names["of the map in random order"]]
    return columns


def _metric(values: np.ndarray, episodes: np.ndarray, bounds: tuple[float, float], seed: int) -> dict:
    known = ~np.isnan(values)
    means = np.array([values[known & (episodes == e)].mean() for e in np.unique(episodes[known])])
    (low, high), value = bootstrap(means, bounds, seed), float(means.mean())
    return {"value": value, "n": len(means), "low": min(low, value), "high": max(high, value)}


def averages(columns: dict[str, np.ndarray], seed: int = 0, tasks: list[str] | None = None) -> dict[str, dict]:
    """Metrics of a run record: mean per episode, mean over episodes (n counts them), 95 % interval by bootstrap over episodes.

    tasks: that of each frame; these are then counted instead, since episodes of a task show much the same."""
    of = columns["episode"] if tasks is None else np.unique(tasks, return_inverse=True)[1]
    return {name: _metric(values, of, (-1, 1) if " minus " in name else (0, 1), seed)
            for name, values in columns.items() if name != "episode" and not np.isnan(values).all()}


def differences(a: dict[str, np.ndarray], b: dict[str, np.ndarray], seed: int = 0) -> dict[str, dict]:
    """Metrics "<name>, difference": columns of model a minus those of model b over the same frames, paired; averaged like `averages`.

    What depends on the boxes alone (uniform, the box itself, the box' own jumps) has no difference and is left out.
    """
    if a.keys() != b.keys() or not np.array_equal(a["episode"], b["episode"]):
        raise UserError("the two models were not measured on the same frames", "the same columns and episodes",
                        f"{len(a['episode'])} and {len(b['episode'])} frames", "measure both with the same boxes, episodes and tasks")
    fixed = (*UNIFORM.values(), ITSELF, "of the gaze box (over")
    return {f"{name}, difference": _metric(a[name] - b[name], a["episode"], (-2, 2) if " minus " in name else (-1, 1), seed)
            for name in a if name != "episode" and not any(part in name for part in fixed) and not np.isnan(a[name]).all()}

