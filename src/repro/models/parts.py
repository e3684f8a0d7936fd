"""What ReconVLA is made of: vision tower, language model, tokenizer, VAE; built by name, told apart by their weights.

A part from the hub or a folder has `identity` = {name, revision, sha256} (models/towers.py). Its frozen tensors are not written into
checkpoints; the identity is, and loading refuses a part with other weights. A part without a sha256 (random) is saved whole, and so is
one whose identity says "whole" (tiny): its checkpoint can be loaded without it, but not with another one.
"""
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Qwen2ForCausalLM

from repro.machine import UserError
from repro.models import adapters, tiny, towers
from repro.models.prompt import small_tokenizer

MODULES = {"vision_tower": "vision", "decoder": "language", "vae": "vae"}  # module of ReconVLA -> part


@dataclass
class Parts:
    """Ready models.

    vision: pixels (B, 3, H, W) -> tokens (B, N, Dv); has dim, grid, image_size, image_mean, image_std, frozen. language:
    Qwen2ForCausalLM. vae: diffusers.AutoencoderKL, or None: latents are pixels.
    """

    vision: nn.Module
    language: Qwen2ForCausalLM
    tokenizer: object  # of transformers, or anything with vocab_size, encode, convert_tokens_to_ids, len
    vae: nn.Module | None = None
    projector: nn.Module | None = None  # mlp2x_gelu that was trained with the language model; None: a new one
    proprio: nn.Module | None = None  # reader of the proprioception that was trained with it; None, or of another size: a new one
    queries: torch.Tensor | None = None  # (action_dim, d) that were trained with it, for each action of a chunk; None: new ones


def build(config, pretrained: bool | dict[str, bool] = True, instructions: Iterable[str] = (), tokenizer=None, vision=None, vae=None,
          vae_config: dict | None = None, language=None, projector=None, proprio=None, queries=None, acting: bool = False) -> Parts:
    """The parts that a config names ("tiny": models/tiny.py; otherwise towers.*); those given are taken as they are.

    pretrained: for all, or by part; False: random weights of the config's sizes, for looks at memory and speed. `instructions`: of the
    training data, for the tiny language model's tokenizer. A tiny tower that is given is frozen if the config says so; one that is not
    given must train along, and a tiny VAE must be given, but where random ones were asked for. acting: nothing is going to train.
    """
    known = pretrained if isinstance(pretrained, dict) else dict.fromkeys(("vision", "language", "vae"), pretrained)
    if vision is None:
        vision = tiny.TinyTower((config.height, config.width), config.channels) if config.vision == "tiny" else towers.vision(
            config.vision, config.vision_revision, known["vision"], dtype=_dtype(config))
    if config.freeze_vision and isinstance(vision, tiny.TinyTower):
        vision.freeze(random=not known["vision"])
    elif vision.frozen and not config.freeze_vision:
        raise UserError("this vision tower does not train", expected="freeze_vision=True", found=f"{config.vision}, freeze_vision=False")
    if config.language == "tiny":
        tokenizer = tokenizer or small_tokenizer(instructions, config.template)
        language = language or tiny.language(config, tokenizer)
    else:
        language, own = towers.language(config.language, config.language_revision, known["language"],
                                        dtype=_dtype(config) if acting else _trained_dtype(config), quantise=config.quantise)
        tokenizer = tokenizer or own
        if tokenizer is None:  # random weights for a test of speed or memory: the vocabulary does not matter
            tokenizer = small_tokenizer(instructions, config.template)
        if config.lora_rank:
            language = adapters.add(language, adapters.LoRA(config.lora_rank, config.lora_alpha), config.checkpointing)
    if config.checkpointing and not config.lora_rank:
        adapters.switch_checkpointing(language, True)
    if vae is None and config.recon and config.vae != "pixels":
        if not known["vae"] and (vae_config is not None or config.vae == "tiny"):
            from diffusers import AutoencoderKL

            vae = AutoencoderKL.from_config(vae_config or tiny.VAE).float().requires_grad_(False).eval()
        elif config.vae == "tiny":
            raise UserError("the tiny VAE is trained on pictures first: nothing is built by its name", expected="vae=, or vae=\"pixels\"",
                            next_step="train it (repro.models.tiny_training.pretrain), and pass **tiny.load_parts(folder)")
        else:
            vae = towers.vae(config.vae, config.vae_revision, known["vae"])
    return Parts(vision, language, tokenizer, vae, projector, proprio, queries)


def restore(config, saved: dict[str, dict], tokenizer, vae_config: dict | None) -> Parts:
    """The parts of a checkpoint, `saved` their identities: what it holds whole is built empty, for its tensors to be loaded into."""
    whole = {name for name, identity in saved.items() if identity.get("whole")}
    given = {}
    if config.vision == "tiny":
        given["vision"] = tiny.TinyTower((config.height, config.width), config.channels)
        given["vision"].pretrained = True  # in a moment: whoever loads the weights names those that are missing
    known = {name: name in saved and name not in whole for name in MODULES.values()}
    parts = build(config, known, tokenizer=tokenizer, vae_config=vae_config, acting=True, **given)
    for name in whole:
        getattr(parts, name).identity = dict(saved[name])
    return parts


def _dtype(config) -> torch.dtype | None:
    return torch.float32 if config.dtype == "float32" else None if config.dtype == "auto" else getattr(torch, config.dtype)


def _trained_dtype(config) -> torch.dtype | None:
    """Of a language model: with "auto", one that trains whole is held in 32 bits. In 16 a small step changes no weight; autocast
    multiplies in 16 all the same."""
    whole = config.dtype == "auto" and not config.lora_rank and config.quantise is None
    return torch.float32 if whole else _dtype(config)


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
    """Names in the state dict that belong into a checkpoint: all but frozen tensors of parts that are found elsewhere, and a tied head."""
    elsewhere = {part for part, identity in identities(model).items() if not identity.get("whole")}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tied = {"decoder.lm_head.weight"} if model.decoder.config.tie_word_embeddings else set()
    return [name for name in model.state_dict() if name not in tied
            and (MODULES.get(name.split(".")[0]) not in elsewhere or name in trained)]
