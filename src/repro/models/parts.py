"""What ReconVLA is made of: vision tower, language model, tokenizer, VAE; built by name, told apart by their weights.

A part from the hub or a folder has `identity` = {name, revision, sha256} (models/towers.py). Its frozen tensors are not written into
checkpoints; the identity is, and loading refuses a part with other weights. A part without a sha256 (tiny, or random) is saved whole.
"""
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from repro.machine import UserError
from repro.models import adapters, towers
from repro.models.prompt import small_tokenizer

MODULES = {"vision_tower": "vision", "decoder": "language", "vae": "vae"}  # module of ReconVLA -> part


@dataclass
class Parts:
    """Ready models.

    vision: pixels (B, 3, H, W) -> tokens (B, N, Dv), or (tokens, map (B, C, mh, mw)) for keypoints; has dim, grid, image_size,
    image_mean, image_std, frozen. language: Qwen2ForCausalLM. vae: diffusers.AutoencoderKL, or None: latents are pixels.
    """

    vision: nn.Module
    language: Qwen2ForCausalLM
    tokenizer: object  # of transformers, or anything with vocab_size, encode, convert_tokens_to_ids, len
    vae: nn.Module | None = None


def build(config, pretrained: bool | dict[str, bool] = True, instructions: Iterable[str] = (), tokenizer=None, vision=None, vae=None,
          vae_config: dict | None = None) -> Parts:
    """The parts that a config names ("tiny": ours, untrained; otherwise towers.*); those given are taken as they are.

    pretrained: for all, or by part. `instructions`: of the training data, for the tiny language model's tokenizer.
    """
    known = pretrained if isinstance(pretrained, dict) else dict.fromkeys(("vision", "language", "vae"), pretrained)
    if vision is None:
        vision = tiny_vision(config) if config.vision == "tiny" else towers.vision(
            config.vision, config.vision_revision, known["vision"], dtype=_dtype(config))
    if config.language == "tiny":
        tokenizer = tokenizer or small_tokenizer(instructions, config.template)
        language = tiny_language(config, tokenizer)
    else:
        language, own = towers.language(config.language, config.language_revision, known["language"], dtype=_dtype(config),
                                        quantise=config.quantise)
        tokenizer = tokenizer or own
        if tokenizer is None:  # random weights for a test of speed or memory: the vocabulary does not matter
            tokenizer = small_tokenizer(instructions, config.template)
        if config.lora_rank:
            language = adapters.add(language, adapters.LoRA(config.lora_rank, config.lora_alpha), config.checkpointing)
        elif config.checkpointing:
            adapters.switch_checkpointing(language, True)
    if vae is None and config.recon and config.vae != "pixels":
        if vae_config is not None and not known["vae"]:
            from diffusers import AutoencoderKL

            vae = AutoencoderKL.from_config(vae_config).float().requires_grad_(False).eval()
        elif config.vae == "tiny":
            raise UserError("the tiny VAE is trained on the data: nothing is built by its name", next_step="train it, and pass vae=")
        else:
            vae = towers.vae(config.vae, config.vae_revision, known["vae"])
    return Parts(vision, language, tokenizer, vae)


def _dtype(config) -> torch.dtype | None:
    return torch.float32 if config.dtype == "float32" else None if config.dtype == "auto" else getattr(torch, config.dtype)


def tiny_vision(config) -> nn.Module:
    """The convolutional tower for the config's canvas, with the attributes of towers.VisionTower."""
    tower = towers.TinyTower(config.height, config.width, config.channels, config.hidden)
    tower.dim, tower.image_size, tower.frozen = config.hidden, (config.height, config.width), False
    tower.image_mean = tower.image_std = [0.5] * 3
    tower.map_channels, tower.map_rows = 2 * config.channels, config.height // tower.map_stride
    return tower


def tiny_language(config, tokenizer) -> Qwen2ForCausalLM:
    """A Qwen2 of the config's sizes, random."""
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=config.hidden, intermediate_size=config.intermediate, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.heads, max_position_embeddings=4096, tie_word_embeddings=True,
        initializer_range=config.init, bos_token_id=None, eos_token_id=None, attn_implementation="sdpa"))


def fingerprint(*modules: nn.Module) -> str:
    """16 hex digits of names, shapes and values (as float16, so that the dtype they are held in does not matter)."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            plain = tensor.detach().cpu().contiguous()
            plain = plain.to(torch.float16) if plain.is_floating_point() else plain
            digest.update(f"{name} {tuple(plain.shape)}".encode())
            digest.update(plain.view(torch.uint8).numpy().tobytes() if plain.ndim else str(plain.item()).encode())
    return digest.hexdigest()[:16]


def identities(model: nn.Module) -> dict[str, dict]:
    """{part: identity} of those whose weights come from elsewhere."""
    found = {part: getattr(getattr(model, module, None), "identity", None) for module, part in MODULES.items()}
    return {part: identity for part, identity in found.items() if identity and identity.get("sha256")}


def same(saved: dict[str, dict], model: nn.Module, source) -> None:
    """Refuse parts that are not the ones a checkpoint was trained on; all that differ are named."""
    now = identities(model)
    wrong = [f"{part}: trained on {_told(saved.get(part))}, here is {_told(now.get(part))}" for part in sorted(saved.keys() | now.keys())
             if (saved.get(part) or {}).get("sha256") != (now.get(part) or {}).get("sha256")]
    if wrong:
        raise UserError(f"{source} was trained on other frozen parts", expected="the same weights, by sha256", found="; ".join(wrong),
                        next_step="load the named parts at the named revisions")


def _told(identity: dict | None) -> str:
    return "weights of its own" if not identity else " ".join(f"{key} {identity.get(key)}" for key in ("name", "revision", "sha256"))


def saved_names(model: nn.Module) -> list[str]:
    """Names in the state dict that belong into a checkpoint: all but frozen tensors of parts with an identity and a tied head."""
    named, trained = identities(model), {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tied = {"decoder.lm_head.weight"} if model.decoder.config.tie_word_embeddings else set()
    return [name for name in model.state_dict() if name not in tied
            and (MODULES.get(name.split(".")[0]) not in named or name in trained)]
