"""What notebook 05 shows beside its loss curves: what the frozen parts learned, what is behind the VAE, what the denoiser draws."""

import json
import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from repro import pictures
from repro.data.episodes import Store
from repro.looking import attention_frames
from repro.models.reconvla import ReconVLA
from repro.models.towers import resize


def parts_table(place: str) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of what the parts in a folder of `experiments.parts` learned on looks never seen, each beside a floor; "": no row."""
    def about(part: str) -> dict:
        file = Path(place) / part / "about.json"
        return json.loads(file.read_text()) if place and file.is_file() else {}

    rows, tower, vae, pointing = [], about("tower"), about("vae"), about("language")
    if tower:
        rows.append(["vision tower", "segmentation of nine items, mean IoU", f"{tower['mean_iou']:.3f}", "no item found: 0", tower])
    for target, psnr in vae.get("psnr", {}).items():
        floors_ = ", ".join(f"{name}: {value:.1f}" for name, value in psnr.items() if name != "vae")
        rows.append(["VAE", f"reconstruction of {'gaze targets' if target == 'gaze' else 'whole canvases'}, dB", f"{psnr['vae']:.1f}",
                     floors_, vae])
    if pointing:
        rows.append(["language model", "box of what a sentence names, error of an edge (share of the picture)",
                     f"{pointing['box_error']:.3f}", f"the mean box: {pointing['box_error_of_the_mean_box']:.3f}", pointing])
    rows = [[*row, f"{it['held_out']} of {it['held_out_looks']} looks", str(it["steps"]), f"{it['minutes']:.1f}"] for *row, it in rows]
    return ["part", "measured by", "it", "floors", "held-out pictures", "steps", "minutes"], rows


def rebuilt(place: str, count: int = 6):
    """Figure: canvases in looks never seen, and what is left of them behind the frozen VAE, before any policy is trained."""
    from repro.models import tiny, tiny_pictures

    shown, vae = tiny_pictures.draw_pictures(count, held_out=True).canvas, tiny.load_parts(place)["vae"]
    half = np.stack([resize(one, tiny.VAE_SIZE, tiny.VAE_SIZE) for one in shown])
    with torch.inference_mode():
        image = vae.decode(vae.encode(tiny_pictures.pixels(half)).latent_dist.mean).sample
    again = ((image.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return pictures.sheet([*half, *again], ["canvas, a look never seen"] * count + ["behind the VAE"] * count, columns=count, size=1.7)


def reconstructions(model: ReconVLA, work: Path, count: int = 6, seed: int = 0, name: str = ""):
    """Figure: for `count` held-out frames the target and what the denoiser draws from noise, static part above, wrist part below.

    name: of the model. Below each: the mean error of the static part against its own target and, as a floor, against those of the other
    frames.
    """
    frames = attention_frames(Store(work / "store" / "validation"), count)[:count]
    torch.manual_seed(seed)
    targets, drawn = model.targets(frames), model.reconstruct(frames, [frame["task"] for frame in frames])
    border = len(targets[0]) * model.config.static_tokens // model.config.grid[0]
    above = [part[:, :border].astype(np.float32) / 255 for part in (targets, drawn)]
    apart = np.abs(above[1][:, None] - above[0][None]).mean((2, 3, 4))
    figure = Figure(figsize=(1.75 * len(frames) + 0.9, 4.8), layout="compressed", dpi=120)
    axes = figure.subplots(2, len(frames), squeeze=False)
    region = "gaze region" if model.config.target == "gaze" else "static camera"
    for line, shown in zip(axes, (targets, drawn), strict=True):
        for axis, image in zip(line, shown, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.axhline(border - 0.5, color="white", linewidth=1.5)
            axis.set(xticks=[], yticks=[])
        line[0].set_yticks([border / 2, (border + len(targets[0])) / 2], [region, "wrist"], fontsize=8, rotation=90, va="center")
    for i, (axis, below) in enumerate(zip(*axes, strict=True)):
        axis.set_title(textwrap.fill(frames[i]["task"], 22), fontsize=8)
        others = np.delete(apart[i], i).mean() if len(frames) > 1 else np.nan
        below.set_xlabel(f"{region}, mean |error|\nown target {apart[i, i]:.3f}\nothers' targets {others:.3f}", fontsize=7)
    axes[0, 0].set_ylabel("target" if model.vae is None else "target, as the VAE gives it back", fontsize=9)
    axes[1, 0].set_ylabel("drawn from noise", fontsize=9)
    said = f"n = {len(frames)} held-out frames, one draw each; error per pixel and colour, 0 to 1"
    figure.supxlabel(f"{name}: {said}" if name else said, fontsize=7)
    return figure
