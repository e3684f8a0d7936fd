"""VGGT-VLA on disk: weights that train, and everything they belong to, compared before anything is built.

Compared are, in this order: settings, shapes and tokenizers that are known without the net; then the frozen parts' files, which are found
(or fetched), read for their sizes and hashed. Only then is a module made.

    model.safetensors       all tensors but those of frozen parts, which are found by name and told apart by sha256
    model.json              config, statistics, and "belongs": language, vision, vggt, cameras, state, action
    sentences.safetensors   states of the training sentences (frozen language), so that known instructions need no language model
    tokenizer.json ...      of the tiny words
"""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from repro.machine import UserError, compute_dtype
from repro.models import fingerprint, sentences, towers, vggt, vggt_file
from repro.models import pretrained as files
from repro.models.fingerprint import CONVENTIONS, conventions
from repro.models.vggt_vla_config import OWN, VGGTVLAConfig


def places(config: VGGTVLAConfig, elsewhere: dict[str, str] | None = None) -> dict[str, files.Place | vggt_file.Found]:
    """"vision", "vggt": where the frozen parts that a config names are and what they are. Fetched if need be; nothing is built.

    elsewhere: other places of the same parts, under the same keys."""
    found, elsewhere = {}, elsewhere or {}
    if config.vision not in OWN:
        found["vision"] = towers.find_frozen(elsewhere.get("vision") or config.vision, config.vision_revision)
    if config.backbone == "vggt" and config.backbone_weights:
        found["vggt"] = vggt_file.find(elsewhere.get("vggt") or config.backbone_weights, config.backbone_revision)
    if lacking := [name for name, place in elsewhere.items() if place and name not in found]:
        raise UserError(f"this model has no frozen {' and no frozen '.join(lacking)} that could lie elsewhere",
                        ", ".join(found) or "none: all its parts train along", ", ".join(lacking), "leave the option out")
    return found


def frozen_parts(config: VGGTVLAConfig, found: dict | None = None) -> tuple[nn.Module | None, vggt.Alternating | None]:
    """(vision tower, VGGT's blocks) with their pretrained weights; None for what trains along. found: of `places`, if it was called."""
    dtype = torch.float32 if config.dtype == "float32" else compute_dtype()[0]
    found = places(config) if found is None else found
    tower = towers.frozen_vision(config.vision, dtype=dtype, size=config.image_size, place=found["vision"]) if "vision" in found else None
    return tower, vggt_file.load(dtype=dtype, blocks_only=True, found=found["vggt"]) if "vggt" in found else None


def belongs(model: nn.Module) -> dict[str, dict]:
    """What a checkpoint of this model says it belongs to."""
    c, found = model.config, {}
    if isinstance(model.words, sentences.FrozenWords):
        found["language"] = {**model.words.table.about, "text_length": c.text_length}
    else:
        found["words"] = fingerprint.of_tokenizer(model.words.tokenizer)
    if model.tower is not None:
        found["vision"] = {**model.tower.identity, **(fingerprint.of_name(c.vision) or {})}
    if model.blocks is not None and c.backbone_weights:
        found["vggt"] = {**model.blocks.identity, **asdict(model.blocks.config)}
    found["cameras"] = {"views": list(c.views), "orientation": c.orientation}
    return found | {"state": {"dim": c.state_dim}, "action": {"dim": c.action_dim, **model.conventions}}


def of_store(saved: dict[str, dict], store) -> dict[str, dict]:
    """What a store says of the same; "orientation" of its metadata ("upright, true ..."), upright where it says none."""
    views = [view for view in saved["cameras"]["views"] if f"observation.images.{view}" in store.columns]
    dim = {name: len(store.stats[column]["mean"]) for name, column in (("state", "observation.state"), ("action", "action"))}
    return {"cameras": {"views": views, "orientation": fingerprint.orientation(store)},
            "state": {"dim": dim["state"]}, "action": {"dim": dim["action"], **conventions(store)}}


def compare_store(saved: dict[str, dict], store, source: object) -> None:
    """UserError where data are of another kind than a checkpoint's; a line for conventions that one side does not record."""
    here = of_store(saved, store)
    both = {name: {field: saved[name][field] for field in fields if field in saved[name]} for name, fields in here.items()}
    fingerprint.refuse_other(both, here, source)
    for where, one in (("the checkpoint", saved["action"]), ("the data", here["action"])):
        if lacking := [name for name in CONVENTIONS if name not in one]:
            print(f"{source}: {', '.join(lacking)} of an action: not recorded in {where}, so not compared")


def saved_names(model: nn.Module) -> list[str]:
    """Of the state dict, without frozen parts."""
    elsewhere = ("tower.",) + (("blocks.",) if model.config.backbone_weights else ())
    return [name for name in model.state_dict() if not name.startswith(elsewhere)]


def save(model: nn.Module, folder: Path) -> None:
    weights = model.state_dict()
    save_file({name: weights[name].contiguous() for name in saved_names(model)}, folder / "model.safetensors")
    about = {"model": "VGGTVLA", "config": asdict(model.config), "stats": model.stats, "belongs": belongs(model)}
    (folder / "model.json").write_text(json.dumps(about, indent=1))
    if isinstance(model.words, sentences.FrozenWords):
        model.words.table.save(folder / "sentences.safetensors")
    else:
        model.words.tokenizer.save_pretrained(folder)


def read(folder: Path) -> dict:
    """model.json, with a config that this version knows."""
    if not (folder / "model.json").exists():
        raise UserError(f"{folder} holds no model", "model.json and model.safetensors", next_step="train first (`repro train CONFIG.json`)")
    about = json.loads((folder / "model.json").read_text())
    unknown = set(about.get("config", {})) - {field.name for field in fields(VGGTVLAConfig)}
    if about.get("model") != "VGGTVLA" or unknown:
        raise UserError(f"{folder}/model.json is of another model or version", "VGGTVLA", f"{about.get('model')}, {sorted(unknown)}",
                        "use the version of repro named in about.json")
    return about


def compare(about: dict, source: object, language: str | None = None, store=None, elsewhere: dict[str, str] | None = None) -> None:
    """Refuse what is known not to fit, by config and tokenizer files and pinned hashes alone; nothing is built or downloaded."""
    saved, c, elsewhere = about["belongs"], VGGTVLAConfig(**about["config"]), elsewhere or {}
    fingerprint.refuse_unknown({name: saved[name] for name in ("language", "vision") if name in saved}, source)
    if "language" in saved:
        sentences.check(language or c.language, saved["language"], source)
    if "vision" in saved and (here := fingerprint.of_name(elsewhere.get("vision") or c.vision)) is not None:
        fingerprint.refuse_other({"vision": {key: saved["vision"].get(key) for key in here}}, {"vision": here}, source)
    for name, part, revision in (("vision", c.vision, c.vision_revision), ("vggt", c.backbone_weights, c.backbone_revision)):
        pinned = None if revision or Path(part).expanduser().exists() else files.PUBLISHED.get(part, (None, None))[1]
        if pinned and name in saved and not elsewhere.get(name):
            refuse_weights(name, saved[name], {"sha256": pinned}, source)
    if store is not None:
        compare_store(saved, store, source)


def refuse_weights(name: str, saved: dict, here: dict, source: object) -> None:
    """UserError where a frozen part's file is another one: its sha256, and the sizes that both sides state."""
    asked = {key: saved[key] for key in saved if key in here and key not in PLACE}
    fingerprint.refuse_other({name: asked}, {name: here}, source, f"load {saved['name']} at revision {saved['revision'] or 'main'}")


def load(kind: type, folder: Path, language: str | None = None, store=None, elsewhere: dict[str, str] | None = None) -> nn.Module:
    about = read(folder)
    compare(about, folder, language, store, elsewhere)
    config, saved = VGGTVLAConfig(**about["config"]), about["belongs"]
    found = places(config, elsewhere)
    for name, part in found.items():
        refuse_weights(name, saved[name], part.about if name == "vggt" else part.identity, folder)
    if config.language == "tiny":
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        fingerprint.refuse_other({"words": saved["words"]}, {"words": fingerprint.of_tokenizer(tokenizer)}, folder)
        words = sentences.TinyWords(tokenizer, config.text_length, config.language_width, config.word_dropout)
    else:
        table = sentences.Table.load(folder / "sentences.safetensors")
        fingerprint.refuse_other({"language": saved["language"]}, {"language": {**table.about, "text_length": config.text_length}}, folder)
        dtype = torch.float32 if config.dtype == "float32" else None
        opening = lambda: sentences.Reader.open(language or config.language, config.language_revision, config.text_length, dtype,
                                                {key: value for key, value in saved["language"].items() if key not in PLACE})
        words = sentences.FrozenWords(table, config.text_length, None if config.cache_language else opening(), opening)
    told = {name: saved["action"][name] for name in CONVENTIONS if name in saved["action"]}
    model = kind(config, about["stats"], words, *frozen_parts(config, found), told)
    fingerprint.take(model, saved_names(model), load_file(folder / "model.safetensors"), folder / "model.safetensors")
    return model


PLACE = ("name", "revision", "text_length")  # of a part: where it was found, how it was used; not what it is
