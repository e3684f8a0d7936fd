"""Where the model looked: record attention while it acts, reduce it to a map, draw it, and measure it against the gaze box.

    static = static_maps(model, observations, instructions)         # (B, rows, columns); in single steps:
    with record(model) as recorded:
        model.act(observations, instructions)
    tokens = reduce(recorded.maps())                                # (B, image tokens), each sums to 1
    static, wrist = split(tokens, model.config.grid, static_rows)   # the canvas holds the static camera above the wrist camera
    measure(static[0], box)                                         # {"mass", "uniform", "iou", "iou_uniform"}

A model shows its `decoder` (transformers) and `image_positions`, the slice of the sequence that holds the image tokens. What is seen is
attention *from the positions that predict actions to image tokens*. It is not proof of use: what passes through other tokens
(instruction, proprioception, keypoints) is not in the map, so floors (uniform attention, another episode's box) stand beside each number.
"""

from contextlib import contextmanager

import cv2
import numpy as np

from repro.intervals import bootstrap
from repro.machine import UserError

MAP = "inferno"  # its lightness rises with the value: dark to bright in grey print too


class Recording:
    """Attention of one `act` call, layer by layer."""

    def __init__(self, layers: int):
        self.layers = [[] for _ in range(layers)]

    def maps(self) -> np.ndarray:
        """float32 (B, layers, heads, queries, image tokens); one query per action token, weights as the softmax gave them."""
        if not all(self.layers):
            raise UserError("no attention was recorded", "a call of act() inside the block", "none", "act inside `with record(model)`")
        sizes = {rows.shape[0] for layer in self.layers for rows in layer}
        if len(sizes) > 1:
            raise UserError("one block records one batch size", "one", sorted(sizes), "use one block per act() call")
        return np.stack([np.concatenate(layer, axis=2) for layer in self.layers], axis=1)


@contextmanager
def record(model):
    """Record while the block runs; hooks and the attention implementation are put back after it, whatever happens.

    Fused attention (sdpa, flash) gives no weights, so the decoder runs "eager" inside the block. Of each forward only the last query is
    kept: the position that predicts the next action token (the prompt's last token first, then one per generated token).
    """
    decoder, image = model.decoder, model.image_positions
    modules = [m for m in decoder.modules() if type(m).__name__.endswith("Attention") and hasattr(m, "layer_idx")]
    if not modules:
        raise UserError("the decoder has no attention modules to record", "transformers decoder layers", type(decoder).__name__)
    recording, before = Recording(len(modules)), decoder.config._attn_implementation

    def keep(layer: int):
        def hook(_module, _inputs, output):
            weights = output[1]  # (B, heads, queries, keys)
            recording.layers[layer].append(weights[:, :, -1:, image].detach().float().cpu().numpy())
        return hook

    hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(sorted(modules, key=lambda m: m.layer_idx))]
    decoder.set_attn_implementation("eager")
    try:
        yield recording
    finally:
        decoder.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def reduce(attention: np.ndarray, layers: int | list[int] | str = -1, heads: int | list[int] | str = "mean") -> np.ndarray:
    """(..., layers, heads, queries, image tokens) -> (..., image tokens): mean over the chosen layers and heads and over all queries,
    then renormalised over the image tokens to sum 1."""
    def pick(array, which, axis):
        return array if which == "mean" else np.take(array, np.atleast_1d(which), axis)
    if attention.ndim < 4:
        raise UserError("attention has a wrong shape", "(..., layers, heads, queries, image tokens)", attention.shape)
    tokens = pick(pick(np.asarray(attention, np.float64), layers, -4), heads, -3).mean((-4, -3, -2))
    return tokens / np.maximum(tokens.sum(-1, keepdims=True), 1e-12)


def image_share(attention: np.ndarray, layers: int | list[int] | str = -1) -> float:
    """How much of all attention of these layers goes to image tokens at all, before `reduce` renormalises."""
    chosen = attention if layers == "mean" else np.take(attention, np.atleast_1d(layers), -4)
    return float(chosen.sum(-1).mean())


def caption(layers: int | list[int] | str = -1, heads: int | list[int] | str = "mean") -> str:
    """The sentence that belongs under every map."""
    which = {"-1": "last layer", "mean": "mean over layers"}.get(str(layers), f"layer {layers}")
    return (f"Attention from the action tokens' positions to the image tokens, {which}, "
            f"{'mean over heads' if heads == 'mean' else f'head {heads}'}, renormalised over image tokens, static camera only.")


def split(tokens: np.ndarray, grid: tuple[int, int], static_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(..., image tokens) -> maps of the static (..., static_rows, columns) and the wrist camera (..., the other rows, columns).

    Each covers its whole picture: the canvas stretches both to full width, so token (y, x) of the static part stands for the
    rectangle [x / columns, (x+1) / columns] x [y / static_rows, (y+1) / static_rows] of the static image.
    """
    rows, columns = grid
    if tokens.shape[-1] != rows * columns or not 0 < static_rows <= rows:
        raise UserError("the map does not fit the token grid", f"{rows} x {columns} tokens", tokens.shape, "take them from the model")
    canvas = tokens.reshape(*tokens.shape[:-1], rows, columns)
    return canvas[..., :static_rows, :], canvas[..., static_rows:, :]


def static_maps(model, observations: list[dict], instructions: list[str], layers: int | list[int] | str = -1,
                heads: int | list[int] | str = "mean") -> np.ndarray:
    """(B, static rows, columns): record one `act` call, reduce and keep the static camera's part (sum < 1: the wrist has the rest)."""
    with record(model) as recorded:
        model.act(observations, instructions)
    config = model.config
    return split(reduce(recorded.maps(), layers, heads), config.grid, config.grid[0] * config.static_rows // config.height)[0]


# ---- numbers -------------------------------------------------------------------------------------------------------------------

def _inside(edges: int, low: float, high: float) -> np.ndarray:
    """(edges,) share of each of `edges` equal cells of [0, 1] that lies between low and high."""
    borders = np.arange(edges + 1) / edges
    return np.clip(np.minimum(borders[1:], high) - np.maximum(borders[:-1], low), 0, None) * edges


def mass_in(static: np.ndarray, box: np.ndarray) -> float:
    """Share of the static camera's attention inside the box (xyxy in [0, 1]); cells the border cuts count by area."""
    x0, y0, x1, y1 = np.clip(np.asarray(box, float), 0, 1)
    rows, columns = static.shape
    return float(_inside(rows, y0, y1) @ static @ _inside(columns, x0, x1) / max(static.sum(), 1e-12))


def measure(static: np.ndarray, box: np.ndarray, top: float = 0.1, size: int = 200) -> dict[str, float]:
    """One map (rows, columns) against one gaze box (xyxy in [0, 1]).

    mass: attention inside the box; uniform: what uniform attention puts there, the box' area. iou: overlap of the box with the top
    `top` share of the static image's pixels (map interpolated to size x size); iou_uniform: what a random mask of that area expects.
    """
    x0, y0, x1, y1 = np.clip(np.asarray(box, float), 0, 1)
    area = max(x1 - x0, 0) * max(y1 - y0, 0)
    if area == 0:
        raise UserError("the gaze box is empty", "x0 < x1 and y0 < y1, in [0, 1]", list(box), "leave frames without a box out")
    smooth = cv2.resize(static.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    hot = (smooth >= np.quantile(smooth, 1 - top)) & (smooth > 0)
    centre = (np.arange(size) + 0.5) / size
    inside = ((centre >= y0) & (centre < y1))[:, None] & ((centre >= x0) & (centre < x1))[None]
    iou = float((hot & inside).sum() / max((hot | inside).sum(), 1))
    return {"mass": mass_in(static, box), "uniform": float(area), "iou": iou, "iou_uniform": float(top * area / (top + area - top * area))}


def measure_all(statics: np.ndarray, boxes: np.ndarray, episodes: np.ndarray, top: float = 0.1, seed: int = 0) -> dict[str, dict]:
    """Metrics of a run record over many frames: maps (M, rows, columns), boxes (M, 4), episodes (M,) of the frames.

    Means per episode, 95 % intervals by bootstrap over episodes (n counts episodes). The shuffled control puts each map on the box
    of a frame of *another* episode: a map that is concentrated but not on this target gains nothing over it.
    """
    rng, episodes = np.random.default_rng(seed), np.asarray(episodes)
    found = [measure(static, box, top) for static, box in zip(statics, boxes, strict=True)]
    columns = {key: np.array([f[key] for f in found]) for key in found[0]}
    if len(np.unique(episodes)) > 1:
        others = [rng.choice(np.flatnonzero(episodes != e)) for e in episodes]
        columns["shuffled"] = np.array([mass_in(static, boxes[j]) for static, j in zip(statics, others, strict=True)])
        columns["gain"] = columns["mass"] - columns["shuffled"]
    names = {"mass": "attention mass in the gaze box", "uniform": "attention mass, uniform (box area)",
             "iou": "attention IoU with the gaze box", "iou_uniform": "attention IoU, random mask",
             "shuffled": "attention mass in another episode's box",
             "gain": "attention mass, gaze box minus another episode's box"}
    metrics = {}
    for key, values in columns.items():
        means = np.array([values[episodes == e].mean() for e in np.unique(episodes)])
        low, high = bootstrap(means, (-1, 1) if key == "gain" else (0, 1), seed)
        metrics[names[key]] = {"value": float(means.mean()), "n": len(means), "low": low, "high": high}
    return metrics


# ---- pictures ------------------------------------------------------------------------------------------------------------------

def overlay(image: np.ndarray, static: np.ndarray, box: np.ndarray | None = None, alpha: float = 0.6,
            top: float | None = None) -> np.ndarray:
    """uint8 (H, W, 3): the map over the picture in grey, dark to bright, and the box; `top` is the value drawn brightest (default: the
    map's own maximum; share one between panels)."""
    from matplotlib import colormaps
    height, width = image.shape[:2]
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    smooth = cv2.resize(static.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    colour = colormaps[MAP](np.clip(smooth / max(top or float(static.max()), 1e-12), 0, 1))[..., :3] * 255
    drawn = np.ascontiguousarray(((1 - alpha) * grey + alpha * colour).round().astype(np.uint8))
    return drawn if box is None else boxed(drawn, box)


def boxed(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A copy of the picture with the box (xyxy in [0, 1]) in white with a black rim."""
    drawn, (height, width) = image.copy(), image.shape[:2]
    x0, y0, x1, y1 = (np.asarray(box, float) * (width, height, width, height)).round().astype(int)
    for shade, thick in ((0, 3), (255, 1)):
        cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), (shade,) * 3, thick)
    return drawn


def compare(rows: list[tuple[str, np.ndarray, dict[str, np.ndarray], np.ndarray]], note: str = ""):
    """Figure: one row per frame, the picture and then one map per model on one colour scale, each with its mass in the gaze box.

    rows: (label, static image uint8 (H, W, 3), {model name: static map (rows, columns)}, gaze box xyxy in [0, 1]); every row names the
    same models in the same order. Colours are attention relative to uniform (1 = uniform).
    """
    from matplotlib import cm, colors
    from matplotlib.figure import Figure
    names = list(rows[0][2])
    relative = [[static / max(static.sum(), 1e-12) * static.size for static in maps.values()] for _, _, maps, _ in rows]
    top = max(float(static.max()) for line in relative for static in line)
    fig = Figure(figsize=(2.9 * (1 + len(names)) + 0.9, 3.1 * len(rows) + 0.7), layout="constrained", dpi=130)
    axes = fig.subplots(len(rows), 1 + len(names), squeeze=False)
    for line, (label, image, maps, box), statics in zip(axes, rows, relative, strict=True):
        big = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
        line[0].imshow(boxed(big, box))
        line[0].set_title(label, fontsize=8, wrap=True)
        for ax, name, static in zip(line[1:], maps, statics, strict=True):
            found = measure(static, box)
            ax.imshow(overlay(big, static, box, top=top))
            ax.set_title(f"{name}\nin the box {found['mass']:.3f} (uniform {found['uniform']:.3f})", fontsize=8)
        for ax in line:
            ax.set_axis_off()
    bar = fig.colorbar(cm.ScalarMappable(colors.Normalize(0, top), MAP), ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("attention per token / uniform (1 = uniform)", fontsize=8)
    if top > 1:
        bar.ax.axhline(1, color="white", linewidth=1)
    fig.get_layout_engine().set(h_pad=0.1)
    fig.supxlabel(note or caption(), fontsize=7, wrap=True)
    return fig
