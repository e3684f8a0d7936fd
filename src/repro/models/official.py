"""Read a checkpoint in the layout of the official ReconVLA code (OpenHelix-Team/ReconVLA @047ccd9) into our `ReconVLA`.

    model = load_official("ReconVLA", stats)                        # config.json, model.safetensors(.index.json), tokenizer
    model = load_official(folder, stats, vision=tower, vae=vae)     # parts that are at hand
    model = load_official(folder, stats, acting=True, quantise="nf4")  # to act on one T4: no denoiser, no VAE, 4 bits

Every tensor is accounted for: the denoiser, which the official loader drops when it goes on training (D1), the vision tower and the
VAE are taken from the file as well. Missing, unexpected and misshapen tensors are listed in one error, before anything is copied; one that
holds no finite weights is named when it is read. Damaged files are named as well.
"""
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from repro.machine import UserError
from repro.models import adapters, towers
from repro.models.parts import Parts
from repro.models.pretrained import line
from repro.models.reconvla import PRESETS, ReconVLA, ReconVLAConfig

NAMES = (  # theirs -> ours, by the beginning of the name
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.mm_projector.", "mm_projector."),
    ("model.pixel_decoder.pixel_decoder.", "vae."),
    ("model.mm_inv_projector.net.", "denoiser.net."),
    ("model.embed_tokens.", "decoder.model.embed_tokens."),
    ("model.layers.", "decoder.model.layers."),
    ("model.norm.", "decoder.model.norm."),
    ("lm_head.", "decoder.lm_head."),
)
POSITIONS = "denoiser.net.pos_embed"  # fixed sines: compared, not loaded
HEADS = 16  # of the denoiser; the official code has no field for it
STATISTICS = {  # of the proprioception, whatever it was trained on: CALVIN's task D (reconvla/statistics.yaml)
    "mean": [0.039233, -0.118554, 0.507826, 1.079174, -0.083069, 1.579753, 0.054622, -0.736859, 1.017769, 1.792879, -2.099604, -0.993738,
             1.790842, 0.586534, 0.095367],
    "std": [0.150769, 0.1104, 0.06253, 2.883517, 0.126405, 0.377196, 0.030152, 0.334392, 0.172714, 0.240513, 0.3842, 0.198596, 0.158712,
            0.346865, 0.995442],
}  # fmt: skip
NEEDED = {"hidden_size": int, "num_hidden_layers": int, "mm_vision_tower": str, "image_embed_len": int}  # of config.json
KINDS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)  # of weights
AGAIN = "download the folder again, whole"
WIDTHS = {3: 1024, 8: 1280, 12: 1536}  # of the denoiser, by its depth (multimodal_projector/builder.py)


def rename(name: str) -> str | None:
    """Our name of one of their tensors; None for a name of no known module."""
    return next((ours + name[len(theirs):] for theirs, ours in NAMES if name.startswith(theirs)), None)


def unused(name: str, layers: int) -> bool:
    """Parts of SigLIP behind hidden_states[-2], which neither code reads: the last layer, the last norm, the pooling head."""
    return re.match(rf"vision_tower\.(encoder\.layers\.{layers}\.|post_layernorm\.|head\.)", name) is not None


def read(path: Path) -> dict:
    """A JSON file of the folder."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read", "JSON", line(error), AGAIN) from error
    if not isinstance(found, dict):
        raise UserError(f"{path} cannot be read", "a JSON object {..}", type(found).__name__, AGAIN)
    return found


def shards(folder: Path) -> Iterator[Path]:
    """The safetensors files of a folder."""
    index, files = folder / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        about = read(index)
        if not isinstance(about.get("weight_map"), dict) or not about["weight_map"]:
            raise UserError(f"{index} names no files", 'a "weight_map" of tensors to files', sorted(about), AGAIN)
        files = sorted(set(map(str, about["weight_map"].values())))
    for name in files:
        if not (folder / name).exists():
            raise UserError(f"{folder} lacks {name}", expected=f"{len(files)} safetensors files",
                            found=sorted(path.name for path in folder.glob("*.safetensors")), next_step=AGAIN)
        yield folder / name


@contextmanager
def opened(path: Path):
    """safe_open, where a damaged file is named."""
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged", "a whole safetensors file", f"{line(error)}; {path.stat().st_size} bytes", AGAIN) from error


def header(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, without reading any."""
    found = {}
    for path in shards(folder):
        with opened(path) as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return found


def config_of(about: dict, shapes: dict[str, tuple[int, ...]]) -> ReconVLAConfig:
    """Our config of their config.json. Whether there is a denoiser, and its depth, are what that file says, not which tensors happen to be
    there: those that lack are named by `copy`. Its width, which the file does not say, is read off its first tensor."""
    rows = round(about["image_embed_len"] ** 0.5)
    paper, recon = PRESETS["paper"], about.get("recon_enable", bool(about.get("mm_pixel_decoder")))
    vision = about["mm_vision_tower"] if Path(about["mm_vision_tower"]).is_dir() else paper.vision  # often a path of the authors' machine
    changes = {"vision": vision, "grid": (rows, rows), "static_tokens": -(-rows // 2), "recon": recon}
    if recon:
        kind = re.fullmatch(r"denoiser_vit(\d+)x", str(about.get("mm_inv_projector_type")))
        if kind is None or int(kind[1]) < 1:
            raise UserError("the checkpoint reconstructs, and its config.json does not say with what denoiser",
                            expected='mm_inv_projector_type "denoiser_vit3x" (or another depth)', found=about.get("mm_inv_projector_type"))
        depth, first = int(kind[1]), shapes.get("model.mm_inv_projector.net.x_embedder.proj.weight")
        changes |= {"vae": about.get("mm_pixel_decoder", paper.vae), "denoiser_depth": depth, "denoiser_heads": HEADS,
                    "denoiser_width": first[0] if first else WIDTHS.get(depth, paper.denoiser_width)}
        if about.get("decode_image_size", 16 * rows) != 16 * rows:
            raise UserError("the checkpoint's target has another size than two latents per token", expected=16 * rows,
                            found=about["decode_image_size"])
    return replace(paper, **changes)


def holds(folder: Path | str) -> bool:
    """Whether a folder holds a checkpoint in the official layout, and none in ours."""
    path = Path(folder).expanduser() / "config.json"
    return path.is_file() and not path.with_name("model.json").is_file() and "mm_vision_tower" in read(path)


def load_official(folder: Path | str, stats: dict, dtype: torch.dtype = torch.float32, vision=None, vae=None, tokenizer=None,
                  acting: bool = False, quantise: str | None = None, **fields) -> ReconVLA:
    """The model of an official checkpoint folder, in `dtype` (the VAE in float32). `stats`: of the state, as for ReconVLA.

    vision, vae, tokenizer: ready parts (their weights are overwritten by the file's); by default the published architectures, whose
    names in config.json are often paths of the authors' machine. acting: the denoiser and the VAE, which acting does not use, are left
    in the file, and the VAE's gated config is not asked for. quantise="nf4": the language model's linear maps in 4 bits, `dtype` their
    arithmetic's. fields: of the config, e.g. chunk.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is no official checkpoint", expected="config.json and *.safetensors",
                        found=sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "no folder")
    known = [field.name for field in fields_of(ReconVLAConfig)]
    if unknown := sorted(fields.keys() - set(known)):
        raise UserError("the model's config has no such fields", expected=", ".join(known), found=", ".join(unknown),
                        next_step="correct the name")
    about, shapes = read(folder / "config.json"), header(folder)
    if needed := [f"{name} {about.get(name)!r}" for name, kind in NEEDED.items() if type(about.get(name)) is not kind]:
        raise UserError(f"{folder}/config.json is not ReconVLA's", expected="model_type recon_qwen2 with its mm_* fields",
                        found=", ".join(needed), next_step=f"give the folder of a ReconVLA, or {AGAIN}")
    if about["image_embed_len"] < 1 or math.isqrt(about["image_embed_len"]) ** 2 != about["image_embed_len"]:
        raise UserError(f"{folder}/config.json: its image tokens make no square grid", "image_embed_len 729 (27 x 27), or another square",
                        about["image_embed_len"], AGAIN)
    if not isinstance(dtype, torch.dtype) or dtype not in KINDS:
        raise UserError("the model cannot be held in this dtype", f"one of {KINDS}", repr(dtype))
    if quantise not in (None, "nf4"):
        raise UserError("the language model cannot be quantised so", expected='None or "nf4"', found=quantise)
    config = replace(config_of(about, shapes), **fields)
    if acting:
        config = replace(config, recon=False)
        shapes = {name: shape for name, shape in shapes.items() if not (rename(name) or "").startswith(("denoiser.", "vae."))}
    sizes = {name: value for name, value in about.items() if name in Qwen2Config().to_dict() and name not in ("model_type", "dtype")}
    if "rope_theta" in about:
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": about["rope_theta"]}
    tokenizer = tokenizer or towers.words_of(folder, folder)
    try:
        with torch.device("meta"):
            language = Qwen2ForCausalLM(Qwen2Config(**sizes | {"attn_implementation": "sdpa"}))
    except Exception as error:  # of a field, transformers raises many kinds
        raise UserError(f"{folder}/config.json describes no Qwen2", "the published sizes", line(error), AGAIN) from error
    language = language.to(dtype).to_empty(device="cpu")
    with torch.device("cpu"):
        language.model.rotary_emb = type(language.model.rotary_emb)(language.config)
    vision = vision or towers.vision(PRESETS["paper"].vision, pretrained=False, dtype=dtype)
    if config.recon:
        vae = vae or towers.vae(PRESETS["paper"].vae, pretrained=False)
    model = ReconVLA(config, stats, Parts(vision, language, tokenizer, vae))
    model.mm_projector.to(dtype)
    copy(model, folder, shapes, about)
    if quantise:
        adapters.quantise(model.decoder, dtype)
        model.config = replace(config, quantise=quantise)
    for frozen in (model.vision_tower, model.vae):  # they are the file's now, whatever they were
        if frozen is not None and hasattr(frozen, "identity"):
            frozen.identity = {**frozen.identity, "sha256": None}
    return model


def copy(model: ReconVLA, folder: Path, shapes: dict[str, tuple[int, ...]], about: dict) -> None:
    """All tensors of the file into the model, or an error that names every one that does not fit."""
    ours, layers = dict(model.state_dict()), len(model.vision_tower.encoder.layers)
    if model.decoder.config.tie_word_embeddings:
        ours.pop("decoder.lm_head.weight")
    ours = {name: tensor for name, tensor in ours.items() if not name.endswith("position_ids")}
    theirs = {name: rename(name) for name in shapes if not name.endswith(("position_ids", "rotary_emb.inv_freq"))}
    theirs = {name: new for name, new in theirs.items() if new is None or not unused(new, layers)}
    if model.decoder.config.tie_word_embeddings:
        theirs.pop("lm_head.weight", None)
    back = {new: name for name, new in theirs.items()}
    wrong = [f"missing: {name}" for name in sorted(ours.keys() - back.keys())]
    wrong += [f"unexpected: {name}" for name, new in sorted(theirs.items()) if new not in ours]
    wrong += [f"misshapen: {name} {shapes[name]}, expected {tuple(ours[new].shape)}" for name, new in sorted(theirs.items())
              if new in ours and shapes[name] != tuple(ours[new].shape)]
    if wrong:
        raise UserError(f"{folder} does not fit ReconVLA", expected=f"{len(ours)} tensors", found="\n    ".join(wrong),
                        next_step="check that it is a checkpoint of the official code, whole, and that the parts are those it names")
    for path in shards(folder):
        with opened(path) as file, torch.no_grad():
            for name in file.keys():
                if theirs.get(name) in ours:
                    take(ours[theirs[name]], file.get_tensor(name), theirs[name], path)


def take(target: Tensor, value: Tensor, name: str, path: Path) -> None:
    if value.dtype not in KINDS:
        raise UserError(f"{path}: {name} holds no weights", f"one of {KINDS}", value.dtype, AGAIN)
    if not all(torch.isfinite(end) for end in value.aminmax()):  # both are NaN where one number is; 20 times faster than isfinite of all
        raise UserError(f"{path}: {name} is damaged", "finite numbers", f"{int((~torch.isfinite(value)).sum())} of {value.numel()} are not",
                        AGAIN)
    if name == POSITIONS:
        if (value.float() - target.float()).abs().max() > 1e-2:  # bfloat16 files round them
            raise UserError(f"{path} has other denoiser positions than fixed sines", expected="get_2d_sincos_pos_embed of the grid",
                            found=f"a difference of {(value.float() - target.float()).abs().max():.3f}")
        return
    target.copy_(value)
