"""The tiny language model learns to point before it learns to act: what a pretrained vision-language model brings along, in minutes.

    pretrain_language("parts", tower)     # questions about the pictures the tower learned from; found again afterwards

ReconVLA starts from a language model that has seen images and text (LLaVA's recipe on Qwen2-7B). A small decoder trained from nothing
on actions alone reads the proprioception first and looks late: attention to the image has to be found through 35 action tokens, of
which most can be copied from their neighbours. Asked *where* the thing is that an instruction names, it learns to look at once. The
answer stands in seven action slots: how far it is from the hand (x, y, z), then its box (x0, y0, x1, y1) as such models write boxes;
beside it the image tokens tell which of them show the thing. Pictures: models/tiny_pictures.py; sentences: those of the training
set.
"""
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedTokenizerFast

from repro.models import prompt, tiny, tiny_pictures, tiny_training
from repro.models.reconvla_config import PRESETS, ReconVLAConfig

LEAST = 3  # cells that must show a thing for it to be asked for
REACH = 0.5  # m; what the answer calls 1 (blocks and handles lie at most that far from the hand, mostly)


def questions() -> dict[int, tuple[list[str], list[str]]]:
    """{item id: (training sentences, validation sentences)} of the tasks that name one thing of their own."""
    from repro.sims.demos import things_of
    from repro.sims.tabletop import language
    from repro.sims.tabletop.scenes import ITEMS
    from repro.sims.tabletop.tasks import block_of

    found: dict[int, tuple[list[str], list[str]]] = {}
    for task, sentences in language.TRAIN.items():
        if task in ("stack_block", "unstack_block", "push_into_drawer"):  # these name no one thing
            continue
        touched, goals = things_of(task, block_of(task), {})
        if item := touched[0] or goals[0]:  # what is held is not named: a place task names where to
            training, validation = found.setdefault(ITEMS.index(item) + 1, ([], []))
            training.extend(sentences)
            validation.append(language.VALIDATION[task])
    return found


class Questions:
    """Batches for a ReconVLA whose "action" (7,) is an answer: one thing that can be seen in each picture, a sentence that names it, how
    far it is from the hand in units of REACH (clipped to [-1, 1]), and the edges of its box, 2 * edge - 1."""

    def __init__(self, data: tiny_pictures.Pictures, features: np.ndarray, validation: bool = False):
        self.features, self.asked, self.validation = features, questions(), int(validation)
        self.robot, self.places = data.robot, data.places
        self.ids = data.ids[:, : tiny.STATIC_TOKENS * tiny.CELLS]
        seen = np.stack([(self.ids == item).sum((1, 2)) >= LEAST for item in self.asked], axis=1)
        self.rows, which = np.nonzero(seen)
        self.items = np.array(list(self.asked))[which]

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, chosen: np.ndarray, rng: np.random.Generator) -> dict:
        rows, items, boxes, sentences = self.rows[chosen], self.items[chosen], [], []
        for row, item in zip(rows, items, strict=True):
            shown = self.ids[row] == item
            ys, xs = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
            boxes.append([xs[0] / shown.shape[1], ys[0] / shown.shape[0], (xs[-1] + 1) / shown.shape[1], (ys[-1] + 1) / shown.shape[0]])
            some = self.asked[item][self.validation]
            sentences.append(some[rng.integers(len(some))])
        box, away = np.array(boxes, np.float32), (self.places[rows, items - 1] - self.robot[rows, :3]) / REACH
        return {"features": self.features[rows], "state": self.robot[rows], "instruction": sentences,
                "action": np.concatenate([away.clip(-1, 1), 2 * box - 1], axis=1)[:, None].astype(np.float32), "gaze.box": box,
                "gaze.valid": np.ones(len(rows), bool)}


def pretrain_language(folder: Path | str, steps: int = 1500, seed: int = 0, states: dict | None = None, pictures: int = 12_000,
                      scenes: tuple[str, ...] = ("A", "B", "C"), log: Callable[[str], None] = print, drawn=None, batch: int = 32,
                      config: ReconVLAConfig | None = None) -> Path:
    """Train decoder, projector, reader of the proprioception and tokenizer to point; <folder>/language, found again if its about.json
    says the same.

    The tower must lie in <folder> already. On looks never seen and sentences never read, each beside the error of the mean answer:
    about["box_error"], mean error of the four edges, in shares of the picture; about["distance_error"], of x, y and z from the hand, m.
    """
    from repro.models.reconvla import ReconVLA
    from repro.sims.tabletop import language

    path, config = Path(folder) / "language", config or PRESETS["tiny"]
    tower = tiny.load_tower(folder)
    sizes = {name: getattr(config, name) for name in ("hidden", "layers", "heads", "intermediate", "proprio", "parallel")}
    asked = tiny_training.asked("tiny language model", scenes, steps, seed, states, pictures, batch=batch, tower=tower.identity["sha256"],
                                **sizes)
    if tiny_training.there(path, asked, log):
        return path
    began, drawn = time.monotonic(), drawn or tiny_pictures.Drawn(pictures, scenes, seed, states)
    tokenizer = prompt.small_tokenizer([s for some in language.TRAIN.values() for s in some], config.template)
    robot = np.concatenate([states[scene][0] for scene in scenes if scene in states]) if states else drawn.training.robot
    stats = {"observation.state": {"mean": robot.mean(0).tolist(), "std": robot.std(0).tolist()}}
    with tiny_training.seeded(seed):
        model = ReconVLA.build(replace(config, chunk=1, action_dim=7, recon=False, aux="mask", aux_weight=1.0), stats,
                               tokenizer=tokenizer, vision=tower)
    training, held = (Questions(data, _features(tower, data), validation) for data, validation in
                      ((drawn.training, False), (drawn.held_out, True)))
    rng = np.random.default_rng([seed, 7])
    trained = [p for p in model.parameters() if p.requires_grad]

    def loss(rows: np.ndarray) -> torch.Tensor:
        return model.loss(training(rows, rng))["loss"]

    model.train()
    with tiny_training.seeded(seed + 1):  # of word dropout
        losses = tiny_training.descend(trained, loss, len(training), steps, seed, 2e-3, "language model", log, batch, bfloat16=True)
    model.eval()
    some = np.random.default_rng(0).permutation(len(held))[:512]
    wanted, guess = [], []
    for part in np.array_split(some, -(-len(some) // 64)):
        asked_for = held(part, np.random.default_rng(len(part)))
        wanted.append(asked_for["action"][:, 0])
        guess.append(model.read(asked_for)[:, 0])
    wanted, guess = np.concatenate(wanted), np.concatenate(guess)
    errors = [np.abs(answer - wanted).mean(0) for answer in (guess, wanted.mean(0))]
    (away, far_mean), (error, floor) = ([round(float(e[part].mean() * unit), 4) for e in errors]
                                        for part, unit in ((slice(3), REACH), (slice(3, 7), 0.5)))
    about = asked | {"box_error": error, "box_error_of_the_mean_box": floor, "distance_error": away, "distance_error_of_the_mean": far_mean,
                     "held_out": len(some), "held_out_looks": drawn.held_out.looks} | tiny_training.report(drawn.training, losses, began)
    log(f"language model: points {error:.3f} of the picture off (the mean box: {floor:.3f}), {100 * away:.1f} cm an axis "
        f"(the mean: {100 * far_mean:.1f}), {about['minutes']:.1f} min")
    modules = {"language": model.decoder, "projector": model.mm_projector, "proprio": model.proprio}
    weights = {f"{name}.{key}": value for name, module in modules.items()
               for key, value in module.state_dict().items() if key != "lm_head.weight"}
    if model.queries is not None:
        weights["queries"] = model.queries.detach()
    return tiny_training.write(path, "language.safetensors", weights, about,
                               {"tokenizer.json": json.loads(tokenizer.backend_tokenizer.to_str())})


def load_language(folder: Path | str, config: ReconVLAConfig | None = None) -> dict:
    """{"language": .., "projector": .., "proprio": .., "queries": .., "tokenizer": ..} for ReconVLA.build; {} where <folder>/language is
    absent."""
    path, config = Path(folder) / "language", config or PRESETS["tiny"]
    if not (path / "about.json").is_file():
        return {}
    about = json.loads((path / "about.json").read_text())
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), pad_token="<|endoftext|>", eos_token=prompt.END)
    weights = load_file(path / "language.safetensors")
    sizes = {name: about[name] for name in ("hidden", "layers", "heads", "intermediate")}
    model = tiny.language(replace(config, **sizes), tokenizer)
    missing = model.load_state_dict({k[9:]: v for k, v in weights.items() if k.startswith("language.")}, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys, missing  # tied to the embeddings
    d = about["hidden"]
    model.began_as = tiny.identity("tiny language model", path / "language.safetensors")  # it trains on: no identity of its own
    two = {name: {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
           for name in ("projector", "proprio")}
    known = {"language": model, "tokenizer": tokenizer, "queries": weights.get("queries")}
    return known | {name: _two_layers(found, d) for name, found in two.items()}


def _two_layers(weights: dict, width: int) -> nn.Sequential:
    """Linear, GELU, linear with these weights."""
    net = nn.Sequential(nn.Linear(*weights["0.weight"].shape[::-1]), nn.GELU(), nn.Linear(weights["0.weight"].shape[0], width))
    net.load_state_dict(weights)
    return net


def _features(tower: nn.Module, data: tiny_pictures.Pictures) -> np.ndarray:
    """Tower tokens of all pictures, float16 (N, tokens, dim)."""
    with torch.inference_mode():
        batches = np.array_split(data.canvas, -(-len(data.canvas) // 64))
        return np.concatenate([tower(tiny_pictures.pixels(part)).half().numpy() for part in batches])
