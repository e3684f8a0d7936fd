"""What turns pictures into tokens: the canvas that holds both cameras, pretrained SigLIP, FLUX's VAE and Qwen2.

    tower = vision("google/siglip-so400m-patch14-384")                     # hub id at its pinned commit, folder, or Kaggle input
    model, tokenizer = language("Qwen/Qwen2.5-0.5B", quantise="nf4")
    model, _ = language("Qwen/Qwen2-7B", pretrained=False)                 # the published config, random weights, nothing downloaded

What cannot be loaded is a UserError; another model is never taken instead. Only safetensors are read, and no code from the hub.

The canvas is ReconVLA's: one image, the static camera above the wrist camera, so that one grid of tokens covers both and
the reconstruction target lies on the same grid. `compose` is the only place that builds it, for training and acting
alike (upstream stitches 173/161 rows in training and 167/167 when acting, defect D2).
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from repro.machine import UserError, compute_dtype
from repro.models import pretrained as files

VOCABULARY = ("tokenizer.json", "vocab.json")  # one of them is in a folder that holds a tokenizer


def resize(image: UInt8[np.ndarray, "h w 3"], height: int, width: int, resample: str = "area") -> UInt8[np.ndarray, "height width 3"]:
    """Resize, width first, then height. `area`: averages when shrinking, linear when growing; `lanczos`: Pillow's, as upstream.

    Two explicit passes, because Pillow 13 swapped the order of its own and thereby the pixels (papers/reconvla/notes.md).
    """
    if resample == "lanczos":
        across = Image.fromarray(image).resize((width, image.shape[0]), Image.Resampling.LANCZOS)
        return np.asarray(across.resize((width, height), Image.Resampling.LANCZOS))
    for size in ((width, image.shape[0]), (width, height)):
        shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image


def compose(static: UInt8[np.ndarray, "h w 3"], wrist: UInt8[np.ndarray, "h2 w2 3"], height: int, width: int, static_rows: int,
            resample: str = "area") -> UInt8[np.ndarray, "height width 3"]:
    """Both cameras in one image: rows 0..static_rows-1 the static camera (or a gaze crop of it), the rest the wrist camera.

    Each part is stretched to its place whatever its aspect. Upstream: 334 x 334 px, 173 static rows, lanczos.
    """
    return np.concatenate([resize(static, static_rows, width, resample), resize(wrist, height - static_rows, width, resample)])


# ------------------------------------------------------------------------------------------------- pretrained parts


class VisionTower(nn.Module):
    """A frozen SigLIP: (B, 3, S, S) normalised pixels -> (B, N, Dv), the state before the last layer (hidden_states[-2]), row by row.

    The last layer, final norm and pooling head are not kept. dim: Dv; grid: (rows, columns); image_size: S; image_mean, image_std: 3
    numbers each for pixels in [0, 1]; identity: name, revision, sha256.
    """

    frozen = True

    def __init__(self, model: nn.Module, image_mean: list[float], image_std: list[float], identity: dict):
        super().__init__()
        inner = getattr(model, "vision_model", model)  # transformers 5.0, Kaggle's, has one level more than later ones
        self.embeddings, self.encoder = inner.embeddings, inner.encoder
        del self.encoder.layers[-1]
        self.dim, self.image_size = model.config.hidden_size, model.config.image_size
        self.grid = (self.image_size // model.config.patch_size,) * 2
        self.image_mean, self.image_std, self.identity = image_mean, image_std, identity
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "VisionTower":
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n d"]:
        if pixels.shape[-2:] != (self.image_size,) * 2:
            raise UserError("the picture has another size than the vision tower", (self.image_size,) * 2, tuple(pixels.shape[-2:]))
        return self.encoder(inputs_embeds=self.embeddings(pixels.to(self.embeddings.patch_embedding.weight.dtype))).last_hidden_state


def vision(name: str | Path, revision: str | None = None, pretrained: bool = True, token: str | None = None,
           dtype: torch.dtype | None = torch.float32, expect: dict | None = None, place: files.Place | None = None) -> VisionTower:
    """SigLIP's vision part, from a vision-only or a full checkpoint.

    dtype: of weights and arithmetic; None: `machine.compute_dtype()`. expect: config values it must have, beside those published.
    place: where it was found, if it was looked for before.
    """
    from transformers import AutoModel, SiglipVisionConfig, SiglipVisionModel

    place = place or files.find("vision tower", name, revision, pretrained, token, "", files.siglip, expect)
    dtype, mean, std = dtype or compute_dtype()[0], [0.5] * 3, [0.5] * 3  # every published SigLIP's
    if pretrained:
        model = files.load(place, SiglipVisionModel, dtype=dtype)
        about = files.read_json(place.folder / "preprocessor_config.json")
        mean, std = about.get("image_mean", mean), about.get("image_std", std)
    else:
        model = AutoModel.from_config(SiglipVisionConfig.from_dict(place.config), dtype=dtype)
    return VisionTower(model, mean, std, place.identity)


class PatchTower(nn.Module):
    """A frozen DINOv2, CLIP or ViT: (B, 3, S, S) normalised pixels -> (B, N, Dv), patch tokens after the last norm, row by row.

    Attributes as VisionTower's. DINOv2 interpolates its positions, so S may be any multiple of its patch; the others' S is their own.
    """

    frozen = True

    def __init__(self, model: nn.Module, image_mean: list[float], image_std: list[float], identity: dict, size: int | None = None):
        super().__init__()
        about, self.model = model.config, model
        self.dim, self.image_size = about.hidden_size, size or about.image_size
        if self.image_size % about.patch_size or (about.model_type != "dinov2" and self.image_size != about.image_size):
            raise UserError("the vision tower does not take pictures of this size", about.image_size if about.model_type != "dinov2" else
                            f"a multiple of {about.patch_size} px", self.image_size, "set image_size and grid to what it takes")
        self.grid = (self.image_size // about.patch_size,) * 2
        self.image_mean, self.image_std, self.identity = image_mean, image_std, identity
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PatchTower":
        return super().train(False)

    def forward(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b n d"]:
        return self.whole(pixels)[:, -(self.grid[0] * self.grid[1]):]

    @torch.no_grad()
    def whole(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b m d"]:
        """With the class token first: what transformers calls pooler_output, not projected (CLIP B/32: 768 numbers)."""
        if pixels.shape[-2:] != (self.image_size,) * 2:
            raise UserError("the picture has another size than the vision tower", (self.image_size,) * 2, tuple(pixels.shape[-2:]))
        hidden = self.model(pixels.to(next(self.model.parameters()).dtype)).last_hidden_state
        return self.model.post_layernorm(hidden) if self.model.config.model_type == "clip_vision_model" else hidden


def find_frozen(name: str | Path, revision: str | None = None, pretrained: bool = True, token: str | None = None) -> files.Place:
    """Where the tower of `frozen_vision` is, with its config and sha256; nothing is built."""
    folder = Path(name).expanduser()
    about = files.read_json(folder / "config.json") if folder.is_dir() else files.PUBLISHED.get(str(name), (None, None, {}))[2]
    siglip = "siglip" in about.get("model_type", "siglip" if "siglip" in str(name) else "")
    return files.find("vision tower", name, revision, pretrained, token, "", files.siglip if siglip else files.patch_tower, None)


def frozen_vision(name: str | Path, revision: str | None = None, pretrained: bool = True, dtype: torch.dtype | None = torch.float32,
                  size: int | None = None, token: str | None = None, place: files.Place | None = None) -> VisionTower | PatchTower:
    """A frozen tower of any kind that is known here: SigLIP (`vision`), DINOv2, CLIP, ViT. size: px of the pictures, for DINOv2.

    place: of `find_frozen`, where it was called before.
    """
    import transformers as t

    place = place or find_frozen(name, revision, pretrained, token)
    if place.config["model_type"] == "siglip_vision_model":
        return vision(name, revision, pretrained, token, dtype, place=place)
    kind, dtype = place.config["model_type"], dtype or compute_dtype()[0]
    mean, std = {"dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), "vit": _normalisation(place),
                 "clip_vision_model": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
                 }[kind]  # what each was trained on  # fmt: skip
    if pretrained:
        options = {"add_pooling_layer": False} if kind == "vit" else {}
        model = files.load(place, {"dinov2": t.Dinov2Model, "vit": t.ViTModel}.get(kind, t.CLIPVisionModel), dtype=dtype, **options)
    else:
        configs = {"dinov2": t.Dinov2Config, "vit": t.ViTConfig}
        model = t.AutoModel.from_config(configs.get(kind, t.CLIPVisionConfig).from_dict(place.config), dtype=dtype)
    return PatchTower(getattr(model, "vision_model", model) if kind == "clip_vision_model" else model, mean, std, place.identity, size)


def _normalisation(place: files.Place) -> tuple[list[float], list[float]]:
    """Mean and deviation that a ViT's own files state: published ones differ. UserError where they state none."""
    about = files.read_json(place.folder / "preprocessor_config.json") if place.folder else {}
    if place.config["model_type"] == "vit" and not {"image_mean", "image_std"} <= set(about):
        raise UserError(f"{place.folder} does not say how the ViT's pictures are normalised",
                        "preprocessor_config.json with image_mean, image_std", sorted(about) or "none",
                        "put the model's own preprocessor_config.json beside its config.json")
    return about.get("image_mean", []), about.get("image_std", [])


def language(name: str | Path, revision: str | None = None, pretrained: bool = True, dtype: torch.dtype | None = None,
             quantise: str | None = None, token: str | None = None, expect: dict | None = None,
             agree: Callable[[files.Place], None] | None = None):  # fmt: skip
    """(causal language model, tokenizer); the model has `identity`. Another family than Qwen2 is asked for by expect={"model_type": ...},
    any by None. agree: called with the place that was found, config and sha256, before anything is built; raises where it is not wanted.

    dtype: of weights, and of arithmetic under "nf4"; by default `machine.compute_dtype()`. quantise="nf4": 4-bit linear layers
    (repro.models.adapters). The tokenizer is None where only the config of a published model is used, which has no vocabulary.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    from repro.models import adapters

    if quantise not in (None, "nf4"):
        raise UserError("the language model cannot be quantised so", expected='None or "nf4"', found=quantise)
    dtype = dtype or compute_dtype()[0]
    want = {key: value for key, value in ({"model_type": "qwen2"} | (expect or {})).items() if value is not None}
    place = files.find("language model", name, revision, pretrained, token, "", files.causal, want)
    if agree is not None:
        agree(place)
    if pretrained:
        options = {"quantization_config": adapters.nf4(dtype), "device_map": {"": adapters.here()}} if quantise else {}
        model = files.load(place, AutoModelForCausalLM, dtype=dtype, trust_remote_code=False, **options)
    else:
        config = AutoConfig.for_model(**place.config)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        model.tie_weights()  # transformers 5.0, Kaggle's, leaves that out on the meta device
        model = adapters.quantise(model, dtype) if quantise else model
    model = adapters.guard(model)
    model.identity, tokenizer = place.identity, None
    if pretrained or (place.folder is not None and any((place.folder / file).is_file() for file in VOCABULARY)):
        tokenizer = words_of(place.folder, name)
        if len(tokenizer) > model.config.vocab_size:
            raise UserError(f"the tokenizer of {name} is not the model's", expected=f"at most {model.config.vocab_size} words",
                            found=len(tokenizer), next_step="use the files of one model")  # fmt: skip
    return model, tokenizer


def words_of(folder: Path, name: str | Path):
    """The tokenizer in the folder of a language model, which errors call `name`."""
    from transformers import AutoTokenizer

    try:
        if not any((folder / file).is_file() for file in VOCABULARY):
            raise ValueError(f"neither {' nor '.join(VOCABULARY)} is there")
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if not tokenizer("lift the red block")["input_ids"]:  # transformers 5 reads foreign kinds of vocabulary as empty ones
            raise ValueError("it makes no tokens of words")
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"the tokenizer of the language model {name} cannot be read", expected="tokenizer.json beside config.json",
                        found=files.line(error), next_step="put the model's tokenizer files beside its weights") from error  # fmt: skip
    return tokenizer


def vae(name: str | Path, revision: str | None = None, pretrained: bool = True, subfolder: str | None = None, token: str | None = None,
        expect: dict | None = None):
    """diffusers.AutoencoderKL, frozen, float32 whatever the file holds, in evaluation mode; it has `identity`.

    Its latents are (z - shift_factor) * scaling_factor, both in its config. subfolder: by default "vae" for the FLUX models.
    """
    from diffusers import AutoencoderKL

    subfolder = subfolder if subfolder is not None else "vae" if str(name).startswith("black-forest-labs/") else ""
    place = files.find("VAE", name, revision, pretrained, token, subfolder, files.autoencoder, expect)
    model = files.load(place, AutoencoderKL, torch_dtype=torch.float32) if pretrained else AutoencoderKL.from_config(place.config)
    model.identity = place.identity
    return model.requires_grad_(False).eval()
