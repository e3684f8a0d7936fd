"""Everything tiny: tower, VAE and language model of a ReconVLA that trains on a CPU, and what the first two learn before it.

    pretrain("parts", states=recorded(Store("data/store")))       # pictures, tower, VAE: minutes on one core; found again afterwards
    ReconVLA.build(PRESETS["tiny"], stats, instructions=..., **load_parts("parts"))

A policy of this size, trained for minutes, learns to read the proprioception and never to see. So the tower learns to see first, as
SigLIP did: it tells the nine items apart, at a quarter of the resolution, in pictures of the play table's training scenes A, B and C,
most of them repainted, and of as many tables with furniture elsewhere, so that what it learns is not the wood of three tables, nor
where three drawers are. Scene D is never shown to any part.
"""
import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, Qwen2Config, Qwen2ForCausalLM
from transformers.masking_utils import sdpa_mask

from repro.gaze.crops import crop
from repro.machine import UserError, fast_bfloat16
from repro.models.towers import compose, resize

SIZE, GRID, STATIC_TOKENS, PATCH = 128, 8, 6, 16  # canvas px, tokens a side, rows of them for the static camera, px a token
STATIC_ROWS, CELLS = STATIC_TOKENS * PATCH, 4  # px of the static camera; cells per token and axis of the segmentation
CHANNELS = 16
VAE_SIZE = SIZE // 2  # px of the canvas as the VAE sees it: two latents a token on 8 x 8, and a quarter of the work of full size
VAE = dict(block_out_channels=[8, 16, 32], down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3,
           layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=VAE_SIZE, mid_block_add_attention=False, shift_factor=0.0)
BACKGROUND = 0.3  # weight of what is no item
OWN_LOOK = 10  # one look in so many is a scene as it is
NEW_LOOKS = 2**31  # repainted looks of pretraining are numbered from here, looks of an evaluation below
KL = 1e-7


class Residual(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.net = nn.Sequential(nn.GroupNorm(4, c), nn.ReLU(), nn.Conv2d(c, c, 3, 1, 1), nn.GroupNorm(4, c), nn.ReLU(),
                                 nn.Conv2d(c, c, 3, 1, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.net(x)


class TinyTower(nn.Module):
    """Canvas -> one token per 16 x 16 px, row by row: 8 * channels numbers of what is there, then 2 * channels of where the token is.

    The place is a fixed sine code of the token's centre, as strong as all the rest, which a linear layer can read off. frozen: does not
    train, whatever `train` or a caller's loop says, and needs `weights`; nothing random is ever frozen.
    """

    image_mean = image_std = (0.5, 0.5, 0.5)

    def __init__(self, image_size: tuple[int, int] = (SIZE, SIZE), channels: int = CHANNELS, weights: dict[str, Tensor] | None = None,
                 frozen: bool = False, identity: dict | None = None):
        super().__init__()
        c, self.image_size, self.identity = channels, tuple(image_size), identity
        self.grid, self.dim = (image_size[0] // PATCH, image_size[1] // PATCH), 10 * c
        self.net = nn.Sequential(nn.Conv2d(3, c, 5, 2, 2), nn.GroupNorm(4, c), nn.ReLU(), nn.Conv2d(c, 2 * c, 3, 2, 1),
                                 nn.GroupNorm(4, 2 * c), nn.ReLU(), nn.Conv2d(2 * c, 4 * c, 3, 2, 1), Residual(4 * c),
                                 nn.Conv2d(4 * c, 8 * c, 3, 2, 1), Residual(8 * c), nn.GroupNorm(4, 8 * c))
        self.register_buffer("places", places(self.grid, 2 * c), persistent=False)
        self.pretrained, self.frozen = weights is not None, False
        if weights is not None:
            self.load_state_dict(weights)
        if frozen:
            self.freeze()

    def freeze(self) -> "TinyTower":
        if not self.pretrained:
            raise UserError("a random tower must not be frozen", expected="trained weights, or a tower that trains along",
                            next_step="pass vision= of tiny.load_parts, or set freeze_vision=False (and cache_features=False)")
        self.frozen = True
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TinyTower":
        return super().train(mode and not self.frozen)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        tokens = self.net(pixels).flatten(2).transpose(1, 2)
        return torch.cat([tokens, self.places.expand(len(tokens), -1, -1)], dim=2)


def places(grid: tuple[int, int], width: int) -> Float[Tensor, "n width"]:
    """Sines and cosines of the centres' x, then y, in [-1, 1], periods from 4 down to the token's size: deviation 2 on average."""
    codes = []
    for n in grid[::-1]:
        centre = (torch.arange(n) + 0.5) / n * 2 - 1
        angles = math.pi * centre[:, None] * 2.0 ** torch.linspace(-1, 2, width // 4)
        codes.append(8**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1))
    x, y = codes
    return torch.cat([x.repeat(grid[0], 1), y.repeat_interleave(grid[1], 0)], dim=1)


def attention_float32(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):
    """PyTorch's attention in float32 whatever the autocast: on CPUs the bfloat16 kernel is the slower one. For transformers' interface."""
    with torch.autocast(query.device.type, enabled=False):
        causal = attention_mask is None and query.shape[2] > 1
        out = F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attention_mask, dropout, causal, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("sdpa_float32", attention_float32)
AttentionMaskInterface.register("sdpa_float32", sdpa_mask)


def language(config, tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 of the config's sizes, random."""
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=config.intermediate, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.heads, max_position_embeddings=4096, tie_word_embeddings=True,
        initializer_range=config.init, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa_float32"))


def load_parts(folder: Path | str) -> dict:
    """What `pretrain` wrote, for ReconVLA.build: "vision", which is frozen there if the config says so, "vae", and, where it was trained,
    "language" with its "projector", "proprio" and "tokenizer"."""
    from diffusers import AutoencoderKL

    from repro.models.pointing import load_language

    vae = _need(folder, "vae")
    model = AutoencoderKL.from_config(json.loads((vae / "config.json").read_text()))
    model.load_state_dict(load_file(vae / "vae.safetensors"))
    model.identity = identity("tiny VAE", vae / "vae.safetensors")
    return {"vision": load_tower(folder), "vae": model.requires_grad_(False).eval(), **load_language(folder)}


def load_tower(folder: Path | str) -> TinyTower:
    """The tower of a folder that `pretrain_tower` wrote; it trains along until it is frozen."""
    path = _need(folder, "tower")
    weights = load_file(path / "tower.safetensors")
    return TinyTower(channels=len(weights["net.0.bias"]), weights=weights, identity=identity("tiny tower", path / "tower.safetensors"))


def _need(folder: Path | str, name: str) -> Path:
    path = Path(folder) / name
    if not (path / "about.json").is_file():
        raise UserError(f"{folder} holds no tiny parts", expected=f"{name}/about.json", found="none",
                        next_step="train them first: repro.models.tiny.pretrain")
    return path


def identity(name: str, path: Path) -> dict:
    """`whole`: a checkpoint holds these weights too, and can be loaded without this folder."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"name": name, "revision": digest[:16], "sha256": digest, "whole": True}


# ---------------------------------------------------------------------------------------------------------------- pictures


class Pictures(NamedTuple):
    """What both parts learn from. N frames, those of one look together."""

    canvas: UInt8[np.ndarray, "n 128 128 3"]
    gaze: UInt8[np.ndarray, "n 96 128 3"]  # the crop of one visible item, stretched, that stands above the wrist picture in a target
    ids: UInt8[np.ndarray, "n 32 32"]  # item at the middle of each cell, 0 for none
    robot: Float[np.ndarray, "n 15"]  # robot_obs
    places: Float[np.ndarray, "n items 3"]  # where the hand takes, pushes or presses each item, m
    looks: int


def recorded(store, scenes: Iterable[str] = ("A", "B", "C")) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{scene: (robot states (N, 15), environment states (N, 24))} of a store's episodes in these scenes."""
    robot, environment, found = store.column("observation.state"), store.column("observation.environment_state"), {}
    for scene in scenes:
        rows = [np.arange(e.start, e.start + e.length) for e in store.episodes if e.scene == scene]
        if rows:
            found[scene] = robot[np.concatenate(rows)], environment[np.concatenate(rows)]
    return found


def random_state(scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(robot_obs, environment state) of no episode: joints anywhere on their way, the hand anywhere above the table or near an item,
    a block held or not."""
    from repro.sims.tabletop import scenes as s
    from repro.sims.tabletop import tasks

    symbolic = tasks.random_symbolic(rng)
    held = s.BLOCKS[rng.integers(3)] if rng.random() < 0.3 else None
    state = tasks.initial_state(scene.name, symbolic | ({held: "grasped"} if held else {}), rng, vary_robot=True)
    robot, env = state["robot_obs"], state["scene_obs"]
    env = np.concatenate([env[:6], env[6:].reshape(3, 6)[[scene.block_order.index(b) for b in s.BLOCKS]].ravel()])
    if rng.random() < 0.5:
        env[:4] = rng.uniform(0, (scene.slider_travel, s.DRAWER_TRAVEL, s.BUTTON_TRAVEL, s.SWITCH_TRAVEL))
        env[4], env[5] = env[3] > s.SWITCH_TRAVEL / 2, rng.integers(2)
    low, high = np.array(s.WORKSPACE).T
    hand = rng.uniform((low[0], low[1], 0.46), high)
    if rng.random() < 0.6:  # near a block, the drawer's handle, the button, the lever or the door's handle
        near = [*env[6:].reshape(3, 6)[:, :3], (scene.drawer_x, -0.31 - env[1], 0.38), (*scene.button_xy, 0.48),
                (scene.switch_x, *s.SWITCH_YZ), (scene.door_right_x - env[0], 0.0, s.SLIDER_HANDLE_Z)]
        hand = np.array(near[rng.integers(len(near))]) + rng.normal(0, 0.03, 3) + (0, 0, rng.uniform(0, 0.12))
    robot[:3] = hand.clip(low, high)
    robot[5] = math.pi / 2 + rng.normal(0, 0.5)
    if held:  # upright in the hand
        block = 6 + 6 * s.BLOCKS.index(held)
        env[block: block + 3], env[block + 5], robot[6], robot[14] = robot[:3], robot[5], s.BLOCK_SIDE, -1.0
    else:
        robot[3:5] += rng.normal(0, 0.12, 2)
        robot[6], robot[14] = rng.uniform(0, s.MAX_WIDTH), rng.choice((-1.0, 1.0))
    return robot, env


def handles(scene, env: np.ndarray) -> Float[np.ndarray, "items 3"]:
    """Where the hand takes hold of each item, for an environment state (24,) with blocks red, blue, pink; led, bulb: of their switch."""
    from repro.sims.tabletop import scenes as s

    place = {}
    parts = {"slider": "handle", "drawer": "bar", "button": "button", "switch": "lever"}
    for (joint, part), value in zip(parts.items(), env[:4], strict=True):
        x0, x1, y0, y1, z0, z1 = s.moving(scene, joint)[part]
        place[joint] = np.array([x0 + x1, y0 + y1, z0 + z1]) / 2 + value * np.array(s.AXES[joint])
    blocks = dict(zip(s.BLOCKS, env[6:].reshape(3, 6)[:, :3], strict=True))
    place |= blocks | {"led": place["button"], "lightbulb": place["switch"]}
    return np.array([place[item] for item in s.ITEMS], np.float32)


def draw_pictures(count: int, scenes: Iterable[str] = ("A", "B", "C"), seed: int = 0, states: dict | None = None, held_out: bool = False,
                  per_look: int = 30) -> Pictures:
    """`count` pictures: one look in two of a training scene, mostly repainted, the other of a table of its own (scenes.scene, "R~.."),
    so that where things are must be seen. held_out: none of the others' looks and tables, and no scene as it is.

    states: of the training scenes, as `recorded` gives them; by default, and on the other tables, each one is a `random_state`.
    """
    from repro.sims.tabletop.render import render
    from repro.sims.tabletop.scenes import BLOCKS, item_boxes, scene

    scenes = _checked(scenes)
    rng, canvas, gaze, ids, robots, places = np.random.default_rng([seed, held_out]), [], [], [], [], []
    per_look = min(per_look, max(1, count // 6))  # few pictures: still some looks
    looks = -(-count // per_look)
    for i in range(looks):
        name, new = scenes[i // 2 % len(scenes)], f"~{NEW_LOOKS + (seed * 2 + held_out) * 1_000_000 + i}"
        if i % 2:
            table = scene("R" + new)
        else:
            table = scene(name if not held_out and i % OWN_LOOK == 0 else name + new)
        order = [BLOCKS.index(block) for block in table.block_order]
        for _ in range(min(per_look, count - i * per_look)):
            if states and name in states and not i % 2:
                robot, env = (part[row] for row in [rng.integers(len(states[name][0]))] for part in states[name])
            else:
                robot, env = random_state(table, rng)
            shown = render(table, robot, np.concatenate([env[:6], env[6:].reshape(3, 6)[order].ravel()]))
            boxes = list(item_boxes(shown["static_ids"]).values())
            part = crop(shown["static"], np.array(boxes[rng.integers(len(boxes))]) / len(shown["static"]))
            canvas.append(compose(shown["static"], shown["wrist"], SIZE, SIZE, STATIC_ROWS))
            gaze.append(resize(part, STATIC_ROWS, SIZE))
            robots.append(np.float32(robot))
            places.append(handles(table, env))
            ids.append(np.concatenate([
                cv2.resize(shown[f"{camera}_ids"], (GRID * CELLS, rows * CELLS), interpolation=cv2.INTER_NEAREST)
                for camera, rows in (("static", STATIC_TOKENS), ("wrist", GRID - STATIC_TOKENS))]))
    return Pictures(*map(np.stack, (canvas, gaze, ids, robots, places)), looks)


def _checked(scenes: Iterable[str]) -> tuple[str, ...]:
    scenes = tuple(scenes)
    if not scenes or set(scenes) - set("ABC"):
        raise UserError("tiny parts are trained on training scenes only", expected="some of A, B, C: D is for evaluation", found=scenes)
    return scenes


# ---------------------------------------------------------------------------------------------------------------- training


def pretrain(folder: Path | str, scenes: Iterable[str] = ("A", "B", "C"), tower_steps: int = 1200, vae_steps: int = 2000,
             language_steps: int = 1500, seed: int = 0, states: dict | None = None, pictures: int = 12_000,
             log: Callable[[str], None] = print) -> Path:
    """All parts, from pictures that are drawn once; what is there already is kept. Returns the folder, for `load_parts`.

    language_steps 0: the language model starts random."""
    from repro.models.pointing import pretrain_language

    drawn = Drawn(pictures, scenes, seed, states)
    pretrain_tower(folder, scenes, tower_steps, seed, states, pictures, log, drawn)
    pretrain_vae(folder, scenes, vae_steps, seed, states, pictures, log, drawn)
    if language_steps:
        pretrain_language(folder, language_steps, seed, states, pictures, tuple(scenes), log, drawn)
    return Path(folder)


def pretrain_tower(folder: Path | str, scenes: Iterable[str] = ("A", "B", "C"), steps: int = 1200, seed: int = 0,
                   states: dict | None = None, pictures: int = 12_000, log: Callable[[str], None] = print,
                   drawn: "Drawn | None" = None, batch: int = 32) -> Path:
    """Train a tower to tell items apart; <folder>/tower with tower.safetensors and about.json, found again if about says the same.

    about["iou"]: of each item on pictures in looks never seen. drawn: pictures that are shared with `pretrain_vae`.
    """
    path = Path(folder) / "tower"
    wanted = asked("tiny tower", _checked(scenes), steps, seed, states, pictures, batch=batch, channels=CHANNELS)
    if there(path, wanted, log):
        return path
    began, drawn = time.monotonic(), drawn or Drawn(pictures, scenes, seed, states)
    data, held = drawn.training, drawn.held_out
    with seeded(seed):
        tower, head = TinyTower(), nn.Linear(8 * CHANNELS, CELLS**2 * (len(items()) + 1))
    weight = torch.ones(len(items()) + 1)
    weight[0] = BACKGROUND

    def loss(rows: np.ndarray) -> Tensor:
        logits = head(tower(pixels(data.canvas[rows]))[..., : 8 * CHANNELS]).view(-1, len(weight))
        return F.cross_entropy(logits, cells(data.ids[rows]).flatten(), weight=weight)

    losses = descend([*tower.parameters(), *head.parameters()], loss, len(data.canvas), steps, seed, 3e-3, "tower", log, batch)
    with torch.inference_mode():
        guess = torch.cat([head(tower(pixels(part))[..., : 8 * CHANNELS]).view(len(part), GRID**2, CELLS**2, -1).argmax(-1)
                           for part in np.array_split(held.canvas, -(-len(held.canvas) // 64))])
    truth = cells(held.ids)
    iou = {item: _share(guess == k, truth == k) for k, item in enumerate(items(), 1)}
    about = wanted | {"iou": iou, "mean_iou": round(float(np.mean(list(iou.values()))), 4), "held_out": len(held.canvas),
                     "held_out_looks": held.looks} | report(data, losses, began)
    log(f"tower: mean IoU {about['mean_iou']:.2f} on {held.looks} looks never seen, {about['minutes']:.1f} min")
    return write(path, "tower.safetensors", tower.state_dict(), about)


def pretrain_vae(folder: Path | str, scenes: Iterable[str] = ("A", "B", "C"), steps: int = 2000, seed: int = 0, states: dict | None = None,
                 pictures: int = 12_000, log: Callable[[str], None] = print, drawn: "Drawn | None" = None, batch: int = 8) -> Path:
    """Train a VAE (4 x 16 x 16 numbers of a canvas of 64 x 64) on canvases and gaze targets; <folder>/vae with vae.safetensors.

    about["psnr"] on pictures in looks never seen, beside two floors: the mean picture, and pixels averaged to as many numbers.
    """
    from diffusers import AutoencoderKL

    path = Path(folder) / "vae"
    wanted = asked("tiny VAE", _checked(scenes), steps, seed, states, pictures, batch=batch, config=VAE)
    if there(path, wanted, log):
        return path
    began, drawn = time.monotonic(), drawn or Drawn(pictures, scenes, seed, states)
    data, held = drawn.training, drawn.held_out
    with seeded(seed):
        vae = AutoencoderKL.from_config(VAE)
        nn.init.constant_(vae.quant_conv.bias[VAE["latent_channels"]:], -6.0)  # drawn latents start near their mean, not drowned in noise
    random, code, done = torch.Generator().manual_seed(seed), principal(data), itertools.count()

    def loss(rows: np.ndarray) -> Tensor:
        half = len(rows) // 2
        image = F.avg_pool2d(pixels(np.concatenate([data.canvas[rows[:half]], gaze_targets(data, rows[half:])])), 2)
        posterior = vae.encode(image).latent_dist
        error = vae.decode(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=random)).sample - image
        lead = 0.1 * max(0.0, 1 - 1.5 * next(done) / steps) * (posterior.mean - code(image)).square().mean()
        return error.square().mean() + lead + KL * posterior.kl().mean()

    losses = descend(list(vae.parameters()), loss, len(data.canvas), steps, seed, 5e-3, "VAE", log, batch, 0.1)
    vae.eval()
    half = lambda data, step: {"canvas": _half(data.canvas[::step]), "gaze": _half(gaze_targets(data, np.arange(len(data.canvas))[::step]))}
    shown, trained = half(held, 1), half(data, max(1, len(data.canvas) // 200))
    with torch.inference_mode():
        codes = torch.cat([vae.encode(pixels(part)).latent_dist.mean for part in trained.values()])
        vae.register_to_config(scaling_factor=round(1 / float(codes.std()), 5))
        rebuilt = {name: _bytes(vae.decode(vae.encode(pixels(part)).latent_dist.mean).sample) for name, part in shown.items()}
    side = math.isqrt(codes[0].numel() // 3)
    averaged = lambda part: np.stack([resize(resize(one, side, side), VAE_SIZE, VAE_SIZE) for one in part])
    psnr = {name: {"vae": _psnr(rebuilt[name], part), "mean picture": _psnr(np.broadcast_to(trained[name].mean(0), part.shape), part),
                   f"averaged to {side} x {side} px": _psnr(averaged(part), part)} for name, part in shown.items()}
    about = wanted | {"psnr": psnr, "numbers": codes[0].numel(), "held_out": len(held.canvas), "held_out_looks": held.looks} | report(
        data, losses, began)
    log(f"VAE: {psnr['canvas']['vae']:.1f} dB canvas, {psnr['gaze']['vae']:.1f} dB gaze targets, {about['minutes']:.1f} min")
    config = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    return write(path, "vae.safetensors", vae.state_dict(), about, {"config.json": config})


class Drawn:
    """Pictures to learn from and held-out ones, drawn when first asked for."""

    def __init__(self, count: int, scenes: Iterable[str], seed: int, states: dict | None):
        self._how, self._made = (_checked(scenes), seed, states), {}
        self._count = {False: count, True: max(24, min(192, count // 8))}

    def _get(self, held_out: bool) -> Pictures:
        if held_out not in self._made:
            self._made[held_out] = draw_pictures(self._count[held_out], *self._how, held_out, per_look=8 if held_out else 30)
        return self._made[held_out]

    training, held_out = property(lambda self: self._get(False)), property(lambda self: self._get(True))


def items() -> tuple[str, ...]:
    from repro.sims.tabletop.scenes import ITEMS

    return ITEMS


def pixels(pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """In [-1, 1], as tower and VAE are shown them."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def gaze_targets(data: Pictures, rows: np.ndarray) -> UInt8[np.ndarray, "b 128 128 3"]:
    return np.concatenate([data.gaze[rows], data.canvas[rows][:, STATIC_ROWS:]], axis=1)


def cells(ids: UInt8[np.ndarray, "b 32 32"]) -> Tensor:
    """Items by token and cell, (B, 64, 16)."""
    return torch.from_numpy(ids).long().reshape(-1, GRID, CELLS, GRID, CELLS).permute(0, 1, 3, 2, 4).reshape(-1, GRID**2, CELLS**2)


def descend(parameters: list, loss: Callable, count: int, steps: int, seed: int, peak: float, name: str, log: Callable, batch: int,
             warm: float = 0.3, bfloat16: bool = False) -> list[float]:
    """Adam over random batches with one cycle of the learning rate; the losses. bfloat16: of matrix products, where the CPU has them."""
    optimizer, losses, began = torch.optim.AdamW(parameters, lr=peak, weight_decay=1e-4), [], time.monotonic()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=max(2, steps), pct_start=warm)
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16 and fast_bfloat16()):
            value = loss(np.random.default_rng([seed, step]).integers(count, size=batch))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(value.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            log(f"{name}: step {step + 1}/{steps}, loss {np.mean(losses[-50:]):.4f}, {(step + 1) / (time.monotonic() - began):.1f} steps/s")
    return losses


@contextlib.contextmanager
def seeded(seed: int):
    """First weights of this seed, the caller's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _share(guess: Tensor, truth: Tensor) -> float:
    """Intersection over union."""
    return round(float((guess & truth).sum() / (guess | truth).sum().clamp(min=1)), 4)


def principal(data: Pictures) -> Callable[[Tensor], Tensor]:
    """Pictures -> the first principal components of each latent's 4 x 4 pixels, of unit variance: where the VAE's latents begin.

    Left alone they fill up with brightness, and colours are never found: 19.6 dB after 400 steps (12.2 where colours are vivid), led
    away from there 22.9 dB (18.0).
    """
    step = max(1, len(data.canvas) // 200)
    some = pixels(_half(np.concatenate([data.canvas[::step], gaze_targets(data, np.arange(len(data.canvas))[::step])])))
    patches = F.pixel_unshuffle(some, CELLS).permute(0, 2, 3, 1).flatten(0, 2)
    mean, axes = patches.mean(0), torch.linalg.eigh(patches.T.cov()).eigenvectors[:, -VAE["latent_channels"]:]
    axes = axes / ((patches - mean) @ axes).std(0)
    return lambda image: torch.einsum("bdhw,dk->bkhw", F.pixel_unshuffle(image, CELLS) - mean[:, None, None], axes)


def _half(pictures: UInt8[np.ndarray, "b h w 3"]) -> UInt8[np.ndarray, "b h2 w2 3"]:
    return np.stack([resize(one, VAE_SIZE, VAE_SIZE) for one in pictures])


def _bytes(image: Tensor) -> np.ndarray:
    return ((image.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over pictures, dB."""
    error = np.square(a.astype(np.float32) - b.astype(np.float32)).mean((1, 2, 3))
    return round(float((10 * np.log10(255**2 / error.clip(1e-9))).mean()), 2)


# ---------------------------------------------------------------------------------------------------------------- on disk


def asked(what: str, scenes: tuple, steps: int, seed: int, states: dict | None, pictures: int, **more) -> dict:
    """What decides a part."""
    digest = hashlib.sha256()
    for scene in scenes if states else ():
        for part in states.get(scene, ()):
            digest.update(scene.encode() + np.ascontiguousarray(part, np.float32).tobytes())
    return {"what": what, "scenes": list(scenes), "steps": steps, "seed": seed, "pictures": pictures,
            "states": digest.hexdigest()[:16] if states else "random"} | more


def there(path: Path, asked: dict, log: Callable) -> bool:
    """Whether the part lies there as it is asked for; another one is said to be replaced."""
    if not (path / "about.json").is_file():
        return False
    about = json.loads((path / "about.json").read_text())
    other = [f"{name} {about.get(name)!r} instead of {value!r}" for name, value in asked.items() if about.get(name) != value]
    if other:
        log(f"{path} was trained otherwise ({'; '.join(other)}): trained anew")
    return not other


def report(data: Pictures, losses: list[float], began: float) -> dict:
    from repro.training.checkpoint import provenance

    last = losses[-max(1, min(50, len(losses) // 5)):]
    return {"looks": data.looks, "first_loss": round(losses[0], 4), "loss": round(float(np.mean(last)), 4),
            "minutes": round((time.monotonic() - began) / 60, 2), **provenance()}


def write(path: Path, name: str, weights: dict[str, Tensor], about: dict, more: dict[str, dict] = {}) -> Path:  # noqa: B006
    """The folder, whole or absent."""
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, part / name)
    for file, content in (more | {"about.json": about}).items():
        (part / file).write_text(json.dumps(content, indent=1) + "\n")
    shutil.rmtree(path, ignore_errors=True)
    os.rename(part, path)
    return path
