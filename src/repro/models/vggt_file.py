"""VGGT's weights: facebook/VGGT-1B's safetensors, found, compared and read without any other tensor being taken.

    found = find("facebook/VGGT-1B")                         # hub id, folder or file: its sizes and sha256, before anything is built
    blocks = load("facebook/VGGT-1B", blocks_only=True)      # frozen; every tensor of the aggregator must be there and fit

A hub id is pinned (pretrained.PUBLISHED): it is looked for among the Kaggle inputs, in any safetensors with the aggregator's names and the
published sha256, then in the hub's cache, then on the hub. The pickled `model.pt` beside it is never read.
"""

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from repro.machine import UserError
from repro.models import pretrained as files
from repro.models.vggt import Aggregator, Alternating, VGGTConfig

NAME = "facebook/VGGT-1B"
HEADS = ("camera_head.", "point_head.", "depth_head.", "track_head.")  # of the file, not read
PREFIX = "aggregator."


@dataclass(frozen=True)
class Found:
    """A file that holds a whole aggregator: its sizes, and its identity (name, revision, sha256)."""

    file: Path
    config: VGGTConfig
    identity: dict

    @property
    def about(self) -> dict:
        """Identity and sizes in one, as checkpoints keep them."""
        return {**self.identity, **asdict(self.config)}


def config_of(shapes: dict[str, tuple[int, ...]], source: object) -> VGGTConfig:
    """Sizes of an aggregator, read off names (without "aggregator.") and shapes of its tensors; nothing is assumed."""
    count = lambda name: 1 + max((int(m[1]) for key in shapes if (m := re.match(rf"{name}\.(\d+)\.", key))), default=-1)
    try:
        dim, patch = shapes["camera_token"][-1], shapes["patch_embed.patch_embed.proj.weight"][-1]
        side = round((shapes["patch_embed.pos_embed"][1] - 1) ** 0.5)
        return VGGTConfig(side * patch, patch, dim, count("frame_blocks"), dim // shapes["frame_blocks.0.attn.q_norm.weight"][0],
                          shapes["frame_blocks.0.mlp.fc1.weight"][0], shapes["register_token"][2], count(r"patch_embed\.blocks"))
    except KeyError as error:
        raise UserError(f"{source} holds no VGGT aggregator", f"{NAME}'s names: {PREFIX}{error.args[0]}, ...", sorted(shapes)[:4] or "none",
                        f"pass the folder or file of {NAME}") from error


def find(name: str | Path = NAME, revision: str | None = None, token: str | None = None) -> Found:
    """Where the weights are and what they are; nothing is built. name: a hub id, a folder with model.safetensors, or one such file.

    All tensors of the aggregator must be there and fit, whichever part is taken; the file's heads are passed over; any other is refused.
    """
    file, sha = _file(name, revision, token)
    try:
        whole = _shapes(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read", "safetensors", files.line(error), f"download {NAME} again") from error
    shapes = {key.removeprefix(PREFIX): shape for key, shape in whole.items() if key.startswith(PREFIX)}
    config = config_of(shapes, file)
    with torch.device("meta"):  # names and shapes alone
        expected = {key: tuple(tensor.shape) for key, tensor in Aggregator(config).state_dict().items()}
    wrong = [f"{PREFIX}{key}: expected {expected.get(key, 'absent')}, found {shapes.get(key, 'absent')}"
             for key in sorted(expected.keys() | shapes.keys()) if expected.get(key) != shapes.get(key)]
    wrong += [f"unexpected: {key}" for key in sorted(whole) if not key.startswith((PREFIX, *HEADS))]
    if wrong:
        raise UserError(f"{file} does not fit VGGT", f"{len(expected)} tensors of the aggregator", "; ".join(wrong[:12]),
                        f"take the file of {NAME} as it is")
    commit = next((part for part in file.parts if re.fullmatch(r"[0-9a-f]{40}", part)), None)
    return Found(file, config, {"name": str(name), "revision": commit, "sha256": sha or sha256(file)})


def load(name: str | Path = NAME, revision: str | None = None, dtype: torch.dtype = torch.float32, blocks_only: bool = False,
         token: str | None = None, found: Found | None = None) -> Alternating:
    """The pretrained aggregator, frozen, in evaluation mode; with blocks_only its frame and global blocks (`Alternating`).

    found: of `find`, where it was called before. The module has `identity` (name, revision, sha256) and `config`.
    """
    found = found or find(name, revision, token)
    c = found.config
    with torch.device("meta"):
        model = Alternating(c.dim, c.depth, c.heads, c.hidden, c.rope_base) if blocks_only else Aggregator(c)
    model = model.to_empty(device="cpu").to(dtype)
    with torch.no_grad(), safe_open(found.file, "pt") as opened:
        for key, tensor in model.state_dict().items():
            tensor.copy_(opened.get_tensor(PREFIX + key))
    model.identity, model.config = found.identity, c
    return model.requires_grad_(False).eval()


def _file(name: str | Path, revision: str | None, token: str | None) -> tuple[Path, str | None]:
    """The file that a name means, and its sha256 where it had to be known."""
    path = Path(name).expanduser()
    if path.is_file():
        return path, None
    if path.is_dir():
        folder = path
    elif not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)):
        raise UserError(f"the VGGT weights {name} are missing", f"a file, a folder, or a hub id such as {NAME}", "nothing at that path",
                        "correct the path; of a checkpoint: repro evaluate .. --vggt FILE")
    else:
        revision = revision or files.PUBLISHED.get(str(name), (None,))[0]
        if there := _attached(str(name), revision):
            return there
        folder = files.download("VGGT weights", str(name), revision, token)
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"no VGGT weights in {folder}", "model.safetensors (a pickled model.pt is not read)", files._listed(folder),
                        f"pass the folder of {NAME}")
    return folder / "model.safetensors", None


def _attached(name: str, revision: str | None) -> tuple[Path, str] | None:
    """The file of a pinned hub id among the Kaggle inputs, told by its tensors' names and its sha256; None where no aggregator is there."""
    if not files.told_by_content(name, revision):
        return None
    alike = {}
    for folder, names in files.below(files.KAGGLE_INPUT):
        for file in (folder / one for one in sorted(names) if one.endswith(".safetensors")):
            try:
                holds = f"{PREFIX}camera_token" in _shapes(file)
            except (OSError, SafetensorError):  # damaged, or another format: then it is not this one
                continue
            if holds:
                alike[file] = sha256(file)
                if alike[file] == files.PUBLISHED[name][1]:
                    return file, alike[file]
    if alike:
        raise UserError(f"the Kaggle inputs hold a VGGT aggregator, but not {name}", f"sha256 {files.PUBLISHED[name][1]}",
                        "; ".join(f"{file}: {sha}" for file, sha in alike.items()),
                        f"attach {name} itself, or pass the file (backbone_weights) if it is the one you mean")
    return None


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors; none is read."""
    with safe_open(file, "pt") as opened:
        return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}


def sha256(file: Path) -> str:
    """Of a file, as its hub page shows it."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
