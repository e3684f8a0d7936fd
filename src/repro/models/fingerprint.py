"""What a checkpoint says about the parts and data it belongs to, compared before anything is built.

    saved = {"language": of_language("Qwen/Qwen3-0.6B-Base"), "action": {"dim": 7, "metres": 0.05}}   # into the checkpoint
    refuse_other(saved, here, "runs/vggt/step_00002000")                  # a table of all that differs, and the fix; or nothing

The failure that this ends: a checkpoint trained on Qwen3-0.6B (hidden 1024) was evaluated where transformers did not know qwen3; the code
built Qwen2-0.5B (hidden 896) instead, said so in a warning, and every episode failed. Here the shapes are read from config.json and the
tokenizer from its file; frozen weights are hashed before a module is made of them; and another model is never taken.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from repro.machine import UserError
from repro.models import pretrained as files

SHAPES = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
          "vocab_size", "image_size", "patch_size")  # of config.json; those that a model has
CONVENTIONS = {"metres": ("metres", "metres_per_unit"), "radians": ("radians", "radians_per_unit"), "rate_hz": ("rate_hz", "control_hz"),
               "gripper": ("gripper",)}  # of actions: our name, and how stores' metadata calls it
SINCE = {"qwen3": "4.51", "qwen2": "4.37", "dinov2": "4.31"}  # first version of transformers that knows a model type


def knows(model_type: str) -> bool:
    """Can the installed transformers build this kind of model?"""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return model_type in CONFIG_MAPPING_NAMES


def of_config(about: dict) -> dict:
    """The fields of a config.json that decide shapes."""
    return {name: about[name] for name in SHAPES if about.get(name) is not None}


def of_tokenizer(tokenizer) -> dict:
    """{"tokens": its size, "tokenizer": 16 hex digits of every token with its id}."""
    lines = "".join(f"{number} {token}\n" for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return {"tokens": len(tokenizer), "tokenizer": hashlib.sha256(lines.encode()).hexdigest()[:16]}


def of_folder(folder: Path) -> dict:
    """Shapes and tokenizer of a model's folder, read from its small files alone."""
    about = files.read_json(folder / "config.json")
    if not about:
        raise UserError(f"{folder} holds no model", "config.json", files._listed(folder), "pass the folder of the language model")
    found = of_config(about)
    if knows(found.get("model_type", "")) and (folder / "tokenizer.json").is_file():
        from transformers import AutoTokenizer

        found |= of_tokenizer(AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
    return found


def of_name(name: str) -> dict | None:
    """What is known of a part without the net: of a folder everything, of a published hub id the shapes; None for another hub id."""
    if Path(name).expanduser().is_dir():
        return of_folder(Path(name).expanduser())
    return of_config(files.PUBLISHED[name][2]) if name in files.PUBLISHED else None


def orientation(store) -> str:
    """How a store's pictures lie, of its metadata ("upright, true ..."); upright where it says nothing."""
    return store.meta.get("orientation", "upright").split(",")[0]


def conventions(store) -> dict:
    """What a store's metadata says an action of 1 is: {"metres": 0.05, "radians": 0.5, "rate_hz": 20, "gripper": "-1 close, +1 open"}.

    What it does not say is not there.
    """
    said = store.meta.get("action") or {}
    found = {name: said[key] for name, keys in CONVENTIONS.items() for key in keys if key in said}
    return {name: value.split(" (")[0] if isinstance(value, str) else value for name, value in found.items()}  # without remarks


def of_data(store) -> dict:
    """What a policy that is trained on a store takes for granted: how pictures lie, and what an action of 1 is."""
    return {"orientation": orientation(store), **conventions(store)}


def refuse_data(saved: dict, store, source: object) -> None:
    """UserError where data are of another kind than those a checkpoint was trained on, as far as both say."""
    here = of_data(store)
    refuse_other({"data": {name: value for name, value in saved.items() if name in here}}, {"data": here}, source)


def refuse_other(saved: dict[str, dict], here: dict[str, dict], source: object, fix: str = "") -> None:
    """Raise the `refusal`, where there is one."""
    if error := refusal(saved, here, source, fix):
        raise error


def refusal(saved: dict[str, dict], here: dict[str, dict], source: object, fix: str = "") -> UserError | None:
    """UserError with a table (module | checkpoint | this environment) of every field of a module that both sides state and that differs.

    A module that one side does not state is not compared; within one, a field that only the checkpoint has is "absent" here.
    """
    rows = [(f"{module}.{field}", saved[module].get(field, "absent"), here[module].get(field, "absent"))
            for module in saved if module in here for field in saved[module] if saved[module].get(field) != here[module].get(field)]
    if not rows:
        return None
    table = [("module", "checkpoint", "this environment"), *((name, str(old), str(new)) for name, old, new in rows)]
    wide = [max(len(row[i]) for row in table) for i in range(3)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip() for row in table]
    return UserError(f"{source} does not belong to what is here; nothing was built", "the parts and conventions it was trained with",
                     f"{len(rows)} differences\n    " + "\n    ".join(lines), fix or advice(saved, here))


def advice(saved: dict[str, dict], here: dict[str, dict]) -> str:
    """What to do about it: upgrade transformers, name the right backbone, or look at the data."""
    steps = []
    for module, about in saved.items():
        kind = about.get("model_type")
        if kind and not knows(kind):
            steps.append(f"pip install 'transformers>={SINCE.get(kind, 'a version that knows ' + kind)}' (it lacks {kind})")
        elif kind and module in here and about != here[module]:
            steps.append(f"load {about.get('name', 'the model named in the checkpoint')} for {module}, at revision "
                         f"{about.get('revision') or 'main'}; another model is never taken instead")  # fmt: skip
    return "; ".join(steps) or "use data and settings of the kind the checkpoint was trained with"


def refuse_unknown(saved: dict[str, dict], source: object) -> None:
    """UserError where the installed transformers cannot build a kind of model that the checkpoint needs."""
    import transformers

    lacking = {module: about["model_type"] for module, about in saved.items() if about.get("model_type") and not knows(about["model_type"])}
    here = {module: {"model_type": f"not known to transformers {transformers.__version__}"} for module in lacking}
    refuse_other({module: {"model_type": kind} for module, kind in lacking.items()}, here, source, advice(saved, here))


def take(model: nn.Module, names: list[str], weights: dict[str, Tensor], source: Path | str) -> None:
    """Copy the tensors `names` of a checkpoint into the model: all of them, of these shapes, or an error and none."""
    state = model.state_dict()
    expected = {name: tuple(state[name].shape) for name in names}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = [f"{name}: expected {expected.get(name, 'absent')}, found {found.get(name, 'absent')}"
             for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if wrong:
        raise UserError(f"{source} does not fit the model", f"{len(expected)} tensors", "; ".join(wrong[:12]),
                        "load it with the config it was saved with")
    with torch.no_grad():
        for name, tensor in weights.items():
            state[name].copy_(tensor)
