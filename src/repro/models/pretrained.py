"""Where the pretrained parts are: published configs, pinned commits, licences, and finding a part by hub id, folder or Kaggle input.

A part is a folder with config.json and *.safetensors. Its config is checked before its weights are read; what does not fit is a
UserError that says what was looked for, where, and the fix. Pickled weights and code from the hub are never read.
"""

import contextlib
import difflib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from repro import machine
from repro.machine import UserError

KAGGLE_INPUT = machine.kaggle_root() / "input"
# Fields of each model's config.json that decide its shape (and, for the language models, tell base from instruct), the commit that is
# taken where none is asked for, and the sha256 of its single weights file, as its hub page shows it (None: not known, or shards).
_FLUX_VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
             "up_block_types": ["UpDecoderBlock2D"] * 4, "latent_channels": 16, "layers_per_block": 2, "norm_num_groups": 32,
             "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
             "force_upcast": True, "sample_size": 1024}  # fmt: skip
_FLUX_SHA = "f5b59a26851551b67ae1fe58d32e76486e1e812def4696a4bea97f16604d40a3"
_SIGLIP = {"model_type": "siglip_vision_model"}
_QWEN = {"model_type": "qwen2", "bos_token_id": 151643, "eos_token_id": 151643, "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0}
PUBLISHED = {  # name: (revision, sha256, config)
    "google/siglip-so400m-patch14-384": (  # vision part 428.2 M parameters; upstream ReconVLA's tower
        "9fdffc58afc957d1a03a25b10dba0329ab15c2a3", "ea2abad2b7f8a9c1aa5e49a244d5d57ffa71c56f720c94bc5d240ef4d6e1d94a",
        _SIGLIP | {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27,
                   "patch_size": 14}),
    **{f"google/siglip-base-patch16-{size}": (revision, sha, _SIGLIP | {  # 92.9-93.2 M
        "hidden_size": 768, "image_size": size, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12,
        "patch_size": 16}) for size, revision, sha in (
            (224, "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed", "2c63cb7d1f2e95ba501893cbb8faeb4ea9a3af295498d35097126228659c2af8"),
            (256, "b078df89e446d623010d890864d4207fe6399f61", "f0cee7c815135c44a515eff72ab3040499744920442bc25567cd04efc93f8f65"),
            (384, "41aec1c83b32e0a6fca20ad88ba058aa5b5ea394", None))},
    "Qwen/Qwen2-7B": ("453ed1575b739b5b03ce3758b23befdb0967f40e", None, _QWEN | {  # 7.616 B; upstream ReconVLA's language model
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152064, "max_position_embeddings": 131072, "tie_word_embeddings": False}),
    "Qwen/Qwen2.5-0.5B": (  # 494.0 M
        "060db6499f32faf8b98477b0a26969ef7d8b9987", "88c142557820ccad55bb59756bfcfcf891de9cc6202816bd346445188a0ed342", _QWEN | {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "vocab_size": 151936, "max_position_embeddings": 32768, "tie_word_embeddings": True}),
    "Qwen/Qwen2-0.5B": ("91d2aff3f957f99e4c74c962f2f408dcc88a18d8", None, _QWEN | {  # 494.0 M
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151936, "max_position_embeddings": 131072, "tie_word_embeddings": True}),
    "Qwen/Qwen3-0.6B-Base": (  # 596.0 M; VGGT-VLA's language model
        "da87bfb608c14b7cf20ba1ce41287e8de496c0cd", "cd2a512003e2f9f3cd3c32a9c3573f820bb28c940f73c57b1ddaa983d9223eba", _QWEN | {
            "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 32768,
            "tie_word_embeddings": True}),
    "facebook/dinov2-base": ("f9e44c814b77203eaa57a6bdbbd535f21ede1415", None, {  # 86.6 M
        "model_type": "dinov2", "hidden_size": 768, "image_size": 518, "patch_size": 14, "num_hidden_layers": 12,
        "num_attention_heads": 12, "mlp_ratio": 4}),
    "openai/clip-vit-base-patch32": (  # vision part 87.5 M; the hub's own conversion to safetensors: main holds a pickled file only
        "c237dc49a33fc61debc9276459120b7eac67e7ef", None, {
            "model_type": "clip_vision_model", "hidden_size": 768, "image_size": 224, "patch_size": 32, "num_hidden_layers": 12,
            "num_attention_heads": 12, "intermediate_size": 3072}),
    "facebook/VGGT-1B": (  # aggregator 909.1 M; its sizes are read off its file (models/vggt_file.py)
        "860abec7937da0a4c03c41d3c269c366e82abdf9", "f164acf60724910d8fe1578bb499d800850c7bb0948db7555c413f9fbe60467e", {}),
    "black-forest-labs/FLUX.1-dev": ("3de623fc3c33e44ffbe2bad470d0f45bccf2eb21", _FLUX_SHA, _FLUX_VAE),  # VAE: 83.8 M
    "black-forest-labs/FLUX.1-schnell": ("741f7c3ce8b383c54771c7003378a50191e9efe9", _FLUX_SHA, _FLUX_VAE),  # VAE: the same file
}  # fmt: skip
WEIGHTS = tuple(f"{stem}.safetensors{end}" for stem in ("model", "diffusion_pytorch_model") for end in ("", ".index.json"))
LICENCES = {  # name, or the beginning of names: (licence, the hub asks for consent first)
    "google/siglip": ("Apache-2.0", False),
    "Qwen/Qwen2-7B": ("Apache-2.0", False),
    "Qwen/Qwen2.5-0.5B": ("Apache-2.0", False),
    "Qwen/Qwen2-0.5B": ("Apache-2.0", False),
    "Qwen/Qwen3-0.6B": ("Apache-2.0", False),
    "facebook/dinov2": ("Apache-2.0", False),
    "openai/clip": ("MIT (of the code; the model card limits deployed uses)", False),
    "facebook/VGGT-1B": ("VGGT License, non-commercial by secondary sources (VGGT-1B-Commercial is another, gated model)", False),
    "Qwen/Qwen2.5-3B": ("Qwen Research License, non-commercial", False),
    "black-forest-labs/FLUX.1-dev": ("FLUX.1 [dev] Non-Commercial License", True),
    "black-forest-labs/FLUX.1-schnell": ("Apache-2.0", True),
    "John6666/flux1-dev-fp8-flux": ("FLUX.1 [dev] Non-Commercial License (a copy of that model; upstream's README names it)", False),
}


def licence(name: str) -> str:
    """What is known of the licence of a hub id, in words."""
    known = max((key for key in LICENCES if name.startswith(key)), key=len, default=None)
    if known is None:
        return "a licence not in repro.models.pretrained.LICENCES: read it on the model's page"
    return LICENCES[known][0] + (", given after consent on the model's page" if LICENCES[known][1] else "")


@dataclass(frozen=True)
class Place:
    """A part that was found: its folder (None: config only), its whole config, and its identity (name, revision, sha256)."""

    what: str
    folder: Path | None
    config: dict
    identity: dict


def find(what: str, name: str | Path, revision: str | None, pretrained: bool, token: str | None, subfolder: str, read: Callable,
           expect: dict | None) -> Place:
    """Find a part (folder, Kaggle input, hub) and check its config. `read`: config.json as dict -> the part's whole config, or None."""
    name = str(name)
    pinned, sha, published = PUBLISHED.get(name, (None, None, {}))
    want, folder, by_content = published | (expect or {}), None, False
    if pretrained or not published:
        folder, by_content = _folder(what, name, revision or pinned, token, subfolder, read, want)
    about = published if folder is None else read_json(folder / "config.json")
    config = read(about)
    wrong = _differences(config, want)
    if wrong:
        expected = f"the {what} {name}" if published else f"a {what}" + (f" with {expect}" if expect else "")
        raise UserError(f"{folder or name} does not hold the {what} that is asked for ({name})", expected=expected,
                        found=f"{about.get('model_type', about.get('_class_name', 'no model_type'))}: {', '.join(wrong)}",
                        next_step=f"pass the folder or hub id of the right {what}; another is never taken instead")  # fmt: skip
    if not pretrained:
        return Place(what, folder, config, {"name": name, "revision": None, "sha256": None})
    found = weights_sha256(what, folder)
    if by_content and sha and found != sha:
        raise UserError(f"{folder} has the config of {name}, but other weights", expected=f"sha256 {sha}", found=f"sha256 {found}",
                        next_step=f"attach {name} itself, or pass this folder if it is the one you mean")  # fmt: skip
    commit = next((part for part in folder.parts if re.fullmatch(r"[0-9a-f]{40}", part)), None)  # the hub's cache names folders so
    return Place(what, folder, config, {"name": name, "revision": commit, "sha256": found})


def _folder(what: str, name: str, revision: str | None, token: str | None, subfolder: str, read: Callable, want: dict) -> tuple[Path, bool]:
    """The folder of config.json, and whether it was told by its content among the Kaggle inputs."""
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / subfolder / "config.json").is_file():
            return path / subfolder, False
        inside = [folder for folder in _configs(path) if read(read_json(folder / "config.json")) is not None]
        if len(inside) == 1:
            return inside[0], False
        raise UserError(f"the {what} is not in {path}", expected="config.json and *.safetensors of one model",
                        found=f"{len(inside)} of them: {', '.join(map(str, inside))}" if inside else _listed(path),
                        next_step="pass the folder that holds config.json")  # fmt: skip
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise UserError(f"the {what} {name} is missing", expected="a folder, or a hub id such as Qwen/Qwen2.5-0.5B",
                        found="nothing at that path", next_step="correct the path")  # fmt: skip
    if told_by_content(name, revision):
        same = [folder for folder in _configs(KAGGLE_INPUT) if not _differences(read(read_json(folder / "config.json")), want)]
        if PUBLISHED[name][1] is None:  # no hash to tell fine-tuned copies by: then the path must say the name
            parts = set(name.split("/")[1].lower().split("-"))
            same = [folder for folder in same if parts <= set(re.split(r"[-_/]", folder.as_posix().lower()))]
        if len(same) > 1:
            raise UserError(f"several Kaggle inputs look like {name}", expected="one", found=", ".join(map(str, same)),
                            next_step="pass the folder of the one you mean")  # fmt: skip
        if same:
            return same[0], True
    folder = download(what, name, revision, token, subfolder) / subfolder
    if not (folder / "config.json").is_file():
        raise UserError(f"the hub's {name} has no {what}", expected=f"{subfolder or '.'}/config.json", found=_listed(folder),
                        next_step="check the name and subfolder")  # fmt: skip
    return folder, False


def told_by_content(name: str, revision: str | None) -> bool:
    """Are the Kaggle inputs looked through for this hub id? An input does not say its commit: only for the pinned one."""
    return name in PUBLISHED and revision == PUBLISHED[name][0] and KAGGLE_INPUT.is_dir()


def silent(seconds: float = 20.0) -> str | None:
    """Why the hub does not answer, or None where it does, whatever it says; three tries, known after so many seconds at the latest.

    `snapshot_download` tries six times, each for as long as the system waits for a name or a connection that does not come: minutes."""
    from huggingface_hub import constants, get_session

    told = [f"no answer within {seconds:.0f} s"]

    def ask() -> None:
        for wait in (1, 3, 0):
            try:
                get_session().head(constants.ENDPOINT, timeout=seconds)
                told.append(None)
                return
            except Exception as error:  # of requests or httpx, by the hub's version
                told.append(line(error))
                time.sleep(wait)

    asking = threading.Thread(target=ask, daemon=True)  # a name that is looked up cannot be interrupted
    asking.start()
    asking.join(seconds)
    return told[-1]


def download(what: str, name: str, revision: str | None, token: str | None = None, subfolder: str = "") -> Path:
    """The snapshot of a hub id: config, tokenizer and safetensors, from the hub's cache or the net. Pickled weights are not fetched."""
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    names = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer*", "vocab.*", "merges.txt")
    patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in names]
    fetch = lambda token: Path(snapshot_download(name, revision=revision, allow_patterns=patterns, token=token))
    looked = f"the hub's cache, the hub at revision {revision or 'main'}"
    looked = f"{KAGGLE_INPUT} (by content), {looked}" if told_by_content(name, revision) else looked  # by the caller, before
    known = name in PUBLISHED and revision == PUBLISHED[name][0]
    near = [] if name in PUBLISHED else difflib.get_close_matches(name.lower(), list(map(str.lower, PUBLISHED)), n=1, cutoff=0.8)
    near = [other for other in PUBLISHED if other.lower() in near]
    correct = "" if name in PUBLISHED else "correct the name" + (f" ({near[0]}?)" if near else "") + ", or "
    attach = "or attach it as a Kaggle model or dataset" + ("" if known else " and pass its folder")
    attach += f", or pass a folder. Licence: {licence(name)}"
    inside = f"{subfolder}/" if subfolder else ""
    try:
        kept = (try_to_load_from_cache(name, inside + file, revision=revision) for file in WEIGHTS)
        if not constants.HF_HUB_OFFLINE and not any(isinstance(file, str) for file in kept):
            print(f"the {what} {name} is not in the hub's cache ({constants.HF_HUB_CACHE}): fetched from {constants.ENDPOINT}, revision "
                  f"{revision or 'main'}", flush=True)
            if why := silent():
                raise ConnectionError(f"{constants.ENDPOINT} does not answer ({why})")
        try:
            return fetch(token)  # None: HF_TOKEN of the environment, if it is set
        except RepositoryNotFoundError:  # gated ones are of this kind too
            token = token or kaggle_token()
            if token is None:
                raise
            return fetch(token)
    except RepositoryNotFoundError as error:
        gated = isinstance(error, GatedRepoError)
        what = f"the hub gives the {what} {name} only after consent" if gated else f"the hub has no {name}, or keeps it private"
        raise UserError(f"{what} ({licence(name)})", expected="HF_TOKEN, of an account that may read it", found=line(error),
                        next_step=f"{correct}accept its licence on https://huggingface.co/{name}, set HF_TOKEN "
                        f"(Kaggle: Add-ons, Secrets); {attach}") from error  # fmt: skip
    except (RevisionNotFoundError, OSError, ValueError) as error:
        raise UserError(f"the {what} {name} could not be had", expected="a connection to the hub, or its files here",
                        found=f"{line(error)}; looked in: {looked}",
                        next_step=f"{correct}turn the internet on, check the revision and HF_HUB_OFFLINE; {attach}") from error  # fmt: skip


def kaggle_token() -> str | None:
    """HF_TOKEN of Kaggle's secrets, where there are such; asked only after the hub refused."""
    try:
        from kaggle_secrets import UserSecretsClient

        return UserSecretsClient().get_secret("HF_TOKEN")
    except Exception:  # no such module elsewhere; on Kaggle several kinds where the secret is not attached
        return None


def weights_sha256(what: str, folder: Path) -> str:
    """sha256 of the one *.safetensors of a folder (what its hub page shows), or of the lines "sha256  name" of its shards."""
    for stem in ("model", "diffusion_pytorch_model"):
        index, files = folder / f"{stem}.safetensors.index.json", [folder / f"{stem}.safetensors"]
        if index.is_file():
            files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
        if files and all(file.is_file() for file in files):
            found = [(hashlib.file_digest(file.open("rb"), "sha256").hexdigest(), file.name) for file in files]
            return found[0][0] if len(found) == 1 else hashlib.sha256("".join(f"{a}  {b}\n" for a, b in found).encode()).hexdigest()
        if index.is_file():
            break
    lacking = [file.name for file in files if not file.is_file()] if index.is_file() else "*.safetensors (pickled .bin are not read)"
    raise UserError(f"the weights of the {what} are not in {folder}", expected=lacking, found=_listed(folder),
                    next_step="download the folder again, with its safetensors")  # fmt: skip


def load(place: Place, kind: type, **options) -> nn.Module:
    """kind.from_pretrained(folder), where every tensor must be there and fit."""
    from diffusers.utils import logging as diffusers_logging
    from transformers import logging

    try:
        with contextlib.ExitStack() as after:
            for log in (logging, diffusers_logging):  # their reports of unused tensors; what is missing is an error below
                after.callback(log.set_verbosity, log.get_verbosity())
                log.set_verbosity_error()
            model, info = kind.from_pretrained(str(place.folder), local_files_only=True, use_safetensors=True, output_loading_info=True,
                                               **options)  # fmt: skip
        lacking = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        if lacking:
            raise ValueError(f"{len(lacking)} tensors are missing or misshapen: {', '.join(lacking[:8])}")
    except Exception as error:  # transformers, diffusers and safetensors raise a dozen kinds
        raise UserError(f"the {place.what} in {place.folder} cannot be loaded", expected="whole safetensors that fit config.json",
                        found=line(error), next_step="download it again; check that config and weights belong together") from error
    return model


def siglip(about: dict) -> dict | None:
    from transformers import SiglipVisionConfig

    about = about.get("vision_config", {}) | {"model_type": "siglip_vision_model"} if about.get("model_type") == "siglip" else about
    return SiglipVisionConfig.from_dict(about).to_dict() if about.get("model_type") == "siglip_vision_model" else None


def patch_tower(about: dict) -> dict | None:
    """DINOv2's or ViT's config, or the vision part of CLIP's."""
    from transformers import CLIPVisionConfig, Dinov2Config, ViTConfig

    about = about.get("vision_config", {}) | {"model_type": "clip_vision_model"} if about.get("model_type") == "clip" else about
    kinds = {"dinov2": Dinov2Config, "vit": ViTConfig, "clip_vision_model": CLIPVisionConfig}
    return kinds[about["model_type"]].from_dict(about).to_dict() if about.get("model_type") in kinds else None


def causal(about: dict) -> dict | None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return AutoConfig.for_model(**about).to_dict() if about.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else None


def autoencoder(about: dict) -> dict | None:
    return about if about.get("_class_name") == "AutoencoderKL" else None


def _differences(config: dict | None, want: dict) -> list[str]:
    """What of a config is not as wanted, as "field=found"."""
    if config is None:
        return ["another kind of model"]
    have = config | {"rope_theta": (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))}
    return [f"{key} {have.get(key)} instead of {value}" for key, value in want.items() if have.get(key) != value]


def below(top: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders below `top`, at most seven deep (Kaggle's models lie six deep), each with the names of its files."""
    for folder, inside, names in os.walk(top):
        inside[:] = sorted(inside) if len(Path(folder).relative_to(top).parts) < 7 else []
        yield Path(folder), names


def _configs(top: Path) -> list[Path]:
    """Those of them that hold a config.json."""
    return [folder for folder, names in below(top) if "config.json" in names]


def read_json(file: Path) -> dict:
    try:
        about = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _listed(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.iterdir())[:12]) or "an empty folder" if folder.is_dir() else f"no folder {folder}"


def line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
