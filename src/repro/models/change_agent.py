"""The change agent: two dates of one place and a sentence in, [cx, cy, scale] of what changed out (guide G2; LEVIR-CC, LEVIR-MCI).

    dates   --frozen CLIP--> patches and pooled vectors of both, cached
    guide   [pooled | pooled] --projector--> + <-- state of the caption's FIRST token               --head--> [cx, cy, scale]
    ours    [patches | patches | difference] --mixed--> grid --projector--> "what changed?" caption <end>
                                                         |                                             |
                                            read by maps from the last real token's state  ----------> + --head, gate--> [cx, cy, scale]

    agent = ChangeAgent.build(PRESETS["tiny_ours"], captions)
    agent.act(before, after)                                     # {"vector" (n, 3), "changed" (n,), "map" (n, rows, columns)}

`guide` is upstream's architecture with its faults: a causal model's first token knows nothing of the later words, pooled vectors hide where
things are, and pairs without a box are taught the whole picture. `ours` mends these, and learns to write the caption that it is given at
other times. A checkpoint says what it belongs to and is refused where that is another (models/change_agent_checkpoint.py).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.levir_pictures import MEAN, STD, clip_pixels
from repro.machine import UserError
from repro.models import change_agent_checkpoint, fingerprint
from repro.models import change_agent_losses as losses
from repro.models.change_agent_config import ASK, NO_CHANGE, PRESETS, TRAIN, ChangeConfig  # noqa: F401 (callers import them from here)
from repro.models.change_agent_parts import Grid, Readers
from repro.models.parts import fingerprint as weights_fingerprint
from repro.models.towers import resize

TOGETHER = 32  # pairs that the tower is shown at once


class ChangeAgent(nn.Module):
    """tower: (B, 3, S, S) -> patches, or with `whole` also what is pooled; decoder: a causal language model; tokenizer: its own."""

    stats: dict = {}

    def __init__(self, config: ChangeConfig, tower: nn.Module, decoder: nn.Module, tokenizer):
        super().__init__()
        self.config = c = config
        for part, what in ((tower, "vision tower"), (decoder, "language model")):
            if not all(p.requires_grad for p in part.parameters()) and not (getattr(part, "identity", None) or {}).get("sha256"):
                raise UserError(f"a {what} with random weights is never frozen", "weights from a file, with their sha256",
                                getattr(part, "identity", None), 'load them, or train along: "tiny"')
        if tokenizer is None or tokenizer.eos_token_id is None:
            raise UserError("the language model's tokenizer has no token that ends a text", "eos_token", type(tokenizer).__name__)
        self.tower, self.decoder, self.tokenizer, self._ids = tower, decoder, tokenizer, {}
        d = decoder.config.hidden_size
        if c.features == "pooled":
            self.projector = nn.Linear(2 * tower.dim, d)
        else:
            if tower.grid[0] % c.stride or tower.grid[1] % c.stride:
                raise UserError("the grid's tokens do not divide the tower's patches", f"sides of {tower.grid} in steps", c.stride)
            self.grid = Grid(tower.dim, c.width, c.mixing)
            self.projector = nn.Linear(c.width, d)
            self.readers = Readers(d, c.width, c.readers, tower.grid)
            self.told = nn.LayerNorm(d)
            self.seen = nn.Linear(self.readers.out, d)
        self.fuse = nn.Sequential(nn.Linear(2 * d, d), nn.ReLU()) if c.fusion == "concat" else None
        self.head = nn.Sequential(nn.Linear(d, 256), nn.ReLU(), nn.Dropout(c.head_dropout), nn.Linear(256, 128), nn.ReLU(),
                                  nn.Dropout(c.head_dropout), nn.Linear(128, 3))  # and a sigmoid
        self.gate = nn.Linear(d, 1) if c.gate_weight else None

    @classmethod
    def build(cls, config: ChangeConfig, captions: Sequence[str] = ()) -> "ChangeAgent":
        """With the parts that the config names. captions: of the training data, for the tiny language model's tokenizer."""
        return cls(config, *change_agent_checkpoint.parts(config, captions))

    @property
    def device(self) -> torch.device:
        return self.projector.weight.device

    def arithmetic(self):
        """The context that frozen parts in 16 bits beside trained ones in 32 need; otherwise whatever is set stays."""
        held = {p.dtype for part in (self.tower, self.decoder) for p in part.parameters() if p.is_floating_point()} - {torch.float32}
        return torch.autocast(self.device.type, held.pop()) if held else nullcontext()

    def counts(self) -> dict[str, tuple[int, int]]:
        """{part: (parameters that train, all)}; a 4-bit layer counts the weights it stands for."""
        found = {}
        for name, p in self.named_parameters():
            size = 2 * p.numel() if p.dtype == torch.uint8 else p.numel()
            train, every = found.get(name.split(".")[0], (0, 0))
            found[name.split(".")[0]] = train + (size if p.requires_grad else 0), every + size
        return found

    # ---- pictures ---------------------------------------------------------------------------------------------------
    @property
    def _sees_once(self) -> bool:
        return self.tower.frozen and self.config.cache_features

    @property
    def key(self) -> str:
        """Names what `prepare_many` depends on, frozen weights included."""
        if self.tower.frozen and not self._sees_once:
            return "change agent, pictures as they are"
        seen, px = self.tower, f"change agent, {self.tower.image_size} px"
        return px + (f", seen by {weights_fingerprint(seen)}, {list(seen.image_mean)}, {list(seen.image_std)}" if self._sees_once else "")

    def prepare_many(self, before: UInt8[np.ndarray, "n h w 3"], after: UInt8[np.ndarray, "n h w 3"]) -> dict[str, np.ndarray]:
        """"pictures" uint8 (n, 2, S, S, 3), area-averaged, for a tower that trains; of a frozen one "features" float16 (n, 2, 1+N, Dv),
        the pooled vector first, or, where these are not cached, the pictures as they are."""
        both = np.stack([before, after], axis=1)
        if not self.tower.frozen:
            return {"pictures": shrink(both, self.tower.image_size)}
        if not self._sees_once:
            return {"pictures": both}
        return {"features": np.concatenate([self._see(both[i : i + TOGETHER]).to(torch.float16).cpu().numpy()
                                            for i in range(0, len(both), TOGETHER)])}  # fmt: skip

    def _see(self, pictures: UInt8[np.ndarray, "b 2 h w 3"]) -> Float[Tensor, "b 2 n d"]:
        flat = np.array(pictures).reshape(-1, *pictures.shape[2:])  # a copy: memory-mapped ones are not writable
        if self.tower.frozen:
            pixels = clip_pixels(flat, self.tower.image_size)
            if not np.allclose(self.tower.image_mean, MEAN):  # DINOv2's own
                mean, std = (np.float32(x).reshape(3, 1, 1) for x in (self.tower.image_mean, self.tower.image_std))
                pixels = (pixels * STD.reshape(3, 1, 1) + MEAN.reshape(3, 1, 1) - mean) / std
            pixels = torch.from_numpy(pixels).to(self.device)
        else:
            pixels = torch.from_numpy(flat).to(self.device).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        with self.arithmetic():
            return self.tower.whole(pixels).unflatten(0, (-1, 2))

    def look(self, batch: dict) -> Float[Tensor, "b 2 n d"]:
        """What the tower says of both dates: the pooled vector, then the patches row by row."""
        if "features" in batch:
            return torch.from_numpy(np.array(batch["features"])).to(self.device).float()
        return self._see(np.asarray(batch["pictures"])).float()

    # ---- words ------------------------------------------------------------------------------------------------------
    def ids(self, caption: str | None) -> list[int]:
        """Of one sequence: the question (where pictures come before it), the caption if there is one, the end."""
        if caption not in self._ids:
            said = list(self.tokenizer.encode(" " + caption, add_special_tokens=False)) if caption else []
            if len(said) > self.config.text_length:
                raise UserError("a caption is too long", f"at most {self.config.text_length} tokens", f"{len(said)}: {caption}",
                                "raise text_length in training, or shorten it")
            self._ids[caption] = [*self.question, *said, self.tokenizer.eos_token_id]
        return self._ids[caption]

    def fitted(self, written: list[str]) -> list[str]:
        """What the model wrote, as it can be told to it: cut at text_length, which an early model's broken letters pass when told again."""
        made, most = [], self.config.text_length
        for text in written:
            ids = said = self.tokenizer.encode(" " + text, add_special_tokens=False)
            for n in range(most, -1, -1):
                if len(said) <= most:
                    break
                text = self.tokenizer.decode(ids[:n], skip_special_tokens=True).strip()
                said = self.tokenizer.encode(" " + text, add_special_tokens=False)
            made.append(text)
        return made

    @property
    def question(self) -> list[int]:
        return list(self.tokenizer.encode(ASK, add_special_tokens=False)) if self.config.features == "grid" else []

    def words(self, captions: list[str | None]) -> tuple[Int[Tensor, "b l"], list[int]]:
        """Ids, filled up to the right with the end's, and how many of each are real."""
        ids = [self.ids(caption) for caption in captions]
        numbers = np.full((len(ids), max(map(len, ids))), self.tokenizer.eos_token_id)
        for row, one in zip(numbers, ids, strict=True):
            row[: len(one)] = one
        return torch.from_numpy(numbers).to(self.device), [len(one) for one in ids]

    # ---- forward ----------------------------------------------------------------------------------------------------
    def prefix(self, cells: Float[Tensor, "b w rows columns"]) -> Float[Tensor, "b t d"]:
        """The grid as tokens of the language model, row by row."""
        return self.projector(F.avg_pool2d(cells, self.config.stride).flatten(2).transpose(1, 2))

    def answer(self, batch: dict, captions: list[str | None]) -> dict[str, Tensor]:
        """"vector" (B, 3) in [0, 1]; "gate" (B,) logits of a change, where there is a gate; "maps" (B, readers, rows, columns) and
        "states" (B, 1 + L, d), of the last token before the words and of the words, with a grid. batch: what `prepare_many` gave."""
        c, seen, out = self.config, self.look(batch), {}
        ids, lengths = self.words(captions)
        words = self.decoder.get_input_embeddings()(ids).float()
        at = torch.tensor([0 if c.read == "first" else length - 1 for length in lengths], device=self.device)
        each = torch.arange(len(ids), device=self.device)
        if c.features == "pooled":
            said = self._read(words, lengths)[each, at].float()
            picture = self.projector(seen[:, :, 0].flatten(1))
        else:
            cells = self.grid(seen[:, :, 1:].unflatten(2, self.tower.grid))
            before = self.prefix(cells)
            out["states"] = self._read(torch.cat([before, words], dim=1), [before.shape[1] + n for n in lengths])[:, before.shape[1] - 1 :]
            said = self.told(out["states"][each, at + 1].float())
            read, out["maps"], square = self.readers(said, cells)
            picture = self.seen(read)
        fused = picture + said if self.fuse is None else self.fuse(torch.cat([picture, said], dim=1))
        with torch.autocast(self.device.type, enabled=False):  # coordinates in 32 bits whatever the rest is
            numbers = self.head(fused.float())
            out["vector"] = torch.sigmoid(numbers + torch.logit(square.clamp(0.01, 0.99)) if c.anchor else numbers)
            if self.gate is not None:
                out["gate"] = self.gate(fused.float())[:, 0]
        return out

    def _read(self, embedded: Float[Tensor, "b t d"], lengths: list[int]) -> Float[Tensor, "b t d"]:
        """The language model's last states. What is after `lengths` fills up; masked, though a causal model's real tokens never see it."""
        mask = None
        if len(set(lengths)) > 1:
            mask = (torch.arange(embedded.shape[1])[None] < torch.tensor(lengths)[:, None]).long().to(self.device)
        return self.decoder.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).last_hidden_state

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss`, under the name that DistributedDataParallel calls."""
        return self.loss(batch)

    def loss(self, batch: dict) -> dict[str, Tensor]:
        """Scalars, "loss" the total (models/change_agent_losses.py). Some captions are withheld in training.

        Batch, numpy: what `prepare_many` gave; box (B, 4) xyxy in [0, 1], NaN where there is none; changed (B,) bool; caption, a list.
        """
        captions = list(batch["caption"])
        if self.training and self.config.caption_dropout:
            kept = torch.rand(len(captions)) >= self.config.caption_dropout
            captions = [caption if keep else None for caption, keep in zip(captions, kept.tolist(), strict=True)]
        with self.arithmetic():
            said = self.answer(batch, captions)
        return losses.parts(self, batch, said, captions)

    # ---- use --------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def answers(self, batch: dict, captions: list[str | None]) -> dict[str, np.ndarray]:
        """"vector" (B, 3); "changed" (B,) probability, with a gate; "map" (B, rows, columns), where the head read, with a grid."""
        was_training = self.training
        self.eval()
        try:
            with self.arithmetic():
                said = self.answer(batch, captions)
        finally:
            self.train(was_training)
        found = {"vector": said["vector"]}
        if "gate" in said:
            found["changed"] = said["gate"].sigmoid()
        if "maps" in said:
            found["map"] = said["maps"].float().mean(1)
        return {name: value.cpu().numpy() for name, value in found.items()}

    @torch.no_grad()
    def write(self, batch: dict, beams: int = 1) -> list[str]:
        """The caption of each pair; greedy with one beam."""
        c = self.config
        if not c.caption_weight:
            raise UserError("this model did not learn to write captions", "caption_weight > 0 in training", c.caption_weight,
                            'give captions, or use mode "none"')
        was_training = self.training
        self.eval()
        try:
            with self.arithmetic():
                cells = self.grid(self.look(batch)[:, :, 1:].unflatten(2, self.tower.grid))
                asked = torch.tensor([self.question] * len(cells), device=self.device)
                prompt = torch.cat([self.prefix(cells), self.decoder.get_input_embeddings()(asked).float()], dim=1)
                written = self.decoder.generate(
                    inputs_embeds=prompt, attention_mask=torch.ones(prompt.shape[:2], dtype=torch.long, device=self.device),
                    max_new_tokens=c.text_length, do_sample=False, num_beams=beams, eos_token_id=self.tokenizer.eos_token_id,
                    pad_token_id=self.tokenizer.eos_token_id, temperature=None, top_p=None, top_k=None)  # fmt: skip
        finally:
            self.train(was_training)
        return [self.tokenizer.decode(one, skip_special_tokens=True).strip() for one in written]

    def act(self, before: UInt8[np.ndarray, "n h w 3"], after: UInt8[np.ndarray, "n h w 3"], captions: list[str | None] | None = None
            ) -> dict[str, np.ndarray]:
        """`answers` of pictures; without captions "none" is told."""
        return self.answers(self.prepare_many(before, after), captions or [None] * len(before))

    # ---- on disk ----------------------------------------------------------------------------------------------------
    def save(self, folder: Path | str) -> None:
        """Write weights that train, config and what they belong to (models/change_agent_checkpoint.py)."""
        change_agent_checkpoint.save(self, Path(folder))

    @classmethod
    def load(cls, folder: Path | str, vision: str | None = None, language: str | None = None) -> "ChangeAgent":
        """The model of a folder written by `save`; UserError where it does not belong to what is here.

        vision, language: other places of the *same* frozen parts.
        """
        return change_agent_checkpoint.load(cls, Path(folder), vision, language)

    def load_weights(self, weights: dict[str, Tensor], source: Path | str) -> None:
        """Take over all tensors or none."""
        fingerprint.take(self, change_agent_checkpoint.saved_names(self), weights, source)


def shrink(pictures: UInt8[np.ndarray, "n 2 h w 3"], size: int) -> UInt8[np.ndarray, "n 2 size size 3"]:
    """Area-averaged to size x size."""
    made = np.empty((len(pictures), 2, size, size, 3), np.uint8)
    for into, pair in zip(made, pictures, strict=True):
        into[:] = [resize(one, size, size) for one in pair]
    return made
