"""Whether a ReconVLA can be trained on this machine at all, by its weights alone, before anything of it is downloaded or loaded.

    check(PRESETS["paper"])     # UserError where it cannot; `repro train` asks this first

Each process holds the whole model, its gradients and what AdamW keeps of them: nothing here shards a model over GPUs, as upstream's ZeRO-3
does. What a step needs above its weights is benchmarks/memory.py.
"""

from dataclasses import replace
from pathlib import Path

import torch

from repro import machine
from repro.machine import UserError
from repro.models.pretrained import PUBLISHED
from repro.models.reconvla import ReconVLA, ReconVLAConfig

TRAINED = 16  # bytes of a weight that trains: itself, its gradient and AdamW's two averages, in float32
STEPPED = 4  # more of each while AdamW steps: on a GPU torch takes all weights at once (foreach) and holds one of their averages twice
NF4 = 0.516  # bytes of a weight in 4 bits: half a byte, a scale of a byte for each 64, and one of 4 bytes for 256 of these


def weights(config: ReconVLAConfig) -> tuple[int, float]:
    """(how many weights train, bytes of those that are frozen), of the parts' configs alone: nothing is downloaded, no memory is taken."""
    stats = {"observation.state": {name: [0.0] * config.state_dim for name in ("mean", "std")}}
    with torch.device("meta"):  # bitsandbytes takes no meta tensors
        model = ReconVLA.build(replace(config, quantise=None), stats, pretrained=False, instructions=["open the drawer"])
    packed = lambda name, one: config.quantise == "nf4" and name.startswith("decoder.model.layers.") and one.ndim == 2
    frozen = sum(one.numel() * (NF4 if packed(name, one) else one.element_size())
                 for name, one in model.named_parameters() if not one.requires_grad)  # fmt: skip
    return sum(one.numel() for one in model.parameters() if one.requires_grad), frozen


def check(config: object) -> None:
    """UserError where weights, gradients and AdamW do not fit the smallest visible GPU, or, without one, this machine's memory. Nothing is
    said of tiny parts, which fit, of those whose config would be a download, and of other models."""
    if not isinstance(config, ReconVLAConfig):
        return
    names = [config.vision, config.language, *([config.vae] if config.recon and config.vae != "pixels" else [])]
    if "tiny" in names or not all(name in PUBLISHED or Path(name).expanduser().is_dir() for name in names):
        return
    (trained, frozen), here = weights(config), machine.describe()
    place = min(here["gpus"], key=lambda gpu: gpu["memory_gib"], default={"name": "no GPU, and this machine", **here})
    each = TRAINED + (STEPPED if here["gpus"] else 0)
    needed, stepping = (each * trained + frozen) / 2**30, STEPPED * trained / 2**30
    if needed > place["memory_gib"]:
        fewer = "a smaller preset" if config.lora_rank else "preset paper_nf4, or lora_rank (trains adapters alone)"
        raise UserError("the memory here does not hold this model's weights, their gradients and what the optimizer keeps of them", (
            f"{needed:.1f} GiB {f'on every GPU, {stepping:.1f} of them' if here['gpus'] else f'here, on every GPU {stepping:.1f} more'} "
            f"while AdamW steps, and activations on top: {trained / 1e9:.2f} billion weights that train, {each} bytes of each, "
            f"and {frozen / 2**30:.1f} GiB that are frozen"), f"{place['name']}: {place['memory_gib']} GiB", (
            f"{fewer}, or a GPU of more memory; more GPUs do not help, each holds the whole model: nothing here shards it"))
