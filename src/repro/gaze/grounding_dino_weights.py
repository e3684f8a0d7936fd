"""GroundingDINO's weights, config and tokenizer, from the hub, a folder or a Kaggle input, in the names of either implementation.

    state = read_weights(weights_file(local("groundingdino_swint_ogc.pth")))  # tensors in transformers' names
    to_package(state)                                                       # the same in groundingdino-py's

The correspondence of names was written from the two implementations' modules; that it is right is shown by their equal answers
(tests/test_grounding_dino.py). Nothing in a file is executed: a .pth is read as tensors only, and a config that is a program not at all.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from repro import machine
from repro.machine import UserError
from repro.models.pretrained import silent

KAGGLE_INPUT = machine.kaggle_root() / "input"
LISTED, INDEX = 5000, "ep_start_end_ids.npy"  # entries of a folder that are looked at; the file beside CALVIN's frames
WEIGHTS = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab.txt")  # files asked of the hub
TOKENIZER = ("config.json", "tokenizer*", "vocab.txt")
SEPARATORS = {"[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}  # what cuts the text into phrases; transformers' port has the ids fixed
# The two published models by the width of their Swin backbone: swin_T_OGC and swin_B_cogcoor. All else is GroundingDinoConfig's default.
SWIN = {
    96: {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "image_size": 224},
    128: {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 12, "image_size": 384},
}


def find_weights(folders: Sequence[str | Path] = (KAGGLE_INPUT,)) -> Path | None:
    """The first GroundingDINO below `folders`, told by content: a folder in transformers' layout, else a groundingdino*.pth; or None."""
    files = []
    for folder, names in (one for top in folders for one in _below(Path(top))):
        whole = "config.json" in names and any(name.endswith((".safetensors", ".bin")) for name in names)
        if whole and _is_grounding_dino(folder / "config.json"):
            return folder
        files += [folder / name for name in names if re.fullmatch(r"groundingdino.*\.pth", name)]
    return files[0] if files else None


def _below(folder: Path, depth: int = 7) -> Iterator[tuple[Path, list[str]]]:
    """(folder, its files) of `folder` and those below it; Kaggle's models lie six deep. CALVIN's half a million frames and stores are not
    listed, of any other folder the first LISTED entries are."""
    if (folder / INDEX).is_file() or (folder / "meta" / "info.json").is_file():
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(islice(entries, LISTED), key=lambda entry: entry.name)
    except OSError:  # absent, or not to be read
        return
    yield folder, [entry.name for entry in found if entry.is_file()]
    for entry in found if depth else ():
        if entry.is_dir(follow_symlinks=False):
            yield from _below(Path(entry.path), depth - 1)


def _is_grounding_dino(file: Path) -> bool:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == "grounding-dino"


def local(source: str | Path, revision: str | None = None, patterns: Sequence[str] = WEIGHTS) -> Path:
    """`source` as a path that exists; the files `patterns` of a hub id are downloaded, or taken from the hub's cache."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    expected = f"a hub id such as IDEA-Research/grounding-dino-tiny, or a file or folder; on Kaggle one below {KAGGLE_INPUT}"
    attach = "attach the files as a Kaggle model or dataset and pass their folder, or pass a local folder"
    if not isinstance(source, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(?<!\.pth)(?<!\.safetensors)", source):
        raise UserError(f"{source} is missing.", expected=expected, found="nothing at that path", next_step=attach)
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{source}"
    try:
        kept = isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str)
        if not constants.HF_HUB_OFFLINE and not kept and (why := silent()):
            raise ConnectionError(f"{constants.ENDPOINT} does not answer ({why})")
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        what, expected = f"The hub keeps {source} behind a licence.", "its licence accepted, and HF_TOKEN of that account set"
        next_step, cause = f"accept it on {page}, set HF_TOKEN (on Kaggle: Add-ons, Secrets); or {attach}", error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"The hub has no {source}{f' at revision {revision}' if revision else ''}."
        next_step, cause = f"check the spelling on {page}; set HF_TOKEN if it is private", error
    except (OSError, ValueError) as error:
        what, expected = f"{source} could not be downloaded, and is not in the hub's cache.", "a connection to the hub"
        next_step, cause = f"turn the internet on; or {attach}", error
    raise UserError(what, expected=expected, found=_line(cause), next_step=next_step) from cause


def _listed(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.iterdir())[:12]) or "an empty folder" if folder.is_dir() else f"no folder {folder}"


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def weights_file(place: Path) -> Path:
    """The file of weights that a path stands for: itself, the one in a folder, or the one found below a folder of a Kaggle input."""
    if place.is_file():
        return place
    for name in ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"):
        if (place / name).is_file():
            return place / name
    files = sorted([*place.glob("*.pth"), *place.glob("*.safetensors")])
    if len(files) == 1:
        return files[0]
    below = find_weights((place,)) if not files else None
    if below is None or below == place:
        raise UserError(f"No weights of GroundingDINO in {place}.", expected="model.safetensors and config.json, or one .pth",
                        found=_listed(place), next_step="pass the file itself" if files else "pass the folder that holds them")  # fmt: skip
    return weights_file(below)


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights, of either layout, in transformers' names. Nothing in the file is executed."""
    from safetensors.torch import load_file

    try:
        if file.name.endswith(".index.json"):
            shards = sorted(set(json.loads(file.read_text())["weight_map"].values()))
            state = {name: tensor for shard in shards for name, tensor in load_file(file.parent / shard).items()}
        else:
            state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, map_location="cpu", weights_only=True)
        state = state.get("model", state)
        if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
            raise ValueError("it holds more than named tensors")
    except Exception as error:  # torch and safetensors raise a dozen kinds
        raise UserError(f"{file} cannot be read as weights.", expected="a whole .safetensors, .bin or .pth of named tensors",
                        found=_line(error), next_step="download it again") from error  # fmt: skip
    return to_transformers({name.removeprefix("module."): tensor.float() for name, tensor in state.items()})


def read_config(file: Path, state: dict[str, torch.Tensor], given: str | Path | None):
    """transformers' GroundingDinoConfig: as given, beside the weights, or of the published model that the weights' sizes are of."""
    from transformers import GroundingDinoConfig, SwinConfig

    path = Path(given).expanduser() if given else file.parent / "config.json"
    path = path / "config.json" if path.is_dir() else path
    width = len(state.get(f"{_SWIN}embeddings.patch_embeddings.projection.weight", ()))
    try:
        if path.is_file() and _is_grounding_dino(path):
            config = GroundingDinoConfig.from_pretrained(str(path))
        elif given or width not in SWIN:
            raise ValueError("not of model_type grounding-dino" if path.is_file() else "nothing at that path")
        else:
            config = GroundingDinoConfig(backbone_config=SwinConfig(**SWIN[width], out_indices=[2, 3, 4]))
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"No config of GroundingDINO for {file}.", expected="a config.json of transformers (a .py is never executed), or "
                        f"weights of a published model (Swin {' or '.join(map(str, SWIN))} wide)", found=f"{path}: {_line(error)}",
                        next_step="put the model's config.json beside the weights, or pass config=") from error  # fmt: skip
    if getattr(config.backbone_config, "model_type", None) != "swin" or not config.two_stage or not config.embedding_init_target:
        raise UserError(f"The config for {file} is of another kind of model.", expected="a Swin backbone, two stages, learnt queries",
                        found=getattr(config.backbone_config, "model_type", None), next_step="use a published GroundingDINO")  # fmt: skip
    config.disable_custom_kernels = True  # no compiled code from the hub
    return config


def read_tokenizer(folder: Path, config):
    """bert-base-uncased's tokenizer from a folder (or the folder of a file), checked against what the model expects."""
    from transformers import AutoTokenizer

    folder = folder.parent if folder.is_file() else folder
    next_step = "put bert-base-uncased's tokenizer beside the weights, or pass tokenizer=, its folder or google-bert/bert-base-uncased"
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"No tokenizer in {folder}.", expected="tokenizer.json or vocab.txt of bert-base-uncased", found=_listed(folder),
                        next_step=next_step)  # fmt: skip
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        ids = dict(zip(SEPARATORS, tokenizer.convert_tokens_to_ids(list(SEPARATORS)), strict=True))
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"The tokenizer in {folder} cannot be read.", expected="bert-base-uncased's files", found=_line(error),
                        next_step=next_step) from error  # fmt: skip
    words, limit = len(tokenizer), config.text_config.vocab_size
    if not tokenizer.is_fast or ids != SEPARATORS or words > limit:
        raise UserError(f"The tokenizer in {folder} is not this model's.", expected=f"a fast one with {SEPARATORS}, at most {limit} words",
                        found=f"{type(tokenizer).__name__} with {ids}, {words} words", next_step=next_step)  # fmt: skip
    return tokenizer


def digest(state: dict[str, torch.Tensor], settings: list) -> str:
    """Hash of weights, whatever file and layout they came from, and of settings that JSON can hold: 16 hexadecimal digits."""
    found = hashlib.sha256(json.dumps(settings).encode())
    for name in sorted(state):
        found.update(f"{name} {tuple(state[name].shape)}".encode())
        found.update(state[name].contiguous().numpy())
    return found.hexdigest()[:16]


def refuse(file: Path, **names) -> None:
    """A UserError that lists every name, by kind, if there are any."""
    if any(names.values()):
        found = "".join(f"\n    {kind}: {name}" for kind, those in names.items() for name in sorted(those))
        raise UserError(f"{file} does not fit the model.", expected="exactly the tensors of its config", found=found,
                        next_step="check that config and weights belong together")  # fmt: skip


# ------------------------------------------------------------------------------------------- names of the two layouts

_SWIN = "model.backbone.conv_encoder.model."
# The beginning of a name in the package and in transformers' files; # is a number.
_NAMES = (
    ("bert", "model.text_backbone"),
    ("feat_map", "model.text_projection"),
    ("input_proj", "model.input_proj_vision"),
    ("bbox_embed", "bbox_embed"),
    ("backbone.0.patch_embed.proj", _SWIN + "embeddings.patch_embeddings.projection"),
    ("backbone.0.patch_embed.norm", _SWIN + "embeddings.norm"),
    *((f"backbone.0.norm{i}", f"{_SWIN}hidden_states_norms.stage{i + 1}") for i in range(4)),
    *((f"backbone.0.layers.#.blocks.#.{a}", f"{_SWIN}encoder.layers.#.blocks.#.{b}") for a, b in (
        ("norm1", "layernorm_before"), ("norm2", "layernorm_after"), ("attn.proj", "attention.output.dense"),
        ("attn.relative_position_bias_table", "attention.self.relative_position_bias_table"),
        ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"))),
    ("backbone.0.layers.#.downsample", _SWIN + "encoder.layers.#.downsample"),
    ("transformer.level_embed", "model.level_embed"),
    ("transformer.tgt_embed", "model.query_position_embeddings"),
    ("transformer.enc_output_norm", "model.enc_output_norm"),
    ("transformer.enc_output", "model.enc_output"),
    ("transformer.enc_out_bbox_embed", "model.encoder_output_bbox_embed"),
    ("transformer.decoder.bbox_embed", "model.decoder.bbox_embed"),
    ("transformer.decoder.norm", "model.decoder.layer_norm"),
    ("transformer.decoder.ref_point_head", "model.decoder.reference_points_head"),
    *((f"transformer.encoder.layers.#.{a}", f"model.encoder.layers.#.deformable_layer.{b}") for a, b in (
        ("self_attn", "self_attn"), ("norm1", "self_attn_layer_norm"), ("linear1", "fc1"), ("linear2", "fc2"),
        ("norm2", "final_layer_norm"))),
    *((f"transformer.encoder.text_layers.#.{a}", f"model.encoder.layers.#.text_enhancer_layer.{b}") for a, b in (
        ("self_attn.out_proj", "self_attn.out_proj"), ("norm1", "layer_norm_before"), ("linear1", "fc1"), ("linear2", "fc2"),
        ("norm2", "layer_norm_after"))),
    *((f"transformer.encoder.fusion_layers.#.{a}", f"model.encoder.layers.#.fusion_layer.{b}") for a, b in (
        ("gamma_v", "vision_param"), ("gamma_l", "text_param"), ("layer_norm_v", "layer_norm_vision"), ("layer_norm_l", "layer_norm_text"),
        *((f"attn.{kind}{c}_proj", f"attn.{kind}{d}_proj")
          for kind in ("values_", "out_", "") for c, d in (("v", "vision"), ("l", "text"))))),
    *((f"transformer.decoder.layers.#.{a}", f"model.decoder.layers.#.{b}") for a, b in (
        ("cross_attn", "encoder_attn"), ("norm1", "encoder_attn_layer_norm"), ("ca_text.out_proj", "encoder_attn_text.out_proj"),
        ("catext_norm", "encoder_attn_text_layer_norm"), ("self_attn.out_proj", "self_attn.out_proj"), ("norm2", "self_attn_layer_norm"),
        ("linear1", "fc1"), ("linear2", "fc2"), ("norm3", "final_layer_norm"))),
)  # fmt: skip
# Query, key and value are one tensor in the package and three in transformers.
_FUSED = (
    ("backbone.0.layers.#.blocks.#.attn.qkv.", _SWIN + "encoder.layers.#.blocks.#.attention.self."),
    ("transformer.encoder.text_layers.#.self_attn.in_proj_", "model.encoder.layers.#.text_enhancer_layer.self_attn."),
    ("transformer.decoder.layers.#.self_attn.in_proj_", "model.decoder.layers.#.self_attn."),
    ("transformer.decoder.layers.#.ca_text.in_proj_", "model.decoder.layers.#.encoder_attn_text."),
)
# Left over from training, or computed when the model is built.
UNUSED = re.compile(r"label_enc\.|(bert|model\.text_backbone)\.(pooler\.|embeddings\.position_ids$)|.*\.relative_position_index$|"
                    r".*\.swin\.layernorm\.")  # fmt: skip
# The box head is one for all decoder layers, and kept under several names.
COPY = re.compile(r"\b((model|transformer)\.decoder\.)?bbox_embed\.\d+\.")


def to_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in transformers' names (as its files have them), from the package's or its own; `to_package` undoes it bit for bit.

    What the models do not use (text pooler, denoising labels, computed indices) is dropped, and the one box head kept once; names
    that are not GroundingDINO's stay as they are, for the loader to refuse. Raises UserError where copies of the box head differ.
    """
    named = {}
    for name, tensor in state.items():
        if UNUSED.match(name):
            continue
        fused = _renamed(name, _FUSED, 0)
        if fused is None:
            named[_renamed(name, _NAMES, 0) or name] = tensor
            continue
        head, kind = fused.rsplit(".", 1)
        named |= {f"{head}.{part}.{kind}": rows for part, rows in zip(("query", "key", "value"), tensor.chunk(3), strict=False)}
    for name in [name for name in named if COPY.match(name)]:
        tensor = named.pop(name)
        if not torch.equal(named.setdefault(COPY.sub("bbox_embed.0.", name), tensor), tensor):
            raise UserError("The decoder layers have box heads of their own.", expected="one box head, as in the published models",
                            found=f"{name} differs from that of the first layer")  # fmt: skip
    return named


def to_package(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights in the package's names, from transformers'; the one box head is named bbox_embed.0. `to_transformers` undoes it."""
    named, given = {}, to_transformers(state)
    for name, tensor in given.items():
        part = re.fullmatch(r"(.*\.)(query|key|value)\.(weight|bias)", name)
        fused = part and _renamed(part[1], _FUSED, 1)
        three = [given.get(f"{part[1]}{kind}.{part[3]}") for kind in ("query", "key", "value")] if fused else [None]
        if any(one is None or one.shape != tensor.shape for one in three):
            named[_renamed(name, _NAMES, 1) or name] = tensor
        elif part[2] == "query":
            named[fused + part[3]] = torch.cat(three)
    return named


def _renamed(name: str, table: Sequence[tuple[str, str]], column: int) -> str | None:
    """`name` with the beginning that `table` has in `column` replaced by the other column's; None if it has none."""
    for pair in table:
        beginning = re.match(re.escape(pair[column]).replace(r"\#", r"(\d+)") + r"(?:(?=\.|$)|(?<=[._]))", name)
        if beginning:
            numbers = iter(beginning.groups())
            return re.sub("#", lambda _, numbers=numbers: next(numbers), pair[1 - column]) + name[beginning.end() :]
    return None
