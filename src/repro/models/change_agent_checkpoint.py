"""The change agent on disk: weights that train, and everything they belong to, compared before anything is built.

    model.safetensors   all tensors but the frozen ones of parts that are found by name and told apart by sha256
    model.json          config and "belongs": vision, language or words, and what the numbers mean
    tokenizer.json ...  of the tiny words
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from repro.machine import UserError, compute_dtype
from repro.models import adapters, fingerprint, tiny, towers
from repro.models.change_agent_config import ASK, ChangeConfig
from repro.models.change_agent_parts import TinyTower
from repro.models.prompt import small_tokenizer

MEANING = "[cx, cy, scale] in [0, 1]: centre of the box, side of the square of its area; before, then after"
AGAIN = "take another checkpoint of the run, or copy this one again"


def parts(config: ChangeConfig, captions: Sequence[str] = (), tokenizer=None, pretrained: bool = True
          ) -> tuple[nn.Module, nn.Module, object]:
    """(vision tower, language model with its adapters, tokenizer). tokenizer: of the tiny words, where a checkpoint has it.

    pretrained=False: random weights of the published sizes, which no agent takes before `identity` is given to them: speed and memory.
    """
    c, dtype = config, torch.float32 if config.dtype == "float32" else compute_dtype()[0]
    tower = TinyTower(c.image_size, c.channels) if c.vision == "tiny" else towers.frozen_vision(c.vision, c.vision_revision, pretrained,
                                                                                               dtype)  # fmt: skip
    if not hasattr(tower, "whole"):
        raise UserError(f"the vision tower {c.vision} has no pooled vector", "CLIP, DINOv2 or ViT", type(tower).__name__,
                        "choose one of these; SigLIP's pooling head is not kept (models/towers.py)")  # fmt: skip
    if c.language == "tiny":
        tokenizer = tokenizer or small_tokenizer([*captions, ASK])
        return tower, tiny.language(c, tokenizer), tokenizer
    language, own = towers.language(c.language, c.language_revision, pretrained, dtype, c.quantise or None, expect={"model_type": None})
    if not isinstance(getattr(language, "model", None), nn.Module):
        raise UserError(f"the language model {c.language} keeps its layers elsewhere", "a part `model`, as Qwen2, Qwen3, Llama, Mistral",
                        type(language).__name__, "choose a model of such a family")  # fmt: skip
    if c.lora_rank:
        language = adapters.add(language, adapters.LoRA(c.lora_rank, c.lora_alpha, c.lora_dropout, c.lora_targets), c.checkpointing)
    else:
        language.requires_grad_(False)
    return tower, language, own or tokenizer


def belongs(model: nn.Module) -> dict[str, dict]:
    """What a checkpoint of this model says it belongs to."""
    found, c = {}, model.config
    if c.vision != "tiny":
        found["vision"] = {**model.tower.identity, **(fingerprint.of_name(c.vision) or {})}
    if c.language == "tiny":
        found["words"] = fingerprint.of_tokenizer(model.tokenizer)
    else:
        about = fingerprint.of_config(model.decoder.config.to_dict())
        found["language"] = {**model.decoder.identity, **about, **fingerprint.of_tokenizer(model.tokenizer)}
    return found | {"action": {"meaning": MEANING, "box": c.box}}


def saved_names(model: nn.Module) -> list[str]:
    """Of the state dict: what trains, and the buffers and weights of parts that are found nowhere else. A tied head is stored once."""
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    elsewhere = tuple(prefix for prefix, place in (("tower.", model.config.vision), ("decoder.", model.config.language)) if place != "tiny")
    tied = {"decoder.lm_head.weight"} if model.decoder.config.tie_word_embeddings else set()
    return [name for name in model.state_dict() if name not in tied and (name in trains or not name.startswith(elsewhere))]


def save(model: nn.Module, folder: Path) -> None:
    state = model.state_dict()
    save_file({name: state[name].contiguous() for name in saved_names(model)}, folder / "model.safetensors")
    about = {"model": "ChangeAgent", "config": asdict(model.config), "belongs": belongs(model)}
    (folder / "model.json").write_text(json.dumps(about, indent=1))
    if model.config.language == "tiny":
        model.tokenizer.save_pretrained(folder)


def read(folder: Path) -> dict:
    """model.json, with a config that this version knows."""
    if not (folder / "model.json").exists():
        raise UserError(f"{folder} holds no model", "model.json and model.safetensors", next_step="train first (notebook 07)")
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{folder}/model.json cannot be read", "JSON, as it was saved", error, AGAIN) from error
    if not isinstance(about, dict) or not all(isinstance(about.get(name), dict) for name in ("config", "belongs")):
        raise UserError(f"{folder}/model.json is not a change agent's", "config and belongs", str(about)[:120], AGAIN)
    unknown = set(about["config"]) - {field.name for field in fields(ChangeConfig)}
    if about.get("model") != "ChangeAgent" or unknown:
        raise UserError(f"{folder}/model.json is of another model or version", "ChangeAgent", f"{about.get('model')}, {sorted(unknown)}",
                        "use the version of repro named in about.json, or a change agent's run")
    return about


def load(kind: type, folder: Path, vision: str | None = None, language: str | None = None) -> nn.Module:
    about = read(folder)
    saved, given = about["belongs"], {"vision": vision, "language": language}
    config = ChangeConfig(**{**about["config"], **{name: place for name, place in given.items() if place}})
    fingerprint.refuse_unknown({name: saved[name] for name in ("language", "vision") if name in saved}, folder)
    for name in ("language", "vision"):
        if name in saved and (here := fingerprint.of_name(getattr(config, name))) is not None:
            fingerprint.refuse_other({name: {key: saved[name].get(key) for key in here}}, {name: here}, folder)
    tokenizer = None
    if config.language == "tiny":
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        fingerprint.refuse_other({"words": saved["words"]}, {"words": fingerprint.of_tokenizer(tokenizer)}, folder)
    tower, decoder, tokenizer = parts(config, tokenizer=tokenizer)
    for name, part in (("vision", tower), ("language", decoder)):
        if name in saved:
            fingerprint.refuse_other({name: {"sha256": saved[name]["sha256"]}}, {name: {"sha256": part.identity["sha256"]}}, folder,
                                     f"load {saved[name]['name']} at revision {saved[name]['revision'] or 'main'}")
    model = kind(config, tower, decoder, tokenizer)
    fingerprint.take(model, saved_names(model), weights(folder / "model.safetensors"), folder / "model.safetensors")
    return model


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file; UserError where it is torn or missing."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read", "a whole safetensors file", f"{type(error).__name__}: {error}", AGAIN) from error
