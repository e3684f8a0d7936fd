"""A policy from its checkpoint, whichever model it is: the checkpoint says so.

    policy = load_policy("work/train/gaze")           # a run's folder: its last whole checkpoint; or one checkpoint
    policy = load_policy("ReconVLA")                  # a folder of the official ReconVLA code, as the authors released one
    policy.act(observations, instructions)            # (B, K, 7)
"""

import importlib
import json
import time
from pathlib import Path

import torch

from repro.intervals import wilson
from repro.machine import UserError, compute_dtype
from repro.models import fingerprint
from repro.training import checkpoint
from repro.training.loop import read_metrics

MODELS = {"ReconVLA": "repro.models.reconvla", "VGGTVLA": "repro.models.vggt_vla", "KeypointPolicy": "repro.models.keypoint_policy"}
TRAINED = ("step", "train", "clockwork", "data", "commit", "dtype", "peak_memory_gib")  # of about.json, what a record says of the training


def find(folder: Path | str) -> Path:
    """The folder itself where it holds a model, else its last whole checkpoint."""
    folder = Path(folder).expanduser()
    return folder if (folder / "model.json").is_file() else checkpoint.need(folder)


def class_of(folder: Path | str) -> type:
    """The class that the model.json of a checkpoint names."""
    path = find(folder) / "model.json"
    try:
        name = json.loads(path.read_text()).get("model")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read", "JSON with the name of a model", error, "use another checkpoint of the run") from error
    if name not in MODELS:
        raise UserError(f"{path} names no model that acts", " | ".join(MODELS), name, "use a checkpoint of repro train")
    return getattr(importlib.import_module(MODELS[name]), name)


def load_policy(folder: Path | str, store=None, run: Path | str | None = None, language: str | None = None,
                elsewhere: dict[str, str] | None = None, quantise: str | None = None):
    """The policy of a checkpoint or a run, on the GPU where there is one; or of a folder of the official ReconVLA code.

    store: data it is to be used with, whose conventions are compared with those it was trained with. run: the folder with metrics.jsonl,
    if not around the checkpoint. language, elsewhere: other places of a VGGT-VLA's same frozen parts (VGGTVLA.load). Where it was trained
    by this library, `trained` on it says how far and on what, `minutes` how long that took. quantise="nf4": an official one in 4 bits.
    """
    from repro.models import official

    if official.holds(folder):
        return _official(Path(folder).expanduser(), {name: place for name, place in (elsewhere or {}).items() if place}, quantise)
    path = find(folder)
    if path == Path(folder).expanduser() and (path / "about.json").is_file() and (wrong := checkpoint.damage(path)):
        raise UserError(f"{path} is damaged: {wrong}", "every file as it was saved", wrong,
                        f"copy it again from where it is whole, or name the run, {path.parent}: its last whole checkpoint is taken")
    if quantise:
        raise UserError(f"{path} is loaded in the precision it was trained in", "an official folder (config.json, *.safetensors)",
                        "a checkpoint of this library", "leave 4 bits out, or train in them: preset paper_nf4")
    kind, elsewhere = class_of(path), {name: place for name, place in (elsewhere or {}).items() if place}
    if kind.__name__ == "VGGTVLA":
        policy = kind.load(path, language, store, elsewhere)
    else:
        if language or elsewhere:
            raise UserError(f"{path} takes no parts from elsewhere", "a checkpoint of VGGTVLA", kind.__name__,
                            f"leave out --{', --'.join([*(['language'] if language else []), *elsewhere])}")
        if store is not None:
            fingerprint.refuse_data(json.loads((path / "model.json").read_text()).get("data", {}), store, path)
        policy = kind.load(path)
    if (path / "about.json").is_file():
        made = checkpoint.about(path)
        policy.trained = {key: made[key] for key in TRAINED if key in made}
        lines = read_metrics(Path(run or path.parent) / "metrics.jsonl")
        policy.minutes = next((line["seconds"] for line in lines if line["step"] == made["step"]), 0.0) / 60
    return policy.to("cuda" if torch.cuda.is_available() else "cpu").eval()  # as it acts: asked again and again, it need not be told so


def _official(folder: Path, elsewhere: dict[str, str], quantise: str | None):
    """A checkpoint of the official code as a policy: without denoiser and VAE, the state scaled as that code scales it."""
    from repro.models import official, towers

    if unread := sorted(set(elsewhere) - {"vision"}):
        raise UserError(f"{folder} has its own weights", "--vision FOLDER, whose config.json tells the tower's architecture",
                        f"--{', --'.join(unread)}", "leave it out")
    dtype = compute_dtype()[0]
    vision = towers.vision(elsewhere["vision"], pretrained=False, dtype=dtype) if elsewhere.get("vision") else None
    policy = official.load_official(folder, {"observation.state": official.STATISTICS}, dtype, vision=vision, acting=True,
                                    quantise=quantise)
    policy.official = True
    return policy.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def minutes(policy, begun: float | None = None, seconds: float = 0.0) -> float:
    """Wall clock of a record: training, where the policy was trained, and evaluation since `begun`, or of so many seconds."""
    return getattr(policy, "minutes", 0.0) + (seconds if begun is None else time.monotonic() - begun) / 60


def mended(policy) -> dict[str, dict]:
    """Metric of a record: the share of a policy's answers since the last call that were no chunk of actions and were read again within the
    action tokens; {} for policies that are held to these from the start. Answers of a floor that changes what a model is asked are the
    model's."""
    while hasattr(policy, "policy"):
        policy = policy.policy
    answers = getattr(policy, "answers", 0)
    if not answers:
        return {}
    wrong, policy.answers, policy.malformed = policy.malformed, 0, 0
    low, high = wilson(wrong, answers)
    return {"answers that were no chunk of actions, read again": {"value": wrong / answers, "n": answers, "low": low, "high": high}}


def about(policy) -> dict:
    """What identifies a policy in a record: a model's config and the step of its checkpoint, or a floor's name, and what it replays."""
    if hasattr(policy, "config"):
        config = {key: value for key, value in policy.config.__dict__.items() if key != "words"}
        return {"model": config, "trained": getattr(policy, "trained", {})}
    inner, began = getattr(policy, "policy", None), getattr(policy, "began", None)
    return {"floor": getattr(policy, "name", type(policy).__name__), **({"demonstrations": began} if began else {}),
            **({"of": about(inner)} if inner is not None else {})}
