"""What the tiny parts learn before a policy does. Nothing random is ever frozen.

    pretrain("parts", states=recorded(Store("data/store")))       # pictures, tower, VAE, language model: minutes on one core each; found
                                                                  # again afterwards; for tiny.load_parts
A policy of this size, trained for minutes, learns to read the proprioception and never to see. So the tower learns to see first, as
SigLIP did: it tells the nine items apart, at a quarter of the resolution. Its pictures show repainted scenes and tables with furniture
elsewhere (tiny_pictures.py), so that what it learns is not the wood of three tables, nor where three drawers are.
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

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from repro.machine import fast_bfloat16
from repro.models.tiny import CELLS, CHANNELS, GRID, VAE, VAE_SIZE, TinyTower
from repro.models.tiny_pictures import Drawn, Pictures, cells, checked, gaze_targets, items, pixels
from repro.models.towers import resize

BACKGROUND = 0.3  # weight of what is no item
KL = 1e-7


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
    wanted = asked("tiny tower", checked(scenes), steps, seed, states, pictures, batch=batch, channels=CHANNELS)
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
    wanted = asked("tiny VAE", checked(scenes), steps, seed, states, pictures, batch=batch, config=VAE)
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
