"""What a ReconVLA sees of a step and rebuilds of it: the canvas, the arrays that batches keep, and the way to the denoiser's latents.

    raw step --canvas--> picture of both cameras --frozen tower--> features     the gaze crop in it --VAE--> posterior
    arrays of a batch --tower_pixels--> the tower     --latents--> what the denoiser rebuilds --pixels--> pictures to look at

All of it follows from a model's config, image_size, vision_tower and vae, whatever its language model is or has learned: this is what `key`
names, and why rows of an ablation share what is prepared once.
"""

import json

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from repro.gaze.crops import crop
from repro.machine import UserError
from repro.models import parts as part
from repro.models.towers import compose, resize

CAMERAS = ("observation.images.static", "observation.images.wrist")


# ---- once a frame, before training --------------------------------------------------------------------------------------------


def key(model) -> dict[str, str]:
    """Names what each kind of array that `prepare_many` gives depends on, frozen weights included.

    What is "seen" all models of one geometry share, with a VAE or without; "target", which a baseline has not, those that rebuild either
    target by one VAE.
    """
    c, seen = model.config, model.vision_tower
    tower = {"tower": [part.fingerprint(seen), list(seen.image_mean), list(seen.image_std)]} if _sees_once(model) else {}
    about = {name: getattr(c, name) for name in ("grid", "height", "width", "static_tokens", "resample")} | {"image": model.image_size}
    keys = {"seen": "reconvla seen " + json.dumps(about | tower)}
    if c.recon:
        about |= {name: getattr(c, name) for name in ("latent_patch", "gaze_margin", "gaze_truncate")}
        about["vae"] = "none" if model.vae is None else part.fingerprint(model.vae) if _encodes(model) else "none, pictures"
        keys["target"] = "reconvla target " + json.dumps(about)
    return keys


def _encodes(model) -> bool:
    return model.vae is not None and model.config.cache_latents


def _sees_once(model) -> bool:
    return model.config.cache_features and model.vision_tower.frozen


def canvas(model, observation: dict, static: np.ndarray | None = None, acting: bool = False) -> UInt8[np.ndarray, "h w 3"]:
    """Both cameras of a raw observation in one image, at the tower's size; `static` stands in for the static camera's picture."""
    c = model.config
    for name in CAMERAS:
        picture = np.asarray(observation.get(name, ()))
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise UserError(f"{name} is no picture", "uint8 (height, width, 3), RGB, 0 to 255",
                            f"{picture.dtype} {picture.shape}" if name in observation else f"none, in {sorted(observation)}")
    static = observation[CAMERAS[0]] if static is None else static
    rows = c.acting_static_rows if acting and c.acting_static_rows else c.static_rows
    picture = compose(static, observation[CAMERAS[1]], c.height, c.width, rows, c.resample)
    if picture.shape[:2] != model.image_size:  # SigLIP's own processor: bicubic; in two passes as in `resize`, for the same pixels
        for size in ((model.image_size[1], picture.shape[0]), model.image_size[::-1]):
            picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    return picture


def target_pictures(model, observation: dict, gaze: bool = True) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Both targets at the tower's size; the whole one is the canvas. gaze False: it alone."""
    c, targets = model.config, {"target_whole": canvas(model, observation)}
    if "gaze.box" in observation and gaze:
        region = crop(observation[CAMERAS[0]], observation["gaze.box"], margin=c.gaze_margin,
                      truncate=c.gaze_truncate)
        targets["target_gaze"] = canvas(model, observation, region)
    elif "gaze.box" not in observation and c.recon and c.target == "gaze":
        raise UserError("the gaze target needs gaze boxes in the data", expected="column gaze.box", found=sorted(observation),
                        next_step="run the gaze step (notebook 04), or set target='whole' or recon=False")
    return targets


def prepare_many(model, observations: list[dict], only: str | None = None) -> list[dict[str, np.ndarray]]:
    """`ReconVLA.prepare` of several steps, which tower and VAE see at once."""
    c, pictures = model.config, [target_pictures(model, observation, gaze=only != "seen") for observation in observations]
    out = [{"canvas": one["target_whole"]} if only != "target" and not _sees_once(model) else {} for one in pictures]
    if _sees_once(model) and only != "target":
        with torch.no_grad():
            seen = model.vision_tower(tower_pixels(model, np.stack([one["target_whole"] for one in pictures])))
        for one, tokens in zip(out, seen.to(torch.float16).cpu().numpy(), strict=True):
            one["features"] = tokens
    if only == "seen" or not c.recon:
        return out
    every = [(made, name, picture) for made, one in zip(out, pictures, strict=True) for name, picture in one.items()]
    if _encodes(model):
        with torch.no_grad():
            found = moments(model, torch.from_numpy(np.stack([picture for *_, picture in every])).to(model.device))
        for (made, name, _), posterior in zip(every, found.to(torch.float16).cpu().numpy(), strict=True):
            made[name] = posterior
    else:
        p = c.latent_patch
        for made, name, picture in every:
            made[name] = picture if model.vae is not None else resize(picture, c.grid[0] * p, c.grid[1] * p)
    return out


# ---- in each step -------------------------------------------------------------------------------------------------------------


def tower_pixels(model, canvases: np.ndarray | Tensor) -> Float[Tensor, "b 3 h w"]:
    """Canvases as the tower wants them."""
    pixels = torch.as_tensor(np.asarray(canvases)).to(model.device).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values, device=model.device).view(3, 1, 1) for values in
                 (model.vision_tower.image_mean, model.vision_tower.image_std))
    return (pixels - mean) / std


def moments(model, picture: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b c2 lh lw"]:
    """Mean and log variance of the VAE's posterior, float32, at two latents per token and axis."""
    scale = 2 ** len(model.vae.config.block_out_channels)  # the VAE's 2 ** (n - 1), and 2 x 2 latents per token
    with torch.autocast(model.device.type, enabled=False):
        image = (picture.permute(0, 3, 1, 2).float() / 255 * 2 - 1).clamp(-1, 1)
        image = F.interpolate(image, size=[n * scale for n in model.config.grid], mode="bilinear")
        return model.vae.encode(image).latent_dist.parameters


@torch.no_grad()
def latents(model, target: UInt8[Tensor, "b h w 3"] | Float[Tensor, "b c2 lh lw"]) -> Float[Tensor, "b d gh gw"]:
    """What the denoiser rebuilds, on the token grid, channel order channel, row, column; `target` as `prepare` gives it."""
    if model.vae is None:
        return F.pixel_unshuffle(target.permute(0, 3, 1, 2).float() / 127.5 - 1, model.config.latent_patch)
    mean, spread = (moments(model, target) if target.dtype == torch.uint8 else target.float()).chunk(2, dim=1)
    if model.config.posterior == "sample":
        mean = mean + (0.5 * spread.clamp(-30, 20)).exp() * torch.randn(mean.shape, device=mean.device)  # upstream's order of draws
    return F.pixel_unshuffle((mean - (model.vae.config.shift_factor or 0.0)) * model.vae.config.scaling_factor, 2)


@torch.no_grad()
def pixels(model, latents: Float[Tensor, "b d gh gw"]) -> UInt8[Tensor, "b th tw 3"]:
    """The inverse of `latents`, rounded to bytes."""
    if model.vae is None:
        image = F.pixel_shuffle(latents.float(), model.config.latent_patch)
    else:
        z = F.pixel_shuffle(latents.float(), 2) / model.vae.config.scaling_factor + (model.vae.config.shift_factor or 0.0)
        image = model.vae.decode(z).sample
    return ((image.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
